"""Calibration within the values of a column: a model can be right on the whole and wrong for every ad."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctrkit.metrics import inputs
from ctrkit.metrics.values import distinct_values


@dataclass(frozen=True)
class FieldValue:
    """How far one value is off. value: None for missing ones; predicted: mean probability; observed: click rate.

    share: of the field's whole error, |predicted - observed| times its rows (or weight).
    """

    value: Any
    rows: int
    predicted: float
    observed: float
    share: float


@dataclass(frozen=True)
class FieldCalibration:
    """Field-level calibration error, the count of values that it is over, and those that add most to it."""

    error: float
    values: int
    worst: tuple[FieldValue, ...]


@dataclass(frozen=True, eq=False)
class FieldPartial:
    """What a shard of a log adds: sums of each value. Shards may be cut anywhere; sums of floats round as they add.

    sums [values, 4]: rows, weight, weight x label, weight x probability.
    """

    values: tuple[Any, ...]
    sums: NDArray[np.float64]

    @classmethod
    def of(
        cls, y_true: ArrayLike, probability: ArrayLike, field: Any, sample_weight: ArrayLike | None = None
    ) -> "FieldPartial":
        """The partial of a shard; arguments and errors as for `field_calibration_error`."""
        clicks, p = inputs.labels(y_true), inputs.probabilities(probability)
        inputs.same_length(len(clicks), probability=p, field=field)
        weight = inputs.weights(sample_weight, len(clicks))
        number, values = distinct_values(field, "field")
        mass = np.ones(len(p)) if weight is None else weight
        columns = (mass > 0, mass, mass * clicks, mass * p)
        sums = [np.bincount(number, column, minlength=len(values)) for column in columns]
        return cls.merge([cls(tuple(values), np.stack(sums, axis=1))])

    @classmethod
    def merge(cls, partials: Iterable["FieldPartial"]) -> "FieldPartial":
        """The partial of all shards together; values that have no rows are left out."""
        parts = list(partials)
        numbers: dict[Any, int] = {}
        number = [numbers.setdefault(value, len(numbers)) for part in parts for value in part.values]
        sums = np.zeros((len(numbers), 4))
        if number:
            np.add.at(sums, number, np.concatenate([part.sums for part in parts]))
        kept = np.flatnonzero(sums[:, 0])
        values = list(numbers)
        return cls(tuple(values[i] for i in kept), sums[kept])

    def calibration(self, worst: int = 10) -> FieldCalibration:
        """The field's error, and the values that add most to it."""
        rows, weight, clicked, predicted = self.sums.T
        off = np.abs(predicted - clicked)
        total, everything = float(off.sum()), float(weight.sum())
        shown = np.argsort(-off, kind="stable")[:worst]
        return FieldCalibration(
            error=total / everything if everything else float("nan"),
            values=len(self.values),
            worst=tuple(
                FieldValue(
                    value=self.values[i],
                    rows=int(rows[i]),
                    predicted=float(predicted[i] / weight[i]),
                    observed=float(clicked[i] / weight[i]),
                    share=float(off[i] / total) if total else 0.0,
                )
                for i in shown
            ),
        )


def field_calibration_error(
    y_true: ArrayLike,
    probability: ArrayLike,
    field: Any,
    sample_weight: ArrayLike | None = None,
    *,
    worst: int = 10,
) -> FieldCalibration:
    """Field-level calibration error: sum over the field's values of |sum(y - p)|, over the number of rows.

    Pan et al., Field-aware Calibration (WWW 2020), Field-ECE; rows count their weight times. Errors of opposite sign
    within a value cancel, those of different values do not. A value with few rows is off by chance: compare models on
    the same rows, not fields with each other.

    Args:
        y_true, probability, sample_weight: [rows] as for `log_loss`.
        field: column [rows]: ad, advertiser, slot; missing values are a value of their own, None.
        worst: how many values to list.

    Raises UserError as `log_loss` does, and for values that cannot be told apart. nan without rows.
    """
    return FieldPartial.of(y_true, probability, field, sample_weight).calibration(worst)
