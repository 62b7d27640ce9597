"""Scores made comparable: by position and by level, their limits, and the stage that computes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flawsmith.models.components.score_maps import ScoreMoments, ScoreNorm, level_scales, position_scale
from flawsmith.models.registry import find_method, method_names

GRID = (3, 4)
Train = Callable[..., Any]


def good_maps(images: int, seed: int) -> torch.Tensor:
    """Score maps whose positions differ in mean and spread."""
    source = torch.Generator().manual_seed(seed)
    mean, spread = torch.arange(12.0).reshape(GRID), 0.5 + torch.rand(GRID, generator=source)
    return mean + spread * torch.randn(images, *GRID, generator=source)


def moments_of(maps: torch.Tensor, batch: int = 7) -> ScoreMoments:
    moments = ScoreMoments()
    for part in maps.split(batch):
        moments.update(part)
    return moments


def norm_of(maps: torch.Tensor, batch: int = 7) -> ScoreNorm:
    return fitted(position_scale(moments_of(maps, batch)))


def fitted(scale: tuple[torch.Tensor, torch.Tensor]) -> ScoreNorm:
    norm = ScoreNorm()
    norm.fit(*scale)
    return norm


def test_positions_get_nearly_the_mean_and_the_spread_of_the_whole_map(seed: int) -> None:
    maps = good_maps(2000, seed)

    found = norm_of(maps)(maps)

    before, after = (maps.mean(dim=0).std(), found.mean(dim=0).std())
    assert after < 0.4 * before  # the weight of the whole map is a tenth, and each position is stretched
    assert (found.mean() - maps.mean()).abs() < 0.1 * maps.std()
    ratio = maps.std(dim=0).max() / maps.std(dim=0).min()
    assert found.std(dim=0).max() / found.std(dim=0).min() < ratio


def test_batches_do_not_matter(seed: int) -> None:
    maps = good_maps(30, seed)

    torch.testing.assert_close(norm_of(maps, 30).state_dict(), norm_of(maps, 4).state_dict())


def test_one_image_is_trusted_little() -> None:
    maps = good_maps(1, 0)

    norm = norm_of(maps)

    assert (norm(maps) - maps).abs().max() < 0.2 * maps.std()


def test_a_position_that_never_varies_is_stretched_by_a_bounded_factor() -> None:
    maps = good_maps(500, 0)
    maps[:, 1, 1] = 3.0

    norm = norm_of(maps)

    assert norm.scale.max() <= 10**0.5 + 1e-4
    assert torch.isfinite(norm.scale).all() and torch.isfinite(norm.offset).all()


def test_constant_maps_stay_as_they_are() -> None:
    maps = torch.full((20, *GRID), 2.5)

    torch.testing.assert_close(norm_of(maps)(maps), maps)


def test_levels_get_equal_spread_and_keep_their_means(seed: int) -> None:
    fine, coarse = good_maps(50, seed), 100 + 20 * good_maps(50, seed + 1)

    norms = list(map(fitted, level_scales([moments_of(fine), moments_of(coarse)])))
    found = [norm(maps) for norm, maps in zip(norms, (fine, coarse), strict=True)]

    torch.testing.assert_close(found[0].std(), found[1].std(), rtol=1e-4, atol=0)
    torch.testing.assert_close(found[1].mean(), coarse.mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(found[1].std(), (fine.std() + coarse.std()) / 2, rtol=1e-4, atol=0)


def test_a_level_that_never_varies_stays_as_it_is() -> None:
    constant = torch.full((20, *GRID), 2.5)

    norms = list(map(fitted, level_scales([moments_of(constant), moments_of(good_maps(20, 0))])))

    torch.testing.assert_close(norms[0](constant), constant)


NORMED = [name for name in method_names() if "score_norm" in find_method(name).Config.model_fields]


@pytest.mark.parametrize("method", NORMED)
def test_every_method_of_score_maps_can_be_normed(
    method: str, tmp_path: Path, parts: Path, train_small: Train, trained_small: Callable[[str], Any]
) -> None:
    other = "none" if find_method(method).presets["fast"].score_norm == "position" else "position"

    found = train_small(method, parts, tmp_path / "run", set={"score_norm": other})

    normed = (found.folder / "checkpoints" / "norm.safetensors").exists()
    assert normed == (other == "position")
    assert found.bundle.model != trained_small(method).bundle.model
