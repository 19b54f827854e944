"""The client for programs that wait for each answer."""

import importlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from nin.client.connection import (
    RETRIES,
    TIMEOUT_S,
    URLS,
    Protocol,
    check_url,
    connection_options,
    control_headers,
    pause_after,
    retry_pauses,
)
from nin.client.messages import Prediction, make_request, read_arrays, read_predictions
from nin.client.served import (
    OF_FILES,
    PROBABILITIES,
    Known,
    Served,
    as_json,
    join_pixels,
    only_classifier,
    read_classifiers,
    read_config,
    read_statistics,
)
from nin.client.shared_memory import Regions
from nin.contract import Outputs, Tensor
from nin.errors import InputError, ServerError
from nin.images import encoded

_Read = TypeVar("_Read")

# Triton's words for a region that was registered with the server before it was restarted.
_UNKNOWN_REGION = "unable to find shared memory region"


class Client:
    """Talks to one server. Calls must not overlap: one object per thread.

    Args:
        url: host:port, an IPv6 address in brackets; URLS has the default of each protocol.
            A proxy of the environment is never asked for a server on this machine.
        timeout_s: for connecting and for each answer.
        retries: how often a call whose connection failed is tried again, with growing pauses. An
            answer, an error of the server among them, is never asked for twice.
        shared_memory: pixels and images go through regions of shared memory, one for each input,
            instead of the request; only for a server on the same machine.

    What a model takes is asked for once, and again after the server has said no: it may have been
    started anew with other models.

    Every method raises UnreachableError where there is no answer, ServerError with the server's
    own text where it says no, and InputError for a url or pixels that can't be right.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        protocol: Protocol = "http",
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        shared_memory: bool = False,
    ) -> None:
        self.url = check_url(URLS[protocol] if url is None else url)
        self._library = importlib.import_module(f"tritonclient.{protocol}")
        self._retries = retries
        timeouts = ("connection_timeout", "network_timeout")
        options, self._timeouts = connection_options(protocol, self.url, timeouts, timeout_s)
        self._client = self._library.InferenceServerClient(self.url, **options)
        self._known = Known()
        self._regions = Regions(self._call_method) if shared_memory else None

    def classify(
        self, pixels: NDArray[np.uint8], *, top: int = 1, model: str | None = None
    ) -> list[list[Prediction]]:
        """The `top` most probable classes of each image, the best first.

        Args:
            pixels: (N, height, width) grey or (N, height, width, 3) RGB, any N: it is sent in
                batches.
            model: a classifier; the only one that the server serves, if not given.
        """
        return self._classify(model, "", pixels, top)

    def classify_files(
        self, files: Sequence[bytes], *, top: int = 1, model: str | None = None
    ) -> list[list[Prediction]]:
        """The same for the contents of PNG or JPEG files, which the server decodes.

        Args:
            model: the classifier, as for `classify`.
        """
        array = encoded(files)
        with self._known.until_error():
            decoder = self._decoder_of(model)
            if decoder is None:
                return self._classify(model, OF_FILES, array, top)
            parts = [self.infer(decoder.name, inputs) for inputs in decoder.requests(array)]
        return self._classify(model, "", join_pixels(decoder, parts), top)

    def infer(self, model: str, inputs: dict[str, NDArray[Any]], *, version: str = "") -> Outputs:
        """One request as it is: arrays by input name to arrays by output name."""
        return self._infer(read_arrays, model, inputs, version=version)

    def classes(
        self, model: str, inputs: dict[str, NDArray[Any]], *, top: int,
        output: str = PROBABILITIES,
    ) -> list[list[Prediction]]:  # fmt: skip
        """One request for an output's `top` largest values of each image, with the labels."""
        read = partial(read_predictions, output=output)
        return self._infer(read, model, inputs, classes_of=output, top=top)

    def load(self, model: str) -> None:
        """Lets the server load the newest version of a model; the one before serves until then."""
        options = {"headers": control_headers(), **self._timeouts}
        self._call(self._client.load_model, model, **options)

    def metadata(self, model: str) -> dict[str, Any]:
        """Name, versions, inputs and outputs of a model, as the server describes it."""
        return self._described("get_model_metadata", model, read=dict)

    def config(self, model: str) -> dict[str, Any]:
        """A model's whole configuration, as the server runs it."""
        return self._described("get_model_config", model, read=read_config)

    def statistics(self, model: str) -> dict[str, Any]:
        """Counts and durations of a model's requests since the server started."""
        return self._described("get_inference_statistics", model, read=read_statistics)

    def classifier(self) -> str:
        """The name of the only classifier that the server serves.

        Raises InputError where there is none, or more than one.
        """
        return only_classifier(
            self._described("get_inference_statistics", "", read=read_classifiers), self.url
        )

    def pixels(self, model: str | None = None) -> Tensor:
        """What `classify` takes for a model: its name, dtype and the shape of one image."""
        with self._known.until_error():
            served = self._served(model or self._only_classifier())
        if served.unfit:
            raise InputError(served.unfit)
        return served.inputs[0]

    def close(self) -> None:
        if self._regions:
            self._regions.close()
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def _classify(
        self, model: str | None, suffix: str, array: NDArray[Any], top: int
    ) -> list[list[Prediction]]:
        with self._known.until_error():
            model = model or self._only_classifier()
            served = self._suited(f"{model}{suffix}", array, top)
            requests = served.requests(array)
            return [p for inputs in requests for p in self.classes(served.name, inputs, top=top)]

    def _only_classifier(self) -> str:
        self._known.classifier = self._known.classifier or self.classifier()
        return self._known.classifier

    def _decoder_of(self, model: str | None) -> Served | None:
        """The model that decodes files for another; None where one does both."""
        if model is None:
            return None
        served = self._known.models.get(model) or self._served(model)
        name = served.decoder
        return (self._known.models.get(name) or self._served(name)) if name else None

    def _suited(self, name: str, array: NDArray[Any], top: int) -> Served:
        """A model as the server describes it. Raises InputError where it can't take the array."""
        served = self._known.models.get(name)
        if served is None or served.refusal(array, top):  # another may have taken its place
            served = self._served(name)
        return served.checked(array, top)

    def _served(self, name: str) -> Served:
        self._known.models[name] = self._described("get_model_config", name, read=Served.read)
        return self._known.models[name]

    def _infer(
        self, read: Callable[[Any], _Read], model: str, inputs: dict[str, NDArray[Any]], *,
        version: str = "", classes_of: str = "", top: int = 0,
    ) -> _Read:  # fmt: skip
        def ask() -> _Read:
            request = make_request(self._library, inputs, classes_of, top, self._regions)
            options = {"model_version": version, **request, **self._timeouts}
            answer: _Read = self._call(lambda: read(self._client.infer(model, **options)))
            return answer

        try:
            return ask()
        except ServerError as error:
            if self._regions is None or _UNKNOWN_REGION not in str(error).lower():
                raise
            self._regions.close()  # the server was restarted and knows none of them
            return ask()

    def _described(self, method: str, model: str, *, read: Callable[[Any], _Read]) -> _Read:
        ask = partial(getattr(self._client, method), model, **as_json(self._library))
        answer: _Read = self._call(lambda: read(ask(**self._timeouts)))
        return answer

    def _call_method(self, name: str, *args: Any) -> Any:
        return self._call(getattr(self._client, name), *args, **self._timeouts)

    def _call(self, function: Any, *args: Any, **options: Any) -> Any:
        pauses = retry_pauses(self._retries)
        while True:
            try:
                return function(*args, **options)
            except Exception as error:
                time.sleep(pause_after(error, self.url, pauses))
