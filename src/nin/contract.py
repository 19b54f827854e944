"""The contract of a model: what its folder's `model.toml` says, checked, and what follows from it.

Every name, shape, dtype and label of a model comes from here; docs/models.md explains the keys.
"""

import math
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from nin.errors import InputError
from nin.text import is_printable

CONTRACT_FILE = "model.toml"

# Name of the dynamic first dimension of every tensor.
BATCH = "batch"

Outputs = dict[str, NDArray[Any]]  # by output name, each (N, classes)
Run = Callable[[NDArray[Any]], Outputs]

_MOST_CLASSES = 100_000
_LARGEST_SIDE = 16_384
_MOST_PIXELS = 50_000_000  # what nin.decoder decodes
_LARGEST_BATCH = 1_024

# Of pixels in [0, 1]: what is far from that was meant for bytes, or isn't finite in float32.
_LEAST_STD = 1e-6
_LARGEST_SCALE = 10


@dataclass(frozen=True)
class Tensor:
    """One input or output; `shape` is that of one item, the dynamic batch comes before it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": [BATCH, *self.shape]}


@dataclass(frozen=True)
class Image:
    """What the network takes, float32 (N, channels, height, width): normalised by channel.

    `mean` and `std` are of pixels in [0, 1].
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Pixels:
    """What an application sends: uint8 (N, height, width) grey, (N, height, width, 3) RGB."""

    height: int
    width: int
    resize: Literal["bilinear"] | None  # inside the artifact, where the image is larger
    classifier: str | None  # a module of the model's own, instead of the generic one


@dataclass(frozen=True)
class Files:
    """How a PNG or JPEG file becomes pixels; `nin.decoder` and the C++ library do it alike."""

    mode: Literal["grey", "rgb"]
    resize: Literal["stretch", "crop", "pad"]
    height: int
    width: int
    shorter_side: int  # 0 where nothing is cropped
    filter: Literal["bicubic", "bilinear"]

    def describe(self) -> dict[str, Any]:
        return vars(self).copy()


@dataclass(frozen=True)
class Samples:
    """Where images lie: IDX files, or image files in folders named by class where that is known."""

    kind: Literal["idx", "folder"]
    path: Path


@dataclass(frozen=True)
class Int8:
    """What quantising may cost on the samples; the gate allows few samples more."""

    accuracy_loss: float  # by how much the accuracy may fall
    agreement: float  # the least share of the samples that keep their class
    margin: float  # the largest one of a sample that changes, in standard deviations of the logits


@dataclass(frozen=True)
class Network:
    """How to build the network: FILE.py:NAME in the model's folder, or MODULE:NAME."""

    name: str
    build: str
    arguments: dict[str, Any]
    weights: Path


@dataclass(frozen=True)
class Triton:
    """What a server's configuration says and nothing else implies."""

    max_batch: int
    preferred_batch: int
    max_queue_delay_us: int
    decoder: str  # the name of the model that decodes files


@dataclass(frozen=True)
class Graph:
    """What goes into an export and what comes out of it."""

    name: str
    input: Tensor
    outputs: tuple[Tensor, ...]
    max_batch: int
    files: Files | None = None  # of the classifier: how files become its pixels
    image: Image | None = None  # of the network: how its input is normalised

    @property
    def classes(self) -> int:
        return self.outputs[0].shape[0]

    def signature(self) -> dict[str, Any]:
        """Names, dtypes and shapes as plain data: what a server knows of a graph too."""
        return {
            "graph": self.name,
            "input": self.input.describe(),
            "outputs": [t.describe() for t in self.outputs],
            "max_batch": self.max_batch,
        }

    def describe(self) -> dict[str, Any]:
        """The form in which every artifact carries its contract."""
        description = self.signature()
        if self.files:
            return description | {"kind": "classifier", "files": self.files.describe()}
        assert self.image is not None
        scaling = {"mean": list(self.image.mean), "std": list(self.image.std)}
        return description | {"kind": "network", "image": scaling}


@dataclass(frozen=True)
class Model:
    """One model of the Triton repository."""

    name: str
    graph: Graph
    backend: str
    format: str | None = None  # suffix of the artifact that it serves, if it serves one

    @property
    def filename(self) -> str:
        """What the official backend looks for in a version's folder."""
        assert self.format is not None
        return served_file(self.format)


def served_file(suffix: str) -> str:
    """The name in a version's folder of a file of this suffix."""
    return f"model.{suffix.rpartition('.')[2]}"


def openvino_model(graph: Graph, suffix: str) -> Model:
    """A graph on the openvino backend, an image at a time.

    That backend computes max_batch_size images whatever is asked, and OpenVINO is as fast with one.
    """
    return Model(f"{graph.name}_openvino", replace(graph, max_batch=1), "openvino", suffix)


@dataclass(frozen=True)
class Contract:
    """One model folder's `model.toml`."""

    folder: Path
    name: str
    labels: tuple[str, ...]
    network: Network
    image: Image
    pixels: Pixels
    files: Files
    samples: Samples
    calibration: Samples | None  # of int8, which is served where it is given
    int8: Int8
    triton: Triton
    openvino: bool = False  # whether int8 is served by that backend too, which not every server has

    @cached_property
    def network_graph(self) -> Graph:
        """The network as it was trained."""
        image = self.image
        shape = (image.channels, image.height, image.width)
        return Graph(
            name=self.network.name,
            input=Tensor("image", "float32", shape),
            outputs=(Tensor("logits", "float32", (len(self.labels),)),),
            max_batch=self.triton.max_batch,
            image=image,
        )

    @cached_property
    def classifier_graph(self) -> Graph:
        """What an application wants: pixels in, probabilities out."""
        side = (self.pixels.height, self.pixels.width)
        logits = self.network_graph.outputs[0]
        return Graph(
            name=self.name,
            input=Tensor("pixels", "uint8", side if self.image.channels == 1 else (*side, 3)),
            outputs=(logits, Tensor("probabilities", logits.dtype, logits.shape)),
            max_batch=self.triton.max_batch,
            files=self.files,
        )

    @property
    def graphs(self) -> dict[str, Graph]:
        """The graphs that are exported, by name."""
        return {graph.name: graph for graph in (self.network_graph, self.classifier_graph)}

    @cached_property
    def decoder(self) -> Model:
        """PNG or JPEG files to pixels; it exists only in the server, as does `ensemble`."""
        pixels = self.classifier_graph.input
        graph = Graph(self.triton.decoder, ENCODED_IMAGE, (pixels,), self.triton.max_batch)
        return Model(graph.name, graph, "python")

    @cached_property
    def ensemble(self) -> Model:
        """PNG or JPEG files to probabilities: the decoder, then the classifier."""
        outputs = self.classifier_graph.outputs
        graph = Graph(f"{self.name}_image", ENCODED_IMAGE, outputs, self.triton.max_batch)
        return Model(graph.name, graph, "ensemble")

    @cached_property
    def models(self) -> tuple[Model, ...]:
        """The models of the Triton repository."""
        network, classifier = self.network_graph, self.classifier_graph
        int8 = Model(f"{classifier.name}_int8", classifier, "onnxruntime", ".int8.onnx")
        openvino = openvino_model(classifier, ".int8.onnx")
        return (
            Model(f"{network.name}_onnx", network, "onnxruntime", ".onnx"),
            Model(f"{network.name}_torchscript", network, "pytorch", ".pt"),
            Model(classifier.name, classifier, "onnxruntime", ".onnx"),
            Model(f"{classifier.name}_torchscript", classifier, "pytorch", ".pt"),
            *([int8] if self.calibration else []),
            *([openvino] if self.calibration and self.openvino else []),
            self.decoder,
            self.ensemble,
        )

    @property
    def published(self) -> tuple[Model, ...]:
        """Those whose versions are exports; the others are code and configuration."""
        return tuple(model for model in self.models if model.format)


# PNG or JPEG files, one to an element.
ENCODED_IMAGE = Tensor("encoded_image", "object", (1,))


def load_contract(folder: Path) -> Contract:
    """Reads a model folder.

    Raises:
        InputError: names the file, the key, what was found and what is expected.
    """
    path = folder / CONTRACT_FILE
    if not path.is_file():
        there = "it has no such file" if folder.is_dir() else "there is no such folder"
        if folder.is_file():
            there = "that is a file"
        raise InputError(
            f"no model at {folder}: {there}, expected a folder with a {CONTRACT_FILE}; "
            "`nin init` writes one"
        )
    try:
        top = _Table(path, "", tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} isn't TOML: {error}") from error
    contract = _read(folder, top)
    top.refuse_unknown()
    return contract


def _read(folder: Path, top: "_Table") -> Contract:
    name = top.name("name")
    labels = read_labels(folder / top.text("labels", "labels.txt"))
    network = _read_network(folder, top.table("network"), name)
    image = _read_image(top.table("image"))
    pixels = _read_pixels(top.table("pixels", optional=True), image)
    triton = _read_triton(top.table("triton", optional=True), name)
    contract = Contract(
        folder=folder,
        name=name,
        labels=labels,
        network=network,
        image=image,
        pixels=pixels,
        files=_read_files(top.table("files", optional=True), image, pixels),
        samples=_read_samples(folder, top.table("samples")),
        calibration=(
            _read_samples(folder, top.table("calibration")) if top.has("calibration") else None
        ),
        int8=_read_int8(top.table("int8", optional=True)),
        triton=triton,
    )
    names = [model.name for model in contract.models]
    if repeated := {n for n in names if names.count(n) > 1}:
        raise InputError(
            f"{top.path}: two of the served models would be named {min(repeated)}; "
            "choose other names for the classifier, the network or the decoder"
        )
    return contract


def read_labels(path: Path) -> tuple[str, ...]:
    """One class a line. Raises InputError naming the file and the line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"no labels file at {path}; expected one class a line") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} isn't UTF-8: {error.reason}; save it as UTF-8") from error
    labels = [line.strip() for line in text.removesuffix("\n").split("\n")]
    lines: dict[str, int] = {}
    for number, label in enumerate(labels, 1):
        if not label:
            raise InputError(f"{path}, line {number}: empty, expected the name of a class")
        if not all(map(is_printable, label)):
            raise InputError(f"{path}, line {number}: {label!r} has characters that don't print")
        if (first := lines.setdefault(label, number)) != number:
            raise InputError(
                f"{path}, line {number}: {label!r} is on line {first} already; "
                "every class needs a name of its own"
            )
    if not 2 <= len(labels) <= _MOST_CLASSES:
        raise InputError(
            f"{path}: {len(labels)} class{'es' * (len(labels) != 1)}, "
            f"expected 2 to {_MOST_CLASSES:,}, one a line"
        )
    return tuple(labels)


def _read_network(folder: Path, table: "_Table", name: str) -> Network:
    build = table.text("build")
    if not re.fullmatch(r"[^:]+:[A-Za-z_][\w.]*", build):
        table.fail("build", build, '"FILE.py:NAME" or "MODULE:NAME", as "torchvision.models:vgg11"')
    network = Network(
        name=table.name("name", f"{name}_network"),
        build=build,
        arguments=table.mapping("arguments"),
        weights=folder / table.text("weights", "weights.safetensors"),
    )
    if network.name == name:
        table.fail("name", name, "another name than the classifier's: their files share a folder")
    table.refuse_unknown()
    return network


def _read_image(table: "_Table") -> Image:
    channels = table.integer("channels")
    if channels not in (1, 3):
        table.fail("channels", channels, "1 for grey or 3 for RGB")
    image = Image(
        channels=channels,
        height=table.integer("height", most=_LARGEST_SIDE),
        width=table.integer("width", most=_LARGEST_SIDE),
        mean=table.numbers("mean", channels, 0.0),
        std=table.numbers("std", channels, 1.0),
    )
    if min(image.std) < _LEAST_STD:
        table.fail("std", list(image.std), f"numbers above 0, at least {_LEAST_STD:g}")
    for key, values in (("mean", image.mean), ("std", image.std)):
        if max(map(abs, values)) > _LARGEST_SCALE:
            table.fail(key, list(values), "that of pixels in [0, 1]; divide those of bytes by 255")
    table.refuse_unknown()
    return image


def _read_pixels(table: "_Table", image: Image) -> Pixels:
    pixels = Pixels(
        height=table.integer("height", image.height, most=_LARGEST_SIDE),
        width=table.integer("width", image.width, most=_LARGEST_SIDE),
        resize=table.choice("resize", ("bilinear",)) if table.has("resize") else None,
        classifier=table.text("classifier") if table.has("classifier") else None,
    )
    size, image_size = (pixels.height, pixels.width), (image.height, image.width)
    if pixels.height > image.height or pixels.width > image.width:
        table.fail("height", _by(size), f"at most the image's {_by(image_size)}; see [files]")
    if pixels.height * pixels.width > _MOST_PIXELS:
        table.fail("height", _by(size), f"at most {_MOST_PIXELS:,} pixels, which files decode to")
    if size != image_size and pixels.resize is None:
        table.fail("resize", "nothing", f'"bilinear", from {_by(size)} to {_by(image_size)}')
    table.refuse_unknown()
    return pixels


def _read_files(table: "_Table", image: Image, pixels: Pixels) -> Files:
    natural = "grey" if image.channels == 1 else "rgb"
    mode = table.choice("mode", ("grey", "rgb"), natural)
    if mode != natural:
        table.fail("mode", mode, f'"{natural}", as the image has channels = {image.channels}')
    resize = table.choice("resize", ("stretch", "crop", "pad"), "stretch")
    shorter = min(pixels.height, pixels.width)
    if resize != "crop" and table.has("shorter_side"):
        table.fail("shorter_side", table.integer("shorter_side"), 'none without resize = "crop"')
    files = Files(
        mode=mode,
        resize=resize,
        height=pixels.height,
        width=pixels.width,
        shorter_side=(
            table.integer("shorter_side", shorter, most=_LARGEST_SIDE) if resize == "crop" else 0
        ),
        filter=table.choice("filter", ("bicubic", "bilinear"), "bilinear"),
    )
    table.refuse_unknown()
    return files


def _read_samples(folder: Path, table: "_Table") -> Samples:
    samples = Samples(
        table.choice("kind", ("idx", "folder"), "folder"), folder / table.text("path")
    )
    table.refuse_unknown()
    return samples


def _read_int8(table: "_Table") -> Int8:
    int8 = Int8(
        accuracy_loss=table.number("accuracy_loss", 0.001, most=1),
        agreement=table.number("agreement", 0.995, most=1),
        margin=table.number("margin", 0.5, most=10),
    )
    table.refuse_unknown()
    return int8


def _read_triton(table: "_Table", name: str) -> Triton:
    max_batch = table.integer("max_batch", 64, most=_LARGEST_BATCH)
    triton = Triton(
        max_batch=max_batch,
        preferred_batch=table.integer("preferred_batch", min(16, max_batch), most=max_batch),
        max_queue_delay_us=table.integer("max_queue_delay_us", 500, least=0, most=10_000_000),
        decoder=table.name("decoder", f"{name}_decode"),
    )
    table.refuse_unknown()
    return triton


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} (height x width)"


_REQUIRED: Any = object()


class _Table:
    """One table of the file; each value is checked when it is taken."""

    def __init__(self, path: Path, title: str, values: dict[str, Any]) -> None:
        self.path = path
        self._title = title
        self._values = values
        self._known: list[str] = []

    def has(self, key: str) -> bool:
        self._known.append(key)
        return key in self._values

    def fail(self, key: str, found: object, expected: str) -> None:
        shown = found if isinstance(found, str) and " " in found else repr(found)
        raise InputError(f"{self._where(key)} is {shown}, expected {expected}")

    def text(self, key: str, default: str = _REQUIRED) -> str:
        value = self._take(key, default, str, "a text")
        if not value or "\0" in value:
            self.fail(key, value, "a text that isn't empty")
        return str(value)

    def name(self, key: str, default: str = _REQUIRED) -> str:
        """A name of files and of a served model."""
        value = self.text(key, default)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", value):
            self.fail(key, value, "letters, digits, _ and -, at most 100 of them")
        return value

    def choice(self, key: str, choices: Sequence[str], default: str = _REQUIRED) -> Any:
        value = self.text(key, default)
        if value not in choices:
            self.fail(key, value, " or ".join(f'"{choice}"' for choice in choices))
        return value

    def integer(
        self, key: str, default: int = _REQUIRED, *, least: int = 1, most: int = 10**9
    ) -> int:
        value = self._take(key, default, int, "a whole number")
        if not least <= value <= most:
            self.fail(key, value, f"a whole number from {least} to {most}")
        return int(value)

    def number(self, key: str, default: float, *, most: float) -> float:
        """From 0 to `most`."""
        value = self._take(key, default, (int, float), "a number")
        if not 0 <= value <= most:
            self.fail(key, value, f"a number from 0 to {most}")
        return float(value)

    def numbers(self, key: str, count: int, default: float) -> tuple[float, ...]:
        """`count` finite numbers."""
        values = self._take(key, [default] * count, list, f"a list of {count} numbers")
        right = all(type(v) in (int, float) and math.isfinite(v) for v in values)
        if len(values) != count or not right:
            self.fail(
                key, values, f"{count} finite number{'s' * (count > 1)}, one for each channel"
            )
        return tuple(map(float, values))

    def mapping(self, key: str) -> dict[str, Any]:
        return dict(self._take(key, {}, dict, "a table, as { num_classes = 10 }"))

    def table(self, key: str, *, optional: bool = False) -> "_Table":
        values = self._take(key, {} if optional else _REQUIRED, dict, f"a table: [{key}]")
        return _Table(self.path, key, values)

    def refuse_unknown(self) -> None:
        if unknown := sorted(self._values.keys() - set(self._known)):
            known = ", ".join(dict.fromkeys(self._known))
            raise InputError(f"{self._where(unknown[0])} is unknown; known here are {known}")

    def _take(self, key: str, default: Any, kind: type | tuple[type, ...], expected: str) -> Any:
        if not self.has(key):
            if default is _REQUIRED:
                raise InputError(f"{self._where(key)} is missing, expected {expected}")
            return default
        value = self._values[key]
        if isinstance(value, bool) or not isinstance(value, kind):  # a bool is an int
            self.fail(key, value, expected)
        return value

    def _where(self, key: str) -> str:
        return f"{self.path}: {self._title}.{key}" if self._title else f"{self.path}: {key}"
