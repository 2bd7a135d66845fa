"""What is asked of predictions, and the answer."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ctrkit.data.source import require_columns
from ctrkit.errors import UserError
from ctrkit.evaluation.predictions import Predictions
from ctrkit.metrics import (
    FieldCalibration,
    Interval,
    Other,
    ReliabilityCurve,
    Report,
    ReportPartial,
    debias_probability,
)
from ctrkit.metrics.slices import MAX_VALUES

USER_ACTIVITY = "user_activity"
"""The slice by the decile of the user's number of impressions, unless a column has this name."""


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate beside the report of all rows.

    slices: columns, or USER_ACTIVITY. fields: columns of which to give the calibration error. negative_rate: share of
    non-clicks that were kept when the training log was down-sampled, to de-bias the probabilities; None leaves them as
    they are. resamples: of the users, for intervals; 0 for none. max_values: values of a slice with their own report.
    """

    slices: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    negative_rate: float | None = None
    resamples: int = 0
    max_values: int | None = MAX_VALUES

    def check(self, predictions: Predictions) -> None:
        """Raise UserError if these predictions cannot answer it."""
        path, has_groups = predictions.path, predictions.group is not None
        columns = {name: "--slice" for name in self.slices if not self.by_activity(predictions, name)}
        require_columns(predictions.log.schema, columns | dict.fromkeys(self.fields, "--field"), path)
        if not has_groups and len(columns) < len(set(self.slices)):
            raise UserError(f"{path}: --slice {USER_ACTIVITY} needs a group column; name it with --group")
        if self.resamples and not has_groups:
            raise UserError(f"{path}: intervals draw users, and there is no group column; name it with --group")
        if self.resamples and not predictions.num_rows:
            raise UserError(f"{path}: no rows; intervals draw users")
        if self.resamples and predictions.weight is not None:
            raise UserError(f"{path}: intervals take no weights; leave out --weight or --intervals")
        if self.negative_rate is not None and not 0 < self.negative_rate <= 1:
            raise UserError(f"--negative-rate {self.negative_rate:g}: give the share of non-clicks kept, in (0, 1]")

    def by_activity(self, predictions: Predictions, name: str) -> bool:
        """Whether a slice is the one by user activity."""
        return name == USER_ACTIVITY and name not in predictions.columns

    def debiased(self, probability: NDArray[Any]) -> NDArray[Any]:
        """The probabilities as they are judged [rows]."""
        return probability if self.negative_rate is None else debias_probability(probability, self.negative_rate)

    def columns(self, predictions: Predictions) -> list[str]:
        """The columns to read."""
        sliced = [name for name in self.slices if not self.by_activity(predictions, name)]
        return list(dict.fromkeys([*predictions.roles, *sliced, *self.fields]))


@dataclass(frozen=True)
class Rows:
    """Rows of predictions as metrics take them, [rows] each; users and weight may be None."""

    clicks: NDArray[np.bool_]
    probability: NDArray[Any]
    users: Any
    weight: NDArray[np.float64] | None

    @classmethod
    def of(cls, predictions: Predictions, columns: pa.Table | pa.RecordBatch, config: EvalConfig) -> "Rows":
        """The rows of what `predictions` gave, de-biased if that is wanted."""
        return cls(
            clicks=np.asarray(columns[predictions.label]),
            probability=config.debiased(columns[predictions.score].to_numpy()),
            users=None if predictions.group is None else columns[predictions.group],
            weight=None if predictions.weight is None else columns[predictions.weight].to_numpy(),
        )

    def take(self, part: NDArray[np.int64]) -> "Rows":
        """Those rows; users must be numpy."""
        users, weight = (None if column is None else column[part] for column in (self.users, self.weight))
        return Rows(self.clicks[part], self.probability[part], users, weight)

    def partial(self, *, scores: bool) -> ReportPartial:
        """What these rows add to a report, with or without their scores."""
        return ReportPartial.of(self.clicks, self.probability, self.users, self.weight, scores=scores)


@dataclass(frozen=True)
class Evaluation:
    """The answer: the report of all rows and its reliability curve, reports by slice and value, fields, intervals.

    slices: keys of a slice are values, None for missing ones, and `Other`. intervals: by metric; slice_intervals: of
    GAUC, by slice and value; both empty unless asked for. partitions: how many parts the rows were read in.
    """

    report: Report
    curve: ReliabilityCurve
    slices: Mapping[str, Mapping[Any, Report]] = field(default_factory=dict)
    fields: Mapping[str, FieldCalibration] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    slice_intervals: Mapping[str, Mapping[Any, Interval]] = field(default_factory=dict)
    partitions: int = 1

    def as_dict(self) -> dict[str, Any]:
        """The evaluation as JSON can hold it; what is not defined is None."""
        return {
            "report": self.report.as_dict(),
            "intervals": {name: json_value(dataclasses.asdict(each)) for name, each in self.intervals.items()},
            "reliability_curve": {name: each.tolist() for name, each in vars(self.curve).items()},
            "slices": {name: self._slice(name) for name in self.slices},
            "fields": {name: json_value(dataclasses.asdict(each)) for name, each in self.fields.items()},
            "partitions": self.partitions,
        }

    def _slice(self, name: str) -> list[dict[str, Any]]:
        rows = []
        for value, report in self.slices[name].items():
            merged = value.values if isinstance(value, Other) else None
            row = {"value": None if merged else json_value(value), "other_values": merged, **report.as_dict()}
            if name in self.slice_intervals:
                row["gauc_interval"] = json_value(dataclasses.asdict(self.slice_intervals[name][value]))
            rows.append(row)
        return rows


def json_value(value: Any) -> Any:
    """The value as JSON can hold it: None for nan, text for what JSON has no type for."""
    if isinstance(value, Mapping):
        return {str(name): json_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)
