"""What `fast` costs in accuracy: `fast` against `official` on the same backbone, images and seeds.

Both presets learn from the same first images of the hold-out split (by content) and are calibrated on the same held-
out ones: runs of `flawsmith benchmark`, kept in --work and not computed again. The difference in image AUROC comes with
a paired bootstrap interval over the test images.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import category_folder, page, parser, table

from flawsmith.benchmark.experiment import SCORES, ResultStore, RunResult
from flawsmith.benchmark.plan import Plan
from flawsmith.benchmark.run import run_benchmark
from flawsmith.cli.app import parse_settings
from flawsmith.metrics.bootstrap import image_replicates, paired_differences, percentile_interval, resample_weights
from flawsmith.metrics.collect import EvaluationState
from flawsmith.metrics.ranking import auroc

LEVEL = 0.95


def evidence_of(store: ResultStore, result: RunResult, half: str | None) -> EvaluationState:
    """The image scores of a run, of all test images or of one half."""
    with (store.folder(result.run) / SCORES).open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if half in (None, row["half"])]
    return EvaluationState(
        images=tuple(row["image"] for row in rows),
        scores=np.array([float(row["score"]) for row in rows]),
        flawed=np.array([row["label"] == "flawed" for row in rows]),
        verdicts=("pass",) * len(rows),
        defects=("",) * len(rows),
        pixel_index=np.full(len(rows), -1),
        pixels=None,
        notes=(),
    )


def pooled_difference(
    fast: Sequence[EvaluationState], official: Sequence[EvaluationState], *, n_resamples: int
) -> tuple[float, float, float]:
    """Mean over seeds of the difference in image AUROC, with an interval over resampled test images.

    One resample of the images serves all seeds of both presets, so that the interval speaks of the images alone.
    """
    weights = resample_weights(fast[0].flawed, n_resamples=n_resamples)
    differences, points = [], []
    for pair in zip(fast, official, strict=True):
        replicates = [image_replicates(side.scores, side.flawed, weights)["image_auroc"] for side in pair]
        differences.append(replicates[0] - replicates[1])
        values = [auroc(side.scores, side.flawed) for side in pair]
        points.append(float(values[0] or 0.0) - float(values[1] or 0.0))
    ends = percentile_interval(np.mean(differences, axis=0), LEVEL)
    assert ends is not None, "the test set has good and flawed images"
    return statistics.mean(points), *ends


def difference_table(
    store: ResultStore, fast: Sequence[RunResult], official: Sequence[RunResult], half: str | None, n_resamples: int
) -> str:
    """A row a seed, and one for all seeds."""
    rows: list[tuple[str, ...]] = []
    evidence = [[evidence_of(store, result, half) for result in results] for results in (fast, official)]
    for result, of_fast, of_official in zip(fast, *evidence, strict=True):
        value, low, high = paired_differences(of_fast, of_official, level=LEVEL, n_resamples=n_resamples)["image_auroc"]
        values = [auroc(side.scores, side.flawed) for side in (of_fast, of_official)]
        ends = f"{low:+.4f} to {high:+.4f}"
        rows.append((str(result.run.seed), *(f"{v:.4f}" for v in values), f"{value:+.4f}", ends))
    value, low, high = pooled_difference(*evidence, n_resamples=n_resamples)
    means = [statistics.mean(float(auroc(e.scores, e.flawed) or 0.0) for e in side) for side in evidence]
    rows.append(("**mean**", *(f"{mean:.4f}" for mean in means), f"{value:+.4f}", f"{low:+.4f} to {high:+.4f}"))
    return table(("seed", "`fast`", "`official`", "difference", "95 % interval"), rows)


def run_table(results: Sequence[RunResult]) -> str:
    rows = [
        (
            f"`{result.run.experiment.preset}`",
            result.run.seed,
            *(f"{getattr(result.evaluations['whole'], name):.4f}" for name in ("image_auroc", "pixel_auroc", "aupro")),
            f"{result.costs.train_seconds or 0:.1f}",
            f"{(result.costs.peak_bytes or 0) / 1e9:.2f}",
        )
        for result in results
    ]
    return table(("preset", "seed", "image AUROC", "pixel AUROC", "AUPRO", "training, s", "private memory, GB"), rows)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores")
    arguments.add_argument("--category", default="magnetic_tile")
    arguments.add_argument("--fraction", type=float, default=0.125, help="of the training images")
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments.add_argument("--backbone", default="efficientnet_lite0")
    arguments.add_argument("--official-epochs", type=int, default=100)
    arguments.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of official")
    arguments.add_argument("--fast-set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of fast")
    arguments.add_argument("--work", type=Path, default=Path("results-fast-official"), help="the benchmark's folder")
    args = arguments.parse_args()
    seeds = args.seeds[:2] if args.quick else args.seeds
    fraction, n_resamples = (0.03, 200) if args.quick else (args.fraction, 4000)
    settings = {  # the long ones first
        "official": {"epochs": 2 if args.quick else args.official_epochs, **parse_settings(args.set)},
        "fast": {**({"epochs": 2} if args.quick else {}), **parse_settings(args.fast_set)},
    }
    plan = Plan.checked(
        {
            "data": category_folder(args.category),
            "methods": [  # both learn from the same images, though published presets learn from all
                {"method": "pbas", "preset": preset, "set": fields, **({} if preset == "fast" else {"holdout": True})}
                for preset, fields in settings.items()
            ],
            "backbones": args.backbone,
            "fractions": fraction,
            "seeds": seeds,
        },
        source="fast_against_official",
    )
    benchmark = run_benchmark(plan, args.work, jobs=args.jobs, on_result=lambda result: print(result.run.label))
    if benchmark.failed:
        raise SystemExit("\n".join(f"{failed.run.label}: {failed.error}" for failed in benchmark.failed))
    store = ResultStore(args.work)
    official, fast = (
        [result for result in benchmark.results if result.run.experiment.preset == preset] for preset in settings
    )
    changed = ", ".join(f"{name}={value}" for name, value in settings["official"].items())
    sections = [
        f"{fast[0].n_train} training images of {args.category} and the same {fast[0].n_calibration} held-out ones for "
        f"both, backbone `{args.backbone}`; `official` with {changed}. The difference is `fast` minus `official`; "
        f"intervals are paired bootstrap intervals over the test images ({n_resamples} resamples), the mean's from one "
        "resampling of the images for all seeds. An interval wholly below zero says that `fast` is worse; one that "
        "spans zero shows no difference, and its lower end is the most that `fast` may cost.",
        f"## Image AUROC, the whole test set\n\n{difference_table(store, fast, official, None, n_resamples)}",
        "## Image AUROC, half B (presets were tuned on half A)\n\n"
        f"{difference_table(store, fast, official, 'B', n_resamples)}",
        f"## Every run, the whole test set\n\n{run_table([*fast, *official])}",
    ]
    page("fast_against_official", "`fast` against `official`", sections, write=args.write)


if __name__ == "__main__":
    main()
