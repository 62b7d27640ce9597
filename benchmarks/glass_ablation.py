"""The components of GLASS in the form of the paper's Table 4, and weak flaws, on one shared category.

Rows switch local anomalies (LAS), Gaussian noise (GN), gradient ascent (GA) and truncated projection (TP). The rows are
runs of `flawsmith benchmark`, kept in --work; their models are evaluated on the test set and on flaws synthesized in
four strengths on its good test images (`flawsmith synthesize --test-set`); the strengths share masks and textures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import category_folder, data_root, page, parser, table

from flawsmith.benchmark.experiment import MODEL, ResultStore
from flawsmith.benchmark.plan import Plan
from flawsmith.benchmark.run import run_benchmark
from flawsmith.cli.app import parse_settings
from flawsmith.data.layouts import load
from flawsmith.pipeline.evaluate import evaluate
from flawsmith.pipeline.synthesize import SynthesisSettings, weak_flaw_sets

ROWS: Mapping[tuple[str, str, str, str], dict[str, Any]] = {
    ("x", "", "", ""): {"las": True, "gas": "none"},
    ("", "x", "", ""): {"las": False, "gas": "noise"},
    ("x", "x", "", ""): {"las": True, "gas": "noise"},
    ("x", "x", "x", ""): {"las": True, "gas": "ascent"},
    ("x", "x", "x", "x"): {"las": True, "gas": "projected"},
}
WEAKNESS = (0.1, 0.3, 0.5, 0.7)
SYNTHESIS_SEED = 12345
FIGURES = ("image_auroc", "pixel_auroc", "aupro")
Figures = dict[str, dict[str, float]]
"""By test set, the figures of one model."""


def figures_of(model: Path, test_sets: Mapping[str, Path]) -> Figures:
    """The figures of a model on every test set."""
    figures: Figures = {}
    for name, folder in test_sets.items():
        evaluation = evaluate(model, load(folder), n_resamples=0)
        figures[name] = {figure: getattr(evaluation, figure) for figure in FIGURES}
    return figures


def _percent(figures: Mapping[str, float]) -> str:
    return " / ".join(f"{100 * figures[name]:.1f}" for name in FIGURES)


def components(rows_of_glass: Sequence[Figures]) -> str:
    """Table 4: image AUROC / pixel AUROC / AUPRO in per cent."""
    heads = ("LAS", "GN", "GA", "TP", "test set", *(f"synthetic, weakness {weakness}" for weakness in WEAKNESS))
    rows = [
        (*switches, *(_percent(figures[name]) for name in ("test", *map(str, WEAKNESS))))
        for switches, figures in zip(ROWS, rows_of_glass, strict=True)
    ]
    return table(heads, rows)


def weak(methods: Mapping[str, Figures]) -> str:
    """Image AUROC of every method by strength."""
    rows = [
        (name, *(f"{figures[key]['image_auroc']:.4f}" for key in ("test", *map(str, WEAKNESS))))
        for name, figures in methods.items()
    ]
    return table(("method", "test set", *(f"weakness {weakness}" for weakness in WEAKNESS)), rows)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--category", default="magnetic_tile")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every row")
    arguments.add_argument("--work", type=Path, default=Path("results-glass-ablation"), help="the benchmark's folder")
    arguments.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores")
    args = arguments.parse_args()
    common = {"bank": []} | ({"epochs": 2} if args.quick else {}) | parse_settings(args.set)
    source, textures = category_folder(args.category), str(data_root() / "dtd")
    methods = [{"method": "glass", "set": {**common, **switches}} for switches in ROWS.values()]
    methods.append({"method": "pbas", "set": common})
    plan = Plan.checked(
        {"data": source, "methods": methods, "textures": textures, "seeds": args.seed, "resamples": 0},
        source="glass_ablation",
    )
    benchmark = run_benchmark(plan, args.work, jobs=args.jobs, keep_models=True)
    if benchmark.failed:
        raise SystemExit("\n".join(f"{failed.run.label}: {failed.error}" for failed in benchmark.failed))
    store = ResultStore(args.work)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        synthesis = SynthesisSettings(textures=textures, seed=SYNTHESIS_SEED)
        weak_flaw_sets(source, Path(folder) / "weak", synthesis, weakness=WEAKNESS)
        test_sets = {"test": source} | {
            str(weakness): Path(folder) / "weak" / f"weakness_{weakness}" / source.name for weakness in WEAKNESS
        }
        *rows_of_glass, pbas = [figures_of(store.folder(result.run) / MODEL, test_sets) for result in benchmark.results]
    sections = [
        f"Preset `fast` on {args.category}, DTD textures, without a memory bank, seed {args.seed}, the whole test "
        "set; image AUROC / pixel AUROC / AUPRO in per cent. One seed: differences of a point or two are noise.",
        f"## Components, as in the paper's Table 4\n\n{components(rows_of_glass)}",
        "## Weak flaws\n\nImage AUROC on the test set and on synthetic flaws; weakness is the weight of the good image "
        f"inside the flaw.\n\n{weak({'GLASS': rows_of_glass[-1], 'PBAS': pbas})}",
    ]
    page("glass_ablation", "Components of GLASS, and weak flaws", sections, write=args.write)


if __name__ == "__main__":
    main()
