"""Criteo display ads (Kaggle 2014): 45.8 million impressions of 7 days, 13 counts and 26 hashed categories.

Raw file as Criteo publishes it: ``train.txt``, tab-separated, without a header. There is no user id and no time, so
the log has **no group key and no GAUC per user**: compare by AUC and log loss. ``group="C5"`` adds the column
``group_id``, a copy of that category (empty text where it is missing); GAUC by it is then per value of that column,
not per user.

Rows are in order of time: the first 80 % are train, the next 10 % valid, the last 10 % test.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ctrkit.data.adapters.raw import PARTS, PartWriter, raw_file, read_csv
from ctrkit.errors import UserError

RAW_FILES = ("train.txt",)
ORIGIN = "the Criteo display advertising challenge data, published by Criteo"
COUNTS = tuple(f"I{number}" for number in range(1, 14))
CATEGORIES = tuple(f"C{number}" for number in range(1, 27))
COLUMNS = {"click": pa.int8(), **dict.fromkeys(COUNTS, pa.int64()), **dict.fromkeys(CATEGORIES, pa.string())}


def convert(source: Path, target: Path, *, group: str | None = None) -> None:
    """Write the flat log: click, I1 to I13, C1 to C26, nulls where fields are empty, and group_id if asked for.

    Raises UserError for a missing file, a malformed line, or a ``group`` that is not one of the categories.
    """
    if group is not None and group not in CATEGORIES:
        raise UserError(
            f"criteo: group={group!r}: the log has no user id, so there is no GAUC per user; name one of C1 to C26 for "
            "GAUC per value of that column, or leave the group out and compare by AUC and log loss"
        )
    path = raw_file(source, "train.txt", origin=ORIGIN)
    rows = _count_rows(path)
    begins, ends = (0, rows * 8 // 10, rows * 9 // 10), (rows * 8 // 10, rows * 9 // 10, rows)
    first = 0
    with PartWriter(target, ORIGIN) as parts:
        for table in read_csv(path, COLUMNS, names=list(COLUMNS), delimiter="\t", required=("click",)):
            if group:
                table = table.append_column("group_id", pc.fill_null(table[group], ""))
            for part, begin, end in zip(PARTS, begins, ends, strict=True):
                low, high = max(begin - first, 0), min(end - first, table.num_rows)
                if low < high:
                    parts.write(part, table.slice(low, high - low))
            first += table.num_rows
    assert first == rows, f"{path} changed while it was read"


def _count_rows(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip(b"\r\n"))
