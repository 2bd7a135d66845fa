"""Every metric by the values of a column: position, scenario, how active the user is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctrkit.errors import UserError
from ctrkit.metrics import inputs
from ctrkit.metrics.grouping import group_codes
from ctrkit.metrics.report import Report, evaluate_scores
from ctrkit.metrics.values import distinct_values, rows_of_values

MAX_VALUES = 50
"""Values of a column that get a report of their own, unless told otherwise."""


@dataclass(frozen=True)
class Other:
    """Stands for all values that are too rare to be shown, and says how many they are."""

    values: int

    def __str__(self) -> str:
        return f"other ({self.values:,} values)"


@dataclass(frozen=True)
class SliceValues:
    """The values that a column is sliced by.

    keys: values in ascending order where they have one, then None for missing ones if there are any, then `Other` if
    values are merged. codes: the place in `keys` of the values that are shown.
    """

    keys: tuple[Any, ...]
    codes: Mapping[Any, int]

    @classmethod
    def choose(cls, rows: Mapping[Any, int], max_values: int | None = MAX_VALUES) -> "SliceValues":
        """The `max_values` values with most rows (all if None), given the rows of each; None, missing, is always one.

        Of values with as many rows, the first in order of their text.
        """
        if max_values is not None and max_values < 1:
            raise UserError(f"max_values is {max_values}; give 1 or more")
        values = sorted((value for value in rows if value is not None), key=lambda value: (-rows[value], str(value)))
        shown, rest = values[:max_values], values[len(values[:max_values]) :]
        keys = [*_in_order(shown), *([None] if None in rows else [])]
        codes = {key: code for code, key in enumerate(keys)}
        return cls((*keys, Other(len(rest))) if rest else tuple(keys), codes)

    def of(self, number: NDArray[np.int64], values: list[Any]) -> NDArray[np.int64]:
        """The place in `keys` [rows] of rows that have `values[number]`."""
        other = len(self.keys) - 1
        codes = np.array([self.codes.get(value, other) for value in values], dtype=np.int64)
        return codes[number]


def evaluate_slices(
    y_true: ArrayLike,
    probability: ArrayLike,
    groups: Any,
    slices: Mapping[str, Any],
    sample_weight: ArrayLike | None = None,
    *,
    max_values: int | None = MAX_VALUES,
) -> dict[str, dict[Any, Report]]:
    """The report of the rows of each value, for each column: {column: {value: report}}.

    Args:
        y_true, probability, groups, sample_weight: [rows] as for `evaluate_scores`; groups may be None.
        slices: columns [rows] by name, of any type with values that can be told apart: numpy, pandas, Arrow, lists.
        max_values: values of a column with a report of their own, those with most rows; the others share one under
            `Other`, which counts them. All if None.

    Missing values (None, null, NaN, NaT) are a value of their own, None. GAUC is within the slice: a user counts with
    the impressions that lie in it. One sort a column. Raises UserError as `evaluate_scores` does, and for columns of
    another length.
    """
    clicks = inputs.labels(y_true)
    weight = inputs.weights(sample_weight, len(clicks))
    p = inputs.probabilities(probability)
    inputs.same_length(len(clicks), probability=p, **slices)
    users = None
    if groups is not None:
        inputs.same_length(len(clicks), groups=groups)
        users, _ = group_codes(groups).numbers()
    reports: dict[str, dict[Any, Report]] = {}
    for name, column in slices.items():
        reports[name] = {
            key: evaluate_scores(
                clicks[part],
                p[part],
                None if users is None else users[part],
                None if weight is None else weight[part],
            )
            for key, part in slice_rows(column, name, max_values).items()
        }
    return reports


def slice_rows(column: Any, name: str = "column", max_values: int | None = MAX_VALUES) -> dict[Any, NDArray[np.int64]]:
    """The rows of each value, in the order of `SliceValues`; arguments and errors as for `evaluate_slices`."""
    number, values = distinct_values(column, name)
    chosen = SliceValues.choose(rows_of_values(number, values), max_values)
    return {chosen.keys[code]: part for code, part in rows_by_code(chosen.of(number, values))}


def rows_by_code(codes: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(code, its rows in their order) for each code that is there, in ascending order."""
    order = np.argsort(codes, kind="stable")
    present, starts = np.unique(codes[order], return_index=True)
    yield from zip(present.tolist(), np.split(order, starts[1:]), strict=False)


def user_activity(groups: Any, quantiles: int = 10) -> NDArray[np.int64]:
    """The quantile of each row's user by number of impressions [rows], from 1 (least active) to `quantiles`.

    Quantiles are of users: each holds about as many users, so the last holds most rows. Users with as many impressions
    are always in one quantile, that of the middle one of them; where most users have a single impression, the lowest
    quantiles are empty. Raises UserError for keys as `gauc` does, and for `quantiles` below 1.
    """
    number, count = group_codes(groups).numbers()
    impressions = np.bincount(number, minlength=count)
    _, which, users = np.unique(impressions, return_inverse=True, return_counts=True)
    return activity_quantiles(users, quantiles)[which][number]


def activity_quantiles(users: NDArray[np.int64], quantiles: int = 10) -> NDArray[np.int64]:
    """The quantile of each number of impressions, given how many users have it, in ascending order of impressions."""
    if quantiles < 1:
        raise UserError(f"quantiles is {quantiles}; give 1 or more")
    twice_middle = 2 * np.cumsum(users) - users
    return np.asarray(twice_middle * quantiles // (2 * max(int(users.sum()), 1)) + 1)


def _in_order(values: list[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return values
