"""What the pictures of an evaluation and of a comparison show, and where they lie."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctrkit.evaluation import plots
from ctrkit.evaluation.compare import CompareReport
from ctrkit.evaluation.predictions import Predictions
from ctrkit.evaluation.report import EvalConfig, Evaluation, Rows, json_value
from ctrkit.evaluation.text import NAMES, value_label
from ctrkit.metrics import METRICS, ReliabilityCurve, reliability_curve

Floats = NDArray[np.float64]

SCORE_EDGES = 1 / (1 + np.exp(-np.linspace(-12, 12, 97)))
"""Edges of the bins of scores: every quarter of a logit. What lies beyond the ends counts in the outermost bins."""

CHANGES_SHOWN = 0.995
"""The share of every variant's changes that lies within the edges of the picture."""

_UNIT = 1e-6  # of a change of the probability: how finely changes are counted before the picture's bins are known
_HALF = 40  # bins on either side of the one around 0


def plot_evaluation(
    evaluation: Evaluation, predictions: Predictions, config: EvalConfig, directory: Path, *, name: str | None = None
) -> list[Path]:
    """Draw what `evaluate_predictions` found: reliability.svg, scores.svg, and gauc_by_SLICE.svg of each slice.

    The predictions are read once more, for the scores by label. name: the model's in the legend; else that of the file.
    Returns the paths of the pictures; beside each is a JSON file of the same name. Raises UserError without
    matplotlib, and if the directory cannot be written.
    """
    plots.require_matplotlib()
    rows = evaluation.report.rows
    models = [{"name": name or Path(predictions.path).stem, "runs": [curve_data(evaluation.curve)]}]
    drawn = [
        plots.save(directory, "reliability", plots.draw_reliability, {"rows": rows, "models": models}),
        plots.save(directory, "scores", plots.draw_scores, score_data(predictions, config)),
    ]
    for column in evaluation.slices:
        drawn.append(plots.save(directory, f"gauc_by_{column}", plots.draw_slices, slice_data(evaluation, column)))
    return drawn


def slice_data(evaluation: Evaluation, column: str) -> dict[str, Any]:
    """GAUC by the values of a slice, as `draw_slices` takes it."""
    intervals: Mapping[Any, Any] = evaluation.slice_intervals.get(column, {})
    values = []
    for value, report in evaluation.slices[column].items():
        interval = intervals.get(value)
        values.append(
            {
                "value": value_label(value),
                "impressions": report.rows,
                "gauc": report.gauc,
                "low": None if interval is None else json_value(interval.low),
                "high": None if interval is None else json_value(interval.high),
            }
        )
    level = next((interval.level for interval in intervals.values()), None)
    whole = evaluation.report
    return {"rows": whole.rows, "slice": column, "gauc": whole.gauc, "level": level, "values": values}


def score_data(predictions: Predictions, config: EvalConfig) -> dict[str, Any]:
    """The spread of the scores by label, as `draw_scores` takes it: by weight if there are weights.

    Reads the predictions batch by batch. The empty bins at both ends are left out.
    """
    bins = len(SCORE_EDGES) - 1
    mass = {True: np.zeros(bins), False: np.zeros(bins)}
    for batch in predictions.batches():
        rows = Rows.of(predictions, batch, config)
        place = np.clip(np.searchsorted(SCORE_EDGES, rows.probability, side="right") - 1, 0, bins - 1)
        for label, total in mass.items():
            which = rows.clicks == label
            weight = None if rows.weight is None else rows.weight[which]
            total += np.bincount(place[which], weight, minlength=bins)
    used = np.flatnonzero(mass[True] + mass[False])
    shown = slice(used[0], used[-1] + 1) if used.size else slice(0, bins)
    shares = {label: (total / (total.sum() or 1.0))[shown].tolist() for label, total in mass.items()}
    edges = SCORE_EDGES[shown.start : shown.stop + 1].tolist()
    return {"rows": predictions.num_rows, "edges": edges, "click": shares[True], "no_click": shares[False]}


class ComparePictures:
    """The pictures of a comparison: `look` is shown every model while it is in memory, `save` draws.

    changes: of each variant, how often the probability changes by -1 to 1 in steps of _UNIT (16 MB each).
    """

    def __init__(self) -> None:
        plots.require_matplotlib()
        self._baseline: Floats | None = None
        self._models: list[dict[str, Any]] = []
        self.changes: dict[str, NDArray[np.int64]] = {}

    def look(self, clicks: NDArray[np.bool_], name: str, runs: Floats) -> None:
        """Take from a model's probabilities [runs, rows] what the pictures need; the baseline comes first."""
        curves = [curve_data(reliability_curve(clicks, run)) for run in runs]
        self._models.append({"name": name, "runs": curves})
        if self._baseline is None:
            self._baseline = runs
            return
        unit = np.rint((runs - self._baseline).ravel() / _UNIT).astype(np.int64)
        self.changes[name] = np.bincount(unit + round(1 / _UNIT), minlength=2 * round(1 / _UNIT) + 1)

    def save(self, report: CompareReport, directory: Path) -> list[Path]:
        """Write differences.svg, reliability.svg and changes.svg with their JSON files; returns the pictures' paths.

        Raises UserError if the directory cannot be written.
        """
        reliability = {"rows": report.rows, "models": self._models}
        changes = change_data(report.rows, report.baseline, self.changes)
        return [
            plots.save(directory, "differences", plots.draw_differences, difference_data(report)),
            plots.save(directory, "reliability", plots.draw_reliability, reliability),
            plots.save(directory, "changes", plots.draw_changes, changes),
        ]


def curve_data(curve: ReliabilityCurve) -> dict[str, list[float]]:
    """A reliability curve as JSON holds it."""
    return {name: values.tolist() for name, values in vars(curve).items()}


def difference_data(report: CompareReport) -> dict[str, Any]:
    """The comparison as `draw_differences` takes it."""
    metrics: dict[str, list[dict[str, Any]]] = {}
    for each in report.comparisons:
        of = each.difference
        variant = {"difference": of.difference, "low": of.low, "high": of.high}
        told = each.verdict in ("better", "worse")
        metrics.setdefault(of.metric, []).append({"name": each.variant, **json_value(variant), "told": told})
    return {
        "rows": report.rows,
        "users": report.users,
        "baseline": report.baseline,
        "level": report.level,
        "metrics": [
            {
                "name": NAMES[metric],
                "unit": " (nats)" if metric == "log_loss" else "",
                "larger_is_better": METRICS[metric],
                "variants": variants,
            }
            for metric, variants in metrics.items()
        ],
    }


def change_data(rows: int, baseline: str, changes: Mapping[str, NDArray[np.int64]]) -> dict[str, Any]:
    """Changes of the probability as `draw_changes` takes them.

    changes: of each variant, how many there are of each size from -1 to 1 in steps of _UNIT. The picture's bins are as
    wide as the changes need, the same for all variants, and the middle one lies around 0.
    """
    size = np.arange(-round(1 / _UNIT), round(1 / _UNIT) + 1)
    limit = max((_quantile(np.abs(size), count) for count in changes.values()), default=0)
    width = 2 * max(0, math.ceil((limit / (_HALF + 0.5) - 1) / 2)) + 1  # in units, odd
    place = np.clip(np.rint(size / width), -_HALF, _HALF).astype(np.int64) + _HALF
    shares = {name: np.bincount(place, count, minlength=2 * _HALF + 1) / count.sum() for name, count in changes.items()}
    return {
        "rows": rows,
        "baseline": baseline,
        "edges": ((np.arange(2 * _HALF + 2) - _HALF - 0.5) * width * _UNIT).tolist(),
        "variants": [{"name": name, "share": share.tolist()} for name, share in shares.items()],
    }


def _quantile(size: NDArray[np.int64], count: NDArray[np.int64]) -> int:
    """The size that CHANGES_SHOWN of the changes do not exceed."""
    by_size = np.cumsum(np.bincount(size, count))
    return int(np.searchsorted(by_size, CHANGES_SHOWN * by_size[-1]))
