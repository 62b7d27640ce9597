"""A shadow run: what another version would have said is written, and the line never waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.line.conftest import picture
from tests.line.test_versions import SECONDS, activate, add, judge

from flawsmith.line import shadow as shadow_module
from flawsmith.line.model import LoadedModel
from flawsmith.line.record import Trigger
from flawsmith.line.station import Line, SwapConflictError
from flawsmith.line.store import UnwritableError

pytestmark = pytest.mark.usefixtures("_trial_in_this_process")
STRICT = {"limit": 0.3, "map_limit": 0.3}


def until(condition: Callable[[], object]) -> None:
    """Wait for another thread, at most `SECONDS`."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.002)


def is_open(line: Line) -> bool:
    return line.shadow is not None and line.shadow._is_open


def begin(site: Any, path: Path, parts: int) -> str:
    sha256 = add(site, path)
    site.lines["bolt"].begin_shadow(sha256, parts=parts, who="anna")
    until(lambda: is_open(site.lines["bolt"]))
    return sha256


def test_verdicts_that_would_change_are_counted_listed_and_stand_in_the_audit(
    new_site: Any, new_model: Callable[..., Path]
) -> None:
    site = new_site()
    line = site.lines["bolt"]
    sha256 = begin(site, new_model(1.0, **STRICT), parts=6)
    run = line.versions.shadow.run

    records = [judge(line, brightness) for brightness in (20, 90, 120, 250, 20, 95, 90, 90)]
    until(lambda: line.versions.shadow is None)
    line.activate(sha256, who="anna", reason="dents were missed")

    changes = {"pass -> pass": 2, "pass -> reject": 2, "review -> reject": 1, "reject -> reject": 1}
    flips = site.store.shadow_flips(run, 100)
    assert site.store.shadow_changes(run) == changes  # six parts, no more
    assert [flip.record for flip in flips] == [records[place].id for place in (5, 2, 1)]
    assert (flips[0].before, flips[0].after) == ("pass", "reject")
    assert flips[0].times_limit == pytest.approx(95 / 255 / 0.3, rel=1e-4)
    ended, activated = site.store.entries(kind="model", line="bolt", count=2)[::-1]
    assert (ended.facts["why"], ended.facts["changes"], ended.who) == ("complete", changes, "service")
    assert activated.facts["shadow"] == {"run": run, "changes": changes, "flipped": [flip.record for flip in flips]}
    assert [record.verdict for record in records] == [
        *("pass", "pass", "review", "reject", "pass", "pass", "pass", "pass")
    ]


def test_slow_shadow_neither_delays_nor_drops_a_part(
    new_site: Any, new_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = new_site(queue=1)
    line = site.lines["bolt"]
    gate, judged = threading.Event(), shadow_module._judged

    def slow(*arguments: Any) -> Any:
        assert gate.wait(SECONDS)
        return judged(*arguments)

    monkeypatch.setattr(shadow_module, "_judged", slow)
    begin(site, new_model(1.0, **STRICT), parts=1000)

    records = [judge(line) for _ in range(50)]  # each has its record before the shadow has judged any
    counts, missed = dict(line.shadow.counts), line.shadow.missed
    gate.set()
    until(lambda: sum(line.shadow.counts.values()) == shadow_module.WAITING)

    assert [record.id for record in records] == list(range(1, 51))
    assert (counts, missed) == ({}, 50 - shadow_module.WAITING)
    assert len(line.shadow._waiting) == 0


def test_images_that_wait_for_a_shadow_have_a_bound_in_bytes(
    new_site: Any, new_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = new_site()
    line = site.lines["bolt"]
    gate = threading.Event()
    monkeypatch.setattr(shadow_module, "_judged", lambda *_: gate.wait(SECONDS))
    monkeypatch.setattr(shadow_module, "WAITING_BYTES", 3 * len(picture(20)))
    begin(site, new_model(1.0), parts=1000)

    for _ in range(5):
        judge(line)
    try:
        assert (len(line.shadow._waiting), line.shadow.missed) == (3, 2)
    finally:
        line.shadow.stop()
        gate.set()


def test_shadow_that_cannot_be_computed_says_so_and_harms_no_part(
    new_site: Any, new_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = new_site()
    line = site.lines["bolt"]

    opened = line._opened
    monkeypatch.setattr(line, "_opened", lambda sha256, threads=None: broken(opened(sha256, threads)))
    sha256 = begin(site, new_model(1.0), parts=2)

    verdicts = [judge(line).verdict for _ in range(2)]
    until(lambda: line.versions.shadow is None)

    assert verdicts == ["pass", "pass"]
    assert site.store.shadow_changes(line.versions.runs[sha256].run) == {"pass -> error": 2}


def broken(model: LoadedModel) -> LoadedModel:
    def fail(_: Any) -> Any:
        raise RuntimeError("broken")

    model.inspector.engine.run = fail  # type: ignore[method-assign]
    return model


def test_shadow_whose_file_is_gone_ends_and_says_why(new_site: Any, new_model: Callable[..., Path]) -> None:
    site = new_site()
    line = site.lines["bolt"]
    sha256 = add(site, new_model(1.0, **STRICT))
    site.files.path(sha256).unlink()

    line.begin_shadow(sha256, parts=3, who="anna")
    until(lambda: line.versions.shadow is None)

    assert "no such model file" in line.versions.runs[sha256].ended
    assert judge(line).verdict == "pass"


def test_stopped_shadow_judges_no_more_and_keeps_what_it_showed(new_site: Any, new_model: Callable[..., Path]) -> None:
    site = new_site()
    line = site.lines["bolt"]
    sha256 = begin(site, new_model(1.0, **STRICT), parts=1000)
    judge(line, 100)
    until(lambda: line.shadow.counts)

    line.stop_shadow(sha256, who="otto")
    judge(line, 100)

    order = line.versions.runs[sha256]
    assert (order.ended, line.versions.state(sha256)) == ("stopped", "kept")
    assert site.store.shadow_changes(order.run) == line.shadow_changes(order) == {"pass -> reject": 1}
    assert site.store.entries(kind="model", count=1)[0].who == "otto"


def test_activated_shadow_ends(new_site: Any, new_model: Callable[..., Path]) -> None:
    site = new_site()
    line = site.lines["bolt"]
    sha256 = begin(site, new_model(1.0, **STRICT), parts=1000)

    line.activate(sha256, who="anna", reason="no doubt")

    assert (line.versions.shadow, line.versions.runs[sha256].ended) == (None, "activated")
    assert judge(line, 100).verdict == "reject"


def test_shadow_goes_on_after_a_restart(new_site: Any, new_model: Callable[..., Path]) -> None:
    site = new_site()
    sha256 = begin(site, new_model(1.0, **STRICT), parts=3)
    judge(site.lines["bolt"], 100)
    until(lambda: site.lines["bolt"].shadow.counts)
    site.close()

    again = new_site()
    line = again.lines["bolt"]
    until(lambda: is_open(line))
    for _ in range(5):
        judge(line, 100)
    until(lambda: line.versions.shadow is None)

    assert again.store.shadow_changes(line.versions.runs[sha256].run) == {"pass -> reject": 3}


def test_full_disk_costs_a_shadow_its_verdicts_and_the_line_nothing(
    new_site: Any, new_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = new_site()
    line = site.lines["bolt"]
    begin(site, new_model(1.0, **STRICT), parts=1000)

    def full(*_: Any) -> None:
        raise UnwritableError("full")

    with monkeypatch.context() as patch:
        patch.setattr(site.store, "add_shadow", full)
        assert judge(line, 100).verdict == "pass"
        until(lambda: line.shadow.counts)
        line.shadow.stop()

    assert line.shadow.missed == 1


def test_second_shadow_waits_for_the_first_to_end(new_site: Any, new_model: Callable[..., Path]) -> None:
    site = new_site()
    begin(site, new_model(1.0, **STRICT), parts=1000)
    other = add(site, new_model(1.5))

    with pytest.raises(SwapConflictError, match="a shadow run goes on: stop it first"):
        site.lines["bolt"].begin_shadow(other, parts=3, who="anna")

    assert activate(site, new_model(1.6)) == site.lines["bolt"].versions.live
    assert is_open(site.lines["bolt"])  # it is compared with whatever is live


def test_line_does_not_wait_while_a_shadow_writes(
    new_site: Any, new_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = new_site()
    line = site.lines["bolt"]
    writing, written = threading.Event(), threading.Event()

    def slow(verdicts: Any) -> None:
        if verdicts:
            writing.set()
            assert written.wait(SECONDS)

    monkeypatch.setattr(shadow_module, "_WRITE_SECONDS", 0.0)
    monkeypatch.setattr(site.store, "add_shadow", slow)
    begin(site, new_model(1.0), parts=1000)
    judge(line)
    assert writing.wait(SECONDS)

    try:
        assert line.submit(Trigger("bolt", picture(20)))[0].result(SECONDS / 2).verdict == "pass"
    finally:
        written.set()
