"""The recipes in docs/methods.md and docs/slimmable.md are recipes."""

import re
import tomllib
from pathlib import Path

from ctrkit.config.models import CoTrainingConfig, SlimmableConfig
from ctrkit.config.recipe import Recipe

ROOT = Path(__file__).parents[1]
SHOWN = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "methods.md").read_text(), flags=re.DOTALL)


def test_the_models_of_the_documentation_are_models() -> None:
    shown = SHOWN[0]
    content = tomllib.loads((ROOT / "pipelines" / "demo.toml").read_text())
    content["models"] = {"booster": {"objective": "pointwise", "tower": "booster"}, **tomllib.loads(shown)["models"]}
    recipe = Recipe.model_validate({**content, "export": {"model": "taught"}})
    told = {model.objective for model in recipe.models.values()}
    assert told == {"pointwise", "rocket_launching", "distillation", "mutual_learning", "ensemble", "co_training"}
    mix = recipe.models["mix"]
    assert isinstance(mix, CoTrainingConfig)
    assert mix.shipped == ("light",)


def test_what_teaches_from_columns_of_the_log_is_added_to_a_recipe() -> None:
    content = tomllib.loads((ROOT / "pipelines" / "demo.toml").read_text())
    shown = tomllib.loads(SHOWN[1])
    content["models"] = {}
    for table, added in shown.items():
        content[table] |= added
    recipe = Recipe.model_validate({**content, "export": {"model": "from_scores"}})
    assert recipe.columns.teachers == ["their_score"]
    assert [feature.name for feature in recipe.schema_().features if feature.privileged] == ["position"]
    assert list(recipe.models) == ["from_scores", "sees_position"]


def test_the_slimmable_model_of_the_documentation_is_one() -> None:
    shown = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "slimmable.md").read_text(), flags=re.DOTALL)[0]
    content = tomllib.loads((ROOT / "pipelines" / "demo.toml").read_text())
    recipe = Recipe.model_validate({**content, "models": tomllib.loads(shown)["models"], "export": {"model": "slim"}})
    slim = recipe.models["slim"]
    assert isinstance(slim, SlimmableConfig)
    assert list(slim.fractions) == ["w0.25", "w0.5", "w0.75", "w1.0"]
