"""Networks that teach each other."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ctrkit.nn.network import Network
from ctrkit.objectives.co_training import CoTraining
from ctrkit.objectives.hint import Hint, Lesson


def mutual_learning(
    peers: Mapping[str, Network],
    *,
    hint: Hint = Hint("kl"),  # noqa: B008  frozen
    average: Literal["each", "mean"] = "each",
    in_turn: bool = False,
    shipped: Sequence[str] = (),
    **settings: Any,
) -> CoTraining:
    """Deep Mutual Learning (Zhang et al., CVPR 2018): L_k = BCE_k + lambda / (K - 1) sum over l != k of KL(p_l || p_k).

    Impressions without a label enter the mutual term only, as in its semi-supervised form.

    Args:
        peers: K networks, by role.
        hint: KL at temperature 1 in the paper; a peer is detached where it teaches.
        average: `each` is DML; `mean` is DML_e, one KL to the mean probability of the others.
        in_turn: algorithm 1: each peer's step on the batch sees the others' after theirs; else all at once.
        shipped: peers that may ship, the best on the validation part does; all if not given.
        settings: of `CoTraining`.
    """
    lessons = [
        Lesson(role, tuple(other for other in peers if other != role), hint, average)
        for role in peers
        if len(peers) > 1
    ]
    return CoTraining(peers, lessons, in_turn=in_turn, shipped=shipped or tuple(peers), **settings)
