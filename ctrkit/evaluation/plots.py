"""Pictures of an evaluation or a comparison: SVG files, and beside each the numbers that it shows, as JSON.

A `draw_` function takes exactly the numbers that the JSON file holds. Nothing depends on a display, on the time or on
what was drawn before, so the same numbers give the same file. Colours are those of Okabe and Ito, which the
colour-blind tell apart; marks and line styles differ as well. matplotlib is imported when the first picture is drawn.
"""

import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ctrkit.atomic import atomic_file, write_json
from ctrkit.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Data = Mapping[str, Any]
Floats = NDArray[np.float64]

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKS = "osD^vPX"
_NO_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "ctrkit",
    "svg.fonttype": "none",  # text stays text: the reader's font has letters that DejaVu lacks
    "text.parse_math": False,  # names may hold dollars
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.markersize": 4,
}


def require_matplotlib() -> None:
    """Raise UserError if pictures cannot be drawn: before anything that takes long."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            "pictures need matplotlib; pip install '.[plots]' in the clone of ctrkit, or leave out --plots"
        ) from error


def require_place(directory: Path) -> None:
    """Raise UserError if the directory cannot be made or written: before anything that takes long."""
    there = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{directory}: cannot be written; give --plots another folder")


def save(directory: Path, name: str, draw: Callable[[Data], "Figure"], data: Data) -> Path:
    """Write NAME.svg and NAME.json into a directory, which is made if need be; returns the path of the picture.

    Characters of the name that do not belong into file names are written as in URLs. Raises UserError if it cannot be
    written.
    """
    name = quote(name, safe=" ")
    with _style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure, picture = draw(data), io.StringIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    with atomic_file(directory / f"{name}.svg") as file:
        file.write(_NO_XML.sub("�", picture.getvalue()).encode())
    write_json(directory / f"{name}.json", data)
    return directory / f"{name}.svg"


def draw_reliability(data: Data) -> "Figure":
    """Click rate over predicted probability, a line for each run of each model, in bins of equal mass.

    data: rows; models, each with name and runs, each with predicted and observed [bins].
    """
    with _axes(f"Reliability, {data['rows']:,} impressions") as (figure, axes):
        largest = 0.0
        for model, style in zip(data["models"], _styles(len(data["models"])), strict=True):
            for i, run in enumerate(model["runs"]):
                axes.plot(run["predicted"], run["observed"], **style, label=_short(model["name"]) if i == 0 else None)
                largest = max([largest, *run["predicted"], *run["observed"]])
        axes.plot([0, largest], [0, largest], color="#777777", linewidth=0.8, label="calibrated", zorder=1)
        axes.set(xlabel="mean predicted probability of a bin", ylabel="click rate of the bin")
        axes.legend()
    return figure


def draw_slices(data: Data) -> "Figure":
    """GAUC of every value of a slice, with its interval if there is one, and a line at the GAUC of all rows.

    data: rows; slice; gauc, of all rows; level; values, each with value, impressions, gauc, low and high. What is not
    defined is None.
    """
    values = data["values"]
    level = f", {data['level']:.0%} intervals" if data["level"] is not None else ""
    title = f"GAUC by {_short(data['slice'])}{level}; {data['rows']:,} impressions"
    with _axes(title, height=1.4 + 0.24 * len(values)) as (figure, axes):
        gauc, low, high = (_floats([value[name] for value in values]) for name in ("gauc", "low", "high"))
        places = np.arange(len(values))
        _whiskers(axes, low, high, places)
        axes.plot(gauc, places, "o", color=COLOURS[0], label="GAUC")
        if data["gauc"] is not None:
            axes.axvline(data["gauc"], color=COLOURS[4], linestyle="--", linewidth=1, label="all impressions")
        figure.legend(loc="outside lower center", ncols=2)
        axes.set(xlabel="GAUC (weighted by impressions)", ylabel=_short(data["slice"]), ylim=(len(values) - 0.5, -0.5))
        axes.set_yticks(places, [f"{_short(value['value'])} ({value['impressions']:,})" for value in values])
        axes.grid(visible=False, axis="y")
    return figure


def draw_scores(data: Data) -> "Figure":
    """How the probabilities of clicks and of non-clicks are spread, on a logit axis.

    data: rows; edges [bins + 1], probabilities; click and no_click [bins], shares of each label's impressions.
    """
    with _axes(f"Scores by label, {data['rows']:,} impressions") as (figure, axes):
        edges = _logit(_floats(data["edges"]))
        labels = (("no_click", "no click", COLOURS[0], "-"), ("click", "click", COLOURS[4], "--"))
        for name, label, colour, line in labels:
            axes.stairs(_floats(data[name]), edges, color=colour, linestyle=line, linewidth=1.4, label=label)
        ticks = np.array([0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999])
        ticks = ticks[(_logit(ticks) >= edges[0]) & (_logit(ticks) <= edges[-1])]
        axes.set_xticks(_logit(ticks), [f"{tick:g}" for tick in ticks])
        axes.set(xlabel="predicted probability (logit axis)", ylabel="share of the label's impressions", ylim=(0, None))
        axes.legend()
    return figure


def draw_differences(data: Data) -> "Figure":
    """A forest plot: the difference of every variant from the baseline with its interval, one field for each metric.

    A mark is filled if the difference can be told from zero, the number of variants allowed for. data: rows; users;
    baseline; level; metrics, each with name, unit, larger_is_better and variants, each with name, difference, low,
    high and told.
    """
    from matplotlib.figure import Figure

    metrics = data["metrics"]
    count = len(metrics[0]["variants"])
    figure = Figure(figsize=(1.4 + 2.3 * len(metrics), 1.5 + 0.3 * count), layout="constrained")
    fields = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    title = f"Differences from {_short(data['baseline'])}, {data['level']:.0%} intervals"
    figure.suptitle(f"{title}; {data['rows']:,} impressions of {data['users']:,} users", fontsize=9)
    for axes, metric in zip(fields, metrics, strict=True):
        variants = metric["variants"]
        difference, low, high = (_floats([v[name] for v in variants]) for name in ("difference", "low", "high"))
        places = np.arange(count)
        _whiskers(axes, low, high, places)
        fill = ["#0072B2" if variant["told"] else "white" for variant in variants]
        axes.scatter(difference, places, s=22, c=fill, edgecolors=COLOURS[0], zorder=3)
        axes.axvline(0, color="#777777", linewidth=0.8)
        better = "right" if metric["larger_is_better"] else "left"
        axes.set(
            xlabel=f"difference in {metric['name']}{metric['unit']}\n({better} is better)", ylim=(count - 0.5, -0.5)
        )
        axes.locator_params(axis="x", nbins=4)
        axes.grid(visible=False, axis="y")
    fields[0].set_yticks(np.arange(count), [_short(variant["name"]) for variant in metrics[0]["variants"]])
    return figure


def draw_changes(data: Data) -> "Figure":
    """How the probabilities change from the baseline to each variant.

    data: rows; baseline; edges [bins + 1]; variants, each with name and share [bins] of the impressions. What lies
    beyond the edges counts in the outermost bins.
    """
    title = f"Change of the probability from {_short(data['baseline'])}, {data['rows']:,} impressions"
    with _axes(title) as (figure, axes):
        for i, variant in enumerate(data["variants"]):
            axes.stairs(
                _floats(variant["share"]),
                _floats(data["edges"]),
                color=COLOURS[i % len(COLOURS)],
                linestyle=LINES[i % len(LINES)],
                linewidth=1.4,
                label=_short(variant["name"]),
            )
        axes.axvline(0, color="#777777", linewidth=0.8)
        axes.set(xlabel="change of the predicted probability", ylabel="share of impressions", ylim=(0, None))
        axes.legend()
    return figure


def draw_frontier(data: Data) -> "Figure":
    """GAUC, with its interval, against the latency that serving a network takes.

    data: ads, of a request; networks, each with network, p50 (milliseconds), gauc, low and high.
    """
    networks = data["networks"]
    with _axes(f"What a millisecond buys: requests of {data['ads']:,} ads, one thread", height=4.4) as (figure, axes):
        for i, each in enumerate(networks):
            colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
            axes.vlines(each["p50"], each["low"], each["high"], color=colour, linewidth=1.0)
            axes.plot([each["p50"]], [each["gauc"]], mark, color=colour, label=_short(each["network"]))
        axes.set(xlabel="p50 of a request, ms", ylabel="GAUC, 95 % interval")
        figure.legend(loc="outside lower center", ncols=3, fontsize=7)
    return figure


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
        matplotlib.rcParams.update(_SETTINGS)
        yield


@contextmanager
def _axes(title: str, height: float = 3.4) -> Iterator[tuple["Figure", "Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    yield figure, axes


def _styles(count: int) -> Iterator[dict[str, Any]]:
    for i in range(count):
        yield {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": LINES[i % len(LINES)],
            "marker": MARKS[i % len(MARKS)],
            "linewidth": 1.2,
        }


def _whiskers(axes: "Axes", low: Floats, high: Floats, places: NDArray[np.int64]) -> None:
    """Horizontal intervals, where they are defined."""
    there = ~np.isnan(low)
    axes.hlines(places[there], low[there], high[there], color=COLOURS[0], linewidth=1.4)


def _short(name: str) -> str:
    """A name that leaves room for the picture."""
    return name if len(name) <= 40 else f"{name[:39]}…"


def _floats(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _logit(p: Floats) -> Floats:
    return np.asarray(np.log(p / (1 - p)))
