"""Limits of few images: held out against cross-fitted, by simulation on real sets.

Again and again a few good images are drawn. Held out: the model learns from some and the rest set the limit, as `train`
does by default. Cross-fitted: the model learns from all, and each image is scored by a model of the other folds, as
with `--cross-fit 5`. Both models then judge all other good images and the flawed ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import category_folder, page, parser, table
from numpy.typing import NDArray

from flawsmith.data.layouts import load
from flawsmith.data.samples import Sample
from flawsmith.data.splits import held_out_count
from flawsmith.models import PaDiM, PatchCore
from flawsmith.models.components.level_table import LevelTable, Rows
from flawsmith.runtime.decision import choose_limits
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode

MODELS = {"patchcore": PatchCore.from_preset, "padim": PaDiM.from_preset}
FOLDS = 5
RATE = 0.01
BATCH = 8
Model = Any
"""PatchCore or PaDiM."""
Draw = NDArray[np.intp]


@dataclass(frozen=True)
class Judged:
    """What a limit promised and gave, as shares.

    Attributes:
        promised, worst: rejected good parts, in the mean and at worst.
        given: good images rejected of those that nobody had seen.
        missed: flawed images not rejected.
    """

    promised: float
    worst: float
    given: float
    missed: float


def drawn_samples(category: str, most: int, rng: np.random.Generator) -> tuple[list[Sample], list[Sample]]:
    """Good and flawed images of a set in random order, so many of each at most."""
    samples = load(category_folder(category)).samples
    kinds = ([sample for sample in samples if sample.is_flawed == is_flawed] for is_flawed in (False, True))
    good, flawed = ([kind[row] for row in rng.permutation(len(kind))[:most]] for kind in kinds)
    return good, flawed


def features_of(model: Model, samples: Sequence[Sample]) -> LevelTable:
    """Level maps of images, in their order."""
    config, info = model.config, model.backbone.info
    geometry = Geometry(
        policy=config.policy, size=config.image_size, resize=config.resize, mean=info.mean, std=info.std
    )

    def batches() -> Iterator[list[torch.Tensor]]:
        for start in range(0, len(samples), BATCH):
            images = [geometry.apply(decode(sample.image)) for sample in samples[start : start + BATCH]]
            with torch.inference_mode():
                yield [level.clone() for level in model.backbone(torch.from_numpy(np.stack(images)))]

    return LevelTable(batches())


@torch.no_grad()
def scores_of(model: Model, features: LevelTable, rows: Draw) -> NDArray[np.float64]:
    parts = [
        model.from_levels(features.batch(rows[start : start + BATCH])).score for start in range(0, len(rows), BATCH)
    ]
    return torch.cat(parts).double().numpy()


def held_out(fitted: Callable[[Draw], Model], features: LevelTable, drawn: Draw) -> tuple[Model, NDArray[np.float64]]:
    count = held_out_count(len(drawn))
    model = fitted(drawn[count:])
    return model, scores_of(model, features, drawn[:count])


def cross_fitted(
    fitted: Callable[[Draw], Model], features: LevelTable, drawn: Draw
) -> tuple[Model, NDArray[np.float64]]:
    scores = np.concatenate(
        [scores_of(fitted(np.setdiff1d(drawn, fold)), features, fold) for fold in np.array_split(drawn, FOLDS)]
    )
    return fitted(drawn), scores


WAYS = {"held out": held_out, f"cross-fitted by {FOLDS}": cross_fitted}


def judged(
    model: Model, limit_scores: NDArray[np.float64], good: NDArray[np.float64], flawed: NDArray[np.float64]
) -> Judged:
    decision = choose_limits(limit_scores, limit_scores, alpha=RATE)
    return Judged(
        decision.stated_false_reject_rate,
        decision.worst_false_reject_rate,
        float((good > decision.limit).mean()),
        float((flawed <= decision.limit).mean()),
    )


def rows_of(category: str, method: str, sizes: Sequence[int], draws: int, most: int) -> Iterator[tuple[object, ...]]:
    rng = np.random.default_rng(0)
    good, flawed = drawn_samples(category, most, rng)
    fresh: Any = MODELS[method]("fast", backbone="efficientnet_lite0")
    features, odd = features_of(fresh, good), features_of(fresh, flawed)

    def fitted(rows: Draw) -> Model:
        model: Any = copy.deepcopy(fresh)
        model.fit_features(Rows(features, rows))
        return model

    for size in sizes:
        results: dict[str, list[Judged]] = {name: [] for name in WAYS}
        for _ in range(draws):
            order = rng.permutation(len(good))
            drawn, others = order[:size], order[size:]
            for name, way in WAYS.items():
                model, limit_scores = way(fitted, features, drawn)
                judged_good = scores_of(model, features, others)
                results[name].append(
                    judged(model, limit_scores, judged_good, scores_of(model, odd, np.arange(len(flawed))))
                )
        for name, outcomes in results.items():
            means = [np.mean([getattr(o, field) for o in outcomes]) for field in ("promised", "given", "worst")]
            kept = np.mean([outcome.given <= outcome.worst for outcome in outcomes])
            missed = np.mean([outcome.missed for outcome in outcomes])
            yield (
                method,
                size,
                name,
                *(f"{1000 * mean:.0f}" for mean in means),
                f"{100 * kept:.0f} %",
                f"{100 * missed:.0f} %",
            )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sets", nargs="+", default=["screw", "magnetic_tile", "ball_screw", "juice_bottle"])
    arguments.add_argument("--methods", nargs="+", default=list(MODELS))
    arguments.add_argument("--sizes", nargs="+", type=int, default=[20, 40])
    arguments.add_argument("--draws", type=int, default=20)
    arguments.add_argument("--most", type=int, default=200, help="good and flawed images taken of a set")
    options = arguments.parse_args()
    draws = 2 if options.quick else options.draws
    heads = (
        "method",
        "good images",
        "limit",
        "promised, mean",
        "given, mean",
        "promised at worst",
        "draws within the worst case",
        "flaws missed",
    )
    sections = [
        f"Rates in parts of 1,000 good images, over {draws} draws of so many good images; preset fast, "
        "efficientnet_lite0. Given: rejected among the good images that were not drawn."
    ]
    for category in options.sets:
        rows = [
            row for method in options.methods for row in rows_of(category, method, options.sizes, draws, options.most)
        ]
        sections += [f"## {category}", table(heads, rows)]
    page("cross_fitting", "Limits of few images", sections, write=options.write)


if __name__ == "__main__":
    main()
