"""The only way back: weights from the trained modules to the player, as stamped copies."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import lightning
from torch import Tensor

from priorzero.collect.actor import Actor
from priorzero.policy.language_module import LanguageModule
from priorzero.world_model.module import WorldModelModule

State = dict[str, Tensor]


class Mailbox:
    """Holds the newest weights until the collecting thread takes them. Versions count the posts of each model."""

    def __init__(self) -> None:
        self.versions = {"world_model": 0, "policy": 0}
        self._waiting: dict[str, State] = {}
        self._lock = threading.Lock()

    def post(self, name: str, state: State) -> None:
        """Leave new weights of ``world_model`` or ``policy``; what still waits there is replaced."""
        with self._lock:
            self.versions[name] += 1
            self._waiting[name] = state

    def restore(self, versions: Mapping[str, int], states: Mapping[str, State]) -> None:
        """Leave the weights of a checkpoint, under the versions that they had."""
        with self._lock:
            self.versions = {name: int(version) for name, version in versions.items()}
            self._waiting = dict(states)

    def deliver(self, actor: Actor) -> None:
        """Give what waits to the actor's player. Called between two decisions, by the thread that decides."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            versions = (self.versions["world_model"], self.versions["policy"])
        if "world_model" in waiting and actor.player.planner is not None:
            actor.player.planner.load_weights(waiting["world_model"])
        if "policy" in waiting and actor.player.prior is not None:
            actor.player.prior.load_weights(waiting["policy"], versions[1])
        actor.versions = versions


class WeightSync(lightning.Callback):
    """Posts a copy of the trained weights every ``every_updates`` updates and with the last one of every round.

    A round's evaluation comes after its last update, and so sees these weights.
    """

    def __init__(self, mailbox: Mailbox, name: str, every_updates: int | None) -> None:
        self.mailbox, self.name, self.every_updates = mailbox, name, every_updates
        self._posted_at = 0  # update; before the first one there is nothing to post

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = self.every_updates is not None and step % self.every_updates == 0
        last = batch_idx + 1 == trainer.num_training_batches
        if (due or last) and step != self._posted_at:
            self._posted_at = step
            self.mailbox.post(self.name, snapshot(module))


def snapshot(module: lightning.LightningModule) -> State:
    """A copy of what the player needs of a module: never the wrapped or sharded module itself."""
    if isinstance(module, WorldModelModule):
        return {name: value.detach().cpu().clone() for name, value in module.model.state_dict().items()}
    if isinstance(module, LanguageModule):
        return module.trainable_state()
    raise TypeError(f"no weights to copy from a {type(module).__name__}")
