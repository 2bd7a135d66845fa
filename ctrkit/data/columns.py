"""Columns of a raw log as numpy arrays: the types that a feature takes, and the checks on label, group and weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ctrkit.data.source import Chunk, ClickLog, require_columns
from ctrkit.encoding import Float32Array
from ctrkit.errors import UserError
from ctrkit.raw_values import BoolArray, Float64Array, Int64Array, RawType, typed_array
from ctrkit.schema import DenseFeature, Feature, Schema, SequenceFeature

LABEL, GROUP, WEIGHT, ORACLE = "__label", "__group", "__weight", "__oracle"
"""Names of the columns of a prepared log that are no features."""
RESERVED = (LABEL, GROUP, WEIGHT, ORACLE)
TEACHER = "__teacher/"
"""What stands before the name of a teacher's column in a prepared log, which has its logit."""
_TIMES = "numbers, timestamps, dates, or texts as 2025-03-01 12:30:00"
SLICE = "__slice/"
"""What stands before the name of a slice's column in a prepared log; no feature's name has a slash."""


@dataclass(frozen=True)
class Lists:
    """A column of lists, each cut to its first elements: list i is `values[offsets_N1[i] : offsets_N1[i + 1]]`."""

    values: pa.Array
    offsets_N1: Int64Array
    truncated: int
    """Lists that were longer."""


def check_columns(log: ClickLog, schema: Schema) -> None:
    """Refuse a log that lacks a column of the schema, in any of its files, or has it in a type that it cannot have.

    Raises:
        UserError: names file, column and the way out.
    """
    wanted = {f.source: f"features.{f.name}" for f in schema.features}
    wanted |= {column: f"columns.{key}" for column, key in schema.special_columns().items()}
    require_columns(log.schema, wanted, log.files[0].path)
    for column in RESERVED:
        if column in wanted:
            raise UserError(f"column '{column}', which {wanted[column]} names: ctrkit uses the name; rename the column")
    for file in log.files:
        names = [*file.schema.names, *file.partition]
        if not wanted.keys() <= set(names):
            require_columns(pa.schema([(n, pa.null()) for n in names]), wanted, file.path)
    for feature in schema.features:
        if feature.name in RESERVED or "/" in feature.name:
            raise UserError(f"features.{feature.name}: the name is used for something else; give another and `column`")
    for column in schema.slices:
        kind = decoded_type(log.schema.field(column).type)
        if pa.types.is_nested(kind):
            raise UserError(f"columns.slices: '{column}' is {kind}; a slice has one value a row")
    if schema.time is not None:
        _check_time(schema.time, log.schema.field(schema.time).type)
    raw_types_of(log, schema)


def _check_time(column: str, kind: pa.DataType) -> None:
    kind = decoded_type(kind)
    if not (_is_number(kind) or pa.types.is_temporal(kind) or is_text(kind)):
        raise UserError(f"time column '{column}' is {kind}; write {_TIMES}")


def raw_types_of(log: ClickLog, schema: Schema) -> dict[str, RawType]:
    """Type of each feature's raw values; features that share a table must have the same.

    Raises:
        UserError: a column has a type that its feature cannot take.
    """
    raw_types = {f.name: _raw_type(f, log.schema.field(f.source).type) for f in schema.features}
    for table, members in schema.tables().items():
        first = members[0]
        for other in members[1:]:
            if raw_types[other.name] != raw_types[first.name]:
                raise UserError(
                    f"features '{first.name}' and '{other.name}' share table '{table}', but one has "
                    f"{raw_types[first.name]} values, the other {raw_types[other.name]}; write both with one type"
                )
    return raw_types


def _raw_type(feature: Feature, kind: pa.DataType) -> RawType:
    kind = decoded_type(kind)
    where = f"feature '{feature.name}' (column '{feature.source}', {kind})"
    if isinstance(feature, SequenceFeature):
        if not is_list(kind):
            raise UserError(f'{where} is declared kind = "sequence", but is no list; CSV has none, Parquet does')
        kind = decoded_type(kind.value_type)
        if is_list(kind):
            raise UserError(f"{where}: a list of lists is too deep; flatten it")
    elif is_list(kind):
        raise UserError(f'{where} is a list; declare it kind = "sequence" or leave it out')
    number = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind)
    if isinstance(feature, DenseFeature):
        if not number and not pa.types.is_null(kind) and not pa.types.is_decimal(kind):
            raise UserError(f'{where} is declared kind = "dense", but is no number; declare it categorical')
        return "float"
    if number:
        return "int"
    if is_text(kind) or pa.types.is_null(kind):
        return "string"
    raise UserError(f"{where} has a type that no feature takes; write it as integers, strings or floats")


def is_list(kind: pa.DataType) -> bool:
    """Whether it is any of Arrow's list types."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether it is any of Arrow's string types."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_view(kind))


def _is_view(kind: pa.DataType) -> bool:
    return bool(kind == pa.string_view())


def decoded_type(kind: pa.DataType) -> pa.DataType:
    """The type itself, or that of a dictionary's values."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def decoded(array: pa.Array) -> pa.Array:
    """The array itself, or the values of a dictionary-encoded one."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def to_numpy(array: pa.Array) -> npt.NDArray[Any]:
    """Values of an Arrow array without nulls, or of strings (None where null)."""
    out: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return out


def numbers(array: pa.Array, raw_type: RawType, name: str) -> tuple[npt.NDArray[Any], BoolArray]:
    """Values of a feature as `ctrkit.raw_values.typed_array` gives them, and where there are none (null or NaN).

    Raises:
        UserError: ids stored as floats that are no whole numbers or that floats cannot hold.
    """
    missing_N = to_numpy(array.is_null())
    if pa.types.is_decimal(array.type) or pa.types.is_null(array.type):
        array = array.cast(pa.float64())
    filled = array.fill_null(False if pa.types.is_boolean(array.type) else 0) if array.null_count else array
    values_N, nan_N = typed_array(to_numpy(filled), raw_type, name)
    return values_N, missing_N | nan_N


def cut_lists(array: pa.Array, max_len: int) -> Lists:
    """The first `max_len` elements of each list; null is an empty list."""
    array = decoded(array)
    if not pa.types.is_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    length_N = to_numpy(pc.list_value_length(array).fill_null(0)).astype(np.int64)
    kept_N = np.minimum(length_N, max_len)
    offsets_N1 = np.concatenate([[0], np.cumsum(kept_N)])
    bounds_N1 = to_numpy(array.offsets).astype(np.int64)
    start_N, total = bounds_N1[:-1], int(offsets_N1[-1])
    if total == bounds_N1[-1] - bounds_N1[0]:  # nothing is cut and no null hides elements: they lie side by side
        return Lists(array.values.slice(bounds_N1[0], total), offsets_N1, 0)
    index = np.repeat(start_N - offsets_N1[:-1], kept_N) + np.arange(total)
    return Lists(array.values.take(pa.array(index)), offsets_N1, int((length_N > max_len).sum()))


def dense_values(array: pa.Array, name: str) -> tuple[Float64Array, BoolArray]:
    """Numbers of a dense feature; NaN and null are missing, infinities are not."""
    return numbers(decoded(array), "float", name)


def labels(chunk: Chunk, column: str, *, unlabelled: bool = False) -> Float32Array:
    """The label, 0 or 1; NaN where it is missing, if it may be.

    Raises:
        UserError: another value or none, with the first such row.
    """
    array = chunk.columns.column(column)
    try:
        values_N = label_values(array)
    except pa.ArrowException as error:
        raise UserError(f"{chunk.file}: label '{column}' is {array.type}; write 0 (no click) and 1 (click)") from error
    bad_N = (values_N != 0) & (values_N != 1)
    if unlabelled:
        bad_N &= ~np.isnan(values_N)
    if bad_N.any():
        row = int(np.argmax(bad_N))
        found = array[row].as_py()
        raise UserError(
            f"{chunk.place(row)}: label '{column}' is {'empty' if found is None else found}, "
            "neither 0 (no click) nor 1 (click); correct or drop such rows"
        )
    return values_N.astype(np.float32)


def label_values(array: pa.Array) -> Float64Array:
    """A label's numbers, also where they are written as text or decimals; NaN where there is none.

    Raises:
        pa.ArrowException: it holds something else.
    """
    return _floats(decoded(array))


def groups(chunk: Chunk, column: str) -> pa.Array:
    """The group key as int64 or string.

    Raises:
        UserError: a row has none, or it is a float that is no exact whole number, or of another type.
    """
    array = decoded(chunk.columns.column(column))
    missing = array.is_null(nan_is_null=True)
    if missing.true_count:
        row = int(np.argmax(to_numpy(missing)))
        raise UserError(
            f"{chunk.place(row)}: group key '{column}' is empty; GAUC needs one a row: drop such rows or give them one"
        )
    if _is_number(array.type) or pa.types.is_boolean(array.type):
        return pa.array(numbers(array, "int", column)[0])
    if is_text(array.type):
        return array.cast(pa.string())
    raise UserError(f"{chunk.file}: group key '{column}' is {array.type}; write integers or strings")


def weights(chunk: Chunk, column: str) -> Float32Array:
    """Weights of the impressions.

    Raises:
        UserError: one is negative, infinite in single precision, NaN or missing.
    """
    values_N = _finite(chunk, column, "weight", 0.0, float(np.finfo(np.float32).max))
    return values_N.astype(np.float32)


def oracles(chunk: Chunk, column: str) -> Float64Array:
    """True click probabilities.

    Raises:
        UserError: one is outside [0, 1] or missing.
    """
    return _finite(chunk, column, "oracle", 0.0, 1.0)


def times_of(chunk: Chunk, column: str) -> npt.NDArray[np.generic]:
    """The time column as numbers that order the rows: int64 (of timestamps, dates and text, too) or float64.

    Raises:
        UserError: it holds anything else, or a row has no time.
    """
    times = decoded(chunk.columns.column(column))
    if is_text(times.type):
        parsed = parsed_times(times)
        if parsed is None:
            wrong = next(row for row in range(len(times)) if parsed_times(times.slice(row, 1)) is None)
            found = f"{times[wrong].as_py()!r:.40}, which is no time"
            raise UserError(f"{chunk.place(wrong)}: time column '{column}' has {found}; write {_TIMES}")
        times = parsed
    kind = times.type
    if pa.types.is_temporal(kind):
        times = times.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).cast(pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise UserError(f"{chunk.file}: time column '{column}' is {kind}; write {_TIMES}")
    values_N = to_numpy(times.fill_null(0))
    missing_N = to_numpy(times.is_null(nan_is_null=True))
    if missing_N.any():
        raise UserError(f"{chunk.place(int(np.argmax(missing_N)))}: time column '{column}' is empty; drop such rows")
    return values_N.astype(np.float64 if values_N.dtype.kind == "f" else np.int64)


def parsed_times(texts: pa.Array) -> pa.Array | None:
    """Timestamps that stand as text, as ISO 8601 has them, all with a zone or all without; None if one is none."""
    texts = texts.cast(pa.string())
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.timestamp("ns", "UTC")):
        try:
            return texts.cast(kind).cast(pa.timestamp("us", kind.tz), safe=False)
        except pa.ArrowInvalid:
            continue
    return None


def teacher_logits(chunk: Chunk, column: str) -> Float32Array:
    """The logit of another model's click probability, NaN where it has none.

    Probabilities of 0 and 1 count as 1e-6 away from it: nobody can be taught an infinite logit.

    Raises:
        UserError: one is outside [0, 1].
    """
    array = chunk.columns.column(column)
    if not _is_number(array.type):
        raise UserError(f"{chunk.file}: teacher '{column}' is {array.type}; write probabilities")
    values_N = _floats(array)
    bad_N = (values_N < 0) | (values_N > 1)
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise UserError(
            f"{chunk.place(row)}: teacher '{column}' is {array[row].as_py()}; write click probabilities, in [0, 1]"
        )
    inside_N = values_N.clip(1e-6, 1 - 1e-6)
    logit_N: Float32Array = np.log(inside_N / (1 - inside_N)).astype(np.float32)
    return logit_N


def _finite(chunk: Chunk, column: str, role: str, low: float, high: float) -> Float64Array:
    array = chunk.columns.column(column)
    if not _is_number(array.type):
        raise UserError(f"{chunk.file}: {role} '{column}' is {array.type}; write numbers")
    values_N = _floats(array)
    bad_N = ~((values_N >= low) & (values_N <= high) & np.isfinite(values_N))
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise UserError(
            f"{chunk.place(row)}: {role} '{column}' is {array[row].as_py()}; it must lie between {low:g} and {high:g}"
        )
    return values_N


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _floats(array: pa.Array) -> Float64Array:
    values_N = to_numpy(array.cast(pa.int8() if pa.types.is_boolean(array.type) else pa.float64(), safe=False))
    return values_N.astype(np.float64)


def special_columns(chunk: Chunk, schema: Schema) -> Mapping[str, pa.Array]:
    """Label, group, weight and oracle of a chunk, checked, and its slices, by their names in the prepared log."""
    label_N = labels(chunk, schema.label, unlabelled=schema.unlabelled)
    columns = {LABEL: pa.array(label_N), GROUP: groups(chunk, schema.group)}
    if schema.weight is not None:
        columns[WEIGHT] = pa.array(weights(chunk, schema.weight))
    if schema.oracle is not None:
        columns[ORACLE] = pa.array(oracles(chunk, schema.oracle))
    for column in schema.teachers:
        columns[TEACHER + column] = pa.array(teacher_logits(chunk, column))
    for column in schema.slices:
        columns[SLICE + column] = decoded(chunk.columns.column(column))
    return columns
