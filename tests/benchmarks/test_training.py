"""The training benchmark: every way takes the steps that it is timed for, ratios and floor are what they say."""

import itertools
from collections.abc import Iterable

import pytest
import torch

from benchmarks import training, training_floor, training_parquet
from benchmarks import training_steps as steps
from benchmarks.training import LARGE, SMALL, Contender, Measured
from benchmarks.training_steps import BATCH, DIM, FIELDS, Build, Impressions, Precision, Trainable


def contender(name: str, net: str = "light", tables: str = "Adam", *, peer: bool = True) -> Contender:
    return Contender(name, net, tables, lambda _: Trainable({}), peer=peer)


def measured(which: Contender, num_rows: int, *blocks: float, precision: Precision = "fp32") -> Measured:
    return Measured(which, precision, num_rows, list(blocks), missing=None if blocks else "not installed")


@pytest.mark.parametrize(
    ("build", "kept", "width"),
    [
        (steps.ctrkit("light"), 1, 2 * DIM),  # both moments of a row lie together
        (steps.dense_adam, 2, DIM),
        (steps.sparse_adam, 2, DIM),
        (steps.torchrec, 1, DIM),
    ],
)
def test_every_way_moves_the_rows_that_the_ids_name(build: Build, kept: int, width: int) -> None:
    ready = build(50)
    for seed, (precision, train) in enumerate(sorted(ready.train.items())):
        batch = Impressions(torch.full((FIELDS, 8), 2 + seed), torch.ones(8))
        train([batch, batch])
        tables = [state for state in ready.state() if state.ndim == 2 and state.shape[1] == width]
        moved = sum(int(table.ne(0).any(1).sum()) for table in tables)
        assert moved == kept * FIELDS * (seed + 1), precision


def test_from_parquet_the_same_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_parquet, "ROWS", 3 * BATCH)
    monkeypatch.setattr(training_parquet, "SHUFFLE_ROWS", BATCH)
    ready = training_parquet.from_parquet("light")(50)
    given = [Impressions(torch.zeros(FIELDS, 1, dtype=torch.int64), torch.zeros(1))] * 2
    for _ in range(3):  # beyond the end of the log
        ready.train["fp32"](given)
    (counts,) = {int(state) for state in ready.state() if state.ndim == 0}
    assert counts == 6
    (moments,) = [state for state in ready.state() if state.ndim == 2 and state.shape == (FIELDS * 50, 2 * DIM)]
    assert (moments != 0).any(1).all()  # every id occurs


def test_every_batch_given_to_ctrkit_is_a_step_of_its_trainer() -> None:
    ready = steps.ctrkit("rocket")(20)
    given = steps.make_batches(20, 3, batch=8)
    used: list[int] = []

    def feed() -> Iterable[Impressions]:
        for i, batch in enumerate(given):
            used.append(i)
            yield batch

    ready.train["fp32"](feed())
    ready.train["bf16"](given[:1])
    assert used == [0, 1, 2]
    counts = {int(state) for state in ready.state() if state.ndim == 0}
    assert counts == {4}


def test_ids_follow_zipfs_law_and_lie_in_the_table() -> None:
    ids = torch.cat([batch.ids_FB for batch in steps.make_batches(1000, 2)], dim=1)
    counts = torch.bincount(ids.flatten(), minlength=1000).sort(descending=True).values
    assert len(counts) == 1000
    assert counts[-1] > 0
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.1)


def test_a_block_counts_the_rows_of_the_steps_that_were_taken() -> None:
    batches = steps.make_batches(10, 3, batch=5)
    seen: list[Impressions] = []
    rate = training.block(lambda given: seen.extend(given), batches, 0.0)
    assert [id(batch) for batch in seen] == [id(batch) for batch in batches[:2]]
    assert rate > 0
    seen.clear()
    training.block(lambda given: seen.extend(itertools.islice(given, 7)), batches, 3600.0)
    assert len(seen) == 7  # in turn, over and over


def test_a_peer_that_is_not_there_is_told_and_one_that_breaks_too() -> None:
    def absent(_: int) -> Trainable:
        raise ModuleNotFoundError("No module named 'peer'")

    def broken(_: int) -> Trainable:
        raise TypeError("an argument less")

    batches = steps.make_batches(10, 2, batch=4)
    peers = [Contender("a", "light", "Adam", absent), Contender("b", "light", "Adam", broken)]
    found = training.measure(peers, SMALL, batches, rounds=2, seconds=0.0)
    assert [(m.contender.name, m.cell()) for m in found] == [
        ("a", "not installed (No module named 'peer')"),
        ("b", "does not run (TypeError: an argument less)"),
    ]
    with pytest.raises(TypeError):
        training.measure([Contender("own", "light", "Adam", broken, peer=False)], SMALL, batches, rounds=1, seconds=0.0)


def test_ratios_compare_medians_of_the_fastest_and_leave_out_other_optimizers_of_ctrkit() -> None:
    own = contender("ctrkit", peer=False)
    results = [
        measured(own, SMALL, 100.0, 300.0, 200.0),
        measured(own, SMALL, 500.0, precision="bf16"),
        measured(own, LARGE, 250.0, precision="bf16"),
        measured(contender("ctrkit", tables="Adam, L2", peer=False), SMALL, 9000.0),
        measured(contender("ctrkit", "booster", peer=False), SMALL, 120.0),
        measured(contender("ctrkit", "rocket", peer=False), SMALL, 100.0),
        measured(contender("TorchRec, fused"), SMALL, 160.0),
        measured(contender("TorchRec, fused"), SMALL, 1000.0, precision="bf16"),
        measured(contender(training.STAND_IN), SMALL, 250.0),
        measured(contender(training.STAND_IN), LARGE, 2.0),
        measured(contender(training.FUXICTR), LARGE),
    ]
    figures = training.summary(results)
    assert figures["light_vs_best_peer_1e3"] == 2.0
    assert figures["light_fp32_vs_best_peer_1e3"] == 0.8
    assert figures["light_bf16_vs_best_bf16_peer_1e3"] == 0.5
    assert figures["light_vs_fuxictr_1e6"] == 125.0
    assert figures["light_vs_fuxictr_1e6_against"].startswith(training.STAND_IN)
    assert figures["light_1e3_vs_1e6"] == 2.0
    assert figures["rocket_rows_per_s_1e3"] == 100.0
    assert figures["rocket_rows_per_s_1e6"] is None
    assert figures["light_on_top_of_booster_1e3"] == pytest.approx(0.2)
    results[-1] = measured(contender(training.FUXICTR), LARGE, 1.0)
    assert training.summary(results)["light_vs_fuxictr_1e6"] == 250.0
    assert training.summary(results)["light_vs_fuxictr_1e6_against"] == training.FUXICTR


def test_flops_are_those_of_three_products_a_layer_and_a_rockets_light_tower_spares_one() -> None:
    light = 576 * 200 + 200 * 80 + 80
    booster = 576 * 720 + 720 * 360 + 360 * 240 + 240 * 180 + 180 * 90 + 90
    assert training_floor.step_flops("light") == 6 * BATCH * light
    assert training_floor.step_flops("rocket") == 6 * BATCH * (light + booster) - 2 * BATCH * 576 * 200


def test_a_row_is_moved_once_however_often_its_id_occurs() -> None:
    batch = Impressions(torch.tensor([[1, 1, 1, 2]] * FIELDS), torch.zeros(4))
    assert training_floor.row_bytes(batch) == FIELDS * (2 * DIM * 4 * 6 + 4 * 8)


def test_the_floor_adds_products_at_peak_and_bytes_at_bandwidth() -> None:
    batch = Impressions(torch.zeros(FIELDS, 4, dtype=torch.int64), torch.zeros(4))
    machine = training_floor.Machine({"fp32": 1e12, "bf16": 4e12}, {SMALL: 1e10})
    faster = training_floor.Machine({"fp32": 5e11, "bf16": 8e12}, {SMALL: 2e10})
    under = training_floor.floor("light", "bf16", batch, SMALL, machine.best(faster))
    assert under.products == pytest.approx(training_floor.step_flops("light") / 8e12)
    activations = BATCH * 6 * (4 * 576 + 2 * 280)
    assert under.bytes == pytest.approx((training_floor.row_bytes(batch) + activations) / 2e10)
    assert under.seconds == under.products + under.bytes
