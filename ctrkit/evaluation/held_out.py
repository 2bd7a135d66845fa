"""A held-out part of a prepared log: what scores are judged by, and the file of predictions that keeps them."""

import math
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ctrkit.atomic import atomic_file
from ctrkit.data.columns import GROUP, LABEL, ORACLE, SLICE, WEIGHT
from ctrkit.data.prepared import PreparedLog
from ctrkit.data.split import Part
from ctrkit.evaluation.in_memory import ROWS_IN_MEMORY
from ctrkit.metrics.bootstrap import bootstrap_intervals, paired_bootstrap, share_of_gap
from ctrkit.metrics.report import Report, evaluate_scores


class HeldOut:
    """Labels, groups and, where the log has them, weights and true probabilities of a part, in row order."""

    def __init__(self, log: PreparedLog, part: Part) -> None:
        self._log, self._part = log, part
        schema = log.schema
        names = [LABEL, GROUP, *([WEIGHT] if schema.weight else []), *([ORACLE] if schema.oracle else [])]
        self._columns = log.read_columns(part, names)

    def __len__(self) -> int:
        return int(self._columns.num_rows)

    @property
    def oracle(self) -> npt.NDArray[np.float64] | None:
        """True click probability [rows], if the log knows it."""
        return self._column(ORACLE)

    def report(self, probability: npt.NDArray[np.float64]) -> Report:
        """Every metric of the probabilities [rows] of one network."""
        return evaluate_scores(self._label, probability, self._columns[GROUP], self._column(WEIGHT))

    @property
    def resampled(self) -> bool:
        """Whether there are intervals: rows have no weights, and are few enough to draw their users again."""
        return WEIGHT not in self._columns.column_names and len(self) <= ROWS_IN_MEMORY

    def interval(self, probability: npt.NDArray[np.float64]) -> list[float] | None:
        """The 95 % interval of GAUC over users, of the probabilities [rows] of one network; None if there is none."""
        if not self.resampled:
            return None
        found = bootstrap_intervals(self._label, probability, self._columns[GROUP], metrics=["gauc"])["gauc"]
        return None if math.isnan(found.low) else [found.low, found.high]

    def difference(self, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> dict[str, float] | None:
        """GAUC of b less that of a with its interval over users; None if there is none."""
        if not self.resampled:
            return None
        found = paired_bootstrap(self._label, a, b, self._columns[GROUP], metrics=["gauc"])["gauc"]
        if math.isnan(found.low):
            return None
        return {"value": found.difference, "low": found.low, "high": found.high}

    def share_of_gap(
        self,
        light: npt.NDArray[np.float64],
        taught: npt.NDArray[np.float64],
        booster: npt.NDArray[np.float64],
    ) -> dict[str, float | None] | None:
        """`ctrkit.metrics.share_of_gap` of the probabilities [rows] of three networks; None if there is no gap."""
        found = share_of_gap(self._label, light, taught, booster, self._columns[GROUP])
        return None if found is None else {"value": found.value, "low": found.low, "high": found.high}

    def save(self, path: Path, probability: npt.NDArray[np.float64]) -> None:
        """Write a file of predictions, as `ctrkit.evaluation.predictions` reads it.

        Beside the probability it has label, group, weight, the slices that the schema names, and `group_in_train`:
        whether the training part has the group.
        """
        with atomic_file(path) as file:
            pq.write_table(self._carried.append_column("probability", pa.array(probability)), file)

    @property
    def _label(self) -> npt.NDArray[np.float64]:
        label: npt.NDArray[np.float64] = self._columns[LABEL].to_numpy()
        return label

    def _column(self, name: str) -> npt.NDArray[np.float64] | None:
        return self._columns[name].to_numpy() if name in self._columns.column_names else None

    @cached_property
    def _carried(self) -> pa.Table:
        schema = self._log.schema
        named = {"label": LABEL, "group": GROUP, **({"weight": WEIGHT} if schema.weight else {})}
        named |= {column: SLICE + column for column in schema.slices}
        table = self._log.read_columns(self._part, list(named.values())).rename_columns(list(named))
        return table.append_column("group_in_train", pc.is_in(table["group"], self._log.distinct_groups("train")))
