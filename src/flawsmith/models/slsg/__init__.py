"""SLSG: self-supervised learning with structural and logical anomalies, and a graph over the image."""

from flawsmith.models.slsg.config import SLSGConfig
from flawsmith.models.slsg.model import SLSG

__all__ = ["SLSG", "SLSGConfig"]
