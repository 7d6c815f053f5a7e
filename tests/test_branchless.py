"""Choices without a branch are those of `jnp.where`, to the last bit, with its derivatives."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpjax.branchless import choose

floats = st.floats(allow_nan=False, allow_subnormal=False, width=32)


@given(st.lists(st.tuples(st.booleans(), floats, floats), min_size=1, max_size=8))
def test_chooses(triples):
  first, a, b = (jnp.asarray(x, d) for x, d in zip(zip(*triples), (bool, jnp.float32, jnp.float32)))
  found, expected = jax.jit(choose)(first, a, b), jnp.where(first, a, b)
  assert found.dtype == expected.dtype
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('of', [jax.jvp, jax.vjp])
def test_derivatives_are_of_what_is_chosen(of):
  first = jnp.asarray([True, False, True])
  a, b = jnp.asarray([1., 2., -np.inf]), jnp.asarray([3., np.inf, 5.])
  along = (jnp.asarray([1., 10., 100.]), jnp.asarray([2., 20., 200.]))
  if of is jax.jvp:
    np.testing.assert_array_equal(jax.jvp(lambda a, b: choose(first, a, b), (a, b), along)[1], [1, 20, 100])
  else:
    da, db = jax.vjp(lambda a, b: choose(first, a, b), a, b)[1](along[0])
    np.testing.assert_array_equal(da, [1, 0, 100])
    np.testing.assert_array_equal(db, [0, 10, 0])
