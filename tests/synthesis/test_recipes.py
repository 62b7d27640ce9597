"""Recipes as data, and the masks that they ask for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.synthesis.augment import Blur, HalfTurn, Pose, Shuffle
from flawsmith.synthesis.blend import FixedWeight, NormalWeight, UniformWeight
from flawsmith.synthesis.masks import Acceptance, MaskRule
from flawsmith.synthesis.recipes import RECIPES, Branch, Recipe, find_recipe, max_pool_cells, strided_cells
from flawsmith.synthesis.synthesizer import find_mask

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30)))
SINGLE, ANY = MaskRule(), Acceptance()


def noise(*pixels: tuple[int, int], shape: tuple[int, int] = (6, 8)) -> np.ndarray:
    field = np.zeros(shape, np.float32)
    for pixel in pixels:
        field[pixel] = 0.9
    return field


def test_the_recipes_have_the_published_numbers() -> None:
    glass, aand, structural, logical = (RECIPES[name] for name in ("glass", "aand", "slsg-structural", "slsg-logical"))
    assert glass.branches[0].weight == NormalWeight(mean=0.5, std=0.1, low=0.2, high=0.8)
    assert glass.branches[0].rule == MaskRule(exponents=(0, 6), threshold=0.5, max_rotation=90, combination="thirds")
    assert (aand.max_tries, aand.redraw, aand.acceptance.min_pixels, aand.normal_share) == (11, "noise", 5, 0.2)
    assert [branch.rule.threshold for branch in structural.branches] == [0.5, 0.4]
    assert [branch.rule.exponents for branch in (*structural.branches, *logical.branches)] == [(0, 4), (0, 3), (0, 3)]
    assert [branch.texture for branch in (*structural.branches, *logical.branches)] == ["source", "self", "other"]
    assert structural.acceptance.min_pixels == logical.acceptance.min_pixels == 49


def test_half_of_the_slsg_flaws_are_logical_from_another_image() -> None:
    slsg = RECIPES["slsg"]
    assert [(branch.share, branch.texture) for branch in slsg.branches] == [
        (0.25, "source"),
        (0.25, "self"),
        (0.5, "other"),
    ]
    source, own, other = slsg.branches
    assert (source.rule.exponents, source.rule.threshold, source.operations) == ((0, 4), 0.5, "classic")
    assert own.rule == other.rule == MaskRule(exponents=(0, 3), threshold=0.4)
    assert source.weight == RECIPES["slsg-structural"].branches[0].weight
    assert own.weight == other.weight == UniformWeight(high=0.25)
    assert Shuffle(cells=(4, 8)) in own.transforms
    assert other.transforms[0] == Pose(max_turn=5, flips=False)
    assert other.excludes_self
    assert slsg.acceptance.min_pixels == 49


def test_the_released_simulation_of_slsg_has_its_numbers() -> None:
    official = RECIPES["slsg-official"]
    own = official.branches[1]
    assert (own.share, own.texture, official.jitter) == (pytest.approx(0.35 / 0.6), "self", 0.1)
    turn, jitter, blur, shuffle = own.transforms
    assert (turn, blur, shuffle) == (HalfTurn(share=0.5), Blur(share=0.2, sigma=2), Shuffle(cells=(4, 8)))
    assert jitter.share == 0.2
    assert [tuple(strength.model_dump().values()) for strength in jitter.strengths] == [
        (0.7, 0.4, 0, 0.4, 0.2),
        (0.3, 0.2, 0, 0.2, 0.1),
    ]


def test_transforms_without_a_good_image_and_images_without_transforms_are_refused() -> None:
    with pytest.raises(ValidationError, match="for good images"):
        Branch(weight=NormalWeight(), transforms=(HalfTurn(),))
    with pytest.raises(ValidationError, match="has no flaw"):
        Branch(weight=NormalWeight(), texture="self")


@pytest.mark.parametrize("shape", [(256, 256), (64, 96), (1, 1)])
def test_a_box_belongs_to_every_mask(shape: tuple[int, int]) -> None:
    empty = np.zeros(shape, np.float32)
    mask = MaskRule(box=(0.25, 0.5, 0.75, 1.0)).mask(0.0, [empty])
    expected = np.zeros(shape, bool)
    expected[round(0.25 * shape[0]) : round(0.75 * shape[0]), round(0.5 * shape[1]) :] = True
    assert np.array_equal(mask, expected)
    whole = MaskRule(box=(0.25, 0.5, 0.75, 1.0)).mask(0.0, [empty + 1])
    assert whole.all()


@pytest.mark.parametrize("box", [(0.5, 0.1, 0.5, 0.2), (0.1, 0.3, 0.5, 0.2), (-0.1, 0, 1, 1), (0, 0, 1, 1.1)])
def test_boxes_that_are_empty_or_beyond_the_image_are_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="the box"):
        MaskRule(box=box)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_recipes_survive_json(recipe: Recipe) -> None:
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_unknown_recipes_are_refused_with_the_closest() -> None:
    with pytest.raises(FlawsmithError, match=r"'slsg-logic'.*did you mean 'slsg-logical'.*known recipes are glass"):
        find_recipe("slsg-logic")
    assert find_recipe("glass") is RECIPES["glass"]


def test_branches_are_taken_by_their_shares() -> None:
    branches = tuple(Branch(share=share, weight=FixedWeight(value=share)) for share in (0.1, 0.2, 0.7))
    recipe = Recipe(name="three", branches=branches)
    counts = Counter(recipe.branch((u + 0.5) / 1000).share for u in range(1000))
    assert counts == {0.1: 100, 0.2: 200, 0.7: 700}


def test_shares_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"sum to 0\.5"):
        Recipe(name="half", branches=(Branch(share=0.5, weight=NormalWeight()),))


def test_an_empty_range_of_exponents_is_refused() -> None:
    with pytest.raises(ValidationError, match="is empty"):
        MaskRule(exponents=(3, 3))


def test_another_weight_reaches_every_branch_and_leaves_the_recipe_alone() -> None:
    weak = RECIPES["slsg-structural"].with_weight(FixedWeight(value=0.9))
    assert {branch.weight for branch in weak.branches} == {FixedWeight(value=0.9)}
    assert RECIPES["slsg-structural"].branches[1].weight != FixedWeight(value=0.9)


def test_only_a_fifth_of_the_draws_keep_an_aand_sample_normal() -> None:
    kept = [RECIPES["aand"].keeps_normal(u / 1000) for u in range(1000)]
    assert sum(kept) == 199
    assert not RECIPES["glass"].keeps_normal(0.999)


@pytest.mark.parametrize(
    ("draw", "expected"), [(0.1, {(1, 1), (2, 2)}), (0.5, {(2, 2)}), (0.9, {(1, 1), (2, 2), (3, 3)})]
)
def test_thirds_are_single_intersection_and_union(draw: float, expected: set[tuple[int, int]]) -> None:
    fields = [noise((1, 1), (2, 2)), noise((2, 2), (3, 3))]
    mask = MaskRule(combination="thirds").mask(draw, fields)
    assert {tuple(pixel) for pixel in np.argwhere(mask).tolist()} == expected


def test_a_second_field_is_not_computed_where_one_is_enough() -> None:
    asked = []

    def fields():
        for number in range(2):
            asked.append(number)
            yield noise((1, 1))

    MaskRule(combination="thirds").mask(0.2, fields())
    assert asked == [0]


def test_search_ends_with_the_first_mask_that_counts() -> None:
    attempts = [(0.0, [noise(pixel)]) for pixel in ((0, 0), (5, 7), (2, 3), (2, 4))]
    foreground = np.zeros((6, 8), bool)
    foreground[2] = True

    mask, cells, tries = find_mask(attempts, SINGLE, ANY, foreground=foreground, grid=(3, 4))

    assert tries == 3
    assert np.argwhere(mask).tolist() == [[2, 3]]
    assert np.argwhere(cells).tolist() == [[1, 1]]


def test_a_search_without_success_gives_an_empty_mask_and_says_so() -> None:
    mask, cells, tries = find_mask([(0.0, [noise((0, 0))])] * 4, SINGLE, Acceptance(min_pixels=2), grid=(2, 2))
    assert tries == 4
    assert not mask.any()
    assert cells is not None
    assert not cells.any()


def test_a_flaw_in_the_cropped_remainder_does_not_count_by_cells() -> None:
    attempt = (0.0, [noise((6, 8), shape=(7, 9))])
    by_cells = Acceptance(min_cells=1)
    assert not find_mask([attempt], SINGLE, by_cells, grid=(3, 4))[0].any()
    assert find_mask([attempt], SINGLE, by_cells)[0].any()


def test_a_search_needs_an_attempt() -> None:
    with pytest.raises(ValueError, match="no attempt"):
        find_mask([], SINGLE, ANY)


@given(mask=MASKS, data=st.data())
def test_max_pooled_cells_equal_torch(mask: np.ndarray, data: st.DataObject) -> None:
    grid = tuple(data.draw(st.integers(1, side)) for side in mask.shape)
    kernel = tuple(side // cells for side, cells in zip(mask.shape, grid, strict=True))
    pooled = torch.nn.functional.max_pool2d(torch.from_numpy(mask)[None].float(), kernel, kernel)[0].numpy()

    cells = max_pool_cells(mask, grid)

    assert np.array_equal(cells, pooled[: grid[0], : grid[1]] > 0)


def test_a_single_pixel_makes_a_large_cell() -> None:
    mask = np.zeros((3000, 2000), bool)
    mask[1234, 777] = True
    assert max_pool_cells(mask, (1, 1)).all()


def test_more_cells_than_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="no 4 x 9 cells"):
        max_pool_cells(np.zeros((8, 8), bool), (4, 9))


@given(mask=MASKS, stride=st.integers(1, 9))
def test_strided_cells_are_those_of_a_grid_rounded_up(mask: np.ndarray, stride: int) -> None:
    grid = tuple(-(-side // stride) for side in mask.shape)
    padded = np.pad(mask, [(0, cells * stride - side) for cells, side in zip(grid, mask.shape, strict=True)])
    pooled = torch.nn.functional.max_pool2d(torch.from_numpy(padded)[None].float(), stride)[0].numpy()

    assert np.array_equal(strided_cells(mask, grid, stride), pooled > 0)


def test_the_last_cell_of_a_grid_rounded_down_takes_what_remains() -> None:
    mask = np.zeros((10, 10), bool)
    mask[9, 0] = True

    assert strided_cells(mask, (2, 2), 4).tolist() == [[False, False], [True, False]]
