"""``flawsmith train``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawsmith.cli import train_options as option
from flawsmith.cli.console import emit_json, say, shows_progress
from flawsmith.cli.options import AsJson, DataFolder, Layout, Quiet
from flawsmith.cli.session import session
from flawsmith.runtime.errors import FlawsmithError

if TYPE_CHECKING:
    from flawsmith.data.samples import Dataset
    from flawsmith.pipeline.train import TrainResult


def train(
    data: DataFolder,
    method: option.Method = "pbas",
    preset: option.Preset = None,
    backbone: option.Backbone = None,
    seed: option.Seed = 0,
    set_: option.Set = None,
    out: option.Out = None,
    resume: option.Resume = False,
    engine: option.TrainingEngine = "onnxruntime",
    precision: option.Precision = "float32",
    select: option.Select = "last",
    oracle: option.Oracle = False,
    alpha: option.Alpha = 0.01,
    review_alpha: option.ReviewAlpha = None,
    textures: option.Textures = None,
    foregrounds: option.Foregrounds = None,
    fraction: option.Fraction = 1.0,
    bits: option.Bits = None,
    layout: Layout = None,
    accelerator: option.Accelerator = "auto",
    devices: option.Devices = "1",
    strategy: option.Strategy = "auto",
    workers: option.Workers = None,
    baseline: option.Baseline = "patchcore",
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Learn what a good part looks like from good images, and write model.flaw and report.html.

    Example: flawsmith train parts/bolt --out runs/bolt
    """
    settings: dict[str, Any] = {"method": method, "preset": preset, "backbone": backbone, "seed": seed}
    settings |= {"set": set_ or [], "engine": engine, "precision": precision, "select": _select(select, oracle)}
    settings |= {"alpha": alpha, "review_alpha": review_alpha, "bits": bits, "layout": layout}
    settings |= {"textures": textures, "foregrounds": foregrounds, "fraction": fraction}
    loop = {"accelerator": accelerator, "devices": _devices(devices), "strategy": strategy, "workers": workers}
    loop["baseline"] = baseline
    with session(tier="train", interrupted="interrupted: continue with --resume"):
        result = _learn(data, settings, {"out": out, "resume": resume, **loop}, quiet=quiet, json_=json_)
    if _speaks():
        _conclude(result, json_=json_, quiet=quiet)


def _speaks() -> bool:
    """Whether this is the first of the processes that train together."""
    from flawsmith.training import processes

    return processes.first()


def _select(select: str, oracle: bool) -> str:
    """One way to choose a checkpoint.

    Raises:
        FlawsmithError: two are given.
    """
    if oracle and select not in ("last", "oracle"):
        raise FlawsmithError(f"--oracle and --select {select} choose the checkpoint in two ways: give one of them")
    return "oracle" if oracle else select


def _devices(text: str) -> int | str:
    """Lightning takes a number of devices as a number, and a list of them as text.

    Raises:
        FlawsmithError: the text is neither.
    """
    dense = text.replace(" ", "")
    if re.fullmatch(r"-1|[1-9][0-9]{0,5}", dense):
        return int(dense)
    if re.fullmatch(r"auto|([0-9]+,)+[0-9]*", dense):
        return dense
    raise FlawsmithError(
        f"--devices {text} is not possible: write a number such as 2, a list such as 0,1, -1 for all, or auto"
    )


def _learn(data: Path, settings: dict[str, Any], options: dict[str, Any], *, quiet: bool, json_: bool) -> TrainResult:
    # torch's C++ part tells developers on stderr what concerns several processes; it reads this as it is loaded.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from flawsmith.cli.settings import parse_settings
    from flawsmith.pipeline import train as pipeline
    from flawsmith.pipeline.settings import check_settings, method_config

    settings = {**settings, "set": parse_settings(settings["set"])}
    # Checked before anything is said, and before thousands of images are read to tell what is held out.
    method_config(check_settings(settings))
    dataset = _introduce(data, settings["layout"], settings["seed"], quiet=quiet)
    try:
        return pipeline.train(data, quiet=not shows_progress(quiet=quiet or json_), **options, **settings)
    except FlawsmithError as error:
        raise _with_way_out(error, dataset) from error
    except SystemExit:
        # Lightning ends the process itself after Ctrl-C.
        raise KeyboardInterrupt from None


def _introduce(data: Path, layout: str | None, seed: int, *, quiet: bool) -> Dataset:
    """Say what was recognised and what is held out, before the long work begins."""
    from flawsmith.data.layouts import load
    from flawsmith.data.splits import calibration_split

    dataset = load(data, layout)
    if not quiet and _speaks():
        say(f"{dataset.summary()}: {dataset.recognised}")
        for note in (*dataset.notes, *(line for line in dataset.near_misses if line.startswith("not "))):
            say(f"note: {note}")
        say(calibration_split(dataset, seed).description)
    return dataset


def _with_way_out(error: FlawsmithError, dataset: Dataset) -> FlawsmithError:
    """An unusable image among many is best dealt with by seeing all of them at once."""
    if not any(str(error).startswith(f"{sample.image}:") for sample in dataset.samples):
        return error
    return FlawsmithError(f"{error}, or remove it; `flawsmith doctor {dataset.root}` lists all such files")


def _conclude(result: TrainResult, *, json_: bool, quiet: bool) -> None:
    decision = result.bundle.spec.decision
    stamps = result.bundle.spec.training.stamps
    if not quiet:
        for stamp in stamps:
            say(stamp)
        say(f"model:  {result.model}")
        say(f"report: {result.report}")
        say(decision.describe())
    if json_:
        emit_json(
            {
                "folder": str(result.folder),
                "model": str(result.model),
                "report": str(result.report),
                "training": result.bundle.spec.training.model_dump(mode="json"),
                "stamps": stamps,
                "decision": decision.model_dump(mode="json"),
                "limit_statement": decision.describe(),
            }
        )
