"""How large a trained network is: the numbers it holds, and the operations that an image takes."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Numbers that a model holds: parameters and what is learned without gradients, frozen backbone included.

    Counters of batches are left out. A paper counts its released code, which may hold layers that no map depends on.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())


def count_flops(model: nn.Module, image_size: tuple[int, int]) -> int:
    """Floating-point operations of one image, a multiplication and the sum after it counted as two.

    Convolutions, matrix products and attention count, as ``torch.utils.flop_counter`` knows them; resizing, norms and
    searches for nearest neighbours do not.

    Args:
        model: takes normalised images (batch, 3, height, width).
        image_size: (height, width).

    Example:
        >>> count_flops(nn.Conv2d(3, 2, 1), (4, 5))
        240
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    training = model.training
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(torch.zeros(1, 3, *image_size, device=device))
    finally:
        model.train(training)
    return int(counter.get_total_flops())
