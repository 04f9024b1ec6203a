"""One episode in the making: what the player has seen, and the segment that is being written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from priorzero.collect.novelty import Plan
from priorzero.collect.ways import Trail
from priorzero.envs.base import GameSpec
from priorzero.rl.returns import discounted_returns
from priorzero.types import EpisodeResult, Segment, Situation, Step, Subtree, Turn


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy chose in one state, and why. Arrays are over the valid actions [A]."""

    index: int  # of the chosen action
    visit_probs: np.ndarray  # the policy target: visits of the search, or the policy's own probabilities
    root_value: float
    prior_logprobs: np.ndarray | None = None  # language model
    world_model_probs: np.ndarray | None = None
    visits: np.ndarray | None = None
    q: np.ndarray | None = None
    subtree: Subtree | None = None  # behind the chosen action, where the next search starts from it


@dataclass(slots=True)
class Episode:
    """A running episode. ``advance`` adds a step, ``cut`` takes the steps since the last cut as a `Segment`."""

    spec: GameSpec
    seed: int
    number: int
    step: Step
    vector: np.ndarray  # [O], the current observation
    history_steps: int  # how many past turns prompts may need
    turns: list[Turn] = field(default_factory=list)  # the whole episode
    vectors: list[np.ndarray] = field(default_factory=list)  # [O] of every past observation
    action_ids: list[int] = field(default_factory=list)
    valid: list[tuple[str, ...]] = field(default_factory=list)  # since the last cut, as are the following
    decisions: list[Decision] = field(default_factory=list)
    intrinsic: list[float] = field(default_factory=list)
    start: int = 0
    subtree: Subtree | None = None  # what the last search found here
    plan: Plan | None = None  # how it begins, if not as ever
    lost: bool = False  # an action of the plan was not valid
    errand: str = ""  # the place where it is going, once it went back, see `Novelty.wander`
    trail: Trail = field(init=False)  # the whole episode, see `Novelty`

    def __post_init__(self) -> None:
        self.trail = Trail(self.seed)

    @property
    def actions(self) -> list[str]:
        """What was played so far."""
        return [turn.action for turn in self.turns]

    @property
    def pending(self) -> int:
        """Steps since the last cut."""
        return len(self.turns) - self.start

    def situation(self) -> Situation:
        """What a policy may look at now."""
        recent = self.turns[-self.history_steps :] if self.history_steps else []
        return Situation(self.step.observation, self.step.valid_actions, tuple(recent), self.step.goal)

    @property
    def goes_back(self) -> bool:
        """Whether it began by a plan, and has not lost it."""
        return self.plan is not None and not self.lost

    @property
    def _planned(self) -> str | None:
        """The plan's next action; None where there is none (any more)."""
        if self.plan is None or self.lost or len(self.turns) >= len(self.plan.actions):
            return None
        return self.plan.actions[len(self.turns)]

    def follow(self) -> Decision | None:
        """The next step of the plan, with visits to learn from where it imitates; None where there is none (any more).

        Where the action is not valid, it goes on with the next one that is; a plan to go back to a state is ``lost``.
        """
        valid = self.step.valid_actions
        if self.plan is not None and self.plan.kind != "return":
            self.plan = self.plan.without_invalid(len(self.turns), valid)
        action = self._planned
        if self.plan is None or action is None:
            return None
        self.lost = action not in valid
        if self.lost:
            return None
        index = valid.index(action)
        one_hot = np.eye(len(valid), dtype=np.float32)[index]
        return Decision(index, one_hot if self.plan.kind == "imitate" else np.zeros(0, np.float32), 0.0)

    def take(self, index: int) -> Decision:
        """A step that no policy chose; nobody learns one from it."""
        return Decision(index, np.zeros(0, np.float32), 0.0)

    @property
    def explores(self) -> bool:
        """Whether the next step leads where its plan does not: to be counted."""
        return self.plan is None or self.plan.kind == "trial" or self._planned is None

    @property
    def passes(self) -> bool:
        """Whether its plan goes on behind the next step."""
        return self.plan is not None and not self.lost and len(self.turns) + 1 < len(self.plan.actions)

    def advance(
        self, decision: Decision, action_id: int, step: Step, vector: np.ndarray, intrinsic: float = 0.0
    ) -> None:
        """Take the decision.

        Args:
            decision: what was chosen.
            action_id: of the chosen action in the vocabulary.
            step: the environment's answer.
            vector: [O], its encoded observation.
            intrinsic: reward of the step that exploration adds.
        """
        action = self.step.valid_actions[decision.index]
        self.turns.append(Turn(self.step.observation, action, step.reward))
        self.vectors.append(self.vector)
        self.action_ids.append(action_id)
        self.valid.append(self.step.valid_actions)
        self.decisions.append(replace(decision, world_model_probs=None, visits=None, q=None, subtree=None))
        self.intrinsic.append(intrinsic)
        self.step, self.vector, self.subtree = step, vector, decision.subtree

    def cut(self, *, gamma: float, world_model_version: int, policy_version: int) -> Segment:
        """The steps since the last cut as a segment; the next one starts here."""
        turns = self.turns[self.start :]
        rewards = np.array([turn.reward for turn in turns], np.float32)
        intrinsic = np.array(self.intrinsic, np.float32)
        segment = Segment(
            game=self.step.game,
            goal=self.step.goal,
            episode=self.number,
            start=self.start,
            history=tuple(self.turns[max(0, self.start - self.history_steps) : self.start]),
            observations=(*(turn.observation for turn in turns), self.step.observation),
            vectors=np.stack([*self.vectors[self.start :], self.vector]),
            valid_actions=(*self.valid, () if self.step.done else self.step.valid_actions),
            actions=tuple(turn.action for turn in turns),
            rewards=rewards,
            intrinsic=intrinsic,
            visit_probs=tuple(d.visit_probs for d in self.decisions),
            root_values=np.array([d.root_value for d in self.decisions], np.float32),
            prior_logprobs=tuple(d.prior_logprobs for d in self.decisions),
            terminated=self.step.terminated,
            truncated=self.step.truncated,
            world_model_version=world_model_version,
            policy_version=policy_version,
            returns=discounted_returns(rewards + intrinsic, gamma) if self.step.done else None,
        )
        self.start = len(self.turns)
        self.valid, self.decisions, self.intrinsic = [], [], []
        return segment

    def result(self, policy: str) -> EpisodeResult:
        """How it went, played by ``policy``."""
        step = self.step
        return EpisodeResult(
            step.game, self.seed, policy, step.score, step.max_score, len(self.turns), step.terminated, step.fault
        )

    def state_dict(self) -> dict[str, Any]:
        """Enough to play the episode again up to here; plain containers and arrays only."""
        return {
            "game": self.spec.name,
            "seed": self.seed,
            "number": self.number,
            "start": self.start,
            "actions": self.actions,
            "plan": None if self.plan is None else [list(self.plan.actions), self.plan.kind, list(self.plan.imitates)],
            "lost": self.lost,
            "errand": self.errand,
            "feedback": self.step.observation.feedback,
            "valid": [list(valid) for valid in self.valid],
            "decisions": [decision_state(decision) for decision in self.decisions],
            "intrinsic": list(self.intrinsic),
            "subtree": subtree_state(self.subtree),
        }


def decision_state(decision: Decision) -> dict[str, Any]:
    """What `Episode.advance` keeps of a decision, as plain containers."""
    prior = decision.prior_logprobs
    return {
        "index": decision.index,
        "visit_probs": decision.visit_probs.tolist(),
        "root_value": decision.root_value,
        "prior_logprobs": None if prior is None else prior.tolist(),
        "subtree": subtree_state(decision.subtree),
    }


def decision_from_state(state: dict[str, Any]) -> Decision:
    """A decision as `decision_state` wrote it."""
    prior = state["prior_logprobs"]
    return Decision(
        index=state["index"],
        visit_probs=np.array(state["visit_probs"], np.float32),
        root_value=state["root_value"],
        prior_logprobs=None if prior is None else np.array(prior, np.float32),
        subtree=subtree_from_state(state["subtree"]),
    )


def subtree_state(subtree: Subtree | None) -> list[list] | None:
    """A subtree as plain lists."""
    return None if subtree is None else [subtree.actions.tolist(), subtree.visits.tolist(), subtree.q.tolist()]


def subtree_from_state(state: list[list] | None) -> Subtree | None:
    """A subtree as `subtree_state` wrote it."""
    if state is None:
        return None
    actions, visits, q = state
    return Subtree(np.array(actions, np.int32), np.array(visits, np.int32), np.array(q, np.float64))


def past_decision(episode: Episode, saved: dict[str, Any], t: int) -> Decision | None:
    """What was decided at step ``t``; None where the game does not offer the same any more."""
    valid, action = episode.step.valid_actions, saved["actions"][t]
    if action not in valid:
        return None
    if t < saved["start"]:
        return Decision(valid.index(action), np.full(len(valid), 1 / len(valid), np.float32), 0.0)
    pending = t - saved["start"]
    return decision_from_state(saved["decisions"][pending]) if list(valid) == saved["valid"][pending] else None


def past_plan(saved: dict[str, Any]) -> Plan | None:
    """How the episode began."""
    if saved["plan"] is None:
        return None
    actions, kind, imitates = saved["plan"]
    return Plan(saved["seed"], tuple(actions), kind, tuple(imitates))


def past_intrinsic(saved: dict[str, Any], t: int) -> float:
    """Of step ``t``; 0 where the step is in a segment already."""
    return saved["intrinsic"][t - saved["start"]] if t >= saved["start"] else 0.0
