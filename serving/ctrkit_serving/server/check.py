"""What a new version must pass before a worker sees it: done in a process of its own, which may crash or hang."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

from ctrkit.errors import UserError
from ctrkit_serving.latency import measure
from ctrkit_serving.server.model import Model
from ctrkit_serving.server.protocol import RequestError, short
from ctrkit_serving.server.settings import Settings

REPEATS, WARMUP = 200, 20
NICENESS = 19
"""Of a checking process: requests go first."""


def check(
    settings: Settings, name: str, version: int, path: Path, serving: tuple[int, Path] | None, *, same_signature: bool
) -> dict[str, Any]:
    """What the check found: `{"bundle": its hash, "median_ms": ..., "serving_median_ms": ...}`.

    In this order: hashes, graph against manifest, golden scores, finite ones, warm-up; then beside the version that
    serves: the same signature, its golden requests answered, the median latency of both in one interleaved run.

    Raises:
        UserError: the version must not serve.
    """
    new = Model.load(path, name, version, settings)
    old = None if serving is None else _load_serving(settings, name, *serving)
    if old is not None and same_signature:
        if new.signature() != old.signature() or new.lacks_what_callers_name(old):
            raise UserError(
                f"it takes other inputs than version {old.version}, which serves: callers would fail. Give it a name "
                "of its own, or load it with the parameter allow_other_signature"
            )
        _answers_like(new, old)
    scorers = {"new": new.scorer} | ({} if old is None else {"serving": old.scorer})
    requests = new.scorer.bundle.golden.requests
    measured = measure(scorers, requests, ads=settings.latency_ads, repeats=REPEATS, warmup=WARMUP)
    medians = {key: latency.total.p50.value for key, latency in measured.items() if latency.total.p50 is not None}
    _gate(settings, medians)
    return {
        "bundle": new.bundle_hash(),
        "median_ms": medians["new"],
        "serving_median_ms": medians.get("serving"),
    }


def _load_serving(settings: Settings, name: str, version: int, path: Path) -> Model | None:
    """The version that serves, to compare with; None if it is no longer on the disk as it was."""
    try:
        return Model.load(path, name, version, settings)
    except UserError:
        return None


def _answers_like(new: Model, old: Model) -> None:
    for i, request in enumerate(old.scorer.bundle.golden.requests):
        try:
            new.score_request(request)
        except (UserError, RequestError) as error:
            raise UserError(f"golden request {i} of version {old.version}, which serves: {error}") from error


def _gate(settings: Settings, medians: dict[str, float]) -> None:
    new, serving = medians["new"], medians.get("serving")
    ads = settings.latency_ads
    if settings.latency_budget_ms and new > settings.latency_budget_ms:
        raise UserError(f"slow: {new:.3f} ms at {ads} ads, the budget is {settings.latency_budget_ms:g} ms")
    if serving is not None and settings.max_latency_ratio and new > settings.max_latency_ratio * serving:
        raise UserError(
            f"slow: {new:.3f} ms at {ads} ads, {new / serving:.1f} times the {serving:.3f} ms of the version that "
            f"serves; allowed are {settings.max_latency_ratio:g} times"
        )


def run_child(pipe: int, settings: Settings, arguments: dict[str, Any]) -> None:
    """Check and write the result, as JSON, to the pipe: `{"ok": true, ...}` or `{"ok": false, "reason": ...}`."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the supervisor's to answer, which ends this process
    signal.alarm(math.ceil(settings.check_timeout_s) + 60)  # if that is gone
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    try:
        result = {"ok": True, **check(settings, **arguments)}
    except UserError as error:
        result = {"ok": False, "reason": short(error)}
    except Exception as error:
        result = {"ok": False, "reason": short(f"{type(error).__name__}: {error}")}
    os.write(pipe, json.dumps(result).encode())
