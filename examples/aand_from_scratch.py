"""AAND from scratch: a teacher that amplifies anomalies, and a student that never saw one.

Stage 1 trains residual amplifiers on the frozen teacher with synthetic flaws: a gate learns which cells are anomalous
(focal loss), a generator learns residuals that move their features away from those of normal cells (L_A); L_1 is
their weighted sum. Stage 2 trains a student to reconstruct what the advanced teacher makes of good images (L_2:
distillation, and the same of the hardest positions). Where both differ, by the cosine distance at every position, is
what neither has learned: a flaw. The equations are in flawsmith/models/aand/functional.py.

    python examples/aand_from_scratch.py DATA
"""

from collections.abc import Sequence

import numpy as np
import torch
from images import flawed, normalised, options, read, report
from torch import Tensor
from torch.optim import Optimizer

from flawsmith.models import AAND
from flawsmith.synthesis import AnomalySynthesizer


def update(losses: dict[str, Tensor], optimizer: Optimizer, step: int) -> None:
    optimizer.zero_grad()
    losses["loss"].backward()
    optimizer.step()
    if step % 20 == 0:
        print(step, *(f"{name} {value.item():.4f}" for name, value in losses.items()))


def main(arguments: Sequence[str] | None = None) -> None:
    args = options(__doc__, arguments, steps=100)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = AAND.from_preset("fast", backbone="efficientnet_lite0", image_size=args.image_size)
    good = read(args.data / "train" / "good", model.geometry)
    synthesizer = AnomalySynthesizer.from_recipe("aand", foreground="auto", grid=model.grids[0])
    images = normalised(good, model.geometry)

    model.train()
    (optimizer,) = model.make_amplification_optimizers()
    for step in range(args.steps):  # stage 1: anomaly amplification
        _, anomalous, masks = flawed(good, synthesizer, model.geometry, rng, args.batch_size)
        update(model.amplification_losses((anomalous, masks)), optimizer, step)

    (optimizer,) = model.make_optimizers()
    for step in range(args.steps):  # stage 2: normality distillation, on good images alone
        drawn = torch.from_numpy(rng.integers(len(images), size=args.batch_size))
        update(model.losses(images[drawn]), optimizer, step)

    model.fit_scores(images.split(args.batch_size))  # not in the paper: what preset fast adds to the scores
    report(model, args.data)


if __name__ == "__main__":
    main()
