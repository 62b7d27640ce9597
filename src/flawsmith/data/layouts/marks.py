"""Which masks mark anything, for layouts that tell good from flawed by what is in a mask."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import decode

_THREADS = 4


def marked(masks: Sequence[Path]) -> dict[Path, bool | None]:
    """Whether each mask has a pixel that is not black; None for one that cannot be read.

    Unchanged files are read once a process: a data set is loaded more than once in a run.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(masks, pool.map(_is_marked, masks), strict=True))


def _is_marked(mask: Path) -> bool | None:
    try:
        state = mask.stat()
        return _read(mask, state.st_size, state.st_mtime_ns)
    except (OSError, FlawsmithError):
        return None


@lru_cache(maxsize=1 << 16)
def _read(mask: Path, _size: int, _mtime_ns: int) -> bool:
    return bool(decode(mask).any())
