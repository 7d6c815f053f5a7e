"""The laws over programs that hypothesis draws from the tables: the best finder of bugs.

HYPOTHESIS_PROFILE=nightly runs 20 000 of them, and a tenth with linear methods.
"""
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import keys_of, ramp, regrouped
from checks import contains, holds, leaves, samples
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from ibpjax import Interval, adaptive, crown, ibp, lbp, tight
from ibpjax.normalise import Normalise
from ibpjax.softmax import Average
from ibpjax.univariate import Univariate

pytestmark = pytest.mark.usefixtures('x64')

SIZE = 4
with jax.enable_x64(True):
  WEIGHTS = jnp.asarray(np.random.default_rng(5).normal(size=(3, SIZE, SIZE)))
SIGNS = jnp.array([True, False, False, True])
drawn = 0
double = jax.jit(lambda x: 2 * x - 1)  # called twice in a program, its two calls share one jaxpr


def image(x):
  return x.reshape(1, 2, 2, 1)


def conv(x, i, **kwargs):
  kernel = WEIGHTS[i].reshape(2, 2, 1, SIZE)
  return lax.conv_general_dilated(image(x), kernel, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')).ravel()


# Functions (SIZE,) x weights number -> (SIZE,); they keep values moderate.
UNARY = {
    'dense': lambda x, i: WEIGHTS[i] @ x + WEIGHTS[i - 1, 0],
    'conv': conv,
    'relu': lambda x, i: jax.nn.relu(x),
    'leaky relu': lambda x, i: jax.nn.leaky_relu(x, (i - 1) / 2),
    'clip': lambda x, i: jnp.clip(x, -i - .5, 1),
    'abs': lambda x, i: jnp.abs(x),
    'tanh': lambda x, i: jnp.tanh(x),
    'sigmoid': lambda x, i: jax.nn.sigmoid(x),
    'softplus': lambda x, i: jax.nn.softplus(x),
    'exp': lambda x, i: jnp.exp(-jnp.abs(x)),
    'expm1': lambda x, i: jnp.expm1(-jnp.abs(x)),
    'rsqrt': lambda x, i: lax.rsqrt(jnp.square(x) + .3),
    'cosh': lambda x, i: jnp.cosh(jnp.tanh(x)),
    'atan': lambda x, i: jnp.arctan(x) + jnp.arcsinh(x) / 3,
    'asin': lambda x, i: jnp.arcsin(jnp.tanh(x) / 2),
    'erf': lambda x, i: jax.scipy.special.erf(x),
    'floor': lambda x, i: jnp.floor(x * 2) / 2 + jnp.sign(x),
    'log': lambda x, i: jnp.log(1.5 + jnp.tanh(x)),
    'log1p': lambda x, i: jnp.log1p(jnp.square(x)),
    'sqrt': lambda x, i: jnp.sqrt(jnp.square(x) + .1),
    'cube': lambda x, i: lax.integer_pow(jnp.tanh(x), 3),
    'x * x': lambda x, i: jnp.tanh(x) * jnp.tanh(x),
    'reciprocal': lambda x, i: (i + 1) / (2 + jnp.abs(x)),
    'ramp': lambda x, i: ramp(x, jnp.abs(WEIGHTS[i, 1])),
    'scale': lambda x, i: x * WEIGHTS[i, 2] - x / (i + 1),
    'reverse': lambda x, i: lax.rev(x, (0,)),
    'matrix': lambda x, i: (x.reshape(2, 2).T @ WEIGHTS[i, :2, :2]).ravel(),
    'mean': lambda x, i: x - x.mean(),
    'cumsum': lambda x, i: jnp.cumsum(x),
    'concatenate': lambda x, i: jnp.concatenate([x[i:], x[:i]]),
    'pad': lambda x, i: lax.pad(x[1:], jnp.asarray(.5), [(i % 2, 1 - i % 2, 0)]),
    'gather': lambda x, i: x[jnp.array([i, 0, 3, i])],
    'scatter': lambda x, i: x.at[i].add(x[0]),
    'gather, filled': lambda x, i: x.at[jnp.array([i, 9, 3, 0])].get(mode='fill', fill_value=1.5),
    'reciprocal power': lambda x, i: lax.integer_pow(1.5 + jnp.abs(x), -1 - i),
    'mask': lambda x, i: jnp.where(SIGNS, x, float(i)),
    'max pool': lambda x, i: jnp.broadcast_to(x.reshape(2, 2).max(1, keepdims=True), (2, 2)).ravel(),
    'pool': lambda x, i: lax.reduce_window(image(x), -jnp.inf, lax.max, (1, 2, 1, 1), (1, 1, 1, 1), 'SAME').ravel(),
    'sum pool': lambda x, i: lax.reduce_window(image(x), 0., lax.add, (1, 2, 2, 1), (1, 1, 1, 1), 'SAME').ravel() / 4,
    'where': lambda x, i: jnp.where(x > i - 1, x, -x / 2),
    'step': lambda x, i: (x > 0).astype(x.dtype) - (lax.rev(x, (0,)) <= .5).astype(x.dtype),
    'stop gradient': lambda x, i: lax.stop_gradient(x),
    'remat': lambda x, i: jax.checkpoint(lambda x: jnp.tanh(x) + x)(x),
    'jitted': lambda x, i: double(double(x)) / 4,
    'vmapped': lambda x, i: jax.vmap(lambda a: jnp.maximum(a, -a / 2))(x),
    'scan': lambda x, i: lax.scan(lambda c, w: (jnp.tanh(w @ c), None), x, WEIGHTS)[0],
    'sin': lambda x, i: jnp.sin((i + 1) * x),
    'cos, tan': lambda x, i: jnp.cos(x) + jnp.tan(jnp.tanh(x)),
    'power': lambda x, i: (1.2 + jnp.tanh(x)) ** WEIGHTS[i, 3],
    'exponential': lambda x, i: jnp.abs(WEIGHTS[i, 1]) ** jnp.tanh(x),
    'erf_inv': lambda x, i: lax.erf_inv(jnp.tanh(x) / 2),
    'elu': lambda x, i: jax.nn.elu(x, WEIGHTS[i, 0, 0]),
    'selu': lambda x, i: jax.nn.selu(x) - jax.nn.celu(x),
    'silu': lambda x, i: jax.nn.silu(x),
    'gelu': lambda x, i: jax.nn.gelu(x, approximate=i == 1),
    'mish': lambda x, i: jax.nn.mish(x),
    'hard': lambda x, i: jax.nn.hard_tanh(x) - jax.nn.hard_silu(x) / 2,
    'soft_sign': lambda x, i: jax.nn.soft_sign(x) + jax.nn.squareplus(x) / 2,
    'sparse_plus': lambda x, i: jax.nn.sparse_plus(x),
    'of one value': lambda x, i: x * jnp.exp(-x * x) + i * jnp.tanh(x),
    'branching': lambda x, i: jnp.where(x > i - .5, jnp.tanh(x), x * jnp.tanh(x) + .3),
    'softmax': lambda x, i: jax.nn.softmax(x),
    'softmax, masked': lambda x, i: jax.nn.softmax(jnp.where(SIGNS, x, -1e9)),
    'log_softmax': lambda x, i: jax.nn.log_softmax(x.reshape(2, 2), axis=i % 2).ravel(),
    'logsumexp': lambda x, i: x - jax.nn.logsumexp(x * i) / 2,
    'standardize': lambda x, i: jax.nn.standardize(x, epsilon=.1),
    'rms': lambda x, i: x * lax.rsqrt(jnp.mean(jnp.square(x)) + .1) * WEIGHTS[i, 0],
    'group norm': lambda x, i: ((x.reshape(2, 2) - x.reshape(2, 2).mean(1, keepdims=True)) / jnp.sqrt(
        x.reshape(2, 2).var(1, keepdims=True) + .2)).ravel(),
    'norm': lambda x, i: x / (1 + jnp.linalg.norm(x)),
    'attention': lambda x, i: (jax.nn.softmax((WEIGHTS[i] @ x).reshape(2, 2), axis=1) @ x.reshape(2, 2)).ravel(),
    'prod': lambda x, i: lax.cumprod(jnp.tanh(x)) + jnp.tanh(x).prod(),
    'cumlogsumexp': lambda x, i: lax.cumlogsumexp(x) / 2,
    'sort': lambda x, i: jnp.sort(x),
    'top k': lambda x, i: jnp.tile(lax.top_k(x, 2)[0], 2),
    'scatter set': lambda x, i: x.at[jnp.array([i, 3])].set(-x[:2], unique_indices=True),
    'scatter max': lambda x, i: x.at[jnp.array([i, i])].max(x[2:]).at[0].multiply(-.5),
    'cond': lambda x, i: lax.cond(x[i] > 0, jnp.tanh, lambda x: x / 2 - 1, x),
    'fori': lambda x, i: lax.fori_loop(0, jnp.arange(3)[i], lambda _, c: jnp.tanh(WEIGHTS[1] @ c), x),
    'gradient': lambda x, i: jax.grad(lambda x: jax.nn.relu(WEIGHTS[i] @ x).sum())(x),
}
BINARY = {
    'add': lambda x, y: x + y,
    'sub': lambda x, y: x - y,
    'mul': lambda x, y: jnp.tanh(x) * jnp.tanh(y),
    'div': lambda x, y: jnp.tanh(x) / (1.5 + jnp.tanh(y)),
    'max': jnp.maximum,
    'min': jnp.minimum,
    'dot': lambda x, y: jnp.outer(jnp.tanh(x), jnp.tanh(y)) @ WEIGHTS[0, 0],
    'where': lambda x, y: jnp.where(x > y, x, y / 2),
    'atan2': lambda x, y: jnp.arctan2(x, 1.5 + jnp.tanh(y)),
    'power': lambda x, y: (1.3 + jnp.tanh(x)) ** jnp.tanh(y),
    'blend': lambda x, y: (1 - jax.nn.sigmoid(x)) * y + jax.nn.sigmoid(x) * lax.rev(y, (0,)),
    'logaddexp': lambda x, y: jnp.logaddexp(x, y),
    'stack': lambda x, y: jnp.stack([x, y]).sum(0) / 2,
}
STEP = st.tuples(st.sampled_from([*UNARY, *BINARY]), st.integers(0, 10), st.integers(0, 10), st.integers(0, 2))


def program(steps):
  def f(x):
    values = [x]
    for name, i, j, weights in steps:
      a, b = values[-1 - i % len(values)], values[-1 - j % len(values)]
      values.append(UNARY[name](a, weights) if name in UNARY else BINARY[name](a, b))
    return values[-1], values[len(values) // 2]
  return f


@given(st.lists(STEP, min_size=1, max_size=8), st.sampled_from([1e-3, .1, .6]), st.integers(0, 1000))
def test_laws_hold_for_random_programs(steps, radius, seed):
  global drawn
  drawn += 1
  if drawn % 2500 == 0:  # each program compiles something; 20 000 of them would fill the memory
    jax.clear_caches()
  f, x = program(steps), jnp.asarray(np.random.default_rng(seed).normal(size=SIZE))
  box = Interval(x - radius, x + radius)
  values = jax.vmap(f)(samples(box, 96, seed))
  for a, b in zip(regrouped(f, x), f(x), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
  plain, elided = ibp(f)(box), ibp(f, elide=True)(box)
  assert holds(plain, values)
  assert holds(elided, values)
  assert contains(plain, elided, slack=1e-9)
  monotone = not keys_of(f, x) & {Univariate, Normalise, Average}  # these are made around the centre of a box
  assert contains(ibp(f, elide=True, round_outward=True)(box), elided, slack=0 if monotone else 1e-8)
  if monotone:
    assert contains(ibp(f)(Interval(box.lower - .05, box.upper + .1)), plain)
  for bound, value in zip(leaves(ibp(f)(Interval(x, x))), f(x), strict=True):
    np.testing.assert_allclose(bound.lower, value, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(bound.upper, value, rtol=1e-9, atol=1e-9)


@hypothesis.settings(max_examples=max(hypothesis.settings.default.max_examples // 4, 1))
@given(st.lists(STEP, min_size=1, max_size=6), st.sampled_from([1e-3, .1, .6]), st.integers(0, 1000))
def test_linear_bounds_hold_for_random_programs(steps, radius, seed):
  f, x = program(steps), jnp.asarray(np.random.default_rng(seed).normal(size=SIZE))
  box = Interval(x - radius, x + radius)
  values = jax.vmap(f)(samples(box, 96, seed))
  for method in (lbp(f), lbp(f, lines=adaptive), crown(f), crown(f, intermediate='lbp', lines=tight)):
    bound = method(box)
    assert holds(bound, values)
    assert not any(np.isnan(b.lower).any() or np.isnan(b.upper).any() for b in leaves(bound))
