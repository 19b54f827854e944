"""Servers' addresses, how to reach them, and what can go wrong on the way."""

import itertools
import os
import re
import socket
from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address, ip_address
from typing import Any, Literal

from tritonclient.utils import InferenceServerException

from nin.errors import InputError, ServerError, UnreachableError

Protocol = Literal["http", "grpc"]
URLS: dict[Protocol, str] = {"http": "127.0.0.1:8000", "grpc": "127.0.0.1:8001"}
TIMEOUT_S = 30.0
RETRIES = 3

# The header that a server asks of who loads models: a web page can't send it. Its value is the
# variable NIN_CONTROL_KEY's, for both sides, or without it the one that `nin serve` takes.
CONTROL_HEADER = "nin-control-key"
CONTROL_KEY = "development"

# A name or an IPv4 address, or an IPv6 address in brackets; the port.
_ADDRESS = re.compile(
    r"(?:[A-Z0-9_-]{1,63}(?:\.[A-Z0-9_-]{1,63})*\.?|\[(?P<v6>[^]]*)\]):(?P<port>[0-9]{1,5})", re.I
)

# Channel arguments replace tritonclient's own, so its unlimited messages are among them. A server
# that was down for long is found again within about a second, not the two minutes to which gRPC's
# pauses grow, and whatever other channels of this process know. The minimum is the time that a
# connection has to come about, also with a server that is far away or busy.
_CHANNEL = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_UNPROXIED = ("grpc.enable_http_proxy", 0)

# gRPC's own words for UNAVAILABLE; Triton says it too, of a model or a full queue.
_BROKEN = ("connect", "socket", "transport", "dns", "resolving", "goaway", "broken pipe")

# What tritonclient lets through of the HTTP libraries below it.
_TRANSPORTS = ("aiohttp", "gevent", "geventhttpclient")


def check_url(url: str) -> str:
    found = _ADDRESS.fullmatch(url) if url.isascii() else None
    try:
        if found is None or not 0 < int(found["port"]) < 2**16:
            raise ValueError
        if found["v6"] is not None and IPv6Address(found["v6"]).scope_id:
            raise ValueError
    except ValueError as error:
        raise InputError(
            f"{url!r} isn't a server's address; write HOST:PORT, as in {URLS['http']} or [::1]:8000"
        ) from error
    return url


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name; what only DNS knows isn't asked for."""
    name = host.lower().removesuffix(".")
    if name in ("localhost", socket.gethostname().lower()) or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(_ipv4(name) or host.strip("[]"))
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def _ipv4(host: str) -> bytes | None:
    """An address as C reads it: 127.1, 0x7f.1 and 2130706433 are 127.0.0.1."""
    try:
        return socket.inet_aton(host)
    except OSError:
        return None


def connection_options(
    protocol: Protocol, url: str, timeouts: Sequence[str], timeout_s: float
) -> tuple[dict[str, Any], dict[str, float]]:
    """What tritonclient takes when it connects, and with each call: gRPC has its timeout there."""
    if protocol == "http":  # its libraries ask no proxy
        return dict.fromkeys(timeouts, timeout_s), {}
    here = is_loopback(url.rpartition(":")[0])
    return {"channel_args": (*_CHANNEL, _UNPROXIED) if here else _CHANNEL}, {
        "client_timeout": timeout_s
    }


def control_key() -> str:
    """Raises InputError where no header, or no option of Triton, can hold it."""
    key = os.environ.get("NIN_CONTROL_KEY") or CONTROL_KEY
    if not re.fullmatch("[!-~]+", key):
        raise InputError(
            f"NIN_CONTROL_KEY is {key!a}, expected ASCII letters, digits and signs, no spaces"
        )
    return key


def control_headers() -> dict[str, str]:
    return {f"{prefix}{CONTROL_HEADER}": control_key() for prefix in ("", "triton-grpc-protocol-")}


def retry_pauses(retries: int) -> Iterator[float]:
    """Seconds to wait before each retry."""
    return itertools.islice((0.1 * 2**n for n in itertools.count()), retries)


def pause_after(error: Exception, url: str, pauses: Iterator[float]) -> float:
    """The next pause after a failed connection; raises every other failure, and the last."""
    failure = _failure(error, url)
    pause = next(pauses, None) if isinstance(failure, UnreachableError) else None
    if pause is None:
        raise failure from error
    return pause


def _failure(error: Exception, url: str) -> InputError:
    """A library's exception in this project's terms."""
    unreachable = f"no Triton server at {url} ({{}}); start one with `nin serve`"
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
