"""A memory bank beside a trained model: what no good image shows counts, whether or not such a flaw was synthesized.

In none of the papers on GLASS, PBAS and AAND; the idea is PatchCore's (Roth et al., CVPR 2022). A discriminator or a
student knows the flaws that it was taught and what resembles them, a memory knows what it has seen: each misses what
the other finds, so the sum of both maps is better than either. Several neighbourhoods are remembered because single
positions show small flaws on parts that lie anywhere, and means over neighbours large ones on textures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn
from torch.nn.functional import pad

from flawsmith.data.seeding import generator
from flawsmith.features.patch_embedding import average_embedding, resize
from flawsmith.models.base import FeatureSource, ModelConfig, full_precision

POOL = 2048
"""Rows that choices are made among: few enough for a processor's cache."""
SWEEP = 8192
"""Rows that are compared with the new choices at a time, which bounds the memory of their distances."""

Rows = Float[Tensor, "row width"]


def random_projection(width: int, components: int, seed: int) -> Float[Tensor, "width components"]:
    """A sparse random matrix that nearly keeps distances (Johnson and Lindenstrauss; Li et al. 2006)."""
    from sklearn.random_projection import SparseRandomProjection  # on use, as in flawsmith.metrics.ranking

    projection = SparseRandomProjection(components, random_state=seed % 2**32).fit(np.zeros((1, width)))
    return torch.from_numpy(projection.components_.toarray().T.copy()).float()


@torch.no_grad()
def greedy_coreset(rows: Rows, count: int, *, first: int) -> Int[Tensor, " chosen"]:
    """Indices of rows, each the farthest from all before it by Euclidean distance; of equally far ones the first.

    Rows are equally far if they are so after rounding to a grid of 2^-b times the smallest power of two that no value
    exceeds; b is 22 at 128 columns, 21 at 512 and 20 at 2048. Between rows of that grid squared distances are whole
    numbers that float64 adds without error in any order, so the choice depends on the table alone, not on the cut of
    the work, the number of threads or the processor.

    Args:
        rows: the table, float32, finite.
        count: how many to choose. Fewer come back where the chosen rows cover all others on the grid.
        first: the row to begin with.

    Source:
        Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, ICLR 2018, Alg. 1.

    Example:
        >>> greedy_coreset(torch.tensor([[0.0], [1.0], [5.0], [9.0]]), 3, first=0).tolist()
        [0, 3, 2]
        >>> greedy_coreset(torch.tensor([[0.0], [-2.0], [2.0]]), 2, first=0).tolist()
        [0, 1]
    """
    rows = _round_to_grid(rows)
    squares = torch.cat([part.double().square().sum(dim=1) for part in torch.split(rows, SWEEP)])
    distances = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)
    chosen, new = [first], [first]
    while len(chosen) < min(count, len(rows)):
        _sweep(distances, rows, squares, new)
        pool, others = _farthest(distances)
        new = _choose(rows[pool].double(), distances[pool], min(count, len(rows)) - len(chosen), others)
        if not new:
            break
        new = pool[new].tolist()
        chosen += new
    return torch.tensor(chosen)


def _round_to_grid(rows: Rows) -> Rows:
    """The rows in steps of the grid: whole numbers of at most 24 bits, whose squared distances have at most 53."""
    bits = min(24, (51 - math.ceil(math.log2(rows.shape[1]))) // 2)
    _, exponent = math.frexp(float(rows.abs().max()))
    return torch.ldexp(rows, torch.tensor(bits - exponent)).round()


def _sweep(distances: Tensor, rows: Rows, squares: Tensor, new: list[int]) -> None:
    """Lower the squared distances of all rows to what the new choices leave of them, in place."""
    centers, offsets = rows[new].double().T.contiguous(), squares[new]
    parts = zip(*(torch.split(each, SWEEP) for each in (distances, rows, squares)), strict=True)
    for nearest, part, own_squares in parts:
        to_new = torch.addmm(offsets, part.double(), centers, alpha=-2).amin(dim=1) + own_squares
        torch.minimum(nearest, to_new, out=nearest)


def _farthest(distances: Tensor) -> tuple[Int[Tensor, " pool"], float]:
    """Rows farther than all others, in the table's order, and the largest squared distance of any other."""
    if len(distances) <= POOL:
        return torch.arange(len(distances)), 0.0
    others = distances.topk(POOL + 1).values[-1]
    pool = (distances > others).nonzero()[:, 0]
    # Where more rows are equally far than fit, the first of them is chosen alone.
    return (pool, float(others)) if len(pool) else (distances.argmax()[None], 0.0)


def _choose(rows: Tensor, distances: Tensor, count: int, others: float) -> list[int]:
    """Greedy choices among the rows of a pool until one outside it may be as far; none where all are covered."""
    chosen: list[int] = []
    squares = rows.square().sum(dim=1)
    while len(chosen) < count:
        farthest = int(distances.argmax())  # the first of equals
        if distances[farthest] <= others:
            break
        chosen.append(farthest)
        to_it = torch.addmv(squares, rows, rows[farthest], alpha=-2).add_(squares[farthest])
        torch.minimum(distances, to_it, out=distances)
    return chosen


LEVEL_CANDIDATES = 20_000
"""Features, drawn evenly from all positions of all images, among which those to remember are chosen."""
CANDIDATES = 50_000
LARGEST_SHARE = 0.1
"""Most of the candidates that are remembered."""
WHITENING_PRIOR = 0.01
LEAST = 1e-6
"""Added under the root, whose slope at 0 has no bound."""

Level = Float[Tensor, "batch channel height width"]


class Whitening(nn.Module):
    """Features less their mean, in the units of how they scatter on good images; directions apart from each other.

    Where features vary much on good images a difference means little, where they hardly vary it means a lot. As made,
    it changes nothing.

    Example:
        >>> whitening = Whitening(2)
        >>> whitening.fit(torch.tensor([[-10.0, 0], [10, 0], [0, -4], [0, 4]]))
        >>> [f"{value:.1f}" for value in whitening(torch.tensor([[[[10.0]], [[4.0]]]])).flatten()]
        ['1.4', '1.4']
    """

    center: Tensor
    matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(channels))
        self.register_buffer("matrix", torch.eye(channels))

    @torch.no_grad()
    def fit(self, features: Float[Tensor, "feature channel"]) -> None:
        """Take mean and covariance of good features.

        A hundredth of the mean variance is added to that of every direction, so that one that never varied does not
        decide alone. The root of the inverse covariance is the symmetric one, which no sign of an eigenvector changes.
        """
        centered = features.double() - features.double().mean(dim=0)
        variances, directions = torch.linalg.eigh(centered.T @ centered / len(features))
        variances = variances.clamp_min(0) + WHITENING_PRIOR * variances.mean().clamp_min(LEAST)
        self.center.copy_(features.double().mean(dim=0))
        self.matrix.copy_((directions / variances.sqrt()) @ directions.T)

    def forward(self, level: Level) -> Level:
        rows = (level.flatten(2).transpose(1, 2) - self.center) @ self.matrix
        return rows.transpose(1, 2).reshape(level.shape)


CODED = 3000
"""Rows from which on it pays to look for the nearest among 8-bit codes first: of 2,000 it takes as long."""
BEST_BLOCKS, CANDIDATE_ROWS = 4, 6
"""Blocks of rows that are looked into, and rows of these that are compared exactly. For all of 32,000 positions of
screw's test images, plain and whitened, the nearest of 4,000 rows was among them."""
_QUERY_CODES, _ROW_CODES = (-128, 127), 63
"""Whole numbers that values become: 8 bits times 7, so that a CPU without instructions for 8 bits, which adds pairs of
products in 16, cuts none off."""


class RowCodes(nn.Module):
    """Rows of a table in 8 bits, among which the few that may be nearest are found three times as fast.

    |q − m|² = |q|² + (|m|² − 2 q·m): the largest q·m − |m|²/2 is looked for. Values become whole numbers, −128 to 127
    of q and ±63 of m; the half squares are more columns of m that meet constants in q. What is found is to be compared
    anew, in full precision.

    Example:
        >>> codes = RowCodes(2)
        >>> codes.fit(torch.tensor([[0.0, 0.0], [9.0, 9.0], [9.0, 8.0]]))
        >>> codes(torch.tensor([[8.0, 8.0]]))[0].sort().values.tolist()
        [0, 1, 2]
    """

    center: Tensor
    tail: Tensor
    table: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        # They follow from the rows: no state of their own.
        self.register_buffer("center", torch.zeros(channels), persistent=False)
        self.register_buffer("tail", torch.zeros(0), persistent=False)
        self.register_buffer("table", torch.zeros(channels, 1, dtype=torch.int8), persistent=False)
        self.steps = (1.0, 1.0)
        self.width = 1

    @torch.no_grad()
    def fit(self, rows: Rows, forgiven: Float[Tensor, " row"] | None = None) -> None:
        """Code rows.

        Args:
            forgiven: what is taken off the squared distance from each.
        """
        self.center = rows.mean(dim=0)
        centered = rows - self.center
        squares = centered.square().sum(dim=1)
        halves = (squares if forgiven is None else squares - forgiven).double() / 2
        largest = max(float(centered.abs().max()), LEAST)
        self.steps = (largest / _QUERY_CODES[1], largest / _ROW_CODES)
        codes = (centered / self.steps[1]).round()
        # The half squares in the unit of a product of codes, digit by digit: what a query's 127 counts, and the rest.
        rest = ((halves - halves.min()) / (self.steps[0] * self.steps[1])).round()
        factors = [_QUERY_CODES[1]] * (1 + int(rest.max()) // (_QUERY_CODES[1] * _ROW_CODES)) + [1, 1, 1]
        digits = []
        for factor in factors:
            digits.append((rest / factor).floor().clamp(max=_ROW_CODES))
            rest = rest - factor * digits[-1]
        self.tail = (torch.tensor(factors, dtype=rows.dtype) * self.steps[0]).to(rows.device)
        self.table = torch.cat([codes, -torch.stack(digits, dim=1).to(codes)], dim=1).T.contiguous().to(torch.int8)
        self.width = _block_width(len(rows), several=4)

    @torch.no_grad()
    def forward(self, queries: Rows) -> Int[Tensor, "row candidate"]:
        """For each query the rows that may be nearest to it, the likeliest first."""
        shifted = torch.cat([queries - self.center, self.tail.expand(queries.shape[0], -1)], dim=1)
        products = _through_8_bits(shifted, self.steps[0]) @ _from_8_bits(self.table, self.steps[1])
        peaks = products.reshape(-1, products.shape[1] // self.width, self.width).amax(dim=2)
        best = _places_of_largest(peaks, BEST_BLOCKS)
        inside = _blocks_of(products, best, self.width).flatten(1)
        places = (best[:, :, None] * self.width + torch.arange(self.width, device=best.device)).flatten(1)
        likely = _places_of_largest(inside, CANDIDATE_ROWS)
        return places.gather(1, likely)


def _places_of_largest(table: Float[Tensor, "row column"], count: int) -> Int[Tensor, "row chosen"]:
    """The columns of each row's largest values, or all; down the columns OpenVINO looks at sixteen rows at a time."""
    return table.T.topk(min(count, table.shape[1]), dim=0).indices.T


def _through_8_bits(values: Rows, step: float) -> Rows:
    """Values rounded to multiples of a step that 8 bits hold; in an exported graph so that engines compute in them."""
    if torch.onnx.is_in_onnx_export():
        scale, zero = torch.tensor(step), torch.tensor(-_QUERY_CODES[0], dtype=torch.uint8)
        shape = values.shape
        codes = torch.onnx.ops.symbolic("QuantizeLinear", (values, scale, zero), dtype=torch.uint8, shape=shape)
        return torch.onnx.ops.symbolic("DequantizeLinear", (codes, scale, zero), dtype=values.dtype, shape=shape)
    return (values / step).round().clamp(*_QUERY_CODES) * step


def _from_8_bits(codes: Int[Tensor, "row column"], step: float) -> Rows:
    """What codes stand for."""
    if torch.onnx.is_in_onnx_export():
        scale, zero = torch.tensor(step), torch.tensor(0, dtype=torch.int8)
        return torch.onnx.ops.symbolic("DequantizeLinear", (codes, scale, zero), dtype=torch.float32, shape=codes.shape)
    return codes.float() * step


class MemoryBank(nn.Module):
    """Distance of every position of a level map to the nearest remembered feature, in units of what good images show.

    Unlike a difference to what is remembered, the distance to the nearest of it does not jump where two features are
    equally near.

    Args:
        size: remembered features.
        whitened: whether distances are those of whitened features; what is remembered is whitened already.
        tolerant: whether some of the squared distance is forgiven, each remembered feature its own share.
        coded: whether the nearest is looked for by :class:`RowCodes`, in a memory of `CODED` features or more.

    Example:
        >>> bank = MemoryBank(channels=4, size=2)
        >>> bank.fit(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
        >>> bank(torch.zeros(1, 4, 3, 3)).shape
        torch.Size([1, 1, 3, 3])
    """

    features: Tensor
    unit: Tensor
    tolerance: Tensor | None
    offsets: Tensor | None
    whitening: Whitening | None

    def __init__(
        self, channels: int, size: int, *, whitened: bool = False, tolerant: bool = False, coded: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(size, channels))
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer("tolerance", torch.zeros(size) if tolerant else None)
        self.register_buffer("offsets", torch.zeros(size) if tolerant else None)
        self.whitening = Whitening(channels) if whitened else None
        self.codes = RowCodes(channels) if coded else None
        self.code()
        self.register_load_state_dict_post_hook(_code_anew)  # type: ignore[no-untyped-call]

    def fit(
        self,
        features: Float[Tensor, "feature channel"],
        unit: Float[Tensor, ""] | float = 1.0,
        tolerance: Float[Tensor, " feature"] | None = None,
    ) -> None:
        """Take features as the memory; fewer than its size fill it by repetition, which changes no distance.

        Args:
            unit: the distance that counts as 1, above 0; infinity makes all distances 0.
            tolerance: squared distance from each that is forgiven, for a tolerant bank.
        """
        rows = torch.arange(len(self.features)) % len(features)
        self.features.copy_(features[rows])
        self.unit.fill_(float(unit))
        if self.tolerance is not None and self.offsets is not None:
            self.tolerance.copy_(torch.zeros(()) if tolerance is None else tolerance[rows])
            self.offsets.copy_(self.features.square().sum(1) - self.tolerance)
        self.code()

    def code(self) -> None:
        """Make the codes of what is remembered, where they are used; its size may have changed."""
        if self.codes is not None and len(self.features) >= CODED:
            self.codes.fit(self.features, self.tolerance)

    @torch.no_grad()
    def forward(self, level: Level) -> Float[Tensor, "batch 1 height width"]:
        with full_precision(level.device):
            if self.whitening is not None:
                level = self.whitening(level.float())
            queries = level.float().flatten(2).transpose(1, 2).flatten(0, 1)
            nearest = self._may_be_nearest(queries)
            offsets = queries[:, None] - self.features[nearest]
            squared = (offsets * offsets).sum(2)  # a power takes ONNX Runtime twice as long
            if self.tolerance is not None:
                squared = (squared - self.tolerance[nearest]).clamp_min(0)
            distance = (squared.amin(1) + LEAST).sqrt() / self.unit
        return distance.reshape(level.shape[0], 1, *level.shape[-2:])

    def _may_be_nearest(self, queries: Rows) -> Int[Tensor, "row candidate"]:
        """For each query the features one of which is the nearest."""
        if self.codes is not None and len(self.features) >= CODED:
            return self.codes(queries)
        offsets = self.features.square().sum(1) if self.offsets is None else self.offsets
        return nearest_rows(queries, self.features, offsets)[:, None]


def _code_anew(bank: MemoryBank, *_: Any) -> None:
    bank.code()


def nearest_rows(queries: Rows, rows: Rows, offsets: Float[Tensor, " row"]) -> Int[Tensor, " query"]:
    """The row m nearest to each query q, of equally near ones the first.

    |q − m|² = |q|² + (|m|² − 2 q·m), of which only the bracket depends on the row: a product with one column more. It
    finds the nearest row; the distance itself would lose digits to cancellation.

    Args:
        offsets: |m|², or less where some of the distance is forgiven.

    Example:
        >>> rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> nearest_rows(torch.tensor([[3.0, 5.0], [0.0, 1.0]]), rows, rows.square().sum(1)).tolist()
        [1, 0]
    """
    table = torch.cat([-2 * rows, offsets[:, None]], dim=1).T
    return _first_least(pad(queries, (0, 1), value=1.0) @ table)


def _first_least(table: Float[Tensor, "row column"]) -> Int[Tensor, " row"]:
    """The column of each row's least value, the first of equals: ``table.argmin(1)``.

    The least value of blocks of columns first, then the place in the block: engines find a least value by vector
    instructions and its place one value at a time, so that of 8,000 columns OpenVINO takes a quarter of the time, ONNX
    Runtime 0.6 of it.
    """
    columns = table.shape[1]
    width = _block_width(columns)
    block = table.reshape(-1, columns // width, width).amin(2).argmin(1)
    return block * width + _blocks_of(table, block[:, None], width)[:, 0].argmin(1)


def _blocks_of(
    table: Float[Tensor, "row column"], blocks: Int[Tensor, "row chosen"], width: int
) -> Float[Tensor, "row chosen width"]:
    """Blocks of so many columns, of each row its own: whole blocks are copied, not value by value as by ``gather``."""
    starts = torch.arange(table.shape[0], device=table.device)[:, None] * (table.shape[1] // width)
    return table.reshape(-1, width)[starts + blocks]


def _block_width(columns: int, several: int = 1) -> int:
    """Columns of a block, none of which is left over: about as many as there are blocks, or so many times fewer."""
    sizes = (size for size in range(1, columns + 1) if columns % size == 0)
    return min(sizes, key=lambda size: abs(several * size**2 - columns))


class Coreset(NamedTuple):
    """Features to remember.

    Attributes:
        features: one a row.
        images: the image that each comes from, by row.
        tolerance: squared distance from each that is forgiven; None: nothing is.
    """

    features: Float[Tensor, "feature channel"]
    images: Int[Tensor, " feature"]
    tolerance: Float[Tensor, " feature"] | None = None


class LevelMaps:
    """A level of good images, or several joined on its grid, image by image, as they are or averaged over neighbours.

    Args:
        images: level maps of the good images.
        level: which of their levels.
        side: of the neighbourhood, see :func:`average_embedding`.
        joined: levels that are concatenated: this one and those before it, as many as there are.

    Attributes:
        whitening: what the maps go through; None: they are as they are.
    """

    def __init__(self, images: FeatureSource, level: int, side: int = 1, *, joined: int = 1) -> None:
        self._images, self.level, self.side, self.joined = images, level, side, joined
        self.whitening: Whitening | None = None
        self.grid = images.grids[level]
        self.positions = self.grid[0] * self.grid[1]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> Level:
        """The maps of one image, a batch of one."""
        levels = self._images.batch([row])[: self.level + 1][-self.joined :]
        averaged = average_embedding([level.float() for level in levels], self.side, self.grid)
        return averaged if self.whitening is None else self.whitening(averaged)


def draw_features(maps: LevelMaps, seed: int, *, purpose: str, candidates: int) -> Coreset:
    """Features drawn evenly from all positions of all images, at least one an image."""
    rng = generator(seed, purpose, maps.level)
    share = min(maps.positions, -(-candidates // len(maps)))
    drawn = [maps[row][0].flatten(1)[:, rng.choice(maps.positions, share, replace=False)].T for row in range(len(maps))]
    return Coreset(torch.cat(drawn), torch.arange(len(maps)).repeat_interleave(share))


def sample_coreset(
    maps: LevelMaps, size: int, seed: int, *, purpose: str = "memory", candidates: int = LEVEL_CANDIDATES
) -> Coreset:
    """Features of good images that leave no other one far away: greedy k-centres among evenly drawn candidates.

    Args:
        size: features to choose at most; no more than a tenth of the candidates, rounded up, because whoever remembers
            everything is never surprised by what it has seen, and always by what it has not.
        candidates: how many are drawn, at least one an image.

    Source:
        The coreset of Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022, Alg. 1, without its
        random projection.
    """
    return coreset_of(draw_features(maps, seed, purpose=purpose, candidates=candidates), size)


def coreset_of(candidates: Coreset, size: int) -> Coreset:
    """Those of the candidates that leave no other one far away; see :func:`sample_coreset`."""
    most = min(size, math.ceil(LARGEST_SHARE * len(candidates.images)))
    indices = greedy_coreset(candidates.features, most, first=0)
    return Coreset(candidates.features[indices], candidates.images[indices])


def distances_to_others(
    coreset: Coreset, maps: LevelMaps, rows: Sequence[int]
) -> Iterator[Float[Tensor, "1 1 height width"]]:
    """Distances of an image's positions to remembered features of all other images, image after image.

    An image's own features count only where no other one's are remembered.
    """
    for row in rows:
        others = coreset.images != row
        if not others.any():
            others = torch.ones_like(others)
        features, tolerance = coreset.features[others], coreset.tolerance
        bank = MemoryBank(features.shape[1], len(features), tolerant=tolerance is not None).to(features.device)
        bank.fit(features, tolerance=None if tolerance is None else tolerance[others])
        yield bank(maps[row])


def squared_distances_between_images(
    coreset: Coreset, features: Coreset, *, most: int = CANDIDATES
) -> Float[Tensor, " feature"]:
    """Squared distance from each remembered feature to the nearest feature of another image: how much good parts
    differ there.

    Args:
        coreset: what is remembered.
        features: of the good images; 0 is returned for a feature to which they have none of another image.
        most: how many of them, evenly spaced, are compared.
    """
    rows = torch.linspace(0, len(features.images) - 1, min(most, len(features.images)), dtype=torch.float64).round()
    compared, images = features.features[rows.long()], features.images[rows.long()].to(features.features.device)
    squares, between = compared.square().sum(1), []
    parts = (torch.split(each, SWEEP // 16) for each in (coreset.features, coreset.images.to(compared.device)))
    for part, sources in zip(*parts, strict=True):
        to_others = torch.addmm(squares, part, compared.T, alpha=-2)
        to_others[sources[:, None] == images] = torch.inf
        nearest = to_others.argmin(dim=1)
        # As in a bank: the product finds the nearest, the difference itself loses no digits.
        distances = (part - compared[nearest]).square().sum(1)
        between.append(torch.where(images[nearest] == sources, 0.0, distances))
    return torch.cat(between)


def typical_peak(coreset: Coreset, maps: LevelMaps) -> Float[Tensor, ""]:
    """Median over good images of the largest distance of their positions to features of all other images; never 0.

    One image has no others to say what is typical: no distance is novel then, and infinity is returned.
    """
    if len(maps) == 1:
        return torch.tensor(torch.inf)
    peaks = [distances.amax() for distances in distances_to_others(coreset, maps, range(len(maps)))]
    return torch.stack(peaks).median().clamp_min(LEAST)


MEASURED = 200
"""Good images, evenly spaced, whose scores and distances say how much the two scatter."""

Side = Annotated[int, Field(ge=1)]
Role = Literal["both", "map", "score"]


class Neighbourhood(BaseModel):
    """What one memory remembers: means over the neighbours of a position, on as many levels as there are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: Side = Field(description="Of the square of neighbours, in positions of each level, odd.")
    levels: int = Field(
        1,
        ge=1,
        description="Levels that are concatenated: that of the stride and the next finer ones, on its grid.",
    )
    stride: int | None = Field(None, description="Level on whose grid it is remembered; None: the coarsest.")
    whitened: bool = Field(False, description="Whether features are compared in the units of how they scatter.")
    share: float = Field(1.0, gt=0, le=1, description="Means remembered, as a share of bank_size.")
    role: Role = Field("both", description="What its distances count for: the map, the image score, or both.")
    tolerance: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the squared distance between good images that is forgiven, where a feature lies: what "
        "varies among good parts counts less.",
    )

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Model files and runs of before these fields keep their form."""
        defaults = {"stride": None, "whitened": False, "share": 1.0, "role": "both", "tolerance": 0.0}
        return {name: value for name, value in dump(self).items() if value != defaults.get(name, ())}

    def of(self, levels: Sequence[Level]) -> Level:
        """The map to remember, or to compare with what is remembered, from the levels up to its own, finest first."""
        return average_embedding(levels[-self.levels :], self.side, levels[-1].shape[-2:])


class BankConfig(ModelConfig):
    """Settings of the memory bank; by default there is none, as in every paper."""

    bank: tuple[Side | Neighbourhood, ...] = Field(
        (),
        description="Neighbourhoods whose means over good images are remembered, each the odd side of one on the "
        "coarsest level, or {side: 3, levels: 2} to join levels; maps and scores count the distance to the nearest of "
        "them too. PatchCore's idea, in no paper on this method; [] remembers nothing.",
    )
    bank_size: int = Field(2000, ge=1, description="Means remembered of each neighbourhood.")
    bank_candidates: int = Field(
        CANDIDATES,
        ge=1,
        description="Means that those to remember are chosen among, drawn evenly from the good images.",
    )
    bank_views: int = Field(
        0,
        ge=0,
        le=100,
        description="Views of each good image that are remembered beside it, in another light, moved, and turned where "
        "other good images lie so too; up to five times as many of few images, at most 3000 in all.",
    )
    bank_weight: float = Field(
        0.75,
        gt=0,
        description="How much the distances of a neighbourhood scatter on good images, as a share of what the method's "
        "own map does.",
    )

    @model_validator(mode="after")
    def _consistent_bank(self) -> BankConfig:
        neighbourhoods = self.neighbourhoods
        if len(set(neighbourhoods)) < len(neighbourhoods) or any(each.side % 2 == 0 for each in neighbourhoods):
            raise ValueError("bank needs odd sides, each once, such as [1,5]; [] remembers nothing")
        missing = sorted({each.stride for each in neighbourhoods if each.stride is not None} - set(self.strides))
        if missing:
            raise ValueError(f"bank remembers strides {missing}, which are not among strides, {list(self.strides)}")
        for_score = [each.role == "score" for each in neighbourhoods]
        if any(for_score) and "score_share" not in type(self).model_fields:
            raise ValueError("bank's role score counts for nothing here: the image score is the map's; leave role out")
        if for_score and all(for_score) and getattr(self, "score_share", None) is None:
            raise ValueError("bank remembers for the image score alone, which needs score_share, such as 0.01")
        return self

    @property
    def neighbourhoods(self) -> tuple[Neighbourhood, ...]:
        """All that is remembered."""
        return tuple(Neighbourhood(side=each) if isinstance(each, int) else each for each in self.bank)


class MultiScaleMemoryBank(nn.Module):
    """Distances to remembered features, over some neighbourhoods, in the unit of the scores that they are added to.

    As made, before :meth:`fit`, it adds nothing.

    Args:
        channels: of all levels, finest first.
        size: features remembered of each.
        strides: of all levels, for neighbourhoods that name one.
        candidates: features that those to remember are chosen among.
    """

    means: Tensor
    scale: Tensor

    def __init__(
        self,
        channels: Sequence[int],
        neighbourhoods: Sequence[Neighbourhood],
        size: int,
        strides: Sequence[int] = (),
        *,
        candidates: int = CANDIDATES,
    ) -> None:
        super().__init__()
        self.neighbourhoods, self.candidates = tuple(neighbourhoods), candidates
        last = len(channels) - 1
        self.levels = tuple(last if each.stride is None else strides.index(each.stride) for each in neighbourhoods)
        self.memories = nn.ModuleList(
            MemoryBank(
                sum(channels[: level + 1][-each.levels :]),
                math.ceil(each.share * size),
                whitened=each.whitened,
                tolerant=each.tolerance > 0,
                coded=True,
            )
            for each, level in zip(neighbourhoods, self.levels, strict=True)
        )
        self.register_buffer("means", torch.zeros(len(neighbourhoods)))
        self.register_buffer("scale", torch.zeros(()))

    def forward(self, levels: Sequence[Level]) -> Float[Tensor, "batch height width"]:
        """What the map gets: Σ of (distance − mean) / spread, times the scale; about 0 on good images."""
        return self.evidence(levels, "map") * self.scale

    @property
    def counts_on_map(self) -> bool:
        """Whether any neighbourhood counts for the map, not for the image score alone."""
        return any(each.role != "score" for each in self.neighbourhoods)

    def evidence(self, levels: Sequence[Level], role: Role) -> Float[Tensor, "batch height width"]:
        """Σ of (distance − mean) / spread over the neighbourhoods that count for something, on their finest grid."""
        chosen = [number for number, each in enumerate(self.neighbourhoods) if each.role in ("both", role)]
        distances = [self._distances(levels, number) for number in chosen]
        grid = max((each.shape[-2:] for each in distances), key=lambda size: size[0] * size[1])
        resized = [each if each.shape[-2:] == grid else resize(each, grid) for each in distances]
        means = self.means.sum() if len(chosen) == len(self.neighbourhoods) else self.means[chosen].sum()
        return torch.stack(resized)[:, :, 0].sum(dim=0) - means

    def _distances(self, levels: Sequence[Level], number: int) -> Float[Tensor, "batch 1 height width"]:
        return self.memories[number](self.neighbourhoods[number].of(levels[: self.levels[number] + 1]))

    @torch.no_grad()
    def fit(self, images: FeatureSource, seed: int, shown: Int[Tensor, " row"] | None = None) -> None:
        """Remember good images, with a scale of 1.

        Mean and spread are those of the distances to other images' features. One image has no others, and copies of
        one do not differ: nothing says what is usual then, so the bank says 0 everywhere.

        Args:
            shown: the image that each row shows, numbered by the rows that come first; the others are views of them,
                which are remembered but say nothing of how far apart good images are. None: every row is an image.
        """
        shown = torch.arange(len(images)) if shown is None else shown
        count = int(shown.max()) + 1
        for number, (neighbourhood, memory) in enumerate(zip(self.neighbourhoods, self.memories, strict=True)):
            assert isinstance(memory, MemoryBank)
            side = neighbourhood.side
            maps, purpose = LevelMaps(images, self.levels[number], side, joined=neighbourhood.levels), f"bank {side}"
            drawn = draw_features(maps, seed, purpose=purpose, candidates=self.candidates)
            if memory.whitening is not None:
                memory.whitening.fit(drawn.features)
                maps.whitening = memory.whitening
                drawn = draw_features(maps, seed, purpose=purpose, candidates=self.candidates)
            drawn = Coreset(drawn.features, shown[drawn.images])
            coreset = coreset_of(drawn, len(memory.features))
            if memory.tolerance is not None:
                between = squared_distances_between_images(coreset, drawn)
                coreset = coreset._replace(tolerance=neighbourhood.tolerance * between)
            spread, mean = torch.tensor(torch.inf), torch.tensor(0.0)
            if count > 1:
                spread, mean = _scatter(distances_to_others(coreset, maps, measured_rows(count)))
            memory.fit(coreset.features, spread, coreset.tolerance)
            self.means[number] = mean / spread
        self.scale.fill_(1.0)


def measured_rows(images: int) -> list[int]:
    """Rows of the images that are measured: all, or evenly spaced ones of many."""
    return sorted({int(row) for row in np.linspace(0, images - 1, min(images, MEASURED)).round()})


def _scatter(maps: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean of all values; an infinite one where they do not differ, which gives no unit."""
    values = torch.cat([distances.flatten() for distances in maps]).double()
    spread = values.std(correction=0)
    return torch.where(spread > LEAST, spread, torch.inf).float(), values.mean().float()
