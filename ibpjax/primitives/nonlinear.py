"""Primitives that are neither affine in all operands nor functions of each element: rules on boxes, and rows.

Products, quotients and powers of two perturbed values, maxima, three-valued comparisons and
selection, casts.
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
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation, rebind, unsupported
from ibpjax.core.row import (
  BILINEAR,
  CASES,
  CONTRACTED,
  EXACT,
  GREATEST,
  IDENTITY,
  INCREASING,
  MOVES,
  OWN,
  PRODUCT,
  PRODUCTS,
  QUOTIENT,
  SCALED,
  SUMS,
  WHOLE,
  Row,
)
from ibpjax.core.sets import Interval, around, as_interval, centre_radius, hull, is_set, unbounded
from ibpjax.primitives import integers, reductions
from ibpjax.primitives.reductions import corners, ends


def _same(eqn: Equation) -> bool:
  """Whether both operands are one value: x * x, x != x."""
  return eqn.inputs[0].id == eqn.inputs[1].id


# ------------------------------------------------------------------------- products, quotients
def _square(x: Interval) -> Interval:
  low, high = x.lower * x.lower, x.upper * x.upper
  crosses = (x.lower < 0) & (x.upper > 0)
  return Interval(jnp.where(crosses, 0, jnp.minimum(low, high)), jnp.maximum(low, high))


def product(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """x * y for two boxes: the four corners; x * x: a square."""
  x, y = map(as_interval, operands)
  return _square(x) if _same(eqn) else corners(x, y)


def _hull_of(values: Sequence[Any], known: Any) -> Interval:
  """The hull of values where that is known to bound, and of what is a number; the real line elsewhere."""
  low, high = functools.reduce(jnp.minimum, values), functools.reduce(jnp.maximum, values)
  known = known & ~jnp.isnan(low) & ~jnp.isnan(high)
  return unbounded(Interval(low, high), ~known)


def quotient(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """x / y: the four corners if 0 is outside of y, the real line otherwise; x / x = 1."""
  x, y = map(as_interval, operands)
  away = (y.lower > 0) | (y.upper < 0)
  if _same(eqn):
    return _hull_of([jnp.ones_like(x.lower)], away)
  low, high = jnp.where(away, y.lower, 1), jnp.where(away, y.upper, 1)
  return _hull_of([a / b for a in (x.lower, x.upper) for b in (low, high)], away)


def power(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """x ** y of two perturbed values: monotone in each for x > 0, hence the four corners; else the real line."""
  x, y = map(as_interval, operands)
  real = (x.lower > 0) | ((x.lower == 0) & (y.lower > 0))
  low, high = jnp.where(real, x.lower, 1), jnp.where(real, x.upper, 1)
  return _hull_of([a ** b for a in (low, high) for b in (y.lower, y.upper)], real)


def angle(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """atan2(y, x): the four corners of a box that keeps clear of the origin and of the cut x <= 0, y = 0.

  The angle is constant along rays, so over a convex set without the origin its extremes are at
  corners. A box that touches the cut may hold any angle.
  """
  y, x = map(as_interval, operands)
  clear = (y.lower > 0) | (y.upper < 0) | (x.lower > 0)
  low, high = jnp.where(clear, x.lower, 1), jnp.where(clear, x.upper, 1)
  found = _hull_of([jnp.arctan2(a, b) for a in (y.lower, y.upper) for b in (low, high)], clear)
  out = Interval(jnp.where(clear, found.lower, -np.pi), jnp.where(clear, found.upper, np.pi))
  return unbounded(out, jnp.isnan(y.lower) | jnp.isnan(x.lower))  # what is known may be NaN


def contraction(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """A dot product or convolution of two boxes, by centre and radius.

  |(c + d)(e + f) - c e| <= |c| |f| + |d| (|e| + |f|). At most 1.5 times as wide as the exact
  range (Rump, Fast and parallel interval arithmetic, BIT 39, 1999), in three products.
  """
  (c, d), (e, f) = (centre_radius(as_interval(x)) for x in operands)
  [centre] = rebind(eqn, c, e)
  radius = rebind(eqn, jnp.abs(c), f)[0] + rebind(eqn, d, jnp.abs(e) + f)[0]
  return around(centre, radius)


# ---------------------------------------------------------------- three-valued comparisons, where
def _greater(a: Interval, b: Interval) -> Interval:
  return Interval(a.lower > b.upper, ~(a.upper <= b.lower))  # negated: NaN means "possibly"


def _at_most(a: Interval, b: Interval) -> Interval:
  """Not `_greater`: also false where one is NaN, for which the whole line stands."""
  certain = (a.upper <= b.lower) & (a.upper < jnp.inf) & (b.lower > -jnp.inf)
  return Interval(certain, ~(a.lower > b.upper))


def _not(x: Interval) -> Interval:
  return Interval(~x.upper, ~x.lower)


def _equal(a: Interval, b: Interval) -> Interval:
  always = (a.lower == a.upper) & (b.lower == b.upper) & (a.lower == b.lower)
  return Interval(always, ~((a.lower > b.upper) | (a.upper < b.lower)))


COMPARISONS: dict[Any, tuple[Callable[[Interval, Interval], Interval], bool]] = {
    # primitive: (rule, its value when both sides are one value)
    P.gt_p: (_greater, False),
    P.lt_p: (lambda a, b: _greater(b, a), False),
    P.ge_p: (lambda a, b: _at_most(b, a), True),
    P.le_p: (_at_most, True),
    P.eq_p: (_equal, True),
    P.ne_p: (lambda a, b: _not(_equal(a, b)), False),
}


def comparison(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """x < y and its kin: an interval of booleans, (always, possibly)."""
  rule, reflexive = COMPARISONS[eqn.primitive]
  if _same(eqn):  # ne(x, x) is how code asks for NaN, which only values that overflow can be
    x = as_interval(operands[0])
    certain = jnp.isfinite(x.lower) & jnp.isfinite(x.upper)
    return Interval(certain & reflexive, ~certain | reflexive)
  return rule(*map(as_interval, operands))


def selection(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """select_n with a perturbed predicate: a case where it is certain, the hull of both where not."""
  which, *cases = operands
  if len(cases) != 2 or not is_set(which):
    raise unsupported(eqn, 'selects by a perturbed number; only a perturbed boolean is bounded')
  no, yes = map(as_interval, cases)
  both = hull(no, yes)
  pick = lambda a, b, c: jnp.where(which.lower, a, jnp.where(which.upper, b, c))
  return Interval(pick(yes.lower, both.lower, no.lower), pick(yes.upper, both.upper, no.upper))


# ------------------------------------------------------------------------------------ the rest
def cast(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """A change of dtype: the ends of the box, to a lower precision rounded outward.

  Rounding to nearest is monotone, so that the rounded ends would do; but XLA may leave out a
  rounding that is followed by a cast back (`xla_allow_excess_precision`), in the function or here.
  """
  source, target = eqn.inputs[0].dtype, eqn.outputs[0].dtype
  if target == jnp.bool_ and source != jnp.bool_:
    return _not(_equal(operands[0], as_interval(jnp.zeros_like(operands[0].lower))))
  if jnp.issubdtype(source, jnp.integer) and jnp.issubdtype(target, jnp.integer):
    return integers.cast(operands[0], ends(eqn, operands)[0])
  if not jnp.issubdtype(source, jnp.floating) or jnp.issubdtype(target, jnp.floating):
    out = ends(eqn, operands)[0]
    if jnp.issubdtype(source, jnp.floating) and jnp.finfo(target).nmant < jnp.finfo(source).nmant:
      infinity = jnp.asarray(jnp.inf, target)
      return Interval(_next(out.lower, -infinity), _next(out.upper, infinity))
    return out
  raise unsupported(eqn, f'turns perturbed {source} values into {target}: integers that depend on the input have no '
                         'bounds. Compute with floats and comparisons, or keep this outside of the bounded function')


def stop_gradient(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """The identity whose ends carry no gradient. It is not affine: its tangent says 0, its value varies."""
  x, = operands
  return Interval(lax.stop_gradient(x.lower), lax.stop_gradient(x.upper))


def finite(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """is_finite: certain where both ends are finite."""
  x, = operands
  always = jnp.isfinite(x.lower) & jnp.isfinite(x.upper)
  return Interval(always, jnp.ones_like(always))


@jax.custom_jvp
def _next(x: Any, towards: Any) -> Any:
  """The next float, with the derivative of the identity."""
  return jnp.nextafter(x, towards)


@_next.defjvp
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
  return _next(*primals), tangents[0]


def logic_not(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """Three-valued logic."""
  return _not(operands[0])


def exclusive_or(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """Three-valued logic."""
  return _not(_equal(*map(as_interval, operands)))


_RUNNING = Row(accuracy=EXACT, monotone=True, many=True, selects=True)   # the greatest or least so far
_GREATEST = dataclasses.replace(_RUNNING, relaxation=GREATEST)
_REDUCED = dataclasses.replace(_GREATEST, continuous=True)
_CONTRACTION = Row(affine=CONTRACTED, accuracy=SUMS, image=contraction, relaxation=BILINEAR, continuous=True)
_JUMPS = Row(accuracy=EXACT, monotone=True)
_LOGIC = Row(accuracy=WHOLE, monotone=True)

ROWS: dict[Any, Row] = {
    # Affine in one operand where the others are known.
    P.mul_p: Row(affine=SCALED, accuracy=SUMS, image=product, undefined_at_infinity=True, relaxation=PRODUCT,
                 continuous=True),
    P.div_p: Row(affine=SCALED, accuracy=SUMS, control=slice(1, None), image=quotient, undefined_at_infinity=True,
                 relaxation=QUOTIENT, continuous=True),
    P.dot_general_p: _CONTRACTION,
    P.conv_general_dilated_p: _CONTRACTION,
    P.select_n_p: Row(affine=INCREASING, accuracy=EXACT, control=slice(0, 1), places=True, image=selection,
                      relaxation=CASES),
    P.convert_element_type_p: Row(affine=INCREASING, accuracy=EXACT, image=cast),
    P.stop_gradient_p: Row(accuracy=MOVES, image=stop_gradient, relaxation=IDENTITY, continuous=True, lipschitz=1.),
    P.atan2_p: Row(accuracy=16., image=angle),
    # Of many elements.
    P.reduce_max_p: _REDUCED,
    P.reduce_min_p: _REDUCED,
    P.reduce_window_max_p: _GREATEST,
    P.reduce_window_min_p: _GREATEST,
    P.cummax_p: _RUNNING,
    P.cummin_p: _RUNNING,
    P.sort_p: Row(accuracy=EXACT, many=True, selects=True, image=reductions.sort),
    P.top_k_p: Row(accuracy=EXACT, image=reductions.top_k),
    P.reduce_prod_p: Row(accuracy=PRODUCTS, many=True, undefined_at_infinity=True, image=reductions.reduce_prod,
                         continuous=True),
    P.cumprod_p: Row(accuracy=PRODUCTS, many=True, undefined_at_infinity=True, image=reductions.cumprod),
    P.cumlogsumexp_p: Row(accuracy=OWN, many=True, image=ends),
    P.scatter_p: Row(accuracy=EXACT, places=True, image=reductions.scatter),
    lax.scatter_sub_p: Row(accuracy=SUMS, many=True, image=reductions.scatter_sub),
    P.scatter_mul_p: Row(accuracy=PRODUCTS, many=True, undefined_at_infinity=True, image=reductions.scatter_mul),
    P.scatter_max_p: Row(accuracy=EXACT, monotone=True, many=True),
    P.scatter_min_p: Row(accuracy=EXACT, monotone=True, many=True),
    # Jumps.
    P.clamp_p: Row(accuracy=EXACT, monotone=True, continuous=True, lipschitz=1.),
    P.floor_p: _JUMPS,
    P.ceil_p: _JUMPS,
    P.round_p: _JUMPS,
    P.sign_p: _JUMPS,
    P.reduce_precision_p: _JUMPS,
    # Of booleans.
    **dict.fromkeys(COMPARISONS, Row(accuracy=WHOLE, image=comparison)),
    P.and_p: _LOGIC,
    P.or_p: _LOGIC,
    P.reduce_and_p: _LOGIC,
    P.reduce_or_p: _LOGIC,
    P.not_p: Row(accuracy=WHOLE, image=logic_not),
    P.xor_p: Row(accuracy=WHOLE, image=exclusive_or),
    P.is_finite_p: Row(accuracy=WHOLE, image=finite),
}
