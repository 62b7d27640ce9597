"""From a folder on disk to samples: one module a layout, and a detection that explains itself.

A new layout is one module in this package with a class that extends :class:`~flawsmith.data.layouts.base.Layout` and
bears ``@register``; its ``priority`` says when it is asked. Every module of the package is looked into.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from flawsmith.data.layouts.base import Layout, by_name, known, register
from flawsmith.data.layouts.detect import detect, load, load_categories

__all__ = ["Layout", "by_name", "detect", "discover", "known", "load", "load_categories", "register"]


def discover() -> None:
    """Import every module of this package, each of which registers its layouts."""
    for module in iter_modules(__path__, f"{__name__}."):
        import_module(module.name)


discover()
