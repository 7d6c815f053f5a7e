"""Composites: groups of equations that have tighter bounds together than one by one.

Each is a class whose instances are keys of equations. `patterns` finds them in programs; here is
what they compute (`__call__`) and their bounds (`image`), with the reason why these hold. `u` is
the unit roundoff to allow for, 0 for bounds in exact arithmetic.
"""
from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from ibpjax.core.composite import Composite, radius
from ibpjax.core.sets import Interval, as_interval, unbounded


def gamma(n: float, u: float) -> float:
  """(1 + u)**n - 1 or more, the relative error of n operations of roundoff u."""
  return n * u / (1 - n * u) if n * u < .5 else math.expm1(min(2 * n * u, 60))


def largest(x: Interval) -> Any:
  """The greatest absolute value of each element."""
  return jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper))


def least(x: Interval) -> Any:
  """The least absolute value of each element."""
  return jnp.maximum(jnp.maximum(x.lower, -x.upper), 0)


def widened(x: Interval, slack: Any) -> Interval:
  """An interval, each end moved outward by `slack`."""
  return Interval(x.lower - slack, x.upper + slack)


def rest(e: Any, axes: tuple[int, ...]) -> Any:
  """The sum of the other terms of its group, for each term of e >= 0.

  The total less the own term where that is at most half of the total, so that at most one bit is
  lost, and a sum of its own for the one greater term there may be.
  """
  top = e == jnp.max(e, axes, keepdims=True)
  alone = top & (jnp.sum(top, axes, keepdims=True) == 1)
  without_top = jnp.sum(jnp.where(top, 0, e), axes, keepdims=True)
  total = jnp.sum(e, axes, keepdims=True)
  bounded = jnp.isfinite(total)
  rest = jnp.where(alone, without_top, jnp.where(bounded, total, 0) - jnp.where(bounded, e, 0))
  return jnp.where(bounded | alone, jnp.maximum(rest, 0), jnp.inf)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Blend(Composite):
  """(1 - z) a + z b, elementwise: the update of a GRU, a highway, a gate between two values.

  Affine in each of a, b and z when the others are fixed, so its extremes lie at corners of the
  box: for both ends of z, the ends of (1 - z) a and of z b. Exact. With z in [0, 1] it stays
  between a and b, however many steps follow each other.
  """

  def __call__(self, z, a, b):
    return (1 - z) * a + z * b

  def image(self, operands, u):
    z, a, b = map(as_interval, operands)

    def scaled(w, x):  # w x for a known w; 0 times an infinite end is 0
      ends = [jnp.where(w == 0, 0, w) * jnp.where((w == 0) & ~jnp.isfinite(e), 0, e) for e in (x.lower, x.upper)]
      return Interval(jnp.minimum(*ends), jnp.maximum(*ends))

    at = [(scaled(1 - w, a), scaled(w, b)) for w in (z.lower, z.upper)]
    out = Interval(jnp.minimum(*(p.lower + q.lower for p, q in at)), jnp.maximum(*(p.upper + q.upper for p, q in at)))
    if not u:
      return out
    terms = (1 + largest(z)) * (largest(a) + largest(b))
    out = widened(out, 8 * u * terms + 8 * jnp.finfo(out.dtype).tiny)  # products and sums that vanish
    return unbounded(out, ~(terms < float(jnp.finfo(out.dtype).max) / 2))  # of a + z (b - a), which is a blend too

  def curvature(self, operands):
    z, a, b = map(radius, map(as_interval, operands))
    left = z * (a + b)
    return Interval(-left, left)
