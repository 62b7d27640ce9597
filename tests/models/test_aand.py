"""AAND and RD4AD: what the golden cases and the contract do not cover, and mistakes of the released code."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flawsmith.data.seeding import Shard
from flawsmith.features.backbones import load_backbone
from flawsmith.features.patch_embedding import as_rows
from flawsmith.models.aand import functional
from flawsmith.models.aand.config import PRESETS, RD4AD_PRESETS, AANDConfig, published_foreground
from flawsmith.models.aand.functional import (
    amplification_loss,
    amplify,
    amplify_by_truth,
    anomaly_weight,
    cells_of,
    cosine_distance,
    distillation_loss,
    hard_distillation_loss,
    position_encoding,
    rate_factor,
)
from flawsmith.models.aand.model import AAND, RD4AD
from flawsmith.models.aand.networks import Amplifiers, StudentLayout, TokenDecoder, layout_for, reverse_student
from flawsmith.models.aand.training import (
    AdvancedTeacher,
    AmplificationBatches,
    StageTraining,
    SyntheticCells,
    amplification_losses,
    distillation_losses,
    random_cells,
    random_subset,
)
from flawsmith.models.base import SyntheticImages
from flawsmith.models.components import fast
from flawsmith.models.components.batches import FeatureBatch, FeatureBatches, Sampling
from flawsmith.models.components.fast import cosine_distance_map
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.training.trainer import MetricsFile

CHANNELS, GRIDS = (4, 6, 8), ((12, 18), (6, 9), (3, 5))
SMALL = StudentLayout(decoder=(1, 1, 1), embedding=1, heads=True, widths=(4, 8, 8))


def random_levels(images: int = 2, seed: int = 0) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(images, count, *grid, generator=source) for count, grid in zip(CHANNELS, GRIDS, strict=True)]


class Features:
    """Level maps of a few images, and which were asked for."""

    channels, grids = CHANNELS, GRIDS

    def __init__(self) -> None:
        self.levels, self.asked = random_levels(5), list[int]()

    def __len__(self) -> int:
        return 5

    def batch(self, rows: Any) -> list[Tensor]:
        self.asked += [int(row) for row in rows]
        return [level[list(rows)] for level in self.levels]


def random_batch(seed: int = 0) -> SyntheticCells:
    source = torch.Generator().manual_seed(seed)
    anomalous = [torch.rand(2, *grid, generator=source) < 0.3 for grid in GRIDS]
    foreground = [torch.rand(2, *grid, generator=source) < 0.8 for grid in GRIDS]
    return SyntheticCells(random_levels(seed=seed), anomalous, foreground, step=(0, 0))


def small_amplifiers(config: AANDConfig) -> Amplifiers:
    torch.manual_seed(0)
    return Amplifiers(CHANNELS, GRIDS, components=config.amplification, memories=5, residual=config.residual)


def losses_of(amplifiers: Amplifiers, batch: SyntheticCells, config: AANDConfig) -> dict[str, Tensor]:
    return amplification_losses(amplifiers, batch, config, random_cells(config, 0, batch.step))


def tiny_model(kind: type[AAND] = AAND, **settings: Any) -> AAND:
    return kind.from_preset(
        "fast",
        **{
            "image_size": (64, 96),
            "memories": 3,
            "bank_size": 8,
            "student_widths": (8, 8, 8),
            "student_blocks": (1, 1, 1),
            **settings,
        },
    )


# First stage


def test_drawn_cells_alone_give_the_loss_and_gradients_of_whole_maps() -> None:
    config, batch = AANDConfig(memories=5, normal_cells=20, anomalous_cells=15), random_batch()
    amplifiers = small_amplifiers(config)
    whole = copy.deepcopy(amplifiers)
    draw = random_cells(config, 0, (0, 0))

    losses_of(amplifiers, batch, config)["loss_amplification"].backward()
    amplified = whole.amplified(batch.levels, [cells[:, None].float() for cells in batch.anomalous])
    losses = []
    for number, level in enumerate(batch.levels):
        normal, anomalous = draw(batch.anomalous[number], batch.foreground[number], number)
        rows = as_rows(level)
        moved = as_rows(amplified[number].features)[anomalous]
        losses.append(amplification_loss(moved, rows[anomalous], rows[normal], margin=0.3))
    torch.stack(losses).sum().backward()

    pairs = zip(amplifiers.parameters(), whole.parameters(), strict=True)
    gradients = [(of_cells.grad, of_maps.grad) for of_cells, of_maps in pairs if of_cells.grad is not None]
    assert len(gradients) == 3 * 6, "the generators' weights and biases, and nothing of the gates"
    for of_cells, of_maps in gradients:
        torch.testing.assert_close(of_cells, of_maps, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("components", ["both", "generator"])
@pytest.mark.parametrize("missing", ["normal", "anomalous", "foreground"])
def test_a_batch_without_one_kind_of_cells_has_a_finite_loss(missing: str, components: str) -> None:
    batch = random_batch()
    full, empty = ([torch.full_like(cells, value) for cells in batch.anomalous] for value in (True, False))
    changed = {"normal": {"anomalous": full}, "anomalous": {"anomalous": empty}, "foreground": {"foreground": empty}}
    batch = SyntheticCells(**{**vars(batch), **changed[missing]})
    config = AANDConfig(memories=5, amplification=components)
    amplifiers = small_amplifiers(config)

    losses = losses_of(amplifiers, batch, config)
    losses["loss"].backward()

    assert all(torch.isfinite(value) for value in losses.values())
    assert losses["loss_amplification"] == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in amplifiers.parameters())


def test_gate_and_pairs_stay_in_float32_under_autocast() -> None:
    gate, (level, *_) = small_amplifiers(AANDConfig())[0].gate, random_levels()
    rows = [as_rows(maps)[:40] for maps in (level, level.flip(0), level.flip(2))]

    with torch.autocast("cpu", torch.bfloat16):
        matches, loss = gate.matches(level), amplification_loss(*rows, margin=0.3)

    assert matches.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(loss, amplification_loss(*rows, margin=0.3))


def test_gradients_of_pairs_are_computed_in_float32_too() -> None:
    model, rows = tiny_model(), [as_rows(level)[:40] for level in random_levels()[:1] * 3]
    training = StageTraining(model, model.losses, model.make_optimizers)
    moved = [rows[0].flip(0).requires_grad_() for _ in range(2)]

    with torch.autocast("cpu", torch.bfloat16):
        training.backward(amplification_loss(moved[0], rows[1], rows[2].flip(1), margin=0.3))
    amplification_loss(moved[1], rows[1], rows[2].flip(1), margin=0.3).backward()

    assert torch.equal(moved[0].grad, moved[1].grad) and moved[0].grad.any()


def test_truth_weights_the_residuals_so_that_the_gate_learns_from_the_focal_loss_alone() -> None:
    for weight, learns in (("truth", False), ("predicted", True)):
        config = AANDConfig(memories=5, gate_weight=weight)
        amplifiers = small_amplifiers(config)

        losses_of(amplifiers, random_batch(), config)["loss_amplification"].backward()

        assert any(part.gate.memory.grad is not None for part in amplifiers) == learns


def test_truth_amplifies_anomalous_positions_alone() -> None:
    level, *_ = random_levels()
    cells = torch.rand(2, *GRIDS[0], generator=torch.Generator().manual_seed(0)) < 0.5

    amplified = amplify_by_truth(level, residual := level.flip(1), cells)

    assert torch.equal(as_rows(amplified)[~cells.flatten()], as_rows(level)[~cells.flatten()])
    assert torch.equal(as_rows(amplified)[cells.flatten()], as_rows(amplify(level, residual))[cells.flatten()])


@pytest.mark.parametrize("residual", ["tanh", "sigmoid", "learnable"])
def test_residuals_are_what_table_vii_says(residual: str) -> None:
    generator = small_amplifiers(AANDConfig(residual=residual))[0].generator
    level, *_ = random_levels()

    delta, raw = generator(level), generator.mlp(level)

    expected = {"tanh": raw.tanh() * level, "sigmoid": raw.sigmoid() * level, "learnable": raw}[residual]
    torch.testing.assert_close(delta, expected)
    torch.testing.assert_close(generator.of_rows(as_rows(level)), as_rows(expected))


def test_an_amplifier_without_a_gate_amplifies_every_position() -> None:
    config, levels = AANDConfig(amplification="generator"), random_levels()
    amplifiers = small_amplifiers(config)

    for level, amplified in zip(levels, amplifiers.amplified(levels), strict=True):
        assert amplified.gate is None
        torch.testing.assert_close(amplified.features, level + amplified.residual)
    assert "loss_focal" not in losses_of(amplifiers, random_batch(), config)


class BlankFlaws:
    """Synthetic images without a flaw, whose first channel is the number of the image."""

    def batches(self, rows: Any, epoch: int, shard: Shard) -> Any:
        for images in shard.of(rows):
            levels = [torch.tensor(images)[:, None, None, None].expand(-1, 1, *grid).float() for grid in GRIDS]
            masks = torch.zeros(len(images), 12, 18, dtype=torch.bool).numpy()
            yield SyntheticImages(levels, masks, ~masks, fallbacks=1)

    def examples(self, count: int) -> Any:
        return []


@pytest.mark.parametrize("refresh", [1, 3])
def test_processes_share_the_first_stages_batches_and_their_draws(refresh: int) -> None:
    def batches() -> AmplificationBatches:
        images = FeatureBatches(Features(), Sampling(2, steps_per_epoch=4), seed=0, purpose="amplification")
        return AmplificationBatches(images, BlankFlaws(), share=0.3, refresh=refresh, seed=0)

    alone = list(batches().epoch(0))
    first, second = (list(batches().epoch(0, Shard(rank, 2))) for rank in (0, 1))

    assert [batch.step for batch in alone] == [(0, number) for number in range(4)]
    assert [batch.step for batch in second] == [(0, 1), (0, 3)]
    for shared, batch in zip([first[0], second[0], first[1], second[1]], alone, strict=True):
        assert torch.equal(shared.levels[0], batch.levels[0]) and batch.fallback_rate == 0.5


def test_cells_drawn_are_distinct_true_ones_and_a_function_of_the_seed() -> None:
    cells = torch.rand(200, generator=torch.Generator().manual_seed(1)) < 0.4

    first, second, other = (random_subset(cells, 30, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))

    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert len(set(first.tolist())) == 30
    assert cells[first].all()


def test_a_cell_belongs_to_a_mask_that_covers_more_than_the_share() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :4, :1] = True  # a quarter of the upper left cell
    mask[0, 4:, 4:6] = True  # half of the lower right one

    assert cells_of(mask, (2, 2), share=0.3).tolist() == [[[False, False], [False, True]]]
    assert cells_of(mask, (2, 2), share=0.2).tolist() == [[[True, False], [False, True]]]


def test_gates_are_weights_of_a_softmax_over_both_memories() -> None:
    gate, (level, *_) = small_amplifiers(AANDConfig())[0].gate, random_levels()

    matches = gate.matches(level)

    torch.testing.assert_close(matches.sum(dim=1), torch.ones(2, *GRIDS[0]))
    torch.testing.assert_close(gate(level)[:, 0], 1 - matches[:, :5].sum(dim=1))


def test_a_gate_in_one_step_and_its_gradients_equal_equations_3_and_4() -> None:
    gates = [small_amplifiers(AANDConfig(memories=5))[0].gate for _ in range(2)]
    level, *_ = random_levels()
    upstream = torch.randn(2, 1, *GRIDS[0], generator=torch.Generator().manual_seed(0))

    weights = gates[0](level), anomaly_weight(gates[1].matches(level))
    for weight in weights:
        (weight * upstream).sum().backward()

    torch.testing.assert_close(*weights)
    for of_step, of_equations in zip(*(gate.parameters() for gate in gates), strict=True):
        torch.testing.assert_close(of_step.grad, of_equations.grad, rtol=1e-4, atol=1e-6)


def test_positions_are_computed_for_any_grid_and_saved_with_the_model() -> None:
    amplifiers = Amplifiers(CHANNELS, GRIDS, memories=5)

    for number, (count, grid) in enumerate(zip(CHANNELS, GRIDS, strict=True)):
        torch.testing.assert_close(amplifiers.state_dict()[f"{number}.gate.position"], position_encoding(count, grid))
    encoding = position_encoding(8, (3, 5))
    assert torch.equal(encoding[:4, 0], encoding[:4, 2]), "the first half encodes the column alone"
    assert torch.equal(encoding[4:, :, 0], encoding[4:, :, 4]), "the other half encodes the row alone"
    assert position_encoding(7, (2, 2)).shape == (7, 2, 2)


# Second stage


def test_distillation_trains_the_student_and_nothing_else() -> None:
    model = tiny_model()
    (optimizer,) = model.make_optimizers()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    model.losses(torch.randn(2, 3, 64, 96))["loss"].backward()
    optimizer.step()

    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"student"}
    assert all(parameter.grad is None for parameter in model.amplifiers.parameters())


def test_amplification_trains_the_amplifiers_and_nothing_else() -> None:
    model = tiny_model()
    (optimizer,) = model.make_amplification_optimizers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    levels = model.backbone(torch.randn(2, 3, 64, 96))
    cells = [torch.rand(2, *grid, generator=torch.Generator().manual_seed(0)) < 0.5 for grid in model.grids]
    everywhere = [torch.ones_like(anomalous) for anomalous in cells]

    model.amplification_losses(SyntheticCells(levels, cells, everywhere))["loss"].backward()
    optimizer.step()

    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"amplifiers"}
    assert {name.split(".")[2] for name in changed} == {"gate", "generator"}


def test_images_have_the_loss_of_the_advanced_teachers_maps() -> None:
    model, images = tiny_model().eval(), torch.randn(2, 3, 64, 96)

    with torch.no_grad():
        levels = model.amplifiers(model.backbone(images))
        of_maps, of_images = model.losses(FeatureBatch(levels)), model.losses(images)

    assert of_maps.keys() == of_images.keys() == {"loss", "loss_distillation", "loss_hard"}
    assert of_maps["loss"] == of_images["loss"] == of_maps["loss_distillation"] + of_maps["loss_hard"]


def test_the_teacher_is_computed_once_and_is_the_same_without_room_for_it() -> None:
    amplifiers, features = small_amplifiers(AANDConfig()), Features()
    cached, recomputed = (AdvancedTeacher(features, amplifiers, room=room) for room in (10**9, 0))

    first = cached.batch([3, 1])
    calls = len(features.asked)
    again, other = cached.batch([1, 3]), recomputed.batch([3, 1])

    assert calls == 2
    assert features.asked[calls:] == [3, 1], "only the one without room asked again"
    for of_first, of_again, of_other in zip(first, again, other, strict=True):
        assert torch.equal(of_first, of_again.flip(0)) and torch.equal(of_first, of_other)
    whole = amplifiers(features.batch([3, 1]))
    for of_first, of_whole in zip(first, whole, strict=True):
        torch.testing.assert_close(of_first, of_whole)


def test_the_hard_loss_takes_the_worst_positions_of_every_image_and_all_where_there_are_fewer() -> None:
    teacher, student = random_levels(seed=1)[2], random_levels(seed=2)[2]
    distance = 1 - torch.nn.functional.cosine_similarity(teacher, student, dim=1)

    worst = distance.flatten(1).sort(descending=True).values

    torch.testing.assert_close(hard_distillation_loss(teacher, student, 4), worst[:, :4].mean())
    torch.testing.assert_close(hard_distillation_loss(teacher, student, 1000), distance.mean())


def test_fast_amplification_loss_and_its_gradient_equal_equation_7_and_are_0_where_there_are_no_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    moved, anomalous, normal = (torch.randn(count, 6, generator=generator) for count in (9, 9, 14))
    inputs = [moved.clone().requires_grad_() for _ in range(2)]

    losses = [
        loss(rows, anomalous, normal, margin=0.3)
        for loss, rows in zip((fast.amplification_loss, amplification_loss), inputs, strict=True)
    ]
    for loss in losses:
        loss.backward()

    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(rows.grad for rows in inputs))
    assert fast.amplification_loss(moved[:0], anomalous[:0], normal, margin=0.3) == 0


@pytest.mark.parametrize("hard_positions", [0, 5])
def test_losses_of_the_second_stage_and_their_gradients_equal_equations_10_to_12(hard_positions: int) -> None:
    students = [reverse_student(CHANNELS, GRIDS, SMALL) for _ in range(2)]
    students[1].load_state_dict(students[0].state_dict())
    teacher = random_levels()

    losses = distillation_losses(students[0], teacher, hard_positions=hard_positions)
    pairs = list(zip(teacher, students[1](teacher), strict=True))
    distillation, hard = sum(distillation_loss(*pair) for pair in pairs), torch.zeros(())
    if hard_positions:
        hard = sum((hard_distillation_loss(*pair, hard_positions) for pair in pairs), start=hard)
    losses["loss"].backward()
    (distillation + hard).backward()

    torch.testing.assert_close(losses["loss"], distillation + hard)
    torch.testing.assert_close(losses["loss_distillation"], distillation)
    for of_sums, of_equations in zip(*(student.parameters() for student in students), strict=True):
        torch.testing.assert_close(of_sums.grad, of_equations.grad, rtol=1e-3, atol=1e-6)


def test_distances_by_sums_over_channels_equal_equation_13_and_are_1_where_there_is_nothing() -> None:
    first, second = random_levels(seed=1)[0], random_levels(seed=2)[0]
    first[0, :, 0, 0] = second[0, :, 0, 0] = 0
    second[1] = first[1]

    distances = cosine_distance_map(first, second)

    torch.testing.assert_close(distances, cosine_distance(first, second), rtol=1e-5, atol=1e-6)
    assert distances[0, 0, 0] == 1


def test_the_rate_falls_where_the_released_code_forgets_it() -> None:
    rates = [0.005 * rate_factor(epoch, factor=0.2, milestones=(0.8 * 99, 0.9 * 99)) for epoch in range(99)]

    assert rates[:80] == [0.005] * 80
    assert rates[80:90] == pytest.approx([0.001] * 10)
    assert rates[90:] == pytest.approx([0.0002] * 9)


class SmallSet:
    """Features of a few images behind the training data's interface."""

    seed, image_size, dataset, category = 0, (64, 96), "bolt", "bolt"

    def __init__(self, model: AAND) -> None:
        self.images = torch.randn(5, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        self.channels, self.grids = model.backbone.channels, model.grids
        self._levels = model.backbone(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Any) -> list[Tensor]:
        return [level[list(rows)] for level in self._levels]

    def features(self) -> SmallSet:
        return self

    def synthetic(self, *_: Any, **__: Any) -> BlankFlaws:
        return BlankFlaws()


def test_both_stages_follow_the_rate_and_the_second_completes_the_model() -> None:
    model = tiny_model(amplification_epochs=10, epochs=20, score_norm="none", bank=())
    stages = {stage.name: stage for stage in model.stages(SmallSet(model))}

    assert [(stage.epochs, stage.completes) for stage in stages.values()] == [(10, False), (20, True)]
    for name, stage in stages.items():
        (optimizer,), (schedule,) = stage.module.configure_optimizers()
        tenth, rates = stage.epochs // 10, []
        for _ in range(stage.epochs):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert rates == pytest.approx([0.005] * 8 * tenth + [0.001] * tenth + [0.0002] * tenth), name
    assert model.findings() == {"foreground": "auto (given)"}


@pytest.mark.parametrize(
    ("architecture", "block", "squeeze", "decoder", "heads"),
    [
        ("wide_resnet50_2.tv_in1k", "bottleneck", 2, (3, 4, 6), False),
        ("resnet50", "bottleneck", 4, (3, 4, 6), False),
        ("resnet18", "basic", 2, (2, 2, 2), False),
        ("tf_efficientnet_lite0.in1k", "bottleneck", 2, (3, 4, 6), True),
    ],
)
def test_the_decoder_mirrors_a_resnet_and_closes_other_backbones_with_heads(
    architecture: str, block: str, squeeze: int, decoder: tuple[int, ...], heads: bool
) -> None:
    layout = layout_for(architecture)

    assert (layout.block, layout.decoder, layout.heads) == (block, decoder, heads)
    assert block == "basic" or layout.squeeze == squeeze


@pytest.mark.parametrize("block", ["bottleneck", "basic"])
def test_the_student_gives_the_teachers_shapes_on_odd_grids(block: Any) -> None:
    layout = StudentLayout(block=block, decoder=(1, 2, 1), embedding=2)
    student = reverse_student(CHANNELS, GRIDS, layout)

    with torch.no_grad():
        levels = student(random_levels())

    assert [level.shape for level in levels] == [level.shape for level in random_levels()]
    assert min(level.min().item() for level in levels) == 0, "without heads a level comes out of a ReLU"
    with torch.no_grad():
        headed = reverse_student(CHANNELS, GRIDS, SMALL)(random_levels())
    assert all(level.min().item() < 0 for level in headed)


def test_gates_alone_are_a_model_without_a_student() -> None:
    model = tiny_model(amplification="gate", score_norm="none", bank=()).eval()

    assert model.student is None
    (stage,) = model.stages(SmallSet(model))
    assert (stage.name, stage.completes) == ("amplification", True)
    with torch.inference_mode():
        output = model(torch.randn(2, 3, 64, 96))
        assert model.feature_maps(torch.randn(2, 3, 64, 96)) == {}
    assert (output.map >= 0).all() and (output.map <= 3).all(), "three weights between 0 and 1"


def test_rd4ad_is_the_same_code_with_both_ideas_switched_off() -> None:
    model = tiny_model(RD4AD)

    assert [stage.name for stage in model.stages(SmallSet(model))] == ["distillation", "norm"]
    assert model.amplifiers is None
    assert model.losses(torch.randn(2, 3, 64, 96)).keys() == {"loss", "loss_distillation"}
    off = {"amplification": "none", "hard_positions": 0, "bank": ()}
    assert RD4AD_PRESETS["fast"] == PRESETS["fast"].model_copy(update=off)
    schedule = {"epochs": 120, "lr_milestones": (0.8, 0.9), "interpolation": "bicubic"}  # what AAND compares with
    zero = AANDConfig(**{**RD4AD_PRESETS["official"].model_dump(), **schedule})
    assert zero == PRESETS["official"].model_copy(update=off)


@pytest.mark.parametrize("kind", [AAND, RD4AD])
def test_the_export_form_is_equal_and_leaves_the_model_as_it_is(kind: type[AAND]) -> None:
    model = tiny_model(kind).eval()
    images, before = torch.randn(2, 3, 64, 96), list(model.state_dict())

    with torch.inference_mode():
        folded = model.export_form()
        expected, output = model(images), folded(images)

    torch.testing.assert_close(output.map, expected.map, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == before
    assert all(parameter.requires_grad for parameter in model.student.parameters())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.student.modules())


def test_the_state_is_the_whole_model() -> None:
    model, other = tiny_model(seed=0).eval(), tiny_model(seed=1).eval()
    images = torch.randn(1, 3, 64, 96)

    with torch.inference_mode():
        different = not torch.equal(model(images).map, other(images).map)
        other.load_state_dict(model.state_dict())
        same = torch.equal(model(images).map, other(images).map)

    assert different and same
    assert {name.split(".")[0] for name in model.trained_state()} == {"amplifiers", "student", "norms", "bank"}


def test_every_equation_of_the_paper_stands_at_its_function_in_order() -> None:
    source = inspect.getsource(functional)

    places = [source.find(f"        Eq. {number}") for number in range(1, 15) if number != 2]

    assert -1 not in places and places == sorted(places)
    assert places[0] < source.find("p_c of Eq. 2,") < source.find("        Eq. 2.") < places[1]


def test_strides_that_do_not_double_are_refused_with_the_mending() -> None:
    backbone = load_backbone(strides=(8, 32))

    with pytest.raises(FlawsmithError, match=r"strides=\[4,8,16\]"):
        AAND(AANDConfig(image_size=(64, 64), strides=(8, 32)), backbone, seed=0)


def test_two_levels_need_their_number_of_blocks() -> None:
    backbone = load_backbone(strides=(8, 16))
    config = AANDConfig(image_size=(64, 64), strides=(8, 16))

    with pytest.raises(FlawsmithError, match="student_blocks"):
        AAND(config, backbone, seed=0)
    config = config.model_copy(update={"student_blocks": (1, 1)})
    assert len(AAND(config, backbone, seed=0).smooth) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student_widths": (8, 8)}, "student_widths needs 3"),
        ({"student_blocks": (1, 0, 1)}, "student_blocks needs 3"),
        ({"refresh": 2}, "amplification_steps"),
        ({"recipe": "rust"}, "known recipes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AANDConfig(**settings)


def test_the_frozen_teacher_carries_neither_its_last_stage_nor_its_classifier() -> None:
    backbone = load_backbone("resnet18@random", strides=(4, 8, 16))

    names = [name for name, _ in backbone.named_parameters()]

    assert any("layer3" in name for name in names)
    assert not any("layer4" in name or "fc" in name for name in names)


def test_a_run_killed_in_the_second_stage_resumes_to_the_same_bytes(
    trained_small: Callable[[str], Any],
    train_small: Callable[..., Any],
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    append = MetricsFile.append

    def cut_off(self: MetricsFile, epoch: int, values: Any) -> None:
        append(self, epoch, values)
        if self._stage == "distillation" and epoch == 0:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "append", cut_off)
        with pytest.raises(InterruptedError):
            train_small("aand", parts, tmp_path / "run")

    resumed = train_small("aand", parts, tmp_path / "run", resume=True)

    assert resumed.model.read_bytes() == trained_small("aand").model.read_bytes()


def test_a_checkpoint_is_chosen_in_the_stage_that_completes_the_detector(
    train_small: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    result = train_small("aand", parts, tmp_path / "run", select="best")

    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows if "selection_auroc" in row} == {"distillation"}
    assert {row["stage"] for row in rows} == {"amplification", "distillation"}


def test_the_report_shows_residuals_gates_and_every_level(trained: Callable[[str], Any]) -> None:
    report = trained("aand").report.read_text()

    for heading in ("Residual intensity", "Gates on synthetic flaws", "Anomaly maps by level", "Synthetic flaws"):
        assert heading in report


# Transformers


def test_a_plain_transformer_gets_a_token_decoder_in_the_teachers_order() -> None:
    backbone = load_backbone("vit_tiny_patch16_224@random", strides=(16, 16, 16))
    config = AANDConfig(image_size=(64, 96), strides=(16, 16, 16), memories=3, gate_weight="predicted")

    model = AAND(config, backbone, seed=0).eval()
    with torch.inference_mode():
        output = model(torch.randn(2, 3, 64, 96))

    blocks = {name.split(".")[2] for name, _ in backbone.trunk.named_parameters() if ".blocks." in name}
    assert len(blocks) == 12, "levels are blocks 4, 8 and 12"
    assert model.student is not None
    decoder = model.student.decoder
    assert isinstance(decoder, TokenDecoder)
    assert [len(blocks) for blocks in decoder.levels] == [2, 2, 2]
    assert decoder.position.shape == (4 * 6, 192)
    assert output.map.shape == (2, 64, 96)


def test_strides_that_a_plain_transformer_lacks_are_refused_with_those_it_has() -> None:
    with pytest.raises(FlawsmithError, match=r"in all of its 12 blocks.*strides=\[16,16,16\]"):
        load_backbone("vit_tiny_patch16_224@random", strides=(4, 8, 16))


# Foregrounds of the released script


def test_every_category_of_the_papers_data_sets_has_its_foreground() -> None:
    count = {
        "mvtec_anomaly_detection": "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile "
        "toothbrush transistor wood zipper",
        "VisA": "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum",
        "mvtec_3d": "bagel cable_gland carrot cookie dowel foam peach potato rope tire",
    }

    for dataset, categories in count.items():
        assert all(published_foreground(dataset, category) for category in categories.split())


def test_cable_has_the_disc_that_a_misspelling_denied_it() -> None:
    cable = published_foreground("mvtec", "cable")

    assert cable is not None
    assert cable == published_foreground("mvtec", "bottle")
    assert (cable.mode, cable.extent) == ("disc", (0.45, 0.45))


def test_names_that_merely_look_alike_are_other_data_sets() -> None:
    assert published_foreground("mvtec_loco_anomaly_detection", "screw") is None
    assert published_foreground("my_mvtec", "screw") is None
    assert published_foreground("mvtec", "cable_gland") is None


# Presets and published rules


def test_official_preset_has_the_numbers_of_the_released_code() -> None:
    official = PRESETS["official"].model_dump()

    expected = {
        "image_size": (256, 256),
        "policy": "squash",
        "interpolation": "bicubic",
        "strides": (4, 8, 16),
        "batch_size": 16,
        "lr": 0.005,
        "betas": (0.5, 0.999),
        "lr_decay": 0.2,
        "lr_milestones": (0.8, 0.9),
        "amplification": "both",
        "residual": "tanh",
        "memories": 50,
        "temperature": 0.2,
        "gate_weight": "truth",
        "focal_alpha": 0.8,
        "focal_gamma": 2.0,
        "amplification_weight": 0.1,
        "margin": 0.3,
        "normal_cells": 5000,
        "anomalous_cells": 1000,
        "cell_share": 0.3,
        "recipe": "aand",
        "normal_share": None,
        "match_grey": False,
        "refresh": 1,
        "amplification_epochs": 100,
        "amplification_steps": None,
        "hard_positions": 10,
        "epochs": 120,
        "steps_per_epoch": None,
        "sigma": 4.0,
        "score_norm": "none",
    }
    assert {name: official[name] for name in expected} == expected


def test_rd4ad_is_trained_as_its_own_paper_says() -> None:
    for name in ("official", "paper"):
        preset = RD4AD.presets[name].model_dump()
        expected = {
            "amplification": "none",
            "hard_positions": 0,
            "bank": (),
            "epochs": 200,
            "lr": 0.005,
            "lr_milestones": (),
            "betas": (0.5, 0.999),
            "batch_size": 16,
            "sigma": 4.0,
            "image_size": (256, 256),
            "interpolation": "bilinear",
            "score_norm": "none",
        }
        assert {field: preset[field] for field in expected} == expected
        rates = {rate_factor(epoch, factor=0.2, milestones=preset["lr_milestones"]) for epoch in range(200)}
        assert rates == {1.0}


def test_a_temperature_of_one_confines_the_gate() -> None:
    """Cosines lie in [-1, 1]: with 50 anomaly and 50 normal memories the gate cannot leave 0.12 to 0.88."""
    extremes = torch.tensor([[1.0] * 50 + [-1.0] * 50, [-1.0] * 50 + [1.0] * 50])

    gates = {t: (extremes / t).softmax(dim=1)[:, :50].sum(dim=1) for t in (1.0, PRESETS["paper"].temperature)}

    torch.testing.assert_close(gates[1.0], torch.tensor([0.8808, 0.1192]), atol=1e-4, rtol=0)
    assert gates[0.2][0] > 0.99


def test_paper_preset_differs_from_the_released_code_where_the_text_does() -> None:
    paper, official = PRESETS["paper"].model_dump(), PRESETS["official"].model_dump()

    differences = {name: paper[name] for name in paper if paper[name] != official[name]}
    assert differences == {
        "amplification_weight": 1.0,
        "sigma": 0.0,
        "normal_share": 0.0,
        "lr_milestones": (),
    }


@pytest.mark.parametrize(
    ("dataset", "category", "level", "inverted"),
    [
        ("mvtec", "carpet", 0, False),
        ("mvtec", "screw", 150, True),
        ("mvtec", "zipper", 150, True),
        ("mvtec", "hazelnut", 50, False),
        ("visa", "candle", 150, False),
        ("visa", "pipe_fryum", 100, False),
        ("visa", "pcb4", 50, False),
        ("visa", "capsules", 100, True),
        ("mvtec_3d", "rope", 50, False),
    ],
)
def test_published_thresholds(dataset: str, category: str, level: float, inverted: bool) -> None:
    rule = published_foreground(dataset, category)

    assert rule is not None
    assert (rule.mode, rule.level, rule.inverted, rule.sigma, rule.pixels) == ("threshold", level, inverted, 8, "file")


@pytest.mark.parametrize(
    ("dataset", "category", "mode", "extent"),
    [
        ("mvtec", "bottle", "disc", (0.45, 0.45)),
        ("mvtec", "cable", "disc", (0.45, 0.45)),
        ("mvtec_3d", "foam", "box", (0.35, 0.35)),
        ("mvtec_3d", "tire", "box", (0.35, 0.35)),
    ],
)
def test_published_shapes(dataset: str, category: str, mode: str, extent: tuple[float, float]) -> None:
    rule = published_foreground(dataset, category)

    assert rule is not None and (rule.mode, rule.extent) == (mode, extent)


# What cannot be built


def test_an_input_too_small_for_the_student_is_refused_with_one_that_is_not() -> None:
    with pytest.raises(FlawsmithError, match=r"image_size=\[64,64\]"):
        RD4AD(
            RD4AD_PRESETS["fast"].model_copy(update={"image_size": (32, 32)}), load_backbone(strides=(4, 8, 16)), seed=0
        )


def test_one_level_is_refused_and_not_taken_for_a_transformer() -> None:
    config = AANDConfig(strides=(16,), image_size=(64, 64))

    with pytest.raises(FlawsmithError, match="strides="):
        AAND(config, load_backbone(strides=(16,)), seed=0)
