"""The benchmark's arithmetic and its page, from numbers that no clock has made; one real run."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nin.errors import CheckError
from nin.paths import ROOT
from nin.terminal import short
from tests.conftest import Script

SCRIPT = "scripts/bench_serving.py"
FILES = ("serving.json", "serving.md", "serving.png")


@pytest.fixture(scope="module")
def bench() -> Any:
    return SimpleNamespace(**runpy.run_path(str(ROOT / SCRIPT)))


def statistics(requests: int, executions: int, ms: int, *, failed: int = 0) -> dict[str, Any]:
    """Requests of one image: `ms` in each stage, `ms` an execution in each part of compute."""
    total = {"count": requests, "ns": requests * ms * 10**6}
    stages = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    execution = {"count": executions, "ns": executions * ms * 10**6}
    return {
        "inference_count": requests,
        "execution_count": executions,
        "inference_stats": {**dict.fromkeys(stages, total), "fail": {"count": failed, "ns": 0}},
        "batch_stats": [{"batch_size": 1, **dict.fromkeys(stages[2:], execution)}],
    }


def measured(rate: float, ms: float, **server: float) -> dict[str, float]:
    return {
        "images_per_s": rate,
        **dict.fromkeys(("mean_ms", "p50_ms", "p95_ms", "p99_ms"), ms),
    } | server


def canned(bench: Any, concurrencies: tuple[int, ...], rate: float, ms: float) -> list[Any]:
    """Two equal rounds: in-process has 100 images/s in 10 ms, served as given."""
    server = dict.fromkeys(("queue_ms", "compute_input_ms", "compute_output_ms"), 1.0)
    server |= {"compute_infer_ms": ms - 5, "executed_batch": 1.5, "busy_ms_per_image": 11.0}
    sides = {"in-process": measured(100, 10), "served": measured(rate, ms, **server)}
    return [{(point, side): sides[side] for point, side in bench.plan(concurrencies)}] * 2


def test_says_how_to_get_perf_analyzer(script: Script, tmp_path: Path) -> None:
    binary = tmp_path / "bin" / "perf_analyzer"
    ended = script(SCRIPT, "--perf-analyzer", binary, "--output", tmp_path)
    assert (ended.code, ended.out) == (2, "")
    folder = short(ROOT / ".perf_analyzer")
    assert ended.err == (
        f"error: no perf_analyzer at {binary}; get NVIDIA's with "
        f"`python -m pip install --no-deps --target {folder} tritonclient==2.50.0`\n"
    )


def test_says_why_perf_analyzer_does_not_start(script: Script, tmp_path: Path) -> None:
    binary = tmp_path / "perf_analyzer"
    binary.write_text("#!/bin/sh\necho libmissing.so: not found >&2\nexit 127\n")
    binary.chmod(0o755)
    ended = script(SCRIPT, "--perf-analyzer", binary, "--output", tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"error: {binary} doesn't start: libmissing.so: not found\n"


def test_statistics_are_of_what_was_added(bench: Any) -> None:
    # 10 requests of 5 ms a stage before; 20 more, in 10 executions, bring the mean to 7 ms
    found = bench.account(statistics(10, 10, 5), statistics(30, 20, 7))
    assert found["queue_ms"] == found["compute_infer_ms"] == (30 * 7 - 10 * 5) / 20
    assert found["executed_batch"] == 2
    assert found["busy_ms_per_image"] == 3 * (20 * 7 - 10 * 5) / 20


def test_a_failed_request_ends_it(bench: Any) -> None:
    with pytest.raises(CheckError, match="the server failed 2 requests"):
        bench.account(statistics(1, 1, 1), statistics(9, 9, 1, failed=2))


def test_report_of_perf_analyzer(bench: Any) -> None:
    report = (
        "Concurrency,Inferences/Second,Server Queue,p50 latency,p90 latency,p95 latency,"
        "p99 latency,Avg latency\n16,119.942,49167,129357,171887,173287,178671,131262\n\n"
    )
    assert bench.read_report(report) == {
        "images_per_s": 119.942, "mean_ms": 131.262,
        "p50_ms": 129.357, "p95_ms": 173.287, "p99_ms": 178.671,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rate", "ms", "throughput", "delay"),
    [
        (95, 12, "**met**, 95.0%", "**met**, +2.00 (+2.00 to +2.00) ms"),
        (80, 14, "**missed by 10.0 percentage points**, 80.0%", "**missed by 1.00 ms**, +4.00 ("),
    ],
)
def test_aims_and_where_the_time_goes(
    bench: Any, rate: float, ms: float, throughput: str, delay: str
) -> None:
    page = bench.describe(dict.fromkeys(FACTS, "x"), canned(bench, (1, 16), rate, ms))
    assert throughput in page
    assert delay in page
    # queue 1, compute ms - 3, and what is missing
    for text in (f"{1 / ms:.1%} queue", f"{(ms - 3) / ms:.1%} compute", f"{2 / ms:.1%} elsewhere"):
        assert page.count(text) == 2
    assert "| nin_onnx, image       |      200,704 |" in page


def test_aims_that_were_not_measured(bench: Any) -> None:
    page = bench.describe(dict.fromkeys(FACTS, "x"), canned(bench, (2,), 100, 10))
    assert page.count("Not measured") == 2


FACTS = ("command", "processor", "cores", "load", "device", "triton", "onnxruntime", "python")


def test_request_bytes(bench: Any) -> None:
    tensor, body = bench.request_bytes("fashion_mnist")
    assert tensor == 784 < body < 2 * 784


def test_picture(bench: Any, tmp_path: Path) -> None:
    rounds = canned(bench, (1, 4, 16), 95, 12)
    bench.draw(rounds, dict.fromkeys(FACTS, "x"), tmp_path / "serving.png")
    assert [path.name for path in tmp_path.iterdir()] == ["serving.png"]


@pytest.mark.slow
@pytest.mark.skipif(
    not (ROOT / ".perf_analyzer" / "bin" / "perf_analyzer").is_file(), reason="no perf_analyzer"
)
def test_a_real_run(script: Script, artifacts: Path, tmp_path: Path) -> None:
    options = ("--seconds", 1, "--rounds", 1, "--concurrency", 1, 16)
    ended = script(SCRIPT, *options, "--artifacts", artifacts, "--output", tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == list(FILES)
    assert ended.out.startswith((tmp_path / "serving.md").read_text())
    for text in ("- Throughput at concurrency 16", "- p50 at concurrency 1", "nin_onnx, image"):
        assert text in ended.out
    [found] = json.loads((tmp_path / "serving.json").read_bytes())["rounds"]
    assert len(found) == 8
    assert all(row["images_per_s"] > 0 for row in found)
