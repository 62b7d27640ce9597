"""The training step of `official` at the paper's shapes: ours against a plain one, stage by stage.

wide_resnet50_2 with random weights, 288×288 pixels, batches of 8 images, 1296 centres. Ours reads level maps from the
feature cache (memory-mapped half precision, warm) and takes the losses that training takes; the plain one
(`plain_pbas.py`) takes images that are in memory already. Both have the same weights and centres. Pairs alternate
within one run; a speed-up is the median of the paired ratios, with the tenth and ninetieth percentile beside it.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import Pairs, page, paired, parser, table
from plain_pbas import PlainPBAS, backbone, embed
from torch import Tensor

from flawsmith.features.backbones import load_backbone
from flawsmith.features.cache import FeatureCache, FeatureTable
from flawsmith.features.extract import Extractor, make_extractor
from flawsmith.features.patch_embedding import as_rows
from flawsmith.models.components.batches import FeatureBatch
from flawsmith.models.pbas import PBAS

SIZE = (288, 288)
BATCH = 8
STEP = (0, 0)


@dataclass
class Setting:
    """Both implementations with the same weights and centres, and what they are fed with."""

    images: Tensor
    trunk: torch.nn.Module
    extractor: Extractor
    cached: FeatureTable
    plain: PlainPBAS
    ours: PBAS

    def rows_of_images(self) -> np.ndarray:
        """The rows of the cache that hold the images' features."""
        return np.arange(len(self.images))


@contextlib.contextmanager
def setting() -> Iterator[Setting]:
    """Everything at the paper's shapes; the cache lies in a temporary folder."""
    our_backbone = load_backbone("wide_resnet50_2@random")
    trunk = backbone()
    trunk.load_state_dict(our_backbone.trunk.state_dict())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, *SIZE, generator=generator)
    extractor = make_extractor(our_backbone, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache("official-step", Path(folder))
        one_by_one = lambda rows: ([level[0] for level in extractor(images[[row]].numpy())] for row in rows)  # noqa: E731
        cached = cache.table([str(number) for number in range(BATCH)], one_by_one)
        ours = PBAS(PBAS.presets["official"], our_backbone, seed=0).train()
        ours.fit_centers([FeatureBatch(cached.batch(range(BATCH)))])
        plain = PlainPBAS(ours.centers.clone())
        _share_weights(plain, ours)
        yield Setting(images, trunk, extractor, cached, plain, ours)


def _share_weights(plain: PlainPBAS, ours: PBAS) -> None:
    block = ours.discriminator.blocks[0]
    plain.projector.load_state_dict(ours.projector[0].state_dict())
    plain.first.load_state_dict(block.linear.state_dict())
    plain.norm.load_state_dict(block.norm.state_dict())
    plain.last.load_state_dict(ours.discriminator.out.state_dict())


class OurSteps:
    """Our step and its stages on a copy of the model, in float32 or under bfloat16 autocast, as bf16-mixed runs."""

    def __init__(self, case: Setting, *, bfloat16: bool) -> None:
        self.case, self.bfloat16 = case, bfloat16
        frozen = case.ours.backbone
        self.model = copy.deepcopy(case.ours, {id(frozen): frozen})
        self.optimisers = self.model.make_optimizers()

    def precision(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16)

    def read(self) -> list[Tensor]:
        """Level maps from the warm cache."""
        return self.case.cached.batch(self.case.rows_of_images())

    def embed(self, levels: list[Tensor]) -> Tensor:
        with torch.no_grad(), self.precision():
            return as_rows(self.model.embedding(levels))

    def forward(self, rows: Tensor) -> Tensor:
        """Eq. 10 of the embedding's rows."""
        with self.precision():
            return self.model.feature_losses(self.model.projector(rows), STEP)["loss"]

    def backward(self, loss: Tensor) -> None:
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        with self.precision():
            loss.backward()

    def update(self) -> None:
        for optimiser in self.optimisers:
            optimiser.step()

    def head(self, rows: Tensor) -> None:
        self.backward(self.forward(rows))
        self.update()

    def step(self) -> None:
        """From the cache to updated weights, through the model's own projection."""
        with self.precision():
            loss = self.model.losses(FeatureBatch(self.read(), None, STEP))["loss"]
        self.backward(loss)
        self.update()


class PlainSteps:
    """The plain step and its stages."""

    def __init__(self, case: Setting) -> None:
        self.case = case
        self.model = PlainPBAS(case.plain.centers.clone())
        self.model.load_state_dict(case.plain.state_dict())

    def levels(self) -> list[Tensor]:
        with torch.no_grad():
            return list(self.case.trunk(self.case.images))

    def embed(self, levels: list[Tensor]) -> Tensor:
        with torch.no_grad():
            return embed(levels)

    def backward(self, loss: Tensor) -> None:
        for optimiser in self.model.optimisers:
            optimiser.zero_grad()
        loss.backward()

    def update(self) -> None:
        for optimiser in self.model.optimisers:
            optimiser.step()

    def head(self, rows: Tensor) -> None:
        self.model.update(self.model.loss(rows))

    def step(self) -> None:
        """From images to updated weights."""
        self.head(self.embed(self.levels()))


def backward_pairs(first: PlainSteps, second: OurSteps, rows: tuple[Tensor, Tensor], pairs: int) -> Pairs:
    """Backward alone: each run needs a fresh graph, which is made before its clock starts."""
    times: list[tuple[float, float]] = []
    for _ in range(pairs + 1):
        losses = first.model.loss(rows[0]), second.forward(rows[1])
        run = paired(partial(first.backward, losses[0]), partial(second.backward, losses[1]), pairs=1, warm_up=0)
        times.append((run.first[0], run.second[0]))
    return Pairs(*(tuple(column) for column in zip(*times[1:], strict=True)))


def stage_rows(case: Setting, pairs: int) -> list[tuple[str, ...]]:
    """Every stage of the plain float32 step against ours, in float32 and in bfloat16."""
    rows: list[tuple[str, ...]] = []
    for name, bfloat16 in (("float32", False), ("bfloat16", True)):
        rows += [(stage, name, *times.speed_up()) for stage, times in stages(case, pairs, bfloat16=bfloat16).items()]
    return rows


def stages(case: Setting, pairs: int, *, bfloat16: bool) -> dict[str, Pairs]:
    """The stages of the plain step and of ours in one precision, in the order of the step."""
    plain, ours = PlainSteps(case), OurSteps(case, bfloat16=bfloat16)
    plain_levels, our_levels = plain.levels(), ours.read()
    embedded = plain.embed(plain_levels), ours.embed(our_levels)
    plain.head(embedded[0])
    ours.head(embedded[1])
    tasks: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("backbone, or reading the warm cache", plain.levels, ours.read),
        ("embedding", lambda: plain.embed(plain_levels), lambda: ours.embed(our_levels)),
        ("head: forward", lambda: plain.model.loss(embedded[0]), lambda: ours.forward(embedded[1])),
        ("head: update", plain.update, ours.update),
        ("**head**", lambda: plain.head(embedded[0]), lambda: ours.head(embedded[1])),
        ("**whole step**", plain.step, ours.step),
    ]
    times = {stage: paired(one, two, pairs=pairs, warm_up=1) for stage, one, two in tasks}
    times["head: backward"] = backward_pairs(plain, ours, embedded, pairs)
    order = [stage for stage, *_ in tasks]
    order.insert(order.index("head: update"), "head: backward")
    return {stage: times[stage] for stage in order}


def extraction(case: Setting, pairs: int) -> Pairs:
    """The plain backbone on the batch against our compiled one, image by image: what a cold cache costs once a run."""
    plain = PlainSteps(case)
    images = [case.images[[row]].numpy() for row in range(BATCH)]
    return paired(plain.levels, lambda: [case.extractor(image) for image in images], pairs=pairs, warm_up=1)


def equality(case: Setting) -> list[tuple[str, str, str, str]]:
    """Loss of Eq. 10 in float32 on features that were not cached: each side computes its own from the images."""
    plain, ours = PlainSteps(case), OurSteps(case, bfloat16=False)
    plain_levels = plain.levels()
    extracted = [case.extractor(case.images[[row]].numpy()) for row in range(BATCH)]
    our_levels = [torch.from_numpy(np.concatenate(level)) for level in zip(*extracted, strict=True)]
    reference = plain.embed(plain_levels)
    cases = {
        "the embedding alone is ours": ours.embed(plain_levels),
        "backbone and embedding are ours": ours.embed(our_levels),
    }
    expected = float(plain.model.loss(reference).detach())
    rows = []
    for name, embedded in cases.items():
        loss = float(ours.forward(embedded).detach())
        gap = float((embedded - reference).abs().max() / reference.abs().max())
        rows.append((name, f"{expected:.7f}", f"{loss:.7f}", f"{abs(loss - expected) / expected:.1e} / {gap:.1e}"))
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--pairs", type=int, default=15)
    given_arguments = arguments.parse_args()
    pairs = 2 if given_arguments.quick else given_arguments.pairs
    torch.set_flush_denormal(True)
    with setting() as case:
        equal = equality(case)
        cold = extraction(case, pairs)
        by_stage = stage_rows(case, pairs)
    plain_ms, our_ms, speed_up = cold.speed_up()
    sections = [
        f"wide_resnet50_2 with random weights, {SIZE[0]}×{SIZE[1]} pixels, {BATCH} images a step, "
        f"{case.plain.centers.shape[0]} "
        f"centres, {torch.get_num_threads()} threads. The plain step is always float32; ours is float32, or "
        "bfloat16 where "
        f"`bf16-mixed` has it. {pairs} alternating pairs; the speed-up is the median of the paired ratios "
        "plain / ours (tenth "
        "to ninetieth percentile).",
        "## The same loss\n\nEq. 10 in float32, same weights and centres, features computed from the images "
        "by each side "
        "(nothing cached).\n\n"
        + table(("features", "plain", "ours", "relative difference: loss / largest of the embedding"), equal),
        "## Stage by stage\n\n"
        + table(("stage", "ours in", "plain, ms", "ours, ms", "speed-up"), by_stage)
        + "\n\nThe head goes from the embedding's rows to updated weights. The whole step begins with images in memory "
        "(plain), or with level maps in the warm cache (ours).",
        "## Filling the cache\n\nOnce a run, and never again for the same images and backbone: the backbone "
        "of 8 images takes "
        f"{plain_ms} ms in eager torch as one batch and {our_ms} ms compiled, image by image ({speed_up} "
        "times faster).",
    ]
    page("official_step", "The training step of `official`", sections, write=given_arguments.write)


if __name__ == "__main__":
    main()
