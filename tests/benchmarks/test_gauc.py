"""The benchmarks of GAUC and of the bootstrap: all ways measure the same thing, on a log of the size they say."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import bootstrap, gauc
from benchmarks.gauc import Log
from ctrkit import metrics


def test_every_user_has_a_row_and_activity_follows_zipfs_law() -> None:
    rows = np.sort(np.bincount(gauc.make_log(20_000, 500).user))[::-1]
    assert rows[0] / rows[9] == pytest.approx(10, rel=0.2)
    few = gauc.make_log(600, 500).user
    assert (len(few), len(np.unique(few))) == (600, 500)
    assert len(np.unique(few[:500])) < 500  # in no order


@pytest.mark.parametrize("way", [gauc.sklearn_loop, gauc.polars_gauc, gauc.fuxictr_algorithm])
def test_every_way_gives_ctrkits_value(way: Callable[[Log], float]) -> None:
    log = gauc.make_log(600, 60)
    tied = Log(log.y, log.score.round(1), log.user)
    assert way(tied) == pytest.approx(metrics.gauc(tied.y, tied.score, tied.user).value, abs=1e-12)


def test_where_fuxictr_is_not_installed_its_algorithm_is_timed_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(log: Log) -> float:
        raise ImportError("No module named 'fuxictr'")

    monkeypatch.setattr(gauc, "fuxictr_gauc", absent)
    monkeypatch.setattr(gauc, "fuxictr_algorithm", lambda log: 0.25)
    log = gauc.make_log(200, 20)
    assert [(name, value) for name, _, _, value in gauc.slow_ways(log)][-1] == (
        "FuxiCTR's gAUC: not installed, the same algorithm",
        0.25,
    )
    monkeypatch.setattr(gauc, "fuxictr_gauc", lambda log: 0.75)
    assert [name for name, *_ in gauc.slow_ways(log)] == ["ctrkit", "scikit-learn loop", "FuxiCTR's gAUC"]


def test_a_naive_resample_draws_whole_users_with_repetition() -> None:
    log = gauc.make_log(400, 30)
    found = bootstrap.naive_resample(log, 1.0 - log.score.astype(float), np.random.default_rng(5))
    drawn = np.random.default_rng(5).integers(0, 30, 30)
    top = bottom = 0.0
    for user in drawn:
        y, score = log.y[log.user == user], log.score[log.user == user]
        if 0 < y.sum() < len(y):
            top, bottom = top + len(y) * roc_auc_score(y, score), bottom + len(y)
    assert found[0] == pytest.approx(top / bottom, abs=1e-12)
    assert found[3] == pytest.approx(1 - found[0], abs=1e-6)
    rows = np.concatenate([np.flatnonzero(log.user == user) for user in drawn])
    assert found[1] == pytest.approx(roc_auc_score(log.y[rows], log.score[rows]), abs=1e-12)
