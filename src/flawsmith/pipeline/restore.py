"""A trained method as it was at the end of its run, from the checkpoints in the run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.seeding import derived_seed, generator
from flawsmith.features.backbones import load_backbone
from flawsmith.features.cache import FeatureCache
from flawsmith.features.extract import exact_convolutions, extractor_key, make_extractor
from flawsmith.models.base import AnomalyModel
from flawsmith.models.diagnostics import FeatureCloud
from flawsmith.models.registry import find_method
from flawsmith.pipeline.masks import read_mask
from flawsmith.runtime.bundle import Bundle, BundleSpec, Precision
from flawsmith.runtime.devices import DeviceName
from flawsmith.runtime.engine import Port
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import as_8_bit, decode
from flawsmith.runtime.inspector import Inspector
from flawsmith.synthesis.held_out import held_out_flaws
from flawsmith.training.checkpoints import load_tensors
from flawsmith.training.data import TrainingSet
from flawsmith.training.run import CONFIG, MODEL, TRAINED


def restore(run: Path) -> tuple[AnomalyModel, BundleSpec]:
    """A run's model with what it has learned, in evaluation mode, and the facts of its model file.

    Nothing is trained and nothing is written.

    Raises:
        FlawsmithError: no finished run, its checkpoints are gone, or the backbone's weights are not those of then.
    """
    spec = Bundle.load(run / MODEL).spec
    stored = _config(run)
    kind = find_method(spec.method)
    config = kind.Config(**spec.config)  # not that of the run: scores may have become logits when it was exported
    backbone = load_backbone(stored["backbone"], strides=config.strides, seed=derived_seed(0, "random backbone"))
    if backbone.info.sha256 != spec.backbone.sha256:
        raise FlawsmithError(
            f"{run}: the backbone {stored['backbone']} has other weights than when this run was trained; restore its "
            "weight file, or train again"
        )
    if not (run / TRAINED).is_file():
        raise FlawsmithError(
            f"{run / TRAINED}: is gone, and a model file cannot be trained on from: run `flawsmith train` again"
        )
    model = kind(config, backbone, spec.seed)
    model.load_trained_state(load_tensors(run / TRAINED)[0])
    return model.eval(), spec


def _config(run: Path) -> dict[str, Any]:
    try:
        stored = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        places = {name: stored.get(name) for name in ("textures", "foregrounds")}  # not in runs of every release
        return {"backbone": stored["backbone"], "seed": stored["seed"], **places}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise FlawsmithError(
            f"{run / CONFIG}: cannot be read ({type(error).__name__}): give the folder of a run of `flawsmith train`"
        ) from None


class TorchEngine:
    """A run's trained model in torch, as an inspector runs its exported graph: to measure it where it was trained.

    Args:
        run: the run folder, with checkpoints.
        device: where it computes.

    Raises:
        FlawsmithError: as :func:`restore`.
    """

    name = "torch"
    precision: Precision = "float32"

    def __init__(self, run: Path, device: torch.device) -> None:
        model, spec = restore(run)
        self._model, self._device = model.to(device), device
        self.device: DeviceName = "cuda" if device.type == "cuda" else "cpu"
        height, width = spec.geometry.size
        self.inputs: tuple[Port, ...] = (Port("image", (None, 3, height, width)),)
        self.outputs: tuple[Port, ...] = (Port("map", (None, height, width)), Port("score", (None,)))

    def run(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Maps and scores of normalised images (batch, 3, height, width)."""
        with torch.inference_mode(), exact_convolutions(self._device):
            output = self._model(torch.from_numpy(batch).to(self._device))
        return [output.map.numpy(force=True), output.score.numpy(force=True)]


GOOD, FLAWED, SYNTHETIC = "good", "flawed", "forged"
REJECTED, MISSED, OF_FEATURES = "good, rejected", "flawed, missed", "anomalous features"
IMAGES, POSITIONS = 24, 16
"""Images of each group, and positions of each of them."""

_HALF = 0.5


def feature_clouds(
    run: Path,
    dataset: Dataset,
    *,
    seed: int = 0,
    images: int = IMAGES,
    positions: int = POSITIONS,
    on_step: Callable[[], object] = lambda: None,
) -> list[FeatureCloud]:
    """Features of a run's method on test images, one cloud a feature map, drawn by seed.

    A position counts as flawed where at least half of it is, or where no position is, the one with the largest share.

    Args:
        dataset: data with good test images; flawed ones without a mask are left out.
        seed: of the choice of images and positions, and of the synthetic flaws.

    Returns:
        Clouds with the groups ``good`` and ``forged``, the flaws that the method learned from, or flaws of all recipes
        where it learns from none or the data has no good images to draw them on; ``flawed`` where a flawed image has a
        mask; images that the model rejects or passes wrongly in groups of their own; and anomalies that the method
        makes of features.

    Raises:
        FlawsmithError: no finished run with its checkpoints, no good test images, or an image cannot be read.
    """
    model, spec = restore(run)
    if spec.tiling is not None:
        raise FlawsmithError(
            f"{run}: features of models that cut images into tiles are not drawn; train without --tile"
        )
    strides = model.backbone.info.strides

    def maps(batch: Tensor) -> Mapping[str, Tensor]:
        named = [f"level {number + 1} (stride {stride})" for number, stride in enumerate(strides)]
        return model.feature_maps(batch) or dict(zip(named, model.backbone(batch), strict=True))

    rows: dict[str, dict[str, list[NDArray[np.float32]]]] = {}
    shown = [*_test_images(run, dataset, seed, images), *_flaws(run, model, spec, dataset, seed, images)]
    for number, (group, image, marked) in enumerate(shown):
        with torch.no_grad():
            levels = maps(image[None])
            anomalies = model.synthetic_features(image[None]) if group in (GOOD, REJECTED) else {}
        rng = generator(seed, "shown positions", number)
        for name, features in levels.items():
            share = (
                F.adaptive_avg_pool2d(marked[None, None], (features.shape[-2], features.shape[-1])).flatten().numpy()
            )
            places = torch.from_numpy(_places(share, group not in (GOOD, REJECTED), positions, rng))
            of_groups = {group: features[0].flatten(1).T} | (
                {OF_FEATURES: anomalies[name]} if name in anomalies else {}
            )
            for of_group, values in of_groups.items():
                rows.setdefault(name, {}).setdefault(of_group, []).append(values[places].float().numpy())
        on_step()
    return [
        FeatureCloud(name, "", {group: np.concatenate(parts) for group, parts in groups.items()})
        for name, groups in rows.items()
    ]


_Shown = tuple[str, Float[Tensor, "3 height width"], Float[Tensor, "height width"]]
"""A group, an image as the network sees it, and what of each pixel is to be looked at, in [0, 1]."""


def _test_images(run: Path, dataset: Dataset, seed: int, count: int) -> Iterator[_Shown]:
    good, flawed = dataset.test_good, [sample for sample in dataset.test_flawed if sample.masks]
    if not good:
        raise FlawsmithError(f"{dataset.root} has no good test images to compare with: put some into test/good")
    inspector = Inspector.load(run / MODEL)
    geometry = inspector.spec.geometry
    for sample in (*_some(good, seed, count), *_some(flawed, seed, count)):
        mask, pixels = read_mask(sample) if sample.is_flawed else None, decode(sample.image)
        if sample.is_flawed and (mask is None or not mask.any()):
            continue
        verdict = inspector.inspect(pixels).verdict
        wrong = verdict == ("pass" if sample.is_flawed else "reject")
        group = (MISSED if wrong else FLAWED) if sample.is_flawed else (REJECTED if wrong else GOOD)
        shown = np.ones(pixels.shape[:2], bool) if mask is None else mask
        yield group, torch.from_numpy(geometry.apply(pixels)), _in_network(shown, geometry)


def _flaws(
    run: Path, model: AnomalyModel, spec: BundleSpec, dataset: Dataset, seed: int, count: int
) -> Iterator[_Shown]:
    """Flaws as the method learned from them, drawn on good images; else flaws of all recipes, on test images."""
    geometry = spec.geometry
    source = None if not dataset.good_train else model.training_flaws(_training_set(run, model, geometry, dataset))
    if source is None:
        pictures = (
            as_8_bit(decode(each.image), geometry.value_range) for each in _some(dataset.test_good, seed, count)
        )
        for flaw in held_out_flaws(pictures, seed):
            yield SYNTHETIC, torch.from_numpy(geometry.apply(flaw.image)), _in_network(flaw.mask, geometry)
        return
    for _, mask, image in source.examples(count):
        if mask.any():
            yield SYNTHETIC, torch.from_numpy(geometry.normalise(image)), torch.from_numpy(mask).float() / 255


def _training_set(run: Path, model: AnomalyModel, geometry: Geometry, dataset: Dataset) -> TrainingSet:
    """The data's good images with the textures and masks of the run."""
    stored, backbone = _config(run), model.backbone
    foregrounds = stored["foregrounds"]
    return TrainingSet(
        dataset.good_train,
        geometry,
        make_extractor(backbone, geometry.size),
        FeatureCache(extractor_key(backbone, geometry, "onnxruntime", "float32")),
        seed=stored["seed"],
        textures=stored["textures"],
        foregrounds=None if foregrounds is None else Path(foregrounds),
        workers=0,
    )


def _in_network(mask: NDArray[np.bool_], geometry: Geometry) -> Float[Tensor, "height width"]:
    """How much of every pixel of the network's input is marked, in [0, 1]; nothing of what is no image."""
    plain = geometry.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    picture = np.repeat((mask * np.uint8(255))[:, :, None], 3, axis=2)
    return torch.from_numpy(plain.apply(picture)[0])


def _some(samples: Sequence[Sample], seed: int, count: int) -> list[Sample]:
    picked = generator(seed, "shown images").permutation(len(samples))[:count]
    return [samples[place] for place in sorted(picked)]


def _places(
    share: Float[np.ndarray, " position"], inside_flaw: bool, count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    places = np.flatnonzero(share >= _HALF)
    if not len(places) and inside_flaw and share.max() > 0:
        places = np.array([int(share.argmax())])
    return np.sort(rng.permutation(places)[:count])


def check_run(source: Path) -> Path:
    """The run folder of a source: itself, or the folder of a model file.

    Raises:
        FlawsmithError: there are no checkpoints beside the model.
    """
    run = source.parent if source.is_file() else source
    if not any((run / "checkpoints").glob("*.safetensors")):
        raise FlawsmithError(
            f"{source}: has no checkpoints beside it, and features are those of the trained network: give the folder "
            "of a run of `flawsmith train`"
        )
    return run
