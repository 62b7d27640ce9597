"""The versions of a line's model: files by the hash of their content, and what the audit says of them.

The audit alone says which versions a line has and which of them is live: what it holds survives a kill, and cannot be
told otherwise later. A file is there before the audit speaks of it, and goes after the audit has said so. A file of a
stranger is read, opened and run in a process of its own first.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flawsmith.data.splits import content_hash
from flawsmith.line.store import AuditEntry, Store
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.engine import run_apart
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector, self_test
from flawsmith.runtime.system import give_way, sync_folder

TRIAL_SECONDS = 30.0
"""For a file to be read, opened, and to work on its images, while the lines are at work too."""
_NICE = 10
KEPT = 3
"""Versions that stay beside the live one to roll back to, and as many that are none of these."""


class ModelFacts(BaseModel):
    """What a model file says of itself, as it was read and run in a process of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(description="such as fusion")
    preset: str
    product: str = Field(description="what the model learned to know")
    learned_from: int = Field(description="good images that it learned from")
    self_tests: int = Field(description="images of the file on which it gives the numbers of the machine that made it")
    decision: Decision = Field(description="the limits of the file")

    @classmethod
    def of(cls, bundle: Bundle, self_tests: int) -> ModelFacts:
        """What a bundle says of itself, and how many images it was tested on."""
        spec = bundle.spec
        return cls(
            method=spec.method,
            preset=spec.preset,
            product=spec.training.category,
            learned_from=spec.training.n_train,
            self_tests=self_tests,
            decision=spec.decision,
        )


@dataclass(frozen=True)
class Version:
    """A version of a line's model.

    Attributes:
        number: of the line's versions, from 1 in the order in which they came.
        sha256: of the file.
        size: of the file in bytes.
        at: when it came, UTC.
        who: brought it.
        source: uploaded, or named in the settings.
        facts: what it is.
    """

    number: int
    sha256: str
    size: int
    at: str
    who: str
    source: Literal["upload", "settings"]
    facts: ModelFacts


@dataclass(frozen=True)
class ShadowOrder:
    """A shadow run as it was asked for.

    Attributes:
        run: number of the entry in the audit with which it began.
        sha256: of the version.
        parts: to be judged.
        at, who: when it began, and who asked.
        ended: why it ended; empty: it runs.
        missed: parts that it could not keep up with; known where it ended.
    """

    run: int
    sha256: str
    parts: int
    at: str
    who: str
    ended: str = ""
    missed: int = 0


class ModelFiles:
    """The model files of all lines, each once.

    Args:
        folder: where they lie; made when the first comes.

    Attributes:
        lock: held from the moment a file is there until the audit speaks of it, as files that it does not speak of go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()

    def path(self, sha256: str) -> Path:
        """Where the file with this content lies, or would."""
        return self.folder / f"{sha256}.flaw"

    def __contains__(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    @contextmanager
    def receiving(self) -> Iterator[Path]:
        """A path for a file that arrives; it is gone afterwards unless it was taken.

        Raises:
            FlawsmithError: the folder cannot be made.
        """
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise FlawsmithError(f"{self.folder}: cannot be made ({error.strerror})") from None
        path = self.folder / f".upload.{secrets.token_hex(6)}.tmp"  # such names go when a service starts after a kill
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def take(self, received: Path, sha256: str) -> None:
        """Give a file that arrived whole its place.

        Raises:
            FlawsmithError: it cannot be written.
        """
        try:
            with received.open("rb+") as file:
                os.fsync(file.fileno())
            received.replace(self.path(sha256))
            sync_folder(self.folder)
        except OSError as error:
            raise FlawsmithError(f"{self.folder}: cannot be written ({error.strerror}); free some space") from None

    def copy(self, source: Path, sha256: str) -> None:
        """Take a copy of a file.

        Raises:
            FlawsmithError: it cannot be read or written, or has another content meanwhile.
        """
        with self.receiving() as path:
            try:
                shutil.copyfile(source, path)
            except OSError as error:
                raise FlawsmithError(f"{source}: cannot be copied to {self.folder} ({error.strerror})") from None
            if content_hash(path) != sha256:
                raise FlawsmithError(f"{source}: was written anew while it was read; load it again")
            self.take(path, sha256)

    def sweep(self, store: Store) -> None:
        """Remove the files of which no line has a version any more."""
        with self.lock:
            entries = _entries(store)
            lines = {entry.line for entry in entries}
            known = {sha256 for line in lines for sha256 in Versions(store, line, entries).by_sha256}
            for path in self.folder.glob("*.flaw"):
                if path.stem not in known:
                    with suppress(OSError):  # on Windows one that is being read; it goes the next time
                        path.unlink()


def _entries(store: Store, line: str | None = None) -> list[AuditEntry]:
    """What the audit says of models and of lines that came and went, the oldest first."""
    entries = [entry for kind in ("model", "line") for entry in store.entries(kind=kind, line=line, count=-1)]
    return sorted(entries, key=lambda entry: entry.id)


class Versions:
    """The versions of a line, as the audit tells their history.

    Args:
        store: that holds the audit.
        line: name of the line.
        entries: of the audit about models and lines, the oldest first; None: read now.
        on_note: told of each entry that is written.

    Attributes:
        by_sha256: the versions whose files are there, the oldest first.
        history: those that were live, in order, each once, the live one last; those that were rolled back are not
            among them.
        others: all others, in the order in which they came or were rolled back.
        named: hash of the file that the settings named when they were looked at last.
        shadow: the shadow run that goes on; None: none does.
        runs: the latest shadow run of a version, by its hash.
    """

    def __init__(
        self,
        store: Store,
        line: str,
        entries: Sequence[AuditEntry] | None = None,
        on_note: Callable[[AuditEntry], object] = lambda _: None,
    ) -> None:
        self._store, self._line, self._on_note = store, line, on_note
        self._lock = threading.Lock()
        self._count = 0
        self.by_sha256: dict[str, Version] = {}
        self.history: list[str] = []
        self.others: list[str] = []
        self.named: str | None = None
        self.shadow: ShadowOrder | None = None
        self.runs: dict[str, ShadowOrder] = {}
        for entry in _entries(store, line) if entries is None else entries:
            if entry.line == line:
                self._follow(entry)

    @property
    def live(self) -> str | None:
        """Hash of the version that judges, or did when the line had a model last."""
        return self.history[-1] if self.history else None

    def state(self, sha256: str) -> Literal["live", "shadow", "kept"]:
        """What a version is to the line now."""
        if sha256 == self.live:
            return "live"
        return "shadow" if self.shadow is not None and self.shadow.sha256 == sha256 else "kept"

    @property
    def surplus(self) -> list[str]:
        """Versions that need not stay."""
        former, others = (
            [sha256 for sha256 in places if self.state(sha256) == "kept"] for places in (self.history, self.others)
        )
        return former[:-KEPT] + others[:-KEPT]

    def note(self, action: str, *, who: str, **facts: Any) -> AuditEntry:
        """Write what was done into the audit, and remember it.

        Args:
            action: added, activated, rolled back, removed, loaded, unloaded, shadow begun or shadow ended.
            who: did it.
            **facts: ready for JSON.

        Raises:
            UnwritableError: it cannot be written; nothing was done then.
        """
        with self._lock:
            return self._note(action, who, facts)

    def end_shadow(self, run: int, *, who: str, why: str, **facts: Any) -> bool:
        """Note that a shadow run has ended, unless that was noted before.

        Returns:
            Whether it was not.
        """
        with self._lock:
            order = self.shadow
            if order is None or order.run != run:
                return False
            self._note("shadow ended", who, {"sha256": order.sha256, "run": run, "why": why, **facts})
            return True

    def _note(self, action: str, who: str, facts: dict[str, Any]) -> AuditEntry:
        entry = self._store.note("model", who=who, line=self._line, facts={"action": action, **facts})
        self._follow(entry)
        self._on_note(entry)
        return entry

    def _follow(self, entry: AuditEntry) -> None:
        facts, action = entry.facts, entry.facts.get("action")
        if entry.kind == "line" and "removed" in facts:  # another line of this name begins with nothing
            self.by_sha256, self.history, self.others, self.runs = {}, [], [], {}
            self.named = self.shadow = None
            return
        sha256 = facts.get("sha256")
        if sha256 is None:  # entries of services before there were versions say nothing that holds still
            return
        if action == "activated" and facts.get("source") == "settings":
            self.named = sha256
        if action == "added":
            self._count += 1
            known = ModelFacts.model_validate(facts["model"])
            self.by_sha256[sha256] = Version(
                self._count, sha256, facts["size"], entry.at, entry.who, facts["source"], known
            )
            self._place(sha256, self.others)
        elif action == "activated":
            self._place(sha256, self.history)
        elif action == "rolled back":
            former = self.history.pop()
            self._place(former, self.others)
            self._place(sha256, self.history)
        elif action == "removed":
            self.by_sha256.pop(sha256, None)
            self._place(sha256, None)
        elif action == "shadow begun":
            self.shadow = self.runs[sha256] = ShadowOrder(entry.id, sha256, facts["parts"], entry.at, entry.who)
        elif action == "shadow ended" and self.shadow is not None:
            self.runs[sha256] = replace(self.shadow, ended=facts["why"], missed=facts.get("missed", 0))
            self.shadow = None

    def _place(self, sha256: str, target: list[str] | None) -> None:
        """Put a version at the end of a list, and nowhere else."""
        for places in (self.history, self.others):
            if sha256 in places:
                places.remove(sha256)
        if target is not None:
            target.append(sha256)


def try_model(path: Path, *, engine: str | None, device: str | None, threads: int | None) -> ModelFacts:
    """Verify a model file, open it and run it.

    Args:
        path: of the file.
        engine, device: that the line asks for; None: those of the file.
        threads: for the network; None: one a core.

    Returns:
        What the file says of itself.

    Raises:
        FlawsmithError: it is no intact model, takes too long or too much memory, or gives other numbers than on the
            machine that made it.
    """
    facts = run_apart(
        partial(_tried, path, engine, device, threads),
        seconds=TRIAL_SECONDS,
        too_long=f"the model takes more than {TRIAL_SECONDS:g} s to be opened and run; use another one",
        is_memory_bounded=device in (None, "cpu"),  # drivers of GPUs map more than any machine has
    )
    return ModelFacts.model_validate(facts)


def _tried(path: Path, engine: str | None, device: str | None, threads: int | None) -> dict[str, Any]:
    give_way(_NICE)  # parts come first
    try:
        bundle = Bundle.load(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another engine than that of the limits: stderr is for refusals
            inspector = Inspector.load(bundle, engine=engine, device=device, threads=threads, max_seconds=TRIAL_SECONDS)
        tests = self_test(inspector, bundle)
    except FlawsmithError as error:
        raise FlawsmithError(str(error).replace(f"{path}: ", "").replace(str(path), "the file")) from None
    return ModelFacts.of(bundle, tests).model_dump(mode="json")
