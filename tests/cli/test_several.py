"""Options with several values in a row."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from flawsmith.cli.app import SeveralValues


class Command(SeveralValues):
    numbers = frozenset({"--seeds"})
    words = frozenset({"--methods"})


def show(
    data: list[Path],
    seeds: Annotated[list[float] | None, typer.Option()] = None,
    methods: Annotated[list[str] | None, typer.Option()] = None,
    flag: Annotated[bool, typer.Option("--flag")] = False,
) -> None:
    print([str(path) for path in data], seeds or [], methods or [], flag)


@pytest.fixture
def run():
    app = typer.Typer()
    app.command(cls=Command)(show)
    return lambda *arguments: CliRunner().invoke(app, list(arguments)).output.strip()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("a", "b", "--seeds", "1", "2"), "['a', 'b'] [1.0, 2.0] [] False"),
        (("--seeds", "1", "2", "a"), "['a'] [1.0, 2.0] [] False"),
        (("--seeds", "1", "-2", "a"), "['a'] [1.0, -2.0] [] False"),
        (("--seeds=1", "--seeds", "2", "a"), "['a'] [1.0, 2.0] [] False"),
        (("a", "--methods", "x", "y", "--flag", "--seeds", "3"), "['a'] [3.0] ['x', 'y'] True"),
        (("--methods", "x", "y", "--", "a"), "['a'] [] ['x', 'y'] False"),
        (("--seeds", "1", "a", "2"), "['a', '2'] [1.0] [] False"),
    ],
)
def test_further_values_belong_to_their_option(run, arguments: tuple[str, ...], expected: str) -> None:
    assert run(*arguments) == expected
