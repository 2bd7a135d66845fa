"""Milliseconds as a function of the widths: fitted to towers, none of whose channels saves time."""

import numpy as np
import pytest

from ctrkit.slimming.measured_cost import MeasuredCost, drawn_widths, not_negative


def test_latency_is_fitted_by_what_layers_write_and_multiply() -> None:
    def truth(widths: tuple[int, ...]) -> float:
        return 0.1 + 1e-3 * widths[0] + 2e-3 * widths[1] + 1e-5 * widths[0] * widths[1]

    widths = drawn_widths((48, 24), (200, 80), 8)
    cost = MeasuredCost(widths, [truth(each) for each in widths])
    assert cost.count == 20
    assert cost.r2 == pytest.approx(1.0)
    for each in [(104, 40), (56, 72)]:
        assert cost(each) == pytest.approx(truth(each), rel=1e-6)
    assert np.isfinite(cost((48, 24)))
    assert MeasuredCost(widths[:2], [0.5, 0.5]).r2 == 1.0  # nothing is left to explain


def test_no_channel_saves_time() -> None:
    rng = np.random.default_rng(0)
    features = np.column_stack([np.ones(50), rng.uniform(1, 9, (50, 2))])
    weights = not_negative(features, features @ [1.0, 2.0, -0.5])
    assert (weights >= 0).all()
    assert weights[2] == 0
    assert 1.0 < weights[1] < 3.0
    np.testing.assert_allclose(not_negative(features, features @ [1.0, 2.0, 0.5]), [1.0, 2.0, 0.5])


def test_towers_that_are_drawn() -> None:
    found = drawn_widths((48, 24), (200, 80), 8)
    assert len(found) == len(set(found)) == 20
    assert {(48, 24), (200, 80)} <= set(found)
    assert all(48 <= a <= 200 and 24 <= b <= 80 and a % 8 == b % 8 == 0 for a, b in found)
    assert drawn_widths((8, 8), (16, 9), 8) == [(8, 8), (8, 9), (16, 8), (16, 9)]  # all that there are
    assert drawn_widths((5,), (5,), 8) == [(5,)]
