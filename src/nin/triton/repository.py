"""The model repository on disk: artifacts become versions, and versions come and go whole.

A version is staged in a hidden folder inside its model's own (a hidden folder beside the models
would be taken for a model), proven there, and renamed. Triton serves a model's newest version.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from nin.artifact import (
    Entry,
    locked,
    make_folder,
    read_artifact,
    read_manifest,
    sweep,
    temporary_path,
    write_atomically,
    write_manifest,
)
from nin.contract import LABELS, MODELS, Model
from nin.errors import CheckError, InputError, explain
from nin.paths import MODEL_REPOSITORY
from nin.reference import Reference, graph_input, replay
from nin.runtimes.ort import OrtRuntime
from nin.runtimes.torchscript import TorchScriptRuntime

# The models whose versions are published; the others are code and belong to the repository.
PUBLISHED = tuple(model for model in MODELS if model.format)

UNPROVEN = "unproven"

_OPEN: dict[str | None, type[OrtRuntime | TorchScriptRuntime]] = {
    ".onnx": OrtRuntime,
    ".pt": TorchScriptRuntime,
}


@dataclass(frozen=True)
class Version:
    """One version of a model, as `versions` finds it."""

    model: str
    number: int
    entry: Entry | None  # None: its file isn't the one that was published
    problem: str = ""


def publish(
    artifacts: Path, repository: Path, *, version: int | None = None, proof: str = UNPROVEN
) -> int:
    """Makes the artifacts the next version of every model, all of the same number.

    Args:
        repository: made from the checkout's if it doesn't exist.
        version: its number; None takes the next.
        proof: what nin.proof says of the artifacts, kept with the version.

    Raises:
        InputError: an artifact or the repository can't be used, or the version isn't a new one.
        CheckError: an artifact doesn't reproduce its golden vectors; nothing is published.
    """
    _make_repository(repository)
    sources = {model: (artifacts, f"{model.graph.name}{model.format}") for model in PUBLISHED}
    with _locked(repository):
        return _add(sources, repository, version, proof)


def rollback(repository: Path) -> tuple[int, int]:
    """Publishes the version before the newest again, as the next one.

    Taking the newest away instead would fail the requests that are on their way to it.

    Returns:
        the version before, and the number that it has now.

    Raises:
        InputError: there is no whole version to go back to; nothing is changed.
    """
    with _locked(repository):
        numbers = _numbers(repository)
        newest = max(set().union(*numbers.values()), default=0)
        before = max(set.intersection(*map(set, numbers.values())) - {newest}, default=None)
        if before is None:
            raise InputError(
                f"no older version of all models in {repository} to roll back to; "
                "see `python export/to_triton.py --list`"
            )
        sources = {m: (repository / m.name / str(before), m.filename) for m in PUBLISHED}
        return before, _add(sources, repository, None)


def prune(repository: Path, keep: int) -> list[int]:
    """Removes all but the newest `keep` versions; returns the removed."""
    removed = set()
    with _locked(repository):
        for model, numbers in _numbers(repository).items():
            for number in numbers[keep:]:
                folder = repository / model
                # under a hidden name first, so that a server never loads half a version
                hidden = _staging(folder, number)
                (folder / str(number)).rename(hidden)
                shutil.rmtree(hidden)
                removed.add(number)
    return sorted(removed)


def versions(repository: Path) -> list[Version]:
    """All published versions, model by model, the newest first, every file read and checked.

    Raises InputError where there is no repository.
    """
    numbers = _numbers(repository)
    return [
        _read(model, repository / model.name / str(number), number)
        for model in PUBLISHED
        for number in numbers[model.name]
    ]


def require_published(repository: Path) -> None:
    """Raises InputError unless every model has a version."""
    missing = [model for model, numbers in _numbers(repository).items() if not numbers]
    if missing:
        raise InputError(
            f"no published version of {', '.join(missing)} in {repository}; publish first: "
            "`make publish`, or `python export/to_triton.py` after the exports"
        )


def _make_repository(repository: Path) -> None:
    """Copies the checkout's repository, without its versions, to where there is none."""
    if repository.exists() and not repository.is_dir():
        raise InputError(f"{repository} is a file; give a folder as --repository")
    if not repository.exists():
        make_folder(repository.parent)
        temporary = temporary_path(repository)
        try:
            shutil.copytree(MODEL_REPOSITORY, temporary, ignore=_ignore_generated)
            temporary.rename(repository)
        except OSError as error:
            if not repository.is_dir():  # else another publisher was faster
                raise InputError(f"can't make {repository}: {_first_reason(error)}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    missing = [m.name for m in MODELS if not (repository / m.name / "config.pbtxt").is_file()]
    if missing:
        raise InputError(
            f"{repository} isn't a model repository of this project: no config.pbtxt of "
            f"{', '.join(missing)}; give a folder that doesn't exist yet, it will be made"
        )
    make_folder(repository)


def _first_reason(error: OSError) -> str:
    """shutil.copytree collects its errors in a list of (source, target, reason)."""
    return str(error.args[0][0][2]) if isinstance(error, shutil.Error) else explain(error)


def _ignore_generated(folder: str, names: list[str]) -> set[str]:
    """What publishing writes, in the terms of shutil.copytree."""
    generated = {name for name in names if name.startswith(".") and name != ".gitkeep"}
    if Path(folder).name in {model.name for model in PUBLISHED}:
        generated |= {name for name in names if name == "warmup" or name[0].isdigit()}
    return generated | ({"__pycache__"} & set(names))


def _require(repository: Path) -> None:
    if not repository.is_dir():
        raise InputError(
            f"no model repository at {repository}; `python export/to_triton.py` makes one"
        )


def _numbers(repository: Path) -> dict[str, list[int]]:
    """The versions that a server would find, by model, the newest first."""
    _require(repository)
    found = {}
    for model in PUBLISHED:
        folder = repository / model.name
        names = [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        versions = (int(name) for name in names if re.fullmatch(r"[1-9]\d*", name))
        found[model.name] = sorted(versions, reverse=True)
    return found


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    """One publisher at a time; it sweeps up what a killed one, or its own failure, left."""
    _require(repository)
    folders = [repository / model.name for model in PUBLISHED]
    with locked(repository):
        for folder in folders:
            sweep(folder)
        try:
            yield
        finally:
            for folder in folders:
                sweep(folder)


def _staging(folder: Path, name: object) -> Path:
    return temporary_path(folder / str(name))


def _add(
    sources: dict[Model, tuple[Path, str]],
    repository: Path,
    version: int | None,
    proof: str | None = None,
) -> int:
    """Stages and proves every model's file before the first becomes a version.

    Args:
        sources: for each model a folder with a manifest, and the name of its file there.
        proof: None keeps what the manifests say.
    """
    newest = max(set().union(*_numbers(repository).values()), default=0)
    number = newest + 1 if version is None else version
    if number <= newest:
        raise InputError(
            f"version {number} isn't newer than {newest}, so no server would choose it; "
            f"leave --version out, or give {newest + 1} or more"
        )
    bar = tqdm(sources.items(), "proving", disable=None, leave=False)
    entries = [_stage(model, *source, repository, number, proof) for model, source in bar]
    if len({entry.weights_sha256 for entry in entries}) > 1:
        raise InputError(
            "the artifacts come from different weights; export all of them again: `make export`"
        )
    for model in sources:  # from here on nothing is written, so that a full disk can't part them
        folder = repository / model.name
        _place_warmup(folder, model)
        _staging(folder, number).rename(folder / str(number))
    return number


def _stage(
    model: Model, source: Path, name: str, repository: Path, number: int, proof: str | None
) -> Entry:
    """Copies one file to its hidden folder and proves the copy."""
    data = read_artifact(source, name)
    entry = read_manifest(source)[name]
    if proof is not None:
        entry = replace(entry, proof=proof)
    folder = _staging(repository / model.name, number)
    folder.mkdir()
    write_atomically(folder / model.filename, data)
    write_manifest(folder, {model.filename: entry})
    golden = _prove(model, read_artifact(folder, model.filename))
    # one golden image in the form of a request's body, for model_warmup in config.pbtxt
    warmup = _staging(repository / model.name, "warmup")
    image = graph_input(model.graph, golden.pixels[:1]).tobytes()
    write_atomically(warmup / model.graph.input.name, image)
    return entry


def _place_warmup(folder: Path, model: Model) -> None:
    staged, warmup = _staging(folder, "warmup"), folder / "warmup"
    if warmup.is_dir():
        name = model.graph.input.name
        (staged / name).replace(warmup / name)
    else:
        staged.rename(warmup)


def _prove(model: Model, data: bytes) -> Reference:
    """Loads an artifact and replays its golden vectors. Raises CheckError if it is off."""
    runtime = _OPEN[model.format](data, model.graph)
    if runtime.contract != model.graph.describe() or runtime.labels != LABELS:
        raise CheckError(
            f"{model.name} is not published: the artifact was exported under another contract; "
            "export it again"
        )
    try:
        replay(runtime, model.graph, runtime.golden)
    except CheckError as error:
        raise CheckError(f"{model.name} is not published: {error}") from error
    return runtime.golden


def _read(model: Model, folder: Path, number: int) -> Version:
    try:
        read_artifact(folder, model.filename)
        return Version(model.name, number, read_manifest(folder)[model.filename])
    except InputError as error:
        return Version(model.name, number, None, str(error))
