"""Fusion keeps the contract."""

from tests.contract.tester import MethodTester

from flawsmith.models import Fusion

TINY = {
    "image_size": [64, 96],
    "precision": "32-true",
    "bank_size": 16,
    "student_widths": [8, 8, 16],
    "student_blocks": [1, 1, 1],
    "epochs": 2,
    "steps_per_epoch": 4,
    "batch_size": 4,
}


class TestFusion(MethodTester):
    model = Fusion
