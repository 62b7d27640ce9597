"""SLSG on the shared real images beside PBAS, GLASS and AAND: logical anomalies, time and memory."""

from __future__ import annotations

from arms import compare_arms
from cells import serve_cell
from real_data import run_cell

ARMS = {
    "SLSG": {"method": "slsg", "textures": "dtd"},
    "PBAS": {},
    "GLASS": {"method": "glass", "textures": "dtd"},
    "AAND": {"method": "aand", "textures": "dtd"},
}


def main() -> None:
    compare_arms(
        __doc__,
        __file__,
        ARMS,
        name="slsg",
        title="SLSG on real images",
        note="SLSG, GLASS and AAND forge with DTD textures.",
        own="slsg",
    )


if __name__ == "__main__" and not serve_cell(run_cell):
    main()
