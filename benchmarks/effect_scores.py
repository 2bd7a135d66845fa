"""What the scores of the effect benchmark's networks are worth: GAUC, gains and shares of the gap, with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctrkit.config.recipe import network_name
from ctrkit.evaluation.runs import Columns, Impressions, ModelRuns
from ctrkit.metrics import bootstrap_intervals, holm, paired_bootstrap, share_of_gap
from ctrkit.metrics.bootstrap import Difference, Interval


class Scores:
    """The test part's scores of networks, by seed, and what they are worth."""

    def __init__(self, place: Path, seeds: Sequence[int], baseline: str) -> None:
        self.place, self.seeds = place, seeds
        self._log = Impressions.read(str(self._path(baseline, seeds[0])), Columns())
        self._baseline = self._of([[baseline]] * len(seeds))

    def _path(self, network: str, seed: int) -> Path:
        return self.place / f"seed{seed}" / "predictions" / "test" / f"{network}.parquet"

    def _of(self, networks: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """Probabilities [seeds, rows]; of several networks the mean logit's."""
        found = []
        for names, seed in zip(networks, self.seeds, strict=True):
            paths = tuple(str(self._path(name, seed)) for name in names)
            scores = self._log.scores(ModelRuns(names[0], paths))
            if len(names) > 1:
                inside = scores.clip(1e-12, 1 - 1e-12)
                scores = 1 / (1 + np.exp(-np.log(inside / (1 - inside)).mean(0, keepdims=True)))
            found.append(scores[0])
        return np.stack(found)

    def interval(self, networks: Sequence[Sequence[str]]) -> Interval:
        """GAUC of a network a seed."""
        return bootstrap_intervals(self._log.label, self._of(networks), self._log.user, metrics=["gauc"])["gauc"]

    def against_baseline(self, networks: Sequence[Sequence[str]]) -> Difference:
        """Its GAUC less the baseline's."""
        log = self._log
        return paired_bootstrap(log.label, self._baseline, self._of(networks), log.user, metrics=["gauc"])["gauc"]

    def share_of_gap(
        self, networks: Sequence[Sequence[str]], boosters: Sequence[Sequence[str]]
    ) -> dict[str, float | None] | None:
        """How much of the gap between baseline and booster it closes; None where there is none."""
        log = self._log
        found = share_of_gap(log.label, self._baseline, self._of(networks), self._of(boosters), log.user)
        return None if found is None else _interval(found.value, found.low, found.high)


class Row:
    """One line of the table: a network of a model, perhaps another one for each seed, or the mean of several."""

    def __init__(
        self, scores: Scores, trained: Sequence[dict[str, Any]], model: str, roles: Sequence[str | Sequence[str]]
    ) -> None:
        names = [[network_name(model, r) for r in ([role] if isinstance(role, str) else role)] for role in roles]
        self._own, self._against = scores.interval(names), scores.against_baseline(names)
        runs = [[each["networks"][name] for name in of] for each, of in zip(trained, names, strict=True)]
        costs = [sum(network["multiplications"] for network in of) for of in runs]
        self._multiplications = max(costs)  # peers of several shapes: another one may ship for each seed
        self._runs = [of[0] for of in runs] if all(len(of) == 1 for of in runs) else []

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        own, against = self._own, self._against
        return {
            "gauc": _interval(own.value, own.low, own.high),
            "gain": _interval(against.difference, against.low, against.high),
            "p_value": against.p_value,
            "multiplications": self._multiplications,
            "runs": self._runs,
        }

    def cells(self) -> list[str]:
        """For the table."""
        return [f"{self._multiplications:,}", _spread(self._own), _gain(self._against)]


def picture(result: Mapping[str, Any]) -> dict[str, Any]:
    """The gains of what ships, as `draw_differences` takes them: told from chance by Holm's correction over them."""
    shipped = {name: of["shipped"] for name, of in result["methods"].items() if name != result["baseline"]}
    adjusted = holm([of["p_value"] for of in shipped.values()])
    variants = [
        {
            "name": method,
            "difference": of["gain"]["value"],
            "low": of["gain"]["low"],
            "high": of["gain"]["high"],
            "told": bool(p <= 0.05),
        }
        for (method, of), p in zip(shipped.items(), adjusted, strict=True)
    ]
    return {
        "rows": result["rows"]["test"],
        "users": result["users"],
        "baseline": result["baseline"],
        "level": 0.95,
        "metrics": [{"name": "GAUC", "unit": "", "larger_is_better": True, "variants": variants}],
    }


def _interval(value: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def _spread(found: Interval) -> str:
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"


def _gain(found: Difference) -> str:
    return f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
