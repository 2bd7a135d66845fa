"""How good a CTR model is: numpy in, numbers out, no torch."""

from ctrkit.metrics.auc import auc, rela_impr
from ctrkit.metrics.bootstrap import (
    Difference,
    Interval,
    Ratio,
    bootstrap_intervals,
    holm,
    paired_bootstrap,
    share_of_gap,
)
from ctrkit.metrics.churn import Churn, churn, mean_churn
from ctrkit.metrics.field import FieldCalibration, FieldPartial, FieldValue, field_calibration_error
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
from ctrkit.metrics.shards import shard_of_groups
from ctrkit.metrics.slices import Other, evaluate_slices, user_activity

__all__ = [
    "GAUC",
    "METRICS",
    "Churn",
    "Coverage",
    "Difference",
    "FieldCalibration",
    "FieldPartial",
    "FieldValue",
    "GAUCPartial",
    "GroupAUCs",
    "Interval",
    "Other",
    "Ratio",
    "ReliabilityCurve",
    "Report",
    "ReportPartial",
    "auc",
    "bootstrap_intervals",
    "churn",
    "debias_probability",
    "ece",
    "evaluate_scores",
    "evaluate_slices",
    "field_calibration_error",
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
    "shard_of_groups",
    "share_of_gap",
    "user_activity",
]
