"""A tiny bundle with known weights, and its scores computed by hand: what the scorer and bundle tests share."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrkit.bundle import MODEL, WEIGHTS, Bundle, Golden, write_bundle
from ctrkit.encoding import Buckets, Encoding, HashBuckets, Scaling, Vocabulary
from ctrkit.export.arrays import Layer, NetworkArrays, Reader
from ctrkit.export.serving_graphs import write_model
from ctrkit.export.weight_file import WeightFile
from ctrkit.raw_values import hash_strings
from ctrkit.request import Request
from ctrkit.schema import Schema, SequenceFeature, table_of

DIM = 2
ITEM_IDS = (5, 7, 900, 2**40)
AGES = ("18-24", "25-34", "35+")
BOUNDARIES = (1.0, 10.0, 100.0)
TAG_BUCKETS = 5

SCHEMA = Schema.from_mapping(
    {
        "age": {"side": "user"},
        "recent": {"side": "user", "kind": "sequence", "max_len": 3, "table": "item", "column": "recent_items"},
        "item": {"side": "item", "column": "item_id"},
        "tags": {"side": "item", "kind": "sequence", "max_len": 2, "pooling": "sum", "buckets": TAG_BUCKETS},
        "price": {"side": "item", "kind": "dense", "transform": "bucketize"},
        "ctr": {"side": "item", "kind": "dense"},
        "bid": {"side": "item", "kind": "dense", "transform": "log"},
        "hour": {"side": "context", "buckets": 24},
    },
    label="click",
    group="user_id",
)

CTR = Scaling(log=False, mean=0.25, std=0.5, low=0.0, high=1.0)
BID = Scaling(log=True, mean=1.0, std=2.0, low=0.0, high=50.0)


def make_encoding() -> Encoding:
    """The encoding of SCHEMA."""
    ages = np.sort(hash_strings(np.array(AGES, object)))
    items = np.array(ITEM_IDS, np.int64)
    return Encoding(
        schema=SCHEMA,
        raw_types={
            "age": "string", "recent": "int", "item": "int", "tags": "string",
            "price": "float", "ctr": "float", "bid": "float", "hour": "int",
        },
        tables={
            "age": Vocabulary(ages, np.ones(len(ages), np.int64)),
            "item": Vocabulary(items, np.ones(len(items), np.int64)),
            "tags": HashBuckets(TAG_BUCKETS),
            "price": Buckets(BOUNDARIES, low=0.0, high=500.0),
            "hour": HashBuckets(24),
        },
        scalings={"ctr": CTR, "bid": BID},
    )  # fmt: skip


class Weights:
    """Embedding tables [rows, DIM] and a linear layer over their concatenation and the dense features."""

    def __init__(self, seed: int = 0) -> None:
        """Draw them."""
        rng = np.random.default_rng(seed)
        self.tables = {
            name: rng.normal(size=(rows, DIM)).astype(np.float32) for name, rows in make_encoding().num_rows().items()
        }
        features = len(SCHEMA.sparse_features)
        self.linear = rng.normal(size=(features * DIM + len(SCHEMA.dense_features), 1)).astype(np.float32)
        self.bias = np.array([0.1], np.float32)


def arrays(weights: Weights) -> NetworkArrays:
    """What the exporter would make of a network with these weights."""
    first_row, start = {}, 0
    for name, table in weights.tables.items():
        first_row[name] = start
        start += len(table)
    readers, rows = {}, {}
    for i, feature in enumerate(SCHEMA.sparse_features):
        pooling = feature.pooling if isinstance(feature, SequenceFeature) else None
        readers[feature.name] = Reader(DIM, first_row[table_of(feature)], pooling)
        rows[feature.name] = slice(i * DIM, (i + 1) * DIM)
    end = len(readers) * DIM
    rows |= {feature.name: slice(end + i, end + i + 1) for i, feature in enumerate(SCHEMA.dense_features)}
    stack = np.concatenate(list(weights.tables.values()))
    return NetworkArrays(SCHEMA, {DIM: stack}, readers, (Layer(weights.linear, weights.bias),), rows)


def save_graph(directory: Path, weights: Weights) -> Path:
    """Write model.onnx after the graph contract, and its weights."""
    directory.mkdir(parents=True, exist_ok=True)
    with WeightFile(directory / WEIGHTS, inline=64) as file:
        write_model(arrays(weights), file, directory / MODEL)
    return directory


def expected_scores(
    weights: Weights, user: Mapping[str, Any], items: Sequence[Mapping[str, Any]], context: Mapping[str, Any]
) -> npt.NDArray[np.float64]:
    """Scores by hand: dictionaries and loops in float64, nothing of ctrkit but the string hash of the buckets."""
    return np.array([_score(weights, {**user, **item, **context}) for item in items])


def _score(weights: Weights, row: Mapping[str, Any]) -> float:
    tables = weights.tables
    item_row: dict[int | None, int] = {None: 0, **{key: i + 2 for i, key in enumerate(ITEM_IDS)}}
    by_hash = sorted(AGES, key=lambda s: int(hash_strings(np.array([s], object))[0]))
    age_row: dict[str | None, int] = {None: 0, **{key: i + 2 for i, key in enumerate(by_hash)}}
    recent = [tables["item"][item_row.get(key, 1)] for key in (row["recent_items"] or [])[:3]]
    tags = [tables["tags"][_bucket(tag, TAG_BUCKETS)] for tag in (row["tags"] or [])[:2]]
    price = row["price"]
    x = [
        tables["age"][age_row.get(row["age"], 1)],
        np.mean(recent, axis=0) if recent else np.zeros(DIM),
        tables["item"][item_row.get(row["item_id"], 1)],
        np.sum(tags, axis=0) if tags else np.zeros(DIM),
        tables["price"][0 if price is None else 2 + sum(price >= b for b in BOUNDARIES)],
        tables["hour"][_bucket(row["hour"], 24)],
        [0.0 if row["ctr"] is None else (min(max(row["ctr"], 0.0), 1.0) - 0.25) / 0.5],
        [0.0 if row["bid"] is None else (math.log1p(min(max(row["bid"], 0.0), 50.0)) - 1.0) / 2.0],
    ]
    logit = np.concatenate([np.asarray(part, np.float64) for part in x]) @ weights.linear[:, 0].astype(np.float64)
    return float(1.0 / (1.0 + math.exp(-(logit + float(weights.bias[0])))))


def _bucket(key: str | int | None, buckets: int) -> int:
    if key is None:
        return 0
    x = int(hash_strings(np.array([key], object))[0]) if isinstance(key, str) else key
    mask = 2**64 - 1
    x &= mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return 2 + (x ^ (x >> 31)) % buckets


USER: dict[str, Any] = {"age": "25-34", "recent_items": [900, 12345, 5, 7]}
ITEMS: list[dict[str, Any]] = [
    {"item_id": 5, "tags": ["red", "new", "cut off"], "price": 0.5, "ctr": 0.1, "bid": 3.0},
    {"item_id": 2**40, "tags": [], "price": 10.0, "ctr": 5.0, "bid": None},
    {"item_id": 6, "tags": ["blue"], "price": 900.0, "ctr": None, "bid": 70},
    {"item_id": None, "tags": None, "price": None, "ctr": -1.0, "bid": 0.0},
]
CONTEXT: dict[str, Any] = {"hour": 13}
REQUEST = Request(USER, ITEMS, CONTEXT)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The same ads column by column."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def make_bundle(directory: Path, weights: Weights | None = None, *, golden: Golden | None = None) -> Bundle:
    """Write a bundle of SCHEMA at `directory`; golden scores are those computed by hand unless given."""
    weights = weights or Weights()
    model = save_graph(directory.parent / f"{directory.name}_graph", weights)
    if golden is None:
        golden = Golden((REQUEST,), (tuple(expected_scores(weights, USER, ITEMS, CONTEXT)),))
    return write_bundle(
        directory, model=model, encoding=make_encoding(), golden=golden, name="tiny", versions={"onnx": "1"},
        multiplications=len(weights.linear), parity_max_abs_diff=1e-7, metrics={"gauc": 0.7}, recipe={"seed": 1},
    )  # fmt: skip
