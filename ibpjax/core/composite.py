"""Composite: what a group of equations computes together, bounded as one.

The type only: `ibpjax.composites` says which groups there are and finds them in programs.
"""
from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.core.sets import Interval, centre_radius, is_set


def centre(x: Interval) -> Any:
  """The middle of each element; 0 where it is unbounded and not a point."""
  return jnp.where(x.lower == x.upper, x.lower, centre_radius(x)[0])


def radius(x: Interval) -> Any:
  """Half of the width of each element: 0 at a point, an infinite one too."""
  return jnp.where(x.lower == x.upper, 0, centre_radius(x)[1])


def finite(a: Any) -> Any:
  """An array with 0 in the place of what is not finite."""
  return jnp.where(jnp.isfinite(a), a, 0)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Composite:
  """What a group of equations computes together."""

  def __repr__(self) -> str:
    return re.sub('(?<=[a-z])(?=[A-Z])', '_', type(self).__name__).lower()

  def __call__(self, *operands: Any) -> Any:
    """The value on arrays."""
    raise NotImplementedError

  def image(self, operands: Sequence[Any], u: float) -> Interval:
    """Bounds of the value on boxes."""
    raise NotImplementedError

  def curvature(self, operands: Sequence[Any]) -> Interval | None:
    """Bounds of what the value differs on boxes from its tangent at their `centre`; None if these are not known.

    Half of what bounds the second derivative of t -> value(c + t d), for all |d| <= radius and
    0 <= t <= 1 (Taylor's theorem with integral remainder).
    """
    return None

  def linearised(self, operands: Sequence[Any]) -> tuple[Callable[..., Any], Interval] | None:
    """A linear map of the perturbed operands and bounds of what it leaves of the value."""
    rest = self.curvature(operands)
    if rest is None:
      return None
    slots = [i for i, x in enumerate(operands) if is_set(x)]
    centres = [centre(operands[i]) for i in slots]

    def fn(*xs):
      put = dict(zip(slots, xs))
      return self(*(put.get(i, x) for i, x in enumerate(operands)))
    value, push = jax.linearize(fn, *centres)
    offset = value - push(*map(finite, centres))
    return push, Interval(offset + rest.lower, offset + rest.upper)
