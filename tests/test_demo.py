import json
import os
import subprocess
import sys
from pathlib import Path

from nin.contract import DECODE_IMAGE, FASHION_MNIST_IMAGE, GRAPHS, MODELS
from nin.paths import ROOT
from nin.runtimes import available_runtimes
from nin.runtimes.triton import SERVER_RUNTIMES


def test_exports_proves_serves_and_shows(embedded: None, cpp_build: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/demo.py"), "--images", "16"]
    shown = subprocess.run(
        [*command, "--output", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    for text in (
        "The gate is open",
        "| fashion_mnist       | libtorch                | pass ",
        "| fashion_mnist       | triton-cpp pytorch      | pass ",
        "| fashion_mnist_image | triton-grpc ensemble    | pass ",
        "version 1 of nin_onnx, nin_torchscript",
        "test-19.png | T-shirt/top |",
        "t10k-images-idx3-ubyte.gz[1] | Pullover   | ",
        "$ cpp_client/build/release/tools/nin_triton data/",
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
    assert {(row["graph"], row["runtime"]) for row in report["rows"]} == expected_rows()
    assert all(row["images"] == 16 and row["flips"] == 0 for row in report["rows"])


def expected_rows() -> set[tuple[str, str]]:
    """Every runtime with both graphs, and every model of the server by every client."""
    here = {(graph, name) for graph in GRAPHS for name in available_runtimes()}
    served = {
        (model.graph.name, f"{name} {model.backend}")
        for model in MODELS
        for name in SERVER_RUNTIMES
        if model.graph != DECODE_IMAGE  # its pixels are the ensemble's
        and not (name == "triton-cpp" and model.graph == FASHION_MNIST_IMAGE)  # it decodes itself
    }
    return here | served


def test_ends_where_a_step_fails(tmp_path: Path) -> None:
    (tmp_path / "nin.onnx").write_text("mine")
    command = [sys.executable, str(ROOT / "scripts/demo.py"), "--output", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert shown.returncode == 2
    assert "error: export/to_onnx.py ended with exit code 2" in shown.stderr
    assert "2/6" not in shown.stdout
