"""`nin publish --tune`: layouts measured on the real server, the best one written."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format

from nin.bench.load import Measured
from nin.bench.tuning import HEADER, Tried, candidates, choose
from nin.contract import Contract
from nin.errors import CheckError
from nin.serve.configs import CONFIG, Layout, config_text, layout_for, parse
from nin.serve.repository import model_names, publish
from tests.conftest import Ended, Script
from tests.models import CONTRACT

CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def tune(
    embedded: None, nin: Script, lenet: Contract, lenet_artifacts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Script:  # fmt: skip
    """Publishes to a repository of this test's own, after a short look."""
    monkeypatch.setattr("nin.bench.tuning.ROUNDS", 2)
    monkeypatch.setattr("nin.bench.tuning.SECONDS", 0.05)
    given = ("--model", lenet.folder, "--artifacts", lenet_artifacts, "--unproven")

    def run(*options: object) -> Ended:
        return nin("publish", *given, "--repository", tmp_path / "own", *options)

    return run


def rows_of(out: str) -> list[list[str]]:
    lines = [line for line in out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_best_layout_is_written_for_all_models(
    tune: Script, lenet: Contract, tmp_path: Path
) -> None:
    ended = tune("--tune", "--latency-ms", 60_000, "--clients", 3)
    assert (ended.code, ended.err) == (0, "")
    header, _, *rows = rows_of(ended.out)
    assert tuple(header) == HEADER
    assert len(rows) == len(candidates(lenet, CORES))
    rates = [float(row[3].split()[0]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    sizes, batch, delay_ms, *_ = rows[0]
    instances, threads = map(int, sizes.split("x"))
    for model in lenet.published:
        config = parse((tmp_path / "own" / model.name / CONFIG).read_bytes())
        assert [group.count for group in config.instance_group] == [instances]
        batching = config.dynamic_batching
        assert list(batching.preferred_batch_size) == [int(batch)]
        assert batching.max_queue_delay_microseconds == float(delay_ms) * 1000
        assert [p.string_value for n, p in config.parameters.items() if "thread" in n.lower()] == [
            str(threads)
        ]
    text = re.sub(r"\n# ", " ", (tmp_path / "own" / lenet.name / CONFIG).read_text())
    best, second = (f"{row[0]} threads, batches of {row[1]}, {row[2]} ms delay" for row in rows[:2])
    assert f"{best} ({rates[0]:.1f} images/s, p95 " in text
    assert f"Next best: {second} ({rates[1]:.1f} images/s, p95 " in text
    assert "the best for small by `nin publish --tune` on " in text
    assert "3 requests of one image in flight, of those with a p95 of at most 60000 ms" in text


def test_a_bound_that_no_layout_meets_writes_nothing(
    tune: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nin.bench.tuning.candidates", lambda *args: candidates(*args)[:2])
    ended = tune("--tune", "small", "--latency-ms", 1, "--clients", 64)
    assert ended.code == 1
    assert ended.out.startswith("small, 64 requests in flight:\n")
    assert len(rows_of(ended.out)) == 2 + 2
    assert ended.err.startswith("error: no layout answers within 1 ms: the least p95 is ")
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tune", "lenet_onnx"), "no classifier lenet_onnx is published; there are small, "),
        (("--tune", "--cores", 2), "--tune measures; leave --cores, --instances and --gpu out"),
        (("--tune", "--rollback"), "--rollback leaves the configurations"),
        (("--latency-ms", 5), "--latency-ms is a bound for --tune; give both"),
        (("--tune", "--latency-ms", 0), "0 is not a whole number from 1 on"),
        (("--tune", "--clients", "x"), "x is not a whole number from 1 on"),
        (("--tune", "--artifacts", "nowhere"), "no manifest.json in nowhere"),
    ],
)
def test_mistakes_are_one_line(
    tune: Script, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    ended = tune(*options)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err.splitlines()[-1]
    assert not (tmp_path / "own").exists()


# The choice


def tried(*measured: tuple[float, float]) -> list[Tried]:
    """Layouts of one instance and more, each with its rate and its p95."""
    layouts = (Layout(n, 1, preferred_batch=4, max_queue_delay_us=0) for n in range(1, 10))
    return [
        Tried(layout, [Measured(rate, p95 / 2, p95), Measured(3 * rate, p95, p95)])
        for layout, (rate, p95) in zip(layouts, measured, strict=False)
    ]


@pytest.mark.parametrize(("latency_ms", "instances"), [(None, 1), (50, 1), (49, 2), (9, 3)])
def test_the_fastest_within_the_bound_is_chosen(latency_ms: float | None, instances: int) -> None:
    layout = choose(tried((30, 50), (20, 10), (10, 5)), latency_ms, model="small", clients=2)
    assert layout.instances == instances
    assert f"{instances}x1 threads, batches of 4, 0 ms delay (" in layout.reason
    assert ("Next best" in layout.reason) == (instances < 3)


def test_no_bound_is_met() -> None:
    with pytest.raises(CheckError, match=r"within 4 ms: the least p95 is 5\.0 ms with 2 requests"):
        choose(tried((30, 50), (10, 5)), 4, model="small", clients=2)


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
def test_candidates_are_a_handful_and_fit_the_machine(lenet: Contract, cores: int) -> None:
    for contract in (lenet, CONTRACT):
        layouts = candidates(contract, cores)
        assert 3 <= len(layouts) <= 12
        assert len(set(layouts)) == len(layouts)
        assert {(1, cores), (cores, 1)} <= {(one.instances, one.threads) for one in layouts}
        for one in layouts:
            assert one.instances * one.threads <= cores
            assert one.preferred_batch is not None
            assert one.preferred_batch <= contract.triton.max_batch


def test_a_layout_without_batching_leaves_it_to_the_contract(lenet: Contract) -> None:
    model = next(model for model in lenet.published if model.name == lenet.name)
    usual = layout_for(cores=2)
    text = config_text(lenet, model, usual)
    same = replace(usual, preferred_batch=5, max_queue_delay_us=500)
    assert config_text(lenet, model, same) == text
    at_once = parse(config_text(lenet, model, replace(usual, max_queue_delay_us=0)))
    assert at_once.dynamic_batching.max_queue_delay_microseconds == 0
    assert list(at_once.dynamic_batching.preferred_batch_size) == [5]


def test_what_was_tuned_stays_when_the_next_version_is_published(
    lenet: Contract, lenet_artifacts: Path, tmp_path: Path
) -> None:
    layout = Layout(3, 1, preferred_batch=2, max_queue_delay_us=7, reason="We know.")
    publish(lenet, lenet_artifacts, tmp_path / "own", layout=layout)
    publish(lenet, lenet_artifacts, tmp_path / "own")
    assert sorted(model_names(tmp_path / "own")) == sorted(model.name for model in lenet.models)
    text = (tmp_path / "own" / lenet.name / CONFIG).read_text()
    assert "# We know. `nin publish --cores N`" in text
    assert text_format.MessageToString(parse(text).instance_group[0]) == (
        "count: 3\nkind: KIND_CPU\n"
    )
