"""Views of good images that a memory bank holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flawsmith.models.components.level_table import LevelTable, WithViews, usual_turns, views_of_all
from flawsmith.models.components.memory_bank import MultiScaleMemoryBank, Neighbourhood
from flawsmith.synthesis.views import View

BARS = 12


class Bars:
    """Pictures of a bright bar on dark ground as their own level map; views of them are drawn on the pictures."""

    seed = 0

    def __init__(self, angles: Sequence[float]) -> None:
        bar = np.zeros((32, 32, 3), np.float32)
        bar[14:18, 4:22] = 1.0  # not in the middle: a half turn shows
        rng = np.random.default_rng(0)
        self.pictures = [
            np.clip(View(degrees=angle).of(bar) + rng.normal(0, 0.02, bar.shape), 0, 1).astype(np.float32)
            for angle in angles
        ]

    def __len__(self) -> int:
        return len(self.pictures)

    def features(self) -> LevelTable:
        return self.views([(row, View()) for row in range(len(self))])

    def views(self, wanted: Sequence[tuple[int, View]]) -> LevelTable:
        return LevelTable([[self.level(view.of(self.pictures[row]))] for row, view in wanted])

    @staticmethod
    def level(picture: np.ndarray) -> Tensor:
        """Each position of an 8×8 grid holds its 4×4 pixels and the place: as a backbone at a part's border."""
        cells = torch.from_numpy(picture[:, :, 0].copy()).reshape(8, 4, 8, 4).permute(1, 3, 0, 2).reshape(16, 8, 8)
        rows = torch.linspace(0, 1, 8)
        return torch.cat([cells, rows.expand(1, 8, 8), rows[:, None].expand(1, 8, 8)])[None]


NEIGHBOURHOOD = Neighbourhood(side=1)


def test_parts_that_lie_at_any_angle_may_be_turned_and_those_that_stand_may_not() -> None:
    anyhow = np.random.default_rng(1).uniform(0, 360, BARS)

    assert "quarter" in usual_turns(Bars(anyhow), NEIGHBOURHOOD, 0, 0)  # type: ignore[arg-type]
    assert usual_turns(Bars(np.zeros(BARS)), NEIGHBOURHOOD, 0, 0) == ()  # type: ignore[arg-type]


def test_one_image_says_nothing_of_how_parts_lie() -> None:
    assert usual_turns(Bars([0.0]), NEIGHBOURHOOD, 0, 0) == ()  # type: ignore[arg-type]


def test_few_images_get_more_views_and_many_fewer() -> None:
    for images, expected in ((1, 15), (10, 150), (60, 600), (300, 900), (1000, 3000), (9000, 3000)):
        views = views_of_all(images, 3, 0, ())
        counts = np.bincount([row for row, _ in views], minlength=images)
        assert len(views) == expected
        assert np.ptp(counts) <= 1  # evenly


def test_images_and_views_are_one_table() -> None:
    images, views = (LevelTable([[torch.full((1, 2, 2, 2), float(value))] for value in v]) for v in ((1, 2), (3, 4, 5)))
    both = WithViews(images, views, [0, 1, 1])

    assert [level[:, 0, 0, 0].tolist() for level in both.batch([4, 0, 2])] == [[5, 1, 3]]
    assert both.shown.tolist() == [0, 1, 0, 1, 1]
    assert len(both) == 5


def test_views_of_one_image_are_no_other_images(seed: int) -> None:
    """Nothing says how far apart good images are, so a bank of one image says nothing, however often it is seen."""
    torch.manual_seed(seed)
    image, views = LevelTable([[torch.randn(1, 4, 6, 6)]]), LevelTable([[torch.randn(9, 4, 6, 6)]])
    both, level = WithViews(image, views, [0] * 9), [torch.randn(3, 4, 6, 6)]

    def distances(shown: Tensor | None) -> float:
        bank = MultiScaleMemoryBank((4,), (NEIGHBOURHOOD,), 20)
        bank.fit(both, seed, shown)
        return float(bank(level).abs().max())

    assert distances(both.shown) < 1e-3
    assert distances(None) > 0.1


def test_a_bank_remembers_views(seed: int) -> None:
    torch.manual_seed(seed)
    images, views = LevelTable([[torch.randn(6, 4, 6, 6)]]), LevelTable([[10 + torch.randn(6, 4, 6, 6)]])
    both = WithViews(images, views, range(6))
    plain, knowing = (MultiScaleMemoryBank((4,), (NEIGHBOURHOOD,), 40) for _ in range(2))
    plain.fit(images, seed)
    knowing.fit(both, seed, both.shown)

    assert float(knowing(views.batch([2])).mean()) < float(plain(views.batch([2])).mean()) / 3
