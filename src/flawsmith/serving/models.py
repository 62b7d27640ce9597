"""The versions of a line's model over HTTP: brought, tried beside the line, made live, rolled back."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from flawsmith.data.splits import content_hash
from flawsmith.line.limits import LimitFacts
from flawsmith.line.station import Line
from flawsmith.line.versions import ShadowOrder, Version
from flawsmith.serving.requests import Problem, store_body
from flawsmith.serving.service import (
    FILE_BODY,
    PROBLEMS,
    Engineer,
    InService,
    LineName,
    Order,
    Reason,
    Service,
    allowed,
)

UPLOAD_SECONDS = 900.0
"""For a model file to arrive whole."""

models = APIRouter(prefix="/v1/lines/{line}/models", dependencies=[allowed("operator")], responses=PROBLEMS)
VersionId = Annotated[
    str, Path(pattern="^[0-9a-f]{12,64}$", description="SHA-256 of the file, or its first digits, 12 at least")
]


class ShadowSummary(BaseModel):
    """What a shadow run has come to."""

    run: int = Field(description="number of the entry in the audit with which it began")
    began: str
    who: str
    asked: int = Field(description="parts to be judged")
    parts: int = Field(description="parts that were judged so far")
    missed: int = Field(description="parts that it could not keep up with, since the service started")
    flips: dict[str, int] = Field(description="parts by change of verdict, such as pass -> reject")
    ended: str | None = Field(description="complete, stopped, activated, or what is wrong; null: it goes on")


class Flip(BaseModel):
    """A part of which the shadow said something else."""

    model_config = ConfigDict(from_attributes=True)

    record: int
    before: str = Field(description="verdict of the line")
    after: str = Field(description="verdict of the shadow; error: it could not be judged")
    times_limit: float | None = Field(description="the shadow's score as a multiple of its limit")


class ShadowFacts(ShadowSummary):
    """A shadow run."""

    flipped: list[Flip] = Field(description="the newest first; written once a second")
    milliseconds: dict[str, float] = Field(
        description="p50 and p95 of the time of a part; a shadow has one thread, and computes when nobody else does"
    )


class VersionFacts(BaseModel):
    """A version of a line's model."""

    number: int = Field(description="of the line's versions, from 1 in the order in which they came")
    sha256: str
    state: str = Field(description="live, shadow or kept")
    came: str = Field(description="UTC")
    who: str
    source: str = Field(description="upload or settings")
    size: int = Field(description="bytes")
    method: str
    preset: str
    product: str
    learned_from: int = Field(description="good images")
    self_tests: int = Field(
        description="images of the file on which it gives here the numbers of the machine that made it; files of older "
        "versions of Flawsmith hold none"
    )
    limit: LimitFacts = Field(description="with which it judges on this line")
    shadow: ShadowSummary | None = Field(description="its latest shadow run")


class ShadowRequest(Order):
    """How long a version is to judge beside the line."""

    parts: int = Field(ge=1, le=1_000_000)


class RollbackOrder(Order):
    """Back to the version before."""

    reason: Reason
    expected: str | None = Field(
        default=None, max_length=64, description="SHA-256 of the version that is to be replaced; another is a conflict"
    )


class ActivateOrder(RollbackOrder):
    """Another version is to judge."""


@models.post(
    "",
    status_code=201,
    openapi_extra=FILE_BODY,
    responses={200: {"model": VersionFacts, "description": "The line has this version already"}},
)
async def upload(
    line: LineName, service: InService, request: Request, response: Response, caller: Engineer
) -> VersionFacts:
    """Bring a model file. It is verified, opened and run in a process of its own first; nothing is live yet."""
    place = service.line(line)
    if service.uploading_model.locked():
        raise Problem(503, "another model is arriving", {"Retry-After": "10", "Connection": "close"})
    keep_free = service.settings.images.keep_free * 2**30
    async with service.uploading_model:
        with service.site.files.receiving() as path:
            size = await store_body(
                request,
                path,
                kind="model",
                most=int(service.settings.model_megabytes * 2**20),
                advice="see model_megabytes",
                seconds=UPLOAD_SECONDS,
                has_room=lambda length: service.site.pictures.free_bytes() - length >= keep_free,
            )
            if not size:
                raise Problem(400, "there is no model: send the .flaw file as the body")
            sha256 = await run_in_threadpool(content_hash, path)
            version, is_new = await run_in_threadpool(place.add_version, path, sha256, who=caller.name)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/lines/{place.name}/models/{sha256}/file"
    return await run_in_threadpool(_facts, place, version)


@models.get("")
def versions(line: LineName, service: InService) -> list[VersionFacts]:
    """The versions whose files are there, the newest first."""
    place = service.line(line)
    return [_facts(place, version) for version in reversed(list(place.versions.by_sha256.values()))]


@models.get("/{version}/file", response_class=FileResponse)
def file(line: LineName, version: VersionId, service: InService, caller: Engineer) -> FileResponse:
    """The model file."""
    known = _version(service.line(line), version)
    name = f"{line}-{known.number}.flaw"
    return FileResponse(service.site.files.path(known.sha256), media_type="application/octet-stream", filename=name)


@models.post("/{version}/shadow", status_code=202)
def begin_shadow(
    line: LineName, version: VersionId, order: ShadowRequest, service: InService, caller: Engineer
) -> ShadowFacts:
    """Let a version judge the next parts too, beside the line: it delays nothing, and its verdicts go nowhere."""
    place = service.line(line)
    known = _version(place, version)
    place.begin_shadow(known.sha256, parts=order.parts, who=caller.name)
    return _shadow(service, place, known, 0)


@models.get("/{version}/shadow")
def shadow(
    line: LineName, version: VersionId, service: InService, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> ShadowFacts:
    """What the latest shadow run of a version has come to, and the parts whose verdicts would change."""
    place = service.line(line)
    return _shadow(service, place, _version(place, version), limit)


@models.delete("/{version}/shadow", status_code=204, response_model=None)
def stop_shadow(line: LineName, version: VersionId, service: InService, caller: Engineer) -> None:
    """End a shadow run; what it showed stays."""
    place = service.line(line)
    place.stop_shadow(_version(place, version).sha256, who=caller.name)


@models.post("/{version}/activate")
def activate(
    line: LineName, version: VersionId, order: ActivateOrder, service: InService, caller: Engineer
) -> VersionFacts:
    """Let a version judge, with a reason. Parts that were taken before are judged by the former one to the end."""
    place = service.line(line)
    known = _version(place, version)
    place.activate(known.sha256, who=caller.name, reason=order.reason, expected=order.expected)
    return _facts(place, known)


@models.post("/rollback")
def rollback(line: LineName, order: RollbackOrder, service: InService, caller: Engineer) -> VersionFacts:
    """Let the version judge that was live before, with a reason; again, the one before that."""
    place = service.line(line)
    sha256 = place.roll_back(who=caller.name, reason=order.reason, expected=order.expected)
    return _facts(place, place.versions.by_sha256[sha256])


def _version(line: Line, digits: str) -> Version:
    """The version of a hash or its first digits.

    Raises:
        Problem: there is none, or several.
    """
    matching = [version for sha256, version in list(line.versions.by_sha256.items()) if sha256.startswith(digits)]
    if len(matching) != 1:
        raise Problem(404, f"line {line.name} has no version {digits}")
    return matching[0]


def _facts(line: Line, version: Version) -> VersionFacts:
    order = line.versions.runs.get(version.sha256)
    return VersionFacts(
        number=version.number,
        sha256=version.sha256,
        state=line.versions.state(version.sha256),
        came=version.at,
        who=version.who,
        source=version.source,
        size=version.size,
        **version.facts.model_dump(exclude={"decision"}),
        limit=LimitFacts.of(line.limits_of(version)),
        shadow=None if order is None else _summary(line, order),
    )


def _summary(line: Line, order: ShadowOrder) -> ShadowSummary:
    changes = Counter(line.shadow_changes(order))
    flips = {change: count for change, count in changes.items() if len(set(change.split(" -> "))) > 1}
    shadow = line.shadow
    return ShadowSummary(
        run=order.run,
        began=order.at,
        who=order.who,
        asked=order.parts,
        parts=changes.total(),
        missed=order.missed if shadow is None or shadow.run != order.run else shadow.missed,
        flips=flips,
        ended=order.ended or None,
    )


def _shadow(service: Service, line: Line, version: Version, count: int) -> ShadowFacts:
    order = line.versions.runs.get(version.sha256)
    if order is None:
        raise Problem(404, "this version has had no shadow run")
    store = service.site.store
    times = {name: store.shadow_milliseconds(order.run, share) for name, share in (("p50", 0.5), ("p95", 0.95))}
    return ShadowFacts(
        **_summary(line, order).model_dump(),
        flipped=[Flip.model_validate(flip) for flip in store.shadow_flips(order.run, count)],
        milliseconds={name: round(time, 3) for name, time in times.items() if time is not None},
    )
