"""The folder of versions: MODELS_DIR/NAME/VERSION/, each a bundle."""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ctrkit.bundle import MANIFEST
from ctrkit_serving.server.settings import MODEL_NAME

_VERSION = re.compile(r"[1-9][0-9]{0,17}")
Identity = tuple[int, int, int]
Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class Found:
    """A version on the disk."""

    name: str
    version: int
    path: Path
    identity: Identity
    """Of its manifest: inode, time, size; another one is another bundle."""

    def stamp(self) -> Stamp:
        """Name, inode, time and size of everything in its folder, which tell whether it was written to."""
        found = []
        for path in self.path.rglob("*"):
            with contextlib.suppress(OSError):
                status = path.lstat()
                found.append((str(path), status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(sorted(found))


def scan(models_dir: Path) -> dict[str, dict[int, Found]]:
    """Versions by model and number. A folder without a manifest is not there yet; other names are nobody's."""
    found: dict[str, dict[int, Found]] = {}
    for name in _folders(models_dir):
        if not MODEL_NAME.fullmatch(name):
            continue
        for number in _folders(models_dir / name):
            path = models_dir / name / number
            try:
                status = (path / MANIFEST).stat()
            except OSError:
                continue
            if _VERSION.fullmatch(number):
                identity = (status.st_ino, status.st_mtime_ns, status.st_size)
                found.setdefault(name, {})[int(number)] = Found(name, int(number), path, identity)
    return found


def misplaced(models_dir: Path) -> dict[str, str]:
    """Bundles that no model has, by path, and why. Folders whose names begin with a dot are being written."""
    found = {}
    for name in _visible(models_dir):
        if _is_bundle(models_dir / name):
            found[str(models_dir / name)] = "a bundle lies in MODELS_DIR/NAME/VERSION/, VERSION a whole number"
        for number in _visible(models_dir / name):
            path = models_dir / name / number
            if not MODEL_NAME.fullmatch(name) and _is_bundle(path):
                found[str(path)] = "a model's name has letters, digits, '_', '.', '-' only, a letter or digit first"
            elif not _VERSION.fullmatch(number) and _is_bundle(path):
                found[str(path)] = "a version is a whole number above zero, without leading zeros"
    return found


def _visible(directory: Path) -> list[str]:
    return [name for name in _folders(directory) if not name.startswith(".")]


def _is_bundle(path: Path) -> bool:
    return os.access(path / MANIFEST, os.F_OK)


def _folders(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if _is_directory(entry))
    except OSError:
        return []


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links, or one to where we may not look
        return False
