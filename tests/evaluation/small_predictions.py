"""Predictions of a small log in which users differ in activity, for the tests of this folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 4000


def table(rows: int = ROWS, seed: int = 0) -> pa.Table:
    """Label, group, probability, weight, and columns to slice by with missing and rare values."""
    rng = np.random.default_rng(seed)
    user = rng.zipf(1.6, rows) % 300
    probability = rng.beta(1, 6, rows).round(4)
    position = rng.integers(1, 7, rows)
    missing = rng.random(rows) < 0.1
    columns: dict[str, Any] = {
        "label": rng.random(rows) < probability * 1.2 / (1 + position / 9),
        "group": np.char.add("u", user.astype(str)),
        "probability": probability,
        "weight": rng.choice([0.1, 0.3, 1.0, 2.5], rows),
        "position": position,
        "ad": rng.zipf(1.5, rows) % 500,
        "device": pa.array(rng.choice(["ios", "android", "web"], rows), mask=missing),
    }
    return pa.table(columns)


def write(path: Path, content: pa.Table | None = None, row_group_size: int = 700) -> Path:
    """A predictions file of several row groups."""
    pq.write_table(table() if content is None else content, path, row_group_size=row_group_size)
    return path
