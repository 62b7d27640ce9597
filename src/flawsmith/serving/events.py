"""Events for pages and programs that look on: one stream, which a slow reader cannot hold up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from flawsmith.line.record import Record
from flawsmith.line.station import Site

_AHEAD = 256
"""Events that wait for a reader; one that is further behind is cut off, and comes again with the last id it saw."""
_REPEATED = 1000
MOST_READERS = 32
KEEP_ALIVE_SECONDS = 15.0

Message = tuple[str, int | None, Mapping[str, Any]]
"""Kind, number of the record where there is one, and content."""


class Events:
    """Hands events from the threads that make them to the readers in the event loop."""

    def __init__(self) -> None:
        self._readers: set[asyncio.Queue[Message | None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say in which event loop the readers are."""
        self._loop = loop

    def stop(self) -> None:
        """End all streams; from the event loop."""
        self._loop = None
        for reader in self._readers:
            self._cut_off(reader)

    def recorded(self, record: Record, has_image: bool) -> None:
        """Tell of a record, and whether its image was kept; from any thread."""
        if self._readers:
            self.tell("inspection", _content(record, has_image), record.id)

    def tell(self, kind: str, content: Mapping[str, Any], number: int | None = None) -> None:
        """Tell of something; from any thread.

        Args:
            kind: inspection, limit, review, model, drift, camera or output.
            content: ready for JSON.
            number: of the record, where it is about a new one.
        """
        loop = self._loop
        if loop is not None and self._readers and not loop.is_closed():
            loop.call_soon_threadsafe(self._hand_out, (kind, number, content))

    def _hand_out(self, message: Message) -> None:
        for reader in self._readers:
            try:
                reader.put_nowait(message)
            except asyncio.QueueFull:
                self._cut_off(reader)

    @staticmethod
    def _cut_off(reader: asyncio.Queue[Message | None]) -> None:
        while not reader.empty():
            reader.get_nowait()
        reader.put_nowait(None)

    @property
    def is_full(self) -> bool:
        """Whether as many look on as may."""
        return len(self._readers) >= MOST_READERS

    async def stream(self, site: Site, last: int | None) -> AsyncIterator[bytes]:
        """Events as text/event-stream, until the reader leaves, is too slow, or the service ends.

        Args:
            site: whose records are told again.
            last: the last record that the reader has seen; None: those from now on alone.
        """
        reader: asyncio.Queue[Message | None] = asyncio.Queue(_AHEAD)
        self._readers.add(reader)  # before the store is read, so that nothing falls between
        try:
            yield b"retry: 1000\n\n"
            seen = last or 0
            while last is not None and (repeated := await asyncio.to_thread(_missed, site, seen)):
                for event in repeated:
                    seen = event[1] or seen
                    yield _text(event)
            while True:
                try:
                    message = await asyncio.wait_for(reader.get(), KEEP_ALIVE_SECONDS)
                except asyncio.TimeoutError:
                    yield b": still here\n\n"
                    continue
                if message is None:
                    return
                if message[1] is None or message[1] > seen:
                    yield _text(message)
        finally:
            self._readers.discard(reader)


def _missed(site: Site, last: int) -> list[Message]:
    """Events of the records of all lines after one, oldest first, 1,000 at most."""
    pages = [site.store.page(line, after=last, count=_REPEATED) for line in site.lines]
    records = sorted((record for page in pages for record in page), key=lambda record: record.id)[:_REPEATED]
    return [("inspection", record.id, _content(record, site.pictures.has(record.image_sha256))) for record in records]


def _content(record: Record, has_image: bool) -> dict[str, Any]:
    return {**record.model_dump(mode="json", exclude_none=True), "image": has_image}


def _text(message: Message) -> bytes:
    kind, number, content = message
    head = f"event: {kind}\n" + ("" if number is None else f"id: {number}\n")
    return f"{head}data: {json.dumps(content, allow_nan=False)}\n\n".encode()
