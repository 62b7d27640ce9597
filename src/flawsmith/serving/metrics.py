"""What Prometheus reads at ``/metrics``. No label holds a part id, so that there are few series."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from flawsmith.line.record import Label, Record
from flawsmith.line.station import Line, Site

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_MULTIPLES = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)


_Kind = TypeVar("_Kind", Counter, Gauge, Histogram)


class Metrics:
    """Counts of a service.

    Example:
        >>> from flawsmith.line.record import Trigger
        >>> metrics = Metrics()
        >>> metrics.recorded(Record.of_error(Trigger("bolt", b""), "image", "no image"))
        >>> 'flawsmith_errors_total{kind="image",line="bolt"} 1.0' in metrics.text().decode()
        True
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._looking = threading.Lock()
        ProcessCollector(registry=self.registry)

        def of(kind: type[_Kind], name: str, words: str, labels: tuple[str, ...] = ("line",), **more: Any) -> _Kind:
            return kind(f"flawsmith_{name}", words, labels, registry=self.registry, **more)

        self._inspections = of(
            Counter, "inspections", "Parts with a record, by verdict", ("line", "product", "verdict")
        )
        seconds = "Time of an inspection by step; wait: from the trigger to the network"
        self._seconds = of(Histogram, "inspection_seconds", seconds, ("line", "step"), buckets=_SECONDS)
        dropped = "Parts that were refused, or pictures that came too fast"
        self._dropped = of(Counter, "frames_dropped", dropped, ("line", "reason"))
        self._errors = of(Counter, "errors", "Parts not judged, or not in time", ("line", "kind"))
        self._score = of(Histogram, "score", "Scores as multiples of the limit", buckets=_MULTIPLES)
        self._limit = of(Gauge, "limit", "Limits in use", ("line", "kind"))
        self._to_review = of(Gauge, "review_queue", "Parts that wait for a review")
        self._reviews = of(Counter, "reviews", "Reviews by label", ("line", "label"))
        self._output_failures = of(Counter, "output_failures", "Failed attempts of outputs", ("line", "output"))
        behind = "Records that an output has not delivered yet"
        self._output_behind = of(Gauge, "output_behind", behind, ("line", "output"))
        self._last = of(Gauge, "last_inspection_timestamp_seconds", "When the latest part came in")
        self._model = of(Gauge, "model_info", "The model in use: 1", ("line", "model", "sha256", "device"))
        self._shadow = of(Gauge, "shadow_parts", "Parts that a shadow run has judged, or missed", ("line", "result"))
        self._drift = of(Gauge, "drift_evidence", "Evidence that scores drift; at 1000 there is an alarm")
        self._free = of(Gauge, "disk_free_bytes", "Free bytes on the disk of records and images", ())

    def recorded(self, record: Record) -> None:
        """Count a part."""
        self._inspections.labels(record.line, record.product, record.verdict).inc()
        self._last.labels(record.line).set(datetime.fromisoformat(record.received).timestamp())
        for step, milliseconds in record.timing.items():
            self._seconds.labels(record.line, step).observe(milliseconds / 1000)
        if record.error_kind is not None:
            self._errors.labels(record.line, record.error_kind).inc()
        if record.times_limit is not None:
            self._score.labels(record.line).observe(record.times_limit)

    def dropped(self, line: str, reason: str) -> None:
        """Count a part that was refused: ``busy``, ``closed``, ``no_model`` or ``not_recorded``."""
        self._dropped.labels(line, reason).inc()

    def drops(self, line: str) -> int:
        """Parts of a line that were refused and have no record, since the service began."""
        (family,) = self._dropped.collect()
        return int(sum(x.value for x in family.samples if x.name.endswith("_total") and x.labels["line"] == line))

    def late(self, line: str) -> None:
        """Count a part whose record came later than its sender waited."""
        self._errors.labels(line, "late").inc()

    def reviewed(self, line: str, label: Label) -> None:
        """Count a review."""
        self._reviews.labels(line, label).inc()

    def output_failed(self, line: str, output: str) -> None:
        """Count a failed attempt of an output."""
        self._output_failures.labels(line, output).inc()

    def look_at(self, site: Site) -> bytes:
        """All of it as Prometheus reads it, with what is read, not counted: limits, models, outputs, the disk."""
        with self._looking:  # between clearing and setting, another reader would see half of the lines
            self._take(site)
            return self.text()

    def _take(self, site: Site) -> None:
        self._free.set(site.pictures.free_bytes())
        of_lines = (self._model, self._limit, self._to_review, self._shadow, self._drift, self._output_behind)
        for gauge in of_lines:  # some may be no more
            gauge.clear()
        for line in site.lines.values():
            self._start_at_zero(line)
            self._to_review.labels(line.name).set(site.store.count_to_review(line.name))
            evidence = site.drift.evidence(line.name)
            if evidence is not None:
                self._drift.labels(line.name).set(evidence)
            self._look_at_model(line)
            for output in line.outputs.facts():
                self._output_failures.labels(line.name, output.output)
                self._output_behind.labels(line.name, output.output).set(output.behind)
            self._look_at_shadow(line)

    def _look_at_shadow(self, line: Line) -> None:
        shadow = line.shadow
        if shadow is None or line.versions.shadow is None:
            return
        counts = shadow.counts
        flips = sum(count for change, count in counts.items() if len(set(change.split(" -> "))) > 1)
        results = {"same": sum(counts.values()) - flips, "changed": flips, "missed": shadow.missed}
        for result, count in results.items():
            self._shadow.labels(line.name, result).set(count)

    def _look_at_model(self, line: Line) -> None:
        model = line.model
        if model is None:
            return
        self._model.labels(line.name, model.bundle.spec.method, model.sha256, model.inspector.device).set(1)
        decision = model.decision
        limits = {
            "reject": decision.deciding_limit,
            "review": decision.review_limit,
            "map": decision.map_limit,
        }
        for kind, limit in limits.items():
            if limit is not None:
                self._limit.labels(line.name, kind).set(limit)

    def _start_at_zero(self, line: Line) -> None:
        """Name the series of a line before anything is counted, so that a rate is known from the first part on."""
        if line.model is not None:
            for verdict in ("pass", "review", "reject", "error"):
                self._inspections.labels(line.name, line.model.product, verdict)
        self._dropped.labels(line.name, "busy")

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)
