"""Networks of every kind that exports, with random weights, and random requests for them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrkit.builders.networks import attended_lists, build_embedding
from ctrkit.config.recipe import EmbeddingConfig
from ctrkit.data.batch import Batch
from ctrkit.encoding import Buckets, Encoding, HashBuckets, Scaling, Vocabulary
from ctrkit.graph import SIDES, Feeds, side_features
from ctrkit.nn.dcn_v2 import DCNv2
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.nn.target_attention import TargetAttention
from ctrkit.objectives.mutual_learning import mutual_learning
from ctrkit.objectives.rocket_launching import rocket_launching
from ctrkit.request import Request
from ctrkit.schema import Schema, SequenceFeature
from ctrkit.tables import Table

USERS, ITEMS, TAGS, HOURS, KEY = 500, 3000, 16, 24, "ad"
IDS: Mapping[str, Any] = {"user": {"side": "user"}, "item": {"side": "item"}}
EVERY: Mapping[str, Any] = {
    "user": {"side": "user"},
    "recent": {"side": "user", "kind": "sequence", "table": "item", "max_len": 5},
    "age": {"side": "user", "kind": "dense"},
    "item": {"side": "item"},
    "tags": {"side": "item", "kind": "sequence", "max_len": 3, "pooling": "sum", "buckets": TAGS},
    "price": {"side": "item", "kind": "dense", "transform": "bucketize"},
    "bid": {"side": "item", "kind": "dense", "transform": "log"},
    "hour": {"side": "context", "buckets": HOURS},
    "position": {"side": "context", "buckets": 8, "privileged": True},
}
_RAW: Mapping[str, Any] = {
    "user": "int", "recent": "int", "age": "float", "item": "int", "tags": "string", "price": "float", "bid": "float",
    "hour": "int", "position": "int",
}  # fmt: skip


def _schema(features: Mapping[str, Any]) -> Schema:
    return Schema.from_mapping(features, label="click", group="user")


def encoding(features: Mapping[str, Any]) -> Encoding:
    """Users and items 0, 1, ... are known; the privileged features are left out."""
    schema = _schema(features)
    tables: dict[str, Table] = {
        "user": Vocabulary(np.arange(USERS), np.ones(USERS, np.int64)),
        "item": Vocabulary(np.arange(ITEMS), np.ones(ITEMS, np.int64)),
        "tags": HashBuckets(TAGS), "price": Buckets((1.0, 5.0, 20.0), low=0.0, high=100.0), "hour": HashBuckets(HOURS),
        "position": HashBuckets(8),
    }  # fmt: skip
    scalings = {
        "age": Scaling(log=False, mean=40.0, std=15.0, low=0.0, high=100.0),
        "bid": Scaling(log=True, mean=1.0, std=2.0, low=0.0, high=50.0),
    }
    return Encoding(
        schema,
        {name: _RAW[name] for name in features},
        {name: table for name, table in tables.items() if name in schema.tables()},
        {name: scaling for name, scaling in scalings.items() if name in features},
    ).serving()


def _tables(features: Mapping[str, Any], *, privileged: bool = False) -> Embedding:
    num_rows = {"user": USERS + 2, "item": ITEMS + 2, "tags": TAGS + 2, "price": 6, "hour": HOURS + 2, "position": 10}
    return build_embedding(_schema(features), EmbeddingConfig(dim=8, init_std=0.4), num_rows, privileged=privileged)


def _plain() -> Network:
    tables = _tables(IDS)
    return Network(tables, MLP(tables.out_features, (200, 80)))


def _every_feature() -> Network:
    tables = _tables(EVERY)
    return Network(tables, MLP(tables.out_features, (64, 32), batch_norm=True, dropout=0.2, activation="prelu"))


def _rocket() -> Network:
    """The light network beside a booster that sees a feature which does not exist where it serves."""
    tables, privileged = _tables(EVERY), _tables(EVERY, privileged=True)
    light = Network(tables, MLP(tables.out_features, (64, 32)))
    wide = MLP(tables.out_features + privileged.out_features, (128, 64))
    return rocket_launching(light, {"booster": Network(tables, wide, privileged)}).inference_model()


def _peer() -> Network:
    peers = {}
    for name in ("one", "two"):
        tables = _tables(EVERY)
        peers[name] = Network(tables, MLP(tables.out_features, (64, 32), activation="leaky_relu"))
    return mutual_learning(peers).inference_model()


def _crosses() -> Network:
    tables = _tables(EVERY)
    return Network(tables, DCNv2(tables.out_features, (64, 32), cross_layers=3, batch_norm=True))


def _attention() -> Network:
    """The ad looks at the user's recent ads."""
    tables = _tables(EVERY)
    attended = attended_lists(_schema(EVERY), tables)
    return Network(tables, TargetAttention(tables.out_features, (64, 32), attended, batch_norm=True))


KINDS: Mapping[str, tuple[Mapping[str, Any], Callable[[], Network]]] = {
    "plain": (IDS, _plain),
    "every_feature": (EVERY, _every_feature),
    "rocket": (EVERY, _rocket),
    "peer": (EVERY, _peer),
    "dcn_v2": (EVERY, _crosses),
    "target_attention": (EVERY, _attention),
}


def network(kind: str, seed: int = 0) -> Network:
    """A network whose every weight and statistic is other than at the start."""
    torch.manual_seed(seed)
    made = KINDS[kind][1]()
    with torch.no_grad():
        for name, value in (*made.tower.named_parameters(), *made.tower.named_buffers()):
            if "running_var" in name or ("weight" in name and value.dim() == 1):  # batch norm's, PReLU's
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point():
                value.normal_(0.0, 0.3 if value.dim() < 2 else value.shape[-1] ** -0.5)
    return made.eval()


def ads(features: Mapping[str, Any], rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    """Raw ads, some values of them missing or never seen."""
    found = []
    for _ in range(count):
        item: dict[str, Any] = {"item": None if rng.random() < 0.02 else int(rng.integers(ITEMS + 100))}
        if "tags" in features:
            item["tags"] = [f"t{tag}" for tag in rng.integers(40, size=rng.integers(4))]
            item["price"] = None if rng.random() < 0.02 else float(np.round(rng.exponential(10.0), 3))
            item["bid"] = float(np.round(rng.exponential(2.0), 3))
        found.append(item)
    return found


def request(features: Mapping[str, Any], rng: np.random.Generator, items: Sequence[dict[str, Any]]) -> Request:
    """Of a random user and these ads."""
    user: dict[str, Any] = {"user": int(rng.integers(USERS + 50))}
    if "recent" in features:
        user["recent"] = rng.integers(ITEMS + 100, size=rng.integers(7)).tolist()
        user["age"] = None if rng.random() < 0.05 else float(rng.integers(10, 90))
    return Request(user, items, {"hour": int(rng.integers(24))} if "hour" in features else {})


def batch_of(feeds: Sequence[Feeds], schema: Schema) -> Batch:
    """Requests that are encoded as one batch of impressions, as training has them."""
    rows = [max(map(len, one.values())) for one in feeds]
    joined = {
        name: np.concatenate([np.repeat(f[name], n if len(f[name]) < n else 1, axis=0) for f, n in zip(feeds, rows)])  # noqa: B905
        for name in feeds[0]
    }
    column = {name: (f"ids_{side}", i) for side in SIDES for i, name in enumerate(side_features(schema, side).single)}
    dense = {name: (f"dense_{side}", i) for side in SIDES for i, name in enumerate(side_features(schema, side).dense)}
    values, lengths = [], []
    for feature in schema.sparse_features:
        if isinstance(feature, SequenceFeature):
            ids_NL, length_N = joined[f"{feature.name}_ids"], joined[f"{feature.name}_length"]
            values.append(ids_NL[np.arange(ids_NL.shape[1]) < length_N[:, None]])
            lengths.append(length_N)
        else:
            tensor, i = column[feature.name]
            values.append(joined[tensor][:, i])
            lengths.append(np.ones(sum(rows), np.int64))
    count = sum(rows)
    numbers = [joined[tensor][:, i] for tensor, i in (dense[f.name] for f in schema.dense_features)]
    return Batch(
        sparse=KeyedJaggedTensor.from_lengths_sync(
            keys=[feature.name for feature in schema.sparse_features],
            values=torch.from_numpy(np.concatenate(values)),
            lengths=torch.from_numpy(np.concatenate(lengths)),
        ),
        dense_BD=torch.from_numpy(np.stack(numbers, axis=1)) if numbers else torch.zeros(count, 0),
        label_B=torch.zeros(count),
        weight_B=torch.ones(count),
        origin_B=torch.zeros(count, dtype=torch.int64),
    )
