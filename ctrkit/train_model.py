"""The training of one model of a recipe on a prepared log."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctrkit.atomic import atomic_directory, read_json, write_json
from ctrkit.builders.check import check_networks, peers_apart
from ctrkit.builders.objective import build_objective
from ctrkit.builders.optimizers import build_optimizers, tower_rates
from ctrkit.config.models import CALIBRATION_ROWS
from ctrkit.config.recipe import Recipe
from ctrkit.config.train import TrainConfig
from ctrkit.data.batch import Batch
from ctrkit.data.loader import Loader, Share
from ctrkit.data.prepared import PreparedLog
from ctrkit.errors import UserError
from ctrkit.evaluation.held_out import HeldOut
from ctrkit.idle_settings import idle_settings
from ctrkit.memory import check_memory, free_memory
from ctrkit.metrics.report import Report
from ctrkit.nn.network import Network
from ctrkit.objectives.co_training import CoTraining
from ctrkit.objectives.hint import MEASURED_STEPS
from ctrkit.objectives.objective import Objective
from ctrkit.objectives.slimmable import Slimmable
from ctrkit.training import state
from ctrkit.training.checkpoints import Checkpoints
from ctrkit.training.code_digest import code_digest
from ctrkit.training.device import find_device
from ctrkit.training.peer_ranks import PeerRanks
from ctrkit.training.predict import predict
from ctrkit.training.ranks import Ranks
from ctrkit.training.saved_training import CHECKPOINTS, SavedTraining
from ctrkit.training.slice_start import start_from_slice
from ctrkit.training.tensorboard import tensorboard_writer
from ctrkit.training.trainer import Evaluate, Trainer, check_monitor
from ctrkit.training.warm_start import ENCODING, START, Source, source_directory, tower_inputs, warm_start

EVALUATION_BATCH = 8192


@dataclass(frozen=True)
class ModelTraining:
    """One model of a recipe and where it is trained.

    Several ranks carry it out together: each reads its shards of the log, tables are sharded, towers replicated.
    """

    recipe: Recipe
    model: str
    log: PreparedLog
    directory: Path
    """Of this training alone."""
    frozen: Mapping[str, Network] = field(default_factory=dict)
    """Trained networks that teach it, by the names of `Recipe.frozen_teachers`."""
    ranks: Ranks = field(default_factory=Ranks)
    quiet: bool = False
    say: Callable[[str], None] = lambda _: None
    slice_of: Objective | None = None
    """A trained slimmable model to start from."""

    @property
    def config(self) -> TrainConfig:
        """The model's [train]."""
        return self.recipe.train_config(self.model)

    @property
    def _peers_apart(self) -> bool:
        """Whether each of several processes trains a network of its own."""
        return peers_apart(self.recipe, self.model, self.ranks.size)

    def fit(self, fingerprint: str) -> dict[str, Any]:
        """Train, or go on; the figures of `result.json`.

        Raises:
            UserError: so many ranks cannot train its networks, it does not fit into memory, the device cannot be
                used, the monitored metric is not defined on the validation part, or training diverges.
        """
        config, ranks = self.config, self.ranks
        if ranks.size > 1:  # a model that one process had trained here came by `Run.check`
            check_networks(self.recipe, self.model, ranks.size)
        num_rows = self.log.encoding.num_rows()
        ranks.on_each(lambda: find_device(config.device, ranks).type)  # what one refuses, all refuse
        device = find_device(config.device, ranks)
        share = Share(0, config.shards, config.shards)
        if not self._peers_apart:
            share = ranks.on_each(lambda: Share.of_process(ranks.rank, ranks.size, config.shards))[ranks.rank]
        rows, dealt = self.log.rows("train"), not self._peers_apart
        ranks.on_each(lambda: check_memory(self.recipe, self.model, num_rows, rows, device, ranks, dealt=dealt))
        loader = Loader(
            self.log.schema,
            self.log.files("train"),
            batch_size=config.batch_size,
            shuffle_rows=config.shuffle_rows,
            in_log_order=config.order == "log",
            seed=config.seed,
            negative_rate=config.negative_rate,
            label_rate=config.label_rate,
            teachers=self.recipe.teacher_columns(self.model),
            share=share,
            on_unreadable=self._warn if config.skip_unreadable else None,
        )
        steps = loader.num_batches * config.epochs
        sample = self._sample(EVALUATION_BATCH)
        for warning in ranks.on_first(lambda: list(idle_settings(self.recipe, self.model, steps, sample))):
            self._warn(warning)
        evaluate = self._evaluation(device)  # says what is wrong before the first step, not after the first epoch
        trainer = self._trainer(loader, device, fingerprint)
        # refused settings leave it; once training begins it would vouch for other weights
        ranks.on_first(lambda: (self.directory / "result.json").unlink(missing_ok=True))
        ranks.on_first(self._save_encoding)
        progress = trainer.fit(loader, evaluate)
        self._check_learnt(trainer.history)
        passed = progress.epoch * loader.num_rows + min(progress.batches * loader.batch_size, loader.num_rows)
        rate = round(progress.rows / progress.seconds) if progress.seconds else None
        result = {
            "fingerprint": fingerprint,
            "monitor": config.monitor,
            "best": progress.best,
            "best_step": progress.best_step,
            "ships": progress.best_role,
            "steps": progress.step,
            "seconds": round(progress.seconds, 1),
            "rows_per_second": rate,
            "processes": ranks.size,
            "unreadable_rows": self._unreadable(loader, passed - progress.rows),
            "weights": trainer.saved.digest(),
            "code": code_digest(),
            "inputs": tower_inputs(trainer.objective, self.log.schema),
        }
        self.say(
            f"  best valid {config.monitor} {progress.best:.4f} at step {progress.best_step:,} of {progress.step:,}, "
            f"{rate:,} rows/s"
        )
        return result

    def _check_learnt(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Say which losses were zero in every step; refuse a model for which all were, for it is as it was drawn."""
        losses = [line["losses"] for line in history]
        silent = [name for name in dict.fromkeys(chain(*losses)) if not any(of.get(name) for of in losses)]
        reasons = (
            "no row that was trained on has a weight, a label (columns.unlabelled, train.label_rate) or a teacher's "
            "score (columns.teachers), or a hint has no weight yet (warmup_steps; gradient_share measures for "
            f"{MEASURED_STEPS} steps)"
        )
        if all(name in silent for of in losses for name in of):  # also where no step was taken
            raise UserError(f"model '{self.model}' has learnt nothing, every loss was zero in all steps: {reasons}")
        for name in silent:
            self._warn(f"nothing was learnt from the loss '{name}' of '{self.model}', which was zero: {reasons}")

    def _unreadable(self, loader: Loader, missing: int) -> int:
        """Rows that could not be read in what was trained on; names the row groups that other ranks met."""
        here = dict(loader.unreadable)
        of_ranks = self.ranks.on_each(lambda: here)
        for path, group in sorted({origin for rank in of_ranks for origin in rank} - here.keys()):
            self._warn(f"{path}, row group {group}: cannot be read; its rows are left out")
        if self.config.negative_rate < 1:  # most of what is missing was left out on purpose
            return sum(count for rank in of_ranks for count in rank.values())
        return missing

    def _warn(self, message: str) -> None:
        self.say(f"  warning: {message}")

    def _trainer(self, loader: Loader, device: torch.device, fingerprint: str) -> Trainer:
        config, ranks = self.config, self.ranks
        num_rows = self.log.encoding.num_rows()
        sharded = ranks.size > 1 and not self._peers_apart
        objective = build_objective(self.recipe, self.model, num_rows, frozen=self.frozen, sharded=sharded)
        objective = objective if sharded else objective.to(device)
        called: torch.nn.Module = objective
        if sharded:
            from ctrkit.training.sharding import shard  # imports all of torchrec.distributed

            free = free_memory(device)
            called = shard(
                objective,
                ranks,
                device,
                batch_size=-(-config.batch_size // ranks.size),
                memory=None if free is None else free // (ranks.local_size if device.type == "cpu" else 1),
            )
            torch.manual_seed(config.seed + ranks.rank)  # each drops other units
        optimizers, schedulers, towers = build_optimizers(
            objective, config, loader.num_batches * config.epochs, tower_rates(self.recipe, self.model, objective)
        )
        peers = None
        if self._peers_apart:
            assert isinstance(objective, CoTraining)
            peers = PeerRanks(objective, optimizers, ranks)
            torch.manual_seed(config.seed + ranks.rank)  # each drops other units
        saved = SavedTraining(
            objective,
            optimizers,
            schedulers,
            directory=self.directory,
            fingerprint=fingerprint,
            keep=config.keep_checkpoints,
            device=device,
            ranks=ranks,
            say=self.say,
        )
        return Trainer(
            saved,
            config,
            clipped=towers,
            begin=lambda: self._begin(objective),
            peers=peers,
            model=called,
            quiet=self.quiet,
            log_scalars=tensorboard_writer(self.directory) if config.tensorboard and ranks.rank == 0 else None,
        )

    def _sample(self, rows: int, device: torch.device | None = None) -> Iterator[Batch]:
        config = self.config
        return calibration_batches(self.log, rows, config.seed, device, skip_unreadable=config.skip_unreadable)

    def _save_encoding(self) -> None:
        """What ids and columns the weights are of, beside them: the log may go or change."""
        encoding, place = self.log.encoding, self.directory / ENCODING
        saved = read_json(place / "encoding.json")
        if saved is None or saved.get("fingerprint") != encoding.fingerprint():
            with atomic_directory(place) as new:
                encoding.save(new, counts=False)

    def _begin(self, objective: Objective) -> None:
        """Start from another run's weights, or a slice of another model, if the recipe says so."""
        if isinstance(self.slice_of, Slimmable):
            rows = self.slice_of.calibration_rows or CALIBRATION_ROWS
            start_from_slice(objective, self.slice_of, self._sample(rows))
        if self.config.warm_start is None:
            self.ranks.on_first(lambda: (self.directory / START).unlink(missing_ok=True))
            return
        source = Source.open(source_directory(self.config.warm_start, self.model), self.ranks)
        start = warm_start(objective, self.log.encoding, source)
        for line in start.lines():
            self.say(f"  {line}")
        self.ranks.on_first(lambda: write_json(self.directory / START, start.as_dict()))

    def _evaluation(self, device: torch.device) -> Evaluate:
        """On the validation part: each rank predicts its rows, the first one judges them all."""
        ranks = self.ranks
        part = (ranks.rank, ranks.size)
        valid = Loader(self.log.schema, self.log.files("valid"), batch_size=EVALUATION_BATCH, part=part)
        held_out = HeldOut(self.log, "valid") if ranks.rank == 0 else None

        def report(probability: np.ndarray[Any, Any]) -> Report:
            assert held_out is not None
            return held_out.report(probability)

        coin = ranks.on_first(lambda: report(np.full(self.log.rows("valid"), 0.5)))
        check_monitor(self.config.monitor, coin)

        def evaluate(objective: Objective) -> dict[str, Report]:
            if objective.calibration_rows:
                objective.calibrate_batch_norm(self._sample(objective.calibration_rows, device))
            predicted = predict(objective, valid, device, ranks)
            return ranks.on_first(lambda: {role: report(probability) for role, probability in predicted.items()})

        return evaluate


def calibration_batches(
    log: PreparedLog, rows: int, seed: int, device: torch.device | None = None, *, skip_unreadable: bool = False
) -> Iterator[Batch]:
    """So many rows of the training part, from row groups drawn by a seed; all, if it has no more."""
    loader = Loader(
        log.schema,
        log.files("train"),
        batch_size=EVALUATION_BATCH,
        shuffle_rows=4 * rows,
        seed=seed,
        on_unreadable=(lambda _: None) if skip_unreadable else None,  # training names them
    )
    for batch in loader.epoch():
        yield batch if device is None else batch.to(device)
        rows -= len(batch)
        if rows <= 0:
            return


def trained(
    recipe: Recipe, model: str, log: PreparedLog, directory: Path, frozen: Mapping[str, Network] | None = None
) -> Objective:
    """A model with its best weights, in one process.

    Raises:
        UserError: it is not trained, or its weights are damaged.
    """
    objective = build_objective(recipe, model, log.encoding.num_rows(), frozen=frozen)
    checkpoints = Checkpoints(directory / CHECKPOINTS, ranks=Ranks())
    best = checkpoints.best()
    if best is None:
        raise UserError(f"{directory}: no checkpoint of '{model}' lies here; run `ctrkit train`")
    checkpoints.load(best, state.weights(objective), partial=True)
    objective.ship(best.values["progress"]["best_role"])
    return objective.eval()
