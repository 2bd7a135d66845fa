"""Learning methods through a whole run: privileged features that never leave it, teachers, peers, what is done anew."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import ANY

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch
from onnx import numpy_helper

from ctrkit.builders.objective import build_objective
from ctrkit.bundle import Bundle
from ctrkit.config.recipe import Recipe, load_recipe
from ctrkit.data.loader import Loader
from ctrkit.errors import UserError
from ctrkit.nn.network import Network
from ctrkit.objectives.co_training import CoTraining
from ctrkit.objectives.objective import Objective
from ctrkit.run import Run
from ctrkit.train_model import ModelTraining, trained
from ctrkit.training.checkpoints import Checkpoints
from ctrkit.training.predict import predict
from ctrkit.training.ranks import Ranks
from ctrkit.training.saved_training import CHECKPOINTS, SavedTraining
from ctrkit.training.warm_start import Source, warm_start
from ctrkit_serving.scorer import Scorer
from tests import small_recipe

T = TypeVar("T")

# `secret` stands in the names of privileged features and nowhere else
METHODS = """
[towers.seeing]
hidden = [12]
privileged = true

[towers.crosses]
kind = "dcn_v2"
hidden = [8]
cross_layers = 2

[models.rocket]
objective = "rocket_launching"
light = "light"
booster = "seeing"
route = 0.5

[models.peers]
objective = "mutual_learning"
peers = ["light", "booster"]
updates = "in_turn"

[models.taught]
objective = "distillation"
student = "light"
teachers = ["crossed", "peers", "click_probability"]
auxiliary_head = true

[models.crossed]
objective = "pointwise"
tower = "crosses"
"""
RECIPE = (
    small_recipe.RECIPE.replace(
        '[features]\n',
        '[features]\nsecret_depth = { side = "context", kind = "dense", column = "position", privileged = true }\n',
    )
    .replace("[embedding]\n", 'secret_slot = { side = "context", column = "position", privileged = true }\n'
             'bid = { side = "item", kind = "dense", column = "hour" }\n'
             'secret_bucket = { side = "item", kind = "dense", transform = "bucketize", column = "position",'
             ' num_buckets = 4, privileged = true }\n\n[embedding]\n')
    .replace('oracle = "click_probability"', 'teachers = ["click_probability"]')
    .split("[models.rocket]")[0]
)  # fmt: skip
TAIL = "\n[train]" + small_recipe.RECIPE.split("[train]")[1]


def recipe(folder: Path, *overrides: str) -> Recipe:
    """The small recipe with a model of each method; the student's teachers stand above it."""
    parts = METHODS.split("[models.taught]")
    crossed = "[models.crossed]" + parts[1].split("[models.crossed]")[1]
    student = "[models.taught]" + parts[1].split("[models.crossed]")[0]
    path = folder / "methods.toml"
    path.write_text(RECIPE + parts[0] + crossed + student + TAIL)
    return load_recipe(path, ["export.model=rocket", *overrides])


def opened(directory: Path, *overrides: str) -> tuple[Run, list[str]]:
    said: list[str] = []
    return Run(recipe(directory.parent, *overrides), directory, quiet=True, say=said.append), said


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a run in which every method is trained, evaluated, and the rocket exported."""
    folder = tmp_path_factory.mktemp("methods")
    run, _ = opened(folder / "run")
    _ = run.bundle
    assert run.booster_bundle is not None
    return folder / "run"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def result(directory: Path, model: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "models" / model / "result.json").read_text())
    return found


def objective_of(run: Run, model: str) -> Objective:
    return run.trained(model)


# --- privileged features


def files_of(bundle: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(bundle.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(bundle)), path.read_bytes()


@pytest.mark.parametrize("name", ["bundle", "bench/booster"])
def test_a_bundle_has_nothing_of_privileged_features(finished: Path, name: str) -> None:
    # EasyRec exports booster and light together: what serves carries what only training needs
    bundle, names = finished / name, []
    for file, content in files_of(bundle):
        assert "secret" not in file
        names.append(file)
        assert b"secret" not in content, file
        assert b"position" not in content, file
        assert b"click_probability" not in content, file  # the column of a teacher
    assert {"manifest.json", "encoding/encoding.json"} <= set(names), names


def test_weights_of_a_bundle_are_those_of_the_light_network_alone(finished: Path) -> None:
    run, _ = opened(finished)
    light, booster = objective_of(run, "rocket").networks().values()
    assert booster.privileged is not None
    stored = b"".join(content for _, content in files_of(finished / "bundle"))
    for stack in light.embedding.stacks.values():
        assert all(row.numpy().tobytes() in stored for row in stack.detach()[2:12])
    foreign = [row for stack in booster.privileged.stacks.values() for row in stack.detach()[2:]]
    foreign += [row for weight in booster.tower.parameters() for row in weight.detach().reshape(-1, weight.shape[-1])]
    looked_for = [row for row in foreign if row.numel() > 1 and row.abs().sum() > 0]
    assert len(looked_for) > 20
    assert not any(row.numpy().tobytes() in stored for row in looked_for)
    graph = onnx.load(finished / "bundle" / "model.onnx")
    values = sum(numpy_helper.to_array(t).size for t in graph.graph.initializer if "table" in t.name)
    assert values == sum(stack.numel() for stack in light.embedding.stacks.values())


def test_requests_of_the_log_are_those_that_serving_gets(finished: Path) -> None:
    text = (finished / "data" / "requests.jsonl").read_text()
    assert "price" in text
    assert "secret" not in text
    assert "position" not in text
    golden = Bundle.load(finished / "bundle").golden
    assert len(golden.requests) > 0


def test_the_bundle_scores_as_the_light_network_does(finished: Path) -> None:
    # dense columns of the log that serve are the second and third of four: mixed up, scores would differ
    run, _ = opened(finished)
    predictions = pq.read_table(finished / "predictions" / "test" / "rocket_light.parquet")["probability"]
    scorer = Scorer.load(finished / "bundle")
    schema = run.log.schema
    assert [f.name for f in schema.dense_features] == ["secret_depth", "price", "bid"]
    day = sorted((finished / "raw").rglob("day=*"))[-1]
    rows = pq.read_table(next(day.glob("*.parquet"))).to_pylist()
    for row, expected in list(zip(rows, predictions.to_pylist(), strict=True))[:40]:
        sides: dict[str, dict[str, Any]] = {"user": {}, "item": {}, "context": {}}
        for feature in schema.serving().features:
            sides[feature.side][feature.source] = row[feature.source]
        (found,) = scorer.score(sides["user"], [sides["item"]], sides["context"])
        assert found == pytest.approx(expected, abs=1e-5)


def test_the_booster_sees_what_is_privileged_and_is_evaluated(finished: Path) -> None:
    # TorchEasyRec skips the booster outside of training: nobody can see whether it is better
    networks = json.loads((finished / "evaluation.json").read_text())["networks"]
    assert {"rocket_light", "rocket_booster", "peers_peer0", "peers_peer1", "taught"} <= networks.keys()
    assert all(0 < metrics["gauc"] < 1 for metrics in networks.values())
    run, _ = opened(finished)
    objective = objective_of(run, "rocket")
    loader = Loader(run.log.schema, run.log.files("test"), batch_size=512)
    for role, probability in predict(objective, loader).items():
        stored = pq.read_table(finished / "predictions" / "test" / f"rocket_{role}.parquet")["probability"].to_numpy()
        np.testing.assert_allclose(probability, stored, atol=1e-7)
    batch = next(loader.epoch())
    with torch.no_grad():
        before = objective.logits(batch)
        batch.dense_BD[:, 0] += 1
        after = objective.logits(batch)
    assert torch.equal(before["light"], after["light"])
    assert not torch.equal(before["booster"], after["booster"])


def test_a_privileged_network_cannot_be_exported(finished: Path, tmp_path: Path) -> None:
    from ctrkit.export.export import export_bundle

    run, _ = opened(finished)
    booster = objective_of(run, "rocket").networks()["booster"]
    with pytest.raises(
        UserError, match="the network sees privileged features, which do not exist where it would serve"
    ):
        export_bundle(booster, run.log.encoding.serving(), tmp_path / "bundle", name="b", held_out=[], requests=[])
    assert not (tmp_path / "bundle").exists()


def test_the_bundle_for_the_clock_is_the_costliest_that_may_be_exported(finished: Path) -> None:
    assert Bundle.load(finished / "bench" / "booster").manifest.name == "crossed"


def test_a_tower_with_crosses_goes_online(copy: Path) -> None:
    run, _ = opened(copy, "export.model=crossed")
    assert run.bundle.manifest.name == "crossed"
    assert run.bundle.manifest.parity_max_abs_diff < 1e-6
    Scorer.load(run.bundle.directory)  # its golden requests


# --- peers


def test_the_peer_that_ships_is_the_best_on_validation(finished: Path) -> None:
    said = result(finished, "peers")
    lines = [json.loads(t) for t in (finished / "models" / "peers" / "metrics.jsonl").read_text().splitlines()]
    by_role = {(line["step"], role): line["valid"][role]["gauc"] for line in lines for role in ("peer0", "peer1")}
    best = max(by_role, key=lambda key: by_role[key])
    assert (said["best_step"], said["ships"]) == best
    assert said["best"] == by_role[best]
    run, _ = opened(finished)
    assert objective_of(run, "peers").inference_role() == said["ships"]


def test_the_best_peer_is_what_is_exported(copy: Path) -> None:
    run, _ = opened(copy, "export.model=peers")
    assert run.bundle.manifest.name == f"peers_{result(copy, 'peers')['ships']}"


@pytest.mark.parametrize("role", ["peer0", "peer1"])
def test_what_is_loaded_ships_the_peer_that_was_best(
    finished: Path, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = opened(finished)
    best = Checkpoints.best

    def of_role(self: Checkpoints) -> Any:
        found = best(self)
        assert found is not None
        progress = {**found.values["progress"], "best_role": role}
        return replace(found, values={**found.values, "progress": progress})

    monkeypatch.setattr(Checkpoints, "best", of_role)
    found = trained(run.recipe, "peers", run.log, finished / "models" / "peers")
    assert found.inference_role() == role
    assert found.inference_model() is found.networks()[role]


def killed_after_its_first_checkpoint(directory: Path, model: str, patch: pytest.MonkeyPatch, *overrides: str) -> None:
    saved = SavedTraining.save

    def dies(self: SavedTraining, *, best: bool) -> None:
        saved(self, best=best)
        if self.directory.name == model:
            raise KeyboardInterrupt

    run, _ = opened(directory, *overrides)
    with patch.context() as changed:
        changed.setattr(SavedTraining, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            run.train(model)
    assert not (directory / "models" / model / "result.json").exists()


def test_a_killed_mutual_learning_goes_on_to_the_same_peer(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = result(copy, "peers")
    shutil.rmtree(copy / "models" / "peers")
    killed_after_its_first_checkpoint(copy, "peers", monkeypatch)
    run, said = opened(copy)
    assert run.train("peers") == {**expected, **dict.fromkeys(("seconds", "rows_per_second"), ANY)}
    assert any(line.startswith("  goes on from step ") for line in said)


class FirstOfTwo(Ranks):
    """The first of two ranks, where nothing needs the other one."""

    def on_first(self, work: Callable[[], T]) -> T:
        return work()

    def on_each(self, work: Callable[[], T]) -> list[T]:
        return [work()]


def test_what_two_processes_cannot_train_is_refused_before_the_log_is_prepared(tmp_path: Path) -> None:
    run = Run(recipe(tmp_path), tmp_path / "run", ranks=FirstOfTwo(0, 2))
    with pytest.raises(UserError, match="model 'peers': networks that learn in turn train in one process, not in 2"):
        run.train_all()
    assert not (tmp_path / "run").exists()


def test_two_processes_use_what_one_has_trained(finished: Path) -> None:
    Run(recipe(finished.parent), finished, ranks=FirstOfTwo(0, 2)).check(["peers"])


def test_networks_that_learn_in_turn_do_so_in_one_process(finished: Path, tmp_path: Path) -> None:
    """Also where one process had trained them before."""
    run, _ = opened(finished)
    training = ModelTraining(run.recipe, "peers", run.log, tmp_path, ranks=Ranks(0, 2))
    with pytest.raises(UserError, match="model 'peers': networks that learn in turn train in one process, not in 2"):
        training.fit("fingerprint")


# --- distillation


def frozen_of(run: Run) -> dict[str, Network]:
    objective = objective_of(run, "taught")
    assert isinstance(objective, CoTraining)
    return objective.frozen.networks()


def test_the_teachers_of_a_student_are_the_trained_networks(finished: Path) -> None:
    run, _ = opened(finished)
    frozen = frozen_of(run)
    assert list(frozen) == ["crossed", "peers"]
    ships = result(finished, "peers")["ships"]
    assert frozen["peers"].tower.hidden_widths == {"peer0": (8,), "peer1": (16, 8)}[ships]
    batch = next(Loader(run.log.schema, run.log.files("test"), batch_size=64).epoch())
    for name, file in (("crossed", "crossed"), ("peers", f"peers_{ships}")):
        stored = pq.read_table(finished / "predictions" / "test" / f"{file}.parquet")["probability"].to_numpy()
        with torch.no_grad():
            np.testing.assert_allclose(frozen[name](batch).sigmoid().numpy(), stored[:64], atol=1e-6)


def test_a_model_that_teaches_by_its_name_does_so_by_the_network_that_ships(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = opened(copy)
    shipped = Run.trained
    for role, widths in (("peer0", (8,)), ("peer1", (16, 8))):

        def ships(self: Run, model: str, role: str = role) -> Objective:
            found = shipped(self, model)
            if model == "peers":
                found.ship(role)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Run, "trained", ships)
            assert run._teachers("taught")["peers"].tower.hidden_widths == widths


def test_a_students_checkpoint_has_nothing_of_its_teachers(finished: Path) -> None:
    checkpoints = Checkpoints(finished / "models" / "taught" / CHECKPOINTS)
    best = checkpoints.best()
    assert best is not None
    names = {name.rpartition(".")[0] if name.startswith("towers") else name for name in checkpoints.open(best).specs}
    tables = {name.split(".")[1] for name in names if name.startswith("tables.")}
    assert tables == {"0"}
    towers = {name.split(".")[1] for name in names if name.startswith("towers.")}
    assert towers == {"tower", "-auxiliary"}
    assert {name.partition(".")[0] for name in names} == {"tables", "towers", "rng"}


def changed(directory: Path, before: dict[str, int]) -> set[str]:
    after = times(directory)
    return {name.split("/")[1] for name in after.keys() | before.keys() if after.get(name) != before.get(name)}


def times(directory: Path) -> dict[str, int]:
    found = (p for p in (directory / "models").rglob("*") if p.is_file() and not p.name.startswith("."))
    return {str(path.relative_to(directory)): path.stat().st_mtime_ns for path in found}


def test_nothing_is_trained_twice(copy: Path) -> None:
    before = times(copy)
    run, said = opened(copy)
    run.train_all()
    assert not changed(copy, before)
    assert [line for line in said if line.startswith("train ") and "up to date" not in line] == []


def test_a_student_is_trained_again_when_its_teacher_is_another(copy: Path) -> None:
    before, old = times(copy), result(copy, "taught")
    run, _ = opened(copy, "models.crossed.train.seed=3")
    run.train_all()
    assert changed(copy, before) == {"crossed", "taught"}
    assert result(copy, "taught")["fingerprint"] != old["fingerprint"]


def test_a_killed_student_goes_on_with_the_same_teachers(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = result(copy, "taught")
    for model in ("crossed", "taught"):
        shutil.rmtree(copy / "models" / model)
    killed_after_its_first_checkpoint(copy, "taught", monkeypatch)
    assert result(copy, "crossed")["weights"]  # a teacher is trained before
    run, said = opened(copy)
    assert run.train("taught") == {**expected, **dict.fromkeys(("seconds", "rows_per_second"), ANY)}
    assert any(line.startswith("  goes on from step ") for line in said)


def test_a_rocket_starts_warm_with_the_columns_of_its_privileged_booster(finished: Path) -> None:
    run, _ = opened(finished)
    old = objective_of(run, "rocket")
    fresh = build_objective(run.recipe, "rocket", run.log.encoding.num_rows())
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.normal_()
    found = warm_start(fresh, run.log.encoding, Source.open(finished / "models" / "rocket"))
    assert (found.added, found.removed, found.rescaled, found.fresh_towers) == ([], [], [], [])
    batch = next(Loader(run.log.schema, run.log.files("test"), batch_size=64).epoch())
    for role, logit_B in fresh.eval().logits(batch).items():
        torch.testing.assert_close(logit_B, old.logits(batch)[role])


def test_a_tower_whose_inputs_are_not_known_by_feature_does_not_start_warm(finished: Path) -> None:
    run, _ = opened(finished)
    fresh = build_objective(run.recipe, "crossed", run.log.encoding.num_rows())
    with pytest.raises(UserError, match="tower 'tower' is a DCNv2, whose inputs are not known by feature"):
        warm_start(fresh, run.log.encoding, Source.open(finished / "models" / "crossed"))


def test_what_was_trained_opens_without_its_run(finished: Path) -> None:
    run, _ = opened(finished)
    frozen = run._teachers("taught")
    objective = trained(run.recipe, "taught", run.log, finished / "models" / "taught", frozen)
    assert not objective.training
    assert objective.inference_role() == ""


def test_the_mean_of_peers_ships_as_one_network(copy: Path) -> None:
    run, _ = opened(copy, "export.model=peers", "models.peers.serve=mean", 'models.peers.peers=["light", "light"]')
    assert run.train("peers")["ships"] == "mean"
    scores = [pq.read_table(copy / f"predictions/test/peers_{role}.parquet")["probability"].to_numpy()
              for role in ("peer0", "peer1", "mean") if run.evaluation]  # fmt: skip
    logits = [np.log(score / (1 - score)) for score in scores]
    np.testing.assert_allclose(logits[2], (logits[0] + logits[1]) / 2, atol=1e-6)
    assert run.bundle.manifest.name == "peers_mean"
    assert run.bundle.manifest.parity_max_abs_diff < 1e-6
    lines = (copy / "models/peers/metrics.jsonl").read_text().splitlines()
    assert all("mean" in json.loads(line)["valid"] for line in lines)


def test_every_loss_has_a_name_and_what_it_does_to_the_tables(finished: Path) -> None:
    def last(model: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((finished / "models" / model / "metrics.jsonl").read_text().splitlines()[-1])
        return found

    for model, names in (("taught", {"label", "hint"}), ("rocket", {"light", "booster", "hint"})):
        norms = last(model)["table_gradient_norms"]
        assert last(model)["losses"].keys() == norms.keys() == names
        assert all(norm > 0 for norm in norms.values())
    assert last("crossed")["losses"].keys() == {"label"}
    assert "table_gradient_norms" not in last("crossed")
