"""SLSG keeps the contract."""

from tests.contract.tester import MethodTester

from flawsmith.models import SLSG

TINY = {
    "image_size": [64, 96],
    "precision": "32-true",
    "pretraining": True,
    "pretraining_epochs": 2,
    "pretraining_steps": 4,
    "pretraining_batch_size": 4,
    "large_mask_sides": [8, 24],
    "discriminator_width": 4,
    "decoder_widths": [8, 8, 8],
    "epochs": 2,
    "steps_per_epoch": 4,
    "batch_size": 2,
}


class TestSLSG(MethodTester):
    model = SLSG
