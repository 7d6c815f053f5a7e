"""Slopes of the user's own, inside of [0, 1] and outside: `lines` is free."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import inside, samples
from interpreted import interpreted

from ibpjax import Interval, crown, lbp, linear_bounds

pytestmark = pytest.mark.usefixtures('x64')
GREATEST = {
    'reduce max': jnp.max, 'reduce min': jnp.min, 'pairs': lambda x: jnp.maximum(x[:2], x[1:]),
    'maxima of windows': lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3,), (1,), 'SAME'),
    'minima of windows': lambda x: jax.lax.reduce_window(x, jnp.inf, jax.lax.min, (3,), (1,), 'SAME'),
    'sort': jnp.sort, 'top k': lambda x: jax.lax.top_k(x, 2)[0], 'cumulative': lambda x: jax.lax.cummax(x),
    'products': lambda x: x * x[::-1], 'quotients': lambda x: x / (x[::-1] + 3), 'branch': lambda x: jnp.where(
        x > 0, x, 2 * x[::-1]), 'softplus': jax.nn.softplus, 'silu': jax.nn.silu, 'cubes': lambda x: x ** 3}


@pytest.mark.parametrize('name', GREATEST)
def test_any_slopes_are_sound(name):
  """Alone finds a plane that is multiplied by an expression of a slope, whose sign outside of [0, 1] is another."""
  box, weights = Interval(-jnp.ones(3), jnp.ones(3)), jnp.asarray([4., -6., 3.])
  f = lambda x: GREATEST[name](x).sum() - weights @ x
  points = samples(box, 600)
  values = interpreted(jax.vmap(f))(points)

  def bounds(below, above):
    lines = lambda fn, l, u, points=(): (jnp.full_like(l, below), jnp.full_like(l, above))
    return [method(f, lines=lines)(box) for method in (crown, lbp)]
  run = interpreted(bounds)
  for below, above in itertools.product((-3., -.5, .4, 1.5, 5.), (-2., .3, 3.)):
    for found in run(below, above):
      assert np.all(inside(found, values))
      assert np.isfinite(float(found.width))


def test_the_greatest_of_three_by_slopes_of_3():
  g = lambda x: jnp.max(x) - (3 * x[2] - 6 * x[1] + 4 * x[0])
  lines = lambda fn, l, u, points=(): (jnp.full_like(l, 3.), jnp.full_like(l, 3.))
  box = Interval(-jnp.ones(3), jnp.ones(3))
  for method in (crown, lbp):  # -6 where a factor 1 - 3 was multiplied to a plane above
    assert float(interpreted(method(g, lines=lines))(box).upper) >= 14 == float(g(jnp.asarray([-1., 1., -1.])))


@pytest.mark.parametrize(('x', 'y'), [((1., 2.), (-3., 1.)), ((-2., 1.), (-1., 3.)), ((.5, 1.), (2., 4.))])
def test_planes_of_a_product_touch_it_at_three_corners(x, y):
  """Alone finds planes through other corners: sound, for their intercepts are computed, and loose."""
  def planes(x, y):
    found = linear_bounds(lambda x, y: x * y)(x, y)
    corners = [(a, b) for a in (x.lower, x.upper) for b in (y.lower, y.upper)]
    return [[side(a, b) - a * b for a, b in corners] for side in (found.lower, found.upper)]
  below, above = np.asarray(interpreted(planes)(*(Interval(jnp.asarray(l), jnp.asarray(u)) for l, u in (x, y))))
  assert below.max() < 1e-9
  assert above.min() > -1e-9
  assert np.sum(np.abs(below) < 1e-9) == np.sum(np.abs(above) < 1e-9) == 3
