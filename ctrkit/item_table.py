"""The first layer's part of every known ad, computed when the bundle was written: a look-up in place of a product.

    items/keys.npy    int64 [A], sorted: the ads, as 64-bit keys
    items/part.npy    float32, float16 or int8 [A, H], in their order
    items/scale.npy   float32 [A, 1], with int8: row i is part[i] * scale[i]

The part is mapped into memory, not read: only rows of ads that are asked for take up memory, once for
all processes.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ctrkit.errors import UserError
from ctrkit.raw_values import Int64Array, RawType, keys_of, typed_array
from ctrkit.tables import FIRST_ROW, MISSING, Float32Array, Vocabulary

KEYS_FILE, PART_FILE, SCALE_FILE = "keys.npy", "part.npy", "scale.npy"
ABSENT = -1
"""Row of an ad that the table has not."""


class ItemTable:
    """Rows of ads by their key, and what the first layer makes of them.

    Args:
        key: column that names an ad in requests.
        raw_type: of its values.
        keys_A: sorted 64-bit keys.
        part_AH: the first layer's part of each.
        scale_A1: what an int8 part is multiplied by.
    """

    def __init__(
        self,
        key: str,
        raw_type: RawType,
        keys_A: Int64Array,
        part_AH: npt.NDArray[Any],
        scale_A1: Float32Array | None = None,
    ) -> None:
        self.key, self.raw_type = key, raw_type
        self._keys = Vocabulary(keys_A, np.empty(0, np.int64))
        self._part_AH, self._scale_A1 = part_AH, scale_A1
        self._buffers = threading.local()

    @classmethod
    def load(cls, directory: Path, key: str, raw_type: RawType) -> Self:
        """Map the files of a table into memory.

        Raises:
            UserError: a file is missing or of another form.
        """
        try:
            keys_A, part_AH = _mapped(directory / KEYS_FILE), _mapped(directory / PART_FILE)
            scale_A1 = _mapped(directory / SCALE_FILE) if part_AH.dtype == np.int8 else None
            ordered = bool((keys_A[1:] > keys_A[:-1]).all())
            sizes = {len(array) for array in (keys_A, part_AH, *([] if scale_A1 is None else [scale_A1]))}
        except (OSError, ValueError, EOFError, TypeError) as error:
            raise UserError(f"{directory}: no readable item table ({error}); export the bundle again") from error
        if not ordered or len(sizes) != 1 or keys_A.dtype != np.int64 or part_AH.ndim != 2:
            raise UserError(f"{directory}: no item table, its files do not fit together; export the bundle again")
        return cls(key, raw_type, keys_A, part_AH, scale_A1)

    def __len__(self) -> int:
        return len(self._part_AH)

    @property
    def width(self) -> int:
        """H."""
        return int(self._part_AH.shape[1])

    @property
    def precision(self) -> str:
        """Type of the numbers that are kept."""
        return str(self._part_AH.dtype)

    def rows(self, values: Sequence[Any] | npt.NDArray[Any]) -> Int64Array:
        """Row of each ad, int64 [N]; `ABSENT` where the table has no such ad or the value is missing.

        Args:
            values: raw values of the column `key`.

        Raises:
            UserError: a value has another type than in the file of ads.
        """
        values_N, missing_N = typed_array(values, self.raw_type, self.key)
        rows_N = self._keys.rows(keys_of(values_N, missing_N))
        if missing_N.any():
            rows_N[missing_N] = MISSING
        rows_N -= FIRST_ROW
        return np.maximum(rows_N, ABSENT, out=rows_N)

    def part(self, rows_N: Int64Array) -> Float32Array:
        """float32 [N, H] of rows of the table; any row at all stands where it is `ABSENT`.

        The array is this thread's, and the next call writes over it.
        """
        part_NH = self._buffer("float32", np.float32, len(rows_N))
        if self._part_AH.dtype == np.float32:
            self._part_AH.take(rows_N, axis=0, out=part_NH, mode="clip")
            return part_NH
        kept_NH = self._buffer("kept", self._part_AH.dtype, len(rows_N))
        self._part_AH.take(rows_N, axis=0, out=kept_NH, mode="clip")
        if self._scale_A1 is None:
            part_NH[:] = kept_NH
            return part_NH
        np.multiply(kept_NH, self._scale_A1.take(rows_N, axis=0, mode="clip"), out=part_NH)
        return part_NH

    def check(self, rows_N: npt.NDArray[Any]) -> Int64Array:
        """The same rows as int64.

        Raises:
            UserError: they are no integers [N], or lie beyond the table.
        """
        rows_N = np.asarray(rows_N)
        if rows_N.ndim != 1 or rows_N.dtype.kind not in "iu":
            raise UserError(f"input 'ads' is int64 [N], got {rows_N.dtype} {list(rows_N.shape)}")
        rows_N = np.ascontiguousarray(rows_N, np.int64)
        if ((rows_N < ABSENT) | (rows_N >= len(self))).any():
            raise UserError(f"input 'ads': a row beyond the item table of {len(self):,} ads; {ABSENT} is not in it")
        return rows_N

    def _buffer(self, name: str, dtype: npt.DTypeLike, rows: int) -> npt.NDArray[Any]:
        kept: npt.NDArray[Any] | None = getattr(self._buffers, name, None)
        if kept is None or len(kept) < rows:
            kept = np.empty((rows, self.width), dtype)
            setattr(self._buffers, name, kept)
        return kept[:rows]


def _mapped(path: Path) -> npt.NDArray[Any]:
    # a view without np.memmap's bookkeeping, which every look-up would pay for
    mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    return mapped
