"""Builds the learning of a language model from its own answers: prompts, text generation, rewards, advantages."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from priorzero.app.given import for_rewards, for_tool, scenes
from priorzero.app.models import load_copy, plain
from priorzero.data.prompt_budget import PromptBudget, fit_prompts
from priorzero.data.prompt_source import FixedPrompts, PlayedPrompts, PromptSource, unfit_sources
from priorzero.data.prompts import read_prompts
from priorzero.data.token_stream import TokenDataConfig, TokenStream
from priorzero.policy.experience import Experience, ExperienceConfig, ExperienceMaker, ScoredSamples
from priorzero.policy.load import LanguageModel
from priorzero.policy.token_module import TokenModule
from priorzero.rl.grading import Grader, Grades
from priorzero.rollout.agent import AgentLoop
from priorzero.rollout.base import Sampling, TextGenerator
from priorzero.rollout.dialogue import written_text
from priorzero.rollout.probe import ModelScorer, WeightProbe
from priorzero.rollout.retry import RetryingGenerator
from priorzero.text.chat import row_tokens
from priorzero.text.parse import parse_answer
from priorzero.text.prompt import PromptBuilder
from priorzero.types import Answer, Dialogue, Message, PromptRow

if TYPE_CHECKING:
    from priorzero.app.build import Run

log = logging.getLogger(__name__)


def learns_from_answers(cfg: DictConfig) -> bool:
    """Whether the objective trains on text that the model wrote (PPO, GRPO), not on scores of candidates."""
    return str(cfg.objective["_target_"]).endswith("TokenObjective")


def policy_updates(cfg: DictConfig) -> int:
    """Updates of the language model in one of its rounds."""
    experience = cfg.experience
    return experience.epochs * experience.updates if learns_from_answers(cfg) else cfg.data.policy_updates_per_round


def build_token_module(cfg: DictConfig, language_model: LanguageModel) -> TokenModule:
    """The language model under its Trainer, with its critic."""
    objective = instantiate(cfg.objective, _convert_="object")
    critic = load_copy(cfg) if objective.critic == "own" else None
    return TokenModule(
        language_model,
        critic,
        objective=objective,
        optim=instantiate(cfg.policy_optim),
        temperature=cfg.rollout.sampling.temperature,
    )


def build_token_stream(run: Run, module: TokenModule, language_model: LanguageModel) -> TokenStream:
    """The stream of a `TokenModule`: prompts from a file or from the replay, answers by the rollout backend.

    Raises:
        ValueError: there are prompts without a reward, rewards without a prompt, or a prompt that leaves no room.
    """
    cfg = run.cfg
    source, longest = build_prompt_source(run, language_model.tokenizer)
    if problem := unfit_sources(set(source.data_sources), cfg.reward.sources):
        raise ValueError(f"the prompts do not fit the rewards: {problem}")
    rollouts = Rollouts(run, module, language_model)
    if longest is not None:
        rollouts.check_room(longest)
    keys = ("prompts", "epochs", "updates", "micro_batches", "row_tokens")
    config = TokenDataConfig(**{key: cfg.experience[key] for key in keys})
    return TokenStream(source, rollouts.make, config, pad_id=language_model.pad_id, seed=cfg.seed)


def build_prompt_source(run: Run, tokenizer: Any) -> tuple[PromptSource, PromptRow | None]:
    """A file of prompts where one is named, and its longest prompt; else the newest steps of the replay.

    Raises:
        PromptFileError: the file cannot be read.
        ValueError: no action would be found in the answers to its prompts, or they are too long.
    """
    cfg = run.cfg.experience
    if cfg.prompt_file is not None:
        rows = read_prompts(cfg.prompt_file, plain(cfg.columns))
        _check_actions(run.cfg, rows)
        fitted = fit_prompts(rows, tokenizer, PromptBudget(max_tokens=cfg.max_prompt_tokens, overlong=cfg.overlong))
        longest = max(range(len(fitted.rows)), key=lambda i: len(fitted.tokens[i]), default=None)
        return FixedPrompts(fitted.rows, run.cfg.seed), None if longest is None else fitted.rows[longest]
    builder = PromptBuilder(tokenizer, instantiate(run.cfg.prompt))
    played = PlayedPrompts(
        run.replay, builder, newest_steps=run.cfg.data.newest_steps, seed=run.cfg.seed, extras=scenes(run)
    )
    return played, None


def _check_actions(cfg: DictConfig, rows: Sequence[PromptRow]) -> None:
    """Refuse dialogues in whose answers no action would be found."""
    loop, form = cfg.agent.loop, cfg.prompt.format
    if loop.max_turns and form != "think_answer" and any(row.valid_actions for row in rows):
        raise ValueError(
            f"{cfg.experience.prompt_file} has prompts with valid_actions, agent.loop.max_turns={loop.max_turns} ends "
            f"a dialogue at </{loop.answer_tag}>, and prompt.format={form} looks for an action that is written "
            "otherwise: use prompt=think_answer, or agent=plain"
        )


def build_generator(cfg: DictConfig) -> TextGenerator:
    """The rollout backend, with weights of its own."""
    if cfg.rollout.backend == "vllm":
        from priorzero.rollout.vllm_backend import VLLMGenerator

        lora = instantiate(cfg.llm.peft) if cfg.llm.peft else None
        generator = VLLMGenerator(cfg.llm.source, instantiate(cfg.rollout.generator.engine), lora)
    else:
        from priorzero.rollout.transformers_backend import TransformersGenerator

        generator = TransformersGenerator(load_copy(cfg), **plain(cfg.rollout.generator))
    return RetryingGenerator(generator, instantiate(cfg.rollout.retry))


class Rollouts:
    """Writes answers with the newest weights, has them judged, and makes experience of them.

    Args:
        run: whose configuration, folder and loggers.
        module: the trained model.
        language_model: its tokenizer and padding.
    """

    def __init__(self, run: Run, module: TokenModule, language_model: LanguageModel) -> None:
        cfg = run.cfg
        self.run, self.module, self.tokenizer = run, module, language_model.tokenizer
        self.generator = run.generator = build_generator(cfg)  # the run closes it
        tools = [instantiate(tool, **for_tool(run, tool)) for tool in cfg.tool.values()]
        self.loop = AgentLoop(
            self.generator, self.tokenizer, tools, instantiate(cfg.agent.loop), instantiate(cfg.agent.calls)
        )
        self.loop.check()
        self.sampling: Sampling = instantiate(cfg.rollout.sampling, _convert_="all")
        self.grader: Grader = instantiate(cfg.reward, rewards=for_rewards(cfg, self.reply))
        config = ExperienceConfig(
            row_tokens=cfg.experience.row_tokens,
            score_tokens=cfg.experience.score_tokens,
            reward_limit=cfg.experience.reward_limit,
            mask_given=cfg.experience.mask_given,
        )
        self.maker = ExperienceMaker(module, instantiate(cfg.advantage), config, language_model.pad_id)
        self._steps = cfg.agent.loop.mode == "step"
        self._version = -1
        self._probe: WeightProbe | None = None
        self._score = ModelScorer(language_model.model)

    def make(self, rows: Sequence[PromptRow]) -> Experience:
        """Answers to ``rows`` as experience; a sample of them goes to ``generations.jsonl``."""
        told = self._sync(rows)
        cfg = self.run.cfg
        episodes = self.loop.run(rows, self._sampling_of(rows), cfg.rollout.samples_per_prompt)
        grades = self._grade(episodes)
        self._keep(episodes, grades)
        samples = self._samples(episodes, grades)
        if cfg.experience.greedy_baseline:
            samples = self._with_baseline(samples, rows)
        self.generator.sleep()  # its memory is the trainer's now, where it can give some back
        experience, metrics = self.maker.make(samples)
        told |= metrics | {f"reward/{name}": value for name, value in grades.metrics().items()}
        self.module.told = told | counts(episodes) | self.generator.metrics()
        return experience

    def check_room(self, row: PromptRow) -> None:
        """Whether a prompt, with what is said of tools, leaves room for a turn: better now than after some hours.

        Raises:
            ValueError: it does not.
        """
        tokens, turn = len(row_tokens(self.tokenizer, self.loop.instructed(row))), self.sampling.max_tokens
        if tokens + turn > self.loop.config.max_tokens:
            raise ValueError(
                f"the longest prompt of {tokens} tokens and a turn of rollout.sampling.max_tokens={turn} do not fit "
                f"into agent.loop.max_tokens={self.loop.config.max_tokens}: raise it, or let "
                "experience.max_prompt_tokens and experience.overlong cut long prompts or leave them out"
            )

    def _sampling_of(self, rows: Sequence[PromptRow]) -> Sampling:
        """With random numbers of this round alone, so that a resumed run writes what it would have written."""
        seed = np.random.SeedSequence([self.run.cfg.seed, int(rows[0].group_id)]).generate_state(1)[0]
        return replace(self.sampling, seed=int(seed))

    def _sync(self, rows: Sequence[PromptRow]) -> dict[str, float]:
        """Give the backend the weights that are trained, once for every update, and check that they arrived."""
        version = self.module.global_step
        if version == self._version:
            return {}
        self.generator.load_weights(self.module.trainable_state(), version)
        self._version = version
        if self._probe is None:
            self._probe = WeightProbe(row_tokens(self.tokenizer, rows[0]), instantiate(self.run.cfg.rollout.probe))
        return self._probe.check(self.generator, self._score, version)

    # ------------------------------------------------------------------------------------------------------ rewards

    def _grade(self, episodes: Sequence[Sequence[Dialogue]]) -> Grades:
        """Grade what was said last in each dialogue."""
        return self.grader([self._answer(dialogues[-1]) for dialogues in episodes])

    def _answer(self, dialogue: Dialogue) -> Answer:
        text = written_text(self.tokenizer, dialogue)
        row = dialogue.row
        action = None
        if row.valid_actions:
            action = parse_answer(text, row.valid_actions, self.run.cfg.prompt.format).action
        return Answer(row, text, action, dialogue.finish)

    def _samples(self, episodes: Sequence[Sequence[Dialogue]], grades: Grades) -> ScoredSamples:
        """One sample a dialogue, or one a turn; the score of a dialogue is that of its last turn."""
        last = [turn + 1 == len(dialogues) for dialogues in episodes for turn in range(len(dialogues))]
        episode = np.repeat(np.arange(len(episodes)), [len(dialogues) for dialogues in episodes])
        return ScoredSamples(
            dialogues=[dialogue for dialogues in episodes for dialogue in dialogues],
            scores=np.where(last, grades.totals[episode], 0.0),
            scored=grades.scored[episode],
            episode=episode if self._steps else None,
        )

    def _with_baseline(self, samples: ScoredSamples, rows: Sequence[PromptRow]) -> ScoredSamples:
        """Compare with greedy answers; where there is none that could be scored, its samples are masked."""
        greedy = self.loop.run(rows, replace(self.sampling, temperature=0.0), 1)
        grades = self._grade(greedy)
        limit = self.maker.config.reward_limit
        paid = np.array([sum(sum(d.turn_rewards) for d in dialogues) for dialogues in greedy])
        known = grades.scored & np.array([dialogues[-1].valid for dialogues in greedy])
        place = {row.group_id: i for i, row in enumerate(rows)}
        of = np.array([place[d.row.group_id] for d in samples.dialogues])
        scores = grades.totals if limit is None else np.clip(grades.totals, -limit, limit)
        return replace(samples, baseline=(scores + paid)[of], scored=samples.scored & known[of])

    def reply(self, chats: Sequence[Sequence[Message]]) -> list[str]:
        """What the present model replies to chats, most likely token by most likely token."""
        prompts = [row_tokens(self.tokenizer, PromptRow(tuple(chat))) for chat in chats]
        written = self.generator.generate(prompts, replace(self.sampling, temperature=0.0, stop=()), 1)
        return [self.tokenizer.decode(list(one.tokens), skip_special_tokens=True) for (one,) in written]

    # ---------------------------------------------------------------------------------------------------------- log

    def _keep(self, episodes: Sequence[Sequence[Dialogue]], grades: Grades) -> None:
        """Write some of the answers down, and show them where the logger has tables."""
        count = min(self.run.cfg.experience.logged_answers, len(episodes))
        chosen = np.linspace(0, len(episodes) - 1, count).astype(int)
        records = [self._record(episodes[i][-1], grades, int(i)) for i in chosen]
        with (Path(self.run.folder) / "generations.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        for logger in self.run.loggers:
            if type(logger).__name__ == "WandbLogger" and records:
                rows = [[str(value) for value in record.values()] for record in records]
                logger.log_table("rollout/answers", columns=list(records[0]), data=rows)

    def _record(self, dialogue: Dialogue, grades: Grades, i: int) -> dict[str, Any]:
        parts = {name: float(x[i]) for name, x in grades.parts.items() if not np.isnan(x[i])}
        return {
            "update": self.module.global_step,
            "prompt": dialogue.row.messages[-1].content,
            "answer": dialogue.row.answer_prefix + dialogue.text,
            "right": dialogue.row.answer,
            "reward": float(grades.totals[i]),
            "parts": parts,
            "finish": dialogue.finish,
        }


def counts(episodes: Sequence[Sequence[Dialogue]]) -> dict[str, float]:
    """Means a dialogue of what was counted in it, and how many samples were cut off by a fault."""
    dialogues = [dialogue for steps in episodes for dialogue in steps]
    names = {name for dialogue in dialogues for name in dialogue.counts}
    n = max(len(episodes), 1)
    found = {f"rollout/{name}": sum(d.counts.get(name, 0.0) for d in dialogues) / n for name in sorted(names)}
    found["rollout/invalid_samples"] = float(sum(not d.valid for d in dialogues))
    return found
