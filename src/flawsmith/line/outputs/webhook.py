"""Webhook: a POST for each record, signed as Standard Webhooks 1.0 has it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from flawsmith import __version__
from flawsmith.line.outputs.delivery import DeliveryError, GoneError, Letter, Offline
from flawsmith.line.settings import WebhookOutput

_LONGEST_ANSWER = 64 * 1024


class WebhookSink:
    """Posts records to an address; it follows no redirect, and stops where the answer is 410.

    Args:
        settings: of the output.
        trust: for https, whom to trust.
    """

    def __init__(self, settings: WebhookOutput, trust: ssl.SSLContext | None) -> None:
        self._settings, self._trust = settings, trust
        self._parts = urlsplit(settings.url.get_secret_value())
        self._connection: http.client.HTTPConnection | None = None

    @property
    def target(self) -> str:
        """Scheme and host; the path may hold a secret."""
        return f"{self._parts.scheme}://{self._parts.netloc}"

    def tend(self, state: Offline) -> None:
        """A connection is held only while there is something to send: servers close idle ones."""
        self._hang_up()

    def deliver(self, letters: Sequence[Letter]) -> int:
        """Post the first letter."""
        letter = letters[0]
        body = json.dumps(
            {"type": "inspection.recorded", "timestamp": letter.record.received, "data": letter.message()},
            allow_nan=False,
        ).encode()
        timestamp = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"flawsmith/{__version__}",
            "webhook-id": letter.delivery,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._settings.key, letter.delivery, timestamp, body),
        }
        try:
            status = self._post(body, headers)
        except (OSError, http.client.HTTPException) as error:
            self._hang_up()
            if isinstance(error, (TimeoutError, _TooSlowError)):
                raise DeliveryError(f"{self.target} gave no answer within {self._settings.seconds:g} s") from None
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise DeliveryError(f"{self.target} cannot be reached ({reason})") from None
        if 200 <= status < 300:
            return 1
        self._hang_up()
        if status == 410:
            raise GoneError(f"{self.target} answers 410, it wants no more; it is asked again after the next start")
        if 300 <= status < 400:
            raise DeliveryError(f"{self.target} answers {status}, a redirect, which is not followed: correct the url")
        raise DeliveryError(f"{self.target} answers {status} to record {letter.record.id}")

    def close(self) -> None:
        """Close the connection."""
        self._hang_up()

    def _post(self, body: bytes, headers: dict[str, str]) -> int:
        if self._connection is None:
            host, port, seconds = self._parts.hostname or "", self._parts.port, self._settings.seconds
            if self._parts.scheme == "https":
                self._connection = http.client.HTTPSConnection(host, port, timeout=seconds, context=self._trust)
            else:
                self._connection = http.client.HTTPConnection(host, port, timeout=seconds)
        connection = self._connection
        path = (self._parts.path or "/") + (f"?{self._parts.query}" if self._parts.query else "")
        if connection.sock is None:
            connection.connect()
        with _cut_off_after(self._settings.seconds, connection.sock) as is_late:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            if is_late.is_set():  # what is cut off looks like an end
                raise _TooSlowError
            with suppress(OSError, http.client.HTTPException):  # the status is there, which is all that counts
                response.read(_LONGEST_ANSWER)
            # What is left of an answer would be taken for that to the next record.
            if is_late.is_set() or not response.isclosed():
                self._hang_up()
        return response.status

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _TooSlowError(OSError):
    """The whole answer took too long, though something came now and then."""


@contextmanager
def _cut_off_after(seconds: float, connection: socket.socket) -> Iterator[threading.Event]:
    """Ends what a socket's own timeout does not: an answer that comes byte by byte. Gives whether it had to."""
    is_late = threading.Event()

    def cut_off() -> None:
        is_late.set()
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut_off)
    timer.daemon = True
    timer.start()
    try:
        yield is_late
    except (OSError, http.client.HTTPException) as error:
        raise (_TooSlowError() if is_late.is_set() else error) from None
    finally:
        timer.cancel()


def signature(key: bytes, delivery: str, timestamp: int, body: bytes) -> str:
    """The signature of a delivery, as Standard Webhooks 1.0 has it.

    Args:
        key: the bytes behind the secret.
        delivery: its id.
        timestamp: of the attempt, seconds since 1970.
        body: as it is sent.

    Example:
        >>> signature(b"0" * 24, "id", 1700000000, b"{}")
        'v1,...'
    """
    signed = hmac.new(key, b"%s.%d.%s" % (delivery.encode(), timestamp, body), hashlib.sha256)
    return "v1," + base64.b64encode(signed.digest()).decode()
