"""Files that are whole or not there."""

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nin.errors import InputError, explain

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


@contextmanager
def temporary_folder(kind: str) -> Iterator[Path]:
    """A folder for temporary files; before, this user's of this kind go whose process was killed.

    Links, and whatever else is there, stay.
    """
    prefix = f"nin-{kind}-"
    own = re.compile(rf"{prefix}(\d{{1,9}})-\w+", re.ASCII)
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        found = own.fullmatch(folder.name)
        with suppress(OSError):  # another process may sweep too
            status = folder.lstat()
            if (
                found
                and stat.S_ISDIR(status.st_mode)
                and status.st_uid == os.geteuid()
                and not _runs(int(found[1]))
            ):
                shutil.rmtree(folder)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-") as name:
        yield Path(name)


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
    return process != os.getpid() and _runs(process)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # no signal, only the question
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and somebody else's
        pass
    return True
