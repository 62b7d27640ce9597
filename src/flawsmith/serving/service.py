"""What all endpoints share: the lines, who may do what, and how a part gets from a request to its record."""

from __future__ import annotations

import asyncio
import io
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timezone
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, Path, Query, Request, Response
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from flawsmith.data.splits import content_hash
from flawsmith.line.cameras import CameraError
from flawsmith.line.capture import Capture
from flawsmith.line.looks import vector_of
from flawsmith.line.model import LoadedModel
from flawsmith.line.queue import (
    NoModelError,
    NotRecordedError,
    PartConflictError,
    QueueClosedError,
    QueueFullError,
)
from flawsmith.line.record import Record, Trigger
from flawsmith.line.settings import Role, ServiceSettings
from flawsmith.line.station import Line, NoCameraError, Site
from flawsmith.line.trainings import Training
from flawsmith.line.workspace import Workspace
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import as_8_bit, decode
from flawsmith.runtime.inspector import Inspection
from flawsmith.serving.events import Events
from flawsmith.serving.metrics import Metrics
from flawsmith.serving.requests import Caller, Problem, UploadBudget, caller_of, received_body

_Drawn = TypeVar("_Drawn")
_UPLOADS, _OTHER_UPLOADS = 8, 4
"""Requests of the largest size that may be in memory before they are in a queue: of parts, and of all others."""
_MOST_DRAWN = 48
"""Requests for pictures that may wait: a page of small ones asks for six at a time."""
_MOST_TAUGHT = 2
_TAKERS = 4
_MOST_VECTORS = 200


class Service:
    """What all endpoints share.

    Args:
        settings: of the service.
        workspace: of a studio, which the service gives back when it ends; None: lines are only judged.

    Raises:
        FlawsmithError: as `Site`.
    """

    def __init__(self, settings: ServiceSettings, workspace: Workspace | None = None) -> None:
        self.settings, self.workspace = settings, workspace
        self.metrics, self.events = Metrics(), Events()
        self.budget_of_parts = UploadBudget(_UPLOADS * settings.max_bytes)
        self.budget = UploadBudget(_OTHER_UPLOADS * settings.max_bytes)
        self._drawing = asyncio.Semaphore(1)
        self._to_draw = 0
        self._teaching = asyncio.Semaphore(_MOST_TAUGHT)
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self.uploading_model = asyncio.Lock()
        # Threads of their own, so that no part waits for the pages that look on.
        self._takers = ThreadPoolExecutor(_TAKERS, thread_name_prefix="take")
        self.accepting = threading.Lock()
        self.site = Site(settings, self._recorded, self._happened)
        if workspace is not None:
            workspace.start(self._trained)

    def close(self) -> None:
        """Judge what was taken, and give all folders back. Trainings go on."""
        if self.workspace is not None:
            self.workspace.close()
        self.site.close()
        self._takers.shutdown(wait=False)

    def _trained(self, training: Training) -> str:
        """A training is done: its model becomes a version of the line."""
        sha256 = self.take_model(training)
        self.events.tell("training", {"line": training.asked.line, "number": training.asked.number})
        return sha256

    def take_model(self, training: Training) -> str:
        """Make the model of a training a version of its line, if it is none yet.

        Returns:
            SHA-256 of the model file.

        Raises:
            FlawsmithError: the line is no more, or the model does not work here.
        """
        line = self.site.lines.get(training.asked.line)
        if line is None:
            raise FlawsmithError(f"there is no line {training.asked.line} any more")
        with self.site.files.receiving() as received:
            try:
                shutil.copyfile(training.model, received)
            except OSError as error:
                raise FlawsmithError(f"{training.model}: cannot be copied ({error.strerror})") from None
            sha256 = content_hash(received)
            line.add_version(received, sha256, who=training.asked.who)
        return sha256

    def _recorded(self, record: Record) -> None:
        self.metrics.recorded(record)
        self.events.recorded(record, has_image=self.site.pictures.has(record.image_sha256))

    def _happened(self, kind: str, content: Mapping[str, Any]) -> None:
        if kind == "dropped":
            self.metrics.dropped(content["line"], content["reason"])
            return
        if kind == "output":
            self.metrics.output_failed(content["line"], content["output"])
        self.events.tell(kind, content)

    def line(self, name: str) -> Line:
        """A line by its name.

        Raises:
            Problem: there is none.
        """
        lines = self.site.lines
        if name not in lines:
            raise Problem(404, f"there is no such line; there are {', '.join(lines) or 'none'}")
        return lines[name]

    def model(self, name: str) -> LoadedModel:
        """The model of a line.

        Raises:
            Problem: there is no such line, or it has no model.
        """
        model = self.line(name).model
        if model is None:
            raise Problem(409, "the line has no model: load one")
        return model

    def record(self, line: str, number: int) -> Record:
        """A record of a line.

        Raises:
            Problem: there is none.
        """
        record = self.site.store.get(number)
        if record is None or record.line != self.line(line).name:
            raise Problem(404, f"line {self.line(line).name} has no inspection {number}")
        return record

    def image(self, record: Record) -> bytes:
        """The image of a record.

        Raises:
            Problem: it was not kept.
        """
        content = self.site.pictures.read(record.image_sha256)
        if content is None:
            raise Problem(410, "the image was not kept, or not for so long")
        return content

    async def shown(
        self, line: str, content: bytes, width: int | None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """An image file of a line as it came, or as a JPEG of at most some width, with its own in Image-Size.

        Raises:
            FlawsmithError: it cannot be read.
        """
        if width is None:
            return Response(content, media_type=image_kind(content)[0], headers=dict(headers or {}))

        def scaled() -> Response:
            model = self.line(line).model
            value_range = None if model is None else model.bundle.spec.geometry.value_range
            picture = Image.fromarray(as_8_bit(decode(content, max_pixels=self.settings.max_pixels), value_range))
            size = f"{picture.width}x{picture.height}"
            if picture.width > width:
                height = max(1, round(picture.height * width / picture.width))
                picture = picture.resize((width, height), Image.Resampling.BOX)
            stream = io.BytesIO()
            picture.save(stream, "JPEG", quality=88)
            sent = {"Cache-Control": "private, max-age=3600", "Image-Size": size}
            return Response(stream.getvalue(), media_type="image/jpeg", headers=sent)

        return await self.drawn(scaled)

    def camera(self, line: str) -> Capture:
        """The camera of a line.

        Raises:
            Problem: it has none.
        """
        camera = self.line(line).camera
        if camera is None:
            raise Problem(404, "the line has no camera: send it images, or name a camera in the settings")
        return camera

    def take_picture(self, line: str) -> bytes:
        """A picture that the camera of a line takes now, and that nobody judges; for a thread.

        Raises:
            Problem: the line has no camera, or it fails.
        """
        try:
            return self.camera(line).take()
        except CameraError as error:
            raise Problem(503, str(error)) from None

    def vector(self, record: Record) -> NDArray[np.float32] | None:
        """What a record's image looks like, near for images that look alike; None: it was not kept, or is none."""
        known = self._vectors.get(record.image_sha256)
        content = self.site.pictures.read(record.image_sha256) if known is None else None
        if content is not None:
            with suppress(FlawsmithError):
                known = vector_of(content, max_pixels=self.settings.max_pixels)
                self._vectors[record.image_sha256] = known
                for oldest in list(self._vectors)[:-_MOST_VECTORS]:
                    del self._vectors[oldest]
        return known

    def seen_again(self, record: Record, image: bytes) -> Inspection:
        """The image of a record, inspected again by what judged it; for `drawn`.

        Raises:
            Problem: that is there no more.
        """
        try:
            return self.line(record.line).seen_again(record, image)
        except (FlawsmithError, NoModelError) as error:
            raise Problem(410, str(error) or "the line has no model") from None

    async def drawn(self, make: Callable[[], _Drawn]) -> _Drawn:
        """What is made of an image that was judged, in a thread; one at a time, as parts come first.

        Raises:
            Problem: many wait already.
        """
        if self._to_draw >= _MOST_DRAWN:
            raise Problem(503, "many pictures are being drawn; ask again", {"Retry-After": "1"})
        self._to_draw += 1
        try:
            async with self._drawing:
                return await run_in_threadpool(make)
        finally:
            self._to_draw -= 1

    async def taught(self, make: Callable[[], _Drawn]) -> _Drawn:
        """What is made of an image to teach with, in a thread; a few at a time, so that parts are judged meanwhile."""
        async with self._teaching:
            return await run_in_threadpool(make)

    async def received(self, request: Request, use: Callable[[bytes], _Drawn]) -> _Drawn:
        """What is made of a request that holds an image, in a thread, and as `drawn` one at a time.

        Args:
            request: whose body was not read yet.
            use: takes the body.

        Raises:
            Problem: it was refused.
        """
        async with received_body(
            request, most=self.settings.max_bytes, seconds=self.settings.upload_seconds, budget=self.budget
        ) as body:
            return await self.drawn(lambda: use(bytes(body)))

    async def judged(self, line: Line, request: Request, trigger_of: Callable[[bytes], Trigger]) -> tuple[Record, bool]:
        """Read a request, have its part judged, and wait for the record.

        Args:
            line: that judges.
            request: whose body was not read yet.
            trigger_of: makes a trigger of the body; called in a thread.

        Returns:
            The record, and whether it is new.

        Raises:
            Problem: it was refused, or not answered in time.
        """
        async with received_body(
            request, most=self.settings.max_bytes, seconds=self.settings.upload_seconds, budget=self.budget_of_parts
        ) as body:
            loop = asyncio.get_running_loop()
            future, is_new = await loop.run_in_executor(self._takers, self._submit, line, body, trigger_of)
        return await self._answer(line, future), is_new

    def _submit(
        self, line: Line, body: bytearray, trigger_of: Callable[[bytes], Trigger]
    ) -> tuple[Future[Record], bool]:
        trigger = trigger_of(bytes(body))
        try:
            return line.submit(trigger)
        except QueueFullError:
            self.metrics.dropped(line.name, "busy")
            raise Problem(
                503, f"{line.queue.capacity} parts are waiting; send it again", {"Retry-After": "1"}
            ) from None
        except QueueClosedError:
            self.metrics.dropped(line.name, "closed")
            raise Problem(503, "the service is ending", {"Retry-After": "10"}) from None
        except NoModelError:
            self.metrics.dropped(line.name, "no_model")
            raise Problem(503, "the line has no model: load one", {"Retry-After": "10"}) from None
        except PartConflictError:
            raise Problem(409, f"part {trigger.part_id} was judged by another image") from None

    async def triggered(self, line: Line, part_id: str | None, lot_id: str | None) -> tuple[Record, bool]:
        """Take a picture with a line's camera, have it judged, and wait for the record.

        Returns:
            The record, and whether it is new.

        Raises:
            Problem: there is no camera, or no answer in time.
        """

        def trigger() -> tuple[Future[Record], int]:
            latest = self.site.store.last_number()
            return line.trigger(part_id, lot_id), latest

        try:
            future, latest = await asyncio.get_running_loop().run_in_executor(self._takers, trigger)
        except NoCameraError:
            raise Problem(404, "the line has no camera: send it pictures") from None
        except QueueClosedError:
            raise Problem(503, "the service is ending", {"Retry-After": "10"}) from None
        record = await self._answer(line, future)
        return record, record.id > latest

    async def _answer(self, line: Line, future: Future[Record]) -> Record:
        seconds = self.settings.answer_seconds
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), seconds)
        except asyncio.TimeoutError:
            self.metrics.late(line.name)
            raise Problem(
                504, f"not judged within {seconds:g} s; it is still in work: send part and image again for its record"
            ) from None
        except NotRecordedError:
            self.metrics.dropped(line.name, "not_recorded")
            raise Problem(503, "the record cannot be written, so the part counts as not judged; see the disk") from None


def _service_of(request: Request) -> Service:
    return request.app.state.service


async def _service(request: Request) -> Service:
    return _service_of(request)  # as no coroutine it would be called in a thread, and wait for one


def allowed(role: Role) -> Any:
    """A dependency that refuses who has no token of this role, and gives the `Caller` otherwise."""

    async def check(request: Request) -> Caller:
        caller = caller_of(request, _service_of(request).settings)
        if role == "engineer" and caller.role != "engineer":
            raise Problem(403, "an engineer's token is needed")
        return caller

    return Depends(check)


InService = Annotated[Service, Depends(_service)]
Anyone = Annotated[Caller, allowed("operator")]
Engineer = Annotated[Caller, allowed("engineer")]
LineName = Annotated[str, Path(max_length=64)]
Number = Annotated[int, Path(ge=1, le=2**62)]
Cursor = Annotated[int | None, Query(ge=1, le=2**62, description="`next` of the page before")]
Count = Annotated[int, Query(ge=1, le=1000)]
PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Refused", "content": {"application/problem+json": {}}},
    "5XX": {"description": "Not judged", "content": {"application/problem+json": {}}},
}
_FILE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
FILE_BODY = {"requestBody": {"required": True, "content": _FILE}}
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            **_FILE,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "part_id": {"type": "string"},
                        "lot_id": {"type": "string"},
                    },
                }
            },
        },
    }
}


_KINDS = {
    b"\x89PNG": ("image/png", ".png"),
    b"\xff\xd8\xff": ("image/jpeg", ".jpg"),
    b"BM": ("image/bmp", ".bmp"),
    b"GIF8": ("image/gif", ".gif"),
    b"II*\x00": ("image/tiff", ".tif"),
    b"MM\x00*": ("image/tiff", ".tif"),
}
Reason = Annotated[str, Field(min_length=3, max_length=1000, description="stands in the audit")]
Width = Annotated[int | None, Query(ge=16, le=8192, description="as a JPEG of at most so many pixels")]


class Order(BaseModel):
    """What somebody asks for; members that there are not are refused."""

    model_config = ConfigDict(extra="forbid")


def image_kind(content: bytes) -> tuple[str, str]:
    """Media type and suffix of an image file, by how it begins."""
    unknown = ("application/octet-stream", ".png")
    return next((kind for start, kind in _KINDS.items() if content.startswith(start)), unknown)


class AuditFacts(BaseModel):
    """An entry of the audit."""

    id: int
    at: str
    kind: str
    who: str
    line: str
    facts: dict[str, Any]
    hash: str


def next_cursor(items: Sequence[Any], count: int) -> int | None:
    """The cursor of the page after these items; None: they are the last."""
    return items[-1].id if len(items) == count else None


def in_utc(time: datetime) -> str:
    """A time as records have it; UTC where no zone is named.

    Raises:
        Problem: UTC has no such year.
    """
    zoned = time if time.tzinfo else time.replace(tzinfo=timezone.utc)
    try:
        return zoned.astimezone(timezone.utc).isoformat(timespec="microseconds")
    except OverflowError:
        raise Problem(422, "the time is before the year 1, or after the year 9999") from None


def refuse_error(record: Record) -> None:
    """Raises a Problem where a part was not judged; its record says so too, and counts as a reject."""
    if record.verdict == "error":
        status = {"image": 422, "camera": 503, "dropped": 503}.get(record.error_kind or "", 500)
        raise Problem(status, record.error or "not judged", verdict="error", inspection=record.id)
