"""Every recipe that is shipped loads, and what it names can be built."""

from pathlib import Path

import pytest

from ctrkit.builders.objective import build_objective
from ctrkit.builders.optimizers import build_optimizers
from ctrkit.config.models import PointwiseConfig, RocketLaunchingConfig
from ctrkit.config.recipe import load_recipe
from ctrkit.data.adapters.registry import ADAPTERS

FOLDER = Path(__file__).parents[1] / "pipelines"
RECIPES = sorted(FOLDER.rglob("*.toml"))
EXPECTED = {"demo", "globo", "movielens_1m", "taobao_display_ad", "trivago"}

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def test_no_recipe_is_missing() -> None:
    assert {path.stem for path in RECIPES} >= EXPECTED


@every_recipe
def test_a_recipe_is_named_like_its_file(path: Path) -> None:
    assert load_recipe(path).name == path.stem


@every_recipe
def test_the_adapter_exists_and_writes_the_group_that_the_recipe_reads(path: Path) -> None:
    recipe = load_recipe(path)
    if recipe.data.adapter is None:
        assert recipe.data.synthetic is not None
    else:
        assert ADAPTERS[recipe.data.adapter].group == recipe.columns.group


@every_recipe
def test_every_model_can_be_built(path: Path) -> None:
    recipe = load_recipe(path)
    num_rows = dict.fromkeys(recipe.schema_().tables(), 5)
    for model in recipe.models:
        objective = build_objective(recipe, model, num_rows)
        assert objective.inference_model().tower.multiplications > 0
        build_optimizers(objective, recipe.train_config(model), 10)


@every_recipe
def test_light_booster_and_rocket_stand_side_by_side(path: Path) -> None:
    # the gain of a rocket is worth nothing without both of its towers alone
    recipe = load_recipe(path)
    assert {"light", "booster", "rocket"} <= recipe.models.keys()
    alone = {name: model.tower for name, model in recipe.models.items() if isinstance(model, PointwiseConfig)}
    rocket = recipe.models["rocket"]
    assert isinstance(rocket, RocketLaunchingConfig)
    privileged = [tower for tower in rocket.boosters if recipe.towers[tower].privileged]
    assert (alone["light"], alone["booster"]) == (rocket.light, *({"booster"} if privileged else rocket.boosters))
    assert recipe.export_model == "best"


@every_recipe
def test_no_feature_is_the_position_or_the_label(path: Path) -> None:
    # a position is known after ranking only: towers that serve never see it
    recipe = load_recipe(path)
    assert not {f.source for f in recipe.schema_().serving().features} & {"position", recipe.columns.label}


def test_the_wheel_carries_the_demo() -> None:
    assert 'pipelines/demo.toml" = "ctrkit/demo.toml"' in (FOLDER.parent / "pyproject.toml").read_text()
