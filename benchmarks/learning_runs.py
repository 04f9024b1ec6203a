"""The runs of the learning proof: what each is called, how it is started and measured, and where it lies."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CORES = 2  # of a run


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
URL = "tool.search.url={url}"
RUNS = {
    "coin_grpo": Training("coin collector, GRPO", ("experiment=answers_grpo", "prompt.history_steps=1"), COIN),
    "coin_ppo": Training("coin collector, PPO", ("experiment=answers_ppo", "prompt.history_steps=1"), COIN),
    "search": Training("questions, with search", ("experiment=search_agent", URL), QUESTIONS),
    "search_none": Training("questions, no search", ("experiment=search_agent", "agent=plain", "tool=none"), PLAIN),
    "search_unmasked": Training(
        "questions, search, trained on its results",
        ("experiment=search_agent", URL, "experience.mask_given=false"),
        QUESTIONS,
    ),
}
PANELS = {"coin collector": ("coin_grpo", "coin_ppo"), "questions": ("search", "search_none", "search_unmasked")}
ALWAYS = (
    *("evaluation.at_start=false", "evaluation.every_n_rounds=1000000", "evaluation.final_episodes=0"),
    "collector.num_envs=1",  # nobody plays
    *("trainer.max_rounds=100000", "trainer.checkpoint_every_n_rounds=10", f"trainer.threads={CORES}", "logger=csv"),
)


@dataclass(frozen=True)
class Job:
    """One run of one seed."""

    name: str
    seed: int
    out: Path

    @property
    def training(self) -> Training:
        return RUNS[self.name]

    @property
    def folder(self) -> Path:
        return self.out / self.name / str(self.seed)

    @property
    def parts(self) -> list[Path]:
        """The folders of the times that it was started, in order."""
        return sorted(self.folder.glob("part_*"))

    @property
    def saved(self) -> Path | None:
        """The last part that has a checkpoint."""
        return next((p for p in reversed(self.parts) if any(p.glob("checkpoints/[0-9]*[0-9]/run.pt"))), None)

    @property
    def seconds(self) -> float:
        """How long it has trained so far."""
        return sum(float(file.read_text()) for part in self.parts for file in part.glob("seconds.txt"))

    def train(self, part: Path, places: Places, more: Sequence[str]) -> list[str]:
        """The command that trains from the last checkpoint on, if there is one."""
        overrides = [override.format(url=places.url) for override in self.training.overrides]
        prompts = f"experience.prompt_file={places.data / self.training.prompts.format(part='train')}"
        resume = [f"ckpt_path={self.saved}"] if self.saved else []
        where = [f"hydra.run.dir={part}", f"seed={self.seed}"]
        return [sys.executable, "train.py", *overrides, prompts, *ALWAYS, *where, *resume, *more]

    def measure(self, part: Path, places: Places, untrained: bool) -> list[str]:
        """The command that asks the model what it was not trained on."""
        prompts = places.data / self.training.prompts.format(part="heldout")
        words = [sys.executable, "-m", "benchmarks.prompt_score", str(part), "--prompts", str(prompts)]
        words += ["--out", str(self.measured(untrained)), *["--untrained"] * untrained]
        return [*words, *(override.format(url=places.url) for override in self.training.overrides if override == URL)]

    def measured(self, untrained: bool) -> Path:
        """Where the result of that is written."""
        return self.folder / ("heldout_untrained.json" if untrained else "heldout.json")
