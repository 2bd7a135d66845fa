"""Files that are there whole or not at all."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from ctrkit.errors import UserError


def save_checkpoint(path: Path, content: Any) -> None:
    """Write tensors and plain values (or bytes) beside `path`, flush, and rename over it."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}); what was there before is kept") from error


def load_checkpoint(path: Path) -> Any | None:
    """What `save_checkpoint` wrote, or None if there is no such file.

    Only tensors and plain values are read, never code (`weights_only`).

    Raises:
        UserError: the file is there but not readable.
    """
    if not path.exists():
        return None
    try:
        return torch.load(path, weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: not a readable checkpoint ({error}); delete it to train from the start") from error
