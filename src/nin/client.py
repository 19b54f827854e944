"""A small typed client of the served models, sync and async, over HTTP or gRPC.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address, ip_address
from types import ModuleType, TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
import tritonclient.utils.shared_memory as shm
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from nin.contract import ENCODED_IMAGE, FASHION_MNIST, FASHION_MNIST_IMAGE, MAX_BATCH, PROBABILITIES
from nin.errors import InputError, ServerError, UnreachableError
from nin.images import encoded
from nin.reference import Outputs

Protocol = Literal["http", "grpc"]
URLS: dict[Protocol, str] = {"http": "127.0.0.1:8000", "grpc": "127.0.0.1:8001"}
TIMEOUT_S = 30.0
RETRIES = 3
IN_FLIGHT = 4  # batches of one asynchronous call: enough for every instance of a model, twice

# The header that a server asks of who loads models: a web page can't send it. Its value is the
# variable NIN_CONTROL_KEY's, for both sides, or without it the one that `make serve` takes.
CONTROL_HEADER = "nin-control-key"
CONTROL_KEY = "development"

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
        self._regions = _Regions(self) if shared_memory else None

    def classify(
        self, pixels: NDArray[np.uint8], *, top: int = 1, model: str = FASHION_MNIST.name
    ) -> list[list[Prediction]]:
        """The `top` most probable classes of each image, the best first.

        Args:
            pixels: (N, 28, 28), any N: it is sent in batches.
            model: fashion_mnist or fashion_mnist_torchscript.
        """
        batches = split(_checked_pixels(pixels))
        name = FASHION_MNIST.input.name
        return [p for batch in batches for p in self.classes(model, {name: batch}, top=top)]

    def classify_files(
        self, files: Sequence[bytes], *, top: int = 1, model: str = FASHION_MNIST_IMAGE.name
    ) -> list[list[Prediction]]:
        """The same for the contents of PNG or JPEG files, which the server decodes."""
        batches = split(encoded(files))
        name = ENCODED_IMAGE.name
        return [p for batch in batches for p in self.classes(model, {name: batch}, top=top)]

    def infer(self, model: str, inputs: dict[str, NDArray[Any]], *, version: str = "") -> Outputs:
        """One request as it is: arrays by input name to arrays by output name."""
        return self._infer(_arrays, model, inputs, version=version)

    def classes(
        self, model: str, inputs: dict[str, NDArray[Any]], *, top: int,
        output: str = PROBABILITIES.name,
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
        return self._described("get_model_metadata", model)

    def config(self, model: str) -> dict[str, Any]:
        """A model's whole configuration, as the server runs it."""
        found = self._described("get_model_config", model)
        inner: dict[str, Any] = found.get("config", found)  # gRPC wraps it
        return inner

    def statistics(self, model: str) -> dict[str, Any]:
        """Counts and durations of a model's requests since the server started."""
        found = self._described("get_inference_statistics", model)
        statistics: dict[str, Any] = found["model_stats"][0]
        return statistics

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

    def _described(self, method: str, model: str) -> dict[str, Any]:
        as_json = {} if self._library.__name__.endswith("http") else {"as_json": True}
        options = {**as_json, **self._timeouts}
        found: dict[str, Any] = self._call(getattr(self._client, method), model, **options)
        return found

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

    async def classify(
        self, pixels: NDArray[np.uint8], *, top: int = 1, model: str = FASHION_MNIST.name
    ) -> list[list[Prediction]]:
        """As Client.classify; a few batches are sent at the same time."""
        name = FASHION_MNIST.input.name
        return await self._classify(model, name, split(_checked_pixels(pixels)), top)

    async def classify_files(
        self, files: Sequence[bytes], *, top: int = 1, model: str = FASHION_MNIST_IMAGE.name
    ) -> list[list[Prediction]]:
        """As Client.classify_files; a few batches are sent at the same time."""
        return await self._classify(model, ENCODED_IMAGE.name, split(encoded(files)), top)

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
        self, model: str, name: str, batches: list[NDArray[Any]], top: int
    ) -> list[list[Prediction]]:
        output = PROBABILITIES.name
        read = partial(_predictions, output=output)
        free = asyncio.Semaphore(IN_FLIGHT)

        async def ask(batch: NDArray[Any]) -> list[list[Prediction]]:
            async with free:  # its time runs from here, not while it waits for the others
                return await self._infer(read, model, {name: batch}, classes_of=output, top=top)

        tasks = [asyncio.create_task(ask(batch)) for batch in batches]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # one has failed: the server shan't work on the rest for nobody
                task.cancel()
        return [prediction for predictions in results for prediction in predictions]

    async def _infer(
        self, read: Callable[[Any], _Read], model: str, inputs: dict[str, NDArray[Any]], *,
        version: str = "", classes_of: str = "", top: int = 0,
    ) -> _Read:  # fmt: skip
        request = _request(self._library, inputs, classes_of, top)
        options = {"model_version": version, **request, **self._timeouts}
        pauses = _pauses(self._retries)
        while True:
            try:
                return read(await self._client.infer(model, **options))
            except Exception as error:
                await asyncio.sleep(_pause_after(error, self.url, pauses))


class _Regions:
    """A region of shared memory for each input, by its name."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._regions: dict[str, _Region] = {}

    def put(self, name: str, array: NDArray[Any]) -> str:
        """Copies an input into its region; returns the region's name."""
        return self._regions.setdefault(name, _Region(self._client)).put(array)

    def close(self) -> None:
        while self._regions:
            self._regions.popitem()[1].close()


class _Region:
    """A region of system shared memory that the server knows, replaced when an input needs more."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._name = ""
        self._handle: Any = None
        self._size = 0

    def put(self, array: NDArray[Any]) -> str:
        """Copies an input into the region; returns its name."""
        if array.nbytes > self._size:
            self.close()
            self._name = f"nin-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self._handle = shm.create_shared_memory_region(self._name, self._name, array.nbytes)
            self._size = array.nbytes
            self._call("register_system_shared_memory", self._name, self._size)
        shm.set_shared_memory_region(self._handle, [array])
        return self._name

    def close(self) -> None:
        if self._handle is None:
            return
        try:
            self._unregister()
        except InputError:
            pass  # the server is gone, and its mapping with it
        finally:
            shm.destroy_shared_memory_region(self._handle)
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


def split(array: NDArray[Any]) -> list[NDArray[Any]]:
    """Cut into batches that the server takes."""
    return [array[start : start + MAX_BATCH] for start in range(0, len(array), MAX_BATCH)]


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
    unreachable = f"no Triton server at {url} ({{}}); start one with `make serve`"
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


def _checked_pixels(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    expected = FASHION_MNIST.input
    if pixels.dtype != expected.dtype or pixels.shape[1:] != expected.shape:
        raise InputError(
            f"pixels are {pixels.dtype} {pixels.shape}, expected {expected.dtype} (N, 28, 28)"
        )
    return pixels
