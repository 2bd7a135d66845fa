from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ctrkit.errors import UserError
from ctrkit.metrics import auc, bootstrap_intervals, gauc, holm, log_loss, paired_bootstrap, share_of_gap
from ctrkit.metrics.bootstrap import degrees_of_freedom, multiplicities, percentiles, two_sided
from ctrkit.metrics.resampling import COMPARABLE, UserSums, read_users, user_statistics

Log = tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


def simulate(rng: np.random.Generator, users: int, rows: int) -> Log:
    """Clicks, two models' probabilities and users; users differ in click rate and activity, and b sees more than a."""
    activity = rng.zipf(2.0, users).clip(max=50) * 1.0
    user = rng.choice(users, rows, p=activity / activity.sum())
    logit = -1 + rng.normal(size=users)[user] + rng.normal(size=rows)
    a, b = (sigmoid(logit + noise * rng.normal(size=rows)) for noise in (1.3, 1.0))
    return rng.random(rows) < sigmoid(logit), a, b, user


@pytest.fixture(scope="module")
def log() -> Log:
    return simulate(np.random.default_rng(0), 150, 3000)


@pytest.mark.parametrize("digits", [1, 16])
def test_resamples_are_what_evaluating_the_drawn_users_would_give(log: Log, digits: int) -> None:
    """One digit leaves 11 scores, for which AUC is exact; with 16 its quadratic part is counted on bins."""
    y, a, b, groups = log
    runs = [np.round(a, digits), np.round(b, digits)]
    users = read_users(y, groups, "clicks")
    sums = UserSums(users, [user_statistics(users, run, log_loss=True) for run in runs])
    drawn = multiplicities(np.random.default_rng(1), len(users.rows), 40)
    assert drawn.sum(axis=1).tolist() == [len(users.rows)] * 40
    values = sums.metrics(drawn, COMPARABLE)
    errors = []
    for i, times in enumerate(drawn.astype(int)):
        rows = np.repeat(np.arange(len(y)), times[users.number])
        # A user drawn twice is two users.
        copy = np.concatenate([np.arange(times[user]) for user in users.number])
        as_drawn = users.number[rows] + len(users.rows) * copy
        for j, run in enumerate(runs):
            expected = gauc(y[rows], run[rows], as_drawn, weighting="clicks").value
            assert values[0, i, j] == pytest.approx(expected, abs=1e-12)
            assert values[2, i, j] == pytest.approx(log_loss(y[rows], run[rows]), abs=1e-12)
            errors.append(values[1, i, j] - auc(y[rows], run[rows]))
    assert np.abs(errors).max() < (1e-7 if digits == 1 else 0.05 * values[1].std())


def test_influence_is_the_derivative_by_multiplicity(log: Log) -> None:
    y, a, b, groups = log
    users = read_users(y, groups, "impressions")
    sums = UserSums(users, [user_statistics(users, np.round(run, 1), log_loss=True) for run in (a, b)])
    step = 1e-4 * np.eye(len(users.rows))
    up, down = (sums.metrics(1 + sign * step, COMPARABLE) for sign in (1, -1))
    influence = sums.influence(sums.metrics(np.ones((1, len(users.rows))), COMPARABLE)[:, 0], COMPARABLE)
    assert influence == pytest.approx((up - down) / 2e-4, abs=1e-8)
    assert influence.sum(axis=1) == pytest.approx(0, abs=1e-12)


def test_degrees_of_freedom() -> None:
    """Users alike have their number less one; one who outweighs all has three; those without influence do not count."""
    rng = np.random.default_rng(2)
    alike = rng.normal(size=(200, 50))
    assert np.mean([1 / degrees_of_freedom(psi)[0] for psi in alike]) == pytest.approx(1 / 49, rel=0.1)
    assert degrees_of_freedom(np.array([1.0, -1.0, 1.0, -1.0])) == (3.0, 4)
    assert degrees_of_freedom(np.append(np.full(1000, 1e-3), -1.0))[0] == pytest.approx(3, rel=0.01)
    assert degrees_of_freedom(np.append(alike[0], np.zeros(1000))) == degrees_of_freedom(alike[0])
    unequal = rng.normal(size=(2000, 40)) * np.repeat([1.0, 4.0], 20)
    satterthwaite = (20 + 20 * 16) ** 2 / (20 + 20 * 256)
    assert np.mean([1 / degrees_of_freedom(psi)[0] for psi in unequal]) == pytest.approx(1 / satterthwaite, rel=0.15)
    for nobody in (np.zeros(3), np.full(3, np.nan), np.array([1e-17, 0.0])):
        assert degrees_of_freedom(nobody)[0] == 1.0


def test_few_users_widen_the_interval_to_students_t() -> None:
    """Eight users of the same number of rows, whose losses are normal quantiles."""
    target = np.array([-1.42, -0.85, -0.47, -0.15, 0.15, 0.47, 0.85, 1.42]) * 0.05
    p = np.exp(-0.5 - np.repeat(target, 4))
    interval = bootstrap_intervals(np.ones(32), p, np.repeat(np.arange(8), 4), metrics=["log_loss"], resamples=20_000)
    assert interval["log_loss"].value == pytest.approx(0.5, abs=1e-12)
    degrees, users = degrees_of_freedom(target)
    assert (degrees, users) == (7.0, 8)
    half = 2.365 * np.std(target, ddof=1) / np.sqrt(8)  # 97.5 % of Student's t with 7 degrees of freedom
    assert (interval["log_loss"].low, interval["log_loss"].high) == pytest.approx(
        (0.5 - half, 0.5 + half), abs=half / 25
    )


def test_differences_are_of_the_metrics_themselves(log: Log) -> None:
    y, a, b, groups = log
    differences = paired_bootstrap(y, a, b, groups, resamples=200)
    metric = {
        "gauc": lambda s: gauc(y, s, groups).value,
        "auc": lambda s: auc(y, s),
        "log_loss": lambda s: log_loss(y, s),
    }
    assert list(differences) == list(metric)
    for name, each in differences.items():
        assert each.a == pytest.approx(metric[name](a), abs=1e-12)
        assert each.b == pytest.approx(metric[name](b), abs=1e-12)
        assert each.difference == pytest.approx(each.b - each.a, abs=1e-15)
        assert each.low < each.difference < each.high
        assert (each.users, each.runs, each.resamples) == (len(np.unique(groups)), 1, 200)
    assert differences["auc"].low > 0 > differences["log_loss"].high
    assert differences["log_loss"].p_value == pytest.approx(2 / 201)
    assert differences["gauc"].low < 0 < differences["gauc"].high
    assert differences["gauc"].p_value > 0.05


def test_swapping_the_models_swaps_the_interval(log: Log) -> None:
    y, a, b, groups = log
    there, back = paired_bootstrap(y, a, b, groups, resamples=300), paired_bootstrap(y, b, a, groups, resamples=300)
    for name in COMPARABLE:
        assert (there[name].low, there[name].high) == pytest.approx((-back[name].high, -back[name].low), abs=1e-7)
        assert there[name].p_value == back[name].p_value


def test_a_model_equals_itself(log: Log) -> None:
    y, a, _, groups = log
    for each in paired_bootstrap(y, a, a, groups, resamples=50).values():
        assert (each.difference, each.low, each.high, each.p_value) == (0, 0, 0, 1)


def test_the_seed_decides_the_draws(log: Log) -> None:
    y, a, b, groups = log
    first, again, other = (paired_bootstrap(y, a, b, groups, resamples=50, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first["gauc"].low != other["gauc"].low


def test_pairing_beats_two_intervals(log: Log) -> None:
    y, a, b, groups = log
    paired = paired_bootstrap(y, a, b, groups, resamples=500)["log_loss"]
    alone = [bootstrap_intervals(y, s, groups, resamples=500)["log_loss"] for s in (a, b)]
    assert paired.high - paired.low < 0.7 * np.linalg.norm([each.high - each.low for each in alone])


def test_interval_shrinks_with_users_not_with_copied_rows() -> None:
    """Ten copies of every row are the same users: treating rows as independent would shrink the interval by 3."""
    y, a, _, groups = simulate(np.random.default_rng(6), 100, 1000)
    once = bootstrap_intervals(y, a, groups, resamples=1000)
    tenfold = bootstrap_intervals(*(np.tile(column, 10) for column in (y, a, groups)), resamples=1000)
    as_users = np.concatenate([groups + 1000 * i for i in range(10)])
    ten_times_the_users = bootstrap_intervals(np.tile(y, 10), np.tile(a, 10), as_users, resamples=1000)
    for name in COMPARABLE:
        width, copied, more = (each[name].high - each[name].low for each in (once, tenfold, ten_times_the_users))
        assert copied == pytest.approx(width, rel=1e-6)
        assert more == pytest.approx(width / np.sqrt(10), rel=0.15)


def test_scores_that_are_no_probabilities(log: Log) -> None:
    y, a, b, groups = log
    logit_a, logit_b = (np.log(p / (1 - p)) for p in (a, b))
    ranked = ("auc", "gauc")
    on_logits = paired_bootstrap(y, logit_a, logit_b, groups, metrics=ranked, resamples=50)
    assert on_logits == paired_bootstrap(y, a, b, groups, metrics=ranked, resamples=50)
    with pytest.raises(UserError, match="are they logits"):
        paired_bootstrap(y, logit_a, logit_b, groups)


@pytest.mark.parametrize("metric", COMPARABLE)
def test_95_percent_intervals_cover(metric: str) -> None:
    """Small: 150 logs. `python -m benchmarks.coverage` does the 1,000 whose result is published."""
    rng = np.random.default_rng(8)
    y, a, b, groups = simulate(rng, 60_000, 600_000)
    truth = paired_bootstrap(y, a, b, groups, metrics=[metric], resamples=1)[metric].difference
    covered = 0
    for seed in range(150):
        y, a, b, groups = simulate(rng, 300, 3000)
        each = paired_bootstrap(y, a, b, groups, metrics=[metric], resamples=400, seed=seed)[metric]
        covered += each.low <= truth <= each.high
    assert 0.90 <= covered / 150 <= 0.99


def test_runs_add_their_own_spread() -> None:
    """Runs that differ widen the interval to what their own spread asks for; runs that agree leave it as it is."""
    rng = np.random.default_rng(12)
    y, a, b, groups = simulate(rng, 2000, 20_000)
    same = paired_bootstrap(y, np.stack([a] * 4), np.stack([b] * 4), groups, metrics=["log_loss"])["log_loss"]
    single = paired_bootstrap(y, a, b, groups, metrics=["log_loss"])["log_loss"]
    assert (same.low, same.high) == pytest.approx((single.low, single.high), abs=1e-12)
    assert (same.runs, single.runs) == (4, 1)
    shift = np.array([-0.3, -0.1, 0.1, 0.3, 0.2, -0.2, 0.0, 0.15])
    spread = sigmoid(np.log(b / (1 - b)) + shift[:, None] - 1.0)
    runs = paired_bootstrap(y, np.stack([a] * 8), spread, groups, metrics=["log_loss"])["log_loss"]
    losses = [log_loss(y, run) for run in spread]
    assert runs.b == pytest.approx(np.mean(losses), abs=1e-12)
    middle = paired_bootstrap(y, a, spread[6], groups, metrics=["log_loss"])["log_loss"]
    student = 2.365  # 97.5 % of Student's t with 7 degrees of freedom
    of_runs = 2 * student * np.std(losses, ddof=1) / np.sqrt(8)
    assert of_runs > middle.high - middle.low
    assert runs.high - runs.low == pytest.approx(np.hypot(of_runs, middle.high - middle.low), rel=0.1)


def test_two_runs_tell_little() -> None:
    rng = np.random.default_rng(13)
    y, a, b, groups = simulate(rng, 500, 5000)
    shifted = sigmoid(np.log(b / (1 - b)) + np.array([[-0.2], [0.2]]))
    width = {}
    for name, of_b in (("two", shifted), ("eight", np.repeat(shifted, 4, axis=0))):
        each = paired_bootstrap(y, np.stack([a] * len(of_b)), of_b, groups, metrics=["log_loss"])["log_loss"]
        width[name] = each.high - each.low
    assert width["two"] > 3 * width["eight"]


def test_resamples_without_a_click_are_counted_out() -> None:
    y, score, groups = [1, 0, 0, 0], [0.9, 0.1, 0.2, 0.3], ["a", "a", "b", "c"]
    interval = bootstrap_intervals(y, score, groups, resamples=500)
    assert interval["log_loss"].resamples == 500
    # "a" is missed with probability (2/3)**3
    assert interval["gauc"].resamples == interval["auc"].resamples == pytest.approx(500 * (1 - 8 / 27), rel=0.1)
    nothing = bootstrap_intervals([0, 0], [0.1, 0.2], ["a", "b"], resamples=10)["auc"]
    assert nothing.resamples == 0
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()


def test_intervals_stay_where_their_metric_is() -> None:
    """Three clicks of 1,000 users: Student's t reaches far."""
    rng = np.random.default_rng(0)
    user, y, a, b = np.arange(4000) // 4, np.zeros(4000), rng.random(4000), rng.random(4000)
    y[[5, 99, 1200]] = 1
    for each in bootstrap_intervals(y, a, user, resamples=500).values():
        assert 0 <= each.low < each.value < each.high <= (np.inf if each.metric == "log_loss" else 1)
    gauc_difference = paired_bootstrap(y, a, b, user, resamples=500)["gauc"]
    assert (gauc_difference.low, gauc_difference.high) == (-1, 1)
    sure = np.full(20, 0.001)
    assert bootstrap_intervals(np.arange(20) < 1, sure, np.arange(20), resamples=500)["log_loss"].low == 0


def test_undefined_resamples_of_many_scores_are_counted_out() -> None:
    """With more scores than bins a sum of no pairs is not quite 0: it must not make an infinite AUC."""
    y, user, rng = np.arange(200) < 100, np.arange(200) // 100, np.random.default_rng(0)
    found = paired_bootstrap(y, rng.random(200), rng.random(200), user, resamples=400)["auc"]
    assert found.resamples == pytest.approx(200, rel=0.15)
    assert np.isfinite([found.low, found.high]).all()


@pytest.mark.parametrize("resamples", [39, 50, 400, 1999, 2000])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_interval_and_p_value_say_the_same(resamples: int, level: float) -> None:
    """Of draws that come ever nearer to 0, from above and from below."""
    for at in range(resamples // 15):
        drawn = np.random.default_rng(at).permutation(np.arange(resamples) - at + 0.5)
        low, high = percentiles(drawn, level)
        assert percentiles(-drawn, level) == (-high, -low)
        if resamples > 2 / (1 - level):  # or no p-value is small enough
            assert (low > 0) is (two_sided(drawn) <= 1 - level)


def test_one_user_has_no_interval() -> None:
    """What one user does says nothing of others: GAUC looks at users of both classes only."""
    y, groups = [1, 0, 1, 0, 0, 1], ["a", "a", "a", "a", "b", "c"]
    a, b = [0.4, 0.6, 0.5, 0.3, 0.2, 0.3], [0.9, 0.1, 0.8, 0.3, 0.2, 0.4]
    alone = paired_bootstrap(y, a, b, groups, resamples=50)
    assert alone["gauc"].difference == pytest.approx(0.5)
    assert np.isnan([alone["gauc"].low, alone["gauc"].high, alone["gauc"].p_value]).all()
    assert np.isfinite([alone["auc"].low, alone["log_loss"].p_value]).all()
    assert np.isnan(bootstrap_intervals(y, a, ["a"] * 6, resamples=50)["log_loss"].low)
    two = paired_bootstrap([*y, 0, 1], [*a, 0.5, 0.6], [*b, 0.5, 0.6], [*groups, "d", "d"], resamples=50)
    assert two["gauc"].low < two["gauc"].difference < two["gauc"].high


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-15)
    assert holm([0.6, 0.5]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []
    with pytest.raises(UserError, match="p_values"):
        holm([1.2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["ndcg"]}, "ndcg cannot be resampled; choose of gauc, auc, log_loss"),
        ({"b": np.full((2, 4), 0.5)}, "a has 1 runs and b has 2"),
        ({"a": np.full((1, 2, 4), 0.5)}, r"a has shape \(1, 2, 4\)"),
        ({"b": [0.5]}, "score has 1 rows, y_true has 4"),
        ({"groups": ["u"]}, "groups has 1 rows"),
        ({"level": 95}, "level is 95"),
        ({"resamples": 0}, "resamples is 0"),
        ({"y_true": [], "a": [], "b": [], "groups": []}, "no rows"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"y_true": [0, 1, 0, 1], "a": [0.5] * 4, "b": [0.4] * 4, "groups": ["u", "u", "v", "v"]}
    arguments |= {"resamples": 5} | change
    with pytest.raises(UserError, match=message):
        paired_bootstrap(**arguments)


def three_models(seed: int, share: float) -> tuple[NDArray[np.bool_], list[NDArray[np.float64]], NDArray[np.int64]]:
    """Clicks, five runs each of three models, and users: b goes about `share` of the way from a to c in noise."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 300, 6000)
    logit = -1 + rng.normal(size=6000)
    noises = (1.6, 1.6 - share, 0.6)
    scores = [sigmoid(logit + noise * rng.normal(size=(5, 6000))) for noise in noises]
    return rng.random(6000) < sigmoid(logit), scores, user


def test_the_share_of_the_gap_and_its_interval() -> None:
    y, (a, b, c), user = three_models(0, 0.5)
    found = share_of_gap(y, a, b, c, user)
    assert found is not None
    gaucs = [np.mean([gauc(y, run, user).value for run in runs]) for runs in (a, b, c)]
    assert found.value == pytest.approx((gaucs[1] - gaucs[0]) / (gaucs[2] - gaucs[0]))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert 0.1 < found.low < 0.3 < found.high < 0.6


def test_all_and_nothing_of_the_gap() -> None:
    y, (a, _, c), user = three_models(1, 0.5)
    whole, none = share_of_gap(y, a, c, c, user), share_of_gap(y, a, a, c, user)
    assert whole is not None
    assert none is not None
    assert (whole.value, none.value) == (1.0, 0.0)
    assert whole.low == pytest.approx(1.0, abs=1e-6)
    assert none.high == pytest.approx(0.0, abs=1e-6)


def test_where_there_is_no_gap_there_is_no_share() -> None:
    y, (a, b, c), user = three_models(2, 0.5)
    assert share_of_gap(y, a, b, a, user) is None
    assert share_of_gap(y, c, b, a, user) is None  # the way back
    assert share_of_gap(y, a, b, c, user, metric="log_loss") is not None
    with pytest.raises(UserError, match="a, b and c have different numbers of runs"):
        share_of_gap(y, a, b[:2], c, user)


def test_the_shares_interval_covers() -> None:
    """A share in terms of known noise is not known, so: intervals of halves of a log hold the whole log's share."""
    inside = []
    for seed in range(20):
        y, (a, b, c), user = three_models(10 + seed, 0.5)
        first = user < 150
        part = share_of_gap(y[first], a[:, first], b[:, first], c[:, first], user[first], resamples=300)
        rest = share_of_gap(y[~first], a[:, ~first], b[:, ~first], c[:, ~first], user[~first], resamples=300)
        assert part is not None
        assert rest is not None
        assert part.low is not None
        assert part.high is not None
        half = (part.high - part.low) / 2
        inside.append(abs(part.value - rest.value) < 2**0.5 * half)
    assert sum(inside) >= 17
