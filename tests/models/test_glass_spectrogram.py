"""The judge of the distribution hypothesis, and the published decisions."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pytest

from flawsmith.models.glass.hypothesis import (
    CENTER,
    SIDE,
    Judgement,
    as_rgb,
    judge,
    judge_points,
    mean_image,
    published_hypothesis,
    spectrum,
    spectrum_picture,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(rgb: np.ndarray) -> np.ndarray:
    """The same steps in float32 as an image takes on its way into a network."""
    scaled = rgb.astype(np.float32) / np.float32(255)
    return ((scaled - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(2, 0, 1)


def disc(radius: float) -> np.ndarray:
    """(289, 289) True within a distance of the zero frequency."""
    squares = (np.arange(SIDE) - CENTER) ** 2
    return squares[:, None] + squares <= radius**2


def bright_disc(side: int = 96) -> np.ndarray:
    place = np.arange(side) - side / 2
    inside = place[:, None] ** 2 + place**2 < (0.3 * side) ** 2
    return np.where(inside[..., None], np.uint8([220, 210, 200]), np.uint8(40)).astype(np.uint8)


def stripes(side: int = 96) -> np.ndarray:
    columns = np.where(np.arange(side) // 16 % 2, 210, 30).astype(np.uint8)
    return np.broadcast_to(columns[None, :, None], (side, side, 3)).copy()


# Mean image


def test_mean_image_streams_and_counts_every_image_alike() -> None:
    images = np.random.default_rng(0).normal(size=(7, 3, 8, 6)).astype(np.float32)
    held = []

    def stream() -> Iterator[np.ndarray]:
        for image in images:
            held.append(image)
            yield image

    mean = mean_image(stream())

    assert len(held) == 7
    np.testing.assert_allclose(mean, images.astype(np.float64).mean(axis=0), rtol=0, atol=1e-12)


def test_mean_image_leaves_the_first_image_as_it_was() -> None:
    first = np.ones((3, 2, 2), dtype=np.float32)

    mean_image([first, 3 * first])

    assert np.all(first == 1)


@pytest.mark.parametrize(
    ("images", "message"), [([], "no image"), ([np.zeros((3, 4, 4)), np.zeros((3, 4, 1))], "one size")]
)
def test_mean_image_refuses_what_has_no_mean(images: list[np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_image(images)


def test_whole_grey_levels_survive_normalisation_in_float32() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)

    np.testing.assert_array_equal(as_rgb(normalised(levels), MEAN, STD), levels)


def test_levels_between_are_truncated_and_those_outside_clipped() -> None:
    values = np.array([-0.5, 100.99 / 255, 1.5]).reshape(1, 1, 3).repeat(3, axis=0)

    assert as_rgb(values, (0, 0, 0), (1, 1, 1))[0, :, 0].tolist() == [0, 100, 255]


# Judgement


def test_spectrum_has_its_zero_frequency_in_the_centre() -> None:
    levels = spectrum(np.full((SIDE, SIDE), 2, dtype=np.uint8))

    assert np.unravel_index(levels.argmax(), levels.shape) == (CENTER, CENTER)
    assert levels[CENTER, CENTER] == pytest.approx(20 * np.log(2 * SIDE**2))


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_constant_image_is_a_manifold_without_a_warning(level: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = judge(np.full((20, 30, 3), level, dtype=np.uint8))

    assert found.hypothesis == "manifold"
    assert found.count == (level > 0)


def test_black_image_is_a_manifold_and_says_why() -> None:
    found = judge(np.zeros((20, 20, 3), dtype=np.uint8))

    assert asdict(found) | {"note": ""} == asdict(Judgement("manifold", 0, 0, 0, 0.0, 0.0, 0.0))
    assert "black" in found.note


def test_concentrated_object_and_stripes_are_hyperspheres() -> None:
    assert judge(stripes()).hypothesis == "hypersphere"
    assert judge(bright_disc()).hypothesis == "hypersphere"


def test_judgement_depends_on_brightness_of_the_channels_in_rgb_order() -> None:
    red, blue = (np.zeros((60, 60, 3), dtype=np.uint8) for _ in range(2))
    red[20:40, 20:40, 0] = blue[20:40, 20:40, 2] = 255

    assert judge(red).count > judge(blue).count  # red weighs 0.299 in grey, blue 0.114


def test_figures_of_a_full_disc() -> None:
    found = judge_points(disc(20))

    assert (found.count, found.half_width, found.half_height, found.radius) == (1257, 20, 20, 20.0)
    assert found.density_rectangle == 1257 / 1600
    assert found.density_disc == 1.0
    assert found.hypothesis == "hypersphere"


def test_disc_is_bounded_at_the_top_left_of_the_spectrum_alone() -> None:
    points = np.zeros((SIDE, SIDE), dtype=bool)
    points[0, 0] = points[-1, -1] = True
    radius_squared = 2 * CENTER**2
    squares = (np.arange(2 * SIDE) - CENTER) ** 2

    found = judge_points(points)

    assert found.density_disc == 2 / np.count_nonzero(np.add.outer(squares, squares) <= radius_squared)


def test_radius_of_twelve_is_not_enough() -> None:
    assert judge_points(disc(12)).hypothesis == "manifold"
    assert judge_points(disc(13)).hypothesis == "hypersphere"


def test_sixty_frequencies_are_not_enough() -> None:
    points = np.zeros((SIDE, SIDE), dtype=bool)
    points[CENTER, CENTER - 30 : CENTER + 30] = True
    assert judge_points(points).hypothesis == "manifold"

    points[CENTER, CENTER + 30] = True
    assert judge_points(points).hypothesis == "hypersphere"


def test_sparse_frequencies_are_a_manifold() -> None:
    points = np.zeros((SIDE, SIDE), dtype=bool)
    points[CENTER - 60 : CENTER + 61 : 5, CENTER - 60 : CENTER + 61 : 5] = True

    found = judge_points(points)

    assert found.count > 60
    assert found.radius > 12
    assert found.hypothesis == "manifold"


def test_judgement_survives_json() -> None:
    found = judge(stripes())

    assert Judgement(**json.loads(json.dumps(asdict(found)))) == found


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((3, 9, 9), np.uint8)])
def test_other_than_rgb_of_eight_bits_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="8 bits"):
        judge(image)


@pytest.mark.parametrize("image", [stripes(), np.zeros((9, 9, 3), np.uint8), bright_disc()])
def test_spectrum_picture_marks_strong_frequencies_alone(image: np.ndarray) -> None:
    picture = spectrum_picture(image)

    coloured = np.ptp(picture.astype(int), axis=2) > 0
    assert picture.shape == (SIDE, SIDE, 3)
    assert coloured.any() == (judge(image).count > 0)
    assert not coloured.all()


# Published decisions


@pytest.mark.parametrize("dataset", ["mvtec", "MVTec", "mvtec_ad", "MVTec AD", "MVTec-AD", "mvtec_anomaly_detection"])
def test_names_of_the_mvtec_folder_are_recognised(dataset: str) -> None:
    assert published_hypothesis(dataset, "screw") == "hypersphere"
    assert published_hypothesis(dataset, "Metal Nut") == "manifold"


@pytest.mark.parametrize("dataset", ["visa", "VisA", "VisA_20220922", "VisA_pytorch", "1cls"])
def test_names_of_the_visa_folder_are_recognised(dataset: str) -> None:
    assert published_hypothesis(dataset, "pipe_fryum") == "hypersphere"
    assert published_hypothesis(dataset, "pcb3") == "manifold"


def test_whole_table_has_the_published_numbers() -> None:
    categories = {
        "mvtec": "bottle cable pill screw transistor carpet grid leather tile wood capsule hazelnut metal_nut "
        "toothbrush zipper",
        "visa": "cashew fryum pcb1 pcb2 pcb4 pipe_fryum candle capsules chewinggum macaroni1 macaroni2 pcb3",
        "MPDD": "bracket_black bracket_brown bracket_white connector metal_plate tubes",
        "WFDD": "grey_cloth grid_cloth yellow_cloth pink_flower",
    }

    found = {name: [published_hypothesis(name, one) for one in given.split()] for name, given in categories.items()}

    assert {name: (len(values), values.count("hypersphere")) for name, values in found.items()} == {
        "mvtec": (15, 5),
        "visa": (12, 6),
        "MPDD": (6, 0),
        "WFDD": (4, 0),
    }
    assert not any(None in values for values in found.values())


@pytest.mark.parametrize(
    ("dataset", "category"),
    [("mvtec_loco", "screw"), ("mvtec_3d", "cable"), ("mvtec_ad_2", "bottle"), ("mvtec_ad", "nut"), ("", "")],
)
def test_other_data_has_no_published_decision(dataset: str, category: str) -> None:
    assert published_hypothesis(dataset, category) is None
