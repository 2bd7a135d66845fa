"""`ctrkit evaluate PREDICTIONS`: the values, the text, the JSON, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ctrkit.cli import main
from ctrkit.errors import UserError
from ctrkit.evaluation.in_memory import evaluate_predictions
from ctrkit.evaluation.predictions import Predictions
from ctrkit.evaluation.report import EvalConfig
from ctrkit.metrics import (
    Other,
    bootstrap_intervals,
    debias_probability,
    evaluate_scores,
    evaluate_slices,
    field_calibration_error,
    reliability_curve,
    user_activity,
)
from ctrkit.metrics.grouping import group_codes
from tests.evaluation.small_predictions import table, write

Capture = pytest.CaptureFixture[str]
TABLE = table()
Y, P, W = (TABLE[name].to_numpy() for name in ("label", "probability", "weight"))
USERS = TABLE["group"].to_pylist()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "p.parquet", TABLE)


def result(capsys: Capture, *arguments: Any) -> dict[str, Any]:
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert "text" not in found
    return found


def shown(capsys: Capture, *arguments: Any) -> str:
    assert main(["evaluate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: Capture, *arguments: Any) -> str:
    assert main(["evaluate", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_values_are_those_of_the_metrics(path: Path) -> None:
    config = EvalConfig(("position", "device", "user_activity", "ad"), ("ad",), max_values=3)
    found = evaluate_predictions(Predictions.open(path, weight="weight"), config)
    assert found.report == evaluate_scores(Y, P, USERS, W)
    assert found.curve.ece == reliability_curve(Y, P, sample_weight=W).ece
    columns = {name: TABLE[name] for name in ("position", "device", "ad")}
    expected = evaluate_slices(Y, P, USERS, columns, W, max_values=3)
    expected |= evaluate_slices(Y, P, USERS, {"user_activity": user_activity(USERS)}, W, max_values=None)
    assert found.slices == expected
    assert [list(found.slices[name])[-1] for name in ("position", "device")] == [Other(3), None]
    assert found.fields == {"ad": field_calibration_error(Y, P, TABLE["ad"], W)}


def test_debiased_probabilities_are_judged(path: Path) -> None:
    found = evaluate_predictions(Predictions.open(path), EvalConfig(("position",), ("ad",), negative_rate=0.25))
    q = debias_probability(P, 0.25)
    assert found.report == evaluate_scores(Y, q, USERS)
    assert found.slices == evaluate_slices(Y, q, USERS, {"position": TABLE["position"]})
    assert found.fields["ad"] == field_calibration_error(Y, q, TABLE["ad"])
    plain = evaluate_predictions(Predictions.open(path))
    assert (found.report.auc, found.report.gauc) == (plain.report.auc, plain.report.gauc)


def test_intervals_draw_users(path: Path) -> None:
    found = evaluate_predictions(Predictions.open(path), EvalConfig(("position",), resamples=60))
    assert found.intervals == bootstrap_intervals(Y, P, USERS, resamples=60)
    numbers, mine = group_codes(TABLE["group"]).numbers()[0], TABLE["position"].to_numpy() == 2
    of_slice = bootstrap_intervals(Y[mine], P[mine], numbers[mine], metrics=["gauc"], resamples=60)
    low, high = found.slice_intervals["position"][2].low, found.slice_intervals["position"][2].high
    assert (low, high) == pytest.approx((of_slice["gauc"].low, of_slice["gauc"].high), abs=1e-12)


def test_a_column_called_user_activity_is_that_column(tmp_path: Path) -> None:
    content = TABLE.append_column("user_activity", TABLE["position"])
    found = evaluate_predictions(
        Predictions.open(write(tmp_path / "p.parquet", content)), EvalConfig(("user_activity",))
    )
    assert list(found.slices["user_activity"]) == [1, 2, 3, 4, 5, 6]


def test_json_of_the_command(capsys: Capture, path: Path) -> None:
    options = ["--slice", "device", "--slice", "ad", "--field", "ad", "--max-values", "2", "--intervals"]
    found = result(capsys, path, *options, "--resamples", 20)
    assert found["report"] == evaluate_scores(Y, P, USERS).as_dict()
    assert found["columns"] == {"label": "label", "group": "group", "score": "probability", "weight": None}
    device = found["slices"]["device"]
    assert [(each["value"], each["other_values"]) for each in device[-2:]] == [(None, None), (None, 1)]
    assert sum(each["rows"] for each in device) == len(Y)
    assert found["slices"]["ad"][0]["gauc_interval"]["resamples"] == 20
    assert set(found["intervals"]) == {"gauc", "auc", "log_loss"}
    assert len(found["fields"]["ad"]["worst"]) == 10
    assert found["partitions"] == 1
    streamed = result(capsys, path, "--slice", "device", "--rows-in-memory", 100, "--tmp", path.parent)
    assert streamed["report"] == found["report"]


def test_text_of_the_command(capsys: Capture, path: Path) -> None:
    found = evaluate_scores(Y, P, USERS)
    text = shown(capsys, path, "--slice", "device", "--slice", "ad", "--max-values", "2", "--field", "ad")
    heading, metrics, device, ad, field, _ = text.split("\n\n")
    assert heading == f"{path}: 4,000 impressions, {int(Y.sum()):,} clicks, click rate {Y.mean():.2%}"
    first = metrics.splitlines()[2]
    assert first.startswith(f"GAUC      {found.gauc:.4f}  weighted by impressions; ")
    assert found.coverage is not None
    assert f"{found.coverage.groups_kept} of {len(set(USERS))} users have both classes" in first
    assert device.splitlines()[0] == "by device"
    assert device.splitlines()[-2].startswith("missing ")
    assert ad.splitlines()[-1].startswith(f"other ({len(set(TABLE['ad'].to_pylist())) - 2} values) ")
    assert field.startswith("field calibration error by ad: ")
    lines = [*device.splitlines()[1:], *ad.splitlines()[1:]]
    assert {len(line) for line in device.splitlines()[1:]} == {len(device.splitlines()[1])}, "columns are aligned"
    assert all("nan" not in line for line in lines)
    more = shown(capsys, path, "--weight", "weight", "--negative-rate", "0.5")
    assert "metrics count a row 'weight' times\nprobabilities de-biased: training kept 0.5 of the non-clicks" in more
    assert "'weight' is not used" not in more
    assert "the column 'weight' is not used, every impression counts once; --weight weight" in shown(capsys, path)
    with_intervals = shown(capsys, path, "--intervals", "--resamples", "20", "--slice", "position")
    assert "intervals from 20 resamples of the users" in with_intervals
    assert with_intervals.count("95% interval") == 2
    assert with_intervals.count(", 0.") == 3 + 6


def test_predictions_of_another_tool_without_users(capsys: Capture, tmp_path: Path) -> None:
    content = pa.table({"y": Y.astype(np.float32), "pctr": P.astype(np.float32)})
    path = write(tmp_path / "other", content)
    text = shown(capsys, path, "--label", "y", "--score", "pctr")
    assert "GAUC           -  no column to group by; name it with --group" in text
    assert f"AUC       {evaluate_scores(Y, P).auc:.4f}" in text


def test_rows_of_one_class_are_shown_as_undefined(capsys: Capture, tmp_path: Path) -> None:
    content = pa.table({"label": [0, 0], "probability": [0.5, 0.25], "group": ["a", "a"]})
    text = shown(capsys, write(tmp_path / "p.parquet", content), "--intervals", "--resamples", "5", "--field", "group")
    assert "nan" not in text
    assert "0 of 1 users have both classes, 0.00% of the rows" in text
    empty = shown(capsys, write(tmp_path / "p.parquet", content.slice(0, 0)), "--slice", "group", "--field", "group")
    assert "0 impressions, 0 clicks, click rate -" in empty


REFUSED: dict[str, tuple[list[str], str]] = {
    "no such column": (["--slice", "positon"], "has no column 'positon', which --slice names; did you mean 'position'"),
    "no such field": (["--field", "adx"], "has no column 'adx', which --field names"),
    "negative rate": (["--negative-rate", "1.5"], "--negative-rate 1.5: give the share"),
    "weights": (["--intervals", "--weight", "weight"], "intervals take no weights"),
    "resamples": (["--intervals", "--resamples", "0"], "--resamples 0: give 1 or more"),
    "values": (["--max-values", "0"], "--max-values 0: give 1 or more"),
    "rows": (["--rows-in-memory", "-5"], "--rows-in-memory -5: give 1 or more"),
    "long with intervals": (["--intervals", "--rows-in-memory", "50"], "raise --rows-in-memory"),
    "keys of a recipe": (["--set", "train.epochs=1"], "is no recipe (.toml): --set and --out go with a recipe"),
    "no such group": (["--group", "usr"], "has no column 'usr'"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_refused(capsys: Capture, path: Path, case: str) -> None:
    arguments, message = REFUSED[case]
    assert message in refused(capsys, path, *arguments)


def test_values_that_json_has_no_type_for(tmp_path: Path) -> None:
    price = pa.array([np.inf, -np.inf, np.nan, None] * (TABLE.num_rows // 4))
    content = TABLE.slice(0, len(price)).append_column("price", price)
    predictions = Predictions.open(write(tmp_path / "p.parquet", content))
    found = evaluate_predictions(predictions, EvalConfig(("price",))).as_dict()
    assert [each["value"] for each in found["slices"]["price"]] == ["-inf", "inf", None]


def test_what_needs_users(tmp_path: Path) -> None:
    predictions = Predictions.open(write(tmp_path / "p.parquet", TABLE.drop_columns(["group"])))
    none = Predictions.open(write(tmp_path / "none.parquet", TABLE.slice(0, 0)))
    with pytest.raises(UserError, match=r"none\.parquet: no rows; intervals draw users"):
        evaluate_predictions(none, EvalConfig(resamples=5))
    for config, message in (
        (EvalConfig(("user_activity",)), "--slice user_activity needs a group column"),
        (EvalConfig(resamples=5), "there is no group column"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_predictions(predictions, config)


def test_options_of_predictions_are_refused_for_a_recipe(capsys: Capture, tmp_path: Path) -> None:
    given = ("--slice", "position", "--intervals", "--resamples", "5", "--max-values", "50")
    text = refused(capsys, tmp_path / "recipe.toml", *given)
    assert "recipe.toml is a recipe: --slice, --intervals, --resamples go with a file or folder of predictions" in text


def test_a_missing_package_is_named_with_its_extra(
    capsys: Capture, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "ctrkit.evaluation.commands", raising=False)
    monkeypatch.delitem(sys.modules, "ctrkit.evaluation.in_memory", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    text = refused(capsys, path)
    assert "pip install '.[evaluate]' in the clone" in text
    assert "torch" not in text


def test_no_torch_is_imported(path: Path) -> None:
    code = (
        "import sys; from ctrkit.cli import main;"
        f"main(['evaluate', {str(path)!r}, '--slice', 'position', '--slice', 'user_activity', '--field', 'ad']);"
        "print([name for name in ('torch', 'sklearn', 'matplotlib') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
    assert ended.stderr == ""
