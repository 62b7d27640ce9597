"""What synthesis costs: masks against a plain implementation, whole synthetic images in worker processes, and
fall-backs.

The yardstick for masks is the generator that the methods' released code shares, written plainly: one image at a time,
gradients repeated over the cells of the lattice in float64, four dot products blended by the fade, then an affine warp
by OpenCV. The same noise comes out of both, which is checked before anything is timed. Whole images are synthesized by
two worker processes with one thread each and returned to this process, as training takes them.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from common import category_folder, data_root, milliseconds, page, paired, parser, table
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from flawsmith.data.layouts import load
from flawsmith.data.seeding import generator
from flawsmith.pipeline.synthesize import SynthesisContext, SynthesisSettings, open_synthesis
from flawsmith.runtime.image import decode
from flawsmith.synthesis.blend import FloatImage
from flawsmith.synthesis.masks import EXPONENTS, MAX_ROTATION, THRESHOLD, gradient_noise, noise_field
from flawsmith.synthesis.recipes import RECIPES

SIDE = 256
CELLS = (32, 32)
WORKERS = 2
BATCH = 32
IN_MEMORY = 32
CATEGORY = "screw"
MASK_MARK, IMAGE_MARK = 10, 100

Noise = NDArray[np.float64]


def plain_noise(shape: tuple[int, int], angles: Noise) -> Noise:
    """Gradient noise as it is usually written; sides must be multiples of the lattice."""
    down, across = angles.shape[0] - 1, angles.shape[1] - 1
    cell = shape[0] // down, shape[1] // across
    y, x = np.mgrid[: shape[0], : shape[1]]
    offset = np.stack([y / cell[0] % 1, x / cell[1] % 1], axis=-1)
    gradients = np.stack([np.cos(angles), np.sin(angles)], axis=-1)

    def corner(row: int, column: int) -> Noise:
        block = gradients[row : row + down, column : column + across]
        repeated = np.repeat(np.repeat(block, cell[0], axis=0), cell[1], axis=1)
        return (repeated * (offset - (row, column))).sum(axis=-1)

    fade = 6 * offset**5 - 15 * offset**4 + 10 * offset**3
    upper = corner(0, 0) + (corner(0, 1) - corner(0, 0)) * fade[..., 1]
    lower = corner(1, 0) + (corner(1, 1) - corner(1, 0)) * fade[..., 1]
    return math.sqrt(2) * (upper + (lower - upper) * fade[..., 0])


def plain_mask(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """One mask: noise, turned by an affine warp, above the threshold."""
    down, across = (2**e for e in rng.integers(*EXPONENTS, size=2).tolist())
    noise = plain_noise(shape, rng.uniform(0, 2 * math.pi, (down + 1, across + 1)))
    degrees = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    turn = cv2.getRotationMatrix2D(((shape[1] - 1) / 2, (shape[0] - 1) / 2), -degrees, 1.0)
    return cv2.warpAffine(noise, turn, shape[::-1], flags=cv2.INTER_LINEAR) > THRESHOLD


def same_noise() -> float:
    """Largest difference between the plain noise and ours over lattices of all resolutions."""
    rng, worst = np.random.default_rng(0), 0.0
    for exponent in range(*EXPONENTS):
        angles = rng.uniform(0, 2 * math.pi, (2**exponent + 1, 2 ** (5 - exponent) + 1))
        plain, ours = plain_noise((SIDE, SIDE), angles), gradient_noise((SIDE, SIDE), angles)
        worst = max(worst, float(np.abs(plain - ours).max()))
    if worst > 1e-9:
        raise SystemExit(f"the yardstick's noise differs from ours by {worst:g}: the comparison would mean nothing")
    return worst


def masks(pairs: int) -> str:
    """Ours against the plain implementation; each run makes a batch of masks, one at a time."""
    shape = (SIDE, SIDE)
    runs: Iterator[int] = iter(range(1 << 30))

    def seeds() -> list[np.random.Generator]:
        run = next(runs)
        return [np.random.default_rng((run, number)) for number in range(BATCH)]

    timed = paired(
        lambda: [noise_field(shape, rng) > THRESHOLD for rng in seeds()],
        lambda: [plain_mask(shape, rng) for rng in seeds()],
        pairs=pairs,
    )
    ours_ms, plain_ms = (milliseconds(median / BATCH) for median in timed.medians)
    return table(("ours, ms a mask", "plain, ms a mask", "plain / ours"), [(ours_ms, plain_ms, timed.ratio_text())])


@dataclass(frozen=True)
class Job:
    """What a worker process synthesizes: a workshop, and good images in memory."""

    workshop: SynthesisContext
    images: tuple[FloatImage, ...]

    def synthesize(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """One synthetic image, as training takes it, and its mask."""
        synthetic = self.workshop.synthesizer.synthesize(
            self.images[index % len(self.images)], generator(0, "benchmark", index)
        )
        return np.rint(synthetic.image * 255).astype(np.uint8), synthetic.mask


_job: list[Job] = []


def _start(job: Job) -> None:
    # As the workers of training: threads of their libraries would only take turns.
    cv2.setNumThreads(0)
    threadpool_limits(1)
    _job[:] = [job]


def _synthesize(index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    return _job[0].synthesize(index)


def job(category: Path, ingredients: SynthesisSettings) -> Job:
    """A workshop on a category, at the size of training."""
    workshop = open_synthesis(load(category), ingredients, size=(SIDE, SIDE))
    images = (workshop.reader.as_float(decode(file)) for file in workshop.reader.files[:IN_MEMORY])
    return Job(workshop, tuple(images))


def throughput(category: Path, sources: dict[str, str | Path], images: int, repeats: int) -> str:
    """Synthetic images a second, with two workers and with one process alone."""
    rows = []
    for name, textures in sources.items():
        work = job(category, SynthesisSettings("glass", textures))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(WORKERS, context, initializer=_start, initargs=(work,)) as pool:
            # The first call waits for interpreters to start and for imports.
            list(pool.map(_synthesize, range(4 * WORKERS)))
            rates = [_rate(pool, 1000 * (1 + run), images) for run in range(repeats)]
        _start(work)
        start = time.perf_counter()
        for index in range(images // 4):
            _synthesize(1_000_000 + index)
        alone = (images // 4) / (time.perf_counter() - start)
        rows.append((name, f"{statistics.median(rates):.0f}", f"{min(rates):.0f} to {max(rates):.0f}", f"{alone:.0f}"))
    return table(("textures", f"images a second, {WORKERS} workers", "range", "one process"), rows)


def _rate(pool: ProcessPoolExecutor, first: int, number: int) -> float:
    start = time.perf_counter()
    for _ in pool.map(_synthesize, range(first, first + number), chunksize=8):
        pass
    return number / (time.perf_counter() - start)


def fall_backs(category: Path, samples: int) -> str:
    """Tries and fall-backs of each recipe, with and without a foreground."""
    rows = []
    for foreground in ("none", "auto"):
        for recipe in RECIPES:
            work = job(category, SynthesisSettings(recipe, foreground=foreground))
            synthesizer = replace(work.workshop.synthesizer, grid=CELLS)
            tries, fallbacks, normal = 0, 0, 0
            for index in range(samples):
                image = work.images[index % len(work.images)]
                synthetic = synthesizer.synthesize(image, generator(1, "benchmark", index))
                tries, normal = tries + synthetic.tries, normal + (synthetic.tries == 0)
                fallbacks += synthetic.fallback is not None
            mean = tries / max(samples - normal, 1)
            rows.append((f"{recipe}, foreground {foreground}", f"{mean:.2f}", f"{100 * fallbacks / samples:.2f}"))
    return table(("recipe", "mean tries a flaw", "fallback rate, %"), rows)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--pairs", type=int, default=30)
    arguments.add_argument("--images", type=int, default=600, help="synthetic images in each of five runs")
    arguments.add_argument("--category", default=CATEGORY, help="good images to synthesize on")
    args = arguments.parse_args()
    pairs, images, repeats, samples = (3, 40, 1, 40) if args.quick else (args.pairs, args.images, 5, 2000)
    cv2.setNumThreads(1)
    category, dtd = category_folder(args.category), data_root() / "dtd"
    sources: dict[str, str | Path] = {"folder (DTD)": dtd, "procedural": "procedural", "self": "self"}
    threads = os.environ.get("OMP_NUM_THREADS", "as many as cores")
    sections = [
        f"Recipe `glass` at {SIDE}×{SIDE} on good images of `{args.category}`, OMP_NUM_THREADS: {threads}.",
        f"## Masks\n\nMark: at least {MASK_MARK} times faster than the plain implementation. {pairs} alternating pairs "
        f"of {BATCH} masks; largest difference of the noise itself: {same_noise():.1e}.\n\n{masks(pairs)}",
        f"## Whole images\n\nMark: at least {IMAGE_MARK} a second with {WORKERS} workers. Textures, operations, mask, "
        f"overlay and the way back to this process included; {repeats} runs of {images} images.\n\n"
        f"{throughput(category, sources, images, repeats)}",
        f"## Tries and fall-backs\n\n{samples} samples each, procedural textures, a grid of {CELLS[0]}×{CELLS[1]} "
        f"cells. Fallen back: no mask counted within the recipe's tries.\n\n{fall_backs(category, samples)}",
    ]
    page("synthesis", "What synthesis flaws costs", sections, write=args.write)


if __name__ == "__main__":
    main()
