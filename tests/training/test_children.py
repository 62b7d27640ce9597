"""The other processes of a training: how they are started, and what is said where one of them fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flawsmith.training.processes import _words

# The program as every process runs it: process 1 does what the test says, process 0 waits for it.
PROGRAM = """
import os, sys, time
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.training import processes

processes.GRACE = 2.0
if os.environ.get("LOCAL_RANK") == "1":
    processes.end_with_parent()
    with open(sys.argv[1] + ".part", "w") as file:
        file.write(str(os.getpid()))
    os.replace(file.name, sys.argv[1])
    print("heard by nobody")
    {child}
team = processes.Children(2)
print("port", os.environ["MASTER_PORT"], os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"], flush=True)
try:
    with team.watched():
        {first}
except FlawsmithError as error:
    print("refused:", error, flush=True)
    sys.exit(2)
finally:
    team.end()
print("left", [name for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT") if name in os.environ])
"""
PATIENCE = 120.0


def program(folder: Path, *, child: str, first: str) -> list[str]:
    file = folder / "program.py"
    file.write_text(PROGRAM.format(child=child, first=first))
    return [sys.executable, str(file), str(folder / "pid")]


def run(folder: Path, *, child: str, first: str) -> subprocess.CompletedProcess[str]:
    line = program(folder, child=child, first=first)
    return subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE)


def is_alive(file: Path) -> bool:
    try:
        os.kill(int(file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


LOSES_THE_OTHER = "time.sleep(1.5); raise RuntimeError('Connection closed by peer')"
UNTIL_IT_RUNS = "while not os.path.exists(sys.argv[1]): time.sleep(0.05)"


def test_first_process_says_what_another_one_said(tmp_path: Path) -> None:
    finished = run(tmp_path, child="raise FlawsmithError('the lens is dirty: wipe it')", first=LOSES_THE_OTHER)

    assert finished.returncode == 2
    assert finished.stdout.splitlines()[1:] == ["refused: the lens is dirty: wipe it"]
    assert finished.stderr == ""


def test_what_a_process_tells_counts_more_than_what_it_prints(tmp_path: Path) -> None:
    child = "processes.tell(FlawsmithError('the lens is dirty')); sys.exit('goodbye')"
    finished = run(tmp_path, child=child, first=LOSES_THE_OTHER)

    assert finished.stdout.splitlines()[1:] == ["refused: the lens is dirty"]


def test_process_that_waits_in_a_backend_is_ended_with_one_line(tmp_path: Path) -> None:
    finished = run(tmp_path, child="raise FlawsmithError('the lens is dirty: wipe it')", first="time.sleep(3600)")

    assert finished.returncode == 2
    assert finished.stderr == "error: the lens is dirty: wipe it\n"


def test_process_that_was_killed_is_told_of(tmp_path: Path) -> None:
    finished = run(tmp_path, child="os.kill(os.getpid(), 9)", first=LOSES_THE_OTHER)

    assert finished.returncode == 2
    assert "signal 9" in finished.stdout
    assert "--resume" in finished.stdout


def test_mistake_of_the_first_process_ends_the_others(tmp_path: Path) -> None:
    first = f"{UNTIL_IT_RUNS}\n        raise FlawsmithError('mine')"
    finished = run(tmp_path, child="time.sleep(3600)", first=first)

    assert finished.returncode == 2
    assert finished.stdout.splitlines()[1:] == ["refused: mine"]
    assert not is_alive(tmp_path / "pid")


def test_others_end_with_a_first_process_that_is_killed(tmp_path: Path) -> None:
    line = program(tmp_path, child="time.sleep(3600)", first="time.sleep(3600)")
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + PATIENCE
        while not (tmp_path / "pid").exists() and time.monotonic() < end:
            time.sleep(0.05)  # another process is waited for
        process.send_signal(signal.SIGKILL)

    while is_alive(tmp_path / "pid") and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_alive(tmp_path / "pid")


def test_environment_is_as_before_once_they_have_ended(tmp_path: Path) -> None:
    finished = run(tmp_path, child="time.sleep(3600)", first=UNTIL_IT_RUNS)

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[0].endswith(" 0 2")
    assert finished.stdout.splitlines()[1] == "left []"


@pytest.mark.parametrize(
    ("complaints", "said"),
    [
        ("error: no room\n", "no room"),
        ("Traceback\n  File\nflawsmith.runtime.errors.FlawsmithError: no room\n", "no room"),
        (
            "Traceback\n  File\nValueError: a defect\n",
            "process 3 of this training ended with code 1: ValueError: a defect",
        ),
        ("", "process 3 of this training ended with code 1: without a word"),
    ],
)
def test_last_line_is_what_a_process_said(complaints: str, said: str) -> None:
    failure = _words(3, 1, complaints)

    assert failure.line == said
    assert failure.trace == ("" if said == "no room" else complaints)


def test_program_that_is_no_file_is_refused() -> None:
    line = [sys.executable, "-c", "from flawsmith.training.children import command; print(command())"]
    finished = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE)

    assert finished.returncode == 1
    assert "save it as a script" in finished.stderr.splitlines()[-1]
