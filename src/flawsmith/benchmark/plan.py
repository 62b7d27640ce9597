"""From a few lists, in a YAML file or on the command line, to the cells of a benchmark."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from flawsmith.benchmark.cell import WORD_TEXTURES, Arm, Cell, Part, Task
from flawsmith.benchmark.peers.models import BackboneConfig, peer_config, plain_arm
from flawsmith.data.layouts import load
from flawsmith.data.layouts.base import subfolders
from flawsmith.data.samples import Dataset
from flawsmith.data.splits import content_hash, dataset_fingerprint
from flawsmith.features.backbones import PACKAGED, users_file
from flawsmith.pipeline.settings import check_settings, in_words, method_config
from flawsmith.runtime.bundle import SelectionName
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import BASELINES
from flawsmith.runtime.image import find_images
from flawsmith.synthesis.textures import texture_source

_FOLDERS_DEEP = 2


class Plan(BaseModel):
    """What to compare, on what, and how it is measured; every combination is a cell.

    Example of a file::

        data: [parts, ../mvtec_ad]        # categories, or folders of them
        categories: [bolt, screw]         # only these of them
        methods: [pbas, patchcore, {method: glass, textures: ../dtd, name: GLASS with DTD}]
        seeds: [0, 1, 2]
        vary: {patch_size: [1, 3, 5]}     # settings of the methods, every value an arm
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: tuple[Path, ...] = Field(min_length=1, description="Folders of categories, or of data sets with categories.")
    categories: tuple[str, ...] = Field((), description="Names of categories to take; empty: all that are found.")
    layout: str | None = Field(None, description="Layout of all of them; detected by default.")
    methods: tuple[Arm, ...] = Field(min_length=1, description="What to compare, by name or with settings.")
    presets: tuple[str, ...] = Field((), description="Presets, each an arm of every method that names none itself.")
    backbones: tuple[str, ...] = Field((), description="Backbones, each an arm of every method that names none itself.")
    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (), description="Shares of the training images, each an arm."
    )
    vary: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="Settings, each value an arm.")
    textures: str | None = Field(None, description="Textures of all methods that synthesize and name none themselves.")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1, description="Seeds.")
    parts: tuple[Part, ...] = Field(("whole",), min_length=1, description="Parts of the test split to report.")
    protocol: Literal["clean", "papers"] = Field("clean", description="Rules of evaluation.")
    select: SelectionName = Field("last", description="Checkpoint of all methods that name none themselves.")
    resamples: int = Field(1000, ge=0, description="Bootstrap resamples behind the intervals.")

    @field_validator("data", "categories", "presets", "backbones", "fractions", "seeds", "parts", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return value if isinstance(value, (list, tuple)) else [value]

    @field_validator("vary", mode="before")
    @classmethod
    def _each_one_or_several(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: given if isinstance(given, (list, tuple)) else [given] for name, given in value.items()}

    @field_validator("methods", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        values = value if isinstance(value, (list, tuple)) else [value]
        for one in values:
            if isinstance(one, dict) and "method" not in one:
                raise ValueError(f"write {{method: NAME, ...}} instead of {one}")
        return [{"method": one} if isinstance(one, str) else one for one in values]

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
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeError) as error:
            raise FlawsmithError(f"{path}: cannot be read ({error}); give a YAML file") from None
        except yaml.YAMLError as error:
            raise FlawsmithError(f"{path}: is no YAML ({' '.join(str(error).split())})") from None
        if not isinstance(given, dict):
            raise FlawsmithError(f"{path}: holds no mapping; write for example `data: [parts]` and `methods: [pbas]`")
        plan = cls.checked({**given, **(changes or {})}, source=str(path))
        here = path.absolute().parent
        own = set(given) - set(changes or {})
        return plan.resolved(here, own)

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
        if "data" in fields:
            changes["data"] = tuple(folder / path.expanduser() for path in self.data)
        if "textures" in fields:
            changes["textures"] = _resolved_textures(self.textures, folder)
        if "methods" in fields:
            changes["methods"] = tuple(
                arm.model_copy(update={"textures": _resolved_textures(arm.textures, folder)}) for arm in self.methods
            )
        return self.model_copy(update=changes)

    def arms(self) -> list[Arm]:
        """Every combination of methods, presets, backbones, fractions and varied settings."""
        settings = [dict(zip(self.vary, values, strict=True)) for values in itertools.product(*self.vary.values())]
        arms = [
            arm.model_copy(update={**preset, **backbone, **fraction, **select, "set": {**arm.set, **varied}})
            for arm in self.methods
            for preset in _choices(arm, "preset", self.presets)
            for backbone in _choices(arm, "backbone", self.backbones)
            for fraction in _choices(arm, "fraction", self.fractions)
            for select in _choices(arm, "select", (self.select,))
            for varied in settings
        ]
        return list({arm.model_dump_json(): arm for arm in arms}.values())


def tasks(plan: Plan) -> list[Task]:
    """The cells of a plan, with where their data is: seed by seed, so that an early stop leaves whole comparisons.

    Raises:
        FlawsmithError: no such data, category, method, preset or setting; two categories that are told apart by their
            folder alone.
    """
    datasets = categories_of(plan)
    arms = [_known(arm, plan) for arm in plan.arms()]
    prints = [dataset_fingerprint(dataset.samples) for dataset in datasets]
    found = [
        _task(plan, dataset, fingerprint, known, seed)
        for seed in plan.seeds
        for dataset, fingerprint in zip(datasets, prints, strict=True)
        for known in arms
    ]
    return list({task.cell.key: task for task in found}.values())


def categories_of(plan: Plan) -> list[Dataset]:
    """The data of a plan, category by category.

    Raises:
        FlawsmithError: a folder holds none, or a category that was named is not there.
    """
    datasets = [dataset for folder in plan.data for dataset in _categories(folder, plan.layout, _FOLDERS_DEEP)]
    chosen = [one for one in datasets if not plan.categories or one.category in plan.categories]
    missing = set(plan.categories) - {one.category for one in chosen}
    if missing:
        names = ", ".join(sorted({one.category for one in datasets}))
        raise FlawsmithError(f"there is no category {min(missing)!r} in the data: there are {names}")
    for dataset in chosen:
        if not dataset.test:
            raise FlawsmithError(f"{dataset.root} has no test images: a benchmark needs labelled ones to measure with")
    return chosen


def _categories(folder: Path, layout: str | None, depth: int) -> Iterator[Dataset]:
    """The categories in a folder: itself, or those of its sub-folders."""
    try:
        yield load(folder, layout)
        return
    except FlawsmithError as error:
        inner = subfolders(folder) if depth and folder.is_dir() else []
        found = [dataset for one in inner for dataset in _categories_if_any(one, layout, depth - 1)]
        if not found:
            raise FlawsmithError(str(error)) from None
        yield from found


def _categories_if_any(folder: Path, layout: str | None, depth: int) -> list[Dataset]:
    try:
        return [one for one in _categories(folder, layout, depth) if one.test]
    except FlawsmithError:
        return []


def _choices(arm: Arm, field: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    if not values or field in arm.model_fields_set:
        return [{}]
    return [{field: value} for value in values]


class _Known(NamedTuple):
    """An arm with what the plan gives it, and what its result depends on."""

    arm: Arm
    config: dict[str, Any]
    backbone: str
    textures_sha256: str | None


def _known(arm: Arm, plan: Plan) -> _Known:
    if arm.peer is not None:
        return _known_peer(arm, plan)
    settings = check_settings({"method": arm.method, "preset": arm.preset, "set": dict(arm.set)})
    _, config = method_config(settings)
    textures = arm.textures if arm.textures is not None else plan.textures
    select = "last" if arm.method in BASELINES else arm.select
    arm = arm.model_copy(update={"textures": textures if config.synthesizes else None, "select": select})
    name = arm.backbone or config.default_backbone
    config_fields = config.model_dump(mode="json")
    return _Known(arm, config_fields, _backbone_identity(name), _texture_fingerprint(arm.textures))


def _known_peer(arm: Arm, plan: Plan) -> _Known:
    config = peer_config(arm)
    if arm.textures in ("self", "procedural"):
        raise FlawsmithError(f"{arm.method} takes its textures from a folder alone, not {arm.textures!r}")
    textures = arm.textures or (None if plan.textures in WORD_TEXTURES else plan.textures)
    arm = plain_arm(arm, config).model_copy(update={"textures": textures if config.synthesizes else None})
    backbone = _backbone_identity(arm.backbone or PACKAGED) if isinstance(config, BackboneConfig) else "its own"
    return _Known(arm, config.model_dump(mode="json"), backbone, _texture_fingerprint(arm.textures))


def _backbone_identity(name: str) -> str:
    """A name as it is; a file by its own name and content."""
    file = users_file(name)
    return name if file is None else f"{name.partition('@')[0] if '@' in name else ''}@{content_hash(file)}"


def _task(plan: Plan, dataset: Dataset, fingerprint: str, known: _Known, seed: int) -> Task:
    arm = known.arm
    cell = Cell(
        arm=arm.model_copy(update={"textures": _texture_name(arm.textures)}),
        seed=seed,
        dataset=dataset.dataset,
        category=dataset.category,
        images_sha256=fingerprint,
        textures_sha256=known.textures_sha256,
        config=known.config,
        backbone=known.backbone,
        protocol=plan.protocol,
        parts=plan.parts,
        resamples=plan.resamples,
    )
    return Task(cell=cell, data=dataset.root, layout=plan.layout, textures=arm.textures, backbone=arm.backbone)


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


def _resolved_textures(textures: str | None, folder: Path) -> str | None:
    return textures if textures in WORD_TEXTURES else str(folder / Path(str(textures)).expanduser())
