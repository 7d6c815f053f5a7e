"""What is computed from NaN or from infinity is unknown; what is computed beside it is not."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import samples
from jax import lax

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


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('name', SPOILED)
def test_what_may_be_nan_is_unbounded(name, method):
  """Alone finds a bounded function of what is undefined that passes for bounded."""
  f = SPOILED[name]
  bound = METHODS[method](f, round_outward=True)(BOX)
  values = np.concatenate([jax.vmap(f)(samples(BOX, 200, 0)), jax.jit(jax.vmap(f))(samples(BOX, 200, 1))])
  assert not np.isfinite(values).all()
  lower, upper = np.asarray(bound.lower), np.asarray(bound.upper)
  assert np.all(((lower == -np.inf) & (upper == np.inf)) | ((values >= lower) & (values <= upper)))


def test_rows_of_what_may_be_nan():
  bound = crown(lambda x: jnp.tanh(undefined(x)), rows=jnp.eye(4), round_outward=True)(BOX)
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
  bound = METHODS[method](f, round_outward=True)(BOX)
  assert np.all(bound.upper[1] - bound.lower[1] < 4)


@pytest.mark.parametrize('outward', [False, True])
@pytest.mark.parametrize('intermediate', [None, 'lbp', 'crown'])
@pytest.mark.parametrize(('f', 'rest'), [(jax.nn.softmax, 0), (jax.nn.log_softmax, -np.inf), (jax.nn.logsumexp, None)])
def test_known_infinite_elements_are_masks(f, rest, intermediate, outward):
  """Alone finds exponents of -inf that are taken for anything at all: the bounds are those without these elements."""
  method = ibp if intermediate is None else lambda f, **kw: crown(f, intermediate=intermediate, **kw)
  bound = method(lambda x: f(jnp.where(KEPT, x, -jnp.inf)), round_outward=outward)(BOX)
  wanted = method(lambda x: f(x[::2]), round_outward=outward)(BOX)
  for got, want in ((bound.lower, wanted.lower), (bound.upper, wanted.upper)):
    np.testing.assert_allclose(got if rest is None else got[::2], want, rtol=1e-5, atol=1e-6)
    if rest is not None:
      np.testing.assert_allclose(got[1::2], rest, atol=1e-30)
