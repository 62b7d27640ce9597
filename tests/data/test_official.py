"""What is said of public data sets: that they are known, whole or not, and which files they lack."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, replace
from pathlib import Path
from types import ModuleType

import pytest

from flawsmith.data import layouts
from flawsmith.data.doctor import Finding, check, known_as, missing_numbers, official_findings
from flawsmith.data.public_sets import ANY, OFFICIAL, Counts, OfficialSet, dataset_name
from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.splits import calibration_split
from flawsmith.runtime.errors import FlawsmithError

BY_NAME = {official.name: official for official in OFFICIAL}


def imagined(official: OfficialSet, category: str, counts: Counts, above: str = "parts") -> Dataset:
    """A data set of that many images, which are nowhere."""
    root = Path("/nowhere") / above / category
    defects = dict(counts.defects) or {"crack": counts.flawed or 0}
    train, test = counts.train or 0, counts.test_good or 0
    if counts.good is not None:
        train, test = counts.good - counts.good // 5, counts.good // 5
    roles = [("train", "good", train), ("val", "good", counts.validation or 0), ("test", "good", test)]
    roles += [("test", defect, number) for defect, number in defects.items()]
    samples = [
        Sample(
            root / split / kind / f"{i:03d}.png",
            split,  # type: ignore[arg-type]
            "good" if kind == "good" else "flawed",
            kind,
            (),
            category,
            above,
        )
        for split, kind, number in roles
        for i in range(number)
    ]
    left_out = tuple(root / f"{i}.png" for i in range(counts.left_out or 0))
    return Dataset(root, category, above, official.layout, "", tuple(samples), left_out=left_out)


def found(dataset: Dataset) -> dict[str, Finding]:
    return {item.name: item for item in official_findings(dataset)}


# The table


@pytest.mark.parametrize(
    ("name", "train", "validation", "good", "flawed"),
    [
        ("MVTec AD", 3629, 0, 467, 1258),
        ("MPDD", 888, 0, 176, 282),
        ("VisA", 8659, 0, 962, 1200),
        ("MVTec 3D-AD", 2656, 294, 249, 948),
        ("BTAD", 1799, 0, 451, 290),
        ("MVTec LOCO AD", 1772, 304, 575, 993),
    ],
)
def test_categories_add_up_to_the_totals_that_are_published(
    name: str, train: int, validation: int, good: int, flawed: int
) -> None:
    rows = [counts for counts in BY_NAME[name].categories.values() if counts is not None]

    def total(numbers: Iterable[int | None]) -> int:
        return sum(number or 0 for number in numbers)

    assert total(c.train for c in rows) == train
    assert total(c.validation for c in rows) == validation
    assert total(c.test_good for c in rows) == good
    assert total(c.flawed for c in rows) == flawed


def test_flawed_images_are_those_of_all_defect_types() -> None:
    for official in OFFICIAL:
        for counts in official.categories.values():
            if counts is not None and counts.defects:
                assert sum(counts.defects.values()) == counts.flawed


def test_document_has_the_numbers_of_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "train" / "data.md").read_text(encoding="utf-8")
    for official in OFFICIAL:
        section = text.partition(f"**{official.name}** (`{official.layout}`). ")[2].partition("\n\n**")[0]
        for category, c in official.categories.items():
            if c is not None and section:
                flawed = c.defects.values() if c.defects else [c.flawed]
                numbers = [n for n in (c.train, c.validation, c.test_good, *flawed) if n is not None]
                assert f"| {category} | {' | '.join(map(str, numbers))} |" in section
    assert text.count("| category |") == 6


@pytest.mark.parametrize("name", BY_NAME)
def test_every_layout_and_every_origin_exists(name: str) -> None:
    official = BY_NAME[name]
    assert layouts.by_name(official.layout).name == official.layout
    assert official.made_from is None or official.made_from in BY_NAME
    assert official.source


# What is known

WHOLE = [(official.name, category) for official in OFFICIAL for category, c in official.categories.items() if c]


@pytest.mark.parametrize(("name", "category"), WHOLE)
def test_whole_category_is_recognised_and_said_to_be_whole(name: str, category: str) -> None:
    official = BY_NAME[name]
    counts = official.categories[category]
    assert counts is not None
    above = "Person_1" if official.subset else "parts"

    dataset = imagined(official, "surface" if category == ANY else category, counts, above)

    assert known_as(dataset) is official
    (finding,) = official_findings(dataset)
    assert (finding.severity, finding.name, finding.fix) == ("note", "official-counts", "nothing")
    assert "all counts are the official ones" in finding.what


@pytest.mark.parametrize("field", ["train", "validation", "test_good"])
def test_another_count_is_named_with_its_difference(field: str) -> None:
    official = BY_NAME["MVTec 3D-AD"]
    counts = official.categories["rope"]
    assert counts is not None
    number = getattr(counts, field)

    what = found(imagined(official, "rope", replace(counts, **{field: number - 7})))["official-counts"].what

    assert f"{number - 7} " in what
    assert f"where {number} are official (-7)" in what
    assert what.count("are official") == 1
    assert str(counts.flawed) in what.partition("as officially")[2]


def test_defect_types_are_compared_apart() -> None:
    official = BY_NAME["MVTec LOCO AD"]
    counts = official.categories["juice_bottle"]
    assert counts is not None

    changed = replace(counts, defects={"logical_anomalies": 142})
    what = found(imagined(official, "juice_bottle", changed))["official-counts"].what

    assert "0 structural_anomalies to test where 94 are official (-94)" in what
    assert "142 logical_anomalies to test" in what.partition("as officially")[2]


def test_ones_own_category_of_an_official_name_is_not_taken_for_it(tmp_path: Path, trees: ModuleType) -> None:
    assert known_as(layouts.load(trees.mvtec(tmp_path / "my line" / "screw"))) is None


@pytest.mark.parametrize("above", ["mvtec", "MVTec_AD", "mvtec_anomaly_detection", "MVTec-AD"])
def test_name_of_the_folder_above_tells(tmp_path: Path, trees: ModuleType, above: str) -> None:
    official = known_as(layouts.load(trees.mvtec(tmp_path / above / "screw")))

    assert official is not None
    assert official.name == "MVTec AD"


def test_categories_beside_it_tell(tmp_path: Path, trees: ModuleType) -> None:
    (tmp_path / "data" / "metal_nut").mkdir(parents=True)

    assert known_as(layouts.load(trees.mvtec(tmp_path / "data" / "screw"))) is BY_NAME["MVTec AD"]


def test_another_layout_of_the_same_names_is_not_the_set(tmp_path: Path, trees: ModuleType) -> None:
    for number in range(3):
        trees.picture(tmp_path / "mvtec" / "screw" / f"{number}.png", seed=number)

    assert known_as(layouts.load(tmp_path / "mvtec" / "screw")) is None


def test_ones_own_data_get_no_finding(tmp_path: Path, trees: ModuleType) -> None:
    assert list(official_findings(layouts.load(trees.mvtec(tmp_path / "lines" / "bolt")))) == []


def test_sets_known_by_their_total_are_compared_as_a_whole(tmp_path: Path, trees: ModuleType) -> None:
    cloths = ("grey_cloth", "grid_cloth", "yellow_cloth", "pink_flower")
    root = trees.mvtec(tmp_path / "WFDD" / cloths[0])
    (alone,) = official_findings(layouts.load(root))
    for cloth in cloths[1:]:
        trees.mvtec(tmp_path / "WFDD" / cloth)

    together = found(layouts.load(root))["official-counts"].what

    assert "only the sum over its categories is known" in alone.what
    assert "WFDD, 4 categories together" in together
    assert "32 good where 3860 are official (-3828), 8 flawed to test where 241 are official (-233)" in together


# Missing files


def test_files_missing_from_the_numbering_are_named(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "mvtec" / "screw")
    gone = [root / "train/good/000.png", root / "train/good/003.png", root / "test/crack/000.png"]
    for path in gone:
        path.unlink()

    finding = found(layouts.load(root))["missing-files"]

    assert finding.severity == "note"
    assert sorted(finding.where) == sorted(gone)
    assert finding.what.startswith("3 files are missing from the numbering of ")


def test_names_that_are_no_numbers_tell_of_no_missing_file(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "mvtec" / "screw")
    (root / "train/good/003.png").rename(root / "train/good/003b.png")

    assert missing_numbers(layouts.load(root)) == []


def test_sparse_numbers_are_no_numbering(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "mvtec" / "screw")
    trees.picture(root / "train/good/99999999999999.png", seed=50)

    assert missing_numbers(layouts.load(root)) == []


def test_long_numbers_begin_where_they_do(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.ksdd2(tmp_path / "KolektorSDD2")
    (root / "train/10004.png").unlink()
    (root / "train/10004_GT.png").unlink()

    assert found(layouts.load(root))["missing-files"].where == (root / "train/10004.png",)


def test_image_without_its_mask_is_there_and_not_missing(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.ksdd2(tmp_path / "KolektorSDD2")
    (root / "train/10004_GT.png").unlink()

    assert missing_numbers(layouts.load(root)) == []


def test_numbers_shared_by_two_splits_are_one_numbering(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.visa(tmp_path / "VisA" / "candle")

    assert missing_numbers(layouts.load(root)) == []


def test_gaps_in_ones_own_data_are_nobodys_business(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    (root / "train/good/003.png").unlink()

    assert not [item for item in check(layouts.load(root)).items if item.name == "missing-files"]


# Test sets for models trained elsewhere


@pytest.mark.parametrize(
    ("place", "dataset", "origin"),
    [
        ("MAD-man/Person_1/bottle", "MAD-man/Person_1", "bottle of MVTec AD"),
        ("MAD-sys/Beta_0.1/wood", "MAD-sys/Beta_0.1", "wood of MVTec AD"),
        ("weak/bolt", "weak", "the data set it belongs to"),
    ],
)
def test_category_without_train_is_a_test_set(
    tmp_path: Path, trees: ModuleType, place: str, dataset: str, origin: str
) -> None:
    root = trees.mad(tmp_path / place)

    read = layouts.load(root)

    assert (read.layout, read.category, read.dataset) == ("mvtec", root.name, dataset)
    assert {(s.category, s.dataset) for s in read.samples} == {(root.name, dataset)}
    assert (len(read.good_train), len(read.test_good), len(read.test_flawed)) == (0, 2, 6)
    assert all(sample.masks for sample in read.test_flawed)
    assert "test set for models trained elsewhere" in read.recognised
    with pytest.raises(FlawsmithError) as caught:
        calibration_split(read, seed=0)
    assert f"train on {origin}, then run `flawsmith evaluate` here" in str(caught.value)


def test_test_set_is_sound_and_its_counts_are_the_official_ones(tmp_path: Path, trees: ModuleType) -> None:
    findings = check(layouts.load(trees.mad(tmp_path / "MAD-man" / "Person_1" / "bottle")))

    assert findings.sound
    assert {item.name for item in findings.items} == {"test-set-alone", "official-counts"}
    assert any("MAD-man, bottle: all counts are the official ones" in item.what for item in findings.items)


def test_subset_lists_its_categories(tmp_path: Path, trees: ModuleType) -> None:
    for category in ("bottle", "wood"):
        trees.mad(tmp_path / "MAD-man" / "Person_1" / category)

    with pytest.raises(FlawsmithError, match=r"2 categories \(bottle, wood\); pick one"):
        layouts.load(tmp_path / "MAD-man" / "Person_1")


@pytest.mark.parametrize("part", ["test", "ground_truth"])
def test_part_of_a_test_set_is_refused(tmp_path: Path, trees: ModuleType, part: str) -> None:
    with pytest.raises(FlawsmithError, match=f"is only the {part}/ part of"):
        layouts.load(trees.mad(tmp_path / "bottle") / part)


def test_good_images_beside_a_test_split_are_no_test_set(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mad(tmp_path / "bottle")
    trees.picture(root / "good" / "0.png")

    dataset = layouts.load(root)

    assert dataset.layout == "folder"
    assert "not mvtec: test/ is there, but no train/good/" in dataset.near_misses


def test_dataset_is_named_after_the_folder_above() -> None:
    assert dataset_name(Path("/data/sets/mvtec/bottle")) == "mvtec"
    assert dataset_name(Path("/Person_1/bottle")) == "Person_1"


def test_counts_can_be_told_apart() -> None:
    """No two categories of a set agree in all, so that a folder cannot be taken for its neighbour by number."""
    for name in ("MVTec AD", "MPDD", "MVTec 3D-AD", "MVTec LOCO AD"):
        rows = [astuple(counts)[:4] for counts in BY_NAME[name].categories.values() if counts is not None]
        assert len(set(rows)) == len(rows)


@pytest.mark.real_data
def test_shared_copies_are_told_from_the_official_sets(real_data: Path) -> None:
    screw = found(layouts.load(real_data / "mvtec_ad" / "screw"))
    bottle = found(layouts.load(real_data / "mvtec_loco" / "juice_bottle"))

    assert "MVTec AD, screw: all counts are the official ones" in screw["official-counts"].what
    assert "27 to validate where 54 are official (-27)" in bottle["official-counts"].what
    assert "missing-files" not in screw
