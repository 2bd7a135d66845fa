"""An evaluation for people: the metrics, then a table for each slice and each field."""

from collections.abc import Mapping
from typing import Any

from ctrkit.evaluation.compare_text import aligned
from ctrkit.evaluation.evaluation import Evaluation, Wanted
from ctrkit.evaluation.predictions import Predictions
from ctrkit.metrics import FieldCalibration, Interval, Report
from ctrkit.metrics.score_table import BINS

_METRICS = {
    "gauc": ("GAUC", ""),
    "auc": ("AUC", "over all impressions"),
    "log_loss": ("log loss", "nats"),
    "normalized_entropy": ("NE", "log loss over the entropy of these rows' click rate"),
    "pcoc": ("PCOC", "predicted over observed clicks"),
    "ece": ("ECE", f"{BINS} bins of equal mass"),
}


def evaluation_text(evaluation: Evaluation, predictions: Predictions, wanted: Wanted) -> str:
    """Everything that the evaluation says, in lines of plain text."""
    parts = [_heading(evaluation.report, predictions, wanted), _metrics(evaluation)]
    for name, by_value in evaluation.slices.items():
        parts.append(f"by {name}\n{_slice(by_value, evaluation.slice_intervals.get(name, {}))}")
    parts += [_field(name, field) for name, field in evaluation.fields.items()]
    return "\n\n".join(parts)


def _heading(report: Report, predictions: Predictions, wanted: Wanted) -> str:
    counts = f"{report.rows:,} impressions, {report.clicks:,} clicks, click rate {_share(report.base_rate)}"
    lines = [f"{predictions.path}: {counts}"]
    if predictions.weight is not None:
        lines.append(f"metrics count a row '{predictions.weight}' times")
    if wanted.negative_rate is not None:
        lines.append(f"probabilities de-biased: training kept {wanted.negative_rate:g} of the non-clicks")
    if wanted.resamples:
        lines.append(f"intervals from {wanted.resamples:,} resamples of the users")
    return "\n".join(lines)


def _metrics(evaluation: Evaluation) -> str:
    report, intervals = evaluation.report.as_dict(), evaluation.intervals
    rows = []
    for key, (name, note) in _METRICS.items():
        interval = [_interval(intervals.get(key))] if intervals else []
        rows.append([name, number(report[key]), *interval, _coverage(evaluation.report) if key == "gauc" else note])
    return aligned(["metric", "value", *_interval_header(intervals), ""], rows)


def _coverage(report: Report) -> str:
    """What stands behind GAUC."""
    of = report.coverage
    if of is None:
        return "no column to group by; name it with --group"
    users, rows = of.groups_kept + of.groups_left_out, of.impressions_kept + of.impressions_left_out
    share = _share(of.impressions_kept / rows if rows else None)
    return f"weighted by impressions; {of.groups_kept:,} of {users:,} users have both classes, {share} of the rows"


def _slice(by_value: Mapping[Any, Report], intervals: Mapping[Any, Interval]) -> str:
    header = [
        "value",
        "impressions",
        "click rate",
        "GAUC",
        *_interval_header(intervals),
        *(name for name, _ in list(_METRICS.values())[1:]),
    ]
    rows = []
    for value, report in by_value.items():
        interval = [_interval(intervals[value])] if intervals else []
        content = report.as_dict()
        others = [number(content[key]) for key in list(_METRICS)[1:]]
        rows.append(
            [label(value), f"{report.rows:,}", _share(report.base_rate), number(report.gauc), *interval, *others]
        )
    return aligned(header, rows)


def _field(name: str, field: FieldCalibration) -> str:
    rows = [
        [label(each.value), f"{each.rows:,}", number(each.predicted), number(each.observed), _share(each.share)]
        for each in field.worst
    ]
    title = f"field calibration error by {name}: {number(field.error)} over {field.values:,} values; most of it from"
    return f"{title}\n{aligned(['value', 'impressions', 'predicted', 'observed', 'of the error'], rows)}"


def label(value: Any) -> str:
    """A slice's value in words."""
    return "missing" if value is None else str(value)


def number(value: float | None) -> str:
    """Four digits after the point, or `-` for what is not defined."""
    return "-" if value is None or value != value else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _interval(interval: Interval | None) -> str:
    if interval is None or not interval.resamples:
        return "" if interval is None else "-"
    return f"{number(interval.low)} .. {number(interval.high)}"


def _interval_header(intervals: Mapping[Any, Interval]) -> list[str]:
    """The column's name, if there is one."""
    return [f"{next(iter(intervals.values())).level:.0%} interval"] if intervals else []
