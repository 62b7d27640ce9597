"""Damaged image files of every format: one line or an image, in bounded time and memory, and nothing printed."""

from __future__ import annotations

import sys
from importlib import import_module
from itertools import islice
from pathlib import Path

import pytest
from tests.field.image_fuzzer import damaged_files, fault_of, seeds

from flawsmith.runtime.image import decode

FILES = 250
CORPUS = sorted((Path(__file__).parent / "image_finds").glob("*"))


@pytest.mark.parametrize("name", seeds())
def test_files_that_are_to_be_damaged_are_whole(name: str) -> None:
    height, width, _ = decode(seeds()[name]).shape

    assert (height, width) in ((60, 84), (84, 60), (2, 3))


def test_damaged_file_gives_an_image_or_one_line(seed: int) -> None:
    faults = {
        f"{number} {name}": fault_of(content)
        for number, (name, content) in enumerate(islice(damaged_files(seed), FILES))
    }

    assert {name: fault for name, fault in faults.items() if fault} == {}


def test_fuzzer_runs_where_the_system_tells_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    monkeypatch.delitem(sys.modules, "tests.field.image_fuzzer")

    fuzzer = import_module("tests.field.image_fuzzer")

    assert fuzzer.fault_of(seeds()["png"]) == ""


@pytest.mark.parametrize("path", CORPUS, ids=[path.name for path in CORPUS])
def test_find_of_the_fuzzer_stays_mended(path: Path) -> None:
    assert fault_of(path.read_bytes()) == ""
