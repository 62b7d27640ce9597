"""What a report is made of. The pipeline fills it; nothing here reads a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from flawsmith.metrics.ranking import Curve
from flawsmith.metrics.results import Evaluation
from flawsmith.models.diagnostics import FeatureCloud, LineChart, Pictures

ScoreKind = Literal["good", "flawed", "held_out", "learned", "forged"]
"""Good and flawed test images, good ones of the calibration, held out or learned from, and flaws drawn on them."""
ExampleKind = Literal["miss", "false_alarm", "found", "passed"]
AreaName = Literal["image_auroc", "aupro", "spro", "pixel_auroc"]


@dataclass(frozen=True)
class FactGroup:
    """Facts under one heading, such as "Model" or "Data".

    Attributes:
        rows: (name, value) in the order to print.
    """

    title: str
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """A picture as it stands in the page.

    Attributes:
        source: ``data:`` address of the file.
        caption: what the picture is.
        alt: text in the picture's place.
    """

    source: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Example:
    """One inspected image to show.

    Attributes:
        defect: defect type, ``good`` for good images.
        verdict: ``pass``, ``review`` or ``reject``.
        pictures: the image, and what the model sees in it.
    """

    name: str
    defect: str
    flawed: bool
    score: float
    verdict: str
    pictures: Sequence[Picture] = ()

    @property
    def kind(self) -> ExampleKind:
        """Flawed and not rejected, good and rejected, flawed and rejected, or good and not rejected."""
        if self.flawed:
            return "found" if self.verdict == "reject" else "miss"
        return "false_alarm" if self.verdict == "reject" else "passed"


@dataclass(frozen=True)
class TriedLimit:
    """What a limit does with the images of the report.

    Attributes:
        limit: on the image score.
        missed: what stands under "flaws missed", such as ``2 of 30``.
        rejected: what stands under "good parts rejected".
        sentence: both, and what else is known of that limit.
        in_use: whether it is the limit in use.
    """

    limit: float
    missed: str
    rejected: str
    sentence: str
    in_use: bool = False


@dataclass(frozen=True)
class LimitChoice:
    """Limits to choose from.

    Attributes:
        heads: of the table.
        rows: of the table: a few telling limits.
        sentences: the limits that a reader asks for first.
        steps: every limit that the page lets a reader try, ascending, the one in use among them.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    sentences: Sequence[str]
    steps: Sequence[TriedLimit]


Diagnostic = LineChart | FeatureCloud | Pictures | FactGroup


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything one report shows.

    Attributes:
        title: heading.
        subtitle: one line under it, such as method, preset and backbone.
        made: (name, value) of when and of what the report was made; none, so that the same data give the same bytes.
        promise: how many good parts the limit was said to reject; empty where nothing was said.
        next_steps: what to do about what the page shows, where there is no evaluation that says it.
        choice: other limits; None where they cannot be tried.
        no_choice: why they cannot, in a sentence or two, where a reader would look for them.
        by_regions: whether spots of the map decide: then all that is called a score here is the map value at which an
            image has a spot that counts.
        facts: groups of facts about model and data, in order.
        evaluation: figures on the test split; None where there is none (after ``train`` on good images
            alone).
        curves: of that evaluation, by the figure that is the area under each: image_auroc over image scores, aupro and
            spro the mean and the saturated overlap against the false-positive rate over pixels, pixel_auroc over
            pixels. None where the data cannot give one.
        scores: (images,) scores by kind, for the histogram.
        limit: reject limit on these scores.
        review_limit: review limit on these scores.
        limit_statement: what stands behind the limit and which false-reject rate it supports, in words.
        held_out: the held-out good images by their score: pictures and tables.
        examples: inspected images to show, any number.
        examples_are: what they are, such as "test images".
        left_out: images that were inspected and are not shown, for want of room.
        training: rows of ``metrics.jsonl``: ``step`` or ``epoch``, perhaps ``stage``, and numbers whose names
            hold ``loss``.
        diagnostics: what a method has to show of its training, in order; how it is drawn depends on its type alone.
        notes: remarks on data and training, in sentences.
        stamps: what must stand beside every figure of this model; those of the evaluation are shown without being here.
    """

    title: str
    subtitle: str = ""
    made: Sequence[tuple[str, str]] = ()
    promise: str = ""
    next_steps: Sequence[str] = ()
    choice: LimitChoice | None = None
    no_choice: str = ""
    by_regions: bool = False
    facts: Sequence[FactGroup] = ()
    evaluation: Evaluation | None = None
    curves: Mapping[AreaName, Curve | None] = field(default_factory=dict)
    scores: Mapping[ScoreKind, npt.NDArray[np.floating]] = field(default_factory=dict)
    limit: float | None = None
    review_limit: float | None = None
    limit_statement: str = ""
    held_out: Sequence[Pictures | FactGroup] = ()
    examples: Sequence[Example] = ()
    examples_are: str = "test images"
    left_out: int = 0
    training: Sequence[Mapping[str, object]] = ()
    diagnostics: Sequence[Diagnostic] = ()
    notes: Sequence[str] = ()
    stamps: Sequence[str] = ()
