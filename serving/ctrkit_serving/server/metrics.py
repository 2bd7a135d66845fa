"""What `/metrics` tells: the board's counters, summed over the workers, in Prometheus' text format."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ctrkit_serving.server.board import REASONS, SCORE_EDGES, STAGE_EDGES, STAGES, State
from ctrkit_serving.server.service import Service

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_COUNTED = {
    "values": ("values", "Feature values read."),
    "unseen": ("unseen_values", "Of them, ids that training had not seen."),
    "missing": ("missing_values", "Of them, missing."),
    "table_lookups": ("item_table_lookups", "Ads looked up in the item table."),
    "table_misses": ("item_table_misses", "Of them, not in it: scored from their features."),
}
"""By the board's field: name and text."""


def render(service: Service) -> bytes:
    """The text of `/metrics`."""
    service.tick()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(service))
    return generate_latest(registry)


def population_stability(found: npt.NDArray[np.int64], reference: npt.NDArray[np.int64]) -> float:
    """Population stability index of two histograms of scores: sum of (p - q) ln(p / q), a half added to each bucket.

    Rule of thumb: below 0.1 alike, above 0.25 to be looked at. 0 where either is empty.
    """
    if not found.sum() or not reference.sum():
        return 0.0
    p, q = ((h + 0.5) / (h.sum() + 0.5 * len(h)) for h in (found, reference))
    return float(((p - q) * np.log(p / q)).sum())


class _Collector:
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from self._process()
        yield from self._versions()

    def _process(self) -> Iterator[Metric]:
        board = self._service.board
        shared, workers = board.shared, board.workers
        yield GaugeMetricFamily("ctrkit_ready", "1 if the server is ready.", float(board.not_ready() is None))
        up = GaugeMetricFamily("ctrkit_worker_up", "1 if the worker is up.", labels=["worker"])
        queued = GaugeMetricFamily("ctrkit_queue_length", "Requests that wait.", labels=["worker"])
        open_ = GaugeMetricFamily("ctrkit_connections", "Open HTTP connections.", labels=["worker"])
        for slot in range(len(workers)):
            up.add_metric([str(slot)], float(workers["state"][slot] == State.READY))
            queued.add_metric([str(slot)], float(workers["queued"][slot]))
            open_.add_metric([str(slot)], float(workers["connections"][slot]))
        yield from (up, queued, open_)
        responses = CounterMetricFamily("ctrkit_requests", "Answered, by what became of them.", labels=["reason"])
        for reason, count in zip(REASONS, workers["responses"].sum(axis=0), strict=True):
            responses.add_metric([reason], float(count))
        yield responses
        yield CounterMetricFamily(
            "ctrkit_worker_restarts", "Workers that died and were replaced.", float(shared["restarts"])
        )
        loads = CounterMetricFamily("ctrkit_version_checks", "New versions, by what became of them.", labels=["result"])
        loads.add_metric(["accepted"], float(shared["accepted"]))
        loads.add_metric(["rejected"], float(shared["rejected"]))
        yield loads

    def _versions(self) -> Iterator[Metric]:
        service, labels = self._service, ["model", "version"]
        serving = GaugeMetricFamily("ctrkit_version_serving", "1 for the version that serves.", labels=labels)
        ads = CounterMetricFamily("ctrkit_ads", "Ads scored.", labels=labels)
        counted = [CounterMetricFamily(f"ctrkit_{name}", text, labels=labels) for name, text in _COUNTED.values()]
        scores = HistogramMetricFamily("ctrkit_score", "Scores.", labels=labels)
        mean = GaugeMetricFamily("ctrkit_score_mean", "Mean score since the version was loaded.", labels=labels)
        drift = GaugeMetricFamily(
            "ctrkit_score_drift", "Population stability index against the version before it.", labels=labels
        )
        stages = HistogramMetricFamily("ctrkit_stage_seconds", "Time by stage.", labels=[*labels, "stage"])
        widths = CounterMetricFamily(
            "ctrkit_width_requests", "Requests scored, by the width they were scored at.", labels=[*labels, "width"]
        )
        for (name, version), (model, row, _) in sorted(service.loaded.items()):
            label, total = [name, str(version)], service.board.row_totals(row)
            serving.add_metric(label, float(service.serving.get(name) == version))
            ads.add_metric(label, float(total["ads"]))
            for width, count in zip(model.scorer.widths, total["widths"], strict=False):
                widths.add_metric([*label, width], float(count))
            for field, family in zip(_COUNTED, counted, strict=True):
                family.add_metric(label, float(total[field]))
            scores.add_metric(label, _buckets(SCORE_EDGES, total["scores"]), float(total["score_sum"]))
            if total["ads"]:
                mean.add_metric(label, float(total["score_sum"] / total["ads"]))
            drift.add_metric(label, population_stability(total["scores"], service.board.shared["reference"][row]))
            for i, stage in enumerate(STAGES):
                buckets = _buckets(STAGE_EDGES, total["stages"][i])
                stages.add_metric([*label, stage], buckets, float(total["stage_sum"][i]))
        yield from (serving, ads, widths, *counted, scores, mean, drift, stages)


def _buckets(edges: npt.NDArray[np.float64], counts: Any) -> list[tuple[str, float]]:
    bounds = [f"{edge:g}" for edge in edges] + ["+Inf"]
    return list(zip(bounds, np.cumsum(counts).astype(float).tolist(), strict=True))
