"""Whether GAUC can choose among the networks of a log, or has too few users with clicks and others."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ctrkit.data.columns import decoded, to_numpy
from ctrkit.inspection.column_profile import codes_of
from ctrkit.metrics import Coverage, group_aucs
from ctrkit.raw_values import Int64Array


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
    if not _coverage(codes_N, label_N).groups_kept:
        return f"no value of '{group}' has both clicks and none in the sample, so no GAUC: training watches log loss"
    if not whole or split["by"] == "files":
        return None
    valid = _validation(sample, split, time)
    found = _coverage(codes_N[valid], label_N[valid])
    if not found.is_too_little:
        return None
    return (
        f"too little for GAUC: in a validation part only about {found.rarer_kept:,} rows of the rarer class belong to "
        "users with clicks and others, so it would choose by chance: training watches log loss, and by GAUC the "
        "test part will hardly tell two networks apart either"
    )


def _coverage(group_N: Int64Array, label_N: npt.NDArray[np.bool_]) -> Coverage:
    """What GAUC would rest on, whatever the scores."""
    return group_aucs(label_N, np.zeros(len(label_N)), group_N).coverage


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
