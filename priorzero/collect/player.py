"""Chooses actions for many running episodes at once: at random, by the prior, or by search with or without it."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from priorzero.collect.episode import Decision, Episode
from priorzero.prior.base import Prior
from priorzero.search import GumbelConfig, SearchConfig, earlier_edges, gumbel_search, search, search_tree, subtree
from priorzero.search import root as roots
from priorzero.text.encoder import SentenceEncoder, number_vector
from priorzero.text.vocabulary import ActionVocabulary
from priorzero.types import Context, Edges, Observation, Root, SearchResult, Step, Subtree
from priorzero.world_model.planner import Planner

POLICIES = ("random", "prior", "wm", "wm_prior")
SCORE = Observation._fields.index("score")


@dataclass(frozen=True, kw_only=True)
class RootPriorConfig:
    """How the language model's and the world model's policies become the prior at the root (algorithm 3)."""

    llm_weight: float  # w of (1 - w) pi_world_model + w pi_llm: 0 world model only, 1 language model only
    llm_weight_end: float  # the weight after ``anneal_env_steps``
    anneal_env_steps: int  # 0: no annealing
    llm_from_env_step: int  # collection before it does without: an untrained language model may cost more than it tells
    llm_weight_unsure: float | None  # the weight where the LLM is at its full entropy (in between: linear); null: off


@dataclass(frozen=True, kw_only=True)
class ExploreConfig:
    """What collection adds to the search and evaluation leaves out."""

    dirichlet_alpha: float
    dirichlet_fraction: float
    temperature: float  # of the visit counts
    prior_temperature: float  # of the language model's probabilities where it plays alone


@dataclass(frozen=True, slots=True)
class _Found:
    """What either search comes to."""

    result: SearchResult
    policy: np.ndarray  # [B, A], the target to learn from
    index: np.ndarray  # [B], the action to play
    subtrees: Sequence[Subtree | None]  # B, behind that action


class Player:
    """Decides for running episodes. Used from one thread at a time.

    Args:
        encoder: texts to vectors.
        vocabulary: all actions; grows as games show new ones.
        planner: the world model that searches, None where no policy searches.
        prior: the language model, None where no policy asks one.
        search: which search, and its constants.
        root_prior: how prior and world model mix at the root.
        explore: what collection adds.
        observe: the observation parts that make up an observation vector, in order.
        rng: of noise and choices.
    """

    def __init__(
        self,
        *,
        encoder: SentenceEncoder,
        vocabulary: ActionVocabulary,
        planner: Planner | None,
        prior: Prior | None,
        search: SearchConfig | GumbelConfig,
        root_prior: RootPriorConfig,
        explore: ExploreConfig,
        observe: Sequence[str],
        rng: np.random.Generator,
    ) -> None:
        self.encoder, self.vocabulary, self.planner, self.prior = encoder, vocabulary, planner, prior
        self.search_config, self.root_prior, self.explore = search, root_prior, explore
        self.parts = [Observation._fields.index(part) for part in observe]
        self.rng = rng
        self.env_steps = 0  # of the run, for annealing
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def with_rng(self, rng: np.random.Generator) -> Player:
        """The same models with other random numbers and clocks of its own, for evaluation."""
        other = copy.copy(self)
        other.rng, other.seconds = rng, defaultdict(float)
        return other

    # ------------------------------------------------------------------------------------------------------ encode

    def encode(self, observations: Sequence[Observation]) -> np.ndarray:
        """Observations to vectors [n, O]: of each part the sentence vector, of the score a `number_vector`."""
        start = time.perf_counter()
        texts = [observation[part] for observation in observations for part in self.parts if part != SCORE]
        vectors = self.encoder.encode(texts).reshape(len(observations), -1)
        if SCORE in self.parts:
            scores = [number_vector(float(o.score.split()[-1]), self.encoder.width) for o in observations]
            at = self.parts.index(SCORE) * self.encoder.width
            vectors = np.concatenate((vectors[:, :at], np.stack(scores), vectors[:, at:]), axis=1)
        self.seconds["encode"] += time.perf_counter() - start
        return vectors

    # ------------------------------------------------------------------------------------------------------ decide

    def decide(self, policy: str, episodes: Sequence[Episode], *, explore: bool) -> list[Decision]:
        """One decision for each episode, by one of `POLICIES`.

        Raises:
            ValueError: there is no such policy, or the player lacks the model that it asks.
        """
        if policy not in POLICIES:
            raise ValueError(f"unknown policy {policy!r}: use one of {', '.join(POLICIES)}")
        if policy == "random":
            return [self._random(len(e.step.valid_actions)) for e in episodes]
        if policy == "prior":
            return [self._by_prior(logprobs, explore) for logprobs in self._ask_prior(policy, episodes)]
        if self.planner is None:
            raise ValueError(f"policy {policy!r} searches with a world model, and this run has none")
        early = explore and self.env_steps < self.root_prior.llm_from_env_step
        priors = self._ask_prior(policy, episodes) if policy == "wm_prior" and not early else None
        return self._by_search(self.planner, episodes, priors, explore)

    def _random(self, actions: int) -> Decision:
        probs = np.full(actions, 1 / actions, np.float32)
        return Decision(int(self.rng.integers(actions)), probs, 0.0)

    def _ask_prior(self, policy: str, episodes: Sequence[Episode]) -> list[np.ndarray]:
        if self.prior is None:
            raise ValueError(f"policy {policy!r} asks a language model, and this run has none (llm=none)")
        start = time.perf_counter()
        result = self.prior.score([e.situation() for e in episodes])
        self.seconds["prior"] += time.perf_counter() - start
        return list(result.logprobs)

    def _by_prior(self, logprobs: np.ndarray, explore: bool) -> Decision:
        if not explore:
            return Decision(int(logprobs.argmax()), np.exp(logprobs), 0.0, logprobs)
        scaled = logprobs / self.explore.prior_temperature
        probs = np.exp(scaled - scaled.max())
        index = int(self.rng.choice(len(probs), p=probs / probs.sum()))
        return Decision(index, np.exp(logprobs), 0.0, logprobs)

    def _by_search(
        self, planner: Planner, episodes: Sequence[Episode], priors: Sequence[np.ndarray] | None, explore: bool
    ) -> list[Decision]:
        start = time.perf_counter()
        actions, known = self._actions(episodes)
        self.seconds["encode"] += time.perf_counter() - start
        start = time.perf_counter()
        planner.set_actions(self.vocabulary.vectors())
        predicted = planner.root(self._contexts(episodes, planner.config.context_steps), actions, known)
        legal = actions >= 0
        wm_probs = roots.masked_softmax(predicted.logits, legal)
        probs = wm_probs if priors is None else self._mix(wm_probs, priors, legal)
        root = Root(actions, probs, predicted.value, self._earlier(actions, episodes))
        found = self._search(planner, root, explore)
        self.seconds["search"] += time.perf_counter() - start
        return [
            Decision(
                index=int(found.index[i]),
                visit_probs=found.policy[i, :n],
                root_value=float(found.result.value[i]),
                prior_logprobs=None if priors is None else priors[i],
                world_model_probs=wm_probs[i, :n],
                visits=found.result.visits[i, :n],
                q=found.result.q[i, :n],
                subtree=found.subtrees[i],
            )
            for i, n in enumerate(len(e.step.valid_actions) for e in episodes)
        ]

    def _earlier(self, actions: np.ndarray, episodes: Sequence[Episode]) -> Edges | None:
        if isinstance(self.search_config, GumbelConfig) or not self.search_config.reuse:
            return None
        return earlier_edges(actions, [episode.subtree for episode in episodes])

    def _search(self, planner: Planner, root: Root, explore: bool) -> _Found:
        legal, noise, none = root.legal, self.explore, [None] * len(root.actions)
        if isinstance(self.search_config, GumbelConfig):
            result = gumbel_search(planner, root, self.search_config, self.rng if explore else None)
            return _Found(result, result.policy, result.action, none)
        if explore:
            probs = roots.add_noise(root.probs, legal, noise.dirichlet_alpha, noise.dirichlet_fraction, self.rng)
            root = replace(root, probs=probs)
        tree = None
        if self.search_config.reuse:
            result, tree = search_tree(planner, root, self.search_config)
        else:
            result = search(planner, root, self.search_config)
        index = roots.choose(result.visits, legal, noise.temperature if explore else 0.0, self.rng, root.probs)
        subtrees = none if tree is None else [subtree(tree, row, int(slot)) for row, slot in enumerate(index)]
        return _Found(result, result.visit_probs, index, subtrees)

    def _mix(self, wm_probs: np.ndarray, priors: Sequence[np.ndarray], legal: np.ndarray) -> np.ndarray:
        llm_probs = np.zeros_like(wm_probs)
        for row, logprobs in zip(llm_probs, priors, strict=True):
            row[: len(logprobs)] = np.exp(logprobs)
        mix = self.root_prior
        done = min(1.0, self.env_steps / mix.anneal_env_steps) if mix.anneal_env_steps else 0.0
        weight = roots.llm_weights(
            llm_probs, legal, start=mix.llm_weight, end=mix.llm_weight_end, done=done, unsure=mix.llm_weight_unsure
        )
        return roots.mix_priors(wm_probs, llm_probs, weight)

    # ------------------------------------------------------------------------------------------------------ arrays

    def learn_actions(self, steps: Sequence[Step]) -> list[np.ndarray]:
        """Add the valid actions of these steps to the vocabulary; gives their ids, an [A] int32 for each step."""
        new = [action for step in steps for action in step.valid_actions if action not in self.vocabulary]
        if new:
            self.encoder.encode(new)  # together, not game by game: the vocabulary finds them in the encoder's cache
        return [self.vocabulary.add(step.game, step.valid_actions) for step in steps]

    def _actions(self, episodes: Sequence[Episode]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the valid actions [B, A], padded with -1, and the actions known in each game [B, U]."""
        ids = self.learn_actions([episode.step for episode in episodes])
        actions = np.full((len(ids), max(map(len, ids))), -1, np.int32)
        for row, some in zip(actions, ids, strict=True):
            row[: len(some)] = some
        return actions, self.known([e.step.game for e in episodes])

    def known(self, games: Sequence[str]) -> np.ndarray:
        """[B, U] bool: the actions of the vocabulary that are known in each of these games."""
        known = np.zeros((len(games), len(self.vocabulary)), bool)
        for row, game in zip(known, games, strict=True):
            row[self.vocabulary.members(game)] = True
        return known

    def _contexts(self, episodes: Sequence[Episode], steps: int) -> Context:
        past = [e.vectors[-(steps - 1) :] if steps > 1 else [] for e in episodes]
        vectors = [[*some, e.vector] for some, e in zip(past, episodes, strict=True)]
        return padded_context(vectors, [e.action_ids for e in episodes], steps)


def padded_context(
    vectors: Sequence[Sequence[np.ndarray]], actions: Sequence[Sequence[int] | np.ndarray], steps: int
) -> Context:
    """The last steps of B episodes, padded at the front.

    Args:
        vectors: of each episode 1 to C observation vectors [O], the current one last.
        actions: of each episode the ids of its actions, the one before the current observation last; those that lie
            before the first of its vectors are left out.
        steps: C.
    """
    context = Context(
        vectors=np.zeros((len(vectors), steps, len(vectors[0][0])), np.float32),
        actions=np.full((len(vectors), steps - 1), -1, np.int32),
        length=np.array([len(some) for some in vectors], np.int64),
    )
    for row, (some, between) in enumerate(zip(vectors, actions, strict=True)):
        n = len(some)
        context.vectors[row, steps - n :] = np.stack(some)
        if n > 1:
            context.actions[row, -(n - 1) :] = between[-(n - 1) :]
    return context
