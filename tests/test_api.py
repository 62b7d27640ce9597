"""The public interface is what tests/api_surface.json says; ``make api`` renews that file."""

from __future__ import annotations

import enum
import inspect
import json
import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, get_args

PUBLIC = ("flawsmith", "flawsmith.losses", "flawsmith.metrics", "flawsmith.models", "flawsmith.runtime")
SNAPSHOT = Path(__file__).with_name("api_surface.json")

Surface = dict[str, dict[str, Any]]


def surface() -> Surface:
    """Public names by module: those of ``__all__``, or of a package's modules where it has none."""
    described: Surface = {}
    for name in PUBLIC:
        module = import_module(name)
        if hasattr(module, "__all__") or not hasattr(module, "__path__"):
            described[name] = described_names(module)
            continue
        below = sorted(found.name for found in iter_modules(module.__path__, f"{name}."))
        described.update({place: described_names(import_module(place)) for place in below})
    return {name: names for name, names in described.items() if names}


def described_names(module: ModuleType) -> dict[str, Any]:
    """The public names of a module: those of ``__all__``, or functions and classes that it defines."""
    if hasattr(module, "__all__"):
        return {name: description(getattr(module, name)) for name in sorted(module.__all__)}
    return {
        name: description(value)
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    }


def description(value: Any) -> Any:
    """The signature of a function, signatures of a class and its public methods, the type of anything else."""
    if inspect.isclass(value) and issubclass(value, enum.Enum):
        return {member.name: str(member.value) for member in value}
    if inspect.isclass(value):
        return {"()": signature(value)} | dict(sorted(methods(value).items()))
    if inspect.isroutine(value):
        return signature(value)
    return str(value) if get_args(value) else type(value).__name__


def methods(kind: type) -> dict[str, str]:
    """Public methods and properties that the project defines, inherited ones included."""
    described: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not base.__module__.startswith("flawsmith"):
            continue
        for name, attribute in vars(base).items():
            function = getattr(attribute, "__func__", attribute)
            if name.startswith("_") or not getattr(function, "__module__", "flawsmith").startswith("flawsmith"):
                continue
            if inspect.isfunction(function):
                described[name] = signature(function)
            elif type(attribute).__name__ in ("property", "cached_property"):
                described[name] = "property"
    return described


def signature(function: Any) -> str:
    """Parameters and defaults; annotations are the type checker's, and read differently from Python to Python."""
    if getattr(function, "__init__", None) == Exception.__init__:
        return "(*args)"
    known = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in known.parameters.values()]
    text = str(known.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def test_public_interface_is_that_of_the_snapshot() -> None:
    expected: Surface = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    current = surface()

    changes = sorted(
        f"{module}.{name}"
        for module in {*expected, *current}
        for name in {*expected.get(module, {}), *current.get(module, {})}
        if expected.get(module, {}).get(name) != current.get(module, {}).get(name)
    )

    assert not changes, "the public interface changed: if on purpose, run `make api`"


def test_a_change_of_the_interface_is_seen() -> None:
    class Plain:
        def score(self, image: Any, *, limit: float = 0.5) -> float:
            return limit

        def _hidden(self) -> None: ...

    Plain.__module__ = Plain.score.__module__ = "flawsmith.plain"

    assert description(Plain) == {"()": "()", "score": "(self, image, *, limit=0.5)"}
    assert description(3) == "int"


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(surface(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
