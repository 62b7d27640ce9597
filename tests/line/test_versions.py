"""Versions of a line's model: which one is live outlives kills, files go when they are not needed any more."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.external_data_helper import set_external_data
from tests.line.conftest import multiplied, picture

from flawsmith.data.splits import content_hash
from flawsmith.line import versions as versions_module
from flawsmith.line.limits import LimitChange
from flawsmith.line.queue import NoModelError
from flawsmith.line.record import Record, Trigger
from flawsmith.line.settings import LineSettings
from flawsmith.line.station import Line, Site, SwapConflictError
from flawsmith.line.store import UnwritableError
from flawsmith.line.versions import Versions
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector, self_test_arrays

pytestmark = pytest.mark.usefixtures("_trial_in_this_process")
SECONDS = 10


class KilledError(BaseException):
    """Stands for a kill: nothing that comes after it is done."""


def judge(line: Line, brightness: int = 20) -> Record:
    return line.submit(Trigger(line.name, picture(brightness)))[0].result(SECONDS)


def add(site: Site, path: Path, line: str = "bolt") -> str:
    """Bring a file as the service does."""
    with site.files.receiving() as received:
        shutil.copy(path, received)
        sha256 = content_hash(received)
        site.lines[line].add_version(received, sha256, who="anna")
    return sha256


def activate(site: Site, path: Path) -> str:
    sha256 = add(site, path)
    site.lines["bolt"].activate(sha256, who="anna", reason="a trial")
    return sha256


def files(site: Site) -> set[str]:
    return {path.stem for path in site.files.folder.glob("*.flaw")}


def test_model_of_the_settings_is_the_first_version(new_site: Any, brightness_model: Path) -> None:
    site = new_site()
    (version,) = site.lines["bolt"].versions.by_sha256.values()

    assert (version.number, version.source, version.who) == (1, "settings", "service")
    assert (version.facts.method, version.facts.product, version.facts.learned_from) == ("pbas", "bolt", 80)
    assert files(site) == {version.sha256} == {hashlib.sha256(brightness_model.read_bytes()).hexdigest()}


def test_activated_version_is_live_again_after_a_restart(new_site: Any, new_model: Callable[..., Path]) -> None:
    site = new_site()
    sha256 = activate(site, new_model(0.5))
    record = judge(site.lines["bolt"], 100)
    site.close()

    again = new_site()

    assert record.model_sha256 == judge(again.lines["bolt"]).model_sha256 == sha256
    assert [version.number for version in again.lines["bolt"].versions.by_sha256.values()] == [1, 2]
    assert again.store.verify().faults == ()


def test_file_of_the_settings_goes_live_when_it_is_another(
    new_site: Any, new_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "named.flaw"
    models = [new_model(factor) for factor in (1.0, 2.0, 3.0)]
    hashes = [content_hash(model) for model in models]
    shutil.copy(models[0], path)
    site = new_site(model=path)
    activate(site, models[1])
    live = []
    for model in (models[0], models[2], models[2], models[0]):  # the same, another, the same again, the first again
        shutil.copy(model, path)
        site.close()
        site = new_site(model=path)
        live.append(judge(site.lines["bolt"]).model_sha256)

    assert live == [hashes[1], hashes[2], hashes[2], hashes[0]]
    # Loading looks at the file too.
    shutil.copy(models[2], path)
    assert site.lines["bolt"].load(who="anna").sha256 == hashes[2] == site.lines["bolt"].versions.live


def test_line_goes_on_with_its_last_model_where_the_named_file_is_gone(
    new_site: Any, new_model: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")  # forgets what libraries that silence all loggers have left behind
    path = new_model(1.25)
    with pytest.raises(FlawsmithError, match="no such model file"):
        new_site(model=path.with_name("nowhere.flaw"))
    new_site(model=path).close()
    path.rename(path.with_suffix(".away"))

    site = new_site(model=path)

    assert judge(site.lines["bolt"]).verdict == "pass"
    assert "goes on with its last one" in caplog.text


def test_damaged_copy_is_never_used(new_site: Any, new_model: Callable[..., Path]) -> None:
    site = new_site()
    sha256 = add(site, new_model(0.5))
    content = bytearray(site.files.path(sha256).read_bytes())
    content[-30] ^= 1
    site.files.path(sha256).write_bytes(content)

    with pytest.raises(FlawsmithError, match=r"not an intact model file|is not what was put there"):
        site.lines["bolt"].activate(sha256, who="anna", reason="a trial")

    assert judge(site.lines["bolt"]).model_sha256 != sha256


def test_rolling_back_goes_one_version_further_each_time(new_site: Any, new_model: Callable[..., Path]) -> None:
    site = new_site()
    line = site.lines["bolt"]
    first = line.model.sha256
    second, third = (activate(site, new_model(factor)) for factor in (0.5, 0.25))

    live = [line.roll_back(who="anna", reason="too many rejects") for _ in range(2)]

    assert live == [second, first]
    assert judge(line).model_sha256 == first == line.versions.live
    with pytest.raises(SwapConflictError, match="no version was live before"):
        line.roll_back(who="anna", reason="too many rejects")
    line.activate(third, who="anna", reason="it was right")
    assert judge(line).model_sha256 == third
    assert line.roll_back(who="anna", reason="no") == first
    site.close()
    assert judge(new_site().lines["bolt"]).model_sha256 == first


def test_three_versions_stay_to_roll_back_to_and_older_files_go(new_site: Any, new_model: Callable[..., Path]) -> None:
    site = new_site()
    line = site.lines["bolt"]
    shadowed = add(site, new_model(0.9))
    line.begin_shadow(shadowed, parts=10**6, who="anna")
    others = [add(site, new_model(0.9 - factor / 100)) for factor in range(1, 6)]
    live = [activate(site, new_model(factor / 10)) for factor in range(1, 7)]

    assert line.versions.history == live[-4:]
    assert line.versions.others == [shadowed, *others[-2:]]  # the third to last went when another came
    assert files(site) == {shadowed, *others[-2:], *live[-4:]} == set(line.versions.by_sha256)
    with pytest.raises(FlawsmithError, match="no such model file"):
        line.activate(live[0], who="anna", reason="it is gone")


def test_file_stays_as_long_as_another_line_has_it(new_site: Any, new_model: Callable[..., Path]) -> None:
    site = new_site()
    site.add_line("nut", LineSettings(threads=1))
    path = new_model(0.9)
    add(site, path, "nut")
    sha256 = activate(site, path)
    for factor in range(1, 7):
        activate(site, new_model(factor / 10))

    assert sha256 not in site.lines["bolt"].versions.by_sha256
    site.lines["nut"].activate(sha256, who="anna", reason="it is taught")
    site.close()

    assert sha256 in files(new_site())  # which has no line nut, but somebody may add it


def test_line_is_taught_by_an_upload(new_site: Any, new_model: Callable[..., Path]) -> None:
    site = new_site()
    line = site.add_line("nut", LineSettings(threads=1))
    with pytest.raises(NoModelError):
        judge(line)
    with pytest.raises(FlawsmithError, match="upload one, or name its file"):
        line.load(who="anna")

    sha256 = add(site, new_model(0.5), "nut")
    line.activate(sha256, who="anna", reason="it is taught")

    assert judge(line).model_sha256 == sha256
    site.close()
    assert judge(new_site().add_line("nut", LineSettings(threads=1))).model_sha256 == sha256


def test_line_that_was_removed_leaves_no_model_to_another_of_its_name(
    new_site: Any, new_model: Callable[..., Path]
) -> None:
    site = new_site()
    site.add_line("nut", LineSettings(threads=1)).begin_shadow(add(site, new_model(0.5), "nut"), parts=3, who="anna")
    site.lines["nut"].activate(add(site, new_model(0.25), "nut"), who="anna", reason="it is taught")
    site.remove_line("nut")

    line = site.add_line("nut", LineSettings(threads=1))

    assert (line.model, line.versions.shadow, line.versions.by_sha256) == (None, None, {})
    assert files(site) == set(site.lines["bolt"].versions.by_sha256)


def test_every_version_keeps_the_limits_that_were_set_for_it(new_site: Any, new_model: Callable[..., Path]) -> None:
    site = new_site()
    line = site.lines["bolt"]
    first = line.model.sha256
    line.set_limits(LimitChange(max_false_rejects="4/20"), who="anna", reason="a trial")
    limits = [line.model.decision]
    second = activate(site, new_model(2.0))
    line.set_limits(LimitChange(max_false_rejects="5/20"), who="anna", reason="a trial")
    limits.append(line.model.decision)

    line.activate(first, who="anna", reason="back")
    seen = [line.model.decision]
    line.activate(second, who="anna", reason="and again")
    seen.append(line.model.decision)

    assert seen == limits
    assert limits[0].limit * 2 < limits[1].limit * 1.2  # each of its own scores
    assert [line.limits_of(version) for version in line.versions.by_sha256.values()] == limits


def test_switch_is_refused_where_another_version_is_live_than_expected(
    new_site: Any, new_model: Callable[..., Path]
) -> None:
    site = new_site()
    line = site.lines["bolt"]
    first, sha256 = line.model.sha256, add(site, new_model(0.5))
    entries = site.store.entries()

    for order in (
        lambda: line.activate(sha256, who="anna", reason="a race", expected=sha256),
        lambda: line.roll_back(who="anna", reason="a race", expected=sha256),
        lambda: line.activate(first, who="anna", reason="twice"),
        lambda: line.begin_shadow(first, parts=3, who="anna"),
        lambda: line.stop_shadow(sha256, who="anna"),
    ):
        with pytest.raises(SwapConflictError):
            order()

    assert site.store.entries() == entries
    line.activate(sha256, who="anna", reason="no race", expected=first)
    assert line.versions.live == sha256


def test_version_that_is_loaded_again_after_an_unload_is_the_live_one(
    new_site: Any, new_model: Callable[..., Path]
) -> None:
    site = new_site()
    line = site.lines["bolt"]
    sha256 = activate(site, new_model(0.5))

    line.unload(who="anna")

    assert line.load(who="anna").sha256 == sha256 == judge(line).model_sha256


@pytest.mark.parametrize("moment", ["file", "added", "activated", "removed"])
def test_kill_at_any_moment_leaves_one_version_live_and_no_file_too_many(
    moment: str, new_site: Any, new_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = new_site()
    for factor in range(1, 5):
        activate(site, new_model(factor / 10))
    former = site.lines["bolt"].model.sha256
    path = new_model(0.77)
    sha256 = content_hash(path)
    note = Versions.note

    def killed(self: Versions, action: str, **facts: Any) -> Any:
        if (moment, action) == ("file", "added"):
            raise KilledError
        entry = note(self, action, **facts)
        if action == moment:
            raise KilledError
        return entry

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Versions, "note", killed)
        activate(site, path)
    (site.files.folder / ".upload.0123456789ab.tmp").write_bytes(path.read_bytes()[:99])  # half of another one
    site._ended.set()
    site._stack.close()  # as the system takes from a killed process what it holds

    again = new_site()

    line = again.lines["bolt"]
    assert judge(line).model_sha256 == line.versions.live
    assert line.versions.live == (former if moment in ("file", "added") else sha256)
    assert (sha256 in files(again)) == (moment != "file")
    assert files(again) == set(line.versions.by_sha256)
    assert not list(again.files.folder.glob(".*"))
    assert again.store.verify().faults == ()


def with_graph(graph: Callable[[bytes], bytes]) -> Callable[[Bundle], Bundle]:
    return lambda bundle: dataclasses.replace(bundle, model=graph(bundle.model))


def with_wrong_numbers(bundle: Bundle) -> Bundle:
    arrays = self_test_arrays(Inspector.load(bundle), [np.full((32, 48, 3), 90, np.uint8)])
    return dataclasses.replace(bundle, calibration=arrays, model=multiplied(bundle.model, 1.1))


def with_external_data(graph: bytes) -> bytes:
    model = onnx.load_from_string(graph)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "weights"))
    set_external_data(model.graph.initializer[0], "/etc/passwd")
    model.graph.initializer[0].ClearField("raw_data")
    return model.SerializeToString()


def with_entry(name: str, compression: int) -> Callable[[Path], bytes]:
    """A model file with another part, which no model file has."""

    def changed(path: Path) -> bytes:
        stream = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(stream, "a", compression) as archive:
            archive.writestr(name, bytes(10**6))
        return stream.getvalue()

    return changed


@pytest.mark.parametrize(
    ("change", "damage", "reason"),
    [
        (None, lambda path: b"no model", "it is no zip"),
        (None, lambda path: path.read_bytes()[:-40], "it is no zip, or is cut off"),
        (None, lambda path: path.read_bytes().replace(b"Bolt", b"Nut!"), "changed or damaged|not an intact"),
        (None, lambda path: path.read_bytes().replace(b'"n_good": 19', b'"n_good": 9e'), "changed|not an intact"),
        (None, with_entry("../../etc/cron.d/x", zipfile.ZIP_STORED), "unknown part '../../etc/cron.d/x'"),
        (None, with_entry("bomb", zipfile.ZIP_DEFLATED), "unknown part 'bomb'"),
        (with_graph(with_external_data), Path.read_bytes, "keeps weights in other files"),
        (with_graph(lambda _: b"no graph"), Path.read_bytes, "graph|model"),
        (with_graph(lambda graph: multiplied(graph, math.inf)), Path.read_bytes, "not finite"),
        (with_wrong_numbers, Path.read_bytes, "gives another score here"),
    ],
)
def test_file_that_is_no_model_leaves_nothing(
    change: Any,
    damage: Callable[[Path], bytes],
    reason: str,
    new_site: Any,
    new_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    path = tmp_path / "bad.flaw"
    path.write_bytes(damage(new_model(0.5, **({} if change is None else {"change": change}))))
    site = new_site()
    before = site.store.entries(), files(site)

    with pytest.raises(FlawsmithError, match=reason) as caught:
        add(site, path)

    assert str(site.files.folder) not in str(caught.value)
    assert (site.store.entries(), files(site)) == before
    assert not list(site.files.folder.glob(".*"))


def test_switch_that_was_made_is_no_failure_because_an_old_version_cannot_go(
    new_site: Callable[..., Site], new_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions_module, "KEPT", 1)
    site = new_site()
    line = site.lines["bolt"]
    note = line.versions.note

    def full(action: str, **facts: Any) -> Any:
        if action == "removed":
            raise UnwritableError("the disk is full")
        return note(action, **facts)

    monkeypatch.setattr(line.versions, "note", full)
    hashes = [activate(site, new_model(factor)) for factor in (0.5, 2.0)]

    assert line.model is not None
    assert line.model.sha256 == line.versions.live == hashes[-1]
    assert len(files(site)) == 3
    monkeypatch.undo()
    line.load(who="anna")
    assert line.versions.surplus == []
