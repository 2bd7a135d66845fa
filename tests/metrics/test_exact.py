"""Sums that do not round, against Python's fractions."""

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ctrkit.metrics.exact import exact_sum, exact_sums, ratio

VALUES = st.floats(0, 1e18) | st.floats(0, 1e-200) | st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(st.lists(VALUES))
def test_exact_sum_does_not_round(values: list[float]) -> None:
    assert exact_sum(np.array(values)) == sum(Fraction(value) for value in values)


@settings(deadline=None)
@given(st.lists(st.tuples(VALUES, st.integers(0, 3))))
def test_sums_of_segments(rows: list[tuple[float, int]]) -> None:
    values, segment = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], dtype=np.int64)
    expected = [sum((Fraction(value) for value, of in rows if of == i), Fraction(0)) for i in range(4)]
    assert exact_sums(values, segment, 4) == expected


def test_more_rows_than_a_step() -> None:
    """Values whose bits fill every part, in more steps than one, and the worst case: all of them as large as can be."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.random(300_000) ** 9, np.full(200_000, np.nextafter(1.0, 0))])
    expected = sum(map(Fraction, values.tolist()))
    assert exact_sum(values) == expected
    cuts = [0, 7, 131_073, 400_000, 500_000]
    assert sum(exact_sum(values[a:b]) for a, b in pairwise(cuts)) == expected


@pytest.mark.parametrize("kind", [np.bool_, np.int64, np.float32])
def test_types(kind: type) -> None:
    values: NDArray[Any] = np.array([1, 0, 1, 1], dtype=kind)
    assert exact_sum(values) == 3
    assert exact_sums(values, np.array([0, 0, 1, 1]), 2) == [Fraction(1), Fraction(2)]


def test_ratio() -> None:
    assert (ratio(1, 3), ratio(Fraction(1, 2), 2)) == (1 / 3, 0.25)
    assert np.isnan(ratio(1, 0))
    assert ratio(10, Fraction(5e-324)) == np.inf
    assert ratio(-10, Fraction(5e-324)) == -np.inf
