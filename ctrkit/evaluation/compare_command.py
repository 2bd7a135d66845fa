"""`ctrkit compare BASELINE VARIANT...`: from the options of the command line to its result."""

import argparse
from typing import Any

from ctrkit.errors import UserError
from ctrkit.evaluation.compare import Scores, compare
from ctrkit.evaluation.compare_text import report_text, sentences
from ctrkit.evaluation.pictures import ComparePictures
from ctrkit.evaluation.runs import Columns, Impressions, parse_models
from ctrkit.metrics.resampling import COMPARABLE


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
    pictures = ComparePictures() if options.plots else None
    baseline, *variants = parse_models([options.baseline, *options.variant])
    notes = []

    def look(log: Impressions, name: str, runs: Scores) -> None:
        if name == baseline.name and "weight" in log.unused:
            notes.append(f"{log.path}: the column 'weight' is not used; every impression counts once")
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
    text = "\n\n".join([report_text(report), *notes])
    text += f"\n\npictures: {', '.join(map(str, drawn))}" if drawn else ""
    return {
        **report.as_dict(),
        "paths": {model.name: list(model.paths) for model in (baseline, *variants)},
        "sentences": dict(zip(report.variants, sentences(report), strict=True)),
        "notes": notes,
        "pictures": [str(path) for path in drawn],
        "text": text,
    }
