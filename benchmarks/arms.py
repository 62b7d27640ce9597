"""Methods side by side on the shared real images: the same cells, protocol and tables for every comparison.

Every arm, category and seed trains in a process of its own with an empty cache. Finished cells are kept in --work and
shared by all comparisons that ask for the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import Cell, add_jobs, cell_results, company, settings_from
from common import page, parser, table
from real_data import PARTS, cost_table, figures_table, mean_and_spread

CATEGORIES = ("magnetic_tile", "screw", "juice_bottle")
Arms = Mapping[str, dict[str, Any]]
FIGURES = ("image_auroc", "pixel_auroc", "aupro")


def comparison(results: Mapping[str, Sequence[Cell]], part: str) -> str:
    """A row a category and arm: means over seeds."""
    rows = []
    for category in CATEGORIES:
        for arm, cells in results.items():
            own = [cell for cell in cells if cell["cell"]["category"] == category]
            if own:
                figures = [mean_and_spread([cell["parts"][part][name] for cell in own]) for name in FIGURES]
                seconds = statistics.mean(cell["train_seconds"] for cell in own)
                rows.append((category, arm, len(own), *figures, f"{seconds:.0f}"))
    return table(("category", "arm", "seeds", "image AUROC", "pixel AUROC", "AUPRO", "training, s"), rows)


def compare_arms(document: str, script: str, arms: Arms, *, name: str, title: str, note: str, own: str) -> None:
    """Compute or read the cells of every arm and write the page.

    Args:
        document: the script's own docstring.
        script: its file, which serves cells.
        arms: what is added to a cell, by the name of the arm.
        name: of the page.
        title: of the page.
        note: what a reader has to know of the arms.
        own: the method that --set changes.
    """
    arguments = parser(document)
    arguments.add_argument("--categories", nargs="+", default=list(CATEGORIES))
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    numbered = ", ".join(f"{number} {arm}" for number, arm in enumerate(arms))
    arguments.add_argument("--arms", nargs="+", type=int, default=list(range(len(arms))), help=numbered)
    arguments.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help=f"settings of {own}")
    add_jobs(arguments)
    arguments.add_argument("--work", type=Path, default=Path("results-real-data"), help="where finished cells are kept")
    given = arguments.parse_args()
    quick = {"epochs": 2} if given.quick else {}
    keys = [
        (
            arm,
            {
                "category": category,
                "preset": "fast",
                "seed": seed,
                "backbone": "efficientnet_lite0",
                "n_train": 20 if given.quick else None,
                "set": quick | (settings_from(given.set) if arms[arm].get("method") == own else {}),
                "resamples": 100 if given.quick else 1000,
                **arms[arm],
            },
        )
        for arm in [list(arms)[number] for number in given.arms]
        for seed in (given.seeds[:1] if given.quick else given.seeds)
        for category in given.categories
    ]
    results: dict[str, list[Cell]] = {}
    found = cell_results(given.work, script, [cell for _, cell in keys], jobs=given.jobs)
    for (arm, _), result in zip(keys, found, strict=True):
        results.setdefault(arm, []).append(result)
    sections = [
        "Preset `fast`, backbone `efficientnet_lite0`, protocol `clean`: whole images at their own size, limits stored "
        "before a test image was seen. Presets were tuned on half A of each test set alone. juice_bottle has logical "
        f"anomalies only; its pixel figures are those of masks merged to one channel. {note}"
    ]
    sections += [f"## On {words}\n\n{comparison(results, part)}" for part, words in PARTS.items()]
    for arm, cells in results.items():
        sections.append(
            f"## {arm}, every cell\n\nThe whole test set.\n\n{figures_table(cells, 'whole')}\n\n{cost_table(cells)}"
        )
    sections.append(
        "Training time is the wall time of a fresh process from its start to the written model, everything included"
        f"{company(given.jobs)}. "
        "Private memory sums the process and its forging workers, which count pages that they share more than once."
    )
    page(name, title, sections, write=given.write)
