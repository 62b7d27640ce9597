"""Images that somebody tries: judged as parts are, without a record, and stored if they are kept; maps for pages."""

from __future__ import annotations

import base64
import hashlib
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from flawsmith.line.record import MOST_REGIONS, Label, LabelRole
from flawsmith.runtime.decision import Verdict
from flawsmith.runtime.inspector import Inspection
from flawsmith.runtime.regions import Region
from flawsmith.serving.requests import Problem, image_and_fields
from flawsmith.serving.service import IMAGE_BODY, PROBLEMS, Anyone, InService, LineName, Number, Width, allowed

trial = APIRouter(prefix="/v1", dependencies=[allowed("operator")], responses=PROBLEMS)

MOST_CELLS = 384
"""Cells of a map's longer side: networks see no more."""
_LEVELS = 65535


class HeatMap(BaseModel):
    """An anomaly map over an image, in cells that each hold the largest value of their pixels."""

    width: int = Field(description="in cells")
    height: int
    cell: int = Field(description="pixels of a cell's side; the last column and row may be cut off by the image's edge")
    low: float = Field(description="value of level 0")
    high: float = Field(description="value of level 65535")
    levels: str = Field(description="row by row, 16 bits each, the least significant byte first, base64")

    @classmethod
    def of(cls, anomaly_map: NDArray[np.float32]) -> HeatMap:
        """A map in cells.

        Args:
            anomaly_map: (height, width) in pixels of the image.

        Example:
            >>> small = HeatMap.of(np.eye(1000, dtype=np.float32))
            >>> small.width, small.cell, small.high
            (334, 3, 1.0)
        """
        cell = max(1, -(-max(anomaly_map.shape) // MOST_CELLS))
        rows, columns = (-(-side // cell) for side in anomaly_map.shape)
        padding = (rows * cell - anomaly_map.shape[0], columns * cell - anomaly_map.shape[1])
        whole = np.pad(anomaly_map, ((0, padding[0]), (0, padding[1])), mode="edge")
        cells = whole.reshape(rows, cell, columns, cell).max(axis=(1, 3)).astype(np.float64)
        low, high = float(cells.min()), float(cells.max())
        levels = np.round((cells - low) / (high - low or 1.0) * _LEVELS).astype("<u2")
        text = base64.b64encode(levels.tobytes()).decode("ascii")
        return cls(width=columns, height=rows, cell=cell, low=low, high=high, levels=text)


class Trial(BaseModel):
    """What the line would say of an image."""

    model_config = ConfigDict(protected_namespaces=())

    verdict: Verdict
    score: float
    deciding: float = Field(description="the number that is compared with the limit")
    times_limit: float | None = Field(description="the score as a multiple of its limit: above 1, reject")
    limit: float
    review_limit: float | None
    map_limit: float = Field(description="above it the map belongs to a region")
    regions: list[Region]
    width: int = Field(description="of the image, pixels")
    height: int
    pixel_size: float | None = Field(description="side of a pixel in millimetres; null: unknown")
    heat: HeatMap
    milliseconds: float = Field(description="that the inspection took")
    kept: int | None = Field(default=None, description="number of the audit's entry, where the image was kept")


def deciding_of(seen: Inspection) -> float:
    """The number of an image that is compared with the limit."""
    return seen.decision.level(seen.map, seen.not_inspected) if seen.decision.by_regions else seen.score


@trial.post("/lines/{line}/try", openapi_extra=IMAGE_BODY)
async def try_image(
    line: LineName,
    service: InService,
    request: Request,
    caller: Anyone,
    label: Annotated[Label | None, Query(description="keep the image, and say what it is (engineer)")] = None,
    role: Annotated[LabelRole, Query(description="what a kept image may be used for")] = "test",
    name: Annotated[str, Query(max_length=300, description="of the file, for a kept image")] = "",
) -> Trial:
    """Judge an image without a record. Nothing is stored, unless a label says that it is to be kept."""
    if label is not None and caller.role != "engineer":
        raise Problem(403, "an engineer's token is needed to keep images")
    model = service.model(line)
    content_type = request.headers.get("content-type", "")

    def tried(body: bytes) -> Trial:
        image, _ = image_and_fields(content_type, body)
        seen = model.inspector.inspect(image)
        decision, deciding = seen.decision, deciding_of(seen)
        result = Trial(
            verdict=seen.verdict,
            score=seen.score,
            deciding=deciding,
            times_limit=seen.times_limit,
            limit=decision.deciding_limit,
            review_limit=decision.review_limit,
            map_limit=decision.map_limit,
            regions=seen.regions[:MOST_REGIONS],
            width=seen.map.shape[1],
            height=seen.map.shape[0],
            pixel_size=decision.pixel_size,
            heat=HeatMap.of(seen.map),
            milliseconds=sum(seen.timing.values()),
        )
        if label is None:
            return result
        digest = hashlib.sha256(image).hexdigest()
        service.site.pictures.pick(digest, image)
        facts = {"image_sha256": digest, "label": label, "role": role, "name": name, "deciding": deciding}
        facts |= {"verdict": seen.verdict, "model": model.sha256, "limits": decision.identity}
        entry = service.site.store.note("picked", who=caller.name, line=line, facts=facts)
        return result.model_copy(update={"kept": entry.id})

    return await service.received(request, tried)


@trial.get("/lines/{line}/picked/{number}/image", response_class=Response)
async def picked_image(line: LineName, number: Number, service: InService, width: Width = None) -> Response:
    """An image that somebody tried and kept, by the number of the audit's entry."""

    def read() -> bytes:
        entries = service.site.store.entries(line=service.line(line).name, kind="picked", before=number + 1, count=1)
        if not entries or entries[0].id != number:
            raise Problem(404, f"line {line} has no picked image {number}")
        content = service.site.pictures.read(entries[0].facts["image_sha256"])
        if content is None:
            raise Problem(410, "the image was removed")
        return content

    return await service.shown(line, await run_in_threadpool(read), width)
