"""A published preset is a published setting, whole; what a run changes of it is named wherever the preset is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flawsmith
from flawsmith.benchmark.experiment import Experiment
from flawsmith.benchmark.plan import beside_preset
from flawsmith.cli.train import _introduce
from flawsmith.data.layouts import load
from flawsmith.features import backbones
from flawsmith.models.aand.config import PRESETS as AAND
from flawsmith.models.glass.config import PRESETS as GLASS
from flawsmith.models.pbas.config import PRESETS as PBAS
from flawsmith.pipeline import presets
from flawsmith.pipeline.describe import describe_model, model_in_words
from flawsmith.pipeline.settings import TrainSettings, method_config
from flawsmith.pipeline.train import choose_split
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.synthesis import textures

RANDOM = "test_efficientnet@random"


@pytest.fixture
def train_official(exported_once: None, parts: Path, tmp_path: Path, tiny_settings: Callable[..., Any]) -> Any:
    """Trains a tiny variant of preset ``official`` on 20 good images."""

    def run(method: str, **settings: Any) -> Any:
        changed = {**tiny_settings(method), **settings.pop("set", {})}
        options = {"preset": "official", "backbone": RANDOM, "workers": 0, "quiet": True, "baseline": "none"}
        return flawsmith.train(parts, out=tmp_path / "run", method=method, set=changed, **{**options, **settings})

    return run


@pytest.mark.parametrize(
    ("method", "backbone"),
    [
        *((method, "wide_resnet50_2.tv_in1k") for method in ("glass", "pbas", "aand", "rd4ad", "patchcore", "padim")),
        ("slsg", "resnet18.tv_in1k"),
    ],
)
@pytest.mark.parametrize("preset", ["official", "paper"])
def test_published_presets_have_their_backbone(method: str, preset: str, backbone: str) -> None:
    settings = TrainSettings(method=method, preset=preset)

    assert presets.chosen_backbone(settings, method_config(settings)[1]) == backbone
    named = settings.model_copy(update={"backbone": "resnet50"})
    assert presets.chosen_backbone(named, method_config(named)[1]) == "resnet50"


@pytest.mark.parametrize("method", ["glass", "aand", "slsg"])
@pytest.mark.parametrize("preset", ["official", "paper"])
def test_textures_of_dtd_have_to_be_named(method: str, preset: str, parts: Path, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError) as error:
        flawsmith.train(parts, out=tmp_path / "run", method=method, preset=preset, quiet=True)

    message = str(error.value)
    assert "\n" not in message
    for words in (f"preset {preset} of {method}", "~vgg/data/dtd/", "--textures dtd", "--textures procedural"):
        assert words in message
    assert not (tmp_path / "run").exists()


def test_methods_without_textures_need_none() -> None:
    for settings in (
        TrainSettings(method="pbas", preset="official"),
        TrainSettings(method="rd4ad", preset="paper"),
        TrainSettings(method="glass", preset="official", set={"las": False}),
        TrainSettings(method="glass", preset="fast"),
    ):
        presets.refuse_incomplete(settings, method_config(settings)[1])


def test_changes_are_named_in_model_card_info_and_report(train_official: Any) -> None:
    result = train_official("glass", textures="procedural")

    deviations = result.bundle.spec.training.deviations
    assert deviations[:2] == (f"backbone {RANDOM}", "textures procedural")
    assert "epochs=2" in deviations
    assert not any(name in words for words in deviations for name in ("resize", "foreground", "hypothesis", "held"))
    words = f"official, with {len(deviations)} changes: {', '.join(deviations)}"
    assert result.bundle.spec.preset_in_words == words
    assert f"- preset: {words}" in result.bundle.card
    facts = describe_model(result.model)
    assert facts["deviations"] == list(deviations)
    assert words in model_in_words(result.bundle)
    assert "million parameters" in model_in_words(result.bundle)
    assert facts["network"]["parameters"] > 1000 and facts["network"]["flops"] > 1000
    assert facts["training"]["textures"] == "procedural"
    assert words.partition(":")[0] in result.report.read_text(encoding="utf-8")


def test_a_single_change_is_one() -> None:
    assert flawsmith.runtime.bundle.preset_in_words("paper", ["epochs=3"]) == "paper, with 1 change: epochs=3"
    assert flawsmith.runtime.bundle.preset_in_words("paper", []) == "paper"


def test_models_of_our_own_preset_say_what_they_always_said(trained_small: Callable[[str], Any]) -> None:
    bundle = Bundle.load(trained_small("pbas").model)

    assert "deviations" not in json.loads(json.dumps(bundle.spec.model_dump(mode="json")))["training"]
    assert "with" not in bundle.card.partition("\n- backbone")[0]
    assert bundle.spec.decision.held_out


def test_published_presets_learn_from_all_images_and_say_what_the_limit_rests_on(train_official: Any) -> None:
    result = train_official("pbas")

    training, decision = result.bundle.spec.training, result.bundle.spec.decision
    assert training.n_train == training.n_calibration == decision.n_good == 20
    assert not decision.held_out
    assert "the model learned from too" in decision.describe()
    page = result.report.read_text(encoding="utf-8")
    assert "Held-out" not in page
    assert "held-out good" not in page
    assert "good, learned from" in page


def test_holdout_brings_held_out_images_back_and_is_named(train_official: Any) -> None:
    result = train_official("pbas", holdout=True)

    training, decision = result.bundle.spec.training, result.bundle.spec.decision
    assert (training.n_train, training.n_calibration) == (15, 5)
    assert decision.held_out
    assert "good images held out" in training.deviations


def test_our_own_preset_learns_from_all_if_asked(parts: Path) -> None:
    split = choose_split(load(parts), TrainSettings(method="pbas", holdout=False))

    assert len(split.train) == len(split.calibration) == 20
    assert split.calibrated_on_training


def test_validation_images_set_the_limit_whatever_the_preset(tmp_path: Path, trees: Any) -> None:
    dataset = load(trees.mvtec_loco(tmp_path / "loco"))

    ours, published = (
        choose_split(dataset, TrainSettings(method="slsg", preset=preset)) for preset in ("fast", "official")
    )

    assert published == ours
    assert published.source == "validation"


def test_a_fraction_sets_its_own_limit_where_none_are_held_out(parts: Path) -> None:
    split = choose_split(load(parts), TrainSettings(method="pbas", preset="official", fraction=0.5))

    assert len(split.train) == len(split.calibration) == 10
    assert set(split.calibration) == set(split.train)


def test_trimming_needs_held_out_images(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="add --holdout"):
        flawsmith.train(parts, out=tmp_path / "run", method="pbas", preset="official", trim=0.05, quiet=True)


@pytest.mark.parametrize("holdout", [True, False])
def test_cross_fitting_is_a_way_to_hold_out_of_its_own(holdout: bool, parts: Path, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="leave --holdout out"):
        flawsmith.train(parts, out=tmp_path / "run", method="pbas", cross_fit=2, holdout=holdout, quiet=True)


def test_introduction_counts_each_image_once(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _introduce(load(parts), {"method": "pbas", "preset": "official"}, notes=())

    assert "20 good images (all to learn and to set the limit)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("preset", "dataset", "category", "resize"),
    [
        (GLASS["official"], "mvtec_anomaly_detection", "wood", 329),
        (GLASS["official"], "MVTec AD", "toothbrush", 329),
        (GLASS["official"], "mvtec", "bottle", None),
        (GLASS["official"], "my_parts", "wood", None),
        (GLASS["paper"], "mvtec", "wood", None),
        (PBAS["official"], "mvtec", "wood", 329),
        (PBAS["official"].model_copy(update={"image_size": (256, 256)}), "mvtec", "wood", 292),
        (PBAS["official"].model_copy(update={"policy": "squash"}), "mvtec", "wood", None),
    ],
)
def test_released_crops_follow_the_category(preset: Any, dataset: str, category: str, resize: int | None) -> None:
    assert preset.of_category(dataset, category).geometry.resize == resize
    assert preset.geometry.resize is None


@pytest.mark.parametrize("preset", ["official", "paper"])
def test_foregrounds_of_glass_are_files_where_the_authors_released_some(preset: str) -> None:
    modes = {name: GLASS[preset].of_category(name, "any").foreground.mode for name in ("mvtec", "VisA", "wfdd", "mpdd")}

    assert modes == {"mvtec": "files", "VisA": "files", "wfdd": "files", "mpdd": "none"}
    assert GLASS["official"].of_category("line_3", "bolt").foreground.mode == "none"


def test_missing_foregrounds_are_found_before_training(tmp_path: Path, draw_parts: Callable[..., Path]) -> None:
    wood = draw_parts(tmp_path / "mvtec" / "wood")

    with pytest.raises(FlawsmithError) as error:
        flawsmith.train(wood, out=tmp_path / "run", method="glass", preset="official", textures="self", quiet=True)

    message = str(error.value)
    assert "\n" not in message
    for words in ("cqylunlun/GLASS", "--foregrounds DIR", "--set foreground=auto", "000.png"):
        assert words in message
    assert not (tmp_path / "run").exists()


def test_weights_are_known_by_the_digits_of_their_file() -> None:
    published, digits = "wide_resnet50_2.tv_in1k", "95faca4d" + "0" * 56
    same = presets.names_published

    assert same("wide_resnet50_2", published)
    assert same("wide_resnet50_2@mine.pth", published, digits)
    assert same("wide_resnet50_2-95faca4d.pth", published, digits)
    assert not same("wide_resnet50_2@mine.pth", published, "0" * 64)
    assert not same("resnet18@mine.pth", published, digits)
    assert not same("efficientnet_lite0", published)


def test_missing_weights_say_where_they_are_and_how_a_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    create = backbones.timm.create_model

    def offline(name: str, *, pretrained: bool = False, **settings: Any) -> Any:
        if pretrained:
            raise OSError
        return create(name, **settings)

    monkeypatch.setattr(backbones.timm, "create_model", offline)
    with pytest.raises(FlawsmithError) as error:
        backbones.load_backbone("resnet18.tv_in1k")

    message = str(error.value)
    assert "\n" not in message
    for words in ("https://download.pytorch.org/models/resnet18-", "--backbone resnet18@FILE", "efficientnet_lite0"):
        assert words in message


def test_a_part_of_dtd_is_told_from_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(set(textures._DTD_CLASSES.split())) == 47
    for name in ("banded", "woven"):
        for number in (1, 2):
            picture = tmp_path / "dtd" / "images" / name / f"{name}_{number:04d}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(b"")
    dtd = str(tmp_path / "dtd")

    assert presets._texture_change(dtd) == "textures dtd (4 of DTD's 5,640 pictures)"
    monkeypatch.setattr(textures, "DTD_PICTURES", 4)
    assert presets._texture_change(dtd) == ""
    (tmp_path / "dtd" / "images" / "woven" / "mine.jpg").write_bytes(b"")
    assert presets._texture_change(dtd) == "textures dtd"
    assert presets._texture_change("self") == "textures self"


def test_other_changes_are_named_too(parts: Path) -> None:
    changes = {"preset": "official", "fraction": 0.5, "select": "oracle", "tile": 64, "precision": "bfloat16"}
    settings = TrainSettings(method="pbas", engine="openvino", backbone="wide_resnet50_2", **changes)

    split = choose_split(load(parts), settings)

    assert presets.changed_conditions(settings, PBAS["official"], split, region=True) == (
        "50 % of the images",
        "checkpoint oracle",
        "a region of interest alone",
        "tiles of 64",
        "features in bfloat16",
    )


def test_numbers_are_named_as_set_takes_them() -> None:
    settings = TrainSettings(method="glass", preset="official", set={"foreground": "auto", "inner_radius": 0.7})
    _, config = method_config(settings)

    assert presets.changed_numbers("glass", "official", config, "mvtec", "wood") == (
        "inner_radius=0.7",
        "outer_radius=1.4",
        "foreground=auto",
    )
    assert presets.changed_numbers("glass", "official", GLASS["official"], "mvtec", "wood") == ()
    assert presets.changed_numbers("glass", "fast", config, "mvtec", "wood") == ()


@pytest.mark.parametrize("inner", [0.25, 0.5, 1.5])
@pytest.mark.parametrize("preset", ["fast", "official", "paper"])
def test_a_sweep_of_the_inner_radius_keeps_the_papers_ratio(inner: float, preset: str) -> None:
    _, config = method_config(TrainSettings(method="glass", preset=preset, set={"inner_radius": inner}))

    assert config.outer_radius == 2 * inner  # type: ignore[attr-defined]
    both = {"inner_radius": inner, "outer_radius": 3.0}
    assert method_config(TrainSettings(method="glass", preset=preset, set=both))[1].outer_radius == 3.0  # type: ignore[attr-defined]


def test_text_of_the_papers_pools_every_channel_over_its_neighbourhood() -> None:
    for published in (GLASS["paper"], PBAS["paper"]):
        assert (published.level_width, published.width) == (None, None)
    assert AAND["paper"].temperature == 0.2, "1 could not give the gates of the paper's Fig. 8"


@pytest.mark.parametrize(
    ("experiment", "backbone", "title"),
    [
        ({"preset": "fast"}, "efficientnet_lite0", "glass"),
        ({"preset": "fast", "textures": "procedural"}, "efficientnet_lite0", "glass"),
        ({"preset": "fast", "textures": "dtd"}, "efficientnet_lite0", "glass, textures dtd"),
        ({"preset": "fast", "backbone": "resnet18"}, "resnet18", "glass, resnet18"),
        ({"preset": "official", "textures": "dtd"}, "wide_resnet50_2.tv_in1k", "glass, official"),
        (
            {"preset": "official", "backbone": "wide_resnet50_2", "textures": "dtd"},
            "wide_resnet50_2",
            "glass, official",
        ),
        (
            {"preset": "official", "textures": "some_of_dtd"},
            "wide_resnet50_2.tv_in1k",
            "glass, official, textures some_of_dtd",
        ),
        (
            {"preset": "official", "backbone": "efficientnet_lite0", "textures": "procedural"},
            "efficientnet_lite0",
            "glass, official, efficientnet_lite0, textures procedural",
        ),
    ],
)
def test_arms_are_titled_by_what_is_not_their_presets(experiment: Any, backbone: str, title: str) -> None:
    arm = Experiment(method="glass", **experiment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flawsmith.benchmark.plan.holds_dtd", lambda folder: folder == "dtd")
        assert beside_preset(arm, backbone, GLASS[arm.preset].model_dump(mode="json")).title == title


def test_arms_of_other_packages_keep_their_titles() -> None:
    experiment = Experiment(method="anomalib-padim", preset="paper", backbone="resnet18@random", textures="procedural")

    assert beside_preset(experiment, "its own", {}) == experiment


def test_scores_of_images_learned_from_are_not_called_odd(train_official: Any, tmp_path: Path) -> None:
    result = train_official("pbas")

    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert not any("held-out" in remark for remark in record["remarks"])
    assert np.isfinite(result.bundle.calibration["good"]).all()
