import pickle

import pytest

from priorzero.envs.base import EnvError
from priorzero.envs.jericho import JerichoSpec


def test_spec_is_a_value_named_after_its_file():
    spec = JerichoSpec("games/zork1.z5", 100, ("look", "feedback"))
    assert (spec.name, spec.observe) == ("zork1", ("feedback", "look"))
    assert spec.story.startswith("/")
    assert hash(spec) == hash(pickle.loads(pickle.dumps(spec)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps=0"),
        ({"observe": ("smell",)}, "observe"),
        ({"valid_actions": "all"}, "choose one of fast, exact, none"),
        ({"valid_actions_cache": -1}, "valid_actions_cache=-1"),
        ({"valid_actions_entries": 0}, "valid_actions_entries=0"),
        ({"valid_actions_audit": 1.5}, "valid_actions_audit=1.5"),
        ({"valid_actions_refresh": -0.1}, "valid_actions_refresh=-0.1"),
    ],
)
def test_options_are_checked(options: dict, message: str):
    with pytest.raises(EnvError, match=message):
        JerichoSpec(**{"story": "zork1.z5", "max_steps": 100} | options)
