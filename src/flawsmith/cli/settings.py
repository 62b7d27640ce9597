"""``--set key=value`` on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from flawsmith.runtime.errors import FlawsmithError


def parse_settings(pairs: Iterable[str], *, option: str = "--set") -> dict[str, Any]:
    """Read ``key=value`` pairs whose values are YAML scalars or lists; ``option`` names their option in errors.

    Raises:
        FlawsmithError: no ``=``, no key, a key twice, or a value that is no YAML.

    Example:
        >>> parse_settings(["epochs=20", "image_size=[256, 256]", "center=aligned"])
        {'epochs': 20, 'image_size': [256, 256], 'center': 'aligned'}
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise FlawsmithError(f"{option} {pair!r} is not key=value: write for example {option} epochs=20")
        if key in settings:
            raise FlawsmithError(f"{option} {key} is given twice: give it once")
        try:
            settings[key] = yaml.safe_load(value)
        except Exception as error:
            # What looks like a date, a number or a tag and is none raises nearly anything, not YAMLError alone.
            raise FlawsmithError(
                f"{option} {pair!r}: the value is not a number, a word or a list; write for example "
                f"{option} strides=[8,16]"
            ) from error
    return settings
