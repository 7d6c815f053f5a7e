"""Interval rules for what is neither affine nor elementwise in one operand.

Products, quotients and powers of two perturbed values, maxima, three-valued comparisons and
selection, casts; and the composites (`composites`).
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

from ibpjax.core.composite import Composite
from ibpjax.core.program import Equation, rebind, unsupported
from ibpjax.core.sets import Interval, as_interval, centre_radius, hull, is_set, unbounded
from ibpjax.primitives import integers, reductions
from ibpjax.primitives.affine import CONTROL, INCREASING, around
from ibpjax.primitives.reductions import corners, ends

Rule = Callable[[Equation, Sequence[Any]], Interval | list[Interval] | None]

# Increasing in every operand: exact on each end separately.
MONOTONE = frozenset({
    P.max_p, P.min_p, P.clamp_p, P.reduce_max_p, P.reduce_min_p, P.reduce_window_max_p, P.reduce_window_min_p,
    P.cummax_p, P.cummin_p, P.floor_p, P.ceil_p, P.round_p, P.sign_p, P.pad_p,
    P.and_p, P.or_p, P.reduce_and_p, P.reduce_or_p, P.reduce_precision_p, P.scatter_max_p, P.scatter_min_p,
})


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


_COMPARISONS: dict[Any, tuple[Callable[[Interval, Interval], Interval], bool]] = {
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
  rule, reflexive = _COMPARISONS[eqn.primitive]
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


TABLE: dict[Any, Rule] = {
    P.mul_p: product,
    P.div_p: quotient,
    P.pow_p: power,
    P.atan2_p: angle,
    P.reduce_prod_p: reductions.reduce_prod,
    P.cumprod_p: reductions.cumprod,
    P.cumlogsumexp_p: ends,
    P.sort_p: reductions.sort,
    P.top_k_p: reductions.top_k,
    P.scatter_p: reductions.scatter,
    lax.scatter_sub_p: reductions.scatter_sub,
    P.scatter_mul_p: reductions.scatter_mul,
    P.dot_general_p: contraction,
    P.conv_general_dilated_p: contraction,
    P.select_n_p: selection,
    P.convert_element_type_p: cast,
    P.stop_gradient_p: stop_gradient,
    P.is_finite_p: finite,
    P.not_p: lambda eqn, operands: _not(operands[0]),
    P.xor_p: lambda eqn, operands: _not(_equal(*map(as_interval, operands))),
    **dict.fromkeys(_COMPARISONS, comparison),
}


_LOGIC = frozenset({P.and_p, P.or_p, P.xor_p, P.not_p})
_SCATTERS = frozenset({P.scatter_p, P.scatter_add_p, lax.scatter_sub_p, P.scatter_mul_p, P.scatter_max_p,
                       P.scatter_min_p})
_COMPLEX = frozenset({P.complex_p, P.real_p, P.imag_p, P.conj_p, P.fft_p})


def _refuse(eqn: Equation, perturbed: Sequence[bool]) -> None:
  """Raises for what has no bounds for a reason that no rule could change."""
  if eqn.key in _LOGIC and eqn.inputs[0].dtype != jnp.bool_:
    raise unsupported(eqn, 'combines the bits of perturbed integers; only booleans are bounded')
  if eqn.key in (P.argmax_p, P.argmin_p):
    raise unsupported(eqn, 'is a position that depends on perturbed values, and jumps with them. Bound the values '
                           'themselves (max, sort, top_k), or margins between them (ibpjax.margins)')
  if eqn.key in _COMPLEX or any(jnp.issubdtype(v.dtype, jnp.complexfloating) for v in (*eqn.inputs, *eqn.outputs)):
    raise unsupported(eqn, 'uses complex numbers, which have no order and so no intervals. Compute the real and the '
                           'imaginary part as two real arrays')
  moved = eqn.key in CONTROL and eqn.key not in (P.select_n_p, P.div_p, P.pad_p) and any(perturbed[CONTROL[eqn.key]])
  if moved or (eqn.key in _SCATTERS and perturbed[1]):
    raise unsupported(eqn, 'is indexed by positions that depend on perturbed values, such as those of a sort, top_k or '
                           'argmax. Use the sorted values themselves, or jnp.where with comparisons')


def image(eqn: Equation, operands: Sequence[Any]) -> list[Interval] | None:
  """Bounds of an equation by this file's rules, or None if it has none for these operands."""
  if isinstance(eqn.key, Composite):
    return [eqn.key.image(operands, 0.)]
  perturbed = [is_set(x) for x in operands]
  _refuse(eqn, perturbed)
  if any(is_set(x) and jnp.issubdtype(x.dtype, jnp.integer) for x in operands) and eqn.key not in (
      P.convert_element_type_p, P.select_n_p, *_COMPARISONS):
    return integers.image(eqn, operands)
  structural = (eqn.key in INCREASING and eqn.key not in (P.select_n_p, P.convert_element_type_p)
                and not jnp.issubdtype(eqn.outputs[0].dtype, jnp.floating))
  if structural or (eqn.key in MONOTONE and (eqn.key not in (P.max_p, P.min_p) or all(perturbed))):
    return ends(eqn, operands)
  if eqn.key is P.select_n_p and not perturbed[0]:  # of booleans, by a known predicate
    return ends(eqn, operands)
  if eqn.key is P.pow_p and not all(perturbed):  # a row of the table of elementwise functions
    return None
  out = None if (rule := TABLE.get(eqn.key)) is None else rule(eqn, operands)
  return [out] if isinstance(out, Interval) else out


@jax.custom_jvp
def _next(x: Any, towards: Any) -> Any:
  """The next float, with the derivative of the identity."""
  return jnp.nextafter(x, towards)


@_next.defjvp
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
  return _next(*primals), tangents[0]
