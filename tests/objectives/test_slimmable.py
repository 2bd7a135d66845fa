"""Training of one tower at many widths: which widths, who learns from whom, how loudly."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from ctrkit.losses import label_loss, soft_bce
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.nn.slimmable import Norm, SlimmableMLP
from ctrkit.objectives.hint import Hint
from ctrkit.objectives.slimmable import Slimmable
from tests import networks

WIDTHS = {"w0.25": 0.25, "w0.5": 0.5, "w1.0": 1.0}
HIDDEN = (32, 16)
ALL = {"w0.25": (8, 4), "w0.5": (16, 8), "w1.0": (32, 16)}


def slimmable(norm: Norm = "none", boosters: tuple[str, ...] = (), **settings: Any) -> Slimmable:
    tables = networks.embedding()
    tower = SlimmableMLP(tables.out_features, HIDDEN, norm=norm, widths=list(WIDTHS.values()), multiple=2)
    taught = {role: Network(tables, MLP(tables.out_features, (16, 8))) for role in boosters}
    return Slimmable(tables, tower, WIDTHS, boosters=taught, **settings)


def logits(objective: Slimmable) -> dict[str, torch.Tensor]:
    return {role: logit_B.detach().requires_grad_() for role, logit_B in objective.logits(networks.batch()).items()}


def test_the_sandwich_has_the_largest_the_smallest_and_random_widths() -> None:
    objective = slimmable(samples=4)
    drawn = set()
    for step in range(200):
        largest, *between, smallest = objective.step_widths(step)
        assert (largest, smallest) == ((32, 16), (8, 4))
        assert len(between) == 2
        drawn |= set(between)
    assert {first for first, _ in drawn} == set(range(8, 34, 2))  # any multiple of 2 between the two
    assert all(abs(second - first / 2) <= 1 for first, second in drawn)  # one fraction for all layers


def test_layers_may_have_fractions_of_their_own() -> None:
    objective = slimmable(samples=4, non_uniform=True)
    drawn = {width for step in range(200) for width in objective.step_widths(step)[1:-1]}
    assert len(drawn) > 60  # of 13 x 7
    assert max(abs(second - first / 2) for first, second in drawn) > 4


def test_random_widths_are_those_of_seed_and_step() -> None:
    """Whatever else is drawn in a process: dropout differs from rank to rank, widths do not."""
    first = [slimmable(seed=3).step_widths(step) for step in range(5)]
    torch.manual_seed(1)
    objective = slimmable(seed=3)
    objective.losses(networks.batch(), step=7)
    assert [objective.step_widths(step) for step in range(5)] == first
    assert len({tuple(widths) for widths in first}) > 1
    assert [slimmable(seed=4).step_widths(step) for step in range(5)] != first


def test_the_other_samplings() -> None:
    assert slimmable(sampling="list").step_widths(0) == [(32, 16), (16, 8), (8, 4)]
    drawn = [slimmable(sampling="random", samples=3).step_widths(step) for step in range(50)]
    assert all(len(widths) == 3 and widths == sorted(widths, reverse=True) for widths in drawn)
    assert any(widths[0] != (32, 16) for widths in drawn)
    assert slimmable().eval().step_widths(0) == [(32, 16), (16, 8), (8, 4)]


@pytest.mark.parametrize(("distillation", "label_weight"), [(1.0, 0.0), (0.0, 1.0), (0.7, 0.5)])
def test_losses_by_hand(distillation: float, label_weight: float) -> None:
    objective, batch = (
        slimmable(distillation=distillation, label_weight=label_weight, narrow_to_tables=0.5).eval(),
        networks.batch(),
    )
    of, y_B = logits(objective), batch.label_B
    scale = 1 / (1 + 2 * label_weight * 0.5)  # the tables hear half of the narrower widths' labels
    narrower = [
        distillation * soft_bce(of[role], of["w1.0"]) + label_weight * label_loss(of[role], y_B)
        for role in ("w0.5", "w0.25")
    ]
    found = objective.losses(batch)
    torch.testing.assert_close(found["widest"], label_loss(of["w1.0"], y_B) * scale)
    torch.testing.assert_close(found["narrower"], (narrower[0] + narrower[1]) * scale)


def test_labels_that_are_there_weigh_as_all_would_by_the_weights_of_the_impressions() -> None:
    batch = networks.batch()
    label_B, weight_B = batch.label_B.clone(), torch.linspace(0.1, 5.0, len(batch))
    label_B[:20] = torch.nan
    known_B = ~label_B.isnan()
    objective = slimmable().eval()
    loss_B = objective.losses(replace(batch, label_B=label_B, weight_B=weight_B))["widest"]
    expected = label_loss(objective.logits(batch)["w1.0"][known_B], label_B[known_B])
    mean = (weight_B[known_B] * expected).sum() / weight_B[known_B].sum()
    torch.testing.assert_close((weight_B * loss_B).sum() / weight_B.sum(), mean)


def test_the_widest_does_not_hear_the_narrower_ones() -> None:
    # what only the full width has moves by the label alone
    objective, batch = slimmable().eval(), networks.batch()
    torch.autograd.backward(objective.losses(batch)["narrower"].sum())
    for layer in list(objective.tower.layers)[:-1]:
        assert isinstance(layer, torch.nn.Linear)
        assert layer.weight.grad is not None
        assert (layer.weight.grad[HIDDEN[0] // 2 :] == 0).all()
        assert layer.weight.grad.abs().sum() > 0


def test_labels_that_reach_no_table_do_not_quieten_the_others() -> None:
    settings: dict[str, Any] = {"boosters": ("booster",), "label_weight": 1.0, "gradient_to_tables": 0.0}
    found = [slimmable(narrow_to_tables=share, **settings).eval() for share in (0.5, 0.0)]
    narrow, none = (objective.losses(networks.batch()) for objective in found)
    assert all(torch.equal(narrow[name], none[name]) for name in ("widest", "narrower", "hint"))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_the_narrower_widths_gradient_that_reaches_the_tables(share: float) -> None:
    def gradient(narrow_to_tables: float, loss: str) -> torch.Tensor:
        objective = slimmable(narrow_to_tables=narrow_to_tables).eval()
        torch.autograd.backward(objective.losses(networks.batch())[loss].sum())
        return torch.cat([weight.grad.to_dense().flatten() for weight in objective.tables()[0].stacks.values()])

    if share:
        torch.testing.assert_close(gradient(share, "narrower"), share * gradient(1.0, "narrower"), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(gradient(share, "widest"), gradient(1.0, "widest"))
    else:
        objective = slimmable(narrow_to_tables=0.0).eval()
        torch.autograd.backward(objective.losses(networks.batch())["narrower"].sum())
        assert all(weight.grad is None for weight in objective.tables()[0].stacks.values())


def test_boosters_teach_every_width_by_their_mean() -> None:
    hint = Hint("soft_bce", weight=3.0, warmup_steps=10)
    objective = slimmable(boosters=("booster0", "booster1"), hint=hint, distillation=0.0).eval()
    batch = networks.batch()
    of = logits(objective)
    teacher_B = torch.logit((of["booster0"].sigmoid() + of["booster1"].sigmoid()) / 2).detach()
    found = objective.losses(batch, step=4)
    expected = 3.0 * 0.5 * sum(soft_bce(of[role], teacher_B) for role in WIDTHS)
    torch.testing.assert_close(found["hint"], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["booster0"], label_loss(of["booster0"], batch.label_B))
    torch.autograd.backward(found["hint"].sum())
    assert all(p.grad is None for p in objective.towers["booster0"].parameters())


def test_roles_cost_and_what_ships() -> None:
    objective = slimmable()
    assert {role: n.tower.hidden_widths for role, n in objective.networks().items()} == ALL
    costs = [network.multiplications for network in objective.networks().values()]
    assert costs == sorted(costs)
    assert objective.inference_role() == "w1.0"
    assert slimmable(shipped="w0.5").candidates() == ("w0.5",)
    assert set(objective.towers) == {"slimmable"}


def test_calibration_gives_every_width_its_statistics() -> None:
    objective = slimmable("universal_batch_norm")
    assert objective.calibration_rows == 65_536
    assert slimmable().calibration_rows == 0
    batches = [networks.batch(64, seed=seed) for seed in range(3)]
    before = objective.eval().logits(batches[0])
    objective.calibrate_batch_norm(batches)
    after = objective.logits(batches[0])
    assert all(not torch.allclose(before[role], after[role]) for role in WIDTHS)
    x_BX = torch.cat([objective.tables()[0].vectors(batch).x_BX for batch in batches])
    # every width as if all rows were one training batch
    objective.train()
    for role, channels in ALL.items():
        _, logit_B = objective.tower.trace(x_BX, widths=channels)
        torch.testing.assert_close(logit_B[:64], after[role], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "switchable_batch_norm"}, "listed widths only"),
        ({"samples": 1}, "2 samples at least"),
    ],
)
def test_what_does_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slimmable(**settings)


@pytest.mark.parametrize(("multiple", "same"), [(64, "w0.25 and w0.5 and w1.0"), (16, "w0.25 and w0.5")])
def test_widths_that_rounding_makes_one_tower_are_refused(multiple: int, same: str) -> None:
    tables = networks.embedding()
    tower = SlimmableMLP(tables.out_features, HIDDEN, multiple=multiple)
    with pytest.raises(ValueError, match=f"^{same} are one tower, .* multiples of {multiple}; give a lower `multiple`"):
        Slimmable(tables, tower, WIDTHS)
