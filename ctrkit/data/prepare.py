"""From a raw click log to a prepared one: fit on the training part, encode all parts, all in two passes.

Both passes stream, so a log larger than memory works: memory is a few chunks and the distinct ids.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ctrkit.atomic import atomic_directory
from ctrkit.config.data import DataConfig
from ctrkit.data.columns import GROUP, LABEL, TEACHER, check_columns, special_columns
from ctrkit.data.encode import encode_feature
from ctrkit.data.fit import Fitted, fit, worker_threads
from ctrkit.data.in_order import in_order
from ctrkit.data.origin import find_origin
from ctrkit.data.prepared import FORMAT, PreparedLog
from ctrkit.data.request_sample import RequestSample
from ctrkit.data.source import Chunk, ClickLog
from ctrkit.data.split import PARTS, Codes, Part, SplitLog, open_split
from ctrkit.encoding import Counts, Encoding
from ctrkit.errors import UserError
from ctrkit.schema import Feature, Schema, SequenceFeature, table_of

_GROUPS_PER_FILE = 64
_DICTIONARY_ROWS = 4096
_NAMED = 5  # unreadable places that the warnings name; the manifest has all


def prepare(data: DataConfig, schema: Schema, directory: Path, *, progress: bool | None = None) -> PreparedLog:
    """Fit the encoding, encode the log and write both, with a manifest, into `directory`.

    Args:
        data: where the log is and how it is split. A synthetic log, and official raw files once they are converted,
            are kept in `raw/` beside `directory`.
        schema: what its columns mean.
        directory: appears whole or not at all; what it held before stays until then.
        progress: show a bar; None: if stderr is a terminal.

    Raises:
        UserError: the log cannot be read, does not fit the schema or the split, or the disk is full.
    """
    shown = sys.stderr.isatty() if progress is None else progress
    origin = find_origin(data)
    path = origin.log_path(directory.parent / "raw")
    started = time.perf_counter()
    needed = {*schema.special_columns(), *(feature.source for feature in schema.features)}
    source = open_split(path, data, schema.time, needed)
    check_columns(source.log, schema)
    with _bar("fit", source.rows(["train"]), shown) as advance:
        fitted = fit(source, schema, advance)
    with atomic_directory(directory) as new:
        dictionary = _dictionary_columns(fitted.encoding)
        writers = {part: _PartWriter(new, part, data.row_group_rows, dictionary) for part in PARTS}
        requests = RequestSample(schema.serving())
        with _bar("encode", source.rows(), shown) as advance, ThreadPoolExecutor(worker_threads()) as pool:
            _encode_all(source, fitted.encoding, writers, requests, pool, advance)
        for writer in writers.values():
            writer.close()
        requests.write(new / "requests.jsonl")
        counts = writers["train"].counts
        replace(fitted.encoding, counts=counts).save(new / "encoding")
        content = _manifest(origin.fingerprint(schema), fitted, writers, source.log)
        _write_manifest(new, content, time.perf_counter() - started)
    return PreparedLog.open(directory)


def fingerprint(data: DataConfig, schema: Schema) -> str:
    """SHA-256 of everything the prepared log depends on: if a `PreparedLog` has it, it need not be prepared again.

    Raises:
        UserError: no log lies where `data` says.
    """
    return find_origin(data).fingerprint(schema)


@dataclass(frozen=True)
class _Rows:
    """Rows of a chunk that belong to one part."""

    chunk: Chunk
    part: Part
    special: Mapping[str, pa.Array]
    raw: pa.RecordBatch


def _encode_all(
    source: SplitLog,
    encoding: Encoding,
    writers: Mapping[Part, "_PartWriter"],
    requests: RequestSample,
    pool: ThreadPoolExecutor,
    advance: Callable[[int], None],
) -> None:
    features = encoding.schema.features
    writing: Future[None] | None = None  # one chunk is written while the next ones are encoded

    def work() -> Iterator[tuple[_Rows, list[Callable[[], tuple[pa.Array, Counts]]]]]:
        for rows in _rows_by_part(source, encoding.schema):
            yield rows, [partial(_encoded, encoding, feature, rows) for feature in features]

    for rows, encoded in in_order(pool, work()):
        if rows.part == "test":
            requests.add(rows.raw)
        names = [*rows.special, *(f.name for f in features)]
        prepared = pa.table([*rows.special.values(), *(array for array, _ in encoded)], names=names)
        counts = {feature.name: count for feature, (_, count) in zip(features, encoded, strict=True)}
        if writing is not None:
            writing.result()
        writing = pool.submit(writers[rows.part].add, prepared, counts)
        advance(prepared.num_rows)
    if writing is not None:
        writing.result()
    for part, writer in writers.items():
        if writer.rows == 0:
            raise UserError(f"data.split leaves the {part} part empty; choose other files, values or shares")


def _encoded(encoding: Encoding, feature: Feature, rows: _Rows) -> tuple[pa.Array, Counts]:
    try:
        return encode_feature(encoding, feature, rows.raw.column(feature.source))
    except UserError as error:
        raise UserError(f"{rows.chunk.file}, near row {rows.chunk.first_row + 1:,}, {error}") from error


def _rows_by_part(source: SplitLog, schema: Schema) -> Iterator[_Rows]:
    features = [feature.source for feature in schema.features]
    for chunk, codes_N in source.stream([*schema.special_columns(), *features], encoded=features):
        special = special_columns(chunk, schema)
        raw = pa.RecordBatch.from_arrays(
            [*special.values(), *chunk.columns.columns], names=[*special, *chunk.columns.schema.names]
        )
        _check_labelled(raw, codes_N, chunk)
        for code in np.flatnonzero(np.bincount(codes_N, minlength=len(PARTS))):
            rows = raw if (codes_N == code).all() else raw.filter(pa.array(codes_N == code))
            yield _Rows(chunk, PARTS[code], {name: rows.column(name) for name in special}, rows)


def _check_labelled(raw: pa.RecordBatch, codes_N: Codes, chunk: Chunk) -> None:
    """Refuse rows of the valid and the test part without a label."""
    empty_N = np.isnan(raw.column(LABEL).to_numpy(zero_copy_only=False)) & (codes_N != PARTS.index("train"))
    if empty_N.any():
        row = int(empty_N.argmax())
        raise UserError(
            f"{chunk.place(row)}: an impression of the {PARTS[codes_N[row]]} part has no label; "
            "columns.unlabelled is for the training part alone: drop such rows"
        )


@dataclass
class _PartWriter:
    """Writes the files of one part, in row groups of equal size."""

    directory: Path
    part: Part
    row_group_rows: int
    dictionary: list[str]
    """Columns that Parquet encodes by a dictionary."""
    rows: int = 0
    clicks: int = 0
    without: dict[str, int] = field(default_factory=dict)
    """Rows that have no label, or no score of a teacher, by column."""
    row_groups: int = 0
    files: list[str] = field(default_factory=list)
    counts: dict[str, Counts] = field(default_factory=dict)
    _waiting: list[pa.Table] = field(default_factory=list)
    _num_waiting: int = 0
    _writer: Any = None

    def add(self, table: pa.Table, counts: Mapping[str, Counts]) -> None:
        self.rows += table.num_rows
        self.clicks += int(np.nansum(table.column(LABEL).to_numpy(), dtype=np.float64))
        for name in table.column_names:
            if name == LABEL or name.startswith(TEACHER):
                missing = int(np.isnan(table.column(name).to_numpy()).sum())
                self.without[name] = self.without.get(name, 0) + missing
        for name, count in counts.items():
            self.counts.setdefault(name, Counts()).add(count)
        self._waiting.append(table)
        self._num_waiting += table.num_rows
        whole = self._num_waiting // self.row_group_rows * self.row_group_rows
        if whole:
            waiting = pa.concat_tables(self._waiting)
            self._write(waiting.slice(0, whole))
            self._waiting, self._num_waiting = [waiting.slice(whole)], self._num_waiting - whole

    def close(self) -> None:
        if self._num_waiting:
            self._write(pa.concat_tables(self._waiting))
        if self._writer is not None:
            self._writer.close()

    def _write(self, table: pa.Table) -> None:
        for start in range(0, table.num_rows, self.row_group_rows):
            if self.row_groups % _GROUPS_PER_FILE == 0:
                self._next_file(table.schema)
            self._writer.write_table(table.slice(start, self.row_group_rows), row_group_size=self.row_group_rows)
            self.row_groups += 1

    def _next_file(self, schema: pa.Schema) -> None:
        if self._writer is not None:
            self._writer.close()
        self.files.append(f"{self.part}/part-{len(self.files):05d}.parquet")
        path = self.directory / self.files[-1]
        path.parent.mkdir(exist_ok=True)
        dictionary = [*self.dictionary, *([GROUP] if schema.field(GROUP).type == pa.string() else [])]
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=dictionary,
            write_page_checksum=True,
        )


def _dictionary_columns(encoding: Encoding) -> list[str]:
    """Columns of few values: for the others a dictionary costs time and space."""
    rows = encoding.num_rows()
    small = [f for f in encoding.schema.sparse_features if rows[table_of(f)] <= _DICTIONARY_ROWS]
    names = [f"{f.name}.list.element" if isinstance(f, SequenceFeature) else f.name for f in small]
    return [LABEL, *names]


def _manifest(fingerprint: str, fitted: Fitted, writers: Mapping[Part, _PartWriter], log: ClickLog) -> dict[str, Any]:
    parts = {
        part: {"rows": w.rows, "clicks": w.clicks, "row_groups": w.row_groups, "files": w.files}
        for part, w in writers.items()
    }
    counts = {part: {name: asdict(count) for name, count in w.counts.items()} for part, w in writers.items()}
    return {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "parts": parts,
        "counts": counts,
        "table_rows": fitted.encoding.num_rows(),
        "unreadable": [asdict(lost) for lost in log.unreadable],
        "warnings": [*_left_out(log), *fitted.warnings, *_warnings(writers)],
    }


def _left_out(log: ClickLog) -> Iterator[str]:
    """What was not read: so much in all, and the first places."""
    if not log.unreadable:
        return
    groups = [lost for lost in log.unreadable if lost.row_group is not None]
    counts = {"row groups": len(groups), "files": len(log.unreadable) - len(groups)}
    what = " and ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    yield f"{what} of the log cannot be read, {sum(lost.rows or 0 for lost in groups):,} known rows; left out"
    yield from (f"left out: {lost}" for lost in log.unreadable[:_NAMED])


def _warnings(writers: Mapping[Part, _PartWriter]) -> Iterator[str]:
    for name, counts in writers["test"].counts.items():
        if counts.values and counts.unseen > 0.5 * counts.values:
            yield f"feature '{name}': {counts.unseen / counts.values:.0%} of the test part's values are unseen in train"
    train = writers["train"]
    for name, missing in train.without.items():
        what = "label" if name == LABEL else f"score of the teacher '{name.removeprefix(TEACHER)}'"
        if missing:
            rows = f"{missing:,} of {train.rows:,} rows of the train part"
            yield f"{rows} have no {what}; losses that need it leave them out"
    for part in ("valid", "test"):
        if writers[part].clicks in (0, writers[part].rows):
            yield f"the {part} part has one class only: no AUC or GAUC can be computed on it"


def _write_manifest(directory: Path, content: dict[str, Any], seconds: float) -> None:
    rows = sum(part["rows"] for part in content["parts"].values())
    files = {str(f.relative_to(directory)): f.stat().st_size for f in sorted(directory.rglob("*")) if f.is_file()}
    content |= {"seconds": round(seconds, 3), "rows_per_second": round(rows / seconds), "files": files}
    (directory / "manifest.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _bar(what: str, rows: int | None, shown: bool) -> Iterator[Callable[[int], None]]:
    with tqdm(total=rows, desc=what, unit=" rows", unit_scale=True, disable=not shown) as bar:

        def advance(rows: int) -> None:
            bar.update(rows)

        yield advance
