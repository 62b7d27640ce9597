"""Accuracy, training time and memory on the shared real images, by the clean protocol.

Every cell (category and seed) trains in a process of its own with an empty feature cache. A preset was tuned on half
A of each test set (halves by content hash), so half B and the whole set are reported. Finished cells are kept in
--work and not computed again.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cells import Cell, add_jobs, cell_results, company, linked_subset, serve_cell, settings_from
from common import category_folder, data_root, page, parser, table

FIGURES = ("image_auroc", "pixel_auroc", "aupro")
PARTS = {"whole": "the whole test set", "B": "half B"}


def run_cell(cell: Cell, scratch: Path, started: float) -> Cell:
    """Train and evaluate one model.

    Args:
        cell: category, preset, seed, backbone, n_train (None: all), set (method settings) and resamples.
        scratch: an empty folder.
        started: the monotonic clock when the process was started.

    Returns:
        Figures of the whole test set and of half B, scores by image, seconds and memory.
    """
    import flawsmith
    from flawsmith.data.layouts import load
    from flawsmith.data.splits import half
    from flawsmith.evaluation.summary import summarise
    from flawsmith.pipeline.evaluate import collect
    from flawsmith.runtime.inspector import Inspector

    source = category_folder(cell["category"])
    data = source if cell["n_train"] is None else linked_subset(source, cell["n_train"], scratch / "data")
    run = scratch / "run"
    trained = flawsmith.train(
        data,
        out=run,
        quiet=True,
        method=cell.get("method", "pbas"),
        textures=_textures(cell.get("textures")),
        preset=cell["preset"],
        backbone=cell["backbone"],
        seed=cell["seed"],
        set=cell["set"],
    )
    train_seconds = time.monotonic() - started
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    inspector, dataset = Inspector.load(trained.model), load(data)
    sides = {sample.image: half(sample) for sample in dataset.test}
    parts: dict[str, Any] = {}
    for part, samples in (("whole", dataset.test), ("B", [s for s in dataset.test if sides[s.image] == "B"])):
        evidence = collect(inspector, samples)
        parts[part] = summarise(evidence, n_resamples=cell["resamples"]).model_dump(mode="json")
        if part == "whole":
            scores = evidence.scores.tolist()
    spec = trained.bundle.spec
    return {
        "summary": f"image AUROC {parts['whole']['image_auroc']:.4f} in {train_seconds:.1f} s",
        "parts": parts,
        "images": [sample.image.relative_to(dataset.root).as_posix() for sample in dataset.test],
        "flawed": [sample.is_flawed for sample in dataset.test],
        "half": [sides[sample.image] for sample in dataset.test],
        "scores": scores,
        "train_seconds": train_seconds,
        "resident_bytes": resident,
        "n_train": spec.training.n_train,
        "n_calibration": spec.training.n_calibration,
        "limit": spec.decision.limit,
        "stated_false_reject_rate": spec.decision.stated_false_reject_rate,
        "losses": losses(run),
    }


def _textures(name: str | None) -> str | None:
    """The shared DTD textures by name; other sources as they are."""
    return str(data_root() / "dtd") if name == "dtd" else name


def losses(run: Path) -> list[float]:
    """The training loss of every epoch, from the run folder."""
    from flawsmith.training.engine import LoopOptions
    from flawsmith.training.run import RunFolder

    return [float(row["loss"]) for row in RunFolder(run, LoopOptions()).metrics()]


def mean_and_spread(values: Sequence[float | None], digits: int = 4) -> str:
    """Mean and standard deviation over seeds, or a dash where the data cannot give the figure."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    spread = statistics.stdev(known) if len(known) > 1 else 0.0
    return f"{statistics.mean(known):.{digits}f} ± {spread:.{digits}f}"


def figures_table(results: Sequence[Cell], part: str) -> str:
    """Accuracy on a part of the test set: a row a seed with the interval of its image AUROC, then the mean."""
    heads = (
        "category",
        "seed",
        "good / flawed",
        "image AUROC (95 %)",
        "pixel AUROC",
        "AUPRO",
        "false rejects",
        "misses",
    )
    rows = []
    for category in dict.fromkeys(result["cell"]["category"] for result in results):
        own = [result for result in results if result["cell"]["category"] == category]
        for result in own:
            found = result["parts"][part]
            low, high = found["intervals"].get("image_auroc", (float("nan"), float("nan")))
            rows.append(
                (
                    category,
                    result["cell"]["seed"],
                    f"{found['n_good']} / {found['n_flawed']}",
                    f"{found['image_auroc']:.4f} ({low:.3f} to {high:.3f})",
                    *(f"{found[name]:.4f}" for name in FIGURES[1:]),
                    f"{found['false_reject_rate']:.3f}",
                    f"{found['miss_rate']:.3f}",
                )
            )
        means = [mean_and_spread([r["parts"][part][name] for r in own]) for name in FIGURES]
        rates = [
            mean_and_spread([r["parts"][part][name] for r in own], 3) for name in ("false_reject_rate", "miss_rate")
        ]
        rows.append((f"**{category}**", "mean ± sd", "", *means, *rates))
    return table(heads, rows)


def cost_table(results: Sequence[Cell]) -> str:
    """Training time with a cold cache, and memory."""
    heads = ("category", "seed", "learned from", "calibrated on", "training, s", "private memory, GB", "resident, GB")
    rows = [
        (
            result["cell"]["category"],
            result["cell"]["seed"],
            result["n_train"],
            result["n_calibration"],
            f"{result['train_seconds']:.1f}",
            f"{result['private_bytes'] / 1e9:.2f}",
            f"{result['resident_bytes'] / 1e9:.2f}",
        )
        for result in results
    ]
    return table(heads, rows)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--categories", nargs="+", default=["magnetic_tile", "screw"])
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments.add_argument("--preset", default="fast")
    arguments.add_argument("--backbone", default="efficientnet_lite0")
    arguments.add_argument("--n-train", type=int, help="learn from so many images; all by default")
    arguments.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the method")
    arguments.add_argument("--work", type=Path, default=Path("results-real-data"), help="where finished cells are kept")
    add_jobs(arguments)
    given = arguments.parse_args()
    settings = settings_from(given.set)
    if given.quick:
        settings = {"epochs": 2, **settings}
    cells = [
        {
            "category": category,
            "preset": given.preset,
            "seed": seed,
            "backbone": given.backbone,
            "n_train": 20 if given.quick else given.n_train,
            "set": settings,
            "resamples": 100 if given.quick else 1000,
        }
        for category in given.categories
        for seed in ([given.seeds[0]] if given.quick else given.seeds)
    ]
    results = cell_results(given.work, __file__, cells, jobs=given.jobs)
    sections = [
        f"Preset `{given.preset}`, backbone `{given.backbone}`, protocol `clean`: whole images at their own "
        "size, limits "
        "stored before a test image was seen. Presets were tuned on half A of each test set alone; intervals are "
        "bootstrap intervals over the test images. “False rejects” and “misses” are shares of the good and "
        "of the flawed "
        "test images at the stored limit."
    ]
    sections += [f"## On {words}\n\n{figures_table(results, part)}" for part, words in PARTS.items()]
    sections.append(
        "## What it costs\n\nTraining time is the wall time of a fresh process from its start to the written "
        "model, features with an empty cache, export, calibration and report included"
        f"{company(given.jobs)}. Private memory is the largest "
        "anonymous memory of the process (evaluation included); resident memory is its peak while training, "
        "with mapped "
        f"files.\n\n{cost_table(results)}"
    )
    page("pbas", "PBAS on real images", sections, write=given.write)


if __name__ == "__main__" and not serve_cell(run_cell):
    main()
