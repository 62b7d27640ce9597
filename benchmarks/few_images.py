"""How well do a few good images decide?

Again and again a few good images of a real set are drawn, a model is trained on them alone, and its verdicts on the
whole test set count: flaws missed and good parts rejected at the stored limit, beside what the limit promised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from common import VERDICT_ALONE, category_folder, data_table, page, parser, table, trained_model

from flawsmith import Inspector, evaluate
from flawsmith.data.layouts import load
from flawsmith.data.samples import Dataset
from flawsmith.data.splits import content_hash

COLUMNS = ("method", "good images", "image AUROC", "promised", "at worst", "given", "flaws missed")


def few_of(dataset: Dataset, size: int, draw: int, file: Path) -> Path:
    """A table of some good images to learn from and of all test images, written to a file."""
    good = {content_hash(sample.image): sample.image for sample in dataset.good_train}
    images = [good[digest] for digest in sorted(good)]
    drawn = np.random.default_rng((draw, size)).permutation(len(images))[:size]
    tested = [(sample.image, str(sample.label), "test") for sample in dataset.test]
    return data_table(file, [*((images[row], "good", "train") for row in drawn), *tested])


def rows_of(
    category: str, methods: Sequence[str], sizes: Sequence[int], draws: int, work: Path
) -> Iterator[tuple[object, ...]]:
    dataset = load(category_folder(category))
    for size in sizes:
        for method in methods:
            figures = []
            for draw in range(draws):
                name = f"{category}-{method}-{size}-{draw}"
                data = few_of(dataset, size, draw, work / f"{category}-{size}-{draw}.csv")
                inspector = Inspector.load(
                    trained_model(data, name, work, method, settings={**VERDICT_ALONE.get(method, {})})
                )
                evaluation, decision = evaluate(inspector, data, n_resamples=0), inspector.spec.decision
                figures.append(
                    (
                        evaluation.image_auroc,
                        decision.stated_false_reject_rate,
                        decision.worst_false_reject_rate,
                        evaluation.false_reject_rate,
                        evaluation.miss_rate,
                    )
                )
            auroc, *rates, missed = np.mean(np.array(figures, np.float64), axis=0)
            parts = (f"{1000 * rate:.0f}" for rate in rates)
            yield method, size, f"{auroc:.3f}", *parts, f"{100 * missed:.0f} %"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sets", nargs="+", default=["screw", "juice_bottle"])
    arguments.add_argument("--methods", nargs="+", default=["fusion", "patchcore"])
    arguments.add_argument("--sizes", nargs="+", type=int, default=[5, 10, 20, 50])
    arguments.add_argument("--draws", type=int, default=2)
    arguments.add_argument("--work", type=Path, default=Path("runs/few_images"))
    options = arguments.parse_args()
    sections = [
        f"Means over {options.draws} draws of so many good images; preset `fast`; rates in parts of 1,000 good parts, "
        "over the whole test set of each. Fusion's student is left nearly untrained here: verdicts do not depend on it."
    ]
    for category in options.sets:
        rows = rows_of(category, options.methods, options.sizes, options.draws, options.work)
        sections += [f"## {category}", table(COLUMNS, rows)]
    page("few_images", "Few good images", sections, write=options.write)


if __name__ == "__main__":
    main()
