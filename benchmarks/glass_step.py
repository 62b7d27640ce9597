"""One training iteration of GLASS `official` at the paper's shapes: ours against a plain one.

wide_resnet50_2 with random weights, 288×288 pixels, 8 normal and 8 synthetic images, 1296 positions an image. Ours
reads the normal images' level maps from the warm cache, computes those of the synthetic images with the compiled
backbone, and takes the losses that training takes; the plain one (`plain_glass.py`) runs the backbone on both halves in
eager torch, unfolds, and passes [u; g] through the whole discriminator 21 times. Both have the same weights, centres
and noise.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from common import milliseconds, page, paired, parser, table
from plain_glass import NOISE, PlainGLASS
from plain_pbas import backbone, embed
from torch import Tensor

from flawsmith.features.backbones import load_backbone
from flawsmith.features.cache import FeatureCache, FeatureTable
from flawsmith.features.extract import Extractor, make_extractor
from flawsmith.models.components.batches import FeatureBatch, PairedBatch
from flawsmith.models.glass.hypothesis import Hypothesis
from flawsmith.models.glass.model import GLASS

SIZE = (288, 288)
BATCH = 8
STEP = (0, 0)
FLAWED_SHARE = 0.1


@dataclass
class Setting:
    """Both implementations with the same weights, and what they are fed with."""

    normal: Tensor
    synthetic: Tensor
    anomalous: Tensor
    trunk: torch.nn.Module
    extractor: Extractor
    cached: FeatureTable
    ours: GLASS
    plain: PlainGLASS


@contextlib.contextmanager
def setting() -> Iterator[Setting]:
    """Everything at the paper's shapes; the cache lies in a temporary folder."""
    our_backbone = load_backbone("wide_resnet50_2@random")
    trunk = backbone()
    trunk.load_state_dict(our_backbone.trunk.state_dict())
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(BATCH, 3, *SIZE, generator=generator)
    synthetic = normal + 0.3 * torch.randn(BATCH, 3, *SIZE, generator=generator)
    extractor = make_extractor(our_backbone, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        one_by_one = lambda rows: ([level[0] for level in extractor(normal[[row]].numpy())] for row in rows)  # noqa: E731
        cached = FeatureCache("glass-step", Path(folder)).table([str(row) for row in range(BATCH)], one_by_one)
        ours = GLASS(GLASS.presets["official"], our_backbone, seed=0).train()
        ours.fit_center([FeatureBatch(cached.batch(range(BATCH)))])
        anomalous = torch.rand(BATCH * len(ours.mean_embedding), generator=generator) < FLAWED_SHARE
        plain = PlainGLASS()
        block = ours.discriminator.blocks[0]
        plain.adaptor.load_state_dict(ours.projector[0].state_dict())
        plain.first.load_state_dict(block.linear.state_dict())
        plain.norm.load_state_dict(block.norm.state_dict())
        plain.last.load_state_dict(ours.discriminator.out.state_dict())
        yield Setting(normal, synthetic, anomalous, trunk, extractor, cached, ours, plain)


class OurIteration:
    """Our iteration on a copy of the model, in float32 or under bfloat16 autocast, as Lightning's bf16-mixed runs."""

    def __init__(self, case: Setting, mode: Hypothesis, *, bfloat16: bool) -> None:
        self.case, self.bfloat16 = case, bfloat16
        frozen = case.ours.backbone
        self.model = copy.deepcopy(case.ours, {id(frozen): frozen})
        self.model.spherical.fill_(mode == "hypersphere")
        self.model.start_epoch()
        self.optimisers = self.model.make_optimizers()

    def forged_levels(self) -> list[Tensor]:
        return [torch.from_numpy(level) for level in self.case.extractor(self.case.synthetic.numpy())]

    def batch(self) -> PairedBatch:
        """Normal levels from the warm cache, synthetic ones from the compiled backbone."""
        normal = FeatureBatch(self.case.cached.batch(range(BATCH)), None, STEP)
        return PairedBatch(normal, self.forged_levels(), self.case.anomalous)

    def loss(self, batch: PairedBatch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            return self.model.losses(batch)["loss"]

    def branches(self, batch: PairedBatch) -> None:
        """Everything up to the features of the three branches: adaptor, ascent, projections."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16), torch.no_grad():
            self.model.branches(batch)

    def update(self, loss: Tensor) -> None:
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            loss.backward()
        for optimiser in self.optimisers:
            optimiser.step()

    def head(self, batch: PairedBatch) -> None:
        self.update(self.loss(batch))

    def iteration(self) -> None:
        self.head(self.batch())


class PlainIteration:
    """The plain iteration on a copy of the model."""

    def __init__(self, case: Setting, mode: Hypothesis) -> None:
        self.case, self.mode = case, mode
        self.model = PlainGLASS()
        self.model.load_state_dict(case.plain.state_dict())
        self.noise = case.ours.noise(torch.empty(len(case.anomalous), case.ours.embedding.width), STEP)
        self.centers = case.ours.centers()
        assert case.ours.config.noise == NOISE

    @torch.no_grad()
    def rows(self, images: Tensor) -> Tensor:
        return embed(list(self.case.trunk(images)))

    def loss(self, normal: Tensor, synthetic: Tensor) -> Tensor:
        return self.model.loss(normal, synthetic, self.case.anomalous, self.centers, self.noise, self.mode)

    def head(self, normal: Tensor, synthetic: Tensor) -> None:
        self.model.update(self.loss(normal, synthetic))

    def iteration(self) -> None:
        self.head(self.rows(self.case.normal), self.rows(self.case.synthetic))


def equality(case: Setting, mode: Hypothesis) -> tuple[str, ...]:
    """The float32 loss of both on features that each computed from the images; nothing cached."""
    plain, ours = PlainIteration(case, mode), OurIteration(case, mode, bfloat16=False)
    normal = FeatureBatch([torch.from_numpy(level) for level in case.extractor(case.normal.numpy())], None, STEP)
    expected = float(plain.loss(plain.rows(case.normal), plain.rows(case.synthetic)).detach())
    loss = float(ours.loss(PairedBatch(normal, ours.forged_levels(), case.anomalous)).detach())
    return mode, f"{expected:.7f}", f"{loss:.7f}", f"{abs(loss - expected) / expected:.1e}"


def timings(case: Setting, pairs: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for mode in ("manifold", "hypersphere"):
        for bfloat16 in (False, True):
            plain, ours = PlainIteration(case, mode), OurIteration(case, mode, bfloat16=bfloat16)
            times = paired(plain.iteration, ours.iteration, pairs=pairs, warm_up=1)
            rows.append((mode, "bfloat16" if bfloat16 else "float32", *times.speed_up()))
    return rows


def parts(case: Setting, pairs: int) -> list[tuple[str, ...]]:
    """Where our time goes, and the same part of the plain iteration where there is one."""
    plain = PlainIteration(case, "manifold")
    embedded = plain.rows(case.normal), plain.rows(case.synthetic)
    rows: list[tuple[str, ...]] = []
    for bfloat16 in (False, True):
        ours = OurIteration(case, "manifold", bfloat16=bfloat16)
        batch = ours.batch()
        name = "bfloat16" if bfloat16 else "float32"
        backbones = paired(lambda: plain.rows(case.synthetic), ours.forged_levels, pairs=pairs, warm_up=1)
        heads = paired(lambda: plain.head(*embedded), partial(ours.head, batch), pairs=pairs)
        times = paired(
            partial(ours.loss, batch),
            partial(ours.branches, batch),
            pairs=pairs,
        )
        rows += [
            ("backbone and embedding, or compiled backbone, of the synthetic half", name, *backbones.speed_up()),
            ("head, from embedding to updated weights", name, *heads.speed_up()),
            ("of ours: forward in all", name, "", milliseconds(times.medians[0]), ""),
            ("of ours: adaptor, ascent and projections", name, "", milliseconds(times.medians[1]), ""),
        ]
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--pairs", type=int, default=3)
    given_arguments = arguments.parse_args()
    pairs = 1 if given_arguments.quick else given_arguments.pairs
    torch.set_flush_denormal(True)
    with setting() as case:
        equal = [equality(case, mode) for mode in ("manifold", "hypersphere")]
        whole = timings(case, pairs)
        by_part = parts(case, pairs)
    heads = ("part", "ours in", "plain, ms", "ours, ms", "speed-up")
    sections = [
        f"wide_resnet50_2 with random weights, {SIZE[0]}×{SIZE[1]} pixels, {BATCH} normal and {BATCH} synthetic images "
        f"an iteration, {len(case.anomalous)} positions each, {torch.get_num_threads()} threads, {pairs} alternating "
        "pairs. The plain iteration is always float32. The speed-up is the median of the paired ratios plain / ours.",
        "## The same loss\n\nIn float32, features computed from the images by each side.\n\n"
        + table(("hypothesis", "plain", "ours", "relative difference"), equal),
        "## The whole iteration\n\nFrom images in memory (plain), or from the warm cache and synthetic images in "
        "memory (ours), to updated weights. Synthesis runs in other processes and is measured in synthesis.md.\n\n"
        + table(("hypothesis", *heads[1:]), whole),
        f"## Where the time goes\n\n{table(heads, by_part)}",
    ]
    page("glass_step", "One training iteration of GLASS", sections, write=given_arguments.write)


if __name__ == "__main__":
    main()
