"""From lists to runs: which combinations there are, and what a run is known by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import flawsmith
from flawsmith.benchmark.experiment import Experiment, Task
from flawsmith.benchmark.plan import Plan, tasks
from flawsmith.runtime.errors import FlawsmithError


@pytest.fixture
def root(tmp_path: Path, draw_parts: Callable[..., Path]) -> Path:
    """A data set with two categories."""
    for name in ("bolt", "nut"):
        draw_parts(tmp_path / "line" / name, good=6)
    return tmp_path / "line"


def plan(data: Path, **fields: Any) -> Plan:
    return Plan.checked({"data": data, "methods": "pbas", **fields}, source="test")


def only(given: Plan) -> Task:
    (task,) = tasks(given)
    return task


def test_every_combination_is_a_run(root: Path) -> None:
    lists = {"presets": ["fast", "paper"], "seeds": [0, 1], "fractions": [0.5, 1]}
    given = plan(root, methods=["pbas", "glass"], textures="procedural", **lists)

    runs = [task.run for task in tasks(given)]

    assert len({run.key for run in runs}) == len(runs) == 2 * 2 * 2 * 2 * 2
    assert {run.category for run in runs} == {"bolt", "nut"}
    assert {run.dataset for run in runs} == {"line"}


def test_seeds_come_one_after_the_other_so_that_an_early_stop_leaves_whole_comparisons(root: Path) -> None:
    runs = [task.run for task in tasks(plan(root, methods=["pbas", "glass"], seeds=[3, 1]))]

    assert [run.seed for run in runs] == [3] * 4 + [1] * 4


def test_varied_settings_change_what_the_preset_means(root: Path) -> None:
    given = plan(root, categories=["bolt"], vary={"patch_size": [1, 3], "epochs": [2]})

    runs = [task.run for task in tasks(given)]

    assert [run.config["patch_size"] for run in runs] == [1, 3]
    assert [run.experiment.title for run in runs] == ["pbas, patch_size=1, epochs=2", "pbas, patch_size=3, epochs=2"]


def test_experiment_keeps_what_it_names_itself(root: Path) -> None:
    experiments = plan(
        root, methods=["pbas", {"method": "glass", "preset": "paper"}], presets=["fast", "official"]
    ).experiments()

    assert [(experiment.method, experiment.preset) for experiment in experiments] == [
        ("pbas", "fast"),
        ("pbas", "official"),
        ("glass", "paper"),
    ]


def test_textures_go_to_methods_that_forge_alone(root: Path, parts: Path) -> None:
    given = plan(root, methods=["pbas", "glass"], categories=["bolt"], textures=str(parts))

    one, two = tasks(given)

    assert (one.textures, one.run.textures_sha256) == (None, None)
    assert two.textures == str(parts)
    assert two.run.experiment.textures == parts.name
    assert two.run.textures_sha256 is not None


def test_key_is_the_same_wherever_the_data_lies_and_whatever_the_experiment_is_called(
    root: Path, tmp_path: Path
) -> None:
    before = only(plan(root / "bolt"))
    moved = tmp_path / "elsewhere" / "line"
    moved.parent.mkdir()
    root.rename(moved)

    after = only(plan(moved / "bolt", methods={"method": "pbas", "name": "another name"}))

    assert after.data != before.data
    assert after.run.key == before.run.key


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": 1},
        {"methods": {"method": "pbas", "set": {"epochs": 3}}},
        {"methods": {"method": "pbas", "fraction": 0.5}},
        {"methods": {"method": "pbas", "select": "best"}},
        {"methods": {"method": "pbas", "holdout": False}},
        {"methods": {"method": "pbas", "backbone": "resnet18@random"}},
        {"parts": ["whole", "B"]},
        {"resamples": 10},
    ],
)
def test_key_changes_with_what_the_result_depends_on(root: Path, change: dict[str, Any]) -> None:
    assert only(plan(root / "bolt", **change)).run.key != only(plan(root / "bolt")).run.key


def test_key_changes_with_the_content_of_an_image(root: Path, draw_parts: Callable[..., Path]) -> None:
    before = only(plan(root / "bolt")).run.key
    image = root / "bolt" / "test" / "good" / "000.png"
    image.write_bytes((root / "nut" / "test" / "crack" / "001.png").read_bytes())

    assert only(plan(root / "bolt")).run.key != before


def test_key_changes_with_the_content_of_a_weights_file_not_with_its_name(root: Path, tmp_path: Path) -> None:
    keys = []
    for name, content in (("a.pth", b"1"), ("b.pth", b"1"), ("b.pth", b"2")):
        (tmp_path / name).write_bytes(content)
        keys.append(only(plan(root / "bolt", backbones=f"resnet18@{tmp_path / name}")).run.key)

    assert keys[0] == keys[1] != keys[2]


def test_file_gives_a_plan_and_its_folders_are_relative_to_it(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("data: [line]\ncategories: nut\nmethods: [pbas, {method: glass, name: GLASS}]\nseeds: [0, 1]\n")

    found = tasks(Plan.from_file(file, {"seeds": [2]}))

    assert [(task.run.category, task.run.experiment.title, task.run.seed) for task in found] == [
        ("nut", "pbas", 2),
        ("nut", "GLASS", 2),
    ]


def test_title_names_all_that_is_not_the_default() -> None:
    experiment = Experiment(
        method="glass", preset="paper", backbone="x/resnet18.pth", fraction=0.25, set={"steps": 5}, select="best"
    )

    assert experiment.title == "glass, paper, resnet18.pth, steps=5, 25 % of the images, select best"


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"sedes": [1]}, "sedes"),
    "unknown method": ({"methods": "pbsa"}, "did you mean 'pbas'"),
    "unknown setting": ({"vary": {"patchsize": [1]}}, "did you mean 'patch_size'"),
    "unknown preset": ({"presets": "slow"}, "no preset called 'slow'"),
    "unknown category": ({"categories": "screw"}, "there are bolt, nut"),
    "fraction of nothing": ({"fractions": 0}, "fraction"),
    "method as a key": ({"methods": {"pbas": "fast"}}, r"write \{method: NAME, \.\.\.\}"),
    "seed below zero": ({"seeds": -1}, "seed"),
    "no such textures": ({"methods": "glass", "textures": "nowhere"}, "nowhere"),
    "no such weights": ({"backbones": "resnet18@nowhere.pth"}, "no weight file at nowhere.pth"),
}


UNFIT: dict[str, tuple[str, str]] = {
    "nothing to compare on": ("methods: [pbas]", "data is missing: add it"),
    "no method": ("data: [.]\nmethods: []", "methods=[] is not possible: it has 0 entries, and needs at least 1"),
    "an unknown entry": ("data: [.]\nmethods: [pbas]\nseed: 1", "seed=1 is not possible: it is not known here"),
    "an unknown setting of a method": (
        "data: [.]\nmethods: [{method: glass, texture: ../dtd}]",
        "methods.0.texture='../dtd' is not possible: it is not known here",
    ),
    "settings that are a list": (
        "data: [.]\nmethods: [pbas]\nvary: [3]",
        "vary=[3] is not possible: it must hold names",
    ),
    "a number as category": (
        "data: [.]\nmethods: [pbas]\ncategories: 3",
        "categories.0=3 is not possible: it must be text",
    ),
    "seeds in words": (
        "data: [.]\nmethods: [pbas]\nseeds: few",
        "seeds.0='few' is not possible: it must be a whole number",
    ),
    "too few resamples": (
        "data: [.]\nmethods: [pbas]\nresamples: -1",
        "resamples=-1 is not possible: it must be at least 0",
    ),
    "a folder without end": (f"data: [.]\nmethods: [{{method: {'a' * 999}, seed: 1}}]", "methods"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_file_that_does_not_fit_is_refused_in_plain_words(tmp_path: Path, case: str) -> None:
    content, words = UNFIT[case]
    (tmp_path / "plan.yaml").write_text(content, encoding="utf-8")

    with pytest.raises(FlawsmithError) as caught:
        Plan.from_file(tmp_path / "plan.yaml")

    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'plan.yaml'}: ") and words in message
    assert len(message) < 400 + len(str(tmp_path))
    assert not any(word in message for word in ("tuple", "dictionary", "Input", "input", "Extra", "Field"))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_named(root: Path, mistake: str) -> None:
    fields, words = MISTAKES[mistake]

    with pytest.raises(FlawsmithError, match=words):
        tasks(plan(root, **fields))


def test_fields_stand_for_a_plan_and_mistakes_in_them_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="benchmark: seed_s=1 is not possible: it is not known here"):
        flawsmith.run_benchmark({"data": root, "methods": "pbas", "seed_s": 1}, tmp_path)
    with pytest.raises(FlawsmithError, match="nonesuch"):
        flawsmith.run_benchmark({"data": str(root), "methods": ["nonesuch"]}, str(tmp_path))


def test_data_without_labelled_test_images_is_refused(root: Path) -> None:
    with pytest.raises(FlawsmithError, match="no test images: a benchmark needs labelled ones"):
        tasks(plan(root / "bolt" / "train" / "good"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n", "holds no mapping"),
        ("a: [", "is no YAML"),
        ("[" * 5000, "is no YAML"),
        ("data: x\n", "methods"),
        ("methods: 3\ndata: x", "method"),
    ],
)
def test_file_that_is_no_plan_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)

    with pytest.raises(FlawsmithError, match=words):
        Plan.from_file(file)


def test_folder_of_an_unknown_user_is_looked_for_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("data: ~nobody-of-this-name/parts\ntextures: ~nobody-of-this-name/dtd\nmethods: pbas")

    plan = Plan.from_file(file)

    assert plan.data == (tmp_path / "~nobody-of-this-name/parts",)
    assert plan.textures == str(tmp_path / "~nobody-of-this-name/dtd")


def test_protocol_and_oracle_reach_every_run_that_learns(root: Path) -> None:
    given = plan(root, categories=["bolt"], methods=["padim", "pbas"], protocol="papers", select="oracle")

    runs = [task.run for task in tasks(given)]

    assert [(run.protocol, run.experiment.select) for run in runs] == [("papers", "last"), ("papers", "oracle")]


def test_single_value_may_stand_for_a_list(root: Path) -> None:
    assert only(plan(root / "bolt", vary={"epochs": 3})).run.config["epochs"] == 3


PROJECT = Path(__file__).parents[2]
PLANS = sorted((PROJECT / "benchmarks").glob("*.yaml"))


@pytest.mark.real_data
@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_projects_own_plans_hold_runs_of_real_images(path: Path, real_data: Path) -> None:
    found = tasks(Plan.from_file(path, {"data": [real_data], "textures": str(real_data / "dtd")}))

    runs = [task.run for task in found]
    assert len({run.key for run in runs}) == len(runs)
    assert all(run.parts == ("whole", "B") for run in runs)


def test_content_of_foreground_masks_counts_in_the_key(tmp_path: Path, draw_parts: Callable[..., Path]) -> None:
    line = draw_parts(tmp_path / "line")
    for image in sorted((line / "train" / "good").glob("*.png")):
        mask = line / "fg_mask" / image.name
        mask.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((80, 112), 255, np.uint8)).save(mask)
    experiments = [{"method": "glass", "set": {"foreground": "files"}}, {"method": "glass"}]
    plan = Plan.checked({"data": [line], "methods": experiments}, source="test")
    before = [task.run.key for task in tasks(plan)]

    Image.fromarray(np.zeros((80, 112), np.uint8)).save(line / "fg_mask" / "003.png")

    after = [task.run.key for task in tasks(plan)]
    assert after[0] != before[0]
    assert after[1] == before[1]
