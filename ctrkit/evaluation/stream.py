"""Judging more predictions than memory holds, exactly.

GAUC needs all rows of a user together, AUC and calibration all rows of a score. So the rows are put on the disk twice:

1. survey: one look at the scores and the slice columns counts how the scores lie and which values the slices have;
2. rows go into partitions by a hash of their user;
3. every partition is read by itself: GAUC and all sums come from it, then its rows go on into partitions by score;
4. every range of scores is read by itself, in ascending order, for AUC and the reliability curve.

The partial results merge exactly (`ReportPartial`, `ScoreSums`), so the report is that of all rows in memory, bit for
bit. What bounds memory: of n rows a partition by user holds about n / partitions, or the rows of its most active user;
a range of scores is read `partition_rows` rows at a time and keeps its distinct scores, about n / partitions, or those
of the fullest of the survey's cells, each of which is 1/4096 of its scores wide. A row takes about 200 bytes: 50 M rows
in partitions of 4 M, 0.8 GB. Besides, the distinct values of the slice and field columns are held. On the disk: the
columns that are read, once, and one partition.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ctrkit.evaluation.predictions import Predictions
from ctrkit.evaluation.report import EvalConfig, Evaluation, Rows
from ctrkit.evaluation.spill import Spill, spill_directory
from ctrkit.metrics import FieldPartial, ReportPartial, shard_of_groups
from ctrkit.metrics.grouping import group_codes
from ctrkit.metrics.score_table import ScoreSums, ScoreTable
from ctrkit.metrics.slices import SliceValues, activity_quantiles, rows_by_code
from ctrkit.metrics.values import distinct_values, rows_of_values

PARTITION_ROWS = 1 << 22
"""Rows that a partition is meant to hold."""

_MOST_PARTITIONS = 256  # a file each is open while rows are put into them
_DECILES = 10
_FIELD_PARTIALS = 16  # batches whose sums of a field wait to be merged

Key = tuple[str, int]  # a slice's name and the code of its value
_WHOLE: Key = ("", -1)


@dataclass(frozen=True)
class _Survey:
    """What is known before rows are put into partitions.

    partitions: how many. range_of_cell: the range of scores that a cell of scores belongs to. slices: the values of
    every slice. columns: names of those that are columns; the other one, if any, is by user activity.
    """

    partitions: int
    range_of_cell: NDArray[np.int64]
    slices: dict[str, SliceValues]
    columns: tuple[str, ...]


def evaluate_stream(
    predictions: Predictions, config: EvalConfig, *, tmp: Path | None = None, partition_rows: int = PARTITION_ROWS
) -> Evaluation:
    """Judge predictions of any size in bounded memory; the result is that of all rows in memory.

    tmp: the folder that partitions are written below, and removed from; beside the predictions if None. No intervals.
    Raises UserError as reading `predictions` does, if `tmp` cannot be written, and if the disk is full.
    """
    survey = _survey(predictions, config, partition_rows)
    with spill_directory(tmp or _beside(predictions.path)) as directory:
        by_user, by_score = (Spill(directory / name, survey.partitions) for name in ("users", "scores"))
        try:
            fields = _spill_by_user(predictions, config, survey, by_user)
            partials = _read_users(survey, by_user, by_score)
            partials.setdefault(_WHOLE, ReportPartial.of([], [], None if predictions.group is None else []))
            sums = _read_scores(survey, by_score, partials, partition_rows)
        finally:
            by_user.close()
            by_score.close()
    return Evaluation(
        report=partials[_WHOLE].report(sums[_WHOLE]),
        curve=sums[_WHOLE].curve(),
        slices={
            name: {
                key: partials[name, code].report(sums[name, code])
                for code, key in enumerate(survey.slices[name].keys)
                if (name, code) in partials
            }
            for name in config.slices
        },
        fields={name: partial.calibration() for name, partial in fields.items()},
        partitions=survey.partitions,
    )


def _beside(path: str) -> Path:
    there = Path(path)
    return there.resolve().parent if "://" not in path and there.exists() else Path(tempfile.gettempdir())


def _cell(score: NDArray[Any]) -> NDArray[np.int64]:
    """The cell of each score in [0, 1]: a monotone code, 4096 cells for each power of two (12 of 23 fraction bits)."""
    positive = score.astype(np.float32) + np.float32(0)  # -0.0 is 0.0
    return (positive.view(np.uint32) >> np.uint32(11)).astype(np.int64)


def _survey(predictions: Predictions, config: EvalConfig, partition_rows: int) -> _Survey:
    columns = tuple(name for name in dict.fromkeys(config.slices) if not config.by_activity(predictions, name))
    cells = np.zeros(int(_cell(np.ones(1))[0]) + 1, dtype=np.int64)
    values: dict[str, Counter[Any]] = {name: Counter() for name in columns}
    for batch in predictions.batches([predictions.score, *columns]):
        cells += np.bincount(_cell(config.debiased(batch[predictions.score].to_numpy())), minlength=len(cells))
        for name in columns:
            values[name].update(rows_of_values(*distinct_values(batch[name], name)))
    rows = int(cells.sum())
    partitions = min(max(-(-rows // partition_rows), 1), _MOST_PARTITIONS)
    deciles = SliceValues(tuple(range(1, _DECILES + 1)), {})
    return _Survey(
        partitions=partitions,
        range_of_cell=(np.cumsum(cells) - cells) * partitions // max(rows, 1),
        slices={
            name: SliceValues.choose(values[name], config.max_values) if name in columns else deciles
            for name in config.slices
        },
        columns=columns,
    )


def _spill_by_user(
    predictions: Predictions, config: EvalConfig, survey: _Survey, by_user: Spill
) -> dict[str, FieldPartial]:
    """Put the rows into partitions by user (evenly if there are no users); returns the fields' sums."""
    fields: dict[str, list[FieldPartial]] = {name: [] for name in config.fields}
    for batch in predictions.batches(config.columns(predictions)):
        rows = Rows.of(predictions, batch, config)
        for name, partials in fields.items():
            partials.append(FieldPartial.of(rows.clicks, rows.probability, batch[name], rows.weight))
            if len(partials) > _FIELD_PARTIALS:
                partials[:] = [FieldPartial.merge(partials)]
        codes = {name: survey.slices[name].of(*distinct_values(batch[name], name)) for name in survey.columns}
        if rows.users is None:
            partition = np.arange(len(rows.clicks)) % survey.partitions
        else:
            partition = shard_of_groups(rows.users, survey.partitions)
        by_user.write(_packed(rows, codes), partition)
    by_user.close()
    return {name: FieldPartial.merge(partials) for name, partials in fields.items()}


def _read_users(survey: _Survey, by_user: Spill, by_score: Spill) -> dict[Key, ReportPartial]:
    """The partials of all rows and of every slice's values, without scores; the rows go on into ranges of scores."""
    impressions, quantiles = _activity(survey, by_user)
    partials: dict[Key, ReportPartial] = {}
    for partition in range(survey.partitions):
        for table in by_user.read(partition):
            rows, codes = _unpacked(table, survey.columns)
            if rows.users is not None:
                number, count = group_codes(rows.users).numbers()
                rows = replace(rows, users=number)
                for name in set(survey.slices) - set(survey.columns):
                    of_user = np.bincount(number, minlength=count)
                    codes[name] = quantiles[np.searchsorted(impressions, of_user)][number] - 1
            for key, part in _parts(rows, codes):
                partial = part.partial(scores=False)
                partials[key] = partials[key] + partial if key in partials else partial
            by_score.write(_packed(replace(rows, users=None), codes), survey.range_of_cell[_cell(rows.probability)])
        by_user.remove(partition)
    by_score.close()
    return partials


def _activity(survey: _Survey, by_user: Spill) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of impressions that users have, ascending, and the quantile of each; empty if not asked for."""
    users: Counter[int] = Counter()
    if len(survey.columns) < len(survey.slices):
        for partition in range(survey.partitions):
            for table in by_user.read(partition, columns=["users"]):
                number, count = group_codes(table["users"]).numbers()
                users.update(Counter(np.bincount(number, minlength=count).tolist()))
    impressions = np.array(sorted(users), dtype=np.int64)
    return impressions, activity_quantiles(np.array([users[i] for i in impressions], dtype=np.int64), _DECILES)


def _read_scores(
    survey: _Survey, by_score: Spill, partials: dict[Key, ReportPartial], partition_rows: int
) -> dict[Key, ScoreSums]:
    """The sums over scores of all rows and of every slice's values."""
    sums = {key: ScoreSums(partial.weight) for key, partial in partials.items()}
    for partition in range(survey.partitions):
        tables: dict[Key, ScoreTable] = {}
        for columns in by_score.read(partition, partition_rows):
            for key, part in _parts(*_unpacked(columns, tuple(survey.slices))):
                table = ScoreTable.of(part.clicks, part.probability, part.weight)
                tables[key] = ScoreTable.merge([tables[key], table]) if key in tables else table
        for key, table in tables.items():
            sums[key].add(table)
        by_score.remove(partition)
    return sums


def _parts(rows: Rows, codes: dict[str, NDArray[np.int64]]) -> Iterator[tuple[Key, Rows]]:
    """All rows, then those of each value of each slice."""
    yield _WHOLE, rows
    for name, code in codes.items():
        for value, part in rows_by_code(code):
            yield (name, value), rows.take(part)


def _packed(rows: Rows, codes: dict[str, NDArray[np.int64]]) -> pa.RecordBatch:
    """Rows and the codes of their slices as they lie on the disk."""
    columns: dict[str, Any] = {"clicks": rows.clicks, "probability": rows.probability}
    if rows.users is not None:
        keys = rows.users
        columns["users"] = keys.dictionary_decode() if pa.types.is_dictionary(keys.type) else keys
    if rows.weight is not None:
        columns["weight"] = rows.weight
    columns |= {f"slice {name}": code.astype(np.int32) for name, code in codes.items()}
    return pa.RecordBatch.from_pydict(columns)


def _unpacked(table: pa.Table, slices: tuple[str, ...]) -> tuple[Rows, dict[str, NDArray[np.int64]]]:
    users, weight = (table[name] if name in table.column_names else None for name in ("users", "weight"))
    rows = Rows(
        clicks=np.asarray(table["clicks"]),
        probability=table["probability"].to_numpy(),
        users=users,
        weight=None if weight is None else weight.to_numpy(),
    )
    return rows, {name: table[f"slice {name}"].to_numpy().astype(np.int64) for name in slices}
