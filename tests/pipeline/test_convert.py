"""Model files from released weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import flawsmith
from flawsmith.cli.main import main
from flawsmith.models import GLASS
from flawsmith.runtime.bundle import ORACLE, Bundle
from flawsmith.runtime.inspector import Inspector, self_test

BACKBONE = "test_efficientnet@random"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An adaptor and a discriminator of ours under the names of theirs."""
    settings = {"image_size": (64, 64), "width": 32, "level_width": 32, "hidden": 16}
    model = GLASS.from_preset("official", backbone=BACKBONE, **settings)
    blocks = {"linear": "0", "norm": "1"}
    theirs = {"tail.0.weight": model.discriminator.out.weight.detach()}
    for name, tensor in model.discriminator.blocks[0].state_dict().items():
        layer, _, rest = name.partition(".")
        theirs[f"body.block1.{blocks[layer]}.{rest}"] = tensor
    projector = {f"layers.0fc.{name.partition('.')[2]}": value for name, value in model.projector.state_dict().items()}
    torch.save({"discriminator": theirs, "pre_projection": projector}, tmp_path / "ckpt_best_3.pth")
    return tmp_path / "ckpt_best_3.pth"


def test_command_makes_a_model_file_that_evaluates(
    checkpoint: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bolt.flaw"
    arguments = ["--data", str(parts), "--out", str(out), "--backbone", BACKBONE, "--set", "image_size=[64,64]"]

    code = main(["convert", "glass", str(checkpoint), *arguments, "--json"])

    assert code == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    assert json.loads(shown.out)["parity"]["images"] >= 6
    assert ORACLE in shown.err
    bundle = Bundle.load(out)
    assert bundle.spec.training.findings["weights"].startswith("released by the authors, SHA-256 ")
    assert not bundle.spec.decision.held_out and not bundle.spec.decision.rejects_nothing
    assert bundle.spec.network["parameters"] > 1000
    assert self_test(Inspector.load(bundle), bundle) == 2
    evaluation = flawsmith.evaluate(out, parts, protocol="papers", n_resamples=0)
    assert evaluation.image_auroc is not None and evaluation.stamps


def test_wood_of_mvtec_is_enlarged_before_the_cut_as_in_the_released_code(tmp_path: Path, parts: Path) -> None:
    from flawsmith.data.layouts import load
    from flawsmith.pipeline.convert import _crop

    (tmp_path / "mvtec").mkdir()
    (tmp_path / "mvtec" / "wood").symlink_to(parts)
    (tmp_path / "mvtec" / "tile").symlink_to(parts)

    assert _crop(load(tmp_path / "mvtec" / "wood")) == {"resize": 329}
    assert _crop(load(tmp_path / "mvtec" / "tile")) == {}
