"""nin_triton, the C++ client, as a user runs it: against the live server and against worse ones."""

import itertools
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nin.contract import Graph
from nin.images import encode_png
from nin.network.classifier import Preprocess
from nin.reference.exact import Reference, batch_for
from nin.serve.server import Server
from tests.models import CLASSIFIER, CONTRACT, GRAPHS, LABELS, MAX_BATCH, NETWORK

Pixels = NDArray[np.uint8]
FILE_MODELS = ("fashion_mnist", "fashion_mnist_torchscript", "nin_onnx", "nin_torchscript")


@dataclass
class Ended:
    code: int
    out: bytes
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def nin_triton(cpp_build: Path) -> Run:
    """Runs the built program to its end; it has half a minute."""

    def run(*options: object, env: dict[str, str] | None = None) -> Ended:
        command = [str(cpp_build / "tools" / "nin_triton"), *map(str, options)]
        ended = subprocess.run(command, capture_output=True, timeout=30, env=env)
        return Ended(ended.returncode, ended.stdout, ended.stderr.decode())

    return run


@pytest.fixture
def images(tmp_path: Path, reference: Reference) -> Path:
    """The reference's 64 images as an IDX file."""
    return write_idx(tmp_path / "images.idx", reference.pixels)


def write_idx(path: Path, array: NDArray[Any]) -> Path:
    kind = {"uint8": 0x08, "float32": 0x0D}[array.dtype.name]
    header = np.array([kind * 256 + array.ndim, *array.shape], ">u4")
    path.write_bytes(header.tobytes() + array.astype(array.dtype.newbyteorder(">")).tobytes())
    return path


def logits_of(ended: Ended) -> NDArray[np.float32]:
    assert (ended.code, ended.err) == (0, "")
    return np.frombuffer(ended.out, "<f4").reshape(-1, len(LABELS))


def assert_refused(ended: Ended, message: str) -> None:
    assert (ended.code, ended.out) == (2, b""), ended.err  # a crash would be a negative code
    assert re.fullmatch(r"error: [ -~]+\n", ended.err), ended.err
    assert re.search(message, ended.err), ended.err


# --- the live server ---


def input_of(model: str, reference: Reference, folder: Path) -> Path:
    """The reference's images as the model takes them."""
    graph = GRAPHS["nin" if model.startswith("nin") else "fashion_mnist"]
    return write_idx(
        folder / f"{model}.idx", batch_for(Preprocess(CONTRACT), graph, reference.pixels)
    )


@pytest.mark.parametrize("served", FILE_MODELS)
def test_logits_are_the_references_whatever_the_batch(
    nin_triton: Run, server: Server, reference: Reference, tmp_path: Path, served: str
) -> None:
    path = input_of(served, reference, tmp_path)
    options = (path, "--url", server.http, "--model", served, "--format", "f32")
    for size in (1, 7, 64):
        logits = logits_of(nin_triton(*options, "--batch-size", size))
        error = np.abs(logits - reference.outputs["logits"]).max()
        assert error <= reference.budget["logits"], size


@pytest.mark.parametrize("served", FILE_MODELS)
def test_predictions_are_the_best_first_with_the_servers_labels(
    nin_triton: Run, server: Server, reference: Reference, tmp_path: Path, served: str
) -> None:
    path = input_of(served, reference, tmp_path)
    options = (path, "--url", server.http, "--model", served, "--top", 10, "--limit", 8)
    ended = nin_triton(*options, "--format", "json")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    assert [image["image"] for image in found] == [f"{path}[{i}]" for i in range(8)]
    for image, right in zip(found, reference.outputs["probabilities"], strict=False):
        best = image["predictions"]
        order = (-right).argsort(kind="stable")  # logits are often 0: of equals the first
        assert [p["index"] for p in best] == order.tolist()
        assert [p["label"] for p in best] == [LABELS[p["index"]] for p in best]
        assert [p["probability"] for p in best] == pytest.approx(np.sort(right)[::-1], abs=1e-4)
        assert len(image["logits"]) == len(LABELS)


def test_a_png_file(nin_triton: Run, server: Server, reference: Reference, tmp_path: Path) -> None:
    boot = tmp_path / "boot.png"
    boot.write_bytes(encode_png(reference.pixels[0]))
    url = ("--url", f"http://{server.http}/")
    logits = logits_of(nin_triton(boot, *url, "--format", "f32"))
    assert np.abs(logits - reference.outputs["logits"][:1]).max() <= reference.budget["logits"]
    assert "Ankle boot" in nin_triton(boot, *url).out.decode()


def test_float_images_are_refused_where_the_model_takes_pixels(
    nin_triton: Run, server: Server, reference: Reference, tmp_path: Path
) -> None:
    path = input_of("nin_onnx", reference, tmp_path)
    assert_refused(nin_triton(path, "--url", server.http), "not an IDX file of 28x28 unsigned byte")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "resnet"), "has no model resnet: Request for unknown model: 'resnet'"),
        (
            ("--model", "decode_image"),
            r"model decode_image takes encoded_image BYTES \[-1,1\], "
            r"expected UINT8 \[-1,H,W\] or \[-1,H,W,3\], or FP32 \[-1,C,H,W\]",
        ),
        (("--model", "fashion_mnist_image"), "takes encoded_image BYTES"),
        (("--model", "../../health/live"), "isn't a model's name"),
        (("--top", 11), "--top 11: there are 10 classes"),
    ],
)
def test_mistakes(
    nin_triton: Run, server: Server, images: Path, options: tuple[object, ...], message: str
) -> None:
    assert_refused(nin_triton(images, "--url", server.http, *options), message)


def test_a_port_of_another_protocol(nin_triton: Run, server: Server, images: Path) -> None:
    assert_refused(nin_triton(images, "--url", server.grpc), "the server at .*")
    message = "the server at .* can't be read: .*; is it a Triton server's HTTP port"
    assert_refused(nin_triton(images, "--url", server.metrics), message)


# --- servers that are no Triton ---

Answer = bytes | Callable[[socket.socket], None]


def http(
    body: bytes, status: str = "200 OK", length: int | None = None, **headers: object
) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def as_json(value: object) -> bytes:
    return http(json.dumps(value).encode())


def tensor(name: str, datatype: str, shape: list[int], size: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
    return found if size is None else found | {"parameters": {"binary_data_size": size}}


def binary(outputs: object, data: bytes, length: object = None) -> bytes:
    text = json.dumps({"outputs": outputs}).encode()
    size = len(text) if length is None else length
    return http(text + data, Inference_Header_Content_Length=size)


def metadata(graph: Graph = CLASSIFIER) -> dict[str, Any]:
    kinds = {"uint8": "UINT8", "float32": "FP32"}
    tensors = (graph.input, *graph.outputs)
    found = [tensor(t.name, kinds[t.dtype], [-1, *t.shape]) for t in tensors]
    return {"name": "fashion_mnist", "inputs": found[:1], "outputs": found[1:]}


def labels(texts: list[str], name: str = "probabilities") -> bytes:
    return as_json({"outputs": [tensor(name, "BYTES", [1, len(texts)]) | {"data": texts}]})


FILES = {
    **{"mode": "grey", "resize": "pad", "height": 28, "width": 28},
    **{"shorter_side": 0, "filter": "bicubic"},
}


def config(files: object = FILES, **changes: object) -> bytes:
    parameters = {"files": {"string_value": json.dumps(files)}}
    return as_json({"max_batch_size": MAX_BATCH, "parameters": parameters} | changes)


def statistics(*models: str) -> bytes:
    """Triton's, of the models that are ready."""
    return as_json({"model_stats": [{"name": name, "version": "1"} for name in models]})


LOGITS = tensor("logits", "FP32", [1, 10], 40)
PROBABILITIES = tensor("probabilities", "FP32", [1, 10], 40)
NAMES = ("logits", "probabilities")
TEXTS = [f"0.1:{index}:{label}" for index, label in enumerate(LABELS)]
ZEROS = bytes(40)
ONE = np.eye(1, 10, 3, dtype="<f4").tobytes()  # all of it is class 3, Dress


def header(head: bytes, name: str) -> int:
    """The number in a request's header; 0 where it has none."""
    found = re.search(rb"^%s: (\d+)" % name.encode(), head, re.M)
    return int(found[1]) if found else 0


@dataclass
class Fake:
    """Answers as Triton does, for one image at a time, but for what is replaced by kind.

    An answer is bytes to send, or a function that is given the socket; after it the connection is
    closed.
    """

    replaced: dict[str, Answer]
    requests: list[tuple[str, bytes]] = field(default_factory=list)  # kind and head
    answers: dict[str, bytes] = field(
        default_factory=lambda: {
            "statistics": statistics("nin_onnx", "fashion_mnist", "fashion_mnist_image"),
            "metadata": as_json(metadata()),
            "config": config(),
            "labels": labels(TEXTS),
            "infer": binary([PROBABILITIES, LOGITS], ONE + ZEROS),  # not in their usual order
        }
    )

    def __post_init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.connections = 0
        self._closed = False
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        self._closed = True
        socket.create_connection(self._socket.getsockname()).close()
        self._thread.join()
        self._socket.close()

    def _accept(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection, suppress(OSError):
                if self._closed:
                    return
                self.connections += 1
                connection.settimeout(10)
                self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as reader:
            while head := b"".join(itertools.takewhile(lambda line: line != b"\r\n", reader)):
                body = reader.read(header(head, "Content-Length"))
                kind = self._kind(head, body)
                self.requests.append((kind, head))
                answer = self.replaced.get(kind, self.answers[kind])
                if callable(answer):
                    answer(connection)
                    return
                connection.sendall(answer)
                if kind in self.replaced:
                    return

    @staticmethod
    def _kind(head: bytes, body: bytes) -> str:
        path = head.split()[1]
        if path == b"/v2/models/stats":
            return "statistics"
        if path.endswith(b"/infer"):
            return "labels" if b'"classification"' in body else "infer"
        return "config" if path.endswith(b"/config") else "metadata"


@pytest.fixture
def fake() -> Iterator[Callable[[dict[str, Answer]], Fake]]:
    made: list[Fake] = []

    def make(replaced: dict[str, Answer]) -> Fake:
        made.append(Fake(replaced))
        return made[-1]

    yield make
    for server in made:
        server.close()


FakeServer = Callable[[dict[str, Answer]], Fake]


def test_a_server_that_answers_rightly(nin_triton: Run, fake: FakeServer, images: Path) -> None:
    """Else all of the following would be refused for nothing."""
    server = fake({})
    ended = nin_triton(images, "--url", server.url, "--limit", 3, "--batch-size", 1)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.decode().count("Dress") == 3
    assert [kind for kind, _ in server.requests] == [
        "statistics", "metadata", "config", "labels", "infer", "infer", "infer"
    ]  # fmt: skip
    assert server.connections == 1


def test_outputs_are_told_apart_by_name(nin_triton: Run, fake: FakeServer, images: Path) -> None:
    server = fake({"infer": binary([LOGITS, PROBABILITIES], ZEROS + ONE)})
    options = ("--url", server.url, "--limit", 1, "--format", "json")
    (image,) = json.loads(nin_triton(images, *options).out)
    assert image["logits"] == [0] * 10
    assert image["predictions"] == [{"index": 3, "label": "Dress", "probability": 1}]


def test_image_files_are_decoded_as_the_server_says(
    nin_triton: Run, fake: FakeServer, reference: Reference, tmp_path: Path
) -> None:
    boot = tmp_path / "boot.png"
    boot.write_bytes(encode_png(reference.pixels[0]))
    assert "Dress" in nin_triton(boot, "--url", fake({}).url).out.decode()
    server = fake({"config": as_json({"max_batch_size": 8})})
    ended = nin_triton(boot, "--url", server.url, "--model", "bare")
    assert_refused(ended, "boot.png: the model bare doesn't say how it takes image files")


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("", "has 0 models M with an M_image beside it; name the model, one of: none is ready$"),
        ("b a", "has 0 models .* one of: a, b$"),
        ("a a_image b b_image", "has 2 models .* one of: a, b$"),
        ("a/b a/b_image", "an answer that can't be right: 'a/b' isn't a model's name"),
    ],
)
def test_which_model_is_meant_must_be_clear(
    nin_triton: Run, fake: FakeServer, images: Path, models: str, message: str
) -> None:
    server = fake({"statistics": statistics(*models.split())})
    assert_refused(nin_triton(images, "--url", server.url), message)
    assert nin_triton(images, "--url", server.url, "--model", "a", "--limit", 1).code == 0


def test_a_server_that_lists_no_models(nin_triton: Run, fake: FakeServer, images: Path) -> None:
    server = fake({"statistics": http(b"<html>", "404 Not Found")})
    message = "doesn't list its models, name one: <html>$"
    assert_refused(nin_triton(images, "--url", server.url), message)


def test_the_labels_of_many_classes(nin_triton: Run, fake: FakeServer, images: Path) -> None:
    """Several times what the JSON of few may have."""
    count = 20_000
    texts = [f"0.000001:{i}:class {i}, with a name that is long: {'x' * 100}" for i in range(count)]
    outputs = [tensor(n, "FP32", [1, count], 4 * count) for n in NAMES]
    server = fake({})
    server.answers["metadata"] = as_json(
        metadata() | {"outputs": [tensor(n, "FP32", [-1, count]) for n in NAMES]}
    )
    server.answers["labels"] = labels(texts)
    server.answers["infer"] = binary(outputs, 2 * np.eye(1, count, 77, "<f4").tobytes())
    options = ("--url", server.url, "--limit", 1, "--format", "csv")
    assert b',77,"class 77, with' in nin_triton(images, *options).out


def test_the_environments_proxy_gets_nothing(
    nin_triton: Run, fake: FakeServer, images: Path
) -> None:
    server, proxy = fake({}), fake({})
    env = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), f"http://{proxy.url}")
    ended = nin_triton(images, "--url", server.url, "--limit", 1, env=env)
    assert ended.code == 0
    assert proxy.requests == []


def silent(connection: socket.socket) -> None:
    connection.recv(1)  # until the client loses its patience


def endless(connection: socket.socket) -> None:
    """A quarter of a gigabyte, unless the client hangs up before."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 10\r\n\r\n")
    for _ in range(4096):
        connection.sendall(b"[" * 65536)


def endless_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for _ in range(4096):
        connection.sendall(b"X: " + b"y" * 65000 + b"\r\n")


def dripping(connection: socket.socket) -> None:
    """Always a bit more, never all."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(100):
        connection.sendall(b" ")
        time.sleep(0.1)


ALWAYS_WRONG: dict[str, tuple[Answer, str]] = {
    "500 with JSON": (http(b'{"error":"out of\\n memory"}', "500 x"), "500: out of. memory$"),
    "500 with HTML": (http(b"<html>\n<b>no</b>", "500 x"), "answers with HTTP 500: <html>$"),
    "500, long": (http(b"\x1b[31m" + b"x" * 9999, "500 x"), r"500: \?\[31mx{195}\.\.\.$"),
    "503, empty": (http(b"", "503 Unavailable"), "answers with HTTP 503: no reason given$"),
    "elsewhere": (http(b"", "302 Found", Location="http://127.0.0.1:1/"), "with HTTP 302"),
    "garbage": (http(b"garbage", Inference_Header_Content_Length=7), "can't be read: parse error"),
    "deep": (http(b"[" * 10**6, Inference_Header_Content_Length=10**6), "nested too deeply"),
    "nothing": (http(b"", Inference_Header_Content_Length=0), "can't be read"),
    "number": (http(b"3", Inference_Header_Content_Length=1), "can't be read"),
    "null": (http(b'{"inputs":null,"outputs":null,"max_batch_size":null}',
             Inference_Header_Content_Length=52), "the server at"),
    "no UTF-8": (http(b'{"outputs":"\xff"}', Inference_Header_Content_Length=15), "can't be read"),
    "gzip": (http(bytes(range(256)) * 4, Content_Encoding="gzip"), "can't be r(ead|ight)"),
    "no HTTP": (b"\x00\x01\x02 what is this\r\n\r\n", "is it a Triton server's HTTP port"),
    "random": (np.random.default_rng(0).bytes(100_000), "is it a Triton server's HTTP port"),
    "hangs up": (b"", "closed the connection before its answer was whole"),
    "hangs up in the head": (b"HTTP/1.1 200 OK\r\nConte", "the server at"),
    "hangs up in the body": (http(b'{"outputs"', length=1000), "closed the connection"),
    "endless": (endless, "sends more than 10[45][0-9]{4} bytes; is it a Triton server"),
    "endless head": (endless_headers, "the server at"),
    "huge": (http(b"", length=2**62), "the server at"),
    "silent": (silent, "gave no whole answer within 1 s"),
    "dripping": (dripping, "gave no whole answer within 1 s"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["statistics", "metadata", "config", "labels", "infer"])
@pytest.mark.parametrize("wrong", list(ALWAYS_WRONG))
def test_answers_that_are_always_wrong(
    nin_triton: Run, fake: FakeServer, images: Path, wrong: str, kind: str
) -> None:
    answer, message = ALWAYS_WRONG[wrong]
    server = fake({kind: answer})
    start = time.monotonic()
    ended = nin_triton(images, "--url", server.url, "--limit", 1, "--timeout", 1)
    assert time.monotonic() - start < 5
    assert_refused(ended, f"the server at {server.url} .*")
    assert re.search(message, ended.err), ended.err
    asked = [found for found, _ in server.requests]
    assert asked[-1] == kind
    assert len(asked) <= len(set(asked)) + 1  # a closed connection may have been a stale one


def with_metadata(**changes: object) -> bytes:
    return as_json(metadata() | changes)


WRONG: dict[str, tuple[str, bytes, str]] = {
    # what the model is
    "no inputs": ("metadata", with_metadata(inputs=[]), "takes nothing, expected UINT8"),
    "two inputs": (
        "metadata", with_metadata(inputs=metadata()["inputs"] * 2), "takes pixels .*, pixels .*"
    ),
    "other dtype": (
        "metadata",
        with_metadata(inputs=[tensor("pixels", "FP32", [-1, 28, 28])]),
        r"model fashion_mnist takes pixels FP32 \[-1,28,28\], expected",
    ),
    "other shape": (
        "metadata",
        with_metadata(inputs=[tensor("pixels", "UINT8", [28, 28])]),
        r"takes pixels UINT8 \[28,28\], expected",
    ),
    "inputs of another type": ("metadata", with_metadata(inputs=[3]), "can't be read"),
    "no logits": (
        "metadata", with_metadata(outputs=metadata()["outputs"][1:]), "there is no output logits"
    ),
    "no probabilities": (
        "metadata",
        with_metadata(outputs=metadata()["outputs"][:1]),
        "there is no output probabilities",
    ),
    "outputs that differ": (
        "metadata",
        with_metadata(outputs=[
            tensor("logits", "FP32", [-1, 10]), tensor("probabilities", "FP32", [-1, 11])
        ]),
        r"gives logits FP32 \[-1,10\], probabilities FP32 \[-1,11\], expected probabilities",
    ),
    "any number of classes": (
        "metadata",
        with_metadata(outputs=[tensor(n, "FP32", [-1, -1]) for n in NAMES]),
        "-1 is no size",
    ),
    "a billion classes": (
        "metadata",
        with_metadata(outputs=[tensor(n, "FP32", [-1, 10**9]) for n in NAMES]),
        r"gives logits FP32 \[-1,1000000000\]",
    ),
    "one class": (
        "metadata",
        with_metadata(outputs=[tensor(n, "FP32", [-1, 1]) for n in NAMES]),
        r"expected logits FP32 \[-1,CLASSES\] of 2 to 100000",
    ),
    "an image beyond all": (
        "metadata",
        with_metadata(inputs=[tensor("pixels", "UINT8", [-1, 2**32, 2**32])]),
        r"takes pixels UINT8 \[-1,4294967296,4294967296\], expected",
    ),
    "two colours": (
        "metadata",
        with_metadata(inputs=[tensor("pixels", "UINT8", [-1, 28, 28, 2])]),
        r"takes pixels UINT8 \[-1,28,28,2\], expected",
    ),
    "a decoding that is none": ("config", config({"mode": "grey"}), "can't be read: .*resize"),
    "a decoding that isn't JSON": ("config", config(files="{"), "can't be (read|right)"),
    "a decoding to other pixels": (
        "config", config(FILES | {"width": 29}), r"but decodes files to pixels uint8 \(N, 28, 29\)"
    ),
    "an unknown filter": (
        "config", config(FILES | {"filter": "box"}), "filter is .box., known are bicubic, bilinear"
    ),
    "no batches": ("config", as_json({"max_batch_size": 0}), "needs a max_batch_size of 1"),
    "negative batches": ("config", as_json({"max_batch_size": -1}), "-1 is no size"),
    "half a batch": ("config", as_json({"max_batch_size": 0.5}), "0.5 is no size"),
    "text": ("config", as_json({"max_batch_size": "64"}), '"64" is no size'),
    "404": ("metadata", http(b"<html>\nnginx", "404 Not Found"), "no model fashion_mnist: <html>$"),
    # its labels
    "no labels": ("labels", labels([f"0.1:{i}" for i in range(10)]), "needs a label_filename"),
    "empty labels": ("labels", labels([f"0.1:{i}:" for i in range(10)]), "gives no labels"),
    "few labels": ("labels", labels(TEXTS[:9]), "gives no labels for some of the 10 classes"),
    "a label twice": ("labels", labels([*TEXTS[:9], TEXTS[0]]), "gives no labels"),
    "one class more": ("labels", labels([*TEXTS, "0:10:x"]), "'0:10:x' is no VALUE:INDEX:LABEL"),
    "a negative class": ("labels", labels(["0:-1:x"]), "is no VALUE:INDEX:LABEL of 10 classes"),
    "no class": ("labels", labels([""]), "'' is no VALUE:INDEX:LABEL"),
    "only a label": ("labels", labels(["Dress"]), "'Dress' is no VALUE:INDEX:LABEL"),
    "half a class": ("labels", labels(["0:1x:x"]), "is no VALUE:INDEX:LABEL"),
    "labels of another output": ("labels", labels(TEXTS, "logits"), "no output probabilities"),
    "numbers for labels": (
        "labels",
        as_json({"outputs": [tensor("probabilities", "FP32", [1, 10]) | {"data": [0.1] * 10}]}),
        "can't be read: .*must be string",
    ),
    # its answers
    "NaN": (
        "infer",
        binary([PROBABILITIES, LOGITS], np.full(10, -np.nan, "<f4").tobytes() + ZEROS),
        "the probabilities of image 0 of 1 hold -?nan, expected finite numbers",
    ),
    "an infinite logit": (
        "infer",
        binary([PROBABILITIES, LOGITS], ONE + np.full(10, np.inf, "<f4").tobytes()),
        "the logits of image 0 of 1 hold inf",
    ),
    "other count": (
        "infer",
        binary([tensor("logits", "FP32", [2, 10], 80), PROBABILITIES], bytes(120)),
        r"logits FP32 \[2,10\] of 80 bytes, expected logits FP32 \[1,10\]",
    ),
    "other rank": (
        "infer",
        binary([tensor("logits", "FP32", [10], 40), PROBABILITIES], ZEROS + ONE),
        r"logits FP32 \[10\] of 40 bytes, expected",
    ),
    "doubles": (
        "infer",
        binary([tensor("logits", "FP64", [1, 10], 80), PROBABILITIES], bytes(120)),
        r"logits FP64 \[1,10\] of 80 bytes, expected logits FP32",
    ),
    "size and shape that differ": (
        "infer",
        binary([tensor("logits", "FP32", [1, 10], 36), PROBABILITIES], bytes(76)),
        r"of 36 bytes, expected",
    ),
    "a size beyond all": (
        "infer",
        binary([tensor("logits", "FP32", [1, 10], 2**64 - 1), PROBABILITIES], bytes(80)),
        "of 18446744073709551615 bytes, expected",
    ),
    "a negative size": (
        "infer", binary([tensor("logits", "FP32", [1, 10], -40)], bytes(40)), "-40 is no size"
    ),
    "missing output": ("infer", binary([LOGITS], ZEROS), "there is no output probabilities"),
    "no output": ("infer", binary([], b""), "there is no output logits"),
    "outputs of another type": ("infer", binary(3, b""), "can't be read"),
    "short body": (
        "infer",
        binary([LOGITS, PROBABILITIES], bytes(60)),
        "ends in the middle of probabilities: 20 of 40 bytes",
    ),
    "no body": (
        "infer", binary([LOGITS, PROBABILITIES], b""), "in the middle of logits: 0 of 40 bytes"
    ),
    "long body": (
        "infer", binary([LOGITS, PROBABILITIES], bytes(81)), "1 bytes after its outputs"
    ),
    "no header": (
        "infer", as_json({"outputs": []}), "no header Inference-Header-Content-Length"
    ),
    "a header beyond the body": (
        "infer",
        binary([LOGITS, PROBABILITIES], bytes(80), 10**9),
        "Inference-Header-Content-Length is '1000000000', its body has [0-9]+ bytes",
    ),
    "a negative header": ("infer", binary([LOGITS], ZEROS, -5), "Content-Length is '-5'"),
    "a header beyond all": ("infer", binary([LOGITS], ZEROS, 2**64), "is '18446744073709551616'"),
    "a header in words": ("infer", binary([LOGITS], ZEROS, "many"), "Content-Length is 'many'"),
    "a header too short": (
        "infer", binary([LOGITS, PROBABILITIES], bytes(80), 20), "can't be read"
    ),
    "numbers in JSON": (
        "infer",
        binary([tensor("logits", "FP32", [1, 10]) | {"data": [0.1] * 10}], b""),
        "can't be read: .*parameters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", list(WRONG))
def test_wrong_answers(nin_triton: Run, fake: FakeServer, images: Path, wrong: str) -> None:
    kind, answer, message = WRONG[wrong]
    server = fake({kind: answer})
    ended = nin_triton(images, "--url", server.url, "--limit", 1)
    assert_refused(ended, f"the server at {server.url} .*")
    assert re.search(message, ended.err), ended.err


def test_a_second_batch_that_fails_prints_nothing(
    nin_triton: Run, fake: FakeServer, images: Path
) -> None:
    """Half of the results would look like all of them."""
    server = fake({})
    ended = nin_triton(images, "--url", server.url, "--limit", 3, "--batch-size", 2)
    assert_refused(ended, r"logits|probabilities FP32 \[1,10\] of 40 bytes, expected .* \[2,10\]")


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    return write_idx(tmp_path / "floats.idx", np.zeros((9, 1, 224, 224), np.float32))


def network_server(fake: FakeServer, replaced: dict[str, Answer]) -> Fake:
    server = fake(replaced)
    server.answers["metadata"] = as_json(metadata(NETWORK))
    server.answers["config"] = as_json({"max_batch_size": 7})
    server.answers["labels"] = labels(TEXTS, "logits")
    return server


def test_requests_are_no_larger_than_the_server_allows(
    nin_triton: Run, fake: FakeServer, floats: Path
) -> None:
    """And a large one goes at once: curl asks no "100 Continue" before it."""
    server = network_server(fake, {"infer": http(b'{"error":"enough"}', "400 x")})
    options = (floats, "--url", server.url, "--model", "network")
    assert_refused(nin_triton(*options, "--batch-size", 8), "the model takes 1 to 7")
    assert_refused(nin_triton(*options), "answers with HTTP 400: enough")
    (head,) = (head for kind, head in server.requests if kind == "infer")
    sent = header(head, "Content-Length") - header(head, "Inference-Header-Content-Length")
    assert sent == 7 * 224 * 224 * 4
    assert b"Expect:" not in head


def test_the_float_network_by_a_fake(nin_triton: Run, fake: FakeServer, floats: Path) -> None:
    """Probabilities are made of the logits there, and labels asked of them."""
    numbers = np.log(np.arange(1, 11, dtype="<f4")).tobytes()
    server = network_server(fake, {"infer": binary([LOGITS], numbers)})
    options = ("--url", server.url, "--model", "network", "--limit", 1, "--format", "json")
    (image,) = json.loads(nin_triton(floats, *options, "--top", 10).out)
    found = [p["probability"] for p in image["predictions"]]
    assert found == pytest.approx(np.arange(10, 0, -1) / 55, abs=1e-6)
    head = server.requests[-1][1]
    sent = header(head, "Content-Length") - header(head, "Inference-Header-Content-Length")
    assert sent == 224 * 224 * 4


def test_nobody_there(nin_triton: Run, images: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as unused:
        url = f"127.0.0.1:{unused.getsockname()[1]}"
    message = f"the server at {url} can't be reached: .*connect.*; start one with `make serve`"
    assert_refused(nin_triton(images, "--url", url), message)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "here",
            "127.0.0.1:",
            "ftp://127.0.0.1:1",
            "my host:8000",
            "::1:8000",
            "::1",
            "[::1]",
        ),
        *("[::1:8000", "[127.0.0.1]:8000", "127.0.0.1:\uff18\uff10", "127.0.0.1:8000:9"),
    ],
)
def test_what_is_no_address_is_refused(nin_triton: Run, images: Path, url: str) -> None:
    assert_refused(nin_triton(images, "--url", url), "isn't a server's address; write HOST:PORT")
