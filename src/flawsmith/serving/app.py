"""The service over HTTP, in the words of those who answer for quality: ``/v1``, health, metrics."""

from __future__ import annotations

import asyncio
import io
import logging
import platform
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from flawsmith import __version__
from flawsmith.line.capture import CameraFacts, State
from flawsmith.line.drift import DriftFacts, Reference
from flawsmith.line.limits import LimitChange, LimitFacts, LimitPreview, LimitScores, limit_scores
from flawsmith.line.outputs.delivery import OutputFacts
from flawsmith.line.queue import NoModelError
from flawsmith.line.record import Draw, Outcome, Record, Trigger
from flawsmith.line.station import Line, SwapConflictError
from flawsmith.line.store import UnwritableError
from flawsmith.runtime.errors import FlawsmithError, why_refused
from flawsmith.runtime.inspector import Inspection
from flawsmith.serving.acceptance import acceptance
from flawsmith.serving.inference import oip
from flawsmith.serving.models import models
from flawsmith.serving.requests import Guard, Problem, checked_id, image_and_fields
from flawsmith.serving.reviews import reviews
from flawsmith.serving.service import (
    IMAGE_BODY,
    PROBLEMS,
    Anyone,
    AuditFacts,
    Count,
    Cursor,
    Engineer,
    InService,
    LineName,
    Number,
    Order,
    Reason,
    Service,
    Width,
    allowed,
    in_utc,
    next_cursor,
    refuse_error,
)
from flawsmith.serving.studio import Studio, add_studio
from flawsmith.serving.teach import studio_v1
from flawsmith.serving.trial import HeatMap, trial

_LEAST_FREE = 16 * 2**20
_RECENT = 1000
_TIMED = 200
_LONGEST = timedelta(days=31)
_LIBRARIES = ("numpy", "pillow", "onnxruntime", "pydantic", "fastapi", "uvicorn")

_Made = TypeVar("_Made")

log = logging.getLogger("flawsmith.serving")


class Page(BaseModel):
    """Some records, the newest first."""

    items: list[Record]
    images: list[int] = Field(description="numbers of those whose image was kept")
    next: int | None = Field(description="cursor of the next page; null: this is the last")


class LineFacts(BaseModel):
    """A line as it is now."""

    model_config = ConfigDict(protected_namespaces=())

    line: str
    place: str = Field(description="site/area/line/station")
    ready: bool = Field(description="whether a model is loaded")
    product: str | None
    method: str | None
    model_sha256: str | None
    device: str | None = Field(description="where its network is computed")
    limit: LimitFacts | None
    camera: State | None = Field(description="what its camera does; null: it has none")
    waiting: int = Field(description="parts that were taken and are not answered yet")
    capacity: int = Field(description="parts that may be")


class LimitOrder(LimitChange):
    """A change of limits with its reason."""

    reason: Reason
    expected: str | None = Field(
        default=None, max_length=64, description="name of the limits that are to be replaced; others are a conflict"
    )


class AcknowledgeOrder(Order):
    """What a person says who knows of a drift."""

    reason: Reason
    reference: Reference = Field(
        default="line",
        description="what the parts to come are compared with: line, each other alone, or calibration, the good images "
        "behind the limit too",
    )


class PauseOrder(Order):
    """Whether a line's camera takes pictures."""

    paused: bool
    reason: Reason


class AuditPage(BaseModel):
    """Some entries, the newest first."""

    items: list[AuditFacts]
    next: int | None


class Slot(BaseModel):
    """Parts of a slot of time, by verdict."""

    begin: int = Field(description="seconds since 1970")
    verdicts: dict[Outcome, int]


class Counts(BaseModel):
    """Figures of a line."""

    since: str
    verdicts: dict[Outcome, int] = Field(description="parts since then")
    slots: list[Slot] = Field(description="the same by time; slots without parts are left out")
    dropped: int = Field(description="parts that were refused and have no record, since the service began")
    waiting: dict[Draw, int] = Field(description="parts that wait for a review")
    latest: str | None = Field(description="when the latest part came")
    milliseconds: float | None = Field(description="that 95 of 100 of the latest 200 parts took at most")
    in_work: int = Field(description="parts that were taken and are not answered yet")
    free_bytes: int = Field(description="on the disk of records and images")


class TokenFacts(BaseModel):
    """A token without its secret."""

    name: str
    role: str


class SettingsFacts(BaseModel):
    """What the service runs with."""

    model_config = ConfigDict(protected_namespaces=())

    caller: TokenFacts = Field(description="who asks")
    tokens: list[TokenFacts] | None = Field(description="all of them; null: told to engineers alone")
    service: dict[str, Any] = Field(description="settings, without lines and tokens")
    lines: dict[str, dict[str, Any]] = Field(description="settings of the lines")
    versions: dict[str, str]
    free_bytes: int


_KNOWN: dict[int | str, dict[str, Any]] = {
    200: {"model": Record, "description": "The part was judged before, by this image where one came: its record"}
}
v1 = APIRouter(prefix="/v1", dependencies=[allowed("operator")], responses=PROBLEMS)


# Inspections


@v1.post(
    "/lines/{line}/inspections",
    response_model=Record,
    status_code=201,
    openapi_extra=IMAGE_BODY,
    responses=_KNOWN,
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
    return _recorded(record, is_new)


def _recorded(record: Record, is_new: bool) -> Response:
    headers = {"Location": f"/v1/lines/{record.line}/inspections/{record.id}"}
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
    items = service.site.store.page(
        service.line(line).name,
        verdict=verdict,
        part_id=part_id,
        lot_id=lot_id,
        since=None if since is None else in_utc(since),
        before=cursor,
        count=limit,
    )
    images = [record.id for record in items if service.site.pictures.has(record.image_sha256)]
    return Page(items=items, images=images, next=next_cursor(items, limit))


@v1.get("/lines/{line}/inspections/{number}")
def inspection(line: LineName, number: Number, service: InService) -> Record:
    """A record."""
    return service.record(line, number)


@v1.get("/lines/{line}/inspections/{number}/image", response_class=Response)
async def image(line: LineName, number: Number, service: InService, width: Width = None) -> Response:
    """The image, where it was kept: as it came, or scaled, as every browser shows it."""
    content = await run_in_threadpool(lambda: service.image(service.record(line, number)))
    return await service.shown(line, content, width)


@v1.get("/lines/{line}/inspections/{number}/overlay", response_class=Response)
async def overlay(line: LineName, number: Number, service: InService) -> Response:
    """The image with the map's heat and the regions' outlines, PNG."""

    def drawn(seen: Inspection, content: bytes) -> bytes:
        picture = io.BytesIO()
        seen.overlay(content, scale=True).save(picture, "PNG", compress_level=1)
        return picture.getvalue()

    return Response(await _seen_again(service, line, number, drawn), media_type="image/png")


@v1.get("/lines/{line}/inspections/{number}/heat")
async def heat(line: LineName, number: Number, service: InService) -> HeatMap:
    """The anomaly map in cells, to be laid over the image."""
    return await _seen_again(service, line, number, lambda seen, _: HeatMap.of(seen.map))


@v1.get("/lines/{line}/inspections/{number}/map", response_class=Response)
async def anomaly_map(line: LineName, number: Number, service: InService) -> Response:
    """The anomaly map in pixels of the image: float32, NumPy's .npy."""

    def saved(seen: Inspection, content: bytes) -> bytes:
        array = io.BytesIO()
        np.save(array, seen.map, allow_pickle=False)
        return array.getvalue()

    return Response(await _seen_again(service, line, number, saved), media_type="application/x-npy")


async def _seen_again(service: Service, line: str, number: int, make: Callable[[Inspection, bytes], _Made]) -> _Made:
    def made() -> _Made:
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
        device=None if model is None else model.inspector.device,
        limit=None if model is None else LimitFacts.of(model.decision),
        camera=None if line.camera is None else line.camera.state,
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


@v1.get("/lines/{line}/limit/scores")
def scores(line: LineName, service: InService) -> LimitScores:
    """Scores behind the limits, what each step is worth, and what the latest 1,000 parts would become."""
    model, store = service.model(line), service.site.store
    recent = store.page(line, count=_RECENT)
    return limit_scores(
        model,
        recent=recent,
        has_image=[service.site.pictures.has(record.image_sha256) for record in recent],
        labelled=store.labelled(line),
        picked=store.entries(line=line, kind="picked", count=_RECENT),
        changes=store.entries(line=line, kind="limit", count=_RECENT),
    )


@v1.post("/lines/{line}/limit/preview")
def preview_limit(line: LineName, change: LimitChange, service: InService) -> LimitPreview:
    """What a change of limits would do; nothing is changed."""
    service.model(line)
    return service.line(line).preview_limits(change)


@v1.put("/lines/{line}/limit")
def set_limit(line: LineName, order: LimitOrder, service: InService, caller: Engineer) -> LimitPreview:
    """Change the limits, with a reason. Parts that are taken from now on are judged by them."""
    place = service.line(line)
    change = LimitChange(**order.model_dump(include=set(LimitChange.model_fields)))
    preview = place.set_limits(change, who=caller.name, reason=order.reason, expected=order.expected)
    service.events.tell("limit", {"line": place.name, "who": caller.name, "limit": preview.after.model_dump()})
    return preview


# Camera


@v1.post("/lines/{line}/trigger", response_model=Record, status_code=201, responses=_KNOWN)
async def trigger(
    line: LineName,
    service: InService,
    part_id: Annotated[str | None, Header()] = None,
    lot_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Take a picture with the line's camera and judge it. With Part-Id a part that has a record is not taken again."""
    part, lot = checked_id(part_id, "Part-Id"), checked_id(lot_id, "Lot-Id")
    record, is_new = await service.triggered(service.line(line), part, lot)
    refuse_error(record)
    return _recorded(record, is_new)


@v1.get("/lines/{line}/camera")
def camera(line: LineName, service: InService) -> CameraFacts:
    """The line's camera as it is now."""
    return service.camera(line).facts()


@v1.get("/lines/{line}/camera/picture", response_class=Response)
async def camera_picture(line: LineName, service: InService) -> Response:
    """The camera's latest picture, judged or not."""
    content = await service.drawn(service.camera(line).picture)
    if content is None:
        raise Problem(404, "there is no picture yet")
    return await service.shown(line, content, None)


@v1.post("/lines/{line}/camera/pause")
def pause_camera(line: LineName, order: PauseOrder, service: InService, caller: Anyone) -> CameraFacts:
    """Pause the camera, or go on. While it is paused a trigger ends in an error, and nothing passes."""
    device = service.camera(line)
    device.pause(order.paused, who=caller.name, reason=order.reason)
    return device.facts()


# Drift


@v1.get("/lines/{line}/drift")
def drift(line: LineName, service: InService) -> DriftFacts:
    """Whether parts still are as they were; if not, since when, and what moved."""
    return service.site.drift.facts(service.line(line))


@v1.post("/lines/{line}/drift/acknowledge")
def acknowledge_drift(line: LineName, order: AcknowledgeOrder, service: InService, caller: Anyone) -> DriftFacts:
    """Begin the test of drift anew, with a reason."""
    place = service.line(line)
    service.model(line)
    service.site.drift.acknowledge(place, who=caller.name, reason=order.reason, reference=order.reference)
    service.events.tell("drift", {"line": place.name, "acknowledged": order.reason, "who": caller.name})
    return service.site.drift.facts(place)


# Figures and settings


@v1.get("/lines/{line}/counts")
def line_counts(
    line: LineName,
    service: InService,
    since: Annotated[datetime | None, Query(description="by default 8 hours ago; at most 31 days")] = None,
    minutes: Annotated[int, Query(ge=1, le=1440, description="width of a slot")] = 10,
) -> Counts:
    """Parts by verdict over a time, and how the line is."""
    place, store = service.line(line), service.site.store
    now = datetime.now(timezone.utc)
    asked = in_utc(now - timedelta(hours=8) if since is None else since)
    begin = max(asked, in_utc(now - _LONGEST))
    totals: dict[Outcome, int] = dict.fromkeys(("pass", "review", "reject", "error"), 0)
    slots: dict[int, dict[Outcome, int]] = {}
    for slot, verdict, number in store.counts(place.name, begin, 60 * minutes):
        totals[verdict] += number
        slots.setdefault(slot, {})[verdict] = number
    latest = store.page(place.name, count=_TIMED)
    took = [sum(record.timing.values()) for record in latest if record.timing]
    return Counts(
        since=begin,
        verdicts=totals,
        slots=[Slot(begin=slot, verdicts=verdicts) for slot, verdicts in slots.items()],
        dropped=service.metrics.drops(place.name),
        waiting=store.waiting(place.name),
        latest=latest[0].received if latest else None,
        milliseconds=float(np.percentile(took, 95)) if took else None,
        in_work=len(place.queue),
        free_bytes=service.site.pictures.free_bytes(),
    )


@v1.get("/settings")
def settings(service: InService, caller: Anyone) -> SettingsFacts:
    """What the service runs with; secrets are left out."""
    running = service.site.settings
    tokens = [TokenFacts(name=token.name, role=token.role) for token in running.tokens]
    return SettingsFacts(
        caller=TokenFacts(name=caller.name, role=caller.role),
        tokens=tokens if caller.role == "engineer" else None,
        service=running.model_dump(mode="json", exclude={"tokens", "lines"}),
        lines={name: line.shown() for name, line in running.lines.items()},
        versions={
            "flawsmith": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
        free_bytes=service.site.pictures.free_bytes(),
    )


# Outputs


@v1.get("/lines/{line}/outputs")
def outputs(line: LineName, service: InService) -> list[OutputFacts]:
    """How the outputs of a line are doing."""
    return service.line(line).outputs.facts()


# Audit and events


@v1.get("/audit")
def audit(
    service: InService,
    kind: Annotated[list[str] | None, Query(max_length=16, description="of these kinds alone")] = None,
    line: Annotated[str | None, Query(max_length=64)] = None,
    cursor: Cursor = None,
    limit: Count = 100,
) -> AuditPage:
    """Who did what, the newest first."""
    entries = service.site.store.entries(kind=kind or None, line=line, before=cursor, count=limit)
    return AuditPage(items=[AuditFacts(**vars(entry)) for entry in entries], next=next_cursor(entries, limit))


@v1.get("/events", response_class=StreamingResponse)
async def events(
    service: InService,
    last_event_id: Annotated[str | None, Header()] = None,
    after: Annotated[
        str | None, Query(max_length=32, description="as Last-Event-ID, for a page that asks anew")
    ] = None,
) -> StreamingResponse:
    """Inspections, limits, reviews, models, drift, cameras as they come (SSE). Last-Event-ID repeats those after it."""
    if service.events.is_full:
        raise Problem(503, "as many look on as may", {"Retry-After": "10"})
    told = last_event_id or after
    last = int(told) if told and told.isdecimal() and len(told) < 19 else None
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
    if any(line.is_unloaded for line in service.site.lines.values()):  # one that is not taught yet keeps no other back
        missing.append("a line has no model")
    if service.site.pictures.free_bytes() < _LEAST_FREE:
        missing.append("the disk is full")
    if missing:
        raise Problem(503, "; ".join(missing))
    return JSONResponse({"status": "ready"})


@watched.get("/metrics", response_class=Response, dependencies=[allowed("operator")])
def metrics(service: InService) -> Response:
    """Counts as Prometheus reads them."""
    return Response(service.metrics.look_at(service.site), media_type="text/plain; version=0.0.4; charset=utf-8")


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
            await run_in_threadpool(service.close)

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
    studio_routers = [] if service.workspace is None else [studio_v1]
    for router in (v1, models, reviews, trial, acceptance, watched, oip, *studio_routers):
        app.include_router(router)
    studio = add_studio(app, service) if service.settings.studio else None
    app.add_middleware(Guard, local=service.settings.local)
    handlers: dict[type[Exception], Callable[[Any], Problem]] = {
        Problem: lambda problem: problem,
        HTTPException: lambda error: Problem(error.status_code, str(error.detail), error.headers),
        RequestValidationError: _of_validation,
        FlawsmithError: lambda error: Problem(422, str(error)),
        SwapConflictError: lambda error: Problem(409, str(error)),
        UnwritableError: lambda _: Problem(503, "nothing can be written, so nothing was done; see the disk"),
        sqlite3.OperationalError: _of_unreadable,
        NoModelError: lambda _: Problem(409, "the line has no model: load one"),
        Exception: _of_defect,
    }
    for kind, problem_of in handlers.items():
        app.add_exception_handler(kind, _handler(problem_of, studio))
    return app


def _handler(problem_of: Callable[[Any], Problem], studio: Studio | None) -> Callable[[Request, Exception], Any]:
    async def handle(request: Request, error: Exception) -> Response:
        problem = problem_of(error)
        if studio is not None and request.url.path.startswith("/studio"):
            return studio.problem_page(request, problem)
        if request.url.path.startswith("/v2"):  # which has a form of its own
            return JSONResponse({"error": problem.detail}, problem.status, problem.headers)
        return problem.response()

    return handle


def _of_validation(error: RequestValidationError) -> Problem:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:]) or "the request"
    return Problem(422, why_refused(first, place))


def _of_unreadable(error: Exception) -> Problem:
    log.error("the records cannot be read: %s", error)
    return Problem(503, "the records cannot be read at present; see the service's log")


def _of_defect(error: Exception) -> Problem:
    log.error("a request failed", exc_info=error)
    return Problem(500, "a defect of Flawsmith: see the service's log")
