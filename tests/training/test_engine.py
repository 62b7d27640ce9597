"""The loop: resumed at any epoch it ends as if it had never stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from flawsmith.data.seeding import Shard
from flawsmith.metrics.ranking import auroc
from flawsmith.models.base import ALONE, AnomalyOutput, ModelConfig
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.training import trainer
from flawsmith.training.checkpoints import SafeCheckpointIO
from flawsmith.training.selection import EVALUATIONS, HeldOutSelection, TestImage, TestSetSelection
from flawsmith.training.trainer import LoopOptions, MetricsFile, check_options, fit_module

EPOCHS = 5
STEPS = 3


class Regression(pl.LightningModule):
    """Two optimisers, a schedule and a batch norm, as the methods have; can be stopped in the middle of an epoch."""

    def __init__(self, stop: tuple[int, int, type[BaseException]] | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
            self.second = nn.Linear(4, 1)
        self.stop = stop
        self.seen: list[tuple[int, int]] = []

    def training_step(self, batch: tuple[tuple[int, int], Tensor], batch_idx: int) -> dict[str, Tensor]:
        place, values = batch
        if self.stop is not None and place == self.stop[:2]:
            raise self.stop[2]
        self.seen.append(place)
        loss = (self.second(self.first(values)) - values.sum(1, keepdim=True)).square().mean()
        for optimiser in self.optimizers():
            optimiser.zero_grad()
        self.manual_backward(loss)
        for optimiser in self.optimizers():
            optimiser.step()
        return {"loss": loss.detach(), "loss_part": loss.detach() / 2}

    def configure_optimizers(self) -> Any:
        optimizers = [
            torch.optim.Adam(self.first.parameters(), 1e-2),
            torch.optim.AdamW(self.second.parameters(), 1e-2),
        ]
        return optimizers, [torch.optim.lr_scheduler.LambdaLR(optimizers[0], lambda epoch: 0.5**epoch)]

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers().step()


class Batches:
    """Batches that are a function of epoch and step."""

    def __len__(self) -> int:
        return STEPS

    def epoch(self, epoch: int, shard: Shard = ALONE) -> Iterator[tuple[tuple[int, int], Tensor]]:
        for step in range(STEPS):
            yield (epoch, step), torch.randn(6, 3, generator=torch.Generator().manual_seed(100 * epoch + step))


Fit = Callable[..., Regression]


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Fits a module in a folder, with a checkpoint after every epoch unless told otherwise."""

    def run(
        folder: Path,
        *,
        stop: tuple[int, int, type[BaseException]] | None = None,
        selection: Callable[[Regression], HeldOutSelection] | None = None,
        seconds: float = -1.0,
        batches: Batches | None = None,
        logger: Any = "none",
    ) -> Regression:
        monkeypatch.setattr("flawsmith.training.trainer.SECONDS_BETWEEN_CHECKPOINTS", seconds)
        checkpoint = folder / "checkpoints" / "stage.safetensors"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        module = Regression(stop)
        fit_module(
            module,
            batches or Batches(),
            name="stage",
            epochs=EPOCHS,
            checkpoint=checkpoint,
            metrics=MetricsFile(folder / "metrics.jsonl", "stage"),
            options=LoopOptions(accelerator="cpu", logger=logger),
            selection=None if selection is None else selection(module),
        )
        return module

    return run


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


class DyingWorker(Batches):
    """Batches through a worker process that is killed in the second epoch."""

    def epoch(self, epoch: int, shard: Shard = ALONE) -> Iterator[tuple[tuple[int, int], Tensor]]:
        batches = list(super().epoch(epoch, shard))
        loader = iter(DataLoader(range(1000), num_workers=1))
        for batch in batches:
            next(loader)
            if epoch == 1:
                os.kill(loader._workers[0].pid, signal.SIGKILL)
                loader._workers[0].join()
            yield batch


class Workers(Batches):
    """Batches through a worker process that stays from epoch to epoch."""

    def __init__(self) -> None:
        self.loader = DataLoader(range(STEPS), num_workers=1, persistent_workers=True)

    def epoch(self, epoch: int, shard: Shard = ALONE) -> Iterator[tuple[tuple[int, int], Tensor]]:
        for batch, _ in zip(super().epoch(epoch, shard), self.loader, strict=True):
            yield batch


def test_worker_processes_end_with_the_training_though_the_module_lives_on(fit: Fit, tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())

    module = fit(tmp_path, batches=Workers())

    assert module.seen
    assert set(multiprocessing.active_children()) <= before


def test_a_killed_worker_is_one_line_that_says_how_to_go_on(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match=r"--resume.*--workers 0") as raised:
        fit(tmp_path, batches=DyingWorker())
    assert "\n" not in str(raised.value)

    resumed = fit(tmp_path)

    assert min(epoch for epoch, _ in resumed.seen) == 1, "the first epoch is kept"


class KilledError(Exception):
    """Stands for a process that ends."""


@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_resumed_at_any_epoch_the_state_is_that_of_an_uninterrupted_run(epoch: int, fit: Fit, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    with pytest.raises(KilledError):
        fit(tmp_path / "killed", stop=(epoch, 1, KilledError))

    resumed = fit(tmp_path / "killed")

    assert resumed.seen == [(later, step) for later in range(epoch, EPOCHS) for step in range(STEPS)]
    assert_same_state(resumed, whole)
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert metrics[0] == metrics[1]


def test_epochs_since_the_last_checkpoint_are_trained_again(fit: Fit, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    with pytest.raises(KilledError):
        fit(tmp_path / "killed", stop=(3, 0, KilledError), seconds=3600.0)
    assert not any((tmp_path / "killed" / "checkpoints").iterdir())

    resumed = fit(tmp_path / "killed")

    assert resumed.seen[0] == (0, 0)
    assert_same_state(resumed, whole)


def test_finished_stage_is_loaded_not_trained(fit: Fit, tmp_path: Path) -> None:
    whole = fit(tmp_path)
    metrics = (tmp_path / "metrics.jsonl").read_bytes()

    again = fit(tmp_path)

    assert again.seen == []
    assert not again.training
    assert_same_state(again, whole)
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_training_ends_where_the_loss_is_no_number_and_keeps_the_checkpoint_before(fit: Fit, tmp_path: Path) -> None:
    class Broken(Batches):
        def epoch(self, epoch: int, shard: Shard = ALONE) -> Iterator[tuple[tuple[int, int], Tensor]]:
            for place, values in super().epoch(epoch, shard):
                yield place, values * float("nan") if place == (1, STEPS - 1) else values

    with pytest.raises(FlawsmithError, match=r"no number any more in epoch 2: ") as refused:
        fit(tmp_path, batches=Broken())
    advised = re.search(r"--set precision=(\S+),", str(refused.value))
    assert advised is not None
    assert ModelConfig(precision=advised[1]).precision == "32-true"

    state = SafeCheckpointIO().load_checkpoint(tmp_path / "checkpoints" / "stage.safetensors")["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())


def test_metrics_have_the_mean_of_each_loss_an_epoch(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path)

    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    assert [row["epoch"] for row in rows] == list(range(EPOCHS))
    assert all(row["loss_part"] == pytest.approx(row["loss"] / 2) for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_interrupt_leaves_a_resumable_run_and_ctrl_c_working(fit: Fit, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    handler = signal.getsignal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "stopped", stop=(3, 1, KeyboardInterrupt))

    assert signal.getsignal(signal.SIGINT) is handler
    assert_same_state(fit(tmp_path / "stopped"), whole)


def test_damaged_checkpoint_is_named(fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "stage.safetensors").write_bytes(b"damaged")

    with pytest.raises(Exception, match=r"stage\.safetensors.*resume"):
        fit(tmp_path)


# Loggers


def test_metrics_are_whole_where_lightnings_own_logger_starts_anew(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        fit(tmp_path, stop=(3, 0, KilledError), logger="csv")
    fit(tmp_path, logger="csv")

    tables = [file.read_text().splitlines() for file in sorted((tmp_path / "logs").rglob("metrics.csv"))]
    assert [len(table) - 1 for table in tables] == [3, 2], "a row an epoch"
    assert "loss_part" in tables[0][0]
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == list(range(EPOCHS))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_logger_without_its_package_names_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)

    with pytest.raises(FlawsmithError, match=rf"pip install {name}") as error:
        check_options(LoopOptions(accelerator="cpu", logger=name))  # type: ignore[arg-type]

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "quiet"),
    [
        ("wandb", {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}),
        ("mlflow", {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}),
    ],
)
def test_loggers_that_report_home_are_told_not_to_unless_somebody_said_so(
    name: str, quiet: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str | None]] = []
    for logger in ("WandbLogger", "MLFlowLogger"):
        monkeypatch.setattr(trainer, logger, lambda *_, **__: seen.append({key: os.environ.get(key) for key in quiet}))
    for variable in quiet:
        monkeypatch.setenv(variable, "")  # so that it is as before after the test
        monkeypatch.delenv(variable)

    trainer.make_logger(name, tmp_path, "stage")  # type: ignore[arg-type]
    monkeypatch.setenv(next(iter(quiet)), "asked for")
    trainer.make_logger(name, tmp_path, "stage")  # type: ignore[arg-type]

    assert seen == [quiet, quiet | {next(iter(quiet)): "asked for"}]


def test_unknown_logger_is_refused_with_those_there_are() -> None:
    with pytest.raises(FlawsmithError, match=r"'paper'.*csv, tensorboard"):
        check_options(LoopOptions(accelerator="cpu", logger="paper"))  # type: ignore[arg-type]


def test_a_trainer_that_says_nothing_is_refused_by_the_kind_of_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(options: LoopOptions) -> None:
        raise AssertionError

    monkeypatch.setattr(trainer, "make_trainer", silent)

    with pytest.raises(FlawsmithError, match=r"cannot train with --accelerator cpu.*: AssertionError"):
        check_options(LoopOptions(accelerator="cpu"))


# Selection


class Constant(nn.Module):
    """Scores an image by its mean."""

    config = SimpleNamespace(frozen_backbone=False)

    def forward(self, images: Tensor) -> AnomalyOutput:
        return AnomalyOutput(images.mean(1), images.mean((1, 2, 3)))


def images(values: list[float]) -> np.ndarray:
    return np.broadcast_to(np.array(values, np.float32)[:, None, None, None], (len(values), 3, 2, 2)).copy()


def test_selection_measures_how_well_forged_flaws_stand_out() -> None:
    good, synthetic = images([0.0, 1.0, 2.0]), images([1.5, 3.0])

    assert HeldOutSelection(good, synthetic, Constant).measure() == {"selection_auroc": pytest.approx(5 / 6)}


def test_selection_is_due_ten_times_a_run_and_at_its_end() -> None:
    selection = HeldOutSelection(images([0.0]), images([1.0]), Constant)

    for epochs in (1, 7, 40, 95, 640):
        due = [epoch for epoch in range(epochs) if selection.due(epoch, epochs)]
        assert due[-1] == epochs - 1
        assert len(due) <= EVALUATIONS * 2


class Scripted(HeldOutSelection):
    """Gives the values of a script, and notes the module's state at each evaluation."""

    def __init__(self, values: list[float], module: Regression) -> None:
        super().__init__(images([0.0]), images([1.0]), Constant)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "module", module)
        object.__setattr__(self, "states", [])

    def measure(self) -> dict[str, float]:
        self.module.eval()  # type: ignore[attr-defined]
        epoch = self.module.current_epoch  # type: ignore[attr-defined]
        self.states.append({k: v.clone() for k, v in self.module.state_dict().items()})  # type: ignore[attr-defined]
        return {"selection_auroc": self.values[epoch]}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "best"), [([0.5, 0.9, 0.7, 0.6, 0.8], 1), ([0.5] * 5, 0), ([0.1, 0.2, 0.3, 0.4, 0.5], 4)]
)
def test_best_state_is_restored_the_first_of_equals(values: list[float], best: int, fit: Fit, tmp_path: Path) -> None:
    selections: list[Any] = []

    def selection(module: Regression) -> HeldOutSelection:
        selections.append(Scripted(values, module))
        return selections[-1]

    module = fit(tmp_path, selection=selection)

    for name, value in selections[0].states[best].items():
        assert torch.equal(module.state_dict()[name], value), name
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["selection_auroc"] for row in rows] == values


def test_selection_does_not_change_training(fit: Fit, tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain")

    watched = fit(tmp_path / "watched", selection=lambda module: Scripted([0, 0.1, 0.2, 0.3, 0.4], module))

    assert_same_state(watched, plain)


def test_resumed_selection_restores_the_same_best_state(fit: Fit, tmp_path: Path) -> None:
    def selection(module: Regression) -> HeldOutSelection:
        return Scripted([0.5, 0.6, 0.9, 0.7, 0.1], module)

    whole = fit(tmp_path / "whole", selection=selection)
    with pytest.raises(KilledError):
        fit(tmp_path / "killed", selection=selection, stop=(4, 0, KilledError))

    assert_same_state(fit(tmp_path / "killed", selection=selection), whole)


def test_selection_resumes_where_the_run_was_moved(fit: Fit, tmp_path: Path) -> None:
    def selection(module: Regression) -> HeldOutSelection:
        return Scripted([0.9, 0.6, 0.5, 0.7, 0.1], module)

    whole = fit(tmp_path / "whole", selection=selection)
    with pytest.raises(KilledError):
        fit(tmp_path / "killed", selection=selection, stop=(2, 0, KilledError))
    (tmp_path / "killed").rename(tmp_path / "moved")

    assert_same_state(fit(tmp_path / "moved", selection=selection), whole)


def test_training_leaves_denormal_numbers_to_the_rest_of_the_program(trained: Callable[[str], Any]) -> None:
    # Flushing is a state of the processor: left on, metrics in the same process would take 1e-45 for zero.
    trained("pbas")

    assert float(np.nextafter(np.float32(0), np.float32(1)) * np.float32(1)) > 0


class GivenLevels:
    """Level maps of test images: the images themselves, as those of a model with an encoder of its own."""

    def __init__(self, pictures: Tensor) -> None:
        self.pictures = pictures

    def batch(self, rows: Sequence[int]) -> list[Tensor]:
        return [self.pictures[list(rows)]]


def oracle(pictures: Tensor, known: list[TestImage]) -> TestSetSelection:
    return TestSetSelection(known, lambda: GivenLevels(pictures), Constant)  # type: ignore[arg-type, return-value]


def test_oracle_measures_images_and_pixels_of_the_test_split() -> None:
    known, pictures = [], torch.zeros(4, 3, 2, 4)
    for picture, value, flawed in zip(pictures, (0.0, 0.4, 0.2, 0.9), (False, False, True, True), strict=True):
        picture += value
        picture[:, :, 0] += float(flawed)
        # Columns beyond the third are bars; the last flawed image was never annotated.
        mask = np.array([[1, 0, 0]] * 2, bool) if flawed and value < 0.5 else None
        known.append(TestImage(flawed, mask, lambda one: one[:, :3]))

    figures = oracle(pictures, known).measure()

    # Means 0, 0.4, 0.45, 1.15; flawed pixels 1.2 against free ones of 0, 0.4 and 0.2.
    assert figures == {"oracle_image_auroc": 1.0, "oracle_pixel_auroc": 1.0}


def test_oracle_without_masks_goes_by_images_alone() -> None:
    known = [TestImage(flawed, None, lambda one: one) for flawed in (True, False, True)]
    pictures = torch.tensor([0.0, 1.0, 2.0])[:, None, None, None].expand(3, 3, 2, 2)

    assert oracle(pictures, known).measure() == {"oracle_image_auroc": 0.5}


def test_oracle_counts_ties_half_as_the_evaluation_does(seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 4, (24, 1, 6, 6)).astype(np.float32)
    masks = values[:, 0] + np.random.default_rng(seed + 1).normal(0, 2, (24, 6, 6)) > 3
    masks[::2] = False
    known = [TestImage(bool(mask.any()), mask if mask.any() else None, lambda one: one) for mask in masks]

    figures = oracle(torch.from_numpy(np.repeat(values, 3, axis=1)), known).measure()

    expected = auroc(values[:, 0].ravel(), masks.ravel())
    assert figures["oracle_pixel_auroc"] == pytest.approx(expected, abs=1e-12)


def test_figures_are_measured_on_the_device_under_test() -> None:
    """Where the model is: images and level maps come there, and no copy of the model goes elsewhere."""
    device = torch.device(os.environ.get("FLAWSMITH_TEST_DEVICE", "cpu"))
    places: set[str] = set()

    class Placed(Constant):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), device=device))

        def forward(self, images: Tensor) -> AnomalyOutput:
            places.add(images.device.type)
            return super().forward(images * self.scale)

    pictures = torch.tensor([0.0, 1.0, 2.0])[:, None, None, None].expand(3, 3, 2, 2)
    masks = (np.ones((2, 2), bool), None, None)
    known = [TestImage(number == 0, mask, lambda one: one) for number, mask in enumerate(masks)]

    figures = TestSetSelection(known, lambda: GivenLevels(pictures), Placed).measure()  # type: ignore[arg-type, return-value]
    selected = HeldOutSelection(images([0.0]), images([1.0]), Placed).measure()

    assert figures == {"oracle_image_auroc": 0.0, "oracle_pixel_auroc": 0.0}
    assert selected == {"selection_auroc": 1.0}
    assert places == {device.type}


def test_oracle_is_due_after_every_epoch_as_in_the_released_codes() -> None:
    selection = oracle(torch.zeros(0, 3, 2, 2), [])

    assert all(selection.due(epoch, 640) for epoch in range(640))


def test_a_checkpoint_of_other_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    """Loaded without a look at its names, it would be taken for trained and change nothing."""
    file = tmp_path / "checkpoints" / "stage.safetensors"
    SafeCheckpointIO().save_checkpoint({"state_dict": {"of.an.earlier.release": torch.zeros(1)}}, file)

    with pytest.raises(FlawsmithError, match=r"earlier release.*train anew") as error:
        fit_module(
            Regression(),
            Batches(),
            name="stage",
            epochs=1,
            checkpoint=file,
            metrics=MetricsFile(tmp_path / "metrics.jsonl", "stage"),
            options=LoopOptions(),
        )

    assert "\n" not in str(error.value)
