"""What becomes of exceptions, warnings, and readers that leave."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from flawsmith.cli import app
from flawsmith.cli.app import own_warnings, run
from flawsmith.runtime.errors import FlawsmithError


def raiser(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FlawsmithError("no such thing; make one"), 2, "error: no such thing; make one"),
        (FlawsmithError("two\nlines"), 2, "error: two lines"),
        (MemoryError(), 2, "error: not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "a.npy"), 2, "error: a.npy: the disk is full"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (typer.Abort(), 130, "interrupted"),
        (typer.BadParameter("not so"), 2, "error: Invalid value: not so"),
    ],
)
def test_exception_becomes_one_line_and_a_code(error, code, line, capsys):
    assert run(raiser(error)) == code

    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1


def test_code_of_a_command_is_passed_on():
    assert run(lambda: 1) == 1
    assert run(lambda: None) == 0


@pytest.mark.parametrize("error", [ValueError("a defect"), OSError(errno.EIO, "broken disk")])
def test_defect_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run(raiser(error))


@pytest.mark.parametrize(
    ("package", "tier", "wanted"),
    [("scipy", "eval", "eval"), ("sklearn.metrics", "eval", "eval"), ("torch", "train", "train")],
)
def test_missing_package_names_the_tier_to_install(package, tier, wanted):
    error = ModuleNotFoundError(f"No module named {package!r}", name=package)

    with pytest.raises(FlawsmithError, match=rf"pip install 'flawsmith\[{wanted}\]'"), app.error_boundary(tier=tier):
        raise error


def test_other_missing_module_is_a_defect():
    with pytest.raises(ModuleNotFoundError), app.error_boundary(tier="train"):
        raise ModuleNotFoundError("No module named 'flawsmith.typo'", name="flawsmith.typo")


def test_own_warnings_are_one_line_and_others_are_silent(capsys):
    with own_warnings():
        warnings.warn_explicit("limits differ", UserWarning, app.__file__, 1)
        warnings.warn_explicit("of no concern", UserWarning, "/elsewhere/torch.py", 1)

    assert capsys.readouterr().err == "warning: limits differ\n"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "flawsmith", *map(str, arguments)]


@pytest.fixture
def environment() -> dict[str, str]:
    source = str(Path(app.__file__).parents[2])
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}


def test_reader_that_leaves_is_no_error(model, trees, tmp_path, environment):
    for index in range(3):
        trees.picture(tmp_path / "photos" / f"{index}.png", seed=index)
    reading, writing = os.pipe()
    os.close(reading)

    done = subprocess.run(
        command("predict", model, tmp_path / "photos", "--out", tmp_path / "v", "--json"),
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=tmp_path,
    )

    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_full_disk_behind_stdout_is_one_line(model, tmp_path, environment):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("info", model), stdout=full, stderr=subprocess.PIPE, env=environment, cwd=tmp_path, text=True
        )

    assert done.returncode == 2
    assert done.stderr.startswith("error: output: the disk is full")
    assert done.stderr.count("\n") == 1
