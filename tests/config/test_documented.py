"""Every key that a recipe may have stands in docs/recipe.md, in a row of its own section."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from ctrkit import schema
from ctrkit.config import data, hints, recipe, train
from ctrkit.config.recipe import Recipe

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "recipe.md").read_text(encoding="utf-8")

SECTIONS: dict[type[BaseModel], str] = {
    recipe.ColumnsConfig: "columns",
    recipe.EmbeddingConfig: "embedding",
    recipe.TowerConfig: "towers.NAME",
    recipe.ExportConfig: "export",
    recipe.BenchConfig: "bench",
    data.DataConfig: "data",
    data.SplitByFiles: "data.split",
    data.SplitByColumn: "data.split",
    data.SplitByTime: "data.split",
    data.SplitAtRandom: "data.split",
    data.SyntheticLog: "data.synthetic",
    schema.CategoricalFeature: "features.NAME",
    schema.SequenceFeature: "features.NAME",
    schema.DenseFeature: "features.NAME",
    train.TrainConfig: "train",
    hints.HintConfig: "hint",
    hints.KlHintConfig: "hint",
    hints.LayerHintConfig: "layer_hints",
    hints.LessonConfig: "lessons",
}
"""What a row of the section begins with; a model's is its objective."""


def classes(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from classes(field.annotation)
    for part in get_args(annotation):
        yield from classes(part)


def words(section: str) -> set[str]:
    """What stands in backticks in the rows whose keys are of the section."""
    rows = [row for row in DOCUMENTED.splitlines() if re.match(rf"\| `?{re.escape(section)}\b", row)]
    return {word for row in rows for code in re.findall(r"`([^`]+)`", row) for word in re.findall(r"\w+", code)}


@pytest.mark.parametrize("kind", dict.fromkeys(classes(Recipe)), ids=lambda kind: kind.__name__)
def test_every_key_is_documented(kind: type[BaseModel]) -> None:
    keys = set(kind.model_fields)
    if kind is Recipe:
        assert not [key for key in keys if not re.search(rf"^\| `{key}\b", DOCUMENTED, re.MULTILINE)]
    elif kind in SECTIONS:
        named = {"name"} if SECTIONS[kind] == "features.NAME" else set()  # the NAME itself
        assert not keys - words(SECTIONS[kind]) - named
    else:
        (objective,) = get_args(kind.model_fields["objective"].annotation)
        assert not keys - words(objective) - words("models.NAME")
