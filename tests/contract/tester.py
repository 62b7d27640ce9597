"""The contract that every method keeps, whatever it does inside, as one class of tests.

The test of a method is a subclass that names it:

    TINY = {"image_size": [64, 96], "epochs": 2}


    class TestGLASS(MethodTester):
        model = GLASS

What does not depend on what the features are is tested on a small untrained backbone (``trained_small``); export,
limits and model file on the packaged one (``trained``).
"""

from __future__ import annotations

import builtins
import copy
import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from torch.overrides import TorchFunctionMode

from flawsmith.data.layouts import load
from flawsmith.data.seeding import derived_seed
from flawsmith.data.splits import content_hashes
from flawsmith.export import Tolerance, check_parity
from flawsmith.features.backbones import Backbone, load_backbone
from flawsmith.features.cache import FeatureCache
from flawsmith.features.extract import TorchExtractor
from flawsmith.models.base import AnomalyModel, SinglePass, TrainingModule
from flawsmith.models.components.patch_model import PatchModel
from flawsmith.models.registry import register
from flawsmith.models.slsg.pretraining import PretrainingModule
from flawsmith.pipeline import steps
from flawsmith.pipeline.export import TARGETS, Target, export_bundle
from flawsmith.pipeline.parity import allowed_in_float32, room_for
from flawsmith.pipeline.restore import restore
from flawsmith.runtime.bundle import Bundle, EngineName
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import find_images
from flawsmith.runtime.formats import read_image
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.runtime.inspector import SELF_TEST_IMAGES, Inspection, Inspector, Unreadable, self_test
from flawsmith.training.data import TrainingSet
from flawsmith.training.run import RunFolder
from flawsmith.training.trainer import LoopOptions, MetricsFile

Train = Callable[..., Any]
Trained = Callable[[str], Any]
AFTER_STAGES, NEVER = -1, -2


@cache
def small_backbone(strides: tuple[int, ...]) -> Backbone:
    """As ``train_small`` takes it."""
    return load_backbone("test_efficientnet@random", strides=strides, seed=derived_seed(0, "random backbone"))


class Killed(Exception):  # noqa: N818, it stands for an event
    """Stands for a process that ends in the middle of training."""


class RandomImages:
    """Training data of random features, for a method that has to pass its single-pass stages."""

    seed = 0
    dataset = category = "random"

    def __init__(self, backbone: Backbone, image_size: tuple[int, int]) -> None:
        self.image_size = image_size
        self.channels, self.grids = backbone.channels, backbone.grids(image_size)

    def __len__(self) -> int:
        return 2

    def features(self) -> RandomImages:
        return self

    def views(self, wanted: Any) -> RandomImages:
        return self

    def images(self, geometry: Geometry | None = None) -> Iterator[np.ndarray]:
        size = self.image_size if geometry is None else geometry.size
        return iter(np.random.default_rng(0).standard_normal((len(self), 3, *size)))

    def with_backbone(self, backbone: Backbone) -> RandomImages:
        return RandomImages(backbone, self.image_size)

    def synthetic(self, *_: Any, **__: Any) -> RandomImages:
        return self

    def batch(self, rows: Any) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = zip(self.channels, self.grids, strict=True)
        return [torch.randn(len(rows), count, *grid, generator=generator) for count, grid in shapes]


def initialise(model: AnomalyModel) -> AnomalyModel:
    """Carry out the passes over the data, on random features, and leave out the loops."""
    for stage in model.stages(RandomImages(model.backbone, model.config.image_size)):
        if isinstance(stage, SinglePass):
            stage.compute()
    return model.eval()


DEVICE = torch.device(os.environ.get("FLAWSMITH_TEST_DEVICE", "cpu"))
"""Where tests of devices compute, such as ``cuda``; on the CPU moving changes nothing."""


def training_set(model: AnomalyModel, parts: Path, folder: Path) -> TrainingSet:
    """The good images of a category as a model learns from them, their features in a cache of their own."""
    extractor, cache = TorchExtractor(model.backbone), FeatureCache("test", folder / "cache")
    return TrainingSet(load(parts).good_train, model.geometry, extractor, cache, seed=0, workers=0)


def step_losses(module: Any, batch: Any) -> dict[str, torch.Tensor]:
    """The losses of a training step, whatever the stage, before anything is learned from them."""
    if isinstance(module, TrainingModule):
        return module._losses(batch)
    if isinstance(module, PretrainingModule):
        return module.generator_losses(batch.images, module.generator(batch.masked))
    return module.training_step(batch, 0)


class NothingLeaves(TorchFunctionMode):
    """Refuses what copies values to the CPU."""

    COPIES = (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.__float__)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function not in self.COPIES, f"{function.__name__} brings values to the CPU"
        return function(*args, **(kwargs or {}))


def without_test_hashes(model: Path) -> bytes:
    """A model file but for the hashes of test images, which it holds so that limits are never set on them."""
    bundle = Bundle.load(model)
    kept = {name: array for name, array in bundle.calibration.items() if name != "test_sha256"}
    return dataclasses.replace(bundle, calibration=kept).to_bytes()


def metrics_of(folder: Path) -> str:
    """What training recorded, nothing for a method without a loop."""
    file = folder / "metrics.jsonl"
    return file.read_text() if file.exists() else ""


def assert_same_verdicts(
    bundle: Bundle, first: Sequence[Inspection | Unreadable], second: Sequence[Inspection | Unreadable]
) -> None:
    """Two engines differ by no more than the model file allows, and say the same where that cannot matter."""
    allowed = allowed_in_float32(bundle)
    for here, there in zip(first, second, strict=True):
        assert isinstance(here, Inspection)
        assert isinstance(there, Inspection)
        score, level = room_for(allowed, here.score, here.map)
        assert abs(here.score - there.score) <= score, here.image
        assert np.abs(here.map - there.map).max() <= level, here.image
        if abs(here.score - bundle.spec.decision.limit) > score:
            assert here.verdict == there.verdict, here.image


def assert_promises_of_forms(file: Path, parts: Path, forms: Sequence[Target], *, max_loss: float) -> None:
    """Each form rejects no more of the good images behind its limit than that says; engines agree on all images."""
    for form in forms:
        export_bundle(file, form, into=True, images=parts, max_loss=max_loss)
    bundle = Bundle.load(file)
    held_out = {row.tobytes().hex() for row in bundle.calibration["held_out_sha256"]}
    images = sorted(parts.rglob("*.png"))
    behind = [image for image, digest in zip(images, content_hashes(images), strict=True) if digest in held_out]
    seen: dict[str, list[float]] = {}
    for form in forms:
        engine, precision = TARGETS[form]
        inspector = Inspector.load(bundle, engine=engine, precision=precision)
        assert inspector.calibrated
        decision = inspector.spec.decision
        rank = round(decision.stated_false_reject_rate * (decision.n_good + 1))
        assert decision.n_good == len(behind)
        assert sum(inspector.inspect(image).verdict == "reject" for image in behind) < rank
        scores = seen.setdefault(precision, [inspector.inspect(image).score for image in images])
        allowed = inspector.spec.parity["score_allowed"]
        for image, score in zip(images, scores, strict=True):
            inspection = inspector.inspect(image)
            assert abs(inspection.score - score) <= max(1.0, abs(score) / inspector.spec.parity["size"]) * allowed, (
                image
            )
            assert inspection.verdict == decision.verdict_of(inspection.score), image


class MethodTester:
    """One battery of tests; a subclass says which method it is for."""

    model: ClassVar[type[AnomalyModel]]
    chooses_by_values: ClassVar[frozenset[str]] = frozenset()
    """Stages whose steps choose rows by values, which torch's device without contents does not have."""

    @property
    def name(self) -> str:
        return self.model.name

    @pytest.fixture
    def build(self, trained_small: Trained) -> Callable[..., AnomalyModel]:
        """Builds the untrained model with the settings of the shared run and some changes."""

        def make(*, seed: int = 0, **changes: Any) -> AnomalyModel:
            config = self.model.Config(**{**trained_small(self.name).bundle.spec.config, **changes})
            return self.model(config, small_backbone(config.strides), seed)

        return make

    @pytest.fixture
    def killed_after(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        """Ends training in the given epoch, after its metrics and before its checkpoint, or after the last stage."""
        append, export = MetricsFile.append, steps.export_model

        def arrange(epoch: int) -> None:
            def cut_off_there(*args: Any) -> bytes:
                if epoch == AFTER_STAGES:
                    raise Killed
                return export(*args)

            def cut_off(self: MetricsFile, at: int, values: Any) -> None:
                append(self, at, values)
                if at == epoch:
                    raise Killed

            monkeypatch.setattr("flawsmith.training.trainer.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
            monkeypatch.setattr(MetricsFile, "append", cut_off)
            monkeypatch.setattr("flawsmith.pipeline.steps.export_model", cut_off_there)

        return arrange

    def test_method_names_its_paper(self) -> None:
        method = self.model

        assert method.name == self.name
        assert any(year in method.paper for year in map(str, range(2015, 2040))), "author, title, venue, year"

    def test_presets_are_valid_and_survive_json(self) -> None:
        method = self.model

        published = {"paper", "official"} if method.paper and not method.paper.startswith("in no paper") else set()
        assert set(method.presets) >= {"fast", *published}
        for preset in method.presets.values():
            assert isinstance(preset, method.Config)
            assert method.Config(**json.loads(preset.model_dump_json())) == preset
            assert method.Config(**preset.model_dump(mode="json")) == preset

    def test_published_presets_say_what_they_go_with(self) -> None:
        method = self.model

        published = {name for name in method.presets if name != "fast"}
        if not method.paper.startswith("in no paper"):
            assert set(method.conditions) == published
        for name in method.presets:
            conditions = method.conditions_of(name)
            assert conditions.published == (name in method.conditions)
            assert conditions.holds_out != conditions.published
            assert (conditions.backbone is None) != conditions.published
            assert (conditions.textures == "dtd") == (conditions.published and method.presets[name].synthesizes)

    def test_every_setting_is_described(self) -> None:
        undescribed = [key for key, field in self.model.Config.model_fields.items() if not field.description]

        assert not undescribed

    def test_unknown_setting_is_refused_by_name(self, parts: Path, tmp_path: Path, train_small: Train) -> None:
        with pytest.raises(FlawsmithError, match="no_such_setting"):
            train_small(self.name, parts, tmp_path / "run", set={"no_such_setting": 1})
        assert not (tmp_path / "run").exists()

    def test_a_name_is_taken_once(self) -> None:
        with pytest.raises(ValueError, match=self.name):
            register(self.model)

    @pytest.mark.parametrize("size", [(96, 160), (64, 96), (70, 51)], ids=str)
    def test_map_and_score_have_their_shapes_at_odd_sizes(
        self, build: Callable[..., AnomalyModel], size: tuple[int, int]
    ) -> None:
        model = initialise(build(image_size=size))

        with torch.inference_mode():
            output = model(torch.zeros(3, 3, *size))

        assert output.map.shape == (3, *size)
        assert output.score.shape == (3,)
        assert output.map.dtype == output.score.dtype == torch.float32
        assert torch.isfinite(output.map).all()
        assert torch.isfinite(output.score).all()

    def test_images_do_not_influence_each_other(self, build: Callable[..., AnomalyModel], seed: int) -> None:
        model = initialise(build())
        images = torch.randn(3, 3, *model.config.image_size, generator=torch.Generator().manual_seed(seed))

        with torch.inference_mode():
            together = model(images)
            alone = model(images[1:2])

        torch.testing.assert_close(together.map[1:2], alone.map, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.score[1:2], alone.score, atol=1e-5, rtol=1e-4)

    def test_export_form_is_the_same_function(self, build: Callable[..., AnomalyModel], seed: int) -> None:
        model = initialise(build())
        images = torch.randn(2, 3, *model.config.image_size, generator=torch.Generator().manual_seed(seed))

        with torch.inference_mode():
            plain, folded = model(images), model.export_form()(images)

        torch.testing.assert_close(folded.map, plain.map, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(folded.score, plain.score, atol=1e-5, rtol=1e-4)

    def test_nothing_leaves_the_device_of_the_model(
        self, build: Callable[..., AnomalyModel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On torch's device without contents: whatever copies to the CPU, or looks at a value, fails there."""
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # which does not know this device
        model = copy.deepcopy(initialise(build())).to("meta")  # the backbone is shared by other tests
        images = torch.zeros(2, 3, *model.config.image_size, device="meta")

        with torch.inference_mode():
            outputs = model(images), model.export_form()(images)

        for output in outputs:
            assert output.map.device.type == output.score.device.type == "meta"
            assert output.map.shape == (2, *model.config.image_size)

    def test_device_under_test_gives_what_the_cpu_does(self, build: Callable[..., AnomalyModel], seed: int) -> None:
        model = initialise(build())
        images = torch.randn(2, 3, *model.config.image_size, generator=torch.Generator().manual_seed(seed))

        with torch.inference_mode():
            expected = model(images)
            output = copy.deepcopy(model).to(DEVICE)(images.to(DEVICE))

        assert output.map.device.type == output.score.device.type == DEVICE.type
        torch.testing.assert_close(output.map.cpu(), expected.map, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(output.score.cpu(), expected.score, atol=1e-3, rtol=1e-3)

    def test_a_training_step_stays_on_its_device(
        self, build: Callable[..., AnomalyModel], parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On torch's device without contents; a step whose rows are chosen by values where copies are refused."""
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # which does not know this device
        model = build()

        for stage in model.stages(training_set(model, parts, tmp_path)):
            if isinstance(stage, SinglePass):
                stage.compute()
                continue
            batch = next(iter(stage.batches.epoch(0)))
            if stage.name in self.chooses_by_values:
                with NothingLeaves():
                    losses = step_losses(stage.module, batch)
            else:
                losses = step_losses(copy.deepcopy(stage.module).to("meta"), batch.to(torch.device("meta")))
                assert losses["loss"].device.type == "meta", stage.name
            losses["loss"].backward()

    def test_training_on_the_device_under_test_goes_as_on_the_cpu(
        self,
        trained_small: Trained,
        train_small: Train,
        killed_after: Callable[[int], None],
        parts: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Features, synthetic flaws and steps in torch; what follows is the exported model's, as ever, and left out."""
        gaussian = PatchModel.gaussian

        def as_on_the_cpu(self: PatchModel, like: torch.Tensor, *purpose: Any) -> torch.Tensor:
            return gaussian(self, like.cpu(), *purpose).to(like.device)

        monkeypatch.setattr(PatchModel, "gaussian", as_on_the_cpu)  # a GPU has random numbers of its own
        expected = trained_small(self.name)
        killed_after(AFTER_STAGES)

        with pytest.raises(Killed):
            train_small(self.name, parts, tmp_path / "run", engine="torch", accelerator=DEVICE.type)

        rows, known = (
            list(map(json.loads, metrics_of(folder).splitlines())) for folder in (tmp_path / "run", expected.folder)
        )
        assert [row.keys() for row in rows] == [row.keys() for row in known]
        for row, other in zip(rows, known, strict=True):
            losses = {name: value for name, value in other.items() if name.startswith("loss")}
            assert {name: row[name] for name in losses} == pytest.approx(losses, rel=0.05, abs=1e-3)

    def test_same_seed_gives_the_same_state(self, build: Callable[..., AnomalyModel]) -> None:
        first, second, other = (initialise(build(seed=seed)).trained_state() for seed in (3, 3, 4))

        assert all(torch.equal(first[key], second[key]) for key in first)
        assert any(not torch.equal(first[key], other[key]) for key in first)

    def test_state_is_the_whole_model(self, build: Callable[..., AnomalyModel], seed: int) -> None:
        """What one model has learned, in loops or in passes, another one does once it has its state."""
        learned, empty = initialise(build(seed=3)), build(seed=4).eval()
        images = torch.randn(2, 3, *learned.config.image_size, generator=torch.Generator().manual_seed(seed))

        empty.load_state_dict(learned.state_dict())

        with torch.inference_mode():
            expected, output = learned(images), empty(images)
        torch.testing.assert_close(output.map, expected.map, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output.score, expected.score, atol=1e-5, rtol=1e-5)

    def test_another_models_state_is_refused_in_one_line(self, build: Callable[..., AnomalyModel]) -> None:
        with pytest.raises(FlawsmithError, match=r"no\.such\.tensor") as error:
            build().load_trained_state({"no.such.tensor": torch.zeros(1)})
        assert "\n" not in str(error.value)

    def test_from_preset_builds_what_the_preset_says(self) -> None:
        size = self.model.presets["fast"].image_size
        config = self.model.presets["fast"]

        model = self.model.from_preset("fast", backbone=small_backbone(config.strides))

        assert model.config == config
        assert model.config.image_size == size
        with pytest.raises(FlawsmithError, match="fast"):
            self.model.from_preset("faster")

    def test_scores_of_fast_have_room_above_every_limit(self, build: Callable[..., AnomalyModel]) -> None:
        """A probability rounds to 1 for a good image too, and a limit there rejects nothing."""
        assert build().highest_score is None

    def test_building_leaves_the_global_generator_alone(self, build: Callable[..., AnomalyModel]) -> None:
        build()  # the shared run happens here
        before = torch.random.get_rng_state()

        build()

        assert torch.equal(torch.random.get_rng_state(), before)

    def test_loss_falls(self, build: Callable[..., AnomalyModel], parts: Path, tmp_path: Path) -> None:
        every_stage = [field for field in self.model.Config.model_fields if field.endswith("epochs")]
        model = build(**dict.fromkeys(every_stage, 12))
        data = training_set(model, parts, tmp_path)
        run = RunFolder(tmp_path, LoopOptions())

        for stage in model.stages(data):
            run.complete(model, stage)

        rows = run.metrics()
        assert bool(rows) == self.model.trains()
        for stage_name in {row["stage"] for row in rows}:
            losses = [row["loss"] for row in rows if row["stage"] == stage_name]
            assert len(losses) == 12
            assert all(np.isfinite(losses))
            assert np.mean(losses[-3:]) < np.mean(losses[:3])

    def test_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(
        self,
        trained_small: Trained,
        train_small: Train,
        killed_after: Callable[[int], None],
        parts: Path,
        tmp_path: Path,
    ) -> None:
        whole = trained_small(self.name)
        config = self.model.Config(**whole.bundle.spec.config)
        last = config.epochs - 1 if self.model.trains() else AFTER_STAGES
        killed_after(last)
        with pytest.raises(Killed):
            train_small(self.name, parts, tmp_path / "run")
        assert not (tmp_path / "run" / "model.flaw").exists()
        killed_after(NEVER)
        self._forget_defaults(tmp_path / "run" / "config.yaml")

        resumed = train_small(self.name, parts, tmp_path / "run", resume=True)

        assert resumed.model.read_bytes() == trained_small(self.name).model.read_bytes()
        assert metrics_of(resumed.folder) == metrics_of(trained_small(self.name).folder)
        assert (resumed.folder / "config.yaml").read_bytes() == (
            trained_small(self.name).folder / "config.yaml"
        ).read_bytes()

    def _forget_defaults(self, file: Path) -> None:
        """Leave settings at their defaults out of config.yaml, as a release did that did not have them yet."""
        settings = yaml.safe_load(file.read_text())
        standing = self.model.Config().model_dump(mode="json")
        settings["config"] = {key: value for key, value in settings["config"].items() if standing[key] != value}
        del settings["fraction"]
        file.write_text(yaml.safe_dump(settings))

    def test_finished_run_is_not_overwritten(self, trained_small: Trained, train_small: Train, parts: Path) -> None:
        run = trained_small(self.name)
        before = run.model.read_bytes()

        with pytest.raises(FlawsmithError, match="--resume"):
            train_small(self.name, parts, run.folder)

        assert run.model.read_bytes() == before

    @pytest.mark.parametrize("good", [1, 2, 5])
    def test_few_good_images_give_a_model_that_says_how_little_it_knows(
        self, good: int, train_small: Train, draw_parts: Callable[..., Path], tmp_path: Path
    ) -> None:
        data = draw_parts(tmp_path / "bolt", good=good, test=1)

        result = train_small(self.name, data, tmp_path / "run")

        spec = result.bundle.spec
        used = spec.training.n_train + spec.training.n_calibration
        assert used == (2 if good == 1 else good), "a single image serves training and calibration alike"
        assert spec.decision.stated_false_reject_rate >= 1 / (good + 1)
        assert np.isfinite(spec.decision.limit)
        inspection = Inspector.load(result.model).inspect(next((data / "test" / "good").iterdir()))
        assert np.isfinite(inspection.score)
        assert np.isfinite(inspection.map).all()

    def test_twenty_good_images_hold_five_out(self, trained_small: Trained) -> None:
        training = trained_small(self.name).bundle.spec.training

        assert (training.n_train, training.n_calibration) == (15, 5)

    @pytest.fixture(scope="module")
    def elsewhere(
        self, train_small: Train, parts: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> Callable[[str], tuple[Any, list[Path]]]:
        """A run on the same good images in another folder, under other names, whose test files are no images.

        Gives the result, and the test files that were decoded, or opened other than for their hash and header.
        """
        root = tmp_path_factory.mktemp("elsewhere")
        data = root / "moved" / parts.name
        shutil.copytree(parts, data)
        for file in sorted((data / "train" / "good").iterdir()):
            file.rename(file.with_name(f"renamed {file.name}"))
        for number, file in enumerate(sorted((data / "test").rglob("*.png"))):
            file.write_bytes(b"not an image at all" + bytes([number]))

        def run(name: str) -> tuple[Any, list[Path]]:
            opened: list[Path] = []

            def watch(function: Callable[..., Any]) -> Callable[..., Any]:
                def watched(*args: Any, **kwargs: Any) -> Any:
                    files = [Path(value) for value in args if isinstance(value, (str, Path))]
                    opened.extend(file for file in files if file.is_relative_to(data / "test"))
                    return function(*args, **kwargs)

                return watched

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("flawsmith.runtime.image.read_image", watch(read_image))
                patch.setattr(builtins, "open", watch(builtins.open))
                return train_small(name, data, root / name), opened

        return functools.cache(run)

    def test_same_seed_gives_the_same_bytes_from_another_folder(
        self, trained_small: Trained, elsewhere: Callable[[str], tuple[Any, list[Path]]]
    ) -> None:
        result, _ = elsewhere(self.name)

        assert without_test_hashes(result.model) == without_test_hashes(trained_small(self.name).model)

    def test_worker_processes_end_with_training_and_change_nothing(
        self, trained_small: Trained, train_small: Train, parts: Path, tmp_path: Path
    ) -> None:
        before = set(multiprocessing.active_children())

        result = train_small(self.name, parts, tmp_path / "run", workers=1)

        assert set(multiprocessing.active_children()) <= before
        assert result.model.read_bytes() == trained_small(self.name).model.read_bytes()

    def test_test_images_are_hashed_but_never_decoded(self, elsewhere: Callable[[str], tuple[Any, list[Path]]]) -> None:
        result, opened = elsewhere(self.name)

        assert result.model.is_file(), "test files that are no images do not matter"
        assert not opened

    def test_test_image_among_the_good_ones_is_refused(
        self, train_small: Train, draw_parts: Callable[..., Path], tmp_path: Path
    ) -> None:
        data = draw_parts(tmp_path / "bolt", good=4)
        shutil.copy(data / "train" / "good" / "001.png", data / "test" / "crack" / "leaked.png")

        with pytest.raises(FlawsmithError, match=r"leaked\.png"):
            train_small(self.name, data, tmp_path / "run")

    def test_exported_model_equals_the_trained_one_on_non_square_files(self, trained: Trained, parts: Path) -> None:
        run = trained(self.name)
        model, inspector = restore(run.folder)[0], Inspector.load(run.model)

        for file in sorted((parts / "test").rglob("*.png")):
            image = decode(file)
            with torch.inference_mode():
                output = model(torch.from_numpy(inspector.spec.geometry.apply(image))[None])
            score, anomaly_map = inspector.raw(file)
            assert score == pytest.approx(float(output.score), abs=1e-4)
            np.testing.assert_allclose(anomaly_map, output.map[0].numpy(), atol=1e-3)
            assert inspector.inspect(file).map.shape == image.shape[:2]

    def test_openvino_and_batches_give_the_promised_verdicts(self, trained: Trained, parts: Path) -> None:
        images = sorted(parts.rglob("*.png"))
        bundle = trained(self.name).bundle
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that OpenVINO has no limits of its own, which float32 does not need
            first, second = Inspector.load(bundle), Inspector.load(bundle, engine="openvino")

        alone = list(first.stream(images))
        others = [
            list(first.stream(images, batch=4)),
            list(second.stream(images)),
            list(second.stream(images, batch=4)),
        ]

        assert {result.verdict for result in alone if isinstance(result, Inspection)} == {"pass", "reject"}
        for other in others:
            assert_same_verdicts(bundle, alone, other)

    def test_int8_gives_the_promised_verdicts_with_either_engine(
        self, trained_small: Trained, parts: Path, tmp_path: Path
    ) -> None:
        """On an untrained backbone, which separates nothing worth keeping; another verdict is no more allowed there."""
        file = tmp_path / "model.flaw"
        trained_small(self.name).bundle.save(file)

        assert_promises_of_forms(file, parts, ("onnx-int8",), max_loss=0.99)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that OpenVINO has no limits of its own here: it takes those of this graph
            first, second = (Inspector.load(file, engine=engine, precision="int8") for engine in get_args(EngineName))
        allowed = {name: first.spec.parity[name] for name in ("score_allowed", "map_allowed", "size")}
        for image in sorted((parts / "test").rglob("*.png")):
            here, there = first.inspect(image), second.inspect(image)
            score = 2.5 * room_for(allowed, here.score, here.map)[0]  # two engines round otherwise at every layer
            assert abs(here.score - there.score) <= score, image
            assert here.verdict == there.verdict or abs(here.score - here.decision.limit) <= score, image

    @pytest.mark.exhaustive
    def test_every_form_gives_the_promised_verdicts(self, trained: Trained, parts: Path, tmp_path: Path) -> None:
        file = tmp_path / "model.flaw"
        trained(self.name).bundle.save(file)

        assert_promises_of_forms(file, parts, [form for form in TARGETS if form != "onnx"], max_loss=0.1)

    @pytest.mark.real_data
    def test_exported_model_equals_the_trained_one_on_real_photographs(self, trained: Trained, real_data: Path) -> None:
        run = trained(self.name)
        photographs = find_images(real_data / "magnetic_tile" / "magnetic_tile" / "train")[::40][:6]
        assert any(size[0] != size[1] for size in (decode(file).shape[:2] for file in photographs))

        figures = check_parity(restore(run.folder)[0], Inspector.load(run.model), photographs, Tolerance())

        assert figures["images"] == len(photographs)

    def test_flaws_that_a_model_separates_are_not_missed_at_its_limit(self, trained: Trained) -> None:
        """However sure a model is, its limit lies between the good images and what stands well above them."""
        bundle = Bundle.load(trained(self.name).model)
        good, limit = bundle.calibration["good"], bundle.spec.decision.limit
        spread = float(good.max() - np.median(good))

        assert bundle.spec.decision.verdict_of(float(good.max()) + 0.1 * spread) == "reject"
        assert limit - float(good.max()) <= 0.1 * spread

    def test_bundle_round_trips_and_names_what_made_it(self, trained: Trained) -> None:
        run = trained(self.name)

        loaded = Bundle.load(run.model)

        assert loaded.to_bytes() == run.model.read_bytes() == run.bundle.to_bytes()
        assert self_test(Inspector.load(loaded), loaded) == SELF_TEST_IMAGES
        assert (loaded.spec.method, loaded.spec.seed, loaded.spec.preset) == (self.name, 0, "fast")
        assert self.model.Config(**loaded.spec.config).model_dump(mode="json") == loaded.spec.config
        images = {"learned_sha256", "held_out_sha256", "test_sha256"}
        self_tests = {"self_test", "self_test_1", "self_test_2"}
        assert set(loaded.calibration) == {"good", "good_levels", "forged", *images, *self_tests}
        assert len(loaded.calibration["good"]) == loaded.spec.decision.n_good

    def test_bundle_tells_nothing_of_the_machine(self, trained: Trained, parts: Path) -> None:
        bundle = trained(self.name).bundle
        model = onnx.load_from_string(bundle.model)
        constants = [value.t for node in model.graph.node for value in node.attribute if value.HasField("t")]
        for tensor in (*model.graph.initializer, *constants):
            tensor.ClearField("raw_data")  # in millions of bytes any three stand somewhere
        content = model.SerializeToString() + bundle.spec.model_dump_json().encode() + bundle.card.encode()

        for secret in (str(parts), str(Path.home()) + "/", "site-packages", "/src/", ".py", torch.__version__):
            assert secret.encode() not in content, secret

    def test_graph_alone_takes_any_batch_and_gives_map_and_score(self, trained: Trained) -> None:
        bundle = trained(self.name).bundle
        height, width = bundle.spec.geometry.size

        session = onnxruntime.InferenceSession(bundle.model, providers=["CPUExecutionProvider"])
        outputs = dict(
            zip(
                [output.name for output in session.get_outputs()],
                session.run(None, {"image": np.zeros((3, 3, height, width), np.float32)}),
                strict=True,
            )
        )

        assert {key: value.shape for key, value in outputs.items()} == {"map": (3, height, width), "score": (3,)}
