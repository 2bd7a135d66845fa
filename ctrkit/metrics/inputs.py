"""What comes in: anything with rows becomes a checked numpy array, or a UserError that says where it is wrong."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctrkit.errors import UserError

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32] | NDArray[np.float64]

CHUNK_ROWS = 1 << 17
"""Rows of one step of a pass: its temporary arrays stay in a core's cache, and are all the memory that a pass adds."""

WEIGHTS = (1e-100, 1e100)
"""Weights may be 0 or in this range, so that float64 holds the product of two and the sum of all."""


def chunks(rows: int) -> Iterator[slice]:
    """The slices that cut `rows` rows into CHUNK_ROWS at a time."""
    for start in range(0, rows, CHUNK_ROWS):
        yield slice(start, min(start + CHUNK_ROWS, rows))


def labels(values: ArrayLike, name: str = "y_true") -> BoolArray:
    """Clicks as bool [rows], from any numbers that are 0 or 1.

    Raises UserError with the count and the first row of labels outside {0, 1}, NaN and nulls included.
    """
    array = _one_column(values, name)
    if array.dtype.kind not in "biuf":
        array = _numbers(array, name)
    if array.dtype.kind == "b":
        return array.astype(np.bool_, copy=False)
    _refuse(array, lambda part: (part != 0) & (part != 1), f"{name}: labels outside {{0, 1}}", "a label is 0 or 1")
    return array.astype(np.bool_)


def scores(values: ArrayLike, name: str = "y_score") -> FloatArray:
    """Scores as float32 or float64 [rows], never rounded: float64 values that are all float32 come back as float32.

    Only Decimals are, to the nearest float64. Raises UserError for NaN and infinite scores with the count and the first
    row, and for numbers wider than float64.
    """
    array = _one_column(values, name)
    if array.dtype.kind not in "biuf":
        array = _numbers(array, name)
    if array.dtype == np.float16 or array.dtype.kind == "b":
        array = array.astype(np.float32)
    if array.dtype not in (np.float32, np.float64):
        wide = array.astype(np.float64)
        whole = array.dtype.kind in "iu"
        if array.size and not (abs(wide).max() < 2.0**53 if whole else np.array_equal(wide, array)):
            raise UserError(_too_wide(array, name))
        array = wide
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        _refuse(array, lambda part: ~np.isfinite(part), f"{name}: NaN or infinite values", "drop or mend those rows")
    return _narrow(np.ascontiguousarray(array))


def probabilities(values: ArrayLike, name: str = "probability") -> NDArray[np.float64]:
    """Probabilities as float64 [rows]. Raises UserError for values outside [0, 1], NaN included."""
    array = scores(values, name)
    _refuse(array, lambda part: (part < 0) | (part > 1), f"{name}: values outside [0, 1]", "are they logits?")
    return array.astype(np.float64, copy=False)


def weights(values: ArrayLike | None, rows: int, name: str = "sample_weight") -> NDArray[np.float64] | None:
    """Weights as float64 [rows], or None.

    Raises UserError for another length, and for weights that are not 0 and outside WEIGHTS, NaN included.
    """
    if values is None:
        return None
    array = scores(values, name).astype(np.float64, copy=False)
    same_length(rows, **{name: array})
    low, high = WEIGHTS
    _refuse(
        array,
        lambda part: (part != 0) & ~((part >= low) & (part <= high)),
        f"{name}: weights that are not 0 and outside [{low:g}, {high:g}]",
        "a weight says how many times a row counts",
    )
    return array


def same_length(rows: int, **columns: Any) -> None:
    """Raise UserError if a column does not have `rows` rows."""
    for name, column in columns.items():
        if not hasattr(column, "__len__"):
            raise UserError(f"{name} is a {type(column).__name__}; give a column, [rows]")
        if len(column) != rows:
            raise UserError(f"{name} has {len(column)} rows, y_true has {rows}; give one value for each row")


def is_missing(value: Any) -> bool:
    """Whether it is None, NaN, NaT or pandas.NA: the values that are not equal to themselves, or do not say."""
    try:
        return value is None or bool(value != value)
    except TypeError:
        return True


def unmasked(values: Any) -> Any:
    """A numpy masked array with NaN for what is masked; everything else as it is."""
    if not isinstance(values, np.ma.MaskedArray) or not np.ma.is_masked(values):
        return values
    return np.where(np.ma.getmaskarray(values), np.nan, np.asarray(values, dtype=object))


def _one_column(values: ArrayLike, name: str) -> NDArray[Any]:
    array = np.asarray(unmasked(values))
    if array.ndim != 1:
        raise UserError(f"{name} has shape {array.shape}; give one dimension, [rows]")
    return array


def _numbers(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Objects, which pandas and Arrow make of nullable numbers, and text as float64; a missing value becomes NaN."""
    if array.dtype.kind not in "OSUT":
        raise UserError(f"{name}: {array.dtype} values are no numbers; give numbers")
    values = [np.nan if is_missing(value) else value for value in array.tolist()]
    try:
        numbers = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name}: {array.dtype} values that are not all numbers; give numbers without nulls") from error
    if any(isinstance(value, int) and value != number for value, number in zip(values, numbers.tolist(), strict=True)):
        raise UserError(_too_wide(array, name))
    return numbers


def _too_wide(array: NDArray[Any], name: str) -> str:
    return f"{name}: {array.dtype} values that float64 cannot hold; give scores as float64"


def _refuse(array: NDArray[Any], wrong: Callable[[NDArray[Any]], BoolArray], what: str, way_out: str) -> None:
    count, first = 0, -1
    for part in chunks(len(array)):
        rows = np.flatnonzero(wrong(array[part]))
        if rows.size and first < 0:
            first = part.start + int(rows[0])
        count += rows.size
    if count:
        raise UserError(f"{what}: {count} of {len(array)} rows, the first is row {first} ({array[first]}); {way_out}")


def _narrow(array: FloatArray) -> FloatArray:
    """The same values as float32 where that loses nothing: a model's own scores need half the bits to be sorted."""
    if array.dtype == np.float32:
        return array
    with np.errstate(over="ignore"):
        if all(np.array_equal(array[part], array[part].astype(np.float32)) for part in chunks(len(array))):
            return array.astype(np.float32)
    return array
