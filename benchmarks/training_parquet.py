"""ctrkit's training step from a prepared log on disk, as `benchmarks.training` times it beside batches in memory."""

import contextlib
import itertools
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.training_steps import BATCH, NAMES, Build, Given, Impressions, Trainable, make_batches, own_steps
from ctrkit.config.data import DataConfig
from ctrkit.config.recipe import Recipe
from ctrkit.data.batch import Batch
from ctrkit.data.columns import LABEL
from ctrkit.data.loader import Loader

ROWS = 192 * BATCH
SHUFFLE_ROWS = 32 * BATCH


def from_parquet(model: Literal["light", "booster", "rocket"]) -> Build:
    """The same model, its batches read, shuffled and assembled meanwhile, from row groups of the size that is default.

    A buffer of 131,072 rows, so that every block of steps has its share of reading.
    """

    def build(num_rows: int) -> Trainable:
        path = write_log(Path(tempfile.mkdtemp()) / "log.parquet", num_rows)
        endless: dict[int, Iterator[Batch]] = {}

        def load(recipe: Recipe, batches: Iterable[Impressions]) -> Loader:
            if id(recipe) not in endless:
                log = Loader(recipe.schema_(), [path], batch_size=BATCH, shuffle_rows=SHUFFLE_ROWS)
                endless[id(recipe)] = (batch for epoch in itertools.count() for batch in log.epoch(epoch))
            of_log = endless[id(recipe)]
            return Given(recipe.schema_(), (next(of_log) for _ in batches))  # as many as are given

        weakref.finalize(load, shutil.rmtree, path.parent)
        return own_steps(model, num_rows, load)

    return build


def write_log(path: Path, num_rows: int) -> Path:
    """A prepared log whose ids follow the same law as those in memory."""
    row_group_rows = DataConfig.model_fields["row_group_rows"].default
    schema = pa.schema([(LABEL, pa.float32()), *((name, pa.int32()) for name in NAMES)])
    pending: list[pa.Table] = []
    with contextlib.closing(pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)) as writer:
        for batch in make_batches(num_rows, ROWS // BATCH):
            columns = {name: ids_B.numpy().astype(np.int32) for name, ids_B in zip(NAMES, batch.ids_FB, strict=True)}
            pending.append(pa.table({LABEL: batch.label_B.numpy(), **columns}, schema=schema))
            if sum(part.num_rows for part in pending) >= row_group_rows:
                writer.write_table(pa.concat_tables(pending).combine_chunks(), row_group_size=row_group_rows)
                pending = []
        if pending:
            writer.write_table(pa.concat_tables(pending).combine_chunks(), row_group_size=row_group_rows)
    return path
