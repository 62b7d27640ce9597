"""What a larger input finds and costs: the same method, told of smaller and smaller flaws with ``smallest_flaw``."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common import category_folder, page, parser, seconds, table

import flawsmith

HEADS = (
    "smallest flaw, px",
    "seen at",
    "image AUROC",
    "AUPRO",
    "flaws missed at the limit",
    "good rejected",
    "training, s",
    "inspection, ms",
)


def rows_of(category: str, method: str, flaws: Sequence[int], seed: int) -> Iterator[tuple[object, ...]]:
    folder = category_folder(category)
    for flaw in (None, *flaws):
        options: dict[str, Any] = {} if flaw is None else {"smallest_flaw": flaw}
        with tempfile.TemporaryDirectory() as work, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            began = time.perf_counter()
            result = flawsmith.train(
                folder, out=Path(work) / "run", method=method, baseline="none", quiet=True, seed=seed, **options
            )
            trained = time.perf_counter() - began
            figures = flawsmith.evaluate(result.model, folder, n_resamples=0)
            latency = _latency(result.model, folder)
        spec = result.bundle.spec
        rows, columns = spec.geometry.size
        tiles = "" if spec.tiling is None else f" in tiles of {spec.tiling.size}"
        yield (
            "not said" if flaw is None else flaw,
            f"{columns} × {rows}{tiles}",
            f"{figures.image_auroc:.3f}",
            f"{figures.aupro:.3f}",
            f"{figures.miss_rate:.0%}",
            f"{figures.false_reject_rate:.1%}",
            f"{trained:.0f}",
            f"{1000 * latency:.0f}",
        )


def _latency(model: Path, folder: Path, images: int = 30) -> float:
    """Seconds from a file to its verdict, the median of some."""
    inspector = flawsmith.Inspector.load(model)
    files = sorted(path for path in (folder / "test").rglob("*") if path.is_file())[:images]
    return statistics.median(seconds(partial(inspector.inspect, file)) for file in files)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sets", nargs="+", default=["screw", "juice_bottle", "ball_screw", "magnetic_tile"])
    arguments.add_argument("--method", default="patchcore")
    arguments.add_argument("--flaws", nargs="+", type=int, default=[16, 8])
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    flaws = options.flaws[:1] if options.quick else options.flaws
    sets = options.sets[:1] if options.quick else options.sets
    sections = [f"{options.method}, preset fast, seed {options.seed}; whole test sets, the limit of 10 of 1,000."]
    for category in sets:
        sections += [f"## {category}", table(HEADS, rows_of(category, options.method, flaws, options.seed))]
    page("input_size", "The input's size and small flaws", sections, write=options.write)


if __name__ == "__main__":
    main()
