"""What processes do together, in any number of them, and what came of it; no test by itself.

Run as a script it is a program that several processes execute, as a user's script would be:
``python several_processes.py CASES.json DATA OUT DEVICES``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors.torch import save_file
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from flawsmith.data.layouts import load
from flawsmith.features.backbones import load_backbone
from flawsmith.features.cache import FeatureCache
from flawsmith.features.extract import TorchExtractor
from flawsmith.models.base import LightningStage
from flawsmith.models.components.distributed import Part, mean, share, share_batch_norms, together, total, world_size
from flawsmith.models.registry import find_method
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.training import processes
from flawsmith.training.data import SynthesisOptions, TrainingSet
from flawsmith.training.run import RunFolder
from flawsmith.training.trainer import LoopOptions, make_trainer


def train_all(cases: Mapping[str, Mapping[str, Any]], data: Path, out: Path, devices: int) -> None:
    """Writes ``OUT/CASE.safetensors``: the states of the modules, and maps and scores of the test images.

    Every process also writes what its batch norms make of its share, as ``OUT/norms-RANK.safetensors``.
    """
    options = LoopOptions(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", quiet=True)
    with processes.joined(make_trainer(options)):
        for name, case in cases.items():
            found = train(case, data, RunFolder(out / name, options))
            if processes.first():
                save_file(found, out / f"{name}.safetensors")
        with together():
            shared = {f"{kind} {count} {key}": value for kind, count, key, value in every_norm(share_batch_norms)}
            rank = torch.distributed.get_rank() if devices > 1 else 0
            save_file(shared, out / f"norms-{rank}.safetensors")


def train(case: Mapping[str, Any], data: Path, run: RunFolder) -> dict[str, torch.Tensor]:
    kind = find_method(case["method"])
    config = kind.Config(**{**kind.presets["fast"].model_dump(), **case["set"]})
    backbone = load_backbone(strides=config.strides)
    method = kind(config, backbone, seed=0)
    geometry = Geometry(size=config.image_size, mean=backbone.info.mean, std=backbone.info.std)
    dataset, extractor = load(data), TorchExtractor(backbone)
    cache = FeatureCache(f"shared {config.strides}", run.path.parent / "cache")
    workers = SynthesisOptions(workers=case.get("workers", 0))
    images = TrainingSet(dataset.good_train, geometry, extractor, cache, seed=0, synthesis=workers)
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


# ---- Batch norms ----------------------------------------------------------------------------------------------------

NORMS: dict[str, Callable[[], nn.Module]] = {
    "rows": lambda: nn.BatchNorm1d(5),
    "maps": lambda: nn.BatchNorm2d(5),
    "activated": lambda: BatchNormAct2d(5),
    "cumulative": lambda: nn.BatchNorm2d(5, momentum=None),
}
COUNTS = (8, 7, 1)
"""Images of a batch; shares may differ, or be empty."""


def every_norm(prepare: Callable[[nn.Module], None]) -> Iterator[tuple[str, int, str, torch.Tensor]]:
    """(kind, images, what, value) of a process's share of a batch, after two steps in training mode."""
    for kind, make in NORMS.items():
        for count in COUNTS:
            module = make().double()
            prepare(module)
            for key, value in stepped(module, kind, count).items():
                yield kind, count, key, value


def stepped(module: nn.Module, kind: str, count: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(count)
    shape = (count, 3, 5) if kind == "rows" else (count, 5, 4, 3)
    with torch.no_grad():
        module.weight.copy_(torch.rand(5, generator=draw))
        module.bias.copy_(torch.randn(5, generator=draw))
    for _ in range(2):
        whole, target = (10 + torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(2))
        images = whole[share(count)].requires_grad_()
        found = module(images.flatten(0, 1) if kind == "rows" else images).reshape(images.shape)
        module.zero_grad()
        mean((found - target[share(count)]).square()).backward()
    # A loss that W processes hold is counted W-fold, which the strategy's mean over processes undoes.
    gradients = {f"gradient of {name}": total(value.grad) / world_size() for name, value in module.named_parameters()}
    return {
        "output": found.detach().contiguous(),
        "gradient of input": images.grad / world_size(),
        **gradients,
        **{name: value.clone() for name, value in module.named_buffers()},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    given, folder, target, count = sys.argv[1:]
    train_all(json.loads(Path(given).read_text()), Path(folder), Path(target), int(count))
