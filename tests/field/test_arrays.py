"""Arrays as cameras and libraries give them: taken as they are, or refused with advice that does not spoil them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import validate_array
from flawsmith.runtime.inspector import Inspector

DEEP = np.random.default_rng(0).integers(0, 4096, (30, 40, 3))


@pytest.mark.parametrize("order", [">u2", "<u2", "=u2"])
@pytest.mark.parametrize("axes", [(30, 40, 3), (30, 40), (30, 40, 1)])
def test_values_of_16_bits_are_taken_in_either_byte_order(order: str, axes: tuple[int, ...], tiny: Any) -> None:
    array = DEEP[..., 0].reshape(axes) if len(axes) == 2 or axes[2] == 1 else DEEP
    inspector = Inspector.load(tiny.make_bundle(), threads=1)

    inspection = inspector.inspect(array.astype(order))

    assert inspection.score == inspector.inspect(array.astype(np.uint16)).score
    np.testing.assert_array_equal(validate_array(array.astype(order))[..., 0], array.reshape(30, 40, -1)[..., 0])


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array[::-1, ::-1],
        np.asfortranarray,
        lambda array: np.frombuffer(array.tobytes(), np.uint8).reshape(array.shape),
        lambda array: np.ma.masked_array(array, array > 9),
        lambda array: np.matrix(array[:, :, 0]),
        lambda array: np.matrix(array[:, :, 0]).astype(">u2"),
    ],
)
def test_arrays_of_any_layout_and_class_are_taken(view: Any) -> None:
    array = (DEEP >> 4).astype(np.uint8)
    given = view(array)
    plain = np.asarray(given).astype(np.uint8)

    image = validate_array(given)

    assert type(image) is np.ndarray and image.flags.c_contiguous
    np.testing.assert_array_equal(image, plain if plain.ndim == 3 else np.repeat(plain[:, :, None], 3, 2))


def test_advice_for_channels_that_come_first_puts_them_last() -> None:
    array = (DEEP >> 4).astype(np.uint8)

    with pytest.raises(FlawsmithError, match="channels last") as caught:
        validate_array(array.transpose(2, 0, 1))
    advised = eval(str(caught.value).rpartition("with ")[2], {"image": array.transpose(2, 0, 1)})

    np.testing.assert_array_equal(validate_array(advised), array)


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "i8", "u4", "u8", ">i4", ">u4"])
def test_whole_numbers_of_other_types_are_refused_without_advice_that_wraps_them(kind: str) -> None:
    with pytest.raises(FlawsmithError) as caught:
        validate_array(np.minimum(DEEP, min(np.iinfo(kind).max, 4095)).astype(kind))

    name = np.dtype(kind).name
    assert str(caught.value) == f"image array: values are {name}; give uint8, or uint16 where they exceed 255"


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (DEEP.astype(np.int16) - 4096, "some are below 0, as -4096: shift or clip them"),
        (DEEP.astype(np.int64) * -1, "some are below 0, as -4095: shift or clip them"),
        (DEEP.astype(np.uint32) << 8, "some are above 65535, as 1048320: scale them down"),
        (np.where(DEEP > 4000, np.nan, DEEP), "some are no numbers: replace them"),
        (np.where(DEEP > 4000, np.inf, DEEP), "some are no numbers: replace them"),
        (DEEP.astype(object), "give uint8"),
    ],
)
def test_advice_is_not_to_convert_values_that_would_wrap(array: Any, advice: str) -> None:
    with pytest.raises(FlawsmithError, match=advice):
        validate_array(array)


def test_advice_for_black_and_white_gives_black_and_white() -> None:
    array = DEEP > 2000

    with pytest.raises(FlawsmithError, match="black and white as 0 and 255") as caught:
        validate_array(array)
    expression = re.search(r": (image\.astype\(.*)$", str(caught.value))
    assert expression is not None

    advised = eval(expression[1], {"image": array, "numpy": np})
    np.testing.assert_array_equal(validate_array(advised), np.where(array, 255, 0))


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_fractions_are_to_be_scaled(kind: str) -> None:
    with pytest.raises(FlawsmithError, match=r"scale to 0\.\.255"):
        validate_array((DEEP / 4096).astype(kind))


@pytest.mark.parametrize(
    "array", [np.array([["a"]]), np.array([[None]]), np.zeros((2, 2), "M8[s]"), np.zeros((2, 2), "c8")]
)
def test_what_is_no_picture_is_refused_in_one_line(array: np.ndarray) -> None:
    with pytest.raises(FlawsmithError, match="give uint8, or uint16"):
        validate_array(array)
