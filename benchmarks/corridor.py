"""A small game that a world model learns in seconds: a corridor whose far end pays. For tests and to judge int8."""

from __future__ import annotations

import numpy as np
import torch

from priorzero.types import Context, WorldModelBatch
from priorzero.world_model.loss import LossWeights
from priorzero.world_model.model import UniZero, UniZeroConfig
from priorzero.world_model.module import TargetConfig, WorldModelModule, WorldModelOptim
from priorzero.world_model.planner import Planner

LEFT, RIGHT, WAIT = range(3)
VECTOR, UNROLL, TD_STEPS, CONTEXT = 16, 5, 3, 2
PRIZE = 5.0


class Corridor:
    """``length`` steps to the right end the game and pay `PRIZE`; nothing else does. States and actions are vectors."""

    def __init__(self, length: int) -> None:
        rng = np.random.default_rng(0)
        self.length = length
        self.states = rng.standard_normal((length + 1, VECTOR)).astype(np.float32)
        self.actions = rng.standard_normal((3, VECTOR)).astype(np.float32)

    def step(self, place: int, action: int) -> tuple[int, float]:
        """The next place and the reward."""
        if place == self.length:
            return place, 0.0
        after = min(max(place + (action == RIGHT) - (action == LEFT), 0), self.length)
        return after, PRIZE * (after == self.length)

    def batch(self, windows: int, rng: np.random.Generator) -> WorldModelBatch:
        """Windows of random play from random places, with a policy target that prefers nothing."""
        steps = UNROLL + TD_STEPS
        action = rng.integers(0, 3, (windows, steps))
        place = np.zeros((windows, steps + 1), np.int64)
        reward = np.zeros((windows, steps), np.float32)
        place[:, 0] = rng.integers(0, self.length, windows)
        for i in range(windows):
            for t in range(steps):
                place[i, t + 1], reward[i, t] = self.step(int(place[i, t]), int(action[i, t]))
        ended = place == self.length
        terminated = ended.any(1)
        length = np.where(terminated, ended.argmax(1), steps)
        return WorldModelBatch(
            observation=torch.from_numpy(self.states[place]),
            action=torch.from_numpy(action),
            reward=torch.from_numpy(reward),
            length=torch.from_numpy(length),
            terminated=torch.from_numpy(terminated),
            candidates=torch.from_numpy(self.actions),
            legal=torch.ones(windows, UNROLL, 3, dtype=torch.bool),
            known=torch.ones(windows, 3, dtype=torch.bool),
            policy=torch.full((windows, UNROLL, 3), 1 / 3),
            weight=torch.ones(windows),
            index=torch.arange(windows),
        )

    def train(self, width: int, updates: int, windows: int = 64, lr: float = 1e-3) -> UniZero:
        """A world model that has seen ``updates`` batches of random play."""
        torch.manual_seed(0)
        sizes = {"observation_width": VECTOR, "action_width": VECTOR, "width": width, "layers": 2, "heads": 4}
        more = {"dropout": 0.0, "latent_norm": "layernorm", "support_limit": 10, "window_steps": UNROLL}
        module = WorldModelModule(
            UniZero(UniZeroConfig(**sizes, **more, max_positions=128)),
            loss=LossWeights(latent=10.0, reward=1.0, value=0.5, policy=1.0, entropy=0.05),
            target=TargetConfig(gamma=0.9, td_steps=TD_STEPS, momentum=0.05),
            optim=WorldModelOptim(lr=lr, betas=(0.9, 0.95), weight_decay=1e-4, warmup_updates=10),
        )
        module.log = module.log_dict = lambda *_, **__: None  # no Trainer here
        optimizer, rng = module.configure_optimizers()["optimizer"], np.random.default_rng(1)
        for update in range(updates):
            batch = self.batch(windows, rng)
            out = module.training_step(batch, update)
            optimizer.zero_grad()
            out["loss"].backward()
            torch.nn.utils.clip_grad_norm_(module.model.parameters(), 10.0)
            optimizer.step()
            module.on_train_batch_end(out, batch, update)
        return module.model.eval()

    def ask(self, planner: Planner, history: list[int], places: list[int]) -> tuple[Context, np.ndarray, np.ndarray]:
        """One decision: the places of the episode, newest last, and the actions between them."""
        places, history = places[-CONTEXT:], history[-(CONTEXT - 1) :]
        vectors = np.zeros((1, CONTEXT, VECTOR), np.float32)
        vectors[0, CONTEXT - len(places) :] = self.states[places]
        past = np.full((1, CONTEXT - 1), -1, np.int32)
        if history:
            past[0, -len(history) :] = history
        actions = np.arange(3, dtype=np.int32)[None]
        return Context(vectors, past, np.array([len(places)])), actions, np.ones((1, 3), bool)
