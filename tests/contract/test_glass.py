"""GLASS keeps the contract."""

from tests.contract.tester import MethodTester

from flawsmith.models import GLASS

TINY = {
    "image_size": [64, 96],
    "precision": "32-true",
    "level_width": 32,
    "width": 32,
    "hidden": 16,
    "epochs": 2,
    "steps_per_epoch": 4,
    "patches_per_step": 64,
    "batch_size": 4,
    "bank_size": 16,
}


class TestGLASS(MethodTester):
    model = GLASS
    chooses_by_values = frozenset({"discrimination"})
