"""From a few lists, in a YAML file or on the command line, to the runs of a benchmark."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from flawsmith.benchmark.experiment import (
    WORD_TEXTURES,
    BenchmarkRun,
    Experiment,
    Measurement,
    ProtocolName,
    SplitPart,
    Task,
)
from flawsmith.data.layouts import load_categories
from flawsmith.data.layouts.names import nfc
from flawsmith.data.samples import Dataset
from flawsmith.data.splits import content_hash, dataset_fingerprint
from flawsmith.features.backbones import names_published, users_file
from flawsmith.models.registry import find_method
from flawsmith.pipeline.presets import chosen_backbone, refuse_incomplete
from flawsmith.pipeline.settings import check_settings, in_words, method_config, require_engine
from flawsmith.runtime.bundle import SelectionName
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import BASELINES, expanded, find_images
from flawsmith.synthesis.foreground import FileForeground
from flawsmith.synthesis.textures import DTD, holds_dtd, texture_source

_DIGEST = re.compile(r"@([0-9a-f]{64})$")


class Plan(BaseModel):
    """What to compare, on what, and how it is measured; every combination is a run.

    Example of a file::

        data: [parts, ../mvtec_ad]        # categories, or folders of them
        categories: [bolt, screw]         # only these of them
        methods: [pbas, patchcore, {method: glass, textures: ../dtd, name: GLASS with DTD}]
        seeds: [0, 1, 2]
        vary: {patch_size: [1, 3, 5]}     # settings of the methods, every value an experiment
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: tuple[Path, ...] = Field(min_length=1, description="Folders of categories, or of data sets with categories.")
    categories: tuple[str, ...] = Field((), description="Names of categories to take; empty: all that are found.")
    layout: str | None = Field(None, description="Layout of all of them; detected by default.")
    methods: tuple[Experiment, ...] = Field(min_length=1, description="What to compare, by name or with settings.")
    presets: tuple[str, ...] = Field(
        (), description="Presets, each an experiment of every method that names none itself."
    )
    backbones: tuple[str, ...] = Field(
        (), description="Backbones, each an experiment of every method that names none itself."
    )
    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (), description="Shares of the training images, each an experiment."
    )
    vary: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="Settings, each value an experiment.")
    textures: str | None = Field(None, description="Textures of all methods that synthesize and name none themselves.")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1, description="Seeds.")
    parts: tuple[SplitPart, ...] = Field(("whole",), min_length=1, description="Parts of the test split to report.")
    protocol: tuple[ProtocolName, ...] = Field(
        ("clean",), min_length=1, description="Rules of evaluation; by several the same model is measured by each."
    )
    evaluate_on: tuple[Path, ...] = Field(
        (), description="Data sets on whose category of the same name every model is measured too."
    )
    foregrounds: Path | None = Field(
        None, description="Folder of foreground masks, for foreground=files; fg_mask beside the images by default."
    )
    batches: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Batch sizes at which images a second are counted."
    )
    title: str = Field("", description="What the plan makes, in a line.")
    printed_in: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="Tables of published.csv to set the results beside, by paper."
    )
    select: SelectionName = Field("last", description="Checkpoint of all methods that name none themselves.")
    resamples: int = Field(1000, ge=0, description="Bootstrap resamples behind the intervals.")

    @field_validator(
        *("data", "categories", "presets", "backbones", "fractions", "seeds", "parts"),
        *("protocol", "evaluate_on", "batches"),
        mode="before",
    )
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return value if isinstance(value, (list, tuple)) else [value]

    @field_validator("vary", mode="before")
    @classmethod
    def _each_one_or_several(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: entry if isinstance(entry, (list, tuple)) else [entry] for name, entry in value.items()}

    @field_validator("methods", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        values = value if isinstance(value, (list, tuple)) else [value]
        for entry in values:
            if isinstance(entry, dict) and "method" not in entry:
                raise ValueError(f"write {{method: NAME, ...}} instead of {entry}")
        return [{"method": entry} if isinstance(entry, str) else entry for entry in values]

    @classmethod
    def from_file(cls, path: Path, changes: Mapping[str, Any] | None = None) -> Plan:
        """Read a YAML file; folders in it are relative to the file.

        Args:
            path: the file.
            changes: fields that replace those of the file.

        Raises:
            FlawsmithError: it cannot be read, is no YAML, or a field is unknown or out of range.
        """
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeError) as error:
            raise FlawsmithError(f"{path}: cannot be read ({error}); give a YAML file") from None
        except (yaml.YAMLError, RecursionError) as error:
            raise FlawsmithError(f"{path}: is no YAML ({' '.join(str(error).split())})") from None
        if not isinstance(fields, dict):
            raise FlawsmithError(f"{path}: holds no mapping; write for example `data: [parts]` and `methods: [pbas]`")
        plan = cls.checked({**fields, **(changes or {})}, source=str(path))
        return plan.resolved(path.absolute().parent, set(fields) - set(changes or {}))

    @classmethod
    def checked(cls, values: Mapping[str, Any], *, source: str) -> Plan:
        """A plan from loose values.

        Raises:
            FlawsmithError: an unknown field or a value out of range, in one line.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise in_words(error, f"{source}: ") from error
        except TypeError as error:
            raise FlawsmithError(f"{source}: {error}") from None

    def resolved(self, folder: Path, fields: set[str]) -> Plan:
        """The plan with the relative paths of some fields taken from a folder."""
        changes: dict[str, Any] = {}
        for name in ("data", "evaluate_on"):
            if name in fields:
                changes[name] = tuple(folder / expanded(path) for path in getattr(self, name))
        if "foregrounds" in fields and self.foregrounds is not None:
            changes["foregrounds"] = folder / expanded(self.foregrounds)
        if "textures" in fields:
            changes["textures"] = _resolved_textures(self.textures, folder)
        if "methods" in fields:
            changes["methods"] = tuple(
                experiment.model_copy(update={"textures": _resolved_textures(experiment.textures, folder)})
                for experiment in self.methods
            )
        return self.model_copy(update=changes)

    def experiments(self) -> list[Experiment]:
        """Every combination of methods, presets, backbones, fractions and varied settings."""
        settings = [dict(zip(self.vary, values, strict=True)) for values in itertools.product(*self.vary.values())]
        experiments = [
            experiment.model_copy(
                update={**preset, **backbone, **fraction, **select, "set": {**experiment.set, **varied}}
            )
            for experiment in self.methods
            for preset in _choices(experiment, "preset", self.presets)
            for backbone in _choices(experiment, "backbone", self.backbones)
            for fraction in _choices(experiment, "fraction", self.fractions)
            for select in _choices(experiment, "select", (self.select,))
            for varied in settings
        ]
        return list({experiment.model_dump_json(): experiment for experiment in experiments}.values())


class ResolvedExperiment(NamedTuple):
    """An experiment with what the plan gives it, its whole configuration, and its backbone.

    The backbone is a name or a file, None for a model that brings its own; ``foreground_files``: where flaws are
    synthesized is read from mask files.
    """

    experiment: Experiment
    config: dict[str, Any]
    backbone: str | None
    foreground_files: bool = False


def resolve(experiment: Experiment, plan: Plan) -> ResolvedExperiment:
    """What an experiment with a method of this package comes to.

    Raises:
        FlawsmithError: no such method, preset or setting.
    """
    same = ("method", "preset", "set", "engine", "precision", "fraction", "holdout")
    settings = check_settings({name: getattr(experiment, name) for name in same})
    require_engine(settings)
    _, config = method_config(settings)
    textures = experiment.textures if experiment.textures is not None else plan.textures
    refuse_incomplete(settings.model_copy(update={"textures": textures}), config)
    select = "last" if experiment.method in BASELINES else experiment.select
    changes = {"textures": textures if config.synthesizes else None, "select": select}
    backbone = experiment.backbone or chosen_backbone(settings, config)
    return ResolvedExperiment(
        experiment.model_copy(update=changes), config.model_dump(mode="json"), backbone, config.foreground_files
    )


def tasks(plan: Plan, *, resolve: Callable[[Experiment, Plan], ResolvedExperiment] = resolve) -> list[Task]:
    """The runs of a plan, with where their data is: seed by seed, so that an early stop leaves whole comparisons.

    Args:
        plan: what to compare.
        resolve: what an experiment comes to; another package's models have their own settings.

    Raises:
        FlawsmithError: no such data, category, method, preset or setting; two categories that are told apart by their
            folder alone.
    """
    datasets = categories_of(plan)
    experiments = plan.experiments()
    _check_categories(plan, experiments, datasets)
    known: dict[str, tuple[ResolvedExperiment, str | None]] = {}

    def resolved_in(experiment: Experiment, category: str) -> tuple[ResolvedExperiment, str | None]:
        chosen = experiment.of_category(category)
        name = chosen.model_dump_json()
        if name not in known:
            resolved = resolve(chosen, plan)
            known[name] = resolved, _texture_fingerprint(resolved.experiment.textures)
        return known[name]

    measured = [_Measured(dataset, dataset_fingerprint(dataset.samples)) for dataset in datasets]
    further = _further(plan)
    planned = []
    for seed, each in itertools.product(plan.seeds, measured):
        category = each.dataset.category
        elsewhere = further.get(nfc(category), [])
        for experiment in experiments:
            resolved, textures_sha256 = resolved_in(experiment, category)
            planned.append(_task(plan, each, elsewhere, resolved, textures_sha256, seed))
    # Experiments may agree in a category, where one training serves both; a table shows each by its name.
    return list({(task.run.key, task.run.experiment.title): task for task in planned}.values())


class _Measured(NamedTuple):
    """A category with the fingerprint of its images."""

    dataset: Dataset
    images_sha256: str


def _further(plan: Plan) -> dict[str, list[_Measured]]:
    """By category, the test sets of other data sets on which its models are measured.

    Raises:
        FlawsmithError: a folder holds no labelled test set.
    """
    by_category: dict[str, list[_Measured]] = {}
    for folder in plan.evaluate_on:
        for dataset in _measured_categories(folder):
            if dataset.test:
                measured = _Measured(dataset, dataset_fingerprint(dataset.samples))
                by_category.setdefault(nfc(dataset.category), []).append(measured)
    return by_category


def _check_categories(plan: Plan, experiments: Sequence[Experiment], datasets: Sequence[Dataset]) -> None:
    """Settings of a category that is nowhere are a mistake, unless categories were chosen.

    Raises:
        FlawsmithError: naming the first.
    """
    present = {dataset.category for dataset in datasets}
    for experiment in experiments:
        unknown = sorted(set(experiment.by_category) - present)
        if unknown and not plan.categories:
            names = ", ".join(sorted(present))
            raise FlawsmithError(f"{experiment.title}: by_category names {unknown[0]!r}, and there are {names}")


def categories_of(plan: Plan) -> list[Dataset]:
    """The data of a plan, category by category.

    Raises:
        FlawsmithError: a folder holds none, or a category that was named is not there.
    """
    datasets = [dataset for folder in plan.data for dataset in _measured_categories(folder, plan.layout)]
    named = {nfc(name) for name in plan.categories}
    chosen = [dataset for dataset in datasets if not named or dataset.category in named]
    missing = named - {dataset.category for dataset in chosen}
    if missing:
        names = ", ".join(sorted({dataset.category for dataset in datasets}))
        raise FlawsmithError(f"there is no category {min(missing)!r} in the data: there are {names}")
    for dataset in chosen:
        if not dataset.test:
            raise FlawsmithError(f"{dataset.root} has no test images: a benchmark needs labelled ones to measure with")
    return chosen


def _measured_categories(folder: Path, layout: str | None = None) -> list[Dataset]:
    """The categories in a folder; of several, those with test images, where there are some."""
    datasets = load_categories(folder, layout)
    return [dataset for dataset in datasets if dataset.test] or datasets


def _choices(experiment: Experiment, field: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    if not values or field in experiment.model_fields_set:
        return [{}]
    return [{field: value} for value in values]


def _backbone_identity(name: str | None) -> str:
    """A name as it is; a file by its own name and content."""
    if name is None:
        return "its own"
    file = users_file(name)
    return name if file is None else f"{name.partition('@')[0] if '@' in name else ''}@{content_hash(file)}"


def _task(
    plan: Plan,
    measured: _Measured,
    elsewhere: Sequence[_Measured],
    resolved: ResolvedExperiment,
    textures_sha256: str | None,
    seed: int,
) -> Task:
    experiment, backbone, dataset = resolved.experiment, _backbone_identity(resolved.backbone), measured.dataset
    named = beside_preset(experiment, backbone, resolved.config)
    primary, *others = plan.protocol
    pairs = [(measured, protocol) for protocol in others]
    pairs += [(each, protocol) for each in elsewhere for protocol in plan.protocol]
    run = BenchmarkRun(
        experiment=named.model_copy(update={"textures": _texture_name(named.textures)}),
        seed=seed,
        dataset=dataset.dataset,
        category=dataset.category,
        images_sha256=measured.images_sha256,
        textures_sha256=textures_sha256,
        foregrounds_sha256=_foreground_fingerprint(dataset, plan.foregrounds)
        if _reads_masks(resolved, dataset)
        else None,
        config=resolved.config,
        backbone=backbone,
        protocol=primary,
        parts=plan.parts,
        resamples=plan.resamples,
        further=tuple(
            Measurement(
                dataset=each.dataset.dataset,
                category=each.dataset.category,
                images_sha256=each.images_sha256,
                protocol=protocol,
            )
            for each, protocol in pairs
        ),
        batches=plan.batches,
    )
    places = {"data": dataset.root, "textures": experiment.textures, "backbone": experiment.backbone}
    further_data = tuple(each.dataset.root for each, _ in pairs)
    return Task(run=run, layout=plan.layout, foregrounds=plan.foregrounds, further_data=further_data, **places)


def beside_preset(experiment: Experiment, backbone: str | None, config: Mapping[str, Any]) -> Experiment:
    """The experiment as tables name it: with a backbone and textures where they are not its preset's alone.

    Args:
        experiment: with the textures that the plan gives it, a folder by its path.
        backbone: its backbone as a run knows it, a name or a file's SHA-256.
        config: its whole configuration.

    Returns:
        Itself where the method is another package's.
    """
    try:
        kind = find_method(experiment.method)
        preset, conditions = kind.presets[experiment.preset], kind.conditions_of(experiment.preset)
    except (FlawsmithError, KeyError):
        return experiment
    digest = _DIGEST.search(backbone or "")
    published = conditions.backbone or preset.default_backbone
    known = names_published(experiment.backbone or backbone or "", published, digest.group(1) if digest else None)
    textures = experiment.textures
    whole = conditions.textures == DTD and textures not in WORD_TEXTURES and holds_dtd(str(textures))
    named = kind.Config(**config).synthesizes and textures != conditions.textures and not whole
    changes = {"backbone": None if known else experiment.backbone, "textures": textures if named else None}
    return experiment.model_copy(update=changes)


def _texture_name(textures: str | None) -> str | None:
    return textures if textures in WORD_TEXTURES else Path(str(textures)).name


def _texture_fingerprint(textures: str | None) -> str | None:
    """Names and sizes of a folder's files: reading thousands of photographs for every start would take too long."""
    if textures in WORD_TEXTURES:
        return None
    texture_source(textures)  # says clearly what is wrong with the folder
    folder, digest = Path(str(textures)), hashlib.sha256()
    for path in find_images(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\n{path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _reads_masks(resolved: ResolvedExperiment, dataset: Dataset) -> bool:
    """Whether where flaws are synthesized is read from mask files, which published presets decide by category."""
    if not resolved.foreground_files:
        return False
    config = find_method(resolved.experiment.method).Config(**resolved.config)
    return config.of_category(dataset.dataset, dataset.category).foreground_files


def _foreground_fingerprint(dataset: Dataset, folder: Path | None) -> str:
    """The content of the mask files of all images that flaws are synthesized on.

    Raises:
        FlawsmithError: an image has none.
    """
    masks = FileForeground(folder)
    pairs = [(sample.image, masks.file_of(sample.image)) for sample in dataset.good_train]
    rows = sorted(f"{content_hash(image)} {content_hash(mask)}" for image, mask in pairs)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _resolved_textures(textures: str | None, folder: Path) -> str | None:
    return textures if textures in WORD_TEXTURES else str(folder / expanded(str(textures)))
