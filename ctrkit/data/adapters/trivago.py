"""trivago hotel click-outs (RecSys Challenge 2019): real slates of up to 25 offers, one of which was clicked.

Raw file as trivago publishes it: ``train.csv``. (``test.csv`` hides the clicks that the challenge asked for.) Each
click-out becomes one slate with a row an offer shown. A click-out whose hotel is not among its impressions has no label
and is left out; the number of those is logged. The last tenth of the slates in time is the test part, the tenth before
it valid. ``position`` is known only after ranking.

Rows are split by session into buckets on disk, so that memory holds one bucket, then sorted hour by hour.
"""

from __future__ import annotations

import logging
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ctrkit.data.adapters.raw import Buckets, Ints, PartWriter, lists, preceding, raw_file, read_csv
from ctrkit.errors import UserError

RAW_FILES = ("train.csv",)
ORIGIN = "the RecSys Challenge 2019 data, published by trivago"
SESSION_BUCKETS = 32
RECENT_ITEMS = 20
COLUMNS = {
    "user_id": pa.string(),
    "session_id": pa.string(),
    "timestamp": pa.int64(),
    "step": pa.int64(),
    "action_type": pa.string(),
    "reference": pa.string(),
    "platform": pa.string(),
    "city": pa.string(),
    "device": pa.string(),
    "current_filters": pa.string(),
    "impressions": pa.string(),
    "prices": pa.string(),
}
REQUIRED = ("user_id", "session_id", "timestamp", "step", "action_type")
CLICK_OUT = "clickout item"

logger = logging.getLogger(__name__)


def convert(source: Path, target: Path) -> None:
    """Write the flat log, ascending in time.

    Columns: slate_id, user_id, session_id, step, timestamp, platform, city, country, device, filters, recent_items (the
    last 20 hotels of the session before, newest first, repeats at once counted once) · item_id, price, price_rank (1 is
    the cheapest) · position (from 1) · click. Raises UserError for a missing file or a malformed line.
    """
    path = raw_file(source, "train.csv", origin=ORIGIN)
    with Buckets(target) as sessions, Buckets(target) as hours, PartWriter(target, ORIGIN) as parts:
        for table in read_csv(path, COLUMNS, required=REQUIRED):
            wanted = pc.match_substring_regex(pc.fill_null(table["reference"], ""), r"^\d+$")
            table = table.filter(wanted)
            distinct, index = _coded(table["session_id"])
            bucket = np.array([zlib.crc32(name.encode()) % SESSION_BUCKETS for name in distinct], dtype=np.int64)
            sessions.add(table, bucket[index])
        dropped, times = 0, [np.empty(0, np.int64)]
        for key in sessions.filled():
            slates, unlabelled = _slates(sessions.read(key), path)
            dropped += unlabelled
            times.append(slates["timestamp"].to_numpy())
            hours.add(slates, times[-1] // 3600)
        if dropped:
            logger.warning("%s: %d click-outs left out: their hotel is not among their impressions", path, dropped)
        _write(hours, parts, len(np.concatenate(times)))


def _coded(column: pa.ChunkedArray) -> tuple[list[str], Ints]:
    """Distinct strings of a column and each row's index among them."""
    coded = column.combine_chunks().dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.to_numpy().astype(np.int64)


def _slates(actions: pa.Table, path: Path) -> tuple[pa.Table, int]:
    """The click-outs of a bucket of sessions, one row a slate, with recent_items; and how many have no label."""
    session, step = _coded(actions["session_id"])[1], actions["step"].to_numpy()
    order = np.lexsort((step, actions["timestamp"].to_numpy(), session))
    actions = actions.take(pa.array(order))
    session, item = session[order], actions["reference"].combine_chunks().cast(pa.int64()).to_numpy()
    sequence = np.arange(len(item))
    fresh = np.ones(len(item), dtype=np.bool_)
    fresh[1:] = (session[1:] != session[:-1]) | (item[1:] != item[:-1])
    offers = pc.split_pattern(pc.fill_null(actions["impressions"], ""), "|").combine_chunks()
    prices = pc.split_pattern(pc.fill_null(actions["prices"], ""), "|").combine_chunks()
    click_out = pc.equal(actions["action_type"], CLICK_OUT).to_numpy()
    uneven = click_out & (pc.list_value_length(offers).to_numpy() != pc.list_value_length(prices).to_numpy())
    if uneven.any():
        row = actions.slice(int(np.flatnonzero(uneven)[0]), 1).to_pylist()[0]
        raise UserError(
            f"{path}: session {row['session_id']}, step {row['step']}: impressions and prices differ in number"
        )
    shown = offers.values.to_pandas().to_numpy() == np.repeat(actions["reference"].to_numpy(), np.diff(offers.offsets))
    labelled = click_out & (np.add.reduceat(shown, offers.offsets.to_numpy()[:-1]) > 0)
    query = np.flatnonzero(labelled)
    # An event's time is its place in the bucket: sorted by session, time and step.
    offsets, rows = preceding(session[query], sequence[query], session[fresh], sequence[fresh], RECENT_ITEMS)
    picked = pa.array(query)
    slates = actions.drop_columns(["action_type", "impressions", "prices"]).take(picked)
    slates = slates.append_column("recent_items", lists(offsets, pa.array(item[fresh][rows])))
    slates = slates.append_column("offers", offers.take(picked)).append_column("prices", prices.take(picked))
    return slates, int((click_out & ~labelled).sum())


def _write(hours: Buckets, parts: PartWriter, slates: int) -> None:
    """Explode the slates hour by hour in order of time, and cut the parts at 80 and 90 % of them."""
    cuts, first = (slates * 8 // 10, slates * 9 // 10), 0
    for hour in hours.filled():
        table = hours.read(hour)
        table = table.sort_by([("timestamp", "ascending"), ("user_id", "ascending"), ("step", "ascending")])
        number = first + np.arange(table.num_rows)
        table = table.append_column("slate_id", pa.array(number))
        first += table.num_rows
        for part, low, high in zip(("train", "valid", "test"), (0, *cuts), (*cuts, slates), strict=True):
            rows = table.filter(pa.array((number >= low) & (number < high)))
            if rows.num_rows:
                parts.write(part, _exploded(rows))


def _exploded(slates: pa.Table) -> pa.Table:
    """One row an offer."""
    offers, prices = slates["offers"].combine_chunks(), slates["prices"].combine_chunks()
    size = pc.list_value_length(offers).to_numpy()
    slate = np.repeat(np.arange(len(size)), size)
    position = np.arange(len(slate)) - np.repeat(np.cumsum(size) - size, size)
    price = prices.flatten().cast(pa.int64()).to_numpy()
    order = np.lexsort((position, price, slate))
    rank = np.empty_like(position)
    rank[order] = position
    item = offers.flatten().cast(pa.int64())
    rows = slates.take(pa.array(slate))
    filters = pc.split_pattern(pc.fill_null(rows["current_filters"], ""), "|")
    return pa.table(
        {
            **{name: rows[name] for name in ("slate_id", "user_id", "session_id")},
            "step": rows["step"].cast(pa.int16()),
            **{name: rows[name] for name in ("timestamp", "platform", "city")},
            "country": pc.replace_substring_regex(rows["city"], r"^.*, ", ""),
            "device": rows["device"],
            "filters": _without_empty(filters),
            "recent_items": rows["recent_items"],
            "item_id": item,
            "price": pa.array(price, pa.int32()),
            "price_rank": pa.array(rank + 1, pa.int16()),
            "position": pa.array(position + 1, pa.int16()),
            "click": pc.equal(item, rows["reference"].cast(pa.int64())).cast(pa.int8()),
        }
    )


def _without_empty(column: pa.ChunkedArray) -> pa.ListArray:
    """Lists of strings without their empty ones: no filter is an empty list."""
    column = column.combine_chunks()
    kept: npt.NDArray[np.bool_] = pc.not_equal(column.flatten(), "").to_numpy(zero_copy_only=False)
    total = np.concatenate([[0], np.cumsum(kept)])
    return lists(total[column.offsets.to_numpy() - column.offsets[0].as_py()], column.flatten().filter(pa.array(kept)))
