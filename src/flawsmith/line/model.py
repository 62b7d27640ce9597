"""A model on a line: verified when it is loaded, judging with its limits, and what other limits would do."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flawsmith.calibration.drift import image_statistics, thinned
from flawsmith.data.quantities import parse_rate
from flawsmith.data.splits import content_hash
from flawsmith.line.limits import LimitChange, LimitFacts, LimitPreview, limits_from
from flawsmith.line.record import Record, Trigger, drawn_number
from flawsmith.line.settings import ServiceSettings
from flawsmith.line.versions import ModelFiles
from flawsmith.pipeline.calibrate import calibrate
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspection, Inspector, PreparedImage, self_test

_LISTED = 20

log = logging.getLogger("flawsmith.line")


@dataclass(frozen=True)
class LoadedModel:
    """A model with its limits on a line; what a queue judges with.

    Attributes:
        inspector: with the limits in use.
        bundle: as read from the file.
        sha256: of the file.
        self_tests: images of the file on which it gives the numbers of the machine that made it.
        station: site/area/line/station.
        audit_share: share of passes and rejects that are drawn for a review.
        audited: ``good`` and ``good_groups``, the numbers behind the limits in use where those are of parts that people
            have looked at; None: they are of images of the file.
    """

    inspector: Inspector
    bundle: Bundle
    sha256: str
    self_tests: int = 0
    station: str = ""
    audit_share: float = 0.0
    audited: Mapping[str, NDArray[Any]] | None = None

    @classmethod
    def load(
        cls,
        service: ServiceSettings,
        name: str,
        path: Path,
        *,
        sha256: str | None = None,
        threads: int | None = None,
    ) -> LoadedModel:
        """Open a model file for a line, verify it, and have it test itself, so that the first part does not wait.

        Args:
            service: settings of the service.
            name: of the line.
            path: of the file.
            sha256: that the file must have; None: whatever it has.
            threads: for the network; None: as the settings of the line say.

        Raises:
            FlawsmithError: it is no intact model, is another, cannot be computed, or gives other numbers than on the
                machine that made it.
        """
        settings = service.lines[name]
        before = content_hash(path) if path.is_file() else ""
        bundle = Bundle.load(path)  # which says best what is wrong with a file
        digest = content_hash(path)
        if digest != before:
            raise FlawsmithError(f"{path}: was written anew while it was read; load it again")
        if sha256 not in (None, digest):
            raise FlawsmithError(f"{path}: is not what was put there; upload the model again")
        inspector = Inspector.load(
            bundle,
            engine=settings.engine,
            device=settings.device,
            threads=threads or settings.threads,
            max_pixels=service.max_pixels,
            max_seconds=service.model_seconds,
        )
        try:
            tests = self_test(inspector, bundle)
        except FlawsmithError as error:
            raise FlawsmithError(f"{path}: {error}") from None
        return cls(inspector, bundle, digest, tests, settings.place(name), settings.audit_share)

    @property
    def decision(self) -> Decision:
        """The limits in use."""
        return self.inspector.spec.decision

    @property
    def product(self) -> str:
        """What the model learned to know."""
        return self.bundle.spec.training.category

    def with_limits(self, decision: Decision, audited: Mapping[str, NDArray[Any]] | None = None) -> LoadedModel:
        """The same model with other limits, and what they rest on, as `audited`."""
        return replace(self, inspector=self.inspector.with_limits(decision), audited=audited)

    @property
    def _behind(self) -> Mapping[str, NDArray[Any]]:
        return self.basis().calibration if self.audited is None else self.audited

    @property
    def good_behind(self) -> NDArray[np.float64]:
        """(n,) numbers that decide, of the good images or parts behind the limits in use; empty: not stored."""
        name = "good_levels" if self.decision.by_regions and self.audited is None else "good"
        return np.asarray(self._behind.get(name, ()), np.float64).ravel()

    @property
    def groups_behind(self) -> NDArray[np.int64] | None:
        """(n,) numbers of their groups; None: none are known."""
        groups = self._behind.get("good_groups")
        return None if groups is None or len(groups) != len(self.good_behind) else np.asarray(groups, np.int64)

    @property
    def tolerance(self) -> float:
        """By how much engines may differ in the number that decides, which is part of every limit."""
        name = "map_allowed" if self.decision.by_regions else "score_allowed"
        return self.bundle.spec.parity.get(name, 0.0)

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
        good = self.good_behind
        return good[good < decision.deciding_limit]

    @property
    def _facts(self) -> dict[str, str]:
        return {"station": self.station, "product": self.product, "model_sha256": self.sha256}

    def record(self, trigger: Trigger, inspection: Inspection, wait: float) -> Record:
        """The record of a part that was judged; ``wait`` in milliseconds."""
        record = Record.of_inspection(trigger, inspection, wait=wait, **self._facts)
        is_drawn = is_audited(record.part_id, record.image_sha256, self.audit_share)
        inclusion = 1.0 if record.verdict == "review" else self.audit_share if is_drawn else None
        return record if inclusion is None else record.model_copy(update={"inclusion": inclusion})

    def error_record(self, trigger: Trigger, error: Exception, *, decoded: bool) -> Record:
        """The record of a part that could not be judged; ``decoded``: its image was read."""
        if isinstance(error, FlawsmithError):
            return Record.of_error(trigger, "model" if decoded else "image", str(error), **self._facts)
        log.error("a part could not be judged", exc_info=error)
        reason = "not enough memory" if isinstance(error, MemoryError) else type(error).__name__
        told = f"the part was not judged ({reason}): see the service's log"
        return Record.of_error(trigger, "internal", told, **self._facts)

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
        if self.audited is not None:
            rates = (change.max_false_rejects, "max_false_rejects"), (change.review_rate, "review_rate")
            alpha, review = (
                None if rate is None else 0.0 if rate == "none" else parse_rate(rate, name) for rate, name in rates
            )
            return limits_from(self.decision, self.audited, alpha=alpha, review_alpha=review, tolerance=self.tolerance)
        return calibrate(self.basis(), rate=change.max_false_rejects, review_rate=change.review_rate).after

    def basis(self) -> Bundle:
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
        before, good = self.decision, self.good_behind
        same = is_same_setting(before, after)
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


def is_same_setting(before: Decision, after: Decision) -> bool:
    """Whether the numbers that decide are the same: with another setting of regions they would be others."""
    names = ("region_of_interest", "minimum_area", "zones", "elsewhere")
    return all(getattr(before, name) == getattr(after, name) for name in names)


def is_audited(part_id: str | None, image_sha256: str, share: float) -> bool:
    """Whether a part is drawn for a review: a share of all parts, whatever is said of them, and always the same."""
    return drawn_number(hashlib.sha256(f"audit {part_id} {image_sha256}".encode()).hexdigest()) < share


def _verdicts(decision: Decision, deciding: Any) -> dict[str, int]:
    return dict(Counter(decision.verdict_of(float(number)) for number in deciding))


class NamedModel(NamedTuple):
    """The model file that the settings of a line name, as it is now.

    Attributes:
        sha256: of the file; None: none is named, or it is not there though the line has a history.
        model: opened; None: the service has its own copy of the file.
    """

    sha256: str | None
    model: LoadedModel | None

    @classmethod
    def look(cls, service: ServiceSettings, name: str, files: ModelFiles) -> NamedModel:
        """Read it; nothing is written.

        Raises:
            FlawsmithError: as `LoadedModel.load`.
        """
        path = service.lines[name].model
        if path is None or (not path.exists() and files.folder.exists()):
            return cls(None, None)
        if path.is_file() and (sha256 := content_hash(path)) in files:
            return cls(sha256, None)
        model = LoadedModel.load(service, name, path)
        return cls(model.sha256, model)
