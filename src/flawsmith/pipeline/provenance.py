"""What a result depends on beside its settings: versions, and the machine."""

from __future__ import annotations

import hashlib
import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from flawsmith.runtime.files import printable

if TYPE_CHECKING:
    from flawsmith.data.samples import Dataset
    from flawsmith.runtime.bundle import Bundle

PACKAGES = ("flawsmith", "torch", "lightning", "timm", "onnx", "onnxruntime", "openvino", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that figures depend on."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def made_of(bundle: Bundle, dataset: Dataset) -> list[tuple[str, str]]:
    """(name, value) of when and of what a report is made: what makes its bytes differ from run to run."""
    return [
        ("Made", f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"),
        ("Data", printable(str(dataset.root.absolute()))),
        ("Images", f"{len(dataset.samples):,}"),
        ("Model SHA-256", hashlib.sha256(bundle.to_bytes()).hexdigest()),
    ]


_SPEAKING_UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def machine() -> str:
    """The CPU with the vector units that matter here, and its cores, in words."""
    return f"{_cpu()}, {os.cpu_count()} cores"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    units = [flag for flag in _SPEAKING_UNITS if flag in facts.get("flags", "").split()]
    name = facts.get("model name", platform.machine())
    return f"{name} ({', '.join(units)})" if units else name
