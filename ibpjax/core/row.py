"""What the table states: of a primitive its `Row`; of a continuous function of each element, `Elementwise`.

Between points where the slope of f is k (and kinks) f(x) - k x is monotone. That one fact gives
the exact range of f over a box (k = 0) and, for a line of any slope, the best intercept that
keeps it sound.
"""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ibpjax.core.sets import Interval, unbounded

Function = Callable[[Any], Any]


def slope_at(fn: Function, x: Any) -> Any:
  """The derivative of an elementwise function at each element of `x`."""
  return jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]


def chord(fn: Function, l: Any, u: Any) -> Any:
  """The slope between the ends of [l, u]; the derivative where they coincide."""
  wide = u > l
  return jnp.where(wide, (fn(u) - fn(l)) / jnp.where(wide, u - l, 1), slope_at(fn, l))


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
    stationary: the critical points of slope 0, where numbers are at hand and `critical` is work.
    domain: (least, greatest) real argument. A box that leaves it has the range (-inf, inf). At finite ends the
      derivative is infinite.
    pole: a point that no box may hold: there the range is (-inf, inf).
    defined: (box, *known) -> where f is defined on the whole of a box, if that depends on more.
    period: f repeats, and critical points and poles with it. A box may hold many of them.
    limits: f(-inf) and f(inf), where the code of f makes NaN of them.
    steep: (points, *known) -> where else the derivative is infinite. There bounds take it for 0.
    critical_is_trained: whether points carry gradients to the known operands they come from.
      At a smooth stationary point f(x) - k x does not change to first order, so nothing is lost.
    bent_once: f has one kink and is linear on both sides of it.
    roundings: relative error of f as it is computed, in units of roundoff: a number, or a pair for float32 (and shorter
      types) and float64; 0 if f is exact. Bounds that allow for rounding, as certificates do, widen by it, and refuse
      a function that does not state it. It counts twice, at an end of a box and inside, which bounds of registered
      functions allow for; the library's own rows state that.
    cancellation: absolute error of f as it is computed, in units of roundoff times 1 + |x|.
    vanished: absolute error of f where it, or what it is computed from, is taken for 0: in least normal numbers times
      1 + min(|x|, 1024).
  """
  critical: Callable[..., Sequence[Any]]
  trend: int = 0
  stationary: tuple[float, ...] | None = None
  domain: tuple[float, float] = (-np.inf, np.inf)
  pole: float | None = None
  defined: Callable[..., Any] | None = None
  period: float | None = None
  limits: tuple[float, float] | None = None
  steep: Callable[..., Any] | None = None
  critical_is_trained: bool = False
  bent_once: bool = False
  roundings: float | tuple[float, float] | None = None
  cancellation: float = 0.
  vanished: float = 4.

  def units(self, dtype: Any) -> float | None:
    """The relative error of f in a dtype, in units of roundoff; None if it is not stated."""
    return self.roundings[jnp.dtype(dtype).itemsize > 4] if isinstance(self.roundings, tuple) else self.roundings

  def range(self, fn: Function, x: Interval, known: Sequence[Any], k: Any = None) -> Interval:
    """The exact range of fn(v) - k v over each element of a box; without k, that of fn.

    Outside of the domain it is (-inf, inf); neither it nor its gradient is ever NaN.
    """
    unknown: Any = False
    if self.period is not None:  # an unbounded box holds every value
      bounded = jnp.isfinite(x.lower) & jnp.isfinite(x.upper)
      x = Interval(jnp.where(bounded, x.lower, -self.period), jnp.where(bounded, x.upper, self.period))
      unknown = False if k is None else ~bounded & (k != 0)
    x, restore = self.inside(x, known)
    fn = self._tamed(self._extended(fn), known)
    if k is None and self.trend:
      lower, upper = fn(x.lower), fn(x.upper)
      return restore(Interval(lower, upper) if self.trend > 0 else Interval(upper, lower))
    out = extremes(fn if k is None else lambda v: fn(v) - along(k, v), x, self._points(x, known, k))
    if self.period is not None:  # points far from 0 are computed less exactly; f is smooth there
      steep = 1 if k is None else 1 + jnp.abs(k)
      off = 4 * jnp.finfo(x.dtype).eps * jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper))
      missed = (jnp.minimum(off, x.width) * steep) ** 2
      out = Interval(out.lower - missed, out.upper + missed)
      if k is None and self.stationary:
        values = [fn(jnp.asarray(p, x.dtype)) for p in self.stationary]
        out = Interval(jnp.maximum(out.lower, functools.reduce(jnp.minimum, values)),
                       jnp.minimum(out.upper, functools.reduce(jnp.maximum, values)))
    if unknown is not False:
      out = unbounded(out, unknown)
    return restore(out)

  def bends(self, fn: Function, x: Interval, known: Sequence[Any]) -> list[Any]:
    """Points of a box at which f has the slope of its chord, and its kinks.

    None if f is bent once: its slopes at the ends and in the middle are those between its kink and the ends.
    """
    if self.bent_once:
      return []
    k = lax.stop_gradient(chord(fn, x.lower, x.upper))
    return [jnp.clip(jnp.where(jnp.isnan(p), x.lower, p), x.lower, x.upper) for p in self._points(x, known, k)]

  def _points(self, x: Interval, known: Sequence[Any], k: Any) -> Sequence[Any]:
    """The critical points at slope k, free of gradients where these are 0 anyway."""
    points: Sequence[Any]
    if k is None and self.stationary is not None:
      points = self.stationary
    else:
      k = jnp.zeros_like(x.lower) if k is None else k
      points = self.critical(k if self.critical_is_trained else lax.stop_gradient(k), *known)
    if self.period is not None:
      # f(p + n period) - k (p + n period) is linear in n: greatest and least at the first and last n.
      t = self.period
      points = [q for p in points for q in (p + t * jnp.ceil((x.lower - p) / t), p + t * jnp.floor((x.upper - p) / t))]
    return points if self.critical_is_trained else [lax.stop_gradient(p) for p in points]

  def _extended(self, fn: Function) -> Function:
    """`fn` with its limits at infinite arguments."""
    if self.limits is None:
      return fn
    low, high = self.limits
    return lambda v: jnp.where(jnp.isfinite(v), fn(jnp.where(jnp.isfinite(v), v, 1)), jnp.where(v > 0, high, low))

  def _tamed(self, fn: Function, known: Sequence[Any]) -> Function:
    """`fn` with finite derivatives."""
    ends, steep, point = [p for p in self.domain if np.isfinite(p)], self.steep, _harmless(self.domain, self.pole)
    if not ends and steep is None:
      return fn

    def tamed(v):
      at = functools.reduce(jnp.logical_or, [v == p for p in ends] + ([] if steep is None else [steep(v, *known)]))
      return jnp.where(at, lax.stop_gradient(fn(v)), fn(jnp.where(at, point, v)))
    return tamed

  def _valid(self, x: Interval, known: Sequence[Any]) -> Any:
    """Where f is defined on the whole of a box; plain True if it is defined everywhere."""
    valid: Any = True
    if self.domain != (-np.inf, np.inf):
      valid = (x.lower >= self.domain[0]) & (x.upper <= self.domain[1])
    if self.pole is not None and self.period is not None:
      slack = 4 * jnp.finfo(x.dtype).eps * jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper))
      branches = [jnp.floor((end - self.pole) / self.period) for end in (x.lower - slack, x.upper + slack)]
      valid &= branches[0] == branches[1]
    elif self.pole is not None:
      valid &= (x.lower > self.pole) | (x.upper < self.pole)
    if self.defined is not None:
      valid &= self.defined(x, *known)
    return valid

  def inside(self, x: Interval, known: Sequence[Any]) -> tuple[Interval, Callable[[Interval], Interval]]:
    """The box, moved to a harmless point where f is not defined on it, and what makes that infinite again.

    Both, so that neither a value nor a gradient is NaN.
    """
    valid = self._valid(x, known)
    if valid is True:
      return x, lambda out: out
    point, lower = _harmless(self.domain, self.pole), x.lower
    if self.domain[0] == 0:  # not -0., of which rsqrt is -inf
      lower = jnp.where(lower == 0, lower - lax.stop_gradient(lower), lower)
    moved = Interval(jnp.where(valid, lower, point), jnp.where(valid, x.upper, point))
    return moved, lambda out: unbounded(out, ~valid)


def _harmless(domain: tuple[float, float], pole: float | None) -> float:
  """A point at which a function of a domain, but for a pole, and its derivative are finite."""
  least, greatest = domain
  if np.isfinite(least) and np.isfinite(greatest):
    return (least + greatest) / 2
  return least + 1 if np.isfinite(least) else greatest - 1 if np.isfinite(greatest) else (pole or 0.) + 1


def along(k: Any, v: Any) -> Any:
  """k v, 0 for k = 0 at an infinite v."""
  return k * jnp.where((k == 0) & ~jnp.isfinite(v), 0, v)


def extremes(fn: Function, x: Interval, points: Sequence[Any]) -> Interval:
  """The least and greatest fn(v) over v in [l, u], from the ends and the critical points."""
  values = [fn(v) for v in (x.lower, x.upper, *(jnp.clip(jnp.asarray(p, x.dtype), x.lower, x.upper) for p in points))]
  return Interval(functools.reduce(jnp.minimum, values), functools.reduce(jnp.maximum, values))


def kinks(*at: float, trend: int = 0, roundings: float) -> Elementwise:
  """A piecewise linear function whose slope changes at fixed points."""
  return Elementwise(lambda k, *known: at, trend, bent_once=len(at) == 1, roundings=roundings)


# How far values may be off as they are computed, where a row does not state it in units of roundoff.
MOVES = 'moves'         # it moves the bits of its operands
EXACT = 'exact'         # it returns one of its operands, up to sign; a whole number; or rounds by definition (casts)
SUMS = 'sums'           # affine: a rounding for each term
PRODUCTS = 'products'   # of many factors: a rounding for each
WHOLE = 'whole'         # it has results of integers and booleans alone
OWN = 'own'             # as its `Elementwise` states, or its rule takes care of

# How a primitive is affine in its perturbed operands.
INCREASING = 'increasing'   # in all of them together, with coefficients >= 0: exact on each end separately
SIGNED = 'signed'           # in all of them together
SCALED = 'scaled'           # in one, times or over a known array of its shape
CONTRACTED = 'contracted'   # in one, by sums of products with known weights

# Which planes enclose the result, where it is neither affine nor a function of each element (`rules.relaxations`).
PRODUCT = 'product'     # of two, element by element
QUOTIENT = 'quotient'   # of two, element by element
BILINEAR = 'bilinear'   # sums of products of two
GREATER = 'greater'     # the greater or the smaller of two
GREATEST = 'greatest'   # the greatest or the least of many
CASES = 'cases'         # one of two, by a predicate
IDENTITY = 'identity'   # its operand, whose gradient alone is another


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """All that is known of a primitive, wherever it stands.

  Attributes:
    accuracy: MOVES, EXACT, SUMS, PRODUCTS, WHOLE or OWN; or, of a function of two perturbed operands, its greatest
      relative error in units of roundoff. There is no default: without it the package does not import.
    affine: None, or INCREASING, SIGNED, SCALED, CONTRACTED.
    control: the operands that are predicates, indices, divisors or padding: it is affine only where these are known.
    many: an element of a result is made of many elements of one operand.
    repeats: an element of an operand may enter many elements of a result.
    places: it puts known elements beside perturbed ones, as masks of -inf do.
    selects: each element of a result is one of an operand's, the greatest or least of some.
    keeps_unknown: an end that is unknown (`sets.around`) is handed on as unknown; affine primitives do so by nature.
    undefined_at_infinity: its value at an infinite operand may be NaN: sin(inf), 0 inf.
    monotone: increasing in every operand: exact on each end separately.
    elementwise: its `Elementwise` where one operand is perturbed; or (params, number of that operand) -> that.
    any_operand: `elementwise` is of the one perturbed operand, whichever that is; else of the first.
    image: (equation, operands) -> bounds of its results, where nothing above says what they are.
    relaxation: None, or PRODUCT, QUOTIENT, BILINEAR, GREATER, GREATEST, CASES, IDENTITY: else its linear bounds are the
      ends of its image.
    continuous: it has no jumps, and derivatives (almost everywhere) that are those of its values; affine operations and
      functions of each element are so by nature.
    lipschitz: of a function of one array, how much it lengthens at most in every norm lp; None where it is not known.
  """
  accuracy: str | float | None = None
  affine: str | None = None
  control: slice = dataclasses.field(default_factory=lambda: slice(0, 0))
  many: bool = False
  repeats: bool = False
  places: bool = False
  selects: bool = False
  keeps_unknown: bool = False
  undefined_at_infinity: bool = False
  monotone: bool = False
  elementwise: Elementwise | Callable[[dict[str, Any], int], Elementwise] | None = None
  any_operand: bool = False
  image: Callable[..., Any] | None = None
  relaxation: str | None = None
  continuous: bool = False
  lipschitz: float | None = None
