"""Loops over arrays by linear methods: gates, carries that start known, perturbed constants, counters."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import at, holds, in_batches, inside, samples, widest_ratio
from interpreted import interpreted

from ibpjax import Interval, crown, ibp, lbp, linear_bounds, linf_ball

pytestmark = pytest.mark.usefixtures('x64')
WEIGHTS = [np.random.default_rng(i).normal(size=(5, 3 if i < 3 else 5)) * .45 for i in range(6)]


def gru(xs):
  """The last state of a gated recurrent unit, and the sums of all states."""
  def step(h, x):
    a, b, c, d, e, g = map(jnp.asarray, WEIGHTS)
    reset, update = jax.nn.sigmoid(a @ x + d @ h), jax.nn.sigmoid(b @ x + e @ h)
    h = (1 - update) * jnp.tanh(c @ x + reset * (g @ h)) + update * h
    return h, h.sum()
  return jax.lax.scan(step, jnp.zeros(5), xs)


def gated(xs):
  """The same of a cell with one gate, which compiles in a third of the time."""
  def step(h, x):
    a, b, _, d, *_ = map(jnp.asarray, WEIGHTS)
    h = jax.nn.sigmoid(a @ x) * jnp.tanh(d @ h + b @ x)
    return h, h.sum()
  return jax.lax.scan(step, jnp.zeros(5), xs)


@pytest.mark.parametrize(('cell', 'steps', 'orders'), [
    (gated, 3, (True,)), *(pytest.param(gru, n, (False, True), marks=pytest.mark.slow) for n in (1, 20))])
def test_scans_are_walked_through(cell, steps, orders):
  x = np.random.default_rng(9).normal(size=(steps, 3))
  for backwards in orders:
    def f(xs, backwards=backwards):
      return cell(xs[::-1] if backwards else xs)
    box = linf_ball(x, 1e-3)
    points = samples(box, 600)
    values = in_batches(f)(points)
    plain, linear, *found = interpreted(lambda box, f=f: (ibp(f)(box), linear_bounds(f)(box), lbp(f)(box), *(
        crown(f, intermediate=name)(box) for name in ('ibp', 'lbp'))))(box)
    for bound in found:
      assert holds(bound, values)
      assert widest_ratio(bound, values) < 4
      assert steps < 20 or all(float(b.width.sum()) < .3 * float(p.width.sum()) for b, p in zip(bound, plain))
    for bound, value in zip(linear, values, strict=True):
      assert np.all(inside(Interval(at(bound.lower, points), at(bound.upper, points)), value))


def test_scans_over_weights_carries_and_counters():
  """Perturbed constants, carries that start known, carries of booleans and integers, outputs that are known."""
  def f(w, x):
    def step(carry, a):
      i, seen, h = carry
      h = jax.nn.relu(w @ h + a) * jnp.where(i > 1, 1., .5)
      return (i + 1, seen | (h > .3), h), (h, i.astype(h.dtype), jnp.where(seen, h, 0))
    return jax.lax.scan(step, (0, jnp.zeros(3, bool), jnp.zeros(3)), x, reverse=True)
  w, x = (jnp.asarray(np.random.default_rng(i).normal(size=s)) for i, s in enumerate([(3, 3), (4, 3)]))
  boxes = linf_ball(w, .01), linf_ball(x, .02)
  rng = np.random.default_rng(2)
  signs = [jnp.asarray(rng.choice([-1., 1.], (300, *a.shape))) for a in (w, x)]

  def states(w, x):
    (_, _, h), ys = f(w, x)
    return h, ys
  values = interpreted(jax.vmap(lambda s, t: states(w + .01 * s, x + .02 * t)))(*signs)
  for method in (lbp(states), crown(states, intermediate='ibp'), crown(states)):
    assert holds(interpreted(method)(*boxes), values)
