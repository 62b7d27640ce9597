"""``flawsmith train``, and what it can be told: ``methods`` and ``settings``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from flawsmith.cli.app import (
    DATA,
    RESEARCH,
    SPEED,
    AsJson,
    Bits,
    DataFolder,
    Dated,
    Layout,
    MinArea,
    Quiet,
    Scale,
    ValueRange,
    error_boundary,
    parse_settings,
    print_err,
    print_json,
    print_out,
)
from flawsmith.models import METHODS
from flawsmith.runtime.errors import FlawsmithError

if TYPE_CHECKING:
    from flawsmith.data.samples import Dataset
    from flawsmith.pipeline.train import TrainResult


Method = Annotated[
    str,
    typer.Option(
        help=f"The method: {', '.join(METHODS[:-1])} or {METHODS[-1]}; `flawsmith methods` says more.",
        autocompletion=lambda: METHODS,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(help="fast (the default), paper or official; slsg: official-loco too."),
]
Backbone = Annotated[
    str | None,
    typer.Option(help="efficientnet_lite0 (the default, needs no download), any timm name, a weights file, NAME@FILE."),
]
Seed = Annotated[int, typer.Option(rich_help_panel=RESEARCH, help="Seed of every random draw.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        rich_help_panel=RESEARCH,
        metavar="KEY=VALUE",
        help="Change a setting of the method, such as epochs=20.",
    ),
]
Group = Annotated[
    str,
    typer.Option(
        rich_help_panel=DATA,
        help="What images belong together: folder (of a day, a lot), date, name:REGEX, column:NAME, none, or auto. "
        "Whole groups are held out.",
    ),
]
_OPTIONS_OF = {"alpha": "rate", "review_alpha": "review_rate"}
"""Settings whose options have another name."""
_DERIVED = ("config", "region", "zones", "data")
"""What a run's config.yaml holds beside its settings: what follows from them and from the images."""


def _read_config(file: Path) -> dict[str, Any]:
    """The settings in a config.yaml that a run wrote; ``set`` is a mapping.

    Raises:
        FlawsmithError: it cannot be read, or holds something else.
    """
    try:
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FlawsmithError(f"--config {file} cannot be read: give the config.yaml of a run") from error
    if not isinstance(stored, dict) or not isinstance(stored.get("set") or {}, dict):
        raise FlawsmithError(f"--config {file} holds no settings: give the config.yaml of a run")
    settings = {str(name): value for name, value in stored.items() if name not in _DERIVED and value is not None}
    if "smallest_flaw" in settings:  # from which tiles follow
        settings = {name: value for name, value in settings.items() if name not in ("tile", "overlap")}
    return settings


def _take_config(context: typer.Context, file: Path | None) -> Path | None:
    """Let a run's settings be the defaults of the other options.

    Raises:
        FlawsmithError: the file cannot be read, or a setting is no option of train.
    """
    if file is None or context.resilient_parsing:
        return None
    settings = {_OPTIONS_OF.get(name, name): value for name, value in _read_config(file).items() if name != "set"}
    options = {parameter.name for parameter in context.command.params} - {"data", "config", "json_", "quiet", "out"}
    unknown = next((name for name in settings if name not in options), None)
    if unknown is not None:
        raise FlawsmithError(
            f"--config {file}: train has no setting called {unknown!r}; those of a method go under set"
        )
    if isinstance(settings.get("value_range"), list):
        settings["value_range"] = ":".join(map(str, settings["value_range"]))
    context.default_map = {**(context.default_map or {}), **settings}
    return file


Config = Annotated[
    Path | None,
    typer.Option(
        metavar="YAML",
        is_eager=True,
        callback=_take_config,
        help="config.yaml of an earlier run, to use its settings again; options given here win.",
    ),
]
Out = Annotated[Path | None, typer.Option(help="The run folder; by default runs/<category>.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a run that was interrupted.")]
SkipUnreadable = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable",
        rich_help_panel=DATA,
        help="Leave out good images that cannot be read, naming them; test images never.",
    ),
]
TrainingEngine = Annotated[
    str,
    typer.Option(
        rich_help_panel=SPEED,
        help="onnxruntime or openvino: what training and inspection run on; torch: training features on the GPU.",
    ),
]
Precision = Annotated[str, typer.Option(rich_help_panel=SPEED, help="float32 or bfloat16, of that engine.")]
Select = Annotated[
    str,
    typer.Option(
        rich_help_panel=RESEARCH,
        help="Checkpoint to keep: last, or best on held-out good images and flaws drawn on them.",
    ),
]
Oracle = Annotated[
    bool,
    typer.Option(
        "--oracle",
        rich_help_panel=RESEARCH,
        help="Choose the checkpoint on labelled test data; all results then carry a warning.",
    ),
]
Rate = Annotated[
    str,
    typer.Option(
        "--max-false-rejects",
        "--rate",
        "--alpha",
        help="Share of good parts that may be rejected: 10/1000, 1% or 0.01.",
    ),
]
ReviewRate = Annotated[
    str | None,
    typer.Option(
        "--review-rate", "--review-alpha", help="Share that may be rejected or sent to review; no reviews by default."
    ),
]
Roi = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=DATA,
        metavar="FILE",
        help="Where to look, and zones with limits of their own: JSON polygons or a mask.",
    ),
]
SmallestFlaw = Annotated[
    str | None,
    typer.Option(
        "--smallest-flaw",
        rich_help_panel=DATA,
        metavar="LENGTH",
        help="Width of the smallest flaw to find, 12 (pixels) or 0.5mm; the input is made large enough for it.",
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=DATA,
        metavar="PIXELS",
        help="Cut images into tiles of this side, such as 512, to find small flaws in large images.",
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=DATA, metavar="PIXELS", help="Pixels over which tiles overlap; by default an eighth of a tile."
    ),
]
Textures = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=DATA,
        help="What flaws are synthesized from: a folder of pictures, self, or procedural (the default).",
    ),
]
CrossFit = Annotated[
    int | None,
    typer.Option(
        "--cross-fit",
        rich_help_panel=RESEARCH,
        metavar="MODELS",
        help="Learn from all images; this many further models, each of a part of them, set the limit.",
    ),
]
Holdout = Annotated[
    bool | None,
    typer.Option(
        "--holdout/--no-holdout",
        rich_help_panel=RESEARCH,
        help="Keep good images back to set the limit, or learn from all; by default as the preset has it.",
    ),
]
Trim = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=DATA,
        metavar="SHARE",
        help="Leave out this share of the good images, those least like the others.",
    ),
]
Foregrounds = Annotated[
    str | None,
    typer.Option(rich_help_panel=DATA, help="Folder of masks of where the part is, for --set foreground=files."),
]
Workers = Annotated[
    int | None, typer.Option(rich_help_panel=SPEED, min=0, help="Processes that synthesize flaws; by default two.")
]
Baseline = Annotated[
    str,
    typer.Option(
        rich_help_panel=RESEARCH, help="patchcore or padim, built beside the model to compare it with, or none."
    ),
]
Fraction = Annotated[float, typer.Option(rich_help_panel=RESEARCH, help="Share of the training images to learn from.")]
Accelerator = Annotated[str, typer.Option(rich_help_panel=SPEED, help="Lightning's accelerator, such as cpu or gpu.")]
Devices = Annotated[
    str,
    typer.Option(
        rich_help_panel=SPEED, help="Lightning's devices, each with batches of its own: a number, a list, -1 or auto."
    ),
]
Strategy = Annotated[str, typer.Option(rich_help_panel=SPEED, help="Lightning's strategy; ddp for several devices.")]
Logger = Annotated[
    str,
    typer.Option(
        rich_help_panel=RESEARCH,
        help="Lightning's logger of losses beside metrics.jsonl: none, csv, tensorboard, wandb or mlflow.",
    ),
]
ProgressPath = Annotated[
    Path | None,
    typer.Option(
        "--progress",
        metavar="FILE",
        rich_help_panel=SPEED,
        help="Keep a JSON file that says where the run is, for another program.",
    ),
]


def train(
    data: DataFolder,
    method: Method = "fusion",
    preset: Preset = None,
    backbone: Backbone = None,
    config: Config = None,
    out: Out = None,
    resume: Resume = False,
    rate: Rate = "10/1000",
    review_rate: ReviewRate = None,
    roi: Roi = None,
    min_area: MinArea = None,
    scale: Scale = None,
    smallest_flaw: SmallestFlaw = None,
    tile: Tile = None,
    overlap: Overlap = None,
    bits: Bits = None,
    value_range: ValueRange = None,
    layout: Layout = None,
    group: Group = "auto",
    skip_unreadable: SkipUnreadable = False,
    trim: Trim = None,
    textures: Textures = None,
    foregrounds: Foregrounds = None,
    engine: TrainingEngine = "onnxruntime",
    precision: Precision = "float32",
    accelerator: Accelerator = "auto",
    devices: Devices = "1",
    strategy: Strategy = "auto",
    workers: Workers = None,
    seed: Seed = 0,
    set_: Set = None,
    select: Select = "last",
    oracle: Oracle = False,
    cross_fit: CrossFit = None,
    holdout: Holdout = None,
    fraction: Fraction = 1.0,
    baseline: Baseline = "patchcore",
    logger: Logger = "none",
    progress: ProgressPath = None,
    dated: Dated = False,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Learn what a good part looks like from good images, and write model.flaw and report.html.

    Example: flawsmith train parts/bolt --out runs/bolt
    """
    settings: dict[str, Any] = {"method": method, "preset": preset, "backbone": backbone, "seed": seed}
    settings |= {
        "set": _changes(config, set_),
        "engine": engine,
        "precision": precision,
        "select": _select(select, oracle),
    }
    settings |= {"alpha": rate, "review_alpha": review_rate, "bits": bits, "layout": layout, "group": group}
    settings |= {"roi": roi, "min_area": min_area, "scale": scale, "cross_fit": cross_fit, "trim": trim}
    settings |= {"smallest_flaw": smallest_flaw, "tile": tile, "overlap": overlap}
    settings |= {"value_range": value_range, "textures": textures, "foregrounds": foregrounds, "fraction": fraction}
    settings |= {"holdout": holdout}
    loop = {"accelerator": accelerator, "devices": _devices(devices), "strategy": strategy, "workers": workers}
    loop |= {"logger": logger, "baseline": baseline, "skip_unreadable": skip_unreadable, "dated": dated}
    with (
        error_boundary(tier="train", interrupted="interrupted: continue with --resume"),
        _reported(progress) as told,
    ):
        options = {"out": out, "resume": resume, **told, **loop}
        result = _learn(data, settings, options, quiet=quiet, json_=json_)
    if _is_rank_zero():
        _conclude(result, json_=json_, quiet=quiet)


@contextmanager
def _reported(path: Path | None) -> Iterator[dict[str, Callable[[Any], object]]]:
    """What tells a progress file where the run is, from before torch is imported: `train` takes it."""
    is_first = all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    if path is None or not is_first:
        yield {}
        return
    from flawsmith.pipeline.progress import ProgressFile

    file = ProgressFile(path)
    with file.kept() as tell:
        yield {"on_progress": tell, "on_preview": file.show}


def _changes(config: Path | None, given: Sequence[str] | None) -> dict[str, Any]:
    """Settings of the method: those of an earlier run, and over them those that are given.

    Raises:
        FlawsmithError: one cannot be read.
    """
    former = {} if config is None else _read_config(config).get("set", {})
    return {**former, **parse_settings(given or [])}


def _is_rank_zero() -> bool:
    """Whether this is the one of the processes that train together that speaks."""
    from flawsmith.training.distributed import is_rank_zero

    return is_rank_zero()


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
    from flawsmith.cli.app import parse_range
    from flawsmith.data.layouts import load
    from flawsmith.data.quantities import parse_rate
    from flawsmith.pipeline import train

    settings = dict(settings)
    settings["value_range"] = parse_range(settings["value_range"])
    settings["alpha"] = parse_rate(settings["alpha"], "--max-false-rejects")
    if settings["review_alpha"] is not None:
        settings["review_alpha"] = parse_rate(settings["review_alpha"], "--review-rate")
    # Checked before thousands of images are read to tell what is held out.
    devices = {name: options[name] for name in ("accelerator", "devices", "strategy")}
    first_line = train.training_in_words(settings, **devices)
    if not quiet and _is_rank_zero():
        print_err(first_line)
    dataset = load(data, settings["layout"])

    def introduce(grouped: Dataset) -> None:
        if not quiet and _is_rank_zero():
            _introduce(grouped, settings, notes=dataset.notes)

    try:
        return train.train(data, quiet=quiet or json_, on_data=introduce, **options, **settings)
    except FlawsmithError as error:
        raise _with_way_out(error, dataset, skips=options["skip_unreadable"]) from error


def _introduce(dataset: Dataset, settings: Mapping[str, Any], *, notes: Sequence[str]) -> None:
    """Say what was recognised and what is held out, before the long work begins."""
    from flawsmith.data.groups import groups_in_words
    from flawsmith.pipeline.settings import check_settings
    from flawsmith.pipeline.train import choose_split

    split = choose_split(dataset, check_settings({**settings, "fraction": 1.0}))
    learned, calibration = len(split.train), len(split.calibration)
    counts = f"{learned} to learn, {calibration} to set the limit"
    if split.source == "training":
        learned, counts = 0, "all to learn and to set the limit"
    elif split.folds:
        learned, counts = 0, f"all to learn and, by {len(split.folds)} models of the others, to set the limit"
    summary = (
        f"{dataset.category}: {learned + calibration} good images ({counts}); {len(dataset.test)} test images; "
        f"{dataset.recognised}"
    )
    print_err(summary)
    if line := groups_in_words(dataset, split):
        print_err(line)
    if split.source == "training" or len({sample.image for sample in dataset.good_train}) > learned + calibration:
        print_err(f"note: {split.description}")
    for note in (*notes, *(line for line in dataset.near_misses if line.startswith("not "))):
        print_err(f"note: {note}")
    for line in _checked(dataset):
        print_err(line)


def _checked(dataset: Dataset) -> list[str]:
    """What would spoil the training, in lines."""
    from flawsmith.data.doctor import glance

    lines = [f"{finding.severity}: {finding.in_a_line}" for finding in glance(dataset)]
    return lines or [f"checked {len(dataset.samples)} images: no problems"]


def _with_way_out(error: FlawsmithError, dataset: Dataset, *, skips: bool) -> FlawsmithError:
    """An unusable image among many is best dealt with by seeing all of them at once, or by leaving them out."""
    unusable = [sample for sample in dataset.samples if str(error).startswith(f"{sample.image}:")]
    if not unusable:
        return error
    can_skip = not skips and all(sample.split != "test" for sample in unusable)
    option = ", and --skip-unreadable trains without them" if can_skip else ""
    return FlawsmithError(f"{error}, or remove it; `flawsmith doctor {dataset.root}` lists all such files{option}")


def _remarks(run: Path) -> list[str]:
    """What the run has to say of the images behind its limit."""
    record = run / "run.json"
    return list(json.loads(record.read_text(encoding="utf-8")).get("remarks", ())) if record.is_file() else []


def _conclude(result: TrainResult, *, json_: bool, quiet: bool) -> None:
    from flawsmith.pipeline.describe import expected_verdicts

    decision = result.bundle.spec.decision
    stamps = result.bundle.spec.training.stamps
    if not quiet:
        for stamp in stamps:
            print_err(stamp)
        print_err(*expected_verdicts(result.bundle))
        for remark in _remarks(result.folder):
            print_err(f"note: {remark}")
        print_err(f"model:  {result.model}")
        print_err(f"report: {result.report}")
        print_err(f"next:   flawsmith predict {result.model} IMAGES")
    if json_:
        print_json(
            {
                "folder": str(result.folder),
                "model": str(result.model),
                "report": str(result.report),
                "training": result.bundle.spec.training.model_dump(mode="json"),
                "stamps": stamps,
                "decision": decision.model_dump(mode="json"),
                "worst_false_reject_rate": decision.worst_false_reject_rate,
                "limit_statement": decision.describe(),
            }
        )


def settings(
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="A method, such as pbas.", autocompletion=lambda: METHODS)
    ],
    preset: Annotated[str | None, typer.Option(help="Whose values to show; fast by default.")] = None,
    json_: AsJson = False,
) -> None:
    """List what `flawsmith train --set` can change of a method, with the preset's values.

    Example: flawsmith settings pbas
    """
    with error_boundary(tier="train"):
        from flawsmith.pipeline.settings import describe_settings

        rows = describe_settings(method, preset)
    if json_:
        print_json(rows)
        return
    for row in rows:
        print_out(f"{row['name']}={json.dumps(row['value'], separators=(',', ':'))}", f"    {row['meaning']}")


def methods(json_: AsJson = False) -> None:
    """List the methods: what each is good at, how long it trains on two CPU cores, and its paper.

    Example: flawsmith methods
    """
    with error_boundary(tier="train"):
        from flawsmith.models.registry import find_method, method_names

        rows = [
            {"name": name, "suits": kind.suits, "training_time": kind.training_time, "paper": kind.paper}
            for name, kind in ((name, find_method(name)) for name in method_names())
        ]
    if json_:
        print_json(rows)
        return
    for row in rows:
        print_out(f"{row['name']:<10} {row['suits']}; {row['training_time']}", f"{'':<10} {row['paper']}")
