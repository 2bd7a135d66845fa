"""A version of a model as the server sees it: the one place that knows the scorer."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ctrkit.errors import UserError
from ctrkit.request import Request
from ctrkit.schema import SequenceFeature
from ctrkit.tables import UNSEEN
from ctrkit_serving.latency import resample
from ctrkit_serving.scorer import Float32Array, Scorer
from ctrkit_serving.server.protocol import RequestError, Tensor, bad, micros_s, short
from ctrkit_serving.server.settings import Settings

_OIP_TYPES = {"int64": "INT64", "float32": "FP32"}
_RAW_TYPES = {"int": "INT64", "float": "FP64", "string": "BYTES"}
WARM_ADS, WARM_CALLS, TIMED_CALLS = (1, 10, 100, 400), 60, 9


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
    Encoded: what `Scorer.score_ids` takes, for callers that encode by themselves; rows must lie in the tables.
    """

    def __init__(self, name: str, version: int, scorer: Scorer, max_ads: int) -> None:
        self.name, self.version, self.scorer = name, version, scorer
        self._max_ads = max_ads
        bundle = scorer.bundle
        self.output = bundle.manifest.graph.output
        self._sources = {f.source: f for f in bundle.encoding.schema.features}
        self._encoded = {*scorer.inputs, "ads"}
        self._key = None if scorer.item_table is None else scorer.item_table.key
        self.raw_inputs = _raw_inputs(scorer)
        self.encoded_inputs = [Input(n, _OIP_TYPES[s.dtype], s.shape) for n, s in scorer.inputs.items()]
        self._seconds: dict[str, list[float]] = {}
        """What a request of `WARM_ADS` ads takes, by width."""
        integers = (n for n, s in scorer.inputs.items() if s.dtype == "int64")
        self._id_inputs = {n for n in integers if not n.endswith("_length")}
        self._uncounted = np.zeros(5, np.int64)
        self.counted = np.zeros(5, np.int64)
        """The same as `counts`, of encoded ids: the scorer counts the raw ones."""

    @classmethod
    def load(cls, path: Path, name: str, version: int, settings: Settings) -> Self:
        """Verify a bundle (hashes, signature, golden scores, finite ones) and warm it.

        Raises:
            UserError: it must not serve; the message says why.
        """
        model = cls(name, version, Scorer.load(path, precision=settings.precision), settings.max_ads)
        model.warm(WARM_CALLS)
        return model

    def warm(self, calls: int) -> None:
        """Score so many requests of several sizes; none of them is counted."""
        rng = np.random.default_rng(0)
        golden = [request for request in self.scorer.bundle.golden.requests if request.num_ads]
        sized = [resample(golden[i % len(golden)], ads, rng) for i, ads in enumerate(WARM_ADS)]
        for i in range(calls):
            self.scorer.score_request(sized[i % len(sized)])
        for width in self.scorer.widths:
            self._seconds[width] = [self._median_s(request, width) for request in sized]
        self._uncounted = self._counts()

    def _median_s(self, request: Request, width: str) -> float:
        took = []
        for _ in range(TIMED_CALLS):
            start = time.perf_counter()
            self.scorer.score_request(request, width=width)
            took.append(time.perf_counter() - start)
        return median(took)

    def width(self, parameters: Mapping[str, Any], num_ads: int, spent_s: float) -> str | None:
        """The width that a request is scored at, None where there is one only.

        The parameter `width` names it; with `deadline_us` it is the widest that, by what each took at warm-up, is done
        so many microseconds after the request arrived, or else the narrowest; with neither, the widest.

        Args:
            parameters: of the request.
            num_ads: of the request.
            spent_s: since it arrived: the longer it waited, the narrower.

        Raises:
            UserError: the model has no such width.
            RequestError: a parameter has another form.
        """
        given, deadline_s = parameters.get("width"), micros_s(parameters, "deadline_us")
        if given is not None and deadline_s is not None:
            raise bad("parameters 'width' and 'deadline_us': give one of them")
        if given is not None:
            if isinstance(given, bool) or not isinstance(given, str | int | float):
                raise bad("parameter 'width' is a name or a number")
            return self.scorer.bundle.width(given)
        widths = self.scorer.widths
        if deadline_s is None or not widths:
            return next(iter(widths), None)
        left_s = deadline_s - spent_s
        return next((each for each in widths if self._expected_s(each, num_ads) <= left_s), widths[-1])

    def _expected_s(self, width: str, num_ads: int) -> float:
        """What so many ads take, on a line between those that were timed, and beyond the last two."""
        seconds = self._seconds[width]
        beyond = max(0, num_ads - WARM_ADS[-1]) / (WARM_ADS[-1] - WARM_ADS[-2])
        return float(np.interp(num_ads, WARM_ADS, seconds)) + beyond * max(0.0, seconds[-1] - seconds[-2])

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
                "precision": self.scorer.precision,
                **({"widths": list(self.scorer.widths)} if self.scorer.widths else {}),
                "item_table": self._key,
                "encoded_inputs": [i.to_json() for i in self.encoded_inputs],
                "encoding_fingerprint": manifest.encoding_fingerprint,
                "created": manifest.created.isoformat(),
            },
        }

    def bundle_hash(self) -> str:
        """Of its manifest, which has the hashes of all files: other for every other bundle."""
        return hashlib.sha256(json.dumps(self.scorer.bundle.manifest.dump(), sort_keys=True).encode()).hexdigest()

    def signature(self) -> str:
        """Equal for versions that take and give the same."""
        inputs = sorted(json.dumps(i.to_json()) for i in self.raw_inputs)
        return json.dumps([inputs, self.output])

    def lacks_what_callers_name(self, other: Self) -> bool:
        """Whether requests that name ads by the item table's key alone, or a width, are answered by the other only."""
        lacks_table = other._key is not None and self._key != other._key
        return lacks_table or not set(other.scorer.widths) <= set(self.scorer.widths)

    def score(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Any], width: str | None = None
    ) -> Float32Array:
        """Click probability of each ad, float32 [N], at the width that `width` chose.

        Raises:
            RequestError: names, types, shapes or values are not the model's.
            UserError: the same, found by the scorer.
        """
        if inputs.keys() <= self._encoded and not inputs.keys() <= self._sources.keys():
            self._check_fingerprint(parameters)
            return self._score_encoded(inputs, width)
        return self.score_request(self._request(inputs), width)

    def score_request(self, request: Request, width: str | None = None) -> Float32Array:
        """The same of a request of raw values."""
        if request.num_ads > self._max_ads:
            raise bad(f"{request.num_ads} ads; this server takes {self._max_ads:,} a request")
        return self._checked(lambda: self.scorer.score_request(request, width=width))

    def counts(self) -> npt.NDArray[np.int64]:
        """Values, unseen and missing so far, look-ups in the item table, and those of ads that it had not."""
        counts: npt.NDArray[np.int64] = self._counts() - self._uncounted + self.counted
        return counts

    def _counts(self) -> npt.NDArray[np.int64]:
        found = np.array([[c.values, c.unseen, c.missing] for c in self.scorer.counts.values()], np.int64)
        table = self.scorer.item_table_counts
        return np.array([*found.reshape(-1, 3).sum(axis=0), table.values, table.unseen], np.int64)

    def _check_fingerprint(self, parameters: Mapping[str, Any]) -> None:
        given = parameters.get("encoding_fingerprint")
        if given is not None and given != self.scorer.bundle.manifest.encoding_fingerprint:
            raise bad("the ids were encoded for another version: encoding_fingerprint is not this one's")

    def _score_encoded(self, inputs: Mapping[str, Tensor], width: str | None) -> Float32Array:
        arrays = {name: tensor.values for name, tensor in inputs.items()}
        num_ads = rows_of(inputs)
        if num_ads > self._max_ads:
            raise bad(f"{num_ads} ads; this server takes {self._max_ads:,} a request")
        scores_N = self._checked(lambda: self.scorer.score_ids(arrays, width=width))
        for name in self._id_inputs & arrays.keys():
            self.counted[:2] += np.array([arrays[name].size, np.count_nonzero(arrays[name] == UNSEEN)])
        if "ads" in arrays:
            self.counted[3:] += np.array([arrays["ads"].size, np.count_nonzero(arrays["ads"] < 0)])
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
            if feature is None and name == self._key:
                sides["item"][name] = _rows(name, tensor, None, sequence=False)
                continue
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


def rows_of(inputs: Mapping[str, Tensor]) -> int:
    """Rows of the longest tensor: the ads of a request."""
    return max((len(tensor.values) if tensor.values.ndim else 0 for tensor in inputs.values()), default=0)


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
