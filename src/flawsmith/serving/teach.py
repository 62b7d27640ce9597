"""What a studio has beside a service: lines that are made, taught and trained over HTTP."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from starlette.concurrency import run_in_threadpool

from flawsmith.data.doctor import Finding
from flawsmith.line.capture import State
from flawsmith.line.looks import Look
from flawsmith.line.record import now
from flawsmith.line.settings import LineSettings
from flawsmith.line.teaching import (
    LEAST_TO_LEARN,
    MOST_ASKED,
    REGION,
    ROLES,
    USED,
    Addition,
    Group,
    Role,
    TaughtImage,
    Teaching,
)
from flawsmith.line.trainings import TO_INSTALL, Caught, Choice, Order, Sample, Training, facts_of, is_installed
from flawsmith.line.workspace import Import, ImportingError, Workspace
from flawsmith.models import METHODS
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import expanded, printable, without_controls
from flawsmith.serving.requests import Problem, store_body
from flawsmith.serving.service import FILE_BODY, Engineer, InService, LineName, Service, Width, allowed, image_kind
from flawsmith.serving.service import Order as Asked

LARGEST_ARCHIVE = 2**32
AUDIT_SHARE = 0.01
"""Of passes and rejects of a line that is made here: without an audit nobody knows how many flaws pass."""
_ARCHIVE_SECONDS = 2 * 3600.0
"""For an archive to arrive whole."""
_REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; font-src data:; "
    "frame-ancestors 'self'; sandbox allow-scripts"
)
"""A report is one file with all that it needs; it may not reach the studio that shows it."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ImageName = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of its content")]
TrainingNumber = Annotated[int, Path(ge=1, le=10**6)]


def _workspace(service: InService) -> Workspace:
    if service.workspace is None:
        raise Problem(404, "this service only judges: run `flawsmith studio` to teach lines")
    return service.workspace


InStudio = Annotated[Workspace, Depends(_workspace)]
studio_v1 = APIRouter(prefix="/v1", dependencies=[allowed("operator")])


class NewLine(Asked):
    """A line to be made."""

    line: str = Field(min_length=1, max_length=63, description="letters, digits, - and _")


class ImageFacts(BaseModel):
    """An image that a line is taught with."""

    id: str = Field(description="SHA-256 of its content")
    name: str
    role: Role
    group: str = Field(description="the day, folder or what the settings say; empty: none")
    look: Look | None = Field(description="null: nobody has looked yet")
    oddness: float | None = Field(description="how unlike the others: about 1 for a usual image; null: not known")
    unreadable: str = Field(default="", description="why it cannot be read")


class ImagePage(BaseModel):
    """Some images."""

    items: list[ImageFacts]
    next: int | None = Field(description="cursor of the next page; null: this is the last")
    total: int = Field(description="of all pages")


class FindingFacts(BaseModel):
    """What the doctor says."""

    severity: Literal["error", "warning", "note"]
    what: str
    fix: str = Field(description="what to do; empty: nothing")
    images: list[str] = Field(description="concerned, 100 at most")


class ImportFacts(BaseModel):
    """Images that come from a folder or an archive."""

    source: str
    total: int
    done: int
    added: int
    known: int
    flawed: int = Field(description="of those added, by the names of their folders, where good ones were asked for")
    refused: list[str]
    refused_count: int
    passed_over: int
    error: str
    is_over: bool

    @classmethod
    def of(cls, job: Import) -> ImportFacts:
        """What there is to say of one."""
        return cls(**{**vars(job), "source": printable(job.source), "refused": list(job.refused)})


class Drawing(Asked):
    """Where to look, in pixels of the image that it was drawn on."""

    width: int = Field(ge=1, le=10**6)
    height: int = Field(ge=1, le=10**6)
    include: list[list[tuple[float, float]]] = Field(default=[], max_length=100)
    exclude: list[list[tuple[float, float]]] = Field(default=[], max_length=100)
    zones: list[dict[str, JsonValue]] = Field(
        default=[], max_length=100, description="parts with limits of their own, as `--roi` of `flawsmith train`"
    )


class TeachFacts(BaseModel):
    """How far a line is taught."""

    line: str
    counts: dict[Role, int]
    grouping: str
    grouped_by: str
    groups: list[Group]
    advice: list[str]
    oddest: list[ImageFacts] = Field(description="least like the others, and not confirmed yet")
    findings: list[FindingFacts]
    checked: bool = Field(description="whether all images were looked at, ranked and checked as they are now")
    scale: float | None = Field(description="side of a pixel, millimetres")
    region: Drawing | None
    adding: ImportFacts | None = Field(description="the latest folder or archive that was added")
    camera: State | None = Field(description="what the line's camera does; null: it has none")
    folder: str = Field(description="where the images lie on the server")


class TeachChange(Asked):
    """Settings to change; those that are left out stay."""

    grouping: str | None = Field(default=None, max_length=200)
    scale: float | Literal["unknown"] | None = Field(default=None)
    region: Drawing | Literal["everywhere"] | None = None


class RoleOrder(Asked):
    """A role for images."""

    images: list[Sha256] = Field(min_length=1, max_length=900)
    role: Role


class Confirmation(Asked):
    """Odd images that a person calls good."""

    images: list[Sha256] = Field(min_length=1, max_length=900)


class Moved(BaseModel):
    """Images whose role has changed."""

    moved: list[str]


class FolderOrder(Asked):
    """A folder of the server's machine."""

    path: str = Field(min_length=1, max_length=1000)
    role: Role = "learn"


class AdditionFacts(BaseModel):
    """What became of an image that was sent."""

    name: str
    outcome: Literal["added", "known"] = Field(description="known: there is an image of this content already")
    id: str = Field(description="SHA-256 of its content")
    role: Role | None


class TrainingFacts(BaseModel):
    """A training."""

    model_config = ConfigDict(protected_namespaces=())

    number: int
    state: Literal["starting", "running", "done", "failed", "stopped", "interrupted"]
    error: str
    choice: Choice
    method: str
    images: dict[str, int]
    groups: int
    grouped_by: str
    who: str
    at: str
    words: str = Field(description="where it is, such as `step 2 of 6: learning what good parts look like`")
    share: float = Field(description="of all of it that is done")
    seconds: float = Field(description="so far")
    left: float | None = Field(description="seconds that are left; null: not known")
    stopping: bool = Field(description="whether it was asked to end, and has not yet")
    losses: list[float] = Field(description="by epoch")
    caught: list[Caught] = Field(
        description="as it learned: synthetic flaws above every good image, none of them learned from"
    )
    comparison: dict[str, float] = Field(description="share of forged flaws caught, by `model` and `baseline`")
    model_sha256: str = Field(description="of its model, once that is among the line's; empty: not yet")
    live: bool = Field(description="whether the line judges by it")


class UseOrder(Asked):
    """Why a model is to be used."""

    reason: str = Field(default="trained in the studio", min_length=3, max_length=1000, description="for the audit")


class TrainChoices(BaseModel):
    """What may be trained now."""

    installed: bool
    to_install: str
    methods: list[str]
    about_seconds: dict[str, float] = Field(description="by choice, on two cores")
    working: str | None = Field(description="the line that is being trained")
    good_images: int = Field(description="to learn from and to set the limit")
    least_images: int = Field(description="that a training takes")
    trainings: list[TrainingFacts]


# Lines


@studio_v1.post("/lines", status_code=201)
def new_line(order: NewLine, service: InService, workspace: InStudio, caller: Engineer) -> dict[str, str]:
    """Make a line, which is taught next."""
    service.add_line(order.line, LineSettings(audit_share=AUDIT_SHARE), who=caller.name)
    return {"line": order.line}


# Teaching


def _teaching(line: LineName, service: InService, workspace: InStudio) -> Teaching:
    return workspace.teaching(service.line(line).name)


InTeaching = Annotated[Teaching, Depends(_teaching)]


def _image_facts(teaching: Teaching, image: TaughtImage, groups: dict[str, str], odd: dict[str, float]) -> ImageFacts:
    return ImageFacts(
        id=image.sha256,
        name=printable(image.path.name),
        role=image.role,
        group=groups.get(image.sha256, ""),
        look=image.look,
        oddness=odd.get(image.sha256),
        unreadable=teaching.unreadable.get(image.sha256, ""),
    )


@studio_v1.get("/lines/{line}/teach")
def teach_facts(line: LineName, teaching: InTeaching, service: InService, workspace: InStudio) -> TeachFacts:
    """How far a line is taught, what stands out, and what that supports."""
    images, groups = teaching.images(), teaching.groups()
    settings, job, odd = teaching.settings, workspace.imports.get(line), teaching.oddness()
    by_path = {image.path: image.sha256 for image in images.values()}
    is_checked = teaching.is_checked and teaching.is_ranked
    camera, region, unread = service.line(line).camera, None, []
    try:
        drawing = teaching.region
        region = None if drawing is None else Drawing.model_validate(drawing)
    except (FlawsmithError, ValidationError) as error:  # a person may write that file too
        words = str(error) if isinstance(error, FlawsmithError) else f"{teaching.folder / REGION} cannot be used"
        unread = [Finding("error", "region-not-read", words, (), "draw the region anew, or correct the file")]
    done = next((each for each in workspace.trainings.of(line) if each.state == "done"), None)
    unlike = [] if done is None else done.least_like_others(MOST_ASKED)
    oddest = [images[sha256] for sha256 in teaching.oddest(unlike) if sha256 in images]
    return TeachFacts(
        line=line,
        counts={role: sum(image.role == role for image in images.values()) for role in ROLES},
        grouping=settings.grouping,
        grouped_by=groups.by,
        groups=teaching.group_table(groups),
        advice=teaching.advice(),
        oddest=[_image_facts(teaching, image, dict(groups.of), odd) for image in oddest],
        findings=[
            FindingFacts(
                severity=finding.severity,
                what=without_controls(finding.what.replace(f"{teaching.folder}/", "")),
                fix="" if finding.fix == "nothing" else without_controls(finding.fix),
                images=[by_path[path] for path in finding.where if path in by_path][:100],
            )
            for finding in (*unread, *(teaching.findings() if is_checked else ()))
        ],
        checked=is_checked,
        scale=settings.scale,
        region=region,
        adding=None if job is None else ImportFacts.of(job),
        camera=None if camera is None else camera.state,
        folder=printable(teaching.folder),
    )


@studio_v1.patch("/lines/{line}/teach")
def change_teaching(
    line: LineName, change: TeachChange, teaching: InTeaching, service: InService, caller: Engineer
) -> dict[str, JsonValue]:
    """Change grouping, scale, or where to look."""
    if change.grouping is not None:
        teaching.change(grouping=change.grouping)
    if change.scale is not None:
        teaching.change(scale=None if change.scale == "unknown" else change.scale)
    if change.region is not None:
        teaching.draw(None if change.region == "everywhere" else change.region.model_dump(mode="json"))
    facts = change.model_dump(mode="json", exclude_none=True)
    service.site.store.note("teach", who=caller.name, line=line, facts=facts)
    _tell(service, line)
    return facts


def _tell(service: Service, line: str) -> None:
    service.events.tell("teach", {"line": line})


@studio_v1.post("/lines/{line}/teach/images", status_code=201, openapi_extra=FILE_BODY)
async def add_image(
    line: LineName,
    request: Request,
    service: InService,
    workspace: InStudio,
    teaching: InTeaching,
    caller: Engineer,
    name: Annotated[str, Query(max_length=255, description="of the file")],
    folder: Annotated[str, Query(max_length=1000, description="in which it was")] = "",
    role: Role = "learn",
    modified: Annotated[float | None, Query(gt=0, lt=2**40, description="seconds since 1970")] = None,
) -> AdditionFacts:
    """Add an image: the file itself is the body. A second one of the same content changes nothing."""

    def added(body: bytes) -> AdditionFacts:
        if not body:
            raise Problem(400, "there is no image: send the file as the body")
        if not workspace.has_room(len(body)):
            raise Problem(503, "the disk is full: free some space")
        with workspace.incoming() as path:
            path.write_bytes(body)
            return _addition_facts(teaching.add(path, name=name, folder=folder, role=role, modified=modified))

    facts = await service.received(request, added, teaches=True)
    _tell(service, line)
    return facts


def _addition_facts(addition: Addition) -> AdditionFacts:
    """What there is to say of an addition.

    Raises:
        Problem: it was refused.
    """
    if addition.outcome == "refused":
        raise Problem(422, f"{without_controls(addition.name)}: {addition.why}")
    return AdditionFacts(name=addition.name, outcome=addition.outcome, id=addition.sha256, role=addition.role)


@studio_v1.post("/lines/{line}/teach/archives", status_code=202, openapi_extra=FILE_BODY)
async def add_archive(
    line: LineName,
    request: Request,
    service: InService,
    workspace: InStudio,
    teaching: InTeaching,
    caller: Engineer,
    name: Annotated[str, Query(max_length=255, description="of the file")] = "archive.zip",
    role: Role = "learn",
) -> ImportFacts:
    """Add the images of a zip archive, which is the body; folders in it become groups. It is worked on afterwards."""
    if workspace.is_importing(line):  # before gigabytes are sent
        raise Problem(409, "images are being added: wait until they are in", {"Connection": "close"})
    path = workspace.folder / "incoming" / f"{secrets.token_hex(12)}.zip"
    on_end = _noted(service, line, caller.name, workspace, name)
    try:
        await store_body(
            request,
            path,
            kind="archive",
            most=LARGEST_ARCHIVE,
            advice="send several",
            seconds=_ARCHIVE_SECONDS,
            has_room=workspace.has_room,
        )
        job = await run_in_threadpool(lambda: workspace.import_archive(line, path, role=role, on_end=on_end))
    except ImportingError as error:
        raise Problem(409, str(error)) from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    job.source = name
    _tell(service, line)
    return ImportFacts.of(job)


@studio_v1.post("/lines/{line}/teach/camera", status_code=201)
async def add_picture(
    line: LineName,
    service: InService,
    workspace: InStudio,
    teaching: InTeaching,
    caller: Engineer,
    role: Role = "learn",
) -> AdditionFacts:
    """Take a picture with the line's camera and add it; it is not judged, and has no record."""

    def added() -> AdditionFacts:
        content = service.take_picture(line)
        if not workspace.has_room(len(content)):
            raise Problem(503, "the disk is full: free some space")
        name = f"{now()[:19].replace(':', '-')}-{hashlib.sha256(content).hexdigest()[:6]}{image_kind(content)[1]}"
        with workspace.incoming() as path:
            path.write_bytes(content)
            return _addition_facts(teaching.add(path, name=name, role=role))

    facts = await service.taught(added)
    _tell(service, line)
    return facts


@studio_v1.post("/lines/{line}/teach/folders", status_code=202)
def add_folder(
    line: LineName, order: FolderOrder, service: InService, workspace: InStudio, teaching: InTeaching, caller: Engineer
) -> ImportFacts:
    """Copy the images of a folder of the server's machine. What happens to that folder later changes nothing."""
    folder = expanded(order.path)
    if not folder.is_absolute():
        raise Problem(422, "give the whole path of a folder on the machine of the studio")
    on_end = _noted(service, line, caller.name, workspace, folder.name)
    job = workspace.import_folder(line, folder, role=order.role, on_end=on_end)
    _tell(service, line)
    return ImportFacts.of(job)


def _noted(service: Service, line: str, who: str, workspace: Workspace, source: str) -> Callable[[], object]:
    """Notes in the audit what came of an import, which may be over before it is told where it comes from."""

    def note() -> None:
        job = workspace.imports[line]
        facts = {"from": printable(source), "added": job.added, "known": job.known, "refused": job.refused_count}
        service.site.store.note("teach", who=who, line=line, facts=facts)
        _tell(service, line)

    return note


@studio_v1.get("/lines/{line}/teach/images")
def images(
    line: LineName,
    teaching: InTeaching,
    image: Annotated[list[Sha256] | None, Query(max_length=100, description="these alone")] = None,
    role: Annotated[list[Role] | None, Query()] = None,
    group: Annotated[str | None, Query(max_length=300)] = None,
    sort: Literal["oddest", "name", "newest"] = "oddest",
    cursor: Annotated[int, Query(ge=0, le=10**7, description="`next` of the page before")] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> ImagePage:
    """Images, least like the others first unless asked otherwise."""
    groups, odd = dict(teaching.groups().of), teaching.oddness()
    chosen = [
        each
        for each in teaching.images().values()
        if (image is None or each.sha256 in image)
        and (role is None or each.role in role)
        and (group is None or groups.get(each.sha256, "") == group)
    ]
    orders: dict[str, Callable[[TaughtImage], Any]] = {
        "oddest": lambda each: (-odd.get(each.sha256, 0.0), each.path.name),
        "name": lambda each: (each.folder, each.path.name),
        "newest": lambda each: (-each.modified, each.path.name),
    }
    chosen.sort(key=orders[sort])
    shown = chosen[cursor : cursor + limit]
    return ImagePage(
        items=[_image_facts(teaching, each, groups, odd) for each in shown],
        next=cursor + limit if cursor + limit < len(chosen) else None,
        total=len(chosen),
    )


@studio_v1.get("/lines/{line}/teach/images/{image}", response_class=Response)
async def taught_image(
    line: LineName, image: ImageName, teaching: InTeaching, service: InService, width: Width = None
) -> Response:
    """An image as it was given, or scaled, as every browser shows it."""
    try:
        content = await run_in_threadpool(lambda: teaching.image(image).path.read_bytes())
    except (FlawsmithError, OSError):
        raise Problem(404, "there is no such image") from None
    return await service.shown(line, content, width, {"Cache-Control": "private, max-age=86400"})


@studio_v1.get("/lines/{line}/teach/images/{image}/thumbnail", response_class=Response)
def taught_thumbnail(line: LineName, image: ImageName, teaching: InTeaching) -> Response:
    """A small JPEG of an image."""
    try:
        content = teaching.thumbnail(image)
    except FlawsmithError:
        raise Problem(404, "there is no such image, or it cannot be read") from None
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}  # the address names the content
    return Response(content, media_type="image/jpeg", headers=headers)


@studio_v1.post("/lines/{line}/teach/roles")
def assign_roles(line: LineName, order: RoleOrder, service: InService, teaching: InTeaching, caller: Engineer) -> Moved:
    """Give images another role. None is ever deleted: those that are not good stay aside, and can come back."""
    moved = teaching.assign(order.images, order.role)
    if moved:
        facts = {"role": order.role, "images": moved}
        service.site.store.note("teach", who=caller.name, line=line, facts=facts)
        _tell(service, line)
    return Moved(moved=moved)


@studio_v1.post("/lines/{line}/teach/confirmed")
def confirm(
    line: LineName, order: Confirmation, service: InService, teaching: InTeaching, caller: Engineer
) -> Confirmation:
    """Say that odd images are good, so that nobody is asked of them again."""
    teaching.confirm(order.images)
    service.site.store.note("teach", who=caller.name, line=line, facts={"good": order.images})
    _tell(service, line)
    return order


# Training


@studio_v1.get("/lines/{line}/trainings")
def trainings(line: LineName, service: InService, workspace: InStudio) -> TrainChoices:
    """What may be trained, what is being trained, and what was; the latest first."""
    teaching = workspace.teaching(service.line(line).name)
    good = sum(image.role in USED for image in teaching.images().values())
    working = workspace.trainings.working()
    return TrainChoices(
        installed=is_installed(),
        to_install=TO_INSTALL,
        methods=METHODS,
        about_seconds={
            "quick": Order(choice="quick").about_seconds(good),
            "accurate": Order(choice="accurate").about_seconds(good),
            **{name: Order(choice="method", method=name).about_seconds(good) for name in METHODS},
        },
        working=None if working is None else working.asked.line,
        good_images=good,
        least_images=LEAST_TO_LEARN,
        trainings=[_training_facts(training, service) for training in workspace.trainings.of(line)[:50]],
    )


def _training_facts(training: Training, service: Service) -> TrainingFacts:
    line = service.site.lines.get(training.asked.line)
    model, sha256 = None if line is None else line.model, training.asked.model_sha256
    live = model is not None and bool(sha256) and model.sha256 == sha256
    return TrainingFacts(**facts_of(training), live=live)


def _training(line: LineName, number: TrainingNumber, service: InService, workspace: InStudio) -> Training:
    training = workspace.trainings.get(service.line(line).name, number)
    if training is None:
        raise Problem(404, f"line {line} has no training {number}")
    return training


InTraining = Annotated[Training, Depends(_training)]


@studio_v1.post("/lines/{line}/trainings", status_code=201)
def train(line: LineName, order: Order, service: InService, workspace: InStudio, caller: Engineer) -> TrainingFacts:
    """Begin a training on the images as they are now, in a process of its own that outlives browser and service."""
    teaching = workspace.teaching(service.line(line).name)
    training = workspace.trainings.start(line, teaching, order, who=caller.name)
    facts = {"number": training.asked.number, "order": order.model_dump(mode="json"), "images": training.asked.images}
    service.site.store.note("training", who=caller.name, line=line, facts=facts)
    service.events.tell("training", {"line": line, "number": training.asked.number})
    return _training_facts(training, service)


@studio_v1.get("/lines/{line}/trainings/{number}")
def training_facts(training: InTraining, service: InService) -> TrainingFacts:
    """A training."""
    return _training_facts(training, service)


@studio_v1.post("/lines/{line}/trainings/{number}/stop")
def stop_training(
    line: LineName, number: TrainingNumber, service: InService, workspace: InStudio, caller: Engineer
) -> TrainingFacts:
    """Ask a training to end; it can be continued. Asked again half a minute later, it is killed."""
    _training(line, number, service, workspace)
    training = workspace.trainings.stop(line, number)
    service.site.store.note("training", who=caller.name, line=line, facts={"number": number, "stopped": True})
    return _training_facts(training, service)


@studio_v1.post("/lines/{line}/trainings/{number}/resume")
def resume_training(
    line: LineName, number: TrainingNumber, service: InService, workspace: InStudio, caller: Engineer
) -> TrainingFacts:
    """Continue a training that was stopped or killed; it ends as it would have."""
    _training(line, number, service, workspace)
    training = workspace.trainings.resume(line, number)
    service.site.store.note("training", who=caller.name, line=line, facts={"number": number, "continued": True})
    service.events.tell("training", {"line": line, "number": number})
    return _training_facts(training, service)


@studio_v1.post("/lines/{line}/trainings/{number}/use")
def use_training(
    line: LineName, order: UseOrder, training: InTraining, service: InService, caller: Engineer
) -> TrainingFacts:
    """Let the line judge by its model from now on."""
    if training.state != "done":
        raise Problem(409, "this training has no model yet")
    place = service.line(line)
    sha256 = service.take_model(training)
    if place.model is None or place.model.sha256 != sha256:
        place.activate(sha256, who=caller.name, reason=order.reason)
    return _training_facts(training, service)


@studio_v1.get("/lines/{line}/trainings/{number}/samples")
def training_samples(training: InTraining) -> list[Sample]:
    """Forged flaws and good images with their maps: as its report shows them, or as the model sees them now."""
    return training.samples()


@studio_v1.get("/lines/{line}/trainings/{number}/log", response_class=Response)
def training_log(training: InTraining) -> Response:
    """The end of what it says."""
    return Response(training.log(), media_type="text/plain; charset=utf-8")


@studio_v1.get("/lines/{line}/trainings/{number}/report", response_class=Response)
def training_report(training: InTraining) -> Response:
    """Its report, once it is done."""
    try:
        content = training.report.read_bytes()
    except OSError:
        raise Problem(404, "there is no report yet") from None
    return Response(content, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": _REPORT_POLICY})
