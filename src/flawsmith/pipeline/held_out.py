"""The held-out good images behind a limit: whether their scores belong together, and their maps for other regions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flawsmith.runtime.bundle import Bundle, read_arrays, write_arrays
from flawsmith.runtime.decision import LARGEST_SCORE, Decision
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import replacing
from flawsmith.runtime.image import MAX_PIXELS

FALSE_ALARMS = 0.05
"""Probability that good images whose scores have an exponential tail are called odd; with a normal tail about 0.01."""
_LARGEST_PART = 4
"""At most one in so many is looked for among the odd ones: more of them are no exception."""
_EQUAL = 1e-3
MAPS = "held_out_maps.npz"
LARGEST_MAPS = 2**28
"""Bytes: of more images no maps are kept, and a new region needs the images again."""
_LONGEST_SIDE = 10**6


def odd_scores(scores: ArrayLike) -> int:
    """How many of the highest scores stand apart from the others; mostly none.

    The gap below the r highest scores, times r, is compared with the mean of the gaps next below it, in the upper half
    of the scores, each times the number of scores above it. For an exponential tail these products are independent and
    equally distributed (Rényi 1953), so that their ratio follows an F distribution with 2 and 2m degrees of freedom, m
    being the number of gaps in the mean, and exceeds t with the probability (1 + t/m)^(-m). Lighter tails, as a normal
    one, are called odd less often. Half of the allowed probability goes to r = 1, a quarter to r = 2, and so on.

    Args:
        scores: (n,) image scores of good images that the model did not learn from.

    Example:
        >>> odd_scores([15.2, 15.5, 15.9, 16.6, 36.6]), odd_scores([15.2, 15.5, 15.9, 16.6, 17.5])
        (1, 0)
    """
    ascending = np.sort(np.asarray(scores, np.float64).ravel())
    n = ascending.size
    products = np.arange(n - 1, 0, -1) * np.diff(ascending)
    tried = n // _LARGEST_PART
    for r in range(tried, 0, -1):
        others = products[: n - r - 1][-max(3, n // 2) :]
        if others.size < 2 or not others.any():
            continue
        ratio = products[n - r - 1] / others.mean()
        allowed = FALSE_ALARMS * 0.5**r / (1 - 0.5**tried)
        if (1 + ratio / others.size) ** -others.size < allowed:
            return r
    return 0


def remarks(names: Sequence[str], scores: ArrayLike) -> tuple[str, ...]:
    """What to look at among the held-out images, in sentences; nothing where they are alike."""
    values = np.asarray(scores, np.float64).ravel()
    order = np.argsort(-values, kind="stable")
    if values.size > 1 and np.ptp(values) <= _EQUAL * np.abs(values).max():
        return (
            f"all {values.size} held-out images have nearly the same score, {values[0]:.4g}, as if they were all "
            "black or white: check them with `flawsmith doctor`",
        )
    number = odd_scores(values)
    if not number:
        return ()
    odd, others = order[:number], values[order[number:]]
    listed = " and ".join(filter(None, (", ".join(names[i] for i in odd[:-1]), names[odd[-1]])))
    each = " and ".join(filter(None, (", ".join(f"{values[i]:.3g}" for i in odd[:-1]), f"{values[odd[-1]]:.3g}")))
    verb, these, are = ("scores", "it", "it is") if number == 1 else ("score", "them", "they are")
    return (
        f"held-out {listed} {verb} {each}, the other {len(others)} from {others.min():.3g} to {others.max():.3g}: look "
        f"at {these}; if {are} flawed, remove {these} and train again",
    )


def in_words(scores: ArrayLike) -> str:
    """What the scores behind a limit are like, in a few words.

    Args:
        scores: (n,) image scores of held-out good images, at least one.

    Example:
        >>> in_words([3.0, 1.0, 2.0, 1.5])
        'highest 3, then 2, lowest 1'
        >>> in_words([15.2, 15.5, 15.9, 16.6, 36.6])
        'highest 36.6, then 16.6, lowest 15.2: the highest stands apart, look at its image in report.html'
    """
    descending = np.sort(np.asarray(scores, np.float64).ravel())[::-1]
    if descending.size < 3:
        return ", ".join(f"{value:.4g}" for value in descending)
    text = f"highest {descending[0]:.4g}, then {descending[1]:.4g}, lowest {descending[-1]:.4g}"
    odd = odd_scores(descending)
    if odd == 1:
        return f"{text}: the highest stands apart, look at its image in report.html"
    return f"{text}: the highest {odd} stand apart, look at their images in report.html" if odd else text


def levels_of(
    bundle: Bundle, setting: Decision, maps: NDArray[np.float32], sizes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(n, zones + 1) `Decision.zone_levels` of maps as the network gave them, as if the images were inspected again."""
    geometry = bundle.spec.geometry
    levels = []
    for network_map, (height, width) in zip(maps, sizes.tolist(), strict=True):
        inspected = geometry.valid_mask((height, width))
        not_inspected = None if inspected is None else ~inspected
        levels.append(setting.zone_levels(geometry.invert(network_map, (height, width)), not_inspected))
    return np.array(levels, np.float64)


def save_maps(
    folder: Path,
    model: bytes,
    scores: NDArray[np.float64],
    maps: NDArray[np.float32],
    sizes: NDArray[np.int64],
) -> None:
    """Write the maps beside a model; nothing where they are too many.

    Args:
        model: the ONNX graph that gave them.
        scores: (n,) image scores of the images behind the limits.
        maps: (n, h, w) as the network gave them.
        sizes: (n, 2) height and width of the images.

    Raises:
        FlawsmithError: the file cannot be written.
    """
    if maps.nbytes > LARGEST_MAPS:
        return
    digest = np.frombuffer(hashlib.sha256(model).digest(), np.uint8)
    content = write_arrays({"scores": scores, "maps": maps, "sizes": sizes, "model_sha256": digest})
    with replacing(folder / MAPS) as temporary:
        temporary.write_bytes(content)


def load_maps(bundle: Bundle) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.int64]] | None:
    """Scores, maps and sizes that lie beside a model file; None where there are none of this model.

    Raises:
        FlawsmithError: they are damaged.
    """
    file = None if bundle.path is None else bundle.path.parent / MAPS
    if file is None or not file.is_file():
        return None
    try:
        arrays = read_arrays(file.read_bytes())
        same = arrays.pop("model_sha256").tobytes() == hashlib.sha256(bundle.model).digest()
        _check(**arrays, size=bundle.spec.geometry.size)
    except Exception as error:  # the readers of zip and arrays answer odd bytes with nearly every exception
        raise FlawsmithError(f"{file} is damaged: remove it, and give good images") from error
    return (arrays["scores"], arrays["maps"], arrays["sizes"]) if same else None


def _check(scores: NDArray[Any], maps: NDArray[Any], sizes: NDArray[Any], size: tuple[int, int]) -> None:
    """Raises:
    ValueError: arrays of other shapes, types or values than those of `save_maps`.
    """
    shapes = scores.shape, maps.shape, sizes.shape
    if scores.ndim != 1 or shapes != ((scores.size,), (scores.size, *size), (scores.size, 2)):
        raise ValueError("arrays of other shapes")
    if maps.dtype != np.float32 or sizes.dtype != np.int64:
        raise ValueError("arrays of other types")
    if not ((sizes >= 1) & (sizes <= _LONGEST_SIDE)).all() or (sizes.prod(axis=1) > MAX_PIXELS).any():
        raise ValueError("images of impossible sizes")
    if max(-maps.min(), maps.max()) > LARGEST_SCORE:
        raise ValueError("values beyond those of a score")
