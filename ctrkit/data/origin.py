"""Where a recipe's log comes from: files as they are, official raw files that an adapter converts, or a generator."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ctrkit
from ctrkit.atomic import atomic_directory
from ctrkit.config.data import DataConfig, SplitByFiles, SyntheticLog
from ctrkit.data import synthetic
from ctrkit.data.adapters import registry
from ctrkit.data.locate import exists, find_files
from ctrkit.data.prepared import FORMAT
from ctrkit.data.split import find_parts
from ctrkit.errors import UserError
from ctrkit.schema import Schema


@dataclass(frozen=True)
class Origin:
    """A log that lies at a path, or that can be made."""

    data: DataConfig
    inputs: list[Any]
    """What its content depends on: (path, size, time of change) of each file, or the generator's settings."""
    make: Callable[[Path], None] | None = field(default=None, repr=False)
    """Writes the log into an empty directory; None if it is there already."""

    def fingerprint(self, schema: Schema) -> str:
        """SHA-256 over the input, the data settings, the schema and the format of prepared logs."""
        return _digest([FORMAT, self.data.model_dump(mode="json"), schema.fingerprint(), self.inputs])

    def log_path(self, directory: Path) -> str:
        """Path of the log; one that has to be made is written into `directory` first, unless it lies there already."""
        if self.make is None:
            assert self.data.path is not None
            return self.data.path
        settings = [self.data.adapter_options, self.inputs, ctrkit.__version__]
        target = directory / f"{self.data.adapter or 'synthetic'}-{_digest(settings)[:12]}"
        if not target.exists():
            with atomic_directory(target) as new:
                self.make(new)
        return str(target)


def find_origin(data: DataConfig) -> Origin:
    """Find the log that `data` names.

    Raises:
        UserError: nothing lies there.
    """
    if data.synthetic is not None:
        settings = data.synthetic
        return Origin(data, [settings.model_dump(mode="json")], lambda new: _generate(new, settings))
    if data.path is None:
        raise UserError("the recipe names no log; give data.path, or --set data.path=PATH")
    if data.adapter is not None and not _is_flat(data, data.path):
        return _raw_files(data, Path(data.path), registry.find(data.adapter))
    files = [info for _, info in find_files(data.path, data.format)]
    return Origin(data, [(str(info.path), info.size, info.mtime_ns or 0) for info in files])


def _is_flat(data: DataConfig, path: str) -> bool:
    if isinstance(data.split, SplitByFiles):
        return all(find_parts(path, data.format, data.split).values())
    return exists(path, data.format) and bool(_missing(Path(path), registry.find(data.adapter or "")))


def _missing(folder: Path, adapter: registry.Adapter) -> list[str]:
    return [pattern for pattern in adapter.raw_files if next(folder.glob(pattern), None) is None]


def _raw_files(data: DataConfig, folder: Path, adapter: registry.Adapter) -> Origin:
    missing = _missing(folder, adapter)
    if missing:
        what = "no such folder" if not folder.exists() else f"no {', '.join(missing)}"
        raise UserError(
            f"{folder}: neither a flat log (train, valid and test in Parquet or CSV) nor the official raw files of "
            f"{adapter.name} ({what}); put one of them there or set data.path"
        )
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    inputs = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return Origin(data, inputs, lambda new: adapter.convert(folder, new, **data.adapter_options))


def _generate(directory: Path, settings: SyntheticLog) -> None:
    synthetic.generate(directory, rows=settings.rows, seed=settings.seed, days=settings.days)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
