"""Predictions: in the order of the log, by the whole network, with a probability for every logit."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from ctrkit.data.batch import Batch
from ctrkit.data.loader import Loader
from ctrkit.errors import UserError
from ctrkit.training.predict import predict, predict_networks
from tests import networks
from tests.training import small_run


@pytest.fixture
def test_part(tmp_path: Path) -> Loader:
    return Loader(networks.schema(), [small_run.write_log(tmp_path / "log.parquet")], batch_size=10)


@pytest.mark.parametrize("training", [True, False])
def test_predictions_are_those_of_the_whole_network_in_the_order_of_the_log(test_part: Loader, training: bool) -> None:
    objective = small_run.rocket(dropout=0.5).train(training)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    predictions = predict(objective, test_part)
    assert objective.training is training
    assert small_run.equal(before, dict(objective.state_dict()))  # the statistics of batch norm, too
    objective.eval()
    assert predictions.keys() == {"light", "booster"}
    for role, network in objective.networks().items():
        with torch.no_grad():
            expected = torch.cat([torch.sigmoid(network(batch)) for batch in test_part.epoch()])
        assert predictions[role].dtype == np.float64
        np.testing.assert_allclose(predictions[role], expected.numpy(), atol=1e-6)
        assert len(np.unique(expected.numpy())) > 50


def test_networks_that_no_objective_holds(test_part: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = small_run.rocket(dropout=0.5)
    expected, of_objective = predict(objective, test_part), objective.networks()
    given = {"a.b": of_objective["booster"], "modules": of_objective["light"]}  # names that torch would refuse
    given["modules"].tower.eval()
    modes = [part.training for network in given.values() for part in network.modules()]
    (embedding,) = objective.tables()
    look_up = Mock(wraps=embedding.vectors)
    monkeypatch.setattr(embedding, "vectors", look_up)
    found = predict_networks(given, test_part)
    assert look_up.call_count == test_part.num_batches  # once a batch for both
    np.testing.assert_array_equal(found["a.b"], expected["booster"])
    np.testing.assert_array_equal(found["modules"], expected["light"])
    assert [part.training for network in given.values() for part in network.modules()] == modes
    assert len(set(modes)) == 2


def test_a_failure_leaves_the_mode_as_it_was(test_part: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = small_run.rocket()

    def broken(_: Batch) -> dict[str, Tensor]:
        raise ZeroDivisionError

    monkeypatch.setattr(objective, "logits", broken)
    with pytest.raises(ZeroDivisionError):
        predict(objective, test_part)
    assert objective.training


def test_large_logits_keep_their_order(test_part: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    # in single precision all of these would be 1.0, and tie
    objective = small_run.pointwise()
    logits = torch.linspace(17.0, 30.0, small_run.ROWS)
    cuts = list(range(test_part.batch_size, small_run.ROWS, test_part.batch_size))
    given = iter(torch.tensor_split(logits, cuts))
    monkeypatch.setattr(objective, "logits", lambda batch: {"": next(given)})
    found = predict(objective, test_part)[""]
    assert (np.diff(found) > 0).all()
    given = iter(torch.tensor_split(-40 * logits, cuts))
    smallest = predict(objective, test_part)[""]  # no overflow warning either
    assert (np.diff(smallest) <= 0).all()
    assert (smallest >= 0).all()


def test_weights_that_diverged_are_blamed_not_the_rows(test_part: Loader) -> None:
    objective = small_run.pointwise()
    with torch.no_grad():
        for parameter in objective.networks()[""].tower.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(UserError, match=r"the weights have diverged; lower train\.lr or train\.table_lr"):
        predict(objective, test_part)
