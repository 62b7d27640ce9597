"""Drift on the lines: follows the records, tells when parts are no longer as they were, since when, and what moved.

All that is known of a line's drift follows from the store: its records in order, and the entry of the audit that says
from which record on they count. A thread of its own reads them there, so that drift is computed once and the same way,
whether a record was written a moment ago or before the service was started, and holds up no part.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from flawsmith.calibration.drift import ALARM, Direction, DriftTest, RejectChart, StatisticsChart, p_histogram
from flawsmith.line.record import drawn_number
from flawsmith.line.store import AuditEntry, Store, UnwritableError
from flawsmith.runtime.errors import FlawsmithError

if TYPE_CHECKING:
    from flawsmith.line.model import LoadedModel
    from flawsmith.line.station import Line

LOOK_SECONDS = 1.0
"""Between looks at new records."""
_AT_ONCE = 2000
_RECENT = 2000
_CURVE = 400
_FIRST_ODD = 5
_ODD = 0.05
_FIELDS = ("received", "verdict", "deciding", "limit", "model_sha256", "limits", "statistics")

Reference = Literal["calibration", "line"]
"""What parts are compared with besides each other: the good images behind the limit, or nothing else."""

log = logging.getLogger("flawsmith.line")


class DriftAlarm(BaseModel):
    """Parts are no longer as they were."""

    model_config = ConfigDict(frozen=True)

    line: str
    record: int = Field(description="the record with which it was certain")
    at: str = Field(description="when that part came, UTC")
    evidence: float = Field(description="at least 1,000")
    direction: Direction = Field(description="higher: parts look less like the good images than before; lower: more")
    since_record: int = Field(description="the record with which it most likely began")
    since: str = Field(description="when that part came, UTC")
    first_odd: tuple[int, ...] = Field(description="the first records since then that stand out, at most 5")
    moved: tuple[str, ...] = Field(description="image statistics that moved, such as brightness -9 %")

    @property
    def words(self) -> str:
        """One line for people."""
        moved = f": {', '.join(self.moved)}" if self.moved else ""
        return f"scores {self.direction} than before since record {self.since_record} ({self.since}){moved}"


class CurvePoint(BaseModel):
    """Evidence after a part."""

    record: int
    received: str
    evidence: float


class StatisticFacts(BaseModel):
    """An image statistic, now against the first parts."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    learned: float = Field(description="mean of the first 100 parts")
    now: float
    deviations: float = Field(description="of its moving average, in standard deviations; beyond 4 it has moved")
    moved: bool
    since_record: int | None = Field(validation_alias="since")
    words: str = Field(description="such as brightness -9 %")


class RejectGroupFacts(BaseModel):
    """Parts that came one after the other."""

    record: int = Field(validation_alias="number", description="the last of them")
    rejects: int
    lower: int | None = Field(description="count that the first 10 groups allow at least; null: these are not full yet")
    upper: int | None = Field(description="and at most")
    out: bool = Field(description="whether the count lies outside of these, or above what was promised")


class RejectFacts(BaseModel):
    """The p-chart of rejects."""

    size: int = Field(description="parts of a group")
    promised_rate: float = Field(description="in the mean, of good parts")
    promised: int = Field(description="largest count of a group that the promise allows, flawed parts not reckoned")
    groups: list[RejectGroupFacts] = Field(description="the latest, at most 400")
    open_parts: int = Field(description="parts of the group that is not full yet")
    open_rejects: int


class DriftFacts(BaseModel):
    """What is known of a line's drift."""

    line: str
    state: Literal["calm", "alarm", "no model"]
    says: str = Field(description="in words")
    evidence: float = Field(description="what a stake of 1 against stable parts has become")
    alarm_at: float = Field(default=ALARM, description="of stable runs at most 1 in so many ever reaches it")
    alarm: DriftAlarm | None
    reference: Reference
    reference_scores: int = Field(description="good images that parts are compared with")
    begun: str = Field(description="when the test began, UTC")
    because: str = Field(description="why it began: first, model, limits or acknowledged")
    record: int = Field(description="the latest record that was looked at")
    parts: int = Field(description="parts in the test: judged by this model and these limits, not rejected")
    curve: list[CurvePoint] = Field(description="the evidence, thinned")
    p_values: list[int] = Field(description="the latest 2,000 parts' p-values in 20 bins of 0..1: flat without drift")
    statistics: list[StatisticFacts] = Field(description="empty until 100 parts have come")
    rejects: RejectFacts | None


@dataclass
class _Run:
    """A test from its beginning on.

    Attributes:
        entry: of the audit, which says from where on records count.
        model, limits: that parts must have been judged by.
        last: the latest record that was looked at.
    """

    entry: AuditEntry
    model: str
    limits: str
    reference: Reference
    test: DriftTest
    reference_scores: int
    rejects: RejectChart
    last: int
    is_told: bool = False
    alarm: DriftAlarm | None = None
    statistics: StatisticsChart = field(default_factory=StatisticsChart)
    recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_RECENT))
    curve: list[CurvePoint] = field(default_factory=list)
    latest: CurvePoint | None = None
    stride: int = 1

    def add(self, store: Store, row: tuple[Any, ...]) -> None:
        """Look at another record."""
        number, chained, received, verdict, deciding, limit, model, limits, statistics = row
        self.last = number
        if (model, limits) != (self.model, self.limits) or verdict == "error" or deciding is None:
            return
        self.rejects.add(verdict == "reject", number)
        if statistics is not None:
            self.statistics.add(json.loads(statistics), number)
        if verdict == "reject" or (limit is not None and deciding >= limit):
            return  # in the test are parts below the limit, as the good images are that they are compared with
        p_value = self.test.add(deciding, tie_of(chained), number)
        self.recent.append((number, p_value))
        self.latest = CurvePoint(record=number, received=received, evidence=self.test.evidence)
        self._draw(self.latest)
        if self.alarm is None and self.latest.evidence >= ALARM:
            self.alarm = self._alarm(store, self.latest)

    def _draw(self, point: CurvePoint) -> None:
        """Keep every so many points, twice as far apart whenever there are too many."""
        if self.test.parts % self.stride == 0:
            self.curve.append(point)
            if len(self.curve) > _CURVE:
                self.curve = self.curve[1::2]
                self.stride *= 2

    def _alarm(self, store: Store, point: CurvePoint) -> DriftAlarm:
        since, direction = self.test.since, self.test.direction
        begun = store.get(since)
        late = [(number, p if direction == "higher" else 1 - p) for number, p in self.recent if number >= since]
        return DriftAlarm(
            line=self.entry.line,
            record=point.record,
            at=point.received,
            evidence=point.evidence,
            direction=direction,
            since_record=since,
            since=point.received if begun is None else begun.received,
            first_odd=tuple(number for number, p in late if p < _ODD)[:_FIRST_ODD],
            moved=tuple(movement.words for movement in self.statistics.movements() if movement.moved),
        )


def tie_of(chained: str) -> float:
    """A number in (0, 1) from a record's hash, which is as good as drawn, and the same whenever it is asked for.

    Example:
        >>> tie_of("8" + 63 * "0")
        0.5000000000000001
    """
    return drawn_number(chained) + 0.5 / 16**13


class DriftMonitor:
    """Follows the records of all lines.

    Args:
        lines: gives the lines as they are now.
        store: of their records.
        on_alarm: told of each alarm once it is in the audit.
    """

    def __init__(
        self,
        lines: Callable[[], Mapping[str, Line]],
        store: Store,
        on_alarm: Callable[[DriftAlarm], object] = lambda _: None,
    ) -> None:
        self._lines, self._store, self._on_alarm = lines, store, on_alarm
        self._runs: dict[str, _Run] = {}
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="drift", daemon=True)

    def start(self) -> None:
        """Begin to follow.

        Raises:
            UnwritableError: a beginning cannot be noted.
        """
        for line in self._lines().values():
            self._run(line)
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _follow(self) -> None:
        is_behind, failing = False, set[str]()
        while not self._ended.wait(0 if is_behind else LOOK_SECONDS):
            is_behind = False
            for line in self._lines().values():
                try:
                    is_behind = self._look(line) or is_behind
                    failing.discard(line.name)
                except Exception as error:  # parts are judged all the same
                    if line.name not in failing:
                        log.error("drift of line %s is not followed: %s", line.name, error)
                    failing.add(line.name)

    def catch_up(self, line: Line) -> None:
        """Look at all records that there are now.

        Raises:
            UnwritableError: a beginning or an alarm cannot be noted.
        """
        while self._look(line):
            pass

    def _look(self, line: Line) -> bool:
        """Look at some records; whether there are more."""
        with self._lock:
            run = self._run(line)
            if run is None:
                return False
            rows = self._store.fields(line.name, _FIELDS, after=run.last, count=_AT_ONCE)
            for row in rows:
                run.add(self._store, row)
            if run.alarm is not None and not run.is_told:
                self._tell(run, run.alarm)
            return len(rows) == _AT_ONCE

    def _tell(self, run: _Run, alarm: DriftAlarm) -> None:
        facts = {"event": "alarm", **alarm.model_dump(mode="json", exclude={"line"})}
        self._store.note("drift", who="service", line=alarm.line, facts=facts)
        run.is_told = True
        log.warning("line %s: drift, %s", alarm.line, alarm.words)
        try:
            self._on_alarm(alarm)
        except Exception:
            log.exception("an alarm of drift was not told of")

    def _changed(self, line: Line) -> None:
        """Begin anew at once where model or limits were changed, so that the audit says so beside the change."""
        try:
            with self._lock:
                self._run(line)
        except UnwritableError as error:  # it is tried again with the next look
            log.warning("drift of line %s: %s", line.name, error)

    def _run(self, line: Line) -> _Run | None:
        """The test of the model and limits that the line has now; None: it has no model."""
        model = line.model
        run = self._runs.get(line.name)
        line.on_change = partial(self._changed, line)
        if model is None:
            return None
        asked = model.sha256, model.decision.identity
        if run is not None and (run.model, run.limits) == asked:
            return run
        if run is None:
            run = self._stored(line.name, model)
        if run is None or (run.model, run.limits) != asked:
            because = "first" if run is None else "model" if run.model != model.sha256 else "limits"
            after = 0 if run is None else run.last
            run = self._begin(line.name, model, because=because, after=after, reference="calibration", who="service")
        self._runs[line.name] = run
        return run

    def _stored(self, line: str, model: LoadedModel) -> _Run | None:
        """The test that the audit says the line was in; nothing was looked at yet."""
        entries = self._store.entries(line=line, kind="drift", count=2)
        begun = next((entry for entry in entries if entry.facts["event"] == "begin"), None)
        return None if begun is None else self._made(begun, model, is_told=entries[0] is not begun)

    def _begin(
        self,
        line: str,
        model: LoadedModel,
        *,
        because: str,
        after: int,
        reference: Reference,
        who: str,
        reason: str = "",
    ) -> _Run:
        facts: dict[str, Any] = {"event": "begin", "because": because, "after": after}
        facts |= {"model": model.sha256, "limits": model.decision.identity, "reference": reference}
        facts |= {"reason": reason} if reason else {}
        return self._made(self._store.note("drift", who=who, line=line, facts=facts), model)

    @staticmethod
    def _made(entry: AuditEntry, model: LoadedModel, *, is_told: bool = False) -> _Run:
        facts = entry.facts
        scores = model.reference_scores if facts["reference"] == "calibration" else np.zeros(0)
        decision = model.decision
        return _Run(
            entry=entry,
            model=facts["model"],
            limits=facts["limits"],
            reference=facts["reference"] if len(scores) else "line",
            test=DriftTest(scores),
            reference_scores=len(scores),
            rejects=RejectChart(decision.stated_false_reject_rate, decision.n_good),
            last=facts["after"],
            is_told=is_told,
        )

    def acknowledge(self, line: Line, *, who: str, reason: str, reference: Reference = "line") -> None:
        """Begin anew with the parts to come.

        Args:
            line: the line.
            who: stands in the audit.
            reason: likewise.
            reference: what they are compared with besides each other.

        Raises:
            FlawsmithError: the line has no model.
            UnwritableError: it cannot be noted; the test goes on.
        """
        with self._lock:
            model = line.model
            if model is None:
                raise FlawsmithError(f"line {line.name} has no model: load one")
            after = self._store.last_number()
            self._runs[line.name] = self._begin(
                line.name, model, because="acknowledged", after=after, reference=reference, who=who, reason=reason
            )

    def evidence(self, line: str) -> float | None:
        """The evidence as of the latest look; None: there is no test yet."""
        run = self._runs.get(line)
        return None if run is None else run.test.evidence

    def facts(self, line: Line) -> DriftFacts:
        """All that is known of a line's drift."""
        with self._lock:
            if line.model is None:
                return _nothing(line.name)
            try:
                self._look(line)
            except UnwritableError as error:
                log.warning("drift of line %s: %s", line.name, error)
            run = self._runs.get(line.name)
            return _nothing(line.name) if run is None else _facts(line.name, run)


def _nothing(line: str) -> DriftFacts:
    return DriftFacts(
        line=line,
        state="no model",
        says="the line has no model",
        evidence=1.0,
        alarm=None,
        reference="line",
        reference_scores=0,
        begun="",
        because="",
        record=0,
        parts=0,
        curve=[],
        p_values=[],
        statistics=[],
        rejects=None,
    )


def _facts(line: str, run: _Run) -> DriftFacts:
    chart = run.rejects
    groups = [
        RejectGroupFacts(
            **group._asdict(),
            out=group.rejects > chart.promised
            or (group.lower is not None and group.rejects < group.lower)
            or (group.upper is not None and group.rejects > group.upper),
        )
        for group in chart.groups
    ]
    says = "calm" if run.alarm is None else run.alarm.words
    if groups and groups[-1].rejects > chart.promised:
        says += (
            f"; {groups[-1].rejects} of the latest {chart.size} parts rejected, of good parts {chart.promised} at most"
        )
    curve = run.curve if run.latest is None or run.curve[-1:] == [run.latest] else [*run.curve, run.latest]
    return DriftFacts(
        line=line,
        state="calm" if run.alarm is None else "alarm",
        says=says,
        evidence=run.test.evidence,
        alarm=run.alarm,
        reference=run.reference,
        reference_scores=run.reference_scores,
        begun=run.entry.at,
        because=run.entry.facts["because"],
        record=run.last,
        parts=run.test.parts,
        curve=curve,
        p_values=p_histogram([p for _, p in run.recent]),
        statistics=[StatisticFacts.model_validate(movement) for movement in run.statistics.movements()],
        rejects=RejectFacts(
            size=chart.size,
            promised_rate=chart.rate,
            promised=chart.promised,
            groups=groups,
            open_parts=chart.open_parts,
            open_rejects=chart.open_rejects,
        ),
    )
