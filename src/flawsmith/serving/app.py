"""The service over HTTP, in the words of those who answer for quality: ``/v1``, health, metrics."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from flawsmith import __version__
from flawsmith.line.outputs.delivery import OutputFacts
from flawsmith.line.record import Label, Outcome, Record, Trigger
from flawsmith.line.station import LimitChange, LimitFacts, LimitPreview, Line, NoModelError
from flawsmith.line.store import UnwritableError
from flawsmith.runtime.errors import FlawsmithError, why_refused
from flawsmith.runtime.inspector import Inspection
from flawsmith.serving.inference import oip
from flawsmith.serving.requests import Guard, Problem, checked_id, image_and_fields
from flawsmith.serving.service import Anyone, Engineer, InService, LineName, Service, allowed, refuse_error

_LEAST_FREE = 16 * 2**20
_SIGNATURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"BM": "image/bmp", b"GIF8": "image/gif"}

log = logging.getLogger("flawsmith.serving")


class Page(BaseModel):
    """Some records, the newest first."""

    items: list[Record]
    next: int | None = Field(description="cursor of the next page; null: this is the last")


class LineFacts(BaseModel):
    """A line as it is now."""

    line: str
    place: str = Field(description="site/area/line/station")
    ready: bool = Field(description="whether a model is loaded")
    product: str | None
    method: str | None
    model_sha256: str | None
    limit: LimitFacts | None
    waiting: int = Field(description="parts that were taken and are not answered yet")
    capacity: int = Field(description="parts that may be")


class LimitOrder(LimitChange):
    """A change of limits with its reason."""

    reason: str = Field(min_length=3, max_length=1000, description="stands in the audit")
    expected: str | None = Field(
        default=None, max_length=64, description="name of the limits that are to be replaced; others are a conflict"
    )


class ReviewOrder(BaseModel):
    """What a person says who has looked at the part."""

    model_config = ConfigDict(extra="forbid")

    label: Label
    comment: str = Field(default="", max_length=1000)


class AuditFacts(BaseModel):
    """An entry of the audit."""

    id: int
    at: str
    kind: str
    who: str
    line: str
    facts: dict[str, Any]
    hash: str


class AuditPage(BaseModel):
    """Some entries, the newest first."""

    items: list[AuditFacts]
    next: int | None


Number = Annotated[int, Path(ge=1, le=2**62)]
Cursor = Annotated[int | None, Query(ge=1, le=2**62, description="`next` of the page before")]
Count = Annotated[int, Query(ge=1, le=1000)]
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Refused", "content": {"application/problem+json": {}}},
    "5XX": {"description": "Not judged", "content": {"application/problem+json": {}}},
}
v1 = APIRouter(prefix="/v1", dependencies=[allowed("operator")], responses=_PROBLEMS)


# Inspections

_IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
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


@v1.post(
    "/lines/{line}/inspections",
    response_model=Record,
    status_code=201,
    openapi_extra=_IMAGE_BODY,
    responses={200: {"model": Record, "description": "The part was judged before by this image: its record"}},
)
async def inspect(
    line: LineName,
    service: InService,
    request: Request,
    part_id: Annotated[str | None, Header()] = None,
    lot_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Judge a part. Part-Id makes it safe to send again: the same part and image have one record."""
    content_type = request.headers.get("content-type", "")
    place = service.line(line)

    def trigger_of(body: bytes) -> Trigger:
        image, fields = image_and_fields(content_type, body)
        part = checked_id(part_id or fields.get("part_id"), "Part-Id")
        lot = checked_id(lot_id or fields.get("lot_id"), "Lot-Id")
        return Trigger(place.name, image, part_id=part, lot_id=lot)

    record, is_new = await service.judged(place, request, trigger_of)
    refuse_error(record)
    headers = {"Location": f"/v1/lines/{place.name}/inspections/{record.id}"}
    return Response(record.model_dump_json(), 201 if is_new else 200, headers, media_type="application/json")


@v1.get("/lines/{line}/inspections")
def inspections(
    line: LineName,
    service: InService,
    verdict: Outcome | None = None,
    part_id: Annotated[str | None, Query(max_length=128)] = None,
    lot_id: Annotated[str | None, Query(max_length=128)] = None,
    since: Annotated[datetime | None, Query(description="received then or later; UTC where no zone is named")] = None,
    cursor: Cursor = None,
    limit: Count = 100,
) -> Page:
    """Records, the newest first."""
    begin = None
    if since is not None:
        zoned = since if since.tzinfo else since.replace(tzinfo=timezone.utc)
        begin = zoned.astimezone(timezone.utc).isoformat(timespec="microseconds")
    items = service.site.store.page(
        service.line(line).name,
        verdict=verdict,
        part_id=part_id,
        lot_id=lot_id,
        since=begin,
        before=cursor,
        count=limit,
    )
    return Page(items=items, next=_next(items, limit))


def _next(items: Sequence[Any], count: int) -> int | None:
    return items[-1].id if len(items) == count else None


@v1.get("/lines/{line}/inspections/{number}")
def inspection(line: LineName, number: Number, service: InService) -> Record:
    """A record."""
    return service.record(line, number)


@v1.get("/lines/{line}/inspections/{number}/image", response_class=Response)
def image(line: LineName, number: Number, service: InService) -> Response:
    """The image as it came, where it was kept."""
    content = service.image(service.record(line, number))
    kind = next((kind for start, kind in _SIGNATURES.items() if content.startswith(start)), "application/octet-stream")
    return Response(content, media_type=kind)


@v1.get("/lines/{line}/inspections/{number}/overlay", response_class=Response)
async def overlay(line: LineName, number: Number, service: InService) -> Response:
    """The image with the map's heat and the regions' outlines, PNG."""

    def drawn(seen: Inspection, content: bytes) -> bytes:
        picture = io.BytesIO()
        seen.overlay(content, scale=True).save(picture, "PNG", compress_level=1)
        return picture.getvalue()

    return Response(await _seen_again(service, line, number, drawn), media_type="image/png")


@v1.get("/lines/{line}/inspections/{number}/map", response_class=Response)
async def anomaly_map(line: LineName, number: Number, service: InService) -> Response:
    """The anomaly map in pixels of the image: float32, NumPy's .npy."""

    def saved(seen: Inspection, content: bytes) -> bytes:
        array = io.BytesIO()
        np.save(array, seen.map, allow_pickle=False)
        return array.getvalue()

    return Response(await _seen_again(service, line, number, saved), media_type="application/x-npy")


async def _seen_again(service: Service, line: str, number: int, make: Callable[[Inspection, bytes], bytes]) -> bytes:
    def made() -> bytes:
        record = service.record(line, number)
        if record.verdict == "error":
            raise Problem(410, "the part was not judged, so there is no map")
        content = service.image(record)
        return make(service.seen_again(record, content), content)

    return await service.drawn(made)


# Lines, limits, models


def _facts(line: Line) -> LineFacts:
    model = line.model
    return LineFacts(
        line=line.name,
        place=line.settings.place(line.name),
        ready=model is not None,
        product=None if model is None else model.product,
        method=None if model is None else model.bundle.spec.method,
        model_sha256=None if model is None else model.sha256,
        limit=None if model is None else LimitFacts.of(model.decision),
        waiting=len(line.queue),
        capacity=line.queue.capacity,
    )


@v1.get("/lines")
def lines(service: InService) -> list[LineFacts]:
    """All lines."""
    return [_facts(line) for line in service.site.lines.values()]


@v1.get("/lines/{line}")
def line_facts(line: LineName, service: InService) -> LineFacts:
    """A line."""
    return _facts(service.line(line))


@v1.get("/lines/{line}/limit")
def limit(line: LineName, service: InService) -> LimitFacts:
    """The limits in use, and what they are worth."""
    return LimitFacts.of(service.model(line).decision)


@v1.post("/lines/{line}/limit/preview")
def preview_limit(line: LineName, change: LimitChange, service: InService) -> LimitPreview:
    """What a change of limits would do; nothing is changed."""
    service.model(line)
    return service.line(line).preview_limits(change)


@v1.put("/lines/{line}/limit")
def set_limit(line: LineName, order: LimitOrder, service: InService, caller: Engineer) -> LimitPreview:
    """Change the limits, with a reason. Parts that are taken from now on are judged by them."""
    place = service.line(line)
    in_use = service.model(line).decision.identity
    if order.expected not in (None, in_use):
        raise Problem(409, f"the limits in use are {in_use}, not {order.expected}: look at them first")
    change = LimitChange(**order.model_dump(include=set(LimitChange.model_fields)))
    preview = place.set_limits(change, who=caller.name, reason=order.reason)
    service.events.tell("limit", {"line": place.name, "who": caller.name, "limit": preview.after.model_dump()})
    return preview


@v1.get("/lines/{line}/outputs")
def outputs(line: LineName, service: InService) -> list[OutputFacts]:
    """How the outputs of a line are doing."""
    return service.line(line).outputs.facts()


# Reviews and audit


@v1.get("/lines/{line}/reviews/next", response_model=Record, responses={204: {"description": "None waits"}})
def next_review(line: LineName, service: InService) -> Any:
    """The oldest part that waits for a review."""
    record = service.site.store.next_to_review(service.line(line).name)
    return Response(status_code=204) if record is None else record


@v1.post("/lines/{line}/reviews/{number}", status_code=201)
def review(line: LineName, number: Number, order: ReviewOrder, service: InService, caller: Anyone) -> AuditFacts:
    """Say what a part is. It may be said again; the latest counts, and all stay."""
    record = service.record(line, number)
    entry = service.site.store.review(number, order.label, who=caller.name, line=record.line, comment=order.comment)
    service.metrics.reviewed(record.line, order.label)
    service.events.tell("review", {"line": record.line, "record": number, "label": order.label, "who": caller.name})
    return AuditFacts(**vars(entry))


@v1.get("/lines/{line}/reviews/{number}")
def reviews(line: LineName, number: Number, service: InService) -> list[AuditFacts]:
    """What was said of a part, oldest first."""
    service.record(line, number)
    return [AuditFacts(**vars(entry)) for entry in service.site.store.reviews_of(number)]


@v1.get("/audit")
def audit(service: InService, kind: str | None = None, cursor: Cursor = None, limit: Count = 100) -> AuditPage:
    """Who did what, the newest first."""
    entries = service.site.store.entries(kind=kind, before=cursor, count=limit)
    return AuditPage(items=[AuditFacts(**vars(entry)) for entry in entries], next=_next(entries, limit))


@v1.get("/events", response_class=StreamingResponse)
async def events(service: InService, last_event_id: Annotated[str | None, Header()] = None) -> StreamingResponse:
    """Inspections, limits, reviews, models as they come: server-sent events. Last-Event-ID repeats what was missed."""
    if service.events.is_full:
        raise Problem(503, "as many look on as may", {"Retry-After": "10"})
    last = int(last_event_id) if last_event_id and last_event_id.isdecimal() and len(last_event_id) < 19 else None
    return StreamingResponse(service.events.stream(service.site, last), media_type="text/event-stream")


# Health and metrics

watched = APIRouter()


@watched.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process lives."""
    return {"status": "alive"}


@watched.get("/readyz")
def readyz(service: InService) -> Response:
    """Whether parts can be judged and recorded."""
    missing = []
    if any(line.model is None for line in service.site.lines.values()):
        missing.append("a line has no model")
    if service.site.pictures.free_bytes() < _LEAST_FREE:
        missing.append("the disk is full")
    if missing:
        raise Problem(503, "; ".join(missing))
    return JSONResponse({"status": "ready"})


@watched.get("/metrics", response_class=Response, dependencies=[allowed("operator")])
def metrics(service: InService) -> Response:
    """Counts as Prometheus reads them."""
    service.metrics.look_at(service.site)
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def create_app(service: Service) -> FastAPI:
    """The application of a service, which ends with it.

    Args:
        service: its lines run already.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.events.start(asyncio.get_running_loop())
        try:
            yield
        finally:
            await run_in_threadpool(service.site.close)

    app = FastAPI(
        title="Flawsmith",
        version=__version__,
        description="Visual inspection on the line.",
        docs_url=None,  # pages that load scripts from elsewhere
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        lifespan=lifespan,
    )
    app.state.service = service
    for router in (v1, watched, oip):
        app.include_router(router)
    app.add_middleware(Guard, local=service.settings.local)
    handlers: dict[type[Exception], Callable[[Any], Problem]] = {
        Problem: lambda problem: problem,
        HTTPException: lambda error: Problem(error.status_code, str(error.detail), error.headers),
        RequestValidationError: _of_validation,
        FlawsmithError: lambda error: Problem(422, str(error)),
        UnwritableError: lambda _: Problem(503, "nothing can be written, so nothing was done; see the disk"),
        NoModelError: lambda _: Problem(409, "the line has no model: load one"),
        Exception: _of_defect,
    }
    for kind, problem_of in handlers.items():
        app.add_exception_handler(kind, _handler(problem_of))
    return app


def _handler(problem_of: Callable[[Any], Problem]) -> Callable[[Request, Exception], Any]:
    async def handle(request: Request, error: Exception) -> Response:
        problem = problem_of(error)
        if request.url.path.startswith("/v2"):  # which has a form of its own
            return JSONResponse({"error": problem.detail}, problem.status, problem.headers)
        return problem.response()

    return handle


def _of_validation(error: RequestValidationError) -> Problem:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:]) or "the request"
    return Problem(422, why_refused(first, place))


def _of_defect(error: Exception) -> Problem:
    log.error("a request failed", exc_info=error)
    return Problem(500, "a defect of Flawsmith: see the service's log")
