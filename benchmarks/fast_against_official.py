"""What `fast` costs in accuracy: `fast` against `official` on the same backbone, images and seeds.

Both presets learn from the same first images of the hold-out split (by content) and are calibrated on the same held-
out ones, each cell in a process of its own with an empty feature cache. The difference in image AUROC comes with a
paired bootstrap interval over the test images. Finished cells are kept in --work and not computed again;
an interrupted one goes on from its last checkpoint, so that the long runs of `official` may be cut.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cells import Cell, add_jobs, cell_results, linked_subset, serve_cell, settings_from
from common import category_folder, page, parser, table

from flawsmith.metrics.bootstrap import image_replicates, paired_difference, percentile_interval, resample_weights
from flawsmith.metrics.collect import Evidence
from flawsmith.metrics.ranking import auroc

LEVEL = 0.95
SETTLING_EPOCHS = 10
SETTLED = 0.01


def run_cell(cell: Cell, scratch: Path, started: float) -> Cell:
    """Train and evaluate one model.

    Args:
        cell: category, preset, seed, backbone, n_train, set (method settings) and resamples.
        scratch: the cell's folder; a run that was interrupted there goes on.
        started: the monotonic clock when the process was started.

    Returns:
        Figures of the whole test set, scores by image, the loss of every epoch, and seconds (None where the run was
        interrupted).
    """
    import flawsmith
    from flawsmith.data.layouts import load
    from flawsmith.data.splits import half
    from flawsmith.metrics.summary import summarise
    from flawsmith.pipeline.evaluate import collect
    from flawsmith.runtime.inspector import Inspector
    from flawsmith.training.run import RunFolder
    from flawsmith.training.trainer import LoopOptions

    run = scratch / "run"
    interrupted = run.exists()
    shutil.rmtree(scratch / "data", ignore_errors=True)
    data = linked_subset(category_folder(cell["category"]), cell["n_train"], scratch / "data")
    names = ("preset", "backbone", "seed", "set")
    settings = {name: cell[name] for name in names}
    trained = flawsmith.train(data, out=run, resume=interrupted, quiet=True, method="pbas", **settings)
    train_seconds = time.monotonic() - started
    dataset = load(data)
    evidence = collect(Inspector.load(trained.model), dataset.test)
    figures = summarise(evidence, n_resamples=cell["resamples"])
    return {
        "summary": f"image AUROC {figures.image_auroc:.4f} in {train_seconds:.1f} s",
        "figures": figures.model_dump(mode="json"),
        "images": [sample.image.relative_to(dataset.root).as_posix() for sample in dataset.test],
        "flawed": [sample.is_flawed for sample in dataset.test],
        "half": [half(sample) for sample in dataset.test],
        "scores": evidence.scores.tolist(),
        "n_calibration": sum(1 for _ in (data / "validation" / "good").iterdir()),
        "train_seconds": None if interrupted else train_seconds,
        "losses": [float(row["loss"]) for row in RunFolder(run, LoopOptions()).metrics()],
    }


def evidence_of(result: Cell, half: str | None = None) -> Evidence:
    """The image scores of a cell, of all test images or of one half."""
    kept = [place for place, side in enumerate(result["half"]) if half in (None, side)]
    return Evidence(
        images=tuple(result["images"][place] for place in kept),
        scores=np.array(result["scores"])[kept],
        flawed=np.array(result["flawed"])[kept],
        verdicts=("pass",) * len(kept),
        defects=("",) * len(kept),
        pixel_index=np.full(len(kept), -1),
        pixels=None,
        notes=(),
    )


def pooled_difference(
    first: Sequence[Evidence], second: Sequence[Evidence], *, n_resamples: int
) -> tuple[float, float, float]:
    """Mean over seeds of the difference in image AUROC, with an interval over resampled test images.

    One resample of the images serves all seeds of both presets, so that the interval speaks of the images alone.
    """
    for one in (*first, *second):
        if one.images != first[0].images:
            raise SystemExit("the cells were evaluated on different images: give another --work")
    weights = resample_weights(first[0].flawed, n_resamples=n_resamples)
    differences, points = [], []
    for one, two in zip(first, second, strict=True):
        replicates = [image_replicates(side.scores, side.flawed, weights)["image_auroc"] for side in (one, two)]
        differences.append(replicates[0] - replicates[1])
        values = [auroc(side.scores, side.flawed) for side in (one, two)]
        points.append(float(values[0] or 0.0) - float(values[1] or 0.0))
    ends = percentile_interval(np.mean(differences, axis=0), LEVEL)
    assert ends is not None, "the test set has good and flawed images"
    return statistics.mean(points), *ends


def settling(losses: Sequence[float]) -> tuple[float, float]:
    """Mean loss of the ten epochs before the last ten, and of the last ten."""
    if len(losses) < 2 * SETTLING_EPOCHS:
        return float("nan"), float("nan")
    return statistics.mean(losses[-2 * SETTLING_EPOCHS : -SETTLING_EPOCHS]), statistics.mean(losses[-SETTLING_EPOCHS:])


def difference_table(fast: Sequence[Cell], official: Sequence[Cell], half: str | None, n_resamples: int) -> str:
    """A row a seed, and one for all seeds."""
    rows: list[tuple[str, ...]] = []
    evidence = [[evidence_of(result, half) for result in results] for results in (fast, official)]
    for result, one, two in zip(fast, *evidence, strict=True):
        found = paired_difference("image_auroc", one, two, level=LEVEL, n_resamples=n_resamples)
        assert found is not None, "the test set has good and flawed images"
        values = [auroc(side.scores, side.flawed) for side in (one, two)]
        ends = f"{found.low:+.4f} to {found.high:+.4f}"
        rows.append((str(result["cell"]["seed"]), *(f"{v:.4f}" for v in values), f"{found.value:+.4f}", ends))
    value, low, high = pooled_difference(*evidence, n_resamples=n_resamples)
    means = [statistics.mean(float(auroc(e.scores, e.flawed) or 0.0) for e in side) for side in evidence]
    rows.append(("**mean**", *(f"{mean:.4f}" for mean in means), f"{value:+.4f}", f"{low:+.4f} to {high:+.4f}"))
    return table(("seed", "`fast`", "`official`", "difference", "95 % interval"), rows)


def settling_table(official: Sequence[Cell]) -> str:
    rows = []
    for result in official:
        before, last = settling(result["losses"])
        change = (last - before) / before
        rows.append(
            (
                result["cell"]["seed"],
                len(result["losses"]),
                f"{result['losses'][0]:.4f}",
                f"{before:.4f}",
                f"{last:.4f}",
                f"{100 * change:+.2f} %",
                "yes" if abs(change) < SETTLED else "no",
            )
        )
    heads = (
        "seed",
        "epochs",
        "first epoch",
        "ten epochs before",
        "last ten epochs",
        "change",
        f"settled (< {SETTLED:.0%})",
    )
    return table(heads, rows)


def pixel_table(fast: Sequence[Cell], official: Sequence[Cell]) -> str:
    rows = [
        (
            f"`{result['cell']['preset']}`",
            result["cell"]["seed"],
            *(f"{result['figures'][name]:.4f}" for name in ("image_auroc", "pixel_auroc", "aupro")),
            f"{result['train_seconds']:.1f}" if result["train_seconds"] else "in parts",
            f"{result['private_bytes'] / 1e9:.2f}",
        )
        for result in (*fast, *official)
    ]
    return table(("preset", "seed", "image AUROC", "pixel AUROC", "AUPRO", "training, s", "private memory, GB"), rows)


def main() -> None:
    arguments = parser(__doc__)
    add_jobs(arguments)
    arguments.add_argument("--category", default="magnetic_tile")
    arguments.add_argument("--n-train", type=int, default=100)
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments.add_argument("--backbone", default="efficientnet_lite0")
    arguments.add_argument("--official-epochs", type=int, default=100)
    arguments.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of official")
    arguments.add_argument("--fast-set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of fast")
    arguments.add_argument(
        "--work", type=Path, default=Path("results-fast-official"), help="where finished cells are kept"
    )
    given = arguments.parse_args()
    seeds = given.seeds[:2] if given.quick else given.seeds
    n_train, n_resamples = (20, 200) if given.quick else (given.n_train, 4000)
    settings = {  # the long ones first
        "official": {"epochs": given.official_epochs, **settings_from(given.set)},
        "fast": settings_from(given.fast_set),
    }
    if given.quick:
        settings = {"official": {**settings["official"], "epochs": 2}, "fast": {"epochs": 2, **settings["fast"]}}
    cells = [
        {
            "category": given.category,
            "preset": preset,
            "seed": seed,
            "backbone": given.backbone,
            "n_train": n_train,
            "set": changes,
            "resamples": 1000,
        }
        for preset, changes in settings.items()
        for seed in seeds
    ]
    found = cell_results(given.work, __file__, cells, jobs=given.jobs)
    official, fast = found[: len(seeds)], found[len(seeds) :]
    changed = ", ".join(f"{name}={value}" for name, value in settings["official"].items())
    sections = [
        f"{n_train} training images of {given.category} and the same {fast[0]['n_calibration']} held-out ones "
        "for both, "
        f"backbone `{given.backbone}`; `official` with {changed}. The difference is `fast` minus `official`; "
        "intervals are "
        f"paired bootstrap intervals over the test images ({n_resamples} resamples), the mean's from one "
        "resampling of the "
        "images for all seeds. An interval wholly below zero says that `fast` is worse; one that spans zero shows no "
        "difference, and its lower end is the most that `fast` may cost.",
        f"## Image AUROC, the whole test set\n\n{difference_table(fast, official, None, n_resamples)}",
        "## Image AUROC, half B (presets were tuned on half "
        f"A)\n\n{difference_table(fast, official, 'B', n_resamples)}",
        f"## Whether the loss of `official` has settled\n\n{settling_table(official)}",
        f"## Every cell, the whole test set\n\n{pixel_table(fast, official)}",
    ]
    page("fast_against_official", "`fast` against `official`", sections, write=given.write)


if __name__ == "__main__" and not serve_cell(run_cell):
    main()
