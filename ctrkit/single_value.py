"""The row of one raw value in plain Python: of a value or two, numpy's way costs ten times as much.

What is not plainly an id of the right type goes numpy's way, which says what is wrong with it.
"""

from collections.abc import Callable
from typing import Any

from ctrkit.raw_values import RawType
from ctrkit.tables import FIRST_ROW, MISSING, UNSEEN, HashBuckets, Table, Vocabulary

_WORD = 2**64 - 1
_LONGEST = 64  # longer strings are hashed faster by numpy

FindRow = Callable[[Any], int | None]
"""Row of a raw value, None if it must go the other way."""


def row_finder(table: Table | None, raw_type: RawType) -> FindRow | None:
    """What finds the rows of a feature's values, as `Encoding.encode_sparse` does; None if nothing does.

    Args:
        table: of a categorical feature.
        raw_type: of its values.
    """
    if raw_type == "float" or not isinstance(table, Vocabulary | HashBuckets):
        return None
    row_of_key = _in_vocabulary(table) if isinstance(table, Vocabulary) else _in_buckets(table.buckets)
    key_of: Callable[[Any], int | None] = _key_of_int if raw_type == "int" else _key_of_string

    def find(value: Any) -> int | None:
        if value is None:
            return MISSING
        key = key_of(value)
        return None if key is None else row_of_key(key)

    return find


def _in_vocabulary(table: Vocabulary) -> Callable[[int], int]:
    keys_V, size = table.keys_V, len(table.keys_V)
    direct = table.row_by_offset if size else None
    before = int(keys_V[0]) - 1 if size else 0

    def gathered(key: int) -> int:
        assert direct is not None
        offset = key - before
        return int(direct[offset]) if 0 < offset <= len(direct) - 1 else UNSEEN

    def searched(key: int) -> int:
        position = int(keys_V.searchsorted(key))
        return position + FIRST_ROW if position < size and keys_V[position] == key else UNSEEN

    return searched if direct is None else gathered


def _in_buckets(buckets: int) -> Callable[[int], int]:
    return lambda key: _mixed(key & _WORD) % buckets + FIRST_ROW


def _key_of_int(value: Any) -> int | None:
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def _key_of_string(value: Any) -> int | None:
    """`ctrkit.raw_values.hash_strings` of one."""
    if type(value) is not str or len(value) > _LONGEST:
        return None
    hashed = len(value)
    for character in value:
        hashed = ((hashed ^ ord(character)) * 0x9E3779B97F4A7C15) & _WORD
        hashed ^= hashed >> 32
    hashed = _mixed(hashed)
    return hashed - 2**64 if hashed >= 2**63 else hashed


def _mixed(x: int) -> int:
    """`ctrkit.raw_values.mix` of one."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)
