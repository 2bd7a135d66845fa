"""Checkpoints that are there whole or not at all."""

import zipfile
from collections.abc import Callable, Mapping
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
        UserError: the file is there but not readable, or not what was written.
    """
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None  # torch reads bytes that have changed without a word
        content = torch.load(path, map_location="cpu", weights_only=True) if whole else None
    except Exception as error:  # damaged bytes lead zip and pickle to any
        raise _unreadable(path) from error
    if not whole:
        raise _unreadable(path)
    return content


def _unreadable(path: Path) -> UserError:
    return UserError(f"{path}: not a readable checkpoint; delete it to train from the start")


def resumable(path: Path, now: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any] | None:
    """The state of a run at `path`, if a run whose state is `now` can go on from it; else None.

    Both have a "fingerprint" and an "objective", the weights by name. A state that is damaged, or of the same
    fingerprint but with other parts or other weights, is told as a warning; one of another fingerprint is not.
    """
    try:
        state = load_checkpoint(path)
        if state is None or state["fingerprint"] != now["fingerprint"]:
            return None
        fits = state.keys() == now.keys() and _shapes(state["objective"]) == _shapes(now["objective"])
    except (UserError, KeyError, TypeError, AttributeError):
        fits = False
    if fits:
        assert isinstance(state, dict)
        return state
    say(f"  warning: {path}: not a readable checkpoint of this run; training from the start")
    return None


def _shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}
