"""How well bursts of nearly equal images are told from pictures of different parts that look alike.

Real sets and rendered parts are taken as they are; bursts are made from single pictures: each frame is shifted, made
brighter or darker, gets noise and is stored as JPEG. Of the two real sets that hold bursts the names of the files say
what the truth is; the rule does not see them.
"""

from __future__ import annotations

import io
import re
import resource
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import category_folder, data_root, draw_parts, page, parser, seconds, table
from numpy.typing import NDArray
from PIL import Image

from flawsmith.data.bursts import find_scenes, share_unlike
from flawsmith.runtime.image import as_8_bit, decode

SIZES = ((2, 5), (5, 10), (20, 3), (40, 2), (20, 10))
SINGLE = (15, 4, 60)
"""Scenes, frames of each, and single pictures beside them."""
STRENGTHS = {
    "weak": (0.001, 0.04, 1.0, 90),
    "medium": (0.002, 0.08, 2.0, 85),
    "strong": (0.004, 0.15, 3.0, 80),
}
"""Largest shift as a share of the longer side, change of brightness, noise in grey levels of 255, JPEG quality."""
RENDERED = 300


def main() -> None:
    options = parser(__doc__).parse_args()
    repeats, n_scenes, number = (2, 4, 40) if options.quick else (10, 75, RENDERED)
    with TemporaryDirectory() as name:
        sets = {kind: sorted((category_folder(kind) / "train" / "good").iterdir()) for kind in _REAL}
        for part in ("bracket", "gear"):
            folder = draw_parts(Path(name) / part, number, part=part, size=(160, 192))
            sets[part] = sorted(folder.iterdir())
        sets["dtd (textures)"] = sorted((data_root() / "dtd" / "images").rglob("*.jpg"))
        sections = [_as_taken(sets), _subsets(sets, repeats)]
        made = {kind: sets[kind] for kind in ("screw", "juice_bottle", "bracket", "gear")}
        sections += [_artificial(made, n_scenes, Path(name)), _unlike(sets, repeats), _cost(Path(name), options.quick)]
    page("bursts", "Bursts of nearly equal images", sections, write=options.write)


_REAL = ("screw", "juice_bottle", "magnetic_tile", "ball_screw")


def _truth(kind: str, names: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """(image, image) which pairs surely show one scene, and which surely do not; None where names say nothing."""
    if kind == "magnetic_tile":  # frames are numbered as they were taken, six or so of a tile
        frames = np.array([int(re.findall(r"\d+", name)[1]) for name in names])
        apart = np.abs(np.subtract.outer(frames, frames))
        return apart <= 40, apart > 3000
    if kind == "ball_screw":  # 01_YYMMDDhhmmss_steps_angle: one place on the spindle, hours or days apart
        places = np.array([name.split("_", 2)[2] for name in names])
        same = places[:, None] == places
        return same, ~same
    return None


def _rates(numbers: Sequence[int], same: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, float]:
    """Share of the pairs of one scene that are told, and share of the pairs told that are of different scenes."""
    told = np.triu(np.equal.outer(np.asarray(numbers), np.asarray(numbers)), 1)
    return (told & same).sum() / max(1, np.triu(same, 1).sum()), (told & other).sum() / max(1, told.sum())


def _as_taken(sets: dict[str, list[Path]]) -> str:
    rows = []
    for kind, paths in sets.items():
        numbers = find_scenes(paths)
        row: list[object] = [kind, len(paths), "none", "", "", ""]
        if numbers is not None:
            sizes = np.bincount(numbers)
            row[2:4] = [int((sizes > 1).sum()), f"{sizes[sizes > 1].sum() / len(paths):.0%}"]
            truth = _truth(kind, [path.name for path in paths])
            if truth is not None:
                row[4:] = [f"{rate:.0%}" for rate in _rates(numbers, *truth)]
        rows.append(row)
    heads = ("training images", "number", "scenes", "images in them", "pairs of a scene found", "pairs found in error")
    return "## As they were taken\n\n" + table(heads, rows)


def _subsets(sets: dict[str, list[Path]], repeats: int) -> str:
    rng, rows = np.random.default_rng(0), []
    for kind in ("screw", "juice_bottle", "bracket", "gear", "dtd (textures)"):
        row: list[object] = [kind]
        for number in (20, 50, 150):
            chosen = [sorted(rng.permutation(len(sets[kind]))[:number]) for _ in range(repeats)]
            row.append(sum(find_scenes([sets[kind][index] for index in each]) is not None for each in chosen))
        rows.append(row)
    heads = ("drawn from", "20 images", "50 images", "150 images")
    return f"## False alarms\n\nRandom parts of sets without bursts, of {repeats} draws.\n\n" + table(heads, rows)


def _frame(pixels: NDArray[np.uint8], strength: str, rng: np.random.Generator) -> bytes:
    shift, gain, noise, quality = STRENGTHS[strength]
    most = max(1, round(shift * max(pixels.shape)))
    down, right = rng.integers(-most, most + 1, 2)
    height, width = pixels.shape[:2]
    wide = np.pad(pixels, ((most, most), (most, most), (0, 0)), mode="edge")
    moved = wide[most + down : most + down + height, most + right : most + right + width]
    values = moved * rng.uniform(1 - gain, 1 + gain) + rng.normal(0, noise, moved.shape)
    stream = io.BytesIO()
    Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def _artificial(sets: dict[str, list[Path]], n_scenes: int, work: Path) -> str:
    rows = []
    for kind, paths in sets.items():
        rng = np.random.default_rng(0)
        scenes = [as_8_bit(decode(paths[index]), None) for index in rng.permutation(len(paths))[:n_scenes]]
        for strength in STRENGTHS:
            folder = work / f"{kind} {strength}"
            folder.mkdir()
            row: list[object] = [kind, strength]
            files: dict[tuple[int, int], Path] = {}
            for n, frames, single in (*((n, frames, 0) for n, frames in SIZES), SINGLE):
                keys = [(scene, frame) for scene in range(min(n, len(scenes))) for frame in range(frames)]
                keys += [(scene, 0) for scene in range(n, min(n + single, len(scenes)))]
                for scene, frame in keys:
                    if (scene, frame) not in files:
                        files[scene, frame] = folder / f"{scene}_{frame}.jpg"
                        files[scene, frame].write_bytes(_frame(scenes[scene], strength, rng))
                truth = np.array([scene for scene, _ in keys])
                numbers = find_scenes([files[key] for key in keys])
                same = truth[:, None] == truth
                row.append("none" if numbers is None else " / ".join(f"{r:.0%}" for r in _rates(numbers, same, ~same)))
            rows.append(row)
    heads = ("scenes of", "change", *(f"{n} × {frames}" for n, frames in SIZES), "15 × 4 and 60 single")
    words = "; ".join(
        f"{name}: up to {shift:.1%} of the longer side, brightness ± {gain:.0%}, noise {noise:g}, JPEG {quality}"
        for name, (shift, gain, noise, quality) in STRENGTHS.items()
    )
    return (
        "## Bursts made from single pictures\n\nScenes × frames; pairs of a scene found / pairs found in error. "
        f"{words}.\n\n{table(heads, rows)}"
    )


def _unlike(sets: dict[str, list[Path]], repeats: int) -> str:
    rng, rows = np.random.default_rng(0), []
    for kind, paths in sets.items():
        drawn = []
        for _ in range(repeats):
            order = rng.permutation(len(paths))
            drawn.append(share_unlike([paths[i] for i in order[:20]], [paths[i] for i in order[20:170]]))
        real = ""
        if kind in _REAL:
            tested = sorted((category_folder(kind) / "test" / "good").iterdir())
            real = f"{share_unlike(tested, paths):.2f}"
        rows.append([kind, f"{np.mean(drawn):.2f}", f"{max(drawn):.2f}", real])
    heads = ("set", "20 random images, mean", f"most of {repeats}", "good test images")
    return "## Images taken unlike the training's\n\n`doctor` warns above 0.33.\n\n" + table(heads, rows)


def _cost(work: Path, quick: bool) -> str:
    number = 200 if quick else 1000
    folder = work / "cost"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1600, 3)).astype(np.uint8)
    picture = Image.fromarray(noise).resize((400, 300)).resize((1600, 1200))
    rows = []
    for ending in ("png", "jpg"):
        picture.save(folder / f"0.{ending}")
        paths = [folder / f"{ending}_{index}.{ending}" for index in range(number // 10)]
        for path in paths:
            path.write_bytes((folder / f"0.{ending}").read_bytes())
        spent = seconds(partial(find_scenes, paths))
        rows.append([f"1600 × 1200, {ending}", len(paths), f"{1000 * spent / len(paths):.1f}"])
    small = [folder / f"small_{index}.png" for index in range(4 * number)]
    rng = np.random.default_rng(0)
    for path in small:
        Image.fromarray(rng.integers(0, 255, (64, 64)).astype(np.uint8)).save(path, compress_level=1)
    spent = seconds(partial(find_scenes, small))
    rows.append(["64 × 64, png (the comparison alone)", len(small), f"{1000 * spent / len(small):.1f}"])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    heads = ("images", "number", "seconds for 1,000")
    return f"## Cost\n\n{table(heads, rows)}\n\nLargest memory of the process {most:.1f} GB."


if __name__ == "__main__":
    main()
