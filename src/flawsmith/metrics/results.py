"""What an evaluation says: the object that ``evaluate --json`` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from flawsmith.metrics.protocol import MEANINGS
from flawsmith.metrics.what_if import LimitStep, aligned, limit_sentences, missing_none
from flawsmith.runtime.bundle import SelectionName
from flawsmith.runtime.decision import promise_in_words
from flawsmith.runtime.files import without_controls
from flawsmith.runtime.overlay import panel

Rate = float | None
_FEW = 20
"""Test images of a kind below which a good result says little."""


class DefectResult(BaseModel):
    """One defect type, always against all good images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(description="Flawed images of this type.")
    image_auroc: Rate = Field(description="AUROC of this type's images against all good images.")
    aupro: Rate = Field(
        description="Area under the region-overlap curve of this type's regions, against the false-positive "
        "rate over all images; the overall AUPRO is the mean over types weighted by regions."
    )
    miss_rate: Rate = Field(description="Share of this type's images that were not rejected.")
    n_missed: int = Field(description="Images of this type that were not rejected.")
    n_regions: int = Field(description="Annotated regions of this type.")
    mean_score: float = Field(description="Mean image score of this type.")


class BaselineResult(BaseModel):
    """A model of the same training images that needs no training, on the same test images by the same rules."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field(description="Its method, such as patchcore.")
    image_auroc: Rate = Field(description="Its AUROC of the image scores.")
    pixel_auroc: Rate = Field(description="Its AUROC over all pixels.")
    aupro: Rate = Field(description="Its area under the region-overlap curve.")
    gains: dict[str, tuple[float, float, float]] = Field(
        default_factory=dict,
        description="By figure: the model's minus the baseline's, and the ends of its 95 % interval over the same "
        "resampled test images.",
    )

    def comparisons(self, labels: Mapping[str, str]) -> dict[str, str]:
        """The model beside its baseline, by the label of the figure.

        Args:
            labels: of the figures, as the evaluation's table has them.
        """
        return {labels[name]: self._comparison(getattr(self, name), gain) for name, gain in self.gains.items()}

    def _comparison(self, value: float, gain: tuple[float, float, float]) -> str:
        change, low, high = gain
        verdict = "better" if low > 0 else "worse" if high < 0 else "no measurable difference"
        interval = f"{change:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
        baseline = f"{value:.4f} of {self.method}, which needs no training"
        return f"{value + change:.4f} against {baseline}: {verdict} ({interval})"


class Evaluation(BaseModel):
    """Figures of one model on one labelled test set; None where the data cannot give one, and ``notes`` say
    why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str = Field(
        default="clean", description="Name of the evaluation protocol: clean, papers, or custom for any other."
    )
    deviations: dict[str, str] = Field(
        default_factory=dict, description="Switches of the protocol that are not as in clean, with their settings."
    )
    selection: SelectionName = Field(default="last", description="How the model's checkpoint was chosen.")
    stamps: list[str] = Field(
        default_factory=list,
        description="What must stand beside every figure: that the checkpoint was chosen on test data, and in what the "
        "protocol deviates from clean; empty for a clean result.",
    )
    image_auroc: Rate = Field(
        description="AUROC of the image scores, all flawed images pooled against the good ones, in [0, 1]."
    )
    image_ap: Rate = Field(description="Step-wise average precision of the image scores.")
    image_f1_max: Rate = Field(description="Highest F1 over all limits: an oracle, never a limit to run with.")
    image_f1_threshold: float | None = Field(default=None, description="The score that gives the highest F1.")
    pixel_auroc: Rate = Field(description="AUROC over all pixels pooled.")
    pixel_ap: Rate = Field(description="Step-wise average precision over all pixels pooled.")
    aupro: Rate = Field(
        description="Area under the region-overlap curve up to a false-positive rate of 0.3; what the switch pro says "
        "where it deviates."
    )
    image_auroc_logical: Rate = Field(
        default=None, description="AUROC of the logical anomalies against all good images; MVTec LOCO AD alone."
    )
    image_auroc_structural: Rate = Field(
        default=None, description="AUROC of the structural anomalies against all good images; MVTec LOCO AD alone."
    )
    image_auroc_loco_mean: Rate = Field(
        default=None,
        description="The LOCO mean: half the sum of the two, which is not the pooled AUROC where their numbers differ.",
    )
    spro: Rate = Field(
        default=None,
        description="Area under the saturated region overlap curve up to a false-positive rate of 0.05, all defects of "
        "all images pooled; only where the data set defines saturation.",
    )
    spro_logical: Rate = Field(default=None, description="The same, of the logical anomalies with all good images.")
    spro_structural: Rate = Field(
        default=None, description="The same, of the structural anomalies with all good images."
    )
    spro_loco_mean: Rate = Field(
        default=None, description="The LOCO mean: half the sum of the two; what MVTec LOCO AD's tables hold."
    )
    false_reject_rate: Rate = Field(description="Share of good images rejected at the stored limit.")
    miss_rate: Rate = Field(description="Share of flawed images not rejected at the stored limit.")
    stated_false_reject_rate: Rate = Field(
        default=None, description="Share of good parts that the limit was said to reject, in the mean."
    )
    worst_false_reject_rate: Rate = Field(
        default=None, description="Share that it was said to reject at most, with 95 % confidence."
    )
    n_good: int = Field(description="Good test images.")
    n_flawed: int = Field(description="Flawed test images.")
    n_annotated: int = Field(default=0, description="Flawed test images that took part in the pixel figures.")
    what_if: list[LimitStep] = Field(
        default_factory=list,
        description="What other limits on the score, or on the map where regions decide, would have done, the highest "
        "first; empty where the protocol takes another score than the model's.",
    )
    by_defect: dict[str, DefectResult] = Field(default_factory=dict, description="Figures by defect type.")
    verdicts: dict[str, dict[str, int]] = Field(
        default_factory=dict, description="Counts by ground truth (good, flawed), then by verdict."
    )
    intervals: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="95 % intervals by figure: bootstrap over images; Clopper-Pearson for the rates.",
    )
    baseline: BaselineResult | None = Field(
        default=None, description="The baseline that was trained beside the model, where there is one."
    )
    notes: list[str] = Field(default_factory=list, description="What was undefined, left out or resized, and why.")

    def __repr__(self) -> str:
        parts = [*self.verdict_lines()[:2], *(f"{label} {_number(value)}" for label, value in self._headline())]
        return f"Evaluation({', '.join([*self.stamps, *parts])})"

    def __str__(self) -> str:
        return self.as_table()

    def _repr_html_(self) -> str:
        """What the limit did, in counts, then the figures, for notebooks."""
        rows = [(label, _number(getattr(self, name)), self._interval(name)) for name, label in self.labels().items()]
        lines = [*self.stamps, *self.verdict_lines(), *(f"note: {note}" for note in self.notes)]
        return panel("Evaluation", lines, [("figure", "value", "95 % interval"), *rows])

    def _headline(self) -> list[tuple[str, Rate]]:
        return [(label, getattr(self, name)) for name, label in self.labels().items() if name in _HEADLINE]

    def as_table(self) -> str:
        """The figures as plain text: stamps, what the limit did, other limits, one line a defect type; then the figures
        that need no limit, and the notes."""
        counts = f"{self.n_good} good and {self.n_flawed} flawed images, protocol {self.protocol}"
        lines = [*self.stamps, *([""] if self.stamps else []), *self.verdict_lines(), ""]
        if self.what_if:
            lines += aligned([("limit", "missed", "rejected", ""), *map(self._step_row, self.what_if)])
            lines += [*limit_sentences(self.what_if[::-1], self.n_good, self.n_flawed), ""]
        if self.by_defect:
            heads = ("defect", "images", "missed", "miss rate", "image AUROC", self.overlap_name, "mean score")
            lines += [*aligned([heads, *(_defect_row(*item) for item in self.by_defect.items())]), ""]
        rows = [(label, _number(getattr(self, name)), self._interval(name)) for name, label in self.labels().items()]
        lines += [counts, *aligned([("figure", "value", "95 % interval"), *rows])]
        compared = {} if self.baseline is None else self.baseline.comparisons(self.labels())
        lines += ["", *(f"{label}: {words}" for label, words in compared.items())] if compared else []
        lines += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join(map(without_controls, lines))

    @property
    def n_missed(self) -> int:
        """Flawed images that were not rejected."""
        counts = self.verdicts.get("flawed", {})
        return sum(counts.values()) - counts.get("reject", 0)

    @property
    def n_rejected(self) -> int:
        """Good images that were rejected."""
        return self.verdicts.get("good", {}).get("reject", 0)

    def verdict_lines(self) -> list[str]:
        """What the limit in use did, in counts, beside what was promised of it."""
        lines = [f"flaws missed: {self.n_missed} of {self.n_flawed}"] if self.n_flawed else []
        if self.n_good:
            lines.append(f"good parts rejected: {self.n_rejected} of {self.n_good}")
        promised = self.promise()
        if promised:
            kept = "" if self.promise_is_broken or not self.n_good else "; these images do not contradict it"
            lines.append(f"promised: about {promised}{kept}")
        if self.promise_is_broken:
            lines.append(
                "These good parts differ from those that the limit rests on: set it anew with good parts of their kind "
                "(flawsmith calibrate)."
            )
        return lines

    def promise(self) -> str:
        """What the limit was said to reject, in words; empty where nothing was said."""
        if self.stated_false_reject_rate is None or self.worst_false_reject_rate is None:
            return ""
        return promise_in_words(self.stated_false_reject_rate, self.worst_false_reject_rate)

    @property
    def promise_is_broken(self) -> bool:
        """Whether more good images were rejected than the worst case allows, with chance ruled out (97.5 %)."""
        if self.worst_false_reject_rate is None:
            return False
        return self.intervals.get("false_reject_rate", (0.0, 1.0))[0] > self.worst_false_reject_rate

    def next_steps(self) -> list[str]:
        """What to do about these verdicts, the most urgent first, a sentence or two each."""
        steps = []
        if self.promise_is_broken:
            steps.append(
                "More good parts are rejected than was promised. Collect more of them, of several days, and set the "
                "limit anew: flawsmith calibrate model.flaw GOOD."
            )
        at_no_miss = missing_none(self.what_if[::-1])
        if self.n_missed and at_no_miss is not None and at_no_miss.rejected <= max(1, self.n_good // 10):
            steps.append(
                f"A lower limit finds all flaws and rejects {at_no_miss.rejected} of "
                f"{self.n_good} good parts: flawsmith calibrate model.flaw GOOD --flawed FLAWED --catch 100%."
            )
        elif self.n_missed and not self.n_good:
            steps.append(
                "How many good parts a lower limit would reject is known of good images alone: flawsmith calibrate "
                "model.flaw GOOD --flawed FLAWED. Flaws that are small may need --smallest-flaw in training."
            )
        elif self.n_missed:
            words = "No limit finds all flaws without rejecting many good parts. " if self.what_if else ""
            affordable = [step for step in self.what_if if step.rejected <= max(1, self.n_good // 10)]
            best = min(affordable, key=lambda step: (step.missed, step.rejected), default=None)
            if best is not None and best.missed <= 0.8 * self.n_missed:
                caught = math.floor(100 * (1 - best.missed / self.n_flawed))
                steps.append(
                    f"A lower limit misses {best.missed} instead of {self.n_missed} of {self.n_flawed} flaws and "
                    f"rejects {best.rejected} of {self.n_good} good parts: flawsmith calibrate model.flaw GOOD "
                    f"--flawed FLAWED --catch {caught}%."
                )
                words = ""
            steps.append(
                f"{words}If the missed flaws are small, train with --smallest-flaw; if the parts lie or are lit "
                "differently each time, give more good images."
            )
        if not steps and self.n_rejected:
            steps.append(
                "Look at the good parts that were rejected: one that is flawed after all belongs to the flaws."
            )
        if not steps and (self.n_flawed < _FEW or self.n_good < _FEW):
            steps.append(
                "No flaw was missed and no good part rejected, but "
                f"{self.n_good} good and {self.n_flawed} flawed parts are few: test with more of both."
            )
        if not steps:
            steps.append(
                "No flaw was missed, no good part rejected. Inspect new parts: flawsmith predict model.flaw IMAGES."
            )
        return steps

    def _step_row(self, step: LimitStep) -> tuple[str, ...]:
        used = "in use" if step.in_use else ""
        missed, rejected = f"{step.missed} of {self.n_flawed}", f"{step.rejected} of {self.n_good}"
        return (f"{step.limit:.4g}", missed, rejected, used)

    def labels(self) -> dict[str, str]:
        """The figures to show in the order of tables, with their names in words; those of LOCO where there is one.

        A figure that a switch of the protocol makes another one has another name.
        """
        labels = dict(LABELS)
        if any(getattr(self, name) is not None for name in LOCO_LABELS):
            labels |= {"image_auroc": "image AUROC, pooled"} | LOCO_LABELS
        changed = _CHANGED_LABELS.items()
        return labels | {
            name: label
            for (switch, setting), (name, label) in changed
            if self.deviations.get(switch) == setting and name in labels
        }

    @property
    def overlap_name(self) -> str:
        """What the figure of region overlap is called where there is little room."""
        return {"dilated_200": "PRO, dilated", "per_image_200": "PRO, per image"}.get(
            self.deviations.get("pro", ""), "AUPRO"
        )

    def explained(self) -> list[tuple[str, str]]:
        """Each deviation from the clean protocol with what it means."""
        return [(f"{switch}={setting}", MEANINGS[switch][setting].says) for switch, setting in self.deviations.items()]

    def _interval(self, name: str) -> str:
        ends = self.intervals.get(name)
        return "" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


_HEADLINE = ("image_auroc", "aupro")
"""The figures that stand in one line."""

LABELS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro": "AUPRO (0.3)",
    "false_reject_rate": "false reject rate",
    "miss_rate": "miss rate",
}
"""The figures in the order of tables, with their names in words."""

LOCO_LABELS = {
    "image_auroc_logical": "image AUROC, logical",
    "image_auroc_structural": "image AUROC, structural",
    "image_auroc_loco_mean": "image AUROC, LOCO mean",
    "spro": "sPRO (0.05), pooled",
    "spro_logical": "sPRO (0.05), logical",
    "spro_structural": "sPRO (0.05), structural",
    "spro_loco_mean": "sPRO (0.05), LOCO mean",
}
"""The figures of MVTec LOCO AD, which come after the others."""

_CHANGED_LABELS = {
    ("pro", "dilated_200"): ("aupro", "PRO (0.3), dilated"),
    ("pro", "per_image_200"): ("aupro", "PRO (0.3), per image"),
    ("loco_mean", "pooled"): ("image_auroc_loco_mean", "image AUROC, mean as pooled"),
}
"""What a figure is called where a setting of a switch makes it another one."""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _defect_row(name: str, result: DefectResult) -> tuple[str, ...]:
    return (
        without_controls(name),
        str(result.n),
        str(result.n_missed),
        _number(result.miss_rate),
        _number(result.image_auroc),
        _number(result.aupro),
        f"{result.mean_score:.4g}",
    )
