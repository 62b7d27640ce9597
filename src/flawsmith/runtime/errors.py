"""The one exception a user is meant to see."""

from __future__ import annotations


class FlawsmithError(Exception):
    """A mistake or a state that the user can fix.

    Its message is one line that says what is wrong, where, and how to fix it. The command line prints that line
    alone and ends with exit code 2; anything else that escapes is a defect of Flawsmith and keeps its traceback.
    """


_PACKAGES = {
    "eval": ("scipy", "sklearn", "matplotlib", "jinja2", "threadpoolctl"),
    "train": ("torch", "torchvision", "lightning", "timm", "cv2", "onnx", "onnxscript", "safetensors", "jaxtyping"),
    "benchmark": ("psutil", "tabulate"),
}
"""Import names of what each tier installs."""


def package_missing(error: ModuleNotFoundError, needs: str, tier: str) -> str | None:
    """What to install where a package of an optional tier is missing, in one line; None where it is of no tier.

    Args:
        error: the failed import.
        needs: what needs the package.
        tier: what it needs at least.

    Example:
        >>> package_missing(ModuleNotFoundError(name="torch.nn"), "flawsmith.train", "train")
        "flawsmith.train needs torch, which is not installed: run `pip install 'flawsmith[train]'`"
    """
    package = (error.name or "").partition(".")[0]
    if not any(package in packages for packages in _PACKAGES.values()):
        return None
    needed = "train" if package in _PACKAGES["train"] and tier == "eval" else tier
    return f"{needs} needs {package}, which is not installed: run `pip install 'flawsmith[{needed}]'`"
