"""A request's raw values as the inputs of the exported graph."""

import difflib
from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import dataclass

import numpy as np

from ctrkit.encoding import Counts, Encoding
from ctrkit.errors import UserError
from ctrkit.graph import Feeds, plain_graph, sequence_features, single_features
from ctrkit.raw_values import typed_array
from ctrkit.request import Column, Context, Items, Row
from ctrkit.schema import Feature, SequenceFeature, Side


@dataclass(frozen=True)
class _Slot:
    """Where the values of one feature come from and go to."""

    feature: Feature
    source: str
    """Its name in a request."""
    tensor: str
    """Input of the graph: "ids", "dense", or that of a sequence's ids."""
    column: int
    """Column of that input; 0 for a sequence, which has one of its own."""


class RequestEncoder:
    """Encodes one user, N ads and the context as training encoded the log; everything is looked up beforehand.

    Args:
        encoding: of the log that the network was trained on.
        ignore_unknown: let requests hold values of names that the schema does not know, instead of an error.
    """

    def __init__(self, encoding: Encoding, *, ignore_unknown: bool = False) -> None:
        self._ignore_unknown = ignore_unknown
        self._encoding = encoding
        self._inputs = [
            (name, spec.shape[1:], np.dtype(spec.dtype)) for name, spec in plain_graph(encoding.schema).inputs.items()
        ]
        self._slots = _slots(encoding)
        self._sources = {side: frozenset(slot.source for slot in slots) for side, slots in self._slots.items()}

    def encode(self, user: Row, items: Items, context: Context | None = None) -> tuple[Feeds, list[tuple[str, Counts]]]:
        """Inputs of the graph, and what became of the values of each feature.

        Args:
            user: raw values of the user, by name; None is a missing value.
            items: raw values of N ads, a list of mappings or (faster) a mapping of columns, lists or arrays.
            context: raw values that are neither's: one mapping, or a list of one an ad.

        Raises:
            UserError: a feature has no value (None is one), a name is unknown, a value has a type other than in
                training, or columns differ in length. A value that training has not seen is no error: it is counted.
        """
        num_ads = _num_ads(items)
        feeds: Feeds = {name: np.zeros((num_ads, *shape), dtype) for name, shape, dtype in self._inputs}
        values = {
            "user": self._once("user", user),
            "item": self._per_ad("item", items, num_ads),
            "context": self._of_context({} if context is None else context, num_ads),
        }
        seen = [
            (slot.feature.name, self._fill(feeds, slot, values[side][slot.source]))
            for side, slots in self._slots.items()
            for slot in slots
        ]
        return feeds, seen

    def _fill(self, feeds: Feeds, slot: _Slot, values: Column) -> Counts:
        """Encode one value, which is repeated, or N values of a feature into its input."""
        name = slot.feature.name
        if isinstance(slot.feature, SequenceFeature):
            lists, counts = self._encoding.encode_sequence(name, values)  # type: ignore[arg-type]
            ids_NL, length_N = feeds[slot.tensor], feeds[f"{name}_length"]
            if len(lists) == 1:
                ids_NL[:, : len(lists[0])] = lists[0]
                length_N[:] = len(lists[0])
            else:
                for i, ids in enumerate(lists):
                    ids_NL[i, : len(ids)] = ids
                length_N[:] = [len(ids) for ids in lists]
            return counts
        typed_N, missing_N = typed_array(values, self._encoding.raw_types[name], name)
        encode = self._encoding.encode_dense if slot.tensor == "dense" else self._encoding.encode_sparse
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
        for i, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise UserError(f"{side} {i}: takes values by name, got {type(row).__name__}")
            if row.keys() != sources:
                self._check_names(side, row.keys(), f"{side} {i}")
        return {name: [row[name] for row in rows] for name in sources}

    def _of_context(self, context: Context, num_ads: int) -> Mapping[str, Column]:
        if isinstance(context, Mapping):
            return self._once("context", context)
        if not isinstance(context, Sequence) or len(context) != num_ads:
            got = f"{len(context)} rows" if isinstance(context, Sequence) else type(context).__name__
            raise UserError(f"context: {got} for {num_ads} ads; give one mapping, or a list of one an ad")
        return self._per_ad("context", context, num_ads)

    def _check_names(self, side: Side, given: Collection[str], where: str) -> None:
        expected = self._sources[side]
        unknown = [name for name in given if name not in expected]
        for slot in self._slots[side]:
            if slot.source not in given:
                near = difflib.get_close_matches(slot.source, [str(name) for name in unknown], n=1)
                hint = f"; '{near[0]}' is no name it knows" if near else ""
                raise UserError(f"{where}: no value for feature '{slot.source}' (null if it is missing){hint}")
        if unknown and not self._ignore_unknown:
            near = difflib.get_close_matches(str(unknown[0]), expected, n=1)
            hint = f", nearest is '{near[0]}'" if near else ""
            raise UserError(
                f"{where}: the model knows no '{unknown[0]}'{hint}; it knows {', '.join(sorted(expected)) or 'none'} "
                "there. Leave the others out, or load with ignore_unknown"
            )


def _slots(encoding: Encoding) -> dict[Side, tuple[_Slot, ...]]:
    schema = encoding.schema
    places = {name: ("ids", column) for column, name in enumerate(single_features(schema))}
    places |= {feature.name: ("dense", column) for column, feature in enumerate(schema.dense_features)}
    places |= {feature.name: (f"{feature.name}_ids", 0) for feature in sequence_features(schema)}
    sides: tuple[Side, ...] = ("user", "item", "context")
    return {side: tuple(_Slot(f, f.source, *places[f.name]) for f in schema.side(side)) for side in sides}


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
