"""SLSG with and without memory, pre-training, logical simulation and SG block, at the budget of `fast`."""

from __future__ import annotations

from arms import compare_arms
from cells import serve_cell
from real_data import run_cell

SLSG = {"method": "slsg", "textures": "dtd"}
ARMS = {
    "`fast`": SLSG,
    "without the memory": {**SLSG, "set": {"memory_strides": []}},
    "with pre-training by GPT-Net": {**SLSG, "set": {"pretraining": True}},
    "without logical anomalies": {**SLSG, "set": {"logical": False}},
    "without structural anomalies": {**SLSG, "set": {"structural": False}},
    "without SG block": {**SLSG, "set": {"attention": False, "graph": False}},
}


def main() -> None:
    compare_arms(
        __doc__,
        __file__,
        ARMS,
        name="slsg_ablation",
        title="Parts of SLSG",
        note="All forge with DTD textures.",
        own="slsg",
    )


if __name__ == "__main__" and not serve_cell(run_cell):
    main()
