"""From generated samples and their scores to what a policy loss trains on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from priorzero.policy.packing import pack_samples
from priorzero.policy.token_module import TokenModule
from priorzero.rl.aggregation import count
from priorzero.rl.kl import mean_kl, token_kl, token_rewards
from priorzero.rl.token_advantages import AdvantageEstimator, AdvantageInputs, NoExperienceError, index_of
from priorzero.types import Dialogue, TokenBatch


@dataclass(frozen=True, kw_only=True)
class ScoredSamples:
    """``N`` finished samples, and what the rewards said of them."""

    dialogues: Sequence[Dialogue]
    scores: np.ndarray  # [N] float, of whole samples; rewards of single turns are in the dialogues
    scored: np.ndarray  # [N] bool: False where no reward could judge
    baseline: np.ndarray | None = None  # [N] score of the greedy answer to the same prompt (ReMax)
    episode: np.ndarray | None = None  # [N] int: which dialogue a sample is a step of (GiGPO)


@dataclass(frozen=True, kw_only=True)
class Experience:
    """``N`` samples ready to be trained on. Fields as in ``TokenBatch``."""

    group: Tensor  # [N] int64: equal for samples of one row
    prompts: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]
    mask: Tensor
    rollout_logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    ref_logprobs: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None

    def groups(self) -> list[list[int]]:
        """The samples of each row: kept together, they share the computation of their prompt."""
        groups: dict[int, list[int]] = {}
        for n, group in enumerate(self.group.tolist()):
            groups.setdefault(group, []).append(n)
        return list(groups.values())

    def size(self, samples: Sequence[int]) -> tuple[int, int]:
        """Trained tokens, and samples with any, among ``samples``."""
        tokens, sequences = count(self.mask[list(samples)]).tolist()
        return tokens, sequences

    def batch(self, samples: Sequence[int], size: tuple[int, int], pad_id: int, row_tokens: int) -> TokenBatch:
        """A micro-batch of these samples, in an update of ``size``."""
        index = torch.tensor(samples)
        longest = max(len(self.answers[n]) for n in samples)

        def of(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[index, :longest]

        mask = self.mask[index, :longest]
        packed, place = pack_samples(
            [self.prompts[n] for n in samples], [self.answers[n] for n in samples], mask, pad_id, row_tokens=row_tokens
        )
        return TokenBatch(
            packed=packed,
            place=place,
            mask=mask,
            rollout_logprobs=self.rollout_logprobs[index, :longest],
            old_logprobs=self.old_logprobs[index, :longest],
            advantages=self.advantages[index, :longest],
            ref_logprobs=of(self.ref_logprobs),
            old_values=of(self.old_values),
            returns=of(self.returns),
            tokens=size[0],
            sequences=size[1],
        )


@dataclass(frozen=True, kw_only=True)
class ExperienceConfig:
    """How samples are laid out and scored before they are trained on."""

    row_tokens: int  # samples share a row until it holds so many tokens
    score_tokens: int  # prompt and answer tokens in one forward pass without gradient
    reward_limit: float | None  # scores are cut to +- this
    mask_given: bool  # True: what the model did not write (results of tools) takes part in no loss


class ExperienceMaker:
    """Scores samples with the trainer's model, and estimates their advantages.

    Args:
        module: the trained model; its KL controller is told of the new samples.
        estimator: of the advantages, called once on everything.
        config: how.
        pad_id: token of the padding.
    """

    def __init__(
        self, module: TokenModule, estimator: AdvantageEstimator, config: ExperienceConfig, pad_id: int
    ) -> None:
        self.module, self.estimator, self.config, self.pad_id = module, estimator, config, pad_id

    def make(self, samples: ScoredSamples) -> tuple[Experience, dict[str, float]]:
        """The experience, and what is worth logging about it.

        Raises:
            NoExperienceError: no sample is valid and scored, or none can be compared with another.
            ValueError: the estimator lacks something, which it names.
        """
        raw = self._layout(samples)
        raw, kl = self._score(raw)
        if not self.config.mask_given:  # nobody sampled these tokens: there is nothing to correct
            written = _written(samples.dialogues, raw.mask)
            raw = replace(raw, rollout_logprobs=torch.where(written, raw.rollout_logprobs, raw.old_logprobs))
        inputs = self._inputs(samples, raw, self._rewards(samples, raw, kl))
        result = self.estimator(inputs)
        mask = raw.mask & result.usable[:, None]
        if not mask.any():
            raise NoExperienceError(
                "no sample can be compared with another: the estimator needs several samples of a prompt, raise "
                "rollout.samples_per_prompt"
            )
        made = replace(
            raw,
            mask=mask,
            advantages=result.advantages.float(),
            returns=result.returns.float() if result.returns is not None and raw.old_values is not None else None,
        )
        metrics = self._metrics(made, inputs, result.usable)
        if kl is not None:
            metrics["policy/kl"] = mean_kl(kl, raw.mask)
            self.module.kl.update(metrics["policy/kl"], int(raw.mask.any(-1).sum()))
        return made, metrics

    def _layout(self, samples: ScoredSamples) -> Experience:
        """Tokens, masks and the log-probabilities of the rollout; invalid samples have an empty mask."""
        starts = [int(np.argmax(d.written)) if d.written.any() else len(d.tokens) for d in samples.dialogues]
        good = [d.valid and bool(s and d.written.any()) for d, s in zip(samples.dialogues, samples.scored, strict=True)]
        if not any(good):
            raise NoExperienceError(
                f"none of {len(good)} samples can be trained on ({sum(not d.valid for d in samples.dialogues)} failed, "
                f"{int((~samples.scored).sum())} could not be scored): look at generations.jsonl in the run's folder"
            )
        width = max(len(d.tokens) - start for d, start in zip(samples.dialogues, starts, strict=True))
        mask = torch.zeros(len(good), width, dtype=torch.bool)
        logprobs = torch.zeros(len(good), width)
        for n, (dialogue, start) in enumerate(zip(samples.dialogues, starts, strict=True)):
            length = len(dialogue.tokens) - start
            if good[n]:
                written = torch.from_numpy(dialogue.written[start:])
                mask[n, :length] = written if self.config.mask_given else True
            logprobs[n, :length] = torch.from_numpy(dialogue.rollout_logprobs[start:])
        return Experience(
            group=index_of([d.row.group_id for d in samples.dialogues], "group_id"),
            prompts=[d.tokens[:start] for d, start in zip(samples.dialogues, starts, strict=True)],
            answers=[d.tokens[start:] or (self.pad_id,) for d, start in zip(samples.dialogues, starts, strict=True)],
            mask=mask,
            rollout_logprobs=logprobs.masked_fill(~mask, 0.0),
            old_logprobs=torch.zeros(mask.shape),
            advantages=torch.zeros(mask.shape),
        )

    @torch.no_grad()
    def _score(self, raw: Experience) -> tuple[Experience, Tensor | None]:
        """What the trainer's model, its critic and the initial model say; and the KL to the latter, [N, L]."""
        old, ref, values = (torch.zeros(raw.mask.shape) for _ in range(3))
        module = self.module
        has_reference, has_critic = module.objective.kl_place != "none", module.scorer.critic is not None
        training = module.training
        module.eval()  # without dropout, as the rollout
        for index, batch in self._scoring_batches(raw):
            width = batch.mask.shape[1]
            with module.forward_context():
                scores = module.scorer(batch, entropy=False)
            old[index, :width] = scores.logprobs.cpu()
            if scores.values is not None:
                values[index, :width] = scores.values.cpu()
            if has_reference:
                scorer, initial = module.reference()
                with initial, module.forward_context():
                    ref[index, :width] = scorer(batch, entropy=False, values=False).logprobs.cpu()
        module.train(training)
        scored = replace(
            raw,
            old_logprobs=old,
            ref_logprobs=ref if has_reference else None,
            old_values=values if has_critic else None,
        )
        return scored, token_kl(old, ref, raw.mask, "k1") if has_reference else None

    def _scoring_batches(self, raw: Experience) -> Iterator[tuple[list[int], TokenBatch]]:
        chunk: list[int] = []
        held = 0
        for group in raw.groups():
            prompts = {tuple(raw.prompts[n]) for n in group}  # one, but for steps of dialogues
            needs = sum(map(len, prompts)) + sum(len(raw.answers[n]) for n in group)
            if chunk and held + needs > self.config.score_tokens:
                yield chunk, self._on_device(raw, chunk)
                chunk, held = [], 0
            chunk += group
            held += needs
        yield chunk, self._on_device(raw, chunk)

    def _on_device(self, raw: Experience, index: list[int]) -> TokenBatch:
        batch = raw.batch(index, (1, 1), self.pad_id, self.config.row_tokens)
        return batch.to(self.module.device)

    def _rewards(self, samples: ScoredSamples, raw: Experience, kl: Tensor | None) -> Tensor:
        in_reward = kl is not None and self.module.objective.kl_place == "reward"
        return token_rewards(
            torch.from_numpy(np.asarray(samples.scores, np.float32)),
            raw.mask,
            turn_rewards=_placed(samples.dialogues, raw.mask),
            kl=kl if in_reward else None,
            kl_weight=self.module.kl.coefficient if in_reward else 0.0,
            limit=self.config.reward_limit,
        )

    def _inputs(self, samples: ScoredSamples, raw: Experience, rewards: Tensor) -> AdvantageInputs:
        rows = [d.row for d in samples.dialogues]
        episode, baseline = samples.episode, samples.baseline
        return AdvantageInputs(
            rewards=rewards,
            mask=raw.mask,
            group=raw.group,
            values=raw.old_values,
            turn_ends=_turn_ends(samples.dialogues, raw.mask),
            baseline=None if baseline is None else torch.from_numpy(np.asarray(baseline, np.float32)),
            episode=None if episode is None else torch.from_numpy(np.asarray(episode, np.int64)),
            step=None if episode is None else torch.tensor([row.extra.get("turn", 0) for row in rows]),
            state=None if episode is None else index_of([row.state_id for row in rows], "state_id"),
        )

    @staticmethod
    def _metrics(made: Experience, inputs: AdvantageInputs, usable: Tensor) -> dict[str, float]:
        trained = made.mask.any(-1)
        lengths = inputs.mask.sum(-1)[inputs.trained].float()
        spread = made.advantages[made.mask]
        group = inputs.need("group", "the log")
        scores, valid = inputs.scores, inputs.trained
        flat = [float(np.ptp(scores[valid & (group == g)].numpy())) < 1e-9 for g in group[valid].unique()]
        return {
            "rollout/trained": float(trained.float().mean()),
            "rollout/masked_samples": float((~inputs.trained).sum()),
            "rollout/not_comparable": float((~usable & inputs.trained).sum()),
            "rollout/groups_without_spread": sum(flat) / max(len(flat), 1),
            "rollout/response_tokens": float(lengths.mean()),
            "rollout/score_std": float(scores[valid].std(unbiased=False)),
            "policy/advantage_std": float(spread.std(unbiased=False)),
            "policy/advantage_max": float(spread.max()),
            "policy/advantage_min": float(spread.min()),
        }


def _starts(dialogues: Sequence[Dialogue]) -> Iterator[tuple[int, Dialogue, int]]:
    for n, dialogue in enumerate(dialogues):
        if dialogue.written.any():
            yield n, dialogue, int(np.argmax(dialogue.written))


def _written(dialogues: Sequence[Dialogue], mask: Tensor) -> Tensor:
    """[N, L] bool, what the model wrote, as in the mask of a maker that masks the rest."""
    written = torch.zeros(mask.shape, dtype=torch.bool)
    for n, dialogue, start in _starts(dialogues):
        written[n, : len(dialogue.tokens) - start] = torch.from_numpy(dialogue.written[start:])
    return written


def _placed(dialogues: Sequence[Dialogue], mask: Tensor) -> Tensor:
    """Rewards of turns [N, L], on the last written token of each."""
    rewards = torch.zeros(mask.shape)
    for n, dialogue, start in _starts(dialogues):
        for end, reward in zip(dialogue.turn_ends, dialogue.turn_rewards, strict=True):
            rewards[n, end - start] = reward
    return rewards.masked_fill(~mask.any(-1, keepdim=True), 0.0)


def _turn_ends(dialogues: Sequence[Dialogue], mask: Tensor) -> Tensor:
    ends = torch.zeros(mask.shape, dtype=torch.bool)
    for n, dialogue, start in _starts(dialogues):
        ends[n, [end - start for end in dialogue.turn_ends]] = True
    return ends & mask
