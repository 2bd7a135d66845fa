import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctrkit.atomic import atomic_directory
from ctrkit.data import prepare as prepare_module
from ctrkit.data import source
from ctrkit.data.adapters import registry
from ctrkit.data.prepare import fingerprint, prepare
from ctrkit.data.prepared import PreparedLog
from ctrkit.data.split import PARTS
from ctrkit.encoding import FIRST_ROW, MISSING, UNSEEN, Counts, Vocabulary
from ctrkit.errors import UserError
from ctrkit.raw_values import typed_array
from ctrkit.request import read_requests
from ctrkit.schema import DenseFeature, Schema, SequenceFeature
from tests.data import small_log
from tests.data.small_log import data, schema, table, write_parts


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedLog:
    folder = tmp_path_factory.mktemp("log")
    return prepare(
        data(write_parts(folder / "raw"), row_group_rows=32),
        schema(weight="importance", oracle="truth", time="time", slices=("city", "time")),
        folder / "prepared",
    )


def raw(part: str) -> pa.Table:
    return {"train": table().slice(0, 180), "valid": table().slice(180, 60), "test": table().slice(240)}[part]


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_every_value_is_encoded_as_a_request_would_be(prepared: PreparedLog, part: Any) -> None:
    encoding = prepared.encoding
    for feature in prepared.schema.features:
        found = prepared.read_columns(part, [feature.name]).column(0)
        values = raw(part)[feature.source].to_pylist()
        if isinstance(feature, SequenceFeature):
            rows, lengths, counts = encoding.encode_sequence(feature.name, values)
            expected = [each.tolist() for each in np.split(rows, np.cumsum(lengths)[:-1])]
            assert found.type == pa.list_(pa.int32())
        else:
            typed, missing = typed_array(values, encoding.raw_types[feature.name], feature.name)
            if isinstance(feature, DenseFeature) and feature.transform != "bucketize":
                scaled, counts = encoding.encode_dense(feature.name, typed, missing)
                expected = scaled.tolist()
                assert found.type == pa.float32()
            else:
                rows, counts = encoding.encode_sparse(feature.name, typed, missing)
                expected = rows.tolist()
                assert found.type == pa.int32()
        assert found.to_pylist() == expected
        assert Counts(**prepared.manifest["counts"][part][feature.name]) == counts
        assert found.null_count == 0


def test_the_log_exercises_every_outcome(prepared: PreparedLog) -> None:
    totals = Counts()
    for counts in prepared.manifest["counts"]["test"].values():
        totals.add(Counts(**counts))
    assert min(totals.missing, totals.unseen, totals.truncated, totals.values) > 0
    items = prepared.read_columns("train", ["item_id"]).column(0).to_numpy()
    assert items.min() == MISSING
    assert items.max() == prepared.encoding.num_rows()["item_id"] - 1
    assert UNSEEN not in items  # whatever stands in the training part has a row
    cities = prepared.read_columns("test", ["city"]).column(0).to_numpy()
    assert set(cities) <= {MISSING, *range(FIRST_ROW, FIRST_ROW + 5)}


def test_columns_that_are_no_features(prepared: PreparedLog) -> None:
    names = ["__label", "__group", "__weight", "__oracle", "__slice/city", "__slice/time"]
    found = prepared.read_columns("test", names)
    assert found.schema.types == [
        pa.float32(),
        pa.string(),
        pa.float32(),
        pa.float64(),
        *(raw("test")[c].type for c in ("city", "time")),
    ]
    log = raw("test")
    assert found["__label"].to_pylist() == log["click"].to_pylist()
    assert found["__group"].to_pylist() == log["user_id"].to_pylist()
    np.testing.assert_allclose(found["__weight"].to_numpy(), log["importance"].to_numpy(), rtol=1e-7)
    assert found["__oracle"].to_pylist() == log["truth"].to_pylist()
    for column in ("city", "time"):
        assert found[f"__slice/{column}"].to_pylist() == log[column].to_pylist()
    schema_ = pq.read_schema(prepared.files("test")[0])
    assert schema_.names == names + [f.name for f in prepared.schema.features]


def test_row_groups_have_one_size(prepared: PreparedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = [pq.ParquetFile(file).metadata for file in prepared.files("train")]
    sizes = [m.row_group(i).num_rows for m in metadata for i in range(m.num_row_groups)]
    assert sizes == [32] * 5 + [20]
    assert prepared.manifest["parts"]["train"] == {
        "rows": 180,
        "clicks": sum(raw("train")["click"].to_pylist()),
        "row_groups": 6,
        "files": ["train/part-00000.parquet"],
    }
    assert (prepared.rows("valid"), prepared.clicks("valid")) == (60, sum(raw("valid")["click"].to_pylist()))
    monkeypatch.setattr(prepare_module, "_GROUPS_PER_FILE", 2)
    many = prepare(data(write_parts(tmp_path / "raw"), row_group_rows=32), schema(), tmp_path / "out")
    assert [pq.ParquetFile(f).metadata.num_rows for f in many.files("train")] == [64, 64, 52]
    assert many.read_columns("train", ["item_id"]).equals(prepared.read_columns("train", ["item_id"]))


def test_the_outcome_does_not_depend_on_chunks(
    prepared: PreparedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "CHUNK_ROWS", 7)
    again = prepare(
        data(write_parts(tmp_path / "raw"), row_group_rows=32),
        schema(weight="importance", oracle="truth", time="time", slices=("city", "time")),
        tmp_path / "prepared",
    )
    for part in ("train", "valid", "test"):
        for one, two in zip(prepared.files(part), again.files(part), strict=True):
            assert pq.read_table(one).equals(pq.read_table(two))
    assert again.manifest["counts"] == prepared.manifest["counts"]
    assert again.requests.read_bytes() == prepared.requests.read_bytes()
    assert again.encoding.scalings == prepared.encoding.scalings
    for name, table_ in prepared.encoding.tables.items():
        other = again.encoding.tables[name]
        if isinstance(table_, Vocabulary) and isinstance(other, Vocabulary):
            np.testing.assert_array_equal(table_.keys_V, other.keys_V)
            np.testing.assert_array_equal(table_.counts_V, other.counts_V)
        else:
            assert table_ == other


def test_the_outcome_does_not_depend_on_how_texts_are_stored(
    prepared: PreparedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = schema(weight="importance", oracle="truth", time="time", slices=("city", "time"))
    path = write_parts(tmp_path / "raw")
    for name, rows in (("dictionaries", 1), ("plain", 10**9)):
        monkeypatch.setattr("ctrkit.data.log_file._DICTIONARY_ROWS", rows)
        assert bool(source.open_log(str(path)).files[0].dictionaries) == (name == "dictionaries")
        again = prepare(data(path, row_group_rows=32), columns, tmp_path / name)
        assert again.encoding.fingerprint() == prepared.encoding.fingerprint()
        assert again.requests.read_bytes() == prepared.requests.read_bytes()
        assert again.manifest["counts"] == prepared.manifest["counts"]
        for part in PARTS:
            for one, two in zip(prepared.files(part), again.files(part), strict=True):
                assert pq.read_table(one).equals(pq.read_table(two))


def test_open_gives_what_prepare_gave(prepared: PreparedLog) -> None:
    opened = PreparedLog.open(prepared.directory)
    assert opened.manifest == prepared.manifest
    assert opened.encoding.fingerprint() == prepared.encoding.fingerprint()
    assert opened.encoding.counts["item_id"] == Counts(**prepared.manifest["counts"]["train"]["item_id"])
    assert opened.schema == prepared.schema


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "train/part-00000.parquet").unlink(), r"part-00000\.parquet: missing"),
        (lambda d: (d / "test/part-00000.parquet").write_bytes(b"x"), "1 bytes, .* were written"),
        (lambda d: (d / "manifest.json").unlink(), "no prepared log lies here"),
        (lambda d: (d / "manifest.json").write_text("{"), "cannot be read"),
        (lambda d: (d / "manifest.json").write_text('{"format": 0}'), "another version"),
        (lambda d: (d / "manifest.json").write_text('{"format": 2, "files": {}}'), "lacks some of what"),
        (lambda d: (d / "encoding/item_id.keys.npy").unlink(), "missing"),
    ],
)
def test_a_damaged_prepared_log_does_not_open(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    prepare(data(write_parts(tmp_path / "raw")), schema(), tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=message + ".*ctrkit prepare"):
        PreparedLog.open(tmp_path / "out")


def test_the_fingerprint_is_that_of_the_input(tmp_path: Path) -> None:
    settings = data(write_parts(tmp_path / "raw"))
    first = prepare(settings, schema(), tmp_path / "out").fingerprint
    assert fingerprint(settings, schema()) == first
    assert fingerprint(settings, schema(weight="importance")) != first
    assert fingerprint(data(tmp_path / "raw", row_group_rows=10), schema()) != first
    features = {**small_log.FEATURES, "city": {"side": "user", "min_count": 3}}
    assert fingerprint(settings, schema(features)) != first
    os.utime(tmp_path / "raw" / "valid.parquet", ns=(1, 1))
    assert fingerprint(settings, schema()) != first


def test_groups_may_be_integers_and_stay_as_they_are(tmp_path: Path) -> None:
    big = 2**62 + 1
    log = table().drop(["user_id"]).append_column("user_id", pa.array([big + i // 5 for i in range(300)]))
    out = prepare(data(write_parts(tmp_path / "raw", log)), schema(), tmp_path / "out")
    groups = out.read_columns("train", ["__group"]).column(0)
    assert groups.type == pa.int64()
    assert groups.to_pylist() == log["user_id"].to_pylist()[:180]


@pytest.mark.parametrize("kind", [pa.bool_(), pa.float32(), pa.float64(), pa.uint8(), pa.int64()])
def test_labels_of_any_number_type(tmp_path: Path, kind: pa.DataType) -> None:
    log = table()
    log = log.set_column(0, "click", log["click"].cast(kind))
    out = prepare(data(write_parts(tmp_path / "raw", log)), schema(), tmp_path / "out")
    assert out.read_columns("valid", ["__label"]).column(0).to_pylist() == raw("valid")["click"].to_pylist()


def test_lists_of_every_arrow_kind(tmp_path: Path, prepared: PreparedLog) -> None:
    place = table().schema.get_field_index("recent_items")
    lists = table()["recent_items"].combine_chunks()
    for kind in (pa.large_list(pa.int32()), pa.list_(pa.int16())):
        log = table().set_column(place, "recent_items", lists.cast(kind))
        out = prepare(data(write_parts(tmp_path / "raw", log)), schema(), tmp_path / "out")
        for part in ("train", "test"):
            assert out.read_columns(part, ["recent_items"]).equals(prepared.read_columns(part, ["recent_items"]))


def test_a_null_list_that_hides_elements_is_empty() -> None:
    from ctrkit.data.columns import cut_lists

    hidden = pa.ListArray.from_arrays(
        pa.array([0, 2, 4, 6]), pa.array([1, 2, 3, 4, 5, 6]), mask=pa.array([False, True, False])
    )
    for array in (hidden, pa.concat_arrays([hidden, hidden]).slice(3)):
        lists = cut_lists(array, 5)
        assert lists.values.to_pylist() == [1, 2, 5, 6]
        assert lists.offsets_N1.tolist() == [0, 2, 2, 4]
    assert cut_lists(hidden, 1).values.to_pylist() == [1, 5]
    assert cut_lists(hidden, 1).truncated == 2
    fixed = pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3, 4]), 2)
    assert cut_lists(fixed, 1).values.to_pylist() == [1, 3]


def test_csv_gives_what_parquet_gives(tmp_path: Path) -> None:
    log = table().drop(["recent_items"])
    features = {name: spec for name, spec in small_log.FEATURES.items() if name != "recent_items"}
    log = log.set_column(2, "city", pa.array([f"c{i % 7}" for i in range(300)]))  # an empty text is null in CSV
    one = prepare(data(write_parts(tmp_path / "parquet", log)), schema(features), tmp_path / "one")
    (tmp_path / "csv").mkdir()
    for part in ("train", "valid", "test"):
        pq.read_table(tmp_path / "parquet" / f"{part}.parquet").to_pandas().to_csv(
            tmp_path / "csv" / f"{part}.csv", index=False
        )
    two = prepare(data(tmp_path / "csv"), schema(features), tmp_path / "two")
    for part in PARTS:
        assert pq.read_table(one.files(part)[0]).equals(pq.read_table(two.files(part)[0]))


# Requests


def requests_of(tmp_path: Path, log: pa.Table, **columns: Any) -> list[dict[str, Any]]:
    out = prepare(data(write_parts(tmp_path / "raw", log)), schema(**columns), tmp_path / "out")
    return [request.to_json() for request in read_requests(out.requests)]


def test_consecutive_rows_of_a_user_are_a_request(tmp_path: Path) -> None:
    log = raw("test").to_pylist()
    found = requests_of(tmp_path, table())
    assert [len(request["items"]) for request in found] == [5] * 12
    for i, request in enumerate(found):
        rows = log[5 * i : 5 * i + 5]
        assert request["user"] == {name: rows[0][name] for name in ("user_id", "city", "recent_items")}
        assert request["items"] == [{name: row[name] for name in ("item_id", "campaign", "price")} for row in rows]
        assert request["context"] == [{"is_app": row["is_app"]} for row in rows]


def test_another_time_is_another_request(tmp_path: Path) -> None:
    log = table().drop(["time"]).append_column("time", pa.array([i // 2 for i in range(300)]))
    sizes = [len(request["items"]) for request in requests_of(tmp_path, log, time="time")]
    assert set(sizes) == {2}  # five rows of a user: 2, 2, 1 or 1, 2, 2; single rows are no request


def test_a_log_in_no_order_gathers_the_rows_of_a_user(tmp_path: Path) -> None:
    users = pa.array([f"u{i % 10}" for i in range(300)])
    log = table().set_column(1, "user_id", users)
    found = requests_of(tmp_path, log, time="time")
    assert [len(request["items"]) for request in found] == [6] * 10
    rows = [row for row in log.slice(240).to_pylist() if row["user_id"] == found[3]["user"]["user_id"]]
    assert found[3]["items"] == [{name: row[name] for name in ("item_id", "campaign", "price")} for row in rows]


def test_no_more_requests_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrkit.data.request_sample.MAX_REQUESTS", 4)
    monkeypatch.setattr("ctrkit.data.request_sample.MAX_ADS", 3)
    monkeypatch.setattr("ctrkit.data.request_sample.WINDOW_ROWS", 40)
    found = requests_of(tmp_path, table())
    assert [request["user"]["user_id"] for request in found] == ["u0", "u2", "u4", "u6"]
    assert {len(request["items"]) for request in found} == {3}


def test_infinite_values_are_written_as_json_can(tmp_path: Path) -> None:
    log = table().drop(["price"]).append_column("price", pa.array([1.0, 2.0, 3.0, 4.0, np.inf] * 60))
    assert requests_of(tmp_path, log)[0]["items"][4]["price"] == np.finfo(np.float64).max


# Where the log comes from


def test_a_synthetic_log_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = data("x").model_copy(update={"path": None})
    settings = type(settings).model_validate(
        {"synthetic": {"rows": 2000, "seed": 3, "days": 4}, "split": {"by": "column", "column": "day"}}
    )
    features = {"user_id": {"side": "user"}, "ad_id": {"side": "item"}, "hour": {"side": "context"}}
    log_schema = Schema.from_mapping(features, label="click", group="user_id", oracle="click_probability")
    out = prepare(settings, log_schema, tmp_path / "prepared")
    assert sum(out.rows(part) for part in ("train", "valid", "test")) == 2000
    monkeypatch.setattr("ctrkit.data.synthetic.generate", None)
    again = prepare(settings, log_schema, tmp_path / "prepared")
    assert again.fingerprint == out.fingerprint == fingerprint(settings, log_schema)
    assert sorted(p.name[:10] for p in (tmp_path / "raw").iterdir() if p.name[0] != ".") == ["synthetic-"]


def fake_adapter(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def convert(source: Path, target: Path, **options: Any) -> None:
        calls.append(options)
        write_parts(target, pq.read_table(source / "official.dat"))

    adapter = registry.Adapter("fake", ("official.*",), convert, "user_id")
    monkeypatch.setattr(registry, "find", lambda name: adapter)
    return calls


def test_official_raw_files_are_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_adapter(monkeypatch)
    (tmp_path / "official").mkdir()
    pq.write_table(table(), tmp_path / "official" / "official.dat")
    settings = data(tmp_path / "official", adapter="fake", adapter_options={"a": 1})
    for _ in range(2):
        out = prepare(settings, schema(), tmp_path / "run" / "prepared")
        assert out.rows("train") == 180
    assert calls == [{"a": 1}]
    prepare(data(tmp_path / "official", adapter="fake"), schema(), tmp_path / "run" / "prepared")
    assert calls == [{"a": 1}, {}]


def test_flat_parts_are_used_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_adapter(monkeypatch)
    pq.write_table(table(), write_parts(tmp_path / "raw") / "official.dat")
    prepare(data(tmp_path / "raw", adapter="fake"), schema(), tmp_path / "run" / "prepared")
    assert calls == []


# Whole or not at all


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_adapter(monkeypatch)
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / "official.dat").write_text("no parquet")
    with pytest.raises(pa.ArrowInvalid):
        prepare(data(tmp_path / "official", adapter="fake"), schema(), tmp_path / "run" / "prepared")
    assert visible(tmp_path / "run" / "raw") == []


def visible(folder: Path) -> list[str]:
    """Names in a folder, lock files apart."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_a_full_disk_is_said_and_leaves_the_old_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = data(write_parts(tmp_path / "raw"))
    old = prepare(settings, schema(), tmp_path / "run" / "prepared")

    def write_table(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", write_table)
    with pytest.raises(UserError, match=r"prepared: the disk is full; free some space"):
        prepare(settings, schema(weight="importance"), tmp_path / "run" / "prepared")
    assert visible(tmp_path / "run") == ["prepared"]
    assert PreparedLog.open(tmp_path / "run" / "prepared").fingerprint == old.fingerprint


def test_a_new_log_takes_the_place_of_the_old(tmp_path: Path) -> None:
    settings = data(write_parts(tmp_path / "raw"))
    prepare(settings, schema(), tmp_path / "run" / "prepared")
    (tmp_path / "run" / "prepared" / "stray").write_text("")
    new = prepare(settings, schema(weight="importance"), tmp_path / "run" / "prepared")
    assert visible(tmp_path / "run") == ["prepared"]
    assert not (tmp_path / "run" / "prepared" / "stray").exists()
    assert "__weight" in pq.read_schema(new.files("train")[0]).names


def test_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    for name in (".x.new-1", ".x.old-2", ".y.new-1", "x"):
        (tmp_path / name).mkdir()
    with atomic_directory(tmp_path / "x") as new:
        (new / "file").write_text("1")
        assert not (tmp_path / "x" / "file").exists()
    assert visible(tmp_path) == [".y.new-1", "x"]


def test_what_stepped_aside_for_a_process_that_died_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".x.old-2").mkdir()
    (tmp_path / ".x.old-2" / "file").write_text("whole")
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "x"):
        _ = 1 / 0
    assert (tmp_path / "x" / "file").read_text() == "whole"


def test_what_stepped_aside_comes_back_if_the_new_cannot_move_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = tmp_path / "x", Path.rename

    def refuse(self: Path, to: Path) -> Path:
        if ".new-" in self.name:
            raise PermissionError(1, "no")
        return rename(self, to)

    target.mkdir()
    (target / "file").write_text("whole")
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError), atomic_directory(target):
        pass
    assert (target / "file").read_text() == "whole"


def test_two_processes_do_not_write_one_directory(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "x"), pytest.raises(UserError, match="another process is writing it"):  # noqa: SIM117
        with atomic_directory(tmp_path / "x"):
            pass


_PREPARE = """
import sys
from pathlib import Path
from tests.data.small_log import data, schema
from ctrkit.data import prepare, source
source.CHUNK_ROWS = 200
print("ready", flush=True)
prepare.prepare(data(sys.argv[1], row_group_rows=100), schema(weight="importance"), Path(sys.argv[2]))
print("done", flush=True)
"""


def kill_moments() -> Iterator[float]:
    yield from np.random.default_rng(0).uniform(0.0, 0.5, 6)


def test_killed_at_any_moment_the_old_log_or_none_opens(tmp_path: Path) -> None:
    path, target = write_parts(tmp_path / "raw", table(20_000)), tmp_path / "run" / "prepared"
    old = prepare(data(path), schema(), target).fingerprint
    new = prepare(data(path, row_group_rows=100), schema(weight="importance"), tmp_path / "new").fingerprint
    outcomes = []
    for moment in kill_moments():
        process = subprocess.Popen(
            [sys.executable, "-c", _PREPARE, str(path), str(target)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process, process.stdout as output:
            assert output.readline() == "ready\n"
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            done = output.read() == "done\n"
        opened = PreparedLog.open(target)
        # a kill between the last rename and the word "done" leaves the new log, whole; nothing but these two ever opens
        assert opened.fingerprint in ({new} if done else {old, new})
        outcomes.append(done)
        assert opened.read_columns("train", ["item_id"]).num_rows == 12_000
    assert not all(outcomes)
    prepare(data(path), schema(), target)
    assert visible(tmp_path / "run") == ["prepared"]


def test_killed_between_the_two_renames_none_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = data(write_parts(tmp_path / "raw"))
    prepare(settings, schema(), tmp_path / "run" / "prepared")
    (tmp_path / "run" / "prepared").rename(tmp_path / "run" / ".prepared.old-1")
    with pytest.raises(UserError, match="no prepared log lies here"):
        PreparedLog.open(tmp_path / "run" / "prepared")
    prepare(settings, schema(), tmp_path / "run" / "prepared")
    assert visible(tmp_path / "run") == ["prepared"]


# What people see


def test_the_bar_is_shown_on_a_terminal_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = data(write_parts(tmp_path / "raw"))
    prepare(settings, schema(), tmp_path / "out")
    assert capsys.readouterr().err == ""
    prepare(settings, schema(), tmp_path / "out", progress=True)
    shown = capsys.readouterr().err
    assert "fit: 100%" in shown
    assert "encode: 100%" in shown
    assert " rows/s" in shown


def test_the_manifest_warns(tmp_path: Path) -> None:
    log = table()
    items = pa.array([i if i < 240 else 1000 + i for i in range(300)])
    log = log.drop(["item_id"]).append_column("item_id", items)
    log = log.set_column(0, "click", pa.array([i % 2 if i < 240 else 0 for i in range(300)]))
    out = prepare(data(write_parts(tmp_path / "raw", log)), schema(), tmp_path / "out")
    assert out.manifest["warnings"] == [
        "feature 'item_id': 100% of the test part's values are unseen in train",
        "the test part has one class only: no AUC or GAUC can be computed on it",
    ]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["rows_per_second"] > 0


def test_a_flipped_bit_in_a_prepared_log_is_found(tmp_path: Path) -> None:
    log = prepare(data(write_parts(tmp_path / "raw")), schema(), tmp_path / "out")
    file = log.files("train")[0]
    column = pq.ParquetFile(file).metadata.row_group(0).column(5)
    content = bytearray(file.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"part-00000\.parquet: damaged .*run `ctrkit prepare` again"):
        PreparedLog.open(tmp_path / "out").read_columns("train", [column.path_in_schema])


def test_decimals_of_a_dense_feature_are_numbers_in_the_requests(tmp_path: Path) -> None:
    log = table()
    prices = [None if price is None else Decimal(f"{price:.2f}") for price in log["price"].to_pylist()]
    log = log.set_column(log.schema.get_field_index("price"), "price", pa.array(prices, pa.decimal128(9, 2)))
    items = [item for request in requests_of(tmp_path, log) for item in request["items"]]
    assert [item["price"] for item in items] == [None if p is None else float(p) for p in prices[240:]]
