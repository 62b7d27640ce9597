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
from flawsmith.models.base import AnomalyModel
from flawsmith.models.diagnostics import FeatureCloud
from flawsmith.models.registry import find_method
from flawsmith.pipeline.masks import read_mask
from flawsmith.runtime.bundle import Bundle, BundleSpec
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import ImageArray, as_8_bit, decode
from flawsmith.synthesis.held_out import held_out_flaws
from flawsmith.training.checkpoints import load_tensors
from flawsmith.training.run import CONFIG, MODEL, TRAINED


def restore(run: Path) -> tuple[AnomalyModel, BundleSpec]:
    """A run's model with what it has learned, in evaluation mode, and the facts of its model file.

    Nothing is trained and nothing is written.

    Raises:
        FlawsmithError: no finished run, its checkpoints are gone, or the backbone's weights are not those of then.
    """
    spec = Bundle.load(run / MODEL).spec
    stored = _config(run)
    kind = find_method(str(stored["method"]))
    config = kind.Config(**stored["config"])
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
        return {name: stored[name] for name in ("method", "backbone", "config")}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise FlawsmithError(
            f"{run / CONFIG}: cannot be read ({type(error).__name__}): give the folder of a run of `flawsmith train`"
        ) from None


GOOD, FLAWED, SYNTHETIC = "good", "flawed", "forged"
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
        Clouds with the groups ``good`` and ``synthetic``, and ``flawed`` where a flawed image has a mask.

    Raises:
        FlawsmithError: no finished run with its checkpoints, no good test images, or an image cannot be read.
    """
    model, spec = restore(run)
    if spec.tiling is not None:
        raise FlawsmithError(
            f"{run}: features of models that cut images into tiles are not drawn; train without --tile"
        )
    geometry, strides = spec.geometry, model.backbone.info.strides

    def maps(batch: Tensor) -> Mapping[str, Tensor]:
        named = [f"level {number + 1} (stride {stride})" for number, stride in enumerate(strides)]
        return model.feature_maps(batch) or dict(zip(named, model.backbone(batch), strict=True))

    rows: dict[str, dict[str, list[NDArray[np.float32]]]] = {}
    for number, (group, image, mask) in enumerate(_images(dataset, geometry, seed, images)):
        shown = np.ones(image.shape[:2], bool) if mask is None else mask
        with torch.no_grad():
            levels = maps(torch.from_numpy(geometry.apply(image))[None])
        for name, features in levels.items():
            share = _share(shown, geometry, (features.shape[-2], features.shape[-1]))
            places = _places(share, mask is not None, positions, generator(seed, "shown positions", number))
            chosen = features[0].flatten(1).T[torch.from_numpy(places)].float().numpy()
            rows.setdefault(name, {}).setdefault(group, []).append(chosen)
        on_step()
    return [
        FeatureCloud(name, "", {group: np.concatenate(parts) for group, parts in groups.items()})
        for name, groups in rows.items()
    ]


def _images(
    dataset: Dataset, geometry: Geometry, seed: int, count: int
) -> Iterator[tuple[str, ImageArray, NDArray[np.bool_] | None]]:
    """The group of each image, the image, and its flaws; None: look everywhere."""
    good, flawed = dataset.test_good, [sample for sample in dataset.test_flawed if sample.masks]
    if not good:
        raise FlawsmithError(f"{dataset.root} has no good test images to compare with: put some into test/good")
    for sample in _some(good, seed, count):
        yield GOOD, decode(sample.image), None
    for sample in _some(flawed, seed, count):
        mask = read_mask(sample)
        if mask is not None and mask.any():
            yield FLAWED, decode(sample.image), mask
    pictures = (as_8_bit(decode(sample.image), geometry.value_range) for sample in _some(good, seed, count))
    for flaw in held_out_flaws(pictures, seed):
        yield SYNTHETIC, flaw.image, flaw.mask


def _some(samples: Sequence[Sample], seed: int, count: int) -> list[Sample]:
    picked = generator(seed, "shown images").permutation(len(samples))[:count]
    return [samples[place] for place in sorted(picked)]


def _share(mask: NDArray[np.bool_], geometry: Geometry, grid: tuple[int, int]) -> Float[np.ndarray, " position"]:
    """How much of every position of a feature map shows what is marked, in [0, 1]."""
    plain = geometry.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    picture = np.repeat((mask * np.uint8(255))[:, :, None], 3, axis=2)
    return F.adaptive_avg_pool2d(torch.from_numpy(plain.apply(picture)[:1]), grid).flatten().numpy()


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
