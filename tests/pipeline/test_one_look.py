"""From mask file to report: every file is decoded once, and every image is inspected once by each model."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flawsmith.data.layouts import load
from flawsmith.data.loco import saturation_of
from flawsmith.metrics.collect import ScoredImage
from flawsmith.pipeline import reporting
from flawsmith.pipeline.evaluate import collect, evaluate, evaluate_into
from flawsmith.pipeline.reporting import ExampleGallery
from flawsmith.pipeline.steps import DecodedImages
from flawsmith.runtime import image as images
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspection, Inspector


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Counter[str], Counter[int]]]:
    """Decodes by file, and inspections by model."""
    decodes: Counter[str] = Counter()
    inspections: Counter[int] = Counter()
    read, infer, opened = images.read_image, Inspector._infer, Image.open

    def counted_read(stream: Any, name: str, max_pixels: int) -> np.ndarray:
        decodes[name] += 1
        return read(stream, name, max_pixels)

    def counted_open(file: Any, *arguments: Any, **options: Any) -> Image.Image:
        decodes[str(file)] += 1
        return opened(file, *arguments, **options)

    def counted_infer(self: Inspector, batch: np.ndarray) -> tuple[float, np.ndarray]:
        inspections[id(self)] += 1
        return infer(self, batch)

    monkeypatch.setattr(images, "read_image", counted_read)
    monkeypatch.setattr(Image, "open", counted_open)
    monkeypatch.setattr(Inspector, "_infer", counted_infer)
    return decodes, inspections


def files_of(root: Path) -> set[str]:
    """Test images and masks of a tree."""
    return {str(path) for folder in ("test", "ground_truth") for path in (root / folder).rglob("*.png")}


def save_as_baseline(bundle: Bundle, run: Path) -> None:
    (run / "baseline").mkdir(parents=True)
    bundle.save(run / "baseline" / "model.flaw")


@pytest.mark.parametrize("protocol", ["clean", "papers"])
@pytest.mark.parametrize("tree", ["mvtec", "mvtec_loco"])
def test_every_file_is_decoded_once_and_every_image_inspected_once_a_model(
    tree: str,
    protocol: str,
    looks: tuple[Counter[str], Counter[int]],
    tiny: ModuleType,
    trees: ModuleType,
    tmp_path: Path,
) -> None:
    root = getattr(trees, tree)(tmp_path / "data" / "bolt")
    bundle = tiny.make_bundle()
    save_as_baseline(bundle, tmp_path / "run")
    done: list[None] = []

    written = evaluate_into(
        tmp_path / "out",
        bundle,
        load(root),
        protocol=protocol,
        history=tmp_path / "run",
        on_step=lambda: done.append(None),
    )

    decodes, inspections = looks
    n_images = written.evaluation.n_good + written.evaluation.n_flawed
    assert {name: times for name, times in decodes.items() if name.startswith(str(root))} == dict.fromkeys(
        files_of(root), 1
    )
    assert list(inspections.values()) == [n_images, n_images], "the model and its baseline"
    assert len(done) == n_images
    assert written.evaluation.aupro is not None
    assert written.evaluation.baseline is not None
    assert "<figure" in written.report.read_text(encoding="utf-8")


def test_model_and_baseline_have_the_figures_that_each_has_alone(
    tiny: ModuleType, trees: ModuleType, tmp_path: Path
) -> None:
    root = trees.mvtec(tmp_path / "bolt", n_good=4, n_flawed=4)
    bundle = tiny.make_bundle()
    save_as_baseline(bundle, tmp_path / "run")

    both = evaluate_into(tmp_path / "out", bundle, load(root), history=tmp_path / "run").evaluation

    alone = evaluate(Inspector.load(bundle), root)
    assert both.model_copy(update={"baseline": None}) == alone
    assert both.baseline is not None
    assert (both.baseline.image_auroc, both.baseline.aupro) == (alone.image_auroc, alone.aupro)
    assert set(both.baseline.gains.values()) == {(0.0, 0.0, 0.0)}


# Saturation, learned on the way


def measured_beforehand(bundle: Any, root: Path) -> Any:
    dataset = load(root)
    return collect(Inspector.load(bundle), dataset.test, saturation=saturation_of(dataset))


def with_many_masks(trees: ModuleType, root: Path, levels: list[int]) -> Path:
    """A tree in LOCO's layout with one mask for each image, of these grey values in turn."""
    trees.mvtec_loco(root)
    for defect in trees.LOCO_LEVELS:
        (root / "ground_truth" / defect / "000" / "001.png").unlink()
        for index in range(6):
            trees.picture(root / "test" / defect / f"{index:03d}.png", seed=300 + index)
            trees.mask(root / "ground_truth" / defect / f"{index:03d}" / "000.png", level=levels[index % len(levels)])
    return root


@pytest.mark.parametrize("levels", [[255], [7], [255, 254]], ids=["merged", "merged to no kind's value", "told apart"])
def test_saturation_learned_on_the_way_is_that_of_a_look_beforehand(
    levels: list[int], tiny: ModuleType, trees: ModuleType, tmp_path: Path
) -> None:
    root = with_many_masks(trees, tmp_path / "loco" / "bottle", levels)

    result = evaluate(Inspector.load(tiny.make_bundle()), root, n_resamples=0)

    before = measured_beforehand(tiny.make_bundle(), root)
    assert (result.spro is None) == (len(levels) == 1) == (before.saturated is None)
    assert result.spro == (None if before.saturated is None else before.saturated.overlap)
    assert all(note in result.notes for note in before.notes)
    assert any("merged" in note for note in result.notes) == (len(levels) == 1)


def test_mask_of_no_kind_is_refused_in_the_same_words(tiny: ModuleType, trees: ModuleType, tmp_path: Path) -> None:
    root = with_many_masks(trees, tmp_path / "loco" / "bottle", [255, 254])
    trees.mask(root / "ground_truth" / "structural_anomalies" / "003" / "000.png", level=9)

    with pytest.raises(FlawsmithError) as beforehand:
        saturation_of(load(root))
    with pytest.raises(FlawsmithError) as on_the_way:
        evaluate(Inspector.load(tiny.make_bundle()), root, n_resamples=0)

    assert str(on_the_way.value) == str(beforehand.value)


# Held-out images of a training run


def test_the_first_images_stay_decoded_as_far_as_there_is_room(
    looks: tuple[Counter[str], Counter[int]], trees: ModuleType, tmp_path: Path
) -> None:
    files = [trees.picture(tmp_path / f"{number}.png", seed=number) for number in range(3)]
    expected = [images.decode(file) for file in files]
    looks[0].clear()
    decoded = DecodedImages(most=2 * expected[0].nbytes)

    for file, image in [*zip(files, expected, strict=True)] * 2:
        assert np.array_equal(decoded.read(file), image)

    assert [looks[0][str(file)] for file in files] == [1, 1, 2]
    with pytest.raises(ValueError, match="read-only"):
        decoded.read(files[0])[:] = 0


# Pictures of the report


def inspection_of(score: float, verdict: Any) -> Inspection:
    return Inspection(
        image="image.png",
        score=score,
        verdict=verdict,
        map_source=np.zeros((4, 6), dtype=np.float32),
        regions=[],
        not_inspected=None,
        timing={},
        decision=Decision(limit=0.5, map_limit=0.5, stated_false_reject_rate=0.1, n_good=9),
        pixels=np.zeros((4, 6, 3), dtype=np.uint8),
    )


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.sampled_from(["pass", "review", "reject"])), max_size=60)
)
def test_gallery_keeps_wrong_verdicts_and_then_those_nearest_to_the_limit(cases: list[tuple[int, bool, str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "MOST_SHOWN", 10)
        gallery = ExampleGallery(len(cases))
        for number, (score, flawed, verdict) in enumerate(cases):
            image = ScoredImage(f"{number}", float(score), verdict, "dent" if flawed else "good", flawed)
            gallery.update(image, inspection_of(float(score), verdict), None)

    shown = [int(example.name) for example in gallery.examples()]

    telling = sorted(
        range(len(cases)),
        key=lambda at: (cases[at][1] == (cases[at][2] == "reject"), abs(cases[at][0] / 0.5 - 1), at),
    )
    assert shown == sorted(telling[:10])
    assert gallery.left_out == max(0, len(cases) - 10)


def test_only_passes_of_flawed_images_have_a_stretched_map() -> None:
    def captions(flawed: bool, verdict: str) -> list[str]:
        gallery = ExampleGallery(1)
        image = ScoredImage("a.png", 0.4, verdict, "dent" if flawed else "good", flawed)
        gallery.update(image, inspection_of(0.4, verdict), None)
        return [picture.caption.split(":")[0] for picture in gallery.examples()[0].pictures]

    assert captions(True, "pass") == ["image", "stretched map"]
    assert captions(True, "reject") == captions(False, "reject") == ["image", "map"]
    assert captions(False, "pass") == ["image"]


def test_picture_of_a_large_image_is_reduced_with_its_regions() -> None:
    anomaly_map = np.zeros((1500, 2300), np.float32)
    anomaly_map[700:740, 1999:2040] = 1.0
    decision = Decision(limit=0.5, map_limit=0.5, stated_false_reject_rate=0.1, n_good=9)
    verdict, regions = decision.decide(0.9, anomaly_map)
    large = replace(inspection_of(0.9, verdict), map_source=anomaly_map, regions=regions)

    _, heat = reporting.pictures_of(large, np.zeros((1500, 2300, 3), np.uint8), None, 10**6, maps_of_passes=True)

    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(heat.source.partition(",")[2])))).astype(int)
    assert picture.shape == (500, 766, 3)
    outline = (picture[..., 2] > 150) & (picture[..., 0] < 120)
    rows, columns = np.nonzero(outline)
    assert abs(rows.mean() - 720 / 3) < 3 and abs(columns.mean() - 2020 / 3) < 3
