import numpy as np
import pytest

from priorzero.prior.uniform import UniformPrior
from priorzero.types import Observation, Situation


def test_uniform():
    four, one = Situation(Observation("x"), ("a", "b", "c", "d")), Situation(Observation("x"), ("a",))
    result = UniformPrior().score([four, one])
    np.testing.assert_allclose(np.exp(result.logprobs[0]), 0.25)
    np.testing.assert_allclose(np.exp(result.logprobs[1]), 1.0)
    assert result.logprobs[0].dtype == np.float32
    assert result.version == 0


def test_nothing_to_choose_from():
    with pytest.raises(ValueError, match="situation 1 has no valid actions"):
        UniformPrior().score([Situation(Observation("x"), ("a",)), Situation(Observation("x"), ())])
