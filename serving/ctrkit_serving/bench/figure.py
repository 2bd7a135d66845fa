"""The saturation curve as a picture: SVG, written by hand, so that it needs no library."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 720, 420, 70, 40, 50, 190
_COLOURS = ("#1b6ca8", "#c1440e", "#3a7d44", "#7a4ea3")
_STYLES = {"p99": "", "p50": "6 3", "service p50": "2 3"}


def curve_svg(title: str, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Latency (milliseconds, logarithmic) against offered requests a second.

    Args:
        title: above it.
        curves: points as `Answers.as_dict` gives them, by the name of what was measured.
    """
    lines: list[tuple[str, str, str, list[tuple[float, float]]]] = []
    for i, (name, points) in enumerate(curves.items()):
        for what, dashes in _STYLES.items():
            line = [(p["offered_rps"], value) for p in points if (value := _value(p, what))]
            lines.append((f"{name}: {what}", _COLOURS[i % len(_COLOURS)], dashes, line))
    every = [point for *_, line in lines for point in line] or [(1.0, 1.0)]
    right = max(x for x, _ in every)
    low = math.floor(math.log10(min(y for _, y in every)))
    high = max(math.ceil(math.log10(max(y for _, y in every))), low + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        down = (high - math.log10(y)) / (high - low)
        return _LEFT + x / right * (_WIDTH - _LEFT - _RIGHT), _TOP + down * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        _text(_LEFT, 20, title, "start"),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, "offered requests a second", "middle"),
        _text(_LEFT, _TOP - 6, "ms since due", "middle"),
    ]
    for exponent in range(low, high + 1):
        x, y = place(0, 10.0**exponent)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(_text(x - 6, y + 4, f"{10.0**exponent:g}", "end"))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = place(share * right, 10.0**low)
        parts.append(_text(x, y + 18, f"{share * right:,.0f}", "middle"))
    for i, (name, colour, dashes, line) in enumerate(lines):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"'
        parts.append(f'<polyline points="{path}" {style}/>')
        y = _TOP + 18 * i
        parts.append(f'<path d="M{_WIDTH - _RIGHT + 10} {y}h24" {style}/>')
        parts.append(_text(_WIDTH - _RIGHT + 40, y + 4, name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _value(point: Mapping[str, Any], what: str) -> float | None:
    """Where there are too few samples for a percentile, none."""
    found = point["service_ms"]["p50"] if what == "service p50" else point["latency_ms"][what]
    return None if found is None else float(found)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
