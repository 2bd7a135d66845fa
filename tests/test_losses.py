"""Each loss against its closed form, its gradient against the formula in the papers and against finite differences."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ctrkit.losses import (
    attention_transfer,
    binary_cross_entropy,
    feature_cosine,
    feature_mse,
    kl_divergence,
    label_loss,
    logit_mse,
    mean_probability,
    probability_mse,
    soft_bce,
)  # fmt: skip
from ctrkit.objectives.hint import Hint, HintLoss

LIGHT = torch.tensor([0.5, -1.0, 3.0, -4.0, 0.0], dtype=torch.float64)
BOOSTER = torch.tensor([2.0, -3.0, 2.5, 4.0, 0.0], dtype=torch.float64)
HINTS: tuple[HintLoss, ...] = ("logit_mse", "probability_mse", "kl", "soft_bce")
nan = float("nan")


def gradient(loss_B: Tensor, at: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss_B.sum(), at, retain_graph=True)
    return found


def leaf(values: Tensor) -> Tensor:
    return values.clone().requires_grad_()


# --- hints: value, gradient for the light logit and, where it is not blocked, for the booster's


def closed_form(loss: HintLoss, light: Tensor, booster: Tensor, t: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient for the light logit, gradient for the booster's."""
    p, q = (light / t).sigmoid(), (booster / t).sigmoid()
    match loss:
        case "logit_mse":
            return (light - booster) ** 2, 2 * (light - booster), 2 * (booster - light)
        case "probability_mse":
            return (p - q) ** 2, 2 * (p - q) * p * (1 - p), 2 * (q - p) * q * (1 - q)
        case "soft_bce":
            return -(q * p.log() + (1 - q) * (1 - p).log()), p - q, q * (1 - q) * ((1 - p).log() - p.log())
        case "kl":
            value = t * t * (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log())
            return value, t * (p - q), q * (1 - q) * (booster - light)


@pytest.mark.parametrize("loss", HINTS)
def test_a_hint_in_closed_form(loss: HintLoss) -> None:
    light, booster = leaf(LIGHT), leaf(BOOSTER)
    found = Hint(loss)(light, booster)
    value, by_light, by_booster = closed_form(loss, LIGHT, BOOSTER)
    torch.testing.assert_close(found, value)
    torch.testing.assert_close(gradient(found, light), by_light)
    torch.testing.assert_close(gradient(found, booster), by_booster)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_at_a_temperature(temperature: float) -> None:
    light, booster = leaf(LIGHT), leaf(BOOSTER)
    found = Hint("kl", temperature=temperature)(light, booster)
    value, by_light, by_booster = closed_form("kl", LIGHT, BOOSTER, temperature)
    torch.testing.assert_close(found, value)
    torch.testing.assert_close(gradient(found, light), by_light)
    torch.testing.assert_close(gradient(found, booster), by_booster)


@pytest.mark.parametrize("loss", HINTS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradients_of_hints_are_those_of_finite_differences(loss: HintLoss, temperature: float) -> None:
    hint = Hint(loss, temperature=temperature)
    distinct = slice(0, 4)  # kl is cut at its minimum
    assert torch.autograd.gradcheck(lambda a, b: hint(a, b), (leaf(LIGHT[distinct]), leaf(BOOSTER[distinct])))


@pytest.mark.parametrize("loss", HINTS)
def test_a_hint_pulls_towards_the_teacher(loss: HintLoss) -> None:
    # EasyRec's feature distillation has the sign of one that pushes away (its loss is -0.1 times the distance)
    light = leaf(LIGHT)
    step = -gradient(Hint(loss)(light, BOOSTER), light)
    apart = LIGHT != BOOSTER
    assert (step.sign() == (BOOSTER - LIGHT).sign())[apart].all()
    assert (step[~apart] == 0).all()


@pytest.mark.parametrize(("loss", "expected"), [("logit_mse", 2.0), ("kl", 1e-2), ("soft_bce", 1e-2)])
def test_gradients_at_a_click_rate_of_one_percent(loss: HintLoss, expected: float) -> None:
    # for a difference d in the logit: 2 d, and p (1 - p) d: a weight that suits one does not suit another
    d, booster = 1e-3, torch.tensor([-4.59512], dtype=torch.float64)
    light = leaf(booster + d)
    assert gradient(Hint(loss)(light, booster), light).item() / d == pytest.approx(expected, rel=0.02)


def test_the_gradient_of_probability_mse_vanishes_with_the_click_rate() -> None:
    d, booster = 1e-3, torch.tensor([-4.59512], dtype=torch.float64)
    light = leaf(booster + d)
    assert gradient(probability_mse(light, booster), light).item() / d == pytest.approx(2e-4, rel=0.05)


def test_half_a_lambda_is_that_of_a_two_logit_softmax() -> None:
    def softmax(u: Tensor) -> Tensor:
        return torch.stack([-u / 2, u / 2], 1)

    two = (softmax(LIGHT) - softmax(BOOSTER)).square().sum(1)
    torch.testing.assert_close(two, 0.5 * logit_mse(LIGHT, BOOSTER))
    # and the KL of two classes is that of the two-logit softmax
    by_torch = torch.nn.functional.kl_div(
        softmax(LIGHT).log_softmax(1), softmax(BOOSTER).softmax(1), reduction="none"
    ).sum(1)
    torch.testing.assert_close(kl_divergence(LIGHT, BOOSTER), by_torch)


def test_soft_bce_is_kl_and_the_teachers_entropy() -> None:
    q = BOOSTER.sigmoid()
    entropy = -(q * q.log() + (1 - q) * (1 - q).log())
    torch.testing.assert_close(soft_bce(LIGHT, BOOSTER), kl_divergence(LIGHT, BOOSTER) + entropy)


@pytest.mark.parametrize(("temperature", "d"), [(1.0, 1e-4), (4.0, 1e-3), (20.0, 1e-2)])
def test_a_student_near_its_teacher_hears_it_in_every_row(temperature: float, d: float) -> None:
    # KL is of the order of d^2 and rounds to something below zero as often as above; its gradient is of the order of d
    student = torch.linspace(-6, 4, 1000, requires_grad=True)
    teacher = student.detach() + d
    loss = kl_divergence(student, teacher, temperature)
    p, q = ((logit.double() / temperature).sigmoid() for logit in (student.detach(), teacher))
    assert (loss >= 0).all()
    torch.testing.assert_close(gradient(loss, student).double(), temperature * (p - q), rtol=0.02, atol=1e-6)


@settings(deadline=None)
@given(st.floats(-80, 80, width=32), st.floats(-80, 80, width=32), st.floats(0.25, 16))
def test_kl_is_finite_and_no_smaller_than_zero(student: float, teacher: float, temperature: float) -> None:
    light = torch.tensor([student], requires_grad=True)
    loss = kl_divergence(light, torch.tensor([teacher]), temperature)
    assert loss.isfinite().all()
    assert loss >= 0
    assert gradient(loss, light).isfinite().all()


# --- labels


def test_binary_cross_entropy_of_finite_differences() -> None:
    label = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda logit: binary_cross_entropy(logit, label), (leaf(LIGHT),))


def test_smoothed_labels_by_hand() -> None:
    label = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    light = leaf(LIGHT)
    found = label_loss(light, label, smoothing=0.2)
    target = torch.tensor([0.9, 0.1, 0.9, 0.1, 0.9], dtype=torch.float64)
    p = LIGHT.sigmoid()
    torch.testing.assert_close(found, -(target * p.log() + (1 - target) * (1 - p).log()))
    torch.testing.assert_close(gradient(found, light), p - target)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_without_a_label_there_is_no_label_loss(smoothing: float) -> None:
    label = torch.tensor([1.0, nan, 0.0, nan, nan], dtype=torch.float64)
    light, known = leaf(LIGHT), torch.tensor([0, 2])
    found = label_loss(light, label, smoothing)
    of_known = label_loss(LIGHT[known], label[known], smoothing)
    assert (found[[1, 3, 4]] == 0).all()
    torch.testing.assert_close(found.mean(), of_known.mean())
    slope = gradient(found, light)
    assert (slope[[1, 3, 4]] == 0).all()
    torch.testing.assert_close(
        slope[known] / 2.5, gradient(label_loss(part := leaf(LIGHT[known]), label[known], smoothing), part)
    )


def test_the_mean_over_the_labelled_is_weighted() -> None:
    # an impression without a label counts by its weight: with train.negative_rate weights are far apart
    label = torch.tensor([1.0, nan, 0.0, nan, nan], dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 10.0, 1.0, 1.0], dtype=torch.float64)
    found = (label_loss(LIGHT, label, weight_B=weight) * weight).sum() / weight.sum()
    known = torch.tensor([0, 2])
    of_known = (binary_cross_entropy(LIGHT, label.nan_to_num()) * weight)[known].sum() / weight[known].sum()
    torch.testing.assert_close(found, of_known)


@pytest.mark.parametrize("rows", [0, 3])
def test_a_batch_without_any_label(rows: int) -> None:
    light = torch.zeros(rows, requires_grad=True)
    found = label_loss(light, torch.full((rows,), nan), weight_B=torch.ones(rows))
    assert found.tolist() == [0.0] * rows
    assert gradient(found, light).tolist() == [0.0] * rows


# --- several teachers


def test_the_mean_of_probabilities_by_hand() -> None:
    # .5 and .8: .65, whose logit is ln(.65 / .35)
    logits = [torch.zeros(1, dtype=torch.float64), torch.full((1,), 1.3862943611198906, dtype=torch.float64)]
    assert mean_probability(logits).item() == pytest.approx(0.6190392084062235)
    assert mean_probability(logits[:1]).item() == 0.0


def test_the_mean_of_probabilities_is_no_mean_of_logits() -> None:
    found = mean_probability([LIGHT, BOOSTER, -BOOSTER])
    expected = (LIGHT.sigmoid() + BOOSTER.sigmoid() + (-BOOSTER).sigmoid()) / 3
    torch.testing.assert_close(found.sigmoid(), expected)
    assert (found - (LIGHT / 3)).abs().max() > 0.1
    assert torch.autograd.gradcheck(lambda a, b: mean_probability([a, b]), (leaf(LIGHT), leaf(BOOSTER)))


def test_the_mean_of_the_probabilities_that_are_known() -> None:
    known_KB = torch.tensor([[True, False, True], [True, True, False]])
    light, booster = LIGHT[:3], BOOSTER[:3]
    expected = torch.stack([(light[0].sigmoid() + booster[0].sigmoid()) / 2, booster[1].sigmoid(), light[2].sigmoid()])
    torch.testing.assert_close(mean_probability([light, booster], known_KB).sigmoid(), expected)


def test_the_mean_of_extreme_probabilities_is_finite() -> None:
    extreme = mean_probability([torch.tensor([200.0, -200.0, 200.0]), torch.tensor([200.0, -200.0, -200.0])])
    torch.testing.assert_close(extreme, torch.tensor([200.0, -200.0, 0.0]))


# --- hidden layers

STUDENT = torch.tensor([[1.0, 2.0, 0.5], [0.3, -1.0, 2.0]], dtype=torch.float64)
TEACHER = torch.tensor([[2.0, -1.0, 0.5], [0.4, 1.0, -1.0]], dtype=torch.float64)


def test_hidden_layers_by_hand() -> None:
    assert feature_mse(STUDENT, TEACHER)[0].item() == pytest.approx((1 + 9 + 0) / 3)
    cosine = (2 - 2 + 0.25) / (5.25**0.5 * 5.25**0.5)
    assert feature_cosine(STUDENT, TEACHER)[0].item() == pytest.approx(1 - cosine)
    a, b = torch.tensor([1.0, 4.0, 0.25]), torch.tensor([4.0, 1.0, 0.25])
    expected = (a / a.norm() - b / b.norm()).square().sum()
    assert attention_transfer(STUDENT, TEACHER)[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_attention_looks_at_where_not_at_how_much() -> None:
    assert attention_transfer(3 * STUDENT, -STUDENT).abs().max() < 1e-6
    assert feature_cosine(3 * STUDENT, STUDENT).abs().max() < 1e-6
    assert feature_mse(3 * STUDENT, STUDENT).min() > 0.1


@pytest.mark.parametrize("loss", [feature_mse, feature_cosine, attention_transfer])
def test_hidden_layers_are_pulled_towards_the_teacher(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    # the sign that EasyRec has the wrong way round
    student = leaf(STUDENT.float())
    before = loss(student, TEACHER.float())
    after = loss(student - 0.05 * gradient(before, student), TEACHER.float())
    assert (after < before).all()


@pytest.mark.parametrize("loss", [feature_mse, feature_cosine, attention_transfer])
def test_a_layer_of_zeros_is_no_trouble(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    student = torch.zeros(2, 3, requires_grad=True)
    for teacher in (torch.zeros(2, 3), TEACHER.float()):
        found = loss(student, teacher)
        assert found.isfinite().all()
        assert gradient(found, student).isfinite().all()
