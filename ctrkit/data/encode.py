"""Chunks of a raw log, encoded: the encoding's own functions, on the distinct values of each chunk."""

import numpy as np
import pyarrow as pa

from ctrkit.data.columns import cut_lists, dense_values, distinct, id_keys
from ctrkit.encoding import MISSING, UNSEEN, Counts, Encoding
from ctrkit.errors import UserError
from ctrkit.schema import CategoricalFeature, DenseFeature, Feature, SequenceFeature


def encode_feature(encoding: Encoding, feature: Feature, array: pa.Array) -> tuple[pa.Array, Counts]:
    """A raw column as a column of the prepared log: int32 rows, list<int32>, or float32.

    Raises:
        UserError: a value that the feature cannot take; names the column.
    """
    try:
        if isinstance(feature, DenseFeature):
            return _dense(encoding, feature, array)
        if isinstance(feature, SequenceFeature):
            return _sequence(encoding, feature, array)
        return _categorical(encoding, feature, array)
    except UserError as error:
        raise UserError(f"column '{feature.source}': {error}") from error


def _dense(encoding: Encoding, feature: DenseFeature, array: pa.Array) -> tuple[pa.Array, Counts]:
    values_N, missing_N = dense_values(array, feature.name)
    if feature.name in encoding.scalings:
        scaled_N, counts = encoding.encode_dense(feature.name, values_N, missing_N)
        return pa.array(scaled_N), counts
    rows_N, counts = encoding.encode_sparse(feature.name, values_N, missing_N)
    return pa.array(rows_N.astype(np.int32)), counts


def _categorical(
    encoding: Encoding, feature: CategoricalFeature | SequenceFeature, array: pa.Array
) -> tuple[pa.Array, Counts]:
    values, codes_N = distinct(array)
    keys_D, missing_D = id_keys(values, encoding.raw_types[feature.name], feature.name)
    order_D = np.argsort(keys_D)  # in order, a binary search finds them five times as fast
    rows_D = np.empty(len(keys_D), np.int32)
    rows_D[order_D], _ = encoding.encode_sparse(feature.name, keys_D[order_D], missing_D[order_D])
    frequency_D = np.bincount(codes_N, minlength=len(rows_D))
    counts = Counts(
        values=len(codes_N),
        missing=int(frequency_D[rows_D == MISSING].sum()),
        unseen=int(frequency_D[rows_D == UNSEEN].sum()),
    )
    return pa.array(rows_D[codes_N]), counts


def _sequence(encoding: Encoding, feature: SequenceFeature, array: pa.Array) -> tuple[pa.Array, Counts]:
    lists = cut_lists(array, feature.max_len)
    rows, counts = _categorical(encoding, feature, lists.values)
    counts.truncated = lists.truncated
    counts.missing += int((np.diff(lists.offsets_N1) == 0).sum())
    return pa.ListArray.from_arrays(pa.array(lists.offsets_N1.astype(np.int32)), rows), counts
