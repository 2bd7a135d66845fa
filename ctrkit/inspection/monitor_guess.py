"""Whether GAUC can choose among the networks of a log, or has too few users with clicks and others."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ctrkit.data.columns import decoded, to_numpy
from ctrkit.inspection.column_profile import codes_of
from ctrkit.raw_values import Int64Array

ENOUGH = 50
"""Rows of the rarer class, of users with both, on which GAUC has a standard error of about .04."""


def why_not_gauc(
    sample: pa.Table,
    split: Mapping[str, Any],
    group: str,
    time: str | None,
    label_N: npt.NDArray[np.bool_],
    *,
    whole: bool,
) -> str | None:
    """Why GAUC cannot choose, or None.

    Args:
        sample: N rows of the log.
        split: data.split of the recipe.
        group, time: columns of the user and of the time.
        label_N: which rows are clicks.
        whole: whether the sample is the log; if not, it tells only whether there is any user with both classes.
    """
    codes_N = codes_of(decoded(sample.column(group).combine_chunks()))
    if not rarer_rows(codes_N, label_N):
        return f"no value of '{group}' has both clicks and none in the sample, so no GAUC: training watches log loss"
    if not whole or split["by"] == "files":
        return None
    valid = _validation(sample, split, time)
    found = rarer_rows(codes_N[valid], label_N[valid])
    if found >= ENOUGH:
        return None
    return (
        f"too little for GAUC: in a validation part only about {found:,} rows of the rarer class belong to users with "
        "clicks and others, so it would choose by chance: training watches log loss, and by GAUC the test part will "
        "hardly tell two networks apart either"
    )


def rarer_rows(group_N: Int64Array, label_N: npt.NDArray[np.bool_]) -> int:
    """Rows that GAUC rests on: of each group that has clicks and others, those of the rarer class."""
    clicks = np.bincount(group_N, label_N)
    return int(np.minimum(clicks, np.bincount(group_N) - clicks).sum())


def _validation(sample: pa.Table, split: Mapping[str, Any], time: str | None) -> Int64Array:
    """Rows like those of the validation part."""
    rows = sample.num_rows
    if split["by"] == "random":
        return np.arange(0, rows, 10, dtype=np.int64)
    column = decoded(sample.column(split.get("column", time)).combine_chunks())
    if split["by"] == "time":
        order_N = to_numpy(pc.array_sort_indices(column)).astype(np.int64)
        return order_N[int(0.8 * rows) : int(0.9 * rows)]
    days = column.drop_null().unique()
    day = days.take(pc.array_sort_indices(days))[-2]
    return np.flatnonzero(to_numpy(pc.equal(column, day).fill_null(False)))
