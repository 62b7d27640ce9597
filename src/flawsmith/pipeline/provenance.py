"""What a result depends on beside its settings: versions, and the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
