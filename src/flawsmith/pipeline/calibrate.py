"""New limits for a trained model from good images, in seconds and without torch."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flawsmith.calibration.groups import group_figures
from flawsmith.data.groups import with_groups
from flawsmith.data.layouts import load
from flawsmith.data.layouts.base import is_set_apart
from flawsmith.data.layouts.folder import UNLABELLED
from flawsmith.data.layouts.names import meaning
from flawsmith.data.quantities import parse_area, parse_length, parse_rate
from flawsmith.data.roi import read_drawing
from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.splits import content_hashes
from flawsmith.metrics.what_if import aligned
from flawsmith.pipeline.describe import model_card, where_to_look
from flawsmith.pipeline.held_out import MAPS, levels_of, load_maps
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.decision import REPEAT_DEVIATIONS, Decision, Verdict, worst_rate
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import (
    further_pictures_note,
    left_out,
    left_out_note,
    printable,
    replacing,
    without_controls,
)
from flawsmith.runtime.image import decode
from flawsmith.runtime.inspector import Inspector, Unreadable
from flawsmith.runtime.roi import RegionOfInterest, Zone

_FEWEST_REPEATED = 3
_LISTED = 20

_NAMED = 3


@dataclass(frozen=True)
class CheckedImage:
    """An image under the former and the new limits.

    Attributes:
        image: its path as seen from the folder that was given.
        label: whether it was given as good or as flawed.
        group: its group; empty where none is known.
        level: the largest level of its map that counts, under the new setting.
        before: verdict by the limits that were in use.
        after: verdict by the new ones.
    """

    image: str
    label: Literal["good", "flawed"]
    group: str
    score: float
    level: float
    before: Verdict
    after: Verdict = "pass"


@dataclass(frozen=True)
class CalibrationResult:
    """New limits beside those that were in use.

    Attributes:
        bundle: the model with the new limits; the former ones are kept in it.
        before: the limits that were in use.
        after: the new ones.
        images: all images that were inspected, good ones first.
        notes: what the user should know, one line each.
        path: where the bundle was written; None: nowhere.
    """

    bundle: Bundle
    before: Decision
    after: Decision
    images: tuple[CheckedImage, ...] = ()
    notes: tuple[str, ...] = ()
    path: Path | None = None

    @property
    def changed(self) -> tuple[CheckedImage, ...]:
        """The images whose verdict is another one."""
        return tuple(image for image in self.images if image.before != image.after)

    def count(self, label: Literal["good", "flawed"], when: Literal["before", "after"], verdict: Verdict) -> int:
        """How many images of a kind have a verdict."""
        return sum(image.label == label and getattr(image, when) == verdict for image in self.images)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "model": None if self.path is None else str(self.path),
            "before": _decision_facts(self.before),
            "after": _decision_facts(self.after),
            "counts": {
                label: {
                    when: {verdict: self.count(label, when, verdict) for verdict in ("pass", "review", "reject")}
                    for when in ("before", "after")
                }
                for label in ("good", "flawed")
            },
            "flawed_caught_at_least": self.caught_at_least,
            "images": [dataclasses.asdict(image) for image in self.images],
            "notes": list(self.notes),
        }

    @property
    def caught_at_least(self) -> float | None:
        """The share of flaws like the given ones that is rejected, at least, with 95 % confidence.

        None without any, and where they have chosen the limit.
        """
        flawed = 0 if self.after.chosen_on_flawed else sum(image.label == "flawed" for image in self.images)
        missed = flawed - self.count("flawed", "after", "reject")
        if not flawed:
            return None
        return 0.0 if missed == flawed else 1 - worst_rate(missed + 1, flawed)

    def as_table(self) -> str:
        """Both sets of limits side by side, and the images whose verdict changes."""
        rows = [("", "before", "after"), ("limits", self.before.identity, self.after.identity)]
        rows += [
            ("limit on the score", f"{self.before.limit:.6g}", f"{self.after.limit:.6g}"),
            ("limit on the map", f"{self.before.map_limit:.6g}", f"{self.after.map_limit:.6g}"),
            *_zone_rows(self.before.zone_limits, self.after.zone_limits),
            ("review limit", _or_none(self.before.review_limit), _or_none(self.after.review_limit)),
            ("what decides", where_to_look(self.before) or "image score", where_to_look(self.after) or "image score"),
            ("asked for, of 1,000", _asked_for(self.before), _asked_for(self.after)),
            ("good images behind it", str(self.before.n_good), str(self.after.n_good)),
        ]
        for label in ("good", "flawed"):
            total = sum(image.label == label for image in self.images)
            for verdict in ("reject", "review") if total else ():
                if verdict == "review" and self.before.review_limit is self.after.review_limit is None:
                    continue
                counts = (f"{self.count(label, when, verdict)} of {total}" for when in ("before", "after"))
                rows.append((f"{label} images: {verdict}", *counts))  # type: ignore[arg-type]
        lines, changed = aligned(rows), self.changed
        if self.images:
            lines += ["", f"verdicts that change: {len(changed) or 'none'}"]
        lines += [
            f"  {image.before} -> {image.after}: {printable(image.image)} ({image.label}, score {image.score:.4g})"
            for image in changed[:_LISTED]
        ]
        lines += [f"  and {len(changed) - _LISTED} more"] if len(changed) > _LISTED else []
        return "\n".join(map(without_controls, lines))


def _zone_rows(before: Mapping[str, float], after: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """The limits of the zones, of those in use first."""
    return [
        (f"limit in zone {printable(name)}", _or_none(before.get(name)), _or_none(after.get(name)))
        for name in dict.fromkeys((*after, *before))
    ]


def _asked_for(decision: Decision) -> str:
    return "known flaws" if decision.chosen_on_flawed else f"{1000 * decision.target_false_reject_rate:g}"


def _or_none(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _decision_facts(decision: Decision) -> dict[str, Any]:
    return {
        "identity": decision.identity,
        **decision.model_dump(mode="json"),
        **({"zone_limits": decision.zone_limits} if decision.zones else {}),
        "worst_false_reject_rate": decision.worst_false_reject_rate,
        "limit_statement": decision.describe(),
    }


@dataclass(frozen=True)
class _Rates:
    """What the limits aim at; None: as before."""

    reject: float | None
    review: float | None
    budget: float | None
    catch: float | None


def calibrate(
    model: str | Path | Bundle,
    good: str | Path | None = None,
    *,
    out: str | Path | None = None,
    rate: float | str | None = None,
    review_rate: float | str | None = None,
    review_budget: float | None = None,
    roi: str | Path | None = None,
    min_area: float | str | None = None,
    scale: float | str | None = None,
    group: str = "auto",
    repeats: str | None = None,
    flawed: str | Path | None = None,
    catch: float | str | None = None,
    use: str | None = None,
    engine: str | None = None,
    device: str | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> CalibrationResult:
    """Set the limits of a trained model anew, from good images that it did not learn from.

    Settings that are not given stay as they are. The former limits stay in the bundle, up to 20 of them.

    Args:
        model: a model file or a loaded bundle.
        good: a folder of good images, or a CSV table; None: the images behind the limits in use, whose scores the
            bundle holds, for other rates.
        out: where to write the model with the new limits; None: nowhere.
        rate: share of good parts that may be rejected, such as ``"10/1000"`` or 0.01.
        review_rate: share that may be rejected or sent to review.
        review_budget: parts of 1,000 that may be sent to review, beside those rejected.
        roi: a region of interest, and zones that get limits of their own: a JSON file of polygons or a mask image, in
            pixels of the images; ``"none"``: none.
        min_area: the smallest region that counts: pixels, or an area such as ``"0.2mm2"``.
        scale: the side of a pixel, in millimetres or such as ``"50um"``.
        group: what makes groups of the good images; see :func:`flawsmith.data.groups.with_groups`.
        repeats: likewise, what makes several images of the same part: they set a review band of 2 standard deviations
            on either side of the limit, and each part counts once.
        flawed: a folder of images of known flaws, which are counted and do not move the limit.
        catch: share of them that the limit shall reject; they choose the limit then, and it is stamped so.
        use: identity of limits in the bundle that were in use before, to be used again.
        engine: calibrate for another engine.
        device: calibrate for another device, as `Inspector.load` takes it.
        on_step: called after each image.

    Returns:
        The bundle with its new limits, beside the former ones.

    Raises:
        FlawsmithError: for images, files or settings that cannot be used, and for images that the model learned from or
            that stand in its test set.
    """
    bundle = model if isinstance(model, Bundle) else Bundle.load(model)
    target = None if out is None else Path(out)
    grouping = None if group == "auto" else group
    if target is not None:
        _check_target(target, bundle)
    if use is not None:
        settings = {
            "--max-false-rejects": rate,
            "--review-rate": review_rate,
            "--review-budget": review_budget,
            "--roi": roi,
        }
        settings |= {"--min-area": min_area, "--scale": scale, "--repeats": repeats, "--flawed": flawed}
        settings |= {"--catch": catch, "--engine": engine, "--device": device, "--group": grouping, "GOOD": good}
        _refuse_unused(settings, f"--use {use}")
        result = _return_to(bundle, use)
    elif good is None:
        rates = _rates(rate, review_rate, review_budget, catch, flawed, repeats)
        _refuse_unused({"--engine": engine, "--device": device, "--group": grouping})
        needing = [name for name, value in (("--repeats", repeats), ("--flawed", flawed)) if value is not None]
        if needing or all(value is None for value in (*dataclasses.astuple(rates), roi, min_area)):
            asked = f"{needing[0]} needs" if needing else "new limits need"
            raise FlawsmithError(f"{asked} good images that the model did not learn from: give their folder")
        result = _from_stored(bundle, rates, roi, min_area, scale)
    else:
        rates = _rates(rate, review_rate, review_budget, catch, flawed, repeats)
        known_flaws = () if flawed is None else _flawed_images(Path(flawed))
        former = bundle.spec.decision
        if repeats is None:
            _review_alpha(former, former.target_false_reject_rate if rates.reject is None else rates.reject, rates)
        pixel_size = former.pixel_size if scale is None else parse_length(scale, "--scale")
        if min_area is not None:
            parse_area(min_area, pixel_size, "--min-area")
        source = _good_images(Path(good), group, repeats)
        if repeats is not None:
            _refuse_few_repeats(source.samples)
        first = source.samples[0].image
        setting = _setting(bundle.spec.decision, lambda: decode(first).shape, roi, min_area, scale)
        if catch is not None and rate is not None and not setting.zones and review_budget is None:
            raise FlawsmithError("--catch chooses the limit in place of --max-false-rejects: give one of them")
        hidden = known_flaws if catch is not None else ()
        _refuse_known(bundle, source.samples, hidden)
        _refuse_both(source.samples, known_flaws)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the limits are another engine's, which is why they are set anew
            inspector = Inspector.load(bundle, engine=engine, device=device)
        images, levels, of_several = _inspect(inspector, setting, [*source.samples, *known_flaws], on_step)
        result = _calibrated(bundle, inspector, setting, images, levels, rates, source, repeats=repeats is not None)
        if str(roi) == "none" and bundle.spec.geometry.region is not None:
            note = (
                "the model was trained on a region of interest: what lies outside stays unseen until it is trained anew"
            )
            result = dataclasses.replace(result, notes=(*result.notes, note))
        not_seen = (
            left_out_note(left_out([good, *(() if flawed is None else (flawed,))])),
            further_pictures_note([source.name_of(path) for path in of_several[:_NAMED]], len(of_several)),
        )
        result = dataclasses.replace(result, notes=(*result.notes, *filter(None, not_seen)))
    if bundle.spec.variants and not result.bundle.spec.variants:
        note = "the limits of other engines and precisions in the model file were left out: export it with --into again"
        result = dataclasses.replace(result, notes=(*result.notes, note))
    if target is None:
        return result
    content = result.bundle.to_bytes()
    with replacing(target) as temporary:
        temporary.write_bytes(content)
    return dataclasses.replace(result, path=target, bundle=dataclasses.replace(result.bundle, path=target))


def _check_target(path: Path, bundle: Bundle) -> None:
    """Nothing but a former calibration of the same model is replaced."""
    if not path.exists() and not path.is_symlink():
        return
    try:
        same = Bundle.load(path).model == bundle.model
    except FlawsmithError:
        same = False
    if not same:
        raise FlawsmithError(f"{path} exists and is not this model with other limits: give another file with --out")


def _refuse_unused(options: Mapping[str, object], beside: str = "new limits without images") -> None:
    """Options that would be passed over."""
    for name, value in options.items():
        if value is not None:
            raise FlawsmithError(f"{beside}: {name} {value} would change nothing; leave it out")


def _return_to(bundle: Bundle, identity: str) -> CalibrationResult:
    before = bundle.spec.decision
    known = {decision.identity: decision for decision in (*bundle.spec.earlier_decisions, before)}
    if identity not in known:
        raise FlawsmithError(f"the model holds no limits {identity}: it has {', '.join(known)}")
    after = known[identity]
    changed = bundle
    if after != before:
        engine = {
            "engine": after.engine or bundle.spec.engine,
            "precision": after.precision or bundle.spec.precision,
            "device": after.device or "cpu",
        }
        spec = bundle.spec.model_copy(update=engine)
        changed = _with_card(dataclasses.replace(bundle, spec=spec).with_decision(after))
    return CalibrationResult(changed, before, after)


def _from_stored(
    bundle: Bundle, rates: _Rates, roi: str | Path | None, min_area: float | str | None, scale: float | str | None
) -> CalibrationResult:
    """Limits for other rates from the scores of the images behind those in use, for another setting from their maps.

    Raises:
        FlawsmithError: the bundle holds no such scores, or no such maps lie beside it.
    """
    before, arrays = bundle.spec.decision, bundle.calibration
    if not {"good", "good_levels"} <= arrays.keys() or len(arrays["good"]) != before.n_good:
        raise FlawsmithError(
            "the model file does not hold the scores behind its limits: give a folder of good images that the model "
            "did not learn from"
        )
    if before.chosen_on_flawed and rates.reject is None:
        raise FlawsmithError("known flaws chose the limit: add --max-false-rejects to let the good images choose it")
    scores, levels, setting = arrays["good"], _stored_levels(bundle), before
    if roi is not None or min_area is not None or levels is None:
        stored = load_maps(bundle)
        if stored is None or not np.array_equal(stored[0], scores):
            asker = "--roi" if roi is not None else "--min-area" if min_area is not None else "a model with zones"
            raise FlawsmithError(
                f"{asker} needs good images that the model did not learn from, or the {MAPS} of its training beside "
                "the model file: give their folder"
            )
        _, maps, sizes = stored
        setting = _setting(before, lambda: tuple(sizes[0].tolist()), roi, min_area, scale)
        levels = levels_of(bundle, setting, maps, sizes)
    names = [""] * len(scores)
    if "good_groups" in arrays:
        names = [f"group {number}" for number in arrays["good_groups"]]
    alpha = before.target_false_reject_rate if rates.reject is None else rates.reject
    # Files of earlier builds say nothing of groups where known flaws chose the limit, and names are not kept.
    by = "as they were given" if before.groups is None else before.groups.by
    after = setting.recalibrated(
        scores,
        levels,
        alpha=alpha,
        review_alpha=_review_alpha(before, alpha, rates),
        **_tolerances(bundle),
        held_out=before.held_out,
        cross_fitted=before.cross_fitted,
        trimmed=before.trimmed,
    )
    deciding = after.level_of(levels) if after.by_regions else scores
    used = {"engine": before.engine, "precision": before.precision, "device": before.device}
    after = after.model_copy(update={**used, "groups": group_figures(deciding, names, alpha=alpha, by=by)})
    if before.repeat_deviation is not None and after.review_limit is None:
        after = _with_band(after, before.repeat_deviation)
    behind = levels_behind(after, scores, levels)
    behind |= {"good_groups": arrays["good_groups"]} if "good_groups" in arrays else {}
    return CalibrationResult(_with_card(bundle.with_decision(after, behind)), before, after)


def _stored_levels(bundle: Bundle) -> NDArray[np.float64] | None:
    """(n, zones + 1) levels of the images behind the limits in use; None where the zones are not told apart."""
    zones, arrays = bundle.spec.decision.zones, bundle.calibration
    if not zones:
        return np.asarray(arrays["good_levels"], np.float64).reshape(-1, 1)
    levels = arrays.get("good_zone_levels")
    return levels if levels is not None and levels.shape[1:] == (len(zones) + 1,) else None


def levels_behind(
    decision: Decision, scores: NDArray[np.float64], levels: NDArray[np.float64]
) -> dict[str, NDArray[Any]]:
    """The arrays of a bundle with these limits, from (n,) scores and (n, zones + 1) levels."""
    by_zone = {"good_zone_levels": levels} if decision.zones else {}
    return {"good": scores, "good_levels": decision.level_of(levels), **by_zone}


def _tolerances(bundle: Bundle) -> dict[str, float]:
    """What engines may differ by, which is part of every limit of this model."""
    names = {"tolerance": "score_allowed", "map_tolerance": "map_allowed"}
    return {name: bundle.spec.parity.get(allowed, 0.0) for name, allowed in names.items()}


def _with_card(bundle: Bundle) -> Bundle:
    return dataclasses.replace(bundle, card=model_card(bundle.spec))


def _rates(
    rate: float | str | None,
    review_rate: float | str | None,
    review_budget: float | None,
    catch: float | str | None,
    flawed: str | Path | None,
    repeats: str | None,
) -> _Rates:
    """Raises:
    FlawsmithError: one is out of range, or two contradict each other.
    """
    if catch is not None and repeats is not None:
        raise FlawsmithError("--catch chooses the limit and --repeats moves it: give one of them")
    reviews = [
        name
        for name, value in (("--review-rate", review_rate), ("--review-budget", review_budget), ("--repeats", repeats))
        if value is not None
    ]
    if len(reviews) > 1:
        raise FlawsmithError(f"{' and '.join(reviews)} set the review limit in several ways: give one of them")
    if catch is not None and flawed is None:
        raise FlawsmithError("--catch chooses the limit by images of known flaws: add --flawed and their folder")
    if review_budget is not None and not (math.isfinite(review_budget) and 0 < review_budget < 1000):
        raise FlawsmithError(
            f"--review-budget {review_budget:g} is not possible: write parts of 1,000 to look at, such as 40"
        )
    return _Rates(
        None if rate is None else parse_rate(rate, "--max-false-rejects"),
        None if review_rate is None else 0.0 if review_rate == "none" else parse_rate(review_rate, "--review-rate"),
        None if review_budget is None else review_budget / 1000,
        None if catch is None else 1.0 if str(catch).strip() in ("1", "1.0", "100%") else parse_rate(catch, "--catch"),
    )


def _setting(
    former: Decision,
    image_shape: Callable[[], tuple[int, ...]],
    roi: str | Path | None,
    min_area: float | str | None,
    scale: float | str | None,
) -> Decision:
    """The former limits under the new setting, as what `Decision.level` needs."""
    pixel_size = former.pixel_size if scale is None else parse_length(scale, "--scale")
    changes: dict[str, Any] = {"pixel_size": pixel_size, "review_limit": None}
    if min_area is not None:
        changes["minimum_area"] = parse_area(min_area, pixel_size, "--min-area")
    if roi is not None:
        shape = image_shape()
        region: RegionOfInterest | None = None
        zones: tuple[Zone, ...] = ()
        if str(roi) != "none":
            region, zones = read_drawing(Path(roi), (shape[0], shape[1]), pixel_size=pixel_size)
        changes |= {"region_of_interest": region, "zones": zones, "elsewhere": True}
    return former.model_copy(update=changes)


def _good_images(path: Path, group: str, repeats: str | None) -> Dataset:
    """The good images that are given, in groups, or by part.

    Raises:
        FlawsmithError: there are none, or nothing tells their groups.
    """
    dataset = load(path)
    samples = tuple(sample for sample in dataset.samples if sample.label == "good" and sample.split != "test")
    if not samples:
        raise FlawsmithError(f"there are no good images in {path}: give a folder of good images")
    distinct = dataclasses.replace(dataset, samples=_distinct(samples))
    if repeats is None:
        return with_groups(distinct, group)
    if repeats.strip() in ("", "auto", "none"):
        named = " ".join(("--repeats", repeats.strip())).strip()
        raise FlawsmithError(f"{named} does not say which images show the same part: write folder or name:REGEX")
    try:
        return with_groups(distinct, repeats)
    except FlawsmithError as error:
        words = str(error).replace("--group", "--repeats").replace("auto, none, folder", "folder")
        raise FlawsmithError(words.replace(", or --repeats none", "").replace(", did you mean none?", ":")) from None


def _distinct(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Each content once: copies say nothing more about how good images score."""
    by_content = dict(zip(content_hashes([s.image for s in reversed(samples)]), reversed(samples), strict=True))
    return tuple(reversed(by_content.values()))


def _flawed_images(path: Path) -> tuple[Sample, ...]:
    """Raises:
    FlawsmithError: there are none.
    """
    from flawsmith.runtime.files import find_images

    if not path.is_dir():
        raise FlawsmithError(f"there is no folder {path}: --flawed takes a folder of images of known flaws")
    images = find_images(path)
    if not images:
        raise FlawsmithError(f"there are no images in {path}: --flawed takes a folder of images of known flaws")
    for image in images:
        for name in image.relative_to(path).parts[:-1]:
            if meaning(name) == "good" or is_set_apart(name):
                raise FlawsmithError(
                    f"--flawed {path}: {name}/ does not say that its images are flawed; give the others alone"
                )
    return tuple(Sample(image, "test", "flawed", path.name, (), "", "") for image in images)


def _refuse_known(bundle: Bundle, good: Sequence[Sample], choosing: Sequence[Sample]) -> None:
    """Refuse images that say nothing honest: those learned from, and those that the model is tested on."""
    known = {name: _hashes(bundle.calibration.get(f"{name}_sha256")) for name in ("learned", "test")}
    for samples, names in ((good, ("learned", "test")), (choosing, ("test",))):
        digests = content_hashes([sample.image for sample in samples])
        for name in names:
            taken = [s.image for s, digest in zip(samples, digests, strict=True) if digest in known[name]]
            if taken:
                why = "the model learned from it" if name == "learned" else "it stands in the model's test set"
                more = f", and {len(taken) - 1} more of these images like it" if len(taken) > 1 else ""
                raise FlawsmithError(f"{taken[0]}: {why}{more}; limits need other images: leave these out")


def _refuse_both(good: Sequence[Sample], flawed: Sequence[Sample]) -> None:
    """Refuse images that were given as good and as flawed."""
    if not flawed:
        return
    by_content = dict(zip(content_hashes([sample.image for sample in flawed]), flawed, strict=True))
    for sample, digest in zip(good, content_hashes([sample.image for sample in good]), strict=True):
        if digest in by_content:
            other = by_content[digest].image
            twin = "" if other == sample.image else f" as {other}"
            raise FlawsmithError(f"{sample.image} is given as good, and{twin} with --flawed: leave one of them out")


def _hashes(array: NDArray[Any] | None) -> frozenset[str]:
    return frozenset() if array is None else frozenset(row.tobytes().hex() for row in array.astype(np.uint8))


def _inspect(
    inspector: Inspector, setting: Decision, samples: Sequence[Sample], on_step: Callable[[], object]
) -> tuple[list[CheckedImage], NDArray[np.float64], list[Path]]:
    """Score and former verdict of every image, whose level is not known yet, and (n, zones + 1) levels by zone.

    The files that hold further pictures come last.
    """
    images: list[CheckedImage] = []
    levels: list[NDArray[np.float64]] = []
    of_several: list[Path] = []
    for sample, result in zip(samples, inspector.stream([sample.image for sample in samples]), strict=True):
        if isinstance(result, Unreadable):
            raise FlawsmithError(f"{result.error}; or remove it from the images given")
        if result.further_pictures:
            of_several.append(sample.image)
        levels.append(setting.zone_levels(result.map, result.not_inspected))
        name = str(sample.image)
        images.append(CheckedImage(name, sample.label, sample.group, result.score, math.nan, result.verdict))
        on_step()
    return images, np.array(levels), of_several


def _calibrated(
    bundle: Bundle,
    inspector: Inspector,
    setting: Decision,
    images: Sequence[CheckedImage],
    levels: NDArray[np.float64],
    rates: _Rates,
    source: Dataset,
    *,
    repeats: bool,
) -> CalibrationResult:
    good = [image for image in images if image.label == "good"]
    behind = _first_of_each(good) if repeats else list(range(len(good)))
    scores, good_levels = np.array([good[place].score for place in behind], np.float64), levels[behind]
    alpha = setting.target_false_reject_rate if rates.reject is None else rates.reject
    groups = [good[place].group for place in behind]
    after = setting.recalibrated(
        scores,
        good_levels,
        alpha=alpha,
        review_alpha=None if repeats else _review_alpha(setting, alpha, rates),
        **_tolerances(bundle),
    )
    images = [
        dataclasses.replace(i, level=float(level)) for i, level in zip(images, after.level_of(levels), strict=True)
    ]
    good = images[: len(good)]
    deciding = after.level_of(good_levels) if after.by_regions else scores
    if not repeats:
        figures = group_figures(deciding, groups, alpha=alpha, by=source.grouped_by)
        after = after.model_copy(update={"groups": figures})
    if rates.catch is not None:
        after = _catching(after, deciding, [image for image in images if image.label == "flawed"], rates.catch)
    if repeats:
        after = _with_band(after, _repeat_deviation(after, good))
    used: dict[str, Any] = {"engine": inspector.engine.name, "precision": inspector.engine.precision}
    device = inspector.device
    after = after.model_copy(update={**used, "device": None if device == "cpu" else device})
    spec = bundle.spec.model_copy(update={**used, "device": device})
    arrays = levels_behind(after, scores, good_levels)
    if any(groups) and not repeats:
        arrays["good_groups"] = np.unique(groups, return_inverse=True)[1].astype(np.int32).ravel()
    changed = _with_card(dataclasses.replace(bundle, spec=spec).with_decision(after, arrays))
    checked = tuple(
        dataclasses.replace(
            image,
            image=source.name_of(Path(image.image)),
            after=after.verdict_of(image.level if after.by_regions else image.score),
        )
        for image in images
    )
    notes = tuple(note.replace(UNLABELLED, "taken as good") for note in source.notes)
    if "learned_sha256" not in bundle.calibration:
        notes += ("the model file does not say what it learned from: make sure that these images are others",)
    return CalibrationResult(changed, bundle.spec.decision, after, checked, notes)


def _review_alpha(setting: Decision, alpha: float, rates: _Rates) -> float | None:
    """Share of good parts above the review limit."""
    if rates.budget is not None:
        option, share = "--review-budget", alpha + rates.budget
    elif rates.review is not None:
        option, share = "--review-rate", rates.review
    elif setting.target_review_rate is not None:
        option, share = "the model's review rate (--review-rate none drops it)", setting.target_review_rate
    else:
        return None
    if share == 0:
        return None
    if not alpha < share < 1:
        raise FlawsmithError(
            f"{option}: a share of {share:g} above the review limit does not fit {alpha:g} above the reject limit; it "
            "must be larger, and below 1"
        )
    return share


def _first_of_each(images: Iterable[CheckedImage]) -> list[int]:
    """The place of one image of each part: repeats of a part say nothing of other parts."""
    by_part: dict[str, int] = {}
    for place, image in enumerate(images):
        by_part.setdefault(image.group or image.image, place)
    return list(by_part.values())


def _with_band(decision: Decision, deviation: float) -> Decision:
    """The limit with a review band on either side as wide as repeated images of one part scatter."""
    name, half = "map_limit" if decision.by_regions else "limit", REPEAT_DEVIATIONS * deviation
    limit = getattr(decision, name)
    return decision.model_copy(update={name: limit + half, "review_limit": limit - half, "repeat_deviation": deviation})


def _refuse_few_repeats(samples: Sequence[Sample]) -> None:
    """Raises:
    FlawsmithError: too few parts have several images.
    """
    repeated = sum(number > 1 for number in Counter(sample.group for sample in samples if sample.group).values())
    if repeated < _FEWEST_REPEATED:
        raise FlawsmithError(
            f"--repeats: {repeated} parts have several images, at least {_FEWEST_REPEATED} must: take each part two "
            "or three times, with --repeats folder in a folder each"
        )


def _repeat_deviation(decision: Decision, images: Sequence[CheckedImage]) -> float:
    """Standard deviation of the number that decides among images of one part."""
    values = np.array([image.level if decision.by_regions else image.score for image in images], np.float64)
    members = np.unique([image.group or image.image for image in images], return_inverse=True)[1].ravel()
    sizes = np.bincount(members)
    freedom = values.size - sizes.size
    means = np.bincount(members, weights=values) / sizes
    return math.sqrt(float(((values - means[members]) ** 2).sum()) / freedom)


def _catching(decision: Decision, good: NDArray[np.float64], flawed: Sequence[CheckedImage], share: float) -> Decision:
    """The highest limit that rejects a share of the known flaws.

    It lies half way to the next lower score of any image. The false-reject rate of k good images above it has the bound
    of a limit at the (k + 1)-th largest. The limits of zones move by the same amount: where they rise, the rate stays
    what the good images promised before, because the images that set them apart are not given back.
    """
    values = np.sort([image.level if decision.by_regions else image.score for image in flawed])[::-1]
    last_caught = values[math.ceil(share * values.size - 1e-9) - 1]
    below = [value for value in (*good, *values) if value < last_caught]
    limit = (last_caught + max(below)) / 2 if below else last_caught - max(1e-6, 1e-6 * abs(last_caught))
    rank = int((good > limit).sum()) + 1
    if decision.zones:
        rank = max(rank, round(decision.stated_false_reject_rate * (good.size + 1)))
    review = None if decision.review_limit is None else min(decision.review_limit, limit)
    groups = decision.groups  # how often groups were rejected is known of the former limit alone
    if groups is not None:
        groups = groups.model_copy(update={"lowest": None, "highest": None, "mean": None})
    return decision.model_copy(
        update={
            ("map_limit" if decision.by_regions else "limit"): float(limit),
            "review_limit": review,
            "stated_false_reject_rate": rank / (good.size + 1),
            "groups": groups,
            "chosen_on_flawed": True,
        }
    )


def images_for_limits(bundle: Bundle, path: Path) -> Dataset:
    """Good images of a folder that a model did not learn from: those that set its first limits, where they are there.

    Args:
        bundle: the model.
        path: a folder, such as that of the training, or a table.

    Raises:
        FlawsmithError: there are none, or the model learned from one or is tested on it.
    """
    dataset = _good_images(path, "auto", None)
    held_out = _hashes(bundle.calibration.get("held_out_sha256"))
    digests = content_hashes([sample.image for sample in dataset.samples])
    chosen = tuple(s for s, digest in zip(dataset.samples, digests, strict=True) if digest in held_out)
    dataset = dataclasses.replace(dataset, samples=chosen or dataset.samples)
    _refuse_known(bundle, dataset.samples, ())
    return dataset


def limits_of(
    bundle: Bundle, dataset: Dataset, on_step: Callable[[], object] = lambda: None
) -> tuple[Decision, NDArray[np.float64]]:
    """Limits of a model as it computes, for its setting and rates, and the scores of the good images behind them.

    Raises:
        FlawsmithError: an image cannot be inspected, or known flaws chose the model's limit.
    """
    setting = bundle.spec.decision
    if setting.chosen_on_flawed:
        raise FlawsmithError(
            "known flaws chose the limit, and would have to choose it anew: first let good images choose it, with "
            "flawsmith calibrate --max-false-rejects"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inspector = Inspector.load(bundle)
    images, levels, _ = _inspect(inspector, setting, dataset.samples, on_step)
    rates = _Rates(None, None, None, None)
    result = _calibrated(bundle, inspector, setting, images, levels, rates, dataset, repeats=False)
    after = result.after
    if setting.repeat_deviation is not None and after.review_limit is None:
        after = _with_band(after, setting.repeat_deviation)
    return after, np.asarray(result.bundle.calibration["good"], np.float64)
