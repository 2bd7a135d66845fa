"""A version of a model as the server sees it: the one place that knows the scorer."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ctrkit.errors import UserError
from ctrkit.request import Request
from ctrkit.schema import SequenceFeature
from ctrkit.tables import UNSEEN
from ctrkit_serving.latency import resample
from ctrkit_serving.scorer import Float32Array, Scorer
from ctrkit_serving.server.protocol import RequestError, Tensor, bad, short

_OIP_TYPES = {"int64": "INT64", "float32": "FP32"}
_RAW_TYPES = {"int": "INT64", "float": "FP64", "string": "BYTES"}
WARM_ADS = (1, 10, 100, 400)


@dataclass(frozen=True)
class Input:
    """An input as metadata tells it; -1 is a free size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """As the protocol has it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


class Model:
    """A version that is loaded, verified and warm.

    It takes one of two sets of inputs. Raw: a tensor a feature, named as the log's column: the user's [1], an ad's
    [N], the context's [1] or [N]; a sequence has one size more, and `NAME.length` beside it if rows differ in length.
    Encoded: the inputs of the graph, for callers that encode by themselves; rows must lie in the tables.
    """

    def __init__(self, name: str, version: int, scorer: Scorer, max_ads: int) -> None:
        self.name, self.version, self.scorer = name, version, scorer
        self._max_ads = max_ads
        bundle = scorer.bundle
        self.output = bundle.manifest.graph.output
        self._sources = {f.source: f for f in bundle.encoding.schema.features}
        self.raw_inputs = _raw_inputs(scorer)
        self.encoded_inputs = [Input(n, _OIP_TYPES[s.dtype], s.shape) for n, s in scorer.inputs.items()]
        self._id_inputs = [n for n, s in scorer.inputs.items() if s.dtype == "int64" and n.endswith("ids")]
        self._uncounted = np.zeros(3, np.int64)
        self.counted = np.zeros(3, np.int64)
        """Values, unseen and missing among the encoded ids so far; the scorer counts the raw ones."""

    @classmethod
    def load(cls, path: Path, name: str, version: int, *, max_ads: int, warm_calls: int = 60) -> Self:
        """Verify a bundle (hashes, signature, golden scores, finite ones) and warm it.

        Raises:
            UserError: it must not serve; the message says why.
        """
        model = cls(name, version, Scorer.load(path), max_ads)
        model.warm(warm_calls)
        return model

    def warm(self, calls: int) -> None:
        """Score so many requests of several sizes; none of them is counted."""
        rng = np.random.default_rng(0)
        golden = [request for request in self.scorer.bundle.golden.requests if request.num_ads]
        sized = [resample(golden[i % len(golden)], ads, rng) for i, ads in enumerate(WARM_ADS)]
        for i in range(calls):
            self.scorer.score_request(sized[i % len(sized)])
        self._uncounted = self._counts()

    def metadata(self, versions: list[str]) -> dict[str, Any]:
        """As the protocol has it; the encoded inputs, which it has no word for, among the parameters."""
        manifest = self.scorer.bundle.manifest
        return {
            "name": self.name,
            "versions": versions,
            "platform": "ctrkit",
            "inputs": [i.to_json() for i in self.raw_inputs],
            "outputs": [{"name": self.output, "datatype": "FP32", "shape": [-1]}],
            "parameters": {
                "version": str(self.version),
                "encoded_inputs": [i.to_json() for i in self.encoded_inputs],
                "encoding_fingerprint": manifest.encoding_fingerprint,
                "created": manifest.created.isoformat(),
            },
        }

    def signature(self) -> str:
        """Equal for versions that take and give the same."""
        inputs = sorted(json.dumps(i.to_json()) for i in self.raw_inputs)
        return json.dumps([inputs, self.output])

    def score(self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Any]) -> Float32Array:
        """Click probability of each ad, float32 [N].

        Raises:
            RequestError: names, types, shapes or values are not the model's.
            UserError: the same, found by the scorer.
        """
        if inputs.keys() == self.scorer.inputs.keys() and not inputs.keys() <= self._sources.keys():
            self._check_fingerprint(parameters)
            return self._score_encoded(inputs)
        return self.score_request(self._request(inputs))

    def score_request(self, request: Request) -> Float32Array:
        """The same of a request of raw values."""
        if request.num_ads > self._max_ads:
            raise bad(f"{request.num_ads} ads; this server takes {self._max_ads:,} a request")
        return self._checked(lambda: self.scorer.score_request(request))

    def counts(self) -> npt.NDArray[np.int64]:
        """Values, unseen and missing so far."""
        counts: npt.NDArray[np.int64] = self._counts() - self._uncounted + self.counted
        return counts

    def _counts(self) -> npt.NDArray[np.int64]:
        counts = self.scorer.counts.values()
        found = np.array([[c.values, c.unseen, c.missing] for c in counts], np.int64)
        return np.asarray(found.reshape(-1, 3).sum(axis=0))

    def _check_fingerprint(self, parameters: Mapping[str, Any]) -> None:
        given = parameters.get("encoding_fingerprint")
        if given is not None and given != self.scorer.bundle.manifest.encoding_fingerprint:
            raise bad("the ids were encoded for another version: encoding_fingerprint is not this one's")

    def _score_encoded(self, inputs: Mapping[str, Tensor]) -> Float32Array:
        arrays = {name: tensor.values for name, tensor in inputs.items()}
        num_ads = max(len(values) if values.ndim else 0 for values in arrays.values())
        if num_ads > self._max_ads:
            raise bad(f"{num_ads} ads; this server takes {self._max_ads:,} a request")
        scores_N = self._checked(lambda: self.scorer.score_ids(arrays))
        for name in self._id_inputs:
            self.counted += np.array([arrays[name].size, np.count_nonzero(arrays[name] == UNSEEN), 0])
        return scores_N

    def _checked(self, score: Callable[[], Float32Array]) -> Float32Array:
        try:
            return score()
        except UserError as error:
            if "a score is not finite" in str(error):  # the model's fault, not the request's
                raise RequestError(500, "scoring_failed", "the model gave a score that is not finite") from error
            raise

    def _request(self, inputs: Mapping[str, Tensor]) -> Request:
        """Raw values from tensors; a name that the model does not know is the scorer's to refuse."""
        sides: dict[str, dict[str, Any]] = {"user": {}, "item": {}, "context": {}}
        num_context = 1
        for name, tensor in inputs.items():
            feature = self._sources.get(name)
            if feature is None:
                if name.removesuffix(".length") in self._sources:
                    continue
                known = ", ".join(self._sources)
                raise bad(f"the model has no input '{short(name)}'; it takes {short(known)}, or the encoded inputs")
            values = _rows(name, tensor, inputs.get(f"{name}.length"), isinstance(feature, SequenceFeature))
            if feature.side == "user" and len(values) != 1:
                raise bad(f"input '{name}' is the user's: shape [1], got {len(values)} values")
            sides[feature.side][name] = values
            if feature.side == "context":
                num_context = max(num_context, len(values))
        context: Any = {name: _plain(values[0]) for name, values in sides["context"].items()}
        if num_context > 1:
            context = _context_rows(sides["context"], num_context)
        return Request({name: _plain(values[0]) for name, values in sides["user"].items()}, sides["item"], context)


def _raw_inputs(scorer: Scorer) -> list[Input]:
    encoding = scorer.bundle.encoding
    found = {}
    for feature in encoding.schema.features:
        shape: tuple[int, ...] = (1,) if feature.side == "user" else (-1,)
        if isinstance(feature, SequenceFeature):
            shape = (*shape, -1)
        found[feature.source] = Input(feature.source, _RAW_TYPES[encoding.raw_types[feature.name]], shape)
    return list(found.values())


def _rows(name: str, tensor: Tensor, length: Tensor | None, sequence: bool) -> Any:
    """One value, or one list, a row."""
    values = tensor.values
    if not sequence:
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1 or not len(values):
            raise bad(f"input '{name}' has one value a row: shape [1] or [N], got {list(values.shape)}")
        return values
    if values.ndim != 2:
        raise bad(f"input '{name}' is a sequence: shape [1, L] or [N, L], got {list(values.shape)}")
    if length is None:
        return [row.tolist() for row in values]
    ends = length.values
    if (
        ends.dtype.kind not in "iu"
        or ends.shape != values.shape[:1]
        or (ends < 0).any()
        or (ends > values.shape[1]).any()
    ):
        raise bad(f"input '{name}.length' has a whole number from 0 to {values.shape[1]} for each row of '{name}'")
    return [row[:end].tolist() for row, end in zip(values, ends.tolist(), strict=True)]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _context_rows(columns: Mapping[str, Any], num_rows: int) -> list[dict[str, Any]]:
    for name, values in columns.items():
        if len(values) not in (1, num_rows):
            raise bad(f"input '{name}' has {len(values)} values; give the context 1 or {num_rows}")
    wide = {name: values if len(values) == num_rows else [values[0]] * num_rows for name, values in columns.items()}
    return [{name: _plain(values[i]) for name, values in wide.items()} for i in range(num_rows)]


def no_such_output(model: Model, outputs: Mapping[str, bool] | None) -> None:
    """Raise unless the outputs asked for are the one there is."""
    for name in outputs or ():
        if name != model.output:
            raise bad(f"the model has no output '{short(name)}'; it gives '{model.output}'")
