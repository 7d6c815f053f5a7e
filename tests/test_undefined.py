"""What is computed from NaN or from infinity is unknown; what is computed beside it is not."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import samples
from interpreted import interpreted
from jax import lax

import ibpjax
from ibpjax import Interval, crown, ibp

BOX = Interval(jnp.array([-1., 1., -2., .5]), jnp.array([2., 2., 1., 1.]))
METHODS = {'ibp': ibp, 'crown': lambda f, **kw: crown(f, intermediate='lbp', **kw)}
KEPT = jnp.array([True, False, True, False])


def much(x):
  """Elements that overflow, but where they are 0."""
  return x * 1e30 * 1e30


def undefined(x):
  """inf - inf."""
  return much(x) - much(x)[::-1]


SPOILED = {
    'tanh': lambda x: jnp.tanh(undefined(x)),
    'clip': lambda x: jnp.clip(undefined(x), 0, 1),
    'relu': lambda x: -jax.nn.relu(undefined(x)),
    'sign': lambda x: jnp.sign(undefined(x)),
    'exp': lambda x: jnp.exp(-jnp.abs(undefined(x))),
    'cast': lambda x: jnp.tanh(undefined(x).astype(jnp.float16)),
    'cos': lambda x: jnp.cos(undefined(x)),
    'sin of infinity': lambda x: jnp.sin(jnp.exp(jnp.square(x) + 100)),
    'greatest': lambda x: jnp.minimum(undefined(x).max(), 1),
    'sort': lambda x: jnp.clip(jnp.sort(undefined(x)), 0, 1),
    'top k': lambda x: jnp.tanh(lax.top_k(undefined(x), 2)[0]),
    'cummax': lambda x: jnp.tanh(lax.cummax(undefined(x))),
    'windows': lambda x: jnp.tanh(lax.reduce_window(undefined(x), -jnp.inf, lax.max, (2,), (1,), 'VALID')),
    'product': lambda x: jnp.tanh(jnp.prod(jnp.concatenate([jnp.exp(jnp.square(x) + 100), jax.nn.relu(x)]))),
    'products': lambda x: jnp.tanh(lax.cumprod(jnp.concatenate([much(x), x - x[::-1]]))),
    'two': lambda x: jnp.minimum(jnp.square(much(x)) * jax.nn.relu(x), 1),
    'quotient': lambda x: jnp.clip(jnp.exp(100 * x) / (1 + jnp.exp(100 * x)), 0, 1),
    'gelu': lambda x: jax.nn.gelu(-jnp.abs(much(x))),
    'silu': lambda x: jax.nn.silu(-jnp.abs(much(x))),
    'soft_sign': lambda x: jax.nn.soft_sign(much(x)),
    'of one value': lambda x: jnp.minimum(much(x) * jnp.exp(-much(x)), 1),
    'softmax': lambda x: jax.nn.softmax(much(x)),
    'softmax of nothing': lambda x: jax.nn.softmax(-jnp.exp(jnp.square(x) + 100)),
    'log_softmax': lambda x: jnp.exp(jax.nn.log_softmax(much(x))),
    'logsumexp': lambda x: jnp.tanh(jax.nn.logsumexp(undefined(x))),
    'standardize': lambda x: jax.nn.standardize(much(x)),
    'average': lambda x: jax.nn.softmax(x) @ jnp.tanh(undefined(x)),
    'blend': lambda x: jnp.clip((1 - jax.nn.sigmoid(x)) * much(x) + jax.nn.sigmoid(x) * much(-x), 0, 1),
    'without weight': lambda x: jnp.tanh(jnp.zeros(4) @ undefined(x)),
    'cond': lambda x: lax.cond(x[3] > 0, lambda y: jnp.tanh(y), lambda y: y, undefined(x)),
    'scan': lambda x: lax.scan(lambda c, _: (jnp.tanh(c), None), undefined(x), length=2)[0],
    'rows': lambda x: jax.nn.softmax(jnp.stack([x, much(x)])),
    'one of many': lambda x: jnp.tanh(undefined(x).at[:2].set(x[:2])),
}


@functools.cache
def spoiled(name):
  """Values of a function, some of them by XLA."""
  f = jax.vmap(SPOILED[name])
  return np.concatenate([interpreted(f)(samples(BOX, 200, 0)), jax.jit(f)(samples(BOX, 200, 1))])


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('name', SPOILED)
def test_what_may_be_nan_is_unbounded(name, method):
  """Alone finds a bounded function of what is undefined that passes for bounded."""
  bound, values = interpreted(METHODS[method](SPOILED[name], round_outward=True))(BOX), spoiled(name)
  assert not np.isfinite(values).all()
  lower, upper = np.asarray(bound.lower), np.asarray(bound.upper)
  assert np.all(((lower == -np.inf) & (upper == np.inf)) | ((values >= lower) & (values <= upper)))


def test_rows_of_what_may_be_nan():
  bound = interpreted(crown(lambda x: jnp.tanh(undefined(x)), rows=jnp.eye(4), round_outward=True))(BOX)
  assert np.all((bound.lower == -np.inf) & (bound.upper == np.inf))


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('f', [
    lambda x: jax.nn.softmax(jnp.stack([much(x), x])),
    lambda x: jnp.sort(jnp.stack([undefined(x), x])),
    lambda x: jnp.stack([jnp.tanh(undefined(x)), jnp.tanh(x)]),
    lambda x: jnp.where(jnp.array([[True], [False]]), undefined(x), x),
    lambda x: jnp.stack([x, jnp.where(undefined(x) > 0, 1., jnp.tanh(x))])])
def test_what_lies_beside_it_keeps_its_bounds(f, method):
  """Alone finds bounds that one undefined element takes away from all."""
  bound = interpreted(METHODS[method](f, round_outward=True))(BOX)
  assert np.all(bound.upper[1] - bound.lower[1] < 4)


@pytest.mark.parametrize('outward', [False, True])
@pytest.mark.parametrize('intermediate', [None, 'lbp', 'crown'])
@pytest.mark.parametrize(('f', 'rest'), [(jax.nn.softmax, 0), (jax.nn.log_softmax, -np.inf), (jax.nn.logsumexp, None)])
def test_known_infinite_elements_are_masks(f, rest, intermediate, outward):
  """Alone finds exponents of -inf that are taken for anything at all: the bounds are those without these elements."""
  method = ibp if intermediate is None else lambda f, **kw: crown(f, intermediate=intermediate, **kw)
  bound = interpreted(method(lambda x: f(jnp.where(KEPT, x, -jnp.inf)), round_outward=outward))(BOX)
  wanted = interpreted(method(lambda x: f(x[::2]), round_outward=outward))(BOX)
  for got, want in ((bound.lower, wanted.lower), (bound.upper, wanted.upper)):
    np.testing.assert_allclose(got if rest is None else got[::2], want, rtol=1e-5, atol=1e-6)
    if rest is not None:
      np.testing.assert_allclose(got[1::2], rest, atol=1e-30)


NAN = jnp.array([jnp.nan, 1., jnp.nan, 1.])
TAKEN = {
    'maximum': lambda x: jnp.maximum(x, NAN), 'maximum, known first': lambda x: jnp.maximum(NAN, x),
    'minimum': lambda x: jnp.minimum(x, NAN), 'clip': lambda x: jnp.clip(x, NAN, 2.),
    'clip from above': lambda x: jnp.clip(x, -1., NAN), 'clamp': lambda x: lax.clamp(NAN, x, 2 + jnp.abs(NAN)),
    'sum': lambda x: x + NAN, 'difference': lambda x: NAN - x, 'product': lambda x: x * NAN,
    'quotient': lambda x: x / NAN, 'power': lambda x: jnp.exp(x) ** NAN, 'angle': lambda x: jnp.arctan2(x, NAN),
    'angle, known first': lambda x: jnp.arctan2(NAN, x), 'leaky relu': lambda x: jax.nn.leaky_relu(x - 5, NAN),
    'elu': lambda x: jax.nn.elu(x - 5, NAN), 'select': lambda x: jnp.where(x > -3, NAN, x),
    'xlogy': lambda x: jax.scipy.special.xlogy(jnp.exp(x), NAN),
    'blend': lambda x: (1 - jax.nn.sigmoid(x)) * NAN + jax.nn.sigmoid(x) * x}


@pytest.mark.parametrize('name', TAKEN)
def test_a_known_nan_is_handed_on(name):
  """Alone finds a comparison with NaN that lets the other operand pass."""
  f = TAKEN[name]
  assert np.isnan(f(BOX.centre)[::2]).all()
  for method in METHODS.values():
    bound = interpreted(method(f, round_outward=True))(BOX)
    assert np.all((bound.lower[::2] == -np.inf) & (bound.upper[::2] == np.inf))
    assert np.all(np.isfinite(bound.width[1::2]))


def test_a_network_with_a_weight_that_is_nan_certifies_nothing():
  f = lambda p, x: jnp.maximum(x, p)
  for method in ('ibp', 'crown-ibp', 'lbp', 'crown'):
    found = ibpjax.certify(f, jnp.array([0., jnp.nan]), jnp.array([[.9, .1]]), jnp.zeros(1, int), .01, method=method)
    assert not found.verified.any()


@pytest.mark.parametrize('end', [jnp.inf, -jnp.inf])
@pytest.mark.parametrize('compare', [
    jnp.less_equal, jnp.greater_equal, jnp.less, jnp.greater, jnp.equal, jnp.not_equal])
def test_comparisons_of_nan_with_infinity(compare, end):
  """All are false but one: alone finds `not greater` that is taken for `at most`."""
  box = Interval(jnp.array([100.]), jnp.array([101.]))
  for f in (lambda x: compare(jnp.exp(x) - jnp.exp(1.0001 * x), end), lambda x: compare(end, jnp.exp(x) - jnp.exp(x))):
    bound, value = interpreted(ibp(lambda x, f=f: jnp.where(f(x), 1., -1.), round_outward=True))(box), f(box.lower)[0]
    assert bound.lower[0] <= (1. if value else -1.) <= bound.upper[0]
  finite = interpreted(ibp(lambda x: jnp.where(compare(x, end), 1., -1.), round_outward=True))(box)
  assert finite.lower[0] == finite.upper[0]


def test_the_greatest_of_what_may_be_nan():
  """XLA sorts NaN by its sign: it may be any of the greatest."""
  f = lambda x: jnp.tanh(lax.top_k(jnp.concatenate([jnp.exp(x) - jnp.exp(x * 1.0001), jnp.array([1., 2.])]), 3)[0])
  box = Interval(jnp.array([100.]), jnp.array([101.]))
  for method in METHODS.values():
    bound = interpreted(method(f, round_outward=True))(box)
    assert np.all((bound.lower == -np.inf) & (bound.upper == np.inf))


def test_rows_that_leave_out_what_may_be_nan():
  def f(x):
    spoiled = jnp.array([[0., 1.]]) @ jnp.stack([jnp.exp(x) - jnp.exp(1.0001 * x), x])
    return jnp.concatenate([spoiled, x[None]])[:, 0]
  box = Interval(jnp.array([100.]), jnp.array([101.]))
  bound = interpreted(crown(f, rows=jnp.array([[0., 1.]]), round_outward=True))(box)
  assert (bound.lower[0], bound.upper[0]) == (-np.inf, np.inf)
