"""MovieLens-1M as a click log: one rating an impression, a click is a rating of 4 or 5.

Raw files as GroupLens publishes them: ``users.dat``, ``movies.dat``, ``ratings.dat`` (``::`` between fields, Latin-1).
The column ``rating`` stays for analysis: it gives the label away and is never a feature.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctrkit.data.adapters.raw import PartWriter, lookup, raw_file
from ctrkit.errors import UserError

RAW_FILES = ("users.dat", "movies.dat", "ratings.dat")
ORIGIN = "MovieLens-1M, published by GroupLens"
CLICK_RATING = 4


def convert(source: Path, target: Path, *, split: str = "random", seed: int = 0) -> None:
    """Write the flat log; 72 / 8 / 20 % of the ratings are train, valid and test.

    ``split="random"`` draws them by ``seed``; ``split="time"`` cuts by time and adds the column ``timestamp``. Columns:
    user_id, gender, age, occupation, zip · item_id, year, genres · rating, click. Raises UserError for a missing file,
    a malformed line, or a rating of an unknown user or movie.
    """
    if split not in ("random", "time"):
        raise UserError(f"movielens_1m: split={split!r}; it is 'random' or 'time'")
    users, movies = _users(source), _movies(source)
    path = raw_file(source, "ratings.dat", origin=ORIGIN)
    rating = _read(path, {"user_id": pa.int64(), "item_id": pa.int64(), "rating": pa.int8(), "timestamp": pa.int64()})
    columns = {"user_id": rating["user_id"]}
    for key, table in (("user_id", users), ("item_id", movies)):
        row = lookup(rating[key].to_numpy(), table[key].to_numpy())
        if (row < 0).any():
            line = int(np.flatnonzero(row < 0)[0]) + 1
            raise UserError(f"{path}: line {line}: {key} {rating[key][line - 1]} is not in users.dat or movies.dat")
        columns |= {name: table[name].combine_chunks().take(pa.array(row)) for name in table.column_names}
    columns["rating"] = rating["rating"]
    if split == "time":
        columns["timestamp"] = rating["timestamp"]
    columns["click"] = pc.greater_equal(rating["rating"], CLICK_RATING).cast(pa.int8())
    log = pa.table(columns)
    rng = np.random.default_rng(seed)
    order = (
        rng.permutation(log.num_rows)
        if split == "random"
        else np.argsort(rating["timestamp"].to_numpy(), kind="stable")
    )
    train, valid = log.num_rows * 72 // 100, log.num_rows * 80 // 100
    with PartWriter(target, ORIGIN) as parts:
        parts.write("train", log.take(pa.array(order[:train])))
        parts.write("valid", log.take(pa.array(order[train:valid])))
        parts.write("test", log.take(pa.array(order[valid:])))


def _read(path: Path, types: dict[str, pa.DataType]) -> pa.Table:
    """A ``::``-separated file without a header as a table."""
    lines = path.read_text(encoding="latin-1").split("\n")
    rows = [line.rstrip("\r").split("::") for line in (lines[:-1] if lines[-1] == "" else lines)]
    for number, row in enumerate(rows, 1):
        if len(row) != len(types):
            raise UserError(
                f"{path}: line {number}: {len(row)} fields where {len(types)} belong: {lines[number - 1][:80]!r}; "
                "mend or remove that line"
            )
    columns = {}
    for place, (name, kind) in enumerate(types.items()):
        text = [row[place] for row in rows]
        try:
            columns[name] = pa.array(text, pa.string()).cast(kind)
        except pa.ArrowInvalid as error:
            number, value = next((number, value) for number, value in enumerate(text, 1) if not _fits(value, kind))
            raise UserError(f"{path}: line {number}: {name} is {value!r}; expected {kind}") from error
    return pa.table(columns)


def _fits(value: str, kind: pa.DataType) -> bool:
    try:
        pa.scalar(value).cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _users(source: Path) -> pa.Table:
    return _read(
        raw_file(source, "users.dat", origin=ORIGIN),
        {"user_id": pa.int64(), "gender": pa.string(), "age": pa.int16(), "occupation": pa.int16(), "zip": pa.string()},
    )


def _movies(source: Path) -> pa.Table:
    """item_id, year (from the end of the title, null where there is none) and genres."""
    path = raw_file(source, "movies.dat", origin=ORIGIN)
    movies = _read(path, {"item_id": pa.int64(), "title": pa.string(), "genres": pa.string()})
    year = pc.extract_regex(movies["title"], r"\((?P<year>\d{4})\)\s*$")
    return pa.table(
        {
            "item_id": movies["item_id"],
            "year": pc.struct_field(year, "year").cast(pa.int32()),
            "genres": pc.split_pattern(movies["genres"], "|"),
        }
    )
