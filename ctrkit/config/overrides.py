"""`--set a.b=value`: one key of a recipe said anew on the command line."""

import re
import tomllib
from typing import Any

from ctrkit.errors import UserError

# A key is quoted as in TOML, where it holds a dot or an equals sign; else it stands for itself.
_KEY = r"""\s*(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s."'=][^.=]*)\s*"""
_OVERRIDE = re.compile(rf"({_KEY}(?:\.{_KEY})*)=(.*)", re.DOTALL)


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set one key of a document; the value is as TOML writes it, what is no TOML is a string.

    Raises:
        UserError: no KEY=VALUE, a key below a value, or more than one value.
    """
    keys, value = _parsed(override)
    table = content
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {override}: '{key}' is a value, not a table")
    table[keys[-1]] = value


def _parsed(override: str) -> tuple[list[str], Any]:
    found = _OVERRIDE.fullmatch(override)
    if found is None:
        raise UserError(f"--set {override}: write KEY=VALUE, such as --set train.epochs=3; quote a key that has a dot")
    try:
        keys = [_unquoted(key.strip()) for key in re.findall(_KEY, found[1])]
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"--set {override}: write KEY=VALUE with a key as TOML quotes it ({error})") from error
    try:
        parsed = tomllib.loads(f"value = {found[2]}")
    except (ValueError, RecursionError):  # no TOML, a number of thousands of digits, very deep
        return keys, found[2]
    if len(parsed) > 1:
        raise UserError(f"--set {override}: more than one value; give each key a --set of its own")
    return keys, parsed["value"]


def _unquoted(key: str) -> str:
    return next(iter(tomllib.loads(f"{key} = 0"))) if key[0] in "\"'" else key
