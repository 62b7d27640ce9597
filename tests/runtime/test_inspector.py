"""The inspector and its engines, on a detector whose answers are known."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.engine import OnnxRuntimeEngine, OpenVinoEngine, make_engine
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry, InvertedMap
from flawsmith.runtime.inspector import Inspection, Inspector, Unreadable
from flawsmith.runtime.overlay import draw_overlay
from flawsmith.runtime.regions import strongest_region
from flawsmith.runtime.roi import RegionOfInterest, Zone

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def _picture(value: int = 40, *, flaw: int | None = None, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    image = np.full((*size, 3), value, np.uint8)
    if flaw is not None:
        image[30:54, 40:72] = flaw
    return image


def _save(path: Path, image: np.ndarray) -> Path:
    Image.fromarray(image).save(path)
    return path


@pytest.fixture(scope="module")
def inspector(bundle: Bundle) -> Inspector:
    return Inspector.load(bundle, threads=1)


def test_flaw_is_rejected_where_it_lies(inspector: Inspector) -> None:
    inspection = inspector.inspect(_picture(flaw=250))

    assert inspection.verdict == "reject"
    assert inspection.score == pytest.approx(250 / 255, abs=1e-3)
    assert inspection.map.shape == (96, 128)
    assert inspection.map.dtype == np.float32
    assert inspection.not_inspected is None
    (region,) = inspection.regions
    assert np.abs(np.array(region.box) - (40, 30, 72, 54)).max() <= 2
    assert region.centroid == pytest.approx((55.5, 41.5), abs=0.6)
    assert set(inspection.timing) == {"decode", "prepare", "infer", "restore", "decide"}


@pytest.mark.parametrize(("flaw", "verdict"), [(None, "pass"), (120, "review"), (200, "reject")])
def test_verdict_follows_the_score(inspector: Inspector, flaw: int | None, verdict: str) -> None:
    assert inspector.inspect(_picture(flaw=flaw)).verdict == verdict


def test_map_of_a_pass_is_computed_for_those_who_ask(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = inspector.measure(_picture()).map
    computed: list[int] = []
    columns = InvertedMap.columns
    monkeypatch.setattr(InvertedMap, "columns", lambda self, numbers: computed.append(0) or columns(self, numbers))
    with monkeypatch.context() as never:
        never.setattr(InvertedMap, "whole", lambda self: pytest.fail("the whole map was computed"))
        passed, rejected = inspector.inspect(_picture()), inspector.inspect(_picture(flaw=200))
        assert (passed.verdict, passed.regions) == ("pass", [])
        assert rejected.regions
        assert 1 <= len(computed) <= 2

    np.testing.assert_array_equal(passed.map, expected)
    assert pickle.loads(pickle.dumps(rejected)).map.max() == rejected.regions[0].peak


@pytest.mark.parametrize("minimum_area", [1, 9])
@pytest.mark.parametrize("review_limit", [None, 0.3])
@pytest.mark.parametrize("has_roi", [False, True])
def test_decision_on_a_map_on_its_way_is_that_on_the_whole_map(
    minimum_area: int, review_limit: float | None, *, has_roi: bool
) -> None:
    roi = RegionOfInterest(include=(((0.1, 0.2), (0.9, 0.1), (0.6, 0.9)),)) if has_roi else None
    rng, size = np.random.default_rng(3), (90, 130)
    not_inspected = rng.random(size) < 0.1
    for map_limit, score in product((0.35, 0.6, 0.95, 2.0), (0.2, 0.4, 0.7)):
        decision = Decision(
            limit=0.5,
            map_limit=map_limit,
            review_limit=review_limit,
            minimum_area=minimum_area,
            region_of_interest=roi,
            stated_false_reject_rate=0.01,
            n_good=99,
        )
        inverse = Geometry(size=(24, 32)).inverse((rng.random((24, 32)) ** 5).astype(np.float32), size)
        for mask in (None, not_inspected):
            assert decision.decide(score, inverse, mask) == decision.decide(score, inverse.whole(), mask)


def test_file_bytes_and_arrays_agree(inspector: Inspector, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
    path = _save(tmp_path / "part.png", image)

    results = [
        inspector.inspect(path),
        inspector.inspect(str(path)),
        inspector.inspect(path.read_bytes()),
        inspector.inspect(image),
        inspector.inspect(image[:, :, ::-1], bgr=True),
    ]

    assert [result.image for result in results] == [str(path), str(path), None, None, None]
    for result in results[1:]:
        assert result.score == results[0].score
        np.testing.assert_array_equal(result.map, results[0].map)
        assert result.regions == results[0].regions


def test_raw_output_is_the_networks(inspector: Inspector) -> None:
    score, raw_map = inspector.raw(_picture(51))

    assert raw_map.shape == (32, 48)
    np.testing.assert_allclose(raw_map, 0.2, atol=1e-6)
    assert score == pytest.approx(0.2)


def test_outputs_are_found_by_name(bundle: Bundle, new_detector: Callable[..., bytes]) -> None:
    swapped = Inspector.load(replace(bundle, model=new_detector(score_first=True)))

    assert swapped.raw(_picture(51))[1].shape == (32, 48)


def test_crop_marks_what_was_not_inspected(new_bundle: Callable[..., Bundle]) -> None:
    geometry = Geometry(policy="crop", size=(32, 48), resize=60, **PLAIN)
    inspector = Inspector.load(new_bundle(geometry=geometry))
    image = _picture()
    image[0, 0] = 255

    inspection = inspector.inspect(image)

    assert inspection.verdict == "pass"
    assert inspection.not_inspected is not None
    assert inspection.not_inspected[0, 0]
    assert not inspection.not_inspected[48, 64]
    assert 0 < inspection.to_dict()["inspected"] < 1


def test_many_images_equal_one_by_one(inspector: Inspector) -> None:
    images = [_picture(20), _picture(flaw=240), _picture(90, size=(33, 47))]

    together = inspector.inspect_many(images)

    for image, result in zip(images, together, strict=True):
        np.testing.assert_array_equal(result.map, inspector.inspect(image).map)


def test_dictionary_is_strict_json(inspector: Inspector) -> None:
    inspection = inspector.inspect(_picture(flaw=250))

    read = json.loads(json.dumps(inspection.to_dict(), allow_nan=False))

    assert read["verdict"] == "reject"
    assert read["limit"] == 0.6
    assert read["regions"][0]["area"] == inspection.regions[0].area
    assert read["inspected"] == 1.0


def test_unreadable_image_raises(inspector: Inspector, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match=r"none\.png: no such file"):
        inspector.inspect(tmp_path / "none.png")


def test_pixel_cap_is_passed_on(bundle: Bundle, tmp_path: Path) -> None:
    path = _save(tmp_path / "part.png", _picture())

    with pytest.raises(FlawsmithError, match="exceed the cap of 100"):
        Inspector.load(bundle, max_pixels=100).inspect(path)


def test_numbers_that_are_not_finite_are_never_a_pass(
    bundle: Bundle, new_graph: Callable[..., bytes], tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Constant", [], ["axes"], value_ints=[1]),
        helper.make_node("Constant", [], ["both"], value_ints=[1, 2]),
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("Log", ["mean"], ["map"]),
        helper.make_node("ReduceMax", ["map", "both"], ["score"], keepdims=0),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, 32, 48])
    outputs = [
        helper.make_tensor_value_info("map", TensorProto.FLOAT, ["b", 32, 48]),
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["b"]),
    ]
    inspector = Inspector.load(replace(bundle, model=new_graph(nodes, [image], outputs)))
    path = _save(tmp_path / "black.png", _picture(0))

    with pytest.raises(FlawsmithError, match=r"black\.png: .*not finite"):
        inspector.inspect(path)
    (result,) = inspector.stream([path])
    assert isinstance(result, Unreadable)


class TestPillow:
    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "CMYK", "I;16"])
    def test_image_of_pillows_is_seen_as_its_file(self, inspector: Inspector, tmp_path: Path, mode: str) -> None:
        path = tmp_path / "part.tif"
        if mode == "I;16":
            Image.fromarray(_picture(flaw=250)[:, :, 0].astype(np.uint16) * 257).save(path)
        else:
            Image.fromarray(_picture(flaw=250)).convert(mode).save(path)

        with Image.open(path) as image:
            given = inspector.inspect(image)
            measured = inspector.measure(image)

        assert given.image is None
        assert given.score == measured.score == inspector.inspect(path).score
        np.testing.assert_array_equal(given.map, inspector.inspect(path).map)

    @pytest.mark.parametrize("orientation", [3, 6])
    def test_orientation_of_a_photograph_is_applied(
        self, inspector: Inspector, tmp_path: Path, orientation: int
    ) -> None:
        path, exif = tmp_path / "photo.jpg", Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(_picture(flaw=250)).save(path, exif=exif, quality=95)

        with Image.open(path) as image:
            given = inspector.inspect(image)

        assert given.map.shape == ((128, 96) if orientation == 6 else (96, 128))
        np.testing.assert_array_equal(given.map, inspector.inspect(path).map)

    def test_image_is_not_changed_and_can_be_drawn_over(self, inspector: Inspector) -> None:
        image = Image.fromarray(_picture(flaw=250)).convert("P")
        image.info["transparency"] = 0

        picture = inspector.inspect(image).overlay(image)

        assert image.info["transparency"] == 0
        assert picture.size == image.size

    def test_what_cannot_be_read_is_refused_in_a_line(self, bundle: Bundle, tmp_path: Path) -> None:
        path = tmp_path / "cut.jpg"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        inspector = Inspector.load(bundle, max_pixels=96 * 128)

        with pytest.raises(FlawsmithError, match="Pillow image: cannot be read"), Image.open(path) as image:
            inspector.inspect(image)
        with pytest.raises(FlawsmithError, match="floating-point"):
            inspector.inspect(Image.new("F", (8, 8)))
        with pytest.raises(FlawsmithError, match="97 x 128 pixels"):
            inspector.inspect(Image.new("L", (97, 128)))
        with pytest.raises(FlawsmithError, match="0 x 4 pixels"):
            inspector.inspect(Image.new("L", (0, 4)))


class TestNotebook:
    """What objects show of themselves."""

    def test_inspection_says_verdict_multiple_of_the_limit_and_regions(
        self, inspector: Inspector, tmp_path: Path
    ) -> None:
        flawed = inspector.inspect(_save(tmp_path / "part.png", _picture(flaw=250)))
        good = inspector.inspect(_picture())

        assert "part.png': reject, 1.63 times the limit" in repr(flawed)
        assert f"1 region, the strongest in the box {flawed.regions[0].box}" in repr(flawed)
        assert repr(good).startswith("Inspection(pass, 0.26 times the limit")
        assert repr(good).endswith("no region)")

    def test_html_of_an_inspection_holds_a_small_picture_of_itself(self, inspector: Inspector, tmp_path: Path) -> None:
        path = _save(tmp_path / "part.png", _picture(250, size=(960, 1280)))

        page = inspector.inspect(path)._repr_html_()

        content = re.search(r'src="data:image/png;base64,([^"]+)"', page)
        assert content is not None
        assert Image.open(io.BytesIO(base64.b64decode(content[1]))).size == (320, 240)
        assert ">reject<" in page
        assert "times the limit" in page
        assert not re.search("https?:|<script|<link", page)

    @pytest.mark.parametrize("kind", ["array", "bytes", "Pillow"])
    def test_what_came_from_no_file_shows_its_picture_too(self, kind: str, inspector: Inspector) -> None:
        image, stream = _picture(flaw=250), io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        source = {"array": image.copy(), "bytes": stream.getvalue(), "Pillow": Image.fromarray(image)}[kind]
        inspection = inspector.inspect(source)
        if kind == "array":
            source[:] = 0  # as a camera does with its next picture

        assert "data:image/png" in inspection._repr_html_()
        np.testing.assert_array_equal(np.asarray(inspection.overlay()), np.asarray(inspection.overlay(image)))

    def test_html_without_the_image_says_how_to_get_one(self, inspector: Inspector, tmp_path: Path) -> None:
        path = _save(tmp_path / "part.png", _picture())
        gone = inspector.inspect(path)
        path.unlink()

        assert "overlay(image) draws the picture" in replace(gone, image=None)._repr_html_()
        assert "no picture: " in gone._repr_html_()

    def test_kept_pixels_are_the_picture(self, inspector: Inspector, tmp_path: Path) -> None:
        path = _save(tmp_path / "part.png", _picture(flaw=250))
        (inspection,) = inspector.stream(path, keep_pixels=True)
        path.unlink()

        assert isinstance(inspection, Inspection)
        assert "data:image/png" in inspection._repr_html_()

    def test_names_are_escaped(self, new_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
        path = _save(tmp_path / "<img src=x onerror=alert(1)>\x1b[2J.png", _picture())
        inspector = Inspector.load(new_bundle())
        training = inspector.spec.training.model_copy(update={"category": "<script>alert(1)</script>"})
        inspector.spec = inspector.spec.model_copy(update={"training": training})

        for page in (inspector.inspect(path)._repr_html_(), inspector._repr_html_()):
            assert "<img src=x" not in page
            assert "<script" not in page
            assert "\x1b" not in page + repr(inspector) + repr(inspector.inspect(path))

    def test_inspector_says_model_limit_and_promise(self, inspector: Inspector) -> None:
        spec = inspector.spec

        for words in (repr(inspector), inspector._repr_html_()):
            assert f"{spec.method} of {spec.training.category}" in words
            assert f"limit {spec.decision.limit:.4g}" in words
            assert f"good parts rejected: {spec.decision.promise}" in words

    def test_inspector_names_the_limits_of_zones_and_of_the_map(self, inspector: Inspector) -> None:
        corners = ((0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5))
        zone = Zone(name="seal", region=RegionOfInterest(include=[corners]), offset=0.1)
        by_map = inspector.spec.decision.model_copy(update={"minimum_area": 9})
        zoned = inspector.spec.decision.model_copy(update={"zones": (zone,), "review_limit": None})

        assert f"map limit {by_map.map_limit:.4g}" in repr(inspector.with_limits(by_map))
        assert "limits seal 0.6, elsewhere 0.5" in repr(inspector.with_limits(zoned))


class TestOverlay:
    def test_good_image_stays_as_it_is(self, inspector: Inspector) -> None:
        image = _picture(30)

        picture = inspector.inspect(image).overlay(image)

        np.testing.assert_array_equal(np.asarray(picture), image)

    def test_flaw_is_hot_and_outlined(self, inspector: Inspector, tmp_path: Path) -> None:
        path = _save(tmp_path / "part.png", _picture(flaw=250))

        picture = np.asarray(inspector.inspect(path).overlay())

        assert picture.shape == (96, 128, 3)
        assert (picture == (0, 229, 255)).all(axis=2).sum() > 80
        assert (picture[40, 55] != (250, 250, 250)).any()
        np.testing.assert_array_equal(picture[5, 5], (40, 40, 40))

    def test_colours_go_from_the_limit_to_the_images_own_peak(self, inspector: Inspector) -> None:
        image = _picture(flaw=150)
        image[80:90, 100:120] = 255

        inspection = inspector.inspect(image)

        assert inspection.heat_scale() == (inspection.decision.map_limit, float(inspection.map.max()))
        weaker, peak = (tuple(np.asarray(inspection.overlay(image))[place].tolist()) for place in ((42, 56), (85, 110)))
        assert sum(peak) > sum(weaker)

    def test_stretched_map_shows_what_lies_below_the_limit(self, inspector: Inspector) -> None:
        image = _picture(flaw=60)
        inspection = inspector.inspect(image)
        assert inspection.verdict == "pass"

        picture = np.asarray(inspection.overlay(image, stretched=True))

        assert (picture[42, 56] != image[42, 56]).any()
        np.testing.assert_array_equal(picture[5, 5], image[5, 5])

    def test_scale_is_a_strip_beneath_the_picture(self, inspector: Inspector) -> None:
        image = _picture(flaw=250)
        inspection = inspector.inspect(image)

        plain, scaled = (np.asarray(inspection.overlay(image, scale=scale)) for scale in (False, True))

        assert scaled.shape[0] > plain.shape[0] == 96
        np.testing.assert_array_equal(scaled[:96, :128], plain)
        assert len(np.unique(scaled[96:].reshape(-1, 3), axis=0)) > 20

    def test_16_bit_image_is_shown(self, inspector: Inspector) -> None:
        image = _picture(30).astype(np.uint16) * 257

        assert np.asarray(inspector.inspect(image).overlay(image)).max() == 30

    def test_image_of_a_12_bit_camera_is_as_bright_as_its_range_says(
        self, new_bundle: Callable[..., Bundle], tmp_path: Path
    ) -> None:
        geometry = Geometry(size=(32, 48), value_range=Geometry.range_of_bits(12), **PLAIN)
        path = _save(tmp_path / "part.png", np.full((96, 128), 30 * 4095 // 255, np.uint16))

        picture = Inspector.load(new_bundle(geometry=geometry)).inspect(path).overlay()

        np.testing.assert_array_equal(np.asarray(picture), _picture(30))

    def test_missing_or_other_image_is_refused(self, inspector: Inspector) -> None:
        inspection = inspector.inspect(_picture())

        with pytest.raises(FlawsmithError, match="came from no file and was not kept; give it"):
            replace(inspection, pixels=None).overlay()
        with pytest.raises(FlawsmithError, match="give the same image"):
            inspection.overlay(_picture(size=(10, 12)))

    def test_strangest_place_is_dashed_and_said_so(self, inspector: Inspector) -> None:
        image = _picture(flaw=250)
        found = inspector.inspect(image)
        alone = inspector.with_limits(found.decision.model_copy(update={"map_limit": 2.0})).inspect(image)

        assert (alone.verdict, alone.regions[0].strangest_place, found.regions[0].strangest_place) == (
            "reject",
            True,
            False,
        )
        assert alone.regions[0].box == found.regions[0].box
        assert f"map below its limit, strangest place in the box {found.regions[0].box}" in repr(alone)
        assert [region["strangest_place"] for region in alone.to_dict()["regions"]] == [True]
        outlines = [(np.asarray(each.overlay()) == (0, 229, 255)).all(axis=2).sum() for each in (alone, found)]
        assert 0.3 * outlines[1] < outlines[0] < 0.7 * outlines[1]
        assert alone.heat_scale().high == pytest.approx(float(alone.map.max()))
        heights = [each.overlay(scale=True).height for each in (alone, found)]
        assert heights[0] > heights[1]

    def test_slanted_outline_of_a_strangest_place_has_dashes_and_gaps(self) -> None:
        y, x = np.mgrid[:200, :200]
        far = np.abs(y - 100) + np.abs(x - 100)
        anomaly_map = np.where(far <= 60, 1.0, 0.0).astype(np.float32)
        region = strongest_region(anomaly_map).model_copy(update={"strangest_place": True})

        drawn = np.asarray(draw_overlay(np.zeros((200, 200, 3), np.uint8), anomaly_map, [region], map_limit=2.0))

        outline = (drawn == (0, 229, 255)).all(axis=2)
        for side in (outline[:100, :100], outline[:100, 100:], outline[100:, :100], outline[100:, 100:]):
            assert 30 < side.any(axis=0).sum() < 55, "of 61 columns"

    def test_strangest_place_that_is_the_whole_map_draws(self) -> None:
        even = np.ones((20, 30), np.float32)
        region = strongest_region(even).model_copy(update={"strangest_place": True})

        drawn = draw_overlay(np.zeros((20, 30, 3), np.uint8), even, [region], map_limit=2.0)

        assert drawn.size == (30, 20)

    @pytest.mark.parametrize("map_limit", [-2.0, 0.0])
    def test_limit_of_any_sign_draws(self, map_limit: float, new_bundle: Callable[..., Bundle]) -> None:
        decision = Decision(limit=9.0, map_limit=map_limit, stated_false_reject_rate=0.1, n_good=9)
        image = _picture()

        picture = Inspector.load(new_bundle(decision=decision)).inspect(image).overlay(image)

        assert picture.size == (128, 96)


class TestStream:
    def test_folder_comes_in_order_with_unreadable_entries(self, inspector: Inspector, tmp_path: Path) -> None:
        for number in range(20):
            _save(tmp_path / f"{number:02}.png", _picture(number * 4, size=(20 + number, 30)))
        (tmp_path / "07.png").write_bytes(b"no image")
        (tmp_path / "13.png").unlink()
        (tmp_path / "13.png").symlink_to(tmp_path / "gone")

        results = list(inspector.stream(tmp_path, decoders=3))

        assert [Path(result.image or "").name for result in results] == [f"{n:02}.png" for n in range(20)]
        broken = [result for result in results if isinstance(result, Unreadable)]
        assert [Path(result.image).name for result in broken] == ["07.png", "13.png"]
        assert "not an image" in broken[0].to_dict()["error"]
        for number, result in enumerate(results):
            if isinstance(result, Inspection):
                assert result.score == inspector.inspect(result.image or "").score
                assert result.map.shape == (20 + number, 30)

    def test_both_halves_of_an_inspection_are_the_whole(self, inspector: Inspector) -> None:
        image = _picture(flaw=250)
        whole = inspector.inspect(image)

        halves = inspector.inspect_prepared(inspector.prepare(image))

        assert (halves.verdict, halves.score, halves.regions) == (whole.verdict, whole.score, whole.regions)
        assert set(halves.timing) == set(whole.timing)

    def test_one_file_and_lists_are_streams_too(self, inspector: Inspector, tmp_path: Path) -> None:
        path = _save(tmp_path / "part.png", _picture())

        assert [result.image for result in inspector.stream(path)] == [str(path)]
        assert [result.image for result in inspector.stream([str(path), path])] == [str(path)] * 2
        assert list(inspector.stream([])) == []

    @pytest.mark.parametrize("decoders", [1, 2, 5])
    def test_images_in_flight_are_bounded(self, inspector: Inspector, tmp_path: Path, decoders: int) -> None:
        path = _save(tmp_path / "part.png", _picture())
        taken = 0

        def endless() -> Iterator[Path]:
            nonlocal taken
            while True:
                taken += 1
                yield path

        stream = inspector.stream(endless(), decoders=decoders)
        ahead = []
        for given in range(1, 40):
            next(stream)
            ahead.append(taken - given)
        stream.close()  # type: ignore[attr-defined]

        assert max(ahead) < 2 * decoders

    def test_abandoned_stream_ends_its_threads(self, inspector: Inspector, tmp_path: Path) -> None:
        path = _save(tmp_path / "part.png", _picture())

        stream = inspector.stream([path] * 50)
        next(stream)
        running = [thread for thread in threading.enumerate() if thread.name.startswith("flawsmith-decode")]
        del stream

        assert running
        assert not any(thread.is_alive() for thread in running)

    def test_defect_of_the_program_is_not_hidden_as_unreadable(
        self, inspector: Inspector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("a defect")

        monkeypatch.setattr("flawsmith.runtime.inspector.decode", broken)

        with pytest.raises(RuntimeError, match="a defect"):
            next(inspector.stream([tmp_path / "a.png"]))

    def test_name_that_is_too_long_is_an_unreadable_entry_in_its_place(
        self, inspector: Inspector, tmp_path: Path
    ) -> None:
        good, endless = _save(tmp_path / "part.png", _picture()), tmp_path / ("x" * 300)

        results = list(inspector.stream([good, endless, good]))
        (alone,) = inspector.stream(endless)

        assert [type(result) for result in results] == [Inspection, Unreadable, Inspection]
        assert isinstance(alone, Unreadable)
        assert "cannot be opened" in alone.error

    @pytest.mark.parametrize("error", [FlawsmithError("no such list"), OSError(5, "broken disk")])
    def test_error_of_the_paths_comes_after_the_results_of_those_before(
        self, inspector: Inspector, tmp_path: Path, error: Exception
    ) -> None:
        path = _save(tmp_path / "part.png", _picture())

        def broken() -> Iterator[Path]:
            yield path
            yield path
            raise error

        stream = inspector.stream(broken(), decoders=3)

        assert [next(stream).image, next(stream).image] == [str(path)] * 2
        with pytest.raises(type(error)) as caught:
            next(stream)
        assert caught.value is error

    def test_missing_folder_is_one_unreadable_entry_and_no_decoder_is_refused(
        self, inspector: Inspector, tmp_path: Path
    ) -> None:
        (result,) = inspector.stream(tmp_path / "none")

        assert isinstance(result, Unreadable)
        with pytest.raises(FlawsmithError, match="decoders must be at least 1"):
            inspector.stream(tmp_path, decoders=0)


class TestEngines:
    def test_recorded_engine_is_the_default(self, inspector: Inspector) -> None:
        assert (inspector.engine.name, inspector.engine.precision) == ("onnxruntime", "float32")
        assert inspector.calibrated

    def test_openvino_agrees_and_warns_that_limits_were_anothers(self, bundle: Bundle, inspector: Inspector) -> None:
        pytest.importorskip("openvino")
        with pytest.warns(UserWarning, match="calibrated with onnxruntime in float32, this is openvino"):
            other = Inspector.load(bundle, engine="openvino", threads=1)

        ours, theirs = inspector.inspect(_picture(flaw=250)), other.inspect(_picture(flaw=250))

        assert not other.calibrated
        np.testing.assert_allclose(theirs.map, ours.map, atol=1e-5)
        assert theirs.score == pytest.approx(ours.score, abs=1e-5)

    def test_recorded_openvino_in_bfloat16_is_used_without_a_warning(
        self, new_bundle: Callable[..., Bundle], inspector: Inspector
    ) -> None:
        pytest.importorskip("openvino")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other = Inspector.load(new_bundle(engine="openvino", precision="bfloat16"), threads=1)

        assert other.calibrated
        assert other.engine.precision == "bfloat16"
        assert other.inspect(_picture(51)).score == pytest.approx(0.2, abs=0.01)

    def test_missing_openvino_names_the_install(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)

        with pytest.raises(FlawsmithError, match=r"pip install 'flawsmith\[openvino\]'"):
            Inspector.load(bundle, engine="openvino")

    @pytest.mark.parametrize("engine_class", [OnnxRuntimeEngine, OpenVinoEngine])
    def test_graph_with_several_outputs_keeps_their_order(
        self, engine_class: type, new_graph: Callable[..., bytes]
    ) -> None:
        if engine_class is OpenVinoEngine:
            pytest.importorskip("openvino")
        nodes = [
            helper.make_node("Neg", ["image"], ["level_1"]),
            helper.make_node("MaxPool", ["image"], ["level_0"], kernel_shape=[2, 2], strides=[2, 2]),
        ]
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, 8, 10])
        outputs = [
            helper.make_tensor_value_info("level_0", TensorProto.FLOAT, ["b", 3, 4, 5]),
            helper.make_tensor_value_info("level_1", TensorProto.FLOAT, ["b", 3, 8, 10]),
        ]
        batch = np.random.default_rng(0).random((2, 3, 8, 10), np.float32)

        engine = engine_class(new_graph(nodes, [image], outputs), threads=1)
        first, second = engine.run(batch)
        again = engine.run(np.zeros_like(batch))

        assert [port.name for port in engine.outputs] == ["level_0", "level_1"]
        assert engine.inputs[0].shape == (None, 3, 8, 10)
        assert first.shape == (2, 3, 4, 5)
        np.testing.assert_allclose(second, -batch, atol=1e-6)
        assert again[1].max() == 0

    @pytest.mark.parametrize(
        ("name", "precision", "threads", "message"),
        [
            ("tensorrt", "float32", None, "known are onnxruntime and openvino"),
            ("onnxruntime", "bfloat16", None, "computes in float32"),
            ("onnxruntime", "float32", 0, "threads must be at least 1"),
        ],
    )
    def test_what_no_engine_can_do_is_refused(
        self, bundle: Bundle, name: str, precision: str, threads: int | None, message: str
    ) -> None:
        with pytest.raises(FlawsmithError, match=message):
            make_engine(name, bundle.model, precision=precision, threads=threads)  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
    @pytest.mark.parametrize("model", [b"", b"no graph", b"\x00" * 100])
    def test_graph_that_is_none_is_refused_in_one_line(
        self, name: str, model: bytes, capfd: pytest.CaptureFixture[str]
    ) -> None:
        if name == "openvino":
            pytest.importorskip("openvino")
        with pytest.raises(FlawsmithError, match="cannot load the model") as caught:
            make_engine(name, model)

        assert "\n" not in str(caught.value)
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
    @pytest.mark.parametrize("where", ["initializer", "attribute"])
    def test_graph_that_would_read_other_files_is_refused(
        self, name: str, where: str, new_graph: Callable[..., bytes], tmp_path: Path
    ) -> None:
        if name == "openvino":
            pytest.importorskip("openvino")
        (tmp_path / "secret").write_bytes(bytes(12))
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=str(tmp_path / "secret"))
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
        result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])
        nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
        if where == "attribute":
            nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
        initialisers = [tensor] if where == "initializer" else []
        graph = helper.make_graph(nodes, "test", [value], [result], initialisers)

        with pytest.raises(FlawsmithError, match="self-contained"):
            make_engine(name, helper.make_model(graph).SerializeToString())

    def test_graph_of_another_size_is_refused(self, bundle: Bundle, new_detector: Callable[..., bytes]) -> None:
        with pytest.raises(FlawsmithError, match="'image' has the shape"):
            Inspector.load(replace(bundle, model=new_detector((32, 47))))

    def test_graph_with_other_outputs_is_refused(self, bundle: Bundle, new_detector: Callable[..., bytes]) -> None:
        with pytest.raises(FlawsmithError, match="'heat'"):
            Inspector.load(replace(bundle, model=new_detector(map_name="heat")))

    def test_threads_of_one_inspector_do_not_disturb_each_other(self, bundle: Bundle) -> None:
        pytest.importorskip("openvino")
        with pytest.warns(UserWarning):
            inspector = Inspector.load(bundle, engine="openvino", threads=1)
        found: dict[int, float] = {}

        def work(value: int) -> None:
            for _ in range(10):
                found[value] = inspector.inspect(_picture(value)).score

        threads = [threading.Thread(target=work, args=(value,)) for value in (10, 60, 110, 160)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert found == pytest.approx({value: value / 255 for value in (10, 60, 110, 160)}, abs=1e-3)


def test_runtime_needs_no_training_library() -> None:
    """Imported in a fresh interpreter, the runtime pulls in nothing beyond the core tier."""
    import subprocess

    code = (
        "import sys, flawsmith.runtime.inspector\n"
        "print([name for name in ('torch', 'scipy', 'sklearn', 'cv2', 'openvino', 'onnx', 'matplotlib')"
        " if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
