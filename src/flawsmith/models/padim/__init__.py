"""PaDiM: a Gaussian of good features at every position (Defard et al., ICPR workshops 2020)."""

from flawsmith.models.padim.config import PaDiMConfig
from flawsmith.models.padim.model import PaDiM

__all__ = ["PaDiM", "PaDiMConfig"]
