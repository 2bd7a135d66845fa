"""Every learning method on small networks: each with the parameters that each of its losses moves.

Parts of an objective's parameters, by name:

    light, light head      hidden layers of a role's tower that no other tower has, and its last layer
    light-auxiliary        heads and projections that do not serve
    layers                 layers that several towers have
    tables, tables light   tables that several networks have, or one of them
    slimmable              hidden layers of the tower that every width is a view of; it has a head too
    frozen                 networks that only teach: nothing ever moves them
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ctrkit.data.batch import Batch
from ctrkit.names import SLIMMABLE
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.nn.slimmable import FixedWidth, SlimmableMLP
from ctrkit.objectives.co_training import CoTraining
from ctrkit.objectives.distillation import distillation
from ctrkit.objectives.hint import Hint, HintLoss, LayerHint, Lesson
from ctrkit.objectives.mutual_learning import mutual_learning
from ctrkit.objectives.objective import Objective
from ctrkit.objectives.pointwise import Pointwise
from ctrkit.objectives.rocket_launching import Route, rocket_launching
from ctrkit.objectives.slimmable import Slimmable
from tests import networks

Features = Mapping[str, Mapping[str, Any]]
Moves = Mapping[str, set[str]]


@dataclass(frozen=True)
class Case:
    """An objective, and the parts that each of its losses moves: all tensors of a part or none."""

    name: str
    make: Callable[[], Objective]
    moves: Moves
    memorises: bool = False
    """Whether all its losses vanish on a few impressions in few steps: no teacher that knows nothing of them."""
    tables: int = 1
    """Sets of tables."""
    features: Features = field(default_factory=lambda: networks.FEATURES)

    def batch(self, rows: int = 64, *, take: slice = slice(None)) -> Batch:
        """Impressions that fit it."""
        return networks.batch(rows, self.features, take=take)


def tower(tables: Embedding, *hidden: int, extra: int = 0, **settings: Any) -> MLP:
    """An MLP over tables and `extra` further columns."""
    return MLP(tables.out_features + extra, hidden, **settings)


def network(*hidden: int, seed: int = 0) -> Network:
    """A network with tables of its own, batch norm and dropout: what must be in evaluation mode to teach."""
    tables = networks.embedding(seed=seed)
    return Network(tables, tower(tables, *hidden, dropout=0.3, batch_norm=True))


def losses(objective: Objective, batch: Batch, step: int = 0) -> dict[str, Tensor]:
    """Those of all turns, without an update between them."""
    return {name: loss_B for turn in range(objective.turns) for name, loss_B in _turn(objective, batch, step, turn)}


def _turn(objective: Objective, batch: Batch, step: int, turn: int) -> list[tuple[str, Tensor]]:
    return [*objective.losses(batch, step, turn).items()]


def parts(objective: Objective) -> dict[str, list[Tensor]]:
    """Parameters of an objective by the names above; none of them is in two parts."""
    found: dict[str, list[Tensor]] = {}
    towers = {role: set(n.tower.parameters()) for role, n in objective.networks().items()}
    for role, n in objective.networks().items():
        if isinstance(n.tower, FixedWidth):
            name, head = SLIMMABLE, set(n.tower.slimmable.layers[-1].parameters())
            others: set[Tensor] = set()
        else:
            assert isinstance(n.tower, MLP)
            name, head = role, set(n.tower.linears[-1].parameters())
            others = {p for other, parameters in towers.items() if other != role for p in parameters}
        found[name] = [p for p in n.tower.parameters() if p not in others and p not in head]
        found[f"{name} head"] = [*head]
        if role == next(iter(towers)):
            found["layers"] = [p for p in n.tower.parameters() if p in others]
        for embedding in n.embeddings:
            holders = [r for r, other in objective.networks().items() if embedding in other.embeddings]
            found["tables" if len(holders) > 1 else f"tables {role}".strip()] = [*embedding.stacks.values()]
    found |= {name: [*module.parameters()] for name, module in objective.towers.items() if "-" in name}
    if isinstance(objective, CoTraining):
        found["frozen"] = [*objective.frozen.parameters()]
    return {name: parameters for name, parameters in found.items() if parameters}


def whole(*roles: str) -> set[str]:
    """Towers with their heads."""
    return {part for role in roles for part in (role, f"{role} head")}


# --- rockets


def rocket(
    route: Route | float = "shared",
    *,
    boosters: int = 1,
    own_tables: bool = False,
    shared_layer: bool = False,
    light: tuple[int, ...] = (8,),
    booster: tuple[int, ...] = (16, 8),
    **settings: Any,
) -> Callable[[], Objective]:
    """A light tower under boosters."""

    def make() -> Objective:
        tables = networks.embedding()
        small = tower(tables, *((16, *light) if shared_layer else light))
        roles = ["booster"] if boosters == 1 else [f"booster{i}" for i in range(boosters)]
        above = {}
        for i, role in enumerate(roles):
            own = networks.embedding(seed=i + 1) if own_tables else tables
            above[role] = Network(own, tower(own, *booster))
        if shared_layer:
            lowest = above[roles[0]].tower
            assert isinstance(lowest, MLP)
            small.layers[0] = lowest.layers[0]
        return rocket_launching(Network(tables, small), above, route=route, **{"hint": Hint(weight=0.5), **settings})

    return make


def privileged() -> Objective:
    """A booster that also sees features that only training has."""
    tables, more = networks.embedding(networks.PRIVILEGED), networks.embedding(networks.PRIVILEGED, privileged=True)
    booster = Network(tables, tower(tables, 16, 8, extra=more.out_features), more)
    return rocket_launching(Network(tables, tower(tables, 8)), {"booster": booster})


ROUTES: Mapping[Route | float, tuple[set[str], set[str]]] = {
    # what is shared: whether the light tower's losses move it; whether the hint moves the booster
    "none": ({"tables"}, whole("booster")),
    "paper": ({"tables"}, set()),
    0.25: ({"tables"}, set()),
    "shared": (set(), set()),
}


def rockets() -> list[Case]:
    """Each route, alone and with a bottom layer that both towers have; several boosters; tables of their own."""
    found = []
    for route, (shared, hinted) in ROUTES.items():
        both = whole("booster") | {"tables"}
        found.append(
            Case(
                f"rocket_launching, route {route}",
                rocket(route),
                {"light": whole("light") | shared, "booster": both, "hint": whole("light") | shared | hinted},
                memorises=isinstance(route, str),
            )
        )
        layers = {"layers"} if shared else set()
        found.append(
            Case(
                f"rocket_launching, route {route}, bottom layer shared",
                rocket(route, shared_layer=True),
                {
                    "light": whole("light") | shared | layers,
                    "booster": both | {"layers"},
                    "hint": whole("light") | shared | layers | hinted,
                },
            )
        )
    three = {f"booster{i}": {*whole(f"booster{i}"), "tables"} for i in range(3)}
    found += [
        Case(
            "rocket_launching, three boosters, route shared",
            rocket(boosters=3),
            {"light": whole("light"), **three, "hint": whole("light")},
        ),
        Case(
            "rocket_launching, three boosters, route none",
            rocket("none", boosters=3),
            {
                "light": {*whole("light"), "tables"},
                **three,
                "hint": {*whole("light", "booster0", "booster1", "booster2"), "tables"},
            },
        ),
        Case(  # nothing is shared, so nothing is blocked
            "rocket_launching, tables of its own",
            rocket(own_tables=True),
            {
                "light": {*whole("light"), "tables light"},
                "booster": {*whole("booster"), "tables booster"},
                "hint": {*whole("light"), "tables light"},
            },
            tables=2,
        ),
        Case(
            "rocket_launching, privileged booster",
            privileged,
            {
                "light": whole("light"),
                "booster": {*whole("booster"), "tables", "tables booster"},
                "hint": whole("light"),
            },
            tables=2,
            features=networks.PRIVILEGED,
        ),
    ]
    return found


def layer_hints() -> list[Case]:
    """Hints on hidden layers, which never move the teacher; the head reads them and is not moved either."""
    light, booster = whole("light"), {*whole("booster"), "tables"}
    projected = LayerHint("light", 0, "booster", 0)  # 8 units to 16
    alike = {loss: LayerHint("light", 0, "booster", 1, loss) for loss in ("mse", "cosine", "attention")}
    return [
        Case(
            "rocket_launching, auxiliary head",
            rocket(auxiliary=True),
            {"light": light, "booster": booster, "hint": {"light", "light-auxiliary"}},
        ),
        Case(
            "rocket_launching, route paper, auxiliary head",
            rocket("paper", auxiliary=True),
            {"light": light | {"tables"}, "booster": booster, "hint": {"light", "light-auxiliary", "tables"}},
        ),
        Case(
            "rocket_launching, layer hint with projection",
            rocket(layer_hints=[projected]),
            {
                "light": light,
                "booster": booster,
                "hint": light,
                "layer_hint_0": {"light", "light-projection-0"},
            },
        ),
        *(
            Case(
                f"rocket_launching, route paper, layer hint {loss}",
                rocket("paper", layer_hints=[hint]),
                {
                    "light": light | {"tables"},
                    "booster": booster,
                    "hint": light | {"tables"},
                    "layer_hint_0": {"light", "tables"},
                },
            )
            for loss, hint in alike.items()
        ),
    ]


# --- distillation


def distilled(*, frozen: int = 1, column: bool = False, **settings: Any) -> Callable[[], Objective]:
    """A student under trained networks, a column of the log, or both."""

    def make() -> Objective:
        student = networks.network(hidden=(8,))
        teachers = {f"teacher{i}": network(16, 8, seed=i + 1) for i in range(frozen)}
        names = [*teachers, *([networks.TEACHER] if column else [])]
        return distillation(student, names, frozen=teachers, **settings)

    return make


def distillations() -> list[Case]:
    """From networks, from a column, by each loss, with and without the label."""
    all_of_it, hints = {*whole(""), "tables"}, tuple[HintLoss, ...](("logit_mse", "probability_mse", "kl", "soft_bce"))
    both: Moves = {"label": all_of_it, "hint": all_of_it}
    attention = LayerHint("", 0, "teacher0", 1, "attention")
    return [
        *(Case(f"distillation by {loss}", distilled(hint=Hint(loss)), both) for loss in hints),
        Case("distillation at T = 4", distilled(hint=Hint("kl", temperature=4.0)), both),
        Case("distillation from two", distilled(frozen=2), both),
        Case("distillation from a column", distilled(frozen=0, column=True), both),
        Case("distillation from both", distilled(column=True), both),
        Case("distillation without the label", distilled(label_weight=0.0), {"hint": all_of_it}),
        Case(
            "distillation, auxiliary head",
            distilled(auxiliary=True),
            {"label": all_of_it, "hint": {"", "-auxiliary", "tables"}},
        ),
        Case(
            "attention transfer",
            distilled(layer_hints=[attention]),
            {**both, "layer_hint_0": {"", "tables"}},
        ),
        Case(
            "rocket_launching and distillation",
            lambda: rocket(
                frozen={"teacher": network(16, 8, seed=1)}, lessons=[Lesson("light", ("teacher",), Hint("kl"))]
            )(),
            {"light": whole("light"), "booster": {*whole("booster"), "tables"}, "hint": whole("light")},
        ),
    ]


# --- mutual learning


def peers(count: int, *, own_tables: bool = True, **settings: Any) -> Callable[[], Objective]:
    """Towers of different shapes."""

    def make() -> Objective:
        shared, found = networks.embedding(), {}
        for i in range(count):
            tables = networks.embedding(seed=i) if own_tables else shared
            found[f"peer{i}"] = Network(tables, tower(tables, 8 + i, 4))
        return mutual_learning(found, **settings)

    return make


def mutual() -> list[Case]:
    """Two and four peers, each and mean, together and in turn, own tables and shared ones."""
    found = []
    for count in (2, 4):
        roles = [f"peer{i}" for i in range(count)]
        own = {role: {*whole(role), f"tables {role}"} for role in roles}
        shared = {role: {*whole(role), "tables"} for role in roles}
        for settings in ({}, {"average": "mean"}, {"in_turn": True}, {"in_turn": True, "average": "mean"}):
            name = ", ".join([f"mutual_learning of {count}", *(f"{k} {v}" for k, v in settings.items())])
            moves = {**own, **{f"hint_{role}": parts for role, parts in own.items()}}
            found.append(Case(name, peers(count, **settings), moves, tables=count, memorises=count == 2))
            if count == 2:
                moves = {**shared, **{f"hint_{role}": parts for role, parts in shared.items()}}
                found.append(Case(f"{name}, tables shared", peers(count, own_tables=False, **settings), moves))
    return found


def mix() -> Objective:
    """A light tower under a booster and a peer, which it teaches in turn."""
    tables = networks.embedding()
    roles = {"light": (8,), "booster": (16, 8), "peer": (8, 4)}
    return CoTraining(
        {role: Network(tables, tower(tables, *hidden)) for role, hidden in roles.items()},
        [
            Lesson("light", ("booster", "peer"), Hint("kl"), "mean"),
            Lesson("peer", ("light",), Hint("soft_bce")),
        ],
        gradient_to_shared={"light": 0.0, "peer": 0.5},
        label_weight={"light": 0.5},
    )


# --- one tower of every width


WIDTHS = {"w0.5": 0.5, "w1.0": 1.0}


def slimmable(*, boosted: bool = False, **settings: Any) -> Callable[[], Objective]:
    """Two widths, with or without a booster over them."""

    def make() -> Objective:
        tables = networks.embedding()
        slim = SlimmableMLP(tables.out_features, (16, 8), widths=list(WIDTHS.values()), multiple=4)
        boosters = {"booster": Network(tables, tower(tables, 16, 8))} if boosted else None
        return Slimmable(tables, slim, WIDTHS, boosters=boosters, **settings)

    return make


def slimmables() -> list[Case]:
    """The sandwich rule, listed widths, who moves the tables, a booster that teaches all widths."""
    slim, all_of_it = whole("slimmable"), {*whole("slimmable"), "tables"}
    labels: dict[str, Any] = {"label_weight": 1.0, "distillation": 0.0, "narrow_to_tables": 1.0}
    taught: dict[str, Any] = {"boosted": True, "gradient_to_tables": 0.0, "hint": Hint(weight=0.5)}
    return [
        Case("slimmable, sandwich", slimmable(), {"widest": all_of_it, "narrower": slim}, memorises=True),
        Case(
            "slimmable, list with labels",
            slimmable(sampling="list", **labels),
            {"widest": all_of_it, "narrower": all_of_it},
        ),
        Case(
            "slimmable, non-uniform widths that move the tables",
            slimmable(non_uniform=True, narrow_to_tables=0.5),
            {"widest": all_of_it, "narrower": all_of_it},
        ),
        Case(
            "slimmable under a booster",
            slimmable(**taught),
            {"widest": slim, "narrower": slim, "booster": {*whole("booster"), "tables"}, "hint": slim},
        ),
    ]


CASES = [
    Case(
        "pointwise",
        lambda: Pointwise(networks.network(hidden=(16, 8))),
        {"label": {*whole(""), "tables"}},
        memorises=True,
    ),
    Case(
        "pointwise, labels smoothed",
        lambda: Pointwise(networks.network(hidden=(16, 8)), label_smoothing=0.1),
        {"label": {*whole(""), "tables"}},
    ),
    *rockets(),
    *layer_hints(),
    *distillations(),
    *mutual(),
    *slimmables(),
    Case(
        "co_training, a mix",
        mix,
        {
            "light": whole("light"),
            "booster": {*whole("booster"), "tables"},
            "peer": {*whole("peer"), "tables"},
            "hint_light": whole("light"),
            "hint_peer": {*whole("peer"), "tables"},
        },
    ),
]


def gradient(loss_B: Tensor, at: Tensor) -> Tensor:
    """Of the sum, zeros where there is none; dense."""
    (found,) = torch.autograd.grad(loss_B.sum(), at, retain_graph=True, allow_unused=True)
    return torch.zeros_like(at) if found is None else found.to_dense()
