"""The gate of approximations: what changes too much, in whichever direction, is named."""

import numpy as np
import pytest
from numpy.typing import ArrayLike

from ctrkit.export.gate import HeldOutRows, Limits, measured
from ctrkit.manifest import Approximation
from ctrkit.metrics.report import evaluate_scores

LABEL = np.array([1, 0, 1, 0, 1, 0, 0, 0])
USER = np.array([0, 0, 1, 1, 2, 2, 3, 3])
RIGHT = np.array([0.6, 0.4, 0.6, 0.4, 0.6, 0.4, 0.3, 0.2])
ONE_WRONG = np.array([0.6, 0.4, 0.4, 0.6, 0.6, 0.4, 0.3, 0.2])
"""The same probabilities, one user's ads the other way round: GAUC 2/3 in place of 1."""
LOOSE = {"gauc_change": 1.0, "pcoc_change": 1.0, "difference": 1.0}


def judged(exact: ArrayLike, approximate: ArrayLike, **limits: float) -> Approximation:
    rows = HeldOutRows(lambda: [], lambda probability: evaluate_scores(LABEL, probability, USER))
    return measured(np.asarray(exact), np.asarray(approximate), rows, Limits(**{**LOOSE, **limits}))


def test_gauc_may_neither_fall_nor_rise() -> None:
    falls, rises = judged(RIGHT, ONE_WRONG, gauc_change=0.3), judged(ONE_WRONG, RIGHT, gauc_change=0.3)
    assert falls.gauc_change == pytest.approx(-1 / 3)
    assert rises.gauc_change == pytest.approx(1 / 3)
    assert (falls.accepted, falls.reason) == (False, "GAUC falls by 0.33, more than 0.3")
    assert (rises.accepted, rises.reason) == (False, "GAUC rises by 0.33, more than 0.3")
    for exact, approximate in ((RIGHT, ONE_WRONG), (ONE_WRONG, RIGHT), (RIGHT, RIGHT)):
        assert judged(exact, approximate, gauc_change=0.34).accepted


def test_every_limit_that_is_broken_is_named() -> None:
    found = judged(RIGHT, RIGHT + 0.1, pcoc_change=0.1, difference=0.05)
    assert not found.accepted
    assert found.gauc_change == 0.0
    assert found.pcoc_change == pytest.approx(0.8 / 3)
    assert found.reason == "PCOC changes by 0.27, more than 0.1; a probability changes by 0.1, more than 0.05"


def test_what_is_not_finite_is_refused() -> None:
    found = judged(RIGHT, [*RIGHT[:-1], np.nan])
    assert (found.accepted, found.reason) == (False, "a probability is not finite")
