"""Files that are whole or not there, what an artifact carries, and the manifest that lists them."""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nin.contract import Graph
from nin.errors import InputError, explain
from nin.reference import Reference

MANIFEST = "manifest.json"

_TEMPORARY = re.compile(r"\.nin-.+\.(\d{1,9})\.tmp", re.DOTALL)


def temporary_path(path: Path) -> Path:
    """A hidden name beside `path`, by which `sweep` knows that this process made it."""
    return path.with_name(f".nin-{path.name}.{os.getpid()}.tmp")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; takes its place at the end, or leaves nothing.

    Raises InputError, naming `path`, where the system doesn't let it be written.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise  # of another file
        error.filename = None  # while writing there is none, and nobody knows the temporary one
        raise InputError(f"can't write {path}: {explain(error)}") from error
    finally:
        with suppress(OSError):  # the name may be too long for unlinking too
            temporary.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file that no reader ever sees half written. The folder is made if need be."""
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def make_folder(folder: Path) -> None:
    """Raises InputError where the folder can't be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("no permission to write there")
    except OSError as error:
        raise InputError(f"can't write to the folder {folder}: {error}; choose another") from error


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """One writer at a time: waits for the others, then sweeps up what a killed one left.

    Raises InputError where there is another one and it shan't `wait`.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise InputError(f"another process writes to {folder}; choose another") from error
        sweep(folder)
        yield
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Removes the temporary files and folders of this process and of those that have ended.

    Only a writer that holds the lock may. Links, and whatever else is there, stay.
    """
    for leftover in folder.glob(".nin-*.tmp"):
        found = _TEMPORARY.fullmatch(leftover.name)
        if found is None or leftover.is_symlink() or _runs_elsewhere(int(found[1])):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def _runs_elsewhere(process: int) -> bool:
    """Whether an id is that of another process that hasn't ended."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)  # no signal, only the question
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and somebody else's
        pass
    return True


@dataclass(frozen=True)
class Metadata:
    """What every artifact says of itself, in whatever way its format stores texts."""

    contract: dict[str, Any]
    labels: tuple[str, ...]
    golden: Reference
    weights_sha256: str
    versions: dict[str, str]

    def to_texts(self, graph: Graph) -> dict[str, str]:
        return {
            "contract": json.dumps(self.contract),
            "labels": json.dumps(self.labels),
            "golden": self.golden.to_json(graph),
            "weights_sha256": self.weights_sha256,
            "versions": json.dumps(self.versions),
        }

    @classmethod
    def from_texts(cls, texts: dict[str, str]) -> "Metadata":
        """Raises InputError where a text is missing or isn't what `to_texts` writes."""
        try:
            return cls(
                contract=json.loads(texts["contract"]),
                labels=tuple(json.loads(texts["labels"])),
                golden=Reference.from_json(texts["golden"]),
                weights_sha256=texts["weights_sha256"],
                versions=json.loads(texts["versions"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"not an export of this project: its metadata can't be read ({error!r})"
            ) from error


METADATA_KEYS = tuple(f.name for f in fields(Metadata))


@dataclass(frozen=True)
class Entry:
    """What the manifest says of one artifact."""

    sha256: str
    size: int
    graph: str
    format: str
    opset: int | None
    ir_version: int | None
    weights_sha256: str
    versions: dict[str, str]
    proof: str = ""  # of a published version: what let it through


def read_manifest(folder: Path) -> dict[str, Entry]:
    """The artifacts of a folder by file name.

    Raises:
        InputError: there is no manifest, or it isn't one of this project.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            f"no {MANIFEST} in {folder}; export first: "
            "`python export/to_onnx.py` and `python export/to_torchscript.py`"
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
        raise InputError(f"no {name} in {folder}; export it first: see `make export`")
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
