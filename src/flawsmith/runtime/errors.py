"""The one exception a user is meant to see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class FlawsmithError(Exception):
    """A mistake or a state that the user can fix.

    Its message is one line that says what is wrong, where, and how to fix it. The command line prints that line
    alone and ends with exit code 2; anything else that escapes is a defect of Flawsmith and keeps its traceback.
    """


_PACKAGES = {
    "eval": ("scipy", "sklearn", "matplotlib", "jinja2", "threadpoolctl"),
    "train": ("torch", "torchvision", "lightning", "timm", "cv2", "onnx", "onnxscript", "safetensors", "jaxtyping"),
    "benchmark": ("psutil", "tabulate", "pooch"),
    "serve": ("fastapi", "starlette", "uvicorn", "h11", "python_multipart", "prometheus_client", "watchfiles", "tomli"),
    "mqtt": ("paho",),
    "plc": ("pymodbus",),
    "opcua": ("asyncua",),
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


_REASONS = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "none_required": "must be left out",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "too_short": "has {actual_length} entries, and needs at least {min_length}",
    "too_long": "has {actual_length} entries, and may have at most {max_length}",
    "string_too_short": "must have a length of at least {min_length}",
    "string_too_long": "may have at most {max_length} characters",
    "enum": "must be {expected}",
    "literal_error": "must be {expected}",
    "union_tag_invalid": "has the {discriminator} {tag!r}, and may have {expected_tags}",
    "union_tag_not_found": "needs a {discriminator}",
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must hold names and values"),
    **dict.fromkeys(("string_type", "path_type"), "must be text"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "must be a whole number"),
}


def why_refused(error: Mapping[str, Any], subject: str = "it") -> str:
    """What pydantic found wrong with a value, in words for people who write files and settings, not Python.

    Args:
        error: an entry of ``ValidationError.errors()``.
        subject: what the value is called.

    Returns:
        A sentence without its full stop; what a validator of ours says stands as it is.

    Example:
        >>> why_refused({"type": "tuple_type", "msg": "Input should be a valid tuple"}, "include")
        'include must be a list'
        >>> why_refused({"type": "value_error", "msg": "Value error, two zones have the same name"})
        'two zones have the same name'
    """
    if error["type"] in ("value_error", "assertion_error"):
        return str(error["msg"]).partition(", ")[2]
    if error["type"] in _REASONS:
        reason = _REASONS[error["type"]].format_map(error.get("ctx", {}))
    else:
        reason = str(error["msg"]).replace("Input should", "should")
    return f"{subject} {reason}"
