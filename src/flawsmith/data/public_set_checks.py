"""What ``doctor`` reports of a public data set: whether it is whole, by how much it differs, and which files it lacks.

All of it is a note: a reduced or differently split copy is sound, but its figures are not those of the benchmark.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from flawsmith.data.findings import Finding
from flawsmith.data.layouts.base import by_name
from flawsmith.data.public_sets import ANY, OFFICIAL, Counts, OfficialSet, is_subset
from flawsmith.data.samples import Dataset
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import is_folder

_MANY_DIGITS = 5
"""Numbers of so many digits begin where the set wants them to, shorter ones at 0."""

_SPARSE = 20
"""Names that leave out more than so many numbers for each that is there are no numbering."""

_SHARED = 0.05
"""Folders that share no more of their numbers than this may have one numbering."""


def official_findings(dataset: Dataset) -> Iterator[Finding]:
    """Compare a category with the public data set that it belongs to; nothing for one's own data.

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
    agree, differ = _compare(_count(datasets), expected)
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
        message = f"{_files(len(missing))} missing from the numbering of {_folders(missing, dataset)}"
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
    return expected is not None and bool(_compare(_count([dataset]), expected)[0])


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


def _count(datasets: Sequence[Dataset]) -> Counts:
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


def _files(number: int) -> str:
    return "1 file is" if number == 1 else f"{number} files are"


def _folders(paths: Sequence[Path], dataset: Dataset) -> str:
    names = dict.fromkeys(f"{dataset.name_of(path.parent)}/" for path in paths)
    return ", ".join(names)
