"""Zonotopes: golden values by hand, sound, and what symbols are for, values that are subtracted again."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import box_around, contains, holds, samples
from interpreted import interpreted
from networks import ACTIVATIONS, convolutional, dense, random_network, residual, shallow

from ibpjax import Interval, certify, crown, ibp, lbp, linf_ball, lp_ball, zonotope

pytestmark = pytest.mark.usefixtures('x64')


def test_values_by_hand():
  """relu on [-1, 3]: slope 3/4, the band from 0 to 3/4 (DeepZ). Alone finds a band that is too wide or off its line."""
  box = Interval(jnp.asarray([-1., -1.]), jnp.asarray([3., 1.]))
  found = interpreted(zonotope(jax.nn.relu))(box)
  np.testing.assert_allclose(found.lower, [-.75, -.5], atol=1e-12)
  np.testing.assert_allclose(found.upper, [3., 1.], atol=1e-12)
  # a sum and a difference of both: 3/4 (x1 + x2) + 3/8 + 3/8 e, coefficients of x1 cancel in the difference
  def f(x):
    h = jax.nn.relu(jnp.stack([x[0] + x[1], x[0] - x[1]]))
    return h[0] - h[1]
  square = Interval(-jnp.ones(2), jnp.ones(2))
  found = interpreted(zonotope(f))(square)  # x2 + e1 / 2 - e2 / 2 over [-2, 2]: within -+2
  np.testing.assert_allclose([found.lower, found.upper], [-2., 2.], atol=1e-12)


def test_symbols_cancel():
  """What is subtracted from itself is 0, which no pair of lines says: alone finds symbols that are drawn anew."""
  def f(x):
    h = jnp.tanh(x) * 3
    return h - h[::-1][::-1] * 1., h.sum() - h[0] - h[1]
  box = Interval(-jnp.ones(3), 2 * jnp.ones(3))
  (zero, last), by_lbp = interpreted(zonotope(f))(box), interpreted(lbp(f, elide=False))(box)
  np.testing.assert_allclose([zero.lower, zero.upper], 0, atol=1e-12)
  assert last.width < .7 * by_lbp[1].width
  assert by_lbp[0].width.min() > .1


@pytest.mark.parametrize(('network', 'activation'), [
    (dense, 'relu'), (residual, 'leaky relu'), (convolutional, 'ramp'), (shallow, 'tanh'), (shallow, 'product')])
def test_sound_and_tighter_than_boxes(network, activation):
  act = (ACTIVATIONS | {'tanh': jnp.tanh, 'product': lambda z: z * jnp.flip(jnp.maximum(z, .1))})[activation]

  def f(params, x):
    return network(params, x, act)
  methods = [interpreted(m(f)) for m in (zonotope, functools.partial(ibp, elide=True))]
  values = interpreted(jax.vmap(f, (None, 0)))
  gained = []
  for seed in range(3):
    params, x = random_network(network, seed)
    box = box_around(x, (.05, .2, .5)[seed])
    found, boxes = (method(params, box) for method in methods)
    assert holds(found, values(params, samples(box, 3000, seed)))
    gained.append(float(found.width.sum() / boxes.width.sum()))
  assert min(gained) < .8


def test_operations_without_lines_and_unbounded_ones():
  """Predicates, sorts, whole lines inside: alone finds an infinite radius that a symbol loses."""
  def f(x):
    y = jnp.where(x > 0, x, 2 * x)
    z = 1 / x[0]  # a box that holds the pole
    return jnp.sort(y), z, jnp.tanh(z) + x[0], 0 * z, (x > 0).astype(x.dtype).sum(), jnp.maximum(z, -z)
  box = Interval(-jnp.ones(3), jnp.asarray([1., 2., 3.]))
  found = interpreted(zonotope(f))(box)
  points = samples(box, 3000)
  assert holds(found, interpreted(jax.vmap(f))(points[points[:, 0] != 0]))
  assert np.isfinite(found[2].width)
  assert np.isinf(found[1].width)


def test_predicates_are_no_numbers():
  """Alone finds a box of booleans that is multiplied by a slope, which JAX refuses where it promotes nothing."""
  def f(x):
    return jnp.where((x > 0) & (x[::-1] < .5), x, 2 * x)
  box = box_around(jnp.asarray([.1, .6, -.2]), .3)
  assert holds(interpreted(zonotope(f))(box), interpreted(jax.vmap(f))(samples(box, 3000)))


def test_bounds_of_intermediate_values_for_crown():
  params, x = random_network(dense, 2)
  def f(params, x):
    return dense(params, x, jax.nn.relu)
  box = box_around(x, .4)
  widths = [interpreted(crown(f, intermediate=name))(params, box).width.sum() for name in ('ibp', 'zonotope', 'crown')]
  assert max(widths[1:]) < widths[0]
  _, found = interpreted(zonotope(f, intermediates=True))(params, box)
  _, boxes = interpreted(ibp(f, intermediates=True))(params, box)
  assert found.bounds.keys() == boxes.bounds.keys()


def test_transformations_balls_and_certificates():
  params, x = random_network(shallow, 1)
  def f(params, x):
    return shallow(params, x, jax.nn.relu)
  ball = lp_ball(x, .3, 2.)
  found = interpreted(zonotope(f))(params, ball)
  assert contains(interpreted(zonotope(f))(params, ball.hull), found, 1e-12)
  xs = jnp.stack([x, 2 * x])
  many = interpreted(jax.vmap(zonotope(f), (None, 0)))(params, linf_ball(xs, .2))
  one = interpreted(zonotope(f))(params, linf_ball(2 * x, .2))
  np.testing.assert_allclose(many.lower[1], one.lower, rtol=1e-9)
  gradient = interpreted(jax.grad(lambda p: zonotope(f)(p, linf_ball(x, .2)).width.sum()))(params)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
  labels = np.argmax(f(params, x))[None]
  assert certify(f, params, x[None], labels, 1e-4, clip=None, method='zonotope').verified.all()
