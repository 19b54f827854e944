"""TorchScript, as Triton's pytorch backend and LibTorch run it."""

import io
from typing import Any

import torch
from numpy.typing import NDArray

from nin.artifact.metadata import METADATA_KEYS, Metadata
from nin.contract import Graph, Outputs
from nin.errors import InputError
from nin.network.torch_settings import ignore_deprecations
from nin.runtimes.eager import run_module


class TorchScriptRuntime:
    """Raises InputError where the bytes aren't a TorchScript export of this project."""

    def __init__(self, data: bytes, graph: Graph, *, device: str = "cpu") -> None:
        self._module, texts = load_torchscript(data, device)
        if getattr(self._module, "training", False):  # freezing removes it
            raise InputError("it was saved in training mode; export it again")
        metadata = Metadata.from_texts(texts)
        self.contract = metadata.contract
        self.labels = metadata.labels
        self.weights_sha256 = metadata.weights_sha256
        self.golden = metadata.golden
        self._graph = graph
        self._device = device

    def __call__(self, batch: NDArray[Any]) -> Outputs:
        return run_module(self._module, self._graph, batch, self._device)


def load_torchscript(
    data: bytes, device: str = "cpu"
) -> tuple[torch.jit.ScriptModule, dict[str, str]]:
    """A TorchScript archive's module and the texts it carries as extra files."""
    files: dict[str, Any] = dict.fromkeys(METADATA_KEYS, "")
    try:
        with ignore_deprecations():
            module = torch.jit.load(  # type: ignore[no-untyped-call]
                io.BytesIO(data), map_location=device, _extra_files=files
            )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"not a TorchScript archive: {reason}") from error
    return module, {key: text.decode() for key, text in files.items() if text}
