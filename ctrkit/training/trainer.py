"""The one training loop."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ctrkit.config.train import TrainConfig
from ctrkit.data.ahead import read_ahead
from ctrkit.data.batch import Batch
from ctrkit.data.loader import Loader
from ctrkit.errors import UserError
from ctrkit.metrics.report import METRICS, Report
from ctrkit.objectives.objective import Objective
from ctrkit.training.gradient_norms import table_gradient_norms
from ctrkit.training.peer_ranks import PeerRanks
from ctrkit.training.progress import Progress, RunningLosses
from ctrkit.training.ranks import Ranks
from ctrkit.training.saved_training import SavedTraining

Evaluate = Callable[[Objective], Mapping[str, Report]]
"""Reports on the validation part, by role."""


class Trainer:
    """Trains an objective until the epochs are over or the monitored metric has stopped to improve.

    The directory is the training's alone. After each evaluation it is saved under `checkpoints`
    (`ctrkit.training.checkpoints`): `fit` goes on from the last one after it was killed, also with another number of
    processes, and leaves the weights of the best one in the objective. `metrics.jsonl` has a line an evaluation.

    Args:
        saved: the objective, its optimizers, which step together, its schedulers, stepped once a batch, and where they
            are kept. With several ranks the objective is one after `ctrkit.training.sharding.shard`, and all ranks
            call `fit`, each with its share of every batch.
        config: how long to train, when to evaluate, what to monitor, in which precision. The log's side (batches,
            order) is the loader's, the optimizers' is theirs.
        clipped: parameters whose gradient is clipped to `config.clip_norm`: the towers'.
        begin: called before the first step of a training that does not go on from a checkpoint.
        peers: where each rank trains one network on the same batches, in the place of a share of every batch.
        model: what is called for the losses of a batch; the objective if not given.
        quiet: no progress bar even on a terminal.
        log_scalars: called with (tag, value, step) beside the metrics file, for TensorBoard.
    """

    def __init__(
        self,
        saved: SavedTraining,
        config: TrainConfig,
        *,
        clipped: Sequence[nn.Parameter] = (),
        begin: Callable[[], None] = lambda: None,
        peers: PeerRanks | None = None,
        model: nn.Module | None = None,
        quiet: bool = False,
        log_scalars: Callable[[str, float, int], None] | None = None,
    ) -> None:
        self.saved = saved
        self.config = config
        self.objective, self.optimizers = saved.objective, saved.optimizers
        self.ranks, self.device = saved.ranks, saved.device
        self.clipped = clipped
        self.begin = begin
        self.peers = peers
        self._batch_ranks = Ranks() if peers else self.ranks  # that share a batch
        self.model = model or saved.objective
        self.quiet = quiet or self.ranks.rank != 0
        self.log_scalars = log_scalars
        self._mark = 0.0  # when the clock of `Progress.seconds` was last read

    @property
    def progress(self) -> Progress:
        """Where the training stands."""
        return self.saved.progress

    @property
    def history(self) -> list[dict[str, Any]]:
        """A line an evaluation, as `metrics.jsonl` has them."""
        return self.saved.history

    def fit(self, train: Loader, evaluate: Evaluate) -> Progress:
        """Train, from the last checkpoint of this run if there is one, and load the best weights.

        Raises:
            UserError: the loss or a gradient is not finite; names step and cause (the row group where a value is not
                finite, else the learning rates), and the last checkpoint is kept. Or the best weights are damaged.
        """
        if not self.saved.resume():
            self.begin()
        elif not self._finished():
            self.saved.say(f"  goes on from step {self.progress.step:,} (epoch {self.progress.epoch + 1})")
        running = RunningLosses()
        while not self._finished():
            done = self.progress.epoch * train.num_rows + min(self.progress.batches * train.batch_size, train.num_rows)
            with self._bar(train.num_rows * self.config.epochs, done) as bar:
                self._mark = time.perf_counter()
                for batch in read_ahead(self._batches(train)):
                    rows = self._train_step(batch, train, running)
                    bar.update(rows)
                    if self.progress.step % 20 == 0:
                        bar.set_postfix(running.means(), refresh=False)
                    if self._evaluation_due(train.num_batches):
                        if self.progress.batches == train.num_batches:
                            self.progress.epoch, self.progress.batches = self.progress.epoch + 1, 0
                        self._evaluate(evaluate, running, batch)
                        self._mark = time.perf_counter()
                        if self._finished():
                            break
        self.saved.load_best()
        return self.progress

    def _batches(self, train: Loader) -> Iterator[Batch]:
        """The batches to come, with what does not depend on the weights; another thread is ahead of their steps."""
        for batch in train.epoch(self.progress.epoch, skip_batches=self.progress.batches):
            moved = batch.to(self.device)
            for embedding in self.objective.tables():
                for address in embedding.address(moved).values():
                    address.grouped()
            yield moved

    def _finished(self) -> bool:
        return self.progress.epoch >= self.config.epochs or self.progress.stale >= self.config.patience

    def _evaluation_due(self, num_batches: int) -> bool:
        """Whether a multiple of 1 / evaluations_per_epoch of an epoch has just been passed."""
        done = self.progress.batches * self.config.evaluations_per_epoch
        return done // num_batches > (done - self.config.evaluations_per_epoch) // num_batches

    def _bar(self, total: int, done: int) -> "tqdm[Any]":
        return tqdm(
            total=total,
            initial=done,
            unit="row",
            unit_scale=True,
            desc=self.saved.directory.name,
            disable=True if self.quiet else None,  # None: only where stderr is no terminal
            dynamic_ncols=True,
        )

    def _train_step(self, batch: Batch, train: Loader, running: RunningLosses) -> int:
        """One step of all processes; the rows of the whole batch."""
        batch, weight, rows = self._over_ranks(batch)
        if rows and weight != 0:  # none if none of them could be read: nothing is to be learnt
            for turn in range(self.objective.turns):
                self._update(batch, weight, train, running, turn)
            for scheduler in self.saved.schedulers:
                scheduler.step()
        self.progress.step += 1
        self.progress.batches += 1
        self.progress.rows += rows
        now = time.perf_counter()
        self.progress.seconds += now - self._mark
        self._mark = now
        return rows

    def _over_ranks(self, batch: Batch) -> tuple[Batch, float, int]:
        """The batch, which now knows the labelled share of the whole, and weight and rows of the whole."""
        weight_B, ranks = batch.weight_B.double(), self._batch_ranks
        if ranks.size == 1:
            return batch, weight_B.sum().item(), len(batch)
        here = [weight_B.sum(), (weight_B * ~batch.label_B.isnan()).sum(), weight_B.new_tensor(len(batch))]
        weight, labelled, rows = ranks.sum(torch.stack(here).cpu()).tolist()
        if weight and labelled != weight:
            batch = replace(batch, labelled_share=labelled / weight)
        return batch, weight, int(rows)

    def _update(self, batch: Batch, weight: float, train: Loader, running: RunningLosses, turn: int) -> None:
        """Move the weights by one turn on a batch, whose impressions weigh so much over all processes."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            losses = self.model(batch, self.progress.step, turn)
        sums = torch.stack([(batch.weight_B * loss_B).sum() for loss_B in losses.values()])
        means = self.ranks.sum(sums.detach() / weight)
        if not math.isfinite(means.sum().item()):
            broken = [name for name, mean in zip(losses, means.tolist(), strict=True) if not math.isfinite(mean)]
            raise self._diverged(batch, train, "the loss", broken)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        # gradients are averaged over processes: what each adds is its share of the mean over the whole batch
        torch.autograd.backward(sums.sum() * (self._batch_ranks.size / weight))
        if self.clipped:
            norm = nn.utils.clip_grad_norm_(self.clipped, self.config.clip_norm or math.inf)
            if self.peers:
                self.ranks.sum(norm)  # what stops one stops all
            if not math.isfinite(norm.item()):
                raise self._diverged(batch, train, "the gradient")
        for optimizer in self.optimizers:
            if (self.objective.turns == 1 and not self.peers) or _has_gradient(optimizer):
                optimizer.step()
        running.add(dict(zip(losses, means.tolist(), strict=True)))

    def _diverged(self, batch: Batch, train: Loader, what: str, terms: Sequence[str] = ()) -> UserError:
        """What stopped the run: a value of the batch where one is not finite, else the weights themselves."""
        finite_B = batch.dense_BD.isfinite().all(1) & batch.weight_B.isfinite() & ~batch.label_B.isinf()
        hints = [term for term in terms if "hint" in term]
        rates = ", ".join(f"{group['lr']:g}" for optimizer in self.optimizers for group in optimizer.param_groups)
        here = None if finite_B.all() else train.origin(int(batch.origin_B[int((~finite_B).int().argmax())]))
        origin = next((each for each in self.ranks.on_each(lambda: here) if each is not None), None)
        if origin is None:
            cause = (
                "Every value of the batch is finite, so the weights have diverged: lower train.lr or train.table_lr "
                f"(the learning rates of this step were {rates})"
            ) + (f", or the weight of what makes the loss '{hints[0]}'." if hints else ".")
        else:
            cause = f"{origin[0]}, row group {origin[1]}, holds a value that is not finite: mend or drop it."
        kept = self.saved.checkpoints.latest()
        return UserError(
            f"{what} is not finite at step {self.progress.step + 1} (epoch {self.progress.epoch + 1}). {cause} "
            + (f"The last good checkpoint is kept: {kept.path}." if kept else "There is no checkpoint yet.")
        )

    def _evaluate(self, evaluate: Evaluate, running: RunningLosses, batch: Batch) -> None:
        if self.peers:
            self.peers.gather(self.progress.step)
        else:
            self._average_buffers()
        reports = evaluate(self.objective)
        candidates = {role: check_monitor(self.config.monitor, reports[role]) for role in self.objective.candidates()}
        sign = 1 if METRICS[self.config.monitor] else -1
        role = max(sorted(candidates), key=lambda role: sign * candidates[role])
        value, progress = candidates[role], self.progress
        better = progress.best is None or sign * value > sign * progress.best
        progress.stale = 0 if better else progress.stale + 1
        line = {
            "step": progress.step,
            "epoch": progress.epoch,
            "rows": progress.rows,
            "seconds": round(progress.seconds, 3),
            "losses": running.means(),
            **(self._gradient_norms(batch) if len(running.means()) > 1 else {}),
            "valid": {role or "model": _brief(report) for role, report in reports.items()},
        }
        running.clear()
        self.history.append(line)
        if better:
            progress.best, progress.best_step, progress.best_role = value, progress.step, role
        self.saved.save(best=better)
        self._log(line)

    def _gradient_norms(self, batch: Batch) -> dict[str, Any]:
        """What each loss does to the tables, where one process has them all."""
        if self.ranks.size > 1 or not len(batch) or batch.weight_B.sum() == 0:
            return {}
        norms = table_gradient_norms(self.objective, batch, self.progress.step)
        return {"table_gradient_norms": {name: float(f"{norm:.4g}") for name, norm in norms.items()}}

    def _average_buffers(self) -> None:
        """Batch norm's statistics, each rank's own until here: what is judged and saved is one network."""
        for buffer in self.objective.towers.buffers() if self.ranks.size > 1 else ():
            if buffer.is_floating_point():
                self.ranks.sum(buffer).div_(self.ranks.size)

    def _log(self, line: dict[str, Any]) -> None:
        if self.log_scalars is not None:
            for name, value in line["losses"].items():
                self.log_scalars(f"loss/{name}", value, line["step"])
            for name, value in line.get("table_gradient_norms", {}).items():
                self.log_scalars(f"table_gradient_norm/{name}", value, line["step"])
            for role, report in line["valid"].items():
                for name, value in report.items():
                    if value is not None:
                        self.log_scalars(f"valid/{role}/{name}", value, line["step"])


def _has_gradient(optimizer: torch.optim.Optimizer) -> bool:
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])


def check_monitor(monitor: str, report: Report) -> float:
    """Value of the monitored metric.

    Raises:
        UserError: the validation part does not define it.
    """
    value: float | None = getattr(report, monitor)
    if value is None:
        raise UserError(
            f"train.monitor '{monitor}' is not defined on the validation part (no user with both classes, "
            "or one class only); monitor log_loss, or give a larger validation part"
        )
    return value


def _brief(report: Report) -> dict[str, float | None]:
    return {name: getattr(report, name) for name in ("log_loss", "auc", "gauc", "pcoc")}
