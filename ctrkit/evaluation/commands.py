"""`ctrkit evaluate PREDICTIONS` and `ctrkit compare BASELINE VARIANT...`: from options to results."""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctrkit.errors import UserError
from ctrkit.evaluation import plots
from ctrkit.evaluation.compare import Scores, compare
from ctrkit.evaluation.in_memory import evaluate_predictions
from ctrkit.evaluation.plot_data import ComparePictures, plot_evaluation
from ctrkit.evaluation.predictions import Predictions
from ctrkit.evaluation.report import EvalConfig
from ctrkit.evaluation.runs import Columns, Impressions, parse_models
from ctrkit.evaluation.text import comparison_text, evaluation_text, sentences
from ctrkit.metrics.resampling import COMPARABLE


def evaluate_command(options: argparse.Namespace) -> dict[str, Any]:
    """The result of --json, and "text" for people. Raises UserError as `evaluate_predictions` does."""
    for name in ("resamples", "max_values", "rows_in_memory"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: give 1 or more")
    _require_pictures(options.plots)
    predictions = Predictions.open(
        options.recipe,
        label=options.label or "label",
        group=options.group or "group",
        score=options.score or "probability",
        weight=options.weight,
    )
    config = EvalConfig(
        slices=tuple(dict.fromkeys(options.slice)),
        fields=tuple(dict.fromkeys(options.field)),
        negative_rate=options.negative_rate,
        resamples=options.resamples if options.intervals else 0,
        max_values=options.max_values,
    )
    evaluation = evaluate_predictions(predictions, config, rows_in_memory=options.rows_in_memory, tmp=options.tmp)
    columns = {role: getattr(predictions, role) for role in ("label", "group", "score", "weight")}
    asked = {"predictions": predictions.path, "columns": columns, "negative_rate": config.negative_rate}
    drawn = plot_evaluation(evaluation, predictions, config, options.plots) if options.plots else []
    text = evaluation_text(evaluation, predictions, config)
    if predictions.weight is None and "weight" in predictions.columns:
        text += "\n\nthe column 'weight' is not used, every impression counts once; --weight weight takes it"
    text += f"\n\npictures: {', '.join(map(str, drawn))}" if drawn else ""
    return {**asked, **evaluation.as_dict(), "pictures": [str(path) for path in drawn], "text": text}


def _require_pictures(directory: Path | None) -> None:
    """Raise UserError if pictures are asked for and cannot be: before anything that takes long."""
    if directory is not None:
        plots.require_matplotlib()
        plots.require_place(directory)


def compare_command(options: argparse.Namespace) -> dict[str, Any]:
    """The result of --json, and "text" for people. Raises UserError as `compare` does."""
    for name in ("resamples", "top_k"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: give 1 or more")
    if not 0 < options.level < 1:
        raise UserError(f"--level {options.level}: give the coverage of the intervals, in (0, 1)")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: give 0 or more")
    metrics = [name.strip() for name in options.metrics.split(",")]
    if unknown := [name for name in metrics if name not in COMPARABLE or metrics.count(name) > 1]:
        raise UserError(f"--metrics {options.metrics}: {unknown[0]!r} is not one of {', '.join(COMPARABLE)}, each once")
    _require_pictures(options.plots)
    pictures = ComparePictures() if options.plots else None
    baseline, *variants = parse_models([options.baseline, *options.variant])
    paths = {model.name: list(model.paths) for model in (baseline, *variants)}
    needed = math.ceil(2 * len(variants) / (1 - options.level) - 1e-9)  # by Holm, of the smallest p-value
    notes = []
    if options.resamples + 1 < needed:
        notes.append(
            f"--resamples {options.resamples:,}: with {len(variants)} variants no p-value can be small enough for "
            f"{options.level:g}; give {needed:,} or more"
        )

    def look(log: Impressions, name: str, runs: Scores) -> None:
        if name == baseline.name and "weight" in log.unused:
            notes.append(f"{log.path}: the column 'weight' is not used; every impression counts once")
        notes.extend(_told_twice(paths[name], runs))
        if pictures:
            pictures.look(log.label, name, runs)

    report = compare(
        baseline,
        variants,
        Columns(options.label, options.group, options.score, options.key),
        look=look,
        metrics=metrics,
        weighting=options.weighting,
        resamples=options.resamples,
        level=options.level,
        seed=options.seed,
        top_k=options.top_k,
    )
    drawn = pictures.save(report, options.plots) if pictures else []
    text = "\n\n".join([comparison_text(report), *notes])
    text += f"\n\npictures: {', '.join(map(str, drawn))}" if drawn else ""
    return {
        **report.as_dict(),
        "paths": paths,
        "sentences": dict(zip(report.variants, sentences(report), strict=True)),
        "notes": notes,
        "pictures": [str(path) for path in drawn],
        "text": text,
    }


def _told_twice(paths: Sequence[str], runs: Scores) -> Iterator[str]:
    """Runs of one model whose scores are those of an earlier one, as another seed's never are."""
    for later in range(1, len(runs)):
        for earlier in range(later):
            if np.array_equal(runs[earlier], runs[later]):
                yield (
                    f"{paths[later]}: the same scores as {paths[earlier]}, as if one run counted twice: the intervals "
                    "are narrower than the runs make them"
                )
                break
