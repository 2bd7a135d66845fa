"""The graphs of a bundle in ONNX Runtime, checked against the manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnxruntime

from ctrkit.bundle import HEAD, HEAD_INT8, ITEM, MODEL, MODEL_INT8, PART, Bundle
from ctrkit.errors import UserError
from ctrkit.graph import Feeds, TensorSpec
from ctrkit.item_table import ItemTable

_ORT_TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)"}
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sessions:
    """The whole network; and, where there is an item table, the items' part and the rest."""

    model: Any
    item: Any | None
    head: Any | None
    output: list[str]
    item_inputs: frozenset[str] = frozenset()
    """Inputs of the items' part."""

    @classmethod
    def load(cls, bundle: Bundle, *, int8: bool) -> Self:
        """Build what a scorer needs.

        Raises:
            UserError: the bundle has no int8, or a graph is broken or not the manifest's.
        """
        if int8 and not bundle.has_int8:
            tried = bundle.manifest.approximations.get("int8")
            why = f"it did not pass its gate: {tried.reason}" if tried else "set export.int8 = true in its recipe"
            raise UserError(f"{bundle.directory}: holds no int8 ({why})")
        graph = bundle.manifest.graph
        probability = {graph.output: "rows"}
        model = _session(bundle.directory / (MODEL_INT8 if int8 else MODEL), graph.inputs, probability)
        entry = bundle.manifest.item_table
        if entry is None:
            return cls(model, None, None, [graph.output])
        part = TensorSpec(dtype="float32", shape=(-1, entry.width), side="item")
        items = {name: spec for name, spec in graph.inputs.items() if spec.side == "item"}
        others = {name: spec for name, spec in graph.inputs.items() if spec.side != "item"}
        item = _session(bundle.directory / ITEM, items, {PART: "rows"})
        head = _session(bundle.directory / (HEAD_INT8 if int8 else HEAD), {PART: part, **others}, probability)
        return cls(model, item, head, [graph.output], frozenset(items))

    def from_features(self, feeds: Feeds) -> Float32Array:
        """Probabilities [N] of all inputs of the graph."""
        probability_N: Float32Array = self.model.run(self.output, feeds)[0]
        return probability_N

    def from_table(self, table: ItemTable, feeds: Feeds) -> Float32Array:
        """Probabilities [N] of ads by their rows of the table, from their features where it has them not."""
        assert self.item is not None
        assert self.head is not None
        ads_N = feeds["ads"]
        part_NH = table.part(ads_N)
        of_item, of_head = {}, {PART: part_NH}
        for name, array in feeds.items():
            if name in self.item_inputs:
                of_item[name] = array
            elif name != "ads":
                of_head[name] = array
        if of_item:
            part_NH[ads_N < 0] = self.item.run([PART], of_item)[0]
        probability_N: Float32Array = self.head.run(self.output, of_head)[0]
        return probability_N


def _session(path: Path, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, str]) -> Any:
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
    _verify_signature(path, session, inputs, outputs)
    return session


def _verify_signature(path: Path, session: Any, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, str]) -> None:
    """Refuse a graph whose inputs or output are not those of the manifest."""
    expected = {name: (_ORT_TYPES[spec.dtype], spec.shape) for name, spec in inputs.items()}
    found = {i.name: (i.type, _shape(i.shape)) for i in session.get_inputs()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            wanted, got = expected.get(name, "no such input"), found.get(name, "no such input")
            raise UserError(f"{path}: input '{name}': {got}, but {wanted} in the manifest; export it again")
    given = {o.name: o.type for o in session.get_outputs()}
    if given != dict.fromkeys(outputs, "tensor(float)"):
        raise UserError(f"{path}: no output {sorted(outputs)} of floats, but {given}; export it again")


def _shape(shape: Sequence[int | str | None]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in shape)
