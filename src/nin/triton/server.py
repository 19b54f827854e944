"""The embedded server: the real `tritonserver` of the nvidia-pytriton wheel, without a container.

The wheel carries the python backend only. Triton lets a backend be written in Python, so the
folder `backends/` beside this file stands in for the official onnxruntime and pytorch backends.
"""

import ctypes
import os
import re
import shutil
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
from pathlib import Path

from nin.errors import CheckError, InputError
from nin.paths import TRITON
from nin.triton.repository import publish, require_published

# As scripts/bootstrap.sh installs it: the server, and a numpy for its Python stubs. These were
# compiled before numpy 2 and read its arrays wrongly: every element would be the first.
WHEEL = "nvidia-pytriton==0.7.0"
NUMPY = "numpy==1.26.4"
PYTHONS = ("3.11", "3.12")  # that there are both a stub and this numpy for
RELEASE = "24.10"  # of Triton, which the wheel carries and the container has
BACKENDS = Path(__file__).parent / "backends"
HOST = "127.0.0.1"
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
CONTROL_MODES = ("explicit", "none", "poll")

_SERVER = TRITON / "pytriton" / "tritonserver"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

# Seconds that the server gives requests in flight when it stops, and we give the server.
_EXIT_TIMEOUT_S = 10
_READY_TIMEOUT_S = 120
_POLL_S = 2


@dataclass
class Server:
    """A running server: where it listens, each as host:port."""

    http: str
    grpc: str
    metrics: str
    process: subprocess.Popen[bytes]
    log: Path | None  # None: it writes to this process's stderr

    def wait(self) -> None:
        """Blocks as long as the server lives. Raises CheckError when it ends by itself."""
        code = self.process.wait()
        raise CheckError(f"tritonserver ended by itself with code {code}{_reasons(self.log)}")


@contextmanager
def serve(
    repository: Path,
    *,
    host: str = HOST,
    ports: dict[str, int] | None = None,
    control_mode: str = "explicit",
    threads: int | None = None,
    verbose: bool = False,
    extra: Sequence[str] = (),
) -> Iterator[Server]:
    """Starts a server on `repository`, yields it when it is ready, stops it with its children.

    Args:
        ports: for "http", "grpc" and "metrics"; 0 takes a free one.
        control_mode: "explicit" loads all and more by the API, "poll" follows the files, "none"
            loads all and stays so.
        threads: of every model's process; None leaves it to the runtimes, one per core.
        verbose: lets the server's log through to stderr.
        extra: further options of tritonserver.

    Raises:
        InputError: the server isn't installed, nothing is published, or a port is taken.
        CheckError: a model doesn't load; the text is the server's own.
    """
    binary = find_tritonserver()
    require_published(repository)
    addresses = _addresses(host, PORTS if ports is None else ports)
    with tempfile.TemporaryDirectory(prefix="nin-triton-") as temporary:
        folder = Path(temporary)
        log = None if verbose else folder / "log"
        command = [
            str(binary),
            *_options(repository, addresses, control_mode, folder),
            *(["--log-verbose=1"] if verbose else []),
            *extra,
        ]
        with (log or Path(os.devnull)).open("ab") as sink:
            process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=None if verbose else sink,
                stderr=None if verbose else sink,
                cwd=TRITON / "python",  # first in the stubs' path, PYTHONPATH isn't: its numpy wins
                env=_environment(threads),
                start_new_session=True,  # Ctrl-C is ours to handle; and a group to kill
            )
        server = Server(**addresses, process=process, log=log)
        try:
            _wait_until_ready(server)
            yield server
        finally:
            _stop(process, folder.name)


@contextmanager
def serve_artifacts(artifacts: Path) -> Iterator[Server]:
    """Serves exports on free ports from a repository of their own, which goes with the server.

    Raises what `publish` and `serve` raise.
    """
    find_tritonserver()
    with tempfile.TemporaryDirectory(prefix="nin-repository-") as temporary:
        repository = Path(temporary) / "model_repository"
        publish(artifacts, repository)
        with serve(repository, ports=dict.fromkeys(PORTS, 0)) as server:
            yield server


def find_tritonserver(triton: Path = TRITON) -> Path:
    """The server's binary. Raises InputError where it can't run here, with what to do."""
    binary = triton / _SERVER.relative_to(TRITON) / "bin" / "tritonserver"
    if _PYTHON not in PYTHONS:
        raise InputError(
            f"the embedded Triton runs with Python {' or '.join(PYTHONS)}, this is {_PYTHON}; "
            "make the environment anew: `make clean demo PYTHON=python3.12`"
        )
    if not (binary.is_file() and (triton / "python" / "numpy").is_dir()):
        raise InputError(
            f"no embedded Triton in {triton}; install it (Linux x86_64, glibc 2.35 or newer) with "
            f"`python -m pip install --no-deps --target {triton} {WHEEL}` and "
            f"`python -m pip install --no-deps --target {triton / 'python'} {NUMPY}`, "
            "or use the container: `python scripts/serve.py --docker`"
        )
    library = f"libpython{_PYTHON}.so.1.0"
    if not (_own_libpython() / library).is_file():
        try:
            ctypes.CDLL(library)
        except OSError as error:
            raise InputError(
                f"the embedded Triton needs {library}, which isn't on this system; "
                f"on Debian and Ubuntu: apt-get install libpython{_PYTHON}"
            ) from error
    return binary


def docker_command(repository: Path, ports: dict[str, int]) -> str:
    """The command that serves the same repository from the image of deploy/Dockerfile."""
    published = " ".join(f"-p {HOST}:{ports[name]}:{inside}" for name, inside in PORTS.items())
    image = f"nin-triton:{RELEASE}"
    return (
        f"docker build -t {image} -f deploy/Dockerfile . &&\n"
        f"docker run --rm --shm-size=1g {published} \\\n"
        f"  -v {repository.resolve()}:/models:ro {image} \\\n"
        "  tritonserver --model-repository=/models --disable-auto-complete-config \\\n"
        "  --model-control-mode=explicit --load-model='*'"
    )


def _addresses(host: str, ports: dict[str, int]) -> dict[str, str]:
    """host:port by protocol; the ports are held until all are known to be free."""
    addresses = {}
    holders = []
    try:
        for name, port in ports.items():
            holders.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            holders[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holders[-1].bind((host, port))
            except (OSError, OverflowError) as error:
                raise InputError(
                    f"can't listen on {host}:{port} ({error}); choose another --{name}-port, "
                    "0 for a free one, or stop what listens there"
                ) from error
            addresses[name] = f"{host}:{holders[-1].getsockname()[1]}"
    finally:
        for holder in holders:
            holder.close()
    return addresses


def _options(
    repository: Path, addresses: dict[str, str], control_mode: str, folder: Path
) -> list[str]:
    listen = []
    for name, address in addresses.items():
        host, _, port = address.rpartition(":")
        listen += [f"--{name}-address={host}", f"--{name}-port={port}"]
    mode = {"explicit": ["--load-model=*"], "poll": [f"--repository-poll-secs={_POLL_S}"]}
    # the shared memory of a server that had to be killed can be found by its name
    shared_memory = [
        f"--backend-config={backend},shm-region-prefix-name={folder.name}"
        for backend in ("python", *(p.name for p in BACKENDS.iterdir() if p.is_dir()))
    ]
    return [
        f"--model-repository={repository.resolve()}",
        f"--backend-directory={_lay_backends(folder)}",
        f"--cache-directory={_SERVER / 'caches'}",
        "--disable-auto-complete-config",
        f"--model-control-mode={control_mode}",
        *mode.get(control_mode, []),
        *listen,
        f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
        *shared_memory,
    ]


def _lay_backends(folder: Path) -> Path:
    """A backend folder of copies: Triton refuses libraries that links lead out of it."""
    backends = folder / "backends"
    shutil.copytree(BACKENDS, backends, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(_SERVER / "backends" / "python", backends / "python")
    stub = _SERVER / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"
    shutil.copy2(stub, backends / "python")
    return backends


def _environment(threads: int | None) -> dict[str, str]:
    # the stub finds its packages by the first python3 on the PATH
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": ":".join(
            [
                str(TRITON / "nvidia_pytriton.libs"),
                str(_own_libpython()),
                *filter(None, [os.environ.get("LD_LIBRARY_PATH")]),
            ]
        ),
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_WAIT_POLICY": "passive",  # one model's threads must not spin while another works
        "NVIDIA_TF32_OVERRIDE": "0",  # what was proven is float32
    }
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


def _own_libpython() -> Path:
    """Where this interpreter keeps its shared library, if it was built with one."""
    return Path(sysconfig.get_config_var("LIBDIR") or "/nowhere")


def _wait_until_ready(server: Server) -> None:
    host, _, port = server.http.rpartition(":")
    local = HOST if host in ("0.0.0.0", "") else host  # noqa: S104
    url = f"http://{local}:{port}/v2/health/ready"
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise CheckError(f"tritonserver can't start{_reasons(server.log)}")
        with suppress(OSError), urllib.request.urlopen(url, timeout=1):
            return
        time.sleep(0.05)
    raise CheckError(f"tritonserver isn't ready after {_READY_TIMEOUT_S} s{_reasons(server.log)}")


def _reasons(log: Path | None) -> str:
    """What the server's log says of models that don't load, else its last line."""
    if log is None:
        return "; its log is above"
    text = log.read_text(errors="replace")
    found = re.findall(r"""failed to load '(\w+)' version (\d+): (.+?)["\n]""", text)
    reasons = [f"{model} version {version}: {reason}" for model, version, reason in found]
    reasons += re.findall(r"Poll failed for model directory (.+?)\"", text)
    reasons = list(dict.fromkeys(reasons)) or text.strip().splitlines()[-1:]
    return ":" + "".join(f"\n  {reason}" for reason in reasons)


def _stop(process: subprocess.Popen[bytes], prefix: str) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_EXIT_TIMEOUT_S + 5)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # normally nothing is left: a server that hangs, or stubs of one that was killed
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # what a killed server leaves
        for region in Path("/dev/shm").glob(f"{prefix}*"):  # noqa: S108
            region.unlink(missing_ok=True)
