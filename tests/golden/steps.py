"""Golden cases by kind: where they lie, how they compare, and what computes them.

``FLAWSMITH_GOLDEN`` names another folder of cases in the same form: other shapes and seeds, the same kinds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flawsmith.models.components.heads import Discriminator, Projector

PACKAGED = Path(__file__).parent / "data"
FOLDER = Path(os.environ.get("FLAWSMITH_GOLDEN", PACKAGED))
CASES: list[dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))["cases"]

Arrays = dict[str, np.ndarray]
Results = Mapping[str, Any]
Handler = Callable[[dict[str, Any], Arrays], Results]
HANDLERS: dict[str, Handler] = {}


def handles(kind: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS[kind] = handler
        return handler

    return register


def arrays_of(case: dict[str, Any]) -> Arrays:
    with np.load(FOLDER / case["file"], allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def assert_agrees(case: dict[str, Any], name: str, reference: np.ndarray, value: Any) -> None:
    """The comparison that the head of cases.json defines."""
    described = case["arrays"][name]
    found = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
    found = found.reshape(reference.shape)
    if described.get("compare", "").startswith("sets"):
        _assert_same_sets(name, reference, found)
        return
    if described.get("compare") == "exact":
        np.testing.assert_array_equal(found, reference, err_msg=name)
        return
    tolerance = described.get("tolerance", case["tolerance"])
    np.testing.assert_allclose(found, reference, **tolerance, equal_nan=True, err_msg=name)


def _assert_same_sets(name: str, reference: np.ndarray, found: np.ndarray) -> None:
    """Lists along the last axis as sets, of which at least 99 % of the entries agree: near ties go either way."""
    rows = zip(reference.reshape(-1, reference.shape[-1]), found.reshape(-1, found.shape[-1]), strict=True)
    agreeing = sum(len({*map(int, one)} & {*map(int, other)}) for one, other in rows)
    assert agreeing >= 0.99 * reference.size, f"{name}: {agreeing} of {reference.size} entries agree"


def tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.copy())


def as_level(rows: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Rows ordered image-major and row by row, as a level map (batch, channel, height, width)."""
    return tensor(rows).reshape(-1, *grid, rows.shape[-1]).permute(0, 3, 1, 2)


def same_embedding(width: int) -> dict[str, int]:
    """Settings under which the patch embedding returns its only level unchanged."""
    return {"patch_size": 1, "level_width": width, "width": width}


def load_heads(projector: Projector, discriminator: Discriminator, arrays: Arrays, state: str = "_before") -> None:
    """Weights of a one-layer projector and a two-layer discriminator, by the names of the golden cases."""
    (block,) = discriminator.blocks
    projector.load_state_dict(
        {"0.weight": tensor(arrays["projector_weight"]), "0.bias": tensor(arrays["projector_bias"])}
    )
    block.linear.load_state_dict(
        {
            "weight": tensor(arrays["discriminator_hidden_weight"]),
            "bias": tensor(arrays["discriminator_hidden_bias"]),
        }
    )
    load_norm(
        block.norm,
        arrays["discriminator_bn_gamma"],
        arrays["discriminator_bn_beta"],
        arrays[f"bn_running_mean{state}"],
        arrays[f"bn_running_var{state}"],
    )
    discriminator.out.weight.data = tensor(arrays["discriminator_out_weight"])


def load_norm(norm: nn.BatchNorm1d, *values: np.ndarray) -> None:
    names = ("weight", "bias", "running_mean", "running_var")
    norm.load_state_dict({name: tensor(value) for name, value in zip(names, values, strict=True)}, strict=False)


def optimiser_settings(setting: dict[str, Any]) -> dict[str, Any]:
    """A method's optimiser settings from a case's words, such as ``AdamW lr 2e-4 weight_decay 0.01``."""
    found: dict[str, Any] = {}
    for part in ("projector", "discriminator"):
        kind, *pairs = setting[f"optimiser_{part}"].split()
        numbers = dict(zip(pairs[::2], map(float, pairs[1::2]), strict=True))
        found |= {f"{part}_lr": numbers["lr"], f"{part}_weight_decay": numbers["weight_decay"]}
        if part == "discriminator":
            found["discriminator_optimiser"] = kind.lower()
    return found
