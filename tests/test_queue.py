"""The queue of a live server: what is too much or too late is refused, not computed.

One batch of the decoder takes BATCH_S here, QUEUE requests may wait for it, QUEUE_S at most. A
request fills a batch, so that none share one: of five at once the last three wait too long.
"""

import http.client
import re
import shutil
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from nin.client import URLS, Client, Protocol
from nin.contract import ENCODED_IMAGE, Contract
from nin.decoder import decode as decode_file
from nin.errors import ServerError
from nin.images import encoded
from nin.serve.configs import CONFIG
from nin.serve.server import PORTS, Server, serve

BATCH_S, QUEUE, QUEUE_S = 3.0, 4, 5.5
# of one that runs and QUEUE that wait: their turns are at 0, 3, 6, 9, 12 s
IN_TIME, TOO_LATE = 2, 3
STARTED_S = 0.5  # until one alone runs: of two at once the second would be on its way, not waiting

LIBRARIES = {"http": tritonclient.http, "grpc": tritonclient.grpc}
PENDING = "nv_inference_pending_request_count"
FAILURES = "nv_inference_request_failure"
DECODER, ENSEMBLE = "small_decode", "small_image"
protocols = pytest.mark.parametrize("protocol", list(URLS))


@pytest.fixture(scope="module")
def slow(
    embedded: None, lenet_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("slow") / "model_repository"
    shutil.copytree(lenet_repository, repository)
    folder = repository / DECODER
    replace(folder / CONFIG, r"max_queue_size: \d+", f"max_queue_size: {QUEUE}")
    replace(
        folder / CONFIG,
        r"default_timeout_microseconds: \d+",
        f"default_timeout_microseconds: {QUEUE_S * 1e6:.0f}",
    )
    replace(folder / CONFIG, r"count: \d+", "count: 1")
    start = r"(def execute\(.*\) -> list\[Any\]:)"
    pause = f"\\1\n        __import__('time').sleep({BATCH_S})"
    replace(folder / "1" / "model.py", start, pause)
    with serve(repository, ports=dict.fromkeys(PORTS, 0)) as server:
        yield server


@pytest.fixture(autouse=True)
def idle(slow: Server, files: NDArray[Any]) -> Iterator[None]:
    """After every test nothing runs and nothing waits."""
    yield
    wait_for(slow, PENDING, 0, QUEUE_S + BATCH_S)
    decode(slow, "http", files)


def replace(path: Path, pattern: str, text: str) -> None:
    changed, count = re.subn(pattern, text, path.read_text())
    assert count == 1
    path.write_text(changed)


@pytest.fixture
def files(lenet: Contract) -> NDArray[Any]:
    """As many as fill a batch."""
    samples = sorted(lenet.samples.path.rglob("*.png"))
    return encoded([path.read_bytes() for path in samples[: lenet.triton.max_batch]])


def request_of(files: NDArray[Any], protocol: Protocol) -> list[Any]:
    name = ENCODED_IMAGE.name
    tensor = LIBRARIES[protocol].InferInput(name, list(files.shape), "BYTES")
    tensor.set_data_from_numpy(files)
    return [tensor]


def decode(server: Server, protocol: Protocol, files: NDArray[Any]) -> NDArray[Any]:
    with Client(getattr(server, protocol), protocol=protocol, retries=0) as client:
        return client.infer(DECODER, {ENCODED_IMAGE.name: files})["pixels"]


def metric(server: Server, name: str, labels: str = "") -> float:
    """The sum over the decoder's versions."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as response:
        text = response.read().decode()
    pattern = rf'^{name}\{{model="{DECODER}",{labels}.*\}} (\S+)$'
    return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))


def executed(server: Server) -> float:
    """How many batches were computed; the server counts one a little after it has answered."""
    time.sleep(0.5)
    return metric(server, "nv_inference_exec_count")


def wait_for(server: Server, name: str, value: float, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while (found := metric(server, name)) != value:
        assert time.monotonic() < deadline, f"{name} is {found}, not {value}"
        time.sleep(0.02)


@contextmanager
def full(
    server: Server, protocol: Protocol, files: NDArray[Any]
) -> Iterator[list[Future[NDArray[Any]]]]:
    """While one request is computed and QUEUE wait."""
    with ThreadPoolExecutor(1 + QUEUE) as pool:
        asked = [pool.submit(decode, server, protocol, files)]
        time.sleep(STARTED_S)
        asked += [pool.submit(decode, server, protocol, files) for _ in range(QUEUE)]
        wait_for(server, PENDING, QUEUE, BATCH_S)
        yield asked


@protocols
def test_a_full_queue_refuses_at_once_and_who_waits_too_long_later(
    slow: Server, protocol: Protocol, files: NDArray[Any], lenet: Contract
) -> None:
    before = executed(slow)
    with full(slow, protocol, files) as asked:
        start = time.monotonic()
        with pytest.raises(ServerError, match="Exceeds maximum queue size") as refused:
            decode(slow, protocol, files)
        assert time.monotonic() - start < BATCH_S / 2
        assert (
            status_of(refused.value) == {"http": "503", "grpc": "StatusCode.UNAVAILABLE"}[protocol]
        )
        wait(asked)
    pixels = [decode_file(file, **lenet.files.describe()) for file in files[:, 0]]
    answered = [future.result() for future in asked if not future.exception()]
    for found in answered:
        np.testing.assert_array_equal(found, pixels)
    late = [future.exception() for future in asked if future.exception()]
    # on a busy machine the first may begin late, and one more is in time
    assert IN_TIME <= len(answered) <= IN_TIME + 1
    assert len(answered) + len(late) == IN_TIME + TOO_LATE
    for error in late:
        assert isinstance(error, ServerError)
        assert "Request timeout expired" in str(error)
        assert status_of(error) == {"http": "503", "grpc": "StatusCode.UNAVAILABLE"}[protocol]
    assert executed(slow) - before == len(answered)


def status_of(error: BaseException) -> str:
    cause = error.__cause__
    assert isinstance(cause, InferenceServerException)
    return str(cause.status())


def test_a_full_step_refuses_for_the_ensemble(slow: Server, files: NDArray[Any]) -> None:
    with full(slow, "http", files), Client(slow.http, retries=0) as client:
        start = time.monotonic()
        with pytest.raises(ServerError, match="Exceeds maximum queue size"):
            client.infer(ENSEMBLE, {ENCODED_IMAGE.name: files[:1]})
        assert time.monotonic() - start < BATCH_S / 2


def test_of_requests_whose_http_client_hung_up_only_those_in_time_are_computed(
    slow: Server, files: NDArray[Any]
) -> None:
    """Triton 24.10 doesn't notice that it is gone; the time that it may wait bounds the work."""
    before = executed(slow)
    body, length = tritonclient.http.InferenceServerClient.generate_request_body(
        request_of(files, "http")
    )
    connections = [http.client.HTTPConnection(slow.http) for _ in range(1 + QUEUE)]
    for connection in connections:
        headers = {"Inference-Header-Content-Length": str(length)}
        connection.request("POST", f"/v2/models/{DECODER}/infer", body, headers)
        time.sleep(STARTED_S / QUEUE)
    wait_for(slow, PENDING, QUEUE, BATCH_S)
    for connection in connections:
        connection.close()
    wait_for(slow, PENDING, 0, QUEUE_S + BATCH_S)
    decode(slow, "http", files)
    assert (
        executed(slow) - before <= IN_TIME + 2
    )  # one more on a busy machine; asked were QUEUE + 2


def test_requests_that_a_grpc_client_cancels_are_dropped(slow: Server, files: NDArray[Any]) -> None:
    before, cancelled = executed(slow), metric(slow, FAILURES, 'reason="CANCELED"')
    client = tritonclient.grpc.InferenceServerClient(slow.grpc)
    calls = []
    for _ in range(1 + QUEUE):
        tensors = request_of(files, "grpc")
        calls.append(client.async_infer(DECODER, tensors, callback=lambda **_: None))
        time.sleep(STARTED_S / QUEUE)
    wait_for(slow, PENDING, QUEUE, BATCH_S)
    for call in calls:
        call.cancel()
    wait_for(slow, PENDING, 0, 2 * BATCH_S)  # they are dropped when the batch before them ends
    decode(slow, "grpc", files)
    assert executed(slow) - before == 2
    assert metric(slow, FAILURES, 'reason="CANCELED"') - cancelled == QUEUE
    client.close()


@protocols
def test_a_request_may_say_that_it_waits_for_less(
    slow: Server, protocol: Protocol, files: NDArray[Any]
) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        LIBRARIES[protocol].InferenceServerClient(getattr(slow, protocol)) as client,
    ):
        before = executed(slow)
        first = pool.submit(decode, slow, protocol, files)
        time.sleep(BATCH_S / 4)
        with pytest.raises(InferenceServerException, match="Request timeout expired"):
            client.infer(DECODER, request_of(files, protocol), timeout=100_000)
        first.result()
        assert executed(slow) - before == 1
