"""GLASS: global and local anomaly co-synthesis (Chen et al., ECCV 2024)."""

from flawsmith.models.glass.config import GLASSConfig
from flawsmith.models.glass.model import GLASS

__all__ = ["GLASS", "GLASSConfig"]
