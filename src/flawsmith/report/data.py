"""What a report is made of. The pipeline fills it; nothing here reads a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from flawsmith.metrics.ranking import Curve
from flawsmith.metrics.results import Evaluation

ScoreKind = Literal["good", "flawed", "held_out", "forged"]
ExampleKind = Literal["miss", "false_alarm", "found"]


@dataclass(frozen=True)
class FactGroup:
    """Facts under one heading, such as "Model" or "Data".

    Attributes:
        title: heading.
        rows: (name, value) in the order to print.
    """

    title: str
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class ScoreGroup:
    """Image scores that belong together in the histogram.

    Attributes:
        kind: good and flawed test images, held-out good images of the calibration, or flaws synthesized on them.
        scores: (images,) image scores.
    """

    kind: ScoreKind
    scores: npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Example:
    """One inspected image to show.

    Attributes:
        kind: ``miss`` (flawed, not rejected), ``false_alarm`` (good, rejected) or ``found`` (flawed,
            rejected).
        image: (height, width, 3) uint8 RGB.
        overlay: (height, width, 3) uint8 RGB, the image under its heat map.
        score: image score.
        verdict: ``pass``, ``review`` or ``reject``.
        defect: defect type, ``good`` for good images.
        name: the image's name.
        mask: (height, width) True where flawed, or None.
    """

    kind: ExampleKind
    image: npt.NDArray[np.uint8]
    overlay: npt.NDArray[np.uint8]
    score: float
    verdict: str
    defect: str
    name: str
    mask: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class RateCurves:
    """Curves to plot; None where the data cannot give one.

    Attributes:
        roc: over image scores.
        pro: mean region overlap against the false-positive rate over pixels.
        pixel_roc: over pixels.
        spro: mean saturated overlap of the defects against the false-positive rate over pixels.
    """

    roc: Curve | None = None
    pro: Curve | None = None
    pixel_roc: Curve | None = None
    spro: Curve | None = None


@dataclass(frozen=True, eq=False)
class LineChart:
    """Figures over training, as lines over one horizontal axis.

    Attributes:
        title: heading.
        caption: what is seen, in a sentence or two.
        x: (points,) horizontal places, ascending.
        lines: values by name, as many as ``x``; values that are not finite are passed over.
        y_label: name of the vertical axis, with its unit.
        x_label: name of the horizontal axis.
    """

    title: str
    caption: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    y_label: str
    x_label: str = "epoch"


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Samples of high-dimensional features, to show in two dimensions.

    Attributes:
        title: heading.
        caption: what is seen, in a sentence or two.
        groups: (points, width) features by name, one width for all; up to about 500 points each are of use, of more
            a part is drawn.
    """

    title: str
    caption: str
    groups: Mapping[str, npt.NDArray[np.floating]]


@dataclass(frozen=True, eq=False)
class ImageStrip:
    """Pictures in a row.

    Attributes:
        title: heading.
        caption: what is seen, in a sentence or two.
        pictures: label and picture, (height, width) grey or (height, width, 3) RGB, uint8.
        group: so many successive pictures belong together and stay side by side, such as 3 for image, mask and result.
    """

    title: str
    caption: str
    pictures: Sequence[tuple[str, npt.NDArray[np.uint8]]]
    group: int = 1


Diagnostic = LineChart | PointCloud | ImageStrip | FactGroup


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything one report shows.

    Attributes:
        title: heading, such as the category's name.
        subtitle: one line under it, such as method, preset and backbone.
        facts: groups of facts about model and data, in order.
        evaluation: figures on the test split; None where there is none (after ``train`` on good images
            alone).
        curves: curves of that evaluation.
        scores: image scores for the histogram.
        limit: reject limit on the image score.
        review_limit: review limit on the image score.
        limit_statement: what stands behind the limit and which false-reject rate it supports, in words.
        held_out: the held-out good images by their score: pictures and tables.
        examples: inspected images to show; any number, the report shows the worst of each kind.
        training: rows of ``metrics.jsonl``: ``step`` or ``epoch``, perhaps ``stage``, and numbers whose names
            hold ``loss``.
        diagnostics: what a method has to show of its training, in order; how it is drawn depends on its type alone.
        notes: remarks on data and training, in sentences.
        stamps: what must stand beside every figure of this model; those of the evaluation are shown without being here.
    """

    title: str
    subtitle: str = ""
    facts: Sequence[FactGroup] = ()
    evaluation: Evaluation | None = None
    curves: RateCurves = field(default_factory=RateCurves)
    scores: Sequence[ScoreGroup] = ()
    limit: float | None = None
    review_limit: float | None = None
    limit_statement: str = ""
    held_out: Sequence[ImageStrip | FactGroup] = ()
    examples: Sequence[Example] = ()
    training: Sequence[Mapping[str, object]] = ()
    diagnostics: Sequence[Diagnostic] = ()
    notes: Sequence[str] = ()
    stamps: Sequence[str] = ()
