"""A training run from end to end: from a folder of good images to a model file that inspects."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flawsmith.data.groups import one_group_warning, with_groups
from flawsmith.data.layouts import load
from flawsmith.data.quantities import parse_area, parse_extent, parse_length
from flawsmith.data.roi import read_drawing
from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.splits import (
    HoldOut,
    calibration_split,
    content_hashes,
    cross_fit_split,
    learn_from_all,
    leave_out_unreadable,
    refuse_leaks,
    skipped_note,
)
from flawsmith.features.cache import check_cache
from flawsmith.models.base import ModelConfig
from flawsmith.pipeline.input_size import (
    input_size_for,
    refuse_beside_smallest_flaw,
    seen_in_words,
    size_advice,
    typical_size,
)
from flawsmith.pipeline.presets import chosen_backbone, holds_out, refuse_incomplete, refuse_without_masks
from flawsmith.pipeline.progress import READING, Preview, Progress, shown_steps, steps_of_training
from flawsmith.pipeline.settings import (
    TrainSettings,
    check_settings,
    choose_baseline,
    look_at_values,
    method_config,
    require_engine,
    spread,
)
from flawsmith.pipeline.steps import DecodedImages, Job, TrainingSteps, of_files, refuse_without_labels
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import left_out, left_out_note
from flawsmith.runtime.image import decode, image_size
from flawsmith.runtime.roi import Zone
from flawsmith.synthesis.foreground import Foreground, provider
from flawsmith.synthesis.textures import texture_source
from flawsmith.training.data import FirstLook
from flawsmith.training.distributed import is_rank_zero, process_group
from flawsmith.training.run import MODEL, REPORT, RunFolder
from flawsmith.training.trainer import LoggerName, LoopOptions, check_options


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind.

    Attributes:
        folder: the run folder.
        model: the model file.
        report: where the report stands, if one was asked for.
        bundle: the model file's content.
    """

    folder: Path
    model: Path
    report: Path
    bundle: Bundle


def train(
    data: str | Path,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    skip_unreadable: bool = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    strategy: str = "auto",
    logger: LoggerName = "none",
    workers: int | None = None,
    baseline: str = "patchcore",
    report: bool = True,
    dated: bool = False,
    quiet: bool = False,
    on_data: Callable[[Dataset], None] | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    on_preview: Callable[[Preview], object] | None = None,
    **settings: Any,
) -> TrainResult:
    """Learn what a good part looks like, and write a model file.

    Args:
        data: a category folder of a known layout, or a folder of good images.
        out: the run folder; ``runs/<category>`` by default.
        resume: continue a run that was interrupted; it ends with the same bytes as an uninterrupted one.
        skip_unreadable: leave out good images for training and validation that cannot be read, in place of refusing;
            a warning and run.json name them. Test images are never left out.
        accelerator, devices, strategy: Lightning's own options. With several devices the program runs once more for
            each, and all its processes get the same result (docs/train/training.md).
        logger: a logger of Lightning's that gets the metrics too, into ``logs/`` of the run folder: ``csv``,
            ``tensorboard``, ``wandb`` or ``mlflow``. Nothing leaves the machine unless the environment says so.
        workers: processes that synthesize flaws; the result does not depend on it. By default two, or one a core.
        baseline: a method that needs no training, ``patchcore`` or ``padim``, whose model of the same images is written
            into ``baseline/`` of the run folder: reports set the two side by side. ``none`` leaves it out. The model
            itself does not depend on it.
        report: write ``report.html`` into the run folder. A benchmark, which keeps figures alone, leaves it out.
        dated: say in the report when and of what it was made: date, data folder, number of images, hash of the model.
            Without it the same run gives the same bytes.
        quiet: show no progress. Without it stderr gets a bar with the step, the time so far and an estimate for the
            whole, or, where it is no terminal, a line at most every ten seconds.
        on_data: is told the data set with its groups, before anything is learned from it.
        on_progress: is told where the run is, and an estimate of the time that is left.
        on_preview: is shown now and then, where a method learns in epochs, what the model sees of images that it does
            not learn from and of flaws drawn on them. The result does not depend on it.
        **settings: fields of :class:`flawsmith.pipeline.settings.TrainSettings`, such as ``method``, ``preset``,
            ``backbone``, ``seed``, ``set`` (a dictionary of method settings), ``alpha``, or ``tile`` and ``overlap``.

    Raises:
        FlawsmithError: for data or settings that cannot be used, saying how to fix them.
    """
    checked = check_settings(settings, _OPTIONS)
    require_engine(checked)
    beside = choose_baseline(baseline, checked.method)
    preset, config = method_config(checked)
    refuse_incomplete(checked, config)
    checked = checked.model_copy(update={"backbone": chosen_backbone(checked, config)})
    options = LoopOptions(
        precision=config.precision,
        accelerator=accelerator,
        devices=devices,
        strategy=strategy,
        logger=logger,
    )
    trainer = check_options(options)
    if checked.cross_fit is not None and trainer.world_size > 1:
        raise FlawsmithError(f"--cross-fit {checked.cross_fit} trains on one device: leave --devices out")
    if checked.trim is not None and trainer.world_size > 1:
        raise FlawsmithError(f"--trim {checked.trim:g} trains on one device: leave --devices out")
    _check_sources(checked, config)
    pixel_size = None if checked.scale is None else parse_length(checked.scale, "--scale")
    minimum_area = 1 if checked.min_area is None else parse_area(checked.min_area, pixel_size, "--min-area")
    flaw = None
    if checked.smallest_flaw is not None:
        flaw = parse_extent(checked.smallest_flaw, pixel_size, "--smallest-flaw")
        refuse_beside_smallest_flaw(checked.set, checked.tile, config)
    elif checked.tiling is not None:
        _refuse_with_tiles(checked, config)
    check_cache()
    weights = steps_of_training(
        loops="epochs" in type(config).model_fields,
        trims=checked.trim is not None,
        models=checked.cross_fit or 0,
        baseline=beside is not None,
    )
    told = on_progress if is_rank_zero() else None
    with shown_steps(weights, show=not quiet and is_rank_zero(), on_progress=told) as progress:
        progress.begin(READING)
        skipped: dict[str, str] = {}
        dataset = load(data, checked.layout)
        config = config.of_category(dataset.dataset, dataset.category)
        _check_sources(checked, config)  # where masks lie, and whether there are some, depends on the category
        refuse_without_masks(checked, config, dataset)
        if skip_unreadable:
            dataset, skipped = leave_out_unreadable(dataset)
        if checked.select == "oracle":
            refuse_without_labels(dataset)
        choose_split(dataset, checked)  # too few images are refused before all are decoded to tell their groups
        good = _by_content(dataset)
        if checked.min_area is not None:
            _refuse_area(minimum_area, checked.min_area, good[0])
        region, zones = (
            (None, ())
            if checked.roi is None
            else read_drawing(Path(checked.roi), _size_of(good[0]), pixel_size=pixel_size)
        )
        checked, config, size_note = _choose_input(good, checked, config, flaw)
        if checked.tiling is not None:
            _refuse_with_tiles(checked, config)
        geometry = of_files(config.geometry, checked, region)
        others = (each.model_copy(update={"value_range": geometry.value_range}) for each in config.other_geometries)
        watched = spread(good)
        first_look = FirstLook((geometry, *others), checked.tiling, (sample.image for sample in watched))
        dataset = with_groups(dataset, checked.group, first_look.thumbnails)
        if on_data is not None:
            on_data(dataset)
        split = choose_split(dataset, checked)
        refuse_leaks((*split.train, *split.calibration), dataset.test)
        skipped_words = skipped_note(skipped) if skipped else ""
        _warn(left_out_note(left_out([dataset.root])), skipped_words, one_group_warning(split))
        images, advice = look_at_values(watched, checked, first_look.values)
        _warn("" if advice is None else str(advice))
        decoded = DecodedImages()
        for sample in split.calibration:
            if sample.image not in first_look.images:
                decoded.read(sample.image)  # a damaged file is found before the long work, not after it
        _warn(size_note)
        run = RunFolder(Path(out) if out else Path("runs") / dataset.category, options)
        fingerprint = _images_sha256(split)
        facts = {
            **checked.model_dump(mode="json"),
            # Where there are no groups, every way to tell them is none: the way before they could be told.
            "group": checked.group if dataset.grouped_by else "none",
            "preset": preset,
            "config": config.model_dump(mode="json"),
            # Its content, beside the file's name: a mask may be long.
            "region": None if region is None else hashlib.sha256(region.model_dump_json().encode()).hexdigest(),
            "zones": _zones_sha256(zones) if zones else None,
            # Last, so that a setting which chooses the images is named before the choice.
            "data": {
                "dataset": dataset.dataset,
                "category": dataset.category,
                **({"skipped": list(skipped)} if skipped else {}),
                "images_sha256": fingerprint,
            },
        }
        defaults = {
            **TrainSettings(group="none").model_dump(mode="json"),
            "config": type(config)().model_dump(mode="json"),
            "region": None,
            "zones": None,
        }
        job = Job(
            dataset,
            split,
            fingerprint,
            checked,
            preset,
            config,
            run,
            workers,
            beside,
            images,
            skipped,
            region=region,
            zones=zones,
            tiling=checked.tiling,
            minimum_area=minimum_area,
            pixel_size=pixel_size,
            decoded=decoded,
            device=trainer.strategy.root_device,
            reported=report,
            dated=dated,
            show=on_preview,
            progress=progress,
        )
        with ExitStack() as stack:
            if is_rank_zero():
                stack.enter_context(run.claimed(facts, resume=resume, defaults=defaults))
            stack.enter_context(process_group(trainer))
            bundle = TrainingSteps(job).finish()
    return TrainResult(run.path, run.path / MODEL, run.path / REPORT, bundle)


def _warn(*notes: str) -> None:
    """Warn as the caller's own caller, once for all processes; of nothing where a note is empty."""
    for note in notes:
        if note and is_rank_zero():
            warnings.warn(note, stacklevel=3)


_OPTIONS = [name for name in inspect.signature(train).parameters if name != "settings"]


def training_in_words(
    settings: Mapping[str, Any], *, accelerator: str = "auto", devices: int | str = 1, strategy: str = "auto"
) -> str:
    """With what :func:`train` will train on what device, in one line, once it is known that it can.

    Raises:
        FlawsmithError: for settings, devices or a feature cache that cannot be used.
    """
    checked = check_settings(settings)
    check_cache()
    preset, config = method_config(checked)
    refuse_incomplete(checked, config)
    loop = LoopOptions(precision=config.precision, accelerator=accelerator, devices=devices, strategy=strategy)
    trainer = check_options(loop)
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    devices_in_words = name if trainer.world_size == 1 else f"{trainer.world_size} × {name}"
    backbone = chosen_backbone(checked, config)
    return f"method {checked.method}, preset {preset}, backbone {backbone}, on {devices_in_words}"


def _check_sources(settings: TrainSettings, config: ModelConfig) -> None:
    """Textures and masks that are not there, or that nothing would use, are found before the run folder is claimed."""
    for option, place in (("--textures", settings.textures), ("--foregrounds", settings.foregrounds)):
        if place is not None and not config.synthesizes:
            raise FlawsmithError(
                f"{option} {place}: {settings.method} synthesizes no flaws with these settings: leave it out, or "
                "choose --method glass, aand or slsg"
            )
    if settings.textures not in (None, "self"):
        texture_source(settings.textures)
    if settings.foregrounds is not None:
        if not config.foreground_files:
            raise FlawsmithError(
                f"--foregrounds {settings.foregrounds} would not be used: add --set foreground=files, or leave it out"
            )
        provider(Foreground(mode="files"), Path(settings.foregrounds))


def _by_content(dataset: Dataset) -> list[Sample]:
    """The good images that are not test images, in an order that depends on their content alone."""
    good = (*dataset.good_train, *dataset.good_val)
    hashes = content_hashes([sample.image for sample in good])
    return [sample for _, sample in sorted(zip(hashes, good, strict=True), key=lambda pair: pair[0])]


def choose_split(dataset: Dataset, settings: TrainSettings) -> HoldOut:
    """Which images are learned from, and which set the limit.

    Raises:
        FlawsmithError: there are too few for what is asked.
    """
    if settings.cross_fit is not None:
        return cross_fit_split(dataset, settings.seed, settings.cross_fit)
    split = calibration_split if holds_out(settings) else learn_from_all
    return split(dataset, settings.seed).learning_from(settings.fraction)


def _refuse_area(minimum_area: int, text: str, sample: Sample) -> None:
    """Refuse a smallest area that no region can have."""
    height, width = _size_of(sample)
    if minimum_area > height * width:
        raise FlawsmithError(
            f"--min-area {text} is {minimum_area:,} pixels, more than an image of {width} x {height} has: give a "
            "smaller one, or check --scale"
        )


def _zones_sha256(zones: Sequence[Zone]) -> str:
    content = "".join(zone.model_dump_json() for zone in zones)
    return hashlib.sha256(content.encode()).hexdigest()


def _size_of(sample: Sample) -> tuple[int, int]:
    """(height, width) of an image."""
    height, width = image_size(sample.image) or decode(sample.image).shape[:2]
    return height, width


_PLACES_OF_WHOLE_IMAGES = ("files", "disc", "box", "published")


def _refuse_with_tiles(settings: TrainSettings, config: ModelConfig) -> None:
    """What has no meaning, or would leave gaps, where images are cut into tiles."""
    option = f"--tile {settings.tile}"
    if config.policy == "crop":
        raise FlawsmithError(f"{option}: the policy crop would cut the rim off every tile: add --set policy=squash")
    if settings.select == "oracle":
        raise FlawsmithError(
            f"{option}: an oracle measures whole images in the network's pixels: leave one of them out"
        )
    foreground = getattr(config, "foreground", None)
    mode = getattr(foreground, "mode", foreground)
    if config.synthesizes and mode in _PLACES_OF_WHOLE_IMAGES:
        raise FlawsmithError(
            f"{option}: foreground={mode} marks a place in whole images: draw it with --roi, and add --set "
            "foreground=none or auto"
        )


def _choose_input(
    samples: Sequence[Sample], settings: TrainSettings, config: ModelConfig, flaw: float | None
) -> tuple[TrainSettings, ModelConfig, str]:
    """Settings and configuration with the input that the smallest flaw takes, and what is to be said of it."""
    sizes = [size for size in map(image_size, (sample.image for sample in samples)) if size is not None]
    image = typical_size(sizes)
    if image is not None and flaw is not None:
        if flaw > max(image):
            raise FlawsmithError(
                f"--smallest-flaw: {flaw:g} pixels are more than images of {image[1]} x {image[0]} have"
            )
        seen = input_size_for(flaw, image, config)
        words = seen_in_words(flaw, image, seen, config.image_size)
        config = config.model_copy(update={"image_size": seen.network})
        if seen.tiling is not None:
            settings = settings.model_copy(update={"tile": seen.tiling.size, "overlap": seen.tiling.overlap})
        return settings, config, words
    if image is None:
        return settings, config, ""
    if settings.tiling is not None:
        fitting = all(map(settings.tiling.holds, sizes))
        note = f"--tile {settings.tile} changes nothing: every image fits into one tile" if fitting else ""
        return settings, config, note
    return settings, config, size_advice(image, config)


def _images_sha256(split: HoldOut) -> str:
    """SHA-256 over the content of the images learned from and calibrated on, in sorted order."""
    digest = hashlib.sha256()
    for part in (split.train, split.calibration):
        digest.update("".join(sorted(content_hashes([sample.image for sample in part]))).encode())
    return digest.hexdigest()
