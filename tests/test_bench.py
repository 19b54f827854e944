"""The benchmark: a quick real run, what it leaves, its arithmetic, and mistakes."""

import json
import os
import shutil
import sys
import time
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nin.artifact.manifest import read_artifact
from nin.bench.load import Measured, measure
from nin.bench.measuring import Judge, Length, measure_rows
from nin.bench.report import HEADER, cells, markdown, page, read_gate, summarise
from nin.bench.rows import Opener, Row, list_rows
from nin.bench.worker import start_worker
from nin.commands import main
from nin.contract import Contract
from nin.errors import CheckError
from nin.gate.parity import HEADER as GATE_HEADER
from nin.runtimes.openvino import OpenVinoRuntime
from nin.runtimes.ort import OrtRuntime
from nin.runtimes.threads import set_threads
from nin.samples import open_samples
from nin.serve.server import find_tritonserver
from tests.conftest import Script
from tests.held import die, hold

ROWS = ("onnxruntime.onnx/*x1", "libtorch.pt", "triton-*/small")
FILES = ["bench.json", "bench.md", "bench.png", "report.html"]

GATE = {
    "passed": False,
    "command": "nin verify <all>",
    "rows": [
        {
            "passed": False, "runtime": "<b>onnxruntime</b>", "graph": "small", "images": 5,
            "budget": {"logits": 1e-5}, "sizes": [1], "asked": 5, "max_error": {"logits": 1.0},
            "mean_error": {"logits": 0.5}, "flips": 1, "near_ties": [], "accuracy": 0.5,
            "seconds": 0.1, "failures": ["wrong"],
        }
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def measured(
    embedded: None, cpp_build: Path, lenet: Contract, lenet_artifacts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """What a quick run leaves beside exports that have a gate's report and the demo's picture."""
    folder = tmp_path_factory.mktemp("bench")
    artifacts = Path(shutil.copytree(lenet_artifacts, folder / "artifacts"))
    (artifacts / "parity.json").write_text(json.dumps(GATE))
    Image.new("L", (30, 20)).save(artifacts / "demo.png")
    options = ("--model", lenet.folder, "--artifacts", artifacts, "--quick", "--rows", *ROWS)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", ["nin", "bench", *map(str, options)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    assert sorted(path.name for path in (artifacts / "bench").iterdir()) == FILES
    return artifacts / "bench"


@pytest.fixture(scope="module")
def data(measured: Path) -> Any:
    return json.loads((measured / "bench.json").read_bytes())


def test_every_row_is_measured_at_every_size_in_every_round(data: Any) -> None:
    cores = len(os.sched_getaffinity(0))
    names = [row["name"] for row in data["rows"]]
    assert names == [
        "eager", f"onnxruntime.onnx/{cores}x1", "libtorch.pt",
        "triton-http/small", "triton-grpc/small", "triton-cpp/small",
    ]  # fmt: skip
    concurrencies = dict(zip(names, ((1,), (cores,), (1,), (1, 16), (1, 16), (1,)), strict=True))
    expected = {(name, b, c) for name in names for b in (1, 4) for c in concurrencies[name]}
    assert len(data["rounds"]) == data["about"]["rounds"] == 2
    for points in data["rounds"]:
        assert {(p["row"], p["batch"], p["concurrency"]) for p in points} == expected
        assert len(points) == len(expected)
        assert all(point["images_per_s"] > 0 for point in points)
        assert all(0 < point["p50_ms"] <= point["p95_ms"] for point in points)


def test_what_is_measured_once(data: Any, lenet_artifacts: Path, lenet: Contract) -> None:
    rows = {row["name"]: row for row in data["rows"]}
    assert rows["eager"]["file_bytes"] == lenet.network.weights.stat().st_size
    for name in ("libtorch.pt", "triton-grpc/small"):
        row = rows[name]
        assert row["file_bytes"] == (lenet_artifacts / row["file"]).stat().st_size
    for row in rows.values():
        assert row["precision"] == "float32"
        assert row["agreement"] == 1
        assert row["accuracy"] == rows["eager"]["accuracy"]
        assert 20 < row["peak_memory_mib"] < 4_000
    model_mib = [row["model_memory_mib"] for row in rows.values()]
    assert all(0 < mib < 500 for mib in model_mib[:2])
    assert model_mib[2:] == [None] * 4


def test_says_what_the_numbers_depend_on(data: Any, lenet: Contract) -> None:
    about = data["about"]
    assert about["model"] == lenet.name
    assert about["command"].startswith("nin bench --model")
    assert about["cores"] == len(os.sched_getaffinity(0))
    assert about["images"] == len(open_samples(lenet))
    assert {"nin", "torch", "triton", "python"} <= about["versions"].keys()
    assert min(about["load_before"], about["load_after"]) >= 0


def test_the_table_is_markdown(measured: Path, data: Any) -> None:
    text = (measured / "bench.md").read_text()
    assert text == markdown(data)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert rows[0] == HEADER
    assert set("".join(rows[1])) <= {"-", ":"}
    assert rows[2:] == [cells(summary) for summary in summarise(data)]
    assert len(rows) == 2 + len(data["rounds"][0])
    assert text.count("load average") == 1


def test_the_picture_is_a_png(measured: Path) -> None:
    with Image.open(measured / "bench.png") as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 300
        assert len(np.unique(np.asarray(image))) > 10


class Page(HTMLParser):
    """Checks that elements close in order, and keeps what a browser would fetch."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [str(v) for k, v in attrs if k in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_needs_no_other_file(measured: Path) -> None:
    text = (measured / "report.html").read_text()
    found = Page(text)
    assert "url(" not in text
    assert "@import" not in text
    assert not {"script", "link", "iframe", "b"} & found.tags
    assert len(found.sources) == 2
    for source in found.sources:
        assert source.startswith("data:image/png;base64,")
    for name in (
        *HEADER,
        *GATE_HEADER,
        "The gate: closed",
        "<b>onnxruntime</b>",
        "small in <b>onnxruntime</b>: wrong",
        "triton-grpc/small",
    ):
        assert name in found.texts


def test_the_page_without_gate_and_demo(measured: Path, data: Any, tmp_path: Path) -> None:
    found = Page(page(data, b"", read_gate(tmp_path / "parity.json"), None))
    assert not any(text.startswith(("The gate", "The demo")) for text in found.texts)
    (tmp_path / "parity.json").write_text('{"passed": true, "rows": [{"odd": 1}]}')
    assert read_gate(tmp_path / "parity.json") is None


def test_ratios_are_of_the_same_round(data: Any) -> None:
    data = deepcopy(data)
    for points, eager, other in zip(data["rounds"], (100, 200), (300, 200), strict=True):
        for point in points:
            point["images_per_s"] = eager if point["row"] == "eager" else other
    first, *_, last = summarise(data)
    assert first.ratios == [1, 1]
    assert last.ratios == [3, 1]
    assert cells(last)[7:9] == ("250.0 (200.0 to 300.0)", "2.00 (1.00 to 3.00)")


# The load


@pytest.mark.parametrize(("callers", "batch"), [(1, 1), (4, 3)])
def test_a_closed_loop_keeps_its_callers_busy(callers: int, batch: int) -> None:
    found = measure([lambda: time.sleep(0.02)] * callers, batch, seconds=0.4)
    assert 0.5 < found.images_per_s / (callers * batch / 0.02) <= 1
    assert 20 <= found.p50_ms <= found.p95_ms


def test_few_slow_calls_are_counted_from_answer_to_answer() -> None:
    found = measure([lambda: time.sleep(0.2)], 1, seconds=0.25)
    assert found.images_per_s == pytest.approx(5, rel=0.2)
    assert measure([lambda: time.sleep(0.2)], 1, seconds=0.01).p50_ms >= 200  # at least one


def test_calls_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nin.bench.load.MOST_CALLS", 3)
    start = time.perf_counter()
    measure([lambda: time.sleep(0.01)], 1, seconds=60)
    assert time.perf_counter() - start < 30


def test_a_call_that_fails_ends_the_load() -> None:
    def fail() -> None:
        raise CheckError("no answer")

    with pytest.raises(CheckError, match="no answer"):
        measure([fail, lambda: time.sleep(0.01)], 1, seconds=60)


# Workers


def test_a_workers_memory_is_its_own() -> None:
    pixels = np.zeros((2, 3), np.uint8)
    with ExitStack() as stack:
        small, large = (start_worker(stack, partial(hold, n), pixels, (1, 2)) for n in (1, 200))
        assert isinstance(small.measure(2, 1, 0.01), Measured)
        assert small.classes(np.zeros((5, 3), np.uint8), 1).tolist() == [9] * 5
        (small_peak, small_model), (peak, model) = small.memory_mib(), large.memory_mib()
        assert peak - small_peak == pytest.approx(199, abs=30)
        assert small_model is not None
        assert small_model < 50
        assert model == pytest.approx(200, abs=50)


@pytest.mark.parametrize("count", [0, 1])
def test_instances_have_the_threads_that_were_set(
    lenet: Contract, lenet_artifacts: Path, count: int
) -> None:
    data = read_artifact(lenet_artifacts, "small.onnx")
    set_threads(count)
    try:
        session = OrtRuntime(data, lenet.classifier_graph)._session
    finally:
        set_threads(0)
    assert session.get_session_options().intra_op_num_threads == count


def test_instances_of_openvino_are_not_bound_to_the_same_core(
    lenet: Contract, lenet_artifacts: Path
) -> None:
    data, graph = read_artifact(lenet_artifacts, "small.onnx"), lenet.classifier_graph
    model = OpenVinoRuntime(data, graph, threads=1)._model
    assert model.get_property("ENABLE_CPU_PINNING") is False
    assert model.get_property("INFERENCE_NUM_THREADS") == 1


def measure_one(row: Row, opener: Any, lenet: Contract) -> None:
    judge = Judge(open_samples(lenet).pixels([0]), np.zeros(1, np.intp), None)
    measure_rows([row], opener, judge, Length(rounds=1, seconds=0.01, images=1))


def test_a_row_whose_export_was_changed_is_named(
    lenet: Contract, lenet_artifacts: Path, tmp_path: Path
) -> None:
    artifacts = Path(shutil.copytree(lenet_artifacts, tmp_path / "artifacts"))
    weights, pixels = lenet.network.weights, open_samples(lenet).pixels([0])
    row = next(r for r in list_rows(lenet, weights, artifacts) if r.runtime == "onnxruntime")
    row.file.write_bytes(b"no export")
    with ExitStack() as stack, pytest.raises(CheckError, match="small.onnx has SHA-256") as error:
        measure_one(row, Opener(lenet, weights, artifacts, pixels, (1,), stack), lenet)
    assert str(error.value).startswith(f"{row.name}: ")


def test_a_row_whose_process_dies_is_named(lenet: Contract) -> None:
    with ExitStack() as stack, pytest.raises(CheckError, match="r: its process ended by itself"):
        opener = SimpleNamespace(
            batches=(1,), open=lambda _: start_worker(stack, die, np.zeros((1, 3), np.uint8), (1,))
        )
        measure_one(Row("r", "r", Path()), opener, lenet)


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--artifacts", "nowhere"), "no manifest.json in nowhere; export first"),
        (("--rows", "tensorflow*"), "no row tensorflow*; there are eager, torchscript.pt/"),
        (("--output", "README.md/bench"), "can't write to the folder README.md/bench"),
        (("--rounds", 0), "0 is not a whole number from 1 on"),
        (("--images", 0), "0 is not a whole number from 1 on"),
        (("--model", "nowhere"), "no model at nowhere"),
    ],
)
def test_mistakes_are_one_line(
    nin: Script, lenet: Contract, lenet_artifacts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").touch()
    given = ("--model", lenet.folder, "--artifacts", lenet_artifacts, "--output", "out")
    ended = nin("bench", *given, *options)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_without_a_server_its_rows_are_left_out_and_that_is_said(
    nin: Script, lenet: Contract, lenet_artifacts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    missing = partial(find_tritonserver, backends=tmp_path / "none")
    monkeypatch.setattr("nin.bench.rows.find_tritonserver", missing)
    given = ("--model", lenet.folder, "--artifacts", lenet_artifacts, "--output", tmp_path / "out")
    ended = nin("bench", *given, "--rows", "triton*")
    assert ended.code == 2
    assert ended.err.startswith(f"served rows are left out: no {tmp_path}/none, which ")
    assert "error: no row triton*; there are eager, " in ended.err
