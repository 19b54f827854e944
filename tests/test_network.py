"""Building what a model folder names: whatever is wrong with a network is said in one line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nin.contract import load_contract
from nin.errors import CheckError, InputError
from nin.network.build import build_network, load_model
from nin.paths import NIN
from tests.models import make_lenet

TOML = """
name = "shapes"
[network]
name = "net"
build = "{build}"
arguments = {arguments}
[image]
channels = 1
height = 4
width = 6
[pixels]
{pixels}
[samples]
path = "samples"
"""

# What every network here consists of, and what one more line makes of it.
CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(24, 3)

    def forward(self, image):
        logits = self.linear(image.flatten(1))
        {line}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a model folder with the file net.py, and weights where that can be built."""

    def make(code: str, build: str = "net.py:Net", arguments: str = "{}", pixels: str = "") -> Path:
        text = TOML.format(build=build, arguments=arguments, pixels=pixels)
        (tmp_path / "model.toml").write_text(text)
        (tmp_path / "labels.txt").write_text("circle\nsquare\ntriangle\n")
        (tmp_path / "net.py").write_text(code)
        torch.manual_seed(0)
        linear = nn.Linear(24, 3)
        weights = {f"linear.{name}": tensor for name, tensor in linear.state_dict().items()}
        save_file(weights, tmp_path / "weights.safetensors")
        return tmp_path

    return make


def refusal(folder: Path) -> str:
    """Why a folder can't be used: one line that names the file and the key."""
    with pytest.raises(InputError) as raised:
        load_model(folder)
    text = str(raised.value)
    assert text.startswith(f"{folder / 'model.toml'}: network.build = ")
    assert "\n" not in text
    return text


def test_builds_and_fills_in_the_weights(write: Write) -> None:
    folder = write(CODE.format(line="return logits"))
    model = load_model(folder)
    assert not model.network.training
    image = torch.rand(5, 1, 4, 6)
    torch.manual_seed(0)
    expected = nn.Linear(24, 3)(image.flatten(1))
    torch.testing.assert_close(model.network(image), expected)


def test_lazy_layers_get_their_shapes_from_the_contract(write: Write) -> None:
    """As the networks of Dive into Deep Learning have them."""
    code = CODE.format(line="return logits")
    folder = write(code.replace("nn.Linear(24, 3)", "nn.LazyLinear(3)"))
    assert "Lazy" in (folder / "net.py").read_text()
    assert load_model(folder).network(torch.zeros(2, 1, 4, 6)).shape == (2, 3)


def test_other_weights_than_those_of_the_contract(write: Write, tmp_path: Path) -> None:
    folder = write(CODE.format(line="return logits"))
    path = tmp_path / "other.pt"
    torch.save({"linear.weight": torch.zeros(3, 24), "linear.bias": torch.arange(3.0)}, path)
    model = load_model(folder, path)
    assert model.network(torch.rand(1, 1, 4, 6)).tolist() == [[0, 1, 2]]
    assert model.weights_sha256 != load_model(folder).weights_sha256


def test_builds_from_a_package(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("", build="torchvision.models:alexnet", arguments="{ num_classes = 3 }")
    network = build_network(load_contract(folder))
    assert type(network).__module__.startswith("torchvision.")
    assert not network.training


def test_builds_from_a_package_of_the_current_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write("", build="shapes_of_this_test.net:Net")
    package = tmp_path / "elsewhere" / "shapes_of_this_test"
    package.mkdir(parents=True)
    (package / "net.py").write_text(CODE.format(line="return logits"))
    monkeypatch.chdir(package.parent)
    assert load_model(folder).network(torch.rand(2, 1, 4, 6)).shape == (2, 3)


def test_a_file_may_import_its_neighbour(write: Write, tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_this_test.py").write_text(CODE.format(line="return logits"))
    folder = write("from neighbour_of_this_test import Net\n")
    assert load_model(folder).network(torch.rand(2, 1, 4, 6)).shape == (2, 3)


def test_folders_may_have_files_of_the_same_name(tmp_path: Path) -> None:
    for name, labels in (("one", ("a", "b")), ("other", ("a", "b", "c"))):
        make_lenet(tmp_path / name, labels)
    networks = [load_model(tmp_path / name).network for name in ("one", "other")]
    shapes = [tuple(network(torch.rand(1, 1, 32, 20)).shape) for network in networks]
    assert shapes == [(1, 2), (1, 3)]


@pytest.mark.parametrize(
    ("code", "build", "message"),
    [
        ("", "nowhere.py:Net", r"there is no file .*nowhere\.py"),
        ("", "no_such_package.net:Net", "can't be imported: ModuleNotFoundError: No module named"),
        ("def", "net.py:Net", "can't be imported: SyntaxError"),
        ("import no_such_package", "net.py:Net", "can't be imported: ModuleNotFoundError"),
        ("raise ValueError('first\\nsecond')", "net.py:Net", "imported: ValueError: first$"),
        ("raise SystemExit", "net.py:Net", "can't be imported: SystemExit"),
        ("", "net.py:Net", r"net\.py has no Net$"),
        ("class Nets: pass", "net.py:Nets.Net", r"net\.py has no Net$"),
        ("Net = 3", "net.py:Net", "is 3, expected a class or a function$"),
        ("def Net(classes): ...", "net.py:Net", "can't be built: TypeError: .* 'classes'"),
        ("def Net(): raise RuntimeError", "net.py:Net", "can't be built: RuntimeError"),
        ("Net = dict", "net.py:Net", r"gives a dict, expected a torch\.nn\.Module$"),
    ],
)
def test_refuses_what_can_not_be_built(write: Write, code: str, build: str, message: str) -> None:
    assert re.search(message, refusal(write(code, build)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("return self.linear(image)", r"doesn't take images \(3, 1, 4, 6\): RuntimeError: "),
        ("raise SystemError(image.shape)", "doesn't take images .*: SystemError"),
        ("return logits, image", "returns a tuple, expected a tensor of logits"),
        ("return {'out': logits}", "returns a dict, expected a tensor .* wrap it in a module"),
        ("return logits[0]", r"makes \(3,\) of 3 images, expected logits \(3, 3\)"),
        ("return logits[:2]", r"makes \(2, 3\) of 3 images, expected logits \(3, 3\)"),
        ("return logits[..., None]", r"makes \(3, 3, 1\) of 3 images"),
        ("return logits.squeeze()", r"makes \(3,\) of 1 image, expected logits \(1, 3\)"),
        ("return logits[:, :2]", "has 2 outputs, the labels file 3 lines; .* one label for each"),
        ("return logits.double()", r"returns torch\.float64, expected torch\.float32"),
        ("return logits / 0", "gives NaN or infinity for an image of noise"),
        ("return logits.log()", "gives NaN or infinity"),
        ("return nn.functional.dropout(logits, 0.5)", "answers differently when .*dropout"),
        ("return logits - logits.mean(0)", "differently alone than in a batch"),
        (
            "return self.linear(image.float().flatten(1))",
            "can't be run in float64, .*: RuntimeError: .*; in its forward",
        ),
        ("return logits if len(image) > 1 else logits * float('nan')", "gives NaN"),
        (
            "return logits if len(image) > 1 else image[:5, 0].view(5)",
            r"take images \(1, 1, 4, 6\)",
        ),
    ],
)
def test_refuses_a_network_that_is_no_classifier(write: Write, line: str, message: str) -> None:
    assert re.search(message, refusal(write(CODE.format(line=line))))


def test_refuses_batch_norm_without_statistics(write: Write) -> None:
    code = CODE.format(line="return self.linear(self.norm(image).flatten(1))").replace(
        "self.linear = ",
        "self.norm = nn.BatchNorm2d(1, affine=False, track_running_stats=False)\n"
        "        self.linear = ",
    )
    assert "answers an image differently alone than in a batch" in refusal(write(code))


# --- a folder's own classifier ---

OWN = """
class Own(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixels):
        logits = self.network(pixels.unsqueeze(1).to(self.network.linear.weight.dtype) / {scale})
        probabilities = logits.softmax({axis})
        return {outputs}
"""


def own_classifier(
    write: Write, *, scale: int = 255, axis: int = 1, outputs: str = "logits, probabilities"
) -> Any:
    own = OWN.format(scale=scale, axis=axis, outputs=outputs)
    code = CODE.format(line="return logits") + own
    model = load_model(write(code, pixels='classifier = "net.py:Own"'))
    return model.module(model.contract.classifier_graph)


def test_takes_a_classifier_of_the_folder(write: Write) -> None:
    module = own_classifier(write)
    assert type(module).__name__ == "Own"
    assert not module.training
    assert next(module.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 256}, "shapes: .* its logits are off by .* in float64 from scaling"),
        ({"axis": 0}, "its probabilities are off by "),
    ],
)
def test_refuses_a_classifier_that_computes_something_else(
    write: Write, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckError, match=message):
        own_classifier(write, **change)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            "logits",
            r"gives Tensor \(3, 3\), expected logits and probabilities, \(Tensor \(3, 3\), ",
        ),
        ("[logits, probabilities]", r"gives list, expected"),
        ("logits, probabilities[0]", r"gives \(Tensor \(3, 3\), Tensor \(3,\)\), expected"),
        ("logits.nothing", r"doesn't take pixels \(3, 4, 6\): AttributeError"),
    ],
)
def test_refuses_a_classifier_of_another_form(write: Write, outputs: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        own_classifier(write, outputs=outputs)


def test_refuses_a_classifier_that_can_not_be_built(write: Write) -> None:
    for own, message in (
        ("Nothing", r"pixels\.classifier = 'net\.py:Nothing': net\.py has no Nothing"),
        ("Net", r"pixels\.classifier = 'net\.py:Net' can't be built: TypeError"),
    ):
        folder = write(CODE.format(line="return logits"), pixels=f'classifier = "net.py:{own}"')
        model = load_model(folder)
        with pytest.raises(InputError, match=message):
            model.module(model.contract.classifier_graph)


def test_a_wrong_fold_of_the_built_in_model_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(NIN)
    graph = model.contract.classifier_graph
    module = model.module(graph)
    exact = type(module).__init__.__globals__["fold_filters"]
    for wrong in (lambda w: exact(w) * 255 / 256, lambda w: exact(w).transpose(1, 2)):
        monkeypatch.setitem(type(module).__init__.__globals__, "fold_filters", wrong)
        with pytest.raises(CheckError, match="fashion_mnist: .* its logits are off by"):
            model.module(graph)
