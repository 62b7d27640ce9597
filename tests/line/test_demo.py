"""Parts that come along in the demonstration."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.line.conftest import picture

from flawsmith.line.demo import PassingParts, teach_demo
from flawsmith.line.station import Site
from flawsmith.line.workspace import Workspace
from flawsmith.runtime.errors import FlawsmithError


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    for name, brightness in (("good", 60), ("scratch", 220)):
        (tmp_path / "test" / name).mkdir(parents=True)
        for note in range(4):
            (tmp_path / "test" / name / f"{note}.png").write_bytes(picture(brightness, note=note))
    return tmp_path / "test"


def test_parts_come_along_with_flaws_among_them(new_site: Callable[..., Site], parts: Path) -> None:
    site = new_site()
    passing = PassingParts(site.lines["bolt"], parts, seed=1, rate=400)
    passing.start()

    end = time.monotonic() + 10
    while time.monotonic() < end:
        verdicts = [record.verdict for record in site.store.page("bolt", count=1000)]
        if {"pass", "reject"} <= set(verdicts) and len(verdicts) > 60:
            break
        time.sleep(0.02)
    passing.close()
    passing.join(5)

    assert not passing.is_alive()
    assert 0 < verdicts.count("reject") < len(verdicts) / 3


def test_a_folder_without_flaws_is_no_demonstration(new_site: Callable[..., Site], parts: Path) -> None:
    with pytest.raises(FlawsmithError, match="no good and flawed"):
        PassingParts(new_site().lines["bolt"], parts / "good")


def test_the_demonstration_teaches_what_it_is_given(tmp_path: Path, parts: Path) -> None:
    workspace = Workspace(tmp_path / "studio")

    teach_demo(workspace, "bolt", parts / "good")

    assert len(workspace.teaching("bolt").images()) == 4
    workspace.close()
