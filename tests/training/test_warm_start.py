"""What is known is kept where it is now, what is new stays as it was drawn, and both are told."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrkit.builders.networks import build_embedding
from ctrkit.config.recipe import EmbeddingConfig
from ctrkit.data.batch import Batch
from ctrkit.encoding import Buckets, Encoding, HashBuckets, Scaling, Table, Vocabulary
from ctrkit.errors import UserError
from ctrkit.nn.embedding import TablePart
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.objectives.objective import Objective
from ctrkit.objectives.pointwise import Pointwise
from ctrkit.raw_values import RawType, typed_array
from ctrkit.schema import Schema
from ctrkit.training import state, stored_tensors
from ctrkit.training.checkpoints import Checkpoints
from ctrkit.training.warm_start import Source, TableStart, start_identity, tower_inputs, warm_start
from tests import networks

FEATURES: dict[str, dict[str, Any]] = {
    "user": {"side": "user"},
    "recent": {"side": "user", "kind": "sequence", "table": "item", "max_len": 3},
    "item": {"side": "item"},
    "word": {"side": "item", "buckets": 5},
    "price": {"side": "item", "kind": "dense"},
    "age": {"side": "user", "kind": "dense", "transform": "bucketize"},
    "bid": {"side": "item", "kind": "dense", "transform": "log"},
}
TYPES: dict[str, RawType] = {"user": "string", "price": "float", "age": "float", "bid": "float"}


def vocabulary(*ids: int) -> Vocabulary:
    return Vocabulary(np.array(sorted(ids), np.int64), np.ones(len(ids), np.int64))


def tables(**changed: Table) -> dict[str, Table]:
    return {
        "user": vocabulary(-7, 3, 10**15),
        "item": vocabulary(10, 20, 30, 40),
        "word": HashBuckets(5),
        "age": Buckets((20.0, 30.0), 10.0, 70.0),
        **changed,
    }


SCALINGS = {"price": Scaling(False, 2.0, 0.5, -100.0, 100.0), "bid": Scaling(True, 1.0, 2.0, -100.0, 100.0)}


def encoding(
    features: Mapping[str, Mapping[str, Any]] = FEATURES,
    known: Mapping[str, Table] | None = None,
    scalings: Mapping[str, Scaling] = SCALINGS,
    types: Mapping[str, RawType] = TYPES,
) -> Encoding:
    schema = Schema.from_mapping(features, label="click", group="user_id")
    raw_types: dict[str, RawType] = dict.fromkeys(features, "int")
    return Encoding(
        schema,
        {**raw_types, **{name: kind for name, kind in {**TYPES, **types}.items() if name in features}},
        {name: table for name, table in (known or tables()).items() if name in schema.tables()},
        {feature.name: scalings[feature.name] for feature in schema.dense_features},
    )


def objective(
    encoded: Encoding,
    seed: int,
    *,
    hidden: Sequence[int] = (6, 3),
    role: str | None = None,
    tower: Mapping[str, Any] | None = None,
    **config: Any,
) -> Objective:
    """A rocket, or one tower; whatever could be zero by accident is not."""
    torch.manual_seed(seed)
    embedding = build_embedding(
        encoded.schema, EmbeddingConfig(**{"dim": 4, "init_std": 0.5, **config}), encoded.num_rows()
    )

    def mlp(widths: Sequence[int]) -> MLP:
        return MLP(embedding.out_features, widths, activation="tanh", batch_norm=True, **(tower or {}))

    built: Objective
    if role == "tower":
        built = Pointwise(Network(embedding, mlp(hidden)))
    else:
        built = networks.rocket(embedding, mlp(hidden), mlp((8, 6)))
    with torch.no_grad():
        for name, value in built.towers.state_dict().items():
            if value.ndim == 1 and "var" not in name:
                value.uniform_(0.5, 1.5)
    return built.eval()


def finished(directory: Path, built: Objective, encoded: Encoding) -> Path:
    """What a finished training leaves."""
    encoded.save(directory / "encoding", counts=False)
    trained: dict[str, Any] = {**state.weights(built)}
    trained["tables.0.item.moments"] = torch.ones(encoded.tables["item"].num_rows, 8)
    trained["towers.light.layers.0.weight.exp_avg"] = torch.ones(3)
    Checkpoints(directory / "checkpoints").save(7, trained, {}, best=True)
    result = {"fingerprint": "f", "weights": "w", "inputs": tower_inputs(built, encoded.schema)}
    (directory / "result.json").write_text(json.dumps(result))
    return directory


def started(directory: Path, new: Encoding, seed: int = 2, **settings: Any) -> tuple[Objective, dict[str, Any], Any]:
    """An objective after a warm start, its weights before that, and the report."""
    built = objective(new, seed, **settings)
    before = {name: tensor.clone() for name, tensor in state.weights(built).items()}
    return built, before, warm_start(built, new, Source.open(directory))


def rows(built: Objective, table: str) -> Tensor:
    return built.tables()[0].table_weights()[table]


def batch(encoded: Encoding, impressions: Sequence[Mapping[str, Any]]) -> Batch:
    """Raw values, encoded."""
    ids: list[np.ndarray[Any, Any]] = []
    lengths: list[int] = []
    for feature in encoded.schema.sparse_features:
        values = [each[feature.name] for each in impressions]
        if feature.name == "recent":
            flat, length, _ = encoded.encode_sequence("recent", values)
            lists = np.split(flat, np.cumsum(length)[:-1])
        else:
            typed = typed_array(values, encoded.raw_types[feature.name], feature.name)
            lists = [row.reshape(1) for row in encoded.encode_sparse(feature.name, *typed)[0]]
        ids += lists
        lengths += [len(row_L) for row_L in lists]
    dense = [
        encoded.encode_dense(f.name, *typed_array([each[f.name] for each in impressions], "float", f.name))[0]
        for f in encoded.schema.dense_features
    ]
    count = len(impressions)
    return Batch(
        sparse=KeyedJaggedTensor.from_lengths_sync(
            keys=[f.name for f in encoded.schema.sparse_features],
            values=torch.from_numpy(np.concatenate(ids)),
            lengths=torch.tensor(lengths),
        ),
        dense_BD=torch.from_numpy(np.stack(dense, axis=1)) if dense else torch.zeros(count, 0),
        label_B=torch.zeros(count),
        weight_B=torch.ones(count),
        origin_B=torch.zeros(count, dtype=torch.int64),
    )


def test_rows_follow_their_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_tensors, "CHUNK_BYTES", 48)  # three rows
    first = encoding()
    old = objective(first, 1)
    new = encoding(known=tables(item=vocabulary(5, 10, 25, 30, 40, 50), user=vocabulary(3)))
    built, before, report = started(finished(tmp_path, old, first), new)
    was, now, drawn = rows(old, "item"), rows(built, "item"), before["tables.0.item.weight"]
    # rows: 0 missing, 1 unseen; then 5, 10, 25, 30, 40, 50 of 10, 20, 30, 40
    assert torch.equal(now, torch.stack([was[0], was[1], drawn[2], was[2], drawn[4], was[4], was[5], drawn[7]]))
    assert torch.equal(rows(built, "user"), rows(old, "user")[[0, 1, 3]])
    assert torch.equal(rows(built, "word"), rows(old, "word"))
    assert torch.equal(rows(built, "age"), rows(old, "age"))
    assert report.tables == [
        TableStart("user", 1, 0, 2),
        TableStart("item", 3, 3, 1),
        TableStart("word", 5, 0, 0),
        TableStart("age", 3, 0, 0),
    ]
    assert report.added == report.removed == report.rescaled == report.fresh_towers == []


def test_each_part_of_a_table_gets_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encoding()
    place = finished(tmp_path, objective(first, 1), first)
    new = encoding(known=tables(item=vocabulary(5, 10, 25, 30, 40, 50)))
    whole, _, expected = started(place, new)
    built = objective(new, 2)
    embedding, drawn = built.tables()[0], rows(built, "item").clone()
    low, high = nn.Parameter(torch.cat([torch.ones(2, 4), drawn[:3]])), nn.Parameter(drawn[3:])
    parts = [part for part in embedding.parts() if part.table != "item"]
    parts += [TablePart("item", 8, 4, 0, 3, low, 2), TablePart("item", 8, 4, 3, 5, high, 0)]
    monkeypatch.setattr(embedding, "parts", lambda: parts)
    report = warm_start(built, new, Source.open(place))
    assert torch.equal(torch.cat([low[2:], high]), rows(whole, "item"))
    assert (low[:2] == 1).all()
    assert report == expected


def test_the_same_log_gives_the_same_weights(tmp_path: Path) -> None:
    known = encoding()
    old = objective(known, 1)
    built, before, _ = started(finished(tmp_path, old, known), known)
    now, was = state.weights(built), state.weights(old)
    assert now.keys() == was.keys()
    assert all(torch.equal(now[name], was[name]) for name in was)
    assert not any(torch.equal(before[name], was[name]) for name in was if was[name].ndim == 2)


@pytest.mark.parametrize(
    ("changed", "types", "why"),
    [
        ({"word": HashBuckets(6)}, {}, "hashed or bucketized otherwise"),
        ({"word": vocabulary(1, 2, 3)}, {}, "hashed or bucketized otherwise"),
        ({"age": Buckets((20.0, 31.0), 10.0, 70.0)}, {}, "hashed or bucketized otherwise"),
        ({"item": HashBuckets(4)}, {}, "hashed or bucketized otherwise"),
        ({}, {"word": "string"}, "its values were of type int"),
        ({}, {"recent": "string", "item": "string"}, "its values were of type int"),
    ],
)
def test_a_table_that_is_encoded_otherwise_stays_as_it_was_drawn(
    tmp_path: Path, changed: dict[str, Table], types: dict[str, RawType], why: str
) -> None:
    first = encoding()
    new = encoding(known=tables(**changed), types=types)
    built, before, report = started(finished(tmp_path, objective(first, 1), first), new)
    name = next(iter(changed), None) or ("word" if "word" in types else "item")
    assert torch.equal(rows(built, name), before[f"tables.0.{name}.weight"])
    told = next(table for table in report.tables if table.table == name)
    ids = new.tables[name].num_rows - 2, first.tables[name].num_rows - 2
    assert told == TableStart(name, 0, ids[0], ids[1], why)
    assert all(table.why_fresh is None for table in report.tables if table != told)


def test_buckets_with_the_same_boundaries_are_the_same_though_the_range_is_not(tmp_path: Path) -> None:
    first = encoding()
    old = objective(first, 1)
    new = encoding(known=tables(age=Buckets((20.0, 30.0), 5.0, 90.0)))
    built, _, _ = started(finished(tmp_path, old, first), new)
    assert torch.equal(rows(built, "age"), rows(old, "age"))


def test_columns_follow_their_features(tmp_path: Path) -> None:
    first = encoding()
    old = objective(first, 1)
    features = {
        "city": {"side": "user"},
        **{name: FEATURES[name] for name in ("bid", "item", "word", "recent", "age")},
        "ctr": {"side": "item", "kind": "dense"},
        "user": {**FEATURES["user"], "table": "item"},
    }
    scalings = {**SCALINGS, "ctr": Scaling(False, 0.0, 1.0, 0.0, 1.0)}
    new = encoding(features, tables(city=vocabulary(1, 2)), scalings, {"user": "int"})
    built, before, report = started(finished(tmp_path, old, first), new)
    for role in ("light", "booster"):
        was, now = old.towers[role].state_dict(), built.towers[role].state_dict()
        old_at, at = tower_inputs(old, first.schema)[role], tower_inputs(built, new.schema)[role]
        assert at != old_at
        drawn = before[f"towers.{role}.layers.0.weight"]
        for feature in features:
            here = now["layers.0.weight"][:, slice(*at[feature])]
            if feature in ("city", "ctr", "user"):
                assert torch.equal(here, drawn[:, slice(*at[feature])]), feature
            else:
                assert torch.equal(here, was["layers.0.weight"][:, slice(*old_at[feature])]), feature
        assert all(torch.equal(now[name], was[name]) for name in was if name != "layers.0.weight")
    assert sorted(report.added) == ["city", "ctr", "user"]
    assert sorted(report.removed) == ["price", "user"]
    assert [table.table for table in report.tables][-1] == "user"
    assert report.tables[-1] == TableStart("user", 0, 0, 3, "no feature reads it")
    assert report.schemas == (first.schema.fingerprint(), new.schema.fingerprint())
    lines = "\n".join(report.lines())
    assert f"schema {report.schemas[0][:8]} -> {report.schemas[1][:8]}" in lines
    assert "table item: 4 rows known, 0 fresh, 0 dropped" in lines
    assert "table city: 0 rows known, 2 fresh, 0 dropped (a new table)" in lines
    assert "table user: 0 rows known, 0 fresh, 3 dropped (no feature reads it)" in lines
    json.dumps(report.as_dict())


def test_the_network_computes_what_it_did_on_what_both_know(tmp_path: Path) -> None:
    first = encoding()
    old = objective(first, 1)
    scalings = {"price": Scaling(False, -3.0, 4.0, -200.0, 200.0), "bid": Scaling(True, 0.25, 0.5, -200.0, 200.0)}
    new = encoding(dict(reversed(FEATURES.items())), tables(item=vocabulary(1, 10, 20, 21, 30, 40, 50)), scalings)
    built, _, report = started(finished(tmp_path, old, first), new)
    assert sorted(report.rescaled) == ["bid", "price"]
    rng = np.random.default_rng(0)
    impressions = [
        {
            "user": str(rng.integers(5)),
            "recent": rng.choice([10, 20, 30, 40], rng.integers(4)).tolist(),
            "item": int(rng.choice([10, 20, 30, 40])),
            "word": int(rng.integers(100)),
            "price": float(rng.normal(2.0, 3.0)),
            "age": None if i == 3 else float(rng.uniform(5, 80)),
            "bid": float(rng.normal(0.0, 9.0)),
        }
        for i in range(50)
    ]
    expected, found = old.logits(batch(first, impressions)), built.logits(batch(new, impressions))
    for role in ("light", "booster"):
        assert expected[role].std() > 0.05
        torch.testing.assert_close(found[role], expected[role], rtol=1e-4, atol=1e-4)
    cold = objective(new, 2).logits(batch(new, impressions))
    assert (cold["light"] - expected["light"]).abs().max() > 0.1


def test_a_dense_feature_that_was_no_logarithm_is_a_new_one(tmp_path: Path) -> None:
    first = encoding()
    features = {**FEATURES, "bid": {"side": "item", "kind": "dense"}}
    new = encoding(features, scalings={**SCALINGS, "bid": Scaling(False, 1.0, 2.0, -100.0, 100.0)})
    built, before, report = started(finished(tmp_path, objective(first, 1), first), new)
    start, stop = tower_inputs(built, new.schema)["light"]["bid"]
    name = "towers.light.layers.0.weight"
    assert torch.equal(state.weights(built)[name][:, start:stop], before[name][:, start:stop])
    assert (report.added, report.removed, report.rescaled) == (["bid"], ["bid"], [])


def test_half_precision_and_back(tmp_path: Path) -> None:
    known = encoding()
    old = objective(known, 1)
    half, _, _ = started(finished(tmp_path / "a", old, known), known, precision="fp16")
    assert torch.equal(rows(half, "item"), rows(old, "item").half())
    single, _, _ = started(finished(tmp_path / "b", half, known), known)
    assert torch.equal(rows(single, "item"), rows(old, "item").half().float())


def test_rows_of_another_width_are_fresh(tmp_path: Path) -> None:
    known = encoding()
    old = objective(known, 1)
    built, before, report = started(finished(tmp_path, old, known), known, dims={"item": 5})
    assert torch.equal(rows(built, "item"), before["tables.0.item.weight"])
    assert torch.equal(rows(built, "user"), rows(old, "user"))
    assert report.tables[1] == TableStart("item", 0, 4, 4, "its rows had 4 values")
    assert sorted(report.added) == sorted(report.removed) == ["item", "recent"]


def test_a_tower_that_the_source_has_not_stays_as_it_was_drawn(tmp_path: Path) -> None:
    known = encoding()
    old = objective(known, 1)
    built, before, report = started(finished(tmp_path, old, known), known, role="tower")
    now = state.weights(built)
    assert report.fresh_towers == ["tower"]
    assert all(torch.equal(now[name], before[name]) for name in now if name.startswith("towers."))
    assert torch.equal(rows(built, "item"), rows(old, "item"))
    assert "  towers that the source has not: tower" in report.lines()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"hidden": (7, 3)},
            r"tower 'light' cannot start from .*: its layers\.0\.weight is \[7, 22\], there it is \[6, 22\]",
        ),
        ({"hidden": (6, 4)}, r"tower 'light' cannot .*: its layers\.3\.weight is \[4, 6\], there it is \[3, 6\]"),
        ({"tower": {"dropout": 0.5}}, r"tower 'light' cannot .*: its layers\.4\.weight is \[3, 6\], there it is \[3\]"),
    ],
)
def test_a_tower_of_another_shape_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    known = encoding()
    with pytest.raises(UserError, match=message):
        started(finished(tmp_path, objective(known, 1), known), known, **settings)


def test_a_source_with_nothing_in_common_is_refused(tmp_path: Path) -> None:
    first = encoding({"item": {"side": "item"}})
    old = objective(first, 1)
    new = encoding({"item": {"side": "item"}}, {"item": vocabulary(1, 2)})
    with pytest.raises(UserError, match=r"has no tower \(light, booster\) and no id in common with this model"):
        started(finished(tmp_path, old, first), new, role="tower")


def test_a_source_that_is_not_there_or_not_finished_or_damaged_is_refused(tmp_path: Path) -> None:
    known = encoding()
    place = finished(tmp_path / "run" / "models" / "rocket", objective(known, 1), known)
    file = next((place / "checkpoints").glob("*/*.distcp"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    with pytest.raises(UserError, match="damaged or missing"):
        Source.open(place)
    file.write_bytes(content)
    assert Source.open(place).identity == ["f", "w"]
    keys = place / "encoding" / "item.keys.npy"
    content = keys.read_bytes()
    keys.write_bytes(content[:-1] + b"?")
    with pytest.raises(UserError, match=f"{place}/encoding is damaged"):
        Source.open(place)
    keys.write_bytes(content)
    (place / "result.json").rename(place / "kept.json")  # as when a training begins
    with pytest.raises(UserError, match=f"no finished training lies in {place}"):
        Source.open(place)
    (place / "kept.json").rename(place / "result.json")
    shutil.rmtree(place / "checkpoints")
    with pytest.raises(UserError, match=f"no finished training lies in {place}"):
        Source.open(place)


def test_what_a_training_starts_from_is_known_by_its_weights(tmp_path: Path) -> None:
    known = encoding()
    place = finished(tmp_path / "run" / "models" / "rocket", objective(known, 1), known)
    run, mine = str(tmp_path / "run"), tmp_path / "mine"
    assert start_identity(run, "rocket", mine) == ["f", "w"]
    with pytest.raises(
        UserError, match=rf"train\.warm_start: no finished training lies in {tmp_path}/run/models/light"
    ):
        start_identity(run, "light", mine)
    with pytest.raises(UserError, match="is this run itself"):
        start_identity(run, "rocket", place)
    # one that has begun goes on without the source, but not from another one
    mine.mkdir()
    (mine / "warm_start.json").write_text(json.dumps({"source": str(place), "identity": ["f", "old"]}))
    assert start_identity(run, "rocket", mine) == ["f", "w"]
    (place / "result.json").unlink()  # it is trained anew
    assert start_identity(run, "rocket", mine) == ["f", "old"]
    shutil.rmtree(place)
    assert start_identity(run, "rocket", mine) == ["f", "old"]
    with pytest.raises(UserError, match="no finished training"):
        start_identity(str(tmp_path / "other"), "rocket", mine)
