"""PaDiM: a Gaussian of good features at every position (Defard et al., ICPR workshops 2020)."""

from flawsmith.models.padim.model import PaDiM, PaDiMConfig

__all__ = ["PaDiM", "PaDiMConfig"]
