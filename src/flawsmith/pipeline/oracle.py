"""The oracle's view of a data set: its labelled test images at the network's input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from flawsmith.data.samples import Dataset
from flawsmith.evaluation.records import network_mask, resize_mask
from flawsmith.methods.base import Detector
from flawsmith.pipeline.truth import read_mask
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.training.selection import Oracle, TestImage


def refuse_without_labels(dataset: Dataset) -> None:
    """An oracle needs good and flawed test images.

    Raises:
        FlawsmithError: it has none.
    """
    missing = [name for name, found in (("good", dataset.test_good), ("flawed", dataset.test_flawed)) if not found]
    if missing:
        raise FlawsmithError(
            f"an oracle chooses the checkpoint on labelled test images, and {dataset.root} has no "
            f"{' and no '.join(missing)} ones: leave --oracle out, or put them into test/good and test/<defect>"
        )


def oracle(dataset: Dataset, geometry: Geometry, network: Callable[[], Detector]) -> Oracle:
    """Measures a detector on the test split of a data set.

    Args:
        dataset: with good and flawed test images.
        geometry: of the network.
        network: gives the detector as trained so far.
    """
    return Oracle(partial(_test_images, dataset, geometry), network)


def _test_images(dataset: Dataset, geometry: Geometry) -> Iterator[TestImage]:
    for sample in dataset.test:
        pixels = decode(sample.image)
        size = (pixels.shape[0], pixels.shape[1])
        mask = read_mask(sample) if sample.is_flawed else None
        if mask is not None:
            fitting = mask if mask.shape == size else resize_mask(mask, size)
            mask = network_mask(fitting, geometry, "nearest") >= 1
        content = partial(geometry.content, original_size=size)
        yield TestImage(geometry.apply(pixels), sample.is_flawed, mask, content)
