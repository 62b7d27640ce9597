"""SLSG beyond the contract suite and the golden cases: its parts, switches and equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flawsmith.data.seeding import Shard, derived_seed, generator
from flawsmith.features.backbones import Backbone, load_backbone, pixels_of, trained_trunk
from flawsmith.features.extract import PixelExtractor, extractor_key, make_extractor
from flawsmith.losses import focal_loss
from flawsmith.models.base import ALONE, SinglePass, SyntheticImages, TrainingStage
from flawsmith.models.components.memory_bank import MemoryBank
from flawsmith.models.slsg import SLSG, SLSGConfig
from flawsmith.models.slsg.config import PRESETS
from flawsmith.models.slsg.functional import (
    anomaly_probability,
    cosine_rate,
    dense_similarity,
    discriminator_loss,
    generator_loss,
    image_score,
    max_relative,
    overlay,
    position_encoding,
    position_similarity,
    reconstruction_loss,
    segmentation_loss,
    sparse_similarity,
)
from flawsmith.models.slsg.networks import SegNet, SGBlock, SkipAttention, UnpooledResNet, make_encoder, resize
from flawsmith.models.slsg.pretraining import (
    Generator,
    InpaintingBatch,
    InpaintingBatches,
    InpaintingDiscriminator,
    PretrainingModule,
    hidden_pixels,
    settle_statistics,
)
from flawsmith.models.slsg.simulation import SimulatedBatch, SimulatedBatches, choose_simulation
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.synthesis.foreground import Foreground

PAPER, FAST = PRESETS["paper"], PRESETS["fast"]


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    return load_backbone("resnet18@random", strides=PAPER.strides)


# Equations


def test_overlay_is_equation_1(seed: int) -> None:
    rng = np.random.default_rng(seed)
    normal, source = (rng.random((5, 7, 3)).astype(np.float32) for _ in range(2))
    mask, opacity = rng.random((5, 7)) < 0.5, 0.3

    expected = ~mask[:, :, None] * normal + mask[:, :, None] * (opacity * source + (1 - opacity) * normal)

    np.testing.assert_allclose(overlay(normal, source, mask, opacity=opacity), expected, atol=1e-6)


def test_similarities_are_those_of_equations_2_and_5(seed: int) -> None:
    torch.manual_seed(seed)
    query, key, position = torch.randn(2, 4, 6), torch.randn(2, 4, 6), torch.rand(6, 6)

    dense = dense_similarity(query, key, scale=0.5)
    sparse = sparse_similarity(query, key, position)

    products = torch.einsum("bci,bcj->bij", query, key)
    torch.testing.assert_close(dense, (products / 2).exp() / (products / 2).exp().sum(dim=2, keepdim=True))
    cosine = F.cosine_similarity(query[:, :, :, None], key[:, :, None], dim=1)
    torch.testing.assert_close(sparse, cosine - position)


def test_losses_are_those_of_equations_8_to_10() -> None:
    fake, real = torch.tensor([[[[0.5, 1.0]]]]), torch.tensor([[[[1.0, 0.0]]]])

    assert generator_loss(fake).item() == pytest.approx((0.25 + 0) / 2 / 2)
    assert discriminator_loss(fake, real).item() == pytest.approx((0.25 + 1) / 2 / 2 + (0 + 1) / 2 / 2)
    image = torch.zeros(1, 3, 2, 2)
    losses = reconstruction_loss(image, image - 2, image + 3, fake, weights=(2.0, 3.0, 5.0))
    assert {name: value.item() for name, value in losses.items()} == {
        "loss": 2 * 0.0625 + 3 * 2 + 5 * 9,
        "loss_adversarial": 0.0625,
        "loss_l1": 2.0,
        "loss_auxiliary": 9.0,
    }


def test_loss_is_that_of_equation_11(seed: int) -> None:
    torch.manual_seed(seed)
    final, auxiliary, mask = torch.randn(2, 2, 4, 5), torch.randn(2, 2, 4, 5), torch.rand(2, 4, 5) < 0.3

    losses = segmentation_loss(final, auxiliary, mask, weights=(2.0, 3.0, 5.0), gamma=3.0)

    probability, rough = final.softmax(dim=1)[:, 1], auxiliary.softmax(dim=1)[:, 1]
    focal = focal_loss(probability, mask.float(), gamma=3.0)
    expected = 2 * focal + 3 * F.l1_loss(probability, mask.float()) + 5 * F.l1_loss(rough, mask.float())
    torch.testing.assert_close(losses["loss"], expected)


def test_score_is_the_mean_of_the_highest_pixels() -> None:
    logits = torch.zeros(1, 2, 4, 5)
    logits[0, 1, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    difference = logits[:, 1] - logits[:, 0]

    assert image_score(difference, top_pixels=2).tolist() == [4.5]
    assert image_score(difference, top_pixels=100).item() == pytest.approx(15 / 20)
    assert image_score(anomaly_probability(logits), top_pixels=1).item() == pytest.approx(
        torch.sigmoid(torch.tensor(5.0))
    )


def test_rate_falls_along_a_cosine_one_step_late() -> None:
    rates = [cosine_rate(step, start=0.04, total=100) for step in range(101)]

    assert rates[0] == rates[1] == 0.04
    assert rates == sorted(rates, reverse=True)
    assert rates[51] == pytest.approx(0.02)
    assert rates[100] == pytest.approx(0.0, abs=1e-4)


# SG block


@pytest.mark.parametrize("grid", [(16, 16), (3, 5), (1, 1)], ids=str)
def test_similarity_of_places_is_the_cosine_of_their_encodings(grid: tuple[int, int]) -> None:
    table = F.normalize(position_encoding(32, grid), dim=1)

    torch.testing.assert_close(position_similarity(32, grid), table @ table.T)


def test_relations_are_those_of_the_paper(seed: int) -> None:
    torch.manual_seed(seed)
    block, x = SGBlock(8, (3, 4), neighbours=5).eval(), torch.randn(2, 8, 3, 4)

    with torch.no_grad():
        updated, graph = block(x), block.graph(x)
        query, key, value = (layer(x).flatten(2) for layer in (block.query, block.key, block.value))

    nodes = x.flatten(2)
    for image in range(2):
        f, g, h, v = query[image].T, key[image].T, value[image].T, nodes[image].T
        dense = torch.softmax(f @ g.T / 4**0.5, dim=1)
        sparse = F.cosine_similarity(f[:, None], g[None], dim=2) - position_similarity(8, (3, 4))
        nearest = [sorted(range(12), key=lambda j, row=row: -float(row[j]))[:5] for row in sparse]
        assert graph.neighbours is not None
        assert [set(row.tolist()) for row in graph.neighbours.indices[image]] == [set(row) for row in nearest]
        relative = torch.stack([(v[row] - v[i]).amax(0) for i, row in enumerate(nearest)])
        joined = torch.cat([dense @ h, relative], dim=1)
        assert isinstance(block.update, nn.Conv2d)
        expected = joined @ block.update.weight[:, :, 0, 0].T + block.update.bias
        torch.testing.assert_close(updated[image].flatten(1).T, expected, atol=1e-5, rtol=1e-4)


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
    assert graph.neighbours.indices.shape == (1, 2, 2)


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

    assert max_relative(nodes, neighbours).tolist() == [[[5.0, 4.0, -4.0], [-2.0, 2.0, 3.0]]]


# Networks


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


CHANNELS, GRIDS = [4, 4, 8, 16], [(16, 24), (16, 24), (8, 12), (4, 6)]


def segnet(**settings: Any) -> SegNet:
    torch.manual_seed(0)
    config = SLSGConfig(strides=(2, 4, 8, 16), encoder_statistics="frozen", **settings)
    return SegNet(CHANNELS, GRIDS, (32, 48), config)


def random_levels(batch: int = 1) -> list[torch.Tensor]:
    return [torch.randn(batch, channels, *grid) for channels, grid in zip(CHANNELS, GRIDS, strict=True)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"skip_attention": True},
        {"bottleneck_skips": False},
        {"full_resolution": False},
        {"attention": False, "graph": False},
        {"decoder_widths": (4, 6, 8)},
        {"normalised_levels": True},
    ],
    ids=str,
)
def test_every_part_of_segnet_is_used_and_learns(settings: dict[str, Any]) -> None:
    network = segnet(**settings).train()

    logits = network(random_levels(2))
    (logits.final.square().mean() + logits.auxiliary.square().mean()).backward()

    assert logits.final.shape == logits.auxiliary.shape == (2, 2, 32, 48)
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]


def test_auxiliary_logits_are_added_where_the_released_code_adds_them() -> None:
    levels = random_levels()
    added, plain = segnet().eval(), segnet(added_auxiliary=False).eval()
    plain.load_state_dict(added.state_dict())

    with torch.no_grad():
        with_it, without = added(levels), plain(levels)

    torch.testing.assert_close(with_it.final, without.final + without.auxiliary)


def test_released_form_has_attention_on_every_skip_but_the_stems() -> None:
    kinds = [type(module).__name__ for module in segnet(skip_attention=True).attention]

    assert kinds == ["Identity", "SkipAttention", "SkipAttention"]


@pytest.mark.parametrize(("channels", "side"), [(24, 64), (40, 32)])
def test_attention_on_skips_learns_the_same_in_bfloat16(channels: int, side: int, seed: int) -> None:
    """The weight gradient of a dilated depth-wise convolution is garbage there in torch 2.14, up to 1e32."""
    torch.manual_seed(seed)
    attention = SkipAttention(channels).to(memory_format=torch.channels_last)
    maps = torch.randn(8, channels, side, side).contiguous(memory_format=torch.channels_last)
    gradients = []
    for lower in (False, True, True, True):
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            attention(maps).float().square().mean().backward()
        assert attention.dilated.weight.grad is not None
        gradients.append(attention.dilated.weight.grad.clone())

    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], atol=0.05 * float(gradients[0].abs().max()), rtol=0.05)


def remembering_segnet(features: dict[int, torch.Tensor], unit: float = 1.0) -> SegNet:
    """A SegNet with memories of these features by level, all of one size."""
    (size,) = {len(rows) for rows in features.values()}
    strides = tuple(2 ** (level + 1) for level in features)
    network = segnet(memory_strides=strides, memory_size=size)
    for level, rows in features.items():
        memory = network.memories[str(level)]
        assert isinstance(memory, MemoryBank)
        memory.fit(rows, unit)
    return network


def test_segnet_reads_distances_at_every_depth_and_passes_no_gradient_to_the_memory(seed: int) -> None:
    torch.manual_seed(seed)
    network = remembering_segnet({2: torch.randn(6, 8), 3: torch.randn(6, 16)}).train()

    logits = network([level.requires_grad_() for level in random_levels(2)])
    (logits.final.square().mean() + logits.auxiliary.square().mean()).backward()

    plain = segnet()
    assert network.auxiliary[0][0].in_channels == plain.auxiliary[0][0].in_channels + 2
    wider = [block.groups[0][0].in_channels for block in network.blocks]
    assert wider == [block.groups[0][0].in_channels + 2 for block in plain.blocks]
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not [name for name, _ in network.named_parameters() if name.startswith("memories")]


def test_another_memory_changes_what_segnet_says(seed: int) -> None:
    torch.manual_seed(seed)
    levels = random_levels()

    with torch.no_grad():
        first, second = (
            remembering_segnet({3: torch.full((4, 16), value)}).eval()(levels).final for value in (0.0, 5.0)
        )

    assert not torch.allclose(first, second, atol=1e-4)


def test_novel_is_what_is_farther_than_a_typical_image_goes() -> None:
    network = remembering_segnet({2: torch.zeros(1, 8), 3: torch.zeros(1, 16)}, unit=2.0).eval()
    levels = [torch.zeros_like(level) for level in random_levels()]
    levels[2][0, 0] = 3.0  # one and a half times the unit
    levels[3][0, 0] = 1.0  # within it

    novelty = network(levels).novelty

    assert novelty is not None
    torch.testing.assert_close(novelty, torch.full((1, 1, 32, 48), 0.5), atol=1e-4, rtol=0)
    assert segnet().eval()(levels).novelty is None


# GPT-Net


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


def test_processes_hide_what_one_alone_hides() -> None:
    config = SLSGConfig(pretraining_batch_size=2, large_mask_sides=(4, 8))
    batches = InpaintingBatches(Numbered(), config, seed=0)

    whole = list(batches.epoch(3))
    parts = [list(batches.epoch(3, Shard(rank, 2))) for rank in range(2)]

    for number, batch in enumerate(whole):
        part = parts[number % 2][number // 2]
        assert torch.equal(part.images, batch.images)
        assert torch.equal(part.hidden, batch.hidden)


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
        final, auxiliary = generator(torch.randn(1, 3, *size))

    assert final.shape == auxiliary.shape == (1, 3, *size)
    # Up-sampled to 32², 64² and 128² with the skips of layer3, layer2 and layer1, and once more without one.
    assert [block.groups[0][0].in_channels - block.up[0].out_channels for block in generator.blocks] == [
        256,
        128,
        64,
        0,
    ]


def test_generator_loss_weights_its_parts(resnet: Backbone) -> None:
    config = SLSGConfig(discriminator_width=4, adversarial_weight=2.0, reconstruction_weight=3.0, bottleneck_weight=5.0)
    module = PretrainingModule(config, make_encoder(resnet, "unpooled", "raw", 0), [64, 64, 128, 256, 512], seed=0)
    batch = InpaintingBatch(torch.randn(2, 3, 32, 32), torch.rand(2, 32, 32) < 0.5)

    losses = module.generator_losses(batch.images, module.generator(batch.masked))
    losses["loss"].backward()

    assert module.generator.encoder.parts["conv1"].weight.grad is not None, "the encoder learns"
    expected = 2 * losses["loss_adversarial"] + 3 * losses["loss_l1"] + 5 * losses["loss_auxiliary"]
    torch.testing.assert_close(losses["loss"], expected)


def test_discriminator_looks_at_patches_with_four_groups_of_stride_two() -> None:
    discriminator = InpaintingDiscriminator(4)

    assert discriminator(torch.zeros(2, 3, 64, 96)).shape == (2, 1, 4, 6)
    assert [group[0].out_channels for group in list(discriminator)[:4]] == [4, 8, 16, 32]


def test_discriminator_begins_as_in_the_paper_that_it_is_from(seed: int) -> None:
    """Isola et al. 2017: leaky rectifiers, weights from a normal distribution of 0.02, Adam with β1 = 0.5."""
    torch.manual_seed(seed)
    discriminator = InpaintingDiscriminator(64)

    for layer in (*(group[0] for group in list(discriminator)[:4]), discriminator[4]):
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
        assert not layer.bias.any()
    group = discriminator[0].eval()
    values = group(torch.randn(1, 3, 32, 32))
    assert float(-values.min() / values.max()) == pytest.approx(0.2, rel=0.5), "what is negative stays, at a fifth"
    assert PAPER.pretraining_betas == (0.5, 0.999)


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


# Training of SegNet


class SyntheticAnomalies(Numbered):
    """Simulated anomalies: images of ones, all of them flawed; jittered good halves where asked for."""

    def __init__(self, jittered: bool = False) -> None:
        self.jittered, self.requested = jittered, list[int]()

    def batches(self, rows: Any, epoch: int, shard: Shard = ALONE) -> Any:
        self.requested.append(len(rows))
        for images in shard.of(rows):
            anomalous = torch.ones(len(images), 3, 32, 48)
            masks = np.ones((len(images), 32, 48), bool)
            normal = [-anomalous] if self.jittered else None
            yield SyntheticImages([anomalous], masks, masks, fallbacks=1, normal=normal)

    def examples(self, count: int) -> Any:
        return [(np.zeros((32, 48, 3), np.uint8), np.zeros((32, 48), np.uint8), np.zeros((32, 48, 3), np.uint8))] * 2


@pytest.mark.parametrize("jittered", [False, True])
def test_batches_hold_normal_images_and_as_many_simulated_ones(jittered: bool) -> None:
    config = SLSGConfig(batch_size=2, epochs=1, steps_per_epoch=3)

    for batch in SimulatedBatches(Numbered(), SyntheticAnomalies(jittered), config, seed=0).epoch(0):
        (images,) = batch.levels
        assert (images[:2] == -1).all() if jittered else (images[:2] >= 1).all()
        assert (images[2:] == 1).all()
        assert not batch.mask[:2].any()
        assert batch.mask[2:].all()
        assert batch.fallback_rate == 0.5


def test_last_epoch_ends_with_the_iterations() -> None:
    config = SLSGConfig(batch_size=2, epochs=3, steps_per_epoch=4, iterations=9)
    synthetic = SyntheticAnomalies()

    counts = [len(list(SimulatedBatches(Numbered(), synthetic, config, seed=0).epoch(epoch))) for epoch in range(3)]

    assert counts == synthetic.requested == [4, 4, 1]
    assert config.steps == 9


def test_processes_share_the_batches_of_an_epoch() -> None:
    config = SLSGConfig(batch_size=2, epochs=1, steps_per_epoch=4)
    batches = SimulatedBatches(Numbered(), SyntheticAnomalies(), config, seed=0)

    whole = [batch.levels[0] for batch in batches.epoch(0)]
    second = [batch.levels[0] for batch in batches.epoch(0, Shard(1, 2))]

    assert all(torch.equal(*pair) for pair in zip(second, whole[1::2], strict=True))


def test_iterations_that_do_not_end_in_the_last_epoch_are_refused() -> None:
    for iterations in (8, 13):
        with pytest.raises(ValueError, match="iterations"):
            SLSGConfig(epochs=3, steps_per_epoch=4, iterations=iterations)


def paper_model(resnet: Backbone, **changes: Any) -> SLSG:
    """The paper's model, without GPT-Net unless asked for, for images of 32 by 48 pixels."""
    settings = {"image_size": (32, 48), "pretraining": False, "batch_size": 2, "decoder_widths": (4, 4, 8, 8)}
    return SLSG.from_preset("paper", backbone=resnet, **{**settings, **changes})


def random_batch() -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(4, 32, 48, dtype=torch.bool)
    mask[2:, 8:16, 8:24] = True
    return torch.randn(4, 3, 32, 48), mask


def test_weights_of_the_encoder_stay_and_its_statistics_follow(resnet: Backbone) -> None:
    model = paper_model(resnet)
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}

    model.losses(random_batch())["loss"].backward()

    after = model.encoder.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("running" in name or "num_batches" in name for name in moved)
    assert not [name for name, parameter in model.encoder.named_parameters() if parameter.grad is not None]
    (optimizer,) = model.make_optimizers()
    learning = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert learning == {id(parameter) for parameter in model.network.parameters()}


def test_statistics_of_a_frozen_encoder_stay(resnet: Backbone) -> None:
    model = paper_model(resnet, encoder_statistics="frozen").train()
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}

    model.losses(random_batch())

    assert all(torch.equal(before[name], value) for name, value in model.encoder.state_dict().items())


def test_images_levels_and_batches_have_the_same_losses(resnet: Backbone) -> None:
    model, (images, mask) = paper_model(resnet, encoder_statistics="frozen"), random_batch()
    with torch.no_grad():
        levels = model.encoder(images)

        pairs = [(images, mask), SimulatedBatch([images], mask), SimulatedBatch(levels, mask, fallback_rate=0.25)]
        losses = [model.losses(batch) for batch in pairs]

    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name], value)
        torch.testing.assert_close(losses[2][name], value if name != "fallback_rate" else torch.tensor(0.25))


def test_loss_weights_its_parts(resnet: Backbone) -> None:
    model = paper_model(resnet, focal_weight=2.0, l1_weight=3.0, auxiliary_weight=5.0)

    losses = model.losses(random_batch())

    expected = 2 * losses["loss_focal"] + 3 * losses["loss_l1"] + 5 * losses["loss_auxiliary"]
    torch.testing.assert_close(losses["loss"], expected)


def test_segnet_learns_in_a_plain_loop(resnet: Backbone, seed: int) -> None:
    torch.manual_seed(seed)
    model, batch = paper_model(resnet, lr=0.05), random_batch()
    (optimizer,) = model.make_optimizers()
    losses = []
    for _ in range(12):
        loss = model.losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.7 * losses[0]


class SmallData(Numbered):
    """Training data of noise, through any backbone."""

    seed, image_size, dataset, category = 0, (32, 48), "any", "bolt"

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.channels, self.grids = backbone.channels, backbone.grids(self.image_size)

    def features(self) -> SmallData:
        return self

    def with_backbone(self, backbone: Backbone) -> SmallData:
        return SmallData(backbone)

    @torch.no_grad()
    def batch(self, rows: Any) -> list[torch.Tensor]:
        noise = [torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(int(row))) for row in rows]
        return self.backbone(torch.stack(noise))

    def synthetic(self, *args: Any, **settings: Any) -> Any:
        backbone = self.backbone

        class Through(SyntheticAnomalies):
            def batches(self, rows: Any, epoch: int, shard: Shard = ALONE) -> Any:
                for images in super().batches(rows, epoch, shard):
                    yield replace(images, levels=backbone(images.levels[0]))

        return Through()


class Loader:
    """What Lightning iterates over."""

    def __init__(self, stage: TrainingStage) -> None:
        self.stage = stage

    def __len__(self) -> int:
        return len(self.stage.batches)

    def __iter__(self) -> Any:
        return iter(self.stage.batches.epoch(self.stage.module.current_epoch))


class RateRecorder(pl.Callback):
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def complete(stage: Any, *callbacks: pl.Callback) -> None:
    """A stage from beginning to end."""
    if isinstance(stage, SinglePass):
        stage.compute()
        return
    options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=stage.epochs, enable_model_summary=False, callbacks=[*callbacks], **options
    )
    trainer.fit(stage.module, Loader(stage))


SMALL_STAGES = {
    "pretraining": True,
    "pretraining_epochs": 1,
    "pretraining_batch_size": 4,
    "large_mask_sides": (8, 24),
    "discriminator_width": 4,
    "epochs": 2,
    "steps_per_epoch": 3,
}


def test_stages_of_the_paper_train_the_encoder_and_then_segnet(resnet: Backbone) -> None:
    model, data, names, states = paper_model(resnet, **SMALL_STAGES, iterations=5), SmallData(resnet), [], []
    recorder = RateRecorder()
    for stage in model.stages(data):
        names.append(stage.name)
        complete(stage, recorder)
        states.append({name: value.clone() for name, value in model.state_dict().items()})

    assert names == ["pretraining", "segmentation"]
    learned = {
        name.split(".")[0]: not torch.equal(states[0][name], states[1][name])
        for name, _ in model.named_parameters()
        if "bn" not in name
    }
    assert learned == {"encoder": False, "network": True}
    expected = [cosine_rate(step, start=PAPER.lr, total=5) for step in range(5)]
    assert recorder.rates[-5:] == expected
    assert model.findings() == {"simulation": "slsg"}
    titles = [each.title for each in model.diagnostics(data)]
    assert titles == ["Masked reconstructions", "Simulated anomalies", "Neighbours in the graph"]


def test_frozen_statistics_are_settled_before_features_are_seen(resnet: Backbone) -> None:
    settings = {**SMALL_STAGES, "encoder_statistics": "frozen", "memory_strides": (8, 32), "memory_size": 5}
    model, data = paper_model(resnet, **settings), SmallData(resnet)
    names, means, batch = [], [], None
    for stage in model.stages(data):
        names.append(stage.name)
        means.append(model.encoder.state_dict()["parts.bn1.running_mean"].clone())
        if isinstance(stage, TrainingStage) and stage.name == "segmentation":
            batch = next(iter(stage.batches.epoch(0)))
        complete(stage)

    assert names == ["pretraining", "statistics", "memory", "segmentation"]
    assert not torch.equal(means[1], means[2])
    assert torch.equal(means[2], means[3])
    assert batch is not None
    with torch.no_grad():
        expected = model.encoder(torch.ones(2, 3, 32, 48))[-1]
    torch.testing.assert_close(batch.levels[-1][2:], expected)
    for memory in model.network.memories.values():
        assert memory.features.any(), "features of good images are remembered"


def test_diagnostics_leave_the_model_as_it_is(resnet: Backbone) -> None:
    model = paper_model(resnet).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    model.diagnostics(SmallData(resnet))

    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# Simulation


def test_logical_and_structural_halves_can_be_switched_off() -> None:
    def textures(**settings: Any) -> dict[str, float]:
        recipe, _, _ = choose_simulation(SLSGConfig(**settings), "any", "bolt")
        shares: dict[str, float] = {}
        for branch in recipe.branches:
            shares[branch.texture] = shares.get(branch.texture, 0.0) + branch.share
        return shares

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
    recipe, _, _ = choose_simulation(SLSGConfig(mask_shape="rectangle"), "any", "bolt")

    assert {branch.rule.shape for branch in recipe.branches} == {"rectangle"}


def test_released_recipes_of_loco_are_taken_by_name_and_called_class_tuned() -> None:
    config = PRESETS["official-loco"]

    tuned, tuned_place, tuned_name = choose_simulation(config, "mvtec_loco_anomaly_detection", "juice_bottle")
    generic, generic_place, generic_name = choose_simulation(config, "mvtec_loco_anomaly_detection", "bolt")

    assert "class-tuned" in tuned_name
    assert "class-tuned" not in generic_name
    assert tuned.branches != generic.branches
    assert tuned_place.mode == "threshold"
    assert generic_place.mode == "none"
    assert generic.name == "slsg-official"
    from_files = config.model_copy(update={"foreground": Foreground(mode="files")})
    _, foreground, _ = choose_simulation(from_files, "mvtec_loco_anomaly_detection", "juice_bottle")
    assert foreground.mode == "files"


# The whole method


def test_pixel_backbone_gives_images_as_they_are() -> None:
    backbone = load_backbone(strides=(8, 16))
    pixels, images = pixels_of(backbone), np.random.default_rng(0).random((2, 3, 16, 24), np.float32)
    extractor = make_extractor(pixels, (16, 24))

    assert isinstance(extractor, PixelExtractor)
    assert np.array_equal(extractor(images)[0], images)
    assert pixels.grids((16, 24)) == ((16, 24),)
    geometry = Geometry(size=(16, 24))
    keys = {extractor_key(source, geometry, "onnxruntime", "float32") for source in (pixels, backbone)}
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
def test_a_frozen_backbone_gives_the_features_that_the_model_sees(backbone: str) -> None:
    frozen = load_backbone(backbone, strides=FAST.strides, seed=derived_seed(0, "random backbone"))
    model = SLSG.from_preset("fast", backbone=frozen, image_size=(32, 48))
    images = torch.randn(1, 3, 32, 48)

    assert model.config.frozen_backbone
    assert [stage.name for stage in model.stages(SmallData(frozen))] == ["memory", "segmentation"]
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(model.encoder(images), frozen(images), strict=True))


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
    settle_statistics(encoder, Few(), 3)

    assert all(torch.isfinite(value).all() for value in encoder.state_dict().values())


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
    result = train_tiny("slsg", parts, tmp_path / "run", set={**settings, "decoder_widths": [4, 4, 8, 8]}, report=True)

    assert result.bundle.spec.backbone.name.startswith("resnet18")
    assert result.bundle.spec.backbone.weights == "random"
    assert "simulation" in result.bundle.spec.training.findings
    report = result.report.read_text()
    for title in ("Masked reconstructions", "Simulated anomalies", "Neighbours in the graph"):
        assert title in report


def test_same_seed_draws_the_same_networks() -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        return SLSG.from_preset("fast", image_size=(64, 64), seed=seed).network.state_dict()

    first, again, other = state(0), state(0), state(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("preset", ["fast", "paper", "official"])
def test_state_is_the_whole_model_and_holds_every_tensor_once(preset: str, seed: int) -> None:
    torch.manual_seed(seed)
    backbone = None if preset == "fast" else "resnet18@random"
    model = SLSG.from_preset(preset, backbone=backbone, image_size=(64, 96), seed=1).eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)  # what a training would have left
    images = torch.randn(2, 3, 64, 96)

    other = SLSG.from_preset(preset, backbone=backbone, image_size=(64, 96), seed=2).eval()
    other.load_trained_state(model.trained_state())

    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder", "network"}
    assert model.trained_state().keys() == model.state_dict().keys()
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(other(images), model(images), strict=True))


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_novelty_raises_the_logit_of_the_trained_model(weight: float, seed: int) -> None:
    torch.manual_seed(seed)
    settings = {"scale": "logit", "top_pixels": 9, "novelty_weight": weight}
    model = SLSG.from_preset("fast", image_size=(64, 96), memory_size=1, **settings).eval()

    with torch.no_grad():
        levels = model.encoder(torch.randn(1, 3, 64, 96))
        output, logits = model.from_levels(levels), model.network(levels)

    assert logits.novelty is not None
    assert float(logits.novelty.max()) > 0
    expected = logits.final[:, 1] - logits.final[:, 0] + weight * logits.novelty[:, 0]
    torch.testing.assert_close(output.map, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.score, output.map.flatten(1).topk(9).values.mean(1))


def test_only_the_preset_of_ours_remembers() -> None:
    assert FAST.memory_levels == (2, 3)
    assert not any(PRESETS[name].memory_levels for name in ("paper", "official", "official-loco"))


def test_levels_with_a_memory_are_named_by_their_strides() -> None:
    fast = FAST.model_dump()

    assert SLSGConfig(**{**fast, "memory_strides": (32, 8)}).memory_levels == (1, 3)
    assert SLSGConfig(**{**fast, "memory_strides": ()}).memory_levels == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory_strides": (64,)}, "not among strides"),
        ({"memory_strides": (16,), "encoder_statistics": "batch"}, "encoder_statistics=frozen"),
    ],
    ids=["unknown stride", "changing features"],
)
def test_a_memory_of_features_that_change_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SLSGConfig(**{**FAST.model_dump(), **settings})
