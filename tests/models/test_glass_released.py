"""The authors' checkpoints of GLASS: a file in their format, and the plain forward that their code makes of it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flawsmith.features.backbones import load_backbone
from flawsmith.models.glass.released import load_released
from flawsmith.runtime.errors import FlawsmithError

WIDTH, HIDDEN = 48, 32


class TheirDiscriminator(nn.Module):
    """The released discriminator, by the names of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.LeakyReLU(0.2))
        self.body = nn.Sequential(OrderedDict(block1=block))
        self.tail = nn.Sequential(nn.Linear(HIDDEN, 1, bias=False), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        return self.tail(self.body(features))


class TheirProjection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(OrderedDict([("0fc", nn.Linear(WIDTH, WIDTH))]))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


@pytest.fixture
def theirs(seed: int) -> tuple[TheirProjection, TheirDiscriminator]:
    """Networks as if they had been trained: statistics of batch norm are not those of the start."""
    torch.manual_seed(seed)
    projection, discriminator = TheirProjection(), TheirDiscriminator()
    for _ in range(5):
        discriminator(projection(3 * torch.randn(64, WIDTH) + 1))
    return projection.eval(), discriminator.eval()


@pytest.fixture
def checkpoint(theirs: tuple[TheirProjection, TheirDiscriminator], tmp_path: Path) -> Path:
    projection, discriminator = theirs
    content = {"discriminator": discriminator.state_dict(), "pre_projection": projection.state_dict()}
    torch.save(content, tmp_path / "ckpt_best_12.pth")
    return tmp_path / "ckpt_best_12.pth"


def test_released_weights_give_what_the_released_networks_give(
    theirs: tuple[TheirProjection, TheirDiscriminator], checkpoint: Path, seed: int
) -> None:
    backbone = load_backbone("test_efficientnet@random", strides=(8, 16))
    model = load_released(checkpoint, backbone=backbone, image_size=(64, 64))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    projection, discriminator = theirs

    with torch.no_grad():
        levels = backbone(images)
        rows = model.embedding(levels).permute(0, 2, 3, 1).reshape(-1, WIDTH)
        expected = discriminator(projection(rows)).reshape(2, *model.grid)
        (ours,) = model.raw_maps(levels)
        score = model(images).score

    assert float((ours - expected).abs().max()) <= 2e-7
    assert float((score - expected.amax(dim=(1, 2))).abs().max()) <= 2e-7
    assert (model.config.width, model.config.hidden, model.config.projector_depth) == (WIDTH, HIDDEN, 1)
    assert not model.training


def test_checkpoint_without_an_adaptor_is_that_of_the_ablation(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    del content["pre_projection"]
    torch.save(content, checkpoint)

    model = load_released(checkpoint, backbone="test_efficientnet@random", image_size=(64, 64))

    assert model.config.projector_depth == 0


class Evil:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


MISTAKES = {
    "no file": (None, "no checkpoint at"),
    "no tensors": (Evil(), "is no file of tensors"),
    "another table": ({"model": {}}, "has no table 'discriminator'"),
    "no first layer": ({"discriminator": {}}, "no first layer body.block1.0.weight"),
    "deeper": (
        {
            "discriminator": {
                "body.block1.0.weight": torch.zeros(8, 8),
                "body.block2.0.weight": torch.zeros(8, 8),
            }
        },
        "does not fit GLASS with one hidden layer",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_other_file_is_refused_in_one_line(mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = MISTAKES[mistake]
    if content is not None:
        torch.save(content, tmp_path / "a.pth")

    with pytest.raises(FlawsmithError) as caught:
        load_released(tmp_path / "a.pth", backbone="test_efficientnet@random", image_size=(64, 64))

    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert "run" not in capsys.readouterr().out
