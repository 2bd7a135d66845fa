"""A recipe as text: TOML with comments, written for a person to correct."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from ctrkit.config.data import Format
from ctrkit.data.columns import RESERVED
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

# light and booster together on one set of tables: each learns from the labels and from the other's opinion
[models.rocket]
objective = "rocket_launching"
light = "light"
booster = "booster"
route = "none"
hint = { loss = "kl", weight = 1.0 }
# also on candidates nobody saw: user and context of one impression, the ad of another
unexposed = 1.0

# the light tower again, taught by the trained booster: on the log and on candidates that nobody saw
[models.distilled]
objective = "distillation"
student = "light"
teachers = ["booster"]
label_weight = 0.5
hint = { loss = "soft_bce", weight = 0.5 }
unexposed = 1.0

# of the models that cost least to serve, the one that is best on the validation part goes online
[export]
model = "best"
"""


@dataclass(frozen=True)
class FeatureLine:
    """One feature of a recipe."""

    column: str
    side: Side
    spec: Mapping[str, Any]
    """Its other keys."""
    comment: str


def recipe_text(
    *,
    name: str,
    path: str,
    format: Format,
    split: Mapping[str, Any],
    columns: Mapping[str, str],
    features: Sequence[FeatureLine],
    left_out: Mapping[str, str],
    warnings: Sequence[str],
    seen: str,
    train: Mapping[str, Any],
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
                *([f"format = {_value(format)}"] if format != "auto" else []),
                f"split = {_table(split)}",
                "",
                "[columns]",
                *(f"{key} = {_value(column)}" for key, column in columns.items()),
                "",
                "[features]",
                *_feature_lines(features),
                *(f"# {one_line(column)}: {one_line(reason)}" for column, reason in left_out.items()),
                *(["", "[train]", *(f"{key} = {_value(value)}" for key, value in train.items())] if train else []),
                _models(features),
            ]
        ).rstrip()
        + "\n"
    )


def _models(features: Sequence[FeatureLine]) -> str:
    """The towers and models; without an ad's feature no candidate can be made up."""
    weight = 1.0 if any(line.side == "item" for line in features) else 0.0
    return _MODELS.replace("unexposed = 1.0", f"unexposed = {weight}")


def _feature_lines(features: Sequence[FeatureLine]) -> Iterator[str]:
    names = _names([line.column for line in features])
    for line in features:
        name = names[line.column]
        spec: dict[str, Any] = {"side": line.side, **line.spec}
        if "table" in spec:
            spec["table"] = names[spec["table"]]
        if name != line.column:
            spec["column"] = line.column
        yield f"{_key(name)} = {_table(spec)}  # {one_line(line.comment)}"


def _names(columns: Sequence[str]) -> dict[str, str]:
    """A feature's name for each column: its own, but a slash cannot stand in a file's name, nor a dot in a key."""
    names = {column: column for column in columns if not set("/.") & set(column)}
    taken = {*names, *RESERVED}
    for column in columns:
        if column not in names:
            plain = re.sub(r"[/.]", "_", column)
            names[column] = next(
                name for name in chain([plain], (f"{plain}_{i}" for i in count(2))) if name not in taken
            )
            taken.add(names[column])
    return names


def _table(content: Mapping[str, Any]) -> str:
    return "{ " + ", ".join(f"{key} = {_value(value)}" for key, value in content.items()) + " }"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def one_line(text: str) -> str:
    """Text without line breaks and control characters, for a comment."""
    return "".join(c if c.isprintable() else " " for c in text)
