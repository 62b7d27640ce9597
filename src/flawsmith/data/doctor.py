"""What ``flawsmith doctor`` reports about a data set: what would stop a training, spoil it, or mislead its
figures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from flawsmith.data.bursts import share_unlike
from flawsmith.data.findings import SEVERITIES, Finding, Findings, Severity
from flawsmith.data.groups import BURSTS, with_groups
from flawsmith.data.layouts.base import by_name
from flawsmith.data.layouts.folder import SAYS_NOTHING, UNLABELLED
from flawsmith.data.layouts.names import meaning
from flawsmith.data.loco import (
    DefectKind,
    grey_values,
    kind_of,
    merged_note,
    merged_value,
    read_defects_config,
    too_large_for,
    too_large_note,
)
from flawsmith.data.masks import MaskRemarks, Oddity, read_mask_image
from flawsmith.data.public_set_checks import official_findings
from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.splits import HELD_OUT_FRACTION, HELD_OUT_MINIMUM, content_hash, held_out_count
from flawsmith.runtime.decision import images_needed, promise_in_words, worst_rate
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import left_out, left_out_note
from flawsmith.runtime.formats import holds_further_pictures, open_image
from flawsmith.runtime.image import MAX_PIXELS, ValueSummary, decode, is_grey, range_advice, summarise_values


def saturation_findings(dataset: Dataset, values: Mapping[Path, Sequence[int]], pixels: int) -> Iterator[Finding]:
    """Whether it can be told of every mask when its defect counts as found; nothing for layouts that know none.

    Args:
        values: the grey values but 0 of every mask that can be read.
        pixels: number of pixels of the largest mask.
    """
    config = dataset.defects_config
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
        fix = "use the masks of the original data set if sPRO is wanted"
        yield Finding("note", "merged-masks", merged_note(merged, kinds, config), paired, fix)
        return
    unknown = tuple(mask for mask in paired if isinstance(kind_of(values[mask], kinds), str))
    if unknown:
        number = "1 mask" if len(unknown) == 1 else f"{len(unknown)} masks"
        message = f"{number} of several grey values, or of one that {config.name} does not know"
        yield Finding("error", "unknown-defect", message, unknown, "add the entries, or copy the masks anew")
    largest = too_large_for(pixels, kinds) if paired else None
    if largest is not None:
        fix = "use the images at their original size if sPRO is to be compared"
        yield Finding("warning", "saturation-too-large", too_large_note(largest, pixels), (config,), fix)


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
_ORIENTATION = 0x0112
_NO_HEADER = "no readable header"

__all__ = ["Finding", "Findings", "Severity", "check", "glance"]


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


@dataclass(frozen=True)
class _Inventory:
    dataset: Dataset
    images: dict[Path, _Facts]
    masks: dict[Path, _Facts]

    def readable(self) -> list[_Facts]:
        return [facts for facts in self.images.values() if facts.error is None]


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
    return _Facts(
        path,
        None,
        digest,
        (pixels.shape[0], pixels.shape[1]),
        pixels.dtype.itemsize * 8,
        header.format,
        header.further,
        is_grey(pixels),
        float(pixels.min()) / full,
        float(pixels.max()) / full,
        float(pixels.mean()) / full,
        *(((), (), 0.0) if mask is None else (grey_values(pixels), mask.oddities, mask.share)),
        None if is_mask else summarise_values(pixels),
    )


def _header(path: Path) -> _Facts:
    """What an image says of itself, without its pixels; whoever needs these will tell why it cannot be read."""
    try:
        with path.open("rb") as stream, open_image(stream, str(path), MAX_PIXELS) as image:
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
        message = f"{_count(len(other_size), 'mask')} of another size than the image"
        fix = "export the masks in the pixels of their images"
        yield Finding("error", "mask-size", message, tuple(other_size), fix)
    if empty:
        message = f"{_count(len(empty), 'mask')} of flawed images without a marked pixel"
        fix = "mark the flaw, or remove the mask so that the image counts as not annotated"
        yield Finding("warning", "empty-mask", message, tuple(empty), fix)


def _missing_and_unused_masks(inventory: _Inventory) -> Iterable[Finding]:
    dataset = inventory.dataset
    missing = tuple(sample.image for sample in dataset.without_mask)
    if missing:
        severity: Severity = "warning" if any(s.masks for s in dataset.samples) else "note"
        message = f"{_count(len(missing), 'flawed image')} without a mask"
        place = by_name(dataset.layout).place_of_masks
        fix = f"add masks {place}, if pixel figures are wanted; image figures need none"
        yield Finding(severity, "missing-mask", message, missing, fix)
    good = [path for path in dataset.unused_masks if any(meaning(n) == "good" for n in _folders(path, dataset.root))]
    marked = tuple(p for p in good if inventory.masks[p].error is None and inventory.masks[p].marked > 0)
    if marked:
        message = f"{_count(len(marked), 'mask')} of good images with marked pixels"
        fix = "remove the mask, or move the image to its defect type"
        yield Finding("warning", "mask-of-good", message, marked, fix)
    orphans = tuple(path for path in dataset.unused_masks if path not in set(good))
    if orphans:
        message = f"{_count(len(orphans), 'mask')} without an image"
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
    read = {path: facts for path, facts in inventory.masks.items() if facts.error is None}
    values = {path: facts.values for path, facts in read.items()}
    pixels = max((height * width for height, width in (facts.size for facts in read.values())), default=0)
    return saturation_findings(inventory.dataset, values, pixels)


def _too_few(inventory: _Inventory) -> Iterable[Finding]:
    dataset = inventory.dataset
    if not dataset.good_train:
        message = "nothing to learn from: a test set for models trained elsewhere"
        yield Finding("note", "test-set-alone", message, (dataset.root,), "nothing")
        return
    distinct = len({inventory.images[s.image].digest for s in dataset.good_train})
    if distinct < _FEW_TO_TRAIN:
        message = f"{_count(distinct, 'different good image')} to learn from"
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
    dataset = with_groups(inventory.dataset)
    images = dict.fromkeys(s.image for s in dataset.samples if not s.is_flawed and s.split != "test")
    by_group: dict[str, list[Path]] = defaultdict(list)
    for sample in dataset.samples:
        if sample.image in images:
            by_group[sample.group].append(sample.image)
    by_group.pop("", None)
    if dataset.grouped_by and dataset.grouped_by != BURSTS:
        most, least = (compare(map(len, by_group.values())) for compare in (max, min))
        message = f"{_count(len(by_group), 'group')} by {dataset.grouped_by}, of {least} to {_images(most)}"
        yield Finding("note", "groups", message, (dataset.root,), "nothing")
    elif dataset.grouped_by:
        scenes = [group for group in by_group.values() if len(group) > 1]
        twins = tuple(image for scene in scenes for image in scene)
        message = (
            f"{len(twins)} of {_images(len(images))} are nearly equal to others: {_count(len(scenes), 'scene')} of 2 "
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
    share = share_unlike(tested, learned)
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


def _folders(path: Path, root: Path) -> list[str]:
    """Names of the folders between the root and a file, in lower case."""
    return [name.casefold() for name in path.relative_to(root).parts[:-1]]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _images(number: int) -> str:
    return _count(number, "image")


_RULES: Sequence[Callable[[_Inventory], Iterable[Finding]]] = (
    *(_unreadable, _leaks, _duplicates, _twins, _odd_sizes, _odd_colours, _odd_depths, _value_range, _shortcuts),
    *(_empty_pictures, _pair_faults, _odd_masks, _missing_and_unused_masks, _saturation, _too_few, _notes),
    *(_unread_files, _further_pictures, lambda inventory: official_findings(inventory.dataset), _groups, _unlike_test),
)
_QUICK_RULES = (_leaks, _duplicates, _twins, _odd_sizes, _odd_depths, _shortcuts, _further_pictures)
"""Those that need no pixels."""
