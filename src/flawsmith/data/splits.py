"""Which good images are learned from and which are kept back, decided by what is in the files.

Nothing here depends on a path or on the order of a listing: renaming the files or working in another checkout gives
the same split, and two copies of one image never stand on different sides.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import stat
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flawsmith.data.public_sets import made_from
from flawsmith.data.samples import Dataset, Sample
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import once_a_file, printable, without_controls
from flawsmith.runtime.image import decode

HELD_OUT_FRACTION = 0.15
HELD_OUT_MINIMUM = 5
_CHUNK = 1 << 20
_THREADS = 4
_NAMED = 3
"""Images that a note names; run.json names all."""


@dataclass(frozen=True)
class HoldOut:
    """Two sets of good images: to learn from, and to calibrate on.

    Attributes:
        train: the images to learn from, never empty; ordered by content and seed, not by path.
        calibration: the images that limits are calibrated on, never empty; ordered likewise, each content once. Each
            carries its group, where the data have groups.
        source: ``held-out`` (taken from the training images), ``validation`` (the user's own folder), ``cross-fitted``
            (both are all images, each scored by a model that did not learn from it), or ``training`` (the images
            serve both: none was to be held out, or there is but one).
        description: what happened, in one sentence.
        folds: of cross-fitting; their images held out are those of ``calibration``, in the same order.
    """

    train: tuple[Sample, ...]
    calibration: tuple[Sample, ...]
    source: Literal["held-out", "validation", "cross-fitted", "training"]
    description: str
    folds: tuple[HoldOut, ...] = ()

    @property
    def calibrated_on_training(self) -> bool:
        """Whether the calibration images were learned from too; their scores are then too low for a limit."""
        return self.source == "training"

    def learning_from(self, fraction: float) -> HoldOut:
        """The same images held out, and the first ``fraction`` of the others to learn from, at least one.

        A smaller fraction is part of a larger one. Where none are held out, those that are learned from set the limit.
        """
        if fraction == 1:
            return self
        train = self.train[: max(1, round(fraction * len(self.train)))]
        words = f"{self.description}; {len(train)} of {len(self.train)} images learned from"
        calibration = self.calibration
        if self.calibrated_on_training:
            learned = set(train)
            calibration = tuple(sample for sample in calibration if sample in learned)
        return dataclasses.replace(self, train=train, calibration=calibration, description=words)


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    A small cache in the process spares reading an unchanged file twice; a change of size or time of writing
    voids it.

    Raises:
        FlawsmithError: the file cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a named pipe would wait for ever
            raise FlawsmithError(f"{path}: is not a regular file; remove it from the data")
        return _hash_file(path)
    except OSError as error:
        raise FlawsmithError(
            f"{path}: cannot be read ({error.strerror}); check that it exists and may be read"
        ) from error


@once_a_file(1 << 16)
def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def content_hashes(paths: Sequence[Path]) -> list[str]:
    """:func:`content_hash` of many files, read by a few threads; in the order given."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(content_hash, paths))


def leave_out_unreadable(dataset: Dataset) -> tuple[Dataset, dict[str, str]]:
    """The data set without the good images for training and validation that cannot be read; a note says so.

    Every such image is decoded, once in a process. Test images stay: figures on a part of them would mean another test.

    Returns:
        The data set, itself where all can be read; and by name of each image left out, what is wrong with it.

    Raises:
        FlawsmithError: none of the images to train on can be read, or none of the user's validation folder.
    """
    good = (*dataset.good_train, *dataset.good_val)
    paths = list(dict.fromkeys(sample.image for sample in good))
    with ThreadPoolExecutor(_THREADS) as pool:
        faults = {path: fault for path, fault in zip(paths, pool.map(_fault, paths), strict=True) if fault}
    if not faults:
        return dataset, {}
    for samples, role in ((dataset.good_train, "good images"), (dataset.good_val, "validation images")):
        if samples and all(sample.image in faults for sample in samples):
            first = samples[0].image
            raise FlawsmithError(
                f"none of the {len(samples)} {role} in {dataset.root} can be read; the first is {first}: "
                f"{faults[first]}"
            )
    skipped = {printable(dataset.name_of(path)): printable(fault) for path, fault in sorted(faults.items())}
    left = tuple(s for s in dataset.samples if s.image not in faults or s.split == "test")
    return dataclasses.replace(dataset, samples=left, notes=(*dataset.notes, skipped_note(skipped))), skipped


def skipped_note(skipped: Mapping[str, str]) -> str:
    """What was left out, in one line.

    Example:
        >>> skipped_note({"good/7.png": "the file is empty; copy or export it anew"})
        '1 good image that cannot be read was left out: good/7.png (the file is empty)'
    """
    named = [f"{name} ({fault.partition('; ')[0]})" for name, fault in skipped.items()]
    more = f" and {len(named) - _NAMED} more, all of them in run.json" if len(named) > _NAMED else ""
    images = (
        "1 good image that cannot be read was"
        if len(named) == 1
        else f"{len(named)} good images that cannot be read were"
    )
    return without_controls(f"{images} left out: {', '.join(named[:_NAMED])}{more}")


def _fault(path: Path) -> str | None:
    """Why an image cannot be read; None: it can."""
    try:
        return _fault_of(path)
    except (OSError, ValueError):  # such as for want of the file: decoding says what is wrong
        return _fault_in(path)


def _fault_in(path: Path) -> str | None:
    try:
        decode(path)
    except FlawsmithError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


_fault_of = once_a_file(1 << 16)(_fault_in)


def held_out_count(distinct: int, *, fraction: float = HELD_OUT_FRACTION, minimum: int = HELD_OUT_MINIMUM) -> int:
    """How many of ``distinct`` different good images are kept back for calibration.

    ``fraction`` of them, at least ``minimum``, but never more than half: learning from too few images does more
    harm than calibrating on too few, which the stated false-reject rate admits.

    Returns:
        A number in [0, distinct // 2]; 0 for a single image.

    Example:
        >>> [held_out_count(n) for n in (1, 2, 3, 5, 10, 20, 100, 1000)]
        [0, 1, 1, 2, 5, 5, 15, 150]
    """
    return min(max(minimum, round(fraction * distinct)), distinct // 2)


def hold_out(
    samples: Sequence[Sample],
    seed: int,
    fraction: float = HELD_OUT_FRACTION,
    minimum: int = HELD_OUT_MINIMUM,
) -> HoldOut:
    """Split good training images into those to learn from and those to calibrate on.

    Groups are ranked by SHA-256 of seed and contents, and whole ones are kept back until there are
    :func:`held_out_count` distinct images, never more than half of them; an image without a group is a group by
    itself. Copies of one image count once and stay together, and so do the groups that hold them. Images are held out
    by themselves where there is but one group, or one has more than half of the images and the others are too few; the
    result says so. A single image serves both sides.

    Args:
        samples: good images, at least one; their ``group`` counts.
        seed: another seed gives another split.
        fraction: share to keep back, in (0, 1).
        minimum: the least number to keep back, as far as half of the images allow.

    Raises:
        FlawsmithError: no image, or one cannot be read.
        ValueError: fraction or minimum out of range.
    """
    if not 0 < fraction < 1 or minimum < 1:
        raise ValueError(f"fraction must lie in (0, 1) and minimum be at least 1, not {fraction} and {minimum}")
    if not samples:
        raise FlawsmithError("there is no good image to train on; add images of good parts")
    images = _ranked_images(samples, seed)
    quota = held_out_count(len(images), fraction=fraction, minimum=minimum)
    copies = len(samples) - len(images)
    note = f", copies of one image ({copies} more) on one side alone and counted once for the limit" if copies else ""
    if quota == 0:
        everything = _flatten(images.values())
        words = "the only different good image is learned from and sets the limit, which is a guess"
        return HoldOut(everything, everything, "training", words + note)
    groups = _ranked_groups(images, seed)
    most, enough = len(images) // 2, min(minimum, quota)
    held_out = _whole_groups(groups, quota, most)
    if sum(map(len, held_out)) < enough:  # begun with the largest group that fits there are the most
        largest_first = sorted(groups, key=lambda group: -len(group) if len(group) <= most else 0)
        held_out = _whole_groups(largest_first, quota, most)
    words = "good images held out to set the limit"
    if sum(map(len, held_out)) >= enough or max(map(len, groups)) <= most:
        if len(groups) < len(images):
            words = f"good images, {len(held_out)} of {len(groups)} groups, held out whole to set the limit"
    else:
        held_out = [[digest] for digest in list(images)[:quota]]
        reason = "all are of one group" if len(groups) == 1 else "one group has more than half of them"
        note += f"; {reason}, so that the limit holds for parts like these"
    kept_back = {digest for group in held_out for digest in group}
    calibration = _one_of_each(copies for digest, copies in images.items() if digest in kept_back)
    train = _flatten(copies for digest, copies in images.items() if digest not in kept_back)
    return HoldOut(train, calibration, "held-out", f"{len(calibration)} of {len(images)} {words}{note}")


def calibration_split(dataset: Dataset, seed: int) -> HoldOut:
    """The images to learn from and to calibrate on: the user's own validation folder or a hold-out.

    With a validation folder nothing is held out of the training images.

    Raises:
        FlawsmithError: as :func:`hold_out` and :func:`good_images`; or an image stands in training and validation
            folder alike.
    """
    learned = good_images(dataset)
    if not dataset.good_val:
        return hold_out(learned, seed)
    refuse_leaks(learned, dataset.good_val)
    train = _flatten(_ranked_images(learned, seed).values())
    calibration = _one_of_each(_ranked_images(dataset.good_val, seed).values())
    words = f"{len(calibration)} good images of the validation folder set the limit, none was held out"
    return HoldOut(train, calibration, "validation", words)


def learn_from_all(dataset: Dataset, seed: int) -> HoldOut:
    """All good images to learn from, and to set the limit, as published methods learn; a validation folder sets it.

    Raises:
        FlawsmithError: as :func:`calibration_split`.
    """
    if dataset.good_val:
        return calibration_split(dataset, seed)
    images = _ranked_images(good_images(dataset), seed)
    calibration = _one_of_each(images.values())
    words = f"all {len(calibration)} good images are learned from and set the limit, which is a guess"
    return HoldOut(_flatten(images.values()), calibration, "training", words)


def cross_fit_split(dataset: Dataset, seed: int, count: int) -> HoldOut:
    """All good images on both sides, and the folds of which each keeps back other ones.

    Whole groups are kept back, where the images have some. Copies of an image stand in one fold and count once.

    Args:
        dataset: with good images to learn from.
        seed: another seed gives other folds.
        count: folds, at least 2.

    Raises:
        FlawsmithError: too few images or groups, or a validation folder that the limit would not rest on.
    """
    learned = good_images(dataset)
    if dataset.good_val:
        raise FlawsmithError(
            f"--cross-fit {count}: {dataset.root} has a validation folder, which sets the limit: leave one of them out"
        )
    images = _ranked_images(learned, seed)
    groups = _ranked_groups(images, seed)
    if len(groups) == 1:
        groups = [[digest] for digest in images]
    if len(groups) < count:
        units = "good images" if len(groups) == len(images) else f"groups ({dataset.grouped_by})"
        raise FlawsmithError(
            f"--cross-fit {count} needs as many {units}, and there are {len(groups)}: give a smaller number"
        )
    kept_back: list[list[str]] = [[] for _ in range(count)]
    for group in sorted(groups, key=len, reverse=True):  # stable, so equally large ones stay in their order
        min(kept_back, key=len).extend(group)
    folds = tuple(
        HoldOut(
            train=_flatten(copies for digest, copies in images.items() if digest not in fold),
            calibration=_one_of_each(images[digest] for digest in fold),
            source="held-out",
            description=f"fold {number} of {count}",
        )
        for number, fold in enumerate(kept_back, 1)
    )
    calibration = tuple(sample for fold in folds for sample in fold.calibration)
    words = f"all {len(calibration)} good images are learned from, and set the limit by {count} models of the others"
    return HoldOut(_flatten(images.values()), calibration, "cross-fitted", words, folds)


def good_images(dataset: Dataset) -> tuple[Sample, ...]:
    """The images to learn from, at least one.

    Raises:
        FlawsmithError: there is none: the data set is a test set for models that were trained elsewhere.
    """
    if dataset.good_train:
        return dataset.good_train
    origin = made_from(dataset.root)
    source = f"{dataset.category} of {origin}" if origin is not None else "the data set it belongs to"
    raise FlawsmithError(
        f"there is no good image to train on in {dataset.root}, which is a test set: train on {source}, then run "
        "`flawsmith evaluate` here"
    )


def dataset_fingerprint(samples: Iterable[Sample]) -> str:
    """SHA-256 over what the samples are: split, label, defect type and the contents of images and masks.

    Paths and order do not enter, so the same data elsewhere has the same fingerprint.

    Raises:
        FlawsmithError: a file cannot be read.
    """
    listed = list(samples)
    paths = [path for s in listed for path in (s.image, *s.masks)]
    digests = dict(zip(paths, content_hashes(paths), strict=True))
    rows = sorted(
        [s.split, s.label, s.defect, digests[s.image], *sorted(digests[mask] for mask in s.masks)] for s in listed
    )
    return hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()


def half(sample: Sample) -> Literal["A", "B"]:
    """The half of a shared test set an image belongs to, by content: tune on A, report on B and the whole."""
    return "A" if int(content_hash(sample.image)[:8], 16) % 2 == 0 else "B"


def refuse_leaks(train: Sequence[Sample], test: Sequence[Sample]) -> None:
    """Refuse images that stand on both sides: figures of a test on learned images mean nothing.

    Raises:
        FlawsmithError: the same content stands in ``train`` and ``test``; names the first pair and the count.
    """
    leaks = find_leaks(train, test)
    if leaks:
        learned, tested = leaks[0]
        more = f" (and {len(leaks) - 1} more such pairs)" if len(leaks) > 1 else ""
        raise FlawsmithError(
            f"the same image stands in {learned.split} and {tested.split}: {learned.image} and "
            f"{tested.image}{more}; remove it from one of them"
        )


def find_leaks(train: Sequence[Sample], test: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Pairs of a training and a test image with the same content, one for each such test image, by path."""
    hashes = content_hashes([s.image for s in (*train, *test)])
    learned: dict[str, Sample] = {}
    for sample, digest in zip(train, hashes, strict=False):
        learned.setdefault(digest, sample)
    pairs = [
        (learned[digest], sample)
        for sample, digest in zip(test, hashes[len(train) :], strict=True)
        if digest in learned
    ]
    return sorted(pairs, key=lambda pair: (pair[1].image, pair[0].image))


def _ranked_images(samples: Sequence[Sample], seed: int) -> dict[str, list[Sample]]:
    """Samples by content, in the order of SHA-256(seed, content); copies in that of paths."""
    copies: dict[str, list[Sample]] = defaultdict(list)
    for sample, digest in zip(samples, content_hashes([s.image for s in samples]), strict=True):
        copies[digest].append(sample)
    ranked = sorted(copies, key=lambda digest: _rank([digest], seed))
    return {digest: sorted(copies[digest], key=lambda s: s.image) for digest in ranked}


def _rank(contents: Sequence[str], seed: int) -> bytes:
    return hashlib.sha256(f"hold-out:{seed}:{','.join(sorted(contents))}".encode()).digest()


def _ranked_groups(images: Mapping[str, Sequence[Sample]], seed: int) -> list[list[str]]:
    """Contents by group, in the order of SHA-256(seed, contents); groups that hold one content are one."""
    parents: dict[tuple[str, str], tuple[str, str]] = {}

    def first(member: tuple[str, str]) -> tuple[str, str]:
        while (parent := parents.setdefault(member, member)) != member:
            parents[member] = member = parents[parent]
        return member

    for digest, copies in images.items():
        for name in {sample.group for sample in copies if sample.group}:
            parents[first(("group", name))] = first(("content", digest))
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for digest in images:
        groups[first(("content", digest))].append(digest)
    return sorted(groups.values(), key=lambda group: _rank(group, seed))


def _whole_groups(groups: Sequence[list[str]], quota: int, most: int) -> list[list[str]]:
    """The first groups with ``quota`` images together, without those that would make it more than ``most``."""
    chosen: list[list[str]] = []
    number = 0
    for group in groups:
        if number < quota and number + len(group) <= most:
            chosen.append(group)
            number += len(group)
    return chosen


def _flatten(groups: Iterable[Sequence[Sample]]) -> tuple[Sample, ...]:
    return tuple(sample for group in groups for sample in group)


def _one_of_each(groups: Iterable[Sequence[Sample]]) -> tuple[Sample, ...]:
    """Copies say nothing more about how good images score; counted, they would only make a limit look better."""
    return tuple(group[0] for group in groups)
