"""The device that a recipe names."""

import torch

from ctrkit.errors import UserError
from ctrkit.training.ranks import Ranks


def find_device(name: str, ranks: Ranks | None = None) -> torch.device:
    """The device, tried; with `cuda` each of several processes on a machine takes its own.

    Raises:
        UserError: torch cannot use it on this machine.
    """
    try:
        device = torch.device(name)
        if ranks is not None and ranks.size > 1 and device.type == "cuda":
            device = torch.device("cuda", ranks.local_rank)
            torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"train.device '{name}': torch cannot use it on this machine; give cpu, or another") from error
    return device
