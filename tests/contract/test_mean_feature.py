"""The tutorial's method keeps the contract."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from tests.contract.tester import MethodTester, initialise

from flawsmith.models import registry
from flawsmith.models.base import AnomalyModel

TINY = {"image_size": [64, 96]}


def mean_feature() -> type[AnomalyModel]:
    """The class in examples/custom_method.py, which stays unknown to all other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "examples")
        patch.setattr(registry, "_METHODS", {})
        return import_module("custom_method").MeanFeature


class TestMeanFeature(MethodTester):
    model = mean_feature()

    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(registry._METHODS, self.name, self.model)

    def test_same_seed_gives_the_same_state(self, build: Callable[..., AnomalyModel]) -> None:
        """So does any other: the method draws nothing."""
        first, other = (initialise(build(seed=seed)).trained_state() for seed in (3, 4))

        assert all(torch.equal(first[key], other[key]) for key in first)
