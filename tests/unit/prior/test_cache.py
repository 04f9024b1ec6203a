import numpy as np
import pytest

from priorzero.prior.cache import PriorCache


def array(x):
    return np.array([x], np.float32)


def test_drops_the_least_recently_used():
    cache = PriorCache(2)
    cache.put("a", array(1))
    cache.put("b", array(2))
    assert cache.get("a") == array(1)
    cache.put("c", array(3))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert len(cache) == 2


def test_another_version_drops_everything():
    cache = PriorCache(8)
    cache.put("a", array(1))
    cache.use_version(0)
    assert len(cache) == 1
    cache.use_version(1)
    assert len(cache) == 0


def test_capacity_zero_keeps_nothing():
    cache = PriorCache(0)
    cache.put("a", array(1))
    assert cache.get("a") is None
    with pytest.raises(ValueError, match="0 or more"):
        PriorCache(-1)


def test_entries_can_not_be_changed():
    cache = PriorCache(1)
    cache.put("a", array(1))
    with pytest.raises(ValueError, match="read-only"):
        cache.get("a")[0] = 5
