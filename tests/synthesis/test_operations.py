"""Three different operations with the released ranges, equal to the pipelines they come from."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torchvision.transforms.v2.functional as F
from PIL import Image

from flawsmith.synthesis import augment as op
from flawsmith.synthesis.augment import OPERATIONS, Family, augment, draw_operations
from flawsmith.synthesis.procedural import ProceduralTextures

FAMILIES: tuple[Family, ...] = ("glass", "glass-official", "classic")
ALL = [(family, name) for family in FAMILIES for name in OPERATIONS[family]]


class Recorder:
    """A generator that notes which range each uniform draw came from, and its value."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.drawn: list[tuple[tuple[float, float], float]] = []

    def uniform(self, low, high, size=None):
        values = self.rng.uniform(low, high, size)
        self.drawn += [((low, high), float(value)) for value in np.ravel(values)]
        return values

    def integers(self, low, high, size=None, endpoint=False):
        assert endpoint, "ranges of operations include their ends"
        values = self.rng.integers(low, high, size, endpoint=True)
        self.drawn += [((low, high), float(value)) for value in np.ravel(values)]
        return values

    def random(self):
        return self.rng.random()


@pytest.fixture
def texture() -> np.ndarray:
    return ProceduralTextures().draw((60, 84), np.random.default_rng(17))


@pytest.fixture
def picture(texture: np.ndarray) -> Image.Image:
    return Image.fromarray(texture)


@pytest.mark.parametrize("family", FAMILIES)
def test_three_different_operations_in_random_order_and_all_occur(family: Family, seed: int) -> None:
    rng = np.random.default_rng(seed)

    drawn = [draw_operations(rng, family) for _ in range(600)]

    assert all(len(set(names)) == 3 for names in drawn)
    for place in range(3):
        counts = Counter(names[place] for names in drawn)
        assert set(counts) == set(OPERATIONS[family])
        assert max(counts.values()) < 600 / len(counts) * 2


def test_families_have_nine_and_ten_operations_and_none() -> None:
    assert [len(OPERATIONS[family]) for family in ("glass", "glass-official", "classic", "none")] == [9, 9, 10, 0]


@pytest.mark.parametrize(("family", "name"), ALL)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (33, 20)])
def test_every_operation_keeps_type_and_size_and_leaves_its_input(family: Family, name: str, size) -> None:
    rng = np.random.default_rng(3)
    texture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    before = texture.copy()
    texture.flags.writeable = False

    result = OPERATIONS[family][name](texture, rng)

    assert (result.shape, result.dtype) == (before.shape, np.uint8)
    assert np.array_equal(texture, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_generator_decides_everything(family: Family, texture: np.ndarray, seed: int) -> None:
    once = [augment(texture, np.random.default_rng((seed, i)), family) for i in range(12)]
    again = [augment(texture, np.random.default_rng((seed, i)), family) for i in range(12)]

    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in pairwise(once))
    assert all(result.flags["C_CONTIGUOUS"] for result in once)


def test_no_operations_give_the_texture_itself(texture: np.ndarray) -> None:
    assert augment(texture, np.random.default_rng(0), "none") is texture


@pytest.mark.parametrize(
    ("family", "name", "ranges"),
    [
        ("glass", "contrast", {(0.8, 1.2)}),
        ("glass", "brightness", {(0.8, 1.2)}),
        ("glass", "saturation and hue", {(0.8, 1.2), (-0.2, 0.2)}),
        ("glass", "rotation", {(-45, 45)}),
        ("glass", "autocontrast", set()),
        ("classic", "gamma contrast", {(0.5, 2.0)}),
        ("classic", "brightness", {(0.8, 1.2), (-30, 30)}),
        ("classic", "hue and saturation", {(-50, 50)}),
        ("classic", "solarize", {(32, 128)}),
        ("classic", "rotation", {(-45, 45)}),
    ],
)
def test_parameters_fill_their_ranges(family: Family, name: str, ranges, texture: np.ndarray) -> None:
    recorder = Recorder(5)

    for _ in range(80):
        OPERATIONS[family][name](texture, recorder)  # type: ignore[arg-type]

    assert {of for of, _ in recorder.drawn} == ranges
    for low, high in ranges:
        values = [value for of, value in recorder.drawn if of == (low, high)]
        assert low <= min(values) < low + 0.2 * (high - low)
        assert high - 0.2 * (high - low) < max(values) <= high


@pytest.mark.parametrize("factor", [0.8, 0.93, 1.2])
def test_jitter_equals_torchvision(factor: float, texture: np.ndarray, picture: Image.Image) -> None:
    assert np.array_equal(op.contrast(texture, factor), F.adjust_contrast(picture, factor))
    assert np.array_equal(op.brightness(texture, factor), F.adjust_brightness(picture, factor))
    assert np.array_equal(op.saturation(texture, factor), F.adjust_saturation(picture, factor))


@pytest.mark.parametrize("hue", [-0.2, -0.05, 0.11, 0.2])
def test_published_hue_shift_equals_torchvision(hue, texture, picture) -> None:
    assert np.array_equal(op.shift_hue(texture, int(hue * 255)), F.adjust_hue(picture, hue))


def test_published_operations_shift_hues_as_pillow_does(texture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(family: Family) -> np.ndarray:
        return OPERATIONS[family]["saturation and hue"](texture, np.random.default_rng(4))

    fast, published = turned("glass"), turned("glass-official")

    assert not np.array_equal(fast, published)
    monkeypatch.setattr(op, "saturation", lambda image, factor: image)
    rng = np.random.default_rng(4)
    _, hue = rng.uniform(0.8, 1.2), rng.uniform(-0.2, 0.2)
    assert np.array_equal(turned("glass-official"), F.adjust_hue(Image.fromarray(texture), hue))


@pytest.mark.parametrize("hue", [-0.2, -0.05, 0.11, 0.2])
def test_fast_hue_shift_equals_torchvision_up_to_rounding_of_the_colour_space(hue, texture, picture) -> None:
    shifted = op.shift_hue_and_saturation(texture, int(hue * 255), 0)

    difference = np.abs(shifted.astype(int) - np.asarray(F.adjust_hue(picture, hue)))

    assert difference.max() <= 8
    assert difference.mean() < 1.5


def test_certain_operations_equal_torchvision(texture: np.ndarray, picture: Image.Image) -> None:
    rng = np.random.default_rng(0)
    glass = {name: OPERATIONS["glass"][name](texture, rng) for name in OPERATIONS["glass"]}

    assert np.array_equal(glass["horizontal flip"], F.horizontal_flip(picture))
    assert np.array_equal(glass["vertical flip"], F.vertical_flip(picture))
    assert np.array_equal(glass["grey"], F.rgb_to_grayscale(picture, num_output_channels=3))
    assert np.array_equal(glass["autocontrast"], F.autocontrast(picture))
    assert np.array_equal(glass["equalize"], F.equalize(picture))


@pytest.mark.parametrize("degrees", [-45.0, -12.3, 31.0])
def test_rotations_equal_torchvision(degrees: float, texture: np.ndarray, picture: Image.Image) -> None:
    nearest = op.rotate_nearest(texture, degrees)
    bilinear = op.rotate_bilinear(texture, -degrees)

    expected = np.asarray(F.rotate(picture, degrees, interpolation=F.InterpolationMode.NEAREST, fill=0))
    assert np.array_equal(nearest, expected)
    assert not nearest[0, 0].any(), "corners are black"
    inside = np.s_[25:35, 30:54]
    exact = np.asarray(F.rotate(picture, degrees, interpolation=F.InterpolationMode.BILINEAR, fill=0))
    assert np.abs(bilinear.astype(int) - exact)[inside].mean() < 3


def test_classic_operations_equal_torchvision(texture: np.ndarray, picture: Image.Image) -> None:
    assert np.array_equal(op.invert(texture), F.invert(picture))
    assert np.array_equal(op.solarize(texture, 100), F.solarize(picture, 100))
    assert np.array_equal(op.sharpness(texture, 1.7), F.adjust_sharpness(picture, 1.7))
    for bits in range(1, 9):
        assert np.array_equal(op.posterize(texture, bits), F.posterize(picture, bits))


def test_gamma_takes_one_exponent_a_channel(texture: np.ndarray) -> None:
    result = op.gamma_contrast(texture, np.array([0.5, 1.0, 2.0]))

    expected = np.rint(255 * (texture / 255) ** [0.5, 1.0, 2.0])
    assert np.array_equal(result, expected)


def test_brightness_changes_luma_and_keeps_colour_differences() -> None:
    texture = np.full((4, 4, 3), (120, 100, 80), np.uint8)  # luma 104

    multiplied = op.change_brightness(texture, 0.8, 10.0, multiply_first=True)
    added = op.change_brightness(texture, 0.8, 10.0, multiply_first=False)

    assert multiplied[0, 0].tolist() == [109, 89, 69]
    assert added[0, 0].tolist() == [107, 87, 67]


def test_saturation_is_clipped_and_hue_wraps() -> None:
    red = np.full((2, 2, 3), (255, 0, 0), np.uint8)

    assert np.array_equal(op.shift_hue_and_saturation(red, 0, 50), red)
    assert np.array_equal(op.shift_hue_and_saturation(red, 256, 0), red)
    assert op.shift_hue_and_saturation(red, 0, -300).tolist() == np.full((2, 2, 3), 255).tolist()


def test_half_of_the_textures_are_solarized(texture: np.ndarray) -> None:
    rng = np.random.default_rng(1)

    changed = sum(not np.array_equal(OPERATIONS["classic"]["solarize"](texture, rng), texture) for _ in range(200))

    assert 70 < changed < 130
