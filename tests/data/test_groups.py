"""Groups of images are told from folders, names, dates, columns and the pictures themselves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flawsmith.data import layouts
from flawsmith.data.bursts import find_scenes, share_unlike
from flawsmith.data.groups import BURSTS, groups_in_words, one_group_warning, with_groups
from flawsmith.data.samples import Dataset
from flawsmith.data.splits import calibration_split, cross_fit_split
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.synthesis.demo_parts import render_part

DAYS = ("2026-11-23", "2026-11-24", "2026-11-25", "2026-11-26")


def part(index: int) -> NDArray[np.uint8]:
    return render_part("gear", index=index, size=(96, 128))[0]


def save(pixels: NDArray[np.uint8], path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def days(root: Path, *, of_each: int = 5, names: Sequence[str] = DAYS) -> Path:
    for number, name in enumerate(names):
        for index in range(of_each):
            save(part(number * of_each + index), root / name / f"{index}.png")
    return root


def groups(dataset: Dataset) -> set[str]:
    return {sample.group for sample in dataset.good_train}


def frame(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Another picture of the same scene: shifted by a pixel at most, brighter or darker, with noise, as JPEG."""
    moved = np.roll(pixels, rng.integers(-1, 2, 2) * (rng.random() < 0.5), axis=(0, 1)).astype(np.float64)
    noisy = np.clip(moved * rng.uniform(0.9, 1.1) + rng.normal(0, 2, moved.shape), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noisy).save(stream, "JPEG", quality=int(rng.integers(80, 95)))
    return np.asarray(Image.open(stream))


def bursts(folder: Path, *, scenes: int, frames: int, rng: np.random.Generator) -> list[Path]:
    return [
        save(frame(render_part("gear", index=scene, size=(160, 192))[0], rng), folder / f"{scene:02d}_{number:02d}.png")
        for scene in range(scenes)
        for number in range(frames)
    ]


def test_folders_that_say_when_become_groups_by_themselves(tmp_path: Path) -> None:
    dataset = with_groups(layouts.load(days(tmp_path / "bolt")))
    assert groups(dataset) == set(DAYS)
    assert dataset.grouped_by == "sub-folder"
    split = calibration_split(dataset, 0)
    assert groups_in_words(dataset, split) == "4 groups by sub-folder: 1 of them held out"
    assert "one group alone" in one_group_warning(split)


def test_folders_below_the_good_images_of_a_split_become_groups(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "bolt", n_train=0)
    days(root / "train" / "good")
    save(part(90), root / "test" / "good" / DAYS[0] / "a.png")
    dataset = with_groups(layouts.load(root))
    assert groups(dataset) == set(DAYS)
    assert DAYS[0] in {sample.group for sample in dataset.test_good}
    assert {sample.group for sample in dataset.test_flawed} == {""}, "a defect type is no group"


def test_folders_of_kinds_are_groups_only_on_request(tmp_path: Path) -> None:
    root = days(tmp_path / "bolt", names=("steel", "brass"))
    assert with_groups(layouts.load(root)).grouped_by == ""
    assert groups(with_groups(layouts.load(root), "folder")) == {"steel", "brass"}


def test_one_folder_of_a_day_is_one_group_and_warned_of(tmp_path: Path) -> None:
    dataset = with_groups(layouts.load(days(tmp_path / "bolt", names=("monday",), of_each=12)))
    split = calibration_split(dataset, 0)
    assert groups(dataset) == {"monday"}
    assert len(split.calibration) == 5
    assert "all are of one group" in split.description
    assert groups_in_words(dataset, split) == "1 group by sub-folder, held out image by image"
    assert "one group alone (monday)" in one_group_warning(split)


def test_cross_fitting_says_that_groups_stay_whole(tmp_path: Path) -> None:
    dataset = with_groups(layouts.load(days(tmp_path / "bolt", names=("mon", "tue", "wed"))), "folder")
    split = cross_fit_split(dataset, 0, 3)
    assert groups_in_words(dataset, split) == "3 groups by sub-folder: held out whole, in turn"


def test_none_forgets_every_group(tmp_path: Path) -> None:
    dataset = with_groups(with_groups(layouts.load(days(tmp_path / "bolt"))), "none")
    assert groups(dataset) == {""}
    assert dataset.grouped_by == ""
    assert groups_in_words(dataset, calibration_split(dataset, 0)) == ""
    assert one_group_warning(calibration_split(dataset, 0)) == ""


def test_file_names_give_groups_by_a_regular_expression(tmp_path: Path) -> None:
    for number, name in enumerate(("01_200828_a.png", "02_200829_a.png", "03_200828_b.png")):
        save(part(number), tmp_path / "bolt" / name)

    dataset = with_groups(layouts.load(tmp_path / "bolt"), r"name:_(\d{6})_")

    assert [sample.group for sample in dataset.good_train] == ["200828", "200829", "200828"]


def test_dates_of_exposure_give_groups(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2026:11:30 17:02:41"
    save(part(0), tmp_path / "bolt" / "a.jpg", exif=exif)
    assert groups(with_groups(layouts.load(tmp_path / "bolt"), "date")) == {"2026-11-30"}
    save(part(1), tmp_path / "bolt" / "b.jpg")
    with pytest.raises(FlawsmithError, match=r"1 image of 2 .* the first is b\.jpg"):
        with_groups(layouts.load(tmp_path / "bolt"), "date")


def table(tmp_path: Path, column: str, values: Sequence[str]) -> Path:
    rows = [f"image,label,split,{column}"]
    for number, value in enumerate(values):
        save(part(number), tmp_path / f"{number}.png")
        rows.append(f"{number}.png,good,train,{value}")
    path = tmp_path / "parts.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_the_column_group_of_a_table_is_taken_without_asking(tmp_path: Path) -> None:
    loaded = layouts.load(table(tmp_path, "group", "aabbccdd"))
    assert "group" in loaded.recognised
    dataset = with_groups(loaded)
    assert groups(dataset) == set("abcd")
    assert dataset.grouped_by == "column group"


def test_another_column_of_a_table_is_taken_on_request(tmp_path: Path) -> None:
    loaded = layouts.load(table(tmp_path, "Day", "aabb"))
    assert with_groups(loaded).grouped_by == ""
    dataset = with_groups(loaded, "column:day")
    assert groups(dataset) == {"a", "b"}
    assert dataset.grouped_by == "column day"
    with pytest.raises(FlawsmithError, match=r"no column 'dya', did you mean day\?"):
        with_groups(loaded, "column:dya")


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("fodler", r"--group fodler is not possible, did you mean folder\? write auto"),
        ("nmae:x", r"did you mean name:REGEX\?"),
        ("", "is not possible: write auto"),
        ("name:", "says nothing after the colon"),
        ("name:(", "is no regular expression"),
        ("name:x", "has 0 capture groups and needs one"),
        ("name:(a)(b)", "has 2 capture groups"),
        ("name:(zzz)", r"1 image of 1 .* no match in the file name, the first is a\.png"),
        ("folder", "lie in no sub-folders"),
        ("date", "no date of exposure"),
        ("column:day", "needs a CSV table"),
    ],
)
def test_what_cannot_tell_groups_is_one_clear_line(tmp_path: Path, by: str, message: str) -> None:
    save(part(0), tmp_path / "a.png")
    with pytest.raises(FlawsmithError, match=message) as error:
        with_groups(layouts.load(tmp_path), by)
    assert "\n" not in str(error.value)


def test_a_column_of_empty_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="the column is empty"):
        with_groups(layouts.load(table(tmp_path, "day", ["", ""])), "column:day")


@pytest.mark.parametrize(("scenes", "frames"), [(2, 5), (5, 8), (12, 3), (15, 2)])
def test_frames_of_a_scene_are_told_from_alike_parts(tmp_path: Path, scenes: int, frames: int, seed: int) -> None:
    paths = bursts(tmp_path, scenes=scenes, frames=frames, rng=np.random.default_rng(seed))
    numbers = find_scenes(paths)
    assert numbers is not None
    truth = np.repeat(np.arange(scenes), frames)
    same, told = truth[:, None] == truth, np.equal.outer(numbers, numbers)
    assert (told & same).sum() >= 0.9 * same.sum()
    assert (told & ~same).sum() <= 0.05 * told.sum(), "two drawn gears in one pose are nearly one picture"


def test_alike_parts_are_no_bursts(tmp_path: Path) -> None:
    paths = [save(part(index), tmp_path / f"{index:03d}.png") for index in range(60)]
    assert find_scenes(paths) is None


def test_a_few_twins_among_many_parts_are_no_habit(tmp_path: Path, seed: int) -> None:
    paths = [save(part(index), tmp_path / f"{index:03d}.png") for index in range(30)]
    paths.append(save(frame(part(3), np.random.default_rng(seed)), tmp_path / "again.png"))
    assert find_scenes(paths) is None


def test_deep_turned_and_damaged_files_are_no_obstacle(tmp_path: Path) -> None:
    deep = [tmp_path / f"deep_{number}.png" for number in range(2)]
    for path in deep:
        Image.fromarray(part(0)[:, :, 0].astype(np.uint16) * 16).save(path)
    other = save(part(1), tmp_path / "other.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "broken too.png").write_bytes(b"no image either")
    numbers = find_scenes([*deep, other, tmp_path / "broken.png", tmp_path / "broken too.png", tmp_path / "gone.png"])
    assert numbers == [0, 0, 1, 2, 3, 4]


def test_scenes_are_kept_whole(tmp_path: Path, seed: int) -> None:
    bursts(tmp_path / "bolt", scenes=8, frames=4, rng=np.random.default_rng(seed))
    dataset = with_groups(layouts.load(tmp_path / "bolt"))
    assert dataset.grouped_by == BURSTS
    split = calibration_split(dataset, 0)
    assert not {s.group for s in split.train} & {s.group for s in split.calibration}


def test_images_taken_otherwise_are_unlike(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    learned = bursts(tmp_path / "learned", scenes=8, frames=5, rng=rng)
    alike = bursts(tmp_path / "alike", scenes=8, frames=3, rng=rng)
    single = [save(render_part("gear", index=90 + i, size=(160, 192))[0], tmp_path / f"{i}.png") for i in range(10)]
    assert share_unlike(alike, learned) < 0.3
    assert share_unlike(single, learned) > 0.8


@pytest.mark.real_data
def test_real_sets_are_read_as_they_were_taken(real_data: Path) -> None:
    def scenes(*names: str) -> list[int] | None:
        return find_scenes(sorted(real_data.joinpath(*names, "train", "good").iterdir()))

    assert scenes("mvtec_ad", "screw") is None
    assert scenes("mvtec_loco", "juice_bottle") is None
    assert scenes("magnetic_tile", "magnetic_tile") is not None
    assert scenes("bsdata", "ball_screw") is not None
