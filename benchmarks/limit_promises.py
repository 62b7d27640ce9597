"""What limits promise against what they give, over random splits of real good images.

Each method learns from a part of the good images of a set and scores all others once. These scores are split at random
many times: one half sets a limit by Flawsmith's rule, the other half counts what the limit rejects. Where file names
hold groups (the day of a ball screw's picture, the series of a magnetic tile's), the learned images are those of some
groups, and the split is made twice: image by image, where the promise must hold for parts of the same groups, and by
whole groups, which is what a line meets tomorrow: there the worst case is that of a group that the limit does not know.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import ROOT, category_folder, data_table, page, parser, table
from numpy.typing import NDArray
from scipy.stats import betabinom, binom

import flawsmith
from flawsmith.calibration.groups import group_figures
from flawsmith.data.layouts import load
from flawsmith.data.splits import content_hash
from flawsmith.models import METHODS
from flawsmith.runtime.decision import CONFIDENCE, Decision, choose_limits, worst_rate, worst_rate_of_new_group

SETS = {
    "ball_screw": ("days", r"^01_(\d{6})"),
    "magnetic_tile": ("series", r"^(exp\d+)_"),
    "screw": ("", ""),
    "juice_bottle": ("", ""),
}
"""What groups the images of a set, and the file name's part that says which."""

SPLITS = 200
LEARNED = 150
RATES = (0.01, 0.05)
LEVELS = 40
"""Quantiles by which the law of a rate in a new group is known."""


@dataclass(frozen=True)
class Scores:
    """Scores of good images that a model did not learn from.

    Attributes:
        values: (n,) image scores.
        groups: (n,) their groups; all empty where there are none.
    """

    values: NDArray[np.float64]
    groups: NDArray[np.str_]


def scores_of(category: str, method: str, work: Path) -> Scores:
    """The scores of a method's model, computed at most once."""
    file = work / f"{category}-{method}.json"
    if not file.exists():
        learned, others = parts_of(category)
        with tempfile.TemporaryDirectory() as folder:
            parts = [*((path, "good", "train") for path in learned), *((path, "good", "validation") for path in others)]
            data, run = data_table(Path(folder) / f"{category}.csv", parts), Path(folder) / "run"
            flawsmith.train(data, out=run, method=method, baseline="none", group="none", quiet=True)
            held_out = json.loads((run / "run.json").read_text(encoding="utf-8"))["held_out"]
        work.mkdir(parents=True, exist_ok=True)
        named = [(Path(record["image"]).name, record["score"]) for record in held_out]
        file.write_text(json.dumps(sorted(named)), encoding="utf-8")
    named = json.loads(file.read_text(encoding="utf-8"))
    pattern = SETS[category][1]
    groups = [group_of(name, pattern) for name, _ in named]
    return Scores(np.array([score for _, score in named]), np.array(groups))


def group_of(name: str, pattern: str) -> str:
    match = re.search(pattern, name) if pattern else None
    return match[1] if match else ""


def parts_of(category: str) -> tuple[list[Path], list[Path]]:
    """The images to learn from, of a third of the groups where there are some, and all others."""
    dataset = load(category_folder(category))
    pattern = SETS[category][1]
    good = {content_hash(sample.image): sample.image for sample in dataset.samples if sample.label == "good"}
    images = [good[digest] for digest in sorted(good)]
    names = sorted({group_of(image.name, pattern) for image in images})
    if len(names) > 1:
        chosen = names[::3]
        learned = [image for image in images if group_of(image.name, pattern) in chosen]
        others = [image for image in images if group_of(image.name, pattern) not in chosen]
    else:
        learned, others = images[: len(images) // 3], images[len(images) // 3 :]
    return learned[:LEARNED], others


@dataclass(frozen=True)
class Outcome:
    """What limits of many splits promised and gave, as shares.

    Attributes:
        promised: rejected in the mean, as promised.
        worst: promised at worst.
        given: rejected in the mean.
        kept: splits in which no more were rejected than the promise allows of so many images in 95 of 100 cases.
        kept_alone: groups of the half that counts, each by itself, of which the same is true; NaN without groups.
        said: rejected of groups left out, in the mean, as the calibration images themselves say; NaN without groups.
    """

    promised: float
    worst: float
    given: float
    kept: float
    kept_alone: float
    said: float


def outcome(scores: Scores, rate: float, *, by_group: bool, splits: int, seed: int = 0) -> Outcome:
    """Promised and given over random halves."""
    rng = np.random.default_rng(seed)
    results = []
    for calibrating in halves(scores, rng, splits, by_group=by_group):
        values, rest = scores.values[calibrating], scores.values[~calibrating]
        figures = group_figures(values, list(scores.groups[calibrating]), alpha=rate, by="name")
        decision = choose_limits(values, values, alpha=rate, groups=figures if by_group else None)
        said = np.nan if figures is None or figures.mean is None else figures.mean
        rejected = rest > decision.limit
        kept = rejected.sum() <= most_allowed(decision, rest.size)
        alone = np.nan
        if by_group:
            others = scores.groups[~calibrating]
            parts = [rejected[others == name] for name in np.unique(others)]
            alone = np.mean([part.sum() <= most_allowed(decision, part.size) for part in parts])
        results.append(
            (
                decision.stated_false_reject_rate,
                decision.worst_false_reject_rate,
                rejected.mean(),
                kept,
                alone,
                said,
            )
        )
    return Outcome(*(float(column.mean()) for column in np.array(results).T))


def most_allowed(decision: Decision, images: int) -> int:
    """How many of so many images a limit rejects at most in 95 of 100 cases: a half is a finite sample.

    Of parts like those behind the limit the rate follows Beta(r, n + 1 - r), so that counts follow the beta-binomial
    law. Of a new group the law of the rate is known by its quantiles.
    """
    rank, n = round(decision.stated_false_reject_rate * (decision.n_good + 1)), decision.n_good
    groups = decision.groups
    if groups is None or groups.variance_share is None:
        return int(betabinom.ppf(CONFIDENCE, images, rank, n + 1 - rank))
    confidences = (np.arange(LEVELS) + 0.5) / LEVELS
    rates = [
        max(
            worst_rate(rank, n, float(confidence)),
            worst_rate_of_new_group(rank, n, groups.count, groups.variance_share, float(confidence)),
        )
        for confidence in confidences
    ]
    counts = np.arange(images + 1)
    return int(np.searchsorted(binom.cdf(counts[:, None], images, rates).mean(axis=1), CONFIDENCE))


def halves(scores: Scores, rng: np.random.Generator, splits: int, *, by_group: bool) -> Iterator[NDArray[np.bool_]]:
    """Random halves of the images, or of the groups."""
    names = np.unique(scores.groups)
    for _ in range(splits):
        if by_group:
            chosen = rng.permutation(names)[: len(names) // 2]
            yield np.isin(scores.groups, chosen)
        else:
            marks = np.zeros(scores.values.size, bool)
            marks[rng.permutation(scores.values.size)[: scores.values.size // 2]] = True
            yield marks


def parts_per_1000(share: float) -> str:
    return "–" if np.isnan(share) else f"{1000 * share:.0f}"


def rows_of(category: str, methods: Sequence[str], work: Path, splits: int) -> Iterator[tuple[object, ...]]:
    for method in methods:
        scores = scores_of(category, method, work)
        for rate in RATES:
            for by_group in (False, True) if SETS[category][0] else (False,):
                result = outcome(scores, rate, by_group=by_group, splits=splits)
                yield (
                    method,
                    f"whole {SETS[category][0]}" if by_group else "images",
                    *(parts_per_1000(value) for value in (result.promised, result.given, result.worst)),
                    f"{100 * result.kept:.0f} %",
                    "–" if np.isnan(result.kept_alone) else f"{100 * result.kept_alone:.0f} %",
                    parts_per_1000(result.said),
                )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--work", type=Path, default=ROOT / "build" / "limit_promises", help="folder of scores")
    arguments.add_argument("--sets", nargs="+", default=list(SETS))
    arguments.add_argument("--methods", nargs="+", default=list(METHODS))
    options = arguments.parse_args()
    splits = 20 if options.quick else SPLITS
    heads = (
        "method",
        "split by",
        "promised, mean",
        "given, mean",
        "promised at worst",
        "splits within the promise",
        "groups within it",
        "said of a group left out",
    )
    sections = [
        f"Good images alone, {splits} random splits, rates in parts of 1,000. A third of the groups (of the images, "
        f"where there are none), at most {LEARNED} images, was learned from by preset fast; the others were split in "
        "halves: one sets the limit, one counts. A split is within the promise where the count is no larger than the "
        "promise allows of so many images in 95 of 100 cases: by the beta-binomial law where images are split, by that "
        'of a group that the limit does not know where whole groups are. "Groups within it" takes each group that '
        "counts by itself. The last column is what the halves that set the limit say themselves of a group that they "
        "do not know. Four series can be halved in 6 ways, seven days in 35.",
    ]
    for category in options.sets:
        scores = scores_of(category, options.methods[0], options.work)
        groups = len(set(scores.groups)) if SETS[category][0] else 0
        counted = f", {groups} {SETS[category][0]}" if groups else ", no groups known"
        sections += [
            f"## {category}: {scores.values.size} images{counted}",
            table(heads, rows_of(category, options.methods, options.work, splits)),
        ]
    page("limit_promises", "What limits promise and what they give", sections, write=options.write)


if __name__ == "__main__":
    main()
