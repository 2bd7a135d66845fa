"""`ctrkit compare` as people and machines meet it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctrkit.cli import main
from ctrkit.metrics import paired_bootstrap

Capture = pytest.CaptureFixture[str]
RNG = np.random.default_rng(3)
USER = np.repeat(np.arange(150), 8)
LOGIT = RNG.normal(-1, 1.2, len(USER))
Y = RNG.random(len(USER)) < 1 / (1 + np.exp(-LOGIT))
SCORES = {
    f"{name}-seed{seed}": 1 / (1 + np.exp(-(LOGIT + noise * RNG.normal(size=len(USER)))))
    for name, noise in (("light", 1.2), ("rocket", 0.2))
    for seed in (0, 1, 2)
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predictions")
    for name, p in SCORES.items():
        pq.write_table(pa.table({"label": Y, "group": USER, "probability": p}), folder / f"{name}.parquet")
    return folder


def test_text(folder: Path, capsys: Capture) -> None:
    arguments = ["compare", f"{folder}/light-seed*.parquet", f"{folder}/rocket-seed*.parquet", "--resamples", "300"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"1,200 impressions, {Y.sum()} clicks, 150 users, ")
    assert "rocket is better than light in GAUC by 0." in out
    for line in ("light, run to run", "light -> rocket", "rocket, run to run"):
        assert f"\n{line} " in out


def test_json_and_options(folder: Path, capsys: Capture) -> None:
    paths = [str(folder / f"{name}-seed0.parquet") for name in ("light", "rocket")]
    options = ["--metrics", "auc,gauc", "--weighting", "clicks", "--resamples", "200", "--level", "0.8", "--seed", "4"]
    assert main(["compare", paths[0], f"R={paths[1]}", *options, "--top-k", "2", "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    expected = paired_bootstrap(
        Y, SCORES["light-seed0"], SCORES["rocket-seed0"], USER,
        metrics=["auc", "gauc"], weighting="clicks", resamples=200, level=0.8, seed=4,
    )  # fmt: skip
    assert [each["metric"] for each in result["comparisons"]] == ["auc", "gauc"]
    for each in result["comparisons"]:
        of = expected[each["metric"]]
        assert (each["difference"], each["low"], each["high"]) == (of.difference, of.low, of.high)
        assert (each["p_value"], each["variant"], each["baseline"]) == (of.p_value, "R", "light-seed0")
    assert result["paths"] == {"light-seed0": [paths[0]], "R": [paths[1]]}
    assert result["sentences"]["R"].startswith("R is better than light-seed0 in AUC")
    assert result["churn"][0]["k"] == 2
    assert result["pictures"] == []
    assert "text" not in result


def test_names_of_columns_and_key(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    order = RNG.permutation(len(Y))
    for name, rows in (("a", np.arange(len(Y))), ("b", order)):
        table = {"y": Y[rows], "u": USER[rows], "p": SCORES["light-seed0"][rows], "id": rows}
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    arguments = ["compare", f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet", "--label", "y", "--group", "u"]
    arguments += ["--score", "p", "--resamples", "20", "--json"]
    assert main([*arguments, "--key", "id"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {each["difference"] for each in result["comparisons"]} == {0.0}
    assert main(arguments) == 2
    assert "give --key COLUMN" in json.loads(capsys.readouterr().out)["error"]


def test_a_run_that_stands_there_twice_is_mentioned(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    again = shutil.copy(folder / "rocket-seed0.parquet", tmp_path / "rocket-seed9.parquet")
    variant = f"rocket={folder}/rocket-seed0.parquet,{folder}/rocket-seed1.parquet,{again}"
    assert main(["compare", f"{folder}/light-seed*.parquet", variant, "--resamples", "200", "--json"]) == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert note.startswith(f"{again}: the same scores as {folder}/rocket-seed0.parquet, as if one run counted twice")


def test_weights_that_are_not_used_are_mentioned(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    table = pq.read_table(folder / "light-seed0.parquet").append_column("weight", pa.array(np.ones(len(Y))))
    pq.write_table(table, tmp_path / "a.parquet")
    pair = [str(tmp_path / "a.parquet"), str(folder / "rocket-seed0.parquet")]
    assert main(["compare", *pair, "--resamples", "10"]) == 0
    assert "the column 'weight' is not used; every impression counts once" in capsys.readouterr().out
    assert main(["compare", *pair[::-1], "--resamples", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []


def test_too_few_resamples_for_so_many_variants_are_mentioned(folder: Path, capsys: Capture) -> None:
    """Of 79 resamples the smallest p-value is 2/80: times two that is 0.05, times three it is above."""
    paths = [f"{name}={folder}/rocket-seed0.parquet" for name in "abc"]
    arguments = ["compare", str(folder / "light-seed0.parquet"), *paths, "--resamples", "79", "--metrics", "auc"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "--resamples 79: with 3 variants no p-value can be small enough for 0.95; give 120 or more" in out
    assert main([*arguments[:4], *arguments[5:], "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["notes"] == []
    assert {each["verdict"] for each in result["comparisons"]} == {"better"}


def test_plots(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    paths = [str(folder / f"{name}-seed0.parquet") for name in ("light", "rocket")]
    assert main(["compare", *paths, "--resamples", "20", "--plots", str(tmp_path / "p"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pictures"] == [str(tmp_path / "p" / f"{n}.svg") for n in ("differences", "reliability", "changes")]
    shown = json.loads((tmp_path / "p" / "differences.json").read_text())
    difference = [each["difference"] for each in result["comparisons"]]
    assert [metric["variants"][0]["difference"] for metric in shown["metrics"]] == difference


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resamples", "0"], "--resamples 0: give 1 or more"),
        (["--top-k", "0"], "--top-k 0: give 1 or more"),
        (["--level", "95"], "--level 95.0: give the coverage"),
        (["--seed", "-1"], "--seed -1: give 0 or more"),
        (["--metrics", "gauc,ndcg"], "--metrics gauc,ndcg: 'ndcg' is not one of gauc, auc, log_loss"),
        (["--metrics", "auc,auc"], "'auc' is not one of gauc, auc, log_loss, each once"),
        (["--group", "who"], "no column 'who'"),
        (["--key", "id"], "no column 'id'; columns are label, group, probability: give --key"),
    ],
)
def test_what_can_be_mended(folder: Path, capsys: Capture, options: list[str], message: str) -> None:
    paths = [str(folder / f"{name}-seed0.parquet") for name in ("light", "rocket")]
    assert main(["compare", *paths, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ctrkit: ")
    assert message in error
    assert error.count("\n") == 1


def test_runs_that_cannot_be_paired(folder: Path, capsys: Capture) -> None:
    assert main(["compare", f"{folder}/light-seed*.parquet", f"{folder}/rocket-seed0.parquet"]) == 2
    assert "light has 3 runs and rocket-seed0 has 1" in capsys.readouterr().err
