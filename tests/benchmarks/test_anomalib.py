"""Models of anomalib: the same images, split, weights, limits and figures, and what can go wrong on the way."""

from __future__ import annotations

import ast
import functools
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from flawsmith.benchmark.experiment import SCORES, ResultStore, RunResult, Task
from flawsmith.benchmark.plan import Plan, tasks
from flawsmith.benchmark.worker import run_task
from flawsmith.data.layouts import load
from flawsmith.data.splits import calibration_split
from flawsmith.features.backbones import load_backbone
from flawsmith.runtime.decision import choose_limits
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "anomalib"))
import driver
import runner

import benchmark
import models

STAND_IN = Path(__file__).with_name("stand_in_anomalib.py")
SIZE = (64, 96)
PADIM: dict[str, Any] = {"method": "anomalib-padim", "set": {"image_size": SIZE}, "backbone": "resnet18@random"}

posix = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in interpreter is a shell script")


@pytest.fixture(scope="module")
def bolt(tmp_path_factory: pytest.TempPathFactory, draw_parts: Callable[..., Path]) -> Path:
    return draw_parts(tmp_path_factory.mktemp("data") / "line" / "bolt", good=14, test=3)


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``interpreter(mode)``: what looks like a Python with anomalib, and runs the stand-in in place of any script."""
    folder = tmp_path_factory.mktemp("anomalib")

    def make(mode: str = "") -> Path:
        path = folder / f"python-{mode}"
        path.write_text(f'#!/bin/sh\nshift 2\nSTAND_IN="{mode}" exec "{sys.executable}" -I "{STAND_IN}" "$@"\n')
        path.chmod(0o755)
        return path

    return make


def plan(data: Path, **fields: Any) -> Plan:
    return Plan.checked({"data": data, "methods": PADIM, "resamples": 20, **fields}, source="test")


def only(plan: Plan) -> Task:
    (task,) = tasks(plan, resolve=models.resolve)
    return task


def run(task: Task, scratch: Path, python: Path) -> RunResult:
    """Compute a run in this process."""
    return run_task(task, scratch, train=functools.partial(driver.train_anomalib, python=python))


@pytest.fixture
def computed(bolt: Path, interpreter: Callable[..., Path], tmp_path: Path) -> tuple[RunResult, Path]:
    """A run computed in this process, and the folder of what passed between the two sides."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return run(only(plan(bolt)), scratch, interpreter()), scratch / "anomalib"


# The same rules for both sides


@posix
def test_its_runs_stand_in_the_tables_with_figures_costs_and_versions_and_are_computed_once(
    bolt: Path, interpreter: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "plan.yaml", tmp_path / "out"
    methods = [{**PADIM, "set": {"image_size": list(SIZE)}}]
    file.write_text(yaml.safe_dump({"methods": methods, "parts": ["whole", "A"], "resamples": 20}))
    words = [str(bolt), "--plan", str(file), "--out", str(out), "--peer-python", str(interpreter())]

    codes = [benchmark.main(words), benchmark.main(words)]

    (result,) = ResultStore(out).results()
    assert codes == [0, 0]
    assert result.finished, result.error
    assert set(result.evaluations) == {"whole", "A"}
    assert result.versions["anomalib"] == "9.9.0"
    assert result.versions["python of anomalib"] == "3.99"
    assert result.versions["python"] != "3.99"
    unknown = {"threads", "parameters", "flops"}  # of another package's network nothing is counted
    assert all(value is not None for name, value in result.costs.model_dump().items() if name not in unknown)
    assert len((ResultStore(out).folder(result.run) / SCORES).read_text().splitlines()) == 1 + 6
    text = (out / "results.md").read_text()
    assert "anomalib-padim, resnet18@random" in text
    assert "anomalib 9.9.0" in text
    assert capsys.readouterr().out.count(f"{result.run.label}\n") == 1


@posix
def test_anomalib_gets_the_images_of_our_split_as_our_geometry_makes_them(
    bolt: Path, computed: tuple[RunResult, Path]
) -> None:
    result, folder = computed
    split = calibration_split(load(bolt), 0)
    frame = Geometry(size=SIZE)

    for name, samples in (("train", split.train), ("calibration", split.calibration), ("test", load(bolt).test)):
        expected = np.stack([frame.apply(decode(sample.image)) for sample in samples])
        assert np.array_equal(np.load(folder / f"{name}.npy"), expected), name
    assert (result.n_train, result.n_calibration) == (len(split.train), len(split.calibration)) == (9, 5)


@posix
def test_anomalib_gets_the_weights_that_our_methods_have(computed: tuple[RunResult, Path]) -> None:
    given = load_file(computed[1] / "backbone.safetensors")
    request = json.loads((computed[1] / "request.json").read_text())
    trunk = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3))

    trunk.load_state_dict(given, strict=True)

    levels = load_backbone("resnet18@random", strides=(4, 8, 16), seed=_seed_of_random_weights())
    image = torch.ones(1, 3, *SIZE)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(levels(image), trunk.eval()(image), strict=True))
    assert request["backbone"] == {"architecture": "resnet18", "strides": [4, 8, 16]}


@posix
def test_figures_are_those_of_its_scores(bolt: Path, computed: tuple[RunResult, Path]) -> None:
    result, folder = computed
    flawed = [sample.is_flawed for sample in load(bolt).test]

    expected = roc_auc_score(flawed, np.load(folder / "test_scores.npy"))

    assert result.evaluations["whole"].image_auroc == pytest.approx(expected)


@posix
def test_limit_comes_from_its_scores_of_the_held_out_images_by_our_rule(
    bolt: Path, computed: tuple[RunResult, Path]
) -> None:
    result, folder = computed
    held_out = np.load(folder / "calibration_scores.npy")
    limit = choose_limits(held_out, held_out).limit
    scores = np.load(folder / "test_scores.npy")
    flawed = np.array([sample.is_flawed for sample in load(bolt).test])

    found = result.evaluations["whole"]

    assert found.false_reject_rate == pytest.approx((scores[~flawed] > limit).mean())
    assert found.miss_rate == pytest.approx((scores[flawed] <= limit).mean())


@posix
def test_latency_counts_reading_and_judging_beside_its_own_time(computed: tuple[RunResult, Path]) -> None:
    costs = computed[0].costs

    assert 1.0 < (costs.latency_p50_ms or 0) <= (costs.latency_p95_ms or 0)


@posix
def test_crop_of_the_geometry_counts_as_not_inspected(
    bolt: Path, interpreter: Callable[..., Path], tmp_path: Path
) -> None:
    cropped = {**PADIM, "set": {"image_size": (64, 64), "policy": "crop"}}

    result = run(only(plan(bolt, methods=cropped)), tmp_path, interpreter())

    assert result.evaluations["whole"].image_auroc is not None


# Failures

FAILURES = {
    "refuses": "^there is no teacher here: fetch it$",
    "crashes": "ended with 1: ValueError: two by two is five",
    "killed": "was killed by signal 9, perhaps for want of memory",
    "nan": "anomalib-padim gives numbers that are not finite",
    "small": r"calibration_maps.npy is float32 \(5, 32, 96\), not float32 \(5, 64, 96\)",
    "silent": "does not keep to the contract: answer.json",
}


@posix
@pytest.mark.parametrize("mode", FAILURES)
def test_failure_of_anomalib_is_one_line(
    bolt: Path, interpreter: Callable[..., Path], tmp_path: Path, mode: str
) -> None:
    with pytest.raises(FlawsmithError, match=FAILURES[mode]) as error:
        run(only(plan(bolt)), tmp_path, interpreter(mode))

    assert "\n" not in str(error.value)


@posix
@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("refuses", "there is no teacher here"),
        ("old", "anomalib-padim is not in anomalib 9.9.0 of .*--upgrade anomalib"),
        ("foreign", "speaks contract 7"),
    ],
)
def test_environment_is_asked_before_anything_is_computed(
    bolt: Path,
    interpreter: Callable[..., Path],
    tmp_path: Path,
    mode: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [str(bolt), "--methods", "anomalib-padim", "--out", str(tmp_path / "out")]

    assert benchmark.main([*command, "--peer-python", str(interpreter(mode))]) == 2

    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_interpreter_without_the_package_says_what_to_install(bolt: Path) -> None:
    with pytest.raises(FlawsmithError, match=r"anomalib is not installed beside .*: run `.* -m pip install anomalib`"):
        driver.check_environment([only(plan(bolt)).run.experiment], Path(sys.executable))


@posix
@pytest.mark.parametrize(
    ("name", "words"), [("nowhere", "cannot be run .No such file"), ("silent", "does not run Python scripts")]
)
def test_what_is_no_interpreter_is_named(bolt: Path, tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "silent").write_text("#!/bin/sh\n")
    (tmp_path / "silent").chmod(0o755)

    with pytest.raises(FlawsmithError, match=f"--peer-python {tmp_path / name}: {words}"):
        driver.check_environment([only(plan(bolt)).run.experiment], tmp_path / name)


# Plans


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "resnet34@random"},
        {"set": {"image_size": (64, 64)}},
        {"set": {"image_size": SIZE, "n_features": 50}},
        {"fraction": 0.5},
    ],
)
def test_key_changes_with_what_a_result_depends_on(bolt: Path, change: dict[str, Any]) -> None:
    assert only(plan(bolt, methods={**PADIM, **change})).run.key != only(plan(bolt)).run.key


def test_defaults_are_part_of_the_identity(bolt: Path) -> None:
    written_out = {**PADIM, "set": {"image_size": SIZE, "n_features": 100}}

    run, same = only(plan(bolt)).run, only(plan(bolt, methods=written_out)).run

    assert run.config == same.config
    assert run.config["strides"] == [4, 8, 16]
    assert run.backbone == "resnet18@random"


def test_presets_make_no_experiments_of_anomalib(bolt: Path) -> None:
    assert only(plan(bolt, presets=["fast", "paper"])).run.experiment.title == "anomalib-padim, resnet18@random, " + (
        "image_size=[64,96]"
    )


def test_model_with_a_teacher_of_its_own_has_no_backbone(bolt: Path) -> None:
    task = only(plan(bolt, methods="anomalib-efficientad", backbones=["resnet18@random", "resnet34@random"]))

    assert (task.backbone, task.run.backbone) == (None, "its own")


def test_textures_go_to_the_model_that_synthesizes(bolt: Path, parts: Path) -> None:
    both = plan(bolt, methods=[PADIM, "anomalib-glass"], textures=str(parts))
    padim, glass = tasks(both, resolve=models.resolve)

    assert (padim.textures, glass.textures) == (None, str(parts))
    assert glass.run.textures_sha256 is not None


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown model": ({"method": "anomalib-padin"}, "did you mean 'anomalib-padim'"),
    "unknown setting": ({"set": {"nfeatures": 3}}, "did you mean 'n_features'"),
    "value out of range": ({"set": {"n_features": 0}}, "anomalib-padim: n_features=0"),
    "selection": ({"select": "best"}, "anomalib-padim has no select best"),
    "engine": ({"engine": "openvino"}, "anomalib-padim has no engine openvino"),
    "no such weights": ({"backbone": "resnet18@nowhere.pth"}, "no weight file at nowhere.pth"),
    "words for textures": ({"method": "anomalib-glass", "set": {}, "textures": "self"}, "from a folder alone"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_a_plan_is_named(bolt: Path, mistake: str) -> None:
    fields, words = MISTAKES[mistake]

    with pytest.raises(FlawsmithError, match=words):
        only(plan(bolt, methods={**PADIM, **fields}))


# The runner of anomalib, as far as it goes without anomalib


def test_runner_imports_nothing_of_this_package() -> None:
    tree = ast.parse(driver.RUNNER.read_text())
    named = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    named += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]

    others = {name.split(".")[0] for name in named} - set(sys.stdlib_module_names)

    assert others == {"anomalib", "lightning", "numpy", "safetensors", "timm", "torch"}


def test_runner_and_driver_speak_of_the_same() -> None:
    assert set(runner.MODELS) == set(models.MODELS)
    assert (runner.CONTRACT, runner.REFUSED) == (driver.CONTRACT, driver.REFUSED)


@pytest.mark.parametrize(
    ("architecture", "strides", "layers"),
    [
        ("resnet18", (4, 8, 16), ["layer1", "layer2", "layer3"]),
        ("tf_efficientnet_lite0", (8, 16), ["blocks.2", "blocks.4"]),
    ],
)
def test_layers_are_those_of_the_strides(architecture: str, strides: Sequence[int], layers: list[str]) -> None:
    assert runner.layers_of(architecture, strides) == layers


class Extractor(torch.nn.Module):
    def __init__(self, backbone: str, layers: list[str]) -> None:
        super().__init__()
        known: Any = timm.create_model(backbone, features_only=True)
        names = [level["module"] for level in known.feature_info.info]
        indices = [names.index(layer) for layer in layers]
        self.feature_extractor = timm.create_model(backbone, pretrained=True, features_only=True, out_indices=indices)


class Padim(torch.nn.Module):
    """Made as anomalib's: it asks timm for pretrained weights."""

    name = "Padim"

    def __init__(self, backbone: str, layers: list[str], n_features: int, **parts: bool) -> None:
        super().__init__()
        self.parts = parts
        self.model = torch.nn.Sequential()
        self.model.feature_extractor = Extractor(backbone, layers)


def question(**changes: Any) -> dict[str, Any]:
    backbone = {"architecture": "resnet18", "strides": [4, 8]}
    return {"model": "padim", "settings": {"n_features": 10}, "backbone": backbone, **changes}


@pytest.mark.parametrize("architecture", ["resnet18", "tf_efficientnet_lite0"])
def test_model_is_made_of_the_weights_that_were_given_and_fetches_none(architecture: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    given = load_backbone(f"{architecture}@random", strides=(4, 8), seed=3).trunk.state_dict()
    save_file(given, tmp_path / "backbone.safetensors")
    asked = question(backbone={"architecture": architecture, "strides": [4, 8]})

    made = runner.make_model(SimpleNamespace(Padim=Padim), asked, tmp_path)

    state = made.model.feature_extractor.feature_extractor.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in given.items())
    assert made.parts == dict.fromkeys(("pre_processor", "post_processor", "evaluator", "visualizer"), False)
    assert not any(parameter.requires_grad for parameter in made.parameters())


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "model of another version": ({"model": "glass"}, "has no model glass"),
    "argument of another version": ({"settings": {"features": 10}}, "does not make padim of these settings"),
    "weights of another architecture": (
        {"backbone": {"architecture": "resnet34", "strides": [4, 8]}},
        "the backbone's weights do not fit",
    ),
    "stride that is not there": ({"backbone": {"architecture": "resnet18", "strides": [3]}}, "no level of stride 3"),
    "unknown architecture": ({"backbone": {"architecture": "resnet0", "strides": [4]}}, "gives no levels"),
    "teacher that was not fetched": ({"model": "efficientad", "settings": {}}, "needs the weights of its teacher"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_runner_refuses_in_words(refusal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    changes, words = REFUSALS[refusal]
    monkeypatch.chdir(tmp_path)
    paths = SimpleNamespace(get_pretrained_weights_dir=lambda: tmp_path)
    monkeypatch.setitem(sys.modules, "anomalib", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "anomalib.utils", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "anomalib.utils.path", paths)
    monkeypatch.setattr(runner, "versions", lambda: {"anomalib": "2.0"})
    save_file(load_backbone("resnet18@random", strides=(4, 8)).trunk.state_dict(), tmp_path / "backbone.safetensors")
    models = SimpleNamespace(Padim=Padim, EfficientAd=Padim)

    with pytest.raises(runner.RefusedError, match=words):
        runner.make_model(models, question(**changes), tmp_path)


class Brightness(torch.nn.Module):
    """Map and score of an image are its brightness."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.model = lambda image: SimpleNamespace(anomaly_map=image.mean(1, keepdim=True), pred_score=image.mean())


def test_maps_and_scores_are_written_in_the_order_of_the_images(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((3, 3, 4, 6), np.float32)

    runner.score_all(Brightness(), {"model": "padim"}, images, tmp_path, "test")

    assert np.load(tmp_path / "test_maps.npy", allow_pickle=False) == pytest.approx(images.mean(1), abs=1e-6)
    assert np.load(tmp_path / "test_scores.npy", allow_pickle=False) == pytest.approx(images.mean((1, 2, 3)), abs=1e-6)


def test_images_of_efficientad_are_not_normalised() -> None:
    plain = np.random.default_rng(0).random((2, 3, 4, 6), np.float32)
    frame = Geometry(size=(4, 6))
    mean, std = (np.array(given, np.float32)[:, None, None] for given in (frame.mean, frame.std))
    request = {"model": "efficientad", "mean": frame.mean, "std": frame.std}

    assert runner.read((plain - mean) / std, [1], request)[0].numpy() == pytest.approx(plain[1], abs=1e-6)


def test_warm_up_is_not_among_the_latencies() -> None:
    request = {"model": "padim", "warm_up": 2, "timed": [0, 1, 0]}

    assert len(runner.latencies(Brightness(), request, np.zeros((2, 3, 4, 6), np.float32))) == 3


@pytest.mark.parametrize("arguments", [[], ["run"], ["probe", "more"]])
def test_wrong_command_of_the_runner_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(arguments) == runner.REFUSED
    assert capsys.readouterr().err.strip() == "give `probe`, or `run FOLDER`"


def _seed_of_random_weights() -> int:
    from flawsmith.data.seeding import derived_seed

    return derived_seed(0, "random backbone")
