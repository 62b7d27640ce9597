"""The distribution hypotheses that the authors of GLASS published, for the data sets of their paper.

They serve the preset ``official`` alone, which repeats the published runs. Everywhere else the judge of
``flawsmith.methods.glass.spectrogram`` looks at the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flawsmith.methods.glass.spectrogram import Hypothesis
from flawsmith.methods.published import known_dataset, plain

# Every category of a data set, hypersphere first; the table that comes with the released code, which Table 1 of the
# paper agrees with.
_PUBLISHED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "mvtec": (
            "bottle cable pill screw transistor",
            "carpet grid leather tile wood capsule hazelnut metal_nut toothbrush zipper",
        ),
        "visa": (
            "cashew fryum pcb1 pcb2 pcb4 pipe_fryum",
            "candle capsules chewinggum macaroni1 macaroni2 pcb3",
        ),
        "mpdd": ("", "bracket_black bracket_brown bracket_white connector metal_plate tubes"),
        "wfdd": ("", "grey_cloth grid_cloth yellow_cloth pink_flower"),
    }
)
_COLUMNS: tuple[Hypothesis, Hypothesis] = ("hypersphere", "manifold")
_TABLE: Mapping[tuple[str, str], Hypothesis] = MappingProxyType(
    {
        (dataset, plain(category)): hypothesis
        for dataset, columns in _PUBLISHED.items()
        for hypothesis, categories in zip(_COLUMNS, columns, strict=True)
        for category in categories.split()
    }
)


def published_hypothesis(dataset: str, category: str) -> Hypothesis | None:
    """The published decision for a category, or None where there is none.

    Case and punctuation do not matter. A data set is recognised by the usual names of its folder and by nothing less:
    a folder that merely begins like one, such as that of MVTec LOCO, is another data set.

    Args:
        dataset: name of the data set or of its folder, such as ``MVTec AD`` or ``mvtec_anomaly_detection``.
        category: name of the category, such as ``metal_nut``.

    Example:
        >>> published_hypothesis("MVTec AD", "screw"), published_hypothesis("mvtec_loco", "screw_bag")
        ('hypersphere', None)
    """
    known = known_dataset(dataset)
    return None if known is None else _TABLE.get((known, plain(category)))
