"""The feature cache: shared, content-keyed, bounded, and unharmed by killed writers."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch

from flawsmith.features.cache import (
    SHARD_IMAGES,
    FeatureCache,
    GraphCache,
    ImageCache,
    cache_cap,
    cache_folder,
    check_cache,
    fill_images,
)
from flawsmith.runtime.errors import FlawsmithError

SHAPES = ((4, 6, 5), (8, 3, 3))
IMAGE_BYTES = 2 * sum(int(np.prod(shape)) for shape in SHAPES)


def maps_of(content: str) -> list[np.ndarray]:
    """Level maps that are a function of an image's content."""
    rng = np.random.default_rng(list(content.encode()))
    return [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]


class Recorder:
    """An extractor that notes which images it was asked for."""

    def __init__(self, hashes: Sequence[str]) -> None:
        self.hashes, self.asked = list(hashes), list[str]()

    def __call__(self, rows: Sequence[int]) -> Iterator[list[np.ndarray]]:
        for row in rows:
            self.asked.append(self.hashes[row])
            yield maps_of(self.hashes[row])


Fill = Callable[..., Recorder]


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """``fill(hashes)`` asks the cache for these images, checks every value, and returns what was extracted."""

    def run(hashes: Sequence[str], *, key: str = "one", cap: int = 10**9) -> Recorder:
        recorder = Recorder(hashes)
        table = FeatureCache(key, tmp_path, cap).table(hashes, recorder)
        assert len(table) == len(hashes)
        for row, content in enumerate(hashes):
            for level, expected in zip(table.batch([row]), maps_of(content), strict=True):
                np.testing.assert_allclose(level[0].numpy(), expected, atol=2e-3, rtol=1e-3)
        return recorder

    return run


def shards(root: Path) -> list[Path]:
    return sorted(index.parent for index in root.glob("features/*/*/index.json"))


def test_second_run_extracts_nothing(fill: Fill) -> None:
    first = fill(["a", "b", "c"])
    second = fill(["a", "b", "c"])

    assert first.asked == ["a", "b", "c"]
    assert second.asked == []


def test_order_and_names_do_not_matter_but_content_does(fill: Fill) -> None:
    fill(["a", "b", "c"])

    assert fill(["c", "new", "a"]).asked == ["new"]


def test_copies_of_an_image_are_extracted_once(fill: Fill) -> None:
    assert fill(["a", "b", "a", "a"]).asked == ["a", "b"]


def test_another_extractor_shares_nothing(fill: Fill) -> None:
    fill(["a"], key="one")

    assert fill(["a"], key="two").asked == ["a"]


def test_many_images_take_several_shards(fill: Fill, tmp_path: Path) -> None:
    hashes = [f"image {number}" for number in range(2 * SHARD_IMAGES + 3)]

    assert fill(hashes).asked == hashes
    assert fill(hashes).asked == []
    assert len(shards(tmp_path)) == 3


def test_table_reads_rows_in_any_order_as_float32(tmp_path: Path) -> None:
    hashes = ["a", "b", "c"]
    table = FeatureCache("one", tmp_path, 10**9).table(hashes, Recorder(hashes))

    levels = table.batch(np.array([2, 0, 2]))

    assert table.channels == (4, 8)
    assert table.grids == ((6, 5), (3, 3))
    assert [level.dtype for level in levels] == [torch.float32] * 2
    assert torch.equal(levels[0][0], levels[0][2])
    np.testing.assert_allclose(levels[1][1].numpy(), maps_of("a")[1], atol=2e-3, rtol=1e-3)


def test_values_beyond_half_precision_are_clipped_not_infinite(tmp_path: Path) -> None:
    table = FeatureCache("one", tmp_path, 10**9).table(
        ["a"], lambda rows: iter([[np.full((1, 2, 2), 1e9, np.float32)]])
    )

    assert torch.isfinite(table.batch([0])[0]).all()


WRITER = """
import signal, sys
from pathlib import Path
import numpy as np
from flawsmith.features.cache import FeatureCache

def wait(file, array, **options):
    file.write_bytes(b"half a file")
    print(file.parent.name, flush=True)
    signal.pause()

np.save = wait
FeatureCache("one", Path(sys.argv[1]), 10**9).write(["x"], [np.zeros((1, 2), np.float16)])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="waits for a signal")
def test_leftovers_of_a_killed_writer_are_removed_and_those_of_a_living_one_kept(fill: Fill, tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    dead, living = (writer.stdout.readline().strip() for writer in writers if writer.stdout is not None)
    writers[0].kill()
    writers[0].wait()

    fill(["a"])

    names = {path.name for path in (tmp_path / "features" / "one").glob("tmp-*")}
    writers[1].kill()
    writers[1].communicate()
    assert dead not in names
    assert names == {living, f"{living}.lock"}
    fill(["b"])
    assert not list(tmp_path.glob("features/one/tmp-*"))


def test_killed_extraction_leaves_whole_shards_alone(fill: Fill, tmp_path: Path) -> None:
    hashes = [f"image {number}" for number in range(SHARD_IMAGES + 5)]

    def killed(rows: Sequence[int]) -> Iterator[list[np.ndarray]]:
        for row in rows:
            if row == SHARD_IMAGES + 2:
                raise KeyboardInterrupt
            yield maps_of(hashes[row])

    with pytest.raises(KeyboardInterrupt):
        FeatureCache("one", tmp_path, 10**9).table(hashes, killed)

    assert fill(hashes).asked == hashes[SHARD_IMAGES:]


def test_two_writers_at_once_leave_one_whole_shard(tmp_path: Path) -> None:
    hashes, both_extract = ["a", "b", "c"], Barrier(2)

    def write() -> torch.Tensor:
        def extract(rows: Sequence[int]) -> Iterator[list[np.ndarray]]:
            both_extract.wait(timeout=60)
            return (maps_of(hashes[row]) for row in rows)

        return FeatureCache("one", tmp_path, 10**9).table(hashes, extract).batch([0, 1, 2])[0]

    with ThreadPoolExecutor(2) as pool:
        first, second = (future.result() for future in [pool.submit(write) for _ in range(2)])

    assert torch.equal(first, second)
    assert len(shards(tmp_path)) == 1
    assert not list(tmp_path.glob("features/one/tmp-*"))


def test_images_are_read_once_for_all_caches_that_lack_them(tmp_path: Path) -> None:
    hashes = ["a", "b", "a", "c"]
    small, large = (ImageCache(key, tmp_path, 10**9) for key in ("small", "large"))
    sides, asked = (2, 3), []

    def read(lacking: Mapping[int, Sequence[int]]) -> Iterator[list[np.ndarray]]:
        for row, caches in lacking.items():
            asked.append((row, list(caches)))
            yield [np.full((sides[cache], 4, 3), row, np.uint8) for cache in caches]

    fill_images([(small, hashes[:1])], read)
    fill_images([(small, hashes), (large, hashes)], read)
    fill_images([(small, hashes), (large, hashes)], read)

    assert asked == [(0, [0]), (0, [1]), (1, [0, 1]), (3, [0, 1])]
    assert [int(large.table(hashes)[row].max()) for row in range(4)] == [0, 1, 0, 3]
    assert large.table(hashes)[3].shape == (3, 4, 3)
    assert large.table(hashes)[3].dtype == np.uint8


def cut_short(shard: Path) -> None:
    level = shard / "level_1.npy"
    level.write_bytes(level.read_bytes()[:-7])


def empty(shard: Path) -> None:
    (shard / "level_0.npy").write_bytes(b"")


def without_a_level(shard: Path) -> None:
    (shard / "level_1.npy").unlink()


def without_rows(shard: Path) -> None:
    np.save(shard / "level_0.npy", np.zeros((1, *SHAPES[0]), np.float16))


def garbled_index(shard: Path) -> None:
    (shard / "index.json").write_text("{broken")


def foreign_index(shard: Path) -> None:
    (shard / "index.json").write_text('{"images": 3}')


def pickled(shard: Path) -> None:
    np.save(shard / "level_0.npy", np.array([{"run": "code"}] * 3, dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    "damage", [cut_short, empty, without_a_level, without_rows, garbled_index, foreign_index, pickled]
)
def test_damaged_shard_is_computed_anew(fill: Fill, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    fill(["a", "b", "c"])
    (shard,) = shards(tmp_path)
    damage(shard)

    assert fill(["a", "b", "c"]).asked == ["a", "b", "c"]
    assert fill(["a", "b", "c"]).asked == []


@pytest.mark.parametrize("name", ["level_0.npy", "level_1.npy"])
@pytest.mark.parametrize("place", [-1, 0.5, 20])
def test_flipped_bit_is_computed_anew_and_said(fill: Fill, tmp_path: Path, name: str, place: float) -> None:
    fill(["a", "b", "c"])
    (shard,) = shards(tmp_path)
    content = bytearray((shard / name).read_bytes())
    content[int(place * len(content)) if 0 < place < 1 else int(place)] ^= 4
    (shard / name).write_bytes(content)

    with pytest.warns(UserWarning, match="has changed on disk and is computed again"):
        assert fill(["a", "b", "c"]).asked == ["a", "b", "c"]
    assert fill(["a", "b", "c"]).asked == []


def test_run_keeps_what_it_has_found_though_another_makes_room(tmp_path: Path) -> None:
    """Two trainings that share a full cache: each removes what the other has just found or written."""
    hashes, cap = [f"image {number}" for number in range(SHARD_IMAGES + 2)], (SHARD_IMAGES + 9) * IMAGE_BYTES
    FeatureCache("one", tmp_path, cap).table(hashes[:SHARD_IMAGES], Recorder(hashes))

    def crowded_out(rows: Sequence[int]) -> Iterator[list[np.ndarray]]:
        FeatureCache("two", tmp_path, cap).table(hashes[: len(hashes) - 8], Recorder(hashes))
        return Recorder(hashes)(rows)

    table = FeatureCache("one", tmp_path, cap).table(hashes, crowded_out)

    for row in (0, SHARD_IMAGES - 1, SHARD_IMAGES, len(hashes) - 1):
        for level, expected in zip(table.batch([row]), maps_of(hashes[row]), strict=True):
            np.testing.assert_allclose(level[0].numpy(), expected, atol=2e-3, rtol=1e-3)


def test_table_that_another_process_cannot_open_any_more_says_so(tmp_path: Path) -> None:
    table = FeatureCache("one", tmp_path, 10**9).table(["a"], Recorder(["a"]))
    pickled_table = pickle.dumps(table)
    assert torch.equal(pickle.loads(pickled_table).batch([0])[0], table.batch([0])[0])
    shutil.rmtree(tmp_path / "features" / "one")

    with pytest.raises(FlawsmithError, match="another run has made room"):
        pickle.loads(pickled_table)


def test_full_cache_drops_the_least_recently_used_shard(fill: Fill, tmp_path: Path) -> None:
    cap = 4 * IMAGE_BYTES  # two shards with their headers and indices, not three
    for key in ("first", "second"):
        fill(["a"], key=key, cap=cap)
    now = 1_700_000_000
    for shard in shards(tmp_path):
        os.utime(shard / "index.json", (now, now) if shard.parent.name == "second" else (now + 9, now + 9))

    fill(["a"], key="third", cap=cap)

    assert {shard.parent.name for shard in shards(tmp_path)} == {"first", "third"}


def test_use_makes_a_shard_young(fill: Fill, tmp_path: Path) -> None:
    fill(["a"])
    (shard,) = shards(tmp_path)
    os.utime(shard / "index.json", (1, 1))

    fill(["a"])

    assert (shard / "index.json").stat().st_mtime > 1


def test_dataset_larger_than_the_cache_says_so(fill: Fill) -> None:
    with pytest.raises(FlawsmithError, match="FLAWSMITH_CACHE_GB") as error:
        fill(["a", "b"], cap=IMAGE_BYTES)

    assert "\n" not in str(error.value)


def test_cap_and_folder_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLAWSMITH_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("FLAWSMITH_CACHE_GB", "1.5")

    assert cache_folder() == tmp_path / "here"
    assert cache_cap() == 1_500_000_000


@pytest.mark.parametrize("cap", ["plenty", "nan", "inf", "-1", "0", ""])
def test_cap_that_is_no_number_is_named(cap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAWSMITH_CACHE_GB", cap)

    with pytest.raises(FlawsmithError, match=f"FLAWSMITH_CACHE_GB is '{cap}'"):
        check_cache()


def no_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)


def home_is_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "file"))


def cache_is_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAWSMITH_CACHE", str(folder / "file"))


def xdg_is_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))


def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, whom no permission stops."""

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("FLAWSMITH_CACHE", str(folder))
    monkeypatch.setattr("flawsmith.features.cache.TemporaryFile", refuse)


@pytest.mark.skipif(sys.platform == "win32", reason="home folders are known by other names")
@pytest.mark.parametrize("place", [no_home, home_is_a_file, cache_is_a_file, xdg_is_a_file, read_only])
def test_cache_without_a_place_is_one_line_before_any_work(
    place: Callable[[Path, pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for name in ("FLAWSMITH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    place(tmp_path, monkeypatch)

    with pytest.raises(FlawsmithError, match=r"set FLAWSMITH_CACHE to a writable folder$") as error:
        check_cache()

    assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="home folders are known by other names")
@pytest.mark.parametrize(
    ("name", "value", "folder"),
    [
        ("FLAWSMITH_CACHE", "~/fast", "home/fast"),
        ("FLAWSMITH_CACHE", "", "home/.cache/flawsmith"),
        ("XDG_CACHE_HOME", "here", "home/.cache/flawsmith"),
        ("XDG_CACHE_HOME", "", "home/.cache/flawsmith"),
    ],
)
def test_cache_of_a_service_lies_in_its_home(
    name: str, value: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("FLAWSMITH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(name, value)

    assert cache_folder() == tmp_path / folder


def test_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "features").write_text("a file where the folder should be")

    with pytest.raises(FlawsmithError, match="FLAWSMITH_CACHE"):
        FeatureCache("one", tmp_path)


def test_a_graph_that_was_damaged_on_disk_is_made_anew(tmp_path: Path) -> None:
    assert GraphCache("one", tmp_path, 10**9).graph(lambda: b"a graph") == b"a graph"
    (file,) = tmp_path.rglob("level_0.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    with pytest.warns(UserWarning, match="has changed on disk"):
        assert GraphCache("one", tmp_path, 10**9).graph(lambda: b"another") == b"another"
    assert GraphCache("one", tmp_path, 10**9).graph(lambda: b"none") == b"another"


def test_a_graph_without_room_is_used_and_not_kept(tmp_path: Path) -> None:
    assert GraphCache("one", tmp_path, 3).graph(lambda: b"a graph") == b"a graph"

    assert shards(tmp_path) == []
