"""What is broken in other implementations of these methods must not be broken here.

Rocket Launching's own code: flags of type bool take "False" for true, so its ablations never ran
    test_methods.test_problems_are_named (auxiliary_head, privileged, route), and each route differs from the
    others: test_contract.test_gradients_reach_exactly_the_declared_parameters
XDL: light and booster share no table
    test_contract.test_networks_share_what_they_are_said_to_share
XDL: a fixed hint weight                             test_co_training.test_the_weight_is_that_of_the_step
XDL: squared error of two logits that are not centred
    test_losses.test_half_a_lambda_is_that_of_a_two_logit_softmax
XDL: batch norm in training mode when it is tested   test_predictions_do_not_depend_on_the_other_impressions, below
XDL: a test function that nobody has called; the booster is never evaluated; no export
    test_methods_run.test_the_booster_sees_what_is_privileged_and_is_evaluated,
    test_methods_run.test_the_bundle_scores_as_the_light_network_does
EasyRec: feature distillation drives the layers apart, whichever distance is asked for
    test_co_training.test_a_layer_hint_draws_the_light_layer_towards_the_boosters, test_layer_hints_by_hand,
    test_losses.test_hidden_layers_are_pulled_towards_the_teacher, test_a_hint_pulls_towards_the_teacher
EasyRec: the exported graph holds the booster
    test_methods_run.test_a_bundle_has_nothing_of_privileged_features,
    test_methods_run.test_weights_of_a_bundle_are_those_of_the_light_network_alone
TorchEasyRec: no weight, temperature or warm-up      test_hint, test_losses.test_kl_at_a_temperature
TorchEasyRec: the default settings fail where two layers have one width
    test_co_training.test_towers_of_equal_and_unequal_widths_learn_without_layer_hints
TorchEasyRec: metrics of the booster are those of training or none
    test_methods_run.test_the_booster_sees_what_is_privileged_and_is_evaluated (all metrics, GAUC too)
TorchEasyRec: no gradient of the light tower reaches the tables, without a choice
    test_co_training.test_a_number_is_the_share_of_the_light_towers_gradient_that_reaches_what_is_shared
TorchEasyRec: training was broken for four months, its test never took a loss
    test_contract.test_one_step_with_default_settings, test_the_defaults_of_every_method_take_a_step, below
Deep Mutual Learning's own code: K - 1 divergences are summed, peers learn on different batches
    test_co_training.test_terms_of_mutual_learning_by_hand,
    test_methods.test_in_turn_only_the_peer_of_the_turn_moves_and_hears_the_others_after_their_steps
torch-rechub: the "best" checkpoint is the last one  test_methods.test_the_best_peer_ships_with_its_best_weights,
                                                     test_trainer.test_the_best_weights_are_those_of_the_best_evaluation
RecBole: a resumed run begins the data again         test_methods.test_a_resumed_run_ships_the_peer_that_was_best_...,
                                                     test_trainer.test_a_run_killed_anywhere_goes_on_to_the_same_weights
DeepCTR-Torch, torch-rechub: ids go through float32  test_loader.test_large_ids_are_exact
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from ctrkit.builders.objective import build_objective
from ctrkit.builders.optimizers import build_optimizers
from ctrkit.config.train import TrainConfig
from ctrkit.nn.network import Network
from ctrkit.objectives.mutual_learning import mutual_learning
from ctrkit.training.progress import RunningLosses
from ctrkit.training.saved_training import SavedTraining
from ctrkit.training.trainer import Trainer
from tests import networks
from tests.objectives.cases import tower
from tests.test_build_methods import NUM_ROWS, recipe
from tests.training import small_run

MODELS: dict[str, dict[str, Any]] = {
    "pointwise": {"tower": "light"},
    "rocket_launching": {"light": "light", "booster": "booster"},
    "distillation": {"student": "light", "teachers": ["booster"]},
    "mutual_learning": {"peers": ["light", "booster"]},
    "co_training": {
        "networks": {"small": "light", "large": "booster"},
        "lessons": [{"student": "small", "teachers": ["large"]}],
    },
}


@pytest.mark.parametrize("objective", MODELS)
@pytest.mark.parametrize("kind", ["mlp", "crosses", "attention"])
def test_the_defaults_of_every_method_take_a_step(objective: str, kind: str, tmp_path: Path) -> None:
    light = {"mlp": "light"}.get(kind, kind)
    model = {key: light if value == "light" else value for key, value in MODELS[objective].items()}
    found = recipe({"objective": objective, **model})
    frozen = {
        name: build_objective(found, of, NUM_ROWS).networks()[role]
        for name, (of, role) in found.frozen_teachers("model").items()
    }
    built = build_objective(found, "model", NUM_ROWS, frozen=frozen)
    config = TrainConfig(epochs=1)
    optimizers, schedulers, towers = build_optimizers(built, config, 1)
    before = [p.detach().clone() for p in built.parameters() if p.requires_grad]
    saved = SavedTraining(built, optimizers, schedulers, directory=tmp_path, fingerprint="f")
    run = Trainer(saved, config, clipped=towers, quiet=True)
    loader = small_run.loader(small_run.write_log(tmp_path / "log.parquet"))
    batch = networks.batch(features=networks.PRIVILEGED)
    running = RunningLosses()
    run._train_step(batch, loader, running)
    after = [p for p in built.parameters() if p.requires_grad]
    assert all(not torch.equal(a, b) and b.isfinite().all() for a, b in zip(before, after, strict=True))
    assert 0.3 < sum(running.means().values()) < 100


def test_predictions_do_not_depend_on_the_other_impressions() -> None:
    peers = {}
    for i in range(2):
        tables = networks.embedding(seed=i)
        peers[f"peer{i}"] = Network(tables, tower(tables, 8, dropout=0.5, batch_norm=True))
    objective = mutual_learning(peers)
    for seed in range(5):
        objective.losses(networks.batch(seed=seed))
    objective.eval()
    whole, alone = objective.logits(networks.batch(32)), objective.logits(networks.batch(32, take=slice(3, 4)))
    for role, logit_B in whole.items():
        torch.testing.assert_close(logit_B[3:4], alone[role])
        assert torch.equal(objective.logits(networks.batch(32))[role], logit_B)
