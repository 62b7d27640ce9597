"""The demonstration owns its folder and can be run again; the training in it is tested where it lives."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from flawsmith.pipeline import demo
from flawsmith.runtime.errors import FlawsmithError

SMALL: dict[str, Any] = {"n_train": 3, "n_test_good": 2, "n_per_defect": 1, "size": (64, 64)}


@pytest.fixture(autouse=True)
def trained(monkeypatch: pytest.MonkeyPatch, tiny: ModuleType) -> list[dict[str, Any]]:
    """Puts a tiny model where training would write one, and keeps the options it was called with."""
    calls: list[dict[str, Any]] = []

    def stand_in(data: Path, *, out: Path, **options: Any) -> SimpleNamespace:
        calls.append({"data": data, "out": out, **options})
        out.mkdir(parents=True)
        bundle = tiny.make_bundle()
        bundle.save(out / "model.flaw")
        return SimpleNamespace(folder=out, model=out / "model.flaw", report=out / "report.html", bundle=bundle)

    monkeypatch.setattr(demo, "train", stand_in)
    return calls


def test_demo_leaves_data_model_and_report(tmp_path, trained):
    result = demo.run_demo(tmp_path / "demo", render=SMALL)

    assert result.model.is_file()
    assert result.report.is_file()
    assert len(list((result.data / "train" / "good").iterdir())) == 3
    assert result.evaluation.n_flawed == 5
    assert trained[0]["preset"] == "fast"


def test_demo_says_in_the_end_how_it_went(tmp_path):
    result = demo.run_demo(tmp_path / "demo", render=SMALL)

    found, rejected = result.evaluation.n_flawed - result.evaluation.n_missed, result.evaluation.n_rejected
    assert f"found {found} of 5 flawed parts and rejected {rejected} of 2 good ones" in result.news


@pytest.mark.parametrize(("missed", "rejected", "verb"), [(0, 0, "works"), (4, 0, "runs"), (0, 2, "runs")])
def test_demo_praises_good_figures_alone(missed, rejected, verb):
    evaluation = SimpleNamespace(n_flawed=5, n_good=4, n_missed=missed, n_rejected=rejected)

    news = demo.DemoResult(Path("data"), Path("model"), Path("report"), evaluation).news

    assert news.startswith(f"Flawsmith {verb} on this machine.")


def test_second_run_keeps_the_drawings_and_replaces_the_rest(tmp_path):
    first = demo.run_demo(tmp_path / "demo", render=SMALL)
    drawn = first.data.stat().st_ino
    (tmp_path / "demo" / "run" / "old.txt").write_text("of the first run")
    messages: list[str] = []

    second = demo.run_demo(tmp_path / "demo", render=SMALL, on_message=messages.append)

    assert second.data.stat().st_ino == drawn
    assert not (tmp_path / "demo" / "run" / "old.txt").exists()
    assert second.evaluation == first.evaluation
    assert "last demo" in messages[0]


def test_another_seed_draws_anew(tmp_path):
    first = demo.run_demo(tmp_path / "demo", render=SMALL)
    before = (first.data / "train/good/000.png").read_bytes()

    demo.run_demo(tmp_path / "demo", render=SMALL, seed=1)

    assert (first.data / "train/good/000.png").read_bytes() != before


def test_interrupted_demo_can_be_run_again(tmp_path, monkeypatch):
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(demo, "render_product_line", interrupt)
        with pytest.raises(KeyboardInterrupt):
            demo.run_demo(tmp_path / "demo", render=SMALL)

    assert demo.run_demo(tmp_path / "demo", render=SMALL).model.is_file()


def test_files_of_the_user_beside_a_demo_survive(tmp_path):
    demo.run_demo(tmp_path / "demo", render=SMALL)
    (tmp_path / "demo" / "notes.txt").write_text("mine")

    demo.run_demo(tmp_path / "demo", render=SMALL, seed=1)

    assert (tmp_path / "demo" / "notes.txt").read_text() == "mine"


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "demo" / "run").mkdir(parents=True)
    (tmp_path / "demo" / "run" / "thesis.txt").write_text("mine")

    with pytest.raises(FlawsmithError, match="is not empty and holds no demo"):
        demo.run_demo(tmp_path / "demo", render=SMALL)

    assert (tmp_path / "demo" / "run" / "thesis.txt").read_text() == "mine"


def test_damaged_marker_means_drawing_anew(tmp_path):
    demo.run_demo(tmp_path / "demo", render=SMALL)
    (tmp_path / "demo" / demo.MARKER).write_text("{cut of")

    demo.run_demo(tmp_path / "demo", render=SMALL)

    assert json.loads((tmp_path / "demo" / demo.MARKER).read_text())["part"] == "bracket"


def test_unknown_part_lists_the_known_ones(tmp_path):
    with pytest.raises(FlawsmithError, match=r"choose one of .*bracket"):
        demo.run_demo(tmp_path / "demo", part="wheel")
