"""What comes in and what stays: a trigger, and the one record in which it ends."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flawsmith import __version__
from flawsmith.runtime.inspector import Inspection
from flawsmith.runtime.regions import Region

Outcome = Literal["pass", "review", "reject", "error"]
"""How a trigger ends; anything but a pass is to be treated as a reject until someone has looked."""
ErrorKind = Literal["image", "model", "internal", "camera", "dropped"]
"""image: it cannot be read, now or later. model: the network could not be computed. internal: a defect of Flawsmith.
camera: it gave no picture, or the line was paused. dropped: pictures came faster than they could be judged."""
Source = Literal["http", "inference", "watch", "camera"]
"""Where triggers come from: ``/v1``, the Open Inference Protocol, a watched folder, the line's camera."""
Label = Literal["good", "flawed", "unclear"]
"""What a person says who has looked at the part."""
LabelRole = Literal["calibrate", "test"]
"""What a label may be used for: to set limits by, or to measure with alone. None is ever learned from."""
Draw = Literal["band", "passes", "rejects"]
"""How a part came before a reviewer: all between the limits, or drawn at random from the passes or the rejects."""
DRAWS: dict[Draw, Outcome] = {"band": "review", "passes": "pass", "rejects": "reject"}
"""The verdict of the parts by how they came before a reviewer."""
WITHDRAWN = "withdrawn"
"""Stands where a label would, in the audit, once a person has taken back what was said last."""

MOST_REGIONS = 100
"""Regions that a record lists, the strongest first."""
LONGEST_ID = 128
ID_PATTERN = r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$"
"""Part and lot ids: printable ASCII without spaces at the ends. They are text alone, never part of a path."""


def now() -> str:
    """The time in UTC, ISO 8601 with microseconds, so that text sorts as time does."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def drawn_number(sha256: str) -> float:
    """A number in [0, 1) that is as good as drawn, and always the same for a hash."""
    return int(sha256[:13], 16) / 16**13


@dataclass(frozen=True)
class WatchedFile:
    """A file of a watched folder, and what tells it from others.

    Attributes:
        path: as seen from the folder.
        sha256: of its content.
        inode: its number in the file system.
        mtime_ns: when it was last written.
    """

    path: str
    sha256: str
    inode: int
    mtime_ns: int


@dataclass(frozen=True)
class Trigger:
    """A part to be judged.

    Attributes:
        line: the line's name.
        image: the file's content.
        source: where it came from.
        part_id, lot_id: as the line calls part and lot; None: not told.
        file: where it came from a watched folder.
        provisional: the image may not be whole yet: if it cannot be read, there is no record, and it comes again.
        received: in UTC.
        clock: seconds of the monotonic clock at that moment.
    """

    line: str
    image: bytes = field(repr=False)
    source: Source = "http"
    part_id: str | None = None
    lot_id: str | None = None
    file: WatchedFile | None = None
    provisional: bool = False
    received: str = field(default_factory=now)
    clock: float = field(default_factory=time.monotonic)

    @cached_property
    def image_sha256(self) -> str:
        """SHA-256 of the file's content, hexadecimal."""
        return hashlib.sha256(self.image).hexdigest()


class Record(BaseModel):
    """What became of a trigger. It is written once, before the answer, and never changed.

    Example:
        >>> trigger = Trigger("bolt", b"no image", part_id="A-1")
        >>> record = Record.of_error(trigger, "image", "not an image; send PNG or JPEG")
        >>> record.verdict, record.part_id, record.id
        ('error', 'A-1', 0)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    id: int = Field(default=0, description="number of the record, rising by one; 0: not stored yet")
    line: str = Field(description="the line's name")
    station: str = Field(default="", description="site/area/line/station, as the settings name them")
    product: str = Field(default="", description="what the model learned to know")
    part_id: str | None = Field(default=None, description="as the line calls the part")
    lot_id: str | None = Field(default=None, description="as the line calls the lot")
    source: Source = Field(description="http, inference (Open Inference Protocol), watch or camera")
    name: str | None = Field(default=None, description="of a watched file, as seen from its folder")
    received: str = Field(description="when the trigger came, UTC")
    clock: float = Field(description="the same on the monotonic clock, seconds")
    image_sha256: str = Field(description="SHA-256 of the file's content; of nothing where there was no picture")
    verdict: Outcome = Field(description="pass, review, reject or error")
    score: float | None = Field(default=None, description="image score; None with an error")
    deciding: float | None = Field(default=None, description="the number that was compared with the limit")
    times_limit: float | None = Field(default=None, description="the score as a multiple of its limit: above 1, reject")
    limit: float | None = Field(default=None, description="the reject limit on the number that decides")
    review_limit: float | None = Field(default=None, description="the review limit; None: there was none")
    limits: str | None = Field(default=None, description="name of the limits in use, as `flawsmith info` gives it")
    regions: tuple[Region, ...] = Field(default=(), description="the flaws, the strongest first, at most 100")
    region_count: int = Field(default=0, description="number of all regions")
    error: str | None = Field(default=None, description="why there is no verdict, and what to do")
    error_kind: ErrorKind | None = Field(default=None, description="image, model, internal, camera or dropped")
    model_sha256: str | None = Field(default=None, description="SHA-256 of the model file")
    software: str = Field(default=__version__, description="version of Flawsmith")
    device: str | None = Field(default=None, description="where the network was computed; None with an error")
    timing: dict[str, float] = Field(default_factory=dict, description="milliseconds by step; wait: in the queue")
    statistics: dict[str, float] | None = Field(
        default=None,
        description="of the image as the network saw it: brightness, contrast, sharpness, saturation, each of 0..1",
    )
    inclusion: float | None = Field(
        default=None,
        description="probability with which such a part is put before a reviewer; None: this one was not drawn",
    )

    @classmethod
    def of_inspection(
        cls,
        trigger: Trigger,
        inspection: Inspection,
        *,
        station: str = "",
        product: str = "",
        model_sha256: str | None = None,
        wait: float = 0.0,
    ) -> Record:
        """The record of a part that was judged.

        Args:
            trigger: what came in.
            inspection: what the model said.
            station: site/area/line/station.
            product: what the model learned to know.
            model_sha256: of the model file.
            wait: milliseconds in the queue.
        """
        decision = inspection.decision
        deciding = inspection.score
        if decision.by_regions:
            deciding = decision.level(inspection.map, inspection.not_inspected)
        return cls(
            **_told(trigger),
            station=station,
            product=product,
            verdict=inspection.verdict,
            score=inspection.score,
            deciding=deciding,
            times_limit=inspection.times_limit,
            limit=decision.map_limit if decision.by_regions else decision.limit,
            review_limit=decision.review_limit,
            limits=decision.identity,
            regions=tuple(inspection.regions[:MOST_REGIONS]),
            region_count=len(inspection.regions),
            model_sha256=model_sha256,
            device=inspection.device,
            timing={"wait": round(wait, 3), **{step: round(ms, 3) for step, ms in inspection.timing.items()}},
        )

    @classmethod
    def of_error(
        cls,
        trigger: Trigger,
        kind: ErrorKind,
        error: str,
        *,
        station: str = "",
        product: str = "",
        model_sha256: str | None = None,
    ) -> Record:
        """The record of a part that could not be judged.

        Args:
            trigger: what came in.
            kind: whose fault it is.
            error: one line that says why, and what to do.
            station, product, model_sha256: as in `of_inspection`.
        """
        return cls(
            **_told(trigger),
            station=station,
            product=product,
            verdict="error",
            error=error,
            error_kind=kind,
            model_sha256=model_sha256,
        )


def _told(trigger: Trigger) -> dict[str, Any]:
    """What a record repeats of its trigger."""
    names = ("line", "part_id", "lot_id", "source", "received", "clock", "image_sha256")
    told = {name: getattr(trigger, name) for name in names}
    return {**told, "name": None if trigger.file is None else trigger.file.path}
