"""The distinct values of a column that rows are sliced by, missing ones included."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctrkit.errors import UserError
from ctrkit.metrics.column import Numbered, read_column
from ctrkit.metrics.grouping import group_codes
from ctrkit.metrics.inputs import is_missing

Numbers = NDArray[np.int64]


def distinct_values(column: Any, name: str = "column") -> tuple[Numbers, list[Any]]:
    """A number for each row's value [rows], and the values by number as Python objects; missing ones are None.

    Columns of any type: numpy, pandas, Arrow, lists; None, null, NaN and NaT are missing. A value may have two numbers.
    Raises UserError for values that cannot be told apart, such as lists.
    """
    found = read_column(column, name)
    if isinstance(found, Numbered):
        values = [*found.values.tolist(), None]
        return found.codes.astype(np.int64) % len(values), values  # -1, missing, is the last one
    return _of_numpy(found, name) if isinstance(found, np.ndarray) else _of_arrow(found, name)


def rows_of_values(number: Numbers, values: list[Any]) -> dict[Any, int]:
    """How many rows each value has; those without rows are left out."""
    rows: dict[Any, int] = {}
    for value, count in zip(values, np.bincount(number, minlength=len(values)).tolist(), strict=True):
        if count:
            rows[value] = rows.get(value, 0) + count
    return rows


def _of_numpy(array: NDArray[Any], name: str) -> tuple[Numbers, list[Any]]:
    if array.dtype.kind in "biuUS":
        number, count = group_codes(array, name).numbers()
        row_of = np.zeros(count, dtype=np.int64)
        row_of[number] = np.arange(len(number))
        return number, array[row_of].tolist()
    if array.dtype.kind in "fmM":
        if array.dtype.str.endswith(("[ns]", "[ps]", "[fs]", "[as]")):
            array = array.astype(f"{array.dtype.kind}8[us]")  # the finest that Python has
        values, number = np.unique(array, return_inverse=True)
        return number, [None if is_missing(value) else value for value in values.tolist()]
    numbers: dict[Any, int] = {}
    try:
        found = (None if is_missing(value) else value for value in array.astype(object))
        number = np.fromiter((numbers.setdefault(value, len(numbers)) for value in found), np.int64, len(array))
    except TypeError as error:
        raise UserError(f"{name}: values that cannot be told apart ({error}); give numbers or strings") from error
    return number, list(numbers)


def _of_arrow(column: Any, name: str) -> tuple[Numbers, list[Any]]:
    import pyarrow as pa

    try:
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        encoded = encoded.unify_dictionaries().combine_chunks()
        values = [*encoded.dictionary.to_pylist(), None]
        number = encoded.indices.fill_null(len(values) - 1).to_numpy().astype(np.int64)
        return number, [None if is_missing(value) else value for value in values]
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(
            f"{name}: values of type {column.type} cannot be told apart; give numbers or strings"
        ) from error
