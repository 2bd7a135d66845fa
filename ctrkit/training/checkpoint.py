"""Checkpoints that are there whole or not at all."""

import pickle
from pathlib import Path
from typing import Any

import torch

from ctrkit.atomic import atomic_file
from ctrkit.errors import UserError


def save_checkpoint(path: Path, content: Any) -> None:
    """Write tensors and plain values; raises as `ctrkit.atomic.atomic_file` does."""
    with atomic_file(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own, about the half-written archive, hides what the system said
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: Path) -> Any | None:
    """What `save_checkpoint` wrote, or None if there is no such file.

    Only tensors and plain values are read, never code (`weights_only`); they come to the CPU, whatever device they were
    saved from.

    Raises:
        UserError: the file is there but not readable.
    """
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: not a readable checkpoint; delete it to train from the start") from error
