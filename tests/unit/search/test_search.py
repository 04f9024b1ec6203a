"""pUCT search against hand-computed trees, against the plain reference, and as a planner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Imagination, ImaginedModel, State, World, imagine, puct

from priorzero.search.search import SearchConfig, earlier_edges, search, search_tree, subtree
from priorzero.types import Edges, Expansion, Root, Subtree

CONFIG = SearchConfig(simulations=25, c_init=1.25, c_base=19652.0, gamma=0.997, minmax_floor=0.01, reuse=False)

imaginations = st.builds(
    Imagination,
    seed=st.integers(0, 10**9),
    root_width=st.integers(1, 12),
    width=st.integers(1, 6),
    holes=st.booleans(),
    equal_probs=st.booleans(),
    no_rewards=st.booleans(),
    coarse=st.booleans(),
)


def config(simulations: int, gamma: float = 0.997) -> SearchConfig:
    return SearchConfig(simulations, c_init=1.25, c_base=19652.0, gamma=gamma, minmax_floor=0.01, reuse=False)


def fixed(table: dict[tuple[int, ...], State], otherwise: State) -> World:
    return lambda path: table.get(path, otherwise)


def test_three_simulations_by_hand() -> None:
    # Root: actions 7, 8, 9 with priors 0.5, 0.3, 0.2 and value 1; gamma 0.5, c(N) = 1.25 + log((N + 19653) / 19652).
    # 1. N = 0: the prior decides, so action 7, of 0.5, makes node 1 (reward 1, value 2).
    #    Q(7) = 1 + 0.5 * 2 = 2; the bounds are 2..2; the root has the values 1 and 2.
    # 2. N = 1, sqrt(N) = 1, c = 1.2501. The unvisited ones count as Q = 2 too, all stretch to (2 - 2)/0.01 = 0.
    #    7: 0.5 * 1.2501 / 2 = 0.3125; 8: 0.3 * 1.2501 = 0.3750; 9: 0.2500. Action 8 makes node 2 (reward 0, value 1).
    #    Q(8) = 0 + 0.5 * 1 = 0.5; the bounds are 0.5..2; the root has the values 1, 2, 0.5.
    # 3. N = 2, c sqrt(N) = 1.25015 * 1.41421 = 1.76798. The mean Q is 1.25, which stretches to 0.5.
    #    7: 0.5 * 1.76798 / 2 + 1 = 1.4420; 8: 0.3 * 1.76798 / 2 + 0 = 0.2652; 9: 0.2 * 1.76798 + 0.5 = 0.8536.
    #    So on to node 1, where 5 is the only legal action: node 3 (reward 4, value 0).
    #    G at node 1 = 4 + 0.5 * 0 = 4, so v(1) = (2 + 4)/2 = 3 and Q(7) = 1 + 0.5 * 3 = 2.5.
    #    G at the root = 1 + 0.5 * 4 = 3, so its value is (1 + 2 + 0.5 + 3)/4 = 1.625.
    table = {
        (): State(0, 1, [7, 8, 9], [0.5, 0.3, 0.2]),
        (7,): State(1, 2, [-1, 5], [0.0, 1.0]),
        (8,): State(0, 1, [5, 6], [0.5, 0.5]),
        (7, 5): State(4, 0, [5], [1.0]),
    }
    model = ImaginedModel([fixed(table, State(0, 0, [1], [1.0]))])
    result = search(model, model.root, config(3, gamma=0.5))
    assert model.paths[0] == [(), (7,), (8,), (7, 5)]
    np.testing.assert_array_equal(result.visits, [[2, 1, 0]])
    np.testing.assert_array_equal(result.q, np.array([[2.5, 0.5, 0.0]], np.float32))
    np.testing.assert_array_equal(result.value, np.array([1.625], np.float32))
    assert (result.visits.dtype, result.q.dtype, result.value.dtype) == (np.int32, np.float32, np.float32)


@settings(max_examples=200)
@given(hows=st.lists(imaginations, min_size=1, max_size=4), simulations=st.integers(1, 50))
def test_equals_the_plain_reference(hows: list[Imagination], simulations: int) -> None:
    worlds = [imagine(how) for how in hows]
    model = ImaginedModel(worlds)
    result = search(model, model.root, config(simulations))
    for row, (how, world) in enumerate(zip(hows, worlds, strict=True)):
        visits, q, value = puct(world, simulations, 1.25, 19652.0, 0.997, 0.01)
        np.testing.assert_array_equal(result.visits[row, : how.root_width], visits)
        np.testing.assert_allclose(result.q[row, : how.root_width], q, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(result.value[row], value, rtol=1e-6, atol=1e-6)


def test_an_earlier_search_counts_by_hand() -> None:
    # Root: actions 7, 8 with priors 0.9, 0.1 and value 1; gamma 0.5. Action 8 was visited 3 times, with Q 2.
    # 1. N = 3, c(N) sqrt(N) = (1.25 + log(19656 / 19652)) sqrt(3) = 2.1654. The bounds are 2..2, so every Q stretches
    #    to 0. 7: 0.9 * 2.1654 = 1.949; 8: 0.1 * 2.1654 / 4 = 0.054. Action 7 makes node 1 (reward 0, value 4): Q = 2.
    #    The root has the values 1, 2 (3 times) and 2: 9 / 5.
    # 2. N = 4, c(N) sqrt(N) = 2.5005; all Q are 2. 7: 0.9 * 2.5005 / 2 = 1.125; 8: 0.1 * 2.5005 / 4 = 0.063.
    #    So on to node 1, where 5 makes node 2 (reward 0, value 0): v(1) = 2 and Q(7) = 1. The root's values sum up to
    #    9 + 0 = 9, of 6.
    # 3. N = 5, c(N) sqrt(N) = 2.7957, the bounds are 0..2 (node 2 has Q 0). 7: 0.9 * 2.7957 / 3 + 1 / 2 = 1.339;
    #    8: 0.1 * 2.7957 / 4 + 1 = 1.070: 7 again, on to node 1. There is nothing but 5, on to node 2: node 3, value 0.
    #    v(1) = 4 / 3, Q(7) = 2 / 3; the values are 9 of 7.
    # 4. N = 6, c(N) sqrt(N) = 3.0629. 7: 0.9 * 3.0629 / 4 + 1 / 3 = 1.022; 8: 0.1 * 3.0629 / 4 + 1 = 1.077: action 8
    #    at last makes node 4 (reward 1, value 10): G = 6, and Q(8) = (3 * 2 + 6) / 4 = 3. The values are 15 of 8.
    table = {
        (): State(0, 1, [7, 8], [0.9, 0.1]),
        (7,): State(0, 4, [5], [1.0]),
        (8,): State(1, 10, [5], [1.0]),
    }
    model = ImaginedModel([fixed(table, State(0, 0, [5], [1.0]))])
    earlier = Edges(np.array([[0, 3]], np.int32), np.array([[0.0, 2.0]]))
    result, tree = search_tree(model, replace(model.root, earlier=earlier), config(4, gamma=0.5))
    assert model.paths[0] == [(), (7,), (7, 5), (7, 5, 5), (8,)]
    np.testing.assert_array_equal(result.visits, [[3, 4]])
    np.testing.assert_allclose(result.q, [[2 / 3, 3.0]], rtol=1e-6)
    np.testing.assert_allclose(result.value, [15 / 8], rtol=1e-6)
    left = subtree(tree, 0, 0)  # behind 7: action 5 twice, with Q 0 and 0
    assert [x.tolist() for x in (left.actions, left.visits, left.q)] == [[5], [2], [0.0]]
    assert subtree(tree, 0, 1).visits.tolist() == []  # a node of this search, and nothing below it


def test_what_is_not_valid_any_more_is_left_out() -> None:
    known = Subtree(np.array([4, 9, 2], np.int32), np.array([3, 1, 2], np.int32), np.array([0.5, 1.5, -1.0]))
    edges = earlier_edges(np.array([[2, 4, 7, -1], [5, -1, -1, -1]], np.int32), [known, None])
    np.testing.assert_array_equal(edges.visits, [[2, 3, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(edges.q, [[-1.0, 0.5, 0, 0], [0, 0, 0, 0]])


def test_an_action_that_was_never_taken_leaves_nothing() -> None:
    model = ImaginedModel([imagine(Imagination(seed=0, root_width=3, width=2, holes=False))])
    _, tree = search_tree(model, model.root, config(1))
    assert sorted(len(subtree(tree, 0, slot).actions) for slot in range(3)) == [0, 0, 0]


@settings(max_examples=200)
@given(
    hows=st.lists(imaginations, min_size=1, max_size=4),
    simulations=st.integers(1, 50),
    known=st.lists(st.tuples(st.integers(0, 11), st.integers(1, 30), st.integers(-8, 8)), max_size=8),
)
def test_with_an_earlier_search_it_equals_the_plain_reference(hows, simulations, known) -> None:
    worlds = [imagine(how) for how in hows]
    model = ImaginedModel(worlds)
    legal = model.root.legal
    edges = Edges(np.zeros(legal.shape, np.int32), np.zeros(legal.shape))
    for slot, visits, q in known:
        if slot < legal.shape[1]:
            edges.visits[legal[:, slot], slot], edges.q[legal[:, slot], slot] = visits, q / 4
    result, _ = search_tree(model, replace(model.root, earlier=edges), config(simulations))
    for row, (how, world) in enumerate(zip(hows, worlds, strict=True)):
        earlier = {
            slot: (int(edges.visits[row, slot]), float(edges.q[row, slot]))
            for slot in np.flatnonzero(edges.visits[row])
        }
        visits, q, value = puct(world, simulations, 1.25, 19652.0, 0.997, 0.01, earlier)
        np.testing.assert_array_equal(result.visits[row, : how.root_width], visits)
        np.testing.assert_allclose(result.q[row, : how.root_width], q, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(result.value[row], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("visits", "q", "message"),
    [
        ([[1, 1], [0, 1]], [[0.0, 0.0], [0.0, 0.0]], "legal"),
        ([[-1, 1], [0, 0]], [[0.0, 0.0], [0.0, 0.0]], "negative"),
        ([[1, 1], [0, 0]], [[np.nan, 0.0], [0.0, 0.0]], "finite"),
        ([[1], [0]], [[0.0], [0.0]], "earlier.visits must be"),
    ],
)
def test_refuses_a_bad_earlier_search(visits: list, q: list, message: str) -> None:
    root = Root(
        np.array([[1, 2], [3, -1]], np.int32), np.array([[0.5, 0.5], [1, 0]], np.float32), np.zeros(2, np.float32)
    )
    with pytest.raises(ValueError, match=message):
        search_tree(Constant(), replace(root, earlier=Edges(np.array(visits, np.int32), np.array(q))), CONFIG)


@settings(max_examples=60)
@given(hows=st.lists(imaginations, min_size=2, max_size=5), padding=st.integers(0, 9))
def test_rows_are_independent_of_batch_and_padding(hows: list[Imagination], padding: int) -> None:
    together = ImaginedModel([imagine(how) for how in hows], padding)
    batch = search(together, together.root, CONFIG)
    for row, how in enumerate(hows):
        alone = ImaginedModel([imagine(how)])
        single = search(alone, alone.root, CONFIG)
        assert together.paths[row] == alone.paths[0]
        for field in ("visits", "q"):
            wide, narrow = getattr(batch, field)[row], getattr(single, field)[0]
            np.testing.assert_array_equal(wide[: how.root_width], narrow)
            assert not wide[how.root_width :].any()
        assert batch.value[row] == single.value[0]


@settings(max_examples=50)
@given(how=imaginations)
def test_visits_are_conserved_and_legal(how: Imagination) -> None:
    model = ImaginedModel([imagine(how)])
    root = model.root
    result = search(model, root, CONFIG)
    assert result.visits.sum() == CONFIG.simulations
    assert not result.visits[~root.legal].any()
    assert not result.q[result.visits == 0].any()
    assert len(set(model.paths[0])) == CONFIG.simulations + 1, "every simulation reaches a new path"


def test_same_search_twice_is_the_same() -> None:
    how = Imagination(seed=3, root_width=20, width=20)
    first, second = (ImaginedModel([imagine(how)]) for _ in range(2))
    search(first, first.root, CONFIG)
    search(second, second.root, CONFIG)
    assert first.paths == second.paths


def test_wider_interior_nodes_than_the_root() -> None:
    how = Imagination(seed=5, root_width=2, width=40, holes=False)
    model = ImaginedModel([imagine(how)])
    result = search(model, model.root, CONFIG)
    np.testing.assert_array_equal(result.visits[0], puct(imagine(how), 25, 1.25, 19652.0, 0.997, 0.01)[0])


def test_finds_the_reward_at_the_end_of_a_corridor() -> None:
    # Only 2, 2, 2, 2 leads to the reward 10; the prior and all values are indifferent.
    def corridor(path: tuple[int, ...]) -> State:
        return State(10.0 if path == (2, 2, 2, 2) else 0.0, 0.0, [1, 2, 3], [float(np.float32(1 / 3))] * 3)

    model = ImaginedModel([corridor])
    result = search(model, model.root, config(300))
    assert (2, 2, 2, 2) in model.paths[0]
    assert result.visits[0].argmax() == 1
    assert result.visits[0, 1] > 200
    assert result.q[0, 1] > 5


def test_values_overrule_a_wrong_prior_given_enough_simulations() -> None:
    # The prior wants action 1, which is worth 0; action 2 is worth 1 whatever follows.
    def world(path: tuple[int, ...]) -> State:
        worth = 1.0 if path[:1] == (2,) else 0.0
        return State(0.0, worth, [1, 2], [float(np.float32(0.95)), float(np.float32(0.05))])

    model = ImaginedModel([world])
    few = search(model, model.root, config(3))
    assert few.visits[0].argmax() == 0
    model = ImaginedModel([world])
    many = search(model, model.root, config(100))
    assert many.visits[0].argmax() == 1


def test_small_differences_stay_small() -> None:
    # Q differs by 0.001 x gamma, a tenth of the floor: the stretched advantage is 0.1, not 1, and the prior rules.
    def world(path: tuple[int, ...]) -> State:
        worth = float(np.float32(0.001)) if path[:1] == (2,) else 0.0
        return State(0.0, worth, [1, 2], [0.75, 0.25])

    model = ImaginedModel([world])
    assert search(model, model.root, config(25)).visits[0].argmax() == 0


def good_root(rows: int = 2) -> dict[str, np.ndarray]:
    return {
        "actions": np.tile(np.array([4, 5, -1], np.int32), (rows, 1)),
        "probs": np.tile(np.array([0.5, 0.5, 0.0], np.float32), (rows, 1)),
        "value": np.zeros(rows, np.float32),
    }


class Constant:
    """Gives the same expansion to every call."""

    def __init__(self, **changes: np.ndarray) -> None:
        self.expansion = Expansion(**({"reward": np.zeros(2, np.float32)} | good_root() | changes))

    def expand(self, node: int, parent: np.ndarray, action: np.ndarray) -> Expansion:
        return self.expansion


def broken(name: str, index: tuple[int, ...], value: float) -> np.ndarray:
    array = ({"reward": np.zeros(2, np.float32)} | good_root())[name].copy()
    array[index] = value
    return array


CONTENT = [
    ("value", broken("value", (1,), np.nan), "row 1: value is NaN or infinite"),
    ("probs", broken("probs", (1, 0), np.nan), "row 1: probs hold a NaN"),
    ("probs", broken("probs", (0, 0), np.inf), "row 0: probs hold a NaN, an infinity"),
    ("probs", broken("probs", (0, 1), -0.1), "row 0: probs hold a NaN, an infinity or a negative"),
    ("probs", broken("probs", (1, 2), 0.5), "row 1: probs are not 0 where actions are padded"),
    ("probs", np.zeros((2, 3), np.float32), "row 0: probs sum to 0"),
    ("actions", good_root()["actions"].astype(np.int64), r"actions must be a numpy array int32 \[2, 3\]"),
    ("actions", np.zeros(2, np.int32), r"actions must be a non-empty numpy array \[B, A\], got ndarray int32 \[2\]"),
    ("actions", [[1, 2, 3]], r"actions must be a non-empty numpy array \[B, A\], got list"),
    ("probs", good_root()["probs"].astype(np.float64), "probs must be a numpy array float32"),
    (
        "probs",
        good_root()["probs"][:, :2],
        r"probs must be a numpy array float32 \[2, 3\], got ndarray float32 \[2, 2\]",
    ),
    ("value", np.zeros((2, 1), np.float32), r"value must be a numpy array float32 \[2\]"),
]


@pytest.mark.parametrize(("name", "array", "message"), CONTENT)
def test_refuses_a_bad_root(name: str, array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match="root.*" + message):
        search(Constant(), Root(**(good_root() | {name: array})), CONFIG)


REWARD = ("reward", broken("reward", (0,), np.inf), "row 0: reward is NaN or infinite")


@pytest.mark.parametrize(("name", "array", "message"), [*CONTENT, REWARD])
def test_refuses_a_bad_expansion(name: str, array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match="expansion of node 1.*" + message):
        search(Constant(**{name: array}), Root(**good_root()), CONFIG)


def test_refuses_a_row_without_legal_action() -> None:
    root = good_root()
    root["actions"][1] = -1
    root["probs"][1] = 0
    with pytest.raises(ValueError, match="root, row 1: no legal action"):
        search(Constant(), Root(**root), CONFIG)
    with pytest.raises(ValueError, match="expansion of node 1, row 1: no legal action"):
        search(Constant(actions=root["actions"], probs=root["probs"]), Root(**good_root()), CONFIG)


def test_refuses_an_expansion_of_another_batch() -> None:
    with pytest.raises(ValueError, match="expansion of node 1: it has 2 rows, the root has 3"):
        search(Constant(), Root(**good_root(3)), CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"simulations": 0}, "simulations"),
        ({"gamma": 1.1}, "gamma"),
        ({"minmax_floor": 0.0}, "minmax_floor"),
        ({"c_base": 0.0}, "c_base"),
        ({"c_init": -1.0}, "c_init"),
        ({"gamma": float("nan")}, "gamma"),
    ],
)
def test_refuses_bad_constants(change: dict[str, float], message: str) -> None:
    good = {"simulations": 25, "c_init": 1.25, "c_base": 19652.0, "gamma": 0.997, "minmax_floor": 0.01, "reuse": False}
    with pytest.raises(ValueError, match=message):
        SearchConfig(**(good | change))


def test_model_may_keep_the_arrays_it_is_given() -> None:
    kept: list[tuple[np.ndarray, np.ndarray, list[int], list[int]]] = []

    class Keeping(ImaginedModel):
        def expand(self, node: int, parent: np.ndarray, action: np.ndarray) -> Expansion:
            kept.append((parent, action, parent.tolist(), action.tolist()))
            return super().expand(node, parent, action)

    model = Keeping([imagine(Imagination(seed=s, root_width=5, width=5)) for s in range(3)])
    search(model, model.root, CONFIG)
    for parent, action, parent_then, action_then in kept:
        assert parent.dtype == action.dtype == np.int32
        assert parent.tolist() == parent_then
        assert action.tolist() == action_then
