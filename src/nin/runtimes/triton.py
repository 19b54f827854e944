"""A model behind a Triton server, over HTTP or gRPC, as a client of it sees it."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nin.client import Client, Protocol
from nin.contract import BATCH, ENCODED_IMAGE, Graph, Model, Outputs
from nin.images import encode_png, encoded

SERVER_RUNTIMES: dict[str, Protocol] = {
    "triton-http": "http",
    "triton-grpc": "grpc",
    "triton-cpp": "http",  # the C++ client, nin.runtimes.cpp
}

_DTYPES = {"BYTES": "object", "FP32": "float32", "UINT8": "uint8"}


class TritonRuntime:
    """May be called from several threads: each gets a connection of its own.

    Args:
        protocol: "http" or "grpc".
        weights_sha256: what the published version was exported from; None where the server isn't
            ours and can't be asked.
    """

    def __init__(
        self, url: str, model: Model, weights_sha256: str | None, *, protocol: Protocol
    ) -> None:
        self._url = url
        self._protocol = protocol
        self._clients = threading.local()
        self._model = model
        self.weights_sha256 = weights_sha256
        self.golden = None
        self.contract = self._describe()
        self.labels = self._labels()

    def __call__(self, batch: NDArray[Any]) -> Outputs:
        outputs = self._client.infer(self._model.name, {self._model.graph.input.name: batch})
        # the protocol is by name; an ensemble answers in the order in which its steps end
        return {t["name"]: outputs[t["name"]] for t in self.contract["outputs"]}

    @property
    def _client(self) -> Client:
        if not hasattr(self._clients, "client"):
            self._clients.client = Client(self._url, protocol=self._protocol)
        client: Client = self._clients.client
        return client

    def _describe(self) -> dict[str, Any]:
        """The contract in the form of Graph.signature(), from what the server says of its model."""

        def tensor(found: dict[str, Any]) -> dict[str, Any]:
            shape = [int(d) for d in found["shape"]]
            return {
                "name": found["name"],
                "dtype": _DTYPES.get(found["datatype"], found["datatype"]),
                "shape": [BATCH if d == -1 else d for d in shape],
            }

        metadata = self._client.metadata(self._model.name)
        return {
            "graph": self._model.graph.name,
            "input": tensor(metadata["inputs"][0]),
            "outputs": [tensor(t) for t in metadata["outputs"]],
            "max_batch": self._client.config(self._model.name)["max_batch_size"],
        }

    def _labels(self) -> tuple[str, ...]:
        """The server's labels, by its classification extension on a black image."""
        graph = self._model.graph
        black = {graph.input.name: _black_image(graph)}
        output = graph.outputs[-1]
        found = self._client.classes(
            self._model.name, black, top=output.shape[0], output=output.name
        )[0]
        return tuple(prediction.label for prediction in sorted(found, key=lambda p: p.index))


def _black_image(graph: Graph) -> NDArray[Any]:
    if graph.input == ENCODED_IMAGE:
        return encoded([encode_png(np.zeros((32, 32), np.uint8))])
    return np.zeros((1, *graph.input.shape), graph.input.dtype)
