"""Whose each column of a log is, the user's, the ad's or the context's: by its name, else by the rows."""

from collections.abc import Callable, Mapping

import pyarrow as pa

from ctrkit.inspection import naming
from ctrkit.inspection.column_profile import MANY_VALUES, Profile, depends_on
from ctrkit.raw_values import Int64Array
from ctrkit.schema import Side

_TAKEN = "no column's name tells what was shown; '{}' is taken for it: correct the sides in [features]"
_NONE = (
    "no column seems to be of what was shown, so no candidates that nobody saw can be made up to learn from; give one "
    'side = "item" if there is one'
)


def guess_sides(
    columns: Mapping[str, Profile], group: str, codes_of: Callable[[str], Int64Array]
) -> tuple[dict[str, tuple[Side, bool]], list[str]]:
    """The side of each column and whether the rows had to tell because its name does not; and warnings.

    Args:
        columns: those that are features.
        group: name of the user's.
        codes_of: gives a number for each of the N values of a column, equal where the values are.
    """

    def follows(name: str, other: str) -> bool:
        return name == other or depends_on(codes_of(name), codes_of(other))

    named = {name: naming.side_of(name) for name in columns} | {group: "user"}
    items = [name for name in columns if named[name] == "item" and not columns[name].is_list]
    item = max(items, key=lambda name: columns[name].distinct, default=None)
    warnings = []
    if "item" not in named.values():
        unnamed = {name: column for name, column in columns.items() if named[name] is None and not column.is_list}
        item = _likely_item({name: column for name, column in unnamed.items() if not follows(name, group)}, follows)
        warnings.append(_NONE if item is None else _TAKEN.format(item))
    sides: dict[str, tuple[Side, bool]] = {}
    for name, column in columns.items():
        side = named[name]
        if side is not None:
            sides[name] = (side, False)
        elif column.is_list or follows(name, group):
            sides[name] = ("user", True)
        else:
            sides[name] = ("item" if item is not None and follows(name, item) else "context", True)
    return sides, warnings


def _likely_item(columns: Mapping[str, Profile], follows: Callable[[str, str], bool]) -> str | None:
    """Of columns that are not the user's the one of most values that may be an ad's id; None if none may."""
    ids = [
        name
        for name, column in columns.items()
        if not (pa.types.is_floating(column.type) or pa.types.is_decimal(column.type))
        and (
            column.distinct > MANY_VALUES
            or naming.is_id(name)
            or any(follows(other, name) for other in columns if other != name)
        )
    ]
    return max(ids, key=lambda name: columns[name].distinct, default=None)
