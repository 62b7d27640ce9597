"""What comes in over HTTP, read with care: who asks, how much, how long; and how a refusal looks (RFC 9457)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flawsmith.line.record import ID_PATTERN, LONGEST_ID
from flawsmith.line.settings import Role, ServiceSettings

_UPLOADS = ("/inspections", "/infer", "/models", "/try", "/teach/images", "/teach/archives", "/placements")
"""Ends of the paths that take images or models, and bound their bodies themselves."""
_SMALL, _SMALL_SECONDS = 64 * 1024, 10.0
"""Bytes of other requests, and seconds for them to arrive whole."""
PIECE_SECONDS = 10.0
"""For each piece of a file that arrives."""
_PIECE = 2**20
_LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
_MOST_PARTS = 8
_LONGEST_FIELD = 4096
TITLES = {
    400: "Bad request",
    401: "Token needed",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    409: "Conflict",
    410: "Gone",
    413: "Too large",
    415: "Unsupported type",
    421: "Wrong host",
    422: "Cannot be processed",
    500: "Internal error",
    503: "Try again",
    504: "Not judged in time",
}
"""Of refusals, by their status."""


class Problem(Exception):  # noqa: N818 (as RFC 9457 calls it)
    """A refusal.

    Args:
        status: of HTTP.
        detail: one line that says what is wrong and what to do.
        headers: of the answer.
        **facts: further members, such as the number of a record.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None, **facts: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.facts = status, detail, dict(headers or {}), facts

    def response(self) -> JSONResponse:
        """The refusal as problem+json."""
        title = TITLES.get(self.status, "Error")
        body = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail, **self.facts}
        return JSONResponse(body, self.status, self.headers, media_type="application/problem+json")


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        name: stands in the audit.
        role: what may be done.
    """

    name: str
    role: Role


def caller_of(request: Request, settings: ServiceSettings) -> Caller:
    """Who asks; without tokens everyone on this machine is an engineer. A browser presents its token in a cookie.

    Raises:
        Problem: no token, or an unknown one.
    """
    if not settings.tokens:
        return Caller("local", "engineer")
    scheme, _, presented = request.headers.get("authorization", "").partition(" ")
    if not scheme:
        presented = _token_of_session(request, settings)
    if presented and scheme.lower() in ("", "bearer"):
        # All are compared, so that the time tells nothing.
        matching = [token for token in settings.tokens if token.matches(presented.strip())]
        if matching:
            return Caller(matching[0].name, matching[0].role)
    raise Problem(
        401, "send a token of the service's settings as Authorization: Bearer", {"WWW-Authenticate": "Bearer"}
    )


def session_cookie(settings: ServiceSettings) -> str:
    """The name of the cookie that holds a browser's token: browsers send cookies to all ports of a host."""
    return f"flawsmith_token_{settings.port}"


def _token_of_session(request: Request, settings: ServiceSettings) -> str:
    # No other site's page can have it sent: the cookie is SameSite=Strict, and `Guard` refuses other origins.
    try:
        return base64.urlsafe_b64decode(request.cookies.get(session_cookie(settings), "")).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""


class UploadBudget:
    """Bytes of requests that are in memory at a time, over all clients. A slow client holds no more than it has sent.

    Args:
        capacity: bytes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self._used = capacity, 0

    def take(self, length: int) -> bool:
        """Whether there is room for so many bytes more, which are then taken."""
        if self._used + length > self.capacity:
            return False
        self._used += length
        return True

    def give_back(self, length: int) -> None:
        """Bytes that are read, or not needed any more."""
        self._used -= length


@asynccontextmanager
async def received_body(
    request: Request, *, most: int, seconds: float, budget: UploadBudget
) -> AsyncIterator[bytearray]:
    """The body of a request, which counts in the budget for as long as the block lasts.

    Args:
        request: whose body was not read yet.
        most: bytes.
        seconds: for it to arrive whole.
        budget: of all requests.

    Raises:
        Problem: it is too large or too slow, or too many arrive at a time.
    """
    too_large = Problem(413, f"the request has more than {most} bytes; send a smaller image", {"Connection": "close"})
    if _declared_length(request) > most:
        raise too_large
    body = bytearray()
    try:
        try:
            await asyncio.wait_for(_receive(request, body, most, budget), seconds)
        except asyncio.TimeoutError:
            raise Problem(408, f"the request did not arrive within {seconds:g} s", {"Connection": "close"}) from None
        except ClientDisconnect:
            raise Problem(400, "the request ended early") from None
        if len(body) > most:
            raise too_large
        yield body
    finally:
        budget.give_back(len(body))


def _declared_length(request: Request) -> int:
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


async def _receive(request: Request, body: bytearray, most: int, budget: UploadBudget) -> None:
    async for chunk in request.stream():
        if not budget.take(len(chunk)):
            raise Problem(503, "too many images arrive at a time", {"Retry-After": "1", "Connection": "close"})
        body += chunk
        if len(body) > most:
            return


async def store_body(
    request: Request, path: Path, *, kind: str, most: int, advice: str, seconds: float, has_room: Callable[[int], bool]
) -> int:
    """Write the body of a request into a file as it comes.

    Args:
        request: whose body was not read yet.
        path: of the file, which the caller removes where this raises.
        kind: of file, for messages.
        most: bytes.
        advice: what to do about more.
        seconds: for it to arrive whole.
        has_room: whether the disk takes so many bytes more.

    Returns:
        Its length in bytes.

    Raises:
        Problem: it is too large or too slow, ends early, or the disk has no room for it.
    """
    too_large = Problem(413, f"the {kind} has more than {most} bytes; {advice}", {"Connection": "close"})
    if _declared_length(request) > most:
        raise too_large
    size, end = 0, asyncio.get_running_loop().time() + seconds
    with path.open("wb") as file:
        async for piece in _pieces(request, end, kind):
            size += len(piece)
            if size > most:
                raise too_large
            if not has_room(len(piece)):
                raise Problem(503, f"the disk has no room for another {kind}", {"Connection": "close"})
            await run_in_threadpool(file.write, piece)
    return size


async def _pieces(request: Request, end: float, kind: str) -> AsyncIterator[bytes]:
    """The body of a request in pieces of about a megabyte."""
    stream, gathered = request.stream(), bytearray()
    while True:
        left = end - asyncio.get_running_loop().time()
        try:
            gathered += await asyncio.wait_for(anext(stream), min(PIECE_SECONDS, max(left, 0.0)))
        except StopAsyncIteration:
            break
        except asyncio.TimeoutError:
            raise Problem(408, f"the {kind} did not arrive in time", {"Connection": "close"}) from None
        except ClientDisconnect:
            raise Problem(400, "the request ended early") from None
        if len(gathered) >= _PIECE:
            yield bytes(gathered)
            gathered.clear()
    yield bytes(gathered)


def image_and_fields(content_type: str, body: bytes) -> tuple[bytes, dict[str, str]]:
    """The image of a request, raw or as the field ``image`` of a form, and the form's other fields.

    Args:
        content_type: of the request.
        body: of the request.

    Raises:
        Problem: it holds no image, or is no form.

    Example:
        >>> image_and_fields("image/png", b"...")
        (b'...', {})
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        if kind == b"application/json":
            raise Problem(415, "send the image file itself as the body, or a form with the field image")
        image, fields = body, {}
    else:
        parts = _parts(options.get(b"boundary", b""), body)
        if "image" not in parts:
            raise Problem(400, "the form has no field image")
        image = parts.pop("image")
        try:
            fields = {name: value.decode("ascii") for name, value in parts.items() if len(value) <= _LONGEST_FIELD}
        except UnicodeDecodeError:
            raise Problem(400, "a field of the form is not ASCII") from None
    if not image:
        raise Problem(400, "there is no image: send the file as the body, or a form with the field image")
    return image, fields


def _parts(boundary: bytes, body: bytes) -> dict[str, bytes]:
    """The parts of a form by name."""
    parts: dict[str, bytearray] = {}
    header, value, name = bytearray(), bytearray(), ""

    def on_header_end() -> None:
        nonlocal name
        if bytes(header).lower() == b"content-disposition":
            name = parse_options_header(bytes(value))[1].get(b"name", b"").decode("ascii", "replace")
        header.clear()
        value.clear()

    def on_headers_finished() -> None:
        if not name or name in parts or len(parts) >= _MOST_PARTS:
            raise Problem(400, "the form has a part without a name, one twice, or too many")
        parts[name] = bytearray()

    def on_part_begin() -> None:
        nonlocal name
        name = ""

    callbacks: Any = {
        "on_part_begin": on_part_begin,
        "on_header_field": lambda data, start, end: header.extend(data[start:end]),
        "on_header_value": lambda data, start, end: value.extend(data[start:end]),
        "on_header_end": on_header_end,
        "on_headers_finished": on_headers_finished,
        "on_part_data": lambda data, start, end: parts[name].extend(data[start:end]),
    }
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, f"the form cannot be read: {error}") from None
    return {name: bytes(content) for name, content in parts.items()}


def checked_id(text: str | None, name: str) -> str | None:
    """A part or lot id; empty is none.

    Raises:
        Problem: it is too long, or holds something else than printable ASCII.
    """
    if not text:
        return None
    if len(text) > LONGEST_ID or re.fullmatch(ID_PATTERN, text) is None:
        raise Problem(400, f"{name} may have up to {LONGEST_ID} printable ASCII characters")
    return text


class Guard:
    """Stands before the application: refuses foreign pages in a browser, bounds small requests, and hardens answers.

    Args:
        app: the application.
        local: whether the service listens on this machine alone, so that its host has one of few names.
    """

    def __init__(self, app: ASGIApp, *, local: bool) -> None:
        self._app, self._local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        problem = self._refusal(Headers(scope=scope))
        app: Callable[[Scope, Receive, Send], Awaitable[None]] = problem.response() if problem else self._app
        if not scope["path"].endswith(_UPLOADS):
            receive = self._bounded(receive)
        await app(scope, receive, self._hardened(send))

    def _refusal(self, headers: Headers) -> Problem | None:
        host = headers.get("host", "")
        # A page from elsewhere could otherwise reach a service on this machine through its user's browser.
        if self._local and re.sub(r":\d+$", "", host) not in _LOCAL_NAMES:
            return Problem(421, "the service listens on this machine alone: call it 127.0.0.1 or localhost")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return Problem(403, "a page from elsewhere may not use this service")
        return None

    @staticmethod
    def _bounded(receive: Receive) -> Receive:
        """For requests that hold no image, whose bodies FastAPI reads whole."""
        length, is_whole = 0, False
        end = asyncio.get_running_loop().time() + _SMALL_SECONDS

        async def bounded(*_: object) -> Message:
            nonlocal length, is_whole
            if is_whole:  # what follows is waited for: that the client leaves
                return await receive()
            # The first piece may be there already, and be asked for late.
            left = max(0.0 if length else 0.1, end - asyncio.get_running_loop().time())
            try:
                message = await asyncio.wait_for(receive(), left)
            except asyncio.TimeoutError:
                raise HTTPException(408, "the request did not arrive in time", {"Connection": "close"}) from None
            length += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if length > _SMALL:
                raise HTTPException(413, f"the request has more than {_SMALL} bytes", {"Connection": "close"})
            return message

        return bounded

    @staticmethod
    def _hardened(send: Send) -> Send:
        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", "no-store")
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Content-Security-Policy", "default-src 'none'; sandbox")
            await send(message)

        return hardened
