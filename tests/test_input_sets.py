"""Input sets: what their support says is exact or holds, for every method; a new one is one class."""
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import contains, holds
from interpreted import interpreted
from networks import random_network, shallow
from scipy.optimize import linprog

import ibpjax
from ibpjax import Interval, crown, ibp, l0_ball, lbp, linf_ball, polytope, zonotope

RNG = np.random.default_rng(0)
METHODS = {'ibp': functools.partial(ibp, elide=True), 'lbp': lbp, 'crown': crown,
           'crown, outward': functools.partial(crown, round_outward=True), 'zonotope': zonotope,
           'zonotope, outward': functools.partial(zonotope, round_outward=True),
           'lbp, outward': functools.partial(lbp, round_outward=True)}


def relu_network(params, x):
  return shallow(params, x, jax.nn.relu)


def inside_l0(ball, n):
  """Points of an l0 ball: k elements at ends of their ranges or between."""
  points = np.repeat(np.asarray(ball.centre)[None], n, 0)
  for point in points:
    moved = RNG.choice(ball.size, ball.k, replace=False)
    ends = np.asarray(ball.lower).ravel()[moved], np.asarray(ball.upper).ravel()[moved]
    t = RNG.choice([0., 1., RNG.uniform()], ball.k)
    point.reshape(-1)[moved] = (1 - t) * ends[0] + t * ends[1]
  return points


def inside_polytope(set_, n):
  """Points of a polytope: corners that linear programs find in random directions, and what lies between two."""
  a, b = np.asarray(set_.a).reshape(len(set_.b), -1), np.asarray(set_.b)
  limits = [*zip(np.asarray(set_.box.lower).ravel(), np.asarray(set_.box.upper).ravel())]
  corners = np.stack([linprog(RNG.normal(size=a.shape[1]), a, b, bounds=limits).x for _ in range(n)])
  return np.concatenate([corners, (corners + corners[::-1]) / 2]).reshape(-1, *set_.shape)


@pytest.mark.usefixtures('x64')
def test_the_support_of_an_l0_ball_is_exact():
  """Alone finds a support that takes the wrong elements, or too few, or the wrong end."""
  w, x = RNG.normal(size=(4, 5)), RNG.uniform(size=5)
  ball = l0_ball(jnp.asarray(x), 2, 0., 1.)
  found = interpreted(ibp(lambda x: jnp.asarray(w) @ x))(ball)
  points = []
  for moved in itertools.combinations(range(5), 2):
    for ends in itertools.product((0., 1.), repeat=2):
      point = x.copy()
      point[list(moved)] = ends
      points.append(point)
  values = np.stack([x, *points]) @ w.T
  np.testing.assert_allclose(found.lower, values.min(0), atol=1e-12)
  np.testing.assert_allclose(found.upper, values.max(0), atol=1e-12)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('constraints', [1, 3, 12])
def test_the_support_of_a_polytope_beside_linear_programs(constraints):
  """Alone finds a multiplier of the wrong sign, which gives bounds inside of the range, and an ascent that stalls."""
  n = 8
  a, box = RNG.normal(size=(constraints, n)), Interval(-np.ones(n), np.ones(n))
  b = a @ RNG.uniform(-.5, .5, n) + .1
  rows = RNG.normal(size=(20, n))
  exact = np.asarray([[sign * linprog(sign * row, a, b, bounds=(-1, 1)).fun for sign in (1, -1)] for row in rows])

  def found(steps):
    return interpreted(ibp(lambda x: jnp.asarray(rows) @ x))(polytope(box, a, b, steps))
  whole = np.abs(rows).sum(1)
  for steps in (0, 1, 8):
    bound = found(steps)
    assert (bound.lower <= exact[:, 0] + 1e-9).all()
    assert (bound.upper >= exact[:, 1] - 1e-9).all()
    assert contains(Interval(-whole, whole), bound, 1e-12)
  left = (np.asarray(bound.width) - (exact[:, 1] - exact[:, 0])).sum()  # of what the constraints are worth
  assert left < .2 * (2 * whole - (exact[:, 1] - exact[:, 0])).sum()
  assert np.allclose(found(0).width, 2 * whole)


@pytest.mark.parametrize('method', METHODS)
def test_every_method_is_sound_and_gains_by_the_set(method):
  """Alone finds a method that goes on from another set than the given one, in float32 with its rounding too."""
  params, x = random_network(shallow, 3)
  params, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (params, x))
  f = interpreted(functools.partial(METHODS[method], relu_network)())
  box = linf_ball(x, .5)
  a, b = np.asarray([[1., 1., 1.], [-1., 2., 0.]]), np.asarray(np.asarray([[1., 1., 1.], [-1., 2., 0.]]) @ x + .05)
  values = jax.vmap(lambda x: relu_network(params, x))
  for set_, points in ((l0_ball(x, 1, x - .5, x + .5), None), (polytope(box, a, b), None)):
    points = inside_l0(set_, 300) if isinstance(set_, ibpjax.L0Ball) else inside_polytope(set_, 40)
    bound = f(params, set_)
    assert holds(bound, values(jnp.asarray(points, jnp.float32)), 0 if 'outward' in method else 1e-5)
    assert bound.width.sum() < .95 * f(params, box).width.sum()


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('set_', [
    lambda x: l0_ball(x, 3, 0., 1.),
    lambda x: polytope(linf_ball(x, .2), np.ones((1, *x.shape)), np.asarray([float(x.sum()) - .2 * x.size + .5]))])
def test_windows_of_images(set_):
  """Alone finds a window that is taken for the whole set, or a set that is cut where it must not be."""
  kernels = [RNG.normal(size=(3, 3, c, d)) for c, d in ((1, 2), (2, 2))]

  def f(x):
    for kernel in kernels:
      x = jax.nn.relu(jax.lax.conv_general_dilated(
          x[None], jnp.asarray(kernel), (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))[0] - .3)
    return x
  x = jnp.asarray(RNG.uniform(size=(7, 7, 1)))
  inputs = set_(x)
  points = inside_l0(inputs, 200) if isinstance(inputs, ibpjax.L0Ball) else inside_polytope(inputs, 30)
  values = interpreted(jax.vmap(f))(points)
  for method in (lbp, crown):
    bound, whole = (interpreted(method(f))(s) for s in (inputs, inputs.hull))
    assert holds(bound, values)
    assert contains(whole, bound, 1e-9)
    assert bound.width.sum() < .99 * whole.width.sum()


def test_rounding_is_allowed_for():
  """Alone finds a support without its allowance: float32 sums of terms of 1e6 that cancel, and constraints of 1e4."""
  n = 64
  rows = (1e6 * RNG.normal(size=(8, n))).astype(np.float32)
  x = RNG.uniform(1, 2, n).astype(np.float32)
  a = (1e4 * RNG.normal(size=(3, n))).astype(np.float32)
  at = a.astype(np.float64) @ x
  sets = [l0_ball(x, 0, x, x), ibpjax.LpBall(jnp.asarray(x), jnp.zeros((), jnp.float32), 2.),
          polytope(Interval(jnp.asarray(x), jnp.asarray(x)), a, np.asarray(at))]
  exact = rows.astype(np.longdouble) @ x.astype(np.longdouble)
  for set_ in sets:
    bound = ibp(lambda x: jnp.asarray(rows) @ x, round_outward=True, elide=True)(set_)
    assert (np.asarray(bound.lower, np.longdouble) <= exact).all()
    assert (exact <= np.asarray(bound.upper, np.longdouble)).all()
    assert (bound.width < 1e-3 * np.abs(rows).sum(1)).all()


def test_no_point_is_lost_where_constraints_are_rounded():
  """Alone finds constraints that are rounded to nearest: the point (.3, .7) satisfies .1 x + .7 y <= .52 exactly."""
  box = linf_ball(jnp.asarray([.3, .7], jnp.float32), .1)
  x = [np.longdouble(v) for v in np.asarray([.3, .7], np.float32)]
  for seed in range(50):
    a = np.random.default_rng(seed).normal(size=2)
    b = a[0] * x[0] + a[1] * x[1]
    found = polytope(box, a[None], np.asarray([b]))
    at = sum(np.longdouble(c) * v for c, v in zip(np.asarray(found.a)[0], x))
    assert at <= np.longdouble(np.asarray(found.b)[0])


def test_sets_compose_with_transformations():
  params, x = random_network(shallow, 1)
  params, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (params, x))
  xs = jnp.stack([x, -x])

  def lower(params, x):
    return crown(relu_network)(params, l0_ball(x, 1, -2., 2.)).lower
  many = jax.jit(jax.vmap(lower, (None, 0)))(params, xs)
  np.testing.assert_allclose(many[1], lower(params, -x), rtol=1e-4, atol=1e-5)
  gradient = jax.grad(lambda params: lower(params, x).sum())(params)
  assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(gradient[0]))

  def over(b):
    box = linf_ball(x, .5)
    return crown(relu_network)(params, polytope(box, jnp.ones((1, 3), jnp.float32), b)).lower.sum()
  slope = jax.grad(over)(jnp.sum(x)[None])
  assert slope < 0  # more room, lower bounds


def test_what_is_no_set_bounds_nothing_under_jit():
  """Alone finds a certificate from a set of NaN that was traced."""
  def bad(x):
    return l0_ball(x, 1, 0., 1.)

  def worse(x):
    return polytope(linf_ball(jnp.ones(2), .1), jnp.stack([x, x])[:1], jnp.ones(1))
  for make in (bad, worse):
    bound = jax.jit(lambda x, make=make: crown(lambda z: z.sum())(make(x)))(jnp.asarray([np.nan, .5]))
    assert bound.lower == -np.inf
    assert bound.upper == np.inf


@pytest.mark.parametrize(('make', 'error', 'match'), [
    (lambda: l0_ball(jnp.ones(2), -1, 0., 1.), ValueError, 'a whole number >= 0'),
    (lambda: l0_ball(jnp.ones(2), 1, 0., .5), ValueError, 'minimum <= x <= maximum'),
    (lambda: l0_ball(jnp.ones(2, int), 1, 0, 1), TypeError, 'bounds need floating point'),
    (lambda: polytope(jnp.ones(2), np.ones((1, 2)), np.ones(1)), TypeError, 'give an Interval'),
    (lambda: polytope(linf_ball(jnp.ones(2), .1), np.ones((1, 3)), np.ones(1)), ValueError, r'have \(n, 2\)'),
    (lambda: polytope(linf_ball(jnp.ones(2), .1), np.full((1, 2), np.nan), np.ones(1)), ValueError, 'leave it out'),
    (lambda: ibp(jnp.sum)(ibpjax.Polytope(linf_ball(jnp.ones(2), .1), np.ones((1, 2)), np.ones(1))), TypeError,
     'argument 0 is a polytope whose box has dtype float32'),
])
def test_bad_sets_are_one_clear_error(make, error, match):
  with pytest.raises(error, match=match):
    make()


def test_a_set_that_forgets_a_member_is_refused():
  with pytest.raises(TypeError, match='does not define `support`'):
    type('Half', (ibpjax.InputSet,), dict(representative=0, hull=0, validated=0))
