"""Previews of synthetic flaws, and weak-flaw test sets whose strengths differ in nothing but their strength."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawsmith.data.layouts import load
from flawsmith.pipeline.synthesize import MANIFEST, SynthesisSettings, WeakFlawSets, synthesize, weak_flaw_sets
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import decode
from flawsmith.synthesis.recipes import RECIPES

STRENGTHS = (0.0, 0.25, 0.5)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def manifest(made: WeakFlawSets, weakness: float) -> dict[str, Any]:
    return json.loads((made.categories[weakness].parent / MANIFEST).read_text())


def of_forged(made: WeakFlawSets, weakness: float) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]]:
    """Good image, synthetic image and mask of each record."""
    root = made.categories[weakness]
    result = []
    for record in manifest(made, weakness)["forged"]:
        good = next(one["image"] for one in manifest(made, weakness)["good"] if one["source"] == record["source"])
        mask = decode(root / record["mask"])[:, :, 0] > 0
        result.append((decode(root / good), decode(root / record["image"]), mask, record))
    return result


@pytest.fixture(scope="module")
def bolt(draw_parts: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_parts(tmp_path_factory.mktemp("synthesize") / "bolt", good=8, test=4)


@pytest.fixture(scope="module")
def made(bolt: Path, tmp_path_factory: pytest.TempPathFactory) -> WeakFlawSets:
    out = tmp_path_factory.mktemp("weak") / "sets"
    return weak_flaw_sets(bolt, out, SynthesisSettings(seed=3), weakness=STRENGTHS, per_image=2)


def test_preview_writes_a_sheet_and_the_single_pictures(bolt: Path, tmp_path: Path) -> None:
    written = synthesize(bolt, tmp_path / "flaws", n=3, pictures=True)

    assert written.sheet == tmp_path / "flaws" / "sheet.png"
    assert written.pictures is not None
    names = sorted(path.name for path in written.pictures.iterdir())
    assert names == [f"{i:03d}_{kind}.png" for i in range(3) for kind in ("image", "mask", "result", "texture")]
    image, mask, result = (decode(written.pictures / f"001_{kind}.png") for kind in ("image", "mask", "result"))
    assert np.array_equal(image[mask[:, :, 0] == 0], result[mask[:, :, 0] == 0])
    assert image.shape == decode(written.sheet.parent / "pictures/001_texture.png").shape == (80, 112, 3)


def test_preview_depends_on_its_seed_alone(bolt: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        synthesize(bolt, tmp_path / name, SynthesisSettings(seed=seed), n=4)

    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(tmp_path / "a") != tree(tmp_path / "c")


def test_preview_squashes_to_a_size(bolt: Path, tmp_path: Path) -> None:
    written = synthesize(bolt, tmp_path / "flaws", n=1, size=(48, 32), pictures=True)

    assert written.pictures is not None
    assert decode(written.pictures / "000_result.png").shape == (48, 32, 3)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("textures", ["procedural", "self", "folder"])
def test_every_recipe_takes_every_texture(recipe: str, textures: str, bolt: Path, tmp_path: Path) -> None:
    source = bolt / "test" if textures == "folder" else textures

    written = synthesize(bolt, tmp_path / "flaws", SynthesisSettings(recipe, source), n=2)

    assert written.sheet.is_file()
    assert written.mean_tries >= 0


def test_a_data_set_without_foreground_is_told(tmp_path: Path, trees: Any) -> None:
    parts = trees.mvtec(tmp_path / "noise")
    messages: list[str] = []

    synthesize(parts, tmp_path / "flaws", SynthesisSettings(foreground="auto"), n=2, on_message=messages.append)

    assert len(messages) == 1
    assert messages[0].startswith("no foreground: ")


def test_foreground_masks_from_a_folder_bound_the_flaws(bolt: Path, tmp_path: Path) -> None:
    left = np.zeros((80, 112), np.uint8)
    left[:, :60] = 255
    (tmp_path / "masks").mkdir()
    for path in sorted((bolt / "train/good").iterdir()):
        Image.fromarray(left).save(tmp_path / "masks" / path.name)

    written = synthesize(bolt, tmp_path / "flaws", SynthesisSettings(foreground=tmp_path / "masks"), n=6, pictures=True)

    assert written.pictures is not None
    masks = [decode(path)[:, :, 0] > 0 for path in sorted(written.pictures.glob("*_mask.png"))]
    assert written.fallbacks == 0
    assert all(mask[:, :60].any() and not mask[:, 60:].any() for mask in masks)


def test_sets_load_as_mvtec_categories(made: WeakFlawSets) -> None:
    for weakness in STRENGTHS:
        assert made.categories[weakness] == made.folder / f"weakness_{weakness:g}" / "bolt"
        dataset = load(made.categories[weakness])

        assert dataset.layout == "mvtec"
        assert (len(dataset.good_train), len(dataset.test_good), len(dataset.test_flawed)) == (8, 4, 4)
        assert dataset.defects == ("forged",)
        assert not dataset.without_mask
        assert not dataset.unused_masks


def test_strengths_share_masks_and_textures(made: WeakFlawSets) -> None:
    strongest = of_forged(made, 0.0)
    for weakness in STRENGTHS[1:]:
        for (good, full, mask, _), (_, synthetic, same_mask, _) in zip(
            strongest, of_forged(made, weakness), strict=True
        ):
            assert np.array_equal(mask, same_mask)
            assert mask.any()
            assert np.array_equal(synthetic[~mask], good[~mask])
            # Where one flaw covers a pixel, the strongest set shows the bare texture.
            expected = weakness * good[mask] + (1 - weakness) * full[mask].astype(np.float64)
            close = np.abs(synthetic[mask] - expected).max(axis=1) <= 1
            assert close.mean() > 0.5


def test_one_flaw_is_the_weighted_mean_everywhere(bolt: Path, tmp_path: Path) -> None:
    made = weak_flaw_sets(bolt, tmp_path / "weak", weakness=(0.0, 0.7))

    for (good, full, mask, _), (_, synthetic, _, _) in zip(of_forged(made, 0.0), of_forged(made, 0.7), strict=True):
        expected = 0.7 * good[mask] + 0.3 * full[mask].astype(np.float64)
        assert np.abs(synthetic[mask] - expected).max() <= 1
        assert np.abs(synthetic[mask].astype(int) - good[mask]).mean() > 0.5, "the weakest flaw can be seen"


def test_forged_images_come_from_test_images_and_good_ones_are_copies(bolt: Path, made: WeakFlawSets) -> None:
    root = made.categories[0.25]
    training = {path.read_bytes() for path in (bolt / "train/good").iterdir()}

    assert made.base == "test"
    for one in manifest(made, 0.25)["good"]:
        assert (root / one["image"]).read_bytes() == (bolt / one["source"]).read_bytes()
        assert (root / one["image"]).read_bytes() not in training
    assert {path.read_bytes() for path in (root / "train/good").iterdir()} == training
    assert {record["source"] for record in manifest(made, 0.25)["forged"]} == {
        f"test/good/{number:03d}.png" for number in range(4)
    }


def test_manifest_says_how_each_image_was_made_without_paths(bolt: Path, made: WeakFlawSets) -> None:
    text = (made.categories[0.5].parent / MANIFEST).read_text()
    found = json.loads(text)

    assert str(bolt.parent) not in text
    assert (found["recipe"]["name"], found["seed"], found["weakness"], found["textures"]) == (
        "glass",
        3,
        0.5,
        "procedural",
    )
    assert found["recipe"]["branches"][0]["weight"] == {"kind": "fixed", "value": 0.5}
    for _, _, mask, record in of_forged(made, 0.5):
        assert record["mask_area"] == mask.sum()
        assert record["weight"] == 0.5
        assert [flaw["texture"] for flaw in record["flaws"]] == ["procedural"] * 2


def test_texture_kinds_of_a_recipe_with_branches_are_told_apart(bolt: Path, tmp_path: Path) -> None:
    made = weak_flaw_sets(bolt, tmp_path / "weak", SynthesisSettings("slsg-structural"), weakness=[0.1], n=24)

    kinds = [flaw["texture"] for record in manifest(made, 0.1)["forged"] for flaw in record["flaws"]]

    assert set(kinds) == {"procedural", "self"}
    assert made.n_synthetic == 24


def test_same_seed_same_bytes(bolt: Path, made: WeakFlawSets, tmp_path: Path) -> None:
    again = weak_flaw_sets(bolt, tmp_path / "again", SynthesisSettings(seed=3), weakness=STRENGTHS[::-1], per_image=2)
    other = weak_flaw_sets(bolt, tmp_path / "other", SynthesisSettings(seed=4), weakness=STRENGTHS, per_image=2)

    assert tree(again.folder) == tree(made.folder)
    assert tree(other.folder) != tree(made.folder)


def test_more_images_than_good_ones_have_flaws_of_their_own(bolt: Path, tmp_path: Path) -> None:
    made = weak_flaw_sets(bolt, tmp_path / "weak", weakness=[0.3], n=9)

    masks = {mask.tobytes() for _, _, mask, _ in of_forged(made, 0.3)}

    assert len(masks) == 9


def test_recipe_that_leaves_samples_normal_makes_flaws_only(bolt: Path, tmp_path: Path) -> None:
    made = weak_flaw_sets(bolt, tmp_path / "weak", SynthesisSettings("aand"), weakness=[0.3], n=12)

    assert all(mask.any() for _, _, mask, _ in of_forged(made, 0.3))


def test_without_test_images_training_images_are_set_apart(tmp_path: Path, trees: Any) -> None:
    for number in range(8):
        trees.picture(tmp_path / "nuts" / f"{number}.png", number)
    messages: list[str] = []

    made = weak_flaw_sets(tmp_path / "nuts", tmp_path / "weak", weakness=[0.2], on_message=messages.append)

    dataset = load(made.categories[0.2])
    assert made.base == "training"
    assert any("no good test images" in line for line in messages)
    assert (len(dataset.good_train), len(dataset.test_good)) == (4, 4)
    train, test = ({sample.image.read_bytes() for sample in part} for part in (dataset.good_train, dataset.test_good))
    assert not train & test


def test_without_test_images_validation_images_come_first(tmp_path: Path, trees: Any) -> None:
    for number in range(4):
        trees.picture(tmp_path / "nuts" / "good" / f"{number}.png", number)
        trees.picture(tmp_path / "nuts" / "val" / f"{number}.png", 50 + number)

    made = weak_flaw_sets(tmp_path / "nuts", tmp_path / "weak", weakness=[0.2])

    assert (made.base, made.n_good, made.n_synthetic) == ("validation", 4, 4)
    assert manifest(made, 0.2)["good"][0]["source"] == "val/0.png"


def test_sets_of_training_images_leave_a_quarter_good(bolt: Path, tmp_path: Path) -> None:
    """By its counts MAD-sys is made so: 1,266 training images, 320 of them good."""
    messages: list[str] = []
    train = load(bolt).good_train

    made = weak_flaw_sets(bolt, tmp_path / "weak", weakness=[0.2], base="training", on_message=messages.append)

    left = round(len(train) / 4)
    assert (made.base, made.n_good, made.n_synthetic) == ("training", left, len(train) - left)
    category = made.categories[0.2]
    manifest = json.loads((category.parent / MANIFEST).read_text())
    sources = [row["source"] for row in (*manifest["good"], *manifest["forged"])]
    assert sorted(sources) == sorted(load(bolt).name_of(sample.image) for sample in train)
    assert manifest["base"] == "training"
    assert not (category / "train").exists()
    dataset = load(category)
    assert (len(dataset.test_good), len(dataset.test_flawed)) == (left, len(train) - left)
    assert "as in MAD-sys" in messages[-1]


def test_one_good_image_alone_is_refused(tmp_path: Path, trees: Any) -> None:
    trees.picture(tmp_path / "nuts" / "0.png")

    with pytest.raises(FlawsmithError, match="has one good image alone"):
        weak_flaw_sets(tmp_path / "nuts", tmp_path / "weak")


def test_sixteen_bit_images_stay_sixteen_bits_deep(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, number in (("train", 3), ("test", 2)):
        (tmp_path / "deep" / split / "good").mkdir(parents=True)
        for index in range(number):
            pixels = rng.integers(0, 4096, (40, 56), dtype=np.uint16)
            Image.fromarray(pixels).save(tmp_path / "deep" / split / "good" / f"{index}.png")

    made = weak_flaw_sets(
        tmp_path / "deep", tmp_path / "weak", SynthesisSettings(bits=12, textures="self"), weakness=[0.3]
    )

    for good, synthetic, mask, _ in of_forged(made, 0.3):
        assert synthetic.dtype == good.dtype == np.uint16
        assert np.array_equal(synthetic[~mask], good[~mask])
        assert not np.array_equal(synthetic[mask], good[mask])
        assert synthetic.max() <= 4095, "a 12-bit camera has no brighter flaws"


def test_tiny_and_uniform_images_get_a_visible_flaw(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "grey" / split / "good").mkdir(parents=True)
        Image.fromarray(np.full((9, 5, 3), 128, np.uint8)).save(tmp_path / "grey" / split / "good" / "0.png")

    made = weak_flaw_sets(tmp_path / "grey", tmp_path / "weak", weakness=[0.7])

    ((good, synthetic, mask, _),) = of_forged(made, 0.7)
    assert (synthetic[mask] != good[mask]).any()


def test_failed_and_interrupted_work_leaves_nothing(bolt: Path, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weak_flaw_sets(bolt, tmp_path / "weak", on_step=interrupt)
    with pytest.raises(FlawsmithError, match="no visible flaw in"):
        weak_flaw_sets(bolt, tmp_path / "weak", weakness=[0.9999])

    assert list(tmp_path.iterdir()) == []


def test_no_set_is_made_of_images_that_there_are_not(bolt: Path, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="--base validation is not possible"):
        weak_flaw_sets(bolt, tmp_path / "weak", base="validation")  # type: ignore[arg-type]
    with pytest.raises(FlawsmithError, match="is there already"):
        synthesize(bolt, ".", n=1)


def test_what_is_there_already_stays(bolt: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("mine")

    for task in (synthesize, weak_flaw_sets):
        with pytest.raises(FlawsmithError, match="is there already"):
            task(bolt, tmp_path / "thesis")

    assert tree(tmp_path) == {"thesis/text": b"mine"}
