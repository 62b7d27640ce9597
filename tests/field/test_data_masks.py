"""Masks as programs save them: inverted, on a transparent layer, as JPEG, over the photograph."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from flawsmith.data.doctor import Finding, check
from flawsmith.data.layouts import load
from flawsmith.data.layouts.names import nfc
from flawsmith.data.masks import read_mask_image
from flawsmith.pipeline.evaluate import evaluate
from flawsmith.runtime.inspector import Inspector

SIZE = (40, 48)
TRUTH = np.zeros(SIZE, bool)
TRUTH[10:16, 20:40] = True
Pixels = NDArray[np.uint8]


def grey(marked: int, else_: int) -> Pixels:
    return np.where(TRUTH, marked, else_).astype(np.uint8)


def layer(stroke: tuple[int, int, int], ground: tuple[int, int, int], *, alpha: tuple[int, int] = (255, 0)) -> Pixels:
    """RGBA: strokes of one colour, and what lies in the transparent rest."""
    colours = np.where(TRUTH[..., None], stroke, ground)
    return np.dstack([colours, np.where(TRUTH, *alpha)]).astype(np.uint8)


def photograph(*, grey_only: bool = False) -> Pixels:
    rng = np.random.default_rng(5)
    picture = np.clip(rng.normal(120, 40, (*SIZE, 3)), 0, 255)
    picture[TRUTH] = (255, 0, 0)
    return picture[..., :1].repeat(3, 2).astype(np.uint8) if grey_only else picture.astype(np.uint8)


def heat_map() -> Pixels:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    heat = np.exp(-((y - 13) ** 2 + (x - 30) ** 2) / 200)
    return (np.dstack([heat, 4 * heat * (1 - heat), 1 - heat]) * 255).astype(np.uint8)


RIGHT: dict[str, tuple[Pixels, str, str | None]] = {
    "white on black": (grey(255, 0), "m.png", None),
    "small numbers": (grey(3, 0), "m.png", None),
    "grey of a kind": (grey(206, 0), "m.png", None),
    "opaque colours": (layer((255, 255, 255), (0, 0, 0), alpha=(255, 255)), "m.png", None),
    "red on transparent black": (layer((255, 0, 0), (0, 0, 0)), "m.png", None),
    "white everywhere, marked by alpha": (layer((255, 255, 255), (255, 255, 255)), "m.png", "alpha"),
    "black strokes on nothing": (layer((0, 0, 0), (0, 0, 0)), "m.png", "alpha"),
    "black strokes on transparent white": (layer((0, 0, 0), (255, 255, 255)), "m.png", "alpha"),
    "red strokes on transparent white": (layer((255, 0, 0), (255, 255, 255)), "m.png", "alpha"),
    "half transparent strokes": (layer((255, 0, 0), (255, 255, 255), alpha=(128, 0)), "m.png", "alpha"),
    "strokes over a faint layer": (layer((255, 255, 255), (255, 255, 255), alpha=(220, 60)), "m.png", "alpha"),
    "alpha in a TIFF": (layer((255, 255, 255), (255, 255, 255)), "m.tif", "alpha"),
    "alpha in a WebP": (layer((255, 255, 255), (255, 255, 255)), "m.webp", "alpha"),
    "grey with alpha": (np.dstack([grey(9, 9), grey(255, 0)]), "m.png", "alpha"),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_marked_is_read(tmp_path: Path, case: str) -> None:
    pixels, name, oddity = RIGHT[case]
    Image.fromarray(pixels).save(
        tmp_path / name, **({"lossless": True, "exact": True} if name.endswith("webp") else {})
    )
    mask = read_mask_image(tmp_path / name)
    np.testing.assert_array_equal(mask.marked, TRUTH)
    assert mask.oddities == (() if oddity is None else (oddity,))


def test_a_transparent_colour_of_a_palette_is_not_marked(tmp_path: Path) -> None:
    indexed = Image.fromarray(grey(1, 0), "P")
    indexed.putpalette([255, 255, 255, 255, 0, 0])
    indexed.save(tmp_path / "m.png", transparency=0)
    np.testing.assert_array_equal(read_mask_image(tmp_path / "m.png").marked, TRUTH)


@pytest.mark.parametrize("quality", [40, 75, 95])
@pytest.mark.parametrize("name", ["m.jpg", "m.webp"])
@pytest.mark.parametrize("colour", [(255, 255, 255), (255, 0, 0), (200, 200, 200)])
def test_compression_of_a_mask_marks_nothing_more(
    tmp_path: Path, name: str, quality: int, colour: tuple[int, int, int]
) -> None:
    pixels = np.where(TRUTH[..., None], colour, 0).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, quality=quality)
    mask = read_mask_image(tmp_path / name)
    assert (mask.marked != TRUTH).mean() < 0.03
    assert set(mask.oddities) <= {"soft"}


def test_noise_of_a_black_jpeg_is_no_flaw(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 12, SIZE).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "m.jpg", quality=95)
    assert not read_mask_image(tmp_path / "m.jpg").marked.any()


def test_soft_edges_are_cut_at_half(tmp_path: Path) -> None:
    soft = Image.fromarray(grey(255, 0)).resize((480, 400), Image.Resampling.BICUBIC)
    soft.save(tmp_path / "m.png")
    mask = read_mask_image(tmp_path / "m.png")
    expected = np.asarray(Image.fromarray(grey(255, 0)).resize((480, 400), Image.Resampling.NEAREST)) > 0
    assert (mask.marked != expected).mean() < 0.01
    assert mask.oddities == ("soft",)


def test_many_instances_are_all_marked(tmp_path: Path) -> None:
    numbers = np.zeros(SIZE, np.uint16)
    numbers[:10] = np.arange(480).reshape(10, 48)
    Image.fromarray(numbers).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask_image(tmp_path / "m.png").marked, numbers > 0)


def drawn(draw: Callable[[ImageDraw.ImageDraw], None]) -> Pixels:
    picture = Image.new("L", SIZE[::-1])
    draw(ImageDraw.Draw(picture))
    return np.asarray(picture)


RING, CORNERS = (6, 4, 38, 36), [(5, 30), (24, 3), (44, 33), (20, 20)]


ODD: dict[str, tuple[Pixels, str, str]] = {
    "inverted": (grey(0, 255), "mask-mostly-marked", "warning"),
    "inverted in colour": (
        np.where(TRUTH[..., None], 0, (255, 255, 0)).astype(np.uint8),
        "mask-mostly-marked",
        "warning",
    ),
    "cut out of an opaque cover": (layer((0, 0, 0), (0, 0, 0), alpha=(0, 255)), "mask-mostly-marked", "warning"),
    "coloured ground": (
        np.where(TRUTH[..., None], (255, 0, 0), (0, 0, 255)).astype(np.uint8),
        "mask-mostly-marked",
        "warning",
    ),
    "marked by alpha": (layer((255, 255, 255), (255, 255, 255)), "mask-alpha", "note"),
    "over the photograph": (photograph(), "mask-photograph", "warning"),
    "a grey photograph": (photograph(grey_only=True), "mask-photograph", "warning"),
    "a heat map": (heat_map(), "mask-photograph", "warning"),
    "an outline": (drawn(lambda pen: pen.ellipse(RING, outline=255)), "mask-outlines", "note"),
    "an outline with corners": (drawn(lambda pen: pen.polygon(CORNERS, outline=255)), "mask-outlines", "note"),
}


def arrange(root: Path, trees: ModuleType, pixels: Pixels) -> Path:
    trees.mvtec(root, n_train=3, n_flawed=0)
    for number in range(3):
        trees.picture(root / "test" / "crack" / f"{number}.png", seed=300 + number, size=SIZE)
        path = root / "ground_truth" / "crack" / f"{number}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels if number < 2 else grey(255, 0)).save(path)
    return root


def findings_named(root: Path, name: str) -> list[Finding]:
    return [item for item in check(load(root)).items if item.name == name]


@pytest.mark.parametrize("case", ODD)
def test_doctor_names_odd_masks(tmp_path: Path, trees: ModuleType, case: str) -> None:
    pixels, name, severity = ODD[case]
    (finding,) = findings_named(arrange(tmp_path / "bolt", trees, pixels), name)
    assert finding.severity == severity
    assert [path.name for path in finding.where] == ["0_mask.png", "1_mask.png"]
    assert "\n" not in finding.what + finding.fix


@pytest.mark.parametrize("case", [None, *ODD])
def test_evaluation_notes_odd_masks(tmp_path: Path, trees: ModuleType, tiny: ModuleType, case: str | None) -> None:
    root = arrange(tmp_path / "bolt", trees, grey(255, 0) if case is None else ODD[case][0])
    make: Callable[..., Any] = tiny.make_bundle
    notes = " ".join(evaluate(Inspector.load(make()), root, n_resamples=0).notes)
    assert ("crack/0_mask.png" in notes) == (case is not None)
    assert ("inverted?" in notes) == (case is not None and "mostly-marked" in ODD[case][1])


LINES = {
    "disc": drawn(lambda pen: pen.ellipse(RING, fill=255)),
    "broad ring": drawn(lambda pen: pen.ellipse(RING, outline=255, width=5)),
    "open arc": drawn(lambda pen: pen.arc(RING, 0, 340, fill=255)),
    "crossing scratches": drawn(lambda pen: [pen.line(ends, fill=255) for ends in ((0, 0, 47, 39), (0, 39, 47, 0))]),
    "scratch from side to side": drawn(lambda pen: pen.line((0, 18, 47, 22), fill=255)),
    "scratch across a corner": drawn(lambda pen: pen.line((0, 25, 25, 0), fill=255)),
    "zigzag": drawn(lambda pen: pen.line([(5, 3), (12, 35), (19, 5), (26, 35), (33, 5), (40, 36)], fill=255)),
    "parallel scratches": drawn(lambda pen: [pen.line((4, 4 + 4 * n, 42, 5 + 4 * n), fill=255) for n in range(8)]),
    "scratches from above": drawn(lambda pen: [pen.line((6 + 6 * n, 0, 9 + 6 * n, 36), fill=255) for n in range(6)]),
    "pits": drawn(lambda pen: [pen.point((3 + 7 * n % 44, 2 + 5 * n % 37), fill=255) for n in range(30)]),
    "along two sides": drawn(lambda pen: pen.line([(0, 0), (0, 36), (40, 36)], fill=255)),
    "nothing": np.zeros(SIZE, np.uint8),
}
OUTLINES = {
    "small": drawn(lambda pen: pen.ellipse((20, 12, 30, 22), outline=255)),
    "thick": drawn(lambda pen: pen.rectangle(RING, outline=255, width=3)),
    "cut by the side above": drawn(lambda pen: pen.ellipse((10, -16, 40, 14), outline=255)),
    "cut by the left side": drawn(lambda pen: pen.ellipse((-15, 5, 15, 35), outline=255)),
    "around all": drawn(lambda pen: pen.rectangle((0, 0, 47, 39), outline=255)),
    "two beside a filled one": drawn(
        lambda pen: [pen.ellipse((2, 2, 20, 20), outline=255), pen.ellipse((26, 14, 46, 34), outline=255),
                     pen.ellipse((4, 26, 10, 32), fill=255)]
    ),
    "dashed": drawn(lambda pen: [pen.arc(RING, angle, angle + 8, fill=255) for angle in range(0, 360, 12)]),
    "nearly closed": drawn(lambda pen: pen.arc(RING, 0, 352, fill=255)),
}  # fmt: skip


@pytest.mark.parametrize("case", OUTLINES)
def test_outlines_that_are_small_thick_cut_or_dashed_are_named(tmp_path: Path, case: str) -> None:
    Image.fromarray(OUTLINES[case]).save(tmp_path / "m.png")
    assert read_mask_image(tmp_path / "m.png").oddities == ("outlines",)


@pytest.mark.parametrize("case", LINES)
def test_lines_and_areas_are_no_outlines(tmp_path: Path, case: str) -> None:
    Image.fromarray(LINES[case]).save(tmp_path / "m.png")
    assert read_mask_image(tmp_path / "m.png").oddities == ()


@pytest.mark.parametrize(
    "name",
    ["{}_mask.png", "{}.png", "{}_MASK.png", "{}-mask.tif", "{}.mask.png", "{}_GT.png", "mask_{}.png", "{} seg.bmp",
     "{}_Maske.png", "{}.jpg.png", "{}_ground_truth.png"],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["mvtec", "folder"])
def test_masks_in_their_own_folder_are_paired_under_usual_names(tmp_path: Path, name: str, layout: str) -> None:
    good, flawed = ("train/good", "test/crack") if layout == "mvtec" else ("good", "crack")
    for folder, image in [(good, "0"), *[(flawed, image) for image in ("A_1", "a_1 2", "prüfung")]]:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey(9, 7)).save(tmp_path / folder / f"{image}.jpg")
    (tmp_path / "ground_truth" / "crack").mkdir(parents=True)
    for image in ("A_1", "a_1 2", "prüfung"):
        mask = tmp_path / "ground_truth" / "crack" / name.format(unicodedata.normalize("NFD", image))
        Image.fromarray(grey(255, 0)).save(mask)

    dataset = load(tmp_path)

    stems = {sample.image.stem: [nfc(mask.name) for mask in sample.masks] for sample in dataset.test_flawed}
    assert stems == {image: [name.format(image)] for image in ("A_1", "a_1 2", "prüfung")}
    assert dataset.unused_masks == ()


def test_the_largest_share_is_told(tmp_path: Path, trees: ModuleType) -> None:
    (finding,) = findings_named(arrange(tmp_path / "bolt", trees, grey(0, 255)), "mask-mostly-marked")
    assert finding.what == "2 masks mark more than half of the image, up to 94%: inverted?"


@pytest.mark.real_data
def test_masks_of_real_sets_are_as_usual(real_data: Path) -> None:
    for root in ("mvtec_ad/screw", "bsdata/ball_screw", "mvtec_loco/juice_bottle", "magnetic_tile/magnetic_tile"):
        masks = [mask for sample in load(real_data / root).test_flawed for mask in sample.masks][::7]
        odd = {oddity for mask in masks for oddity in read_mask_image(mask).oddities}
        assert odd <= {"mostly-marked"}, root


# Masks and overlays that lie among the images

BESIDE = {
    "mask": ("{}_mask.png", True),
    "mask first": ("mask_{}.png", True),
    "GT": ("{}_GT.bmp", True),
    "segmentation": ("{}-seg.png", True),
    "folder of masks": ("masks/{}.png", True),
    "folder of ground truth": ("ground_truth/{}_mask.png", True),
    "overlay": ("{}_overlay.png", False),
    "annotated": ("{}.annotated.jpg", False),
    "folder of overlays": ("overlays/{}.png", False),
}


@pytest.mark.parametrize("layout", ["mvtec", "folder"])
@pytest.mark.parametrize("kind", BESIDE)
def test_masks_and_overlays_among_images_are_no_images_of_parts(
    tmp_path: Path, trees: ModuleType, kind: str, layout: str
) -> None:
    name, is_mask = BESIDE[kind]
    good, bad = ("train/good", "test/crack") if layout == "mvtec" else ("good", "bad")
    for number in range(3):
        for folder in (good, bad):
            trees.picture(tmp_path / folder / f"{number:03d}.png", seed=number + 100 * (folder == bad))
            trees.mask(tmp_path / folder / name.format(f"{number:03d}"))
    dataset = load(tmp_path)
    assert [sample.image.name for sample in dataset.good_train] == ["000.png", "001.png", "002.png"]
    assert [sample.image.name for sample in dataset.test_flawed] == ["000.png", "001.png", "002.png"]
    assert [len(sample.masks) for sample in dataset.test_flawed] == [int(is_mask)] * 3
    assert sum("3 masks or overlays among images" in note for note in dataset.notes) == (1 if is_mask else 2)


def test_overlays_beside_unlabelled_images_are_not_learned(tmp_path: Path, trees: ModuleType) -> None:
    for place in ("", "monday"):
        trees.picture(tmp_path / place / "a.png", seed=1)
        trees.picture(tmp_path / place / "a_overlay.png", seed=2)
    assert [sample.image.name for sample in load(tmp_path).good_train] == ["a.png", "a.png"]


@pytest.mark.parametrize("name", ["part_mask.png", "mask.png", "gt_7.png", "unmasked.png", "overlay.png"])
def test_such_words_in_other_names_mean_nothing(tmp_path: Path, trees: ModuleType, name: str) -> None:
    trees.picture(tmp_path / name, seed=1)
    trees.picture(tmp_path / "other.png", seed=2)
    assert len(load(tmp_path).good_train) == 2


def test_masks_in_their_own_place_come_first(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    trees.mask(root / "test" / "crack" / "000_mask.png")
    first = load(root).test_flawed[0]
    assert [mask.parent.parent.name for mask in first.masks] == ["ground_truth"]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("good bad", "good_mask bad_mask"), ("good bad", "good_GT bad_GT"), ("img_ok img_ng", "masks_ok masks_ng"),
        ("train/good test/crack", "train/good_mask test/crack_mask"),
        ("train/good test/crack", "test/ground_truth/crack"), ("train/good test/crack", "masks/crack"),
        ("train/good test/crack", "GT/crack"), ("train/good test/crack", "ground_truth"),
    ],
)  # fmt: skip
def test_masks_in_folders_of_their_own_are_neither_learned_nor_tested(
    tmp_path: Path, trees: ModuleType, images: str, masks: str
) -> None:
    good, bad = images.split()
    for number in range(3):
        for folder in (good, bad):
            trees.picture(tmp_path / folder / f"{number}.png", seed=number + 100 * (folder == bad))
        for folder in masks.split():
            trees.mask(tmp_path / folder / f"{number}.png")
    dataset = load(tmp_path)
    assert {sample.image.parent for sample in dataset.good_train} == {tmp_path / good}
    assert {sample.image.parent for sample in dataset.test_flawed} == {tmp_path / bad}
    assert [len(sample.masks) for sample in dataset.test_flawed] == [1] * 3
    assert dataset.unused_masks == ()


@pytest.mark.parametrize(
    "folders", ["good bad bad_overlay", "good good_heatmap bad", "train/good test/crack test/crack_overlay"]
)
def test_folders_of_overlays_are_no_images_of_parts(tmp_path: Path, trees: ModuleType, folders: str) -> None:
    for position, folder in enumerate(folders.split()):
        trees.picture(tmp_path / folder / "0.png", seed=position)
    dataset = load(tmp_path)
    assert [len(dataset.good_train), len(dataset.test_flawed)] == [1, 1]
    assert [len(sample.masks) for sample in dataset.test_flawed] == [0]
    assert any("not used: 1 mask or overlay" in note for note in dataset.notes)


def test_masks_that_no_image_has_are_told_wherever_they_lie(tmp_path: Path, trees: ModuleType) -> None:
    for number, folder in enumerate(("train/good", "test/crack", "test/dent")):
        trees.picture(tmp_path / folder / "0.png", seed=number)
    trees.mask(tmp_path / "ground_truth" / "0_mask.png")
    assert load(tmp_path).unused_masks == (tmp_path / "ground_truth" / "0_mask.png",)


def test_parts_that_are_masks_are_parts(tmp_path: Path, trees: ModuleType) -> None:
    for number, folder in enumerate(("mask_ok", "mask_ng")):
        trees.picture(tmp_path / folder / "0.png", seed=number)
    dataset = load(tmp_path)
    assert [len(dataset.good_train), len(dataset.test_flawed)] == [1, 1]
