"""The client class and `nin classify`, against the live server and against worse ones."""

import asyncio
import errno
import gzip
import json
import os
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from nin.client import IN_FLIGHT, URLS, AsyncClient, Client, Prediction, Protocol
from nin.client.connection import connection_options, control_key, is_loopback
from nin.contract import Contract
from nin.errors import InputError, ServerError, UnreachableError
from nin.images import encode_png
from nin.paths import DATA, NIN
from nin.serve.server import Server
from tests.conftest import Script

Pixels = NDArray[np.uint8]
IDX = DATA / "fashion-mnist" / "t10k-images-idx3-ubyte.gz"

protocols = pytest.mark.parametrize("protocol", list(URLS))


def indices(predictions: list[list[Prediction]]) -> list[int]:
    return [image[0].index for image in predictions]


@protocols
@pytest.mark.parametrize("shared_memory", [False, True])
def test_more_images_than_a_batch_holds(
    server: Server, pixels: Pixels, labels: Pixels, protocol: Protocol, shared_memory: bool
) -> None:
    url = getattr(server, protocol)
    with Client(url, protocol=protocol, shared_memory=shared_memory) as client:
        few = client.classify(pixels[:3])  # the region must grow after this
        found = client.classify(pixels[:150])
    assert indices(found)[:3] == indices(few)
    assert np.mean(indices(found) == labels[:150]) > 0.9


@protocols
def test_predictions_are_the_best_first_with_the_servers_labels(
    server: Server, contract: Contract, pixels: Pixels, protocol: Protocol
) -> None:
    with Client(getattr(server, protocol), protocol=protocol) as client:
        (image,) = client.classify(pixels[:1], top=10)
        raw = client.infer("fashion_mnist", {"pixels": pixels[:1]})["probabilities"][0]
    assert [p.index for p in image] == raw.argsort()[::-1].tolist()
    assert [p.label for p in image] == [contract.labels[p.index] for p in image]
    assert [p.probability for p in image] == pytest.approx(np.sort(raw)[::-1], abs=1e-6)


@protocols
def test_async_calls_overlap(
    server: Server, pixels: Pixels, labels: Pixels, protocol: Protocol
) -> None:
    async def run() -> tuple[list[list[Prediction]], list[list[Prediction]]]:
        async with AsyncClient(getattr(server, protocol), protocol=protocol) as client:
            files = [encode_png(image) for image in pixels[:70]]
            first, second = await asyncio.gather(
                client.classify(pixels[:100]), client.classify_files(files)
            )
            assert (await client.infer("fashion_mnist", {"pixels": pixels[:2]}))["logits"].any()
            return first, second

    first, second = asyncio.run(run())
    assert np.mean(indices(first) == labels[:100]) > 0.9
    assert indices(second) == indices(first)[:70]


@protocols
def test_async_errors_are_the_servers(server: Server, protocol: Protocol) -> None:
    async def run() -> None:
        async with AsyncClient(getattr(server, protocol), protocol=protocol) as client:
            await client.infer("resnet", {"pixels": np.zeros((1, 28, 28), np.uint8)})

    with pytest.raises(ServerError, match="unknown model: 'resnet'"):
        asyncio.run(run())


def test_shared_memory_is_given_back(server: Server, pixels: Pixels) -> None:
    def regions() -> set[Path]:
        return set(Path("/dev/shm").glob("nin-*"))  # noqa: S108

    before = regions()
    with Client(server.http, shared_memory=True) as client:
        client.classify(pixels[:1])
        assert regions() - before
    assert not regions() - before


def test_a_region_that_the_server_still_holds_is_given_back_a_moment_later(
    server: Server, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton refuses to let go of a region right after its answer, now and then."""
    with Client(server.grpc, protocol="grpc", shared_memory=True) as client:
        unregister = client._client.unregister_system_shared_memory
        refusals = iter(range(2))

        def busy(name: str, **options: object) -> None:
            if next(refusals, None) is not None:
                raise InferenceServerException(f"Cannot unregister '{name}', it is in use.")
            unregister(name, **options)

        monkeypatch.setattr(client._client, "unregister_system_shared_memory", busy)
        client.classify(pixels[:1])
        client.classify(pixels[:2])  # the region grows, so the first one goes
        held = client._client.get_system_shared_memory_status().regions
        assert next(refusals, None) is None
        assert len(held) == 1


@pytest.fixture
def full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No room for more than 1,000 bytes at a time."""
    reserve = os.posix_fallocate

    def limited(descriptor: int, offset: int, size: int) -> None:
        if size > 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", limited)


def test_full_shared_memory_is_an_error_and_leaves_nothing(
    server: Server, pixels: Pixels, full_memory: None
) -> None:
    with Client(server.http, shared_memory=True) as client:
        before = client.classify(pixels[:1])
        with pytest.raises(
            InputError,
            match=r"no region of 1568 bytes in /dev/shm: .*No space left.*; free some .*--shm-size",
        ):
            client.classify(pixels[:2])
        assert not list(Path("/dev/shm").glob(f"nin-{os.getpid()}-*"))  # noqa: S108
        assert client._client.get_system_shared_memory_status() == []
        assert client.classify(pixels[:1]) == before


def test_a_region_that_can_not_be_made_is_an_error(
    server: Server, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(server.http, shared_memory=True) as client:
        assert client._regions
        memory = client._regions._memory

        def refuse(*_: object) -> None:
            raise memory.SharedMemoryException("unable to create") from OSError("no")

        monkeypatch.setattr(memory, "create_shared_memory_region", refuse)
        with pytest.raises(InputError, match="no region of 784 bytes in /dev/shm: no; free"):
            client.classify(pixels[:1])


def test_a_region_that_the_server_refuses_leaves_nothing(
    server: Server, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(server.http, shared_memory=True) as client:
        register = client._client.register_system_shared_memory

        def refuse(*_: object, **options: object) -> None:
            raise InferenceServerException("no")

        monkeypatch.setattr(client._client, "register_system_shared_memory", refuse)
        with pytest.raises(ServerError, match="answers: no"):
            client.classify(pixels[:1])
        assert not list(Path("/dev/shm").glob(f"nin-{os.getpid()}-*"))  # noqa: S108
        monkeypatch.setattr(client._client, "register_system_shared_memory", register)
        assert indices(client.classify(pixels[:1])) == [9]


@protocols
def test_a_server_that_was_restarted_is_told_of_the_regions_again(
    server: Server, pixels: Pixels, protocol: Protocol
) -> None:
    with Client(getattr(server, protocol), protocol=protocol, shared_memory=True) as client:
        before = client.classify(pixels[:3])
        assert client._regions
        for region in client._regions._regions.values():
            region._unregister()  # a new server doesn't know it
            assert region._name not in str(client._client.get_system_shared_memory_status())
        assert client.classify(pixels[:3]) == before
        assert client.classify(pixels[:100])[:3] == before


def test_every_input_has_a_region_of_its_own(server: Server) -> None:
    first, second = np.full((1, 9), 7, np.uint8), np.full((1, 5), 3, np.uint8)
    with Client(server.http, shared_memory=True) as client:
        assert client._regions
        names = [client._regions.put(*one) for one in (("a", first), ("b", second))]
        contents = [Path("/dev/shm", name).read_bytes() for name in names]  # noqa: S108
    assert contents == [first.tobytes(), second.tobytes()]


@protocols
@pytest.mark.parametrize("shared_memory", [False, True])
def test_a_request_without_images_is_refused_by_the_server(
    server: Server, protocol: Protocol, shared_memory: bool
) -> None:
    url = getattr(server, protocol)
    with (
        Client(url, protocol=protocol, shared_memory=shared_memory) as client,
        pytest.raises(ServerError, match=f"{url} answers: "),
    ):
        client.infer("fashion_mnist", {"pixels": np.zeros((0, 28, 28), np.uint8)})


@protocols
def test_the_server_tells_what_a_classifier_takes(
    server: Server, contract: Contract, protocol: Protocol
) -> None:
    with Client(getattr(server, protocol), protocol=protocol) as client:
        assert client.classifier() == contract.name
        assert client.pixels() == contract.classifier_graph.input
        with pytest.raises(InputError, match=r"nin_onnx is no classifier: it makes logits of imag"):
            client.pixels("nin_onnx")


@protocols
@pytest.mark.parametrize(
    ("images", "top", "name", "message"),
    [
        (np.zeros((1, 28, 28), np.float32), 1, None, r"are float32 \(1, 28, 28\), .*uint8 \(N, 28"),
        (np.zeros((28, 28), np.uint8), 1, None, r"are uint8 \(28, 28\), fashion_mnist expects"),
        (np.zeros((0, 28, 27), np.uint8), 1, None, r"are uint8 \(0, 28, 27\), fashion_mnist exp"),
        (np.zeros((1, 28, 28), np.uint8), 11, None, "top is 11, expected 1 to 10, as many as fash"),
        (np.zeros((1, 28, 28), np.uint8), 0, None, "top is 0, expected 1 to 10"),
        (np.zeros((1, 28, 28), np.uint8), 1, "nin_onnx", "nin_onnx is no classifier"),
        (np.zeros((1, 28, 28), np.uint8), 1, "decode_image", "decode_image is no classifier"),
        (np.zeros((1, 28, 28), np.uint8), 1, "resnet", "unknown model: 'resnet'"),
    ],
)
def test_what_a_model_does_not_take_is_refused(
    server: Server, protocol: Protocol, images: Pixels, top: int, name: str | None, message: str
) -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url, protocol=protocol) as client:
            await client.classify(images, top=top, model=name)

    url = getattr(server, protocol)
    with (
        Client(url, protocol=protocol) as client,
        pytest.raises(InputError, match=message),
    ):
        client.classify(images, top=top, model=name)
    with pytest.raises(InputError, match=message):
        asyncio.run(ask(url))


@protocols
def test_no_images_have_no_predictions(server: Server, protocol: Protocol) -> None:
    with Client(getattr(server, protocol), protocol=protocol) as client:
        assert client.classify(np.zeros((0, 28, 28), np.uint8)) == []
        assert client.classify_files([]) == []


NO_ADDRESSES = (
    "here", "http://127.0.0.1:8000", "127.0.0.1:", ":1", "a:99999", "a:0", f"a:{'1' * 5000}",
    "::1:8000", "[]:8000", "[a]:8000", "[::1]8000", "[127.0.0.1]:8000", "127.0.0.1:８０００",
    "127.0.0.1:+1", "127.0.0.1:1\n", "a b:1", "a@b:1", "a?b:1", "a#b:1", "a..b:1", "\udce9:1",
    f"{'a' * 64}:1", "[::1%lo]:8000",
)  # fmt: skip


@protocols
@pytest.mark.parametrize("url", NO_ADDRESSES)
def test_what_is_no_address_is_refused(url: str, protocol: Protocol) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InputError, match=r"isn't a .* write HOST:PORT, as in .* \[::1\]:8000"):
            kind(url, protocol=protocol)


async def async_classify(url: str, protocol: Protocol, pixels: Pixels) -> list[list[Prediction]]:
    async with AsyncClient(url, protocol=protocol, retries=0) as client:
        return await client.classify(pixels)


class Relay(socketserver.ThreadingTCPServer):
    """A port of ::1 that leads to a server's of 127.0.0.1."""

    address_family = socket.AF_INET6
    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("::1", 0), self.relay)  # type: ignore[arg-type]
        host, _, port = target.rpartition(":")
        self._target = host, int(port)

    def relay(self, connection: socket.socket, _address: object, _server: object) -> None:
        with socket.create_connection(self._target) as onward:
            back = threading.Thread(target=copy, args=(onward, connection))
            back.start()
            copy(connection, onward)
            back.join()


def copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@protocols
def test_ipv6(server: Server, pixels: Pixels, protocol: Protocol) -> None:
    try:
        relay = Relay(getattr(server, protocol))
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with relay:
        threading.Thread(target=relay.serve_forever).start()
        url = f"[::1]:{relay.server_address[1]}"
        with Client(url, protocol=protocol, retries=0) as client:
            found = client.classify(pixels[:2])
        assert indices(found) == [9, 2]
        assert asyncio.run(async_classify(url, protocol, pixels[:2])) == found
        relay.shutdown()


# --- servers that are no Triton ---


class Fake:
    """Accepts connections, hands each to `answer`, and counts them."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.connections = 0
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                if self.connections < 0:
                    return
                self.connections += 1
                self._answer(connection)

    def close(self) -> int:
        count, self.connections = self.connections, -1
        socket.create_connection(self._socket.getsockname()).close()
        self._thread.join()
        self._socket.close()
        return count


@pytest.fixture
def fake() -> Iterator[Callable[[bytes | None], Fake]]:
    """Makes a server that answers every request with these bytes and hangs up."""
    made: list[Fake] = []

    def make(data: bytes | None) -> Fake:
        def answer(connection: socket.socket) -> None:
            connection.recv(100_000)
            if data is None:
                connection.settimeout(3)
                with suppress(OSError):
                    connection.recv(1)  # until the client loses its patience
            else:
                connection.sendall(data)

        made.append(Fake(answer))
        return made[-1]

    yield make
    for server in made:
        server.close()


def http_answer(status: str, body: bytes, length: int | None = None) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body


IMAGE = np.zeros((1, 28, 28), np.uint8)


@pytest.fixture
def proxy(fake: Callable[[bytes | None], Fake], monkeypatch: pytest.MonkeyPatch) -> Fake:
    """What the environment names as its proxy, in every way it can."""
    server = fake(b"")
    for name in ("http", "https", "grpc", "all"):
        monkeypatch.setenv(f"{name}_proxy", f"http://{server.url}")
        monkeypatch.setenv(f"{name.upper()}_PROXY", f"http://{server.url}")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return server


@protocols
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_is_not_sent_what_is_for_this_machine(
    server: Server, pixels: Pixels, proxy: Fake, protocol: Protocol, host: str
) -> None:
    url = f"{host}:{getattr(server, protocol).rpartition(':')[2]}"
    with Client(url, protocol=protocol, retries=0) as client:
        assert indices(client.classify(pixels[:2])) == [9, 2]
    assert indices(asyncio.run(async_classify(url, protocol, pixels[:2]))) == [9, 2]
    assert proxy.connections == 0


@pytest.mark.parametrize(
    ("host", "here"),
    [
        (socket.gethostname(), True), (socket.gethostname().upper(), True), ("LOCALHOST.", True),
        ("a.localhost", True), ("127.1", True), ("0", True), ("2130706433", True),
        ("0x7f.1", True), ("[::1]", True), ("[::ffff:127.0.0.1]", True), ("[::]", True),
        ("10.1", False), ("1", False), ("[::2]", False), ("triton.example", False),
    ],
)  # fmt: skip
def test_this_machine_is_known_however_it_is_spelled(host: str, here: bool) -> None:
    assert is_loopback(host) is here
    options, _ = connection_options("grpc", f"{host}:8001", (), 1)
    assert (("grpc.enable_http_proxy", 0) in options["channel_args"]) is here


def test_a_server_that_was_down_is_found_again_soon(
    fake: Callable[[bytes | None], Fake],
) -> None:
    """gRPC's own pauses are 1 s, 1.6 s and so on, up to 120 s."""
    pauses = np.full(40, 0.1)
    synchronous, asynchronous = fake(b""), fake(b"")

    async def ask() -> None:
        async with AsyncClient(asynchronous.url, protocol="grpc", retries=0) as client:
            for pause in pauses:
                with suppress(UnreachableError):
                    await client.infer("a", {})
                await asyncio.sleep(pause)

    thread = threading.Thread(target=lambda: asyncio.run(ask()))
    thread.start()
    with Client(synchronous.url, protocol="grpc", retries=0) as client:
        for pause in pauses:
            with suppress(UnreachableError):
                client.infer("a", {})
            time.sleep(pause)
    thread.join()
    assert synchronous.connections >= 6
    assert asynchronous.connections >= 6


@pytest.mark.parametrize("key", ["two words", " ", "a\nb", "é", "\udce9", "a\x7f"])
def test_a_control_key_that_no_header_holds_is_refused(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("NIN_CONTROL_KEY", key)
    with pytest.raises(InputError, match=r"NIN_CONTROL_KEY is '.*', expected ASCII letters"):
        control_key()


def test_an_empty_control_key_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIN_CONTROL_KEY", "")
    assert control_key() == "development"


def test_a_proxy_is_asked_for_other_machines(proxy: Fake) -> None:
    with (
        Client("triton.example:8001", protocol="grpc", timeout_s=5, retries=0) as client,
        pytest.raises(InputError, match=r"triton\.example:8001"),
    ):
        client.classify(IMAGE)
    assert proxy.connections > 0


class Fakes(ThreadingHTTPServer):
    """Describes its models as Triton does, and answers one request after the other, slowly.

    It counts the questions, and how many wait at the same time.
    """

    daemon_threads = True

    def __init__(self, answer: bytes, **models: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), self.handler())
        self.url = f"127.0.0.1:{self.server_port}"
        self.answer = answer
        self.models = models
        self.described: list[str] = []
        self.asked = self.waiting = self.most = 0
        self.turn = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def describe(self, path: str) -> bytes:
        self.described.append(path)
        model = path.split("/")[3]
        if model == "stats":
            described: object = {"model_stats": [{"name": name} for name in self.models]}
        elif model not in self.models:
            error = {"error": f"unknown model: '{model}'"}
            return http_answer("400 Bad Request", json.dumps(error).encode())
        else:
            described = self.models[model] | {"name": model}
        return http_answer("200 OK", json.dumps(described).encode())

    @staticmethod
    def handler() -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            server: Fakes
            protocol_version = "HTTP/1.1"  # connections stay open

            def do_GET(self) -> None:
                self.wfile.write(self.server.describe(self.path))

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.server.asked += 1
                self.server.waiting += 1
                self.server.most = max(self.server.most, self.server.waiting)
                with self.server.turn:
                    time.sleep(0.05)
                self.server.waiting -= 1
                self.wfile.write(self.server.answer)

            def log_message(self, *_: Any) -> None: ...

        return Handler


def config(*pixels: int, count: int = 10, max_batch: int = 64) -> dict[str, Any]:
    """A classifier's, as Triton describes it."""
    outputs = [{"name": n, "data_type": "TYPE_FP32", "dims": [count]} for n in OUTPUTS]
    inputs = [{"name": "pixels", "data_type": "TYPE_UINT8", "dims": pixels}]
    return {"max_batch_size": max_batch, "input": inputs, "output": outputs}


OUTPUTS = ("logits", "probabilities")


def classes(*texts: str, status: int = 200, images: int | None = None) -> bytes:
    """Triton's answer to a request for classes, an image for each text if nothing else is said."""
    shape = [images or len(texts), len(texts) // (images or len(texts))]
    data = serialize_byte_tensor(np.array(texts, object)).item()
    output: dict[str, object] = {"name": "probabilities", "datatype": "BYTES", "shape": shape}
    output["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"model_name": "m", "model_version": "1", "outputs": [output]}).encode()
    answer = http_answer(f"{status} Any", head + data)
    return answer.replace(
        b"\r\n", f"\r\nInference-Header-Content-Length: {len(head)}\r\n".encode(), 1
    )


@pytest.mark.parametrize("status", [200, 500])
def test_few_batches_are_in_flight_each_with_a_time_of_its_own(status: int) -> None:
    async def run(url: str) -> int:
        async with AsyncClient(url, timeout_s=1) as client:
            return len(await client.classify(np.zeros((64 * 40, 28, 28), np.uint8), model="m"))

    with Fakes(classes("0.5:9:Ankle boot", status=status), m=config(28, 28)) as server:
        if status == 200:
            assert asyncio.run(run(server.url)) == 40  # after 2 s
            assert server.most == IN_FLIGHT
        else:
            with pytest.raises(ServerError):
                asyncio.run(run(server.url))
            time.sleep(0.5)
            assert server.asked <= 2 * IN_FLIGHT  # the rest is not asked for


def test_a_label_may_hold_whatever_it_likes(fake: Callable[[bytes | None], Fake]) -> None:
    labels = ["毛衣", "a:b::c", 'say "no", or', "", "Ärmel"]
    server = fake(classes(*(f"0.5:{index}:{label}" for index, label in enumerate(labels))))
    with Client(server.url, retries=0) as client:
        predictions = client.classes("m", {"pixels": np.zeros((5, 28, 28), np.uint8)}, top=1)
    assert [image[0].label for image in predictions] == labels
    assert indices(predictions) == list(range(5))


def test_a_hundred_thousand_classes() -> None:
    texts = [f"{1 / (index + 1)}:{index}:class {index}" for index in range(100_000)]
    with (
        Fakes(classes(*texts, images=1), m=config(8, 9, 3, count=100_000)) as server,
        Client(server.url, retries=0) as client,
    ):
        (image,) = client.classify(np.zeros((1, 8, 9, 3), np.uint8), model="m", top=100_000)
    assert [p.index for p in image] == list(range(100_000))
    assert image[-1].label == "class 99999"


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((), "serves no classifier NAME with a NAME_image beside it; say which by model="),
        (("a", "b_image"), "serves no classifier"),
        (("a", "a_image", "b", "b_image"), "serves several classifiers, a, b; say which by mode"),
    ],
)
def test_without_the_only_classifier_its_name_is_needed(
    models: tuple[str, ...], message: str
) -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url) as client:
            await client.classify_files([b""])

    with Fakes(b"", **dict.fromkeys(models, config(28, 28))) as server:
        with Client(server.url) as client, pytest.raises(InputError, match=message):
            client.classify(IMAGE)
        with pytest.raises(InputError, match=message):
            asyncio.run(ask(server.url))


def test_a_server_is_asked_once_what_it_serves() -> None:
    answer = classes("0.5:9:Ankle boot")
    with (
        Fakes(answer, m=config(28, 28), m_image=config(1)) as server,
        Client(server.url) as client,
    ):
        for _ in range(3):
            client.classify(IMAGE)
        assert server.described == ["/v2/models/stats", "/v2/models/m/config"]


def test_a_model_of_another_shape_takes_the_place_of_one() -> None:
    large = np.zeros((1, 32, 32), np.uint8)
    with (
        Fakes(classes("0.5:9:Ankle boot"), m=config(28, 28)) as server,
        Client(server.url) as client,
    ):
        client.classify(IMAGE, model="m")
        with pytest.raises(InputError, match=r"\(1, 32, 32\), m expects uint8 \(N, 28, 28\)"):
            client.classify(large, model="m")
        server.models["m"] = config(32, 32)
        assert indices(client.classify(large, model="m")) == [9]


def test_what_a_server_served_is_forgotten_when_it_says_no() -> None:
    right = classes("0.5:9:Ankle boot")
    with (
        Fakes(right, m=config(28, 28), m_image=config(1)) as server,
        Client(server.url) as client,
    ):
        client.classify(IMAGE)
        server.answer = http_answer("400 Bad Request", b'{"error":"unknown model"}')
        server.models = {"n": config(28, 28), "n_image": config(1)}
        with pytest.raises(ServerError, match="unknown model"):
            client.classify(IMAGE)
        server.answer = right
        assert indices(client.classify(IMAGE)) == [9]
        assert server.described[-2:] == ["/v2/models/stats", "/v2/models/n/config"]


def ask_for_classes(client: Client) -> list[list[Prediction]]:
    """One request for predictions, and nothing before it."""
    return client.classes("m", {"pixels": IMAGE}, top=1)


@pytest.mark.parametrize("value", ["nan", "-nan", "inf", "-inf"])
def test_a_probability_that_is_none_is_an_error(
    fake: Callable[[bytes | None], Fake], value: str
) -> None:
    server = fake(classes("0.9:9:Ankle boot", f"{value}:3:Dress"))
    message = rf"{server.url} gives .* class 3 \(Dress\) has the probability {value}"
    with Client(server.url, retries=0) as client, pytest.raises(ServerError, match=message):
        client.classes("m", {"pixels": np.zeros((2, 28, 28), np.uint8)}, top=1)


@pytest.mark.parametrize("retries", [0, 2])
def test_a_connection_that_breaks_is_tried_again(
    fake: Callable[[bytes | None], Fake], retries: int
) -> None:
    server = fake(b"")
    with (
        Client(server.url, retries=retries) as client,
        pytest.raises(UnreachableError, match=f"no Triton server at {server.url}"),
    ):
        ask_for_classes(client)
    assert server.connections == retries + 1


def test_nobody_there() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as unused:
        url = f"127.0.0.1:{unused.getsockname()[1]}"
    for name in URLS:
        with (
            Client(url, protocol=name, retries=1) as client,
            pytest.raises(UnreachableError, match="start one with `nin serve`"),
        ):
            ask_for_classes(client)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (http_answer("500 Internal", b'{"error":"out of memory"}'), "answers: out of memory"),
        (http_answer("400 Bad Request", b"<html>"), "answers: .*html"),
        (http_answer("200 OK", b"garbage"), "can't be read"),
        (http_answer("200 OK", b'{"outputs": 3}'), "can't be read"),
        (b"\x00\x01\x02 what is this\r\n\r\n", "can't be read"),
    ],
    ids=["500", "400 without JSON", "garbage", "other JSON", "no HTTP"],
)
def test_an_answer_is_never_asked_for_twice(
    fake: Callable[[bytes | None], Fake], answer: bytes, message: str
) -> None:
    server = fake(answer)
    with Client(server.url, retries=3) as client, pytest.raises(ServerError, match=message):
        ask_for_classes(client)
    assert server.connections == 1


def test_an_answer_that_ends_in_the_middle(fake: Callable[[bytes | None], Fake]) -> None:
    server = fake(http_answer("200 OK", b'{"outputs"', 1000))
    with Client(server.url, retries=0) as client, pytest.raises(InputError, match=server.url):
        ask_for_classes(client)


@protocols
def test_patience_ends(fake: Callable[[bytes | None], Fake], protocol: Protocol) -> None:
    server = fake(None)
    with (
        Client(server.url, protocol=protocol, timeout_s=0.3, retries=3) as client,
        pytest.raises(InputError, match=r"no answer|no Triton server"),
    ):
        ask_for_classes(client)


@pytest.mark.parametrize("ask", ["metadata", "config", "statistics", "load"])
def test_patience_ends_for_every_question(fake: Callable[[bytes | None], Fake], ask: str) -> None:
    """Over gRPC, where each call needs a deadline of its own."""
    server = fake(None)  # hangs up after 3 s, which would be another error
    with (
        Client(server.url, protocol="grpc", timeout_s=0.3, retries=0) as client,
        pytest.raises(InputError, match=rf"no answer from {server.url} in time"),
    ):
        getattr(client, ask)("fashion_mnist")


# --- nin classify ---


@protocols
def test_files_and_idx_as_a_table(
    nin: Script, server: Server, pixels: Pixels, tmp_path: Path, protocol: Protocol
) -> None:
    boot = tmp_path / "boot.png"
    boot.write_bytes(encode_png(pixels[0]))
    url = getattr(server, protocol)
    options = ("--url", url, "--protocol", protocol, "--limit", 3, "--top", 2)
    ended = nin("classify", boot, IDX, *options)
    assert ended.code == 0
    header, _, *rows = ended.out.splitlines()
    assert header.split()[1:-1:2] == ["image", "1.", "probability", "2.", "probability"]
    assert [row.split("|")[1].strip() for row in rows] == [
        str(boot), *(f"{IDX}[{i}]" for i in range(3))
    ]  # fmt: skip
    assert [row.split("|")[2].strip() for row in rows] == [
        "Ankle boot", "Ankle boot", "Pullover", "Trouser"
    ]  # fmt: skip


def test_json(nin: Script, server: Server, tmp_path: Path) -> None:
    plain = tmp_path / "images.idx"
    plain.write_bytes(gzip.decompress(IDX.read_bytes()))
    ended = nin("classify", plain, "--url", server.http, "--limit", 100, "--json")
    found = json.loads(ended.out)
    assert len(found) == 100
    assert found[1]["image"] == f"{plain}[1]"
    (prediction,) = found[1]["predictions"]
    assert prediction == {
        "index": 2,
        "label": "Pullover",
        "probability": pytest.approx(0.98, abs=0.02),
    }


def test_a_model_folder_names_a_model(nin: Script, server: Server) -> None:
    ended = nin("classify", IDX, "--url", server.http, "--limit", 1, "--model", NIN)
    assert ended.code == 0
    assert "Ankle boot" in ended.out


def test_the_script_is_the_same_command(script: Script, server: Server) -> None:
    ended = script("scripts/classify.py", IDX, "--url", server.http, "--limit", 1)
    assert ended.code == 0
    assert "Ankle boot" in ended.out


def test_the_other_model_and_shared_memory(nin: Script, server: Server) -> None:
    options = ("--limit", 2, "--model", "fashion_mnist_torchscript", "--shared-memory")
    ended = nin("classify", IDX, "--url", server.http, *options)
    assert ended.code == 0
    assert "Pullover" in ended.out


def zipped(data: bytes) -> bytes:
    """The same at any time: the workers have to agree on the tests' names."""
    return gzip.compress(data, mtime=0)


def idx(*header: int, size: int = 784) -> bytes:
    return np.array(header, ">u4").tobytes() + bytes(size)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no image file at"),
        (b"", r"encoded_image 0 \(0 bytes\): not a whole PNG or JPEG file"),
        (b"text", "not a whole PNG or JPEG file"),
        (b"\0\0\1\0 an icon", "not a whole PNG or JPEG file"),
        (b"\0\0\x08\0", "not a whole PNG or JPEG file"),
        (idx(2049, 784), r"is an IDX file of uint8 \(784,\) \(labels\?\), expected images"),
        (zipped(idx(2049, 784)), r"is an IDX file of uint8 \(784,\) \(labels\?\)"),
        (idx(0xD04, 1, 1, 14, 14), r"is an IDX file of float32 \(1, 1, 14, 14\), expected images"),
        (idx(0x903, 1, 28, 28), r"is an IDX file of int8 \(1, 28, 28\), expected images"),
        (idx(2051, 1, 28, 27), r"is an IDX file of uint8 \(1, 28, 27\), expected .* 28, 28\)"),
        (b"\0\0\x08\xff", "is an IDX file of uint8"),
        (b"\0\0\x08\3\0", r"is an IDX file of uint8 \(0, 0, 0\)"),
        (idx(2051, 0, 28, 28, size=0), "holds no images"),
        (zipped(idx(2051, 0, 28, 28, size=0)), "holds no images"),
        (idx(2051, 2, 28, 28), "promises 2 images, 1584 bytes; it has 800 bytes"),
        (idx(2051, 1, 28, 28, size=783), "it has 799 bytes"),
        (zipped(b"text"), "isn't an IDX file: it starts with 74 65 78 74, expected 00 00"),
        (zipped(b""), "isn't an IDX file: it starts with nothing"),
        (zipped(idx(2051, 1, 28, 28))[:-9], "can't decompress"),
    ],
)
def test_bad_files(
    nin: Script, server: Server, tmp_path: Path, data: bytes | None, message: str
) -> None:
    path = tmp_path / "file"
    if data is not None:
        path.write_bytes(data)
    ended = nin("classify", path, "--url", server.http)
    assert ended.code == 2
    assert ended.out == ""
    (line,) = ended.err.strip().splitlines()
    assert str(path) in line
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--top", 0), "0 is not a whole number from 1 on"),
        (("--top", 11), "top is 11, expected 1 to 10, as many as fashion_mnist has classes"),
        (("--retries", -1), "-1 is not a whole number from 0 on"),
        (("--timeout", "nan"), "nan is not a time in seconds"),
        (("--protocol", "smtp"), "invalid choice: 'smtp'"),
        (("--url", "there"), "isn't a server's address"),
        (("--model", "resnet"), "Request for unknown model: 'resnet' is not found"),
        (("--model", "nin_onnx"), "nin_onnx is no classifier"),
        (("--model", "models/none"), "no model at models/none"),
    ],
)
def test_mistakes(nin: Script, server: Server, options: tuple[object, ...], message: str) -> None:
    ended = nin("classify", IDX, "--limit", 1, "--url", server.http, *options)
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err
