"""Values of ``--set key=value``."""

from __future__ import annotations

import pytest

from flawsmith.cli.app import parse_settings
from flawsmith.runtime.errors import FlawsmithError


@pytest.mark.parametrize(
    "value", ["2001-99-99", "2001-01-01 99:00:00", "0x_", "9" * 5000, "[" * 5000, "!!bool maybe", "!!int ''", "[8,"]
)
def test_value_that_yaml_cannot_read_is_refused_in_one_line(value: str) -> None:
    with pytest.raises(FlawsmithError, match="the value is not a number, a word or a list; write for") as caught:
        parse_settings([f"epochs={value}"])

    assert "\n" not in str(caught.value)
