"""A program that trains in as many processes as it is told; no test by itself.

``python two_processes.py CASES.json DATA OUT DEVICES`` trains every case of ``{name: {"method", "seed", "set"}}``.
Every process writes what it ends with as ``OUT/NAME-RANK.json``: the SHA-256 of the trained state, and the image AUROC
on the test images.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flawsmith.data.layouts import load
from flawsmith.features.backbones import load_backbone
from flawsmith.features.cache import FeatureCache
from flawsmith.features.extract import TorchExtractor
from flawsmith.metrics.ranking import auroc
from flawsmith.models.registry import find_method
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.training.data import TrainingSet
from flawsmith.training.distributed import process_group
from flawsmith.training.run import RunFolder
from flawsmith.training.trainer import LoopOptions, check_options


def train_all(cases: Mapping[str, Mapping[str, Any]], data: Path, out: Path, devices: int) -> None:
    options = LoopOptions(accelerator="cpu", devices=devices)
    trainer = check_options(options)
    with process_group(trainer):
        for name, case in cases.items():
            result = train(case, data, RunFolder(out / name, options))
            (out / f"{name}-{trainer.global_rank}.json").write_text(json.dumps(result))


def train(case: Mapping[str, Any], data: Path, run: RunFolder) -> dict[str, Any]:
    kind = find_method(case["method"])
    config = kind.Config(**{**kind.presets["fast"].model_dump(), **case["set"]})
    backbone = load_backbone(strides=config.strides)
    model = kind(config, backbone, case["seed"])
    geometry = Geometry(size=config.image_size, mean=backbone.info.mean, std=backbone.info.std)
    dataset, cache = load(data), FeatureCache(f"two {config.strides}", run.path.parent / "cache")
    images = TrainingSet(
        dataset.good_train,
        geometry,
        TorchExtractor(backbone),
        cache,
        seed=case["seed"],
        workers=0,
    )
    run.path.mkdir(parents=True, exist_ok=True)
    for stage in model.stages(images):
        run.complete(model, stage)
    digest = hashlib.sha256()
    for key, value in model.trained_state().items():
        digest.update(key.encode() + value.contiguous().numpy().tobytes())
    model.eval()
    with torch.inference_mode():
        scores = [
            float(model(torch.from_numpy(geometry.apply(decode(sample.image)))[None]).score) for sample in dataset.test
        ]
    return {"sha256": digest.hexdigest(), "auroc": auroc(scores, [sample.is_flawed for sample in dataset.test])}


if __name__ == "__main__":
    torch.set_num_threads(1)
    table, folder, target, count = sys.argv[1:]
    train_all(json.loads(Path(table).read_text()), Path(folder), Path(target), int(count))
