"""The project as a whole: its public names, its tiers, and what stands in its files."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.core import TyperGroup as Group
from typer.main import get_command

import flawsmith
from flawsmith import models
from flawsmith.cli.main import app
from flawsmith.pipeline.settings import TrainSettings

PROJECT = Path(__file__).parents[1]
NOT_IN_CORE = ("torch", "torchvision", "timm", "lightning", "cv2", "onnx", "openvino", "scipy", "sklearn", "matplotlib")


# Public names


def test_public_names_are_those_with_a_place() -> None:
    assert sorted(flawsmith.__all__) == sorted(flawsmith._PLACES)
    assert set(flawsmith.__all__) <= set(dir(flawsmith))


@pytest.mark.parametrize("name", flawsmith.__all__)
def test_public_name_is_where_it_is_said_to_be(name: str) -> None:
    assert getattr(flawsmith, name) is getattr(import_module(flawsmith._PLACES[name]), name)


def test_names_for_type_checkers_are_the_same() -> None:
    source = Path(flawsmith.__file__).read_text(encoding="utf-8")
    block = source[source.index("if TYPE_CHECKING:") : source.index("__version__")]

    declared = {
        name.strip(): module
        for module, names in re.findall(r"from (\S+) import (.+)", block)
        for name in names.split(",")
    }

    assert declared == dict(flawsmith._PLACES)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Inspektor"):
        _ = flawsmith.Inspektor  # type: ignore[attr-defined]


def test_version_is_that_of_the_package() -> None:
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")

    assert f'version = "{flawsmith.__version__}"' in text
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (flawsmith.__version__, "Apache-2.0")


def test_completion_offers_public_names_alone() -> None:
    assert dir(flawsmith) == sorted([*flawsmith.__all__, "__version__"])


@pytest.mark.parametrize(
    "command",
    ["train", "evaluate", "predict", "calibrate", "export", "doctor", "synthesize", "benchmark", "weak_flaw_sets"],
)
def test_python_does_what_a_command_does(command: str) -> None:
    """Options are parameters of the same name, but for what concerns a terminal or is shown here as an exception."""
    function = getattr(flawsmith, {"benchmark": "run_benchmark", "export": "export_bundle"}.get(command, command))
    taken = set(inspect.signature(function).parameters)
    if command == "train":
        taken |= set(TrainSettings.model_fields)
    if command in ("synthesize", "weak_flaw_sets"):
        taken |= {field.name for field in dataclasses.fields(flawsmith.SynthesisSettings)}
    if command == "benchmark":
        taken |= set(flawsmith.Plan.model_fields) | {"oracle", "memory", "fresh"}
    callbacks: dict[str | None, Any] = {each.name: each.callback for each in app.registered_commands}
    options = set(inspect.signature(callbacks["synthesize" if command == "weak_flaw_sets" else command]).parameters)

    assert options - taken <= ELSEWHERE[command] | {"json_", "quiet", "ray"}


ELSEWHERE = {
    # select, alpha, review_alpha, set; **settings; on_progress
    "train": {"oracle", "rate", "review_rate", "set_", "config", "progress"},
    "evaluate": {"set_"},
    "predict": set(),
    "calibrate": set(),
    "export": set(),
    "doctor": set(),
    "synthesize": {"test_set", "weakness", "per_image", "base"},
    "weak_flaw_sets": {"test_set", "size", "pictures"},
    "benchmark": set(),
}
"""Options of the command line that Python has under another name, or in another function."""


@pytest.mark.parametrize("name", ["Inspector", "predict", "calibrate", "doctor", "Evaluation", "Findings"])
def test_what_the_core_tier_can_do_imports_no_torch(name: str) -> None:
    script = f"import sys; from flawsmith import {name}; print([m for m in {NOT_IN_CORE!r} if m in sys.modules])"

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"


# The core tier, in an environment without torch


@pytest.fixture(scope="session")
def core(request: pytest.FixtureRequest) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the interpreter of an environment with the core tier alone.

    ``FLAWSMITH_CORE_PYTHON`` names it, as ``make test`` does; otherwise such an environment is made once and kept in
    pytest's cache folder.
    """
    given = os.environ.get("FLAWSMITH_CORE_PYTHON")
    python = Path(given) if given else core_environment(Path(request.config.cache.mkdir("core")))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(PROJECT / "src")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python), *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
        )

    return run


def core_environment(folder: Path) -> Path:
    """An environment with the core tier's dependencies, made anew when pyproject.toml has changed."""
    stamp, wanted = folder / "pyproject.toml", (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    python = folder / "venv" / "bin" / "python"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / "venv")], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", str(PROJECT)]
        subprocess.run(install, check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return python


@pytest.fixture(scope="module")
def model(trained: Callable[[str], Any]) -> Path:
    return trained("pbas").model


Core = Callable[..., subprocess.CompletedProcess[str]]


def flawsmith_command(core: Core, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return core("-c", "import sys; from flawsmith.cli.main import main; sys.exit(main())", *arguments)


def test_core_tier_has_no_torch(core: Core) -> None:
    script = f"from importlib.util import find_spec; print([m for m in {NOT_IN_CORE!r} if find_spec(m)])"

    result = core("-c", script)

    assert result.stdout.strip() == "[]", result.stderr


def test_core_tier_says_in_one_line_that_ray_is_missing(core: Core, model: Path, parts: Path) -> None:
    result = flawsmith_command(core, "predict", model, parts, "--ray", "local")

    assert (result.returncode, result.stdout) == (2, "")
    assert "--ray needs Ray, which is not installed" in result.stderr
    assert "Traceback" not in result.stderr


INSPECT = """
import json, sys
from flawsmith import Inspector
inspection = Inspector.load(sys.argv[1]).inspect(sys.argv[2])
print(json.dumps([inspection.score, str(inspection.verdict), list(inspection.map.shape)]))
"""


def test_core_tier_inspects_as_the_training_machine_does(core: Core, model: Path, parts: Path) -> None:
    photo = parts / "test" / "crack" / "000.png"
    expected = flawsmith.Inspector.load(model).inspect(photo)

    result = core("-c", INSPECT, model, photo)

    assert result.returncode == 0, result.stderr
    score, verdict, shape = json.loads(result.stdout)
    assert score == pytest.approx(expected.score, abs=1e-5)
    assert (verdict, tuple(shape)) == (str(expected.verdict), expected.map.shape)


def test_core_tier_predicts_a_folder(core: Core, model: Path, parts: Path, tmp_path: Path) -> None:
    photos = parts / "test"

    result = flawsmith_command(core, "predict", model, photos, "--out", tmp_path / "verdicts")

    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "verdicts" / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == len(list(photos.rglob("*.png")))
    assert all({"image", "score", "verdict", "regions"} <= set(row) for row in rows)


@pytest.mark.parametrize("subject", ["model", "data"])
def test_core_tier_runs_doctor(core: Core, model: Path, parts: Path, subject: str) -> None:
    result = flawsmith_command(core, "doctor", model if subject == "model" else parts)

    assert "Traceback" not in result.stderr
    assert result.returncode in (0, 1), result.stderr


def test_core_tier_tells_of_a_model(core: Core, model: Path) -> None:
    result = flawsmith_command(core, "info", model)

    assert result.returncode == 0, result.stderr
    assert "pbas" in result.stdout


def test_core_tier_sets_limits_as_the_training_machine_does(
    core: Core, model: Path, draw_parts: Callable[..., Path], tmp_path: Path
) -> None:
    good = draw_parts(tmp_path / "other", good=4) / "train" / "good"
    for number, image in enumerate(sorted(good.iterdir())):  # no image that the model has learned from
        pixels = np.asarray(Image.open(image)).copy()
        pixels[0, 0] = 255 - pixels[0, 0] - number
        Image.fromarray(pixels).save(image)
    corners = [[5, 5], [100, 5], [100, 70], [5, 70]]
    (tmp_path / "roi.json").write_text(json.dumps({"width": 112, "height": 80, "include": [corners]}))
    options = ["--rate", "20%", "--roi", tmp_path / "roi.json", "--min-area", "4", "--json", "--quiet"]

    result = flawsmith_command(core, "calibrate", model, good, "--out", tmp_path / "new.flaw", *options)

    assert result.returncode == 0, result.stderr
    here = flawsmith.calibrate(model, good, rate="20%", roi=tmp_path / "roi.json", min_area=4).after
    there = json.loads(result.stdout)["after"]
    assert (there["n_good"], there["minimum_area"]) == (here.n_good, 4)
    assert there["map_limit"] == pytest.approx(here.map_limit, abs=1e-5)


def test_core_tier_says_which_tier_training_needs(core: Core, parts: Path, tmp_path: Path) -> None:
    result = flawsmith_command(core, "train", parts, "--out", tmp_path / "run")

    assert result.returncode == 2
    assert "flawsmith[train]" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["serve", "watch"])
def test_core_tier_says_which_tier_the_line_needs(core: Core, tmp_path: Path, command: str) -> None:
    arguments = [tmp_path, "--model", "model.flaw"] if command == "watch" else ["model.flaw"]

    result = flawsmith_command(core, command, *arguments, "--out", tmp_path / "records")

    assert result.returncode == 2
    assert "flawsmith[serve]" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "records").exists()


# Files


def tracked(*patterns: str) -> list[Path]:
    """Files that git knows of, new ones included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *patterns]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if result.returncode:  # an unpacked archive: every file but those of environments and caches
        found = (path for pattern in patterns or ("*",) for path in PROJECT.rglob(pattern.rpartition("/")[2]))
        return [path for path in found if path.is_file() and not _is_made(path.relative_to(PROJECT))]
    return [PROJECT / name for name in result.stdout.split("\0") if name and (PROJECT / name).is_file()]


def _is_made(path: Path) -> bool:
    """Whether a file lies in a folder that tools make: hidden, or one of their caches."""
    return any(part.startswith(".") or part in ("__pycache__", "build", "dist") for part in path.parts[:-1])


def texts(files: Sequence[Path]) -> dict[Path, str]:
    found = {}
    for file in files:
        try:
            found[file] = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and arrays
    return found


def test_readme_names_the_commands_to_begin_with() -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")

    assert "make demo" in readme
    assert "make test" in readme


def test_python_of_the_readme_runs_in_the_core_tier(
    core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snippets = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    model = tmp_path / "runs" / "bolt" / "model.flaw"
    model.parent.mkdir(parents=True)
    shutil.copy(PROJECT / "tests" / "runtime" / "data" / "version-1.flaw", model)
    Image.new("RGB", (64, 48)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)

    results = [core("-c", snippet) for snippet in snippets]

    assert results
    assert all(result.returncode == 0 for result in results), [result.stderr for result in results]
    assert (tmp_path / "overlay.png").exists()


def commands_of(document: Path) -> list[list[str]]:
    """Calls of ``flawsmith`` in the blocks of a page, without comments."""
    blocks = re.findall(r"```(?:sh|powershell)\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].split() for line in lines if line.startswith("flawsmith ")]


def test_commands_of_the_pages_exist_with_their_options() -> None:
    root = get_command(app)
    assert isinstance(root, Group)
    pages = [page for page in tracked("*.md") if "results" not in page.parts]
    calls = [(page.name, call) for page in pages for call in commands_of(page)]

    unknown = []
    for page, call in calls:
        command = root if call[1].startswith("-") else root.commands.get(call[1])
        known = {name for parameter in getattr(command, "params", ()) for name in parameter.opts}
        if isinstance(command, Group) and command is not root:  # figure has commands of its own
            known |= {name for inner in command.commands.values() for p in inner.params for name in p.opts}
        unknown += [f"{page}: {' '.join(call[:2])}"] if command is None else []
        unknown += [f"{page}: {call[1]} {word}" for word in call[1:] if word.startswith("--") and word not in known]

    assert len(calls) > 30
    assert not unknown


def test_pages_name_environment_variables_that_the_code_reads() -> None:
    code = "".join(texts(tracked("src/*.py")).values())
    pages = (PROJECT / "README.md", *(PROJECT / "docs").rglob("*.md"))
    named = {name for page in pages for name in re.findall(r"FLAWSMITH_[A-Z_]+", page.read_text(encoding="utf-8"))}

    assert {"FLAWSMITH_CACHE", "FLAWSMITH_CACHE_GB"} <= named
    assert not {name for name in named - {"FLAWSMITH_DATA"} if f'"{name}"' not in code}


def test_columns_of_verdicts_are_those_of_the_page(tmp_path: Path, tiny: ModuleType) -> None:
    Image.new("RGB", (30, 20), "white").save(tmp_path / "a.png")
    tiny.make_bundle().save(tmp_path / "model.flaw")
    written = flawsmith.predict(tmp_path / "model.flaw", tmp_path / "a.png", tmp_path / "out", maps="npy")
    page = (PROJECT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    section = page[page.index("## `verdicts.csv`") : page.index("## The run folder")]

    columns = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)

    assert written.table.read_text(encoding="utf-8").splitlines()[0].split(",") == columns
    assert set(json.loads(written.lines.read_text(encoding="utf-8"))) <= set(re.findall(r"`(\w+)`", section))


def test_reference_has_every_model() -> None:
    page = (PROJECT / "docs" / "reference" / "models.md").read_text(encoding="utf-8")

    assert set(models.__all__) == set(re.findall(r"autoclass:: flawsmith\.models\.(\w+)\n", page))


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    places = re.compile(r"(?<![\w./])/(?:home|root|Users|work|mnt|private|var/folders)/[\w.-]+")

    found = {
        f"{file.relative_to(PROJECT)}: {match.group()}"
        for file, text in texts(tracked()).items()
        if file != Path(__file__)
        for match in places.finditer(text)
    }

    assert not found


def test_no_large_file_is_tracked() -> None:
    large = [file.name for file in tracked() if file.stat().st_size > 2_000_000]

    assert not large


def test_ci_runs_the_tests() -> None:
    assert "make test" in (PROJECT / ".ci" / "run").read_text(encoding="utf-8")


def test_links_in_documents_lead_somewhere() -> None:
    broken = []
    for document, text in texts(tracked("*.md")).items():
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{document.relative_to(PROJECT)}: {target}")

    assert not broken


def test_every_module_says_what_it_is() -> None:
    for file in tracked("src/*.py"):
        text = file.read_text(encoding="utf-8")
        assert not text.strip() or text.startswith('"""'), f"{file.name} has no docstring"


def test_configuration_files_parse() -> None:
    for file in tracked("*.yaml", "*.yml"):
        yaml.safe_load(file.read_text(encoding="utf-8"))
    for file in tracked("*.json"):
        json.loads(file.read_text(encoding="utf-8"))
