"""The encoding of a schema, fitted on the training part alone: vocabularies, scalings, quantile buckets.

One pass; memory grows with the distinct ids, not with the rows.
"""

import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctrkit.data.columns import cut_lists, dense_values, distinct, labels, raw_types_of, scalars
from ctrkit.data.sampling import Reservoir, quantiles
from ctrkit.data.source import Chunk
from ctrkit.data.split import SplitLog
from ctrkit.encoding import Buckets, Encoding, HashBuckets, Scaling, Table, Vocabulary
from ctrkit.errors import UserError
from ctrkit.raw_values import Float64Array, Int64Array, RawType, keys_of, signed_log
from ctrkit.schema import CategoricalFeature, DenseFeature, Feature, Schema, SequenceFeature, table_of

_MERGE = 1 << 20  # new keys that wait before they are merged into the sorted ones


@dataclass
class KeyCounts:
    """How often each 64-bit key occurred, and whether two different ids share one."""

    keys_V: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    counts_V: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    checks_V: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """A second, unrelated hash of each id: where it differs for one key, two ids have that key."""
    collisions: int = 0
    _waiting: list[tuple[Int64Array, Int64Array, Int64Array]] = field(default_factory=list)
    _num_waiting: int = 0

    def add(self, keys_D: Int64Array, counts_D: Int64Array, checks_D: Int64Array) -> None:
        """Count keys, each `counts_D` times."""
        self._waiting.append((keys_D, counts_D, checks_D))
        self._num_waiting += len(keys_D)
        if self._num_waiting > max(_MERGE, len(self.keys_V)):  # so that each key is moved O(log) times
            self.merge()

    def merge(self) -> None:
        """Bring `keys_V` (sorted), `counts_V` and `collisions` up to date."""
        parts = [(self.keys_V, self.counts_V, self.checks_V), *self._waiting]
        keys, counts, checks = (np.concatenate(column) for column in zip(*parts, strict=True))
        self._waiting, self._num_waiting = [], 0
        if len(keys) == 0:
            return
        order = np.argsort(keys, kind="stable")
        keys, counts, checks = keys[order], counts[order], checks[order]
        same = keys[1:] == keys[:-1]
        self.collisions += int((same & (checks[1:] != checks[:-1])).sum())
        first = np.flatnonzero(np.concatenate([[True], ~same]))
        self.keys_V, self.counts_V, self.checks_V = keys[first], np.add.reduceat(counts, first), checks[first]


@dataclass
class Moments:
    """Mean, variance and range of a stream of numbers, merged chunk by chunk (Chan, Golub, LeVeque 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""
    low: float = np.inf
    high: float = -np.inf

    def add(self, transformed_N: Float64Array, raw_N: Float64Array) -> None:
        """Add a chunk: mean and variance of `transformed_N`, range of `raw_N`."""
        if len(raw_N) == 0:
            return
        count, mean = len(transformed_N), float(transformed_N.mean())
        squares = float(np.square(transformed_N - mean).sum())
        total, delta = self.count + count, mean - self.mean
        self.mean += delta * count / total
        self.squares += squares + delta * delta * self.count * count / total
        self.count = total
        self.low, self.high = min(self.low, float(raw_N.min())), max(self.high, float(raw_N.max()))

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return float(np.sqrt(self.squares / self.count)) if self.count else 0.0


@dataclass(frozen=True)
class Fitted:
    """What a pass over the training part gives."""

    encoding: Encoding
    warnings: list[str]
    rows: int
    clicks: int


def fit(source: SplitLog, schema: Schema, advance: Callable[[int], None]) -> Fitted:
    """Fit the encoding of `schema` on the training part of a log.

    Args:
        source: the log.
        schema: what its columns mean.
        advance: told the rows of each chunk when it is done.

    Raises:
        UserError: a value that its feature cannot take, a bad label, or no clicks or nothing but clicks.
    """
    fitting = _Fitting(schema, raw_types_of(source.log, schema))
    rows, clicks = 0, 0
    with ThreadPoolExecutor(worker_threads()) as pool:
        for chunk, codes_N in source.stream([schema.label, *fitting.columns()], ["train"]):
            kept = chunk if not codes_N.any() else _where(chunk, codes_N == 0)
            label_N = labels(chunk, schema.label)[codes_N == 0]
            rows, clicks = rows + len(label_N), clicks + int(label_N.sum())
            fitting.add(kept, pool)
            advance(chunk.columns.num_rows)
    if rows == 0:
        raise UserError("data.split leaves the train part empty; choose other files, values or shares")
    if clicks in (0, rows):
        what = "no click" if clicks == 0 else "nothing but clicks"
        raise UserError(
            f"column '{schema.label}' has {what} in the {rows:,} rows of the train part; nothing can be learnt from "
            "that: check columns.label and data.split"
        )
    encoding = Encoding(schema, fitting.raw_types, fitting.tables(), fitting.scalings())
    warnings = [*_float_ids(source.log.schema, schema), *fitting.warnings]
    return Fitted(encoding, warnings, rows, clicks)


def worker_threads() -> int:
    """Threads that work on the features of a chunk: numpy and Arrow let go of the interpreter while they compute."""
    return min(os.cpu_count() or 1, 8)


def _float_ids(columns: pa.Schema, schema: Schema) -> Iterator[str]:
    for feature in schema.features:
        kind = columns.field(feature.source).type
        if not isinstance(feature, DenseFeature) and pa.types.is_floating(getattr(kind, "value_type", kind)):
            yield f"feature '{feature.name}': ids stored as floats (column '{feature.source}') are taken as integers"


def _where(chunk: Chunk, mask_N: npt.NDArray[np.bool_]) -> Chunk:
    # Row numbers in messages about the remaining columns are those of the chunk's beginning: good enough to find it.
    return Chunk(chunk.columns.filter(pa.array(mask_N)), chunk.file, chunk.first_row)


class _Fitting:
    """Everything that is being counted."""

    def __init__(self, schema: Schema, raw_types: Mapping[str, RawType]) -> None:
        self.schema, self.raw_types = schema, raw_types
        self.warnings: list[str] = []
        self._key_counts = {
            table: KeyCounts()
            for table, members in schema.tables().items()
            if schema.table_settings(table)[1] is None and not isinstance(members[0], DenseFeature)
        }
        dense = [f for f in schema.features if isinstance(f, DenseFeature)]
        self._moments = {f.name: Moments() for f in dense}
        self._samples = {f.name: Reservoir(zlib.crc32(f.name.encode())) for f in dense if f.transform == "bucketize"}

    def columns(self) -> list[str]:
        """Columns of the log that have to be read."""
        return [f.source for f in self.schema.features if self._is_fitted(f)]

    def _is_fitted(self, feature: Feature) -> bool:
        return isinstance(feature, DenseFeature) or table_of(feature) in self._key_counts

    def add(self, chunk: Chunk, pool: Executor) -> None:
        """Count a chunk; features of different tables side by side."""
        by_table: dict[str, list[Feature]] = {}
        for feature in filter(self._is_fitted, self.schema.features):
            by_table.setdefault(table_of(feature), []).append(feature)
        for _ in pool.map(lambda features: self._add_features(chunk, features), by_table.values()):
            pass

    def _add_features(self, chunk: Chunk, features: Sequence[Feature]) -> None:
        for feature in features:
            array = chunk.columns.column(feature.source)
            try:
                if isinstance(feature, DenseFeature):
                    self._add_dense(feature, array)
                else:
                    self._add_ids(feature, array)
            except UserError as error:
                rows = f"rows {chunk.first_row + 1:,} to {chunk.first_row + chunk.columns.num_rows:,}"
                raise UserError(f"{chunk.file}, column '{feature.source}', {rows}: {error}") from error

    def _add_ids(self, feature: CategoricalFeature | SequenceFeature, array: pa.Array) -> None:
        raw_type = self.raw_types[feature.name]
        ids = cut_lists(array, feature.max_len).values if isinstance(feature, SequenceFeature) else array
        values, codes_N = distinct(ids)
        values_D, missing_D = scalars(values, raw_type, feature.name)
        counts_D = np.bincount(codes_N, minlength=len(values_D))
        seen_D = ~missing_D & (counts_D > 0)
        present_D = values_D[seen_D]
        keys_D = keys_of(present_D, np.zeros(len(present_D), np.bool_))
        # Python's own hash of strings knows nothing of ours; an integer is its own key.
        checks_D = np.fromiter(map(hash, present_D), np.int64, len(present_D)) if raw_type == "string" else keys_D
        self._key_counts[table_of(feature)].add(keys_D, counts_D[seen_D], checks_D)

    def _add_dense(self, feature: DenseFeature, array: pa.Array) -> None:
        values_N, missing_N = dense_values(array, feature.name)
        finite_N = values_N[np.isfinite(values_N) & ~missing_N]
        transformed_N = signed_log(finite_N) if feature.transform == "log" else finite_N
        self._moments[feature.name].add(transformed_N, finite_N)
        if feature.transform == "bucketize":
            self._samples[feature.name].add(finite_N)

    def tables(self) -> dict[str, Table]:
        """The table of each sparse feature."""
        tables: dict[str, Table] = {}
        for table, members in self.schema.tables().items():
            min_count, buckets = self.schema.table_settings(table)
            if isinstance(members[0], DenseFeature):
                tables[table] = self._buckets(members[0])
            elif buckets is not None:
                tables[table] = HashBuckets(buckets)
            else:
                tables[table] = self._vocabulary(table, min_count)
        return tables

    def _vocabulary(self, table: str, min_count: int) -> Vocabulary:
        counts = self._key_counts[table]
        counts.merge()
        if counts.collisions:
            self.warnings.append(f"table '{table}': {counts.collisions} ids share a row with another id of equal hash")
        frequent_V = counts.counts_V >= min_count
        if not frequent_V.any():
            self.warnings.append(f"table '{table}': no id occurs {min_count} times or more in the train part")
        return Vocabulary(counts.keys_V[frequent_V], counts.counts_V[frequent_V])

    def _buckets(self, feature: DenseFeature) -> Buckets:
        moments, values_N = self._moments[feature.name], self._samples[feature.name].values()
        if self._is_flat(feature):
            flat = moments.low if moments.count else 0.0
            return Buckets((), flat, flat)
        shares = np.arange(1, feature.num_buckets) / feature.num_buckets
        boundaries = np.unique(quantiles(values_N, shares)).astype(np.float64)
        return Buckets(tuple(boundaries[boundaries > moments.low].tolist()), moments.low, moments.high)

    def scalings(self) -> dict[str, Scaling]:
        """The scaling of each dense feature that is not bucketized."""
        scalings = {}
        for feature in self.schema.dense_features:
            moments, log = self._moments[feature.name], feature.transform == "log"
            if self._is_flat(feature):
                flat = moments.low if moments.count else 0.0
                scalings[feature.name] = Scaling(log, moments.mean, 1.0, flat, flat)
            else:
                scalings[feature.name] = Scaling(log, moments.mean, moments.std or 1.0, moments.low, moments.high)
        return scalings

    def _is_flat(self, feature: DenseFeature) -> bool:
        """Whether the train part has one value of it or none, which is said."""
        moments = self._moments[feature.name]
        if moments.count and moments.low < moments.high:
            return False
        what = f"always {moments.low:g}" if moments.count else "never given"
        self.warnings.append(f"feature '{feature.name}': {what} in the train part; it tells the model nothing")
        return True
