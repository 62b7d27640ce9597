"""A trained method as it was at the end of its run, from the checkpoints in the run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flawsmith.data.seeding import derived_seed
from flawsmith.features.backbones import Backbone, load_backbone
from flawsmith.methods.base import LightningStage, Method, SinglePass, Stage
from flawsmith.methods.registry import find_method
from flawsmith.runtime.bundle import Bundle, BundleSpec
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.training.checkpoints import SafeCheckpointIO, load_tensors
from flawsmith.training.run import CONFIG, MODEL


@dataclass(frozen=True)
class Restored:
    """A finished run, in torch again.

    Attributes:
        method: trained.
        backbone: what it stands on.
        spec: of the model file.
    """

    method: Method
    backbone: Backbone
    spec: BundleSpec


def restore(run: Path) -> Restored:
    """Build a run's method and load what its stages have learned; nothing is trained and nothing is written.

    Args:
        run: a run folder of ``flawsmith train`` with its checkpoints.

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
    method = kind(config, backbone, spec.seed)
    for stage in method.stages():
        _load(stage, run / "checkpoints", best=spec.training.selection == "best")
    return Restored(method, backbone, spec)


def _config(run: Path) -> dict[str, Any]:
    try:
        stored = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        return {name: stored[name] for name in ("method", "backbone", "config")}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise FlawsmithError(
            f"{run / CONFIG}: cannot be read ({type(error).__name__}): give the folder of a run of `flawsmith train`"
        ) from None


def _load(stage: Stage, folder: Path, *, best: bool) -> None:
    file = folder / f"{stage.name}.safetensors"
    chosen = folder / f"{stage.name}-best.safetensors"
    if isinstance(stage, LightningStage) and stage.completes and best:
        file = chosen
    if not file.is_file():
        raise FlawsmithError(
            f"{file}: is gone, and a model file cannot be trained on from: run `flawsmith train` again"
        )
    if isinstance(stage, SinglePass):
        stage.accept(load_tensors(file)[0])
        return
    assert isinstance(stage, LightningStage)
    state = load_tensors(file)[0] if file == chosen else SafeCheckpointIO().load_checkpoint(file)["state_dict"]
    stage.module.load_state_dict(state)
    stage.module.eval()
