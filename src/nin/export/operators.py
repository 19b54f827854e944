"""Which operators of a TorchScript file the torch of an older Triton release lacks.

operators.json lists every operator of torch that came after 2.3 with the first version that has it:
read from `native_functions.yaml` in the wheels of torch 2.3 to 2.14 (scripts/list_operators.py).
"""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import torch

from nin.network.torch_settings import ignore_deprecations
from nin.releases import UNKNOWN


def younger_operators(path: Path, version: str) -> dict[str, str]:
    """The operators of a TorchScript file that torch `version` lacks, with their first version.

    Empty for a version that isn't known.
    """
    if version == UNKNOWN:
        return {}
    first = json.loads((files("nin.export") / "operators.json").read_text())
    with ignore_deprecations():
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    used = sorted(set(_operators(module.inlined_graph)))
    return {
        name: first[name]
        for name in used
        if name in first and _numbers(first[name]) > _numbers(version)
    }


def _operators(graph: torch.Graph) -> Iterator[str]:
    """The names of a graph's aten operators with their overloads, blocks of blocks included."""
    for node in _nodes(graph):
        if node.kind().startswith("aten::"):
            yield node.schema().partition("(")[0].removeprefix("aten::")


def _nodes(block: "torch.Graph | torch.Block") -> Iterator[torch.Node]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))
