"""[data] of a recipe: where the log is and how it is split; and what every section of a recipe is made of."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
"""How many; bounded, as all sizes are, where nobody means it: what is beyond ends in an allocator's error or never."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]

Format = Literal["auto", "parquet", "csv", "tsv"]
"""Of a log's files; `auto` goes by their names."""


class Strict(BaseModel):
    """Unknown keys, values of another type and infinities are refused: true is no 1, "false" no false."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SplitByFiles(Strict):
    """The parts lie in files or folders of their own: `train.parquet`, `train/`, `train*.csv`."""

    by: Literal["files"] = "files"
    train: str = "train"
    valid: str = "valid"
    test: str = "test"


class SplitByColumn(Strict):
    """By the values of a column, a day partition say: listed, or so many of the last ones."""

    by: Literal["column"]
    column: str
    valid: list[str | int] | Count = 1
    test: list[str | int] | Count = 1


class SplitByTime(Strict):
    """The last shares of the log by the time column."""

    by: Literal["time"]
    valid: Share = 0.1
    test: Share = 0.1


class SplitAtRandom(Strict):
    """Rows at random: for logs without a time. Flatters any model that remembers users."""

    by: Literal["random"]
    valid: Share = 0.1
    test: Share = 0.1
    seed: Seed = 0


class SyntheticLog(Strict):
    """The seeded synthetic display-ad log of `ctrkit.data.synthetic` in place of a path."""

    rows: Count
    seed: Seed = 0
    days: Annotated[int, Field(ge=3, le=10_000)] = 8


class DataConfig(Strict):
    """Where the click log is."""

    path: str | None = None
    """File, folder or URI of the log; relative to where the command is run."""
    format: Format = "auto"
    adapter: str | None = None
    """Official raw files that may lie at `path` instead of a flat log (`ctrkit.data.adapters`)."""
    adapter_options: dict[str, Any] = {}
    synthetic: SyntheticLog | None = None
    split: SplitByFiles | SplitByColumn | SplitByTime | SplitAtRandom = Field(
        default=SplitByFiles(), discriminator="by"
    )
    skip_unreadable: bool = False
    """Leave out damaged row groups of Parquet, named and counted, in place of an error; reads the log once more."""
    row_group_rows: Annotated[int, Field(ge=1, le=10**7)] = 65_536
    """Rows of a row group of the prepared log: the unit of shuffling and of resuming."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is not None and self.synthetic is not None:
            raise ValueError("give either path or synthetic, not both")
        return self
