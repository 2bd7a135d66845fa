"""Predictions in files: for every impression the label, the user, a probability, and columns to slice by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from ctrkit.data.locate import exists, filesystem_of, format_of
from ctrkit.data.log_file import LogFile
from ctrkit.data.source import CHUNK_ROWS, ClickLog, open_log, require_columns
from ctrkit.errors import UserError
from ctrkit.metrics.inputs import WEIGHTS

_HEAD_ROWS = 1000


@dataclass(frozen=True)
class Predictions:
    """A Parquet file, or a folder of them, with one row an impression; opened, not read.

    label: column of 0 and 1. score: column of probabilities. group: column of the user, or None if there is none: then
    there is no GAUC. weight: column of sample weights, or None. All other columns can be slices; those that stand in
    the names of folders (`day=2026-11-21`) too.
    """

    path: str
    label: str
    score: str
    group: str | None
    weight: str | None
    log: ClickLog

    @classmethod
    def open(
        cls,
        path: str | Path,
        label: str = "label",
        group: str | None = "group",
        score: str = "probability",
        weight: str | None = None,
    ) -> "Predictions":
        """Open the predictions at a file, folder, glob or URI, under the names that its columns have.

        `group` may be missing under its own name; any other name given must be there.

        Raises:
            UserError: nothing lies there, a file is empty, damaged or no Parquet, a column is not there or has two
                roles, or the group is no key.
        """
        name = str(path)
        log = _open_parquet(name)
        wanted = {label: "the label", score: "the score"}
        if weight is not None:
            wanted[weight] = "the weight"
        if group is not None and (group != "group" or group in log.schema.names):
            wanted[group] = "the group"
        for column, role in wanted.items():
            require_columns(log.schema, {column: f"{role} (--{role.split()[1]})"}, name)
        opened = cls(name, label, score, group if wanted.get(group or "") == "the group" else None, weight, log)
        opened._check_roles()
        opened._check_files_differ()
        return opened

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return self.log.rows or 0

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""
        return list(self.log.schema.names)

    @property
    def roles(self) -> list[str]:
        """Names of the label, the score, and the group and the weight if there are any."""
        named = (self.label, self.score, self.group, self.weight)
        return [name for name in named if name is not None]

    def batches(self, columns: Sequence[str] | None = None, rows: int = CHUNK_ROWS) -> Iterator[pa.RecordBatch]:
        """Read columns (those of `roles` by default) in the order of the files, at most `rows` rows at a time.

        The label comes as bool, score and weight as float32 or float64, views of strings as strings, since Arrow takes
        no rows of views, and everything else as it is. Memory: a few batches
        and the page that is being decoded, however long the files are.

        Raises:
            UserError: a column is not there, a file turns out to be damaged (file and row group named), or a label,
                score, group or weight is missing or out of its range (file and row named).
        """
        wanted = self.roles if columns is None else list(dict.fromkeys(columns))
        require_columns(self.log.schema, dict.fromkeys(wanted, "--slice or --field"), self.path)
        for file in self.log.files:
            yield from self._batches_of(file, wanted, rows)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The same columns of all rows in memory; raises as `batches` does."""
        batches = list(self.batches(columns))
        if batches:
            return pa.Table.from_batches(batches)
        wanted = self.roles if columns is None else list(dict.fromkeys(columns))
        return pa.table({name: self._checked(pa.array([], self._type(name)), name, "", 0) for name in wanted})

    def _check_files_differ(self) -> None:
        """Refuse several models' predictions of the same impressions, which pooled would look like one model's."""
        first, *others = self.log.files
        same = next((file for file in others if file.rows == first.rows and (first.rows or 0) > 1), None)
        if same is None or self.group is None:
            return
        columns = [self.label, self.group]
        heads = [next(file.batches(columns, self.log.schema, _HEAD_ROWS), None) for file in (first, same)]
        if heads[0] is not None and heads[0].equals(heads[1]):
            raise UserError(
                f"{self.path}: {first.path} and {same.path} hold the same impressions, as predictions of several "
                "models do; give one file, or compare them with ctrkit compare"
            )

    def _check_roles(self) -> None:
        named = ("label", self.label), ("score", self.score), ("weight", self.weight), ("group", self.group)
        roles: dict[str, str] = {}
        for role, column in named:
            if column is None:
                continue
            if column in roles:
                raise UserError(
                    f"{self.path}: column '{column}' is named for the {roles[column]} and the {role}; "
                    f"give --{role} another"
                )
            roles[column] = role
        if self.group is not None:
            kind = self._type(self.group)
            stored = kind.value_type if pa.types.is_dictionary(kind) else kind
            if pa.types.is_floating(stored) or pa.types.is_nested(stored):
                why = ", for large ids merge in floats" if pa.types.is_floating(stored) else ""
                raise UserError(
                    f"{self.path}: column '{self.group}' is {kind}; group by integers or strings{why} (--group)"
                )

    def _type(self, name: str) -> pa.DataType:
        return self.log.schema.field(name).type

    def _batches_of(self, file: LogFile, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        done = 0
        for batch in file.batches(columns, self.log.schema, rows):
            if batch.num_rows:
                arrays = [self._checked(batch.column(name), name, file.path, done) for name in columns]
                yield pa.RecordBatch.from_arrays(arrays, names=list(columns))
            done += batch.num_rows

    def _checked(self, column: pa.Array, name: str, file: str, first_row: int) -> pa.Array:
        """A column as its role wants it; `file` and `first_row` say where it comes from."""
        if pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type):
            column = column.cast(pa.large_string() if pa.types.is_string_view(column.type) else pa.large_binary())
        if name in (self.label, self.score, self.weight):
            column = _as_number(column, name, file)
        if name == self.label:
            clicked = pc.equal(column, 1.0)
            right = pc.or_(clicked, pc.equal(column, 0.0))
            _refuse(right, column, "a label is 0 or 1", name, file, first_row)
            return clicked
        if name == self.score:
            right = pc.and_(pc.greater_equal(column, 0.0), pc.less_equal(column, 1.0))
            _refuse(right, column, "a score is a probability in [0, 1]", name, file, first_row, "; is it a logit?")
        elif name == self.weight:
            low, high = WEIGHTS
            inside = pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high))
            what = f"a weight is 0, or {low:g} to {high:g}"
            _refuse(pc.or_(pc.equal(column, 0.0), inside), column, what, name, file, first_row)
        elif name == self.group:
            what = "a group is a key; drop those rows or give them keys, since together they would count as one user"
            _refuse(column.is_valid(), column, what, name, file, first_row)
        return column


def _open_parquet(path: str) -> ClickLog:
    filesystem, inner = filesystem_of(path)
    kind = filesystem.get_file_info(inner).type
    if kind == pafs.FileType.File:
        if format_of(path) in ("csv", "tsv"):
            raise UserError(f"{path}: predictions are Parquet, which states its types; write the file as Parquet")
        return open_log(path, "parquet")
    if kind == pafs.FileType.Directory:
        _check_no_run(path, filesystem, inner)
    if not exists(path):
        what = "no such file or folder" if kind == pafs.FileType.NotFound else "the folder has no Parquet file"
        raise UserError(f"{path}: {what}; predictions are a Parquet file (.parquet) or a folder of them")
    log = open_log(path)
    csv = [file.path for file in log.files if file.row_group_rows is None]
    if csv:
        raise UserError(f"{csv[0]}: predictions are Parquet, which states its types; write the file as Parquet")
    return log


def _check_no_run(path: str, filesystem: Any, inner: str) -> None:
    """Refuse the directory of a run, whose prepared log would be read as predictions."""
    if filesystem.get_file_info(f"{inner}/recipe.json").type == pafs.FileType.File:
        place = f"{path.rstrip('/')}/predictions/test"
        raise UserError(
            f"{path}: is the directory of a run; name the predictions of one of its networks, {place}/NETWORK.parquet "
            "(`ctrkit evaluate RECIPE` writes them)"
        )


def _as_number(column: pa.Array, name: str, file: str) -> pa.Array:
    """A column of numbers as float32 or float64."""
    if column.type in (pa.float32(), pa.float64()):
        return column
    try:
        values = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        if pa.types.is_boolean(values.type):
            values = values.cast(pa.uint8())
        return values.cast(pa.float32() if values.type == pa.float16() else pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"{file}: column '{name}' is {column.type}, not all numbers ({error}); write numbers"
        ) from error


def _refuse(
    right: pa.Array, column: pa.Array, rule: str, name: str, file: str, first_row: int, suspicion: str = ""
) -> None:
    """Raise UserError with the place of the first value that is not right; null and NaN are not, and nothing else."""
    row = pc.index(right.fill_null(False), False).as_py()
    if row >= 0:
        value = column[row].as_py()
        said = f"missing; {rule}" if value is None else f"{value}; {rule}{'' if value != value else suspicion}"
        raise UserError(f"{file}, row {first_row + row + 1:,}: column '{name}' is {said}")
