"""Large images in tiles: the cut and the joined map, and the inspector that sees them piece by piece."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from flawsmith.runtime import inspector as inspector_module
from flawsmith.runtime import roi as roi_module
from flawsmith.runtime.bundle import Bundle, BundleSpec
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import find_images
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.runtime.inspector import Inspection, Inspector, Unreadable
from flawsmith.runtime.roi import RegionOfInterest
from flawsmith.runtime.tiles import Tiling, inspect_by_tiles, of_one_tile, tiles_to_see

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
TILING = Tiling(size=48, overlap=12)
SEAMLESS = Tiling(size=256, overlap=64)


@st.composite
def tilings(draw: Any) -> Tiling:
    size = draw(st.integers(32, 90))
    return Tiling(size=size, overlap=draw(st.integers(0, (size - 1) // 2)))


def mean_map(batch: np.ndarray) -> tuple[float, np.ndarray]:
    """A network whose map is the mean of the channels, and whose score is its maximum."""
    anomaly_map = batch[0].mean(axis=0)
    return float(anomaly_map.max()), anomaly_map


@given(tilings(), st.integers(1, 700))
def test_tiles_cover_a_side_at_equal_distances_and_count_for_one_together(tiling: Tiling, length: int) -> None:
    spans = [(tile.top, tile.bottom) for tile in tiling.tiles((length, 1))]
    weights = tiling.weights(length)

    total, distances = np.zeros(length), np.diff([start for start, _ in spans])
    for (start, stop), weight in zip(spans, weights, strict=True):
        assert weight.shape == (stop - start,) == (min(length, tiling.size),)
        assert weight.min() >= 0 and weight.max() <= 1
        total[start:stop] += weight
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert len(distances) == 0 or (np.ptp(distances) <= 1 and distances.max() <= tiling.size - tiling.overlap)
    np.testing.assert_allclose(total, 1, atol=1e-6)


def weights_of_whole_lengths(tiling: Tiling, length: int) -> list[np.ndarray]:
    """The weights, each fade computed along the whole axis."""
    spans = [(tile.top, tile.bottom) for tile in tiling.tiles((length, 1))]
    fades = [np.ones(length)]
    for (_, first_end), (second, _) in pairwise(spans):
        begin = second + (first_end - second - tiling.overlap) // 2
        place = np.clip((np.arange(length) - begin + 0.5) / max(tiling.overlap, 1), 0.0, 1.0)
        fades.append(0.5 - 0.5 * np.cos(np.pi * (place if tiling.overlap else place > 0)))
    fades.append(np.zeros(length))
    return [
        (fade - later)[start:stop].astype(np.float32)
        for (start, stop), (fade, later) in zip(spans, pairwise(fades), strict=True)
    ]


@given(tilings(), st.integers(1, 700))
def test_weights_are_those_of_fades_along_the_whole_side(tiling: Tiling, length: int) -> None:
    for weight, expected in zip(tiling.weights(length), weights_of_whole_lengths(tiling, length), strict=True):
        # A processor may compute the last cosines of an array by other instructions than the first.
        np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-7)


def test_weights_of_a_long_side_take_memory_in_proportion_to_it() -> None:
    length = 20_000

    tracemalloc.start()
    Tiling(size=64, overlap=8).weights(length)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 20 * length


@given(tilings(), st.integers(1, 200), st.integers(1, 200), st.integers(0, 99))
def test_maps_that_agree_where_tiles_overlap_are_joined_to_the_very_map(
    tiling: Tiling, height: int, width: int, draw: int
) -> None:
    image = np.random.default_rng(draw).integers(0, 256, (height, width, 3), np.uint8)
    side = (min(height, tiling.size), min(width, tiling.size))

    score, joined = inspect_by_tiles(image, Geometry(size=side, **PLAIN), tiling, mean_map)

    expected = image.mean(axis=2) / 255
    np.testing.assert_allclose(joined, expected, atol=1e-6)
    assert score == pytest.approx(expected.max(), abs=1e-6)


def test_score_is_that_of_the_tile_that_scores_highest() -> None:
    scores = iter([3.0, 7.0, 5.0])

    score, joined = inspect_by_tiles(
        np.zeros((40, 100, 3), np.uint8),
        Geometry(size=(40, 40)),
        Tiling(size=40, overlap=10),
        lambda batch: (next(scores), np.ones((40, 40), np.float32)),
    )

    assert score == 7.0
    np.testing.assert_allclose(joined, 1, atol=1e-6)


def test_values_of_16_bits_keep_their_range_in_tiles() -> None:
    image = np.random.default_rng(0).integers(0, 4096, (48, 130, 3), dtype=np.uint16)
    geometry = Geometry(size=(48, 48), value_range=Geometry.range_of_bits(12), **PLAIN)

    _, joined = inspect_by_tiles(image, geometry, TILING, mean_map)

    np.testing.assert_allclose(joined, image.mean(axis=2) / 4095, atol=1e-6)


def test_region_of_interest_is_that_of_the_whole_image() -> None:
    left = RegionOfInterest(include=[[(0, 0), (0.5, 0), (0.5, 1), (0, 1)]])
    geometry = Geometry(size=(48, 48), region=left, **PLAIN)
    image = np.random.default_rng(0).integers(0, 256, (96, 200, 3), np.uint8)
    other = image.copy()
    other[:, 100:] = 255 - other[:, 100:]
    seen: list[float] = []

    def count(batch: np.ndarray) -> tuple[float, np.ndarray]:
        seen.append(float(batch.mean()))
        return mean_map(batch)

    score, joined = inspect_by_tiles(image, geometry, TILING, count)
    again = inspect_by_tiles(other, geometry, TILING, mean_map)

    assert len(seen) == len(tiles_to_see(TILING, geometry, (96, 200))) < len(TILING.tiles((96, 200)))
    assert score == again[0]
    np.testing.assert_array_equal(joined, again[1])
    np.testing.assert_allclose(joined[:, :100], image[:, :100].mean(axis=2) / 255, atol=1e-6)
    assert (joined[:, 100:] == joined[:, :100].min()).all()


def test_region_is_drawn_once_an_image_though_another_one_is_inspected_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = RegionOfInterest(include=[[(0, 0), (0.5, 0), (0.5, 1), (0, 1)]])
    drawn: list[tuple[int, int]] = []
    draw = roi_module._draw

    def told(region: RegionOfInterest, size: tuple[int, int]) -> np.ndarray:
        drawn.append(size)
        return draw(region, size)

    def meanwhile(batch: np.ndarray) -> tuple[float, np.ndarray]:
        left.to_mask((30, 40))
        return mean_map(batch)

    monkeypatch.setattr(roi_module, "_draw", told)
    geometry = Geometry(size=(48, 48), region=left, **PLAIN)
    inspect_by_tiles(np.zeros((196, 200, 3), np.uint8), geometry, TILING, meanwhile)

    assert drawn.count((196, 200)) == 1


def test_region_takes_one_byte_a_pixel_while_the_map_is_joined() -> None:
    tiling, size = Tiling(size=256, overlap=32), (3000, 3000)
    image = np.zeros((*size, 3), np.uint8)

    def peak(region: RegionOfInterest | None) -> int:
        geometry = Geometry(size=(256, 256), region=region, **PLAIN)
        tracemalloc.start()
        inspect_by_tiles(image, geometry, tiling, mean_map)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    more = peak(RegionOfInterest(exclude=[[(0, 0), (0.5, 0), (0.5, 1)]])) - peak(None)
    assert more < 1.5 * size[0] * size[1]


@pytest.fixture
def tiled(new_bundle: Callable[..., Bundle]) -> Inspector:
    """A model whose map is the brightness, which sees tiles of 64 pixels."""
    return Inspector.load(new_bundle(tiling=Tiling(size=64, overlap=16)), threads=1)


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (20, 30)])
def test_image_that_one_tile_holds_is_inspected_as_without_tiles(
    tiled: Inspector, bundle: Bundle, size: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    untiled = Inspector.load(bundle, threads=1)

    first, second = tiled.inspect(image), untiled.inspect(image)

    assert (first.score, first.verdict, first.regions) == (second.score, second.verdict, second.regions)
    assert first.map.tobytes() == second.map.tobytes()
    assert tiled.raw(image)[1].tobytes() == untiled.raw(image)[1].tobytes()


def test_flaw_on_a_seam_is_rejected_where_it_lies(tiled: Inspector) -> None:
    image = np.full((150, 210, 3), 40, np.uint8)
    image[60:72, 100:112] = 250

    inspection = tiled.inspect(image)

    assert inspection.verdict == "reject"
    (region,) = inspection.regions
    assert np.abs(np.array(region.box) - (100, 60, 112, 72)).max() <= 3
    assert set(inspection.timing) == {"decode", "prepare", "infer", "restore", "decide"}
    assert inspection.network_map is None
    measured = tiled.measure(image)
    assert measured.score == inspection.score
    np.testing.assert_array_equal(measured.map, inspection.map)


def test_raw_map_of_several_tiles_is_refused(tiled: Inspector) -> None:
    with pytest.raises(FlawsmithError, match="several tiles have no common map"):
        tiled.raw(np.zeros((100, 100, 3), np.uint8))


def test_tiling_is_kept_in_the_model_file(new_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    path = tmp_path / "model.flaw"
    new_bundle(tiling=Tiling(size=64, overlap=16)).save(path)

    assert Bundle.load(path).spec.tiling == Tiling(size=64, overlap=16)


@pytest.mark.parametrize(
    ("tiling", "words"),
    [
        ({"size": 31, "overlap": 4}, "greater than or equal to 32"),
        ({"size": 20_000, "overlap": 4}, "less than or equal to 16384"),
        ({"size": 64, "overlap": 32}, "half of the tile"),
        ({"size": 64, "overlap": -1}, "greater than or equal to 0"),
        ({"size": "64", "overlap": 4}, "valid integer"),
    ],
)
def test_model_file_with_impossible_tiles_is_refused(
    new_bundle: Callable[..., Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiling: dict[str, Any],
    words: str,
) -> None:
    good = new_bundle(tiling=Tiling(size=64, overlap=16))
    path = tmp_path / "model.flaw"
    text = json.dumps(good.spec.model_dump(mode="json") | {"tiling": tiling})
    monkeypatch.setattr(BundleSpec, "model_dump", lambda *_, **__: json.loads(text))
    good.save(path)
    monkeypatch.undo()

    with pytest.raises(FlawsmithError, match=words):
        Bundle.load(path)


def test_tiles_and_a_crop_do_not_go_together(new_bundle: Callable[..., Bundle]) -> None:
    with pytest.raises(ValueError, match="not the policy crop"):
        new_bundle(tiling=TILING, geometry=Geometry(size=(32, 48), policy="crop"))


def test_stream_keeps_the_order_of_images_of_all_sizes(tiled: Inspector, tmp_path: Path) -> None:
    sizes = [(40, 50), (300, 200), (64, 64), (100, 400), (90, 90), (500, 30)]
    for number, size in enumerate(sizes):
        Image.fromarray(np.full((*size, 3), 20 * number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "2b.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    results = list(tiled.stream(tmp_path))

    assert [Path(str(result.image)).stem for result in results] == ["0", "1", "2", "2b", "3", "4", "5"]
    assert isinstance(results.pop(3), Unreadable)
    for number, result in enumerate(results):
        assert isinstance(result, Inspection)
        assert result.map.shape == sizes[number]
        assert result.score == pytest.approx(20 * number / 255, abs=1e-5)


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path in paths:
        Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(path)
    return paths


def test_large_images_wait_until_there_is_room(
    tiled: Inspector, photographs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []

    def counted(source: Path, **options: Any) -> np.ndarray:
        decoded.append(Path(source).name)
        return decode(source, **options)

    monkeypatch.setattr(inspector_module, "decode", counted)
    monkeypatch.setattr(inspector_module, "PIXELS_AHEAD", 15_000)  # one image, not two

    for number, _ in enumerate(tiled.stream(photographs, decoders=3)):
        assert decoded == [path.name for path in photographs[: number + 1]]


def test_next_image_is_decoded_while_the_tiles_of_one_are_seen(
    tiled: Inspector, photographs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first tile waits until the second image is decoded; one thread after the other would wait in vain."""
    second = threading.Event()

    def told(source: Path, **options: Any) -> np.ndarray:
        pixels = decode(source, **options)
        if Path(source) == photographs[1]:
            second.set()
        return pixels

    class Waiting:
        def __init__(self, engine: Any) -> None:
            self.engine, self.name, self.precision = engine, engine.name, engine.precision
            self.inputs, self.outputs = engine.inputs, engine.outputs

        def run(self, batch: np.ndarray) -> Any:
            if not second.wait(60):
                raise FlawsmithError("the second image was not decoded meanwhile")
            return self.engine.run(batch)

    monkeypatch.setattr(inspector_module, "decode", told)

    results = list(Inspector(tiled.spec, Waiting(tiled.engine)).stream(photographs[:2], decoders=1))

    assert all(isinstance(result, Inspection) for result in results)


# In a process of its own. Linux counts the largest memory of an address space; `getrusage` would count what the parent
# had before the process began.
MEMORY = """
import json, sys
import numpy as np
from flawsmith.runtime.inspector import Inspector

def held(name):
    return 1024 * int(open("/proc/self/status", encoding="ascii").read().split(name + ":")[1].split()[0])

inspector = Inspector.load(sys.argv[1], threads=1)
inspector.inspect(np.zeros((1200, 1200, 3), np.uint8))
before = held("VmRSS")
inspection = inspector.inspect(sys.argv[2])
print(json.dumps({"size": inspection.map.shape, "growth": held("VmHWM") - before, "verdict": inspection.verdict}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_100_megapixels_are_inspected_within_a_gigabyte(new_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    model, photo = tmp_path / "model.flaw", tmp_path / "large.png"
    new_bundle(tiling=Tiling(size=1024, overlap=64)).save(model)
    image = np.full((10_000, 10_000), 40, np.uint8)
    image[5000:5200, 7000:7200] = 250
    Image.fromarray(image).save(photo, compress_level=1)
    del image

    output = subprocess.run(
        [sys.executable, "-c", MEMORY, str(model), str(photo)], check=True, capture_output=True, text=True
    ).stdout

    measured = json.loads(output)
    assert measured["size"] == [10_000, 10_000]
    assert measured["verdict"] == "reject"
    assert 400e6 < measured["growth"] < 1e9


def _seams(tiling: Tiling, length: int) -> list[int]:
    """The lines behind which a tile begins to count, counts in full, fades, or counts no more."""
    lines: set[int] = set()
    for tile, weights in zip(tiling.tiles((length, 1)), tiling.weights(length), strict=True):
        whole = np.zeros(length, np.float32)
        whole[tile.top : tile.bottom] = weights
        lines |= set(np.flatnonzero(np.diff((whole > 0).astype(int) + (whole == 1))).tolist())
    return sorted(lines)


def _excess_at_seams(inspector: Inspector, image: np.ndarray, tiling: Tiling) -> float:
    """How much more neighbouring pixels of the joined map differ at the seams than in the maps of the tiles there."""
    geometry, size = of_one_tile(inspector.spec.geometry), (image.shape[0], image.shape[1])
    maps: list[np.ndarray] = []

    def infer(batch: np.ndarray) -> tuple[float, np.ndarray]:
        score, small_map = inspector._infer(batch)
        maps.append(small_map)
        return score, small_map

    _, joined = inspect_by_tiles(image, inspector.spec.geometry, tiling, infer)
    worst = 0.0
    for axis in (0, 1):
        steps_of_tiles = np.zeros(np.diff(joined, axis=axis).shape)
        for tile, small_map in zip(tiling.tiles(size), maps, strict=True):
            steps = np.abs(np.diff(geometry.invert(small_map, tile.size), axis=axis))
            place = tile.of(steps_of_tiles)[: steps.shape[0], : steps.shape[1]]
            np.maximum(place, steps, out=place)
        excess = np.abs(np.diff(joined, axis=axis)) - steps_of_tiles
        worst = max(worst, float(excess.take(_seams(tiling, size[axis]), axis=axis).max()))
    return worst


@pytest.mark.real_data
@pytest.mark.parametrize("method", ["padim", "patchcore"])
def test_no_seam_shows_on_even_grey_and_on_a_real_image(
    trained: Callable[[str], Any], real_data: Path, method: str
) -> None:
    inspector = Inspector.load(trained(method).bundle)
    photograph = decode(find_images(real_data / "mvtec_ad" / "screw" / "train" / "good")[0])

    for image in (np.full((700, 900, 3), 128, np.uint8), photograph):
        assert min(image.shape[:2]) > SEAMLESS.size
        assert _excess_at_seams(inspector, image, SEAMLESS) <= inspector.spec.parity["map_allowed"]


def test_hard_edges_of_tiles_would_be_found(trained: Callable[[str], Any]) -> None:
    inspector = Inspector.load(trained("padim").bundle)
    image = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)

    assert _excess_at_seams(inspector, image, Tiling(size=256, overlap=0)) > inspector.spec.parity["map_allowed"]
