"""A small log with every kind of column, for the tests of this folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ctrkit.config.data import DataConfig
from ctrkit.schema import Schema

FEATURES: dict[str, dict[str, Any]] = {
    "user_id": {"side": "user"},
    "city": {"side": "user", "min_count": 2},
    "recent_items": {"side": "user", "kind": "sequence", "table": "item_id", "max_len": 3},
    "item_id": {"side": "item"},
    "campaign": {"side": "item", "buckets": 7},
    "price": {"side": "item", "kind": "dense"},
    "price_log": {"side": "item", "kind": "dense", "transform": "log", "column": "price"},
    "price_bucket": {"side": "item", "kind": "dense", "transform": "bucketize", "num_buckets": 4, "column": "price"},
    "is_app": {"side": "context"},
}


def schema(features: dict[str, dict[str, Any]] | None = None, **columns: Any) -> Schema:
    """A schema over the columns of `table`."""
    return Schema.from_mapping(FEATURES if features is None else features, label="click", group="user_id", **columns)


def table(rows: int = 300, seed: int = 0) -> pa.Table:
    """Rows in the order of `time`, with missing values wherever they may be."""
    rng = np.random.default_rng(seed)
    missing = rng.random(rows) < 0.1
    lengths = rng.integers(0, 6, rows)
    items = rng.integers(0, 40, rows)
    items[rows * 4 // 5 :: 7] += 100  # of the last fifth alone: unseen if the beginning trains
    lists = [None if missing[i] else [*rng.integers(0, 40, n).tolist()] for i, n in enumerate(lengths)]
    cities = np.array(["Kyōto", "Oslo", "Lima", "Σπάρτη", ""], dtype=object)[rng.integers(0, 5, rows)]
    return pa.table(
        {
            "click": pa.array(rng.integers(0, 2, rows), pa.int8()),
            "user_id": pa.array([f"u{i // 5 % 12}" for i in range(rows)]),
            "city": pa.array(cities, mask=rng.random(rows) < 0.1),
            "recent_items": pa.array(lists, pa.list_(pa.int64())),
            "item_id": pa.array(items, mask=rng.random(rows) < 0.1),
            "campaign": pa.array(rng.integers(-5, 5, rows), pa.int32()),
            "price": pa.array(np.exp(rng.normal(size=rows)), mask=missing),
            "is_app": pa.array(rng.random(rows) < 0.5),
            "time": pa.array(1_700_000_000 + np.arange(rows) // 5 * 60),
            "day": pa.array(np.arange(rows) * 6 // rows),
            "importance": pa.array(rng.random(rows) + 0.5),
            "truth": pa.array(rng.random(rows)),
        }
    )


def write_parts(folder: Path, log: pa.Table | None = None) -> Path:
    """The log as train, valid and test files: 60, 20 and 20 % of it."""
    log = table() if log is None else log
    folder.mkdir(parents=True, exist_ok=True)
    cuts = [0, log.num_rows * 3 // 5, log.num_rows * 4 // 5, log.num_rows]
    for part, start, end in zip(("train", "valid", "test"), cuts, cuts[1:], strict=False):
        pq.write_table(log.slice(start, end - start), folder / f"{part}.parquet", row_group_size=50)
    return folder


def data(path: Path | str, **settings: Any) -> DataConfig:
    """[data] of a recipe."""
    return DataConfig.model_validate({"path": str(path), **settings})
