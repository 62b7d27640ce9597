"""The demonstration in a studio: drawn parts are taught, trained, and then come along, flaws among them."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path

from flawsmith.line.queue import NoModelError, QueueClosedError, QueueFullError
from flawsmith.line.record import Trigger
from flawsmith.line.station import Line
from flawsmith.line.trainings import Order, Training
from flawsmith.line.workspace import Workspace
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import find_images

PARTS_A_SECOND = 2.0
FLAWED_SHARE = 0.05
"""Of the parts that come along; a real line has fewer, and would be a dull demonstration."""
_LOOK_SECONDS = 0.5

log = logging.getLogger("flawsmith.line")


class PassingParts(threading.Thread):
    """Parts of a folder of test images that come along a line, mostly good ones.

    Args:
        line: that judges them.
        folder: with ``good/`` and folders of flaws.
        seed: of their order.
        rate: parts a second.
    """

    def __init__(self, line: Line, folder: Path, *, seed: int = 0, rate: float = PARTS_A_SECOND) -> None:
        super().__init__(name="parts", daemon=True)
        images = find_images(folder)
        self._good = [path for path in images if path.parent.name == "good"]
        self._flawed = [path for path in images if path.parent.name != "good"]
        if not self._good or not self._flawed:
            raise FlawsmithError(f"{folder} has no good and flawed test images")
        self._line, self._random, self._seconds = line, random.Random(seed), 1 / rate
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(self._seconds):
            kind = self._flawed if self._random.random() < FLAWED_SHARE else self._good
            try:
                self._line.submit(Trigger(self._line.name, self._random.choice(kind).read_bytes()))
            except (QueueFullError, NoModelError):
                continue  # a real line counts what it drops; these parts come again
            except QueueClosedError:
                return

    def close(self) -> None:
        """Let no more parts come."""
        self._ended.set()


def teach_demo(workspace: Workspace, line: str, images: Path) -> None:
    """Teach a line with a folder of good images, and wait until they are in.

    Raises:
        FlawsmithError: they cannot be taken in.
    """
    ended = threading.Event()
    job = workspace.import_folder(line, images, on_end=ended.set)
    ended.wait()
    if job.error:
        raise FlawsmithError(job.error)


def train_demo(
    workspace: Workspace,
    line: str,
    order: Order,
    *,
    until: threading.Event,
    on_words: Callable[[str], object],
) -> Training | None:
    """Train a line, or go on with its latest training, and wait until that is done.

    Args:
        workspace: of the studio.
        line: its name.
        order: what to train.
        until: waits no longer once it is set; the training goes on.
        on_words: is told each step.

    Returns:
        The training; None: it was not waited for.

    Raises:
        FlawsmithError: it cannot be begun, or failed.
    """
    latest = next(iter(workspace.trainings.of(line)), None)
    if latest is None or latest.state == "failed":
        latest = workspace.trainings.start(line, workspace.teaching(line), order, who="demo")
    elif latest.state in ("stopped", "interrupted"):
        latest = workspace.trainings.resume(line, latest.asked.number)
    said = ""
    while not until.is_set():
        training = workspace.trainings.get(line, latest.asked.number)
        assert training is not None, "it was begun"
        words = "" if training.run is None else training.run.progress.words.partition(",")[0]
        if words not in ("", said):
            on_words(said := words)
        if training.state == "failed":
            raise FlawsmithError(training.error)
        if training.state == "done":
            return training
        until.wait(_LOOK_SECONDS)
    return None
