"""Training on many images: whether memory stays and time grows in proportion, from 1,000 to 10,000 files.

Small noise textures are written as PNG and JPEG files and trained on with `fast`, each set in a process of its own
with an empty feature cache. What counts as memory is what no file backs: features are memory-mapped.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import page, parser, table
from PIL import Image
from scipy.ndimage import gaussian_filter

from flawsmith.benchmark.executors import FinishedProcess, run_measured

SIDE = 64
# Run on its own, so that the process holds nothing but the training.
TRAIN = (
    "import sys, json, flawsmith; "
    "flawsmith.train(sys.argv[1], out=sys.argv[2], preset='fast', set=json.loads(sys.argv[3]), quiet=True)"
)


def render(folder: Path, number: int) -> None:
    """Write different noise textures, every other one as JPEG."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    bank = gaussian_filter(rng.standard_normal((512, 512, 3)), (2, 2, 0))
    bank = 128 + 50 * bank / bank.std()
    for index in range(number):
        row, column = rng.integers(0, 512 - SIDE, 2)
        texture = bank[row : row + SIDE, column : column + SIDE] + rng.normal(0, 4, (SIDE, SIDE, 3))
        suffix = "png" if index % 2 else "jpg"
        Image.fromarray(np.clip(texture, 0, 255).astype(np.uint8)).save(folder / f"{index:06d}.{suffix}")


def train(number: int, settings: dict[str, int]) -> tuple[FinishedProcess, dict[str, float], int]:
    """Measure one training: the process, seconds by step, and bytes of the cached features."""
    with TemporaryDirectory() as folder:
        data, out, cache = Path(folder) / "textures", Path(folder) / "run", Path(folder) / "cache"
        render(data, number)
        command = [sys.executable, "-c", TRAIN, str(data), str(out), json.dumps(settings)]
        measured = run_measured(command, env={"FLAWSMITH_CACHE": str(cache)})
        if measured.returncode:
            raise SystemExit(f"training on {number} images failed:\n{measured.stderr}")
        steps = json.loads((out / "run.json").read_text())["seconds"]
        return measured, steps, sum(file.stat().st_size for file in cache.rglob("*.npy"))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sizes", nargs="+", type=int, default=[1000, 3000, 10000])
    args = arguments.parse_args()
    sizes = [40, 80] if args.quick else sorted(args.sizes)
    results = {number: train(number, {"epochs": 1} if args.quick else {}) for number in sizes}
    rows = []
    for number, (measured, steps, cached) in results.items():
        learning = sum(spent for name, spent in steps.items() if name.startswith("stage"))
        rows.append(
            (
                f"{number:,}",
                f"{measured.seconds:.1f}",
                f"{steps['features']:.1f}",
                f"{learning:.1f}",
                f"{steps['calibration']:.1f}",
                f"{measured.peak_bytes / 1e9:.2f}",
                f"{cached / 1e9:.2f}",
            )
        )
    heads = (
        "images",
        "wall, s",
        "features, s",
        "stages, s",
        "calibration, s",
        "private memory, GB",
        "features on disk, GB",
    )
    growth = []
    for few, many in pairwise(sizes):
        spent = results[many][0].seconds - results[few][0].seconds
        held = results[many][0].peak_bytes - results[few][0].peak_bytes
        per_image = (f"{1000 * spent / (many - few):.2f}", f"{held / (many - few) / 1000:.1f}")
        growth.append((f"{few:,} to {many:,}", *per_image))
    sections = [
        f"`fast` on {SIDE}×{SIDE} noise textures, half PNG and half JPEG, cold cache; 15 % are held out for "
        "calibration. "
        "Private memory is the largest anonymous memory of the process tree.",
        table(heads, rows),
        "## What one more image costs\n\nEqual times from row to row say that time grows in proportion.\n\n"
        + table(("from", "time, ms an image", "private memory, kB an image"), growth),
    ]
    page("scale", "Training on many images", sections, write=args.write)


if __name__ == "__main__":
    main()
