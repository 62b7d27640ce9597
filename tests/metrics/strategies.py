"""Hypothesis strategies: small sets of maps with masks, heavily tied."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

# Few distinct values, so that ties are the rule; -inf stands for pixels that were not inspected.
LEVELS = np.array([-np.inf, -1.5, -0.0, 0.0, 0.25, 0.5, 1.0, 3.0], dtype=np.float32)


@st.composite
def map_sets(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """One to four maps of different sizes with masks of any density, tied or continuous scores."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.05, 0.3, 0.9, 1.0]))
    tied = draw(st.booleans())
    maps, masks = [], []
    for _ in range(draw(st.integers(1, 4))):
        size = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
        scores = generator.choice(LEVELS, size) if tied else generator.normal(size=size).astype(np.float32)
        maps.append(scores)
        masks.append(generator.random(size) < density)
    return maps, masks


@st.composite
def defect_sets(draw: st.DrawFn) -> tuple[list[np.ndarray], list[tuple[int, np.ndarray, float, bool]]]:
    """Maps as :func:`map_sets` draws them, and defects: image, mask, saturation threshold, whether it is relative.

    Defects of one image may overlap, be empty or cover everything; images without one are good.
    """
    maps, _ = draw(map_sets())
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    defects = []
    for _ in range(draw(st.integers(0, 5))):
        image = draw(st.integers(0, len(maps) - 1))
        mask = generator.random(maps[image].shape) < draw(st.sampled_from([0.0, 0.1, 0.4, 1.0]))
        relative = draw(st.booleans())
        shares = st.sampled_from([0.05, 0.1, 0.29, 0.5, 0.7, 1.0])
        defects.append((image, mask, draw(shares if relative else st.integers(1, 60).map(float)), relative))
    return maps, defects
