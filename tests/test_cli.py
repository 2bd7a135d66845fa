"""The command line: what each verb says and writes, and how it ends."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ctrkit
from ctrkit import cli
from ctrkit.bundle import Bundle
from ctrkit.cli import main
from ctrkit.config.recipe import load_recipe
from ctrkit_serving.scorer import Scorer
from tests import small_recipe

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def recipe(finished_run: Path) -> Path:
    """The recipe of the finished run."""
    return finished_run.parent / "small.toml"


@pytest.fixture
def done(finished_run: Path, recipe: Path) -> list[str]:
    """Arguments of a recipe verb whose steps are all finished."""
    return [str(recipe), "--out", str(finished_run)]


def result(capsys: Capture, arguments: Sequence[str]) -> dict[str, Any]:
    """What a command says with --json."""
    assert main([*arguments, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert "text" not in found
    return found


def shown(capsys: Capture, arguments: Sequence[str]) -> str:
    """What a command says to people."""
    assert main(arguments) == 0
    return capsys.readouterr().out


# --- each verb


def test_run(capsys: Capture, done: list[str], finished_run: Path) -> None:
    text = shown(capsys, ["run", *done])
    for name in ("light", "booster", "rocket_light", "rocket_booster", "oracle"):
        assert f"\n{name} " in text
    # the next commands to try, which can be copied
    assert f"ctrkit score {finished_run / 'bundle'} {finished_run / 'data' / 'requests.jsonl'} --out" in text
    assert f"ctrkit bench {finished_run / 'bundle'}" in text
    assert "YOUR_LOG" not in text
    found = result(capsys, ["run", *done])
    assert found["models"] == json.loads((finished_run / "summary.json").read_text())["models"]
    assert found.keys() >= {"gap_closed", "latency_ms", "parity_max_abs_diff"}


def test_what_is_being_done_goes_to_stderr_and_quiet_silences_it(capsys: Capture, done: list[str]) -> None:
    assert main(["prepare", *done]) == 0
    assert "prepare: " in capsys.readouterr().err
    assert main(["prepare", *done, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_quiet_silences_no_warning(capsys: Capture, tmp_path: Path) -> None:
    rows = {
        "click": [0, 1] * 50,
        "user_id": [1, 2, 3, 4] * 25,
        "ad_id": [1, 2, 3, 4] * 25,
        "new": pa.nulls(100, pa.string()),
    }
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    arguments = ["init", str(tmp_path / "log.parquet"), "--label", "click", "--group", "user_id"]
    assert main([*arguments, "--out", str(tmp_path / "mine.toml")]) == 0
    capsys.readouterr()
    new = 'features.new={side="context"}'
    assert main(["prepare", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "run"), "--quiet", "--set", new]) == 0
    assert (
        capsys.readouterr().err
        == "  warning: table 'new': no id occurs in the train part; it tells the model nothing\n"
    )


def test_prepare(capsys: Capture, done: list[str]) -> None:
    assert "train: 1,500 rows" in shown(capsys, ["prepare", *done])
    assert result(capsys, ["prepare", *done])["parts"]["train"]["rows"] == 1500


def test_train(capsys: Capture, done: list[str]) -> None:
    found = result(capsys, ["train", *done])
    assert list(found["models"]) == ["light", "booster", "rocket"]
    assert result(capsys, ["train", *done, "--model", "booster"])["models"].keys() == {"booster"}
    best = found["models"]["light"]["best"]
    assert shown(capsys, ["train", *done, "--model", "light"]) == f"light: best valid gauc {best:.4f}\n"


def test_train_one_model_trains_no_other(capsys: Capture, tmp_path: Path) -> None:
    path = small_recipe.write(tmp_path)
    arguments = ["train", str(path), "--out", str(tmp_path / "run"), "--quiet", "--set", "train.epochs=1"]
    assert main([*arguments, "--model", "light"]) == 0
    assert [folder.name for folder in (tmp_path / "run" / "models").iterdir()] == ["light"]


def test_evaluate(capsys: Capture, done: list[str], finished_run: Path) -> None:
    found = result(capsys, ["evaluate", *done])
    assert found["networks"] == json.loads((finished_run / "evaluation.json").read_text())["networks"]
    assert "gap_closed" in found
    said = shown(capsys, ["evaluate", *done])
    assert f"{found['networks']['light']['gauc']:.4f}" in said
    assert said.endswith(f"\nTheir predictions: {found['predictions']}\n")
    assert {path.stem for path in Path(found["predictions"]).iterdir()} == found["networks"].keys()


def test_export(capsys: Capture, done: list[str], finished_run: Path) -> None:
    assert shown(capsys, ["export", *done]) == f"{finished_run / 'bundle'}\n"
    found = result(capsys, ["export", *done])
    assert found["manifest"]["name"] == "rocket_light"


def test_export_with_an_item_table(capsys: Capture, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    requests = [json.loads(line) for line in (finished_run / "data" / "requests.jsonl").read_text().splitlines()]
    ads = {item["ad_id"]: item for request in requests for item in request["items"]}
    pq.write_table(pa.Table.from_pylist(list(ads.values())), tmp_path / "ads.parquet")
    export = ["export", str(finished_run.parent / "small.toml"), "--out", str(tmp_path / "run")]
    loose = [f"export.{key}" for key in ("max_gauc_change=1", "max_pcoc_change=1", "max_difference=1", "int8=true")]
    export += [word for override in loose for word in ("--set", override)]
    found = result(capsys, [*export, "--items", str(tmp_path / "ads.parquet"), "--item-key", "ad_id"])
    assert found["manifest"]["item_table"]["ads"] == len(ads)
    assert found["manifest"]["approximations"]["int8"]["accepted"]
    features, table = Scorer.load(finished_run / "bundle"), Scorer.load(tmp_path / "run" / "bundle")
    for request in requests[:5]:
        user, context = request["user"], request["context"]
        expected = features.score(user, request["items"], context)
        by_key = table.score(user, {"ad_id": [item["ad_id"] for item in request["items"]]}, context)
        known = [i for i, item in enumerate(request["items"]) if ads[item["ad_id"]] == item]
        np.testing.assert_allclose(by_key[known], expected[known], rtol=0, atol=1e-6)
        whole = Scorer.load(tmp_path / "run" / "bundle", use_item_table=False)
        np.testing.assert_allclose(whole.score(user, request["items"], context), expected, rtol=0, atol=1e-6)
    assert main([*export, "--items", str(tmp_path / "ads.parquet")]) == 2
    assert "export.items and export.item_key go together" in capsys.readouterr().err


def test_score(capsys: Capture, finished_run: Path, tmp_path: Path) -> None:
    requests, out = finished_run / "data" / "requests.jsonl", tmp_path / "scores.jsonl"
    found = result(capsys, ["score", str(finished_run / "bundle"), str(requests), "--out", str(out)])
    scores = [json.loads(line)["scores"] for line in out.read_text().splitlines()]
    asked = [json.loads(line) for line in requests.read_text().splitlines()]
    assert found["requests"] == len(scores) == len(asked) > 0
    assert found["ads"] == sum(map(len, scores))
    assert all(0.0 < score < 1.0 for one in scores for score in one)
    assert found["counts"].keys() == load_recipe(finished_run.parent / "small.toml").features.keys()
    golden = Bundle.load(finished_run / "bundle").golden
    assert scores[:8] == [pytest.approx(expected, abs=1e-6) for expected in golden.scores]
    out.write_text("mine")
    again = ["score", str(finished_run / "bundle"), str(requests), "--out", str(out)]
    assert main(again) == 2
    assert f"{out}: exists; give --out another name, or --force to write over it" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert result(capsys, [*again, "--force"]) == found
    assert [json.loads(line)["scores"] for line in out.read_text().splitlines()] == scores


def test_score_and_names_that_the_model_does_not_know(capsys: Capture, finished_run: Path, tmp_path: Path) -> None:
    request = json.loads((finished_run / "data" / "requests.jsonl").read_text().splitlines()[0])
    request["user"]["shoe_size"] = 44
    (tmp_path / "requests.jsonl").write_text(json.dumps(request) + "\n")
    arguments = ["score", str(finished_run / "bundle"), str(tmp_path / "requests.jsonl"), "--out", str(tmp_path / "s")]
    assert main(arguments) == 2
    assert "shoe_size" in capsys.readouterr().err
    assert main([*arguments, "--ignore-unknown"]) == 0


def test_bench(capsys: Capture, finished_run: Path) -> None:
    bundles = [str(finished_run / "bundle"), str(finished_run / "bench" / "booster")]
    found = result(capsys, ["bench", *bundles, "--ads", "3", "--repeats", "120", "--seconds", "0"])
    assert list(found["latency_ms"]) == bundles
    assert all(latency["ads"] == 3 and latency["p50"] > 0 for latency in found["latency_ms"].values())
    requests = str(finished_run / "data" / "requests.jsonl")
    small = ["--ads", "3", "--repeats", "120", "--seconds", "0"]
    text = shown(capsys, ["bench", bundles[0], *small, "--requests", requests])
    assert text.startswith("3 ads a request, one thread, milliseconds\n")
    assert "p50 0." in text
    assert "p99 insufficient" in text  # 120 samples tell nothing of the slowest hundredth


def test_init(capsys: Capture, finished_run: Path, tmp_path: Path) -> None:
    log = next((finished_run / "raw").glob("synthetic-*"))
    out = tmp_path / "mine.toml"
    arguments = ["init", str(log), "--label", "click", "--group", "user_id", "--out", str(out)]
    text = shown(capsys, arguments)
    assert f"wrote {out}" in text
    assert f"next: ctrkit run {out}" in text
    assert {"user_id", "ad_id", "recent_ads"} <= load_recipe(out).features.keys()
    before = out.read_bytes()
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert result(capsys, [*arguments, "--force"])["recipe"] == str(out)
    assert out.read_bytes() == before


def test_init_does_not_lead_to_a_run_that_is_refused(capsys: Capture, tmp_path: Path) -> None:
    rows = {"click": [0, 1] * 50, "user_id": [None, "b"] * 50, "ad_id": [1, 2, 3, 4] * 25}
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    arguments = ["init", str(tmp_path / "log.parquet"), "--label", "click", "--group", "user_id"]
    text = shown(capsys, [*arguments, "--out", str(tmp_path / "mine.toml")])
    assert "\nnext: give every row of the log a 'user_id', without which it cannot be prepared; then ctrkit" in text
    assert main(["prepare", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "run"), "--quiet"]) == 2


def test_init_of_a_log_whose_name_says_nothing(capsys: Capture, tmp_path: Path) -> None:
    rows = {"click": [0, 1] * 50, "user_id": [1, 2, 3, 4, 5] * 20, "ad_id": [1, 2, 3, 4] * 25}
    pq.write_table(pa.table(rows), tmp_path / "log.bin")
    arguments = ["init", str(tmp_path / "log.bin"), "--label", "click", "--group", "user_id"]
    arguments += ["--out", str(tmp_path / "mine.toml")]
    assert main(arguments) == 2
    assert "give data.format (init --format)" in capsys.readouterr().err
    shown(capsys, [*arguments, "--format", "parquet"])
    recipe = load_recipe(tmp_path / "mine.toml")
    assert (recipe.data.format, set(recipe.features)) == ("parquet", {"user_id", "ad_id"})
    assert main(["prepare", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0


def test_init_leads_to_a_log_that_can_be_prepared(capsys: Capture, finished_run: Path, tmp_path: Path) -> None:
    log = next((finished_run / "raw").glob("synthetic-*"))
    out = tmp_path / "mine.toml"
    assert main(["init", str(log), "--label", "click", "--group", "user_id", "--out", str(out)]) == 0
    assert main(["prepare", str(out), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert pq.read_table(tmp_path / "run" / "data" / "train").num_rows > 0


def test_demo_is_the_recipe_that_is_shipped(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(options: Any) -> dict[str, Any]:
        asked.append(options)
        return {"text": "done"}

    monkeypatch.setattr(cli, "_run", run)
    assert main(["demo", "--set", "data.synthetic.rows=1000"]) == 0
    assert load_recipe(asked[0].recipe, asked[0].set).name == "demo"
    done, then = capsys.readouterr().out.splitlines()
    assert done == "done"
    assert then.startswith("  ctrkit init YOUR_LOG ")  # a run of one's own log has no use for that


def test_a_run_lies_in_runs_by_default(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", str(recipe), "--quiet", "--set", "data.synthetic.rows=500"]) == 0
    assert (tmp_path / "runs" / "small" / "data" / "manifest.json").exists()


# --- how it ends

BAD: dict[str, tuple[list[str], str]] = {
    "no recipe": (["run", "missing.toml"], "missing.toml: cannot read the recipe"),
    "a misspelt key": (["run", "RECIPE", "--set", "train.epocs=1"], "train.epocs: unknown key; did you mean 'epochs'"),
    "a flag that is no boolean": (["run", "RECIPE", "--set", "train.tensorboard=False"], "should be a valid boolean"),
    "no such model": (["train", "RECIPE", "--model", "lihgt"], "--model lihgt: not in [models]"),
    "no log": (["prepare", "RECIPE", "--set", "data={path='no/log'}"], "no/log"),
    "no such column": (["prepare", "RECIPE", "--set", "features.shoe_size.side=user"], "shoe_size"),
    "no such device": (["train", "RECIPE", "--set", "train.device=cuda:9"], "train.device 'cuda:9'"),
    "no bundle to score": (["score", "no_bundle", "requests.jsonl"], "no_bundle: no bundle"),
    "no bundle to bench": (["bench", "no_bundle"], "no_bundle: no bundle"),
    "no ads": (["bench", "BUNDLE", "--ads", "0"], "--ads 0: give 1 to 1,000,000"),
    "too many ads": (["bench", "BUNDLE", "--ads", "1000001"], "--ads 1000001: give 1 to 1,000,000"),
    "too many repeats": (["bench", "BUNDLE", "--repeats", "10000001"], "--repeats 10000001: give 1 to 10,000,000"),
    "no requests": (["score", "BUNDLE", "no_requests.jsonl", "--out", "scores.jsonl"], "no_requests.jsonl"),
    "no requests to bench": (["bench", "BUNDLE", "--requests", "no_requests.jsonl"], "no_requests.jsonl"),
    "no place for scores": (["score", "BUNDLE", "REQUESTS", "--out", "RECIPE/scores"], "scores: cannot be written"),
    "no log to look at": (["init", "no_log", "--label", "click", "--group", "user_id"], "no_log"),
    "no such label": (["init", "LOG", "--label", "clicks", "--group", "user_id"], "clicks"),
    "no place for it": (["init", "LOG", "--label", "click", "--group", "user_id", "--out", "RECIPE/r"], "cannot be"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("as_json", [False, True], ids=["for people", "for machines"])
def test_what_the_user_can_mend_is_one_message(
    name: str, as_json: bool, capsys: Capture, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {
        "RECIPE": str(small_recipe.write(tmp_path)),
        "BUNDLE": str(finished_run / "bundle"),
        "REQUESTS": str(finished_run / "data" / "requests.jsonl"),
        "LOG": str(next((finished_run / "raw").glob("synthetic-*"))),
    }
    arguments, message = BAD[name]
    arguments = [part.replace(key, place) for part in arguments for key, place in [_place(part, places)]]
    assert main([*arguments, *(["--json"] if as_json else [])]) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    if as_json:
        found = json.loads(out)
        assert found.keys() == {"error"}
        assert message in found["error"]
    else:
        assert out == ""
        assert err.count("ctrkit: ") == 1
        assert message in err.partition("ctrkit: ")[2]


def _place(part: str, places: dict[str, str]) -> tuple[str, str]:
    return next(((key, place) for key, place in places.items() if part.startswith(key)), (part, part))


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run"], ["score", "bundle"], ["bench", "b", "--ads", "many"]])
def test_a_command_that_is_none_ends_with_2_and_the_usage(capsys: Capture, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: ctrkit" in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_recipe", interrupted)
    assert main(["run", "any.toml"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_defect_is_not_dressed_up_as_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "load_recipe", broken)
    with pytest.raises(ZeroDivisionError):
        main(["run", "any.toml"])


def test_as_a_program(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("ctrkit")
    ended = subprocess.run([script, "run", "missing.toml"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("ctrkit: missing.toml: cannot read the recipe")
    assert ended.stderr.count("\n") == 1


LIGHT = """
import contextlib, sys
from ctrkit.cli import main
for arguments in {commands!r}:
    with contextlib.suppress(SystemExit):
        assert main(arguments) == 0, arguments
heavy = [name for name in ("torch", "torchrec", "fbgemm_gpu", "pandas", "pyarrow", "sklearn") if name in sys.modules]
print("heavy:", heavy)
"""


def test_what_serves_imports_nothing_that_trains(finished_run: Path, tmp_path: Path) -> None:
    bundle, requests = str(finished_run / "bundle"), str(finished_run / "data" / "requests.jsonl")
    commands = [
        ["--version"],
        ["--help"],
        ["run", "--help"],
        ["score", bundle, requests, "--out", str(tmp_path / "scores.jsonl")],
        ["bench", bundle, "--ads", "3", "--repeats", "120", "--seconds", "0"],
    ]
    program = LIGHT.format(commands=commands)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[0] == f"ctrkit {ctrkit.__version__}"
    assert ended.stdout.splitlines()[-1] == "heavy: []"
    for verb in ("init", "prepare", "train", "evaluate", "export", "run", "demo", "bench", "score"):
        assert f"\n    {verb} " in ended.stdout
