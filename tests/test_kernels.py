"""What steers XLA changes no number: choices without a branch are `jnp.where`, what is pinned is what it was."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpjax.xla.materialize import materialize_cotangents
from ibpjax.xla.select import select

floats = st.floats(allow_nan=False, allow_subnormal=False, width=32)


@given(st.lists(st.tuples(st.booleans(), floats, floats), min_size=1, max_size=8))
def test_chooses(triples):
  first, a, b = (jnp.asarray(x, d) for x, d in zip(zip(*triples), (bool, jnp.float32, jnp.float32)))
  found, expected = jax.jit(select)(first, a, b), jnp.where(first, a, b)
  assert found.dtype == expected.dtype
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('of', [jax.jvp, jax.vjp])
def test_derivatives_are_of_what_is_chosen(of):
  first = jnp.asarray([True, False, True])
  a, b = jnp.asarray([1., 2., -np.inf]), jnp.asarray([3., np.inf, 5.])
  along = (jnp.asarray([1., 10., 100.]), jnp.asarray([2., 20., 200.]))
  if of is jax.jvp:
    np.testing.assert_array_equal(jax.jvp(lambda a, b: select(first, a, b), (a, b), along)[1], [1, 20, 100])
  else:
    da, db = jax.vjp(lambda a, b: select(first, a, b), a, b)[1](along[0])
    np.testing.assert_array_equal(da, [1, 0, 100])
    np.testing.assert_array_equal(db, [0, 10, 0])


def test_pinned_cotangents_are_the_same_and_computed_in_a_loop():
  x = {'a': jnp.asarray([1., -2., 0.]), 'b': jnp.asarray([[3.]])}

  def f(x):
    x = materialize_cotangents(x)
    return (x['a'] ** 2).sum() * x['b'].sum()
  expected = {'a': 6 * x['a'], 'b': jnp.asarray([[5.]])}
  jax.tree.map(np.testing.assert_array_equal, jax.grad(f)(x), expected)
  assert jax.jvp(f, (x,), (expected,))[1] == sum(jnp.vdot(a, a) for a in jax.tree.leaves(expected))
  assert 'scan' not in str(jax.make_jaxpr(f)(x))
  assert 'scan' in str(jax.make_jaxpr(jax.grad(f))(x))
