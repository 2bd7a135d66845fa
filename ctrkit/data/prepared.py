"""A prepared log on disk: encoded Parquet, the encoding, sample requests, and a manifest that vouches for them.

manifest.json                     fingerprint of the input, rows, clicks and files of each part, counts, warnings
encoding/                         `ctrkit.encoding.Encoding`
{train,valid,test}/part-*.parquet `__label` float32, `__group`, `__weight` float32, `__oracle` float64,
                                  `__slice/NAME` as in the log (the last three if the schema names them), then one
                                  column a feature by its name:
                                  int32 row of its table, list<int32> of rows, or float32
requests.jsonl                    raw requests of the test part (`ctrkit.request.Request`)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from ctrkit.data.columns import GROUP
from ctrkit.data.split import PARTS, Part
from ctrkit.encoding import Encoding
from ctrkit.errors import UserError
from ctrkit.schema import Schema

FORMAT = 2
"""Version of the layout and of what the values mean; part of every fingerprint.

2: the last digit of a mean or deviation does not depend on how the log was cut; `unreadable` in the manifest.
"""


@dataclass(frozen=True)
class PreparedLog:
    """A prepared log, opened and verified."""

    directory: Path
    manifest: Mapping[str, Any]
    encoding: Encoding

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open what `ctrkit.data.prepare.prepare` wrote.

        Raises:
            UserError: nothing is there, it is of another version, or a file is missing or has another size.
        """
        again = "run `ctrkit prepare` again"
        path = directory / "manifest.json"
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"{directory}: no prepared log lies here; run `ctrkit prepare` first") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); {again}") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise UserError(f"{path}: written by another version of ctrkit; {again}")
        if not _is_complete(manifest):
            raise UserError(f"{path}: lacks some of what prepare writes; {again}")
        for name, size in manifest["files"].items():
            file = directory / name
            if not file.is_file():
                raise UserError(f"{file}: missing; {again}")
            if file.stat().st_size != size:
                raise UserError(f"{file}: {file.stat().st_size:,} bytes, {size:,} were written; {again}")
        return cls(directory, manifest, Encoding.load(directory / "encoding"))

    @property
    def schema(self) -> Schema:
        """What the columns mean."""
        return self.encoding.schema

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything the content depends on (`ctrkit.data.prepare.fingerprint`)."""
        return str(self.manifest["fingerprint"])

    @property
    def requests(self) -> Path:
        """Raw requests of the test part, one JSON object a line."""
        return self.directory / "requests.jsonl"

    def files(self, part: Part) -> list[Path]:
        """Parquet files of a part, in row order."""
        return [self.directory / name for name in self._part(part)["files"]]

    def rows(self, part: Part) -> int:
        """Impressions of a part."""
        return int(self._part(part)["rows"])

    def clicks(self, part: Part) -> int:
        """Clicks of a part."""
        return int(self._part(part)["clicks"])

    def read_columns(self, part: Part, names: Sequence[str]) -> pa.Table:
        """Columns of a part, in row order."""
        return pa.concat_tables([_read(file, names) for file in self.files(part)])

    def distinct_groups(self, part: Part) -> pa.Array:
        """The group keys of a part, each once; memory for them alone, not for its rows."""
        found = [_read(file, [GROUP])[GROUP].unique() for file in self.files(part)]
        return pa.concat_arrays(found).unique()

    def _part(self, part: Part) -> Mapping[str, Any]:
        assert part in PARTS
        content: Mapping[str, Any] = self.manifest["parts"][part]
        return content


def _is_complete(manifest: Mapping[str, Any]) -> bool:
    """Whether all stands in the manifest that is read from it."""
    files, parts = manifest.get("files"), manifest.get("parts")
    return (
        isinstance(manifest.get("fingerprint"), str)
        and isinstance(files, dict)
        and all(isinstance(size, int) for size in files.values())
        and isinstance(parts, dict)
        and all(
            isinstance(parts.get(part), dict) and {"files", "rows", "clicks"} <= parts[part].keys() for part in PARTS
        )
    )


def _read(file: Path, names: Sequence[str]) -> pa.Table:
    try:
        return pq.read_table(file, columns=list(names), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: damaged ({error}); run `ctrkit prepare` again") from error
