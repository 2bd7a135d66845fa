"""A request's raw values as the inputs of the exported graph."""

import difflib
from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctrkit.encoding import Counts, Encoding
from ctrkit.errors import UserError
from ctrkit.graph import SIDES, Feeds, serving_graph, side_features
from ctrkit.item_table import ItemTable
from ctrkit.raw_values import typed_array
from ctrkit.request import Column, Context, Items, Row
from ctrkit.schema import CategoricalFeature, Feature, SequenceFeature, Side, table_of
from ctrkit.single_value import FindRow, row_finder
from ctrkit.tables import MISSING, UNSEEN

_ONE = Counts(values=1)
_ONE_OF_ROW = {MISSING: Counts(values=1, missing=1), UNSEEN: Counts(values=1, unseen=1)}


@dataclass(frozen=True)
class _Slot:
    """Where the values of one feature come from and go to."""

    feature: Feature
    source: str
    """Its name in a request."""
    tensor: str
    """Input of the graph."""
    column: int
    """Column of that input; 0 for a sequence, which has one of its own."""
    find: FindRow | None
    """Finds the row of a single value."""


class RequestEncoder:
    """Encodes one user, N ads and the context as training encoded the log; everything is looked up beforehand.

    Args:
        encoding: of the log that the network was trained on.
        item_table: ads whose features need not be encoded.
        ignore_unknown: let requests hold values of names that the schema does not know, instead of an error.
    """

    def __init__(
        self, encoding: Encoding, item_table: ItemTable | None = None, *, ignore_unknown: bool = False
    ) -> None:
        self._ignore_unknown = ignore_unknown
        self._encoding = encoding
        self._table = item_table
        self._inputs: dict[Side, list[tuple[str, tuple[int, ...], np.dtype[Any]]]] = {side: [] for side in SIDES}
        for name, spec in serving_graph(encoding.schema).inputs.items():
            self._inputs[spec.side].append((name, spec.shape[1:], np.dtype(spec.dtype)))
        self._slots = _slots(encoding)
        self._sources = {side: frozenset(slot.source for slot in slots) for side, slots in self._slots.items()}
        self._known = self._sources["item"] | ({item_table.key} if item_table else set())

    def encode(self, user: Row, items: Items, context: Context | None = None) -> tuple[Feeds, list[tuple[str, Counts]]]:
        """Inputs of the graph, and what became of the values of each feature.

        Where there is an item table and the items have its key, the inputs are `ads`, int64 [N], rows of the table or
        -1, and the item inputs of those ads alone that it has not.

        Args:
            user: raw values of the user, by name; None is a missing value.
            items: raw values of N ads, a list of mappings or (faster) a mapping of columns, lists or arrays. An ad of
                the item table needs its key alone; other values of it are not read.
            context: raw values that are neither's: one mapping, or a list of one an ad.

        Raises:
            UserError: a feature has no value (None is one), a name is unknown, a value has a type other than in
                training, columns differ in length, or an ad that is not in the item table comes without its features.
                A value that training has not seen is no error: it is counted.
        """
        num_ads = _num_ads(items)
        context = {} if context is None else context
        feeds: Feeds = {}
        # without an item side there is nothing else to say how many ads there are
        rows = 1 if self._inputs["item"] and num_ads else num_ads
        seen = self._encode_side(feeds, "user", self._once("user", user), rows)
        values, rows = self._of_context(context, num_ads, rows)
        seen += self._encode_side(feeds, "context", values, rows)
        if self._table is not None:
            items, num_ads = self._looked_up(feeds, self._table, items, num_ads)
        if num_ads or "ads" not in feeds:
            seen += self._encode_side(feeds, "item", self._per_ad("item", items, num_ads), num_ads)
        return feeds, seen

    def _encode_side(
        self, feeds: Feeds, side: Side, values: Mapping[str, Column], rows: int
    ) -> list[tuple[str, Counts]]:
        for name, shape, dtype in self._inputs[side]:
            feeds[name] = np.zeros((rows, *shape), dtype)
        return [(slot.feature.name, self._fill(feeds, slot, values[slot.source])) for slot in self._slots[side]]

    def _looked_up(self, feeds: Feeds, table: ItemTable, items: Items, num_ads: int) -> tuple[Items, int]:
        """Look the ads up by their key, if they have it; those that must be encoded, and how many they are."""
        if isinstance(items, Mapping):
            if table.key not in items:
                return items, num_ads
            keys = _of_length(items[table.key], num_ads, "items", table.key)
        else:
            dicts = _are_dicts(items)
            if not any((dicts or isinstance(row, Mapping)) and table.key in row for row in items):
                return items, num_ads
            keys = [row.get(table.key) if dicts or isinstance(row, Mapping) else None for row in items]
        feeds["ads"] = ads_N = table.rows(keys)
        absent = np.flatnonzero(ads_N < 0).tolist()
        needed = self._sources["item"]
        if isinstance(items, Mapping):
            self._check_known("item", items.keys(), "items")
            columns = {name: _of_length(column, num_ads, "items", name) for name, column in items.items()}
            if absent and not columns.keys() >= needed:
                raise _no_features("items", keys[absent[0]], min(needed - columns.keys()))
            return {name: _taken(columns[name], absent) for name in needed if absent}, len(absent)
        if not (dicts and set().union(*items) <= self._known):
            for i, row in enumerate(items):
                if not isinstance(row, Mapping):
                    raise UserError(f"item {i}: takes values by name, got {type(row).__name__}")
                if not row.keys() <= self._known:
                    self._check_known("item", row.keys(), f"item {i}")
        for i in absent:
            if not items[i].keys() >= needed:
                raise _no_features(f"item {i}", keys[i], min(needed - items[i].keys()))
        return [{name: items[i][name] for name in needed} for i in absent], len(absent)

    def _fill(self, feeds: Feeds, slot: _Slot, values: Column) -> Counts:
        """Encode one value, which is repeated, or N values of a feature into its input."""
        name = slot.feature.name
        if slot.find is not None and len(values) == 1:
            row = slot.find(values[0])
            if row is not None:
                feeds[slot.tensor][:, slot.column] = row
                return _ONE_OF_ROW.get(row, _ONE)
        if isinstance(slot.feature, SequenceFeature):
            rows_M, length_N, counts = self._encoding.encode_sequence(name, values)  # type: ignore[arg-type]
            ids_NL = feeds[slot.tensor]
            feeds[f"{name}_length"][:] = length_N
            if len(values) == 1:
                ids_NL[:, : len(rows_M)] = rows_M
            else:
                ids_NL[np.arange(ids_NL.shape[1]) < length_N[:, np.newaxis]] = rows_M
            return counts
        typed_N, missing_N = typed_array(values, self._encoding.raw_types[name], name)
        encode = self._encoding.encode_dense if slot.tensor.startswith("dense_") else self._encoding.encode_sparse
        feeds[slot.tensor][:, slot.column], counts = encode(name, typed_N, missing_N)
        return counts

    def _once(self, side: Side, row: Row) -> Mapping[str, Column]:
        """One value of each feature, in a column of its own."""
        if not isinstance(row, Mapping):
            raise UserError(f"{side}: takes values by name, got {type(row).__name__}")
        self._check_names(side, row.keys(), side)
        return {name: [row[name]] for name in self._sources[side]}

    def _per_ad(self, side: Side, rows: Items, num_ads: int) -> Mapping[str, Column]:
        if isinstance(rows, Mapping):
            self._check_names(side, rows.keys(), "items")
            for name in self._sources[side]:
                _of_length(rows[name], num_ads, "items", name)
            return rows
        sources = self._sources[side]
        if _are_dicts(rows) and set(map(len, rows)) <= {len(sources)}:
            try:
                return {name: [row[name] for row in rows] for name in sources}
            except KeyError:
                pass  # which one, the slower way says
        for i, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise UserError(f"{side} {i}: takes values by name, got {type(row).__name__}")
            if row.keys() != sources:
                self._check_names(side, row.keys(), f"{side} {i}")
        return {name: [row[name] for row in rows] for name in sources}

    def _of_context(self, context: Context, num_ads: int, rows: int) -> tuple[Mapping[str, Column], int]:
        """The context's columns and how many rows they fill: `rows`, or one an ad."""
        if isinstance(context, Mapping):
            return self._once("context", context), rows
        if not isinstance(context, Sequence) or len(context) != num_ads:
            got = f"{len(context)} rows" if isinstance(context, Sequence) else type(context).__name__
            raise UserError(f"context: {got} for {num_ads} ads; give one mapping, or a list of one an ad")
        return self._per_ad("context", context, num_ads), num_ads

    def _check_names(self, side: Side, given: Collection[str], where: str) -> None:
        for slot in self._slots[side]:
            if slot.source not in given:
                unknown = [str(name) for name in given if name not in self._sources[side]]
                near = difflib.get_close_matches(slot.source, unknown, n=1)
                hint = f"; '{near[0]}' is no name it knows" if near else ""
                raise UserError(f"{where}: no value for feature '{slot.source}' (null if it is missing){hint}")
        self._check_known(side, given, where)

    def _check_known(self, side: Side, given: Collection[str], where: str) -> None:
        expected = self._known if side == "item" else self._sources[side]
        unknown = [name for name in given if name not in expected]
        if unknown and not self._ignore_unknown:
            near = difflib.get_close_matches(str(unknown[0]), expected, n=1)
            hint = f", nearest is '{near[0]}'" if near else ""
            raise UserError(
                f"{where}: the model knows no '{unknown[0]}'{hint}; it knows {', '.join(sorted(expected)) or 'none'} "
                "there. Leave the others out, or load with ignore_unknown"
            )


def _slots(encoding: Encoding) -> dict[Side, tuple[_Slot, ...]]:
    found: dict[Side, tuple[_Slot, ...]] = {}
    for side in SIDES:
        features = side_features(encoding.schema, side)
        find = {f.name: _finder(encoding, f) for f in encoding.schema.side(side)}
        places = {name: (f"ids_{side}", column) for column, name in enumerate(features.single)}
        places |= {name: (f"dense_{side}", column) for column, name in enumerate(features.dense)}
        places |= {feature.name: (f"{feature.name}_ids", 0) for feature in features.sequences}
        found[side] = tuple(_Slot(f, f.source, *places[f.name], find[f.name]) for f in encoding.schema.side(side))
    return found


def _finder(encoding: Encoding, feature: Feature) -> FindRow | None:
    if not isinstance(feature, CategoricalFeature):
        return None
    return row_finder(encoding.tables[table_of(feature)], encoding.raw_types[feature.name])


def _no_features(where: str, key: Any, name: str) -> UserError:
    return UserError(
        f"{where}: ad {key!r} is not in the item table, and '{name}' is not given; give its features, or export "
        "with a file of ads that has it"
    )


def _are_dicts(rows: Sequence[Any]) -> bool:
    """Whether all are dictionaries, as JSON gives them: asking once is faster than `isinstance` of every row."""
    return set(map(type, rows)) <= {dict}


def _taken(column: Column, chosen: list[int]) -> Column:
    return column[chosen] if isinstance(column, np.ndarray) else [column[i] for i in chosen]


def _num_ads(items: Items) -> int:
    first = next(iter(items.values()), ()) if isinstance(items, Mapping) else items
    if isinstance(first, str) or not isinstance(first, Sequence | np.ndarray):
        raise UserError(f"items: takes a list of mappings or a mapping of columns, got {type(first).__name__}")
    return len(first)


def _of_length(column: Column, num_ads: int, where: str, name: str) -> Column:
    if not isinstance(column, Sized):
        raise UserError(f"{where}: column '{name}' is {type(column).__name__}; give a list or an array, one an ad")
    if len(column) != num_ads:
        raise UserError(f"{where}: column '{name}' has {len(column)} values for {num_ads} ads; give one an ad")
    return column
