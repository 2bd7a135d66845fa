"""A schema with every kind of feature, impressions that fit it, and small networks over them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrkit.builders.networks import build_embedding
from ctrkit.config.recipe import EmbeddingConfig
from ctrkit.data.batch import Batch
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.nn.tower import Tower
from ctrkit.objectives.co_training import CoTraining
from ctrkit.objectives.hint import Hint
from ctrkit.objectives.rocket_launching import Route, rocket_launching
from ctrkit.schema import Schema, SequenceFeature

FEATURES: Mapping[str, Mapping[str, Any]] = {
    "user": {"side": "user"},
    "recent": {"side": "user", "kind": "sequence", "table": "item", "max_len": 3},
    "item": {"side": "item"},
    "tags": {"side": "item", "kind": "sequence", "max_len": 2, "pooling": "sum"},
    "price": {"side": "item", "kind": "dense"},
    "bid": {"side": "item", "kind": "dense"},
}
PRIVILEGED: Mapping[str, Mapping[str, Any]] = {
    "dwell": {"side": "context", "kind": "dense", "privileged": True},  # before the others: columns are not the first
    "user": FEATURES["user"],
    "position": {"side": "context", "privileged": True},
    **{name: spec for name, spec in FEATURES.items() if name != "user"},
    "scroll": {"side": "context", "kind": "dense", "privileged": True},
}
"""The same with features that only training has, among the others."""
NUM_ROWS = {"user": 12, "item": 20, "tags": 7}
PRIVILEGED_ROWS = {"position": 5}
DIM = 4
TEACHER = "score"
"""Column of the log with another model's probability, which not every impression has."""


def schema(features: Mapping[str, Mapping[str, Any]] = FEATURES) -> Schema:
    """The schema of some features."""
    return Schema.from_mapping(features, label="click", group="user")


def embedding(
    features: Mapping[str, Mapping[str, Any]] = FEATURES,
    *,
    seed: int = 0,
    init_std: float = 0.5,
    privileged: bool = False,
    **settings: Any,
) -> Embedding:
    """Its tables; rows far from zero, so that nothing is small by accident."""
    torch.manual_seed(seed)
    tables = schema(features).tables()
    config = EmbeddingConfig(dim=DIM, init_std=init_std, **settings)
    return build_embedding(
        schema(features), config, {t: {**PRIVILEGED_ROWS, **NUM_ROWS}[t] for t in tables}, privileged=privileged
    )


def network(
    features: Mapping[str, Mapping[str, Any]] = FEATURES, hidden: Sequence[int] = (8, 4), *, seed: int = 0, **tower: Any
) -> Network:
    """Tables and one tower."""
    tables = embedding(features, seed=seed)
    return Network(tables, MLP(tables.out_features, hidden, **tower))


def rocket(
    tables: Embedding, light: Tower, booster: Tower, *, hint_weight: float = 1.0, route: Route | float = "shared"
) -> CoTraining:
    """A light tower under one booster over shared tables."""
    boosters = {"booster": Network(tables, booster)}
    return rocket_launching(Network(tables, light), boosters, hint=Hint(weight=hint_weight), route=route)


def batch(
    rows: int = 64, features: Mapping[str, Mapping[str, Any]] = FEATURES, *, seed: int = 0, take: slice = slice(None)
) -> Batch:
    """Impressions drawn from a seed, those of `take`; lists of any length from none to the longest."""
    rng = np.random.default_rng(seed)
    known, num_rows = schema(features), {**PRIVILEGED_ROWS, **NUM_ROWS}
    values: list[int] = []
    lengths: list[int] = []
    for feature in known.sparse_features:
        longest = feature.max_len if isinstance(feature, SequenceFeature) else 1
        shortest = 0 if isinstance(feature, SequenceFeature) else 1
        table = getattr(feature, "table", None) or feature.name
        lists = [rng.integers(0, num_rows[table], rng.integers(shortest, longest + 1)).tolist() for _ in range(rows)]
        values += [row for ids in lists[take] for row in ids]
        lengths += [len(ids) for ids in lists[take]]
    sparse = KeyedJaggedTensor.from_lengths_sync(
        keys=[f.name for f in known.sparse_features],
        values=torch.tensor(values, dtype=torch.int64),
        lengths=torch.tensor(lengths, dtype=torch.int64),
    )
    dense = rng.normal(size=(rows, len(known.dense_features))).astype(np.float32)[take]
    label = rng.integers(0, 2, rows).astype(np.float32)[take]
    score = np.where(rng.random(rows) < 0.2, np.nan, rng.normal(size=rows)).astype(np.float32)[take]
    return Batch(
        sparse=sparse,
        dense_BD=torch.from_numpy(dense.copy()),
        label_B=torch.from_numpy(label.copy()),
        weight_B=torch.ones(len(label)),
        origin_B=torch.zeros(len(label), dtype=torch.int64),
        teachers={TEACHER: torch.from_numpy(score.copy())},
    )
