"""Verdicts on disk: complete, in order, and never half a line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import flawsmith
from flawsmith.pipeline.predict import InterruptedPredictionError, given_images, predict
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import printable, result_name
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.inspector import Inspector
from flawsmith.runtime.regions import STRANGEST_PLACE


@pytest.fixture(scope="module")
def inspector(tiny: ModuleType) -> Inspector:
    """Score and map are the brightness: over 0.4 a review, over 0.6 a reject."""
    return Inspector.load(tiny.make_bundle())


def grey(path: Path, level: int, size: tuple[int, int] = (20, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def stop_after(number: int, error: BaseException) -> Callable[[dict[str, Any]], None]:
    """A callback that raises when it is given its n-th record."""
    count = 0

    def seen(record: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise error

    return seen


def test_files_and_folders_come_in_the_order_given(inspector, tmp_path):
    last, first = grey(tmp_path / "z" / "1.png", 10), grey(tmp_path / "a" / "2.png", 10)
    inner = grey(tmp_path / "a" / "1.png", 10)

    written = predict(inspector, [last, tmp_path / "a"], tmp_path / "out")

    assert [row["image"] for row in lines(written.lines)] == [str(last), str(inner), str(first)]
    assert written.complete


def test_model_file_and_one_path_as_text_are_enough(tiny, inspector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grey(tmp_path / "in" / "a.png", 200)
    tiny.make_bundle().save(tmp_path / "model.flaw")

    written = flawsmith.predict("model.flaw", "in")

    assert written.lines == Path("verdicts/verdicts.jsonl")
    expected = predict(inspector, [Path("in")], tmp_path / "out")
    assert written.verdicts == expected.verdicts == {"pass": 0, "review": 0, "reject": 1}
    assert written.lines.read_bytes() == expected.lines.read_bytes()


def test_overlays_of_this_run_and_the_last_are_not_inspected(inspector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "z/b.png"):
        grey(tmp_path / name, 200)

    for _ in range(2):
        written = predict(inspector, [Path("z/..")], Path("verdicts"), overlays="all")

    assert [row["image"] for row in lines(written.lines)] == ["z/../a.png", "z/../z/b.png"]


def test_each_line_holds_verdict_and_regions_or_an_error(inspector, tmp_path):
    grey(tmp_path / "in" / "a.png", 200)
    (tmp_path / "in" / "b.png").write_bytes(b"no image")

    written = predict(inspector, [tmp_path / "in"], tmp_path / "out")

    good, bad = lines(written.lines)
    assert good["verdict"] == "reject"
    assert good["score"] == pytest.approx(200 / 255, abs=1e-6)
    assert good["regions"][0]["area"] == 20 * 30
    assert set(bad) == {"image", "error"}
    assert written.verdicts == {"pass": 0, "review": 0, "reject": 1}
    assert written.unreadable == 1


def test_table_agrees_with_the_lines(inspector, tmp_path):
    for index, level in enumerate((10, 120, 200)):
        grey(tmp_path / "in" / f'{index}, "x".png', level)

    written = predict(inspector, [tmp_path / "in"], tmp_path / "out")

    with written.table.open(newline="", encoding="utf-8") as file:
        table = [
            (row["image"], float(row["score"]), row["verdict"], int(row["regions"])) for row in csv.DictReader(file)
        ]
    expected = [(row["image"], row["score"], row["verdict"], len(row["regions"])) for row in lines(written.lines)]
    assert table == expected


def test_same_images_give_the_same_bytes(inspector, tmp_path):
    grey(tmp_path / "in" / "a.png", 200)

    first = predict(inspector, [tmp_path / "in"], tmp_path / "one")
    second = predict(inspector, [tmp_path / "in"], tmp_path / "two")

    assert first.lines.read_bytes() == second.lines.read_bytes()
    assert first.table.read_bytes() == second.table.read_bytes()


def test_pictures_of_images_with_one_name_do_not_collide(inspector, tmp_path):
    paths = [grey(tmp_path / folder / "1.png", level) for folder, level in (("a", 200), ("b", 210))]

    written = predict(inspector, paths, tmp_path / "out", overlays="all", maps="npy")

    rows = lines(written.lines)
    maps = [np.load(tmp_path / "out" / row["map"], allow_pickle=False) for row in rows]
    assert [m.mean() for m in maps] == pytest.approx([200 / 255, 210 / 255], abs=1e-5)
    assert len({row["overlay"] for row in rows}) == 2
    assert all((tmp_path / "out" / row["overlay"]).is_file() for row in rows)


def test_map_is_in_pixels_of_the_image_and_nan_where_nothing_was_inspected(tiny, tmp_path):
    size = tiny.SIZE
    geometry = Geometry(policy="crop", size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    path = grey(tmp_path / "wide.png", 100, (48, 200))

    written = predict(Inspector.load(tiny.make_bundle(geometry=geometry)), [path], tmp_path / "out", maps="npy")

    stored = np.load(tmp_path / "out" / lines(written.lines)[0]["map"], allow_pickle=False)
    assert stored.shape == (48, 200)
    assert stored.dtype == np.float32
    assert np.isnan(stored[24, 0])
    assert stored[24, 100] == pytest.approx(100 / 255, abs=1e-5)


def test_only_suspect_images_get_an_overlay_by_default(inspector, tmp_path):
    for name, level in (("a", 10), ("b", 120), ("c", 200)):
        grey(tmp_path / "in" / f"{name}.png", level)

    written = predict(inspector, [tmp_path / "in"], tmp_path / "out")

    assert ["overlay" in row for row in lines(written.lines)] == [False, True, True]


def test_table_says_which_regions_are_but_the_strangest_place(tiny, tmp_path):
    decision = Decision(limit=0.6, review_limit=0.4, map_limit=0.8, stated_false_reject_rate=0.05, n_good=19)
    for name, level in (("a", 10), ("b", 180), ("c", 250), ("d", 130)):
        grey(tmp_path / "in" / f"{name}.png", level)

    written = predict(Inspector.load(tiny.make_bundle(decision=decision)), [tmp_path / "in"], tmp_path / "out")

    with written.table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == ["pass", "reject", "reject", "review"]
    assert [row["regions"] for row in rows] == ["0", "1", "1", "1"]
    assert [row["remark"] for row in rows] == ["", STRANGEST_PLACE, "", STRANGEST_PLACE]
    assert [[region["strangest_place"] for region in row["regions"]] for row in lines(written.lines)] == [
        [],
        [True],
        [False],
        [True],
    ]
    assert written.by_score_alone == 1, "a review is between the limits anyway"


def test_ctrl_c_keeps_what_is_complete(inspector, tmp_path):
    for index in range(8):
        grey(tmp_path / "in" / f"{index}.png", 10)

    with pytest.raises(InterruptedPredictionError) as caught:
        predict(inspector, [tmp_path / "in"], tmp_path / "out", seen=stop_after(3, KeyboardInterrupt()))

    assert caught.value.interrupted
    assert len(lines(tmp_path / "out" / "verdicts.jsonl")) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["verdicts.csv", "verdicts.jsonl"]
    assert "first 3 images" in str(caught.value)


def test_ctrl_c_leaves_earlier_results_alone(inspector, tmp_path):
    for index in range(4):
        grey(tmp_path / "in" / f"{index}.png", 10)
    earlier = predict(inspector, [tmp_path / "in"], tmp_path / "out")
    content = earlier.lines.read_bytes()

    with pytest.raises(InterruptedPredictionError):
        predict(inspector, [tmp_path / "in"], tmp_path / "out", seen=stop_after(2, KeyboardInterrupt()))

    assert earlier.lines.read_bytes() == content
    assert len(lines(tmp_path / "out" / "verdicts.partial.jsonl")) == 2


def test_reader_that_leaves_is_not_made_an_error(inspector, tmp_path):
    grey(tmp_path / "in" / "a.png", 10)

    with pytest.raises(BrokenPipeError):
        predict(inspector, [tmp_path / "in"], tmp_path / "out", seen=stop_after(1, BrokenPipeError()))

    assert len(lines(tmp_path / "out" / "verdicts.jsonl")) == 1


_CAPPED = """
import resource, signal, sys
from pathlib import Path
from flawsmith.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files, which Windows lacks")
def test_full_disk_keeps_whole_lines_only(tiny, tmp_path):
    """A cap on the size of files cuts a write short just as a full disk does."""
    tiny.make_bundle().save(tmp_path / "model.flaw")
    for index in range(20):
        grey(tmp_path / "in" / f"{index:02d}.png", 10)
    source = str(Path(flawsmith.__file__).parents[1])

    done = subprocess.run(
        [sys.executable, "-c", _CAPPED, "predict", "model.flaw", "in", "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )

    rows = lines(tmp_path / "out" / "verdicts.jsonl")
    assert done.returncode == 2
    assert 0 < len(rows) < 20
    assert f"the verdicts of the first {len(rows)} images are in" in done.stderr
    assert (tmp_path / "out" / "verdicts.csv").read_text().count("\n") == len(rows) + 1
    assert done.stderr.count("\n") == 1


def test_nothing_given_that_exists_is_an_error(tmp_path):
    with pytest.raises(FlawsmithError, match="there is no file or folder"):
        given_images([tmp_path / "gone.png"], tmp_path)


def test_python_refuses_what_the_command_refuses(inspector, tmp_path):
    image = grey(tmp_path / "a.png", 50)

    for choice, words in (({"maps": "png"}, "--maps png"), ({"overlays": "some"}, "overlays='some'")):
        with pytest.raises(FlawsmithError, match=f"{words} is not possible"):
            predict(inspector, image, tmp_path / "v", **choice)
    with pytest.raises(FlawsmithError, match="there are no images to inspect"):
        predict(inspector, [], tmp_path / "v")
    assert not (tmp_path / "v").exists()


def test_name_that_is_too_long_is_an_error_line_in_its_place(inspector, tmp_path):
    first, last, endless = grey(tmp_path / "a.png", 10), grey(tmp_path / "b.png", 10), tmp_path / ("x" * 300)

    written = predict(inspector, [first, endless, last], tmp_path / "out")

    rows = lines(written.lines)
    assert [row["image"] for row in rows] == [str(first), str(endless), str(last)]
    assert ["error" in row for row in rows] == [False, True, False]
    assert written.complete


def test_name_that_is_too_long_and_nothing_else_is_an_error(tmp_path):
    with pytest.raises(FlawsmithError, match="there is no file or folder"):
        given_images([tmp_path / ("x" * 300)], tmp_path)


def test_folder_that_may_not_be_read_keeps_the_results_before_it(inspector, tmp_path, monkeypatch):
    for name in ("a.png", "b.png", "locked/c.png"):
        grey(tmp_path / "in" / name, 10)
    scandir = os.scandir

    def refuse(folder: Path) -> Any:
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    # The tests may run as root, whom no permission stops.
    monkeypatch.setattr(os, "scandir", refuse)

    with pytest.raises(InterruptedPredictionError, match=r"locked: cannot list this folder .* first 2 images are in"):
        predict(inspector, [tmp_path / "in"], tmp_path / "out")

    rows = lines(tmp_path / "out" / "verdicts.jsonl")
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png"]


def test_no_images_at_all_is_an_error_that_leaves_no_files(inspector, tmp_path):
    (tmp_path / "in").mkdir()

    with pytest.raises(FlawsmithError, match="there are no images in"):
        predict(inspector, [tmp_path / "in"], tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_memory_does_not_grow_with_the_number_of_images(inspector, tmp_path):
    paths = [grey(tmp_path / f"{index}.png", 10) for index in range(4)]

    def peak(times: int) -> int:
        tracemalloc.start()
        predict(inspector, paths * times, tmp_path / f"out{times}")
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(1)
    few, many = peak(10), peak(210)
    # 800 more records would take over 500 kB if they were kept; images in flight vary the peak by 100 kB.
    assert many - few < 250_000


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not UTF-8")
def test_name_that_is_not_utf8_is_written_legibly(inspector, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    grey(tmp_path / "plain.png", 200).rename(odd)

    written = predict(inspector, [odd], tmp_path / "out", overlays="all")

    assert lines(written.lines)[0]["image"].endswith(r"caf\xe9.png")
    assert written.table.read_text(encoding="utf-8").count("\n") == 2
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 1


def test_printable_leaves_ordinary_names_alone():
    assert printable("Förderband/Teil 1.png") == "Förderband/Teil 1.png"


def test_result_names_stay_within_what_file_systems_allow():
    assert len(os.fsencode(result_name(7, "Ä" * 200 + ".png", ".png"))) <= 255
