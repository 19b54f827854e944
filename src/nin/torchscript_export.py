"""Writes a graph as a traced and frozen TorchScript archive."""

import io
from importlib.metadata import version

import torch
from torch import nn

from nin.contract import Graph
from nin.errors import CheckError
from nin.torch_settings import ignore_deprecations, without_tf32

# All in torch since 1.13 (aten::pad is the youngest). A newer torch than the release's makes the
# file; what it calls must be there already.
OLD_OPERATORS = {
    "aten::_convolution",
    "aten::adaptive_avg_pool2d",
    "aten::flatten",
    "aten::max_pool2d",
    "aten::pad",
    "aten::pixel_shuffle",
    "aten::relu",
    "aten::softmax",
    "aten::to",
    "aten::unsqueeze",
}


def export_torchscript(
    module: nn.Module, example: torch.Tensor, graph: Graph, texts: dict[str, str]
) -> bytes:
    """Exports `module`, which must be in evaluation mode.

    Args:
        example: a batch of two; with one the exporters might take the batch for a constant.
        texts: stored as extra files, which `torch::jit::load` reads in C++ too.

    Raises:
        CheckError: it uses an operator that the torch of an older Triton may not have.
    """
    buffer = io.BytesIO()
    # the trace writes the TensorFloat-32 switch into every convolution
    with ignore_deprecations(), torch.inference_mode(), without_tf32():
        traced = torch.jit.trace(module, example)  # type: ignore[no-untyped-call]
        frozen = torch.jit.freeze(traced)
        torch.jit.save(frozen, buffer, _extra_files=texts)
    operators = {node.kind() for node in frozen.graph.nodes() if node.kind().startswith("aten::")}
    if newer := sorted(operators - OLD_OPERATORS):
        raise CheckError(f"{graph.name} uses {newer}, which an older torch may not load")
    return _without_debug_records(buffer.getvalue())


def read_torchscript_texts(data: bytes) -> dict[str, str]:
    """The extra files of an archive; empty for bytes that aren't one."""
    try:
        reader = torch._C.PyTorchFileReader(io.BytesIO(data))
        records = [r for r in reader.get_all_records() if r.startswith("extra/")]
        return {r.removeprefix("extra/"): reader.get_record(r).decode() for r in records}
    except (RuntimeError, UnicodeDecodeError):
        return {}


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
