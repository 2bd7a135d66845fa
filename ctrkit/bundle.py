"""The directory that goes online: graphs, encoding, item table, manifest with hashes, golden requests and their scores.

    manifest.json    what the bundle is; the size and SHA-256 of every other file
    model.onnx       the whole network (`ctrkit.graph` says what it takes); it needs no other graph
    model.onnx.data  weights, shared by all graphs
    table.onnx       with an item table: the network for ads that are in it, which are named by their row
    *.wNAME.onnx     the same of a narrower tower over the same tables, in a bundle of several widths (format 3)
    *.int8.onnx      the same in int8, where that passed its gate
    items/           the item table (`ctrkit.item_table`)
    encoding/        `ctrkit.encoding.Encoding` without the counts that only training has a use for
    golden.json      requests with the scores that a loader must reproduce before it serves

A bundle is written beside its place and renamed into it, so it is whole or absent; a directory without a manifest is
no bundle.
"""

import contextlib
import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pydantic import JsonValue

import ctrkit
from ctrkit.atomic import atomic_directory, sync
from ctrkit.encoding import Encoding
from ctrkit.errors import UserError
from ctrkit.graph import TensorSpec as TensorSpec
from ctrkit.graph import serving_graph
from ctrkit.item_table import PART_FILE, ItemTable
from ctrkit.manifest import (
    ENCODING,
    FORMAT,
    FORMAT_OF_WIDTHS,
    GOLDEN,
    GRAPHS,
    ITEMS,
    MODEL_INT8,
    TABLE,
    TABLE_INT8,
    Approximation,
    FileEntry,
    ItemTableEntry,
    Manifest,
    TablePrecision,
    WidthEntry,
    read_manifest,
)
from ctrkit.manifest import MANIFEST as MANIFEST
from ctrkit.manifest import MODEL as MODEL
from ctrkit.manifest import WEIGHTS as WEIGHTS
from ctrkit.request import Golden as Golden


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk that was verified."""

    directory: Path
    manifest: Manifest
    encoding: Encoding
    golden: Golden

    @property
    def model(self) -> Path:
        """The ONNX graph of the whole network."""
        return self.directory / MODEL

    @property
    def has_int8(self) -> bool:
        """Whether int8 passed its gate."""
        return MODEL_INT8 in self.manifest.files

    def width(self, name: object) -> str:
        """The name of a width as the manifest has it: 0.50 and "0.5" are "0.5".

        Raises:
            UserError: the bundle has no such width; names those that it has.
        """
        text = str(name)
        if text not in self.manifest.widths:
            with contextlib.suppress(ValueError):
                text = f"{float(text):g}"
        if text not in self.manifest.widths:
            known = ", ".join(self.manifest.widths)
            raise UserError(
                f"no width '{text[:100]}'; "
                + (f"the bundle has {known}" if known else "the bundle has one, so a request names none")
            )
        return text

    def item_table(self) -> ItemTable | None:
        """The item table, mapped into memory; None if the bundle has none.

        Raises:
            UserError: it is not the one of the manifest.
        """
        entry = self.manifest.item_table
        if entry is None:
            return None
        table = ItemTable.load(self.directory / ITEMS, entry.key, entry.raw_type)
        if len(table) != entry.ads:
            raise UserError(f"{self.directory / ITEMS}: not the item table of the manifest; export the bundle again")
        return table

    @classmethod
    def load(cls, directory: Path | str) -> Self:
        """Read and verify a bundle: every hash, no file missing or unknown, fingerprints, golden requests.

        Raises:
            UserError: it is no bundle or not the one that was written; it names the file and the way out.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        try:
            _verify_files(directory, manifest)
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror}); see to its permissions") from error
        encoding = Encoding.load(directory / ENCODING)
        for what, found, expected in (
            ("encoding", encoding.fingerprint(), manifest.encoding_fingerprint),
            ("schema", encoding.schema.fingerprint(), manifest.schema_fingerprint),
        ):
            if found != expected:
                raise UserError(f"{directory / ENCODING}: not the {what} of the manifest; export the bundle again")
        if manifest.graph != serving_graph(encoding.schema):
            raise UserError(f"{directory / MANIFEST}: graph does not fit the schema; export the bundle again")
        try:
            golden = Golden.from_json(json.loads((directory / GOLDEN).read_bytes()))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{directory / GOLDEN}: {error}; export the bundle again") from error
        if [*golden.widths] != [*manifest.widths][1:]:
            raise UserError(f"{directory / GOLDEN}: not the widths of the manifest; export the bundle again")
        return cls(directory, manifest, encoding, golden)


def bundle_place(directory: Path | str) -> Path:
    """Where a bundle may be written, absolute; a link to a bundle keeps pointing to its place.

    Raises:
        UserError: something that is no bundle lies there.
    """
    place = Path(os.path.realpath(directory))
    if place.exists() and not (place / MANIFEST).is_file() and not _is_empty_directory(place):
        raise UserError(f"{directory}: exists and is no bundle; give another place or remove it")
    return place


def write_bundle(
    directory: Path | str,
    *,
    model: Path,
    encoding: Encoding,
    golden: Golden,
    name: str,
    versions: Mapping[str, str],
    multiplications: int,
    parity_max_abs_diff: float,
    item_table: ItemTableEntry | None = None,
    tables: TablePrecision = "float32",
    approximations: Mapping[str, Approximation] | None = None,
    metrics: Mapping[str, float] | None = None,
    recipe: Mapping[str, JsonValue] | None = None,
    widths: Mapping[str, WidthEntry] | None = None,
) -> Bundle:
    """Write a bundle and verify it as a reader would; an old bundle of the same place is replaced.

    Args:
        directory: the place of the bundle.
        model: directory that holds `model.onnx`, its weights `model.onnx.data` if they are external, and the other
            graphs and the item table where there are such; they are copied.
        encoding: how raw values become the graph's inputs.
        golden: requests with their scores.
        name: of the model.
        versions: of the libraries that wrote it; ctrkit's own is added.
        multiplications: of the tower for one ad.
        parity_max_abs_diff: largest difference of probability between torch and ONNX Runtime.
        item_table: what `items/` holds.
        tables: precision in which tables are kept.
        approximations: what was measured of each that was tried.
        metrics: on held-out data.
        recipe: what it was trained with.
        widths: of several towers over the same tables, the widest first: that is model.onnx.

    Raises:
        UserError: `model` holds no graph or files that a bundle has no room for, the place is taken by something that
            is no bundle, the golden requests are unfit, or a metric is not finite.
    """
    golden.check()
    place = bundle_place(directory)
    with atomic_directory(place) as partial:
        _copy_model(model, partial, widths or {})
        encoding.save(partial / ENCODING, counts=False)
        (partial / GOLDEN).write_text(_dump(golden.to_json(), "a golden request"))
        manifest = Manifest(
            format=FORMAT_OF_WIDTHS if widths else FORMAT,
            name=name,
            created=datetime.datetime.now(datetime.UTC),
            files={path: _entry(partial / path) for path in sorted(_files_below(partial))},
            schema_fingerprint=encoding.schema.fingerprint(),
            encoding_fingerprint=encoding.fingerprint(),
            graph=serving_graph(encoding.schema),
            item_table=item_table,
            tables=tables,
            approximations=dict(approximations or {}),
            versions={"ctrkit": ctrkit.__version__, **versions},
            metrics={key: float(value) for key, value in (metrics or {}).items()},
            multiplications=multiplications,
            parity_max_abs_diff=float(parity_max_abs_diff),
            recipe=dict(recipe or {}),
            widths=dict(widths or {}),
        )
        (partial / MANIFEST).write_text(_dump(manifest.dump(), "the manifest"))
        Bundle.load(partial)
        for path in (*partial.rglob("*"), partial):
            sync(path)
    sync(place.parent)
    return Bundle.load(directory)


def _copy_model(model: Path, target: Path, widths: Mapping[str, WidthEntry]) -> None:
    if not (model / MODEL).is_file():
        raise UserError(f"{model / MODEL}: no such file; export the network there first")
    known = {*GRAPHS, ITEMS, *_graphs_of(widths)}
    strange = sorted(path.name for path in model.iterdir() if path.name not in known)
    if strange:
        raise UserError(f"{model / strange[0]}: a bundle takes its graphs and {WEIGHTS} only; keep it elsewhere")
    for path in model.iterdir():
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def _graphs_of(widths: Mapping[str, WidthEntry]) -> set[str]:
    return {graph for entry in widths.values() for graph in (entry.model, entry.table) if graph is not None}


def _dump(content: Any, what: str) -> str:
    try:
        return json.dumps(content, indent=1, allow_nan=False) + "\n"
    except ValueError as error:
        raise UserError(f"{what} holds a number that is not finite; the model is broken") from error


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)


def _is_empty_directory(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _files_below(directory: Path) -> Iterator[str]:
    """Relative paths of everything below that is no plain directory."""
    for path in directory.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(directory).as_posix()


def _verify_files(directory: Path, manifest: Manifest) -> None:
    files = manifest.files
    for path in files:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or "\\" in path or pure.as_posix() != path or path == ".":
            raise UserError(f"{directory / MANIFEST}: path {path!r} leads out of the bundle; do not use this bundle")
    found = set(_files_below(directory)) - {MANIFEST}
    for path in sorted(found):
        if (directory / path).is_symlink() or not (directory / path).is_file():
            raise UserError(f"{directory / path}: a bundle holds plain files only; copy the bundle without links")
        if path not in files:
            raise UserError(f"{directory / path}: not in the manifest; remove it or export the bundle again")
    required = {MODEL, GOLDEN, f"{ENCODING}/encoding.json", *_graphs_of(manifest.widths)}
    if manifest.item_table is not None:
        required |= {TABLE, f"{ITEMS}/{PART_FILE}", *({TABLE_INT8} if MODEL_INT8 in files else ())}
    missing = sorted((files.keys() | required) - found)
    if missing:
        raise UserError(f"{directory / missing[0]}: missing; copy the bundle again, whole")
    for path in sorted(required - files.keys()):
        raise UserError(f"{directory / MANIFEST}: does not list {path}; export the bundle again")
    for path, expected in files.items():
        size = (directory / path).stat().st_size
        if size != expected.bytes:
            raise UserError(f"{directory / path}: {size} bytes, {expected.bytes} were written; copy the bundle again")
        if _entry(directory / path) != expected:
            raise UserError(f"{directory / path}: changed after it was written (SHA-256); copy the bundle again")
