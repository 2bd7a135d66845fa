"""A recipe as text: TOML with comments, written for a person to correct."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctrkit.schema import Side

_MODELS = """
[towers]
light = { hidden = [200, 80] }
booster = { hidden = [720, 360, 240, 180, 90] }

[models.light]
objective = "pointwise"
tower = "light"

[models.booster]
objective = "pointwise"
tower = "booster"

[models.rocket]
objective = "rocket_launching"
light = "light"
booster = "booster"
"""


@dataclass(frozen=True)
class FeatureLine:
    """One feature of a recipe."""

    column: str
    side: Side
    spec: Mapping[str, Any]
    """Its other keys."""
    comment: str

    @property
    def name(self) -> str:
        """The column's name; a slash cannot stand in it, since tables are files."""
        return self.column.replace("/", "_")


def recipe_text(
    *,
    name: str,
    path: str,
    split: Mapping[str, Any],
    columns: Mapping[str, str],
    features: Sequence[FeatureLine],
    left_out: Mapping[str, str],
    warnings: Sequence[str],
    seen: str,
) -> str:
    """The recipe; what was left out and the warnings stand in it as comments."""
    return (
        "\n".join(
            [
                f"# A first recipe, guessed from {seen}: correct what is wrong.",
                *(f"# Warning: {one_line(warning)}" for warning in warnings),
                f"name = {_value(name)}",
                "",
                "[data]",
                f"path = {_value(path)}",
                f"split = {_table(split)}",
                "",
                "[columns]",
                *(f"{key} = {_value(column)}" for key, column in columns.items()),
                "",
                "[features]",
                *_feature_lines(features),
                *(f"# {one_line(column)}: {one_line(reason)}" for column, reason in left_out.items()),
                _MODELS,
            ]
        ).rstrip()
        + "\n"
    )


def _feature_lines(features: Sequence[FeatureLine]) -> Iterator[str]:
    tables = {line.column: line.name for line in features}
    for line in features:
        spec: dict[str, Any] = {"side": line.side, **line.spec}
        if "table" in spec:
            spec["table"] = tables[spec["table"]]
        if line.name != line.column:
            spec["column"] = line.column
        yield f"{_key(line.name)} = {_table(spec)}  # {one_line(line.comment)}"


def _table(content: Mapping[str, Any]) -> str:
    return "{ " + ", ".join(f"{key} = {_value(value)}" for key, value in content.items()) + " }"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def one_line(text: str) -> str:
    """Text without line breaks and control characters, for a comment."""
    return "".join(c if c.isprintable() else " " for c in text)
