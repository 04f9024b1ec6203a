"""From prompts to experience, with answers of fixed texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dialogues import Echo
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from scripted import ScriptedGenerator
from toy_runs import config

from priorzero.app.build import Run, build_run
from priorzero.app.given import for_tool
from priorzero.app.models import load_copy
from priorzero.app.refusals import ConfigError, refusing
from priorzero.app.tokens import Rollouts, build_prompt_source, build_token_stream, counts
from priorzero.data.prompts import write_prompts
from priorzero.policy.experience import NoExperienceError
from priorzero.policy.load import LanguageModel
from priorzero.rollout.agent import AgentLoop
from priorzero.rollout.tools import ImagineTool
from priorzero.rollout.web import ToolError
from priorzero.text.chat import row_tokens
from priorzero.types import Dialogue, Message, PromptRow, TokenBatch

END = "<|im_end|>"
GAME = PromptRow(
    (Message("user", "Where to?"),), answer="go east", valid_actions=("go east", "wait"), data_source="game",
    group_id="0", answer_prefix="Action:",
)  # fmt: skip
QA = PromptRow((Message("user", "Who?"),), answer="Ann", data_source="qa", group_id="1")
TURNS = {"agent.loop.max_turns": 2, "agent.loop.max_faults": 0, "agent.loop.instructions": False}


def estimator(name: str, **constants: object) -> dict[str, object]:
    estimate = {"_target_": f"priorzero.rl.group_advantages.{name}", "_partial_": True, **constants}
    return {"_target_": "priorzero.rl.token_advantages.AdvantageEstimator", "whiten": False, "estimate": estimate}


REINFORCE = {"advantage": estimator("reinforce_pp", gamma=1.0)}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_encoder) -> Iterator[Run]:
    run = build_run(config(tmp_path_factory.mktemp("run"), tiny_encoder, ["objective=grpo", "reward=search_value"]))
    yield run
    run.close()


@pytest.fixture(scope="module")
def language_model(run: Run) -> LanguageModel:
    return load_copy(run.cfg)


def changed(run: Run, folder: Path, changes: dict[str, object]) -> Run:
    cfg = run.cfg.copy()
    with open_dict(cfg):
        for name, value in changes.items():
            OmegaConf.update(cfg, name, value, merge=False)
    folder.mkdir(exist_ok=True)
    return replace(run, cfg=cfg, folder=folder)


@pytest.fixture
def writing(run: Run, language_model: LanguageModel, tmp_path: Path) -> Callable[..., Rollouts]:
    """Rollouts whose generator writes the given texts, with other tools where some are given."""

    def make(*texts: str, tools=(), **changes: object) -> Rollouts:
        own = changed(run, tmp_path, {"reward.sources": {"game": {"exact": 1.0, "valid": 1.0}}, **changes})
        rollouts = Rollouts(own, run.learners["policy"].module, language_model)
        generator = ScriptedGenerator(language_model.tokenizer, *texts)
        rollouts.generator = rollouts.loop.generator = generator
        rollouts._version = rollouts.module.global_step  # nothing to sync
        if tools:
            loop = rollouts.loop
            calls = instantiate(own.cfg.agent.calls, timeout=5.0, attempts=1)
            rollouts.loop = AgentLoop(generator, loop.tokenizer, tools, loop.config, calls)
        return rollouts

    return make


def told(rollouts: Rollouts) -> dict[str, float]:
    return rollouts.module.told


def written(rollouts: Rollouts) -> list[dict]:
    return [json.loads(line) for line in (Path(rollouts.run.folder) / "generations.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------- from play, whole


def test_a_round_of_prompts_from_play(run: Run):
    run.collector.play(20)
    stream = run.learners["policy"].data.stream
    batch = next(stream)
    assert isinstance(batch, TokenBatch)
    assert batch.tokens == int(batch.mask.sum()) > 0
    module = run.learners["policy"].module
    assert {"rollout/probe_difference_mean", "reward/search_value", "rollout/turns", "rollout/trained"} <= set(
        module.told
    )
    assert module.told["rollout/probe_difference_mean"] < 1e-4
    assert module.told["reward/search_value_unscorable"] == 0
    records = [json.loads(line) for line in (run.folder / "generations.jsonl").read_text().splitlines()]
    assert len(records) == 4
    assert stream.state_dict()["source"]["taken"] == 2


def test_what_is_known_of_a_played_prompt(run: Run, language_model: LanguageModel):
    """Its scene, and what the world model thinks of each valid action: reward + gamma value."""
    run.collector.play(4)
    rows = build_prompt_source(run, language_model.tokenizer)[0].take(3)
    tool = instantiate(OmegaConf.create({"_target_": "priorzero.rollout.tools.ImagineTool", "_partial_": True,
                                         "shown_actions": 3, "batch": 64}), **for_tool(run, _imagine()))  # fmt: skip
    assert isinstance(tool, ImagineTool)
    for row in rows:
        assert set(row.extra["action_values"]) == set(row.valid_actions)
        imagined = tool.imagine([row] * len(row.valid_actions), row.valid_actions)
        for action, found in zip(row.valid_actions, imagined, strict=True):
            expected = found.reward + run.cfg.gamma * found.value
            assert row.extra["action_values"][action] == pytest.approx(expected, abs=1e-5)


def _imagine() -> DictConfig:
    return OmegaConf.create({"_target_": "priorzero.rollout.tools.ImagineTool"})


def test_the_model_asks_the_world_model(run: Run, language_model: LanguageModel, writing):
    row = build_prompt_source(run, language_model.tokenizer)[0].take(1)[0]
    action = row.valid_actions[0]
    node = {"_target_": "priorzero.rollout.tools.ImagineTool", "_partial_": True, "shown_actions": 3, "batch": 64}
    answers = ["<answer>a</answer>", "<answer>b</answer>"]
    rollouts = writing(*[f"<imagine>{action}</imagine>"] * 2, *answers, tool={"imagine": node}, **TURNS)
    made = rollouts.make([row])
    assert told(rollouts)["rollout/tool_calls"] == 1
    text = language_model.tokenizer.decode(list(made.answers[0]))
    assert f"<information>{action}: expected reward" in text
    assert not made.mask.all(), "what the tool said is not trained on"


# -------------------------------------------------------------------------------------------------- rewards and groups


def test_answers_are_judged_and_compared(writing):
    made = (rollouts := writing(f" go east{END}", f" fly{END}", f" wait{END}", f" go east{END}")).make(
        [GAME, replace(GAME, group_id="1")]
    )
    # exact 1 and valid 0.1, or valid alone, or nothing; (s - mean) / (std + 1e-6) of a group of two is +-1 / sqrt(2)
    half = 0.5**0.5
    np.testing.assert_allclose(made.advantages[:, 0], [half, -half, -half, half], atol=1e-4)
    found = told(rollouts)
    assert found["reward/total"] == pytest.approx((1.1 + 0 + 0.1 + 1.1) / 4)
    assert found["reward/exact"] == 0.5
    assert (found["rollout/turns"], found["rollout/invalid_samples"], found["reward/unscorable"]) == (1, 0, 0)
    first, second = written(rollouts)[:2]
    assert first["answer"] == f"Action: go east{END}"
    assert (first["right"], first["finish"], first["update"]) == ("go east", "stop", 0)
    assert first["reward"] == pytest.approx(1.1)
    assert first["parts"]["valid"] == pytest.approx(0.1)
    assert second["reward"] == 0


def test_the_file_of_answers_holds_as_many_as_asked(writing):
    rollouts = writing(*[f" go east{END}", f" wait{END}"] * 2, **{"experience.logged_answers": 2})
    rollouts.make([GAME, replace(GAME, group_id="1")])
    assert [record["answer"] for record in written(rollouts)] == [f"Action: go east{END}", f"Action: wait{END}"]


def test_every_round_has_random_numbers_of_its_own(writing):
    """They follow from the run's seed and the prompts that were taken before: a resumed run draws the same."""

    def seeds(first_group: int, **changes: object) -> list[int]:
        texts = [f" go east{END}", f" wait{END}"]
        rollouts = writing(*texts, **changes)
        rollouts.make([replace(GAME, group_id=str(first_group))])
        return [sampling.seed for _, sampling, _ in rollouts.generator.asked]

    assert seeds(0) == seeds(0)
    assert len({*seeds(0), *seeds(1), *seeds(0, seed=1)}) == 3


def test_what_no_reward_can_judge_is_masked_and_counted(writing):
    unknown = replace(GAME, answer="", group_id="1")
    rollouts = writing(f" go east{END}", f" wait{END}", f" go east{END}", f" wait{END}")
    made = rollouts.make([GAME, unknown])
    assert made.mask.any(-1).tolist() == [True, True, False, False]
    found = told(rollouts)
    assert (found["reward/unscorable"], found["reward/exact_unscorable"], found["rollout/masked_samples"]) == (2, 2, 2)


def test_a_round_for_nothing_leaves_its_answers_to_look_at(writing):
    rollouts = writing(f" go east{END}", f" wait{END}")
    with pytest.raises(NoExperienceError, match=r"2 could not be scored\): look at generations\.jsonl"):
        rollouts.make([replace(GAME, answer="")])
    assert len(written(rollouts)) == 2


def test_an_answer_never_closed(writing):
    """It goes on to its last turn, gets what the rewards give for it, and is counted."""
    rollouts = writing(
        *["<answer>go east"] * 6, tools=[Echo()], **TURNS, **REINFORCE, **{"agent.loop.invalid_reward": -0.5}
    )
    made = rollouts.make([replace(GAME, answer_prefix="")])
    found = told(rollouts)
    assert (found["rollout/unanswered"], found["rollout/invalid_turns"], found["rollout/turns"]) == (1, 3, 3)
    assert found["rollout/masked_samples"] == 0
    assert made.advantages[0, 0] == pytest.approx(-1.5)


class Broken(Echo):
    """Fails when it is asked "down"."""

    def answer(self, query):
        if query == "down":
            raise ToolError("the index is gone")
        return super().answer(query)


def test_a_tool_that_fails_masks_the_sample_and_is_counted(writing):
    texts = ["<search>down</search>", "<answer>x</answer>", "<answer>y</answer>"]
    rollouts = writing(*texts, tools=[Broken()], **TURNS, **{"rollout.samples_per_prompt": 3})
    made = rollouts.make([GAME])
    assert made.mask.any(-1).tolist() == [False, True, True]
    found = told(rollouts)
    assert (found["rollout/invalid_samples"], found["rollout/masked_samples"]) == (1, 1)
    assert found["rollout/tool_faults"] == pytest.approx(1 / 3)


# ------------------------------------------------------------------------------------------------- greedy baseline


REMAX = {"advantage": estimator("remax"), "experience.greedy_baseline": True}


def test_greedy_answers_are_the_baseline(writing):
    """They are drawn like the others, but for the temperature."""
    rollouts = writing(f" go east{END}", f" fly{END}", f" wait{END}", **REMAX)
    made = rollouts.make([GAME])
    np.testing.assert_allclose(made.advantages[:, 0], [1.1 - 0.1, 0 - 0.1], atol=1e-6)
    asked = rollouts.generator.asked
    assert [(sampling.temperature, samples) for _, sampling, samples in asked] == [(1.0, 2), (0.0, 1)]


def test_a_baseline_holds_what_its_turns_were_paid(writing):
    """0.25 for the search of the greedy answer, as for that of the others; scores are cut to the limit."""
    rollouts = writing(
        "<search>a</search>", "<answer>x</answer>", "<answer>x</answer>", "<search>a</search>", "<answer>x</answer>",
        tools=[Echo()], **TURNS, **REMAX,
    )  # fmt: skip
    made = rollouts.make([GAME])
    np.testing.assert_allclose(made.advantages[:, 0], [0.0, -0.25], atol=1e-6)


def test_a_greedy_answer_that_failed_is_no_baseline(writing):
    """It is no score of 0: the samples of its prompt are masked, those of the other prompt are not."""
    answers = ["<answer>x</answer>"] * 4
    rollouts = writing(*answers, "<search>down</search>", "<answer>x</answer>", tools=[Broken()], **TURNS, **REMAX)
    made = rollouts.make([GAME, replace(GAME, group_id="1")])
    assert made.mask.any(-1).tolist() == [False, False, True, True]
    assert told(rollouts)["rollout/masked_samples"] == 2


# ----------------------------------------------------------------------------------------------------------- steps


def test_steps_of_a_dialogue(writing):
    gigpo = estimator("gigpo", gamma=0.5, step_weight=0.0, scale=False, over_steps=False)
    texts = ["<search>a</search>", "<answer>x</answer>", f"Action: go east{END}"]
    changes = {**TURNS, "agent.loop.mode": "step", "advantage": gigpo, "agent.loop.max_turns": 1}
    rollouts = writing(*texts, tools=[Echo()], **changes)
    made = rollouts.make([replace(GAME, answer_prefix="")])
    # the first dialogue is two samples, paid 0.25 for its search and 1.1 for the right action; the second is one
    np.testing.assert_allclose(made.advantages[:, 0], [1.35 / 2] * 2 + [-1.35 / 2], atol=1e-6)
    found = told(rollouts)
    assert found["rollout/turns"] == 1.5, "a mean over dialogues, not over samples"
    assert len(written(rollouts)) == 2


def test_counts_are_means_of_dialogues():
    def one(valid=True, **counted):
        none = np.zeros(0)
        return Dialogue(GAME, (), none, none, (), (), "", "stop", counted, valid)

    assert counts([[one(turns=3.0), one(), one()], [one(False, turns=1.0, tool_faults=1.0)]]) == {
        "rollout/turns": 2.0,
        "rollout/tool_faults": 0.5,
        "rollout/invalid_samples": 1.0,
    }
    assert counts([]) == {"rollout/invalid_samples": 0.0}


# --------------------------------------------------------------------------------------------------- what is given


def test_a_judge_asks_the_writer_itself(writing):
    judge = {"_target_": "priorzero.rl.asked_rewards.Judge", "value": 1.0, "best": 10, "generate": "???",
             "template": "Mark {answer}"}  # fmt: skip
    changes = {"reward.rewards.judge": judge, "reward.sources": {"game": {"judge": 1.0}}}
    rollouts = writing(f" go east{END}", f" wait{END}", f"Score: 8{END}", "no idea", **changes)
    with pytest.raises(NoExperienceError, match="several samples of a prompt"):  # one of two is left
        rollouts.make([GAME])
    assert len(rollouts.generator.asked) == 2
    prompts, sampling, samples = rollouts.generator.asked[1]
    assert (len(prompts), sampling.temperature, samples) == (2, 0.0, 1)
    assert "Mark Action: go east" in rollouts.tokenizer.decode(prompts[0])
    assert [record["reward"] for record in written(rollouts)] == [pytest.approx(0.8), 0.0]


@pytest.mark.parametrize(
    ("rows", "sources", "message"),
    [
        ([QA], {"game": {"exact": 1.0}}, r"do not fit the rewards: .*no rewards for \['qa'\]"),
        ([QA, GAME], {"game": {"exact": 1.0}}, r"no rewards for \['qa'\]"),
        ([GAME], {"game": {"exact": 1.0}, "qa": {"exact": 1.0}}, r"reward\.sources\.qa gives weight to rewards of"),
        ([replace(QA, data_source="")], {"game": {"exact": 1.0}}, "set the data_source of the prompts that have none"),
    ],
)
def test_prompts_and_rewards_that_do_not_fit(rows, sources, message, run, language_model, tmp_path):
    write_prompts(tmp_path / "rows.jsonl", rows)
    own = changed(run, tmp_path, {"experience.prompt_file": str(tmp_path / "rows.jsonl"), "reward.sources": sources})
    with pytest.raises(ConfigError, match=message), refusing():
        build_token_stream(own, run.learners["policy"].module, language_model)


def test_actions_that_would_not_be_found(run, language_model, tmp_path):
    write_prompts(tmp_path / "rows.jsonl", [QA, GAME])
    changes = {"experience.prompt_file": str(tmp_path / "rows.jsonl"), "agent.loop.max_turns": 1}
    message = r"max_turns=1 ends a dialogue at </answer>, and prompt\.format=plain .*use prompt=think_answer"
    with pytest.raises(ValueError, match=message):
        build_prompt_source(changed(run, tmp_path, changes), language_model.tokenizer)
    for fine in ({"prompt.format": "think_answer"}, {"agent.loop.max_turns": 0}):
        build_prompt_source(changed(run, tmp_path, changes | fine), language_model.tokenizer)


@pytest.mark.parametrize(("spare", "tools"), [(0, False), (-1, False), (0, True), (-1, True)])
def test_the_longest_prompt_leaves_room_for_a_turn(spare, tools, run, language_model, writing, tmp_path):
    rows = [replace(GAME, messages=(Message("user", "Where to? " * n),)) for n in (1, 30, 5)]
    write_prompts(tmp_path / "rows.jsonl", rows)
    loop = writing(**TURNS | {"agent.loop.instructions": True} if tools else {}).loop
    needed = len(row_tokens(language_model.tokenizer, loop.instructed(rows[1]))) + 16 + spare
    changes = {"experience.prompt_file": str(tmp_path / "rows.jsonl"), "agent.loop.max_tokens": needed}
    changes |= {"reward.sources": {"game": {"exact": 1.0}}, "agent.loop.max_turns": 2 if tools else 0}
    changes["prompt.format"] = "think_answer"
    own = changed(run, tmp_path, changes)
    if spare < 0:
        with pytest.raises(ConfigError, match=rf"longest prompt of {needed - 15} tokens .* do not fit"), refusing():
            build_token_stream(own, run.learners["policy"].module, language_model)
    else:
        build_token_stream(own, run.learners["policy"].module, language_model)


def test_a_search_service_that_is_down_is_noticed_before_the_first_round(writing):
    search = {"_target_": "priorzero.rollout.tools.SearchTool", "url": "http://127.0.0.1:1/retrieve", "topk": 1,
              "timeout": 5.0, "max_bytes": 1000, "max_query_chars": 100, "batch": 1}  # fmt: skip
    with pytest.raises(ToolError, match=r"127\.0\.0\.1:1/retrieve cannot be reached .*: is the service up\?"):
        writing(tool={"search": search}, **TURNS)
