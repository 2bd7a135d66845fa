"""How good a CTR model is: numpy in, numbers out, no torch."""

from ctrkit.metrics.auc import auc, rela_impr
from ctrkit.metrics.bootstrap import Difference, Interval, bootstrap_intervals, holm, paired_bootstrap
from ctrkit.metrics.churn import Churn, churn, mean_churn
from ctrkit.metrics.gauc import GAUC, Coverage, GAUCPartial, GroupAUCs, gauc, group_aucs
from ctrkit.metrics.pointwise import (
    debias_probability,
    ece,
    log_loss,
    log_loss_from_logits,
    normalized_entropy,
    pcoc,
    reliability_curve,
)
from ctrkit.metrics.report import METRICS, Report, ReportPartial, evaluate_scores
from ctrkit.metrics.score_table import ReliabilityCurve

__all__ = [
    "GAUC",
    "METRICS",
    "Churn",
    "Coverage",
    "Difference",
    "GAUCPartial",
    "GroupAUCs",
    "Interval",
    "ReliabilityCurve",
    "Report",
    "ReportPartial",
    "auc",
    "bootstrap_intervals",
    "churn",
    "debias_probability",
    "ece",
    "evaluate_scores",
    "gauc",
    "group_aucs",
    "holm",
    "log_loss",
    "log_loss_from_logits",
    "mean_churn",
    "normalized_entropy",
    "paired_bootstrap",
    "pcoc",
    "rela_impr",
    "reliability_curve",
]
