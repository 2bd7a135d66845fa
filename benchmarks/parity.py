"""One score, whichever way: torch = ONNX = scorer in process = REST = gRPC, for every kind of tower and precision.

Exact graphs must give torch's probability within 1e-6, from features and from the item table; with tables in fewer bits
torch's with those tables, from features. An item table in fewer bits and a graph in int8 have no equal in torch: how
far they are from it is told. What the server answers must be the scorer's numbers, bit by bit, whatever the protocol.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import report
from benchmarks.parity_towers import KEY, KINDS, ads, batch_of, encoding, network, request
from benchmarks.server_peers import triton_inputs
from benchmarks.server_process import Server
from ctrkit.bundle import Bundle
from ctrkit.encoding import Encoding
from ctrkit.export.export import Rewrites, export_bundle
from ctrkit.export.gate import HeldOutRows, Limits
from ctrkit.export.plain_network import PlainNetwork, graph_inputs
from ctrkit.export.tables import stored
from ctrkit.graph import Feeds
from ctrkit.metrics.report import evaluate_scores
from ctrkit.nn.network import Network
from ctrkit.request import Request
from ctrkit.request_encoder import RequestEncoder
from ctrkit_serving.scorer import Scorer

TABLES = ("float32", "float16", "int8")
_ADS = 16
_BATCH = 500
_ANYTHING = Limits(gauc_change=1.0, pcoc_change=10.0, difference=1.0)
"""Random towers rank nothing: what is looked at here is whether the ways agree."""
Scores = list[npt.NDArray[np.float32]]


def main() -> None:
    """Compare, print, write; fails if a way differs by more than it may."""
    parser = report.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000, help="of each kind and precision")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this one; can be repeated")
    options = parser.parse_args()
    count = min(options.requests, 500) if options.quick else options.requests
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        for kind in options.kind or KINDS:
            rows += compare(Path(directory) / kind, kind, count)
            print(*(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    headers = list(rows[0])
    report.table(headers, [[_shown(row[header]) for header in headers] for row in rows])
    wrong = [row for row in rows if not row["ok"]]
    report.emit({"benchmark": "parity", "requests": count, "rows": rows, "disagreements": len(wrong)}, options.out)
    assert not wrong, wrong


@dataclass
class Case:
    """A kind of tower."""

    kind: str
    requests: list[Request]
    by_key: list[Request]
    """The same ads, those of the item table by their key alone."""
    torch_scores: dict[str, Scores]
    """By the precision of the tables."""


def compare(place: Path, kind: str, count: int) -> list[dict[str, Any]]:
    """Differences of every way, a row a precision."""
    case, bundles = _case(place, kind, count)
    found = []
    for precision in ("exact", "int8"):
        chosen = {name: bundle for name, bundle in bundles.items() if precision == "exact" or bundle.has_int8}
        models = place / f"models_{precision}"
        for name, bundle in chosen.items():
            (models / name).mkdir(parents=True)
            (models / name / "1").symlink_to(bundle.directory)
        with Server(models, "--precision", precision, "--workers", "1", "--no-pin", grpc=True) as server:
            server.wait_ready()
            for name, bundle in chosen.items():
                found.append(_row(case, bundle, name, precision, server))
    return found


def _case(place: Path, kind: str, count: int) -> tuple[Case, dict[str, Bundle]]:
    features, rng = KINDS[kind][0], np.random.default_rng(1)
    net, how = network(kind), encoding(features)
    known = [{KEY: 10 * i, **ad} for i, ad in enumerate(ads(features, rng, 2000))]
    place.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(known), place / "ads.parquet")
    requests, by_key = [], []
    for _ in range(count):
        size = int(rng.integers(1, _ADS + 1))
        new = ads(features, rng, int(rng.integers(3)))
        chosen = [known[i] for i in rng.integers(len(known), size=size)]
        one = request(features, rng, [*({k: v for k, v in ad.items() if k != KEY} for ad in chosen), *new])
        requests.append(one)
        keys = [*({KEY: ad[KEY]} for ad in chosen), *({KEY: -1, **ad} for ad in new)]
        by_key.append(Request(one.user, keys, one.context))
    encoder = RequestEncoder(how)
    encoded = [encoder.encode(r.user, r.items, r.context)[0] for r in requests]
    held_out = [batch_of(encoded[i : i + 50], how.schema) for i in range(0, min(count, 500), 50)]
    rows = sum(len(batch.label_B) for batch in held_out)
    judged = HeldOutRows(lambda: held_out, lambda p: evaluate_scores(np.arange(rows) % 3 == 0, p, np.arange(rows) % 50))
    bundles = {}
    for tables in TABLES:
        rewrites = Rewrites(place / "ads.parquet", KEY, tables, int8=True, limits=_ANYTHING)  # type: ignore[arg-type]
        bundles[f"{kind}_{tables}"] = export_bundle(
            net, how, place / tables, name=kind, held_out=held_out, requests=requests[:8], judged=judged,
            rewrites=rewrites,
        )  # fmt: skip
    return Case(kind, requests, by_key, {tables: _in_torch(net, tables, encoded, how) for tables in TABLES}), bundles


def _in_torch(net: Network, tables: Any, encoded: Sequence[Feeds], how: Encoding) -> Scores:
    """The network itself, from batches as training has them; with other tables, theirs in its place."""
    stacks = {int(dim): stack.detach().numpy() for dim, stack in net.embedding.stacks.items()}
    other = PlainNetwork(net, how.schema, {dim: stored(stack, tables) for dim, stack in stacks.items()})
    found: Scores = []
    for start in range(0, len(encoded), _BATCH):
        some = encoded[start : start + _BATCH]
        batch = batch_of(some, how.schema)
        with torch.no_grad():
            if tables == "float32":
                probability_N = torch.sigmoid(net(batch)).numpy()
            else:
                probability_N = other.eval()(graph_inputs(batch, how.schema)).numpy()
        found += np.split(probability_N, np.cumsum([max(map(len, one.values())) for one in some])[:-1])
    return found


def _row(case: Case, bundle: Bundle, name: str, precision: Any, server: Server) -> dict[str, Any]:
    """Largest differences over all requests."""
    scorer = Scorer.load(bundle.directory, precision=precision)
    by_features = Scorer.load(bundle.directory, precision=precision, use_item_table=False)
    features = [by_features.score_request(one) for one in case.requests]
    table = [scorer.score_request(one) for one in case.by_key]
    tables = bundle.manifest.tables
    found: dict[str, Any] = {
        "tower": case.kind, "tables": tables, "graph": precision, "requests": len(features),
        "spread": float(np.std(np.concatenate(case.torch_scores[tables]))),
        "features_to_torch": _difference(features, case.torch_scores[tables]),
        "item_table_to_torch": _difference(table, case.torch_scores[tables]),
        "rest_to_scorer": _difference(_rest(server, name, scorer, case), table),
        "grpc_to_scorer": _difference(_grpc(server, name, scorer, case), table),
    }  # fmt: skip
    same = found["rest_to_scorer"] == found["grpc_to_scorer"] == 0
    # the part of an ad in fewer bits, and a graph in int8, have no equal in torch
    near = precision == "int8" or found["features_to_torch"] <= 1e-6
    near_too = precision == "int8" or tables != "float32" or found["item_table_to_torch"] <= 1e-6
    return {**found, "ok": bool(same and near and near_too)}


def _rest(server: Server, model: str, scorer: Scorer, case: Case) -> Iterator[npt.NDArray[np.float32]]:
    """tritonclient's binary tensors; each tenth request as raw features in JSON."""
    import tritonclient.http as http_client

    client = http_client.InferenceServerClient(server.address)
    for i, one in enumerate(case.by_key):
        if i % 10:
            inputs = triton_inputs(http_client, scorer.encode(one.user, one.items, one.context))
            yield client.infer(model, inputs).as_numpy("probability")
        else:
            status, answer = server.call("POST", f"/v2/models/{model}/score", one.to_json())
            assert status == 200, answer
            yield np.array(answer["scores"], np.float32)
    client.close()


def _grpc(server: Server, model: str, scorer: Scorer, case: Case) -> Iterator[npt.NDArray[np.float32]]:
    import tritonclient.grpc as grpc_client

    client = grpc_client.InferenceServerClient(server.grpc_address)
    for one in case.by_key:
        inputs = triton_inputs(grpc_client, scorer.encode(one.user, one.items, one.context))
        yield client.infer(model, inputs).as_numpy("probability")
    client.close()


def _shown(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def _difference(found: Sequence[Any] | Iterator[Any], expected: Scores) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float(np.abs(one - other).max(initial=0.0)) for one, other in pairs)


if __name__ == "__main__":
    main()
