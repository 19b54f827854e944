"""Writes a graph as a traced and frozen TorchScript archive."""

import io
import warnings
from collections.abc import Iterator
from importlib.metadata import version

import torch
from torch import nn
from torch.jit._trace import TracerWarning

from nin.contract import Graph
from nin.errors import InputError, first_line
from nin.network.torch_settings import ignore_deprecations, without_tf32


def compile_torchscript(
    module: nn.Module, example: torch.Tensor, graph: Graph
) -> torch.jit.ScriptModule:
    """Exports `module`, which must be in evaluation mode.

    Args:
        example: a batch of two; with one the exporters might take the batch for a constant.

    Raises:
        InputError: the module can't be traced; the reason is torch's.
    """
    # the trace writes the TensorFloat-32 switch into every convolution
    with ignore_deprecations(), torch.inference_mode(), without_tf32():
        try:
            return torch.jit.freeze(_trace(module, example))  # type: ignore[no-any-return]
        except Exception as error:  # of torch, or of the network's own code
            raise InputError(
                f"{graph.name} can't be traced for TorchScript: {first_line(error)}; "
                "forward() may only use tensor operations; try ONNX"
            ) from error


def write_torchscript(module: torch.jit.ScriptModule, texts: dict[str, str]) -> bytes:
    """The archive of a module with the texts as extra files, which C++ reads too."""
    buffer = io.BytesIO()
    with ignore_deprecations():
        torch.jit.save(module, buffer, _extra_files=texts)
    return _without_debug_records(buffer.getvalue())


def _trace(module: nn.Module, example: torch.Tensor) -> torch.jit.ScriptModule:
    """The trace; where torch warns of it, it must answer other images as the module does.

    Raises RuntimeError with torch's warning where it doesn't.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TracerWarning)
        traced = torch.jit.trace(module, example)  # type: ignore[no-untyped-call]
    doubts = [w for w in caught if issubclass(w.category, TracerWarning)]
    for warning in caught:
        if warning not in doubts:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if doubts and not all(map(_agree, *_answers(traced, module, example))):
        raise RuntimeError(str(doubts[0].message).partition(". ")[0])
    return traced  # type: ignore[no-any-return]


def _answers(
    traced: nn.Module, module: nn.Module, example: torch.Tensor
) -> Iterator[tuple[torch.Tensor, ...]]:
    """What both give for more images than were traced."""
    more = torch.cat([example, example.flip(-1)[:1]])
    for run in (traced, module):
        outputs = run(more)
        yield outputs if isinstance(outputs, tuple) else (outputs,)


def _agree(found: torch.Tensor, right: torch.Tensor) -> bool:
    """But for rounding."""
    return found.shape == right.shape and torch.allclose(found, right, rtol=1e-3, atol=1e-4)


def exporter_versions() -> dict[str, str]:
    return {name: version(name) for name in ("nin", "torch")}


def _without_debug_records(data: bytes) -> bytes:
    """The same archive without its source locations, which are paths of this machine."""
    reader = torch._C.PyTorchFileReader(io.BytesIO(data))
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    for name in reader.get_all_records():
        # the writer adds its own version and serialization id
        if not name.endswith(".debug_pkl") and name not in ("version", ".data/serialization_id"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return buffer.getvalue()
