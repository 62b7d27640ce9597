"""Of a file with several pictures the first is used, and the others are named."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.field.image_files import saved

from flawsmith.cli.main import main
from flawsmith.data.doctor import check, glance
from flawsmith.data.layouts import load
from flawsmith.runtime.image import decode, has_further_pictures

_Y, _X = np.mgrid[0:60, 0:84]
FIRST = Image.fromarray(np.stack([_X * 3, _Y * 4, (_X * _Y) % 256], 2).astype(np.uint8))
SECOND = FIRST.transpose(Image.Transpose.ROTATE_180)


def animation(kind: str, **options: Any) -> bytes:
    return saved(FIRST, kind, save_all=True, append_images=[SECOND], **options)


def of_a_camera(*behind: Image.Image) -> bytes:
    return saved(FIRST, "MPO", save_all=True, append_images=list(behind))


SEVERAL = {
    "a.gif": animation("GIF"),
    "b.webp": animation("WEBP", lossless=True),
    "c.png": animation("PNG"),
    "d.png": animation("PNG", default_image=True),
    "e.jpg": of_a_camera(SECOND),
    "f.jpg": of_a_camera(FIRST.resize((21, 15)), SECOND),
}
ALONE = {
    "a.gif": saved(FIRST, "GIF"),
    "b.webp": saved(FIRST, "WEBP"),
    "c.png": saved(FIRST, "PNG"),
    "d.jpg": saved(FIRST, "JPEG"),
    "thumbnail.jpg": of_a_camera(FIRST.resize((42, 30))),
    "cut off.jpg": of_a_camera(SECOND)[: len(saved(FIRST, "JPEG")) + 200],
    "e.bmp": saved(FIRST, "BMP"),
    "empty.png": b"",
    "text.jpg": b"no image",
}


@pytest.mark.parametrize("name", SEVERAL)
def test_further_pictures_are_seen_and_the_first_is_decoded(name: str) -> None:
    assert has_further_pictures(SEVERAL[name])
    with Image.open(io.BytesIO(SEVERAL[name])) as image:
        np.testing.assert_array_equal(decode(SEVERAL[name]), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ALONE)
def test_single_pictures_and_thumbnails_are_no_further_pictures(name: str) -> None:
    assert not has_further_pictures(ALONE[name])


@pytest.mark.parametrize("kept", [40, 100, 250, 400])
@pytest.mark.parametrize("name", SEVERAL)
def test_of_a_truncated_file_nothing_is_raised(name: str, kept: int) -> None:
    has_further_pictures(SEVERAL[name][:kept])


def test_doctor_and_train_count_them(tmp_path: Path, draw_parts: Callable[..., Path]) -> None:
    root = draw_parts(tmp_path / "bolt")
    for name, content in SEVERAL.items():
        (root / "train" / "good" / name).write_bytes(content)
    dataset = load(root)

    (finding,) = (finding for finding in check(dataset).items if finding.name == "further-pictures")
    assert [path.name for path in finding.where] == list(SEVERAL)
    assert finding.what.startswith("6 images hold further pictures")
    assert finding.in_a_line in [finding.in_a_line for finding in glance(dataset)]


def test_predict_names_them_on_stderr_and_in_the_lines(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.make_bundle().save(tmp_path / "model.flaw")
    (tmp_path / "in").mkdir()
    for name, content in SEVERAL.items():
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in" / "z.png").write_bytes(ALONE["c.png"])

    code = main(["predict", str(tmp_path / "model.flaw"), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "-q"])

    said = capsys.readouterr().err
    named = ", ".join(str(tmp_path / "in" / name) for name in list(SEVERAL)[:3])
    expected = "6 files hold further pictures, and the first of a file was inspected alone"
    assert (code, said) == (0, f"warning: {expected}: {named} and 3 more\n")
    lines = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()]
    assert [line.get("further_pictures") for line in lines] == [True] * 6 + [None]


def test_evaluate_names_them_and_what_it_leaves_out_in_figures_and_report(
    tiny: Any, trees: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, root, out = tmp_path / "model.flaw", trees.mvtec(tmp_path / "bolt"), tmp_path / "out"
    tiny.make_bundle().save(model)
    for name in ("a.gif", "e.jpg"):
        (root / "test" / "good" / name).write_bytes(SEVERAL[name])
    (root / "test" / "crack" / "photo.heic").write_bytes(b"a photo")
    (root / "train" / "good" / "photo.heic").write_bytes(b"no test image")

    code = main(["evaluate", str(model), str(root), "--out", str(out)])

    said = " ".join(capsys.readouterr().out.split())
    named = ", ".join(str(root / "test" / "good" / name) for name in ("a.gif", "e.jpg"))
    notes = [
        "1 file .heic was left out: save it as PNG or JPEG.",
        f"2 files hold further pictures, and the first of a file was inspected alone: {named}.",
    ]
    assert code == 0
    written = json.loads((out / "evaluation.json").read_text())["notes"]
    for note in notes:
        assert note in written
        assert note in said
        assert note in (out / "report.html").read_text()


def test_evaluate_says_what_the_layout_does_not_use(
    tiny: Any, trees: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, root = tmp_path / "model.flaw", trees.mvtec(tmp_path / "bolt")
    tiny.make_bundle().save(model)
    (root / "test" / "good" / "000_mask.png").write_bytes((root / "test" / "good" / "000.png").read_bytes())

    assert main(["evaluate", str(model), str(root), "--out", str(tmp_path / "out")]) == 0

    assert f"note: {load(root).notes[0]}\n" in capsys.readouterr().err


def test_calibrate_names_them_and_what_it_leaves_out(
    tiny: Any, draw_parts: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, good = tmp_path / "model.flaw", draw_parts(tmp_path / "bolt") / "train" / "good"
    tiny.make_bundle().save(model)
    (good / "a.gif").write_bytes(SEVERAL["a.gif"])
    (good / "photo.heic").write_bytes(b"a photo")

    assert main(["calibrate", str(model), str(good), "--out", str(tmp_path / "new.flaw")]) == 0

    said = capsys.readouterr().err
    assert "note: 1 file .heic was left out: save it as PNG or JPEG\n" in said
    assert "note: 1 file holds further pictures, and the first of a file was inspected alone: a.gif\n" in said
