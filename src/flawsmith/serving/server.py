"""Uvicorn around the application: slow and endless clients are cut off, a request to end is answered in order."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.system import notify_systemd
from flawsmith.serving.app import create_app
from flawsmith.serving.service import Service

HEADER_SECONDS = 10.0
"""For a request's first line and headers to arrive, from the moment the connection is open."""
LARGEST_HEADERS = 16 * 1024
MOST_CONNECTIONS = 512
READ_SECONDS, READ_BYTES = 30.0, 2**20
"""In which a client has to read so much of an answer, or all of it; else the rest is let go, with the connection."""
END_SECONDS = 10
"""For requests in work to be answered when the service is to end."""
_WATCHDOG_SECONDS = int(os.environ["WATCHDOG_USEC"]) / 1e6 if os.environ.get("WATCHDOG_USEC", "").isdecimal() else None
"""In which systemd wants to hear that the service answers; None: it does not ask."""


class _Protocol(H11Protocol):
    """Uvicorn's HTTP in Python (its other one, in C, knows no largest header), with an end to waiting for clients."""

    _waiting: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        in_work = self.cycle is not None and not self.cycle.response_complete
        if in_work:
            self._stop_waiting()
        elif self._waiting is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_reading()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More of an answer waits to be read than the system holds."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        self._stop_reading()
        super().resume_writing()

    def _wait_for_reader(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._reading = self.loop.call_later(READ_SECONDS, self._look_at_reader, unread - READ_BYTES)

    def _look_at_reader(self, unread: int) -> None:
        if self.transport.get_write_buffer_size() > unread:
            self.transport.abort()
        else:
            self._wait_for_reader()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():  # closing would wait for it to be read
            self.transport.abort()

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class Server(uvicorn.Server):
    """A server of a service. `listen` before `run`, so that a port that is taken is told before anything else.

    Args:
        service: its lines run already; the server ends it.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self._told = 0.0
        settings = service.settings
        super().__init__(
            uvicorn.Config(
                create_app(service),
                host=settings.host,
                port=settings.port,
                http=_Protocol,
                ws="none",
                lifespan="on",
                h11_max_incomplete_event_size=LARGEST_HEADERS,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=END_SECONDS,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                access_log=False,
                log_config=None,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell systemd, where it waits for that, that parts are taken from now on."""
        await super().startup(sockets)
        if self.started:
            notify_systemd("READY=1")

    async def on_tick(self, counter: int) -> bool:
        """Tell systemd's watchdog, twice in the time that it waits, that requests are being answered still."""
        if _WATCHDOG_SECONDS is not None and time.monotonic() - self._told >= _WATCHDOG_SECONDS / 2:
            self._told = time.monotonic()
            notify_systemd("WATCHDOG=1")
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End streams first, which would otherwise be waited for."""
        notify_systemd("STOPPING=1")
        self.service.events.stop()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        FlawsmithError: the address is not this machine's, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise FlawsmithError(
            f"cannot listen at {host}:{port} ({error.strerror}): another service may run there; give another --port"
        ) from None
    # asyncio sends at once (TCP_NODELAY) on sockets that name their protocol alone; others wait 40 ms in each answer.
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=listener.detach())
