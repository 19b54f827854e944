"""The live server: equal answers, and bad input that harms nobody else."""

import http.client
import io
import json
import socket
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.http
import tritonclient.utils.shared_memory as shm
from numpy.typing import NDArray
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from nin.client import URLS, Client, Protocol
from nin.contract import Model, load_contract
from nin.errors import ServerError
from nin.gate.parity import check_concurrency
from nin.images import encode_png, encoded
from nin.paths import NIN
from nin.reference.exact import Reference
from nin.runtimes.triton import TritonRuntime
from nin.serve.server import Server

Pixels = NDArray[np.uint8]
CONTRACT = load_contract(NIN)
CLASSIFIER, ENSEMBLE, DECODER = CONTRACT.name, CONTRACT.ensemble.name, CONTRACT.decoder.name
protocols = pytest.mark.parametrize("protocol", list(URLS))


def connect(server: Server, protocol: Protocol) -> Client:
    return Client(getattr(server, protocol), protocol=protocol, retries=0)


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with connect(server, "http") as client:
        yield client


@pytest.fixture(autouse=True)
def unharmed(server: Server, pixels: Pixels, reference: Reference) -> Iterator[None]:
    """After every test the server is ready and answers the next good request rightly."""
    yield
    with connect(server, "http") as client:
        for model, batch in (
            (CLASSIFIER, {"pixels": pixels[:2]}),
            (ENSEMBLE, {"encoded_image": png(*pixels[:2])}),
        ):
            assert_right(client.infer(model, batch)["logits"], reference, [0, 1])
    for path in ("ready", "live"):
        assert get(server.http, f"/v2/health/{path}")[0] == 200


def assert_right(logits: NDArray[Any], reference: Reference, indices: list[int]) -> None:
    error = np.abs(logits - reference.outputs["logits"][indices]).max()
    assert error <= reference.budget["logits"]


def get(address: str, path: str) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def status_of(error: BaseException) -> str:
    """What the protocol itself said."""
    cause = error.__cause__
    assert isinstance(cause, InferenceServerException)
    return str(cause.status())


def png(*images: Pixels) -> NDArray[Any]:
    return encoded([encode_png(image) for image in images])


# --- equal answers; that the gate is open through the server is tests/test_demo.py's ---


def test_the_gate_asks_the_server_for_contract_and_labels(server: Server) -> None:
    """A runtime of another model's graph is refused by what the server says of itself."""
    nin_onnx, *_ = CONTRACT.models
    wrong = Model(nin_onnx.name, CONTRACT.classifier_graph, nin_onnx.backend)
    with pytest.raises(ServerError, match="unexpected inference output 'probabilities'"):
        TritonRuntime(server.http, wrong, None, protocol="http")
    found = TritonRuntime(server.http, nin_onnx, None, protocol="http")
    assert found.contract == CONTRACT.network_graph.signature()
    assert found.labels[0] == "T-shirt/top"


def test_requests_at_the_same_time_share_batches_and_get_their_own_answers(
    server: Server, reference: Reference, client: Client
) -> None:
    questions: Any = SimpleNamespace(
        reference=reference,
        count=len(reference.pixels),
        batch=lambda _, images: reference.pixels[images],
    )
    before = client.statistics(CLASSIFIER)
    model = next(m for m in CONTRACT.models if m.name == CLASSIFIER)
    runtime = TritonRuntime(server.grpc, model, None, protocol="grpc")
    assert list(check_concurrency(runtime, model.graph, questions)) == []
    after = client.statistics(CLASSIFIER)
    executions = after["execution_count"] - before["execution_count"]
    requests = after["inference_stats"]["success"]["count"]
    requests -= before["inference_stats"]["success"]["count"]
    assert 0 < executions < requests  # else nothing was batched and nothing was split


def test_a_batch_of_files_is_decoded_and_classified_like_its_pixels(
    client: Client, pixels: Pixels
) -> None:
    files = client.infer(ENSEMBLE, {"encoded_image": png(*pixels[:7])})
    direct = client.infer(CLASSIFIER, {"pixels": pixels[:7]})
    np.testing.assert_allclose(files["logits"], direct["logits"], rtol=0, atol=1e-5)
    decoded = client.infer(DECODER, {"encoded_image": png(*pixels[:7])})["pixels"]
    np.testing.assert_array_equal(decoded, pixels[:7])


# --- conversions of images, as nin.decoder documents them ---


def decode(client: Client, image: Image.Image, kind: str = "PNG", **options: Any) -> Pixels:
    file = io.BytesIO()
    image.save(file, kind, **options)
    inputs = {"encoded_image": encoded([file.getvalue()])}
    found: Pixels = client.infer(DECODER, inputs)["pixels"][0]
    return found


def test_grey_images_of_any_mode_are_the_same_pixels(client: Client, pixels: Pixels) -> None:
    grey = Image.fromarray(pixels[0])
    opaque = Image.new("L", grey.size, 255)
    wide = Image.fromarray(pixels[0].astype(np.uint16) * 256 + 77)
    for image in (
        grey,
        grey.convert("RGB"),
        grey.convert("P"),
        Image.merge("LA", [grey, opaque]),
        Image.merge("RGBA", [grey, grey, grey, opaque]),
        wide,  # 16 bits: the upper 8 are kept
    ):
        np.testing.assert_array_equal(decode(client, image), pixels[0], err_msg=image.mode)


def test_transparent_pixels_lie_over_black(client: Client, pixels: Pixels) -> None:
    grey = Image.fromarray(pixels[0])
    white = Image.new("L", grey.size, 255)
    np.testing.assert_array_equal(
        decode(client, Image.merge("RGBA", [white, white, white, grey])), pixels[0]
    )


def test_colour_becomes_grey_by_itu_r_601(client: Client) -> None:
    for colour, grey in (((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29)):
        assert set(decode(client, Image.new("RGB", (28, 28), colour)).flat) == {grey}


def test_other_shapes_are_centred_on_black(client: Client) -> None:
    found = decode(client, Image.new("L", (280, 140), 200))
    assert (found[:7] == 0).all()
    assert (found[7:21] == 200).all()
    assert (found[21:] == 0).all()


def test_the_orientation_of_a_photograph_is_applied(client: Client) -> None:
    image = Image.new("L", (28, 28), 0)
    image.paste(255, (0, 0, 28, 14))  # bright above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = decode(client, image, "JPEG", exif=exif, quality=95)
    assert found[:, 15:].min() > 200
    assert found[:, :13].max() < 50


def test_a_photograph_of_20_megapixels_is_classified(client: Client, pixels: Pixels) -> None:
    photograph = Image.fromarray(pixels[1]).resize((5184, 3888)).convert("RGB")
    file = io.BytesIO()
    photograph.save(file, "JPEG", quality=90)
    (prediction,) = client.classify_files([file.getvalue()])[0]
    assert prediction.label == "Pullover"
    assert prediction.probability > 0.5


# --- bad images ---


def bomb() -> bytes:
    """A PNG of 60000x60000 pixels in 100 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def truncated() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    whole = encode_png(noise)
    return whole[: len(whole) // 2]


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("L", (28, 28)).save(file, "GIF")
    return file.getvalue()


@protocols
@pytest.mark.parametrize("served", [DECODER, ENSEMBLE])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"this is no image", r"encoded_image 0 \(16 bytes\): not a whole PNG or JPEG file"),
        (b"", r"encoded_image 0 \(0 bytes\): not a whole PNG or JPEG file"),
        (b"\x89PNG\r\n\x1a\n", "not a whole PNG or JPEG file"),
        (gif(), "not a whole PNG or JPEG file"),
        (truncated(), "not a whole PNG or JPEG file"),
        (bomb(), "60000x60000 pixels, at most 50000000 are decoded"),
    ],
    ids=["text", "empty", "signature", "gif", "truncated", "bomb"],
)
def test_bytes_that_are_no_image_are_refused(
    server: Server, protocol: Protocol, served: str, data: bytes, message: str
) -> None:
    with connect(server, protocol) as client, pytest.raises(ServerError, match=message) as raised:
        client.infer(served, {"encoded_image": encoded([data])})
    assert status_of(raised.value) in ("400", "StatusCode.INVALID_ARGUMENT")


def test_one_bad_file_fails_its_own_request_only(server: Server, pixels: Pixels) -> None:
    """Though they are decoded and classified in one batch with it."""

    def classify(index: int) -> str:
        data = b"bad" if index % 4 == 0 else encode_png(pixels[index])
        with connect(server, "http") as client:
            try:
                return client.classify_files([data])[0][0].label
            except ServerError:
                return "refused"

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(classify, range(32)))
    assert [answer == "refused" for answer in found] == [i % 4 == 0 for i in range(32)]


# --- bad requests ---


@protocols
@pytest.mark.parametrize(
    ("served", "name", "array", "version", "message"),
    [
        ("fashion_mnist", "pixel", np.zeros((1, 28, 28), np.uint8), "", "pixel"),
        ("fashion_mnist", "pixels", np.zeros((1, 28, 28), np.float32), "", "data-type|datatype"),
        ("fashion_mnist", "pixels", np.zeros((1, 784), np.uint8), "", "shape"),
        ("fashion_mnist", "pixels", np.zeros((28, 28), np.uint8), "", "shape"),
        ("fashion_mnist", "pixels", np.zeros((1, 28, 29), np.uint8), "", "shape"),
        ("fashion_mnist", "pixels", np.zeros((65, 28, 28), np.uint8), "", "must be <= 64"),
        ("nin_torchscript", "image", np.zeros((1, 3, 224, 224), np.float32), "", "shape"),
        ("nin_torchscript", "image", np.zeros((65, 1, 224, 224), np.float32), "", "<= 64"),
        ("fashion_mnist_image", "encoded_image", np.zeros((1, 1), np.uint8), "", "data-type"),
        ("fashion_mnist_image", "encoded_image", encoded([b"a"] * 65), "", "<= 64"),
        ("resnet", "pixels", np.zeros((1, 28, 28), np.uint8), "", "unknown model: 'resnet'"),
        ("fashion_mnist", "pixels", np.zeros((1, 28, 28), np.uint8), "9", "version"),
    ],
    ids=[
        "name", "dtype", "rank", "no batch", "shape", "65 pixels", "channels", "65 images",
        "no strings", "65 files", "model", "version",
    ],
)  # fmt: skip
def test_wrong_requests_are_refused_with_the_reason(
    server: Server, protocol: Protocol, served: str, name: str, array: NDArray[Any], version: str,
    message: str,
) -> None:  # fmt: skip
    with connect(server, protocol) as client, pytest.raises(ServerError, match=message) as raised:
        client.infer(served, {name: array}, version=version)
    unknown = "unknown model" in str(raised.value)
    expected = (
        ("404", "StatusCode.NOT_FOUND") if unknown else ("400", "StatusCode.INVALID_ARGUMENT")
    )
    assert status_of(raised.value) in expected


def post(
    server: Server, body: bytes, *, header: int | None = None, model: str = CLASSIFIER
) -> tuple[int, str]:
    headers = {} if header is None else {"Inference-Header-Content-Length": str(header)}
    with closing(http.client.HTTPConnection(server.http, timeout=30)) as connection:
        connection.request("POST", f"/v2/models/{model}/infer", body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())["error"]


def binary(
    data: bytes, *, declared: int, shape: tuple[int, ...] = (1, 28, 28)
) -> tuple[bytes, int]:
    """A request with the binary tensor extension: its body and the length of its JSON part."""
    tensor: dict[str, object] = {"name": "pixels", "shape": shape, "datatype": "UINT8"}
    tensor["parameters"] = {"binary_data_size": declared}
    text = json.dumps({"inputs": [tensor]}).encode()
    return text + data, len(text)


@pytest.mark.parametrize(
    ("data", "declared", "message"),
    [
        (bytes(700), 784, "expecting 84 additional bytes"),
        (bytes(783), 783, "Expected 784, got 783"),
        (bytes(785), 785, "Expected 784, got 785"),
        (b"", 0, "got 0"),
    ],
)
def test_truncated_binary_bodies_are_refused(
    server: Server, data: bytes, declared: int, message: str
) -> None:
    body, header = binary(data, declared=declared)
    status, error = post(server, body, header=header)
    assert status == 400
    assert message in error


CRAFTED = [(0, 28, 28), (0, 0, 784), (2, 28, 0), (2**40, 28, 28), (784,), (1, 784)]


@contextmanager
def right_neighbours(server: Server, reference: Reference, model: str) -> Iterator[None]:
    """Four clients that ask all the time, in batches with whatever else comes, and all succeed."""
    stop, answered = threading.Event(), []

    def ask(index: int) -> None:
        with connect(server, "grpc") as client:
            while not stop.is_set():
                outputs = client.infer(model, {"pixels": reference.pixels[index : index + 1]})
                assert_right(outputs["logits"], reference, [index])
                answered.append(index)

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, index) for index in range(4)]
        try:
            yield
        finally:
            stop.set()
        for future in asked:
            future.result()
    assert len(answered) > 20


@pytest.mark.parametrize("served", ["fashion_mnist", "fashion_mnist_torchscript"])
def test_a_crafted_request_fails_alone(server: Server, reference: Reference, served: str) -> None:
    """Shapes of which Triton's core lets some through, over every way in."""
    with right_neighbours(server, reference, served):
        for shape in CRAFTED * 5:
            body, header = binary(bytes(784), declared=784, shape=shape)
            status, error = post(server, body, header=header, model=served)
            assert status == 400
            for reason in (
                error,
                by_grpc(server, served, shape),
                by_shared_memory(server, served, shape),
            ):
                assert "shape" in reason or "batch-size must be <= 64" in reason


@pytest.mark.parametrize("shape", [(0, 1), (2**40, 1)])
def test_a_crafted_request_of_files_is_refused_by_the_decoder(
    server: Server, pixels: Pixels, shape: tuple[int, ...]
) -> None:
    """An ensemble takes it: Triton's core makes it one file there (docs/serving.md)."""
    data = serialize_byte_tensor(encoded([encode_png(pixels[0])])).item()
    tensor: dict[str, object] = {"name": "encoded_image", "shape": shape, "datatype": "BYTES"}
    tensor["parameters"] = {"binary_data_size": len(data)}
    text = json.dumps({"inputs": [tensor]}).encode()
    status, error = post(server, text + data, header=len(text), model=DECODER)
    assert (status, error) == (400, "input 'encoded_image' has shape [1], expected [-1, 1]")


def by_grpc(server: Server, model: str, shape: tuple[int, ...]) -> str:
    """A request whose shape isn't that of its 784 bytes; the server's reason."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="pixels", datatype="UINT8", shape=shape)
    request.raw_input_contents.append(bytes(784))
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as raised:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return str(raised.value.details())


def by_shared_memory(server: Server, model: str, shape: tuple[int, ...]) -> str:
    name = f"nin-test-{uuid.uuid4().hex[:8]}"
    region = shm.create_shared_memory_region(name, f"/{name}", 784)
    try:
        with tritonclient.http.InferenceServerClient(server.http) as client:
            client.register_system_shared_memory(name, f"/{name}", 784)
            pixels = tritonclient.http.InferInput("pixels", list(shape), "UINT8")
            pixels.set_shared_memory(name, 784)
            with pytest.raises(InferenceServerException) as raised:
                client.infer(model, [pixels])
            client.unregister_system_shared_memory(name)
    finally:
        shm.destroy_shared_memory_region(region)
    assert raised.value.status() == "400"
    return str(raised.value.message())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Expected 784, got 0"),
        (b"{", "failed to parse the request JSON buffer"),
        (b"[]", "Unable to parse 'inputs'"),
        (b'{"inputs": 3}', "Unable to parse 'inputs'"),
        (b'{"inputs": [{}]}', "Input must set only one of the following fields"),
        (b"\xff\xfe\x00" * 100, "failed to parse the request JSON buffer"),
    ],
)
def test_malformed_json_is_refused(server: Server, body: bytes, message: str) -> None:
    """Triton 24.10 itself answers 500, not 400, where it can't parse."""
    status, error = post(server, body)
    assert status == (500 if "arse" in message else 400)
    assert message in error


def test_a_wrong_length_of_the_json_part_is_refused(server: Server) -> None:
    body, header = binary(bytes(784), declared=784)
    for wrong, message in (
        (0, "Expected 784, got 900"),
        (header - 5, "failed to parse the request JSON buffer"),
        (header + 5, "expecting 5 additional bytes"),
        (10**9, "inference header size should be in range"),
    ):
        status, error = post(server, body, header=wrong)
        assert status in (400, 500)
        assert message in error


@pytest.mark.parametrize("served", ["nin_onnx", "nin_torchscript"])
def test_nan_pixels_give_nan_for_their_image_only(
    client: Client, pixels: Pixels, served: str
) -> None:
    """As in the network itself: a NaN anywhere reaches every logit through the average."""
    images = np.repeat(pixels[:3, None].astype(np.float32) / 255, 8, 2).repeat(8, 3)
    clean = client.infer(served, {"image": images})["logits"]
    images[1, 0, 100, 100] = np.nan
    logits = client.infer(served, {"image": images})["logits"]
    assert np.isnan(logits[1]).all()
    np.testing.assert_allclose(logits[[0, 2]], clean[[0, 2]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("port", ["http", "grpc", "metrics"])
def test_random_bytes_on_the_ports(server: Server, port: str) -> None:
    random = np.random.default_rng(1)
    host, _, number = getattr(server, port).rpartition(":")
    for size in (1, 10, 1000, 100_000):
        with socket.create_connection((host, int(number)), timeout=10) as connection:
            try:
                connection.sendall(random.bytes(size))
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1000)
            except OSError:
                pass  # it may well hang up


def test_a_client_that_hangs_up_in_the_middle(server: Server) -> None:
    body, header = binary(bytes(784), declared=784)
    host, _, port = server.http.rpartition(":")
    head = (
        f"POST /v2/models/fashion_mnist/infer HTTP/1.1\r\nHost: x\r\n"
        f"Inference-Header-Content-Length: {header}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    for _ in range(5):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(head.encode() + body[:100])


# --- operation ---


def test_metrics_count_requests_and_queue_time(
    server: Server, client: Client, pixels: Pixels
) -> None:
    def read(name: str) -> float:
        status, text = get(server.metrics, "/metrics")
        assert status == 200
        lines = text.decode().splitlines()
        (line,) = (x for x in lines if x.startswith(f'{name}{{model="fashion_mnist",'))
        return float(line.split()[-1])

    def settled() -> tuple[float, float]:
        """Triton counts a request after it has answered it."""
        while True:
            counts = read("nv_inference_request_success"), read("nv_inference_count")
            time.sleep(0.5)
            if counts == (read("nv_inference_request_success"), read("nv_inference_count")):
                return counts

    before = settled()
    client.classify(pixels[:5])
    after = settled()
    assert (after[0] - before[0], after[1] - before[1]) == (1, 5)
    assert read("nv_inference_queue_duration_us") > 0


def test_every_model_says_that_it_is_ready(server: Server) -> None:
    for model in CONTRACT.models:
        assert get(server.http, f"/v2/models/{model.name}/ready")[0] == 200
        assert get(server.http, f"/v2/models/{model.name}/versions/2/ready")[0] == 400
