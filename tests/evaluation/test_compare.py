"""Comparing models: values against the metrics themselves, pairing over seeds, Holm, churn, and what is refused."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from ctrkit.errors import UserError
from ctrkit.evaluation.compare import CompareReport, compare, compare_scores
from ctrkit.evaluation.runs import Columns, Impressions, ModelRuns, parse_models
from ctrkit.evaluation.text import aligned, comparison_text, sentences, value_label
from ctrkit.metrics import auc, churn, gauc, holm, log_loss, paired_bootstrap

Array = NDArray[Any]


class Log:
    """400 users of ten impressions each; a model is the true logit seen through noise."""

    def __init__(self, seed: int = 0, users: int = 400) -> None:
        self.rng = np.random.default_rng(seed)
        self.user = np.repeat(np.arange(users), 10)
        self.logit = -1.5 + self.rng.normal(size=users)[self.user] * 0.7 + self.rng.normal(size=len(self.user)) * 1.2
        self.y = self.rng.random(len(self.user)) < 1 / (1 + np.exp(-self.logit))

    def model(self, noise: float, runs: int = 1) -> Array:
        seen = self.logit + noise * self.rng.normal(size=(runs, len(self.y)))
        return np.asarray(1 / (1 + np.exp(-seen)))


@pytest.fixture(scope="module")
def log() -> Log:
    return Log()


@pytest.fixture(scope="module")
def report(log: Log) -> CompareReport:
    """A baseline and four variants, one run each: `good` sees the clicks far better, `bad` worse, `like` as well."""
    base = log.model(1.0)[0]
    variants = {"good": log.model(0.3)[0], "like": log.model(1.0)[0], "bad": log.model(2.5)[0], "twin": base.copy()}
    return compare_scores(log.y, log.user, ("base", base), variants.items(), resamples=1000, seed=3)


def of(report: CompareReport, variant: str, metric: str) -> Any:
    (each,) = (c for c in report.comparisons if c.variant == variant and c.difference.metric == metric)
    return each


# --- values


def test_differences_are_the_paired_bootstraps_corrected_by_holm(log: Log) -> None:
    base, variants = log.model(1.0)[0], {name: log.model(noise)[0] for name, noise in (("x", 0.9), ("y", 0.5))}
    settings: dict[str, Any] = {"resamples": 300, "level": 0.9, "seed": 5, "weighting": "clicks"}
    report = compare_scores(log.y, log.user, ("base", base), variants.items(), **settings, metrics=["auc", "gauc"])
    alone = {
        v: paired_bootstrap(log.y, base, p, log.user, **settings, metrics=["auc", "gauc"]) for v, p in variants.items()
    }
    assert [(c.variant, c.difference.metric) for c in report.comparisons] == [
        (variant, metric) for variant in ("x", "y") for metric in ("auc", "gauc")
    ]
    for each in report.comparisons:
        metric = each.difference.metric
        assert each.difference == alone[each.variant][metric]
        expected = holm([alone[v][metric].p_value for v in variants])[list(variants).index(each.variant)]
        assert each.p_holm == expected
    first = of(report, "x", "gauc").difference
    assert first.a == pytest.approx(gauc(log.y, base, log.user, weighting="clicks").value, abs=1e-12)
    assert first.b == pytest.approx(gauc(log.y, variants["x"], log.user, weighting="clicks").value, abs=1e-12)


def test_a_true_difference_is_found_and_none_is_made_up(report: CompareReport) -> None:
    verdicts = {(each.variant, each.difference.metric): each.verdict for each in report.comparisons}
    for metric in ("gauc", "auc", "log_loss"):
        assert verdicts["good", metric] == "better"
        assert verdicts["bad", metric] == "worse"
        assert verdicts["like", metric] == "undecided"
    assert of(report, "good", "log_loss").difference.difference < 0 < of(report, "good", "gauc").difference.difference


def test_identical_models_have_no_difference(report: CompareReport) -> None:
    for metric in ("gauc", "auc", "log_loss"):
        each = of(report, "twin", metric)
        found = each.difference
        assert (found.difference, found.low, found.high, found.p_value, each.p_holm) == (0, 0, 0, 1, 1)
        assert each.verdict == "undecided"
    (same,) = (each.churn for each in report.churn if each.b == "twin")
    assert (same.mean_change, same.kendall_tau, same.top_changed, same.top_k_overlap) == (0, 1, 0, 1)


def test_holm_by_hand(report: CompareReport) -> None:
    """Four p-values of a metric: the smallest times four, the next at least as large, times three, and so on."""
    p = {each.variant: each.difference.p_value for each in report.comparisons if each.difference.metric == "auc"}
    order = sorted(p, key=lambda variant: p[variant])
    largest = 0.0
    for rank, variant in enumerate(order):
        largest = max(largest, min(1.0, p[variant] * (4 - rank)))
        assert of(report, variant, "auc").p_holm == pytest.approx(largest, abs=1e-15)


def test_holm_takes_back_what_one_variant_alone_would_claim() -> None:
    """Twenty variants as good as the baseline: some intervals leave zero out, and no verdict is given."""
    log = Log(seed=1, users=150)
    base = log.model(1.0)[0]
    like = [(f"v{i}", log.model(1.0)[0]) for i in range(20)]
    report = compare_scores(log.y, log.user, ("base", base), like, resamples=2000, metrics=["log_loss"])
    alone = [each for each in report.comparisons if each.difference.p_value < 0.05]
    assert alone
    assert {each.verdict for each in report.comparisons} == {"undecided"}
    told = dict(zip(report.variants, sentences(report), strict=True))
    assert "leaves zero out, but with 20 variants Holm-adjusted p = " in told[alone[0].variant]


def test_detectable_difference_is_seen_four_times_in_five() -> None:
    """Variants whose true gain is the detectable one, by a shift of all logits that a known log loss follows."""
    rng = np.random.default_rng(5)
    seen = 0
    z = NormalDist().inv_cdf
    for trial in range(120):
        user = np.repeat(np.arange(300), 4)
        effect = 0.02 * rng.normal(size=300)[user]
        base = np.full(1200, 0.6)
        better = np.clip(0.6 * np.exp(effect + 0.02 * (z(0.975) + z(0.8)) / math.sqrt(300)), 0, 1)
        report = compare_scores(
            np.ones(1200), user, ("a", base), [("b", better)], metrics=["log_loss"], resamples=400, seed=trial
        )
        (each,) = report.comparisons
        assert each.detectable == pytest.approx(0.02 * (z(0.975) + z(0.8)) / math.sqrt(300), rel=0.3)
        seen += each.verdict == "better"
    assert 0.7 < seen / 120 < 0.9


def test_more_variants_need_a_larger_difference(log: Log) -> None:
    base, other = log.model(1.0)[0], log.model(1.0)[0]
    one = compare_scores(log.y, log.user, ("a", base), [("b", other)], metrics=["auc"], resamples=200)
    many = [(f"b{i}", other) for i in range(10)]
    ten = compare_scores(log.y, log.user, ("a", base), many, metrics=["auc"], resamples=200)
    z = NormalDist().inv_cdf
    ratio = (z(1 - 0.0025) + z(0.8)) / (z(0.975) + z(0.8))
    assert ten.comparisons[0].detectable == pytest.approx(ratio * one.comparisons[0].detectable, rel=1e-9)


# --- several runs


def test_runs_are_paired_in_order(log: Log) -> None:
    """Each seed brings an offset that both models share: paired, it cancels; crossed, it is in the interval."""
    offset = np.array([[-0.5], [-0.2], [0.1], [0.6]])
    p = log.model(1.0)[0]
    a, b = (1 / (1 + np.exp(-(slope * np.log(p / (1 - p)) + offset))) for slope in (1.0, 0.9))
    width = {}
    for name, order in (("paired", [0, 1, 2, 3]), ("crossed", [3, 2, 1, 0])):
        report = compare_scores(log.y, log.user, ("a", a), [("b", b[order])], metrics=["log_loss"], resamples=500)
        (each,) = report.comparisons
        losses = [[log_loss(log.y, run) for run in runs] for runs in (a, b)]
        assert each.difference.difference == pytest.approx(np.mean(losses[1]) - np.mean(losses[0]), abs=1e-12)
        assert each.difference.runs == report.runs == 4
        width[name] = each.difference.high - each.difference.low
    assert width["crossed"] > 3 * width["paired"]


def test_churn_between_models_and_among_runs(log: Log) -> None:
    a, b = log.model(1.0, 3), log.model(0.5, 3)
    report = compare_scores(log.y, log.user, ("a", a), [("b", b)], metrics=["auc"], resamples=10, top_k=2)
    assert [(each.a, each.b, each.pairs) for each in report.churn] == [("a", "a", 3), ("a", "b", 3), ("b", "b", 3)]
    pairs = {
        ("a", "b"): list(zip(a, b, strict=True)),
        ("a", "a"): [(a[0], a[1]), (a[1], a[2]), (a[2], a[0])],
        ("b", "b"): [(b[0], b[1]), (b[1], b[2]), (b[2], b[0])],
    }
    for each in report.churn:
        expected = [churn(log.y, x, y, log.user, k=2) for x, y in pairs[each.a, each.b]]
        for name in ("mean_change", "relative_change", "kendall_tau", "top_changed", "top_k_overlap"):
            mean = np.mean([getattr(one, name) for one in expected])
            assert getattr(each.churn, name) == pytest.approx(mean, abs=1e-12)
    single = compare_scores(log.y, log.user, ("a", a[0]), [("b", b[0])], metrics=["auc"], resamples=10)
    assert [(each.a, each.b) for each in single.churn] == [("a", "b")]


def test_two_runs_are_one_pair_among_themselves(log: Log) -> None:
    a = log.model(1.0, 2)
    report = compare_scores(log.y, log.user, ("a", a), [("b", a)], metrics=["auc"], resamples=10)
    assert report.churn[0].pairs == 1


def test_variants_are_read_one_after_another(log: Log) -> None:
    seen: list[str] = []

    def variants() -> Iterator[tuple[str, Array]]:
        for name in ("x", "y"):
            seen.append(f"read {name}")
            yield name, log.model(1.0)

    compare_scores(
        log.y, log.user, ("base", log.model(1.0)), variants(), metrics=["auc"], resamples=10,
        look=lambda name, scores: seen.append(f"{name} {scores.shape[0]}"),
    )  # fmt: skip
    assert seen == ["base 1", "read x", "x 1", "read y", "y 1"]


# --- what people read


def test_sentences(report: CompareReport) -> None:
    told = dict(zip(report.variants, sentences(report), strict=True))
    good, like = of(report, "good", "gauc"), of(report, "like", "gauc")
    d = good.difference
    alone = "over 400 users and one run each (what another seed would change is not in the interval)"
    assert told["good"].startswith(
        f"good is better than base in GAUC by {d.difference:.4f} [{d.low:.4f}, {d.high:.4f}], "
        f"Holm-adjusted p = {good.p_holm:.3f}, {alone}. AUC: better by "
    )
    loss = of(report, "good", "log_loss").difference
    assert told["good"].endswith(f"Log loss: better by {-loss.difference:.4f} [{-loss.high:.4f}, {-loss.low:.4f}].")
    d = like.difference
    assert told["like"] == (
        f"No difference in GAUC between like and base can be told: the interval [{d.low:+.4f}, {d.high:+.4f}] holds "
        f"zero, Holm-adjusted p = {like.p_holm:.3f}, {alone}. A difference of about {like.detectable:.4f} would be "
        "seen 80% of the time. AUC: no difference can be told. Log loss: no difference can be told."
    )
    d = of(report, "bad", "gauc").difference
    worse = f"bad is worse than base in GAUC by {-d.difference:.4f} [{-d.high:.4f}, {-d.low:.4f}]"
    assert told["bad"].startswith(worse)
    assert told["twin"].startswith("twin and base have the same GAUC, whichever users are drawn.")


def test_one_variant_needs_no_correction_and_runs_are_counted(log: Log) -> None:
    report = compare_scores(log.y, log.user, ("a", log.model(1.0, 3)), [("b", log.model(0.3, 3))], resamples=3000)
    (text,) = sentences(report)
    assert ", p = 0.0" in text
    assert ", over 400 users and 3 runs each. AUC: better" in text
    assert "seed" not in text
    assert "3 paired runs each" in comparison_text(report)


def test_table_holds_every_figure(report: CompareReport, log: Log) -> None:
    text = comparison_text(report)
    assert text.startswith(f"4,000 impressions, {log.y.sum():,} clicks, 400 users, {report.coverage.groups_kept:,} of")
    for each in report.comparisons:
        name = {"gauc": "GAUC", "auc": "AUC", "log_loss": "log loss"}[each.difference.metric]
        (line,) = (line for line in text.splitlines() if line.startswith(f"{name} ") and f" {each.variant} " in line)
        assert f"{each.difference.difference:+.4f}" in line
    assert "base -> good" in text


def test_small_differences_keep_two_digits(log: Log) -> None:
    base = log.model(1.0)[0]
    nearly = np.clip(base + 1e-7 * log.rng.normal(size=len(base)), 0, 1)
    report = compare_scores(log.y, log.user, ("a", base), [("b", nearly)], metrics=["log_loss"], resamples=200)
    (each,) = report.comparisons
    half = (each.difference.high - each.difference.low) / 2
    shown = f"{each.difference.low:+.12f}"[: 4 + math.ceil(-math.log10(half))]
    assert shown[:-1] in comparison_text(report)


def test_json(report: CompareReport) -> None:
    content = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert content["variants"] == ["good", "like", "bad", "twin"]
    (good,) = (c for c in content["comparisons"] if (c["variant"], c["metric"]) == ("good", "gauc"))
    each = of(report, "good", "gauc")
    assert (good["difference"], good["p_holm"], good["verdict"]) == (each.difference.difference, each.p_holm, "better")
    assert (good["baseline"], good["a"]) == ("base", each.difference.a)
    assert content["churn"][0]["kendall_tau"] == report.churn[0].churn.kendall_tau


def test_what_the_log_does_not_define(log: Log) -> None:
    """One impression a user: no GAUC; the rest is told, and JSON has null."""
    user = np.arange(len(log.y))
    pair = ("a", log.model(1.0)), [("b", log.model(0.3)), ("c", log.model(0.5))]
    report = compare_scores(log.y, user, *pair, resamples=200)
    assert [each.verdict for each in report.comparisons] == ["undefined", "better", "better"] * 2
    assert "GAUC does not tell b and a apart: no user has both clicks and non-clicks. AUC: better by" in "".join(
        sentences(report)
    )
    content = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert content["comparisons"][0]["p_holm"] is None
    together = np.where(user < 100, 0, user)
    one = compare_scores(log.y, together, *pair, resamples=50, metrics=["gauc"])
    assert one.coverage.groups_kept == 1
    assert "GAUC does not tell b and a apart: only one user has both" in sentences(one)[0]
    single = compare_scores(log.y, np.zeros(4000, int), *pair, resamples=50, metrics=["auc"])
    assert "there is only one user" in sentences(single)[0]
    nothing = compare_scores(np.zeros(4000), log.user, *pair, resamples=50, metrics=["auc"])
    assert "there are no clicks" in sentences(nothing)[0]


def test_values_in_words() -> None:
    shown = {
        None: "missing",
        "": "''",
        "  ": "'  '",
        3: "3",
        "a\nb\x1b[31m": "a\\nb\\x1b[31m",
        "日本": "日本",
        "é": "é",
    }
    assert {value: value_label(value) for value in shown} == shown
    assert value_label("x" * 60) == "x" * 60
    assert value_label("x" * 61) == "x" * 59 + "…"


def test_aligned() -> None:
    assert aligned(["n", "m"], [["日本", "a"], ["b", "c"]]) == "n     m\n----  -\n日本  a\nb     c"
    assert aligned(["name", "n"], [["a", "1"], ["long", "+20"]]) == "name    n\n----  ---\na       1\nlong  +20"


# --- files


def write(path: Path, log: Log, p: Array, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"u{u}" for u in log.user]
    pq.write_table(pa.table({"label": log.y.astype(np.float32), "group": names, "probability": p, **columns}), path)
    return str(path)


def test_files(tmp_path: Path, log: Log) -> None:
    a, b = log.model(1.0, 2), log.model(0.5, 2)
    for name, runs in (("a", a), ("b", b)):
        for seed, p in enumerate(runs):
            write(tmp_path / f"{name}-seed{seed}.parquet", log, p)
    models = parse_models([f"{tmp_path}/a-seed*.parquet", f"{tmp_path}/b-seed*.parquet"])
    shown: list[tuple[str, int]] = []
    found = compare(models[0], models[1:], resamples=100, look=lambda log, name, p: shown.append((name, len(p))))
    expected = compare_scores(log.y, log.user, ("a", a), [("b", b)], resamples=100)
    assert found == expected
    assert shown == [("a", 2), ("b", 2)]


def test_other_names_and_types(tmp_path: Path, log: Log) -> None:
    """A dictionary here and plain strings there, bool and numbers, float64 and float32: the same impressions."""
    p = log.model(1.0)[0]
    group = [f"u{u}" for u in log.user]
    columns = {
        "first": {"click": log.y, "user": pa.array(group).dictionary_encode(), "p": p},
        "second": {
            "click": log.y.astype(np.int8),
            "user": pa.array(group, pa.large_string()),
            "p": p.astype(np.float32),
        },
    }
    paths = []
    for name, table in columns.items():
        paths.append(str(tmp_path / f"{name}.parquet"))
        pq.write_table(pa.table(table), paths[-1])
    impressions = Impressions.read(paths[0], Columns("click", "user", "p"))
    assert impressions.scores(ModelRuns("m", tuple(paths))) == pytest.approx(np.stack([p, p]), abs=1e-7)
    assert impressions.label.tolist() == log.y.tolist()
    assert np.array_equal(impressions.user[:, None] == impressions.user[:200], log.user[:, None] == log.user[:200])


@pytest.mark.parametrize("as_text", [False, True])
def test_a_key_brings_rows_into_order(tmp_path: Path, log: Log, as_text: bool) -> None:
    """Keys are integers, or strings in dictionaries that differ from row group to row group."""
    p, q = log.model(1.0)[0], log.model(0.5)[0]
    key = pa.array(np.arange(len(p)) * 3)
    key = key.cast(pa.string()).dictionary_encode() if as_text else key
    first = write(tmp_path / "a.parquet", log, p, impression=key)
    order = log.rng.permutation(len(p))
    table = pa.table({"label": log.y, "group": [f"u{u}" for u in log.user], "probability": q, "impression": key})
    second = str(tmp_path / "b.parquet")
    pq.write_table(table.take(order), second, row_group_size=1000)
    models = parse_models([first, second])
    found = compare(models[0], models[1:], Columns(key="impression"), resamples=50)
    assert found == compare_scores(log.y, log.user, ("a", p), [("b", q)], resamples=50)
    with pytest.raises(UserError, match=r"b.parquet: in row .* same order, or give --key .*\(there are impression\)"):
        compare(models[0], models[1:], resamples=50)


SMALL: dict[str, list[Any]] = {
    "label": [0, 1, 0, 1],
    "group": ["u", "u", "v", "v"],
    "probability": [0.1, 0.4, 0.2, 0.3],
    "key": [1, 2, 3, 4],
}


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        (
            {"group": ["u", "u", "w", "v"]},
            None,
            "second.parquet: in row 3 column 'group' is 'w', in .*first.parquet 'v'",
        ),
        ({"label": [0, 1, 1, 1]}, None, "second.parquet: in row 3 column 'label' is True, in .*first.parquet False"),
        ({"label": [0, 1, 1, 1]}, "key", "where key = 3, column 'label' is True, .*is that the key of an impression"),
        ({"key": [4, 3, 2, 5]}, "key", "second.parquet: 1 of the 4 keys in .*first.parquet are missing.* key = 1"),
        ({"key": [1, 2, 2, 4]}, "key", "second.parquet: 1 values of --key key stand in several rows, 2 in 2"),
        ({"key": [1, None, 2, 4]}, "key", "1 values of --key key are missing, the first in row 2"),
        (
            {"key": [[1], [2], [3], [4]]},
            "key",
            "second.parquet: column 'key' is list<.*; a key is a number or a string",
        ),
        ({"key": ["a", "b", "c", "d"]}, "key", "column 'key' is string, in .*first.parquet int64; write both in one"),
        ({"group": [1.5, 1.5, 2.5, 2.5]}, None, "second.parquet: column 'group' is double; group by integers"),
        ({"probability": [-1.0, 0.4, 0.2, 0.3]}, None, "is it a logit"),
        ({"probability": [None, 0.4, 0.2, 0.3]}, None, "column 'probability' is missing"),
        ({"label": [2, 1, 1, 1]}, None, "a label is 0 or 1"),
        ({"group": None}, None, "second.parquet: no column 'group'; columns are label, probability, key: give --group"),
        ({"key": None}, "key", "second.parquet: no column 'key'.* give --key"),
        ({name: SMALL[name][:3] for name in SMALL}, None, "second.parquet: 3 rows, .*first.parquet has 4"),
    ],
)
def test_refused_files(tmp_path: Path, change: dict[str, Any], key: str | None, message: str) -> None:
    paths = []
    for name, columns in (("first", SMALL), ("second", SMALL | change)):
        paths.append(str(tmp_path / f"{name}.parquet"))
        pq.write_table(pa.table({name: column for name, column in columns.items() if column is not None}), paths[-1])
    models = parse_models(paths)
    with pytest.raises(UserError, match=message):
        compare(models[0], models[1:], Columns(key=key), resamples=5)


def test_damaged_missing_and_empty_files(tmp_path: Path) -> None:
    good = tmp_path / "good.parquet"
    pq.write_table(pa.table(SMALL), good)
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(good.read_bytes()[:-30])
    empty = tmp_path / "empty.parquet"
    pq.write_table(pa.table(SMALL).slice(0, 0), empty)
    for path, message in ((damaged, "damaged.parquet"), (empty, "no rows"), (tmp_path / "none", "no such file")):
        models = parse_models([str(path), str(good)])
        with pytest.raises(UserError, match=message):
            compare(models[0], models[1:], resamples=5)


def test_other_refusals(log: Log) -> None:
    a = ("a", log.model(1.0))
    with pytest.raises(UserError, match="a has 1 runs and b has 2"):
        compare_scores(log.y, log.user, a, [("b", log.model(1.0, 2))])
    with pytest.raises(UserError, match="no variant"):
        compare_scores(log.y, log.user, a, [])
    with pytest.raises(UserError, match="level is 95"):
        compare_scores(log.y, log.user, a, [("b", log.model(1.0))], level=95)
    with pytest.raises(UserError, match="k is 0"):
        compare_scores(log.y, log.user, a, [("b", log.model(1.0))], top_k=0, resamples=5)
    one, two = ModelRuns("a", ("x",)), ModelRuns("b", ("y", "z"))
    with pytest.raises(UserError, match="a has 1 runs and b has 2; run s of one"):
        compare(one, [two])


# --- what is named on the command line


def test_parse_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("light-seed2", "light-seed10", "light-seed1", "rocket"):
        (tmp_path / f"{name}.parquet").touch()
    for run in ("seed0", "seed1"):
        (tmp_path / run / "test").mkdir(parents=True)
        (tmp_path / run / "test" / "booster.parquet").touch()
    (tmp_path / "day=1").mkdir()
    (tmp_path / "deep").mkdir()
    for seed in (0, 1):
        (tmp_path / "deep" / f"seed{seed}.parquet").touch()

    def parsed(*arguments: str) -> list[tuple[str, list[str]]]:
        return [(model.name, list(model.paths)) for model in parse_models(arguments)]

    seeds = [f"light-seed{seed}.parquet" for seed in (1, 2, 10)]
    assert parsed("rocket.parquet") == [("rocket", ["rocket.parquet"])]
    assert parsed("light-seed*.parquet") == [("light", seeds)]
    assert parsed(",".join(seeds[:2]), "B=rocket.parquet") == [("light", seeds[:2]), ("B", ["rocket.parquet"])]
    assert parsed("seed*/test/booster.parquet")[0][0] == "booster"
    assert parsed("deep/*") == [("deep", ["deep/seed0.parquet", "deep/seed1.parquet"])]
    assert parsed("day=1") == [("day=1", ["day=1"])]
    assert parsed("deep/../day=1/x") == [("x", ["deep/../day=1/x"])]
    assert parsed("X=day=1") == [("X", ["day=1"])]
    twice = parsed("seed0/test/booster.parquet", "seed1/test/booster.parquet")
    assert [name for name, _ in twice] == ["seed0/test/booster.parquet", "seed1/test/booster.parquet"]
    with pytest.raises(UserError, match="2 models are called A; give them names"):
        parse_models(["A=rocket.parquet", "A=deep"])
    with pytest.raises(UserError, match=r"2 models are called rocket\.parquet"):
        parse_models(["rocket.parquet", "rocket.parquet"])
    with pytest.raises(UserError, match="nothing matches"):
        parse_models(["dark-*.parquet"])
    with pytest.raises(UserError, match="an empty path"):
        parse_models(["rocket.parquet,"])
    with pytest.raises(UserError, match="is named 2 times"):
        parse_models(["rocket.parquet,rocket.parquet"])


def test_auc_of_files_needs_no_order_of_users(tmp_path: Path, log: Log) -> None:
    """Users that are strings and come back again later are the same users."""
    order = log.rng.permutation(len(log.y))
    mixed = Log()
    mixed.user, mixed.y = log.user[order], log.y[order]
    p, q = log.model(1.0)[0][order], log.model(0.5)[0][order]
    models = parse_models([write(tmp_path / "a.parquet", mixed, p), write(tmp_path / "b.parquet", mixed, q)])
    found = compare(models[0], models[1:], resamples=20, metrics=["auc", "gauc"])
    assert found.comparisons[0].difference.b == pytest.approx(auc(mixed.y, q), abs=1e-12)
    assert found.comparisons[1].difference.b == pytest.approx(gauc(mixed.y, q, mixed.user).value, abs=1e-12)
    assert found.users == 400
