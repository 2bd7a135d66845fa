"""A budget as an input: what is read, chosen, exported, measured again and refused."""

import json
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ctrkit.atomic import write_json
from ctrkit.bundle import Bundle
from ctrkit.cli import main
from ctrkit.config.recipe import as_dict, load_recipe, read_recipe
from ctrkit.errors import UserError
from ctrkit.evaluation.held_out import HeldOut
from ctrkit.nn.network import Network
from ctrkit.request import read_requests
from ctrkit.run import Run
from ctrkit.slimming import slim, timing
from ctrkit.slimming.budget import Budget
from ctrkit.slimming.several_widths import export_widths
from ctrkit.slimming.slim import Candidate, Slim
from ctrkit.training.predict import predict_networks
from ctrkit_serving.latency import Percentile
from ctrkit_serving.scorer import Scorer
from tests import small_recipe

SLIMMABLE = """
[towers.wide]
hidden = [64, 32]

[models.slim]
objective = "slimmable"
tower = "wide"
"""


MULTIPLICATIONS = Budget("multiplications", 1e9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p99 <= 0.5 ms @ 400 ads, 1 thread", Budget("p99", 0.5, 400)),
        ("p50<=300us", Budget("p50", 0.3, 400)),
        ("p50 <= 300 µs", Budget("p50", 0.3, 400)),  # the sign for micro,
        ("p50 <= 300 μs", Budget("p50", 0.3, 400)),  # and the Greek letter
        ("p50 <= 0.01 us @ 1 ad", Budget("p50", 1e-5, 1)),
        ("p50 <= 0.12349 ms", Budget("p50", 0.12349, 400)),
        (" p95 < .25 ms @ 1 ad ", Budget("p95", 0.25, 1)),
        ("multiplications <= 20000", Budget("multiplications", 20000.0, 400)),
    ],
)
def test_budgets(text: str, expected: Budget) -> None:
    assert Budget.parse(text) == expected
    assert Budget.parse(str(expected)) == expected  # what is said can be asked for


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "cannot be read"),
        ("p98 <= 1 ms", "cannot be read"),
        pytest.param(f"p50 <= 1 ms @ {'9' * 5000} ads", "cannot be read", id="ads without end"),
        ("p99 <= 1", "has a unit"),
        ("multiplications <= 5 ms", "has a unit"),
        ("p99 <= 1 ms @ 400 ads, 2 threads", "one thread"),
        ("p99 <= 0 ms", "above 0"),
        ("p99 <= 1 ms @ 0 ads", "1 to 1,000,000"),
    ],
)
def test_what_is_no_budget(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Budget.parse(text)


@pytest.fixture(scope="module")
def run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with a slimmable model, on the same prepared log."""
    folder = tmp_path_factory.mktemp("slim")
    shutil.copytree(finished_run / "data", folder / "run" / "data")
    recipe = folder / "small.toml"
    recipe.write_text(small_recipe.RECIPE + SLIMMABLE)
    assert main(["train", str(recipe), "--model", "slim", "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def model(run: Path) -> Slim:
    """Of a copy, for a run is one process's alone."""
    copy = shutil.copytree(run, run.with_name("copy"))
    return Slim(Run(read_recipe(copy / "recipe.json"), copy, quiet=True))


def test_the_recipe_of_a_run_is_read_back(run: Path) -> None:
    recipe = load_recipe(run.parent / "small.toml")
    assert as_dict(read_recipe(run / "recipe.json")) == as_dict(recipe)
    with pytest.raises(UserError, match="give the directory of a run"):
        read_recipe(run / "nowhere.json")


def test_a_run_without_a_slimmable_model(finished_run: Path, run: Path) -> None:
    with pytest.raises(UserError, match=r'objective = "slimmable"; the recipe has none'):
        Slim(Run(read_recipe(finished_run / "recipe.json"), finished_run, quiet=True))
    with pytest.raises(UserError, match=r"'light' is not .* has \['slim'\]"):
        Slim(Run(read_recipe(run / "recipe.json"), run, quiet=True), "light")


def test_towers_that_are_looked_at(model: Slim) -> None:
    uniform, searched = model.uniform(), model.searched(model.tower.multiplications_at)
    assert uniform[0] == searched[0] == (64, 32)
    assert uniform[-1] == searched[-1] == (16, 8)
    costs = [model.tower.multiplications_at(widths) for widths in searched]
    assert costs == sorted(costs, reverse=True)
    front = model.judged([*uniform, *searched])
    assert [c.multiplications for c in front] == sorted({c.multiplications for c in front}, reverse=True)
    assert [c.value for c in front] == sorted({c.value for c in front}, reverse=True)  # a cheaper one is no better
    held_out = HeldOut(model.run.log, "valid")
    reports = model.reports(uniform, "valid", held_out)
    assert max(r["gauc"] for r in reports.values()) <= front[0].value


def test_the_widest_within_multiplications(
    run: Path, model: Slim, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    front = model.front(MULTIPLICATIONS)
    limit = front[min(1, len(front) - 1)].multiplications
    arguments = ["slim", str(run), "--budget", f"multiplications <= {limit}", "--out", str(tmp_path / "bundle")]
    assert main([*arguments, "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["multiplications"] == limit == found["verified"]["value"]
    bundle = Bundle.load(found["bundle"])
    assert bundle.manifest.multiplications == limit
    assert json.loads((tmp_path / "bundle.json").read_text())["widths"] == found["widths"]
    # the bundle is the slimmable net at those widths: to 1e-5
    scorer = Scorer.load(tmp_path / "bundle")
    (network,) = model.networks([tuple(found["widths"])]).values()
    assert network.tower.hidden_widths == tuple(found["widths"])
    batch = next(model.run.loader("valid", 64).epoch())
    expected = model.tower.trace(network.embedding.vectors(batch).x_BX, widths=tuple(found["widths"]))[1].sigmoid()
    plain = network(batch).sigmoid()
    np.testing.assert_allclose(plain.detach(), expected.detach(), atol=1e-6)
    assert bundle.manifest.parity_max_abs_diff < 1e-5  # on held-out rows
    request = next(iter(read_requests(model.run.log.requests)))
    assert np.isfinite(scorer.score_request(request)).all()
    # and what it loses is told
    held_out, networks = HeldOut(model.run.log, "test"), model.networks([(64, 32), tuple(found["widths"])])
    full, taken = predict_networks(networks, model.run.loader("test")).values()
    difference = found["test"]["difference"]
    assert difference == held_out.difference(full, taken)
    assert difference["value"] == pytest.approx(found["test"]["gauc"] - held_out.report(full).gauc)
    assert difference["low"] < difference["value"] < difference["high"]


def test_what_a_width_loses_is_shown(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slim", str(run), "--widths", "1", "0.25", "--out", str(tmp_path / "bundle"), "--quiet"]) == 0
    _, full, quarter = capsys.readouterr().out.splitlines()
    assert "against" not in full
    assert re.search(
        r"test gauc 0\.\d{4} \([+-]0\.\d{4} \[[+-]0\.\d{4}, [+-]0\.\d{4}\] against the full width\)", quarter
    )


def test_too_few_multiplications_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "bundle"
    assert main(["slim", str(run), "--budget", "multiplications <= 10", "--out", str(place), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "keeps multiplications <= 10: the nearest that holds is multiplications <= " in said
    assert not place.exists()
    nearest = said.partition("holds is ")[2].partition(", by")[0].replace(",", "")
    assert main(["slim", str(run), "--budget", nearest, "--out", str(place), "--quiet"]) == 0
    test = json.loads((tmp_path / "bundle.json").read_text())["test"]
    assert capsys.readouterr().out.strip().endswith(f", auc {test['auc']:.4f}, pcoc {test['pcoc']:.4f}")


@pytest.mark.parametrize("what", [["--budget", "multiplications <= 4000", "--uniform"], ["--widths", "1"]])
def test_what_lies_where_the_bundle_should_go_is_not_touched(
    run: Path, what: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    for out in (".", str(tmp_path)):
        assert main(["slim", str(run), *what, "--out", out, "--quiet"]) == 2
        assert "exists and is no bundle; give another place or remove it" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_that_cannot_be_written_is_named_and_not_the_bundle(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / ".run.lock").mkdir(parents=True)  # not even root writes that file
    shutil.copytree(run, tmp_path / "run", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.lock"))
    assert main(["slim", str(tmp_path / "run"), "--widths", "1", "--out", str(tmp_path / "bundle"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "run: cannot be written (Is a directory); every command on a run writes into its directory" in said
    assert "give another path" not in said


# --- budgets kept by a clock; the clock is a fake


class Clock:
    """Milliseconds by multiplications, as the first measurement and as the one in a new process sees them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slower: float = 1.0) -> None:
        self.asked: list[list[str]] = []
        self.again: list[str] = []
        monkeypatch.setattr(Slim, "measured", lambda _, candidates, budget: self.measured(candidates))
        monkeypatch.setattr(slim, "measured_again", lambda bundle, requests, budget: self.measured_again(bundle))
        self.slower = slower

    def measured(self, candidates: Sequence[Candidate]) -> dict[str, Percentile]:
        self.asked.append([c.name for c in candidates])
        return {c.name: Percentile(m := c.multiplications / 1000, 0.9 * m, 1.02 * m) for c in candidates}

    def measured_again(self, bundle: Path) -> dict[str, float]:
        cost = Bundle.load(bundle).manifest.multiplications / 1000 * self.slower
        self.again.append(Bundle.load(bundle).manifest.name)
        return {"value": cost, "low": 0.9 * cost, "high": 1.02 * cost}


FRONT = [Candidate((64 - 2 * i, 32 - i), 4000 - 100 * i, 0.7 - 0.001 * i) for i in range(24)]


def test_a_budget_in_time_is_searched_by_time(model: Slim, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock by which the second layer alone costs anything, it goes first, and orders the towers."""
    said: list[str] = []
    timed: list[int] = []

    def side_by_side(_: Run, networks: Mapping[str, Network], ads: int, repeats: int) -> dict[str, Any]:
        timed.append(len(networks))
        found = {}
        for name, network in networks.items():
            p50 = Percentile(0.1 + 0.01 * network.tower.hidden_widths[1], 0.0, 1.0)
            found[name] = SimpleNamespace(total=SimpleNamespace(p50=p50))
        return found

    monkeypatch.setattr(slim, "side_by_side", side_by_side)
    monkeypatch.setattr(model.run, "say", said.append)
    cost = model.measured_cost(400)
    assert cost((64, 24)) == pytest.approx(0.34)
    searched = model.searched(cost)
    assert [second for _, second in searched[:4]] == [32, 24, 16, 8]  # the first layer's channels save nothing
    assert searched[-1] == (16, 8)
    judged: list[tuple[Any, Any]] = []

    def noted(widths: Any, cost: Any) -> list[Candidate]:
        judged.append((widths, cost))
        return []

    monkeypatch.setattr(model, "judged", noted)
    model.front(Budget("p50", 0.3))
    widths, of_front = judged[0]
    assert set(searched) <= set(widths)
    assert of_front((64, 8)) == pytest.approx(0.18)
    assert any("R2 1.000" in line for line in said)
    model.front(MULTIPLICATIONS)
    assert judged[1][1]((64, 32)) == model.tower.multiplications
    assert timed == [20, 20]


def test_the_front_is_by_the_cost_given(model: Slim) -> None:
    widths = [(64, 8), (16, 32), (64, 32), (16, 8)]
    front = model.judged(widths, lambda each: each[1])
    assert [c.widths[1] for c in front] == sorted({c.widths[1] for c in front}, reverse=True)
    assert [c.value for c in front] == sorted({c.value for c in front}, reverse=True)


def test_the_best_that_keeps_the_budget_with_a_margin(model: Slim, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    limit = 2.9
    keeping, measured = model._keeping(FRONT, Budget("p99", limit))
    best = next(c for c in FRONT if 1.02 * c.multiplications / 1000 <= 0.95 * limit)
    assert keeping[0] == best
    assert len(measured) < len(FRONT)  # some spread, then those between
    assert [c.value for c in keeping] == sorted((c.value for c in keeping), reverse=True)
    assert len(clock.asked[0]) == 8


def test_a_bundle_that_fails_its_second_measurement_makes_way_for_a_cheaper_one(
    model: Slim, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    widths = [(64, 32), (48, 24), (32, 16), (16, 8)]
    front = [Candidate(w, model.tower.multiplications_at(w), -i) for i, w in enumerate(widths)]
    clock = Clock(monkeypatch, slower=1.5)
    limit = front[1].multiplications / 1000 * 1.2
    (tmp_path / f".slim-{platform.node()}-killed" / "bundle").mkdir(parents=True)  # its process is gone, and so it goes
    found = model.choose(Budget("p99", limit), tmp_path / "bundle", front)
    assert clock.again == ["slim_48x24", "slim_32x16"]
    assert found["widths"] == [32, 16]
    assert found["verified"]["high"] <= limit
    assert Bundle.load(tmp_path / "bundle").manifest.multiplications == front[2].multiplications
    assert {path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")} == {"bundle", "bundle.json"}


@pytest.mark.parametrize("what", [["--budget", "multiplications <= 2000"], ["--widths", "0.5"]])
def test_a_bundle_never_has_the_figures_of_another_one_beside_it(
    run: Path, what: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, or out of disk, after the new bundle came and before its figures did: better none."""
    place = tmp_path / "bundle"
    assert main(["slim", str(run), "--widths", "1", "--out", str(place), "--quiet"]) == 0
    old = Bundle.load(place).manifest.multiplications

    def full(path: Path, content: Any) -> None:
        if path == tmp_path / "bundle.json":
            raise UserError("the disk is full")
        write_json(path, content)

    monkeypatch.setattr(slim, "write_json", full)
    assert main(["slim", str(run), *what, "--out", str(place), "--quiet"]) == 2
    assert Bundle.load(place).manifest.multiplications < old
    assert not (tmp_path / "bundle.json").exists()


def test_what_no_width_keeps_is_refused_and_an_old_bundle_stays(
    model: Slim, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Clock(monkeypatch, slower=100.0)
    (tmp_path / "bundle").mkdir()
    with pytest.raises(UserError, match=r"keeps p99 <= 2 ms @ 400 ads, 1 thread: the nearest that holds is p99 <= "):
        model.choose(Budget("p99", 2.0), tmp_path / "bundle", model.front(MULTIPLICATIONS))
    assert (tmp_path / "bundle").exists()
    assert not list((tmp_path / "bundle").iterdir())


@pytest.mark.parametrize("slower", [0.0204, 0.475231, 12.3451])
def test_the_nearest_budget_that_holds_does(
    model: Slim, monkeypatch: pytest.MonkeyPatch, slower: float, tmp_path: Path
) -> None:
    """It is rounded up: what a refusal says can be asked for."""
    monkeypatch.setattr(model, "measured", lambda found, _: {c.name: Percentile(slower, slower, slower) for c in found})
    kept: list[str] = []

    def exported(candidate: Candidate, budget: Budget, place: Path) -> dict[str, Any]:
        place.mkdir()
        kept.append(candidate.name)
        return {"verified": {"value": slower, "low": slower, "high": slower}}

    monkeypatch.setattr(model, "_exported", exported)
    with pytest.raises(UserError) as refused:
        model.choose(Budget("p50", slower / 2), tmp_path / "bundle", FRONT)
    assert not kept
    nearest = str(refused.value).partition("holds is ")[2].partition(", by")[0]
    model.choose(Budget.parse(nearest), tmp_path / "bundle", FRONT)
    assert kept == [FRONT[0].name]
    assert Budget.parse(nearest).limit < 1.01 * slower / 0.95


def test_a_new_process_measures_a_bundle(run: Path, finished_run: Path) -> None:
    found: dict[str, Any] = timing.measured_again(
        finished_run / "bundle", run / "data" / "requests.jsonl", Budget("p50", 1.0, 5)
    )
    assert 0 < found["low"] <= found["value"] <= found["high"]
    with pytest.raises(UserError, match="cannot be measured"):
        timing.measured_again(run / "nothing", run / "nothing.jsonl", Budget("p50", 1.0, 5))


def test_measured_side_by_side(model: Slim) -> None:
    front = model.judged(model.uniform())[:2]
    killed = model.run.directory / "slim" / f".measured-{platform.node()}-killed"
    killed.mkdir(parents=True)
    found = model.measured(front, Budget("p50", 1.0, 5))
    assert not killed.exists()
    assert found.keys() == {c.name for c in front}
    assert all(0 < p.low <= p.value <= p.high for p in found.values())


@pytest.mark.parametrize(
    ("p50", "p95", "expected"), [(0.4, 0.44, False), (0.4, 0.6, True), (0.4, None, False), (None, None, False)]
)
def test_a_busy_machine_is_seen_by_the_control_kernel(p50: float | None, p95: float | None, expected: bool) -> None:
    assert timing.busy({"p50": p50, "p95": p95}) is expected


def test_a_busy_machine_is_told(model: Slim, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At both measurements, once each; the bundle is what it would be."""
    said: list[str] = []
    monkeypatch.setattr(model.run, "say", said.append)
    monkeypatch.setattr(timing, "busy", lambda control: control["p50"] > 0)
    front = model.judged(model.uniform())[-1:]
    model.choose(Budget("p50", 1000.0, 5), tmp_path / "bundle", front)
    assert said.count(f"  warning: {timing.BUSY}") == 2
    monkeypatch.setattr(timing, "busy", lambda control: control["p50"] < 0)
    said.clear()
    model.choose(Budget("p50", 1000.0, 5), tmp_path / "bundle", front)
    assert not [line for line in said if "busy" in line]


# --- several widths in one bundle


def test_several_widths_in_one_bundle(
    run: Path, model: Slim, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "bundle"
    assert main(["slim", str(run), "--widths", "0.250", "24x16", "1", "--out", str(place), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(name, entry["hidden"]) for name, entry in found["widths"].items()] == [
        ("1", [64, 32]), ("24x16", [24, 16]), ("0.25", [16, 8]),
    ]  # fmt: skip
    assert json.loads((tmp_path / "bundle.json").read_text()) == {k: v for k, v in found.items() if k != "text"}
    scorer = Scorer.load(place)
    requests = list(read_requests(model.run.log.requests))[:5]
    evaluation = model.run.evaluation["networks"]
    for name, entry in found["widths"].items():
        alone = tmp_path / name
        (network,) = model.networks([tuple(entry["hidden"])]).values()
        model.run.write(network, alone, name, {}, "f")
        expected = Scorer.load(alone)
        for request in requests:
            np.testing.assert_array_equal(scorer.score_request(request, width=name), expected.score_request(request))
        if name == "1":
            assert entry["difference"] is None
        else:
            assert entry["difference"]["value"] == pytest.approx(
                entry["metrics"]["gauc"] - found["widths"]["1"]["metrics"]["gauc"]
            )
        if name != "24x16":
            of_run = evaluation[{"1": "slim_w1.0", "0.25": "slim_w0.25"}[name]]
            assert entry["metrics"]["gauc"] == pytest.approx(of_run["gauc"])
    assert len({scorer.score_request(requests[0], width=name)[0].item() for name in scorer.widths}) == 3


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        (["0.5", "0.50"], "each once"),
        (["0.25", "16x8"], "each once"),
        (["2"], "a width is a fraction"),
        (["half"], "half: is no width; give fractions such as 0.5, or channels such as 104x40"),
        (["64x33"], "do not fit hidden layers"),
        (["16x"], "16x: is no width; give fractions"),
    ],
)
def test_widths_that_cannot_be_exported(model: Slim, tmp_path: Path, widths: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_widths(model, widths, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


SWITCHABLE = """
[towers.normed]
hidden = [64, 32]
batch_norm = true

[models.switch]
objective = "slimmable"
tower = "normed"
norm = "switchable_batch_norm"
sampling = "list"
widths = [0.25, 1.0]
train = { epochs = 1 }
"""


def test_a_tower_whose_batch_norm_is_calibrated_for_slim_alone(run: Path, tmp_path: Path) -> None:
    """Shared statistics, the ablation: each width gets some of its own, on rows that its model says nothing of."""
    shutil.copytree(run / "data", tmp_path / "run" / "data")
    recipe = tmp_path / "small.toml"
    text = SWITCHABLE.replace("switchable_batch_norm", "shared_batch_norm").replace("[0.25, 1.0]", "[0.75, 1.0]")
    recipe.write_text(small_recipe.RECIPE + text)
    slim = Slim(Run(load_recipe(recipe), tmp_path / "run", quiet=True))
    assert slim.objective.calibration_rows == 0
    front = slim.front(MULTIPLICATIONS)
    found = slim.choose(MULTIPLICATIONS, tmp_path / "bundle", front)
    assert found["widths"] == list(front[0].widths)


def test_switchable_batch_norm_has_the_widths_that_it_was_trained_at(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "data", tmp_path / "run" / "data")
    recipe = tmp_path / "small.toml"
    recipe.write_text(small_recipe.RECIPE + SWITCHABLE)
    slim = Slim(Run(load_recipe(recipe), tmp_path / "run", quiet=True))
    assert {each.widths for each in slim.front(MULTIPLICATIONS)} <= {(64, 32), (16, 8)} == set(slim.uniform())
    batch = next(slim.run.loader("valid", 64).epoch())
    expected = slim.objective.logits(batch)
    for role, network in zip(("w1.0", "w0.25"), slim.networks(slim.uniform()).values(), strict=True):
        torch.testing.assert_close(network(batch), expected[role], atol=1e-5, rtol=1e-5)
    found = export_widths(slim, ["0.25", "1"], tmp_path / "bundle")
    assert [entry["hidden"] for entry in found["widths"].values()] == [[64, 32], [16, 8]]
    with pytest.raises(UserError, match=r"'switch': .* no statistics of the widths \[24, 16\]; .* take one of those"):
        export_widths(slim, ["24x16"], tmp_path / "other")


def test_widths_that_nobody_trained_are_said(model: Slim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(model.run, "say", said.append)
    export_widths(model, ["1", "0.25", "8x8"], tmp_path / "bundle")
    (warning,) = [line for line in said if "warning" in line]
    assert "width 8x8, [8, 8], lies outside of what 'slim' trains, [16, 8] to [64, 32]" in warning


def test_a_budget_or_widths(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--budget", "p50 <= 1 ms", "--widths", "1"]):
        with pytest.raises(SystemExit):
            main(["slim", str(run), *arguments])
        assert "--budget" in capsys.readouterr().err
