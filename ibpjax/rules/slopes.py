"""Lines: the choice of slopes for the two lines that enclose an elementwise function.

A choice maps (fn, l, u, points) to (slopes below, slopes above), each an array of the shape of l or
a list of such arrays, of which the best is taken: the line that leaves the least area. `points` are
those where the slope of fn is that of its chord, and its kinks, moved into [l, u]. Any choice is
sound: the intercepts are computed afterwards (`elementwise.enclose`).
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ibpjax.core.row import Function, chord, slope_at

Lines = Callable[[Function, Any, Any, Sequence[Any]], tuple[Any, Any]]


def constant(fn: Function, l: Any, u: Any, points: Sequence[Any] = ()) -> tuple[Any, Any]:
  """Slope 0: the lines are the ends of the range, and linear methods give the IBP box.

  Source: Lyu et al. 2021, Figure 1a.
  """
  return jnp.zeros_like(l), jnp.zeros_like(l)


def tight(fn: Function, l: Any, u: Any, points: Sequence[Any] = ()) -> tuple[Any, Any]:
  """Lines inside the range of a function: below through its least value, above through its greatest.

  The premise of the ordering IBP <= LBP, CROWN-IBP <= CROWN-LBP <= CROWN. For an increasing
  function they touch it at l and at u, for a decreasing one at u and at l; where it turns, their
  slope is 0.
  Source: Lyu et al. 2021, Figure 1b and Theorem 2.
  """
  c, inward = chord(fn, l, u), _next(l, u)  # from within: a kink at an end bends nothing inside
  left, right = slope_at(fn, l + inward), slope_at(fn, u - inward)
  below = jnp.where(c >= 0, jnp.minimum(left, c), jnp.maximum(right, c))
  above = jnp.where(c >= 0, jnp.minimum(right, c), jnp.maximum(left, c))
  turns = left * right < 0
  return jnp.where(turns, 0, below), jnp.where(turns, 0, above)


def _next(l: Any, u: Any) -> Any:
  """A step from either end of [l, u] inward, of a few roundings."""
  return jnp.minimum(4 * jnp.finfo(l.dtype).eps * jnp.maximum(1, jnp.maximum(jnp.abs(l), jnp.abs(u))), (u - l) / 2)


def adaptive(fn: Function, l: Any, u: Any, points: Sequence[Any] = ()) -> tuple[Any, Any]:
  """Lines of least area: tangents in the middle, chords between the ends and the points where f bends.

  For ReLU this is CROWN's choice: above the chord, below 0 or 1 by the sign of the midpoint.
  Source: Zhang et al. 2018; Lyu et al. 2021, Figures 1c and 1d, and section 3.2 for ParamRamp.
  """
  slopes = [chord(fn, l, u), *(s for p in points for s in (chord(fn, l, p), chord(fn, p, u)))]
  slopes.append(slope_at(fn, l / 2 + u / 2))  # the last of equals is taken
  return slopes, slopes


def parallel(fn: Function, l: Any, u: Any, points: Sequence[Any] = ()) -> tuple[Any, Any]:
  """The slope of the chord for both lines: the function lies in a band, whose width one number says.

  Source: Singh et al., Fast and Effective Robustness Certification, NeurIPS 2018, for ReLU.
  """
  c = chord(fn, l, u)
  return c, c


class Alpha:
  """A choice whose slopes are moved, for an optimiser: each by a share of the way from its least to its greatest value.

  Only lines that can be exchanged for better ones elsewhere move. Where the chord encloses the function on one side
  (above a convex function), no other line on that side is worth anything.

  Attributes:
    start: the choice to start from.
    shares: pairs of arrays in [0, 1] for the lines below and above, one pair for each function that an equation is
      enclosed by, in order; None for those of `start`.
    starts: the shares of `start`, as far as functions have been enclosed.
  """

  def __init__(self, start: Lines, shares: Sequence[tuple[Any, Any]] | None = None):
    self.start, self.shares = start, shares
    self.starts: list[tuple[Any, Any]] = []

  def __call__(self, fn: Function, l: Any, u: Any, points: Sequence[Any] = ()) -> tuple[Any, Any]:
    return self.start(fn, l, u, points)

  def begin(self, chosen: tuple[Any, Any], at: tuple[Any, ...], tilted: Callable[[Any], Any]) -> None:
    """Takes down what shares the slopes are that `start` chose.

    Args:
      chosen: slopes below and above.
      at: the arguments of the choice.
      tilted: k -> the range of f(v) - k v.
    """
    _, least, way, free = _room(at, tilted)
    safe = jnp.where(way > 0, way, 1)
    below, above = (jnp.clip(jnp.where(f, (k - least) / safe, 0), 0, 1) for f, k in zip(free, chosen))
    self.starts.append((below, above))

  def slopes(self, at: tuple[Any, ...], tilted: Callable[[Any], Any]) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """The slopes below and above that the shares say, and beside them some whose intercepts have a derivative.

    The least and the greatest slope have none: their lines touch the function in two points. The arguments are
    those of `begin`.
    """
    assert self.shares is not None
    shares = self.shares[len(self.starts)]
    self.starts.append(shares)
    c, least, way, free = _room(at, tilted)

    def moved(shares):
      below, above = (jnp.where(f, least + t * way, c) for f, t in zip(free, shares))
      return below, above
    return moved(shares), moved([with_gradient_of(t, jnp.clip(t, 1e-3, .999)) for t in shares])


def _room(at: tuple[Any, ...], tilted: Callable[[Any], Any]) -> tuple[Any, Any, Any, list[Any]]:
  """The chord, the least slope that makes sense, how far it is to the greatest; whether lines below and above move."""
  fn, l, u, points = at
  inward = _next(l, u)
  c = chord(fn, l, u)
  slopes = [slope_at(fn, l + inward), slope_at(fn, u - inward), c]
  slopes += [s for p in points for s in (chord(fn, l, p), chord(fn, p, u))]
  least, greatest = (functools.reduce(f, slopes) for f in (jnp.minimum, jnp.maximum))
  known = jnp.isfinite(least) & jnp.isfinite(greatest)
  least, way = (lax.stop_gradient(jnp.where(known, k, 0)) for k in (least, greatest - least))
  left, end = tilted(c), fn(l) - c * l
  return c, least, way, [gap > 1e-4 * way * (u - l) for gap in (end - left.lower, left.upper - end)]


@jax.custom_jvp
def with_gradient_of(x: Any, value: Any) -> Any:
  """`value` to the last bit, with the derivative of `x`."""
  del x
  return value


@with_gradient_of.defjvp
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
  return primals[1], tangents[0]
