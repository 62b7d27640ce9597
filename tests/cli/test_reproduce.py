"""``flawsmith reproduce`` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flawsmith.benchmark.reproduce import plan_names


def test_command_lists_plans_and_names_mistakes(flawsmith: Callable[..., Any], tmp_path: Path) -> None:
    listed = flawsmith("reproduce", "--list", "--json")

    assert set(json.loads(listed.out)) == set(plan_names())
    for arguments, words in (
        (["glass-table-9"], "did you mean 'glass-table-"),
        ([], "say what to make"),
        (["glass-table-1"], "give the folder that holds the data sets with --data"),
        (["glass-table-1", "--data", tmp_path], "MVTec AD is not in"),
    ):
        outcome = flawsmith("reproduce", *arguments, "--out", tmp_path / "out")
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert words in outcome.err
