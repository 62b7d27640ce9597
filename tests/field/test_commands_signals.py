"""Requests to end: whatever the signal, results so far are kept under names that the message says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import flawsmith

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals of POSIX")

# Waits after the third image, and again while it closes its files, until it is told or interrupted.
PREDICT = """
import sys, time
from flawsmith.cli.main import main
from flawsmith.pipeline import predict

add, finish = predict._Results.add, predict._Results._finish

def adding(self, record):
    add(self, record)
    if self.prediction.total == 3:
        print("third", flush=True)
        time.sleep(60)

def finishing(self, error):
    print("closing", flush=True)
    sys.stdin.readline()
    finish(self, error)

predict._Results.add, predict._Results._finish = adding, finishing
sys.exit(main())
"""


@pytest.fixture
def model(tmp_path: Path, tiny: ModuleType) -> Path:
    """A model whose score is the brightness."""
    tiny.make_bundle().save(tmp_path / "model.flaw")
    return tmp_path / "model.flaw"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        Image.fromarray(np.full((20, 30, 3), 10, np.uint8)).save(folder / f"{number}.png")
    return folder


def start(script: str, *arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    # A shell may have told its children to ignore Ctrl-C, nohup to ignore the end of the terminal.
    default = "signal.signal(signal.SIGINT, signal.default_int_handler); signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    script = f"import signal; {default}\n{script}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    while line := process.stdout.readline():
        if line.strip() == word:
            return
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    ("signals", "code"),
    [
        (["SIGINT"], 130),
        (["SIGTERM"], 143),
        (["SIGHUP"], 129),
        (["SIGINT", "SIGINT", "SIGINT"], 130),
        (["SIGTERM", "SIGINT"], 143),
        (["SIGINT", "SIGTERM", "SIGHUP"], 130),
    ],
)
def test_verdicts_so_far_are_kept_and_named(
    signals: Sequence[str], code: int, earlier: bool, model: Path, photos: Path, tmp_path: Path
) -> None:
    out, names = tmp_path / "out", ["verdicts.csv", "verdicts.jsonl"]
    if earlier:
        out.mkdir()
        for name in names:
            (out / name).write_text("earlier")
    process = start(PREDICT, "predict", model, photos, "--out", "out", cwd=tmp_path)
    wait_for(process, "third")

    process.send_signal(getattr(signal, signals[0]))
    wait_for(process, "closing")
    for name in signals[1:]:
        process.send_signal(getattr(signal, name))
    said = process.communicate("\n")[1]

    lines = "out/verdicts.partial.jsonl" if earlier else "out/verdicts.jsonl"
    assert (process.returncode, said) == (code, f"interrupted; the verdicts of the first 3 images are in {lines}\n")
    assert (tmp_path / lines).read_text().count("\n") == 3
    partial = ["verdicts.partial.csv", "verdicts.partial.jsonl"] if earlier else []
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, *partial])


def test_killed_run_leaves_its_verdicts_where_people_see_them_and_no_lock(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    process = start(PREDICT, "predict", model, photos, "--out", "out", cwd=tmp_path)
    wait_for(process, "third")
    (tmp_path / "out" / "overlays").mkdir()
    for name in ("overlays/.000001-1.png.0123456789ab.tmp", ".verdicts.csv.0123456789ab.tmp"):
        (tmp_path / "out" / name).touch()

    process.kill()
    process.communicate()

    assert (tmp_path / "out" / "verdicts.partial.jsonl").read_text().count("\n") == 3
    again = start("from flawsmith.cli.main import main; main()", "predict", model, photos, "--out", "out", cwd=tmp_path)
    assert again.communicate()[1].startswith("5 images")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["overlays", "verdicts.csv", "verdicts.jsonl"]


SWALLOW = """
import sys, time
from flawsmith.cli import app, main
from flawsmith.pipeline import describe

app.SECONDS_TO_END = 0.3

def swallow(*arguments, **options):
    print("swallowing", flush=True)
    try:
        time.sleep(60)
    except BaseException:  # as a library does whose import is optional
        pass
    time.sleep(60)

describe.model_in_words = swallow
sys.exit(main.main())
"""


def test_request_that_a_library_swallows_is_repeated(model: Path, tmp_path: Path) -> None:
    process = start(SWALLOW, "info", model, cwd=tmp_path)
    wait_for(process, "swallowing")

    process.send_signal(signal.SIGTERM)

    assert process.communicate(timeout=30)[1] == "interrupted\n"
    assert process.returncode == 143


def test_ignored_signals_stay_ignored(model: Path, photos: Path, tmp_path: Path) -> None:
    """As under nohup."""
    script = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{PREDICT.replace('60', '0.5')}"
    process = start(script, "predict", model, photos, "--out", "out", cwd=tmp_path)
    wait_for(process, "third")

    process.send_signal(signal.SIGHUP)

    assert process.communicate("\n")[1].startswith("5 images")
    assert process.returncode == 0


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", ">&- <&-"])
def test_closed_stdout_is_one_line(closed: str, model: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m flawsmith predict {model} gone {closed}"

    done = subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    assert done.returncode == 2
    line = "error: standard output is closed: leave it open, or send it to a file\n"
    assert done.stderr == ("" if "2>&-" in closed else line)


def test_deleted_working_folder_is_one_line(model: Path, tmp_path: Path) -> None:
    command = f"mkdir gone; cd gone; rmdir ../gone; {sys.executable} -m flawsmith info {model}"

    done = subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the working folder cannot be used (No such file or directory)")
    assert done.stderr.count("\n") == 1


# Python imports this module by itself; from then on Ctrl-C comes at the very moment at which a module is looked for.
INTERRUPT_AT = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["MOMENT"]:
            if os.environ["IGNORED"]:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.SIG_IGN if os.environ["IGNORED"] else signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
"""
SCRIPT = ("-c", "import sys; from flawsmith.cli.start import main; sys.exit(main())")


def interrupted_at(
    moment: str, started: Sequence[str], folder: Path, *, ignored: bool = False
) -> subprocess.CompletedProcess[str]:
    """``flawsmith info gone.flaw``, with a Ctrl-C when it begins to import a module."""
    (folder / "sitecustomize.py").write_text(INTERRUPT_AT)
    path = os.pathsep.join([str(folder), str(Path(flawsmith.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "MOMENT": moment, "IGNORED": "1" if ignored else ""}
    command = [sys.executable, *started, "info", "gone.flaw"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


@pytest.mark.parametrize("started", [SCRIPT, ("-m", "flawsmith")])
@pytest.mark.parametrize(
    "moment",
    ["flawsmith.cli.main", "typer", "yaml", "flawsmith.runtime.files", "flawsmith.cli.train", "numpy", "pydantic"],
)
def test_ctrl_c_while_python_imports_is_one_line(moment: str, started: Sequence[str], tmp_path: Path) -> None:
    done = interrupted_at(moment, started, tmp_path)

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_that_is_ignored_stays_so_while_python_imports(tmp_path: Path) -> None:
    done = interrupted_at("typer", SCRIPT, tmp_path, ignored=True)

    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_nothing_is_loaded_before_ctrl_c_has_an_answer() -> None:
    listed = (
        "import sys; before = set(sys.modules); import flawsmith.cli.start; print(*sorted(set(sys.modules) - before))"
    )

    done = subprocess.run([sys.executable, "-S", "-c", listed], capture_output=True, text=True, check=True, env={
        **os.environ, "PYTHONPATH": str(Path(flawsmith.__file__).parents[1])})  # fmt: skip

    loaded = set(done.stdout.split())
    assert {"typing", "typer", "numpy", "signal"}.isdisjoint(loaded), loaded


def test_installed_command_begins_there() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")

    assert 'flawsmith = "flawsmith.cli.start:main"' in project


# As where a library written in C is loaded: what a signal raises there, Python reports as a failed import.
LOADING = """
import signal, sys
from flawsmith.cli.main import main

class Loading:
    def find_spec(self, name, path=None, target=None):
        if name == "flawsmith.pipeline.describe":
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt as error:
                raise ImportError("initialization failed") from error

sys.meta_path.insert(0, Loading())
sys.exit(main())
"""
OVER = """
import signal, sys
from flawsmith.cli import main, start

def run():
    code = main.main()
    signal.raise_signal(signal.SIGINT)
    return code

sys.modules["flawsmith.cli.main"] = type(sys)("main")
sys.modules["flawsmith.cli.main"].main = run
sys.exit(start.main())
"""


def test_ctrl_c_that_became_a_failed_import_is_one_line(tmp_path: Path) -> None:
    process = start(LOADING, "info", "gone.flaw", cwd=tmp_path)

    assert (*process.communicate(), process.returncode) == ("", "interrupted\n", 130)


def test_ctrl_c_when_the_command_is_over_gives_no_traceback(tmp_path: Path) -> None:
    process = start(OVER, "--version", cwd=tmp_path)

    assert (*process.communicate(), process.returncode) == (
        f"flawsmith {flawsmith.__version__}\n", "interrupted\n", 130)  # fmt: skip
