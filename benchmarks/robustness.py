"""Good test parts photographed a little otherwise: how many does a model reject at its stored limit?

A part on another day is lit, placed and stored a little differently, and still good. Models that a benchmark trained are
given the good test images of their category as they are and changed; the limit stays.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from common import page, parser, table
from numpy.typing import NDArray
from PIL import Image

from flawsmith import Inspector
from flawsmith.data.layouts import load
from flawsmith.runtime.image import as_8_bit, decode
from flawsmith.synthesis.views import View

Picture = NDArray[np.uint8]
PIXELS = 2 / 256
"""Two pixels of a network's input of 256, as a share."""
COLUMNS = ("category", "method", "models", "good images", "promised", "at worst", "as they are")


def seen(view: View) -> Callable[[Picture], Picture]:
    return lambda image: (view.of(image / np.float32(255)) * 255).round().astype(np.uint8)


def stored_as_jpeg(image: Picture) -> Picture:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file).convert("RGB"))


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "exposure ×0.8": seen(View(exposure=0.8)),
    "×1.25": seen(View(exposure=1.25)),
    "2 px right": seen(View(shift=(PIXELS, 0.0))),
    "2 px up": seen(View(shift=(0.0, -PIXELS))),
    "2° left": seen(View(degrees=2.0)),
    "2° right": seen(View(degrees=-2.0)),
    "JPEG 90": stored_as_jpeg,
}


def rejected(inspector: Inspector, images: list[Picture], change: Callable[[Picture], Picture]) -> float:
    return float(np.mean([inspector.inspect(change(image)).is_rejected for image in images]))


def models_of(runs: Path) -> Iterator[tuple[str, str, Path, Path]]:
    """Category, method, data folder and model file of every finished run of a benchmark."""
    for record in sorted(runs.glob("*/result.json")):
        cell = json.loads(record.read_text(encoding="utf-8"))["cell"]
        file = next(record.parent.glob("**/model.flaw"), None)
        if file is not None:
            yield cell["category"], cell["method"], Path(cell["data"]), file


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("runs", nargs="+", type=Path, help="folders runs/ of benchmarks, with their model files")
    options = arguments.parse_args()
    figures: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for runs in options.runs:
        for category, method, folder, file in models_of(runs):
            inspector = Inspector.load(file)
            images = [as_8_bit(decode(sample.image)) for sample in load(folder).test_good]
            decision = inspector.decision
            promise = [len(images), decision.stated_false_reject_rate, decision.worst_false_reject_rate]
            rates = [rejected(inspector, images, change) for change in (lambda image: image, *CHANGES.values())]
            figures[category, method].append([*promise, *rates])
    rows = [
        (*key, len(runs), int(runs[0][0]), *(f"{1000 * rate:.0f}" for rate in np.mean(runs, axis=0)[1:]))
        for key, runs in sorted(figures.items())
    ]
    text = (
        "Rejected at the stored limit, in parts of 1,000 good test images, means over the models (seeds). The changed images are those of the test set; no model was "
        "trained or calibrated on them.\n\n" + table((*COLUMNS, *CHANGES), rows)
    )
    page("robustness.md", "Good parts of another day", text, options)


if __name__ == "__main__":
    main()
