"""PaDiM keeps the contract."""

from tests.contract.tester import MethodTester

from flawsmith.models import PaDiM

TINY = {"image_size": [64, 96], "channels": 16}


class TestPaDiM(MethodTester):
    model = PaDiM
