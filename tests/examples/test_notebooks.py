"""The notebooks of examples/ run from their first cell to their last, on tiny settings in place of theirs."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "examples" / "notebooks"
TINY_SETTINGS = {
    "backbone": "test_efficientnet@random",
    "set": {"image_size": [64, 96], "coreset_ratio": 0.1, "least_rows": 32},
}
IMAGES = {"n_train": 12, "n_test_good": 3, "n_per_defect": 1, "size": (64, 96)}


def cells_of(name: str) -> list[dict[str, Any]]:
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return list(notebook["cells"])


def run(name: str, parameters: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Execute the code cells, with other values in the cell of parameters.

    Returns:
        The variables, and the value that each cell shows.
    """
    variables: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in cells_of(name):
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), variables)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(parameters) <= set(variables), "the cell of parameters has other names"
            variables |= parameters
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), name, "eval"), variables))
    return variables, shown


@pytest.mark.parametrize("name", ["first_inspection", "researchers_loop"])
def test_notebook_is_stored_without_what_it_printed(name: str) -> None:
    code = [cell for cell in cells_of(name) if cell["cell_type"] == "code"]

    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_first_inspection_goes_from_drawings_to_verdicts(exported_once: None, tmp_path: Path) -> None:
    settings = {**TINY_SETTINGS, "method": "patchcore", "baseline": "none"}
    given = {"OUT": str(tmp_path / "out"), "IMAGES": IMAGES, "SETTINGS": settings}

    variables, shown = run("first_inspection", given)

    pages = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert ["patchcore of bracket" in pages[0], "flaws missed" in pages[1], "data:image/png" in pages[2]] == [True] * 3
    assert sum(variables["written"].verdicts.values()) == 8
    assert variables["changed"].after.target_false_reject_rate == 0.2


def test_researchers_loop_compares_two_methods(exported_once: None, tmp_path: Path) -> None:
    settings = {**TINY_SETTINGS, "set": {"image_size": [64, 96]}}  # the two methods have few settings in common
    given = {"OUT": str(tmp_path / "out"), "IMAGES": IMAGES, "SETTINGS": settings}
    given |= {"STRENGTHS": (0.1, 0.9), "RESAMPLES": 20}

    variables, _ = run("researchers_loop", given)

    assert set(variables["by_hand"]) == set(variables["missed"]) == {"padim", "patchcore"}
    assert all(set(rates) == {0.1, 0.9} for rates in variables["missed"].values())
