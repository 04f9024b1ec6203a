import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from priorzero.collect.archive import Archive, Way


def enter(archive: Archive, state: int, actions: str, score: float = 0.0, *, game: str = "g", first: bool = True):
    archive.enter(game, state, Way(len(actions), tuple(actions), score, len(actions) // 2), first=first)


def drawn(archive: Archive, n: int, game: str = "g") -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(archive.draw(game, rng).actions) for _ in range(n)]


def test_the_way_with_the_most_points_is_kept_and_then_the_shortest():
    archive = Archive()
    for actions, score, kept in (
        ("nnn", 5, "nnn"),
        ("nnnn", 5, "nnn"),
        ("ns", 5, "ns"),
        ("nsew", 6, "nsew"),
        ("n", 0, "nsew"),
    ):
        enter(archive, 1, actions, score)
        assert drawn(archive, 1) == [kept]
    assert len(archive) == 1
    assert archive.draw("g", np.random.default_rng(0)).seed == 4  # of the episode that went it


def test_nothing_is_known_of_a_game_that_was_never_played():
    archive = Archive()
    enter(archive, 1, "n")
    assert archive.draw("another", np.random.default_rng(0)) is None


def test_scores_are_drawn_by_rank():
    archive = Archive()
    for state, score in ((1, 0.0), (2, 0.0), (3, 10.0), (4, 35.0)):
        enter(archive, state, "n" * state, score)
    found = drawn(archive, 6000)
    shares = [sum(len(way) in states for way in found) / 6000 for states in ((4,), (3,), (1, 2))]
    np.testing.assert_allclose(shares, [6 / 11, 3 / 11, 2 / 11], atol=0.02)  # 1, 1/2, 1/3 of 11/6
    assert abs(sum(way == "n" for way in found) - sum(way == "nn" for way in found)) < 20  # each lowers its own chance


def test_states_that_many_have_seen_are_drawn_less_often():
    archive = Archive()
    for _ in range(10_000):
        enter(archive, 1, "often")
    enter(archive, 1, "often", first=False)  # twice in one episode counts once
    for _ in range(100):
        enter(archive, 2, "rare")
    found = drawn(archive, 55)  # 1/100 against 1/10, before the draws themselves count
    assert 0 < found.count("often") < 15


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.integers(-(2**63), 2**63 - 1), st.text("nsew", max_size=5), st.integers(-9, 9)
        )
    )
)
def test_everything_survives_a_checkpoint(entries):
    archive, other = Archive(), Archive()
    for game, state, actions, score in entries:
        enter(archive, state, actions, float(score), game=game)
    file = io.BytesIO()
    torch.save(archive.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert len(other) == len(archive)
    for game in "ab":
        rngs = [np.random.default_rng(1), np.random.default_rng(1)]
        for _ in range(5):
            assert archive.draw(game, rngs[0]) == other.draw(game, rngs[1])


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_lies_between_none_and_all(share):
    from priorzero.collect.novelty import NoveltyConfig

    with pytest.raises(ValueError, match="imitate_share lie between 0 and 1"):
        NoveltyConfig(weight=0.0, try_share=0.0, return_share=share, imitate_share=0.5, of=("look",))
