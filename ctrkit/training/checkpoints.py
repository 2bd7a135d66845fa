"""Checkpoints of one run: there whole or not at all, written by any number of processes and read by any other.

    DIRECTORY/step-00000123/manifest.json   size and checksum of every other file
                            values.json     progress, history and whatever else is no tensor
                            .metadata, *.distcp
                                            the tensors, in the format of torch.distributed.checkpoint

`.metadata` is a pickle, which torch reads without a question: a checkpoint is to be trusted as code is.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ctrkit.atomic import sync
from ctrkit.errors import UserError
from ctrkit.training.ranks import Ranks
from ctrkit.training.stored_tensors import StoredTensors
from ctrkit.training.tensor_writer import write_tensors

_MANIFEST, _VALUES = "manifest.json", "values.json"
_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")


@dataclass(frozen=True)
class Found:
    """A checkpoint whose files are all there (their content is looked at when it is opened)."""

    path: Path
    step: int
    values: dict[str, Any]
    is_best: bool
    """Whether it was the best so far when it was saved."""


class Checkpoints:
    """The checkpoints of one run.

    All ranks call each method together, with the same arguments but for their own shards, and see the same directory;
    what one of them raises, all do.

    Args:
        directory: theirs alone.
        keep: how many of the newest are kept beside the best one.
        ranks: who saves and loads together; `Ranks()` is this process by itself. Those of the default process group
            if not given.
        say: told what is wrong but stops nothing, a line at a time.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 1,
        ranks: Ranks | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        assert keep >= 1, "the newest one is kept"
        self.directory = directory
        self.keep = keep
        self.ranks = Ranks.of_group() if ranks is None else ranks
        self.say = say

    def save(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, best: bool) -> Found:
        """Write a checkpoint; older ones than the last `keep` and the best are removed afterwards.

        Args:
            step: that it is of.
            tensors: by name; a `ShardedTensor` is written by the ranks that hold its shards, any other one, taken to be
                the same on all ranks, by one of them.
            values: what JSON can hold; rank 0's are written.
            best: whether it is the best one so far.

        Raises:
            OSError: a file cannot be written (the disk is full); what was there before is kept.
        """
        new, target = self.ranks.on_first(lambda: self._begin(step))
        try:
            written = self.ranks.on_each(lambda: write_tensors(new, tensors, self.ranks))
            files = {name: entry for each in written for name, entry in each.items()}
            self.ranks.on_first(lambda: _complete(new, target, files, step, values, best))
        finally:
            if self.ranks.rank == 0:
                shutil.rmtree(new, ignore_errors=True)
        self.ranks.on_first(self._remove_superseded)
        return Found(target, step, dict(values), best)

    def all(self) -> list[Found]:
        """All whole checkpoints, the newest first."""
        return self.ranks.on_first(self._all)

    def latest(self) -> Found | None:
        """The newest whole checkpoint."""
        return next(iter(self.all()), None)

    def best(self) -> Found | None:
        """The newest whole checkpoint that was saved as the best."""
        return next((found for found in self.all() if found.is_best), None)

    def open(self, found: Found) -> StoredTensors:
        """Its tensors, after every byte of it has been checked.

        Raises:
            UserError: a file is damaged; names it.
        """
        files = sorted(_manifest(found.path)["files"].items())
        mine = files[self.ranks.rank :: self.ranks.size]
        self.ranks.on_each(lambda: _verify(found.path, mine))
        return StoredTensors(found.path)

    def load(self, found: Found, tensors: Mapping[str, Tensor], *, partial: bool = False) -> None:
        """Fill tensors in place, bit for bit; see `open` and `StoredTensors.load`."""
        stored = self.open(found)
        self.ranks.on_each(lambda: stored.load(tensors, partial=partial))

    def remove(self, found: Found) -> None:
        """Remove a checkpoint that is no longer wanted."""
        self.ranks.on_first(lambda: _remove(found.path))

    def clear(self) -> None:
        """Remove all checkpoints, whole or not, and what killed processes left."""
        self.ranks.on_first(self._clear)

    def remove_leftovers(self) -> None:
        """Remove what processes left that were killed as they wrote; `save` does so too."""
        self.ranks.on_first(self._remove_leftovers)

    # --- what rank 0 does

    def _begin(self, step: int) -> tuple[Path, Path]:
        self._remove_leftovers()
        name = f"step-{step:08d}"
        taken = [number for path, at, number in self._named() if at == step]
        target = self.directory / (f"{name}.{max(taken) + 1}" if taken else name)
        new = self.directory / f".{target.name}.new-{os.getpid()}"
        new.mkdir(parents=True)
        return new, target

    def _named(self) -> list[tuple[Path, int, int]]:
        """Path, step and number among those of that step of whatever has a checkpoint's name, the newest first."""
        if not self.directory.is_dir():
            return []
        matches = [(path, _NAME.fullmatch(path.name)) for path in self.directory.iterdir()]
        named = [(path, int(match[1]), int(match[2] or 0)) for path, match in matches if match]
        return sorted(named, key=lambda each: each[1:], reverse=True)

    def _all(self) -> list[Found]:
        found = []
        for path, _, _ in self._named():
            try:
                found.append(_find(path))
            except UserError as error:
                self.say(f"  warning: {error}")
        return found

    def _remove_superseded(self) -> None:
        found = self._all()
        best = [each for each in found if each.is_best][:1]
        kept = {each.path for each in (*found[: self.keep], *best)}
        for path, _, _ in self._named():
            if path not in kept:
                _remove(path)

    def _remove_leftovers(self) -> None:
        for pattern in (".step-*.new-*", ".step-*.old-*"):
            for path in self.directory.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _clear(self) -> None:
        self._remove_leftovers()
        for path, _, _ in self._named():
            _remove(path)


# --- files


def _complete(new: Path, target: Path, files: dict[str, Any], step: int, values: Mapping[str, Any], best: bool) -> None:
    """Write what makes the checkpoint whole, and move it to its place."""
    content = json.dumps(values).encode()
    _write_file(new / _VALUES, content)
    files[_VALUES] = {"bytes": len(content), "crc32": f"{zlib.crc32(content):08x}"}
    manifest = {"step": step, "best": best, "files": files}
    _write_file(new / _MANIFEST, json.dumps({**manifest, "crc32": _manifest_checksum(manifest)}, indent=1).encode())
    sync(new)
    new.rename(target)
    sync(target.parent)


def _manifest_checksum(manifest: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(manifest, sort_keys=True).encode()):08x}"


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        checksum = manifest.pop("crc32")
        whole = checksum == _manifest_checksum(manifest)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(path / _MANIFEST) from error
    if not whole:
        raise _damaged(path / _MANIFEST)
    assert isinstance(manifest, dict)
    return manifest


def _find(path: Path) -> Found:
    manifest = _manifest(path)
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise _damaged(file)
    _verify(path, [(_VALUES, manifest["files"][_VALUES])])
    values = json.loads((path / _VALUES).read_bytes())
    return Found(path, manifest["step"], values, manifest["best"])


def _verify(path: Path, files: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    for name, entry in files:
        checksum = size = 0
        try:
            with (path / name).open("rb", buffering=0) as file:
                buffer = memoryview(bytearray(1 << 20))
                while read := file.readinto(buffer):
                    checksum, size = zlib.crc32(buffer[:read], checksum), size + read
        except OSError as error:
            raise _damaged(path / name) from error
        if {"bytes": size, "crc32": f"{checksum:08x}"} != entry:
            raise _damaged(path / name)


def _damaged(file: Path) -> UserError:
    return UserError(
        f"{file}: damaged or missing, so the checkpoint cannot be used; without {file.parent.parent} the model is "
        "trained anew"
    )


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    path.rename(old)  # at once: what is left of it is never taken for a checkpoint
    shutil.rmtree(old)
