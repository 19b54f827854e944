"""The contract: names, shapes, dtypes, labels and tolerances, written once."""

from dataclasses import dataclass
from typing import Any

LABELS: tuple[str, ...] = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# Name of the dynamic first dimension of every tensor.
BATCH = "batch"

# The largest batch that is promised, tested and configured in the server.
MAX_BATCH = 64

# The batch sizes for which the parity gate checks names, dtypes and shapes.
BATCH_SIZES = (1, 2, 3, 7, 16, MAX_BATCH)

# A runtime may be off by this many times the error that float32 eager makes itself: it may add
# the same products in any order, and nothing else. Measured: docs/parity.md.
BUDGET_FACTOR = 8

# The first so many test images travel in every artifact with their reference logits.
GOLDEN_IMAGES = 32


@dataclass(frozen=True)
class Tensor:
    """One input or output; `shape` is that of one item, the dynamic batch comes before it."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """What goes into an export and what comes out of it."""

    name: str
    input: Tensor
    outputs: tuple[Tensor, ...]

    def describe(self) -> dict[str, Any]:
        """The graph as plain data, the form in which every artifact carries it."""

        def tensor(t: Tensor) -> dict[str, Any]:
            return {"name": t.name, "dtype": t.dtype, "shape": [BATCH, *t.shape]}

        return {
            "graph": self.name,
            "input": tensor(self.input),
            "outputs": [tensor(t) for t in self.outputs],
            "max_batch": MAX_BATCH,
        }


LOGITS = Tensor("logits", "float32", (len(LABELS),))
PROBABILITIES = Tensor("probabilities", "float32", (len(LABELS),))

# The network of the book; pixel values in [0, 1].
NIN = Graph("nin", Tensor("image", "float32", (1, 224, 224)), (LOGITS,))

# What an application wants: raw pixels in, probabilities out.
FASHION_MNIST = Graph("fashion_mnist", Tensor("pixels", "uint8", (28, 28)), (LOGITS, PROBABILITIES))

GRAPHS = {graph.name: graph for graph in (NIN, FASHION_MNIST)}

# The graphs that exist only in the server: PNG or JPEG files in, one to an element.
ENCODED_IMAGE = Tensor("encoded_image", "object", (1,))
DECODE_IMAGE = Graph("decode_image", ENCODED_IMAGE, (FASHION_MNIST.input,))
FASHION_MNIST_IMAGE = Graph("fashion_mnist_image", ENCODED_IMAGE, FASHION_MNIST.outputs)


@dataclass(frozen=True)
class Model:
    """One model of the Triton repository."""

    name: str
    graph: Graph
    backend: str
    format: str | None = None  # suffix of the artifact it serves, if it serves one

    @property
    def filename(self) -> str:
        """What the official backend looks for in a version's folder."""
        return f"model{self.format}"


MODELS = (
    Model("nin_onnx", NIN, "onnxruntime", ".onnx"),
    Model("nin_torchscript", NIN, "pytorch", ".pt"),
    Model("fashion_mnist", FASHION_MNIST, "onnxruntime", ".onnx"),
    Model("fashion_mnist_torchscript", FASHION_MNIST, "pytorch", ".pt"),
    Model("decode_image", DECODE_IMAGE, "python"),
    Model("fashion_mnist_image", FASHION_MNIST_IMAGE, "ensemble"),
)
