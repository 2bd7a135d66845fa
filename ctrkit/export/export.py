"""A network into a bundle: exported, proven equal to torch on held-out rows and on raw requests, then written."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrkit.atomic import disk_full_of, temporary_directory
from ctrkit.bundle import MODEL, WEIGHTS, Bundle, Golden, write_bundle
from ctrkit.data.batch import Batch
from ctrkit.encoding import Encoding
from ctrkit.errors import UserError
from ctrkit.export.arrays import NetworkArrays
from ctrkit.export.from_torch import network_arrays
from ctrkit.export.gate import HeldOutRows, Limits, measured
from ctrkit.export.int8 import Int8, KeptTable
from ctrkit.export.items import AdsFile, table_pairs, write_item_table
from ctrkit.export.parity import Arrays, Graph, TwoGraphs, parity
from ctrkit.export.plain_network import PlainNetwork, graph_inputs, in_torch
from ctrkit.export.serving_graphs import (
    HEAD,
    HEAD_INT8,
    ITEM,
    KeptItems,
    write_head,
    write_item,
    write_model,
    write_table,
)  # fmt: skip
from ctrkit.export.tables import as_float32, stored
from ctrkit.export.weight_file import WeightFile
from ctrkit.export.widths import NarrowTower, Width, width_entry
from ctrkit.item_table import ItemTable
from ctrkit.manifest import ITEMS, TABLE, Approximation, ItemTableEntry, TablePrecision, WidthEntry
from ctrkit.nn.network import Network
from ctrkit.request import Request
from ctrkit.request_encoder import RequestEncoder

NUM_GOLDEN = 8
"""Requests that a bundle carries with their scores."""
_GOLDEN_ADS = 16
"""Ads of each, where they are drawn from the item table."""


@dataclass(frozen=True)
class Rewrites:
    """What is written beside the whole network in its own precision."""

    items: Path | None = None
    """Parquet file with a row an ad: its part of the first layer is computed now and kept in an item table."""
    item_key: str | None = None
    """Column of it, and of requests, that names an ad."""
    tables: TablePrecision = "float32"
    """Precision in which embedding tables and item table are kept."""
    int8: bool = False
    """Graphs in int8 beside the exact ones."""
    limits: Limits = field(default_factory=Limits)
    """What `tables` and `int8` may change, else they are left out."""

    @property
    def approximate(self) -> bool:
        """Whether any of it is not exact."""
        return self.int8 or self.tables != "float32"


def export_bundle(
    network: Network,
    encoding: Encoding,
    directory: Path,
    *,
    name: str,
    held_out: Sequence[Batch],
    requests: Sequence[Request],
    metrics: Mapping[str, float] | None = None,
    recipe: Mapping[str, Any] | None = None,
    rewrites: Rewrites | None = None,
    judged: HeldOutRows | None = None,
    widths: Mapping[str, Width] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export the network that ships.

    Args:
        network: trained; nothing but it and its tables is exported.
        encoding: of the log that it was trained on.
        directory: place of the bundle; an old one is replaced.
        name: of the model.
        held_out: batches on which every exact graph and torch must agree to 1e-6 in probability; int8 takes its bounds
            from them too.
        requests: raw requests; a few are kept as golden requests with torch's scores.
        metrics: of the network on held-out data, kept in the manifest.
        recipe: kept in the manifest.
        rewrites: item table, int8, tables in fewer bits.
        judged: rows on which approximations are measured, other than `held_out`; needed if there are any.
        widths: several towers over the tables of the network, by name, which the bundle has side by side; the first
            is the network itself, which scores requests that name none.
        say: told what an approximation changes, and whether it is kept.

    Raises:
        UserError: ONNX Runtime and torch differ, the file of ads is not fit, or there are approximations of several
            widths, or the disk is full; nothing is written then.
    """
    rewrites = rewrites or Rewrites()
    if widths and rewrites.approximate:
        raise UserError(
            "a bundle of several widths is exact: no gate has seen int8 of each; set export.int8 = false and "
            'export.tables = "float32", or export one width'
        )
    if rewrites.approximate and judged is None:
        raise UserError("an approximation needs held-out rows that judge it")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with disk_full_of(directory), temporary_directory(directory.parent, "export") as temporary:
        export = _Export(network, encoding, temporary, rewrites, held_out, judged, say)
        export.write(requests[:NUM_GOLDEN], widths or {})
        return write_bundle(
            directory,
            model=export.place,
            encoding=encoding,
            golden=export.golden,
            name=name,
            versions={package: version(package) for package in ("torch", "torchrec", "onnx", "onnxruntime")},
            multiplications=network.multiplications,
            parity_max_abs_diff=export.parity,
            item_table=export.item_table,
            tables=export.tables,
            approximations=export.approximations,
            metrics=metrics,
            recipe=recipe,
            widths=export.widths,
        )


class _Export:
    """The graphs of one bundle in a directory of their own."""

    golden: Golden
    parity: float
    item_table: ItemTableEntry | None = None
    widths: dict[str, WidthEntry]
    _kept: KeptItems

    def __init__(
        self,
        network: Network,
        encoding: Encoding,
        place: Path,
        rewrites: Rewrites,
        held_out: Sequence[Batch],
        judged: HeldOutRows | None,
        say: Callable[[str], None],
    ) -> None:
        self.place, self.tables, self.approximations = place / "graphs", rewrites.tables, dict[str, Approximation]()
        self._network, self._encoding, self._rewrites, self._judged = network.plain().eval(), encoding, rewrites, judged
        self._say = say
        self.widths = {}
        self._ads = None
        if rewrites.items is not None:
            if rewrites.item_key is None:
                raise UserError("export.items needs export.item_key, the column that names an ad")
            self._ads = AdsFile(rewrites.items, rewrites.item_key, encoding)
            self._ads.check()
        self._inputs = [self._arrays(batch) for batch in held_out]

    def _arrays(self, batch: Batch) -> Arrays:
        inputs = graph_inputs(batch, self._encoding.schema, self._network.embedding.dense_columns)
        return {name: tensor.numpy() for name, tensor in inputs.items()}

    def write(self, requests: Sequence[Request], widths: Mapping[str, Width]) -> None:
        arrays = network_arrays(self._network, self._encoding.schema)
        if self.tables != "float32" and not self._tables_pass(arrays):
            self.tables = "float32"
        arrays = _kept(arrays, self.tables)
        plain = PlainNetwork(self._network, self._encoding.schema, arrays.stacks)
        requests = self._golden_requests(requests)
        encoder = RequestEncoder(self._encoding, ignore_unknown=True)
        encoded = [encoder.encode(r.user, r.items, r.context)[0] for r in requests]
        scores = [in_torch(plain, feeds) for feeds in encoded]
        self.place.mkdir()
        with WeightFile(self.place / WEIGHTS) as weights:
            write_model(arrays, weights, self.place / MODEL)
            if self._ads is not None:
                write_item(arrays, weights, self.place / ITEM)
                write_head(arrays, weights, self.place / HEAD)
            expected = [(inputs, in_torch(plain, inputs)) for inputs in self._inputs]
            pairs = [*expected, *zip(encoded, scores, strict=True)]
            self.parity = parity(Graph(self.place / MODEL), pairs)
            if self._ads is not None:
                self.parity = max(self.parity, parity(TwoGraphs(self.place), pairs))
                self._write_table(self._ads, arrays, weights)
            approximate: dict[str, Graph | TwoGraphs] = {}
            if self._ads is not None and self.tables != "float32":
                approximate["item_table"] = TwoGraphs(self.place, kept=self._kept_part)
            if self._rewrites.int8:
                judge = partial(self._measured, "int8", plain)
                table = None if self._ads is None else KeptTable(self._kept, self._kept_part)
                approximate |= self._write_int8(Int8(self.place, arrays, weights, expected, table, judge))
            narrow = self._write_widths(widths, weights, encoded)
        self.golden = Golden(
            tuple(requests),
            tuple(tuple(of_ads.tolist()) for of_ads in scores),
            approximate={
                way: tuple(tuple(graph(feeds).tolist()) for feeds in encoded) for way, graph in approximate.items()
            },
            widths=narrow,
        )
        for name in (ITEM, HEAD, HEAD_INT8):
            (self.place / name).unlink(missing_ok=True)

    def _write_table(self, ads: AdsFile, arrays: NetworkArrays, weights: WeightFile) -> None:
        """The item table and its graph, which must score ads of the table as their features do."""
        self.item_table, self._kept = write_item_table(
            self.place / ITEMS, ads, self.place / ITEM, arrays.part_width, self.tables
        )
        write_table(arrays, weights, self.place / TABLE, self._kept)
        table = ItemTable.load(self.place / ITEMS, self.item_table.key, self.item_table.raw_type)
        pairs = table_pairs(ads, table, self._inputs, TwoGraphs(self.place, kept=self._kept_part))
        self.parity = max(self.parity, parity(Graph(self.place / TABLE), pairs))

    def _write_widths(
        self, widths: Mapping[str, Width], weights: WeightFile, encoded: Sequence[Arrays]
    ) -> dict[str, tuple[tuple[float, ...], ...]]:
        """Graphs of the narrower towers; the golden scores of each."""
        scores = {}
        for index, (name, width) in enumerate(widths.items()):
            if not index:
                table = None if self._ads is None else TABLE
                self.widths[name] = width_entry(width, MODEL, table, self.parity)
                continue
            assert width.network.embedding is self._network.embedding
            narrow = NarrowTower(self.place, name, width, self._encoding.schema)
            self.widths[name] = narrow.write(weights, [*self._inputs, *encoded], self._ads, self.item_table)
            scores[name] = tuple(tuple(in_torch(narrow.plain, feeds).tolist()) for feeds in encoded)
        return scores

    def _golden_requests(self, requests: Sequence[Request]) -> list[Request]:
        """Those of the log; where there is an item table, with ads of its file, so that it is looked at too."""
        if self._ads is None:
            return list(requests)
        found = []
        for seed, request in enumerate(requests):
            context = request.context if isinstance(request.context, Mapping) else next(iter(request.context), {})
            found.append(Request(request.user, self._ads.sample(_GOLDEN_ADS, seed), context))
        return found

    def _tables_pass(self, arrays: NetworkArrays) -> bool:
        """Whether tables in fewer bits, the item table too, change little enough."""
        candidate = _kept(arrays, self.tables)
        with tempfile.TemporaryDirectory(dir=self.place.parent) as temporary:
            place = Path(temporary)
            with WeightFile(place / WEIGHTS) as weights:
                write_model(candidate, weights, place / MODEL)
                graph: Graph | TwoGraphs = Graph(place / MODEL)
                if self._ads is not None:
                    write_item(candidate, weights, place / ITEM)
                    write_head(candidate, weights, place / HEAD)
                    graph = TwoGraphs(place, kept=self._kept_part)
            found = self._measured("tables", PlainNetwork(self._network, self._encoding.schema), graph)
        self.approximations["tables"] = found
        return found.accepted

    def _kept_part(self, part_NH: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return as_float32(stored(part_NH, self.tables))

    def _write_int8(self, int8: Int8) -> dict[str, Graph | TwoGraphs]:
        """The int8 graphs that pass, as ways to a score."""
        found, ways = int8.write()
        if found:
            self.approximations["int8"] = max(found, key=lambda one: one.max_difference)
        else:
            self._say("  int8: the network has no layer that it would make faster")
        return ways

    def _measured(self, name: str, plain: PlainNetwork, graph: Graph | TwoGraphs) -> Approximation:
        """An approximation against torch on the rows that judge."""
        assert self._judged is not None
        exact, approximate = [], []
        for batch in self._judged.batches():
            inputs = self._arrays(batch)
            exact.append(in_torch(plain, inputs))
            approximate.append(graph(inputs))
        found = measured(_joined(exact), _joined(approximate), self._judged, self._rewrites.limits)
        gauc = "no GAUC" if found.gauc_change is None else f"GAUC {found.gauc_change:+.1e}"
        verdict = "kept" if found.accepted else f"left out: {found.reason}"
        off = f"probability at most {found.max_difference:.1e} off"
        self._say(f"  {name} ({graph.path.name}): {gauc}, {off}; {verdict}")
        return found


def _kept(arrays: NetworkArrays, precision: TablePrecision) -> NetworkArrays:
    return replace(arrays, stacks={dim: stored(t, precision) for dim, t in arrays.stacks.items()})


def _joined(parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
    return np.concatenate(parts).astype(np.float64)
