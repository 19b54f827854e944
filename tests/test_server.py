"""Starting, swapping and stopping the embedded server, and its refusals."""

import contextlib
import csv
import http.client
import http.server
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import nin.serve.server
from nin.client import URLS, Client
from nin.contract import Contract
from nin.errors import InputError
from nin.files import temporary_folder
from nin.images import encode_png
from nin.network.build import TrainedModel
from nin.paths import MODEL_REPOSITORY, ROOT, TRITON
from nin.reference.exact import compute_reference
from nin.releases import DEPLOYED
from nin.samples import open_samples
from nin.serve.repository import publish
from nin.serve.server import HOST, PORTS, ServerDiedError, find_tritonserver, serve
from tests.conftest import Script
from tests.models import ODD_LABELS

SERVE = "scripts/serve.py"
FREE = dict.fromkeys(PORTS, 0)
NEIGHBOURS = ("lost+found", ".ipynb_checkpoints", "notes")


@pytest.fixture
def own(embedded: None, lenet_repository: Path, tmp_path: Path) -> Path:
    """A repository with version 1 of a small model, of this test's own."""
    return Path(shutil.copytree(lenet_repository, tmp_path / "own"))


def answers(client: Client) -> bool:
    """Whether the small model classifies."""
    return client.classify(np.zeros((1, 16, 20), np.uint8))[0][0].label in ODD_LABELS


# --- hot swap ---


def test_swap_and_rollback_under_load_lose_no_request(
    script: Script, lenet_model: TrainedModel, lenet_artifacts: Path, own: Path
) -> None:
    """Clients ask all the time, for pixels and for files, while versions come and go."""
    lenet = lenet_model.contract
    options = ("--model", lenet.folder, "--artifacts", lenet_artifacts, "--repository", own)
    with serve(own, ports=FREE) as server, load(server.grpc, lenet_model) as asked:
        command = ("export/to_triton.py", *options, "--load", server.http)
        wait_for(asked, 500)
        assert served_versions(server.http, lenet) == ["1"]
        assert script(*command, "--unproven").code == 0
        assert served_versions(server.http, lenet) == ["1", "2"]
        wait_for(asked, 500)
        assert script(*command, "--rollback").code == 0
        # 1 is unloaded, nobody asks for it
        assert served_versions(server.http, lenet) == ["2", "3"]
        wait_for(asked, 500)
    assert asked.failures == []
    assert asked.count >= 1500


def test_loading_into_a_server_of_another_repository_is_noticed(
    script: Script, lenet: Contract, lenet_artifacts: Path, own: Path, tmp_path: Path
) -> None:
    """One with older versions, and one that has a version of the same number by chance."""
    elsewhere = Path(shutil.copytree(own, tmp_path / "elsewhere"))
    options = (
        "--model",
        lenet.folder,
        "--artifacts",
        lenet_artifacts,
        "--repository",
        elsewhere,
        "--unproven",
    )
    with serve(own, ports=FREE) as server:
        ended = script("export/to_triton.py", *options, "--load", server.http)
        assert ended.code == 1
        assert f"{server.http} seems to serve another repository" in ended.err
        assert "version 2 was published, and not loaded there" in ended.err
        assert "Its versions are lenet_onnx: 1; lenet_torchscript: 1; " in ended.err
        publish(lenet, lenet_artifacts, own, version=3)
        with Client(server.http) as client:
            for model in lenet.published:
                client.load(model.name)
        ended = script("export/to_triton.py", *options, "--load", server.http)
        assert ended.code == 1
        assert "version 3 was published, and not loaded there" in ended.err
        assert "lenet_onnx: 1, 3; " in ended.err


def test_a_server_that_is_not_there_ends_it_before_publishing(
    script: Script, lenet: Contract, lenet_artifacts: Path, own: Path
) -> None:
    options = (
        "--model",
        lenet.folder,
        "--artifacts",
        lenet_artifacts,
        "--repository",
        own,
        "--load",
        "127.0.0.1:1",
    )
    ended = script("export/to_triton.py", *options)
    assert ended.code == 2
    assert "no Triton server at 127.0.0.1:1" in ended.err
    assert not list(own.glob("*/2"))


def test_that_load_notices_a_swap_that_loses_requests(
    lenet_model: TrainedModel, lenet_artifacts: Path, own: Path
) -> None:
    """With only the newest version loaded, as configs often have it, some requests fail."""
    lenet = lenet_model.contract
    for model in lenet.published:
        config = own / model.name / "config.pbtxt"
        config.write_text(config.read_text().replace("num_versions: 2", "num_versions: 1"))
    with (
        serve(own, ports=FREE) as server,
        load(server.grpc, lenet_model) as asked,
        Client(server.http) as client,
    ):
        for _ in range(20):
            publish(lenet, lenet_artifacts, own)
            client.load("small")
            if asked.failures:
                break
            wait_for(asked, 50)
    assert any("is not at ready state" in failure for failure in asked.failures)


class Asked:
    """What the clients under load have seen."""

    def __init__(self) -> None:
        self.count = 0
        self.failures: list[str] = []


@contextlib.contextmanager
def load(url: str, model: TrainedModel) -> Iterator[Asked]:
    """Four clients that ask without a pause, until the block ends; each answer is checked."""
    asked, stop, lock = Asked(), threading.Event(), threading.Lock()
    samples = open_samples(model.contract)
    pixels = samples.pixels(range(len(samples)))
    files = [encode_png(image) for image in pixels]
    right = compute_reference(model, pixels).outputs["probabilities"].max(axis=1)

    def ask(number: int) -> None:
        random = np.random.default_rng(number)
        with Client(url, protocol="grpc", retries=0) as client:
            while not stop.is_set():
                indices = random.integers(0, len(pixels), size=random.integers(1, 4))
                try:
                    if number % 2:
                        answers = client.classify(pixels[indices])
                    else:
                        answers = client.classify_files([files[i] for i in indices])
                    found = [best.probability for best, *_ in answers]
                    assert found == pytest.approx(right[indices], abs=1e-5)
                except Exception as error:  # whatever it is, it is counted
                    asked.failures.append(repr(error))
                    continue
                with lock:
                    asked.count += len(found)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield asked
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def wait_for(asked: Asked, more: int) -> None:
    goal, deadline = asked.count + more, time.monotonic() + 60
    while asked.count < goal:
        assert time.monotonic() < deadline, asked.failures
        time.sleep(0.01)


def served_versions(url: str, contract: Contract) -> list[str]:
    with Client(url) as client:
        found = [client.metadata(model.name)["versions"] for model in contract.published]
    assert all(versions == found[0] for versions in found)
    versions: list[str] = found[0]
    return versions


def test_a_version_that_does_not_load_leaves_the_one_before(
    lenet: Contract, own: Path, lenet_artifacts: Path
) -> None:
    """The server refuses version 2, says why, and serves version 1 on."""
    with serve(own, ports=FREE) as server, Client(server.http) as client:
        publish(lenet, lenet_artifacts, own)
        (own / "small" / "2" / "model.onnx").write_bytes(b"no model")
        with pytest.raises(InputError, match="load failed .*'small'.*INVALID_PROTO"):
            client.load("small")
        assert client.metadata("small")["versions"] == ["1"]
        assert answers(client)


def test_a_server_that_polls_follows_the_files(
    lenet: Contract, own: Path, lenet_artifacts: Path
) -> None:
    (own / "lost+found").mkdir()
    with serve(own, ports=FREE, control_mode="poll") as server, Client(server.http) as client:
        publish(lenet, lenet_artifacts, own)
        deadline = time.monotonic() + 60
        while client.metadata("small")["versions"] != ["1", "2"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_cache_and_trace_switch_on_as_documented(
    embedded: None, lenet_repository: Path, tmp_path: Path
) -> None:
    """docs/serving.md: a cached answer is the same, a trace tells where a request was when."""
    trace = tmp_path / "trace.json"
    page = (ROOT / "docs" / "serving.md").read_text()
    extra = re.findall(r"--(?:cache|trace)-config=\S+", page)
    assert len(extra) == 5
    extra = [option.replace("$PWD/trace.json", str(trace)) for option in extra]
    pixels = np.full((2, 16, 20), 7, np.uint8)
    with serve(lenet_repository, ports=FREE, extra=extra) as server, Client(server.http) as client:
        first, second = (client.infer("small", {"pixels": pixels}) for _ in range(2))
        hits = client.statistics("small")["inference_stats"]["cache_hit"]["count"]
    assert hits == 1
    np.testing.assert_array_equal(first["logits"], second["logits"])
    events = json.loads(trace.read_text())
    names = {stamp["name"] for event in events for stamp in event.get("timestamps", [])}
    assert {"HTTP_RECV_START", "QUEUE_START", "COMPUTE_START", "REQUEST_END"} <= names


# --- scripts/serve.py ---


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_says_what_it_serves_and_stops_with_its_children(
    lenet: Contract, embedded: None, lenet_repository: Path, end: signal.Signals
) -> None:
    ports = [f"--{name}-port=0" for name in PORTS]
    process = subprocess.Popen(
        [sys.executable, SERVE, "--repository", lenet_repository, *ports],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        text = read_until(process, "Ready")
        for model in lenet.models:
            assert re.search(rf"^\| {model.name} +\| +1 ", text, re.MULTILINE)
        host, port = re.findall(r"HTTP +http://([\d.]+):(\d+)", text)[0]
        assert host == "127.0.0.1"
        tree = children(process.pid)
        assert len(tree) == 1  # the server: all models run in its process
        process.send_signal(end)
        assert process.wait(60) == 0
    finally:
        process.kill()
        assert process.stdout
        process.stdout.close()
    assert not [pid for pid in tree if Path(f"/proc/{pid}").exists()]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))


def read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout
    text = ""
    for line in process.stdout:
        text += line
        if word in line:
            return text
    raise AssertionError(f"it ended: {text}")


def children(pid: int) -> list[int]:
    direct = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [descendant for child in map(int, direct) for descendant in (child, *children(child))]


def test_a_server_that_dies_says_why_and_keeps_its_log(
    embedded: None, lenet_repository: Path
) -> None:
    with serve(lenet_repository, ports=FREE) as server:
        threading.Timer(0.2, lambda: os.kill(server.process.pid, signal.SIGKILL)).start()
        with pytest.raises(ServerDiedError, match="ended by itself: SIGKILL; its log is ") as died:
            server.wait()
    log = Path(str(died.value).rpartition(" ")[2])
    assert "Started HTTPService" in log.read_text()
    log.unlink()


@pytest.mark.parametrize(
    ("code", "log", "cause"),
    [
        (
            -6,
            "terminate called\n  what():  std::bad_alloc\nstack frames",
            "std::bad_alloc, SIGABRT",
        ),
        (-11, "0# 0x0000 in tritonserver", "SIGSEGV"),
        (1, "", "exit code 1"),
        (-64, "", "SIGRTMAX"),
    ],
)
def test_the_cause_of_an_end_is_one_line(code: int, log: str, cause: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(log)
    assert nin.serve.server._cause(code, tmp_path / "log") == cause


@contextlib.contextmanager
def serve_script(repository: Path) -> Iterator[subprocess.Popen[str]]:
    """scripts/serve.py on free ports, in a process of its own."""
    ports = [f"--{name}-port=0" for name in PORTS]
    process = subprocess.Popen(
        [sys.executable, SERVE, "--repository", repository, *ports],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)
        assert process.stdout
        process.stdout.close()


def address_in(text: str) -> str:
    return re.findall(r"HTTP +http://(\S+)", text)[0]


def test_the_script_starts_a_server_that_dies_again(embedded: None, lenet_repository: Path) -> None:
    """A request that ends Triton 24.10: JSON nested 200,000 deep."""
    nested = b"[" * 200_000 + b"]" * 200_000
    with serve_script(lenet_repository) as process:
        address = address_in(read_until(process, "Ready"))
        with contextlib.closing(http.client.HTTPConnection(address, timeout=60)) as connection:
            connection.request("POST", "/v2/models/small/infer", nested)
            with pytest.raises((http.client.HTTPException, OSError)):
                connection.getresponse()
        text = read_until(process, "Ready")
        (line,) = (x for x in text.splitlines() if "starting it again" in x)
        assert re.match(
            r"tritonserver ended by itself: SIGSEGV; its log is \S+\.log; starting", line
        )
        assert address_in(text) == address
        with Client(address) as client:
            assert answers(client)
    Path(re.findall(r"its log is (\S+\.log)", line)[0]).unlink()


def test_it_serves_on_when_nobody_reads_what_it_says(
    embedded: None, lenet_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `nin serve | grep -m1 Ready`."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # for the log that it keeps
    with serve_script(lenet_repository) as process:
        address = address_in(read_until(process, "Ready"))
        assert process.stdout
        process.stdout.close()
        (first,) = children(process.pid)
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while not nin.serve.server._is_ready(f"http://{address}/v2"):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(1)  # it says so
        assert process.poll() is None
        assert children(process.pid) not in ([], [first])


def test_a_server_that_always_dies_is_given_up(
    script: Script, lenet_repository: Path, embedded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def started(*args: object, **options: object) -> Iterator[nin.serve.server.Server]:
        raise ServerDiedError("tritonserver ended by itself: SIGSEGV")
        yield

    monkeypatch.setattr("nin.commands.serve.serve", started)
    ended = script(SERVE, "--repository", lenet_repository)
    assert ended.code == 1
    assert ended.err.count("starting it again") == 4
    assert "5 times in 300 s: giving up" in ended.err


def test_the_server_does_not_outlive_a_script_that_is_killed(
    embedded: None, lenet_repository: Path
) -> None:
    with serve_script(lenet_repository) as process:
        read_until(process, "Ready")
        (server,) = children(process.pid)
        process.kill()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{server}/exe").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_next_server_sweeps_up_after_one_that_was_killed(
    embedded: None, lenet_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with serve_script(lenet_repository) as process:
        read_until(process, "Ready")
        process.kill()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(f"nin-triton-{process.pid}-")
    kept = [f"nin-triton-{process.pid}-link", "nin-triton-notes", f"nin-other-{process.pid}-a"]
    (tmp_path / "target").mkdir()
    (tmp_path / kept[0]).symlink_to("target")
    for name in kept[1:]:
        (tmp_path / name).mkdir()
    with temporary_folder("triton") as own, temporary_folder("triton") as another:
        assert {path.name for path in tmp_path.iterdir()} == {
            "target", own.name, another.name, *kept
        }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"target", *kept}


def test_it_stops_when_the_block_raises(embedded: None, lenet_repository: Path) -> None:
    with pytest.raises(ZeroDivisionError), serve(lenet_repository, ports=FREE) as server:
        raise ZeroDivisionError
    assert server.process.poll() is not None


def test_servers_share_a_machine(embedded: None, lenet_repository: Path) -> None:
    with serve(lenet_repository, ports=FREE) as one, serve(lenet_repository, ports=FREE) as two:
        assert one.http != two.http
        for server in (one, two):
            with Client(server.http) as client:
                assert answers(client)


def test_docker_prints_the_command(script: Script) -> None:
    ended = script(SERVE, "--docker")
    assert ended.code == 0
    assert "-p 127.0.0.1:8000:8000" in ended.out
    assert f'"src={MODEL_REPOSITORY}",dst=/models,readonly\' nin-triton:{DEPLOYED}\n' in ended.out


def test_docker_quotes_the_path(tmp_path: Path) -> None:
    folder = tmp_path / 'My $(models), "1"'
    words = shlex.split(nin.serve.server.docker_command(folder, PORTS).replace("\\\n", " "))
    (mount,) = csv.reader([words[words.index("--mount") + 1]])
    assert mount == ["type=bind", f"src={folder}", "dst=/models", "readonly"]


# --- paths, addresses, neighbours ---


def test_a_repository_may_have_any_path_and_anything_beside_its_models(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the folder of temporary files any path too."""
    name = 'My Models $(touch INJECTED); it\'s 桌面 & "more"'
    repository = own.rename(own.with_name(name))
    for neighbour in NEIGHBOURS:
        (repository / neighbour).mkdir()
    temporary = own.with_name(f"tmp {name}")
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with serve(repository, ports=FREE) as server, Client(server.http) as client:
        assert answers(client)
    assert not list(own.parent.rglob("INJECTED"))
    assert not Path("INJECTED").exists()


@pytest.mark.parametrize("mode", ["explicit", "poll"])
def test_copies_of_models_are_not_served_and_named(
    script: Script, own: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nin.serve.server.Server, "wait", stop)
    for name in ("small.bak", "small (copy)"):
        shutil.copytree(own / "small", own / name)
    ports = [f"--{name}-port=0" for name in PORTS]
    ended = script(SERVE, "--repository", own, *ports, "--model-control-mode", mode)
    assert ended.code == 0
    assert ended.err == (
        "note: not served, since their config.pbtxt isn't that of a model of their name: "
        "small (copy), small.bak\n"
    )
    assert "Ready" in ended.out


def test_any_key_without_spaces_controls_it(
    embedded: None, lenet_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIN_CONTROL_KEY", """!a:b=c,d;"'\\#%~""")
    with serve(lenet_repository, ports=FREE) as server:
        for protocol in URLS:
            with Client(getattr(server, protocol), protocol=protocol) as client:
                client.load("small")


def test_a_path_that_is_no_text(own: Path) -> None:
    repository = own.rename(own.with_name("latin\udce9"))
    with serve(repository, ports=FREE) as server, Client(server.http) as client:
        assert answers(client)


def test_without_model_control_neighbours_do_no_harm_either(own: Path) -> None:
    for neighbour in NEIGHBOURS:
        (own / neighbour).mkdir()
    with serve(own, ports=FREE, control_mode="none") as server, Client(server.http) as client:
        assert answers(client)


def test_ipv6(embedded: None, lenet_repository: Path) -> None:
    with serve(lenet_repository, ports=FREE, host="::1") as server:
        assert server.http.startswith("[::1]:")
        for protocol in URLS:
            with Client(getattr(server, protocol), protocol=protocol) as client:
                assert answers(client)


def test_a_proxy_is_not_asked_for_our_own_server(
    embedded: None, lenet_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with serve(lenet_repository, ports=FREE):
            proxy.settimeout(0)
            with pytest.raises(BlockingIOError):
                proxy.accept()


def test_another_server_s_answer_is_no_readiness() -> None:
    class Fine(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"name": "something else"}')

        def log_message(self, *args: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Fine) as server:
        threading.Thread(target=server.serve_forever).start()
        assert not nin.serve.server._is_ready(f"http://127.0.0.1:{server.server_port}/v2")
        server.shutdown()


def test_a_web_page_can_not_load_code(embedded: None, lenet_repository: Path) -> None:
    """It can send a POST to another origin, but no header of its own."""
    with serve(lenet_repository, ports=FREE) as server, Client(server.http) as client:
        client.load("small")
        for path in ("repository/models/small/load", "repository/index", "logging"):
            with contextlib.closing(http.client.HTTPConnection(server.http)) as connection:
                connection.request("POST", f"/v2/{path}", b"{}", {"Content-Type": "text/plain"})
                assert connection.getresponse().status == 403
        with Client(server.grpc, protocol="grpc") as grpc:
            grpc.load("small")


def test_listening_beyond_this_machine_is_said(
    script: Script, embedded: None, lenet_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nin.serve.server.Server, "wait", stop)
    said_of = {"::": "::", "0": "0.0.0.0", "127.1": "", "::1": "", "localhost": ""}  # noqa: S104
    for host, address in said_of.items():
        ended = script(
            SERVE, "--repository", lenet_repository, "--host", host,
            *(f"--{name}-port=0" for name in PORTS),
        )  # fmt: skip
        assert ended.code == 0
        note = f"note: {address} can be reached from other machines; " if address else ""
        assert ended.err.startswith(note)
        assert ("can be reached" in ended.err) is bool(address)


@pytest.mark.parametrize(
    ("host", "number"),
    [
        ("localhost", HOST),
        ("127.1", HOST),
        ("0x7f.1", HOST),
        ("0", "0.0.0.0"),  # noqa: S104
        ("::1", "::1"),
        ("::ffff:127.0.0.1", HOST),
    ],
)
def test_a_host_is_resolved_once(host: str, number: str) -> None:
    """Triton takes a name for 255.255.255.255."""
    assert nin.serve.server._resolve(host) == number


def test_of_a_name_with_both_ipv4_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [
        (socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, 1, 6, "", ("127.0.0.2", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert nin.serve.server._resolve("here") == "127.0.0.2"


# --- refusals ---


def test_too_few_open_files(embedded: None, lenet_repository: Path) -> None:
    command = f"ulimit -n 64; exec {sys.executable} {SERVE} --repository {lenet_repository}"
    ended = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "at most 64 files may be open here" in ended.stderr


def test_a_port_in_use(script: Script, embedded: None, lenet_repository: Path) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        ended = script(
            SERVE, "--repository", lenet_repository, "--grpc-port", port, "--http-port", 0
        )
    assert ended.code == 2
    assert f"can't listen on 127.0.0.1:{port}" in ended.err
    assert "choose another --grpc-port" in ended.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--http-port", "99999"), "99999 is not a port"),
        (("--host", "203.0.113.7"), "can't listen on 203.0.113.7:8000"),
        (("--host", "203.0.113.7"), "this machine has no such address: choose another --host"),
        (("--host", ""), "no address to listen on"),
        (("--host", "é" * 80), "no address is known for it"),
        (("--host", "*"), "can't listen on *: no address is known for it"),
        (("--host", "::1%lo"), "can't listen on ::1%lo: Triton takes no zone"),
        (("--model-control-mode", "magic"), "invalid choice: 'magic'"),
    ],
)
def test_mistakes(
    script: Script, embedded: None, lenet_repository: Path, options: tuple[str, ...], message: str
) -> None:
    ended = script(SERVE, "--repository", lenet_repository, *options)
    assert ended.code == 2
    assert message in ended.err
    assert "can be reached" not in ended.err


@pytest.mark.parametrize("name", ["0", "01", "9" * 20, "2.bak", "+3", "-1", " 4"])
def test_a_folder_that_triton_would_take_for_a_version_is_named(
    script: Script, own: Path, name: str
) -> None:
    (own / "small" / name).mkdir()
    ended = script(SERVE, "--repository", own)
    assert ended.code == 2
    assert f"{own / 'small' / name} isn't a version, 1 to {10**18 - 1}, and Triton" in ended.err
    assert "rename it, to begin with a letter, or remove it" in ended.err


def test_a_control_key_that_can_not_be_sent(
    script: Script, embedded: None, lenet_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIN_CONTROL_KEY", "two words")
    ended = script(SERVE, "--repository", lenet_repository, *(f"--{name}-port=0" for name in PORTS))
    assert ended.code == 2
    assert ended.err.startswith("error: NIN_CONTROL_KEY is 'two words', expected ASCII")


def test_nothing_published(script: Script, embedded: None, tmp_path: Path, own: Path) -> None:
    ended = script(SERVE, "--repository", tmp_path / "nowhere")
    assert ended.code == 2
    assert "no model repository at" in ended.err
    shutil.rmtree(own / "lenet_onnx" / "1")
    ended = script(SERVE, "--repository", own)
    assert ended.code == 2
    assert "no published version of lenet_onnx" in ended.err
    assert "make publish" in ended.err


def test_a_model_that_does_not_load_is_named_with_its_reason(script: Script, own: Path) -> None:
    (own / "lenet_torchscript" / "1" / "model.pt").write_bytes(b"no archive")
    ended = script(SERVE, "--repository", own, *(f"--{name}-port=0" for name in PORTS))
    assert ended.code == 1
    assert "lenet_torchscript version 1:" in ended.err
    assert "failed to load model 'lenet_torchscript'" in ended.err
    assert len(ended.err.splitlines()) <= 3


def test_a_config_that_can_not_be_parsed_is_named(script: Script, own: Path) -> None:
    (own / "small" / "config.pbtxt").write_text("max_batch_size: many")
    ended = script(SERVE, "--repository", own, *(f"--{name}-port=0" for name in PORTS))
    assert ended.code == 1
    assert "small" in ended.err
    assert len(ended.err.splitlines()) <= 4


def test_no_wheel(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no embedded Triton in .*; install it .*--no-deps"):
        find_tritonserver(tmp_path)


def test_no_backend(embedded: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no .*backends, which .*; build it by `make cpp`"):
        find_tritonserver(TRITON, tmp_path / "backends")


def test_bootstrap_installs_what_the_server_names() -> None:
    bootstrap = (ROOT / "scripts" / "bootstrap.sh").read_text()
    assert nin.serve.server.WHEEL in bootstrap


def test_health_is_asked_of_the_real_endpoints(embedded: None, lenet_repository: Path) -> None:
    """The paths that deploy/ probes."""
    with serve(lenet_repository, ports=FREE) as server:
        for path in ("/v2/health/ready", "/v2/health/live"):
            with contextlib.closing(http.client.HTTPConnection(server.http)) as connection:
                connection.request("GET", path)
                assert connection.getresponse().status == 200
