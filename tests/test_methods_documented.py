"""The recipes in docs/methods.md are recipes."""

import re
import tomllib
from pathlib import Path

from ctrkit.config import Recipe
from ctrkit.config_models import CoTrainingConfig

ROOT = Path(__file__).parents[1]


def test_the_models_of_the_documentation_are_models() -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "methods.md").read_text(), flags=re.DOTALL)
    content = tomllib.loads((ROOT / "pipelines" / "demo.toml").read_text())
    content["models"] = {"booster": {"objective": "pointwise", "tower": "booster"}, **tomllib.loads(shown)["models"]}
    recipe = Recipe.model_validate({**content, "export": {"model": "taught"}})
    told = {model.objective for model in recipe.models.values()}
    assert told == {"pointwise", "rocket_launching", "distillation", "mutual_learning", "ensemble", "co_training"}
    mix = recipe.models["mix"]
    assert isinstance(mix, CoTrainingConfig)
    assert mix.shipped == ("light",)
