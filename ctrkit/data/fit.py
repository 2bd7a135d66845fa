"""The encoding of a schema, fitted on the training part alone: vocabularies, scalings, quantile buckets.

One pass; memory grows with the distinct ids, not with the rows.
"""

import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctrkit.data.columns import cut_lists, dense_values, labels, raw_types_of
from ctrkit.data.counting import KeyCounts, Moments
from ctrkit.data.ids import distinct, id_keys, text_checks
from ctrkit.data.in_order import in_order
from ctrkit.data.sampling import Reservoir, quantiles
from ctrkit.data.source import Chunk
from ctrkit.data.split import SplitLog
from ctrkit.encoding import Buckets, Encoding, Float32Array, HashBuckets, Scaling, Table, Vocabulary
from ctrkit.errors import UserError
from ctrkit.raw_values import RawType, signed_log
from ctrkit.schema import CategoricalFeature, DenseFeature, Feature, Schema, SequenceFeature, table_of


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
    rows, labelled, clicks = 0, 0, 0

    def work() -> Iterator[tuple[int, list[Callable[[], Any]]]]:
        for chunk, codes_N in source.stream([schema.label, *fitting.columns()], ["train"], fitting.columns()):
            train_N = codes_N == 0
            kept = chunk if train_N.all() else _where(chunk, train_N)
            yield (
                chunk.columns.num_rows,
                [partial(_train_labels, chunk, schema, train_N), *fitting.counting(kept)],
            )

    with ThreadPoolExecutor(worker_threads()) as pool:
        for num_rows, (label_N, *found) in in_order(pool, work()):
            rows, labelled = rows + len(label_N), labelled + int(np.count_nonzero(~np.isnan(label_N)))
            clicks += int(np.nansum(label_N))
            for add in found:
                add()
            advance(num_rows)
    fitting.merge()
    if rows == 0:
        raise UserError("data.split leaves the train part empty; choose other files, values or shares")
    if clicks in (0, labelled):
        what = "no click" if clicks == 0 else "nothing but clicks"
        raise UserError(
            f"column '{schema.label}' has {what} in the {labelled:,} rows of the train part; nothing can be learnt "
            "from that: check columns.label and data.split"
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


def _train_labels(chunk: Chunk, schema: Schema, train_N: npt.NDArray[np.bool_]) -> Float32Array:
    return labels(chunk, schema.label, unlabelled=schema.unlabelled)[
        train_N
    ]  # in this order, so that a message names the row


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

    def counting(self, chunk: Chunk) -> list[Callable[[], Callable[[], None]]]:
        """Tasks for any thread; what each returns adds its counts, and is to be called in order."""
        return [partial(self._count, chunk, feature) for feature in self.schema.features if self._is_fitted(feature)]

    def _count(self, chunk: Chunk, feature: Feature) -> Callable[[], None]:
        array = chunk.columns.column(feature.source)
        try:
            if isinstance(feature, DenseFeature):
                return self._numbers(feature, array)
            return self._ids(feature, array)
        except UserError as error:
            rows = f"rows {chunk.first_row + 1:,} to {chunk.first_row + chunk.columns.num_rows:,}"
            raise UserError(f"{chunk.file}, column '{feature.source}', {rows}: {error}") from error

    def _ids(self, feature: CategoricalFeature | SequenceFeature, array: pa.Array) -> Callable[[], None]:
        raw_type = self.raw_types[feature.name]
        ids = cut_lists(array, feature.max_len).values if isinstance(feature, SequenceFeature) else array
        values, codes_N = distinct(ids)
        keys_D, missing_D = id_keys(values, raw_type, feature.name)
        checks_D = text_checks(values, feature.name) if raw_type == "string" else keys_D  # an integer is its own key
        counts_D = np.bincount(codes_N, minlength=len(values))
        seen_D = ~missing_D & (counts_D > 0)
        return partial(self._key_counts[table_of(feature)].add, keys_D[seen_D], counts_D[seen_D], checks_D[seen_D])

    def _numbers(self, feature: DenseFeature, array: pa.Array) -> Callable[[], None]:
        values_N, missing_N = dense_values(array, feature.name)
        finite_N = values_N[np.isfinite(values_N) & ~missing_N]
        transformed_N = signed_log(finite_N) if feature.transform == "log" else finite_N

        def add() -> None:
            self._moments[feature.name].add(transformed_N, finite_N)
            if feature.transform == "bucketize":
                self._samples[feature.name].add(finite_N)

        return add

    def merge(self) -> None:
        """Bring all counts up to date, once the last chunk is counted."""
        for counts in self._key_counts.values():
            counts.merge()
        for moments in self._moments.values():
            moments.merge()

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
        if counts.collisions:
            self.warnings.append(f"table '{table}': {counts.collisions} ids share a row with another id of equal hash")
        frequent_V = counts.counts_V >= min_count
        if not frequent_V.any():
            often = f"{min_count} times or more " if min_count > 1 else ""
            self.warnings.append(f"table '{table}': no id occurs {often}in the train part; it tells the model nothing")
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
