"""Balls hold every real point that they are said to hold: ends rounded outward, exact ones kept."""
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ibpjax import Interval, LpBall, certified_radius, certify, ibp, linf_ball, lp_ball
from ibpjax.core.directed import converted

pytestmark = pytest.mark.optimized
DTYPES = [np.float32, np.float64, ml_dtypes.bfloat16, np.float16]


def exactly(x):
  return [Fraction(float(v)) for v in np.asarray(x).astype(np.float64).ravel()]


def holds(box, x, eps):
  """How many real ends x -+ eps lie outside of a box."""
  lower, upper = (np.asarray(end).astype(np.float64).ravel() for end in (box.lower, box.upper))
  return sum(bool(c - r < l if np.isfinite(l) else l > 0) or bool(c + r > u if np.isfinite(u) else u < 0)
             for c, r, l, u in zip(exactly(x), exactly(eps), lower, upper, strict=True))


def numbers(rng, dtype, n, least, greatest):
  x = np.ldexp(rng.uniform(1, 2, n), rng.integers(least, greatest, n))
  return np.where(rng.random(n) < .1, 0, x).astype(dtype)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('everywhere', [False, True])
def test_balls_of_numbers_of_all_sizes_hold_their_real_ends(dtype, everywhere):
  """Finds ends rounded to nearest, also where XLA flushes subnormal numbers, computes in excess precision or fuses."""
  rng, info = np.random.default_rng(0), jnp.finfo(dtype)
  lowest = int(np.log2(float(info.smallest_subnormal)))
  sizes = (lowest, int(np.log2(float(info.max))) - 1) if everywhere else (max(lowest, -14), 8)
  x = numbers(rng, dtype, 3000, *sizes) * rng.choice([-1, 1], 3000).astype(dtype)
  other = np.abs(x) * rng.choice([1, .5, 2, 1 + 2 ** -7], 3000).astype(dtype)
  eps = np.where(rng.random(3000) < .3, other, numbers(rng, dtype, 3000, *sizes)).astype(dtype)
  for make in (linf_ball, jax.jit(linf_ball), jax.jit(jax.vmap(linf_ball))):
    box = make(jnp.asarray(x), jnp.asarray(eps))
    assert box.dtype == dtype
    assert holds(box, x, eps) == 0
    if not everywhere:  # at most to the next number
      gap = np.abs(np.nextafter(np.asarray(box.lower), np.asarray(np.inf, dtype)).astype(float) -
                   np.asarray(box.lower).astype(float))
      assert all(c - r - l < Fraction(g) for c, r, l, g in zip(exactly(x), exactly(eps), exactly(box.lower), gap))


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16, np.float16])
def test_ends_that_are_numbers_stay_exact(dtype):
  """Finds a widening of what needs none: eps = 0 is the point."""
  x = np.asarray([.5, 0, 1, -3, .1, 100], dtype)
  for make in (linf_ball, jax.jit(linf_ball)):
    box = make(x, np.asarray([.25, .5, 1, 1, 0, 0], dtype))
    np.testing.assert_array_equal(np.asarray(box.lower, float), [.25, -.5, 0, -4, float(x[4]), 100])
    np.testing.assert_array_equal(np.asarray(box.upper, float), [.75, .5, 2, -2, float(x[4]), 100])


def test_sums_fused_with_the_product_before_them_hold():
  """Finds an error term that is computed from another x than the box is of: XLA may fuse a product with the sum."""
  rng = np.random.default_rng(1)
  a, b = np.float32(rng.uniform(.5, 2, 4096)), np.float32(rng.uniform(.5, 2, 4096))
  for eps in (np.float32(1e-9), np.float32(.1)):
    box = jax.jit(lambda a, b, eps: linf_ball(a * b, eps))(a, b, eps)
    assert holds(box, a * b, np.full(4096, eps)) == 0
    assert holds(jax.jit(lambda a, b, eps=eps: linf_ball(a * b, eps))(a, b), a * b, np.full(4096, eps)) == 0


@pytest.mark.parametrize(('x', 'eps'), [
    (1., 1e-40), (0., 1e-40), (1e-40, 0.), (-1e-40, 1e-40), (1., 1e-60), (1e-30, 1e-38)])
def test_subnormal_numbers_are_in_balls_and_seen_by_what_follows(x, eps):
  """Finds comparisons that take a subnormal radius for 0, and ends that later arithmetic takes for 0."""
  x = np.float32(x)
  for make in (lambda x: linf_ball(x, eps), jax.jit(lambda x: linf_ball(x, eps)),
               lambda x: lp_ball(x, eps).hull):
    box = make(x)
    assert holds(box, x, np.float64(eps)) == 0
    for end in (box.lower, box.upper):
      assert float(end) == 0 or abs(float(end)) >= float(np.finfo(np.float32).tiny)


def test_radii_and_ranges_of_higher_precision_are_rounded_outward():
  """Finds a Python number rounded to nearest: float32(.3) > .3, float32(.7) < .7."""
  makers = [lambda v: linf_ball(np.float32(0), v).upper, lambda v: -linf_ball(np.float32(0), v).lower,
            lambda v: jax.jit(lambda: linf_ball(jnp.zeros(()), v).upper)(), lambda v: lp_ball(np.float32(0), v).eps,
            lambda v: LpBall(jnp.zeros(()), v, 2.).hull.upper, lambda v: linf_ball(np.float32(0), 9., 0., v).upper,
            lambda v: -linf_ball(np.float32(0), 9., -v).lower]
  for value in (.1, .3, .7, 1e-50, np.float64(.7), 1 / 3):
    for make in makers:
      assert value <= float(make(value)) <= value * (1 + 2e-7) + 2e-38
  with jax.enable_x64(True):
    traced = jax.jit(lambda v: linf_ball(jnp.zeros(3, jnp.float32), v).upper)(np.array([.7, 1e-50, .1]))
    assert np.all(np.asarray(traced, np.float64) >= [.7, 1e-50, .1])
    assert float(jax.jit(lambda v: linf_ball(jnp.zeros((), jnp.float32), v).upper)(2 ** 24 + 1)) >= 2 ** 24 + 1
  for dtype in (jnp.bfloat16, jnp.float16):
    traced = jax.jit(lambda v, dtype=dtype: linf_ball(jnp.zeros(3, dtype), v).upper)(np.float32([.7, 1e-7, .1]))
    assert np.all(np.asarray(traced, np.float64) >= np.float32([.7, 1e-7, .1]))


def test_ends_of_intervals_of_higher_precision_are_rounded_outward():
  """Finds numpy or Python numbers as ends, rounded to nearest."""
  for value in (.1, .3, .7, np.float64(.1), np.array([.3]), np.array([.7, .1])):
    of = lambda v=value: ibp(jnp.negative)(Interval(v, v))
    for bound in (of(), jax.jit(of)()):
      assert np.all(-np.asarray(bound.upper, np.float64) <= value)
      assert np.all(-np.asarray(bound.lower, np.float64) >= value)


@pytest.mark.parametrize(('x', 'dtype'), [(1e39, 'float32'), (7e4, 'float16')])
def test_numbers_that_overflow_are_rounded_to_both_sides(x, dtype):
  """Alone finds an end that becomes infinite inward where it is traced: a lower end of inf bounds nothing."""
  with jax.enable_x64(True):
    for value in (x, -x):
      for towards in (-1, 1):
        eager, traced = (f(jnp.float64(value)) for f in (
            lambda v, t=towards: converted(v, dtype, t), jax.jit(lambda v, t=towards: converted(v, dtype, t))))
        assert eager == traced
        assert towards * traced.astype(jnp.float64) >= towards * value


def test_gradients_of_ends():
  """Finds the gradients of operations on bits, which are 0."""
  x = jnp.array([1., .3, 0.])
  for eps in (.1, 0., 1e-9):
    lower, upper = (lambda x, e, end=end: getattr(linf_ball(x, e), end) for end in ('lower', 'upper'))
    for end, sign in ((lower, -1), (upper, 1)):
      np.testing.assert_array_equal(jax.jacobian(end)(x, eps), np.eye(3))
      np.testing.assert_array_equal(jax.jacobian(end, 1)(x, eps), np.full(3, sign))
  half = jax.grad(lambda e: linf_ball(jnp.zeros((), jnp.bfloat16), e).upper.astype(jnp.float32))(.1)
  assert float(half) == 1


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize(('f', 'x', 'eps', 'threshold'), [
    (jnp.log, 1., 1e-9, -5e-10), (lambda x: -jnp.log(x), 1., 1e-9, -5e-10),
    (jnp.sin, 1e4, 4e-4, np.sin(1e4) - 3.5e-4), (lambda x: -jnp.sin(x), 1e4, 4e-4, -np.sin(1e4) - 3.5e-4)])
def test_no_certificate_of_fewer_points_than_the_ball_has(f, x, eps, threshold, norm):
  """Finds a box that is the point: log(x) > -5e-10 is false at 1 - 1e-9, and sin(x) is steep at 1e4."""
  rows = np.ones((1, 1)), -np.array([threshold])
  found = certify(lambda _, x: f(x), None, jnp.array([[x]]), rows, eps, norm=norm, clip=None, method='ibp')
  assert not bool(found.verified[0])


@pytest.mark.parametrize('greatest', [.1, .7])
def test_the_greatest_certified_radius_is_that_of_certify(greatest):
  """Finds `greatest` rounded to nearest: .7 in float32 is less than .7, of which a certificate would not say enough."""
  given = None, jnp.full((1, 2), .05), (np.ones((1, 2)), np.ones(1))
  radii = certified_radius(lambda _, x: x, *given, greatest, clip=(0., greatest), steps=1)
  assert float(radii[0]) >= greatest
  assert bool(certify(lambda _, x: x, *given, greatest, clip=(0., greatest)).verified[0])


def test_the_hull_of_a_ball_holds_it():
  """Finds a hull rounded to nearest: bounds without `round_outward` start from it."""
  ball = lp_ball(jnp.ones(1), 1e-9)
  assert float(ball.hull.lower[0]) < 1 < float(ball.hull.upper[0])
