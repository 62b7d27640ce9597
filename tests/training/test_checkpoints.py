"""Checkpoints are safetensors with a JSON header: whole or not there, and nothing in them can run code."""

from __future__ import annotations

import errno
import json
import pickletools
from pathlib import Path
from typing import Any

import pytest
import torch

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.training.checkpoints import SafeCheckpointIO, load_tensors, save_tensors


def nested() -> dict[str, Any]:
    return {
        "epoch": 3,
        "loss": 0.1 + 0.2,
        "best": float("inf"),
        "note": "Größe «β»",
        "flags": [True, False, None],
        "betas": (0.9, 0.999),
        "empty": {},
        "state_dict": {"weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer_states": [
            {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
        ],
    }


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected
        assert type(found) is type(expected)


def test_nested_checkpoint_round_trips(tmp_path: Path) -> None:
    SafeCheckpointIO().save_checkpoint(nested(), tmp_path / "deep" / "last.safetensors")

    assert_same(SafeCheckpointIO().load_checkpoint(tmp_path / "deep" / "last.safetensors"), nested())


def test_checkpoint_is_no_pickle(tmp_path: Path) -> None:
    file = tmp_path / "last.safetensors"
    SafeCheckpointIO().save_checkpoint(nested(), file)

    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert "structure" in json.loads(content[8 : 8 + length])["__metadata__"]
    with pytest.raises(ValueError, match="opcode"):
        list(pickletools.genops(content))


def test_value_that_is_no_plain_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="PosixPath"):
        SafeCheckpointIO().save_checkpoint({"where": Path("/")}, tmp_path / "last.safetensors")

    assert not list(tmp_path.iterdir())


def test_shared_and_transposed_tensors_are_kept_by_value(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)

    save_tensors({"weight": weight, "tied": weight, "turned": weight.T}, tmp_path / "tensors.safetensors")

    tensors, structure = load_tensors(tmp_path / "tensors.safetensors")
    assert structure == "{}"
    assert torch.equal(tensors["tied"], weight)
    assert torch.equal(tensors["turned"], weight.T)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64])
def test_damaged_checkpoint_says_what_to_do(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "last.safetensors"
    file.write_bytes(content)

    with pytest.raises(FlawsmithError, match=r"last\.safetensors.*resume") as error:
        SafeCheckpointIO().load_checkpoint(file)

    assert "\n" not in str(error.value)


def test_truncated_checkpoint_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "last.safetensors"
    SafeCheckpointIO().save_checkpoint(nested(), file)
    file.write_bytes(file.read_bytes()[:-3])

    with pytest.raises(FlawsmithError, match="damaged"):
        SafeCheckpointIO().load_checkpoint(file)


@pytest.mark.parametrize(
    ("interruption", "expected"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "No space left on device"), FlawsmithError)],
    ids=["Ctrl-C", "full disk"],
)
def test_failed_write_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException, expected: type[BaseException]
) -> None:
    file = tmp_path / "last.safetensors"
    save_tensors({"weight": torch.ones(2)}, file)

    def fails(path: Path, data: bytes) -> None:
        with path.open("wb") as half:
            half.write(data[: len(data) // 2])
        raise interruption

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(expected):
        save_tensors({"weight": torch.zeros(2)}, file)

    assert torch.equal(load_tensors(file)[0]["weight"], torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]


def test_removing_a_checkpoint_twice_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "last.safetensors"
    save_tensors({"weight": torch.ones(2)}, file)

    SafeCheckpointIO().remove_checkpoint(file)
    SafeCheckpointIO().remove_checkpoint(file)

    assert not file.exists()
