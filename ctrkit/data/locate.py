"""Where the files of a log are: paths, folders, globs and URIs, on any filesystem."""

import fnmatch
import glob
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from ctrkit.config.data import Format
from ctrkit.errors import UserError

PACKINGS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Compression of a text by the ending of its name."""
SUFFIXES = {".parquet": "parquet", ".pq": "parquet"}
SUFFIXES |= {f".{text}{packed}": text for text in ("csv", "tsv") for packed in ("", *PACKINGS)}
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def exists(path: str, format: Format = "auto") -> bool:
    """Whether a log lies at `path`: at least one file of a known format."""
    filesystem, inner = filesystem_of(path)
    return bool(_list(filesystem, inner, format))


def filesystem_of(path: str) -> tuple[Any, str]:
    """The filesystem of a path or URI (pyarrow's, or else fsspec's), and the path inside it.

    Raises:
        UserError: the path is empty, no filesystem is known for the URI, or its package is not installed.
    """
    if not path:
        raise UserError("the path of the log is empty; name a file, folder, glob or URI")
    if "://" not in path:
        return pafs.LocalFileSystem(), path
    try:
        return pafs.FileSystem.from_uri(path)  # type: ignore[no-any-return]
    except (pa.ArrowException, OSError):
        pass
    import fsspec

    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"{path}: no filesystem opens it ({error}); install the fsspec package for it") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), inner


def find_files(path: str, format: Format) -> list[tuple[Any, Any]]:
    """(filesystem, file info) of each file of the log at `path`, in the order of their paths.

    Raises:
        UserError: there is none.
    """
    filesystem, inner = filesystem_of(path)
    found = _list(filesystem, inner, format)
    if found:
        _check_one_log(path, [str(info.path) for info in found], format)
        return [(filesystem, info) for info in found]
    info = filesystem.get_file_info(inner)
    if glob.has_magic(inner) and info.type == pafs.FileType.NotFound:
        raise UserError(f"{path}: no Parquet, CSV or TSV file matches; quote the pattern if the shell expands it")
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"{path}: no such file or folder; a path (data.path in a recipe) is relative to where you are")
    if info.type == pafs.FileType.Directory:
        where = "the folder has no file that ends"
    else:
        where = "neither Parquet, CSV nor TSV by its name: it does not end"
    raise UserError(f"{path}: {where} in {', '.join(SUFFIXES)}; rename the log, or give data.format (init --format)")


def _list(filesystem: Any, path: str, format: Format) -> list[Any]:
    """File infos below a file, folder or glob, by path; hidden files and those of no known format left out."""
    try:
        is_literal = filesystem.get_file_info(path).type != pafs.FileType.NotFound  # also if it has brackets
        root, pattern = (path.rstrip("/") or "/", None) if is_literal else _split_glob(path)
        infos = filesystem.get_file_info([root])
        if infos[0].type == pafs.FileType.Directory:
            infos = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except OSError as error:
        raise UserError(f"{path}: cannot be listed ({error})") from error
    files = [info for info in infos if info.type == pafs.FileType.File]
    if pattern is not None:
        files = [info for info in files if _matches(info.path, pattern)]
    elif len(files) == 1 and files[0].path == root:
        return files if format != "auto" or format_of(root) else []
    below = len(PurePosixPath(root).parts)
    visible = [i for i in files if not any(p[0] in "._" for p in PurePosixPath(i.path).parts[below:])]
    wanted = {*SUFFIXES.values()} if format == "auto" else {format, None}  # none: its name says nothing
    return sorted((i for i in visible if format_of(i.path) in wanted), key=lambda info: str(info.path))


def _check_one_log(path: str, files: Sequence[str], format: Format) -> None:
    """Refuse a log that lies there twice, in two formats or packings: its impressions would count twice."""
    formats: dict[str | None, str] = {}
    names: dict[str, str] = {}
    for file in files:
        formats.setdefault(format_of(file), file)
        same = names.setdefault(file[: len(file) - len(_suffix(file))], file)
        if same != file:
            raise UserError(f"{path}: {same} and {file} look like one file twice; leave one of them there")
    if len(formats) > 1 and format == "auto":
        one, other, *_ = formats.values()
        raise UserError(
            f"{path}: {one} and {other} are of two formats; a log has one: give a glob of those that are meant, or "
            "data.format"
        )


def _split_glob(path: str) -> tuple[str, str | None]:
    """The folder that a glob starts from, and the glob; the path itself and None if it is no glob."""
    if not glob.has_magic(path):
        return path.rstrip("/") or "/", None
    parts = PurePosixPath(path).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return str(PurePosixPath(*parts[:first])), path


def _matches(path: str, pattern: str) -> bool:
    """Whether the path, or a folder that it lies in, matches the glob."""
    wanted, parts = PurePosixPath(pattern).parts, PurePosixPath(path).parts
    return len(parts) >= len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def format_of(path: str) -> str | None:
    """`parquet`, `csv` or `tsv` by the file's name; None if it says none of them."""
    return SUFFIXES.get(_suffix(path))


def _suffix(path: str) -> str:
    """That of SUFFIXES in which the file's name ends, in letters of any size; empty if in none."""
    return next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), "")


def partition_of(path: str) -> dict[str, str | None]:
    """Columns that stand in a path as `key=value` folders."""
    pairs = [part.split("=", 1) for part in PurePosixPath(path).parts[:-1] if "=" in part]
    return {key: None if value == _HIVE_NULL else unquote(value) for key, value in pairs}
