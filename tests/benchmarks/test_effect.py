"""The effect benchmark: methods tuned alike, taught by what was chosen, judged in pairs."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import effect, why
from benchmarks.effect_methods import Experiment
from benchmarks.effect_scores import Row, picture
from ctrkit.atomic import locked
from ctrkit.errors import UserError
from ctrkit.training.code_digest import code_digest
from tests import networks, small_recipe

METHODS = """
baseline = "light"
default = "taught"
gap = "booster"

[methods.light]
objective = "pointwise"
tower = "light"
trials = [{}, { "train.lr" = 0.01 }]

[methods.booster]
objective = "pointwise"
tower = "booster"
trials = [{ "train.lr" = 0.01 }, {}]

[methods.taught]
objective = "distillation"
student = "light"
teachers = ["booster"]
trials = [{}, { "hint.weight" = 2.0 }]

[methods.peers]
objective = "mutual_learning"
peers = ["light", "light"]
ablation = true

[methods.mean]
objective = "mutual_learning"
peers = ["light", "light"]
serve = "mean"
ablation = true
"""


def experiment(folder: Path, text: str = METHODS, only: list[str] | None = None) -> Experiment:
    folder.mkdir(exist_ok=True)
    (folder / "methods.toml").write_text(text)
    return Experiment.load(small_recipe.write(folder), folder / "methods.toml", [], only)


def test_trials_are_models_with_their_settings(tmp_path: Path) -> None:
    before = experiment(tmp_path).with_chosen({"light": 1})
    found = before.with_chosen({"booster": 0})
    assert before.chosen == {"light": 1}
    recipe = found.build([("taught", 0), ("taught", 1)], seed=7)
    assert list(recipe.models) == ["light.1", "booster.0", "taught.0", "taught.1"]
    assert recipe.train_config("light.1").lr == recipe.train_config("booster.0").lr == 0.01
    assert recipe.models["taught.1"].hint.weight == 2.0  # type: ignore[union-attr]
    assert recipe.models["taught.0"].taught_by == ("booster.0",)  # the trial that was chosen
    assert recipe.train.seed == 7
    assert recipe.export_model == "light.1"


def test_a_layer_hint_of_a_rocket_is_its_own_boosters(tmp_path: Path) -> None:
    hint = '[{ layer = 0, teacher_layer = 0, teacher = "booster" }]'
    rocket = '[methods.rocket]\nobjective = "rocket_launching"\nlight = "light"\nbooster = "booster"\n'
    taught = '[methods.hinted]\nobjective = "distillation"\nstudent = "light"\nteachers = ["booster"]\n'
    ends = f"layer_hints = {hint}\nablation = true\n"
    found = experiment(tmp_path, f"{METHODS}{rocket}{ends}{taught}{ends}").with_chosen({"light": 0, "booster": 1})
    assert found.settings("rocket", 0)["layer_hints"][0]["teacher"] == "booster"
    assert found.settings("hinted", 0)["layer_hints"][0]["teacher"] == "booster.1"


def test_a_methods_file_that_is_wrong_is_refused(tmp_path: Path) -> None:
    fewer = METHODS.replace('trials = [{ "train.lr" = 0.01 }, {}]', "trials = [{}]")
    with pytest.raises(
        UserError, match=r"every method gets as many trials as the others, but they have .*'booster': 1"
    ):
        experiment(tmp_path, fewer)
    with pytest.raises(UserError, match=r"none\.toml: no such file; copy one of benchmarks/effect"):
        Experiment.load(small_recipe.write(tmp_path), tmp_path / "none.toml", [], None)
    with pytest.raises(UserError, match="has no method 'ligth'"):
        experiment(tmp_path, only=["ligth"])
    wrong = experiment(tmp_path, METHODS.replace("hint.weight", "hint.wieght"))
    wrong = wrong.with_chosen({"light": 0, "booster": 0})
    with pytest.raises(UserError, match=r"hint\.wieght: unknown key"):
        wrong.build([("taught", 1)], 0)


def test_the_gap_is_to_a_booster_that_could_serve(tmp_path: Path) -> None:
    def privileged(folder: Path, where: str) -> None:
        text = METHODS.replace('tower = "booster"', 'tower = "seer"')
        seer = "[towers.seer]\nhidden = [8]\nprivileged = true\n"
        folder.mkdir()
        (folder / "methods.toml").write_text(text + (seer if where == "methods" else ""))
        recipe = small_recipe.write(folder)
        recipe.write_text(recipe.read_text() + (seer if where == "recipe" else ""))
        Experiment.load(recipe, folder / "methods.toml", [], None)

    for where in ("methods", "recipe"):
        with pytest.raises(UserError, match="names a booster that sees privileged features"):
            privileged(tmp_path / where, where)


def test_readings_of_the_test_part_are_counted_by_all_that_the_models_depend_on(tmp_path: Path) -> None:
    def count(*overrides: str, seeds: int = 2, log: str = "a log", only: list[str] | None = None) -> int:
        found = Experiment.load(small_recipe.write(tmp_path), tmp_path / "methods.toml", overrides, only)
        found = found.with_chosen(dict.fromkeys(found.methods, 0))
        options = argparse.Namespace(quick=False, seeds=seeds, tune_seeds=1, workers=1, tune_only=False, clock=False)
        return effect.Bench(found, tmp_path, options)._count_reading(log)

    (tmp_path / "methods.toml").write_text(METHODS)
    assert [count(), count()] == [1, 1]
    assert count("bench.ads=10") == 1  # no model depends on it
    assert count("train.table_l2=0.1") == 2  # tuned by hand: looked at once more
    assert count("towers.light.hidden=[4]") == 3
    assert count(log="another log") == 4
    assert count(seeds=1) == 5
    assert count(only=["booster"]) == 6
    assert count("train.table_l2=0.1") == 6
    older = {"readings": [[{"light": {"objective": "pointwise", "tower": "light"}}, [0, 1]]]}
    (tmp_path / "tested.json").write_text(json.dumps(older))  # does not say by which recipe
    assert [count(only=["light"]), count("train.table_l2=0.1", only=["light"])] == [1, 2]


def test_a_small_experiment_end_to_end(tmp_path: Path) -> None:
    recipe = small_recipe.write(tmp_path)
    (tmp_path / "methods.toml").write_text(METHODS)
    arguments = [str(recipe), "--methods", str(tmp_path / "methods.toml"), "--seeds", "2", "--clock"]
    arguments += ["--runs", str(tmp_path)]
    effect.main([*arguments, "--out", str(tmp_path / "effect.json")])
    found = json.loads((tmp_path / "effect.json").read_text())
    assert found["seeds"] == [0, 1]
    assert (tmp_path / "effect_gains.svg").read_text().count("taught") > 0
    assert found["milliseconds"].keys() == {"light", "booster"}
    for method, trials in found["tuning"].items():
        seen = [json.loads((tmp_path / f"small-effect/seed0/models/{method}.{i}/result.json").read_text())["best"]
                for i in range(len(trials))]  # fmt: skip
        assert [trial["values"] for trial in trials] == [[best] for best in seen]
    gauc = {m: of["shipped"]["gauc"]["value"] for m, of in found["methods"].items()}
    gains = {m: of["shipped"]["gain"] for m, of in found["methods"].items()}
    assert gains["light"] == {"value": 0, "low": 0, "high": 0}
    for method in ("booster", "taught", "peers"):
        assert gains[method]["value"] == pytest.approx(gauc[method] - gauc["light"])
        assert gains[method]["low"] <= gains[method]["value"] <= gains[method]["high"]
    peers = found["methods"]["peers"]
    shipped = [peers["networks"][role]["runs"][seed]["gauc"] for seed, role in enumerate(peers["ships"])]
    assert gauc["peers"] == pytest.approx(np.mean(shipped))  # of each seed the peer that ships there
    assert found["best"] == "taught"  # the booster costs more, the peers are an ablation
    assert found["readings_of_the_test_part"] == 1
    assert peers["mean_of_all"]["multiplications"] == 2 * peers["shipped"]["multiplications"]
    mean = found["methods"]["mean"]
    assert mean["ships"] == ["mean", "mean"]
    assert mean["mean_of_all"]["multiplications"] == peers["mean_of_all"]["multiplications"]
    assert mean["mean_of_all"]["gauc"]["value"] == pytest.approx(gauc["mean"], abs=1e-4)
    assert found["gain"] == gains[found["best"]]
    assert found["gain_default"] == gains["taught"]
    assert found["code"] == [code_digest()]
    assert "path" not in found["recipe_settings"]["data"]
    why.main(
        [str(tmp_path / "effect.json"), *arguments[:3], "--runs", str(tmp_path), "--out", str(tmp_path / "why.json")]
    )
    looked = json.loads((tmp_path / "why.json").read_text())["methods"]
    assert looked["peers"]["cka"].keys() == {"peer0", "peer1"} - (
        {*peers["ships"]} if len({*peers["ships"]}) == 1 else set()
    )
    assert looked["light"]["churn"] > 0
    assert looked["mean"]["cka"].keys() == {"peer0", "peer1"}


def test_experiments_that_share_a_prepared_log_wait_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "methods.toml").write_text(METHODS)
    arguments = [
        str(small_recipe.write(tmp_path)),
        "--methods",
        str(tmp_path / "methods.toml"),
        "--runs",
        str(tmp_path),
    ]
    with (
        locked(tmp_path / "small-effect" / "experiment"),
        pytest.raises(SystemExit, match="another process is writing it; wait for that one"),
    ):
        effect.main(arguments)
    assert not (tmp_path / "small-effect" / "data").exists()


def test_a_method_costs_what_its_costliest_seed_ships() -> None:
    interval = SimpleNamespace(value=0.0, low=0.0, high=0.0, difference=0.0, p_value=1.0)
    scores: Any = SimpleNamespace(interval=lambda _: interval, against_baseline=lambda _: interval)
    trained = [{"networks": {"m_small": {"multiplications": 10}, "m_large": {"multiplications": 90}}}] * 2
    assert Row(scores, trained, "m", ["small", "large"]).as_dict()["multiplications"] == 90


def test_a_gain_is_told_from_chance_if_it_is_among_all_that_are_shown() -> None:
    gain = {"value": 0.01, "low": 0.001, "high": 0.019}
    methods = {"light": 1.0, "a": 0.012, "b": 0.03, "c": 0.04}  # adjusted .036, .06, .06; each interval leaves out 0
    rows = {name: {"shipped": {"gain": gain, "p_value": p}} for name, p in methods.items()}
    shown = picture({"rows": {"test": 5}, "users": 2, "baseline": "light", "methods": rows})
    assert [(each["name"], each["told"]) for each in shown["metrics"][0]["variants"]] == [
        ("a", True), ("b", False), ("c", False)
    ]  # fmt: skip


def test_linear_cka() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(500, 6, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    assert why.linear_cka(a, 3 * a @ rotation + 5) == pytest.approx(1.0)
    assert why.linear_cka(a, torch.randn(500, 4, generator=generator)) < 0.1


def test_noise_leaves_the_weights_as_they_were() -> None:
    network, batch = networks.network(), networks.batch(64)
    before = [parameter.clone() for parameter in network.parameters()]
    rises = why.noise_rise(network, [batch])
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert abs(rises[0.05]) < abs(rises[0.4])
    unlabelled = replace(batch, label_B=torch.where(torch.arange(64) < 32, batch.label_B, torch.nan))
    heavier = replace(batch, weight_B=torch.where(torch.arange(64) < 32, 1.0, 0.0))
    assert why.noise_rise(network, [unlabelled]) == pytest.approx(why.noise_rise(network, [heavier]), abs=1e-5)
    assert why.noise_rise(network, [unlabelled]) != pytest.approx(rises, abs=1e-5)
    assert np.isfinite(list(rises.values())).all()
