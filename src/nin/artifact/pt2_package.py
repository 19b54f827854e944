"""What a .pt2 package says of itself beside the metadata: what machine code it holds."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from nin.artifact.texts import read_torchscript_texts
from nin.errors import InputError

_BATCH_SIZES, _INSTRUCTION_SET = "batch_sizes", "instruction_set"


@dataclass(frozen=True)
class Package:
    """What a package says of itself."""

    texts: dict[str, str]
    batch_sizes: tuple[int, ...]
    instruction_set: str

    def to_texts(self) -> dict[str, str]:
        """The texts with those of the package's own beside them."""
        return {
            **self.texts,
            _BATCH_SIZES: json.dumps(sorted(self.batch_sizes)),
            _INSTRUCTION_SET: self.instruction_set,
        }

    def parts(self, count: int) -> Iterator[slice]:
        """Where to cut so many images into batches that there are libraries for."""
        start = 0
        for size in sorted(self.batch_sizes, reverse=True):
            while count - start >= size:
                yield slice(start, start + size)
                start += size


def entry_point(size: int) -> str:
    """The name of the library for batches of a size."""
    return f"batch_{size}"


def read_package(data: bytes) -> Package:
    """Raises InputError where the bytes aren't a package of this project."""
    texts = read_torchscript_texts(data)
    try:
        sizes = json.loads(texts.pop(_BATCH_SIZES))
        instructions = texts.pop(_INSTRUCTION_SET)
        if 1 not in sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"batch sizes {sizes}")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"not a .pt2 package of this project ({error!r})") from error
    return Package(texts, tuple(sizes), instructions)


def read_pt2_texts(data: bytes) -> dict[str, str]:
    """The texts that were written; empty for bytes that aren't a package of this project."""
    try:
        return read_package(data).texts
    except InputError:
        return {}
