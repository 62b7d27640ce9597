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
