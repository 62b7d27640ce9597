"""A table of the solar cells of the elpv data set, as a category to learn from and to test on.

``pip install elpv-dataset`` brings 2,624 electroluminescence images of 300×300 pixels (Buerhop-Lux et al., 2018;
Deitsch et al., 2019; CC BY-NC-SA 4.0), each with the probability that the cell is defective, by two experts. Cells of
probability 0 are good: every fifth is a test image, the others are learned from. Cells of probability 1 are the flawed
test images; those that the experts doubt are left out. There are no masks.

    python benchmarks/solar_cells.py build/elpv/solar_cells
    flawsmith benchmark --plan benchmarks/solar_cells.yaml --jobs 2 --out docs/results/solar_cells
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from common import data_table


def main() -> None:
    """Write the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path, help="where solar_cells.csv is written")
    folder: Path = arguments.parse_args().folder
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise SystemExit("no solar cells: pip install elpv-dataset")
    data = Path(package.origin).parent / "data"
    cells = [line.split() for line in (data / "labels.csv").read_text(encoding="utf-8").splitlines()]
    good = [name for name, probability, _ in cells if float(probability) == 0]
    flawed = [name for name, probability, _ in cells if float(probability) == 1]
    rows = [(name, "good", "train" if number % 5 else "test") for number, name in enumerate(good)]
    rows += [(name, "flawed", "test") for name in flawed]
    data_table(folder / "solar_cells.csv", ((data / name, label, split) for name, label, split in rows))
    print(
        f"{folder / 'solar_cells.csv'}: {sum(split == 'train' for _, _, split in rows)} to learn from, "
        f"{sum(label == 'good' and split == 'test' for _, label, split in rows)} good and {len(flawed)} flawed to test"
    )


if __name__ == "__main__":
    main()
