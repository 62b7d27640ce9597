"""Colour jitter in [0, 1] is torchvision's."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from flawsmith.synthesis import augment
from flawsmith.synthesis.augment import JitterStrength
from flawsmith.synthesis.synthesizer import is_grey


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((12, 17, 3)).astype(np.float32)


def of_torchvision(name: str, image: np.ndarray, amount: float) -> np.ndarray:
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    return getattr(reference, name)(tensor, amount).numpy().transpose(1, 2, 0)


@pytest.mark.parametrize(
    ("name", "amounts"),
    [
        ("adjust_brightness", (0.3, 1.0, 1.6)),
        ("adjust_contrast", (0.0, 0.7, 1.5)),
        ("adjust_saturation", (0.0, 0.6, 1.4)),
        ("adjust_hue", (-0.5, -0.2, 0.0, 0.33)),
    ],
)
def test_adjustments_equal_those_of_torchvision(name: str, amounts: tuple[float, ...]) -> None:
    for seed, amount in enumerate(amounts):
        image = picture(seed)
        before = image.copy()
        adjusted = getattr(augment, name)(image, amount)
        assert adjusted.dtype == np.float32
        assert np.array_equal(image, before)
        # torchvision's grey weighs red by 0.2989, OpenCV's by 0.299.
        np.testing.assert_allclose(adjusted, of_torchvision(name, image, amount), atol=5e-4)


def test_jitter_stays_within_its_strength_and_reaches_its_ends() -> None:
    image = np.full((4, 4, 3), 0.4, np.float32)
    strength = JitterStrength(brightness=0.3)
    factors = [float(strength.jitter(image, np.random.default_rng(i))[0, 0, 0] / 0.4) for i in range(400)]
    assert 0.7 <= min(factors) < 0.72
    assert 1.28 < max(factors) <= 1.3 + 1e-6
    assert np.mean(factors) == pytest.approx(1, abs=0.03)


def test_the_order_of_the_parts_is_drawn() -> None:
    calls: Counter[tuple[str, ...]] = Counter()
    strength = JitterStrength(brightness=0.9, saturation=0.9)
    image = picture()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        order = rng.permutation(2).tolist()
        factors = rng.uniform(0.1, 1.9, 2).tolist()
        expected = image
        for part, factor in zip(order, factors, strict=True):
            adjust = (augment.adjust_brightness, augment.adjust_saturation)[part]
            expected = adjust(expected, factor)
        calls[tuple(order)] += 1
        np.testing.assert_allclose(strength.jitter(image, np.random.default_rng(seed)), expected, atol=1e-6)
    assert min(calls.values()) > 15


def test_no_strength_draws_nothing() -> None:
    rng, image = np.random.default_rng(0), picture()
    assert JitterStrength().jitter(image, rng) is image
    assert rng.random() == np.random.default_rng(0).random()


def test_grey_stays_grey() -> None:
    grey = np.repeat(picture()[:, :, :1], 3, axis=2)
    strong = JitterStrength(brightness=0.5, contrast=0.5, saturation=1, hue=0.5)
    assert all(is_grey(strong.jitter(grey, np.random.default_rng(seed))) for seed in range(20))
