"""Pictures as files, and folders that appear only when they are whole."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from flawsmith.runtime.errors import FlawsmithError

Rgb = NDArray[np.uint8]


@contextmanager
def new_folder(out: str | Path) -> Iterator[tuple[Path, Path]]:
    """A folder that appears under its name when the block ends well, and not at all otherwise.

    Yields:
        The temporary folder to write into, and the name that it will have.

    Raises:
        FlawsmithError: something stands there already, or the folder cannot be made.
    """
    final = Path(out).expanduser()
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(6)}.tmp")
    try:
        if final.exists() or final.is_symlink():
            raise FlawsmithError(f"{final} is there already: give the name of a new folder with --out")
        temporary.mkdir(parents=True)
    except OSError as error:
        raise FlawsmithError(f"{final} cannot be made ({error.strerror}): give another folder with --out") from None
    try:
        yield temporary, final
        try:
            temporary.rename(final)
        except OSError as error:
            raise FlawsmithError(f"{final} cannot be made ({error.strerror}): give another folder with --out") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_png(path: Path, picture: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """Write (height, width) or (height, width, 3) RGB, 8 or 16 bits deep; grey files where all channels are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.ndim == 3 and (picture == picture[:, :, :1]).all():
        picture = picture[:, :, 0]
    ordered = picture if picture.ndim == 2 else picture[:, :, ::-1]
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(ordered))[1].tobytes())


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes, into a folder that is made where it is missing.

    Raises:
        FlawsmithError: there is no such file, or it may not be read.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise FlawsmithError(f"{source}: no such file; check the path") from None
    except PermissionError:
        raise FlawsmithError(f"{source}: may not be read; check the file's permissions") from None


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where the file system has no such links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def mask_picture(mask: NDArray[np.bool_]) -> Rgb:
    """(height, width), 255 inside."""
    return mask.astype(np.uint8) * np.uint8(255)


def thumbnail(picture: Rgb, side: int = 384) -> Rgb:
    """At most ``side`` pixels long: a sheet of large images must not hold them all."""
    scale = side / max(picture.shape[:2])
    if scale >= 1:
        return picture
    width, height = (max(1, round(length * scale)) for length in (picture.shape[1], picture.shape[0]))
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
