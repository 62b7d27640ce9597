"""Synthetic samples follow their recipe, stay in their mask, and say when they could not."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.synthesis.augment import Flip
from flawsmith.synthesis.blend import FixedWeight, visible
from flawsmith.synthesis.masks import Acceptance, MaskRule, draw_lattice
from flawsmith.synthesis.recipes import RECIPES, Branch, Recipe, max_pool_cells
from flawsmith.synthesis.synthesizer import AnomalySample, AnomalySynthesizer, is_grey, resized, to_8_bit, to_float

PLAIN = Recipe(name="plain", branches=(Branch(weight=FixedWeight(value=0.25)),))


class Colour:
    """Textures of one colour."""

    def __init__(self, *colour: int) -> None:
        self.colour = colour

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        return np.full((*size, 3), self.colour, np.uint8)


class Speckle:
    """Textures of random colours."""

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


def good_image(shape: tuple[int, int] = (64, 80), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((*shape, 3)).astype(np.float32)


def same(first: AnomalySample, second: AnomalySample) -> bool:
    return np.array_equal(first.image, second.image) and np.array_equal(first.mask, second.mask)


@pytest.mark.parametrize("name", RECIPES)
def test_the_generator_alone_decides_even_after_a_journey(name: str) -> None:
    synthesizer = AnomalySynthesizer(
        RECIPES[name], Speckle(), others=(good_image(seed=5), good_image((30, 30), seed=6)), grid=(8, 10)
    )
    traveller = pickle.loads(pickle.dumps(synthesizer))
    image = good_image()
    for seed in range(8):
        here = synthesizer.synthesize(image, np.random.default_rng(seed))
        assert same(here, traveller.synthesize(image, np.random.default_rng(seed)))
    assert not same(here, synthesizer.synthesize(image, np.random.default_rng(99)))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(RECIPES)),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    seed=st.integers(0, 2**32 - 1),
)
def test_samples_equal_the_good_image_outside_their_mask(name: str, shape: tuple[int, int], seed: int) -> None:
    image = good_image(shape, seed)
    before = image.copy()
    synthetic = AnomalySynthesizer(RECIPES[name], Speckle()).synthesize(image, np.random.default_rng(seed))
    assert np.array_equal(image, before)
    assert synthetic.image.dtype == synthetic.normal.dtype == np.float32
    assert synthetic.image.shape == synthetic.normal.shape == image.shape
    if RECIPES[name].least_change:
        assert not visible(synthetic.normal, synthetic.image, ~synthetic.mask, 0.5).any(), (
            "what is left is small beside Speckle"
        )
    else:
        assert np.array_equal(synthetic.image[~synthetic.mask], synthetic.normal[~synthetic.mask])
    assert (synthetic.normal is image) == (RECIPES[name].jitter == 0)
    assert (synthetic.image >= 0).all()
    assert (synthetic.image <= 1 + 1e-6).all()
    if synthetic.mask.any():
        assert synthetic.texture is not None
        assert np.count_nonzero(synthetic.mask) >= RECIPES[name].acceptance.min_pixels
    else:
        assert synthetic.weight == 1
        assert synthetic.texture is None


def test_cells_are_those_of_the_mask() -> None:
    synthesizer = AnomalySynthesizer(RECIPES["glass"], Speckle(), grid=(8, 10))
    for seed in range(20):
        synthetic = synthesizer.synthesize(good_image(), np.random.default_rng(seed))
        assert synthetic.cells is not None
        assert synthetic.cells.any()
        assert np.array_equal(synthetic.cells, max_pool_cells(synthetic.mask, (8, 10)))


def test_the_texture_is_blended_with_the_drawn_weight() -> None:
    image = np.full((40, 40, 3), 0.4, np.float32)
    image[0, 0, 0] = 0.5
    synthetic = AnomalySynthesizer(PLAIN, Colour(255, 0, 51)).synthesize(image, np.random.default_rng(0))
    assert synthetic.weight == 0.25
    np.testing.assert_allclose(synthetic.image[synthetic.mask][-1], [0.85, 0.1, 0.25], atol=1e-6)


def test_flaws_stay_on_the_foreground() -> None:
    foreground = np.zeros((64, 80), bool)
    foreground[20:50, 30:60] = True
    synthesizer = AnomalySynthesizer(RECIPES["glass"], Speckle(), grid=(8, 10))
    results = [synthesizer.synthesize(good_image(), np.random.default_rng(i), foreground=foreground) for i in range(40)]
    assert all(result.fallback is None for result in results)
    assert not any((result.mask & ~foreground).any() for result in results)
    assert max(result.tries for result in results) > 1


def test_an_impossible_foreground_is_ignored_and_counted() -> None:
    foreground = np.zeros((64, 80), bool)
    synthetic = AnomalySynthesizer(RECIPES["glass"], Speckle(), grid=(8, 10)).synthesize(
        good_image(), np.random.default_rng(0), foreground=foreground
    )
    assert synthetic.fallback == "foreground ignored"
    assert synthetic.mask.any()


@pytest.mark.parametrize("foreground", [None, np.eye(64, 80, dtype=bool)], ids=["everywhere", "a line"])
def test_tries_are_bounded_and_the_sample_is_left_normal(foreground: np.ndarray | None) -> None:
    hopeless = PLAIN.model_copy(update={"acceptance": Acceptance(min_pixels=64 * 80), "max_tries": 7})
    image = good_image()
    synthetic = AnomalySynthesizer(hopeless, Speckle(), grid=(4, 4)).synthesize(
        image, np.random.default_rng(0), foreground=foreground
    )
    assert synthetic.fallback == "left normal"
    assert synthetic.tries == (7 if foreground is None else 14)
    assert np.array_equal(synthetic.image, image)
    assert not synthetic.mask.any()
    assert synthetic.cells is not None
    assert not synthetic.cells.any()


def test_a_fifth_of_aand_samples_stay_normal_without_a_fall_back() -> None:
    synthesizer = AnomalySynthesizer(RECIPES["aand"], Speckle())
    image = good_image((32, 32))
    results = [synthesizer.synthesize(image, np.random.default_rng(i)) for i in range(400)]
    normal = [result for result in results if result.tries == 0]
    assert 50 < len(normal) < 110
    assert all(result.fallback is None and not result.mask.any() for result in normal)


def test_a_provider_is_asked_where_no_foreground_is_given() -> None:
    foreground = np.zeros((64, 80), bool)
    foreground[:, :40] = True
    asked = []

    class Left:
        reason = None

        def fit(self, images):
            return self

        def __call__(self, image, path=None, geometry=None):
            asked.append(path)
            return foreground

    synthesizer = AnomalySynthesizer(RECIPES["glass"], Speckle(), foreground_provider=Left())
    synthetic = synthesizer.synthesize(good_image(), np.random.default_rng(0), path="a.png")
    synthesizer.synthesize(good_image(), np.random.default_rng(0), foreground=~foreground)
    assert asked == ["a.png"]
    assert not (synthetic.mask & ~foreground).any()


def test_strengths_share_masks_and_textures() -> None:
    image = good_image()
    synthetic = [
        AnomalySynthesizer(RECIPES["glass"].with_weight(FixedWeight(value=weight)), Speckle()).synthesize(
            image, np.random.default_rng(3)
        )
        for weight in (0.1, 0.7)
    ]
    assert np.array_equal(synthetic[0].mask, synthetic[1].mask)
    assert np.array_equal(synthetic[0].texture, synthetic[1].texture)
    strong, weak = (np.abs(result.image - image).mean() for result in synthetic)
    assert weak == pytest.approx(strong * 0.3 / 0.9, rel=1e-3)


def test_grey_images_are_still_grey_after_half_precision_and_uneven_statistics() -> None:
    grey = np.repeat(good_image()[:, :, :1], 3, axis=2)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

    kept = ((grey - mean) / std).astype(np.float16).astype(np.float32) * std + mean

    assert not np.array_equal(kept[:, :, 0], kept[:, :, 2])
    assert is_grey(kept.astype(np.float32))


def test_flaws_on_grey_images_are_grey_unless_faithful() -> None:
    grey = np.repeat(good_image()[:, :, :1], 3, axis=2)
    synthesizer = AnomalySynthesizer(PLAIN, Speckle())
    assert is_grey(synthesizer.synthesize(grey, np.random.default_rng(0)).image)
    assert not is_grey(replace(synthesizer, match_grey=False).synthesize(grey, np.random.default_rng(0)).image)
    assert not is_grey(synthesizer.synthesize(good_image(), np.random.default_rng(0)).image)


def test_one_coloured_pixel_makes_an_image_coloured() -> None:
    image = np.full((33, 9, 3), 0.5, np.float32)
    assert is_grey(image)
    image[17, 4, 2] = 0.6
    assert not is_grey(image)


def test_logical_flaws_come_from_another_good_image() -> None:
    others = [np.full((50, 40, 3), value, np.float32) for value in (0.25, 0.75)]
    recipe = RECIPES["slsg-logical"].with_weight(FixedWeight(value=0))
    seen = set()
    for synthesizer in (
        AnomalySynthesizer(recipe, Speckle(), others=others),
        AnomalySynthesizer(recipe, Speckle(), others=lambda rng: others[0]),
    ):
        for seed in range(12):
            synthetic = synthesizer.synthesize(good_image(), np.random.default_rng(seed))
            seen |= set(np.round(synthetic.image[synthetic.mask], 4).ravel().tolist())
    assert seen == {0.25, 0.75}


def other_recipe(*, excludes_self: bool) -> Recipe:
    branch = Branch(weight=FixedWeight(value=0), texture="other", excludes_self=excludes_self)
    return Recipe(name="other", branches=(branch,))


@pytest.mark.parametrize("kind", ["listed", "drawn"])
def test_the_current_image_is_excluded_only_where_asked(kind: str) -> None:
    images = [good_image(seed=seed) for seed in range(3)]
    others = images if kind == "listed" else lambda rng: images[int(rng.integers(3))].copy()

    def taken(*, excludes_self: bool) -> set[int]:
        synthesizer = AnomalySynthesizer(other_recipe(excludes_self=excludes_self), Speckle(), others=others)
        textures = [synthesizer.synthesize(images[1], np.random.default_rng(seed)).texture for seed in range(40)]
        return {number for texture in textures for number in range(3) if np.array_equal(texture, images[number])}

    assert taken(excludes_self=False) == {0, 1, 2}
    assert taken(excludes_self=True) == {0, 2}


def test_an_only_image_is_its_own_other() -> None:
    image = good_image()
    synthetic = AnomalySynthesizer(other_recipe(excludes_self=True), Speckle(), others=[image]).synthesize(
        image, np.random.default_rng(0)
    )
    assert np.array_equal(synthetic.texture, image)


def test_transforms_apply_in_their_order_to_the_image_itself() -> None:
    flips = (Flip(axis="vertical"), Flip(axis="horizontal"))
    branch = Branch(weight=FixedWeight(value=0), texture="self", transforms=flips)
    image = good_image()
    for jitter in (0.0, 0.1):
        recipe = Recipe(name="turned", branches=(branch,), jitter=jitter)
        synthetic = AnomalySynthesizer(recipe, Speckle()).synthesize(image, np.random.default_rng(0))
        assert np.array_equal(synthetic.texture, np.rot90(synthetic.normal, 2)), "in the colours of the good half"


def test_jitter_is_shared_by_the_good_and_the_forged_image() -> None:
    image = good_image() * np.float32(0.8)
    recipe = PLAIN.model_copy(update={"jitter": 0.1})
    factors = []
    for seed in range(60):
        synthetic = AnomalySynthesizer(recipe, Speckle()).synthesize(image, np.random.default_rng(seed))
        assert np.array_equal(synthetic.image[~synthetic.mask], synthetic.normal[~synthetic.mask])
        assert not np.array_equal(synthetic.normal, image)
        factors.append(float(synthetic.normal.mean() / image.mean()))
    assert 0.899 <= min(factors) < 0.92
    assert 1.08 < max(factors) <= 1.101


def test_a_jittered_sample_that_stays_normal_is_its_good_image() -> None:
    hopeless = {"acceptance": Acceptance(min_pixels=64 * 80), "jitter": 0.1}
    for changes in (hopeless, {"normal_share": 0.99, "jitter": 0.1}):
        synthetic = AnomalySynthesizer(PLAIN.model_copy(update=changes), Speckle()).synthesize(
            good_image(), np.random.default_rng(0)
        )
        assert np.array_equal(synthetic.image, synthetic.normal)
        assert not np.array_equal(synthetic.normal, good_image())


def test_jitter_leaves_the_draws_of_the_branch_alone() -> None:
    class Counted(Speckle):
        drawn = 0

        def draw(self, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
            self.drawn += 1
            return super().draw(size, rng)

    recipe = RECIPES["slsg-official"]
    for seed in range(30):
        textures = Counted()
        assert (
            AnomalySynthesizer(recipe, textures).synthesize(good_image(), np.random.default_rng(seed)).texture
            is not None
        )
        branch = recipe.branch(float(np.random.default_rng(seed).random()))
        assert textures.drawn == (branch.texture == "source")


def test_the_foreground_is_found_before_the_jitter() -> None:
    seen = []

    class Watching:
        reason = None

        def fit(self, images):
            return self

        def __call__(self, image, path=None, geometry=None):
            seen.append(image)

    image = good_image()
    synthesizer = AnomalySynthesizer(
        PLAIN.model_copy(update={"jitter": 0.5}), Speckle(), foreground_provider=Watching()
    )
    synthesizer.synthesize(image, np.random.default_rng(0))
    assert seen[0] is image


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.75, 130, 170), (1.0, 200, 200)])
def test_a_share_of_the_flaws_has_to_lie_on_the_foreground(share: float, low: int, high: int) -> None:
    foreground = np.zeros((64, 80), bool)
    foreground[:, 78:] = True
    branch = Branch(weight=FixedWeight(value=0), rule=MaskRule(exponents=(0, 3)), foreground_share=share)
    synthesizer = AnomalySynthesizer(Recipe(name="share", branches=(branch,), max_tries=500), Speckle())
    on = 0
    for seed in range(200):
        synthetic = synthesizer.synthesize(good_image(), np.random.default_rng(seed), foreground=foreground)
        assert synthetic.fallback is None
        on += not (synthetic.mask & ~foreground).any()
    assert low <= on <= high


def test_a_mask_can_be_the_foreground_itself() -> None:
    foreground = np.zeros((64, 80), bool)
    foreground[10:50, 20:30] = True
    branch = Branch(weight=FixedWeight(value=0), mask_is_foreground=True)
    synthesizer = AnomalySynthesizer(Recipe(name="whole part", branches=(branch,)), Speckle(), grid=(8, 10))
    synthetic = synthesizer.synthesize(good_image(), np.random.default_rng(0), foreground=foreground)
    assert np.array_equal(synthetic.mask, foreground)
    assert np.array_equal(synthetic.cells, max_pool_cells(foreground, (8, 10)))
    for nowhere in (None, np.ones_like(foreground), np.zeros_like(foreground)):
        masks = [
            synthesizer.synthesize(good_image(), np.random.default_rng(i), foreground=nowhere).mask for i in range(8)
        ]
        assert all(0 < mask.mean() < 0.9 for mask in masks), "cut from noise where there is no foreground"


def test_a_flaw_that_cannot_be_seen_is_drawn_again_and_at_last_left_out() -> None:
    seen = PLAIN.model_copy(update={"least_change": 0.1})
    grey = np.full((64, 80, 3), 0.5, np.float32)

    found = AnomalySynthesizer(seen, Colour(255, 255, 255), grid=(8, 10)).synthesize(grey, np.random.default_rng(0))
    hidden = AnomalySynthesizer(seen, Colour(128, 128, 128)).synthesize(grey, np.random.default_rng(0))

    assert found.fallback is None
    assert np.array_equal(found.cells, max_pool_cells(found.mask, (8, 10)))
    assert (np.abs(found.image - grey).max(axis=2)[found.mask] > 0).all()
    assert hidden.fallback == "left normal"
    assert not hidden.mask.any()
    assert np.array_equal(hidden.image, grey)
    assert hidden.tries >= 8


def test_feathered_flaws_lie_in_the_masks_of_plain_ones() -> None:
    image = good_image()
    plain, soft = (
        AnomalySynthesizer(recipe, Colour(0, 255, 0)).synthesize(image, np.random.default_rng(3))
        for recipe in (PLAIN, PLAIN.model_copy(update={"feather": 2.0}))
    )

    assert np.array_equal(plain.mask, soft.mask)
    assert np.array_equal(soft.image[~soft.mask], image[~soft.mask])
    assert np.abs(soft.image - image).sum() < np.abs(plain.image - image).sum()


def test_rectangles_replace_the_noise() -> None:
    for seed in range(20):
        synthetic = [
            AnomalySynthesizer(PLAIN.model_copy(update={"branches": (branch,)}), Speckle()).synthesize(
                good_image(), np.random.default_rng(seed)
            )
            for branch in [Branch(weight=FixedWeight(value=0), rule=MaskRule(shape="rectangle"))] * 2
        ]
        mask = synthetic[0].mask
        assert mask.sum() == mask.any(axis=0).sum() * mask.any(axis=1).sum()
        assert np.array_equal(mask, synthetic[1].mask)
        assert synthetic[0].tries == 1


def test_small_rectangles_are_drawn_again_and_keep_to_the_foreground() -> None:
    foreground = np.zeros((64, 80), bool)
    foreground[20:50, 30:60] = True
    branch = Branch(weight=FixedWeight(value=0), rule=MaskRule(shape="rectangle"))
    recipe = Recipe(name="rectangles", branches=(branch,), acceptance=Acceptance(min_pixels=200))
    results = [
        AnomalySynthesizer(recipe, Speckle()).synthesize(
            good_image(), np.random.default_rng(seed), foreground=foreground
        )
        for seed in range(40)
    ]
    assert max(result.tries for result in results) > 1
    assert all(result.mask.sum() >= 200 and not (result.mask & ~foreground).any() for result in results)


def test_images_of_another_size_are_brought_to_that_of_the_good_one() -> None:
    image = good_image((40, 60))
    assert resized(image, (40, 60)) is image
    assert resized(image, (20, 30)).shape == (20, 30, 3)
    np.testing.assert_allclose(resized(image, (20, 30))[0, 0], image[:2, :2].mean(axis=(0, 1)), atol=1e-6)


@pytest.mark.parametrize(("redraw", "lattices"), [("everything", 40), ("noise", 2)])
def test_noise_alone_is_redrawn_on_the_same_lattice(
    redraw: str, lattices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def counted(rng: np.random.Generator, exponents: tuple[int, int]) -> tuple[int, int]:
        drawn.append(draw_lattice(rng, exponents))
        return drawn[-1]

    monkeypatch.setattr("flawsmith.synthesis.masks.draw_lattice", counted)
    monkeypatch.setattr("flawsmith.synthesis.synthesizer.draw_lattice", counted)
    hopeless = Acceptance(min_pixels=64 * 80)
    recipe = PLAIN.model_copy(update={"redraw": redraw, "acceptance": hopeless, "max_tries": 40})

    synthetic = AnomalySynthesizer(recipe, Speckle()).synthesize(good_image(), np.random.default_rng(0))

    assert (synthetic.tries, len(drawn)) == (40, lattices)


def test_eight_bits_survive_the_way_there_and_back() -> None:
    values = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_8_bit(to_float(values)), values)


@pytest.mark.parametrize(
    ("image", "foreground"),
    [
        (np.zeros((4, 4), np.float32), None),
        (np.zeros((4, 4, 3), np.uint8), None),
        (np.zeros((0, 4, 3), np.float32), None),
        (np.zeros((4, 4, 3), np.float32), np.ones((4, 5), bool)),
        (np.zeros((4, 4, 3), np.float32), np.ones((4, 4), np.uint8)),
    ],
    ids=["grey", "uint8", "empty", "foreground of another size", "foreground of numbers"],
)
def test_other_arrays_are_refused(image: np.ndarray, foreground: np.ndarray | None) -> None:
    with pytest.raises(ValueError, match="expected a"):
        AnomalySynthesizer(PLAIN, Speckle()).synthesize(image, np.random.default_rng(0), foreground=foreground)


# Without a run


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_synthesizes_on_plain_arrays(name: str) -> None:
    image = good_image().astype(np.float64)
    synthesizer = AnomalySynthesizer.from_recipe(name)

    first, again = (synthesizer(image, np.random.default_rng(4)) for _ in range(2))

    assert same(first, again)
    assert first.recipe == name
    assert first.image.dtype == first.normal.dtype == np.float32
    assert np.array_equal(first.image[~first.mask], first.normal[~first.mask])


def test_images_of_a_batch_are_each_others_other_images() -> None:
    image, other = np.zeros((64, 64, 3)), np.ones((64, 64, 3))
    recipe = other_recipe(excludes_self=True)

    samples = AnomalySynthesizer.from_recipe(recipe).batch(np.stack([image, other]), np.random.default_rng(0))

    assert [float(sample.texture.mean()) for sample in samples] == [1.0, 0.0]


def test_a_foreground_by_name_comes_with_the_sample() -> None:
    sample = AnomalySynthesizer.from_recipe("glass", foreground="disc")(good_image(), np.random.default_rng(0))

    assert sample.foreground is not None
    assert 0 < sample.foreground.mean() < 1
    assert not (sample.mask & ~sample.foreground).any()


def test_whole_numbers_are_refused_with_the_way_to_fix_them() -> None:
    with pytest.raises(ValueError, match="divide 8-bit images by 255"):
        AnomalySynthesizer.from_recipe("glass")(np.zeros((8, 8, 3), np.uint8), np.random.default_rng(0))


def test_an_unknown_recipe_and_missing_textures_are_named(tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="did you mean 'glass'"):
        AnomalySynthesizer.from_recipe("glas")
    with pytest.raises(FlawsmithError, match="no such folder of textures"):
        AnomalySynthesizer.from_recipe("glass", textures=tmp_path / "nowhere")


def test_public_names_of_synthesis_load_without_torch() -> None:
    code = (
        "import sys, flawsmith.synthesis as synthesis\n"
        "[getattr(synthesis, name) for name in synthesis.__all__]\n"
        "assert 'torch' not in sys.modules and sorted(synthesis.__all__) == sorted(synthesis._PLACES)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
