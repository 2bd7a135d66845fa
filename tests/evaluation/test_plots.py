"""Pictures show the numbers they should: read back from what was drawn, and from the JSON beside the file."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.patches import StepPatch

from ctrkit.cli import main
from ctrkit.errors import UserError
from ctrkit.evaluation import plots
from ctrkit.evaluation.compare import CompareReport, compare_scores
from ctrkit.evaluation.in_memory import evaluate_predictions
from ctrkit.evaluation.plot_data import ComparePictures, change_data, difference_data, plot_evaluation, score_data
from ctrkit.evaluation.predictions import Predictions
from ctrkit.evaluation.report import EvalConfig
from ctrkit.metrics import bootstrap_intervals, gauc, reliability_curve

RNG = np.random.default_rng(1)
ROWS = 3000
USER = RNG.integers(0, 200, ROWS)
LOGIT = RNG.normal(-1.5, 1.2, ROWS)
Y = RNG.random(ROWS) < 1 / (1 + np.exp(-LOGIT))
P = 1 / (1 + np.exp(-(LOGIT + RNG.normal(size=ROWS))))
SLOT = RNG.choice(["top", "side", "foot"], ROWS, p=[0.5, 0.3, 0.2])


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def marks(axes: Any) -> np.ndarray[Any, Any]:
    (found,) = (each for each in axes.collections if isinstance(each, PathCollection))
    return np.asarray(found.get_offsets())


def whiskers(axes: Any) -> list[list[list[float]]]:
    (found,) = (each for each in axes.collections if isinstance(each, LineCollection))
    return [segment.tolist() for segment in found.get_segments()]


def steps(axes: Any) -> list[StepPatch]:
    return [each for each in axes.patches if isinstance(each, StepPatch)]


def legend(axes: Any) -> list[str]:
    return texts(axes.get_legend().get_texts())


def texts(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


# --- an evaluation


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of one evaluation, by slot (one of which has no click) and by a column with a name for no file."""
    folder = tmp_path_factory.mktemp("evaluated")
    label, slot = Y.copy(), SLOT.astype(object)
    slot[:5], label[:5] = None, False
    table = {"label": label, "group": USER, "probability": P, "slot": slot, "a/b": SLOT}
    pq.write_table(pa.table(table), folder / "light.parquet")
    predictions, config = Predictions.open(folder / "light.parquet"), EvalConfig(slices=("slot", "a/b"), resamples=50)
    drawn = plot_evaluation(evaluate_predictions(predictions, config), predictions, config, folder / "plots")
    names = ["reliability.svg", "scores.svg", "gauc_by_slot.svg", "gauc_by_a%2Fb.svg"]
    assert drawn == [folder / "plots" / name for name in names]
    return folder


def test_reliability(evaluated: Path) -> None:
    data = read_json(evaluated / "plots" / "reliability.json")
    label = np.where(np.arange(ROWS) < 5, False, Y)
    curve = reliability_curve(label, P)
    (axes,) = plots.draw_reliability(data).axes
    line, calibrated = axes.lines
    assert np.asarray(line.get_xydata()) == pytest.approx(np.column_stack([curve.predicted, curve.observed]), abs=1e-15)
    first = np.sort(P)[: ROWS // 20].mean()
    assert np.asarray(line.get_xdata())[0] == pytest.approx(first, rel=1e-12)
    assert np.asarray(calibrated.get_xdata()).tolist() == np.asarray(calibrated.get_ydata()).tolist()
    assert legend(axes) == ["light", "calibrated"]
    assert axes.get_title() == "Reliability, 3,000 impressions"


def test_evaluate_draws(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verb draws what `plot_evaluation` does: the same numbers, but for the intervals that were not asked for."""
    arguments = ["evaluate", str(evaluated / "light.parquet"), "--slice", "slot", "--plots", str(tmp_path / "plots")]
    assert main([*arguments, "--json"]) == 0
    drawn = json.loads(capsys.readouterr().out)["pictures"]
    assert drawn == [str(tmp_path / "plots" / f"{name}.svg") for name in ("reliability", "scores", "gauc_by_slot")]
    for name in ("reliability", "scores"):
        assert read_json(tmp_path / "plots" / f"{name}.json") == read_json(evaluated / "plots" / f"{name}.json")
    values = read_json(tmp_path / "plots" / "gauc_by_slot.json")["values"]
    assert [value["low"] for value in values] == [None] * 4
    assert main(arguments) == 0
    assert f"pictures: {drawn[0]}, " in capsys.readouterr().out
    assert main(["evaluate", "recipe.toml", "--plots", "x"]) == 2
    assert "--plots go with a file or folder of predictions" in capsys.readouterr().err


def test_every_run_is_a_line_with_one_name_in_the_legend() -> None:
    curves = [{"predicted": [0.1, 0.2 * i], "observed": [0.1, 0.3]} for i in (1, 2)]
    models = [{"name": "a", "runs": curves}, {"name": "b", "runs": curves[:1]}]
    (axes,) = plots.draw_reliability({"rows": 9, "models": models}).axes
    *runs, _ = axes.lines
    assert [np.asarray(line.get_xdata()).tolist() for line in runs] == [[0.1, 0.2], [0.1, 0.4], [0.1, 0.2]]
    assert runs[0].get_color() == runs[1].get_color() != runs[2].get_color()
    assert runs[0].get_linestyle() != runs[2].get_linestyle()
    assert legend(axes) == ["a", "b", "calibrated"]


def test_scores_by_label(evaluated: Path) -> None:
    data = read_json(evaluated / "plots" / "scores.json")
    label = np.where(np.arange(ROWS) < 5, False, Y)
    (axes,) = plots.draw_scores(data).axes
    for step, which in zip(steps(axes), (~label, label), strict=True):
        values, edges, _ = step.get_data()
        logit = np.log(P[which] / (1 - P[which]))
        expected, _ = np.histogram(logit, np.asarray(edges))
        assert np.asarray(values) == pytest.approx(expected / which.sum(), abs=1e-12)
        assert np.sum(values) == pytest.approx(1, abs=1e-12)
        assert np.diff(edges) == pytest.approx(0.25, abs=1e-9)
    assert legend(axes) == ["no click", "click"]
    for place, text in zip(axes.get_xticks(), texts(axes.get_xticklabels()), strict=True):
        assert 1 / (1 + np.exp(-place)) == pytest.approx(float(text), rel=1e-9)


def test_scores_beyond_the_edges_weights_and_debiasing(tmp_path: Path) -> None:
    table = pa.table({"label": [0, 0, 1, 0], "probability": [0.0, 1.0, 0.5, 1e-30], "w": [1.0, 2.0, 5.0, 1.0]})
    pq.write_table(table, tmp_path / "p.parquet")
    data = score_data(Predictions.open(tmp_path / "p.parquet", weight="w"), EvalConfig())
    assert (data["no_click"][0], data["no_click"][-1], sum(data["no_click"])) == (0.5, 0.5, 1.0)
    assert data["click"][48] == 1.0
    assert data["edges"][48] == pytest.approx(0.5)
    halved = score_data(Predictions.open(tmp_path / "p.parquet"), EvalConfig(negative_rate=0.1))
    place = int(np.argmax(halved["click"]))
    assert halved["edges"][place] <= 0.5 / (0.5 + 0.5 / 0.1) < halved["edges"][place + 1]


def test_slices(evaluated: Path) -> None:
    data = read_json(evaluated / "plots" / "gauc_by_slot.json")
    label = np.where(np.arange(ROWS) < 5, False, Y)
    (axes,) = plots.draw_slices(data).axes
    names = ["foot", "side", "top"]
    counts = [int((SLOT[5:] == name).sum()) for name in names]
    assert texts(axes.get_yticklabels()) == [f"{n} ({c:,})" for n, c in zip(names, counts, strict=True)] + [
        "missing (5)"
    ]
    points, whole = axes.lines
    expected = []
    for i, name in enumerate(names):
        rows = np.flatnonzero(name == SLOT)
        rows = rows[rows >= 5]
        expected.append(gauc(label[rows], P[rows], USER[rows]).value)
        interval = bootstrap_intervals(label[rows], P[rows], USER[rows], metrics=["gauc"], resamples=50)["gauc"]
        assert whiskers(axes)[i] == [[pytest.approx(interval.low), i], [pytest.approx(interval.high), i]]
    assert np.asarray(points.get_xdata())[:3] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(np.asarray(points.get_xdata())[3])
    assert len(whiskers(axes)) == 3
    assert np.asarray(whole.get_xdata()) == pytest.approx([gauc(label, P, USER).value] * 2, abs=1e-12)
    assert axes.get_title() == "GAUC by slot, 95% intervals; 3,000 impressions"


def test_slices_without_intervals() -> None:
    values = [{"value": "x", "impressions": 5, "gauc": 0.6, "low": None, "high": None}]
    data = {"rows": 5, "slice": "s", "gauc": None, "level": None, "values": values}
    (axes,) = plots.draw_slices(data).axes
    assert axes.get_title() == "GAUC by s; 5 impressions"
    assert whiskers(axes) == []
    (points,) = axes.lines
    assert np.asarray(points.get_xydata()).tolist() == [[0.6, 0.0]]


# --- a comparison


def compared(**settings: Any) -> tuple[CompareReport, ComparePictures]:
    better = 1 / (1 + np.exp(-(LOGIT + 0.2 * RNG.normal(size=ROWS))))
    like = np.clip(P + 0.003 * RNG.normal(size=ROWS), 0, 1)
    pictures = ComparePictures()
    report = compare_scores(
        Y, USER, ("base", P), [("better", better), ("like", like)], resamples=200,
        look=lambda name, runs: pictures.look(Y, name, runs), **settings,
    )  # fmt: skip
    return report, pictures


def test_differences() -> None:
    report, _ = compared(metrics=["gauc", "log_loss"])
    figure = plots.draw_differences(json.loads(json.dumps(difference_data(report))))
    assert figure.get_suptitle() == "Differences from base, 95% intervals; 3,000 impressions of 200 users"
    for axes, metric in zip(figure.axes, ("gauc", "log_loss"), strict=True):
        of = [each.difference for each in report.comparisons if each.difference.metric == metric]
        assert marks(axes).tolist() == [[of[0].difference, 0], [of[1].difference, 1]]
        assert whiskers(axes) == [[[each.low, i], [each.high, i]] for i, each in enumerate(of)]
        (points,) = (each for each in axes.collections if isinstance(each, PathCollection))
        assert [to_hex(colour) for colour in np.asarray(points.get_facecolor())] == ["#0072b2", "#ffffff"]
    assert figure.axes[0].get_xlabel() == "difference in GAUC\n(right is better)"
    assert figure.axes[1].get_xlabel() == "difference in log loss (nats)\n(left is better)"
    assert texts(figure.axes[0].get_yticklabels()) == ["better", "like"]


def test_pictures_of_a_comparison(tmp_path: Path) -> None:
    report, pictures = compared()
    drawn = pictures.save(report, tmp_path / "plots")
    assert [path.name for path in drawn] == ["differences.svg", "reliability.svg", "changes.svg"]
    names = [model["name"] for model in read_json(tmp_path / "plots" / "reliability.json")["models"]]
    assert names == ["base", "better", "like"]
    assert read_json(tmp_path / "plots" / "differences.json") == json.loads(json.dumps(difference_data(report)))


def test_changes_of_the_probability() -> None:
    """Against a histogram of the changes themselves; a half of a per cent lies beyond the edges at most."""
    base = RNG.random((2, ROWS)) * 0.5
    variant = base + RNG.normal(size=base.shape) * 0.01
    variant[0, 0] = base[0, 0] + 0.4
    pictures = ComparePictures()
    pictures.look(Y, "base", base)
    pictures.look(Y, "x", np.clip(variant, 0, 1))
    change = (np.clip(variant, 0, 1) - base).ravel()
    data = change_data(ROWS, "base", pictures.changes)
    (axes,) = plots.draw_changes(data).axes
    (step,) = steps(axes)
    values, edges, _ = step.get_data()
    expected, _ = np.histogram(np.clip(change, edges[0] + 1e-9, edges[-1] - 1e-9), np.asarray(edges))
    assert np.asarray(values) == pytest.approx(expected / len(change), abs=5e-4)  # those that lie on an edge to 1e-6
    assert np.sum(values) == pytest.approx(1, abs=1e-12)
    assert (np.abs(change) <= edges[-1] + 1e-6).mean() >= 0.995
    assert edges[-1] < 1.2 * np.quantile(np.abs(change), 0.995)
    assert edges[40] == pytest.approx(-edges[41])


def test_no_change_is_in_the_middle() -> None:
    pictures = ComparePictures()
    pictures.look(Y, "base", P[None])
    pictures.look(Y, "twin", P[None])
    data = change_data(ROWS, "base", pictures.changes)
    assert data["variants"][0]["share"][40] == 1.0


# --- files


def test_files_are_the_same_each_time(tmp_path: Path) -> None:
    report, pictures = compared()
    first = pictures.save(report, tmp_path / "first")
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        again = pictures.save(report, tmp_path / "again")
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert ET.fromstring(one.read_text()).tag.endswith("svg")
        assert "<dc:date>" not in one.read_text()


def test_drawing_needs_no_pyplot_and_importing_no_matplotlib() -> None:
    code = (
        "import sys; from ctrkit.evaluation import plots; assert 'matplotlib' not in sys.modules\n"
        "plots.draw_reliability({'rows': 0, 'models': [{'name': 'a', 'runs': [{'predicted': [], 'observed': []}]}]})\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install '.\[plots\]' in the clone of ctrkit, or leave out --plots"):
        ComparePictures()


def test_values_and_names_of_any_letters(tmp_path: Path) -> None:
    """Dollars are no formula, control characters no XML; what the font lacks is left to the reader's."""
    values = ["$\\frac$", "$x_$", "a\x00b", "<&>", "日本", "x" * 300]
    column = np.array(values, dtype=object)[np.arange(ROWS) % len(values)]
    table = {"label": Y, "group": USER, "probability": P, "$\\q$": column}
    pq.write_table(pa.table(table), tmp_path / "日本 $\\q$\x01.parquet")
    predictions, config = Predictions.open(tmp_path / "日本 $\\q$\x01.parquet"), EvalConfig(slices=("$\\q$",))
    drawn = plot_evaluation(evaluate_predictions(predictions, config), predictions, config, tmp_path / "plots")
    found = {path.name: "".join(ET.fromstring(path.read_text()).itertext()) for path in drawn}
    assert all(f"{each} (500)" in found["gauc_by_%24%5Cq%24.svg"] for each in ("$\\frac$", "$x_$", "a\\x00b", "日本"))
    assert "GAUC by $\\q$" in found["gauc_by_%24%5Cq%24.svg"]
    assert "日本 $\\q$" in found["reliability.svg"]


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_a_place_for_no_pictures_is_told_before_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "file").write_text("")
    paths = ["gone.parquet"] if command == "evaluate" else ["gone.parquet", "gone too.parquet"]
    for place in (tmp_path / "file", tmp_path / "file" / "plots"):
        assert main([command, *paths, "--plots", str(place)]) == 2
        assert f"{place}: cannot be written; give --plots another folder" in capsys.readouterr().err
    assert main([command, *paths, "--plots", str(tmp_path / "new" / "plots")]) == 2
    assert "gone.parquet" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report, pictures = compared()
    with pytest.raises(UserError, match="cannot be written"):
        pictures.save(report, tmp_path / "file")
