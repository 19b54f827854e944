"""Serves a model repository with the embedded Triton until Ctrl-C.

nin serve                                       # 127.0.0.1: HTTP 8000, gRPC 8001, metrics 8002
nin serve --repository served --http-port 0     # any repository that `nin publish` made
nin serve -- --cache-config local,size=10485760 # options of tritonserver itself
nin serve --docker                              # the command for the official container
"""

import argparse
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TextIO

from nin.client import Client
from nin.errors import CheckError, UnreachableError
from nin.paths import MODEL_REPOSITORY
from nin.serve.repository import model_names, not_models
from nin.serve.server import (
    CONTROL_MODES,
    HOST,
    PORTS,
    RELEASE,
    Server,
    ServerDiedError,
    docker_command,
    serve,
)
from nin.terminal import short, silence, table
from nin.text import escape

# A server that died so many times within so many seconds isn't started again.
RESTARTS = 5
WINDOW_S = 300


def add_options(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--repository", type=Path, default=MODEL_REPOSITORY, help="the model repository to serve"
    )
    options.add_argument("--host", default=HOST, help="address to listen on")
    for name, port in PORTS.items():
        options.add_argument(f"--{name}-port", type=port_number, default=port, help="0: a free one")
    options.add_argument(
        "--model-control-mode",
        choices=CONTROL_MODES,
        default="explicit",
        help="explicit: versions are loaded by the API; poll: when files change; none: never",
    )
    options.add_argument("--verbose", action="store_true", help="show the server's own log")
    options.add_argument(
        "--docker", action="store_true", help="print the container's command and do nothing"
    )
    options.add_argument(
        "tritonserver_option", nargs="*", default=[], help="after --, passed on to tritonserver"
    )


def execute(args: argparse.Namespace) -> None:
    ports = {name: getattr(args, f"{name}_port") for name in PORTS}
    if args.docker:
        print(docker_command(args.repository, ports))
        return
    for end in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal too
        signal.signal(end, signal.default_int_handler)  # ends like Ctrl-C: with 0
    try:
        keep_serving(args, ports)
    except KeyboardInterrupt:
        say("\nstopped", sys.stdout)


def keep_serving(args: argparse.Namespace, ports: dict[str, int]) -> None:
    """Serves, and starts a server that dies again, on the same ports, unless it dies at once."""
    deaths: deque[float] = deque(maxlen=RESTARTS)
    host = args.host
    while True:
        tell = say if deaths else partial(print, flush=True)  # at first a reader must be there
        try:
            with serve(
                args.repository,
                host=host,
                ports=ports,
                control_mode=args.model_control_mode,
                verbose=args.verbose,
                extra=args.tritonserver_option,
            ) as server:
                host, ports = server.host, server.ports
                with suppress(UnreachableError):  # it may have died again by now
                    text = announcement(server, args.repository)
                    for note in notes(server, args.repository):
                        tell(f"note: {note}", file=sys.stderr)
                    tell(text, file=sys.stdout)
                server.wait()
        except ServerDiedError as error:
            deaths.append(time.monotonic())
            if len(deaths) == RESTARTS and deaths[-1] - deaths[0] < WINDOW_S:
                raise CheckError(f"{error}\n{RESTARTS} times in {WINDOW_S} s: giving up") from error
            say(f"{error}; starting it again", sys.stderr)


def say(text: str, file: TextIO) -> None:
    """Prints what mustn't end the server where nobody reads on, as after `| grep -m1 Ready`."""
    try:
        print(text, file=file, flush=True)
    except OSError:
        silence(file)


def port_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"{text} is not a port, 0 to 65535")
    return int(text)


def announcement(server: Server, repository: Path) -> str:
    """Where the server listens and what it serves, as it says itself."""
    with Client(server.http) as client:
        served = [client.metadata(name) for name in model_names(repository)]
    rows = [
        (
            model["name"],
            ", ".join(model["versions"]),
            ", ".join(map(describe, model["inputs"])),
            ", ".join(map(describe, model["outputs"])),
        )
        for model in served
    ]
    return "\n".join(
        (
            f"Triton {RELEASE} serves {escape(short(repository.resolve()))}",
            f"  HTTP     http://{server.http}\n  gRPC     {server.grpc}",
            f"  metrics  http://{server.metrics}/metrics\n",
            table(("model", "version", "input", "outputs"), rows),
            "\nReady; Ctrl-C stops it.",
        )
    )


def notes(server: Server, repository: Path) -> Iterator[str]:
    """What a person may not expect."""
    if not ip_address(server.host).is_loopback:
        yield (
            f"{server.host} can be reached from other machines; this server is for development, "
            "docs/deploy.md is for production"
        )
    if others := ", ".join(map(escape, not_models(repository))):
        yield f"not served, since their config.pbtxt isn't that of a model of their name: {others}"


def describe(tensor: dict[str, object]) -> str:
    return f"{tensor['name']} {tensor['datatype']} {tensor['shape']}"
