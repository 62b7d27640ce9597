"""Trainings in processes of their own, which outlive the service that began them.

::

    <trainings>/<line>/<number>/training.json    what was asked, written before the process is begun
                                images/<line>/   the images as they were: links
                                region.json      where to look, if anything was drawn
                                run/             the run folder of `flawsmith train`
                                progress.json    where it is; beside it lies a lock for as long as it lives
                                log.txt          what it says

A service that begins again finds a training by these files: one that lives is followed, one that was killed can be
continued, and a model that nobody has taken yet is handed over.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from flawsmith.data.splits import content_hash
from flawsmith.line.record import now
from flawsmith.line.teaching import REGION, Teaching
from flawsmith.models import METHODS
from flawsmith.pipeline.progress import RunState, is_alive, preview_path, read_preview, steps_of_training
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import BASELINE_FOLDER, replacing
from flawsmith.runtime.system import ask_to_end, end_group, start_group

Choice = Literal["quick", "accurate", "method"]
"""A first look in about a minute; the method that ranks best; a method of the user's."""
TrainingState = Literal["starting", "running", "done", "failed", "stopped", "interrupted"]
"""An interrupted one was killed, by a power cut or for want of memory."""
RECORD, IMAGES, RUN, PROGRESS, LOG = "training.json", "images", "run", "progress.json", "log.txt"
MODEL, REPORT, METRICS, RUN_RECORD = "model.flaw", "report.html", "metrics.jsonl", "run.json"
STOP = ".stop"
"""Lies in the folder of a training that was asked to end."""
_LOOK_SECONDS = 0.5
_LOGGED = 16 * 1024
_SAMPLES = 6
_PATIENCE = 30.0
_KILLED = "its process was killed, perhaps by a power cut or for want of memory: continue it"
_KINDER = 10
"""Added to the niceness of a training: parts are judged first."""

log = logging.getLogger("flawsmith.line")


class Order(BaseModel):
    """What a training is asked to do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    choice: Choice = Field(default="accurate", description="quick: PatchCore alone; accurate: Fusion; method: your own")
    method: str | None = Field(default=None, max_length=40, description="with `method`: one of `flawsmith methods`")
    settings: dict[str, JsonValue] = Field(
        default_factory=dict, max_length=40, description="settings of the method to change, as --set takes them"
    )
    max_false_rejects: str = Field(
        default="10/1000", max_length=20, description="share of good parts that may be rejected"
    )

    @property
    def method_name(self) -> str:
        """The method.

        Raises:
            FlawsmithError: there is no such method, or none was named.
        """
        if self.choice != "method":
            return "patchcore" if self.choice == "quick" else "fusion"
        if self.method is None or self.method not in METHODS:
            raise FlawsmithError(f"choose a method: {', '.join(METHODS)}")
        return self.method

    def arguments(self) -> list[str]:
        """Options of `flawsmith train`.

        Raises:
            FlawsmithError: a setting's name cannot be one.
        """
        options = ["--method", self.method_name, "--max-false-rejects", self.max_false_rejects]
        options += ["--baseline", "none"] if self.method_name in ("patchcore", "padim") else []
        for name, value in self.settings.items():
            if re.fullmatch(r"[a-z][a-z0-9_]{0,60}", name) is None:
                raise FlawsmithError(f"{name[:60]!r} is no setting of a method")
            options += ["--set", f"{name}={json.dumps(value)}"]
        return options

    def about_seconds(self, images: int) -> float:
        """How long it takes on two cores, roughly: what the steps take on some hundred images."""
        has_loop = self.method_name not in ("patchcore", "padim")
        weights = steps_of_training(loops=has_loop, baseline=has_loop)
        return sum(weights.values()) * (0.4 + 0.6 * images / 100)


class Asked(BaseModel):
    """What stands in a training's record."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    line: str
    number: int
    order: Order
    arguments: list[str] = Field(description="of `flawsmith train`, seen from the training's folder")
    images: dict[str, int] = Field(description="by role")
    by: str = Field(description="how images were grouped")
    groups: int = Field(default=0, description="number of groups of good images")
    who: str
    at: str = Field(description="when it was begun, UTC")
    model_sha256: str = Field(default="", description="of its model, once that was handed over")


@dataclass(frozen=True)
class Sample:
    """An image of a report.

    Attributes:
        name: of the image or the flaw.
        is_forged: whether a flaw was drawn on it.
        pictures: addresses (``data:``) of the image and of its map.
        words: what the report says of it.
    """

    name: str
    is_forged: bool
    pictures: tuple[str, ...]
    words: str


class _Examples(HTMLParser):
    """The examples of a report that Flawsmith wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[Sample] = []
        self._is_inside = self._is_forged = self._is_said = self._is_named = False
        self._pictures: list[str] = []
        self._words, self._name = "", ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        if tag == "figure" and "example" in (facts.get("class") or "").split():
            self._is_inside, self._is_forged = True, facts.get("data-flawed") == "1"
            self._pictures, self._words, self._name = [], "", ""
        elif self._is_inside and tag == "img":
            self._pictures.append(facts.get("src") or "")
        elif self._is_inside and tag == "figcaption":
            self._is_said = True
        elif self._is_said and tag == "bdi":
            self._is_named = not self._name

    def handle_data(self, data: str) -> None:
        if self._is_named:
            self._name += data
        elif self._is_said:
            self._words += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "bdi":
            self._is_named = False
        elif tag == "figcaption":
            self._is_said = False
        elif tag == "figure" and self._is_inside:
            self._is_inside = False
            pictures = tuple(source for source in self._pictures if source.startswith("data:image/"))
            self.samples.append(Sample(self._name, self._is_forged, pictures, " ".join(self._words.split())))


def _spread(samples: list[Sample], most: int) -> list[Sample]:
    """So many of them, from the first to the last."""
    if len(samples) <= most:
        return samples
    return [samples[round(place * (len(samples) - 1) / max(1, most - 1))] for place in range(most)]


@dataclass(frozen=True)
class Caught:
    """How well a model in the making told synthetic flaws from good images, neither learned from.

    Attributes:
        words: when, such as ``epoch 3 of 20``.
        share: of the epochs that were done.
        caught: flaws whose score lay above that of every good image.
        count: of the flaws, and of the good images.
    """

    words: str
    share: float
    caught: int
    count: int


@dataclass(frozen=True)
class Training:
    """A training as it is now.

    Attributes:
        folder: of the training.
        asked: what was asked.
        state: how it stands.
        run: what it says itself; None: nothing yet.
        error: why it failed or cannot be told, in a line.
    """

    folder: Path
    asked: Asked
    state: TrainingState
    run: RunState | None = None
    error: str = ""

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to end, and has not yet."""
        return not self.is_over and (self.folder / STOP).exists()

    @property
    def is_over(self) -> bool:
        """Whether no process works on it."""
        return self.state not in ("starting", "running")

    @property
    def model(self) -> Path:
        """Its model file, which is there once it is done."""
        return self.folder / RUN / MODEL

    @property
    def report(self) -> Path:
        """Its report, likewise."""
        return self.folder / RUN / REPORT

    def left(self) -> float | None:
        """Seconds that are left; None: it is too early to tell, or nothing runs."""
        if self.run is None or self.state != "running" or self.run.progress.left is None:
            return None
        return max(0.0, self.run.progress.left - (time.time() - self.run.at))

    def log(self) -> str:
        """The end of what it says."""
        return _end_of(self.folder / LOG)

    def losses(self) -> list[float]:
        """The loss by epoch, of the stage that has most; empty where the method has none."""
        return list(_losses(*_version(self.folder / RUN / METRICS)))

    def caught(self) -> list[Caught]:
        """How many synthetic flaws the model told from all good images, as it learned."""
        return [Caught(**look) for look in read_preview(preview_path(self.folder / PROGRESS)).get("history", [])]

    def samples(self, most: int = _SAMPLES) -> list[Sample]:
        """Images with their maps, forged flaws first: as the report shows them, before that as the model learns."""
        if not self.report.exists():
            shown = read_preview(preview_path(self.folder / PROGRESS)).get("images", [])
            return [Sample(i["name"], i["is_flawed"], (i["picture"], i["heat"]), "") for i in shown[:most]]
        parser = _Examples()
        with suppress(OSError):
            parser.feed(self.report.read_text(encoding="utf-8"))
        forged = [sample for sample in parser.samples if sample.is_forged]
        good = [sample for sample in parser.samples if not sample.is_forged]
        shown = _spread(forged, most - min(len(good), most // 3))
        return [*shown, *good[: most - len(shown)]]

    def least_like_others(self, most: int) -> list[str]:
        """SHA-256 of the images that its baseline finds least like the others it learned from, oddest first."""
        hashes = []
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads((self.folder / RUN / RUN_RECORD).read_text(encoding="utf-8"))
            for image in record["least_like_others"][:most]:
                with suppress(FlawsmithError):
                    hashes.append(content_hash(self.folder / IMAGES / self.asked.line / image["image"]))
        return hashes

    def comparison(self) -> dict[str, float]:
        """Share of the forged flaws that are rejected, by ``model`` and ``baseline``, each at its own limit."""
        paths = {"model": self.model, "baseline": self.folder / RUN / BASELINE_FOLDER / MODEL}
        rates = {name: _rejected_share(*_version(path)) for name, path in paths.items()}
        return {name: rate for name, rate in rates.items() if rate is not None}


def _version(path: Path) -> tuple[Path, int]:
    """A file as it is now: what is computed of it holds until it is written again."""
    try:
        return path, path.stat().st_mtime_ns
    except OSError:
        return path, 0


@lru_cache(maxsize=256)
def _losses(metrics: Path, written: int) -> tuple[float, ...]:
    by_stage: dict[str, list[float]] = {}
    with suppress(OSError), metrics.open(encoding="utf-8") as lines:
        for line in lines:
            with suppress(ValueError, AttributeError, TypeError, StopIteration):
                row = json.loads(line)
                value = next(number for name, number in row.items() if name == "loss" or name.endswith("_loss"))
                by_stage.setdefault(str(row.get("stage", "")), []).append(float(value))
    longest: list[float] = max(by_stage.values(), key=len, default=[])
    return tuple(longest)


@lru_cache(maxsize=256)
def _rejected_share(model: Path, written: int) -> float | None:
    """Share of the forged flaws of a model file that lie above its limit; None: there is no such file, or none."""
    if not written:
        return None
    with suppress(FlawsmithError):
        bundle = Bundle.load(model)
        forged, decision = bundle.calibration.get("forged"), bundle.spec.decision
        if forged is not None and len(forged) and not decision.by_regions:
            return float((forged > decision.limit).mean())
    return None


def is_installed() -> bool:
    """Whether the packages are there that a training takes."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "lightning", "timm", "onnxscript"))


TO_INSTALL = "pip install 'flawsmith[train]'"


class Trainings:
    """All trainings of a studio, one of which works at a time.

    Args:
        folder: of trainings; made when the first is begun.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.RLock()
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="trainings", daemon=True)
        self._on_done: Callable[[Training], str] = lambda training: ""

    def follow(self, on_done: Callable[[Training], str]) -> None:
        """Begin to follow trainings: their models are handed over when they are done.

        Args:
            on_done: is given a training whose model nobody has taken yet, in a thread, and returns the model's SHA-256;
                what it raises leaves it so. Called again when a service begins, so it must take a model a second time
                without harm.
        """
        self._on_done = on_done
        self._thread.start()

    def close(self) -> None:
        """Follow no more. Trainings go on."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    # Reading

    def of(self, line: str) -> list[Training]:
        """The trainings of a line, the latest first."""
        trainings = (self._read(folder) for folder in self._folders(line))
        return [training for training in trainings if training is not None]

    def _folders(self, line: str | None = None) -> list[Path]:
        """The folders of the trainings of a line, or of all lines, the latest of each first."""
        numbered = [
            (place.name, int(folder.name), folder)
            for place in self._folder.glob(line or "*")
            if place.is_dir()
            for folder in place.iterdir()
            if folder.name.isdecimal()
        ]
        return [folder for _, _, folder in sorted(numbered, key=lambda each: (each[0], -each[1]))]

    def get(self, line: str, number: int) -> Training | None:
        """A training; None: there is none."""
        return self._read(self._folder / line / str(number))

    def working(self) -> Training | None:
        """The training that works now."""
        trainings = (self._read(folder) for folder in self._folders())
        return next((training for training in trainings if training is not None and not training.is_over), None)

    def _read(self, folder: Path) -> Training | None:
        try:
            asked = Asked.model_validate_json((folder / RECORD).read_bytes())
        except (OSError, ValidationError):
            return None
        run = RunState.read(folder / PROGRESS)
        if run is not None and run.state == "done":
            return Training(folder, asked, "done", run)
        with self._lock:
            process = self._processes.get(folder)
            is_running = process is not None and process.poll() is None
            lives = is_alive(folder / PROGRESS)
        if lives or is_running:
            return Training(folder, asked, "running" if run is not None else "starting", run)
        run = RunState.read(folder / PROGRESS)  # it may have ended between the two looks
        if run is None:
            said = _end_of(folder / LOG).strip().splitlines()
            return Training(folder, asked, "interrupted", None, said[-1] if said else "")
        if run.state == "running":
            return Training(folder, asked, "interrupted", run, _KILLED)
        return Training(folder, asked, run.state, run, run.error)

    # Beginning and ending

    def start(self, line: str, teaching: Teaching, order: Order, *, who: str) -> Training:
        """Begin a training on the images of a line as they are now.

        Args:
            line: its name.
            teaching: its images.
            order: what is asked.
            who: asks.

        Raises:
            FlawsmithError: one works already, there are too few images, packages lack, or nothing can be written.
        """
        arguments = order.arguments()
        if not is_installed():
            raise FlawsmithError(f"training needs further packages: {TO_INSTALL}, then start the studio again")
        with self._lock:
            self._refuse_second()
            folder = self._folder / line
            folder.mkdir(parents=True, exist_ok=True)
            number = max((int(former.name) for former in self._folders(line)), default=0) + 1
            unfinished = folder / f".{number}.{secrets.token_hex(6)}.tmp"
            try:
                unfinished.mkdir()
                images = teaching.snapshot(unfinished / IMAGES / line)
                groups = teaching.groups()
                arguments += ["--group", teaching.group_option()]
                region = teaching.region
                if region is not None:
                    (unfinished / REGION).write_text(json.dumps(region) + "\n", encoding="utf-8")
                    arguments += ["--roi", REGION]
                if teaching.settings.scale is not None:
                    arguments += ["--scale", f"{teaching.settings.scale:g}"]
                asked = Asked(
                    line=line,
                    number=number,
                    order=order,
                    arguments=[f"{IMAGES}/{line}", "--out", RUN, "--layout", "folder", *arguments],
                    images=images,
                    by=groups.by,
                    groups=groups.count(teaching.good_images()),
                    who=who,
                    at=now(),
                )
                (unfinished / RECORD).write_text(asked.model_dump_json(indent=1) + "\n", encoding="utf-8")
                unfinished.rename(folder / str(number))
            except OSError as error:
                raise FlawsmithError(f"{folder} cannot be written ({error.strerror}): see the disk") from None
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
            return self._begin(folder / str(number), asked)

    def resume(self, line: str, number: int) -> Training:
        """Continue a training that was stopped or killed, or try one again that failed.

        Raises:
            FlawsmithError: there is none, it works, or it is done; or another works.
        """
        with self._lock:
            training = self.get(line, number)
            if training is None or training.state == "done":
                raise FlawsmithError(f"line {line} has no training {number} that could be continued")
            self._refuse_second()
            return self._begin(training.folder, training.asked)

    def stop(self, line: str, number: int) -> Training:
        """Ask a training to end, as Ctrl-C does: it can be continued. Asked again half a minute later, it is killed.

        Raises:
            FlawsmithError: there is no such training.
        """
        with self._lock:
            training = self.get(line, number)
            if training is None:
                raise FlawsmithError(f"line {line} has no training {number}")
            if training.is_over:
                return training
            process = self._processes.get(training.folder)
            pid = process.pid if process is not None else training.run.pid if training.run is not None else None
            asked_before = training.folder / STOP
            if pid is not None:
                if _age(asked_before) > _PATIENCE:
                    end_group(pid)
                elif not asked_before.exists():
                    ask_to_end(pid)
                if not asked_before.exists():
                    asked_before.touch()
            return training

    def _refuse_second(self) -> None:
        working = self.working()
        if working is not None:
            raise FlawsmithError(
                f"line {working.asked.line} is being trained: wait until that has ended, or stop it first"
            )

    def _begin(self, folder: Path, asked: Asked) -> Training:
        for name in (PROGRESS, STOP):  # of the former try
            (folder / name).unlink(missing_ok=True)
        command = [sys.executable, "-m", "flawsmith", "train", *asked.arguments]
        command += ["--progress", PROGRESS, "--resume", "--json"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if "PYTHONPATH" in environment:  # its folders may be seen from here, and the training is at home elsewhere
            places = environment["PYTHONPATH"].split(os.pathsep)
            environment["PYTHONPATH"] = os.pathsep.join(str(Path(place).absolute()) for place in places)
        with (folder / LOG).open("ab") as said:
            process = start_group(
                command,
                niceness=_KINDER,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=environment,
            )
        self._processes[folder] = process
        return Training(folder, asked, "starting")

    # Following

    def _follow(self) -> None:
        told: set[Path] = set()
        while not self._ended.wait(_LOOK_SECONDS):
            try:
                self._hand_over(told)
            except Exception:
                log.exception("trainings cannot be followed")

    def _hand_over(self, told: set[Path]) -> None:
        with self._lock:
            for folder, process in list(self._processes.items()):
                if process.poll() is not None:
                    del self._processes[folder]
        for folder in self._folders():
            training = None if folder in told else self._read(folder)
            if training is None or training.state != "done":
                continue
            told.add(folder)  # what cannot be taken now is tried again by the next service
            if training.asked.model_sha256:
                continue
            try:
                sha256 = self._on_done(training)
            except FlawsmithError as error:
                log.error("the model of training %s was not taken: %s", folder, error)
                continue
            asked = training.asked.model_copy(update={"model_sha256": sha256})
            with replacing(folder / RECORD) as temporary:
                temporary.write_text(asked.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _age(path: Path) -> float:
    """Seconds since a file was written; 0: there is none."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _end_of(log: Path) -> str:
    with suppress(OSError), log.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _LOGGED))
        return stream.read().decode("utf-8", "replace")
    return ""


def facts_of(training: Training) -> Mapping[str, Any]:
    """What there is to say of a training, ready for JSON."""
    progress = None if training.run is None else training.run.progress
    return {
        "number": training.asked.number,
        "state": training.state,
        "error": training.error,
        "choice": training.asked.order.choice,
        "method": training.asked.order.method_name,
        "images": training.asked.images,
        "groups": training.asked.groups,
        "grouped_by": training.asked.by,
        "who": training.asked.who,
        "at": training.asked.at,
        "words": "starting" if progress is None else progress.words,
        "share": 0.0 if progress is None else progress.share,
        "seconds": 0.0 if progress is None else progress.seconds,
        "left": training.left(),
        "stopping": training.is_stopping,
        "losses": training.losses(),
        "caught": training.caught(),
        "comparison": training.comparison() if training.state == "done" else {},
        "model_sha256": training.asked.model_sha256,
    }
