"""The functions of the table in arithmetic of many digits, and the points at which their float values are weighed.

A row states how far its values may be off. Errors lie where a sample around one centre does not go: beside zeros of a
function that is not 0 there in floats, beside poles, kinks and the ends of the domain, far out, and next to 0.
"""
import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from jax import lax

from ibpjax import nn

mp = mpmath.mp.clone()
mp.prec = 220
ONE, TWO = mp.mpf(1), mp.mpf(2)


@dataclasses.dataclass(frozen=True)
class Reference:
  """A function in floats and in arithmetic of many digits.

  Attributes:
    f: the function of an array.
    exact: the function of an mpf; where it raises, or returns what is not real, f is not defined.
    special: zeros, poles, kinks and ends of the domain, beside which points are put.
    reach: greatest magnitude of a point; None for all that floats have.
    loosest: how far ends may be apart at a point, relative to the value, in units of roundoff of float32 and float64.
    beside: the same, relative to 1 + |x|, in units of roundoff: functions that cancel.
    poles: the share of points that are too near to a pole for a finite bound.
  """
  f: Callable
  exact: Callable
  special: Sequence[float] = ()
  reach: float | None = None
  loosest: tuple[float, float] = (4e3, 4e3)
  beside: float = 0.
  poles: float = .01


def gelu(x):
  return x * mp.erfc(-x / mp.sqrt(2)) / 2


def gelu_tanh(x):
  return x * sigmoid(2 * mp.sqrt(2 / mp.pi) * (x + mp.mpf('.044715') * x ** 3))


def sigmoid(x):
  return 1 / (1 + mp.exp(-x)) if x > -1e4 else mp.exp(x)


def softplus(x):
  return mp.log1p(mp.exp(-abs(x))) + max(x, 0)


def like(c, x):
  return jnp.full_like(x, c)


def hard_sigmoid(x):
  return min(max(x + 3, 0), 6) / 6


def sparse_plus(x):
  return mp.mpf(0) if x <= -1 else x if x >= 1 else (x + 1) ** 2 / 4


SELU = mp.mpf('1.0507009873554804934193349852946'), mp.mpf('1.6732632423543772848170429916717')
REFERENCES: dict[str, Reference] = {
    'exp': Reference(jnp.exp, mp.exp),
    'log2': Reference(jnp.log2, lambda x: mp.log(x) / mp.log(2), (0., 1.)),
    'exp2': Reference(jnp.exp2, lambda x: TWO ** x, loosest=(4e3, 2e4)),
    'expm1': Reference(jnp.expm1, mp.expm1),
    'log': Reference(jnp.log, mp.log, (0., 1.)),
    'log1p': Reference(jnp.log1p, mp.log1p, (-1., 0.)),
    'sqrt': Reference(jnp.sqrt, mp.sqrt),
    'rsqrt': Reference(lax.rsqrt, lambda x: 1 / mp.sqrt(x)),
    'cbrt': Reference(jnp.cbrt, lambda x: mp.sign(x) * mp.cbrt(abs(x)), poles=.15),
    'sin': Reference(jnp.sin, mp.sin, (np.pi, 2 * np.pi, 100 * np.pi, np.pi / 2), 1e5, beside=32),
    'cos': Reference(jnp.cos, mp.cos, (np.pi / 2, 3 * np.pi / 2, 99.5 * np.pi, np.pi), 1e5, beside=32),
    'tan': Reference(jnp.tan, mp.tan, (np.pi / 2, -np.pi / 2, np.pi), 100., beside=1e3, poles=.05),
    'sinh': Reference(jnp.sinh, mp.sinh),
    'cosh': Reference(jnp.cosh, mp.cosh),
    'tanh': Reference(jnp.tanh, mp.tanh),
    'asinh': Reference(jnp.arcsinh, mp.asinh),
    'acosh': Reference(jnp.arccosh, mp.acosh, (1.,)),
    'atanh': Reference(jnp.arctanh, mp.atanh, (1., -1.), 1.),
    'asin': Reference(jnp.arcsin, mp.asin, (1., -1.), 1.),
    'acos': Reference(jnp.arccos, mp.acos, (1., -1.), 1.),
    'atan': Reference(jnp.arctan, mp.atan, (1., -1.)),
    'erf': Reference(lax.erf, mp.erf, (1., 4.), 50.),
    'erfc': Reference(lax.erfc, mp.erfc, (1., -1.), 28., loosest=(4e3, 2e4)),
    'erf_inv': Reference(lax.erf_inv, mp.erfinv, (1., -1.), 1., loosest=(4e3, 4e7)),
    'logistic': Reference(jax.nn.sigmoid, sigmoid),
    'softplus': Reference(jax.nn.softplus, softplus),
    'abs': Reference(jnp.abs, abs, (0.,)),
    'square': Reference(jnp.square, lambda x: x * x),
    'x ** 3': Reference(lambda x: lax.integer_pow(x, 3), lambda x: x ** 3),
    'x ** 31': Reference(lambda x: lax.integer_pow(x, 31), lambda x: x ** 31),
    'x ** -1': Reference(lambda x: lax.integer_pow(x, -1), lambda x: 1 / x),
    'x ** -7': Reference(lambda x: lax.integer_pow(x, -7), lambda x: x ** -7),
    'x ** .5': Reference(lambda x: lax.pow(x, like(.5, x)), mp.sqrt),
    'x ** -3.25': Reference(lambda x: lax.pow(x, like(-3.25, x)), lambda x: x ** mp.mpf(-3.25), (1.,)),
    'x ** 20': Reference(lambda x: lax.pow(x, like(20., x)), lambda x: x ** 20, (1.,)),
    'x ** 0': Reference(lambda x: lax.integer_pow(x, 0), lambda x: ONE),
    'x ** 1': Reference(lambda x: lax.integer_pow_p.bind(x, y=1), lambda x: x),
    '2.5 ** x': Reference(lambda x: lax.pow(like(2.5, x), x), lambda x: mp.mpf(2.5) ** x, (1.,)),
    '.375 ** x': Reference(lambda x: lax.pow(like(.375, x), x), lambda x: mp.mpf(.375) ** x, (1.,)),
    'max': Reference(lambda x: lax.max(x, like(.5, x)), lambda x: max(x, mp.mpf(.5)), (.5,)),
    'min': Reference(lambda x: lax.min(like(.5, x), x), lambda x: min(x, mp.mpf(.5)), (.5,)),
    'leaky_relu': Reference(lambda x: jax.nn.leaky_relu(x, .25), lambda x: x if x > 0 else x / 4),
    'elu': Reference(jax.nn.elu, lambda x: x if x > 0 else mp.expm1(x)),
    'celu': Reference(lambda x: jax.nn.celu(x, like(2., x)), lambda x: x if x > 0 else 2 * mp.expm1(x / 2), poles=.5),
    'selu': Reference(jax.nn.selu, lambda x: SELU[0] * (x if x > 0 else SELU[1] * mp.expm1(x))),
    'silu': Reference(jax.nn.silu, lambda x: x * sigmoid(x)),
    'gelu, exact': Reference(lambda x: jax.nn.gelu(x, approximate=False), gelu, (-4.,), 30., beside=64),
    'gelu': Reference(jax.nn.gelu, gelu_tanh, (-4.,), 30., beside=64),
    'mish': Reference(jax.nn.mish, lambda x: x * mp.tanh(softplus(x))),
    'soft_sign': Reference(jax.nn.soft_sign, lambda x: x / (1 + abs(x))),
    'hard_tanh': Reference(jax.nn.hard_tanh, lambda x: min(max(x, -1), ONE), (1., -1.)),
    'hard_silu': Reference(jax.nn.hard_silu, lambda x: x * hard_sigmoid(x), (3., -3.), beside=64),
    'squareplus': Reference(jax.nn.squareplus, lambda x: (x + mp.sqrt(x * x + 4)) / 2, reach=1e15, beside=64),
    'sparse_plus': Reference(jax.nn.sparse_plus, sparse_plus, (1., -1.), beside=64),
    'param_ramp': Reference(lambda x: nn.param_ramp(x, like(1.5, x), .25),
                            lambda x: x / 4 if x < 0 else x if x < 1.5 else (x - 1.5) / 4 + 1.5, (1.5,)),
}


def points(reference: Reference, dtype, count: int, seed: int = 0) -> np.ndarray:
  """Floats over the whole domain: exponents spread evenly, and by every power of 2 beside each special point."""
  rng, info = np.random.default_rng(seed), np.finfo(dtype)
  reach = float(info.max) if reference.reach is None else reference.reach
  low = float(np.log2(info.smallest_subnormal))
  spread = 2 ** rng.uniform(low, np.log2(reach), count) * rng.choice([-1., 1.], count)
  moderate = rng.uniform(-1, 1, count) * min(reach, 20.)
  near = [np.asarray([0., -0., reach, -reach, float(info.tiny), -float(info.tiny)])]
  steps = 2. ** -rng.uniform(0, info.nmant + 3, count // 4 + 1)
  for c in reference.special:
    step = steps * max(abs(c), 1.)
    near += [c + step, c - step, np.asarray([c])]
  with np.errstate(over='ignore'):
    x = np.concatenate([spread, moderate, *near]).astype(dtype)
  return x[(np.abs(x) <= reach) & np.isfinite(x)]


def exact_values(reference: Reference, x: np.ndarray) -> list:
  """The values in arithmetic of many digits; None where the function is not defined."""
  found = []
  for v in x:
    try:
      y = reference.exact(mp.mpf(float(v)))
      found.append(y if isinstance(y, (int, float)) or (isinstance(y, mp.mpf) and mp.isfinite(y)) else None)
    except (ValueError, ZeroDivisionError, OverflowError):
      found.append(None)
  return found
