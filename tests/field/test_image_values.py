"""Images whose values do not fill their range are noticed before training and while inspecting."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from flawsmith.cli.main import main
from flawsmith.data import doctor
from flawsmith.data.layouts import load
from flawsmith.runtime.bundle import Bundle, TrainingSummary
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode, is_grey, kind_of_images, range_advice, summarise_values
from flawsmith.runtime.inspector import Inspector

SIDE = 48
Y, X = np.mgrid[0:SIDE, 0:SIDE]


def part(seed: int) -> np.ndarray:
    """A bright disc on grey ground, as a share of full scale."""
    noise = np.random.default_rng(seed).normal(0, 0.015, (SIDE, SIDE))
    return np.clip(np.where(np.hypot(Y - 24, X - 24) < 17, 0.7, 0.35) + noise, 0, 1)


def pgm(values: np.ndarray, full_scale: int) -> bytes:
    return b"P5 48 48 %d\n" % full_scale + values.astype(">u2").tobytes()


def folder_of(kind: str, root: Path, *, count: int = 12) -> Path:
    """Images of a 12-bit camera in one of the ways in which such cameras store them; or others."""
    root.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        values = np.rint(part(seed) * 4095).astype(np.uint16)
        if kind == "scaled":
            (root / f"{seed}.pgm").write_bytes(pgm(values, 4095))
            continue
        stored: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "right": lambda v: v,
            "left": lambda v: v << 4,
            "14 bits": lambda v: v << 2,
            "thermal": lambda v: (7000 + v / 4095 * 2000).astype(np.uint16),
            "full": lambda v: (v * 16.0).astype(np.uint16),
            "8 bits": lambda v: (v >> 4).astype(np.uint8),
            "8 bits in 16": lambda v: v >> 4,
            "10 bits": lambda v: v >> 2,
            "scaled or not": lambda v, seed=seed: v << 4 * (seed % 2),
            "10 bits, scaled or not": lambda v, seed=seed: (v >> 2) << 6 * (seed % 2),
            "half as bright or not": lambda v, seed=seed: v << (seed % 2),
        }
        Image.fromarray(stored[kind](values)).save(root / f"{seed}.png")
    return root


def advice(folder: Path, value_range: tuple[float, float] | None = None, option: str = "") -> str:
    return str(range_advice([summarise_values(decode(path)) for path in sorted(folder.iterdir())], value_range, option))


@pytest.mark.parametrize(
    ("kind", "bits", "message"),
    [
        ("right", None, r"values end at \d+ of 65535: a 12-bit camera\? add --bits 12"),
        ("14 bits", None, r"values end at \d+ of 65535: a 14-bit camera\? add --bits 14"),
        ("thermal", None, r"lie between \d+ and \d+ of 65535.*add --value-range \d+:\d+"),
        ("left", None, "None"),
        ("10 bits", None, r"a 10-bit camera\? add --bits 10"),
        ("8 bits in 16", None, r"8-bit values in 16-bit files\? add --value-range 0:255"),
        (
            "scaled or not",
            None,
            r"2 of 3 images hold values up to \d+, the others up to \d+: 12-bit values, some of them",
        ),
        ("scaled or not", 12, "12-bit values, some of them scaled to 16 bits"),
        ("10 bits, scaled or not", None, "10-bit values, some of them scaled to 16 bits"),
        ("half as bright or not", None, r"values end at \d+ of 65535"),
        ("full", None, "None"),
        ("8 bits", None, "None"),
        ("right", 12, "None"),
        ("left", 12, r"values up to \d+, but --bits 12 ends at 4095: leave --bits out"),
        ("scaled", 12, r"values up to \d+, but --bits 12 ends at 4095: leave --bits out"),
        ("10 bits", 12, r"values end at \d+ of 4095: a 10-bit camera\? give --bits 10"),
        ("right", 14, r"values end at \d+ of 16383: a 12-bit camera\? give --bits 12"),
        ("14 bits", 14, "None"),
        ("full", 10, r"values up to \d+, but --bits 10 ends at 1023: leave --bits out"),
        ("14 bits", 12, r"values up to \d+, but --bits 12 ends at 4095: give --bits 14, or leave it out"),
        ("8 bits", 12, "--bits 12 changes nothing: all images have 8 bits"),
    ],
)
def test_values_are_held_against_the_declared_bits(kind: str, bits: int | None, message: str, tmp_path: Path) -> None:
    value_range = None if bits is None else Geometry.range_of_bits(bits)

    said = advice(folder_of(kind, tmp_path, count=3), value_range, "" if bits is None else f"--bits {bits}")

    assert re.search(message, said)


def test_suggested_range_shows_thermal_images_with_room_for_flaws(tmp_path: Path) -> None:
    folder = folder_of("thermal", tmp_path)
    low, high = (float(end) for end in advice(folder).partition("--value-range ")[2].split(",")[0].split(":"))

    assert low < 7600
    assert high > 8500
    assert advice(folder, (low, high), "--value-range") == "None"
    seen = Geometry(size=(48, 48), mean=(0, 0, 0), std=(1, 1, 1), value_range=(low, high)).apply(
        decode(folder / "0.png")
    )
    assert np.ptp(seen) > 0.3


def test_range_that_holds_few_of_the_values_is_refused(tmp_path: Path) -> None:
    folder = folder_of("thermal", tmp_path, count=2)

    assert "lie outside --value-range 20000:30000" in advice(folder, (20000, 30000), "--value-range 20000:30000")
    assert "which the model sees as one tone" in advice(folder, (0, 65535), "--value-range 0:65535")


def test_even_images_need_no_range() -> None:
    assert range_advice([summarise_values(np.full((9, 9, 3), 700, np.uint16))], None) is None


@pytest.mark.parametrize("command", ["train", "synthesize"])
@pytest.mark.parametrize("kind", ["left", "scaled"])
def test_bits_that_are_too_few_are_refused(
    kind: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(kind, tmp_path / "data")

    code = main([command, str(folder), "--bits", "12", "--out", str(tmp_path / "out")])

    assert code == 2
    assert "but --bits 12 ends at 4095: leave --bits out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train", "synthesize"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--value-range", "7000"], "write two values, such as 7000:9000"),
        (["--value-range", "9000:7000"], "value_range must rise"),
        (["--value-range", "0:70000"], "within 0 and 65535"),
        (["--value-range", "0:nan"], "not possible: it must be a finite number"),
        (["--value-range", "7000:9000", "--bits", "12"], "give one of them"),
        (["--value-range", "20000:30000"], "lie outside --value-range 20000:30000"),
        (["--bits", "99"], "bits=99 is not possible"),
    ],
)
def test_range_that_cannot_be_is_refused(
    arguments: list[str], message: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of("thermal", tmp_path / "data")

    assert main([command, str(folder), *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_flaws_are_synthesized_in_the_declared_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, shown = folder_of("thermal", tmp_path / "data"), {}
    for name, options in (("whole", []), ("declared", ["--value-range", "7000:9000"])):
        command = ["synthesize", str(folder), *options, "--pictures", "--n", "2", "--out", str(tmp_path / name)]
        assert main(command) == 0
        shown[name] = np.ptp(decode(tmp_path / name / "pictures" / "000_image.png"))

    assert "warning: nearly all values lie between" in capsys.readouterr().err
    assert shown["declared"] > 100 > 10 > shown["whole"]


def test_doctor_asks_for_the_bits(tmp_path: Path) -> None:
    findings = doctor.check(load(folder_of("right", tmp_path / "parts")))

    (finding,) = [item for item in findings.items if item.name == "value-range"]
    assert finding.fix == "a 12-bit camera? add --bits 12"
    assert len(finding.where) == 12


def test_model_of_a_thermal_camera_knows_its_range_and_images(train_small: Callable[..., Any], tmp_path: Path) -> None:
    folder = folder_of("thermal", tmp_path / "data")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = train_small("patchcore", folder, tmp_path / "run", value_range=(7000, 9000))

    assert result.bundle.spec.geometry.value_range == (7000, 9000)
    assert result.bundle.spec.training.findings["images"] == "grey, 16 bits"
    assert Bundle.load(result.model).spec == result.bundle.spec


def test_training_goes_on_where_bits_may_be_missing_and_says_what_it_sees(
    train_small: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    for number in range(12):  # of different content, and yet one picture
        text = PngInfo()
        text.add_text("number", str(number))
        image = Image.fromarray(np.rint(part(0) * 4095).astype(np.uint16))
        image.save(tmp_path / "data" / f"{number}.png", pnginfo=text)

    with pytest.warns(UserWarning) as caught:
        run = train_small("patchcore", tmp_path / "data", tmp_path / "run")

    said = [str(warning.message) for warning in caught]
    assert any("a 12-bit camera? add --bits 12" in line for line in said)
    (remark,) = json.loads((run.folder / "run.json").read_text())["remarks"]
    assert "held-out images have nearly the same score" in remark


def _inspector(tiny: Any, images: str, value_range: tuple[float, float] | None = None) -> Inspector:
    bundle = tiny.make_bundle()
    training = TrainingSummary(
        layout="folder", category="bolt", n_train=9, n_calibration=9, images_sha256="ab" * 32,
        findings={"images": images} if images else {},
    )  # fmt: skip
    geometry = bundle.spec.geometry.model_copy(update={"value_range": value_range})
    return Inspector.load(
        Bundle(bundle.spec.model_copy(update={"training": training, "geometry": geometry}), bundle.model)
    )


GREY_8 = np.repeat(np.rint(part(0) * 255).astype(np.uint8)[:, :, None], 3, 2)
COLOUR_8 = np.dstack([GREY_8[:, :, 0], GREY_8[:, :, 0] // 2, GREY_8[:, :, 0] // 3])
GREY_16 = GREY_8.astype(np.uint16) * 257


@pytest.mark.parametrize(
    ("images", "value_range", "image", "message"),
    [
        ("grey, 8 bits", None, COLOUR_8, "shows colour, the model learned from grey"),
        ("grey, 8 bits", None, GREY_16, "has 16 bits, the model learned from images of 8 bits"),
        ("colour, 8 bits", None, GREY_16, "has 16 bits"),
        ("grey, 16 bits", (0, 4095), GREY_8, "has 8 bits, the model learned from images of 16 bits"),
        ("grey, 16 bits", (0, 4095), GREY_16, "100% of the values of an image lie outside 0 to 4095"),
        ("grey, 16 bits", (20000, 60000), GREY_16 // 16, "lie outside 20000 to 60000"),
    ],
)
def test_images_of_another_kind_are_told_once_a_run(
    images: str, value_range: tuple[float, float] | None, image: np.ndarray, message: str, tiny: Any
) -> None:
    inspector = _inspector(tiny, images, value_range)

    with pytest.warns(UserWarning, match=message) as caught:
        inspector.inspect_many([image] * 5)

    assert len(caught) == 1


@pytest.mark.parametrize(
    ("images", "value_range", "image"),
    [
        ("", None, COLOUR_8),
        ("grey, 8 bits", None, GREY_8),
        ("colour, 8 bits", None, GREY_8),
        ("colour, 8 bits", None, COLOUR_8),
        ("grey, 16 bits", None, GREY_16),
        ("grey, 16 bits", (0, 4095), GREY_16 // 16),
    ],
)
def test_images_of_the_same_kind_pass_without_a_word(
    images: str, value_range: tuple[float, float] | None, image: np.ndarray, tiny: Any
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _inspector(tiny, images, value_range).inspect(image)


def _tinted(seed: int, spread: float) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, spread, (SIDE, SIDE, 3))
    return np.clip(np.rint(GREY_8 + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "grey"),
    [
        (GREY_8, True),
        (_tinted(1, 1.0), True),
        (np.clip(GREY_8 + np.array([3, 0, -3]), 0, 255).astype(np.uint8), True),
        (GREY_16, True),
        (COLOUR_8, False),
        (COLOUR_8.astype(np.uint16) * 16, False),
        (np.where((Y < 4)[:, :, None] & (X < 4)[:, :, None], np.array([200, 20, 20]), GREY_8).astype(np.uint8), False),
    ],
)
def test_grey_stored_as_colour_is_grey(image: np.ndarray, *, grey: bool, tmp_path: Path) -> None:
    assert is_grey(image) is grey
    assert kind_of_images([summarise_values(image)]).startswith("grey" if grey else "colour")


def test_doctor_takes_grey_jpegs_for_grey(tmp_path: Path) -> None:
    for seed in range(6):
        image = Image.fromarray(_tinted(seed, 0.0 if seed % 2 else 1.0))
        image.save(tmp_path / f"{seed}.jpg", quality=80)

    assert "odd-colour" not in [item.name for item in doctor.check(load(tmp_path)).items]


def test_settings_of_a_range_are_checked() -> None:
    from flawsmith.pipeline.settings import check_settings

    with pytest.raises(FlawsmithError, match="give one of them"):
        check_settings({"bits": 12, "value_range": (0, 4095)})
