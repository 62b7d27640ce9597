"""PBAS: its numbers, its batches, its ablations, and the corners of its equations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.models.stand_ins import fixed_backbone
from torch import Tensor

from flawsmith.features.patch_embedding import PatchEmbedding, as_rows, average_embedding
from flawsmith.models import PBAS
from flawsmith.models.base import TrainingStage
from flawsmith.models.components.batches import FeatureBatches, Sampling
from flawsmith.models.pbas.config import PBASConfig
from flawsmith.models.pbas.functional import (
    anomaly_loss,
    boundary_loss,
    embed,
    nearest_center,
    normal_loss,
    ray_anomalies,
    ray_lengths,
)
from flawsmith.training.run import RunFolder
from flawsmith.training.trainer import LoopOptions

SMALL: dict[str, Any] = {"level_width": 8, "width": 8, "hidden": 6, "batch_size": 4, "epochs": 2}


class Features:
    """Level maps of a few images, drawn once."""

    channels = (4, 6)
    grids = ((6, 5), (3, 3))

    def __init__(self, images: int = 10) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = zip(self.channels, self.grids, strict=True)
        self.levels = [torch.randn(images, count, *grid, generator=generator) + 2 for count, grid in shapes]

    def __len__(self) -> int:
        return len(self.levels[0])

    def batch(self, rows: Any) -> list[Tensor]:
        return [level[np.asarray(rows)] for level in self.levels]

    def features(self) -> Features:
        return self

    def images(self) -> Iterator[np.ndarray]:
        """Images of 4 pixels a position, as a network sees them that wants no others than they are."""
        return (picture_of(row) for row in range(len(self)))


def picture_of(row: int) -> np.ndarray:
    """A grey image, each position of one brightness."""
    cells = np.random.default_rng(row).random((6, 5)).astype(np.float32)
    return np.repeat(np.kron(cells, np.ones((4, 4), np.float32))[None], 3, axis=0)


def sampling(config: PBASConfig) -> Sampling:
    return Sampling(config.batch_size, config.steps_per_epoch, config.patches_per_step)


class Coarse(Features):
    """The coarser level of the same images alone."""

    channels = Features.channels[1:]
    grids = Features.grids[1:]

    def __init__(self) -> None:
        super().__init__()
        self.levels = Features().levels[1:]


@pytest.mark.parametrize("patches", [None, 7])
def test_a_level_that_is_not_embedded_changes_nothing_that_is_learned(patches: int | None) -> None:
    settings = {**SMALL, "patches_per_step": patches}
    one = PBASConfig(strides=(16,), **settings)
    both = PBASConfig(strides=(8, 16), embedded_levels=1, **settings)
    found = []
    for config, features in ((one, Coarse()), (both, Features())):
        model = PBAS(config, fixed_backbone(features.channels, features.grids), 0)
        batches = FeatureBatches(features, config.sampling, seed=0)
        model.fit_centers(batches.epoch(0))
        found.append([model.losses(batch)["loss"] for batch in batches.epoch(0)])

    torch.testing.assert_close(found[0], found[1])


def test_no_more_levels_are_embedded_than_there_are() -> None:
    with pytest.raises(ValidationError, match="embedded_levels must be 2 at most"):
        PBASConfig(embedded_levels=3)


# Numbers


def test_official_preset_has_the_numbers_of_the_released_code() -> None:
    official = PBAS.presets["official"].model_dump()

    expected = {
        "image_size": (288, 288),
        "policy": "crop",
        "strides": (8, 16),
        "patch_size": 3,
        "level_width": 1536,
        "width": 1536,
        "projector_depth": 1,
        "hidden": 1024,
        "discriminator_depth": 2,
        "center": "aligned",
        "center_smoothing": 0.1,
        "synthesis": "ray",
        "anomaly_degree": 0.25,
        "boundary_weight": 1.0,
        "discrimination_weight": 1.0,
        "projector_lr": 1e-4,
        "projector_weight_decay": 1e-5,
        "discriminator_lr": 2e-4,
        "discriminator_weight_decay": 0.01,
        "discriminator_optimiser": "adamw",
        "epochs": 640,
        "batch_size": 8,
        "steps_per_epoch": None,
        "patches_per_step": None,
        "sigma": 4.0,
        "precision": "32-true",
    }
    assert {key: official[key] for key in expected} == expected


def test_paper_preset_differs_where_the_paper_does() -> None:
    official, paper = PBAS.presets["official"].model_dump(), PBAS.presets["paper"].model_dump()

    different = {key for key in paper if paper[key] != official[key]}

    assert {"image_size", "epochs", "anomaly_degree"} <= different
    assert (paper["image_size"], paper["epochs"], paper["anomaly_degree"]) == ((256, 256), 400, 0.3)


def test_paper_preset_has_the_channels_of_both_levels(seed: int) -> None:
    """s has C1 + C2 channels in the text, each the mean over its neighbourhood."""
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(2, 6, 8, 8, generator=generator), torch.randn(2, 10, 4, 4, generator=generator)]
    paper = PBAS.presets["paper"]
    widths = {"level_width": paper.level_width, "width": paper.width}

    embedding = PatchEmbedding([6, 10], patch_size=paper.patch_size, **widths)(levels)

    assert embedding.shape == (2, 16, 8, 8)
    torch.testing.assert_close(embedding, average_embedding(levels, 3, (8, 8)))
    torch.testing.assert_close(as_rows(embedding), embed(levels, **widths))


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"center": "median"}, {"synthesis": "perlin"}, {"anomaly_degree": 0}, {"projektor_lr": 1}],
    ids=str,
)
def test_impossible_setting_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PBASConfig(**wrong)


# Batches


def drawn(config: PBASConfig, seed: int, epoch: int, images: int = 10) -> list[Any]:
    batches = FeatureBatches(Features(images), sampling(config), seed=seed)
    found = list(batches.epoch(epoch))
    assert len(found) == len(batches)
    return found


def test_full_pass_shows_every_image_once_an_epoch() -> None:
    batches = drawn(PBASConfig(**SMALL), 0, 0)

    images = torch.cat([batch.levels[0] for batch in batches])
    assert [len(batch.levels[0]) for batch in batches] == [4, 4, 2]
    assert len(images.flatten(1).unique(dim=0)) == 10
    assert all(batch.rows is None for batch in batches)


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    config = PBASConfig(**SMALL, patches_per_step=7)

    def first(seed: int, epoch: int) -> Tensor:
        return drawn(config, seed, epoch)[0].levels[0]

    assert torch.equal(first(1, 3), first(1, 3))
    assert not torch.equal(first(1, 3), first(1, 4))
    assert not torch.equal(first(1, 3), first(2, 3))


@pytest.mark.parametrize("images", [1, 3, 10])
def test_fixed_steps_give_whole_batches_of_any_dataset(images: int) -> None:
    batches = drawn(PBASConfig(**SMALL, steps_per_epoch=5), 0, 0, images)

    assert [len(batch.levels[0]) for batch in batches] == [4] * 5


def test_drawn_positions_are_distinct_and_within_the_batch() -> None:
    for batch in drawn(PBASConfig(**SMALL, patches_per_step=50), 0, 0):
        limit = 30 * len(batch.levels[0])
        assert batch.rows is not None
        assert len(batch.rows.unique()) == 50
        assert 0 <= batch.rows.min() <= batch.rows.max() < limit


# Equations


@settings(max_examples=40)
@given(positions=st.integers(2, 20), seed=st.integers(0, 2**31 - 1), degree=st.floats(0.05, 2))
def test_anomalies_lie_on_the_ray_at_one_distance(positions: int, seed: int, degree: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    features, centers = torch.randn(positions, 6, generator=generator), torch.randn(4, 6, generator=generator)

    step = ray_anomalies(features, centers, degree) - features

    length = float(degree * boundary_loss(features, centers))
    torch.testing.assert_close(step.norm(dim=1), torch.full((positions,), length), rtol=1e-3, atol=1e-4)
    cosine = F.cosine_similarity(step, features - centers[nearest_center(features, centers)])
    torch.testing.assert_close(cosine, torch.ones(positions), rtol=1e-3, atol=1e-3)


def test_losses_are_binary_cross_entropies() -> None:
    logits = torch.tensor([0.3, -2.0, 4.0, 1.0, -0.5])

    normal, anomalous = normal_loss(logits[:2]), anomaly_loss(logits[2:])

    torch.testing.assert_close(normal, F.binary_cross_entropy(logits[:2].sigmoid(), torch.zeros(2)))
    torch.testing.assert_close(anomalous, F.binary_cross_entropy(logits[2:].sigmoid(), torch.ones(3)))


def small_model(**changes: Any) -> PBAS:
    backbone = fixed_backbone(Features.channels, Features.grids)
    return PBAS(PBASConfig(**{**SMALL, **changes}), backbone, seed=0).train()


def model_with_centers(**changes: Any) -> tuple[PBAS, Tensor]:
    model = small_model(**changes)
    generator = torch.Generator().manual_seed(1)
    model.centers = torch.randn(5, 8, generator=generator)
    return model, torch.randn(12, 8, generator=generator)


def test_training_loss_equals_the_equations_written_out() -> None:
    model, features = model_with_centers(boundary_weight=0.5, discrimination_weight=2.0)
    anomalies = ray_anomalies(features, model.centers, model.config.anomaly_degree)
    logits = model.discriminator(torch.cat([features, anomalies]))
    normal, anomalous = normal_loss(logits[: len(features)]), anomaly_loss(logits[len(features) :])
    boundary = boundary_loss(features, model.centers)

    losses = model.feature_losses(features)

    torch.testing.assert_close(losses["loss"], 0.5 * boundary + 2.0 * (normal + anomalous))


def test_feature_on_its_centre_takes_no_step() -> None:
    """A single good image starts with every feature on its own centre."""
    model, features = model_with_centers()
    features[:3] = model.centers[:3]
    anomalies = ray_anomalies(features, model.centers, model.config.anomaly_degree)
    assert torch.equal(anomalies[:3], features[:3])
    expected = anomaly_loss(model.discriminator(torch.cat([features, anomalies]))[len(features) :])

    losses = model.feature_losses(features)

    torch.testing.assert_close(losses["loss_anomaly"], expected, atol=1e-5, rtol=1e-4)


def test_one_feature_hardly_off_its_centre_does_not_spoil_the_batch() -> None:
    model, _ = model_with_centers(width=64, level_width=64)
    generator = torch.Generator().manual_seed(2)
    model.centers = 5 * torch.randn(5, 64, generator=generator)
    features = torch.randn(12, 64, generator=generator)
    features[0] = model.centers[2] * (1 + 1e-7)

    losses = model.feature_losses(features)

    assert all(torch.isfinite(value) for value in losses.values())
    assert losses["loss_anomaly"] < 5


# Ablations of the paper's tables


@pytest.mark.parametrize("center", ["aligned", "average", "iterative", "kmeans"])
def test_every_kind_of_centre_has_a_row_a_position(center: str) -> None:
    model = small_model(center=center)

    model.fit_centers(FeatureBatches(Features(), sampling(model.config), seed=0, purpose="centre").epoch(0))

    assert model.centers.shape == (30, 8)
    assert torch.isfinite(model.centers).all()
    assert model.centers.any()


def test_average_centre_is_the_mean_of_all_images() -> None:
    features = Features()
    model = small_model(center="average")

    model.fit_centers(FeatureBatches(features, sampling(model.config), seed=0, purpose="centre").epoch(0))

    with torch.no_grad():
        rows = model.projector(model.embedding(features.levels).permute(0, 2, 3, 1).reshape(10, 30, 8))
    torch.testing.assert_close(model.centers, rows.mean(dim=0), atol=1e-5, rtol=1e-4)


def test_distances_to_the_centres_are_shown_batch_by_batch() -> None:
    features = Features()
    model = small_model()
    batches = FeatureBatches(features, sampling(model.config), seed=0, purpose="centre")

    model.fit_centers(batches.epoch(0))

    (chart,) = [shown for shown in model.diagnostics(features) if shown.title == "Distance to the centre"]
    assert len(chart.x) == len(list(batches.epoch(0)))
    with torch.no_grad():
        *_, last = batches.epoch(0)
        rows = model.projector(model.embedding(last.levels).permute(0, 2, 3, 1).flatten(0, 2))
        every = model.projector(model.embedding(features.levels).permute(0, 2, 3, 1).flatten(0, 2)).reshape(10, 30, 8)
    places, images = torch.arange(30), len(last.levels[0])
    sample = rows.reshape(images, 30, 8)[places % images, places]  # every place once, in turn from all images
    for name, centers in (("centres", model.centers), ("average centre", every.mean(dim=0))):
        nearest = centers[F.cosine_similarity(sample[:, None], centers[None], dim=2).argmax(dim=1)]
        assert chart.lines[name][-1] == pytest.approx(float((sample - nearest).norm(dim=1).mean()), rel=1e-4)
    assert not small_model(center="kmeans").diagnostics(features)


def test_centres_are_shown_as_the_images_that_they_stand_for() -> None:
    """Fig. 10: the pixels around a position follow its features, one position of one batch after another."""
    features = Features()
    model = small_model()
    passes = FeatureBatches(features, sampling(model.config), seed=0, purpose="centre")
    model.fit_centers(passes.epoch(0))

    (shown,) = [each for each in model.diagnostics(features) if each.title == "Centres as images"]

    pixels = np.stack([np.round(255 * (picture_of(row)[0, ::4, ::4] + 1) / 2) for row in range(len(features))])
    first, *others = passes.images(0)
    table = pixels[first].mean(axis=0).flatten()
    assert len(others) == len(model._alignments) >= 1
    for rows, nearest in zip(others, model._alignments, strict=True):
        before, smoothing = table, model.config.center_smoothing
        for position, center in enumerate(nearest.tolist()):
            table = table.copy()
            table[center] = (1 - smoothing) * table[center] + smoothing * pixels[rows].mean(axis=0).flatten()[position]
    label, last = shown.pictures[-1]
    assert label == f"centres after batch {1 + len(others)}"
    assert last.shape == (24, 20, 3)
    np.testing.assert_allclose(last[::4, ::4, 0].flatten(), table, atol=1.01)
    labels = dict(shown.pictures)
    np.testing.assert_allclose(labels["average centre"][::4, ::4, 0], pixels.mean(axis=0), atol=1.01)
    assert not np.array_equal(before, table)


def test_centres_without_the_projector_are_made_of_the_embedding() -> None:
    features = Features()
    model = small_model(center="average", center_features="embedded")

    model.fit_centers(FeatureBatches(features, sampling(model.config), seed=0, purpose="centre").epoch(0))

    with torch.no_grad():
        rows = model.embedding(features.levels).permute(0, 2, 3, 1).reshape(10, 30, 8)
    torch.testing.assert_close(model.centers, rows.mean(dim=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"synthesis": "none"},
        {"synthesis": "gaussian"},
        {"projector_depth": 0},
        {"projector_depth": 2, "discriminator_depth": 4, "hidden": None},
        {"center": "kmeans"},
        {"discriminator_optimiser": "adam"},
        {"precision": "bf16-mixed"},
    ],
    ids=str,
)
def test_every_ablation_trains(changes: dict[str, Any], tmp_path: Path) -> None:
    model, features = small_model(**changes), Features()
    model.fit_centers(FeatureBatches(features, sampling(model.config), seed=0, purpose="centre").epoch(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = RunFolder(tmp_path, LoopOptions(precision=model.config.precision, accelerator="cpu"))
    batches = FeatureBatches(features, sampling(model.config), seed=0)

    run.complete(model, TrainingStage("boundary", model.training_module(), batches, epochs=2))

    rows = run.metrics()
    assert [row["epoch"] for row in rows] == [0, 1]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValidationError):
        PBASConfig(projector_depth=0, synthesis="none")


def test_gaussian_noise_is_a_function_of_seed_and_step() -> None:
    model, features = model_with_centers(synthesis="gaussian")

    first, again, later = (model.feature_losses(features, step)["loss_anomaly"] for step in ((0, 1), (0, 1), (0, 2)))

    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_features_on_their_centres_do_not_move_in_training() -> None:
    """Rounding apart: two products of nearly equal vectors must not be blown up by a vanishing distance."""
    source = torch.Generator().manual_seed(0)
    centers = torch.randn(6, 16, generator=source)
    features = torch.cat([centers * (1 + 1e-7), centers[:3] + torch.randn(3, 16, generator=source)])
    distance = (features - centers[nearest_center(features, centers)]).norm(dim=1)

    lengths = ray_lengths(distance, distance.mean(), 0.25)

    assert (lengths[:6] == 0).all()
    assert (lengths[6:] > 0).all()


def test_paper_preset_decays_no_weight_of_the_discriminator() -> None:
    paper, official = PBAS.presets["paper"], PBAS.presets["official"]

    assert (paper.discriminator_optimiser, paper.discriminator_weight_decay) == ("adam", 0.0)
    assert (official.discriminator_optimiser, official.discriminator_weight_decay) == ("adamw", 0.01)


def test_figures_of_the_sweeps_bear_the_numbers_of_the_print() -> None:
    page = (Path(__file__).parents[2] / "docs" / "research" / "pbas.md").read_text(encoding="utf-8")
    rows = dict(line.split(" | ")[:2] for line in page.splitlines() if line.startswith("| Fig. "))

    assert "--backbone" in rows["| Fig. 12a, backbone"]
    assert "anomaly_degree" in rows["| Fig. 13, anomaly degree"]
    assert [row for row in rows if "12a" in row or "13" in row] == ["| Fig. 12a, backbone", "| Fig. 13, anomaly degree"]
