"""The device that a recipe names."""

import torch

from ctrkit.errors import UserError


def find_device(name: str) -> torch.device:
    """The device, tried.

    Raises:
        UserError: torch cannot use it on this machine.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"train.device '{name}': torch cannot use it on this machine; give cpu, or another") from error
    return device
