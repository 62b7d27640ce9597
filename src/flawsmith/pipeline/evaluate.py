"""Measuring a model on a labelled test split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flawsmith.data.layouts import load
from flawsmith.data.samples import Dataset, Sample
from flawsmith.evaluation.evidence import Evidence, ImageRecord, gather
from flawsmith.evaluation.protocol import summarise
from flawsmith.evaluation.results import Evaluation
from flawsmith.pipeline.truth import read_mask
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector, Unreadable


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
        FlawsmithError: when the model or an image cannot be read, or the dataset has no test split.
    """
    inspector = model if isinstance(model, Inspector) else Inspector.load(model, engine=engine)
    dataset = data if isinstance(data, Dataset) else load(data, layout)
    return summarise(collect(inspector, test_samples(dataset)), n_resamples=n_resamples, seed=seed)


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


def collect(inspector: Inspector, samples: Sequence[Sample], *, done: Callable[[], object] = lambda: None) -> Evidence:
    """Inspect samples and gather what figures, intervals and plots are computed from; ``done`` is called for each."""
    return gather(_records(inspector, samples, done))


def _records(inspector: Inspector, samples: Sequence[Sample], done: Callable[[], object]) -> Iterator[ImageRecord]:
    stream = inspector.stream([sample.image for sample in samples])
    for sample, result in zip(samples, stream, strict=True):
        if isinstance(result, Unreadable):
            raise FlawsmithError(f"{result.error}; or remove it from the test split")
        yield ImageRecord(
            image=str(sample.image),
            score=result.score,
            verdict=result.verdict,
            defect=sample.defect,
            flawed=sample.is_flawed,
            map=result.map,
            mask=read_mask(sample),
            not_inspected=result.not_inspected,
        )
        done()
