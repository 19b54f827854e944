"""A small typed client of served classifiers, sync and async, over HTTP or gRPC.

It knows no model: names, shapes, batch sizes and labels are those that the server tells.

from nin.client import Client

with Client() as client:  # 127.0.0.1:8000
    for prediction in client.classify(pixels, top=3)[0]:
        print(prediction.label, prediction.probability)
"""

import asyncio
import importlib
import itertools
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv6Address, ip_address
from types import ModuleType, TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import (
    InferenceServerException,
    np_to_triton_dtype,
    triton_to_np_dtype,
)

from nin.contract import Outputs, Tensor
from nin.errors import InputError, ServerError, UnreachableError
from nin.images import encoded

Protocol = Literal["http", "grpc"]
URLS: dict[Protocol, str] = {"http": "127.0.0.1:8000", "grpc": "127.0.0.1:8001"}
TIMEOUT_S = 30.0
RETRIES = 3
IN_FLIGHT = 4  # batches of one asynchronous call: enough for every instance of a model, twice

# The header that a server asks of who loads models: a web page can't send it. Its value is the
# variable NIN_CONTROL_KEY's, for both sides, or without it the one that `nin serve` takes.
CONTROL_HEADER = "nin-control-key"
CONTROL_KEY = "development"

# The parameter of a model that names the one that makes its pixels of files.
DECODER = "decoder"

# The output whose largest values are a classifier's predictions.
PROBABILITIES = "probabilities"

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Prediction:
    """One class of one image; label and probability are the server's."""

    index: int
    label: str
    probability: float


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
        self.url = _checked(URLS[protocol] if url is None else url)
        self._library = importlib.import_module(f"tritonclient.{protocol}")
        self._retries = retries
        timeouts = ("connection_timeout", "network_timeout")
        options, self._timeouts = _options(protocol, self.url, timeouts, timeout_s)
        self._client = self._library.InferenceServerClient(self.url, **options)
        self._known = _Known()
        self._regions = _Regions(self) if shared_memory else None

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
                return self._classify(model, _OF_FILES, array, top)
            parts = [self.infer(decoder.name, inputs) for inputs in decoder.requests(array)]
        return self._classify(model, "", _joined(decoder, parts), top)

    def infer(self, model: str, inputs: dict[str, NDArray[Any]], *, version: str = "") -> Outputs:
        """One request as it is: arrays by input name to arrays by output name."""
        return self._infer(_arrays, model, inputs, version=version)

    def classes(
        self, model: str, inputs: dict[str, NDArray[Any]], *, top: int,
        output: str = PROBABILITIES,
    ) -> list[list[Prediction]]:  # fmt: skip
        """One request for an output's `top` largest values of each image, with the labels."""
        read = partial(_predictions, output=output)
        return self._infer(read, model, inputs, classes_of=output, top=top)

    def load(self, model: str) -> None:
        """Lets the server load the newest version of a model; the one before serves until then."""
        options = {"headers": _control_headers(), **self._timeouts}
        self._call(self._client.load_model, model, **options)

    def metadata(self, model: str) -> dict[str, Any]:
        """Name, versions, inputs and outputs of a model, as the server describes it."""
        return self._described("get_model_metadata", model, read=dict)

    def config(self, model: str) -> dict[str, Any]:
        """A model's whole configuration, as the server runs it."""
        return self._described("get_model_config", model, read=_config)

    def statistics(self, model: str) -> dict[str, Any]:
        """Counts and durations of a model's requests since the server started."""
        return self._described("get_inference_statistics", model, read=_statistics)

    def classifier(self) -> str:
        """The name of the only classifier that the server serves.

        Raises InputError where there is none, or more than one.
        """
        return _only(self._described("get_inference_statistics", "", read=_classifiers), self.url)

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

    def _decoder_of(self, model: str | None) -> "_Served | None":
        """The model that decodes files for another; None where one does both."""
        if model is None:
            return None
        served = self._known.models.get(model) or self._served(model)
        name = served.decoder
        return (self._known.models.get(name) or self._served(name)) if name else None

    def _suited(self, name: str, array: NDArray[Any], top: int) -> "_Served":
        """A model as the server describes it. Raises InputError where it can't take the array."""
        served = self._known.models.get(name)
        if served is None or served.refusal(array, top):  # another may have taken its place
            served = self._served(name)
        return served.checked(array, top)

    def _served(self, name: str) -> "_Served":
        self._known.models[name] = self._described("get_model_config", name, read=_Served.read)
        return self._known.models[name]

    def _infer(
        self, read: Callable[[Any], _Read], model: str, inputs: dict[str, NDArray[Any]], *,
        version: str = "", classes_of: str = "", top: int = 0,
    ) -> _Read:  # fmt: skip
        def ask() -> _Read:
            request = _request(self._library, inputs, classes_of, top, self._regions)
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
        ask = partial(getattr(self._client, method), model, **_as_json(self._library))
        answer: _Read = self._call(lambda: read(ask(**self._timeouts)))
        return answer

    def _call(self, function: Any, *args: Any, **options: Any) -> Any:
        pauses = _pauses(self._retries)
        while True:
            try:
                return function(*args, **options)
            except Exception as error:
                time.sleep(_pause_after(error, self.url, pauses))


class AsyncClient:
    """The same for asyncio; calls may overlap, which is how requests meet in a dynamic batch."""

    def __init__(
        self,
        url: str | None = None,
        *,
        protocol: Protocol = "http",
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
    ) -> None:
        self.url = _checked(URLS[protocol] if url is None else url)
        self._library = importlib.import_module(f"tritonclient.{protocol}.aio")
        self._retries = retries
        options, self._timeouts = _options(protocol, self.url, ("conn_timeout",), timeout_s)
        self._client = self._library.InferenceServerClient(self.url, **options)
        self._known = _Known()

    async def classify(
        self, pixels: NDArray[np.uint8], *, top: int = 1, model: str | None = None
    ) -> list[list[Prediction]]:
        """As Client.classify; a few batches are sent at the same time."""
        return await self._classify(model, "", pixels, top)

    async def classify_files(
        self, files: Sequence[bytes], *, top: int = 1, model: str | None = None
    ) -> list[list[Prediction]]:
        """As Client.classify_files; a few batches are sent at the same time."""
        array = encoded(files)
        with self._known.until_error():
            decoder = await self._decoder_of(model)
            if decoder is None:
                return await self._classify(model, _OF_FILES, array, top)
            decode = partial(self.infer, decoder.name)
            parts = await _few_at_once(decode, decoder.requests(array))
        return await self._classify(model, "", _joined(decoder, parts), top)

    async def classifier(self) -> str:
        """As Client.classifier."""
        read = _classifiers
        return _only(await self._described("get_inference_statistics", "", read=read), self.url)

    async def infer(
        self, model: str, inputs: dict[str, NDArray[Any]], *, version: str = ""
    ) -> Outputs:
        """One request as it is: arrays by input name to arrays by output name."""
        return await self._infer(_arrays, model, inputs, version=version)

    async def close(self) -> None:
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        await self.close()

    async def _classify(
        self, model: str | None, suffix: str, array: NDArray[Any], top: int
    ) -> list[list[Prediction]]:
        with self._known.until_error():
            model = model or await self._only_classifier()
            served = await self._suited(f"{model}{suffix}", array, top)
            return await self._classify_batches(served, array, top)

    async def _classify_batches(
        self, served: "_Served", array: NDArray[Any], top: int
    ) -> list[list[Prediction]]:
        read = partial(_predictions, output=PROBABILITIES)
        ask = partial(self._infer, read, served.name, classes_of=PROBABILITIES, top=top)
        results = await _few_at_once(ask, served.requests(array))
        return [prediction for predictions in results for prediction in predictions]

    async def _only_classifier(self) -> str:
        self._known.classifier = self._known.classifier or await self.classifier()
        return self._known.classifier

    async def _decoder_of(self, model: str | None) -> "_Served | None":
        if model is None:
            return None
        served = self._known.models.get(model) or await self._served(model)
        name = served.decoder
        return (self._known.models.get(name) or await self._served(name)) if name else None

    async def _suited(self, name: str, array: NDArray[Any], top: int) -> "_Served":
        served = self._known.models.get(name)
        if served is None or served.refusal(array, top):  # another may have taken its place
            served = await self._served(name)
        return served.checked(array, top)

    async def _served(self, name: str) -> "_Served":
        served = await self._described("get_model_config", name, read=_Served.read)
        self._known.models[name] = served
        return served

    async def _infer(
        self, read: Callable[[Any], _Read], model: str, inputs: dict[str, NDArray[Any]], *,
        version: str = "", classes_of: str = "", top: int = 0,
    ) -> _Read:  # fmt: skip
        request = _request(self._library, inputs, classes_of, top)
        options = {"model_version": version, **request, **self._timeouts}
        return await self._call(partial(self._client.infer, model, **options), read)

    async def _described(self, method: str, model: str, *, read: Callable[[Any], _Read]) -> _Read:
        options = {**_as_json(self._library), **self._timeouts}
        return await self._call(partial(getattr(self._client, method), model, **options), read)

    async def _call(self, ask: Callable[[], Any], read: Callable[[Any], _Read]) -> _Read:
        pauses = _pauses(self._retries)
        while True:
            try:
                return read(await ask())
            except Exception as error:
                await asyncio.sleep(_pause_after(error, self.url, pauses))


@dataclass(frozen=True)
class _Served:
    """What a server says of one of its models."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int
    decoder: str = ""  # the model that makes its pixels of files, where no ensemble does both

    @classmethod
    def read(cls, answer: Any) -> Self:
        config = _config(answer)
        inputs, outputs = (tuple(map(_tensor, config[key])) for key in ("input", "output"))
        decoder = config.get("parameters", {}).get(DECODER, {}).get("string_value", "")
        return cls(config["name"], inputs, outputs, int(config.get("max_batch_size", 0)), decoder)

    def checked(self, array: NDArray[Any], top: int) -> Self:
        """Raises InputError where the model can't be asked this."""
        if refusal := self.refusal(array, top):
            raise InputError(refusal)
        return self

    @property
    def unfit(self) -> str:
        """Why it is no classifier; empty if it is one."""
        known = any(output.name == PROBABILITIES for output in self.outputs)
        if known and len(self.inputs) == 1 and self.max_batch > 0:
            return ""
        inputs, outputs = (
            ", ".join(t.name for t in tensors) for tensors in (self.inputs, self.outputs)
        )
        return (
            f"{self.name} is no classifier: it makes {outputs} of {inputs} in batches of at most "
            f"{self.max_batch}, expected {PROBABILITIES} of one input in batches"
        )

    def refusal(self, array: NDArray[Any], top: int) -> str:
        """Why it can't be asked for the `top` classes of each item; empty if it can."""
        if self.unfit:
            return self.unfit
        (classes,) = (t.shape[-1] for t in self.outputs if t.name == PROBABILITIES)
        if top < 1 or 0 < classes < top:
            return f"top is {top}, expected 1 to {classes}, as many as {self.name} has classes"
        (expected,) = self.inputs
        sizes = zip(array.shape[1:], expected.shape, strict=False)
        fits = array.ndim == 1 + len(expected.shape) and all(b in (a, -1) for a, b in sizes)
        if array.dtype != expected.dtype or not fits:
            shape = ", ".join(["N", *map(str, expected.shape)])
            found = f"{expected.name} are {array.dtype} {array.shape}"
            return f"{found}, {self.name} expects {expected.dtype} ({shape})"
        return ""

    def requests(self, array: NDArray[Any]) -> list[dict[str, NDArray[Any]]]:
        """The inputs of as many requests as it takes."""
        starts = range(0, len(array), self.max_batch)
        return [{self.inputs[0].name: array[at : at + self.max_batch]} for at in starts]


@dataclass
class _Known:
    """What a server has said of itself."""

    classifier: str | None = None
    models: dict[str, _Served] = field(default_factory=dict)

    @contextmanager
    def until_error(self) -> Iterator[None]:
        """Forgets all of it where the server says no: it may be another one by now."""
        try:
            yield
        except ServerError:
            self.classifier = None
            self.models.clear()
            raise


async def _few_at_once(
    ask: Callable[[dict[str, NDArray[Any]]], Coroutine[Any, Any, _Read]],
    requests: Sequence[dict[str, NDArray[Any]]],
) -> list[_Read]:
    """The answers in order; where one request fails, the others are given up."""
    free = asyncio.Semaphore(IN_FLIGHT)

    async def ask_in_turn(inputs: dict[str, NDArray[Any]]) -> _Read:
        async with free:  # its time runs from here, not while it waits for the others
            return await ask(inputs)

    tasks = [asyncio.create_task(ask_in_turn(inputs)) for inputs in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # one has failed: the server shan't work on the rest for nobody
            task.cancel()


def _joined(decoder: _Served, parts: Sequence[Outputs]) -> NDArray[np.uint8]:
    """The pixels that a decoder made of all files."""
    (output,) = decoder.outputs
    empty = np.empty((0, *output.shape), output.dtype)
    return np.concatenate([empty, *(part[output.name] for part in parts)])


# Beside each classifier a server has a model that takes files; its name ends like this.
_OF_FILES = "_image"


def _config(answer: dict[str, Any]) -> dict[str, Any]:
    return dict(answer.get("config", answer))  # gRPC wraps it


def _statistics(answer: dict[str, Any]) -> dict[str, Any]:
    return dict(answer["model_stats"][0])


def _tensor(described: dict[str, Any]) -> Tensor:
    datatype = described["data_type"].removeprefix("TYPE_").replace("STRING", "BYTES")
    dtype = np.dtype(triton_to_np_dtype(datatype)).name
    return Tensor(described["name"], dtype, tuple(map(int, described.get("dims", []))))


def _classifiers(statistics: dict[str, Any]) -> list[str]:
    """The models that are ready and have another beside them that takes files."""
    names = {model["name"] for model in statistics["model_stats"]}
    return sorted(name for name in names if f"{name}{_OF_FILES}" in names)


def _only(classifiers: Sequence[str], url: str) -> str:
    if len(classifiers) == 1:
        return classifiers[0]
    several = f"several classifiers, {', '.join(classifiers)}"
    none = f"no classifier NAME with a NAME{_OF_FILES} beside it"
    raise InputError(f"{url} serves {several if classifiers else none}; say which by model=")


class _Regions:
    """A region of shared memory for each input, by its name."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._memory = importlib.import_module("tritonclient.utils.shared_memory")
        self._regions: dict[str, _Region] = {}

    def put(self, name: str, array: NDArray[Any]) -> str:
        """Copies an input into its region; returns the region's name."""
        return self._regions.setdefault(name, _Region(self._client, self._memory)).put(array)

    def close(self) -> None:
        while self._regions:
            self._regions.popitem()[1].close()


class _Region:
    """A region of system shared memory that the server knows, replaced when an input needs more."""

    def __init__(self, client: Client, memory: ModuleType) -> None:
        self._client = client
        self._memory = memory  # tritonclient.utils.shared_memory
        self._name = ""
        self._handle: Any = None
        self._size = 0

    def put(self, array: NDArray[Any]) -> str:
        """Copies an input into the region; returns its name."""
        if array.nbytes > self._size:
            self.close()
            self._name = f"nin-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self._handle = self._memory.create_shared_memory_region(
                self._name, self._name, array.nbytes
            )
            self._size = array.nbytes
            self._call("register_system_shared_memory", self._name, self._size)
        self._memory.set_shared_memory_region(self._handle, [array])
        return self._name

    def close(self) -> None:
        if self._handle is None:
            return
        try:
            self._unregister()
        except InputError:
            pass  # the server is gone, and its mapping with it
        finally:
            self._memory.destroy_shared_memory_region(self._handle)
            self._handle, self._size = None, 0

    def _unregister(self) -> None:
        """Triton may hold a region for a moment after its answer, and refuses meanwhile."""
        for pause in _pauses(RETRIES):
            try:
                self._call("unregister_system_shared_memory")
                return
            except ServerError as error:
                if "in use" not in str(error):
                    raise
                time.sleep(pause)

    def _call(self, method: str, *args: Any) -> None:
        function = getattr(self._client._client, method)
        self._client._call(function, self._name, *args, **self._client._timeouts)


def _request(
    library: ModuleType, inputs: dict[str, NDArray[Any]], classes_of: str, top: int,
    regions: _Regions | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The arguments of a library's infer(); all outputs as arrays, or the classes of one."""
    tensors = []
    for name, array in inputs.items():
        tensor = library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        if regions and array.dtype != object and array.nbytes:  # there are no empty regions
            region = regions.put(name, np.ascontiguousarray(array))
            tensor.set_shared_memory(region, array.nbytes)
        else:
            tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    outputs = [library.InferRequestedOutput(classes_of, class_count=top)] if classes_of else None
    return {"inputs": tensors, "outputs": outputs}


def _predictions(result: Any, output: str) -> list[list[Prediction]]:
    """The classification extension's texts: value:index:label."""
    images = result.as_numpy(output)
    return [[_prediction(text.decode()) for text in image] for image in images]


def _prediction(text: str) -> Prediction:
    probability, index, label = text.split(":", 2)
    if not math.isfinite(float(probability)):
        raise ValueError(f"class {index} ({label}) has the probability {probability}")
    return Prediction(int(index), label, float(probability))


def _arrays(result: Any) -> Outputs:
    response = result.get_response()
    if isinstance(response, dict):
        names = [output["name"] for output in response["outputs"]]
    else:
        names = [output.name for output in response.outputs]
    return {name: result.as_numpy(name) for name in names}


def _options(
    protocol: Protocol, url: str, timeouts: Sequence[str], timeout_s: float
) -> tuple[dict[str, Any], dict[str, float]]:
    """What tritonclient takes when it connects, and with each call: gRPC has its timeout there."""
    if protocol == "http":  # its libraries ask no proxy
        return dict.fromkeys(timeouts, timeout_s), {}
    connection = {"channel_args": _UNPROXIED} if is_loopback(url.rpartition(":")[0]) else {}
    return connection, {"client_timeout": timeout_s}


def _as_json(library: ModuleType) -> dict[str, bool]:
    """What makes gRPC describe models in plain data, as HTTP does."""
    return {} if library.__name__.startswith("tritonclient.http") else {"as_json": True}


def control_key() -> str:
    return os.environ.get("NIN_CONTROL_KEY", CONTROL_KEY)


def _control_headers() -> dict[str, str]:
    return {f"{prefix}{CONTROL_HEADER}": control_key() for prefix in ("", "triton-grpc-protocol-")}


def _pauses(retries: int) -> Iterator[float]:
    """Seconds to wait before each retry."""
    return itertools.islice((0.1 * 2**n for n in itertools.count()), retries)


def _pause_after(error: Exception, url: str, pauses: Iterator[float]) -> float:
    """The next pause after a failed connection; raises every other failure, and the last."""
    failure = _failure(error, url)
    pause = next(pauses, None) if isinstance(failure, UnreachableError) else None
    if pause is None:
        raise failure from error
    return pause


def _failure(error: Exception, url: str) -> InputError:
    """A library's exception in this project's terms."""
    unreachable = f"no Triton server at {url} ({{}}); start one with `nin serve`"
    if isinstance(error, InferenceServerException):
        message, status = " ".join(error.message().split()), error.status() or ""
        if status == "StatusCode.DEADLINE_EXCEEDED":
            return InputError(f"no answer from {url} in time")
        if status == "StatusCode.UNAVAILABLE" and any(w in message.lower() for w in _BROKEN):
            return UnreachableError(unreachable.format(message))
        return ServerError(f"{url} answers: {message}")
    if isinstance(error, TimeoutError):
        return InputError(f"no answer from {url} in time")
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in _TRANSPORTS:
        return UnreachableError(unreachable.format(str(error) or type(error).__name__))
    return ServerError(f"{url} gives an answer that can't be read: {error or type(error).__name__}")


# gRPC's own words for UNAVAILABLE; Triton says it too, of a model or a full queue.
_BROKEN = ("connect", "socket", "transport", "dns", "resolving", "goaway", "broken pipe")

# Triton's words for a region that was registered with the server before it was restarted.
_UNKNOWN_REGION = "unable to find shared memory region"

# Channel arguments replace tritonclient's own, so its unlimited messages are among them.
_UNPROXIED = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)

# What tritonclient lets through of the HTTP libraries below it.
_TRANSPORTS = ("aiohttp", "gevent", "geventhttpclient")


# A name or an IPv4 address, or an IPv6 address in brackets; the port.
_ADDRESS = re.compile(
    r"(?:[A-Z0-9_-]{1,63}(?:\.[A-Z0-9_-]{1,63})*\.?|\[(?P<v6>[^]]*)\]):(?P<port>[0-9]{1,5})", re.I
)


def _checked(url: str) -> str:
    found = _ADDRESS.fullmatch(url) if url.isascii() else None
    try:
        if found is None or not 0 < int(found["port"]) < 2**16:
            raise ValueError
        if found["v6"] is not None:
            IPv6Address(found["v6"])
    except ValueError as error:
        raise InputError(
            f"{url!r} isn't a server's address; write HOST:PORT, as in {URLS['http']} or [::1]:8000"
        ) from error
    return url


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name; what only DNS knows isn't asked for."""
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified
