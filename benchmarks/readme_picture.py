"""The picture of the README: a flawed part of the demo, and the heat map of the model that the demo trained.

Run `make demo` first; the rendered parts prove nothing about accuracy, they show what a user gets.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
from PIL import Image

from flawsmith import Inspector

GAP = 12


def main() -> None:
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("--demo", type=Path, default=Path("demo"), help="folder of the demo")
    arguments.add_argument("--image", default="parts/bracket/test/dent/000.png", help="image, relative to the demo")
    arguments.add_argument("--out", type=Path, default=Path("docs/images/heatmap.png"))
    args = arguments.parse_args()
    photo = args.demo / args.image
    result = Inspector.load(args.demo / "run" / "model.flaw").inspect(photo)
    pictures = [np.asarray(Image.open(photo).convert("RGB")), np.asarray(result.overlay())]
    gap = np.full((pictures[0].shape[0], GAP, 3), 255, np.uint8)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.hstack([pictures[0], gap, pictures[1]])).save(args.out, optimize=True)
    print(f"{args.out}: score {result.score:.2f}, limit {result.decision.limit:.2f}, {result.verdict}")


if __name__ == "__main__":
    main()
