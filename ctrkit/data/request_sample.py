"""Raw requests out of the test part, for golden scores and latency."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctrkit.data.columns import GROUP
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
            self._window.append(kept.select(list(dict.fromkeys(names))))
            self._rows += kept.num_rows

    def requests(self) -> Iterator[Request]:
        """The requests, spread evenly over the rows offered."""
        if not self._window:
            return
        table = pa.Table.from_batches(self._window)
        groups = self._runs(table)
        if sum(map(len, groups)) < table.num_rows / 2:
            groups = self._gathered(table)
        step = max(1, len(groups) // MAX_REQUESTS)
        for rows in groups[::step][:MAX_REQUESTS]:
            yield self._request(table.take(pa.array(rows[:MAX_ADS])))

    def write(self, path: Path) -> None:
        """Write them as JSON lines."""
        with path.open("w", encoding="utf-8") as file:
            for request in self.requests():
                file.write(json.dumps(request.to_json(), allow_nan=False) + "\n")

    def _runs(self, table: pa.Table) -> list[npt.NDArray[np.int64]]:
        changes = np.zeros(table.num_rows, np.bool_)
        for name in (GROUP, self._schema.time):
            if name is not None:
                codes = _codes(table.column(name))
                changes[1:] |= codes[1:] != codes[:-1]
        return _long_enough(np.split(np.arange(table.num_rows), np.flatnonzero(changes)))

    def _gathered(self, table: pa.Table) -> list[npt.NDArray[np.int64]]:
        codes = _codes(table.column(GROUP))
        order = np.argsort(codes, kind="stable")
        return _long_enough(np.split(order, np.flatnonzero(np.diff(codes[order])) + 1))

    def _request(self, rows: pa.Table) -> Request:
        side = {name: [f.source for f in self._schema.side(name)] for name in ("user", "item", "context")}
        user, items, context = (_json_rows(rows.select(list(dict.fromkeys(names)))) for names in side.values())
        return Request(user[0], items, context if side["context"] else {})


def _codes(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    codes: npt.NDArray[np.int64] = (
        column.combine_chunks().dictionary_encode(null_encoding="encode").indices.to_numpy().astype(np.int64)
    )
    return codes


def _long_enough(groups: list[npt.NDArray[np.int64]]) -> list[npt.NDArray[np.int64]]:
    return [rows for rows in groups if len(rows) >= MIN_ADS]


def _json_rows(table: pa.Table) -> list[dict[str, Any]]:
    return [{name: _json(value) for name, value in row.items()} for row in table.to_pylist()] or [{}]


def _json(value: Any) -> Any:
    """JSON has no infinity: the largest float is clipped to the same end of the range."""
    if isinstance(value, float) and np.isinf(value):
        return float(np.copysign(np.finfo(np.float64).max, value))
    return value
