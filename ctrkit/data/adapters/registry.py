"""The adapters by name: what each needs, and how it turns official raw files into a flat click log."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ctrkit.errors import UserError


@dataclass(frozen=True)
class Adapter:
    """One data set: its official file names (globs allowed), its converter, and the group key of the log it writes.

    ``convert(source, target, **options)`` reads the raw files in ``source`` and writes train.parquet, valid.parquet and
    test.parquet to the fresh directory ``target``. ``group`` is None where the data set has no user.
    """

    name: str
    raw_files: tuple[str, ...]
    convert: Callable[..., None]
    group: str | None


def _adapter(name: str, group: str | None) -> Adapter:
    module = importlib.import_module(f"ctrkit.data.adapters.{name}")

    def convert(source: Path, target: Path, **options: object) -> None:
        valid = list(inspect.signature(module.convert).parameters)[2:]
        for option in options:
            if option not in valid:
                raise UserError(f"adapter {name!r}: no option {option!r}; it has {', '.join(valid) or 'none'}")
        module.convert(source, target, **options)

    return Adapter(name, module.RAW_FILES, convert, group)


ADAPTERS: Mapping[str, Adapter] = MappingProxyType(
    {
        name: _adapter(name, group)
        for name, group in {
            "taobao_display_ad": "user_id",
            "movielens_1m": "user_id",
            "trivago": "user_id",
            "globo": "user_id",
            "avazu": "user_id",
            "criteo": None,
        }.items()
    }
)


def find(name: str) -> Adapter:
    """The adapter of that name; UserError names the nearest one if there is none."""
    if name not in ADAPTERS:
        near = difflib.get_close_matches(name, ADAPTERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(ADAPTERS)}"
        raise UserError(f"no adapter {name!r}; {hint}")
    return ADAPTERS[name]
