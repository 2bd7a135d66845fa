"""Judging one set of predictions: every metric, by slice and by field, with intervals."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ctrkit.errors import UserError
from ctrkit.evaluation.predictions import Predictions
from ctrkit.evaluation.report import EvalConfig, Evaluation, Rows
from ctrkit.evaluation.stream import evaluate_stream
from ctrkit.metrics import Interval, bootstrap_intervals, field_calibration_error, reliability_curve, user_activity
from ctrkit.metrics.grouping import group_codes
from ctrkit.metrics.resampling import COMPARABLE
from ctrkit.metrics.slices import slice_rows

ROWS_IN_MEMORY = 20_000_000
"""Predictions of up to so many rows are read into memory: about 150 bytes a row, and the users' keys."""


def evaluate_predictions(
    predictions: Predictions,
    config: EvalConfig | None = None,
    *,
    rows_in_memory: int = ROWS_IN_MEMORY,
    tmp: Path | None = None,
) -> Evaluation:
    """Judge predictions of any size.

    Up to `rows_in_memory` rows are read into memory; more go through partitions on the disk (`evaluate_stream`, below
    `tmp`), with the same result.

    Raises:
        UserError: what reading `predictions` raises; a column that is not there; slices by user activity or intervals
            without users; intervals with weights, or of more rows than are read into memory; a full disk.
    """
    config = config or EvalConfig()
    config.check(predictions)
    if predictions.num_rows <= rows_in_memory:
        return _in_memory(predictions, config)
    if config.resamples:
        raise UserError(
            f"{predictions.path}: intervals need all rows in memory, and {predictions.num_rows:,} are more than "
            f"{rows_in_memory:,}; raise --rows-in-memory (about 300 bytes a row), or keep the rows of fewer users"
        )
    return evaluate_stream(predictions, config, tmp=tmp)


def _in_memory(predictions: Predictions, config: EvalConfig) -> Evaluation:
    table = predictions.read(config.columns(predictions))
    rows = Rows.of(predictions, table, config)
    if rows.users is not None:
        rows = replace(rows, users=group_codes(rows.users).numbers()[0])
    parts = {name: _parts(predictions, table, rows, config, name) for name in config.slices}
    resamples = config.resamples
    return Evaluation(
        report=rows.partial(scores=True).report(),
        curve=reliability_curve(rows.clicks, rows.probability, sample_weight=rows.weight),
        slices={
            name: {value: rows.take(part).partial(scores=True).report() for value, part in by_value.items()}
            for name, by_value in parts.items()
        },
        fields={
            name: field_calibration_error(rows.clicks, rows.probability, table[name], rows.weight)
            for name in config.fields
        },
        intervals=_intervals(rows, COMPARABLE, resamples) if resamples else {},
        slice_intervals={
            name: {value: _intervals(rows.take(part), ["gauc"], resamples)["gauc"] for value, part in by_value.items()}
            for name, by_value in parts.items()
        }
        if resamples
        else {},
    )


def _parts(
    predictions: Predictions, table: pa.Table, rows: Rows, config: EvalConfig, name: str
) -> dict[Any, NDArray[np.int64]]:
    """The rows of each value of a slice."""
    if config.by_activity(predictions, name):
        return slice_rows(user_activity(rows.users), name, None)
    return slice_rows(table[name], name, config.max_values)


def _intervals(rows: Rows, metrics: Sequence[str], resamples: int) -> dict[str, Interval]:
    return bootstrap_intervals(rows.clicks, rows.probability, rows.users, metrics=metrics, resamples=resamples)
