"""What ``doctor`` reports of the saturation of defects, where a layout knows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flawsmith.data.defects_config import (
    DefectKind,
    kind_of,
    merged_note,
    merged_value,
    read_defects_config,
    too_large_for,
    too_large_note,
)
from flawsmith.data.findings import Finding
from flawsmith.data.samples import Dataset
from flawsmith.runtime.errors import FlawsmithError


def saturation_findings(dataset: Dataset, values: Mapping[Path, Sequence[int]], pixels: int) -> Iterator[Finding]:
    """Whether it can be told of every mask when its defect counts as found; nothing for layouts that know none.

    Args:
        dataset: the data set.
        values: the grey values but 0 of every mask that can be read.
        pixels: number of pixels of the largest mask.
    """
    config = dataset.defects_config
    if config is None:
        return
    if not config.exists():
        what = f"no {config.name}: sPRO cannot be computed"
        yield Finding("note", "no-saturation", what, (dataset.root,), "copy it there from the data set's archive")
        return
    try:
        kinds = read_defects_config(config)
    except FlawsmithError as error:
        yield Finding("error", "defects-config", str(error), (config,), "restore the file from its source")
        return
    yield from _masks(dataset, config, kinds, values, pixels)


def _masks(
    dataset: Dataset,
    config: Path,
    kinds: Mapping[int, DefectKind],
    values: Mapping[Path, Sequence[int]],
    pixels: int,
) -> Iterator[Finding]:
    flawed = [sample for sample in dataset.test_flawed if all(mask in values for mask in sample.masks)]
    paired = tuple(mask for sample in flawed for mask in sample.masks)
    merged = merged_value(flawed, values, kinds)
    if merged is not None:
        mend = "use the masks of the original data set if sPRO is wanted"
        yield Finding("note", "merged-masks", merged_note(merged, kinds, config), paired, mend)
        return
    unknown = tuple(mask for mask in paired if isinstance(kind_of(values[mask], kinds), str))
    if unknown:
        number = "1 mask" if len(unknown) == 1 else f"{len(unknown)} masks"
        what = f"{number} of several grey values, or of one that {config.name} does not know"
        yield Finding("error", "unknown-defect", what, unknown, "add the entries, or copy the masks anew")
    largest = too_large_for(pixels, kinds) if paired else None
    if largest is not None:
        mend = "use the images at their original size if sPRO is to be compared"
        yield Finding("warning", "saturation-too-large", too_large_note(largest, pixels), (config,), mend)
