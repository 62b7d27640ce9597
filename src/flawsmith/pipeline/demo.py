"""The demonstration: a drawn product line, a model trained on it, and its evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flawsmith
from flawsmith.data.layouts import load
from flawsmith.metrics.results import Evaluation
from flawsmith.pipeline.evaluate import evaluate_into
from flawsmith.pipeline.train import train, training_in_words
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import replacing
from flawsmith.runtime.outputs import LOCK, exclusive_folder
from flawsmith.synthesis.demo_parts import PARTS, render_product_line

MARKER = "flawsmith-demo.json"
"""The file by which a folder is known to be a demo's own."""
STUDIO = "studio"
"""Folder of the demo's studio."""
_DATA, _RUN, _EVALUATION = "parts", "run", "evaluation"


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration leaves behind.

    Attributes:
        data: the drawn category, in MVTec layout.
        model: the model file.
        report: the report of the evaluation.
        evaluation: its figures: they say that the program runs, not how it inspects real parts.
    """

    data: Path
    model: Path
    report: Path
    evaluation: Evaluation

    @property
    def news(self) -> str:
        """How it went, in two sentences."""
        caught = self.evaluation.n_flawed - self.evaluation.n_missed
        rejected, good = self.evaluation.n_rejected, self.evaluation.n_good
        well = 2 * caught >= self.evaluation.n_flawed and 4 * rejected <= good
        return (
            f"Flawsmith {'works' if well else 'runs'} on this machine. Its model found {caught} of "
            f"{self.evaluation.n_flawed} flawed parts and rejected {rejected} of {good} good ones."
        )


def run_demo(
    out: Path,
    *,
    part: str = "bracket",
    seed: int = 0,
    quiet: bool = True,
    on_message: Callable[[str], None] = lambda _: None,
    render: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> DemoResult:
    """Draw one part of the sample product line, train ``fast`` on it, and evaluate.

    A second run in the same folder keeps the drawings where they are the same and replaces the rest.

    Args:
        out: folder of the demo; must be missing, empty, or a demo's own.
        part: name of a part of :data:`flawsmith.synthesis.demo_parts.PARTS`.
        render: other options of :func:`~flawsmith.synthesis.demo_parts.render_product_line`, such as ``n_train``.
        settings: other settings of :func:`~flawsmith.pipeline.train.train`, such as ``set``.

    Raises:
        FlawsmithError: an unknown part, a negative seed, or a folder that is not the demo's own.
    """
    _check(part, seed)
    with exclusive_folder(out):
        _draw(out, part, seed, on_message, render)
        dataset = load(out / _DATA / part)
        on_message(dataset.summary())
        on_message(training_in_words({"preset": "fast", "seed": seed, **(settings or {})}))
        result = train(dataset.root, out=out / _RUN, preset="fast", seed=seed, quiet=quiet, **(settings or {}))
        for line in result.bundle.spec.decision.describe().splitlines():
            on_message(line)
        on_message("inspecting the test parts")
        written = evaluate_into(out / _RUN / _EVALUATION, result.bundle, dataset, history=out / _RUN)
        return DemoResult(dataset.root, result.model, written.report, written.evaluation)


def draw_demo(
    out: Path,
    *,
    part: str = "bracket",
    seed: int = 0,
    on_message: Callable[[str], None] = lambda _: None,
    render: dict[str, Any] | None = None,
) -> Path:
    """Draw one part of the sample product line, unless the folder has the same drawings already.

    Args:
        out, part, seed, render: as for `run_demo`.
        on_message: is told what is done.

    Returns:
        Folder of the part, in MVTec layout.

    Raises:
        FlawsmithError: as `run_demo`.
    """
    _check(part, seed)
    with exclusive_folder(out):
        _draw(out, part, seed, on_message, render)
    return out / _DATA / part


def _check(part: str, seed: int) -> None:
    if part not in PARTS:
        raise FlawsmithError(f"unknown sample part {part!r}: choose one of {', '.join(PARTS)} with --part")
    if seed < 0:
        raise FlawsmithError(f"the seed must not be negative, not {seed}: give another with --seed")


def _draw(out: Path, part: str, seed: int, on_message: Callable[[str], None], render: dict[str, Any] | None) -> None:
    # Through JSON, so that it compares with what the marker will say.
    drawing = json.loads(json.dumps({"version": flawsmith.__version__, "part": part, "seed": seed, **(render or {})}))
    if _claim(out, drawing):
        on_message(f"using the drawings of {part} from the last demo")
        return
    on_message(f"drawing {part}s, good ones and flawed ones")
    render_product_line(out / _DATA, parts=[part], seed=seed, **(render or {}))
    with replacing(out / MARKER) as temporary:
        temporary.write_text(json.dumps(drawing, indent=2) + "\n", encoding="utf-8")


def _claim(out: Path, drawing: dict[str, Any]) -> bool:
    """Make the folder the demo's own and clear away the last demo; whether its drawings serve again.

    Raises:
        FlawsmithError: the folder holds something else, or cannot be written.
    """
    marker = out / MARKER
    if not marker.exists() and any(entry.name != LOCK for entry in out.iterdir()):
        raise FlawsmithError(f"{out} is not empty and holds no demo: give another folder with --out")
    try:
        serves = marker.exists() and _read(marker) == drawing and (out / _DATA / str(drawing["part"])).is_dir()
        for name in (_RUN,) if serves else (_RUN, _DATA, STUDIO):
            if (out / name).exists():
                with exclusive_folder(out / name):  # one that is in use stays
                    pass
                shutil.rmtree(out / name)
        if not serves:
            # Claimed before anything is drawn, so that an interrupted demo can be run again.
            with replacing(marker) as temporary:
                temporary.write_text("{}\n", encoding="utf-8")
    except OSError as error:
        raise FlawsmithError(f"{out} cannot be written ({error.strerror}): give another folder with --out") from error
    return serves


def _read(marker: Path) -> Any:
    try:
        return json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        return None
