"""How well a region stands for its flaw: area and overlap with the annotated mask, before and after a cut to the peak.

Before, a region was all that lies above the map's limit. Now it is what reaches three quarters of the way from the
map's median to the region's peak. Counted are flawed test images that are rejected and annotated; models are those of
the work folder (``<category>-<method>/model.flaw``), and are trained where there is none.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from common import category_folder, milliseconds, page, paired, parser, table
from numpy.typing import NDArray

import flawsmith
from flawsmith.data.layouts import load
from flawsmith.data.samples import Sample
from flawsmith.pipeline.demo import run_demo
from flawsmith.pipeline.masks import read_channels
from flawsmith.runtime.inspector import Inspector, ScoreAndMap
from flawsmith.runtime.regions import FLAW_SHARE, Region, find_regions

DEMO = "bracket"
RUNS = (
    (DEMO, "fusion"),
    ("screw", "fusion"),
    ("screw", "patchcore"),
    ("screw", "aand"),
    ("magnetic_tile", "aand"),
    ("magnetic_tile", "patchcore"),
    ("ball_screw", "fusion"),
    ("juice_bottle", "fusion"),
)
BEFORE, NOW = "above the limit", "cut to the peak"


@dataclass(frozen=True)
class Overlap:
    """Of the regions of one image with its mask.

    Attributes:
        ratio: area of the regions by that of the mask.
        iou: intersection over union.
    """

    ratio: float
    iou: float


def model_of(work: Path, category: str, method: str) -> tuple[Path, Path]:
    """Model file and data folder; trains what is missing."""
    if category == DEMO:
        folder = work / "demo"
        if not (folder / "run" / "model.flaw").is_file():
            run_demo(folder, quiet=True)
        return folder / "run" / "model.flaw", folder / "parts" / DEMO
    run, data = work / f"{category}-{method}", category_folder(category)
    if not (run / "model.flaw").is_file():
        flawsmith.train(data, method=method, out=run, quiet=True)
    return run / "model.flaw", data


def drawn(samples: Sequence[Sample], number: int) -> list[Sample]:
    """Evenly spaced ones, so that every type of defect is among them."""
    places = np.unique(np.linspace(0, len(samples) - 1, min(number, len(samples))).round().astype(int))
    return [samples[place] for place in places]


def union(
    regions: Sequence[Region], anomaly_map: NDArray[np.float32], limit: float, *, share: float
) -> NDArray[np.bool_]:
    """(height, width), True in any of the regions: each one's spot above the limit, from its level on."""
    from scipy import ndimage

    labels, _ = ndimage.label(anomaly_map > limit, np.ones((3, 3)))
    inside = np.zeros(anomaly_map.shape, bool)
    for region in regions:
        x, y = region.peak_position
        spot = labels == labels[y, x]
        inside |= spot & (anomaly_map >= region.level) if share else spot
    return inside


def overlap(measured: ScoreAndMap, mask: NDArray[np.bool_], limit: float, *, share: float) -> Overlap | None:
    """None where no region is found."""
    regions = find_regions(measured.map, limit, share=share)
    if not regions:
        return None
    inside = union(regions, measured.map, limit, share=share)
    return Overlap(inside.sum() / mask.sum(), (inside & mask).sum() / (inside | mask).sum())


def measure(model: Path, data: Path, number: int) -> tuple[list[list[str]], list[str]]:
    """Rows of the table of overlaps, and the row of the table of agreement."""
    inspector, dataset = Inspector.load(model), load(data)
    limits = inspector.spec.decision
    flawed = drawn([sample for sample in dataset.test if sample.is_flawed], number)
    good = drawn([sample for sample in dataset.test if not sample.is_flawed], number)
    overlaps: dict[str, list[Overlap]] = {BEFORE: [], NOW: []}
    rejects = mute_rejects = passes = loud_passes = 0
    timed: list[NDArray[np.float32]] = []
    for sample in (*flawed, *good):
        measured = inspector.measure(sample.image)
        rejected, exceeds = measured.score > limits.limit, measured.map.max() > limits.map_limit
        rejects, mute_rejects = rejects + rejected, mute_rejects + (rejected and not exceeds)
        passes, loud_passes = passes + (not rejected), loud_passes + (not rejected and exceeds)
        if not (sample.is_flawed and rejected and exceeds):
            continue
        timed.append(measured.map)
        mask, _ = read_channels(sample, lambda path, image: None)
        if mask is None or mask.shape != measured.map.shape or not mask.any():
            continue
        for name, share in ((BEFORE, 0.0), (NOW, FLAW_SHARE)):
            if (result := overlap(measured, mask, limits.map_limit, share=share)) is not None:
                overlaps[name].append(result)
    rows = [_row(name, results) for name, results in overlaps.items() if results]
    pairs = [
        paired(
            partial(find_regions, each, limits.map_limit),
            partial(find_regions, each, limits.map_limit, share=FLAW_SHARE),
            pairs=9,
        )
        for each in timed[:12]
    ]
    cost = [milliseconds(statistics.median(each.medians[place] for each in pairs)) for place in (0, 1)]
    return rows, [f"{mute_rejects} of {rejects}", f"{loud_passes} of {passes}", *cost]


def _row(name: str, results: Sequence[Overlap]) -> list[str]:
    ratios, ious = [result.ratio for result in results], [result.iou for result in results]
    spread = f"{np.quantile(ratios, 0.1):.2f} to {np.quantile(ratios, 0.9):.2f}"
    return [name, str(len(results)), f"{np.median(ratios):.2f}", spread, f"{np.mean(ious):.2f}"]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--work", type=Path, default=Path("runs/regions"), help="folder of the trained models")
    made.add_argument("--images", type=int, default=60, help="flawed images of a set, and as many good ones")
    arguments = made.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    overlaps, agreement = [], []
    for category, method in RUNS[:1] if arguments.quick else RUNS:
        rows, agrees = measure(*model_of(arguments.work, category, method), 6 if arguments.quick else arguments.images)
        overlaps += [[f"{category}, {method}", *row] for row in rows]
        agreement.append([f"{category}, {method}", *agrees])
    sections = [
        "Areas of regions by those of the masks, and intersection over union, of annotated flawed images that are "
        "rejected.",
        table(["set, method", "regions", "images", "median area ratio", "10 to 90 %", "mean IoU"], overlaps),
        "Where score and map disagree, a reject now shows the spot around the map's peak, and a pass shows none. "
        "Milliseconds are those of finding the regions of one rejected image, beside which a pass takes none.",
        table(
            ["set, method", "rejects below the map's limit", "passes above it", f"{BEFORE}, ms", f"{NOW}, ms"],
            agreement,
        ),
    ]
    page("regions", "Regions beside masks", sections, write=arguments.write)


if __name__ == "__main__":
    main()
