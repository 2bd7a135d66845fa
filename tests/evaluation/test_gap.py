from pathlib import Path
from typing import Any

import pytest

from ctrkit.config.recipe import load_recipe
from ctrkit.evaluation.gap import Gap, gaps
from tests import small_recipe

ROCKET = Gap("light", "rocket_light", "booster")


def found(place: Path, gauc: dict[str, Any], *overrides: str, without: str | None = None) -> list[Gap]:
    recipe = load_recipe(small_recipe.write(place), overrides)
    models: dict[str, Any] = {name: model for name, model in recipe.models.items() if name != without}
    return gaps(recipe.model_copy(update={"models": models}), {name: {"gauc": value} for name, value in gauc.items()})


def test_a_rocket_is_compared_with_both_towers_alone(tmp_path: Path) -> None:
    assert found(tmp_path, {"light": 0.632, "booster": 0.637, "rocket_light": 0.635}) == [ROCKET]


@pytest.mark.parametrize("without", ["light", "booster"])
def test_no_gap_without_a_tower_alone(tmp_path: Path, without: str) -> None:
    assert found(tmp_path, {"light": 0.6, "booster": 0.6, "rocket_light": 0.7}, without=without) == []


def test_no_gap_without_gauc(tmp_path: Path) -> None:
    assert found(tmp_path, {"light": None, "booster": None, "rocket_light": None}) == []


def test_the_first_model_of_a_tower_is_its_baseline(tmp_path: Path) -> None:
    another = 'models.another={objective="pointwise",tower="light"}'
    assert found(tmp_path, {"light": 0.6, "booster": 0.7, "rocket_light": 0.65, "another": 0.64}, another) == [ROCKET]


def test_a_distilled_tower_has_a_gap_to_its_best_teacher(tmp_path: Path) -> None:
    extra = [
        "towers.deep={hidden=[8,8]}",
        'models.deep={objective="pointwise",tower="deep"}',
        'models.taught={objective="distillation",student="light",teachers=["booster","deep"]}',
    ]
    gauc = {"light": 0.6, "booster": 0.7, "rocket_light": 0.65, "taught": 0.72}
    assert found(tmp_path, gauc | {"deep": 0.71}, *extra) == [ROCKET, Gap("light", "taught", "deep")]
    assert found(tmp_path, gauc | {"deep": 0.69}, *extra) == [ROCKET, Gap("light", "taught", "booster")]
