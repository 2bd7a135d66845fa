"""Which columns of a log may be the time or the day of the impression."""

import pyarrow as pa
import pyarrow.compute as pc

from ctrkit.data.columns import decoded
from ctrkit.data.split import PARTS
from ctrkit.inspection import naming
from ctrkit.inspection.column_profile import MANY_VALUES, Profile

LEAST_DAY = 0.02
"""Share of the rows that a day has at least that validates or tests; the last one of a log is often cut short."""
_MOST_DAYS = 2000


def is_plain(column: Profile) -> bool:
    """Whether its type is one that a feature may have."""
    kind = column.type
    return bool(column.is_number or column.is_text or pa.types.is_boolean(kind) or pa.types.is_date32(kind)) and not (
        pa.types.is_date32(kind) and not naming.is_day(column.name)
    )


def is_day(column: Profile) -> bool:
    """Whether it may be the day of the impression."""
    named = naming.is_day(column.name) or column.is_day_text
    many = len(PARTS) <= column.distinct <= _MOST_DAYS
    return named and many and not column.is_list and is_plain(column) and not naming.is_other_time(column.name)


def is_time(column: Profile) -> bool:
    """Whether it may be the time of the impression."""
    if column.is_list or naming.is_other_time(column.name):
        return False
    if pa.types.is_timestamp(column.type) or (column.is_time_text and not column.is_day_text):
        return True
    named = naming.is_time(column.name) or (column.is_epoch and not naming.is_id(column.name))
    return named and column.is_number and column.distinct > MANY_VALUES


def least_held_out(sample: pa.Table, day: str) -> float:
    """Share of the rows that the smaller one of the last two days has."""
    counts = decoded(sample.column(day).combine_chunks()).drop_null().value_counts()
    last = pc.array_sort_indices(counts.field("values"))[-2:]
    return float(pc.min(counts.field("counts").take(last)).as_py() / sample.num_rows)
