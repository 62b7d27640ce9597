"""Images that are kept for later: by the hash of their content, for as long as a rule says."""

from __future__ import annotations

import os
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from flawsmith.line.record import Outcome, drawn_number
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import replacing

_GIB = 2**30
_PASSED, _SUSPECT, _PICKED = "passed", "suspect", "picked"


class Retention(BaseModel):
    """Which images are kept, and for how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    days: float = Field(default=90, gt=0, le=36500, description="images go after so many days")
    gigabytes: float = Field(default=20, ge=0, le=1e6, description="together no more than so much: passes go first")
    passes: float = Field(default=0.01, ge=0, le=1, description="share of the passed parts whose images are kept")
    keep_free: float = Field(
        default=1, ge=0, le=1e6, description="gigabytes that stay free on the disk, for records: below, none is kept"
    )


class Pictures:
    """A folder of images.

    Args:
        folder: where they lie; made when the first is kept.
        rule: which are kept.

    Example:
        >>> import hashlib, tempfile
        >>> pictures = Pictures(Path(tempfile.mkdtemp()), Retention(keep_free=0))
        >>> name = hashlib.sha256(b"an image").hexdigest()
        >>> pictures.keep(name, b"an image", "reject"), pictures.read(name)
        (True, b'an image')
    """

    def __init__(self, folder: Path, rule: Retention) -> None:
        self.folder, self.rule = folder, rule
        self._lock = threading.Lock()
        self._sweeping = threading.Lock()
        self._size: int | None = None  # unknown until the folder has been looked through
        self._added = 0
        self._told = False

    def free_bytes(self) -> int:
        """Free bytes on the disk."""
        place = self.folder
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def keep(self, sha256: str, content: bytes, verdict: Outcome, *, is_drawn: bool = False) -> bool:
        """Keep an image if the rule says so and the disk has room; a full disk is warned of and stops nothing.

        Args:
            sha256: of the content, hexadecimal.
            content: the file.
            verdict: of the part.
            is_drawn: whether a person is to look at it, even though it passed.

        Returns:
            Whether it lies there now.
        """
        is_pass = verdict == "pass" and not is_drawn
        if verdict == "error" or (is_pass and drawn_number(sha256) >= self.rule.passes):
            return False
        path = self._path(sha256, _PASSED if is_pass else _SUSPECT)
        try:
            with suppress(FileNotFoundError):
                os.utime(path)  # kept for as long as if it had come now for the first time
                return True
            self._write(path, content)
        except (FlawsmithError, OSError) as error:
            if not self._told:
                self._told = True
                warnings.warn(f"images are not kept any more, parts are judged all the same: {error}", stacklevel=2)
            return False
        self._told = False
        with self._lock:
            self._added += len(content)
        return True

    def pick(self, sha256: str, content: bytes) -> None:
        """Keep an image that a person has picked; it stays until somebody removes it.

        Args:
            sha256: of the content, hexadecimal.
            content: the file.

        Raises:
            FlawsmithError: it cannot be kept.
        """
        try:
            self._write(self._path(sha256, _PICKED), content)
        except OSError as error:
            raise FlawsmithError(f"the image cannot be kept ({error.strerror}); see the disk") from None

    def _write(self, path: Path, content: bytes) -> None:
        if self.free_bytes() - len(content) < self.rule.keep_free * _GIB:
            raise FlawsmithError(f"less than {self.rule.keep_free:g} GB are free")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)

    def read(self, sha256: str) -> bytes | None:
        """The image with this content; None: it was not kept, or not for so long."""
        for kind in (_SUSPECT, _PASSED, _PICKED):
            with suppress(OSError):
                return self._path(sha256, kind).read_bytes()
        return None

    def has(self, sha256: str) -> bool:
        """Whether the image with this content is there."""
        return any(self._path(sha256, kind).exists() for kind in (_SUSPECT, _PASSED, _PICKED))

    def sweep(self, *, at: float | None = None) -> int:
        """Remove what the rule does not keep any more: by age, then passes, then the oldest, until the rest is small.

        Args:
            at: seconds since 1970; None: now.

        Returns:
            Number of files removed.
        """
        with self._sweeping:  # which takes long, and parts do not wait for it
            with self._lock:
                self._added = 0
            limit = self.rule.gigabytes * _GIB
            oldest = (time.time() if at is None else at) - self.rule.days * 86400
            files = sorted(self._files(), key=lambda file: (file[0] != _PASSED, file[1]))
            size, removed = sum(file[2] for file in files), 0
            for _, written, length, path in files:
                if size > limit or written < oldest:
                    with suppress(OSError):
                        path.unlink()
                        size, removed = size - length, removed + 1
            self._size = size
            return removed

    @property
    def too_large(self) -> bool:
        """Whether a sweep is due for the sake of size; True too before the first one."""
        return self._size is None or self._size + self._added > self.rule.gigabytes * _GIB

    def _path(self, sha256: str, kind: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise ValueError("not a SHA-256")
        return self.folder / kind / sha256[:2] / sha256

    def _files(self) -> Iterator[tuple[str, float, int, Path]]:
        """Kind, time of writing, size and path of each image, and of what killed processes left half written."""
        for kind in (_PASSED, _SUSPECT):
            for folder, _, names in os.walk(self.folder / kind):
                for name in names:
                    path = Path(folder, name)
                    with suppress(OSError):
                        status = path.stat()
                        yield kind, status.st_mtime, status.st_size, path
