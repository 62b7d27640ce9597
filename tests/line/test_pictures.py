"""Which images are kept, for how long, and what a full disk changes."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flawsmith.line import pictures as module
from flawsmith.line.pictures import Pictures, Retention


def keep(pictures: Pictures, content: bytes, verdict: Any = "reject") -> tuple[str, bool]:
    name = hashlib.sha256(content).hexdigest()
    return name, pictures.keep(name, content, verdict)


def test_rejects_and_reviews_are_kept_and_passes_by_their_share(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path / "images", Retention(passes=0.3, keep_free=0))

    kept = [keep(pictures, f"pass {number}".encode(), "pass")[1] for number in range(400)]

    assert all(keep(pictures, verdict.encode(), verdict)[1] for verdict in ("reject", "review"))
    assert not keep(pictures, b"broken", "error")[1]
    assert 80 < sum(kept) < 160


def test_image_is_kept_once_and_read_back(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path, Retention(keep_free=0))

    names = {keep(pictures, b"the same")[0] for _ in range(3)}

    assert [pictures.read(name) for name in names] == [b"the same"]
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 1
    assert pictures.read("0" * 64) is None
    with pytest.raises(ValueError, match="SHA-256"):
        pictures.read("../../etc/passwd")


def test_old_images_go_and_passes_go_first_where_there_is_no_room(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path, Retention(days=10, gigabytes=250 / 2**30, passes=1, keep_free=0))
    suspects = [keep(pictures, bytes([number]) * 100)[0] for number in range(3)]
    passed = [keep(pictures, bytes([100 + number]) * 100, "pass")[0] for number in range(2)]
    now = 2_000_000_000.0
    for age, name in enumerate((*suspects, *passed)):
        written = now - 86400 * (11 if age == 0 else 5 - age)
        os.utime(next(tmp_path.rglob(name)), (written, written))

    removed = pictures.sweep(at=now)

    assert removed == 3
    assert [name for name in (*suspects, *passed) if pictures.read(name)] == suspects[1:]
    assert not pictures.too_large


def test_full_disk_is_warned_of_once_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures(tmp_path, Retention(keep_free=1))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))

    with pytest.warns(UserWarning, match="judged all the same") as warned:
        kept = [keep(pictures, bytes([number]))[1] for number in range(3)]

    assert kept == [False, False, False]
    assert len(warned) == 1
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_image_is_kept_while_the_folder_is_being_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures(tmp_path, Retention(keep_free=0))
    looking, go_on = threading.Event(), threading.Event()

    def slow_look() -> Iterator[Any]:
        looking.set()
        assert go_on.wait(10)
        return iter(())

    monkeypatch.setattr(pictures, "_files", slow_look)
    sweep = threading.Thread(target=pictures.sweep)
    sweep.start()
    assert looking.wait(10)
    kept: list[tuple[str, bool]] = []
    keeper = threading.Thread(target=lambda: kept.append(keep(pictures, b"a reject")))
    keeper.start()
    keeper.join(10)
    before = list(kept)
    go_on.set()
    sweep.join(10)

    assert [is_kept for _, is_kept in before] == [True]


def test_image_that_comes_again_is_kept_as_long_as_if_it_were_new(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path, Retention(days=10, keep_free=0))
    name, _ = keep(pictures, b"the same")
    long_ago = time.time() - 9 * 86400
    os.utime(next(tmp_path.rglob(name)), (long_ago, long_ago))

    keep(pictures, b"the same")
    removed = pictures.sweep(at=time.time() + 2 * 86400)

    assert (removed, pictures.read(name)) == (0, b"the same")


def test_image_that_is_swept_at_this_moment_is_kept_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures(tmp_path, Retention(keep_free=0))
    keep(pictures, b"the same")

    def sweep_first(path: Path) -> None:
        path.unlink(missing_ok=True)
        raise FileNotFoundError

    monkeypatch.setattr(module.os, "utime", sweep_first)
    name, is_kept = keep(pictures, b"the same")

    assert (is_kept, pictures.read(name)) == (True, b"the same")


def test_image_that_a_person_has_picked_is_there(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path, Retention(keep_free=0))
    name = hashlib.sha256(b"picked").hexdigest()

    pictures.pick(name, b"picked")

    assert (pictures.has(name), pictures.read(name)) == (True, b"picked")
