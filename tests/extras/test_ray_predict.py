"""Verdicts made on a Ray cluster: the files of the plain command, whatever dies on the way."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from flawsmith.cli.main import main
from flawsmith.extras.ray import IMAGES_A_BATCH, _enter, predict_on_cluster
from flawsmith.pipeline.predict import InterruptedPredictionError, predict
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector

IMAGES = 4 * IMAGES_A_BATCH
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


def test_image_that_ends_every_worker_stops_the_command_in_the_end(
    on_ray: Any, bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DeadlyWorker:
        def __init__(self, *_: Any) -> None:
            pass

        def __call__(self, batch: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("flawsmith.extras.ray._ImageWorker", DeadlyWorker)

    with pytest.raises(FlawsmithError, match="the Ray cluster gave up: ") as caught:
        predict_on_cluster(bundle, [photos], tmp_path / "out", address="auto")

    assert "\n" not in str(caught.value)


def test_node_that_does_not_see_the_same_folders_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    for folder, needs in (("nowhere", ()), (str(tmp_path), (Path("out"),))):
        with pytest.raises(FlawsmithError, match=r"does not see .*(nowhere|out): nodes must see the same paths"):
            _enter(folder, *needs)
    _enter(str(tmp_path), tmp_path)


@pytest.mark.parametrize("decoders", [0, -1])
def test_workers_without_decoders_are_refused(bundle: Bundle, photos: Path, tmp_path: Path, decoders: int) -> None:
    with pytest.raises(FlawsmithError, match="decoders must be at least 1"):
        predict_on_cluster(bundle, [photos], tmp_path / "out", address="auto", decoders=decoders)


def test_nothing_to_inspect_is_said_before_anything_is_started(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="there is no file or folder"):
        predict_on_cluster(bundle, [tmp_path / "nowhere"], tmp_path / "out", address="auto")

    assert not (tmp_path / "out").exists()
