"""A training that starts from the weights of another one, on a log that has other ids.

    rows of a vocabulary           of ids that both know: copied; of new ids: as they were drawn; of others: dropped
    rows of hashed ids, buckets    copied if hashed or bucketized as before, else as they were drawn
    first layer of a tower         the columns of each feature that both have: copied; of new features: as drawn
    all else of a tower            copied

On ids and features that both know, the network computes what the old one did: where a dense feature is scaled
otherwise, its column is scaled back. Optimizers start afresh.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctrkit.atomic import read_json
from ctrkit.encoding import Encoding
from ctrkit.errors import UserError
from ctrkit.nn.embedding import TableConfig, TablePart
from ctrkit.objectives.objective import Objective
from ctrkit.raw_values import Int64Array
from ctrkit.schema import Schema, table_of
from ctrkit.tables import FIRST_ROW, UNSEEN, Buckets, Scaling, Table, Vocabulary
from ctrkit.training.checkpoints import Checkpoints
from ctrkit.training.ranks import Ranks
from ctrkit.training.saved_training import CHECKPOINTS
from ctrkit.training.stored_tensors import StoredTensors, TensorSpec

ENCODING, START, _RESULT = "encoding", "warm_start.json", "result.json"
"""What lies in the directory of a training beside its checkpoints."""

Columns = Mapping[str, Sequence[int]]
"""First column, and the one behind the last, that a tower reads each feature from."""

_NOWHERE = -1
_FIRST_LAYER = "layers.0"

_Match = Callable[[int, int], Int64Array]
"""Where rows start to stop of an old table go in the new one, `_NOWHERE` where nowhere."""


def tower_inputs(objective: Objective, schema: Schema) -> dict[str, dict[str, list[int]]]:
    """The columns of every tower of an objective."""
    found = {}
    for role, network in objective.networks().items():
        columns, start = dict[str, list[int]](), 0
        for embedding in network.embeddings:
            privileged = embedding is network.privileged
            columns |= {name: [start + at.start, start + at.stop] for name, at in embedding.columns.items()}
            dense = [feature.name for feature in schema.dense_features if feature.privileged is privileged]
            start += embedding.out_features
            columns |= {name: [start - len(dense) + i, start - len(dense) + i + 1] for i, name in enumerate(dense)}
        found[objective.tower_name(role)] = columns
    return found


@dataclass(frozen=True)
class Source:
    """A finished training that another one starts from."""

    directory: Path
    identity: list[str]
    """Fingerprint of the training, digest of its weights."""
    tensors: StoredTensors
    encoding: Encoding
    inputs: Mapping[str, Columns]

    @classmethod
    def open(cls, directory: Path, ranks: Ranks | None = None) -> "Source":
        """The best weights in the directory of a training, every byte checked.

        Raises:
            UserError: no training has come to its end there, or a file is damaged.
        """
        result = _result(directory)
        checkpoints = Checkpoints(directory / CHECKPOINTS, ranks=ranks)
        best = checkpoints.best()
        if best is None:
            raise _no_source(directory)
        try:
            encoding = Encoding.load(directory / ENCODING)
        except UserError as error:
            raise UserError(f"train.warm_start: {directory / ENCODING} is damaged; train that run again") from error
        return cls(directory, _identity(result), checkpoints.open(best), encoding, result["inputs"])


def source_directory(run: str, model: str) -> Path:
    """Where `train.warm_start` finds the training of a model."""
    return Path(run) / "models" / model


def start_identity(run: str, model: str, directory: Path) -> list[str]:
    """What identifies the weights that a training in `directory` starts from, without reading them.

    A training that has begun knows what it started from: it goes on, and its results count, though the source be gone
    or be trained anew.

    Raises:
        UserError: no training of that model has come to its end there, or it is the same one.
    """
    source = source_directory(run, model)
    if source.resolve() == directory.resolve():
        raise UserError(f"train.warm_start: {run} is this run itself; give another one's directory")
    try:
        return _identity(_result(source))
    except UserError:
        begun = read_json(directory / START)
        if begun is None or begun.get("source") != str(source):
            raise
        return list(begun["identity"])


def _result(directory: Path) -> dict[str, Any]:
    result = read_json(directory / _RESULT)
    if result is None or "inputs" not in result or not (directory / ENCODING).is_dir():
        raise _no_source(directory)
    return result


def _identity(result: Mapping[str, Any]) -> list[str]:
    return [result["fingerprint"], result["weights"]]


def _no_source(directory: Path) -> UserError:
    return UserError(
        f"train.warm_start: no finished training lies in {directory}; give the directory of a run that has trained a "
        "model of this name, or leave it out"
    )


@dataclass(frozen=True)
class TableStart:
    """What a table starts from."""

    table: str
    known: int
    """Rows of ids or buckets that were copied."""
    fresh: int
    dropped: int
    why_fresh: str | None = None
    """Why no row could be copied."""

    def __str__(self) -> str:
        counts = f"{self.known:,} rows known, {self.fresh:,} fresh, {self.dropped:,} dropped"
        return f"table {self.table}: {counts}" + (f" ({self.why_fresh})" if self.why_fresh else "")


@dataclass(frozen=True)
class WarmStart:
    """What a training has from another one, and what not."""

    source: str
    identity: list[str]
    """Fingerprint of the source's training, digest of its weights."""
    schemas: tuple[str, str]
    """Fingerprints of the old schema and the new one."""
    tables: list[TableStart]
    added: list[str]
    """Features that the source has not, or has otherwise."""
    removed: list[str]
    rescaled: list[str]
    """Dense features whose column was scaled to their new scaling."""
    fresh_towers: list[str]
    """Towers that the source has not."""

    def lines(self) -> list[str]:
        """For people."""
        old, new = self.schemas
        schema = "the same schema" if old == new else f"schema {old[:8]} -> {new[:8]}"
        lines = [f"starts warm from {self.source}, weights {self.identity[1][:8]}, {schema}"]
        lines += [f"  {table}" for table in self.tables]
        for what, names in (
            ("features that are new", self.added),
            ("features that are gone", self.removed),
            ("dense features on another scale, their columns follow", self.rescaled),
            ("towers that the source has not", self.fresh_towers),
        ):
            if names:
                lines.append(f"  {what}: {', '.join(names)}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@torch.no_grad()
def warm_start(objective: Objective, encoding: Encoding, source: Source) -> WarmStart:
    """Fill a freshly initialised objective, in place, with what a source knows.

    Tables are read a chunk at a time. Of sharded tables each process fills the rows that it holds.

    Args:
        objective: with tables and towers as they were drawn.
        encoding: of its log.
        source: the other training.

    Raises:
        UserError: a tower has another shape than the source's, or there is nothing to start from.
    """
    tables = _start_tables(objective, encoding, source)
    inputs = tower_inputs(objective, encoding.schema)
    towers = [name for name in inputs if name in source.inputs]
    if not towers and not any(table.known for table in tables):
        raise UserError(
            f"train.warm_start: {source.directory} has no tower ({', '.join(source.inputs)}) and no id in common with "
            "this model; leave it out"
        )
    for name in towers:
        _start_tower(objective, name, inputs[name], encoding, source)
    old_features = {name: at for columns in source.inputs.values() for name, at in columns.items()}
    features = {name: at for columns in inputs.values() for name, at in columns.items()}
    common = [name for name in features if _same_input(name, features, old_features, encoding, source.encoding)]
    return WarmStart(
        source=str(source.directory),
        identity=source.identity,
        schemas=(source.encoding.schema.fingerprint(), encoding.schema.fingerprint()),
        tables=tables,
        added=[name for name in features if name not in common],
        removed=[name for name in old_features if name not in common],
        rescaled=[name for name in common if _scaling(encoding, name) != _scaling(source.encoding, name)],
        fresh_towers=[name for name in inputs if name not in source.inputs],
    )


# --- tables


def _start_tables(objective: Objective, encoding: Encoding, source: Source) -> list[TableStart]:
    found = []
    for index, embedding in enumerate(objective.tables()):
        for table in embedding.tables:
            parts = [part for part in embedding.parts() if part.table == table.name]
            found.append(_start_table(f"tables.{index}.{table.name}.weight", table, parts, encoding, source))
    gone = source.encoding.tables.keys() - encoding.tables.keys()
    return found + [
        TableStart(name, 0, 0, _ids(source.encoding.tables[name]), "no feature reads it") for name in sorted(gone)
    ]


def _ids(table: Table | None) -> int:
    return 0 if table is None else table.num_rows - FIRST_ROW


def _start_table(
    stored: str, table: TableConfig, parts: list[TablePart], encoding: Encoding, source: Source
) -> TableStart:
    name = table.name
    ids, old_ids = _ids(encoding.tables[name]), _ids(source.encoding.tables.get(name))
    match = _match(table, encoding, source, source.tensors.specs.get(stored))
    if isinstance(match, str):
        return TableStart(name, 0, ids, old_ids, match)
    known = 0
    for start, rows_CE in source.tensors.chunks(stored):
        row_C = match(start, start + len(rows_CE))
        known += int(np.count_nonzero(row_C >= FIRST_ROW))
        for part in parts:
            _fill(part, torch.from_numpy(row_C), rows_CE)
    return TableStart(name, known, ids - known, old_ids - known)


def _fill(part: TablePart, row_C: Tensor, rows_CE: Tensor) -> None:
    """Rows that lie in a part get their values."""
    weight_RE = part.rows_of(part.stack.detach())
    here_C = (row_C >= part.first_row) & (row_C < part.first_row + part.rows)
    values = rows_CE[here_C].to(weight_RE.device, weight_RE.dtype)
    weight_RE.index_copy_(0, (row_C[here_C] - part.first_row).to(weight_RE.device), values)


def _match(table: TableConfig, encoding: Encoding, source: Source, stored: TensorSpec | None) -> _Match | str:
    """Where rows of the source's table go; or why none can."""
    new, old = encoding.tables[table.name], source.encoding.tables.get(table.name)
    if old is None or stored is None:
        return "a new table"
    if stored.shape[1] != table.dim:
        return f"its rows had {stored.shape[1]} values"
    types = _raw_types(encoding, table.name), _raw_types(source.encoding, table.name)
    if types[0] != types[1]:
        return f"its values were of type {', '.join(sorted(types[1]))}"
    if isinstance(new, Vocabulary) and isinstance(old, Vocabulary):
        return _by_id(new, old)
    if _same_rows(new, old):
        return np.arange
    return "hashed or bucketized otherwise"


def _by_id(new: Vocabulary, old: Vocabulary) -> _Match:
    def match(start: int, stop: int) -> Int64Array:
        special = np.arange(start, min(stop, FIRST_ROW))  # the rows for missing and unseen values
        row_N = new.rows(old.keys_V[max(start - FIRST_ROW, 0) : max(stop - FIRST_ROW, 0)])
        return np.concatenate([special, np.where(row_N == UNSEEN, _NOWHERE, row_N)])

    return match


def _same_rows(new: Table, old: Table) -> bool:
    """Whether the same value has the same row."""
    if isinstance(new, Buckets) and isinstance(old, Buckets):
        return new.boundaries == old.boundaries
    return type(new) is type(old) and new == old


def _raw_types(encoding: Encoding, table: str) -> set[str]:
    return {encoding.raw_types[f.name] for f in encoding.schema.sparse_features if table_of(f) == table}


# --- towers


def _start_tower(objective: Objective, name: str, columns: Columns, encoding: Encoding, source: Source) -> None:
    """Copy a tower, the first layer's weight by feature."""
    prefix, first = f"towers.{name}.", f"{_FIRST_LAYER}.weight"
    state: dict[str, Tensor] = objective.towers[name].state_dict()
    if first not in state:
        raise UserError(
            f"train.warm_start: tower '{name}' is a {type(objective.towers[name]).__name__}, whose inputs are not "
            "known by feature; only towers of kind mlp start from others: leave it out"
        )
    for key, tensor in state.items():
        stored = source.tensors.specs.get(prefix + key)
        ours, theirs = tuple(tensor.shape), None if stored is None else stored.shape
        if theirs is None or (ours[:1] != theirs[:1] if key == first else ours != theirs):
            raise UserError(
                f"train.warm_start: tower '{name}' cannot start from {source.directory}: its {key} is {list(ours)}, "
                f"there {'is none' if theirs is None else f'it is {list(theirs)}'}; make the towers alike or leave it "
                "out"
            )
    source.tensors.load({prefix + key: tensor for key, tensor in state.items() if key != first}, partial=True)
    old_columns = source.inputs[name]
    old_HX = torch.empty(source.tensors.specs[prefix + first].shape, dtype=state[first].dtype)
    source.tensors.load({prefix + first: old_HX}, partial=True)
    for feature, (start, stop) in columns.items():
        if not _same_input(feature, columns, old_columns, encoding, source.encoding):
            continue
        weight_HE = old_HX[:, slice(*old_columns[feature])]
        new, old = _scaling(encoding, feature), _scaling(source.encoding, feature)
        if new is not None and old is not None and new != old:
            # (v - old.mean) / old.std of what the new scaling makes (v - new.mean) / new.std
            state[f"{_FIRST_LAYER}.bias"] += weight_HE[:, 0].to(state[first].device) * ((new.mean - old.mean) / old.std)
            weight_HE = weight_HE * (new.std / old.std)
        state[first][:, start:stop] = weight_HE.to(state[first].device)


def _same_input(
    feature: str,
    columns: Columns,
    old_columns: Columns,
    encoding: Encoding,
    old_encoding: Encoding,
) -> bool:
    """Whether a feature enters both towers as rows of the same table, or as a number on the same kind of scale."""
    if feature not in old_columns or _table(encoding, feature) != _table(old_encoding, feature):
        return False
    new, old = _scaling(encoding, feature), _scaling(old_encoding, feature)
    if (new is None) != (old is None) or (new is not None and old is not None and new.log != old.log):
        return False
    return _width(columns[feature]) == _width(old_columns[feature])


def _width(columns: Sequence[int]) -> int:
    return columns[1] - columns[0]


def _table(encoding: Encoding, feature: str) -> str | None:
    return next((table_of(f) for f in encoding.schema.sparse_features if f.name == feature), None)


def _scaling(encoding: Encoding, feature: str) -> Scaling | None:
    return encoding.scalings.get(feature)
