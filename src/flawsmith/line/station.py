"""A line at work: its model, its limits, its queue; and the folder that holds what all lines leave behind."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from flawsmith.calibration.drift import image_statistics, thinned
from flawsmith.line.capture import Capture, OnEvent
from flawsmith.line.drift import DriftMonitor
from flawsmith.line.pictures import Pictures
from flawsmith.line.queue import InspectionQueue
from flawsmith.line.record import ErrorKind, Record, Trigger
from flawsmith.line.settings import ServiceSettings
from flawsmith.line.store import Store, UnwritableError
from flawsmith.pipeline.calibrate import calibrate
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspection, Inspector, PreparedImage
from flawsmith.runtime.outputs import exclusive_folder

SWEEP_SECONDS = 600.0
"""Between looks at images that are too old or too many."""
_RECENT = 1000
_LISTED = 20

log = logging.getLogger("flawsmith.line")


class PartConflictError(Exception):
    """The part was judged already, or is being judged, by another image."""


class NoModelError(Exception):
    """The line has no model: it was unloaded."""


class NoCameraError(Exception):
    """The line has no camera: pictures are sent to it."""


class LimitChange(BaseModel):
    """New limits, from the scores of the good images that the model file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_false_rejects: str | float | None = Field(
        default=None, description="share of good parts that may be rejected: 10/1000, 1% or 0.01"
    )
    review_rate: str | float | None = Field(
        default=None, description="share that may be rejected or go to review, likewise; none: no review"
    )
    use: str | None = Field(default=None, max_length=64, description="or limits that were in use before, by their name")


class LimitFacts(BaseModel):
    """Limits in use, and what they are worth."""

    limits: str = Field(description="their name")
    decides: str = Field(description="score or map")
    limit: float = Field(description="above it is a reject")
    review_limit: float | None = Field(description="above it is a review")
    good_images: int = Field(description="good images behind them")
    rejected_of_1000: float = Field(description="good parts rejected, in the mean")
    rejected_of_1000_at_worst: float = Field(description="the same with 95 % confidence")
    promise: str = Field(description="both in words")

    @classmethod
    def of(cls, decision: Decision) -> LimitFacts:
        """What there is to say of limits."""
        return cls(
            limits=decision.identity,
            decides="map" if decision.by_regions else "score",
            limit=decision.map_limit if decision.by_regions else decision.limit,
            review_limit=decision.review_limit,
            good_images=decision.n_good,
            rejected_of_1000=1000 * decision.stated_false_reject_rate,
            rejected_of_1000_at_worst=1000 * decision.worst_false_reject_rate,
            promise=decision.promise,
        )


class LimitPreview(BaseModel):
    """What a change of limits would do."""

    before: LimitFacts
    after: LimitFacts
    good_before: dict[str, int] = Field(description="good images behind the limits by verdict; empty: not stored")
    good_after: dict[str, int]
    recent: int = Field(description="latest parts of this model that could be judged again, at most 1,000")
    changes: dict[str, int] = Field(description="of these by change of verdict, such as pass -> reject")
    changed: list[int] = Field(description="their records, the latest, at most 20")


@dataclass(frozen=True)
class LoadedModel:
    """A model with its limits on a line; what a queue judges with.

    Attributes:
        inspector: with the limits in use.
        bundle: as read from the file.
        sha256: of the file.
        station: site/area/line/station.
        audit_share: share of passes and rejects that are drawn for a review.
    """

    inspector: Inspector
    bundle: Bundle
    sha256: str
    station: str = ""
    audit_share: float = 0.0

    @classmethod
    def load(cls, service: ServiceSettings, name: str) -> LoadedModel:
        """Open the model file of a line, verify it, and run it once, so that the first part does not wait.

        Args:
            service: settings of the service.
            name: of the line.

        Raises:
            FlawsmithError: it is no intact model, or cannot be computed.
        """
        settings = service.lines[name]
        bundle = Bundle.load(settings.model)
        digest = hashlib.sha256(settings.model.read_bytes()).hexdigest()
        inspector = Inspector.load(
            bundle,
            engine=settings.engine,
            threads=settings.threads,
            max_pixels=service.max_pixels,
            max_seconds=service.model_seconds,
        )
        inspector.measure(np.zeros((*bundle.spec.geometry.size, 3), np.uint8))
        return cls(inspector, bundle, digest, settings.place(name), settings.audit_share)

    @property
    def decision(self) -> Decision:
        """The limits in use."""
        return self.inspector.spec.decision

    @property
    def product(self) -> str:
        """What the model learned to know."""
        return self.bundle.spec.training.category

    def with_limits(self, decision: Decision) -> LoadedModel:
        """The same model with other limits."""
        return replace(self, inspector=self.inspector.with_limits(decision))

    def statistics(self, prepared: PreparedImage) -> dict[str, float]:
        """Brightness and the like of what the network sees; of an image that is cut into tiles, of a thinned one."""
        if prepared.batch is not None:
            geometry = self.bundle.spec.geometry
            deviation, mean = (np.array(values, np.float32)[:, None, None] for values in (geometry.std, geometry.mean))
            return image_statistics(thinned(prepared.batch[0]) * deviation + mean)
        assert prepared.uncut is not None, "kept to be cut"
        pixels = thinned(prepared.uncut.transpose(2, 0, 1))
        return image_statistics(pixels / np.float32(np.iinfo(pixels.dtype).max))

    @property
    def reference_scores(self) -> NDArray[np.float64]:
        """Numbers that decide of the good images behind the limit, below it: what parts are compared with for drift.

        Empty where the model learned from them, or other models than this one gave them.
        """
        decision = self.decision
        if not decision.held_out or decision.cross_fitted is not None:
            return np.zeros(0)
        name = "good_levels" if decision.by_regions else "good"
        good = np.asarray(self._basis().calibration.get(name, np.zeros(0)), np.float64).ravel()
        return good[good < decision.deciding_limit]

    def record(self, trigger: Trigger, inspection: Inspection, wait: float) -> Record:
        """The record of a part that was judged; ``wait`` in milliseconds."""
        record = Record.of_inspection(
            trigger,
            inspection,
            station=self.station,
            product=self.product,
            model_sha256=self.sha256,
            wait=wait,
        )
        inclusion = 1.0 if record.verdict == "review" else self.audit_share if self._drawn(trigger) else None
        return record if inclusion is None else record.model_copy(update={"inclusion": inclusion})

    def error_record(self, trigger: Trigger, error: Exception, *, decoded: bool) -> Record:
        """The record of a part that could not be judged; ``decoded``: its image was read."""
        facts = {"station": self.station, "product": self.product, "model_sha256": self.sha256}
        if isinstance(error, FlawsmithError):
            return Record.of_error(trigger, "model" if decoded else "image", str(error), **facts)
        log.error("a part could not be judged", exc_info=error)
        reason = "not enough memory" if isinstance(error, MemoryError) else type(error).__name__
        return Record.of_error(
            trigger, "internal", f"the part was not judged ({reason}): see the service's log", **facts
        )

    def _drawn(self, trigger: Trigger) -> bool:
        drawn = hashlib.sha256(f"audit {trigger.part_id} {trigger.image_sha256}".encode()).hexdigest()
        return int(drawn[:13], 16) / 16**13 < self.audit_share

    def decision_of(self, change: LimitChange, earlier: Sequence[Decision]) -> Decision:
        """The limits that a change would set.

        Args:
            change: what is asked.
            earlier: limits of this model that were in use, beside those of the file.

        Raises:
            FlawsmithError: the change contradicts itself, or cannot be computed from what the model file holds.
        """
        if change.use is not None:
            if change.max_false_rejects is not None or change.review_rate is not None:
                raise FlawsmithError("use takes limits as they were: leave max_false_rejects and review_rate out")
            known = (*self.bundle.spec.earlier_decisions, self.bundle.spec.decision, *earlier)
            by_name = {decision.identity: decision for decision in known}
            if change.use not in by_name:
                raise FlawsmithError(f"there are no limits {change.use}: known are {', '.join(by_name)}")
            return by_name[change.use]
        if change.max_false_rejects is None and change.review_rate is None:
            raise FlawsmithError("nothing is asked for: give max_false_rejects, review_rate or use")
        return calibrate(self._basis(), rate=change.max_false_rejects, review_rate=change.review_rate).after

    def _basis(self) -> Bundle:
        """The bundle with the limits in use, and the scores behind them."""
        if self.decision in self.bundle.spec.earlier_decisions:
            return self.bundle.with_decision(self.decision)
        spec = self.bundle.spec.model_copy(update={"decision": self.decision})
        return replace(self.bundle, spec=spec)

    def preview(self, after: Decision, recent: Sequence[Record]) -> LimitPreview:
        """What other limits would do to the good images behind them and to recent parts.

        Args:
            after: the other limits.
            recent: records of the line, the newest first.
        """
        before, arrays = self.decision, self._basis().calibration
        good = arrays.get("good_levels" if before.by_regions else "good", np.zeros(0))
        # With another setting of regions the numbers that decide would be others.
        same = all(getattr(before, name) == getattr(after, name) for name in _SETTING)
        records = [r for r in recent if r.model_sha256 == self.sha256 and r.deciding is not None and same]
        changes = {
            record.id: f"{old} -> {new}"
            for record in records
            if (old := before.verdict_of(record.deciding or 0.0)) != (new := after.verdict_of(record.deciding or 0.0))
        }
        return LimitPreview(
            before=LimitFacts.of(before),
            after=LimitFacts.of(after),
            good_before=_verdicts(before, good),
            good_after=_verdicts(after, good) if same else {},
            recent=len(records),
            changes=dict(Counter(changes.values())),
            changed=list(changes)[:_LISTED],
        )


_SETTING = ("region_of_interest", "minimum_area", "zones", "elsewhere")


def _verdicts(decision: Decision, deciding: Any) -> dict[str, int]:
    return dict(Counter(decision.verdict_of(float(number)) for number in deciding))


OnRecord = Callable[[Record], object]
"""Told of each record once it is on the disk; must be quick, as the writer waits for it."""


class Line:
    """A line: parts come in, records come out.

    Args:
        name: of the line.
        service: settings of the service.
        model: of the line, as loaded.
        store: where records go.
        pictures: where images go.
        on_record: told of each record.
        on_event: told of what its camera does.

    Attributes:
        camera: that takes its pictures; None: they are sent.
        on_change: told when model or limits were changed.
    """

    def __init__(
        self,
        name: str,
        service: ServiceSettings,
        model: LoadedModel,
        store: Store,
        pictures: Pictures,
        on_record: OnRecord = lambda _: None,
        on_event: OnEvent = lambda *_: None,
    ) -> None:
        self.name, self.settings, self._service = name, service.lines[name], service
        self._store, self._pictures, self._on_record = store, pictures, on_record
        self._lock = threading.Lock()
        self._changing = threading.Lock()
        self._in_work: dict[str, tuple[str, Future[Record]]] = {}
        self.on_change: Callable[[], object] = lambda: None
        self.model: LoadedModel | None = self._with_noted_limits(model)
        self.queue = InspectionQueue(
            self._commit, name=name, capacity=self.settings.queue, decoders=self.settings.decoders
        )
        camera = self.settings.camera
        try:
            self.camera = None if camera is None else Capture(self, camera, store, on_event)
        except BaseException:
            self.queue.close()
            raise

    # Parts

    def submit(self, trigger: Trigger) -> tuple[Future[Record], bool]:
        """Take a part; it may read the store, but waits for no other part.

        Args:
            trigger: the part.

        Returns:
            The promise of its record, and whether the part is new: one that was judged before, or is being judged, by
            the same image has that record.

        Raises:
            QueueFullError, QueueClosedError: as `InspectionQueue.submit`.
            NoModelError: the model was unloaded.
            PartConflictError: the part has a record of another image.
        """
        if trigger.part_id is None:
            return self.queue.submit(trigger, self._judge()), True
        with self._lock:
            sha256, future = self._in_work.get(trigger.part_id, ("", None))
            if future is None or future.done():
                known = self._known(trigger)
                if known is not None:
                    return known, False
                future = self.queue.submit(trigger, self._judge())
                self._in_work[trigger.part_id] = trigger.image_sha256, future
            elif sha256 == trigger.image_sha256:
                return future, False
            else:
                raise PartConflictError
        future.add_done_callback(lambda done: self._forget(trigger, done))
        return future, True

    def trigger(self, part_id: str | None = None, lot_id: str | None = None) -> Future[Record]:
        """Take a picture now and have it judged; returns at once.

        Args:
            part_id, lot_id: as the line calls part and lot.

        Returns:
            The promise of its record; what goes wrong ends in one too, of an error.

        Raises:
            NoCameraError: the line has no camera.
            QueueClosedError: the line is ending.
        """
        if self.camera is None:
            raise NoCameraError
        return self.camera.trigger(part_id, lot_id)

    def write_error(self, trigger: Trigger, kind: ErrorKind, error: str) -> Record:
        """Write the record of a trigger that was not judged.

        Args:
            trigger: what came, whose image may be empty.
            kind: whose fault it is.
            error: one line that says why, and what to do.

        Raises:
            UnwritableError: it cannot be written.
        """
        model = self.model
        facts = {} if model is None else {"product": model.product, "model_sha256": model.sha256}
        record = Record.of_error(trigger, kind, error, station=self.settings.place(self.name), **facts)
        return self._commit([(trigger, record)])[0]

    def _forget(self, trigger: Trigger, done: Future[Record]) -> None:
        """The part is no longer in work; the store knows it now."""
        with self._lock:
            if self._in_work.get(trigger.part_id or "", ("", None))[1] is done:
                del self._in_work[trigger.part_id or ""]

    def _judge(self) -> LoadedModel:
        if self.model is None:
            raise NoModelError
        return self.model

    def _known(self, trigger: Trigger) -> Future[Record] | None:
        """The record that this part has already; an image that could not be read leaves the part free for another."""
        for record in self._store.of_part(self.name, trigger.part_id or ""):
            same = record.image_sha256 == trigger.image_sha256
            if record.verdict != "error" and not same:
                raise PartConflictError
            if same and (record.verdict != "error" or record.error_kind == "image"):
                future: Future[Record] = Future()
                future.set_result(record)
                return future
        return None

    def _commit(self, judged: Sequence[tuple[Trigger, Record]]) -> list[Record]:
        for trigger, record in judged:  # before the record, so that it never says of an image what is not there
            self._pictures.keep(record.image_sha256, trigger.image, record.verdict)
        files = {place: trigger.file for place, (trigger, _) in enumerate(judged) if trigger.file is not None}
        records = self._store.add([record for _, record in judged], files)
        for record in records:
            try:
                self._on_record(record)
            except Exception:  # the record stands; it must not be written again
                log.exception("record %d was not told of", record.id)
        return records

    # Model and limits

    def load(self, *, who: str) -> LoadedModel:
        """Read the model file anew; parts that were taken before are judged by the former model.

        Raises:
            FlawsmithError: it cannot be loaded; the former one stays.
        """
        with self._changing:
            model = self._with_noted_limits(LoadedModel.load(self._service, self.name))
            self._store.note("model", who=who, line=self.name, facts={"loaded": model.sha256})
            self.model = model
            self.on_change()
            return model

    def unload(self, *, who: str) -> None:
        """Take no parts until a model is loaded again."""
        with self._changing:
            self._store.note("model", who=who, line=self.name, facts={"loaded": None})
            self.model = None

    def _with_noted_limits(self, model: LoadedModel) -> LoadedModel:
        """The model with the limits that were set on this line last."""
        decisions = self._noted_limits(model.sha256)
        return model.with_limits(decisions[0]) if decisions else model

    def _noted_limits(self, sha256: str) -> list[Decision]:
        """Limits that were set on this line for this model, the latest first."""
        entries = self._store.entries(line=self.name, kind="limit", count=_RECENT)
        return [Decision(**entry.facts["decision"]) for entry in entries if entry.facts["model"] == sha256]

    def preview_limits(self, change: LimitChange) -> LimitPreview:
        """What a change of limits would do.

        Raises:
            FlawsmithError: the change cannot be made.
            NoModelError: there is no model.
        """
        model = self._judge()
        return self._previewed(model, model.decision_of(change, self._noted_limits(model.sha256)))

    def _previewed(self, model: LoadedModel, after: Decision) -> LimitPreview:
        return model.preview(after, self._store.page(self.name, count=_RECENT))

    def set_limits(self, change: LimitChange, *, who: str, reason: str) -> LimitPreview:
        """Change the limits; the audit says who, why, and what effect was expected. Holds for parts taken from now on.

        Raises:
            FlawsmithError, NoModelError: as `preview_limits`; the former limits stay.
        """
        with self._changing:
            model = self._judge()
            after = model.decision_of(change, self._noted_limits(model.sha256))
            preview = self._previewed(model, after)
            facts = {
                "model": model.sha256,
                "asked": change.model_dump(exclude_none=True),
                "reason": reason,
                "effect": preview.model_dump(mode="json"),
                "decision": after.model_dump(mode="json"),
            }
            self._store.note("limit", who=who, line=self.name, facts=facts)
            self.model = model.with_limits(after)
            self.on_change()
            return preview

    def seen_again(self, record: Record, image: bytes) -> Inspection:
        """Inspect the image of a record again, by the model and the limits that judged it.

        Raises:
            FlawsmithError: the line has another model now, or the limits are unknown.
            NoModelError: there is no model.
        """
        model = self._judge()
        bundle = model.bundle.spec
        known = (model.decision, bundle.decision, *bundle.earlier_decisions, *self._noted_limits(model.sha256))
        decision = next((limits for limits in known if limits.identity == record.limits), None)
        if record.model_sha256 != model.sha256 or decision is None:
            raise FlawsmithError("the line has another model or other limits now than those that judged this part")
        return model.inspector.with_limits(decision).inspect(image)

    def close(self) -> None:
        """Judge what was taken, then end."""
        if self.camera is not None:
            self.camera.close()
        self.queue.close()


class Site:
    """All lines of a service, and the folder of what they leave behind, which one process alone may write.

    Args:
        settings: of the service.
        on_record: told of each record.
        on_event: told of what happens besides, by kind and content: ``drift`` (an alarm), ``camera`` (its state),
            ``dropped`` (a picture that came too fast).

    Raises:
        FlawsmithError: another process uses the folder, a model cannot be loaded, or nothing can be written.
    """

    def __init__(
        self, settings: ServiceSettings, on_record: OnRecord = lambda _: None, on_event: OnEvent = lambda *_: None
    ) -> None:
        self.settings, self.on_event = settings, on_event
        self.lines: dict[str, Line] = {}
        self._ended = threading.Event()
        self._stack = ExitStack()
        models = {name: LoadedModel.load(settings, name) for name in settings.lines}  # before anything is written
        try:
            self._stack.enter_context(exclusive_folder(settings.records))
            self.store = Store(settings.records)
            self._stack.callback(self.store.close)
            self.pictures = Pictures(settings.records / "images", settings.images)
            for name, model in models.items():
                self.lines[name] = Line(name, settings, model, self.store, self.pictures, on_record, on_event)
                self._stack.callback(self.lines[name].close)
            hashes = {name: model.sha256 for name, model in models.items()}
            self.store.note("start", who="service", facts={"models": hashes})
            self.drift = DriftMonitor(
                lambda: self.lines,
                self.store,
                lambda alarm: on_event("drift", {**alarm.model_dump(mode="json"), "says": alarm.words}),
            )
            self.drift.start()
        except BaseException:
            self._stack.close()
            raise
        self._sweeper = threading.Thread(target=self._sweep, name="images", daemon=True)
        self._sweeper.start()

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        """Whether the folder was given back."""
        return self._ended.is_set()

    def close(self) -> None:
        """Judge what was taken, note the end, and give the folder back."""
        self._ended.set()
        self._sweeper.join()
        self.drift.close()
        for line in self.lines.values():
            line.close()
        with self._stack:
            try:
                self.store.note("stop", who="service", facts={})
            except UnwritableError as error:  # the folder is given back all the same
                log.error("the end of the service was not noted: %s", error)

    def _sweep(self) -> None:
        self.pictures.sweep()
        slept = 0.0
        while not self._ended.wait(1.0):
            slept += 1.0
            if slept >= SWEEP_SECONDS or self.pictures.too_large:
                self.pictures.sweep()
                slept = 0.0


__all__ = [
    "LimitChange",
    "LimitFacts",
    "LimitPreview",
    "Line",
    "LoadedModel",
    "NoCameraError",
    "NoModelError",
    "OnRecord",
    "PartConflictError",
    "Site",
]
