"""Losses and metrics for TensorBoard."""

from collections.abc import Callable
from pathlib import Path

from ctrkit.errors import UserError


def tensorboard_writer(place: Path) -> Callable[[str, float, int], None]:
    """Writes (tag, value, step) below `place`/tensorboard at once.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "train.tensorboard needs the package tensorboard; pip install '.[tensorboard]' in the clone of ctrkit"
        ) from error
    writer = SummaryWriter(str(place / "tensorboard"))

    def write(tag: str, value: float, step: int) -> None:
        writer.add_scalar(tag, value, step)
        writer.flush()

    return write
