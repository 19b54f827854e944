"""Inputs in regions of system shared memory, for a server on the same machine."""

import importlib
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from nin.client.connection import RETRIES, retry_pauses
from nin.errors import InputError, ServerError

_FOLDER = Path("/dev/shm")  # noqa: S108 - where Linux keeps them


class Regions:
    """A region of shared memory for each input, by its name."""

    def __init__(self, call: Callable[..., object]) -> None:
        """Args: call: calls a method of the tritonclient, by its name, with arguments."""
        self._call = call
        self._memory = importlib.import_module("tritonclient.utils.shared_memory")
        self._regions: dict[str, _Region] = {}

    def put(self, name: str, array: NDArray[Any]) -> str:
        """Copies an input into its region; returns the region's name."""
        return self._regions.setdefault(name, _Region(self._call, self._memory)).put(array)

    def close(self) -> None:
        while self._regions:
            self._regions.popitem()[1].close()


class _Region:
    """A region of system shared memory that the server knows, replaced when an input needs more."""

    def __init__(self, call: Callable[..., object], memory: ModuleType) -> None:
        self._call = call
        self._memory = memory  # tritonclient.utils.shared_memory
        self._name = ""
        self._handle: Any = None
        self._size = 0

    def put(self, array: NDArray[Any]) -> str:
        """Copies an input into the region; returns its name."""
        if array.nbytes > self._size:
            self.close()
            self._make(array.nbytes)
        self._memory.set_shared_memory_region(self._handle, [array])
        return self._name

    def _make(self, size: int) -> None:
        """Leaves nothing where there is no room, or the server doesn't take it."""
        self._name = f"nin-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            self._handle = self._memory.create_shared_memory_region(self._name, self._name, size)
            # else the first write to a page for which there is no room would kill this process
            with (_FOLDER / self._name).open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            self._call("register_system_shared_memory", self._name, self._name, size)
        except BaseException as error:
            self._destroy()
            if isinstance(error, OSError | self._memory.SharedMemoryException):
                cause = error.__cause__ or error
                raise InputError(
                    f"no region of {size} bytes in {_FOLDER}: {cause}; free some space there, "
                    "give a container more by `docker run --shm-size`, or do without shared memory"
                ) from error
            raise
        self._size = size

    def _destroy(self) -> None:
        if self._handle is not None:
            self._memory.destroy_shared_memory_region(self._handle)
        self._handle, self._size = None, 0

    def close(self) -> None:
        if self._handle is None:
            return
        try:
            self._unregister()
        except InputError:
            pass  # the server is gone, and its mapping with it
        finally:
            self._destroy()

    def _unregister(self) -> None:
        """Triton may hold a region for a moment after its answer, and refuses meanwhile."""
        for pause in retry_pauses(RETRIES):
            try:
                self._call("unregister_system_shared_memory", self._name)
                return
            except ServerError as error:
                if "in use" not in str(error):
                    raise
                time.sleep(pause)
