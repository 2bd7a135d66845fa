"""The graphs of a bundle in ONNX Runtime, checked against the manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnxruntime

from ctrkit.bundle import MODEL, Bundle
from ctrkit.errors import UserError
from ctrkit.graph import Feeds, TensorSpec
from ctrkit.manifest import ADS, MODEL_INT8, TABLE, TABLE_INT8

_ORT_TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)"}
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sessions:
    """The network from all its inputs; and, where there is an item table, for ads of it."""

    model: Any
    table: Any | None
    output: list[str]
    items: frozenset[str]
    """Inputs of the item side."""

    @classmethod
    def load(cls, bundle: Bundle, *, int8: bool, width: str | None = None) -> Self:
        """Build what a scorer needs.

        Args:
            bundle: verified.
            int8: the graphs in int8.
            width: which of several; the widest if None.

        Raises:
            UserError: the bundle has no int8, or a graph is broken or not the manifest's.
        """
        if int8 and not bundle.has_int8:
            tried = bundle.manifest.approximations.get("int8")
            why = f"it did not pass its gate: {tried.reason}" if tried else "set export.int8 = true in its recipe"
            raise UserError(f"{bundle.directory}: holds no int8 ({why})")
        graph = bundle.manifest.graph
        whole, of_table = (MODEL_INT8, TABLE_INT8) if int8 else (MODEL, TABLE)
        if width is not None:
            entry = bundle.manifest.widths[width]
            whole, of_table = entry.model, entry.table or of_table
        model = _session(bundle.directory / whole, graph.inputs, graph.output)
        items = frozenset(name for name, spec in graph.inputs.items() if spec.side == "item")
        if bundle.manifest.item_table is None:
            return cls(model, None, [graph.output], items)
        inputs = {name: spec for name, spec in graph.inputs.items() if name not in items}
        inputs[ADS] = TensorSpec(dtype="int64", shape=(-1,), side="item")
        table = _session(bundle.directory / of_table, inputs, graph.output)
        return cls(model, table, [graph.output], items)

    def run(self, feeds: Feeds) -> Float32Array:
        """Probabilities [N]; ads that are rows of the item table from there, the others from their features."""
        if ADS not in feeds:
            return self._run(self.model, feeds)
        if self.items.isdisjoint(feeds):  # they are there if an ad needs them
            return self._run(self.table, feeds)
        absent_N = feeds[ADS] < 0
        probability_N = np.empty(len(absent_N), np.float32)
        probability_N[absent_N] = self._run(self.model, self._some(feeds, absent_N, items=True))
        if not absent_N.all():
            probability_N[~absent_N] = self._run(self.table, self._some(feeds, ~absent_N, items=False))
        return probability_N

    def _run(self, session: Any, feeds: Feeds) -> Float32Array:
        probability_N: Float32Array = session.run(self.output, feeds)[0]
        return probability_N

    def _some(self, feeds: Feeds, chosen_N: npt.NDArray[np.bool_], *, items: bool) -> Feeds:
        """Inputs for some of the ads: by their features, which are there for them alone, or by their rows."""
        found = {}
        for name, array in feeds.items():
            if name in self.items:
                if items:
                    found[name] = array
            elif name == ADS:
                if not items:
                    found[name] = array[chosen_N]
            else:
                found[name] = array if len(array) == 1 else array[chosen_N]
        return found


def _session(path: Path, inputs: Mapping[str, TensorSpec], output: str) -> Any:
    """One thread a call, and no spinning for the next one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; they are raised too
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        raise UserError(f"{path}: ONNX Runtime cannot load it ({error}); export the bundle again") from error
    _verify_signature(path, session, inputs, output)
    return session


def _verify_signature(path: Path, session: Any, inputs: Mapping[str, TensorSpec], output: str) -> None:
    """Refuse a graph whose inputs or output are not those of the manifest."""
    expected = {name: (_ORT_TYPES[spec.dtype], spec.shape) for name, spec in inputs.items()}
    found = {i.name: (i.type, _shape(i.shape)) for i in session.get_inputs()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            wanted, got = expected.get(name, "no such input"), found.get(name, "no such input")
            raise UserError(f"{path}: input '{name}': {got}, but {wanted} in the manifest; export it again")
    given = {o.name: o.type for o in session.get_outputs()}
    if given != {output: "tensor(float)"}:
        raise UserError(f"{path}: no output '{output}' of floats, but {given}; export it again")


def _shape(shape: Sequence[int | str | None]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in shape)
