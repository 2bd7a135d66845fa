"""The item table of a bundle, from a file of ads."""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ctrkit.data.columns import decoded
from ctrkit.data.encode import encode_feature
from ctrkit.data.ids import id_keys
from ctrkit.encoding import Encoding
from ctrkit.errors import UserError
from ctrkit.export.network_graph import Rounding
from ctrkit.export.parity import Arrays, Graph, TwoGraphs
from ctrkit.export.serving_graphs import KeptItems
from ctrkit.export.tables import RowwiseInt8, as_float32, stored
from ctrkit.export.weight_file import without_denormals
from ctrkit.graph import Feeds, side_features
from ctrkit.item_table import KEYS_FILE, PART_FILE, PART_INT8_FILE, SCALE_FILE, ItemTable
from ctrkit.manifest import ADS, ItemTableEntry, TablePrecision
from ctrkit.raw_values import Int64Array, RawType

_CHUNK = 16_384


@dataclass(frozen=True)
class AdsFile:
    """A Parquet file with a row an ad: the column that names it, and every column of the item side.

    Args:
        path: of the file.
        key: column that names an ad.
        encoding: of the log that the network was trained on.
    """

    path: Path
    key: str
    encoding: Encoding

    def check(self) -> None:
        """Raise UserError unless the file can be read and has the columns, and its first ads can be encoded."""
        features = self.encoding.schema.side("item")
        if not features:
            raise UserError('export.items: no feature has side = "item", so there is nothing to keep of an ad')
        try:
            names = pq.read_schema(self.path).names
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.path}: no readable Parquet file of ads ({error})") from error
        for name in (self.key, *(feature.source for feature in features)):
            if name not in names:
                raise UserError(f"{self.path}: has no column '{name}'; write one row an ad, with {', '.join(names)}")
        if pq.read_metadata(self.path).num_rows == 0:
            raise UserError(f"{self.path}: holds no ad; leave export.items out to export without an item table")
        # before the requests that are made of its ads, where nobody would know whose values they are
        next(self.inputs())

    def keys(self) -> tuple[Int64Array, RawType]:
        """64-bit key of each ad, in the order of the file, and the type of the raw ones.

        Raises:
            UserError: an ad has no key, or two have the same.
        """
        column = decoded(pq.read_table(self.path, columns=[self.key])[self.key].combine_chunks())
        raw_type = self._raw_type(column.type)
        with self._naming():
            keys_A, missing_A = id_keys(column, raw_type, self.key)
        if missing_A.any():
            raise UserError(f"{self.path}: row {int(missing_A.argmax())} has no '{self.key}'; every ad needs one")
        order = np.argsort(keys_A, kind="stable")
        twice = np.flatnonzero(keys_A[order[1:]] == keys_A[order[:-1]])
        if len(twice):
            ad = column[int(order[twice[0]])].as_py()
            raise UserError(f"{self.path}: ad {ad!r} is there twice; write one row an ad")
        return keys_A, raw_type

    def _raw_type(self, kind: Any) -> RawType:
        for feature in self.encoding.schema.features:
            if feature.source == self.key and self.encoding.raw_types[feature.name] != "float":
                return self.encoding.raw_types[feature.name]
        if pa.types.is_integer(kind):
            return "int"
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return "string"
        raise UserError(f"{self.path}: column '{self.key}' is {kind}; an ad is named by an integer or a string")

    def inputs(self) -> Iterator[Feeds]:
        """The item inputs of the graph, some thousand ads at a time, in the order of the file."""
        columns = sorted({feature.source for feature in self.encoding.schema.side("item")})
        with pq.ParquetFile(self.path) as file:
            for chunk in file.iter_batches(batch_size=_CHUNK, columns=columns):
                with self._naming():
                    inputs = _item_inputs(self.encoding, chunk)
                yield inputs

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the file in what the encoding says of its values."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error

    def first_chunk(self) -> tuple[Feeds, list[Any]]:
        """The inputs of the first ads, and the raw values of their key."""
        inputs = next(self.inputs())
        num_ads = len(next(iter(inputs.values())))
        return inputs, pq.read_table(self.path, columns=[self.key])[self.key][:num_ads].to_pylist()

    def sample(self, num_ads: int, seed: int = 0) -> list[dict[str, Any]]:
        """Raw values of some ads, as a request has them."""
        names = sorted({self.key, *(feature.source for feature in self.encoding.schema.side("item"))})
        table = pq.read_table(self.path, columns=names)
        chosen = np.random.default_rng(seed).permutation(len(table))[:num_ads]
        rows: list[dict[str, Any]] = table.take(chosen).to_pylist()
        return rows


def write_item_table(
    directory: Path, ads: AdsFile, item_graph: Path, width: int, precision: TablePrecision
) -> tuple[ItemTableEntry, KeptItems]:
    """Write the first layer's part of every ad, as `ctrkit.item_table` reads it; memory does not grow with the ads.

    Raises:
        UserError: the file of ads is not fit.
    """
    keys_A, raw_type = ads.keys()
    directory.mkdir()
    np.save(directory / KEYS_FILE, np.sort(keys_A), allow_pickle=False)
    kept = _write_part(directory, PART_FILE, ads, keys_A, item_graph, width, precision)
    entry = ItemTableEntry(key=ads.key, raw_type=raw_type, ads=len(keys_A), width=width, precision=precision)
    return entry, kept


def write_narrow_part(directory: Path, name: str, ads: AdsFile, item_graph: Path, width: int) -> KeptItems:
    """Write the part that a narrower tower has of every ad beside an item table that is there."""
    return _write_part(directory, name, ads, ads.keys()[0], item_graph, width, "float32")


def table_pairs(
    ads: AdsFile, table: ItemTable, rows: Iterable[Arrays], by_features: TwoGraphs
) -> list[tuple[Arrays, npt.NDArray[np.float32]]]:
    """Inputs that name the first ads of a file by their row, and the probabilities that their features give."""
    pairs: list[tuple[Arrays, npt.NDArray[np.float32]]] = []
    items, values = ads.first_chunk()
    for inputs in rows:
        once = {name: array[:1] for name, array in inputs.items() if name not in items}
        pairs.append(({**once, ADS: table.rows(values)}, by_features({**once, **items})))
    return pairs


def _write_part(
    directory: Path,
    name: str,
    ads: AdsFile,
    keys_A: Int64Array,
    item_graph: Path,
    width: int,
    precision: TablePrecision,
) -> KeptItems:
    order = np.argsort(keys_A)
    place_A = np.empty(len(order), np.int64)
    place_A[order] = np.arange(len(order))
    part_AH = _new(directory / name, precision, (len(keys_A), width))
    scale_A1 = _new(directory / SCALE_FILE, "float32", (len(keys_A), 1)) if precision == "int8" else None
    graph, start = Graph(item_graph), 0
    for inputs in ads.inputs():
        part = stored(without_denormals(graph(inputs)), precision)
        place = place_A[start : start + len(next(iter(inputs.values())))]
        start += len(place)
        if isinstance(part, RowwiseInt8):
            assert scale_A1 is not None
            part_AH[place], scale_A1[place] = part.values_VE, part.scale_V1
        else:
            part_AH[place] = part
    scale = None if scale_A1 is None else _kept(directory / SCALE_FILE, scale_A1)
    return KeptItems(_kept(directory / name, part_AH), scale)


def rounding_of(kept: KeptItems, others: Iterable[npt.NDArray[np.float32]]) -> Rounding:
    """What keeps every number of an item table, and of the parts of other ads, in uint8."""
    bounds = [(float(part.min()), float(part.max())) for part in itertools.chain(_parts(kept), others)]
    return Rounding.between(min(low for low, _ in bounds), max(high for _, high in bounds))


def write_int8_part(directory: Path, kept: KeptItems, rounding: Rounding) -> KeptItems:
    """Write an item table's parts in uint8 beside those that it has."""
    shape = kept.part[1].shape
    part_AH = np.lib.format.open_memmap(directory / PART_INT8_FILE, mode="w+", dtype=np.uint8, shape=shape)
    for start, part in zip(range(0, shape[0], _CHUNK), _parts(kept), strict=True):
        part_AH[start : start + _CHUNK] = rounding(part)
    return KeptItems(_kept(directory / PART_INT8_FILE, part_AH), None)


def _parts(kept: KeptItems) -> Iterator[npt.NDArray[np.float32]]:
    """The parts of some thousand ads at a time."""
    for start in range(0, len(kept.part[1]), _CHUNK):
        rows = slice(start, start + _CHUNK)
        part = kept.part[1][rows]
        yield as_float32(part if kept.scale is None else RowwiseInt8(part, kept.scale[1][rows]))


def _kept(path: Path, array: npt.NDArray[Any]) -> tuple[str, npt.NDArray[Any], int]:
    array.flush()  # type: ignore[attr-defined]
    return f"{path.parent.name}/{path.name}", array, path.stat().st_size - array.nbytes


def _new(path: Path, dtype: str, shape: tuple[int, int]) -> npt.NDArray[Any]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)


def _item_inputs(encoding: Encoding, chunk: pa.RecordBatch) -> Feeds:
    features = side_features(encoding.schema, "item")
    found = {f.name: encode_feature(encoding, f, chunk.column(f.source))[0] for f in encoding.schema.side("item")}
    feeds: Feeds = {}
    if features.single:
        feeds["ids_item"] = np.stack([found[name].to_numpy().astype(np.int64) for name in features.single], axis=1)
    for feature in features.sequences:
        offsets = found[feature.name].offsets.to_numpy()
        length_N = np.diff(offsets).astype(np.int64)
        ids_NL = np.zeros((len(chunk), feature.max_len), np.int64)
        ids_NL[np.arange(feature.max_len) < length_N[:, None]] = found[feature.name].values.to_numpy()
        feeds |= {f"{feature.name}_ids": ids_NL, f"{feature.name}_length": length_N}
    if features.dense:
        feeds["dense_item"] = np.stack([found[name].to_numpy() for name in features.dense], axis=1)
    return feeds
