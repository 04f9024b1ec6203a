"""What a user can get wrong ends in one sentence that says the way out, without a traceback, with exit status 1."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from toy_runs import config, last_words

from priorzero.app import cli
from priorzero.app.evaluate import open_session
from priorzero.app.refusals import ConfigError

JERICHO = ["env=zork1", "llm=none", "prior=none", "mode=world_model", "collector.policy=wm", "evaluation.policies=[wm]",
           "evaluation.final_policies=[wm]"]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([*JERICHO, "env.story_file=nowhere.z5"], "There is no story file 'nowhere.z5'.*Put the story file in games/"),
        (["env=cooking", "+env.options.colour=3"], "colour"),
        (["env=cooking", "+env.colour=3"], "env: .*unexpected keyword argument 'colour'"),
        (["env=cooking", "env.family=chess"], "chess.*cooking"),
        (["llm.source=no-such/model"], "no-such/model.*embedded models"),
        (["encoder.source=no-such/encoder"], "no-such/encoder.*embedded models"),
        (["llm.source=/no/such/folder"], "there is no folder /no/such/folder"),
        (["ckpt_path=nowhere"], "nowhere is no checkpoint: expected a run's folder"),
        (["ckpt_path=last"], "there is no checkpoint below .* yet"),
        (["data.unroll=0"], "data.unroll=0: it must be a whole number, 1 or more"),
        (["prompt.max_tokens=20", "prompt.truncate_observation=false"], "token"),
        (["env.breaks_at=3", "env.lengths=[20]"], "the corridor has collapsed"),
        (["env.breaks_at=3", "env.lengths=[20]", "collector=thread"], "the corridor has collapsed"),
    ],
)
def test_a_sentence_says_what_is_wrong(changes, message, tmp_path: Path, tiny_encoder: Path, caplog):
    found = last_words(config(tmp_path / "run", tiny_encoder, changes), caplog)
    assert re.search(message, found, re.DOTALL), found


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "it is empty"), (b"x" * 30, "30 bytes"), (b"\x05" + b"z" * 999, "not a playable")]
)
def test_story_files_that_are_none(content: bytes, message: str, tmp_path: Path, tiny_encoder: Path, caplog):
    story = tmp_path / "game.z5"
    story.write_bytes(content)
    found = last_words(config(tmp_path / "run", tiny_encoder, [*JERICHO, f"env.story_file={story}"]), caplog)
    assert message in found
    assert str(story) in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu(tmp_path: Path, tiny_encoder: Path, caplog):
    found = last_words(config(tmp_path / "run", tiny_encoder, ["trainer=gpu"]), caplog)
    assert "use trainer=cpu" in found


@pytest.mark.parametrize("name", ["eval", "play"])
def test_what_goes_on_with_a_training_evaluates_none(name: str, tmp_path: Path, tiny_encoder: Path):
    """Else models that never learned would be played."""
    cfg = config(tmp_path / "run", tiny_encoder, ["ckpt_path=some/run"], name)
    with pytest.raises(ConfigError, match=r"ckpt_path goes on with a training.* ckpt=some/run"), open_session(cfg):
        pass


def test_errors_of_ours_keep_their_traceback(tmp_path: Path):
    def broken(cfg):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        cli._run(broken, None)


def test_ctrl_c_is_no_error(caplog):
    def interrupted(cfg):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        cli._run(interrupted, None)
    assert ended.value.code == 130
    assert "interrupted" in caplog.text
