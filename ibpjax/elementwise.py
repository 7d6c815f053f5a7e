"""The table of continuous elementwise functions, each described by where its slope equals k.

Between such points (and kinks) f(x) - k x is monotone. That one fact gives the exact range of f
over a box (k = 0) and, for a line of any slope, the best intercept that keeps it sound.
"""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as P
from jax.interpreters import ad, batching, mlir

from ibpjax.interval import Interval
from ibpjax.program import Equation, Recogniser, rebind, unsupported


@dataclasses.dataclass(frozen=True)
class Elementwise:
  """A continuous function of one perturbed array, applied to each element.

  Attributes:
    critical: (k, *known) -> points at which the slope of f is k, and all kinks of f. Between
      neighbouring points f(x) - k x is monotone on the domain. `known` are the other operands
      (bounds of a clip, slopes of a ramp), in order. Points that are not needed do no harm: they
      are moved into the box.
    trend: +1 if f increases and -1 if it decreases for ALL values of its known operands, else 0;
      a shortcut to the range, never needed.
    domain: (least, greatest) real argument. A box that leaves it has the range (-inf, inf).
    pole: a point that no box may hold: there the range is (-inf, inf).
    critical_is_trained: whether points carry gradients to the known operands they come from.
      At a smooth stationary point f(x) - k x does not change to first order, so nothing is lost.
    roundings: relative error of f as it is computed, in units of roundoff; certificates widen by
      it. State more if the code of f cancels.
  """
  critical: Callable[..., Sequence[Any]]
  trend: int = 0
  domain: tuple[float, float] = (-np.inf, np.inf)
  pole: float | None = None
  critical_is_trained: bool = False
  roundings: float = 16.

  def valid(self, x: Interval) -> Any:
    """Where f is defined on the whole of a box; plain True if it is defined everywhere."""
    if self.domain == (-np.inf, np.inf) and self.pole is None:
      return True
    inside = (x.lower >= self.domain[0]) & (x.upper <= self.domain[1])
    return inside if self.pole is None else inside & ((x.lower > self.pole) | (x.upper < self.pole))

  def harmless(self) -> float:
    """A point at which f and its derivative are finite."""
    least, greatest = self.domain
    if np.isfinite(least) and np.isfinite(greatest):
      return (least + greatest) / 2
    return least + 1 if np.isfinite(least) else greatest - 1 if np.isfinite(greatest) else (self.pole or 0.) + 1


def kinks(*at: float, trend: int = 0) -> Elementwise:
  """A piecewise linear function whose slope changes at fixed points."""
  return Elementwise(lambda k, *known: at, trend)


def at_known(k: Any, *known: Any) -> Sequence[Any]:
  """The kinks of max, min and clip: their known operands."""
  return known


def _between(k: Any, low: float, high: float) -> Any:
  """`k` kept strictly inside (low, high), where the inverse of a derivative is finite."""
  margin = jnp.finfo(k.dtype).eps * (high - low)
  return jnp.clip(k, low + margin, high - margin)


def _positive(k: Any) -> Any:
  return jnp.maximum(k, jnp.finfo(k.dtype).tiny)


def _tanh(k: Any) -> Sequence[Any]:
  return _both(jnp.arctanh(jnp.sqrt(1 - _between(k, 0., 1.))))


def _logistic(k: Any) -> Sequence[Any]:
  return _both(2 * jnp.arctanh(jnp.sqrt(1 - _between(4 * k, 0., 1.))))


def _both(x: Any) -> Sequence[Any]:
  return x, -x


def _logit(k: Any) -> Sequence[Any]:
  k = _between(k, 0., 1.)
  return (jnp.log(k) - jnp.log1p(-k),)


_LOG2 = float(np.log(2))


def _bell(k: Any) -> Any:
  """Where the slope 2 exp(-x**2) / sqrt(pi) of erf is k, for x >= 0."""
  return jnp.sqrt(-jnp.log(_between(k * np.pi ** .5 / 2, 0., 1.)))


def _integer_pow(params: dict[str, Any]) -> Elementwise:
  """x**n. Its slope n x**(n-1) equals k at +-|k/n|**(1/(n-1)); for n < 0 it has a pole at 0."""
  n = params['y']
  if n in (0, 1):
    return kinks(trend=n)

  def critical(k):
    x = jnp.abs(k / n) ** (1 / (n - 1))
    return (x, -x, jnp.zeros_like(k)) if n > 0 else (x, -x)
  return Elementwise(critical, trend=n % 2 if n > 0 else 0, pole=None if n > 0 else 0., roundings=max(16, 4 * abs(n)))


# Keys are primitives, or functions recognised as a whole. A row that depends on the parameters of
# its equation is a function of them.
TABLE: dict[Any, Elementwise | Callable[[dict[str, Any]], Elementwise]] = {
    P.max_p: Elementwise(at_known, trend=1, critical_is_trained=True),
    P.min_p: Elementwise(at_known, trend=1, critical_is_trained=True),
    P.abs_p: kinks(0.),
    P.square_p: Elementwise(lambda k: (k / 2,)),
    P.integer_pow_p: _integer_pow,
    P.exp_p: Elementwise(lambda k: (jnp.log(_positive(k)),), trend=1),
    P.exp2_p: Elementwise(lambda k: (jnp.log2(_positive(k / _LOG2)),), trend=1, roundings=256),
    P.expm1_p: Elementwise(lambda k: (jnp.log(_positive(k)),), trend=1),
    P.log_p: Elementwise(lambda k: (1 / _positive(k),), trend=1, domain=(0., np.inf)),
    P.log1p_p: Elementwise(lambda k: (1 / _positive(k) - 1,), trend=1, domain=(-1., np.inf)),
    P.sqrt_p: Elementwise(lambda k: (1 / (4 * _positive(k * k)),), trend=1, domain=(0., np.inf)),
    P.rsqrt_p: Elementwise(lambda k: (_positive(-2 * k) ** (-2 / 3),), trend=-1, domain=(0., np.inf)),
    P.cbrt_p: Elementwise(lambda k: (*_both((3 * _positive(k)) ** -1.5), jnp.zeros_like(k)), trend=1),
    P.sinh_p: Elementwise(lambda k: _both(jnp.arccosh(jnp.maximum(k, 1.))), trend=1, roundings=128),
    P.cosh_p: Elementwise(lambda k: (jnp.arcsinh(k),), roundings=128),
    P.asinh_p: Elementwise(lambda k: _both(jnp.sqrt(1 / _between(k, 0., 1.) ** 2 - 1)), trend=1),
    P.acosh_p: Elementwise(lambda k: (jnp.sqrt(1 + 1 / _positive(k * k)),), trend=1, domain=(1., np.inf)),
    P.atanh_p: Elementwise(lambda k: _both(jnp.sqrt(1 - 1 / jnp.maximum(k, 1.))), trend=1, domain=(-1., 1.)),
    P.asin_p: Elementwise(lambda k: _both(jnp.sqrt(1 - 1 / jnp.maximum(k, 1.) ** 2)), trend=1, domain=(-1., 1.)),
    P.acos_p: Elementwise(lambda k: _both(jnp.sqrt(1 - 1 / jnp.maximum(-k, 1.) ** 2)), trend=-1, domain=(-1., 1.)),
    P.atan_p: Elementwise(lambda k: _both(jnp.sqrt(1 / _between(k, 0., 1.) - 1)), trend=1),
    P.erf_p: Elementwise(lambda k: _both(_bell(k)), trend=1),
    P.erfc_p: Elementwise(lambda k: _both(_bell(-k)), trend=-1, roundings=256),
    P.tanh_p: Elementwise(_tanh, trend=1),
    P.logistic_p: Elementwise(_logistic, trend=1),
    jax.nn.softplus: Elementwise(_logit, trend=1),
    jax.nn.leaky_relu: kinks(0.),  # the negative slope may be negative: no trend
}

# Functions that reach a trace as calls, and with how many array arguments.
recognise = Recogniser({jax.nn.softplus: ((jax.nn.softplus, 1),),
                        jax.nn.leaky_relu: ((jax.nn.leaky_relu, 1), (jax.nn.leaky_relu, 2))})


# ------------------------------------------------------------------------------- registration
elementwise_call_p = jex.Primitive('elementwise_call')
TABLE[elementwise_call_p] = lambda params: params['rule']


def elementwise(rule: Elementwise) -> Callable[[Callable], Callable]:
  """Decorator: bounds `fn(x, *known)` by `rule` as a whole, not primitive by primitive.

  Args:
    rule: where the slope of `fn` in its first argument equals k; see `Elementwise`.

  Returns:
    A decorator of functions of one array `x` and any number of known arrays, all elementwise and
    broadcast to one shape. The decorated function is an ordinary JAX function (jit, vmap, grad).
    A second argument that is perturbed too is refused when bounds are computed.
  """
  def register(fn: Callable) -> Callable:
    @functools.wraps(fn)
    def registered(x, *known):
      x = jnp.asarray(x)
      operands = [x, *(jnp.asarray(c, x.dtype) for c in known)]
      shape = jnp.broadcast_shapes(*(a.shape for a in operands))
      out = jax.eval_shape(fn, *(jax.ShapeDtypeStruct(shape, x.dtype) for _ in operands))
      if (out.shape, out.dtype) != (shape, x.dtype):
        raise TypeError(f'{fn.__name__} maps {x.dtype}{list(shape)} to {out.dtype}{list(out.shape)}: a registered '
                        'function is elementwise and keeps shape and dtype')
      return elementwise_call_p.bind(*(jnp.broadcast_to(a, shape) for a in operands), fn=fn, rule=rule)
    return registered
  return register


def _call(*xs, fn, rule):
  del rule
  return fn(*xs)


def _batch(args, dims, *, fn, rule):
  size = next(x.shape[d] for x, d in zip(args, dims) if d is not None)
  args = [jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims)]
  return elementwise_call_p.bind(*args, fn=fn, rule=rule), 0


def _jvp(primals, tangents, *, fn, rule):
  del rule
  return jax.jvp(fn, primals, tuple(map(ad.instantiate_zeros, tangents)))


elementwise_call_p.def_impl(jax.jit(_call, static_argnames=('fn', 'rule')))
elementwise_call_p.def_abstract_eval(lambda x, *known, fn, rule: jax.core.ShapedArray(x.shape, x.dtype))
ad.primitive_jvps[elementwise_call_p] = _jvp
batching.primitive_batchers[elementwise_call_p] = _batch
mlir.register_lowering(elementwise_call_p, mlir.lower_fun(_call, multiple_results=False))


# ---------------------------------------------------------------------------------- bounding
def unary(eqn: Equation, operands: Sequence[Any]) -> tuple[Elementwise, Callable[[Any], Any], Interval, list[Any]]:
  """(rule, fn, interval, known): the equation as a function of its one perturbed operand."""
  slots = [i for i, x in enumerate(operands) if isinstance(x, Interval)]
  row = TABLE.get(eqn.key)
  if row is None:
    raise unsupported(eqn, 'has no bound rule. Write it with supported operations, or register the function it '
                           'is part of with @ibpjax.elementwise')
  if len(slots) != 1 or (eqn.key is elementwise_call_p and slots != [0]):
    raise unsupported(eqn, 'is bounded in one perturbed operand (the first, if registered); the others must be known')
  rule = row if isinstance(row, Elementwise) else row(eqn.params)
  slot, known = slots[0], [x for x in operands if not isinstance(x, Interval)]
  x = operands[slot]
  if eqn.primitive in (P.max_p, P.min_p):
    # At ties the gradient follows jax.nn.relu (0), not lax.max (1/2): dead units and padded
    # images sit exactly on ties.
    c = known[0]
    worse = jnp.less_equal if eqn.primitive is P.max_p else jnp.greater_equal  # NaN is kept
    return rule, lambda v: jnp.where(worse(v, c), c, v), x, known

  def fn(v):
    return rebind(eqn, *[v if i == slot else c for i, c in enumerate(operands)])[0]
  return rule, fn, x, known


def extremes(fn: Callable[[Any], Any], x: Interval, points: Sequence[Any]) -> Interval:
  """The least and greatest fn(v) over v in [l, u], from the ends and the critical points."""
  values = [fn(v) for v in (x.lower, x.upper, *(jnp.clip(jnp.asarray(p, x.dtype), x.lower, x.upper) for p in points))]
  return Interval(functools.reduce(jnp.minimum, values), functools.reduce(jnp.maximum, values))


def critical_points(rule: Elementwise, k: Any, known: Sequence[Any]) -> Sequence[Any]:
  """The points of a rule at slope k, free of gradients where these are 0 anyway."""
  points: tuple[Any, ...] = tuple(rule.critical(k, *known))
  return points if rule.critical_is_trained else tuple(lax.stop_gradient(p) for p in points)


def image(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """The exact range of an elementwise function over a box."""
  rule, fn, x, known = unary(eqn, operands)
  x, restore = _defined(rule, x)
  if rule.trend:
    lower, upper = fn(x.lower), fn(x.upper)
    return restore(Interval(lower, upper) if rule.trend > 0 else Interval(upper, lower))
  return restore(extremes(fn, x, critical_points(rule, jnp.zeros_like(x.lower), known)))


def _defined(rule: Elementwise, x: Interval) -> tuple[Interval, Callable[[Interval], Interval]]:
  """The box, moved to a harmless point where f is not defined on it, and what makes that infinite again.

  Both, so that neither a value nor a gradient is NaN.
  """
  valid = rule.valid(x)
  if valid is True:
    return x, lambda out: out
  point = rule.harmless()
  moved = Interval(jnp.where(valid, x.lower, point), jnp.where(valid, x.upper, point))
  return moved, lambda out: Interval(jnp.where(valid, out.lower, -jnp.inf), jnp.where(valid, out.upper, jnp.inf))


def enclose(eqn: Equation, operands: Sequence[Any], slopes: Callable[..., tuple[Any, Any]]) -> tuple[Any, Any]:
  """The best lines below and above with the slopes that `slopes` chooses; sound for any slopes.

  Returns:
    ((slope, intercept) of the line below, (slope, intercept) of the line above), each array of
    the shape of the perturbed operand.
  """
  rule, fn, x, known = unary(eqn, operands)
  x, restore = _defined(rule, x)
  below, above = slopes(fn, x.lower, x.upper)
  low = extremes(lambda v: fn(v) - below * v, x, critical_points(rule, below, known)).lower
  high = extremes(lambda v: fn(v) - above * v, x, critical_points(rule, above, known)).upper
  intercepts = restore(Interval(low, high))
  return (below, intercepts.lower), (above, intercepts.upper)
