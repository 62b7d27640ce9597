"""Methods by name."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from typing import TypeVar

from flawsmith import models
from flawsmith.models.base import AnomalyModel
from flawsmith.runtime.errors import FlawsmithError

_METHODS: dict[str, type[AnomalyModel]] = {}
M = TypeVar("M", bound=type[AnomalyModel])


def register(method: M) -> M:
    """Class decorator: make a method known by its name; a name is taken once."""
    if method.name in _METHODS:
        raise ValueError(f"a method named {method.name!r} is registered already")
    _METHODS[method.name] = method
    return method


def method_names() -> list[str]:
    """All registered names, sorted; every package of ``flawsmith.models`` is looked into."""
    for package in iter_modules(models.__path__, f"{models.__name__}."):
        if package.ispkg:
            import_module(package.name)
    return sorted(_METHODS)


def find_method(name: str) -> type[AnomalyModel]:
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
