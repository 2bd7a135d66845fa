"""A bundle in ONNX Runtime: one user and N ads in, N click probabilities out."""

import difflib
import threading
from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnxruntime

from ctrkit.bundle import Bundle, sequence_features, single_features
from ctrkit.encoding import Counts, Encoding
from ctrkit.errors import UserError
from ctrkit.raw_values import typed_array
from ctrkit.request import Column, Context, Items, Request, Row
from ctrkit.schema import Feature, SequenceFeature, Side
from ctrkit_serving.denormals import denormals_as_zero

Feeds = dict[str, npt.NDArray[Any]]
"""Inputs of the graph by name."""
_ORT_TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)"}
Float32Array = npt.NDArray[np.float32]


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


class Scorer:
    """Scores one user and N ads from raw values, as training encoded them.

    A scorer may be used by several threads at once: each call has its own arrays, ONNX Runtime's session allows it, and
    the counts are kept under a lock. Each call runs in its caller's thread alone.
    """

    def __init__(self, bundle: Bundle, session: onnxruntime.InferenceSession, *, ignore_unknown: bool = False) -> None:
        """Use `Scorer.load`."""
        self.bundle = bundle
        self._session = session
        self._ignore_unknown = ignore_unknown
        self._encoding: Encoding = bundle.encoding
        self._inputs = [
            (name, spec.shape[1:], np.dtype(spec.dtype)) for name, spec in bundle.manifest.graph.inputs.items()
        ]
        self._output = [bundle.manifest.graph.output]
        self._slots = _slots(bundle.encoding)
        self._sources = {side: frozenset(slot.source for slot in slots) for side, slots in self._slots.items()}
        self._lock = threading.Lock()
        self._counts = self._no_counts()

    @classmethod
    def load(cls, bundle: Path | str, *, verify_golden: bool = True, ignore_unknown: bool = False) -> Self:
        """Verify a bundle and make it ready to score.

        Args:
            bundle: its directory.
            verify_golden: score the bundle's own requests and refuse it if a score is not the exporter's.
            ignore_unknown: let requests hold values of names that the model does not know, instead of an error.

        Raises:
            UserError: the bundle is broken; the message names the file and the way out.
        """
        verified = Bundle.load(bundle)
        scorer = cls(verified, _session(verified), ignore_unknown=ignore_unknown)
        if verify_golden:
            scorer._verify_golden()
        return scorer

    def score(self, user: Row, items: Items, context: Context | None = None) -> Float32Array:
        """Click probability of each ad, float32 [N].

        Args:
            user: raw values of the user, by name; None is a missing value.
            items: raw values of N ads, a list of mappings or (faster) a mapping of columns, lists or arrays.
            context: raw values that are neither's: one mapping, or a list of one an ad.

        Raises:
            UserError: a feature has no value (None is one), a name is unknown, a value has a type other than in
                training, or columns differ in length. A value that training has not seen is no error: see `counts`.
        """
        return self.run(self.encode(user, items, context))

    def score_request(self, request: Request) -> Float32Array:
        """Click probability of each ad of a request, float32 [N]; raises as `score` does."""
        return self.score(request.user, request.items, request.context)

    @property
    def counts(self) -> dict[str, Counts]:
        """What became of the values scored so far, by feature: missing, unseen, out of range, truncated.

        User features, and context features given once, count once a request; the others once an ad. A request that
        raised is not counted. The counts are a copy, consistent over features.
        """
        with self._lock:
            return {name: replace(counts) for name, counts in self._counts.items()}

    def encode(self, user: Row, items: Items, context: Context | None = None) -> Feeds:
        """Inputs of the graph for raw values; arguments and errors are `score`'s."""
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
        with self._lock:
            for name, counts in seen:
                self._counts[name].add(counts)
        return feeds

    def run(self, feeds: Feeds) -> Float32Array:
        """Click probabilities, float32 [N], of what `encode` gave."""
        if not all(map(len, feeds.values())):
            return np.zeros(0, np.float32)
        with denormals_as_zero():
            probability_N: Float32Array = self._session.run(self._output, feeds)[0]
        if not np.isfinite(probability_N).all():
            raise UserError(f"{self.bundle.model}: a score is not finite; its weights are broken, export it again")
        return probability_N

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

    def _verify_golden(self) -> None:
        golden = self.bundle.golden
        for i, (request, expected) in enumerate(zip(golden.requests, golden.scores, strict=True)):
            try:
                scores_N = self.score_request(request)
            except UserError as error:
                raise UserError(f"{self.bundle.directory}: golden request {i}: {error}") from error
            difference = float(np.abs(scores_N - np.asarray(expected)).max(initial=0.0))
            if not difference <= golden.tolerance:
                raise UserError(
                    f"{self.bundle.directory}: golden request {i} scores {difference:.2g} beside the exporter's, more "
                    f"than {golden.tolerance:.2g}; export the bundle again, with this version of onnxruntime"
                )
        self._counts = self._no_counts()  # they are nobody's traffic

    def _no_counts(self) -> dict[str, Counts]:
        return {feature.name: Counts() for feature in self._encoding.schema.features}


def _slots(encoding: Encoding) -> dict[Side, tuple[_Slot, ...]]:
    schema = encoding.schema
    places = {name: ("ids", column) for column, name in enumerate(single_features(schema))}
    places |= {feature.name: ("dense", column) for column, feature in enumerate(schema.dense_features)}
    places |= {feature.name: (f"{feature.name}_ids", 0) for feature in sequence_features(schema)}
    sides: tuple[Side, ...] = ("user", "item", "context")
    return {side: tuple(_Slot(f, f.source, *places[f.name]) for f in schema.side(side)) for side in sides}


def _session(bundle: Bundle) -> onnxruntime.InferenceSession:
    """One thread a call, and no spinning for the next one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; they are raised too
    try:
        session = onnxruntime.InferenceSession(bundle.model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        raise UserError(f"{bundle.model}: ONNX Runtime cannot load it ({error}); export the bundle again") from error
    _verify_signature(bundle, session)
    return session


def _verify_signature(bundle: Bundle, session: onnxruntime.InferenceSession) -> None:
    """Refuse a graph whose inputs or output are not those of the manifest."""
    graph = bundle.manifest.graph
    expected = {name: (_ORT_TYPES[spec.dtype], spec.shape) for name, spec in graph.inputs.items()}
    found = {i.name: (i.type, _shape(i.shape)) for i in session.get_inputs()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            wanted, got = expected.get(name, "no such input"), found.get(name, "no such input")
            raise UserError(f"{bundle.model}: input '{name}': {got}, but {wanted} in the manifest; export it again")
    outputs = {o.name: (o.type, _shape(o.shape)) for o in session.get_outputs()}
    if outputs.get(graph.output) != ("tensor(float)", (-1,)):
        raise UserError(f"{bundle.model}: no output '{graph.output}' of N floats, but {outputs}; export it again")


def _shape(shape: Sequence[int | str | None]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in shape)


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
