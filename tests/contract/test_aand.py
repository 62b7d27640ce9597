"""AAND keeps the contract."""

from tests.contract.tester import MethodTester

from flawsmith.models import AAND

TINY = {
    "image_size": [64, 96],
    "precision": "32-true",
    "memories": 4,
    "bank_size": 16,
    "amplification_epochs": 2,
    "amplification_steps": 4,
    "student_widths": [8, 8, 16],
    "student_blocks": [1, 1, 1],
    "epochs": 2,
    "steps_per_epoch": 4,
    "batch_size": 4,
}


class TestAAND(MethodTester):
    model = AAND
    chooses_by_values = frozenset({"amplification"})
