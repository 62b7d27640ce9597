"""GLASS on the shared real images, with textures and without, beside PBAS: accuracy, training time and memory.

The same cells and the same protocol as `real_data.py`: every arm, category and seed trains in a process of its own with
an empty cache. Finished cells are kept in --work; cells of PBAS that `real_data.py` has computed there are used.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import Cell, cell_result, serve_cell, settings_from
from common import page, parser, table
from real_data import PARTS, cost_table, figures_table, mean_and_spread, run_cell

ARMS: Mapping[str, dict[str, Any]] = {
    "GLASS, DTD textures": {"method": "glass", "textures": "dtd"},
    "GLASS, no textures given": {"method": "glass", "textures": None},
    "PBAS": {},
}
CATEGORIES = ("magnetic_tile", "screw", "juice_bottle")
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


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--categories", nargs="+", default=list(CATEGORIES))
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments.add_argument("--arms", nargs="+", type=int, default=[0, 1, 2], help="0 DTD, 1 no textures, 2 PBAS")
    arguments.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of GLASS")
    arguments.add_argument("--work", type=Path, default=Path("results-real-data"), help="where finished cells are kept")
    given = arguments.parse_args()
    settings = ({"epochs": 2} if given.quick else {}) | settings_from(given.set)
    results: dict[str, list[Cell]] = {}
    for arm in [list(ARMS)[number] for number in given.arms]:
        for seed in given.seeds[:1] if given.quick else given.seeds:
            for category in given.categories:
                cell = {
                    "category": category,
                    "preset": "fast",
                    "seed": seed,
                    "backbone": "efficientnet_lite0",
                    "n_train": 20 if given.quick else None,
                    "set": settings if "method" in ARMS[arm] else ({"epochs": 2} if given.quick else {}),
                    "resamples": 100 if given.quick else 1000,
                    **ARMS[arm],
                }
                results.setdefault(arm, []).append(cell_result(given.work, __file__, cell))
    sections = [
        "Preset `fast`, backbone `efficientnet_lite0`, protocol `clean`: whole images at their own size, limits stored "
        "before a test image was seen. Presets were tuned on half A of each test set alone. juice_bottle has logical "
        "anomalies only; its pixel figures are those of masks merged to one channel. “No textures given” forges with "
        "drawn textures."
    ]
    sections += [f"## On {words}\n\n{comparison(results, part)}" for part, words in PARTS.items()]
    for arm, cells in results.items():
        sections.append(
            f"## {arm}, every cell\n\nThe whole test set.\n\n{figures_table(cells, 'whole')}\n\n{cost_table(cells)}"
        )
    sections.append(
        "Training time is the wall time of a fresh process from its start to the written model, everything included. "
        "Private memory sums the process and its forging workers, which count pages that they share more than once."
    )
    page("glass", "GLASS on real images", sections, write=given.write)


if __name__ == "__main__" and not serve_cell(run_cell):
    main()
