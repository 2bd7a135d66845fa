"""`ctrkit evaluate PREDICTIONS`: from the options of the command line to its result."""

import argparse
from typing import Any

from ctrkit.errors import UserError
from ctrkit.evaluation.evaluate import evaluate_predictions
from ctrkit.evaluation.evaluate_text import evaluation_text
from ctrkit.evaluation.evaluation import Wanted
from ctrkit.evaluation.pictures import plot_evaluation
from ctrkit.evaluation.plots import require_matplotlib
from ctrkit.evaluation.predictions import Predictions


def evaluate_command(options: argparse.Namespace) -> dict[str, Any]:
    """The result of --json, and "text" for people. Raises UserError as `evaluate_predictions` does."""
    for name in ("resamples", "max_values", "rows_in_memory"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: give 1 or more")
    if options.plots:
        require_matplotlib()  # before anything that takes long
    predictions = Predictions.open(
        options.recipe,
        label=options.label or "label",
        group=options.group or "group",
        score=options.score or "probability",
        weight=options.weight,
    )
    wanted = Wanted(
        slices=tuple(dict.fromkeys(options.slice)),
        fields=tuple(dict.fromkeys(options.field)),
        negative_rate=options.negative_rate,
        resamples=options.resamples if options.intervals else 0,
        max_values=options.max_values,
    )
    evaluation = evaluate_predictions(predictions, wanted, rows_in_memory=options.rows_in_memory, tmp=options.tmp)
    columns = {role: getattr(predictions, role) for role in ("label", "group", "score", "weight")}
    asked = {"predictions": predictions.path, "columns": columns, "negative_rate": wanted.negative_rate}
    drawn = plot_evaluation(evaluation, predictions, wanted, options.plots) if options.plots else []
    text = evaluation_text(evaluation, predictions, wanted)
    text += f"\n\npictures: {', '.join(map(str, drawn))}" if drawn else ""
    return {**asked, **evaluation.as_dict(), "pictures": [str(path) for path in drawn], "text": text}
