"""A bundle in ONNX Runtime: one user and N ads in, N click probabilities out."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnxruntime

from ctrkit.bundle import Bundle
from ctrkit.encoding import Counts
from ctrkit.errors import UserError
from ctrkit.graph import Feeds, InputCheck, TensorSpec
from ctrkit.request import Context, Items, Request, Row
from ctrkit.request_encoder import RequestEncoder
from ctrkit_serving.denormals import denormals_as_zero

_ORT_TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)"}
Float32Array = npt.NDArray[np.float32]


class Scorer:
    """Scores one user and N ads from raw values, as training encoded them.

    A scorer may be used by several threads at once: each call has its own arrays, ONNX Runtime's session allows it, and
    the counts are kept under a lock. Each call runs in its caller's thread alone.
    """

    def __init__(self, bundle: Bundle, session: onnxruntime.InferenceSession, *, ignore_unknown: bool = False) -> None:
        """Use `Scorer.load`."""
        self.bundle = bundle
        self._session = session
        self._encoder = RequestEncoder(bundle.encoding, ignore_unknown=ignore_unknown)
        self._check = InputCheck(bundle.encoding)
        self._output = [bundle.manifest.graph.output]
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
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What `score_ids` takes, by name: the inputs of the graph (`ctrkit.graph`). Another bundle may have others."""
        return self.bundle.manifest.graph.inputs

    def score_ids(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Float32Array:
        """Click probability of each ad, float32 [N], from arrays that are encoded already; they are not counted.

        Args:
            inputs: an array for each of `Scorer.inputs`: rows of the embedding tables and scaled numbers, as the
                bundle's encoding gives them. Integers and floats of other widths are converted.

        Raises:
            UserError: an input is absent or unknown, has another type or shape, a row lies beyond its table, or a
                number is not finite.
        """
        return self.run(self._check(inputs))

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
        feeds, seen = self._encoder.encode(user, items, context)
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
        return {feature.name: Counts() for feature in self.bundle.encoding.schema.features}


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
