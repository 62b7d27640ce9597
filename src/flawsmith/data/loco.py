"""What ``defects_config.json`` of MVTec LOCO AD says: when a defect of each kind counts as found whole.

The file is a list with an entry for each kind of defect: its ``defect_name``; the ``pixel_value`` by which masks mark
it; and its saturation, a share of the defect's area where ``relative_saturation`` is true, else a number of pixels.
A mask marks one defect, so it is black but for one value.

Source: Bergmann et al., "Beyond Dents and Scratches", IJCV 2022.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from flawsmith.data.samples import Dataset, Sample
from flawsmith.runtime.errors import FlawsmithError, why_refused
from flawsmith.runtime.image import ImageArray, brightest_channel, decode

MERGED_FROM = 10
"""Images from which on one value in all masks means that they were merged: fewer may well show one kind of defect."""
_MEND = "copy it anew from the data set's archive, or evaluate with --layout mvtec, without sPRO"


class DefectKind(BaseModel):
    """One entry of the file."""

    model_config = ConfigDict(frozen=True, strict=True)

    defect_name: str = Field(description="Name of the kind, such as missing_top_label.")
    pixel_value: int = Field(ge=1, le=255, description="Grey value of its masks.")
    saturation_threshold: float = Field(
        gt=0, allow_inf_nan=False, description="Share of the defect, at most 1, or pixels, at least 1, to be found."
    )
    relative_saturation: bool = Field(description="Whether the threshold is a share of the defect's area.")

    @model_validator(mode="after")
    def _fits_its_unit(self) -> DefectKind:
        if self.relative_saturation and self.saturation_threshold > 1:
            raise ValueError("a relative saturation_threshold is at most 1")
        if not self.relative_saturation and self.saturation_threshold < 1:
            raise ValueError("an absolute saturation_threshold is at least 1 pixel")
        return self


_ENTRIES = TypeAdapter(list[DefectKind])


@dataclass(frozen=True)
class Saturation:
    """How the masks of a test set saturate.

    Attributes:
        kinds: the kind of defect that each mask marks; empty where that is not known. Black masks are left out.
        notes: why it is not known, or what to bear in mind, in sentences.
    """

    kinds: Mapping[Path, DefectKind] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_defects_config(path: Path) -> dict[int, DefectKind]:
    """The kinds of defects by the grey value of their masks.

    Raises:
        FlawsmithError: missing, no JSON, an entry that lacks something or is out of range, or a value given twice; the
            line names the entry.
    """
    try:
        entries = _ENTRIES.validate_python(json.loads(path.read_text(encoding="utf-8-sig")))
    except ValidationError as error:
        raise FlawsmithError(f"{path}{_in_words(error)}; {_MEND}") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no intact JSON"
        raise FlawsmithError(f"cannot read {path} ({reason}); {_MEND}") from error
    if not entries:
        raise FlawsmithError(f"{path} has no entry; {_MEND}")
    kinds: dict[int, DefectKind] = {}
    for number, kind in enumerate(entries, 1):
        if kind.pixel_value in kinds:
            raise FlawsmithError(f"{path}, entry {number}: pixel_value {kind.pixel_value} is given twice; {_MEND}")
        kinds[kind.pixel_value] = kind
    return kinds


def _in_words(error: ValidationError) -> str:
    """Where in the file the first fault is, and what it is."""
    first = error.errors()[0]
    entry, *names = first["loc"] or ("",)
    where = f", entry {entry + 1}" if isinstance(entry, int) else ""
    return f"{where}: {why_refused(first, '.'.join(map(str, names)) or 'it')}"


def grey_values(mask: ImageArray) -> tuple[int, ...]:
    """The values but 0 that a mask has, ascending.

    Args:
        mask: (height, width, 3) as decoded; the largest channel counts.
    """
    return tuple(int(value) for value in np.flatnonzero(np.bincount(brightest_channel(mask).ravel())) if value)


def kind_of(values: Sequence[int], kinds: Mapping[int, DefectKind]) -> DefectKind | str | None:
    """The kind of defect that a mask marks, None for a black mask, or in words what is wrong with it."""
    if not values:
        return None
    if len(values) > 1:
        return f"has {len(values)} grey values, but a mask marks one defect with one"
    return kinds.get(values[0], f"has the grey value {values[0]}, which stands for no defect")


def merged_value(
    flawed: Sequence[Sample], values: Mapping[Path, Sequence[int]], kinds: Mapping[int, DefectKind]
) -> int | None:
    """The one grey value of all masks where they were merged, so that kinds can no longer be told; None where not."""
    annotated = [sample.masks for sample in flawed if sample.masks]
    distinct = {value for masks in annotated for mask in masks for value in values[mask]}
    if len(annotated) < MERGED_FROM or len(kinds) == 1 or any(len(masks) > 1 for masks in annotated):
        return None
    return distinct.pop() if len(distinct) == 1 else None


def too_large_for(pixels: int, kinds: Mapping[int, DefectKind]) -> DefectKind | None:
    """The kind with the largest saturation area, if that exceeds a whole image: the images were made smaller."""
    absolute = [kind for kind in kinds.values() if not kind.relative_saturation]
    largest = max(absolute, key=lambda kind: kind.saturation_threshold, default=None)
    return largest if largest is not None and largest.saturation_threshold > pixels else None


def saturation_of(dataset: Dataset) -> Saturation:
    """What is known of the saturation of a data set's masks, which are read once for it.

    Without the file, or where masks were merged into one grey value, nothing is known and the notes say why. Layouts
    that know no saturation give nothing, and no notes.

    Raises:
        FlawsmithError: a damaged file; a mask that cannot be read, has several grey values or one of no entry.
    """
    config = dataset.defects_config
    if config is None:
        return Saturation()
    if not config.exists():
        reason = (
            f"There is no {config.name} beside train/ and test/: sPRO is undefined. Copy it there from the archive."
        )
        return Saturation(notes=(reason,))
    kinds = read_defects_config(config)
    values: dict[Path, tuple[int, ...]] = {}
    pixels = 0
    for path in dict.fromkeys(mask for sample in dataset.test_flawed for mask in sample.masks):
        mask = decode(path)
        values[path], pixels = grey_values(mask), max(pixels, mask.shape[0] * mask.shape[1])
    merged = merged_value(dataset.test_flawed, values, kinds)
    if merged is not None:
        return Saturation(notes=(merged_note(merged, kinds, config),))
    marked: dict[Path, DefectKind] = {}
    for path, greys in values.items():
        kind = kind_of(greys, kinds)
        if isinstance(kind, str):
            raise FlawsmithError(
                f"the mask {path} {kind}; add its entry to {config}, copy the mask anew, or evaluate with "
                "--layout mvtec, without sPRO"
            )
        if kind is not None:
            marked[path] = kind
    largest = too_large_for(pixels, kinds) if values else None
    return Saturation(marked, () if largest is None else (too_large_note(largest, pixels),))


def merged_note(value: int, kinds: Mapping[int, DefectKind], config: Path) -> str:
    """Why merged masks have no saturation, in sentences."""
    return (
        f"All masks have the grey value {value}, though {config.name} knows {len(kinds)} kinds of defects: they were "
        "merged, so that sPRO is undefined. If there is but one kind, leave its entry alone in the file."
    )


def too_large_note(kind: DefectKind, pixels: int) -> str:
    """What a saturation area beyond the image means, in a sentence."""
    return (
        f"The saturation area of {kind.defect_name}, {kind.saturation_threshold:.0f} pixels, exceeds a whole image of "
        f"{pixels}: the images were made smaller, so sPRO asks for more than the published one."
    )
