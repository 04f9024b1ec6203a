"""Log-probabilities, entropies and values of the tokens that a language model wrote, with the network of the critic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from priorzero.policy.load import LanguageModel, causal_lm
from priorzero.policy.logprobs import packed_hidden
from priorzero.rl.token_loss import token_entropy
from priorzero.types import TokenBatch


@dataclass(frozen=True)
class TokenScores:
    """What the model says of each token, [N, L] float32 each, 0 where nothing was written."""

    logprobs: Tensor  # of the written token, after temperature
    entropy: Tensor | None  # of the distribution that it was drawn from
    values: Tensor | None  # of the state before it; None without a critic


class Critic(nn.Module):
    """A value of every written token's state: one linear output on hidden states, zero at first.

    Args:
        width: of the hidden states.
        trunk: a language model of its own; None: the policy's hidden states.
        detach: without a trunk of its own: the value loss trains the output alone, not the policy's weights.
    """

    def __init__(self, width: int, trunk: LanguageModel | None, *, detach: bool) -> None:
        super().__init__()
        self.trunk = trunk.model if trunk is not None else None
        self.detach = detach
        self.output = nn.Linear(width, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, batch: TokenBatch, policy_hidden: Tensor) -> Tensor:
        """Values [M] of the scored tokens; ``policy_hidden`` [M, width]."""
        if self.trunk is not None:
            hidden = packed_hidden(self.trunk, batch.packed).flatten(0, 1)[batch.packed.score_position]
        else:
            hidden = policy_hidden.detach() if self.detach else policy_hidden
        return self.output(hidden.to(self.output.weight.dtype))[:, 0].float()


class TokenScorer(nn.Module):
    """A language model, and a critic where one is trained; one forward, so that DDP and FSDP can wrap it.

    Args:
        model: a transformers causal language model, or a peft model around one.
        critic: None for estimators without.
        temperature: that the tokens were sampled with.
    """

    def __init__(self, model: nn.Module, critic: Critic | None, temperature: float) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"a policy that learns from its samples needs a temperature above 0, not {temperature}")
        self.model, self.critic, self.temperature = model, critic, temperature

    def forward(
        self, batch: TokenBatch, *, entropy: bool, entropy_gradient: bool = False, values: bool = True
    ) -> TokenScores:
        """Scores of the written tokens of ``N`` samples; the output layer runs on these alone.

        An entropy without gradient keeps nothing for a backward pass: two arrays of all logits less.
        """
        packed = batch.packed
        hidden = packed_hidden(self.model, packed).flatten(0, 1)[packed.score_position]  # [M, width]
        logits = causal_lm(self.model).get_output_embeddings()(hidden).float() / self.temperature
        chosen = logits.gather(-1, packed.score_token[:, None])[:, 0]
        logprobs = chosen - logits.logsumexp(-1)
        of = logits if entropy_gradient else logits.detach()
        critic = self.critic if values else None
        return TokenScores(
            logprobs=self._spread(logprobs, batch),
            entropy=self._spread(token_entropy(of), batch) if entropy else None,
            values=None if critic is None else self._spread(critic(batch, hidden), batch),
        )

    @staticmethod
    def _spread(values: Tensor, batch: TokenBatch) -> Tensor:
        empty = torch.zeros(batch.mask.numel(), dtype=torch.float32, device=values.device)
        return empty.index_copy(0, batch.place, values).view(batch.mask.shape)
