import subprocess
import sys
from pathlib import Path

import pytest
from fake_games import FakeGame, FakeSpec
from gymnasium.utils.env_checker import check_env

import priorzero
from priorzero.envs.base import EnvError, GameSpec, check_common, tidy
from priorzero.envs.jericho import JerichoSpec
from priorzero.envs.textworld import TextWorldSpec


def test_tidy_keeps_the_shape_of_a_text():
    assert tidy("\n\nRoom  \nIt is dark.\n\n\n\nA lamp.\n > ") == "Room\nIt is dark.\n\nA lamp.\n >"


def test_common_options_are_checked():
    assert check_common(["inventory", "feedback"], 1) == ("feedback", "inventory")
    for observe, steps in ((["smell"], 1), ([], 1), (["look"], 0)):
        with pytest.raises(EnvError, match="not valid"):
            check_common(observe, steps)


def test_reward_is_the_score_delta_and_fallback_actions_are_counted():
    game = FakeGame(FakeSpec())
    game.reset(seed=1)
    _, reward, terminated, truncated, info = game.step("up")
    assert (reward, terminated, truncated, info["score"], info["valid_actions"]) == (1, False, False, 1, ["up", "win"])
    _, reward, _, _, info = game.step("up")
    assert (reward, info["valid_actions"], info["empty_valid_actions"]) == (1, ["look", "wait"], 1)


def test_end_is_latched():
    game = FakeGame(FakeSpec())
    with pytest.raises(EnvError, match="has not begun: call reset"):
        game.step("up")
    game.reset()
    _, _, terminated, truncated, info = game.step("win")
    assert (terminated, truncated, info["valid_actions"]) == (True, False, [])
    with pytest.raises(EnvError, match="is over: call reset"):
        game.step("up")
    game.reset()
    assert game.step("up")[1] == 1


def test_step_limit_truncates_and_termination_wins():
    game = FakeGame(FakeSpec(max_steps=2))
    game.reset()
    assert game.step("wait")[2:4] == (False, False)
    assert game.step("wait")[2:4] == (False, True)
    game.reset()
    game.step("wait")
    assert game.step("win")[2:4] == (True, False)


def test_refused_action_costs_a_step_and_changes_nothing():
    game = FakeGame(FakeSpec(max_steps=1))
    game.reset()
    observation, reward, terminated, truncated, info = game.step("save")
    assert observation[0].startswith("[priorzero: the action 'save' is not allowed")
    assert observation[1].startswith("process")  # the other parts stay
    assert (reward, terminated, truncated, info["score"], info["steps"]) == (0, False, True, 0, 1)


@pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")
def test_gymnasium_accepts_the_interface():
    game = FakeGame(FakeSpec())
    game._begin = lambda seed: type(game)._begin(game, 1)  # its text names the seed, which the checker compares
    check_env(game, skip_render_check=True)


def test_specs_follow_the_protocol():
    specs = FakeSpec(), JerichoSpec("zork1.z5", 9), TextWorldSpec("simple", (), 1, 9, "cache")
    assert all(isinstance(spec, GameSpec) for spec in specs)


def test_worker_modules_import_neither_torch_nor_the_games():
    code = (
        "import sys, priorzero.envs.worker, priorzero.envs.jericho, priorzero.envs.textworld;"
        "sys.exit(', '.join({'torch', 'jericho', 'textworld', 'spacy'} & set(sys.modules)) or 0)"
    )
    environment = {"PYTHONPATH": str(Path(priorzero.__path__[0]).parent)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", env=environment)
    assert (run.returncode, run.stderr) == (0, "")
