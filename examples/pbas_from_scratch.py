"""PBAS from scratch: anomalies are made of features alone, on the rays from their centres through good features.

A table of centres is counted from the good features (Algorithm 1). The projector draws good features towards their
nearest centre (L_abl, Eq. 6); an anomaly lies a share of the mean distance further out on the ray from the centre
(Eq. 7); the discriminator tells the two apart (L_n and L_a, Eqs. 8 and 9). The loss is the sum (Eq. 10). The equations
are in flawsmith/models/pbas/functional.py.

    python examples/pbas_from_scratch.py DATA
    python examples/pbas_from_scratch.py DATA --lightning
"""

import sys
from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from images import normalised, options, read, report
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from flawsmith.models import PBAS


def train(model: PBAS, loader: DataLoader[Tensor]) -> None:
    """The plain loop."""
    optimizers = model.make_optimizers()  # one for the projector, one for the discriminator
    model.train()
    for step, images in enumerate(loader):
        losses = model.losses(images)
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses["loss"].backward()
        for optimizer in optimizers:
            optimizer.step()
        if step % 20 == 0:
            print(step, *(f"{name} {value.item():.4f}" for name, value in losses.items()))


def train_with_lightning(model: PBAS, loader: DataLoader[Tensor]) -> None:
    """The same by Lightning, which knows other devices, precisions and loggers."""
    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.fit(model.training_module(), loader)


def main(arguments: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    by_lightning = "--lightning" in words
    args = options(__doc__, [word for word in words if word != "--lightning"], steps=200)
    torch.manual_seed(0)
    model = PBAS.from_preset("fast", backbone="efficientnet_lite0", image_size=args.image_size)
    good = normalised(read(args.data / "train" / "good", model.geometry), model.geometry)
    draws = RandomSampler(good, replacement=True, num_samples=args.steps * args.batch_size)
    loader: DataLoader[Tensor] = DataLoader(good, args.batch_size, sampler=draws)  # type: ignore[arg-type]

    model.fit_centers(good.split(args.batch_size))  # Algorithm 1, with the untrained projector
    (train_with_lightning if by_lightning else train)(model, loader)

    model.fit_scores(good.split(args.batch_size))  # not in the paper: what preset fast adds to the scores
    report(model, args.data)


if __name__ == "__main__":
    main()
