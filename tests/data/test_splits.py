"""The held-out split follows the contents of the files and nothing else."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawsmith.data import layouts
from flawsmith.data.samples import Sample
from flawsmith.data.splits import (
    calibration_split,
    content_hash,
    dataset_fingerprint,
    find_leaks,
    half,
    held_out_count,
    hold_out,
    refuse_leaks,
)
from flawsmith.runtime.errors import FlawsmithError


def write(path: Path, content: bytes) -> Sample:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return Sample(path, "train", "good", "good", (), "bolt", "lines")


def many(folder: Path, n: int) -> list[Sample]:
    return [write(folder / f"{i:03d}.png", f"content {i}".encode()) for i in range(n)]


def contents(samples: tuple[Sample, ...]) -> list[bytes]:
    return [s.image.read_bytes() for s in samples]


@pytest.mark.parametrize(("n", "kept_back"), [(2, 1), (3, 1), (4, 2), (5, 2), (10, 5), (20, 5), (40, 6), (100, 15)])
def test_sizes_of_the_two_sides(tmp_path: Path, n: int, kept_back: int) -> None:
    split = hold_out(many(tmp_path, n), seed=0)
    assert (len(split.train), len(split.calibration)) == (n - kept_back, kept_back)
    assert not set(split.train) & set(split.calibration)
    assert split.source == "held-out"
    assert not split.calibrated_on_training
    assert f"{kept_back} of {n}" in split.description


def test_a_single_image_serves_both_sides_and_says_so(tmp_path: Path) -> None:
    split = hold_out(many(tmp_path, 1), seed=0)
    assert split.train == split.calibration
    assert split.calibrated_on_training
    assert "guess" in split.description


def test_no_image_is_refused() -> None:
    with pytest.raises(FlawsmithError, match="no good image"):
        hold_out([], seed=0)


@pytest.mark.parametrize(("fraction", "minimum"), [(0.0, 5), (1.0, 5), (0.15, 0)])
def test_senseless_settings_are_refused(tmp_path: Path, fraction: float, minimum: int) -> None:
    with pytest.raises(ValueError, match="fraction"):
        hold_out(many(tmp_path, 3), 0, fraction, minimum)


@given(n=st.integers(1, 100_000), fraction=st.floats(0.01, 0.99), minimum=st.integers(1, 500))
def test_training_keeps_at_least_half(n: int, fraction: float, minimum: int) -> None:
    kept_back = held_out_count(n, fraction=fraction, minimum=minimum)
    assert 0 <= kept_back <= n // 2
    assert kept_back >= min(minimum, n // 2)


def test_renaming_moving_and_shuffling_change_nothing(tmp_path: Path) -> None:
    samples = many(tmp_path / "here", 30)
    elsewhere = [write(tmp_path / "there" / f"ü {29 - i}.PNG", s.image.read_bytes()) for i, s in enumerate(samples)]
    random.Random(1).shuffle(elsewhere)
    a, b = hold_out(samples, seed=3), hold_out(elsewhere, seed=3)
    assert contents(a.train) == contents(b.train)
    assert contents(a.calibration) == contents(b.calibration)
    assert dataset_fingerprint(samples) == dataset_fingerprint(elsewhere)


def test_another_seed_gives_another_split(tmp_path: Path) -> None:
    samples = many(tmp_path, 30)
    splits = {frozenset(hold_out(samples, seed=seed).calibration) for seed in range(4)}
    assert len(splits) == 4


@settings(max_examples=20, deadline=None)
@given(copies=st.lists(st.integers(1, 4), min_size=2, max_size=12), seed=st.integers(0, 2**31))
def test_copies_of_an_image_stay_on_one_side(
    tmp_path_factory: pytest.TempPathFactory, copies: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("copies")
    samples = [write(folder / f"{i}_{c}.png", f"content {i}".encode()) for i, k in enumerate(copies) for c in range(k)]
    split = hold_out(samples, seed)
    assert not set(contents(split.train)) & set(contents(split.calibration))
    assert len(set(contents(split.calibration))) == len(split.calibration), "a copy says nothing more about the limit"
    assert {*contents(split.train), *contents(split.calibration)} == set(contents(samples))
    assert len(split.train) == sum(contents(samples).count(content) for content in set(contents(split.train)))


def test_adding_an_image_moves_few_others(tmp_path: Path) -> None:
    samples = many(tmp_path, 100)
    before = set(hold_out(samples, seed=0).calibration)
    after = set(hold_out([*samples, write(tmp_path / "new.png", b"new")], seed=0).calibration)
    assert len(before - after) <= 1


def test_validation_folder_is_used_instead_of_a_hold_out(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    trees.picture(root / "validation" / "good" / "v.png", seed=55)
    split = calibration_split(layouts.load(root), seed=0)
    assert split.source == "validation"
    assert len(split.train) == 6
    assert [s.image.name for s in split.calibration] == ["v.png"]


def test_validation_image_that_was_learned_is_refused(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    trees.picture(root / "validation" / "good" / "v.png", seed=0)
    with pytest.raises(FlawsmithError, match="stands in train and val"):
        calibration_split(layouts.load(root), seed=0)


def test_without_validation_folder_images_are_held_out(tmp_path: Path, trees: ModuleType) -> None:
    split = calibration_split(layouts.load(trees.mvtec(tmp_path / "bolt", n_train=20)), seed=0)
    assert (len(split.train), len(split.calibration)) == (15, 5)


def test_leaks_are_refused_with_the_pair_and_the_count(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    trees.picture(root / "test" / "good" / "leak 1.png", seed=1)
    trees.picture(root / "test" / "crack" / "leak 2.png", seed=2)
    dataset = layouts.load(root)
    assert len(find_leaks(dataset.good_train, dataset.test)) == 2
    with pytest.raises(FlawsmithError, match=r"crack/leak 2\.png \(and 1 more such pairs\); remove"):
        refuse_leaks(dataset.good_train, dataset.test)


def test_clean_data_pass_the_leak_check(tmp_path: Path, trees: ModuleType) -> None:
    dataset = layouts.load(trees.mvtec(tmp_path / "bolt"))
    refuse_leaks(dataset.good_train, dataset.test)
    refuse_leaks(dataset.good_train, ())


def test_hash_follows_a_changed_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    before = content_hash(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert before == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    assert content_hash(path) != before


def test_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match=r"gone\.png: cannot be read"):
        content_hash(tmp_path / "gone.png")


def test_fingerprint_sees_labels_masks_and_contents(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    before = dataset_fingerprint(layouts.load(root).samples)
    trees.mask(root / "ground_truth" / "crack" / "000_mask.png", empty=True)
    masked = dataset_fingerprint(layouts.load(root).samples)
    (root / "test" / "crack").rename(root / "test" / "dent")
    assert len({before, masked, dataset_fingerprint(layouts.load(root).samples)}) == 3


def test_halves_are_about_equal_and_follow_content(tmp_path: Path) -> None:
    samples = many(tmp_path / "here", 200)
    moved = write(tmp_path / "there" / "x.bmp", samples[7].image.read_bytes())
    in_a = sum(half(s) == "A" for s in samples)
    assert 70 <= in_a <= 130
    assert half(moved) == half(samples[7])


def test_named_pipe_among_images_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")

    with pytest.raises(FlawsmithError, match=r"pipe\.png: is not a regular file"):
        content_hash(tmp_path / "pipe.png")


def of_groups(folder: Path, sizes: list[int], *, content: str = "") -> list[Sample]:
    return [
        replace(write(folder / f"{group}_{i}.png", f"{content}{group} {i}".encode()), group=f"day {group}")
        for group, size in enumerate(sizes)
        for i in range(size)
    ]


def split_by_image(samples: list[Sample], seed: int) -> tuple[list[Path], list[Path], str]:
    """How images were split before there were groups, written anew."""
    copies: dict[str, list[Path]] = {}
    for sample in samples:
        copies.setdefault(hashlib.sha256(sample.image.read_bytes()).hexdigest(), []).append(sample.image)
    ranked = sorted(copies, key=lambda digest: hashlib.sha256(f"hold-out:{seed}:{digest}".encode()).digest())
    number = held_out_count(len(ranked))
    if number == 0:
        everything = [path for digest in ranked for path in sorted(copies[digest])]
        return everything, everything, ""
    words = f"{number} of {len(ranked)} good images held out to set the limit"
    if len(samples) > len(ranked):
        more = len(samples) - len(ranked)
        words += f", copies of one image ({more} more) on one side alone and counted once for the limit"
    train = [path for digest in ranked[number:] for path in sorted(copies[digest])]
    return train, [min(copies[digest]) for digest in ranked[:number]], words


@settings(max_examples=40, deadline=None)
@given(
    copies=st.lists(st.integers(1, 3), min_size=1, max_size=40),
    seed=st.integers(0, 2**31),
    named=st.booleans(),
)
def test_without_groups_images_are_split_as_before(
    tmp_path_factory: pytest.TempPathFactory, copies: list[int], seed: int, named: bool
) -> None:
    folder = tmp_path_factory.mktemp("single")
    samples = [
        replace(write(folder / f"{i}_{c}.png", f"content {i}".encode()), group=f"only {i}" if named else "")
        for i, k in enumerate(copies)
        for c in range(k)
    ]
    random.Random(seed).shuffle(samples)
    split = hold_out(samples, seed)
    train, calibration, words = split_by_image(samples, seed)
    assert [s.image for s in split.train] == train
    assert [s.image for s in split.calibration] == calibration
    assert split.source == "training" or split.description == words


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=2, max_size=12), seed=st.integers(0, 2**31))
def test_whole_groups_are_held_out_and_never_more_than_half(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    split = hold_out(of_groups(tmp_path_factory.mktemp("days"), sizes), seed)
    learned, held_out = ({s.group for s in part} for part in (split.train, split.calibration))
    assert len(split.train) + len(split.calibration) == sum(sizes)
    assert 0 < len(split.calibration) <= sum(sizes) // 2
    if learned & held_out:
        assert max(sizes) > sum(sizes) // 2, "only where the largest group cannot be held out"
        assert "one group has more than half" in split.description
    else:
        smallest_left = min(sizes[int(name.removeprefix("day "))] for name in learned)
        quota = held_out_count(sum(sizes))
        enough = len(split.calibration) >= quota or len(split.calibration) + smallest_left > sum(sizes) // 2
        assert enough, "groups are taken until there are enough images"


@pytest.mark.parametrize("sizes", [[2, 2, 2], [4, 4, 4], [1, 5, 5]])
def test_few_groups_stay_whole_though_they_hold_fewer_images_than_asked(tmp_path: Path, sizes: list[int]) -> None:
    for seed in range(5):
        split = hold_out(of_groups(tmp_path / str(seed), sizes), seed)

        assert not {s.group for s in split.train} & {s.group for s in split.calibration}
        assert len(split.calibration) == max(sizes)


def test_groups_are_split_by_content_not_by_name(tmp_path: Path) -> None:
    sizes = [5] * 12
    samples = of_groups(tmp_path / "here", sizes)
    renamed = [replace(s, group=f"{s.group} of May") for s in of_groups(tmp_path / "there", sizes)]
    random.Random(1).shuffle(renamed)
    a, b = hold_out(samples, seed=3), hold_out(renamed, seed=3)
    assert contents(a.calibration) == contents(b.calibration)
    assert contents(a.train) == contents(b.train)
    assert "10 of 60 good images, 2 of 12 groups, held out whole" in a.description
    assert len({frozenset(s.group for s in hold_out(samples, seed).calibration) for seed in range(6)}) > 2


def test_copies_unite_their_groups(tmp_path: Path) -> None:
    samples = of_groups(tmp_path, [6] * 6)
    for group in (0, 2, 4):
        path = tmp_path / f"{group + 1}_0.png"
        path.write_bytes((tmp_path / f"{group}_0.png").read_bytes())
    for seed in range(8):
        split = hold_out(samples, seed)
        held_out = {int(s.group.removeprefix("day ")) for s in split.calibration}
        assert {number // 2 for number in held_out} == {held_out.pop() // 2}
        assert len(split.calibration) == 11


def test_part_of_the_images_to_learn_from_comes_from_all_groups(tmp_path: Path) -> None:
    split = hold_out(of_groups(tmp_path, [20] * 10), seed=0)
    less = split.learning_from(0.25)
    assert less.calibration == split.calibration
    assert {s.group for s in less.train} == {s.group for s in split.train}
