"""The methods' golden cases: each step of the released code, repeated by the functions that training uses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests.golden import handlers_aand, handlers_glass, handlers_judge, handlers_loco, handlers_pbas, handlers_synthesis  # noqa: F401, they register their handlers
from tests.golden.steps import CASES, HANDLERS, PACKAGED, arrays_of, assert_agrees

# Kinds whose methods come with later issues, by the issue that brings them.
NOT_YET: Mapping[str, int] = {
    "slsg_scoring": 5,
    "slsg_losses": 5,
    "slsg_position": 5,
    "slsg_network": 5,
    "slsg_block": 5,
}
# Outputs of kinds that are handled but belong to such methods too.
OUTPUTS_NOT_YET: Mapping[str, tuple[str, ...]] = {
    "optimisers": ("displacement_slsg_segmentation",),
    "schedules": ("slsg_rate",),
}
ELSEWHERE = ("metrics",)  # test_metrics.py

BUILT = [case for case in CASES if case["kind"] in HANDLERS]


@pytest.mark.parametrize("case", BUILT, ids=[case["name"] for case in BUILT])
def test_step_equals_the_released_code(case: dict[str, Any]) -> None:
    arrays = arrays_of(case)

    results = HANDLERS[case["kind"]](case, arrays)

    later = OUTPUTS_NOT_YET.get(case["kind"], ())
    for name, described in case["arrays"].items():
        if described.get("compare") == "information only" or name in later:
            continue
        assert name in results or described["role"] != "output", f"{name} is expected but not computed"
        if name in results:
            assert_agrees(case, name, arrays[name], results[name])


FOLDED = [case for case in CASES if case["kind"] == "inference"]


@pytest.mark.parametrize("case", FOLDED, ids=[case["name"] for case in FOLDED])
def test_folded_detector_equals_the_released_code(case: dict[str, Any]) -> None:
    arrays = arrays_of(case)

    with torch.no_grad():
        output = handlers_pbas.inference_detector(case, arrays).folded()(torch.empty(0))

    assert_agrees(case, "image_scores", arrays["image_scores"], output.score)
    assert_agrees(case, "maps", arrays["maps"], output.map)


def test_every_kind_is_handled_or_waits_for_its_issue() -> None:
    kinds = {case["kind"] for case in CASES}

    assert kinds <= {*HANDLERS, *NOT_YET, *ELSEWHERE}
    assert not {*HANDLERS} & {*NOT_YET}


def test_nothing_is_listed_that_is_not_there() -> None:
    cases = json.loads((PACKAGED / "cases.json").read_text(encoding="utf-8"))["cases"]
    outputs = {case["kind"]: set(case["arrays"]) for case in cases}

    assert {*HANDLERS, *NOT_YET, *ELSEWHERE} == set(outputs)
    for kind, names in OUTPUTS_NOT_YET.items():
        assert set(names) <= outputs[kind]
