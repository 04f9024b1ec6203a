"""The network: observation and action vectors in, rewards, values, policies and next latent states out.

Tokens alternate in time: z_0 a_0 z_1 a_1 ... z_S. The output at z_t gives the policy and the value of state t; the
output at a_t gives the reward of step t and a prediction of z_{t+1}. UniZero, arXiv 2406.10667.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from priorzero.world_model.scalar import Support
from priorzero.world_model.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class UniZeroConfig:
    """Sizes of the network."""

    observation_width: int  # O: observation parts x sentence vector
    action_width: int  # E: sentence vector
    width: int  # D
    layers: int
    heads: int
    dropout: float
    latent_norm: str  # simnorm | layernorm
    support_limit: int  # bins reach from -limit to limit in the transformed space
    window_steps: int  # how many steps back a token sees, in each layer
    max_positions: int  # tokens of the longest sequence: context and deepest path, or window and bootstrap steps


@dataclass(frozen=True)
class Outputs:
    """What the network says of ``S`` steps: value and policy of their states (Z = S, or S + 1 with the last one)."""

    latent: Tensor  # [B, Z, D] encoded observations
    next_latent: Tensor  # [B, S, D] predictions of latent 1..S
    reward_logits: Tensor  # [B, S, bins]
    value_logits: Tensor  # [B, Z, bins]
    policy_query: Tensor  # [B, Z, D] to be compared with `UniZero.action_keys`


class SimNorm(nn.Module):
    """Softmax over groups of 8 (Hansen et al., TD-MPC2, arXiv 2310.16828)."""

    def forward(self, x: Tensor) -> Tensor:
        """Latents [..., D] to latents whose groups each sum to 1."""
        return x.unflatten(-1, (-1, 8)).softmax(-1).flatten(-2)


def _head(width: int, out: int) -> nn.Sequential:
    head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))
    nn.init.zeros_(head[-1].weight)  # a fresh model says the same of everything, and learns fast from there
    nn.init.zeros_(head[-1].bias)
    return head


class UniZero(nn.Module):
    """World model over sentence vectors."""

    def __init__(self, config: UniZeroConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        norms = {"simnorm": SimNorm, "layernorm": lambda: nn.LayerNorm(width)}
        if config.latent_norm not in norms:
            raise ValueError(f"latent_norm must be one of {sorted(norms)}, not {config.latent_norm!r}")
        if config.latent_norm == "simnorm" and width % 8:
            raise ValueError(f"width {width} must be a multiple of 8 for simnorm; change it or take layernorm")
        self.support = Support(config.support_limit)
        self.latent_norm = norms[config.latent_norm]()
        self.observe = nn.Sequential(nn.Linear(config.observation_width, width), nn.GELU(), nn.Linear(width, width))
        self.act = nn.Linear(config.action_width, width)
        self.transformer = Transformer(
            width=width,
            layers=config.layers,
            heads=config.heads,
            dropout=config.dropout,
            window=2 * config.window_steps,
            max_positions=config.max_positions,
        )
        self.reward_head, self.value_head = _head(width, self.support.size), _head(width, self.support.size)
        self.next_head, self.policy_head = _head(width, width), _head(width, width)
        self.action_key = nn.Linear(config.action_width, width)
        nn.init.normal_(self.next_head[-1].weight, std=0.02)  # states must differ from the start, or search is blind

    def encode(self, observation: Tensor) -> Tensor:
        """Observation vectors [..., O] to latent states [..., D]."""
        return self.latent_norm(self.observe(observation))

    def action_tokens(self, vectors: Tensor) -> Tensor:
        """Action vectors [..., E] to tokens [..., D]."""
        return self.act(vectors)

    def action_keys(self, vectors: Tensor) -> Tensor:
        """Action vectors [..., E] to keys [..., D]; policy logits are query . key."""
        return self.action_key(vectors) * self.config.width**-0.5

    def read_state(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs at observation tokens [..., D] to (value logits [..., bins], policy query [..., D])."""
        return self.value_head(out), self.policy_head(out)

    def read_step(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs at action tokens [..., D] to (reward logits [..., bins], next latent [..., D])."""
        return self.reward_head(out), self.latent_norm(self.next_head(out))

    def forward(self, observation: Tensor, action: Tensor) -> Outputs:
        """Run windows.

        Args:
            observation: [B, S + 1, O] observation vectors; [B, S, O] where the state after the last action is not
                asked for.
            action: [B, S, E] vectors of the actions taken.
        """
        latent = self.encode(observation)
        out, _ = self.transformer(interleave(latent, self.action_tokens(action)))
        value_logits, query = self.read_state(out[:, 0::2])
        reward_logits, next_latent = self.read_step(out[:, 1::2])
        return Outputs(latent, next_latent, reward_logits, value_logits, query)

    def values(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Only what training targets need of the target network: latent [B, S + 1, D] and value [B, S + 1]."""
        latent = self.encode(observation)
        out, _ = self.transformer(interleave(latent, self.action_tokens(action)), every=2)
        return latent, self.support.decode(self.value_head(out))


def interleave(latent: Tensor, action: Tensor) -> Tensor:
    """Latents [B, S + 1, D] (or S) and actions [B, S, D] to tokens z_0 a_0 z_1 ... [B, 2 S + 1, D] (or 2 S)."""
    steps = action.shape[1]
    pairs = torch.stack((latent[:, :steps], action), dim=2).flatten(1, 2)
    return torch.cat((pairs, latent[:, steps:]), dim=1)
