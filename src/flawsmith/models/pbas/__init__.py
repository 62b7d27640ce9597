"""PBAS: progressive boundary guided anomaly synthesis (Chen et al., IEEE TCSVT 2025)."""

from flawsmith.models.pbas.model import PBAS, PBASConfig

__all__ = ["PBAS", "PBASConfig"]
