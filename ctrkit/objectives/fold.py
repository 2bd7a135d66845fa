"""Folds of the training part, for teachers that have not seen what they teach."""

from dataclasses import dataclass

from torch import Tensor

from ctrkit.data.batch import Batch
from ctrkit.names import DrawnBy


@dataclass(frozen=True)
class Fold:
    """One of `count` even parts of a log; each impression, or each group of them, is in one by chance.

    Cross-fitting (Dao et al., Knowledge Distillation as Semiparametric Inference, ICLR 2021): of K networks each leaves
    out a fold, and on that fold alone it teaches. What a network says of impressions that it was trained on is in part
    their labels, and a student of it learns those a second time.
    """

    index: int
    count: int
    by: DrawnBy

    def holds(self, batch: Batch) -> Tensor:
        """Which impressions[B] are in it.

        Raises:
            KeyError: the batch lacks the draws (`ctrkit.data.loader.Loader`).
        """
        return (batch.draws[self.by] * self.count).long() == self.index
