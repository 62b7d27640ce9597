"""Fast forms of what the methods' ``functional.py`` writes plainly; property tests hold the two against each other.

Gradient ascent in the hidden space (GLASS, Eq. 1). The released code concatenates normal features u and synthetic ones
g, runs the whole discriminator forwards and backwards, moves g by a step along its normalised gradient, and repeats
this twenty times. The weights do not change meanwhile, and the first layer is linear: h = W·g + b. A gradient at g is
therefore Wᵀδ with δ the gradient at h, its length is √(δᵀ(WWᵀ)δ), and a step of g by s·Wᵀδ moves h by s·(WWᵀ)δ. So the
steps need one product with the small matrix WWᵀ instead of two with W, and g itself is needed only where it is
projected: g + Wᵀ Σ s·δ. The normal half enters the loss of no step; it only takes part in the batch norm's statistics,
whose sums are computed once.

Rays in the hidden space (PBAS, Eq. 7): W·a for a = f + t·(f − c) is (1 + t)·W·f − t·W·c, so a is never formed.

Folding (GLASS around the manifold, drawn positions, training): no loss looks at an adapted feature itself, so that
adaptor and first layer are multiplied with each other before they meet the embedding, and g = u + ε̃ has the hidden
value of u and that of ε̃ (``GLASS._folded_losses``).

Margins of all pairs (AAND, Eq. 7): value and gradient of a piece of the table before the next one is made.

Cosines (AAND): lengths and products of a position are sums over its channels. In training those of the position add up
to those of the image; in inspection they are convolutions with ones, which both engines compute by vector instructions:
ONNX Runtime adds up along any axis but the last one value at a time.

Folding (GLASS and PBAS, inference): projector, first linear layer and its batch norm are one linear map of the
embedding, which is a sum over levels; a coarse level is mapped on its own small grid, and only the result is resized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from flawsmith.models.base import full_precision
from flawsmith.models.components.heads import EPSILON, LEAKY_SLOPE, Discriminator

COSINE_LEAST = 1e-8
"""Least length that a cosine divides by, as in ``F.cosine_similarity``."""
NORMALIZE_LEAST = 1e-12
"""Least length that a vector is divided by, as in ``F.normalize``."""
CHUNK_BYTES = 2**20
"""Rows are worked on in pieces of this size, which stay in a core's cache through all operations of a step."""


class AscentStep(NamedTuple):
    """What the discriminator's forward pass of a step saw, before the step moved anything.

    Attributes:
        mean: of the first layer's output over both halves.
        variance: biased, over both halves.
        logits: of the synthetic features.
    """

    mean: Float[Tensor, " hidden"]
    variance: Float[Tensor, " hidden"]
    logits: Float[Tensor, " position"]


class HiddenAscent:
    """Ascends the discriminator's loss of calling synthetic features anomalous: towards what looks normal.

    Args:
        discriminator: with one hidden layer, in training mode; its weights stay as they are, while the running
            statistics of its batch norm are updated with every step, as a forward pass would.
        normal: the first layer's output for the normal features; what they contribute to the batch norm's statistics is
            computed once.
        hidden: the first layer's output for the synthetic features.
        step_size: length of a step in feature space.

    Example:
        >>> discriminator, normal, synthetic = Discriminator(4, hidden=8), torch.randn(6, 4), torch.randn(5, 4)
        >>> first = discriminator.blocks[0].linear
        >>> ascent = HiddenAscent(discriminator, first(normal), first(synthetic), step_size=0.1)
        >>> ascent.step().logits.shape
        torch.Size([5])
        >>> torch.linalg.vector_norm(ascent.moved(), dim=1).round(decimals=3)
        tensor([0.1000, 0.1000, 0.1000, 0.1000, 0.1000])
    """

    def __init__(
        self,
        discriminator: Discriminator,
        normal: Float[Tensor, "normal_position hidden"],
        hidden: Float[Tensor, "position hidden"],
        *,
        step_size: float,
    ) -> None:
        (block,) = discriminator.blocks
        self._norm, self._step_size = block.norm, step_size
        normal = normal.detach().float()
        # All hidden values are kept relative to this mean, so that sums of squares do not cancel.
        self._shift = normal.mean(dim=0)
        parts = (part - self._shift for part in _pieces(normal))
        self._squares = sum((part.square().sum(dim=0) for part in parts), torch.zeros_like(self._shift))
        weight = block.linear.weight.detach()
        self._weight = weight.to(_product_dtype(weight))
        self._gram = (weight @ weight.T).to(self._weight.dtype)
        self._out = discriminator.out.weight.detach()[0]
        self._synthetic, self._count = len(hidden), len(normal) + len(hidden)
        self.restart(hidden)

    def restart(self, hidden: Float[Tensor, "position hidden"]) -> None:
        """Go on from other synthetic features, such as projected ones."""
        self._hidden = hidden.detach().float() - self._shift
        self._steps = torch.zeros_like(self._hidden)
        self._sums = self._hidden.sum(dim=0), self._hidden.square().sum(dim=0)

    @property
    def hidden(self) -> Float[Tensor, "position hidden"]:
        """The first layer's output for the features where they are now."""
        return self._hidden + self._shift

    def moved(self) -> Float[Tensor, "position width"]:
        """How far the features have moved since the last restart: Wᵀ Σ s·δ."""
        return (self._steps.to(self._weight.dtype) @ self._weight).float()

    @torch.no_grad()
    def step(self) -> AscentStep:
        """One step of Eq. 1: every feature moves by η·∇/‖∇‖, ∇ the gradient of L_gas (Eq. 6)."""
        mean, variance = self._statistics()
        scale = self._norm.weight * torch.rsqrt(variance + self._norm.eps)
        offset = self._norm.bias - mean * scale
        logits, errors, coupling = self._backward(scale, offset)
        self._move(scale, offset, errors, self._through_norm(scale, mean, variance, *coupling))
        return AscentStep(mean + self._shift, variance, logits)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance over both halves, relative to the shift; the running ones learn of them."""
        norm, count = self._norm, self._count
        total, squares = self._sums
        mean = total / count
        variance = (self._squares + squares) / count - mean.square()
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        assert norm.momentum is not None
        norm.running_mean.lerp_(mean + self._shift, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
        norm.num_batches_tracked.add_(1)
        return mean, variance

    def _slopes(self, hidden: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """The batch norm's output, and the logit's derivative with respect to it."""
        normalised = torch.addcmul(offset, hidden, scale)
        # The operator behind F.leaky_relu's gradient: thirty times faster on a CPU than torch.where.
        out = self._out.expand_as(normalised)
        return normalised, torch.ops.aten.leaky_relu_backward(out, normalised, LEAKY_SLOPE, False)

    def _backward(self, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Logits, the loss's derivative with respect to them, and the sums over positions that couple the batch.

        The sums are those of the gradient at the batch norm's output, and of that gradient times its input.
        """
        logits, errors = [], []
        sums = torch.zeros_like(scale), torch.zeros_like(scale)
        for hidden in _pieces(self._hidden):
            normalised, slopes = self._slopes(hidden, scale, offset)
            logits.append(normalised.mul_(slopes).sum(dim=1))  # leaky ReLU times the last weight
            errors.append(torch.sigmoid(-logits[-1]).div_(-self._synthetic))
            sums[0].addmv_(slopes.T, errors[-1])
            sums[1].addmv_(slopes.mul_(hidden).T, errors[-1])
        return torch.cat(logits), torch.cat(errors), sums

    def _through_norm(
        self, scale: Tensor, mean: Tensor, variance: Tensor, gradients: Tensor, gradients_times_input: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Constant a and factor b of the part a + b·h of the gradient that comes through the batch's statistics."""
        inverse = torch.rsqrt(variance + self._norm.eps)
        correlated = inverse * (gradients_times_input - mean * gradients)
        factor = scale * inverse * correlated / self._count
        return scale * gradients / self._count - factor * mean, factor

    def _move(self, scale: Tensor, offset: Tensor, errors: Tensor, through: tuple[Tensor, Tensor]) -> None:
        """Move every feature along its gradient, in hidden space, and sum up where all are now."""
        sums = torch.zeros_like(scale), torch.zeros_like(scale)
        pieces = zip(_pieces(self._hidden), _pieces(self._steps), torch.split(errors, _rows(self._hidden)), strict=True)
        for hidden, steps, error in pieces:
            _, slopes = self._slopes(hidden, scale, offset)
            gradient = slopes.mul_(scale).mul_(error[:, None])
            gradient.sub_(torch.addcmul(through[0], hidden, through[1]))
            image = (gradient.to(self._gram.dtype) @ self._gram).float()
            length = (gradient * image).sum(dim=1).clamp_min_(0).sqrt_()
            factor = (self._step_size / (length + EPSILON))[:, None]
            steps.addcmul_(gradient, factor)
            hidden.addcmul_(image, factor)
            sums[0].add_(hidden.sum(dim=0))
            sums[1].add_(hidden.square().sum(dim=0))
        self._sums = sums


def _rows(matrix: Tensor) -> int:
    return max(1, CHUNK_BYTES // (4 * matrix.shape[1]))


def _pieces(matrix: Tensor) -> tuple[Tensor, ...]:
    """Views of some rows each."""
    return torch.split(matrix, _rows(matrix))


def _product_dtype(weight: Tensor) -> torch.dtype:
    """The type that matrix products run in: autocast's where it is on."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class _Distance(torch.autograd.Function):
    """Distance of features to their centres: the gradient is the unit offset, in one pass over memory."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, centers: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
        offset = torch.sub(features, centers[nearest])
        distance = torch.linalg.vector_norm(offset, dim=1)
        ctx.save_for_backward(offset, distance)
        ctx.mark_non_differentiable(offset)
        return distance, offset

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        offset, distance = ctx.saved_tensors
        return offset * (gradients[0] / safe_length(distance))[:, None], None, None


def distance_to_centers(
    features: Float[Tensor, "position width"],
    centers: Float[Tensor, "center width"],
    nearest: Int[Tensor, " position"],
) -> tuple[Float[Tensor, " position"], Float[Tensor, "position width"]]:
    """Euclidean distance of every feature to its centre, and the offset feature − centre, which carries no gradient.

    A feature that lies on its centre has the gradient zero.

    Example:
        >>> distance_to_centers(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), torch.tensor([0]))
        (tensor([5.]), tensor([[3., 4.]]))
    """
    return _Distance.apply(features, centers, nearest)


def safe_length(distance: Tensor) -> Tensor:
    """Distances that may be divided by; a zero offset stays zero after the division.

    Example:
        >>> torch.zeros(1) / safe_length(torch.zeros(1))
        tensor([0.])
    """
    return distance.clamp_min(torch.finfo(distance.dtype).tiny ** 0.5)


class _RayHidden(torch.autograd.Function):
    """W·a for a = f + t·(f − c) equals (1 + t)·W·f − t·W·c, so neither forward nor backward ever forms a.

    Half of the matrix products of a plain implementation disappear: those with the anomalous features. The offset
    t·(f − c) is a constant to the gradient of f, yet it takes part in the gradient of W.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, centers: Tensor, nearest: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.save_for_backward(features, centers, nearest, lengths, weight)
        both = features.new_empty(2, len(features), len(weight))
        normal, anomalous = both
        torch.addmm(bias, features, weight.T, out=normal)
        of_centers = torch.addmm(bias, centers, weight.T)
        torch.sub(normal, of_centers[nearest], out=anomalous).mul_(lengths[:, None]).add_(normal)
        return both.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, centers, nearest, lengths, weight = ctx.saved_tensors
        of_normal, of_anomalous = gradients[0].chunk(2)
        both = of_normal + of_anomalous
        stepped = of_anomalous * lengths[:, None]
        at_centers = stepped.new_zeros(len(centers), stepped.shape[1]).index_add_(0, nearest, stepped)
        gradient_features = both @ weight
        gradient_bias = both.sum(dim=0)
        gradient_weight = both.add_(stepped).T @ features - at_centers.T @ centers
        return gradient_features, None, None, None, gradient_weight, gradient_bias


def ray_hidden(
    features: Float[Tensor, "position width"],
    centers: Float[Tensor, "center width"],
    nearest: Int[Tensor, " position"],
    lengths: Float[Tensor, " position"],
    weight: Float[Tensor, "hidden width"],
    bias: Float[Tensor, " hidden"],
) -> Float[Tensor, "both_positions hidden"]:
    """The linear layer's outputs for the features and then for the anomalies f + t·(f − c), t a constant.

    Under autocast the matrix products run in its precision, as those of a linear layer would.

    Example:
        >>> features, centers, nearest = torch.tensor([[2.0]]), torch.tensor([[1.0]]), torch.tensor([0])
        >>> ray_hidden(features, centers, nearest, torch.tensor([0.5]), torch.tensor([[10.0]]), torch.zeros(1))
        tensor([[20.],
                [25.]])
    """
    if torch.is_autocast_enabled(features.device.type):
        dtype = torch.get_autocast_dtype(features.device.type)
        features, centers, weight, bias = (t.to(dtype) for t in (features, centers, weight, bias))
        with torch.autocast(features.device.type, enabled=False):
            return _RayHidden.apply(features, centers, nearest, lengths.to(dtype), weight, bias)
    return _RayHidden.apply(features, centers, nearest, lengths, weight, bias)


def channel_sum(maps: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch 1 height width"]:
    """The sum over the channels of every position, on a CPU as a convolution with ones.

    Example:
        >>> channel_sum(torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]))
        tensor([[[[4., 6.]]]])
    """
    if maps.device.type != "cpu":  # where convolutions may take shorter products
        return maps.sum(dim=1, keepdim=True)
    return F.conv2d(maps, maps.new_ones(1, maps.shape[1], 1, 1))


def channel_length(
    maps: Float[Tensor, "batch channel height width"], least: float
) -> Float[Tensor, "batch 1 height width"]:
    """Length over the channels of every position, and no less than ``least``.

    Example:
        >>> channel_length(torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]]), 0.5)
        tensor([[[[5.0000, 0.5000]]]])
    """
    return channel_sum(maps * maps).clamp_min(least**2).sqrt()  # in this order: a root has no slope at 0


def cosine_distance_map(
    first: Float[Tensor, "batch channel height width"], second: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, "batch height width"]:
    """1 − s over the channels of every position, in [0, 2], float32 (AAND, Eq. 13).

    Example:
        >>> cosine_distance_map(torch.ones(1, 2, 1, 1), torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1))
        tensor([[[1.]]])
    """
    first, second = first.float(), second.float()
    with full_precision(first.device):
        lengths = channel_length(first, COSINE_LEAST) * channel_length(second, COSINE_LEAST)
        return (1 - channel_sum(first * second) / lengths)[:, 0]


def cosine_distances(
    first: Float[Tensor, "batch channel height width"], second: Float[Tensor, "batch channel height width"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch height width"]]:
    """1 − s of the flattened maps, and of every position over its channels, from the same three sums (AAND, 10 and 13).

    Maps in channels-last order stay so, in both directions.

    Example:
        >>> first, second = torch.ones(1, 2, 1, 2), torch.tensor([[[[1.0, 1.0]], [[1.0, -1.0]]]])
        >>> [distances.round(decimals=4).abs().tolist() for distances in cosine_distances(first, second)]
        [[0.5], [[[0.0, 1.0]]]]
    """
    first, second = first.float(), second.float()
    pairs = ((first, second), (first, first), (second, second))
    by_position = [(values * others).sum(dim=1) for values, others in pairs]
    whole = [sums.sum(dim=(1, 2)) for sums in by_position]
    of_image, of_position = (_distance_from_sums(*sums) for sums in (whole, by_position))
    return of_image, of_position


def _distance_from_sums(products: Tensor, squares: Tensor, other_squares: Tensor) -> Tensor:
    lengths = squares.clamp_min(COSINE_LEAST**2).sqrt() * other_squares.clamp_min(COSINE_LEAST**2).sqrt()
    return 1 - products / lengths


class _MeanMargins(torch.autograd.Function):
    """Both directions at once, in pieces that stay in a core's cache: the table of all pairs is never in memory."""

    @staticmethod
    def forward(ctx: Any, moved: Tensor, normal: Tensor, margin: float) -> Tensor:
        others, margins = normal.T.contiguous(), moved.new_full((1, 1), margin)
        total, gradient = moved.new_zeros(()), torch.empty_like(moved)
        # A GPU has no such cache, and waits for every piece.
        rows = max(1, CHUNK_BYTES // (4 * len(normal))) if moved.device.type == "cpu" else len(moved)
        for part, of_part in zip(torch.split(moved, rows), torch.split(gradient, rows), strict=True):
            pairs = torch.addmm(margins, part, others).relu_()
            total += pairs.sum()
            torch.mm(pairs.sign_(), normal, out=of_part)
        count = len(moved) * len(normal)
        ctx.save_for_backward(gradient.div_(count))
        return total / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None


def mean_margins(
    moved: Float[Tensor, "position channel"], normal: Float[Tensor, "other channel"], margin: float
) -> Float[Tensor, ""]:
    """The mean over all pairs of max(0, moved_i · normal_j + margin), as AAND's Eq. 7 takes it.

    Example:
        >>> mean_margins(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[2.0, 0.0]]), 0.5)
        tensor(1.2500)
    """
    if normal.requires_grad:  # not in AAND, whose normal features are those of the frozen teacher
        return (moved @ normal.T + margin).relu().mean()
    return _MeanMargins.apply(moved, normal, margin)


def amplification_loss(
    amplified: Float[Tensor, "position channel"],
    anomalous: Float[Tensor, "position channel"],
    normal: Float[Tensor, "other channel"],
    *,
    margin: float,
) -> Float[Tensor, ""]:
    """As :func:`flawsmith.models.aand.functional.amplification_loss` (AAND, Eq. 7)."""
    if not len(amplified) or not len(normal):
        return amplified.new_zeros(()).float()
    with full_precision(normal.device):
        moved = F.normalize(amplified.float(), dim=1) - F.normalize(anomalous.float(), dim=1)
        return mean_margins(moved, F.normalize(normal.float(), dim=1), margin)


def matched_anomaly_weight(
    queries: Float[Tensor, "batch channel height width"], memory: Float[Tensor, "item channel"], temperature: float
) -> Float[Tensor, "batch 1 height width"]:
    """Eqs. 3 and 4 of AAND at once: the softmax over a memory whose second half is anomalous, and the sum over that.

    The sum is a product of rows of positions, as the softmax leaves them.

    Example:
        >>> memory = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
        >>> matched_anomaly_weight(torch.ones(1, 2, 1, 1), memory, 1.0).round(decimals=4)
        tensor([[[[0.7311]]]])
    """
    queries = queries.float()
    with full_precision(queries.device):
        rows = (queries / channel_length(queries, NORMALIZE_LEAST)).flatten(2).transpose(1, 2)
        weights = (rows @ F.normalize(memory.float(), dim=1).T / temperature).softmax(dim=2)
        is_anomalous = (torch.arange(len(memory), device=memory.device) >= len(memory) // 2).float()
        return (weights @ is_anomalous[:, None]).reshape(queries.shape[0], 1, *queries.shape[2:])


def fold_linear(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of linear layers applied one after another.

    Example:
        >>> layers, rows = [nn.Linear(3, 4), nn.Linear(4, 2)], torch.rand(5, 3)
        >>> weight, bias = fold_linear(layers)
        >>> torch.allclose(rows @ weight.float().T + bias.float(), layers[1](layers[0](rows)), atol=1e-6)
        True
    """
    size, device = layers[0].in_features, layers[0].weight.device
    weight = torch.eye(size, dtype=torch.float64, device=device)
    bias = torch.zeros(size, dtype=torch.float64, device=device)
    for layer in layers:
        weight, bias = layer.weight.double() @ weight, layer.weight.double() @ bias + layer.bias.double()
    return weight, bias


def fold_norm(weight: Tensor, bias: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear map followed by a batch norm in evaluation mode.

    Example:
        >>> weight, bias = fold_norm(torch.ones(2, 3), torch.ones(2), nn.BatchNorm1d(2, eps=0).eval())
        >>> weight[0].tolist(), bias.tolist()
        ([1.0, 1.0, 1.0], [1.0, 1.0])
    """
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale[:, None] * weight, scale * (bias - norm.running_mean.double()) + norm.bias.double()


def pointwise(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A 1×1 convolution with the given weight (outputs, inputs) and bias.

    Example:
        >>> pointwise(torch.ones(2, 3))(torch.ones(1, 3, 1, 1)).flatten().tolist()
        [3.0, 3.0]
    """
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None, device=weight.device)
    layer.weight.data = weight.detach().float()[:, :, None, None]
    if bias is not None:
        assert layer.bias is not None
        layer.bias.data = bias.detach().float()
    return layer
