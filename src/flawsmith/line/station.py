"""A line at work: its queue, its versions, its camera; and the folder that holds what all lines leave behind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flawsmith.line.capture import Capture, OnEvent
from flawsmith.line.drift import DriftMonitor
from flawsmith.line.limits import (
    AuditedParts,
    LimitChange,
    LimitPreview,
    NotedLimits,
    audited_parts,
    limits_from,
    scores_behind,
)
from flawsmith.line.model import LoadedModel, NamedModel, is_audited, is_same_setting
from flawsmith.line.outputs import Outputs
from flawsmith.line.outputs.delivery import Cursors
from flawsmith.line.pictures import Pictures
from flawsmith.line.queue import InspectionQueue, NoModelError, PartConflictError
from flawsmith.line.record import ErrorKind, Record, Trigger
from flawsmith.line.settings import LineSettings, ServiceSettings
from flawsmith.line.shadow import ShadowRun
from flawsmith.line.store import Store, UnwritableError
from flawsmith.line.versions import ModelFacts, ModelFiles, ShadowOrder, Version, Versions, try_model
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspection
from flawsmith.runtime.outputs import exclusive_folder

SWEEP_SECONDS = 600.0
"""Between looks at images that are too old or too many."""
_RECENT = 1000
_LISTED = 20

log = logging.getLogger("flawsmith.line")


class SwapConflictError(FlawsmithError):
    """The state of the line's models is another than was assumed, so nothing was done."""


class NoCameraError(Exception):
    """The line has no camera: pictures are sent to it."""


OnRecord = Callable[[Record], object]
"""Told of each record once it is on the disk; must be quick, as the writer waits for it."""


class Line:
    """A line: parts come in, records come out.

    Args:
        name: of the line.
        service: settings of the service.
        named: the model file of the settings.
        files: the model files of all lines.
        store: where records go.
        pictures: where images go.
        on_record: told of each record.
        cursors: that remember how far each output has come.
        on_event: told of what is done with its models, of its camera, and of outputs that fail.

    Attributes:
        camera: that takes its pictures; None: they are sent.
        model: in use; None: the line is not taught yet, or its model was taken away, and takes no parts.
        is_unloaded: whether there is none because it was taken away; the line is meant to work then.
        versions: of its model.
        outputs: told of each record too.
        on_change: told when model or limits were changed.
        shadow: the latest shadow run; None: there was none since the line began.

    Raises:
        FlawsmithError: there is no model though there should be, or nothing can be written.
    """

    def __init__(
        self,
        name: str,
        service: ServiceSettings,
        named: NamedModel,
        files: ModelFiles,
        store: Store,
        pictures: Pictures,
        cursors: Cursors,
        on_record: OnRecord,
        on_event: OnEvent,
    ) -> None:
        self.name, self.settings, self._service = name, service.lines[name], service
        self._store, self._pictures, self._files, self._on_record = store, pictures, files, on_record
        self._lock = threading.Lock()
        self._changing = threading.Lock()
        self._in_work: dict[str, tuple[str, Future[Record]]] = {}
        camera = self.settings.camera
        # Both say what they lack before anything is written.
        self.outputs = Outputs(name, self.settings)
        self.camera = None if camera is None else Capture(self, camera, store, on_event)
        self.versions = Versions(
            store, name, on_note=lambda entry: on_event("model", {"line": name, "who": entry.who, **entry.facts})
        )
        self.model = self._model_to_use(named, who="service")
        self.is_unloaded = False
        self.shadow: ShadowRun | None = None
        self.on_change: Callable[[], object] = lambda: None
        self.queue = InspectionQueue(
            self._commit, name=name, capacity=self.settings.queue, decoders=self.settings.decoders
        )
        try:
            self.outputs.start(
                self,
                store,
                cursors,
                trigger=None if camera is None else self.trigger,
                on_failure=lambda line, output: on_event("output", {"line": line, "output": output}),
            )
            self._run_shadow()
        except BaseException:
            self.outputs.close()
            self.queue.close()
            raise
        if self.camera is not None:
            self.camera.start()

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
            NoModelError: there is no model.
            PartConflictError: the part has a record of another image.
        """
        if trigger.part_id is None:
            return self.queue.submit(trigger, self._judge()), True
        image_sha256 = trigger.image_sha256  # which takes a while, and is not to hold up other parts
        with self._lock:
            sha256, future = self._in_work.get(trigger.part_id, ("", None))
            if future is None or future.done():
                known = self._known(trigger)
                if known is not None:
                    return known, False
                future = self.queue.submit(trigger, self._judge())
                self._in_work[trigger.part_id] = image_sha256, future
            elif sha256 == image_sha256:
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
            drawn = record.inclusion is not None
            self._pictures.keep(record.image_sha256, trigger.image, record.verdict, is_drawn=drawn)
        files = {place: trigger.file for place, (trigger, _) in enumerate(judged) if trigger.file is not None}
        records = self._store.add([record for _, record in judged], files)
        shadow = self.shadow
        for (trigger, _), record in zip(judged, records, strict=True):
            try:
                if shadow is not None:
                    shadow.offer(trigger, record)
                self.outputs.recorded(record)
                self._on_record(record)
            except Exception:  # the record stands; it must not be written again
                log.exception("record %d was not told of", record.id)
        return records

    # Model and limits

    def load(self, *, who: str) -> LoadedModel:
        """Look at the model file of the settings anew, as a start of the service does.

        Parts that were taken before are judged by the former model.

        Raises:
            FlawsmithError: it cannot be loaded; the former one stays.
        """
        with self._changing:
            model = self._model_to_use(NamedModel.look(self._service, self.name, self._files), who=who)
            if model is None:
                raise FlawsmithError(f"line {self.name} has no model: upload one, or name its file in the settings")
            self.versions.note("loaded", who=who, sha256=model.sha256)
            self.model, self.is_unloaded = model, False
            self._prune()
            self.on_change()
            return model

    def unload(self, *, who: str) -> None:
        """Take no parts until a model is loaded again."""
        with self._changing:
            self.versions.note("unloaded", who=who, sha256=None)
            self.model, self.is_unloaded = None, True

    def _model_to_use(self, named: NamedModel, *, who: str) -> LoadedModel | None:
        """What the settings name where that is another file than the last time, else the version that was live last."""
        sha256, live = named.sha256, self.versions.live
        if sha256 is not None and sha256 != self.versions.named:
            model = self._take_named(named.model or self._opened(sha256), who)
            reason = "the settings name this file"
            self.versions.note(
                "activated", who=who, sha256=sha256, source="settings", former=self.versions.live, reason=reason
            )
            return self._with_noted_limits(model)
        if live is None:
            if self.settings.model is not None:  # the file is not there, which opening it says best
                LoadedModel.load(self._service, self.name, self.settings.model)
            return None
        if named.model is not None and sha256 == live:  # the copy was lost
            self._take_named(named.model, who)
        elif sha256 is None and self.settings.model is not None:
            log.warning("%s: no such model file; line %s goes on with its last one", self.settings.model, self.name)
        return self._opened(live)

    def _take_named(self, model: LoadedModel, who: str) -> LoadedModel:
        """Make a version of a model of the settings."""
        path = self.settings.model
        assert path is not None, "named"
        with self._files.lock:
            if model.sha256 not in self._files:
                self._files.copy(path, model.sha256)
            if model.sha256 not in self.versions.by_sha256:
                facts = ModelFacts.of(model.bundle, model.self_tests)
                self._note_added(model.sha256, facts, who, source="settings")
        return model

    def _note_added(self, sha256: str, facts: ModelFacts, who: str, source: str) -> None:
        size = self._files.path(sha256).stat().st_size
        described = facts.model_dump(mode="json")
        self.versions.note("added", who=who, sha256=sha256, size=size, source=source, model=described)

    def _opened(self, sha256: str, threads: int | None = None) -> LoadedModel:
        """A version with the limits that were set for it on this line last.

        Raises:
            FlawsmithError: its file is gone, or cannot be loaded.
        """
        path = self._files.path(sha256)
        return self._with_noted_limits(LoadedModel.load(self._service, self.name, path, sha256=sha256, threads=threads))

    # Versions

    def add_version(self, received: Path, sha256: str, *, who: str) -> tuple[Version, bool]:
        """Make a version of a file that came from outside, once a process of its own has opened and run it.

        Args:
            received: the file, where `ModelFiles.receiving` put it.
            sha256: of its content.
            who: stands in the audit.

        Returns:
            The version, and whether it is new.

        Raises:
            FlawsmithError: it is no model that works here; nothing is kept.
        """
        if sha256 not in self.versions.by_sha256:
            asked = self.settings
            facts = try_model(received, engine=asked.engine, device=asked.device, threads=asked.threads)
            with self._changing, self._files.lock:
                is_new = sha256 not in self.versions.by_sha256
                if is_new:
                    self._files.take(received, sha256)
                    self._note_added(sha256, facts, who, source="upload")
                    self._prune()
                return self.versions.by_sha256[sha256], is_new
        return self.versions.by_sha256[sha256], False

    def activate(self, sha256: str, *, who: str, reason: str, expected: str | None = None) -> None:
        """Let a version judge the parts that are taken from now on.

        Args:
            sha256: of the version.
            who, reason: stand in the audit, with what its shadow run showed.
            expected: the version that is live; None: whichever is.

        Raises:
            SwapConflictError: another version is live than expected, or this one is already.
            FlawsmithError: it cannot be loaded; the former one stays.
        """
        with self._changing:
            self._check_live(expected)
            if self.model is not None and self.model.sha256 == sha256:
                raise SwapConflictError("this version is live already")
            self._switch("activated", sha256, who, reason)

    def roll_back(self, *, who: str, reason: str, expected: str | None = None) -> str:
        """Let the version judge that was live before; again, the one before that.

        Args:
            who, reason, expected: as for `activate`.

        Returns:
            SHA-256 of the version.

        Raises:
            SwapConflictError, FlawsmithError: as `activate`; or there is no earlier version.
        """
        with self._changing:
            self._check_live(expected)
            if len(self.versions.history) < 2:
                raise SwapConflictError("no version was live before this one")
            sha256 = self.versions.history[-2]
            self._switch("rolled back", sha256, who, reason)
            return sha256

    def _check_live(self, expected: str | None) -> None:
        live = self.versions.live
        if expected not in (None, live):
            raise SwapConflictError(f"the version {live or 'none'} is live, not {expected}: look at it first")

    def _switch(self, action: str, sha256: str, who: str, reason: str) -> None:
        model = self._opened(sha256)
        facts = {"former": self.versions.live, "reason": reason, "limits": model.decision.identity}
        self.versions.note(action, who=who, sha256=sha256, **facts, shadow=self._shadow_seen(sha256))
        self.model, self.is_unloaded = model, False
        if self.versions.shadow is not None and self.versions.shadow.sha256 == sha256:
            self._end_shadow(self.versions.shadow, who=who, why="activated")
        self._prune()
        self.on_change()

    def _prune(self) -> None:
        """Let go of versions that need not stay."""
        surplus = self.versions.surplus
        if not surplus:
            return
        try:
            with self._files.lock:
                for sha256 in surplus:
                    self.versions.note("removed", who="service", sha256=sha256)
                self._files.sweep(self._store)
        except UnwritableError as error:  # what was asked for is done; they go the next time
            log.warning("line %s keeps versions that it need not: %s", self.name, error)

    def limits_of(self, version: Version) -> Decision:
        """The limits with which a version judges on this line."""
        return next((noted.decision for noted in self._noted_limits(version.sha256)), version.facts.decision)

    # Shadows

    def begin_shadow(self, sha256: str, *, parts: int, who: str) -> None:
        """Let a version judge the next parts too, without consequences.

        Args:
            sha256: of the version.
            parts: number of parts.
            who: stands in the audit.

        Raises:
            SwapConflictError: a shadow run goes on, or the version is live.
        """
        with self._changing:
            if self.versions.shadow is not None:
                raise SwapConflictError("a shadow run goes on: stop it first")
            if sha256 == self.versions.live:
                raise SwapConflictError("the live version has no shadow")
            self.versions.note("shadow begun", who=who, sha256=sha256, parts=parts)
            self._run_shadow()

    def stop_shadow(self, sha256: str, *, who: str) -> None:
        """End a shadow run; what it showed stays.

        Raises:
            SwapConflictError: none of this version goes on.
        """
        with self._changing:
            order = self.versions.shadow
            if order is None or order.sha256 != sha256:
                raise SwapConflictError("no shadow run of this version goes on")
            self._end_shadow(order, who=who, why="stopped")

    def shadow_changes(self, order: ShadowOrder) -> dict[str, int]:
        """Parts of a shadow run by change of verdict, those without one included."""
        shadow = self.shadow
        if shadow is not None and shadow.run == order.run:
            return dict(shadow.counts)
        return self._store.shadow_changes(order.run)

    def _run_shadow(self) -> None:
        """Begin the shadow run that the audit speaks of, or go on with it."""
        order = self.versions.shadow
        if order is None:
            return

        def end(run: ShadowRun, why: str) -> None:
            self.versions.end_shadow(order.run, who="service", why=why, missed=run.missed, changes=dict(run.counts))

        self.shadow = ShadowRun(
            order.run,
            lambda: self._opened(order.sha256, threads=1),
            parts=order.parts,
            store=self._store,
            on_end=end,
            name=self.name,
        )

    def _end_shadow(self, order: ShadowOrder, *, who: str, why: str) -> None:
        shadow = self.shadow
        assert shadow is not None, "it runs"
        shadow.stop()
        self.versions.end_shadow(order.run, who=who, why=why, missed=shadow.missed, changes=dict(shadow.counts))

    def _shadow_seen(self, sha256: str) -> dict[str, Any] | None:
        """What the latest shadow run of a version has shown, for the audit."""
        order = self.versions.runs.get(sha256)
        if order is None:
            return None
        flips = [flip.record for flip in self._store.shadow_flips(order.run, _LISTED)]
        return {"run": order.run, "changes": self.shadow_changes(order), "flipped": flips}

    def _with_noted_limits(self, model: LoadedModel) -> LoadedModel:
        """The model with the limits that were set on this line last."""
        noted = self._noted_limits(model.sha256)
        return model.with_limits(*noted[0]) if noted else model

    def _noted_limits(self, sha256: str) -> list[NotedLimits]:
        """Limits that were set on this line for this model, the latest first."""
        entries = self._store.entries(line=self.name, kind="limit", count=_RECENT)
        return [NotedLimits.of(entry.facts) for entry in entries if entry.facts["model"] == sha256]

    def _known_limits(self, model: LoadedModel) -> list[Decision]:
        """All limits that this model has, or had in its file or on this line."""
        spec = model.bundle.spec
        noted = (limits.decision for limits in self._noted_limits(model.sha256))
        return [model.decision, spec.decision, *spec.earlier_decisions, *noted]

    def preview_limits(self, change: LimitChange) -> LimitPreview:
        """What a change of limits would do.

        Raises:
            FlawsmithError: the change cannot be made.
            NoModelError: there is no model.
        """
        model = self._judge()
        return self._previewed(model, self._asked_limits(model, change).decision)

    def _asked_limits(self, model: LoadedModel, change: LimitChange) -> NotedLimits:
        noted = self._noted_limits(model.sha256)
        decision = model.decision_of(change, [limits.decision for limits in noted])
        if change.use is None:
            return NotedLimits(decision, model.audited)
        return next((limits for limits in noted if limits.decision == decision), NotedLimits(decision))

    def _previewed(self, model: LoadedModel, after: Decision) -> LimitPreview:
        return model.preview(after, self._store.page(self.name, count=_RECENT))

    def set_limits(self, change: LimitChange, *, who: str, reason: str, expected: str | None = None) -> LimitPreview:
        """Change the limits; the audit says who, why, and what effect was expected. Holds for parts taken from now on.

        Args:
            change: what is asked.
            who, reason: stand in the audit.
            expected: name of the limits in use; None: whichever are.

        Raises:
            SwapConflictError: other limits are in use than expected.
            FlawsmithError, NoModelError: as `preview_limits`; the former limits stay.
        """
        with self._changing:
            model = self._judge()
            in_use = model.decision.identity
            if expected not in (None, in_use):
                raise SwapConflictError(f"the limits in use are {in_use}, not {expected}: look at them first")
            asked = change.model_dump(exclude_none=True)
            return self._set_limits(model, self._asked_limits(model, change), asked, who, reason)

    def _set_limits(
        self, model: LoadedModel, after: NotedLimits, asked: Mapping[str, Any], who: str, reason: str
    ) -> LimitPreview:
        preview = self._previewed(model, after.decision)
        facts = {
            "model": model.sha256,
            "asked": asked,
            "reason": reason,
            "effect": preview.model_dump(mode="json"),
            "decision": after.decision.model_dump(mode="json"),
            **({} if after.audited is None else {"audited": {k: v.tolist() for k, v in after.audited.items()}}),
        }
        self._store.note("limit", who=who, line=self.name, facts=facts)
        self.model = model.with_limits(*after)
        self.on_change()
        return preview

    def audited_parts(self) -> AuditedParts:
        """Good parts of the random audit whose numbers compare with the limits in use.

        Raises:
            NoModelError: there is no model.
        """
        model = self._judge()
        same = {each.identity for each in self._known_limits(model) if is_same_setting(each, model.decision)}
        labelled = self._store.labelled(self.name)
        shares = [record.inclusion for record, _ in labelled if record.inclusion and record.verdict != "review"]
        share = min((*shares, model.audit_share or 1.0))  # where it was changed, those count that every share takes
        return audited_parts(
            labelled,
            self._waiting(),
            lambda record: is_audited(record.part_id, record.image_sha256, share),
            lambda record: record.model_sha256 == model.sha256 and record.limits in same,
        )

    def _waiting(self) -> Iterator[Record]:
        """Records that wait for a person, the oldest first."""
        after: int | None = None
        while records := self._store.to_review(self.name, after=after):
            yield from records
            after = records[-1].id

    def preview_recalibration(self, parts: AuditedParts) -> LimitPreview:
        """What limits from audited parts would do.

        Raises:
            FlawsmithError: there are too few, or the setting has zones.
            NoModelError: there is no model.
        """
        model = self._judge()
        return self._previewed(model, self._recalibrated(model, parts).decision)

    def recalibrate(self, *, who: str, reason: str, expected: str) -> LimitPreview:
        """Set the limits from the good parts of the random audit.

        Args:
            who, reason: stand in the audit.
            expected: name of the limits that the preview showed.

        Raises:
            SwapConflictError: they would be others by now.
            FlawsmithError, NoModelError: as `preview_recalibration`; the former limits stay.
        """
        with self._changing:
            model = self._judge()
            after = self._recalibrated(model, self.audited_parts())
            if after.decision.identity != expected:
                raise SwapConflictError("other parts were looked at meanwhile: look at the preview again")
            return self._set_limits(model, after, {"recalibrated": after.decision.n_good}, who, reason)

    def _recalibrated(self, model: LoadedModel, parts: AuditedParts) -> NotedLimits:
        behind = scores_behind(parts)
        return NotedLimits(limits_from(model.decision, behind, tolerance=model.tolerance), behind)

    def seen_again(self, record: Record, image: bytes) -> Inspection:
        """Inspect the image of a record again, by the model and the limits that judged it.

        Raises:
            FlawsmithError: the line has another model now, or the limits are unknown.
            NoModelError: there is no model.
        """
        model = self._judge()
        decision = next((each for each in self._known_limits(model) if each.identity == record.limits), None)
        if record.model_sha256 != model.sha256 or decision is None:
            raise FlawsmithError("the line has another model or other limits now than those that judged this part")
        return model.inspector.with_limits(decision).inspect(image)

    def close(self) -> None:
        """Judge what was taken, then end; a shadow run goes on when the line is there again."""
        self.outputs.end()
        if self.camera is not None:
            self.camera.close()
        if self.shadow is not None:
            self.shadow.stop()
        self.queue.close()
        if self.shadow is not None:
            self.shadow.join()
        self.outputs.close()


class Site:
    """All lines of a service, and the folder of what they leave behind, which one process alone may write.

    Args:
        settings: of the service.
        on_record: told of each record.
        on_event: told of what happens besides, by kind and content: ``model`` (what is done with models), ``drift`` (an
            alarm), ``camera`` (its state), ``dropped`` (a picture that came too fast), ``output`` (a failed attempt).

    Attributes:
        settings: with the lines that were added since.
        lines: by name. Adding and removing a line makes another dictionary, so that one that is read stays as it is.

    Raises:
        FlawsmithError: another process uses the folder, a model cannot be loaded, or nothing can be written.
    """

    def __init__(
        self, settings: ServiceSettings, on_record: OnRecord = lambda _: None, on_event: OnEvent = lambda *_: None
    ) -> None:
        self.settings, self._on_record, self.on_event = settings, on_record, on_event
        self.files = ModelFiles(settings.records / "models")
        self.lines: dict[str, Line] = {}
        self._changing = threading.Lock()
        self._ended = threading.Event()
        self._stack = ExitStack()
        # Before anything is written.
        named = {name: NamedModel.look(settings, name, self.files) for name in settings.lines}
        for name, line in settings.lines.items():
            Outputs(name, line)  # says what they lack
        try:
            self._stack.enter_context(exclusive_folder(settings.records))
            self.store = Store(settings.records)
            self._stack.callback(self.store.close)
            self.pictures = Pictures(settings.records / "images", settings.images)
            self._cursors = Cursors(settings.records)
            self._stack.callback(self._cursors.close)
            self._stack.callback(self._close_lines)
            for name, model in named.items():
                self.lines[name] = self._line(name, settings, model)
            with self.files.lock:
                self.files.sweep(self.store)
            hashes = {name: None if line.model is None else line.model.sha256 for name, line in self.lines.items()}
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

    def _line(self, name: str, settings: ServiceSettings, named: NamedModel) -> Line:
        told = self._on_record, self.on_event
        return Line(name, settings, named, self.files, self.store, self.pictures, self._cursors, *told)

    def add_line(self, name: str, line: LineSettings, *, who: str = "service") -> Line:
        """Begin a line, until it is removed or the service ends. Records of this name are its own again.

        So are its models and limits, unless it was removed since.

        Args:
            name: of the line.
            line: its settings.
            who: stands in the audit.

        Raises:
            FlawsmithError: there is such a line, its name cannot be one, its model cannot be loaded, or the service is
                ending.
        """
        with self._changing:
            if self.is_closed:
                raise FlawsmithError("the service is ending")
            if name in self.lines:
                raise FlawsmithError(f"there is a line {name} already: give another name")
            settings = self.settings.with_line(name, line)
            added = self._line(name, settings, NamedModel.look(settings, name, self.files))
            try:
                self.store.note("line", who=who, line=name, facts={"added": line.shown()})
            except BaseException:
                added.close()
                raise
            self.settings, self.lines = settings, {**self.lines, name: added}
            return added

    def remove_line(self, name: str, *, who: str = "service") -> None:
        """End a line: parts that were taken are judged, more are not. Its records stay, its models go.

        Args:
            name: of the line.
            who: stands in the audit.

        Raises:
            FlawsmithError: there is no such line.
        """
        with self._changing:
            line = self.lines.get(name)
            if line is None:
                raise FlawsmithError(f"there is no line {name}")
            self.store.note("line", who=who, line=name, facts={"removed": True})
            self.lines = {other: kept for other, kept in self.lines.items() if other != name}
            left = {other: kept for other, kept in self.settings.lines.items() if other != name}
            self.settings = self.settings.model_copy(update={"lines": left})
        line.close()
        with self.files.lock:
            self.files.sweep(self.store)

    def _close_lines(self) -> None:
        lines = list(self.lines.values())
        for line in lines:
            line.outputs.end()
        # At once, as each may wait seconds for parts, a camera and receivers.
        with ThreadPoolExecutor(max(1, len(lines))) as pool:
            list(pool.map(Line.close, lines))

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        """Whether the folder was given back."""
        return self._ended.is_set()

    def close(self) -> None:
        """Judge what was taken, note the end, and give the folder back."""
        with self._changing:
            self._ended.set()
        self._sweeper.join()
        self.drift.close()
        self._close_lines()
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
