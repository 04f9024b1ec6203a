"""Every choice of the groups advantage, policy_loss and reward makes a working object."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from priorzero.rl.grading import Grader, RewardError
from priorzero.rl.token_advantages import AdvantageInputs
from priorzero.rl.token_loss import LossInputs
from priorzero.types import Answer, Message, PromptRow

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def read(group: str, choice: str) -> DictConfig:
    """One choice, with what it starts from; without the rest of the configuration."""
    config = OmegaConf.load(CONFIGS / group / f"{choice}.yaml")
    assert isinstance(config, DictConfig)
    bases = [name for name in config.pop("defaults", []) if name != "_self_"]
    merged = OmegaConf.merge(*(read(group, base) for base in bases), config)
    assert isinstance(merged, DictConfig)
    return merged


@pytest.mark.parametrize("choice", choices("advantage"))
def test_advantages(choice):
    mask = torch.tensor([[True, False, True]] * 4)
    numbers = torch.arange(4)
    inputs = AdvantageInputs(
        rewards=torch.tensor([[0.0, 0.0, r] for r in (0.0, 1.0, 2.0, 0.0)]),
        mask=mask,
        group=numbers // 2,
        values=torch.zeros(4, 3),
        turn_ends=mask,
        baseline=torch.zeros(4),
        episode=numbers,
        step=numbers,
        state=numbers // 2,
    )
    result = instantiate(read("advantage", choice))(inputs)
    assert result.advantages[mask].any()
    assert not result.advantages[~mask].any()
    assert (result.returns is not None) == ("gae" in choice)


@pytest.mark.parametrize("choice", choices("policy_loss"))
def test_policy_losses(choice):
    zeros, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    loss = instantiate(read("policy_loss", choice))
    batch = LossInputs(logprobs=zeros - 1.0, old_logprobs=zeros - 1.0, advantages=zeros + 1.0, mask=mask)
    assert torch.isfinite(loss(batch).loss).all()


def marks(chats):
    return ["Score: 5" if "<answer>go</answer>" in chat[-1].content else "Score: 0" for chat in chats]


def grader(choice: str, tmp_path: Path) -> Grader:
    config = read("reward", choice)
    rewards = config.rewards
    if choice == "custom":
        (tmp_path / "mine.py").write_text("def mine(answers):\n    return [0.0] * len(answers)\n")
        rewards.custom.update({"path": str(tmp_path / "mine.py"), "name": "mine"})
    given = {
        "score_delta": {"score_delta": {"play": lambda rows, actions: [2.0] * len(rows)}},
        "judge": {"judge": {"generate": marks}},
    }.get(choice, {})
    whole = OmegaConf.create({"prompt": {"format": "think_answer"}, "reward": config})
    return instantiate(whole.reward, rewards=given) if given else instantiate(whole.reward)


TOTALS = {"game": 1.2, "fuzzy": 1.7, "search_value": 1.7, "progress": 3.2, "score_delta": 2.2, "judge": 1.7}


@pytest.mark.parametrize("choice", [name for name in choices("reward") if name != "qa"])
def test_rewards_of_games(choice, tmp_path):
    extra = {"action_values": {"go": 2.0, "wait": 1.0}, "potential": 1.0, "next_potentials": {"go": 3.0, "wait": 1.0}}
    row = PromptRow((Message("user", "?"),), "go", ("go", "wait"), "game", extra=extra)
    good = Answer(row, "<think>so</think><answer>go</answer>", "go", "stop")
    bad = Answer(row, "fly", None, "stop")
    grades = grader(choice, tmp_path)([good, bad])
    assert grades.totals.tolist() == pytest.approx([TOTALS.get(choice, 1.2), -0.5])


def test_rewards_of_questions(tmp_path):
    row = PromptRow((Message("user", "?"),), "42", data_source="qa")
    assert grader("qa", tmp_path)([Answer(row, "<answer>42</answer>", None, "stop")]).totals.tolist() == [1.0]
    with pytest.raises(RewardError, match="data source 'qa'"):
        grader("game", tmp_path)([Answer(row, "", None, "stop")])


def test_every_shipped_reward_is_covered():
    assert set(TOTALS) | {"qa", "custom"} == set(choices("reward"))
