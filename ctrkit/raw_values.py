"""Raw values of a request or a log as typed arrays, and their 64-bit keys."""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ctrkit.errors import UserError

RawType = Literal["int", "string", "float"]
"""Type of a feature's raw values; booleans are ints 0 and 1."""

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_FLOAT = float | np.floating
_ACCEPTED: dict[RawType, Any] = {
    "int": bool | np.bool_ | int | np.integer | _FLOAT,  # a float is checked to be whole
    "float": bool | np.bool_ | int | np.integer | _FLOAT,
    "string": str,
}
_DTYPES: dict[RawType, type] = {"int": np.int64, "float": np.float64, "string": object}
MAX_STRING = 1024  # longer ids are replaced by their digest, so that one freak value cannot exhaust memory
_HASH_BLOCK = 16_384  # strings padded to one width at a time
_MAX_EXACT_FLOAT = 2.0**53


def typed_array(
    values: Sequence[Any] | npt.NDArray[Any], raw_type: RawType, name: str
) -> tuple[npt.NDArray[Any], BoolArray]:
    """Raw values of a request as an array of the feature's type, and where they are missing (None or NaN).

    Returns:
        values_N (int64, float64, or an object array of str) and missing_N.

    Raises:
        UserError: a value has another type than the training part's, or is an integer outside int64.
    """
    if raw_type == "string" and isinstance(values, list) and set(map(type, values)) == {str}:
        return np.array(values, object), np.zeros(len(values), np.bool_)
    array = values if isinstance(values, np.ndarray) else _array_of(values, name)
    if array.ndim != 1:
        raise UserError(f"feature '{name}' takes one value an ad, got an array of shape {array.shape}")
    if array.dtype == object:
        return _typed_objects(array, raw_type, name)
    kind = array.dtype.kind
    if raw_type == "string" and kind in "UT":
        return array.astype(object), np.zeros(len(array), np.bool_)
    if raw_type != "string" and kind in "iub":
        return _integers(array, raw_type), np.zeros(len(array), np.bool_)
    if kind == "f":
        missing_N = np.isnan(array)
        if raw_type == "float":
            return array.astype(np.float64), missing_N
        if raw_type == "int":
            return _integral(array, missing_N, name), missing_N
        if missing_N.all():  # how pandas stores a string column without a string
            return np.full(len(array), None, object), missing_N
    if len(array) == 0:
        return np.zeros(0, _DTYPES[raw_type]), np.zeros(0, np.bool_)
    raise _wrong_type(array.tolist()[0], raw_type, name)


def _typed_objects(array: npt.NDArray[np.object_], raw_type: RawType, name: str) -> tuple[npt.NDArray[Any], BoolArray]:
    # a value that is not equal to itself is NaN
    missing_N = np.fromiter((v is None or (isinstance(v, _FLOAT) and v != v) for v in array), np.bool_, len(array))
    present = array[~missing_N].tolist() if missing_N.any() else array.tolist()
    accepted = _ACCEPTED[raw_type]
    for value in present:
        if not isinstance(value, accepted):
            raise _wrong_type(value, raw_type, name)
    if raw_type == "string":
        return array, missing_N
    out: npt.NDArray[Any] = np.zeros(len(array), _DTYPES[raw_type])
    try:
        # ints one by one: beside a float, or beyond int64, numpy would make floats of them, which lose digits
        out[~missing_N] = [_id_of(v, name) for v in present] if raw_type == "int" else present
    except OverflowError as error:
        raise UserError(f"feature '{name}': an integer too large for a float") from error
    return out, missing_N


def _id_of(value: Any, name: str) -> int:
    """An int64 of the same value, or of the same bits if the value is one of uint64."""
    if isinstance(value, _FLOAT):
        return int(_integral(np.array([value]), np.zeros(1, np.bool_), name)[0])
    if not -(2**63) <= value < 2**64:
        raise UserError(f"feature '{name}': {_shown(value)} does not fit into 64 bits")
    return int(value) - (2**64 if value >= 2**63 else 0)


def _wrong_type(value: object, raw_type: RawType, name: str) -> UserError:
    if isinstance(value, str | int | float | np.generic):
        return UserError(f"feature '{name}' has {raw_type} values in training, got {_shown(value)}")
    return UserError(f"feature '{name}' takes one {raw_type} value, got {type(value).__name__}")


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 64:  # Python refuses to print some of them
        return f"an integer of {value.bit_length()} bits"
    return f"{repr(value)[:40]} ({type(value).__name__})"


def _array_of(values: Sequence[Any], name: str) -> npt.NDArray[Any]:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise UserError(f"feature '{name}' takes a list with one value an ad, got {type(values).__name__}")
    kinds = set(map(type, values))
    if kinds <= {int, bool, float}:  # numpy would turn a mix of str and int into str, and cut a string's trailing NULs
        try:
            array = np.asarray(values)
        except OverflowError:
            array = np.empty(0, object)
        if array.dtype.kind in "iub" or (array.dtype.kind == "f" and not (int in kinds and _beyond_float(values))):
            return array
    array = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):  # one by one, since numpy would spread a list over the array
        array[i] = value
    return array


def _beyond_float(values: Sequence[Any]) -> bool:
    return any(isinstance(v, int) and abs(v) > _MAX_EXACT_FLOAT for v in values)


def _integers(array_N: npt.NDArray[Any], raw_type: RawType) -> npt.NDArray[Any]:
    if raw_type == "float":
        return array_N.astype(np.float64)
    # uint64 ids above 2^63 keep their bits: int64 is only their name here
    return array_N.view(np.int64) if array_N.dtype == np.uint64 else array_N.astype(np.int64)


def _integral(array_N: npt.NDArray[np.floating[Any]], missing_N: BoolArray, name: str) -> Int64Array:
    present_N = np.where(missing_N, 0.0, array_N)
    broken = np.flatnonzero((present_N != np.floor(present_N)) | (np.abs(present_N) >= _MAX_EXACT_FLOAT))
    if len(broken):
        value = present_N[broken[0]]
        why = (
            "is no whole number"
            if abs(value) < _MAX_EXACT_FLOAT
            else "is above 2^53, where floats lose digits of an id"
        )
        raise UserError(
            f"feature '{name}' has ids, but {float(value)!r} {why}; store ids as integers or strings, "
            'or declare it kind = "dense"'
        )
    return present_N.astype(np.int64)


def keys_of(values_N: npt.NDArray[Any], missing_N: BoolArray) -> Int64Array:
    """64-bit key of each id: an integer is its own key, a string's is its hash (0 where missing)."""
    if values_N.dtype != object:
        return values_N.astype(np.int64, copy=False)
    keys_N = np.zeros(len(values_N), np.int64)
    keys_N[~missing_N] = hash_strings(values_N[~missing_N])
    return keys_N


def hash_strings(strings_N: npt.NDArray[np.object_]) -> Int64Array:
    """64-bit hash of each string, the same on every machine and in every version.

    Code points are folded in one position at a time over all strings (multiply by an odd constant, xor the high half
    down), then finished with the splitmix64 finaliser (Steele, Lea, Flood, OOPSLA 2014). Two of ten million ids collide
    with probability 3e-6; fitting checks that those of the training part do not.
    """
    different = list(set(strings_N))
    if 0 < len(different) <= len(strings_N) // 2:  # a request's ads share brands and categories: hash each once
        hashes = dict(zip(different, hash_strings(np.array(different, object)).tolist(), strict=True))
        return np.fromiter(map(hashes.__getitem__, strings_N), np.int64, len(strings_N))
    short = [
        s if len(s) <= MAX_STRING else hashlib.blake2b(s.encode("utf-8", "surrogatepass")).hexdigest()
        for s in strings_N
    ]
    length_N = np.fromiter(map(len, short), np.int64, len(short))
    order_N = np.argsort(length_N, kind="stable")  # neighbours of like length: little padding
    hash_N = np.empty(len(short), np.uint64)
    for start in range(0, len(short), _HASH_BLOCK):
        block = order_N[start : start + _HASH_BLOCK]
        hash_N[block] = _hash_block([short[i] for i in block], length_N[block])
    return hash_N.view(np.int64)


def _hash_block(strings: list[str], length_N: Int64Array) -> npt.NDArray[np.uint64]:
    width = int(length_N[-1])
    codes_NL = np.asarray(strings, dtype=f"<U{max(width, 1)}").view(np.uint32).reshape(len(strings), -1)
    return hash_code_points(codes_NL, length_N)


def hash_code_points(codes_NL: npt.NDArray[Any], length_N: Int64Array) -> npt.NDArray[np.uint64]:
    """`hash_strings` of strings given as unsigned code points, sorted by length; what stands behind it is ignored."""
    hash_N = length_N.astype(np.uint64)
    for position in range(int(length_N[-1])):
        first = int(np.searchsorted(length_N, position, side="right"))  # strings are sorted by length
        tail = hash_N[first:]
        tail ^= codes_NL[first:, position]
        tail *= np.uint64(0x9E3779B97F4A7C15)
        tail ^= tail >> np.uint64(32)
    return mix(hash_N)


def mix(x_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Finaliser of splitmix64: a bijection of 64-bit words whose every output bit depends on every input bit."""
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))


def signed_log(values_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """sign(x) log(1 + |x|), defined for every finite x."""
    return np.sign(values_N) * np.log1p(np.abs(values_N))
