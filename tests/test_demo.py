"""`make demo` as a person runs it, on a model that isn't the built-in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

from nin.contract import Contract, load_contract
from nin.paths import ROOT
from nin.runtimes.registry import available_runtimes
from nin.runtimes.triton import SERVER_RUNTIMES


def test_exports_proves_serves_and_shows(
    embedded: None, cpp_build: Path, resnet18: Path, tmp_path: Path
) -> None:
    """A residual network in colour: through every runtime, the server and C++."""
    command = [sys.executable, str(ROOT / "scripts/demo.py"), "--model", str(resnet18)]
    shown = subprocess.run(
        [*command, "--output", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    for text in (
        "The gate is open",
        "| imagenet       | .pt    | libtorch                | pass ",
        "| imagenet       | .pt    | triton-cpp pytorch      | pass ",
        "| imagenet_image | .onnx  | triton-grpc ensemble    | pass ",
        "version 1 of resnet18_onnx, resnet18_torchscript",
        "$ nin classify ",
        "sample-0.png | ",
        "$ cpp_client/build/release/tools/nin_triton ",
        "The server has stopped.",
        "$ cpp_client/build/release/tools/nin_classify ",
        "==> 6/6",
        "Done in",
    ):
        assert text in shown.stdout
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "parity.md").is_file()
    report = json.loads((tmp_path / "parity.json").read_text())
    assert report["passed"]
    rows = report["rows"]
    assert {(r["graph"], r["runtime"]) for r in rows} == expected_rows(load_contract(resnet18))
    assert all(row["images"] == 8 and row["flips"] == 0 for row in rows)
    assert all(row["accuracy"] is None for row in rows)  # nobody knows the samples' classes
    rows_of_images = [row for row in shown.stdout.splitlines() if "sample-0.png |" in row]
    top = [row.strip("| ").split("|")[1].strip() for row in rows_of_images]
    assert len(top) == 4  # every client
    assert len(set(top)) == 1


def expected_rows(contract: Contract) -> set[tuple[str, str]]:
    """Every runtime with both graphs, and every model of the server by every client."""
    others = ("openvino", "aotinductor")  # they run files that nobody has asked for here
    names = [name for name in available_runtimes() if name not in others]
    here = {(graph, name) for graph in contract.graphs for name in names}
    served = {
        (model.graph.name, f"{name} {model.backend}")
        for model in contract.models
        for name in SERVER_RUNTIMES
        if model != contract.decoder  # its pixels are the ensemble's
        and (name, model) != ("triton-cpp", contract.ensemble)  # it decodes itself
    }
    return here | served


def test_ends_where_a_step_fails(tmp_path: Path) -> None:
    (tmp_path / "nin.onnx").write_text("mine")
    command = [sys.executable, str(ROOT / "scripts/demo.py"), "--output", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert shown.returncode == 2
    assert "error: nin export ended with exit code 2" in shown.stderr
    assert "2/6" not in shown.stdout
