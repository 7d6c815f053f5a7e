"""Numbers below the least normal one: bounds hold what is exact and what is computed, which may be far apart."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, FIRST, TOGETHER
from checks import leaves
from jax import lax
from weighing import attacked, escapes

import ibpjax
from ibpjax import Interval, crown, ibp, lbp, linf_ball
from ibpjax.composites.univariate import Univariate
from ibpjax.core.composite import Composite
from ibpjax.core.subnormal import is_subnormal, may_be_subnormal
from ibpjax.rules.rounding import normal_ends

pytestmark = pytest.mark.optimized
LITTLE = np.float32(1e-40)


def at(*x):
  a = jnp.asarray(np.asarray(x, np.float32))
  return Interval(a, a)


# Each as (function, argument, exact value); as it is computed, all but the last two are 0, NaN or infinite.
POINTS = {
    'sqrt': (jnp.sqrt, [1e-40], [1e-20]),
    'times much': (lambda x: x * 1e38, [1e-40], [.01]),
    'times a known little': (lambda x: x * LITTLE, [1e38], [.01]),
    'times a perturbed little': (lambda x: x[:1] * x[1:], [1e-40, 1e38], [.01]),
    'dot with known little': (lambda x: jnp.full((1, 2), LITTLE) @ x, [1e38, 1e38], [.02]),
    'dot with perturbed little': (lambda x: x @ x[::-1], [1e-40, 1e38], .02),
    'over a known little': (lambda x: x / LITTLE, [1e-10], [1e30]),
    'over a perturbed little': (lambda x: x[:1] / x[1:], [1e-10, 1e-40], [1e30]),
    'over much, by its reciprocal': (lambda x: x / 2e38, [1e38], [.5]),
    'scattered product': (lambda x: x.at[0].multiply(LITTLE), [1e38], [.01]),
    'power': (lambda x: LITTLE ** x, [-.5], [1e20]),
    'log': (jnp.log, [1e-40], [np.log(1e-40)]),
    'sign': (jnp.sign, [1e-40], [1.]),
    'ceil': (jnp.ceil, [1e-40], [1.]),
    'comparison': (lambda x: (x > 0).astype(x.dtype), [1e-40], [1.]),
    'comparison with a known little': (lambda x: (x < LITTLE).astype(x.dtype), [0.], [1.]),
    'angle': (lambda x: jnp.arctan2(x[:1], x[1:]), [1e-40, 1e-40], [np.pi / 4]),
    'select': (lambda x: jnp.where(x[::-1] > 0, x, -1.), [1e-40, 2e-40], [1e-40, 2e-40]),
    'reciprocal': (lambda x: 1 / x, [1e-38 / 2], [2e38]),
    'sort': (jnp.sort, [2e-39, -1e-39, 1e-39, -2e-39], [-2e-39, -1e-39, 1e-39, 2e-39]),
    'top k': (lambda x: lax.top_k(x, 2)[0], [-1e-39, 1e-39, 2e-39], [2e-39, 1e-39]),
    'cbrt': (jnp.cbrt, [1e-39], [1e-13]),
    'max with a known little, times much': (lambda x: jnp.maximum(x, LITTLE) * 1e38, [-1.], [.01]),
    'beside a known little, times much': (lambda x: jnp.concatenate([x, LITTLE[None]]) * 1e38, [1.], [1e38, .01]),
    'cast from half': (lambda x: x.astype(jnp.float16).astype(x.dtype), [3e-8], [2. ** -24]),
    'cast to bfloat16': (lambda x: x.astype(jnp.bfloat16).astype(x.dtype), [1e-40], [1e-40]),
}


METHODS = {'ibp': ibp, 'elided': functools.partial(ibp, elide=True), 'crown': crown, 'lbp': lbp}


@functools.cache
def at_point(name):
  """The exact value of a function, and what it is as it is computed operation by operation, and compiled."""
  f, x, exact = POINTS[name]
  return exact, *(np.float64(run(jnp.asarray(x, jnp.float32))) for run in (f, jax.jit(f)))


@pytest.mark.parametrize(('method', 'compiled'), [
    ('ibp', False), ('ibp', True), ('crown', True), ('lbp', True),
    *(pytest.param(*way, marks=pytest.mark.slow) for way in (
        ('elided', True), ('elided', False), ('crown', False), ('lbp', False)))])
@pytest.mark.parametrize('name', POINTS)
def test_exact_and_computed_values_lie_inside(name, method, compiled):
  """Alone finds a step that takes what it cannot tell from 0 for 0: float comparisons cannot either."""
  f, x, _ = POINTS[name]
  bounding = METHODS[method](f, round_outward=True)
  bound = (jax.jit(bounding) if compiled else bounding)(at(*x))
  lower, upper = np.float64(bound.lower), np.float64(bound.upper)
  for value in at_point(name):
    assert np.all(((lower <= value) & (value <= upper)) | (np.isinf(lower) & np.isinf(upper)))


@pytest.mark.parametrize(('f', 'x', 'width'), [
    (jnp.sqrt, 1e-40, 2e-19), (lambda x: x * 1e38, 1e-40, 30.), (lambda x: x * LITTLE, 1e38, 3.),
    (lambda x: x / 2e38, 1e38, 3.), (jax.nn.relu, 1e-40, 2e-38), (lambda x: x * 3, 1., 1e-5), (jnp.sqrt, 0., 1e-18)])
def test_what_they_cost_is_little(f, x, width):
  assert float(ibp(f, round_outward=True)(at(x)).width[0]) < width


@pytest.mark.parametrize('compiled', [False, True])
def test_ends_are_moved_outward_to_normal_numbers(compiled):
  run = jax.jit(normal_ends) if compiled else normal_ends
  tiny = float(jnp.finfo(jnp.float32).tiny)
  x = np.float32([0., -0., 1e-45, -1e-45, 1.17549e-38, -1e-40, tiny, -tiny, 1., -np.inf])
  moved = run(at(*x))
  np.testing.assert_array_equal(moved.lower, np.float32([0, 0, 0, -tiny, 0, -tiny, tiny, -tiny, 1, -np.inf]))
  np.testing.assert_array_equal(moved.upper, np.float32([0, 0, tiny, 0, tiny, 0, tiny, -tiny, 1, -np.inf]))
  assert is_subnormal(jnp.asarray(x)).tolist() == [False, False, True, True, True, True, False, False, False, False]
  assert may_be_subnormal(np.float32(1e-40)[None])
  assert not may_be_subnormal(x[[0, 6, 8, 9]])
  half = jnp.asarray([6e-8], jnp.float16)
  assert float(run(Interval(half, half)).lower[0]) == float(half[0])  # kept


def test_gradients_pass_them():
  slope = jax.grad(lambda x: ibp(lambda x: 3 * x, round_outward=True)(Interval(x, x)).upper.sum())(jnp.ones(2))
  np.testing.assert_allclose(slope, 3, rtol=1e-5)


def test_a_network_with_weights_that_died_is_certified():
  """Weights that decayed below the least normal number allow for 0 in their place, which is next to nothing."""
  w = jnp.asarray(np.where(np.arange(12).reshape(3, 4) % 3 == 0, LITTLE, np.eye(3, 4)), jnp.float32)
  x, label = jnp.asarray([[.1, .9, .2, .1]]), jnp.ones(1, int)
  certificate = ibpjax.certify(lambda w, x: w @ jax.nn.relu(x), w, x, label, .05)
  assert leaves(certificate.lower)[0].shape == (1, 2)
  assert bool(certificate.verified[0])
  assert float(certificate.lower.min()) > .5


def test_comparisons_agree_compiled_or_not():
  f = ibp(lambda x: lax.lt(x, jnp.zeros_like(x)), round_outward=True)
  for x in (1e-40, -1e-40, 0.):
    eager, compiled = f(at(x)), jax.jit(f)(at(x))
    assert eager.lower.tolist() == compiled.lower.tolist()
    assert eager.upper.tolist() == compiled.upper.tolist()


GROUPS = [name for name in CASES if name in FIRST and any(
    isinstance(eqn.key, Composite | Univariate) for eqn in TOGETHER[name].equations)]


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('name', GROUPS)
def test_groups_of_operations_on_boxes_of_any_size(name):
  """Alone finds a group whose bound is relative to what it is of: middles and products vanish near the least number."""
  case, rng = CASES[name], np.random.default_rng(0)
  bounded, bounds = jax.jit(ibp(case.f, round_outward=True)), []
  for k in range(32):
    scale = 10. ** (rng.uniform(-44, 38) if k % 2 else rng.uniform(-40, -35))
    x = np.clip(rng.normal(size=case.shape) * scale, -3e38, 3e38).astype(np.float32)
    box = linf_ball(x, float(rng.choice([0., 1e-3, 1.])) * min(scale, 1e37), -3e38, 3e38)
    bounds.append(bounded(box))
    assert not escapes(case.f, {'ibp': bounds[-1]}, box, attacked(case.f, box, 60, k))['ibp']
  assert np.mean([np.isfinite(b.lower).all() for b in bounds]) > .6
