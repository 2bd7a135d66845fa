"""A tower of every width: its slices, its norms and whom its gradients reach."""

import numpy as np
import pytest
import torch
from torch import nn

from ctrkit.nn.batch_norm_calibration import calibrate_batch_norm, calibrate_widths, calibrated_slice, pooled_statistics
from ctrkit.nn.mlp import MLP
from ctrkit.nn.slimmable import FixedWidth, Norm, SlimmableMLP

HIDDEN = (24, 16, 9)
NORMS: list[Norm] = ["none", "layer_norm", "switchable_batch_norm", "universal_batch_norm", "shared_batch_norm"]


def random_widths(count: int, least: int = 1) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(int(rng.integers(least, size + 1)) for size in HIDDEN) for _ in range(count)]


def tower(norm: Norm = "none", widths: list[tuple[int, ...]] | None = None, **settings: object) -> SlimmableMLP:
    torch.manual_seed(0)
    made = SlimmableMLP(10, HIDDEN, norm=norm, widths=widths or [0.5, 1.0], multiple=1, **settings)  # type: ignore[arg-type]
    with torch.no_grad():  # nothing is zero or one by accident
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def rows(count: int = 200) -> torch.Tensor:
    return torch.randn(count, 10, generator=torch.Generator().manual_seed(1)) * 2 + 0.5


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rescale", [False, True])
def test_a_slice_is_the_slimmable_forward_at_50_random_widths(norm: Norm, rescale: bool) -> None:
    widths = random_widths(50, least=3 if norm == "layer_norm" else 1)  # one channel is its own mean
    made, x = tower(norm, widths, activation="prelu", rescale=rescale), rows()
    for each in widths:  # statistics that are not what they begin as
        made(x * 3, widths=each)
    made.eval()
    calibrate_widths(made, [x[:70], x[70:]])
    logits = set()
    for each in widths:
        sliced = made.slice(each)
        assert sliced.hidden_widths == each
        assert sliced.multiplications == made.multiplications_at(each)
        found, expected = made(x, widths=each), sliced(x)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        logits.add(found[0].item())
    assert len(logits) == len(set(widths))


def test_the_full_width_is_the_plain_tower_of_the_same_weights() -> None:
    made, x = tower(), rows()
    plain = MLP(10, HIDDEN)
    plain.load_state_dict(
        {f"layers.{2 * i}.{n}": p for i, layer in enumerate(made.layers) for n, p in layer.named_parameters()}
    )
    torch.testing.assert_close(made(x), plain(x))
    assert made.multiplications == plain.multiplications


def test_several_widths_at_once_are_each_by_itself() -> None:
    widths = random_widths(5)
    for norm in NORMS:
        made, x = tower(norm, widths), rows()
        for (hidden, logit), each in zip(made.traces(x, widths), widths, strict=True):
            alone_hidden, alone = made.trace(x, widths=each)
            torch.testing.assert_close(logit, alone, atol=1e-6, rtol=1e-5)
            assert [h.shape[1] for h in hidden] == list(each)
            torch.testing.assert_close(hidden[0], alone_hidden[0], atol=1e-6, rtol=1e-5)


def test_no_width_is_remembered() -> None:
    made, x = tower(), rows()
    full = made(x)
    made(x, widths=0.25)
    assert torch.equal(made(x), full)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_reach_the_prefix_and_all_of_it(norm: Norm) -> None:
    widths = (7, 5, 4)
    made = tower(norm, [widths], activation="tanh")
    torch.autograd.backward(made(rows(), widths=widths).square().sum())
    ends = (10, *widths, 1)
    for index, layer in enumerate(made.layers):
        gradient = layer.weight.grad
        assert isinstance(gradient, torch.Tensor)
        assert (gradient[: ends[index + 1], : ends[index]] != 0).all()
        assert (gradient[ends[index + 1] :] == 0).all()
        assert (gradient[:, ends[index] :] == 0).all()


def test_layer_norm_is_over_the_channels_of_the_width() -> None:
    made, x = tower("layer_norm"), rows(50)
    (first, second, _), _ = made.trace(x, widths=(8, 5, 4))
    weight, bias = (p.detach().double().numpy() for p in made.layers[0].parameters())
    scale, shift = (p.detach().double().numpy() for p in made.norms[0].parameters())
    linear = x.double().numpy() @ weight[:8].T + bias[:8]
    centred = linear - linear.mean(axis=1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(first.detach(), np.maximum(normal * scale[:8] + shift[:8], 0), atol=1e-5)
    assert second.shape == (50, 5)


def test_rounding_of_fractions() -> None:
    made = SlimmableMLP(4, (200, 80))
    assert [made.channels(f) for f in (0.25, 0.5, 0.75, 1.0, 0.001)] == [
        (48, 24),
        (104, 40),
        (152, 64),
        (200, 80),
        (8, 8),
    ]
    assert SlimmableMLP(4, (5,)).channels(0.1) == (5,)  # no more than there are
    assert made.channels(None) == (200, 80)
    assert made.channels([3, 70]) == (3, 70)


@pytest.mark.parametrize("widths", [0.0, 1.1, [1], [0, 5], [201, 80]])
def test_widths_that_do_not_fit(widths: object) -> None:
    with pytest.raises(ValueError, match="width"):
        SlimmableMLP(4, (200, 80)).channels(widths)  # type: ignore[arg-type]


def test_pooled_statistics_are_those_of_all_rows() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 6)) * np.array([1, 2, 3, 1e-3, 1e3, 1]) + np.array([0, 5, -5, 1e3, 1e5, 1])
    x[600:] += 3  # means of the parts differ, which an average of their variances would miss
    parts = [torch.from_numpy(part) for part in np.split(x, [1, 300, 600, 600])]
    mean, variance = pooled_statistics(parts)
    np.testing.assert_allclose(mean.numpy(), x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(variance.numpy(), x.var(0), rtol=1e-9)
    with pytest.raises(ValueError, match="without rows"):
        pooled_statistics([])


def by_hand(made: MLP, x: np.ndarray) -> np.ndarray:
    """Every layer in float64, normalised by the mean and variance of all rows."""
    for layer in made.layers:
        if isinstance(layer, nn.Linear):
            x = x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        elif isinstance(layer, nn.BatchNorm1d):
            scale = layer.weight.detach().double().numpy() / np.sqrt(x.var(0) + layer.eps)
            x = (x - x.mean(0)) * scale + layer.bias.detach().double().numpy()
        elif isinstance(layer, nn.ReLU):
            x = np.maximum(x, 0)
    return x[:, 0]


@pytest.mark.parametrize("widths", [(24, 16, 9), (7, 5, 4)])
def test_calibration_is_one_batch_of_all_rows(widths: tuple[int, ...]) -> None:
    made, x = tower("universal_batch_norm", [widths], dropout=0.5), rows(500)
    made(x * 5, widths=widths)  # training leaves nothing behind
    made.eval()
    calibrate_widths(made, [x[:13], x[13:400], x[400:]])
    expected = by_hand(made.slice(widths), x.double().numpy())
    np.testing.assert_allclose(made(x, widths=widths).detach().numpy(), expected, atol=1e-5)
    other = made.slice(widths, statistics=False).eval()
    assert not torch.allclose(other(x), made(x, widths=widths))
    calibrate_batch_norm(other, [x])
    torch.testing.assert_close(other(x), made(x, widths=widths))
    sliced = calibrated_slice(made.train(), widths, [x[:13], x[13:]])
    assert not sliced.training
    assert made.training
    torch.testing.assert_close(sliced(x), other(x))


@pytest.mark.parametrize("norm", ["none", "switchable_batch_norm"])
def test_a_slice_with_nothing_to_calibrate(norm: Norm) -> None:
    made, x = tower(norm, [(7, 5, 4)]), rows()
    made(x * 5, widths=(7, 5, 4))  # statistics that are not what they begin as
    sliced = calibrated_slice(made.eval(), (7, 5, 4), None)
    torch.testing.assert_close(sliced(x), made(x, widths=(7, 5, 4)))


def test_calibration_leaves_the_mode_as_it_was() -> None:
    made = MLP(10, (4,), batch_norm=True)
    calibrate_batch_norm(made, [rows()])
    assert made.training
    assert not made.eval().training
    calibrate_batch_norm(made, [rows()])
    assert not made.training


def test_universal_norm_keeps_nothing_in_training() -> None:
    made = tower("universal_batch_norm")
    before = {name: buffer.clone() for name, buffer in made.named_buffers()}
    made(rows(), widths=(3, 3, 3))  # any width trains
    assert all(torch.equal(before[name], buffer) for name, buffer in made.named_buffers())


def test_shared_statistics_of_the_prefix_move_with_every_width() -> None:
    made = tower("shared_batch_norm")
    made(rows() + 5, widths=(3, 3, 3))
    mean = made.get_buffer("norms.1.mean_all")
    assert (mean[:3] != 0).all()
    assert (mean[3:] == 0).all()


def test_switchable_norms_are_apart() -> None:
    made = tower("switchable_batch_norm", [(6, 6, 6), (24, 16, 9)])
    before = made.eval()(rows())
    made.train()(rows() * 9, widths=(6, 6, 6))
    made.eval()
    assert torch.equal(made(rows()), before)


@pytest.mark.parametrize("norm", ["switchable_batch_norm", "universal_batch_norm"])
def test_a_width_without_statistics_is_refused(norm: Norm) -> None:
    made = tower(norm).eval()
    with pytest.raises(ValueError, match=r"no statistics of the widths \[3, 3, 3\]; they have them of \[12, 8, 5\]"):
        made(rows(), widths=(3, 3, 3))
    with pytest.raises(ValueError, match="no statistics"):
        made.slice((3, 3, 3))


@pytest.mark.parametrize("norm", NORMS)
def test_a_batch_of_one_row_does_not_end_the_run(norm: Norm) -> None:
    made = tower(norm)
    logit = made(rows(1), widths=0.5)
    torch.autograd.backward(logit.sum())
    assert logit.isfinite().all()
    reached = [p.grad for p in made.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in reached)
    # several processes wait for each other's gradients: a scale that says nothing has one too
    assert len(reached) == len(list(made.parameters())) or norm == "switchable_batch_norm"


def test_a_view_is_its_slice_and_has_no_weights() -> None:
    made = tower()
    view = FixedWidth(made, 0.5)
    assert view.hidden_widths == (12, 8, 5)
    assert view.multiplications == view.plain().multiplications == made.multiplications_at(0.5)
    assert {id(p) for p in view.parameters()} == {id(p) for p in made.parameters()}
    torch.testing.assert_close(view(rows()), view.plain()(rows()), atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        before = view.plain()(rows())
        next(made.parameters()).zero_()
        assert not torch.equal(view(rows()), before)


def test_under_autocast_the_logit_is_not_rounded() -> None:
    made, x = tower(), rows()
    with torch.autocast("cpu", torch.bfloat16):
        hidden, logit = made.trace(x, widths=0.5)
    assert hidden[-1].dtype == torch.bfloat16
    assert logit.dtype == torch.float32
    last = made.layers[-1]
    assert isinstance(last, nn.Linear)
    assert torch.equal(logit, torch.nn.functional.linear(hidden[-1].float(), last.weight[:, :5], last.bias).squeeze(1))
