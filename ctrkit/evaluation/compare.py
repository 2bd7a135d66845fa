"""Is a variant better than the baseline? Differences with intervals, corrected for their number, and churn.

The differences are those of `ctrkit.metrics.paired_bootstrap`: users are drawn, runs are paired in the order given, and
all variants are judged on the same resamples. For each metric Holm's correction holds the chance of any false discovery
among the variants to 1 - level.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctrkit.errors import UserError
from ctrkit.evaluation.report import json_value
from ctrkit.evaluation.runs import Columns, Impressions, ModelRuns
from ctrkit.metrics import (
    METRICS,
    Churn,
    Coverage,
    Difference,
    churn,
    group_aucs,
    holm,
    inputs,
    mean_churn,
    paired_bootstrap,
)
from ctrkit.metrics.gauc import Weighting
from ctrkit.metrics.resampling import COMPARABLE

Verdict = Literal["better", "worse", "undecided", "undefined"]
Scores = NDArray[np.float64]

POWER = 0.8
"""The share of logs of this size in which a difference of `Comparison.detectable` would be seen."""


@dataclass(frozen=True)
class Comparison:
    """One metric of a variant against the baseline.

    difference: variant - baseline. p_holm: its p-value after Holm's correction over the `variants` that define the
    metric; nan where this one does not.
    """

    baseline: str
    variant: str
    difference: Difference
    p_holm: float
    variants: int

    @property
    def verdict(self) -> Verdict:
        """What can be said at the level of the interval, the number of variants allowed for."""
        if math.isnan(self.p_holm):
            return "undefined"
        if self.p_holm > 1 - self.difference.level:
            return "undecided"
        return "better" if (self.difference.difference > 0) is METRICS[self.difference.metric] else "worse"

    @property
    def detectable(self) -> float:
        """The minimum detectable effect: the smallest difference that would be seen in POWER of the logs of this size.

        From half the interval's width h, taken as normal: h (z(1 - alpha / 2m) + z(POWER)) / z(1 - alpha / 2), with
        alpha = 1 - level and m variants, since Holm's correction first asks for alpha / m.
        """
        alpha, z = 1 - self.difference.level, NormalDist().inv_cdf
        half = (self.difference.high - self.difference.low) / 2
        return half * (z(1 - alpha / 2 / max(self.variants, 1)) + z(POWER)) / z(1 - alpha / 2)


@dataclass(frozen=True)
class PairChurn:
    """The mean churn over pairs of runs: of two models, or of one model's runs with each other (a = b)."""

    a: str
    b: str
    pairs: int
    churn: Churn


@dataclass(frozen=True)
class CompareReport:
    """Everything that a comparison found.

    comparisons: by variant, then metric. churn: baseline against each variant, and each model of several runs against
    itself. coverage: what GAUC rests on.
    """

    baseline: str
    variants: tuple[str, ...]
    runs: int
    rows: int
    clicks: int
    users: int
    coverage: Coverage
    weighting: Weighting
    level: float
    resamples: int
    comparisons: tuple[Comparison, ...]
    churn: tuple[PairChurn, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it; what is not defined is None."""
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        content["coverage"] = dataclasses.asdict(self.coverage)
        content["comparisons"] = [
            {"baseline": each.baseline, "variant": each.variant, **dataclasses.asdict(each.difference),
             "p_holm": each.p_holm, "verdict": each.verdict, "detectable": each.detectable}
            for each in self.comparisons
        ]  # fmt: skip
        content["churn"] = [
            {"a": each.a, "b": each.b, "pairs": each.pairs, **dataclasses.asdict(each.churn)} for each in self.churn
        ]
        return {name: json_value(value) for name, value in content.items()}


def compare_scores(
    y_true: ArrayLike,
    groups: Any,
    baseline: tuple[str, ArrayLike],
    variants: Iterable[tuple[str, ArrayLike]],
    *,
    metrics: Sequence[str] = COMPARABLE,
    weighting: Weighting = "impressions",
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    top_k: int = 3,
    look: Callable[[str, Scores], None] = lambda name, scores: None,
) -> CompareReport:
    """Compare variants with a baseline on one log.

    Args:
        y_true, groups: labels and users [rows], as for `gauc`.
        baseline: name and probabilities, [rows], or [runs, rows] for several runs.
        variants: likewise, as many runs each; read one after another, so that a generator holds one in memory.
        metrics, weighting, resamples, level, seed: as for `paired_bootstrap`; of less than 2 variants / (1 - level)
            resamples, no p-value can be small enough for Holm's correction.
        top_k: rows of a user that the churn's overlap looks at.
        look: is shown every model's name and probabilities [runs, rows], the baseline first.

    Raises:
        UserError: what `paired_bootstrap` and `churn` raise; no variant; a variant of another number of runs.
    """
    label, name, first = inputs.labels(y_true), baseline[0], _as_runs(baseline[1])
    look(name, first)
    differences: dict[str, dict[str, Difference]] = {}
    churns = _own_churn(name, first, label, groups, top_k)
    for variant, scores in variants:
        runs = _as_runs(scores)
        _require_pairs(name, len(first), variant, len(runs))
        differences[variant] = paired_bootstrap(
            label, first, runs, groups,
            metrics=metrics, weighting=weighting, resamples=resamples, level=level, seed=seed,
        )  # fmt: skip
        between = [churn(label, a, b, groups, k=top_k) for a, b in zip(first, runs, strict=True)]
        churns.append(PairChurn(name, variant, len(between), mean_churn(between)))
        churns += _own_churn(variant, runs, label, groups, top_k)
        look(variant, runs)
    if not differences:
        raise UserError("there is no variant to compare the baseline with; name one or more")
    return CompareReport(
        baseline=name,
        variants=tuple(differences),
        runs=len(first),
        rows=len(label),
        clicks=int(label.sum()),
        users=next(iter(next(iter(differences.values())).values())).users,
        coverage=group_aucs(label, first[0], groups).coverage,
        weighting=weighting,
        level=level,
        resamples=resamples,
        comparisons=tuple(_corrected(name, differences, metrics)),
        churn=tuple(churns),
    )


def compare(
    baseline: ModelRuns,
    variants: Sequence[ModelRuns],
    columns: Columns | None = None,
    *,
    look: Callable[[Impressions, str, Scores], None] = lambda log, name, scores: None,
    **settings: Any,
) -> CompareReport:
    """`compare_scores` of predictions in files; settings are its keyword arguments.

    The labels and users are those of the baseline's first file. Memory: all runs of the baseline and of one variant.

    Raises:
        UserError: what `Impressions` and `compare_scores` raise.
    """
    for variant in variants:  # before anything is read
        _require_pairs(baseline.name, len(baseline.paths), variant.name, len(variant.paths))
    log = Impressions.read(baseline.paths[0], columns or Columns())
    return compare_scores(
        log.label,
        log.user,
        (baseline.name, log.scores(baseline)),
        ((variant.name, log.scores(variant)) for variant in variants),
        look=lambda name, scores: look(log, name, scores),
        **settings,
    )


def _require_pairs(baseline: str, runs: int, variant: str, of_variant: int) -> None:
    if runs != of_variant:
        what = f"{baseline} has {runs} runs and {variant} has {of_variant}"
        raise UserError(f"{what}; run s of one is paired with run s of the other, so give as many of each")


def _as_runs(scores: ArrayLike) -> Scores:
    return np.atleast_2d(np.asarray(scores, dtype=np.float64))


def _own_churn(name: str, runs: Scores, label: NDArray[Any], groups: Any, k: int) -> list[PairChurn]:
    """The churn among a model's runs: each with the next, and the last with the first."""
    if len(runs) < 2:
        return []
    pairs = [*pairwise(runs), *([(runs[-1], runs[0])] if len(runs) > 2 else [])]
    return [PairChurn(name, name, len(pairs), mean_churn([churn(label, a, b, groups, k=k) for a, b in pairs]))]


def _corrected(
    baseline: str, differences: dict[str, dict[str, Difference]], metrics: Sequence[str]
) -> Iterable[Comparison]:
    """By variant, then metric; p-values corrected for each metric over the variants that define it."""
    adjusted: dict[tuple[str, str], tuple[float, int]] = {}
    for metric in metrics:
        defined = [variant for variant, of in differences.items() if not math.isnan(of[metric].p_value)]
        p_values = holm([differences[variant][metric].p_value for variant in defined])
        for variant, p in zip(defined, p_values, strict=True):
            adjusted[variant, metric] = float(p), len(defined)
    for variant, of in differences.items():
        for metric in metrics:
            p, count = adjusted.get((variant, metric), (math.nan, 0))
            yield Comparison(baseline, variant, of[metric], p, count)
