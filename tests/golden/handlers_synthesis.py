"""Golden cases of forging: noise, masks, blending."""

from __future__ import annotations

from typing import Any

from tests.golden.steps import Arrays, Results, handles

from flawsmith.synthesis.perlin import gradient_noise


@handles("perlin_noise")
def perlin_fields(case: dict[str, Any], arrays: Arrays) -> Results:
    return {
        f"noise{number}": gradient_noise(tuple(field["shape"]), arrays[f"angles{number}"])
        for number, field in enumerate(case["hyper_parameters"]["fields"])
    }
