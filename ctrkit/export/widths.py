"""Narrower towers in the bundle of a widest one: graphs of their own over the same tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ctrkit.export.from_torch import network_arrays
from ctrkit.export.items import AdsFile, table_pairs, write_narrow_part
from ctrkit.export.parity import Arrays, Graph, TwoGraphs, parity
from ctrkit.export.plain_network import PlainNetwork, in_torch
from ctrkit.export.serving_graphs import write_head, write_item, write_model, write_table
from ctrkit.export.weight_file import WeightFile
from ctrkit.item_table import ItemTable
from ctrkit.manifest import ITEMS, ItemTableEntry, WidthEntry
from ctrkit.nn.network import Network
from ctrkit.schema import Schema


@dataclass(frozen=True)
class Width:
    """One of several towers over the same tables."""

    network: Network
    metrics: Mapping[str, float]
    """On held-out data."""


class NarrowTower:
    """The graphs of one narrower tower, all exact.

    Args:
        place: directory of the graphs.
        name: of the width, part of the files' names.
        width: the tower, over the tables of the widest one.
        schema: of the log that it was trained on.
    """

    def __init__(self, place: Path, name: str, width: Width, schema: Schema) -> None:
        self._place, self._name, self._width = place, name, width
        network = width.network.plain().eval()
        self._arrays = replace(network_arrays(network, schema), scope=f"w{name}/")
        self.plain = PlainNetwork(network, schema, self._arrays.stacks)

    def _file(self, kind: str) -> str:
        return f"{kind}.w{self._name}.onnx"

    def write(
        self, weights: WeightFile, rows: Sequence[Arrays], ads: AdsFile | None, item_table: ItemTableEntry | None
    ) -> WidthEntry:
        """Write its graphs, with an item table also that for ads of it.

        Raises:
            UserError: ONNX Runtime and torch differ on the rows.
        """
        place, model = self._place, self._file("model")
        write_model(self._arrays, weights, place / model)
        pairs = [(inputs, in_torch(self.plain, inputs)) for inputs in rows]
        difference = parity(Graph(place / model), pairs)
        if ads is None or item_table is None:
            return width_entry(self._width, model, None, difference)
        item, head, table = (self._file(kind) for kind in ("item", "head", "table"))
        write_item(self._arrays, weights, place / item)
        write_head(self._arrays, weights, place / head)
        by_features = TwoGraphs(place, head, item=item)
        difference = max(difference, parity(by_features, pairs))
        part, width = f"part.w{self._name}.npy", len(self._arrays.layers[0].bias_O)
        kept = write_narrow_part(place / ITEMS, part, ads, place / item, width)
        write_table(self._arrays, weights, place / table, kept)
        keys = ItemTable.load(place / ITEMS, item_table.key, item_table.raw_type)
        difference = max(difference, parity(Graph(place / table), table_pairs(ads, keys, rows, by_features)))
        for name in (item, head):
            (place / name).unlink()
        return width_entry(self._width, model, table, difference)


def width_entry(width: Width, model: str, table: str | None, difference: float) -> WidthEntry:
    """What the manifest says of a width."""
    tower = width.network.tower
    return WidthEntry(
        hidden=tower.hidden_widths,
        model=model,
        table=table,
        multiplications=tower.multiplications,
        metrics=dict(width.metrics),
        parity_max_abs_diff=difference,
    )
