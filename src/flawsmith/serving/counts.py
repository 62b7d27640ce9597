"""Figures of a line over time, and what the service runs with."""

from __future__ import annotations

import platform
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from flawsmith import __version__
from flawsmith.line.record import Draw, Outcome
from flawsmith.serving.service import PROBLEMS, Anyone, InService, LineName, allowed, in_utc

counts = APIRouter(prefix="/v1", dependencies=[allowed("operator")], responses=PROBLEMS)
_TIMED = 200
_LONGEST = timedelta(days=31)
_LIBRARIES = ("numpy", "pillow", "onnxruntime", "pydantic", "fastapi", "uvicorn")


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


@counts.get("/lines/{line}/counts")
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


@counts.get("/settings")
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
