"""Raw requests out of the test part, for golden scores and latency."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ctrkit.data.columns import GROUP, decoded, to_numpy
from ctrkit.raw_values import BoolArray, Int64Array
from ctrkit.request import Request
from ctrkit.schema import Schema

WINDOW_ROWS = 200_000
MAX_REQUESTS = 200
MIN_ADS, MAX_ADS = 2, 1000


class RequestSample:
    """Up to 200 requests from the first rows of the test part.

    Consecutive rows of one group, and one time if the schema has it, are a request. Where such runs hold less than half
    of the rows, the log is in no order of requests, and the rows of a group are put together instead.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._window: list[pa.RecordBatch] = []
        self._rows = 0

    def add(self, rows: pa.RecordBatch) -> None:
        """Offer rows of the test part: raw columns, and the group key by its prepared name."""
        kept = rows.slice(0, WINDOW_ROWS - self._rows)
        if kept.num_rows:
            names = [GROUP, *({self._schema.time} - {None}), *(f.source for f in self._schema.features)]
            columns = {name: decoded(kept.column(name)) for name in names}  # batches have dictionaries of their own
            self._window.append(pa.RecordBatch.from_pydict(columns))
            self._rows += kept.num_rows

    def requests(self) -> Iterator[Request]:
        """The requests, spread evenly over the rows offered."""
        if not self._window:
            return
        table = pa.Table.from_batches(self._window)
        order_N = np.arange(table.num_rows)
        start, ads = _runs(self._changes(table))
        if ads.sum() < table.num_rows / 2:
            codes_N = _codes(table.column(GROUP))
            order_N = np.argsort(codes_N, kind="stable")
            start, ads = _runs(codes_N[order_N][1:] != codes_N[order_N][:-1])
        step = max(1, len(start) // MAX_REQUESTS)
        for first, count in list(zip(start, ads, strict=True))[::step][:MAX_REQUESTS]:
            yield self._request(table.take(pa.array(order_N[first : first + min(count, MAX_ADS)])))

    def write(self, path: Path) -> None:
        """Write them as JSON lines."""
        with path.open("w", encoding="utf-8") as file:
            for request in self.requests():
                file.write(json.dumps(request.to_json(), allow_nan=False) + "\n")

    def _changes(self, table: pa.Table) -> BoolArray:
        """Whether each row but the first is of another request than the one before it."""
        changes_N = np.zeros(table.num_rows - 1, np.bool_)
        for name in (GROUP, self._schema.time):
            if name is not None:
                codes_N = _codes(table.column(name))
                changes_N |= codes_N[1:] != codes_N[:-1]
        return changes_N

    def _request(self, rows: pa.Table) -> Request:
        side = {name: [f.source for f in self._schema.side(name)] for name in ("user", "item", "context")}
        user, items, context = (_json_rows(rows.select(list(dict.fromkeys(names)))) for names in side.values())
        return Request(user[0], items, context if side["context"] else {})


def _runs(changes_N: BoolArray) -> tuple[Int64Array, Int64Array]:
    """Beginning and length of each run of rows that is long enough for a request."""
    start = np.concatenate([[0], np.flatnonzero(changes_N) + 1])
    ads = np.diff(start, append=len(changes_N) + 1)
    return start[ads >= MIN_ADS], ads[ads >= MIN_ADS]


def _codes(column: pa.ChunkedArray) -> Int64Array:
    encoded = decoded(column.combine_chunks()).dictionary_encode(null_encoding="encode")
    return to_numpy(encoded.indices).astype(np.int64)


def _json_rows(table: pa.Table) -> list[dict[str, Any]]:
    return [{name: _json(value) for name, value in row.items()} for row in table.to_pylist()] or [{}]


def _json(value: Any) -> Any:
    """JSON has no decimals and no infinity: the largest float is clipped to the same end of the range."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, float) and np.isinf(value):
        return float(np.copysign(np.finfo(np.float64).max, value))
    return value
