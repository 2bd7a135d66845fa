"""The tower of the latency benchmarks: 36 features of 16, 26 of the user and 10 an ad, random weights; and requests."""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrkit.bundle import Bundle
from ctrkit.data.batch import Batch
from ctrkit.encoding import Encoding, Vocabulary
from ctrkit.export.export import Rewrites, export_bundle
from ctrkit.export.gate import HeldOutRows, Limits
from ctrkit.metrics.report import evaluate_scores
from ctrkit.nn.embedding import Embedding, TableConfig
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.request import Request
from ctrkit.schema import CategoricalFeature, Schema

LIGHT, BOOSTER = (200, 80), (720, 360, 240, 180, 90)
"""The towers of Rocket Launching's Table 5."""
USER_FEATURES, ITEM_FEATURES, DIM, IDS = 26, 10, 16, 10_000
KEY = "ad"
_NOTHING = Limits(gauc_change=1.0, pcoc_change=10.0, difference=1.0)
"""A random tower ranks nothing: what int8 changes of it is told, and kept whatever it is."""

USER = [f"u{i}" for i in range(USER_FEATURES)]
ITEM = [f"i{i}" for i in range(ITEM_FEATURES)]
SCHEMA = Schema(
    label="click",
    group="user_id",
    features=(
        *(CategoricalFeature(name=name, side="user") for name in USER),
        *(CategoricalFeature(name=name, side="item") for name in ITEM),
    ),
)


def network(widths: Sequence[int], seed: int = 0) -> Network:
    """A tower with random weights whose scores differ from ad to ad."""
    torch.manual_seed(seed)
    tables = [TableConfig(name, IDS + 2, DIM, (name,)) for name in (*USER, *ITEM)]
    embedding = Embedding(tables, init_std=0.3, seed=seed)
    return Network(embedding, MLP(embedding.out_features, widths)).eval()


def multiplications(widths: Sequence[int]) -> int:
    """Multiplications of a tower for one ad."""
    sizes = [(USER_FEATURES + ITEM_FEATURES) * DIM, *widths, 1]
    return sum(a * b for a, b in itertools.pairwise(sizes))


def encoding() -> Encoding:
    """Id k has row k + 2."""
    ids = Vocabulary(np.arange(IDS, dtype=np.int64), np.ones(IDS, np.int64))
    names = [*USER, *ITEM]
    return Encoding(SCHEMA, dict.fromkeys(names, "int"), dict.fromkeys(names, ids), {})


def request_of(rng: np.random.Generator, ads: int) -> Request:
    """Raw ids, 26 of the user and 10 an ad."""
    user = {name: int(rng.integers(IDS)) for name in USER}
    return Request(user, {name: rng.integers(IDS, size=ads) for name in ITEM})


def item_columns(num_ads: int, seed: int = 0) -> dict[str, Any]:
    """The features of the ads 0, 1, ... of the item table."""
    rng = np.random.default_rng((seed, 1))
    return {KEY: np.arange(num_ads), **{name: rng.integers(IDS, size=num_ads) for name in ITEM}}


def write_tower(
    place: Path, *, widths: Sequence[int] = LIGHT, seed: int = 0, table: int = 0, int8: bool = False
) -> Bundle:
    """A bundle of the tower.

    Args:
        place: of the bundle.
        widths: of the hidden layers.
        seed: of the weights.
        table: ads of the item table; 0 for none.
        int8: with graphs in int8.
    """
    rng = np.random.default_rng(seed)
    batches = [_batch(rng, 1000) for _ in range(8)]
    labels = np.concatenate([batch.label_B.numpy() for batch in batches])
    judged = HeldOutRows(lambda: batches, lambda p: evaluate_scores(labels, p, np.arange(len(labels)) % 200))
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as temporary:
        ads = Path(temporary) / "ads.parquet"
        if table:
            pq.write_table(pa.table(item_columns(table)), ads)
        rewrites = Rewrites(items=ads if table else None, item_key=KEY if table else None, int8=int8, limits=_NOTHING)
        return export_bundle(
            network(widths, seed),
            encoding(),
            place,
            name=place.name,
            held_out=[_batch(rng, 1000) for _ in range(4)],
            requests=[request_of(rng, 4) for _ in range(2)],
            rewrites=rewrites,
            judged=judged,
        )


def _batch(rng: np.random.Generator, rows: int) -> Batch:
    names = [*USER, *ITEM]
    sparse = KeyedJaggedTensor.from_lengths_sync(
        keys=names,
        values=torch.from_numpy(rng.integers(2, IDS + 2, len(names) * rows)),
        lengths=torch.ones(len(names) * rows, dtype=torch.int64),
    )
    labels = torch.from_numpy((rng.random(rows) < 0.3).astype(np.float32))
    nothing = torch.zeros(rows, 0)
    return Batch(sparse, nothing, labels, torch.ones(rows), torch.zeros(rows, dtype=torch.int64))
