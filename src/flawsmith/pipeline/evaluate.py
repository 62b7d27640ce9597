"""Measuring a model on a labelled test split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from flawsmith.data.defects_config import Saturation, saturation_of
from flawsmith.data.layouts import load
from flawsmith.data.samples import Dataset, Sample
from flawsmith.evaluation.evidence import Evidence, ImageRecord, gather
from flawsmith.evaluation.protocol import CLEAN, Protocol, choose_protocol
from flawsmith.evaluation.records import NetworkView, network_mask, resize_mask
from flawsmith.evaluation.results import Evaluation
from flawsmith.evaluation.summary import summarise
from flawsmith.pipeline.truth import read_channels
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.inspector import Inspection, Inspector, Unreadable


class Inspects(Interface):
    """What a test split is measured with: an inspector, or what stands in for the model of another package."""

    def stream(self, source: Sequence[Path], /) -> Iterator[Inspection | Unreadable]:
        """Inspect images in order."""
        ...


def evaluate(
    model: str | Path | Inspector,
    data: str | Path | Dataset,
    *,
    layout: str | None = None,
    engine: str | None = None,
    protocol: str = "clean",
    set: Mapping[str, Any] | None = None,  # noqa: A002, the name it has for train and on the command line
    n_resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Every figure of a model on the test split of a dataset.

    Args:
        model: a model file, or an inspector.
        data: a category folder of a known layout, or a loaded dataset.
        layout: name of the layout; detected by default.
        engine: another engine than the one the model was calibrated with.
        protocol: ``clean``, or ``papers``: as the released code of the model's method measures.
        set: single switches of the protocol to change, such as ``{"pro": "exact"}``; see docs/protocol.md.
        n_resamples: bootstrap resamples behind the intervals.
        seed: seed of the bootstrap.

    Raises:
        FlawsmithError: when the model or an image cannot be read, the dataset has no test split, what it says of the
            saturation of its defects is damaged, or there is no such protocol or switch.
    """
    inspector = model if isinstance(model, Inspector) else Inspector.load(model, engine=engine)
    dataset = data if isinstance(data, Dataset) else load(data, layout)
    rules = choose_protocol(protocol, method=inspector.spec.method, layout=dataset.layout, changes=set)
    evidence = collect(inspector, test_samples(dataset), saturation=saturation_of(dataset), protocol=rules)
    selection = inspector.spec.training.selection
    return summarise(evidence, selection=selection, n_resamples=n_resamples, seed=seed)


def test_samples(dataset: Dataset) -> tuple[Sample, ...]:
    """The labelled test images of a dataset.

    Raises:
        FlawsmithError: when it has none.
    """
    if not dataset.test:
        raise FlawsmithError(
            f"{dataset.root} has no test images to evaluate on: put good ones into test/good and flawed ones into "
            "test/<defect>, or judge single images with `flawsmith predict`"
        )
    return dataset.test


test_samples.__test__ = False  # type: ignore[attr-defined]


def collect(
    inspector: Inspects,
    samples: Sequence[Sample],
    *,
    saturation: Saturation | None = None,
    protocol: Protocol = CLEAN,
    done: Callable[[], object] = lambda: None,
) -> Evidence:
    """Inspect samples and gather what figures, intervals and plots are computed from.

    Args:
        inspector: the model.
        samples: labelled images.
        saturation: when their defects count as found; None leaves sPRO out.
        protocol: the rules.
        done: called after each image.

    Raises:
        FlawsmithError: an image or a mask cannot be read, they contradict each other, or the disk is full.
    """
    known = Saturation() if saturation is None else saturation
    records = _records(inspector, samples, known, protocol, done)
    return gather(records, protocol=protocol, saturated=bool(known.kinds), notes=known.notes)


def _records(
    inspector: Inspects,
    samples: Sequence[Sample],
    saturation: Saturation,
    protocol: Protocol,
    done: Callable[[], object],
) -> Iterator[ImageRecord]:
    geometry = _network_geometry(inspector) if protocol.pixels == "network" else None
    stream = inspector.stream([sample.image for sample in samples])
    for sample, result in zip(samples, stream, strict=True):
        if isinstance(result, Unreadable):
            raise FlawsmithError(f"{result.error}; or remove it from the test split")
        mask, channels = read_channels(sample, saturation.kinds)
        yield ImageRecord(
            image=str(sample.image),
            score=result.score,
            verdict=result.verdict,
            defect=sample.defect,
            flawed=sample.is_flawed,
            map=result.map,
            mask=mask,
            not_inspected=result.not_inspected,
            channels=channels,
            network=None if geometry is None else _network_view(geometry, result, mask, protocol),
        )
        done()


def _network_geometry(inspector: Inspects) -> Geometry:
    """How images reach the network.

    Raises:
        FlawsmithError: it is another package's model.
    """
    if not isinstance(inspector, Inspector):
        raise FlawsmithError(
            "the network's pixels are known of this package's own models alone: compare with others by --protocol clean"
        )
    return inspector.spec.geometry


def _network_view(
    geometry: Geometry, result: Inspection, mask: NDArray[np.bool_] | None, protocol: Protocol
) -> NetworkView:
    """Map and mask in the network's pixels."""
    size = (result.map.shape[0], result.map.shape[1])
    assert result.network_map is not None, "an inspector fills it in"
    content = geometry.content(result.network_map, size)
    if mask is None:
        return NetworkView(content)
    own = mask if mask.shape == size else resize_mask(mask, size)
    return NetworkView(content, network_mask(own, geometry, protocol.mask))
