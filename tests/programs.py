"""Random small programs, made of every row of every table: what laws and hunts draw.

A program is a list of steps, (operation, which value, which other value, which weights); it takes and returns arrays of
SIZE. All numbers in them are the same in float32 and float64, so that a program is one function in both.
"""
import jax
import jax.numpy as jnp
import numpy as np
from cases import ramp
from jax import lax

from ibpjax import adaptive, constant, tight

SIZE = 4
KEYS = 20_000  # softmax weights over so many are below the least normal float16
_WEIGHTS = np.float64(np.float32(np.random.default_rng(5).normal(size=(3, SIZE, SIZE))))
SIGNS = jnp.array([True, False, False, True])
double = jax.jit(lambda x: 2 * x - 1)  # called twice in a program, its two calls share one jaxpr


def weights(x):
  return jnp.asarray(_WEIGHTS, x.dtype)


def num(c, x):
  """A number of float32, in the dtype of an array."""
  return jnp.asarray(np.float32(c), x.dtype)


def image(x):
  return x.reshape(1, 2, 2, 1)


def conv(x, i, **kwargs):
  kernel = weights(x)[i].reshape(2, 2, 1, SIZE)
  return lax.conv_general_dilated(image(x), kernel, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')).ravel()


# Functions (SIZE,) x weights number -> (SIZE,); they keep values moderate.
UNARY = {
    'dense': lambda x, i: weights(x)[i] @ x + weights(x)[i - 1, 0],
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
    'rsqrt': lambda x, i: lax.rsqrt(jnp.square(x) + .25),
    'cosh': lambda x, i: jnp.cosh(jnp.tanh(x)),
    'atan': lambda x, i: jnp.arctan(x) + jnp.arcsinh(x) / 4,
    'asin': lambda x, i: jnp.arcsin(jnp.tanh(x) / 2),
    'erf': lambda x, i: jax.scipy.special.erf(x),
    'floor': lambda x, i: jnp.floor(x * 2) / 2 + jnp.sign(x),
    'log': lambda x, i: jnp.log(1.5 + jnp.tanh(x)),
    'log1p': lambda x, i: jnp.log1p(jnp.square(x)),
    'sqrt': lambda x, i: jnp.sqrt(jnp.square(x) + .125),
    'cube': lambda x, i: lax.integer_pow(jnp.tanh(x), 3),
    'x * x': lambda x, i: jnp.tanh(x) * jnp.tanh(x),
    'reciprocal': lambda x, i: (i + 1) / (2 + jnp.abs(x)),
    'ramp': lambda x, i: ramp(x, jnp.abs(weights(x)[i, 1])),
    'scale': lambda x, i: x * weights(x)[i, 2] - x / (i + 1),
    'reverse': lambda x, i: lax.rev(x, (0,)),
    'matrix': lambda x, i: (x.reshape(2, 2).T @ weights(x)[i, :2, :2]).ravel(),
    'mean': lambda x, i: x - x.mean(),
    'cumsum': lambda x, i: jnp.cumsum(x),
    'concatenate': lambda x, i: jnp.concatenate([x[i:], x[:i]]),
    'pad': lambda x, i: lax.pad(x[1:], num(.5, x), [(i % 2, 1 - i % 2, 0)]),
    'gather': lambda x, i: x[jnp.array([i, 0, 3, i])],
    'scatter': lambda x, i: x.at[i].add(x[0]),
    'gather, filled': lambda x, i: x.at[jnp.array([i, 9, 3, 0])].get(mode='fill', fill_value=1.5),
    'reciprocal power': lambda x, i: lax.integer_pow(1.5 + jnp.abs(x), -1 - i),
    'mask': lambda x, i: jnp.where(SIGNS, x, num(i, x)),
    'max pool': lambda x, i: jnp.broadcast_to(x.reshape(2, 2).max(1, keepdims=True), (2, 2)).ravel(),
    'greatest': lambda x, i: jnp.where(jnp.arange(SIZE) == i, x.max(), -x.min()),
    'pool': lambda x, i: lax.reduce_window(image(x), -jnp.inf, lax.max, (1, 2, 1, 1), (1, 1, 1, 1), 'SAME').ravel(),
    'sum pool': lambda x, i: lax.reduce_window(image(x), 0., lax.add, (1, 2, 2, 1), (1, 1, 1, 1), 'SAME').ravel() / 4,
    'where': lambda x, i: jnp.where(x > i - 1, x, -x / 2),
    'step': lambda x, i: (x > 0).astype(x.dtype) - (lax.rev(x, (0,)) <= .5).astype(x.dtype),
    'both': lambda x, i: jnp.where((x > 0) & (lax.rev(x, (0,)) < .5), x, 2 * x),
    'neither': lambda x, i: jnp.where(~((x > lax.rev(x, (0,))) | (x < i - 1)), x / 2, -x),
    'one of two': lambda x, i: jnp.where((x > 0) ^ (lax.rev(x, (0,)) > i - 1), x, x / 4 - 1),
    'all, any': lambda x, i: jnp.where(jnp.any(x > i) | jnp.all(x < 0), x, -x),
    'stop gradient': lambda x, i: lax.stop_gradient(x),
    'remat': lambda x, i: jax.checkpoint(lambda x: jnp.tanh(x) + x)(x),
    'jitted': lambda x, i: double(double(x)) / 4,
    'vmapped': lambda x, i: jax.vmap(lambda a: jnp.maximum(a, -a / 2))(x),
    'scan': lambda x, i: lax.scan(lambda c, w: (jnp.tanh(w @ c), None), x, weights(x))[0],
    'sin': lambda x, i: jnp.sin((i + 1) * x),
    'cos, tan': lambda x, i: jnp.cos(x) + jnp.tan(jnp.tanh(x)),
    'power': lambda x, i: (1.25 + jnp.tanh(x)) ** weights(x)[i, 3],
    'exponential': lambda x, i: jnp.abs(weights(x)[i, 1]) ** jnp.tanh(x),
    'erf_inv': lambda x, i: lax.erf_inv(jnp.tanh(x) / 2),
    'elu': lambda x, i: jax.nn.elu(x, weights(x)[i, 0, 0]),
    'selu': lambda x, i: jax.nn.selu(x) - jax.nn.celu(x),
    'silu': lambda x, i: jax.nn.silu(x),
    'gelu': lambda x, i: jax.nn.gelu(x, approximate=i == 1),
    'mish': lambda x, i: jax.nn.mish(x),
    'hard': lambda x, i: jax.nn.hard_tanh(x) - jax.nn.hard_silu(x) / 2,
    'soft_sign': lambda x, i: jax.nn.soft_sign(x) + jax.nn.squareplus(x) / 2,
    'sparse_plus': lambda x, i: jax.nn.sparse_plus(x),
    'of one value': lambda x, i: x * jnp.exp(-x * x) + i * jnp.tanh(x),
    'branching': lambda x, i: jnp.where(x > i - .5, jnp.tanh(x), x * jnp.tanh(x) + .25),
    'softmax': lambda x, i: jax.nn.softmax(x),
    'softmax, masked': lambda x, i: jax.nn.softmax(jnp.where(SIGNS, x, num(-1e9, x))),
    'softmax, of some': lambda x, i: jax.nn.softmax(x, where=SIGNS),
    'log_softmax': lambda x, i: jax.nn.log_softmax(x.reshape(2, 2), axis=i % 2).ravel(),
    'logsumexp': lambda x, i: x - jax.nn.logsumexp(x * i) / 2,
    'standardize': lambda x, i: jax.nn.standardize(x, epsilon=.125),
    'rms': lambda x, i: x * lax.rsqrt(jnp.mean(jnp.square(x)) + .125) * weights(x)[i, 0],
    'group norm': lambda x, i: ((x.reshape(2, 2) - x.reshape(2, 2).mean(1, keepdims=True)) / jnp.sqrt(
        x.reshape(2, 2).var(1, keepdims=True) + .25)).ravel(),
    'norm': lambda x, i: x / (1 + jnp.linalg.norm(x)),
    'attention': lambda x, i: (jax.nn.softmax((weights(x)[i] @ x).reshape(2, 2), axis=1) @ x.reshape(2, 2)).ravel(),
    'prod': lambda x, i: lax.cumprod(jnp.tanh(x)) + jnp.tanh(x).prod(),
    'cumlogsumexp': lambda x, i: lax.cumlogsumexp(x) / 2,
    'sort': lambda x, i: jnp.sort(x),
    'top k': lambda x, i: jnp.tile(lax.top_k(x, 2)[0], 2),
    'scatter set': lambda x, i: x.at[jnp.array([i, 3])].set(-x[:2], unique_indices=True),
    'scatter max': lambda x, i: x.at[jnp.array([i, i])].max(x[2:]).at[0].multiply(-.5),
    'cond': lambda x, i: lax.cond(x[i] > 0, jnp.tanh, lambda x: x / 2 - 1, x),
    'fori': lambda x, i: lax.fori_loop(0, jnp.arange(3)[i], lambda _, c: jnp.tanh(weights(x)[1] @ c), x),
    'gradient': lambda x, i: jax.grad(lambda x: jax.nn.relu(weights(x)[i] @ x).sum())(x),
}
BINARY = {
    'add': lambda x, y: x + y,
    'sub': lambda x, y: x - y,
    'mul': lambda x, y: jnp.tanh(x) * jnp.tanh(y),
    'div': lambda x, y: jnp.tanh(x) / (1.5 + jnp.tanh(y)),
    'max': jnp.maximum,
    'min': jnp.minimum,
    'dot': lambda x, y: jnp.outer(jnp.tanh(x), jnp.tanh(y)) @ weights(x)[0, 0],
    'where': lambda x, y: jnp.where(x > y, x, y / 2),
    'atan2': lambda x, y: jnp.arctan2(x, 1.5 + jnp.tanh(y)),
    'power': lambda x, y: (1.25 + jnp.tanh(x)) ** jnp.tanh(y),
    'blend': lambda x, y: (1 - jax.nn.sigmoid(x)) * y + jax.nn.sigmoid(x) * lax.rev(y, (0,)),
    'logaddexp': lambda x, y: jnp.logaddexp(x, y),
    'stack': lambda x, y: jnp.stack([x, y]).sum(0) / 2,
}


def shifted(x, i):
  """Exponents less what is not their greatest: a mean, the greatest of a part, a number."""
  return x - (x.mean(), x[:2].max(), num(20., x))[i]


def averaged(x, dtype):
  """Ones, weighted by so many softmax weights that these are subnormal in half precision."""
  p = jax.nn.softmax(jnp.concatenate([x, jnp.zeros(KEYS, x.dtype)])).astype(dtype)
  return jnp.dot(p, jnp.ones((KEYS + SIZE, SIZE), dtype), preferred_element_type=jnp.float32).astype(x.dtype)


def low(x, i, dtype):
  """A product in low precision, of 64 terms."""
  w = jnp.tile(weights(x)[i], (1, 16)).astype(dtype)
  return jnp.dot(w, jnp.tile(x, 16).astype(dtype), preferred_element_type=jnp.float32).astype(x.dtype) / 16


# What leaves the range in which floats are near to real numbers.
EXTREME = {
    'exp / sum': lambda x, i: jnp.exp(x) / jnp.exp(x).sum(),
    'exp / sum, shifted': lambda x, i: jnp.exp(shifted(x, i)) / jnp.exp(shifted(x, i)).sum(),
    'exp / sum of some': lambda x, i: jnp.where(SIGNS, jnp.exp(x), 0) / jnp.where(SIGNS, jnp.exp(x), 0).sum(),
    'log of sum': lambda x, i: jnp.log(jnp.exp(x).sum()) - x,
    'log of sum, shifted': lambda x, i: jnp.log(jnp.exp(shifted(x, i)).sum()) + (x - shifted(x, i)),
    'log softmax, shifted': lambda x, i: shifted(x, i) - jnp.log(jnp.exp(shifted(x, i)).sum()),
    'times much': lambda x, i: x * num((10., 300., 1e30)[i], x),
    'times little': lambda x, i: x * num((1e-20, 1e-38, 1e-41)[i], x),
    'over much': lambda x, i: x / num((3., 1e20, 2e38)[i], x),
    'over little': lambda x, i: x / num((.3, 1e-20, 1e-39)[i], x),
    'dot with little': lambda x, i: (weights(x)[i] * num((1e-20, 1e-38, 1e-41)[i], x)) @ x,
    'plus much': lambda x, i: (x + num((1e3, 1e7, 1e30)[i], x)) - num((1e3, 1e7, 1e30)[i], x),
    'sqrt': lambda x, i: jnp.sqrt(jnp.abs(x)),
    'cbrt': lambda x, i: jnp.cbrt(x),
    'log': lambda x, i: jnp.log(jnp.abs(x)),
    'square': lambda x, i: jnp.square(x),
    'x * x': lambda x, i: x * x,
    'x ** n': lambda x, i: lax.integer_pow(x, (3, -1, -2)[i]),
    'x * y': lambda x, i: x * lax.rev(x, (0,)),
    'x / y': lambda x, i: x / lax.rev(x, (0,)),
    'exp': lambda x, i: jnp.exp(x),
    'sinh': lambda x, i: jnp.sinh(x) - jnp.cosh(x) / 2,
    'prod': lambda x, i: jnp.broadcast_to(x.prod(), x.shape) + lax.cumprod(x),
    'signs': lambda x, i: jnp.sign(x) + (x > 0).astype(x.dtype) * jnp.ceil(x),
    'half': lambda x, i: x.astype(jnp.float16).astype(x.dtype),
    'bfloat16': lambda x, i: x.astype(jnp.bfloat16).astype(x.dtype),
    'half, averaged': lambda x, i: averaged(x, jnp.float16),
    'bfloat16, averaged': lambda x, i: averaged(x, jnp.bfloat16),
    'half, dot': lambda x, i: low(x, i, jnp.float16),
    'bfloat16, dot': lambda x, i: low(x, i, jnp.bfloat16),
    'norm': lambda x, i: x / jnp.linalg.norm(x),
    'max with little': lambda x, i: jnp.maximum(x, num(1e-40, x)),
}
OPERATIONS = UNARY | {f'extreme: {name}': f for name, f in EXTREME.items()}
SLOPES = (-3., -.5, .25, 1.5, 4.)
RADII = (0., 1e-9, 1e-7, 1e-3, .125, .6)


def program(steps):
  """The function that a list of steps is: two outputs, the last value and one in the middle."""
  def f(x):
    values = [x]
    for name, i, j, number in steps:
      a, b = values[-1 - i % len(values)], values[-1 - j % len(values)]
      values.append(BINARY[name](a, b) if name in BINARY else OPERATIONS[name](a, number))
    return values[-1], values[len(values) // 2]
  return f


def sloping(below, above):
  """A choice of lines with these slopes."""
  def lines(fn, l, u, points=()):
    return jnp.full_like(l, below), jnp.full_like(l, above)
  return lines


LINES = {'tight': tight, 'adaptive': adaptive, 'constant': constant} | {
    f'{a}, {b}': sloping(a, b) for a in SLOPES for b in SLOPES}
