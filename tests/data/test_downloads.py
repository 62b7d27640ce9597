"""Fetching public data sets, from a server on this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flawsmith.cli.main import main
from flawsmith.data import downloads
from flawsmith.data.downloads import DOWNLOADS, Download, download, find_download
from flawsmith.data.public_sets import OFFICIAL
from flawsmith.runtime.errors import FlawsmithError

pytest.importorskip("pooch")


class Server:
    """Serves one archive; can break off after some bytes, and knows what was asked for."""

    def __init__(self, content: bytes) -> None:
        self.content, self.ends_after = content, len(content)
        self.ranges: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                server.ranges.append(asked)
                first = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                if first >= len(server.content):
                    self.send_response(416)
                    self.end_headers()
                    return
                body = server.content[first:]
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: max(0, server.ends_after - first)])

            def log_message(self, *words: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}/archive"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def packed(name: str) -> bytes:
    """A small set as an archive, tar or zip by its name."""
    content, stream = bytes(range(256)) * 8000, io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("part/train/good/000.png", content)
    else:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            entry = tarfile.TarInfo("part/train/good/000.png")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture(params=["set.tar", "set.zip"])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with a set called ``small``, whose hash is published."""
    content = packed(request.param)
    server = Server(content)
    small = Download(
        key="small",
        name="a small set",
        page="http://127.0.0.1/page",
        licence="anything goes.",
        archive=request.param,
        address=server.address,
        hash=f"sha256:{hashlib.sha256(content).hexdigest()}",
        hash_from="the test",
        folder="small",
    )
    monkeypatch.setattr(downloads, "DOWNLOADS", {"small": small})
    yield server
    server.close()


def change(**fields: Any) -> None:
    downloads.DOWNLOADS["small"] = dataclasses.replace(downloads.DOWNLOADS["small"], **fields)  # type: ignore[index]


def test_set_is_fetched_checked_and_unpacked(served: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []

    folder = download("small", tmp_path, accept_licence=True, on_bytes=lambda *counts: told.append(counts))

    assert folder == tmp_path / "small"
    assert (folder / "part" / "train" / "good" / "000.png").stat().st_size == 256 * 8000
    assert told[-1] == (len(served.content), len(served.content))
    assert not list(tmp_path.glob("*.part"))


def test_nothing_is_asked_for_before_the_licence_is_accepted(served: Server, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match=r"licence has to be accepted first: anything goes\. Read it"):
        download("small", tmp_path / "sets")

    assert served.ranges == []
    assert not (tmp_path / "sets").exists()


def test_fetch_that_was_broken_off_goes_on_where_it_was(served: Server, tmp_path: Path) -> None:
    served.ends_after = len(served.content) // 2
    with pytest.raises(FlawsmithError, match="the same command goes on where it was"):
        download("small", tmp_path, accept_licence=True)
    served.ends_after = len(served.content)

    download("small", tmp_path, accept_licence=True)

    assert served.ranges == [None, f"bytes={len(served.content) // 2}-"]
    assert (tmp_path / "small" / "part" / "train" / "good" / "000.png").exists()


def test_fetch_that_had_ended_before_it_was_moved_is_taken(served: Server, tmp_path: Path) -> None:
    (tmp_path / f"{downloads.DOWNLOADS['small'].archive}.part").write_bytes(served.content)

    download("small", tmp_path, accept_licence=True)

    assert (tmp_path / "small" / "part" / "train" / "good" / "000.png").exists()


def test_folder_that_cannot_be_is_named_with_the_option_that_changes_it(served: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(FlawsmithError, match="file is a file: give a folder with --to"):
        download("small", tmp_path / "file", accept_licence=True)


def test_set_that_is_being_fetched_is_not_fetched_twice(served: Server, tmp_path: Path) -> None:
    refused: list[FlawsmithError] = []

    def fetch_as_well(*_: object) -> None:
        with pytest.raises(FlawsmithError, match="is being fetched by another command: wait") as caught:
            download("small", tmp_path, accept_licence=True)
        refused.append(caught.value)

    download("small", tmp_path, accept_licence=True, on_bytes=fetch_as_well)

    assert refused
    assert len(served.ranges) == 1


def test_other_file_than_the_published_one_is_refused(served: Server, tmp_path: Path) -> None:
    change(hash=f"sha256:{'0' * 64}")

    with pytest.raises(FlawsmithError, match="is not the published file"):
        download("small", tmp_path, accept_licence=True)

    assert not (tmp_path / "small").exists()


def test_page_is_named_where_a_form_stands_before_the_data_and_an_archive_put_there_is_taken(
    served: Server, tmp_path: Path
) -> None:
    change(address=None, why="The page asks for a form.")
    with pytest.raises(FlawsmithError, match=r"asks for a form\. Get set\.\w+ from http://127\.0\.0\.1/page, put it"):
        download("small", tmp_path, accept_licence=True)
    (tmp_path / downloads.DOWNLOADS["small"].archive).write_bytes(served.content)

    download("small", tmp_path, accept_licence=True)

    assert (tmp_path / "small" / "part" / "train" / "good" / "000.png").exists()
    assert served.ranges == []


def test_archive_that_leads_out_of_the_folder_writes_nothing_there(served: Server, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo("../outside.txt")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "set.tar").write_bytes(stream.getvalue())
    change(hash=None, archive="set.tar")

    with pytest.raises(FlawsmithError, match="cannot be unpacked"):
        download("small", tmp_path / "sets", accept_licence=True)

    assert not (tmp_path / "outside.txt").exists() and not (tmp_path / "sets" / "outside.txt").exists()


@pytest.mark.parametrize("ending", ["zip", "tar.xz", "tar.gz"])
def test_archive_that_is_damaged_within_is_refused_in_a_line(ending: str, served: Server, tmp_path: Path) -> None:
    noise, stream = random.Random(0).randbytes(200_000).hex().encode(), io.BytesIO()
    if ending == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("000.png", noise)
    else:
        with tarfile.open(fileobj=stream, mode=f"w:{ending.removeprefix('tar.')}") as archive:
            entry = tarfile.TarInfo("000.png")
            entry.size = len(noise)
            archive.addfile(entry, io.BytesIO(noise))
    content = bytearray(stream.getvalue())
    content[100_000:100_200] = b"\xff" * 200
    (tmp_path / f"set.{ending}").write_bytes(content)
    change(hash=None, archive=f"set.{ending}")

    with pytest.raises(FlawsmithError, match="cannot be unpacked"):
        download("small", tmp_path, accept_licence=True)


def test_python_that_cannot_keep_an_archive_within_its_folder_unpacks_none(
    served: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    (tmp_path / "set.tar").write_bytes(packed("set.tar"))
    change(hash=None, archive="set.tar")

    with pytest.raises(FlawsmithError, match=r"needs Python 3\.10\.12"):
        download("small", tmp_path, accept_licence=True)


def test_sets_of_the_plans_have_a_page_and_a_licence() -> None:
    assert {each.key for each in OFFICIAL} | {"dtd"} == set(DOWNLOADS)
    for each in DOWNLOADS.values():
        assert each.page.startswith("https://") and each.licence and each.archive
        assert (each.address is None) == bool(each.why)
        assert (each.hash is None) == (not each.hash_from)
    assert find_download("mvtec_ad").key == "mvtec"
    with pytest.raises(FlawsmithError, match="did you mean 'visa'"):
        find_download("viza")


def test_command_shows_the_licence_first(served: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "small", "--to", str(tmp_path)]) == 2
    assert "licence: anything goes." in capsys.readouterr().err
    assert served.ranges == []

    assert main(["download", "small", "--to", str(tmp_path), "--accept-licence", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path / "small")

    assert main(["download", "--list"]) == 0
    assert "anything goes." in capsys.readouterr().out
