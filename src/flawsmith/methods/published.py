"""Names under which the papers' data sets are unpacked, for decisions that their authors published by category."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_FOLDERS: Mapping[str, str] = MappingProxyType(
    {
        "mvtec": "mvtec",
        "mvtecad": "mvtec",
        "mvtecanomalydetection": "mvtec",
        "visa": "visa",
        "visa20220922": "visa",
        "visapytorch": "visa",
        "1cls": "visa",
        "mpdd": "mpdd",
        "wfdd": "wfdd",
        "mvtec3d": "mvtec_3d",
        "mvtec3dad": "mvtec_3d",
        "mvtec3danomalydetection": "mvtec_3d",
    }
)


def plain(name: str) -> str:
    """A name without case and punctuation."""
    return "".join(character for character in name.casefold() if character.isalnum())


def known_dataset(name: str) -> str | None:
    """The data set that a folder's name usually stands for, or None.

    A folder that merely begins like one, such as that of MVTec LOCO, is another data set.

    Example:
        >>> known_dataset("MVTec AD"), known_dataset("mvtec_loco")
        ('mvtec', None)
    """
    return _FOLDERS.get(plain(name))
