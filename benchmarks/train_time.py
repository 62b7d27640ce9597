"""How long `fast` takes on 200 images of 256×256, from the command to the model file, with an empty feature cache.

The images are drawn (synthesis/demo_parts.py). Everything counts: starting Python, reading files, compiling the
backbone, features, training, export, parity, calibration and the report. Each run is a process of its own.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from common import page, parser, table

from flawsmith.benchmark.executors import run_measured
from flawsmith.synthesis.demo_parts import render_product_line

IMAGES, SIZE = 200, (256, 256)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--method", default="pbas")
    args = arguments.parse_args()
    images, runs = (20, 1) if args.quick else (IMAGES, args.runs)
    rows, walls = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (category,) = render_product_line(
            root, parts=("bracket",), n_train=images, n_test_good=0, n_per_defect=0, size=SIZE, seed=0
        )
        for run in range(runs):
            out = root / f"run{run}"
            command = [sys.executable, "-m", "flawsmith", "train", str(category), "--out", str(out), "--quiet"]
            command += ["--preset", "fast", "--method", args.method]
            measured = run_measured(command, env={"FLAWSMITH_CACHE": str(root / f"cache{run}")})
            if measured.returncode:
                raise SystemExit(measured.stderr)
            seconds = json.loads((out / "run.json").read_text())["seconds"]
            walls.append(measured.seconds)
            rows.append((run + 1, f"{measured.seconds:.1f}", *(f"{value:.1f}" for value in seconds.values())))
            heads = ("run", "wall, s", *(f"{name}, s" for name in seconds))
    sections = [
        f"{images} good images of {SIZE[1]}×{SIZE[0]} pixels, `{args.method}`, preset `fast`, default backbone. "
        f"Median wall time of {runs} runs: **{statistics.median(walls):.1f} s**.\n\n{table(heads, rows)}",
    ]
    name = "train_time" if args.method == "pbas" else f"train_time_{args.method}"
    page(name, "Training time of `fast`", sections, write=args.write)


if __name__ == "__main__":
    main()
