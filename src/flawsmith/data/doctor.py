"""What ``flawsmith doctor`` reports about a data set: what would stop a training, spoil it, or mislead its
figures."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flawsmith.data.bursts import Thumbnail, read_thumbnails, share_unlike, thumbnail_of
from flawsmith.data.groups import BURSTS, with_groups
from flawsmith.data.layouts.base import by_name, count
from flawsmith.data.layouts.folder import SAYS_NOTHING, UNLABELLED
from flawsmith.data.layouts.names import meaning
from flawsmith.data.loco import (
    grey_values,
    kind_of,
    merged_note,
    merged_value,
    read_defects_config,
    too_large_for,
    too_large_note,
)
from flawsmith.data.masks import MaskRemarks, Oddity, read_mask_image
from flawsmith.data.public_sets import ANY, OFFICIAL, Counts, OfficialSet, is_subset
from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.splits import HELD_OUT_FRACTION, HELD_OUT_MINIMUM, content_hash, held_out_count
from flawsmith.runtime.decision import images_needed, promise_in_words, worst_rate
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import is_folder, left_out, left_out_note, open_regular
from flawsmith.runtime.formats import holds_further_pictures, open_image
from flawsmith.runtime.image import MAX_PIXELS, ValueSummary, decode, is_grey, range_advice, summarise_values

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From the gravest to the lightest."""


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing.

    Attributes:
        severity: ``error`` stops a run or makes its figures meaningless, ``warning`` may spoil them, ``note``
            is to be known.
        name: short kebab-case name of the kind of finding, for programs.
        what: what is wrong, in one line.
        where: the files or folders concerned.
        fix: what to do about it, in one line.
    """

    severity: Severity
    name: str
    what: str
    where: tuple[Path, ...]
    fix: str

    @property
    def in_a_line(self) -> str:
        """What is wrong, and where there is something to do, what."""
        return self.what if self.fix == "nothing" else f"{self.what}; {self.fix}"


@dataclass(frozen=True)
class Findings:
    """All findings of a check, the gravest first.

    Attributes:
        summary: the data set in one line.
        items: the findings.
        recognised: why the data set was read in the layout it was, and in no other; one line each.
    """

    summary: str
    items: tuple[Finding, ...]
    recognised: tuple[str, ...] = ()

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(item for item in self.items if item.severity == severity)

    @property
    def sound(self) -> bool:
        """Whether nothing was found that must be fixed before a run."""
        return not self.of("error")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: ``summary``, ``recognised``, the count of each severity, and ``findings``."""
        rows = [{**asdict(item), "where": [str(path) for path in item.where]} for item in self.items]
        counts = {f"{severity}s": len(self.of(severity)) for severity in SEVERITIES}
        return {"summary": self.summary, "recognised": list(self.recognised), **counts, "findings": rows}


_THREADS = 4
_DARK = 0.03
"""Mean brightness, as a share of full scale, below which an image is probably unexposed."""
_CONSTANT = 2 / 255
"""Range of values, as a share of full scale, up to which an image shows nothing."""
_FEW_TO_TRAIN = 20
_FEW_TO_COMPARE = 2
_FEW_TO_JUDGE = 20
_UNLIKE = 1 / 3
"""Share of good test images; 0.05 are expected where they were taken like the others (docs/results/bursts.md)."""
_RARE = 0.05
"""A format or size that so few of one label have goes with the other."""
_MANY_DIGITS = 5
"""Numbers of so many digits begin where the set wants them to, shorter ones at 0."""

_SPARSE = 20
"""Names that leave out more than so many numbers for each that is there are no numbering."""

_SHARED = 0.05
"""Folders that share no more of their numbers than this may have one numbering."""
_ORIENTATION = 0x0112
_NO_HEADER = "no readable header"


@dataclass(frozen=True)
class _Facts:
    """What is kept of a file once its pixels are gone.

    Attributes:
        path: the file.
        error: why it could not be read, or None; then the rest is empty.
        digest: SHA-256 of the file, empty where even that could not be had.
        size: (height, width).
        bits: bits a channel.
        format: how the file is stored, such as PNG or JPEG; empty where not known.
        further: whether it holds pictures besides the first, of images alone.
        grey: whether the three channels are equal, but for noise and a tint.
        darkest, brightest, mean: values as a share of full scale.
        values: the values but 0, of masks alone.
        oddities: what is unusual, of masks alone.
        marked: share of the image that a mask marks.
        summary: of its values, of images alone.
        thumbnail: of images alone.
    """

    path: Path
    error: str | None
    digest: str = ""
    size: tuple[int, int] = (0, 0)
    bits: int = 0
    format: str = ""
    further: bool = False
    grey: bool = False
    darkest: float = 0.0
    brightest: float = 0.0
    mean: float = 0.0
    values: tuple[int, ...] = ()
    oddities: tuple[Oddity, ...] = ()
    marked: float = 0.0
    summary: ValueSummary | None = None
    thumbnail: Thumbnail | None = None


@dataclass(frozen=True)
class _Inventory:
    dataset: Dataset
    images: dict[Path, _Facts]
    masks: dict[Path, _Facts]

    def readable(self) -> list[_Facts]:
        return [facts for facts in self.images.values() if facts.error is None]

    def thumbnails(self, images: Sequence[Path]) -> list[Thumbnail]:
        """As :func:`flawsmith.data.bursts.read_thumbnails`, of pixels that were decoded already."""
        known = [self.images[image].thumbnail for image in images]
        return [
            read_thumbnails([image])[0] if thumbnail is None else thumbnail
            for image, thumbnail in zip(images, known, strict=True)
        ]


def check(dataset: Dataset, *, threads: int = _THREADS) -> Findings:
    """Read every image and mask of a data set and say what is odd.

    Returns:
        The findings, gravest first; empty if all is well. Damaged files are findings, not exceptions.
    """
    images = list(dict.fromkeys(sample.image for sample in dataset.samples))
    paired = [mask for sample in dataset.samples for mask in sample.masks]
    masks = list(dict.fromkeys((*paired, *dataset.unused_masks)))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        facts = dict(zip(images, pool.map(_examine, images), strict=True))
        mask_facts = dict(zip(masks, pool.map(partial(_examine, is_mask=True), masks), strict=True))
    inventory = _Inventory(dataset, facts, mask_facts)
    findings = [finding for rule in _RULES for finding in rule(inventory)]
    items = tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity)))
    return Findings(dataset.summary(), items, (dataset.recognised, *dataset.near_misses))


def _examine(path: Path, *, is_mask: bool = False) -> _Facts:
    digest = ""
    try:
        digest = content_hash(path)
        mask = read_mask_image(path) if is_mask else None
        pixels = decode(path) if mask is None else mask.pixels
    except FlawsmithError as error:
        return _Facts(path, str(error), digest)
    full = float(np.iinfo(pixels.dtype).max)
    header = _Facts(path, None) if is_mask else _header(path)
    values = None if is_mask else summarise_values(pixels)
    return _Facts(
        path,
        None,
        digest,
        (pixels.shape[0], pixels.shape[1]),
        pixels.dtype.itemsize * 8,
        header.format,
        header.further,
        is_grey(pixels) if values is None else values.grey,
        float(pixels.min()) / full,
        float(pixels.max()) / full,
        float(pixels.mean()) / full,
        *(((), (), 0.0) if mask is None else (grey_values(pixels), mask.oddities, mask.share)),
        values,
        None if is_mask else thumbnail_of(pixels),
    )


def _header(path: Path) -> _Facts:
    """What an image says of itself, without its pixels; whoever needs these will tell why it cannot be read."""
    try:
        with open_regular(path) as stream, open_image(stream, str(path), MAX_PIXELS) as image:
            width, height = image.size
            raw = str(image.tile[0][3]) if getattr(image, "tile", None) else ""
            bits = 16 if image.mode.startswith(("I", "F")) or ";16" in raw else 8
            # Only where the note on orientation comes before the pixels.
            exif = image.getexif() if image.format in ("JPEG", "TIFF") else {}
            turned = exif.get(_ORIENTATION, 1) in (5, 6, 7, 8)
            size, error = (width, height) if turned else (height, width), None if image.format else _NO_HEADER
            further = holds_further_pictures(image)
            return _Facts(path, error, size=size, bits=bits, format=image.format or "", further=further)
    except Exception:  # Pillow answers odd bytes with nearly every exception there is
        return _Facts(path, _NO_HEADER)


def glance(dataset: Dataset, *, threads: int = _THREADS) -> tuple[Finding, ...]:
    """What :func:`check` says that would spoil a training, from headers and contents' hashes alone: in seconds.

    Returns:
        Errors and warnings: mixed depths, shapes that differ, images labelled good and flawed, and a format or a size
        that goes with the label. Files that cannot be read are passed over.
    """
    images = list(dict.fromkeys(sample.image for sample in dataset.samples))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        facts = dict(zip(images, pool.map(_glance_at, images), strict=True))
    inventory = _Inventory(dataset, facts, {})
    findings = [finding for rule in _QUICK_RULES for finding in rule(inventory)]
    grave = [finding for finding in findings if finding.severity != "note" and finding.name != "duplicate"]
    return tuple(sorted(grave, key=lambda finding: SEVERITIES.index(finding.severity)))


def _glance_at(path: Path) -> _Facts:
    try:
        digest = content_hash(path)  # first, for it opens no pipe
        return replace(_header(path), digest=digest)
    except FlawsmithError as error:
        return _Facts(path, str(error))


def _unreadable(inventory: _Inventory) -> Iterable[Finding]:
    for kind, files in (("image", inventory.images), ("mask", inventory.masks)):
        for facts in files.values():
            if facts.error is not None:
                fault, _, advice = facts.error.rpartition("; ")
                yield Finding("error", f"unreadable-{kind}", fault, (facts.path,), f"{advice}, or remove the file")


def _leaks(inventory: _Inventory) -> Iterable[Finding]:
    held: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for sample in inventory.dataset.samples:
        held[inventory.images[sample.image].digest][sample.split].append(sample.image)
    held.pop("", None)
    shared = {digest: splits for digest, splits in held.items() if len(splits) > 1}
    if shared:
        where = tuple(path for splits in shared.values() for paths in splits.values() for path in paths)
        names = ", ".join(sorted({split for splits in shared.values() for split in splits}))
        message = f"{_images(len(shared))} in more than one of {names}: figures on such images mean nothing"
        yield Finding("error", "leak", message, where, "keep each image in one split only")


def _duplicates(inventory: _Inventory) -> Iterable[Finding]:
    held: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in inventory.dataset.samples:
        held[inventory.images[sample.image].digest, sample.split].append(sample)
    groups = [group for (digest, _), group in held.items() if digest and len(group) > 1]
    disputed = [group for group in groups if len({s.label for s in group}) > 1]
    copies = [group for group in groups if group not in disputed]
    if disputed:
        message = f"{_images(len(disputed))} labelled both good and flawed"
        where = tuple(s.image for group in disputed for s in group)
        yield Finding("error", "contradictory-labels", message, where, "decide which label holds, remove the other")
    if copies:
        extra = sum(len(group) - 1 for group in copies)
        message = f"{_images(extra)} stored more than once; copies add no knowledge and weigh double"
        where = tuple(s.image for group in copies for s in group)
        yield Finding("warning", "duplicate", message, where, "remove the copies")


def _twins(inventory: _Inventory) -> Iterable[Finding]:
    """Images of one name and two endings: one of them may be a mask, or the same picture saved twice."""
    by_name: dict[Path, list[Path]] = defaultdict(list)
    for path in inventory.images:
        by_name[path.with_suffix("")].append(path)
    twins = [paths for paths in by_name.values() if len(paths) > 1]
    if twins:
        first = " and ".join(path.name for path in twins[0][:2])
        number = "1 name has" if len(twins) == 1 else f"{len(twins)} names have"
        message = f"{number} two images beside each other ({first}): copies, or masks among the images?"
        where = tuple(path for paths in twins for path in paths)
        yield Finding("warning", "twin-names", message, where, "move masks to their own folder, remove copies")


def _odd_sizes(inventory: _Inventory) -> Iterable[Finding]:
    readable = inventory.readable()
    sizes = Counter(facts.size for facts in readable)
    if len(sizes) <= 1:
        return
    (height, width), most = sizes.most_common(1)[0]
    odd = [facts.path for facts in readable if facts.size != (height, width)]
    shapes = [w / h for h, w in sizes]
    message = f"{len(sizes)} sizes: {_images(most)} of {width} x {height}, {len(odd)} of others"
    if max(shapes) > 1.1 * min(shapes):
        fix = (
            "your images have different shapes and would be distorted: crop them alike, or train with "
            "--set policy=letterbox"
        )
        yield Finding("warning", "odd-size", message, tuple(odd), fix)
    else:
        fix = "nothing, if one camera took them: all are scaled to one size"
        yield Finding("note", "odd-size", message, tuple(odd), fix)


def _further_pictures(inventory: _Inventory) -> Iterable[Finding]:
    files = tuple(facts.path for facts in inventory.readable() if facts.further)
    if files:
        several = "1 image holds" if len(files) == 1 else f"{len(files)} images hold"
        message = (
            f"{several} further pictures (an animation, or several of a camera): the first of a file is used alone"
        )
        fix = "save every picture that shows a part as a file of its own"
        yield Finding("warning", "further-pictures", message, files, fix)


def _odd_colours(inventory: _Inventory) -> Iterable[Finding]:
    readable = inventory.readable()
    grey = [facts.path for facts in readable if facts.grey]
    colour = [facts.path for facts in readable if not facts.grey]
    if grey and colour:
        fewer, kind = (grey, "grey") if len(grey) < len(colour) else (colour, "colour")
        message = f"{_images(len(fewer))} in {kind}, unlike the other {len(readable) - len(fewer)}"
        yield Finding("warning", "odd-colour", message, tuple(fewer), "take all images with one camera setting")


def _shortcuts(inventory: _Inventory) -> Iterable[Finding]:
    """Formats and sizes that go with the label: a model, or its figures, may tell these apart instead of flaws."""
    facts = [(s, inventory.images[s.image]) for s in inventory.dataset.samples]
    known = [(s, f) for s, f in facts if f.error is None]
    good, flawed = ([f for s, f in known if s.label == label] for label in ("good", "flawed"))
    learned, tested = ([f for s, f in known if s.label == "good" and s.split == split] for split in ("train", "test"))
    groups = (("good", good, "flawed", flawed), ("training", learned, "good test", tested))
    for name, usual, other_name, others in groups:
        if len(usual) < _FEW_TO_COMPARE or len(others) < _FEW_TO_COMPARE:
            continue
        for kind, key in (("format", _format_of), ("size", _size_of)):
            usual_counts, other_counts = Counter(map(key, usual)), Counter(map(key, others))
            value, number = other_counts.most_common(1)[0]
            if number < len(others) / 2 or usual_counts[value] > len(usual) * _RARE:
                continue
            typical, most = usual_counts.most_common(1)[0]
            message = (
                f"{number} of {len(others)} {other_name} images are {value}, but {most} of {len(usual)} {name} images "
                f"{typical}: figures may measure the {kind}, not the flaws"
            )
            where = tuple(f.path for f in others if key(f) == value)
            yield Finding("warning", f"{kind}-by-label", message, where, "take and store all images alike")


def _format_of(facts: _Facts) -> str:
    return facts.format


def _size_of(facts: _Facts) -> str:
    return f"{facts.size[1]} x {facts.size[0]}"


def _odd_depths(inventory: _Inventory) -> Iterable[Finding]:
    readable = inventory.readable()
    depths = Counter(facts.bits for facts in readable)
    if len(depths) > 1:
        common = depths.most_common(1)[0][0]
        odd = tuple(facts.path for facts in readable if facts.bits != common)
        message = f"mixed bit depths: {_images(depths[common])} of {common} bits, {len(odd)} of others"
        fix = "store all images alike: one value range holds for the whole model"
        yield Finding("error", "mixed-depth", message, odd, fix)


def _value_range(inventory: _Inventory) -> Iterable[Finding]:
    """Deep images whose values fill little of their range, where none is declared."""
    deep = [facts for facts in inventory.readable() if facts.bits > 8]
    advice = range_advice([facts.summary for facts in deep if facts.summary is not None], None)
    if advice is not None:
        yield Finding("warning", "value-range", advice.what, tuple(facts.path for facts in deep), advice.fix)


def _empty_pictures(inventory: _Inventory) -> Iterable[Finding]:
    readable = inventory.readable()
    constant = [f.path for f in readable if f.brightest - f.darkest <= _CONSTANT]
    dark = [f.path for f in readable if f.mean < _DARK and f.path not in set(constant)]
    if constant:
        message = f"{_images(len(constant))} of one even tone: nothing is to be seen"
        yield Finding("warning", "constant", message, tuple(constant), "remove them, or take them again")
    if dark:
        fix = "raise the exposure; for 10- or 12-bit cameras stored in 16 bits declare the value range"
        yield Finding("warning", "dark", f"{_images(len(dark))} almost black", tuple(dark), fix)


def _pair_faults(inventory: _Inventory) -> Iterable[Finding]:
    """Masks that do not fit their images."""
    other_size, empty = [], []
    for sample in inventory.dataset.samples:
        image = inventory.images[sample.image]
        for path in sample.masks:
            mask = inventory.masks[path]
            if mask.error is not None or image.error is not None:
                continue
            if mask.size != image.size:
                other_size.append(path)
            if mask.marked == 0:
                empty.append(path)
    if other_size:
        message = f"{count(len(other_size), 'mask')} of another size than the image"
        fix = "export the masks in the pixels of their images"
        yield Finding("error", "mask-size", message, tuple(other_size), fix)
    if empty:
        message = f"{count(len(empty), 'mask')} of flawed images without a marked pixel"
        fix = "mark the flaw, or remove the mask so that the image counts as not annotated"
        yield Finding("warning", "empty-mask", message, tuple(empty), fix)


def _missing_and_unused_masks(inventory: _Inventory) -> Iterable[Finding]:
    dataset = inventory.dataset
    missing = tuple(sample.image for sample in dataset.without_mask)
    if missing:
        severity: Severity = "warning" if any(s.masks for s in dataset.samples) else "note"
        message = f"{count(len(missing), 'flawed image')} without a mask"
        place = by_name(dataset.layout).place_of_masks
        fix = f"add masks {place}, if pixel figures are wanted; image figures need none"
        yield Finding(severity, "missing-mask", message, missing, fix)
    good = [path for path in dataset.unused_masks if any(meaning(n) == "good" for n in _folders(path, dataset.root))]
    marked = tuple(p for p in good if inventory.masks[p].error is None and inventory.masks[p].marked > 0)
    if marked:
        message = f"{count(len(marked), 'mask')} of good images with marked pixels"
        fix = "remove the mask, or move the image to its defect type"
        yield Finding("warning", "mask-of-good", message, marked, fix)
    orphans = tuple(path for path in dataset.unused_masks if path not in set(good))
    if orphans:
        message = f"{count(len(orphans), 'mask')} without an image"
        fix = "name masks after their images, in mvtec layout ground_truth/<defect>/<stem>_mask.png or a folder <stem>/"
        yield Finding("warning", "orphan-mask", message, orphans, fix)


def _odd_masks(inventory: _Inventory) -> Iterable[Finding]:
    """Masks that may not mark what their authors meant."""
    remarks = MaskRemarks()
    for path in dict.fromkeys(path for sample in inventory.dataset.samples for path in sample.masks):
        remarks.update(path, inventory.masks[path].oddities, inventory.masks[path].marked)
    for oddity, (message, fix) in remarks.sentences().items():
        severity: Severity = "note" if oddity in ("alpha", "soft", "outlines") else "warning"
        yield Finding(severity, f"mask-{oddity}", message, remarks.files(oddity), fix)


def _saturation(inventory: _Inventory) -> Iterable[Finding]:
    """Whether it can be told of every mask when its defect counts as found; nothing for layouts that know none."""
    dataset, config = inventory.dataset, inventory.dataset.defects_config
    if config is None:
        return
    if not config.exists():
        message = f"no {config.name}: sPRO cannot be computed"
        yield Finding("note", "no-saturation", message, (dataset.root,), "copy it there from the data set's archive")
        return
    try:
        kinds = read_defects_config(config)
    except FlawsmithError as error:
        yield Finding("error", "defects-config", str(error), (config,), "restore the file from its source")
        return
    read = {path: facts for path, facts in inventory.masks.items() if facts.error is None}
    values = {path: facts.values for path, facts in read.items()}
    flawed = [sample for sample in dataset.test_flawed if all(mask in values for mask in sample.masks)]
    paired = tuple(mask for sample in flawed for mask in sample.masks)
    merged = merged_value(flawed, values, kinds)
    if merged is not None:
        fix = "use the masks of the original data set if sPRO is wanted"
        yield Finding("note", "merged-masks", merged_note(merged, kinds, config), paired, fix)
        return
    unknown = tuple(mask for mask in paired if isinstance(kind_of(values[mask], kinds), str))
    if unknown:
        message = f"{count(len(unknown), 'mask')} of several grey values, or of one that {config.name} does not know"
        yield Finding("error", "unknown-defect", message, unknown, "add the entries, or copy the masks anew")
    pixels = max((height * width for height, width in (facts.size for facts in read.values())), default=0)
    largest = too_large_for(pixels, kinds) if paired else None
    if largest is not None:
        fix = "use the images at their original size if sPRO is to be compared"
        yield Finding("warning", "saturation-too-large", too_large_note(largest, pixels), (config,), fix)


def _too_few(inventory: _Inventory) -> Iterable[Finding]:
    dataset = inventory.dataset
    if not dataset.good_train:
        message = "nothing to learn from: a test set for models trained elsewhere"
        yield Finding("note", "test-set-alone", message, (dataset.root,), "nothing")
        return
    distinct = len({inventory.images[s.image].digest for s in dataset.good_train})
    if distinct < _FEW_TO_TRAIN:
        message = f"{count(distinct, 'different good image')} to learn from"
        fix = f"add good images; from {_FEW_TO_TRAIN} on natural variation begins to be covered"
        yield Finding("warning", "few-to-train", message, (dataset.root,), fix)
    calibration = len(dataset.good_val) or held_out_count(distinct)
    needed, proven = images_needed(0.01)
    if calibration < needed:
        # With n images the least share of rejected good parts that can be promised is 1 / (n + 1).
        promised = promise_in_words(1 / (calibration + 1), worst_rate(1, calibration) if calibration else 1.0)
        best = f"best promise: a limit that rejects about {promised}"
        if dataset.good_val:  # nothing is held out of training: more images there would not help
            message = f"only {_images(calibration)} of your validation folder set the limit; {best}"
            fix = f"for 10 of 1,000 put {needed} images into validation/good/, {proven} to be 95 % sure"
        else:
            message = f"only {calibration} of your {_images(distinct)} can be used to set the limit; {best}"
            fix = (
                f"for 10 of 1,000: {needed} extra images in validation/good/ ({proven} to be 95 % sure), or "
                f"{round(needed / HELD_OUT_FRACTION)} images in all; with few images, `train --cross-fit 5`"
            )
        severity: Severity = "warning" if calibration < HELD_OUT_MINIMUM else "note"
        yield Finding(severity, "few-to-calibrate", message, (dataset.root,), fix)


def _groups(inventory: _Inventory) -> Iterable[Finding]:
    """Images that belong together: of one day, or frames of one scene."""
    dataset = with_groups(inventory.dataset, thumbnails=inventory.thumbnails)
    images = dict.fromkeys(s.image for s in dataset.samples if not s.is_flawed and s.split != "test")
    by_group: dict[str, list[Path]] = defaultdict(list)
    for sample in dataset.samples:
        if sample.image in images:
            by_group[sample.group].append(sample.image)
    by_group.pop("", None)
    if dataset.grouped_by and dataset.grouped_by != BURSTS:
        most, least = (compare(map(len, by_group.values())) for compare in (max, min))
        message = f"{count(len(by_group), 'group')} by {dataset.grouped_by}, of {least} to {_images(most)}"
        yield Finding("note", "groups", message, (dataset.root,), "nothing")
    elif dataset.grouped_by:
        scenes = [group for group in by_group.values() if len(group) > 1]
        twins = tuple(image for scene in scenes for image in scene)
        message = (
            f"{len(twins)} of {_images(len(images))} are nearly equal to others: {count(len(scenes), 'scene')} of 2 "
            f"to {_images(max(map(len, scenes)))}; a limit set by frames of learned scenes promises too much"
        )
        fix = "take single pictures of more parts; train keeps the frames of a scene on one side"
        yield Finding("warning", "bursts", message, twins, fix)


def _unlike_test(inventory: _Inventory) -> Iterable[Finding]:
    """Good test images that were taken otherwise than those to learn from."""
    dataset = inventory.dataset
    learned, tested = ([s.image for s in each] for each in (dataset.good_train, dataset.test_good))
    if len(learned) < _FEW_TO_TRAIN or len(tested) < _FEW_TO_JUDGE:
        return
    share = share_unlike(tested, learned, inventory.thumbnails)
    if share > _UNLIKE:
        message = (
            f"{round(share * len(tested))} of {len(tested)} good test images are less like the training images than "
            "these are like each other: many good parts may be rejected"
        )
        fix = "learn from images of all days, cameras and lots, and take single pictures of many parts"
        yield Finding("warning", "unlike-test", message, (dataset.root,), fix)


def _notes(inventory: _Inventory) -> Iterable[Finding]:
    """What the layout noted."""
    dataset = inventory.dataset
    for note in dataset.notes:
        message, _, fix = note.partition("; ")
        if message.startswith("left out"):  # as the layout wants it
            yield Finding("note", "left-out", message, dataset.left_out or (dataset.root,), "nothing")
        elif message.startswith(UNLABELLED):
            severity: Severity = "warning" if message.endswith(SAYS_NOTHING) else "note"
            yield Finding(severity, "unlabelled-folders", message, (dataset.root,), fix or "nothing")
        else:
            yield Finding("warning", "not-used", message, (dataset.root,), fix or "nothing")


def _unread_files(inventory: _Inventory) -> Iterable[Finding]:
    root = inventory.dataset.root
    note, _, fix = left_out_note(left_out([root])).partition(": ")
    if note:
        yield Finding("warning", "unread-files", note, (root,), fix)


def official_findings(dataset: Dataset) -> Iterable[Finding]:
    """Compare a category with the public data set that it belongs to; nothing for one's own data.

    All of it is a note: a reduced or differently split copy is sound, but its figures are not those of the benchmark.
    It is taken for a category of a public set when the layout and the folder's name are that of one, and one thing
    more agrees: the name of the folder above, another category beside it, or one of the counts.
    """
    official = known_as(dataset)
    if official is None:
        return
    expected = official.categories.get(dataset.category, official.categories.get(ANY))
    datasets, title = [dataset], official.name if ANY in official.categories else f"{official.name}, {dataset.category}"
    if expected is None and official.total is not None:
        whole = _all_categories(dataset, official)
        if whole is None:
            message = f"{title}: of this set only the sum over its categories is known ({official.source})"
            yield Finding("note", "official-counts", message, (dataset.root,), "nothing")
            return
        datasets, expected, title = whole, official.total, f"{official.name}, {len(whole)} categories together"
    if expected is None:
        return
    agree, differ = _compare(_counts_of(datasets), expected)
    if not differ:
        message = f"{title}: all counts are the official ones ({', '.join(agree)})"
        yield Finding("note", "official-counts", message, (dataset.root,), "nothing")
        return
    others = f"; as officially {', '.join(agree)}" if agree else ""
    message = f"{title}: not the official set, {', '.join(differ)}{others}"
    fix = f"nothing, where a part is enough; for figures to compare copy the set anew ({official.source})"
    yield Finding("note", "official-counts", message, (dataset.root,), fix)
    missing = tuple(path for each in datasets for path in missing_numbers(each))
    if missing:
        files = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
        folders = dict.fromkeys(f"{dataset.name_of(path.parent)}/" for path in missing)
        message = f"{files} missing from the numbering of {', '.join(folders)}"
        yield Finding("note", "missing-files", message, missing, "copy them from the data set's archive")


def known_as(dataset: Dataset) -> OfficialSet | None:
    """The public data set that a category belongs to, or None."""
    return next((official for official in OFFICIAL if _is(dataset, official)), None)


def _is(dataset: Dataset, official: OfficialSet) -> bool:
    if dataset.layout != official.layout:
        return False
    if ANY in official.categories:
        return True
    if dataset.category not in official.categories:
        return False
    above = dataset.root.parent
    if official.subset is not None:
        return is_subset(above, official)
    if official.is_called(above.name):
        return True
    if any((above / name).is_dir() for name in official.categories if name != dataset.category):
        return True
    expected = official.categories[dataset.category]
    return expected is not None and bool(_compare(_counts_of([dataset]), expected)[0])


def _all_categories(dataset: Dataset, official: OfficialSet) -> list[Dataset] | None:
    """The categories of the set that lie beside this one, or None where one is missing."""
    layout, categories = by_name(dataset.layout), []
    for name in official.categories:
        try:
            neighbour = dataset.root.parent / name
            categories.append(dataset if name == dataset.category else layout.load(neighbour))
        except FlawsmithError:
            return None
    return categories


def _counts_of(datasets: Sequence[Dataset]) -> Counts:
    defects: dict[str, int] = defaultdict(int)
    for each in datasets:
        for sample in each.test_flawed:
            defects[sample.defect] += 1
    train, validation, test = (
        sum(len(each.of(split=split, label="good")) for each in datasets) for split in ("train", "val", "test")
    )
    flawed, left_out = sum(defects.values()), sum(len(each.left_out) for each in datasets)
    return Counts(train, validation, test, flawed, train + validation + test, left_out, defects)


def _compare(counts: Counts, expected: Counts) -> tuple[list[str], list[str]]:
    """In words: the counts that agree, and those that differ and by how much. Numbers of none agree silently."""
    defects = [(f"{name} to test", counts.defects.get(name, 0), n) for name, n in expected.defects.items()]
    flawed = [] if defects else [("flawed to test", counts.flawed, expected.flawed)]
    rows = [
        ("to train on", counts.train, expected.train),
        ("to validate", counts.validation, expected.validation),
        ("good to test", counts.test_good, expected.test_good),
        ("good", counts.good, expected.good),
        *flawed,
        *defects,
        ("flawed or unmarked left out", counts.left_out, expected.left_out),
    ]
    agree, differ = [], []
    for name, here, there in rows:
        if here is None or there is None or here == there == 0:
            continue
        if here == there:
            agree.append(f"{here} {name}")
        else:
            differ.append(f"{here} {name} where {there} are official ({here - there:+d})")
    return agree, differ


def missing_numbers(dataset: Dataset) -> list[Path]:
    """Files that the numbering of the images in each folder lacks, up to the largest number there.

    Folders in which any name is not a number, or where numbers are sparse, are passed over: there a missing file cannot
    be told. Where one numbering was spread over folders, what lies in another folder is not missing.
    """
    by_folder: dict[Path, dict[str, Path]] = defaultdict(dict)
    for path in (*(sample.image for sample in dataset.samples), *dataset.left_out):
        by_folder[path.parent][path.stem] = path
    numbered = {
        folder: {int(stem) for stem in paths}
        for folder, paths in sorted(by_folder.items())
        if all(re.fullmatch(r"[0-9]+", stem) for stem in paths)
    }
    missing: list[Path] = []
    for folder, numbers in numbered.items():
        paths = by_folder[folder]
        width = min(map(len, paths))
        first = min(numbers) if width >= _MANY_DIGITS else 0
        beside = [each for each in numbered if len(numbered[each] & numbers) <= _SHARED * len(numbers)]
        elsewhere = {number for each in beside for number in numbered[each]}
        if max(numbers) - first > _SPARSE * len(numbers | elsewhere):  # told before the gaps are counted one by one
            continue
        gaps = [number for number in range(first, max(numbers)) if number not in numbers]
        spread = sum(number in elsewhere for number in gaps) >= len(gaps) / 2
        if spread:  # what no folder has is told of the first of them that goes so far
            told = {int(path.stem) for path in missing if path.parent in beside}
            gaps = [number for number in gaps if number not in elsewhere | told]
        elif max(numbers) - first > _SPARSE * len(numbers):
            continue
        present = {path.stem for path in folder.iterdir()} if is_folder(folder) else set()
        suffix = next(iter(paths.values())).suffix
        stems = (f"{number:0{width}d}" for number in gaps)
        missing += [folder / f"{stem}{suffix}" for stem in stems if stem not in present]
    return missing


def _folders(path: Path, root: Path) -> list[str]:
    """Names of the folders between the root and a file, in lower case."""
    return [name.casefold() for name in path.relative_to(root).parts[:-1]]


def _images(number: int) -> str:
    return count(number, "image")


_RULES: Sequence[Callable[[_Inventory], Iterable[Finding]]] = (
    *(_unreadable, _leaks, _duplicates, _twins, _odd_sizes, _odd_colours, _odd_depths, _value_range, _shortcuts),
    *(_empty_pictures, _pair_faults, _odd_masks, _missing_and_unused_masks, _saturation, _too_few, _notes),
    *(_unread_files, _further_pictures, lambda inventory: official_findings(inventory.dataset), _groups, _unlike_test),
)
_QUICK_RULES = (_leaks, _duplicates, _twins, _odd_sizes, _odd_depths, _shortcuts, _further_pictures)
"""Those that need no pixels."""
