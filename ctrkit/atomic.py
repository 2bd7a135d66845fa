"""Files and directories that are written whole or not at all, whatever kills the process that writes them."""

import errno
import fcntl
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ctrkit.errors import UserError


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Give an empty directory beside `target` to write into; it takes the place of `target` if the body succeeds.

    If the body raises, or the process dies, `target` stays as it was; what a dead process left behind is removed by the
    next one. An old `target` is moved away before the new one is moved in: between the two renames there is none.

    Raises:
        UserError: another process is writing `target`, or the disk is full.
    """
    with locked(target):
        for left in target.parent.glob(f".{target.name}.old-*"):  # killed between the two renames below
            if not target.exists():
                left.rename(target)
        for stale in (*target.parent.glob(f".{target.name}.new-*"), *target.parent.glob(f".{target.name}.old-*")):
            shutil.rmtree(stale, ignore_errors=True)
        new = target.with_name(f".{target.name}.new-{os.getpid()}")
        old = target.with_name(f".{target.name}.old-{os.getpid()}")
        try:
            new.mkdir()
            yield new
            if target.exists():
                target.rename(old)
            try:
                new.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
        except OSError as error:
            if is_disk_full(error):
                raise _full(target) from error
            if error.filename is not None and str(error.filename).startswith(str(target.parent)):
                raise UserError(f"{target}: cannot be written ({error.strerror}); give another path") from error
            raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def locked(target: Path, way_out: str = "give another path") -> Iterator[None]:
    """Hold the lock of `target` meanwhile; see `lock`."""
    descriptor = lock(target, way_out)
    try:
        yield
    finally:
        os.close(descriptor)


def lock(target: Path, way_out: str = "give another path") -> int:
    """Take the lock of `target`, held until the file descriptor returned is closed or the process dies.

    Args:
        target: what is to be written by this process alone.
        way_out: what to do where it cannot be written.

    Raises:
        UserError: another process has it, or the file beside `target` that carries it cannot be opened.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); {way_out}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise UserError(f"{target}: another process is writing it; wait for that one or give another path") from error
    return descriptor


@contextmanager
def temporary_directory(parent: Path, name: str) -> Iterator[Path]:
    """A new directory `.NAME-...` in `parent`, removed at the end, or by the next process if this one is killed.

    The process holds the directory's lock. On a file system without locks what was left stays.
    """
    prefix = f".{name}-{platform.node()}-"  # some shared file systems lock for one machine only
    with ExitStack() as held:
        _remove_directories_left(parent, prefix)
        new = Path(tempfile.mkdtemp(prefix=".unlocked-", dir=parent))
        held.callback(shutil.rmtree, new, ignore_errors=True)
        held.enter_context(_directory_locked(new, fcntl.LOCK_EX))
        # named only now: nobody takes it for a leftover before it is locked
        directory = new.rename(parent / new.name.replace(".unlocked-", prefix))
        held.callback(shutil.rmtree, directory, ignore_errors=True)
        yield directory


def _remove_directories_left(parent: Path, prefix: str) -> None:
    """Remove the directories that no living process holds."""
    for left in parent.glob(f"{prefix}*"):
        with suppress(OSError), _directory_locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB) as is_free:
            if is_free:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _directory_locked(directory: Path, operation: int) -> Iterator[bool]:
    """Hold the lock of a directory meanwhile; whether it was to be had."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, operation)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """Give a file to write into; it takes the place of `target`, flushed to the disk, if the body succeeds.

    Raises:
        UserError: it cannot be written (no space, no permission); what was there before is kept.
    """
    new = target.with_name(f".{target.name}.new-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); what was there before is kept") from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """See to it that a file's content, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed `atomic_file` calls left in a directory that no other process writes into now."""
    for leftover in directory.glob(".*.new-*"):
        if leftover.is_file():
            leftover.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all; raises as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The object that `write_json` wrote; None if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


@contextmanager
def disk_full_of(target: Path) -> Iterator[None]:
    """Say by a UserError that the disk is full, and what was to be written: the system often names no file."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise _full(target) from error


def _full(target: Path) -> UserError:
    return UserError(f"{target}: the disk is full; free some space and run the command again")


def is_disk_full(error: OSError) -> bool:
    """Whether the system said that there is no space left (or the quota is used up), through Arrow or directly."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
