"""Time of the exact AUPRO, and time and memory of evaluating many large maps: every figure with its interval."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import milliseconds, page, parser, seconds, table
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from flawsmith.benchmark.executors import run_measured
from flawsmith.metrics.accumulate import PixelMetrics
from flawsmith.metrics.collect import ScoredImage, ScoredMask
from flawsmith.metrics.pro import aupro, label_regions
from flawsmith.metrics.protocol import CLEAN, papers
from flawsmith.metrics.summary import evaluate_images

SIDE = 288
MAPS, REGIONS = 100, 30
LARGE_SIDE, LARGE_MAPS = 1024, 1000
SHARE_FLAWED = 0.5

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]


def scene(side: int, regions: int, rng: np.random.Generator) -> tuple[Map, Mask]:
    """A smooth random map, higher on discs that the mask marks; as in real ones, no two values are equal."""
    grid = gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), 4)
    mask = np.zeros((side, side), dtype=bool)
    rows, columns = np.ogrid[:side, :side]
    for _ in range(regions):
        row, column, radius = rng.integers(0, side), rng.integers(0, side), rng.integers(3, max(4, side // 24))
        mask |= (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    return grid + np.float32(0.1) * mask + rng.random((side, side), dtype=np.float32) * np.float32(1e-4), mask


def small_maps() -> tuple[list[Map], list[Mask | None], int]:
    """100 maps with 30 annotated regions in all, on every third image or so."""
    rng = np.random.default_rng(0)
    maps: list[Map] = []
    masks: list[Mask | None] = []
    regions = 0
    while len(maps) < MAPS:
        grid, mask = scene(SIDE, 1 if regions < REGIONS else 0, rng)
        maps.append(grid)
        regions += label_regions(mask)[1]
        masks.append(mask if mask.any() else None)
    return maps, masks, regions


def crowded_maps() -> tuple[list[Map], list[Mask | None], int]:
    """100 maps with about 30 regions each."""
    rng = np.random.default_rng(1)
    drawn = [scene(SIDE, REGIONS, rng) for _ in range(MAPS)]
    return [grid for grid, _ in drawn], [mask for _, mask in drawn], sum(label_regions(mask)[1] for _, mask in drawn)


def aupro_rows(repeats: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, make in (("30 regions in all", small_maps), ("about 30 regions a map", crowded_maps)):
        maps, masks, regions = make()
        times = [seconds(partial(aupro, maps, masks)) for _ in range(repeats + 1)][1:]
        spread = f"{milliseconds(min(times))} to {milliseconds(max(times))}"
        rows.append((name, str(regions), milliseconds(statistics.median(times)), spread))
    return rows


def large_scenes(number: int, side: int) -> Iterator[tuple[Map, Mask | None]]:
    """Maps in the order in which an evaluation meets them, made one at a time from a few drawn ones."""
    rng = np.random.default_rng(2)
    drawn = [scene(side, 5, rng) for _ in range(8)]
    for index in range(number):
        grid, mask = drawn[index % len(drawn)]
        shifted = np.roll(grid, index, axis=1) + np.float32(1e-6 * index)
        yield shifted, np.roll(mask, index, axis=1) if index < SHARE_FLAWED * number else None


def pool(number: int, side: int) -> dict[str, float | int | None]:
    """Pool maps and compute every pixel figure; seconds without those of drawing the maps."""
    adding = 0.0
    with PixelMetrics() as pixels:
        for grid, mask in large_scenes(number, side):
            start = time.perf_counter()
            pixels.update(grid, mask)
            adding += time.perf_counter() - start
        start = time.perf_counter()
        figures = pixels.compute()
        computing = time.perf_counter() - start
    return {"adding": adding, "computing": computing, "regions": len(figures.region_area), "aupro": figures.overlap}


def evaluate(number: int, side: int, protocol: str) -> dict[str, float | int | None]:
    """Evaluate maps as ``flawsmith evaluate`` does once images are inspected: every figure, 1,000 resamples.

    Seconds, by the clock and of the processor, are without those of drawing the maps.
    """
    drawing = np.zeros(2)

    def images() -> Iterator[ScoredImage]:
        nonlocal drawing
        start = clocks()
        for index, (grid, mask) in enumerate(large_scenes(number, side)):
            flawed = mask is not None
            view = ScoredMask(grid, None if mask is None else mask.astype(np.float32))
            name, score = f"{index:04d}", float(grid.max())
            image = ScoredImage(name, score, "pass", "disc" if flawed else "good", flawed, grid, mask, network=view)
            drawing += clocks() - start
            yield image
            start = clocks()

    start = clocks()
    rules = CLEAN if protocol == "clean" else papers("glass", "mvtec")
    figures = evaluate_images(images(), protocol=rules, saturated=False)
    wall, processor = clocks() - start - drawing
    missing = [
        name
        for name in ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro")
        if getattr(figures, name) is None or name not in figures.intervals
    ]
    assert not missing, missing
    regions = sum(result.n_regions for result in figures.by_defect.values())
    return {"wall": wall, "processor": processor, "regions": regions, "aupro": figures.aupro}


def clocks() -> NDArray[np.float64]:
    """Seconds by the clock and of this process's processor time, from some moment on."""
    return np.array([time.perf_counter(), time.process_time()])


def measured_apart(*arguments: object) -> tuple[dict[str, Any], int]:
    """What this script answers in a process of its own, and that process's private memory in bytes."""
    with TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        measured = run_measured([sys.executable, __file__, *map(str, arguments), str(answer)])
        if measured.returncode:
            raise SystemExit(measured.stderr)
        return json.loads(answer.read_text()), measured.peak_bytes


def pooling_rows(sizes: list[tuple[int, int]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for number, side in sizes:
        answer, memory = measured_apart("--pool", number, side)
        rows.append(
            (
                f"{number} maps of {side}×{side}",
                str(answer["regions"]),
                f"{answer['adding']:.1f}",
                f"{answer['computing']:.1f}",
                f"{memory / 1e9:.2f}",
                f"{4e-9 * number * side**2:.2f}",
            )
        )
    return rows


def evaluation_rows(number: int, side: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for protocol, label in (("clean", "clean"), ("papers", "papers, as of GLASS")):
        answer, memory = measured_apart("--evaluate", number, side, protocol)
        times = f"{answer['wall']:.0f}", f"{answer['processor']:.0f}"
        rows.append((f"{number} maps of {side}×{side}", label, *times, f"{memory / 1e9:.2f}"))
    return rows


def main() -> None:
    arguments: argparse.ArgumentParser = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=9)
    options = arguments.parse_args()
    exact = aupro_rows(2 if options.quick else options.repeats)
    sizes = [(20, 256), (40, 256)] if options.quick else [(100, LARGE_SIDE), (LARGE_MAPS, LARGE_SIDE)]
    sections = [
        f"## Exact AUPRO of {MAPS} maps of {SIDE}×{SIDE}\n\nFrom arrays to the figure: labelling, sorting and counting "
        "included, every distinct score a threshold.\n\n"
        + table(("maps", "regions", "median, ms", "fastest to slowest, ms"), exact),
        "## All pixel figures, pooled map by map\n\nAUROC, AP, AUPRO and the counts behind curves and intervals; half "
        "of the images are flawed, five discs each. Private memory is the largest anonymous memory of the process.\n\n"
        + table(
            ("pooled", "regions", "adding, s", "computing, s", "private memory, GB", "all maps in memory would be, GB"),
            pooling_rows(sizes),
        ),
        "## The whole evaluation\n\nFrom inspected images to the finished evaluation, through `evaluate_images`: "
        "every figure of images and pixels, by defect too, with intervals from 1,000 resamples. The maps are the same; "
        "processor seconds leave out what other programs took.\n\n"
        + table(
            ("evaluated", "protocol", "seconds", "processor seconds", "private memory, GB"), evaluation_rows(*sizes[-1])
        ),
    ]
    page("metrics", "Time and memory of the metrics", sections, write=options.write)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--pool"]:
        Path(sys.argv[-1]).write_text(json.dumps(pool(int(sys.argv[2]), int(sys.argv[3]))))
    elif sys.argv[1:2] == ["--evaluate"]:
        Path(sys.argv[-1]).write_text(json.dumps(evaluate(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
    else:
        main()
