"""What stands behind a trained detector of score maps: scores made comparable, and a memory bank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

from flawsmith.models.base import SinglePass, Stage, TrainingData
from flawsmith.models.components.detectors import Comparison, Moments, ScoreMapDetector, ScoreNorm, norm_stage
from flawsmith.models.components.memory_bank import BankConfig, MultiScaleMemoryBank, filled_bank, measured_rows

AnyDetector = TypeVar("AnyDetector", bound=ScoreMapDetector)


class Finish:
    """The last stages of a method and what they have found.

    Args:
        config: whether there is a bank, and of what.
        comparison: what is made comparable from position to position or from level to level.
        channels: of all levels, finest first.
        seed: of the run.
    """

    def __init__(
        self, config: BankConfig, comparison: Comparison | Literal["none"], channels: Sequence[int], seed: int
    ) -> None:
        self._config, self._comparison, self._channels, self._seed = config, comparison, channels, seed
        self._norms: list[ScoreNorm] = []
        self._bank: MultiScaleMemoryBank | None = None

    def stages(self, trained: Callable[[], ScoreMapDetector]) -> list[Stage]:
        """The stages to come after training.

        Args:
            trained: gives the trained detector as it is without them.
        """
        found: list[Stage] = []
        if self._comparison != "none":
            found.append(norm_stage(trained, self._norms.extend, self._comparison))
        if self._config.neighbourhoods:
            found.append(SinglePass("bank", lambda data: self._fill(trained, data), self._accept))
        return found

    def applied(self, detector: AnyDetector) -> AnyDetector:
        """The trained detector with what the stages have found so far; checkpoints are chosen before them."""
        detector.norms.extend(self._norms)
        detector.bank = self._bank
        return detector

    def _accept(self, tensors: dict[str, Tensor]) -> None:
        self._bank = MultiScaleMemoryBank(self._channels, self._config.neighbourhoods, self._config.bank_size)
        self._bank.load_state_dict(tensors)

    @torch.no_grad()
    def _fill(self, trained: Callable[[], ScoreMapDetector], data: TrainingData) -> dict[str, Tensor]:
        """The bank's tensors, its scale being what makes it scatter as the method's own map does, times its weight."""
        images, detector = data.features(), trained()
        detector.norms.extend(self._norms)
        moments = dict[int, Moments]()
        for row in measured_rows(len(images)):
            for number, scores in enumerate(detector.score_maps(images.batch([row]))):
                moments.setdefault(number, Moments()).add(scores)
        bank = filled_bank(images, self._config, self._seed)
        spread = torch.stack([one.whole[1].sqrt() for one in moments.values()]).sum()
        bank.scale.fill_(self._config.bank_weight * float(spread))
        return bank.state_dict()
