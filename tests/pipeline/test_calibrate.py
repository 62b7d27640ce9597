"""New limits without training: the same as those of training, under every setting, and never from images that say
nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawsmith.cli.main import main
from flawsmith.data.samples import Sample
from flawsmith.pipeline.calibrate import calibrate
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.decision import choose_limits
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector

SIZE = (32, 48)
"""Of the tiny model's input: images of this size are not resized, so that scores are exact."""


def draw(path: Path, brightness: int, spots: tuple[tuple[int, int, int, int], ...] = (), spot: int = 255) -> Path:
    """An even picture with brighter rectangles (left, top, width, height)."""
    pixels = np.full((*SIZE, 3), brightness, np.uint8)
    for left, top, width, height in spots:
        pixels[top : top + height, left : left + width] = spot
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Forty pictures whose scores are 10/255 to 88/255."""
    for number in range(40):
        draw(tmp_path / "good" / f"{number:03}.png", 10 + 2 * number)
    return tmp_path / "good"


@pytest.fixture
def model(tiny: ModuleType, tmp_path: Path) -> Path:
    """Score and map are the brightness: over 0.4 a review, over 0.6 a reject."""
    path = tmp_path / "model.flaw"
    tiny.make_bundle(parity={"score_allowed": 1e-4, "map_allowed": 1e-3}).save(path)
    return path


def test_limit_is_the_rank_of_the_good_scores_and_the_tolerance(model: Path, good: Path) -> None:
    after = calibrate(model, good, rate="3/41", group="none").after

    assert after.limit == pytest.approx(84 / 255 + 1e-4)
    assert after.map_limit == pytest.approx(84 / 255 + 1e-3)
    assert after.stated_false_reject_rate == pytest.approx(3 / 41)
    assert (after.n_good, after.held_out) == (40, True)


def test_settings_that_are_not_given_stay(model: Path, good: Path) -> None:
    first = calibrate(model, good, rate=0.1, min_area="0.2mm2", scale="0.05mm", review_rate=0.2, group="none").bundle

    second = calibrate(first, good, group="none").after

    assert second.minimum_area == 80
    assert (second.pixel_size, second.target_false_reject_rate, second.target_review_rate) == (0.05, 0.1, 0.2)
    assert second == first.spec.decision


def test_command_and_python_set_the_same_limits_byte_for_byte(model: Path, good: Path, tmp_path: Path) -> None:
    assert main(["calibrate", str(model), str(good), "--rate", "50/1000", "--out", str(tmp_path / "a.flaw")]) == 0
    calibrate(model, good, rate=0.05, out=tmp_path / "b.flaw")
    by_hand = Inspector.load(model)
    inspections = by_hand.inspect_many(sorted(good.iterdir()))
    scores = [i.score for i in inspections]
    levels = [by_hand.spec.decision.level(i.map) for i in inspections]

    assert (tmp_path / "a.flaw").read_bytes() == (tmp_path / "b.flaw").read_bytes()
    decision = choose_limits(scores, levels, alpha=0.05, tolerance=1e-4, map_tolerance=1e-3)
    made = Bundle.load(tmp_path / "a.flaw").spec.decision
    assert (made.limit, made.map_limit) == (decision.limit, decision.map_limit)


def test_former_limits_stay_and_come_back_with_their_scores(model: Path, good: Path, tmp_path: Path) -> None:
    first = calibrate(model, good, rate=0.1, group="none")
    second = calibrate(first.bundle, good, rate=0.3, group="none", out=tmp_path / "second.flaw")

    back = calibrate(tmp_path / "second.flaw", use=first.after.identity, out=tmp_path / "back.flaw")

    loaded = Bundle.load(tmp_path / "back.flaw")
    assert loaded.spec.decision == first.after == back.after
    assert {d.identity for d in loaded.spec.earlier_decisions} == {first.before.identity, second.after.identity}
    with pytest.raises(FlawsmithError, match="--group folder would change nothing"):
        calibrate(tmp_path / "second.flaw", use=first.after.identity, group="folder")
    np.testing.assert_array_equal(loaded.calibration["good"], first.bundle.calibration["good"])
    assert loaded.calibration["forged"].size
    assert Inspector.load(loaded).inspect(np.full((*SIZE, 3), 86, np.uint8)).verdict == "reject"


def test_other_rates_need_no_images(model: Path, good: Path, tmp_path: Path) -> None:
    first = calibrate(model, good, rate=0.1, group="name:(.)[.]png", out=tmp_path / "first.flaw")

    by_scores = calibrate(tmp_path / "first.flaw", rate=0.3, review_rate=0.4)

    by_images = calibrate(first.bundle, good, rate=0.3, review_rate=0.4, group="name:(.)[.]png")
    assert by_scores.after == by_images.after
    assert by_scores.bundle.to_bytes() == by_images.bundle.to_bytes()
    assert by_scores.after.groups is not None and by_scores.after.groups.count == 10


def test_inspector_takes_other_limits_without_loading_anew(model: Path, good: Path) -> None:
    inspector, image = Inspector.load(model), np.full((*SIZE, 3), 120, np.uint8)
    stricter = inspector.with_limits(calibrate(model, good, rate=0.1).after)

    assert (inspector.inspect(image).verdict, stricter.inspect(image).verdict) == ("review", "reject")
    assert stricter.inspect(image).decision == stricter.spec.decision
    assert stricter.engine is inspector.engine


def test_region_of_interest_ignores_what_lies_outside(model: Path, tmp_path: Path) -> None:
    for number in range(30):  # a label that is bright in every good part
        draw(tmp_path / "good" / f"{number}.png", 10 + number, ((30, 4, 10, 10),))
    roi = tmp_path / "roi.json"
    roi.write_text(json.dumps({"width": 48, "height": 32, "exclude": [[[29, 3], [41, 3], [41, 15], [29, 15]]]}))

    result = calibrate(model, tmp_path / "good", rate=0.1, roi=roi, group="none", out=tmp_path / "new.flaw")

    inspector = Inspector.load(tmp_path / "new.flaw")
    label = Image.open(draw(tmp_path / "label.png", 20, ((30, 4, 10, 10),)))
    flaw = Image.open(draw(tmp_path / "flaw.png", 20, ((5, 5, 3, 3),)))
    assert result.after.by_regions
    assert inspector.inspect(np.asarray(label)).verdict == "pass"
    assert inspector.inspect(np.asarray(flaw)).verdict == "reject"


def test_mask_image_and_polygons_of_the_same_area_are_the_same_region(model: Path, good: Path, tmp_path: Path) -> None:
    marked = np.zeros(SIZE, np.uint8)
    marked[:, :24] = 255
    Image.fromarray(marked).save(tmp_path / "mask.png")
    corners = [[0, 0], [24, 0], [24, 32], [0, 32]]
    (tmp_path / "roi.json").write_text(json.dumps({"width": 48, "height": 32, "include": [corners]}))

    regions = [
        calibrate(model, good, roi=tmp_path / name).after.region_of_interest for name in ("mask.png", "roi.json")
    ]

    masks = [region.to_mask((64, 96)) for region in regions if region is not None]
    np.testing.assert_array_equal(*masks)
    assert masks[0][:, :48].all() and not masks[0][:, 48:].any()


def test_small_spots_pass_and_limits_are_those_of_the_setting(model: Path, tmp_path: Path) -> None:
    for number in range(30):  # dust of 2 x 2 pixels on every good part
        draw(tmp_path / "good" / f"{number}.png", 10 + number, ((5 + number, 5, 2, 2),))

    after = calibrate(model, tmp_path / "good", rate=0.1, min_area=9, group="none").after

    assert after.map_limit == pytest.approx(37 / 255 + 1e-3)
    inspector = Inspector.load(model).with_limits(after)
    dust, scratch = (draw(tmp_path / name, 20, spots) for name, spots in
                     (("d.png", ((9, 9, 2, 2),)), ("s.png", ((9, 9, 9, 1),))))  # fmt: skip
    assert [inspector.inspect(image).verdict for image in (dust, scratch)] == ["pass", "reject"]


def test_card_says_what_decides(model: Path, good: Path) -> None:
    bundle = calibrate(model, good, rate=0.1, review_budget=100, min_area="6mm2", scale="1mm", group="none").bundle

    assert "review limit" not in (Bundle.load(model).card or "")
    assert f"- review limit: {bundle.spec.decision.review_limit:.6g}\n" in bundle.card
    assert "- the map decides: spots of at least 6 pixels (6 mm²)\n" in bundle.card


def test_review_budget_is_beside_the_rejected(model: Path, good: Path) -> None:
    after = calibrate(model, good, rate="2/41", review_budget=200, group="none").after

    assert after.review_limit == pytest.approx((10 + 2 * 30) / 255 + 1e-4)  # ceil(41 (1 - 2/41 - 0.2)) = 31st smallest
    assert after.target_review_rate == pytest.approx(2 / 41 + 0.2)
    assert "About 195 more go to review." in after.describe()  # 10 of 41 lie above it, 2 of 41 above the limit


def test_repeated_images_set_a_band_and_each_part_counts_once(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part in range(30):
        for shot in range(3):
            brightness, mark = 40 + part + int(rng.integers(-3, 4)), (part, shot, 1, 1)  # no two files are copies
            draw(tmp_path / "good" / f"part{part:02}" / f"{shot}.png", brightness, (mark,), spot=0)

    after = calibrate(model, tmp_path / "good", rate=0.1, repeats="folder").after

    assert after.n_good == 30
    assert " go to review." in after.describe()
    assert after.repeat_deviation == pytest.approx(2 / 255, rel=0.2)  # of seven equally likely values
    middle = (after.limit + after.review_limit) / 2
    assert after.limit - after.review_limit == pytest.approx(4 * after.repeat_deviation)
    assert 60 / 255 < middle < 75 / 255


def test_known_flaws_are_counted_and_move_nothing(model: Path, good: Path, tmp_path: Path) -> None:
    for number, level in enumerate((50, 86, 120, 200)):
        draw(tmp_path / "flaws" / f"{number}.bmp", level)

    plain = calibrate(model, good, rate=0.05, group="none")
    counted = calibrate(model, good, rate=0.05, group="none", flawed=tmp_path / "flaws")

    assert counted.after == plain.after
    assert counted.count("flawed", "after", "reject") == 3 - 1  # 86 lies at the limit, 86/255 being its 39th smallest
    assert counted.caught_at_least == pytest.approx(0.0976, abs=1e-3)  # Clopper-Pearson, 2 of 4
    assert not counted.after.chosen_on_flawed


def test_caveats_of_trimmed_images_outlive_a_new_rate(model: Path, good: Path) -> None:
    bundle = calibrate(model, good, rate=0.1, group="none").bundle
    trimmed = bundle.spec.decision.model_copy(update={"trimmed": 4})
    spec = bundle.spec.model_copy(update={"decision": trimmed})

    after = calibrate(Bundle(spec, bundle.model, bundle.calibration), rate=0.2).after

    assert after.trimmed == 4
    assert "40 good images not learned from; 4 higher left out as flawed" in after.describe()


def test_band_of_repeats_outlives_a_new_rate(model: Path, tmp_path: Path) -> None:
    for part in range(20):
        for shot in range(2):
            draw(
                tmp_path / "good" / f"part{part:02}" / f"{shot}.png",
                40 + part + 2 * shot,
                ((part, shot, 1, 1),),
                spot=0,
            )
    first = calibrate(model, tmp_path / "good", rate=0.1, repeats="folder")

    after = calibrate(first.bundle, rate=0.3).after

    assert after.groups is None
    assert after.repeat_deviation == first.after.repeat_deviation
    assert after.limit - after.review_limit == pytest.approx(first.after.limit - first.after.review_limit)


def test_former_limits_come_back_with_their_engine(model: Path, good: Path) -> None:
    first = calibrate(model, good, rate=0.1, group="none")
    second = calibrate(first.bundle, good, rate=0.1, group="none", engine="openvino")

    back = calibrate(second.bundle, use=first.after.identity)

    assert (second.bundle.spec.engine, back.bundle.spec.engine) == ("openvino", "onnxruntime")


def test_review_rate_can_be_dropped(model: Path, good: Path) -> None:
    first = calibrate(model, good, rate=0.1, review_rate=0.2, group="none").bundle

    with pytest.raises(FlawsmithError, match="the model's review rate"):
        calibrate(first, good, rate=0.3, group="none")
    assert calibrate(first, good, rate=0.3, review_rate="none", group="none").after.review_limit is None


def test_model_that_does_not_say_what_it_learned_from_is_noted(model: Path, good: Path) -> None:
    assert "does not say what it learned from" in calibrate(model, good, group="none").notes[-1]


def test_all_flaws_can_be_asked_for(model: Path, good: Path, tmp_path: Path) -> None:
    for number, level in enumerate((5, 81)):
        draw(tmp_path / "flaws" / f"{number}.png", level)

    result = calibrate(model, good, group="none", flawed=tmp_path / "flaws", catch="100%")

    assert result.count("good", "after", "reject") == 40
    assert result.after.worst_false_reject_rate == 1
    assert result.caught_at_least is None and result.after.groups is None


def test_flaws_choose_the_limit_when_asked_and_it_says_so(model: Path, good: Path, tmp_path: Path) -> None:
    for number, level in enumerate((51, 81, 120, 200)):
        draw(tmp_path / "flaws" / f"{number}.png", level)

    result = calibrate(model, good, group="none", flawed=tmp_path / "flaws", catch="75%")

    assert result.count("flawed", "after", "reject") == 3
    assert result.after.limit == pytest.approx(80.5 / 255)
    assert result.after.chosen_on_flawed
    assert "CHOSEN ON FLAWED" in result.after.describe()
    assert result.after.stated_false_reject_rate == pytest.approx(5 / 41)  # four good images lie above it


def test_groups_outlive_limits_that_flaws_have_chosen(model: Path, good: Path, tmp_path: Path) -> None:
    draw(tmp_path / "flaws" / "0.png", 200)
    chosen = calibrate(model, good, group=r"name:(\d)\.png", flawed=tmp_path / "flaws", catch="100%")

    after = calibrate(chosen.bundle, rate="5%").after

    assert chosen.after.groups is not None
    assert chosen.after.groups.mean is None, "how often groups were rejected is known of the former limit alone"
    assert chosen.after.groups.describe() == ""
    assert "40 good images of 10 groups (file name)." in after.describe()
    assert "left out in turn" in after.groups.describe()


def test_images_the_model_has_seen_are_refused(model: Path, good: Path, tmp_path: Path) -> None:
    from flawsmith.pipeline.steps import hash_table

    sample = Sample(good / "003.png", "train", "good", "good", (), "bolt", "parts")
    for name, words in (("learned", "the model learned from it"), ("test", "stands in the model's test set")):
        bundle = Bundle.load(model)
        known = {**bundle.calibration, f"{name}_sha256": hash_table([sample])}
        seen = Bundle(bundle.spec, bundle.model, known)

        with pytest.raises(FlawsmithError, match=f"003.png: .*{words}"):
            calibrate(seen, good)
        shutil.move(good / "003.png", tmp_path / "aside.png")
        calibrate(seen, good)
        shutil.move(tmp_path / "aside.png", good / "003.png")


def test_copies_of_an_image_count_once(model: Path, good: Path) -> None:
    for number in range(12):
        shutil.copy(good / "039.png", good / f"copy{number}.png")

    assert calibrate(model, good).after.n_good == 40


def test_table_names_the_images_whose_verdict_changes(model: Path, good: Path, capsys: pytest.CaptureFixture) -> None:
    draw(good / "bright.png", 140)

    assert main(["calibrate", str(model), str(good), "--rate", "0.4"]) == 0

    out, err = capsys.readouterr()
    assert "review -> reject: bright.png (good, score 0.549)" in out
    assert "pass -> reject: 039.png" in out
    assert "of 1,000 good parts" in err
    assert (model.parent / "model-calibrated.flaw").is_file()


def test_json_is_one_object(model: Path, good: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["calibrate", str(model), str(good), "--group", "none", "--json", "--quiet"]) == 0

    result = json.loads(capsys.readouterr().out)
    assert result["after"]["worst_false_reject_rate"] == pytest.approx(1 - 0.05 ** (1 / 40))
    assert len(result["images"]) == 40


SEAL = {"name": "seal", "include": [[[0, 0], [24, 0], [24, 32], [0, 32]]]}


def zones(path: Path, *drawn: dict[str, Any], **polygons: Any) -> Path:
    path.write_text(json.dumps({"width": 48, "height": 32, "zones": drawn, **polygons}), encoding="utf-8")
    return path


@pytest.fixture
def half_rough(tmp_path: Path) -> Path:
    """Forty pictures whose left half is 10 to 49 bright, and whose right half 200 to 122."""
    for number in range(40):
        draw(tmp_path / "rough" / f"{number:03}.png", 10 + number, ((26, 0, 22, 32),), 200 - 2 * number)
    return tmp_path / "rough"


def test_each_zone_has_the_limit_of_its_own_good_levels(model: Path, half_rough: Path, tmp_path: Path) -> None:
    roi = zones(tmp_path / "zones.json", SEAL)

    result = calibrate(model, half_rough, rate="2/41", roi=roi, group="none", out=tmp_path / "new.flaw")

    limits = result.after.zone_limits
    assert limits == pytest.approx({"seal": 49 / 255 + 1e-3, "elsewhere": 200 / 255 + 1e-3})
    assert result.after.stated_false_reject_rate == pytest.approx(2 / 41)
    assert result.count("good", "after", "reject") == 0
    inspector = Inspector.load(tmp_path / "new.flaw")
    spots = {"on the seal": (5, 5, 3, 3), "on the skin": (35, 5, 3, 3)}
    pictures = {n: draw(tmp_path / f"{n}.png", 20, ((26, 0, 22, 32), spot), 190) for n, spot in spots.items()}
    assert {n: inspector.inspect(picture).verdict for n, picture in pictures.items()} == {
        "on the seal": "reject",
        "on the skin": "pass",
    }
    (region,) = inspector.inspect(pictures["on the seal"]).to_dict()["regions"]
    assert (region["zone"], region["box"]) == ("seal", [5, 5, 8, 8])


def test_level_of_an_image_decides_in_every_zone(model: Path, half_rough: Path, tmp_path: Path) -> None:
    for number in range(30):
        draw(half_rough / f"new{number}.png", 30 + number, ((26, 0, 22, 32),), 140 + 3 * number)

    result = calibrate(model, half_rough, rate=0.3, review_rate=0.5, roi=zones(tmp_path / "z.json", SEAL), group="none")

    inspector = Inspector.load(result.bundle)
    for image in result.images:
        inspection = inspector.inspect(half_rough / image.image)
        assert inspection.verdict == image.after == result.after.verdict_of(image.level)
        assert image.level == result.after.level(inspection.map)
    rank = round(result.after.stated_false_reject_rate * 71)
    assert result.count("good", "after", "reject") < rank == 21
    assert result.count("good", "after", "review") > 0


def test_another_rate_of_zones_needs_no_images(model: Path, half_rough: Path, tmp_path: Path) -> None:
    roi = zones(tmp_path / "zones.json", SEAL | {"min_area": "0.01mm2"})
    options = {"group": "name:(.)[.]png"}
    calibrate(model, half_rough, rate=0.1, roi=roi, scale="0.05mm", out=tmp_path / "first.flaw", **options)

    by_levels = calibrate(tmp_path / "first.flaw", rate=0.3, review_rate=0.4)
    by_images = calibrate(tmp_path / "first.flaw", half_rough, rate=0.3, review_rate=0.4, **options)

    assert by_levels.after == by_images.after
    assert by_levels.bundle.to_bytes() == by_images.bundle.to_bytes()
    assert by_levels.after.zones[0].minimum_area == 4
    assert by_levels.after.groups is not None


def test_zones_stay_until_another_drawing_takes_their_place(model: Path, half_rough: Path, tmp_path: Path) -> None:
    first = calibrate(model, half_rough, rate=0.1, roi=zones(tmp_path / "z.json", SEAL), group="none").bundle

    second = calibrate(first, half_rough, rate=0.1, min_area=3, group="none").after
    third = calibrate(first, half_rough, rate=0.1, roi="none", group="none").after

    assert [zone.region for zone in second.zones] == [zone.region for zone in first.spec.decision.zones]
    assert third.zones == () and not third.by_regions
    assert calibrate(first, use=first.spec.earlier_decisions[0].identity).after.zones == ()


def test_zones_that_leave_nothing_elsewhere_cost_no_image_for_it(model: Path, half_rough: Path, tmp_path: Path) -> None:
    rest = {"name": "skin", "include": [[[0, 0], [48, 0], [48, 32], [0, 32]]]}

    after = calibrate(model, half_rough, rate=0.01, roi=zones(tmp_path / "z.json", SEAL, rest), group="none").after

    assert list(after.zone_limits) == ["seal", "skin"]
    assert after.stated_false_reject_rate == pytest.approx(2 / 41)
    assert "10 of 1,000 takes 199 such images" in after.describe()


def test_known_flaws_move_the_limits_of_all_zones_alike(model: Path, half_rough: Path, tmp_path: Path) -> None:
    roi = zones(tmp_path / "zones.json", SEAL)
    for number in range(4):
        draw(tmp_path / "flaws" / f"{number}.png", 60 + number, ((26, 0, 22, 32),), 100)
    plain = calibrate(model, half_rough, roi=roi, group="none").after

    caught = calibrate(model, half_rough, roi=roi, group="none", flawed=tmp_path / "flaws", catch="100%")

    assert caught.count("flawed", "after", "reject") == 4
    assert caught.after.zones == plain.zones and caught.after.map_limit > plain.map_limit
    # Higher than what the good images set, whose two images are not given back for that.
    assert caught.after.stated_false_reject_rate == plain.stated_false_reject_rate == pytest.approx(2 / 41)


def test_repeats_set_a_band_around_the_limits_of_zones(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part in range(20):
        for shot in range(3):
            skin = ((26, 0, 22, 32),)
            draw(
                tmp_path / "good" / f"part{part:02}" / f"{shot}.png",
                40 + part + int(rng.integers(-3, 4)),
                skin,
                150 + part,
            )

    after = calibrate(model, tmp_path / "good", repeats="folder", roi=zones(tmp_path / "z.json", SEAL)).after

    assert after.n_good == 20
    assert after.map_limit - after.review_limit == pytest.approx(4 * after.repeat_deviation)


def test_command_says_the_limit_of_each_zone(
    model: Path, half_rough: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    roi = zones(tmp_path / "zones.json", SEAL | {"min_area": 5})
    out = tmp_path / "new.flaw"

    assert main(["calibrate", str(model), str(half_rough), "--roi", str(roi), "--out", str(out)]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert main(["info", str(out)]) == 0
    info = " ".join(capsys.readouterr().out.split())

    assert "limit in zone seal none 0.193" in table
    assert "limit in zone elsewhere none 0.785" in table
    assert "limit in zone seal 0.193157 on the map, for spots of at least 5 pixels" in info
    assert "where to look 1 zone with limits of their own" in info
    assert "- limit in zone seal: 0.193157 on the map, for spots of at least 5 pixels" in Bundle.load(out).card
    assert main(["calibrate", str(out), "--rate", "0.2", "--json", "--quiet"]) == 0
    assert list(json.loads(capsys.readouterr().out)["after"]["zone_limits"]) == ["seal", "elsewhere"]


def test_levels_of_zones_that_are_not_there_are_asked_for(model: Path, half_rough: Path, tmp_path: Path) -> None:
    bundle = calibrate(model, half_rough, roi=zones(tmp_path / "zones.json", SEAL), group="none").bundle
    without = {name: array for name, array in bundle.calibration.items() if name != "good_zone_levels"}

    for arrays in (without, {**without, "good_zone_levels": np.zeros((40, 9))}):
        with pytest.raises(FlawsmithError, match=r"a model with zones needs good images .*: give their folder"):
            calibrate(Bundle(bundle.spec, bundle.model, arrays), rate=0.3)


Refused = dict[str, Any]
CASES: dict[str, tuple[list[str], str]] = {
    "no images": ([], "give their folder"),
    "no images for a region": (["--roi", "{root}/square.json"], "give a folder of good images"),
    "no scores in the file": (["--rate", "0.1"], "does not hold the scores"),
    "rate of 0": (["{good}", "--rate", "0"], "--max-false-rejects 0 is not possible"),
    "rate by its long name": (["{good}", "--max-false-rejects", "0"], "--max-false-rejects 0 is not possible"),
    "rate above 1": (["{good}", "--rate", "30"], "--max-false-rejects 30 is not possible"),
    "rate in words": (["{good}", "--rate", "few"], "--max-false-rejects few is not possible"),
    "rate of nothing": (["{good}", "--rate", "1/0"], "--max-false-rejects 1/0 is not possible"),
    "review below reject": (["{good}", "--rate", "0.1", "--review-rate", "0.05"], "--review-rate"),
    "review in two ways": (["{good}", "--review-rate", "0.2", "--review-budget", "40"], "in several ways"),
    "review rate in words": (["{good}", "--review-rate", "many"], "--review-rate many is not possible"),
    "budget of more than all": (["{good}", "--review-budget", "1000"], "--review-budget 1000"),
    "budget below 0": (["{good}", "--review-budget", "-3"], "--review-budget -3"),
    "budget and rate above all": (["{good}", "--rate", "0.5", "--review-budget", "600"], "--review-budget"),
    "budget without a number": (["{good}", "--review-budget", "nan"], "--review-budget nan"),
    "area without scale": (["{good}", "--min-area", "2mm2"], "add --scale"),
    "area below 0": (["{good}", "--min-area=-2"], "--min-area -2 is not possible"),
    "half a pixel": (["{good}", "--min-area", "2.5"], "--min-area 2.5 is not possible"),
    "scale of 0": (["{good}", "--scale", "0mm"], "--scale 0mm is not possible"),
    "scale in words": (["{good}", "--scale", "fine"], "--scale fine is not possible"),
    "scale in metres": (["{good}", "--scale", "1m"], "--scale 1m is not possible"),
    "no region file": (["{good}", "--roi", "{root}/none.json"], "there is no file"),
    "region of other proportions": (["{good}", "--roi", "{root}/square.json"], "was drawn on 32 x 32"),
    "region outside": (["{good}", "--roi", "{root}/outside.json"], "lies outside of 48 x 32"),
    "region of two corners": (["{good}", "--roi", "{root}/line.json"], "three corners"),
    "region that is no JSON": (["{good}", "--roi", "{root}/text.json"], "no valid JSON"),
    "black mask": (["{good}", "--roi", "{root}/black.png"], "black everywhere"),
    "zones without images": (["--roi", "{root}/zones.json"], "give a folder of good images"),
    "zone with an unknown word": (["{good}", "--roi", "{root}/unknown.json"], "zones.0.limit"),
    "zone without polygons": (["{good}", "--roi", "{root}/bare.json"], "zones.0.include"),
    "zone without a name": (["{good}", "--roi", "{root}/nameless.json"], "zones.0.name"),
    "zone named elsewhere": (["{good}", "--roi", "{root}/elsewhere.json"], "and not elsewhere"),
    "two zones of one name": (["{good}", "--roi", "{root}/twice.json"], "two zones are called seal"),
    "zone outside of the region": (["{good}", "--roi", "{root}/apart.json"], "zone seal lies outside of the region"),
    "zone behind another": (["{good}", "--roi", "{root}/behind.json"], "zone b is covered by the zones before it"),
    "zone beyond the image": (["{good}", "--roi", "{root}/beyond.json"], "zones.0.include.0 has the corner [99, 0]"),
    "zone of two corners": (["{good}", "--roi", "{root}/thin.json"], "three corners"),
    "zone area without scale": (["{good}", "--roi", "{root}/mm.json"], "add --scale"),
    "zone area in words": (["{good}", "--roi", "{root}/words.json"], "zones.0.min_area small is not possible"),
    "zone area that is true": (["{good}", "--roi", "{root}/true.json"], "zones.0.min_area"),
    "zone smaller than its area": (
        ["{good}", "--roi", "{root}/large.json"],
        "is 999 pixels, and zone seal has 768 in these",
    ),
    "too many zones": (["{good}", "--roi", "{root}/many.json"], "zones has 101 entries, and may have at most 100"),
    "more zones than images": (["{good}", "--roi", "{root}/41.json"], "42 zones, elsewhere included, take a good"),
    "zones of an impossible image": (["{good}", "--roi", "{root}/huge.json"], "larger than any image"),
    "flaws that are not there": (["{good}", "--flawed", "{root}/none"], "there is no folder"),
    "flaws without images": (["{good}", "--flawed", "{root}/empty"], "there are no images"),
    "catch without flaws": (["{good}", "--catch", "0.9"], "add --flawed"),
    "catch of more than all": (["{good}", "--flawed", "{good}", "--catch", "1.2"], "--catch 1.2 is not possible"),
    "catch of nothing": (["{good}", "--flawed", "{good}", "--catch", "0"], "--catch 0 is not possible"),
    "too few repeats": (["{good}", "--repeats", "name:(0)"], "take each part"),
    "repeats without folders": (["{good}", "--repeats", "folder"], "--repeats folder"),
    "repeats of an odd pattern": (["{good}", "--repeats", "name:("], "name:("),
    "groups of an unknown kind": (["{good}", "--group", "weekday"], "weekday"),
    "groups of a missing column": (["{good}", "--group", "column:day"], "column"),
    "limits that are not there": (["--use", "0123456789ab"], "holds no limits 0123456789ab"),
    "limits and images": (["{good}", "--use", "0123456789ab"], "would change nothing"),
    "limits and a rate": (["--use", "0123456789ab", "--rate", "0.1"], "--max-false-rejects 0.1 would change nothing"),
    "an engine without images": (["--rate", "0.1", "--engine", "openvino"], "--engine openvino would change nothing"),
    "rate of nearly nothing": (["{good}", "--rate", "1e-12"], "--max-false-rejects 1e-12 is not possible"),
    "area without end": (["{good}", "--min-area", "1e400"], "--min-area 1e400 is not possible"),
    "area larger than the images": (["{good}", "--min-area", "5000"], "larger than what is inspected"),
    "flaws and repeats that both move the limit": (
        ["{good}", "--flawed", "{root}/flaws", "--catch", "90%", "--repeats", "folder"],
        "give one of them",
    ),
    "flaws and a rate that both choose the limit": (
        ["{good}", "--flawed", "{good}", "--catch", "90%", "--rate", "0.1"],
        "in place of --max-false-rejects: give one of them",
    ),
    "images that are good and flawed": (["{good}", "--flawed", "{good}"], "is given as good, and with --flawed: leave"),
    "repeats by themselves": (["{good}", "--repeats", "auto"], "--repeats auto does not say which images show"),
    "repeats of nothing": (["{good}", "--repeats", "none"], "--repeats none does not say"),
    "good images among the flaws": (["{good}", "--flawed", "{root}"], "does not say that its images are flawed"),
    "out that is a picture": (["{good}", "--out", "{good}/001.png"], "is not this model"),
    "out in no folder": (["{good}", "--out", "{good}/001.png/model.flaw"], "001.png"),
    "unknown engine": (["{good}", "--engine", "abacus"], "abacus"),
    "no such folder": (["{root}/nothing"], "nothing"),
}


@pytest.fixture
def refused(model: Path, good: Path, capsys: pytest.CaptureFixture) -> Callable[[list[str]], str]:
    """Runs the command and returns its one line of error; nothing may have changed."""
    root = good.parent
    for name, value in (
        ("square", {"width": 32, "height": 32, "include": [[[0, 0], [9, 0], [9, 9]]]}),
        ("outside", {"width": 48, "height": 32, "include": [[[0, 0], [99, 0], [9, 9]]]}),
        ("line", {"width": 48, "height": 32, "include": [[[0, 0], [9, 0]]]}),
    ):
        (root / f"{name}.json").write_text(json.dumps(value))
    wide, beyond = [[0, 0], [48, 0], [48, 32]], [[0, 0], [99, 0], [9, 9]]
    for name, drawn in (
        ("zones", [SEAL]),
        ("unknown", [SEAL | {"limit": 0.3}]),
        ("bare", [{"name": "seal"}]),
        ("nameless", [SEAL | {"name": ""}]),
        ("elsewhere", [SEAL | {"name": "elsewhere"}]),
        ("twice", [SEAL, SEAL]),
        ("behind", [SEAL, SEAL | {"name": "b"}]),
        ("beyond", [SEAL | {"include": [beyond]}]),
        ("thin", [SEAL | {"include": [[[0, 0], [9, 9]]]}]),
        ("mm", [SEAL | {"min_area": "2mm2"}]),
        ("words", [SEAL | {"min_area": "small"}]),
        ("true", [SEAL | {"min_area": True}]),
        ("large", [SEAL | {"min_area": 999}]),
        ("many", [{"name": str(number), "include": [wide]} for number in range(101)]),
        ("41", [{"name": str(n), "include": [[[n, 0], [n + 1, 0], [n + 1, 9], [n, 9]]]} for n in range(41)]),
    ):
        zones(root / f"{name}.json", *drawn)
    zones(root / "apart.json", SEAL, include=[[[30, 0], [48, 0], [48, 32]]])
    huge = {"width": 10**6, "height": 10**6, "zones": [SEAL]}
    (root / "huge.json").write_text(json.dumps(huge))
    (root / "text.json").write_text("a region")
    Image.new("L", SIZE[::-1]).save(root / "black.png")
    (root / "empty").mkdir()

    def run(options: list[str]) -> str:
        before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        filled = [option.format(good=good, root=root) for option in options]
        assert main(["calibrate", str(model), *filled]) == 2
        assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        return line

    return run


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gives_one_line_and_changes_nothing(case: str, refused: Callable[[list[str]], str]) -> None:
    options, words = CASES[case]

    assert words in refused(options)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rate": 0.1, "review_rate": 0.05}, "must be larger"),
        ({"scale": "fine"}, "--scale fine is not possible"),
        ({"min_area": "0.2mm2"}, "needs the size of a pixel"),
        ({"flawed": "nowhere"}, "there is no folder nowhere"),
        ({"repeats": "name:(0)"}, "take each part"),
    ],
)
def test_settings_that_are_not_possible_are_refused_before_images_are_decoded(
    settings: dict[str, Any], words: str, model: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("runtime.image.read_image", "data.bursts.open_image"):
        monkeypatch.setattr(f"flawsmith.{module}", lambda *_: pytest.fail("an image was decoded"))

    with pytest.raises(FlawsmithError, match=words):
        calibrate(model, good, **settings)
