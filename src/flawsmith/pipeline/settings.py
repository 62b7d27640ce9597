"""What a training run is asked to do, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator

from flawsmith.data.quantities import parse_area, parse_length
from flawsmith.data.samples import Sample
from flawsmith.models.base import ModelConfig
from flawsmith.models.registry import find_method
from flawsmith.runtime.bundle import EngineName, SelectionName, TrainingEngine
from flawsmith.runtime.errors import FlawsmithError, why_refused
from flawsmith.runtime.files import BASELINES
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import (
    RangeAdvice,
    ValueSummary,
    decode,
    kind_of_images,
    range_advice,
    summarise_values,
)
from flawsmith.runtime.tiles import LARGEST_TILE, OVERLAP_SHARE, SMALLEST_TILE, Tiling

_LOOKED_AT = 24
"""Images whose values are looked at before anything is done with them."""


class TrainSettings(BaseModel):
    """The choices of a run that its result depends on; config.yaml holds them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = "fusion"
    preset: str | None = Field(None, description="Preset of the method; by default fast.")
    backbone: str | None = Field(None, description="Name or file of the backbone; by default what the preset takes.")
    seed: int = Field(0, ge=0, description="Seed of every random draw.")
    set: dict[str, Any] = Field(default_factory=dict, description="Fields of the method's configuration to change.")
    engine: TrainingEngine = Field(
        "onnxruntime",
        description="Engine of training features, calibration and inspection; torch computes features on the device "
        "that trains, and leaves calibration and inspection to onnxruntime.",
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="Precision of that engine.")
    select: SelectionName = Field(
        "last",
        description="Checkpoint: the last, the best on held-out good images and synthetic flaws, or, as an oracle, the "
        "best on labelled test images, which stamps everything that the model gives.",
    )
    alpha: float = Field(0.01, gt=0, lt=1, description="Target false-reject rate of the limit.")
    review_alpha: float | None = Field(None, gt=0, lt=1, description="Rate of the review limit; none by default.")
    textures: str | None = Field(
        None, description="Textures that flaws are synthesized from: a folder, self, or procedural (the default)."
    )
    foregrounds: str | None = Field(
        None, description="Folder of foreground masks, for foreground=files; fg_mask beside the images by default."
    )
    fraction: float = Field(
        1.0, gt=0, le=1, description="Share of the images to learn from that is used; what is held out stays the same."
    )
    bits: int | None = Field(None, ge=9, le=16, description="Significant bits of images deeper than 8 bits.")
    value_range: tuple[FiniteFloat, FiniteFloat] | None = Field(
        None, description="Values of images deeper than 8 bits that become black and white, such as 7000 and 9000."
    )
    layout: str | None = Field(None, description="Layout of the data; detected by default.")
    trim: float | None = Field(
        None,
        gt=0,
        lt=0.5,
        description="Share of the good images, those least like the others, that is neither learned from nor counted "
        "for the limit: for images that may hold flawed parts.",
    )
    holdout: bool | None = Field(
        None,
        description="Keep good images back from training to set the limit, where no validation images do; null: as "
        "the preset has it. Published presets learn from all images, and their limits rest on images learned from.",
    )
    cross_fit: int | None = Field(
        None,
        ge=2,
        le=100,
        description="Learn from all images; the limit rests on each, scored by one of so many models of the others.",
    )
    group: str = Field(
        "auto",
        description="What images belong together, such as those of a day; whole groups are held out: auto, none, "
        "folder, date, name:REGEX or column:NAME.",
    )
    roi: str | None = Field(
        None, description="Region of interest and zones: a JSON file of polygons or a mask image, in pixels of images."
    )
    min_area: str | None = Field(None, description="Smallest region that counts: pixels, or an area such as 0.2mm2.")
    scale: str | None = Field(None, description="Side of a pixel, in millimetres or such as 50um.")
    smallest_flaw: str | None = Field(
        None,
        description="How wide the smallest flaw is that must be found, in pixels of the images or such as 0.5mm: the "
        "input's size follows from it.",
    )
    tile: int | None = Field(
        None,
        ge=SMALLEST_TILE,
        le=LARGEST_TILE,
        description="Side of the tiles into which images are cut, pixels of the images; by default none are.",
    )
    overlap: int | None = Field(
        None, ge=0, description="Pixels over which tiles overlap, below half of the tile; by default an eighth of it."
    )

    @property
    def graph_engine(self) -> EngineName:
        """The engine of the exported model."""
        return "onnxruntime" if self.engine == "torch" else self.engine

    @property
    def tiling(self) -> Tiling | None:
        """How images are cut into tiles; None: each is seen as a whole."""
        if self.tile is None:
            return None
        return Tiling(size=self.tile, overlap=self.tile // OVERLAP_SHARE if self.overlap is None else self.overlap)

    @property
    def source_range(self) -> tuple[float, float] | None:
        """Values of images deeper than 8 bits that become black and white; None: 0 and 65535."""
        return self.value_range if self.bits is None else Geometry.range_of_bits(self.bits)

    @property
    def range_option(self) -> str:
        """How the command line gives that range."""
        if self.bits is not None:
            return f"--bits {self.bits}"
        return "" if self.value_range is None else f"--value-range {self.value_range[0]:g}:{self.value_range[1]:g}"

    @field_validator("textures", "foregrounds", "roi", "min_area", "scale", "smallest_flaw", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, (Path, int, float)) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _fit_together(self) -> TrainSettings:
        if self.value_range is not None:
            if self.bits is not None:
                raise ValueError("bits and value_range say the same in two ways, give one of them")
            if not 0 <= self.value_range[0] < self.value_range[1] <= 65535:
                raise ValueError("value_range must rise, within 0 and 65535")
        if self.overlap is not None and self.tile is None:
            raise ValueError(f"overlap={self.overlap} says how far tiles overlap: give their side too, as tile")
        if self.overlap is not None and self.tile is not None and 2 * self.overlap >= self.tile:
            raise ValueError(f"overlap={self.overlap} must be below half of the tile, {self.tile}")
        if self.cross_fit is not None:
            if self.trim is not None:
                raise ValueError("--trim leaves images out and --cross-fit takes all, give one of them")
            if self.holdout is not None:
                raise ValueError("--cross-fit learns from all images and holds each out once, leave --holdout out")
            if self.fraction != 1:
                raise ValueError("--cross-fit takes all images, leave --fraction out")
        if self.select != "last" and self.method in BASELINES:
            raise ValueError(f"{self.method} trains nothing, so there is no checkpoint to choose, keep --select last")
        pixel_size = None if self.scale is None else parse_length(self.scale, "--scale")
        if self.min_area is not None:
            parse_area(self.min_area, pixel_size, "--min-area")
        if self.engine != "openvino" and self.precision != "float32":
            raise ValueError(f"{self.engine} computes in float32, use engine openvino for bfloat16")
        if self.review_alpha is not None and self.review_alpha <= self.alpha:
            raise ValueError(f"the review rate must be larger than the rate of false rejects, {self.alpha}")
        return self


def check_settings(values: Mapping[str, Any], options: Iterable[str] = ()) -> TrainSettings:
    """Settings from loose values.

    Args:
        options: what else can be given beside settings, for the closest match.

    Raises:
        FlawsmithError: for an unknown field or a value out of range, in one line.
    """
    unknown = min(set(values) - set(TrainSettings.model_fields), default=None)
    if unknown is not None:
        hint = _closest(unknown, [*TrainSettings.model_fields, *options])
        raise FlawsmithError(
            f"train has no setting called {unknown!r}{hint}: `flawsmith train --help` lists them, and settings of a "
            "method go into set={...}"
        )
    try:
        return TrainSettings(**values)
    except ValidationError as error:
        raise in_words(error, "") from error


def spread(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Every so many-th of the images: those whose values are looked at."""
    return samples[:: max(1, len(samples) // _LOOKED_AT)][:_LOOKED_AT]


def look_at_values(
    samples: Sequence[Sample], settings: TrainSettings, known: Mapping[Path, ValueSummary] | None = None
) -> tuple[str, RangeAdvice | None]:
    """Look at the values of some images before anything is learned from them or drawn on them.

    Args:
        known: the values of images that have been decoded already.

    Returns:
        The kind of the images, as `kind_of_images` names it, and what is to be said of their values.

    Raises:
        FlawsmithError: an image cannot be read, or the declared range makes them black or white.
    """
    known = known or {}
    summaries = [known.get(sample.image) or summarise_values(decode(sample.image)) for sample in spread(samples)]
    advice = range_advice(summaries, settings.source_range, settings.range_option)
    if advice is not None and advice.refused:
        raise FlawsmithError(str(advice))
    return kind_of_images(summaries), advice


def require_engine(settings: TrainSettings) -> None:
    """Refuse an engine that is not installed, before anything is computed with another.

    Raises:
        FlawsmithError: naming the package.
    """
    if find_spec(settings.engine) is None:
        raise FlawsmithError(
            f"--engine {settings.engine} is not installed: run `pip install 'flawsmith[{settings.engine}]'`, or leave "
            "it out for onnxruntime"
        )


def method_config(settings: TrainSettings) -> tuple[str, ModelConfig]:
    """Name of the preset and the method's configuration with the user's changes.

    Raises:
        FlawsmithError: for an unknown method or preset, an unknown field, or a value out of range.
    """
    method = find_method(settings.method)
    preset = settings.preset or "fast"
    if preset not in method.presets:
        raise FlawsmithError(
            f"{method.name} has no preset called {preset!r}: choose from {', '.join(method.presets)} with --preset"
        )
    base = list(method.Config.model_fields)
    unknown = min(set(settings.set) - set(base), default=None)
    if unknown is not None:
        raise FlawsmithError(
            f"{method.name} has no setting called {unknown!r}{_closest(unknown, base)}: "
            f"`flawsmith settings {method.name}` lists them"
        )
    try:
        config = method.configure(preset, settings.set)
    except ValidationError as error:
        raise in_words(error, "--set ") from error
    if config.precision == "auto":
        config = config.model_copy(update={"precision": "bf16-mixed" if computes_in_bfloat16() else "32-true"})
    return preset, config


def _closest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), 1)
    return f", did you mean {close[0]!r}?" if close else ""


def describe_settings(method: str, preset: str | None = None) -> list[dict[str, Any]]:
    """What can be set of a method: the name, value in the preset and meaning of each setting.

    Raises:
        FlawsmithError: for an unknown method or preset.

    Example:
        >>> "image_size" in {row["name"] for row in describe_settings("padim")}
        True
    """
    _, config = method_config(TrainSettings(method=method, preset=preset))
    values = config.model_dump(mode="json")
    fields = type(config).model_fields
    return [{"name": name, "value": values[name], "meaning": fields[name].description or ""} for name in fields]


def computes_in_bfloat16() -> bool:
    """Whether bfloat16 has instructions of its own here; elsewhere it is slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # from torch 2.10 on
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


_LONGEST_VALUE = 120
"""Characters of a value that a message shows."""


def in_words(error: ValidationError, prefix: str) -> FlawsmithError:
    """What pydantic found wrong first, as one line that begins with ``prefix``."""
    # A field of several types is reported once for each of them, under names of pydantic's own making. Of a mapping or
    # a list, errors that lie deeper say more than that it is none of the other types.
    field = error.errors()[0]["loc"][:1]
    errors = [each for each in error.errors() if each["loc"][:1] == field]
    deepest = max(len(each["loc"]) for each in errors)
    errors = [e for e in errors if len(e["loc"]) == deepest or not isinstance(e["input"], (dict, list, tuple))]
    first = max(errors, key=lambda each: len(each["loc"]))
    name = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or _is_setting(part))
    if first["type"] == "missing":
        return FlawsmithError(f"{prefix}{why_refused(first, name)}: add it")
    setting = f"{name}={_shortened(first['input'])} is" if name else "these settings are"
    reasons = dict.fromkeys(why_refused(each) for each in errors)
    return FlawsmithError(f"{prefix}{setting} not possible: {', or '.join(reasons)}")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _is_setting(part: str) -> bool:
    """Whether a part of an error's place is a setting's name, not a type's: classes are capitalised."""
    return part.isidentifier() and part.islower() and part not in {"bool", "int", "float", "str"}


_FINEST_SHARED = 8
"""Levels finer than this stride are left out of a baseline: their positions would make it slow."""


def choose_baseline(name: str, method: str) -> str | None:
    """The baseline to train beside a method; none beside a baseline.

    Raises:
        FlawsmithError: no baseline is called so.
    """
    if name not in (*BASELINES, "none"):
        raise FlawsmithError(f"no baseline is called {name!r}: choose {', '.join(BASELINES)} or none with --baseline")
    return None if name == "none" or method in BASELINES else name


def baseline_settings(
    name: str, settings: TrainSettings, config: ModelConfig
) -> tuple[TrainSettings, str, ModelConfig]:
    """Settings, preset and configuration of a baseline that sees the same images in the same geometry.

    Args:
        name: its method.
        settings: of the run it stands beside.
        config: of that run's method; its levels are shared where they are not finer than stride 8, so that cached
            features serve both.
    """
    kind, preset = find_method(name), "fast"
    base = kind.presets[preset]
    strides = config.strides if config.frozen_backbone and min(config.strides) >= _FINEST_SHARED else base.strides
    geometry = {field: getattr(config, field) for field in ("image_size", "policy", "resize", "interpolation")}
    changes: dict[str, Any] = {
        "method": name,
        "preset": preset,
        "set": {},
        "select": "last",
        "textures": None,
        "foregrounds": None,
    }
    backbone = settings.backbone if config.frozen_backbone else base.default_backbone
    chosen = settings.model_copy(update={**changes, "backbone": backbone})
    return chosen, preset, kind.Config(**{**base.model_dump(), **geometry, "strides": strides})
