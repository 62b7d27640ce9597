"""PBAS: progressive boundary guided anomaly synthesis (Chen et al., IEEE TCSVT 2025)."""

from flawsmith.models.pbas.config import PBASConfig
from flawsmith.models.pbas.model import PBAS

__all__ = ["PBAS", "PBASConfig"]
