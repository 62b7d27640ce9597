"""Golden cases of synthesis: noise, masks, blending, whole samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from tests.golden.steps import Arrays, Results, handles

from flawsmith.runtime.geometry import Geometry
from flawsmith.synthesis.blend import NormalWeight, UniformWeight, blend
from flawsmith.synthesis.foreground import through_geometry
from flawsmith.synthesis.masks import gradient_noise, rotate
from flawsmith.synthesis.recipes import RECIPES, Acceptance
from flawsmith.synthesis.synthesizer import find_mask

GLASS, AAND = RECIPES["glass"], RECIPES["aand"]


@handles("perlin_noise")
def perlin_fields(case: dict[str, Any], arrays: Arrays) -> Results:
    return {
        f"noise{number}": gradient_noise(tuple(field["shape"]), arrays[f"angles{number}"])
        for number, field in enumerate(case["hyper_parameters"]["fields"])
    }


@handles("rotation")
def rotated_fields(case: dict[str, Any], arrays: Arrays) -> Results:
    return {
        f"rotated{number}": rotate(arrays[f"field{number}"].astype(np.float32), rotation["angle_degrees"])
        for number, rotation in enumerate(case["hyper_parameters"]["rotations"])
    }


@handles("glass_las_mask")
def las_mask(case: dict[str, Any], arrays: Arrays) -> Results:
    setting = case["hyper_parameters"]
    cells, pairs = setting["cells_per_side"], arrays["noise_fields"].reshape(-1, 2, *setting["image_size"])
    rule = GLASS.branches[0].rule.model_copy(update={"threshold": setting["threshold"]})
    attempts = zip(arrays["uniform_draws"], pairs, strict=True)
    mask, by_cells, tries = find_mask(
        attempts, rule, GLASS.acceptance, foreground=arrays["foreground"] > 0, grid=(cells, cells)
    )
    return {"mask_full": mask, "mask_cells": by_cells, "attempts_used": tries}


@handles("glass_sample")
def glass_sample(case: dict[str, Any], arrays: Arrays) -> Results:
    setting, branch = case["hyper_parameters"], GLASS.branches[0]
    assert isinstance(branch.weight, NormalWeight)
    side, cells = setting["crop"], setting["cells_per_side"]
    geometry = Geometry(
        policy="crop",
        size=(side, side),
        resize=setting["resize_shorter_side"],
        mean=setting["imagenet_mean"],
        std=setting["imagenet_std"],
    )
    plain = geometry.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    image, texture = geometry.apply(arrays["image_rgb"]), geometry.apply(arrays["texture_rgb"])
    foreground = through_geometry(arrays["foreground_file"] > 0, geometry)
    attempt = (setting["uniform_draw"], arrays["noise_fields"])
    mask, by_cells, _ = find_mask([attempt], branch.rule, GLASS.acceptance, foreground=foreground, grid=(cells, cells))
    weight = branch.weight.clip(setting["beta_draw_before_clip"])
    truth = plain.apply(np.repeat(arrays["ground_truth_file"][:, :, None], 3, axis=2))[:1]
    return {
        "image_normalised": image,
        "texture_normalised": texture,
        "mask_full": mask,
        "mask_cells": by_cells,
        "beta_used": weight,
        "synthetic_image": blend(image, texture, mask, weight),
        "ground_truth_resized": truth,
        "ground_truth_used": truth.astype(np.uint8),
    }


@handles("aand_sample")
def aand_sample(case: dict[str, Any], arrays: Arrays) -> Results:
    setting, branch = case["hyper_parameters"], AAND.branches[0]
    assert isinstance(branch.weight, UniformWeight)
    mean, std = setting["imagenet_mean"], setting["imagenet_std"]
    geometry = Geometry(size=(setting["size"], setting["size"]), interpolation="bicubic", mean=mean, std=std)
    image = synthetic = geometry.apply(arrays["image_rgb"])
    texture = ((arrays["texture_bgr"] / np.float32(255) - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)
    foreground = through_geometry(arrays["foreground_file"] > 0, geometry, resampling="nearest")
    rule = branch.rule.model_copy(update={"threshold": setting["threshold"]})
    acceptance = Acceptance(min_pixels=setting["min_pixels"])
    mask, _, _ = find_mask([(0.0, [arrays["noise_field"]])], rule, acceptance, foreground=foreground)
    if AAND.keeps_normal(float(arrays["uniform_keep_normal"])):
        mask = np.zeros_like(mask)
    else:
        synthetic = blend(image, texture, mask, branch.weight.at(float(arrays["uniform_blend"])))
    return {
        "image_normalised": image,
        "foreground": foreground,
        "synthetic_image": synthetic,
        "mask": mask,
        "has_anomaly": mask.any(),
    }
