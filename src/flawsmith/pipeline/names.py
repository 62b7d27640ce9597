"""Names of files: shown to people and programs, and made for results."""

from __future__ import annotations

import os
import re
from pathlib import Path

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import is_folder

BASELINE_FOLDER = "baseline"
"""Folder inside a run's where the model of the baseline lies."""
BASELINES = ("patchcore", "padim")
"""Methods that learn nothing and take seconds."""
_LONGEST_STEM = 60  # at most four bytes a character, within the 255 bytes that file systems allow with room to spare


def printable(path: str | os.PathLike[str]) -> str:
    r"""A path as text that any UTF-8 file can hold; bytes of the name that are not UTF-8 appear as ``\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def result_name(index: int, image: str, suffix: str) -> str:
    """Name of a result file: position in the input, then the image's own stem; no two images share one.

    Example:
        >>> result_name(12, "line 2/photo 1.png", ".npy")
        '000012-photo_1.npy'
    """
    stem = re.sub(r"[^\w.-]", "_", Path(printable(image)).stem)
    return f"{index:06d}-{stem[:_LONGEST_STEM]}{suffix}"


def make_folder(folder: Path) -> None:
    """Make a folder for results.

    Raises:
        FlawsmithError: a file stands there, or it may not be made or written.
    """
    if os.path.lexists(folder) and not is_folder(folder):
        raise FlawsmithError(f"{folder} is a file: give a folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlawsmithError(f"{folder} cannot be made ({error.strerror}): give another folder with --out") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FlawsmithError(f"{folder} may not be written: give another folder with --out")
