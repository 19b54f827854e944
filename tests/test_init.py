"""`nin init`: a model folder from somebody's network, to be edited."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import GoogLeNet, WeightsEnum

from nin.contract import load_contract
from nin.images import encode_idx, encode_png
from nin.network.build import load_model
from nin.network.published import unique
from nin.paths import DATA, NIN
from nin.samples import open_samples
from tests.conftest import Script

CNN = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes, channels=3):
        super().__init__(
            nn.Conv2d(channels, 4, 3, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(16, classes),
        )

class Dictionary(Net):
    def forward(self, x):
        return {"out": super().forward(x)}

class Spatial(Net):
    def forward(self, x):
        return self[0](x)

class Dropping(Net):
    def forward(self, x):
        return torch.nn.functional.dropout(super().forward(x))

class TwoInputs(Net):
    def forward(self, x, y):
        return super().forward(x + y)

def mlp(size):
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 7))

def nothing():
    return 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with somebody's code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CNN)
    return tmp_path


# --- torchvision ---


@pytest.mark.parametrize(
    ("name", "size", "shorter_side", "filter"),
    [("resnet18", 224, 256, "bilinear"), ("efficientnet_b0", 224, 256, "bicubic")],
)
def test_torchvisions_preprocessing_and_classes(
    nin: Script, name: str, size: int, shorter_side: int, filter: str
) -> None:
    ended = nin("init", "models/mine", "--from", f"torchvision.models:{name}")
    assert (ended.code, ended.err) == (0, "")
    contract = load_contract(Path("models/mine"))
    assert (contract.name, contract.network.name) == ("mine", name)
    assert contract.classifier_graph.input.shape == (size, size, 3)
    assert contract.image.mean == (0.485, 0.456, 0.406)
    assert contract.files.describe() == {
        "mode": "rgb", "resize": "crop", "height": size, "width": size,
        "shorter_side": shorter_side, "filter": filter,
    }  # fmt: skip
    assert len(contract.labels) == 1000
    assert contract.labels[0] == "tench"
    assert open_samples(contract).pixels(range(8)).any(axis=(1, 2, 3)).all()
    assert "model.toml, [image]" not in ended.out  # there is nothing to check
    assert ended.out.endswith("Next:\n  nin export onnx --model models/mine\n")


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_the_command_that_is_told_fetches_weights_that_fit(
    nin: Script, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """All but the fetching, and with another network's weights where they'd have no meaning."""
    told = nin("init", "mine", "--from", f"torchvision.models:{name}").out
    monkeypatch.setattr(WeightsEnum, "get_state_dict", published_weights)
    command = re.search(r"this writes them:\n +(python -c .+)\n", told)
    assert command
    _, _, program = shlex.split(command[1])
    exec(program)  # noqa: S102
    network = load_model(Path("mine")).network
    if isinstance(network, GoogLeNet):
        assert network.transform_input  # as torchvision sets it with weights


def published_weights(weights: WeightsEnum, **_: object) -> dict[str, torch.Tensor]:
    import torchvision

    name = weights.__class__.__name__.removesuffix("_Weights").lower()
    options = {"init_weights": True} if name == "googlenet" else {}
    state: dict[str, torch.Tensor] = getattr(torchvision.models, name)(**options).state_dict()
    return state


def test_preprocessing_for_another_size_is_in_proportion_and_to_be_checked(nin: Script) -> None:
    ended = nin("init", "my net", "--from", "torchvision.models:resnet18", "--size", "56x112")
    assert load_contract(Path("my net")).files.shorter_side == 64
    assert "they are those of torchvision's weights" in ended.out
    assert ended.out.endswith("  nin export onnx --model 'my net'\n")


# --- somebody's own ---


def test_a_file_of_code_with_weights_labels_and_samples(nin: Script, folder: Path) -> None:
    labels = ("毛衣", "a, b", 'say "no"', "C:\\d", "it's")
    Path("names.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    )
    torch.save({"state_dict": network.state_dict()}, "trained.pt")
    images = folder / "photo graphs" / "4"
    images.mkdir(parents=True)
    (images / "one.png").write_bytes(encode_png(np.zeros((40, 50, 3), np.uint8)))
    ended = nin(
        "init", "sub/my net!", "--from", "net.py:Net", "--arguments", "classes = 5", "--weights",
        "trained.pt", "--labels", "names.txt", "--samples", "photo graphs", "--size", "48x64",
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    assert "took the weights under 'state_dict'" in ended.out
    assert "weights are still missing" not in ended.out
    new = folder / "sub" / "my net!"
    assert sorted(path.name for path in new.iterdir()) == [
        "labels.txt", "model.toml", "net.py", "trained.pt"
    ]  # fmt: skip
    model = load_model(new)
    assert model.contract.labels == labels
    assert model.contract.name == "my_net"
    assert model.contract.network_graph.input.shape == (3, 48, 64)
    torch.testing.assert_close(model.network.state_dict(), network.state_dict())
    assert 'path = "../../photo graphs"' in (new / "model.toml").read_text()
    samples = open_samples(model.contract)
    assert (samples.names, samples.classes) == (("4/one.png",), np.array([4]))


@pytest.mark.parametrize(
    ("arguments", "channels", "side"),
    [("size = 784", 1, 28), ("size = 3072", 3, 32), ("size = 12288", 3, 64)],
)
def test_channels_and_size_are_found_out(
    nin: Script, arguments: str, channels: int, side: int
) -> None:
    ended = nin("init", "mine", "--from", "net.py:mlp", "--arguments", arguments)
    assert f"takes {channels}x{side}x{side} " in ended.out
    for what in ("labels.txt", "samples/", "model.toml, [image]", "model.toml, [files]"):
        assert f"\n  {what}" in ended.out
    assert "safetensors.torch.save_file(network.state_dict(), 'mine/weights.safetensors')" in (
        ended.out
    )
    contract = load_contract(Path("mine"))
    assert contract.labels == tuple(f"class {index}" for index in range(7))
    assert len(open_samples(contract)) == 8


def test_small_samples_are_sent_as_they_are(nin: Script) -> None:
    options = ("--from", f"{NIN}/network.py:NiN", "--arguments", "num_classes = 10")
    ended = nin("init", "mine", *options, "--samples", DATA / "fashion-mnist")
    assert ended.code == 0
    contract = load_contract(Path("mine"))
    assert contract.network_graph.input.shape == (1, 224, 224)
    assert contract.classifier_graph.input.shape == (28, 28)
    assert len(open_samples(contract)) == 10_000


def test_an_idx_files_size_is_tried_first(nin: Script, folder: Path) -> None:
    (folder / "images-idx4-ubyte").write_bytes(encode_idx(np.zeros((2, 20, 30, 3), np.uint8)))
    nin("init", "mine", "--from", "net.py:Net", "--arguments", "classes = 2", "--samples", ".")
    assert load_contract(Path("mine")).network_graph.input.shape == (3, 20, 30)


def test_repeated_names_of_classes_are_numbered() -> None:
    names = ("crane", "maillot", "crane", "crane (2)", "crane")
    assert unique(names) == ["crane", "maillot", "crane (3)", "crane (2)", "crane (4)"]


# --- what can't be used ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("net.py",), "--from is net.py, expected MODULE:NAME or FILE.py:NAME"),
        (("none.py:Net",), "there is no file none.py"),
        (("net.py:Nets",), r"--from net.py:Nets: net.py has no Nets"),
        (("no_such_module:Net",), "can't be imported: ModuleNotFoundError: No module named"),
        (("net.py:Net",), "can't be built: TypeError: .* missing 1 required .* 'classes'"),
        (("net.py:nothing",), "gives a int, expected a torch.nn.Module"),
        (("net.py:Net", "--arguments", "classes: 3"), "isn't TOML"),
        (("net.py:Net", "--arguments", "classes = 1"), r"makes \(2, 1\) of 2 images"),
        (("net.py:Spatial", "--arguments", "classes = 3"), r"makes \(2, 4, 111, 111\) of 2"),
        (("net.py:Dictionary", "--arguments", "classes = 3"), "returns a dict, expected a tensor"),
        (
            ("net.py:TwoInputs", "--arguments", "classes = 3"),
            "takes none of the 8 images .*missing 1 required positional argument: 'y'",
        ),
        (("net.py:Net", "--arguments", "classes = 3, channels = 4"), "takes images of 4 channels"),
        (("net.py:mlp", "--arguments", "size = 100"), "takes none of the 16 images .* --size"),
        (("net.py:mlp", "--arguments", "size = 784", "--size", "0x3"), "0 is not a whole number"),
        (
            ("net.py:mlp", "--arguments", "size = 784", "--labels", f"{NIN}/labels.txt"),
            "has 10 lines, the network 7 outputs",
        ),
        (
            ("net.py:mlp", "--arguments", "size = 784", "--weights", f"{NIN}/weights.safetensors"),
            "is of another network: it has no tensor 1.weight",
        ),
        (("net.py:mlp", "--weights", "none.pt"), "no file at none.pt, which --weights names"),
        (
            ("net.py:mlp", "--arguments", "size = 784", "--samples", "none"),
            "no folder of samples at none",
        ),
    ],
)
def test_mistakes_leave_nothing_behind(
    nin: Script, folder: Path, options: tuple[str, ...], message: str
) -> None:
    ended = nin("init", "sub/mine", "--from", *options)
    assert ended.code == 2
    assert re.search(message, ended.err)
    assert ended.err.splitlines()[-1].startswith(("error: ", "nin init: error: "))
    assert [path.name for path in folder.iterdir()] == ["net.py"]


def test_trained_weights_are_tried_out(nin: Script, folder: Path) -> None:
    layers = nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    torch.save(nn.Sequential(*layers).state_dict(), "trained.pt")
    options = ("--arguments", "classes = 5", "--weights", "trained.pt", "--size", "32x32")
    ended = nin("init", "mine", "--from", "net.py:Dropping", *options)
    assert ended.code == 2
    assert ended.err.startswith("error: mine/model.toml: network.build = 'net.py:Dropping' answers")
    assert not (folder / "mine").exists()


def test_a_folder_that_holds_something_is_left_alone(nin: Script, folder: Path) -> None:
    (folder / "mine").mkdir()
    assert nin("init", "mine", "--from", "net.py:mlp", "--arguments", "size = 784").code == 0
    before = (folder / "mine" / "model.toml").read_text()
    ended = nin("init", "mine", "--from", "net.py:Net", "--arguments", "classes = 3")
    assert ended.err == "error: mine holds files already; name a folder that is new or empty\n"
    assert (folder / "mine" / "model.toml").read_text() == before
    ended = nin("init", "net.py", "--from", "net.py:Net", "--arguments", "classes = 3")
    assert ended.err == "error: net.py is a file already; name a folder that is new or empty\n"
