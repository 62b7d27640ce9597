"""Verdicts made on a Ray cluster: the files of the plain command, whatever dies on the way."""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from flawsmith.cli.main import main
from flawsmith.extras.ray import IMAGES_A_BATCH, TRIES, _Job, _row, _walk, _Worker, batch_size, predict_on_cluster
from flawsmith.pipeline.predict import InterruptedPredictionError, predict
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector

IMAGES = 8 * IMAGES_A_BATCH[0]
PATIENCE = 120  # seconds; only a machine that is busy needs them


@pytest.fixture(scope="module")
def bundle(tiny: ModuleType) -> Bundle:
    return tiny.make_bundle()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of different brightness in several folders; one is none, and one's name is not UTF-8."""
    root = tmp_path_factory.mktemp("line") / "photos"
    for number in range(IMAGES):
        folder = root / f"shift{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((40, 60, 3), (37 * number) % 256, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    (root / "shift1" / "004.png").write_bytes(b"no image")
    (root / "shift2" / "005.png").rename(root / "shift2" / os.fsdecode(b"005\xe9.png"))
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def job(folder: Path, **changes: Any) -> _Job:
    values = {"overlays": "none", "maps": False, "decoders": 1, "engine": None, **changes}
    return _Job(**{"folder": str(folder), "paths": (), "out": "out", "mark": ".", **values})


def workers() -> list[psutil.Process]:
    """The processes that inspect."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "MapWorker" in " ".join(process.info["cmdline"] or []) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_cluster_writes_the_files_of_the_plain_command(
    on_ray: Any, bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    model = tmp_path / "model.flaw"
    bundle.save(model)
    command = ["predict", str(model), "photos/shift2", "photos", "--maps", "--overlays", "--quiet"]

    plain = main([*command, "--out", str(tmp_path / "plain")])
    spread = main([*command, "--out", str(tmp_path / "spread"), "--ray", "auto"])

    assert (plain, spread) == (1, 1)  # all is written, one image could not be read
    written = content(tmp_path / "spread")
    assert written == content(tmp_path / "plain")
    assert len(written) > 2 * IMAGES


def test_images_of_a_killed_worker_are_inspected_again(
    on_ray: Any, bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    overlays = tmp_path / "spread" / "overlays"
    done_at_the_kill = total = IMAGES

    def kill_at_the_first_picture() -> None:
        nonlocal done_at_the_kill
        end = time.monotonic() + PATIENCE
        while not (overlays.is_dir() and any(overlays.iterdir())) and time.monotonic() < end:
            time.sleep(0.001)
        for worker in workers():
            worker.kill()
        done_at_the_kill = len(list(overlays.iterdir()))

    killer = threading.Thread(target=kill_at_the_first_picture)
    killer.start()
    predict(Inspector.load(bundle), [photos], tmp_path / "plain", overlays="all")
    spread = predict_on_cluster(bundle, [photos], tmp_path / "spread", address="auto", overlays="all")
    killer.join()

    assert done_at_the_kill < total - 1
    assert spread.complete
    assert content(tmp_path / "spread") == content(tmp_path / "plain")


def test_ctrl_c_keeps_what_is_complete_and_leaves_no_worker(
    on_ray: Any, bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    count = itertools.count(1)

    def stop_at_the_third(record: dict[str, Any]) -> None:
        if next(count) == 3:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedPredictionError) as caught:
        predict_on_cluster(bundle, [photos], tmp_path / "out", address="auto", seen=stop_at_the_third)

    assert caught.value.interrupted
    assert len((tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()) == 3
    assert sorted(path.name for path in (tmp_path / "out").glob("*.*")) == ["verdicts.csv", "verdicts.jsonl"]
    gone, still = psutil.wait_procs(workers(), timeout=60)
    assert not still, gone


def test_list_of_images_is_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def endless(paths: list[Path], out: Path) -> Iterator[Path]:
        nonlocal asked
        for asked in itertools.count(1):
            yield Path(f"{asked}.png")

    monkeypatch.setattr("flawsmith.extras.ray.given_images", endless)

    walk = _walk(None, job(tmp_path), ("photos",))
    first, second = next(walk), next(walk)
    walk.close()

    assert asked == 2 * IMAGES_A_BATCH[0]
    ((start, paths),) = [(row["index"], row["paths"]) for row in second.to_pylist()]
    assert start == len(first.to_pylist()[0]["paths"]) == IMAGES_A_BATCH[0]
    assert paths[0] == f"{start + 1}.png".encode()


def test_batches_grow_with_the_list_to_a_limit() -> None:
    assert [batch_size(index) for index in (0, 4096, 8192, 10**9)] == [16, 16, 32, 256]


def test_folder_that_cannot_be_listed_ends_the_work_after_the_images_before_it(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ending(paths: list[Path], out: Path) -> Iterator[Path]:
        yield Path("a.png")
        raise FlawsmithError("photos/b: cannot list this folder")

    monkeypatch.setattr("flawsmith.extras.ray.given_images", ending)
    (paths,) = _walk(None, job(tmp_path), ("photos",))

    row = worked(bundle, job(tmp_path), paths, monkeypatch)

    assert row["index"] == 0
    assert [json.loads(record)["image"] for record in row["records"]] == ["a.png"]
    assert "cannot list this folder" in row["refusal"]


def worked(bundle: Bundle, wanted: _Job, paths: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a worker makes of a batch of paths, in this process."""
    import ray

    monkeypatch.chdir(Path.cwd())  # a worker changes the folder
    monkeypatch.setattr(ray, "get", lambda given: given)
    (row,) = _Worker(wanted, bundle)(paths).to_pylist()
    return row


REFUSED: dict[str, Callable[[Path], tuple[_Job, str]]] = {
    "folder": lambda here: (job(here / "nowhere"), "it has no folder .*nowhere"),
    "images": lambda here: (job(here, paths=("photos",)), "it does not see photos; nodes must see"),
    "results": lambda here: (job(here, mark="out/.mark"), "it does not see out/.mark; nodes must see"),
    "version": lambda here: (job(here, version="0.0.1"), "not 0.0.1: install the same on all nodes"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_node_that_does_not_see_the_same_files_refuses(
    bundle: Bundle, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    given, words = REFUSED[what](tmp_path)

    row = worked(bundle, given, _row(7, "paths", [b"a.png", b"b.png"]), monkeypatch)

    assert (row["index"], row["records"]) == (7, [])
    assert re.search(words, row["refusal"])


def test_images_that_end_every_worker_are_given_up(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mark").mkdir()
    paths = _row(32, "paths", [b"a.png", b"b.png"])
    (tmp_path / "mark" / "32").write_bytes(b"." * (TRIES - 1))
    last_try = worked(bundle, job(tmp_path, mark="mark"), paths, monkeypatch)
    assert not (tmp_path / "mark" / "32").exists()

    (tmp_path / "mark" / "32").write_bytes(b"." * TRIES)
    given_up = worked(bundle, job(tmp_path, mark="mark"), paths, monkeypatch)

    assert (len(last_try["records"]), last_try["refusal"]) == (2, "")
    assert given_up["records"] == []
    assert f"the worker died {TRIES} times at one of a.png to b.png" in given_up["refusal"]


@pytest.mark.parametrize("decoders", [0, -1])
def test_workers_without_decoders_are_refused(bundle: Bundle, photos: Path, tmp_path: Path, decoders: int) -> None:
    with pytest.raises(FlawsmithError, match="decoders must be at least 1"):
        predict_on_cluster(bundle, [photos], tmp_path / "out", address="auto", decoders=decoders)


def test_nothing_to_inspect_is_said_before_anything_is_started(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="there is no file or folder"):
        predict_on_cluster(bundle, [tmp_path / "nowhere"], tmp_path / "out", address="auto")

    assert not (tmp_path / "out").exists()
