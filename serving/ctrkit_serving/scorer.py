"""A bundle in ONNX Runtime: one user and N ads in, N click probabilities out."""

import copy
import math
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from ctrkit.bundle import Bundle
from ctrkit.encoding import Counts
from ctrkit.errors import UserError
from ctrkit.graph import Feeds, InputCheck, TensorSpec
from ctrkit.item_table import ItemTable
from ctrkit.request import Context, Items, Request, Row
from ctrkit.request_encoder import RequestEncoder
from ctrkit_serving.denormals import denormals_as_zero
from ctrkit_serving.sessions import Sessions

Float32Array = npt.NDArray[np.float32]
Precision = Literal["exact", "int8"]
Width = str | float
"""Name of a width of the bundle, or the fraction that it is."""


class Scorer:
    """Scores one user and N ads from raw values, as training encoded them.

    It takes the fastest exact way that the bundle has: ads of the item table are looked up there, where the request
    names them by the table's key; the others, and all of them without a table, are computed from their features, the
    user's part once. A scorer may be used by several threads at once: each call has its own arrays or its thread's,
    ONNX Runtime's sessions allow it, and the counts are kept under a lock. Each call runs in its caller's thread alone.

    A bundle may have several widths of one slimmable net over the same tables (`Scorer.widths`): each call may name
    one.
    """

    def __init__(
        self, bundle: Bundle, precision: Precision, *, use_item_table: bool = True, ignore_unknown: bool = False
    ) -> None:
        """Use `Scorer.load`."""
        self.bundle = bundle
        self.precision = precision
        self.item_table: ItemTable | None = bundle.item_table() if use_item_table else None
        """The ads that need no features, None if the bundle has no table."""
        self.widths = tuple(bundle.manifest.widths)
        """Names of the widths that requests may ask for, the widest first; empty in a bundle of one."""
        self._sessions = Sessions.load(bundle, int8=precision == "int8")
        self._narrow = {name: Sessions.load(bundle, int8=False, width=name) for name in self.widths[1:]}
        self._at: str | None = None
        self._encoder = RequestEncoder(bundle.encoding, self.item_table, ignore_unknown=ignore_unknown)
        self._check = InputCheck(bundle.encoding)
        self._lock = threading.Lock()
        self._clear_counts()

    @classmethod
    def load(
        cls,
        bundle: Path | str,
        *,
        precision: Precision = "exact",
        use_item_table: bool = True,
        verify_golden: bool = True,
        ignore_unknown: bool = False,
    ) -> Self:
        """Verify a bundle and make it ready to score.

        Args:
            bundle: its directory.
            precision: "int8" takes the int8 graphs, which the bundle has if they passed their gate at export.
            use_item_table: look ads up there, if the bundle has one; else features are read of every ad.
            verify_golden: score the bundle's own requests and refuse it if a score is not the exporter's.
            ignore_unknown: let requests hold values of names that the model does not know, instead of an error.

        Raises:
            UserError: the bundle is broken, or has no int8; the message names the file and the way out.
        """
        scorer = cls(Bundle.load(bundle), precision, use_item_table=use_item_table, ignore_unknown=ignore_unknown)
        if verify_golden:
            scorer._verify_golden()
        return scorer

    def score(
        self, user: Row, items: Items, context: Context | None = None, *, width: Width | None = None
    ) -> Float32Array:
        """Click probability of each ad, float32 [N].

        Args:
            user: raw values of the user, by name; None is a missing value.
            items: raw values of N ads, a list of mappings or (faster) a mapping of columns, lists or arrays. An ad of
                the item table needs the table's key alone; its other values are not read then.
            context: raw values that are neither's: one mapping, or a list of one an ad.
            width: which of `Scorer.widths`, "0.5" or 0.5; the widest if None.

        Raises:
            UserError: a feature has no value (None is one), a name is unknown, a value has a type other than in
                training, columns differ in length, or an ad that is not in the item table comes without its features.
                A value that training has not seen is no error: see `counts`. Or the bundle has no such width.
        """
        name = self._width(width)
        return self.run(self.encode(user, items, context), width=name)

    def score_request(self, request: Request, *, width: Width | None = None) -> Float32Array:
        """Click probability of each ad of a request, float32 [N]; raises as `score` does."""
        return self.score(request.user, request.items, request.context, width=width)

    def at(self, width: Width) -> Self:
        """This scorer, its counts too, at a width unless a call names another one; raises as `score` does."""
        found = copy.copy(self)
        found._at = self._width(width)
        return found

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What `score_ids` takes, by name: the inputs of the graph (`ctrkit.graph`). Another bundle may have others."""
        return self.bundle.manifest.graph.inputs

    def score_ids(self, inputs: Mapping[str, npt.NDArray[Any]], *, width: Width | None = None) -> Float32Array:
        """Click probability of each ad, float32 [N], from arrays that are encoded already; they are not counted.

        Args:
            inputs: an array for each of `Scorer.inputs`: rows of the embedding tables and scaled numbers, as the
                bundle's encoding gives them, one row an ad, or (user, context) one for all. Where the bundle has an
                item table, `ads` int64 [N] may stand for item inputs: rows that `item_table.rows` gives; ads where it
                is -1 need their item inputs, a row each of them alone. Other widths of number are converted.
            width: as in `score`.

        Raises:
            UserError: an input is absent or unknown, has another type or shape, a row lies beyond its table, a number
                is not finite, or the bundle has no such width.
        """
        if "ads" not in inputs:
            return self.run(self._check(inputs), width=width)
        if self.item_table is None:
            raise UserError("input 'ads': the bundle has no item table; give the item inputs")
        ads_N = self.item_table.check(inputs["ads"])
        others = {name: array for name, array in inputs.items() if name != "ads"}
        return self.run({"ads": ads_N, **self._check(others, ads=ads_N)}, width=width)

    @property
    def counts(self) -> dict[str, Counts]:
        """What became of the values scored so far, by feature: missing, unseen, out of range, truncated.

        User features, and context features given once, count once a request; the others once an ad that is not looked
        up in the item table. A request that raised is not counted. The counts are a copy, consistent over features.
        """
        with self._lock:
            return {name: replace(counts) for name, counts in self._counts.items()}

    @property
    def item_table_counts(self) -> Counts:
        """Ads that were looked up in the item table so far, and how many of them it had not (unseen)."""
        with self._lock:
            return replace(self._table_counts)

    def encode(self, user: Row, items: Items, context: Context | None = None) -> Feeds:
        """Inputs of the graph for raw values; arguments and errors are `score`'s."""
        feeds, seen = self._encoder.encode(user, items, context)
        with self._lock:
            for name, counts in seen:
                self._counts[name].add(counts)
            if "ads" in feeds:
                self._table_counts.values += len(feeds["ads"])
                self._table_counts.unseen += int(np.count_nonzero(feeds["ads"] < 0))
        return feeds

    def run(self, feeds: Feeds, *, width: Width | None = None) -> Float32Array:
        """Click probabilities, float32 [N], of what `encode` gave, at a width."""
        sessions = self._narrow.get(self._width(width) or self._at or "", self._sessions)
        if not all(map(len, feeds.values())):
            return np.zeros(0, np.float32)
        with denormals_as_zero():
            probability_N = sessions.run(feeds)
        if not math.isfinite(probability_N.dot(probability_N)):  # a fifth of the time that isfinite of each takes
            raise UserError(f"{self.bundle.model}: a score is not finite; its weights are broken, export it again")
        return probability_N

    def _width(self, width: Width | None) -> str | None:
        return None if width is None else self.bundle.width(width)

    def _verify_golden(self) -> None:
        features = RequestEncoder(self.bundle.encoding, ignore_unknown=True)
        for i, request in enumerate(self.bundle.golden.requests):
            where = f"{self.bundle.directory}: golden request {i}"
            suffix = "_int8" if self.precision == "int8" else ""
            try:
                feeds = features.encode(request.user, request.items, request.context)[0]
                found = {("int8" if suffix else "exact", name): self.run(feeds, width=name) for name in self._names()}
                if self.item_table is not None:
                    feeds = self.encode(request.user, request.items, request.context)
                    found |= {(f"item_table{suffix}", name): self.run(feeds, width=name) for name in self._names()}
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            for (way, name), scores_N in found.items():
                self._compare(where, scores_N, i, way, name)
        self._clear_counts()  # they are nobody's traffic

    def _names(self) -> tuple[str | None, ...]:
        return (None, *self._narrow)

    def _compare(self, where: str, scores_N: Float32Array, index: int, way: str, width: str | None) -> None:
        golden = self.bundle.golden
        approximate = way in golden.approximate
        scores = golden.approximate[way] if approximate else golden.scores if width is None else golden.widths[width]
        tolerance = golden.approximate_tolerance if approximate else golden.tolerance
        difference = float(np.abs(scores_N - np.asarray(scores[index])).max(initial=0.0))
        if not difference <= tolerance:
            of_width = "" if width is None else f", width {width}"
            raise UserError(
                f"{where} scores {difference:.2g} beside the exporter's ({way}{of_width}), more than {tolerance:.2g}; "
                "export the bundle again, with this version of onnxruntime"
            )

    def _clear_counts(self) -> None:
        self._counts = {feature.name: Counts() for feature in self.bundle.encoding.schema.features}
        self._table_counts = Counts()
