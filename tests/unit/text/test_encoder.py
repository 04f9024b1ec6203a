import threading

import numpy as np
import pytest
import torch

from priorzero.text.encoder import SentenceEncoder

TEXTS = [
    "open mailbox",
    "West of House. You are standing in an open field west of a white house, with a boarded front door.",
    "look",
    "take the small leaflet from the mailbox",
    "go north",
]


def make(source, **changed):
    settings = {
        "pooling": "mean",
        "normalise": True,
        "max_tokens": 48,
        "cache_size": 100,
        "batch_size": 2,
    }
    return SentenceEncoder(source, **(settings | changed))


def naive(source, text, *, pooling, normalise, max_tokens):
    """One text, no batch, no padding, through the tokenizer and model as transformers loads them."""
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(source)(text, return_tensors="pt", truncation=True, max_length=max_tokens)
    with torch.no_grad():
        states = AutoModel.from_pretrained(source).eval()(**tokens).last_hidden_state[0]
    vector = states[0] if pooling == "cls" else states.mean(0)
    return (vector / vector.norm() if normalise else vector).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalise", [True, False])
def test_batches_equal_one_by_one(tiny_encoder, pooling, normalise):
    encoder = make(tiny_encoder, pooling=pooling, normalise=normalise)
    expected = [naive(tiny_encoder, t, pooling=pooling, normalise=normalise, max_tokens=48) for t in TEXTS]
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 32) == (len(TEXTS), encoder.width)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_long_texts_are_cut(tiny_encoder):
    encoder = make(tiny_encoder, max_tokens=8)
    words = "open the door and go north with the lamp"
    shared = encoder.encode([words, "open the door and go north"])  # 6 words and the two special tokens
    np.testing.assert_allclose(shared[0], shared[1], atol=1e-6)


def test_normalised_vectors_have_length_one(tiny_encoder):
    np.testing.assert_allclose(np.linalg.norm(make(tiny_encoder).encode(TEXTS), axis=1), 1, atol=1e-5)


def test_empty_text_is_zero_and_costs_nothing(tiny_encoder):
    encoder = make(tiny_encoder)
    assert encoder.encode([]).shape == (0, 32)
    vectors = encoder.encode(["", "look", ""])
    assert not vectors[[0, 2]].any()
    assert vectors[1].any()
    assert (encoder.hits, encoder.misses) == (0, 1)


def test_each_distinct_text_is_computed_once(tiny_encoder):
    encoder = make(tiny_encoder)
    assert encoder.hit_rate == 0
    first = encoder.encode(["look", "wait", "look"])
    np.testing.assert_array_equal(first[0], first[2])
    assert (encoder.hits, encoder.misses) == (1, 2)
    np.testing.assert_array_equal(encoder.encode(["wait"])[0], first[1])
    assert (encoder.hits, encoder.misses) == (2, 2)
    assert encoder.hit_rate == 0.5


def test_least_recently_used_text_is_forgotten(tiny_encoder):
    encoder = make(tiny_encoder, cache_size=2)
    encoder.encode(["look", "wait"])
    encoder.encode(["look"])  # now "wait" is the oldest
    encoder.encode(["go north"])
    assert encoder.misses == 3
    encoder.encode(["look", "go north"])
    assert encoder.misses == 3
    encoder.encode(["wait"])
    assert encoder.misses == 4


def test_one_call_may_ask_more_than_the_cache_holds(tiny_encoder):
    small, large = make(tiny_encoder, cache_size=1), make(tiny_encoder)
    asked = [*TEXTS, *TEXTS]
    np.testing.assert_allclose(small.encode(asked), large.encode(asked), atol=1e-6)
    assert small.misses == len(TEXTS)


def test_callers_cannot_change_the_cache(tiny_encoder):
    encoder = make(tiny_encoder)
    vectors = encoder.encode(["look"])
    before = vectors.copy()
    vectors[:] = 7
    np.testing.assert_array_equal(encoder.encode(["look"]), before)


def test_threads_share_one_encoder(tiny_encoder):
    encoder = make(tiny_encoder, cache_size=3)
    expected = make(tiny_encoder).encode(TEXTS)
    failures = []

    def work(shift):
        for i in range(10):
            order = np.roll(np.arange(len(TEXTS)), shift + i)
            got = encoder.encode([TEXTS[j] for j in order])
            if not np.allclose(got, expected[order], atol=1e-5):
                failures.append(shift)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert encoder.hits + encoder.misses == 4 * 10 * len(TEXTS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pooling": "max"}, "pooling"),
        ({"max_tokens": 65}, "3..64"),
        ({"max_tokens": 2}, "3..64"),
        ({"cache_size": 0}, "cache_size"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_settings_are_refused(tiny_encoder, changed, message):
    with pytest.raises(ValueError, match=message):
        make(tiny_encoder, **changed)


def test_minilm_equals_the_naive_computation_and_knows_meaning(encoder_path):
    encoder = make(encoder_path, max_tokens=256, batch_size=3)
    texts = [*TEXTS, "walk northwards"]
    vectors = encoder.encode(texts)
    assert encoder.width == 384
    expected = [naive(encoder_path, t, pooling="mean", normalise=True, max_tokens=256) for t in texts]
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    likeness = vectors @ vectors[texts.index("walk northwards")]
    assert likeness[:-1].argmax() == texts.index("go north")


def test_the_cache_survives_in_its_state(tiny_encoder):
    encoder = make(tiny_encoder, cache_size=3)
    before = encoder.encode(TEXTS)
    encoder.encode(TEXTS[3:4])
    other = make(tiny_encoder, cache_size=3)
    other.load_state_dict(encoder.state_dict())
    assert (other.hits, other.misses) == (1, 5)
    np.testing.assert_array_equal(other.encode(TEXTS[2:]), before[2:])
    assert (other.hits, other.misses) == (4, 5)
    smaller = make(tiny_encoder, cache_size=1)
    smaller.load_state_dict(encoder.state_dict())
    assert smaller.state_dict()["texts"] == [TEXTS[3]]  # the one that was used last
    empty = make(tiny_encoder)
    empty.load_state_dict(make(tiny_encoder).state_dict())
    assert empty.hit_rate == 0
