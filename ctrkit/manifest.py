"""What a bundle says of itself: its manifest, and the names of its files."""

import json
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from ctrkit.errors import UserError
from ctrkit.graph import Graph
from ctrkit.raw_values import RawType

FORMAT, FORMAT_OF_WIDTHS = 2, 3
"""Versions of the layout of a bundle, of one width and of several; a reader refuses any other."""
MANIFEST, ENCODING, GOLDEN, ITEMS = "manifest.json", "encoding", "golden.json", "items"
MODEL, WEIGHTS, TABLE = "model.onnx", "model.onnx.data", "table.onnx"
MODEL_INT8, TABLE_INT8 = "model.int8.onnx", "table.int8.onnx"
GRAPHS = (MODEL, WEIGHTS, TABLE, MODEL_INT8, TABLE_INT8)
MAX_WIDTHS = 16
"""Of a bundle."""
ADS = "ads"
"""Input of table.onnx beside the user's and the context's: rows of the item table, int64 [N]."""
TablePrecision = Literal["float32", "float16", "int8"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileEntry(_Model):
    """What a file of the bundle must be."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class ItemTableEntry(_Model):
    """What the item table is."""

    key: str
    """Column that names an ad."""
    raw_type: RawType
    ads: int = Field(ge=1)
    width: int = Field(ge=1)
    precision: TablePrecision


class Approximation(_Model):
    """What an approximation changed on held-out rows, against the exact network."""

    rows: int
    gauc_change: float | None
    """None where no user has both a click and none."""
    pcoc_change: float | None
    max_difference: float
    """Largest absolute difference of probability."""
    accepted: bool
    """Whether it passed its gate; the bundle has it only then."""
    reason: str = ""
    """Why not."""


class WidthEntry(_Model):
    """A tower over the tables of a bundle that has several."""

    hidden: tuple[int, ...]
    """Widths of its hidden layers."""
    model: str
    """Its graph."""
    table: str | None
    """Its graph for ads of the item table."""
    multiplications: int
    metrics: dict[str, float]
    parity_max_abs_diff: float


class Manifest(_Model):
    """What a bundle is."""

    format: int
    name: str
    created: AwareDatetime
    files: dict[str, FileEntry]
    """By path relative to the bundle; the manifest itself is not among them."""
    schema_fingerprint: str
    encoding_fingerprint: str
    graph: Graph
    """Of model.onnx."""
    item_table: ItemTableEntry | None
    tables: TablePrecision
    """Of embedding tables and item table, as they are kept."""
    approximations: dict[str, Approximation]
    """Those that were tried: "tables", "int8"."""
    versions: dict[str, str]
    """Of the libraries that wrote it."""
    metrics: dict[str, float]
    multiplications: int
    """Multiplications of the tower for one ad."""
    parity_max_abs_diff: float
    """Largest difference of probability between torch, with the tables as kept, and every exact graph in ONNX Runtime,
    on held-out rows."""
    recipe: dict[str, JsonValue]
    widths: dict[str, WidthEntry] = Field(default_factory=dict, max_length=MAX_WIDTHS)
    """By name, the widest first, which is the one that all other fields tell of; empty in a bundle of one width."""

    def dump(self) -> dict[str, JsonValue]:
        """As JSON has it; of one width as it was before there were several."""
        return self.model_dump(mode="json", exclude=None if self.widths else {"widths"})


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a bundle; raises UserError if there is none that this ctrkit reads."""
    path = directory / MANIFEST
    try:
        content = path.read_bytes()
        version = json.loads(content)["format"]
        if version not in (FORMAT, FORMAT_OF_WIDTHS):
            known = f"{FORMAT} and {FORMAT_OF_WIDTHS}"
            raise UserError(f"{path}: bundle format {version}, this ctrkit reads {known}; export it again")
        return Manifest.model_validate_json(content)
    except OSError as error:
        below = directory / "bundle"  # the directory of a run was given
        way_out = f"; did you mean {below}?" if (below / MANIFEST).is_file() else ""
        raise UserError(f"{directory}: no bundle, it has no readable {MANIFEST} ({error.strerror}){way_out}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {key}: {first['msg']}; export the bundle again") from error
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a manifest ({error}); export the bundle again") from error
