"""Evaluations and comparisons for people, in plain text."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import east_asian_width

from ctrkit.evaluation.compare import POWER, CompareReport, Comparison
from ctrkit.evaluation.predictions import Predictions
from ctrkit.evaluation.report import EvalConfig, Evaluation
from ctrkit.metrics import METRICS, FieldCalibration, Interval, Report
from ctrkit.metrics.score_table import BINS

NAMES = {
    "gauc": "GAUC",
    "auc": "AUC",
    "log_loss": "log loss",
    "normalized_entropy": "NE",
    "pcoc": "PCOC",
    "ece": "ECE",
}
"""What metrics are called."""

_NOTES = {
    "auc": "over all impressions",
    "log_loss": "nats",
    "normalized_entropy": "log loss over the entropy of these rows' click rate",
    "pcoc": "predicted over observed clicks",
    "ece": f"{BINS} bins of equal mass",
}
_LONGEST = 60  # letters of a value that are shown

_WRAP: Any = {"width": 120, "subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}

ONE_RUN = "one run each (what another seed would change is not in the interval)"


def evaluation_text(evaluation: Evaluation, predictions: Predictions, config: EvalConfig) -> str:
    """Everything that an evaluation says: the metrics, then a table for each slice and each field."""
    parts = [_what_was_evaluated(evaluation.report, predictions, config), _metrics(evaluation)]
    for name, by_value in evaluation.slices.items():
        parts.append(f"by {name}\n{_slice(by_value, evaluation.slice_intervals.get(name, {}))}")
    parts += [_field(name, field) for name, field in evaluation.fields.items()]
    return "\n\n".join(parts)


def _what_was_evaluated(report: Report, predictions: Predictions, config: EvalConfig) -> str:
    counts = f"{report.rows:,} impressions, {report.clicks:,} clicks, click rate {_percent(report.base_rate, 2)}"
    lines = [f"{predictions.path}: {counts}"]
    if predictions.weight is not None:
        lines.append(f"metrics count a row '{predictions.weight}' times")
    if config.negative_rate is not None:
        lines.append(f"probabilities de-biased: training kept {config.negative_rate:g} of the non-clicks")
    if config.resamples:
        lines.append(f"intervals from {config.resamples:,} resamples of the users")
    return "\n".join(lines)


def _metrics(evaluation: Evaluation) -> str:
    report, intervals = evaluation.report.as_dict(), evaluation.intervals
    rows = []
    for metric, name in NAMES.items():
        note = _coverage(evaluation.report) if metric == "gauc" else _NOTES[metric]
        rows.append([name, _number(report[metric]), *_interval_of(intervals, metric), note])
    return aligned(["metric", "value", *_interval_header(intervals), ""], rows)


def _coverage(report: Report) -> str:
    """What stands behind GAUC."""
    of = report.coverage
    if of is None:
        return "no column to group by; name it with --group"
    users, rows = of.groups_kept + of.groups_left_out, of.impressions_kept + of.impressions_left_out
    share = _percent(of.impressions_kept / rows if rows else None, 2)
    return f"weighted by impressions; {of.groups_kept:,} of {users:,} users have both classes, {share} of the rows"


def _slice(by_value: Mapping[Any, Report], intervals: Mapping[Any, Interval]) -> str:
    first, *others = NAMES
    header = ["value", "impressions", "click rate", NAMES[first], *_interval_header(intervals)]
    rows = []
    for value, report in by_value.items():
        of = report.as_dict()
        counts = [value_label(value), f"{report.rows:,}", _percent(report.base_rate, 2)]
        rows.append(
            [*counts, _number(of[first]), *_interval_of(intervals, value), *(_number(of[name]) for name in others)]
        )
    return aligned([*header, *(NAMES[name] for name in others)], rows)


def _field(name: str, field: FieldCalibration) -> str:
    rows = [
        [
            value_label(each.value),
            f"{each.rows:,}",
            _number(each.predicted),
            _number(each.observed),
            _percent(each.share, 2),
        ]
        for each in field.worst
    ]
    title = f"field calibration error by {name}: {_number(field.error)} over {field.values:,} values; most of it from"
    return f"{title}\n{aligned(['value', 'impressions', 'predicted', 'observed', 'of the error'], rows)}"


def _interval_header(intervals: Mapping[Any, Interval]) -> list[str]:
    """The column's name, if there is one."""
    return [f"{next(iter(intervals.values())).level:.0%} interval"] if intervals else []


def _interval_of(intervals: Mapping[Any, Interval], key: Any) -> list[str]:
    """The column's cell, if there is a column."""
    if not intervals:
        return []
    return [_interval(intervals[key].low, intervals[key].high)] if key in intervals else [""]


def comparison_text(report: CompareReport) -> str:
    """Everything that a comparison says: the table, a sentence for each variant, the churn."""
    told = "\n".join(textwrap.fill(sentence, **_WRAP) for sentence in sentences(report))
    parts = [_what_was_compared(report), _differences(report), told, _churn(report)]
    return "\n\n".join(parts)


def sentences(report: CompareReport) -> list[str]:
    """What can be said of each variant: the first metric in full, then the others in short."""
    by_variant = [[each for each in report.comparisons if each.variant == variant] for variant in report.variants]
    return [" ".join([_sentence(report, first), *map(_short, others)]) for first, *others in by_variant]


def _what_was_compared(report: CompareReport) -> str:
    kept = report.coverage
    left_out = f", {kept.groups_kept:,} of them with clicks and non-clicks (GAUC)" if kept.groups_left_out else ""
    runs = f"{report.runs} paired runs each" if report.runs > 1 else "one run each"
    return (
        f"{report.rows:,} impressions, {report.clicks:,} clicks, {report.users:,} users{left_out}; {runs}\n"
        f"GAUC weighted by {report.weighting}; {report.level:.0%} intervals and p-values from {report.resamples:,} "
        "resamples of the users"
    )


def _differences(report: CompareReport) -> str:
    header = ["metric", "baseline", "", "variant", "", "difference", "interval", "p", "Holm p"]
    rows = []
    for each in report.comparisons:
        of, digits = each.difference, _digits(each)
        rows.append(
            [
                NAMES[of.metric],
                each.baseline,
                _number(of.a, digits),
                each.variant,
                _number(of.b, digits),
                _number(of.difference, digits, sign=True),
                _interval(of.low, of.high, digits, sign=True),
                _p(of.p_value),
                _p(each.p_holm),
            ]
        )
    return aligned(header, rows)


def _sentence(report: CompareReport, each: Comparison) -> str:
    metric, digits, of = NAMES[each.difference.metric], _digits(each), each.difference
    names = f"{each.variant} and {each.baseline}"
    runs = f"{of.runs} runs each" if of.runs > 1 else ONE_RUN
    over = f"over {of.users:,} users and {runs}"
    p = f"{'Holm-adjusted ' if each.variants > 1 else ''}p {_equals(_p(each.p_holm))}"
    if each.verdict == "undefined":
        return f"{metric} does not tell {names} apart: {_why_undefined(report, of.metric)}."
    if of.low == of.high == of.difference == 0.0:
        return f"{names} have the same {metric}, whichever users are drawn."
    if each.verdict != "undecided":
        return f"{each.variant} is {each.verdict} than {each.baseline} in {metric} {_by(each)}, {p}, {over}."
    interval = _interval(of.low, of.high, digits, sign=True)
    if of.low <= 0 <= of.high:
        why = f"the interval {interval} holds zero, {p}, {over}"
    else:
        why = f"alone, the interval {interval} leaves zero out, but with {each.variants} variants {p}, {over}"
    seen = f"A difference of about {_number(each.detectable, digits)} would be seen {POWER:.0%} of the time."
    return f"No difference in {metric} between {names} can be told: {why}. {seen}"


def _short(each: Comparison) -> str:
    metric = NAMES[each.difference.metric]
    metric = metric[0].upper() + metric[1:]
    if each.verdict == "undefined":
        return f"{metric}: not defined."
    if each.verdict == "undecided":
        return f"{metric}: no difference can be told."
    return f"{metric}: {each.verdict} {_by(each)}."


def _by(each: Comparison) -> str:
    """How much better or worse, as a positive number whichever way the metric goes."""
    of, digits = each.difference, _digits(each)
    sign = -1 if (each.verdict == "better") is not METRICS[of.metric] else 1
    low, high = sorted((sign * of.low, sign * of.high))
    return f"by {_number(sign * of.difference, digits)} {_interval(low, high, digits)}"


def _why_undefined(report: CompareReport, metric: str) -> str:
    if metric == "gauc":
        kept = report.coverage.groups_kept
        return f"{'only one' if kept else 'no'} user has both clicks and non-clicks"
    if report.users < 2:
        return "there is only one user"
    return "there are no clicks" if not report.clicks else "every impression is clicked"


def _churn(report: CompareReport) -> str:
    k = report.churn[0].churn.k
    header = ["prediction churn", "mean |dp|", "of click rate", "Kendall tau", "top item moves", f"top {k} in common"]
    rows = [
        [
            f"{each.a} -> {each.b}" if each.a != each.b else f"{each.a}, run to run",
            _number(each.churn.mean_change, 4),
            _percent(each.churn.relative_change),
            _number(each.churn.kendall_tau, 3),
            _percent(each.churn.top_changed),
            _percent(each.churn.top_k_overlap),
        ]
        for each in report.churn
    ]
    return aligned(header, rows)


def value_label(value: Any) -> str:
    """A slice's value in words: one line of letters that can be printed, not too long for a table."""
    if value is None:
        return "missing"
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value))
    if not text.strip():
        return repr(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text; columns of figures stand right, columns of words left."""
    table = [list(header), *map(list, rows)]
    widths = [max(_width(row[i]) for row in table) for i in range(len(header))]
    table.insert(1, ["-" * width for width in widths])
    lines = (
        "  ".join(
            " " * (width - _width(cell)) + cell if _is_figure(rows, i) else cell + " " * (width - _width(cell))
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )
    return "\n".join(line.rstrip() for line in lines)


def _width(text: str) -> int:
    """Places that a text takes on a terminal."""
    return len(text) if text.isascii() else sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def _is_figure(rows: Sequence[Sequence[str]], column: int) -> bool:
    return all(row[column][:1] in "+-<[0123456789" for row in rows)


def _digits(each: Comparison) -> int:
    """Digits after the point: four, or as many as give half the interval two that count."""
    half = (each.difference.high - each.difference.low) / 2
    return 4 if not half > 0 else min(12, max(4, 1 - math.floor(math.log10(half))))


def _number(value: float | None, digits: int = 4, *, sign: bool = False) -> str:
    """Digits after the point, or `-` for what is not defined."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def _interval(low: float, high: float, digits: int = 4, *, sign: bool = False) -> str:
    return "-" if math.isnan(low) else f"[{_number(low, digits, sign=sign)}, {_number(high, digits, sign=sign)}]"


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}%}"


def _p(value: float) -> str:
    """A p-value to three digits after the point; 2,000 resamples tell nothing below 0.001."""
    if math.isnan(value):
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _equals(p: str) -> str:
    return p.replace("<", "< ") if p.startswith("<") else f"= {p}"
