"""The best tower that keeps a budget: widths of a slimmable model are judged, measured, exported and measured again."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctrkit.atomic import atomic_directory, temporary_directory, write_json
from ctrkit.bundle import bundle_place
from ctrkit.config.models import CALIBRATION_ROWS, SlimmableConfig
from ctrkit.data.batch import Batch
from ctrkit.data.split import Part
from ctrkit.errors import UserError
from ctrkit.evaluation.held_out import HeldOut
from ctrkit.metrics.report import METRICS
from ctrkit.nn.batch_norm_calibration import calibrated_slice
from ctrkit.nn.network import Network
from ctrkit.objectives.slimmable import Slimmable
from ctrkit.run import Run, sha256
from ctrkit.slimming.autoslim import Channels, Step, WidthLosses, autoslim, channels_name
from ctrkit.slimming.budget import Budget, rounded_up
from ctrkit.slimming.measured_cost import MeasuredCost, drawn_widths
from ctrkit.slimming.timing import BUSY, made, measured_again, side_by_side
from ctrkit.train_model import calibration_batches
from ctrkit.training.predict import predict_networks
from ctrkit_serving.latency import Percentile

SEARCH_ROWS = 100_000
"""Rows of the validation part that AutoSlim judges widths on."""
_UNIFORM = 16
"""Fractions of the full width that are looked at."""
_MEASURED = 8
"""Towers that are measured side by side."""
_FITTED_REPEATS = 300
"""Requests that are timed of each tower that AutoSlim's cost is fitted to."""
_MARGIN = 0.95
"""Share of the budget that a tower may take when it is chosen: the budget has to hold on another day too."""


@dataclass(frozen=True)
class Candidate:
    """A tower of the slimmable net and what it is worth."""

    widths: Channels
    multiplications: int
    value: float
    """The model's monitored metric on the validation part."""

    @property
    def name(self) -> str:
        """As networks and measurements are named."""
        return channels_name(self.widths)


class Slim:
    """The towers of one slimmable model of a run.

    Args:
        run: with the model trained.
        model: its name; the run's last slimmable one if None.

    Raises:
        UserError: there is no such model.
    """

    def __init__(self, run: Run, model: str | None = None) -> None:
        slimmable = [name for name, config in run.recipe.models.items() if isinstance(config, SlimmableConfig)]
        if not slimmable or (model is not None and model not in slimmable):
            raise UserError(
                f"{run.directory}: {'no model' if model is None else f'model {model!r} is not'} of objective = "
                f'"slimmable"; the recipe has {slimmable or "none"}'
            )
        self.run, self.model = run, model or slimmable[-1]
        found = run.trained(self.model)
        assert isinstance(found, Slimmable)
        self.objective, self.tower = found, found.tower
        config = run.recipe.train_config(self.model)
        self.metric, self._seed = config.monitor, config.seed
        self._embedding = found.inference_model().embedding

    # --- towers

    @property
    def _listed_only(self) -> bool:
        """Whether no width but those of `widths` has norms."""
        return self.tower.norm == "switchable_batch_norm"

    def uniform(self) -> list[Channels]:
        """Every width of the range that was trained, or of those that have norms, all layers alike, widest first."""
        low, high = self.objective.range
        fractions = [low + (high - low) * i / (_UNIFORM - 1) for i in range(_UNIFORM)]
        found = {*self.tower.widths} if self._listed_only else {self.tower.channels(fraction) for fraction in fractions}
        return sorted(found, key=self.tower.multiplications_at, reverse=True)

    def path(self, cost: Callable[[Channels], float]) -> list[Step]:
        """AutoSlim's way from the widest that was trained to the smallest, by a cost."""
        low, high = (self.tower.channels(fraction) for fraction in self.objective.range)
        rows, seen = [], 0
        for batch in self.run.loader("valid").epoch():
            rows.append(batch)
            seen += len(batch)
            if seen >= SEARCH_ROWS:
                break
        losses = WidthLosses(self.tower, self._embedding, rows, self._calibration())
        return autoslim(high, losses, cost, group=self.tower.multiple, smallest=low)

    def searched(self, cost: Callable[[Channels], float]) -> list[Channels]:
        """Every tower on AutoSlim's way by a cost."""
        return [step.widths for step in self.path(cost)]

    def measured_cost(self, ads: int, repeats: int = _FITTED_REPEATS) -> MeasuredCost:
        """Milliseconds of a request with so many ads, as a function of the widths, from towers that are timed now."""
        low, high = (self.tower.channels(fraction) for fraction in self.objective.range)
        widths = drawn_widths(low, high, self.tower.multiple)
        p50 = []
        for name, latency in side_by_side(self.run, self.networks(widths), ads, repeats).items():
            assert latency.total.p50 is not None, name
            p50.append(latency.total.p50.value)
        cost = MeasuredCost(widths, p50)
        self.run.say(
            f"  p50 @ {ads} ads of {cost.count} towers, {min(p50):.3f} to {max(p50):.3f} ms, fitted to their widths: "
            f"R2 {cost.r2:.3f}"
        )
        return cost

    def networks(self, widths: Iterable[Channels]) -> dict[str, Network]:
        """Plain networks of some widths, by name; calibrated if their batch norm has no statistics of its own."""
        found = {}
        rows = self._vectors() if self.tower.has_batch_norm and not self._listed_only else None
        for each in widths:
            try:
                tower = calibrated_slice(self.tower, each, rows)
            except ValueError as error:
                way_out = 'take one of those, or train with norm = "universal_batch_norm" or without batch norm'
                raise UserError(f"model '{self.model}': {error}; {way_out}") from error
            found[channels_name(each)] = Network(self._embedding, tower)
        return found

    def _calibration(self) -> Iterable[Batch]:
        """Rows that batch norm is calibrated on; looked at only where there is one."""
        return calibration_batches(self.run.log, self.objective.calibration_rows or CALIBRATION_ROWS, self._seed)

    @torch.no_grad()
    def _vectors(self) -> list[torch.Tensor]:
        return [self._embedding.vectors(batch).x_BX for batch in self._calibration()]

    def judged(self, widths: Sequence[Channels], cost: Callable[[Channels], float] | None = None) -> list[Candidate]:
        """What each is worth on the validation part, costliest first; without those that a cheaper one beats.

        Args:
            widths: which.
            cost: of a tower; multiplications if not given.
        """
        cost = cost or self.tower.multiplications_at
        held_out = HeldOut(self.run.log, "valid")
        reports = self.reports(widths, "valid", held_out)
        found = [
            Candidate(each, self.tower.multiplications_at(each), reports[channels_name(each)][self.metric])
            for each in dict.fromkeys(widths)
        ]
        sign = 1 if METRICS[self.metric] else -1
        front: list[Candidate] = []
        for each in sorted(found, key=lambda c: (cost(c.widths), -sign * c.value)):
            if not front or sign * each.value > sign * front[-1].value:
                front.append(each)
        return front[::-1]

    def reports(self, widths: Sequence[Channels], part: Part, held_out: HeldOut) -> dict[str, dict[str, Any]]:
        """Every metric of some widths on a part, by name."""
        return {name: held_out.report(score).as_dict() for name, score in self._scores(widths, part).items()}

    def _scores(self, widths: Iterable[Channels], part: Part) -> dict[str, Any]:
        """Probabilities [rows] of some widths on a part, by name, from one look-up an embedding."""
        return predict_networks(self.networks(widths), self.run.loader(part))

    def against_full(self, widths: Sequence[Channels]) -> dict[str, dict[str, Any]]:
        """Every metric of some widths on the test part, by name; `difference`: of GAUC, less that of the full width.

        It has an interval over users; None for the full width, and where there are no intervals.
        """
        full, held_out = self.tower.channels(self.objective.range[1]), HeldOut(self.run.log, "test")
        scores = self._scores(dict.fromkeys([full, *widths]), "test")
        full_name, *_ = scores
        return {
            name: {
                **held_out.report(score).as_dict(),
                "difference": None if name == full_name else held_out.difference(scores[full_name], score),
            }
            for name, score in scores.items()
        }

    # --- the budget

    def front(self, budget: Budget, *, search: bool = True) -> list[Candidate]:
        """Towers that no cheaper one beats on the validation part, costliest first.

        What is cheap is what the budget says: multiplications, or milliseconds as `measured_cost` fits them.

        Args:
            budget: its kind and its ads; its limit does not matter.
            search: look at AutoSlim's towers beside the uniform ones, whose multiplications order them well enough; of
                switchable batch norm there are none.
        """
        search = search and not self._listed_only
        self.run.say(f"slim: judging the widths of {self.model} on the validation part")
        cost: Callable[[Channels], float] = self.tower.multiplications_at
        if search and budget.timed:
            cost = self.measured_cost(budget.ads)
        widths = [*self.uniform(), *(self.searched(cost) if search else [])]
        front = self.judged(widths, cost)
        self.run.say(f"  {len(set(widths))} towers, {len(front)} that no cheaper one beats in {self.metric}")
        return front

    def choose(self, budget: Budget, place: Path, front: list[Candidate]) -> dict[str, Any]:
        """Export the best tower that keeps a budget, measured again in a process of its own.

        Args:
            budget: what a request may cost.
            place: of the bundle.
            front: towers to choose from.

        Raises:
            UserError: no tower keeps it; names what the cheapest takes. Or the place holds something that is no bundle.
                Nothing is written then.
        """
        run, place = self.run, bundle_place(place)
        keeping, measured = self._keeping(front, budget)
        taken: dict[str, float] = {name: found.high for name, found in measured.items()}
        for candidate in keeping:
            with temporary_directory(made(place.parent), "slim") as temporary:
                result = self._exported(candidate, budget, temporary / "bundle")
                kept = result["verified"]["high"] <= budget.limit
                run.say(f"  {candidate.name}: {_text(budget, result['verified'])}{'' if kept else ', too much'}")
                if result["verified"].get("busy"):
                    run.say(f"  warning: {BUSY}")
                if kept:
                    result |= {"bundle": str(place), "measured": {n: vars(m) for n, m in measured.items()}}
                    put(temporary / "bundle", place, result)
                    return result
                taken[candidate.name] = result["verified"]["high"]
        raise UserError(self._refusal(front, budget, taken))

    def _keeping(self, front: list[Candidate], budget: Budget) -> tuple[list[Candidate], dict[str, Percentile]]:
        """Those that keep the budget by a first measurement, best first, and what was measured.

        First some spread over all; then those between the best that keeps it and the next costlier.
        """
        if not budget.timed:
            return [each for each in front if each.multiplications <= budget.limit], {}
        limit, measured = budget.limit * _MARGIN, dict[str, Percentile]()
        spread = _spread(front, _MEASURED)
        while spread:
            measured |= self.measured(spread, budget)
            index = next(
                (i for i, c in enumerate(front) if c.name in measured and measured[c.name].high <= limit), None
            )
            above = [i for i, c in enumerate(front[:index]) if c.name in measured] if index is not None else []
            between = front[above[-1] + 1 : index] if index is not None and above else []
            spread = _spread([c for c in between if c.name not in measured], _MEASURED)
        return [c for c in front if c.name in measured and measured[c.name].high <= limit], measured

    def measured(self, candidates: Sequence[Candidate], budget: Budget) -> dict[str, Percentile]:
        """The percentile of a budget for some towers side by side, milliseconds, by name."""
        run = self.run
        timed = side_by_side(run, self.networks([c.widths for c in candidates]), budget.ads, budget.repeats)
        found = {}
        for name, latency in timed.items():
            percentile = getattr(latency.total, budget.figure)
            assert percentile is not None
            found[name] = percentile
            run.say(f"  {name}: {_text(budget, vars(percentile))}")
        return found

    def _exported(self, candidate: Candidate, budget: Budget, place: Path) -> dict[str, Any]:
        (network,) = self.networks([candidate.widths]).values()
        test = self.against_full([candidate.widths])[candidate.name]
        name = f"{self.model}_{candidate.name}"
        metrics = {key: value for key, value in test.items() if isinstance(value, float)}
        fingerprint = [self.run.train(self.model)["weights"], list(candidate.widths)]
        bundle = self.run.write(network, place, name, metrics, sha256(fingerprint))
        if budget.timed:
            verified = measured_again(place, self.run.log.requests, budget)
        else:
            cost = float(bundle.manifest.multiplications)
            verified = {"value": cost, "low": cost, "high": cost}
        return {
            "model": self.model,
            "budget": str(budget),
            "widths": list(candidate.widths),
            "multiplications": candidate.multiplications,
            "valid": {self.metric: candidate.value},
            "test": {**metrics, "difference": test["difference"]},
            "verified": verified,
        }

    def _refusal(self, front: Sequence[Candidate], budget: Budget, taken: Mapping[str, float]) -> str:
        if budget.timed:
            name = min(taken, key=lambda each: taken[each])
            nearest = f"{rounded_up(taken[name] / _MARGIN)} ms"
        else:
            name, nearest = front[-1].name, f"{front[-1].multiplications:,}"
        return (
            f"no width of '{self.model}' keeps {budget}: the nearest that holds is {budget.figure} <= {nearest}, by "
            f"{name}; ask for that, or train a slimmable model that goes lower"
        )


def put(bundle: Path, place: Path, result: Mapping[str, Any]) -> None:
    """Move a bundle to its place, and write what it is worth into a file beside it."""
    beside = place.with_name(f"{place.name}.json")
    with atomic_directory(place) as new:
        bundle.rename(new)
        beside.unlink(missing_ok=True)  # it tells of the old one
    write_json(beside, result)


def _spread(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Evenly many of them, the ends among them."""
    if len(candidates) <= count:
        return list(candidates)
    return [candidates[round(i * (len(candidates) - 1) / (count - 1))] for i in range(count)]


def _text(budget: Budget, found: Mapping[str, float]) -> str:
    if not budget.timed:
        return f"{found['value']:,.0f} multiplications"
    return f"{budget.figure} {found['value']:.3f} ms [{found['low']:.3f}, {found['high']:.3f}]"
