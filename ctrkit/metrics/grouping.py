"""Group keys of any type as integer codes: exact, never a hash that could merge two users."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctrkit.errors import UserError
from ctrkit.metrics.column import Numbered, read_column, ungroupable
from ctrkit.metrics.inputs import is_missing


@dataclass(frozen=True)
class Grouping:
    """A group's code for every row.

    codes: integers [rows] from `offset` up; `code` takes that off, so a row's code is in [0, 2**bits).
    dense: the codes are about as many as the groups, so a new numbering would save no bits.
    names: the groups' keys in order of their codes (numpy or Arrow), or None where the stored integer is the key.
    """

    codes: NDArray[Any]
    offset: int
    bits: int
    dense: bool
    names: Any = None

    def code(self, part: slice) -> NDArray[np.uint64]:
        """The codes of those rows."""
        code = self.codes[part].astype(np.uint64)
        code -= np.uint64(self.offset % 2**64)
        return code

    def keys(self, codes: NDArray[np.uint64]) -> NDArray[Any]:
        """The keys of those codes, in the type that came in."""
        if self.names is None:
            keys = codes + np.uint64(self.offset % 2**64)
            return keys.astype(self.codes.dtype)
        return np.asarray(self.names)[codes.astype(np.int64)]

    def numbers(self) -> tuple[NDArray[np.int64], int]:
        """A number for every row's group [rows], from 0 and without gaps, and how many groups there are."""
        code = self.renumbered().code(slice(None)).astype(np.int64)
        present = np.bincount(code) > 0
        return (np.cumsum(present) - 1)[code], int(present.sum())

    def renumbered(self) -> "Grouping":
        """The same groups under codes as few as the groups."""
        return self if self.dense else _renumber(self.codes)


def group_codes(groups: Any, name: str = "groups") -> Grouping:
    """Codes of group keys: integers, strings, bytes, bool, dates, objects; numpy, pandas, Arrow, polars.

    Integers keep their own values, so they cost no pass. Strings are numbered by Arrow where it is installed.
    Raises UserError for missing keys (count and first row), for floats, in which large ids merge, for keys that cannot
    be compared, such as lists, and for a column that is not one-dimensional.
    """
    column = read_column(groups, name)
    if isinstance(column, Numbered):
        _refuse_missing(column.codes < 0, name)
        _refuse_floats(column.values.dtype.kind == "f", name)
        return _numbered(column.codes, column.values)
    return _from_numpy(column, name) if isinstance(column, np.ndarray) else _from_arrow(column, name)


def _from_numpy(array: NDArray[Any], name: str) -> Grouping:
    kind = array.dtype.kind
    _refuse_floats(kind == "f", name)
    if kind == "b":
        array = array.view(np.uint8)
    elif kind in "mM":
        _refuse_missing(np.isnat(array), name)
        return _numbered(*_unique(array))
    elif kind in "OT":
        return _from_objects(array.astype(object), name)
    elif kind in "US":
        return _from_strings(array)
    elif kind not in "iu":
        raise ungroupable(array.dtype, name)
    return _own_values(array)


def _own_values(array: NDArray[Any]) -> Grouping:
    if not len(array):
        return Grouping(array, 0, 0, dense=True)
    low, high = int(array.min()), int(array.max())
    return Grouping(array, low, (high - low).bit_length(), dense=high - low < 4 * len(array))


def _numbered(codes: NDArray[Any], names: Any) -> Grouping:
    return Grouping(codes, 0, max(len(names) - 1, 0).bit_length(), dense=True, names=names)


def _from_strings(array: NDArray[Any]) -> Grouping:
    """Strings and bytes as keys of one width: taken for text, a key would end at its first NUL."""
    try:
        import pyarrow as pa
    except ImportError:
        return _numbered(*_unique(array))
    raw = pa.py_buffer(np.ascontiguousarray(array).view(np.uint8))
    encoded = pa.Array.from_buffers(pa.binary(array.dtype.itemsize), len(array), [None, raw]).dictionary_encode()
    names = np.frombuffer(encoded.dictionary.buffers()[1] or b"", dtype=array.dtype, count=len(encoded.dictionary))
    return _numbered(encoded.indices.to_numpy(), names)


def _from_objects(array: NDArray[Any], name: str) -> Grouping:
    """Any hashable keys, equal as Python says; None and NaN (the keys that are not equal to themselves) are missing."""
    numbers: dict[Any, int] = {}
    number = numbers.setdefault
    try:
        codes = np.fromiter((number(key, len(numbers)) for key in array), np.int64, len(array))
    except TypeError as error:
        raise UserError(f"{name}: keys that cannot be grouped ({error}); give integers or strings") from error
    names = np.empty(len(numbers), dtype=object)
    names[:] = list(numbers)
    lost = np.array([is_missing(key) for key in names], dtype=np.bool_)
    if lost.any():
        _refuse_missing(lost[codes], name)
    _refuse_floats(any(isinstance(key, float | np.floating) for key in names), name)
    return _numbered(codes, names)


def _from_arrow(column: Any, name: str) -> Grouping:
    import pyarrow as pa

    if column.null_count:
        _refuse_missing(column.is_null().to_numpy(), name)
    if not len(column):
        return _own_values(np.empty(0, dtype=np.int64))
    is_dictionary = pa.types.is_dictionary(column.type)
    _refuse_floats(pa.types.is_floating(column.type.value_type if is_dictionary else column.type), name)
    if pa.types.is_integer(column.type):
        return _own_values(column.to_numpy())
    try:
        encoded = column if is_dictionary else column.dictionary_encode()
    except pa.ArrowNotImplementedError as error:
        raise ungroupable(column.type, name) from error
    return _from_dictionary(encoded.unify_dictionaries().combine_chunks(), name)


def _from_dictionary(array: Any, name: str) -> Grouping:
    """Codes of a DictionaryArray. Arrow lets a dictionary name one key twice, or name null: then it is renumbered."""
    distinct = array.dictionary.dictionary_encode()
    codes = array.indices.to_numpy()
    if len(distinct.dictionary) == len(array.dictionary):
        return _numbered(codes, array.dictionary)
    if distinct.null_count:
        _refuse_missing(distinct.is_null().to_numpy(zero_copy_only=False)[codes], name)
        return _from_dictionary(array.dictionary_decode().dictionary_encode(), name)
    return _numbered(distinct.indices.to_numpy()[codes], distinct.dictionary)


def _renumber(array: NDArray[Any]) -> Grouping:
    """Integers too far apart to keep: numbered by Arrow's hash table where it is installed, else by a sort."""
    try:
        import pyarrow as pa
    except ImportError:
        return _numbered(*_unique(array))
    encoded = pa.array(array).dictionary_encode()
    return _numbered(encoded.indices.to_numpy(), encoded.dictionary.to_numpy())


def _unique(array: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    names, codes = np.unique(array, return_inverse=True)
    return codes, names


def _refuse_floats(floats: bool, name: str) -> None:
    if floats:
        raise UserError(f"{name}: keys are floats, in which large ids merge; read them as integers or strings")


def _refuse_missing(missing: NDArray[np.bool_], name: str) -> None:
    rows = np.flatnonzero(missing)
    if rows.size:
        raise UserError(
            f"{name}: {rows.size} of {len(missing)} keys are missing, the first in row {rows[0]}; "
            "drop those rows or give them keys, since together they would count as one user"
        )
