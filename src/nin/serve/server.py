"""The embedded server: the real `tritonserver` of the nvidia-pytriton wheel, without a container.

The wheel carries no backend for these models. cpp_client/triton_backend is one, which runs the
stand-ins of `nin.serve.backends` in the server's own process. For development and tests: the
release has holes that later ones closed (docs/serving.md).
"""

import contextlib
import ctypes
import errno
import http.client
import json
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from nin.client.connection import CONTROL_HEADER, control_key
from nin.contract import Contract
from nin.errors import CheckError, InputError
from nin.files import temporary_folder
from nin.paths import CPP_TOOLS, TRITON
from nin.releases import DEPLOYED
from nin.serve.repository import model_names, publish, require_published

WHEEL = "nvidia-pytriton==0.7.0"  # as scripts/bootstrap.sh installs it
RELEASE = "24.10"  # of Triton, which the wheel carries
HOST = "127.0.0.1"
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
CONTROL_MODES = ("explicit", "none", "poll")

# Built by scripts/build_cpp.sh for one version of Python, which the name says.
BACKENDS = CPP_TOOLS.parent / "triton_backend" / f"backends.{sysconfig.get_config_var('SOABI')}"

_SERVER = TRITON / "pytriton" / "tritonserver"

# Seconds that the server gives requests in flight when it stops, and we give the server.
_EXIT_TIMEOUT_S = 10
_READY_TIMEOUT_S = 120
_POLL_S = 2
_OPEN_FILES = 256  # sockets, threads' pipes and libraries; it can't start with 64


class ServerDiedError(CheckError):
    """The server ended by itself."""


@dataclass
class Server:
    """A running server: where it listens, each as host:port."""

    http: str
    grpc: str
    metrics: str
    process: subprocess.Popen[bytes]
    log: Path | None  # None: it writes to this process's stderr

    @property
    def host(self) -> str:
        """As a number."""
        return self.http.rpartition(":")[0].strip("[]")

    @property
    def ports(self) -> dict[str, int]:
        return {name: int(getattr(self, name).rpartition(":")[2]) for name in PORTS}

    def wait(self) -> None:
        """Blocks as long as the server lives. Raises ServerDiedError when it ends by itself.

        Its log is kept then, in a file that the error names.
        """
        code = self.process.wait()
        kept = ""
        if self.log:
            descriptor, name = tempfile.mkstemp(prefix="nin-triton-", suffix=".log")
            with os.fdopen(descriptor, "wb") as copy:
                copy.write(self.log.read_bytes())
            kept = f"; its log is {name}"
        raise ServerDiedError(f"tritonserver ended by itself: {_cause(code, self.log)}{kept}")


@contextmanager
def serve(
    repository: Path,
    *,
    host: str = HOST,
    ports: dict[str, int] | None = None,
    control_mode: str = "explicit",
    verbose: bool = False,
    extra: Sequence[str] = (),
) -> Iterator[Server]:
    """Starts a server on `repository`, yields it when it is ready, and stops it.

    Should this process be killed, or the thread end that calls, the server ends too.

    Args:
        host: an address of this machine, IPv4 or IPv6, or a name that leads to one.
        ports: for "http", "grpc" and "metrics"; 0 takes a free one.
        control_mode: "explicit" loads all and more by the API, "poll" follows the files, "none"
            loads all and stays so.
        verbose: lets the server's log through to stderr.
        extra: further options of tritonserver.

    Raises:
        InputError: the server isn't installed, nothing is published, or a port is taken.
        CheckError: a model doesn't load; the text is the server's own.
    """
    binary = find_tritonserver()
    require_published(repository)
    _require_open_files()
    addresses = _addresses(host, PORTS if ports is None else ports)
    with temporary_folder("triton") as folder:
        log = None if verbose else folder / "log"
        restricted = any("-restricted-" in option for option in extra)  # it takes them once only
        command = [
            str(binary),
            *_options(repository, addresses, control_mode, folder),
            *([] if restricted else _restrictions()),
            *(["--log-verbose=1"] if verbose else []),
            *extra,
        ]
        with (log or Path(os.devnull)).open("ab") as sink:
            process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=None if verbose else sink,
                stderr=None if verbose else sink,
                cwd=folder,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is ours to handle
                preexec_fn=_end_with_parent,
            )
        server = Server(**addresses, process=process, log=log)
        try:
            _wait_until_ready(server)
            yield server
        finally:
            _stop(process)


@contextmanager
def serve_artifacts(contract: Contract, artifacts: Path) -> Iterator[Server]:
    """Serves exports on free ports from a repository of their own, which goes with the server.

    Raises what `publish` and `serve` raise.
    """
    find_tritonserver()
    with temporary_folder("repository") as folder:
        repository = folder / "model_repository"
        publish(contract, artifacts, repository)
        with serve(repository, ports=dict.fromkeys(PORTS, 0)) as server:
            yield server


def find_tritonserver(triton: Path = TRITON, backends: Path = BACKENDS) -> Path:
    """The server's binary. Raises InputError where it can't run here, with what to do."""
    binary = triton / _SERVER.relative_to(TRITON) / "bin" / "tritonserver"
    if not binary.is_file():
        raise InputError(
            f"no embedded Triton in {triton}; install it (Linux x86_64, glibc 2.35 or newer) with "
            f"`python -m pip install --no-deps --target {triton} {WHEEL}`, "
            "or use the container: `nin serve --docker`"
        )
    if not backends.is_dir():
        raise InputError(
            f"no {backends}, which the embedded Triton needs; build it by "
            "`make cpp`, or use the container: `nin serve --docker`"
        )
    return binary


def docker_command(repository: Path, ports: dict[str, int]) -> str:
    """The command that serves the same repository from the image of deploy/Dockerfile."""
    published = " ".join(f"-p {HOST}:{ports[name]}:{inside}" for name, inside in PORTS.items())
    image = f"nin-triton:{DEPLOYED}"
    source = str(repository.resolve()).replace('"', '""')
    mount = shlex.quote(f'type=bind,"src={source}",dst=/models,readonly')  # CSV in shell words
    return (
        f"docker build -t {image} -f deploy/Dockerfile . &&\n"
        f"docker run --rm --shm-size=1g {published} \\\n"
        f"  --mount {mount} {image}"
    )


def _require_open_files() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < _OPEN_FILES:
        raise InputError(
            f"at most {limit} files may be open here, and tritonserver needs {_OPEN_FILES}; "
            f"raise the limit: `ulimit -n {_OPEN_FILES}`"
        )


def _addresses(host: str, ports: dict[str, int]) -> dict[str, str]:
    """host:port by protocol; the ports are held until all are known to be free."""
    number = _resolve(host.removeprefix("[").removesuffix("]"))
    family = socket.AF_INET6 if ":" in number else socket.AF_INET
    shown = f"[{number}]" if ":" in number else number
    addresses = {}
    with contextlib.ExitStack() as holders:
        for name, port in ports.items():
            holder = holders.enter_context(socket.socket(family, socket.SOCK_STREAM))
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holder.bind((number, port))
            except (OSError, OverflowError) as error:
                raise InputError(
                    f"can't listen on {shown}:{port} ({error}); {_remedy(error, name)}"
                ) from error
            addresses[name] = f"{shown}:{holder.getsockname()[1]}"
    return addresses


def _resolve(host: str) -> str:
    """A host as a number, which is all that Triton takes: IPv4 where a name has both."""
    if not host:
        raise InputError(f"no address to listen on; {HOST} is this machine alone")
    if "%" in host:
        raise InputError(
            f"can't listen on {host}: Triton takes no zone; choose a --host without one, {HOST} "
            "say, this machine alone"
        )
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise InputError(
            f"can't listen on {host}: no address is known for it ({error}); choose another "
            f"--host, {HOST} is this machine alone"
        ) from error
    _, number = min((family != socket.AF_INET, str(to[0])) for family, _, _, _, to in found)
    return str(getattr(ip_address(number), "ipv4_mapped", None) or number)


def _remedy(error: Exception, protocol: str) -> str:
    if getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
        return f"this machine has no such address: choose another --host, {HOST} is itself alone"
    return f"choose another --{protocol}-port, 0 for a free one, or stop what listens there"


def _options(
    repository: Path, addresses: dict[str, str], control_mode: str, folder: Path
) -> list[str]:
    listen = []
    for name, address in addresses.items():
        host, _, port = address.rpartition(":")
        if name != "grpc" and host.startswith("["):
            host = f"ipv6:{host[1:-1]}"  # so its HTTP library spells it
        listen += [f"--{name}-address={host}", f"--{name}-port={port}"]
    mode = {
        "explicit": [f"--load-model={name}" for name in model_names(repository)],
        "poll": [f"--repository-poll-secs={_POLL_S}"],
    }
    served = repository.resolve()
    # a path that isn't UTF-8 is one that the server can't read
    if control_mode != "explicit" or any("\ud800" <= c <= "\udfff" for c in str(served)):
        served = _link_models(served, folder / "models")
    return [
        f"--model-repository={served}",
        f"--backend-directory={BACKENDS}",
        f"--cache-directory={_SERVER / 'caches'}",
        "--disable-auto-complete-config",
        f"--model-control-mode={control_mode}",
        *mode.get(control_mode, []),
        *listen,
        f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
    ]


def _link_models(repository: Path, folder: Path) -> Path:
    """A folder of links to the models: whatever else lies beside them would end the server."""
    folder.mkdir()
    for name in model_names(repository):
        (folder / name).symlink_to(repository / name)
    return folder


def _restrictions() -> list[str]:
    """Options that close to web pages what loads code or writes files: they can't add a header."""
    setting = f"model-repository,trace,logging:{CONTROL_HEADER}={control_key()}"
    return [f"--http-restricted-api={setting}", f"--grpc-restricted-protocol={setting}"]


def _environment() -> dict[str, str]:
    libraries = [str(TRITON / "nvidia_pytriton.libs"), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        **os.environ,
        "NIN_PYTHON": sys.executable,  # whose packages the backends import
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_WAIT_POLICY": "passive",  # one model's threads must not spin while another works
        "NVIDIA_TF32_OVERRIDE": "0",  # what was proven is float32
    }


_LIBC = ctypes.CDLL(None)  # now: between fork and exec nothing may be loaded


def _end_with_parent() -> None:
    """Lets the kernel kill the server should this process be killed: prctl(PR_SET_PDEATHSIG)."""
    _LIBC.prctl(1, signal.SIGKILL)


def _wait_until_ready(server: Server) -> None:
    host, _, port = server.http.rpartition(":")
    local = {"0.0.0.0": HOST, "[::]": "[::1]"}.get(host, host)  # noqa: S104
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if (code := server.process.poll()) is not None:
            if code < 0:
                server.wait()
            raise CheckError(f"tritonserver can't start{_reasons(server.log)}")
        if _is_ready(f"http://{local}:{port}/v2"):
            return
        time.sleep(0.05)
    raise CheckError(f"tritonserver isn't ready after {_READY_TIMEOUT_S} s{_reasons(server.log)}")


def _is_ready(url: str) -> bool:
    """Whether Triton answers there, and nobody else, that all models are ready."""
    # never through a proxy of the environment
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(OSError, ValueError, LookupError, TypeError, http.client.HTTPException):
        opener.open(f"{url}/health/ready", timeout=1).close()
        with opener.open(url, timeout=1) as answer:
            return bool(json.load(answer)["name"] == "triton")
    return False


def _reasons(log: Path | None) -> str:
    """What the server's log says of models that don't load, else its last line."""
    if log is None:
        return "; its log is above"
    text = log.read_text(errors="replace")
    failures = re.findall(r"""failed to load '([\w-]+)' version (\d+): (.+?)["\n]""", text)
    reasons = [f"{model} version {version}: {reason}" for model, version, reason in failures]
    reasons += re.findall(r"Poll failed for model directory (.+?)\"", text)
    reasons = list(dict.fromkeys(reasons)) or text.strip().splitlines()[-1:]
    return ":" + "".join(f"\n  {reason}" for reason in reasons)


def _cause(code: int, log: Path | None) -> str:
    """Why the server ended, in one line: what C++ says of an exception, and the signal."""
    text = log.read_text(errors="replace") if log else ""
    what = re.findall(r"what\(\): +(.+)", text)[-1:]
    try:
        end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    except ValueError:
        end = f"signal {-code}"
    return ", ".join([*what, end])


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_EXIT_TIMEOUT_S + 5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
