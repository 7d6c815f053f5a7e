"""The table of continuous elementwise functions, each described by where its slope equals k.

Keys are primitives, or functions that a group of equations is recognised as (`univariate`). A row
that depends on the parameters of its equation, or on which operand is perturbed, is a function
of the two.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core import versions
from ibpjax.core.row import EXACT, GREATER, OWN, Elementwise, Row, kinks
from ibpjax.core.sets import Interval
from ibpjax.primitives.nonlinear import power

Function = Elementwise | Callable[[dict[str, Any], int], Elementwise]


def at_known(k: Any, *known: Any) -> Sequence[Any]:
  """The kinks of max, min and clip: their known operands."""
  return known


def _between(k: Any, low: float, high: float) -> Any:
  """`k` kept strictly inside (low, high), where the inverse of a derivative is finite."""
  margin = jnp.finfo(k.dtype).eps * (high - low)
  return jnp.clip(k, low + margin, high - margin)


def _fraction(k: Any) -> Any:
  """`k` kept in (0, 1); small ones as they are, for they belong to points far out."""
  info = jnp.finfo(k.dtype)
  return jnp.clip(k, info.tiny, 1 - info.eps)


def _positive(k: Any) -> Any:
  return jnp.maximum(k, jnp.finfo(k.dtype).tiny)


def _nonzero(c: Any) -> Any:
  return jnp.where(c == 0, 1, c)


def _both(x: Any) -> Sequence[Any]:
  return x, -x


# ------------------------------------------------------------------------------ powers, roots
def _integer_pow(params: dict[str, Any], slot: int) -> Elementwise:
  """x**n. Its slope n x**(n-1) equals k at +-|k/n|**(1/(n-1)); for n < 0 it has a pole at 0."""
  n = params['y']
  if n in (0, 1):
    return kinks(trend=n, roundings=0)

  def critical(k):
    x = jnp.abs(k) ** (1 / (n - 1)) * abs(n) ** (-1 / (n - 1))  # k / n may vanish
    return (x, -x, jnp.zeros_like(k)) if n > 0 else (x, -x)
  return Elementwise(critical, trend=n % 2 if n > 0 else 0, pole=None if n > 0 else 0., roundings=max(16, 4 * abs(n)))


def _pow(params: dict[str, Any], slot: int) -> Elementwise:
  """x**c and c**x, by the place of the perturbed operand.

  x**c is real for x >= 0 (x > 0 if c < 0), and for x < 0 too if c is an integer. c**x is real
  for c > 0. Both lose up to |x log c| roundings on the way through the logarithm.
  """
  def power(k, c):  # where c x**(c-1) = k
    c = c.astype(k.dtype)
    flat = (c == 0) | (c == 1)
    inverse, size, ratio = 1 / jnp.where(flat, 1, c - 1), jnp.abs(jnp.where(flat, 1, c)), jnp.abs(k / c)
    kept = (ratio >= jnp.finfo(k.dtype).tiny) & jnp.isfinite(ratio)
    x = jnp.where(kept, jnp.where(kept, ratio, 1) ** inverse, jnp.abs(k) ** inverse * size ** -inverse)
    x = jnp.where(flat | jnp.isnan(x), 0, x)
    return x, -x, jnp.zeros_like(x)

  def real(x, c):
    whole, size = c == jnp.floor(c), jnp.abs(c)
    real = jnp.where(c > 0, (x.lower >= 0) | whole, (x.lower > 0) | (whole & (x.upper < 0)) | (c == 0))
    jumps = (size > 1 / (64 * jnp.finfo(x.dtype).eps)) | ((size < 1e-6) & (c != 0) & (x.lower <= 0))
    return real & ~jumps  # from one float to the next

  def exponential(k, c):  # where c**x log c = k
    log = jnp.log(jnp.where(c > 0, c, 1))
    flat = log == 0
    log = jnp.where(flat, 1, log)
    return (jnp.where(flat, 0, jnp.log(_positive(k / log)) / log),)

  if slot == 0:
    return Elementwise(power, defined=real, steep=lambda v, c: (v == 0) & (c < 1), roundings=512)
  return Elementwise(exponential, defined=lambda x, c: jnp.broadcast_to(c > 0, x.shape), roundings=512)


# -------------------------------------------------------------------------- sigmoids and bells
def _inverse_bell(k: Any) -> Any:
  """Where 1 - tanh(x)**2 is k, for x >= 0."""
  k = _fraction(k)
  return jnp.log1p(jnp.sqrt(1 - k)) - jnp.log(k) / 2


def _asinh(k: Any) -> Sequence[Any]:
  k = _fraction(k)
  return _both(jnp.sqrt((1 - k) * (1 + k)) / k)


def _atan(k: Any) -> Sequence[Any]:
  k = _fraction(k)
  return _both(jnp.sqrt((1 - k) / k))


def _tanh(k: Any) -> Sequence[Any]:
  return _both(_inverse_bell(k))


def _logistic(k: Any) -> Sequence[Any]:
  return _both(2 * _inverse_bell(4 * k))


def _logit(k: Any) -> Sequence[Any]:
  k = _fraction(k)
  return (jnp.log(k) - jnp.log1p(-k),)


_LOG2 = float(np.log(2))


def _bell(k: Any) -> Any:
  """Where the slope 2 exp(-x**2) / sqrt(pi) of erf is k, for x >= 0."""
  return jnp.sqrt(-jnp.log(_fraction(k * np.pi ** .5 / 2)))


def _resolved(k: Any, most: float, points: Sequence[Any]) -> Sequence[Any]:
  """Points of slope k, NaN where they lie within a few ulps of an end of the domain: there lines say nothing."""
  return [jnp.where(k > most / jnp.finfo(k.dtype).eps, jnp.nan, p) for p in points]


def _erf_inv(k: Any) -> Sequence[Any]:
  return _resolved(k, 1 / 32, _both(lax.erf(jnp.sqrt(jnp.log(jnp.maximum(2 * k / np.pi ** .5, 1))))))


def _atanh(k: Any) -> Sequence[Any]:
  return _resolved(k, 1 / 8, _both(jnp.sqrt(1 - 1 / jnp.maximum(k, 1.))))


def _log1p(k: Any) -> Sequence[Any]:
  return _resolved(k, 1 / 8, [1 / _positive(k) - 1])


# ----------------------------------------------------------------------------- trigonometry
def _sine(k: Any) -> Sequence[Any]:
  return _both(jnp.arccos(jnp.clip(k, -1, 1)))


def _cosine(k: Any) -> Sequence[Any]:
  x = jnp.arcsin(jnp.clip(k, -1, 1))
  return -x, np.pi + x


def _tangent(k: Any) -> Sequence[Any]:
  return _both(jnp.arccos(jnp.sqrt(1 / jnp.maximum(k, 1))))


# ---------------------------------------------------------------------- activations of jax.nn
def gelu_erf(x: Any) -> Any:
  """x times the normal distribution function of x."""
  return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Any) -> Any:
  """The approximation of gelu by a tanh of a cubic."""
  return jax.nn.gelu(x, approximate=True)


_SILU_BEND, _GELU_BEND, _TANH_BEND = 2.3993572805154, 2 ** .5, 1.4185040123068  # where the slope turns
_MISH_BENDS = -2.2563763994, 1.4905711836
_CUBIC, _SCALE = .044715, (2 / np.pi) ** .5


def _silu_slope(x: Any) -> Any:
  return jax.nn.sigmoid(x) * (1 + x * jax.nn.sigmoid(-x))


def _gelu_slope(x: Any) -> Any:
  return lax.erfc(-x * .5 ** .5) / 2 + x * jnp.exp(-x * x / 2) * (2 * np.pi) ** -.5


def _gelu_tanh_slope(x: Any) -> Any:
  w = 2 * _SCALE * x * (1 + _CUBIC * x * x)
  return jax.nn.sigmoid(w) * (1 + jax.nn.sigmoid(-w) * 2 * _SCALE * x * (1 + 3 * _CUBIC * x * x))


def _mish_slope(x: Any) -> Any:
  s = jnp.logaddexp(x, 0)
  return jnp.tanh(s) + x * jax.nn.sigmoid(x) / jnp.cosh(jnp.minimum(s, 40)) ** 2


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _bisect(slope: Callable[[Any], Any], left: float, right: float, rising: bool, k: Any) -> Any:
  """Where a monotone slope is k, between two points."""
  def halve(_, ends):
    a, b = ends
    middle = a / 2 + b / 2
    right_half = (slope(middle) < k) if rising else (slope(middle) > k)
    return jnp.where(right_half, middle, a), jnp.where(right_half, b, middle)
  a, b = lax.fori_loop(0, 52, halve, (jnp.full_like(k, left), jnp.full_like(k, right)))
  return a / 2 + b / 2


def _gated(slope: Callable[[Any], Any], low: float, high: float, minimum: float, reach: float,
           **kwargs: Any) -> Elementwise:
  """x times a sigmoid of x. Its slope falls from 0 up to x = low, rises up to high and falls to 1.

  The points of slope k are bisected on each of the three pieces, so that their distance from
  the true points has a bound: 2 reach / 2**52, whose square, by which values differ, is below
  roundoff. Beyond +-reach f differs from 0 and from x by less than 1e-15.
  """
  def critical(k):
    return tuple(_bisect(slope, *piece, k) for piece in ((-reach, low, False), (low, high, True), (high, reach, False)))
  return Elementwise(critical, stationary=(minimum,), limits=(0., np.inf), **kwargs)


def _elu(k: Any, alpha: Any) -> Sequence[Any]:
  alpha = _nonzero(alpha)
  return jnp.log(_positive(k * jnp.sign(alpha))) - jnp.log(jnp.abs(alpha)), jnp.zeros_like(k)


def _celu(k: Any, alpha: Any) -> Sequence[Any]:
  return alpha * jnp.log(_positive(k)), jnp.zeros_like(k)


def _celu_computes(x: Interval, alpha: Any) -> Any:
  """Where x / alpha is neither 0 / 0, nor loses more by underflow than `cancellation` allows for, nor by rounding more
  than `roundings` do: for alpha < 0 the exponential grows, and multiplies the error of its argument by that.
  """
  info, size = jnp.finfo(x.dtype), jnp.abs(alpha)
  return (size >= info.tiny) & (size <= info.eps / (4 * info.tiny)) & ((alpha > 0) | (x.lower / 100 >= alpha))


def hyperbola(x: Any, b: Any) -> Any:
  """x + sqrt(x**2 + b): twice squareplus."""
  return x + jnp.sqrt(jnp.square(x) + b)


def _hyperbola(k: Any, b: Any) -> Sequence[Any]:
  t = _between(k - 1, -1., 1.)
  return (jnp.sqrt(jnp.maximum(b, 0)) * t / jnp.sqrt(1 - t * t),)


def _hyperbola_computes(x: Interval, b: Any) -> Any:
  """Where the root is real, and the square does not overflow."""
  size = jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper))
  return (b >= 0) & (size * size + b < jnp.inf)


def _sparse_plus(k: Any) -> Sequence[Any]:
  return 2 * k - 1, -jnp.ones_like(k), jnp.ones_like(k)


def _hard_silu(k: Any) -> Sequence[Any]:
  return 3 * k - 1.5, jnp.full_like(k, -3), jnp.full_like(k, 3)


def _periodic(function: Elementwise, lipschitz: float | None = None) -> Row:
  """The row of a function that has no limit at infinity."""
  return Row(accuracy=OWN, elementwise=function, undefined_at_infinity=True, lipschitz=lipschitz)


def _steepest(function: Elementwise, lipschitz: float) -> Row:
  """The row of a function whose greatest slope is known."""
  return Row(accuracy=OWN, elementwise=function, lipschitz=lipschitz)


_EXTREME = Row(accuracy=EXACT, monotone=True, selects=True, keeps_unknown=True, relaxation=GREATER, any_operand=True,
               elementwise=Elementwise(at_known, trend=1, critical_is_trained=True, bent_once=True, roundings=0))

# How far functions may be off: at least twice the most that XLA's CPU code was seen to be (jaxlib 0.10.2), over all
# exponents and beside zeros, poles, kinks and ends of domains; within 4 units where 16 are stated.
_STATED: dict[Any, Function | Row] = {   # a Row where more is known than how the function bends
    P.max_p: _EXTREME,
    P.min_p: _EXTREME,
    P.abs_p: Row(accuracy=EXACT, keeps_unknown=True, elementwise=kinks(0., roundings=0), lipschitz=1.),
    P.square_p: Elementwise(lambda k: (k / 2,), stationary=(0.,), roundings=16),
    P.integer_pow_p: _integer_pow,
    P.pow_p: Row(accuracy=512., elementwise=_pow, any_operand=True, image=power),
    P.exp_p: Elementwise(lambda k: (jnp.log(_positive(k)),), trend=1, roundings=16),
    P.exp2_p: Elementwise(lambda k: (jnp.log2(_positive(k / _LOG2)),), trend=1, roundings=(256, 2048)),
    P.expm1_p: Elementwise(lambda k: (jnp.log(_positive(k)),), trend=1, roundings=16),
    P.log_p: Elementwise(lambda k: (1 / _positive(k),), trend=1, domain=(0., np.inf), roundings=16),
    versions.log2_p: Elementwise(lambda k: (1 / _positive(k * _LOG2),), trend=1, domain=(0., np.inf), roundings=16),
    P.log1p_p: Elementwise(_log1p, trend=1, domain=(-1., np.inf), roundings=(16, 512)),
    P.sqrt_p: Elementwise(lambda k: (jnp.square(.5 / _positive(k)),), trend=1, domain=(0., np.inf), roundings=16),
    P.rsqrt_p: Elementwise(lambda k: (_positive(-2 * k) ** (-2 / 3),), trend=-1, domain=(0., np.inf), roundings=16),
    P.cbrt_p: Elementwise(lambda k: (*_both((3 * _positive(k)) ** -1.5), jnp.zeros_like(k)), trend=1,
                          steep=lambda v: v == 0, roundings=16, vanished=5e22),  # XLA's is -5.6e-16 at 1e-40
    P.sin_p: _periodic(Elementwise(_sine, stationary=(np.pi / 2, -np.pi / 2), period=2 * np.pi, roundings=16), 1.),
    P.cos_p: _periodic(Elementwise(_cosine, stationary=(0., np.pi), period=2 * np.pi, roundings=16), 1.),
    P.tan_p: _periodic(Elementwise(_tangent, stationary=(), pole=np.pi / 2, period=np.pi, roundings=64)),
    P.sinh_p: Elementwise(lambda k: _both(jnp.arccosh(jnp.maximum(k, 1.))), trend=1, roundings=(128, 1024)),
    P.cosh_p: Elementwise(lambda k: (jnp.arcsinh(k),), stationary=(0.,), roundings=(128, 1024)),
    P.asinh_p: Elementwise(_asinh, trend=1, roundings=16),
    P.acosh_p: Elementwise(lambda k: (jnp.hypot(1., 1 / _positive(k)),), trend=1, domain=(1., np.inf), roundings=16),
    P.atanh_p: Elementwise(_atanh, trend=1, domain=(-1., 1.), roundings=(16, 512)),
    P.asin_p: Elementwise(lambda k: _both(jnp.sqrt(1 - 1 / jnp.maximum(k, 1.) ** 2)), trend=1, domain=(-1., 1.),
                          roundings=16),
    P.acos_p: Elementwise(lambda k: _both(jnp.sqrt(1 - 1 / jnp.maximum(-k, 1.) ** 2)), trend=-1, domain=(-1., 1.),
                          roundings=16),
    P.atan_p: Elementwise(_atan, trend=1, roundings=16),
    P.erf_p: _steepest(Elementwise(lambda k: _both(_bell(k)), trend=1, roundings=16), 2 / np.pi ** .5),
    P.erfc_p: Elementwise(lambda k: _both(_bell(-k)), trend=-1, roundings=(256, 2048)),
    P.erf_inv_p: Elementwise(_erf_inv, trend=1, domain=(-1., 1.), roundings=(256, 4e6)),
    P.tanh_p: _steepest(Elementwise(_tanh, trend=1, roundings=16), 1.),
    P.logistic_p: _steepest(Elementwise(_logistic, trend=1, roundings=16), .25),
    jax.nn.softplus: Elementwise(_logit, trend=1, roundings=16),
    jax.nn.leaky_relu: kinks(0., roundings=4),  # the negative slope may be negative: no trend
    jax.nn.elu: Elementwise(_elu, roundings=16),
    jax.nn.celu: Elementwise(_celu, trend=1, defined=_celu_computes, roundings=256, cancellation=1.),
    jax.nn.silu: _gated(_silu_slope, -_SILU_BEND, _SILU_BEND, -1.278464542761074, 44., roundings=16),
    gelu_erf: _gated(_gelu_slope, -_GELU_BEND, _GELU_BEND, -.7517915246935646, 9., roundings=16, cancellation=8.),
    gelu_tanh: _gated(_gelu_tanh_slope, -_TANH_BEND, _TANH_BEND, -.7524614220710163, 9., roundings=16,
                      cancellation=16.),
    jax.nn.mish: _gated(_mish_slope, *_MISH_BENDS, -1.1924312145154952, 44., roundings=64),
    jax.nn.soft_sign: Elementwise(lambda k: _both(_fraction(k) ** -.5 - 1), trend=1, limits=(-1., 1.), roundings=16),
    jax.nn.hard_tanh: kinks(-1., 1., trend=1, roundings=0),
    jax.nn.hard_silu: Elementwise(_hard_silu, stationary=(-1.5, -3., 3.), limits=(0., np.inf), roundings=16,
                                  cancellation=8.),
    hyperbola: Elementwise(_hyperbola, trend=1, defined=_hyperbola_computes,
                           limits=(0., np.inf), roundings=16, cancellation=8.),
    jax.nn.sparse_plus: Elementwise(_sparse_plus, trend=1, limits=(0., np.inf), roundings=16, cancellation=8.),
}
_STATED.pop(None, None)  # primitives that this version of JAX lacks
ROWS: dict[Any, Row] = {key: stated if isinstance(stated, Row) else Row(accuracy=OWN, elementwise=stated)
                        for key, stated in _STATED.items()}

# Functions that reach a trace as several equations, and how many known scalars follow the array.
COMPOSED: dict[Callable[..., Any], int] = {
    jax.nn.softplus: 0, jax.nn.leaky_relu: 1, jax.nn.elu: 1, jax.nn.celu: 1, jax.nn.silu: 0, gelu_erf: 0, gelu_tanh: 0,
    jax.nn.mish: 0, jax.nn.soft_sign: 0, jax.nn.hard_tanh: 0, jax.nn.hard_silu: 0, hyperbola: 1,
    jax.nn.sparse_plus: 0,
}
