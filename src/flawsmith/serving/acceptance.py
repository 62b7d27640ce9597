"""Acceptance studies over HTTP: planned, carried out part by part, and signed."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from flawsmith.line.acceptance import KIND, PLACED, Placement, Plan, Result, Study, Truth, studies
from flawsmith.line.model import LoadedModel
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.serving.requests import Problem, image_and_fields
from flawsmith.serving.service import (
    IMAGE_BODY,
    PROBLEMS,
    Anyone,
    Engineer,
    InService,
    LineName,
    Number,
    Order,
    Service,
    allowed,
)
from flawsmith.serving.trial import deciding_of

acceptance = APIRouter(prefix="/v1/lines/{line}/acceptance", dependencies=[allowed("operator")], responses=PROBLEMS)
PartName = Annotated[str, Query(min_length=1, max_length=100, description="of the part")]
PartTruth = Annotated[Truth, Query(description="what it is")]


class StudyFacts(BaseModel):
    """A study as it is now."""

    number: int
    plan: Plan
    model_sha256: str
    limits: str = Field(description="name of the limits that judge")
    in_use: bool = Field(description="whether the line judges by this model and these limits now")
    who: str
    at: str
    signed: str = Field(description="by whom it was ended; empty: it goes on")
    ended: str = Field(description="when; empty: it goes on")
    withdrawn: int = Field(description="placements that were taken back")
    placements: list[Placement]
    result: Result

    model_config = ConfigDict(protected_namespaces=())


class Signature(Order):
    """Who ends a study."""

    signed: str = Field(min_length=2, max_length=200, description="name of who answers for it")


def _facts(study: Study, model: LoadedModel | None) -> StudyFacts:
    return StudyFacts(
        number=study.number,
        plan=study.plan,
        model_sha256=study.model,
        limits=study.limits,
        in_use=model is not None and _judges(study, model),
        who=study.who,
        at=study.at,
        signed=study.signed,
        ended=study.ended,
        withdrawn=study.withdrawn,
        placements=list(study.placements),
        result=study.result,
    )


def _judges(study: Study, model: LoadedModel) -> bool:
    return (study.model, study.limits) == (model.sha256, model.decision.identity)


def _study(service: Service, line: str, number: int) -> Study:
    known = {study.number: study for study in studies(service.site.store, service.line(line).name)}
    if number not in known:
        raise Problem(404, f"line {line} has no acceptance study {number}")
    return known[number]


def _note(service: Service, line: str, who: str, number: int, facts: Mapping[str, Any], kind: str = KIND) -> int:
    entry = service.site.store.note(kind, who=who, line=line, facts={"study": number, **facts})
    service.events.tell("accept", {"line": line, "study": number})
    return entry.id


@acceptance.get("")
def list_studies(line: LineName, service: InService) -> list[StudyFacts]:
    """The studies of a line, the latest first."""
    place = service.line(line)
    return [_facts(study, place.model) for study in studies(service.site.store, place.name)]


@acceptance.post("", status_code=201)
def begin(line: LineName, plan: Plan, service: InService, caller: Engineer) -> StudyFacts:
    """Begin a study of the model and the limits in use."""
    place, model = service.line(line), service.model(line)
    decision = model.decision
    facts: dict[str, Any] = {"event": "begun", "plan": plan.model_dump(), "model": model.sha256}
    facts |= {"limits": decision.identity, "limit": decision.deciding_limit}
    with service.accepting:  # two who begin at once
        if any(not study.signed for study in studies(service.site.store, place.name)):
            raise Problem(409, "a study goes on: end it first")
        entry = service.site.store.note(KIND, who=caller.name, line=place.name, facts=facts)
    service.events.tell("accept", {"line": place.name, "study": entry.id})
    return _facts(_study(service, place.name, entry.id), model)


@acceptance.post("/{number}/placements", status_code=201, openapi_extra=IMAGE_BODY)
async def place_image(
    line: LineName,
    number: Number,
    part: PartName,
    truth: PartTruth,
    request: Request,
    service: InService,
    caller: Anyone,
) -> Placement:
    """Judge the image of a part that was placed. It has no record."""
    content_type = request.headers.get("content-type", "")

    def placed(body: bytes) -> Placement:
        image, _ = image_and_fields(content_type, body)
        return _placed(service, line, number, part, truth, image, caller.name)

    return await service.received(request, placed)


@acceptance.post("/{number}/camera", status_code=201)
async def place_before_camera(
    line: LineName, number: Number, part: PartName, truth: PartTruth, service: InService, caller: Anyone
) -> Placement:
    """Take a picture of the part that lies before the line's camera, and judge it."""
    return await service.drawn(
        lambda: _placed(service, line, number, part, truth, service.take_picture(line), caller.name)
    )


def _placed(service: Service, line: str, number: int, part: str, truth: Truth, image: bytes, who: str) -> Placement:
    model = service.model(line)
    with service.accepting:
        study = _study(service, line, number)
        if not _judges(study, model):
            raise Problem(
                409, "the line has another model or other limits than when the study began: begin another one"
            )
        digest = hashlib.sha256(image).hexdigest()
        _refuse_known(model, digest)
        study.refuse(part, truth, digest)
        seen = model.inspector.inspect(image)
        facts = {"part": part, "truth": truth, "verdict": seen.verdict, "deciding": deciding_of(seen)}
        facts |= {"image_sha256": digest}
        entry = _note(service, line, who, number, facts, PLACED)
        return Placement.model_validate({"id": entry, **facts})


def _refuse_known(model: LoadedModel, digest: str) -> None:
    """What a model learned from, or set its limit by, says nothing of other parts."""
    for name, words in (("learned", "learned from this picture"), ("held_out", "has its limit by this picture")):
        table = model.bundle.calibration.get(f"{name}_sha256")
        if table is not None and any(row.tobytes().hex() == digest for row in table):
            raise FlawsmithError(f"the model {words}: place the part anew and take another")


@acceptance.delete("/{number}/placements/{placement}")
def withdraw(line: LineName, number: Number, placement: Number, service: InService, caller: Anyone) -> StudyFacts:
    """Take a placement back, as another part lay there. That it was there stays in the audit."""
    place = service.line(line)
    with service.accepting:
        study = _study(service, place.name, number)
        if study.signed or all(each.id != placement for each in study.placements):
            raise Problem(409, "the study is over, or has no such placement")
        _note(service, place.name, caller.name, number, {"event": "withdrawn", "placement": placement})
    return _facts(_study(service, place.name, number), place.model)


@acceptance.post("/{number}/end")
def end(line: LineName, number: Number, order: Signature, service: InService, caller: Engineer) -> StudyFacts:
    """End a study and sign it; its figures stand in the audit from then on."""
    place = service.line(line)
    with service.accepting:
        study = _study(service, place.name, number)
        if study.signed:
            raise Problem(409, "the study is over already")
        facts = {"event": "ended", "signed": order.signed, "result": study.result.model_dump(mode="json")}
        _note(service, place.name, caller.name, number, facts)
    return _facts(_study(service, place.name, number), place.model)


@acceptance.get("/{number}/table", response_class=Response)
def table(line: LineName, number: Number, service: InService) -> Response:
    """All placements as CSV."""
    study = _study(service, line, number)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["part", "truth", "verdict", "deciding", "times_limit", "right", "image_sha256"])
    for each in study.placements:
        times = "" if study.limit <= 0 else f"{each.deciding / study.limit:.4f}"
        # A name that begins as a formula does would be one in a spreadsheet.
        name = f"'{each.part}" if each.part[0] in "=+-@\t\r" else each.part
        right = "yes" if each.is_right else "no"
        writer.writerow([name, each.truth, each.verdict, f"{each.deciding:.6g}", times, right, each.image_sha256])
    headers = {"Content-Disposition": f'attachment; filename="acceptance-{number}.csv"'}
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)
