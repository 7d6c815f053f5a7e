"""Elementwise functions of one perturbed array: their ranges and enclosing lines."""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation, rebind, unsupported
from ibpjax.core.row import Elementwise, kinks
from ibpjax.core.sets import Interval, centre_radius
from ibpjax.core.validation import concrete
from ibpjax.primitives import table
from ibpjax.rules.slopes import Alpha, Lines, with_gradient_of
from ibpjax.xla.materialize import materialize


def row(eqn: Equation, slot: int) -> Elementwise | None:
  """What the table states about an equation whose operand number `slot` alone is perturbed."""
  facts = table.of(eqn)
  found = facts.elementwise
  if slot and not facts.any_operand:
    return None
  return found if found is None or isinstance(found, Elementwise) else found(eqn.params, slot)


def unary(eqn: Equation, operands: Sequence[Any]) -> tuple[Elementwise, Callable[[Any], Any], Interval, list[Any]]:
  """(rule, fn, interval, known): the equation as a function of its one perturbed operand."""
  slots = [i for i, x in enumerate(operands) if isinstance(x, Interval)]
  if table.of(eqn).elementwise is None:
    raise unsupported(eqn, 'has no bound rule. Write it with supported operations, or register the function it '
                           'is part of with @ibpjax.elementwise')
  slot = slots[0]
  rule = row(eqn, slot)
  if len(slots) != 1 or rule is None:
    raise unsupported(eqn, 'is bounded in one perturbed operand (the first, if registered); the others must be known')
  x, known = operands[slot], [x for x in operands if not isinstance(x, Interval)]
  if eqn.primitive in (P.max_p, P.min_p):
    # At ties the gradient follows jax.nn.relu (0), not lax.max (1/2): dead units and padded
    # images sit exactly on ties.
    c = known[0]
    worse = jnp.less_equal if eqn.primitive is P.max_p else jnp.greater_equal
    if concrete(c) and not np.isnan(c).any():
      return rule, lambda v: jnp.where(worse(v, c), c, v), x, known
    return rule, lambda v: jnp.where(worse(v, c) | jnp.isnan(c), c, v), x, known

  def fn(v):
    return rebind(eqn, *[v if i == slot else c for i, c in enumerate(operands)])[0]
  return rule, fn, x, known


def image(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """The exact range of an elementwise function over a box."""
  rule, fn, x, known = unary(eqn, operands)
  return rule.range(fn, x, known)


def enclose(eqn: Equation, operands: Sequence[Any], lines: Lines) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
  """The best lines below and above with the slopes that `lines` chooses; sound for any slopes.

  Returns:
    ((slope, intercept) of the line below, (slope, intercept) of the line above), each array of
    the shape of the perturbed operand.
  """
  rule, fn, x, known = unary(eqn, operands)
  return enclosing(rule, fn, x, known, lines)


def enclosing(rule: Elementwise, fn: Callable, x: Interval, known: Sequence[Any],
              lines: Lines) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
  """`enclose` for a function `fn` of the box `x` that `rule` is the row of."""
  box, _ = rule.inside(x, known)
  return best_lines(x, (fn, box.lower, box.upper, rule.bends(fn, box, known)), lines,
                    lambda k: rule.range(fn, x, known, k))


def best_lines(x: Interval, at: tuple[Any, ...], lines: Lines,
               tilted: Callable[[Any], Interval]) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
  """Of the slopes on offer those whose lines leave the least area, and the intercepts that make these sound.

  Args:
    x: the box.
    at: (fn, l, u, points), what the choice of slopes is made for.
    lines: the choice.
    tilted: k -> the range of f(v) - k v over the box.
  """
  if isinstance(lines, Alpha) and lines.shares is not None:
    exact, beside = ([k for k, in _finite_lists(ks, x)] for ks in lines.slopes(at, tilted))
    (below, low), (above, high) = _supporting(materialize(exact), tilted)
    (_, least), (_, most) = _supporting(beside, tilted)
    return (below, with_gradient_of(least, low)), (above, with_gradient_of(most, high))
  below, above = _least_area(x, lines(*at), tilted)
  if isinstance(lines, Alpha):
    lines.begin((below, above), at, tilted)
  return _supporting(materialize((below, above)), tilted)


def _supporting(slopes: Sequence[Any], tilted: Callable[[Any], Interval]) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
  """Slopes with the intercepts that make them lines below and above: infinite where these are not numbers.

  An intercept that overflows to the wrong side of the function is cut to the greatest number there is.
  """
  below, above = slopes
  low, high = materialize((tilted(below).lower, tilted(above).upper))
  greatest = jnp.finfo(low.dtype).max
  low = jnp.where(jnp.isnan(low), -jnp.inf, jnp.minimum(low, greatest))
  high = jnp.where(jnp.isnan(high), jnp.inf, jnp.maximum(high, -greatest))
  return (below, low), (above, high)


def _least_area(x: Interval, slopes: tuple[Any, Any], tilted: Callable[[Any], Interval]) -> tuple[Any, Any]:
  """Of the slopes below and above those whose lines are best in the middle of the box."""
  middle, offered = centre_radius(x)[0], _finite_lists(slopes, x)
  ends: list[Callable[[Interval], Any]] = [lambda r: r.lower, lambda r: -r.upper]
  chosen = []
  for sign, end, ks in zip((1, -1), ends, offered):
    best = ks[0]
    if len(ks) > 1:
      height = [sign * k * middle + end(tilted(k)) for k in ks]
      top = functools.reduce(jnp.maximum, height)
      for k, h in zip(ks[1:], height[1:]):
        best = jnp.where(h == top, k, best)
    chosen.append(best)
  return chosen[0], chosen[1]


def _finite_lists(slopes: tuple[Any, Any], x: Interval) -> list[list[Any]]:
  """Slopes below and above as lists, 0 on unbounded boxes and in the place of what is not a number."""
  bounded = jnp.isfinite(x.lower) & jnp.isfinite(x.upper)
  return [[jnp.where(bounded & jnp.isfinite(k), k, 0) for k in (ks if isinstance(ks, list) else [ks])] for ks in slopes]


# Rows that relaxations of other equations are made of.
relu = kinks(0., trend=1, roundings=0)
square = Elementwise(lambda k: (k / 2,), stationary=(0.,), roundings=16)
reciprocal = Elementwise(lambda k: (jnp.abs(k) ** -.5, -jnp.abs(k) ** -.5), pole=0., roundings=16)
