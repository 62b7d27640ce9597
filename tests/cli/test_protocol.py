"""``--protocol``, ``--set`` and ``--oracle`` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from flawsmith.runtime.bundle import ORACLE


@pytest.fixture
def category(trees: ModuleType, tmp_path: Path) -> Path:
    return trees.mvtec(tmp_path / "bolt")


@pytest.fixture
def oracle_model(tiny: ModuleType, tmp_path: Path) -> Path:
    """A model whose checkpoint was chosen on test data."""
    spec = tiny.make_spec()
    path = tmp_path / "oracle.flaw"
    tiny.make_bundle(training=spec.training.model_copy(update={"selection": "oracle"})).save(path)
    return path


def test_papers_is_stamped_on_table_and_json(flawsmith: Callable, model: Path, category: Path, tmp_path: Path) -> None:
    table = flawsmith("evaluate", model, category, "--protocol", "papers", "--out", tmp_path / "e")
    figures = json.loads(
        flawsmith("evaluate", model, category, "--protocol", "papers", "--json", "--out", tmp_path / "e").out
    )

    assert table.code == 0
    assert table.out.startswith("PROTOCOL PAPERS: not comparable with clean figures")
    assert figures["protocol"] == "papers"
    assert figures["deviations"]["pro"] == "dilated_200"


def test_a_switch_is_set_as_a_setting_is(flawsmith: Callable, model: Path, category: Path, tmp_path: Path) -> None:
    options = ("--set", "rounding=three_decimals", "--json", "--out", tmp_path / "e")
    figures = json.loads(flawsmith("evaluate", model, category, *options).out)

    assert (figures["protocol"], figures["deviations"]) == ("custom", {"rounding": "three_decimals"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--protocol", "paper"), "choose clean or papers with --protocol"),
        (("--set", "pros=exact"), "did you mean 'pro'"),
        (("--set", "pro=fast"), "pro is one of exact"),
        (("--set", "mask=bilinear_exact_one"), "contradict each other"),
        (("--set", "pro"), "is not key=value"),
    ],
)
def test_an_unknown_protocol_is_one_line_and_writes_nothing(
    options: tuple[str, ...], said: str, flawsmith: Callable, model: Path, category: Path, tmp_path: Path
) -> None:
    outcome = flawsmith("evaluate", model, category, "--out", tmp_path / "e", *options)

    assert outcome.code == 2
    assert said in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "e").exists()


def test_every_command_says_that_a_model_is_an_oracles(
    flawsmith: Callable, oracle_model: Path, category: Path, tmp_path: Path
) -> None:
    photo = next((category / "test" / "good").iterdir())

    assert flawsmith("info", oracle_model).out.startswith(ORACLE)
    assert json.loads(flawsmith("info", oracle_model, "--json").out)["stamps"] == [ORACLE]
    assert flawsmith("evaluate", oracle_model, category, "--out", tmp_path / "e").out.startswith(ORACLE)
    assert ORACLE in flawsmith("predict", oracle_model, photo, "--out", tmp_path / "p").err
    assert ORACLE in flawsmith("doctor", oracle_model).out


def test_other_models_are_not_stamped(flawsmith: Callable, model: Path, category: Path, tmp_path: Path) -> None:
    assert "ORACLE" not in flawsmith("info", model).out
    assert "ORACLE" not in flawsmith("evaluate", model, category, "--out", tmp_path / "e").out


def test_two_ways_to_choose_a_checkpoint_are_refused(flawsmith: Callable, category: Path, tmp_path: Path) -> None:
    outcome = flawsmith("train", category, "--oracle", "--select", "best", "--out", tmp_path / "run")

    assert outcome.code == 2
    assert "--oracle and --select best choose the checkpoint in two ways" in outcome.err


def test_oracle_needs_labelled_test_images(flawsmith: Callable, trees: ModuleType, tmp_path: Path) -> None:
    root = trees.mvtec(tmp_path / "bolt", n_flawed=0)

    outcome = flawsmith("train", root, "--oracle", "--out", tmp_path / "run")

    assert outcome.code == 2
    assert "has no flawed ones: leave --oracle out" in outcome.err
    assert not (tmp_path / "run").exists()
