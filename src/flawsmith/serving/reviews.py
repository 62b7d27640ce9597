"""Parts that wait for a person, what was said of them, and what that proves."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from flawsmith.line.limits import Evidence, LimitPreview, evidence
from flawsmith.line.record import Draw, Label, LabelRole, Record
from flawsmith.line.store import MOST_LABELS
from flawsmith.runtime.decision import FEW_GOOD_IMAGES
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import printable
from flawsmith.serving.service import (
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
    allowed,
    in_utc,
    next_cursor,
)

reviews = APIRouter(prefix="/v1", dependencies=[allowed("operator")], responses=PROBLEMS)
_PASSES_LOOKED_AT, _MOST_COMPARED = 400, 24


class ReviewOrder(Order):
    """What a person says who has looked at the part."""

    label: Label
    comment: str = Field(default="", max_length=1000)
    role: LabelRole = Field(default="calibrate", description="whether limits may be set by it, or only measured")
    blind: bool = Field(default=False, description="whether verdict and score were hidden")


class Queue(BaseModel):
    """Parts that wait for a person, the oldest first."""

    items: list[Record]
    images: list[int] = Field(description="numbers of those whose image was kept")
    waiting: dict[Draw, int] = Field(description="all that wait, by how they came")
    next: int | None = Field(description="cursor of the next page; null: this is the last")


class Recalibration(BaseModel):
    """Limits from the good parts of the random audit, beside those in use."""

    parts: int = Field(description="good parts of the random audit that were looked at")
    days: int = Field(description="on which they came")
    fewest: int = Field(description="that say anything of a limit")
    flawed: int = Field(description="flawed parts of the same draw, which set no limit")
    unclear: int = Field(description="likewise, of which a person was not sure")
    kept: int = Field(description="good ones that are kept to measure with")
    later: int = Field(description="good ones that count once all parts of the draw before them were looked at")
    in_use: bool = Field(description="whether the limits in use rest on them already")
    preview: LimitPreview | None = Field(description="null: see why_not")
    why_not: str
    flaws: int = Field(description="known flaws that this model has judged")
    flaws_caught: list[int] = Field(description="of these: rejected by the limits in use, and by the new ones")


class RecalibrationOrder(Order):
    """Limits from the good parts of the random audit are to be used."""

    reason: Reason
    expected: str = Field(
        max_length=64, description="name of the limits that the preview showed; others are a conflict"
    )


class Alike(BaseModel):
    """A good image that looks much like that of a part."""

    taught: str | None = Field(default=None, description="SHA-256 of an image that the line is taught with")
    record: int | None = Field(default=None, description="or the number of a part that passed")
    name: str
    among: int = Field(description="images that were compared")


@reviews.get("/lines/{line}/reviews/{number}/alike", responses={204: {"description": "There is no good image"}})
async def alike(line: LineName, number: Number, service: InService) -> Any:
    """The good image that looks most like that of a part, by colours and detail of a small picture of it.

    It is one that the line is taught with; where there is none, one of the latest parts that passed.
    """

    def compared() -> Alike | None:
        record = service.record(line, number)
        vector = service.vector(record)
        if vector is None:
            return None
        if service.workspace is not None:
            teaching = service.workspace.teaching(record.line)
            nearest = teaching.nearest(vector)
            if nearest is not None:
                name = printable(teaching.image(nearest).path.name)
                return Alike(taught=nearest, name=name, among=len(teaching.oddness()))
        passed = service.site.store.page(record.line, verdict="pass", count=_PASSES_LOOKED_AT)
        others = [each for each in passed if each.image_sha256 != record.image_sha256]
        kept = [each for each in others if service.site.pictures.has(each.image_sha256)][:_MOST_COMPARED]
        vectors = [(each, other) for each in kept if (other := service.vector(each)) is not None]
        if not vectors:
            return None
        best = min(vectors, key=lambda pair: float(((pair[1] - vector) ** 2).sum()))[0]
        return Alike(record=best.id, name=best.part_id or best.name or f"number {best.id}", among=len(vectors))

    nearest_good = await service.drawn(compared)
    return Response(status_code=204) if nearest_good is None else nearest_good


@reviews.get("/lines/{line}/reviews")
def queue(
    line: LineName, service: InService, draw: Draw | None = None, cursor: Cursor = None, limit: Count = 50
) -> Queue:
    """Parts that wait for a review, the oldest first: the band, and what was drawn from passes and rejects."""
    name, store = service.line(line).name, service.site.store
    items = store.to_review(name, draw=draw, after=cursor, count=limit)
    images = [record.id for record in items if service.site.pictures.has(record.image_sha256)]
    return Queue(items=items, images=images, waiting=store.waiting(name), next=next_cursor(items, limit))


@reviews.get("/lines/{line}/reviews/next", response_model=Record, responses={204: {"description": "None waits"}})
def next_review(line: LineName, service: InService) -> Any:
    """The oldest part that waits for a review."""
    record = service.site.store.next_to_review(service.line(line).name)
    return Response(status_code=204) if record is None else record


@reviews.get("/lines/{line}/reviews/evidence")
def proven(
    line: LineName,
    service: InService,
    since: Annotated[datetime | None, Query(description="begin of the day; UTC where no zone is named")] = None,
) -> Evidence:
    """What the reviews prove of the model and the limits in use."""
    place, store = service.line(line), service.site.store
    return evidence(
        store.labelled(place.name),
        store.entries(line=place.name, kind="review", count=MOST_LABELS),
        store.waiting(place.name),
        limits=None if place.model is None else place.model.decision.identity,
        model=None if place.model is None else place.model.sha256,
        since="" if since is None else in_utc(since),
    )


@reviews.get("/lines/{line}/recalibration")
def recalibration(line: LineName, service: InService) -> Recalibration:
    """What limits from the good parts of the random audit would be, and do; nothing is changed."""
    place, model, store = service.line(line), service.model(line), service.site.store
    parts = place.audited_parts()
    preview, why_not = None, ""
    try:
        preview = place.preview_recalibration(parts)
    except FlawsmithError as error:
        why_not = str(error)
    flaws = [
        record.deciding
        for record, entry in store.labelled(place.name)
        if entry.facts["label"] == "flawed" and record.model_sha256 == model.sha256 and record.deciding is not None
    ]
    caught = [
        sum(flaw > limit.limit for flaw in flaws) for limit in ((preview.before, preview.after) if preview else ())
    ]
    return Recalibration(
        parts=len(parts.deciding),
        days=len(set(parts.days)),
        fewest=FEW_GOOD_IMAGES,
        flawed=parts.flawed,
        unclear=parts.unclear,
        kept=parts.kept,
        later=parts.later,
        in_use=model.audited is not None and len(model.good_behind) >= len(parts.deciding),
        preview=preview,
        why_not=why_not,
        flaws=len(flaws),
        flaws_caught=caught,
    )


@reviews.post("/lines/{line}/recalibration")
def recalibrate(line: LineName, order: RecalibrationOrder, service: InService, caller: Engineer) -> LimitPreview:
    """Set the limits from the good parts of the random audit. Parts that are taken from now on are judged by them."""
    place = service.line(line)
    service.model(line)
    preview = place.recalibrate(who=caller.name, reason=order.reason, expected=order.expected)
    service.events.tell("limit", {"line": place.name, "who": caller.name, "limit": preview.after.model_dump()})
    return preview


@reviews.post("/lines/{line}/reviews/{number}", status_code=201)
def review(line: LineName, number: Number, order: ReviewOrder, service: InService, caller: Anyone) -> AuditFacts:
    """Say what a part is. It may be said again; the latest counts, and all stay."""
    record = service.record(line, number)
    entry = service.site.store.review(
        number,
        order.label,
        who=caller.name,
        line=record.line,
        comment=order.comment,
        role=order.role,
        blind=order.blind,
    )
    service.metrics.reviewed(record.line, order.label)
    _tell(service, record, order.label, caller.name)
    return AuditFacts(**vars(entry))


@reviews.delete("/lines/{line}/reviews/{number}")
def withdraw(line: LineName, number: Number, service: InService, caller: Anyone) -> AuditFacts:
    """Take back what was said of a part last: it waits again. What was said stays in the audit."""
    record = service.record(line, number)
    entry = service.site.store.review(number, None, who=caller.name, line=record.line)
    _tell(service, record, None, caller.name)
    return AuditFacts(**vars(entry))


def _tell(service: Service, record: Record, label: Label | None, who: str) -> None:
    service.events.tell("review", {"line": record.line, "record": record.id, "label": label, "who": who})


@reviews.get("/lines/{line}/reviews/{number}")
def of_part(line: LineName, number: Number, service: InService) -> list[AuditFacts]:
    """What was said of a part, oldest first."""
    service.record(line, number)
    return [AuditFacts(**vars(entry)) for entry in service.site.store.reviews_of(number)]
