"""A recipe carried out in a directory of its own, step by step; what is done is not done again.

    RUN/data/            the prepared log                        RUN/evaluation.json  metrics on the test part
    RUN/models/NAME/     checkpoints, encoding, metrics, result  RUN/bundle/          what goes online
    RUN/predictions/     scores of the test part                 RUN/bench/           the costliest network
    RUN/recipe.json      the recipe, defaults and overrides in   RUN/summary.json     the figures of the table
    RUN/slim/            bundles that `ctrkit slim` chose

Each step keeps the fingerprint of what it depends on beside its result, and is skipped if that has not changed.
"""

import hashlib
import json
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

import ctrkit
from ctrkit.atomic import lock, read_json, write_json
from ctrkit.builders.check import check_networks
from ctrkit.bundle import MANIFEST, Bundle
from ctrkit.config.models import EnsembleConfig, PointwiseConfig
from ctrkit.config.recipe import BEST, Recipe, as_dict, network_name, serving_dict
from ctrkit.data.batch import Batch
from ctrkit.data.loader import Loader
from ctrkit.data.prepare import fingerprint as data_fingerprint
from ctrkit.data.prepare import prepare
from ctrkit.data.prepared import PreparedLog
from ctrkit.data.split import Part
from ctrkit.errors import UserError
from ctrkit.evaluation.gap import gaps
from ctrkit.evaluation.held_out import HeldOut
from ctrkit.export.export import Rewrites, export_bundle
from ctrkit.export.gate import HeldOutRows, Limits
from ctrkit.export.widths import Width
from ctrkit.metrics.report import METRICS
from ctrkit.nn.network import Network
from ctrkit.objectives.objective import Objective
from ctrkit.request import read_requests
from ctrkit.train_model import EVALUATION_BATCH, ModelTraining, trained
from ctrkit.training.checkpoints import Checkpoints, Found
from ctrkit.training.device import find_device
from ctrkit.training.predict import predict
from ctrkit.training.ranks import Ranks
from ctrkit.training.saved_training import CHECKPOINTS
from ctrkit.training.warm_start import start_identity


class Run:
    """The steps of one recipe. Each does first what it stands on, once.

    Args:
        recipe: what to do.
        directory: of the run.
        data_directory: of the prepared log, if several runs share it; `directory`/data if not given.
        ranks: that train together; those that torchrun started if not given. They see the same directories.
        quiet: no progress.
        say: told what is done or skipped, a line at a time.
    """

    def __init__(
        self,
        recipe: Recipe,
        directory: Path,
        *,
        data_directory: Path | None = None,
        ranks: Ranks | None = None,
        quiet: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.recipe = recipe
        self.directory = directory
        self.data_directory = data_directory or directory / "data"
        self.ranks = Ranks.join() if ranks is None else ranks
        first = self.ranks.rank == 0
        self.quiet = quiet or not first
        self.say = say if first else lambda _: None
        self._results: dict[str, dict[str, Any]] = {}

    # --- prepare

    @cached_property
    def log(self) -> PreparedLog:
        """The prepared log, prepared now, by the first rank, if its input or the schema changed."""
        self.ranks.on_first(self._prepare)
        return PreparedLog.open(self.data_directory)

    def _prepare(self) -> None:
        # held as long as this run lives: two in one directory would mix their results
        way_out = "every command on a run writes into its directory: make that writable, or use another, or a copy"
        weakref.finalize(self, os.close, lock(self.directory / "run", way_out))
        write_json(self.directory / "recipe.json", as_dict(self.recipe))
        place, schema = self.data_directory, self.recipe.schema_()
        if (place / "manifest.json").exists():
            log = self._open(place)
            if log is not None and log.fingerprint == data_fingerprint(self.recipe.data, schema):
                self.say(f"prepare: {place} is up to date")
                return
        self.say(f"prepare: {self.recipe.data.path or 'synthetic log'} -> {place}")
        log = prepare(self.recipe.data, schema, place, progress=False if self.quiet else None)
        for warning in log.manifest["warnings"]:
            self.say(f"  warning: {warning}")

    def _open(self, place: Path) -> PreparedLog | None:
        try:
            return PreparedLog.open(place)
        except UserError as error:
            self.say(f"prepare: {error}; preparing again")
            return None

    def loader(self, part: Part, batch_size: int = EVALUATION_BATCH) -> Loader:
        """The rows of a part, as they lie."""
        return Loader(self.log.schema, self.log.files(part), batch_size=batch_size)

    # --- train

    def train(self, model: str) -> dict[str, Any]:
        """Train one model; its `result.json`."""
        if model not in self._results:
            self.check([model])  # what cannot be built or started from is told before the log is prepared
            self._results[model] = self._train(model)
        return self._results[model]

    def train_all(self) -> bool:
        """Train all models; whether this process goes on: of several ranks the first does, by itself."""
        self.check(self.recipe.models)
        for model in self.recipe.models:
            self.train(model)
        first = self.ranks.rank == 0
        self.ranks = self.ranks.leave()
        return first

    def check(self, models: Iterable[str]) -> None:
        """Refuse models that cannot be built, or start from weights that are not there, before one is trained.

        So are processes and device of a model that was never trained here, where they cannot train it: one that was
        may be used by others.
        """
        for model in models:
            if model not in self._results:
                known = self.ranks.on_first((self.directory / "models" / model / "result.json").exists)
                processes = 1 if known else self.ranks.size
                self.ranks.on_first(partial(check_networks, self.recipe, model, processes))
                self._start(model)
                if not known:
                    device = self.recipe.train_config(model).device
                    self.ranks.on_each(partial(find_device, device, self.ranks))

    def _train(self, model: str) -> dict[str, Any]:
        place = self.directory / "models" / model
        for teacher, _ in self.recipe.frozen_teachers(model).values():
            self.train(teacher)
        source = self._slice_of(model)
        if source is not None:
            self.train(source)
        fingerprint = self._model_fingerprint(model)
        done = self.ranks.on_first(lambda: read_json(place / "result.json"))
        best = Checkpoints(place / CHECKPOINTS, ranks=self.ranks).best()
        if _is_result_of(done, best) and done.get("fingerprint") == fingerprint:
            self.say(f"train {model}: {place} is up to date")
            return done
        self.say(f"train {model}: {self.log.rows('train'):,} rows -> {place}")
        frozen = self._teachers(model)
        training = ModelTraining(
            self.recipe,
            model,
            self.log,
            place,
            frozen,
            self.ranks,
            self.quiet,
            self.say,
            slice_of=None if source is None else self.trained(source),
        )
        result = training.fit(fingerprint)
        self.ranks.on_first(lambda: write_json(place / "result.json", result))
        return result

    def is_trained(self, model: str) -> bool:
        """Whether a model lies there as this recipe trains it."""
        place = self.directory / "models" / model
        done = read_json(place / "result.json")
        best = Checkpoints(place / CHECKPOINTS, ranks=self.ranks).best()
        source = self._slice_of(model)
        above = [*(of for of, _ in self.recipe.frozen_teachers(model).values()), *([source] if source else [])]
        if not _is_result_of(done, best) or not all(self.is_trained(of) for of in above):
            return False
        return bool(done.get("fingerprint") == self._model_fingerprint(model))

    def _model_fingerprint(self, model: str) -> str:
        recipe = as_dict(self.recipe)
        content = {
            "data": self.log.fingerprint,
            "embedding": recipe["embedding"],
            "towers": {name: recipe["towers"][name] for name in self.recipe.models[model].towers},
            "model": {key: value for key, value in recipe["models"][model].items() if key != "train"},
            "train": self.recipe.train_config(model).model_dump(
                mode="json", exclude={"tensorboard", "keep_checkpoints", "skip_unreadable", "warm_start"}
            ),
            "version": ctrkit.__version__,
        }
        teachers = self.recipe.frozen_teachers(model)
        if teachers:
            content["teachers"] = {name: [*self._weights(of), role] for name, (of, role) in teachers.items()}
        source = self._slice_of(model)
        if source is not None:
            content["slice_of"] = self._weights(source)
        start = self._start(model)
        if start is not None:
            content["warm_start"] = start
        return sha256(content)

    def _start(self, model: str) -> list[str] | None:
        """What identifies the weights of another run that a model starts from; None if it starts from none."""
        run, place = self.recipe.train_config(model).warm_start, self.directory / "models" / model
        return None if run is None else self.ranks.on_first(lambda: start_identity(run, model, place))

    def _slice_of(self, model: str) -> str | None:
        """The slimmable model that a model starts from."""
        config = self.recipe.models[model]
        return config.slice_of if isinstance(config, PointwiseConfig) else None

    def _weights(self, model: str) -> list[str]:
        """What identifies the trained weights of a model, and with them all that is made of them."""
        result = self.train(model)
        return [result["fingerprint"], result["weights"]]

    def trained(self, model: str) -> Objective:
        """A model with its best weights, trained now if need be."""
        self.train(model)
        return trained(self.recipe, model, self.log, self.directory / "models" / model, self._teachers(model))

    def _teachers(self, model: str) -> dict[str, Network]:
        """The trained networks that teach a model."""
        teachers = self.recipe.frozen_teachers(model)
        found = {of: self.trained(of) for of in dict.fromkeys(of for of, _ in teachers.values())}
        return {  # by its own name a model teaches through the network that ships, of peers the best
            name: found[of].inference_model() if name == of else found[of].networks()[role]
            for name, (of, role) in teachers.items()
        }

    # --- evaluate

    @property
    def predictions(self) -> Path:
        """Where the probabilities of every network on the test part lie, a file each."""
        return self.directory / "predictions" / "test"

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """Metrics of every network of every model on the test part, and of the oracle; `evaluation.json`.

        With the interval of GAUC over users, and the share that each taught network closes of its gap, None where there
        is none.
        """
        place = self.directory / "evaluation.json"
        self.check(self.recipe.models)
        for model in self.recipe.models:
            self.train(model)
        weights = {model: self._weights(model) for model in self.recipe.models}
        fingerprint = sha256({"weights": weights, "version": ctrkit.__version__, "intervals": True})
        done = read_json(place)
        predictions = self.predictions
        written = all((predictions / f"{name}.parquet").exists() for name in (done or {}).get("networks", ()))
        if done is not None and done.get("fingerprint") == fingerprint and written:
            self.say(f"evaluate: {place} is up to date")
            return done
        self.say(f"evaluate: {self.log.rows('test'):,} rows -> {place}")
        place.unlink(missing_ok=True)  # should this one be killed, it would vouch for scores of other weights
        held_out = HeldOut(self.log, "test")
        networks: dict[str, Any] = {}
        scores: dict[str, npt.NDArray[np.float64]] = {}
        for name, score, multiplications in self._test_scores(held_out):
            networks[name] = {
                **held_out.report(score).as_dict(),
                "gauc_interval": held_out.interval(score),
                "multiplications": multiplications,
            }
            held_out.save(predictions / f"{name}.parquet", score)
            if held_out.resampled:
                scores[name] = score
        closed = {
            gap.taught: held_out.share_of_gap(scores[gap.light], scores[gap.taught], scores[gap.booster])
            for gap in gaps(self.recipe, networks)
            if held_out.resampled
        }
        result = {"fingerprint": fingerprint, "part": "test", "networks": networks, "gap_closed": closed}
        write_json(place, result)
        return result

    def _test_scores(self, held_out: HeldOut) -> Iterator[tuple[str, npt.NDArray[np.float64], int | None]]:
        """Name, probabilities [rows] and multiplications of every network, and of the oracle."""
        for model in self.recipe.models:
            device = find_device(self.recipe.train_config(model).device)
            objective = self.trained(model).to(device)
            for role, probability in predict(objective, self.loader("test"), device).items():
                yield network_name(model, role), probability, objective.network(role).multiplications
        if held_out.oracle is not None:
            yield "oracle", held_out.oracle, None

    # --- export

    @cached_property
    def bundle(self) -> Bundle:
        """The bundle that goes online."""
        return self._export(self.export_model, None, self.directory / "bundle", exact=False)

    @cached_property
    def export_model(self) -> str:
        """Name of the model that goes online, chosen now if the recipe leaves that to validation."""
        if self.recipe.export_model != BEST:
            return self.recipe.export_model
        costs = self.serving_costs()
        costs = {model: cost for model, cost in costs.items() if not self._only_teaches(model)} or costs
        cheapest = [model for model, cost in costs.items() if cost == min(costs.values())]
        chosen = self.best_on_validation(cheapest[-1])
        values = {model: self.train(model) for model in cheapest}
        shown = ", ".join(f"{model} {value['best']:.4f} ({value['monitor']})" for model, value in values.items())
        self.say(f"export: {chosen} is best on validation of {shown}")
        return chosen

    def serving_costs(self) -> dict[str, int]:
        """Multiplications of what each model ships, of those that can."""
        networks = self.evaluation["networks"]
        models = [model for model in self.recipe.models if self.recipe.can_ship(model)]
        return {m: networks[network_name(m, self.train(m)["ships"])]["multiplications"] for m in models}

    def best_on_validation(self, than: str) -> str:
        """Of the models that cost no more than one to serve, the best by its metric; itself if none is better."""
        costs, metric = self.serving_costs(), self.train(than)["monitor"]
        rivals = [m for m in costs if costs[m] <= costs[than] and self.train(m)["monitor"] == metric]
        rivals = [m for m in rivals if m == than or not self._only_teaches(m)]
        sign = 1 if METRICS[metric] else -1
        best = max(rivals, key=lambda model: sign * float(self.train(model)["best"]))
        return best if sign * self.train(best)["best"] > sign * self.train(than)["best"] else than

    def _only_teaches(self, model: str) -> bool:
        """An ensemble: the best of its members is the luckiest draw of one tower, and ships if asked for by name."""
        return isinstance(self.recipe.models[model], EnsembleConfig)

    @cached_property
    def booster_bundle(self) -> Bundle | None:
        """The costliest network as a bundle for the clock, not for serving; None if `bundle` costs no less.

        It is exact, with the item table of [export], so that the clock compares networks and not ways to serve them.
        """
        networks = self.recipe.networks()
        costs = {
            name: self.evaluation["networks"][name]["multiplications"]
            for name, network in networks.items()
            if network.tower is not None and not self.recipe.towers[network.tower].privileged
        }
        costliest = max(costs, key=lambda name: costs[name])
        if costs[costliest] <= self.bundle.manifest.multiplications:
            return None
        model, role = networks[costliest].model, networks[costliest].role
        return self._export(model, role, self.directory / "bench" / "booster", exact=True)

    def _export(self, model: str, role: str | None, place: Path, *, exact: bool) -> Bundle:
        evaluation = self.evaluation
        config = self.recipe.export.model_dump(mode="json", exclude={"model"})
        config["exact"] = exact
        fingerprint = sha256([model, self._weights(model), role, config, _file_state(self.recipe.export.items)])
        if (place / MANIFEST).exists():
            found = self._load(place)
            if found is not None and found.manifest.recipe.get("fingerprint") == fingerprint:
                self.say(f"export: {place} is up to date")
                return found
        objective = self.trained(model)
        role = objective.inference_role() if role is None else role
        name = network_name(model, role)
        self.say(f"export: {name} -> {place}")
        metrics = {k: v for k, v in evaluation["networks"][name].items() if isinstance(v, float)}
        return self.write(objective.network(role), place, name, metrics, fingerprint, exact=exact)

    def write(
        self,
        network: Network,
        place: Path,
        name: str,
        metrics: dict[str, float],
        fingerprint: str,
        *,
        exact: bool = False,
        widths: Mapping[str, Width] | None = None,
    ) -> Bundle:
        """Export a network with the item table of [export] and, unless `exact`, its approximations."""
        bundle = export_bundle(
            network,
            self.log.encoding.serving(),
            place,
            name=name,
            held_out=list(self._held_out()),
            requests=list(islice(read_requests(self.log.requests), 64)),
            metrics=metrics,
            recipe={"fingerprint": fingerprint, **serving_dict(self.recipe)},
            widths=widths,
            **({"rewrites": self.item_table} if exact else self._rewrites()),
        )
        self.say(f"  ONNX Runtime and torch differ by at most {bundle.manifest.parity_max_abs_diff:.1e}")
        return bundle

    @property
    def item_table(self) -> Rewrites:
        """The item table of [export], if any, and no approximation: what networks are compared by."""
        config = self.recipe.export
        return Rewrites(None if config.items is None else Path(config.items), config.item_key)

    def _rewrites(self) -> dict[str, Any]:
        """What is written beside the network that serves, and the rows that judge its approximations."""
        config = self.recipe.export
        limits = Limits(config.max_gauc_change, config.max_pcoc_change, config.max_difference)
        rewrites = replace(self.item_table, tables=config.tables, int8=config.int8, limits=limits)
        if not rewrites.approximate:
            return {"rewrites": rewrites}
        judged = HeldOutRows(self.loader("test").epoch, HeldOut(self.log, "test").report)
        return {"rewrites": rewrites, "judged": judged, "say": self.say}

    def _load(self, place: Path) -> Bundle | None:
        try:
            return Bundle.load(place)
        except UserError as error:
            self.say(f"export: {error}; exporting again")
            return None

    def _held_out(self) -> Iterator[Batch]:
        rows = 0
        for batch in self.loader("valid", batch_size=1024).epoch():
            if rows >= self.recipe.export.parity_rows:
                return
            rows += len(batch)
            yield batch


def _is_result_of(done: dict[str, Any] | None, best: Found | None) -> TypeGuard[dict[str, Any]]:
    """Whether the best weights that lie there are those that a result speaks of, not older ones of a damaged folder."""
    return done is not None and best is not None and done.get("best_step") == best.step


def _file_state(path: str | None) -> list[int] | None:
    """What changes with a file; the file itself is checked by who reads it."""
    if path is None or not Path(path).exists():
        return None
    state = Path(path).stat()
    return [state.st_size, state.st_mtime_ns]


def sha256(content: Any) -> str:
    """Fingerprint of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
