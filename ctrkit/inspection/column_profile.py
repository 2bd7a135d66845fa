"""What a sample of a log shows: of each column its values and what it alone says of the label; of the log its flaws."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ctrkit.data.columns import decoded, is_list, is_text, label_values, parsed_times, to_numpy
from ctrkit.errors import UserError
from ctrkit.metrics import auc
from ctrkit.raw_values import Float64Array, Int64Array

MANY_VALUES = 50
"""A column of more has ids or amounts."""
_FEW_USERS = 20
_EPOCH = (946_684_800, 2_208_988_800)  # 2000 to 2040, in seconds
_CHANCE = 1e-6
"""That any value of a column has clicks of so many users only, if these were drawn."""


@dataclass(frozen=True)
class Profile:
    """A column of the sample."""

    name: str
    type: pa.DataType
    """Of the elements, for a list."""
    is_list: bool
    rows: int
    missing: int
    distinct: int
    """Different values or elements, null apart."""
    whole: bool
    """All of them are whole numbers, whatever their type."""
    skewed: bool
    """No value is negative and the mean lies far above the median."""
    label_auc: float
    """How well the column alone ranks the label, or the length of its lists: AUC on rows that its values' click rates
    were not taken from."""
    longest: int
    """Length below which 95 % of the lists are."""
    values: pa.Array
    """The different values."""

    @property
    def is_constant(self) -> bool:
        """Whether there is one value or none, in all rows."""
        return self.distinct == 0 or (self.distinct == 1 and self.missing == 0 and not self.is_list)

    @property
    def is_number(self) -> bool:
        """Whether its type is a number's (booleans are not)."""
        return bool(pa.types.is_integer(self.type) or pa.types.is_floating(self.type) or pa.types.is_decimal(self.type))

    @property
    def is_text(self) -> bool:
        """Whether its type is a string's."""
        return is_text(self.type)

    @cached_property
    def is_time_text(self) -> bool:
        """Whether all its values are texts that name a time or a day."""
        first = self.values.slice(0, 1)  # most texts are known by one
        return self.is_text and len(first) > 0 and all(parsed_times(some) is not None for some in (first, self.values))

    @property
    def is_day_text(self) -> bool:
        """Whether all its values are texts that name a day."""
        return self.is_time_text and pc.max(pc.utf8_length(self.values)).as_py() == len("2025-03-01")

    @property
    def is_fractional(self) -> bool:
        """Whether it has fractions, and so is no id."""
        return bool(pa.types.is_decimal(self.type) or (pa.types.is_floating(self.type) and not self.whole))

    @property
    def is_epoch(self) -> bool:
        """Whether all its values are milli-, micro- or nanoseconds since 1970; as seconds other numbers pass too."""
        if not pa.types.is_integer(self.type) or self.distinct == 0:
            return False
        low, high = (value.as_py() for value in pc.min_max(self.values).values())
        return any(_EPOCH[0] * unit <= low and high <= _EPOCH[1] * unit for unit in (10**3, 10**6, 10**9))

    @property
    def way_out(self) -> str:
        """How to write it, if its type is one that no feature takes."""
        if pa.types.is_struct(self.type):
            return "write each of its fields as a column of its own"
        return "flatten it" if is_list(self.type) else "write it as integers, strings or floats"


def sample_labels(path: str, label: str, sample: pa.Table) -> npt.NDArray[np.bool_]:
    """Which of the N rows of a sample are clicks.

    Raises:
        UserError: there is no row, or a label is missing or neither 0 nor 1.
    """
    if sample.num_rows == 0:
        raise UserError(f"{path}: the log has no rows")
    column = decoded(sample.column(label).combine_chunks())
    try:
        values_N = label_values(column)
    except pa.ArrowException as error:
        found = ", ".join(repr(value)[:20] for value in column.unique().drop_null()[:3].to_pylist())
        raise UserError(
            f"{path}: label '{label}' is {column.type} ({found}); name a column of 0 (no click) and 1, or write it so"
        ) from error
    empty = int(np.isnan(values_N).sum())
    wrong = np.unique(values_N[(values_N != 0) & (values_N != 1) & ~np.isnan(values_N)])
    problems = []
    if len(wrong):
        found = ", ".join(f"{value:g}" for value in wrong[:5])
        problems.append(f"has the values {found}; name a column of 0 (no click) and 1 (click)")
    if empty:
        problems.append(
            f"is empty in {empty:,} of {sample.num_rows:,} rows of the sample; drop such rows, or write 0 where it "
            "means no click"
        )
    if problems:
        raise UserError(f"{path}: " + "; ".join(f"label '{label}' {problem}" for problem in problems))
    return np.asarray(values_N == 1)


def profile(name: str, column: pa.ChunkedArray, label_N: npt.NDArray[np.bool_]) -> Profile:
    """Look at one column of a sample of N rows."""
    array = decoded(column.combine_chunks())
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    lists = is_list(array.type)
    elements = decoded(pc.list_flatten(array)) if lists else array
    missing = int(array.is_null(nan_is_null=True).true_count)
    try:
        values = elements.unique().drop_null()
    except pa.ArrowNotImplementedError:  # structs and the like
        values = pa.nulls(0)
    numbers_D = _numbers(values)
    longest = int(np.quantile(to_numpy(pc.list_value_length(array).fill_null(0)), 0.95)) if lists and len(array) else 0
    return Profile(
        name=name,
        type=elements.type,
        is_list=lists,
        rows=len(array),
        missing=missing,
        distinct=len(values),
        whole=numbers_D is not None and bool((numbers_D == np.floor(numbers_D)).all()),
        skewed=not lists and _is_skewed(_numbers(array.drop_null())),
        label_auc=0.5 if len(values) == 0 else _label_auc(pc.list_value_length(array) if lists else array, label_N),
        longest=longest,
        values=values,
    )


def _numbers(array: pa.Array) -> Float64Array | None:
    """Finite numbers of an array; None if it holds something else."""
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        return None
    values_N = to_numpy(array.cast(pa.float64(), safe=False)).astype(np.float64)
    return values_N[np.isfinite(values_N)]


def _is_skewed(numbers_N: Float64Array | None) -> bool:
    if numbers_N is None or len(numbers_N) == 0 or numbers_N.min() < 0:
        return False
    return bool(numbers_N.mean() > 2 * np.median(numbers_N))


def _label_auc(array: pa.Array, label_N: npt.NDArray[np.bool_]) -> float:
    """The better of two: by the click rate of each value, taken from every other row; by the number itself."""
    codes_N = codes_of(array)
    learn_N = np.arange(len(codes_N)) % 2 == 0
    clicks = np.bincount(codes_N[learn_N], label_N[learn_N], minlength=codes_N.max() + 1)
    shown = np.bincount(codes_N[learn_N], minlength=codes_N.max() + 1)
    rate = (clicks + label_N.mean()) / (shown + 1)
    best = _auc(rate[codes_N[~learn_N]], label_N[~learn_N])
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        numbers_N = np.nan_to_num(to_numpy(array.cast(pa.float64(), safe=False)).astype(np.float64))
        by_number = _auc(numbers_N, label_N)
        best = max(best, by_number, 1 - by_number)
    return best


def all_clicks(column: pa.ChunkedArray, group_N: Int64Array, label_N: npt.NDArray[np.bool_]) -> tuple[Any, int] | None:
    """A value whose rows are all clicks, of more users than chance would give it, and how many rows these are.

    Args:
        column: of the sample, no list.
        group_N: a number for each user.
        label_N: which rows are clicks.
    """
    array = decoded(column.combine_chunks())
    codes_N = codes_of(array)
    shown, clicks = np.bincount(codes_N), np.bincount(codes_N, label_N)
    pairs = np.unique(codes_N * (group_N.max() + 1) + group_N)
    users = np.bincount(pairs // (group_N.max() + 1))  # rows of one user are one user's taste
    users[clicks < shown] = 0
    code = int(users.argmax())
    if users[code] < _FEW_USERS or float(label_N.mean()) ** int(users[code]) * len(shown) > _CHANCE:
        return None
    return array[int((codes_N == code).argmax())].as_py(), int(shown[code])


def in_list(lists: pa.ChunkedArray, values: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Which of N lists hold the value beside them."""
    array, value = (decoded(column.combine_chunks()) for column in (lists, values))
    parents = pc.list_parent_indices(array)
    elements = decoded(pc.list_flatten(array)).cast(value.type)
    same = pc.equal(elements, value.take(parents)).fill_null(False)
    found_N = np.zeros(len(array), np.bool_)
    found_N[to_numpy(parents.filter(same))] = True
    return found_N


def codes_of(array: pa.Array) -> Int64Array:
    """A number for each value, equal where the values are (null is a value)."""
    codes_N: Int64Array = to_numpy(array.dictionary_encode(null_encoding="encode").indices).astype(np.int64)
    return codes_N


def _auc(score_N: Float64Array, label_N: npt.NDArray[np.bool_]) -> float:
    """`ctrkit.metrics.auc`; 0.5 where the rows are of one class."""
    return auc(label_N, score_N) if 0 < label_N.sum() < len(label_N) else 0.5


def depends_on(child_N: Int64Array, parent_N: Int64Array) -> bool:
    """Whether a column has nearly one value for each value of another, as an age has for each user."""
    parents = len(np.unique(parent_N))
    if parents * 1.5 > len(parent_N):
        return False  # nearly every row has a parent of its own: anything would depend on it
    pairs = len(np.unique(parent_N * (child_N.max() + 1) + child_N))
    return pairs <= 1.02 * parents


def duplicate_share(codes: Mapping[str, Int64Array]) -> float:
    """Share of the rows that equal an earlier one in all columns."""
    rows_N = np.zeros(len(next(iter(codes.values()))), np.int64)
    for codes_N in codes.values():  # after each column, one number for each combination so far
        _, rows_N = np.unique(rows_N * (codes_N.max(initial=0) + 1) + codes_N, return_inverse=True)
    return 1 - len(np.unique(rows_N)) / max(len(rows_N), 1)


def without_key(sample: pa.Table, group: str) -> int:
    """Rows of the sample that have no user, which cannot be prepared."""
    return int(decoded(sample.column(group).combine_chunks()).is_null(nan_is_null=True).true_count)


def log_warnings(sample: pa.Table, group: str, label_N: npt.NDArray[np.bool_]) -> Iterator[str]:
    """What looks wrong with the log as a whole."""
    rate = float(label_N.mean())
    if rate in (0.0, 1.0):
        yield f"the sample has {'no click' if rate == 0 else 'nothing but clicks'}"
    elif rate < 0.001:
        yield f"the click rate is {rate:.3%}: down-sample the rows without a click, or use many of them"
    elif rate > 0.5:
        yield f"the click rate is {rate:.0%}: is the label what it should be?"
    column = decoded(sample.column(group).combine_chunks())
    empty = without_key(sample, group)
    if empty:
        yield (
            f"{empty:,} rows of the sample have no '{group}', which `ctrkit prepare` refuses: drop them from the log, "
            "or give each an id of its own (one id for all would be one user)"
        )
    codes_N = codes_of(column)
    shown, clicks = np.bincount(codes_N), np.bincount(codes_N, label_N)
    one_class = (clicks == 0) | (clicks == shown)
    yield from _one_class(group, one_class, shown)
    codes = {
        name: codes_of(decoded(sample.column(name).combine_chunks()))
        for name in sample.column_names
        if not is_list(sample.schema.field(name).type) and not pa.types.is_nested(sample.schema.field(name).type)
    }
    duplicates = duplicate_share(codes)
    if duplicates > 0.01:
        yield f"{duplicates:.0%} of the rows equal another row in every column that is no list; are they logged twice?"


def _one_class(group: str, one_class: npt.NDArray[np.bool_], shown: Int64Array) -> Iterator[str]:
    if one_class.mean() > 0.5:
        rows = shown[one_class].sum() / shown.sum()
        yield (
            f"{one_class.mean():.0%} of the values of '{group}' (with {rows:.0%} of the rows) have clicks only or none "
            "in the sample; GAUC leaves such users out"
        )
