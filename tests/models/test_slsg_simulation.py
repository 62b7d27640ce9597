"""The released simulations of MVTec LOCO AD: their numbers, and that each of them synthesizes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from flawsmith.models.slsg.simulation import published_simulation
from flawsmith.synthesis.augment import ColourJitter
from flawsmith.synthesis.blend import FixedWeight, UniformWeight
from flawsmith.synthesis.foreground import Foreground, provider
from flawsmith.synthesis.recipes import RECIPES, Branch, Recipe
from flawsmith.synthesis.synthesizer import AnomalySample, AnomalySynthesizer

CATEGORIES = ("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors")
HOMOLOGOUS_SHARES = {"breakfast_box": 0.5}


class Speckle:
    """Textures of random colours."""

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


def good_image(shape: tuple[int, int] = (256, 256), seed: int = 0) -> np.ndarray:
    """A bright part on a nearly black mat."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 0.02, (*shape, 3))
    height, width = shape
    image[height // 4 : -(-3 * height // 4), width // 4 : -(-3 * width // 4)] += 0.5
    return image.astype(np.float32)


def released(category: str) -> tuple[Recipe, Foreground]:
    simulation = published_simulation("mvtec_loco", category)
    assert simulation is not None
    return simulation


def synthetic(category: str, image: np.ndarray, seed: int) -> AnomalySample:
    recipe, foreground = released(category)
    others = [good_image(image.shape[:2], seed=7), good_image((90, 40), seed=8)]
    synthesizer = AnomalySynthesizer(recipe, Speckle(), provider(foreground), others=others)
    return synthesizer.synthesize(image, np.random.default_rng(seed))


def homologous(category: str) -> list[Branch]:
    return [branch for branch in released(category)[0].branches if branch.texture != "source"]


def mixture(category: str) -> dict[tuple[str, ...], float]:
    """Shares within the homologous branch, by the image's origin and the kinds of what is done after the half turn."""
    branches, shares = homologous(category), Counter[tuple[str, ...]]()
    for branch in branches:
        steps = [t.kind for t in branch.transforms if t.kind not in ("half_turn", "colour_jitter", "blur")]
        cells = [f"{t.cells[0]}x{t.cells[1]}" for t in branch.transforms if t.kind == "shuffle"]
        axes = [t.axis for t in branch.transforms if t.kind == "flip"]
        shares[(branch.texture, *steps, *cells, *axes)] += branch.share
    total = sum(branch.share for branch in branches)
    return {key: share / total for key, share in shares.items()}


@pytest.mark.parametrize("name", ["mvtec_loco_anomaly_detection", "MVTec LOCO AD", "mvtec_loco", "LOCO"])
def test_the_five_categories_are_found_by_the_names_of_their_data_set(name: str) -> None:
    assert all(published_simulation(name, category) for category in CATEGORIES)
    assert published_simulation(name, "Juice Bottle") == released("juice_bottle")


@pytest.mark.parametrize(
    ("dataset", "category"), [("mvtec_ad", "screw"), ("mvtec_loco", "screw"), ("my_loco", "pushpins")]
)
def test_nothing_is_published_for_others(dataset: str, category: str) -> None:
    assert published_simulation(dataset, category) is None


@pytest.mark.parametrize("category", CATEGORIES)
def test_what_is_common_is_that_of_the_generic_simulation(category: str) -> None:
    recipe, generic = released(category)[0], RECIPES["slsg-official"]
    texture = [branch for branch in recipe.branches if branch.texture == "source"]
    assert recipe.jitter == 0.1
    assert recipe.acceptance.min_pixels == (64 if category == "pushpins" else 49)
    assert sum(branch.share for branch in recipe.branches) == pytest.approx(1)
    assert sum(branch.share for branch in texture) == pytest.approx(1 - HOMOLOGOUS_SHARES.get(category, 7 / 12))
    assert all((branch.rule.exponents, branch.rule.threshold) == ((0, 4), 0.5) for branch in texture)
    assert all((branch.rule.exponents, branch.rule.threshold) == ((0, 3), 0.4) for branch in homologous(category))
    assert all(branch.operations == "classic" for branch in texture)
    assert all(
        branch.transforms[0] == generic.branches[1].transforms[0]
        for branch in homologous(category)
        if branch.texture == "self"
    )
    assert not any(branch.excludes_self for branch in recipe.branches)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        (
            "juice_bottle",
            {("self", "shuffle", "3x3"): 0.25, ("self", "flip", "vertical"): 0.33, ("other",): 0.42},
        ),
        (
            "breakfast_box",
            {
                ("self", "shuffle", "3x2"): 1 / 3,
                ("self", "flip", "vertical"): 1 / 3,
                ("self", "flip", "horizontal"): 1 / 3,
            },
        ),
        (
            "pushpins",
            {("self", "shuffle", "3x5"): 0.25, ("self", "flip", "vertical"): 0.33, ("other",): 0.42},
        ),
        (
            "screw_bag",
            {
                ("self", "shuffle", "4x4"): 0.25,
                ("self", "flip", "either"): 0.25,
                ("other", "shuffle", "4x4"): 0.5,
            },
        ),
        (
            "splicing_connectors",
            {
                ("other", "band_copy", "shuffle", "1x4"): 0.525,
                ("other",): 0.175,
                ("self", "band_copy", "shuffle", "2x4"): 0.3,
            },
        ),
    ],
)
def test_homologous_sources_have_the_released_mixture(category: str, expected: dict) -> None:
    assert mixture(category) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("category", "texture", "homologous_weight"),
    [
        ("pushpins", UniformWeight(high=0.4), FixedWeight(value=0)),
        ("splicing_connectors", RECIPES["slsg-official"].branches[0].weight, FixedWeight(value=0)),
        ("juice_bottle", FixedWeight(value=0), FixedWeight(value=0)),
        ("breakfast_box", UniformWeight(high=0.7), UniformWeight(high=0.7)),
        ("screw_bag", RECIPES["slsg-official"].branches[0].weight, UniformWeight(high=0.25)),
    ],
)
def test_weights_are_those_of_the_category(category: str, texture: object, homologous_weight: object) -> None:
    weights = {(branch.texture == "source", branch.weight) for branch in released(category)[0].branches}
    assert weights == {(True, texture), (False, homologous_weight)}


def test_jitter_and_blur_are_those_of_the_category() -> None:
    def steps(category: str) -> set[tuple[str, float]]:
        rearranged = [branch for branch in homologous(category) if branch.texture == "self"]
        return {
            (t.kind, t.share) for branch in rearranged for t in branch.transforms if t.kind in ("colour_jitter", "blur")
        }

    assert steps("pushpins") == {("colour_jitter", 0.7), ("blur", 0.2)}
    assert steps("screw_bag") == {("colour_jitter", 1.0), ("blur", 0.2)}
    assert not any(steps(category) for category in ("juice_bottle", "breakfast_box", "splicing_connectors"))
    (jitter,) = {t for branch in homologous("screw_bag") for t in branch.transforms if isinstance(t, ColourJitter)}
    assert [(s.brightness, s.saturation, s.hue) for s in jitter.strengths] == [
        (0.7, 0.7, 0.45),
        (0.4, 0.4, 0.2),
        (0.2, 0.2, 0.1),
    ]
    assert [s.share for s in jitter.strengths] == pytest.approx([0.8, 0.14, 0.06])


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("shape", [(256, 256), (64, 96), (17, 33), (2, 1)])
def test_every_category_is_simulated_at_any_size(category: str, shape: tuple[int, int]) -> None:
    for seed in range(8):
        for image in (good_image(shape), np.random.default_rng(seed).random((*shape, 3)).astype(np.float32)):
            sample, again = synthetic(category, image, seed), synthetic(category, image, seed)
            assert np.array_equal(sample.image, again.image)
            assert np.array_equal(sample.mask, again.mask)
            assert sample.image.shape == image.shape
            assert np.isfinite(sample.image).all()
            assert np.array_equal(sample.image[~sample.mask], sample.normal[~sample.mask])
            assert sample.mask.any() or sample.fallback == "left normal"
            if min(shape) > 60:
                assert sample.mask.any()


def samples(category: str, count: int = 300) -> tuple[np.ndarray, list[tuple[Branch, AnomalySample]]]:
    """The foreground, and many flaws on one image with their branches."""
    image, (recipe, region) = good_image((64, 64)), released(category)
    others = [good_image((64, 64), seed=7)]
    synthesizer = AnomalySynthesizer(recipe, Speckle(), provider(region), others=others)
    drawn = []
    for seed in range(count):
        branch = recipe.branch(float(np.random.default_rng(seed).random()))
        drawn.append((branch, synthesizer.synthesize(image, np.random.default_rng(seed))))
    foreground = synthesizer.foreground(image)
    return np.ones((64, 64), bool) if foreground is None else foreground, drawn


def test_three_quarters_of_the_homologous_pushpins_lie_on_the_foreground() -> None:
    foreground, drawn = samples("pushpins")
    of_picture = provider(released("pushpins")[1])
    on = [
        (
            branch.texture == "source",
            not (sample.mask & ~(foreground if branch.texture == "source" else of_picture(sample.texture))).any(),
        )
        for branch, sample in drawn
        if sample.fallback is None
    ]
    assert 0.1 < foreground.mean() < 0.4
    shares = {(branch.texture == "source", branch.foreground_share) for branch, _ in drawn}
    assert shares == {(True, 0.0), (False, 0.75)}
    homologous = [lies for texture, lies in on if not texture]
    textures = [lies for texture, lies in on if texture]
    assert np.mean(homologous) > 0.7
    assert np.mean(textures) < 0.35


def test_a_fifth_of_the_homologous_connectors_have_the_foreground_as_mask() -> None:
    foreground, drawn = samples("splicing_connectors", 500)
    of_picture = provider(released("splicing_connectors")[1])
    whole = [
        np.array_equal(sample.mask, of_picture(sample.texture))
        for branch, sample in drawn
        if branch.texture != "source"
    ]
    assert np.mean(whole) == pytest.approx(0.2, abs=0.07)
    assert not any(np.array_equal(sample.mask, foreground) for branch, sample in drawn if branch.texture == "source")
    beside = [(sample.mask & ~foreground).any() for _, sample in drawn]
    assert np.mean(beside) > 0.5, "all other masks lie anywhere"


def test_all_juice_bottle_flaws_lie_on_the_bottle() -> None:
    foreground, drawn = samples("juice_bottle", 100)
    accepted = [sample for _, sample in drawn if sample.fallback is None]
    assert len(accepted) > 80
    assert not any((sample.mask & ~foreground).any() for sample in accepted)


def test_a_fifth_of_the_breakfast_boxes_have_the_square() -> None:
    _, drawn = samples("breakfast_box", 500)
    square = np.zeros((64, 64), bool)
    square[35:51, 35:51] = True
    by_texture = {
        texture: [sample.mask[square].all() for branch, sample in drawn if (branch.texture == "source") == texture]
        for texture in (True, False)
    }
    for covered in by_texture.values():
        assert np.mean(covered) == pytest.approx(0.2, abs=0.09)


@pytest.mark.parametrize("category", ["juice_bottle", "pushpins", "splicing_connectors"])
def test_channel_0_of_the_released_images_is_blue(category: str) -> None:
    """OpenCV reads them, and what is above the level in red alone is no foreground."""
    foreground = provider(released(category)[1])
    red, blue = (np.zeros((256, 256, 3), np.float32) for _ in range(2))
    red[60:180, 60:180, 0], blue[60:180, 60:180, 2] = 1, 1

    assert not foreground(red).any()
    assert foreground(blue)[90:150, 90:150].all()


@pytest.mark.parametrize(("category", "of"), [("pushpins", "texture"), ("splicing_connectors", "texture")])
def test_homologous_flaws_lie_on_the_foreground_of_the_picture_they_come_from(category: str, of: str) -> None:
    """The released code thresholds the source picture: here the part lies on the left, in all others on the right."""
    image, other = (np.zeros((64, 64, 3), np.float32) for _ in range(2))
    image[8:56, 4:24], other[8:56, 40:60] = 0.6, 0.6
    recipe, foreground = released(category)
    branches = [branch for branch in recipe.branches if branch.texture != "source"]
    assert {branch.foreground_of for branch in branches} == {of}
    plain = next(branch for branch in branches if branch.texture == "other" and not branch.transforms)
    branch = plain.model_copy(update={"share": 1.0, "foreground_share": 1.0})
    recipe = recipe.model_copy(update={"branches": (branch,), "jitter": 0.0})
    synthesizer = AnomalySynthesizer(recipe, Speckle(), provider(foreground), others=[other])

    drawn = [synthesizer.synthesize(image, np.random.default_rng(seed)) for seed in range(12)]

    accepted = [sample for sample in drawn if sample.fallback is None and sample.mask.any()]
    assert len(accepted) > 6
    assert not any(sample.mask[:, :28].any() for sample in accepted)


def test_foregrounds_are_those_of_the_released_code() -> None:
    foregrounds = {category: released(category)[1] for category in CATEGORIES}
    assert foregrounds["breakfast_box"] == foregrounds["screw_bag"] == Foreground()
    bottle = np.ones((256, 256, 3), np.float32)
    mask = provider(foregrounds["juice_bottle"])(bottle)
    assert mask[:240, :201].all()
    assert not mask[240:].any()
    assert not mask[:, 201:].any()

    image = np.zeros((256, 256, 3), np.float32)
    image[100, 100, 2] = 37 / 255
    image[50, 50, :2] = 1
    rows, columns = np.nonzero(provider(foregrounds["pushpins"])(image))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (98, 102, 98, 102)

    image = np.zeros((256, 256, 3), np.float32)
    image[100:106, 100:113, 2] = 0.5
    image[200:205, 100:113, 2] = 0.5
    mask = provider(foregrounds["splicing_connectors"])(image)
    assert (mask.any(axis=1).sum(), mask.any(axis=0).sum()) == (9, 15), "what is smaller than 6 x 13 is gone"
