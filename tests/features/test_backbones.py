"""Backbones: the right architecture for the packaged weights, files of other libraries, and clear refusals."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from flawsmith.features.backbones import Backbone, load_backbone, load_into, packaged_weights, read_weights
from flawsmith.runtime.errors import FlawsmithError

# Values of the packaged backbone for the image of `waves`, at the positions of `probe`.
PACKAGED_VALUES = (
    [-5.471027, -3.592028, -3.127541, -6.987913],
    [5.975476, 3.588433, -2.209385, 1.134401],
)


@pytest.fixture(scope="module")
def waves() -> Tensor:
    """A fixed image that is not square, (1, 3, 64, 96)."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    return torch.stack([torch.sin(x / 5 + y / 7), torch.cos(x / 3), torch.sin(y / 4)])[None]


def probe(level: Tensor) -> Tensor:
    return level[0, [0, 7, 19, -1], [0, 3, 2, -1], [0, 5, -1, 1]]


@pytest.fixture(scope="module")
def packaged() -> Backbone:
    return load_backbone()


# The packaged backbone


def test_packaged_backbone_gives_its_known_features(packaged: Backbone, waves: Tensor) -> None:
    levels = packaged(waves)

    assert [tuple(level.shape) for level in levels] == [(1, 40, 8, 12), (1, 112, 4, 6)]
    for level, expected in zip(levels, PACKAGED_VALUES, strict=True):
        torch.testing.assert_close(probe(level), torch.tensor(expected), atol=1e-3, rtol=1e-3)


def test_namesake_architecture_takes_the_weights_but_gives_other_features(waves: Tensor) -> None:
    """Padding and epsilon differ, and no error tells: the reason for the values above."""
    file = packaged_weights()
    namesake = timm.create_model("efficientnet_lite0")
    load_into(namesake, read_weights(file), file)
    wrong = timm.create_model("efficientnet_lite0", features_only=True, out_indices=(2, 3)).eval()
    wrong.load_state_dict(namesake.state_dict(), strict=False)

    with torch.no_grad():
        levels = wrong(waves)

    for level, expected in zip(levels, PACKAGED_VALUES, strict=True):
        assert (probe(level) - torch.tensor(expected)).abs().max() > 1


def test_packaged_backbone_says_what_it_is(packaged: Backbone) -> None:
    info = packaged.info

    assert (info.name, info.weights) == ("efficientnet_lite0", "packaged")
    assert info.architecture.startswith("tf_efficientnet_lite0")
    assert (info.mean, info.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (info.strides, info.channels) == ((8, 16), (40, 112))
    assert len(info.sha256) == 64


def test_grids_are_those_of_the_levels(packaged: Backbone, waves: Tensor) -> None:
    assert packaged.grids((64, 96)) == ((8, 12), (4, 6))
    assert packaged.grids((70, 51)) == tuple(tuple(level.shape[-2:]) for level in packaged(torch.zeros(1, 3, 70, 51)))


def test_frozen_backbone_cannot_be_trained(packaged: Backbone, waves: Tensor) -> None:
    before = packaged(waves)[0]

    packaged.train()

    assert not packaged.training
    assert not any(module.training for module in packaged.modules())
    assert not any(parameter.requires_grad for parameter in packaged.parameters())
    assert torch.equal(packaged(waves)[0], before)


def test_levels_follow_the_strides_asked_for(waves: Tensor) -> None:
    one = load_backbone(strides=(16,))

    (level,) = one(waves)
    torch.testing.assert_close(probe(level), torch.tensor(PACKAGED_VALUES[1]), atol=1e-3, rtol=1e-3)
    assert (one.info.strides, one.info.channels) == ((16,), (112,))


# Weight files


def random_model(build: Callable[..., nn.Module], seed: int = 0) -> nn.Module:
    """A model of random weights and random batch-norm statistics, so that no default hides a swap."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(weights=None)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def levels_within(model: nn.Module, images: Tensor, names: tuple[str, ...]) -> list[Tensor]:
    """Outputs of named modules, as the model itself computes them."""
    found: dict[str, Tensor] = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: found.update({name: output})
        )
    with torch.no_grad():
        model(images)
    return [found[name] for name in names]


TORCHVISION = {
    "resnet18": (torchvision.models.resnet18, ("layer2", "layer3")),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, ("features.3", "features.5")),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_file_gives_torchvisions_features(name: str, waves: Tensor, tmp_path: Path) -> None:
    build, modules = TORCHVISION[name]
    model = random_model(build)
    file = tmp_path / f"{name}-0123abcd.pth"
    torch.save(model.state_dict(), file)

    backbone = load_backbone(str(file))

    for level, expected in zip(backbone(waves), levels_within(model, waves, modules), strict=True):
        torch.testing.assert_close(level, expected, atol=1e-4, rtol=1e-4)
    assert (backbone.info.name, backbone.info.weights) == (name, "file")


def as_it_is(table: Mapping[str, Tensor]) -> Any:
    return dict(table)


def in_a_checkpoint(table: Mapping[str, Tensor]) -> Any:
    return {"epoch": 3, "state_dict": dict(table)}


def of_a_wrapper(table: Mapping[str, Tensor]) -> Any:
    return {f"module.{key}": value for key, value in table.items()}


def without_classifier(table: Mapping[str, Tensor]) -> Any:
    return {key: value for key, value in table.items() if not key.startswith("fc.")}


@pytest.mark.parametrize("form", [as_it_is, in_a_checkpoint, of_a_wrapper, without_classifier])
def test_timm_file_loads_in_its_usual_forms(
    form: Callable[[Mapping[str, Tensor]], Any], waves: Tensor, tmp_path: Path
) -> None:
    model = timm.create_model("resnet18")
    torch.save(form(model.state_dict()), tmp_path / "weights.pt")

    backbone = load_backbone(f"resnet18@{tmp_path / 'weights.pt'}")

    expected = levels_within(model.eval(), waves, ("layer2", "layer3"))
    for level, reference in zip(backbone(waves), expected, strict=True):
        torch.testing.assert_close(level, reference, atol=1e-5, rtol=1e-4)


def test_safetensors_and_pth_give_the_same_backbone(tmp_path: Path) -> None:
    table = timm.create_model("resnet18").state_dict()
    torch.save(table, tmp_path / "resnet18.pth")
    save_file(table, tmp_path / "resnet18.safetensors")

    infos = [load_backbone(str(tmp_path / f"resnet18.{ending}")).info for ending in ("pth", "safetensors")]

    assert [info.file for info in infos] == ["resnet18.pth", "resnet18.safetensors"]
    assert infos[0] == infos[1].model_copy(update={"file": infos[0].file})


class RunsCode:
    """What a hostile file holds."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))])
def test_file_that_would_run_code_is_refused(write: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    file, witness = tmp_path / "resnet18.pth", tmp_path / "code has run"
    write({"fc.weight": torch.zeros(1), "extra": RunsCode(witness)}, file)

    with pytest.raises(FlawsmithError, match=r"resnet18\.pth") as error:
        load_backbone(str(file))

    assert not witness.exists()
    assert "\n" not in str(error.value)


def of_another_model(file: Path) -> None:
    torch.save(timm.create_model("resnet34").state_dict(), file)


def of_a_smaller_model(file: Path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), file)


def cut_short(file: Path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), file)
    file.write_bytes(file.read_bytes()[:5000])


def of_no_tensors(file: Path) -> None:
    torch.save({"state_dict": {"note": "nothing"}}, file)


def of_a_list(file: Path) -> None:
    torch.save([torch.zeros(2)], file)


def of_wrong_shapes(file: Path) -> None:
    table = timm.create_model("resnet18").state_dict()
    table["layer2.0.conv1.weight"] = torch.zeros(2, 2)
    torch.save(table, file)


def of_text(file: Path) -> None:
    file.write_text("404: not found")


@pytest.mark.parametrize(
    "damage",
    [of_another_model, of_a_smaller_model, cut_short, of_no_tensors, of_a_list, of_wrong_shapes, of_text],
)
def test_unfitting_file_is_refused_in_one_line_that_names_it(damage: Callable[[Path], None], tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    damage(file)

    with pytest.raises(FlawsmithError, match=r"weights\.pth") as error:
        load_backbone(f"resnet18@{file}")

    assert "\n" not in str(error.value)


def test_missing_file_is_named() -> None:
    with pytest.raises(FlawsmithError, match=r"nowhere\.pth"):
        load_backbone("resnet18@nowhere.pth")


def test_file_whose_name_tells_no_architecture_says_how_to_give_it(tmp_path: Path) -> None:
    file = tmp_path / "my_weights.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), file)

    with pytest.raises(FlawsmithError, match="NAME@"):
        load_backbone(str(file))


# Names and levels


def test_unknown_name_gets_the_closest_match() -> None:
    with pytest.raises(FlawsmithError, match="did you mean 'wide_resnet50_2'"):
        load_backbone("wide_resnet502@random")


def test_stride_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(FlawsmithError, match=r"stride 3.*\[2, 4, 8, 16, 32\]"):
        load_backbone("resnet18@random", strides=(3,))


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()

    hashes = [load_backbone("resnet10t@random", seed=seed).info.sha256 for seed in (1, 1, 2)]

    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(torch.random.get_rng_state(), before)
