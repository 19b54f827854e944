"""A .pt2 package's machine code, as LibTorch and Triton run it."""

import tempfile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nin.artifact.instruction_sets import check_instruction_set
from nin.artifact.metadata import Metadata
from nin.artifact.pt2_package import entry_point, read_package
from nin.contract import Graph, Outputs
from nin.errors import InputError, first_line


class Pt2Runtime:
    """Raises InputError where the bytes aren't a package of this project that this CPU can run."""

    def __init__(self, data: bytes, graph: Graph) -> None:
        self._package = read_package(data)
        check_instruction_set(self._package.instruction_set)
        metadata = Metadata.from_texts(self._package.texts)
        self.contract = metadata.contract
        self.labels = metadata.labels
        self.weights_sha256 = metadata.weights_sha256
        self.golden = metadata.golden
        self._names = [tensor.name for tensor in graph.outputs]
        self._libraries = _load(data, self._package.batch_sizes)

    def __call__(self, batch: NDArray[Any]) -> Outputs:
        items = torch.tensor(batch)
        with torch.inference_mode():
            parts = [
                self._libraries[part.stop - part.start].run([items[part].contiguous()])
                for part in self._package.parts(len(items))
            ]
        return {
            name: np.concatenate([outputs[index].numpy() for outputs in parts])
            for index, name in enumerate(self._names)
        }


def _load(data: bytes, sizes: tuple[int, ...]) -> dict[int, Any]:
    """The libraries by batch size; torch's loader takes files only, and keeps its own copies."""
    with tempfile.NamedTemporaryFile(suffix=".pt2") as file:
        file.write(data)
        file.flush()
        try:
            return {
                size: torch._C._aoti.AOTIModelPackageLoader(
                    file.name, entry_point(size), False, 1, -1
                )
                for size in sizes
            }
        except RuntimeError as error:
            raise InputError(f"torch can't load the package: {first_line(error)}") from error
