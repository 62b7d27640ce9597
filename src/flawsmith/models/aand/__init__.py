"""AAND: attention-based asymmetric normalities distillation, and RD4AD, its base."""

from flawsmith.models.aand.config import AANDConfig
from flawsmith.models.aand.model import AAND, RD4AD

__all__ = ["AAND", "RD4AD", "AANDConfig"]
