"""The contract of a dataset layout, and the list of the known ones."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Protocol

from flawsmith.data.samples import Dataset
from flawsmith.runtime.errors import FlawsmithError


class Layout(Protocol):
    """A way of arranging one category's images on disk.

    A layout that keeps its labels in a table (VisA) or several masks an image (MVTec LOCO AD) fits as well as
    one that keeps them in folder names: only ``load`` knows where labels come from.

    Attributes:
        name: short lower-case name, as given to ``--layout``.
        expects: the arrangement in one line, for error messages.
    """

    name: str
    expects: str

    def recognise(self, root: Path) -> str | None:
        """Say in words why ``root`` is one category of this layout, or None; looks at names and, in a table, at its
        first line alone."""
        ...

    def near_miss(self, root: Path) -> str | None:
        """Say what a folder lacks that has some marks of this layout but not all; None where it has none or all."""
        ...

    def load(self, root: Path) -> Dataset:
        """Read the category.

        Raises:
            FlawsmithError: it is not this layout, or the place for good images to train on is empty.
        """
        ...


_LAYOUTS: dict[str, Layout] = {}


def register(layout: Layout) -> None:
    """Add a layout; those registered earlier are asked first, so the more specific ones come first.

    Raises:
        ValueError: the name is taken.
    """
    if layout.name in _LAYOUTS:
        raise ValueError(f"a layout named {layout.name!r} is registered already")
    _LAYOUTS[layout.name] = layout


def known() -> tuple[Layout, ...]:
    """All layouts, in the order in which they are asked."""
    return tuple(_LAYOUTS.values())


def by_name(name: str) -> Layout:
    """The layout of that name.

    Raises:
        FlawsmithError: no such layout; the line lists the known ones and the closest match.
    """
    try:
        return _LAYOUTS[name]
    except KeyError:
        close = difflib.get_close_matches(name, _LAYOUTS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise FlawsmithError(f"unknown layout {name!r}; known are {', '.join(_LAYOUTS)}{hint}") from None
