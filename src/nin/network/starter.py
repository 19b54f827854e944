"""Writes a model folder for somebody's network, to be edited."""

import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import nn

from nin.contract import CONTRACT_FILE, load_contract, read_labels
from nin.errors import InputError, explain
from nin.files import make_folder, temporary_path
from nin.network.build import check_network, make_module, resolve
from nin.network.discover import SIZES, Discovered, Size, discover
from nin.network.published import Published, find_published, unique
from nin.network.weights import load_weights
from nin.samples import idx_size, open_samples

_WEIGHTS, _LABELS, _SAMPLES = "weights.safetensors", "labels.txt", "samples"
_DRAWN = 8

_TEMPLATE = """\
# {title}
name = {name:<28} # the classifier: pixels in, logits and probabilities out

[network]
name = {network:<28} # the network alone: image in, logits out
build = {build}
arguments = {{ {arguments} }}
weights = {weights:<25} # safetensors, or a state dict (.pt, .pth)

[image]                             # what the network takes: float32 (N, channels, height, width)
channels = {channels}
height = {height}
width = {width}
mean = {mean:<28} # of pixels in [0, 1], by channel
std = {std}

# What an application sends, uint8 (N, height, width[, 3]): the image's size, if left out.
{no_pixels}[pixels]
{no_pixels}height = {pixels_height}
{no_pixels}width = {pixels_width}
{no_pixels}resize = "bilinear"{pad}# within the artifact, to the image's size

[files]                             # how a PNG or JPEG file becomes pixels
mode = {mode}
resize = {resize:<26} # or {other_resizes}
{shorter_side}filter = {filter:<26} # or {other_filter}; as Pillow's, antialiased

[samples]                           # real images: golden vectors and the gate
kind = {kind:<28} # or {other_kind}
path = {path:<28} # from this folder

# [calibration]                     # for --precision int8: 32 or more training images, no samples
# path = "calibration"
# [int8]                            # what that may cost; ImageNet's networks need more
# accuracy_loss = 0.001             # by how much the accuracy may fall
# agreement = 0.995                 # the least share of the samples that keep their class
# margin = 0.5                      # the largest of a sample that changes, in logits' deviations

[triton]
max_batch = 16                      # the gate asks for every size up to it
preferred_batch = 8
"""


@dataclass(frozen=True)
class Source:
    """What somebody has: a network, and perhaps more."""

    build: str  # FILE.py:NAME or MODULE:NAME
    arguments: str = ""  # for it, as within a table of TOML
    weights: Path | None = None
    labels: Path | None = None
    samples: Path | None = None
    size: Size | None = None


@dataclass
class Started:
    """What was found out and written, for people."""

    network: Discovered
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)  # what only the user can know
    weights_command: str = ""  # where the weights are still missing


def start_folder(folder: Path, source: Source) -> Started:
    """Writes the model folder of a network, or nothing.

    Raises:
        InputError: the network is no classifier of images, a file can't be used, or the folder
            holds something already.
    """
    with _new_folder(folder) as new:
        build = _copy_code(source.build, new)
        published = find_published(build)
        arguments = source.arguments or (published.arguments if published else "")
        context = f"--from {source.build}"
        make = resolve(new, build, context)
        network = make_module(new, context, make, **parse_arguments(arguments)).eval()
        sent = idx_size(source.samples) if source.samples else None
        started = Started(discover(network, context, _sizes(source, published, sent)))
        entries = {
            **_names(folder, build),
            "build": _quote(build),
            "arguments": arguments,
            **_image(started, published),
            **_pixels(started.network, sent),
            **_files(started, published),
            "weights": _quote(_write_weights(new, source, network, started)),
            **_write_samples(new, folder, source, published, started, is_idx=sent is not None),
        }
        _write_labels(new, source, published, started)
        if not source.weights:
            fetched = None if source.arguments else published
            started.weights_command = _weights_command(folder / _WEIGHTS, fetched)
        if published and (source.size or source.arguments or source.labels):
            started.checks.append(
                f"{CONTRACT_FILE}, [image] and [files]: they are those of torchvision's weights; "
                "is this how yours were trained?"
            )
        text = _TEMPLATE.format_map(entries).replace("{  }", "{}")
        (new / CONTRACT_FILE).write_text(text, encoding="utf-8")
        contract = load_contract(new)
        open_samples(contract, source.samples)
        if source.weights:
            check_network(network, replace(contract, folder=folder))
        started.files = sorted(_listed(new))
    return started


def parse_arguments(text: str) -> dict[str, object]:
    """Keyword arguments written as in a table of TOML: `num_classes = 10, depth = 2`."""
    try:
        arguments: dict[str, object] = tomllib.loads(f"arguments = {{ {text} }}")["arguments"]
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            f"--arguments {text!r} isn't TOML ({error}); write them as in 'num_classes = 10'"
        ) from error
    return arguments


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the folder's place at the end, or vanishes."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        there = "holds files" if folder.is_dir() else "is a file"
        raise InputError(f"{folder} {there} already; name a folder that is new or empty")
    base = next(parent for parent in folder.absolute().parents if parent.is_dir())
    new = temporary_path(base / folder.name)
    try:
        new.mkdir()
        yield new
        make_folder(folder.parent)
        new.replace(folder)
    except OSError as error:
        raise InputError(f"can't write {folder}: {explain(error)}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _listed(folder: Path) -> list[str]:
    """The names in a folder but for what Python leaves there."""
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    return [f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir()]


def _copy_code(build: str, new: Path) -> str:
    """The network as its contract names it; a file of code is copied into the folder."""
    where, colon, name = build.partition(":")
    if not (colon and where and re.fullmatch(r"[A-Za-z_][\w.]*", name)):
        raise InputError(
            f"--from is {build}, expected MODULE:NAME or FILE.py:NAME, as "
            "torchvision.models:resnet18"
        )
    if not where.endswith(".py"):
        return build
    path = Path(where)
    if not path.is_file():
        raise InputError(f"--from {build}: there is no file {path}")
    shutil.copy(path, new / path.name)
    return f"{path.name}:{name}"


def _sizes(source: Source, published: Published | None, sent: Size | None) -> tuple[Size, ...]:
    """Those to try: what is known first."""
    if source.size:
        return (source.size,)
    first = [(published.size,) * 2] if published else []
    likely = [*first, *([sent] if sent else []), *((size, size) for size in SIZES)]
    return tuple(dict.fromkeys(likely))


# --- the files of the folder ---


def _write_labels(new: Path, source: Source, published: Published | None, started: Started) -> None:
    classes = started.network.classes
    if source.labels:
        labels = list(read_labels(source.labels))
        if len(labels) != classes:
            raise InputError(
                f"{source.labels} has {len(labels)} lines, the network {classes} outputs; it needs "
                "one label for each output, or other --arguments, as 'num_classes = 10'"
            )
    elif published and len(published.categories) == classes:
        labels = unique(published.categories)
        repeated = sum(a != b for a, b in zip(labels, published.categories, strict=True))
        if repeated:
            started.notes.append(f"{_LABELS}: {repeated} names repeat, and were numbered")
    else:
        labels = [f"class {index}" for index in range(classes)]
        started.checks.append(f"{_LABELS}: the names of the classes, one a line")
    (new / _LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def _write_weights(new: Path, source: Source, network: nn.Module, started: Started) -> str:
    """Copies the weights, which must fit; returns the name of their file."""
    if source.weights is None:
        return _WEIGHTS
    started.notes += load_weights(network, source.weights)
    shutil.copy(source.weights, new / source.weights.name)
    return source.weights.name


def _weights_command(path: Path, published: Published | None) -> str:
    """What writes the weights: a whole command for published ones, else a line of Python."""
    if published is None:
        return f"safetensors.torch.save_file(network.state_dict(), {str(path)!r})"
    network = f"torchvision.models.{published.name}(weights='DEFAULT')"
    save = f"safetensors.torch.save_file({network}.state_dict(), {str(path)!r})"
    return f"python -c {shlex.quote(f'import safetensors.torch, torchvision; {save}')}"


def _write_samples(
    new: Path, folder: Path, source: Source, published: Published | None, started: Started,
    *, is_idx: bool,
) -> dict[str, str]:  # fmt: skip
    """The samples' entries in the contract; draws some where there are none."""
    if source.samples:
        kinds = ("idx", "folder") if is_idx else ("folder", "idx")
        path = os.path.relpath(source.samples.absolute(), folder.absolute())
    else:
        kinds, path = ("folder", "idx"), _SAMPLES
        _draw_for(new / _SAMPLES, started.network, published)
        started.checks.append(
            f"{_SAMPLES}/: {_DRAWN} drawn pictures; put real images there instead, in folders 0, "
            "1, ... by class where you know it"
        )
    kind, other_kind = map(_quote, kinds)
    return {"kind": kind, "other_kind": other_kind, "path": _quote(path)}


def _draw_for(folder: Path, network: Discovered, published: Published | None) -> None:
    larger = published.shorter_side / published.size if published else 1.0
    size = (round(network.width * larger), round(network.height * larger))
    _draw_samples(folder, size, mode="L" if network.channels == 1 else "RGB")


def _draw_samples(folder: Path, size: tuple[int, int], *, mode: str) -> None:
    """Pictures of shapes on smooth noise, always the same, some wide and some high.

    Args:
        size: width and height of the smallest.
    """
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(_DRAWN):
        stretch = ((1, 1), (1.25, 1), (1, 1.25), (1.5, 1.5))[index % 4]
        width, height = (round(s * f) for s, f in zip(size, stretch, strict=True))
        noise = random.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
        picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(picture)
        for _ in range(4):
            x, y = int(random.integers(width)), int(random.integers(height))
            red, green, blue = random.integers(0, 256, 3).tolist()
            draw.ellipse((x, y, x + width // 3, y + height // 4), fill=(red, green, blue))
        picture.convert(mode).save(folder / f"drawn-{index}.png")


# --- entries of the contract ---


def _names(folder: Path, build: str) -> dict[str, str]:
    name = _name(folder.absolute().name, "classifier")
    network = _name(build.rpartition(":")[2].rpartition(".")[2].lower(), "network")
    if network == name:
        network = f"{name[:90]}_network"
    title = "" if build.partition(":")[0].endswith(".py") else f" with the network {build}"
    return {
        "title": f"The classifier {name}{title}. docs/models.md explains the keys.",
        "name": _quote(name),
        "network": _quote(network),
    }


def _name(text: str, default: str) -> str:
    """A name as contracts take it, as close to the text as can be."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-")
    return name[:100] or default


def _image(started: Started, published: Published | None) -> dict[str, str]:
    network = started.network
    mean, std = (0.0,) * network.channels, (1.0,) * network.channels
    if published and len(published.mean) == network.channels:
        mean, std = published.mean, published.std
    else:
        started.checks.append(f"{CONTRACT_FILE}, [image]: size, mean and std, as in training")
    return {
        "channels": str(network.channels),
        "height": str(network.height),
        "width": str(network.width),
        "mean": _numbers(mean),
        "std": _numbers(std),
    }


def _pixels(network: Discovered, sent: Size | None) -> dict[str, str]:
    """Samples smaller than the network's images are sent as they are."""
    size = (network.height, network.width)
    smaller = sent is not None and sent != size and sent[0] <= size[0] and sent[1] <= size[1]
    height, width = sent if sent and smaller else size
    return {
        "no_pixels": "" if smaller else "# ",
        "pad": " " * (17 if smaller else 15),
        "pixels_height": str(height),
        "pixels_width": str(width),
    }


def _files(started: Started, published: Published | None) -> dict[str, str]:
    resize, shorter_side, chosen = "stretch", "", "bilinear"
    if published:
        resize, chosen = "crop", published.filter
        side = f"shorter_side = {_shorter_side(started.network, published)}"
        shorter_side = f"{side:<35} # of the file, before its centre is cut out\n"
    else:
        started.checks.append(f"{CONTRACT_FILE}, [files]: how training read its files")
    others = [_quote(other) for other in ("stretch", "crop", "pad") if other != resize]
    return {
        "mode": _quote("grey" if started.network.channels == 1 else "rgb"),
        "resize": _quote(resize),
        "other_resizes": " or ".join(others),
        "shorter_side": shorter_side,
        "filter": _quote(chosen),
        "other_filter": _quote("bilinear" if chosen == "bicubic" else "bicubic"),
    }


def _shorter_side(network: Discovered, published: Published) -> int:
    """As much larger than the network's images as in torchvision's preprocessing."""
    return round(min(network.height, network.width) * published.shorter_side / published.size)


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(map(str, values))}]"
