"""Methods by name."""

from __future__ import annotations

import pytest

from flawsmith.models.pbas.model import PBAS
from flawsmith.models.registry import find_method, method_names
from flawsmith.runtime.errors import FlawsmithError


def test_method_is_found_by_name() -> None:
    assert "pbas" in method_names()
    assert find_method("pbas") is PBAS


def test_unknown_method_gets_the_known_ones_and_the_closest() -> None:
    with pytest.raises(FlawsmithError, match=r"did you mean 'pbas'.*known methods are .*pbas"):
        find_method("pbsa")
