"""Corners at which published implementations of bounds have been wrong, or so loose as to say nothing."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import box_around, holds, samples, widest_ratio
from flax import nnx
from interpreted import interpreted
from jax import lax

from ibpjax import Interval, adaptive, constant, ibp, tight
from ibpjax.composites.patterns import grouped
from ibpjax.core.program import rebind, trace
from ibpjax.rules.elementwise import enclose

pytestmark = pytest.mark.usefixtures('x64', 'promotion')


def box(low, high):
  return Interval(np.full(1, low), np.full(1, high))


# Each as (function, box, least value, greatest value).
RANGES = {
    'an even power': (lambda x: lax.integer_pow(x, 4), box(1., 2.), 1., 16.),
    'an even power over 0': (lambda x: lax.integer_pow(x, 6), box(-1., 2.), 0., 64.),
    'tan beyond 1': (jnp.tan, box(-1.2, -.2), np.tan(-1.2), np.tan(-.2)),
    'cos over its least and greatest value': (jnp.cos, box(-10., -3.321376323699951), -1., 1.),
    'cos over its greatest value': (jnp.cos, box(-8., -3.321376323699951), np.cos(-3.321376323699951), 1.),
    'sin at its crest': (jnp.sin, box(1.5, 1.7), np.sin(1.7), 1.),
    'a dead leaky unit': (lambda x: jax.nn.leaky_relu(x, jnp.asarray(.1, x.dtype)), box(-1.1, -.9), -.11, -.09),
    'a reciprocal of negative numbers': (lambda x: lax.integer_pow(x, -1), box(-2., -.5), -2., -.5),
    'a constant around': (lambda x: lax.pad(x, jnp.asarray(3., x.dtype), [(1, 1, 0)]).sum(), box(-1., 2.), 5., 8.),
}


@pytest.mark.parametrize('name', RANGES)
def test_ranges_are_exact(name):
  f, x, least, greatest = RANGES[name]
  x = jax.tree.map(jnp.asarray, x)
  for elide in (False, True):
    bound = interpreted(ibp(f, elide=elide))(x)
    np.testing.assert_allclose(bound.lower, least, rtol=1e-12)
    np.testing.assert_allclose(bound.upper, greatest, rtol=1e-12)


def lines_around(f, x, lines):
  """((slope, intercept) of the line below, the same of the one above) for the last equation of `f`."""
  program = grouped(trace(f, (x,), {})[0])
  env = program.environment([x])
  for eqn in program.equations[:-1]:  # known slopes, broadcast
    env |= zip((v.id for v in eqn.outputs), rebind(eqn, *[env[v.id] for v in eqn.inputs]), strict=True)
  equation = program.equations[-1]
  return enclose(equation, [env[v.id] for v in equation.inputs], lines)


@pytest.mark.parametrize('lines', [constant, tight, adaptive])
@pytest.mark.parametrize('name', [name for name in RANGES if name != 'a constant around'])
def test_lines_enclose(name, lines):
  f, x, _, _ = RANGES[name]
  x = jax.tree.map(jnp.asarray, x)
  (below, low), (above, high) = lines_around(f, x, lines)
  points = jnp.linspace(x.lower[0], x.upper[0], 100_001)
  assert np.all(below * points + low <= f(points) + 1e-12)
  assert np.all(above * points + high >= f(points) - 1e-12)


BIG, TINY = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)


def celu(alpha):
  return lambda x: jax.nn.celu(x, jnp.asarray(alpha, x.dtype))


def power(c):
  return lambda x: lax.pow(x, jnp.asarray(c, x.dtype))


# Of float32, each as (function, least and greatest argument).
EXTREMES = {
    'celu of alpha 0': (celu(0.), -1., -0.), 'celu of a tiny alpha': (celu(-TINY / 2), -1., 0.),
    'celu that grows': (celu(-1.), -88., -88.), 'celu of a huge alpha': (celu(1e37), -1., 0.),
    'elu of a huge alpha': (lambda x: jax.nn.elu(x, jnp.asarray(BIG, x.dtype)), -3.14, 1.57),
    'exp': (jnp.exp, 88., 88.), 'sinh': (jnp.sinh, -89., -89.), 'square': (jnp.square, 1e4, BIG),
    'sqrt': (jnp.sqrt, 1., BIG),
    'cube of the reciprocal': (lambda x: lax.integer_pow(x, -3), .5, BIG), 'arccosh': (jnp.arccosh, 1., 1e20),
    'rsqrt from -0.': (lax.rsqrt, -0., 1e-6),
    'power of -2': (power(-2.), .5, BIG), 'power of a half': (power(.5), 1., BIG),
    'power of a huge exponent': (power(1e20), -0., 1.), 'power of a tiny exponent': (power(1e-20), 0., 1e-20),
    'erf_inv': (lax.erf_inv, -1 + 6e-8, 1 - 6e-8), 'arctanh': (jnp.arctanh, 0., 1 - 6e-8),
    'log1p': (jnp.log1p, -1 + 6e-8, 3.)}


@pytest.mark.optimized
@pytest.mark.parametrize('name', EXTREMES)
def test_lines_enclose_where_numbers_overflow_and_vanish(name):
  """Finds intercepts that are NaN or have overflowed to the wrong side, and points of a slope that got lost."""
  f, low, high = EXTREMES[name]
  x = Interval(jnp.full(1, low, jnp.float32), jnp.full(1, high, jnp.float32))
  every = jax.jit(lambda x: {lines.__name__: lines_around(f, x, lines) for lines in (constant, tight, adaptive)})(x)
  t = np.concatenate([np.geomspace(1e-30, 1, 200), np.linspace(0, 1, 201)])
  points = np.clip((low + (high - low) * t).astype(np.float32), np.float32(low), np.float32(high))
  values = np.asarray(f(jnp.asarray(points)), np.float64)
  points, values = points[np.isfinite(values)].astype(np.float64), values[np.isfinite(values)]
  for lines, found in every.items():
    found = np.asarray(found, np.float64)
    assert not np.isnan(found).any(), lines
    (below, least), (above, most) = found[..., 0]
    slack = 1e-5 * (1e-3 + np.abs(values) + np.abs(below * points) + np.abs(above * points))
    assert np.all(below * points + least <= values + slack), lines
    assert np.all(above * points + most >= values - slack), lines


@pytest.mark.optimized
@pytest.mark.parametrize(('alpha', 'low', 'high'), [(-3., -100., -100.), (1e10, -1e-28, 0.)])
def test_celu_as_it_is_computed(alpha, low, high):
  """Finds bounds that exclude what celu returns where x / alpha loses much."""
  x = Interval(jnp.full(1, low, jnp.float32), jnp.full(1, high, jnp.float32))
  bound = interpreted(ibp(celu(alpha), round_outward=True))(x)
  exact = np.linspace(low, high, 101)
  with np.errstate(all='ignore'):
    exact = np.maximum(exact, 0) + alpha * np.expm1(np.minimum(exact, 0) / alpha)
  exact = exact[~np.isnan(exact)]
  assert np.all((exact >= float(bound.lower[0])) & (exact <= float(bound.upper[0])))


@pytest.mark.parametrize(('f', 'kink'), [
    (jax.nn.relu, 0.), (lambda x: jax.nn.leaky_relu(x, .1), 0.), (lambda x: jax.nn.leaky_relu(x, -.5), 0.),
    (jnp.abs, 0.), (lambda x: jnp.maximum(x, .3), .3), (lambda x: jnp.minimum(-.2, x), -.2)])
def test_adaptive_lines_of_functions_with_one_kink_leave_the_least_area(f, kink):
  """No slope of a fine grid does better in the middle of a box."""
  rng = np.random.default_rng(0)
  lower = jnp.asarray(rng.normal(size=300))
  x = Interval(lower, lower + rng.exponential(size=300))
  (below, low), (above, high) = lines_around(f, x, adaptive)
  middle, corners = x.centre, [x.lower, jnp.clip(kink, x.lower, x.upper), x.upper]
  for sign, found in ((1, below * middle + low), (-1, -(above * middle + high))):
    best = -jnp.inf
    for k in np.linspace(-1, 1, 81):
      least = jnp.min(jnp.stack([sign * f(p) - k * p for p in corners]), 0)
      best = jnp.maximum(best, least + k * middle)
    assert np.all(found >= best - 1e-12)
  assert 30 < int(((x.lower < kink) & (x.upper > kink)).sum()) < 270


def test_overlapping_max_pooling():
  image = jnp.asarray([[1.6, -.2, .3], [.1, 1.5, -.4], [.2, .4, 1.55]]).reshape(1, 3, 3, 1)
  x = box_around(image, .05)
  bound = interpreted(ibp(lambda x: nnx.max_pool(x, (2, 2), (1, 1))))(x)
  best = lax.reduce_window(image, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), 'VALID')
  np.testing.assert_allclose(bound.lower, best - .05)
  np.testing.assert_allclose(bound.upper, best + .05)


@pytest.mark.parametrize('radius', [1e-3, .1, 1., 100.])
@pytest.mark.parametrize('width', [2, 8, 64])
def test_normalised_values_stay_within_the_root_of_their_number(radius, width):
  layer = nnx.LayerNorm(width, use_bias=False, use_scale=False, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
  x = box_around(jnp.asarray(np.random.default_rng(0).normal(size=width)), radius)
  bound, values = interpreted(ibp(layer))(x), interpreted(jax.vmap(layer))(samples(x, 6_000))
  assert holds(bound, values)
  assert float(jnp.maximum(-bound.lower, bound.upper).max()) <= (width - 1) ** .5
  if radius == 1e-3 and width > 2:
    assert widest_ratio(bound, values) < 2.5  # of random samples, which do not reach the corners of 64 dimensions


@pytest.mark.parametrize('radius', [1e-3, .1, 1.])
@pytest.mark.parametrize('depth', [1, 4])
def test_normalised_attention_is_of_the_order_of_one(depth, radius):
  """However deep and whatever the box, each normalised value stays where it can be, and shrinks with the box."""
  rngs, kwargs = nnx.Rngs(0), dict(param_dtype=jnp.float64)
  layers = [(nnx.LayerNorm(8, **kwargs, rngs=rngs), nnx.MultiHeadAttention(2, 8, decode=False, **kwargs, rngs=rngs))
            for _ in range(depth)]

  def f(x):
    for norm, attention in layers:
      x = norm(x + attention(x))
    return x

  x = box_around(jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 8))), radius)
  bound = interpreted(ibp(f))(x)
  assert holds(bound, interpreted(jax.vmap(f))(samples(x, 600)), 1e-6)
  assert float(jnp.maximum(-bound.lower, bound.upper).max()) <= 7 ** .5 + 1e-6
  if depth == 1 and radius == 1e-3:
    assert float(bound.width.max()) < .2


def test_a_factor_near_one_over_the_number_is_not_a_mean():
  f = lambda x: (x - .3333333 * x.sum()) * lax.rsqrt(x.var() + 1e-5)
  x = jnp.asarray([1e5, 1e5 + 1, 1e5 + 2])
  assert holds(interpreted(ibp(f))(Interval(x, x)), f(x)[None])


def test_attention_does_not_see_what_is_masked_by_small_logits():
  f = lambda x: jax.nn.softmax(x) @ jnp.asarray([0., 0, 0, 100])
  x, r = jnp.asarray([0., 0, 0, -20]), jnp.asarray([1., 1, 1, 0])
  assert float(interpreted(ibp(f))(Interval(x - r, x + r)).width) < 1e-6


def test_normalisation_is_tight_where_few_elements_move():
  x = jnp.asarray([.334, -.753, .256, -.872, 1.121, 1.484, 1.553, .863])
  r = jnp.asarray([0, 0, 0, .77, .54, 2.2, 0, 0])
  f = lambda x: (x - x.mean()) * lax.rsqrt(x.var() + 1e-5)
  assert float(interpreted(ibp(f))(Interval(x - r, x + r)).width.max()) < 4.2
  x, r = jnp.asarray([-.313, -.29, .748, -.459]), jnp.asarray([.08, 1.42, .27, 0])
  assert float(interpreted(ibp(lambda x: (x - x.mean()) / x.std()))(Interval(x - r, x + r)).width.max()) < 3.2
