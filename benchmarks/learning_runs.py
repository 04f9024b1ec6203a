"""The runs of the learning proof: what each is called, how it is started and measured, and where it lies."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.slices import CORES, Job


@dataclass(frozen=True)
class Training:
    """What is trained, and on what."""

    title: str
    overrides: tuple[str, ...]
    prompts: str  # file of the data folder; {part} is train or heldout


@dataclass(frozen=True)
class Places:
    """What the runs use together."""

    data: Path
    url: str  # of the search service


COIN = "coin/{part}.jsonl"
QUESTIONS, PLAIN = "questions/{part}.jsonl", "questions/{part}_plain.jsonl"
SMALL = "coin3/{part}.jsonl"  # short prompts, for two cores
SMALL_ROUNDS = ("experience.prompts=4", "rollout.sampling.max_tokens=10")
URL = "tool.search.url={url}"
RUNS = {
    "coin_grpo": Training("coin collector, GRPO", ("experiment=answers_grpo", "prompt.history_steps=1"), COIN),
    "coin_ppo": Training("coin collector, PPO", ("experiment=answers_ppo", "prompt.history_steps=1"), COIN),
    "coin3_grpo": Training("three rooms on two cores, GRPO", ("experiment=answers_grpo", *SMALL_ROUNDS), SMALL),
    "coin3_ppo": Training(
        "three rooms on two cores, PPO", ("experiment=answers_ppo", *SMALL_ROUNDS, "policy_optim.lr=5e-4"), SMALL
    ),
    "search": Training("questions, with search", ("experiment=search_agent", URL), QUESTIONS),
    "search_none": Training("questions, no search", ("experiment=search_agent", "agent=plain", "tool=none"), PLAIN),
    "search_unmasked": Training(
        "questions, search, trained on its results",
        ("experiment=search_agent", URL, "experience.mask_given=false"),
        QUESTIONS,
    ),
}
PANELS = {
    "coin collector": ("coin_grpo", "coin_ppo"),
    "three rooms on two cores": ("coin3_grpo", "coin3_ppo"),
    "questions": ("search", "search_none", "search_unmasked"),
}
ALWAYS = (
    *("evaluation.at_start=false", "evaluation.every_n_rounds=1000000", "evaluation.final_episodes=0"),
    "collector.num_envs=1",  # nobody plays
    *("trainer.max_rounds=100000", "trainer.checkpoint_every_n_rounds=10", f"trainer.threads={CORES}", "logger=csv"),
)


@dataclass(frozen=True)
class Proof(Job):
    """One run of one seed; ``places`` only where it is started or measured."""

    places: Places | None = None

    @property
    def training(self) -> Training:
        return RUNS[self.name]

    def train(self, part: Path, more: Sequence[str]) -> list[str]:
        """See `Job`."""
        overrides = [override.format(url=self._places.url) for override in self.training.overrides]
        prompts = f"experience.prompt_file={self._prompts('train')}"
        where = [f"hydra.run.dir={part}", f"seed={self.seed}"]
        return [sys.executable, "train.py", *overrides, prompts, *ALWAYS, *where, *self.resume, *more]

    def measurements(self, saved: Path) -> dict[Path, list[str]]:
        """Ask the model what it was not trained on, before and after."""
        return {self.measured(untrained): self._ask(saved, untrained) for untrained in (True, False)}

    def measured(self, untrained: bool) -> Path:
        """Where the result of that is written."""
        return self.folder / ("heldout_untrained.json" if untrained else "heldout.json")

    @property
    def outdated(self) -> list[Path]:
        return [self.measured(untrained=False)]

    def _ask(self, saved: Path, untrained: bool) -> list[str]:
        words = [
            sys.executable,
            "-m",
            "benchmarks.prompt_score",
            str(saved),
            "--prompts",
            str(self._prompts("heldout")),
        ]
        words += ["--out", str(self.measured(untrained)), *["--untrained"] * untrained]
        return [*words, *(o.format(url=self._places.url) for o in self.training.overrides if o == URL)]

    def _prompts(self, part: str) -> Path:
        return self._places.data / self.training.prompts.format(part=part)

    @property
    def _places(self) -> Places:
        if self.places is None:
            raise ValueError(f"{self.name}: a run that is started or measured needs its places")
        return self.places
