"""PatchCore and PaDiM against anomalib on the same feature maps: accuracy by the same exact metrics.

Level maps of the packaged backbone at 256 pixels, squashed, are computed once and given to both sides. anomalib runs in
an environment of its own (--peer-python; `pip install anomalib==2.7.0` there). Both draw at random: PatchCore the first
patch and the projection, PaDiM the channels. Seeds are therefore means on both sides, and each side is also run on the
other's draw, where only the arithmetic can differ.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent))
from common import category_folder, page, parser, table

CATEGORIES = ("screw", "juice_bottle", "magnetic_tile")
SIZE = (256, 256)
STRIDES = (4, 8, 16)
FIGURES = ("image_auroc", "pixel_auroc", "aupro")
PEER = Path(__file__).with_name("given_features.py")
Row = dict[str, Any]
OURS, THEIRS, SAME = "Flawsmith", "anomalib", "Flawsmith on anomalib's draw"


class Table:
    """Level maps in memory, as a method's source of features (methods.base.FeatureSource)."""

    def __init__(self, levels: Sequence[np.ndarray]) -> None:
        self._levels = levels
        self.channels = tuple(level.shape[1] for level in levels)
        self.grids = tuple((level.shape[2], level.shape[3]) for level in levels)

    def __len__(self) -> int:
        return len(self._levels[0])

    def batch(self, rows: Any) -> list[Any]:
        import torch

        return [torch.from_numpy(level[rows]) for level in self._levels]


class Data:
    """What a single pass asks of its training data."""

    def __init__(self, levels: Sequence[np.ndarray]) -> None:
        self._table = Table(levels)

    def features(self) -> Table:
        return self._table


class NoFolder:
    """A run that keeps nothing on disk."""

    def once(self, name: str, compute: Any) -> Any:
        return compute()


def extracted(category: str, n_train: int, part: str) -> tuple[dict[str, np.ndarray], Any]:
    """Level maps of training and test images, and the test samples."""
    from flawsmith.data.layouts import load
    from flawsmith.data.splits import half, hold_out
    from flawsmith.features.backbones import load_backbone
    from flawsmith.features.extract import extract, make_extractor
    from flawsmith.runtime.image import decode

    dataset, backbone = load(category_folder(category)), load_backbone(strides=STRIDES)
    tests = [sample for sample in dataset.test if part == "whole" or half(sample) == part]
    extractor, fitting, levels = make_extractor(backbone, SIZE), geometry(), {}
    for name, samples in (("train", hold_out(dataset.good_train, 0).train[:n_train]), ("test", tests)):
        images = (fitting.apply(decode(sample.image)) for sample in samples)
        for number, level in enumerate(zip(*extract(extractor, images), strict=True)):
            levels[f"{name}_{number}"] = np.stack(level)
    return levels, tests


def geometry() -> Any:
    from flawsmith.features.backbones import load_backbone
    from flawsmith.runtime.geometry import Geometry

    info = load_backbone(strides=STRIDES).info
    return Geometry(size=SIZE, mean=info.mean, std=info.std)


def figures(maps: np.ndarray, scores: np.ndarray, samples: Sequence[Any]) -> dict[str, float]:
    """The exact figures of one model, maps restored to original pixels."""
    from flawsmith.metrics.collect import ScoredImage, accumulate
    from flawsmith.metrics.summary import summarise
    from flawsmith.pipeline.masks import read_mask
    from flawsmith.runtime.image import decode

    frame = geometry()

    def records() -> Iterator[ScoredImage]:
        for sample, low, score in zip(samples, maps, scores, strict=True):
            shape = decode(sample.image).shape[:2]
            mask = read_mask(sample) if sample.is_flawed else None
            restored = frame.invert(low, shape)
            yield ScoredImage(
                str(sample.image), float(score), "pass", sample.defect, sample.is_flawed, map=restored, mask=mask
            )

    evaluation = summarise(accumulate(records()), n_resamples=0)
    return {name: float(getattr(evaluation, name)) for name in FIGURES}


def ours(name: str, levels: Mapping[str, np.ndarray], seed: int, draw: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
    """Maps, scores and training seconds of our method, on a given draw if there is one, and our own draw.

    Args:
        name: of the method.
        levels: level maps.
        seed: of the method.
        draw: PatchCore's memory, or PaDiM's channels, instead of the method's own.
    """
    import torch

    from flawsmith.features.backbones import load_backbone
    from flawsmith.models.padim.model import ChosenChannels
    from flawsmith.models.registry import find_method

    used = used_levels(name)
    backbone = load_backbone(strides=[STRIDES[number] for number in used])
    config = find_method(name).presets["fast"]
    if name == "patchcore":
        config = config.model_copy(update={"least_rows": 1})  # as many as anomalib keeps, however few images there are
    method: Any = find_method(name)(config, backbone, seed)
    if "channels" in draw:
        method._embedding = ChosenChannels(backbone.channels, backbone.grids(SIZE), np.sort(draw["channels"]))
    start = time.perf_counter()
    if "memory" in draw:
        method._memory = torch.from_numpy(draw["memory"])
    else:
        for stage in method.stages():
            stage.fit(Data([levels[f"train_{number}"] for number in used]), NoFolder())
    seconds = time.perf_counter() - start
    detector, maps, scores = method.network(), [], []
    with torch.inference_mode():
        for row in range(len(levels["test_0"])):
            output = detector.from_levels([torch.from_numpy(levels[f"test_{number}"][[row]]) for number in used])
            maps.append(output.map[0].numpy())
            scores.append(float(output.score[0]))
    return np.stack(maps), np.array(scores), seconds


def used_levels(name: str) -> list[int]:
    """Which of the extracted levels a method's preset uses."""
    from flawsmith.models.registry import find_method

    return [STRIDES.index(stride) for stride in find_method(name).presets["fast"].strides]


def theirs(python: str, arrays: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """anomalib's answer to level maps and settings, computed in its own environment."""
    question, answer = folder / "question.npz", folder / "answer.npz"
    np.savez(question, **arrays)  # type: ignore[arg-type]
    done = subprocess.run([python, str(PEER), str(question), str(answer)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"anomalib failed ({done.returncode}):\n{done.stderr[-4000:]}")
    with np.load(answer, allow_pickle=False) as file:
        return dict(file)


def compared(category: str, seed: int, args: Any, levels: dict[str, np.ndarray], samples: Any) -> list[Row]:
    """All rows of one category and seed."""
    from flawsmith.models.registry import find_method

    count = find_method("padim").presets["fast"].channels  # type: ignore[attr-defined]
    ratio = find_method("patchcore").presets["fast"].coreset_ratio  # type: ignore[attr-defined]
    settings = {
        "image_size": np.array(SIZE),
        "seed": np.array(seed),
        "coreset_ratio": np.array(ratio),
        "channel_count": np.array(count),
        **{f"{name}_levels": np.array(used_levels(name)) for name in ("patchcore", "padim")},
    }
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        peer = theirs(args.peer_python, {**levels, **settings}, Path(folder))
    rows = []
    draws = {"patchcore": {"memory": peer["patchcore_memory"]}, "padim": {"channels": peer["padim_channels"]}}
    for name, draw in draws.items():
        sides = {
            OURS: ours(name, levels, seed, {}),
            THEIRS: (peer[f"{name}_map"], peer[f"{name}_score"], float(peer[f"{name}_seconds"])),
            SAME: ours(name, levels, seed, draw),
        }
        for side, (maps, scores, seconds) in sides.items():
            values = figures(maps, scores, samples)
            rows.append(
                {"method": name, "category": category, "seed": seed, "side": side, "seconds": seconds, **values}
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def summary(rows: Sequence[Row]) -> str:
    """A row a method, category and side: means over seeds in per cent, and the difference to anomalib in points."""
    lines = []
    for method in ("patchcore", "padim"):
        for category in dict.fromkeys(row["category"] for row in rows):
            means = {
                side: [
                    np.mean([100 * row[name] for row in rows if _is(row, method, category, side)]) for name in FIGURES
                ]
                for side in (THEIRS, OURS, SAME)
            }
            for side, values in means.items():
                cells = [row for row in rows if _is(row, method, category, side)]
                texts = [
                    f"{value:.2f}" + ("" if side == THEIRS else f" ({value - other:+.2f})")
                    for value, other in zip(values, means[THEIRS], strict=True)
                ]
                spread = np.std([100 * row["image_auroc"] for row in cells])
                seconds = "" if side == SAME else f"{np.mean([row['seconds'] for row in cells]):.1f}"
                lines.append((method, category, side, *texts, f"{spread:.2f}", seconds))
    heads = ("method", "category", "side", "image AUROC", "pixel AUROC", "AUPRO", "sd of image AUROC", "learning, s")
    return table(heads, lines)


def _is(row: Row, method: str, category: str, side: str) -> bool:
    return (row["method"], row["category"], row["side"]) == (method, category, side)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--peer-python", required=True, help="the interpreter of an environment with anomalib")
    arguments.add_argument("--categories", nargs="+", default=list(CATEGORIES))
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments.add_argument("--n-train", type=int, default=200, help="training images")
    arguments.add_argument("--part", choices=("A", "B", "whole"), default="whole", help="of the test set")
    arguments.add_argument("--work", type=Path, default=Path("results-baselines"), help="where finished rows are kept")
    args = arguments.parse_args()
    if args.quick:
        args.categories, args.seeds, args.n_train = args.categories[:1], args.seeds[:1], 10
    args.work.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for category in args.categories:
        levels: dict[str, np.ndarray] = {}
        for seed in args.seeds:
            file = args.work / f"{category}-{args.part}-{args.n_train}-{seed}.json"
            if not file.exists():
                if not levels:
                    levels, samples = extracted(category, args.n_train, args.part)
                file.write_text(json.dumps(compared(category, seed, args, levels, samples)))
            rows += json.loads(file.read_text())
    text = (
        f"Backbone `efficientnet_lite0`, 256×256 pixels squashed, the first {args.n_train} training images of the "
        f"hold-out split, {'the whole test set' if args.part == 'whole' else 'half ' + args.part} of each category, "
        f"seeds {', '.join(map(str, args.seeds))}; preset `fast` (PatchCore with "
        "`least_rows=1`), anomalib 2.7.0 with the same levels, a coreset of 1 % and as many channels; `--peer-python` "
        "names its interpreter. Both sides get the same feature maps, and both sides' maps, in original pixels, the "
        "same exact metrics. In brackets: points above or below anomalib. “On anomalib's draw” is our arithmetic on "
        "anomalib's memory, or on the same random channels; what remains is the scoring. Learning is the coreset or "
        "the Gaussians from features in memory."
    )
    page("baselines", "PatchCore and PaDiM against anomalib", [text, summary(rows)], write=args.write)


if __name__ == "__main__":
    main()
