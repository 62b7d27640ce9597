"""How pages and reference are built: ``make docs`` writes build/docs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

import flawsmith

project = "Flawsmith"
release = version = flawsmith.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
exclude_patterns = ["results/*/runs"]

html_theme = "furo"
html_title = f"Flawsmith {release}"
html_show_copyright = False
html_show_sphinx = False

myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes stand in the docstrings, and jaxtyping's annotations are long
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Source"]


def describe_fields(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Add the fields that a pydantic model declares: settings are documented where they stand."""
    if what != "class" or not issubclass(value, BaseModel):
        return
    lines.append("")
    for field in vars(value).get("__annotations__", {}):
        info = value.model_fields.get(field)
        if info is not None and info.description:
            default = "" if info.is_required() else f" Default: ``{info.get_default(call_default_factory=True)!r}``."
            lines.append(f":ivar {field}: {info.description}{default}")
    lines.append("")


def hide_fields(app: Any, what: str, name: str, value: Any, *_: Any) -> tuple[str, None] | None:
    """A pydantic model's signature would say the same once more."""
    return ("", None) if what == "class" and issubclass(value, BaseModel) else None


def skip_positions(app: Any, what: str, name: str, value: Any, *_: Any) -> bool | None:
    """Fields of a named tuple stand in its docstring; by themselves they are "alias for field number 0"."""
    return True if type(value).__name__ == "_tuplegetter" else None


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", describe_fields)
    app.connect("autodoc-process-signature", hide_fields)
    app.connect("autodoc-skip-member", skip_positions)
