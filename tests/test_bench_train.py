"""The benchmark's arithmetic, from numbers that no clock has made; its loops; one tiny run."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nin.paths import ROOT
from nin.training.network import images_of
from tests.conftest import Script

SCRIPT = "scripts/bench_train.py"
TINY = ("--rounds", 1, "--steps", 1, "--batch-size", 8, "--matmul", 512, "--device", "cpu")


@pytest.fixture(scope="module")
def bench() -> Any:
    return SimpleNamespace(**runpy.run_path(str(ROOT / SCRIPT)))


def tables(page: str) -> list[list[list[str]]]:
    """The cells of each table's rows, without the header."""
    found = []
    for part in page.split("\n\n"):
        lines = [line.strip("| ").split("|") for line in part.splitlines() if line[:1] == "|"]
        if lines:
            found.append([[cell.strip() for cell in line] for line in lines[2:]])
    return found


def test_measures_and_tells(tmp_path: Path) -> None:
    """In a process of its own, for it forks workers; more than cores are no warning."""
    page = tmp_path / "new" / "train.md"
    workers = (os.cpu_count() or 1) + 1
    options = (*TINY, "--workers", workers, "--output", page)
    ended = subprocess.run(
        [sys.executable, SCRIPT, *map(str, options)], cwd=ROOT, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert page.read_text() in ended.stdout
    assert list(page.parent.iterdir()) == [page]
    assert ended.stdout.startswith(
        f"`python scripts/bench_train.py --rounds 1 --steps 1 --workers {workers} --device cpu "
        "--precision "
    )
    speeds, shares = tables(page.read_text())
    for rows in (speeds, shares):
        assert [row[0] for row in rows] == [
            "the book's",
            "ours, the book's recipe",
            "ours, the best recipe",
            "ours, the best recipe, 20x20 crops",
        ]
    for _, batch, *cells in speeds:
        assert batch == "8"
        assert all(float(cell.partition(" ")[0]) > 0 for cell in cells)
    assert speeds[0][3] == speeds[0][5] == "1.00 (1.00 to 1.00)"
    for _, gflop, precision, _, share in shares:
        assert 0.9 < float(gflop) < 5
        assert precision in ("float32", "bfloat16")
        assert float(share) > 0


def test_the_clocks_are_the_books_and_the_walls(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def spend(seconds: float, answer: object = None) -> Any:
        nonlocal now
        now += seconds
        return answer

    class Loaded:
        def __next__(self) -> Any:
            return spend(3.0, (None, None))

        def __iter__(self) -> Any:
            return self

    loop = bench.BookLoop(bench.Pictures(*bench.pictures()), 4, 0, torch.device("cpu"))
    loop.loader = lambda batches: Loaded()
    loop.step = lambda images, labels: spend(1.0)
    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert loop.turn(5) == (4.0, 1.0)


def test_ratios_are_formed_within_rounds(bench: Any) -> None:
    names = (bench.BOOKS_LOOP, "ours")
    loops = [bench.Loop(name, 8, 28, "float32", None) for name in names]
    rates = [((1, 1), (2, 4)), ((10, 5), (30, 5)), ((4, 2), (16, 12))]
    rounds = [dict(zip(names, (bench.Rates(*r) for r in pair), strict=True)) for pair in rates]
    ((book, ours),) = tables(bench.speed_table(loops, rounds))
    assert book[2:] == [
        "4.0 (1.0 to 10.0)", "1.00 (1.00 to 1.00)", "2.0 (1.0 to 5.0)", "1.00 (1.00 to 1.00)"
    ]  # fmt: skip
    assert ours[2:] == [
        "16.0 (2.0 to 30.0)", "3.00 (2.00 to 4.00)", "5.0 (4.0 to 12.0)", "4.00 (1.00 to 6.00)"
    ]  # fmt: skip
    flops = bench.flops_per_image(28)
    ((_, ours),) = tables(bench.share_table(loops, rounds, {"float32": 10 * flops}))
    assert ours[4] == "0.500"  # 5 examples a second, where the peak has room for 10


def test_the_books_pictures_are_ours(bench: Any) -> None:
    pixels, labels = bench.pictures()
    assert len(pixels) == len(labels) == 60_000
    pictures = bench.Pictures(pixels, labels)
    image, label = pictures[19_999]
    assert label == labels[9_999]
    # PIL rounds to whole levels, half a level off at most in each direction
    torch.testing.assert_close(image, images_of(pixels[9_999:10_000])[0], atol=1.01 / 255, rtol=0)


def test_each_loop_trains_at_its_size(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [SCRIPT, *map(str, TINY)])
    args = bench.parse_args()
    args.rounds, args.steps = 3, 100_000  # the last step's size is the first one's
    args.precision = "float32"  # so on a CPU the network takes pixels
    loops = bench.make_loops(args, torch.device("cpu"))
    assert [loop.side for loop in loops] == [28, 28, 28, 20]
    for loop in loops[1:]:
        (trainer,) = loop.turn.args
        trainer.state.step = args.rounds * (args.steps + 1) - 1
        shapes: list[torch.Size] = []
        trainer.forward.register_forward_pre_hook(
            lambda _, images, shapes=shapes: shapes.append(images[0].shape)
        )
        with trainer.accelerated():
            trainer.step()
        assert shapes == [(8, loop.side, loop.side)]


def test_counts_the_flops_of_the_layers(bench: Any) -> None:
    # maps' side, channels out and in, kernel's side of each block's spatial convolution
    blocks = ((54, 96, 1, 11), (26, 256, 96, 5), (12, 384, 256, 3), (5, 10, 384, 3))
    spatial = [side**2 * out * channels * kernel**2 for side, out, channels, kernel in blocks]
    pointwise = [2 * side**2 * out**2 for side, out, *_ in blocks]
    forward = bench.flops_per_image(28, backward=False)
    assert forward == 2 * (sum(spatial) + sum(pointwise)) == 1_524_594_704
    # Backwards each costs that for its weights and that for its input; the image needs none.
    assert bench.flops_per_image(28) == 3 * forward - 2 * spatial[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "abacus"), "error: no device abacus here"),
        (("--device", "meta"), "error: can't train on meta"),
        (("--output", "."), "is a folder; give the name of a file"),
        (("--batch-size", 60_001), "a batch of 60001 is larger than the 60000 images"),
    ],
)
def test_a_persons_mistake_is_told(
    options: tuple[object, ...], message: str, script: Script
) -> None:
    ended = script(SCRIPT, *TINY, *options)
    assert ended.code == 2
    assert message in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
    assert ended.out == ""


def test_no_room_is_told_in_one_line(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error.\nMore of it.")

    monkeypatch.setattr("nin.training.trainer.Trainer.step", full)
    ended = script(SCRIPT, *TINY, "--workers", 0)
    assert ended.code == 2
    assert ended.err == (
        "error: no room (DataLoader worker (pid 7) is killed by signal: Bus error.); choose a "
        "smaller --batch-size, or fewer --workers\n"
    )


def test_a_whole_run_is_crops_and_then_whole_images(bench: Any) -> None:
    rates = {bench.BOOKS_LOOP: 10.0, bench.CROPS: 60.0, bench.WHOLE: 20.0}
    found = {name: bench.Rates(rate, rate) for name, rate in rates.items()}
    until = bench.BEST.crop_until
    assert bench.whole_run(found) == pytest.approx(1 / (until / 6 + (1 - until) / 2))
