"""The images that a line is taught with: ordinary folders, in which an image's place is its role.

::

    <line>/good/[<folder>/]           learned from
    <line>/validation/good/[...]      good ones that set the limit; without any, some of the others are held out for it
    <line>/bad/[...]                  flawed ones, which are never learned from, as those in good/ng/ or the like
    <line>/aside/left-out/[...]       good ones that are not used
    <line>/aside/not-good/[...]       taken out by a person; kept, and never learned from
    <line>/teach.json, region.json    grouping, scale, and where to look

`flawsmith train <line>` runs on such a folder, and files that a person puts there or takes away count. An image changes
its role by being renamed, in one step, so that there is nothing else that could say otherwise after a power cut.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flawsmith.data.doctor import Finding, check, glance
from flawsmith.data.groups import name_rule
from flawsmith.data.layouts import load
from flawsmith.data.layouts.base import holds_no_parts, is_set_apart
from flawsmith.data.layouts.names import meaning
from flawsmith.data.roi import read_drawing
from flawsmith.data.splits import content_hash, held_out_count
from flawsmith.line.looks import Look, Looks, oddness
from flawsmith.runtime.decision import images_needed, parts_of_1000, worst_rate
from flawsmith.runtime.errors import FlawsmithError, why_refused
from flawsmith.runtime.files import IMAGE_SUFFIXES, is_stray, replacing

Role = Literal["learn", "calibrate", "flawed", "left-out", "not-good"]
ROLES: tuple[Role, ...] = get_args(Role)
USED: tuple[Role, ...] = ("learn", "calibrate")
"""Roles of good images that a training uses."""
_PLACES: dict[Role, str] = {
    "learn": "good",
    "calibrate": "validation/good",
    "flawed": "bad",
    "left-out": "aside/left-out",
    "not-good": "aside/not-good",
}
SETTINGS, REGION = "teach.json", "region.json"
_SCAN_SECONDS = 2.0
_LONGEST_NAME = 80
MOST_ASKED = 6
_MOST_READ = 500
"""Images up to which the doctor reads every pixel each time that one changes."""
_ODD = 1.5
"""Times the usual distance to its neighbours from which an image is put before a person."""
ENOUGH_TO_LEARN, LEAST_TO_LEARN = 20, 5
_ENOUGH_DAYS = 10
_NEW_DAY = {1: (43, 209), 2: (24, 117), 5: (15, 74), 10: (13, 57), 20: (11, 52)}
"""By days behind a limit for 10 of 1,000 good parts: what it rejects on a new day, in the mean and one day in 20, where
days make 0.3 of the variance of scores (simulated with Gaussian scores of 200 images)."""


@dataclass(frozen=True)
class TaughtImage:
    """An image of a line.

    Attributes:
        sha256: of its content, by which it is called.
        path: of the file.
        role: what it is used for.
        folder: in which it was given, below that of its role; empty: none.
        modified: when the file was written, seconds since 1970.
        look: what is known of it; None: nobody has looked yet.
    """

    sha256: str
    path: Path
    role: Role
    folder: str
    modified: float
    look: Look | None = None


Outcome = Literal["added", "known", "refused"]


@dataclass(frozen=True)
class Addition:
    """What became of an image that was given.

    Attributes:
        name: as given.
        outcome: ``known``: there is an image of this content already, in whatever role.
        sha256: of its content; empty where it was refused.
        role: of the image that is there now.
        why: it was refused, in a line.
    """

    name: str
    outcome: Outcome
    sha256: str = ""
    role: Role | None = None
    why: str = ""


class TeachSettings(BaseModel):
    """How a line's images are to be taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    grouping: str = Field(
        default="auto",
        max_length=200,
        description="what images belong together: auto, none, folder, day (of exposure, else of the file), name:REGEX",
    )
    scale: float | None = Field(default=None, gt=0, le=1000, description="side of a pixel, millimetres")
    confirmed: tuple[str, ...] = Field(default=(), description="SHA-256 of odd images that a person called good")


@dataclass(frozen=True)
class Remark:
    """What stands out in a group.

    Attributes:
        words: such as ``3 darker than the rest``.
        images: SHA-256 of them.
    """

    words: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Images that belong together.

    Attributes:
        name: the day, folder or what the name says; empty: nothing says it.
        counts: of the images by role.
        remarks: what stands out.
    """

    name: str
    counts: Mapping[Role, int]
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class Groups:
    """How the images were grouped.

    Attributes:
        by: ``day``, ``folder``, ``name`` or ``none``.
        of: name of the group by image.
    """

    by: str
    of: Mapping[str, str] = field(default_factory=dict)

    def count(self, images: Iterable[TaughtImage]) -> int:
        """Number of groups that images are of."""
        return len({self.of.get(image.sha256, "") for image in images} - {""})


class Teaching:
    """The images of a line.

    Safe from several threads; a folder has one `Teaching` at a time.

    Args:
        folder: of the line; its name is the product's. Made when the first image comes.
        looks: remembers what was seen.
        incoming: an existing folder of the same file system, for images on their way.

    Attributes:
        changed: when an image came or changed its role last, on the monotonic clock.
        unreadable: by SHA-256 of images that cannot be read, why.
    """

    def __init__(self, folder: Path, looks: Looks, incoming: Path) -> None:
        self.folder, self._looks, self._incoming = folder, looks, incoming
        self._lock = threading.RLock()
        self._images: dict[str, TaughtImage] = {}
        self._copies: list[TaughtImage] = []
        self._scanned: float | None = None
        self._checked: tuple[str, tuple[Finding, ...]] = "", ()
        self._odd: dict[str, float] = {}
        self.changed = 0.0
        self.unreadable: dict[str, str] = {}

    # Images

    def images(self) -> dict[str, TaughtImage]:
        """All images by their SHA-256 as they are now; of several with the same content the first role counts."""
        with self._lock:
            if self._scanned is None or time.monotonic() - self._scanned > _SCAN_SECONDS:
                images: dict[str, TaughtImage] = {}
                self._copies = [image for image in self._scan() if images.setdefault(image.sha256, image) is not image]
                self._images, self._scanned = images, time.monotonic()
            return dict(self._images)  # threads that add images change it

    def good_images(self) -> list[TaughtImage]:
        """Those of good parts that a training uses."""
        return [image for image in self.images().values() if image.role in USED]

    def _scan(self) -> Iterator[TaughtImage]:
        for role in ROLES:
            root = self.folder / _PLACES[role]
            for place, folders, names in os.walk(root):
                folders[:] = sorted(name for name in folders if not is_stray(name))
                for name in sorted(names):
                    path = Path(place, name)
                    if path.suffix.lower() not in IMAGE_SUFFIXES or is_stray(name):
                        continue
                    try:
                        status = path.stat()
                        sha256 = self._looks.sha256(path, status.st_size, status.st_mtime_ns)
                    except (OSError, FlawsmithError):  # it has just gone; the doctor tells of others
                        continue
                    folder = path.parent.relative_to(root).as_posix()
                    folder = "" if folder == "." else folder
                    yield TaughtImage(
                        sha256,
                        path,
                        role_said(folder, role),
                        folder,
                        status.st_mtime,
                        self._looks.remembered(sha256),
                    )

    def image(self, sha256: str) -> TaughtImage:
        """An image.

        Raises:
            FlawsmithError: there is none.
        """
        image = self.images().get(sha256)
        if image is None:
            raise FlawsmithError("there is no such image; it may have been taken away")
        return image

    def look_at(self) -> bool:
        """Look at an image that nobody has looked at yet; whether there was one."""
        for image in self.images().values():
            if image.look is None and image.sha256 not in self.unreadable:
                try:
                    look = self._looks.look(image.path, image.sha256)
                except FlawsmithError as error:
                    self.unreadable[image.sha256] = str(error)
                    return True
                with self._lock:
                    if self._images.get(image.sha256) == image:
                        self._images[image.sha256] = replace(image, look=look)
                return True
        return False

    def thumbnail(self, sha256: str) -> bytes:
        """A small JPEG of an image.

        Raises:
            FlawsmithError: there is none, or it cannot be read.
        """
        return self._looks.thumbnail(self.image(sha256).path, sha256)

    def add(
        self, source: Path, *, name: str, folder: str = "", role: Role = "learn", modified: float | None = None
    ) -> Addition:
        """Take an image in.

        Args:
            source: file in the folder of incoming images, which goes.
            name: as the giver calls the file.
            folder: in which the giver had it.
            role: what it is to be used for; out of a folder whose name says so it is flawed, whatever else was meant.
            modified: when the giver's file was written, seconds since 1970; None: now.

        Returns:
            What became of it; a file that is no image, or cannot be read, is refused, not raised for.

        Raises:
            FlawsmithError: nothing can be written.
        """
        shown, role = _shown(name), role_said(folder, role)
        try:
            if Path(shown).suffix.lower() not in IMAGE_SUFFIXES:
                return Addition(shown, "refused", why="no image by its name: save it as PNG or JPEG")
            if (masks := _of_masks(folder)) is not None:
                why = f"its folder {_part(masks)}/ is one of masks or overlays by its name, not of parts"
                return Addition(shown, "refused", why=why)
            digest = content_hash(source)
            known = self.images().get(digest)
            if known is not None:
                return Addition(shown, "known", digest, known.role)
            try:
                look = self._looks.look(source, digest)
            except FlawsmithError as error:
                return Addition(shown, "refused", why=str(error).removeprefix(f"{source}: "))
            if modified is not None:
                os.utime(source, (modified, modified))
            with self._lock:
                known = self.images().get(digest)  # another thread may have been quicker
                if known is not None:
                    return Addition(shown, "known", digest, known.role)
                image = self._placed(source, digest, role, _inner(folder), shown)
                self._images[digest] = replace(image, look=look)
            return Addition(shown, "added", digest, role)
        except OSError as error:
            raise FlawsmithError(f"{self.folder} cannot be written ({error.strerror}): see the disk") from None
        finally:
            source.unlink(missing_ok=True)

    def _placed(self, source: Path, sha256: str, role: Role, folder: str, name: str) -> TaughtImage:
        """Give a file its place, in one step and on the disk."""
        place = self.folder / _PLACES[role] / folder
        place.mkdir(parents=True, exist_ok=True)
        path = place / name
        if os.path.lexists(path):
            path = path.with_name(f"{path.stem}-{sha256[:8]}{path.suffix}")
        with source.open("rb") as written:
            os.fsync(written.fileno())
        source.replace(path)
        status = path.stat()
        self._looks.name(path, status.st_size, status.st_mtime_ns, sha256)
        self.changed = time.monotonic()
        return TaughtImage(sha256, path, role, folder, status.st_mtime)

    def assign(self, images: Iterable[str], role: Role) -> list[str]:
        """Give images another role.

        Args:
            images: by their SHA-256; those that are not there any more are passed over.
            role: the other role.

        Returns:
            Those whose role it was not.

        Raises:
            FlawsmithError: nothing can be written; those before stay moved.
        """
        moved = []
        with self._lock:
            known = self.images()
            chosen = dict.fromkeys(images)
            copies = [copy for copy in self._copies if copy.sha256 in chosen]  # one that stayed would count from now on
            for image in (*(known[sha256] for sha256 in chosen if sha256 in known), *copies):
                if image.role == role:
                    continue
                try:
                    contradicts = role_said(image.folder, role) != role
                    folder = _inner(image.folder) if contradicts else image.folder
                    placed = self._placed(image.path, image.sha256, role, folder, image.path.name)
                except OSError as error:
                    raise FlawsmithError(f"{image.path} cannot be moved ({error.strerror}): see the disk") from None
                self._images[image.sha256] = replace(placed, look=image.look)
                moved.append(image.sha256)
            if copies:
                self._scanned = None
        return list(dict.fromkeys(moved))

    # Settings

    @property
    def settings(self) -> TeachSettings:
        """How the images are to be taken.

        Raises:
            FlawsmithError: the file that says it cannot be used.
        """
        file = self.folder / SETTINGS
        if not file.exists():
            return TeachSettings()
        try:
            return TeachSettings.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else _reason(error)
            raise FlawsmithError(f"{file} cannot be used ({reason}): correct it, or remove it") from None

    def change(self, **changes: Any) -> TeachSettings:
        """Change settings.

        Raises:
            FlawsmithError: one is not possible, or nothing can be written.
        """
        with self._lock:
            try:
                settings = TeachSettings.model_validate({**self.settings.model_dump(), **changes})
            except ValidationError as error:
                raise FlawsmithError(_reason(error)) from None
            _parsed(settings.grouping)
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / SETTINGS) as temporary:
                temporary.write_text(settings.model_dump_json(indent=1) + "\n", encoding="utf-8")
            return settings

    def confirm(self, images: Iterable[str]) -> None:
        """Remember that a person called odd images good.

        Raises:
            FlawsmithError: nothing can be written.
        """
        with self._lock:
            self.change(confirmed=list(dict.fromkeys([*self.settings.confirmed, *images])))

    @property
    def region(self) -> dict[str, Any] | None:
        """Where to look, as drawn: ``width``, ``height``, ``include``, ``exclude``; None: everywhere.

        Raises:
            FlawsmithError: the file that says it cannot be used.
        """
        file = self.folder / REGION
        if not file.exists():
            return None
        read_drawing(file, pixel_size=self.settings.scale)
        drawing: dict[str, Any] = json.loads(file.read_bytes())
        return drawing

    def draw(self, drawing: Mapping[str, Any] | None) -> None:
        """Say where to look.

        Args:
            drawing: as `flawsmith.data.roi.read_drawing` reads it; None: everywhere.

        Raises:
            FlawsmithError: it cannot be used, or nothing can be written; the former one stays.
        """
        file = self.folder / REGION
        with self._lock:
            if drawing is None:
                file.unlink(missing_ok=True)
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            trial = self._incoming / f"{secrets.token_hex(6)}.json"
            try:
                trial.write_text(json.dumps(drawing), encoding="utf-8")
                read_drawing(trial)
            except FlawsmithError as error:
                raise FlawsmithError(str(error).removeprefix(f"{trial}: ").removeprefix(f"{trial} ")) from None
            finally:
                trial.unlink(missing_ok=True)
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(drawing) + "\n", encoding="utf-8")

    # What there is to say

    def groups(self) -> Groups:
        """The groups of all images, as the settings have it."""
        images = self.images().values()
        rule, argument = _parsed(self.settings.grouping)
        good = [image for image in images if image.role in USED]
        days = {image.sha256: image.look.day if image.look else "" for image in images}
        folders = {image.sha256: image.folder for image in images}
        if rule == "auto":
            for by, names in (("folder", folders), ("day", days)):
                if len({names[image.sha256] for image in good}) > 1 and all(names[image.sha256] for image in good):
                    return Groups(by, names)
            return Groups("none")
        if rule == "folder":
            return Groups(rule, folders)
        if rule == "day":
            return Groups(rule, {image.sha256: days[image.sha256] or _day(image.modified) for image in images})
        if rule == "name":
            matched = name_rule(argument)
            return Groups(rule, {image.sha256: matched(image.path) for image in images})
        return Groups("none")

    def group_table(self, groups: Groups | None = None) -> list[Group]:
        """The groups with their counts and what stands out in them, by name."""
        groups = self.groups() if groups is None else groups
        members: dict[str, list[TaughtImage]] = defaultdict(list)
        shown = self.images().values()
        for image in shown:
            members[groups.of.get(image.sha256, "")].append(image)
        usual = [image.look for image in shown if image.role in USED and image.look is not None]
        return [
            Group(name, Counter(image.role for image in images), tuple(_remarks(images, usual)))
            for name, images in sorted(members.items())
        ]

    def _looked_at(self) -> list[str]:
        """SHA-256 of the good images that somebody has looked at."""
        return [image.sha256 for image in self.good_images() if image.look is not None]

    @property
    def is_ranked(self) -> bool:
        """Whether it is known how unlike the others each good image is that was looked at."""
        return self._odd.keys() == set(self._looked_at())

    def rank(self) -> None:
        """Find out how unlike the others each good image is; of thousands of them it takes seconds."""
        contents = self._looked_at()
        vectors = self._looks.vectors(contents)
        ranked = dict(zip(vectors, oddness(list(vectors.values())).tolist(), strict=True))
        self._odd = {sha256: ranked.get(sha256, 1.0) for sha256 in contents}  # a full disk forgets vectors

    def oddness(self) -> dict[str, float]:
        """How unlike the others each good image is, about 1 for a usual one; of those that were ranked."""
        good, odd = {image.sha256 for image in self.good_images()}, self._odd
        return {sha256: odd[sha256] for sha256 in odd if sha256 in good}

    def nearest(self, vector: NDArray[np.float32]) -> str | None:
        """The good image that looks most like another one, by its `looks.Seen.vector`; None: there is none."""
        vectors = self._looks.vectors(self._looked_at())
        return min(vectors, key=lambda sha256: float(np.square(vectors[sha256] - vector).sum()), default=None)

    def oddest(self, unlike: Sequence[str] = ()) -> list[str]:
        """The few good images to ask a person about: least like the others, and not confirmed yet.

        Args:
            unlike: those that a training found least like the others, which come first.
        """
        left = {image.sha256 for image in self.good_images()} - set(self.settings.confirmed)
        ranked = sorted(self.oddness().items(), key=lambda pair: -pair[1])
        asked = [*unlike, *(sha256 for sha256, odd in ranked if odd >= _ODD)]
        return [sha256 for sha256 in dict.fromkeys(asked) if sha256 in left][:MOST_ASKED]

    def advice(self) -> list[str]:
        """How far the images carry, in sentences."""
        groups, good = self.groups(), self.good_images()
        calibration = sum(image.role == "calibrate" for image in good)
        return advice(len(good) - calibration, calibration, groups.count(good), groups.by)

    def findings(self) -> tuple[Finding, ...]:
        """What the doctor finds, of many images by their headers alone; looks anew where one has changed."""
        state, images = self._state(), self.images()
        if not any(image.role == "learn" for image in images.values()):
            return ()
        if self._checked[0] != state:
            findings: Sequence[Finding]
            try:
                dataset = load(self.folder, "folder")
                findings = check(dataset, threads=1).items if len(images) <= _MOST_READ else glance(dataset, threads=1)
            except FlawsmithError as error:
                findings = [Finding("error", "not-read", str(error), (), "nothing")]
            # Advice and groups say more of how many there are, and what lies aside does so on purpose.
            shown = [
                item for item in findings if item.name not in ("few-to-train", "few-to-calibrate", "groups", "not-used")
            ]
            self._checked = state, tuple(shown)
        return self._checked[1]

    @property
    def is_checked(self) -> bool:
        """Whether the doctor has looked at the images as they are now."""
        return self._checked[0] == self._state() or not any(image.role == "learn" for image in self.images().values())

    def _state(self) -> str:
        images = self.images().values()
        return hashlib.sha256("".join(f"{image.path}{image.modified}" for image in images).encode()).hexdigest()

    # For a training

    def snapshot(self, target: Path) -> dict[str, int]:
        """The images as they are now, in a folder of their own that later changes do not touch.

        Files are linked where the file system can, so that they take no room.

        Args:
            target: folder that does not exist; its name is the product's.

        Returns:
            Number of images by role.

        Raises:
            FlawsmithError: there are too few, or nothing can be written.
        """
        with self._lock:
            self._scanned = None  # what a person has put there in the last seconds counts too
            groups = self.groups()
            images = [image for image in self.images().values() if not _PLACES[image.role].startswith("aside")]
            counts = Counter(image.role for image in images)
            if counts["learn"] < LEAST_TO_LEARN:
                raise FlawsmithError(
                    f"{counts['learn']} good images are too few to learn from: add images of good parts; "
                    f"{ENOUGH_TO_LEARN} begin to show what varies"
                )
            folders = _folders_of(groups)
            try:
                for image in images:
                    within = folders.get(groups.of.get(image.sha256, ""), "")
                    place = target / _PLACES[image.role] / within
                    place.mkdir(parents=True, exist_ok=True)
                    copy = place / image.path.name
                    if os.path.lexists(copy):  # two of one name, from two folders
                        copy = copy.with_name(f"{copy.stem}-{image.sha256[:8]}{copy.suffix}")
                    _link(image.path, copy)
            except OSError as error:
                raise FlawsmithError(f"{target} cannot be written ({error.strerror}): see the disk") from None
        return {str(role): number for role, number in counts.items()}

    def group_option(self) -> str:
        """What ``--group`` is for a snapshot."""
        groups = self.groups()
        if any(groups.of.values()):
            return "folder"
        return "none" if self.settings.grouping == "none" else "auto"


def _reason(error: ValidationError) -> str:
    """What is wrong with settings."""
    first = error.errors()[0]
    return why_refused(first, ".".join(map(str, first["loc"]))) if first["loc"] else str(first["msg"])


def advice(learn: int, calibrate: int, groups: int, by: str) -> list[str]:
    """How far so many good images carry, in sentences.

    Args:
        learn: images to learn from.
        calibrate: images set apart for the limit; 0: some of the others are held out.
        groups: number of days, folders or whatever groups them.
        by: ``day``, ``folder``, ``name`` or ``none``.

    Example:
        >>> print(*advice(60, 0, 2, "day"), sep="\\n")
        You have 60 good images from 2 days.
        Enough to learn.
        9 of them set the limit: at best 100 of 1,000 good parts rejected; 95 % sure: no more than 284 of these days.
        For 10 of 1,000 the limit needs 99 images, and 299 to be 95 % sure: mark more good images as "calibrate".
        For a limit that holds next week, days count more than images: take 20 on each of 8 more days.
    """
    total = learn + calibrate
    if not total:
        return [
            f"Drop images of good parts. {ENOUGH_TO_LEARN} are enough for a first look, 100 and more of several days "
            "for a limit that holds."
        ]
    words = by if by in ("day", "folder") else "group"
    counted = words if groups == 1 else f"{words}s"
    same = f" of {'this' if groups == 1 else 'these'} {counted}" if groups else ""
    whence = f" from {groups} {counted}" if groups else ""
    lines = [f"You have {total:,} good image{'' if total == 1 else 's'}{whence}."]
    if learn < LEAST_TO_LEARN:
        return [*lines, f"Too few to learn from: {LEAST_TO_LEARN - learn} more at least, better {ENOUGH_TO_LEARN}."]
    lines.append(
        "Enough to learn."
        if learn >= ENOUGH_TO_LEARN
        else f"Few to learn from: {ENOUGH_TO_LEARN - learn} more begin to show what varies."
    )
    behind = calibrate or held_out_count(total)
    expected, worst = parts_of_1000(1 / (behind + 1)), parts_of_1000(worst_rate(1, behind), up=True)
    lines.append(
        f"{behind} {'set' if calibrate else 'of them set'} the limit: at best {expected} of 1,000 good parts "
        f"rejected; 95 % sure: no more than {worst}{same}."
    )
    needed, proven = images_needed(0.01)
    if behind < needed:
        lines.append(
            f"For 10 of 1,000 the limit needs {needed} images, and {proven} to be 95 % sure: mark more good images as "
            '"calibrate".'
        )
    if not groups:
        lines.append(
            "Nothing says which images were taken together. If they are of several days, group them by day or folder: "
            "images of one day say little of the next."
        )
    elif groups < _ENOUGH_DAYS:
        if groups == 1:
            mean, high = _NEW_DAY[1]
            lines.append(
                f"All are of one {words}: where {words}s differ, a limit for 10 of 1,000 rejected {mean} on a new one, "
                f"and {high} on one in 20 (simulated)."
            )
        more = _ENOUGH_DAYS - groups
        lines.append(
            f"For a limit that holds next week, {words}s count more than images: take 20 on each of {more} more "
            f"{words}{'' if more == 1 else 's'}."
        )
    return lines


def _remarks(images: Sequence[TaughtImage], usual: Sequence[Look]) -> Iterator[Remark]:
    """What stands out among images against all usual ones."""
    good = [image for image in images if image.role in USED and image.look is not None]
    if len(usual) < ENOUGH_TO_LEARN // 2 or not good:
        return
    for attribute, least, words in (("brightness", 0.03, ("darker", "brighter")), ("sharpness", 0.004, ("duller", ""))):
        values = np.array([getattr(look, attribute) for look in usual])
        middle = float(np.median(values))
        apart = max(least, 6 * float(np.median(np.abs(values - middle))))
        for sign, word in zip((-1, 1), words, strict=True):
            odd = [i.sha256 for i in good if i.look and word and sign * (getattr(i.look, attribute) - middle) > apart]
            if odd:
                yield Remark(f"{len(odd)} {word} than the rest", tuple(odd))
    (height, width), _ = Counter((look.height, look.width) for look in usual).most_common(1)[0]
    odd = [i.sha256 for i in good if i.look and (i.look.height, i.look.width) != (height, width)]
    if odd:
        yield Remark(f"{len(odd)} of another size than {width} × {height}", tuple(odd))


def _parsed(grouping: str) -> tuple[str, str]:
    """The rule and its argument.

    Raises:
        FlawsmithError: there is no such rule.
    """
    rule, _, argument = grouping.partition(":")
    if rule == "name" and argument:
        name_rule(argument)
        return rule, argument
    if grouping in ("auto", "none", "folder", "day"):
        return grouping, ""
    raise FlawsmithError("group images by auto, none, folder, day, or name:REGEX such as name:_([0-9]+)_")


def _folders_of(groups: Groups) -> dict[str, str]:
    """A folder for each group, whose name says nothing of good or flawed parts."""
    folders: dict[str, str] = {"": ""}
    for number, name in enumerate(sorted(set(groups.of.values()) - {""}), 1):
        folder = _part(name.replace("/", " "))
        says_else = meaning(folder) is not None or is_set_apart(folder) or folder in folders.values()
        folders[name] = f"{groups.by} {number}" if says_else or not folder else folder
    return folders


def role_said(folder: str, role: Role) -> Role:
    """The role of an image by the folders that it comes in: flawed parts and masks are never learned from as good.

    Example:
        >>> role_said("parts/reject/2026-11-23", "learn"), role_said("parts/ok", "learn")
        ('flawed', 'learn')
    """
    if role not in USED:
        return role
    if _of_masks(folder) is not None:
        return "left-out"
    return "flawed" if any(meaning(part) == "flawed" for part in re.split(r"[/\\]", folder)) else role


def _of_masks(folder: str) -> str | None:
    """The name among those of folders that promises masks, overlays and the like; None: there is none."""
    return next((part for part in re.split(r"[/\\]", folder) if part and holds_no_parts(part)), None)


def _inner(folder: str) -> str:
    """Where an image is kept below the folder of its role: by the folders it came in, without what leads elsewhere.

    Example:
        >>> _inner("../parts/good/2026-11-23"), _inner("C:\\\\parts"), _inner("")
        ('2026-11-23', 'parts', '')
    """
    parts = [_part(part) for part in re.split(r"[/\\]", folder)]
    roles = [place for place, part in enumerate(parts, 1) if part and (meaning(part) or is_set_apart(part))]
    inner = [part for part in parts[max(roles, default=0) :] if part and not is_stray(part)]
    return "/".join(inner[-1:])


def _part(name: str) -> str:
    """A name that every file system takes, and that leads nowhere."""
    part = re.sub(r"[^\w.\- +()#]", "_", name).strip(" .")[:_LONGEST_NAME].strip(" .")
    return "" if re.fullmatch(r"[A-Za-z]_", part) else part  # a drive


def _shown(name: str) -> str:
    """The last part of a name, as it is kept."""
    part = _part(re.split(r"[/\\]", name)[-1][-_LONGEST_NAME:])
    return part or "image"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one that knows no links
        shutil.copy2(source, target)
