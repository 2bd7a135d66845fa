"""Networks that are trained together and teach each other: what Rocket Launching, distillation and mutual learning are.

A method is a choice of networks (with shared or own tables), of lessons (who hears whose prediction, by which loss) and
of what a student's gradient may reach: see the functions in `rocket_launching`, `distillation` and `mutual_learning`.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, distributed, nn
from torch.func import functional_call

from ctrkit.data.batch import Batch
from ctrkit.data.crossing import Crossing
from ctrkit.losses import labelled, mean_probability
from ctrkit.names import LABEL, MEAN, part_name
from ctrkit.nn.embedding import Embedding
from ctrkit.nn.mlp import single_logit
from ctrkit.nn.network import Network, Read, read_embeddings
from ctrkit.nn.tower import Lists, Tower, Vectors
from ctrkit.objectives.frozen import Frozen, Traced, frozen_statistics
from ctrkit.objectives.hint import LAYER_LOSSES, MEASURED_STEPS, LayerHint, Lesson
from ctrkit.objectives.objective import Objective, batch_label_loss, scaled

_HEAD = "auxiliary"


class CoTraining(Objective):
    """The label losses of some networks, and lessons between them.

    Losses by name: a network's role is its label loss, `LABEL` that of an only network; `hint` those of the lessons on
    what was shown, `unexposed_hint` on candidates, one name a student if several are taught (`hint_STUDENT`);
    `layer_hint_0`, `layer_hint_1`, ... those on hidden layers.

    Args:
        networks: that are trained, by role; networks that share an embedding hold the same one.
        lessons: hints on logits.
        layer_hints: hints on hidden layers.
        frozen: trained networks that only teach, by name; neither trained nor saved.
        label_weight: of a role's label loss, where it is not 1; with 0 it hears its lessons alone.
        label_smoothing: share of the label that becomes one half.
        gradient_to_shared: share of a network's gradient that reaches what it shares with others, tables or layers,
            where it is not 1.
        crossing: makes unexposed candidates of a batch; on them the hints act as well, on top of the batch's own.
        unexposed: weight of a hint there, relative to its weight on what was shown; 0 leaves them out.
        in_turn: a batch is a step for each network in turn, with predictions made anew, as in Deep Mutual Learning's
            algorithm 1; else one step for all.
        shipped: roles that may ship; the first network if not given. `MEAN` is the mean of all.

    Raises:
        ValueError: a name stands for two things, a network teaches itself, learns from nothing, or has not the layer
            that a hint or an auxiliary head needs; or nobody trains what networks share.
    """

    def __init__(
        self,
        networks: Mapping[str, Network],
        lessons: Sequence[Lesson] = (),
        *,
        layer_hints: Sequence[LayerHint] = (),
        frozen: Mapping[str, Network] | None = None,
        label_weight: Mapping[str, float] | None = None,
        label_smoothing: float = 0.0,
        gradient_to_shared: Mapping[str, float] | None = None,
        crossing: Crossing | None = None,
        unexposed: float = 0.0,
        in_turn: bool = False,
        shipped: Sequence[str] = (),
    ) -> None:
        super().__init__(networks, shipped)
        self.lessons, self.layer_hints = tuple(lessons), tuple(layer_hints)
        self.frozen = Frozen(frozen or {})
        self.label_weight, self.label_smoothing = dict(label_weight or {}), label_smoothing
        self.gradient_to_shared = dict(gradient_to_shared or {})
        self.crossing, self.unexposed = crossing, unexposed if crossing is not None else 0.0
        self.mean_of = tuple(networks) if MEAN in shipped else ()
        self.turns = len(networks) if in_turn else 1
        self._held: str | None = None
        self._exchange: Callable[[Tensor], list[Tensor]] = lambda logit_B: [logit_B]
        if any(lesson.hint.gradient_share is not None for lesson in self.lessons):
            self.register_buffer("gradient_squares", torch.zeros(len(self.lessons), 2))  # of label loss and hint
        self._shared_layers = _shared_parameters(networks)
        self._check_names(networks, frozen or {})
        self._check_learns(networks)
        for lesson in self.lessons:
            if lesson.auxiliary:
                widths = networks[lesson.student].tower.hidden_widths
                if not widths:
                    raise ValueError(f"'{lesson.student}' has no hidden layer for an auxiliary head")
                self.towers[part_name(lesson.student, _HEAD)] = nn.Linear(widths[-1], 1)
        for index, hint in enumerate(self.layer_hints):
            widths = self._widths(hint)
            if widths[0] == widths[1]:
                continue
            if hint.loss == "attention":
                raise ValueError(f"attention transfer takes layers of one width, not {widths[0]} and {widths[1]}")
            self.towers[part_name(hint.student, f"projection-{index}")] = nn.Linear(*widths)

    def _check_names(self, networks: Mapping[str, Network], frozen: Mapping[str, Network]) -> None:
        """Each name is one network's or one loss's, and nobody teaches itself."""
        for name in networks.keys() & frozen.keys():
            raise ValueError(f"'{name}' is the name of a network and of a frozen teacher; rename one of them")
        for name in networks.keys() & self._hint_names():  # its label loss would be lost
            raise ValueError(f"a network cannot be called '{name}', which is what a loss between networks is called")
        pairs = [(lesson.student, name) for lesson in self.lessons for name in lesson.teachers]
        pairs += [(hint.student, hint.teacher) for hint in self.layer_hints]
        for lesson in self.lessons:
            if len(set(lesson.teachers)) < len(lesson.teachers):
                raise ValueError(f"a teacher stands there twice: {list(lesson.teachers)}; name each once")
            if lesson.hint.loss == "soft_bce" and not lesson.blocked:
                raise ValueError(
                    "soft_bce is no distance for a teacher that hears it too: it would draw both to zero; take kl, "
                    "whose gradient for the student is the same"
                )
        for student, teacher in pairs:
            if student == teacher:
                raise ValueError(f"'{student}' would teach itself; name another teacher")

    def _check_learns(self, networks: Mapping[str, Network]) -> None:
        """Something of the log reaches every network's own logit, and what networks share."""
        informed = {role for role in networks if self.label_weight.get(role, 1.0)}
        heard = [lesson for lesson in self.lessons if lesson.hint.weight and not lesson.auxiliary]
        for _ in networks:  # as far as knowledge goes from one to the next
            told = {each.student for each in heard if any(t in informed or t not in networks for t in each.teachers)}
            informed |= told
        for role in networks:
            if role not in informed:
                raise ValueError(
                    f"{repr(role) if role else 'the student'} learns from nothing: its label weight is 0, and no "
                    "lesson with a weight, from somebody who has learnt, reaches the logit that serves; an auxiliary "
                    "head's does not serve"
                )
        for embedding in self.tables():
            holders = [role for role, network in networks.items() if embedding in network.embeddings]
            if len(holders) > 1 and all(self.gradient_to_shared.get(role, 1.0) == 0 for role in holders):
                raise ValueError(
                    f"gradient_to_shared is 0 for {', '.join(holders)}: nobody would train the tables that they share"
                )

    def _widths(self, hint: LayerHint) -> tuple[int, int]:
        found = []
        known = {**self.networks(), **self.frozen.networks()}
        for name, layer in ((hint.student, hint.layer), (hint.teacher, hint.teacher_layer)):
            if name not in known:
                raise ValueError(f"layer hint: '{name}' is no network: {', '.join(sorted(known))}")
            network = known[name]
            widths = network.tower.hidden_widths
            if layer >= len(widths):
                raise ValueError(f"layer hint: '{name}' has {len(widths)} hidden layers, the last is {len(widths) - 1}")
            found.append(widths[layer])
        return found[0], found[1]

    def hold(self, role: str, exchange: Callable[[Tensor], list[Tensor]]) -> None:
        """Train one network here, the others in processes of their own (`ctrkit.training.peer_ranks`).

        Args:
            role: of the one.
            exchange: called with its logit[B]; gives the logits of all networks, in their order.
        """
        self._held, self._exchange = role, exchange

    # --- forward

    def _trace(self, role: str, read: Read) -> Traced:
        """One network, with the share of its gradient that may reach what others share."""
        network, share = self.networks()[role], self.gradient_to_shared.get(role, 1.0)

        def vectors(embedding: Embedding) -> Vectors:
            given = read(embedding)
            if share == 1.0 or not self._is_shared(embedding):
                return given
            return Vectors(
                scaled(given.x_BX, share),
                {name: Lists(scaled(rows.row_NE, share), rows.length_B) for name, rows in given.lists.items()},
            )

        given = network.vectors(vectors)
        shared = self._shared_layers[role] if share != 1.0 else ()
        if not shared:
            return Traced(*network.tower.trace(given.x_BX, given.lists))
        held = {f"tower.{name}": scaled(network.tower.get_parameter(name), share) for name in shared}
        return Traced(*functional_call(_Traceable(network.tower), held, (given,)))

    def _is_shared(self, embedding: Embedding) -> bool:
        return sum(embedding in network.embeddings for network in self.networks().values()) > 1

    def _traces(self, batch: Batch, roles: Sequence[str]) -> dict[str, Traced]:
        read = read_embeddings([self.networks()[role] for role in roles], batch)
        return {role: self._trace(role, read) for role in roles}

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        """All logits, from one look-up an embedding."""
        return {role: traced.logit_B for role, traced in self._traces(batch, list(self.networks())).items()}

    # --- losses

    def losses(self, batch: Batch, step: int = 0, turn: int = 0) -> dict[str, Tensor]:
        """Label losses and weighted hints; with `in_turn` those of one network."""
        roles = list(self.networks())
        taught = roles if self.turns == 1 else [roles[turn]]
        if self._held is not None and self.training:
            taught = [self._held]
        traces = self._all_traces(batch, taught)
        found: dict[str, Tensor] = {}
        for role in taught:
            if self.label_weight.get(role, 1.0):
                found[role or LABEL] = self._label_loss(role, traces[role].logit_B, batch)
        found |= self._hints(taught, traces, batch, step, "hint")
        if self.unexposed and self.training:
            candidates = self._candidates(batch, step)
            with frozen_statistics(self):  # of what was shown, which is what the network is judged on
                traces_there = self._all_traces(candidates, taught)
            hints = self._hints(taught, traces_there, candidates, step, "unexposed_hint")
            found |= {name: self.unexposed * hint_B for name, hint_B in hints.items()}
        for index, layer_hint in enumerate(self.layer_hints):
            if layer_hint.student in taught:
                name = f"layer_hint_{index}"
                found[name] = self._layer_hint(index, layer_hint, traces)
        if self._held is not None:  # every process has every name, for their sums over all
            return {name: found.get(name, torch.zeros_like(batch.weight_B)) for name in self._names()}
        return found

    def _names(self) -> list[str]:
        """Names of all losses."""
        labels = [role or LABEL for role in self.networks() if self.label_weight.get(role, 1.0)]
        return [*labels, *self._hint_names()]

    def _hint_names(self) -> list[str]:
        """Of those between networks."""
        kinds = ["hint", *(["unexposed_hint"] if self.unexposed and self.training else [])]
        hints = [self._hint_name(kind, lesson.student) for kind in kinds for lesson in self.lessons]
        return list(dict.fromkeys([*hints, *(f"layer_hint_{i}" for i in range(len(self.layer_hints)))]))

    def _hint_name(self, kind: str, student: str) -> str:
        return kind if len({lesson.student for lesson in self.lessons}) == 1 else f"{kind}_{student}"

    def _all_traces(self, batch: Batch, taught: Sequence[str]) -> dict[str, Traced]:
        """Of the networks that are taught, with gradients, and of all others."""
        traces = self._traces(batch, taught)
        if self._held is not None and self.training:
            logits = self._exchange(traces[self._held].logit_B)
            others = {role: Traced([], logits[i]) for i, role in enumerate(self.networks()) if role != self._held}
            with torch.no_grad():
                return traces | others | self.frozen.traces(batch)
        with torch.no_grad(), frozen_statistics(self):
            traces |= self._traces(batch, [role for role in self.networks() if role not in taught])
            return traces | self.frozen.traces(batch)

    def _candidates(self, batch: Batch, step: int) -> Batch:
        assert self.crossing is not None
        drawn = torch.randperm(len(batch), generator=torch.Generator().manual_seed(step))
        # the same order in every process: where each trains a peer, all of them judge the same candidates
        return self.crossing(batch, drawn.to(batch.label_B.device))

    def _hints(
        self, taught: Sequence[str], traces: Mapping[str, Traced], batch: Batch, step: int, name: str
    ) -> dict[str, Tensor]:
        """The weighted hints of the lessons, by `name`, and by student if there are several."""
        found: dict[str, Tensor] = {}
        for index, lesson in enumerate(self.lessons):
            if lesson.student in taught:
                key = self._hint_name(name, lesson.student)
                hint_B = self._hint(index, lesson, traces, batch, step, shown=name == "hint")
                found[key] = found[key] + hint_B if key in found else hint_B
        return found

    def _hint(
        self, index: int, lesson: Lesson, traces: Mapping[str, Traced], batch: Batch, step: int, *, shown: bool
    ) -> Tensor:
        """Weighted; by the teachers that know an impression: a column of the log may have no score for it.

        Zero where none does.
        """
        student_B = traces[lesson.student].logit_B
        if lesson.auxiliary:
            student_B = single_logit(self.towers[part_name(lesson.student, _HEAD)], traces[lesson.student].hidden[-1])
        teachers = [traces[name].logit_B if name in traces else batch.teachers[name] for name in lesson.teachers]
        if lesson.blocked:
            teachers = [teacher_B.detach() for teacher_B in teachers]
        known_KB = ~torch.stack(teachers).isnan()
        known_B = known_KB.any(0)
        teachers = [teacher_B.nan_to_num() for teacher_B in teachers]
        known_KB = known_KB | ~known_B  # where none knows, any finite hint: it is multiplied by zero
        if lesson.hint.labelled_only:
            known_B = known_B * labelled(batch.label_B, batch.weight_B, batch.labelled_share)
        weight = lesson.hint.weight_at(step)
        if lesson.hint.gradient_share is not None:
            squares = self.get_buffer("gradient_squares")[index]
            if self.training and (step < MEASURED_STEPS or not squares.all()):  # no label yet, or no teacher's score
                if not shown:  # not applied yet, and measured on what was shown
                    return torch.zeros_like(student_B)
                squares += self._squares(lesson, student_B, teachers, known_KB, known_B, batch)
            weight *= lesson.hint.scale(squares, step)
        return weight * _mean_hint(lesson, student_B, teachers, known_KB) * known_B

    def _squares(
        self, lesson: Lesson, student_B: Tensor, teachers: Sequence[Tensor], known_KB: Tensor, known_B: Tensor,
        batch: Batch,
    ) -> Tensor:  # fmt: skip
        """Squared norms of the label loss's and the hint's gradients on the student's logits, over all processes."""
        logit_B = student_B.detach().requires_grad_()
        with torch.enable_grad():
            label_B = self._label_loss(lesson.student, logit_B, batch)
            hint_B = _mean_hint(lesson, logit_B, [each_B.detach() for each_B in teachers], known_KB) * known_B
            losses = [(batch.weight_B * loss_B).sum() for loss_B in (label_B, hint_B)]
            gradients = [torch.autograd.grad(loss, logit_B)[0] for loss in losses]
        added = torch.stack([gradient_B.float().square().sum() for gradient_B in gradients])
        if self._held is None and distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(added)
        return added

    def _label_loss(self, role: str, logit_B: Tensor, batch: Batch) -> Tensor:
        """Weighted; a label weight of 0 counts as 1 where a hint is measured by it."""
        loss_B = batch_label_loss(logit_B, batch, self.label_smoothing)
        return loss_B * (self.label_weight.get(role, 1.0) or 1.0)

    def _layer_hint(self, index: int, hint: LayerHint, traces: Mapping[str, Traced]) -> Tensor:
        student_BH = traces[hint.student].hidden[hint.layer]
        teacher_BH = traces[hint.teacher].hidden[hint.teacher_layer].detach()
        projection = part_name(hint.student, f"projection-{index}")
        if projection in self.towers:
            student_BH = self.towers[projection](student_BH)
        return hint.weight * LAYER_LOSSES[hint.loss](student_BH, teacher_BH)


class _Traceable(nn.Module):
    """A tower's `trace` as a `forward`, which is what `functional_call` calls."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, given: Vectors) -> tuple[list[Tensor], Tensor]:
        return self.tower.trace(given.x_BX, given.lists)


def _mean_hint(lesson: Lesson, student_B: Tensor, teachers: Sequence[Tensor], known_KB: Tensor) -> Tensor:
    """Over the teachers that know an impression: the mean of the hints to each, or the hint to their mean."""
    if lesson.average == "mean":
        return lesson.hint(student_B, mean_probability(teachers, known_KB))
    hints_KB = torch.stack([lesson.hint(student_B, teacher_B) for teacher_B in teachers])
    return (hints_KB * known_KB).sum(0) / known_KB.sum(0)


def _shared_parameters(networks: Mapping[str, Network]) -> dict[str, list[str]]:
    """Of each tower the names of its parameters that other towers have too."""
    holders: dict[int, int] = {}
    for network in networks.values():
        for parameter in network.tower.parameters():
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    return {
        role: [name for name, parameter in network.tower.named_parameters() if holders[id(parameter)] > 1]
        for role, network in networks.items()
    }
