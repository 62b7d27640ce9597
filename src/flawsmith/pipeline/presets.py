"""What a published preset means beside its numbers, and what a run has changed of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flawsmith.data.samples import Dataset
from flawsmith.data.splits import HoldOut, content_hash
from flawsmith.features.backbones import names_published, users_file
from flawsmith.models.base import Conditions, ModelConfig
from flawsmith.models.registry import find_method
from flawsmith.pipeline.settings import TrainSettings
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import printable
from flawsmith.synthesis.foreground import FileForeground
from flawsmith.synthesis.textures import DTD, DTD_PICTURES, WORDS, holds_dtd, pictures_of_dtd

_LONGEST_VALUE = 60
"""Characters of a value in the name of a change."""


def conditions_of(settings: TrainSettings) -> Conditions:
    """What the numbers of the chosen preset go with.

    Raises:
        FlawsmithError: no such method.
    """
    return find_method(settings.method).conditions_of(settings.preset or "fast")


def chosen_backbone(settings: TrainSettings, config: ModelConfig) -> str:
    """The user's backbone, else the preset's, else what the settings take."""
    return settings.backbone or conditions_of(settings).backbone or config.default_backbone


def holds_out(settings: TrainSettings) -> bool:
    """Whether good images are kept back from training to set the limit, where no others are there to set it."""
    return conditions_of(settings).holds_out if settings.holdout is None else settings.holdout


def refuse_incomplete(settings: TrainSettings, config: ModelConfig) -> None:
    """Refuse a published preset without the textures that it is published with, and what needs held-out images.

    Raises:
        FlawsmithError: saying how to get them.
    """
    preset = settings.preset or "fast"
    if settings.textures is None and config.synthesizes and conditions_of(settings).textures == DTD:
        raise FlawsmithError(
            f"preset {preset} of {settings.method} synthesizes flaws from the pictures of DTD: download "
            "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz, unpack it, and add --textures dtd; "
            "--textures procedural needs no pictures, and is named as a change"
        )
    if settings.trim is not None and not holds_out(settings):
        raise FlawsmithError(
            f"--trim {settings.trim:g}: preset {preset} of {settings.method} holds no images out, so that those left "
            "out would set the limit: add --holdout"
        )


def refuse_without_masks(settings: TrainSettings, config: ModelConfig, dataset: Dataset) -> None:
    """Refuse foregrounds from files where an image that is learned from has none, before anything is learned.

    Raises:
        FlawsmithError: naming the image, and how to get masks.
    """
    if not config.synthesizes or not config.foreground_files:
        return
    masks = FileForeground(None if settings.foregrounds is None else Path(settings.foregrounds))
    for sample in dataset.good_train:
        try:
            masks.file_of(sample.image)
        except FlawsmithError as error:
            if "foreground" in settings.set or not conditions_of(settings).published:
                raise
            place = settings.foregrounds or "a folder fg_mask beside them"
            raise FlawsmithError(
                f"preset {settings.preset} of {settings.method} puts flaws on the foreground masks that its authors "
                f"released for {dataset.dataset}, and {sample.image} has none in {place}: get them by the link in the "
                "README of https://github.com/cqylunlun/GLASS, and add --foregrounds DIR; --set foreground=auto needs "
                "none, and is named as a change"
            ) from error


def changed_conditions(
    settings: TrainSettings, config: ModelConfig, split: HoldOut, *, region: bool = False
) -> tuple[str, ...]:
    """What a run has changed of a published preset besides its numbers, each in a few words; empty for ours.

    Args:
        settings: with a backbone.
        config: the method's configuration.
        split: which images are learned from.
        region: whether a part of the images alone is seen.

    Raises:
        FlawsmithError: the backbone's file or the folder of textures is not there.
    """
    conditions = conditions_of(settings)
    if not conditions.published:
        return ()
    changes = [_backbone_change(chosen_backbone(settings, config), conditions.backbone or config.default_backbone)]
    if config.synthesizes and conditions.textures == DTD:
        changes.append(_texture_change(settings.textures or "procedural"))
    changes += [
        "good images held out" if split.source == "held-out" else "",
        "" if settings.fraction == 1 else f"{100 * settings.fraction:g} % of the images",
        "" if settings.trim is None else f"trim {settings.trim:g}",
        "" if settings.select == "last" else f"checkpoint {settings.select}",
        "a region of interest alone" if region else "",
        "" if settings.tile is None else f"tiles of {settings.tile}",
        "" if settings.precision == "float32" else f"features in {settings.precision}",
    ]
    return tuple(change for change in changes if change)


def changed_numbers(method: str, preset: str, config: ModelConfig, dataset: str, category: str) -> tuple[str, ...]:
    """The settings that are not as a published preset has them for a category, as ``name=value``; empty for ours."""
    kind = find_method(method)
    if not kind.conditions_of(preset).published:
        return ()
    published = kind.presets[preset].of_category(dataset, category).model_dump(mode="json")
    values = config.of_category(dataset, category).model_dump(mode="json")
    return tuple(f"{name}={_short(value)}" for name, value in values.items() if value != published[name])


def _backbone_change(name: str, published: str) -> str:
    file = users_file(name)
    if names_published(name, published, None if file is None else content_hash(file)):
        return ""
    shown = name if file is None else f"{name.partition('@')[0]}@{file.name}" if "@" in name else file.name
    return f"backbone {printable(shown)}"


def _texture_change(textures: str) -> str:
    if textures in WORDS:
        return f"textures {textures}"
    if holds_dtd(textures):
        return ""
    count = pictures_of_dtd(textures)
    part = f" ({count:,} of DTD's {DTD_PICTURES:,} pictures)" if count else ""
    return f"textures {printable(Path(textures).absolute().name)}{part}"


def _short(value: Any) -> str:
    """A value as ``--set`` takes it; of a foreground its mode, where that says most."""
    if isinstance(value, dict) and "mode" in value:
        return str(value["mode"])
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).strip('"')
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
