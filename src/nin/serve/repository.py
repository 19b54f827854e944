"""The model repository on disk: artifacts become versions, and versions come and go whole.

It may hold the models of several contracts. What is new is staged in a hidden folder inside its
model's own (a hidden folder beside the models would be taken for a model), proven there, and
renamed. Triton serves a model's newest version.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from google.protobuf.text_format import ParseError
from tqdm import tqdm

from nin.artifact.golden import Golden, replay
from nin.artifact.manifest import MANIFEST, Entry, read_artifact, read_manifest, write_manifest
from nin.artifact.metadata import Metadata
from nin.contract import ENCODED_IMAGE, Contract, Model, served_file
from nin.errors import CheckError, InputError
from nin.export.formats import FORMATS
from nin.files import locked, make_folder, sweep, temporary_path, write_atomically
from nin.images import encode_png
from nin.serve.configs import (
    CONFIG,
    WARMUP,
    Layout,
    foundation,
    layout_for,
    model_files,
    parse,
)

UNPROVEN = "unproven"

# Triton reads a folder's name as a number of 64 bits, as far as it goes, and ends where it is more.
MOST_VERSION = 10**18 - 1
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_LIKE_A_VERSION = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]")

_Sources = dict[Model, tuple[Path, str]]  # a folder with a manifest, and a file's name there


@dataclass(frozen=True)
class Version:
    """One version of a model, as `versions` finds it."""

    model: str
    number: int
    entry: Entry | None  # None: its file isn't the one that was published
    problem: str = ""


def publish(
    contract: Contract,
    artifacts: Path,
    repository: Path,
    *,
    version: int | None = None,
    proof: str = UNPROVEN,
    layout: Layout | None = None,
) -> int:
    """Makes the artifacts the next version of every model of the contract, all of the same number.

    Args:
        repository: made if it doesn't exist; so are the models that it lacks.
        version: its number; None takes the next.
        proof: what nin.gate.proof says of the artifacts, kept with the version.
        layout: writes the configurations of all these models for it. None leaves those that are
            there, and lays out new ones for this machine.

    Raises:
        InputError: an artifact or the repository can't be used, or the version isn't a new one.
        CheckError: an artifact doesn't reproduce its golden vectors; nothing is published.
    """
    _prepare(contract, repository)
    sources = {
        model: (artifacts, f"{model.graph.name}{model.format}") for model in contract.published
    }
    with _locked(contract, repository):
        return _add(contract, sources, repository, version, proof, layout)


def stage_alone(
    contract: Contract, model: Model, artifacts: Path, repository: Path, layout: Layout
) -> None:
    """Puts one model of the contract, under its name or another, into a repository to try out.

    Raises InputError where its export can't be used.
    """
    assert model.format is not None
    data = read_artifact(artifacts, f"{model.graph.name}{model.format}")
    golden = Metadata.from_texts(FORMATS[model.format].read_texts(data)).golden
    files = {
        **model_files(contract, model, layout),
        f"1/{model.filename}": data,
        f"{WARMUP}/{model.graph.input.name}": golden.batch(model.graph)[:1].tobytes(),
    }
    for name, content in files.items():
        write_atomically(repository / model.name / name, content)


def rollback(contract: Contract, repository: Path) -> tuple[int, int]:
    """Publishes the version before the newest again, as the next one.

    Taking the newest away instead would fail the requests that are on their way to it.

    Returns:
        the version before, and the number that it has now.

    Raises:
        InputError: there is no whole version to go back to; nothing is changed.
    """
    with _locked(contract, repository):
        numbers = _published_numbers(contract, repository)
        newest = max(set().union(*numbers.values()), default=0)
        before = max(set.intersection(*map(set, numbers.values())) - {newest}, default=None)
        if before is None:
            raise InputError(
                f"no older version of all models of {contract.name} in {repository} to roll back "
                "to; see `nin publish --list`"
            )
        sources = {m: (repository / m.name / str(before), m.filename) for m in contract.published}
        return before, _add(contract, sources, repository)


def prune(contract: Contract, repository: Path, keep: int) -> list[int]:
    """Removes all but the newest `keep` versions of the contract's models; returns the removed."""
    removed = set()
    with _locked(contract, repository):
        for model, numbers in _published_numbers(contract, repository).items():
            for number in numbers[keep:]:
                folder = repository / model
                # under a hidden name first, so that a server never loads half a version
                hidden = temporary_path(folder / str(number))
                (folder / str(number)).rename(hidden)
                shutil.rmtree(hidden)
                removed.add(number)
    return sorted(removed)


def model_names(repository: Path) -> list[str]:
    """The models that a repository holds: a folder with a configuration each, of its own name.

    Raises InputError where there is no repository.
    """
    return [name for name in _configured(repository) if _is_model(repository / name)]


def not_models(repository: Path) -> list[str]:
    """The folders with a configuration that isn't of a model of that name: a copy's, say."""
    return [name for name in _configured(repository) if not _is_model(repository / name)]


def _configured(repository: Path) -> list[str]:
    if not repository.is_dir():
        raise InputError(f"no model repository at {repository}; `nin publish` makes one")
    return sorted(path.parent.name for path in repository.glob(f"[!.]*/{CONFIG}"))


def _is_model(folder: Path) -> bool:
    config = folder / CONFIG
    if not config.is_file():
        return False
    try:
        return parse(config.read_bytes()).name in ("", folder.name)
    except (ParseError, UnicodeDecodeError):
        return True  # Triton says what is wrong with it


def versions(repository: Path) -> list[Version]:
    """All published versions, model by model, the newest first, every file read and checked.

    Raises InputError where there is no repository.
    """
    return [
        _read(folder, number, name)
        for folder in (repository / name for name in model_names(repository))
        for number in _numbers(folder)
        if (name := _artifact_name(folder / str(number)))  # else it is code and configuration
    ]


def require_published(repository: Path) -> None:
    """Raises InputError unless there are models, and every one has a version, all well named."""
    names = model_names(repository)
    for name in names:
        _require_versions(repository / name)
    missing = [name for name in names if not _numbers(repository / name)]
    if missing or not names:
        raise InputError(
            f"no published version of {', '.join(missing) or 'anything'} in {repository}; "
            "publish first: `make publish`, or `nin publish` after the exports"
        )


def _prepare(contract: Contract, repository: Path) -> None:
    """Makes the folder; refuses one that holds other things than models."""
    if repository.exists() and not repository.is_dir():
        raise InputError(f"{repository} is a file; give a folder as --repository")
    make_folder(repository)
    own = {model.name for model in contract.models}
    others = sorted(path.name for path in repository.iterdir() if path.name not in own)
    if others and not model_names(repository):
        raise InputError(
            f"{repository} isn't a model repository: it holds {others[0]} and no model; "
            "give a folder that doesn't exist yet, it will be made"
        )


def _numbers(folder: Path) -> list[int]:
    """The versions of a model that a server would find, the newest first."""
    return sorted((int(n) for n in _folders(folder) if _VERSION.fullmatch(n)), reverse=True)


def _folders(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _require_versions(folder: Path) -> None:
    """Raises InputError where Triton would take a folder for a version that isn't one."""
    for name in sorted(_folders(folder)):
        if _LIKE_A_VERSION.match(name) and not _VERSION.fullmatch(name):
            raise InputError(
                f"{folder / name} isn't a version, 1 to {MOST_VERSION}, and Triton would take it "
                "for one; rename it, to begin with a letter, or remove it"
            )


def _published_numbers(contract: Contract, repository: Path) -> dict[str, list[int]]:
    return {model.name: _numbers(repository / model.name) for model in contract.published}


@contextmanager
def _locked(contract: Contract, repository: Path) -> Iterator[None]:
    """One publisher at a time; it sweeps up what a killed one, or its own failure, left."""
    model_names(repository)  # there must be one
    folders = [repository / model.name for model in contract.models]
    with locked(repository):
        for folder in folders:
            sweep(folder)
        try:
            yield
        finally:
            for folder in folders:
                sweep(folder)
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


def _add(
    contract: Contract,
    sources: _Sources,
    repository: Path,
    version: int | None = None,
    proof: str | None = None,
    layout: Layout | None = None,
) -> int:
    """Stages and proves every model's file before the first becomes a version.

    Args:
        proof: None keeps what the manifests say.
    """
    number = _next_number(contract, repository, version)
    configurations = _configurations(contract, repository, layout)
    entries: list[Entry] = []
    golden: dict[str, Golden] = {}
    for model, source in tqdm(sources.items(), "proving", disable=None, leave=False):
        folder = _staging(repository, model) / str(number)
        entry, golden[model.name] = _stage(contract, model, source, folder, proof)
        entries.append(entry)
    if len({entry.weights_sha256 for entry in entries}) > 1:
        raise InputError(
            "the artifacts come from different weights; export all of them again: `nin export`"
        )
    for model, files in configurations.items():
        if model == contract.decoder:
            files = files | _encoded_warmup(golden[contract.name])
        for name, data in files.items():
            write_atomically(_staging(repository, model) / name, data)
    for model in contract.models:  # only renames, so that a full disk can't part them
        _place(_staging(repository, model), repository / model.name)
    return number


def _next_number(contract: Contract, repository: Path, version: int | None) -> int:
    numbers = _published_numbers(contract, repository)
    newest = max(set().union(*numbers.values()), default=0)
    number = newest + 1 if version is None else version
    if number <= newest:
        raise InputError(
            f"version {number} isn't newer than {newest}, so no server would choose it; "
            f"leave --version out, or give {newest + 1} or more"
        )
    if number > MOST_VERSION:
        raise InputError(
            f"version {number} is too large, expected at most {MOST_VERSION}; remove what is near "
            "that number, or publish to another --repository"
        )
    return number


def _configurations(
    contract: Contract, repository: Path, layout: Layout | None
) -> dict[Model, dict[str, bytes]]:
    """The files to write: of every model if there is a layout, else of those that are new.

    Raises InputError where what is there, and shall stay, is of another contract.
    """
    chosen = layout or layout_for()
    files = {model: model_files(contract, model, chosen) for model in contract.models}
    if layout:
        return files
    there = [model for model in files if (repository / model.name / CONFIG).is_file()]
    for model in there:
        _require_same(repository / model.name, files.pop(model))
    return files


def _require_same(folder: Path, files: dict[str, bytes]) -> None:
    """Raises InputError where a model's folder differs in more than tuning."""
    for name, expected in files.items():
        path = folder / name
        data = path.read_bytes() if path.is_file() else b""
        if name == CONFIG:
            difference = _difference(path, data, expected)
        else:
            difference = "" if data == expected else f"{path} isn't what this contract gives"
        if difference:
            raise InputError(
                f"{difference}; publish to another --repository, give the model another name, or "
                "let its configuration be written anew by --cores N"
            )


def _difference(path: Path, data: bytes, expected: bytes) -> str:
    try:
        found, right = foundation(parse(data)), foundation(parse(expected))
    except (ParseError, UnicodeDecodeError) as error:
        return f"{path} can't be read: {error}"
    if found == right:
        return ""
    names = [field.name for field, _ in (*right.ListFields(), *found.ListFields())]
    name = next(n for n in names if getattr(found, n) != getattr(right, n))
    return f"{path}: its {name} isn't what this contract gives"


def _stage(
    contract: Contract, model: Model, source: tuple[Path, str], folder: Path, proof: str | None
) -> tuple[Entry, Golden]:
    """Copies one file to the hidden folder of its version, proves the copy, and adds a warm-up."""
    data = read_artifact(*source)
    entry = read_manifest(source[0])[source[1]]
    if proof is not None:
        entry = replace(entry, proof=proof)
    write_atomically(folder / model.filename, data)
    write_manifest(folder, {model.filename: entry})
    golden = _prove(contract, model, read_artifact(folder, model.filename))
    # one golden image in the form of a request's body, for model_warmup
    image = golden.batch(model.graph)[:1]
    write_atomically(folder.parent / WARMUP / model.graph.input.name, image.tobytes())
    return entry, golden


def _encoded_warmup(golden: Golden) -> dict[str, bytes]:
    """The first golden image as a PNG file, in Triton's form of a text: its length, and itself."""
    file = encode_png(golden.inputs[0])
    return {f"{WARMUP}/{ENCODED_IMAGE.name}": len(file).to_bytes(4, "little") + file}


def _staging(repository: Path, model: Model) -> Path:
    return temporary_path(repository / model.name / "new")


def _place(staged: Path, folder: Path) -> None:
    """Moves what was staged to its place; last the configuration, which makes it a model."""
    if not staged.is_dir():
        return
    for source in sorted(staged.iterdir(), key=lambda path: path.name == CONFIG):
        target = folder / source.name
        if target.is_dir():
            for file in source.iterdir():
                file.replace(target / file.name)
        else:
            source.replace(target)


def _prove(contract: Contract, model: Model, data: bytes) -> Golden:
    """Loads an artifact and replays its golden vectors. Raises CheckError if it is off."""
    assert model.format is not None
    graph = contract.graphs[model.graph.name]  # a backend may take smaller batches than the file
    runtime = FORMATS[model.format].open(data, graph)
    assert runtime.golden is not None
    if runtime.contract != graph.describe() or runtime.labels != contract.labels:
        raise CheckError(
            f"{model.name} is not published: the artifact was exported under another contract; "
            "export it again"
        )
    try:
        replay(runtime, graph, runtime.golden)
    except CheckError as error:
        raise CheckError(f"{model.name} is not published: {error}") from error
    return runtime.golden


def _artifact_name(folder: Path) -> str | None:
    """The file that a version's folder holds, or should; None where it holds no artifact."""
    manifest = folder / MANIFEST
    listed = manifest.read_bytes() if manifest.is_file() else b""
    names = set(map(served_file, FORMATS))
    found = (n for n in names if (folder / n).is_file() or f'"{n}"'.encode() in listed)
    return next(found, None)


def _read(model_folder: Path, number: int, name: str) -> Version:
    folder = model_folder / str(number)
    try:
        read_artifact(folder, name)
        return Version(model_folder.name, number, read_manifest(folder)[name])
    except InputError as error:
        return Version(model_folder.name, number, None, str(error))
