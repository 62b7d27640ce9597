"""Golden cases of AAND."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from tests.golden.steps import Arrays, Results, handles, tensor
from torch import Tensor, nn

from flawsmith.features.patch_embedding import as_rows
from flawsmith.losses import balanced_focal_loss
from flawsmith.models.aand.config import AANDConfig
from flawsmith.models.aand.functional import (
    amplification_loss,
    amplify_by_truth,
    anomaly_map,
    cells_of,
    cosine_distance,
    distillation_loss,
    distillation_stage_loss,
    hard_distillation_loss,
    position_encoding,
    project_queries,
    rate_factor,
    similarities,
)
from flawsmith.models.aand.networks import (
    Amplifier,
    Amplifiers,
    ConvNorm,
    ResidualBlock,
    ResidualGate,
    ResidualGenerator,
    Student,
    layout_for,
    reverse_student,
)
from flawsmith.models.aand.training import SyntheticCells, amplification_losses
from flawsmith.models.components.score_maps import UpsampleAndSmooth
from flawsmith.models.slsg.functional import cosine_rate

WIDE = (256, 512, 1024)


@handles("focal_balanced")
def focal_balanced(case: dict[str, Any], arrays: Arrays) -> Results:
    setting, probability = case["hyper_parameters"], tensor(arrays["probability"]).requires_grad_()
    loss = balanced_focal_loss(probability, tensor(arrays["target"]), alpha=setting["alpha"], gamma=setting["gamma"])
    loss.backward()
    return {"loss": loss, "grad_probability": probability.grad}


@handles("aand_position")
def positions(case: dict[str, Any], arrays: Arrays) -> Results:
    results = {}
    for number, table in enumerate(case["hyper_parameters"]["tables"]):
        encoding, space, half = (
            position_encoding(table["dim"], (table["size"],) * 2),
            table["space_stride"],
            table["dim"] // 2,
        )
        results |= {
            f"table{number}_subsampled": encoding[:: table["channel_stride"], ::space, ::space],
            f"table{number}_first_channels": encoding[:6, :4, :4],
            f"table{number}_middle_channels": encoding[half : half + 6, :4, :4],
        }
    return results


def amplifier_of(arrays: Arrays, prefix: str, setting: Mapping[str, Any], grid: tuple[int, int]) -> Amplifier:
    """An amplifier with the weights of a case."""
    rows, channels = arrays[f"{prefix}memory"].shape
    gate = ResidualGate(channels, grid, memories=rows // 2, temperature=setting["temperature"])
    gate.memory.data = tensor(arrays[f"{prefix}memory"])
    amplifier = Amplifier(gate, ResidualGenerator(channels, residual="tanh"))
    for name, _, layer, kind in _mlp_parameters():
        values = tensor(arrays[f"{prefix}{name}"])
        target = getattr(_mlp(amplifier, name)[layer], kind)
        assert target.numel() == values.numel()
        target.data = values.reshape(target.shape)
    return amplifier


def _mlp_parameters() -> Iterator[tuple[str, str, int, str]]:
    for part in ("gate", "generator"):
        for number in (1, 2, 3):
            for kind in ("weight", "bias"):
                yield f"{part}_layer{number}_{kind}", part, 2 * (number - 1), kind


def _mlp(amplifier: Amplifier, name: str) -> nn.Sequential:
    part = amplifier.gate if name.startswith("gate") else amplifier.generator
    assert part is not None
    return part.mlp


def grid_of(level: np.ndarray) -> tuple[int, int]:
    return int(level.shape[-2]), int(level.shape[-1])


def flat(level: Tensor) -> Tensor:
    """(batch, channel, height, width) as (batch, position, channel)."""
    return level.flatten(2).transpose(1, 2)


@handles("aand_raa")
def residual_module(case: dict[str, Any], arrays: Arrays) -> Results:
    setting, features = case["hyper_parameters"], tensor(arrays["features"])
    grid = grid_of(arrays["features"])
    amplifier = amplifier_of(arrays, "", setting, grid)
    gate = amplifier.gate
    assert gate is not None
    cells = cells_of(tensor(arrays["mask_full"])[:, 0] > 0, grid, share=setting["mask_threshold"])
    with torch.no_grad():
        inspected, trained = amplifier(features), amplifier(features, cells[:, None].float())
        truly = amplify_by_truth(features, trained.residual, cells)
        queries = project_queries(features, gate.position, gate.mlp)
        cosine = flat(gate.matches(features).log())  # relative to its own normaliser
        reference = torch.stack([similarities(rows, gate.memory) for rows in flat(queries)])
    scores = reference / setting["temperature"]
    torch.testing.assert_close(cosine, scores.log_softmax(dim=2), rtol=1e-4, atol=1e-5)
    assert torch.equal(truly, trained.features)
    return {
        "position_encoding": gate.position,
        "queries": flat(queries),
        "cosine": reference,
        "residual_full": flat(inspected.residual),
        "gate": flat(inspected.gate),
        "residual_eval": inspected.features - features,
        "amplified_eval": inspected.features,
        "gate_train": flat(trained.gate),
        "residual_train": trained.features - features,
        "amplified_train": trained.features,
        "cell_mask": cells[:, None],
    }


def drawn_cells(arrays: Arrays, level: str, cells: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """The normal and anomalous cells that the case has drawn, as indices of rows."""
    lists = (~cells & foreground).flatten().nonzero()[:, 0], cells.flatten().nonzero()[:, 0]
    names = f"{level}_normal_subset", f"{level}_anomalous_subset"
    normal, anomalous = (indices[tensor(arrays[name]).long()] for indices, name in zip(lists, names, strict=True))
    return normal, anomalous


@handles("aand_amplify")
def amplification(case: dict[str, Any], arrays: Arrays) -> Results:
    setting = case["hyper_parameters"]
    results, total = {}, torch.zeros(())
    for number, size in enumerate(setting["map_sizes"], 1):
        name, grid = f"level{number}", (size, size)
        masks = (tensor(arrays[f"{kind}_full"])[:, 0] > 0 for kind in ("mask", "foreground"))
        cells, foreground = (cells_of(mask, grid, share=setting["mask_threshold"]) for mask in masks)
        teacher, amplified = as_rows(tensor(arrays[f"{name}_teacher"])), tensor(arrays[f"{name}_amplified"])
        amplified.requires_grad_()
        normal, anomalous = drawn_cells(arrays, name, cells, foreground)
        assert len(normal) <= setting["max_normal"] and len(anomalous) <= setting["max_anomalous"]
        loss = amplification_loss(
            as_rows(amplified)[anomalous], teacher[anomalous], teacher[normal], margin=setting["hinge_margin"]
        )
        if loss.requires_grad:  # not where a level has no anomalous cell
            loss.backward()
        gradient = torch.zeros_like(amplified) if amplified.grad is None else amplified.grad
        total = total + loss.detach()
        results |= {
            f"{name}_cell_mask": cells[:, None],
            f"{name}_foreground_cells": foreground[:, None],
            f"{name}_grad_norm_per_cell": gradient.norm(dim=1),
        }
    return results | {"loss_amplification": total}


@handles("aand_stage1")
def first_stage(case: dict[str, Any], arrays: Arrays) -> Results:
    setting, levels = case["hyper_parameters"], range(1, len(case["hyper_parameters"]["channels"]) + 1)
    config = AANDConfig(
        strides=tuple(2 ** (1 + level) for level in levels),
        memories=setting["memory_rows_per_type"],
        temperature=setting["temperature"],
        cell_share=setting["mask_threshold"],
        focal_alpha=setting["focal_alpha"],
        focal_gamma=setting["focal_gamma"],
        margin=setting["hinge_margin"],
        amplification_weight=setting["amplification_weight"],
        normal_cells=setting["max_normal"],
        anomalous_cells=setting["max_anomalous"],
    )
    features = [tensor(arrays[f"level{level}_features"]) for level in levels]
    grids = [grid_of(arrays[f"level{level}_features"]) for level in levels]
    amplifiers = Amplifiers(setting["channels"], grids, memories=config.memories, temperature=config.temperature)
    for number, level in enumerate(levels):
        amplifiers[number] = amplifier_of(arrays, f"level{level}_", setting, grids[number])
    masks = [tensor(arrays[f"{kind}_full"])[:, 0] > 0 for kind in ("mask", "foreground")]
    anomalous, foreground = ([cells_of(mask, grid, share=config.cell_share) for grid in grids] for mask in masks)
    losses = amplification_losses(
        amplifiers,
        SyntheticCells(features, anomalous, foreground),
        config,
        lambda cells, candidates, number: drawn_cells(arrays, f"level{number + 1}", cells, candidates),
    )
    losses["loss"].backward()
    amplified = amplifiers.amplified(features, [cells[:, None].float() for cells in anomalous])
    results = {
        "loss_focal": losses["loss_focal"],
        "loss_amplification": losses["loss_amplification"],
        "loss_total": losses["loss"],
        "gate_precision": losses["gate_precision"],
        "gate_recall": losses["gate_recall"],
    }
    for number, level in enumerate(levels):
        amplifier, cells = amplifiers[number], anomalous[number]
        results |= {
            f"level{level}_gate": flat(amplified[number].gate),
            f"level{level}_amplified": amplified[number].features,
            f"level{level}_focal": balanced_focal_loss(
                amplified[number].gate[:, 0], cells, alpha=config.focal_alpha, gamma=config.focal_gamma
            ),
            f"grad_level{level}_memory": amplifier.gate.memory.grad,
        }
        for name, _, layer, kind in _mlp_parameters():
            results[f"grad_level{level}_{name}"] = getattr(_mlp(amplifier, name)[layer], kind).grad
    return results


@handles("aand_kd")
def distillation(case: dict[str, Any], arrays: Arrays) -> Results:
    results, total = {}, torch.zeros(())
    numbers = sorted(int(name[5:-8]) for name in arrays if re.fullmatch(r"level\d+_teacher", name))
    for number in numbers:
        name = f"level{number}"
        teacher, student = tensor(arrays[f"{name}_teacher"]), tensor(arrays[f"{name}_student"]).requires_grad_()
        plain = distillation_loss(teacher, student)
        hard = hard_distillation_loss(teacher, student, case["hyper_parameters"]["hard_positions"])
        loss = distillation_stage_loss(plain, hard)
        loss.backward()
        total = total + loss.detach()
        results |= {f"{name}_flat_loss": plain, f"{name}_hard_loss": hard, f"{name}_grad_student": student.grad}
    return results | {"loss_total": total}


@handles("aand_map")
def fused_map(case: dict[str, Any], arrays: Arrays) -> Results:
    setting = case["hyper_parameters"]
    size = (setting["output_size"],) * 2
    results = {}
    for name, sigma in (("map_raw", 0.0), ("map", float(setting["sigma"]))):
        distances, upsample = [], []
        for number in sorted(int(key[5:-8]) for key in arrays if re.fullmatch(r"level\d+_teacher", key)):
            teacher, student = (arrays[f"level{number}_{network}"] for network in ("teacher", "student"))
            upsample.append(UpsampleAndSmooth(grid_of(teacher), size, sigma=sigma, align_corners=True))
            distances.append(cosine_distance(tensor(teacher), tensor(student)))
        results[name] = anomaly_map(distances, upsample)
    return results | {"score": results["map"].amax(dim=(1, 2))}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def wide_student(size: int) -> Student:
    """The student of wide_resnet50_2 for square images."""
    grids = [(size // stride,) * 2 for stride in (4, 8, 16)]
    return reverse_student(WIDE, grids, layout_for("wide_resnet50_2"))


@handles("aand_counts")
def counts(case: dict[str, Any], arrays: Arrays) -> Results:
    student = wide_student(256)
    amplifiers = Amplifiers(WIDE, [(64, 64), (32, 32), (16, 16)])
    embedding, decoder = student.bottleneck, student.decoder
    return {
        **{f"residual_module_level{number}": parameters(part) for number, part in enumerate(amplifiers, 1)},
        "residual_modules_total": parameters(amplifiers),
        **{f"parameters_embedding.block{n}": parameters(block) for n, block in enumerate(embedding.blocks, 1)},
        **{f"parameters_fusion.level{n}": parameters(chain) for n, chain in enumerate(embedding.fusion, 1)},
        **{f"parameters_decoder.stage{n}": parameters(stage) for n, stage in enumerate(decoder.stages, 1)},
    }


def formula(shape: list[int], identity: int) -> np.ndarray:
    """u of the head of cases.json."""
    x = (np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(identity * 0x9E3779B9 % 2**32)) % 2**32
    x = x.astype(np.uint32)
    with np.errstate(over="ignore"):
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x85EBCA6B)
        x ^= x >> np.uint32(13)
        x *= np.uint32(0xC2B2AE35)
        x ^= x >> np.uint32(16)
    return (x.astype(np.float64) / 2**32 - 0.5).astype(np.float32).reshape(shape)


def by_rule(described: dict[str, Any]) -> Tensor:
    u, rule = formula(described["shape"], described["tensor_id"]), described["rule"]
    root = re.fullmatch(r"u\*sqrt\((\d+)/(\d+)\)", rule)
    if root:
        return tensor(u * np.sqrt(np.float32(int(root[1]) / int(root[2])), dtype=np.float32))
    scaled = re.fullmatch(r"(?:([\d.]+)\*)?\(?1\+(?:([\d.]+))?u\)?", rule)
    if scaled:
        inner = np.float32(1) + np.float32(scaled[2] or 1) * u
        return tensor((np.float32(scaled[1] or 1) * inner).astype(np.float32))
    plain = re.fullmatch(r"([\d.]+)u", rule)
    assert plain, f"unknown rule {rule}"
    return tensor(np.float32(plain[1]) * u)


def layer_of(student: Student, path: str) -> nn.Module:
    """The layer that a name of the case stands for."""
    part, stage, *rest = path.split(".")
    number = int(stage[-1]) - 1
    if part == "fusion":
        kind, _, which = rest[0].partition("_")
        pair = student.bottleneck.fusion[number][2 * "ab".index(which or "a")]
        return getattr(pair, kind)
    blocks = student.bottleneck.blocks if part == "embedding" else student.decoder.stages[number]
    block = blocks[number if part == "embedding" else int(rest.pop(0)[-1]) - 1]
    return _inside(block, rest[0])


def _inside(block: ResidualBlock, name: str) -> nn.Module:
    first, _, second = name.partition("_")
    if first == "shortcut":
        assert isinstance(block.shortcut, ConvNorm)
        return getattr(block.shortcut, second)
    return getattr(block.path[("reduce", "spatial", "expand").index(second)], first)


def some_channels(maps: Tensor, stored: Any) -> Tensor:
    """The evenly spaced channels that a case has room for."""
    return maps[:, :: maps.shape[1] // stored.shape[1]]


@handles("aand_networks")
def networks(case: dict[str, Any], arrays: Arrays) -> Results:
    setting = case["hyper_parameters"]
    student = wide_student(4 * arrays["student_level1_eval"].shape[-1])
    names = {"gamma": "weight", "beta": "bias"}
    for described in setting["tensors"]:
        path, _, kind = described["name"].rpartition(".")
        target = getattr(layer_of(student, path), names.get(kind, kind))
        assert list(target.shape) == described["shape"], described["name"]
        target.data = by_rule(described)
    results: dict[str, Any] = {
        "bottleneck_parameters_used": parameters(student.bottleneck),
        "bottleneck_parameters_unused": (2 * 2048 * 2048) + 2 * 2048,  # what the released code carries along
        "decoder_parameters": parameters(student.decoder),
    }
    for mode in ("eval", "train"):
        student.train(mode == "train")
        stored = [arrays[f"student_level{number}_{mode}"].shape for number in (1, 2, 3)]
        shapes = zip(WIDE, stored, setting["input_ids"][mode], strict=True)
        levels = [2 * tensor(formula([shape[0], count, *shape[2:]], number)).abs() for count, shape, number in shapes]
        with torch.no_grad():
            embedding = student.bottleneck(levels)
            reconstructed = student.decoder(embedding)
        results[f"embedding_{mode}"] = some_channels(embedding, arrays[f"embedding_{mode}"])
        for number, level in enumerate(reconstructed, 1):
            name = f"student_level{number}_{mode}"
            results[name] = some_channels(level, arrays[name])
    for name in arrays:
        if "_after_train." in name:
            statistic, _, path = name.partition("_after_train.")
            results[name] = getattr(layer_of(student, path), statistic)
    return results


@handles("schedules")
def schedules(case: dict[str, Any], arrays: Arrays) -> Results:
    setting, slsg, results = case["hyper_parameters"]["aand"], case["hyper_parameters"]["slsg"], {}
    steps = arrays["slsg_steps"].tolist()
    results["slsg_rate"] = [cosine_rate(step, start=slsg["start"], total=slsg["total"]) for step in steps]
    for epochs in setting["epochs"]:
        milestones = [share * epochs for share in setting["milestones"]]
        # The released code decays where a milestone equals an epoch; ours does so in the first epoch that reaches it.
        whole = [milestone for milestone in milestones if float(milestone).is_integer()]
        results[f"aand_rate_{epochs}_epochs"] = [
            setting["start"] * rate_factor(epoch, factor=setting["factor"], milestones=whole) for epoch in range(epochs)
        ]
    return results
