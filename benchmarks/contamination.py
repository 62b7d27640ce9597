"""Flawed parts among the good images: what they cost, and what leaving out images or patches saves.

Flawed images of one half of a set are mixed into the images to learn from and into those that set the limit, and the
model is measured on the other half. It is PatchCore, whose memory takes in whatever it is shown. Images are left out as
`train --trim` does, by `unlikeness`. Patches are left out before the coreset, as in SoftPatch (Jiang et al.,
NeurIPS 2022), by how unlike those of other images they are. What could be gained at most is what the good images alone
give, the flawed ones left out by their labels.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from common import page, parser, table
from cross_fitting import BATCH, MODELS, Draw, Model, drawn_samples, features_of
from numpy.typing import NDArray

from flawsmith.data.samples import Sample
from flawsmith.data.seeding import generator
from flawsmith.data.splits import half
from flawsmith.metrics import aupro, auroc
from flawsmith.metrics.collect import network_mask, resize_mask
from flawsmith.models.components.level_table import LevelTable, Rows
from flawsmith.models.patchcore.functional import coreset, largest_distance, patches, ranked_patches
from flawsmith.models.patchcore.model import rows_to_keep
from flawsmith.pipeline.masks import read_mask
from flawsmith.pipeline.steps import unlikeness
from flawsmith.runtime.decision import choose_limits
from flawsmith.runtime.image import decode

METHOD = "patchcore"
LEARNED, LIMIT = 80, 40
SHARES = (0.0, 0.05, 0.1)
TRIMS = (0.05, 0.1)
CUTS = (0.01, 0.15)
RANK = 3
"""Row of the memory, by nearness, that the second map shows the distance to: the setting ``map_neighbour``."""
RATE = 0.05
COMPARED = 128
"""Patches of each image, drawn once, that those of other images are compared with."""
NONE, GOOD_ALONE = "nothing", "the flawed images, by label"


class Patches(NamedTuple):
    """Patches of the images to learn from, and how unlike patches of other images they are.

    Attributes:
        values: (image, patch, channel).
        nearest: (image, patch) distance to the nearest patch of another image.
        relative: distance to the fifth nearest, over that of the nearest patch itself; the local outlier factor's idea.
    """

    values: torch.Tensor
    nearest: torch.Tensor
    relative: torch.Tensor


@dataclass(frozen=True)
class Outcome:
    """What a model that learned from what was left gives.

    Attributes:
        image, pixels, ranked: image AUROC, AUPRO, and AUPRO of the map that shows the distance to the third row.
        rejected, missed: shares of good and flawed test images, at the limit of all images held out for it.
        rejected_trimmed, missed_trimmed: the same where the share mixed in was left out of those, highest first.
        dropped: share of the patches that is left out.
        flaws: share of the patches on flaws that is learned from.
    """

    image: float
    pixels: float
    ranked: float
    rejected: float
    missed: float
    rejected_trimmed: float
    missed_trimmed: float
    dropped: float
    flaws: float


def drawn(
    rng: np.random.Generator, good: Draw, flawed: Draw, count: int, share: float
) -> tuple[Draw, NDArray[np.bool_]]:
    """Rows of so many images in random order, a share of them flawed, and which are."""
    number = round(share * count)
    rows = np.concatenate([good[: count - number], flawed[:number]])
    is_flawed = np.arange(count) >= count - number
    order = rng.permutation(count)
    return rows[order], is_flawed[order]


@torch.no_grad()
def patches_of(model: Model, features: LevelTable, rows: Draw) -> Patches:
    parts = [model.embedding(features.batch(rows[start : start + BATCH])) for start in range(0, len(rows), BATCH)]
    values = patches(torch.cat(parts))
    images, positions = values.shape[:2]
    rng = np.random.default_rng(0)
    places = torch.from_numpy(np.stack([rng.permutation(positions)[:COMPARED] for _ in range(images)]))
    compared = values.gather(1, places[:, :, None].expand(-1, -1, values.shape[2])).flatten(0, 1)
    nearest, fifth, rows_of_nearest = [], [], []
    for image in range(images):
        distances = torch.cdist(values[image], compared)
        distances[:, image * COMPARED : (image + 1) * COMPARED] = torch.inf
        closest = distances.topk(5, largest=False)
        nearest.append(closest.values[:, 0])
        fifth.append(closest.values[:, 4])
        rows_of_nearest.append(closest.indices[:, 0])
    fifths = torch.stack(fifth)
    of_nearest = fifths.gather(1, places).flatten()[torch.stack(rows_of_nearest)]
    return Patches(values, torch.stack(nearest), fifths / of_nearest.clamp_min(1e-6))


def highest_left_out(unlike: torch.Tensor, share: float) -> torch.Tensor:
    """All patches but this share of them."""
    return unlike <= float(np.quantile(unlike.numpy(), 1 - share))


def beyond_peaks_left_out(unlike: torch.Tensor, spreads: float) -> torch.Tensor:
    """All patches but those beyond what the images' own highest ones are: their median + c · MAD."""
    peaks = unlike.amax(dim=1)
    middle = peaks.median()
    return unlike <= middle + spreads * 1.4826 * (peaks - middle).abs().median()


def remedies(learned: Patches, unlike: NDArray[np.float64], wrong: NDArray[np.bool_]) -> dict[str, torch.Tensor]:
    """Which patches are kept, by what is left out."""

    def images(kept: NDArray[np.bool_]) -> torch.Tensor:
        return torch.from_numpy(kept)[:, None].expand(learned.nearest.shape)

    place = np.argsort(np.argsort(unlike, kind="stable"), kind="stable")
    return {
        NONE: images(np.ones(len(wrong), bool)),
        GOOD_ALONE: images(~wrong),
        **{f"{trim:.0%} of the images": images(place < len(wrong) - math.ceil(trim * len(wrong))) for trim in TRIMS},
        **{f"{share:.0%} of the patches, nearest": highest_left_out(learned.nearest, share) for share in CUTS},
        "15% of the patches, local outliers": highest_left_out(learned.relative, 0.15),
        "patches beyond peaks + 2 MAD": beyond_peaks_left_out(learned.nearest, 2),
    }


def fit(model: Model, rows: torch.Tensor) -> None:
    """The memory of `PatchCore.fit_features`, of patches as they are."""
    first = int(generator(0, "patchcore first").integers(len(rows)))
    model.fit_memory(rows[coreset(rows, rows_to_keep(len(rows), model.config), first=first)])


@torch.no_grad()
def judged(
    model: Model, features: LevelTable, rows: Draw
) -> tuple[NDArray[np.float64], list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Scores of images, their maps, and the maps of the distance to the third nearest row."""
    scores: list[torch.Tensor] = []
    maps: list[NDArray[np.float32]] = []
    ranked: list[NDArray[np.float32]] = []
    for start in range(0, len(rows), BATCH):
        embedding = model.embedding(features.batch(rows[start : start + BATCH]))
        test = patches(embedding) - model.center
        nearest, _, third = ranked_patches(test, model.memory, model.half_squares, RANK)
        scores.append(largest_distance(nearest)[0])
        for distances, shown in ((nearest, maps), (third, ranked)):
            shown += list(model.smooth(distances.reshape(-1, *embedding.shape[-2:])).numpy())
    return torch.cat(scores).double().numpy(), maps, ranked


def mask_of(sample: Sample, model: Model) -> NDArray[np.bool_]:
    """Where the flaw is, in the network's pixels; nowhere on a good part."""
    mask = read_mask(sample) if sample.is_flawed else None
    if mask is None:
        return np.zeros(model.config.image_size, bool)
    size = decode(sample.image).shape[:2]
    fitting = mask if mask.shape == size else resize_mask(mask, (size[0], size[1]))
    return network_mask(fitting, model.geometry, "nearest") >= 1


def on_patches(masks: Sequence[NDArray[np.bool_]], grid: tuple[int, int]) -> torch.Tensor:
    """(image, patch): which patches hold some of a flaw."""
    stacked = torch.from_numpy(np.stack(masks)).float()[:, None]
    return torch.nn.functional.adaptive_max_pool2d(stacked, grid).flatten(1) > 0


def rates(
    scores: NDArray[np.float64], is_flawed: NDArray[np.bool_], held_out: NDArray[np.float64]
) -> tuple[float, float]:
    """Shares of the good images rejected and of the flawed ones missed, at the limit of held-out scores."""
    above = scores > choose_limits(held_out, held_out, alpha=RATE).limit
    return float(above[~is_flawed].mean()), float(1 - above[is_flawed].mean())


def outcomes(category: str, draws: int, most: int) -> dict[tuple[float, str], list[Outcome]]:
    rng = np.random.default_rng(0)
    good, flawed = drawn_samples(category, most, rng)
    model: Model = MODELS[METHOD]("fast", backbone="efficientnet_lite0")
    features = features_of(model, [*good, *flawed])
    masks = [mask_of(sample, model) for sample in (*good, *flawed)]
    of_good, of_flawed = np.arange(len(good)), len(good) + np.arange(len(flawed))
    mixed_in = np.array([half(sample) == "A" for sample in flawed])
    results: dict[tuple[float, str], list[Outcome]] = {}
    for number in range(draws):
        clean, odd = rng.permutation(of_good), rng.permutation(of_flawed[mixed_in])
        tested = np.concatenate([clean[LEARNED + LIMIT :], of_flawed[~mixed_in]])
        is_flawed = np.arange(len(tested)) >= len(clean) - LEARNED - LIMIT
        truths = [masks[row] for row in tested]
        for share in SHARES:
            learned, wrong = drawn(rng, clean[:LEARNED], odd, LEARNED, share)
            limit, _ = drawn(rng, clean[LEARNED : LEARNED + LIMIT], odd[round(max(SHARES) * LEARNED) :], LIMIT, share)
            unlike = unlikeness(model, Rows(features, learned), [""] * LEARNED)
            shown = patches_of(model, features, learned)
            flaws = on_patches([masks[row] for row in learned], features.grids[0])
            for name, kept in remedies(shown, unlike, wrong).items():
                if name == GOOD_ALONE and not share:
                    continue
                fit(model, shown.values[kept])
                scores, maps, ranked = judged(model, features, np.concatenate([limit, tested]))
                held_out, scores = np.sort(scores[:LIMIT]), scores[LIMIT:]
                plain = rates(scores, is_flawed, held_out)
                trimmed = rates(scores, is_flawed, held_out[: LIMIT - math.ceil(share * LIMIT)])
                area = auroc(scores, is_flawed)
                areas = [aupro(each[LIMIT:], truths) for each in (maps, ranked)]
                assert area is not None and areas[0] is not None and areas[1] is not None
                left = float((flaws & kept).sum() / flaws.sum().clamp_min(1))
                outcome = Outcome(area, areas[0], areas[1], *plain, *trimmed, float(1 - kept.float().mean()), left)
                results.setdefault((share, name), []).append(outcome)
                print(category, number, share, name, outcome, file=sys.stderr, flush=True)
    return results


def in_rows(results: dict[tuple[float, str], list[Outcome]]) -> Iterator[tuple[object, ...]]:
    for (share, name), several in results.items():
        plain = results[share, NONE]
        mean = Outcome(*np.mean([list(vars(each).values()) for each in several], axis=0))
        gains = np.array([each.image - other.image for each, other in zip(several, plain, strict=True)])
        gain = "–" if name == NONE else f"{gains.mean():+.3f} ({gains.min():+.3f} to {gains.max():+.3f})"
        yield (
            f"{share:.0%}",
            name,
            f"{mean.image:.3f}",
            gain,
            f"{mean.pixels:.3f}",
            f"{mean.ranked:.3f}",
            f"{1000 * mean.rejected:.0f}",
            f"{100 * mean.missed:.0f} %",
            f"{1000 * mean.rejected_trimmed:.0f}",
            f"{100 * mean.missed_trimmed:.0f} %",
            f"{100 * mean.dropped:.1f} %",
            "–" if share == 0 else f"{100 * mean.flaws:.0f} %",
        )


HEADS = (
    "flawed among the good",
    "left out",
    "image AUROC",
    "gain (lowest to highest)",
    "AUPRO",
    "AUPRO, third row",
    "good rejected of 1,000",
    "flaws missed",
    "rejected, limit trimmed",
    "missed, limit trimmed",
    "patches left out",
    "patches of flaws kept",
)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sets", nargs="+", default=["magnetic_tile", "screw", "ball_screw", "juice_bottle"])
    arguments.add_argument("--draws", type=int, default=5)
    arguments.add_argument("--most", type=int, default=300, help="good and flawed images taken of a set")
    options = arguments.parse_args()
    draws = 1 if options.quick else options.draws
    sections = [
        f"PatchCore, preset fast; {LEARNED} images to learn from, {LIMIT} for a limit of {1000 * RATE:.0f} of "
        f"1,000; means over {draws} draws. The limit is that of all images held out for it, contaminated alike, "
        "and, as *limit trimmed*, of those without the highest of that share. The gain in image AUROC is that over"
        " leaving out nothing, in the mean and in the draws. Patches are left out before the coreset: *nearest*, "
        "those farthest from the nearest patch of another image; *local outliers*, those farthest from the fifth "
        "nearest in relation to the nearest patch's own such distance; *beyond peaks*, those farther than the "
        f"images' own highest ones, in their median and two deviations above it. {COMPARED} patches of each image "
        "are compared with. The second row of each share with flawed images is what a perfect choice of images "
        "would give. *AUPRO, third row*: the map shows the distance to the third nearest patch of the memory, as "
        "with `--set map_neighbour=3`; the image score is the same.",
    ]
    for category in options.sets:
        sections += [f"## {category}", table(HEADS, in_rows(outcomes(category, draws, options.most)))]
    page("contamination", "Flawed parts among the good images", sections, write=options.write)


if __name__ == "__main__":
    main()
