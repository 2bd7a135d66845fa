"""A small run of the trainer: a prepared log of a few row groups, small towers with dropout, scripted metrics."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ctrkit.builders.optimizers import build_optimizers
from ctrkit.config.train import TrainConfig
from ctrkit.data.columns import LABEL, WEIGHT
from ctrkit.data.loader import Loader
from ctrkit.metrics.report import Report
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.objectives.objective import Objective
from ctrkit.objectives.pointwise import Pointwise
from ctrkit.schema import Schema
from ctrkit.training import state
from ctrkit.training.checkpoints import Checkpoints
from ctrkit.training.saved_training import CHECKPOINTS, SavedTraining
from ctrkit.training.trainer import Evaluate, Trainer
from tests import networks

ROWS, GROUP_ROWS, BATCH = 96, 24, 16


def write_log(
    path: Path, *, poison: int | None = None, weight: Sequence[float] | None = None, group_rows: int = GROUP_ROWS
) -> Path:
    """A prepared log of four row groups; the dense value of one row may be poisoned."""
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(ROWS, 2)).astype(np.float32)
    if poison is not None:
        dense[poison, 1] = np.nan
    columns = {
        LABEL: (dense[:, 0] > 0).astype(np.float32),
        **({} if weight is None else {WEIGHT: np.asarray(weight, np.float32)}),
        "user": rng.integers(0, networks.NUM_ROWS["user"], ROWS).astype(np.int32),
        "recent": pa.array(
            [rng.integers(0, networks.NUM_ROWS["item"], n).tolist() for n in rng.integers(0, 4, ROWS)],
            pa.list_(pa.int32()),
        ),
        "item": rng.integers(0, networks.NUM_ROWS["item"], ROWS).astype(np.int32),
        "tags": pa.array(
            [rng.integers(0, networks.NUM_ROWS["tags"], n).tolist() for n in rng.integers(0, 3, ROWS)],
            pa.list_(pa.int32()),
        ),
        "price": dense[:, 0],
        "bid": dense[:, 1],
    }
    pq.write_table(pa.table(columns), path, row_group_size=group_rows, write_page_checksum=True)
    return path


def damage_row_group(path: Path, group: int, column: str) -> None:
    """Change a byte of a column's last page."""
    metadata = pq.read_metadata(path)
    (index,) = (i for i in range(metadata.num_columns) if metadata.row_group(group).column(i).path_in_schema == column)
    chunk = metadata.row_group(group).column(index)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)


def loader(path: Path, *, batch_size: int = BATCH, seed: int = 0, schema: Schema | None = None, **more: Any) -> Loader:
    """Its batches, shuffled."""
    settings: dict[str, Any] = {"shuffle_rows": 40, **more}
    return Loader(schema or networks.schema(), [path], batch_size=batch_size, seed=seed, **settings)


def rocket(seed: int = 0, *, dropout: float = 0.3) -> Objective:
    """A small rocket."""
    tables = networks.embedding(seed=seed)
    light = MLP(tables.out_features, (6,), dropout=dropout)
    return networks.rocket(tables, light, MLP(tables.out_features, (8, 6), dropout=dropout, batch_norm=True))


def pointwise(seed: int = 0) -> Objective:
    """A small network by itself, without anything random."""
    tables = networks.embedding(seed=seed)
    return Pointwise(Network(tables, MLP(tables.out_features, (6,))))


def report(value: float | None, monitor: str = "gauc") -> Report:
    """A report that says nothing but one metric."""
    fields: dict[str, Any] = dict.fromkeys(Report.__dataclass_fields__)
    return Report(**{**fields, "rows": 1, "clicks": 1, monitor: value})


class Scripted:
    """An evaluation whose metric is scripted; keeps the weights that it saw."""

    def __init__(self, values: Sequence[float | None], monitor: str = "gauc") -> None:
        """Take the metric of each evaluation in turn."""
        self.values: Iterator[float | None] = iter(values)
        self.monitor = monitor
        self.seen: list[dict[str, torch.Tensor]] = []

    def __call__(self, objective: Objective) -> Mapping[str, Report]:
        """One evaluation."""
        self.seen.append({name: tensor.clone() for name, tensor in objective.state_dict().items()})
        value = next(self.values)
        return {role: report(value, self.monitor) for role in objective.networks()}


def mean_logit(log: Path) -> Evaluate:
    """A metric that is a function of the weights, as a real one is."""
    batch = next(Loader(networks.schema(), [log], batch_size=ROWS).epoch())

    def evaluate(objective: Objective) -> Mapping[str, Report]:
        training = objective.training
        with torch.no_grad():
            logits = objective.eval().logits(batch)
        objective.train(training)
        return {role: report(logit_B.sin().mean().item()) for role, logit_B in logits.items()}

    return evaluate


def trainer(
    objective: Objective,
    directory: Path,
    train: Loader,
    *,
    fingerprint: str = "f",
    say: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> Trainer:
    """A trainer with the recipe's own optimizers; `settings` are those of [train]."""
    config = TrainConfig(**{"lr": 0.01, "table_lr": 0.01, "epochs": 3, "patience": 100, **settings})
    optimizers, schedulers, towers = build_optimizers(objective, config, train.num_batches * config.epochs)
    torch.manual_seed(config.seed)
    keep = config.keep_checkpoints
    saved = SavedTraining(
        objective, optimizers, schedulers, directory=directory, fingerprint=fingerprint, keep=keep, say=say
    )
    return Trainer(saved, config, clipped=towers, quiet=True)


def best_weights(directory: Path, into: Objective) -> dict[str, torch.Tensor]:
    """The best weights that a run saved, by the objective's own names."""
    checkpoints = Checkpoints(directory / CHECKPOINTS)
    best = checkpoints.best()
    assert best is not None
    checkpoints.load(best, state.weights(into), partial=True)
    return dict(into.state_dict())


def steps(directory: Path) -> list[str]:
    """What lies in the folder of a run's checkpoints."""
    return sorted(path.name for path in (directory / CHECKPOINTS).iterdir())


def equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are the same bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
