"""PaDiM from scratch: what good parts show at a position is a Gaussian, and a flaw is far from its mean.

Nothing is trained. Mean and covariance of some channels of the backbone's features are counted at every position over
the good images (Eq. 1); the map is the Mahalanobis distance to them (Eq. 2). The equations are in
flawsmith/models/padim/functional.py.

    python examples/padim_from_scratch.py DATA
"""

from collections.abc import Sequence

from images import normalised, options, read, report

from flawsmith.models import PaDiM


def main(arguments: Sequence[str] | None = None) -> None:
    args = options(__doc__, arguments, steps=0)
    model = PaDiM.from_preset("fast", backbone="efficientnet_lite0", image_size=args.image_size)
    good = normalised(read(args.data / "train" / "good", model.geometry), model.geometry)

    model.fit(good.split(args.batch_size))
    print(f"{model.mean.shape[1]} Gaussians of {model.count} channels")

    report(model, args.data)


if __name__ == "__main__":
    main()
