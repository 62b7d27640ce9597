"""Zones with limits of their own: one number decides, and one promise holds for all of them together."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage, stats

from flawsmith.runtime import roi as roi_module
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.decision import LARGEST_SCORE, Decision, choose_limits, images_needed, worst_rate
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.inspector import Inspector
from flawsmith.runtime.roi import (
    RegionOfInterest,
    Zone,
    box_of,
    equivalent_blocks,
    highest_below,
    number_zones,
    zone_limits,
)
from flawsmith.runtime.tiles import Tiling


def _box(left: float, top: float, right: float, bottom: float) -> RegionOfInterest:
    return RegionOfInterest(include=[((left, top), (right, top), (right, bottom), (left, bottom))])


SEAL, SKIN = Zone(name="seal", region=_box(0, 0, 0.5, 1)), Zone(name="skin", region=_box(0.5, 0, 1, 0.5))
EVERYTHING = Zone(name="part", region=_box(0, 0, 1, 1))


def _decision(**changes: object) -> Decision:
    return Decision(
        **{"limit": 1.0, "map_limit": 0.5, "stated_false_reject_rate": 0.01, "n_good": 99, "zones": (SEAL, SKIN)}
        | changes
    )


class TestPromise:
    @given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 999), st.integers(2, 6))
    def test_blocks_equal_brute_force(self, n: int, numbers: int, draw: int, values: int) -> None:
        rng = np.random.default_rng(draw)
        levels = rng.integers(values, size=(n, numbers)).astype(float)
        if n < numbers:
            return
        for count in range(numbers, n + 1):
            left, limits = list(range(n)), [np.nan] * numbers
            for block in range(count):
                number = block % numbers
                first = max(left, key=lambda image: levels[image, number])
                limits[number] = levels[first, number]
                left.remove(first)

            assert equivalent_blocks(levels, count).tolist() == limits

    @pytest.mark.parametrize(("n", "alpha", "zones"), [(60, 0.1, 2), (60, 0.05, 5), (200, 0.01, 3), (20, 0.2, 2)])
    @pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
    def test_rates_of_simulated_calibrations_follow_the_beta_law(
        self, n: int, alpha: float, zones: int, shared: float, seed: int
    ) -> None:
        """With a probability all zones have the same level, else levels of their own: the share rejected is known."""
        rng = np.random.default_rng(seed)
        drawn = tuple(SEAL.model_copy(update={"name": str(number)}) for number in range(zones - 1))
        rates, review_rates = [], []
        for _ in range(2000):
            levels = np.where(rng.random((n, 1)) < shared, rng.random((n, 1)), rng.random((n, zones)))
            decision = choose_limits(levels[:, 0], levels, alpha=alpha, review_alpha=2 * alpha, zones=drawn)
            rates.append(1 - _passing(_limits(decision, decision.map_limit), shared))
            assert decision.review_limit is not None
            review_rates.append(1 - _passing(_limits(decision, decision.review_limit), shared))

        rank = round(decision.stated_false_reject_rate * (n + 1))
        assert rank == max(zones, int(alpha * (n + 1) + 1e-9))
        assert stats.kstest(rates, stats.beta(rank, n + 1 - rank).cdf).pvalue > 1e-4
        kept = np.mean(np.array(rates) <= decision.worst_false_reject_rate)
        assert abs(kept - 0.95) < 4 * (0.95 * 0.05 / 2000) ** 0.5
        review_rank = max(rank, int(2 * alpha * (n + 1) + 1e-9))
        assert stats.kstest(review_rates, stats.beta(review_rank, n + 1 - review_rank).cdf).pvalue > 1e-4

    @pytest.mark.parametrize("values", [2, 5, 20])
    def test_tied_levels_reject_no_more_than_promised(self, values: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rates = []
        for _ in range(2000):
            levels = rng.integers(values, size=(60, 3)).astype(float)
            decision = choose_limits(levels[:, 0], levels, alpha=0.1, zones=(SEAL, SKIN))
            rates.append(1 - np.prod((_limits(decision, decision.map_limit) + 1) / values))

        assert np.mean(rates) <= decision.stated_false_reject_rate + 0.005
        kept = np.mean(np.array(rates) <= decision.worst_false_reject_rate)
        assert kept >= 0.95 - 4 * (0.95 * 0.05 / 2000) ** 0.5

    @pytest.mark.parametrize("tolerance", [0.0, 1e-3])
    def test_zone_that_covers_everything_has_the_limit_that_there_is_without_zones(
        self, tolerance: float, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        for n in (1, 20, 200):
            levels = rng.normal(size=n)
            nothing_elsewhere = np.stack([levels, np.full(n, -LARGEST_SCORE)], axis=1)

            plain = choose_limits(levels, levels, map_tolerance=tolerance, minimum_area=2)
            zoned = choose_limits(levels, nothing_elsewhere, map_tolerance=tolerance, zones=(EVERYTHING,))

            assert zoned.zone_limits == {"part": plain.map_limit}
            assert zoned.stated_false_reject_rate == plain.stated_false_reject_rate
            assert zoned.worst_false_reject_rate == plain.worst_false_reject_rate

    @given(st.integers(0, 10**6), st.sampled_from([1e-30, 1e-3, 1.0, 1e6, 1e30]))
    def test_no_image_that_set_a_limit_lies_above_it(self, draw: int, size: float) -> None:
        rng = np.random.default_rng(draw)
        levels = (rng.normal(size=(5, 3)) * [1.0, size, 1.0]).clip(-9e29, 9e29).astype(np.float32).astype(float)

        decision = choose_limits(levels[:, 0], levels, zones=(SEAL, SKIN))

        above = decision.level_of(levels) > decision.map_limit
        cut = equivalent_blocks(levels, 3)
        assert not above[(levels == cut).any(axis=1) & (levels <= cut).all(axis=1)].any()
        assert above.sum() <= 2

    def test_more_zones_than_the_rate_leaves_images_are_said(self) -> None:
        levels = np.random.default_rng(0).random((99, 3))

        decision = choose_limits(levels[:, 0], levels, zones=(SEAL, SKIN))

        assert decision.stated_false_reject_rate == pytest.approx(0.03)
        assert "The limits of 3 zones together reject about 30 of 1,000 good parts" in decision.describe()
        assert decision.describe().endswith("10 of 1,000 takes 299 such images, 628 to be 95 % sure.")
        assert images_needed(0.01, rank=3) == (299, 628)
        assert worst_rate(3, 628) <= 0.01 < worst_rate(3, 627)

    def test_limits_of_zones_are_as_far_apart_as_their_good_levels(self) -> None:
        rng = np.random.default_rng(0)
        levels = rng.random((399, 3)) * [0.1, 10.0, 1.0]

        limits = choose_limits(levels[:, 0], levels, zones=(SEAL, SKIN)).zone_limits

        assert limits["seal"] < 0.1 < 0.9 < limits["elsewhere"] < 1.0 < 9.0 < limits["skin"]

    def test_unusable_levels_are_refused(self) -> None:
        levels = np.random.default_rng(0).random((9, 3))
        barred = levels.copy()
        barred[4, 1] = -LARGEST_SCORE
        for broken, words in (
            (levels[:2], "3 zones, elsewhere included, take a good image each, and there are 2"),
            (levels[:, :2], r"2 zones take levels of the shape \(images, 3\), not \(9, 2\)"),
            (levels[:, 0], r"not \(9,\)"),
            (barred, "zone skin: the smallest area is larger than what is inspected of the zone"),
            (np.full((9, 3), np.nan), "not a finite number"),
        ):
            with pytest.raises(FlawsmithError, match=words):
                choose_limits(levels[: len(broken), 0], broken, zones=(SEAL, SKIN))


def _limits(decision: Decision, map_limit: float) -> np.ndarray:
    return np.array([map_limit + zone.offset for zone in decision.zones] + [map_limit])


def _passing(limits: np.ndarray, shared: float) -> float:
    limits = np.clip(limits, 0, 1)
    return shared * limits.min() + (1 - shared) * np.prod(limits)


class TestDecision:
    @given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.sampled_from([1.0, 1e-20, 1e20]))
    def test_verdict_and_level_equal_brute_force(self, draw: int, cut: bool, interest: bool, size: float) -> None:
        rng = np.random.default_rng(draw)
        zones = tuple(
            Zone(
                name=str(number),
                region=_box(*np.sort(rng.random(2)), *np.sort(rng.random(2)))
                if rng.random() < 0.5
                else RegionOfInterest(include=[rng.random((3, 2)).tolist()], exclude=[rng.random((4, 2)).tolist()]),
                minimum_area=None if rng.random() < 0.5 else int(rng.integers(1, 6)),
                offset=float(rng.normal() * size),
            )
            for number in range(rng.integers(1, 4))
        )
        region = _box(0.1, 0.1, 0.9, 0.8) if interest else None
        limits = {"map_limit": 0.6 * size, "review_limit": 0.4 * size, "minimum_area": int(rng.integers(1, 4))}
        decision = _decision(zones=zones, region_of_interest=region, **limits)
        anomaly_map = (rng.random((14, 17)) * size).astype(np.float32)
        not_inspected = rng.random((14, 17)) < 0.2 if cut else None
        inside = np.ones((14, 17), bool) if region is None else region.to_mask((14, 17))
        inside = inside if not_inspected is None else inside & ~not_inspected
        owner = np.full((14, 17), len(zones))
        for number in reversed(range(len(zones))):
            owner[zones[number].region.to_mask((14, 17))] = number

        def largest(limit: float) -> list[tuple[int, str]]:
            spots = []
            for number in range(len(zones) + 1):
                offset = zones[number].offset if number < len(zones) else 0.0
                least = (number < len(zones) and zones[number].minimum_area) or decision.minimum_area
                above = (anomaly_map.astype(float) - offset > limit) & (owner == number) & inside
                labels, _ = ndimage.label(above, np.ones((3, 3)))
                name = zones[number].name if number < len(zones) else "elsewhere"
                spots += [(int(area), name) for area in np.bincount(labels.ravel())[1:] if area >= least]
            return sorted(spots)

        verdict, regions = decision.decide(0.0, anomaly_map, not_inspected)

        spots = largest(0.6 * size)
        shown = spots or largest(0.4 * size)
        assert sorted((region.spot, region.zone) for region in regions) == shown
        assert verdict == ("reject" if spots else "review" if largest(0.4 * size) else "pass")
        assert decision.verdict_of(decision.level(anomaly_map, not_inspected)) == verdict
        for region in regions:
            x, y = region.peak_position
            assert region.peak == anomaly_map[y, x]
            assert region.box[0] <= x < region.box[2] and region.box[1] <= y < region.box[3]

    @given(st.floats(-1e30, 1e30), st.floats(-4e30, 4e30), st.integers(-3, 3))
    def test_limit_of_a_zone_is_exact_to_the_last_digit(self, limit: float, offset: float, steps: int) -> None:
        highest = highest_below(limit, offset)

        assert highest - offset <= limit
        assert np.nextafter(highest, np.inf) - offset > limit
        value = float(np.float32(limit + offset))
        for _ in range(abs(steps)):
            value = float(np.nextafter(np.float32(value), np.float32(np.sign(steps) * np.inf)))
        assert (value > highest) == (value - offset > limit)

    def test_first_zone_has_a_pixel_and_what_is_in_none_is_elsewhere(self) -> None:
        first, second = _box(0, 0, 0.5, 0.5), _box(0, 0, 1, 0.5)

        numbers = number_zones((first, second), _box(0, 0, 1, 0.75), (8, 8))

        np.testing.assert_array_equal(np.unique(numbers[:4, :4]), [0])
        np.testing.assert_array_equal(np.unique(numbers[:4, 5:]), [1])
        np.testing.assert_array_equal(np.unique(numbers[5:6]), [2])
        np.testing.assert_array_equal(np.unique(numbers[7:]), [255])

    @given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40))
    def test_zones_are_numbered_as_their_masks_lie_over_each_other(self, draw: int, height: int, width: int) -> None:
        rng = np.random.default_rng(draw)

        def region() -> RegionOfInterest:
            include, exclude = (
                rng.random((rng.integers(3), 4, 2)).tolist(),
                rng.random((rng.integers(3), 3, 2)).tolist(),
            )
            has_mask = rng.random() < 0.5 or not (include or exclude)
            mask = RegionOfInterest.from_mask(rng.random((5, 7)) < 0.8).mask if has_mask else None
            return RegionOfInterest(include=include, exclude=exclude, mask=mask)

        zones = tuple(region() for _ in range(rng.integers(1, 5)))
        interest = region() if rng.random() < 0.5 else None
        expected = np.full((height, width), len(zones))
        for number in reversed(range(len(zones))):
            expected[zones[number].to_mask((height, width))] = number
        if interest is not None:
            expected[~interest.to_mask((height, width))] = 255

        np.testing.assert_array_equal(number_zones(zones, interest, (height, width)), expected)

    def test_drawing_many_zones_takes_as_many_pixels_as_they_have(self, monkeypatch: pytest.MonkeyPatch) -> None:
        size, edges, pixels = (500, 700), np.linspace(0, 1, 11), []
        draw = roi_module._draw

        def counted(*arguments: Any, **options: Any) -> np.ndarray:
            mask = draw(*arguments, **options)
            pixels.append(mask.size)
            return mask

        monkeypatch.setattr(roi_module, "_draw", counted)
        number_zones.cache_clear()
        corners = [(edges[x], edges[y], edges[x + 1], edges[y + 1]) for x in range(10) for y in range(10)]
        numbers = number_zones(tuple(_box(*box) for box in corners), None, size)

        assert np.unique(numbers).tolist() == list(range(100))
        assert sum(pixels) < 1.2 * size[0] * size[1]

    @given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40))
    def test_box_holds_all_of_a_region(self, draw: int, height: int, width: int) -> None:
        rng = np.random.default_rng(draw)
        region = RegionOfInterest(include=rng.random((2, 3, 2)).tolist())

        mask = region.to_mask((height, width)).copy()

        mask[box_of(region, (height, width))] = False
        assert not mask.any()

    def test_spots_are_judged_where_they_lie(self) -> None:
        decision = _decision(zones=(SEAL.model_copy(update={"offset": -0.3}), SKIN.model_copy(update={"offset": 0.3})))
        anomaly_map = np.zeros((20, 40), np.float32)
        anomaly_map[3:5, 30:33] = 0.7  # on the skin, below its 0.8
        assert decision.decide(0.0, anomaly_map)[0] == "pass"
        anomaly_map[15:17, 30:33] = 0.6  # elsewhere, above its 0.5
        anomaly_map[15:17, 3:5] = 0.4  # on the seal, above its 0.2

        verdict, regions = decision.decide(0.0, anomaly_map)

        assert verdict == "reject"
        assert [(region.zone, region.box) for region in regions] == [
            ("seal", (3, 15, 5, 17)),  # furthest above its limit
            ("elsewhere", (30, 15, 33, 17)),
        ]
        assert decision.level(anomaly_map) == pytest.approx(0.7)

    def test_zone_may_tolerate_larger_spots_than_the_rest(self) -> None:
        decision = _decision(zones=(SKIN.model_copy(update={"minimum_area": 7}),), minimum_area=2)
        anomaly_map = np.zeros((20, 40), np.float32)
        anomaly_map[3:5, 30:33] = 0.9

        assert decision.decide(0.0, anomaly_map)[0] == "pass"
        assert decision.decide(0.0, anomaly_map[:, ::-1])[0] == "reject"

    def test_memory_does_not_grow_with_the_number_of_zones(self) -> None:
        anomaly_map = np.random.default_rng(0).random((500, 500)).astype(np.float32)
        anomaly_map[::7, ::11] = 2.0
        peaks = []
        for count in (1, 20):
            edges = np.linspace(0, 1, count + 1)
            zones = tuple(
                Zone(name=str(number), region=_box(0, edges[number], 1, edges[number + 1])) for number in range(count)
            )
            decision = _decision(zones=zones, map_limit=1.5)
            decision.zone_numbers(anomaly_map.shape)
            tracemalloc.start()
            decision.decide(0.0, anomaly_map)
            peaks.append(tracemalloc.get_traced_memory()[1] / anomaly_map.size)
            tracemalloc.stop()

        assert peaks[1] < peaks[0] + 1


class TestStorage:
    @pytest.mark.parametrize(
        "changes",
        [
            {"zones": (SEAL, SEAL)},
            {"zones": [{"name": "", "region": SEAL.region}]},
            {"zones": [{"name": "Elsewhere", "region": SEAL.region}]},
            {"zones": [{"name": "a\nb", "region": SEAL.region}]},
            {"zones": [{"name": " seal", "region": SEAL.region}]},
            {"zones": [{"name": "a" * 61, "region": SEAL.region}]},
            {"zones": [{"name": "seal", "region": SEAL.region, "minimum_area": 0}]},
            {"zones": [{"name": "seal", "region": SEAL.region, "offset": float("nan")}]},
            {"zones": [{"name": "seal", "region": SEAL.region, "limit": 0.2}]},
            {"zones": [{"name": "seal"}]},
            {"zones": [{"name": str(number), "region": SEAL.region} for number in range(101)]},
            {"zones": [{"name": str(n), "region": {"include": [[(0, 0), (1, 0)] * 2501]}} for n in range(2)]},
            {"review_limit": 0.7},
        ],
    )
    def test_zones_that_make_no_sense_are_refused(self, changes: dict) -> None:
        with pytest.raises(ValidationError):
            _decision(**changes)

    def test_limits_without_zones_are_written_as_before_there_were_any(self) -> None:
        plain = _decision(zones=())

        assert "zones" not in plain.model_dump(mode="json") and "elsewhere" not in plain.model_dump()
        assert plain.identity == "ae932720671f"
        assert _decision().identity != plain.identity
        assert Decision.model_validate_json(_decision().model_dump_json()) == _decision()

    def test_regions_name_their_zone_where_there_are_zones_alone(self) -> None:
        anomaly_map = np.full((4, 4), 0.9, np.float32)

        plain, zoned = (_decision(zones=zones).decide(9.0, anomaly_map)[1][0] for zones in ((), (EVERYTHING,)))

        assert "zone" not in plain.model_dump(mode="json")
        assert zoned.model_dump(mode="json")["zone"] == "part"

    def test_model_file_keeps_zones_and_an_older_program_refuses_them(
        self, new_bundle: Callable[..., Bundle], tmp_path: Path
    ) -> None:
        path = tmp_path / "model.flaw"
        bundle = new_bundle(decision=_decision())
        bundle.save(path)

        assert Bundle.load(path).spec == bundle.spec
        fields = {name: value for name, value in Decision.model_fields.items() if name not in ("zones", "elsewhere")}
        content = bundle.spec.decision.model_dump(mode="json")
        assert set(content) - set(fields) == {"zones"}  # which programs without that field forbid


def test_zones_hold_in_tiles_and_pictures(new_bundle: Callable[..., Bundle]) -> None:
    strict, lax = SEAL.model_copy(update={"offset": -0.3}), SKIN.model_copy(update={"offset": 0.4})
    geometry = Geometry(size=(32, 48), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    tiling, decision = Tiling(size=48, overlap=8), _decision(zones=(strict, lax))
    spec_of = {"geometry": geometry, "decision": decision}
    image = np.zeros((100, 200, 3), np.uint8)
    image[10:20, 150:170] = 200  # on the skin: 0.78 of 0.9
    image[40:50, 30:40] = 100  # on the seal: 0.39 of 0.2

    for bundle in (new_bundle(**spec_of, tiling=tiling), new_bundle(**spec_of)):
        inspection = Inspector.load(bundle).inspect(image)

        assert inspection.verdict == "reject"
        assert [region.zone for region in inspection.regions] == ["seal"]
        x0, y0, x1, y1 = inspection.regions[0].box
        assert (abs(np.array([x0 - 30, y0 - 40, x1 - 40, y1 - 50])) <= 4).all()
        assert inspection.to_dict()["zone_limits"] == pytest.approx({"seal": 0.2, "skin": 0.9, "elsewhere": 0.5})
        picture = np.asarray(inspection.overlay(image)).astype(int)
        assert abs(picture[15, 160] - image[15, 160]).max() < abs(picture[45, 35] - image[45, 35]).max()
        outline = (picture == (0, 229, 255)).all(axis=2)
        assert outline[:, :100].any() and not outline[:, 100:].any()


def test_limits_of_zones_without_anything_elsewhere_rest_on_the_zones_alone() -> None:
    levels = np.stack([np.arange(9.0), np.full(9, -LARGEST_SCORE)], axis=1)

    assert zone_limits(levels, ("part",), 1, -LARGEST_SCORE) == (8.0, (0.0,), 1, False)
