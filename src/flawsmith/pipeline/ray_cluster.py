"""Connections to a Ray cluster, with every way to fail in one line."""

from __future__ import annotations

import io
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from flawsmith.runtime.errors import FlawsmithError

LOCAL, AUTO = "local", "auto"
CONNECT_SECONDS = 5.0
_STDERR = 2
LOCAL_STORE_BYTES = 512 * 2**20
"""Object store of a cluster started here: what passes through it are lines of text and small files."""
_PLACE = re.compile(r"(?:ray://)?(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")
_CLIENT = "ray://"
# What a client of HTTP/2, and so of gRPC, says first: the preface and an empty SETTINGS frame (RFC 9113, 3.4).
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_FRAME_TYPE_AT, _SETTINGS_FRAME, _FRAME_HEADER_BYTES = 3, 4, 9


def check_address(address: str) -> None:
    """Find out in seconds whether a cluster can be there; Ray itself tries for minutes.

    Args:
        address: ``local``, ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``.

    Raises:
        FlawsmithError: Ray is not installed, this is no address, or no cluster answers.
    """
    ray = _ray()
    address = _meant(address)
    if ray.is_initialized() or address in (LOCAL, AUTO):
        return
    place = _PLACE.fullmatch(address)
    if place is None:
        raise FlawsmithError(f"--ray {address} is no address: give local, auto, HOST:PORT or ray://HOST:PORT")
    host, port = place["host"].strip("[]"), int(place["port"])
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS") != "1":
                _greet(connection)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FlawsmithError(
            f"no Ray cluster answers at {address} ({reason}): give the address that `ray start --head` printed, "
            "or --ray local"
        ) from None


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a Ray cluster for the time of a block; where this process is connected already, that is used.

    Args:
        address: ``local`` starts a cluster on this machine and ends it afterwards; ``auto`` finds the one that runs
            here or that ``RAY_ADDRESS`` names; ``HOST:PORT`` or ``ray://HOST:PORT`` name one.

    Yields:
        The module ``ray``.

    Raises:
        FlawsmithError: Ray is not installed, no cluster answers, or it cannot be used, for example because its version
            is another.
    """
    check_address(address)
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    address = _meant(address)
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no word leaves this machine unasked
        options |= {"include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
    try:
        with _quiet_start():
            ray.init(address=address, **options)
    except ImportError as error:
        needed = "pip install 'ray[client]'"
        raise FlawsmithError(f"{address}: cannot be used ({in_one_line(error)}): run `{needed}`") from None
    except Exception as error:  # Ray's own share no public base, and some are plain RuntimeErrors
        raise FlawsmithError(f"cannot use the Ray cluster at {address}: {in_one_line(error)}") from None
    try:
        with redirect_stdout(_WithoutRay(sys.stdout)):
            yield ray
    finally:
        ray.shutdown()


def cpus_of_nodes(ray: Any) -> list[int]:
    """How many CPUs each node of the cluster offers, those that offer none left out.

    Raises:
        FlawsmithError: none does.
    """
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    offered = [cpus for cpus in nodes if cpus > 0]
    if not offered:
        raise FlawsmithError("no node of the Ray cluster offers CPUs: start one with `ray start --address ...`")
    return offered


def cpus_of_this_node(ray: Any) -> int:
    """How many CPUs the node offers that this Ray task runs on."""
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    return int(node["Resources"].get("CPU", 1))


def node_name() -> str:
    """What messages call the machine that this runs on."""
    return socket.gethostname()


def in_one_line(error: BaseException) -> str:
    """What an exception of Ray says, without the remote traceback that it carries along."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return in_one_line(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if "Traceback" in str(error) else " ".join(lines)


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Let Ray's core tell of what ends it alone, and not of being told so.

    It writes to the file descriptor, past every logger, what the user can do nothing about and what exceptions say too.
    """
    if "RAY_BACKEND_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (a device, not a file)
        os.dup2(nowhere.fileno(), _STDERR)
    try:
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)
        del os.environ["RAY_BACKEND_LOG_LEVEL"]


class _WithoutRay(io.TextIOBase):
    """Standard output without what Ray's own threads print, such as that a worker died: that goes to stderr.

    Args:
        stream: the standard output.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        by_ray = threading.current_thread().name.startswith("ray_")
        return (sys.stderr if by_ray else self._stream).write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> Any:  # type: ignore[override]
        return self._stream.encoding


def _meant(address: str) -> str:
    return os.environ.get("RAY_ADDRESS", AUTO) if address == AUTO else address


def _greet(connection: socket.socket) -> None:
    """Find out whether a gRPC server is at the other end.

    Raises:
        OSError: something else is, such as a dashboard, or it says nothing.
    """
    connection.sendall(_GREETING)
    answer = b""
    while len(answer) < _FRAME_HEADER_BYTES:
        part = connection.recv(_FRAME_HEADER_BYTES - len(answer))
        if not part:
            break
        answer += part
    if len(answer) < _FRAME_HEADER_BYTES or answer[_FRAME_TYPE_AT] != _SETTINGS_FRAME:
        raise OSError("another program listens there")


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise FlawsmithError("--ray needs Ray, which is not installed: run `pip install flawsmith[ray]`") from error
    return ray
