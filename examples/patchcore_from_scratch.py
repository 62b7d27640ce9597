"""PatchCore from scratch: a part is as anomalous as its strangest patch is far from all patches of good parts.

Nothing is trained. A patch is the mean of a neighbourhood of backbone features; the memory is a coreset of the patches
of all good images, chosen so that every patch has a near one in it; the map holds the distance of every patch to its
nearest in the memory. The equations are in flawsmith/models/patchcore/functional.py.

    python examples/patchcore_from_scratch.py DATA
"""

from collections.abc import Sequence

from images import normalised, options, read, report

from flawsmith.models import PatchCore


def main(arguments: Sequence[str] | None = None) -> None:
    args = options(__doc__, arguments, steps=0)
    model = PatchCore.from_preset("fast", backbone="efficientnet_lite0", image_size=args.image_size)
    good = normalised(read(args.data / "train" / "good", model.geometry), model.geometry)

    model.fit(good.split(args.batch_size))
    print(f"{len(model.memory)} patches in the memory")

    report(model, args.data)


if __name__ == "__main__":
    main()
