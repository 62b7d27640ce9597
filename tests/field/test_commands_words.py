"""What commands say: names from strangers, names that are not known, figures by other rules."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import flawsmith as package
from flawsmith.cli.main import main
from flawsmith.pipeline.settings import check_settings
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError

EVIL = [
    "a\x1b[2J\x1b]0;owned\x07",  # clears the terminal, sets its title
    "a\rpass    0.1  b.png",  # overwrites the line
    "a\npass    0.1  b.png",  # adds one
    "a\x9b31mred",  # an escape in one character
    "gnp.\u202eb",  # reads backwards
    "a\u2066b\u2069\u200f",
    "a\x7f\x08\x08b",
    "a\u2028b",
]
CONTROLS = set(map(chr, [*range(10), *range(11, 32), *range(127, 160), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F)]))


@pytest.fixture
def flawsmith(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command line in this process: exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
@pytest.mark.parametrize("name", EVIL)
def test_names_of_images_do_not_steer_the_terminal(name: str, tiny: ModuleType, flawsmith: Any, tmp_path: Path) -> None:
    tiny.make_bundle().save(tmp_path / "model.flaw")
    Image.fromarray(np.full((20, 30, 3), 10, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / f"{name}.jpg").write_bytes(b"none")

    code, out, err = flawsmith("predict", tmp_path / "model.flaw", tmp_path, "--out", tmp_path / "v")

    assert code == 1
    assert not CONTROLS & set(out + err)
    assert (out.count("\n"), err.count("\n")) == (1, 1 + 4), "a verdict; a fault and the four lines of the summary"
    record = json.loads((tmp_path / "v" / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert record["image"] == str(tmp_path / f"{name}.png")  # programs get the name as it is


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
@pytest.mark.parametrize("command", ["calibrate", "evaluate", "doctor"])
@pytest.mark.parametrize("name", EVIL[:2])
def test_no_command_shows_names_as_they_are(
    command: str, name: str, tiny: ModuleType, flawsmith: Any, tmp_path: Path
) -> None:
    tiny.make_bundle().save(tmp_path / "model.flaw")

    def outcome(called: str) -> tuple[int, int, str]:
        parts = tmp_path / f"parts {called}"
        for folder, brightness in (("good", 250), ("bad", 10)):
            (parts / folder).mkdir(parents=True)
            for number in range(3):
                pixels = np.full((20, 30, 3), brightness + number, np.uint8)
                Image.fromarray(pixels).save(parts / folder / f"{number}{called}.png")
        (parts / "bad" / f"{called}.jpg").write_bytes(b"none")
        arguments: dict[str, tuple[object, ...]] = {
            "calibrate": (tmp_path / "model.flaw", parts / "good", "--out", tmp_path / "new.flaw"),
            "evaluate": (tmp_path / "model.flaw", parts, "--out", tmp_path / "e"),
            "doctor": (parts,),
        }
        code, out, err = flawsmith(command, *arguments[command])
        return code, (out + err).count("\n"), out + err

    plain, evil = outcome("a"), outcome(name)

    assert evil[:2] == plain[:2]
    assert not CONTROLS & set(evil[2])


@pytest.mark.parametrize("name", EVIL)
def test_texts_of_a_model_file_do_not_steer_the_terminal(
    name: str, tiny: ModuleType, flawsmith: Any, tmp_path: Path
) -> None:
    spec = tiny.make_bundle().spec
    training = spec.training.model_copy(update={"category": name, "findings": {name: name}, "textures": name})
    tiny.make_bundle(training=training, method=name, preset=name).save(tmp_path / "model.flaw")
    plain = tiny.make_bundle(training=training.model_copy(update={"category": "a", "findings": {"a": "a"}}))
    plain.save(tmp_path / "plain.flaw")

    code, out, _ = flawsmith("info", tmp_path / "model.flaw")

    assert code == 0
    assert not CONTROLS & set(out)
    assert out.count("\n") == flawsmith("info", tmp_path / "plain.flaw")[1].count("\n")


def test_error_names_the_file_without_steering_the_terminal(flawsmith: Any, tmp_path: Path) -> None:
    code, _, err = flawsmith("info", tmp_path / EVIL[0])

    assert code == 2
    assert r"a\x1b[2J" in err
    assert not CONTROLS & set(err)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("metod", ", did you mean 'method'?"), ("basline", ", did you mean 'baseline'?"), ("zzz", "")],
)
def test_unknown_argument_of_train_names_the_closest(name: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError) as caught:
        package.train(tmp_path, **{name: "glass"})

    assert str(caught.value).startswith(f"train has no setting called {name!r}{hint}: `flawsmith train --help`")


def test_unknown_setting_names_the_closest_and_the_command_that_lists_them(flawsmith: Any, tmp_path: Path) -> None:
    code, _, err = flawsmith("train", tmp_path, "--set", "epoch=3")

    line = "fusion has no setting called 'epoch', did you mean 'epochs'?: `flawsmith settings fusion` lists them"
    assert (code, err) == (2, f"error: {line}\n")
    assert flawsmith("settings", "pbas")[1].count("\nepochs=") == 1
    rows = json.loads(flawsmith("settings", "slsg", "--preset", "paper", "--json")[1])
    assert {"name", "value", "meaning"} == set(rows[0])


WITHOUT = """
import sys
sys.modules["torch"] = None
import flawsmith
try:
    flawsmith.train
except flawsmith.FlawsmithError as error:
    print(error)
"""


def test_train_without_its_tier_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)

    line = "flawsmith.train needs torch, which is not installed: run `pip install 'flawsmith[train]'`\n"
    assert done.stdout == line


def test_first_line_of_train_says_with_what(flawsmith: Any, tmp_path: Path) -> None:
    code, _, err = flawsmith("train", tmp_path, "--method", "padim", "--accelerator", "cpu")

    assert code == 2  # there are no images
    assert err.splitlines()[0] == "method padim, preset fast, backbone efficientnet_lite0, on cpu"


def test_preset_is_fast_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from flawsmith.pipeline.settings import method_config

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)

    assert method_config(check_settings({"method": "glass"}))[0] == "fast"


def test_figures_by_other_rules_do_not_replace_each_other(
    trained: Callable[[str], Any], parts: Path, flawsmith: Any, tmp_path: Path
) -> None:
    model = tmp_path / "model.flaw"
    Bundle.load(trained("pbas").model).save(model)

    assert flawsmith("evaluate", model, parts)[0] == 0
    clean = (tmp_path / "evaluation" / "evaluation.json").read_bytes()
    assert flawsmith("evaluate", model, parts, "--protocol", "papers")[0] == 0
    code, _, err = flawsmith("evaluate", model, parts, "--protocol", "papers", "--out", tmp_path / "evaluation")

    assert (tmp_path / "evaluation" / "evaluation.json").read_bytes() == clean
    assert json.loads((tmp_path / "evaluation-papers" / "evaluation.json").read_text())["protocol"] == "papers"
    assert code == 2
    line = f"error: {tmp_path / 'evaluation'} holds figures by other rules (protocol clean), which do not compare with"
    assert err == f"{line} these: give another folder with --out\n"


@pytest.mark.parametrize(("name", "label"), [("resnet18@random", "resnet18"), ("resnet18@{file}", "resnet18")])
def test_weights_that_are_not_timms_carry_no_tag_of_timms(name: str, label: str, tmp_path: Path) -> None:
    import timm
    import torch

    from flawsmith.features.backbones import load_backbone

    file = tmp_path / "mine.pth"
    torch.save(timm.create_model("resnet18").state_dict(), file)

    info = load_backbone(name.format(file=file), strides=(8, 16)).info

    assert info.architecture == label
    assert info.origin == ("file mine.pth" if "{file}" in name else "random")
