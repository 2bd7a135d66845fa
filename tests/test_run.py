"""A recipe carried out: its figures, what is not done again, and what a killed step leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ctrkit.atomic import write_json
from ctrkit.bundle import Bundle
from ctrkit.config.recipe import Recipe, load_recipe, network_name, read_recipe
from ctrkit.data.prepared import PreparedLog
from ctrkit.data.split import Part
from ctrkit.errors import UserError
from ctrkit.evaluation.held_out import HeldOut
from ctrkit.metrics.bootstrap import bootstrap_intervals, share_of_gap
from ctrkit.metrics.report import evaluate_scores
from ctrkit.objectives.objective import Objective
from ctrkit.request import read_requests
from ctrkit.run import Run
from ctrkit.summary import cheaper_choice, same_cost, summarize, table
from ctrkit.train_model import trained
from ctrkit.training.checkpoints import Checkpoints
from ctrkit.training.saved_training import CHECKPOINTS
from ctrkit_serving.scorer import Scorer
from tests import small_recipe
from tests.data import small_log
from tests.training import small_run

NETWORKS = ["light", "booster", "rocket_light", "rocket_booster"]


def changed(directory: Path, before: dict[str, int]) -> set[str]:
    """The first folders or files below a run that were written since."""
    after = times(directory)
    return {name for name in after.keys() | before.keys() if after.get(name) != before.get(name)}


def times(directory: Path) -> dict[str, int]:
    return {
        str(path.relative_to(directory)): path.stat().st_mtime_ns
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def checkpointed(changed: set[str]) -> set[str]:
    """Models of which a checkpoint was written or removed."""
    return {Path(name).parts[1] for name in changed if name.startswith("models/") and f"/{CHECKPOINTS}/" in name}


def weights(directory: Path, model: str) -> dict[str, torch.Tensor]:
    """All that the best checkpoint of a model has."""
    checkpoints = Checkpoints(directory / "models" / model / CHECKPOINTS)
    best = checkpoints.best()
    assert best is not None
    found = {name: torch.empty(spec.shape, dtype=spec.dtype) for name, spec in checkpoints.open(best).specs.items()}
    checkpoints.load(best, found)
    return found


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to change."""
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def opened(directory: Path, *overrides: str) -> tuple[Run, list[str]]:
    """The small recipe in a directory, and what it says."""
    said: list[str] = []
    recipe = load_recipe(small_recipe.write(directory.parent), overrides)
    return Run(recipe, directory, quiet=True, say=said.append), said


# --- what cannot be learnt


def test_a_model_that_cannot_be_built_is_refused_before_another_is_trained_and_the_log_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model 'rocket': shared_layers: light's layer 0 is .* give them the same"):
        _ = opened(tmp_path / "run", "models.rocket.shared_layers=[[0,0]]")[0].evaluation
    assert not (tmp_path / "run").exists()


def test_a_model_that_nothing_taught_is_refused(copy: Path) -> None:
    for _ in range(2):  # also when it finds its checkpoints again
        with pytest.raises(UserError, match="model 'light' has learnt nothing, every loss was zero in all steps"):
            opened(copy, "train.label_rate=1e-9")[0].train("light")
        assert not (copy / "models" / "light" / "result.json").exists()


def test_a_model_that_took_no_step_is_refused(tmp_path: Path) -> None:
    """Every impression of the training part weighs nothing."""
    rows = {"click": [0, 1] * 50, "user_id": [1, 1, 2, 2, 3] * 20, "ad_id": [1, 2, 3, 4] * 25}
    for part, weight in (("train", 0.0), ("valid", 1.0), ("test", 1.0)):
        (tmp_path / "log").mkdir(exist_ok=True)
        pq.write_table(pa.table({**rows, "w": [weight] * 100}), tmp_path / "log" / f"{part}.parquet")
    (tmp_path / "recipe.toml").write_text(f"""
name = "weightless"
data.path = "{tmp_path}/log"
columns = {{ label = "click", group = "user_id", weight = "w" }}
features = {{ user_id = {{ side = "user" }}, ad_id = {{ side = "item" }} }}
towers.light.hidden = [4]
models.light = {{ objective = "pointwise", tower = "light" }}
""")
    with pytest.raises(UserError, match=r"'light' has learnt nothing, .* no row that was trained on has a weight"):
        Run(load_recipe(tmp_path / "recipe.toml"), tmp_path / "run", quiet=True).train("light")
    assert not (tmp_path / "run" / "models" / "light" / "result.json").exists()


def test_a_hint_that_was_never_heard_is_said(copy: Path) -> None:
    run, said = opened(copy, "models.rocket.hint={gradient_share=0.3}")  # measured for longer than training lasts
    run.train("rocket")
    assert [line for line in said if "nothing was learnt from the loss 'hint' of 'rocket', which was zero" in line]
    run, said = opened(copy)
    run.train("rocket")
    assert not [line for line in said if "nothing was learnt" in line]


def test_settings_that_come_to_nothing_are_said(copy: Path) -> None:
    one_ad = ('features.category_id.side="context"', 'features.price.side="context"', "features.ad_id.min_count=9999")
    candidates = ("models.rocket.unexposed=1.0", "train.epochs=1")
    late = ("models.rocket.hint={weight=1.0,warmup_steps=1000}", "train.warmup_steps=120")
    run, said = opened(copy, *one_ad, *candidates, *late)
    steps = run.train("rocket")["steps"]
    (hint, rate, unexposed) = [line for line in said if "warmup_steps" in line or "one ad" in line]
    assert hint.startswith("  warning: models.rocket.hint.warmup_steps = 1,000, but training 'rocket' takes")
    assert f"takes {steps} steps: the hint ends at {steps / 1000:.2g} of what it is after its warm-up" in hint
    assert rate.startswith("  warning: train.warmup_steps = 120, but ")
    rows = run.log.rows("train")
    assert unexposed.startswith(f"  warning: models.rocket.unexposed: {rows:,} rows of the training part all show one")
    run, said = opened(copy, *candidates, f"models.rocket.hint={{warmup_steps={steps}}}")
    run.train("rocket")
    assert not [line for line in said if "warmup_steps" in line or "one ad" in line]


def test_a_hint_that_is_too_loud_is_named(copy: Path) -> None:
    with pytest.raises(UserError, match=r"lower train.lr .* or the weight of what makes the loss 'hint'\. There is"):
        opened(copy, "models.rocket.hint={weight=1e300}")[0].train("rocket")


# --- the figures


def test_the_summary_has_the_figures_that_were_promised(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary.keys() >= {"models", "gap_closed", "latency_ms", "parity_max_abs_diff"}
    assert list(summary["models"]) == [*NETWORKS, "oracle"]
    assert list(read_recipe(finished_run / "recipe.json").networks()) == NETWORKS
    for name, model in summary["models"].items():
        assert model.keys() >= {"gauc", "auc", "log_loss", "multiplications"}
        assert 0.0 < model["gauc"] < 1.0
        assert 0.0 < model["auc"] < 1.0
        assert model["log_loss"] > 0.0
        assert (model["multiplications"] is None) == (name == "oracle")
    oracle = summary["models"]["oracle"]
    assert all(oracle["log_loss"] < summary["models"][name]["log_loss"] for name in NETWORKS)
    assert summary["latency_ms"].keys() == {"light", "booster"}
    for latency in summary["latency_ms"].values():
        assert latency.keys() >= {"p50", "p95", "p99"}
        assert 0.0 < latency["p50"] <= latency["p95"]
        assert latency["ads"] == 20
    assert 0.0 <= summary["parity_max_abs_diff"] <= 1e-5
    assert summary["rows"] == {part: PreparedLog.open(finished_run / "data").rows(part) for part in summary["rows"]}
    assert summary["machine"].keys() == {"cpu", "cores", "python", "system"}


def test_multiplications_are_those_of_the_towers(finished_run: Path) -> None:
    models = json.loads((finished_run / "summary.json").read_text())["models"]
    width = 4 * 6 + 1  # six embeddings and the price
    light, booster = width * 8 + 8, width * 16 + 16 * 8 + 8
    assert {name: models[name]["multiplications"] for name in NETWORKS} == {
        "light": light, "rocket_light": light, "booster": booster, "rocket_booster": booster,
    }  # fmt: skip


def test_predictions_carry_slices_and_who_was_known(finished_run: Path) -> None:
    predictions = pq.read_table(finished_run / "predictions" / "test" / "rocket_light.parquet")
    assert predictions.column_names == ["label", "group", "device", "day", "group_in_train", "probability"]
    last_day = sorted((finished_run / "raw").rglob("day=*"))[-1]
    test = pq.read_table(next(last_day.glob("*.parquet")))
    assert {str(day) for day in predictions["day"].to_pylist()} == {last_day.name.removeprefix("day=")}
    for name, column in {"label": "click", "group": "user_id", "device": "device"}.items():
        assert predictions[name].to_pylist() == test[column].to_pylist()
    log = PreparedLog.open(finished_run / "data")
    known = set(log.read_columns("train", ["__group"])["__group"].to_pylist())
    assert predictions["group_in_train"].to_pylist() == [user in known for user in test["user_id"].to_pylist()]
    assert 0 < sum(predictions["group_in_train"].to_pylist()) < test.num_rows
    oracle = pq.read_table(finished_run / "predictions" / "test" / "oracle.parquet")
    assert oracle["probability"].to_pylist() == test["click_probability"].to_pylist()


@pytest.mark.parametrize("name", NETWORKS)
def test_metrics_are_those_of_the_predictions_that_are_kept(finished_run: Path, name: str) -> None:
    predictions = pq.read_table(finished_run / "predictions" / "test" / f"{name}.parquet")
    log = PreparedLog.open(finished_run / "data").read_columns("test", ["__label", "__group"])
    assert predictions["label"].to_pylist() == log["__label"].to_pylist()
    assert predictions["group"].to_pylist() == log["__group"].to_pylist()
    probability = predictions["probability"].to_numpy()
    assert np.unique(probability).size > 100
    report = evaluate_scores(predictions["label"].to_numpy(), probability, predictions["group"])
    networks = json.loads((finished_run / "evaluation.json").read_text())["networks"]
    assert {key: networks[name][key] for key in report.as_dict()} == report.as_dict()


def test_the_light_network_of_the_rocket_goes_online(finished_run: Path) -> None:
    bundle, booster = Bundle.load(finished_run / "bundle"), Bundle.load(finished_run / "bench" / "booster")
    summary = json.loads((finished_run / "summary.json").read_text())
    assert bundle.manifest.name == "rocket_light"
    assert bundle.manifest.multiplications == summary["models"]["rocket_light"]["multiplications"]
    assert bundle.manifest.metrics["gauc"] == summary["models"]["rocket_light"]["gauc"]
    assert booster.manifest.name == "booster"
    assert bundle.manifest.recipe["name"] == "small"


def test_latency_is_of_what_was_measured_and_of_towers_with_the_same_layers(finished_run: Path, tmp_path: Path) -> None:
    """Multiplications alone do not tell: norms and widths of the same number cost otherwise."""
    others = (
        'towers.patient={hidden=[8],lr=0.1,dropout=0.5}', 'models.patient={objective="pointwise",tower="patient"}',
        'towers.normed={hidden=[8],layer_norm=true}', 'models.normed={objective="pointwise",tower="normed"}',
        'models.slim={objective="slimmable",tower="light",widths=[0.5,1.0],multiple=4}',
        'models.pair={objective="mutual_learning",peers=["light","light"],serve="mean"}',
    )  # fmt: skip
    run, _ = opened(tmp_path / "run", *others)
    summary = json.loads((finished_run / "summary.json").read_text())
    models, light = summary["models"], summary["models"]["light"]
    assert summary["latency_ms"]["light"]["networks"] == ["light", "rocket_light"]
    assert summary["latency_ms"]["booster"]["networks"] == ["booster", "rocket_booster"]
    models |= dict.fromkeys(("patient", "normed", "slim_w1.0", "pair_peer0"), light)
    models |= {"slim_w0.5": {**light, "multiplications": 104}, "pair_mean": {**light, "multiplications": 416}}
    found = same_cost(run.recipe, models, "rocket_light")
    assert found == ["light", "rocket_light", "patient", "slim_w1.0", "pair_peer0"]
    assert same_cost(run.recipe, models, "pair_mean") == ["pair_mean"]
    summary["latency_ms"]["light"]["networks"] = found
    lines = {line.split()[0]: line.split() for line in table(summary).splitlines() if line}
    assert lines["patient"][-2] == lines["light"][-2] == f"{summary['latency_ms']['light']['p50']:.2f}"
    assert all(lines[name][-2:] == ["-", "-"] for name in ("normed", "slim_w0.5", "pair_mean"))


def test_light_and_booster_are_measured_with_the_same_item_table(copy: Path) -> None:
    parts = [
        pq.read_table(path, columns=["ad_id", "category_id", "price"]) for path in (copy / "raw").rglob("*.parquet")
    ]
    ads = copy.parent / "ads.parquet"
    pq.write_table(pa.concat_tables(parts).group_by("ad_id").aggregate([("category_id", "min"), ("price", "min")])
                   .rename_columns(["ad_id", "category_id", "price"]), ads)  # fmt: skip
    loose = ("export.int8=true", "export.max_gauc_change=1", "export.max_pcoc_change=1", "export.max_difference=1")
    run, _ = opened(copy, f'export.items="{ads}"', "export.item_key=ad_id", *loose)
    booster = run.booster_bundle
    assert booster is not None
    assert set(run.bundle.manifest.approximations) == {"int8"}
    assert booster.manifest.approximations == {}  # nobody serves it
    request = next(read_requests(run.log.requests))
    for bundle in (run.bundle, booster):
        scorer = Scorer.load(bundle.directory)
        scorer.score_request(request)
        assert scorer.item_table_counts.values == request.num_ads


def test_the_table_for_people(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    closed = {"rocket_light": {"value": 0.6, "low": 0.25, "high": None}, "distilled": None}
    shown = table({**summary, "gap_closed": closed})
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line}
    header = lines["network"]
    assert header[:6] == ["network", "GAUC", "95", "%", "AUC", "log"]
    light = summary["models"]["rocket_light"]
    low, high = light["gauc_interval"]
    assert low < light["gauc"] < high
    shown_light = [f"{light['gauc']:.4f}", f"[{low:.4f},", f"{high:.4f}]", f"{light['auc']:.4f}"]
    assert lines["rocket_light"][1:5] == shown_light
    assert lines["rocket_light"][-2] == f"{summary['latency_ms']['light']['p50']:.2f}"
    assert lines["rocket_booster"][-2] == f"{summary['latency_ms']['booster']['p50']:.2f}"
    assert lines["oracle"][-3:] == ["-", "-", "-"]
    assert "alone, these close: rocket_light 60% [25%, -]. Intervals" in shown
    assert "No gap in GAUC to close" in table({**summary, "gap_closed": {"rocket_light": None}})
    assert "gap" not in table({**summary, "gap_closed": {}})
    rival = {"exported": "rocket", "better_on_validation": "light", "monitor": "gauc"}
    assert "light costs no more and has the better gauc on validation: --set export.model=light" in table(
        summary | rival
    )
    assert "export.model" not in table(summary | rival | {"better_on_validation": None})


@pytest.mark.parametrize(
    ("users", "rows", "clicks", "little"),
    [(13, 35, 17, True), (12, 2000, 210, True), (500, 5000, 4951, True), (500, 5000, 50, False)],
)
def test_a_gauc_that_rests_on_little_is_said(
    finished_run: Path, users: int, rows: int, clicks: int, little: bool
) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    for metrics in summary["models"].values():
        metrics["coverage"] = {"groups_kept": users, "groups_left_out": 7, "impressions_kept": rows} | {
            "impressions_left_out": 9,
            "clicks_kept": clicks,
            "clicks_left_out": 0,
        }
    said = f"{users:,} of {users + 7:,} users have clicks and others, in {rows:,} rows with {clicks:,} clicks"
    assert (said in table(summary)) == little


@pytest.mark.parametrize(("light", "rocket", "best"), [(0.9, 0.5, "light"), (0.1, 0.5, "rocket")])
def test_best_ships_what_validation_likes_best_of_what_costs_least(
    copy: Path, monkeypatch: pytest.MonkeyPatch, light: float, rocket: float, best: str
) -> None:
    run, said = opened(copy, "export.model=best")
    values = {"light": light, "booster": 0.99, "rocket": rocket}  # the booster costs more
    ships = {"light": "", "booster": "", "rocket": "light"}
    monkeypatch.setattr(run, "train", lambda model: {"monitor": "gauc", "best": values[model], "ships": ships[model]})
    run.__dict__["evaluation"] = json.loads((copy / "evaluation.json").read_text())
    assert run.export_model == best
    assert f"export: {best} is best on validation of light {light:.4f} (gauc), rocket 0.5000 (gauc)" in said
    found = cheaper_choice(run)
    assert (found["better_on_validation"], found["chosen_by_validation"]) == (None, True)
    text = table(json.loads((copy / "summary.json").read_text()) | found)
    assert f"{best} goes online: of what costs least to serve, it has the best gauc on validation" in text


def test_an_ensemble_is_there_to_teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = 'models.four={objective="ensemble",members=["light","light"]}'
    values, ships = {"light": 0.5, "rocket": 0.4, "four": 0.9}, {"light": "", "rocket": "light", "four": "member1"}
    costs = dict.fromkeys(values, 10)
    for settings, chosen in (((extra, 'export.model="best"'), "light"), ((extra, 'export.model="four"'), "four")):
        run, _ = opened(tmp_path / chosen, *settings)
        monkeypatch.setattr(
            run, "train", lambda model: {"monitor": "gauc", "best": values[model], "ships": ships[model]}
        )
        monkeypatch.setattr(run, "serving_costs", lambda: costs)
        assert run.export_model == chosen
    assert run.best_on_validation("four") == "four"
    assert run.best_on_validation("rocket") == "light"


@pytest.mark.parametrize(("light", "better"), [(0.9, "light"), (0.1, None)])
def test_a_model_as_cheap_and_better_on_validation_is_named(
    copy: Path, monkeypatch: pytest.MonkeyPatch, light: float, better: str | None
) -> None:
    run, _ = opened(copy)
    best = {"light": light, "booster": 0.99, "rocket": 0.5}  # the booster costs more
    ships = {"light": "", "booster": "", "rocket": "light"}
    monkeypatch.setattr(run, "train", lambda model: {"monitor": "gauc", "best": best[model], "ships": ships[model]})
    run.__dict__["evaluation"] = json.loads((copy / "evaluation.json").read_text())
    found = cheaper_choice(run)
    expected = {"exported": "rocket", "monitor": "gauc", "better_on_validation": better}
    assert found == {**expected, "chosen_by_validation": False}


def test_intervals_and_the_gap_are_those_of_the_metrics(finished_run: Path) -> None:
    evaluation = json.loads((finished_run / "evaluation.json").read_text())
    read = {name: pq.read_table(finished_run / f"predictions/test/{name}.parquet") for name in evaluation["networks"]}
    label, users = read["light"]["label"].to_numpy(), read["light"]["group"]
    scores = {name: table["probability"].to_numpy() for name, table in read.items()}
    for name, metrics in evaluation["networks"].items():
        expected = bootstrap_intervals(label, scores[name], users, metrics=["gauc"])["gauc"]
        assert metrics["gauc_interval"] == [expected.low, expected.high]
    ratio = share_of_gap(label, scores["light"], scores["rocket_light"], scores["booster"], users)
    closed = None if ratio is None else {"value": ratio.value, "low": ratio.low, "high": ratio.high}
    assert evaluation["gap_closed"]["rocket_light"] == closed
    held_out = HeldOut(PreparedLog.open(finished_run / "data"), "test")
    half = (scores["light"] + scores["oracle"]) / 2
    ratio = share_of_gap(label, scores["light"], half, scores["oracle"], users)
    assert ratio is not None
    closed = {"value": ratio.value, "low": ratio.low, "high": ratio.high}
    assert held_out.share_of_gap(scores["light"], half, scores["oracle"]) == closed
    assert 0 < ratio.value < 1


def test_without_users_of_both_classes_or_with_weights_there_is_no_interval(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = HeldOut(PreparedLog.open(finished_run / "data"), "test")
    score = held_out.oracle
    assert score is not None
    assert held_out.interval(score) is not None
    monkeypatch.setattr(HeldOut, "_label", np.zeros(len(held_out)))
    assert held_out.interval(score) is None
    monkeypatch.undo()
    monkeypatch.setattr("ctrkit.evaluation.held_out.ROWS_IN_MEMORY", len(held_out) - 1)
    assert held_out.interval(score) is None


def test_names_of_networks() -> None:
    assert network_name("rocket", "light") == "rocket_light"
    assert network_name("light", "") == "light"


# --- what is done is not done again


def test_nothing_is_done_twice(copy: Path) -> None:
    before = times(copy)
    run, said = opened(copy)
    summarize(run)
    assert changed(copy, before) == {"summary.json", "recipe.json"}
    assert [line for line in said if "up to date" not in line] == [
        "bench: light, booster, 20 ads a request, one thread"
    ]


def test_other_epochs_train_again_and_prepare_nothing(copy: Path) -> None:
    before = times(copy)
    run, said = opened(copy, "train.epochs=1")
    assert run.evaluation["networks"]["light"]["rows"] == run.log.rows("test")
    touched = changed(copy, before)
    assert not {name for name in touched if name.startswith(("data", "raw"))}
    assert checkpointed(touched) == {"light", "booster", "rocket"}
    assert {"evaluation.json", "predictions/test/light.parquet"} < touched
    result = json.loads((copy / "models" / "light" / "result.json").read_text())
    assert result["steps"] == -(-run.log.rows("train") // 256)
    assert f"prepare: {copy / 'data'} is up to date" in said


def test_one_model_that_changed_is_trained_again(copy: Path) -> None:
    before = times(copy)
    run, _ = opened(copy, "models.rocket.hint.weight=0.5")
    _ = run.evaluation
    trained = {Path(name).parts[1] for name in changed(copy, before) if name.startswith("models")}
    assert trained == {"rocket"}


def test_settings_that_change_nothing_train_nothing(copy: Path) -> None:
    before = times(copy)
    run, _ = opened(copy, "bench.ads=10", "train.tensorboard=true", "train.keep_checkpoints=3", "name=other")
    _ = run.evaluation
    assert changed(copy, before) == {"recipe.json"}


def test_other_data_is_prepared_again(copy: Path) -> None:
    before = times(copy)
    run, said = opened(copy, "data.synthetic.rows=2000", "train.epochs=1")
    run.train("light")
    touched = changed(copy, before)
    assert "data/manifest.json" in touched
    assert checkpointed(touched) == {"light"}
    assert run.log.rows("train") < 1500
    assert said[0] == f"prepare: synthetic log -> {copy / 'data'}"


def test_another_schema_is_prepared_again(copy: Path) -> None:
    before = times(copy)
    run, _ = opened(copy, "features.ad_id.min_count=3")
    _ = run.log
    touched = changed(copy, before)
    assert "data/manifest.json" in touched
    assert not {name for name in touched if name.startswith("raw")}  # the raw log is the same


def test_damaged_results_are_made_again(copy: Path) -> None:
    (copy / "data" / "test" / "part-00000.parquet").write_bytes(b"")
    run, said = opened(copy)
    assert run.log.rows("test") > 0
    assert any("0 bytes" in line and "preparing again" in line for line in said)
    model = copy / "bundle" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    run, said = opened(copy)
    assert run.bundle.manifest.name == "rocket_light"
    assert any("model.onnx" in line and "exporting again" in line for line in said)
    (copy / "evaluation.json").write_text("{")
    (copy / "models" / "light" / "result.json").write_text("[1")
    run, said = opened(copy)
    assert run.evaluation["networks"].keys() == {*NETWORKS, "oracle"}
    assert any(line.startswith("evaluate: ") and "up to date" not in line for line in said)


def test_an_evaluation_that_stopped_half_way_is_made_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its old figures do not vouch for the scores of other weights that it has written by then."""
    light = copy / "predictions" / "test" / "light.parquet"
    scores = pq.read_table(light)["probability"]
    kept = copy.with_name("kept")
    shutil.copytree(copy / "models", kept)

    save = HeldOut.save

    def saved(held_out: HeldOut, path: Path, probability: Any) -> None:
        if path.name == "booster.parquet":
            raise UserError("the disk is full")
        save(held_out, path, probability)

    with monkeypatch.context() as patch:
        patch.setattr(HeldOut, "save", saved)
        run, _ = opened(copy, "train.epochs=1", "train.lr=0.05")
        with pytest.raises(UserError, match="the disk is full"):
            _ = run.evaluation
    assert not pq.read_table(light)["probability"].equals(scores)
    shutil.rmtree(copy / "models")
    shutil.copytree(kept, copy / "models")  # back to the settings, and the weights, of before
    del run
    run, said = opened(copy)
    _ = run.evaluation
    assert pq.read_table(light)["probability"].equals(scores), said
    light.unlink()
    del run
    run, _ = opened(copy)
    assert run.evaluation["networks"].keys() >= {"light"}
    assert pq.read_table(light)["probability"].equals(scores)


def test_a_result_does_not_vouch_for_weights_of_another_recipe(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # trained with one recipe, killed while training with another, then called with the first again
    expected = weights(copy, "light")
    run, _ = opened(copy, "train.lr=0.05")
    with monkeypatch.context() as patch:
        patch.setattr("ctrkit.run.write_json", _killed)
        run.__dict__["log"] = PreparedLog.open(copy / "data")
        with pytest.raises(KeyboardInterrupt):
            run.train("light")
    assert not equal(weights(copy, "light"), expected)
    run, _ = opened(copy)
    run.train("light")
    assert equal(weights(copy, "light"), expected)


def test_without_the_best_weights_a_result_is_worth_nothing(copy: Path) -> None:
    expected = weights(copy, "light")
    shutil.rmtree(copy / "models" / "light" / CHECKPOINTS)
    run, said = opened(copy)
    result = run.train("light")
    assert any(line.startswith("train light: ") and "up to date" not in line for line in said)
    assert result["steps"] > 0
    assert equal(weights(copy, "light"), expected)


def test_the_last_checkpoints_are_kept_beside_the_best(copy: Path) -> None:
    run, _ = opened(copy, "train.lr=0.01", "train.keep_checkpoints=3", "train.patience=100", "train.epochs=3")
    result = run.train("light")
    place = copy / "models" / "light"
    steps = [json.loads(line)["step"] for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 6
    kept = sorted({*steps[-3:], result["best_step"]})
    assert [path.name for path in sorted((place / CHECKPOINTS).iterdir())] == [f"step-{step:08d}" for step in kept]


def test_an_older_best_does_not_stand_for_a_damaged_one(copy: Path) -> None:
    settings = ("train.lr=0.001", "train.keep_checkpoints=3", "train.patience=100", "train.epochs=3")
    result = opened(copy, *settings)[0].train("light")
    expected = weights(copy, "light")
    place = copy / "models" / "light" / CHECKPOINTS
    shutil.rmtree(place / f"step-{result['best_step']:08d}")
    older = Checkpoints(place).best()
    assert older is not None
    assert older.step < result["best_step"] == result["steps"]
    assert not equal(weights(copy, "light"), expected)
    run, said = opened(copy, *settings)
    assert not run.is_trained("light")
    run.train("light")
    assert any(f"goes on from step {older.step}" in line for line in said)
    assert equal(weights(copy, "light"), expected)


def _killed(path: Path, content: Any) -> None:
    if path.name == "result.json":
        raise KeyboardInterrupt
    write_json(path, content)


LONG = ["models.rocket.train.epochs=40", "models.rocket.train.patience=1000"]


def test_a_killed_training_goes_on_to_the_same_figures(copy: Path, tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(copy, undisturbed)
    command = [sys.executable, "-m", "ctrkit.cli", "train", str(small_recipe.write(tmp_path)), "--model", "rocket"]
    command += ["--out", str(copy), "--quiet", *(part for one in LONG for part in ("--set", one))]
    rocket = copy / "models" / "rocket"
    old = (rocket / "metrics.jsonl").stat().st_mtime_ns
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not _newer(rocket / "metrics.jsonl", old):
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        _, stderr = process.communicate()
    assert process.returncode == -signal.SIGKILL, stderr
    assert not (rocket / "result.json").exists()
    steps = len((rocket / "metrics.jsonl").read_text().splitlines()) if (rocket / "metrics.jsonl").exists() else 1
    assert steps < 80  # not finished
    run, said = opened(copy, *LONG)
    summary = summarize(run)
    other, _ = opened(undisturbed, *LONG)
    assert summary["models"] == other.evaluation["networks"]
    assert any(line.startswith("train rocket: ") and "up to date" not in line for line in said)
    assert len((rocket / "metrics.jsonl").read_text().splitlines()) == 80
    assert any(line.startswith("  goes on from step ") for line in said)
    assert equal(weights(copy, "rocket"), weights(undisturbed, "rocket"))
    left = [path.name for path in (*rocket.iterdir(), *(rocket / CHECKPOINTS).iterdir()) if path.name.startswith(".")]
    assert left == [".encoding.lock"]


def _newer(path: Path, than: int) -> bool:
    return path.exists() and path.stat().st_mtime_ns != than


# --- other logs


def test_weights_of_the_log_weigh_loss_and_metrics(tmp_path: Path) -> None:
    log = small_log.write_parts(tmp_path / "log", small_log.table(600))
    features = {name: spec for name, spec in small_log.FEATURES.items() if name in ("city", "item_id", "price")}
    recipe = load_recipe(small_recipe.write(tmp_path)).model_dump(exclude_unset=True)
    recipe |= {
        "data": {"path": str(log)},
        "columns": {"label": "click", "group": "user_id", "weight": "importance"},
        "features": features,
    }
    run = Run(type(load_recipe(small_recipe.write(tmp_path))).model_validate(recipe), tmp_path / "run", quiet=True)
    networks = run.evaluation["networks"]
    assert list(networks) == NETWORKS  # no oracle: nobody knows the truth
    columns = run.log.read_columns("test", ["__label", "__group", "__weight"])
    predictions = pq.read_table(tmp_path / "run" / "predictions" / "test" / "light.parquet")
    assert predictions["weight"].to_pylist() == columns["__weight"].to_pylist()
    report = evaluate_scores(
        columns["__label"].to_numpy(), predictions["probability"].to_numpy(), columns["__group"],
        columns["__weight"].to_numpy(),
    )  # fmt: skip
    assert networks["light"]["gauc"] == report.gauc
    assert networks["light"]["log_loss"] == report.log_loss


def test_a_light_model_alone(copy: Path) -> None:
    recipe = load_recipe(small_recipe.write(copy.parent))
    alone = recipe.model_copy(update={"models": {"light": recipe.models["light"]}})
    run = Run(alone, copy, quiet=True)
    summary = summarize(run)
    assert list(summary["models"]) == ["light", "oracle"]
    assert summary["latency_ms"].keys() == {"light"}
    assert summary["gap_closed"] == {}
    assert "light" in table(summary)
    assert run.booster_bundle is None


# --- what goes wrong


def test_row_groups_that_cannot_be_read_are_left_out_and_counted_if_asked(copy: Path) -> None:
    log = PreparedLog.open(copy / "data")
    file = log.files("train")[0]
    group_rows = pq.read_metadata(file).row_group(1).num_rows
    small_run.damage_row_group(file, 1, "price")
    run, _ = opened(copy, "train.seed=1")
    with pytest.raises(UserError, match=rf"{file.name}, row group 1: cannot be read"):
        run.train("light")
    del run  # and its lock
    run, said = opened(copy, "train.skip_unreadable=true")
    result = run.train("light")
    epochs, rest = divmod(result["steps"], -(-log.rows("train") // 256))
    assert (epochs, rest) == (2, 0)
    assert result["unreadable_rows"] == 2 * group_rows  # in each epoch
    [warning] = [line for line in said if "row group 1" in line]
    assert warning.startswith("  warning: ")
    assert warning.startswith("  warning: its rows are left out: ")
    del run
    (copy / "models" / "light" / "result.json").unlink()  # as if it had been killed before it was written
    run, _ = opened(copy, "train.skip_unreadable=true")
    assert run.train("light") == result
    assert json.loads((copy / "models" / "booster" / "result.json").read_text())["unreadable_rows"] == 0
    del run  # what looks at a sample of the log leaves them out too
    run, _ = opened(copy, "train.skip_unreadable=true", "models.rocket.unexposed=1.0")
    assert run.train("rocket")["unreadable_rows"] >= group_rows


@pytest.mark.parametrize("device", ["cuda:17", "no such device"])
def test_a_device_that_is_not_there(copy: Path, device: str) -> None:
    before = times(copy)
    run, _ = opened(copy, f'train.device="{device}"')
    with pytest.raises(UserError, match=f"train.device '{device}': torch cannot use it on this machine"):
        run.train("light")
    assert changed(copy, before) == {"recipe.json"}


def test_a_device_that_is_not_there_is_told_before_the_log_is_prepared(tmp_path: Path) -> None:
    run, _ = opened(tmp_path / "run", 'models.rocket.train={device="cuda:17"}')
    with pytest.raises(UserError, match=r"train\.device 'cuda:17': torch cannot use it on this machine"):
        _ = run.evaluation
    assert not (tmp_path / "run").exists()


def test_what_was_trained_elsewhere_is_used_without_its_device(copy: Path) -> None:
    result = copy / "models" / "light" / "result.json"
    run, _ = opened(copy, 'train.device="cuda:17"')
    done = {**json.loads(result.read_text()), "fingerprint": run._model_fingerprint("light")}
    result.write_text(json.dumps(done))  # as a machine with so many GPUs would have written it
    assert run.train("light") == done


def test_tables_that_no_memory_holds_are_refused_before_they_are_made(copy: Path) -> None:
    run, _ = opened(copy, "features.user_id.buckets=2_000_000_000", "embedding.dims.user_id=4096")
    before = times(copy / "models")
    with pytest.raises(UserError, match=r"most of it is for table 'user_id' \(2,000,000,002 rows of width 4096\)"):
        run.train("light")
    assert times(copy / "models") == before


def test_the_costliest_network_is_found_without_building_any(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = opened(copy)
    shutil.rmtree(copy / "bench")
    assert run.bundle.manifest.name == "rocket_light"  # on disk
    built = list[str]()

    def watched(recipe: Recipe, model: str, *place: Any) -> Objective:
        built.append(model)
        return trained(recipe, model, *place)

    monkeypatch.setattr("ctrkit.run.trained", watched)
    bundle = run.booster_bundle
    assert bundle is not None
    assert bundle.manifest.name == "booster"
    assert built == ["booster"]  # the one that is exported


def test_a_run_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    run, _ = opened(tmp_path / "run")
    with pytest.raises(UserError, match=r"run: cannot be written"):
        _ = run.log


def test_tensorboard(copy: Path) -> None:
    pytest.importorskip("tensorboard")
    run, _ = opened(copy, "train.tensorboard=true", "train.epochs=1")
    run.train("light")
    events = list((copy / "models" / "light" / "tensorboard").iterdir())
    assert len(events) == 1
    assert b"valid/model/gauc" in events[0].read_bytes()


def test_tensorboard_that_is_not_installed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run, _ = opened(copy, "train.tensorboard=true", "train.epochs=1")
    with pytest.raises(UserError, match=r"train\.tensorboard needs the package tensorboard"):
        run.train("light")


def test_another_booster_leaves_the_light_tower_alone(copy: Path) -> None:
    before = times(copy)
    run, _ = opened(copy, "towers.booster.hidden=[12]")
    _ = run.evaluation
    rewritten = changed(copy, before)
    assert "booster" in checkpointed(rewritten)
    assert not any(name.startswith("models/light/") for name in rewritten)


def test_other_weights_are_evaluated_and_exported_again(copy: Path) -> None:
    place = copy / "models" / "rocket" / "result.json"
    write_json(place, {**json.loads(place.read_text()), "weights": "others"})
    before = times(copy)
    run, _ = opened(copy)
    _ = run.bundle
    assert {"evaluation.json", "bundle/manifest.json"} <= changed(copy, before)


def test_two_runs_do_not_share_a_directory(copy: Path) -> None:
    first, _ = opened(copy)
    _ = first.log
    second, _ = opened(copy, "train.seed=1")
    with pytest.raises(UserError, match="another process is writing it"):
        _ = second.log


def test_a_monitor_that_validation_does_not_define_stops_before_the_first_step(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = opened(copy, "train.seed=1")
    before = times(copy / "models")
    read = PreparedLog.read_columns

    def one_class(log: PreparedLog, part: Part, names: Sequence[str]) -> pa.Table:
        table = read(log, part, names)
        return table.set_column(0, "__label", pa.array(np.zeros(len(table), np.float32)))

    monkeypatch.setattr(PreparedLog, "read_columns", one_class)
    with pytest.raises(UserError, match="'gauc' is not defined on the validation part"):
        run.train("light")
    assert times(copy / "models") == before
