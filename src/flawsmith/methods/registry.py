"""Methods by name."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import TypeVar

from flawsmith.methods.base import Method
from flawsmith.runtime.errors import FlawsmithError

_MODULES = (
    "flawsmith.methods.aand",
    "flawsmith.methods.glass",
    "flawsmith.methods.padim",
    "flawsmith.methods.patchcore",
    "flawsmith.methods.pbas",
    "flawsmith.methods.slsg",
)
_METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register(method: M) -> M:
    """Class decorator: make a method known by its name; a name is taken once."""
    if method.name in _METHODS:
        raise ValueError(f"a method named {method.name!r} is registered already")
    _METHODS[method.name] = method
    return method


def method_names() -> list[str]:
    for module in _MODULES:
        import_module(module)
    return sorted(_METHODS)


def find_method(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        FlawsmithError: for an unknown name, with the known ones and the closest match.
    """
    names = method_names()
    if name not in _METHODS:
        close = get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise FlawsmithError(f"no method is called {name!r}: {hint}known methods are {', '.join(names)}")
    return _METHODS[name]
