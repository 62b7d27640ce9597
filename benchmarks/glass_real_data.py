"""GLASS on the shared real images, with textures and without, beside PBAS: accuracy, training time and memory."""

from __future__ import annotations

from arms import compare_arms
from cells import serve_cell
from real_data import run_cell

ARMS = {
    "GLASS, DTD textures": {"method": "glass", "textures": "dtd"},
    "GLASS, no textures given": {"method": "glass", "textures": None},
    "PBAS": {},
}


def main() -> None:
    compare_arms(
        __doc__,
        __file__,
        ARMS,
        name="glass",
        title="GLASS on real images",
        note="“No textures given” forges with drawn textures.",
        own="glass",
    )


if __name__ == "__main__" and not serve_cell(run_cell):
    main()
