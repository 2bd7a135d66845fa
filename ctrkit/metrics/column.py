"""A column of keys or values as one of three things, whatever it came as: numbered values, Arrow's, or numpy's."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctrkit.errors import UserError
from ctrkit.metrics.inputs import unmasked


@dataclass(frozen=True)
class Numbered:
    """Values that are numbered already, as pandas' Categorical has them: `codes` [rows], -1 where there is none."""

    codes: NDArray[Any]
    values: NDArray[Any]


def read_column(column: Any, name: str) -> Any:
    """A column [rows] as `Numbered`, a pyarrow ChunkedArray (extension types as what they store), or a numpy array.

    Arrow is what speaks it: pyarrow, polars, pandas' strings. A list is an array of objects, since numpy would make
    [1, "1"] one type and one value.

    Raises:
        UserError: it is not one-dimensional, or of a type that Arrow does not know.
    """
    column = unmasked(column)
    inner = getattr(column, "array", column)  # what a pandas Series holds
    if hasattr(inner, "categories") and hasattr(inner, "codes"):
        return Numbered(np.asarray(inner.codes), np.asarray(inner.categories))
    if _is_arrow(column):
        return _as_arrow(column, name)
    if isinstance(column, list | tuple):
        array = np.empty(len(column), dtype=object)
        array[:] = column
    else:
        array = np.asarray(column)
    if array.ndim != 1:
        raise UserError(f"{name} has shape {array.shape}; give one dimension, [rows]")
    return array


def ungroupable(kind: Any, name: str) -> UserError:
    """What a person is told of keys of a type that cannot be told apart."""
    return UserError(f"{name}: keys of type {kind} cannot be grouped; give integers or strings")


def _is_arrow(column: Any) -> bool:
    """Whether the column speaks Arrow and Arrow is the better way to read it."""
    if isinstance(column, np.ndarray) or not (
        hasattr(column, "__arrow_c_stream__") or hasattr(column, "__arrow_c_array__")
    ):
        return False
    dtype = getattr(column, "dtype", None)
    return not (isinstance(dtype, np.dtype) or str(dtype) == "Object")  # polars gives the addresses of its objects


def _as_arrow(column: Any, name: str) -> Any:
    import pyarrow as pa

    try:
        if not isinstance(column, pa.ChunkedArray):
            column = pa.chunked_array(column if hasattr(column, "__arrow_c_stream__") else [pa.array(column)])
        if isinstance(column.type, pa.BaseExtensionType):
            column = column.cast(column.type.storage_type)
    except (pa.ArrowException, TypeError) as error:
        raise ungroupable(getattr(column, "dtype", type(column).__name__), name) from error
    return column
