"""Where flaws may lie: mask files, thresholds, and a guess that knows when not to guess."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Picture
from pydantic import ValidationError

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.synthesis.demo_parts import render_part
from flawsmith.synthesis.foreground import Foreground, otsu, preview, provider, through_geometry


def part(shape: tuple[int, int] = (120, 160), *, light: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy disc on an evenly lit mat, light on dark or dark on light, and where the disc is."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[: shape[0], : shape[1]]
    disc = (y - shape[0] / 2) ** 2 + (x - shape[1] / 2) ** 2 < (min(shape) / 3) ** 2
    grey = np.where(disc == light, 0.8, 0.2) + rng.normal(0, 0.02, shape)
    return np.repeat(np.clip(grey, 0, 1)[:, :, None], 3, axis=2).astype(np.float32), disc


def texture(seed: int, shape: tuple[int, int] = (128, 128)) -> np.ndarray:
    """Rough grain all over."""
    grain = np.random.default_rng(seed).normal(0, 1, (shape[0] // 4, shape[1] // 4))
    grey = 0.5 + 0.15 * np.kron(grain, np.ones((4, 4)))
    return np.repeat(np.clip(grey, 0, 1)[:, :, None], 3, axis=2).astype(np.float32)


_OVAL = {"mode": "disc", "extent": (0.4, 0.3)}


def agreement(mask: np.ndarray, truth: np.ndarray) -> float:
    return np.count_nonzero(mask & truth) / np.count_nonzero(mask | truth)


def save(path: Path, mask: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(mask.astype(np.uint8) * 255).save(path)
    return path


def test_a_bare_name_stands_for_the_mode() -> None:
    assert Foreground.model_validate("auto") == Foreground(mode="auto")
    with pytest.raises(ValidationError, match="'none', 'files', 'threshold', 'auto', 'disc' or 'box'"):
        Foreground.model_validate("guess")


@pytest.mark.parametrize("mode", ["none", "files", "threshold", "auto", "disc", "box"])
def test_providers_travel_to_worker_processes(mode: str) -> None:
    made = provider(Foreground.model_validate(mode))
    assert pickle.loads(pickle.dumps(made)) == made


def test_none_means_everywhere() -> None:
    image, _ = part(light=True)
    made = provider(Foreground()).fit([image])
    assert made(image) is None
    assert made.reason is not None


@pytest.mark.parametrize(("light", "inverted"), [(True, False), (False, True)])
def test_threshold_takes_the_side_it_is_told(light: bool, inverted: bool) -> None:
    image, disc = part(light=light)
    mask = provider(Foreground(mode="threshold", level=128, inverted=inverted))(image)
    assert agreement(mask, disc) > 0.97


def test_threshold_in_the_pixels_of_the_file_smooths_before_it_resizes(tmp_path: Path) -> None:
    whole, _ = part((400, 800), light=True)
    file, geometry = tmp_path / "part.png", Geometry(size=(100, 100), mean=(0, 0, 0), std=(1, 1, 1))
    Picture.fromarray(np.rint(whole * 255).astype(np.uint8)).save(file)
    small = np.ascontiguousarray(geometry.apply(decode(file)).transpose(1, 2, 0))

    mask = provider(Foreground(mode="threshold", level=100, sigma=8, pixels="file"))(small, file, geometry)

    smooth = cv2.GaussianBlur(cv2.cvtColor(decode(file), cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 8)
    assert np.array_equal(mask, (smooth > 100)[::4, ::8])


def test_threshold_on_a_black_image_finds_nothing() -> None:
    assert not provider(Foreground(mode="threshold", level=0))(np.zeros((20, 30, 3), np.float32)).any()


@pytest.mark.parametrize(("channel", "column"), [("red", 0), ("green", 1), ("blue", 2)])
def test_a_threshold_can_look_at_one_colour(channel: str, column: int) -> None:
    image = np.zeros((20, 30, 3), np.float32)
    for index in range(3):
        image[:, 10 * index : 10 * (index + 1), index] = 0.5
    mask = provider(Foreground(mode="threshold", channel=channel, level=100, sigma=0))(image)
    assert np.array_equal(np.flatnonzero(mask.all(axis=0)), np.arange(10 * column, 10 * (column + 1)))
    assert mask.mean() == pytest.approx(1 / 3)


@pytest.mark.parametrize("scale", [1, 2])
def test_erosion_and_dilation_follow_the_image(scale: int) -> None:
    image = np.zeros((256 * scale, 128 * scale, 3), np.float32)
    image[100 * scale : 120 * scale, 40 * scale : 60 * scale] = 1
    image[10 * scale, 10 * scale] = 1

    grown = provider(Foreground(mode="threshold", sigma=0, dilation=(5, 10)))(image)
    opened = provider(Foreground(mode="threshold", sigma=0, erosion=(7, 5), dilation=(7, 5)))(image)

    # 10 columns of 256 are 5 of 128.
    part = grown[60 * scale :]
    sides = part.any(axis=1).sum(), part.any(axis=0).sum()
    assert sides == (20 * scale + round(5 * scale) - 1, 20 * scale + round(5 * scale) - 1)
    assert opened[10 * scale, 10 * scale] == 0
    assert opened.sum() == (20 * scale) ** 2


def test_erosion_does_not_eat_from_the_border_of_the_image() -> None:
    assert provider(Foreground(mode="threshold", sigma=0, erosion=(15, 15)))(np.ones((64, 64, 3), np.float32)).all()


def test_rows_and_columns_beyond_the_kept_ones_are_no_foreground() -> None:
    image = np.ones((50, 80, 3), np.float32)
    mask = provider(Foreground(mode="threshold", sigma=0, kept=(0.5, 0.25)))(image)
    assert np.argwhere(mask).max(axis=0).tolist() == [24, 19]
    assert mask[:25, :20].all()


@pytest.mark.parametrize("kept", [(0.0, 1.0), (1.0, 1.5)])
def test_kept_shares_beyond_the_image_are_refused(kept: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="kept"):
        Foreground(mode="threshold", kept=kept)


def test_stored_settings_from_before_colours_and_kernels_still_load() -> None:
    stored = '{"mode":"threshold","sigma":8.0,"level":50.0,"inverted":true,"pixels":"file","resampling":"bilinear",'
    stored += '"extent":[0.45,0.45]}'
    assert Foreground.model_validate_json(stored) == Foreground(
        mode="threshold", level=50, inverted=True, pixels="file"
    )


@pytest.mark.parametrize("light", [True, False], ids=["light on dark", "dark on light"])
def test_auto_finds_the_part_whatever_is_darker(light: bool) -> None:
    images = [part(light=light, seed=seed) for seed in range(4)]
    made = provider(Foreground(mode="auto")).fit([image for image, _ in images])
    assert made.reason is None
    for image, disc in images:
        assert agreement(made(image), disc) > 0.95


def test_auto_refuses_textures_and_says_why() -> None:
    images = [texture(seed) for seed in range(5)]
    made = provider(Foreground(mode="auto")).fit(images)
    assert made(images[0]) is None
    assert "5 of 5 images have no clear foreground" in made.reason


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (40, 30)])
def test_auto_refuses_even_images_of_any_size(level: float, shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), level, np.float32)
    assert provider(Foreground(mode="auto"))(image) is None


def test_the_sample_decides_for_an_image_that_would_not_decide_alone() -> None:
    images = [part(light=True, seed=seed)[0] for seed in range(5)]
    odd = texture(3)
    assert provider(Foreground(mode="auto")).fit([*images, odd]).reason is None
    assert provider(Foreground(mode="auto")).fit([images[0], *(texture(s) for s in range(3))])(images[0]) is None


def test_fitting_needs_an_image() -> None:
    with pytest.raises(ValueError, match="no image"):
        provider(Foreground(mode="auto")).fit([])


@pytest.mark.parametrize("name", ["bracket", "gear"])
def test_auto_keeps_the_rendered_parts_and_leaves_the_mat(name: str) -> None:
    images = [render_part(name, index=index, size=(128, 128))[0].astype(np.float32) / 255 for index in range(3)]
    made = provider(Foreground(mode="auto")).fit(images)
    assert made.reason is None
    for image in images:
        mask = made(image)
        assert 0.4 < mask.mean() < 0.6
        # The mat is nearly black, bare metal is not.
        assert image[mask].mean() > 3 * image[~mask].mean()


@pytest.mark.real_data
@pytest.mark.parametrize(("folder", "area"), [("mvtec_ad/screw", (0.1, 0.4)), ("mvtec_loco/juice_bottle", (0.2, 0.4))])
def test_auto_finds_real_objects(real_data: Path, folder: str, area: tuple[float, float]) -> None:
    files = sorted((real_data / folder / "train" / "good").iterdir())[::60]
    images = [np.float32(decode(file)[::2, ::2]) / 255 for file in files]
    made = provider(Foreground(mode="auto")).fit(images)
    assert made.reason is None
    assert all(area[0] < made(image).mean() < area[1] for image in images)


@pytest.mark.real_data
def test_auto_refuses_real_textures(real_data: Path) -> None:
    files = sorted((real_data / "magnetic_tile" / "magnetic_tile" / "train" / "good").iterdir())[::100]
    images = [np.float32(decode(file)) / 255 for file in files]
    assert provider(Foreground(mode="auto")).fit(images).reason is not None


@pytest.mark.parametrize("name", ["007.png", "007_mask.png", "007.bmp", "fg_mask/007.png"])
def test_mask_files_are_found_by_stem(tmp_path: Path, name: str) -> None:
    image, disc = part(light=True)
    save(tmp_path / "masks" / name, disc)
    made = provider(Foreground(mode="files"), tmp_path / "masks")
    assert np.array_equal(made(image, tmp_path / "train" / "good" / "007.jpg"), disc)


@pytest.mark.parametrize("place", ["bolt/fg_mask", "fg_mask/bolt", "fg_mask/bolt/train"])
def test_mask_files_are_found_where_released_layouts_keep_them(tmp_path: Path, place: str) -> None:
    image, disc = part(light=True)
    save(tmp_path / place / "000.png", disc)
    made = provider(Foreground(mode="files"))
    assert np.array_equal(made(image, tmp_path / "bolt" / "train" / "good" / "000.png"), disc)


def test_mask_files_are_found_above_the_folders_of_other_layouts(tmp_path: Path) -> None:
    image, disc = part(light=True)
    save(tmp_path / "fg_mask" / "pcb1" / "0000.png", disc)

    found = provider(Foreground(mode="files"))(image, tmp_path / "pcb1" / "Data" / "Images" / "Normal" / "0000.JPG")

    assert np.array_equal(found, disc)


def test_centred_shapes_have_the_stated_extent() -> None:
    image = np.zeros((100, 60, 3), np.float32)

    disc = provider(Foreground(mode="disc", extent=(0.2, 0.2)))(image)
    box = provider(Foreground(mode="box", extent=(0.35, 0.25)))(image)

    assert disc[50, 30] and disc[31, 30] and not disc[28, 30]
    assert disc.mean() == pytest.approx(np.pi * 20**2 / 6000, rel=0.02)
    assert (box.any(axis=1).sum(), box.any(axis=0).sum()) == (70, 30)


@pytest.mark.parametrize(
    "settings", [{"extent": (0.0, 0.4)}, {"extent": (0.4, 1.2)}, {"mode": "disc", "extent": (0.4, 0.3)}]
)
def test_extents_beyond_the_image_are_refused(settings: dict) -> None:
    with pytest.raises(ValidationError, match="extent"):
        Foreground(**settings)


def test_a_missing_mask_file_is_named(tmp_path: Path) -> None:
    image, _ = part(light=True)
    with pytest.raises(FlawsmithError, match=r"003.png: no foreground mask 003.png in .*add one"):
        provider(Foreground(mode="files"), tmp_path)(image, tmp_path / "003.png")
    with pytest.raises(FlawsmithError, match="is no folder of foreground masks"):
        provider(Foreground(mode="files"), tmp_path / "nowhere")
    with pytest.raises(FlawsmithError, match="need images from files"):
        provider(Foreground(mode="files"), tmp_path)(image)


def test_a_mask_file_of_another_size_is_refused(tmp_path: Path) -> None:
    image, _ = part(light=True)
    save(tmp_path / "000.png", np.ones((5, 6), bool))
    with pytest.raises(FlawsmithError, match="make them equally large"):
        provider(Foreground(mode="files"), tmp_path)(image, Path("000.png"))


@pytest.mark.parametrize("policy", ["squash", "crop", "letterbox"])
def test_mask_files_go_through_the_geometry_of_the_image(tmp_path: Path, policy: str) -> None:
    geometry = Geometry(policy=policy, size=(32, 48))
    mask = np.zeros((100, 60), bool)
    mask[40:70, 10:50] = True
    path = save(tmp_path / "000.png", mask)
    as_image = geometry.apply(decode(path)) * np.float32(geometry.std[0]) + np.float32(geometry.mean[0])
    made = provider(Foreground(mode="files"), tmp_path)
    found = made(np.zeros((32, 48, 3), np.float32), path, geometry)
    assert found.shape == (32, 48)
    assert found[as_image[0] > 0.5].all()
    # Antialiasing gives the part a rim of one pixel.
    grown = np.pad(as_image[0] > 0.5, 1)
    rim = np.lib.stride_tricks.sliding_window_view(grown, (3, 3)).any(axis=(2, 3))
    assert not (found & ~rim).any()


def test_any_non_zero_pixel_of_a_mask_file_belongs() -> None:
    mask = np.zeros((64, 64), bool)
    mask[21, 33] = True
    assert through_geometry(mask, Geometry(size=(32, 32))).any()


def test_nearest_masks_take_the_pixel_at_the_scaled_index() -> None:
    mask = np.random.default_rng(0).random((70, 63)) > 0.5
    rows, columns = np.arange(48) * 70 // 48, np.arange(40) * 63 // 40
    taken = through_geometry(mask, Geometry(size=(48, 40)), resampling="nearest")
    assert np.array_equal(taken, mask[np.ix_(rows, columns)])
    with pytest.raises(FlawsmithError, match="need the policy squash"):
        through_geometry(mask, Geometry(size=(48, 40), policy="crop"), resampling="nearest")


def test_preview_dims_outside_and_outlines_the_part() -> None:
    image, disc = part(light=True)
    shown = preview(image, disc)
    assert shown.dtype == np.uint8
    assert shown.shape == image.shape
    assert (shown == (0, 229, 255)).all(axis=2).any()
    assert shown[0, 0].max() < image[0, 0].max() * 255 * 0.5
    assert np.array_equal(preview(image, None), np.rint(image * 255).astype(np.uint8))


def test_otsu_splits_two_levels_between_them() -> None:
    level, separability = otsu(np.repeat(np.float32([0.2, 0.9]), [300, 100]))
    assert 0.2 < level < 0.9
    assert separability == pytest.approx(1)
    assert otsu(np.full(5, 0.3, np.float32)) == (pytest.approx(0.3), 0.0)
