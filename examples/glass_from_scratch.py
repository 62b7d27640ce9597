"""GLASS from scratch: a discriminator learns the border of good features from two kinds of anomalies.

Global anomalies are good features that Gaussian noise and gradient ascent (Eq. 1) have moved to where the
discriminator errs most, held within two radii by a truncated projection (Eq. 2). Local anomalies are good images with a
texture blended in where Perlin noise says (Eqs. 3 and 4). The loss (Eq. 8) is the sum of three: good features are to be
0 (L_n, Eq. 5), global anomalies 1 (L_gas, Eq. 6), and of the flawed images the hard positions what their mask says
(L_las, Eq. 7). The equations are in flawsmith/models/glass/functional.py.

    python examples/glass_from_scratch.py DATA
"""

from collections.abc import Sequence

import numpy as np
import torch
from images import flawed, normalised, options, read, report

from flawsmith.models import GLASS
from flawsmith.synthesis import AnomalySynthesizer


def main(arguments: Sequence[str] | None = None) -> None:
    args = options(__doc__, arguments, steps=200)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = GLASS.from_preset("fast", backbone="efficientnet_lite0", image_size=args.image_size)
    good = read(args.data / "train" / "good", model.geometry)
    synthesizer = AnomalySynthesizer.from_recipe("glass", foreground="auto", grid=model.grid)
    batches = normalised(good, model.geometry).split(args.batch_size)

    model.fit_center(batches)  # section 3.2: the mean feature of every position
    optimizers = model.make_optimizers()  # one for the feature adaptor, one for the discriminator
    model.train()
    for step in range(args.steps):
        losses = model.losses(flawed(good, synthesizer, model.geometry, rng, args.batch_size))
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses["loss"].backward()
        for optimizer in optimizers:
            optimizer.step()
        if step % 20 == 0:
            print(step, *(f"{name} {value.item():.4f}" for name, value in losses.items()))

    model.fit_scores(batches)  # not in the paper: what preset fast adds, a memory bank of good features
    report(model, args.data)


if __name__ == "__main__":
    main()
