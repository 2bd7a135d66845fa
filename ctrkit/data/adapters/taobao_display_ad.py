"""Taobao display ads: 26.6 million impressions of 1.14 million users in 8 days, the domain of this toolkit.

Raw files as Alibaba publishes them on Tianchi ("Ad Display/Click Data on Taobao.com"): ``raw_sample.csv``
(impressions), ``ad_feature.csv``, ``user_profile.csv`` and, optional for its 23 GB, ``behavior_log.csv``. Without the
last the columns ``recent_categories`` and ``recent_brands`` are left out, with a warning. Ads and users that their
tables lack keep null features.

The last day (in Taobao's time zone) is the test part, the day before it valid; rows ascend in time. Impressions and
behaviours are split by user into buckets on disk, joined bucket by bucket, then sorted hour by hour: memory holds the
ad and user tables, one bucket and one hour.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa

from ctrkit.data.adapters.raw import Buckets, Ints, PartWriter, lists, lookup, preceding, raw_file, read_csv
from ctrkit.errors import UserError

RAW_FILES = ("raw_sample.csv", "ad_feature.csv", "user_profile.csv")
ORIGIN = "the Taobao display ad click data that Alibaba publishes on Tianchi"
BEHAVIOUR_FILE = "behavior_log.csv"
UTC_OFFSET = 8 * 3600
USER_BUCKETS = 64

IMPRESSION = {
    "user": pa.int64(),
    "time_stamp": pa.int64(),
    "adgroup_id": pa.int64(),
    "pid": pa.string(),
    "clk": pa.int8(),
}
AD = {
    "adgroup_id": ("ad_id", pa.int64()),
    "cate_id": ("category_id", pa.int64()),
    "campaign_id": ("campaign_id", pa.int64()),
    "customer": ("advertiser_id", pa.int64()),
    "brand": ("brand_id", pa.int64()),
    "price": ("price", pa.float64()),
}
USER = {
    "userid": ("user_id", pa.int64()),
    "cms_segid": ("segment", pa.int64()),
    "cms_group_id": ("segment_group", pa.int64()),
    "final_gender_code": ("gender", pa.int64()),
    "age_level": ("age_level", pa.int64()),
    "pvalue_level": ("spending_level", pa.int64()),
    "shopping_level": ("shopping_level", pa.int64()),
    "occupation": ("student", pa.int64()),
    "new_user_class_level": ("city_level", pa.int64()),
}
BEHAVIOUR = {"user": pa.int64(), "time_stamp": pa.int64(), "cate": pa.int64(), "brand": pa.int64()}

logger = logging.getLogger(__name__)


def convert(source: Path, target: Path, *, recent: int = 20) -> None:
    """Write the flat log; ``recent`` is how many behaviours before the impression are kept, newest first.

    Columns: user_id, segment, segment_group, gender, age_level, spending_level, shopping_level, student, city_level ·
    recent_categories, recent_brands · ad_id, category_id, campaign_id, advertiser_id, brand_id, price · placement,
    hour, weekday, timestamp · click. Raises UserError for a missing file or a malformed line.
    """
    impressions = raw_file(source, "raw_sample.csv", origin=ORIGIN)
    ads = _table(raw_file(source, "ad_feature.csv", origin=ORIGIN), AD)
    users = _table(raw_file(source, "user_profile.csv", origin=ORIGIN), USER)
    behaviours = source / BEHAVIOUR_FILE
    with (
        Buckets(target) as shown,
        Buckets(target) as done,
        Buckets(target) as hours,
        PartWriter(target, ORIGIN) as parts,
    ):
        for table in read_csv(impressions, IMPRESSION, required=IMPRESSION):
            shown.add(table, table["user"].to_numpy() % USER_BUCKETS)
        if behaviours.is_file():
            for table in read_csv(behaviours, BEHAVIOUR, required=("user", "time_stamp")):
                done.add(table, table["user"].to_numpy() % USER_BUCKETS)
        else:
            logger.warning("%s: no such file: recent_categories and recent_brands are left out", behaviours)
        for bucket in shown.filled():
            table = shown.read(bucket)
            recents = {}
            if behaviours.is_file():
                known = done.read(bucket) if bucket in done.filled() else pa.schema(BEHAVIOUR.items()).empty_table()
                recents = _recent(table, known, recent)
            hours.add(_flat(table, ads, users, recents), (table["time_stamp"].to_numpy() + UTC_OFFSET) // 3600)
        parts.write_days(hours)


def _table(path: Path, columns: dict[str, tuple[str, pa.DataType]]) -> pa.Table:
    """A whole table, its columns renamed; the first is the key."""
    types = {raw: kind for raw, (_, kind) in columns.items()}
    blocks = list(read_csv(path, types, nulls=("", "NULL"), required=list(types)[:1]))
    if not blocks:
        raise UserError(f"{path}: has a header and no line; is the file whole?")
    return pa.concat_tables(blocks).rename_columns([name for name, _ in columns.values()]).combine_chunks()


def _recent(shown: pa.Table, done: pa.Table, limit: int) -> dict[str, pa.Array]:
    """Categories and brands of each impression's last behaviours before it."""
    user, time = done["user"].to_numpy(), done["time_stamp"].to_numpy()
    order = np.lexsort((time, user))
    offsets, rows = preceding(shown["user"].to_numpy(), shown["time_stamp"].to_numpy(), user[order], time[order], limit)
    picked = pa.array(order[rows])
    return {
        "recent_categories": lists(offsets, done["cate"].combine_chunks().take(picked)),
        "recent_brands": lists(offsets, done["brand"].combine_chunks().take(picked)),
    }


def _joined(table: pa.Table, key: Ints) -> dict[str, pa.Array]:
    """The columns of ``table`` but its key, at the rows whose key is given; null where the table has no such row."""
    row = lookup(key, table.column(0).to_numpy())
    found = pa.array(row, mask=row < 0)
    return {name: table[name].combine_chunks().take(found) for name in table.column_names[1:]}


def _flat(shown: pa.Table, ads: pa.Table, users: pa.Table, recents: dict[str, pa.Array]) -> pa.Table:
    local = shown["time_stamp"].to_numpy() + UTC_OFFSET
    return pa.table(
        {
            "user_id": shown["user"],
            **_joined(users, shown["user"].to_numpy()),
            **recents,
            "ad_id": shown["adgroup_id"],
            **_joined(ads, shown["adgroup_id"].to_numpy()),
            "placement": shown["pid"],
            "hour": local // 3600 % 24,
            "weekday": (local // 86_400 + 3) % 7,  # 1970-01-01 was a Thursday; Monday is 0
            "timestamp": shown["time_stamp"],
            "click": shown["clk"],
        }
    )
