"""The memory bank beside a trained model: its distances, its unit, and what becomes of maps and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.models.stand_ins import fixed_backbone
from torch import Tensor

from flawsmith.features.patch_embedding import average_embedding, resize
from flawsmith.models.base import AnomalyOutput, Stage, TrainingData
from flawsmith.models.components.memory_bank import (
    BankConfig,
    MemoryBank,
    MultiScaleMemoryBank,
    Neighbourhood,
    Whitening,
    measured_rows,
)
from flawsmith.models.components.score_maps import ScoreMap, ScoreMapModel
from flawsmith.models.registry import find_method, method_names

GRID = (6, 8)
Train = Callable[..., Any]


class Images:
    """Two levels of a few images."""

    channels, grids = (3, 5), ((12, 16), GRID)

    def __init__(self, count: int, seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        self.levels = [
            torch.randn(count, c, *g, generator=source) for c, g in zip(self.channels, self.grids, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.levels[0])

    def batch(self, rows: Any) -> list[Tensor]:
        return [level[np.asarray(rows)] for level in self.levels]


class Data:
    """What stages see of the training data."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def features(self) -> Images:
        return self._images


class First(ScoreMapModel):
    """A model whose two score maps are the first channels of the levels, the second ten times over."""

    name = "first"

    def raw_maps(self, levels: Sequence[Tensor]) -> list[ScoreMap]:
        return [levels[0][:, 0], 10 * levels[1][:, 0]]

    def from_levels(self, levels: Sequence[Tensor]) -> AnomalyOutput:
        last = self.score_maps(levels)[-1]
        return AnomalyOutput(last, last.amax(dim=(1, 2)))

    def stages(self, data: TrainingData) -> Iterator[Stage]:
        return self.post_processing(data)


def first(settings: BankConfig, comparison: Any = "none", seed: int = 0) -> First:
    return First(settings, fixed_backbone(Images.channels, Images.grids), seed, maps=2, comparison=comparison)


def fitted_bank(images: Images, settings: BankConfig, seed: int) -> MultiScaleMemoryBank:
    bank = MultiScaleMemoryBank(images.channels, settings.neighbourhoods, settings.bank_size)
    bank.fit(images, seed)
    return bank


def config(**settings: Any) -> BankConfig:
    return BankConfig(**{"bank": (1, 3), "bank_size": 12, "strides": (8, 16), **settings})


def test_a_bank_sums_standardised_distances_over_its_neighbourhoods(seed: int) -> None:
    torch.manual_seed(seed)
    levels = Images(2, seed).levels
    bank = MultiScaleMemoryBank(Images.channels, config(bank=(1, 3, {"side": 5, "levels": 2})).neighbourhoods, 4)
    expected = torch.zeros(2, *GRID)
    for number, (memory, width) in enumerate(zip(bank.memories, (5, 5, 8), strict=True)):
        assert isinstance(memory, MemoryBank)
        memory.fit(torch.randn(4, width), 2.0)
        bank.means[number] = 0.25
        seen = average_embedding(levels[-(1, 1, 2)[number] :], (1, 3, 5)[number], GRID)
        expected += memory(seen)[:, 0] - 0.25
    bank.scale.fill_(7.0)

    torch.testing.assert_close(bank(levels), 7 * expected)


def test_good_images_have_mean_0_and_spread_1_in_every_neighbourhood(seed: int) -> None:
    """Of fresh images of the same kind: an image that is remembered itself is nearer."""
    images, fresh = Images(40, seed), Images(40, seed + 1)

    for side, levels in ((1, 1), (3, 1), (1, 2), (3, 2)):
        found = fitted_bank(images, config(bank=[{"side": side, "levels": levels}]), seed)(fresh.levels)

        assert abs(float(found.mean())) < 0.4
        assert float(found.std()) == pytest.approx(1, abs=0.35)


def test_parts_of_a_bank_count_for_the_map_the_score_or_both(seed: int) -> None:
    """On the finest grid of those that count; a part on a coarser grid is brought to it."""
    images, strides = Images(8, seed), (8, 16)
    sides = (1, 3, 5)
    parts = (Neighbourhood(side=1, stride=8), Neighbourhood(side=3, role="score"), Neighbourhood(side=5, role="map"))
    bank = MultiScaleMemoryBank(images.channels, parts, 12, strides)
    bank.fit(images, seed)
    levels = Images(2, seed + 1).levels

    def standardised(number: int, level: int) -> torch.Tensor:
        memory = bank.memories[number]
        seen = average_embedding([levels[level]], sides[number], Images.grids[level])
        return resize(memory(seen) - bank.means[number], Images.grids[0])[:, 0]

    torch.testing.assert_close(bank.evidence(levels, "score"), standardised(0, 0) + standardised(1, 1))
    torch.testing.assert_close(bank(levels), standardised(0, 0) + standardised(2, 1))


def test_a_neighbourhood_may_remember_fewer_than_the_others(seed: int) -> None:
    images = Images(8, seed)
    settings = config(bank=[{"side": 1}, {"side": 3, "share": 0.4}])
    bank = fitted_bank(images, settings, seed)

    assert [len(memory.features) for memory in bank.memories] == [12, 5]
    assert settings.model_dump()["bank"] == ({"side": 1, "levels": 1}, {"side": 3, "levels": 1, "share": 0.4})


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("glass", {"bank": [1, {"side": 3, "role": "score"}]}, "role score counts for nothing here"),
        ("pbas", {"bank": [{"side": 3, "role": "score"}]}, "role score counts for nothing here"),
        ("fusion", {"bank": [{"side": 3, "role": "score"}], "score_share": None}, "which needs score_share"),
        ("fusion", {"bank": [{"side": 3, "role": "map"}]}, "needs a bank that counts for the score"),
    ],
)
def test_bank_that_counts_for_nothing_is_refused(method: str, settings: dict[str, Any], words: str) -> None:
    kind = find_method(method)

    with pytest.raises(ValidationError, match=words):
        kind.Config(**{**kind.presets["fast"].model_dump(), **settings})


def test_whitened_features_scatter_alike_in_all_directions(seed: int) -> None:
    torch.manual_seed(seed)
    mixed = torch.randn(4000, 6) @ torch.randn(6, 6) * torch.tensor([100.0, 10, 1, 1, 1, 1]) + 7
    whitening = Whitening(6)
    whitening.fit(mixed)

    whitened = whitening(mixed.T[None, :, None])[0, :, 0].T
    covariance = whitened.T.cov()
    spread = mixed.T.cov()
    assert torch.linalg.eigvalsh(spread)[-1] / torch.linalg.eigvalsh(spread)[0] > 100
    assert torch.linalg.eigvalsh(covariance)[-1] == pytest.approx(1, abs=0.05)
    # A difference of one spread along the widest direction is as far as it says.
    widest = torch.linalg.eigh(spread).eigenvectors[:, -1] * torch.linalg.eigvalsh(spread)[-1].sqrt()
    there, here = (whitening(point[None, :, None, None]).flatten() for point in (mixed[0] + widest, mixed[0]))
    assert float((there - here).norm()) == pytest.approx(1, abs=0.05)


def test_whitening_of_features_that_never_vary_is_finite() -> None:
    whitening = Whitening(3)
    whitening.fit(torch.ones(5, 3))

    assert torch.isfinite(whitening(torch.zeros(1, 3, 2, 2))).all()


def test_a_stride_that_is_not_among_the_levels_is_refused() -> None:
    with pytest.raises(ValidationError, match="strides \\[32\\], which are not among"):
        config(bank=[{"side": 1, "stride": 32}])


def test_the_bank_is_a_function_of_the_seed(seed: int) -> None:
    images = Images(5, seed)

    first, again, other = (fitted_bank(images, config(), given).state_dict() for given in (seed, seed, seed + 1))

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_one_image_says_nothing_of_what_is_usual(seed: int) -> None:
    bank = fitted_bank(Images(1, seed), config(), seed)

    assert not bank(Images(3, seed).levels).any()


def test_images_without_any_difference_say_nothing_of_what_is_usual() -> None:
    images = Images(3, 0)
    images.levels = [torch.zeros_like(level) for level in images.levels]

    assert not fitted_bank(images, config(), 0)(Images(2, 1).levels).any()


def test_many_images_are_measured_evenly() -> None:
    assert measured_rows(3) == [0, 1, 2]
    many = measured_rows(1000)
    assert (len(many), many[0], many[-1]) == (200, 0, 999)


@pytest.mark.parametrize("weight", [0.5, 2.0])
@pytest.mark.parametrize("comparison", ["none", "level"])
def test_the_bank_scatters_as_the_detectors_maps_do_times_its_weight(weight: float, comparison: Any, seed: int) -> None:
    images, fresh = Images(60, seed), Images(60, seed + 1)
    model = first(config(bank=(1,), bank_weight=weight), comparison, seed)
    for stage in model.stages(Data(images)):  # type: ignore[arg-type]
        stage.compute()  # type: ignore[union-attr]

    with torch.no_grad():
        finer, last = model.score_maps(fresh.levels)
        alone = model.normalised_maps(fresh.levels)

    assert model.bank is not None
    torch.testing.assert_close(finer, alone[0])
    distances = model.bank(fresh.levels)
    torch.testing.assert_close(last, alone[1] + distances)
    spread = sum(float(maps.std()) for maps in alone)
    assert float(distances.std()) == pytest.approx(weight * spread, rel=0.35)


def test_a_bank_that_is_not_fitted_yet_has_no_say_in_the_choice_of_a_checkpoint() -> None:
    model, levels = first(config(), "level"), Images(2, 0).levels

    assert [stage.name for stage in model.stages(Data(Images(2, 0)))] == ["norm", "bank"]  # type: ignore[arg-type]
    for with_bank, without in zip(model.score_maps(levels), model.raw_maps(levels), strict=True):
        assert torch.equal(with_bank, without)


def test_a_model_without_a_bank_stays_as_it_is() -> None:
    model = first(config(bank=()))

    assert list(model.stages(Data(Images(2, 0)))) == []  # type: ignore[arg-type]
    assert model.bank is None


def test_a_state_brings_the_sizes_of_its_buffers(seed: int) -> None:
    images = Images(6, seed)
    fitted, other = (first(config(), "position", seed) for _ in range(2))
    for stage in fitted.stages(Data(images)):  # type: ignore[arg-type]
        stage.compute()  # type: ignore[union-attr]

    other.load_state_dict(fitted.state_dict())

    for ours, theirs in zip(other.score_maps(images.levels), fitted.score_maps(images.levels), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("bank", "says"),
    [
        ((2,), "odd sides, each once"),
        ((0,), "greater than or equal to 1"),
        ((3, 3), "odd sides, each once"),
        ((3, {"side": 3, "levels": 1}), "odd sides, each once"),
        (({"side": 4, "levels": 2},), "odd sides, each once"),
        (({"side": 1, "joined": 2},), "joined"),
    ],
    ids=str,
)
def test_neighbourhoods_have_odd_sides_each_once(bank: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(bank=bank)


def test_more_levels_than_there_are_join_all(seed: int) -> None:
    images = Images(4, seed)

    both, more = (fitted_bank(images, config(bank=[{"side": 3, "levels": n}]), seed).state_dict() for n in (2, 3))

    assert all(torch.equal(both[name], more[name]) for name in both)


def test_a_number_is_a_neighbourhood_of_the_coarsest_level() -> None:
    given = config(bank=[1, {"side": 3, "levels": 2}])

    assert given.neighbourhoods == (Neighbourhood(side=1, levels=1), Neighbourhood(side=3, levels=2))
    assert given.model_dump(mode="json")["bank"] == [1, {"side": 3, "levels": 2}], "presets that exist keep their form"
    assert BankConfig.model_validate(given.model_dump(mode="json")) == given


BANKED = [name for name in method_names() if "bank" in find_method(name).Config.model_fields]


def test_published_presets_have_no_bank() -> None:
    for name in BANKED:
        presets = find_method(name).presets
        published = [presets[preset] for preset in presets if preset != "fast"]
        assert not any(preset.neighbourhoods for preset in published)  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", BANKED)
def test_a_bank_changes_the_model_and_is_kept_for_a_resumed_run(
    method: str, tmp_path: Path, parts: Path, train_small: Train, trained_small: Callable[[str], Any]
) -> None:
    other = [] if find_method(method).presets["fast"].bank else [1, 3]  # type: ignore[attr-defined]

    found = train_small(method, parts, tmp_path / "run", set={"bank": other})

    assert (found.folder / "checkpoints" / "bank.safetensors").exists() == bool(other)
    assert found.bundle.model != trained_small(method).bundle.model
