"""Measuring a model on a labelled test split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from flawsmith.data.defects_config import Saturation, saturation_of
from flawsmith.data.layouts import load
from flawsmith.data.samples import Dataset, Sample
from flawsmith.evaluation.evidence import Evidence, ImageRecord, gather
from flawsmith.evaluation.protocol import summarise
from flawsmith.evaluation.results import Evaluation
from flawsmith.pipeline.truth import read_channels
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspection, Inspector, Unreadable


class Inspects(Protocol):
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
    n_resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Every figure of a model on the test split of a dataset, by the ``clean`` protocol.

    Args:
        model: a model file, or an inspector.
        data: a category folder of a known layout, or a loaded dataset.
        layout: name of the layout; detected by default.
        engine: another engine than the one the model was calibrated with.
        n_resamples: bootstrap resamples behind the intervals.
        seed: seed of the bootstrap.

    Raises:
        FlawsmithError: when the model or an image cannot be read, the dataset has no test split, or what it says of the
            saturation of its defects is damaged.
    """
    inspector = model if isinstance(model, Inspector) else Inspector.load(model, engine=engine)
    dataset = data if isinstance(data, Dataset) else load(data, layout)
    evidence = collect(inspector, test_samples(dataset), saturation=saturation_of(dataset))
    return summarise(evidence, n_resamples=n_resamples, seed=seed)


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
    done: Callable[[], object] = lambda: None,
) -> Evidence:
    """Inspect samples and gather what figures, intervals and plots are computed from.

    Args:
        inspector: the model.
        samples: labelled images.
        saturation: when their defects count as found; None leaves sPRO out.
        done: called after each image.

    Raises:
        FlawsmithError: an image or a mask cannot be read, or they contradict each other.
    """
    known = Saturation() if saturation is None else saturation
    return gather(_records(inspector, samples, known, done), notes=known.notes)


def _records(
    inspector: Inspects, samples: Sequence[Sample], saturation: Saturation, done: Callable[[], object]
) -> Iterator[ImageRecord]:
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
        )
        done()
