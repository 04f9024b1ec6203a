import pickle
from pathlib import Path

import pytest

from priorzero.envs.base import EnvError
from priorzero.envs.textworld import TextWorldSpec, check_options, textworld_games


def spec(family: str = "cooking", options: dict | None = None, seed: int = 7) -> TextWorldSpec:
    return TextWorldSpec(family, tuple((options or {}).items()), seed, 50, "cache")


def test_unknown_family_names_the_families():
    with pytest.raises(EnvError, match="cooking, simple, coin_collector, treasure_hunter"):
        spec("chess")


def test_unknown_option_names_the_options():
    with pytest.raises(EnvError, match=r"no option burn: its options are recipe, take, go, open, cook"):
        spec(options={"burn": True})


@pytest.mark.parametrize(
    ("family", "options", "valid"),
    [
        ("cooking", {"go": 2}, "1, 6, 9, 12"),
        ("cooking", {"recipe": 0}, "1 to 5"),
        ("cooking", {"recipe": "2"}, "1 to 5"),
        ("cooking", {"recipe": True}, "1 to 5"),
        ("cooking", {"recipe": 2, "take": 3}, "0 to 2"),
        ("cooking", {"cook": 1}, "True, False"),
        ("cooking", {"recipe_seed": -1}, "0 to 4294967295"),
        ("simple", {"rewards": "rich"}, "dense, balanced, sparse"),
        ("simple", {"goal": None}, "detailed, brief, none"),
        ("coin_collector", {"level": 301}, "1 to 300"),
        ("treasure_hunter", {"level": 31}, "1 to 30"),
    ],
)
def test_value_out_of_range_says_the_range(family: str, options: dict, valid: str):
    with pytest.raises(EnvError, match=f"must be {valid}"):
        check_options(family, options)


def test_seed_steps_and_parts_are_checked():
    with pytest.raises(EnvError, match="game_seed=-1"):
        spec(seed=-1)
    with pytest.raises(EnvError, match="max_steps=0"):
        TextWorldSpec("simple", (), 1, 0, "cache")
    with pytest.raises(EnvError, match="observe"):
        TextWorldSpec("simple", (), 1, 1, "cache", ("smell",))


def test_names_tell_games_apart():
    assert spec(options={"recipe": 1, "take": 1, "cook": True}).name == "tw-cooking-r1t1cook-7"
    assert spec(options={"go": 6, "open": True, "recipe_seed": 3}).name == "tw-cooking-r1t0go6open-recipe3-7"
    assert spec("simple").name == "tw-simple-dense-detailed-7"
    assert spec("coin_collector", {"level": 5}, 1).name == "tw-coin_collector-l5-1"


def test_spec_is_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    a = spec(options={"cook": True, "recipe": 1})
    assert a == spec(options={"recipe": 1, "cook": True})  # order and defaults do not matter
    assert hash(a) == hash(pickle.loads(pickle.dumps(a)))
    assert a.cache_dir == str(tmp_path / "cache")  # a worker runs in another folder


def test_games_are_split_by_seed():
    games = textworld_games("simple", {"goal": "brief"}, [1, 2], [3], 50, "cache", ["feedback"])
    assert [s.game_seed for s in games.train] == [1, 2]
    assert [s.game_seed for s in games.heldout] == [3]
    assert games.train[0].observe == ("feedback",)
    with pytest.raises(EnvError, match=r"\[2\] are both"):
        textworld_games("simple", {}, [1, 2], [2], 50, "cache")
