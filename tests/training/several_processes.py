"""Trains methods on tiny settings in any number of processes and writes what came of them; no test by itself.

Run as a script it is a program that several processes execute, as a user's script would be:
``python several_processes.py CASES.json DATA OUT DEVICES``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from flawsmith.data.layouts import load
from flawsmith.features.backbones import load_backbone
from flawsmith.features.cache import FeatureCache
from flawsmith.features.extract import TorchExtractor
from flawsmith.methods.base import LightningStage
from flawsmith.methods.layers.distributed import Part
from flawsmith.methods.registry import find_method
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.training import processes
from flawsmith.training.data import ForgingOptions, GoodImages
from flawsmith.training.engine import LoopOptions, make_trainer
from flawsmith.training.run import RunFolder


def train_all(cases: Mapping[str, Mapping[str, Any]], data: Path, out: Path, devices: int) -> None:
    """Writes ``OUT/CASE.safetensors``: the states of the modules, and maps and scores of the test images."""
    options = LoopOptions(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", quiet=True)
    with processes.joined(make_trainer(options)):
        for name, case in cases.items():
            found = train(case, data, RunFolder(out / name, options))
            if processes.first():
                save_file(found, out / f"{name}.safetensors")


def train(case: Mapping[str, Any], data: Path, run: RunFolder) -> dict[str, torch.Tensor]:
    kind = find_method(case["method"])
    config = kind.Config(**{**kind.presets["fast"].model_dump(), **case["set"]})
    backbone = load_backbone(strides=config.strides)
    method = kind(config, backbone, seed=0)
    geometry = Geometry(size=config.image_size, mean=backbone.info.mean, std=backbone.info.std)
    dataset, extractor = load(data), TorchExtractor(backbone)
    cache = FeatureCache(f"shared {config.strides}", run.path.parent / "cache")
    workers = ForgingOptions(workers=case.get("workers", 0))
    images = GoodImages(dataset.good_train, geometry, extractor, cache, seed=0, forging=workers)
    run.path.mkdir(parents=True, exist_ok=True)
    found = {}
    for stage in method.stages():
        if not isinstance(stage, LightningStage):
            stage.fit(images, run)
            continue
        stage.module.double()
        if hasattr(stage.module, "student") and stage.module.amplifiers is not None:
            stage.module.amplifiers.to(torch.float32)  # they make the batches, before those are doubled
        stage = replace(stage, batches=lambda data, made=stage.batches: Doubled(made(data)))
        with no_float32():
            stage.fit(images, run)
        found |= {f"{stage.name}.{key}": value.clone() for key, value in stage.module.state_dict().items()}
        stage.module.float()
    pictures = [geometry.apply(decode(sample.image)) for sample in dataset.test]
    with torch.inference_mode():
        output = method.network()(torch.stack([torch.from_numpy(picture) for picture in pictures]))
    return {**{key: value.contiguous() for key, value in found.items()}, "map": output.map, "score": output.score}


class Doubled:
    """Batches in float64."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int) -> Iterator[Any]:
        for batch in self._batches.epoch(epoch):
            yield doubled(batch)


def doubled(value: Any) -> Any:
    """A batch with all its real numbers in float64."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, list):
        return [doubled(inner) for inner in value]
    if is_dataclass(value) and not isinstance(value, Part):
        return replace(value, **{field.name: doubled(getattr(value, field.name)) for field in fields(value)})
    return value


@contextmanager
def no_float32() -> Iterator[None]:
    """Losses in float64 too, which the methods otherwise compute in float32 whatever the precision.

    The order of a sum changes its last digit, and a network that learns by Adam makes much of it within a few steps: a
    gradient of zero has a sign then. In float64 that stays far below what any mistake would do.
    """
    to_float32 = torch.Tensor.float
    torch.Tensor.float = lambda self: self if self.dtype == torch.float64 else to_float32(self)
    try:
        yield
    finally:
        torch.Tensor.float = to_float32


if __name__ == "__main__":
    torch.set_num_threads(1)
    given, folder, target, count = sys.argv[1:]
    train_all(json.loads(Path(given).read_text()), Path(folder), Path(target), int(count))
