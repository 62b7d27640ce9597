"""GLASS beside its golden cases: the ascent against automatic differentiation, switches, hypotheses, findings."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.models.stand_ins import fixed_backbone

from flawsmith.losses import hard_examples
from flawsmith.models.components.batches import FeatureBatch, FeatureBatches, PairedBatch
from flawsmith.models.components.fast import HiddenAscent
from flawsmith.models.components.heads import Discriminator
from flawsmith.models.glass import functional
from flawsmith.models.glass.config import PRESETS, GLASSConfig
from flawsmith.models.glass.functional import (
    gradient_ascent,
    hypersphere_radius,
    project_local,
    truncated_projection,
)
from flawsmith.models.glass.hypothesis import JUDGED_GEOMETRY
from flawsmith.models.glass.model import GLASS
from flawsmith.runtime.errors import FlawsmithError

TINY = {"patch_size": 1, "level_width": 12, "width": 12, "hidden": 8, "hypothesis": "manifold"}


@pytest.mark.parametrize(("normal", "synthetic", "chunk"), [(40, 40, 2**20), (7, 33, 64), (50, 9, 300)])
def test_ascent_in_hidden_space_is_the_ascent_of_the_joint_batch(
    normal: int, synthetic: int, chunk: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawsmith.models.components.fast.CHUNK_BYTES", chunk)
    generator = torch.Generator().manual_seed(seed)
    plain = Discriminator(24, 10).double().train()
    ours = copy.deepcopy(plain).float()
    u, g = (torch.randn(rows, 24, generator=generator) for rows in (normal, synthetic))
    expected = gradient_ascent(u.double(), g.double(), plain, step_size=0.05, steps=6)
    first = ours.blocks[0].linear

    ascent = HiddenAscent(ours, first(u), first(g), step_size=0.05)
    for _ in range(6):
        ascent.step()

    # A unit on the kink of the leaky ReLU may fall on either side of it in float32.
    close = torch.isclose((g + ascent.moved()).double(), expected, atol=1e-4, rtol=1e-4)
    assert close.float().mean() > 0.97
    torch.testing.assert_close(ascent.hidden, first(g + ascent.moved()), atol=1e-4, rtol=1e-4)
    norms = [discriminator.blocks[0].norm for discriminator in (ours, plain)]
    torch.testing.assert_close(norms[0].running_mean.double(), norms[1].running_mean, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(norms[0].running_var.double(), norms[1].running_var, atol=1e-4, rtol=1e-3)
    assert norms[0].num_batches_tracked == norms[1].num_batches_tracked == 6


def test_ascent_goes_towards_what_looks_normal() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(24, 10).train()
    u, g = torch.randn(60, 24), torch.randn(60, 24) + 1
    first = discriminator.blocks[0].linear
    ascent = HiddenAscent(discriminator, first(u), first(g), step_size=0.1)

    losses = [float(F.softplus(-ascent.step().logits).mean().detach()) for _ in range(10)]

    assert losses == sorted(losses)


def test_truncation_keeps_direction_and_reports_what_it_moved() -> None:
    offset = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.9, 1.2]])

    found = truncated_projection(offset, 1.0, 2.0)

    torch.testing.assert_close(found.offset.norm(dim=1), torch.tensor([2.0, 1.0, 1.5]))
    torch.testing.assert_close(F.cosine_similarity(found.offset, offset), torch.ones(3))
    assert found.moved.tolist() == [True, True, False]


def test_radius_covers_the_share_of_features_that_it_says() -> None:
    features = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))

    radius = hypersphere_radius(features, torch.zeros(4000, 5), 0.75)

    assert (features.norm(dim=1) <= radius).float().mean() == pytest.approx(0.75, abs=1e-3)


def test_forged_features_are_pushed_into_their_shell_and_others_left_alone() -> None:
    features = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    anomalous = torch.arange(30) < 10

    pushed = project_local(features, anomalous, torch.zeros(30, 6), 4.0, 8.0)

    assert torch.equal(pushed[10:], features[10:])
    assert bool((pushed[:10].norm(dim=1) > 3.999).all())


def test_hard_positions_are_those_the_discriminator_gets_wrong() -> None:
    probability, target = torch.tensor([0.9, 0.1, 0.8, 0.2]), torch.tensor([1.0, 0.0, 0.0, 1.0])

    assert hard_examples(probability, target, quantile=0.5).tolist() == [False, False, True, True]
    assert hard_examples(probability, target, quantile=0.0).all()


@pytest.fixture
def batch() -> PairedBatch:
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(3, 12, 4, 5, generator=generator) for _ in range(2)]
    return PairedBatch(FeatureBatch(levels[:1], None, (0, 0)), levels[1:], torch.arange(60) % 4 == 0)


def model(**settings: Any) -> GLASS:
    config = GLASSConfig(**{"strides": (8,), **TINY, **settings})
    return GLASS(config, fixed_backbone([12], [(4, 5)]), seed=0).train()


@pytest.mark.parametrize(
    ("settings", "losses"),
    [
        ({}, {"loss_normal", "loss_gas", "loss_las"}),
        ({"las": False}, {"loss_normal", "loss_gas"}),
        ({"gas": "none"}, {"loss_normal", "loss_las"}),
        ({"gas": "noise", "las": False}, {"loss_normal", "loss_gas"}),
    ],
)
def test_switches_of_table_4_choose_the_losses(settings: dict[str, Any], losses: set[str], batch: PairedBatch) -> None:
    if settings.get("las") is False:
        batch = PairedBatch(batch.normal, None, None)

    found = model(**settings).losses(batch)

    parts = {name: value for name, value in found.items() if name.startswith("loss_")}
    assert set(parts) == losses
    torch.testing.assert_close(found["loss"], torch.stack(list(parts.values())).sum())


@pytest.mark.parametrize("settings", [{}, {"las": False}, {"gas": "none"}, {"gas": "noise"}, {"projector_depth": 2}])
def test_folded_losses_of_drawn_positions_are_the_plain_ones(settings: dict[str, Any], batch: PairedBatch) -> None:
    """With their gradients, the record's radius and the running statistics; two steps, so that weights have moved."""
    rows = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:40]
    cells = batch.cells
    assert cells is not None
    drawn = FeatureBatch(batch.normal.levels, rows, (0, 0))
    pair = (
        PairedBatch(drawn, batch.synthetic, cells[rows])
        if settings.get("las", True)
        else PairedBatch(drawn, None, None)
    )
    config = {"inner_radius": 0.02, "outer_radius": 0.1, "noise": 0.05, **settings}
    folding, plain = (model(**config) for _ in range(2))
    optimizers = [each.make_optimizers() for each in (folding, plain)]

    for _ in range(2):
        losses = folding.losses(pair), plain.branch_losses(plain.branches(pair))
        assert [name for name in losses[0] if name != "fallback_rate"] == list(losses[1])
        for name, value in losses[1].items():
            torch.testing.assert_close(losses[0][name], value, rtol=1e-4, atol=1e-6, msg=name)
        for each, found in zip(optimizers, losses, strict=True):
            for optimizer in each:
                optimizer.zero_grad()
            found["loss"].backward()
        gradients = [[weight.grad for weight in each.parameters()] for each in (folding, plain)]
        for ours, theirs in zip(*gradients, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        for each in optimizers:
            for optimizer in each:
                optimizer.step()
    norms = [each.discriminator.blocks[0].norm for each in (folding, plain)]
    # Adam's first steps are as long for gradients that are rounding alone.
    torch.testing.assert_close(norms[0].running_mean, norms[1].running_mean, rtol=1e-2, atol=1e-3)


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to learn"):
        GLASSConfig(las=False, gas="none")


def test_projection_of_the_released_code_moves_nothing_at_its_own_width(seed: int) -> None:
    config = PRESETS["official"]
    noise = config.noise * torch.randn(200, config.width, generator=torch.Generator().manual_seed(seed))

    assert not truncated_projection(noise, config.inner_radius, config.outer_radius).moved.any()
    assert truncated_projection(noise, PRESETS["paper"].inner_radius, PRESETS["paper"].outer_radius).moved.all()


@pytest.mark.parametrize("gas", ["projected", "ascent"])
def test_anomalies_lie_between_the_radii_of_their_hypothesis(gas: str, batch: PairedBatch) -> None:
    for hypothesis in ("manifold", "hypersphere"):
        made = model(hypothesis=hypothesis, gas=gas, noise=0.5)
        found = made.branches(batch)
        origin = found.normal if hypothesis == "manifold" else made.centers().repeat(3, 1)
        lengths = (found.gas - origin).norm(dim=1)
        inner, outer = (0.5, 1.0) if hypothesis == "manifold" else (float(found.radius), 2 * float(found.radius))
        inside = ((lengths > inner - 1e-4) & (lengths < outer + 1e-4)).all()
        assert bool(inside) == (gas == "projected")


def test_one_centre_for_all_positions_is_the_mean_of_their_centres() -> None:
    each, one = model(), model(center="global")
    each.mean_embedding = one.mean_embedding = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(one.centers(), each.centers().mean(0, keepdim=True).expand(20, 12))


def test_an_epoch_of_the_released_code_ends_after_fifty_steps() -> None:
    class Many:
        channels, grids = (1,), ((2, 2),)

        def __len__(self) -> int:
            return self.images

        def __init__(self, images: int) -> None:
            self.images = images

    official, paper = (
        [FeatureBatches(Many(count), PRESETS[name].sampling, seed=0) for count in (97, 900)]  # type: ignore[arg-type]
        for name in ("official", "paper")
    )

    assert [len(batches) for batches in official] == [13, 50]
    assert [len(batches) for batches in paper] == [13, 113]
    for batches in (*official, *paper):
        drawn = list(batches.images(0))
        assert len(drawn) == len(batches)
        assert len(np.unique(np.concatenate(drawn))) == sum(map(len, drawn)), "no image twice in an epoch"


def constant_images(brightness: float) -> list[np.ndarray]:
    """One image of one grey level, as the judge gets it."""
    mean, std = (np.array(v)[:, None, None] for v in (JUDGED_GEOMETRY.mean, JUDGED_GEOMETRY.std))
    return [(np.full((3, *JUDGED_GEOMETRY.size), brightness) - mean) / std]


@pytest.mark.parametrize("brightness", [0.0, 0.5], ids=["black", "grey"])
def test_constant_images_are_judged_manifold(brightness: float) -> None:
    made = model(hypothesis="published")

    made.fit_hypothesis(constant_images(brightness), dataset="parts", category="bolt")

    assert made.hypothesis == "manifold"
    if brightness:
        assert "judged" in str(made.findings()["decided"])


def test_published_decision_counts_only_where_it_is_asked_for() -> None:
    decided = {}
    for setting in ("published", "auto", "manifold"):
        made = model(hypothesis=setting)
        made.fit_hypothesis(constant_images(0.5), dataset="mvtec", category="screw")
        decided[setting] = made

    assert decided["published"].hypothesis == "hypersphere"
    assert decided["auto"].hypothesis == decided["manifold"].hypothesis == "manifold"
    assert decided["manifold"].findings()["decided"] == "given in the settings"
    assert decided["manifold"].findings()["judge: hypothesis"] == "manifold"


def test_what_was_decided_is_part_of_the_state() -> None:
    judged, other = model(hypothesis="published"), model(hypothesis="published")
    judged.fit_hypothesis(constant_images(0.5), dataset="mvtec", category="screw")

    other.load_trained_state(judged.trained_state())

    assert other.hypothesis == "hypersphere"
    assert other.findings() == judged.findings()


def test_model_file_and_report_say_what_was_decided(trained: Callable[[str], Any]) -> None:
    result = trained("glass")

    findings = result.bundle.spec.training.findings
    page = Path(result.report).read_text(encoding="utf-8")

    assert findings["hypothesis"] in ("manifold", "hypersphere")
    assert isinstance(findings["judge: radius"], float)
    for shown in ("What the judge sees", "Radius of the normal features", "Features after training", "Synthetic flaws"):
        assert shown in page


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"textures": "nowhere"}, "nowhere"),
        ({"foregrounds": "nowhere"}, "nowhere"),
        ({"set": {"recipe": "glas"}}, "known recipes are glass"),
    ],
)
def test_sources_that_are_not_there_leave_no_run_behind(
    settings: dict[str, Any], said: str, parts: Path, tmp_path: Path, train_tiny: Callable[..., Any]
) -> None:
    with pytest.raises(FlawsmithError, match=said):
        train_tiny("glass", parts, tmp_path / "run", **settings)

    assert not (tmp_path / "run").exists()


def test_equations_bear_the_numbers_of_the_print() -> None:
    """Noise, radii and hypersphere are unnumbered there."""
    numbered = {
        1: functional.gradient_ascent_step,
        2: functional.truncated_projection,
        3: functional.combine_masks,
        4: functional.overlay,
        5: functional.normal_loss,
        6: functional.anomaly_loss,
        7: functional.local_loss,
        8: functional.total_loss,
        9: functional.anomaly_map,
    }

    page = (Path(__file__).parents[2] / "docs" / "methods" / "glass.md").read_text(encoding="utf-8")
    for number, function in numbered.items():
        assert (function.__doc__ or "").startswith(f"Eq. {number}:")
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {number}, "))
        assert f"`{function.__name__}`" in row
