"""From raw values to embedding rows and floats: one numpy code for training and for serving.

Rows of every embedding table: `MISSING` for no value, `UNSEEN` for an id that the training part does not have (or has
less often than `min_count`), then one row an id (or a hash bucket). So an unseen id is never an error and never
another id's row. What happened is counted in `Counts`.

    raw value                           outcome                                   counted as
    null, NaN                           row MISSING; dense: the mean (0.0)        missing
    null or empty for a list            no row, which pools to zeros              missing
    id not in the vocabulary            row UNSEEN                                unseen
    dense value outside training range  clipped to the range                      out_of_range
    list longer than max_len            the first max_len elements                truncated
    wrong type ("7" for 7)              UserError naming feature and type         -
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from ctrkit.errors import UserError
from ctrkit.raw_values import BoolArray, Float64Array, Int64Array, RawType, keys_of, typed_array
from ctrkit.schema import Schema, SequenceFeature, table_of
from ctrkit.tables import (
    FIRST_ROW,
    MISSING,
    UNSEEN,
    Buckets,
    Counts,
    Float32Array,
    HashBuckets,
    Scaling,
    Table,
    Vocabulary,
)

__all__ = [
    "FIRST_ROW", "MISSING", "UNSEEN", "Buckets", "Counts", "Encoding", "Float32Array", "HashBuckets", "Scaling",
    "Table", "Vocabulary",
]  # fmt: skip


@dataclass(frozen=True)
class Encoding:
    """How every feature of a schema is encoded, as fitted on the training part."""

    schema: Schema
    raw_types: Mapping[str, RawType]
    """By feature."""
    tables: Mapping[str, Table]
    """By table."""
    scalings: Mapping[str, Scaling]
    """By dense feature that is not bucketized."""
    counts: dict[str, Counts] = field(default_factory=dict)
    """What fitting saw in the training part, by feature."""

    def serving(self) -> Self:
        """What requests are encoded by: without the privileged features."""
        schema = self.schema.serving()
        names, tables = {f.name for f in schema.features}, schema.tables()
        return type(self)(
            schema,
            {name: raw for name, raw in self.raw_types.items() if name in names},
            {name: table for name, table in self.tables.items() if name in tables},
            {name: scaling for name, scaling in self.scalings.items() if name in names},
            {name: counts for name, counts in self.counts.items() if name in names},
        )

    def num_rows(self) -> dict[str, int]:
        """Rows of each embedding table."""
        return {name: table.num_rows for name, table in self.tables.items()}

    def encode_sparse(self, name: str, values_N: npt.NDArray[Any], missing_N: BoolArray) -> tuple[Int64Array, Counts]:
        """Embedding row of each value of a categorical, sequence or bucketized feature.

        Args:
            name: the feature.
            values_N: raw values as `typed_array` gives them, or their `keys_of`; ignored where
                `missing_N`.
            missing_N: where there is no value.

        Returns:
            rows_N, and what was missing, unseen or out of range.
        """
        table = self._features[name][1]
        assert table is not None
        counts = Counts(values=len(values_N), missing=int(np.count_nonzero(missing_N)))
        if isinstance(table, Buckets):
            outside_N = ((values_N < table.low) | (values_N > table.high)) & ~missing_N
            counts.out_of_range = int(np.count_nonzero(outside_N))
            rows_N = table.rows(np.where(missing_N, table.low, values_N))
        else:
            rows_N = table.rows(keys_of(values_N, missing_N))
        if counts.missing:
            rows_N[missing_N] = MISSING
        if isinstance(table, Vocabulary):
            counts.unseen = int(np.count_nonzero(rows_N == UNSEEN))
        return rows_N, counts

    def encode_dense(self, name: str, values_N: Float64Array, missing_N: BoolArray) -> tuple[Float32Array, Counts]:
        """Scaled value of each number of a dense feature; 0.0, the mean, where it is missing."""
        scaling = self.scalings[name]
        outside_N = ((values_N < scaling.low) | (values_N > scaling.high)) & ~missing_N
        counts = Counts(values=len(values_N), missing=int(missing_N.sum()), out_of_range=int(outside_N.sum()))
        scaled_N = scaling.scale(np.where(missing_N, scaling.low, values_N))
        scaled_N[missing_N] = 0.0
        return scaled_N, counts

    def encode_sequence(
        self, name: str, lists: Sequence[Sequence[Any] | None]
    ) -> tuple[Int64Array, Int64Array, Counts]:
        """Rows of the lists of a sequence feature, the first `max_len` of each: the way of a request.

        Returns:
            rows_M of all lists, one list after another; length_N, how many rows each has; what became of the values.
        """
        feature = self._features[name][0]
        assert isinstance(feature, SequenceFeature)
        for kind in set(map(type, lists)) - {list, type(None)}:
            if issubclass(kind, str | bytes) or not issubclass(kind, Sequence | np.ndarray):
                raise UserError(f"feature '{name}' takes a list of values, got {kind.__name__}")
        kept = [() if values is None else values for values in lists]
        length_N = np.fromiter(map(len, kept), np.int64, len(kept))
        truncated = int(np.count_nonzero(length_N > feature.max_len))
        if truncated:
            kept = [values[: feature.max_len] for values in kept]
            np.minimum(length_N, feature.max_len, out=length_N)
        flat = kept[0] if len(kept) == 1 else list(chain.from_iterable(kept))
        rows_M, counts = self.encode_sparse(name, *typed_array(flat, self.raw_types[name], name))
        counts.missing += int(np.count_nonzero(length_N == 0))
        counts.truncated = truncated
        return rows_M, length_N, counts

    @cached_property
    def _features(self) -> dict[str, tuple[Any, Table | None]]:
        """Each feature, and the table that it looks up, by name."""
        looked_up = {f.name: self.tables[table_of(f)] for f in self.schema.sparse_features}
        return {f.name: (f, looked_up.get(f.name)) for f in self.schema.features}

    def fingerprint(self) -> str:
        """SHA-256 over schema, raw types, scalings and vocabularies: equal if and only if the encoding is."""
        digest = hashlib.sha256(json.dumps(self._to_json(), sort_keys=True).encode())
        for name in sorted(self.tables):
            table = self.tables[name]
            if isinstance(table, Vocabulary):
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(table.keys_V).tobytes())
        return digest.hexdigest()

    def _to_json(self) -> dict[str, Any]:
        tables: dict[str, Any] = {}
        for name, table in self.tables.items():
            match table:
                case Vocabulary():
                    tables[name] = {"type": "vocabulary", "ids": len(table.keys_V)}
                case HashBuckets():
                    tables[name] = {"type": "hash", "buckets": table.buckets}
                case Buckets():
                    tables[name] = {"type": "buckets", **asdict(table)}
        return {
            "schema": self.schema.model_dump(mode="json", exclude_none=True),
            "schema_fingerprint": self.schema.fingerprint(),
            "raw_types": dict(self.raw_types),
            "tables": tables,
            "scalings": {name: asdict(scaling) for name, scaling in self.scalings.items()},
        }

    def save(self, directory: Path, *, counts: bool = True) -> None:
        """Write `encoding.json` and a `<table>.keys.npy` and `<table>.counts.npy` a vocabulary into `directory`.

        Without `counts`, what only training has a use for stays out: a bundle's form. In file names, what is no letter
        or digit of a table's name is percent-encoded.
        """
        directory.mkdir(parents=True, exist_ok=True)
        for name, table in self.tables.items():
            if isinstance(table, Vocabulary):
                np.save(directory / _file_name(name, "keys"), table.keys_V, allow_pickle=False)
                if counts:
                    np.save(directory / _file_name(name, "counts"), table.counts_V, allow_pickle=False)
        content = {
            **self._to_json(),
            "fingerprint": self.fingerprint(),
            "counts": {name: asdict(seen) for name, seen in self.counts.items()} if counts else {},
        }
        (directory / "encoding.json").write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: a file is missing, or the content does not have the fingerprint that was written with it.
        """
        try:
            content = json.loads((directory / "encoding.json").read_text())
            tables = {name: _load_table(directory, name, spec) for name, spec in content["tables"].items()}
            encoding = cls(
                schema=Schema.model_validate(content["schema"]),
                raw_types=content["raw_types"],
                tables=tables,
                scalings={name: Scaling(**spec) for name, spec in content["scalings"].items()},
                counts={name: Counts(**spec) for name, spec in content.get("counts", {}).items()},
            )
            unchanged = encoding.fingerprint() == content["fingerprint"]
        except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            why = str(error).partition("\n")[0]
            raise UserError(f"{directory}: no readable encoding ({why}); run `ctrkit prepare` again") from error
        if not unchanged:
            raise UserError(f"{directory}: the encoding was changed after it was written; run `ctrkit prepare` again")
        return encoding


def _load_table(directory: Path, name: str, spec: dict[str, Any]) -> Table:
    match spec["type"]:
        case "vocabulary":
            # a view without np.memmap's bookkeeping, which every lookup would pay for
            keys_V = np.load(directory / _file_name(name, "keys"), mmap_mode="r", allow_pickle=False).view(np.ndarray)
            counts_path = directory / _file_name(name, "counts")  # not in a bundle: serving has no use for it
            counts_V = (
                np.load(counts_path, allow_pickle=False) if counts_path.exists() else np.zeros(len(keys_V), np.int64)
            )
            return Vocabulary(keys_V, counts_V)
        case "hash":
            return HashBuckets(spec["buckets"])
        case _:
            return Buckets(tuple(spec["boundaries"]), spec["low"], spec["high"])


def _file_name(table: str, what: str) -> str:
    return f"{quote(table, safe='')}.{what}.npy"
