"""Rows a second and peak memory of `prepare`, from a Parquet log on disk to a prepared one, at 10 M and 40 M rows.

    python -m benchmarks.prepare [--quick] [--out FILE] [--folder DIR]

The log is made, streamed to DIR and deleted afterwards: ten feature columns of a display-ad log (`COLUMNS`), a label, a
time that the rows are sorted and split by, and the user as the group. Ids follow Zipf's law, an eighth of them apart,
which go through the vocabulary in turn, so that a log of either size has the same ids and a long tail. Rows are drawn
one by one: unlike in a real log a user's rows do not lie together, which is the worst case for caches and compression.
One value in a hundred is missing where a column may lack any. Files of 4 M rows in row groups of 500 k, snappy.

`prepare` runs in a process of its own that never loads torch: it reads the log three times (the times to split by, the
training part to fit, all of it to encode) and writes it once. `prepare_rows_per_s` is the larger log's rows over the
seconds of the whole call; `memory_ratio` the larger log's peak resident memory over the smaller one's. The raw log has
just been written and may lie in the page cache.
"""

import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.report import arguments, emit, table
from ctrkit.config.data import DataConfig, SplitByTime
from ctrkit.data.prepare import prepare
from ctrkit.raw_values import mix
from ctrkit.schema import Schema

SIZES = (10_000_000, 40_000_000)
QUICK_SIZES = (2_000_000, 4_000_000)
ROW_GROUP, FILE_ROWS = 500_000, 4_000_000
_DAY, _DAYS = 86_400, 8
_TAIL = 8
"""One row in so many takes the next id of the vocabulary."""
_DISK_BYTES = 160
"""A row of the log and of the prepared one, with room to spare."""

Ids = NDArray[np.int64]


def _hashed(ids: Ids) -> pa.Array:
    """64-bit ids, as a hash of a cookie or an account is."""
    return pa.array(mix(ids.astype(np.uint64)).view(np.int64))


def _texts(pattern: str) -> Callable[[Ids], pa.Array]:
    """Ids as texts; each distinct one is written once, as Parquet's dictionary has it."""

    def texts(ids: Ids) -> pa.Array:
        found, index = np.unique(ids, return_inverse=True)
        mixed = mix(found.astype(np.uint64))
        dictionary = pa.array([pattern.format(i, int(m)) for i, m in zip(found.tolist(), mixed, strict=True)])
        return pa.DictionaryArray.from_arrays(index.astype(np.int32), dictionary)

    return texts


def _integers(kind: pa.DataType) -> Callable[[Ids], pa.Array]:
    return lambda ids: pa.array(ids).cast(kind)


COLUMNS: dict[str, tuple[dict[str, Any], int, Callable[[Ids], pa.Array]]] = {
    "user_id": ({"side": "user"}, 1_000_000, _hashed),
    "device_id": ({"side": "user"}, 300_000, _texts("{1:016x}{0:016x}")),
    "city": ({"side": "user"}, 2_000, _texts("City of {1:x}")),
    "ad_id": ({"side": "item"}, 500_000, _integers(pa.int64())),
    "campaign_id": ({"side": "item"}, 20_000, _integers(pa.int32())),
    "category": ({"side": "item"}, 500, _texts("Category {0} > {1:x}")),
    "site": ({"side": "context"}, 50_000, _texts("www.site-{0}.example")),
    "hour": ({"side": "context"}, 24, _integers(pa.int8())),
}
"""Columns of one id a row: how the schema declares them, ids, and how the log stores one. Two more columns are made
below: `recent_ads`, a list of 0 to 4 ads of the table of `ad_id`, and `price`, a number."""
MAY_BE_MISSING = ("city", "category", "site", "price")
SCHEMA = Schema.from_mapping(
    {name: spec for name, (spec, _, _) in COLUMNS.items()}
    | {
        "recent_ads": {"side": "user", "kind": "sequence", "table": "ad_id", "max_len": 4},
        "price": {"side": "item", "kind": "dense", "transform": "log"},
    },
    label="click",
    group="user_id",
    time="time",
)


def _draw(rng: np.random.Generator, rows: int, vocabulary: int, first: int) -> Ids:
    """Ids below `vocabulary` for the rows from `first` on: by Zipf's law with exponent 1, or the next one in turn."""
    ids: Ids = np.exp(rng.random(rows) * np.log(vocabulary + 1)).astype(np.int64) - 1
    ids[::_TAIL] = (first // _TAIL + np.arange(-(-rows // _TAIL))) % vocabulary
    return ids


def row_group(first: int, rows: int, of: int) -> pa.Table:
    """Rows `first` to `first + rows` of a log of `of` rows, the same whoever asks for them."""
    rng = np.random.default_rng(first)
    columns: dict[str, Any] = {
        "click": pa.array((rng.random(rows) < 0.05).astype(np.int8)),
        "time": pa.array(1_700_000_000 + np.arange(first, first + rows) * (_DAYS * _DAY) // of),
    }
    for name, (_, vocabulary, stored) in COLUMNS.items():
        columns[name] = stored(_draw(rng, rows, min(vocabulary, of // 10), first))
    ends = np.concatenate([[0], np.cumsum(rng.integers(0, 5, rows))]).astype(np.int32)
    ads = COLUMNS["ad_id"]
    columns["recent_ads"] = pa.ListArray.from_arrays(
        pa.array(ends), ads[2](_draw(rng, int(ends[-1]), min(ads[1], of // 10), first))
    )
    columns["price"] = pa.array(np.exp(rng.normal(size=rows)).astype(np.float32))
    for name in MAY_BE_MISSING:
        column, present = columns[name], pa.array(rng.random(rows) >= 0.01)
        columns[name] = pa.compute.if_else(present, column, pa.scalar(None, column.type))
    return pa.table(columns)


def make_log(folder: Path, rows: int) -> None:
    """Write a log of so many rows, a row group at a time."""
    folder.mkdir()
    for start in range(0, rows, FILE_ROWS):
        path, schema = folder / f"part-{start // FILE_ROWS:03d}.parquet", row_group(0, 1, rows).schema
        with pq.ParquetWriter(path, schema, store_schema=False) as file:  # texts are texts, as other systems write them
            end = min(start + FILE_ROWS, rows)
            for first in range(start, end, ROW_GROUP):
                file.write_table(row_group(first, min(ROW_GROUP, end - first), rows))


def prepare_log(log: Path, prepared: Path) -> dict[str, float]:
    """Prepare a log: seconds, and the highest resident memory that this process ever had."""
    start = time.perf_counter()
    manifest = prepare(
        DataConfig(path=str(log), split=SplitByTime(by="time")), SCHEMA, prepared, progress=False
    ).manifest
    return {
        "seconds": time.perf_counter() - start,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20),
        "rows": sum(part["rows"] for part in manifest["parts"].values()),
        "ids": sum(manifest["table_rows"].values()),
    }


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, out of a new process, so that its memory is its own and this one's stays small."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def measure(rows: int, folder: Path) -> dict[str, float]:
    """Make a log of so many rows in `folder`, prepare it, and delete both.

    Raises:
        OSError: `folder` has too little space.
    """
    free = shutil.disk_usage(folder).free
    if free < rows * _DISK_BYTES:
        raise OSError(f"{folder}: {free:,} bytes free, {rows * _DISK_BYTES:,} needed; give another --folder")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        log, prepared = Path(name) / "log", Path(name) / "prepared"
        _alone(make_log, log, rows)
        found: dict[str, float] = _alone(prepare_log, log, prepared)
        return {**found, "raw_gib": _bytes(log) / 2**30, "prepared_gib": _bytes(prepared) / 2**30}


def main() -> None:
    """Measure, print, emit."""
    parser = arguments("prepare: rows a second and peak memory at 10 M and 40 M rows.")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where 6 GB are free")
    options = parser.parse_args()
    sizes = QUICK_SIZES if options.quick else SIZES
    small, large = (measure(rows, options.folder) for rows in sizes)
    table(
        ("rows", "ids", "raw GiB", "prepared GiB", "seconds", "rows/s", "peak GiB"),
        [
            (
                f"{found['rows']:,}",
                f"{found['ids']:,}",
                *(f"{found[name]:.2f}" for name in ("raw_gib", "prepared_gib", "seconds")),
                f"{found['rows'] / found['seconds']:,.0f}",
                f"{found['peak_gib']:.3f}",
            )
            for found in (small, large)
        ],
    )
    emit(
        {
            "benchmark": "prepare",
            "quick": options.quick,
            "feature_columns": len(SCHEMA.features),
            "prepare_rows_per_s": large["rows"] / large["seconds"],
            "memory_ratio": large["peak_gib"] / small["peak_gib"],
            "small": small,
            "large": large,
        },
        options.out,
    )


if __name__ == "__main__":
    main()
