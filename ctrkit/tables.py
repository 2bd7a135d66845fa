"""From keys to rows of an embedding table, and from numbers to scaled ones: what the encoding of one feature is."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ctrkit.raw_values import Float64Array, Int64Array, mix, signed_log

MISSING = 0
UNSEEN = 1
FIRST_ROW = 2
_CLOSE = 4  # integers a key that a vocabulary may span to be looked up directly

Float32Array = npt.NDArray[np.float32]


@dataclass
class Counts:
    """What became of the values of one feature."""

    values: int = 0
    missing: int = 0
    unseen: int = 0
    out_of_range: int = 0
    truncated: int = 0

    def add(self, other: "Counts") -> None:
        """Add the counts of another part of the log."""
        self.values += other.values
        self.missing += other.missing
        self.unseen += other.unseen
        self.out_of_range += other.out_of_range
        self.truncated += other.truncated


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a table: `keys_V`, sorted int64 (ids, or 64-bit hashes of strings); key i has row FIRST_ROW + i."""

    keys_V: Int64Array
    counts_V: Int64Array
    """How often each id stands in the training part."""

    @property
    def num_rows(self) -> int:
        """Rows of the embedding table, MISSING and UNSEEN included."""
        return FIRST_ROW + len(self.keys_V)

    @cached_property
    def row_by_offset(self) -> npt.NDArray[np.int32] | None:
        """Row of each integer from one before the first key to one after the last, if the keys lie close together.

        A gather is ten times as fast as a binary search.
        """
        span = int(self.keys_V[-1]) - int(self.keys_V[0]) + 1
        if span > _CLOSE * len(self.keys_V):
            return None
        rows = np.full(span + 2, UNSEEN, np.int32)
        rows[self.keys_V - self.keys_V[0] + 1] = np.arange(FIRST_ROW, self.num_rows)
        return rows

    def rows(self, keys_N: Int64Array) -> Int64Array:
        """Row of each key; UNSEEN where the vocabulary has no such key."""
        if len(self.keys_V) == 0:
            return np.full(len(keys_N), UNSEEN, np.int64)
        if self.row_by_offset is not None:
            offset_N = keys_N - self.keys_V[0] + 1  # what overflows comes out negative: before the first key
            found_N: Int64Array = self.row_by_offset.take(offset_N, mode="clip").astype(np.int64)
            return found_N
        position_N = self.keys_V.searchsorted(keys_N)
        found_N = self.keys_V.take(position_N, mode="clip") == keys_N  # beyond the last key is no key
        position_N += FIRST_ROW
        position_N[~found_N] = UNSEEN
        return position_N


@dataclass(frozen=True)
class HashBuckets:
    """A table of `buckets` rows that ids are hashed into."""

    buckets: int

    @property
    def num_rows(self) -> int:
        """Rows of the embedding table, MISSING and UNSEEN included (UNSEEN is never looked up)."""
        return FIRST_ROW + self.buckets

    def rows(self, keys_N: Int64Array) -> Int64Array:
        """Row of each key."""
        hashed_N = mix(keys_N.astype(np.uint64))
        return (hashed_N % np.uint64(self.buckets)).astype(np.int64) + FIRST_ROW


@dataclass(frozen=True)
class Buckets:
    """The quantile buckets of a dense feature: value x is in bucket i if boundary i-1 <= x < boundary i."""

    boundaries: tuple[float, ...]
    low: float
    high: float

    @property
    def num_rows(self) -> int:
        """Rows of the embedding table, MISSING and UNSEEN included (UNSEEN is never looked up)."""
        return FIRST_ROW + len(self.boundaries) + 1

    def rows(self, values_N: Float64Array) -> Int64Array:
        """Row of each finite value."""
        return np.searchsorted(np.asarray(self.boundaries), values_N, side="right").astype(np.int64) + FIRST_ROW


@dataclass(frozen=True)
class Scaling:
    """Clip to the training range, then (x - mean) / std, of x or of sign(x) log(1 + |x|)."""

    log: bool
    mean: float
    std: float
    low: float
    high: float

    def scale(self, values_N: Float64Array) -> Float32Array:
        """Scaled values; `low` and `high` bound the raw ones."""
        clipped_N = np.clip(values_N, self.low, self.high)
        transformed_N = signed_log(clipped_N) if self.log else clipped_N
        return ((transformed_N - self.mean) / self.std).astype(np.float32)


Table = Vocabulary | HashBuckets | Buckets
