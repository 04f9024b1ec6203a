from types import SimpleNamespace

import lightning
import pytest
import torch

from priorzero.callbacks.weights import Mailbox, WeightSync, snapshot
from priorzero.world_model.loss import LossWeights
from priorzero.world_model.model import UniZero, UniZeroConfig
from priorzero.world_model.module import TargetConfig, WorldModelModule, WorldModelOptim
from priorzero.world_model.planner import Planner, PlannerConfig


def network() -> UniZero:
    return UniZero(
        UniZeroConfig(
            observation_width=3, action_width=2, width=8, layers=1, heads=2, dropout=0.0, latent_norm="layernorm",
            support_limit=3, window_steps=2, max_positions=20,
        )
    )  # fmt: skip


@pytest.fixture
def module() -> WorldModelModule:
    return WorldModelModule(
        network(),
        loss=LossWeights(latent=1, reward=1, value=1, policy=1, entropy=0),
        target=TargetConfig(gamma=0.9, td_steps=1, momentum=0.1),
        optim=WorldModelOptim(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, warmup_updates=1),
    )


@pytest.fixture
def actor() -> SimpleNamespace:
    """All that a delivery looks at."""
    planner = Planner(network(), PlannerConfig(context_steps=2, top_k=2, simulations=2))
    return SimpleNamespace(player=SimpleNamespace(planner=planner, prior=None), versions=(0, 0))


def plays(actor, state) -> bool:
    return all(torch.equal(value, state[name]) for name, value in actor.player.planner.model.state_dict().items())


def test_a_snapshot_does_not_change_with_the_module(module):
    taken = snapshot(module)
    before = {name: value.clone() for name, value in taken.items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 1
    assert all(torch.equal(taken[name], before[name]) for name in before)
    with pytest.raises(TypeError, match="no weights to copy from a LightningModule"):
        snapshot(lightning.LightningModule())


def test_the_newest_weights_arrive_with_their_version(module, actor):
    mailbox = Mailbox()
    mailbox.deliver(actor)
    assert actor.versions == (0, 0)
    assert not plays(actor, snapshot(module))
    mailbox.post("world_model", network().state_dict())
    mailbox.post("world_model", snapshot(module))
    mailbox.deliver(actor)
    assert actor.versions == (2, 0)
    assert plays(actor, snapshot(module))
    mailbox.post("policy", {})  # this player has no language model to give it to
    mailbox.deliver(actor)
    assert actor.versions == (2, 1)


def test_restored_weights_keep_their_versions(module, actor):
    mailbox = Mailbox()
    mailbox.restore({"world_model": 7, "policy": 3}, {"world_model": snapshot(module)})
    mailbox.deliver(actor)
    assert actor.versions == (7, 3)
    assert plays(actor, snapshot(module))
    mailbox.post("world_model", snapshot(module))
    mailbox.deliver(actor)
    assert actor.versions == (8, 3)


@pytest.mark.parametrize(
    ("every", "accumulate", "posted"),
    [(2, 1, [2, 4, 5]), (None, 1, [5]), (5, 1, [5]), (1, 1, [1, 2, 3, 4, 5]), (2, 2, [2, 4, 5])],
)
def test_weights_are_posted_in_time(every, accumulate, posted, module):
    """Every so many updates, and with the last of the round, before its evaluation; each update at most once."""
    mailbox, seen = Mailbox(), []
    sync = WeightSync(mailbox, "world_model", every)
    batches = 5 * accumulate
    for batch in range(batches):
        before = mailbox.versions["world_model"]
        step = (batch + 1) // accumulate
        trainer = SimpleNamespace(global_step=step, num_training_batches=batches)
        sync.on_train_batch_end(trainer, module, None, None, batch)
        if mailbox.versions["world_model"] > before:
            seen.append(step)
    assert seen == posted
