"""SLSG from scratch: a segmentation network learns simulated anomalies, structural and logical ones.

A flaw is a foreign texture, or a piece of a good image in the wrong place (section 3.3). SegNet reads the encoder's
levels, relates distant places to each other by a graph (SG block, section 3.2), and says of every pixel whether it
belongs to a flaw. L_S (Eq. 11) is the weighted sum of a focal and an L1 loss of its map, and of the maps that it makes
on the way. Preset fast takes a frozen backbone as the encoder; the paper first trains one by painting in what was
hidden (GPT-Net, section 3.1). The equations are in flawsmith/models/slsg/functional.py.

    python examples/slsg_from_scratch.py DATA
"""

from collections.abc import Sequence

import numpy as np
import torch
from images import flawed, normalised, options, read, report

from flawsmith.models import SLSG
from flawsmith.synthesis import AnomalySynthesizer


def main(arguments: Sequence[str] | None = None) -> None:
    args = options(__doc__, arguments, steps=200)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = SLSG.from_preset("fast", backbone="efficientnet_lite0", image_size=args.image_size)
    good = read(args.data / "train" / "good", model.geometry)
    synthesizer = AnomalySynthesizer.from_recipe(model.config.recipe, grid=model.grids[0])

    model.fit_memories(normalised(good, model.geometry).split(args.batch_size))  # not in the paper: how new a place is
    (optimizer,) = model.make_optimizers()
    model.train()
    for step in range(args.steps):
        normal, anomalous, masks = flawed(good, synthesizer, model.geometry, rng, args.batch_size)
        losses = model.losses((torch.cat([normal, anomalous]), torch.cat([torch.zeros_like(masks), masks])))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        if step % 20 == 0:
            print(step, *(f"{name} {value.item():.4f}" for name, value in losses.items()))

    report(model, args.data)


if __name__ == "__main__":
    main()
