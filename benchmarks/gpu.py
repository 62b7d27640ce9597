"""What a GPU gives beside the CPU: training, features, inspection, and the parity of every form; minutes on one GPU.

Where there is no GPU the CPU's half is measured, and the page says so. Images are drawn, so that nothing has to be
there: times and parity are the subject, accuracy is not.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import draw_parts, page, parser, seconds, table

import flawsmith
from flawsmith.features.backbones import load_backbone
from flawsmith.features.extract import Precision, TorchExtractor
from flawsmith.pipeline.describe import compare_devices
from flawsmith.pipeline.export import TARGETS, export_bundle
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.devices import DEVICES, DeviceName, choose_device
from flawsmith.runtime.engine import make_engine
from flawsmith.runtime.errors import FlawsmithError

METHODS = ("pbas", "glass", "aand")
BACKBONES = ("efficientnet_lite0", "wide_resnet50_2@random")
BATCHES = (1, 16)
_NOT_HERE = "not run here"
_SIDE = 256


def devices_here() -> list[DeviceName]:
    """The CPU, and what ONNX Runtime finds beside it."""
    found: list[DeviceName] = []
    for device in DEVICES:
        try:
            found.append(choose_device(device))
        except FlawsmithError:
            continue
    return found


def training(data: Path, work: Path, epochs: int) -> str:
    """Seconds of the steps of a training by method, on the CPU and on the GPU, features with their own engine each."""
    rows = []
    for method in METHODS:
        spent = {}
        for accelerator in ("cpu", "gpu"):
            if accelerator == "gpu" and not torch.cuda.is_available():
                continue
            folder = work / f"{method}-{accelerator}"
            changes: dict[str, Any] = {"method": method, "preset": "fast", "set": {"epochs": epochs}}
            changes["engine"] = "torch" if accelerator == "gpu" else "onnxruntime"
            flawsmith.train(data, out=folder, accelerator=accelerator, baseline="none", quiet=True, **changes)
            steps = json.loads((folder / "run.json").read_text(encoding="utf-8"))["seconds"]
            spent[accelerator] = {name.removeprefix("stage "): value for name, value in steps.items()}
        rows += [
            (method, step, f"{value:.1f}", f"{spent['gpu'][step]:.1f}" if "gpu" in spent else _NOT_HERE)
            for step, value in spent["cpu"].items()
        ]
    return table(("method", "step", "CPU, s", "GPU, s"), rows)


def _rate(work: Callable[[], object], count: int, repeats: int) -> str:
    work()
    return f"{count / statistics.median(seconds(work) for _ in range(repeats)):.0f}"


def features(repeats: int) -> str:
    """Images a second through bare backbones in torch."""
    rows: list[Sequence[object]] = []
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    batch = np.random.default_rng(0).standard_normal((BATCHES[-1], 3, _SIDE, _SIDE)).astype(np.float32)
    for name in BACKBONES:
        for precision in precisions:
            rates = [_NOT_HERE, _NOT_HERE]
            for place, device in enumerate(("cpu", "cuda")):
                if device == "cpu" or torch.cuda.is_available():
                    extractor = TorchExtractor(load_backbone(name, strides=(8, 16)), precision, device)
                    rates[place] = _rate(lambda: extractor(batch), len(batch), repeats)  # noqa: B023, called here
            rows.append((name.partition("@")[0], precision, *rates))
    return table(("backbone", "precision", "CPU, images a second", "GPU"), rows)


def inspection(model: Path, repeats: int) -> str:
    """Images a second through a detector, by device and batch, the copies to the device included."""
    bundle = Bundle.load(model)
    size = bundle.spec.geometry.size
    here, rows = devices_here(), []
    for device in DEVICES:
        rates = [_NOT_HERE] * len(BATCHES)
        if device in here:
            engine = make_engine("onnxruntime", bundle.model, device=device)
            for place, number in enumerate(BATCHES):
                batch = np.zeros((number, 3, *size), np.float32)
                rates[place] = _rate(lambda: engine.run(batch), number, repeats)  # noqa: B023, called here
        rows.append((device, *rates))
    return table(("device", *(f"batch {number}, images a second" for number in BATCHES)), rows)


def parity(model: Path, data: Path) -> str:
    """Differences of every form and of every device to the CPU in float32."""
    rows: list[Sequence[object]] = []
    for target in list(TARGETS)[1:]:
        result = export_bundle(model, target, into=True, images=data, max_loss=0.5)
        gate = result.separation
        loss = "–" if gate is None else f"{gate.loss:.4f} ({gate.interval[0]:.4f} to {gate.interval[1]:.4f})"
        rows.append((target, f"{result.parity['score']:.2g}", f"{result.parity['score_allowed']:.2g}", loss))
    text = table(("form", "score differs by", "allowed", "loss of AUROC (95 %)"), rows)
    bundle = Bundle.load(model)
    for device in DEVICES:
        finding = compare_devices(bundle, device, model).what if device in devices_here() else f"{device}: {_NOT_HERE}"
        text += "" if device == "cpu" else f"\n\n{finding}"
    return text


@contextmanager
def drawn_parts(count: int) -> Iterator[Path]:
    """A folder of drawn good parts."""
    with TemporaryDirectory() as folder:
        good = draw_parts(Path(folder) / "bracket" / "train" / "good", count, size=(_SIDE, _SIDE))
        yield good.parents[1]


def main() -> None:
    arguments = parser(__doc__)
    args = arguments.parse_args()
    count, epochs, repeats = (12, 1, 2) if args.quick else (40, 2, 10)
    start = time.perf_counter()
    with warnings.catch_warnings(), drawn_parts(count) as data, TemporaryDirectory() as work:
        warnings.simplefilter("ignore")
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: its columns were not run here"
        sections = [f"## Training\n\n{epochs} epochs on {count} drawn parts.\n\n{training(data, Path(work), epochs)}"]
        model = Path(work) / f"{METHODS[0]}-cpu" / "model.flaw"
        sections += [
            f"## Features\n\n{features(repeats)}",
            f"## Inspection\n\n{METHODS[0]}, ONNX Runtime in float32.\n\n{inspection(model, repeats)}",
            f"## Parity\n\n{parity(model, data)}",
        ]
    sections.insert(0, f"GPU: {device}. All of it took {time.perf_counter() - start:.0f} s.")
    page("gpu", "A GPU beside the CPU", sections, write=args.write)


if __name__ == "__main__":
    main()
