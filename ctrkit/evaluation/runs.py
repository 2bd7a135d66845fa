"""The predictions of models that are to be compared: which files they are, and that all are about the same impressions.

A model is one predictions file or folder, or several: one for each training run (seed). A difference is only worth
something if every file has the same impressions in the same order, so labels and users of each file are held against
the first one's, row by row.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ctrkit.errors import UserError
from ctrkit.evaluation.predictions import Predictions
from ctrkit.metrics.grouping import group_codes


@dataclass(frozen=True)
class ModelRuns:
    """A model's name and the predictions of its runs, in the order in which runs are paired with another model's."""

    name: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """Names of the columns. key: one that names every impression, by which rows are brought into one order."""

    label: str = "label"
    group: str = "group"
    score: str = "probability"
    key: str | None = None


def parse_models(arguments: Sequence[str]) -> list[ModelRuns]:
    """The models of command line arguments: PATH, a glob, PATH,PATH,... or NAME=any of these.

    Without a name a model has that of its files (less what a seed adds to it), or the argument itself where two models
    would have the same.

    Raises:
        UserError: a glob without a match, a file that is named twice in a model, a name that two models have.
    """
    models = [_parse(argument) for argument in arguments]
    taken = Counter(model.name for model in models)
    models = [
        ModelRuns(argument, model.paths) if taken[model.name] > 1 and not _named(argument)[0] else model
        for model, argument in zip(models, arguments, strict=True)
    ]
    (name, count), *_ = Counter(model.name for model in models).most_common(1)
    if count > 1:
        raise UserError(f"{count} models are called {name}; give them names: FIRST=PATH SECOND=PATH")
    return models


def _parse(argument: str) -> ModelRuns:
    name, rest = _named(argument)
    paths: list[str] = []
    for part in [rest] if Path(rest).exists() else rest.split(","):
        is_pattern = glob.has_magic(part) and "://" not in part and not Path(part).exists()
        matches = glob.iglob(part, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        found = sorted(matches, key=_by_number) if is_pattern else [part]
        if not found or not part:
            raise UserError(
                f"{argument}: {'nothing matches' if part else 'an empty path'}; name predictions that exist"
            )
        paths += found
    (path, count), *_ = Counter(paths).most_common(1)
    if count > 1:
        raise UserError(f"{argument}: {path} is named {count} times; each run counts once")
    return ModelRuns(name or _common_name(paths) or argument, tuple(paths))


def _named(argument: str) -> tuple[str, str]:
    """The name in NAME=..., or "", and the rest; a path may hold `=` too, as the folders of a partition do."""
    name, equals, rest = argument.partition("=")
    if not equals or not name or os.sep in name or Path(argument).exists():
        return "", argument
    return name, rest


def _by_number(path: str) -> list[str | int]:
    """Sort key by which seed2 comes before seed10."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", path)]


def _common_name(paths: Sequence[str]) -> str:
    """What the names of the files have in common, without `-seed` and the like at its end; else that of the folder."""
    stems = [Path(path).name.removesuffix(Path(path).suffix) for path in paths]
    if len(set(stems)) == 1:
        return stems[0]
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*stems, strict=False))
    common = re.sub(r"([-_. ]+(seed|run|s)?[-_. =]*)?\d*$", "", "".join(letters[0] for letters in same))
    folders = {Path(path).parent.name for path in paths}
    if common in ("", "seed", "run"):
        return folders.pop() if len(folders) == 1 else ""
    return common


@dataclass(frozen=True)
class Impressions:
    """What every run must agree on: labels and users in the order of the file `path`.

    label: bool [rows]; user: each row's user as a number [rows]; group, key: the columns as they were read. unused:
    names of columns that a comparison does not look at.
    """

    path: str
    columns: Columns
    label: NDArray[np.bool_]
    user: NDArray[np.int64]
    group: pa.ChunkedArray
    key: pa.ChunkedArray | None
    unused: tuple[str, ...]

    @classmethod
    def read(cls, path: str, columns: Columns) -> "Impressions":
        """Read the labels and users of a file of predictions.

        Raises:
            UserError: what `Predictions` raises; no rows; no column of the user; a key that is missing or not unique.
        """
        predictions = _open(path, columns)
        table = _read(predictions, columns)
        if not table.num_rows:
            raise UserError(f"{path}: no rows; there is nothing to compare")
        label = np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in table.column(columns.label).chunks])
        key = None if columns.key is None else _unique_key(table.column(columns.key), columns.key, path)
        group = table.column(columns.group)
        unused = tuple(name for name in predictions.columns if name not in table.column_names)
        return cls(path, columns, label, group_codes(group).numbers()[0], group, key, unused)

    def scores(self, model: ModelRuns) -> NDArray[np.float64]:
        """The scores [runs, rows] of a model, in the order of these impressions.

        Raises:
            UserError: as `read` does, and for a file about other impressions, or about these in another order if there
                is no key; the first row that differs is named.
        """
        return np.stack([self._scores_of(path) for path in model.paths])

    def _scores_of(self, path: str) -> NDArray[np.float64]:
        table = _read(_open(path, self.columns), self.columns)
        rows = len(self.label)
        if table.num_rows != rows:
            theirs = f"{table.num_rows:,} rows, {self.path} has {rows:,}"
            raise UserError(f"{path}: {theirs}; compare predictions for the same impressions")
        if self.key is not None:
            table = self._in_order(table, path)
        for name, expected in ((self.columns.group, self.group), (self.columns.label, pa.array(self.label))):
            self._require_equal(table.column(name), expected, name, path)
        return np.asarray(table.column(self.columns.score).to_numpy(), dtype=np.float64)

    def _in_order(self, table: pa.Table, path: str) -> pa.Table:
        """The rows of a table in the order that this one's keys have."""
        name = self.columns.key
        assert name is not None
        assert self.key is not None
        key = _like(_unique_key(table.column(name), name, path), self.key.type, name, path, self.path)
        if key.equals(self.key):
            return table
        place = pc.index_in(self.key, value_set=key)
        if place.null_count:
            first = self.key[pc.index(place.is_null(), True).as_py()].as_py()
            raise UserError(
                f"{path}: {place.null_count:,} of the {len(self.key):,} keys in {self.path} are missing, the first is "
                f"{name} = {first!r}; compare predictions for the same impressions"
            )
        return table.take(place)

    def _require_equal(self, found: pa.ChunkedArray, expected: pa.ChunkedArray, name: str, path: str) -> None:
        found = _like(found, expected.type, name, path, self.path)
        row = pc.index(pc.equal(found, expected), False).as_py()
        if row < 0:
            return
        values = f"{found[row].as_py()!r}, in {self.path} {expected[row].as_py()!r}"
        if self.key is not None:
            place = f"{self.columns.key} = {self.key[row].as_py()!r}"
            raise UserError(f"{path}: where {place}, column '{name}' is {values}; is that the key of an impression?")
        candidates = f" (there are {', '.join(self.unused)})" if self.unused else ""
        raise UserError(
            f"{path}: in row {row + 1:,} column '{name}' is {values}; the rows must be the same impressions in the "
            f"same order, or give --key COLUMN, one that names every impression{candidates}"
        )


def _open(path: str, columns: Columns) -> Predictions:
    predictions = Predictions.open(path, columns.label, columns.group, columns.score)
    for name, option in ((columns.group, "--group"), (columns.key, "--key")):
        if name is not None and name not in predictions.columns:
            raise UserError(f"{path}: no column '{name}'; columns are {', '.join(predictions.columns)}: give {option}")
    return predictions


def _read(predictions: Predictions, columns: Columns) -> pa.Table:
    """The columns that a comparison looks at, dictionaries decoded: they differ from file to file."""
    names = [columns.label, columns.group, columns.score, *([columns.key] if columns.key else [])]
    table = predictions.read(names)
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(place, field.name, table.column(place).cast(field.type.value_type))
    return table


def _unique_key(key: pa.ChunkedArray, name: str, path: str) -> pa.ChunkedArray:
    """The key column. Raises UserError if a key is missing, stands in several rows or cannot be compared."""
    if pa.types.is_nested(key.type):
        raise UserError(f"{path}: column '{name}' is {key.type}; a key is a number or a string")
    if key.null_count:
        row = pc.index(key.is_null(), True).as_py()
        raise UserError(f"{path}: {key.null_count:,} values of --key {name} are missing, the first in row {row + 1:,}")
    counts = pc.value_counts(key)
    often = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(often):
        value, count = often[0]["values"].as_py(), often[0]["counts"].as_py()
        raise UserError(
            f"{path}: {len(often):,} values of --key {name} stand in several rows, {value!r} in {count:,}; "
            "a key names one impression"
        )
    return key


def _like(column: pa.ChunkedArray, type_: pa.DataType, name: str, path: str, other: str) -> pa.ChunkedArray:
    """The column in the type that it has in the other file."""
    try:
        return column if column.type == type_ else column.cast(type_)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"{path}: column '{name}' is {column.type}, in {other} {type_}; write both in one type"
        ) from error
