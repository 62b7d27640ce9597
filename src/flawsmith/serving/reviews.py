"""Parts that wait for a person, what was said of them, and what that proves."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from flawsmith.line.evidence import Evidence, evidence
from flawsmith.line.record import Draw, Label, LabelRole, Record
from flawsmith.line.store import MOST_LABELS
from flawsmith.serving.service import (
    PROBLEMS,
    Anyone,
    AuditFacts,
    Count,
    Cursor,
    InService,
    LineName,
    Number,
    Service,
    allowed,
    in_utc,
    next_cursor,
)

reviews = APIRouter(prefix="/v1", dependencies=[allowed("operator")], responses=PROBLEMS)


class ReviewOrder(BaseModel):
    """What a person says who has looked at the part."""

    model_config = ConfigDict(extra="forbid")

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
