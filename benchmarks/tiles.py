"""Large images in tiles: a flaw of 12 pixels in parts of 4000 x 3000, beside the same method on squashed images.

Parts are rendered, and each flawed one is a good one with one dark pit of 12 pixels on plain metal. Found means: the
image is rejected, and a region above the limit of the map lies where the pit is. Memory is that of a process of its
own, above what it holds once the model is loaded and has inspected a small image. What is rendered says whether a small
flaw can be seen at all, not how well real flaws are found.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import page, parser, table
from numpy.typing import NDArray
from PIL import Image

import flawsmith
from flawsmith.metrics.ranking import auroc
from flawsmith.runtime.inspector import Inspection, Inspector
from flawsmith.runtime.tiles import Tiling
from flawsmith.synthesis.demo_parts import render_part

SIZE = (3000, 4000)
PIT = 12
"""Diameter of the flaw, pixels."""
METAL = 120
"""Grey level from which on a pixel of the rendered bracket is metal."""
# The most memory that a process has held, by the kernel's count for its own address space: that of `getrusage` holds
# what its parent had before.
MEMORY = """
import json, sys, time
import numpy as np
from flawsmith.runtime.inspector import Inspector

def held(name):
    status = open("/proc/self/status", encoding="ascii").read()
    return 1024 * int(status.split(name + ":")[1].split()[0])

inspector = Inspector.load(sys.argv[1])
inspector.inspect(np.zeros((700, 700, 3), np.uint8))
before, start = held("VmRSS"), time.perf_counter()
inspection = inspector.inspect(sys.argv[2])
seconds = time.perf_counter() - start
print(json.dumps({"bytes": held("VmHWM") - before, "seconds": seconds, "pixels": inspection.map.size}))
"""


@dataclass(frozen=True)
class FlawedPart:
    """A picture with one pit.

    Attributes:
        path: of the picture.
        centre: (x, y) of the pit.
    """

    path: Path
    centre: tuple[int, int]


def with_pit(image: NDArray[np.uint8], rng: np.random.Generator) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """A pit on plain metal, dark with a soft edge."""
    half = 60
    while True:
        y, x = (int(rng.integers(half, length - half)) for length in image.shape[:2])
        if image[y - half : y + half, x - half : x + half].min() >= METAL:
            break
    rows, columns = np.mgrid[-half:half, -half:half] + 0.5
    inside = np.clip(PIT / 2 + 0.75 - np.hypot(rows, columns), 0, 1.5)[:, :, None] / 1.5
    result = image.copy()
    window = result[y - half : y + half, x - half : x + half]
    window[:] = np.rint(window * (1 - 0.6 * inside)).astype(np.uint8)
    return result, (x, y)


def draw(folder: Path, learn: int, calibrate: int, test: int) -> tuple[list[Path], list[FlawedPart]]:
    """Pictures to learn from and for the limit, in ``folder/parts``; and those to try, good and flawed."""
    for name, group, count in (("train", "train", learn), ("validation", "validation", calibrate)):
        (folder / "parts" / name / "good").mkdir(parents=True)
        for index in range(count):
            image = render_part("bracket", group=group, index=index, size=SIZE)[0]
            save(image, folder / "parts" / name / "good" / f"{index:03d}.jpg")
    (folder / "test").mkdir()
    good, flawed = [], []
    for index in range(test):
        image = render_part("bracket", group="test", index=index, size=SIZE)[0]
        good.append(save(image, folder / "test" / f"{index:03d}-good.jpg"))
        pitted, centre = with_pit(image, np.random.default_rng(index))
        flawed.append(FlawedPart(save(pitted, folder / "test" / f"{index:03d}-pit.jpg"), centre))
    return good, flawed


def save(image: NDArray[np.uint8], path: Path) -> Path:
    Image.fromarray(image).save(path, quality=95)
    return path


def located(inspection: Inspection, centre: tuple[int, int]) -> bool:
    """Whether a region of a rejected image lies where the pit is."""
    x, y = centre
    boxes = (region.box for region in inspection.regions)
    return inspection.verdict == "reject" and any(
        x0 - PIT <= x <= x1 + PIT and y0 - PIT <= y <= y1 + PIT and x1 - x0 < 20 * PIT for x0, y0, x1, y1 in boxes
    )


def try_method(
    method: str, tile: int | None, folder: Path, good: list[Path], flawed: list[FlawedPart]
) -> tuple[list[str], Path]:
    """One row of the table, and the model file."""
    settings: dict[str, Any] = {} if tile is None else {"tile": tile}
    start = time.perf_counter()
    run = flawsmith.train(
        folder / "parts", out=folder / f"{method}-{tile}", method=method, baseline="none", quiet=True, **settings
    )
    trained = time.perf_counter() - start
    inspector = Inspector.load(run.bundle)
    start = time.perf_counter()
    good_results = list(inspector.stream(good))
    flawed_results = list(inspector.stream([part.path for part in flawed]))
    spent = (time.perf_counter() - start) / (len(good) + len(flawed))
    assert all(isinstance(result, Inspection) for result in [*good_results, *flawed_results])
    scores = np.array([result.score for result in (*good_results, *flawed_results)])  # type: ignore[union-attr]
    ranking = auroc(scores, np.arange(len(scores)) >= len(good))
    pits = sum(located(r, part.centre) for r, part in zip(flawed_results, flawed, strict=True))  # type: ignore[arg-type]
    rejected = sum(result.verdict == "reject" for result in flawed_results)  # type: ignore[union-attr]
    false = sum(result.verdict == "reject" for result in good_results)  # type: ignore[union-attr]
    cells = [
        f"{pits} of {len(flawed)}",
        f"{rejected} of {len(flawed)}",
        f"{false} of {len(good)}",
        "–" if ranking is None else f"{ranking:.3f}",
        f"{trained:.0f}",
        f"{spent:.2f}",
    ]
    how = "squashed" if tile is None else f"tiles of {tile}"
    size = "×".join(map(str, run.bundle.spec.geometry.size))
    return [f"{method}, {how}", size, *cells], run.model


def memory(model: Path, folder: Path, sides: list[tuple[int, int]]) -> Iterator[list[str]]:
    """Rows of what inspecting a picture of each size takes, in processes of their own."""
    part = render_part("bracket", size=SIZE)[0]
    for height, width in sides:
        repeats = (math.ceil(height / SIZE[0]), math.ceil(width / SIZE[1]), 1)
        path = save(np.tile(part, repeats)[:height, :width], folder / "large.jpg")
        output = subprocess.run(
            [sys.executable, "-c", MEMORY, str(model), str(path)], check=True, capture_output=True, text=True
        )
        measured = json.loads(output.stdout)
        megapixels = measured["pixels"] / 1e6
        held = measured["bytes"]
        yield [
            f"{width}×{height}",
            f"{megapixels:.0f}",
            f"{held / 1e6:.0f}",
            f"{held / measured['pixels']:.1f}",
            f"{measured['seconds']:.1f}",
        ]


def seam_lines(tiling: Tiling, length: int) -> list[int]:
    """The lines behind which a tile begins to count, counts in full, fades, or counts no more."""
    lines: set[int] = set()
    for tile, weights in zip(tiling.tiles((length, 1)), tiling.weights(length), strict=True):
        whole = np.zeros(length, np.float32)
        whole[tile.top : tile.bottom] = weights
        lines |= set(np.flatnonzero(np.diff((whole > 0).astype(int) + (whole == 1))).tolist())
    return sorted(lines)


def seams(inspector: Inspector, image: NDArray[np.uint8]) -> list[str]:
    """How far neighbouring pixels of the joined map differ, as shares of the tolerance of the parity gate.

    First how much more they differ at the seams than in the tiles' own maps; then everywhere; then what the largest
    difference in the tiles' own maps is.
    """
    tiling, geometry = inspector.spec.tiling, inspector.spec.geometry
    assert isinstance(tiling, Tiling)
    joined, size = inspector.inspect(image).map, (image.shape[0], image.shape[1])
    at_seams = everywhere = largest = 0.0
    for axis in (0, 1):
        steps_of_tiles = np.zeros(np.diff(joined, axis=axis).shape)
        for tile in tiling.tiles(size):
            tile_map = geometry.invert(inspector.raw(np.ascontiguousarray(tile.of(image)))[1], tile.size)
            steps = np.abs(np.diff(tile_map, axis=axis))
            place = tile.of(steps_of_tiles)[: steps.shape[0], : steps.shape[1]]
            np.maximum(place, steps, out=place)
        excess = np.abs(np.diff(joined, axis=axis)) - steps_of_tiles
        at_seams = max(at_seams, float(excess.take(seam_lines(tiling, size[axis]), axis=axis).max()))
        everywhere, largest = max(everywhere, float(excess.max())), max(largest, float(steps_of_tiles.max()))
    allowed = inspector.spec.parity["map_allowed"]
    return [f"{value / allowed:.2g}" for value in (at_seams, everywhere, largest)]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--methods", nargs="+", default=["patchcore", "pbas"])
    arguments.add_argument("--tile", type=int, default=512)
    args = arguments.parse_args()
    learn, calibrate, test = (6, 4, 2) if args.quick else (10, 16, 5)
    with TemporaryDirectory() as name:
        folder = Path(name)
        good, flawed = draw(folder, learn, calibrate, test)
        rows, model = [], None
        for method in args.methods:
            for tile in (None, args.tile):
                row, model = try_method(method, tile, folder, good, flawed)
                print(row, file=sys.stderr)
                rows.append(row)
        assert model is not None
        sides = [(3000, 4000)] if args.quick else [(3000, 4000), (6000, 8000), (10_000, 10_000)]
        taken = list(memory(model, folder, sides))
        inspector = Inspector.load(model)
        tried = {
            "even grey": np.full((1500, 2000, 3), 128, np.uint8),
            "rendered part": np.asarray(Image.open(good[0]))[:1500, :2000].copy(),
        }
        steps = [(title, *seams(inspector, image)) for title, image in tried.items()]
    heads = ["method", "input", "pits found", "rejected", "good rejected", "image AUROC", "training, s", "an image, s"]
    page(
        "tiles",
        "Small flaws in large images",
        [
            f"{learn} good parts of {SIZE[1]}×{SIZE[0]} to learn from, {calibrate} to set the limit, {test} good ones "
            f"and {test} with a pit of {PIT} pixels to try; `fast`, seed 0, no baseline. Rendered parts: they show "
            "that a small flaw is not lost, not how well real ones are found.",
            table(heads, rows),
            f"## Memory\n\nOne JPEG file inspected in tiles of {args.tile} ({args.methods[-1]}), what the process took "
            "beyond the loaded model.\n\n" + table(["image", "megapixels", "MB", "bytes a pixel", "seconds"], taken),
            "## Seams\n\nHow much more neighbouring pixels differ in the joined map than in the maps of the tiles "
            "there, in units of what the parity gate allows a pixel to differ: at the lines where a tile begins or "
            "ends to count or to fade, and anywhere (in the middle of a fade, where the maps of two tiles disagree). "
            "Beside it the largest difference of neighbouring pixels in a tile's own map.\n\n"
            + table(["image", "at seams", "anywhere", "in the tiles' own maps"], steps),
        ],
        write=args.write,
    )


if __name__ == "__main__":
    main()
