"""Rows by chunks: needed ones are computed, as often as chunks need, and derivatives are those of all."""
import functools
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import holds, samples
from hypothesis import given
from hypothesis import strategies as st
from interpreted import interpreted

from ibpjax import crown, ibp, linf_ball
from ibpjax.xla.batching import over_rows, sum_over

pytestmark = pytest.mark.usefixtures('x64')


def rows_of(scale, chunk=None, needed=None):
  """Eleven rows."""
  def f(i):
    x = i.astype(float)
    return dict(number=i, square=scale * x ** 2, both=jnp.stack([x, -x]) / scale)
  return over_rows(f, jnp.arange(11), 1, chunk, needed)


@given(st.integers(1, 9), st.lists(st.booleans(), min_size=10, max_size=10))
@hypothesis.settings(max_examples=30)
def test_needed_rows_are_those_of_all(chunk, needed):
  needed = jnp.asarray([*needed, True])
  every, found = rows_of(3.), rows_of(3., chunk=chunk, needed=needed)
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(every), strict=True):
    np.testing.assert_array_equal(one[needed], other[needed])


@pytest.mark.parametrize(('needed', 'chunks'), [((), 0), ((5,), 1), ((9, 2, 0), 1), ((1, 2, 3, 10), 2), (range(11), 4)])
def test_only_chunks_with_needed_rows_are_computed(needed, chunks):
  seen = []

  def f(i):
    jax.debug.callback(lambda i: seen.append(int(i)), i)
    return i
  mask = np.isin(np.arange(11), needed)
  jax.block_until_ready(jax.jit(lambda mask: over_rows(f, jnp.arange(11), 1, 3, mask))(mask))
  jax.effects_barrier()
  assert len(seen) == 3 * chunks
  assert set(needed) <= set(seen)


@pytest.mark.parametrize(('derivative', 'at'), [
    (jax.grad, 2.), (jax.jacfwd, 2.), (lambda f: jax.vmap(jax.grad(f)), [2., 3.]),
    (lambda f: jax.jacfwd(jax.grad(f)), 2.)])
def test_derivatives_are_those_of_all_rows(derivative, at):
  needed = jnp.arange(11) % 3 == 1

  def total(options):
    def f(scale):
      found = rows_of(scale, **options)
      return jnp.sum(found['square'][needed]) + jnp.sum(found['both'][needed] ** 2)
    return derivative(f)
  found, every = (interpreted(total(options))(jnp.asarray(at)) for options in (dict(chunk=2, needed=needed), {}))
  np.testing.assert_allclose(found, every, rtol=1e-12)


def test_rows_have_derivatives_too():
  def total(rows, needed=None):
    return over_rows(lambda x: x ** 2, rows, 1, 2, needed).sum()
  rows = jnp.arange(5.)
  np.testing.assert_array_equal(jax.grad(total)(rows, jnp.ones(5, bool)), jax.grad(total)(rows))


@pytest.mark.parametrize('n', [2, 6, 7])
def test_sums_over_rows_take_all_of_them(n):
  """Alone finds rows that are left over: 7 are two threes and one more."""
  rows = jnp.arange(4. * n).reshape(n, 4)
  total = lambda rows: sum_over(lambda some: jnp.sum(some ** 2, 0), rows, width=(1 << 18) // 3)
  np.testing.assert_allclose(interpreted(total)(rows), np.sum(np.asarray(rows) ** 2, 0), rtol=1e-6)
  np.testing.assert_allclose(interpreted(jax.grad(lambda rows: total(rows).sum()))(rows), 2 * rows, rtol=1e-6)


def network(weights, x):
  for w in weights[:-1]:
    x = jax.nn.relu(w @ x + .2)
  return weights[-1] @ x


def weights(seed):
  sizes = (6, 12, 12, 2)
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=(o, i)) / np.sqrt(i)) for i, o in itertools.pairwise(sizes)]


def test_crown_by_chunks_is_crown_at_once():
  w, xs = weights(0), jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)))

  def spread(w, x, eps, chunk):
    return jnp.sum(crown(network, chunk=chunk)(w, linf_ball(x, eps)).width)
  slopes = [jax.value_and_grad(functools.partial(spread, chunk=chunk)) for chunk in (5, 100)]
  found, every = (interpreted(jax.vmap(f, (None, 0, 0)))(w, xs, jnp.asarray([.01, .05, .1, .3])) for f in slopes)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, every)


def test_neurons_that_interval_arithmetic_decides_keep_its_bounds():
  w, box = weights(0), linf_ball(jnp.asarray(np.random.default_rng(0).normal(size=6)), .1)
  _, interval = interpreted(ibp(network, intermediates=True))(w, box)
  bounds, found = interpreted(crown(network, intermediates=True))(w, box)
  decided = 0
  for i, x in found.bounds.items():
    certain = (x.lower >= 0) | (x.upper <= 0)
    old = interval.bounds[i]
    stable = (old.lower >= 0) | (old.upper <= 0)
    assert (certain | ~stable).all()
    decided += int(jnp.sum(certain & ~stable))
  assert decided > 0  # and walks decide others
  assert holds(bounds, jax.vmap(lambda x: network(w, x))(samples(box, 1000)))
