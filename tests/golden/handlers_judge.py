"""Golden cases of GLASS's judge of the distribution hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
from tests.golden.steps import Arrays, Results, handles

from flawsmith.models.glass.hypothesis import SPECTRUM_LIMIT, as_rgb, blurred_grey, judge, resized, spectrum

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@handles("glass_judge")
def glass_judge(case: dict[str, Any], arrays: Arrays) -> Results:
    rgb = as_rgb(arrays["mean_image_normalised"], IMAGENET_MEAN, IMAGENET_STD)
    square = resized(rgb)
    grey = blurred_grey(square)
    found = judge(rgb)
    return {
        "mean_image_bgr_uint8": rgb[..., ::-1],
        "resized_bgr": square[..., ::-1],
        "blurred_gray": grey,
        "spectrum_mask": (spectrum(grey) > SPECTRUM_LIMIT).astype(np.uint8),
        "points": found.count,
        "max_abs_dx": found.half_width,
        "max_abs_dy": found.half_height,
        "radius": found.radius,
        "density_rectangle": found.density_rectangle,
        "density_disc": found.density_disc,
        "decision_hypersphere": int(found.hypothesis == "hypersphere"),
    }


@handles("glass_judge_black")
def glass_judge_black(case: dict[str, Any], arrays: Arrays) -> Results:
    found = judge(np.ascontiguousarray(arrays["mean_image_bgr_uint8"][..., ::-1]))
    return {"points": found.count}
