"""Synthetic flaws on the files of held-out samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from flawsmith.data.samples import Sample
from flawsmith.pipeline.steps import synthetic_flaws
from flawsmith.runtime.geometry import Geometry


def good_sample(path: Path, pixels: np.ndarray) -> Sample:
    Image.fromarray(pixels).save(path)
    return Sample(image=path, split="train", label="good", defect="good", masks=(), category="bolt", dataset="parts")


def test_forged_images_have_the_size_of_their_files_and_follow_the_seed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = [(40, 56), (64, 30), (33, 47)]
    samples = [
        good_sample(tmp_path / f"{i}.png", rng.integers(60, 120, (*shape, 3), dtype=np.uint8))
        for i, shape in enumerate(shapes)
    ]
    geometry = Geometry(size=(32, 32))

    first, again, other = ([flaw.image for flaw in synthetic_flaws(samples, geometry, seed)] for seed in (1, 1, 2))

    assert [image.shape[:2] for image in first] == shapes
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_deep_sources_are_forged_in_eight_bits_of_their_declared_range(tmp_path: Path) -> None:
    pixels = np.full((48, 48), 2048, np.uint16)
    sample = good_sample(tmp_path / "deep.png", pixels)

    (flaw,) = synthetic_flaws([sample], Geometry(size=(32, 32), value_range=Geometry.range_of_bits(12)), seed=0)
    image = flaw.image

    assert image.dtype == np.uint8
    assert np.median(image) == 128
    assert (image != 128).any()
