import io
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from priorzero.text.vocabulary import ActionVocabulary


def encode(texts):
    """A vector that tells the text: its length and the sum of its characters."""
    return np.array([[len(t), sum(map(ord, t))] for t in texts], dtype=np.float32).reshape(len(texts), 2)


def make():
    return ActionVocabulary(encode, 2)


def test_ids_count_first_sights_over_all_games():
    vocabulary = make()
    assert vocabulary.add("zork1", ["look", "open mailbox"]).tolist() == [0, 1]
    assert vocabulary.add("detective", ["look", "take gun", "look"]).tolist() == [0, 2, 0]
    assert len(vocabulary) == 3
    assert "take gun" in vocabulary
    assert "gun" not in vocabulary
    assert [vocabulary.text(i) for i in range(3)] == ["look", "open mailbox", "take gun"]
    ids = vocabulary.ids(["take gun", "look"])
    assert ids.dtype == np.int32
    assert ids.tolist() == [2, 0]


def test_members_belong_to_their_game_in_order_of_first_sight():
    vocabulary = make()
    vocabulary.add("zork1", ["b", "a"])
    vocabulary.add("detective", ["c", "a"])
    vocabulary.add("zork1", ["c", "b"])
    assert vocabulary.members("zork1").tolist() == [0, 1, 2]
    assert vocabulary.members("detective").tolist() == [2, 1]
    assert vocabulary.members("detective").dtype == np.int32
    assert vocabulary.members("unknown").shape == (0,)


def test_each_text_is_encoded_once():
    asked = []

    def counting(texts):
        asked.extend(texts)
        return encode(texts)

    vocabulary = ActionVocabulary(counting, 2)
    vocabulary.add("g", ["a", "b", "a"])
    vocabulary.add("h", ["b", "c"])
    vocabulary.add("h", [])
    assert asked == ["a", "b", "c"]


def test_a_failing_encoder_leaves_nothing_behind():
    def broken(texts):
        raise RuntimeError("no encoder")

    vocabulary = ActionVocabulary(broken, 2)
    with pytest.raises(RuntimeError, match="no encoder"):
        vocabulary.add("g", ["a"])
    assert len(vocabulary) == 0
    assert vocabulary.members("g").size == 0


def test_vectors_stay_as_they_were_given_out():
    vocabulary = make()
    vocabulary.add("g", ["a", "bb"])
    early = vocabulary.vectors()
    before = early.copy()
    vocabulary.add("g", [f"action {i}" for i in range(1000)])  # outgrows the first array several times
    np.testing.assert_array_equal(early, before)
    assert vocabulary.vectors().shape == (1002, 2)
    np.testing.assert_array_equal(vocabulary.vectors()[:2], before)
    np.testing.assert_array_equal(vocabulary.vectors()[1001], encode(["action 999"])[0])
    with pytest.raises(ValueError, match="read-only"):
        early[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        vocabulary.members("g")[0] = 1


def test_unknown_actions_and_ids_are_named():
    vocabulary = make()
    vocabulary.add("g", ["a"])
    with pytest.raises(KeyError, match="'fly' is not in the vocabulary"):
        vocabulary.ids(["a", "fly"])
    for wrong in (-1, 1):
        with pytest.raises(IndexError, match="vocabulary has 1"):
            vocabulary.text(wrong)


def test_state_survives_a_checkpoint():
    vocabulary = make()
    vocabulary.add("g", [f"action {i}" for i in range(300)])
    vocabulary.add("h", ["action 7", "jump"])
    file = io.BytesIO()
    torch.save(vocabulary.state_dict(), file)
    file.seek(0)

    def never(texts):
        raise AssertionError("a restored vocabulary does not encode again")

    restored = ActionVocabulary(never, 2)
    restored.load_state_dict(torch.load(file, weights_only=True))
    np.testing.assert_array_equal(restored.vectors(), vocabulary.vectors())
    assert restored.members("h").tolist() == [7, 300]
    assert restored.members("g").tolist() == list(range(300))
    assert restored.add("h", ["jump", "action 0"]).tolist() == [300, 0]
    assert restored.members("h").tolist() == [7, 300, 0]


def test_state_of_another_encoder_is_refused():
    vocabulary = make()
    vocabulary.add("g", ["a"])
    with pytest.raises(ValueError, match="sentence encoder"):
        ActionVocabulary(encode, 3).load_state_dict(vocabulary.state_dict())


def test_readers_never_meet_an_id_without_its_vector():
    vocabulary = make()
    stop, failures = threading.Event(), []

    def read():
        while not stop.is_set():
            members = vocabulary.members("g")
            if members.size:
                last = int(members[-1])
                if vocabulary.vectors()[last].tolist() != encode([vocabulary.text(last)])[0].tolist():
                    failures.append(last)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for i in range(2000):
        vocabulary.add("g", [f"action {i}"])
    stop.set()
    for reader in readers:
        reader.join()
    assert failures == []


@given(st.lists(st.tuples(st.sampled_from("gh"), st.lists(st.text(max_size=3), max_size=5)), max_size=20))
def test_any_history_of_additions(history):
    vocabulary, seen, games = make(), [], {"g": [], "h": []}
    for game, actions in history:
        ids = vocabulary.add(game, actions)
        seen += [a for a in dict.fromkeys(actions) if a not in seen]
        games[game] += [a for a in dict.fromkeys(actions) if a not in games[game]]
        assert [vocabulary.text(i) for i in ids] == actions
    assert [vocabulary.text(i) for i in range(len(vocabulary))] == seen
    np.testing.assert_array_equal(vocabulary.vectors(), encode(seen))
    for game, actions in games.items():
        assert [vocabulary.text(i) for i in vocabulary.members(game)] == actions
