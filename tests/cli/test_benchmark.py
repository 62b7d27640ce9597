"""``flawsmith benchmark`` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TINY = [
    "epochs=1",
    "image_size=[[64,96]]",
    "width=32",
    "level_width=32",
    "hidden=16",
    "steps_per_epoch=2",
    "patches_per_step=64",
]


@pytest.fixture
def bolt(tmp_path: Path, draw_parts: Callable[..., Path]) -> Path:
    return draw_parts(tmp_path / "line" / "bolt", good=6)


def test_second_run_computes_nothing_and_gives_the_same_tables(
    flawsmith: Callable[..., Any], bolt: Path, tmp_path: Path
) -> None:
    command = ["benchmark", bolt.parent, "--methods", "pbas", "--backbones", "test_efficientnet@random"]
    command += ["--out", tmp_path / "out", *(part for setting in TINY for part in ("--vary", setting))]

    first = flawsmith(*command, "--json")
    assert first.code == 0, first.err
    tables = (tmp_path / "out" / "results.csv").read_bytes()
    second = flawsmith(*command, "--json")

    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert json.loads(first.out)["computed"] == 1
    assert json.loads(second.out)["computed"] == 0
    assert (tmp_path / "out" / "results.csv").read_bytes() == tables


MISTAKES: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "give the data and --methods"),
    "unknown method": (["--methods", "pbas", "glas"], "did you mean 'glass'"),
    "no category": (["--methods", "pbas", "--categories", "nut", "screw"], "there is no category 'nut'"),
    "part": (["--methods", "pbas", "--parts", "C"], "parts"),
    "vary": (["--methods", "pbas", "--vary", "epochs"], "--vary 'epochs' is not key=value"),
    "plan": (["--plan", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_gives_one_line(flawsmith: Callable[..., Any], bolt: Path, tmp_path: Path, mistake: str) -> None:
    arguments, words = MISTAKES[mistake]

    outcome = flawsmith("benchmark", bolt, *arguments, "--out", tmp_path / "out")

    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out" / "runs").exists()
