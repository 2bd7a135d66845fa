"""The first layer's part of every known ad, computed when the bundle was written: a look-up in place of a product.

    items/keys.npy    int64 [A], sorted: the ads, as 64-bit keys
    items/part.npy    float32, float16 or int8 [A, H], in their order
    items/scale.npy   float32 [A, 1], with int8: row i is part[i] * scale[i]
    items/part.int8.npy   uint8 [A, H], of the graph in int8: (part - zero_point) * scale, which that graph has

Rows of ads are found here; what stands in them is read by the graph table.onnx, which has part.npy and scale.npy as
weights. ONNX Runtime maps them into memory: only rows of ads that are asked for take up any, once for all processes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ctrkit.errors import UserError
from ctrkit.raw_values import Int64Array, RawType, keys_of, typed_array
from ctrkit.tables import FIRST_ROW, MISSING, Vocabulary

KEYS_FILE, PART_FILE, SCALE_FILE, PART_INT8_FILE = "keys.npy", "part.npy", "scale.npy", "part.int8.npy"
ABSENT = -1
"""Row of an ad that the table has not."""


class ItemTable:
    """Rows of ads by their key.

    Args:
        key: column that names an ad in requests.
        raw_type: of its values.
        keys_A: sorted 64-bit keys.
    """

    def __init__(self, key: str, raw_type: RawType, keys_A: Int64Array) -> None:
        self.key, self.raw_type = key, raw_type
        self._keys = Vocabulary(keys_A, np.empty(0, np.int64))

    @classmethod
    def load(cls, directory: Path, key: str, raw_type: RawType) -> Self:
        """Map the keys of a table into memory.

        Raises:
            UserError: they are missing or of another form.
        """
        path = directory / KEYS_FILE
        try:
            # a view without np.memmap's bookkeeping, which every look-up would pay for
            keys_A: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: no readable keys ({error}); export the bundle again") from error
        if keys_A.dtype != np.int64 or keys_A.ndim != 1 or not (keys_A[1:] > keys_A[:-1]).all():
            raise UserError(f"{path}: no keys of an item table; export the bundle again")
        return cls(key, raw_type, keys_A)

    def __len__(self) -> int:
        return len(self._keys.keys_V)

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
