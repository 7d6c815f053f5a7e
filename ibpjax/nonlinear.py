"""Interval rules for what is neither affine nor elementwise in one operand.

Products and quotients of two perturbed values, maxima, three-valued comparisons and selection.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.affine import INCREASING, centre_radius
from ibpjax.interval import Interval, as_interval, hull, is_set
from ibpjax.program import Equation, rebind, unsupported

Rule = Callable[[Equation, Sequence[Any]], Interval]

# Increasing in every operand: exact on each end separately.
MONOTONE = frozenset({
    P.max_p, P.min_p, P.clamp_p, P.reduce_max_p, P.reduce_min_p, P.reduce_window_max_p, P.reduce_window_min_p,
    P.cummax_p, P.cummin_p, P.floor_p, P.ceil_p, P.round_p, P.sign_p, P.pad_p,
    P.and_p, P.or_p, P.reduce_and_p, P.reduce_or_p, P.reduce_precision_p,
})


def ends(eqn: Equation, operands: Sequence[Any]) -> list[Interval]:
  """The rule of an increasing operation: run it on all lower and on all upper ends."""
  lower, upper = ([getattr(x, end) if is_set(x) else x for x in operands] for end in ('lower', 'upper'))
  return [Interval(l, u) for l, u in zip(rebind(eqn, *lower), rebind(eqn, *upper), strict=True)]


def _same(eqn: Equation) -> bool:
  """Whether both operands are one value: x * x, x != x."""
  return eqn.inputs[0].id == eqn.inputs[1].id


# ------------------------------------------------------------------------- products, quotients
def _square(x: Interval) -> Interval:
  low, high = x.lower * x.lower, x.upper * x.upper
  crosses = (x.lower < 0) & (x.upper > 0)
  return Interval(jnp.where(crosses, 0, jnp.minimum(low, high)), jnp.maximum(low, high))


def _times(a: Any, b: Any) -> Any:
  """a * b where 0 times an infinite end is 0, as it is for every finite value."""
  empty = ((a == 0) & ~jnp.isfinite(b)) | ((b == 0) & ~jnp.isfinite(a))
  return jnp.where(empty, 0, a) * jnp.where(empty, 0, b)


def product(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """x * y for two boxes: the four corners; x * x: a square."""
  x, y = map(as_interval, operands)
  if _same(eqn):
    return _square(x)
  corners = [_times(a, b) for a in (x.lower, x.upper) for b in (y.lower, y.upper)]
  low, high = corners[0], corners[0]
  for c in corners[1:]:
    low, high = jnp.minimum(low, c), jnp.maximum(high, c)
  return Interval(low, high)


def quotient(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """x / y: the four corners if 0 is outside of y, the real line otherwise; x / x = 1."""
  x, y = map(as_interval, operands)
  away = (y.lower > 0) | (y.upper < 0)
  if _same(eqn):
    one = jnp.ones_like(x.lower)
    return Interval(jnp.where(away, one, -jnp.inf), jnp.where(away, one, jnp.inf))
  low_y, high_y = jnp.where(away, y.lower, 1), jnp.where(away, y.upper, 1)
  corners = [a / b for a in (x.lower, x.upper) for b in (low_y, high_y)]
  low, high = corners[0], corners[0]
  for c in corners[1:]:
    low, high = jnp.minimum(low, c), jnp.maximum(high, c)
  bad = ~away | jnp.isnan(low) | jnp.isnan(high)  # infinity over infinity
  return Interval(jnp.where(bad, -jnp.inf, low), jnp.where(bad, jnp.inf, high))


def contraction(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """A dot product or convolution of two boxes, by centre and radius.

  |(c + d)(e + f) - c e| <= |c| |f| + |d| (|e| + |f|). At most 1.5 times as wide as the exact
  range (Rump, Fast and parallel interval arithmetic, BIT 39, 1999), in three products.
  """
  (c, d), (e, f) = (centre_radius(as_interval(x)) for x in operands)
  [centre] = rebind(eqn, c, e)
  radius = rebind(eqn, jnp.abs(c), f)[0] + rebind(eqn, d, jnp.abs(e) + f)[0]
  radius = jnp.where(jnp.isnan(radius), jnp.inf, radius)
  return Interval(centre - radius, centre + radius)


# ---------------------------------------------------------------- three-valued comparisons, where
def _greater(a: Interval, b: Interval) -> Interval:
  return Interval(a.lower > b.upper, ~(a.upper <= b.lower))  # negated: NaN means "possibly"


def _not(x: Interval) -> Interval:
  return Interval(~x.upper, ~x.lower)


def _equal(a: Interval, b: Interval) -> Interval:
  always = (a.lower == a.upper) & (b.lower == b.upper) & (a.lower == b.lower)
  return Interval(always, ~((a.lower > b.upper) | (a.upper < b.lower)))


_COMPARISONS: dict[Any, tuple[Callable[[Interval, Interval], Interval], bool]] = {
    # primitive: (rule, its value when both sides are one value)
    P.gt_p: (_greater, False),
    P.lt_p: (lambda a, b: _greater(b, a), False),
    P.ge_p: (lambda a, b: _not(_greater(b, a)), True),
    P.le_p: (lambda a, b: _not(_greater(a, b)), True),
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
  """A change of dtype. Rounding to nearest is monotone: the ends of the box bound the rounded values."""
  source, target = eqn.inputs[0].dtype, eqn.outputs[0].dtype
  if source == jnp.bool_ or (jnp.issubdtype(target, jnp.floating) and jnp.issubdtype(source, jnp.floating)):
    return ends(eqn, operands)[0]
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


def image(eqn: Equation, operands: Sequence[Any]) -> list[Interval] | None:
  """Bounds of an equation by this file's rules, or None if it has none for these operands."""
  perturbed = [is_set(x) for x in operands]
  if eqn.key in _LOGIC and eqn.inputs[0].dtype != jnp.bool_:
    raise unsupported(eqn, 'combines the bits of perturbed integers; only booleans are bounded')
  structural = eqn.key in INCREASING and eqn.outputs[0].dtype == jnp.bool_ and eqn.key is not P.select_n_p
  if structural or (eqn.key in MONOTONE and (eqn.key not in (P.max_p, P.min_p) or all(perturbed))):
    return ends(eqn, operands)
  if eqn.key is P.select_n_p and not perturbed[0]:  # of booleans, by a known predicate
    return ends(eqn, operands)
  rule = TABLE.get(eqn.key)
  return None if rule is None else [rule(eqn, operands)]

