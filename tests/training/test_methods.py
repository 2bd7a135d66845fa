"""The loop under methods of several networks: turns, which network is the best, what a resumed run remembers."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrkit.losses import kl_divergence
from ctrkit.metrics.report import Report
from ctrkit.nn.network import Network
from ctrkit.objectives import co_training, hint
from ctrkit.objectives.hint import Hint
from ctrkit.objectives.mutual_learning import mutual_learning
from ctrkit.objectives.objective import Objective
from ctrkit.training import state
from ctrkit.training.progress import RunningLosses
from ctrkit.training.trainer import Trainer
from tests import networks
from tests.objectives.cases import distilled, parts, peers, tower
from tests.training import small_run


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return small_run.write_log(tmp_path / "log.parquet")


class Scripted:
    """An evaluation whose metric is scripted for each network."""

    def __init__(self, *values: Mapping[str, float]) -> None:
        self.values: Iterator[Mapping[str, float]] = iter(values)
        self.seen: list[dict[str, Tensor]] = []

    def __call__(self, objective: Objective) -> dict[str, Report]:
        self.seen.append({name: tensor.clone() for name, tensor in objective.state_dict().items()})
        return {role: small_run.report(value) for role, value in next(self.values).items()}


# --- turns


class Watched:
    """What a trainer's updates move, and the losses that they are made of."""

    def __init__(self, run: Trainer) -> None:
        self.moved: list[set[str]] = []
        self.turns: list[int] = []
        self.hints: list[tuple[Tensor, Tensor]] = []
        """Of each turn: the hint, and what it must be with the weights of that moment."""
        self._run, self._losses, self._update = run, run.objective.losses, run._update
        run.objective.losses = self.losses  # type: ignore[method-assign]
        run._update = self.update  # type: ignore[method-assign,assignment]

    def losses(self, batch: Any, step: int = 0, turn: int = 0) -> dict[str, Tensor]:
        found = self._losses(batch, step, turn)
        if not self._run.objective.training:  # gradient norms are looked at between the steps
            return found
        here = deepcopy(self._run.objective.state_dict())
        fresh = peers(3, hint=Hint("kl"))()
        fresh.load_state_dict(here)
        logits = fresh.logits(batch)
        others = [logit_B for role, logit_B in logits.items() if role != f"peer{turn}"]
        expected = torch.stack([kl_divergence(logits[f"peer{turn}"], other) for other in others]).mean(0)
        self.hints.append((found[f"hint_peer{turn}"].detach(), expected.detach()))
        self.turns.append(turn)
        return found

    def update(self, *arguments: Any) -> None:
        before = {part: [p.detach().clone() for p in found] for part, found in parts(self._run.objective).items()}
        self._update(*arguments)
        after = parts(self._run.objective)
        self.moved.append(
            {
                part
                for part, found in before.items()
                if any(not torch.equal(a, b) for a, b in zip(found, after[part], strict=True))
            }
        )


def test_in_turn_only_the_peer_of_the_turn_moves_and_hears_the_others_after_their_steps(
    log: Path, tmp_path: Path
) -> None:
    train, objective = small_run.loader(log), peers(3, in_turn=True, hint=Hint("kl"))()
    run = small_run.trainer(objective, tmp_path / "run", train, epochs=1, table_l2=0.01, weight_decay=0.01)
    watched = Watched(run)
    run.fit(train, Scripted({f"peer{i}": 0.5 for i in range(3)}))
    assert watched.turns == [0, 1, 2] * train.num_batches
    of_peer = [{f"peer{i}", f"peer{i} head", f"tables peer{i}"} for i in range(3)]
    assert watched.moved == of_peer * train.num_batches
    for found, expected in watched.hints:
        torch.testing.assert_close(found, expected)
    assert run.progress.step == train.num_batches  # a step is a batch, not a turn
    counted = [optimizer.param_groups[0]["steps"] for optimizer in run.optimizers[1:]]
    assert counted == [train.num_batches] * 3  # Adam's corrections go by the steps of a peer's own tables


def test_in_turn_learns_otherwise_than_together(log: Path, tmp_path: Path) -> None:
    ends = []
    for in_turn in (False, True):
        train = small_run.loader(log)
        run = small_run.trainer(peers(2, in_turn=in_turn)(), tmp_path / str(in_turn), train, epochs=1)
        run.fit(train, Scripted({"peer0": 0.5, "peer1": 0.5}))
        ends.append({name: tensor.clone() for name, tensor in run.objective.state_dict().items()})
    assert all(not torch.equal(ends[0][name], ends[1][name]) for name in ends[0] if "weight" in name)


def test_losses_of_turns_are_means_over_their_own_steps(log: Path, tmp_path: Path) -> None:
    train = small_run.loader(log)
    run = small_run.trainer(peers(2, in_turn=True)(), tmp_path / "run", train, epochs=1)
    seen: dict[str, list[float]] = {}
    losses = run.objective.losses

    def watched(batch: Any, step: int = 0, turn: int = 0) -> dict[str, Tensor]:
        found = losses(batch, step, turn)
        for name, loss_B in found.items() if run.objective.training else ():
            seen.setdefault(name, []).append(loss_B.mean().item())
        return found

    run.objective.losses = watched  # type: ignore[method-assign]
    run.fit(train, Scripted({"peer0": 0.5, "peer1": 0.5}))
    [line] = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert line["losses"] == {name: pytest.approx(sum(of) / len(of), abs=1e-6) for name, of in seen.items()}


def test_each_loss_is_a_mean_of_its_own() -> None:
    running = RunningLosses()
    running.add({"a": 1.0})
    running.add({"a": 3.0, "b": 5.0})
    assert running.means() == {"a": 2.0, "b": 5.0}
    running.clear()
    assert running.means() == {}


# --- the network that ships


def evaluations(*rows: tuple[float, float]) -> Scripted:
    return Scripted(*({"peer0": a, "peer1": b} for a, b in rows))


@pytest.mark.parametrize(
    ("rows", "role", "evaluation"),
    [
        ([(0.5, 0.6), (0.7, 0.6), (0.6, 0.65)], "peer0", 1),
        ([(0.5, 0.6), (0.6, 0.8), (0.7, 0.6)], "peer1", 1),
        ([(0.5, 0.6), (0.55, 0.4), (0.58, 0.5)], "peer1", 0),
        ([(0.6, 0.6), (0.6, 0.6), (0.5, 0.5)], "peer0", 0),  # the first of equals
    ],
)
def test_the_best_peer_ships_with_its_best_weights(
    log: Path, tmp_path: Path, rows: list[tuple[float, float]], role: str, evaluation: int
) -> None:
    train, evaluate = small_run.loader(log), evaluations(*rows)
    run = small_run.trainer(peers(2)(), tmp_path / "run", train, epochs=3)
    progress = run.fit(train, evaluate)
    assert progress.best_role == role
    assert run.objective.inference_role() == role
    assert progress.best == max(rows[evaluation])
    assert small_run.equal(run.objective.state_dict(), evaluate.seen[evaluation])


def test_early_stopping_watches_the_best_of_the_candidates(log: Path, tmp_path: Path) -> None:
    train = small_run.loader(log)
    run = small_run.trainer(peers(2)(), tmp_path / "run", train, epochs=9, patience=2)
    run.fit(train, evaluations((0.5, 0.6), (0.59, 0.1), (0.1, 0.61), (0.6, 0.2), (0.5, 0.2)))
    assert (run.progress.epoch, run.progress.best, run.progress.best_role) == (5, 0.61, "peer1")


def test_a_peer_that_may_not_ship_is_not_watched(log: Path, tmp_path: Path) -> None:
    train = small_run.loader(log)
    run = small_run.trainer(peers(2, shipped=("peer1",))(), tmp_path / "run", train, epochs=2)
    run.fit(train, evaluations((0.9, 0.6), (0.9, 0.5)))
    assert (run.progress.best, run.progress.best_role) == (0.6, "peer1")
    assert run.objective.inference_role() == "peer1"


def test_a_smaller_loss_is_better(log: Path, tmp_path: Path) -> None:
    train = small_run.loader(log)
    run = small_run.trainer(peers(2)(), tmp_path / "run", train, epochs=1, monitor="log_loss")

    def evaluate(objective: Objective) -> dict[str, Report]:
        return {role: small_run.report(v, "log_loss") for role, v in {"peer0": 0.7, "peer1": 0.3}.items()}

    run.fit(train, evaluate)
    assert (run.progress.best, run.progress.best_role) == (0.3, "peer1")


# --- a run that is killed


class KilledError(Exception):
    """As if the process had ended."""


def killed_and_resumed(make: Any, log: Path, folder: Path, *rows: Mapping[str, float], **settings: Any) -> Trainer:
    """Killed after its first evaluation and resumed by a new process; equal to one that was not disturbed."""
    ends: list[Trainer] = []
    for kill in (False, True):
        directory = folder / str(kill)
        script = list(rows)
        for attempt in range(1 + kill):
            train = small_run.loader(log)
            run = small_run.trainer(make(), directory, train, epochs=len(rows), **settings)
            scripted = Scripted(*script[1 if attempt else 0 :])

            def evaluate(objective: Objective, scripted: Scripted = scripted, dies: bool = kill and not attempt) -> Any:
                if dies and scripted.seen:
                    raise KilledError
                return scripted(objective)

            try:
                run.fit(train, evaluate)
            except KilledError:
                continue
            ends.append(run)
    first, second = ends
    assert small_run.equal(first.objective.state_dict(), second.objective.state_dict())
    assert first.progress.best_role == second.progress.best_role
    assert first.objective.inference_role() == second.objective.inference_role()
    assert [line["losses"] for line in first.history] == [line["losses"] for line in second.history]
    return second


def test_a_resumed_run_ships_the_peer_that_was_best_before_it_was_killed(log: Path, tmp_path: Path) -> None:
    rows = ({"peer0": 0.5, "peer1": 0.9}, {"peer0": 0.6, "peer1": 0.5}, {"peer0": 0.7, "peer1": 0.5})
    run = killed_and_resumed(peers(2, in_turn=True), log, tmp_path, *rows)
    assert run.objective.inference_role() == "peer1"


def test_a_resumed_run_knows_what_it_has_measured(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (co_training, hint):
        monkeypatch.setattr(module, "MEASURED_STEPS", 4)  # of 6 an epoch

    def make() -> Objective:
        tables = networks.embedding()
        return mutual_learning(
            {f"peer{i}": Network(tables, tower(tables, 6 + i)) for i in range(2)}, hint=Hint("kl", gradient_share=0.5)
        )

    row = {"peer0": 0.5, "peer1": 0.4}
    run = killed_and_resumed(make, log, tmp_path, row, row, row)
    assert (run.objective.get_buffer("gradient_squares") > 0).all()
    assert run.history[1]["losses"]["hint_peer0"] > 0


def test_a_resumed_student_has_its_teacher_again(log: Path, tmp_path: Path) -> None:
    run = killed_and_resumed(distilled(auxiliary=True), log, tmp_path, {"": 0.5}, {"": 0.6}, {"": 0.4})
    before = {name: tensor for name, tensor in distilled(auxiliary=True)().state_dict().items() if "frozen" in name}
    after = run.objective.state_dict()
    assert before
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    best = run.saved.checkpoints.best()
    assert best is not None
    stored = run.saved.checkpoints.open(best).specs
    assert not [name for name in stored if "frozen" in name]
    assert state.weights(run.objective).keys() <= stored.keys()
