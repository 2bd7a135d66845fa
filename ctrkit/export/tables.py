"""Tables in fewer bits: half precision, or int8 with a scale a row."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrkit.bundle import TablePrecision
from ctrkit.errors import UserError

_CHUNK = 1 << 16


@dataclass(frozen=True)
class RowwiseInt8:
    """Row i is values_VE[i] * scale_V1[i]."""

    values_VE: npt.NDArray[np.int8]
    scale_V1: npt.NDArray[np.float32]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return self.values_VE.dtype


Stored = npt.NDArray[Any] | RowwiseInt8
"""A table as it is kept."""


def stored(table_VE: Stored, precision: TablePrecision) -> Stored:
    """A table in the precision asked for, or in the half precision that it was trained in.

    Raises:
        UserError: a number is too large for half precision.
    """
    if isinstance(table_VE, RowwiseInt8):
        return table_VE
    if precision == "int8":
        return _rowwise(table_VE)
    if precision == "float32" or table_VE.dtype == np.float16:
        return table_VE
    with np.errstate(over="ignore"):
        half_VE = table_VE.astype(np.float16)
    if not np.isfinite(half_VE).all() and np.isfinite(table_VE).all():
        raise UserError("a table holds a number above 65504, too large for float16; export with tables = float32")
    return half_VE


def as_float32(table: Stored) -> npt.NDArray[np.float32]:
    """The numbers that a kept table stands for."""
    if isinstance(table, RowwiseInt8):
        return table.values_VE.astype(np.float32) * table.scale_V1
    return table.astype(np.float32, copy=False)


def _rowwise(table_VE: npt.NDArray[Any]) -> RowwiseInt8:
    """Each row by its largest number; in chunks, since a table may be larger than what is left of memory."""
    values_VE, scale_V1 = np.empty(table_VE.shape, np.int8), np.empty((len(table_VE), 1), np.float32)
    for start in range(0, len(table_VE), _CHUNK):
        rows = table_VE[start : start + _CHUNK].astype(np.float32)
        scale = np.abs(rows).max(axis=1, keepdims=True, initial=0.0) / np.float32(127)
        scale[scale < np.finfo(np.float32).tiny] = 1
        values_VE[start : start + _CHUNK] = np.rint(rows / scale)
        scale_V1[start : start + _CHUNK] = scale
    return RowwiseInt8(values_VE, scale_V1)
