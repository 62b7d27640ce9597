"""The methods' golden cases: each step of the released code, repeated by the functions that training uses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests.golden import (  # noqa: F401, they register their handlers
    handlers_aand,
    handlers_glass,
    handlers_judge,
    handlers_loco,
    handlers_pbas,
    handlers_slsg,
    handlers_synthesis,
)
from tests.golden.steps import CASES, HANDLERS, PACKAGED, arrays_of, assert_agrees

ELSEWHERE = ("metrics",)  # test_metrics.py

BUILT = [case for case in CASES if case["kind"] in HANDLERS]


@pytest.mark.parametrize("case", BUILT, ids=[case["name"] for case in BUILT])
def test_step_equals_the_released_code(case: dict[str, Any]) -> None:
    arrays = arrays_of(case)

    results = HANDLERS[case["kind"]](case, arrays)

    for name, described in case["arrays"].items():
        if described.get("compare") == "information only":
            continue
        assert name in results or described["role"] != "output", f"{name} is expected but not computed"
        if name in results:
            assert_agrees(case, name, arrays[name], results[name])


FOLDED = [case for case in CASES if case["kind"] == "inference"]


@pytest.mark.parametrize("case", FOLDED, ids=[case["name"] for case in FOLDED])
def test_export_form_equals_the_released_code(case: dict[str, Any]) -> None:
    arrays = arrays_of(case)

    with torch.no_grad():
        output = handlers_pbas.inference_model(case, arrays).export_form()(torch.empty(0))

    assert_agrees(case, "image_scores", arrays["image_scores"], output.score)
    assert_agrees(case, "maps", arrays["maps"], output.map)


def test_every_kind_is_handled() -> None:
    kinds = {case["kind"] for case in CASES}

    assert kinds <= {*HANDLERS, *ELSEWHERE}


def test_nothing_is_listed_that_is_not_there() -> None:
    cases = json.loads((PACKAGED / "cases.json").read_text(encoding="utf-8"))["cases"]
    kinds = {case["kind"] for case in cases}

    assert {*HANDLERS, *ELSEWHERE} == kinds
