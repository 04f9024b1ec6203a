from dataclasses import replace

import pytest

from priorzero.data.prompt_source import FixedPrompts
from priorzero.data.token_stream import TokenDataConfig, TokenStream
from priorzero.rl.token_advantages import NoExperienceError
from priorzero.types import Message, PromptRow

CONFIG = TokenDataConfig(prompts=6, epochs=2, updates=2, micro_batches=2, row_tokens=64)


class Written:
    """Two samples of three tokens to a row; ``masked`` rows have none to train on. A batch is what was asked for."""

    def __init__(self, rows, masked=()):
        self.rows, self.masked = rows, masked

    def groups(self):
        return [[2 * i, 2 * i + 1] for i in range(len(self.rows))]

    def size(self, samples):
        trained = [n for n in samples if n // 2 not in self.masked]
        return 3 * len(trained), len(trained)

    def batch(self, samples, size, pad_id, row_tokens):
        return samples, size, pad_id, row_tokens


def stream(made, config=CONFIG, masked=(), seed=0):
    def make(rows):
        made.append(rows)
        return Written(rows, masked)

    rows = [PromptRow((Message("user", str(i)),)) for i in range(10)]
    return TokenStream(FixedPrompts(rows, seed=0), make, config, pad_id=7, seed=seed)


def test_a_round_trains_on_each_sample_once_an_epoch():
    made = []
    batches = stream(made)
    assert CONFIG.batches == 8
    taken = [next(batches) for _ in range(8)]
    assert len(made) == 1
    assert len(made[0]) == 6
    epochs = [[n for samples, *_ in taken[i : i + 4] for n in samples] for i in (0, 4)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    for samples, size, pad_id, row_tokens in taken:
        assert samples[::2] == [n - 1 for n in samples[1::2]], "the samples of a prompt stay together"
        assert (size, pad_id, row_tokens) == ((18, 6), 7, 64)
    next(batches)
    assert len(made) == 2
    assert [row.group_id for row in made[0] + made[1]] == [str(n) for n in range(12)]


def test_micro_batches_know_the_size_of_their_update():
    taken = list(zip(range(8), stream([], masked=(0, 3, 5)), strict=False))
    for first in range(0, 8, 2):
        (_, (some, size, *_)), (_, (others, other_size, *_)) = taken[first : first + 2]
        assert size == other_size == Written([], (0, 3, 5)).size([*some, *others])


@pytest.mark.parametrize("seed", range(5))
def test_every_update_has_something_to_train_on(seed):
    """Two prompts of six are left, for two updates: one each, wherever the permutation puts them."""
    batches = stream([], masked=(0, 1, 2, 4), seed=seed)
    for _, (samples, size, *_) in zip(range(8), batches, strict=False):
        assert samples
        assert size == (6, 2)


def test_too_little_to_train_on_is_said():
    with pytest.raises(NoExperienceError, match=r"1 of 6 prompts have answers that can be trained on .* for 2 updates"):
        next(stream([], masked=(0, 1, 2, 4, 5)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": 3}, "3 prompts are too few for 2 updates of 2 micro-batches"),
        ({"epochs": 0}, "must be 1 or more"),
        ({"row_tokens": 0}, "must be 1 or more"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_a_resumed_stream_goes_on_as_if_nothing_had_been():
    whole = stream([])
    taken = [next(whole) for _ in range(8)]
    state = whole.state_dict()
    rest = [next(whole) for _ in range(16)]
    made = []
    resumed = stream(made, seed=5)
    resumed.load_state_dict(state)
    assert [next(resumed) for _ in range(16)] == rest != taken + taken
    assert made[0][0].group_id == "6"


def test_there_is_no_state_within_a_round():
    batches = stream([])
    next(batches)
    with pytest.raises(RuntimeError, match="7 micro-batches of the round are still to be trained"):
        batches.state_dict()
