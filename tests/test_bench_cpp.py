import json
from pathlib import Path

from tests.conftest import Script


def test_measures_and_tells(
    cpp_build: Path, artifacts: Path, tmp_path: Path, script: Script
) -> None:
    options = ("--rounds", 1, "--calls", 5, "--growth", 5, "--batches", 2)
    ended = script("scripts/bench_cpp.py", *options, "--artifacts", artifacts, "--output", tmp_path)
    assert (ended.code, ended.err) == (0, "")
    (found,) = json.loads((tmp_path / "cpp.json").read_text())["rounds"]
    measured = {(name, batch): values for name, batch, values in found}
    assert {name for name, batch in measured if batch == 0} == {
        "C++ LibTorch", "torchscript", "eager"
    }  # fmt: skip
    for (_, batch), values in measured.items():
        if batch:
            assert values["images_per_s"] == 2000 / values["median_ms"]
            assert 0 < values["median_ms"] <= values["p95_ms"]
            assert values["peak_memory_mib"] > 20
        else:
            assert values["start_s"] > 0
    assert measured["bf16", 2]["logit_error"] > measured["bf16", 2]["budget"]
    assert measured["torchscript", 2]["logit_error"] < measured["torchscript", 2]["budget"]
    page = (tmp_path / "cpp.md").read_text()
    assert page in ended.out
    for text in ("| Python TorchScript |", "of its heap in use", "beyond the budget"):
        assert text in page
    assert (tmp_path / "cpp.png").read_bytes().startswith(b"\x89PNG")


def test_needs_the_exports(cpp_build: Path, tmp_path: Path, script: Script) -> None:
    ended = script("scripts/bench_cpp.py", "--artifacts", tmp_path)
    assert ended.code == 2
    assert "export first" in ended.err
