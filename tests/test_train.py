"""The training program as a person runs it, on a handful of images."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, interpolate

import nin.training.data
from nin.files import locked
from nin.network.weights import load_weights, save_weights
from nin.paths import NIN as FOLDER
from nin.paths import ROOT
from nin.training.batch_norm import add_to
from nin.training.batches import split
from nin.training.network import NiN
from nin.training.recipes import RECIPES
from tests.conftest import Script
from tests.train_small import load_test_images, without_batch_norm

WEIGHTS = FOLDER / "weights.safetensors"

# two steps an epoch
SMALL = ("--limit", 16, "--batch-size", 8, "--epochs", 2, "--precision", "float32")
PROGRAM = [sys.executable, str(ROOT / "tests/train_small.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TORCHRUN += PROGRAM[1:]


@pytest.fixture(autouse=True)
def training_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nin.training.data, "load", load_test_images)


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Training in float64, in other processes too.

    In float32 rounding decides now and then which input a pooling takes or whether a ReLU passes
    its own, and gradients jump by percents: two right ways to train can't be held to each other.
    """
    monkeypatch.setenv("FLOAT64", "1")
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def shipped() -> NiN:
    network = NiN()
    load_weights(network, WEIGHTS)
    return network.eval()


@pytest.fixture
def fitted(tmp_path: Path, float64: None) -> Path:
    """The shipped weights in float64, as if they had never seen the held-out images."""
    path = tmp_path / "fitted.safetensors"
    save_weights(path, shipped(), recipe="", metrics={})
    return path


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two epochs without a stop."""
    folder = tmp_path_factory.mktemp("straight")
    options = [*map(str, SMALL), "--output", str(folder)]
    shown = subprocess.run([*PROGRAM, *options], capture_output=True, text=True, check=True)
    assert "Warning" not in shown.stderr
    (folder / "out.txt").write_text(shown.stdout)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "nin.safetensors")


def about_weights(folder: Path) -> dict[str, Any]:
    """The recipe and the metrics that the weights carry."""
    with safe_open(folder / "nin.safetensors", framework="pt") as file:
        return {name: json.loads(text) for name, text in file.metadata().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_times(folder: Path) -> list[dict[str, Any]]:
    timed = ("examples_per_second", "train_seconds")
    return [{k: v for k, v in entry.items() if k not in timed} for entry in log_of(folder)]


def test_ends_with_the_lines_of_the_book_and_all_files(straight: Path) -> None:
    out = (straight / "out.txt").read_text()
    closing = r"^loss \d\.\d{3}, train acc \d\.\d{3}, test acc \d\.\d{4} on 16 images$"
    assert re.search(closing, out, re.M)
    assert re.search(r"^\d+\.\d examples/sec on .+ threads$", out, re.M)
    assert (straight / "curves.png").read_bytes().startswith(b"\x89PNG")
    about = json.loads((straight / "nin.json").read_text())
    assert about == about_weights(straight)
    assert about["recipe"]["optimizer"] == "muon"
    assert about["metrics"]["train_images"] == 16
    assert 0 <= about["metrics"]["test_accuracy"] <= 1
    first, second = log_of(straight)
    assert (first["epoch"], second["epoch"], second["step"]) == (1, 2, 4)
    assert (first["crop"], second["crop"]) == (20, 28)
    assert first["validation_loss"] == pytest.approx(2.3, abs=0.3)


def test_goes_on_bit_for_bit_where_it_was_stopped(
    script: Script, straight: Path, tmp_path: Path
) -> None:
    # Each part ends after its first step, within an epoch or at its end, or once it has judged it.
    command = ("train/train.py", *SMALL, "--output", tmp_path, "--time-limit", 1e-9)
    ended = script(*command)
    for step in (1, 2, 2, 3, 4):
        assert ended.code == 0
        assert f"stopped after step {step} of 4" in ended.out
        assert not (tmp_path / "nin.safetensors").exists()
        ended = script(*command, "--resume")
    assert "test acc" in ended.out
    assert equal(weights(tmp_path), weights(straight))
    assert without_times(tmp_path) == without_times(straight)


def test_another_seed_gives_other_weights(script: Script, straight: Path, tmp_path: Path) -> None:
    command = ("train/train.py", *SMALL, "--output", tmp_path)
    assert script(*command, "--seed", 1).code == 0
    assert not equal(weights(tmp_path), weights(straight))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint(script: Script, tmp_path: Path, number: int) -> None:
    options = [*map(str, SMALL), "--epochs", "1000", "--output", str(tmp_path)]
    with subprocess.Popen(
        [*PROGRAM, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "loss" not in process.stderr.readline():  # the bar after the first step
            assert process.poll() is None
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert re.search(r"stopped after step \d+ of 2000; .* --resume goes on", out)
    ended = script("train/train.py", *options, "--resume", "--time-limit", 1e-9)
    assert (ended.code, "stopped after step" in ended.out) == (0, True)


def test_stops_where_the_loss_is_no_number_and_keeps_the_last_good_checkpoint(
    script: Script, tmp_path: Path
) -> None:
    command = ("train/train.py", "--recipe", "book", *SMALL, "--output", tmp_path, "--lr", 1e9)
    ended = script(*command)
    assert ended.code == 1
    assert (
        "isn't a finite number after step 2; nothing was saved; start again with a lower"
        in ended.err
    )
    calm = ("train/train.py", "--recipe", "book", *SMALL, "--output", tmp_path)
    assert script(*calm, "--time-limit", 1e-9).code == 0
    path = tmp_path / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["optimizers"][0]["param_groups"][0]["initial_lr"] = float("nan")
    torch.save(checkpoint, path)
    before = path.read_bytes()
    ended = script(*calm, "--resume")
    assert ended.code == 1
    assert "the loss or a weight isn't a finite number after step" in ended.err
    assert f"the last good checkpoint is {path}" in ended.err
    assert path.read_bytes() == before
    assert not (tmp_path / "nin.safetensors").exists()


def test_the_saved_weights_answer_as_the_trained_network(straight: Path) -> None:
    trained = NiN()
    add_to(trained)
    found = torch.load(straight / "checkpoint.pt", weights_only=True)
    trained.load_state_dict(found["network"])
    image = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    saved = NiN()
    assert load_weights(saved, straight / "nin.safetensors") == []
    with torch.no_grad():
        torch.testing.assert_close(saved.eval()(image), trained.eval()(image), rtol=1e-3, atol=1e-4)


def test_trains_in_bfloat16(script: Script, tmp_path: Path) -> None:
    options = ("--limit", 4, "--batch-size", 2, "--epochs", 1, "--precision", "bfloat16")
    assert script("train/train.py", *options, "--output", tmp_path).code == 0
    assert about_weights(tmp_path)["recipe"]["precision"] == "bfloat16"


@pytest.mark.slow  # test_training.py has the same for the layer alone
def test_two_processes_normalise_over_their_common_batch(
    script: Script, tmp_path: Path, float64: None
) -> None:
    # the statistics of the first step follow from the fresh weights and the batch alone
    options = [*map(str, SMALL), "--dropout", "0", "--time-limit", "1e-9", "--output"]
    alone, shared = (tmp_path / name for name in ("alone", "shared"))
    assert script("train/train.py", *options, alone).code == 0
    shown = subprocess.run(
        [*TORCHRUN, *options, str(shared)], capture_output=True, text=True, check=True
    )
    assert "Warning" not in shown.stderr
    one, two = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (alone, shared))
    statistics = [name for name in one["network"] if "running" in name]
    assert len(statistics) == 18
    for name in statistics:
        torch.testing.assert_close(two["network"][name], one["network"][name])  # to 1e-7
    assert two["state"]["totals"] == pytest.approx(one["state"]["totals"], rel=1e-6)
    ended = subprocess.run(
        [*TORCHRUN, *map(str, SMALL), "--dropout", "0", "--resume", "--output", str(shared)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout.count("test acc") == 1


@pytest.mark.parametrize(
    "recipe",
    [
        "best without batch norm",
        pytest.param("best", marks=pytest.mark.slow),
        pytest.param("book", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_like_one_on_the_same_batches(
    script: Script, tmp_path: Path, fitted: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    if recipe == "best without batch norm":
        monkeypatch.setenv("WITHOUT_BATCH_NORM", "1")
        monkeypatch.setitem(RECIPES, "best", without_batch_norm())
    # Each process drops out for itself. The book's own rate diverges on so few images.
    options = ["--recipe", recipe.split()[0], *map(str, SMALL), "--dropout", "0"]
    options += ["--lr", "0.001", "--init", str(fitted), "--output"]
    alone, shared, start = (tmp_path / name for name in ("alone", "shared", "start"))
    assert script("train/train.py", *options, alone).code == 0
    command = [*TORCHRUN, *options, str(shared)]
    shown = subprocess.run(
        [*command, "--time-limit", "1e-9"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.count("stopped after step 1 of") == 1  # only the first one speaks
    shown = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True)
    assert shown.stdout.count("test acc") == 1
    assert script("train/train.py", *options, start, "--time-limit", 1e-9).code == 0
    first, one, two = (
        torch.load(folder / "checkpoint.pt", weights_only=True)["network"]
        for folder in (start, alone, shared)
    )
    names = [name for name in first if re.search(r"(weight|bias)$", name)]
    assert len(names) >= 24
    for name in names:
        moved, apart = one[name] - first[name], two[name] - one[name]
        # a norm takes away what the convolution before it adds: it stays
        stays = f"{name.removesuffix('bias')}norm.bias" in names
        assert stays or moved.norm() > 0
        assert apart.norm() <= 1e-5 * moved.norm(), name  # the loss is taken in float32
    # Where norms are fitted to the weights to start from, each process counts the whole batch as
    # its share, and the variances are smaller by their bias.
    loss_bound = 5e-4 if recipe == "best" else 1e-6
    for mine, shares in zip(log_of(alone), log_of(shared), strict=True):
        for key in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"):
            assert shares[key] == pytest.approx(mine[key], rel=loss_bound)


def test_starts_from_given_weights(script: Script, tmp_path: Path) -> None:
    options = ("--limit", 64, "--batch-size", 64, "--epochs", 1, "--all", "--crop-until", 0)
    ended = script("train/train.py", *options, "--init", WEIGHTS, "--output", tmp_path)
    assert ended.code == 0
    (entry,) = log_of(tmp_path)
    assert entry["train_accuracy"] > 0.8
    assert about_weights(tmp_path)["recipe"]["batch_norm"]
    assert "validation_loss" not in entry  # nothing was held out


def test_the_book_trains_as_the_book_does(script: Script, tmp_path: Path, fitted: Path) -> None:
    small = ("--limit", 8, "--batch-size", 8, "--epochs", 1, "--precision", "float32")
    options = ("--recipe", "book", *small, "--dropout", 0, "--init", fitted)
    assert script("train/train.py", *options, "--output", tmp_path).code == 0
    recipe = about_weights(tmp_path)["recipe"]
    expected = {"optimizer": "sgd", "lr": 0.1, "initialisation": "xavier", "shift": 0, "flip": 0}
    assert recipe.items() >= expected.items()
    network = shipped()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    train, _ = split(10_000)
    pixels, labels = (torch.tensor(a)[train[:8]] for a in load_test_images(""))
    image = interpolate(pixels[:, None] / 255, size=(224, 224), mode="bilinear")
    cross_entropy(network(image), labels.long()).backward()
    with torch.no_grad():
        for parameter in network.parameters():
            assert parameter.grad is not None
            parameter.sub_(0.1 * parameter.grad)
    for name, tensor in weights(tmp_path).items():
        other = network.state_dict()[name]
        assert (tensor - other).norm() < 1e-5 * (other - before[name]).norm()


@pytest.mark.gpu
def test_trains_and_resumes_on_a_gpu(script: Script, tmp_path: Path) -> None:
    options = ("--limit", 512, "--batch-size", 64, "--epochs", 2, "--device", "cuda")
    command = ("train/train.py", *options, "--output", tmp_path)
    assert script(*command, "--time-limit", 1e-9).code == 0
    ended = script(*command, "--resume")
    assert ended.code == 0
    assert torch.cuda.get_device_name() in ended.out
    assert log_of(tmp_path)[-1]["epoch"] == 2
    stopped = weights(tmp_path)
    assert script(*command, "--force").code == 0
    assert equal(weights(tmp_path), stopped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cuda:77"), "no device cuda:77 here"),
        (("--device", "abacus"), "no device abacus here"),
        (("--device", "meta"), "can't train on meta: expected `cpu` or `cuda`"),
        (("--batch-size", 29), "a batch of 29 is larger than the 28 images to train on"),
        (("--init", "no.safetensors"), "no weights file at no.safetensors"),
        (("--init", WEIGHTS), "weights.safetensors was trained on the held-out images too"),
        (("--resume",), "to resume from; start without --resume"),
        (("--resume", "--force"), "argument --force: not allowed with argument --resume"),
        (("--seed", 2**32), "4294967296 is not below 4294967296"),
        (("--lr", "-1"), "-1 is not a number above 0"),
        (("--lr", "nan"), "nan is not a number above 0"),
        (("--lr", "1e39"), "1e39 is not a number above 0 and up to 1e9"),
        (("--lr", "fast"), "invalid rate value: 'fast'"),
        (("--dropout", 1), "1 is not a number from 0 to below 1"),
        (("--epochs", 0), "0 is not a whole number from 1 on"),
        (("--recipe", "mine"), "invalid choice: 'mine'"),
    ],
)
def test_refuses(script: Script, tmp_path: Path, options: tuple[Any, ...], message: str) -> None:
    command = ("train/train.py", "--limit", 28, "--batch-size", 8, "--output", tmp_path / "new")
    ended = script(*command, *options)
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert not list(tmp_path.glob("new/*"))


def test_says_where_it_looked_for_the_training_set(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    ended = script("train/train.py", "--data-dir", tmp_path, "--output", tmp_path / "new")
    assert ended.code == 2
    assert f"no train-images-idx3-ubyte[.gz] in {tmp_path}; install Debian's package" in ended.err
    assert "download()" in ended.err


def test_two_runs_do_not_share_a_folder(script: Script, tmp_path: Path) -> None:
    with locked(tmp_path):
        for options in ((), ("--force",), ("--resume",)):
            ended = script("train/train.py", *SMALL, "--output", tmp_path, *options)
            assert ended.code == 2
            assert f"another process writes to {tmp_path}; choose another" in ended.err
    assert not list(tmp_path.iterdir())


def test_never_touches_another_run_unless_told(script: Script, straight: Path) -> None:
    before = weights(straight)
    ended = script("train/train.py", *SMALL, "--output", straight)
    assert ended.code == 2
    assert "holds checkpoint.pt of a run; go on with it by --resume, replace it" in ended.err
    ended = script("train/train.py", *SMALL, "--output", straight, "--resume", "--lr", 0.5)
    assert ended.code == 2
    assert "is of another run: lr is 0.03 there, 0.5 here; give the options" in ended.err
    ended = script("train/train.py", *SMALL, "--output", straight, "--resume", "--recipe", "book")
    assert "name is best there, book here" in ended.err
    ended = script("train/train.py", *SMALL, "--output", straight, "--resume", "--compile")
    assert "compiled is False there, True here" in ended.err
    ended = script("train/train.py", *SMALL, "--output", straight, "--force", "--init", "no")
    assert ended.code == 2
    own = straight / "nin.safetensors"
    ended = script("train/train.py", *SMALL, "--output", straight, "--force", "--init", own)
    assert ended.code == 2
    assert "is of the run that --force replaces; choose another --output" in ended.err
    assert equal(weights(straight), before)


def test_force_starts_again(script: Script, straight: Path, tmp_path: Path) -> None:
    (tmp_path / "nin.safetensors").write_bytes((straight / "nin.safetensors").read_bytes())
    command = ("train/train.py", *SMALL, "--output", tmp_path)
    ended = script(*command)
    assert ended.code == 2
    assert "holds nin.safetensors of a run; replace it by --force" in ended.err
    assert script(*command, "--force", "--time-limit", 1e-9).code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "log.jsonl"]


@pytest.mark.parametrize("damage", ["cut", "text", "bit", "network", "key"])
def test_refuses_a_damaged_checkpoint(
    script: Script, straight: Path, tmp_path: Path, damage: str
) -> None:
    data = (straight / "checkpoint.pt").read_bytes()
    path = tmp_path / "checkpoint.pt"
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    damaged = {"cut": data[:middle], "text": b"hello", "bit": flipped}
    path.write_bytes(damaged.get(damage, data))
    if damage in ("network", "key"):
        checkpoint = torch.load(path, weights_only=True)
        if damage == "network":
            checkpoint["network"]["0.0.weight"] = torch.zeros(1)
        else:
            del checkpoint["state"]
        torch.save(checkpoint, path)
    before = path.read_bytes()
    ended = script("train/train.py", *SMALL, "--output", tmp_path, "--resume")
    assert ended.code == 2
    expected = "is of another network" if damage == "network" else "isn't a checkpoint of this"
    assert expected in ended.err
    assert len(ended.err.splitlines()) == 1
    assert path.read_bytes() == before
