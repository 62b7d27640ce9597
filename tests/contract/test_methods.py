"""The contract that every registered method keeps, whatever it does inside."""

from __future__ import annotations

import builtins
import functools
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image

from flawsmith.data.layouts import load
from flawsmith.export import Tolerance, check_parity
from flawsmith.features.backbones import Backbone, load_backbone
from flawsmith.features.cache import FeatureCache
from flawsmith.features.extract import TorchExtractor
from flawsmith.models.base import Method
from flawsmith.models.registry import find_method, method_names, register
from flawsmith.pipeline import steps
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import find_images
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.runtime.inspector import Inspector
from flawsmith.training.data import TrainingSet
from flawsmith.training.run import RunFolder
from flawsmith.training.trainer import LoopOptions, MetricsFile

Train = Callable[..., Any]
Trained = Callable[[str], Any]
AFTER_STAGES, NEVER = -1, -2


@pytest.fixture(params=method_names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def backbone(name: str) -> Backbone:
    return backbone_with(find_method(name).presets["fast"].strides)


@cache
def backbone_with(strides: tuple[int, ...]) -> Backbone:
    return load_backbone(strides=strides)


@pytest.fixture
def build(name: str, backbone: Backbone, trained: Trained) -> Callable[..., Method]:
    """Builds the untrained method with the settings of the shared run and some changes."""

    def make(*, seed: int = 0, **changes: Any) -> Method:
        method = find_method(name)
        return method(method.Config(**{**trained(name).bundle.spec.config, **changes}), backbone, seed)

    return make


class Killed(Exception):  # noqa: N818, it stands for an event
    """Stands for a process that ends in the middle of training."""


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ends training in the given epoch, after its metrics and before its checkpoint, or after the last stage."""
    append, export = MetricsFile.append, steps.export_detector

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
        monkeypatch.setattr("flawsmith.pipeline.steps.export_detector", cut_off_there)

    return arrange


# ---- Names, presets and configuration -------------------------------------------------------------------------------


def test_method_names_its_paper(name: str) -> None:
    method = find_method(name)

    assert method.name == name
    assert any(year in method.paper for year in map(str, range(2015, 2040))), "author, title, venue, year"


def test_presets_are_valid_and_survive_json(name: str) -> None:
    method = find_method(name)

    assert set(method.presets) >= {"paper", "official", "fast"}
    for preset in method.presets.values():
        assert isinstance(preset, method.Config)
        assert method.Config(**json.loads(preset.model_dump_json())) == preset
        assert method.Config(**preset.model_dump(mode="json")) == preset


def test_every_setting_is_described(name: str) -> None:
    undescribed = [key for key, field in find_method(name).Config.model_fields.items() if not field.description]

    assert not undescribed


def test_unknown_setting_is_refused_by_name(name: str, parts: Path, tmp_path: Path, train_tiny: Train) -> None:
    with pytest.raises(FlawsmithError, match="no_such_setting"):
        train_tiny(name, parts, tmp_path / "run", set={"no_such_setting": 1})
    assert not (tmp_path / "run").exists()


def test_a_name_is_taken_once(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        register(find_method(name))


# ---- Detector -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 160), (64, 96), (70, 51)], ids=str)
def test_map_and_score_have_their_shapes_at_odd_sizes(build: Callable[..., Method], size: tuple[int, int]) -> None:
    method = build(image_size=size)
    initialise(method, size)

    with torch.inference_mode():
        output = method.network()(torch.zeros(3, 3, *size))

    assert output.map.shape == (3, *size)
    assert output.score.shape == (3,)
    assert output.map.dtype == output.score.dtype == torch.float32
    assert torch.isfinite(output.map).all()
    assert torch.isfinite(output.score).all()


def test_images_do_not_influence_each_other(build: Callable[..., Method], seed: int) -> None:
    method = build()
    initialise(method, method.config.image_size)
    detector = method.network()
    images = torch.randn(3, 3, *method.config.image_size, generator=torch.Generator().manual_seed(seed))

    with torch.inference_mode():
        together = detector(images)
        alone = detector(images[1:2])

    torch.testing.assert_close(together.map[1:2], alone.map, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.score[1:2], alone.score, atol=1e-5, rtol=1e-4)


def test_folded_detector_is_the_same_function(build: Callable[..., Method], seed: int) -> None:
    method = build()
    initialise(method, method.config.image_size)
    detector = method.network()
    images = torch.randn(2, 3, *method.config.image_size, generator=torch.Generator().manual_seed(seed))

    with torch.inference_mode():
        plain, folded = detector(images), detector.folded()(images)

    torch.testing.assert_close(folded.map, plain.map, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(folded.score, plain.score, atol=1e-5, rtol=1e-4)


def test_same_seed_builds_the_same_weights(build: Callable[..., Method]) -> None:
    first, second, other = (state(build(seed=seed)) for seed in (3, 3, 4))

    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_building_leaves_the_global_generator_alone(build: Callable[..., Method]) -> None:
    build()  # the shared run happens here
    before = torch.random.get_rng_state()

    build()

    assert torch.equal(torch.random.get_rng_state(), before)


def trains(name: str) -> bool:
    """Whether the method has a loop; one without counts or collects, and draws nothing before it sees the data."""
    return "epochs" in find_method(name).Config.model_fields


def state(method: Method) -> dict[str, torch.Tensor]:
    """All tensors of the method's modules, by stage; of a method without a loop those of its passes over the data."""
    if not trains(method.name):
        kept: dict[str, torch.Tensor] = {}
        for stage in method.stages():
            stage.fit(RandomImages(method.backbone, method.config.image_size), Keeping(kept))
        return kept
    return {
        f"{stage.name}.{key}": value
        for stage in method.stages()
        if hasattr(stage, "module")
        for key, value in stage.module.state_dict().items()
    }


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

    def images(self, geometry: Geometry | None = None) -> Iterator[np.ndarray]:
        size = self.image_size if geometry is None else geometry.size
        return iter(np.random.default_rng(0).standard_normal((len(self), 3, *size)))

    def through(self, backbone: Backbone) -> RandomImages:
        return RandomImages(backbone, self.image_size)

    def synthetic(self, *_: Any, **__: Any) -> RandomImages:
        return self

    def batch(self, rows: Any) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = zip(self.channels, self.grids, strict=True)
        return [torch.randn(len(rows), count, *grid, generator=generator) for count, grid in shapes]


class NoTraining:
    """A run that computes single passes and leaves modules untrained."""

    def once(self, name: str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return compute()

    def fit(self, name: str, module: Any, batches: Any, *, epochs: int, selects: bool) -> None:
        module.eval()


class Keeping(NoTraining):
    """Keeps what single passes compute."""

    def __init__(self, kept: dict[str, torch.Tensor]) -> None:
        self._kept = kept

    def once(self, name: str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        found = compute()
        self._kept.update({f"{name}.{key}": value for key, value in found.items()})
        return found


def initialise(method: Method, size: tuple[int, int]) -> None:
    """Pass the stages that need no loop."""
    for stage in method.stages():
        stage.fit(RandomImages(method.backbone, size), NoTraining())


# ---- Training -------------------------------------------------------------------------------------------------------


def test_loss_falls(name: str, build: Callable[..., Method], backbone: Backbone, parts: Path, tmp_path: Path) -> None:
    every_stage = [field for field in find_method(name).Config.model_fields if field.endswith("epochs")]
    method = build(**dict.fromkeys(every_stage, 12))
    geometry = Geometry(size=method.config.image_size, mean=backbone.info.mean, std=backbone.info.std)
    good = load(parts).good_train
    data = TrainingSet(good, geometry, TorchExtractor(backbone), FeatureCache("loss", tmp_path / "cache"), seed=0)
    run = RunFolder(tmp_path, LoopOptions(quiet=True))

    for stage in method.stages():
        stage.fit(data, run)

    rows = run.metrics()
    for stage_name in {row["stage"] for row in rows}:
        losses = [row["loss"] for row in rows if row["stage"] == stage_name]
        assert len(losses) == 12
        assert all(np.isfinite(losses))
        assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(
    name: str,
    trained: Trained,
    train_tiny: Train,
    killed_after: Callable[[int], None],
    parts: Path,
    tmp_path: Path,
) -> None:
    last = find_method(name).Config(**trained(name).bundle.spec.config).epochs - 1 if trains(name) else AFTER_STAGES
    killed_after(last)
    with pytest.raises(Killed):
        train_tiny(name, parts, tmp_path / "run")
    assert not (tmp_path / "run" / "model.flaw").exists()
    killed_after(NEVER)
    forget_defaults(tmp_path / "run" / "config.yaml", name)

    resumed = train_tiny(name, parts, tmp_path / "run", resume=True)

    assert resumed.model.read_bytes() == trained(name).model.read_bytes()
    assert metrics_of(resumed.folder) == metrics_of(trained(name).folder)
    assert (resumed.folder / "config.yaml").read_bytes() == (trained(name).folder / "config.yaml").read_bytes()


def forget_defaults(file: Path, name: str) -> None:
    """Leave settings at their defaults out of config.yaml, as a release did that did not have them yet."""
    settings = yaml.safe_load(file.read_text())
    standing = find_method(name).Config().model_dump(mode="json")
    settings["config"] = {key: value for key, value in settings["config"].items() if standing[key] != value}
    del settings["fraction"]
    file.write_text(yaml.safe_dump(settings))


def metrics_of(folder: Path) -> str:
    """What training recorded, nothing for a method without a loop."""
    file = folder / "metrics.jsonl"
    return file.read_text() if file.exists() else ""


def test_finished_run_is_not_overwritten(name: str, trained: Trained, train_tiny: Train, parts: Path) -> None:
    run = trained(name)
    before = run.model.read_bytes()

    with pytest.raises(FlawsmithError, match="--resume"):
        train_tiny(name, parts, run.folder)

    assert run.model.read_bytes() == before


@pytest.mark.parametrize("good", [1, 2, 5])
def test_few_good_images_give_a_model_that_says_how_little_it_knows(
    name: str, good: int, train_tiny: Train, draw_parts: Callable[..., Path], tmp_path: Path
) -> None:
    data = draw_parts(tmp_path / "bolt", good=good, test=1)

    result = train_tiny(name, data, tmp_path / "run")

    spec = result.bundle.spec
    used = spec.training.n_train + spec.training.n_calibration
    assert used == (2 if good == 1 else good), "a single image serves training and calibration alike"
    assert spec.decision.stated_false_reject_rate >= 1 / (good + 1)
    assert np.isfinite(spec.decision.limit)
    inspection = Inspector.load(result.model).inspect(next((data / "test" / "good").iterdir()))
    assert np.isfinite(inspection.score)
    assert np.isfinite(inspection.map).all()


def test_twenty_good_images_hold_five_out(name: str, trained: Trained) -> None:
    training = trained(name).bundle.spec.training

    assert (training.n_train, training.n_calibration) == (15, 5)


@pytest.fixture(scope="module")
def elsewhere(
    train_tiny: Train, parts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, list[Path]]]:
    """A run on the same good images in another folder, under other names, whose test files are no images.

    Gives the result, and the test files that were opened other than for hashing.
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
            def watched(file: Any, *args: Any, **kwargs: Any) -> Any:
                if isinstance(file, (str, Path)) and Path(file).is_relative_to(data / "test"):
                    opened.append(Path(file))
                return function(file, *args, **kwargs)

            return watched

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Image, "open", watch(Image.open))
            patch.setattr(builtins, "open", watch(builtins.open))
            return train_tiny(name, data, root / name), opened

    return functools.cache(run)


def test_same_seed_gives_the_same_bytes_from_another_folder(
    name: str, trained: Trained, elsewhere: Callable[[str], tuple[Any, list[Path]]]
) -> None:
    result, _ = elsewhere(name)

    assert result.model.read_bytes() == trained(name).model.read_bytes()


@pytest.mark.parametrize("name", [name for name in method_names() if find_method(name).presets["fast"].synthesizes])
def test_processes_that_forge_end_with_training_and_change_nothing(
    name: str, trained: Trained, train_tiny: Train, parts: Path, tmp_path: Path
) -> None:
    before = set(multiprocessing.active_children())

    result = train_tiny(name, parts, tmp_path / "run", workers=1)

    assert set(multiprocessing.active_children()) <= before
    assert result.model.read_bytes() == trained(name).model.read_bytes()


def test_test_images_are_hashed_but_never_looked_at(
    name: str, elsewhere: Callable[[str], tuple[Any, list[Path]]]
) -> None:
    result, opened = elsewhere(name)

    assert result.model.is_file(), "test files that are no images do not matter"
    assert not opened


def test_test_image_among_the_good_ones_is_refused(
    name: str, train_tiny: Train, draw_parts: Callable[..., Path], tmp_path: Path
) -> None:
    data = draw_parts(tmp_path / "bolt", good=4)
    shutil.copy(data / "train" / "good" / "001.png", data / "test" / "crack" / "leaked.png")

    with pytest.raises(FlawsmithError, match=r"leaked\.png"):
        train_tiny(name, data, tmp_path / "run")


# ---- Bundle ---------------------------------------------------------------------------------------------------------


def test_exported_model_equals_the_trained_one_on_non_square_files(
    name: str, trained: Trained, build: Callable[..., Method], parts: Path
) -> None:
    run = trained(name)
    method = build()
    restore(method, run.folder)
    detector, inspector = method.network(), Inspector.load(run.model)

    for file in sorted((parts / "test").rglob("*.png")):
        image = decode(file)
        with torch.inference_mode():
            output = detector(torch.from_numpy(inspector.spec.geometry.apply(image))[None])
        score, anomaly_map = inspector.raw(file)
        assert score == pytest.approx(float(output.score), abs=1e-4)
        np.testing.assert_allclose(anomaly_map, output.map[0].numpy(), atol=1e-3)
        assert inspector.inspect(file).map.shape == image.shape[:2]


@pytest.mark.real_data
def test_exported_model_equals_the_trained_one_on_real_photographs(
    name: str, trained: Trained, build: Callable[..., Method], real_data: Path
) -> None:
    run = trained(name)
    method = build()
    restore(method, run.folder)
    photographs = find_images(real_data / "magnetic_tile" / "magnetic_tile" / "train")[::40][:6]
    assert any(size[0] != size[1] for size in (decode(file).shape[:2] for file in photographs))

    figures = check_parity(method.network(), Inspector.load(run.model), photographs, Tolerance())

    assert figures["images"] == len(photographs)


def restore(method: Method, folder: Path) -> None:
    """The trained state of a method from its run folder: nothing is computed again."""
    before = metrics_of(folder)
    run = RunFolder(folder, LoopOptions(quiet=True))
    data = RandomImages(method.backbone, method.config.image_size)
    for stage in method.stages():
        stage.fit(data, run)
    assert metrics_of(folder) == before, "a finished stage was trained again"


def test_bundle_round_trips_and_names_what_made_it(name: str, trained: Trained) -> None:
    run = trained(name)

    loaded = Bundle.load(run.model)

    assert loaded.to_bytes() == run.model.read_bytes() == run.bundle.to_bytes()
    assert (loaded.spec.method, loaded.spec.seed, loaded.spec.preset) == (name, 0, "fast")
    assert find_method(name).Config(**loaded.spec.config).model_dump(mode="json") == loaded.spec.config
    assert set(loaded.calibration) == {"good", "forged"}
    assert len(loaded.calibration["good"]) == loaded.spec.decision.n_good


def test_bundle_tells_nothing_of_the_machine(name: str, trained: Trained, parts: Path) -> None:
    bundle = trained(name).bundle
    content = bundle.model + bundle.spec.model_dump_json().encode() + bundle.card.encode()

    for secret in (str(parts), str(Path.home()) + "/", "site-packages", "/src/", ".py", torch.__version__):
        assert secret.encode() not in content, secret


def test_graph_alone_takes_any_batch_and_gives_map_and_score(name: str, trained: Trained) -> None:
    bundle = trained(name).bundle
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
