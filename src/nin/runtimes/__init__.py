"""One small adapter per runtime, all of the same shape, so that the gate can compare them."""

from typing import Any, Protocol

from numpy.typing import NDArray

from nin.artifact.golden import Golden
from nin.contract import Outputs


class Runtime(Protocol):
    """A graph, loaded. Call it with a batch of its input; it answers by output name."""

    contract: dict[str, Any]
    labels: tuple[str, ...]

    @property
    def golden(self) -> Golden | None:
        """None where it carries none, or can't be asked."""

    @property
    def weights_sha256(self) -> str | None:
        """None where it can't be asked."""

    def __call__(self, batch: NDArray[Any]) -> Outputs: ...
