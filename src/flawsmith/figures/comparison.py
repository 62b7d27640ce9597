"""From the cells of a benchmark to lines: which quantity was varied, and what a figure of accuracy was for it."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from flawsmith.benchmark.cell import Arm, CellResult, Part
from flawsmith.evaluation.results import LABELS, LOCO_LABELS, Evaluation
from flawsmith.runtime.errors import FlawsmithError

METRICS: Mapping[str, str] = {**LABELS, **LOCO_LABELS}
"""Figures of accuracy with their names in words."""

SHOWN = ("image_auroc", "pixel_auroc", "aupro")
FRACTION = "fraction"
_ARM_FIELDS = (FRACTION, "preset", "backbone", "textures", "select", "engine", "precision")
MEAN = "mean over categories"


@dataclass(frozen=True)
class Measurement:
    """One figure of one cell.

    Attributes:
        line: what belongs together, such as a method with all of its settings but the varied one.
        category: name of the category, with its data set where names alone are not clear.
        x: value of the varied quantity.
        seed: seed of the cell.
        value: the figure, in [0, 1].
    """

    line: str
    category: str
    x: Any
    seed: int
    value: float


@dataclass(frozen=True)
class Point:
    """A place on a line.

    Attributes:
        x: value of the varied quantity.
        mean: mean over seeds.
        low: lower end of the spread; ``mean`` where there is none.
        high: upper end of it.
        n: seeds behind it.
    """

    x: Any
    mean: float
    low: float
    high: float
    n: int


def check_metrics(names: Sequence[str]) -> None:
    """Refuse an unknown figure of accuracy.

    Raises:
        FlawsmithError: naming the known ones and the closest.
    """
    for name in names:
        if name not in METRICS:
            close = [known for known in METRICS if name in known] or get_close_matches(name, METRICS, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise FlawsmithError(f"--metric {name}: no such figure: {hint}known are {', '.join(METRICS)}")


def shown_metrics(evaluations: Sequence[Evaluation], wanted: Sequence[str] = ()) -> list[str]:
    """The figures to draw: those asked for, or the usual ones that the data can give.

    Raises:
        FlawsmithError: an unknown figure, or one that no evaluation has.
    """
    check_metrics(wanted)
    for name in wanted:
        if all(getattr(one, name) is None for one in evaluations):
            raise FlawsmithError(f"--metric {name}: no result has it; pixel figures need masks in the test split")
    return list(wanted) or [name for name in SHOWN if any(getattr(one, name) is not None for one in evaluations)]


def part_of(results: Sequence[CellResult], part: str | None) -> Part:
    """The part of the test set to report: the one asked for, or the first that was measured.

    Raises:
        FlawsmithError: it was not measured.
    """
    known = list(dict.fromkeys(name for one in results for name in one.evaluations))
    for name in known:
        if part in (None, name):
            return name
    raise FlawsmithError(f"--part {part}: was not measured, there is {', '.join(known) or 'none'}")


def varied(results: Sequence[CellResult]) -> str:
    """The one quantity that was varied in a benchmark.

    Raises:
        FlawsmithError: none was, or several were.
    """
    arms = [one.cell.arm for one in results]
    settings = sorted({name for arm in arms for name in arm.set})
    values: dict[str, set[str]] = defaultdict(set)
    for result in results:
        for name in (FRACTION, *settings):
            value = value_of(result, name)
            if value is not None:
                values[name].add(_text(value))
    found = [name for name in (FRACTION, *settings) if len(values[name]) > 1]
    if len(found) == 1:
        return found[0]
    if found:
        raise FlawsmithError(f"several quantities were varied, {', '.join(found)}: choose one with --x")
    raise FlawsmithError(
        "no quantity was varied in this benchmark: run it with --fractions 0.1 0.5 1 or --vary patch_size=[1,3,5], or "
        "choose what differs with --x"
    )


def value_of(result: CellResult, x: str) -> Any:
    """The value of a quantity in a cell; None where its method has no such setting."""
    if x == "backbone":
        return result.cell.backbone
    if x in _ARM_FIELDS and x in Arm.model_fields:
        return getattr(result.cell.arm, x)
    return result.cell.config.get(x)


def _without(arm: Arm, x: str) -> Arm:
    """The arm as if its varied quantity had never been set."""
    if x == FRACTION:
        return arm.model_copy(update={"fraction": 1.0})
    if x in _ARM_FIELDS:
        return arm.model_copy(update={x: Arm.model_fields[x].default})
    return arm.model_copy(update={"set": {name: value for name, value in arm.set.items() if name != x}})


def measurements(results: Sequence[CellResult], x: str, metric: str, part: Part) -> list[Measurement]:
    """A figure of all cells that have it, and the quantity.

    Raises:
        FlawsmithError: no cell has the quantity.
    """
    name = category_names(results)
    found = [
        Measurement(_without(one.cell.arm, x).title, name(one), value, one.cell.seed, figure)
        for one in results
        if (value := value_of(one, x)) is not None
        and part in one.evaluations
        and (figure := getattr(one.evaluations[part], metric)) is not None
    ]
    if not found and all(value_of(one, x) is None for one in results):
        known = sorted({name for one in results for name in one.cell.config})
        close = get_close_matches(x, [*known, *_ARM_FIELDS], 1)
        hint = f": did you mean {close[0]}?" if close else f": settings are {', '.join(known)}, and {FRACTION}"
        raise FlawsmithError(f"--x {x}: no cell has such a setting{hint}")
    return found


def category_names(results: Sequence[CellResult]) -> Callable[[CellResult], str]:
    """How a figure names categories: with the data set only where there are several."""
    several = len({one.cell.dataset for one in results}) > 1
    return lambda one: f"{one.cell.dataset}/{one.cell.category}" if several else one.cell.category


def lines(found: Sequence[Measurement]) -> tuple[dict[str, list[Point]], list[str]]:
    """Points by line: means over categories of every seed, then mean and standard deviation over the seeds.

    Means compare only over the same categories: those that every line has are counted, and a seed counts at a place
    where it has all of them.

    Returns:
        The lines, each in ascending order of the quantity, and what was left out, in sentences.
    """
    drawn: dict[str, list[Point]] = {}
    names = list(dict.fromkeys(one.line for one in found))
    everything = {one.category for one in found}
    categories = everything.intersection(*({one.category for one in found if one.line == name} for name in names))
    alone = sorted(everything - categories)
    notes = [f"not all lines have {', '.join(alone)}: left out of the means"] if alone else []
    for line in names:
        own = [one for one in found if one.line == line and one.category in categories]
        by_place: dict[str, list[float]] = defaultdict(list)
        values = {_text(one.x): one.x for one in own}
        for place, seed in dict.fromkeys((_text(one.x), one.seed) for one in own):
            cell = {one.category: one.value for one in own if (_text(one.x), one.seed) == (place, seed)}
            if set(cell) == categories:
                by_place[place].append(statistics.mean(cell.values()))
            else:
                missing = ", ".join(sorted(categories - set(cell)))
                notes.append(f"{line} at {place}, seed {seed}: left out, for it lacks {missing}")
        points = [_point(values[place], known) for place, known in by_place.items()]
        if points:
            drawn[line] = sorted(points, key=lambda point: sort_key(point.x))
    return drawn, notes


def _point(x: Any, values: Sequence[float]) -> Point:
    mean = statistics.mean(values)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return Point(x, mean, mean - spread, mean + spread, len(values))


def sort_key(value: Any) -> tuple[int, tuple[float, ...], str]:
    """Numbers in their order, then lists of numbers, short ones first, then everything else in that of its text."""
    if is_number(value):
        return 0, (float(value),), ""
    if isinstance(value, (list, tuple)) and all(map(is_number, value)):
        return 1, (float(len(value)), *map(float, value)), ""
    return 2, (), _text(value)


def is_number(value: Any) -> bool:
    """Whether a value has a place on an axis of numbers."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


text_of = _text
"""A value as ticks and tables write it."""
