"""AAND: attention-based asymmetric normalities distillation; RD4AD, its base; Fusion, which adds memories to that."""

from flawsmith.models.aand.config import AANDConfig
from flawsmith.models.aand.model import AAND, RD4AD, Fusion

__all__ = ["AAND", "RD4AD", "AANDConfig", "Fusion"]
