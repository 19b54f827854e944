"""The manifest that lists the artifacts of a folder, each with its digest."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from nin.errors import InputError
from nin.files import write_atomically

MANIFEST = "manifest.json"

# By suffix, what `nin export` makes such a file.
_EXPORTS = {
    ".onnx": "onnx",
    ".int8.onnx": "onnx --precision int8",
    ".pt": "torchscript",
    ".pt2": "pt2",
    ".int8.pt2": "pt2 --precision int8",
}


@dataclass(frozen=True)
class Entry:
    """What the manifest says of one artifact."""

    sha256: str
    size: int
    graph: str
    format: str
    precision: str
    opset: int | None
    ir_version: int | None
    weights_sha256: str
    versions: dict[str, str]
    proof: str = ""  # of a published version: what let it through


def suffix_of(name: str) -> str:
    """Of a file GRAPH.SUFFIX, the dot included: ".int8.onnx"."""
    return "".join(name.partition(".")[1:])


def read_manifest(folder: Path) -> dict[str, Entry]:
    """The artifacts of a folder by file name.

    Raises:
        InputError: there is no manifest, or it isn't one of this project.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            f"no {MANIFEST} in {folder}; export first: `nin export onnx` and "
            "`nin export torchscript`, both with the --model"
        )
    try:
        artifacts = json.loads(path.read_bytes())["artifacts"]
        return {name: Entry(**entry) for name, entry in artifacts.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} isn't a manifest of this project ({error}); "
            "remove it, or export again with --force"
        ) from error


def read_artifact(folder: Path, name: str) -> bytes:
    """The bytes of an artifact that the manifest lists, exactly those that were exported.

    Raises:
        InputError: it isn't listed, isn't there, or a byte has changed.
    """
    entry = read_manifest(folder).get(name)
    path = folder / name
    if entry is None or not path.is_file():
        command = f"nin export {_EXPORTS.get(suffix_of(name), '')}"
        raise InputError(
            f"no {name} in {folder}; export it first: `{command}` "
            "with the --model, or name the folder of its exports: --artifacts"
        )
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        raise InputError(
            f"{path} has SHA-256 {digest}, its manifest says {entry.sha256}: "
            "the file was changed after its export; export it again"
        )
    return data


def write_manifest(folder: Path, entries: dict[str, Entry]) -> None:
    """Replaces the manifest; call it within `locked`."""
    artifacts = {name: asdict(entries[name]) for name in sorted(entries)}
    text = json.dumps({"artifacts": artifacts}, indent=2)
    write_atomically(folder / MANIFEST, f"{text}\n".encode())
