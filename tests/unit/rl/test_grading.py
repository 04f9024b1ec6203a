import math
from pathlib import Path

import numpy as np
import pytest

from priorzero.rl.grading import Grader, RewardError, load_reward
from priorzero.types import Answer, Message, PromptRow


def answer(source: str = "game", text: str = "hello") -> Answer:
    return Answer(PromptRow(messages=(Message("user", "?"),), data_source=source), text, None, "stop")


def length(answers):
    return [float(len(a.text)) for a in answers]


def short(answers):
    return [None if not a.text else len(a.text) < 3 for a in answers]


def test_weighted_sums_a_data_source():
    calls = []

    def counted(answers):
        calls.append(len(answers))
        return length(answers)

    grader = Grader(
        {"length": counted, "short": short}, {"game": {"length": 0.5, "short": -1.0}, "qa": {"length": 2.0}}
    )
    grades = grader([answer(text="ab"), answer("qa", "abc"), answer(text="abcd"), answer("qa", "")])
    assert grades.totals.tolist() == [0.0, 6.0, 2.0, 0.0]
    assert grades.scored.all()
    assert grades.parts["length"].tolist() == [2.0, 3.0, 4.0, 0.0]
    np.testing.assert_array_equal(grades.parts["short"], [1.0, np.nan, 0.0, np.nan])
    assert calls == [4]  # one call for both sources
    assert grades.metrics() == {
        "total": 2.0,
        "length": 2.25,
        "short": 0.5,
        "length_unscorable": 0.0,
        "short_unscorable": 0.0,
        "unscorable": 0.0,
    }


def test_what_cannot_be_judged_is_masked_and_counted():
    grades = Grader({"short": short, "length": length}, {"game": {"short": 1.0, "length": 1.0}})(
        [answer(text=""), answer(text="abcd")]
    )
    assert grades.scored.tolist() == [False, True]
    assert grades.totals.tolist() == [0.0, 4.0]
    assert grades.unscorable == {"short": 1, "length": 0}
    metrics = grades.metrics()
    assert (metrics["total"], metrics["unscorable"], metrics["short_unscorable"]) == (4.0, 1.0, 1.0)


def test_a_reward_of_weight_zero_is_only_logged():
    grades = Grader({"short": short, "length": length}, {"game": {"short": 0.0, "length": 1.0}})([answer(text="")])
    assert grades.scored.tolist() == [True]
    assert grades.totals.tolist() == [0.0]
    assert grades.unscorable["short"] == 1


def test_nothing_to_grade_and_nothing_that_can_be():
    grader = Grader({"short": short}, {"game": {"short": 1.0}})
    assert len(grader([]).totals) == 0
    assert grader([answer(text="")]).metrics() == {"short_unscorable": 1.0, "unscorable": 1.0}


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda answers: [math.nan] * len(answers), r"reward 'mine' returned nan .* source 'game' \('hello'\)"),
        (lambda answers: [math.inf] * len(answers), "returned inf"),
        (lambda answers: ["1"] * len(answers), "returned '1'"),
        (lambda answers: [1.0], "returned 1 scores for 2 answers"),
    ],
)
def test_a_reward_that_returns_no_score(reward, message):
    with pytest.raises(RewardError, match=message):
        Grader({"mine": reward}, {"game": {"mine": 1.0}})([answer(), answer()])


def test_a_reward_that_raises_is_named():
    def broken(answers):
        raise KeyError("oops")

    with pytest.raises(KeyError) as info:
        Grader({"mine": broken}, {"game": {"mine": 1.0}})([answer()])
    assert "reward 'mine'" in info.value.__notes__[0]


def test_a_data_source_without_a_reward():
    grader = Grader({"short": short}, {"game": {"short": 1.0}, "qa": {"short": 1.0}})
    with pytest.raises(RewardError, match=r"no reward for data source 'chess'.*which has game, qa"):
        grader([answer("chess")])


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"game": {"shrot": 1.0}}, "uses reward 'shrot', which is not defined.*short"),
        ({"game": {}}, "data source 'game' has no reward"),
        ({"game": {"short": "much"}}, "weight of reward 'short'"),
        ({"game": {"short": math.nan}}, "weight of reward 'short'"),
    ],
)
def test_a_configuration_that_cannot_work(sources, message):
    with pytest.raises(RewardError, match=message):
        Grader({"short": short}, sources)


MINE = """
import math
SCALE = 3.0
def scaled(answers, scale=SCALE):
    return [scale * len(a.text) for a in answers]
"""


def test_a_reward_of_the_user(tmp_path: Path):
    (tmp_path / "my_rewards.py").write_text(MINE)
    path = str(tmp_path / "my_rewards.py")
    assert load_reward(path, "scaled")([answer(text="ab")]) == [6.0]
    assert load_reward(path, "scaled", {"scale": 0.5})([answer(text="ab")]) == [1.0]
    with pytest.raises(RewardError, match=r"has no function 'scled'; it has scaled"):
        load_reward(path, "scled")
    with pytest.raises(RewardError, match="has no function 'SCALE'"):
        load_reward(path, "SCALE")
    with pytest.raises(RewardError, match=r"cannot be called with .*unexpected keyword argument 'sacle'"):
        load_reward(path, "scaled", {"sacle": 1.0})


def test_a_reward_file_that_is_not_there_or_broken(tmp_path: Path):
    with pytest.raises(RewardError, match="there is no reward file"):
        load_reward(str(tmp_path / "none.py"), "f")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(RewardError, match=r"must end in \.py"):
        load_reward(str(tmp_path / "notes.txt"), "f")
    (tmp_path / "bad.py").write_text("import nothing_of_this_name")
    with pytest.raises(ModuleNotFoundError) as info:
        load_reward(str(tmp_path / "bad.py"), "f")
    assert "bad.py" in info.value.__notes__[0]
