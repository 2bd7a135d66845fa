import gzip
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctrkit.data.adapters import raw
from ctrkit.data.adapters.registry import ADAPTERS, find
from ctrkit.errors import UserError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "flat").mkdir()
    return tmp_path / "flat"


def put(source: Path, name: str, *lines: str) -> None:
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows(target: Path, part: str) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = pq.read_table(target / f"{part}.parquet").to_pylist()
    return table


def values(target: Path, part: str, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[column] for column in columns) for row in rows(target, part)]


# --- registry


def test_find_knows_every_adapter_and_names_the_nearest() -> None:
    assert set(ADAPTERS) == {"taobao_display_ad", "movielens_1m", "trivago", "globo", "avazu", "criteo"}
    assert find("criteo").group is None
    assert find("globo").group == "user_id"
    assert find("movielens_1m").raw_files == ("users.dat", "movies.dat", "ratings.dat")
    with pytest.raises(UserError, match="did you mean 'movielens_1m'"):
        find("movielens1m")
    with pytest.raises(UserError, match="there are taobao_display_ad, "):
        find("zzz")


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_missing_file_is_named_with_its_publisher(name: str, source: Path, target: Path) -> None:
    publisher = {"taobao_display_ad": "Alibaba", "movielens_1m": "GroupLens", "globo": "Globo.com"}.get(name, name)
    with pytest.raises(UserError, match=rf"(?i)\.(csv|dat|gz|txt): no such file.*{publisher}"):
        ADAPTERS[name].convert(source, target)
    assert list(target.glob("*.parquet")) == []


def test_unknown_option_is_refused(source: Path, target: Path) -> None:
    with pytest.raises(UserError, match=r"adapter 'globo': no option 'negative'; it has negatives, window"):
        find("globo").convert(source, target, negative=3)
    with pytest.raises(UserError, match=r"no option 'seed'; it has none"):
        find("avazu").convert(source, target, seed=3)


# --- shared parts


def test_read_csv_types_nulls_and_order_of_columns(source: Path) -> None:
    put(source, "a.csv", "b ,a,c", ",1,x", "2.5,2,", "", "3,3,y")
    table = pa.concat_tables(raw.read_csv(source / "a.csv", {"a": pa.int64(), "b": pa.float64(), "c": pa.string()}))
    assert table.to_pydict() == {"a": [1, 2, 3], "b": [None, 2.5, 3.0], "c": ["x", None, "y"]}


@pytest.mark.parametrize("blocks", [1 << 25, 16])
def test_read_csv_names_file_and_line(source: Path, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "BLOCK_BYTES", blocks)
    types = {"a": pa.int64(), "b": pa.string()}

    def read(*lines: str) -> None:
        put(source, "a.csv", *lines)
        list(raw.read_csv(source / "a.csv", types, required=("a",)))

    with pytest.raises(UserError, match=r"a\.csv: line 6: 1 fields where 2 belong: '3'"):
        read("a,b", "1,x", "2,y", "3,z", "", "3", "4,w")  # a blank line is no row, but it is a line
    with pytest.raises(UserError, match=r"a\.csv: line 5: .*invalid value 'zz'"):
        read("a,b", "1,x", "2,y", "3,z", "zz,w")
    with pytest.raises(UserError, match=r"a\.csv: line 5: a is empty"):
        read("a,b", "1,x", "2,y", "3,z", ",w", "5,v")
    with pytest.raises(UserError, match=r"a\.csv: line 1: no column 'b'; the header names a, c"):
        read("a,c", "1,x")


def test_read_csv_names_the_line_of_a_gzipped_file(source: Path) -> None:
    (source / "a.gz").write_bytes(gzip.compress(b"a,b\n1,2\n\n3\n"))
    with pytest.raises(UserError, match=r"a\.gz: line 4: "):
        list(raw.read_csv(source / "a.gz", {"a": pa.int64()}))


def test_buckets_keep_every_row_in_order_and_leave_nothing(target: Path) -> None:
    with raw.Buckets(target) as buckets:
        for first in (0, 10):
            number = np.arange(first, first + 10)
            buckets.add(pa.table({"number": number}), number % 3)
        assert buckets.filled() == [0, 1, 2]
        assert buckets.read(1)["number"].to_pylist() == [1, 4, 7, 10, 13, 16, 19]
    assert list(target.iterdir()) == []


def test_preceding_matches_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    group, time = rng.integers(5, size=40), rng.integers(-3, 20, size=40)
    event_group, event_time = rng.integers(5, size=60), rng.integers(-3, 20, size=60)
    order = np.lexsort((event_time, event_group))
    event_group, event_time = event_group[order], event_time[order]
    offsets, flat = raw.preceding(group, time, event_group, event_time, 4)
    for query in range(40):
        before = [e for e in range(60) if event_group[e] == group[query] and event_time[e] < time[query]]
        assert flat[offsets[query] : offsets[query + 1]].tolist() == before[::-1][:4]


def test_lookup_gives_rows_or_minus_one() -> None:
    assert raw.lookup(np.array([7, 3, 9, 1]), np.array([3, 9, 7])).tolist() == [2, 0, 1, -1]


# --- Taobao

DAY = 86_400
FIRST = 1_494_000_000  # midnight of 2017-05-06 in Shanghai


def taobao(source: Path) -> None:
    put(
        source,
        "raw_sample.csv",
        "user,time_stamp,adgroup_id,pid,nonclk,clk",
        f"7,{FIRST + 2 * DAY + 5},1,430548_1007,1,0",
        f"8,{FIRST + DAY + 3601},2,430539_1007,0,1",
        f"7,{FIRST + 100},2,430548_1007,1,0",
        f"7,{FIRST + 50},9,430548_1007,0,1",
    )
    put(
        source,
        "ad_feature.csv",
        "adgroup_id,cate_id,campaign_id,customer,brand,price",
        "1,10,100,1000,NULL,170.0",
        "2,20,200,2000,95471,",
    )
    put(
        source,
        "user_profile.csv",
        "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,"
        "new_user_class_level ",
        "7,0,5,2,5,,3,0,3",
    )


def test_taobao_joins_and_splits_by_day(source: Path, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    taobao(source)
    with caplog.at_level(logging.WARNING):
        find("taobao_display_ad").convert(source, target)
    assert "recent_categories and recent_brands are left out" in caplog.text
    profile = {"segment": 0, "segment_group": 5, "gender": 2, "age_level": 5, "spending_level": None}
    profile |= {"shopping_level": 3, "student": 0, "city_level": 3}
    saturday = {"hour": 0, "weekday": 5}
    assert rows(target, "train") == [
        {"user_id": 7, **profile, "ad_id": 9, "category_id": None, "campaign_id": None, "advertiser_id": None}
        | {"brand_id": None, "price": None, "placement": "430548_1007", **saturday}
        | {"timestamp": FIRST + 50, "click": 1},
        {"user_id": 7, **profile, "ad_id": 2, "category_id": 20, "campaign_id": 200, "advertiser_id": 2000}
        | {"brand_id": 95471, "price": None, "placement": "430548_1007", **saturday}
        | {"timestamp": FIRST + 100, "click": 0},
    ]
    assert rows(target, "valid") == [
        {"user_id": 8, **dict.fromkeys(profile), "ad_id": 2, "category_id": 20, "campaign_id": 200}
        | {"advertiser_id": 2000, "brand_id": 95471, "price": None, "placement": "430539_1007", "hour": 1}
        | {"weekday": 6, "timestamp": FIRST + DAY + 3601, "click": 1}
    ]
    assert values(target, "test", "ad_id", "brand_id", "price", "hour", "weekday", "click") == [
        (1, None, 170.0, 0, 0, 0)
    ]
    assert sorted(path.name for path in target.iterdir()) == ["test.parquet", "train.parquet", "valid.parquet"]


def test_taobao_behaviours_are_the_last_before_the_impression(source: Path, target: Path) -> None:
    taobao(source)
    put(
        source,
        "behavior_log.csv",
        "user,time_stamp,btag,cate,brand",
        f"7,{FIRST + 99},pv,4,40",
        f"7,{FIRST + 100},pv,5,50",
        f"7,{FIRST - 9 * DAY},buy,1,",
        f"7,{FIRST + 60},pv,3,30",
        f"7,{FIRST + 10},cart,2,20",
        f"71,{FIRST + 1},pv,6,60",  # in the same bucket as user 7, another user
    )
    find("taobao_display_ad").convert(source, target, recent=2)
    assert values(target, "train", "timestamp", "recent_categories", "recent_brands") == [
        (FIRST + 50, [2, 1], [20, None]),
        (FIRST + 100, [4, 3], [40, 30]),
    ]
    assert values(target, "valid", "recent_categories") == [([],)]
    assert values(target, "test", "recent_categories") == [([5, 4],)]


def test_taobao_malformed_line_and_missing_day(source: Path, target: Path) -> None:
    taobao(source)
    put(source, "raw_sample.csv", "user,time_stamp,adgroup_id,pid,nonclk,clk", f"7,{FIRST},1,p,1,0", "7,,1,p,1,0")
    with pytest.raises(UserError, match=r"raw_sample\.csv: line 3: time_stamp is empty"):
        find("taobao_display_ad").convert(source, target)
    put(source, "raw_sample.csv", "user,time_stamp,adgroup_id,pid,nonclk,clk", f"7,{FIRST},1,p,1,0")
    with pytest.raises(UserError, match=r"the train and valid part has no rows"):
        find("taobao_display_ad").convert(source, target)
    put(source, "ad_feature.csv", "adgroup_id,cate_id,campaign_id,customer,brand,price")
    with pytest.raises(UserError, match=r"ad_feature\.csv: has a header and no line"):
        find("taobao_display_ad").convert(source, target)


# --- MovieLens-1M


def movielens(source: Path, ratings: int = 25) -> None:
    put(source, "users.dat", "1::F::1::10::48067", "2::M::56::16::07024")
    (source / "movies.dat").write_bytes(
        b"5::Toy Story (1995)::Animation|Children's|Comedy\n6::Lost Children (1900) (Cit\xe9) (1994)::Sci-Fi\n"
    )
    put(source, "ratings.dat", *(f"{1 + n % 2}::{5 + n % 2}::{1 + n % 5}::{978300760 - n}" for n in range(ratings)))


def test_movielens_rows_sizes_and_seed(source: Path, target: Path, tmp_path: Path) -> None:
    movielens(source)
    find("movielens_1m").convert(source, target)
    parts = {part: rows(target, part) for part in ("train", "valid", "test")}
    assert {part: len(found) for part, found in parts.items()} == {"train": 18, "valid": 2, "test": 5}
    log = [tuple(row.items()) for found in parts.values() for row in found]
    ada = {"user_id": 1, "gender": "F", "age": 1, "occupation": 10, "zip": "48067"}
    ada |= {"item_id": 5, "year": 1995, "genres": ["Animation", "Children's", "Comedy"]}
    bob = {"user_id": 2, "gender": "M", "age": 56, "occupation": 16, "zip": "07024"}
    bob |= {"item_id": 6, "year": 1994, "genres": ["Sci-Fi"]}
    expected = [((bob if n % 2 else ada) | {"rating": 1 + n % 5, "click": int(n % 5 >= 3)}).items() for n in range(25)]
    assert sorted(map(repr, log)) == sorted(repr(tuple(row)) for row in expected)
    again, other = tmp_path / "again", tmp_path / "other"
    again.mkdir()
    other.mkdir()
    find("movielens_1m").convert(source, again)
    find("movielens_1m").convert(source, other, seed=1)
    assert rows(again, "test") == parts["test"]
    assert rows(other, "test") != parts["test"]


def test_movielens_split_by_time(source: Path, target: Path) -> None:
    movielens(source)
    find("movielens_1m").convert(source, target, split="time")
    assert [row["timestamp"] for row in rows(target, "test")] == [978300760 - n for n in (4, 3, 2, 1, 0)]
    assert [row["timestamp"] for row in rows(target, "valid")] == [978300760 - n for n in (6, 5)]
    with pytest.raises(UserError, match="split='days'; it is 'random' or 'time'"):
        find("movielens_1m").convert(source, target, split="days")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1::5::4", r"ratings\.dat: line 26: 3 fields where 4 belong: '1::5::4'"),
        ("1::5::four::978300760", r"ratings\.dat: line 26: rating is 'four'; expected int8"),
        ("1::5::::978300760", r"ratings\.dat: line 26: rating is ''; expected int8"),
        ("1::5::400::978300760", r"ratings\.dat: line 26: rating is '400'"),
        ("3::5::4::978300760", r"ratings\.dat: line 26: user_id 3 is not in users\.dat"),
        ("1::7::4::978300760", r"ratings\.dat: line 26: item_id 7 is not in .*movies\.dat"),
    ],
)
def test_movielens_malformed_line(line: str, message: str, source: Path, target: Path) -> None:
    movielens(source)
    with (source / "ratings.dat").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=message):
        find("movielens_1m").convert(source, target)


# --- trivago

TRIVAGO = (
    "user_id,session_id,timestamp,step,action_type,reference,platform,city,device,current_filters,impressions,prices"
)


def click_out(session: str, timestamp: int, step: int, item: int, offers: str = "11|12|13", filters: str = "") -> str:
    return (
        f'u{session},{session},{timestamp},{step},clickout item,{item},US,"Reno, NV, USA",mobile,{filters},'
        f"{offers},{'|'.join(['90', '70', '70'][: offers.count('|') + 1])}"
    )


def trivago(source: Path, *more: str) -> None:
    put(
        source,
        "train.csv",
        TRIVAGO,
        'ua,a,100,1,search for destination,"Reno, NV, USA",US,"Reno, NV, USA",mobile,,,',
        'ua,a,105,2,interaction item image,12,US,"Reno, NV, USA",mobile,,,',
        'ua,a,106,3,interaction item image,12,US,"Reno, NV, USA",mobile,,,',
        'ua,a,107,4,search for item,44,US,"Reno, NV, USA",mobile,,43|44,70|80',
        click_out("a", 110, 5, 12, filters="Focus on Distance|Sort by Price"),
        click_out("a", 115, 6, 99),  # clicked offer is not among the impressions
        click_out("a", 120, 7, 11),
        *(click_out(f"s{number}", 1000 * number, 1, 13, "12|13") for number in range(1, 9)),
        *more,
    )


def test_trivago_slates(source: Path, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    trivago(source)
    with caplog.at_level(logging.WARNING):
        find("trivago").convert(source, target)
    assert "1 click-outs left out" in caplog.text
    train = rows(target, "train")
    slate = {"slate_id": 0, "user_id": "ua", "session_id": "a", "step": 5, "timestamp": 110, "platform": "US"}
    slate |= {"city": "Reno, NV, USA", "country": "USA", "device": "mobile"}
    slate |= {"filters": ["Focus on Distance", "Sort by Price"], "recent_items": [44, 12]}
    assert train[:3] == [
        slate | {"item_id": 11, "price": 90, "price_rank": 3, "position": 1, "click": 0},
        slate | {"item_id": 12, "price": 70, "price_rank": 1, "position": 2, "click": 1},
        slate | {"item_id": 13, "price": 70, "price_rank": 2, "position": 3, "click": 0},
    ]
    assert train[3]["recent_items"] == [99, 12, 44, 12]
    assert [(row["slate_id"], row["filters"], row["click"]) for row in train[3:8]] == [
        (1, [], 1), (1, [], 0), (1, [], 0), (2, [], 0), (2, [], 1)
    ]  # fmt: skip
    assert [len({row["slate_id"] for row in rows(target, part)}) for part in ("train", "valid", "test")] == [8, 1, 1]
    assert values(target, "test", "slate_id", "timestamp", "recent_items", "position") == [
        (9, 8000, [], 1),
        (9, 8000, [], 2),
    ]


def test_trivago_matches_the_types_of_the_flat_log(source: Path, target: Path) -> None:
    trivago(source)
    find("trivago").convert(source, target)
    schema = pq.read_schema(target / "train.parquet")
    kinds = {
        name: str(schema.field(name).type) for name in ("slate_id", "step", "item_id", "price", "position", "click")
    }
    assert kinds == {"slate_id": "int64", "step": "int16", "item_id": "int64", "price": "int32"} | {
        "position": "int16", "click": "int8"
    }  # fmt: skip
    assert schema.field("filters").type.value_type == pa.string()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ub,b,9,1,clickout item,11", r"train\.csv: line 17: 6 fields where 12 belong"),
        ("ub,b,9,1,clickout item,11,US,x,mobile,,11|12,90", r"session b, step 1: impressions and prices differ"),
        ("ub,b,,1,clickout item,11,US,x,mobile,,11|12,90|80", r"train\.csv: line 17: timestamp is empty"),
    ],
)
def test_trivago_malformed_line(line: str, message: str, source: Path, target: Path) -> None:
    trivago(source, line)
    with pytest.raises(UserError, match=message):
        find("trivago").convert(source, target)


# --- Globo.com

GLOBO = (
    "user_id,session_id,session_start,session_size,click_article_id,click_timestamp,click_environment,"
    "click_deviceGroup,click_os,click_country,click_region,click_referrer_type"
)


def globo(source: Path) -> None:
    put(source, "articles_metadata.csv", "article_id,category_id,created_at_ts,publisher_id,words_count",
        *(f"{article},1,{1_507_000_000_000 + 3_600_000 * article},0,200" for article in range(1, 6)))  # fmt: skip
    for hour in (1, 0):  # files out of order
        put(source, f"clicks/clicks_hour_00{hour}.csv", GLOBO,
            *(f"{n % 3},1,2,2,{1 + n % 7},{1_507_000_000_000 + 1_800_000 * n + 999},4,3,{n},1,25,2"
              for n in range(15 * hour + 14, 15 * hour - 1, -1)))  # fmt: skip


def test_globo_slates(source: Path, target: Path) -> None:
    globo(source)
    find("globo").convert(source, target, negatives=2, window=6, history_share=1 / 3)
    log = [row for part in ("train", "valid", "test") for row in rows(target, part)]
    # User n % 3 clicks article 1 + n % 7 at click n: after 30 clicks every user has clicked all seven, so none is free.
    assert [row["slate_id"] for row in log] == list(range(10, 30))
    assert all(row["click"] == 1 for row in log)
    assert log[0] == {
        "slate_id": 10, "user_id": 1, "timestamp": 1_507_018_000, "hour": 8, "environment": 4, "device": 3, "os": 10,
        "country": 1, "region": 25, "referrer": 2, "recent_items": [1, 5, 2], "item_id": 4, "item_age_hours": 1.0,
        "click": 1,
    }  # fmt: skip
    assert log[-1]["recent_items"] == [6, 3, 7, 4, 1, 5, 2, 6, 3]
    ages = {row["item_id"]: row["item_age_hours"] for row in log[:7]}
    assert (ages[5], ages[6], ages[7]) == (0.5, None, None)  # article 5 at click 11; 6 and 7 have no metadata
    assert [len(rows(target, part)) for part in ("train", "valid", "test")] == [16, 2, 2]


def test_globo_negatives_come_from_the_window_and_were_never_clicked_by_the_user(source: Path, target: Path) -> None:
    put(source, "articles_metadata.csv", "article_id,created_at_ts", "1,1507000000000")
    rng = np.random.default_rng(0)
    user, item = rng.integers(40, size=400), rng.integers(30, size=400)
    put(source, "clicks/clicks_hour_000.csv", GLOBO,
        *(f"{u},1,2,2,{i},{1_507_000_000_000 + 60_000 * n},4,3,1,1,25,2"
          for n, (u, i) in enumerate(zip(user, item, strict=True))))  # fmt: skip
    find("globo").convert(source, target, negatives=4, window=50)
    log = [row for part in ("train", "valid", "test") for row in rows(target, part)]
    places = []
    for slate in range(180, 400):
        shown = [row for row in log if row["slate_id"] == slate]
        assert [row["item_id"] for row in shown if row["click"]] == [item[slate]]
        negatives = [row["item_id"] for row in shown if not row["click"]]
        assert len(set(negatives)) == len(negatives) == 4
        assert set(negatives) <= set(item[slate - 50 : slate])
        assert not set(negatives) & set(item[user == user[slate]])
        places.append([row["click"] for row in shown].index(1))
    assert set(places) == {0, 1, 2, 3, 4}


def test_globo_malformed_input(source: Path, target: Path) -> None:
    globo(source)
    with pytest.raises(UserError, match=r"negatives=0"):
        find("globo").convert(source, target, negatives=0)
    put(source, "clicks/clicks_hour_001.csv", GLOBO, "1,1,2,2,x,1507000000000,4,3,1,1,25,2")
    with pytest.raises(UserError, match=r"clicks_hour_001\.csv: line 2: .*invalid value 'x'"):
        find("globo").convert(source, target)
    put(source, "clicks/clicks_hour_001.csv", GLOBO, "1,1,2,2,3,1507000000000,4,3,1,1,,2")
    with pytest.raises(UserError, match=r"clicks_hour_001\.csv: line 2: click_region is empty"):
        find("globo").convert(source, target)


# --- Avazu

AVAZU = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,device_ip,"
    "device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)


def impression(hour: str, click: int, device: str = "a99f214a") -> str:
    return (
        f"1e19,{click},{hour},1005,0,1fbe01fe,f3845767,28905ebd,,7801e8d9,07d7df22,{device},ddd2926e,44956a24,"
        "1,2,15706,320,50,1722,0,35,-1,79"
    )


@pytest.mark.parametrize("packed", [True, False])
def test_avazu_rows_and_user_proxy(packed: bool, source: Path, target: Path) -> None:
    put(source, "train.csv", AVAZU, impression("14102100", 0), impression("14102201", 1, "c357dbff"),
        impression("14102123", 1), impression("14102300", 0))  # fmt: skip
    if packed:
        (source / "train.gz").write_bytes(gzip.compress((source / "train.csv").read_bytes()))
        (source / "train.csv").unlink()
    find("avazu").convert(source, target)
    assert rows(target, "train")[0] == {
        "user_id": "ddd2926e/44956a24", "device_id": "a99f214a", "device_ip": "ddd2926e", "device_model": "44956a24",
        "site_id": "1fbe01fe", "site_domain": "f3845767", "site_category": "28905ebd", "app_id": None,
        "app_domain": "7801e8d9", "app_category": "07d7df22", "C1": 1005, "banner_pos": 0, "device_type": 1,
        "device_conn_type": 2, "C14": 15706, "C15": 320, "C16": 50, "C17": 1722, "C18": 0, "C19": 35, "C20": -1,
        "C21": 79, "hour": 0, "weekday": 1, "timestamp": 1_413_849_600, "click": 0,
    }  # fmt: skip
    assert values(target, "train", "hour", "click") == [(0, 0), (23, 1)]
    assert values(target, "valid", "user_id", "hour", "weekday") == [("c357dbff", 1, 2)]
    assert values(target, "test", "timestamp") == [(1_413_849_600 + 2 * DAY,)]


def test_avazu_malformed_line(source: Path, target: Path) -> None:
    put(source, "train.csv", AVAZU, impression("14102100", 0), "1,0,14102100")
    with pytest.raises(UserError, match=r"train\.csv: line 3: 3 fields where 24 belong"):
        find("avazu").convert(source, target)
    put(source, "train.csv", AVAZU, impression("14102100", 0), impression("14132100", 0))
    with pytest.raises(UserError, match=r"train\.csv: column hour: 14132100 is not of the form YYMMDDHH"):
        find("avazu").convert(source, target)


# --- Criteo


def criteo_line(number: int) -> str:
    counts = [str(number), "", *(["-1"] * 11)]
    return "\t".join([str(number % 2), *counts, "68fd1e64", *([""] * 24), f"{number:08x}" if number % 3 else ""])


@pytest.mark.parametrize("blocks", [1 << 25, 400])
def test_criteo_in_order_without_a_group(
    blocks: int, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "BLOCK_BYTES", blocks)
    put(source, "train.txt", *map(criteo_line, range(20)))
    find("criteo").convert(source, target)
    names = ["click", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]
    assert pq.read_schema(target / "train.parquet").names == names
    assert [row["I1"] for row in rows(target, "train")] == list(range(16))
    assert [row["I1"] for row in rows(target, "valid")] == [16, 17]
    expected = {"click": 0, "I1": 18, "I2": None, **{f"I{n}": -1 for n in range(3, 14)}, "C1": "68fd1e64"}
    assert rows(target, "test")[0] == expected | {f"C{n}": None for n in range(2, 27)}
    assert rows(target, "test")[1]["C26"] == "00000013"


def test_criteo_group_by_a_column_of_the_callers_choice(source: Path, target: Path) -> None:
    put(source, "train.txt", *map(criteo_line, range(20)))
    find("criteo").convert(source, target, group="C26")
    assert values(target, "test", "group_id") == [("",), ("00000013",)]
    for wrong in ("user_id", "I1"):
        with pytest.raises(UserError, match=rf"group='{wrong}': the log has no user id, so there is no GAUC per user"):
            find("criteo").convert(source, target, group=wrong)


def test_criteo_malformed_line(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "BLOCK_BYTES", 400)
    put(source, "train.txt", *map(criteo_line, range(20)), "1\t2\t3")
    with pytest.raises(UserError, match=r"train\.txt: line 21: 3 fields where 40 belong"):
        find("criteo").convert(source, target)
    put(source, "train.txt", *map(criteo_line, range(7)), criteo_line(9).replace("\t9\t", "\tx\t"))
    with pytest.raises(UserError, match=r"train\.txt: line 8: .*invalid value 'x'"):
        find("criteo").convert(source, target)
