"""The run folder: whose it is, what is computed once, and its metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flawsmith.models.base import SinglePass
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.training.run import RunFolder
from flawsmith.training.trainer import LoopOptions, MetricsFile

CONFIG: dict[str, Any] = {
    "method": "pbas",
    "set": {"image_size": (64, 96), "projector_lr": 1e-05},
    "data": {"category": "Größe 3"},
    "review_alpha": None,
}


def claim(path: Path, *, resume: bool = False, **changes: Any) -> None:
    RunFolder.claim(path, {**CONFIG, **changes}, resume=resume)


class Model:
    """As much of a model as a single pass needs."""

    def __init__(self) -> None:
        self.centers = torch.zeros(0)

    def trained_state(self) -> dict[str, torch.Tensor]:
        return {"centers": self.centers}

    def load_trained_state(self, tensors: dict[str, torch.Tensor]) -> None:
        self.centers = tensors["centers"]


def complete(path: Path, compute: Callable[[Model], None]) -> Model:
    """The model after a single pass of a run in a folder."""
    model: Any = Model()
    RunFolder(path, LoopOptions()).complete(model, SinglePass("centre", lambda: compute(model)))
    return model


def count_up(model: Model) -> None:
    model.centers = torch.arange(3.0)


def begin(path: Path) -> None:
    """Claim a folder and leave a first checkpoint in it, as a run that was interrupted."""
    claim(path)
    complete(path, count_up)


def test_new_folder_is_claimed_with_its_parents(tmp_path: Path) -> None:
    claim(tmp_path / "runs" / "bolt")

    stored = yaml.safe_load((tmp_path / "runs" / "bolt" / "config.yaml").read_text())
    assert stored["method"] == "pbas"
    assert stored["data"] == {"category": "Größe 3"}


def test_empty_folder_is_claimed(tmp_path: Path) -> None:
    claim(tmp_path)

    assert (tmp_path / "config.yaml").is_file()


def test_run_is_not_overwritten_without_resume(tmp_path: Path) -> None:
    begin(tmp_path / "run")

    with pytest.raises(FlawsmithError, match="--resume"):
        claim(tmp_path / "run")


def test_resume_with_the_same_settings_goes_on(tmp_path: Path) -> None:
    """Tuples are lists in the file: the same settings from Python and from a file agree."""
    begin(tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_bytes()

    claim(tmp_path / "run", resume=True)

    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_run_that_never_began_gives_its_folder_to_another(tmp_path: Path) -> None:
    claim(tmp_path / "run")

    claim(tmp_path / "run", method="glass")

    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["method"] == "glass"


def test_run_that_was_stopped_while_it_trimmed_goes_on(tmp_path: Path) -> None:
    claim(tmp_path / "run")
    complete(tmp_path / "run" / "trim", count_up)

    claim(tmp_path / "run", resume=True)
    with pytest.raises(FlawsmithError, match="continue it with --resume"):
        claim(tmp_path / "run")
    with pytest.raises(FlawsmithError, match="begun with method='pbas' instead of 'glass'"):
        claim(tmp_path / "run", resume=True, method="glass")


@pytest.mark.parametrize("resume", [False, True])
def test_run_that_ended_before_it_had_trimmed_can_be_started_again(tmp_path: Path, resume: bool) -> None:
    claim(tmp_path / "run")
    (tmp_path / "run" / "trim" / "checkpoints").mkdir(parents=True)

    claim(tmp_path / "run", resume=resume, method="glass")


def test_run_that_fails_before_it_has_trimmed_leaves_no_folder(tmp_path: Path) -> None:
    def fail() -> None:
        (tmp_path / "run" / "trim" / "checkpoints").mkdir(parents=True)
        (tmp_path / "run" / "trim" / "checkpoints" / ".centre.safetensors.0123456789ab.tmp").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path / "run", LoopOptions()).claimed(CONFIG, resume=False):
        fail()

    assert not (tmp_path / "run").exists()


def test_trimmings_of_another_program_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("theme: dark\n")
    (tmp_path / "trim").mkdir()
    (tmp_path / "trim" / "hedge.txt").write_text("two metres")

    with pytest.raises(FlawsmithError, match="is not empty and holds no run"):
        claim(tmp_path)

    assert (tmp_path / "config.yaml").read_text() == "theme: dark\n"


@pytest.mark.parametrize("resume", [False, True])
def test_run_that_ended_in_its_first_epoch_can_be_started_again(tmp_path: Path, resume: bool) -> None:
    claim(tmp_path / "run")
    MetricsFile(tmp_path / "run" / "metrics.jsonl", "stage").append(0, {"loss": 1.0})
    (tmp_path / "run" / ".metrics.jsonl.ab.tmp").touch()

    claim(tmp_path / "run", resume=resume)

    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_metrics_of_another_program_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}")

    with pytest.raises(FlawsmithError, match="--out"):
        claim(tmp_path)

    assert (tmp_path / "metrics.jsonl").exists()


def test_configuration_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("theme: dark\n")
    (tmp_path / "letter.txt").write_text("dear all")

    with pytest.raises(FlawsmithError, match="--out"):
        claim(tmp_path)

    assert (tmp_path / "config.yaml").read_text() == "theme: dark\n"


def test_resume_of_nothing_begins(tmp_path: Path) -> None:
    claim(tmp_path / "run", resume=True)

    assert (tmp_path / "run" / "config.yaml").is_file()


def test_resume_with_another_setting_names_it(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_bytes()

    with pytest.raises(FlawsmithError, match=r"method='pbas'.*'glass'"):
        claim(tmp_path / "run", resume=True, method="glass")

    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_difference_deep_in_the_settings_is_named_alone(tmp_path: Path) -> None:
    begin(tmp_path)

    with pytest.raises(FlawsmithError, match=r"begun with set\.projector_lr=1e-05 instead of 0\.5: give"):
        claim(tmp_path, resume=True, set={"image_size": (64, 96), "projector_lr": 0.5})
    with pytest.raises(FlawsmithError, match=r"begun with set\.projector_lr=1e-05 instead of None: give"):
        claim(tmp_path, resume=True, set={"image_size": (64, 96)})


def test_setting_that_is_new_since_the_run_began_stood_at_its_default(tmp_path: Path) -> None:
    begin(tmp_path)
    newer = {"set": {**CONFIG["set"], "levels": (1, 2)}}
    defaults = {"set": {"projector_lr": 7.0, "levels": (1, 2)}, "method": "glass"}

    with pytest.raises(FlawsmithError, match=r"set\.levels=None instead of \[1, 2\]"):
        RunFolder.claim(tmp_path, {**CONFIG, **newer}, resume=True)
    with pytest.raises(FlawsmithError, match=r"set\.levels=\[1, 2\] instead of \[3\]"):
        RunFolder.claim(tmp_path, {**CONFIG, "set": {**CONFIG["set"], "levels": (3,)}}, resume=True, defaults=defaults)
    RunFolder.claim(tmp_path, {**CONFIG, **newer}, resume=True, defaults=defaults)

    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["set"]["levels"] == [1, 2]


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear all")

    for resume in (False, True):
        with pytest.raises(FlawsmithError, match="--out"):
            claim(tmp_path, resume=resume)

    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")

    with pytest.raises(FlawsmithError, match="is a file"):
        claim(tmp_path / "run")


@pytest.mark.parametrize("content", [b"{broken", b"just words", b"- a list\n", b"", b"\xff\xfe\x00m"])
def test_damaged_configuration_is_not_resumed(content: bytes, tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "config.yaml").write_bytes(content)

    with pytest.raises(FlawsmithError, match=r"config\.yaml") as error:
        claim(tmp_path, resume=True)

    assert "\n" not in str(error.value)


def test_single_pass_is_computed_once_a_run_and_restored(tmp_path: Path) -> None:
    def never(model: Model) -> None:
        raise AssertionError("it has been computed")

    first = complete(tmp_path, count_up)
    second = complete(tmp_path, never)

    assert torch.equal(first.centers, torch.arange(3.0))
    assert torch.equal(second.centers, torch.arange(3.0))


def test_interrupted_single_pass_is_computed_again(tmp_path: Path) -> None:
    def interrupted(model: Model) -> None:
        count_up(model)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(tmp_path, interrupted)

    assert not list(tmp_path.rglob("*.safetensors"))
    assert torch.equal(complete(tmp_path, count_up).centers, torch.arange(3.0))


def test_repeated_epochs_replace_their_rows_and_no_others(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    first, second = MetricsFile(file, "first"), MetricsFile(file, "second")
    for epoch in range(2):
        first.append(epoch, {"loss": 1.0})
    for epoch in range(4):
        second.append(epoch, {"loss": 9.0})

    second.restart(2)
    second.append(2, {"loss": 5.0})

    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["stage"], row["epoch"], row["loss"]) for row in rows] == [
        ("first", 0, 1.0),
        ("first", 1, 1.0),
        ("second", 0, 9.0),
        ("second", 1, 9.0),
        ("second", 2, 5.0),
    ]
    assert RunFolder(tmp_path, LoopOptions()).metrics() == rows


def test_row_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(file, "stage")
    metrics.append(0, {"loss": 1.0})
    with file.open("a") as stream:
        stream.write('{"stage": "stage", "epo')

    assert len(RunFolder(tmp_path, LoopOptions()).metrics()) == 1
    metrics.restart(1)
    metrics.append(1, {"loss": 2.0})

    assert [row["epoch"] for row in RunFolder(tmp_path, LoopOptions()).metrics()] == [0, 1]


def test_record_is_sorted_json(tmp_path: Path) -> None:
    RunFolder(tmp_path, LoopOptions()).record({"seed": 1, "seconds": {"b": 2.0, "a": 1.0}})

    text = (tmp_path / "run.json").read_text()
    assert json.loads(text) == {"seed": 1, "seconds": {"a": 1.0, "b": 2.0}}
    assert text.index('"a"') < text.index('"b"') < text.index('"seed"')
