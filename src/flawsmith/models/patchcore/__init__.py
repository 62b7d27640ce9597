"""PatchCore: distance to a memory of good patches (Roth et al., CVPR 2022)."""

from flawsmith.models.patchcore.config import PatchCoreConfig
from flawsmith.models.patchcore.model import PatchCore

__all__ = ["PatchCore", "PatchCoreConfig"]
