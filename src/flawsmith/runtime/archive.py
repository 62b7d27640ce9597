"""Zip archives and array archives with one possible content for one input, read without trust."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_DATE = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_PERMISSIONS = 0o644 << 16
_ENCRYPTED = 0x1
_MAX_ARRAYS = 1000
_NUMERIC = "biufc"


def write_parts(parts: Mapping[str, bytes]) -> bytes:
    """Returns a zip of the parts: stored, sorted by name, with fixed dates, permissions and system.

    Args:
        parts: content by name.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(parts):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system = _UNIX
            entry.external_attr = _PERMISSIONS
            archive.writestr(entry, parts[name])
    return buffer.getvalue()


def read_parts(
    stream: BinaryIO,
    allowed: Mapping[str, int],
    *,
    first: str | None = None,
    check_first: Callable[[bytes], None] | None = None,
) -> dict[str, bytes]:
    """Reads a zip that must hold exactly the allowed parts, each stored without compression.

    Args:
        stream: a seekable file.
        allowed: largest size of each part in bytes, by name.
        first: a part to be read before the others are judged.
        check_first: is given that part's content and may raise.

    Returns:
        Content by name.

    Raises:
        ValueError: a part is missing, unknown, doubled, compressed, encrypted or too large.
        zipfile.BadZipFile: not a zip, or a check sum differs.
    """
    length = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if check_first is not None and first is not None and names.count(first) == 1:
            check_first(_read_entry(archive, archive.getinfo(first), allowed[first]))
        for name in names:
            if name not in allowed:
                raise ValueError(f"it holds an unknown part {name[:80]!r}")
        if len(set(names)) != len(names):
            raise ValueError("it holds a part twice")
        missing = sorted(set(allowed) - set(names))
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        # Stored parts cannot be longer together than the file, unless they overlap.
        if sum(entry.file_size for entry in entries) > length:
            raise ValueError("its parts are longer than the file")
        return {entry.filename: _read_entry(archive, entry, allowed[entry.filename]) for entry in entries}


def write_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Returns an npz of numeric arrays, stored, with one possible content.

    Args:
        arrays: numeric or boolean arrays by name, of any shape.

    Raises:
        ValueError: an array of objects, text or records.
    """
    parts = {}
    for name, array in arrays.items():
        if array.dtype.kind not in _NUMERIC:
            raise ValueError(f"array {name!r} has the type {array.dtype}; only numbers are stored")
        buffer = io.BytesIO()
        # Little-endian and row by row, whatever machine wrote it; ascontiguousarray would make a scalar 1-D.
        plain = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        np.lib.format.write_array(buffer, plain, version=(1, 0), allow_pickle=False)
        parts[f"{name}.npy"] = buffer.getvalue()
    return write_parts(parts)


def read_arrays(content: bytes) -> dict[str, NDArray[Any]]:
    """Reads what `write_arrays` wrote.

    The sizes that headers claim are held against the bytes that are there before any memory is taken.

    Raises:
        ValueError: anything but stored numeric arrays.
        zipfile.BadZipFile: not a zip, or a check sum differs.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if len(entries) > _MAX_ARRAYS or len({entry.filename for entry in entries}) != len(entries):
            raise ValueError("array names repeat or are too many")
        if sum(entry.file_size for entry in entries) > len(content):
            raise ValueError("arrays are longer than their file")
        arrays = {}
        for entry in entries:
            if not entry.filename.endswith(".npy"):
                raise ValueError(f"{entry.filename[:80]!r} is not an array")
            arrays[entry.filename[: -len(".npy")]] = _read_array(_read_entry(archive, entry, len(content)))
        return arrays


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, cap: int) -> bytes:
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
        raise ValueError(f"{entry.filename[:80]} is compressed or encrypted")
    if entry.file_size > cap or entry.compress_size != entry.file_size:
        raise ValueError(f"{entry.filename[:80]} has {entry.file_size} bytes, more than allowed")
    return archive.read(entry)


def _read_array(content: bytes) -> NDArray[Any]:
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array has an unknown version")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.kind not in _NUMERIC or by_columns:
        raise ValueError("an array does not hold plain numbers")
    data = content[stream.tell() :]
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("an array's length differs from its header")
    return np.frombuffer(data, dtype).reshape(shape).copy()
