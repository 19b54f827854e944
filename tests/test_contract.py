"""What model.toml says becomes the contract, and each mistake in it one clear line."""

import os
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

import nin  # noqa: F401
from nin.contract import Int8, load_contract
from nin.errors import InputError
from nin.paths import NIN, ROOT
from tests.models import CONTRACT, ODD_LABELS, RESNET18


def test_the_built_in_contract_is_what_was_promised() -> None:
    """Its values are promises to clients: changing one has to be meant."""
    logits = {"name": "logits", "dtype": "float32", "shape": ["batch", 10]}
    assert CONTRACT.network_graph.describe() == {
        "graph": "nin",
        "kind": "network",
        "input": {"name": "image", "dtype": "float32", "shape": ["batch", 1, 224, 224]},
        "outputs": [logits],
        "max_batch": 64,
        "image": {"mean": [0.0], "std": [1.0]},
    }
    assert CONTRACT.classifier_graph.describe() == {
        "graph": "fashion_mnist",
        "kind": "classifier",
        "input": {"name": "pixels", "dtype": "uint8", "shape": ["batch", 28, 28]},
        "outputs": [logits, {**logits, "name": "probabilities"}],
        "max_batch": 64,
        "files": {
            "mode": "grey",
            "resize": "pad",
            "height": 28,
            "width": 28,
            "shorter_side": 0,
            "filter": "bicubic",
        },
    }
    assert ", ".join(CONTRACT.labels) == (
        "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
    )
    assert [model.name for model in CONTRACT.models] == [
        "nin_onnx",
        "nin_torchscript",
        "fashion_mnist",
        "fashion_mnist_torchscript",
        "fashion_mnist_int8",
        "decode_image",
        "fashion_mnist_image",
    ]


def test_resnet18_has_imagenets_contract() -> None:
    contract = load_contract(RESNET18)
    assert contract.classifier_graph.input.shape == (224, 224, 3)
    assert contract.network_graph.input.shape == (3, 224, 224)
    assert (len(contract.labels), contract.labels[0]) == (1000, "tench")
    assert contract.files.describe() == {
        "mode": "rgb",
        "resize": "crop",
        "height": 224,
        "width": 224,
        "shorter_side": 256,
        "filter": "bilinear",
    }
    assert [model.name for model in contract.models] == [
        "resnet18_onnx",
        "resnet18_torchscript",
        "imagenet",
        "imagenet_torchscript",
        "imagenet_decode",
        "imagenet_image",
    ]


MINIMAL = """
name = "mine"
[network]
build = "torchvision.models:vgg11"
[image]
channels = 3
height = 32
width = 48
[samples]
path = "samples"
"""


def write(folder: Path, toml: str | bytes, labels: str | bytes = "a\nb\n") -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in (("model.toml", toml), ("labels.txt", labels)):
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)
    return folder


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    contract = load_contract(write(tmp_path, MINIMAL))
    assert contract.network.name == "mine_network"
    assert contract.network.weights == tmp_path / "weights.safetensors"
    assert contract.network.arguments == {}
    assert (contract.image.mean, contract.image.std) == ((0.0,) * 3, (1.0,) * 3)
    assert contract.classifier_graph.input.shape == (32, 48, 3)
    assert contract.files.describe() == {
        "mode": "rgb",
        "resize": "stretch",
        "height": 32,
        "width": 48,
        "shorter_side": 0,
        "filter": "bilinear",
    }
    assert contract.samples.kind == "folder"
    assert contract.calibration is None
    assert contract.int8 == Int8(accuracy_loss=0.001, agreement=0.995, margin=0.5)
    assert (contract.triton.max_batch, contract.triton.preferred_batch) == (64, 16)
    assert contract.decoder.name == "mine_decode"


def test_labels_may_be_any_text(tmp_path: Path) -> None:
    text = "\ufeff" + "\r\n".join(ODD_LABELS) + "\r\n"
    assert load_contract(write(tmp_path, MINIMAL, text)).labels == ODD_LABELS
    joined = ("نیم\u200cبوت", "👩\u200d🔬", "毛\u3000衣", "pull\u00a0over")  # not isprintable()
    assert load_contract(write(tmp_path, MINIMAL, "\n".join(joined))).labels == joined
    many = [f"class {i}" for i in range(100_000)]
    assert len(load_contract(write(tmp_path, MINIMAL, "\n".join(many))).labels) == 100_000


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("a\n\nb\n", "line 2: empty, expected the name of a class"),
        ("", "line 1: empty"),
        ("a\nb\n\n", "line 3: empty"),
        ("a\nb\na\n", "line 3: 'a' is on line 1 already"),
        ("a\n", "1 class, expected 2 to 100,000"),
        ("\n".join(map(str, range(100_001))), "100001 classes, expected 2 to 100,000"),
        ("a\nb\x07\n", "line 2: 'b\\x07' has characters that don't print"),
        (b"a\n\xff\n", "isn't UTF-8"),
    ],
)
def test_mistakes_in_the_labels(tmp_path: Path, labels: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        load_contract(write(tmp_path, MINIMAL, labels))
    assert str(error.value).startswith(str(tmp_path / "labels.txt"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "mine"', "", "name is missing, expected a text"),
        ('name = "mine"', "name = 3", "name is 3, expected a text"),
        ('name = "mine"', 'name = "a/b"', "name is 'a/b', expected letters, digits, _ and -"),
        ('name = "mine"', 'name = "mine"\nsize = 3', "size is unknown; known here are name, "),
        ('name = "mine"', 'name = "mine"\nlabels = "l"', "no labels file at"),
        ("[network]", "[net]", "network is missing, expected a table: [network]"),
        ("[network]", "network = 1\n[net]", "network is 1, expected a table: [network]"),
        ("[network]", '[network]\nname = "mine"', "network.name is 'mine', expected another name"),
        ('build = "torchvision.models:vgg11"', "", "network.build is missing"),
        ("torchvision.models:vgg11", "vgg11", "network.build is 'vgg11', expected"),
        ("[network]", "[network]\narguments = [1]", "network.arguments is [1], expected a table"),
        ("[network]", "[network]\nkind = 1", "network.kind is unknown"),
        ("channels = 3", "channels = 2", "image.channels is 2, expected 1 for grey or 3 for RGB"),
        ("channels = 3", "channels = true", "image.channels is True, expected a whole number"),
        ("height = 32", "height = 0", "image.height is 0, expected a whole number from 1 to 16384"),
        ("height = 32", "height = -1", "image.height is -1"),
        ("height = 32", "height = 32.0", "image.height is 32.0, expected a whole number"),
        ("height = 32", 'height = "32"', "image.height is '32', expected a whole number"),
        ("height = 32", "", "image.height is missing"),
        ("width = 48", "width = 48\nstd = [1, 0, 1]", "image.std is [1.0, 0.0, 1.0], expected"),
        ("width = 48", "width = 48\nstd = [1, -1, 1]", "expected numbers above 0"),
        ("width = 48", "width = 48\nstd = [1, 1e-300, 1]", "expected numbers above 0, at least"),
        ("width = 48", "width = 48\nstd = [58.4, 57.1, 57.4]", "divide those of bytes by 255"),
        ("width = 48", "width = 48\nmean = [123.7, 116.3, 103.5]", "expected that of pixels in"),
        ("width = 48", "width = 48\nmean = [0.5]", "image.mean is [0.5], expected 3 finite"),
        ("width = 48", "width = 48\nmean = [0, nan, 0]", "expected 3 finite numbers"),
        ("width = 48", 'width = 48\nmean = [0, "1", 0]', "expected 3 finite numbers"),
        ("[samples]", "[pixels]\nheight = 16\n[samples]", "pixels.resize is 'nothing', expected"),
        ("[samples]", "[pixels]\nheight = 64\n[samples]", "at most the image's 32x48"),
        ("[samples]", '[pixels]\nresize = "cubic"\n[samples]', "pixels.resize is 'cubic'"),
        ("[samples]", '[files]\nmode = "grey"\n[samples]', "as the image has channels = 3"),
        ("[samples]", '[files]\nresize = "fit"\n[samples]', "files.resize is 'fit', expected"),
        ("[samples]", "[files]\nshorter_side = 9\n[samples]", 'none without resize = "crop"'),
        ("[samples]", '[files]\nfilter = "box"\n[samples]', 'expected "bicubic" or "bilinear"'),
        ("[samples]", "[files]\nsize = 9\n[samples]", "files.size is unknown; known here are"),
        ("[samples]", "[int8]\nagreement = 99.5\n[samples]", "int8.agreement is 99.5, expected a"),
        ("[samples]", "[int8]\nmargin = nan\n[samples]", "int8.margin is nan, expected a number"),
        ("[samples]", "[int8]\nmargin = true\n[samples]", "int8.margin is True, expected a numb"),
        ("[samples]", "[triton]\nmax_batch = 0\n[samples]", "triton.max_batch is 0, expected"),
        ("[samples]", "[triton]\nmax_batch = 2000\n[samples]", "from 1 to 1024"),
        (
            "[samples]",
            "[triton]\nmax_batch = 4\npreferred_batch = 5\n[samples]",
            "triton.preferred_batch is 5, expected a whole number from 1 to 4",
        ),
        ("[samples]", '[triton]\ndecoder = "mine"\n[samples]', "would be named mine"),
        ('path = "samples"', "", "samples.path is missing"),
        ('path = "samples"', 'path = "s"\nkind = "zip"', "samples.kind is 'zip', expected"),
        ("[samples]", "[samples", "isn't TOML: "),
        ('"mine"', '"a"\nname = "b"', "isn't TOML: "),
    ],
)
def test_mistakes_in_model_toml(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in MINIMAL
    with pytest.raises(InputError, match=re.escape(message)) as error:
        load_contract(write(tmp_path, MINIMAL.replace(old, new, 1)))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model at .*nowhere: there is no such folder"):
        load_contract(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no model at .*labels\.txt: that is a file, expected a"):
        load_contract(NIN / "labels.txt")
    with pytest.raises(InputError, match=r"it has no such file, .*; `nin init` writes one"):
        load_contract(tmp_path)
    write(tmp_path, b"name = '\xff'")
    with pytest.raises(InputError, match="isn't TOML"):
        load_contract(tmp_path)


def test_no_other_file_knows_a_model() -> None:
    """Sizes, classes and labels of the built-in model stand in its folder alone.

    But for its training, which is the built-in network's, and `nin init`, which tries usual sizes.
    """
    numbers = {"28", "784", "224", "50176"}
    names = {label for label in CONTRACT.labels if len(label) > 4}
    known = subprocess.check_output(["git", "ls-files", "src", "cpp_client"], cwd=ROOT, text=True)
    for name in known.splitlines():
        if "training" in name or not name.endswith((".py", ".cpp", ".h")) or "/tests/" in name:
            continue
        if name.startswith("cpp_client/fuzz/") or name.endswith(("/train.py", "/discover.py")):
            continue
        text = (ROOT / name).read_text()
        words = set(re.findall(r"(?<![\w.])\d+(?![\w.])", without_comments(ROOT / name, text)))
        assert not words & numbers, name
        assert not [label for label in names if label in text], name


def without_comments(path: Path, text: str) -> str:
    """The program alone: examples in comments and docstrings may name sizes."""
    if path.suffix != ".py":
        return re.sub(r"//.*", "", text)
    with path.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    return " ".join(t.string for t in tokens if t.type == tokenize.NUMBER)


def test_onnxruntimes_telemetry_is_off() -> None:
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_the_folder_holds_all_that_is_the_models_own() -> None:
    assert {path.name for path in NIN.iterdir()} >= {
        "model.toml",
        "network.py",
        "labels.txt",
        "weights.safetensors",
        "weights.json",
        "log.jsonl",
    }
