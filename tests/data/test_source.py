import gzip
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from ctrkit.config.data import Format
from ctrkit.data import source
from ctrkit.data.columns import check_columns
from ctrkit.data.source import ClickLog, open_log
from ctrkit.errors import UserError
from ctrkit.schema import Schema

LOG = pa.table({"a": list(range(100)), "b": [f"s{i % 7}" for i in range(100)], "day": [i // 25 for i in range(100)]})


def read(log: ClickLog, *columns: str) -> dict[str, list[Any]]:
    chunks = [chunk.columns for chunk in log.chunks(columns or ("a", "b", "day"))]
    content: dict[str, list[Any]] = pa.Table.from_batches(chunks).to_pydict()
    return content


def write_days(folder: Path) -> Path:
    for day in range(4):
        (folder / f"day={day}").mkdir(parents=True)
        pq.write_table(LOG.slice(day * 25, 25).drop(["day"]), folder / f"day={day}" / "x.parquet", row_group_size=10)
    return folder


def test_a_file_a_folder_a_glob_and_a_uri_give_the_same_rows_in_order(tmp_path: Path) -> None:
    for i in range(4):
        pq.write_table(LOG.slice(i * 25, 25), tmp_path / f"part-{i}.parquet", row_group_size=7)
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".part-9.parquet.crc").write_bytes(b"x")
    pq.write_table(LOG, tmp_path / "_hidden.parquet")
    for path in (str(tmp_path), f"{tmp_path}/", f"{tmp_path}/part-*.parquet", f"file://{tmp_path}"):
        log = open_log(path)
        assert read(log) == LOG.to_pydict()
        assert log.rows == 100
    assert read(open_log(f"{tmp_path}/part-1.parquet")) == LOG.slice(25, 25).to_pydict()
    assert read(open_log(f"{tmp_path}/part-[12].parquet"))["a"] == list(range(25, 75))


def test_a_uri_that_only_fsspec_opens() -> None:
    files = fsspec.filesystem("memory")
    try:
        for i in range(4):
            with files.open(f"/log/day={i}/x.parquet", "wb") as file:
                pq.write_table(LOG.slice(i * 25, 25).drop(["day"]), file)
        assert read(open_log("memory://log")) == LOG.to_pydict()
        assert read(open_log("memory://log/day=[23]"))["day"] == [2] * 25 + [3] * 25
    finally:
        files.rm("/log", recursive=True)


def test_a_uri_that_nothing_opens() -> None:
    with pytest.raises(UserError, match=r"nosuch://x: no filesystem opens it"):
        open_log("nosuch://x")


def test_partition_folders_become_columns(tmp_path: Path) -> None:
    log = open_log(str(write_days(tmp_path)))
    assert read(log) == LOG.to_pydict()
    assert log.schema.field("day").type == pa.int64()
    assert read(log, "day")["day"] == LOG["day"].to_pylist()  # also where no other column is read
    assert read(open_log(f"{tmp_path}/day=[01]"))["a"] == list(range(50))


def test_partition_values_are_text_unless_all_are_whole_numbers(tmp_path: Path) -> None:
    for name in ("7", "2025-03-04", "a%2Fb", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / f"p={name}").mkdir()
        pq.write_table(LOG.slice(0, 1).select(["a"]), tmp_path / f"p={name}" / "x.parquet")
    assert read(open_log(str(tmp_path)), "p")["p"] == ["2025-03-04", "7", None, "a/b"]


@pytest.mark.parametrize("packed", ["", ".gz", ".bz2", ".zst"])
@pytest.mark.parametrize(("format", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_text_gives_the_same_rows(tmp_path: Path, format: Format, delimiter: str, packed: str) -> None:
    path = tmp_path / f"log.{format}{packed}"
    with pa.output_stream(path) as file:  # packs by the ending
        unquoted = pacsv.WriteOptions(delimiter=delimiter, quoting_style="none", quoting_header="none")
        pacsv.write_csv(LOG, file, unquoted)
    log = open_log(str(path))
    assert read(log) == LOG.to_pydict()
    assert log.rows is None
    loud = path.rename(tmp_path / path.name.upper())
    assert read(open_log(str(loud))) == LOG.to_pydict()
    other = loud.rename(tmp_path / f"part{packed}")
    assert read(open_log(str(other), format)) == LOG.to_pydict()


def test_a_quote_in_a_text_between_tabs_is_a_quote(tmp_path: Path) -> None:
    """Hive, Spark and MySQL write none around texts; as one that opens it would swallow what follows."""
    (tmp_path / "log.tsv").write_text('a\tq\n1\t"best phone\n2\tx\n3\t"y"\n4\tz"\n')
    log = open_log(str(tmp_path / "log.tsv"))
    assert read(log, "a", "q") == {"a": [1, 2, 3, 4], "q": ['"best phone', "x", '"y"', 'z"']}


def test_a_log_that_lies_there_twice_is_refused(tmp_path: Path) -> None:
    pq.write_table(LOG, tmp_path / "log.parquet")
    pacsv.write_csv(LOG, tmp_path / "more.csv")
    with pytest.raises(UserError, match=r"log\.parquet and .*more\.csv are of two formats; a log has one"):
        open_log(str(tmp_path))
    assert read(open_log(str(tmp_path), "parquet")) == LOG.to_pydict()
    assert read(open_log(f"{tmp_path}/*.csv")) == LOG.to_pydict()
    (tmp_path / "more.csv.gz").write_bytes(gzip.compress((tmp_path / "more.csv").read_bytes()))
    with pytest.raises(UserError, match=r"more\.csv and .*more\.csv\.gz look like one file twice"):
        open_log(str(tmp_path), "csv")


def test_a_first_file_without_a_column_is_named(tmp_path: Path) -> None:
    pq.write_table(LOG.drop_columns(["b"]), tmp_path / "0.parquet")
    pq.write_table(LOG, tmp_path / "1.parquet")
    schema = Schema.from_mapping({"b": {"side": "item"}}, label="a", group="day")
    with pytest.raises(UserError, match=r"0\.parquet.* 'b'"):
        check_columns(open_log(str(tmp_path)), schema)


def test_empty_fields_of_csv_are_null_and_na_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,b,c\n1,x,\n,,\n3,NA,\n")
    log = open_log(str(tmp_path / "log.csv"))
    assert read(log, "a", "b", "c") == {"a": [1, None, 3], "b": ["x", None, "NA"], "c": [None] * 3}
    assert log.schema.field("c").type == pa.string()


@pytest.mark.parametrize(
    ("mark", "told"),
    [
        (";", "semicolons; write it with commas"),
        ("\t", r'tabs; call it \.tsv, or set data\.format = "tsv"'),
        ("|", "bars; write it with commas"),
    ],
)
def test_a_csv_without_commas_is_told_what_it_has(tmp_path: Path, mark: str, told: str) -> None:
    for rows in ("1,5{0}2\n", "1{0}2\n"):  # a decimal comma makes two columns of the one
        path = tmp_path / "log.csv.gz"
        path.write_bytes(gzip.compress(("a{0}b\n" + rows).format(mark).encode()))
        with pytest.raises(UserError, match=f"its columns are separated by {told}"):
            open_log(str(path))
    (tmp_path / "log.tsv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r'separated by commas; call it \.csv, or set data\.format = "csv"'):
        open_log(str(tmp_path / "log.tsv"))
    (tmp_path / "one.csv").write_text("a\n1;2\n")
    assert read(open_log(str(tmp_path / "one.csv")), "a") == {"a": ["1;2"]}


def test_any_name_may_be_read_if_the_format_is_given(tmp_path: Path) -> None:
    pq.write_table(LOG, tmp_path / "log.bin")
    with pytest.raises(UserError, match=r"give data\.format"):
        open_log(str(tmp_path / "log.bin"))
    assert read(open_log(str(tmp_path / "log.bin"), "parquet")) == LOG.to_pydict()


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    pq.write_table(LOG, tmp_path / "x.parquet")
    log = open_log(str(tmp_path / "x.parquet"))
    # Damage the pages of column a: whoever reads them fails.
    column = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0).column(0)
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    (tmp_path / "x.parquet").write_bytes(content)
    assert read(log, "b", "day") == LOG.select(["b", "day"]).to_pydict()
    with pytest.raises(UserError, match=r"x\.parquet: cannot be read as Parquet"):
        read(log, "a")


def test_chunks_know_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "CHUNK_ROWS", 16)
    pq.write_table(LOG.slice(0, 60), tmp_path / "0.parquet", row_group_size=5)
    pq.write_table(LOG.slice(60, 40), tmp_path / "1.parquet", row_group_size=40)
    chunks = list(open_log(str(tmp_path)).chunks(["a"]))
    sizes = [chunk.columns.num_rows for chunk in chunks]
    assert sizes == [16, 16, 16, 12, 16, 16, 8]  # small row groups are put together
    assert [chunk.first_row for chunk in chunks] == [0, 16, 32, 48, 0, 16, 32]
    assert chunks[1].place(2) == f"{tmp_path}/0.parquet, row 19"


def test_files_of_unequal_width_take_the_wider_type(tmp_path: Path) -> None:
    for i, kind in enumerate([pa.null(), pa.int8(), pa.int64()]):
        value = None if kind == pa.null() else 2**40 if kind == pa.int64() else 1
        pq.write_table(pa.table({"a": pa.array([value], kind)}), tmp_path / f"{i}.parquet")
    log = open_log(str(tmp_path))
    assert log.schema.field("a").type == pa.int64()
    assert read(log, "a")["a"] == [None, 1, 2**40]


def test_dictionary_columns_with_other_dictionaries_in_each_row_group(tmp_path: Path) -> None:
    texts = pa.array([f"s{i}" for i in range(100)]).dictionary_encode()
    pq.write_table(pa.table({"a": texts}), tmp_path / "x.parquet", row_group_size=9)
    log = open_log(str(tmp_path))
    assert read(log, "a")["a"] == texts.to_pylist()


def test_dictionaries_that_differ_from_file_to_file_are_texts(tmp_path: Path) -> None:
    texts = pa.array(["x", "y"])  # pandas writes the categories of each file with the narrowest indices that do
    kinds = [pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int16(), pa.string()), pa.string()]
    for order in (kinds, kinds[::-1], kinds[1:]):
        folder = tmp_path / str(kinds.index(order[0])) / str(len(order))
        folder.mkdir(parents=True)
        for i, kind in enumerate(order):
            pq.write_table(pa.table({"a": texts.cast(kind)}), folder / f"{i}.parquet")
        log = open_log(str(folder))
        assert log.schema.field("a").type == pa.string()
        assert read(log, "a")["a"] == ["x", "y"] * len(order)


def test_batches_do_not_hold_more_than_a_chunk(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": range(600_000)}), tmp_path / "x.parquet", row_group_size=600_000)
    chunks = list(open_log(str(tmp_path)).chunks(["a"]))
    assert max(chunk.columns.num_rows for chunk in chunks) <= source.CHUNK_ROWS


def test_a_large_row_group_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"a": range(100_000)}), tmp_path / "x.parquet", use_dictionary=False, data_page_size=4000)
    sizes: list[int] = []

    class Handler(pafs.FSSpecHandler):  # type: ignore[misc]
        def open_input_file(self, path: str) -> Any:
            class Recorder(io.FileIO):
                def read(self, size: int | None = -1, /) -> bytes:
                    sizes.append(size or 0)
                    return super().read(-1 if size is None else size)

            return pa.PythonFile(Recorder(path), mode="r")

    filesystem = pafs.PyFileSystem(Handler(fsspec.filesystem("file")))
    monkeypatch.setattr("ctrkit.data.log_file._REMOTE_BUFFER", 10_000)
    [file] = open_log(str(tmp_path)).files
    rows = sum(b.num_rows for b in replace(file, filesystem=filesystem).batches(["a"], file.schema, 1000))
    assert rows == 100_000
    assert max(sizes) <= 70_000  # the footer's; the column has more than 400,000 bytes
    assert len(sizes) > 20


def test_a_flipped_bit_is_found_where_the_writer_wrote_checksums(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(LOG, path, compression="none", use_dictionary=False, write_page_checksum=True)
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="truncated or damaged"):
        read(open_log(str(path)), "a")


def test_a_path_that_exists_is_no_glob(tmp_path: Path) -> None:
    for name in ("log[12]", "log1"):
        (tmp_path / name).mkdir()
        pq.write_table(LOG.slice(0, len(name)), tmp_path / name / "x[1].parquet")
    assert open_log(str(tmp_path / "log[12]")).rows == 7
    assert open_log(str(tmp_path / "log[12]" / "x[1].parquet")).rows == 7
    assert open_log(str(tmp_path / "log[1]")).rows == 4


def test_an_empty_path() -> None:
    with pytest.raises(UserError, match="the path of the log is empty"):
        open_log("")


def test_texts_come_as_dictionaries_where_every_row_group_holds_them_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = pa.table(
        {"a": list(range(90)), "b": [None if i % 5 == 0 else f"s{i % 7}" for i in range(90)], "c": ["x"] * 90}
    )
    pq.write_table(log, tmp_path / "x.parquet", row_group_size=20, use_dictionary=["b"])
    small = open_log(str(tmp_path))
    assert small.files[0].dictionaries == frozenset()  # a batch ends where a dictionary does
    monkeypatch.setattr("ctrkit.data.log_file._DICTIONARY_ROWS", 18)
    opened = open_log(str(tmp_path))
    assert opened.files[0].dictionaries == {"b"}
    chunks = list(opened.chunks(["a", "b", "c"], encoded=["b", "c"]))
    assert [chunk.columns.num_rows for chunk in chunks] == [20, 20, 20, 20, 10]
    assert [chunk.first_row for chunk in chunks] == [0, 20, 40, 60, 80]
    assert {chunk.columns.column("b").type for chunk in chunks} == {pa.dictionary(pa.int32(), pa.string())}
    assert {chunk.columns.column("c").type for chunk in chunks} == {pa.string()}
    assert [v for chunk in chunks for v in chunk.columns.column("b").to_pylist()] == log["b"].to_pylist()
    assert {chunk.columns.column("b").type for chunk in opened.chunks(["b"])} == {pa.string()}  # if nobody asks
    pq.write_table(log.slice(0, 20), tmp_path / "x.parquet", use_dictionary=False)
    assert open_log(str(tmp_path)).files[0].dictionaries == frozenset()
