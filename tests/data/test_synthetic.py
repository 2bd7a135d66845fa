import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from ctrkit.data import synthetic
from ctrkit.data.synthetic import generate
from ctrkit.data.synthetic_world import (
    AFFINITY,
    CATEGORIES,
    CROSS,
    CROSSES,
    NET,
    PERSONAL,
    PRICE,
    Impressions,
    draw_world,
    logit,
)
from ctrkit.errors import UserError

ROWS, DAYS = 40_000, 4


def read(directory: Path) -> pd.DataFrame:
    log: pd.DataFrame = ds.dataset(directory, partitioning="hive").to_table().to_pandas()
    return log


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    directory = tmp_path_factory.mktemp("synthetic") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "CHUNK_ROWS", 3_000)  # several chunks a day
        generate(directory, rows=ROWS, seed=3, days=DAYS)
    return read(directory)


def test_columns_and_types(tmp_path: Path) -> None:
    generate(tmp_path / "log", rows=1_000, seed=0, days=2)
    schema = pq.read_schema(tmp_path / "log" / "day=2025-03-03" / "part-00000.parquet")
    kinds = {field.name: str(field.type).replace("element", "item") for field in schema}
    assert kinds == {
        "request_id": "int64", "timestamp": "int64", "user_id": "string", "age_band": "string", "gender": "string",
        "city": "string", "recent_ads": "list<item: int64>", "recent_categories": "list<item: int64>",
        "ad_id": "int64", "campaign_id": "int64", "category_id": "int64", "advertiser_id": "int64", "price": "double",
        "hour": "int64", "device": "string", "position": "int64", "click_probability": "double", "click": "int8",
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == ["day=2025-03-03", "day=2025-03-04"]


def test_rows_days_and_time(log: pd.DataFrame) -> None:
    assert log.groupby("day", observed=True).size().tolist() == [ROWS // DAYS] * DAYS
    assert log["timestamp"].is_monotonic_increasing
    assert log["request_id"].is_monotonic_increasing
    moment = pd.to_datetime(log["timestamp"], unit="s")
    assert (moment.dt.strftime("%Y-%m-%d") == log["day"].astype(str)).all()
    assert (moment.dt.hour == log["hour"]).all()


def test_slates_are_of_one_user_and_time_with_distinct_ads_in_positions(log: pd.DataFrame) -> None:
    slates = log.groupby("request_id")
    assert (slates[["user_id", "timestamp", "device"]].nunique() == 1).all(axis=None)
    assert (slates["ad_id"].nunique() == slates.size()).all()
    assert (log["position"] == slates.cumcount() + 1).all()
    assert slates.size().max() == 10
    assert (slates.size() >= 5).mean() > 0.9


def test_ads_keep_their_campaign_category_advertiser_and_price(log: pd.DataFrame) -> None:
    ads = log.groupby("ad_id")[["campaign_id", "category_id", "advertiser_id", "price"]].nunique()
    assert (ads == 1).all(axis=None)
    assert (log.groupby("campaign_id")[["category_id", "advertiser_id"]].nunique() == 1).all(axis=None)


def test_clicks_follow_the_probability_written_beside_them(log: pd.DataFrame) -> None:
    probability, click = log["click_probability"].to_numpy(), log["click"].to_numpy()
    assert 0.06 < probability.mean() < 0.10
    assert abs((click - probability).sum()) < 4 * np.sqrt((probability * (1 - probability)).sum())
    for low, high in ((0.0, 0.05), (0.05, 0.2), (0.2, 1.0)):
        inside = (probability >= low) & (probability < high)
        spread = np.sqrt((probability * (1 - probability))[inside].sum())
        assert inside.sum() > 500
        assert abs((click - probability)[inside].sum()) < 4 * spread


def test_the_last_day_shows_unseen_ads_of_seen_campaigns(log: pd.DataFrame) -> None:
    last = log["day"] == log["day"].max()
    unseen = last & ~log["ad_id"].isin(log.loc[~last, "ad_id"])
    assert 0.01 < unseen[last].mean() < 0.3
    assert log.loc[unseen, "campaign_id"].isin(log.loc[~last, "campaign_id"]).mean() > 0.9


def test_histories_are_the_clicks_of_earlier_days_newest_first(log: pd.DataFrame) -> None:
    clicks = log[log["click"] == 1].groupby(["user_id", "day"], observed=True)["ad_id"].agg(list)
    days = sorted(log["day"].unique())
    shown = log.drop_duplicates(["user_id", "day"]).set_index(["user_id", "day"])["recent_ads"]
    checked = 0
    for user in log["user_id"].unique()[:100]:
        for yesterday, today in itertools.pairwise(days):
            if (user, yesterday) in shown.index and (user, today) in shown.index:
                clicked = clicks.get((user, yesterday), [])
                assert list(shown[user, today]) == (clicked[::-1] + list(shown[user, yesterday]))[:10]
                checked += len(clicked) > 0
    assert checked > 50
    category = log.drop_duplicates("ad_id").set_index("ad_id")["category_id"]
    row = log[log["recent_ads"].str.len() == 10].iloc[0]
    known = [ad in category.index for ad in row["recent_ads"]]
    assert category[row["recent_ads"][known]].tolist() == row["recent_categories"][known].tolist()


def test_a_seed_is_a_log_and_chunks_bound_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate(tmp_path / name, rows=4_000, seed=seed, days=2)
    pd.testing.assert_frame_equal(read(tmp_path / "a"), read(tmp_path / "b"))
    assert not read(tmp_path / "a")["click_probability"].equals(read(tmp_path / "c")["click_probability"])
    monkeypatch.setattr(synthetic, "CHUNK_ROWS", 700)
    generate(tmp_path / "d", rows=4_001, seed=1, days=2)
    assert [pq.read_metadata(path).num_rows for path in sorted(tmp_path.glob("d/*/*"))] == [
        700,
        700,
        600,
        700,
        700,
        601,
    ]
    chunked = read(tmp_path / "d")
    assert chunked["timestamp"].is_monotonic_increasing
    assert (chunked.groupby("request_id")["user_id"].nunique() == 1).all()


def test_logit_is_the_formula_of_the_docstring() -> None:
    rng = np.random.default_rng(7)
    world = draw_world(rng, users=50, ads=200, days=2)
    taste, history = rng.normal(size=(6, CATEGORIES)), rng.integers(-1, 200, size=(50, 10))
    shown = Impressions(*(rng.integers(high, size=40) for high in (1, 50, 200, 24, 3, 10, 1)))
    shown.position[:] += 1
    log_price = np.log(world.price)
    for row, value in enumerate(logit(world, taste, history, shown)):
        user, ad = shown.user[row], shown.ad[row]
        fields = {name: column[user] for name, column in world.user_fields.items()}
        fields |= {name: column[ad] for name, column in world.ad_fields.items()}
        fields |= {"daypart": shown.hour[row] // 6, "device": shown.device[row]}
        category = fields["category"]
        expected = world.quality[ad] + taste[fields["age"], category] + world.position_bias[shown.position[row] - 1]
        expected += AFFINITY * any(world.ad_fields["category"][seen] == category for seen in history[user] if seen >= 0)
        expected += PERSONAL * world.personal[user] @ world.theme[category]
        price = (log_price[ad] - log_price.mean()) / log_price.std()
        expected += PRICE * world.price_code[fields["age"], fields["daypart"]] * price
        parities = [
            np.prod([world.bits[name][fields[name], bit] for name, bit in cross.items()]) for cross in world.crosses
        ]
        expected += CROSS * sum(parities) / np.sqrt(CROSSES)
        first, second, last = world.layers
        latent = np.concatenate(
            [world.latent[name][fields[name]] for name in ("age", "city", "category", "advertiser")]
        )
        expected += NET * np.tanh(np.tanh(latent @ first) @ second) @ last
        assert value == pytest.approx(expected)


def test_crosses_have_their_degrees_an_ad_field_and_balanced_signs() -> None:
    world = draw_world(np.random.default_rng(0), users=50, ads=200, days=2)
    assert [len(cross) for cross in world.crosses] == [2, 3, 4, 4] * 8
    assert all(cross.keys() & {"category", "advertiser", "price_band"} for cross in world.crosses)
    assert {name: signs.sum(axis=0).tolist() for name, signs in world.bits.items() if len(signs) % 2 == 0} == {
        name: [0.0] * 3 for name in ("age", "city", "category", "advertiser", "daypart")
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_log_of_few_ads_has_all_its_rows(seed: int, tmp_path: Path) -> None:
    # Few ads of unequal popularity: many draws of a slate are the same ad, and are dropped.
    generate(tmp_path / "log", rows=1_003, seed=seed, days=3, ads=30, users=2)
    assert read(tmp_path / "log").groupby("day", observed=True).size().tolist() == [334, 334, 335]


def test_nothing_is_left_when_a_run_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", dies)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "log", rows=1_000, seed=0, days=2)
    assert list(tmp_path.iterdir()) == []


def test_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows=1, days=8"):
        generate(tmp_path / "log", rows=1, seed=0)
    with pytest.raises(UserError, match=r"click_rate=1.5"):
        generate(tmp_path / "log", rows=100, seed=0, click_rate=1.5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(UserError, match=r"full: exists already and is not empty"):
        generate(tmp_path / "full", rows=100, seed=0)
    assert (tmp_path / "full" / "note.txt").read_text() == "mine"


def test_push_keeps_the_newest_clicks() -> None:
    history = np.full((3, 10), -1)
    history[1, :9] = np.arange(9)
    user = np.array([1, 0, 1, *[2] * 12])
    ad = np.array([100, 200, 101, *range(300, 312)])
    after = synthetic._push(history, user, ad)
    assert after[0].tolist() == [200] + [-1] * 9
    assert after[1].tolist() == [101, 100, *range(8)]
    assert after[2].tolist() == list(range(311, 301, -1))


def test_bias_gives_the_mean_asked_for() -> None:
    logit = np.random.default_rng(0).normal(size=1_000)
    bias = synthetic._bias(logit, 0.08)
    assert np.mean(1 / (1 + np.exp(-(logit + bias)))) == pytest.approx(0.08, abs=1e-9)


def test_lists_are_nowhere_null(log: pd.DataFrame) -> None:
    assert pa.array(log["recent_categories"]).null_count == 0
    assert (log["recent_ads"].str.len() == log["recent_categories"].str.len()).all()
