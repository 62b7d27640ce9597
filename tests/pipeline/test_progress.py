"""How far a training is: steps, time so far and one estimate."""

from __future__ import annotations

import contextlib
import io
import re
import threading
from pathlib import Path
from types import ModuleType

import pytest

import flawsmith
from flawsmith.pipeline import progress
from flawsmith.pipeline.progress import (
    Display,
    Estimate,
    Position,
    Progress,
    ProgressFile,
    RunState,
    Steps,
    is_alive,
    shown_steps,
    steps_of_training,
)
from flawsmith.runtime.errors import FlawsmithError


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_steps_are_numbered_and_add_up_to_the_whole():
    positions: list[Position] = []
    steps = Steps({"a": 1, "b": 3}, positions.append)

    steps.begin("a")
    steps.begin("b")
    steps.at(0.5, "epoch 1 of 2")
    steps.at(1.0)

    assert [position.words for position in positions] == [
        "step 1 of 2: a",
        "step 2 of 2: b",
        "step 2 of 2: b, epoch 1 of 2",
        "step 2 of 2: b",
    ]
    assert [position.share for position in positions] == [0.0, 0.25, 0.625, 1.0]


def test_steps_within_a_step_move_it_and_never_go_back():
    positions: list[Position] = []
    steps = Steps({"a": 1, "b": 1}, positions.append)
    steps.begin("b")

    inner = steps.within({"x": 1, "y": 1}, 0.0, 0.5)
    inner.begin("y")
    inner.begin("x")
    inner.begin("unknown")

    assert [position.share for position in positions] == [0.5, 0.625, 0.625]
    assert {position.words for position in positions} == {"step 2 of 2: b"}


@pytest.mark.parametrize(("options", "count"), [({}, 6), ({"trims": True}, 7), ({"baseline": False}, 5)])
def test_number_of_steps_follows_what_is_asked_for(options, count):
    assert len(steps_of_training(loops=True, **options)) == count


def test_estimate_is_the_rest_of_the_step_at_its_speed_and_what_the_others_usually_take():
    estimate = Estimate(0.0)

    assert estimate.left(Position("", 0.0, 0.5, 60.0), 0.0) is None
    assert estimate.left(Position("", 0.25, 0.5, 60.0), 100.0) == pytest.approx(100.0 + 30.0)


def test_estimate_of_a_resumed_loop_follows_what_it_does_itself():
    estimate = Estimate(0.0)
    estimate.left(Position("", 0.4, 1.0, 60.0), 1.0)  # restored in a second

    assert estimate.left(Position("", 0.5, 1.0, 60.0), 11.0) == pytest.approx(50.0)


def test_estimate_of_a_step_that_has_not_moved_is_what_it_usually_takes():
    assert Estimate(0.0).left(Position("", 0.5, 0.6, 60.0), 20.0) == pytest.approx(30.0)


def test_log_file_gets_a_line_every_ten_seconds_and_none_before():
    clock, stream = Clock(), io.StringIO()
    display = Display(stream, clock)
    steps = Steps({"learning": 1}, display.tell)

    for second in range(26):
        clock.seconds = second
        steps.at(second / 100, f"epoch {second} of 100")

    assert stream.getvalue().splitlines() == [
        "step 1 of 1: learning, epoch 10 of 100; 0:10 so far, about 2 min left",
        "step 1 of 1: learning, epoch 20 of 100; 0:20 so far, about 1 min left",
    ]


class Listened(io.StringIO):
    """Tells a test that something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def write(self, text: str) -> int:
        self.written.set()
        return super().write(text)


def test_step_that_says_nothing_still_gets_its_lines(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    stream = Listened()

    with shown_steps({"exporting": 1}, show=True, stream=stream) as steps:
        steps.begin("exporting")
        stream.written.clear()

        assert stream.written.wait(10)


def test_person_at_a_terminal_sees_a_bar_with_the_step(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")

    with shown_steps({"learning": 1, "exporting": 1}, show=True) as steps:
        steps.begin("exporting")

    assert "step 2 of 2: exporting" in terminal.getvalue()
    assert "0:00 so far" in terminal.getvalue()


def test_nothing_is_shown_where_silence_is_asked_for(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    stream = io.StringIO()

    with shown_steps({"a": 1}, show=False, stream=stream) as steps:
        steps.begin("a")

    assert stream.getvalue() == ""


def test_training_names_all_its_steps_in_order(
    tmp_path: Path, trees: ModuleType, tiny_settings, exported_once, monkeypatch, capsys
):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setenv("FLAWSMITH_CACHE", str(tmp_path / "cache"))
    for number in range(8):
        trees.picture(tmp_path / "bolt" / f"{number}.png", seed=number)
    settings = {"method": "rd4ad", "backbone": "test_efficientnet@random", "set": tiny_settings("rd4ad")}

    flawsmith.train(tmp_path / "bolt", out=tmp_path / "run", **settings)

    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    numbers = [int(re.match(r"step (\d) of 6: ", line)[1]) for line in lines]
    assert numbers == sorted(numbers)
    assert set(numbers) == {1, 2, 3, 4, 5, 6}
    assert any("epoch 2 of 2" in line for line in lines)
    assert any("computing what to compare images with" in line for line in lines if line.startswith("step 2"))
    assert "building a baseline to compare with" in " ".join(lines)


def test_progress_is_told_beside_what_is_shown() -> None:
    told: list[Progress] = []

    with shown_steps({"learning": 3, "exporting": 1}, show=False, on_progress=told.append) as steps:
        steps.begin("learning")
        steps.at(1.0, "epoch 4 of 4")
        steps.begin("exporting")

    assert [(each.words, each.share) for each in told] == [
        ("step 1 of 2: learning", 0.0),
        ("step 1 of 2: learning, epoch 4 of 4", 0.75),
        ("step 2 of 2: exporting", 0.75),
    ]


@pytest.mark.parametrize(
    ("end", "state", "error"),
    [
        (None, "done", ""),
        (KeyboardInterrupt(), "stopped", ""),
        (FlawsmithError("no images in bolt/"), "failed", "no images in bolt/"),
        (OSError("disk"), "failed", "a defect of Flawsmith (OSError)"),
    ],
)
def test_a_progress_file_says_how_the_run_ended(
    tmp_path: Path, end: BaseException | None, state: str, error: str
) -> None:
    path = tmp_path / "progress.json"

    with contextlib.suppress(BaseException), ProgressFile(path).kept() as tell:
        tell(Progress("step 1 of 2: learning", 0.2, 3.0, 9.0))
        running = RunState.read(path)
        assert is_alive(path)
        if end is not None:
            raise end

    assert running is not None
    assert (running.state, running.progress.words) == ("running", "step 1 of 2: learning")
    ended = RunState.read(path)
    assert ended is not None
    assert (ended.state, ended.error, is_alive(path)) == (state, error, False)


def test_two_runs_do_not_report_in_one_file(tmp_path: Path) -> None:
    with ProgressFile(tmp_path / "p.json").kept(), pytest.raises(FlawsmithError, match="another run reports there"):
        ProgressFile(tmp_path / "p.json").kept().__enter__()
