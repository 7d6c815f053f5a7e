"""Balls: the inputs at a distance of at most eps from one, in the norms lp."""
from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ibpjax.core.directed import DOWN, UP, converted, shifted
from ibpjax.core.sets import InputSet, Interval, pytree, rounding_of
from ibpjax.core.validation import as_floats, check_eps, concrete


@pytree
class LpBall(InputSet):
  """All `x` with `||x - centre||_p <= eps`, the norm taken over all elements of the array.

  Attributes:
    centre: array of any shape and float dtype.
    eps: scalar radius, in the units of `centre`.
    p: the order of the norm, 1 <= p < inf (the l-infinity ball is an Interval).
  """
  centre: Any
  eps: Any
  p: float = dataclasses.field(metadata=dict(static=True))

  representative = property(lambda self: self.centre)

  @property
  def hull(self) -> Interval:
    """The least Interval that holds the ball: its ends are rounded outward."""
    return _box(self.centre, converted(self.eps, self.centre.dtype, UP))

  def support(self, coefficients: Any, u: float = 0.) -> tuple[Any, Any]:
    """By the dual norm (Lyu et al. 2021, supplement, 1.1)."""
    q = np.inf if self.p == 1 else self.p / (self.p - 1)
    return jnp.vdot(coefficients, self.centre), self.eps * _norm(coefficients, q) + rounding_of(
        coefficients, self, u)

  def at(self, cut: Any) -> LpBall:
    return LpBall(cut(self.centre), self.eps, self.p)

  def validated(self, name: str) -> LpBall:
    if not 1 <= self.p < np.inf:
      raise ValueError(f'{name} is a ball of order p = {self.p}; balls have 1 <= p < inf (ibpjax.lp_ball makes them)')
    centre, eps = as_floats(self.centre, f'the centre of {name}'), self.eps
    as_floats(eps, f'eps of {name}')
    eps = converted(eps, centre.dtype, UP)
    ok = jnp.isfinite(centre) & jnp.isfinite(eps) & (eps >= 0)
    if concrete(ok):
      if not bool(jnp.all(ok)):
        raise ValueError(f'{name} has a centre or eps that is NaN, infinite or negative: input sets are finite')
      return LpBall(centre, eps, self.p)
    return LpBall(centre, jnp.where(jnp.all(ok), eps, jnp.inf), self.p)


def _norm(a: Any, q: float) -> Any:
  """The lq norm, with gradient 0 at 0 and no overflow for large q."""
  largest = jnp.max(jnp.abs(a), initial=0.)
  if q == np.inf:
    return largest
  scale = jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))
  total = jnp.sum(jnp.abs(a / scale) ** q)
  return scale * jnp.where(total > 0, jnp.where(total > 0, total, 1) ** (1 / q), 0)


def linf_ball(x: Any, eps: Any, minimum: Any = None, maximum: Any = None) -> Interval:
  """The l-infinity ball around `x`, clipped to [minimum, maximum] when these are given.

  It holds every real point of the clipped ball around `x` as JAX holds it (float32, if x is float64 and
  `jax_enable_x64` is off). Ends that are numbers of this dtype are exact; others are rounded outward, to the next.
  So are `eps`, `minimum` and `maximum` where they are given with higher precision, as Python numbers are. An argument
  of a function under `jax.jit` has been rounded, to nearest, before it comes here.

  Args:
    x: array of any shape and float dtype, e.g. images scaled to [0, 1].
    eps: radius in the units of `x`, >= 0; a scalar or an array that broadcasts to `x`.
    minimum, maximum: the valid range of `x`, scalars or arrays that broadcast to `x`.

  Returns:
    Interval of the shape and dtype of `x`. Ends too small to be normal numbers, which XLA takes for 0, become the next
    normal ones outward, or 0; float16 keeps them.

  Raises:
    TypeError: `x` holds integers.
    ValueError: eps is negative or not finite, or `x` leaves [minimum, maximum]. Inside `jit`
      values cannot be looked at: there such a box bounds nothing and every result is infinite.
  """
  x = as_floats(x, 'x')
  check_eps(eps)
  radius = converted(eps, x.dtype, UP)
  box, inside = _box(x, radius), radius >= 0
  lower, upper = box.lower, box.upper
  if minimum is not None:
    least = converted(minimum, x.dtype, DOWN)
    lower, inside = jnp.maximum(lower, least), inside & (x >= least)
  if maximum is not None:
    greatest = converted(maximum, x.dtype, UP)
    upper, inside = jnp.minimum(upper, greatest), inside & (x <= greatest)
  if concrete(inside):
    if not bool(jnp.all(inside)):
      raise ValueError(f'x has values in [{jnp.min(x)}, {jnp.max(x)}], outside [minimum, maximum] = '
                       f'[{minimum}, {maximum}]: scale x (images to [0, 1], say) or widen the range')
    return Interval(lower, upper)
  return Interval(jnp.where(inside, lower, jnp.nan), jnp.where(inside, upper, jnp.nan))


def _box(centre: Any, radius: Any) -> Interval:
  """centre -+ radius, of one dtype, rounded outward."""
  return Interval(shifted(centre, radius, DOWN), shifted(centre, radius, UP))


def lp_ball(x: Any, eps: Any, p: float = 2.) -> LpBall | Interval:
  """The lp ball around `x`: all points at distance at most `eps`, 1 <= p <= inf.

  Args:
    x: array of any shape and float dtype; the norm runs over all of its elements.
    eps: scalar radius in the units of `x`, >= 0; rounded up to the dtype of `x`.
    p: order of the norm; p = inf gives an Interval.

  IBP bounds the affine maps next to the input with the dual norm (Lyu et al. 2021, section 2.1)
  and goes on with boxes.
  """
  x = as_floats(x, 'x')
  if not p >= 1:
    raise ValueError(f'p is {p}; lp balls need 1 <= p <= inf')
  check_eps(eps)
  if np.isinf(p):
    return linf_ball(x, eps)
  eps = converted(eps, x.dtype, UP)
  if eps.ndim:
    raise ValueError(f'eps has shape {eps.shape}; the radius of an lp ball is a scalar (use vmap for batches)')
  return LpBall(x, eps if concrete(eps) else jnp.where(eps >= 0, eps, jnp.nan), float(p))
