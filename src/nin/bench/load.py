"""A closed loop: callers that ask again as soon as they have their answer. No torch."""

import http.client
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any

import grpc
import numpy as np
import tritonclient.http
from numpy.typing import NDArray
from tritonclient.grpc.service_pb2 import ModelInferRequest
from tritonclient.utils import np_to_triton_dtype

from nin.client import Protocol
from nin.contract import Model
from nin.errors import CheckError

Call = Callable[[], object]

MOST_CALLS = 20_000  # of all callers; then a measurement ends before its time
TIMEOUT_S = 60.0
_POLL_S = 0.002


@dataclass(frozen=True)
class Measured:
    images_per_s: float
    p50_ms: float
    p95_ms: float


def measure(calls: Sequence[Call], batch: int, seconds: float) -> Measured:
    """Runs every call in a thread of its own, again and again.

    The first answer of each is warm-up. It takes longer than `seconds` where a caller has had no
    second answer by then.

    Args:
        batch: images in each call.

    Raises whatever a call raises.
    """
    spans: list[list[tuple[float, float]]] = [[] for _ in calls]
    stop = Event()

    def repeat(call: Call, own: list[tuple[float, float]]) -> None:
        while not stop.is_set():
            begin = time.perf_counter()
            call()
            own.append((begin, time.perf_counter()))

    def is_enough() -> bool:
        over = time.perf_counter() >= start + seconds or sum(map(len, spans)) >= MOST_CALLS
        return over and all(own[-1][1] > start for own in spans)

    def wait(ready: Callable[[], bool]) -> float:
        while not ready() and not any(caller.done() for caller in callers):
            time.sleep(_POLL_S)
        return time.perf_counter()

    with ThreadPoolExecutor(len(calls)) as pool:
        callers = [pool.submit(repeat, *pair) for pair in zip(calls, spans, strict=True)]
        try:
            start = wait(lambda: all(spans))
            end = wait(is_enough)
        finally:
            stop.set()
    for caller in callers:
        caller.result()
    return _summary(spans, start, end, batch)


def _summary(
    spans: list[list[tuple[float, float]]], start: float, end: float, batch: int
) -> Measured:
    """The callers' rates together, each from an answer to an answer: exact for few calls too."""
    rate, ms = 0.0, []
    for own in spans:
        timed = [(a, b) for a, b in own if start < b <= end]
        before = max(b for _, b in own if b <= start)
        rate += batch * len(timed) / (timed[-1][1] - before)
        ms += [1000 * (b - a) for a, b in timed]
    p50, p95 = np.percentile(ms, (50, 95)).tolist()
    return Measured(rate, p50, p95)


# Requests as bare as they get: the load shares the cores with the server that it measures.


def prepare_http(url: str, model: Model, batch: NDArray[Any]) -> Call:
    """Posts the same request over a connection of its own, which ends with the call."""
    connection = http.client.HTTPConnection(url, timeout=TIMEOUT_S)
    tensor = tritonclient.http.InferInput(
        model.graph.input.name, list(batch.shape), np_to_triton_dtype(batch.dtype)
    )
    tensor.set_data_from_numpy(batch)
    body, size = tritonclient.http.InferenceServerClient.generate_request_body([tensor])
    headers = {"Inference-Header-Content-Length": str(size)}

    def call() -> None:
        connection.request("POST", f"/v2/models/{model.name}/infer", body, headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != http.client.OK:
            reason = text[:200].decode(errors="replace")
            raise CheckError(f"{model.name} answers {answer.status}: {reason}")

    weakref.finalize(call, connection.close)
    return call


def prepare_grpc(url: str, model: Model, batch: NDArray[Any]) -> Call:
    """The same by gRPC."""
    channel = grpc.insecure_channel(url, options=[("grpc.use_local_subchannel_pool", 1)])
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    datatype = np_to_triton_dtype(batch.dtype)
    request = ModelInferRequest(
        model_name=model.name,
        inputs=[{"name": model.graph.input.name, "datatype": datatype, "shape": batch.shape}],
        raw_input_contents=[batch.tobytes()],
    ).SerializeToString()

    def call() -> None:
        try:
            infer(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise CheckError(f"{model.name} answers {error.code()}: {error.details()}") from error

    weakref.finalize(call, channel.close)
    return call


PREPARE: dict[Protocol, Callable[[str, Model, NDArray[Any]], Call]] = {
    "http": prepare_http,
    "grpc": prepare_grpc,
}
