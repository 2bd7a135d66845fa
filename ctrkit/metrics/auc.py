"""AUC over the whole log, and the gain of one AUC over another."""

import numpy as np
from numpy.typing import ArrayLike

from ctrkit.metrics import inputs
from ctrkit.metrics.exact import exact_sum
from ctrkit.metrics.grouping import Grouping
from ctrkit.metrics.pairs import count_pairs
from ctrkit.metrics.score_table import ScoreSums, ScoreTable


def auc(y_true: ArrayLike, y_score: ArrayLike, *, sample_weight: ArrayLike | None = None) -> float:
    """Area under the ROC curve: the share of pairs (click, non-click) in the right order, a tie counting half.

    y_true, y_score, sample_weight [rows] as for `gauc`. Exact; nan where the rows are of one class. Without weights it
    counts in integers. Raises UserError as `gauc` does.
    """
    clicks, scores = inputs.labels(y_true), inputs.scores(y_score)
    inputs.same_length(len(clicks), y_score=scores)
    weight = inputs.weights(sample_weight, len(clicks))
    if weight is not None:
        sums = ScoreSums(exact_sum(weight), bins=0)
        sums.add(ScoreTable.of(clicks, scores, weight))
        return sums.auc()
    everyone = Grouping(np.zeros(len(clicks), dtype=np.uint8), 0, 0, dense=True)
    pairs = count_pairs(clicks, scores, everyone)
    return float(pairs.auc[0]) if len(pairs.auc) else float("nan")


def rela_impr(metric: float, base: float) -> float:
    """RelaImpr of an AUC or GAUC over a base model's, as a ratio: (metric - 0.5) / (base - 0.5) - 1.

    Deep Interest Network (KDD 2018), eq. 11, which prints it in percent. nan where the base ranks like a coin.
    """
    return (metric - 0.5) / (base - 0.5) - 1.0 if base != 0.5 else float("nan")
