"""What overflows, vanishes, wraps around or has an infinite derivative: bounds stay true, gradients finite.

With all optimisations where bounds are rounded outward, which must hold however they are compiled.
"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import holds, samples
from interpreted import interpreted
from jax import lax

import ibpjax
from ibpjax import Elementwise, Interval, elementwise, ibp
from ibpjax.primitives import table


def box(low, high):
  return Interval(jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32))


def overflowed(x):
  """0, which float32 loses on the way: exp(90) is inf there."""
  return jnp.exp(x) - jnp.exp(x)


# Each as (function, argument, its value in exact arithmetic).
POINTS = {
    'product': (jnp.prod, [1e20, 1e-20, 1e20, 1e-20, 1.], 1.),
    'cumulative product': (lax.cumprod, [1e30, 1e30, 1e-30, 1e-30, 1e-30, 1.], [1e30, 1e60, 1e30, 1, 1e-30, 1e-30]),
    'scattered product': (lambda x: x.at[jnp.array([0, 0])].multiply(jnp.full(2, 1e-30)), [1e30], [1e-30]),
    'silu': (lambda x: jax.nn.silu(overflowed(x) + 5), [90.], [5 / (1 + np.exp(-5))]),
    'soft_sign': (lambda x: jax.nn.soft_sign(overflowed(x) + 5), [90.], [5 / 6]),
    'sort': (lambda x: jnp.sort(jnp.concatenate([overflowed(x), jnp.ones(1)])), [90.], [0, 1]),
    'top k': (lambda x: lax.top_k(jnp.concatenate([overflowed(x), jnp.ones(1)]), 2)[0], [90.], [1, 0]),
    'log of exp': (lambda x: jnp.minimum(jnp.log(jnp.exp(x)), 100), [90.], [90]),
    'reciprocal': (lambda x: 1 / jax.nn.squareplus(x), [-1e20], [1e20]),
    'sum that leaves the range': (lambda x: jnp.minimum((x + x) / 4, 1e38), [3e38], [1e38]),
}


@pytest.mark.optimized
@pytest.mark.parametrize('outward', [False, True])
@pytest.mark.parametrize('name', POINTS)
def test_exact_values_lie_inside_where_float32_has_lost_them(name, outward):
  f, x, exact = POINTS[name]
  bound = interpreted(ibp(f, round_outward=outward))(box(x, x))
  assert holds(bound, np.asarray(exact, np.float64)[None], 1e-5)


def standardized(x):
  return (x - x.mean()) * lax.rsqrt(x.var() + 1e-6)


@pytest.mark.optimized
@pytest.mark.parametrize('outward', [False, True])
def test_squares_that_overflow(outward):
  x = np.array([1., 2, 3, 5]) * 1e20
  bound = interpreted(ibp(standardized, round_outward=outward))(box(x, x))
  with jax.enable_x64(True):
    assert holds(bound, standardized(jnp.asarray(x))[None])
  assert holds(bound, standardized(jnp.asarray(x, jnp.float32))[None])


@pytest.mark.optimized
def test_softmax_without_a_shift_as_it_is_computed():
  x = box([100., 88.], [100., 88.])
  for f in (lambda x: jnp.exp(x) / jnp.exp(x).sum(), lambda x: jnp.log(jnp.exp(x).sum())[None]):
    bound = interpreted(ibp(f, round_outward=True))(x)  # float32 returns inf / inf = NaN, 0 and inf
    assert bool(jnp.all(jnp.isinf(bound.lower) & jnp.isinf(bound.upper)))
    assert bool(jnp.all(jnp.isfinite(interpreted(ibp(f))(x).width)))


SOME = jnp.array([True, True, False])
SHIFTS = {
    'none': lambda x: 0., 'mean': jnp.mean, 'greatest of a part': lambda x: x[:2].max(), 'number': lambda x: 20.,
    'more than the greatest': lambda x: 1.5 * x.max(), 'greatest': jnp.max, 'greatest, or a number': lambda x: jnp.max(
        x, initial=250.)}
EXPONENTIALS = {
    'softmax': lambda x, m: jnp.exp(x - m) / jnp.exp(x - m).sum(),
    'by a reciprocal': lambda x, m: jnp.exp(x - m) * (1 / jnp.exp(x - m).sum()),
    'log_softmax': lambda x, m: (x - m) - jnp.log(jnp.exp(x - m).sum()),
    'logsumexp': lambda x, m: jnp.log(jnp.exp(x - m).sum()) + m,
    'of some': lambda x, m: jnp.where(SOME, jnp.exp(x - m), 0) / jnp.where(SOME, jnp.exp(x - m), 0).sum(),
    'all, over some': lambda x, m: jnp.exp(x - m) / jnp.where(SOME, jnp.exp(x - m), 0).sum(),
}


@pytest.mark.optimized
@pytest.mark.parametrize(('name', 'shift'), [
    pytest.param(name, shift, marks=[] if name == 'softmax' or shift in ('mean', 'greatest') else pytest.mark.slow)
    for name in EXPONENTIALS for shift in SHIFTS])
def test_exponents_that_are_not_shifted_by_their_greatest(name, shift):
  """Alone finds a group taken for safe from overflow because some greatest element is subtracted, if not its own."""
  f = lambda x: EXPONENTIALS[name](x, SHIFTS[shift](x))
  bounded = jax.jit(ibp(f, round_outward=True))
  for x in ([0., 100., 100.], [0., 1000., 1000.], [-53.8, -287.7, 302.8], [-200., -250., 0.], [1., 2., 3.]):
    bound, value = bounded(box(x, x)), np.float64(f(jnp.asarray(x, jnp.float32)))
    lower, upper = np.float64(bound.lower), np.float64(bound.upper)
    infinite = (lower == -np.inf) & (upper == np.inf)
    assert np.all(infinite | ((lower <= value) & (value <= upper)))
    with jax.enable_x64(True):
      exact = np.asarray(f(jnp.asarray(np.float32(x), jnp.float64)))
    assert np.all(infinite | np.isnan(exact) | ((lower <= exact) & (exact <= upper)))
    if x == [1., 2., 3.] and shift != 'greatest, or a number':
      assert np.all(upper - lower < 1e-3)  # not vacuous where all goes well
  if shift == 'greatest' and name not in ('of some', 'all, over some'):
    assert np.all(np.isfinite(bounded(box([0., 1000., 1000.], [0., 1000., 1000.])).width))


@pytest.mark.parametrize('f', [jax.nn.log_softmax, jax.nn.softmax, jax.nn.logsumexp])
def test_products_less_the_greatest_of_them(f):
  """Alone finds that the greatest less itself is taken for 0: compilers join a * b - m, and do not round a * b."""
  g = lambda x: f((300 * x).reshape(2, 2), axis=1)
  found = box([-.7634, -.0491, 1.1101, .0035], [-.7614, -.0471, 1.1121, .0055])
  values = np.asarray(jax.jit(jax.vmap(g))(samples(found, 300)))
  bound = jax.device_get(ibp(g, round_outward=True)(found))
  assert np.all((values >= bound.lower) & (values <= bound.upper))
  assert float(bound.width.max()) < 2


@pytest.mark.optimized
@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize('keys', [64, 414_252])
def test_softmax_weights_below_the_least_normal_number_of_their_type(dtype, keys):
  """Alone finds an allowance for casts that is relative where rounding is not: 414 252 such weights sum to 1.0123."""
  def f(x):
    weights = jax.nn.softmax(jnp.concatenate([x, jnp.zeros(keys - 1)])).astype(dtype)
    return jnp.dot(weights, jnp.ones(keys, dtype), preferred_element_type=jnp.float32)
  x = box([0.], [0.])
  plain, outward = interpreted(ibp(f))(x), interpreted(ibp(f, round_outward=True))(x)
  for bound in (plain, outward):
    assert float(bound.lower) <= float(f(x.lower)) <= float(bound.upper)
  assert float(plain.width) < .06


def test_softmax_of_nothing_has_no_bounds():
  e = lambda x: jnp.where(jnp.array([False, False]), jnp.exp(x), 0)
  bound = interpreted(ibp(lambda x: e(x) / e(x).sum()))(box([0., 0.], [1., 1.]))
  assert bool(jnp.all(jnp.isinf(bound.lower) & jnp.isinf(bound.upper)))


@pytest.mark.optimized
@pytest.mark.parametrize('f', [jax.nn.softmax, jax.nn.log_softmax,
                               lambda x: jax.nn.softmax(x, where=jnp.arange(3) < 2)])
def test_softmax_of_a_box_wider_than_the_exponents(f):
  x = box([-300., -200., -300.], [0., -200., -300.])
  points = [-300., -200, -300], [0., -200, -300], [-150., -200, -300]
  values = np.stack([f(jnp.asarray(p, jnp.float32)) for p in points])
  assert holds(interpreted(ibp(f))(x), values, 1e-6)
  assert holds(interpreted(ibp(f, round_outward=True))(x), values, 0.)


# Each as (function of numbers, box, values that it takes there).
COUNTS = {
    'cast that wraps': (lambda x: ((x > 0).astype(jnp.int32) * 200).astype(jnp.int8), [0, -56]),
    'sum that wraps': (lambda x: (x > 0).astype(jnp.int8) * 127 + jnp.int8(1), [1, -128]),
    'count that wraps': (lambda x: jnp.tile(x > 0, 256).sum(dtype=jnp.uint8), [0, 0, 255]),
    'product that wraps': (lambda x: (x > 0).astype(jnp.int32) * 2 ** 30 * 4, [0, 0]),
    'difference': (lambda x: 3 - (x > 0).astype(jnp.int32), [3, 2]),
    'negative': (lambda x: -(x > 0).astype(jnp.int32), [0, -1]),
    'running count': (lambda x: jnp.cumsum(jnp.tile(x > 0, 3).astype(jnp.int32))[2:], [0, 3]),
}


@pytest.mark.parametrize('name', COUNTS)
def test_integers(name):
  f, reached = COUNTS[name]
  bound = interpreted(ibp(lambda x: f(x).astype(jnp.float32)))(box([-1.], [1.]))
  assert holds(bound, np.asarray(reached, np.float64)[:, None])
  if 'wraps' not in name:
    assert (float(bound.lower.squeeze()), float(bound.upper.squeeze())) == (min(reached), max(reached))


def test_a_number_as_a_boolean():
  bound = interpreted(ibp(lambda x: jax.nn.relu(x).astype(bool)))(box([-1., 1., -2.], [1., 2., -1.]))
  assert bound.lower.tolist() == [False, True, False]
  assert bound.upper.tolist() == [True, True, False]


@pytest.mark.parametrize(('f', 'message'), [
    (lambda x: x.at[0].apply(jnp.square), r'Write x.at\[i\].set'),
    (lambda x: lax.div((x > 0).astype(jnp.int32), jnp.ones(2, jnp.int32)).astype(x.dtype), 'Cast them to floats'),
    (lambda x: (jnp.uint8(3) - (x > 0).astype(jnp.uint8)).astype(x.dtype), 'Use signed integers')])
def test_what_has_no_bounds_says_what_to_write(f, message):
  with pytest.raises(NotImplementedError, match=message):
    ibp(f)(box([-1., 0.], [1., 2.]))


@pytest.mark.optimized
def test_small_slopes_do_not_vanish():
  f = lambda x: (1e-20 * x) * jnp.tanh(x) - (1e-20 * x) * .1
  bound = interpreted(ibp(f, round_outward=True))(box([0.], [.3]))
  assert float(bound.lower[0]) <= float(f(jnp.linspace(0, .3, 3001)).min())
  assert float(bound.lower[0]) > -2.8e-23


@pytest.mark.optimized
def test_products_that_vanish_add_up():
  x = np.full(200, 1e-20)
  bound = interpreted(ibp(lambda x: jnp.full((1, 200), 1e-19, x.dtype) @ x, round_outward=True))(box(x, x))
  assert float(bound.upper[0]) >= 200 * 1e-39
  for f, at in ((jax.nn.silu, -88.), (jax.nn.mish, -88.), (lambda x: jax.nn.gelu(x, approximate=False), -13.04)):
    bound = interpreted(ibp(f, round_outward=True))(box([at], [at]))
    with jax.enable_x64(True):
      exact = float(f(jnp.asarray(at)))
    assert float(bound.lower[0]) <= exact <= float(bound.upper[0])


def test_a_derivative_that_the_user_wrote_is_not_a_slope():
  @jax.custom_jvp
  def flat(x):
    return jnp.tanh(4 * x)
  flat.defjvp(lambda primals, tangents: (flat(*primals), 0 * tangents[0]))
  for fn in (lambda x: flat(x), lambda x: jnp.tanh(4 * lax.stop_gradient(x))):
    g = elementwise(Elementwise(lambda k: (), trend=1))(fn)
    f = lambda x, g=g: g(x) * (1.2 - x)
    assert float(interpreted(ibp(f))(box([0.], [1.])).upper[0]) >= float(f(jnp.linspace(0, 1, 10_001)).max())


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize(('primitive', 'f'), [('asinh', jnp.arcsinh), ('atan', jnp.arctan), ('tanh', jnp.tanh),
                                              (jax.nn.soft_sign, jax.nn.soft_sign)])
def test_flat_lines_far_out(primitive, f):
  row = next(row.elementwise for key, row in table.ROWS.items() if key is primitive or str(key) == primitive)
  x = Interval(jnp.asarray([1e4]), jnp.asarray([1e15]))
  for k in (1e-9, 1e-15, 1e-18, 1e-25):
    found = row.range(f, x, [], jnp.asarray([k]))
    points = jnp.exp(jnp.linspace(np.log(1e4), np.log(1e15), 4001))
    values = f(points) - k * points
    assert float(values.max()) <= float(found.upper[0]) + 1e-14
    assert float(values.min()) >= float(found.lower[0]) - 1e-14


@pytest.mark.parametrize(('f', 'low', 'high'), [
    (lambda x: jnp.sqrt(jnp.abs(x)), [-.5], [1.]), (lambda x: jnp.abs(x) ** .5, [-.5], [1.]),
    (jnp.std, [-.5, -.2], [1., 1.]), (lambda x: x * jnp.cbrt(x), [-.25], [.03]),
    (lambda x: x - jnp.sqrt(x * x), [-.5], [1.]), (lambda x: x * jnp.sqrt(1 + x), [-1.], [.5]),
    (lambda x: lax.pow(x, jnp.zeros(1)), [-1.], [1.]), (lambda x: x ** .5, [0.], [0.]),
    (lambda x: x * jnp.arcsin(x), [0.], [1.]), (jnp.arccosh, [1.], [2.]), (jnp.linalg.norm, [0., 0.], [0., 1.])])
def test_gradients_of_bounds_are_finite(f, low, high):
  width = lambda box: ibp(f)(box).width.sum()
  for gradient in (interpreted(jax.grad(width))(box(low, high)), interpreted(jax.jacfwd(width))(box(low, high))):
    assert np.all(np.isfinite(gradient.lower))
    assert np.all(np.isfinite(gradient.upper))


@pytest.mark.parametrize('f', [standardized, jax.nn.softmax, jax.nn.logsumexp,
                               lambda x: jax.nn.softmax(jnp.outer(x, x)) @ x])
def test_gradients_of_bounds_of_huge_boxes_are_not_nan(f):
  def finite_ends(box):
    bound = ibp(f, round_outward=True)(box)
    return sum(jnp.where(jnp.isfinite(e), e, 0).sum() for e in (bound.lower, bound.upper))
  gradient = interpreted(jax.grad(finite_ends))(box(np.full(4, -1e30), np.full(4, 1e30)))
  assert not np.any(np.isnan(gradient.lower) | np.isnan(gradient.upper))


def test_loops_that_vmap_joined_stop_each_by_itself():
  def one(n, a):
    return lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * .5 + 1), (0, a))[1]
  f = lambda x: jax.vmap(one)(jnp.arange(6), x)
  bound = interpreted(ibp(f))(box(np.zeros(6), np.ones(6)))
  np.testing.assert_allclose(bound.lower, f(jnp.zeros(6)))
  np.testing.assert_allclose(bound.upper, f(jnp.ones(6)))


@pytest.mark.parametrize('f', [jnp.sin, jnp.cos])
@pytest.mark.parametrize('centre', [1e3, 1e6, 1e7])
def test_waves_stay_between_their_crests(f, centre):
  bound = interpreted(ibp(f))(box([centre], [centre + 8]))
  assert (float(bound.lower[0]), float(bound.upper[0])) == (-1, 1)


def normalised(scale, epsilon):
  """A layer norm as layers compute it: the scale is multiplied with the root before what is normalised is."""
  def f(x):
    z = x - x.mean()
    return z * (lax.rsqrt(jnp.mean(z * z) + epsilon) * jnp.full(3, scale))
  return f


# Functions whose exact values are moderate, or that a group of operations stands for, and boxes.
SLIPS = {
    'a piece between points': (lambda x: ((4 - jnp.square(x - .53125)) * 8.5e37) * 1e-37 + x, [0.], [1.]),
    'square in a root': (lambda x: x + jnp.sqrt(jnp.square(x) + 4), [-2e19], [1.]),
    'squareplus': (jax.nn.squareplus, [-2e19], [1.]),
    'root times a little': (normalised(1e-25, 1e-6), [1e15, 2e15, 3e15], [1e15, 2e15, 3e15]),
    'root times much': (normalised(1e33, 1e-12), [1e-8, 2e-8, 2.5e-8], [1e-8, 2e-8, 2.5e-8]),
    'root times much, of equal ones': (lambda x: jnp.tanh(normalised(1e33, 1e-12)(x)), [.5] * 3, [.5] * 3),
    'blend': (lambda x: -1.5e38 + x[:1] * (x[1:] + 1.5e38), [1.5, 1e38], [1.5, 1e38]),
    'root of -0': (lambda x: jnp.tanh(lax.rsqrt(-jnp.minimum(x, 0.))), [-1.], [1.]),
}


@pytest.mark.optimized
@pytest.mark.parametrize('method', ['ibp', 'crown', 'lbp'])
@pytest.mark.parametrize('name', SLIPS)
def test_what_is_computed_on_the_way_may_overflow(name, method):
  """Alone finds bounds of a group, or of a slope, that hold for the exact function and not for how it is computed."""
  f, low, high = SLIPS[name]
  bound = interpreted(getattr(ibpjax, method)(f, round_outward=True))(box(low, high))
  points = np.concatenate([np.linspace(low, high, 33, dtype=np.float32), np.float32([low, high])])
  lower, upper = np.asarray(bound.lower), np.asarray(bound.upper)
  for value in (*(jax.jit(f)(p) for p in points), *(f(jnp.asarray(p)) for p in points[::16])):
    value = np.asarray(value)
    assert np.all(((lower == -np.inf) & (upper == np.inf)) | ((value >= lower) & (value <= upper)))


@pytest.mark.parametrize(('f', 'low', 'high', 'width'), [
    (SLIPS['a piece between points'][0], [.1], [.3], 10.), (SLIPS['square in a root'][0], [-2e3], [1.], 4.),
    (normalised(1e-15, 1e-6), [1., 2., 4.], [1.01, 2., 4.], 1e-14),
    (normalised(1e20, 1e-12), [1., 2., 3.], [1., 2., 3.01], 1e20),
    (lambda x: x[:1] + x[1:] * (3 - x[:1]), [1., .4], [2., .5], 2.), (lambda x: lax.rsqrt(x), [1e-3], [1.], 40.)])
def test_what_does_not_overflow_keeps_its_bounds(f, low, high, width):
  assert float(interpreted(ibp(f, round_outward=True))(box(low, high)).width.max()) < width


CANCEL = np.random.default_rng(0).permutation(np.float32([3e38, -3e38] * 32))
SUMS = {
    'dot': lambda x: CANCEL[None] @ x, 'sum': lambda x: (CANCEL * x).sum(), 'running': lambda x: jnp.cumsum(CANCEL * x),
    'windows': lambda x: lax.reduce_window(CANCEL * x, 0., lax.add, (9,), (1,), 'VALID'),
    'convolution': lambda x: jnp.convolve(x, CANCEL[:9], 'valid'),
    'scattered': lambda x: jnp.zeros(1).at[jnp.zeros(64, int)].add(CANCEL * x),
    'two perturbed': lambda x: (CANCEL * x)[None] @ x, 'in float16': lambda x: (
        (CANCEL / 1e34).astype(jnp.float16)[None] @ x.astype(jnp.float16)).astype(x.dtype)}


@pytest.mark.optimized
@pytest.mark.parametrize('name', SUMS)
def test_sums_that_overflow_in_another_order(name):
  """Alone finds a sum of terms that cancel whose partial sums are infinite: inf - inf, in an order of XLA's choice."""
  for method in (ibpjax.ibp, ibpjax.crown):
    bound = interpreted(method(SUMS[name], round_outward=True))(box(np.ones(64), np.ones(64)))
    assert np.all(np.isinf(bound.lower) & np.isinf(bound.upper))
    little = interpreted(method(lambda x: SUMS[name](x * 1e-6), round_outward=True))(box(np.ones(64), np.ones(64)))
    assert np.all(np.isfinite(little.width))


def test_a_contraction_that_overflows_where_its_bound_is_computed_is_unknown():
  """Alone finds that the middle of a box, infinite by overflow, is taken for the value: which is 12 here, exactly."""
  with jax.enable_x64(False):
    huge, x = jnp.full((1, 1), 3e38), jnp.full(1, 2.)
    f = lambda huge: ibp(lambda x: jnp.minimum(huge @ x * 2e-38, 20.))(Interval(x - 1e-3, x + 1e-3))
    unknown, known = f(huge), f(huge / 2)
  assert float(unknown.lower[0]) <= 12 <= float(unknown.upper[0])
  assert 5.9 < float(known.lower[0]) <= 6 <= float(known.upper[0]) < 6.1
