"""Logs with really damaged bytes: an error that names file and row group, or, if asked, left out and counted."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctrkit.data.log_file import LogFile
from ctrkit.data.prepare import fingerprint, prepare
from ctrkit.data.prepared import PreparedLog
from ctrkit.data.source import open_log
from ctrkit.errors import UserError
from tests.data.small_log import data, schema, table

FILE_ROWS, GROUP_ROWS, FILES = 150, 50, 4
DAMAGED = (1, 2)
"""File and row group."""


def write(folder: Path, **settings: Any) -> Path:
    """The small log in four files of three row groups, its rows numbered by their weight."""
    folder.mkdir()
    rows = FILES * FILE_ROWS
    log = table(rows)
    log = log.set_column(log.schema.get_field_index("importance"), "importance", pa.array(np.arange(rows) + 1.0))
    for i in range(FILES):
        part = log.slice(i * FILE_ROWS, FILE_ROWS)
        pq.write_table(part, folder / f"{i}.parquet", row_group_size=GROUP_ROWS, use_dictionary=False, **settings)
    return folder


def overwrite(folder: Path, column: str, change: Callable[[bytearray, int, int], None]) -> Path:
    """Change the pages of a column of the damaged row group."""
    path = folder / f"{DAMAGED[0]}.parquet"
    group = pq.ParquetFile(path).metadata.row_group(DAMAGED[1])
    found = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.startswith(column))
    content = bytearray(path.read_bytes())
    change(content, found.data_page_offset, found.data_page_offset + found.total_compressed_size)
    path.write_bytes(content)
    return folder


def noise(content: bytearray, start: int, end: int) -> None:
    content[start:end] = b"\xff" * (end - start)


def body(content: bytearray, start: int, end: int) -> None:
    """What follows the page's header, compressed."""
    content[end - 40 : end] = bytes(40)


def one_bit(content: bytearray, start: int, end: int) -> None:
    content[end - 3] ^= 1


def no_text(content: bytearray, start: int, end: int) -> None:
    content[end - 1] = 0xFF


def truncated(folder: Path) -> Path:
    path = folder / f"{DAMAGED[0]}.parquet"
    path.write_bytes(path.read_bytes()[:-500])
    return folder


def emptied(folder: Path) -> Path:
    (folder / f"{DAMAGED[0]}.parquet").write_bytes(b"")
    return folder


GROUPS: dict[str, Callable[[Path], Path]] = {
    "a page of noise": lambda f: overwrite(write(f), "item_id", noise),
    "the end of a compressed page": lambda f: overwrite(write(f, compression="zstd"), "time", body),
    "the end of a snappy page": lambda f: overwrite(write(f, compression="snappy"), "item_id", body),
    "a list's page": lambda f: overwrite(write(f), "recent_items", noise),
    "a bit, with checksums": lambda f: overwrite(
        write(f, compression="none", write_page_checksum=True), "price", one_bit
    ),
    "the label": lambda f: overwrite(write(f), "click", noise),
    "the time": lambda f: overwrite(write(f), "time", noise),
    "a text that is no UTF-8": lambda f: overwrite(write(f, compression="none"), "user_id", no_text),
}
WHOLE: dict[str, Callable[[Path], Path]] = {
    "a truncated file": lambda f: truncated(write(f)),
    "an empty file": lambda f: emptied(write(f)),
}
LOST = {"group": range(250, 300), "file": range(150, 300)}
SPLITS: list[dict[str, Any]] = [{"by": "random"}, {"by": "time"}, {"by": "column", "column": "day"}]


def prepared_from(folder: Path, out: Path, split: dict[str, Any], **settings: Any) -> PreparedLog:
    columns = schema(weight="importance", time="time")
    return prepare(data(folder, split=split, row_group_rows=32, **settings), columns, out)


def rows_of(log: PreparedLog) -> list[int]:
    """Numbers of the rows in all parts."""
    parts = [log.read_columns(part, ["__weight"]).column(0).to_numpy() for part in ("train", "valid", "test")]
    return sorted((np.concatenate(parts) - 1).astype(int).tolist())


@pytest.mark.parametrize("name", [name for name in GROUPS if "UTF-8" not in name])
def test_a_damaged_row_group_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    folder = GROUPS[name](tmp_path / "log")
    with pytest.raises(UserError, match=r"1\.parquet: .*damaged.*; it is row group 2 \(from 0\) of 3") as caught:
        prepared_from(folder, tmp_path / "out", {"by": "random"})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_text_that_is_no_utf8_is_an_error_that_names_file_and_column(tmp_path: Path) -> None:
    folder = GROUPS["a text that is no UTF-8"](tmp_path / "log")
    with pytest.raises(UserError, match=r"1\.parquet, column 'user_id', rows 1 to \d+: .*not UTF-8; write it as UTF-8"):
        prepared_from(folder, tmp_path / "out", {"by": "random"})


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split["by"])
@pytest.mark.parametrize("name", [*GROUPS, *WHOLE])
def test_if_asked_it_is_left_out_named_and_counted(tmp_path: Path, name: str, split: dict[str, Any]) -> None:
    folder = {**GROUPS, **WHOLE}[name](tmp_path / "log")
    log = prepared_from(folder, tmp_path / "out", split, skip_unreadable=True)
    lost = LOST["file" if name in WHOLE else "group"]
    assert rows_of(log) == sorted(set(range(FILES * FILE_ROWS)) - set(lost))
    [found] = log.manifest["unreadable"]
    path = str(folder / "1.parquet")
    if name in WHOLE:
        assert (found["file"], found["row_group"], found["rows"]) == (path, None, None)
        assert log.manifest["warnings"][0] == "1 files of the log cannot be read, 0 known rows; left out"
        assert log.manifest["warnings"][1].startswith(f"left out: {path}: ")
    else:
        assert (found["file"], found["row_group"], found["rows"]) == (path, 2, 50)
        assert log.manifest["warnings"][0] == "1 row groups of the log cannot be read, 50 known rows; left out"
        assert log.manifest["warnings"][1] == f"left out: {path}, row group 2 (50 rows): {found['why']}"
    assert found["why"]
    counts = log.manifest["counts"]
    assert sum(counts[part]["item_id"]["values"] for part in counts) == len(rows_of(log))


def test_what_is_left_is_prepared_as_a_log_of_it_alone(tmp_path: Path) -> None:
    """Vocabularies, scalings and the split know nothing of rows whose other columns are sound."""
    damaged = overwrite(write(tmp_path / "damaged"), "price", noise)
    sound = write(tmp_path / "sound")
    path = sound / "1.parquet"
    pq.write_table(pq.read_table(path).slice(0, 100), path, row_group_size=GROUP_ROWS)
    for split in SPLITS:
        one = prepared_from(damaged, tmp_path / "one", split, skip_unreadable=True)
        two = prepared_from(sound, tmp_path / "two", split)
        assert one.encoding.fingerprint() == two.encoding.fingerprint()
        assert one.manifest["counts"] == two.manifest["counts"]
        assert one.requests.read_bytes() == two.requests.read_bytes()
        assert rows_of(one) == rows_of(two)


def test_a_sound_log_is_the_same_either_way_and_the_setting_part_of_the_fingerprint(tmp_path: Path) -> None:
    folder = write(tmp_path / "log")
    one, two = (prepared_from(folder, tmp_path / str(skip), SPLITS[0], skip_unreadable=skip) for skip in (False, True))
    assert one.manifest["unreadable"] == two.manifest["unreadable"] == []
    assert one.encoding.fingerprint() == two.encoding.fingerprint()
    assert one.manifest["warnings"] == two.manifest["warnings"]
    for part in ("train", "valid", "test"):
        assert pq.read_table(one.files(part)[0]).equals(pq.read_table(two.files(part)[0]))
    assert one.fingerprint != two.fingerprint
    settings = data(folder, split=SPLITS[0], row_group_rows=32, skip_unreadable=True)
    assert fingerprint(settings, schema(weight="importance", time="time")) == two.fingerprint
    truncated(folder)  # the fingerprint does not need to open the files
    assert fingerprint(settings, schema(weight="importance", time="time")) != two.fingerprint


def test_a_part_whose_only_file_is_lost_is_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "log")
    for i, part in enumerate(("train", "valid", "test")):
        (folder / f"{i}.parquet").rename(folder / f"{part}.parquet")
    (folder / "valid.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="leaves the valid part empty"):
        prepared_from(folder, tmp_path / "out", {"by": "files"}, skip_unreadable=True)


def test_nothing_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "log") / "1.parquet"
    content = path.read_bytes()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x.parquet").write_bytes(content[:-500])
    with pytest.raises(UserError, match=r"no file of the log can be read; the first is .*x\.parquet: "):
        prepared_from(tmp_path / "one", tmp_path / "out", SPLITS[0], skip_unreadable=True)
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    (tmp_path / "one" / "x.parquet").write_bytes(b"PAR1" + b"\xff" * (footer - 4) + content[footer:])
    with pytest.raises(
        UserError, match=r"no row group of the log can be read; the first is .*x\.parquet, row group 0 "
    ):
        prepared_from(tmp_path / "one", tmp_path / "out", SPLITS[0], skip_unreadable=True)


def test_rows_behind_a_gap_know_their_place(tmp_path: Path) -> None:
    log = open_log(str(overwrite(write(tmp_path / "log"), "price", noise) / "1.parquet"))
    assert [(chunk.first_row, chunk.columns.num_rows) for chunk in log.readable(["click"]).chunks(["click"])] == [
        (0, 150)
    ]
    file = log.files[0]
    gap = LogFile(**{**vars(file), "row_groups": (0, 2)})
    chunks = list(log.chunks(["importance"], [gap]))
    assert [(chunk.first_row, chunk.columns.num_rows) for chunk in chunks] == [(0, 50), (100, 50)]
    assert chunks[1].columns["importance"][0].as_py() == 251.0
    assert [piece.row_groups for piece in gap.pieces()] == [(0,), (2,)]
    assert gap.rows == 100


def test_what_can_be_read_at_the_second_try_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, tries = write(tmp_path / "log"), 0
    read = LogFile._read

    def flaky(self: LogFile, columns: Any, known: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        nonlocal tries
        tries += 1
        if tries == 3:
            raise OSError("connection reset")
        yield from read(self, columns, known, rows)

    monkeypatch.setattr(LogFile, "_read", flaky)
    assert open_log(str(folder)).readable(["click"]).unreadable == ()
    assert tries == FILES * 3 + 1


def test_what_the_system_refuses_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "log")

    def refuse(self: LogFile, columns: Any, known: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(LogFile, "_read", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        prepared_from(folder, tmp_path / "out", SPLITS[0], skip_unreadable=True)


def test_a_file_that_the_system_refuses_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "log")

    def refuse(filesystem: Any, path: str) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ctrkit.data.log_file._open_parquet", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        prepared_from(folder, tmp_path / "out", SPLITS[0], skip_unreadable=True)


def test_pages_that_hold_fewer_rows_than_the_footer_says_are_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "log")
    read = LogFile._read

    def short(self: LogFile, columns: Any, known: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        for batch in read(self, columns, known, rows):
            yield batch.slice(1)

    monkeypatch.setattr(LogFile, "_read", short)
    with pytest.raises(UserError, match=r"0\.parquet: .*149 rows, its footer says 150.*row group 0"):
        prepared_from(folder, tmp_path / "out", SPLITS[0])
    with pytest.raises(UserError, match=r"no row group of the log can be read; .*49 rows, its footer says 50"):
        prepared_from(folder, tmp_path / "out", SPLITS[0], skip_unreadable=True)
