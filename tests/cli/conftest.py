"""The command line in this process, with a tiny model and drawn images."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from flawsmith.cli.main import main

TESTS = Path(__file__).parents[1]


class Outcome(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str


def load_module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Builders of tiny models, shared with the tests of the runtime."""
    return load_module("runtime_tools", TESTS / "runtime" / "conftest.py")


@pytest.fixture(scope="session")
def trees() -> ModuleType:
    """Builders of small image trees, shared with the tests of the data room."""
    return load_module("data_trees", TESTS / "data" / "trees.py")


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
