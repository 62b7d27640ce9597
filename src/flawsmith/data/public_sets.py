"""The public data sets: how they are spelled, and how many images they have.

The one table of both. Sums of the categories were checked against the totals that the sources name. What could not be
verified is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ANY = "*"
"""Stands for the only category of a set, whose folder has any name."""


@dataclass(frozen=True)
class Counts:
    """Numbers of images; None where they are not known.

    Attributes:
        train: good images to learn from.
        validation: good images to validate.
        test_good: good test images.
        flawed: flawed test images.
        good: good images of all splits together, where the split is not official.
        left_out: images that the layout leaves out.
        defects: flawed images by defect type.
    """

    train: int | None = None
    validation: int | None = None
    test_good: int | None = None
    flawed: int | None = None
    good: int | None = None
    left_out: int | None = None
    defects: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class OfficialSet:
    """A public data set.

    Attributes:
        key: one word for it, under which methods and published figures know it.
        name: as its authors call it.
        layout: the layout it is released in.
        source: where the numbers are from.
        spellings: further names for it and for its folder, as `plain` writes them.
        categories: counts by category, None where they are not known.
        total: counts of all categories together, for sets of which the categories' are not known.
        subset: regular expression of the folders between the set's and the category's.
        made_from: the set whose models are evaluated on it.
    """

    key: str
    name: str
    layout: str
    source: str
    categories: Mapping[str, Counts | None]
    total: Counts | None = None
    subset: str | None = None
    made_from: str | None = None
    spellings: tuple[str, ...] = ()

    def is_called(self, name: str) -> bool:
        """Whether a name is one of those that the data set usually goes by."""
        return plain(name) in {plain(self.key), plain(self.name), *self.spellings}


def plain(name: str) -> str:
    """A name without case and punctuation.

    Example:
        >>> plain("Metal_Nut")
        'metalnut'
    """
    return "".join(character for character in name.casefold() if character.isalnum())


def _split(train: int, test_good: int, flawed: int) -> Counts:
    return Counts(train=train, test_good=test_good, flawed=flawed)


def _validated(train: int, validation: int, test_good: int, flawed: int) -> Counts:
    return Counts(train=train, validation=validation, test_good=test_good, flawed=flawed)


def _loco(train: int, validation: int, test_good: int, logical: int, structural: int) -> Counts:
    defects = {"logical_anomalies": logical, "structural_anomalies": structural}
    return Counts(train, validation, test_good, logical + structural, defects=defects)


_MVTEC_AD = {
    "carpet": _split(280, 28, 89),
    "grid": _split(264, 21, 57),
    "leather": _split(245, 32, 92),
    "tile": _split(230, 33, 84),
    "wood": _split(247, 19, 60),
    "bottle": _split(209, 20, 63),
    "cable": _split(224, 58, 92),
    "capsule": _split(219, 23, 109),
    "hazelnut": _split(391, 40, 70),
    "metal_nut": _split(220, 22, 93),
    "pill": _split(267, 26, 141),
    "screw": _split(320, 41, 119),
    "toothbrush": _split(60, 12, 30),
    "transistor": _split(213, 60, 40),
    "zipper": _split(240, 32, 119),
}
_TEXTURES = ("carpet", "grid", "leather", "tile", "wood")

# Sets whose folders bear the names of another's categories come before it.
OFFICIAL: tuple[OfficialSet, ...] = (
    OfficialSet(
        key="mad_man",
        name="MAD-man",
        layout="mvtec",
        source="Chen et al., GLASS, ECCV 2024, supplement A",
        categories={name: Counts(train=0, test_good=2, flawed=6) for name in _MVTEC_AD},
        subset=r"person_\d+",
        made_from="MVTec AD",
    ),
    OfficialSet(
        key="mad_sys",
        name="MAD-sys",
        layout="mvtec",
        source="Chen et al., GLASS, ECCV 2024, supplement A: 320 good and 946 flawed images in each subset",
        categories=dict.fromkeys(_TEXTURES),
        total=Counts(train=0, test_good=320, flawed=946),
        subset=r"beta_0\.\d+",
        made_from="MVTec AD",
    ),
    OfficialSet(
        key="mvtec",
        name="MVTec AD",
        layout="mvtec",
        source="Bergmann et al., MVTec AD, CVPR 2019, Table 1: 3629 to train, 467 good and 1258 flawed to test",
        spellings=("mvtecanomalydetection",),
        categories=_MVTEC_AD,
    ),
    OfficialSet(
        key="mpdd",
        name="MPDD",
        layout="mvtec",
        source="Jezek et al., ICUMT 2021: 888 to train, 176 good and 282 flawed to test",
        categories={
            "bracket_black": _split(289, 32, 47),
            "bracket_brown": _split(185, 26, 51),
            "bracket_white": _split(110, 30, 30),
            "connector": _split(128, 30, 14),
            "metal_plate": _split(54, 26, 71),
            "tubes": _split(122, 32, 69),
        },
    ),
    OfficialSet(
        key="wfdd",
        name="WFDD",
        layout="mvtec",
        source="Chen et al., GLASS, ECCV 2024, Section 4.1: 3860 good and 241 flawed images",
        categories=dict.fromkeys(("grey_cloth", "grid_cloth", "yellow_cloth", "pink_flower")),
        total=Counts(good=3860, flawed=241),
    ),
    OfficialSet(
        key="visa",
        name="VisA",
        layout="visa",
        source="Zou et al., ECCV 2022, split_csv/1cls.csv: 8659 to train, 962 good and 1200 flawed to test",
        spellings=("visa20220922", "visapytorch", "1cls"),
        categories={
            "candle": _split(900, 100, 100),
            "capsules": _split(542, 60, 100),
            "cashew": _split(450, 50, 100),
            "chewinggum": _split(453, 50, 100),
            "fryum": _split(450, 50, 100),
            "macaroni1": _split(900, 100, 100),
            "macaroni2": _split(900, 100, 100),
            "pcb1": _split(904, 100, 100),
            "pcb2": _split(901, 100, 100),
            "pcb3": _split(905, 101, 100),
            "pcb4": _split(904, 101, 100),
            "pipe_fryum": _split(450, 50, 100),
        },
    ),
    OfficialSet(
        key="mvtec_3d",
        name="MVTec 3D-AD",
        layout="mvtec_3d",
        source="Bergmann et al., VISAPP 2022, Table 1: 2656 to train, 294 to validate, 249 good and 948 flawed to test",
        spellings=("mvtec3danomalydetection",),
        categories={
            "bagel": _validated(244, 22, 22, 88),
            "cable_gland": _validated(223, 23, 21, 87),
            "carrot": _validated(286, 29, 27, 132),
            "cookie": _validated(210, 22, 28, 103),
            "dowel": _validated(288, 34, 26, 104),
            "foam": _validated(236, 27, 20, 80),
            "peach": _validated(361, 42, 26, 106),
            "potato": _validated(300, 33, 22, 92),
            "rope": _validated(298, 33, 32, 69),
            "tire": _validated(210, 29, 25, 87),
        },
    ),
    OfficialSet(
        key="btad",
        name="BTAD",
        layout="btad",
        source="Mishra et al., VT-ADL, ISIE 2021: 2540 images",
        spellings=("beantech", "beantechad", "btech", "btechdatasettransformed"),
        categories={"01": _split(400, 21, 49), "02": _split(399, 30, 200), "03": _split(1000, 400, 41)},
    ),
    OfficialSet(
        key="mvtec_loco",
        name="MVTec LOCO AD",
        layout="mvtec_loco",
        source="Bergmann et al., IJCV 2022: 1772 to train, 304 to validate, 1568 to test",
        spellings=("loco", "mvteclocoanomalydetection"),
        categories={
            "breakfast_box": _loco(351, 62, 102, 83, 90),
            "juice_bottle": _loco(335, 54, 94, 142, 94),
            "pushpins": _loco(372, 69, 138, 91, 81),
            "screw_bag": _loco(360, 60, 122, 137, 82),
            "splicing_connectors": _loco(354, 59, 119, 108, 85),
        },
    ),
    OfficialSet(
        key="magnetic_tile",
        name="magnetic tile surface defects",
        layout="magnetic_tile",
        source="Huang et al. 2018: 952 free, 115 blowhole, 85 break, 57 crack, 32 fray, 103 uneven (4 masks black)",
        categories={
            ANY: Counts(
                flawed=388,
                good=952,
                left_out=4,
                defects={"blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 99},
            )
        },
    ),
    OfficialSet(
        key="ksdd2",
        name="KolektorSDD2",
        layout="ksdd2",
        source="Bozic et al., Computers in Industry 2021: train 2085 good and 246 flawed, test 894 good and 110 flawed",
        categories={ANY: Counts(train=2085, test_good=894, flawed=110, left_out=246)},
    ),
)


def dataset_name(root: Path) -> str:
    """The name of the data set that a category folder belongs to: that of the folder above.

    Where that is a subset's, such as Person_1, both are named: ``MAD-man/Person_1``.

    Example:
        >>> dataset_name(Path("/data/mvtec/bottle")), dataset_name(Path("/data/MAD-man/Person_1/bottle"))
        ('mvtec', 'MAD-man/Person_1')
    """
    above = root.parent
    in_subset = any(is_subset(above, each) for each in OFFICIAL)
    return f"{above.parent.name}/{above.name}" if in_subset and above.parent.name else above.name


def is_subset(folder: Path, official: OfficialSet) -> bool:
    """Whether a folder bears the name of a subset of the data set."""
    return official.subset is not None and re.fullmatch(official.subset, folder.name.casefold()) is not None


def known_dataset(name: str) -> str | None:
    """The key of the data set that a name or a folder's name usually stands for, or None.

    Example:
        >>> known_dataset("MVTec AD"), known_dataset("mvtec_loco_anomaly_detection"), known_dataset("mvtec_screws")
        ('mvtec', 'mvtec_loco', None)
    """
    return next((official.key for official in OFFICIAL if official.is_called(name)), None)


def made_from(root: Path) -> str | None:
    """The data set whose models are measured on the test set that a category folder belongs to, or None."""
    return next((each.made_from for each in OFFICIAL if each.made_from and is_subset(root.parent, each)), None)
