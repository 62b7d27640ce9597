"""Whether parts still are as they were: a test that may be read after every part, and charts that say what moved.

**The test.** A part's score is ranked among the good images behind the limit and all parts up to itself, ties broken at
random. While all of them come from one source in no particular order (exchangeable), these ranks are uniform and
independent of each other, whatever the law of the scores is: given which scores there are up to a part, each is equally
likely to be the latest, and what came before says nothing of which one was. A gambler who bets against that has, in the
mean, no more after any number of parts than before. By Ville's inequality the chance that a stake of 1 ever becomes
1,000 is at most 1 in 1,000, however long the line runs and however often someone looks. Against a fixed set of good
images alone ranks are not independent, and the bound does not hold.

**Bounded memory.** Scores are rounded to 15 bits behind the leading one before anything else. A fixed function of each
score keeps scores exchangeable, and what falls together is a tie like any other: the bound is exact, with the counts of
a grid in place of all scores.

**Bets.** On small and on large ranks, by the powers eps p^(eps - 1). A bet that begins with the first part has lost
nearly all when the parts change after thousands that did not. So a part of the stake is laid aside for a beginning at
each part to come: a sum of gamblers who begin at times that were fixed beforehand is a gambler. One number a power, the
sum over all beginnings so far, is all that has to be kept.

**Selection.** Flawed parts are no drift, so that rejected parts are left out. Then good images above the limit have to
be left out too, and so does whatever lies on it, as the limit is the score of one of the good images: given the limit,
the images below it are as if drawn from the law of good parts below it, and so are parts below it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

ALARM = 1000.0
"""Evidence at which there is an alarm: at most 1 of so many stable runs ever reaches it."""
Direction = Literal["higher", "lower"]
"""Where the scores went."""

_POWERS = np.array([0.2, 0.4, 0.6, 0.8])
_LATENESS = 0.25
"""The share of the stake that is laid aside after n parts is (n + 1) to the minus this."""
_LOW_BITS = 12
_GRID_BITS = 24


class RankCounts:
    """How many scores lie below, and how many on, a score: exact on a grid, in a time that no number of scores changes.

    Scores are rounded to the upper 24 bits of a float32, a relative step of 1 in 32,768. Memory is 32 KiB for each
    doubling of the scores' size, 8 at the least, at most 128 MiB.

    Args:
        scores: to begin with.

    Example:
        >>> counts = RankCounts([1.0, 2.0, 2.0, 5.0])
        >>> counts.below_and_on(2.0), len(counts)
        ((1, 2), 4)
    """

    def __init__(self, scores: ArrayLike = ()) -> None:
        self._sums = np.zeros(1 << (_GRID_BITS - _LOW_BITS), np.int64)
        self._cells: dict[int, NDArray[np.int64]] = {}
        self._size = 0
        for score in np.asarray(scores, np.float64).ravel():
            self.add(float(score))

    def __len__(self) -> int:
        return self._size

    def add(self, score: float) -> None:
        """Count another score."""
        high, low = divmod(_cell(score), 1 << _LOW_BITS)
        if high not in self._cells:
            self._cells[high] = np.zeros(1 << _LOW_BITS, np.int64)
        self._cells[high][low] += 1
        self._sums[high] += 1
        self._size += 1

    def below_and_on(self, score: float) -> tuple[int, int]:
        """Numbers of scores below and in the grid's cell of a score."""
        high, low = divmod(_cell(score), 1 << _LOW_BITS)
        below = int(self._sums[:high].sum())
        cells = self._cells.get(high)
        return (below, 0) if cells is None else (below + int(cells[:low].sum()), int(cells[low]))


def _cell(score: float) -> int:
    """The number of a score's cell, which rises with the score: the order of floats is that of their bits."""
    (bits,) = struct.unpack("<I", struct.pack("<f", score + 0.0))  # -0 becomes 0
    ordered = bits ^ 0xFFFFFFFF if bits >> 31 else bits | 0x80000000
    return ordered >> (32 - _GRID_BITS)


class DriftTest:
    """A conformal test martingale: bets that scores stay exchangeable, for higher and for lower scores at once.

    Args:
        reference: scores of good images to compare with, below the limit alone; may be empty.

    Source:
        Vovk, Nouretdinov and Gammerman, Testing exchangeability on-line, ICML 2003 (ranks, mixture of powers). The
        stake for later beginnings is ours.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> test = DriftTest(rng.normal(size=200))
        >>> for number in range(300):
        ...     _ = test.add(rng.normal() + (number >= 200), rng.random(), number)
        >>> test.evidence > ALARM, test.direction, 195 <= test.since <= 205
        (True, 'higher', True)
    """

    def __init__(self, reference: ArrayLike = ()) -> None:
        self._counts = RankCounts(reference)
        self._aside = 1.0
        shape = (2, _POWERS.size)
        self._stakes = np.full(shape, -np.inf)  # logarithms, by direction and power
        self._share = math.log(1.0 / (2 * _POWERS.size))
        self._sums = np.zeros(shape)  # of log bets since they last were worth nothing together: CUSUM
        self._begun = np.zeros(shape, np.int64)
        self.parts = 0

    def add(self, score: float, tie: float, number: int) -> float:
        """Look at another part.

        Args:
            score: the number that decides, of a part below the limit.
            tie: drawn from (0, 1), whatever the score; breaks ties.
            number: of the part, in which `since` is told.

        Returns:
            The part's p-value: the share of scores above it, uniform on (0, 1) without drift.
        """
        self._counts.add(score)
        below, on = self._counts.below_and_on(score)
        n = len(self._counts)
        p = (n - below - on + tie * on) / n
        bets = np.log(_POWERS) + np.multiply.outer(np.log([p, (below + (1 - tie) * on) / n]), _POWERS - 1)
        left = (self.parts + 2.0) ** -_LATENESS
        self._stakes = np.logaddexp(self._stakes, math.log(self._aside - left) + self._share) + bets
        self._aside = left
        is_new = self._sums <= 0
        self._begun[is_new] = number
        self._sums = np.where(is_new, 0.0, self._sums) + bets
        self.parts += 1
        return float(p)

    @property
    def log_evidence(self) -> float:
        """The natural logarithm of `evidence`."""
        return float(np.logaddexp(np.logaddexp.reduce(self._stakes, axis=None), math.log(self._aside)))

    @property
    def evidence(self) -> float:
        """What a stake of 1 has become: below 1 nothing speaks for drift, at `ALARM` it is taken for certain."""
        return math.exp(min(self.log_evidence, 690.0))

    @property
    def direction(self) -> Direction:
        """Where the scores went, if anywhere."""
        higher, lower = np.logaddexp.reduce(self._stakes, axis=1)
        return "higher" if higher >= lower else "lower"

    @property
    def since(self) -> int:
        """The number of the part with which the change most likely began: where the best bet began to win for good."""
        row = 0 if self.direction == "higher" else 1
        return int(self._begun[row, int(self._sums[row].argmax())])


STATISTICS = ("brightness", "contrast", "sharpness", "saturation")
"""What `image_statistics` measures."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_LARGEST_SIDE = 256


def thinned(pixels: NDArray[Any]) -> NDArray[Any]:
    """Every second, third ... pixel of a larger picture, so that its statistics cost the same as those of a small one.

    Args:
        pixels: (3, height, width).

    Example:
        >>> thinned(np.zeros((3, 1000, 600))).shape
        (3, 250, 150)
    """
    step = max(1, -(-max(pixels.shape[1:]) // _LARGEST_SIDE))
    return pixels[:, ::step, ::step]


def image_statistics(pixels: NDArray[np.float32]) -> dict[str, float]:
    """Cheap facts about a picture that may explain why scores move.

    Args:
        pixels: (3, height, width) RGB in 0..1, thinned where it is larger than 256 pixels a side.

    Returns:
        ``brightness`` (mean luma), ``contrast`` (its standard deviation), ``sharpness`` (mean absolute difference of
        neighbours) and ``saturation`` (mean difference of the largest and the smallest channel), each of 0..1.

    Example:
        >>> image_statistics(np.full((3, 8, 8), 0.5, np.float32))
        {'brightness': 0.5, 'contrast': 0.0, 'sharpness': 0.0, 'saturation': 0.0}
    """
    planes = np.ascontiguousarray(thinned(pixels))
    luma = np.tensordot(_LUMA, planes, axes=1)
    across, down = (float(np.abs(np.diff(luma, axis=axis)).mean()) if luma.shape[axis] > 1 else 0.0 for axis in (0, 1))
    red, green, blue = planes
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    values = (luma.mean(), luma.std(), (across + down) / 2, spread.mean())
    return {name: round(float(value), 5) for name, value in zip(STATISTICS, values, strict=True)}


class Movement(NamedTuple):
    """Where a statistic is now.

    Attributes:
        name: of the statistic.
        learned: its mean over the first parts.
        now: its mean of late.
        deviations: how far its moving average is from the learned mean, in standard deviations of that average.
        moved: whether that is beyond the chart's limits.
        since: number of the part from which on it has been on that side; None: it has not moved.
    """

    name: str
    learned: float
    now: float
    deviations: float
    moved: bool
    since: int | None

    @property
    def words(self) -> str:
        """Such as ``brightness -9 %``."""
        if abs(self.learned) < 1e-4:
            return f"{self.name} {self.learned:.3g} -> {self.now:.3g}"
        return f"{self.name} {100 * (self.now / self.learned - 1):+.0f} %"


class StatisticsChart:
    """Exponentially weighted moving averages (EWMA) of image statistics against those of the first parts.

    Its limits are those of independent parts, which a line's are not quite: it explains an alarm, and gives none.

    Args:
        first: parts that are learned from.
        weight: of the latest part in the average.
        width: limits in standard deviations of the average.

    Source:
        Roberts, Control chart tests based on geometric moving averages, Technometrics 1959.

    Example:
        >>> chart = StatisticsChart(first=50)
        >>> rng = np.random.default_rng(0)
        >>> for number in range(150):
        ...     chart.add({"brightness": 0.5 * (0.91 if number >= 100 else 1) + 0.01 * rng.normal()}, number)
        >>> [movement.words for movement in chart.movements() if movement.moved]
        ['brightness -9 %']
    """

    def __init__(self, *, first: int = 100, weight: float = 0.05, width: float = 4.0) -> None:
        self._first, self._weight, self._width = first, weight, width
        self._parts = 0
        self._names: tuple[str, ...] = ()
        self._mean = self._squares = self._average = self._out = self._total = np.zeros(0)
        self._side = self._begun = np.zeros(0, np.int64)

    @property
    def is_ready(self) -> bool:
        """Whether the first parts were learned from."""
        return self._parts >= self._first

    def add(self, statistics: Mapping[str, float], number: int) -> None:
        """Look at another part.

        Args:
            statistics: by name; the names are those of the first part.
            number: of the part, in which `Movement.since` is told.
        """
        if not self._names:
            self._names = tuple(statistics)
            zeros = np.zeros(len(self._names))
            self._mean, self._squares, self._average, self._out, self._total = (zeros.copy() for _ in range(5))
            self._side, self._begun = np.zeros(zeros.size, np.int64), np.full(zeros.size, number)
        values = np.array([statistics.get(name, math.nan) for name in self._names])
        if np.isnan(values).any():  # written by a release that measures others
            return
        self._parts += 1
        if self._parts <= self._first:
            delta = values - self._mean
            self._mean = self._mean + delta / self._parts
            self._squares = self._squares + delta * (values - self._mean)
            self._average = self._mean.copy()
            return
        self._average = self._average + self._weight * (values - self._average)
        side = np.sign(self._average - self._mean).astype(np.int64)
        self._begun[side != self._side] = number
        self._side = side
        is_out = np.abs(self._deviations()) > self._width
        self._out = np.where(is_out, self._out + 1, 0)
        self._total = np.where(is_out, self._total + values, 0.0)

    def _deviations(self) -> NDArray[np.float64]:
        # What never changed in the first parts, as the saturation of grey ones, may do so by an eighth of a grey level.
        spread = np.maximum(np.sqrt(self._squares / max(1, self._first - 1)), 1e-3 * np.abs(self._mean) + 5e-4)
        share = self._weight / (2 - self._weight) + 1 / self._first  # the learned mean is uncertain too
        return np.asarray((self._average - self._mean) / (spread * math.sqrt(share)))

    def movements(self) -> list[Movement]:
        """Each statistic, those furthest off first; none before the first parts were learned from."""
        if not self.is_ready:
            return []
        movements = []
        for place, (name, deviations) in enumerate(zip(self._names, self._deviations(), strict=True)):
            count, moved = self._out[place], abs(deviations) > self._width
            now = self._total[place] / count if count else self._average[place]
            begun = int(self._begun[place]) if moved else None
            movements.append(
                Movement(name, float(self._mean[place]), float(now), float(deviations), bool(moved), begun)
            )
        return sorted(movements, key=lambda movement: -abs(movement.deviations))


_TAIL = 0.00135


def count_limits(n: int, hits: float, misses: float, *, tail: float = _TAIL) -> tuple[int, int]:
    """Between which numbers the count of n parts lies, if their rate is as uncertain as Beta(hits, misses).

    Args:
        n: parts.
        hits, misses: parameters of the rate's law, above 0: for a limit at the r-th largest of m good scores r and
            m + 1 - r; for a history of x in m parts x + 1/2 and m - x + 1/2. In the mean, hits / (hits + misses).
        tail: the chance to lie beyond either side, at most; by default that of three standard deviations.

    Returns:
        The smallest and the largest count within (beta-binomial law).

    Example:
        >>> count_limits(500, 1, 99)
        (0, 35)
    """
    k = np.arange(n)
    steps = np.log((n - k) / (k + 1.0)) + np.log((k + hits) / (n - k - 1.0 + misses))
    first = math.lgamma(n + misses) - math.lgamma(misses) - math.lgamma(n + hits + misses) + math.lgamma(hits + misses)
    chances = np.exp(first + np.concatenate([[0.0], np.cumsum(steps)]))
    below, above = np.cumsum(chances), np.cumsum(chances[::-1])[::-1]
    return int((below <= tail).sum()), int(n - (above <= tail).sum())


class RejectGroup(NamedTuple):
    """A group of parts that came one after the other.

    Attributes:
        number: of its last part.
        rejects: of its parts.
        lower, upper: counts that its own history allows; None: there is none yet.
    """

    number: int
    rejects: int
    lower: int | None
    upper: int | None


class RejectChart:
    """A p-chart: rejects of groups of parts, against what was promised and against the first groups.

    Limits are exact for a rate that is known only as well as images or parts tell it. A group in 700 lies above them
    without any change, so that the chart explains, and alarms nobody.

    Args:
        rate: promised in the mean.
        good_images: that the promise rests on.

    Attributes:
        size: parts of a group: 5 rejects are expected in one, as promised.
        promised: the largest count that the promise allows.
        groups: the latest groups.

    Example:
        >>> chart = RejectChart(0.01, 299)
        >>> for number in range(1000):
        ...     chart.add(number % 50 == 0, number)
        >>> chart.size, chart.promised, [group.rejects for group in chart.groups]
        (500, 21, [10, 10])
    """

    FIRST_GROUPS = 10
    MOST_GROUPS = 400

    def __init__(self, rate: float, good_images: int) -> None:
        self.rate = min(max(rate, 1e-4), 0.5)
        self.size = min(max(math.ceil(5 / self.rate), 50), 1000)
        hits = max(self.rate * (good_images + 1), 0.5)
        self.promised = count_limits(self.size, hits, max(good_images + 1 - hits, 0.5))[1]
        self.groups: list[RejectGroup] = []
        self.open_parts = self.open_rejects = 0
        self._first: list[int] = []
        self._limits: tuple[int, int] | tuple[None, None] = (None, None)

    def add(self, is_rejected: bool, number: int) -> None:
        """Look at another part that was judged."""
        self.open_parts += 1
        self.open_rejects += is_rejected
        if self.open_parts < self.size:
            return
        self.groups.append(RejectGroup(number, self.open_rejects, *self._limits))
        del self.groups[: -self.MOST_GROUPS]
        if len(self._first) < self.FIRST_GROUPS:
            self._first.append(self.open_rejects)
            if len(self._first) == self.FIRST_GROUPS:
                rejects = sum(self._first)
                self._limits = count_limits(self.size, rejects + 0.5, self.FIRST_GROUPS * self.size - rejects + 0.5)
        self.open_parts = self.open_rejects = 0


def p_histogram(p_values: Sequence[float], bins: int = 20) -> list[int]:
    """Counts of p-values in equal bins of 0..1: about as many in each without drift."""
    return np.histogram(p_values, bins, (0.0, 1.0))[0].tolist()
