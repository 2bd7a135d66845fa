"""The benchmark of quality: what --quick changes, how seeds are summed up, how it says what is wrong."""

import argparse
from pathlib import Path

import pytest

from benchmarks import quality
from ctrkit.config.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "pipelines"


def options(recipe: str, *, quick: bool = True, reference: bool = False) -> argparse.Namespace:
    return argparse.Namespace(recipe=RECIPES / recipe, set=["train.batch_size=512"], quick=quick, reference=reference)


@pytest.mark.parametrize(("recipe", "rows"), [("demo.toml", 60_000), ("movielens_1m.toml", None)])
def test_a_quick_run_is_one_epoch_of_a_small_log_where_it_is_synthetic(recipe: str, rows: int | None) -> None:
    changed = load_recipe(RECIPES / recipe, quality.settings(options(recipe)))
    assert changed.train.epochs == 1
    assert changed.train.batch_size == 512
    assert (changed.data.synthetic and changed.data.synthetic.rows) == rows
    assert quality.settings(options(recipe, quick=False)) == ["train.batch_size=512"]


def test_seeds_without_a_value_are_listed_but_not_summed_up() -> None:
    spread = quality._spread([0.5, None, 0.7, 0.6])
    assert spread == {"median": 0.6, "min": 0.5, "max": 0.7, "values": [0.5, None, 0.7, 0.6]}
    assert quality._spread([None])["median"] is None


def test_a_recipe_that_cannot_be_read_ends_with_a_message(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no\.toml: cannot read the recipe"):
        quality.main([str(tmp_path / "no.toml"), "--quick", "--runs", str(tmp_path)])
