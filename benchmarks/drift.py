"""How often the test of drift alarms without drift, how soon with it, and what it costs.

Stable runs are drawn by several laws of scores. Beside them are two tests that are easier to write: one that ranks
parts against a fixed set of good images, and one whose whole stake is on drift from the first part on.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import ROOT, page, parser, table
from limit_promises import SETS, scores_of
from numpy.typing import NDArray

from flawsmith.calibration.drift import ALARM, DriftTest, StatisticsChart, image_statistics
from flawsmith.line.drift import DriftMonitor
from flawsmith.line.record import Record, Trigger
from flawsmith.line.store import Store

GOOD, PARTS = 200, 3000
SHIFTS = (0.5, 1.0, 2.0)
POWERS = np.array([0.2, 0.4, 0.6, 0.8])
Scores = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Scores]

LAWS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "ten values": lambda rng, n: rng.integers(0, 10, n) / 10,
    "half of all parts 0": lambda rng, n: np.maximum(rng.normal(size=n), 0.0),
}


class Course(NamedTuple):
    """What the test says of a run.

    Attributes:
        alarm: number of the part with the alarm, from 0; None: there was none.
        since: number of the part with which drift began, as was said then.
        p_values: of all parts.
    """

    alarm: int | None
    since: int
    p_values: Scores


def course(reference: Scores, parts: Scores, rng: np.random.Generator) -> Course:
    """Put parts before the test, one after the other."""
    test = DriftTest(reference)
    alarm, since, p_values = None, 0, []
    for number, (score, tie) in enumerate(zip(parts.tolist(), rng.random(parts.size).tolist(), strict=True)):
        p_values.append(test.add(score, tie, number))
        if alarm is None and test.evidence >= ALARM:
            alarm, since = number, test.since
    return Course(alarm, since, np.array(p_values))


def of_selected(rng: np.random.Generator, rank: int = 5) -> tuple[Scores, Scores]:
    """Good images and parts below a limit that is one of the good images' scores."""
    good, parts = rng.normal(size=GOOD), rng.normal(size=PARTS)
    limit = np.sort(good)[-rank]
    return good[good < limit], parts[parts < limit]


def fixed_set(reference: Scores, parts: Scores, rng: np.random.Generator) -> Scores:
    """P-values against good images alone."""
    ordered = np.sort(reference)
    above = reference.size - np.searchsorted(ordered, parts, side="right")
    ties = 1 + np.searchsorted(ordered, parts, side="right") - np.searchsorted(ordered, parts)
    return np.asarray((above + rng.random(parts.size) * ties) / (reference.size + 1))


def late_stakes(p: Scores) -> Scores:
    """Logarithm of the evidence of `DriftTest` after each part, all at once."""
    n = p.size
    bets = np.log(POWERS)[:, None] + (POWERS - 1)[:, None] * np.log(np.stack([p, 1 - p]))[:, None]
    sums = np.cumsum(bets, axis=2)
    before = np.concatenate([np.zeros((*sums.shape[:2], 1)), sums[:, :, :-1]], axis=2)
    aside = np.arange(1.0, n + 2) ** -0.25
    stakes = np.logaddexp.accumulate(np.log(aside[:-1] - aside[1:]) - before, axis=2) + sums
    together = np.logaddexp.reduce(stakes.reshape(-1, n), axis=0) - np.log(2 * POWERS.size)
    return np.asarray(np.logaddexp(together, np.log(aside[1:])))


def first_part_stakes(p: Scores) -> Scores:
    """The same with the whole stake on drift from the first part on."""
    bets = np.log(POWERS)[:, None] + (POWERS - 1)[:, None] * np.log(np.stack([p, 1 - p]))[:, None]
    sums = np.cumsum(bets, axis=2).reshape(-1, p.size)
    return np.asarray(np.logaddexp.reduce(sums, axis=0) - np.log(2 * POWERS.size))


def stable_rows(runs: int, compared: int) -> Iterator[tuple[object, ...]]:
    total = 0
    for place, (name, draw) in enumerate(LAWS.items()):
        rng = np.random.default_rng(place)
        alarms = sum(course(draw(rng, GOOD), draw(rng, PARTS), rng).alarm is not None for _ in range(runs))
        courses = (late_stakes(fixed_set(draw(rng, GOOD), draw(rng, PARTS), rng)) for _ in range(compared))
        fixed = sum(bool((evidence >= np.log(ALARM)).any()) for evidence in courses)
        total += alarms
        yield name, f"{runs:,}", alarms, f"{fixed} of {compared}"
    rng = np.random.default_rng(99)
    alarms = sum(course(*of_selected(rng), rng).alarm is not None for _ in range(runs))
    yield "normal, below a limit for 25 of 1,000", f"{runs:,}", alarms, ""
    yield "all", f"{(len(LAWS) + 1) * runs:,}", total + alarms, ""


def delay_rows(runs: int) -> Iterator[tuple[object, ...]]:
    after = 1500
    for before in (500, 5000):
        for shift in (sign * size for size in SHIFTS for sign in (1, -1)):
            rng = np.random.default_rng(before)
            delays, errors, plain = [], [], []
            for _ in range(runs):
                good, parts = rng.normal(size=GOOD), rng.normal(size=before + after)
                parts[before:] += shift
                alarm, since, p_values = course(good, parts, rng)
                delays.append(after if alarm is None else alarm - before + 1)
                errors.append(since - before)
                beyond = np.flatnonzero(first_part_stakes(p_values) >= np.log(ALARM))
                plain.append(beyond[0] - before + 1 if beyond.size else after)
            low, high = np.percentile(errors, (10, 90))
            yield (
                f"{before:,}",
                f"{shift:+g}",
                f"{np.median(delays):.0f}",
                f"{np.percentile(delays, 90):.0f}",
                f"{low:+.0f} to {high:+.0f}",
                f"{np.median(plain):.0f}" if np.median(plain) < after else f"over {after:,}",
            )


def real_rows(category: str, method: str, work: Path, runs: int) -> tuple[object, ...]:
    """Real good images in random order, and in the order of their groups with others of the same groups before."""
    scores = scores_of(category, method, work)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(scores.values) for _ in range(runs)]
    half = scores.values.size // 3
    alarms = sum(course(order[:half], order[half:], rng).alarm is not None for order in orders)
    name = SETS[category][0]
    if not name:
        return category, scores.values.size - half, f"{alarms} of {runs}", "–"
    groups = np.unique(scores.groups)
    chosen = groups[: max(1, groups.size // 3)]
    known = np.isin(scores.groups, chosen)
    late = np.argsort(scores.groups[~known], kind="stable")
    alarm = course(scores.values[known], scores.values[~known][late], rng).alarm
    said = "none" if alarm is None else f"after {alarm + 1} images"
    return category, scores.values.size - half, f"{alarms} of {runs}", f"{said} ({groups.size} {name})"


def cost_rows(records: int) -> Iterator[tuple[object, ...]]:
    rng = np.random.default_rng(0)
    test, chart = DriftTest(rng.normal(size=GOOD)), StatisticsChart()
    values = rng.normal(size=20_000)

    def one_part(number: int) -> None:
        test.add(float(values[number]), 0.5, number)
        assert test.evidence > 0

    yield "test, a part", f"{1e6 * timed(one_part, 20_000):.0f} µs"
    facts = {"brightness": 0.5, "contrast": 0.2, "sharpness": 0.1, "saturation": 0.3}
    yield "charts of image statistics, a part", f"{1e6 * timed(lambda number: chart.add(facts, number), 20_000):.0f} µs"
    for side in (256, 512, 1000):
        pixels = rng.random((3, side, side), np.float32)

        def measure(_: int, pixels: NDArray[np.float32] = pixels) -> object:
            return image_statistics(pixels)

        milliseconds = 1e3 * timed(measure, 30)
        yield f"statistics of {side} × {side} pixels", f"{milliseconds:.2f} ms"
    yield f"{records:,} records followed from the store", f"{followed(records):.1f} s"


def timed(task: Callable[[int], object], count: int) -> float:
    """CPU seconds of a call."""
    begin = time.process_time()
    for number in range(count):
        task(number)
    return (time.process_time() - begin) / count


def followed(count: int) -> float:
    """CPU seconds to follow records that a store holds already, as at the start of a service."""
    rng = np.random.default_rng(0)

    class Limits:
        identity, deciding_limit, stated_false_reject_rate, n_good = "limits", 10.0, 0.01, 299

    class Model:
        sha256, decision, reference_scores = "model", Limits, rng.normal(size=GOOD)

    class Line:
        name, model = "bolt", Model

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        facts = {"verdict": "pass", "limit": 10.0, "limits": "limits", "error": None, "error_kind": None}
        facts["statistics"] = {"brightness": 0.5, "contrast": 0.2, "sharpness": 0.1, "saturation": 0.3}
        base = Record.of_error(Trigger("bolt", b""), "image", "none", model_sha256="model").model_copy(update=facts)
        for _ in range(0, count, 10_000):
            store.add([base.model_copy(update={"deciding": score}) for score in rng.normal(size=10_000).tolist()])
        monitor = DriftMonitor(dict, store)
        begin = time.process_time()
        monitor.catch_up(Line)  # type: ignore[arg-type]
        took = time.process_time() - begin
        store.close()
    return took


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=int, default=1000, help="stable runs of each law")
    arguments.add_argument("--sets", nargs="*", default=["ball_screw", "magnetic_tile"])
    arguments.add_argument("--method", default="padim", help="whose scores of real images are taken")
    arguments.add_argument("--work", type=Path, default=ROOT / "build" / "limit_promises", help="folder of scores")
    options = arguments.parse_args()
    runs, compared, shifted = (20, 5, 4) if options.quick else (options.runs, 200, 25)
    sections = [
        "## False alarms",
        f"Stable runs of {PARTS:,} parts after {GOOD} good images. In the mean at most 1 run in 1,000 alarms, "
        "however long it is.",
        table(("law of the scores", "runs", "alarms", "alarms against a fixed set"), stable_rows(runs, compared)),
        "## Delay",
        f"Normal scores, {GOOD} good images; the mean changes by so many standard deviations after so many good parts. "
        f"Median of {shifted} runs, in parts. The last column has its whole stake on drift from the first part on.",
        table(
            (
                "good parts before",
                "shift",
                "alarm after",
                "9 of 10 after",
                "error of the beginning told (8 of 10)",
                "plain",
            ),
            delay_rows(shifted),
        ),
    ]
    if options.sets:
        sections += [
            "## Real good images",
            f"Scores by {options.method}, preset fast, of images that it did not learn from. A third is known as "
            "good, the others come as parts: in random orders, where an alarm is a false one; and with whole groups "
            "known and the others in their order, as a line sees them.",
            table(
                ("set", "parts", "false alarms, random orders", "in the order of groups"),
                (real_rows(category, options.method, options.work, min(runs, 300)) for category in options.sets),
            ),
        ]
    costs = table(("what", "CPU time"), cost_rows(10_000 if options.quick else 100_000))
    sections += ["## Cost", costs]
    page("drift", "Drift: false alarms, delay, cost", sections, write=options.write)


if __name__ == "__main__":
    main()
