"""Folders that commands write: one writer at a time, and results that cannot take their places."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawsmith.cli.main import main
from flawsmith.pipeline.predict import predict
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import replacing, result_name
from flawsmith.runtime.inspector import Inspector
from flawsmith.runtime.outputs import LOCK, exclusive_folder, refuse_irreplaceable

# Stops at several moments of a run until it is told to go on. Text files without an encoding are mistakes.
TRAIN = """
import json, sys, warnings
warnings.filterwarnings("error", category=EncodingWarning, module="flawsmith")
import flawsmith
from flawsmith.pipeline import steps

def stop_before(owner, name):
    function = getattr(owner, name)
    def stopped(*arguments, **options):
        print(name, flush=True)
        sys.stdin.readline()
        return function(*arguments, **options)
    setattr(owner, name, stopped)

stop_before(steps, "load_backbone")
stop_before(steps.RunFolder, "complete")
stop_before(steps, "export_model")
stop_before(steps.RunFolder, "record")
data, out, settings = sys.argv[1:]
settings = {"backbone": "test_efficientnet@random", "set": json.loads(settings)}
flawsmith.train(data, out=out, quiet=True, method="patchcore", **settings)
print("done", flush=True)
"""
MOMENTS = ("load_backbone", "complete", "export_model", "record")


@pytest.fixture
def model(tmp_path: Path, tiny: ModuleType) -> Path:
    """A model whose score is the brightness."""
    tiny.make_bundle().save(tmp_path / "model.flaw")
    return tmp_path / "model.flaw"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(np.full((20, 30, 3), 10, np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def flawsmith(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a command line in this process: its exit code, and what it said on stderr."""

    def run(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, capsys.readouterr().err

    return run


def start_training(parts: Path, out: Path, settings: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-X", "warn_default_encoding", "-c", TRAIN, str(parts), str(out), json.dumps(settings)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_trainings_do_not_share_a_folder(
    parts: Path, tiny_settings: Callable[[str], dict[str, Any]], flawsmith: Any, tmp_path: Path
) -> None:
    out, settings = tmp_path / "run", tiny_settings("patchcore")
    size = json.dumps(settings["image_size"]).replace(" ", "")
    second = ("train", parts, "--out", out, "--quiet", "--method", "patchcore", "--set", f"image_size={size}")
    first = start_training(parts, out, settings)
    assert first.stdout is not None
    assert first.stdin is not None

    refusals = {}
    for moment in MOMENTS:
        assert first.stdout.readline().strip() == moment
        refusals[moment] = [flawsmith(*second), flawsmith(*second, "--resume")]
        first.stdin.write("\n")
        first.stdin.flush()
    assert first.stdout.readline().strip() == "done"

    line = f"error: {out}: another flawsmith command is writing there: wait until it has ended, or give another --out\n"
    assert refusals == {moment: [(2, line), (2, line)] for moment in MOMENTS}
    assert first.wait() == 0
    assert (out / "model.flaw").is_file()
    assert not (out / LOCK).exists()


def test_killed_training_leaves_no_lock(
    parts: Path, tiny_settings: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    first = start_training(parts, tmp_path / "run", tiny_settings("patchcore"))
    assert first.stdout is not None
    assert first.stdout.readline().strip() == MOMENTS[0]
    with pytest.raises(FlawsmithError, match="another flawsmith command"), exclusive_folder(tmp_path / "run"):
        pass

    first.kill()
    first.communicate()

    with exclusive_folder(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).exists()


@pytest.mark.parametrize("command", ["predict", "evaluate", "demo", "benchmark", "serve", "watch"])
def test_every_command_keeps_out_of_a_folder_in_use(
    command: str, model: Path, photo: Path, parts: Path, flawsmith: Any, tmp_path: Path
) -> None:
    arguments: dict[str, tuple[object, ...]] = {
        "predict": (model, photo),
        "evaluate": (model, parts),
        "demo": (),
        "benchmark": (parts, "--methods", "patchcore"),
        "serve": (model, "--port", 0),
        "watch": (parts, "--model", model),
    }
    with exclusive_folder(tmp_path / "out"):
        code, said = flawsmith(command, *arguments[command], "--out", tmp_path / "out")

    assert code == 2
    assert said.splitlines()[-1].startswith(f"error: {tmp_path / 'out'}: another flawsmith command is writing there")
    assert not (tmp_path / "out").exists()


def test_a_studio_keeps_out_of_a_folder_in_use(flawsmith: Any, tmp_path: Path) -> None:
    with exclusive_folder(tmp_path / "studio"):
        code, said = flawsmith("studio", tmp_path / "studio", "--no-browser", "--port", 0)

    line = (
        f"error: {tmp_path / 'studio'}: another flawsmith command is writing there: wait until it has ended, or give "
    )
    assert (code, said) == (2, f"{line}another folder\n")


def test_an_export_into_a_model_file_loses_no_other(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another form comes into the file while one is computed."""
    from flawsmith.pipeline import export

    differences = export._differences

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(export, "_differences", differences)
        export.export_bundle(model, "openvino", into=True)
        return differences(*arguments, **options)

    monkeypatch.setattr(export, "_differences", meanwhile)

    with pytest.raises(FlawsmithError, match=r"model\.flaw was changed since it was loaded: give the same"):
        export.export_bundle(model, "openvino", into=True)

    assert [variant.engine for variant in Bundle.load(model).spec.variants] == ["openvino"]


def test_a_folder_by_another_name_is_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    with (
        exclusive_folder(tmp_path / "real"),
        pytest.raises(FlawsmithError, match="another"),
        exclusive_folder(tmp_path / "link"),
    ):
        pass


def test_what_killed_commands_left_half_written_goes_and_nothing_else(tmp_path: Path) -> None:
    left = [".model.flaw.0123456789ab.tmp", "overlays/.000001-a.png.ba9876543210.tmp"]
    other = ["notes.tmp", ".cache.tmp", "overlays/000001-a.png", ".model.flaw.xyz.tmp"]
    (tmp_path / "overlays").mkdir()
    for name in (*left, *other):
        (tmp_path / name).touch()

    with exclusive_folder(tmp_path):
        pass

    assert not any((tmp_path / name).exists() for name in left)
    assert all((tmp_path / name).exists() for name in other)


@pytest.mark.parametrize("name", ["verdicts.csv", "verdicts.jsonl", "verdicts.partial.csv", "verdicts.partial.jsonl"])
def test_verdicts_that_cannot_be_replaced_are_found_before_the_first_image(
    name: str, model: Path, photo: Path, flawsmith: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    monkeypatch.setattr(Inspector, "inspect", None)  # nothing is inspected

    code, said = flawsmith("predict", model, photo, "--out", tmp_path / "out")

    assert code == 2
    assert said.startswith(f"error: {tmp_path / 'out' / name} cannot be replaced (")
    assert said.count("\n") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def refusing(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file can be neither moved nor replaced: it is another user's, protected, or open on Windows."""
    original = getattr(Path, method)

    def refuse(self: Path, other: Path) -> Path:
        if name in (self.name, Path(other).name):
            raise PermissionError(13, "Permission denied")
        return original(self, other)

    monkeypatch.setattr(Path, method, refuse)


def test_protected_verdicts_are_found_before_the_first_image_and_stay(
    model: Path, photo: Path, flawsmith: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "out" / "verdicts.csv"
    table.parent.mkdir()
    table.write_text("earlier")
    refusing(table.name, "rename", monkeypatch)

    code, said = flawsmith("predict", model, photo, "--out", table.parent)

    line = f"{table} cannot be replaced (Permission denied): close the program that has it open, remove it"
    assert (code, said) == (2, f"error: {line}, or give another --out\n")
    assert [path.read_text() for path in table.parent.iterdir()] == ["earlier"]


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_verdicts_that_were_removed_meanwhile_are_not_said_to_be_there(
    model: Path, photo: Path, tmp_path: Path
) -> None:
    def remove(_record: dict[str, Any]) -> None:
        for path in (tmp_path / "out").glob("*.partial.*"):
            path.unlink()

    with pytest.raises(FlawsmithError, match=r"verdicts\.partial\.jsonl was removed .*; repeat"):
        predict(model, [photo], out=tmp_path / "out", seen=remove)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes among files")
def test_named_pipes_are_not_waited_for(model: Path, photo: Path, tmp_path: Path) -> None:
    parts = tmp_path / "pipes"
    parts.mkdir()
    (parts / "0.png").write_bytes(photo.read_bytes())
    os.mkfifo(parts / "1.png")
    command = [sys.executable, "-m", "flawsmith"]
    for name, *arguments in (["predict", model, parts, "--out", tmp_path / "out"], ["doctor", parts]):
        ended = subprocess.run([*command, name, *map(str, arguments)], capture_output=True, text=True, timeout=60)
        assert ended.returncode == 1, name
        assert "1.png" in ended.stdout + ended.stderr


def test_verdicts_that_were_opened_meanwhile_are_kept_beside(
    model: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "out" / "verdicts.csv"
    table.parent.mkdir()
    table.write_text("earlier")
    refusing(table.name, "replace", monkeypatch)

    with pytest.raises(FlawsmithError) as caught:
        predict(Inspector.load(model), [photo], table.parent)

    line = f"{table} cannot be replaced (Permission denied): close the program that has it open"
    assert str(caught.value) == f"{line}; the verdicts are in {table.parent / 'verdicts.partial.csv'}"
    assert (table.parent / "verdicts.partial.csv").read_text().count("\n") == 2
    assert table.read_text() == "earlier"


@pytest.mark.parametrize("name", ["report.html", "evaluation.json", "scores.csv"])
def test_evaluation_that_cannot_be_replaced_is_found_before_the_first_image(
    name: str, model: Path, parts: Path, flawsmith: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    monkeypatch.setattr(Inspector, "inspect", None)

    code, said = flawsmith("evaluate", model, parts, "--out", tmp_path / "out")

    assert code == 2
    assert said.startswith(f"error: {tmp_path / 'out' / name} cannot be replaced (Is a directory)")


def test_result_that_was_opened_meanwhile_is_kept_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report.html"
    report.write_text("earlier")
    refusing(report.name, "replace", monkeypatch)

    with pytest.raises(FlawsmithError) as caught, replacing(report) as temporary:
        temporary.write_text("new")

    line = f"{report} cannot be replaced (Permission denied): close the program that has it open"
    assert str(caught.value) == f"{line}; the new one is {tmp_path / 'report.new.html'}"
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == [
        ("report.html", "earlier"),
        ("report.new.html", "new"),
    ]


@pytest.mark.parametrize(
    ("number", "fix"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "folder that may be written")]
)
def test_result_that_cannot_be_written_is_one_error(
    number: int, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "unlink", fails)  # as a read-only file system answers even where there is no such file
    with pytest.raises(FlawsmithError, match=fix), replacing(tmp_path / "scores.csv"):
        fails()


def test_names_of_results_hold_what_the_file_system_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert result_name(3, "a/größe 1.png", ".png") == "000003-gr__e_1.png"


def test_files_that_can_be_replaced_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "dangling").symlink_to("gone")

    refuse_irreplaceable(tmp_path / name for name in ("a", "link", "dangling", "missing"))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "dangling", "link"]
    assert (tmp_path / "link").read_text() == "a"


def empty_files(folder: Path) -> list[str]:
    (folder / "data").mkdir()
    for number in range(3):
        (folder / "data" / f"{number}.png").touch()
    return ["data"]


def capped_at_nothing(folder: Path) -> list[str]:
    os.environ["FLAWSMITH_CACHE_GB"] = "plenty"
    return []


def cache_in_a_file(folder: Path) -> list[str]:
    (folder / "file").touch()
    os.environ["FLAWSMITH_CACHE"] = str(folder / "file")
    return []


@pytest.mark.parametrize("fault", [empty_files, capped_at_nothing, cache_in_a_file])
def test_run_that_fails_before_training_leaves_nothing(
    fault: Callable[[Path], list[str]], parts: Path, flawsmith: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FLAWSMITH_CACHE", "FLAWSMITH_CACHE_GB"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # put back at the end
    monkeypatch.delenv("FLAWSMITH_CACHE_GB")
    data, *_ = fault(tmp_path) or [str(parts)]

    code, said = flawsmith("train", data, "--quiet", "--set", "image_size=[64,96]", "--out", "runs/x")

    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()
