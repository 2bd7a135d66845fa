"""One bundle of several widths of a slimmable model, over the same tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctrkit.atomic import temporary_directory
from ctrkit.bundle import bundle_place
from ctrkit.errors import UserError
from ctrkit.export.widths import Width
from ctrkit.manifest import MAX_WIDTHS
from ctrkit.run import sha256
from ctrkit.slimming.autoslim import Channels, channels_name
from ctrkit.slimming.slim import Slim, put
from ctrkit.slimming.timing import made


def export_widths(slim: Slim, widths: Sequence[str], place: Path) -> dict[str, Any]:
    """Export some widths side by side: each request may ask for one, and gets the widest if it does not.

    Args:
        slim: the trained model.
        widths: fractions, "0.5", or the channels of each layer, "104x40".
        place: of the bundle.

    Raises:
        UserError: a width is none, two are the same tower, or they are too many; or the place holds something that is
            no bundle.
    """
    place = bundle_place(place)
    towers = dict(_tower(slim, width) for width in widths)
    if len(set(towers.values())) < len(widths) or len(widths) > MAX_WIDTHS:
        raise UserError(
            f"--widths {' '.join(widths)}: give up to {MAX_WIDTHS}, each once; they are the towers "
            f"{sorted(map(list, towers.values()))}"
        )
    _warn_untrained(slim, towers)
    ordered = sorted(towers, key=lambda name: slim.tower.multiplications_at(towers[name]), reverse=True)
    channels = [towers[name] for name in ordered]
    networks, reports = slim.networks(channels), slim.against_full(channels)
    found = {}
    for name, (tower, network) in zip(ordered, networks.items(), strict=True):
        metrics = {key: value for key, value in reports[tower].items() if isinstance(value, float)}
        found[name] = Width(network, metrics)
    widest = found[ordered[0]]
    fingerprint = sha256([slim.run.train(slim.model)["weights"], [[name, towers[name]] for name in ordered]])
    with temporary_directory(made(place.parent), "slim") as temporary:
        new = temporary / "bundle"
        bundle = slim.run.write(widest.network, new, slim.model, dict(widest.metrics), fingerprint, widths=found)
        entries = {
            name: {**entry.model_dump(mode="json"), "difference": reports[tower]["difference"]}
            for (name, entry), tower in zip(bundle.manifest.widths.items(), networks, strict=True)
        }
        result = {"model": slim.model, "bundle": str(place), "widths": entries}
        put(new, place, result)
    return result


def _warn_untrained(slim: Slim, towers: Mapping[str, Channels]) -> None:
    """Say which widths lie outside of those that were trained: they score, but nobody taught them."""
    low, high = (slim.tower.channels(fraction) for fraction in slim.objective.range)
    for name, channels in towers.items():
        if any(not a <= c <= b for a, c, b in zip(low, channels, high, strict=True)):
            slim.run.say(
                f"  warning: width {name}, {list(channels)}, lies outside of what '{slim.model}' trains, {list(low)} "
                f"to {list(high)}; put it into the model's `widths` and train again"
            )


def _tower(slim: Slim, width: str) -> tuple[str, Channels]:
    """Name and channels."""
    way_out = "give fractions such as 0.5, or channels such as 104x40"
    try:
        asked = [int(part) for part in width.split("x")] if "x" in width else float(width)
    except ValueError:
        raise UserError(f"--widths {width}: is no width; {way_out}") from None
    try:
        channels = slim.tower.channels(asked)
    except ValueError as error:
        raise UserError(f"--widths {width}: {error}; {way_out}") from error
    return channels_name(channels) if isinstance(asked, list) else f"{asked:g}", channels
