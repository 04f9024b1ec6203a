"""The exploration factor of pUCT; the selection itself is tested through the search."""

from __future__ import annotations

import math

import numpy as np

from priorzero.search.select import exploration_table


def test_exploration_by_hand() -> None:
    # c_init 1, c_base 1: N = 0: (1 + log 2) x 1 = 1.6931; N = 1: 1 + log(3) = 2.0986; N = 4: (1 + log 6) x 2 = 5.5835.
    table = exploration_table(4, c_init=1.0, c_base=1.0)
    assert table.dtype == np.float64
    np.testing.assert_allclose(table[[0, 1, 4]], [1.6931472, 2.0986123, 5.5835189], rtol=1e-7)


def test_large_base_is_a_constant_factor() -> None:
    table = exploration_table(25, c_init=1.25, c_base=19652.0)
    assert math.isclose(table[25], 1.25 * 5, rel_tol=2e-3)
