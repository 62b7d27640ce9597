"""From a score and a map to a verdict, and the limits that good images support."""

from __future__ import annotations

import hashlib
import json
import math
import textwrap
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from statistics import NormalDist
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from flawsmith.runtime.devices import DeviceName
from flawsmith.runtime.errors import FlawsmithError, why_refused
from flawsmith.runtime.files import without_controls
from flawsmith.runtime.geometry import InvertedMap
from flawsmith.runtime.regions import Region, find_regions, region_level, strongest_region
from flawsmith.runtime.roi import (
    ELSEWHERE,
    MOST_CORNERS,
    MOST_ZONES,
    RegionOfInterest,
    Zone,
    box_of,
    highest_below,
    number_zones,
    zone_limits,
)

Verdict = Literal["pass", "review", "reject"]

LARGEST_SCORE = 1e30
"""Scores, map values and limits lie within ± this: well within float32, with room to compute."""
_Score = Annotated[FiniteFloat, Field(ge=-LARGEST_SCORE, le=LARGEST_SCORE)]
_Rate = Annotated[FiniteFloat, Field(ge=1e-9, le=1)]
_Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0, le=10**12)]

FEW_GOOD_IMAGES = 20
"""Below this many held-out good images a limit is worth a plain warning."""

CONFIDENCE = 0.95
"""How sure the worst case of a false-reject rate is."""

FEWEST_IN_A_GROUP = 10
"""Images of the smallest group from which on the share rejected of single groups is said."""

_LINE = 100
"""Characters, in two of which a limit is spoken of."""

LARGE_VARIANCE_SHARE = 0.1
"""Between groups: from here on a limit from few of them promises too much for the next one (docs/inspect/limits.md)."""

REPEAT_DEVIATIONS = 2.0
"""Half the width of a review band that repeated images set, in standard deviations: about 95 % of repeats."""

CHOSEN_ON_FLAWED = "CHOSEN ON FLAWED IMAGES: the share of these flaws that is caught says nothing of other flaws."
"""What must stand beside limits that images of known flaws have chosen."""

MOST_COUNTED = 100_000
"""Ranks that are summed over one by one."""


class GroupFigures(BaseModel):
    """What the groups of the images behind a limit say: days, cameras, lots or scenes.

    Images of one group are alike, so that a limit from few groups promises too much for the next one. Each group is
    left out in turn: the limit that the others set rejects some of its images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: str = Field(max_length=200, description="what made the groups, such as sub-folder or date of exposure")
    count: int = Field(ge=1, le=10**9, description="number of groups")
    least_size: _Count = Field(default=0, description="images of the smallest group")
    lowest: _Share | None = Field(default=None, description="least share rejected of a group that was left out")
    highest: _Share | None = Field(default=None, description="largest such share")
    mean: _Share | None = Field(default=None, description="share of all images, each judged by the other groups")
    variance_share: _Share | None = Field(
        default=None, description="share of the variance of the scores' ranks that lies between groups"
    )
    differ: bool = Field(
        default=False, description="whether groups drawn at random differ so much in fewer than 5 of 100 cases"
    )

    def describe(self) -> str:
        """Returns, for people, what is known of the next group, in two lines at most; empty: nothing is."""
        if self.count == 1:
            return f"WARNING: all are of one group ({self.by}): of another day, lot or camera far more may be rejected."
        if self.lowest is None or self.highest is None or self.mean is None:
            return ""
        rejected = f"{parts_of_1000(self.mean)} of 1,000 good images"
        if self.least_size >= FEWEST_IN_A_GROUP:
            span = f"between {parts_of_1000(self.lowest)} and {parts_of_1000(self.highest, up=True)}"
            rejected = f"{span} of 1,000 good images, {parts_of_1000(self.mean)} on average"
        text = f"Each of the {self.count} left out in turn: {rejected} rejected."
        if self.variance_share is not None and self.variance_share >= LARGE_VARIANCE_SHARE and self.differ:
            text += f" WARNING: {self.variance_share:.0%} of what differs lies between groups; only more of them help."
        return text


class Decision(BaseModel):
    """The limits of a model and what they rest on.

    Without a region of interest or a minimum area the image score decides: above ``limit`` is a reject, above
    ``review_limit`` a review. With either of them the map decides: a region above ``map_limit``, inside the
    region of interest and at least as large as the minimum area, is a reject; ``review_limit`` then is a
    limit on the map too. Limits of one setting do not carry over to another: see :meth:`recalibrated`. The area that
    counts there is that of the whole spot above the limit, `Region.spot`, not of the flaw in it.

    Zones have limits of their own: ``map_limit`` plus their offset. One number still decides about an image, the
    largest `level` of a zone less its offset, and ``map_limit`` and ``review_limit`` are limits on that number.

    Example:
        >>> decision = Decision(limit=0.6, map_limit=0.5, stated_false_reject_rate=0.01, n_good=99)
        >>> anomaly_map = np.zeros((20, 30), np.float32)
        >>> anomaly_map[5:8, 10:14] = 0.9
        >>> verdict, regions = decision.decide(0.7, anomaly_map)
        >>> verdict, regions[0].box
        ('reject', (10, 5, 14, 8))
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: _Score = Field(description="an image score above it is a reject")
    map_limit: _Score = Field(description="a map value above it belongs to a region")
    review_limit: _Score | None = Field(default=None, description="above it, at least a review; None: no such verdict")
    region_of_interest: RegionOfInterest | None = Field(default=None, description="where to look; None: everywhere")
    minimum_area: int = Field(
        default=1, ge=1, le=10**12, description="smallest region that counts, pixels of the original image"
    )
    zones: tuple[Zone, ...] = Field(
        default=(), max_length=MOST_ZONES, description="parts of the image with limits of their own"
    )
    elsewhere: bool = Field(default=True, description="whether anything that is inspected lies in no zone")
    pixel_size: float | None = Field(
        default=None, gt=1e-9, le=1e9, allow_inf_nan=False, description="side of a pixel in millimetres; None: unknown"
    )
    target_false_reject_rate: _Rate = Field(
        default=0.01, lt=1, description="alpha: the share of good parts that may be rejected"
    )
    stated_false_reject_rate: _Rate = Field(
        description="the share that the good images support at this limit, in the mean: rank / (n_good + 1)"
    )
    target_review_rate: _Rate | None = Field(
        default=None, lt=1, description="the share of good parts that may lie above the review limit"
    )
    repeat_deviation: float | None = Field(
        default=None,
        ge=0,
        le=LARGEST_SCORE,
        description="standard deviation of the number that decides among images of one part; it sets the review band",
    )
    n_good: _Count = Field(description="good images behind the limits")
    held_out: bool = Field(default=True, description="whether the model did not learn from those images")
    cross_fitted: int | None = Field(
        default=None,
        ge=2,
        le=1000,
        description="models that scored those images, each those it did not learn from; None: the model itself did",
    )
    trimmed: _Count = Field(
        default=0, description="further images, those of the highest scores, that were left out as probably flawed"
    )
    groups: GroupFigures | None = Field(default=None, description="groups of those images; None: none are known")
    engine: Literal["onnxruntime", "openvino"] | None = Field(
        default=None, description="the engine that gave the scores behind the limits; None: that of the bundle"
    )
    precision: Literal["float32", "bfloat16", "float16", "int8"] | None = Field(
        default=None, description="its precision, likewise"
    )
    device: DeviceName | None = Field(default=None, description="where it computed; None: on the CPU")
    chosen_on_flawed: bool = Field(default=False, description="whether images of known flaws chose the limit")
    highest_score: _Score | None = Field(
        default=None, description="the largest image score that the model can give; None: there is no such number"
    )

    @model_validator(mode="after")
    def _check(self) -> Decision:
        if self.review_limit is not None and self.review_limit > self.deciding_limit:
            raise ValueError("review_limit must not exceed the reject limit")
        if len({zone.name for zone in self.zones}) != len(self.zones):
            raise ValueError("two zones have the same name")
        regions = (self.region_of_interest, *(zone.region for zone in self.zones))
        corners = sum(0 if region is None else region.corners for region in regions)
        if corners > MOST_CORNERS:
            raise ValueError(f"the zones have {corners:,} corners together, more than {MOST_CORNERS:,}")
        return self

    @model_serializer(mode="wrap")
    def _with_zones_where_there_are_any(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Without zones or devices the limits are written as before there were any, for programs that know of none.
        content: dict[str, Any] = handler(self)
        if not self.zones:
            content.pop("zones", None)
        if self.elsewhere:
            content.pop("elsewhere", None)
        if self.device is None:
            content.pop("device", None)
        return content

    @property
    def by_regions(self) -> bool:
        """Whether the map's regions decide, not the image score."""
        return self.region_of_interest is not None or self.minimum_area > 1 or bool(self.zones)

    @property
    def deciding_limit(self) -> float:
        """The reject limit on the number that decides: ``map_limit`` where regions decide, else ``limit``."""
        return self.map_limit if self.by_regions else self.limit

    @property
    def zone_limits(self) -> dict[str, float]:
        """The limit on the map by zone, elsewhere included where anything lies there; empty without zones.

        Example:
            >>> seal = Zone(name="seal", region=RegionOfInterest(include=[[(0, 0), (1, 0), (1, 0.5)]]), offset=-0.25)
            >>> Decision(
            ...     limit=0.6, map_limit=0.5, stated_false_reject_rate=0.01, n_good=99, zones=(seal,)
            ... ).zone_limits
            {'seal': 0.25, 'elsewhere': 0.5}
        """
        limits = {zone.name: self.map_limit + zone.offset for zone in self.zones}
        return {**limits, ELSEWHERE: self.map_limit} if limits and self.elsewhere else limits

    @property
    def identity(self) -> str:
        """Twelve hexadecimal digits that name these limits: the same limits have the same name everywhere.

        Example:
            >>> decision = Decision(limit=0.6, map_limit=0.5, stated_false_reject_rate=0.01, n_good=99)
            >>> decision.identity == Decision(**decision.model_dump()).identity
            True
        """
        # Without defaults, so that a field that a later release adds does not rename the limits of today.
        content = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def decide(
        self,
        score: float,
        anomaly_map: NDArray[np.float32] | InvertedMap,
        not_inspected: NDArray[np.bool_] | None = None,
        *,
        cell: float = 1.0,
    ) -> tuple[Verdict, list[Region]]:
        """Decides about one image.

        Args:
            score: image score.
            anomaly_map: (height, width) in pixels of the original image; one on its way there is computed where it
                matters alone.
            not_inspected: (height, width), True where the network saw nothing; None: it saw all.
            cell: pixels of the image by one of the network's input (`Geometry.cell`): how far the map is blurred, which
                the regions are cut by.

        Returns:
            The verdict, and the regions behind it, the strongest first; a pass has none. They lie above ``map_limit``,
            or the limit of their zone, and end where their zone does; those of a review where the map decides lie above
            the review limit. Where the image score decides and the map stays below its limit, the region is the one
            around the map's peak, so that a reject or a review always shows where to look; it is marked as the
            strangest place.

        Raises:
            FlawsmithError: a number is not finite, or the region of interest covers no inspected pixel.
        """
        if isinstance(anomaly_map, InvertedMap):
            extremes = (anomaly_map.lowest, anomaly_map.highest)
        else:
            extremes = (float(anomaly_map.min()), float(anomaly_map.max()))  # what is not a number comes through
        if not all(map(math.isfinite, (score, *extremes))):
            raise FlawsmithError("the model's score or map is not a finite number; train or export the model anew")
        if self.by_regions:
            if regions := self._regions(anomaly_map, self.map_limit, not_inspected, cell):
                return "reject", regions
            if self.review_limit is None:
                return "pass", []
            regions = self._regions(anomaly_map, self.review_limit, not_inspected, cell)
            return ("review" if regions else "pass"), regions
        verdict = self.verdict_of(score)
        if verdict == "pass":
            return verdict, []
        regions = self._regions(anomaly_map, self.map_limit, not_inspected, cell)
        mask = self._mask(anomaly_map.shape, not_inspected)
        if not regions and (mask is None or mask.any()):
            strangest = strongest_region(anomaly_map, mask=mask, cell=cell)
            regions = [strangest.model_copy(update={"strangest_place": True})]
        return verdict, regions

    def _regions(
        self,
        anomaly_map: NDArray[np.float32] | InvertedMap,
        limit: float,
        not_inspected: NDArray[np.bool_] | None,
        cell: float,
    ) -> list[Region]:
        """The regions above a limit on the number that decides, those furthest above it first."""
        if not self.zones:
            mask = self._mask(anomaly_map.shape, not_inspected)
            return find_regions(anomaly_map, limit, minimum_area=self.minimum_area, mask=mask, cell=cell)
        if isinstance(anomaly_map, InvertedMap):
            anomaly_map = anomaly_map.whole()
        regions = []
        for number, name, (rows, columns), mask in self._places(anomaly_map.shape, not_inspected):
            area, offset = self._minimum_areas[number], self._offsets[number]
            inside = find_regions(
                anomaly_map[rows, columns],
                highest_below(limit, offset),
                minimum_area=area,
                mask=mask,
                cell=cell,
            )
            regions += [(region.peak - offset, region.in_zone(name, columns.start, rows.start)) for region in inside]
        return [region for _, region in sorted(regions, key=lambda pair: -pair[0])]

    def verdict_of(self, deciding: float) -> Verdict:
        """The verdict by the one number that decides: the image score, or with regions the `level` of the map.

        Args:
            deciding: that number of an image.

        Example:
            >>> decision = Decision(
            ...     limit=0.6, map_limit=0.5, review_limit=0.4, stated_false_reject_rate=0.01, n_good=99
            ... )
            >>> [decision.verdict_of(score) for score in (0.4, 0.5, 0.7)]
            ['pass', 'review', 'reject']
        """
        if deciding > self.deciding_limit:
            return "reject"
        return "review" if self.review_limit is not None and deciding > self.review_limit else "pass"

    def times_limit(self, deciding: float) -> float | None:
        """The number that decides as a multiple of the reject limit: above 1 is a reject.

        Args:
            deciding: as in `verdict_of`.

        Returns:
            None where the limit is not positive, so that multiples mean nothing.

        Example:
            >>> Decision(limit=4.0, map_limit=2.0, stated_false_reject_rate=0.01, n_good=99).times_limit(6.0)
            1.5
        """
        return deciding / self.deciding_limit if self.deciding_limit > 0 else None

    def level(self, anomaly_map: NDArray[np.float32], not_inspected: NDArray[np.bool_] | None = None) -> float:
        """Returns the number to calibrate ``map_limit`` with: the map's maximum, under this setting.

        A map has a region that counts exactly when ``map_limit`` is below this level.

        Args:
            anomaly_map: (height, width) in pixels of the original image.
            not_inspected: (height, width), True where the network saw nothing; None: it saw all.

        Raises:
            FlawsmithError: the region of interest covers no inspected pixel.
        """
        return float(self.level_of(self.zone_levels(anomaly_map, not_inspected)))

    def zone_levels(
        self, anomaly_map: NDArray[np.float32], not_inspected: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:
        """Returns the numbers to calibrate the limits of zones with: the map's maximum in each, under this setting.

        Args:
            anomaly_map: (height, width) in pixels of the original image.
            not_inspected: (height, width), True where the network saw nothing; None: it saw all.

        Returns:
            (zones + 1,), the last elsewhere; offsets count nothing yet. Where no region can be as large as the smallest
            area, the lowest number that there is: every limit passes.

        Raises:
            FlawsmithError: as `level`.
        """
        if not self.zones:
            mask = self._mask(anomaly_map.shape, not_inspected)
            return np.maximum([region_level(anomaly_map, minimum_area=self.minimum_area, mask=mask)], -LARGEST_SCORE)
        levels = np.full(len(self.zones) + 1, -LARGEST_SCORE)
        for number, _, box, mask in self._places(anomaly_map.shape, not_inspected):
            level = region_level(anomaly_map[box], minimum_area=self._minimum_areas[number], mask=mask)
            levels[number] = max(level, -LARGEST_SCORE)
        return levels

    def level_of(self, zone_levels: NDArray[np.float64]) -> NDArray[np.float64]:
        """The numbers that decide, of maps with these levels in their zones.

        Args:
            zone_levels: (..., zones + 1) as `zone_levels` gives them.

        Returns:
            (...): the largest level less the zone's offset.
        """
        reachable = np.where(zone_levels > -LARGEST_SCORE, zone_levels - np.array(self._offsets), -LARGEST_SCORE)
        return np.asarray(np.clip(reachable.max(axis=-1), -LARGEST_SCORE, LARGEST_SCORE), np.float64)

    @property
    def _offsets(self) -> tuple[float, ...]:
        return (*(zone.offset for zone in self.zones), 0.0)

    @property
    def _minimum_areas(self) -> tuple[int, ...]:
        return (*(zone.minimum_area or self.minimum_area for zone in self.zones), self.minimum_area)

    def zone_numbers(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Which zone of an image each pixel is in; see :func:`flawsmith.runtime.roi.number_zones`.

        Args:
            size: (height, width) of the image, pixels.
        """
        return number_zones(tuple(zone.region for zone in self.zones), self.region_of_interest, size)

    def _places(
        self, shape: tuple[int, ...], not_inspected: NDArray[np.bool_] | None
    ) -> Iterator[tuple[int, str, tuple[slice, slice], NDArray[np.bool_]]]:
        """Number, name, box and mask within the box of each zone that has a pixel, elsewhere last."""
        size = (shape[0], shape[1])
        numbers, is_empty = self.zone_numbers(size), True
        everywhere = (slice(0, size[0]), slice(0, size[1]))
        boxes = (*((zone.name, box_of(zone.region, size)) for zone in self.zones), (ELSEWHERE, everywhere))
        for number, (name, box) in enumerate(boxes):
            mask = numbers[box] == number
            if not_inspected is not None:
                np.greater(mask, not_inspected[box], out=mask)  # "and not", without a copy of what is not inspected
            if mask.any():
                is_empty = False
                yield number, name, box, mask
        if is_empty:
            raise _nothing_inspected(size)

    def recalibrated(
        self,
        scores: Sequence[float] | NDArray[np.floating],
        levels: Sequence[float] | NDArray[np.floating],
        **changes: Any,
    ) -> Decision:
        """New limits under this setting, from other good images.

        Args:
            scores: (n,) their image scores.
            levels: (n,) the `level` of their maps under this setting; with zones (n, zones + 1), their `zone_levels`.
            **changes: arguments of :func:`choose_limits`, such as ``alpha``.

        Raises:
            FlawsmithError: as :func:`choose_limits`.

        Example:
            >>> decision = Decision(limit=0.6, map_limit=0.5, stated_false_reject_rate=0.01, n_good=99)
            >>> scores = np.linspace(0, 1, 199)
            >>> round(decision.recalibrated(scores, scores, alpha=0.05).limit, 3)
            0.955
        """
        kept = {
            "alpha": self.target_false_reject_rate,
            "region_of_interest": self.region_of_interest,
            "minimum_area": self.minimum_area,
            "zones": self.zones,
            "review_alpha": self.target_review_rate,
            "pixel_size": self.pixel_size,
            "highest_score": self.highest_score,
        }
        return choose_limits(scores, levels, **{**kept, **changes})

    @property
    def worst_false_reject_rate(self) -> float:
        """The share of good parts that the limit rejects at worst, 95 % sure; see :meth:`worst_rate_at`.

        Example:
            >>> decision = Decision(limit=0.6, map_limit=0.5, stated_false_reject_rate=2 / 201, n_good=200)
            >>> round(decision.worst_false_reject_rate, 4)
            0.0235
        """
        return self.worst_rate_at(self._limit_rank)

    def worst_rate_at(self, rank: int) -> float:
        """What a limit at another of the good images rejects at worst, with a confidence of 95 %.

        Where the images are of several groups, the bound is that of a group that the limit does not know.

        Args:
            rank: from 1, the good image that scores highest.

        Example:
            >>> days = GroupFigures(by="day", count=5, variance_share=0.1)
            >>> decision = Decision(limit=0.6, map_limit=0.5, stated_false_reject_rate=2 / 201, n_good=200, groups=days)
            >>> [round(1000 * decision.worst_rate_at(rank)) for rank in (1, 2)]
            [33, 57]
        """
        if not 1 <= rank <= self.n_good:
            return 1.0
        alike, groups = worst_rate(rank, self.n_good), self.groups
        if groups is None or groups.count < 2 or groups.variance_share is None:
            return alike
        return max(alike, worst_rate_of_new_group(rank, self.n_good, groups.count, groups.variance_share))

    @property
    def worst_rate_alike(self) -> float:
        """What the limit rejects at worst of parts of the same groups, 95 % sure; see :func:`worst_rate`."""
        return worst_rate(self._limit_rank, self.n_good) if self._limit_rank <= self.n_good else 1.0

    @property
    def _limit_rank(self) -> int:
        """Which of the good images sets the limit, from 1, the highest; beyond their number: none can."""
        return max(1, round(self.stated_false_reject_rate * (self.n_good + 1)))

    @property
    def promise(self) -> str:
        """How many good parts of 1,000 the limit rejects, in the mean and at worst, in words.

        Example:
            >>> Decision(limit=0.6, map_limit=0.5, stated_false_reject_rate=2 / 201, n_good=200).promise
            'about 10 of 1,000; 95 % sure: no more than 24'
        """
        if not self.held_out:
            return "unknown: the model learned from the images behind it"
        return f"about {promise_in_words(self.stated_false_reject_rate, self.worst_false_reject_rate)}"

    def describe(self) -> str:
        """Returns, for people, how much the limits are worth: two lines of 100 characters.

        Further lines are what must stand beside them: that known flaws chose them, or that they reject nothing.

        Example:
            >>> print(Decision(limit=0.6, map_limit=0.5, stated_false_reject_rate=2 / 201, n_good=200).describe())
            The limit rejects about 10 of 1,000 good parts; 95 % sure: no more than 24. It rests on 200 good images not
            learned from. 95 % sure of 10 of 1,000 takes 299 such images.
        """
        images = "1 good image" if self.n_good == 1 else f"{self.n_good:,} good images"
        if not self.held_out:
            return (
                f"WARNING: the reject limit rests on {images} that the model learned from too. It is a guess: check "
                "verdicts by eye and calibrate with other good images."
            )
        limit = f"limits of {len(self.zone_limits)} zones together reject" if self.zones else "limit rejects"
        mean, bound = parts_of_1000(self.stated_false_reject_rate), _bound(self.worst_false_reject_rate)
        if self._tells_groups_apart:
            bound += f" in a new group, {parts_of_1000(self.worst_rate_alike, up=True)} in these"
        sentences = [f"The {limit} about {mean} of 1,000 good parts; {bound}."]
        if self.n_good < FEW_GOOD_IMAGES:
            sentences.append(f"WARNING: it rests on only {images}{self._origin()}; check by eye.")
        else:
            sentences.append(f"It rests on {images}{self._origin()}.")
            if self.groups is not None and self.groups.count == 1:
                sentences.append("WARNING: of another group far more may be rejected.")
        if self.review_limit is not None and self.repeat_deviation is not None:
            band = f"{self.review_limit:.4g} to {self.deciding_limit:.4g}"
            sentences.append(f"Parts from {band} go to review.")
        elif self.review_limit is not None and self.target_review_rate is not None:
            share = (self.n_good + 1 - _rank(self.n_good, self.target_review_rate)) / (self.n_good + 1)
            more = max(0.0, share - self.stated_false_reject_rate)
            sentences.append(f"About {parts_of_1000(more)} more go to review.")
        text, advice = " ".join(sentences), self._advice()
        if not _fits(text) and self.groups is not None:
            text = text.replace(f" ({without_controls(self.groups.by)})", "")
        lines = [f"{text} {advice}" if advice and _fits(f"{text} {advice}") else text]
        lines += [CHOSEN_ON_FLAWED] if self.chosen_on_flawed else []
        if self.rejects_nothing:
            lines.append(
                "WARNING: a good image scores as high as this model can score, so that no image is rejected; train "
                "with --set scale=logit."
            )
        return "\n".join(lines)

    @property
    def _tells_groups_apart(self) -> bool:
        """Whether the worst case is that of a group that the limit does not know."""
        return self.worst_false_reject_rate > self.worst_rate_alike

    def _origin(self) -> str:
        """Of what groups the good images are, and who scored them."""
        words = ""
        if self.groups is not None:
            number = "one group" if self.groups.count == 1 else f"{self.groups.count} groups"
            words = f" of {number} ({without_controls(self.groups.by)})"
        if self.cross_fitted is not None:
            words += f", scored by {self.cross_fitted} models of the others"
        elif self.groups is None and self.n_good >= FEW_GOOD_IMAGES:
            words += " not learned from"
        if self.trimmed:
            rank = round(self.stated_false_reject_rate * (self.n_good + 1)) + self.trimmed
            rate = parts_of_1000(rank / (self.n_good + self.trimmed + 1))
            words += f"; {self.trimmed} higher left out as flawed (if good: about {rate})"
        return words

    def _advice(self) -> str:
        """What would prove the rate that was asked for; empty where it is proven, or known flaws chose the limit."""
        target, fewest = self.target_false_reject_rate, max(1, len(self.zone_limits))
        if self.chosen_on_flawed or self.worst_false_reject_rate <= target:
            return ""
        asked, (expected, proven) = f"{parts_of_1000(target)} of 1,000", images_needed(target, rank=fewest)
        rank = self._sure_rank(target)
        if rank >= fewest:
            return f"95 % sure of {asked}: ask for {_rounded_down(rank / (self.n_good + 1))}."
        if self._tells_groups_apart:
            return f"Only more groups prove {asked}."
        if self.stated_false_reject_rate > target:
            return f"{asked} takes {expected:,} such images, {proven:,} to be 95 % sure."
        return f"95 % sure of {asked} takes {proven:,} such images."

    def _sure_rank(self, rate: float) -> int:
        """The largest rank at which a limit does not reject more than a rate at worst; 0: there is none."""
        return bisect_right(range(1, sure_rank(rate, self.n_good) + 1), rate, key=self.worst_rate_at)

    @property
    def rejects_nothing(self) -> bool:
        """Whether the limit lies at or above the largest score that there can be."""
        return not self.by_regions and self.highest_score is not None and self.limit >= self.highest_score

    def _mask(self, size: tuple[int, ...], not_inspected: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """(height, width), True where the map counts; None: everywhere."""
        if self.region_of_interest is None:
            return None if not_inspected is None else ~not_inspected
        mask = self.region_of_interest.to_mask((size[0], size[1]))
        if not_inspected is not None:
            mask = mask & ~not_inspected
        if not mask.any():
            raise _nothing_inspected(size)
        return mask


def _nothing_inspected(size: tuple[int, ...]) -> FlawsmithError:
    return FlawsmithError(f"the region of interest covers no inspected pixel of {size[1]} x {size[0]}; enlarge it")


def choose_limits(
    scores: Sequence[float] | NDArray[np.floating],
    map_maxima: Sequence[float] | NDArray[np.floating],
    *,
    alpha: float = 0.01,
    tolerance: float = 0.0,
    map_tolerance: float = 0.0,
    review_alpha: float | None = None,
    region_of_interest: RegionOfInterest | None = None,
    minimum_area: int = 1,
    zones: Sequence[Zone] = (),
    pixel_size: float | None = None,
    held_out: bool = True,
    cross_fitted: int | None = None,
    trimmed: int = 0,
    groups: GroupFigures | None = None,
    highest_score: float | None = None,
) -> Decision:
    """Sets the limits from good images that training never saw.

    The limit is the k-th smallest of the n scores, k = ceil((n + 1)(1 − alpha)), plus the tolerance: a good
    part drawn like them exceeds it with a probability of at most (n + 1 − k)/(n + 1) ≤ alpha (split conformal
    prediction: Vovk, Gammerman, Shafer 2005). Where k > n the maximum is taken, and 1/(n + 1) is what it
    supports. ``map_limit`` comes from the maxima in the same way.

    With zones a good part exceeds any of their limits with that probability (:func:`flawsmith.runtime.roi.\
equivalent_blocks`). Each zone takes an image, so that n + 1 − k is their number at least. The review limit is the
    order statistic of the number that decides, the offsets being fixed: that goes on cutting off blocks, one number's
    now, so that its promise is exact too.

    Args:
        scores: (n,) image scores of good images, as the inspector gives them.
        map_maxima: (n,) largest values of their maps in original pixels; with a region of interest or a
            minimum area, `Decision.level` under that setting; with zones (n, zones + 1), `Decision.zone_levels`.
        alpha: target false-reject rate, between 0 and 1.
        tolerance: added to the limit on the score: by how much two engines may differ.
        map_tolerance: added to the limit on the map.
        review_alpha: sets ``review_limit`` likewise, on the number that decides; above alpha.
        zones: parts of the image that get limits of their own; their offsets are set anew.
        region_of_interest, minimum_area, pixel_size, cross_fitted, trimmed, groups, highest_score: go into the
            decision.
        held_out: whether the images were kept out of training; goes into the decision.

    Raises:
        FlawsmithError: no scores, not as many maxima, numbers that are not finite, rates or another number out of
            range, fewer images than zones, or a zone in which nothing can be rejected.

    Example:
        >>> scores = np.linspace(0, 1, 99)
        >>> decision = choose_limits(scores, scores, alpha=0.05)
        >>> round(decision.limit, 3), decision.stated_false_reject_rate
        (0.959, 0.05)
    """
    score_array, maxima = np.asarray(scores, np.float64).ravel(), np.asarray(map_maxima, np.float64)
    if not zones:
        maxima = maxima.reshape(-1, 1)
    elif maxima.ndim != 2 or maxima.shape[1] != len(zones) + 1:
        raise FlawsmithError(
            f"{len(zones)} zones take levels of the shape (images, {len(zones) + 1}), not {maxima.shape}; give "
            "Decision.zone_levels of every map"
        )
    _check_calibration(score_array, maxima, alpha, review_alpha)
    n = score_array.size
    rank = n + 1 - _rank(n, alpha)
    if zones:
        map_limit, offsets, rank, elsewhere = zone_limits(
            maxima, tuple(zone.name for zone in zones), rank, -LARGEST_SCORE
        )
        zones = [zone.model_copy(update={"offset": offset}) for zone, offset in zip(zones, offsets, strict=True)]
    else:
        map_limit, elsewhere = _largest(maxima, rank), True
    try:
        decision = Decision(
            limit=_largest(score_array, rank) + tolerance,
            map_limit=map_limit + map_tolerance,
            region_of_interest=region_of_interest,
            minimum_area=minimum_area,
            zones=tuple(zones),
            elsewhere=elsewhere,
            pixel_size=pixel_size,
            target_false_reject_rate=alpha,
            stated_false_reject_rate=rank / (n + 1),
            target_review_rate=review_alpha,
            n_good=n,
            held_out=held_out,
            cross_fitted=cross_fitted,
            trimmed=trimmed,
            groups=groups,
            highest_score=highest_score,
        )
    except ValidationError as error:
        fault = error.errors()[0]
        raise FlawsmithError(f"no limits: {why_refused(fault, '.'.join(map(str, fault['loc'])))}") from None
    if review_alpha is None:
        return decision
    by_regions = decision.by_regions
    deciding = decision.level_of(maxima) if by_regions else score_array
    review_limit = _largest(deciding, n + 1 - _rank(n, review_alpha)) + (map_tolerance if by_regions else tolerance)
    # Zones may take more images than the reviews may.
    return decision.model_copy(update={"review_limit": min(review_limit, decision.deciding_limit)})


def _largest(values: NDArray[np.float64], rank: int) -> float:
    """The largest value of rank 1, the next of rank 2 and so on."""
    return float(np.sort(values, axis=None)[values.size - rank])


def _check_calibration(
    score_array: NDArray[np.float64], maxima: NDArray[np.float64], alpha: float, review_alpha: float | None
) -> None:
    n = score_array.size
    if n == 0:
        raise FlawsmithError("limits need at least one held-out good image; add good images")
    if len(maxima) != n:
        raise FlawsmithError(f"{n} scores but {len(maxima)} map maxima; give one of each for every image")
    if (maxima <= -LARGEST_SCORE).all(axis=1).any():
        raise FlawsmithError(
            "the smallest area is larger than what is inspected of an image, so that nothing could be rejected: give a "
            "smaller --min-area"
        )
    if not (np.isfinite(score_array).all() and np.isfinite(maxima).all()):
        raise FlawsmithError("a calibration score is not a finite number; train or export the model anew")
    if not 0 < alpha < 1:
        raise FlawsmithError(f"the false-reject rate must lie between 0 and 1, not {alpha}")
    if review_alpha is not None and not alpha < review_alpha < 1:
        raise FlawsmithError(f"the review rate must lie between {alpha} and 1, not {review_alpha}")


def _rank(n: int, alpha: float) -> int:
    """k = ceil((n + 1)(1 − alpha)), at most n and at least 1."""
    # The last digit of a float such as 3/41 must not cost a rank.
    return max(1, min(n, math.ceil((n + 1) * (1 - _exact(alpha)) - Fraction(1, 10**9))))


def _exact(alpha: float) -> Fraction:
    # (99 + 1)(1 − 0.01) is 99.00000000000001 in floats of another order of operations; the decimal that was
    # typed is meant.
    return Fraction(repr(float(alpha)))


@lru_cache(maxsize=4096)
def worst_rate(rank: int, n: int, confidence: float = CONFIDENCE) -> float:
    """The false-reject rate that a limit does not exceed, with some confidence.

    The limit is the ``rank``-th largest of ``n`` good scores. Over all calibrations with parts like these, the share of
    good parts above it follows Beta(rank, n + 1 − rank), or lies below where scores are tied. Its quantile is where a
    binomial count of n falls below the rank with a probability of 1 − confidence; it is counted here, because the
    inspection machine has no scipy.

    Args:
        rank: from 1, the largest, to n.
        n: good images behind the limit.
        confidence: between 0 and 1.

    Returns:
        A rate between 0 and 1.

    Raises:
        ValueError: the rank does not lie between 1 and n.

    Source:
        Vovk, Conditional validity of inductive conformal predictors, ACML 2012, Prop. 2.

    Example:
        >>> [round(1000 * worst_rate(rank, 200)) for rank in (1, 2, 10)]
        [15, 23, 77]
    """
    if not 1 <= rank <= n:
        raise ValueError(f"the rank must lie between 1 and {n}, not {rank}")
    if rank > MOST_COUNTED:  # with fewer images of the same share the bound is wider, so it holds
        rank, n = MOST_COUNTED, n * MOST_COUNTED // rank
    counts = np.arange(rank)
    ways = np.cumsum(np.log((n - counts[1:] + 1) / counts[1:]))  # of choosing 1, 2, ... of n, as logarithms
    ways = np.concatenate([[0.0], ways])
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return high
        below = np.exp(ways + counts * math.log(middle) + (n - counts) * math.log1p(-middle)).sum()
        low, high = (middle, high) if below > 1 - confidence else (low, middle)


@lru_cache(maxsize=4096)
def worst_rate_of_new_group(rank: int, n: int, groups: int, share: float, confidence: float = CONFIDENCE) -> float:
    """The false-reject rate that a limit does not exceed in a group that it does not know, with some confidence.

    Scores are taken for normal once ranked, with a group's mean drawn anew for each group: of n images in groups of
    about one size a ``share`` of the variance was found to lie between groups. How far apart groups are is known from
    ``groups`` means alone, so that the spread of the means follows a scaled chi-squared law with ``groups`` − 1
    degrees of freedom; what lies within groups explains a part of it. The new group's mean is drawn with that spread,
    and the limit's place from Beta(rank, n + 1 − rank), the law of :func:`worst_rate`.

    Args:
        rank: from 1, the largest, to n.
        n: good images behind the limit.
        groups: their groups, at least 2.
        share: of the variance of ranks, between groups; in [0, 1].
        confidence: between 0 and 1.

    Returns:
        A rate between 0 and 1.

    Raises:
        ValueError: the rank does not lie between 1 and n, or there are fewer than two groups.

    Source:
        Searle, Casella, McCulloch, Variance Components, 1992, ch. 3: the one-way random model.

    Example:
        >>> [round(1000 * worst_rate_of_new_group(2, 200, groups, 0.1)) for groups in (2, 5, 20)]
        [596, 57, 39]
    """
    if not 1 <= rank <= n:
        raise ValueError(f"the rank must lie between 1 and {n}, not {rank}")
    if groups < 2:
        raise ValueError("what a new group may bring takes two groups at least")
    size, freedom = n / groups, groups - 1
    if share >= 1:
        return 1.0
    ratio = (1 + (size - 1) * share) / (1 - share)  # of the mean squares between and within groups
    within = (n - 1) / (freedom * ratio + max(n - groups, 1))  # variance, that of all images being 1
    logarithms = np.linspace(-40.0, math.log(freedom + 100), 4001)
    chi_squared = np.exp(_quantiles(logarithms, freedom / 2 * logarithms - np.exp(logarithms) / 2))
    of_means = freedom * ratio * within / size / chi_squared
    shift = np.sqrt(np.maximum(of_means - within / size, 0) + of_means / groups)[:, None]
    if rank > _MOST_RANKS:  # with fewer images of the same share the bound is wider, so it holds
        rank, n = _MOST_RANKS, n * _MOST_RANKS // rank
    log_odds = np.log(rank / (n + 1 - rank)) + np.linspace(-20.0, 20.0, 4001) / math.sqrt(min(rank, n + 1 - rank))
    rates = _quantiles(log_odds, rank * log_odds - (n + 1) * np.logaddexp(0, log_odds))
    place = -np.array([_NORMAL.inv_cdf(1 / (1 + math.exp(-odds))) for odds in rates])
    low, high = -8.0, 8.0  # of the rate, as a quantile of the normal law
    for _ in range(40):
        middle = (low + high) / 2
        above = _normal_cdf(-(place + math.sqrt(within) * middle) / shift).mean()
        low, high = (middle, high) if above > 1 - confidence else (low, middle)
    return _NORMAL.cdf(high)


_NORMAL = NormalDist()
_MOST_RANKS = 1000
_GRID = np.linspace(-8.0, 8.0, 4001)
_NORMAL_CDF = np.array([_NORMAL.cdf(value) for value in _GRID])


def _normal_cdf(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """To six digits, of many values at once."""
    return np.interp(values, _GRID, _NORMAL_CDF)


def _quantiles(values: NDArray[np.float64], log_density: NDArray[np.float64]) -> NDArray[np.float64]:
    """(100,) the quantiles at 0.005, 0.015 and so on of a density known on an even grid."""
    cumulative = np.cumsum(np.exp(log_density - log_density.max()))
    return np.interp((np.arange(100) + 0.5) / 100, cumulative / cumulative[-1], values)


def sure_rank(rate: float, n: int) -> int:
    """The largest rank whose limit does not reject more than a rate, 95 % sure; 0: there is none.

    Args:
        rate: between 0 and 1.
        n: good images behind the limit.

    Example:
        >>> sure_rank(0.01, 298), sure_rank(0.01, 299), sure_rank(0.01, 1000)
        (0, 1, 5)
    """
    most = min(n, math.ceil(rate * (n + 1)), MOST_COUNTED)
    return bisect_right(range(1, most + 1), rate, key=lambda rank: worst_rate(rank, n))


def images_needed(rate: float, *, rank: int = 1) -> tuple[int, int]:
    """Held-out good images that a false-reject rate takes: in the mean, and to be 95 % sure.

    Args:
        rate: the target, between 0 and 1.
        rank: of the limit, from 1, the largest score; zones take an image each.

    Example:
        >>> images_needed(0.01), images_needed(0.01, rank=3)
        ((99, 299), (299, 628))
    """
    in_the_mean = math.ceil(rank / _exact(rate)) - 1
    if rank == 1:
        return in_the_mean, math.ceil(math.log1p(-CONFIDENCE) / math.log1p(-rate) - 1e-9)
    most = max(rank, in_the_mean)
    while worst_rate(rank, most) > rate:
        most *= 2
    images = range(rank, most)
    return in_the_mean, rank + bisect_left(images, True, key=lambda n: worst_rate(rank, n) <= rate)


def promise_in_words(expected: float, worst: float) -> str:
    """Both numbers of a false-reject rate, in parts of 1,000.

    Args:
        expected: in the mean.
        worst: with 95 % confidence.

    Example:
        >>> promise_in_words(0.01, 0.0236)
        '10 of 1,000; 95 % sure: no more than 24'
        >>> promise_in_words(0.01, 1.0)
        '10 of 1,000; at worst all of them'
    """
    return f"{parts_of_1000(expected)} of 1,000; {_bound(worst)}"


def _bound(worst: float) -> str:
    at_most = parts_of_1000(worst, up=True)
    return "at worst all of them" if at_most == "1,000" else f"{100 * CONFIDENCE:.0f} % sure: no more than {at_most}"


def _fits(text: str) -> bool:
    return len(textwrap.wrap(text, _LINE)) <= 2


def _rounded_down(rate: float) -> str:
    """Parts of 1,000, so that a limit for them is not below the one for the rate."""
    return f"{math.floor(1e5 * rate) / 100 or 1000 * rate:.4g}"


def parts_of_1000(rate: float, *, up: bool = False) -> str:
    """A rate as parts of 1,000: whole ones from ten on, one decimal below.

    Args:
        rate: between 0 and 1.
        up: round up, for a bound.

    Example:
        >>> parts_of_1000(0.0123), parts_of_1000(0.00512, up=True)
        ('12', '5.2')
    """
    parts = 1000 * rate
    digits = 0 if parts >= 9.95 else 1 if parts >= 0.95 else 2
    rounded = math.ceil(parts * 10**digits - 1e-9) / 10**digits if up else round(parts, digits)
    return f"{rounded:,.{digits}f}".rstrip("0").rstrip(".") if digits else f"{rounded:,.0f}"
