"""Flawed parts among the good images: what they cost, and what leaving out the oddest images saves.

Flawed images of one half of a set are mixed into the images to learn from and into those that set the limit, and the
model is measured on the other half. It is PatchCore, whose memory takes in whatever it is shown. With trimming, the
images least like the others (`pipeline.oddness`) are not learned from, and the highest scores set no limit, as with
`train --trim`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from common import category_folder, page, parser, table
from cross_fitting import MODELS, Draw, Model, features_of, scores_of
from numpy.typing import NDArray

from flawsmith.data.layouts import load
from flawsmith.data.splits import half
from flawsmith.metrics import auroc
from flawsmith.models.components.level_table import LevelTable
from flawsmith.pipeline.oddness import Rows, unlikeness
from flawsmith.runtime.decision import choose_limits

METHOD = "patchcore"
LEARNED, LIMIT = 80, 40
SHARES = (0.0, 0.05, 0.1)
TRIMS = (0.0, 0.05, 0.1)
RATE = 0.05


def drawn(
    rng: np.random.Generator, good: Draw, flawed: Draw, count: int, share: float
) -> tuple[Draw, NDArray[np.bool_]]:
    """Rows of so many images in random order, a share of them flawed, and which are."""
    number = round(share * count)
    rows = np.concatenate([good[: count - number], flawed[:number]])
    is_flawed = np.arange(count) >= count - number
    order = rng.permutation(count)
    return rows[order], is_flawed[order]


def rows_of(category: str, draws: int, most: int) -> Iterator[tuple[object, ...]]:
    dataset, rng = load(category_folder(category)), np.random.default_rng(0)
    good = [sample for sample in dataset.samples if sample.label == "good"]
    good = [good[row] for row in rng.permutation(len(good))[:most]]
    flawed = [sample for sample in dataset.samples if sample.is_flawed]
    flawed = [flawed[row] for row in rng.permutation(len(flawed))[:most]]
    model: Model = MODELS[METHOD]("fast", backbone="efficientnet_lite0")
    features = features_of(model, [*good, *flawed])
    of_good, of_flawed = np.arange(len(good)), len(good) + np.arange(len(flawed))
    mixed_in = np.array([half(sample) == "A" for sample in flawed])
    outcomes: dict[tuple[float, float], list[tuple[float, ...]]] = {}
    for _ in range(draws):
        clean, odd = rng.permutation(of_good), rng.permutation(of_flawed[mixed_in])
        tested = np.concatenate([clean[LEARNED + LIMIT :], of_flawed[~mixed_in]])
        is_flawed = np.arange(len(tested)) >= len(clean) - LEARNED - LIMIT
        for share in SHARES:
            learned, wrong = drawn(rng, clean[:LEARNED], odd, LEARNED, share)
            limit, _ = drawn(rng, clean[LEARNED : LEARNED + LIMIT], odd[round(max(SHARES) * LEARNED) :], LIMIT, share)
            unlike = unlikeness(model, Rows(features, learned), [""] * LEARNED)
            for trim in TRIMS:
                kept = np.argsort(unlike, kind="stable")[: LEARNED - math.ceil(trim * LEARNED)]
                result = measured(model, features, learned[kept], limit, trim, tested, is_flawed)
                left = wrong[kept].sum() / max(1, wrong.sum())
                outcomes.setdefault((share, trim), []).append((*result, float(left)))
    for (share, trim), results in outcomes.items():
        area, rejected, missed, left = np.mean(results, axis=0)
        yield (
            f"{share:.0%}",
            f"{trim:.0%}",
            f"{area:.3f}",
            f"{1000 * rejected:.0f}",
            f"{100 * missed:.0f} %",
            "–" if share == 0 else f"{100 * left:.0f} %",
        )


def measured(
    model: Model,
    features: LevelTable,
    learned: Draw,
    limit: Draw,
    trim: float,
    tested: Draw,
    is_flawed: NDArray[np.bool_],
) -> tuple[float, float, float]:
    """Image AUROC, share of good images rejected and share of flawed ones missed."""
    model.fit_features(Rows(features, learned))
    held_out = np.sort(scores_of(model, features, limit))[: len(limit) - math.ceil(trim * len(limit))]
    scores = scores_of(model, features, tested)
    above = scores > choose_limits(held_out, held_out, alpha=RATE).limit
    area = auroc(scores, is_flawed)
    assert area is not None
    return area, float(above[~is_flawed].mean()), float(1 - above[is_flawed].mean())


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sets", nargs="+", default=["magnetic_tile", "screw", "ball_screw", "juice_bottle"])
    arguments.add_argument("--draws", type=int, default=5)
    arguments.add_argument("--most", type=int, default=300, help="good and flawed images taken of a set")
    options = arguments.parse_args()
    draws = 1 if options.quick else options.draws
    heads = ("flawed among the good", "trimmed", "image AUROC", "good rejected of 1,000", "flaws missed", "flaws kept")
    sections = [
        f"PatchCore, preset fast; {LEARNED} images to learn from, {LIMIT} for a limit of {1000 * RATE:.0f} of 1,000; "
        f"means over {draws} draws. The last column is the share of the flawed images that were learned from in "
        "spite of trimming.",
    ]
    for category in options.sets:
        sections += [f"## {category}", table(heads, rows_of(category, draws, options.most))]
    page("contamination", "Flawed parts among the good images", sections, write=options.write)


if __name__ == "__main__":
    main()
