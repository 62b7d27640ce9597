"""Models whose map and score come from low-resolution score maps: smoothing, comparable scores, a memory bank.

Some positions of a good part always score higher than others, and some scatter more: an edge, a print, the border of
the image. An image score is the largest value of a map, so it listens to those positions alone; where the maps of
several levels are summed, to the level that scatters most. What good parts score says how much a score means.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.nn.functional import interpolate
from typing_extensions import Self

from flawsmith.features.backbones import Backbone
from flawsmith.features.patch_embedding import resize
from flawsmith.models.base import AnomalyModel, FeatureSource, SinglePass, Stage, TrainingData
from flawsmith.models.components.level_table import LevelTable, WithViews, usual_turns, views_of_all
from flawsmith.models.components.memory_bank import BankConfig, MultiScaleMemoryBank, measured_rows
from flawsmith.synthesis.views import Turn

ScoreMap = Float[Tensor, "batch h w"]
Comparison = Literal["none", "position", "level"]

TRUNCATE = 4.0  # scipy's default: a kernel radius of 16 pixels at sigma 4
PRIOR_IMAGES = 10
LEAST_PRIOR = 0.1
IMAGES_A_PASS = 8


def upsampling_matrix(size: int, low: int, *, align_corners: bool = False) -> np.ndarray:
    """The (size, low) matrix of a one-dimensional linear interpolation, in float64.

    Example:
        >>> upsampling_matrix(4, 2).tolist()
        [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    identity = torch.eye(low, dtype=torch.float64)[None]
    resized = interpolate(identity, size=size, mode="linear", align_corners=align_corners)
    return resized[0].T.numpy()


class UpsampleAndSmooth(nn.Module):
    """Bilinear up-sampling followed by a Gaussian with reflecting border (GLASS, PBAS, AAND; sigma 4 pixels).

    Both act on rows and columns alone, and both are linear: the whole step is A · map · Bᵀ with matrices that depend on
    the sizes only.

    Args:
        low: (h, w) of the low-resolution map.
        size: (H, W) of the result.
        sigma: standard deviation of the Gaussian in pixels of the result; 0 leaves the map unsmoothed.
        align_corners: False for GLASS and PBAS, True for AAND.

    Example:
        >>> UpsampleAndSmooth((4, 6), (32, 48))(torch.rand(2, 4, 6)).shape
        torch.Size([2, 32, 48])
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self, low: tuple[int, int], size: tuple[int, int], *, sigma: float = 4.0, align_corners: bool = False
    ) -> None:
        super().__init__()
        for name, length, coarse in zip(("rows", "columns"), size, low, strict=True):
            matrix = upsampling_matrix(length, coarse, align_corners=align_corners)
            if sigma > 0:
                matrix = gaussian_filter1d(matrix, sigma, axis=0, mode="reflect", truncate=TRUNCATE)
            self.register_buffer(name, torch.from_numpy(matrix).float(), persistent=False)

    def forward(self, low: Float[Tensor, "batch h w"]) -> Float[Tensor, "batch height width"]:
        return self.rows @ low @ self.columns.T


def upsample_and_smooth(
    low: Float[Tensor, "batch h w"], size: tuple[int, int], *, sigma: float
) -> Float[Tensor, "batch height width"]:
    """:class:`UpsampleAndSmooth` of one batch, with matrices made for it.

    Example:
        >>> upsample_and_smooth(torch.ones(1, 2, 2), (4, 4), sigma=0)[0, 0]
        tensor([1., 1., 1., 1.])
    """
    height, width = low.shape[-2:]
    return UpsampleAndSmooth((height, width), size, sigma=sigma).to(low.device)(low)


class ScoreNorm(nn.Module):
    """An affine map of scores, one for all positions or one a position; as made, it changes nothing.

    Attributes:
        scale: factor, (1, 1) or (h, w).
        offset: what is added then, likewise.

    Example:
        >>> norm = ScoreNorm()
        >>> norm.fit(torch.tensor([[2.0]]), torch.tensor([[-1.0]]))
        >>> norm(torch.tensor([[[3.0]]]))
        tensor([[[5.]]])
    """

    scale: Float[Tensor, "rows columns"]
    offset: Float[Tensor, "rows columns"]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1, 1))
        self.register_buffer("offset", torch.zeros(1, 1))

    def fit(self, scale: Tensor, offset: Tensor) -> None:
        """Take other numbers."""
        self.scale, self.offset = scale.float(), offset.float()

    def forward(self, scores: ScoreMap) -> ScoreMap:
        return scores * self.scale + self.offset


class ScoreMoments:
    """Means and variances of one score map over good images.

    Example:
        >>> moments = ScoreMoments()
        >>> moments.update(torch.tensor([[[1.0]], [[3.0]]]))
        >>> [float(value) for value in moments.whole]
        [2.0, 1.0]
    """

    def __init__(self) -> None:
        self.count, self._sum, self._squares = 0, torch.zeros(()), torch.zeros(())

    def update(self, scores: ScoreMap) -> None:
        """Count a batch in."""
        scores = scores.double()
        self.count += len(scores)
        self._sum, self._squares = self._sum + scores.sum(dim=0), self._squares + scores.square().sum(dim=0)

    @property
    def by_position(self) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
        """Mean and variance of every position over the images, float64."""
        mean = self._sum / self.count
        return mean, (self._squares / self.count - mean.square()).clamp_min(0)

    @property
    def whole(self) -> tuple[Tensor, Tensor]:
        """Mean and variance over all images and positions together, float64 scalars."""
        mean = (self._sum / self.count).mean()
        return mean, ((self._squares / self.count).mean() - mean.square()).clamp_min(0)


def position_scale(moments: ScoreMoments) -> tuple[Tensor, Tensor]:
    """Scale and offset that give every position the mean and the spread of the whole map; scores keep their unit.

    With n images, mean and variance m(p) and v(p) of a position are drawn towards those of the whole map, m and v, by
    λ = max(10 / (n + 10), 0.1); then s'(p) = (s(p) − m(p))·√(v / v(p)) + m. Few images therefore change little, and a
    position that hardly varies is stretched by a factor of √10 at most.

    Example:
        >>> moments = ScoreMoments()
        >>> moments.update(torch.tensor([[[0.0, 4.0]], [[0.0, 8.0]]]))  # the second position always scores higher
        >>> scale, offset = position_scale(moments)
        >>> (torch.tensor([0.0, 6.0]) * scale + offset).round(decimals=2)
        tensor([[0.2600, 5.6400]], dtype=torch.float64)
    """
    (mean, variance), (whole_mean, whole) = moments.by_position, moments.whole
    prior = max(PRIOR_IMAGES / (moments.count + PRIOR_IMAGES), LEAST_PRIOR)
    mean, variance = (
        torch.lerp(mean, whole_mean.expand_as(mean), prior),
        torch.lerp(variance, whole.expand_as(variance), prior),
    )
    scale = (whole / variance).sqrt() if whole > 0 else torch.ones_like(mean)
    return scale, whole_mean - mean * scale


def level_scales(moments: Sequence[ScoreMoments]) -> list[tuple[Tensor, Tensor]]:
    """Scales and offsets that give every level the same spread, the mean of theirs; means stay.

    A level that never varies stays as it is.

    Example:
        >>> fine, coarse = ScoreMoments(), ScoreMoments()
        >>> fine.update(torch.tensor([[[0.0, 2.0]]]))
        >>> coarse.update(torch.tensor([[[0.0, 6.0]]]))
        >>> [(float(scale), float(offset)) for scale, offset in level_scales([fine, coarse])]
        [(2.0, -1.0), (0.6666666666666666, 1.0)]
    """
    wholes = [each.whole for each in moments]
    common = torch.stack([variance.sqrt() for _, variance in wholes]).mean()
    scales = [common / variance.sqrt() if variance > 0 else torch.ones_like(common) for _, variance in wholes]
    return [
        (scale.reshape(1, 1), (mean - mean * scale).reshape(1, 1))
        for scale, (mean, _) in zip(scales, wholes, strict=True)
    ]


class ScoreMapModel(AnomalyModel):
    """A model of low-resolution score maps, which two more passes over the good images may follow.

    Args:
        maps: score maps that the model makes.
        comparison: what is made comparable after training.

    Attributes:
        norms: what makes scores comparable, one a score map; empty where all scores stay as they are.
        bank: what else counts, on the coarsest level's grid; added to the last score map. None: nothing else does.
    """

    config: BankConfig
    bank: MultiScaleMemoryBank | None

    def __init__(
        self, config: Any, backbone: Backbone, seed: int = 0, *, maps: int = 1, comparison: Comparison = "none"
    ) -> None:
        super().__init__(config, backbone, seed)
        self._comparison = comparison
        self.norms = nn.ModuleList(ScoreNorm() for _ in range(0 if comparison == "none" else maps))
        self.bank = None
        self._turns: tuple[Turn, ...] | None = None
        if config.neighbourhoods:
            self.bank = MultiScaleMemoryBank(
                backbone.channels,
                config.neighbourhoods,
                config.bank_size,
                backbone.info.strides,
                candidates=config.bank_candidates,
            )

    @abstractmethod
    def raw_maps(self, levels: Sequence[Tensor]) -> list[ScoreMap]:
        """The score maps, from the backbone's level maps, before they are made comparable."""

    def normalised_maps(self, levels: Sequence[Tensor]) -> list[ScoreMap]:
        """The score maps made comparable, without the memory bank."""
        maps = self.raw_maps(levels)
        return [norm(scores) for norm, scores in zip(self.norms, maps, strict=True)] if len(self.norms) else maps

    def score_maps(self, levels: Sequence[Tensor]) -> list[ScoreMap]:
        """The score maps that map and image score are made of."""
        maps = self.normalised_maps(levels)
        if self.bank is None or not self.bank.counts_on_map:
            return maps
        *finer, last = maps
        return [*finer, last + resize(self.bank(levels)[:, None], last.shape[-2:])[:, 0]]

    def learned_so_far(self) -> Self:
        so_far = super().learned_so_far()
        if so_far.bank is not None and not so_far.bank.scale.any():  # it is filled after training
            so_far.bank = None
        return so_far

    def post_processing(self, data: TrainingData) -> Iterator[Stage]:
        """The passes that come after training: comparable scores, then the memory bank."""
        if len(self.norms):
            yield SinglePass("norm", lambda: self._fit_norms(data.features()))
        if self.bank is not None:
            if self.config.bank_views:  # here, so that a run that is taken up again knows them too
                self._turns = usual_turns(data, self.bank.neighbourhoods[0], self.bank.levels[0], self.seed)
            yield SinglePass("bank", lambda: self._fit_bank(data.features(), self._views(data)))

    @torch.no_grad()
    def fit_scores(self, batches: Iterable[Float[Tensor, "batch 3 height width"]]) -> None:
        """The same passes for a loop of one's own: to be called when the model has been trained.

        Args:
            batches: normalised good images; their level maps are held in memory. ``bank_views`` does not count here:
                give changed images too.

        Raises:
            FlawsmithError: there is no image.
        """
        device = next(self.backbone.parameters()).device
        features = LevelTable(self.backbone(images.to(device)) for images in batches)
        if len(self.norms):
            self._fit_norms(features)
        if self.bank is not None:
            self._fit_bank(features)

    @torch.no_grad()
    def _fit_norms(self, features: FeatureSource) -> None:
        moments = score_moments(self.eval().raw_maps, features, range(len(features)))
        scales = level_scales(moments) if self._comparison == "level" else list(map(position_scale, moments))
        for norm, scale in zip(self.norms, scales, strict=True):
            assert isinstance(norm, ScoreNorm)
            norm.fit(*scale)

    @torch.no_grad()
    def _fit_bank(self, features: FeatureSource, views: WithViews | None = None) -> None:
        """The bank scatters as the model's own maps do, times its weight."""
        assert self.bank is not None
        rows = measured_rows(len(features))
        moments = score_moments(self.eval().normalised_maps, features, rows, images_a_pass=1)
        if views is None:
            self.bank.fit(features, self.seed)
        else:
            self.bank.fit(views, self.seed, views.shown)
        spread = torch.stack([each.whole[1].sqrt() for each in moments]).sum()
        self.bank.scale.fill_(self.config.bank_weight * float(spread))

    def _views(self, data: TrainingData) -> WithViews | None:
        """The good images and the views of them that the bank remembers; None: the images alone."""
        if self._turns is None:
            return None
        views = views_of_all(len(data), self.config.bank_views, self.seed, self._turns)
        return WithViews(data.features(), data.views(views), [row for row, _ in views])

    def findings(self) -> Mapping[str, str | float]:
        return {"turns": ", ".join(self._turns) or "none"} if self._turns is not None else {}


def score_moments(
    maps: Callable[[Sequence[Tensor]], list[ScoreMap]],
    features: FeatureSource,
    rows: Sequence[int],
    *,
    images_a_pass: int = IMAGES_A_PASS,
) -> list[ScoreMoments]:
    """Moments of every score map over some good images.

    Example:
        >>> features = LevelTable([[torch.ones(2, 1, 4, 4)]])
        >>> (moments,) = score_moments(lambda levels: [levels[0][:, 0]], features, range(2))
        >>> moments.count, float(moments.whole[0])
        (2, 1.0)
    """
    moments: list[ScoreMoments] = []
    for start in range(0, len(rows), images_a_pass):
        scores = maps(features.batch(rows[start : start + images_a_pass]))
        moments = moments or [ScoreMoments() for _ in scores]
        for each, batch in zip(moments, scores, strict=True):
            each.update(batch)
    return moments
