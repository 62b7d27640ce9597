"""docs/papers.md: nothing of the four papers is missing, and what it names is there."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.core import TyperGroup as Group
from typer.main import get_command

from flawsmith.benchmark.reproduce import plan_names
from flawsmith.cli.main import app

PAGE = Path(__file__).parents[1] / "docs" / "papers.md"
ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII")


class Row(NamedTuple):
    """A row of the page."""

    paper: str
    item: str
    functions: list[str]
    made: str

    @property
    def commands(self) -> list[list[str]]:
        return [call.split() for call in re.findall(r"`(flawsmith [^`]+)`", self.made)]


def rows() -> list[Row]:
    listed, paper = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        paper = line.removeprefix("## ") if line.startswith("## ") else paper
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3 and not cells[0].startswith(("of the paper", "---")):
            listed.append(Row(paper, cells[0].partition(",")[0], re.findall(r"`([^`]+)`", cells[1]), cells[2]))
    return listed


def printed(equations: int, tables: Any, figures: int, algorithms: int = 1) -> set[str]:
    return {
        *(f"Eq. {number}" for number in range(1, equations + 1)),
        *(f"Algorithm {number}" for number in range(1, algorithms + 1)),
        *(f"Table {number}" for number in tables),
        *(f"Fig. {number}" for number in range(1, figures + 1)),
    }


PRINTED = {
    "GLASS": printed(9, range(1, 6), 8),
    "PBAS": printed(12, ROMAN, 13),
    "AAND": printed(14, ROMAN, 8),
    "SLSG": printed(11, range(1, 8), 11, algorithms=0),
}


@pytest.mark.parametrize("paper", PRINTED)
def test_nothing_of_a_paper_is_missing(paper: str) -> None:
    items = [row.item for row in rows() if row.paper == paper]

    assert PRINTED[paper] <= set(items)
    assert set(items) - PRINTED[paper] <= {"Section 4.8"}
    assert len(items) == len(set(items))


def test_functions_are_there() -> None:
    named = {name for row in rows() for name in row.functions}

    assert len(named) > 60
    for name in sorted(named):
        file, _, attribute = name.partition(":")
        value: Any = import_module("flawsmith." + file.removesuffix(".py").replace("/", "."))
        for part in attribute.split("."):
            assert hasattr(value, part), f"docs/papers.md names {name}"
            value = getattr(value, part)


def test_commands_are_understood() -> None:
    root = get_command(app)
    assert isinstance(root, Group)
    for row in rows():
        for _, name, *words in row.commands:
            command: Any = root.commands[name]
            if isinstance(command, Group):
                command, words = command.commands[words[0]], words[1:]
            known = {option for parameter in command.params for option in parameter.opts}
            assert not {word for word in words if word.startswith("--")} - known, f"{row.paper}, {row.item}: {row.made}"
            if name == "reproduce":
                assert words[0] in plan_names(), f"{row.paper}, {row.item}"


def test_row_without_a_command_says_why_and_every_plan_is_named() -> None:
    for row in rows():
        assert row.commands or row.made.startswith("none: "), f"{row.paper}, {row.item}"
        assert row.functions or row.made.startswith("none: "), f"{row.paper}, {row.item}"
    named = {words[2] for row in rows() for words in row.commands if words[1] == "reproduce"}
    assert named == set(plan_names())
