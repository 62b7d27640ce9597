"""What each command prints, writes and returns where all goes well."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from PIL import Image

import flawsmith as package
from flawsmith.cli.main import app
from flawsmith.cli.train import _devices
from flawsmith.data.samples import Dataset
from flawsmith.metrics.bootstrap import LOCO_METRICS
from flawsmith.models.registry import method_names
from flawsmith.pipeline.settings import TrainSettings
from flawsmith.runtime.bundle import Bundle


def grey(path: Path, level: int) -> Path:
    """A picture of one tone: the tiny model's score is level / 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), level, np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """One good photo, one to review, one to reject, one damaged; in this order."""
    for name, level in (("a", 50), ("b", 120), ("c", 200)):
        grey(tmp_path / "photos" / f"{name}.png", level)
    (tmp_path / "photos" / "d.png").write_bytes(b"no image")
    return tmp_path / "photos"


@pytest.fixture
def category(tmp_path: Path, trees: ModuleType) -> Path:
    """A category whose flawed parts are bright."""
    root = trees.mvtec(tmp_path / "bolt")
    for split, defect, level in (("test", "good", 60), ("test", "crack", 200)):
        for index in range(2):
            grey(root / split / defect / f"{index:03d}.png", level + index)
    for index in range(2):
        trees.mask(root / "ground_truth" / "crack" / f"{index:03d}_mask.png", (20, 30))
    return root


class TestProgram:
    def test_version_is_printed(self, flawsmith):
        assert flawsmith("--version") == (0, f"flawsmith {package.__version__}\n", "")

    def test_without_arguments_it_prints_its_help_and_nothing_else(self, flawsmith):
        outcome = flawsmith()

        assert outcome.code == 2
        assert "Usage: flawsmith" in outcome.out
        assert outcome.err == ""

    def test_help_of_train_names_every_method(self, flawsmith):
        words = " ".join(flawsmith("train", "--help").out.replace("│", " ").split())

        *others, last = method_names()
        assert f"{', '.join(others)} or {last}" in words

    def test_help_of_train_has_panels_from_basic_to_research(self, flawsmith):
        help_text = flawsmith("train", "--help").out

        places = [help_text.index(f"─ {panel} ─") for panel in ("Options", "Data", "Speed", "Research")]
        assert places == sorted(places)
        assert places[0] < help_text.index("--method") < places[1] < help_text.index("--roi") < places[2]
        assert places[2] < help_text.index("--devices") < places[3] < help_text.index("--oracle")

    @pytest.mark.parametrize("command", [["evaluate"], ["calibrate"], ["predict"], ["benchmark"], ["figure", "grid"]])
    def test_help_of_other_commands_has_the_same_panels(self, command, flawsmith):
        help_text = flawsmith(*command, "--help").out

        places = [help_text.find(f"─ {panel} ─") for panel in ("Options", "Data", "Speed", "Research")]
        shown = [place for place in places if place >= 0]
        assert len(shown) >= 2
        assert shown == sorted(shown)

    def test_no_panel_of_a_help_is_long(self):
        groups = [typer.main.get_command(app)]
        commands = []
        for group in groups:
            groups += [command for command in group.commands.values() if hasattr(command, "commands")]
            commands += [command for command in group.commands.values() if not hasattr(command, "commands")]

        basic = {
            command.name: [
                option.name
                for option in command.params
                if option.param_type_name == "option" and option.rich_help_panel is None
            ]
            for command in commands
        }
        assert len(basic) > 15
        assert {name: options for name, options in basic.items() if len(set(options) - {"json_", "quiet"}) > 8} == {}

    def test_methods_are_listed_with_use_time_and_paper(self, flawsmith):
        rows = json.loads(flawsmith("methods", "--json").out)

        assert [row["name"] for row in rows] == method_names()
        assert all(row["suits"] and row["training_time"] and row["paper"] for row in rows)
        assert len({row["suits"] for row in rows}) == len(rows)
        assert "weak flaws on textures; 4 min" in flawsmith("methods").out

    @pytest.mark.parametrize(
        ("words", "place", "completed"),
        [
            ("flawsmith tr", 1, ["train"]),
            ("flawsmith train --method pa", 3, ["padim", "patchcore"]),
            ("flawsmith settings gl", 2, ["glass"]),
        ],
    )
    def test_shell_completes_commands_and_methods(self, words, place, completed, flawsmith, monkeypatch, capsys):
        monkeypatch.setenv("_FLAWSMITH_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(place))

        with pytest.raises(SystemExit) as ended:
            flawsmith()

        assert (ended.value.code, capsys.readouterr().out.split()) == (0, completed)

    def test_help_lists_all_commands(self, flawsmith):
        outcome = flawsmith("--help")

        assert outcome.code == 0
        assert all(name in outcome.out for name in ("demo", "train", "evaluate", "predict", "info", "doctor"))

    @pytest.mark.parametrize("command", ["demo", "train", "evaluate", "predict", "info", "doctor"])
    def test_help_of_a_command_has_an_example(self, command, flawsmith):
        outcome = flawsmith(command, "--help")

        assert outcome.code == 0
        assert f"Example: flawsmith {command}" in " ".join(outcome.out.split())


class TestPredict:
    def test_verdicts_go_to_stdout_in_input_order(self, flawsmith, model, photos, tmp_path):
        outcome = flawsmith("predict", model, photos / "c.png", photos / "a.png", "--out", tmp_path / "v")

        rows = [line.split() for line in outcome.out.splitlines()]
        assert outcome.code == 0
        assert [(row[0], Path(row[3]).name) for row in rows] == [("reject", "c.png"), ("pass", "a.png")]
        assert [float(row[1].removesuffix("x")) > 1 for row in rows] == [True, False]

    def test_last_lines_are_counts_promise_and_what_is_nearest_to_the_limit(self, flawsmith, model, photos, tmp_path):
        outcome = flawsmith("predict", model, photos, "--out", tmp_path / "v")

        counts, promise, nearest, files = outcome.err.splitlines()[-4:]
        assert counts == "4 images: 1 reject, 1 review, 1 pass, 1 unreadable"
        assert promise.startswith("good parts rejected: about 50 of 1,000; 95 % sure: no more than")
        assert "reject at 1." in nearest and "c.png" in nearest and "pass at 0." in nearest and "a.png" in nearest
        assert files.startswith("see ")
        multiples = [line.split(",")[2] for line in (tmp_path / "v" / "verdicts.csv").read_text().splitlines()]
        assert multiples[0] == "times_limit"
        assert [float(text) > 1 for text in multiples[1:4]] == [False, False, True] and multiples[4] == ""

    def test_unreadable_image_is_reported_and_the_rest_inspected(self, flawsmith, model, photos, tmp_path):
        (photos / "d.png").rename(photos / "aa.png")

        outcome = flawsmith("predict", model, photos, "--out", tmp_path / "v")

        assert outcome.code == 1
        assert len(outcome.out.splitlines()) == 3
        assert "unreadable:" in outcome.err
        assert "aa.png" in outcome.err
        assert "1 unreadable" in outcome.err

    def test_missing_photo_among_others_is_reported(self, flawsmith, model, photos, tmp_path):
        outcome = flawsmith("predict", model, photos / "gone.png", photos / "a.png", "--out", tmp_path / "v")

        assert outcome.code == 1
        assert "no such file" in outcome.err

    def test_name_that_is_too_long_among_others_is_reported(self, flawsmith, model, photos, tmp_path):
        outcome = flawsmith("predict", model, photos / "a.png", "x" * 300, photos / "b.png", "--out", tmp_path / "v")

        assert outcome.code == 1
        assert [line.split()[0] for line in outcome.out.splitlines()] == ["pass", "review"]
        assert outcome.err.startswith("unreadable: xxx")

    def test_json_prints_the_lines_of_the_file_and_nothing_else(self, flawsmith, model, photos, tmp_path):
        outcome = flawsmith("predict", model, photos, "--json", "--out", tmp_path / "v")

        assert outcome.out == (tmp_path / "v" / "verdicts.jsonl").read_text()
        records = [json.loads(line) for line in outcome.out.splitlines()]
        assert [record.get("verdict") for record in records] == ["pass", "review", "reject", None]
        assert "error" in records[3]

    @pytest.mark.parametrize(
        ("option", "drawn"), [(None, ["b", "c"]), ("--overlays", ["a", "b", "c"]), ("--no-overlays", [])]
    )
    def test_overlays_are_drawn_as_asked(self, option, drawn, flawsmith, model, photos, tmp_path):
        flawsmith("predict", model, photos, "--out", tmp_path / "v", *([option] if option else []))

        overlays = sorted((tmp_path / "v").glob("overlays/*.png"))
        assert [path.stem.split("-")[1] for path in overlays] == drawn

    def test_table_says_by_what_each_verdict_was_made(self, flawsmith, model, photos, tmp_path):
        flawsmith("predict", model, photos, "--out", tmp_path / "v")

        with (tmp_path / "v" / "verdicts.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == [
            *("image", "score", "times_limit", "verdict", "regions", "error"),
            *("limit", "model", "date", "overlay", "remark"),
        ]
        decision = Bundle.load(model).spec.decision
        assert {float(row["limit"]) for row in rows} == {decision.limit}
        assert {row["model"] for row in rows} == {hashlib.sha256(model.read_bytes()).hexdigest()}
        assert all(abs(date.fromisoformat(row["date"]) - date.today()) <= timedelta(days=1) for row in rows)
        assert [bool(row["overlay"]) for row in rows] == [False, True, True, False]
        assert (tmp_path / "v" / rows[2]["overlay"]).is_file()

    def test_maps_as_tiff_lie_as_their_images_do(self, flawsmith, model, tmp_path):
        for name in ("good/000.png", "crack/000.png"):
            grey(tmp_path / "test" / name, 120)

        outcome = flawsmith("predict", model, tmp_path / "test", "--maps", "tiff", "--out", tmp_path / "test" / "v")
        again = flawsmith("predict", model, tmp_path / "test", "--maps", "tiff", "--out", tmp_path / "test" / "v")

        assert (outcome.code, again.code) == (0, 0)
        maps = tmp_path / "test" / "v" / "maps"
        written = sorted(path.relative_to(maps).as_posix() for path in maps.rglob("*") if path.is_file())
        assert written == ["crack/000.tiff", "good/000.tiff"]
        with Image.open(maps / "good" / "000.tiff") as picture:
            assert (picture.mode, picture.size) == ("F", (30, 20))

    def test_maps_without_a_format_are_numbered_arrays(self, flawsmith, model, photos, tmp_path):
        assert flawsmith("predict", model, "--maps", photos / "a.png", "--out", tmp_path / "v").code == 0

        assert [path.suffix for path in (tmp_path / "v" / "maps").iterdir()] == [".npy"]

    def test_maps_in_a_tree_need_one_folder_and_a_name_each(self, flawsmith, model, photos, tmp_path):
        unknown = flawsmith("predict", model, photos / "a.png", "--maps", "jpg", "--out", tmp_path / "v")
        assert (unknown.code, unknown.err.splitlines()[-1:]) == (
            2,
            ["error: --maps jpg is not possible: write --maps npy or --maps tiff"],
        )
        several = flawsmith("predict", model, photos / "a.png", "--maps", "tiff", "--out", tmp_path / "v")
        grey(photos / "a.jpg", 50)
        same = flawsmith("predict", model, photos, "--maps", "tiff", "--out", tmp_path / "v")

        assert (several.code, same.code) == (2, 2)
        assert "--maps tiff repeats the tree of one folder" in several.err
        assert "would have the same map" in same.err

    def test_quiet_leaves_errors_only(self, flawsmith, model, photos, tmp_path):
        outcome = flawsmith("predict", model, photos, "--quiet", "--out", tmp_path / "v")

        assert outcome.out == ""
        assert len(outcome.err.splitlines()) == 1

    def test_other_engine_is_warned_of_in_one_line(self, flawsmith, model, photos, tmp_path):
        pytest.importorskip("openvino")

        outcome = flawsmith("predict", model, photos / "a.png", "--engine", "openvino", "--out", tmp_path / "v")

        assert outcome.code == 0
        assert outcome.err.splitlines()[0].startswith("warning: the limits were calibrated with onnxruntime")


class TestEvaluate:
    def test_table_and_files(self, flawsmith, model, category, tmp_path):
        outcome = flawsmith("evaluate", model, category)

        folder = tmp_path / "evaluation"
        assert outcome.code == 0
        assert "image AUROC" in outcome.out
        assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "report.html", "scores.csv"]
        with (folder / "scores.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["image"], row["defect"], row["verdict"]) for row in rows] == [
            ("test/crack/000.png", "crack", "reject"),
            ("test/crack/001.png", "crack", "reject"),
            ("test/good/000.png", "good", "pass"),
            ("test/good/001.png", "good", "pass"),
        ]

    def test_json_is_one_object_equal_to_the_file(self, flawsmith, model, category, tmp_path):
        outcome = flawsmith("evaluate", model, category, "--json", "--out", tmp_path / "e")

        figures = json.loads(outcome.out)
        assert figures["image_auroc"] == 1.0
        assert figures["false_reject_rate"] == 0.0
        assert figures["n_good"] == figures["n_flawed"] == 2
        assert figures == json.loads((tmp_path / "e" / "evaluation.json").read_text())

    def test_loco_gives_both_kinds_their_mean_and_the_pooled_value(self, flawsmith, model, trees, tmp_path):
        root = trees.mvtec_loco(tmp_path / "loco" / "bottle")

        table = flawsmith("evaluate", model, root, "--out", tmp_path / "e").out
        figures = json.loads(flawsmith("evaluate", model, root, "--json", "--out", tmp_path / "e").out)

        report = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
        for measure, pooled in (("image_auroc", "image AUROC"), ("spro", "sPRO (0.05)")):
            logical, structural = figures[f"{measure}_logical"], figures[f"{measure}_structural"]
            assert figures[f"{measure}_loco_mean"] == pytest.approx((logical + structural) / 2)
            assert 0 <= figures[measure] <= 1
            for name in ("pooled", "logical", "structural", "LOCO mean"):
                assert f"{pooled}, {name}" in table
                assert f"{pooled}, {name}" in report
        assert "Saturated region overlap (sPRO)" in report

    def test_other_layouts_have_no_figures_of_loco(self, flawsmith, model, category, tmp_path):
        outcome = flawsmith("evaluate", model, category, "--json", "--out", tmp_path / "e")

        figures = json.loads(outcome.out)
        assert {name for name in figures if "spro" in name or name.startswith("image_auroc_")} == set(LOCO_METRICS)
        assert all(figures[name] is None for name in LOCO_METRICS)
        assert "LOCO" not in flawsmith("evaluate", model, category).out
        assert "sPRO" not in (tmp_path / "e" / "report.html").read_text(encoding="utf-8")

    def test_repeated_evaluation_replaces_the_former(self, flawsmith, model, category):
        first = flawsmith("evaluate", model, category)
        second = flawsmith("evaluate", model, category)

        assert first == second


class TestInfo:
    def test_words_say_what_the_limit_is_worth(self, flawsmith, model):
        outcome = flawsmith("info", model)

        assert outcome.code == 0
        assert "verified" in outcome.out
        assert "rests on only 19 good images" in outcome.out

    def test_json_holds_the_decision(self, flawsmith, model):
        facts = json.loads(flawsmith("info", model, "--json").out)

        assert facts["decision"]["limit"] == 0.6
        assert facts["training"]["n_train"] == 80
        assert facts["verified"] is True


class TestDoctor:
    def test_sound_data_with_warnings_gives_0(self, flawsmith, category):
        outcome = flawsmith("doctor", category)

        assert outcome.code == 0
        assert "warning:" in outcome.out

    @pytest.mark.parametrize(
        ("layout", "counts"),
        [
            ("visa", "6 good images to learn from, 2 good and 3 flawed ones to test"),
            ("mvtec_3d", "6 good images to learn from, 3 good ones to validate, 2 good and 4 flawed ones to test"),
            ("mvtec_loco", "6 good images to learn from, 3 good ones to validate, 2 good and 4 flawed ones to test"),
            ("btad", "6 good images to learn from, 2 good and 3 flawed ones to test"),
        ],
    )
    def test_other_layouts_are_read_and_nothing_but_few_images_is_found(
        self, flawsmith, trees, tmp_path, layout, counts
    ):
        root = getattr(trees, layout)(tmp_path / "data" / "part")

        outcome = flawsmith("doctor", root)
        findings = json.loads(flawsmith("doctor", root, "--json").out)["findings"]

        assert outcome.code == 0
        assert outcome.out.startswith(f"part ({layout} layout): {counts}\n")
        assert {finding["name"] for finding in findings} == {"few-to-train", "few-to-calibrate"}

    def test_reason_for_the_layout_and_against_others_is_said(self, flawsmith, trees, tmp_path):
        root = trees.ksdd2(tmp_path / "surface")

        outcome = flawsmith("doctor", root)
        facts = json.loads(flawsmith("doctor", root, "--json").out)

        said = "ksdd2 layout, because in train/ and test/ images have a mask <name>_GT beside them"
        assert f"\n  {said}\n  not mvtec: train/ is there, but no train/good/\n" in outcome.out
        assert facts["recognised"] == [said, "not mvtec: train/ is there, but no train/good/"]

    def test_public_set_that_is_not_whole_is_sound_and_its_missing_files_are_named(self, flawsmith, trees, tmp_path):
        root = trees.mvtec(tmp_path / "mvtec_ad" / "screw")
        (root / "train/good/002.png").unlink()

        outcome = flawsmith("doctor", root)

        assert outcome.code == 0
        assert "MVTec AD, screw: not the official set, 5 to train on where 320 are official (-315)" in outcome.out
        assert "note: 1 file is missing from the numbering of train/good/" in outcome.out
        assert str(root / "train/good/002.png") in outcome.out

    def test_one_missing_mask_is_named(self, flawsmith, trees, tmp_path):
        root = trees.magnetic_tile(tmp_path / "tiles")
        (root / "MT_Crack/Imgs/exp1_num_0.png").unlink()

        outcome = flawsmith("doctor", root)

        assert outcome.code == 0
        assert str(root / "MT_Crack/Imgs/exp1_num_0.jpg") in outcome.out

    def test_damaged_file_gives_1_and_is_named(self, flawsmith, category):
        (category / "train/good/000.png").write_bytes(b"no image")

        outcome = flawsmith("doctor", category, "--json")

        findings = json.loads(outcome.out)
        assert outcome.code == 1
        assert findings["errors"] == 1
        assert findings["findings"][0]["where"] == [str(category / "train/good/000.png")]

    def test_model_is_run_once(self, flawsmith, model):
        outcome = flawsmith("doctor", model, "--json")

        names = {finding["name"] for finding in json.loads(outcome.out)["findings"]}
        assert outcome.code == 0
        assert {"runs", "versions"} <= names

    def test_model_that_does_not_run_gives_1(self, flawsmith, tiny, tmp_path):
        bundle = tiny.make_bundle()
        Bundle(bundle.spec, tiny.mean_detector((8, 8))).save(tmp_path / "odd.flaw")

        outcome = flawsmith("doctor", tmp_path / "odd.flaw")

        assert outcome.code == 1
        assert "error:" in outcome.out


class TestTrain:
    @pytest.fixture
    def trained(self, monkeypatch: pytest.MonkeyPatch, tiny: ModuleType) -> list[dict[str, object]]:
        """The options with which the pipeline was called; training itself is tested there."""
        from flawsmith.data.groups import with_groups
        from flawsmith.data.layouts import load
        from flawsmith.pipeline import train

        calls: list[dict[str, object]] = []

        def record(data: Path, *, on_data: Callable[[Dataset], None], **options: Any) -> SimpleNamespace:
            on_data(with_groups(load(data, options["layout"]), options["group"]))
            calls.append({"data": data, **options})
            folder = Path("runs/bolt")
            return SimpleNamespace(
                folder=folder, model=folder / "model.flaw", report=folder / "report.html", bundle=tiny.make_bundle()
            )

        monkeypatch.setattr(train, "train", record)
        return calls

    def test_options_reach_the_pipeline(self, flawsmith, category, trained):
        options = ["--seed", 3, "--set", "epochs=2", "--set", "batch_size=4", "--bits", 12, "--review-alpha", 0.1]

        outcome = flawsmith("train", category, *options, "--devices", "2", "--resume", "--out", "there")

        assert outcome.code == 0
        assert trained[0]["set"] == {"epochs": 2, "batch_size": 4}
        expected = {"seed": 3, "bits": 12, "review_alpha": 0.1, "devices": 2, "resume": True, "out": Path("there")}
        assert {key: trained[0][key] for key in expected} == expected

    def test_settings_of_an_earlier_run_are_taken_back_and_options_win(self, flawsmith, category, trained, tmp_path):
        file = tmp_path / "config.yaml"
        file.write_text(
            "method: pbas\nseed: 7\nalpha: 0.02\nreview_alpha: null\nvalue_range: [7000.0, 9000.0]\n"
            "set: {epochs: 3, batch_size: 4}\nconfig: {epochs: 3}\nregion: null\nzones: null\ndata: {dataset: x}\n"
        )

        outcome = flawsmith("train", category, "--seed", 1, "--set", "epochs=2", "--config", file)

        assert outcome.code == 0, outcome.err
        expected = {"method": "pbas", "seed": 1, "alpha": 0.02, "review_alpha": None, "value_range": (7000.0, 9000.0)}
        assert {key: trained[0][key] for key in expected} == expected
        assert trained[0]["set"] == {"epochs": 2, "batch_size": 4}

    def test_what_a_run_writes_is_taken_back_whole(self, flawsmith, category, trained, tmp_path):
        settings = TrainSettings(method="padim", alpha=0.05, smallest_flaw="12", tile=128, group="none", bits=12)
        facts = settings.model_dump(mode="json")
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump({**facts, "config": {}, "data": {}}))

        outcome = flawsmith("train", category, "--config", file)

        assert outcome.code == 0, outcome.err
        assert {name: trained[0][name] for name in facts} == {**facts, "tile": None}

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("epochs: 3", "train has no setting called 'epochs'; those of a method go under set"),
            ("[1, 2]", "holds no settings"),
            ("a: [", "cannot be read"),
            ("value_range: [7000]", "--value-range 7000 is not possible: write two values, such as 7000:9000"),
            ("value_range: 9", "--value-range 9 is not possible"),
        ],
    )
    def test_other_files_than_a_run_s_settings_are_refused_in_one_line(
        self, text, words, flawsmith, category, trained, tmp_path
    ):
        (tmp_path / "x.yaml").write_text(text)

        outcome = flawsmith("train", category, "--config", tmp_path / "x.yaml")

        assert outcome.code == 2
        assert words in outcome.err
        assert outcome.err.count("\n") == 1
        assert trained == []

    @pytest.mark.parametrize("name", ["--max-false-rejects", "--rate", "--alpha"])
    def test_rate_of_false_rejects_has_a_name_that_says_what_it_is(self, name, flawsmith, category, trained):
        assert flawsmith("train", category, name, "5/1000").code == 0
        assert trained[0]["alpha"] == 0.005

    @pytest.mark.parametrize(("text", "devices"), [("-1", -1), ("auto", "auto"), ("0, 1", "0,1"), ("1,", "1,")])
    def test_devices_are_a_number_a_list_or_auto(self, text, devices):
        assert _devices(text) == devices

    @pytest.mark.parametrize("text", ["--5", "-5", "0", "two", "1.5", ","])
    def test_other_devices_are_refused_in_one_line(self, text, flawsmith, category, trained):
        outcome = flawsmith("train", category, f"--devices={text}")

        assert outcome.code == 2
        assert outcome.err.startswith(f"error: --devices {text} is not possible: write ")
        assert outcome.err.count("\n") == 1
        assert trained == []

    def test_people_learn_what_was_recognised_and_where_results_lie(self, flawsmith, category, trained):
        outcome = flawsmith("train", category)

        assert outcome.out == ""
        assert "mvtec layout, because" in outcome.err
        assert "to learn, " in outcome.err
        assert "to set the limit" in outcome.err
        assert "model.flaw" in outcome.err
        assert "report.html" in outcome.err
        assert "it rests on only 19 good images" in outcome.err

    def test_last_lines_begin_with_what_is_rejected_and_end_with_what_to_do(self, flawsmith, category, trained):
        lines = flawsmith("train", category).err.splitlines()

        told = "The limit rejects about 50 of 1,000 good parts; 95 % sure: no more than 146. WARNING: it rests on "
        assert sum(line.startswith(told) for line in lines) == 1
        assert lines[-1] == "next:   flawsmith predict runs/bolt/model.flaw IMAGES"

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ((), "4 groups by sub-folder: 1 of them held out\n"),
            (("--group", r"name:(\d)\.png$"), "5 groups by file name: 2 of them held out\n"),
            (("--group", "none"), None),
        ],
    )
    def test_groups_are_told_in_a_line_before_training(self, options, words, flawsmith, tmp_path, trees, trained):
        for number in range(20):
            trees.picture(tmp_path / "bolt" / f"lot {number // 5}" / f"{number % 5}.png", seed=number)

        outcome = flawsmith("train", tmp_path / "bolt", *options)

        assert outcome.code == 0
        assert words in outcome.err if words else "groups by" not in outcome.err
        assert trained[0]["group"] == (options[1] if options else "auto")

    def test_unknown_groups_are_refused_in_one_line(self, flawsmith, category, trained):
        outcome = flawsmith("train", category, "--group", "fodler")

        assert outcome.code == 2
        assert outcome.err.splitlines()[-1].startswith("error: --group fodler is not possible, did you mean folder?")
        assert trained == []

    def test_json_is_one_object(self, flawsmith, category, trained):
        result = json.loads(flawsmith("train", category, "--json").out)

        assert result["model"].endswith("model.flaw")
        assert result["decision"]["n_good"] == 19

    def test_ctrl_c_says_how_to_go_on(self, flawsmith, category, monkeypatch):
        from flawsmith.pipeline import train

        monkeypatch.setattr(train, "train", raiser(KeyboardInterrupt()))

        outcome = flawsmith("train", category, "--quiet")

        assert outcome == (130, "", "interrupted: continue with --resume\n")

    def test_ctrl_c_inside_lightning_says_how_to_go_on(self, flawsmith, parts, tmp_path, monkeypatch):
        monkeypatch.setattr("lightning.pytorch.Trainer.fit", raiser(SystemExit(1)))

        outcome = flawsmith("train", parts, "--out", tmp_path / "run", "--set", "image_size=[64,96]", "--quiet")

        assert (outcome.code, outcome.out) == (130, "")
        assert outcome.err.endswith("interrupted: continue with --resume\n")


def raiser(error: BaseException) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail
