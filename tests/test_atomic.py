"""Files and directories that are there whole or not at all."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ctrkit.atomic import atomic_directory, atomic_file, read_json, remove_leftovers, write_json
from ctrkit.errors import UserError


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The system refuses to write more, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_appears_with_its_folder_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "file"
    for content in (b"first", b"second"):
        with atomic_file(target) as file:
            file.write(content)
            assert not target.exists() or target.read_bytes() == b"first"
        assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]


def fill(target: Path, content: bytes, *, fail: bool = False) -> None:
    with atomic_file(target) as file:
        file.write(content)
        if fail:
            raise ZeroDivisionError


def test_a_file_whose_writer_fails_stays_as_it_was(tmp_path: Path) -> None:
    fill(tmp_path / "file", b"old")
    with pytest.raises(ZeroDivisionError):
        fill(tmp_path / "file", b"new", fail=True)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_the_disk_has_no_room_for_stays_as_it_was(tmp_path: Path) -> None:
    fill(tmp_path / "file", b"old")
    with pytest.raises(UserError, match=r"file: cannot be written \(File too large\)"), files_no_larger_than(1000):
        fill(tmp_path / "file", b"x" * 10_000)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_a_folder_that_is_a_file_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="target: cannot be written"), atomic_file(tmp_path / below / "target"):
        pass


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    killed = "import os, sys; from pathlib import Path; from ctrkit.atomic import atomic_file\n"
    killed += (
        "with atomic_file(Path(sys.argv[1])) as file:\n file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "file")], check=False)
    (tmp_path / "other").write_text("stays")
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_json(tmp_path: Path) -> None:
    write_json(tmp_path / "content.json", {"a": [1, None, "é"]})
    assert read_json(tmp_path / "content.json") == {"a": [1, None, "é"]}
    assert read_json(tmp_path / "missing.json") is None
    (tmp_path / "content.json").write_text("{")
    assert read_json(tmp_path / "content.json") is None


@pytest.mark.parametrize("content", ["[1]", "3", "null", '"text"'])
def test_json_that_is_no_object_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "content.json").write_text(content)
    assert read_json(tmp_path / "content.json") is None


def test_a_directory_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "data"
    for name in ("first", "second"):
        with atomic_directory(target) as new:
            (new / name).write_text(name)
            assert not (target / name).exists()
        assert [path.name for path in target.iterdir()] == [name]
    assert [path.name for path in tmp_path.iterdir() if path.name != ".data.lock"] == ["data"]


def fill_directory(target: Path, name: str, *, fail: bool = False) -> None:
    with atomic_directory(target) as new:
        (new / name).write_text("")
        if fail:
            raise ZeroDivisionError


def test_a_directory_whose_writer_fails_stays_as_it_was(tmp_path: Path) -> None:
    fill_directory(tmp_path / "data", "first")
    with pytest.raises(ZeroDivisionError):
        fill_directory(tmp_path / "data", "second", fail=True)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["first"]
    assert {path.name for path in tmp_path.iterdir()} == {"data", ".data.lock"}


def test_two_writers_of_one_directory(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "data"), pytest.raises(UserError, match="data: another process is writing it"):
        fill_directory(tmp_path / "data", "other")


_NESTED = """
import sys
from pathlib import Path
from ctrkit.atomic import temporary_directory
with temporary_directory(Path(sys.argv[1]), "outer") as outer, temporary_directory(outer, "inner") as inner:
    print([path.name.split("-")[0] for path in (outer, inner)], [path.name for path in outer.iterdir()] == [inner.name])
"""


def test_a_temporary_directory_may_hold_another(tmp_path: Path) -> None:
    """`ctrkit slim` exports into its own; a process must not wait for itself."""
    command = [sys.executable, "-c", _NESTED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.stdout == "['.outer', '.inner'] True\n", done.stderr
    assert not list(tmp_path.iterdir())
