"""PatchCore keeps the contract."""

from tests.contract.tester import MethodTester

from flawsmith.models import PatchCore

TINY = {"image_size": [64, 96], "coreset_ratio": 0.1, "least_rows": 32}


class TestPatchCore(MethodTester):
    model = PatchCore
