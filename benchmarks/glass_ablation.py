"""The components of GLASS in the form of the paper's Table 4, and weak flaws, on one shared category.

Rows switch local anomalies (LAS), Gaussian noise (GN), gradient ascent (GA) and truncated projection (TP). Every cell
trains in a process of its own, and is evaluated on the test set and on flaws synthesized in four strengths on its good
test images (`flawsmith synthesize --test-set`); the strengths share masks and textures.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import Cell, add_jobs, cell_results, serve_cell, settings_from
from common import category_folder, data_root, page, parser, table

ROWS: Mapping[tuple[str, str, str, str], dict[str, Any]] = {
    ("x", "", "", ""): {"las": True, "gas": "none"},
    ("", "x", "", ""): {"las": False, "gas": "noise"},
    ("x", "x", "", ""): {"las": True, "gas": "noise"},
    ("x", "x", "x", ""): {"las": True, "gas": "ascent"},
    ("x", "x", "x", "x"): {"las": True, "gas": "projected"},
}
WEAKNESS = (0.1, 0.3, 0.5, 0.7)
FORGED_SEED = 12345
FIGURES = ("image_auroc", "pixel_auroc", "aupro")


def run_cell(cell: Cell, scratch: Path, started: float) -> Cell:
    """Train one model, evaluate it on the test set and on every strength of synthetic flaws."""
    import flawsmith
    from flawsmith.data.layouts import load
    from flawsmith.metrics.summary import summarise
    from flawsmith.pipeline.evaluate import collect
    from flawsmith.pipeline.synthesize import SynthesisSettings
    from flawsmith.pipeline.weak_flaws import weak_flaw_sets
    from flawsmith.runtime.inspector import Inspector

    source = category_folder(cell["category"])
    synthesizes = cell["method"] == "glass" and cell["set"].get("las", True)
    textures = str(data_root() / "dtd") if synthesizes else None
    run, synthetic = scratch / "run", scratch / "weak"
    trained = flawsmith.train(
        source,
        out=run,
        resume=run.exists(),
        quiet=True,
        method=cell["method"],
        textures=textures,
        seed=cell["seed"],
        set=cell["set"],
    )
    inspector = Inspector.load(trained.model)
    ingredients = SynthesisSettings(textures=str(data_root() / "dtd"), seed=FORGED_SEED)
    shutil.rmtree(synthetic, ignore_errors=True)
    weak_flaw_sets(source, synthetic, ingredients, weakness=WEAKNESS)
    folders = {str(weakness): synthetic / f"weakness_{weakness}" / source.name for weakness in WEAKNESS}
    sets = {"test": source, **folders}
    figures = {}
    for name, folder in sets.items():
        found = summarise(collect(inspector, load(folder).test), n_resamples=cell["resamples"])
        figures[name] = {figure: getattr(found, figure) for figure in FIGURES}
    return {"summary": f"image AUROC {figures['test']['image_auroc']:.4f}", "figures": figures}


def _percent(figures: Mapping[str, float]) -> str:
    return " / ".join(f"{100 * figures[name]:.1f}" for name in FIGURES)


def components(cells: Sequence[Cell]) -> str:
    """Table 4: image AUROC / pixel AUROC / AUPRO in per cent."""
    heads = ("LAS", "GN", "GA", "TP", "test set", *(f"synthetic, weakness {weakness}" for weakness in WEAKNESS))
    rows = [
        (*switches, *(_percent(cell["figures"][name]) for name in ("test", *map(str, WEAKNESS))))
        for switches, cell in zip(ROWS, cells, strict=True)
    ]
    return table(heads, rows)


def weak(methods: Mapping[str, Cell]) -> str:
    """Image AUROC of every method by strength."""
    rows = [
        (name, *(f"{cell['figures'][key]['image_auroc']:.4f}" for key in ("test", *map(str, WEAKNESS))))
        for name, cell in methods.items()
    ]
    return table(("method", "test set", *(f"weakness {weakness}" for weakness in WEAKNESS)), rows)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--category", default="magnetic_tile")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every row")
    arguments.add_argument("--work", type=Path, default=Path("results-glass-ablation"), help="where cells are kept")
    add_jobs(arguments)
    given = arguments.parse_args()
    common = {"bank": []} | ({"epochs": 2} if given.quick else {}) | settings_from(given.set)

    def cell(method: str, switches: Mapping[str, Any]) -> Cell:
        settings = {"category": given.category, "preset": "fast", "seed": given.seed, "method": method}
        return {**settings, "set": {**common, **switches}, "resamples": 100}

    wanted = [*(cell("glass", switches) for switches in ROWS.values()), cell("pbas", {})]
    *cells, pbas = cell_results(given.work, __file__, wanted, jobs=given.jobs)
    sections = [
        f"Preset `fast` on {given.category}, DTD textures, without a memory bank, seed {given.seed}, the whole test "
        "set; image AUROC / pixel AUROC / AUPRO in per cent. One seed: differences of a point or two are noise.",
        f"## Components, as in the paper's Table 4\n\n{components(cells)}",
        "## Weak flaws\n\nImage AUROC on the test set and on synthetic flaws; weakness is the weight of the good image "
        f"inside the flaw.\n\n{weak({'GLASS': cells[-1], 'PBAS': pbas})}",
    ]
    page("glass_ablation", "Components of GLASS, and weak flaws", sections, write=given.write)


if __name__ == "__main__" and not serve_cell(run_cell):
    main()
