"""Good test parts photographed a little otherwise: how many does a model reject at its stored limit?

A part on another day is lit, placed, photographed and stored a little differently, and still good. A model of each
method is given the good test images as they are and changed; the limit stays.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from common import VERDICT_ALONE, category_folder, page, parser, table, trained_model
from numpy.typing import NDArray
from PIL import Image

from flawsmith import Inspector
from flawsmith.data.layouts import load
from flawsmith.runtime.image import as_8_bit, decode
from flawsmith.synthesis.views import View

Picture = NDArray[np.uint8]
PIXELS = 2 / 256
"""Two pixels of a network's input of 256, as a share."""
COLUMNS = ("category", "method", "good images", "promised", "at worst")


def seen(view: View) -> Callable[[Picture], Picture]:
    return lambda image: (view.of(image / np.float32(255)) * 255).round().astype(np.uint8)


def stored_as_jpeg(image: Picture) -> Picture:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file).convert("RGB"))


def with_noise(image: Picture) -> Picture:
    """Of one grey level, the same for images of one size."""
    noise = np.random.default_rng(0).normal(0, 1, image.shape)
    return np.clip((image + noise).round(), 0, 255).astype(np.uint8)


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "as they are": lambda image: image,
    "exposure ×0.8": seen(View(exposure=0.8)),
    "×1.25": seen(View(exposure=1.25)),
    "2 px right": seen(View(shift=(PIXELS, 0.0))),
    "2 px up": seen(View(shift=(0.0, -PIXELS))),
    "2° left": seen(View(degrees=2.0)),
    "2° right": seen(View(degrees=-2.0)),
    "JPEG 90": stored_as_jpeg,
    "noise": with_noise,
}


def share_rejected(inspector: Inspector, images: Sequence[Picture], change: Callable[[Picture], Picture]) -> float:
    return float(np.mean([inspector.inspect(change(image)).verdict == "reject" for image in images]))


def rows_of(category: str, methods: Sequence[str], work: Path) -> Iterator[tuple[object, ...]]:
    folder = category_folder(category)
    images = [as_8_bit(decode(sample.image), None) for sample in load(folder).test_good]
    for method in methods:
        settings = {**VERDICT_ALONE.get(method, {})}
        file = trained_model(folder, f"{category}-{method}", work, method, settings=settings)
        inspector = Inspector.load(file)
        decision = inspector.spec.decision
        rates = [share_rejected(inspector, images, change) for change in CHANGES.values()]
        promise = [decision.stated_false_reject_rate, decision.worst_false_reject_rate]
        yield category, method, len(images), *(f"{1000 * rate:.0f}" for rate in (*promise, *rates))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sets", nargs="+", default=["screw", "juice_bottle", "magnetic_tile"])
    arguments.add_argument("--methods", nargs="+", default=["fusion", "patchcore"])
    arguments.add_argument("--work", type=Path, default=Path("runs/robustness"))
    options = arguments.parse_args()
    rows = [row for category in options.sets for row in rows_of(category, options.methods, options.work)]
    sections = [
        "Rejected at the stored limit, in parts of 1,000 good test images; seed 0, preset `fast`. The changed images "
        "are those of the test set; nothing was trained or calibrated on them. Noise is of one grey level. "
        "Fusion's student is left nearly untrained here: verdicts do not depend on it.",
        table((*COLUMNS, *CHANGES), rows),
    ]
    page("robustness", "Good parts of another day", sections, write=options.write)


if __name__ == "__main__":
    main()
