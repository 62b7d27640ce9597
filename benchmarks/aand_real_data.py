"""AAND on the shared real images beside RD4AD, GLASS and PBAS: accuracy, training time and memory."""

from __future__ import annotations

from arms import compare_arms
from cells import serve_cell
from real_data import run_cell

ARMS = {
    "AAND": {"method": "aand", "textures": "dtd"},
    "RD4AD": {"method": "rd4ad", "textures": None},
    "GLASS": {"method": "glass", "textures": "dtd"},
    "PBAS": {},
}


def main() -> None:
    compare_arms(
        __doc__,
        __file__,
        ARMS,
        name="aand",
        title="AAND on real images",
        note="AAND and GLASS forge with DTD textures; RD4AD is AAND with both of its ideas switched off.",
        own="aand",
    )


if __name__ == "__main__" and not serve_cell(run_cell):
    main()
