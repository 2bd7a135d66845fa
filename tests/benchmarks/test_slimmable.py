"""The benchmark of slimmable nets: its models, what is compared, and how latency is fitted."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import slimmable, slimmable_costs
from benchmarks.slimmable_models import WIDTHS, Plan, _as_slimmable
from ctrkit.config.models import PointwiseConfig, SlimmableConfig
from ctrkit.config.recipe import load_recipe
from ctrkit.errors import UserError
from ctrkit.nn.slimmable import SlimmableMLP
from ctrkit.run import Run
from ctrkit.slimming.measured_cost import MeasuredCost
from ctrkit.slimming.slim import Slim
from ctrkit.training.saved_training import SavedTraining
from ctrkit.training.trainer import Trainer
from tests import networks, small_recipe


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan.of(load_recipe(small_recipe.write(tmp_path)), "booster", {"narrow_to_tables": 0.5, "multiple": 2})


def test_every_width_has_a_tower_of_the_same_layers_alone(plan: Plan) -> None:
    recipe = plan.with_models(3, ["main"], {})
    assert recipe.train.seed == 3
    assert list(recipe.models) == [*(f"alone_{role}" for role in WIDTHS), "slim"]
    tower = SlimmableMLP(5, (16, 8), multiple=2)
    for role, width in WIDTHS.items():
        model = recipe.models[f"alone_{role}"]
        assert isinstance(model, PointwiseConfig)
        assert tuple(recipe.towers[model.tower].hidden) == tower.channels(width)
        assert recipe.towers[model.tower].dropout == 0.1
    slim = recipe.models["slim"]
    assert isinstance(slim, SlimmableConfig)
    assert (slim.tower, slim.narrow_to_tables, tuple(slim.fractions)) == ("booster", 0.5, tuple(WIDTHS))


def test_parts_add_their_models(plan: Plan) -> None:
    recipe = plan.with_models(0, ["main", "ablations", "autoslim", "frontier"], {"auto_w0.5": [6, 8]})
    assert {"bn_shared", "bn_switchable", "bn_universal", "random", "no_distillation"} <= recipe.models.keys()
    tuned = recipe.models["auto_w0.5_tuned"]
    assert isinstance(tuned, PointwiseConfig)
    assert tuned.slice_of == "slim"
    assert recipe.towers[tuned.tower].hidden == [6, 8]
    assert {"rocket", "booster"} <= recipe.models.keys()
    assert recipe.export_model == "slim"


def test_a_tower_that_is_not_there(plan: Plan) -> None:
    with pytest.raises(UserError, match="no tower of kind mlp of that name"):
        Plan.of(plan.recipe, "none", {})


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_tower_alone_can_be_sliced(batch_norm: bool) -> None:
    network = networks.network(batch_norm=batch_norm)
    batch = networks.batch()
    network(batch)  # statistics that are not what they begin as
    found = _as_slimmable(network.eval())
    torch.testing.assert_close(found(batch), network(batch))
    assert isinstance(found.tower, SlimmableMLP)
    assert found.tower.slice((4, 2), statistics=False).hidden_widths == (4, 2)


def test_what_is_compared() -> None:
    scores = dict.fromkeys(["alone_w0.5", "slim w0.5", "slim auto_w0.5 slice", "auto_w0.5_tuned", "auto_w0.5_scratch"])
    assert list(slimmable._pairs(scores, {"auto_w0.5": [6, 8]})) == [
        ("alone_w0.5", "slim w0.5"),
        ("slim w0.5", "slim auto_w0.5 slice"),
        ("alone_w0.5", "auto_w0.5_tuned"),
        ("alone_w0.5", "auto_w0.5_scratch"),
        ("auto_w0.5_scratch", "auto_w0.5_tuned"),
    ]


def test_what_is_kept_is_of_these_settings_and_this_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoSlim's towers are of a latency, so of a number of ads; scores are of weights on a test part."""
    asked: list[int] = []

    def measured_cost(slim: Slim, ads: int, repeats: int) -> MeasuredCost:
        asked.append(ads)
        return MeasuredCost([(16, 8)], [1.0])

    monkeypatch.setattr(Slim, "measured_cost", measured_cost)
    values: dict[str, Any] = {
        "set": ["train.epochs=1"],
        "slim": ["multiple=2"],
        "tower": "booster",
        "seeds": 1,
        "quick": False,
    }
    options = argparse.Namespace(**values, recipe=small_recipe.write(tmp_path), parts=["autoslim"], runs=tmp_path)
    for ads, expected in ((20, [20]), (20, [20]), (50, [20, 50])):
        options.ads = ads
        benchmark = slimmable.Benchmark(options)
        benchmark._search()
        assert asked == expected
    run = benchmark.run(0)
    dict(benchmark._of_model(run, "slim"))
    with np.load(run.directory / "scores" / "slim.npz") as kept:
        assert run.log.fingerprint in str(kept["key"])


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_steps_are_timed_as_the_trainer_takes_them(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip_norm: float
) -> None:
    recipe = plan.with_models(0, ["main"], {})
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"clip_norm": clip_norm})})
    trainers: list[Trainer] = []
    before: list[dict[str, torch.Tensor]] = []

    def kept(saved: SavedTraining, *given: Any, **settings: Any) -> Trainer:
        before.append({name: tensor.clone() for name, tensor in saved.objective.state_dict().items()})
        trainers.append(Trainer(saved, *given, **settings))
        return trainers[-1]

    monkeypatch.setattr(slimmable_costs, "Trainer", kept)
    monkeypatch.setattr(slimmable_costs, "_TURNS", 2)
    assert slimmable_costs.step_cost(Run(recipe, tmp_path / "run"), "slim", "alone_w1.0") > 0
    for trainer, start in zip(trainers, before, strict=True):
        steps = slimmable_costs._STEPS
        assert trainer.progress.step == 2 * min(steps, -(-trainer.progress.rows // (2 * 256)))
        after = trainer.objective.state_dict()
        assert not any(torch.equal(after[name], tensor) for name, tensor in start.items() if "weight" in name)
        assert trainer.config.clip_norm == clip_norm
