"""The command line in this process, with a tiny model and drawn images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from flawsmith.cli.main import main


class Outcome(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def flawsmith(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command line."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def model(tmp_path: Path, tiny: ModuleType) -> Path:
    """A model whose score is the brightness: over 0.4 a review, over 0.6 a reject."""
    path = tmp_path / "model.flaw"
    tiny.make_bundle().save(path)
    return path
