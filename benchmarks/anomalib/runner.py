"""Runs an anomalib model in anomalib's own environment; the other side of ``driver.py``.

It is called by path with that environment's interpreter, where Flawsmith is not installed: nothing of it is imported
here, only the standard library, numpy, torch and what anomalib brings along (timm, lightning, safetensors).

``RUNNER probe`` says on the last line of stdout, as JSON, what there is::

    {"contract": 1, "models": ["efficientad", ...], "versions": {"anomalib": "2.7.0", "python": "3.11.7", ...}}

``RUNNER run FOLDER`` trains a model and lets it score images. The folder holds the question:

``request.json``
    ``contract`` (1), ``model``, ``seed``, ``image_size`` (height, width), ``mean`` and ``std`` (that the images were
    normalised with), ``settings`` (arguments of the model's class), ``batch_size``, ``max_epochs`` and ``max_steps``
    (null: the package's own), ``textures`` (folder or null), ``warm_up`` (images before the clock runs), ``timed``
    (rows of the test images to time one by one), and ``backbone``: null, or ``architecture`` (timm's name without a
    tag) and ``strides`` (of the levels to use, finest first).
``train.npy``, ``calibration.npy``, ``test.npy``
    Normalised images, float32 (images, 3, height, width): to learn from, held out and good, and labelled ones whose
    labels stay with the asker. No file holds pickled objects.
``backbone.safetensors``
    The state of timm's ``create_model(architecture, features_only=True, out_indices=...)`` for those levels; only where
    there is a backbone.

And, once it has ended with exit code 0, the answer:

``calibration_maps.npy``, ``test_maps.npy``
    Anomaly maps, float32 (images, height, width) in pixels of the network's input.
``calibration_scores.npy``, ``test_scores.npy``
    Image scores, float64 (images,), higher is more anomalous.
``answer.json``
    ``contract``, ``versions``, ``train_seconds`` (from the images in memory-mapped files to the trained model and its
    checkpoint), ``calibration_seconds`` and ``test_seconds`` (scoring those images one at a time), ``latency_seconds``
    (of the ``timed`` rows, from the normalised image to score and map) and ``model_bytes`` (size of the checkpoint that
    the package writes).

What cannot be done is one line on stderr, and exit code 3.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

CONTRACT, REFUSED = 1, 3
MODELS = {"efficientad": "EfficientAd", "glass": "Glass", "padim": "Padim", "patchcore": "Patchcore"}
PACKAGES = ("anomalib", "torch", "torchvision", "lightning", "timm", "numpy")
TEACHER = "efficientad_pretrained_weights/pretrained_teacher_{}.pth"
VALIDATION_SHARE = 10
"""EfficientAD scales its maps on one in so many training images, which it does not learn from (the paper's share)."""


class RefusedError(Exception):
    """What cannot be done, in one line for people."""


def main(arguments: Sequence[str]) -> int:
    """The command line: ``probe``, or ``run FOLDER``."""
    try:
        if list(arguments) == ["probe"]:
            print(json.dumps(probe()))
        elif len(arguments) == 2 and arguments[0] == "run":
            run(Path(arguments[1]))
        else:
            raise RefusedError("give `probe`, or `run FOLDER`")
    except RefusedError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return REFUSED
    return 0


def probe() -> dict[str, Any]:
    """What this environment can run.

    Raises:
        RefusedError: anomalib is not installed, or cannot be imported.
    """
    there = set(dir(_models()))
    known = sorted(name for name, class_name in MODELS.items() if class_name in there)
    return {"contract": CONTRACT, "models": known, "versions": versions()}


def _models() -> Any:
    python = sys.executable
    if "anomalib" not in versions():
        raise RefusedError(f"anomalib is not installed beside {python}: run `{python} -m pip install anomalib`")
    try:
        return importlib.import_module("anomalib.models")
    except ImportError as error:
        raise RefusedError(f"anomalib cannot be imported by {python}: {error}") from None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def run(folder: Path) -> None:
    """Answer the question of a folder.

    Raises:
        RefusedError: the question is of another contract, or the model cannot be made or trained here.
    """
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    if request["contract"] != CONTRACT:
        raise RefusedError(f"this runner knows contract {CONTRACT}, not {request['contract']}")
    models = _models()
    import lightning.pytorch as lightning
    import torch

    lightning.seed_everything(request["seed"], workers=True, verbose=False)
    images = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("train", "calibration", "test")}
    start = time.perf_counter()
    module = make_model(models, request, folder)
    size = train(module, request, images["train"], folder)
    answer = {"contract": CONTRACT, "versions": versions(), "model_bytes": size}
    answer["train_seconds"] = time.perf_counter() - start
    module.eval()
    with torch.inference_mode():
        for name in ("calibration", "test"):
            start = time.perf_counter()
            score_all(module, request, images[name], folder, name)
            answer[f"{name}_seconds"] = time.perf_counter() - start
        answer["latency_seconds"] = latencies(module, request, images["test"])
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


# Models


def make_model(models: Any, request: dict[str, Any], folder: Path) -> Any:
    """The package's Lightning module with our weights in its backbone, and without its own pre- and post-processing.

    Raises:
        RefusedError: there is no such model in this version, it does not take the settings, or files are missing.
    """
    name, settings = request["model"], dict(request["settings"])
    if not hasattr(models, MODELS.get(name, "")):
        raise RefusedError(f"anomalib {versions().get('anomalib')} has no model {name}: install a newer one")
    if name == "efficientad":
        require_downloads(settings)
    if name == "glass":
        settings |= {"input_shape": tuple(request["image_size"]), "anomaly_source_path": request["textures"]}
    if request["backbone"] is not None:
        architecture = request["backbone"]["architecture"]
        settings |= {"backbone": architecture, "layers": layers_of(architecture, request["backbone"]["strides"])}
    parts = dict.fromkeys(("pre_processor", "post_processor", "evaluator", "visualizer"), False)
    try:
        with untrained_backbones():
            module = getattr(models, MODELS[name])(**settings, **parts)
    except (TypeError, ValueError) as error:
        raise RefusedError(f"anomalib does not make {name} of these settings: {error}") from None
    if request["backbone"] is not None:
        load_backbone(module, folder / "backbone.safetensors")
    if name == "glass":
        # It undoes the normalisation to paint flaws; by default it takes ImageNet's numbers.
        for buffer, values in (("_img_mean", request["mean"]), ("_img_std", request["std"])):
            buffer_of_model = module.model.get_buffer(buffer)
            buffer_of_model.copy_(buffer_of_model.new_tensor(values).view(buffer_of_model.shape))
    return module


def layers_of(architecture: str, strides: Sequence[int]) -> list[str]:
    """timm's module names of the first levels with these strides.

    Raises:
        RefusedError: timm here does not know the architecture, or it lacks a stride.
    """
    import timm

    try:
        model: Any = timm.create_model(architecture, pretrained=False, features_only=True)
    except RuntimeError as error:
        raise RefusedError(f"timm {timm.__version__} of this environment gives no levels: {error}") from None
    names = {level["reduction"]: level["module"] for level in reversed(model.feature_info.info)}
    try:
        return [names[stride] for stride in strides]
    except KeyError as missing:
        raise RefusedError(f"{architecture} has no level of stride {missing}: it has {sorted(names)}") from None


def untrained_backbones() -> Any:
    """While it lasts, timm makes models without fetching weights, whatever it is asked for.

    anomalib's ``pre_trained`` says that weights are fetched and also that they stay frozen, which alone is wanted.
    """
    import timm

    make = timm.create_model

    def make_untrained(*args: Any, **kwargs: Any) -> Any:
        return make(*args, **{**kwargs, "pretrained": False})

    return mock.patch.object(timm, "create_model", make_untrained)


def load_backbone(module: Any, file: Path) -> None:
    """Put a state into the module's feature extractor; all names and shapes have to agree.

    Raises:
        RefusedError: they do not, as where the two versions of timm build the architecture differently.
    """
    from safetensors.torch import load_file

    named = [part for name, part in module.named_modules() if name.endswith(".feature_extractor")]
    trunks = [part for part in named if hasattr(part, "feature_info")]  # blocks of some have such an attribute too
    if len(trunks) != 1:
        raise RefusedError(f"anomalib's {module.name} has {len(trunks)} backbones of timm, and one is needed")
    try:
        trunks[0].load_state_dict(load_file(file), strict=True)
    except RuntimeError as error:
        words = " ".join(str(error).split())[:300]
        raise RefusedError(f"the backbone's weights do not fit timm {versions().get('timm')}: {words}") from None
    trunks[0].requires_grad_(False)


def require_downloads(settings: dict[str, Any]) -> None:
    """EfficientAD's teacher and its natural images have to be there: anomalib would fetch 1.5 GB without asking.

    Raises:
        RefusedError: naming what is missing, and where it is looked for.
    """
    from anomalib.utils.path import get_pretrained_weights_dir

    teacher = get_pretrained_weights_dir() / TEACHER.format(settings.get("model_size", "small"))
    images = Path(settings.get("imagenet_dir", "datasets/imagenette"))
    if not teacher.is_file():
        raise RefusedError(
            f"EfficientAD needs the weights of its teacher, which are not at {teacher}: unpack "
            "efficientad_pretrained_weights.zip of anomalib's releases there"
        )
    if not images.is_dir():
        raise RefusedError(
            f"EfficientAD needs natural images, and there is no folder {images.absolute()}: unpack imagenette2.tgz and "
            "give its folder with the setting imagenet_dir"
        )


# Training and scoring


def train(module: Any, request: dict[str, Any], images: np.ndarray, folder: Path) -> int:
    """Train by the package's own engine; the size of the checkpoint that it writes, in bytes."""
    from anomalib.callbacks.checkpoint import ModelCheckpoint
    from anomalib.engine import Engine

    validates = request["model"] == "efficientad"
    data = data_module(images, request, validates=validates)
    limits = {name: request[name] for name in ("max_epochs", "max_steps") if request[name] is not None}
    engine = Engine(
        callbacks=[ModelCheckpoint(save_top_k=0)],  # in place of one that writes after every epoch
        default_root_dir=folder / "engine",
        logger=False,
        **dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False),
        limit_val_batches=1.0 if validates else 0,
        **limits,
    )
    engine.fit(model=module, datamodule=data)
    if validates:
        engine.validate(model=module, datamodule=data, verbose=False)  # its maps are scaled in this hook alone
    engine.trainer.save_checkpoint(folder / "last.ckpt")
    return (folder / "last.ckpt").stat().st_size


def data_module(images: np.ndarray, request: dict[str, Any], *, validates: bool) -> Any:
    """Images in a memory-mapped file as the package's engine wants them; all of them good."""
    import lightning.pytorch as lightning
    import torch
    from anomalib.data import ImageBatch
    from torch.utils.data import DataLoader

    rows = list(range(len(images)))
    held_out = max(1, len(rows) // VALIDATION_SHARE) if validates and len(rows) > 1 else 0

    def collate(batch: Sequence[int]) -> Any:
        return ImageBatch(image=read(images, batch, request), gt_label=torch.zeros(len(batch), dtype=torch.int64))

    class Rows(lightning.LightningDataModule):
        name, category = "rows", ""
        train_batch_size = request["batch_size"]

        def train_dataloader(self) -> Any:
            return DataLoader(rows[held_out:], self.train_batch_size, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]

        def val_dataloader(self) -> Any:
            return DataLoader(rows[:held_out] or rows, self.train_batch_size, collate_fn=collate)  # type: ignore[arg-type]

    return Rows()


def read(images: np.ndarray, rows: Sequence[int], request: dict[str, Any]) -> Any:
    """(rows, 3, height, width): images as the model wants them; EfficientAD normalises them itself."""
    import torch

    batch = torch.from_numpy(np.stack([images[row] for row in rows]))
    if request["model"] == "efficientad":
        mean, std = (batch.new_tensor(request[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        batch = (batch * std + mean).clamp(0, 1)
    return batch


def score_all(module: Any, request: dict[str, Any], images: np.ndarray, folder: Path, part: str) -> None:
    """Write maps and scores of images, which are scored one at a time."""
    scores = []
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(images), *images.shape[2:])}
    # Row by row: a full disk is an error here, where a memory map would end the process.
    with (folder / f"{part}_maps.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for row in range(len(images)):
            score, anomaly_map = score_one(module, read(images, [row], request))
            scores.append(score)
            file.write(np.ascontiguousarray(anomaly_map, "<f4").tobytes())
    np.save(folder / f"{part}_scores.npy", np.array(scores, np.float64), allow_pickle=False)


def score_one(module: Any, image: Any) -> tuple[float, np.ndarray]:
    """Score and (height, width) map of one image (1, 3, height, width)."""
    prediction = module.model(image.to(module.device))
    height, width = image.shape[-2:]
    return float(prediction.pred_score), prediction.anomaly_map.float().cpu().numpy().reshape(height, width)


def latencies(module: Any, request: dict[str, Any], images: np.ndarray) -> list[float]:
    """Seconds from the normalised image to score and map, of the rows that are to be timed."""
    seconds, warm_up = [], request["timed"][: request["warm_up"]]
    for row in [*warm_up, *request["timed"]]:
        image = read(images, [row], request)
        start = time.perf_counter()
        score_one(module, image)
        seconds.append(time.perf_counter() - start)
    return seconds[len(warm_up) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
