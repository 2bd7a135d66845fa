"""Avazu mobile ad clicks: 40 million impressions of 10 days in October 2014.

Raw file as Avazu published it for its Kaggle contest: ``train.gz`` (or unpacked: ``train.csv``, ``train``). There is no
user id. ``user_id`` is a proxy: ``device_id``, or ``device_ip`` and ``device_model`` together where the id is the
placeholder ``a99f214a`` (four rows in five); GAUC by it is GAUC per device as far as the log tells devices apart. The
last day is the test part, the day before it valid. The column ``id`` is left out: it numbers impressions.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctrkit.data.adapters.raw import Buckets, PartWriter, raw_file, read_csv
from ctrkit.errors import UserError

RAW_FILES = ("train*",)  # train.gz, or unpacked
ORIGIN = "the Avazu click-through rate data, published by Avazu on Kaggle"
NO_DEVICE_ID = "a99f214a"
SITE_AND_APP = ("site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category")
DEVICE = ("device_id", "device_ip", "device_model")
NUMBERED = ("C1", "banner_pos", "device_type", "device_conn_type", *(f"C{number}" for number in range(14, 22)))
COLUMNS = {
    "click": pa.int8(),
    "hour": pa.int64(),
    **dict.fromkeys((*SITE_AND_APP, *DEVICE), pa.string()),
    **dict.fromkeys(NUMBERED, pa.int64()),
}


def convert(source: Path, target: Path) -> None:
    """Write the flat log, ascending in time.

    Columns: user_id (the proxy), device_*, site_*, app_*, C1, banner_pos, C14 to C21 as they are · hour (of the day),
    weekday (Monday is 0), timestamp · click. Raises UserError for a missing file or a malformed line.
    """
    path = raw_file(source, "train.gz", "train.csv", "train", origin=ORIGIN)
    with Buckets(target) as hours, PartWriter(target, ORIGIN) as parts:
        for table in read_csv(path, COLUMNS, required=("click", "hour", *DEVICE)):
            distinct, index = np.unique(table["hour"].to_numpy(), return_inverse=True)
            timestamp = np.array([_timestamp(path, hour) for hour in distinct.tolist()], dtype=np.int64)[index]
            hours.add(_flat(table, timestamp), timestamp // 3600)
        parts.write_days(hours)


def _timestamp(path: Path, hour: int) -> int:
    """Seconds since 1970 of an hour written as YYMMDDHH."""
    try:
        return int(datetime.strptime(f"{hour:08d}", "%y%m%d%H").replace(tzinfo=UTC).timestamp())
    except ValueError as error:
        raise UserError(f"{path}: column hour: {hour} is not of the form YYMMDDHH; mend or remove that line") from error


def _flat(table: pa.Table, timestamp: np.ndarray[tuple[int], np.dtype[np.int64]]) -> pa.Table:
    address = pc.binary_join_element_wise(table["device_ip"], table["device_model"], "/")
    return pa.table(
        {
            "user_id": pc.if_else(pc.equal(table["device_id"], NO_DEVICE_ID), address, table["device_id"]),
            **{name: table[name] for name in (*DEVICE, *SITE_AND_APP, *NUMBERED)},
            "hour": timestamp // 3600 % 24,
            "weekday": (timestamp // 86_400 + 3) % 7,  # 1970-01-01 was a Thursday
            "timestamp": timestamp,
            "click": table["click"],
        }
    )
