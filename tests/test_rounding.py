"""Outward rounding: bounds that hold for float32 as it is computed, and for the exact function."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import leaves
from flax import nnx
from interpreted import interpreted
from jax import lax

import ibpjax
from ibpjax import Interval, alpha_crown, crown, elementwise, ibp, lbp, nn
from ibpjax.core.products import gamma
from ibpjax.core.program import trace
from ibpjax.core.row import INCREASING, OWN, Elementwise, Row
from ibpjax.primitives import nonlinear, table
from ibpjax.rules import accuracy

RNG = np.random.default_rng(0)


@functools.cache
def batched(f):
  """A function of one array at many: as XLA compiles it, and as NumPy computes it."""
  return jax.jit(jax.vmap(f)), interpreted(jax.vmap(f))


def violations(f, bound, box, count=200):
  """How many sampled values of `f`, compiled in float32 and exact, leave the bounds computed in float32."""
  compiled, exact = batched(f)
  t = RNG.choice([0., 1., .5, .3], (count, *box.shape))
  points = np.float32(np.asarray(box.lower) + (np.asarray(box.upper) - np.asarray(box.lower)) * t)
  points = np.clip(points, box.lower, box.upper)
  single = np.asarray(compiled(jnp.asarray(points)), np.float64)
  with jax.enable_x64(True):
    double = np.asarray(exact(jnp.asarray(points, jnp.float64)))
  lower, upper = np.asarray(bound.lower, np.float64), np.asarray(bound.upper, np.float64)
  return sum(int(np.sum((v < lower) | (v > upper))) for v in (single, double))


def weights(*shape, scale=1.):
  w = np.float32(RNG.normal(size=shape) * scale)
  return lambda x: jnp.asarray(w, x.dtype)


A, B, C = weights(200, 64, scale=30.), weights(64, 64), weights(3, 64)
NETS = {
    'dense': lambda x: A(x) @ x,
    'cancellation': lambda x: (A(x) @ x + 1e4) - 1e4,
    'deep': lambda x: C(x) @ jax.nn.relu(B(x) @ jax.nn.relu(B(x) @ jnp.tanh(x))),
    'margin': lambda x: ibpjax.margins(C(x) @ jax.nn.relu(B(x) @ x), 1),
    'sum': lambda x: jnp.cumsum(x * 1e3)[::7].sum() - 1e3 * x.sum(),
    'scatter': lambda x: (jnp.full(1, 1e8, x.dtype).at[jnp.zeros(64, int)].add(x)) - 1e8,
    'scan': lambda x: lax.scan(lambda c, _: (jnp.tanh(B(x) @ c), c.sum()), x, length=5)[1],
    'smooth': lambda x: jax.nn.softplus(3 * x) * jax.nn.sigmoid(x) - jnp.log1p(jnp.square(x)) / (1 + jnp.exp(x)),
    'integer power': lambda x: lax.integer_pow(x, 31),
    'jacobian': jax.grad(lambda x: (C(x) @ jax.nn.relu(B(x) @ x)).sum()),
    'pooled': lambda x: lax.reduce_window(x.reshape(1, 8, 8, 1), 0., lax.add, (1, 3, 3, 1), (1, 1, 1, 1), 'SAME') / 9,
    'softmax': lambda x: jax.nn.softmax(B(x) @ x),
    'sharp softmax': lambda x: jax.nn.softmax((A(x) @ x).reshape(10, 20), axis=1),
    'log_softmax': lambda x: jax.nn.log_softmax((A(x) @ x).reshape(10, 20), axis=0),
    'logsumexp': lambda x: jax.nn.logsumexp((A(x) @ x).reshape(10, 20), axis=1),
    'layer norm': lambda x: jax.nn.standardize((B(x) @ x).reshape(8, 8)),
    'layer norm of a large mean': lambda x: jax.nn.standardize(x.reshape(8, 8) + 100.),
    'layer norm of two': lambda x: jax.nn.standardize(x.reshape(32, 2), epsilon=1e-12),
    'rms': lambda x: x * lax.rsqrt(jnp.mean(jnp.square(x)) + 1e-6),
    'x / norm': lambda x: x / jnp.linalg.norm(x),
    'attention': lambda x: jax.nn.softmax((B(x) @ x).reshape(8, 8), axis=1) @ x.reshape(8, 8),
    'attention in bfloat16': lambda x: (jax.nn.softmax((B(x) @ x).reshape(8, 8), axis=1).astype(jnp.bfloat16)
                                        @ x.reshape(8, 8).astype(jnp.bfloat16)).astype(x.dtype),
    'blend': lambda x: (1 - jax.nn.sigmoid(x)) * (B(x) @ x) + jax.nn.sigmoid(x) * x,
    'of one value': lambda x: x * jnp.exp(-x * x) + jnp.sin(x) * x,
    'gates': lambda x: jax.nn.silu(x) * jax.nn.gelu(B(x) @ x) - jax.nn.mish(x),
    'products': lambda x: jnp.prod(x.reshape(8, 8), axis=1) + lax.cumprod(x.reshape(8, 8), axis=1)[:, 3],
    'power': lambda x: (2 + jnp.sin(x)) ** jnp.cos(B(x) @ x),
    'sorted': lambda x: jnp.cumsum(jnp.sort(x)),
    'variance': lambda x: jnp.var(x.reshape(8, 8) + 10, axis=1),
    'convolution': lambda x: lax.conv_general_dilated(
        x.reshape(1, 8, 8, 1), B(x)[:5].reshape(5, 8, 1, 8), (1, 1), 'SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC')),
}


# With linear methods, loops and composites are their boxes in certificates.
BY_BOXES = {'scan', 'softmax', 'sharp softmax', 'log_softmax', 'logsumexp', 'layer norm', 'rms', 'x / norm',
            'attention', 'blend'}
# Here rounding itself is as large as the box.
PRICED = {'scatter', 'cancellation', 'layer norm of a large mean', 'layer norm of two', 'attention in bfloat16'}


METHODS = {
    'ibp': ibp,
    'ibp elided': functools.partial(ibp, elide=True),
    'crown': crown,
    'lbp': lbp,
    'alpha-crown': functools.partial(alpha_crown, steps=3),
}
BRIEFLY = ('deep', 'gates', 'scan', 'convolution')  # nets that the other methods are tried on
SLOW = {('smooth', 'crown'), ('gates', 'crown'), ('gates', 'lbp'), ('deep', 'alpha-crown'), ('gates', 'alpha-crown')}


def pairs():
  """A net and a method: all nets by IBP and CROWN; the other methods on a few, on all in `make test-all`.

  By IBP and on those few with all optimisations, as users compile: rounding may depend on them. CROWN's other bounds
  are computed by NumPy.
  """
  for name in NETS:
    for method in METHODS if name in BRIEFLY else [m for m in METHODS if m != 'alpha-crown']:
      sample = (method in ('ibp', 'crown') or name in BRIEFLY) and (name, method) not in SLOW
      compiled = [pytest.mark.optimized] if method == 'ibp' or name in BRIEFLY else []
      yield pytest.param(name, method, jax.jit if compiled else interpreted,
                         marks=compiled if sample else [*compiled, pytest.mark.slow])


@pytest.mark.parametrize(('name', 'method', 'run'), [*pairs()])
def test_single_and_double_precision_values_lie_inside(name, method, run):
  f = NETS[name]
  outward, plain = run(METHODS[method](f, round_outward=True)), interpreted(METHODS[method](f))
  rng = np.random.default_rng(0)
  widths = []
  for radius in (0., 1e-7, *[1e-2] * 8):
    x = np.float32(rng.normal(size=64))
    box = Interval(jnp.asarray(x - np.float32(radius)), jnp.asarray(x + np.float32(radius)))
    bound = outward(box)
    assert violations(f, bound, box) == 0
    widths.append((float(bound.width.sum()), float(plain(box).width.sum())))
  loops = not method.startswith('ibp') and name in BY_BOXES
  if name not in PRICED and not loops:
    price = 1.1 if method.startswith('ibp') else 1.3  # linear functions are sums of greater terms
    rounded, unrounded = np.sum(widths[2:], 0)
    assert rounded < price * unrounded


def test_without_outward_rounding_degenerate_boxes_do_leave_their_bounds():
  """The test above can fail: this is what it would see."""
  x = jnp.asarray(RNG.normal(size=64), jnp.float32)
  bound = ibp(NETS['dense'])(Interval(x, x))
  with jax.enable_x64(True):
    exact = np.asarray(NETS['dense'](jnp.asarray(x, jnp.float64)))
  assert np.any((exact < np.asarray(bound.lower)) | (exact > np.asarray(bound.upper)))


@pytest.mark.parametrize('p', [1., 2., 5.])
def test_balls_are_rounded_outward(p):
  centre = jnp.asarray(RNG.normal(size=64), jnp.float32)
  bound = jax.jit(ibp(NETS['deep'], round_outward=True))(ibpjax.lp_ball(centre, 0., p))
  with jax.enable_x64(True):
    exact = NETS['deep'](jnp.asarray(centre, jnp.float64))
  assert np.all((np.asarray(exact) >= np.asarray(bound.lower)) & (np.asarray(exact) <= np.asarray(bound.upper)))
  touching = ibp(jax.nn.relu, round_outward=True)(ibpjax.lp_ball(jnp.ones(1), 4e-8, 2.))
  assert float(touching.upper[0]) > 1


def test_functions_that_cancel_can_say_so():
  def cancels(x):
    return jnp.log(1 + jnp.exp(x))

  x, inside = jnp.full(1, -14., jnp.float32), {}
  for roundings in (16., 1e7):
    f = elementwise(Elementwise(lambda k: (), trend=1, roundings=roundings))(cancels)
    bound = ibp(f, round_outward=True)(Interval(x, x))
    inside[roundings] = bool(bound.lower[0] <= np.logaddexp(0, -14.) <= bound.upper[0])
  assert inside == {16.: False, 1e7: True}


def test_networks_of_the_papers_lose_little():
  model = nn.dm_small(rngs=nnx.Rngs(0))
  x = jnp.asarray(RNG.uniform(size=(28, 28, 1)), jnp.float32)
  one = ibpjax.batched(lambda m, x: m(x))
  for eps, price in ((1e-3, 1.15), (.1, 1.01)):
    box = ibpjax.linf_ball(x, eps)
    plain, outward = (jax.jit(ibp(one, elide=True, round_outward=r))(model, box) for r in (False, True))
    assert bool(jnp.all(outward.lower <= plain.lower))
    assert float(outward.width.mean()) < price * float(plain.width.mean())


def test_gamma():
  assert gamma(10, 2. ** -24) == pytest.approx(10 * 2. ** -24, rel=1e-5)
  assert gamma(1e8, 2. ** -24) == np.inf


def test_precision_asked_for_by_the_model_counts():
  low = lambda x: jnp.dot(B(x), x, precision=lax.Precision.DEFAULT)
  high = lambda x: B(x) @ x
  x = jnp.ones(64)
  box = Interval(x - 1e-4, x + 1e-4)
  wide, narrow = (leaves(ibp(f, round_outward=True)(box))[0].width.mean() for f in (low, high))
  assert wide > 10 * narrow


def test_rounding_keeps_the_finite_end_of_a_half_line():
  bound = ibp(jnp.log, round_outward=True)(Interval(jnp.zeros(1), jnp.ones(1) * 2))
  assert float(bound.lower[0]) == -np.inf
  assert np.log(2) < float(bound.upper[0]) < np.log(2) * (1 + 1e-5)


def test_rows_are_not_pulled_back_through_a_cast_into_the_lower_precision():
  x = jnp.asarray(RNG.normal(size=64), jnp.float32)
  f = lambda x: 1.003 * jax.nn.relu((B(x) @ x).astype(jnp.bfloat16)).astype(x.dtype)
  plain, elided = ibp(f)(Interval(x, x)), ibp(f, elide=True)(Interval(x, x))
  np.testing.assert_allclose(elided.lower, plain.lower, rtol=1e-6, atol=1e-30)
  unit = float(jnp.finfo(jnp.bfloat16).eps)  # casts are rounded outward
  np.testing.assert_allclose(plain.lower, f(x), rtol=2 * unit)
  assert np.all((plain.lower <= f(x)) & (f(x) <= plain.upper))


def test_an_end_that_overflowed_into_nan_is_not_turned_into_zero():
  box = Interval(jnp.full(1, 100.), jnp.full(1, 101.))
  for f in (jax.nn.relu, jnp.abs, jax.nn.leaky_relu, lambda x: jnp.minimum(x, 1.) * -1, jnp.square):
    bound = ibp(lambda x, f=f: f(jnp.exp(x) - jnp.exp(x)))(box)  # inf - inf
    assert float(bound.upper[0]) == np.inf


def reverse(x):
  return x[::-1]


PREDICATES = {
    'and': lambda x: jnp.where((x > 0) & (reverse(x) < .5), x, 2 * x),
    'or, not': lambda x: jnp.where(~((x > reverse(x)) | (x < .3)), x, 2 * x),
    'xor': lambda x: jnp.where((x > reverse(x)) ^ (x > .3), x, -x),
    'any': lambda x: jnp.where(jnp.any(x > reverse(x)), x, 2 * x),
    'counted': lambda x: jnp.where((x > reverse(x)).sum() > 1, x, 2 * x),
    'as a factor': lambda x: x * ((x > reverse(x)) & (x > .3)).astype(x.dtype),
    'xlogy': lambda x: jax.scipy.special.xlogy(x, reverse(x)),
    'entr': lambda x: jax.scipy.special.entr(x),
    'rel_entr': lambda x: jax.scipy.special.rel_entr(x, reverse(x)),
}


@pytest.mark.parametrize('name', PREDICATES)
def test_combined_predicates(name):
  """Alone finds a method that asks for the roundoff of an operation on booleans."""
  f, x = PREDICATES[name], jnp.asarray([.2, .4, .6, .3])
  near = name == 'rel_entr' and jax.__version_info__ >= (0, 11)  # where it asks which quotients are near 1
  radius = .02 if near else .125
  box = Interval(x - radius, x + radius)
  for method in (lbp, crown):
    bound = interpreted(method(f, round_outward=True))(box)
    assert violations(f, bound, box) == 0
    assert np.all(np.isfinite(bound.width))


def test_the_sum_that_a_perturbed_kernel_enters_is_as_long_as_there_are_places():
  kernel, image = np.zeros((1, 40, 40, 1)), np.zeros((2, 2, 1, 1))
  eqn = trace(lambda k: lax.conv_general_dilated(jnp.asarray(kernel, k.dtype), k, (1, 1), 'VALID', dimension_numbers=(
      'NHWC', 'HWIO', 'NHWC')), (Interval(image, image),), {})[0].equations[-1]
  assert accuracy.roundings(eqn, [False, True]) == (4, 39 * 39)
  assert accuracy.roundings(eqn, [True, False]) == (4, 4)


@pytest.mark.parametrize('row', [
    Row(elementwise=Elementwise(lambda k: ()), accuracy=OWN), Row(image=nonlinear.power), Row(affine=INCREASING)])
def test_what_has_bounds_and_states_no_accuracy_stops_the_import(row):
  with pytest.raises(ImportError, match='lgamma'):
    table.check({lax.lgamma_p: row})


def test_a_stated_accuracy_counts_at_the_ends_and_inside():
  """Alone finds an allowance for one of two values that are off: a low end, and a high point beside it."""
  @elementwise(Elementwise(lambda k: (), trend=1, roundings=4))
  def identity(x):
    return jnp.where(x >= 1.5, x * np.float32(1 - 2 * 2. ** -23), x * np.float32(1 + 2 * 2. ** -23))
  box = Interval(jnp.ones(1), jnp.full(1, 1.5))
  inside = np.nextafter(np.float32(1.5), np.float32(0))
  for method in (ibp, crown, lbp):
    bound = method(identity, round_outward=True)(box)
    assert float(identity(jnp.asarray(inside))) <= float(bound.upper[0]) < 1.50001
