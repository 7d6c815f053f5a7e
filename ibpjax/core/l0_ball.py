"""l0 balls: inputs of which at most so many elements move, each within a range of its own."""
from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax

from ibpjax.core.directed import DOWN, UP, converted
from ibpjax.core.products import times
from ibpjax.core.sets import InputSet, Interval, centre_radius, pytree, rounding_of
from ibpjax.core.validation import as_floats, concrete


@pytree
class L0Ball(InputSet):
  """All `x` that differ from `centre` in at most `k` elements, with `lower <= x <= upper`.

  Attributes:
    centre: array of any shape and float dtype.
    lower, upper: arrays of this shape and dtype, `lower <= centre <= upper`.
    k: how many elements may move.
  """
  centre: Any
  lower: Any
  upper: Any
  k: int = dataclasses.field(metadata=dict(static=True))

  representative = property(lambda self: self.centre)

  @property
  def hull(self) -> Interval:
    """The box in which every element may move."""
    return Interval(self.lower, self.upper) if self.k else Interval(self.centre, self.centre)

  def support(self, coefficients: Any, u: float = 0.) -> tuple[Any, Any]:
    """The value at the centre and the `k` elements that move it most: exact."""
    count = min(self.k, self.size)

    def most(sign):
      gains = jnp.maximum(times(sign * coefficients, self.lower - self.centre),
                          times(sign * coefficients, self.upper - self.centre))
      return jnp.sum(lax.top_k(gains.ravel(), count)[0])
    at = jnp.vdot(coefficients, self.centre)
    centre, radius = centre_radius(Interval(at - most(-1), at + most(1)))
    return centre, radius + 4 * rounding_of(coefficients, self, u)  # of differences, up to twice the magnitudes

  def at(self, cut: Any) -> L0Ball:
    return L0Ball(cut(self.centre), cut(self.lower), cut(self.upper), self.k)

  def validated(self, name: str) -> L0Ball:
    centre = as_floats(self.centre, f'the centre of {name}')
    if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 0:
      raise ValueError(f'{name} is an l0 ball of k = {self.k!r}: that many elements may move, a whole number >= 0')
    lower, upper = converted(self.lower, centre.dtype, DOWN), converted(self.upper, centre.dtype, UP)
    if not lower.shape == upper.shape == centre.shape:
      raise ValueError(f'{name} has a centre of shape {centre.shape} and ranges of shapes {lower.shape} and '
                       f'{upper.shape}: all need one shape (ibpjax.l0_ball broadcasts them)')
    ok = (lower <= centre) & (centre <= upper) & jnp.isfinite(lower) & jnp.isfinite(upper)
    if not concrete(ok):
      return L0Ball(centre, jnp.where(ok, lower, -jnp.inf), jnp.where(ok, upper, jnp.inf), self.k)
    if not bool(jnp.all(ok)):
      raise ValueError(f'{name} is an l0 ball whose centre is not in a finite range everywhere: give minimum <= x <= '
                       'maximum')
    return L0Ball(centre, lower, upper, self.k)


def l0_ball(x: Any, k: int, minimum: Any, maximum: Any) -> L0Ball:
  """The l0 ball around `x`: at most `k` elements move, each anywhere within [minimum, maximum].

  Interval arithmetic bounds a function over the box in which all move; linear methods add up the k elements that
  matter most to each row: CROWN and LBP gain by it, IBP does not but by `elide`.

  Args:
    x: array of any shape and float dtype, e.g. an image scaled to [0, 1].
    k: how many elements (not pixels: of an image with channels, of these) may move.
    minimum, maximum: the range, scalars or arrays that broadcast to `x`; rounded outward to its dtype.

  Raises:
    TypeError: `x` holds integers.
    ValueError: k is negative; `x` leaves the range, or the range is not finite. Inside `jit` values cannot be looked
      at: there such a set bounds nothing and every result is infinite.
  """
  x = as_floats(x, 'x')
  lower, upper = (jnp.broadcast_to(converted(end, x.dtype, towards), x.shape)
                  for end, towards in ((minimum, DOWN), (maximum, UP)))
  return L0Ball(x, lower, upper, k).validated('the l0 ball')
