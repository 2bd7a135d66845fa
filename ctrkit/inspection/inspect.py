"""A first look at a click log: a recipe to start from, and warnings of what looks wrong.

What is guessed is guessed from the columns' names and types and a sample of rows; every guess stands in the recipe as
a line to correct.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ctrkit.config.data import Format, SplitByFiles
from ctrkit.data.columns import RESERVED, decoded
from ctrkit.data.source import ClickLog, open_log, require_columns
from ctrkit.data.split import PARTS, find_parts
from ctrkit.errors import UserError
from ctrkit.inspection import naming
from ctrkit.inspection.column_profile import (
    MANY_VALUES,
    Profile,
    all_clicks,
    codes_of,
    in_list,
    log_warnings,
    profile,
    sample_labels,
    without_key,
)
from ctrkit.inspection.monitor_guess import why_not_gauc
from ctrkit.inspection.recipe_text import FeatureLine, recipe_text
from ctrkit.inspection.side_guess import guess_sides
from ctrkit.inspection.time_guess import LEAST_DAY, is_day, is_plain, is_time, least_held_out
from ctrkit.raw_values import Int64Array

_LEAK_AUC = 0.95
_NEAR_UNIQUE = 0.8
_RARE_SHARE = 0.2

ENOUGH_ROWS, MOST_EPOCHS = 8_000_000, 16
"""Epochs of a first recipe: as many as make so many rows, within bounds."""


@dataclass(frozen=True)
class Inspection:
    """What `inspect_log` found."""

    recipe: str
    """TOML."""
    warnings: tuple[str, ...]
    prepares: bool
    """False if `ctrkit prepare` would refuse rows of the sample."""


def inspect_log(path: str, *, label: str, group: str, format: Format = "auto", rows: int = 200_000) -> Inspection:
    """Look at the log at `path` and write a recipe to start from.

    Args:
        path: file, folder, glob or URI.
        label: column with 0 and 1.
        group: column with the user.
        format: of its files; by their names if "auto".
        rows: how many to look at, from several places of the log.

    Raises:
        UserError: no log lies there, it lacks a column, or the label is none.
    """
    parts = find_parts(path, format, SplitByFiles())
    has_parts = all(len(found) == 1 for found in parts.values())
    log = open_log([parts[part][0] for part in PARTS] if has_parts else path, format)
    require_columns(log.schema, {label: "the label", group: "the group key"}, path)
    _check_group(path, group, log.schema.field(group).type)
    sample = log.sample(rows)
    label_N = sample_labels(path, label, sample)
    look = _Look(log, sample, label, group, label_N)
    look.assign()
    split = {"by": "files"} if has_parts else look.split()
    features = look.features()
    if not features:
        raise UserError(f"{path}: no column is left to be a feature: {'; '.join(look.left_out.values())}")
    log_rows = _count_rows(log, label)
    doubt = why_not_gauc(sample, split, group, look.time, label_N, whole=log_rows == sample.num_rows)
    look.warnings += [doubt] if doubt else []
    warnings = (*look.warnings, *log_warnings(sample, group, label_N))
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", PurePosixPath(path.rstrip("/")).name.split(".")[0]).strip("_.-")
    recipe = recipe_text(
        name=name or "log",
        path=path,
        format=format,
        split=split,
        columns={"label": label, "group": group} | ({"time": look.time} if look.time is not None else {}),
        features=features,
        left_out=look.left_out,
        warnings=warnings,
        train=_train_settings(log_rows, ranked=doubt is None),
        seen=f"{sample.num_rows:,} rows" + (f" of {log_rows:,}" if log_rows is not None else ""),
    )
    return Inspection(recipe, warnings, prepares=without_key(sample, group) == 0)


def _count_rows(log: ClickLog, column: str) -> int | None:
    """Rows of the log; of CSV, which does not say, counted as far as it matters to `_train_settings`."""
    if log.rows is not None:
        return log.rows
    rows = 0
    for chunk in log.chunks([column]):
        rows += chunk.columns.num_rows
        if rows > ENOUGH_ROWS // 2:
            return None
    return rows


def _train_settings(rows: int | None, *, ranked: bool) -> dict[str, Any]:
    """What a log of that size wants otherwise than by default: enough steps before training stops by validation."""
    settings: dict[str, Any] = {}
    epochs = 2 if rows is None else max(2, min(MOST_EPOCHS, ENOUGH_ROWS // rows))
    if epochs > 2:
        settings["epochs"] = epochs
    if not ranked:
        settings["monitor"] = "log_loss"
    return settings


def _check_group(path: str, group: str, kind: pa.DataType) -> None:
    if pa.types.is_nested(kind):
        raise UserError(f"{path}: group key '{group}' is {kind}; name a column of integers or strings")


@dataclass
class _Look:
    """The sample, and what is decided about its columns."""

    log: ClickLog
    sample: pa.Table
    label: str
    group: str
    label_N: npt.NDArray[np.bool_]
    time: str | None = None
    day: str | None = None
    kept: dict[str, Profile] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Why, by column; shown in the recipe."""
    warnings: list[str] = field(default_factory=list)
    _codes: dict[str, Int64Array] = field(default_factory=dict)

    def assign(self) -> None:
        """Decide what each column is: time, day, feature, or left out."""
        names = [name for name in self.sample.column_names if name != self.label]
        profiles = {name: profile(name, self.sample.column(name), self.label_N) for name in names}
        times = [name for name, found in profiles.items() if is_time(found) and not found.missing]
        days = [name for name, found in profiles.items() if is_day(found)]
        self.day = min(days, key=lambda name: len(naming.words(name)), default=None)
        self.time = min(times, key=lambda name: len(naming.words(name)), default=None)  # `timestamp`, not `update_time`
        if self.time is None:
            self.warnings += [
                f"'{name}' could order the log, but {found.missing:,} of {found.rows:,} rows of the sample have none: "
                "drop these, and the split can be by time"
                for name, found in profiles.items()
                if is_time(found)
            ]
        for name, found in profiles.items():
            if name not in (self.time, self.day):
                if (reason := self._reason_against(found)) is None:
                    self.kept[name] = found
                    self._suspect(found)
                else:
                    self.left_out[name] = reason

    def _reason_against(self, column: Profile) -> str | None:
        """Why a column is no feature; what is wrong rather than useless is warned of, too."""
        name = column.name
        unique = column.distinct > _NEAR_UNIQUE * column.rows and not column.is_list
        if name == self.group:
            return None
        if name and name not in RESERVED and not is_plain(column):
            return self._type_against(column)
        other_time = f"that of the log is '{self.time}'" if self.time is not None else "but it does not order the log"
        reasons = {
            "it has no name": not name,
            "ctrkit uses the name; rename it": name in RESERVED,
            "constant: it tells the model nothing": column.is_constant,
            f"a time; {other_time}": is_time(column) or (naming.is_time(name) and column.is_number),
            "a time as text that ctrkit does not read; written as a timestamp it could order the log": (
                naming.is_time(name) and column.is_text
            ),
            "a day, which never comes back": naming.is_day(name) or column.is_day_text,
            "numbers requests or sessions, which never come back": _numbers_requests(column),
        }
        for reason, holds in reasons.items():
            if holds:
                return reason
        if column.is_list and column.is_fractional:
            self.warnings.append(f"'{name}' holds lists of numbers that are no ids, which no feature takes; left out")
            return "lists of numbers that are no ids"
        if column.label_auc > _LEAK_AUC:
            self.warnings.append(
                f"'{name}' gives the label away (alone it ranks it with AUC {column.label_auc:.3f}); left out"
            )
            return f"gives the label away: AUC {column.label_auc:.3f} alone"
        for holds, seems, reason in (
            (
                naming.is_position(name),
                "is known only after ranking, so the model that serves cannot have it; left out "
                "(a booster may: docs/methods.md, privileged)",
                "known only after ranking",
            ),
            (
                naming.is_weight(name) and column.is_number,
                "looks like how much an impression counts; left out",
                "looks like a weight; if it is how much an impression counts, name it columns.weight",
            ),
            (
                naming.is_duration(name) and column.is_number,
                "looks like how long somebody looked, known only after the click; left out",
                "looks like a duration, known only after the click",
            ),
            (
                naming.is_score(name),
                "looks like the score of a model or the true probability; left out (it may teach: docs/methods.md)",
                "looks like a score; if it is the true probability, name it columns.oracle; a model's can teach: "
                "columns.teachers",
            ),
        ):
            if holds:
                self.warnings.append(f"'{name}' {seems}")
                return reason
        if unique and not (pa.types.is_floating(column.type) and not column.whole):
            self.warnings.append(f"'{name}' has a value of its own in nearly every row; left out")
            return "a value of its own in nearly every row"
        return None

    def _suspect(self, column: Profile) -> None:
        """Warn of a value that only clicks have: rare, it hardly shows in the AUC."""
        if column.is_list or column.name == self.group or not column.distinct:
            return
        users_N = self._codes_of(self.group)
        if (found := all_clicks(self.sample.column(column.name), users_N, self.label_N)) is not None:
            value, rows = found
            self.warnings.append(
                f"all {rows:,} rows of the sample in which '{column.name}' is {value!r:.40} are clicks; if it is known "
                "only after the click, leave the feature out"
            )

    def _suspect_list(self, name: str, shown: str) -> None:
        """Warn of a history that holds what is shown where it was clicked: it was written down after the click."""
        held_N = in_list(self.sample.column(name), self.sample.column(shown))
        found = all_clicks(pa.chunked_array([held_N]), self._codes_of(self.group), self.label_N)
        if found is not None and found[0]:
            self.warnings.append(
                f"all {found[1]:,} rows of the sample in which '{name}' holds the '{shown}' beside it are clicks: if "
                "it was written down after the click, it gives the label away; leave it out"
            )

    def _type_against(self, column: Profile) -> str:
        """Of a type that no feature takes; warned of unless it holds times or nothing."""
        kind = str(column.type) if len(str(column.type)) <= 60 else f"{str(column.type)[:57]}..."
        if not (pa.types.is_temporal(column.type) or pa.types.is_null(column.type)):
            lists = "a list of " if column.is_list else ""
            self.warnings.append(
                f"'{column.name}' is {lists}{kind}, which no feature takes; left out; {column.way_out}"
            )
        return f"type {kind}, which no feature takes"

    def split(self) -> dict[str, Any]:
        """By day where there are enough of them, and enough rows in the last two; else by time, else at random."""
        share = least_held_out(self.sample, self.day) if self.day is not None else 0.0
        if self.day is not None and (share >= LEAST_DAY or self.time is None):
            if share < LEAST_DAY:
                self.warnings.append(
                    f"of the last two values of '{self.day}', which validate and test, one has {share:.1%} of the "
                    "rows: say in data.split how many days each part has"
                )
            return {"by": "column", "column": self.day, "valid": 1, "test": 1}
        if self.time is not None:
            return {"by": "time", "valid": 0.1, "test": 0.1}
        self.warnings.append(
            "no column tells the time: the split is at random, which flatters models that know the user"
        )
        return {"by": "random", "valid": 0.1, "test": 0.1}

    def features(self) -> list[FeatureLine]:
        """A line for each column that is kept, users' first."""
        kinds = {name: self._kind(column) for name, column in self.kept.items()}
        sides, warnings = guess_sides(self.kept, self.group, self._codes_of)
        self.warnings += warnings
        lines = []
        for name, column in self.kept.items():
            side, guessed = sides[name]
            comments = [f"{column.distinct:,} values" + (" of elements" if column.is_list else "")]
            if column.missing > 0.5 * column.rows:
                comments.append(f"{column.missing / column.rows:.0%} missing")
            if guessed:
                comments.append("the side is a guess")
            spec = dict(kinds[name])
            if column.is_list and (table := self._shared_table(column, kinds)) is not None:
                spec["table"] = table
                self._suspect_list(name, table)
            elif spec.get("kind") != "dense" and column.distinct > _RARE_SHARE * column.rows:
                spec["min_count"] = 2
                comments.append("many: ids seen once share a row; consider buckets")
            lines.append(FeatureLine(name, side, spec, "; ".join(comments)))
        return sorted(lines, key=lambda line: ("user", "item", "context").index(line.side))

    def _kind(self, column: Profile) -> dict[str, Any]:
        """Keys of the recipe that say the kind; none for categorical."""
        if column.is_list:
            return {"kind": "sequence", "max_len": max(1, min(column.longest, 50))}
        dense = {"kind": "dense"} | ({"transform": "log"} if column.skewed else {})
        is_id = naming.is_id(column.name) or column.name == self.group
        if pa.types.is_floating(column.type) and column.whole:
            if naming.is_number(column.name) or (column.distinct > MANY_VALUES and not is_id):
                return dense
            self.warnings.append(
                f"'{column.name}' holds whole numbers as floats, which garble ids above 2^53; store them as integers"
            )
            return {}
        if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
            return dense
        amount = column.is_number and naming.is_number(column.name) and not is_id
        return dense if amount and column.distinct > MANY_VALUES else {}

    def _codes_of(self, name: str) -> Int64Array:
        if name not in self._codes:
            self._codes[name] = codes_of(decoded(self.sample.column(name).combine_chunks()))
        return self._codes[name]

    def _shared_table(self, column: Profile, kinds: Mapping[str, Mapping[str, Any]]) -> str | None:
        """The column whose ids the lists hold: most of them by value, or some of them and a name in common."""
        best, best_share = None, 0.0
        for name, other in self.kept.items():
            if other.is_list or kinds[name].get("kind") == "dense" or not _same_ids(column, other):
                continue
            shared = _shared(column.values, other.values)
            alike = set(naming.words(column.name)) & set(naming.words(name)) - {"id", "recent"}
            share = shared / max(min(column.distinct, other.distinct), 1) + bool(alike)
            if share > best_share and ((alike and shared) or shared > 0.5 * max(column.distinct, other.distinct)):
                best, best_share = name, share
        return best


def _same_ids(one: Profile, other: Profile) -> bool:
    return (one.is_text and other.is_text) or (pa.types.is_integer(one.type) and pa.types.is_integer(other.type))


def _shared(one: pa.Array, other: pa.Array) -> int:
    """How many values two columns have in common; none where one holds ids that the other's type cannot."""
    try:
        return int(pc.is_in(one, value_set=other.cast(one.type)).true_count)
    except pa.ArrowInvalid:
        return 0


def _numbers_requests(column: Profile) -> bool:
    many = column.distinct > MANY_VALUES and not pa.types.is_floating(column.type)
    return naming.is_request(column.name) and (naming.is_id(column.name) or many)
