"""Parts of a step that stay in float32 where training runs in a lower precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast inside: products of similarities that are compared, or enter a logarithm, need more than 8 bits."""
    if not torch.is_autocast_enabled(device.type):  # nothing to switch off, as when a graph is exported
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield
