"""The command line: `ctrkit VERB`.

Every verb prints what it did to standard error, its result to standard output, and ends with exit code 0, 2 (something
for the user to mend: one message, no traceback) or 1 (a defect of ctrkit). With --json standard output has one line of
JSON, the result or `{"error": message}`.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import ctrkit
from ctrkit.atomic import atomic_file
from ctrkit.config.data import Format
from ctrkit.config.recipe import Recipe, load_recipe, read_recipe
from ctrkit.errors import UserError
from ctrkit_serving.bench.command import add_options as add_bench_options
from ctrkit_serving.server.command import add_options as add_serve_options

if TYPE_CHECKING:
    from ctrkit.run import Run

Command = Callable[[argparse.Namespace], dict[str, Any]]
"""Does the work; what it returns is the result of --json, its "text" what people see."""


_OF_PREDICTIONS: dict[str, Any] = {
    "label": None, "group": None, "score": None, "weight": None, "slice": [], "field": [], "negative_rate": None,
    "intervals": False, "resamples": 2000, "max_values": 50, "rows_in_memory": 20_000_000, "tmp": None, "plots": None,
}  # fmt: skip
"""Options of `evaluate` that a recipe has no use for, and what they are if they are not given."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        result = command(options)
    except UserError as error:
        if _is_follower() and getattr(error, "raised_by_all", False):
            return 2
        if options.json:
            print(json.dumps({"error": str(error)}), flush=True)
        else:
            print(f"ctrkit: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("ctrkit", "ctrkit_serving"):
            raise
        extra = _extra(options)
        message = f"needs the package {error.name}; pip install '.[{extra}]' in the clone of ctrkit" + (
            ", and torch, FBGEMM and TorchRec as requirements/ has them" if extra == "train" else ""
        )
        print(json.dumps({"error": message}) if options.json else f"ctrkit: {message}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a device that fails: what was there before is kept
        message = f"{error}; mend that and run the same command again"
        print(json.dumps({"error": message}) if options.json else f"ctrkit: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ctrkit: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    if _is_follower():
        return 0
    text = result.pop("text", "")
    try:
        print(json.dumps(result) if options.json else text, flush=True)
    except BrokenPipeError:
        sys.stderr.close()
    return 0


def _is_follower() -> bool:
    """Whether torchrun started this process beside a first one, which speaks for all."""
    return os.environ.get("RANK", "0") != "0"


def _extra(options: argparse.Namespace) -> str:
    """The extra that has the packages of a command."""
    if options.command in (_bench, _score):
        return "serve"
    if options.command is _serve:
        return "server"
    of_predictions = options.command is _evaluate and not options.recipe.endswith(".toml")
    return "evaluate" if of_predictions or options.command is _compare else "train"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ctrkit", description="Online CTR models for ad ranking: from a click log to a score."
    )
    parser.add_argument("--version", action="version", version=f"ctrkit {ctrkit.__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print the result as one line of JSON")
        sub.set_defaults(command=command)
        return sub

    def recipe_verb(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        sub = verb(name, command, text)
        sub.add_argument("recipe", type=Path, help="the recipe, a TOML file")
        _add_run_options(sub)
        return sub

    init = verb("init", _init, "Look at a click log and write a recipe to start from.")
    init.add_argument("log", help="file, folder or URI of the log")
    init.add_argument("--label", required=True, help="column of clicks: 0 or 1")
    init.add_argument("--group", required=True, help="column of the user, by which GAUC groups")
    init.add_argument("--format", choices=get_args(Format), default="auto", help="of its files (default: by name)")
    init.add_argument("--out", type=Path, default=Path("recipe.toml"), help="recipe to write (default: recipe.toml)")
    init.add_argument("--force", action="store_true", help="write over a file that is there")
    recipe_verb("prepare", _prepare, "Fit the encoding on the training part and encode the log.")
    train = recipe_verb("train", _train, "Train the models of a recipe; goes on where a killed run stopped.")
    train.add_argument("--model", metavar="NAME", help="train only this model of the recipe (default: all)")
    evaluate = verb("evaluate", _evaluate, "Metrics of a recipe's networks on the test part, or of any predictions.")
    evaluate.add_argument(
        "recipe", metavar="RECIPE|PREDICTIONS", help="the recipe (.toml), or predictions: a Parquet file, folder or URI"
    )
    _add_run_options(evaluate)
    _add_predictions_options(evaluate)
    _add_compare_options(
        verb("compare", _compare, "Is a variant better than the baseline? Paired over users and seeds, with churn.")
    )
    _add_export_options(recipe_verb("export", _export, "Write the bundle that goes online: the network that ships."))
    recipe_verb("run", _run, "Do a whole recipe: prepare, train, evaluate, export, bench. Finished steps are skipped.")
    _add_run_options(verb("demo", _demo, "The whole job on a synthetic display-ad log; minutes on two cores."))
    _add_slim_options(
        verb("slim", _slim, "Export the best width of a run's slimmable model that keeps a budget on this machine.")
    )
    bench = verb("bench", _bench, "Latency of bundles on this machine, side by side, and of a server under load.")
    add_bench_options(bench)
    score = verb("score", _score, "Score a file of requests, one JSON object a line.")
    score.add_argument("bundle", type=Path, help="bundle directory")
    score.add_argument("requests", type=Path, help='lines of {"user": {...}, "items": [...], "context": {...}}')
    score.add_argument(
        "--out", type=Path, default=Path("scores.jsonl"), help="where to write them (default: scores.jsonl)"
    )
    score.add_argument("--force", action="store_true", help="write over a file that is there")
    score.add_argument("--width", help="which width of a bundle that has several (default: the widest)")
    score.add_argument(
        "--ignore-unknown", action="store_true", help="accept names in requests that the model does not know"
    )
    add_serve_options(verb("serve", _serve, "Serve bundles over HTTP and gRPC, new versions without a pause."))
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the recipe")
    parser.add_argument("--out", type=Path, help="directory of the run (default: runs/NAME)")
    parser.add_argument("--quiet", action="store_true", help="no progress, warnings only")


def _add_predictions_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("only for predictions")
    group.add_argument("--label", metavar="NAME", help="column of 0 and 1 (default: label)")
    group.add_argument("--group", metavar="NAME", help="column of the user, for GAUC (default: group, if there is one)")
    group.add_argument("--score", metavar="NAME", help="column of the probability (default: probability)")
    group.add_argument("--weight", metavar="NAME", help="column that says how many times a row counts")
    group.add_argument("--slice", action="append", metavar="COLUMN", help="every metric for each of its values; "
                       "user_activity: by deciles of the users' impressions; can be repeated")  # fmt: skip
    group.add_argument("--field", action="append", metavar="COLUMN", help="calibration error over its "
                       "values; can be repeated")  # fmt: skip
    group.add_argument("--negative-rate", type=float, metavar="W", help="share of the non-clicks that training kept: "
                       "probabilities are de-biased by it")  # fmt: skip
    group.add_argument("--intervals", action="store_true", help="95 %% intervals by resampling users")
    group.add_argument("--resamples", type=int, help="how many resamples for them (default: 2000)")
    group.add_argument("--max-values", type=int, help="how many values of a slice to show (default: 50)")
    group.add_argument("--rows-in-memory", type=int, metavar="ROWS", help="more rows than this go through "
                       "files in --tmp (default: 20,000,000, about 3 GB)")  # fmt: skip
    group.add_argument(
        "--tmp", type=Path, metavar="FOLDER", help="folder for those files (default: beside the predictions)"
    )
    group.add_argument("--plots", type=Path, metavar="FOLDER", help="write pictures into it (needs matplotlib)")
    parser.set_defaults(**_OF_PREDICTIONS)


def _add_slim_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="directory of a run whose recipe has a slimmable model")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--budget", help='"p99 <= 0.5 ms @ 400 ads, 1 thread"; or with p50; or "multiplications <= 20000"'
    )
    widths = "put these widths into one bundle instead, where each request names one: 0.25 0.5 1, or channels, 104x40"
    what.add_argument("--widths", nargs="+", metavar="W", help=widths)
    parser.add_argument("--model", help="the slimmable model (default: the last one)")
    parser.add_argument("--uniform", action="store_true", help="only widths that are one fraction of all layers")
    parser.add_argument("--out", type=Path, help="where the bundle goes (default: RUN/slim/bundle, or RUN/slim/widths)")
    parser.add_argument("--quiet", action="store_true", help="no progress, warnings only")


def _add_export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--items", metavar="ADS", help="Parquet file with a row an ad, for an item table: export.items")
    parser.add_argument("--item-key", metavar="COLUMN", help="its column that names an ad: export.item_key")


def _add_compare_options(parser: argparse.ArgumentParser) -> None:
    model = "predictions file or folder; or several runs: a glob or PATH,PATH,...; or NAME=any of these"
    parser.add_argument("baseline", help=model)
    parser.add_argument(
        "variant", nargs="+", help="the same of each variant, with as many runs: run s is paired with run s"
    )
    parser.add_argument(
        "--metrics", default="gauc,auc,log_loss", help="metrics to compare (default: gauc,auc,log_loss)"
    )
    weightings = ("impressions", "clicks", "uniform")
    parser.add_argument(
        "--weighting", choices=weightings, default="impressions", help="of users in GAUC (default: impressions)"
    )
    parser.add_argument("--resamples", type=int, default=2000, help="resamples of the users (default: 2000)")
    parser.add_argument("--level", type=float, default=0.95, help="coverage of the intervals (default: 0.95)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the resampling (default: 0)")
    parser.add_argument("--top-k", type=int, default=3, help="a user's highest items that churn looks at (default: 3)")
    parser.add_argument("--label", default="label", metavar="NAME", help="column of 0 and 1 (default: label)")
    parser.add_argument("--group", default="group", metavar="NAME", help="column of the user (default: group)")
    parser.add_argument("--score", default="probability", metavar="NAME", help="column of the probability "
                        "(default: probability)")  # fmt: skip
    parser.add_argument("--key", metavar="NAME", help="column that names every impression, if the files have their "
                        "rows in different orders")  # fmt: skip
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write pictures into it (needs matplotlib)")


def _open_run(options: argparse.Namespace, recipe_path: Path, *, beyond_training: bool = True) -> "Run":
    """A run of a recipe; of several processes that torchrun started, those that only train end here after that."""
    run = _run_in(options, load_recipe(recipe_path, options.set), options.out)
    if beyond_training and run.ranks.size > 1 and not run.train_all():
        raise SystemExit(0)
    return run


def _run_in(options: argparse.Namespace, recipe: Recipe, directory: Path | None) -> "Run":
    # Read once, when torch is loaded: large tables in huge pages, whose lookups are bound by misses of the address
    # cache; and threads that sleep while they wait: spinning ones are several times slower where others use the cores.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ctrkit.run import Run  # torch comes with it: only the verbs that train pay for that

    def say(line: str) -> None:
        if not options.quiet or line.startswith("  warning:"):  # what was lost or is idle is no progress
            print(line, file=sys.stderr, flush=True)

    return Run(recipe, directory or Path("runs") / recipe.name, quiet=options.quiet, say=say)


def _require_free(options: argparse.Namespace) -> None:
    """Refuse an --out that is there, unless --force."""
    if options.out.exists() and not options.force:
        raise UserError(f"{options.out}: exists; give --out another name, or --force to write over it")


def _init(options: argparse.Namespace) -> dict[str, Any]:
    from ctrkit.inspection.inspect import inspect_log

    _require_free(options)
    inspection = inspect_log(options.log, label=options.label, group=options.group, format=options.format)
    with atomic_file(options.out) as file:
        file.write(inspection.recipe.encode())
    warnings = list(inspection.warnings)
    then = f"ctrkit run {options.out}"
    if not inspection.prepares:
        then = f"give every row of the log a '{options.group}', without which it cannot be prepared; then {then}"
    shown = "\n".join([f"wrote {options.out}", *(f"  warning: {w}" for w in warnings), f"next: {then}"])
    return {"recipe": str(options.out), "warnings": warnings, "text": shown}


def _prepare(options: argparse.Namespace) -> dict[str, Any]:
    run = _open_run(options, options.recipe)
    manifest = run.log.manifest
    parts = "\n".join(f"{part}: {p['rows']:,} rows, {p['clicks']:,} clicks" for part, p in manifest["parts"].items())
    return {**manifest, "text": f"{run.log.directory}\n{parts}"}


def _train(options: argparse.Namespace) -> dict[str, Any]:
    run = _open_run(options, options.recipe, beyond_training=False)
    if options.model is not None and options.model not in run.recipe.models:
        raise UserError(f"--model {options.model}: not in [models]: {sorted(run.recipe.models)}")
    models = [options.model] if options.model else list(run.recipe.models)
    run.check(models)
    results = {model: run.train(model) for model in models}
    run.ranks.leave()
    lines = [f"{model}: best valid {r['monitor']} {r['best']:.4f}" for model, r in results.items()]
    return {"models": results, "text": "\n".join(lines)}


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    if not options.recipe.endswith(".toml"):
        if options.set or options.out:
            raise UserError(f"{options.recipe} is no recipe (.toml): --set and --out go with a recipe")
        from ctrkit.evaluation.commands import evaluate_command

        return evaluate_command(options)
    asked = [
        f"--{name.replace('_', '-')}" for name, unset in _OF_PREDICTIONS.items() if getattr(options, name) != unset
    ]
    if asked:
        raise UserError(f"{options.recipe} is a recipe: {', '.join(asked)} go with a file or folder of predictions")
    run = _open_run(options, Path(options.recipe))
    from ctrkit.summary import table

    evaluation = run.evaluation
    shown = table({"models": evaluation["networks"], "latency_ms": {}, "gap_closed": evaluation["gap_closed"]})
    shown += f"\n\nTheir predictions: {run.predictions}"
    return {**evaluation, "predictions": str(run.predictions), "text": shown}


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    from ctrkit.evaluation.commands import compare_command

    return compare_command(options)


def _export(options: argparse.Namespace) -> dict[str, Any]:
    given = {"export.items": options.items, "export.item_key": options.item_key}
    options.set = [*options.set, *(f"{key}={json.dumps(value)}" for key, value in given.items() if value)]
    bundle = _open_run(options, options.recipe).bundle
    manifest = bundle.manifest.model_dump(mode="json")
    return {"bundle": str(bundle.directory), "manifest": manifest, "text": f"{bundle.directory}"}


def _run(options: argparse.Namespace) -> dict[str, Any]:
    run = _open_run(options, options.recipe)
    from ctrkit.summary import summarize, table

    summary = summarize(run)
    bundle = summary["bundle"]
    requests = run.log.requests
    shown = "\n".join(
        [
            table(summary),
            f"\nThe bundle that goes online: {bundle}. Next:",
            f"  ctrkit score {bundle} {requests} --out scores.jsonl",
            f"  ctrkit bench {bundle}",
        ]
    )
    return {**summary, "text": shown}


def _demo(options: argparse.Namespace) -> dict[str, Any]:
    here = Path(__file__).resolve().parent
    in_wheel, in_checkout = here / "demo.toml", here.parent / "pipelines" / "demo.toml"
    options.recipe = in_wheel if in_wheel.exists() else in_checkout
    result = _run(options)
    own = "  ctrkit init YOUR_LOG --label click --group user_id   # then: ctrkit run recipe.toml"
    return {**result, "text": f"{result['text']}\n{own}"}


def _slim(options: argparse.Namespace) -> dict[str, Any]:
    from ctrkit.bundle import bundle_place
    from ctrkit.slimming.budget import Budget

    budget = None if options.budget is None else Budget.parse(options.budget)
    place = bundle_place(options.out or options.run / "slim" / ("widths" if budget is None else "bundle"))
    run = _run_in(options, read_recipe(options.run / "recipe.json"), options.run)
    from ctrkit.slimming.slim import Slim

    slim = Slim(run, options.model)
    if budget is None:
        from ctrkit.slimming.several_widths import export_widths

        result = export_widths(slim, options.widths, place)
        lines = [
            f"  {name}: {entry['multiplications']:,} multiplications, test gauc {entry['metrics'].get('gauc', nan):.4f}"
            f"{_against_full(entry['difference'])}, pcoc {entry['metrics'].get('pcoc', nan):.4f}"
            for name, entry in result["widths"].items()
        ]
        return {**result, "text": "\n".join([f"{result['bundle']}:", *lines])}
    front = slim.front(budget, search=not options.uniform)
    result = slim.choose(budget, place, front)
    unit, digits = (" ms", 3) if budget.timed else ("", 0)
    shown = f"{result['bundle']}: widths {result['widths']}, {result['multiplications']:,} multiplications"
    how = "measured in a new process" if budget.timed else "counted in the bundle"
    kept = f"{budget.figure} {result['verified']['value']:,.{digits}f}{unit} of {budget}, {how}"
    test = result["test"]
    values = (
        f"test gauc {test.get('gauc', nan):.4f}{_against_full(test['difference'])}, auc {test.get('auc', nan):.4f}, "
    )
    values += f"pcoc {test.get('pcoc', nan):.4f}"  # a narrow width that learnt for too short ranks, but is off
    return {**result, "text": f"{shown}\n{kept}\n{values}"}


def _against_full(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    return f" ({found['value']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}] against the full width)"


def _bench(options: argparse.Namespace) -> dict[str, Any]:
    from ctrkit_serving.bench.command import bench_command

    return bench_command(options)


def _score(options: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from ctrkit_serving.score_file import score_file

    _require_free(options)
    scored = score_file(
        options.bundle, options.requests, options.out, ignore_unknown=options.ignore_unknown, width=options.width
    )
    counts = {name: asdict(count) for name, count in scored.counts.items()}
    unseen = sum(count["unseen"] for count in counts.values())
    shown = f"{scored.requests:,} requests, {scored.ads:,} ads -> {options.out} ({unseen:,} unseen ids)"
    return {"requests": scored.requests, "ads": scored.ads, "counts": counts, "out": str(options.out), "text": shown}


def _serve(options: argparse.Namespace) -> dict[str, Any]:
    from ctrkit_serving.server.command import serve_command

    return serve_command(options)


def end(code: int) -> None:
    """End the process; one of several without tearing down its libraries, whose threads now and then abort it then."""
    sys.stdout.flush()
    sys.stderr.flush()
    if "RANK" in os.environ:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    try:
        ended = main()
    except SystemExit as error:
        ended = int(error.code or 0)
    end(ended)
