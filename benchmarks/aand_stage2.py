"""The second stage of AAND `fast`: a step on cached level maps against a step that runs the backbone on its images.

Both steps train the same student on the same images. The cached one reads the advanced teacher's maps, which were
computed when an image was first drawn. The uncached one runs the compiled backbone, one image at a time as extraction
does, and the amplifiers on images that are decoded and resized already. Pairs alternate within one run, and denormals
are flushed, as they are while training.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from common import milliseconds, page, paired, parser, table
from torch import Tensor

from flawsmith.data.layouts import load
from flawsmith.features.backbones import load_backbone
from flawsmith.features.cache import FeatureCache
from flawsmith.features.extract import extract, make_extractor
from flawsmith.models.aand.config import PRESETS
from flawsmith.models.aand.model import AAND
from flawsmith.models.aand.training import AdvancedTeacher
from flawsmith.models.components.batches import FeatureBatch
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.synthesis.demo_parts import render_product_line


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--pairs", type=int, default=30)
    options = arguments.parse_args()
    config = PRESETS["fast"]
    backbone = load_backbone(strides=config.strides)
    geometry = Geometry(size=config.image_size, mean=backbone.info.mean, std=backbone.info.std)
    extractor = make_extractor(backbone, config.image_size)
    model = AAND(config, backbone, seed=0).train()
    assert model.student is not None and model.amplifiers is not None
    amplifiers = model.amplifiers
    model.student.to(memory_format=torch.channels_last)
    torch.set_flush_denormal(True)
    (optimizer,) = model.make_optimizers()
    with TemporaryDirectory() as folder:
        (category,) = render_product_line(
            Path(folder), parts=("bracket",), n_train=64, n_test_good=0, n_per_defect=0, size=(256, 256), seed=0
        )
        paths = [sample.image for sample in load(category).good_train]
        images = np.stack([geometry.apply(decode(path)) for path in paths])
        table_of = FeatureCache("benchmark", Path(folder) / "cache").table(
            [path.name for path in paths],
            lambda rows: extract(extractor, images[rows]),
        )
        numbers = count()

        def rows() -> np.ndarray:
            return (np.arange(config.batch_size) + next(numbers) * config.batch_size) % len(paths)

        def step(levels: list[Tensor]) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model.losses(FeatureBatch(levels))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        def uncached() -> None:
            extracted = [extractor(images[[row]]) for row in rows()]
            with torch.no_grad():
                advanced = amplifiers(
                    [torch.from_numpy(np.concatenate(level)) for level in zip(*extracted, strict=True)]
                )
            step(advanced)

        teacher = AdvancedTeacher(table_of, amplifiers)
        teacher.batch(range(len(paths)))

        times = paired(
            lambda: step(teacher.batch(rows())), uncached, pairs=3 if options.quick else options.pairs, warm_up=3
        )
    cached, fresh = map(milliseconds, times.medians)
    heads = ("step of stage 2", "cached, ms", "uncached, ms", "uncached / cached")
    sections = [
        f"Preset `fast`, {config.batch_size} images of {config.image_size} pixels a step, bfloat16.\n\n"
        + table(heads, [("forward, backward, Adam", cached, fresh, times.ratio_text())])
    ]
    page("aand_stage2", "The second stage of AAND, cached and uncached", sections, write=options.write)


if __name__ == "__main__":
    main()
