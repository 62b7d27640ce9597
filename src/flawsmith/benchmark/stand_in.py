"""Drawn data in the layout of each public set, and plans made small: a plan runs through before the real data is there.

What is drawn looks like nothing and its figures mean nothing. It shows that names, layouts, settings, protocols and
tables fit together, in seconds a run instead of hours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flawsmith.benchmark.experiment import Experiment
from flawsmith.benchmark.plan import Plan
from flawsmith.data.public_sets import ANY, OFFICIAL, OfficialSet
from flawsmith.runtime.errors import FlawsmithError

SIZE = (72, 96)
"""Rows and columns of a drawn image."""
GOOD, TEST = 10, 2
"""Good images to learn from, and test images of each kind."""
SUBSETS: Mapping[str, tuple[str, ...]] = {
    "mad_man": ("Person_1", "Person_2"),
    "mad_sys": ("Beta_0.1", "Beta_0.3", "Beta_0.5", "Beta_0.7"),
}
"""The folders between those sets and their categories, two of the five persons."""
TEXTURES = "dtd"
FEW_CATEGORIES = 2
"""Categories of each set that are drawn where a plan names none."""

_TINY = {"image_size": [64, 64], "precision": "32-true", "epochs": 1, "batch_size": 4}
_PATCHES = {"level_width": 32, "width": 32, "hidden": 16, "steps_per_epoch": 1}
_TEACHER = {
    "student_widths": [8, 8, 16],
    "student_blocks": [1, 1, 1],
    "amplification_epochs": 1,
    "amplification_steps": 1,
    "steps_per_epoch": 1,
}
_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "glass": {**_TINY, **_PATCHES},
    "pbas": {**_TINY, **_PATCHES},
    "aand": {**_TINY, **_TEACHER, "memories": 4},
    "rd4ad": {**_TINY, **_TEACHER},
    "slsg": {
        **_TINY,
        "batch_size": 2,
        "iterations": 1,
        "steps_per_epoch": 1,
        "pretraining_epochs": 1,
        "pretraining_steps": 1,
        "pretraining_batch_size": 2,
        "discriminator_width": 4,
        "decoder_widths": [8, 8, 8, 8],
    },
    "patchcore": {"image_size": [64, 64]},
    "padim": {"image_size": [64, 64], "channels": 16},
}
_BACKBONES: Mapping[str, str] = {"slsg": "resnet18@random"}
_SMALL_BACKBONE = "test_efficientnet@random"


def draw_sets(root: Path, plan: Plan) -> None:
    """Draw the data sets of a plan, and textures where it wants a folder of them.

    Args:
        root: where the sets' folders go; made if missing. What is there already stays.
        plan: with data sets by their keys, such as ``mvtec``.

    Raises:
        FlawsmithError: no data set is called so, its layout is not drawn here, or none has a category of the plan.
    """
    known = {category for path in plan.data for category in official_set(path.name).categories}
    missing = sorted(set(plan.categories) - known)
    if missing and ANY not in known:
        raise FlawsmithError(f"there is no category {missing[0]!r} in the data: there are {', '.join(sorted(known))}")
    for number, name in enumerate(dict.fromkeys(path.name for path in (*plan.data, *plan.evaluate_on))):
        official = official_set(name)
        draw = _DRAW.get(official.layout)
        if draw is None:
            raise FlawsmithError(f"no stand-in is drawn of {official.name}: its layout is {official.layout}")
        for category in drawn_categories(official, plan):
            for subset in SUBSETS.get(official.key, ("",)):
                folder = root / official.key / subset / ("" if category == ANY else category)
                if not folder.exists():
                    draw(_Artist(seed=number), folder, official.made_from is None)
    if plan.textures is not None:
        for number in range(2):
            _Artist(seed=20 + number).picture(root / TEXTURES / "images" / "banded" / f"banded_{number:04d}.png")


def draw_category(folder: Path, *, good: int = GOOD) -> Path:
    """Draw a category in MVTec AD's layout.

    Args:
        folder: where it goes.
        good: images to learn from.

    Returns:
        The folder.
    """
    artist = _Artist(seed=0)
    artist.pictures(folder / "train" / "good", good)
    _mvtec(artist, folder, learns=False)
    return folder


def official_set(name: str) -> OfficialSet:
    """The public data set of a key.

    Raises:
        FlawsmithError: there is none.
    """
    for official in OFFICIAL:
        if official.key == name:
            return official
    raise FlawsmithError(f"no data set is called {name!r}: there are {', '.join(each.key for each in OFFICIAL)}")


def drawn_categories(official: OfficialSet, plan: Plan) -> tuple[str, ...]:
    """The categories of a set that a stand-in has: those that a plan names, else the first few."""
    names = tuple(official.categories)
    if plan.categories:
        return tuple(name for name in names if name in plan.categories)
    return names[:FEW_CATEGORIES]


def made_small(plan: Plan, root: Path) -> Plan:
    """The plan on drawn data: a step a stage, a small untrained backbone and small images, all else as it is.

    Experiments keep their names, so that tables have the rows of the plan.

    Args:
        plan: with data sets by their keys.
        root: folder of the drawn data.
    """

    def drawn(folders: Sequence[Path]) -> tuple[Path, ...]:
        """Those of the sets that have a category that was drawn."""
        return tuple(root / path.name for path in folders if drawn_categories(official_set(path.name), plan))

    names = {name for path in plan.data for name in drawn_categories(official_set(path.name), plan)}
    changes = {
        "methods": tuple(_small(experiment, names) for experiment in plan.experiments()),
        "presets": (),
        "backbones": (),
        "fractions": (),
        "vary": {},
        "resamples": 0,
        "categories": () if ANY in names else tuple(sorted(names)),
        "data": drawn(plan.data),
        "evaluate_on": drawn(plan.evaluate_on),
        "textures": None if plan.textures is None else str(root / TEXTURES),
    }
    return plan.model_copy(update=changes)


def _small(experiment: Experiment, categories: set[str]) -> Experiment:
    """An experiment in seconds. What it varies itself stays, so that every row of a table is another model."""
    settings = _SETTINGS.get(experiment.method, {})
    of_category = {name: changes for name, changes in experiment.by_category.items() if name in categories}
    title = experiment.title
    return experiment.model_copy(
        update={
            "name": title,
            "backbone": _BACKBONES.get(experiment.method, _SMALL_BACKBONE),
            "set": {**settings, **experiment.set},
            "by_category": of_category,
        }
    )


class _Artist:
    """Draws images of one part and their masks, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.seed, self.drawn = seed, 0

    def picture(self, path: Path, *, flawed: bool = False) -> None:
        """Waves with some noise; a bright bar where flawed. Every picture differs."""
        self.drawn += 1
        rng = np.random.default_rng((self.seed, self.drawn))
        y, x = np.mgrid[: SIZE[0], : SIZE[1]]
        waves = np.sin(x / (5 + self.seed) + rng.uniform(0, 0.5)) * np.cos(y / 9 + rng.uniform(0, 0.5))
        pixels = 120 + 60 * waves[..., None] * np.array([1.0, 0.8, 0.6]) + rng.normal(0, 8, (*SIZE, 3))
        if flawed:
            pixels[_FLAW] = 250
        _save(path, np.clip(pixels, 0, 255).astype(np.uint8))

    def pictures(self, folder: Path, number: int, *, flawed: bool = False, ending: str = "png") -> list[str]:
        """So many numbered pictures, and their stems."""
        stems = [f"{place:03d}" for place in range(number)]
        for stem in stems:
            self.picture(folder / f"{stem}.{ending}", flawed=flawed)
        return stems


_FLAW = (slice(24, 40), slice(30, 62))


def _mask(path: Path, *, empty: bool = False, level: int = 255) -> None:
    pixels = np.zeros(SIZE, np.uint8)
    if not empty:
        pixels[_FLAW] = level
    _save(path, pixels)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _mvtec(artist: _Artist, folder: Path, learns: bool) -> None:
    """MVTec AD and all that share its layout, with the foreground masks that GLASS releases beside it."""
    if learns:
        for stem in artist.pictures(folder / "train" / "good", GOOD):
            _foreground(folder, f"{stem}.png")
    artist.pictures(folder / "test" / "good", TEST)
    for stem in artist.pictures(folder / "test" / "crack", TEST, flawed=True):
        _mask(folder / "ground_truth" / "crack" / f"{stem}_mask.png")


def _foreground(category: Path, name: str) -> None:
    _save(category.parent / "fg_mask" / category.name / name, np.full(SIZE, 255, np.uint8))


def _visa(artist: _Artist, folder: Path, learns: bool) -> None:
    """VisA as released, with its table beside the categories."""
    root, category, rows = folder.parent, folder.name, []
    normal = f"{category}/Data/Images/Normal"
    for place in range(GOOD + TEST):
        name = f"{normal}/{place:04d}.JPG"
        artist.picture(root / name)
        split = "train" if place < GOOD else "test"
        rows.append(f"{category},{split},normal,{name},")
        if split == "train":
            _foreground(folder, f"{place:04d}.png")
    for place in range(TEST):
        name, mask = f"{category}/Data/Images/Anomaly/{place:03d}.JPG", f"{category}/Data/Masks/Anomaly/{place:03d}.png"
        artist.picture(root / name, flawed=True)
        _mask(root / mask, level=place + 1)
        rows.append(f"{category},test,anomaly,{name},{mask}")
    table = root / "split_csv" / "1cls.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    before = table.read_text(encoding="utf-8") if table.exists() else "object,split,label,image,mask\n"
    table.write_text(before + "".join(f"{row}\n" for row in rows), encoding="utf-8")


def _mvtec_3d(artist: _Artist, folder: Path, learns: bool) -> None:
    """The photographs of MVTec 3D-AD, with heights beside them that nothing reads."""
    for part, number in (("train/good", GOOD), ("validation/good", TEST), ("test/good", TEST), ("test/crack", TEST)):
        flawed = part.endswith("crack")
        for stem in artist.pictures(folder / part / "rgb", number, flawed=flawed):
            heights = folder / part / "xyz" / f"{stem}.tiff"
            heights.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros(SIZE, np.float32)).save(heights)
            if part.startswith("test/"):
                _mask(folder / part / "gt" / f"{stem}.png", empty=not flawed)


def _btad(artist: _Artist, folder: Path, learns: bool) -> None:
    """BTAD as released: of 01 the masks are of another format than the images."""
    image, mask = {"02": ("png", "png"), "03": ("bmp", "bmp")}.get(folder.name, ("bmp", "png"))
    artist.pictures(folder / "train" / "ok", GOOD, ending=image)
    artist.pictures(folder / "test" / "ok", TEST, ending=image)
    for stem in artist.pictures(folder / "test" / "ko", TEST, flawed=True, ending=image):
        _mask(folder / "ground_truth" / "ko" / f"{stem}.{mask}")


def _mvtec_loco(artist: _Artist, folder: Path, learns: bool) -> None:
    """MVTec LOCO AD as released, with a folder of masks an image and the table of saturation."""
    for part, number in (("train/good", GOOD), ("validation/good", TEST), ("test/good", TEST)):
        artist.pictures(folder / part, number)
    config = []
    for level, defect in ((255, "logical_anomalies"), (206, "structural_anomalies")):
        for stem in artist.pictures(folder / "test" / defect, TEST, flawed=True):
            _mask(folder / "ground_truth" / defect / stem / "000.png", level=level)
        saturation = {"saturation_threshold": 0.5, "relative_saturation": True}
        config.append({"defect_name": defect, "pixel_value": level, **saturation})
    (folder / "defects_config.json").write_text(json.dumps(config), encoding="utf-8")


def _ksdd2(artist: _Artist, folder: Path, learns: bool) -> None:
    """KolektorSDD2 as released: masks beside the images, good and flawed ones mixed."""
    for part, first in (("train", 10000), ("test", 20000)):
        for place in range(GOOD + TEST if part == "train" else 2 * TEST):
            flawed = part == "test" and place % 2 == 1
            artist.picture(folder / part / f"{first + place}.png", flawed=flawed)
            _mask(folder / part / f"{first + place}_GT.png", empty=not flawed)


def _magnetic_tile(artist: _Artist, folder: Path, learns: bool) -> None:
    """The magnetic tile set as released: a mask beside every photograph."""
    kinds: Sequence[tuple[str, int]] = (("Free", GOOD + TEST), ("Blowhole", TEST), ("Crack", TEST))
    for kind, number in kinds:
        for stem in artist.pictures(folder / f"MT_{kind}" / "Imgs", number, flawed=kind != "Free", ending="jpg"):
            _mask(folder / f"MT_{kind}" / "Imgs" / f"{stem}.png", empty=kind == "Free")


_DRAW: Mapping[str, Callable[[_Artist, Path, bool], None]] = {
    "mvtec": _mvtec,
    "visa": _visa,
    "mvtec_3d": _mvtec_3d,
    "btad": _btad,
    "mvtec_loco": _mvtec_loco,
    "ksdd2": _ksdd2,
    "magnetic_tile": _magnetic_tile,
}
