"""A studio's folder: lines with their images, trainings, and the records of a service.

::

    <studio>/studio.json        the lines, written by the studio
             settings.toml      perhaps: tokens and other settings of a service, written by a person
             lines/<line>/      images, see `flawsmith.line.teaching`
             trainings/<line>/  see `flawsmith.line.trainings`
             records/           as `flawsmith serve` has
             looks.db           a cache, which may be deleted
             incoming/          files on their way
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import threading
import time
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from flawsmith.data.layouts.base import companions_among
from flawsmith.data.layouts.names import sort_folders
from flawsmith.line.looks import Looks
from flawsmith.line.settings import LINE_NAME, LineSettings, ServiceSettings, read_toml
from flawsmith.line.teaching import USED, Addition, Role, Teaching, role_said
from flawsmith.line.trainings import Training, Trainings
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import (
    IMAGE_SUFFIXES,
    is_stray,
    iter_images,
    open_regular,
    printable,
    replacing,
    without_controls,
)
from flawsmith.runtime.outputs import exclusive_folder, remove_unfinished

LINES, SETTINGS = "studio.json", "settings.toml"
MOST_FILES = 50_000
"""Of one folder or archive."""
MOST_UNPACKED = 2**34
"""Bytes that an archive may unpack to."""
_LEAST_FREE = 2**28
_NAMED = 20
_QUIET_SECONDS = 1.0
_FORGOTTEN_SECONDS = 60.0
"""After which the images of a line that nobody asks about are looked at no more, until somebody does."""
_PIECE = 2**20

log = logging.getLogger("flawsmith.line")


class ImportingError(FlawsmithError):
    """Images of another folder or archive are on their way to the line."""


@dataclass
class Import:
    """Images that come from a folder or an archive, in a thread.

    Attributes:
        source: its name.
        total: files that may be images.
        done: of them.
        added, known: images that are new, and that were there already.
        flawed: of the new ones those that their folders say are flawed, where good ones were asked for.
        refused: the first that cannot be taken, with the reason.
        refused_count: number of all of those.
        passed_over: files that are no images by their names.
        error: why it ended early.
        is_over: whether it has ended.
    """

    source: str
    total: int = 0
    done: int = 0
    added: int = 0
    known: int = 0
    flawed: int = 0
    refused: list[str] = field(default_factory=list)
    refused_count: int = 0
    passed_over: int = 0
    error: str = ""
    is_over: bool = False

    def note(self, addition: Addition, asked: Role) -> None:
        """Count what became of a file that was to have a role."""
        self.done += 1
        self.flawed += addition.outcome == "added" and addition.role == "flawed" != asked
        self.added += addition.outcome == "added"
        self.known += addition.outcome == "known"
        if addition.outcome == "refused":
            self.refused_count += 1
            if len(self.refused) < _NAMED:
                self.refused.append(f"{without_controls(printable(addition.name))}: {addition.why}")


class Workspace:
    """A studio's folder, which one process alone may write.

    Args:
        folder: made where it is missing.

    Attributes:
        trainings: of all lines.

    Raises:
        FlawsmithError: another process uses it, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._ended = threading.Event()
        try:
            self._stack.enter_context(exclusive_folder(folder))
        except FlawsmithError as error:  # this folder is named by an argument
            words = str(error).replace("another --out", "another folder").removesuffix(" with --out")
            raise FlawsmithError(words) from None
        try:
            shutil.rmtree(folder / "incoming", ignore_errors=True)  # of a process that was killed
            for name in ("lines", "incoming"):
                (folder / name).mkdir(exist_ok=True)
            for place, _, _ in os.walk(folder / "lines"):
                remove_unfinished(Path(place))
            self._settings = self._read_settings()
            self._looks = Looks(folder, max_pixels=self._settings.max_pixels)
            self._stack.callback(self._looks.close)
        except BaseException:
            self._stack.close()
            raise
        self._teachings: dict[str, Teaching] = {}
        self._asked: dict[str, float] = {}
        self._importing: list[threading.Thread] = []
        self.imports: dict[str, Import] = {}
        self.trainings = Trainings(folder / "trainings")
        self._worker = threading.Thread(target=self._look_around, name="looks", daemon=True)

    # Settings

    def settings(self, **changes: Any) -> ServiceSettings:
        """Settings for a service of this folder.

        Args:
            **changes: fields that take the place of those in ``settings.toml``; None leaves the file's.

        Raises:
            FlawsmithError: one is wrong.
        """
        chosen = {name: value for name, value in changes.items() if value is not None}
        values = {name: getattr(self._settings, name) for name in ServiceSettings.model_fields}
        return ServiceSettings.checked({**values, **chosen}, self.folder / SETTINGS)

    def _read_settings(self) -> ServiceSettings:
        file = self.folder / SETTINGS
        settings = ServiceSettings.checked({"lines": {}, **(read_toml(file) if file.exists() else {})}, file)
        self._of_file = {name: line.seen_from(self.folder) for name, line in settings.lines.items()}
        self._written: dict[str, LineSettings] = {}
        stored = self.folder / LINES
        if stored.exists():
            try:
                self._written = ServiceSettings.checked(json.loads(stored.read_bytes()), stored).lines
            except (OSError, ValueError) as error:  # another one would be written over it
                raise FlawsmithError(f"{stored}: cannot be read ({error}); correct it, or move it away") from None
        lines = {name: LineSettings() for name in self._taught()} | self._written | self._of_file
        return settings.model_copy(update={"records": self.folder / "records", "lines": lines})

    def _taught(self) -> list[str]:
        """Lines by the folders of images that a person has put there."""
        return [
            entry.name
            for entry in sorted((self.folder / "lines").iterdir())
            if LINE_NAME.fullmatch(entry.name) and (entry / "good").is_dir()
        ]

    def write_lines(self, lines: dict[str, LineSettings]) -> None:
        """Remember lines beside those of before, but those of the settings file, which stay there.

        Raises:
            FlawsmithError: nothing can be written.
        """
        with self._lock:  # of two lines that are made at once both stay
            lines = {name: line for name, line in {**self._written, **lines}.items() if name not in self._of_file}
            values = {name: line.model_dump(mode="json", exclude_defaults=True) for name, line in lines.items()}
            with replacing(self.folder / LINES) as temporary:
                temporary.write_text(json.dumps({"lines": values}, indent=1) + "\n", encoding="utf-8")
            self._written = lines

    # Teaching

    def teaching(self, line: str) -> Teaching:
        """The images of a line, which need not have any yet."""
        with self._lock:
            self._asked[line] = time.monotonic()
            if line not in self._teachings:
                self._teachings[line] = Teaching(self.folder / "lines" / line, self._looks, self.folder / "incoming")
            return self._teachings[line]

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A path for a file on its way; gone afterwards."""
        path = self.folder / "incoming" / secrets.token_hex(12)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def has_room(self, length: int = 0) -> bool:
        """Whether the disk has room for so many bytes more, and some for records."""
        return shutil.disk_usage(self.folder).free - length > _LEAST_FREE

    def import_folder(self, line: str, folder: Path, *, role: Role = "learn", on_end: Callable[[], object]) -> Import:
        """Copy the images of a folder of this machine, with its subfolders, in a thread.

        They are copied, so that what happens to the folder later changes nothing that was taught.

        Raises:
            FlawsmithError: there is no such folder, it has no images or too many, nothing says which of its folders
                hold flawed parts, or another import works.
        """
        paths = []
        for path in iter_images(folder):
            paths.append(path)
            if len(paths) > MOST_FILES:
                raise FlawsmithError(f"{folder} has more than {MOST_FILES:,} images: name one of its folders")
        if not paths:
            raise FlawsmithError(f"{folder} has no images: check the path")
        inner = [path.relative_to(folder) for path in paths]
        companions = companions_among(inner)
        _refuse_unclear([path for path in inner if path not in companions], role)
        job = self._begin(line, folder.name, len(paths))

        def work() -> None:
            for path, within in zip(paths, inner, strict=True):
                if self._ended.is_set():
                    return
                if within in companions:
                    job.note(_refused_companion(path.name), role)
                    continue
                inside = within.parent.as_posix()
                with self.incoming() as copy:
                    try:
                        status = path.stat()
                        self._refuse_without_room(status.st_size)
                        with open_regular(path) as image, copy.open("wb") as target:
                            shutil.copyfileobj(image, target)
                    except OSError as error:
                        job.note(
                            Addition(path.name, "refused", why=f"cannot be read ({error.strerror or error})"), role
                        )
                        continue
                    addition = self.teaching(line).add(
                        copy,
                        name=path.name,
                        folder="" if inside == "." else inside,
                        role=role_said(folder.name, role),
                        modified=status.st_mtime,
                    )
                    job.note(addition, role)

        self._run(job, work, on_end)
        return job

    def import_archive(self, line: str, archive: Path, *, role: Role = "learn", on_end: Callable[[], object]) -> Import:
        """Take the images of a zip archive, in a thread; the archive goes.

        Names in it are names alone: they lead nowhere. What unpacks to more than `MOST_UNPACKED` bytes is refused.

        Raises:
            FlawsmithError: it is no zip archive, holds no images or too much, or another import works.
        """
        try:
            opened = zipfile.ZipFile(archive)
            entries = [entry for entry in opened.infolist() if not entry.is_dir() and not _is_stray(entry.filename)]
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            archive.unlink(missing_ok=True)
            raise FlawsmithError(f"this is no zip archive that can be read ({error}): pack it anew") from None
        images = [entry for entry in entries if Path(entry.filename).suffix.lower() in IMAGE_SUFFIXES]
        try:
            self._check_archive(images)
            names = {entry.filename: PurePosixPath(entry.filename.replace("\\", "/")) for entry in images}
            companions = companions_among([*names.values()])
            _refuse_unclear([path for path in names.values() if path not in companions], role)
            job = self._begin(line, archive.name, len(images))
        except FlawsmithError:
            opened.close()
            archive.unlink(missing_ok=True)
            raise
        job.passed_over = len(entries) - len(images)

        def work() -> None:
            try:
                with opened:
                    for entry in images:
                        if names[entry.filename] in companions:
                            job.note(_refused_companion(names[entry.filename].name), role)
                    parts = [entry for entry in images if names[entry.filename] not in companions]
                    self._unpack(line, opened, parts, role, job)
            finally:
                archive.unlink(missing_ok=True)

        self._run(job, work, on_end)
        return job

    def _check_archive(self, images: list[zipfile.ZipInfo]) -> None:
        if not images:
            raise FlawsmithError("the archive holds no images: put PNG or JPEG files into it")
        if len(images) > MOST_FILES:
            raise FlawsmithError(f"the archive holds more than {MOST_FILES:,} images: pack fewer into one")
        if sum(entry.file_size for entry in images) > MOST_UNPACKED:
            raise FlawsmithError(f"the archive unpacks to more than {MOST_UNPACKED // 2**30} GB: pack less into one")
        if any(entry.flag_bits & 1 for entry in images):
            raise FlawsmithError("the archive is locked with a password: pack it without one")

    def _unpack(
        self, line: str, archive: zipfile.ZipFile, images: list[zipfile.ZipInfo], role: Role, job: Import
    ) -> None:
        left = MOST_UNPACKED
        for entry in images:
            if self._ended.is_set():
                return
            folder, _, name = entry.filename.replace("\\", "/").rpartition("/")
            if entry.file_size > self._settings.max_bytes:
                job.note(Addition(name, "refused", why=f"has more than {self._settings.max_bytes} bytes"), role)
                continue
            with self.incoming() as path:
                try:
                    left -= self._extract(archive, entry, path, min(left, self._settings.max_bytes))
                except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
                    job.note(Addition(name, "refused", why=f"the archive is damaged here ({error})"), role)
                    continue
                modified = None
                with suppress(ValueError, OverflowError):
                    modified = time.mktime((*entry.date_time, 0, 0, -1))
                addition = self.teaching(line).add(path, name=name, folder=folder, role=role, modified=modified)
                job.note(addition, role)

    def _extract(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, most: int) -> int:
        """Bytes of an entry, counted as they come: what an archive says of their number need not be so.

        Raises:
            OSError: there are more than may be.
            FlawsmithError: the disk is full.
        """
        length = 0
        with archive.open(entry) as source, path.open("wb") as target:
            while piece := source.read(_PIECE):
                length += len(piece)
                if length > most:
                    raise OSError("too large")
                self._refuse_without_room(len(piece))
                target.write(piece)
        return length

    def _refuse_without_room(self, length: int) -> None:
        if not self.has_room(length):
            raise FlawsmithError("the disk is full: free some space")

    def _begin(self, line: str, source: str, total: int) -> Import:
        with self._lock:
            before = self.imports.get(line)
            if before is not None and not before.is_over:
                raise ImportingError(f"images from {before.source} are being added: wait until they are in")
            job = self.imports[line] = Import(source, total)
            return job

    def is_importing(self, line: str) -> bool:
        """Whether images of a folder or an archive are on their way to a line."""
        job = self.imports.get(line)
        return job is not None and not job.is_over

    def _run(self, job: Import, work: Callable[[], None], on_end: Callable[[], object]) -> None:
        def run() -> None:
            try:
                work()
            except FlawsmithError as error:
                job.error = str(error)
            except Exception as error:
                log.exception("an import failed")
                job.error = f"a defect of Flawsmith ({type(error).__name__}): see the log"
            job.is_over = True
            try:
                on_end()
            except FlawsmithError as error:
                log.error("what came of an import was not noted: %s", error)

        thread = threading.Thread(target=run, name="import", daemon=True)
        self._importing = [*(each for each in self._importing if each.is_alive()), thread]
        thread.start()

    # Running

    def start(self, on_done: Callable[[Training], str]) -> None:
        """Begin to look at images and to follow trainings.

        Args:
            on_done: see `Trainings.follow`.
        """
        self._worker.start()
        self.trainings.follow(on_done)

    def close(self) -> None:
        """Give the folder back. Trainings go on; an import ends after the image that it is at."""
        self._ended.set()
        self.trainings.close()
        for thread in self._importing:
            thread.join()
        if self._worker.is_alive():
            self._worker.join()
        self._stack.close()

    def _look_around(self) -> None:
        """Look at images that nobody has looked at, and let the doctor look where there is nothing more to see."""
        while not self._ended.wait(0.2):
            for line, teaching in list(self._teachings.items()):
                if time.monotonic() - self._asked[line] > _FORGOTTEN_SECONDS:
                    continue
                try:
                    while not self._ended.is_set() and teaching.look_at():
                        pass
                    if time.monotonic() - teaching.changed < _QUIET_SECONDS or self.is_importing(line):
                        continue
                    if not self._ended.is_set() and not teaching.is_ranked:
                        teaching.rank()
                    if not self._ended.is_set() and not teaching.is_checked:
                        teaching.findings()
                except Exception:
                    log.exception("images of %s cannot be looked at", teaching.folder)
                    self._ended.wait(5)


def _refused_companion(name: str) -> Addition:
    return Addition(name, "refused", why="a mask or an overlay by its name, not an image of a part")


def _refuse_unclear(images: Iterable[PurePath], role: Role) -> None:
    """Refuse folders beside each other of which one may hold good and another flawed parts, where nothing says which.

    Raises:
        FlawsmithError: naming them.
    """
    beside: dict[PurePath, set[Path]] = defaultdict(set)
    for folder in {parent for image in images for parent in image.parents if parent.name}:
        beside[folder.parent].add(Path(folder))
    for folders in beside.values() if role in USED else ():
        names = sort_folders(sorted(folders))
        if names.unclear and not names.good:
            unclear = " and ".join(f"{printable(folder.name)}/" for folder in names.unclear)
            fix = "rename them to good/ and bad/, or give one of them"
            raise FlawsmithError(f"nothing says whether {unclear} hold good or flawed parts: {fix}")


def _is_stray(name: str) -> bool:
    return any(is_stray(part) for part in name.replace("\\", "/").split("/") if part.strip("."))
