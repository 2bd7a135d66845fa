"""Metrics of the probabilities themselves: how likely they make the clicks, and whether they are calibrated."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctrkit.errors import UserError
from ctrkit.metrics import inputs
from ctrkit.metrics.exact import exact_sum, ratio
from ctrkit.metrics.score_table import BINS, ReliabilityCurve, ScoreSums, ScoreTable

EPSILON = 2.0**-24
"""Probabilities are kept this far from 0 and 1 in log loss: float32's step below 1, so at most 16.6 nats."""

Clicks = NDArray[np.bool_]
Weights = NDArray[np.float64] | None


def log_loss(y_true: ArrayLike, probability: ArrayLike, *, sample_weight: ArrayLike | None = None) -> float:
    """Mean cross entropy in nats: -mean(y ln p + (1 - y) ln(1 - p)), p clipped to [EPSILON, 1 - EPSILON].

    y_true, probability, sample_weight [rows]. nan without rows. Raises UserError for labels outside {0, 1},
    probabilities outside [0, 1] and NaN, each with the count and the first row.
    """
    clicks, p, weight = _columns(y_true, probability, sample_weight)
    return mean(cross_entropy(clicks, p), weight)


def log_loss_from_logits(y_true: ArrayLike, logit: ArrayLike, *, sample_weight: ArrayLike | None = None) -> float:
    """Mean cross entropy in nats from logits, ln(1 + e^z) - y z, which neither overflows nor needs clipping."""
    clicks, z = inputs.labels(y_true), inputs.scores(logit, "logit").astype(np.float64)
    inputs.same_length(len(clicks), logit=z)
    weight = inputs.weights(sample_weight, len(clicks))
    return mean(np.logaddexp(0.0, np.where(clicks, -z, z)), weight)


def cross_entropy(clicks: Clicks, probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log loss of every row [rows], with the clipping of `log_loss`."""
    p = np.clip(probability, EPSILON, 1.0 - EPSILON)
    return -np.log(np.where(clicks, p, 1.0 - p))


def normalized_entropy(y_true: ArrayLike, probability: ArrayLike, *, sample_weight: ArrayLike | None = None) -> float:
    """Log loss over the entropy of the base rate of these very rows (not of the training set).

    Below 1 beats the constant that is this set's click rate. He et al., Practical Lessons from Predicting Clicks on Ads
    at Facebook (ADKDD 2014), eq. 1. nan where the rows are of one class.
    """
    clicks, p, weight = _columns(y_true, probability, sample_weight)
    rate = mean(clicks, weight)
    return mean(cross_entropy(clicks, p), weight) / entropy(rate)


def entropy(rate: float) -> float:
    """Entropy of a click rate in nats: the log loss of who always says `rate`. nan where that is 0, 1 or undefined."""
    return -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate)) if 0.0 < rate < 1.0 else float("nan")


def pcoc(y_true: ArrayLike, probability: ArrayLike, *, sample_weight: ArrayLike | None = None) -> float:
    """Predicted clicks over observed clicks, sum(p) / sum(y): 1 is calibrated, above 1 bids too high.

    COPC and O/E are its inverse. nan where nothing is clicked. After down-sampling of negatives, `debias_probability`
    first.
    """
    clicks, p, weight = _columns(y_true, probability, sample_weight)
    return ratio(weighted_sum(p, weight), weighted_sum(clicks, weight))


def reliability_curve(
    y_true: ArrayLike, probability: ArrayLike, *, bins: int = BINS, sample_weight: ArrayLike | None = None
) -> ReliabilityCurve:
    """Mean probability against click rate in at most `bins` bins of equal mass.

    Equal mass, since at the base rates of clicks bins of equal width would put nearly all rows into the first. Equal
    probabilities always share a bin (so the order of rows does not matter): heavy ties make fewer, uneven bins.
    Raises UserError as `log_loss` does, and for `bins` below 1.
    """
    if bins < 1:
        raise UserError(f"bins is {bins}; give 1 or more")
    clicks, p, weight = _columns(y_true, probability, sample_weight)
    sums = ScoreSums(len(p) if weight is None else exact_sum(weight), bins)
    sums.add(ScoreTable.of(clicks, p, weight))
    return sums.curve()


def ece(
    y_true: ArrayLike, probability: ArrayLike, *, bins: int = BINS, sample_weight: ArrayLike | None = None
) -> float:
    """Expected calibration error over bins of equal mass: see `reliability_curve`. nan without rows."""
    return reliability_curve(y_true, probability, bins=bins, sample_weight=sample_weight).ece


def debias_probability(probability: ArrayLike, sampling_rate: float) -> NDArray[np.float64]:
    """Undo the down-sampling of negatives: q = p / (p + (1 - p) / w), [rows].

    sampling_rate: w, the share of negatives that was kept, in (0, 1]. He et al. (ADKDD 2014), section 6.3. The order of
    scores does not change, so neither does AUC nor GAUC. Raises UserError for a rate outside (0, 1].
    """
    if not 0.0 < sampling_rate <= 1.0:
        raise UserError(f"sampling_rate is {sampling_rate}; it is the share of negatives kept, in (0, 1]")
    p = inputs.probabilities(probability)
    kept = p * sampling_rate  # the formula times w, which nothing overflows
    return np.asarray(kept / (kept + (1.0 - p)))


def _columns(
    y_true: ArrayLike, probability: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[Clicks, NDArray[np.float64], Weights]:
    clicks, p = inputs.labels(y_true), inputs.probabilities(probability)
    inputs.same_length(len(clicks), probability=p)
    return clicks, p, inputs.weights(sample_weight, len(clicks))


def mean(values: NDArray[Any], weight: Weights) -> float:
    """Weighted mean of exact sums, so the order of rows changes no bit; nan without rows or without weight."""
    return ratio(weighted_sum(values, weight), len(values) if weight is None else exact_sum(weight))


def weighted_sum(values: NDArray[Any], weight: Weights) -> Fraction:
    """Sum of value times weight; each product is rounded, their sum is not."""
    return exact_sum(values if weight is None else values * weight)
