"""SLSG beyond the contract suite and the golden cases: its parts, switches and equations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flawsmith.data.seeding import derived_seed, generator
from flawsmith.features.backbones import Backbone, load_backbone, pixels_of, trained_trunk
from flawsmith.features.extract import PixelExtractor, extractor_key, make_extractor
from flawsmith.models.base import SyntheticImages
from flawsmith.models.slsg.config import PRESETS, SLSGConfig
from flawsmith.models.slsg.functional import cosine_rate, discriminator_loss, generator_loss, reconstruction_losses
from flawsmith.models.slsg.model import SLSG, SegmentationModule, SimulatedBatches, layout_of, scored
from flawsmith.models.slsg.networks import SegNet, SegNetLayout, UnpooledResNet, make_encoder, resize
from flawsmith.models.slsg.pretraining import (
    Discriminator,
    Generator,
    InpaintingBatch,
    InpaintingBatches,
    PretrainingModule,
    hidden_pixels,
    settle_statistics,
)
from flawsmith.models.slsg.sg_block import SGBlock, max_relative, position_similarity, position_table
from flawsmith.models.slsg.simulation import chosen_simulation
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.synthesis.foreground import Foreground

PAPER, OFFICIAL, FAST = (PRESETS[name] for name in ("paper", "official", "fast"))


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    return load_backbone("resnet18@random", strides=PAPER.strides)


# ---- SG block --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(16, 16), (3, 5), (1, 1)], ids=str)
def test_similarity_of_places_is_the_cosine_of_their_encodings(grid: tuple[int, int]) -> None:
    table = F.normalize(position_table(32, grid), dim=1)

    torch.testing.assert_close(position_similarity(32, grid), table @ table.T)


def test_relations_are_those_of_the_paper(seed: int) -> None:
    torch.manual_seed(seed)
    block, x = SGBlock(8, (3, 4), neighbours=5).eval(), torch.randn(2, 8, 3, 4)

    with torch.no_grad():
        found, graph = block(x), block.graph(x)
        query, key, value = (layer(x).flatten(2) for layer in (block.query, block.key, block.value))

    nodes = x.flatten(2)
    for image in range(2):
        f, g, h, v = query[image].T, key[image].T, value[image].T, nodes[image].T
        dense = torch.softmax(f @ g.T / 4**0.5, dim=1)
        sparse = F.cosine_similarity(f[:, None], g[None], dim=2) - position_similarity(8, (3, 4))
        nearest = [sorted(range(12), key=lambda j, row=row: -float(row[j]))[:5] for row in sparse]
        assert graph.neighbours is not None
        assert [set(row.tolist()) for row in graph.neighbours[image]] == [set(row) for row in nearest]
        relative = torch.stack([(v[row] - v[i]).amax(0) for i, row in enumerate(nearest)])
        joined = torch.cat([dense @ h, relative], dim=1)
        assert isinstance(block.update, nn.Conv2d)
        expected = joined @ block.update.weight[:, :, 0, 0].T + block.update.bias
        torch.testing.assert_close(found[image].flatten(1).T, expected, atol=1e-5, rtol=1e-4)


def test_position_can_be_left_in(seed: int) -> None:
    torch.manual_seed(seed)
    block = SGBlock(8, (3, 4))
    block.position.zero_()
    plain = SGBlock(8, (3, 4), subtract_position=False)
    plain.load_state_dict(block.state_dict())
    x = torch.randn(1, 8, 3, 4)

    torch.testing.assert_close(plain(x), block(x))


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize(("attention", "graph"), [(True, False), (False, True), (True, True)])
def test_every_part_of_the_block_works_alone(released: bool, attention: bool, graph: bool) -> None:
    block = SGBlock(8, (4, 6), released=released, attention=attention, graph=graph).train()
    x = torch.randn(2, 8, 4, 6, requires_grad=True)

    block(x).square().sum().backward()

    unused = [name for name, parameter in block.named_parameters() if parameter.grad is None]
    # A graph's indices have no gradient: without attention nothing teaches query and key.
    assert all(name.startswith(("query", "key")) for name in unused)
    assert bool(unused) == (not attention)
    assert (block.graph(x).neighbours is not None) == graph


def test_neighbours_are_no_more_than_there_are_nodes() -> None:
    graph = SGBlock(8, (1, 2), neighbours=9).graph(torch.randn(1, 8, 1, 2))

    assert graph.neighbours is not None
    assert graph.neighbours.shape == (1, 2, 2)


def tied_block(margin: float) -> tuple[SGBlock, torch.Tensor]:
    """A block of which a node has two candidates for its last neighbour, alike but for their values."""
    block = SGBlock(4, (1, 5), neighbours=2, attention=False, subtract_position=False, margin=margin)
    for layer in (block.query, block.key):
        assert isinstance(layer, nn.Conv2d)
        nn.init.zeros_(layer.bias)
        layer.weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])[:, :, None, None]
    x = torch.zeros(1, 4, 1, 5)
    x[0, 0] = 1.0
    x[0, 1, 0] = torch.tensor([0.0, 0.5, 0.5, 1.0, 2.0])  # nodes 1 and 2 are alike to node 0
    x[0, 2, 0] = torch.tensor([0.0, 5.0, -5.0, 0.0, 0.0])
    return block, x


def test_a_margin_keeps_the_last_digit_from_exchanging_a_neighbour() -> None:
    def jump(margin: float) -> float:
        block, x = tied_block(margin)
        results = []
        for change in (1e-6, -1e-6):
            x[0, 1, 0, 1] = 0.5 + change
            results.append(block(x)[0, :, 0, 0].detach())
        return float((results[0] - results[1]).abs().max())

    assert jump(0.0) > 0.1
    assert jump(0.05) < 1e-3
    assert not tied_block(0.0)[0].continuous
    assert tied_block(0.05)[0].continuous
    assert not SGBlock(8, (2, 2), released=True, neighbours=9, margin=0.05).continuous


def test_neighbours_beyond_the_margin_count_in_full(seed: int) -> None:
    torch.manual_seed(seed)
    soft, hard = SGBlock(8, (3, 4), neighbours=3, margin=1e-9), SGBlock(8, (3, 4), neighbours=3)
    hard.load_state_dict(soft.state_dict())
    x = torch.randn(2, 8, 3, 4)

    torch.testing.assert_close(soft(x), hard(x))


def test_largest_difference_to_a_neighbour_is_taken_by_channel() -> None:
    nodes = torch.tensor([[[0.0, 1.0, 5.0], [2.0, 0.0, -1.0]]])
    neighbours = torch.tensor([[[1, 2], [0, 2], [0, 1]]])

    found = max_relative(nodes, neighbours)

    assert found.tolist() == [[[5.0, 4.0, -4.0], [-2.0, 2.0, 3.0]]]


# ---- Networks --------------------------------------------------------------------------------------------------------


def test_unpooled_resnet_has_the_papers_levels(resnet: Backbone) -> None:
    encoder = make_encoder(resnet, "unpooled", "raw", seed=0)

    with torch.no_grad():
        levels = encoder.eval()(torch.zeros(1, 3, 64, 96))

    assert [tuple(level.shape[1:]) for level in levels] == [
        (64, 32, 48),
        (64, 32, 48),
        (128, 16, 24),
        (256, 8, 12),
        (512, 4, 6),
    ]


@pytest.mark.parametrize("stem", ["raw", "normalised"])
def test_stem_is_what_the_first_stage_reads(resnet: Backbone, stem: Any) -> None:
    encoder = make_encoder(resnet, "unpooled", stem, seed=0).eval()
    assert isinstance(encoder, UnpooledResNet)
    images = torch.randn(1, 3, 32, 32)

    with torch.no_grad():
        skip, first, *_ = encoder(images)
        raw = encoder.parts["conv1"](images)
        torch.testing.assert_close(skip, F.relu(encoder.parts["bn1"](raw)))
        torch.testing.assert_close(first, encoder.parts["layer1"](raw if stem == "raw" else skip))


def test_untrained_encoder_follows_the_seed_and_a_trained_one_does_not(resnet: Backbone) -> None:
    def first_weight(backbone: Backbone, seed: int) -> torch.Tensor:
        return next(iter(make_encoder(backbone, "plain", "raw", seed).parameters()))

    packaged = load_backbone(strides=(8, 16))
    assert torch.equal(first_weight(resnet, 1), first_weight(resnet, 1))
    assert not torch.equal(first_weight(resnet, 1), first_weight(resnet, 2))
    assert torch.equal(first_weight(packaged, 1), next(iter(packaged.trunk.parameters())))


def test_a_backbone_without_the_stages_of_a_resnet_is_refused_with_the_way_out() -> None:
    with pytest.raises(FlawsmithError, match=r"topology=plain"):
        make_encoder(load_backbone(strides=(4, 8, 16)), "unpooled", "raw", seed=0)


def test_maps_are_resized_between_corner_centres_and_left_alone_where_they_fit() -> None:
    ramp = torch.linspace(0, 1, 4)[None, None, :, None].expand(1, 1, 4, 3)

    assert resize(ramp, (4, 3)) is ramp
    torch.testing.assert_close(resize(ramp, (7, 3))[0, 0, :, 0], torch.linspace(0, 1, 7))


def segnet(**settings: Any) -> SegNet:
    return SegNet([4, 4, 8, 16], [(16, 24), (16, 24), (8, 12), (4, 6)], (32, 48), SegNetLayout(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"skip_attention": True},
        {"bottleneck_skips": False},
        {"full_resolution": False},
        {"sg_block": None},
        {"widths": (4, 6, 8)},
        {"normalised_levels": True},
    ],
    ids=str,
)
def test_every_part_of_segnet_is_used_and_learns(settings: dict[str, Any]) -> None:
    network = segnet(**settings).train()
    levels = [torch.randn(2, *shape) for shape in [(4, 16, 24), (4, 16, 24), (8, 8, 12), (16, 4, 6)]]

    logits = network(levels)
    (logits.final.square().mean() + logits.auxiliary.square().mean()).backward()

    assert logits.final.shape == logits.auxiliary.shape == (2, 2, 32, 48)
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]


def test_auxiliary_logits_are_added_where_the_released_code_adds_them() -> None:
    levels = [torch.randn(1, *shape) for shape in [(4, 16, 24), (4, 16, 24), (8, 8, 12), (16, 4, 6)]]
    added, plain = segnet().eval(), segnet(added_auxiliary=False).eval()
    plain.load_state_dict(added.state_dict())

    with torch.no_grad():
        with_it, without = added(levels), plain(levels)

    torch.testing.assert_close(with_it.final, without.final + without.auxiliary)


def test_released_form_has_attention_on_every_skip_but_the_stems() -> None:
    kinds = [type(module).__name__ for module in segnet(skip_attention=True).attention]

    assert kinds == ["Identity", "SkipAttention", "SkipAttention"]


def test_score_is_the_mean_of_the_highest_pixels() -> None:
    logits = torch.zeros(1, 2, 4, 5)
    logits[0, 1, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])

    assert scored(logits, scale="logit", top_pixels=2).score.tolist() == [4.5]
    assert scored(logits, scale="probability", top_pixels=1).score.item() == pytest.approx(
        torch.sigmoid(torch.tensor(5.0))
    )
    assert scored(logits, scale="logit", top_pixels=100).score.item() == pytest.approx(15 / 20)


# ---- GPT-Net ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(256, 256), (64, 96), (70, 51)], ids=str)
def test_share_of_hidden_patches_is_what_is_asked_for(size: tuple[int, int], seed: int) -> None:
    config = SLSGConfig(large_masks=(0, 0), mask_share=0.8)

    hidden = hidden_pixels(size, generator(seed, "hidden"), config)

    patches = hidden[::8, ::8]
    assert hidden.shape == size
    assert patches.sum() == round(0.8 * patches.size)
    assert (np.kron(patches, np.ones((8, 8), bool))[: size[0], : size[1]] == hidden).all()


def test_large_rectangles_have_sides_and_number_as_asked_for(seed: int) -> None:
    config = SLSGConfig(mask_share=0.0, large_masks=(1, 1), large_mask_sides=(40, 80))

    for index in range(20):
        hidden = hidden_pixels((64, 96), generator(seed, "hidden", index), config)
        rows, columns = np.flatnonzero(hidden.any(1)), np.flatnonzero(hidden.any(0))
        assert 10 <= len(rows) <= 20, "of 64 pixels, as 40 to 80 of 256"
        assert 15 <= len(columns) <= 30, "of 96"
        assert hidden.sum() == len(rows) * len(columns), "one rectangle"


def test_rectangles_larger_than_the_image_hide_it_all(seed: int) -> None:
    config = SLSGConfig(mask_share=0.0, large_masks=(1, 1), large_mask_sides=(256, 300))

    assert hidden_pixels((64, 96), generator(seed, "hidden"), config).all()


class Numbered:
    """Images as the only level; each full of its row's number."""

    channels, grids = (3,), ((32, 48),)

    def __len__(self) -> int:
        return 7

    def batch(self, rows: Any) -> list[torch.Tensor]:
        return [torch.stack([torch.full((3, 32, 48), 1.0 + int(row)) for row in rows])]


def test_what_is_hidden_is_a_function_of_seed_and_epoch() -> None:
    config = SLSGConfig(pretraining_batch_size=3, large_mask_sides=(4, 8))

    def drawn(seed: int, epoch: int) -> list[torch.Tensor]:
        return [batch.hidden for batch in InpaintingBatches(Numbered(), config, seed).epoch(epoch)]

    assert all(torch.equal(*pair) for pair in zip(drawn(0, 0), drawn(0, 0), strict=True))
    assert not torch.equal(drawn(0, 0)[0], drawn(0, 1)[0])
    assert not torch.equal(drawn(0, 0)[0], drawn(1, 0)[0])


def test_smaller_images_for_pretraining_are_resized_and_hidden_pixels_show_nothing() -> None:
    config = SLSGConfig(pretraining_size=(16, 24), large_mask_sides=(4, 8), mask_patch=4)

    batch = next(InpaintingBatches(Numbered(), config, seed=0).epoch(0))

    assert batch.images.shape[2:] == batch.hidden.shape[1:] == (16, 24)
    assert not batch.masked.movedim(1, -1)[batch.hidden].any()
    assert torch.equal(batch.masked.movedim(1, -1)[~batch.hidden], batch.images.movedim(1, -1)[~batch.hidden])


@pytest.mark.parametrize("size", [(64, 96), (70, 51)], ids=str)
def test_generator_paints_whole_images_at_any_size(resnet: Backbone, size: tuple[int, int]) -> None:
    encoder = make_encoder(resnet, "unpooled", "raw", seed=0)
    generator = Generator(encoder, [64, 64, 128, 256, 512]).eval()

    with torch.no_grad():
        found = generator(torch.randn(1, 3, *size))

    assert found.final.shape == found.auxiliary.shape == (1, 3, *size)
    # Up-sampled to 32², 64² and 128² with the skips of layer3, layer2 and layer1, and once more without one.
    assert [block.groups[0][0].in_channels - block.up[0].out_channels for block in generator.blocks] == [
        256,
        128,
        64,
        0,
    ]


def test_losses_are_those_of_equations_8_to_10() -> None:
    fake, real = torch.tensor([[[[0.5, 1.0]]]]), torch.tensor([[[[1.0, 0.0]]]])

    assert generator_loss(fake).item() == pytest.approx((0.25 + 0) / 2 / 2)
    assert discriminator_loss(fake, real).item() == pytest.approx((0.25 + 1) / 2 / 2 + (0 + 1) / 2 / 2)
    parts = reconstruction_losses(
        torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), -2.0), torch.full((1, 3, 2, 2), 3.0)
    )
    assert {name: value.item() for name, value in parts.items()} == {"loss_l1": 2.0, "loss_auxiliary": 9.0}


def test_generator_loss_weights_its_parts(resnet: Backbone) -> None:
    config = SLSGConfig(discriminator_width=4, adversarial_weight=2.0, reconstruction_weight=3.0, bottleneck_weight=5.0)
    module = PretrainingModule(config, make_encoder(resnet, "unpooled", "raw", 0), [64, 64, 128, 256, 512], seed=0)
    batch = InpaintingBatch(torch.randn(2, 3, 32, 32), torch.rand(2, 32, 32) < 0.5)

    losses = module.generator_losses(batch.images, module.generator(batch.masked))

    expected = 2 * losses["loss_adversarial"] + 3 * losses["loss_l1"] + 5 * losses["loss_auxiliary"]
    torch.testing.assert_close(losses["loss"], expected)


def test_discriminator_judges_patches_with_four_groups_of_stride_two() -> None:
    judge = Discriminator(4)

    assert judge(torch.zeros(2, 3, 64, 96)).shape == (2, 1, 4, 6)
    assert [group[0].out_channels for group in list(judge)[:4]] == [4, 8, 16, 32]


def test_settled_statistics_are_those_of_whole_images(resnet: Backbone) -> None:
    encoder = make_encoder(resnet, "unpooled", "raw", seed=0)
    assert isinstance(encoder, UnpooledResNet)
    images = Numbered()

    settle_statistics(encoder, images, 7)

    with torch.no_grad():
        stem = encoder.parts["conv1"](images.batch(range(7))[0])
    norm = encoder.parts["bn1"]
    torch.testing.assert_close(norm.running_mean, stem.mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, stem.var(dim=(0, 2, 3)), atol=1e-4, rtol=1e-3)
    assert norm.momentum == 0.1
    assert not encoder.training


# ---- Training of SegNet ----------------------------------------------------------------------------------------------


class SyntheticAnomaly(Numbered):
    """Simulated anomalies: images of ones, all of them flawed; jittered good halves where asked for."""

    def __init__(self, jittered: bool = False) -> None:
        self.jittered, self.asked = jittered, list[int]()

    def batches(self, rows: Any, epoch: int) -> Any:
        self.asked.append(len(rows))
        for some in rows:
            images = torch.ones(len(some), 3, 32, 48)
            masks = np.ones((len(some), 32, 48), bool)
            yield SyntheticImages([images], masks, masks, normal=[-images] if self.jittered else None)

    def examples(self, count: int) -> Any:
        raise AssertionError("not asked for")


@pytest.mark.parametrize("jittered", [False, True])
def test_batches_hold_normal_images_and_as_many_simulated_ones(jittered: bool) -> None:
    config = SLSGConfig(batch_size=2, epochs=1, steps_per_epoch=3)

    for batch in SimulatedBatches(Numbered(), SyntheticAnomaly(jittered), config, seed=0).epoch(0):
        (images,) = batch.levels
        assert (images[:2] == -1).all() if jittered else (images[:2] >= 1).all()
        assert (images[2:] == 1).all()
        assert not batch.mask[:2].any()
        assert batch.mask[2:].all()


def test_last_epoch_ends_with_the_iterations() -> None:
    config = SLSGConfig(batch_size=2, epochs=3, steps_per_epoch=4, iterations=9)
    synthetic = SyntheticAnomaly()

    counts = [len(list(SimulatedBatches(Numbered(), synthetic, config, seed=0).epoch(epoch))) for epoch in range(3)]

    assert counts == synthetic.asked == [4, 4, 1]
    assert config.steps == 9


def test_iterations_that_do_not_end_in_the_last_epoch_are_refused() -> None:
    for iterations in (8, 13):
        with pytest.raises(ValueError, match="iterations"):
            SLSGConfig(epochs=3, steps_per_epoch=4, iterations=iterations)


def test_rate_falls_along_a_cosine_one_step_late() -> None:
    rates = [cosine_rate(step, start=0.04, total=100) for step in range(101)]

    assert rates[0] == rates[1] == 0.04
    assert rates == sorted(rates, reverse=True)
    assert rates[51] == pytest.approx(0.02)
    assert rates[100] == pytest.approx(0.0, abs=1e-4)


def test_weights_of_the_encoder_stay_and_its_statistics_follow(resnet: Backbone) -> None:
    encoder = make_encoder(resnet, "unpooled", "raw", seed=0).requires_grad_(False)
    assert isinstance(encoder, UnpooledResNet)
    network = SegNet([64, 64, 128, 256, 512], [(16, 24), (16, 24), (8, 12), (4, 6), (2, 3)], (32, 48), layout_of(PAPER))
    module = SegmentationModule(PAPER, network, encoder)
    module.on_train_start()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    batch = next(
        SimulatedBatches(Numbered(), SyntheticAnomaly(), PAPER.model_copy(update={"batch_size": 2}), 0).epoch(0)
    )

    module.losses(batch)["loss"].backward()

    after = encoder.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("running" in name or "num_batches" in name for name in moved)
    assert not [name for name, parameter in encoder.named_parameters() if parameter.grad is not None]
    assert {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]} == {
        id(p) for p in network.parameters()
    }


def test_loss_weights_its_parts(resnet: Backbone) -> None:
    config = SLSGConfig(focal_weight=2.0, l1_weight=3.0, auxiliary_weight=5.0, batch_size=2)
    network = SegNet([3, 4], [(32, 48), (16, 24)], (32, 48), layout_of(config))
    module = SegmentationModule(config, network, None)
    (batch,) = list(SimulatedBatches(Numbered(), SyntheticAnomaly(), config, 0).epoch(0))[:1]
    batch.levels.append(torch.randn(4, 4, 16, 24))

    found = module.losses(batch)

    expected = 2 * found["loss_focal"] + 3 * found["loss_l1"] + 5 * found["loss_auxiliary"]
    torch.testing.assert_close(found["loss"], expected)


# ---- Simulation ------------------------------------------------------------------------------------------------------


def test_logical_and_structural_halves_can_be_switched_off() -> None:
    def textures(**settings: Any) -> dict[str, float]:
        recipe, _, _ = chosen_simulation(SLSGConfig(**settings), "any", "bolt")
        found: dict[str, float] = {}
        for branch in recipe.branches:
            found[branch.texture] = found.get(branch.texture, 0.0) + branch.share
        return found

    assert textures() == pytest.approx({"source": 0.25, "self": 0.25, "other": 0.5})
    assert textures(logical=False) == pytest.approx({"source": 0.5, "self": 0.5})
    assert textures(structural=False) == pytest.approx({"other": 1.0})
    for settings in (
        {"logical": False, "structural": False},
        {"recipe": "slsg-official", "structural": False},
        {"recipe": "published", "logical": False, "structural": False},
    ):
        with pytest.raises(ValueError, match="nothing is simulated"):
            SLSGConfig(**settings)


def test_masks_can_be_rectangles() -> None:
    recipe, _, _ = chosen_simulation(SLSGConfig(mask_shape="rectangle"), "any", "bolt")

    assert {branch.rule.shape for branch in recipe.branches} == {"rectangle"}


def test_released_recipes_of_loco_are_taken_by_name_and_called_class_tuned() -> None:
    config = PRESETS["official-loco"]

    tuned, foreground, told = chosen_simulation(config, "mvtec_loco_anomaly_detection", "juice_bottle")
    other, _, untold = chosen_simulation(config, "mvtec_loco_anomaly_detection", "bolt")

    assert "class-tuned" in str(told["simulation"])
    assert "class-tuned" not in str(untold["simulation"])
    assert tuned.branches != other.branches
    assert foreground.mode == "threshold"
    chosen = config.model_copy(update={"foreground": Foreground(mode="files")})
    assert chosen_simulation(chosen, "mvtec_loco_anomaly_detection", "juice_bottle")[1].mode == "files"
    assert other.name == "slsg-official"


# ---- The whole method ------------------------------------------------------------------------------------------------


def test_pixel_backbone_gives_images_as_they_are() -> None:
    backbone = load_backbone(strides=(8, 16))
    pixels, images = pixels_of(backbone), np.random.default_rng(0).random((2, 3, 16, 24), np.float32)
    extractor = make_extractor(pixels, (16, 24))

    assert isinstance(extractor, PixelExtractor)
    assert np.array_equal(extractor(images)[0], images)
    assert pixels.grids((16, 24)) == ((16, 24),)
    geometry = Geometry(size=(16, 24))
    keys = {extractor_key(one, geometry, "onnxruntime", "float32") for one in (pixels, backbone)}
    assert len(keys) == 2


def test_trained_encoder_has_features_of_its_own(resnet: Backbone) -> None:
    encoder = make_encoder(resnet, "unpooled", "raw", seed=0).eval()
    first = trained_trunk(encoder, resnet, (32, 32), "raw").info
    assert trained_trunk(encoder, resnet, (32, 32), "normalised").info != first, "the same weights in another form"
    with torch.no_grad():
        next(iter(encoder.parameters())).add_(1.0)

    second = trained_trunk(encoder, resnet, (32, 32), "raw").info

    assert first.sha256 != second.sha256
    assert first.channels == (64, 64, 128, 256, 512)


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "tf_efficientnet_lite0@random"])
def test_frozen_features_are_those_that_the_detector_sees(
    backbone: str, parts: Path, tmp_path: Path, train_tiny: Callable[..., Any]
) -> None:
    result = train_tiny("slsg", parts, tmp_path / "run", backbone=backbone, set={"pretraining": False})
    config = SLSGConfig(**result.bundle.spec.config)
    frozen = load_backbone(backbone, strides=config.strides, seed=derived_seed(0, "random backbone"))
    method = SLSG(config, frozen, seed=0)
    images = torch.randn(1, 3, *config.image_size)

    assert config.frozen_backbone
    with torch.no_grad():
        for learned, seen in zip(frozen(images), method.network().encoder(images), strict=True):
            assert torch.equal(learned, seen)
    assert not (result.folder / "checkpoints" / "pretraining.safetensors").exists()


@pytest.mark.parametrize("side", [16, 24, 31])
@pytest.mark.parametrize("images", [1, 7])
def test_small_images_and_few_of_them_are_enough_for_gpt_net(resnet: Backbone, side: int, images: int) -> None:
    class Few(Numbered):
        grids = ((side, side),)

        def __len__(self) -> int:
            return images

        def batch(self, rows: Any) -> list[torch.Tensor]:
            return [torch.randn(len(rows), 3, side, side)]

    config = SLSGConfig(pretraining_batch_size=2, discriminator_width=4)
    encoder = make_encoder(resnet, "unpooled", "raw", seed=0)
    module = PretrainingModule(config, encoder, [64, 64, 128, 256, 512], seed=0)
    module.on_train_start()

    for batch in InpaintingBatches(Few(), config, seed=0).epoch(0):
        losses = module.generator_losses(batch.images, module.generator(batch.masked))
        assert torch.isfinite(losses["loss"])
    settled = settle_statistics(encoder, Few(), 3)

    assert all(torch.isfinite(value).all() for value in settled.values())


def test_settings_that_nothing_would_use_are_refused() -> None:
    with pytest.raises(ValueError, match="neighbour_margin"):
        SLSGConfig(block="released", neighbour_margin=0.1)
    with pytest.raises(ValueError, match="known recipes"):
        SLSGConfig(recipe="no-such")


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_presets_of_the_paper_take_an_untrained_resnet_without_being_asked(preset: str) -> None:
    config = PRESETS[preset]

    assert config.default_backbone == "resnet18@random"
    assert not config.frozen_backbone
    assert FAST.default_backbone == "efficientnet_lite0"


def test_paper_trains_end_to_end_on_tiny_images(parts: Path, tmp_path: Path, train_tiny: Callable[..., Any]) -> None:
    """Both stages of the paper's form, encoder statistics and all, with the whole path behind them."""
    settings = {
        name: getattr(PAPER, name)
        for name in (
            "strides",
            "topology",
            "encoder_statistics",
            "memory_strides",
            "block",
            "full_resolution",
            "interpolation",
        )
    }
    result = train_tiny("slsg", parts, tmp_path / "run", set={**settings, "decoder_widths": [4, 4, 8, 8]})

    assert result.bundle.spec.backbone.name.startswith("resnet18")
    assert result.bundle.spec.backbone.weights == "random"
    assert "simulation" in result.bundle.spec.training.findings
    report = result.report.read_text()
    for title in ("Masked reconstructions", "Simulated anomalies", "Neighbours in the graph"):
        assert title in report


def test_same_seed_draws_the_same_networks() -> None:
    backbone = load_backbone(strides=FAST.strides)

    def state(seed: int) -> dict[str, torch.Tensor]:
        return SLSG(FAST.model_copy(update={"image_size": (64, 64)}), backbone, seed).segmentation.state_dict()

    first, again, other = state(0), state(0), state(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
