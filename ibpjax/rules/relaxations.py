"""Relaxations: which planes enclose the result of each nonlinear equation over boxes of its operands.

Any slopes are sound: intercepts are computed afterwards, from where the function lies. An equation
without planes of its own has those of slope 0, the ends of its range: jumps, sorts, products of
many factors, loops, changes of precision (rows would be rounded to the lower one).
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

from ibpjax.composites.univariate import Bounds, Univariate
from ibpjax.core.composite import Composite
from ibpjax.core.products import times
from ibpjax.core.program import Equation, evaluate, rebind
from ibpjax.core.row import BILINEAR, CASES, GREATER, GREATEST, IDENTITY, PRODUCT, QUOTIENT
from ibpjax.core.sets import Interval, as_interval, centre_radius, is_set
from ibpjax.primitives import table
from ibpjax.rules.elementwise import best_lines, enclose, enclosing, reciprocal, relu, row, square
from ibpjax.rules.planes import LinearRelaxation, Maps, Slopes
from ibpjax.rules.slopes import Lines
from ibpjax.xla.materialize import materialize


def planes(eqn: Equation, operands: Sequence[Any], lines: Lines, bounds: Bounds,
           u: float) -> LinearRelaxation | None:
  """Planes of an equation over boxes, or None: those of slope 0.

  Args:
    eqn: an equation that is not affine.
    operands: its operands, Intervals where perturbed.
    lines: the choice of slopes of elementwise functions.
    bounds: computes the bounds of a program by interval arithmetic.
    u: the unit roundoff that functions of one value allow for, 0 for planes in exact arithmetic.
  """
  if len(eqn.outputs) != 1 or not jnp.issubdtype(eqn.outputs[0].dtype, jnp.floating) or eqn.bodies:
    return None
  if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in operands if is_set(x)) and eqn.key is not P.select_n_p:
    return None
  if isinstance(eqn.key, Composite):
    return _linearised(eqn.key, operands)
  if isinstance(eqn.key, Univariate):
    return _of_one_value(eqn.key, operands, lines, bounds, u)
  kind = table.of(eqn).relaxation
  if kind is not None and (found := RULES[kind](eqn, operands, lines)) is not None:
    return found
  slots = [i for i, x in enumerate(operands) if is_set(x)]
  if len(slots) == 1 and row(eqn, slots[0]) is not None:
    return _lines(*enclose(eqn, operands, lines))
  return None


def _lines(below: tuple[Any, Any], above: tuple[Any, Any]) -> Slopes:
  """Two lines, each (slope, intercept)."""
  return Slopes(below[1], above[1], (below[0],), (above[0],))


def _of_one_value(key: Univariate, operands: Sequence[Any], lines: Lines, bounds: Bounds, u: float) -> Slopes:
  """Lines around a function of one value."""
  x, *known = operands
  def fn(v):
    return evaluate(key.body, [v, *known])[0]
  return _lines(*best_lines(x, (fn, x.lower, x.upper, ()), lines, key.tilted(operands, bounds, u)))


def _linearised(key: Composite, operands: Sequence[Any]) -> Maps | None:
  """The tangent in the middle and what is left of the value, element by element where that is less than its range."""
  found = key.linearised(operands)
  if found is None:
    return None
  push, left = found
  box = key.image(operands, 0.)
  better = materialize(left.width < box.width)
  def linear(*xs):
    return jnp.where(better, push(*xs), 0)
  zeros = tuple(jnp.zeros_like(x.lower) for x in operands if is_set(x))
  low, high = (jnp.where(better, getattr(left, end), getattr(box, end)) for end in ('lower', 'upper'))
  return Maps(low, high, linear, linear, zeros)


# ------------------------------------------------------------------------- products, quotients
def _product(eqn: Equation, operands: Sequence[Any], lines: Lines) -> Slopes:
  """x y: a McCormick plane touches the surface along two edges of the box. The one with the better extreme is taken.

  (x - a)(y - b) has one sign over the box for each corner (a, b), so that b x + a y - a b lies
  below the product or above it. One of the two planes on each side lies in the range of the box.
  Source: McCormick, Mathematical Programming 10, 1976.
  """
  if eqn.inputs[0].id == eqn.inputs[1].id:
    x = operands[0]
    below, above = enclosing(square, lambda v: v * v, x, (), lines)
    zero = jnp.zeros_like(x.lower)
    return Slopes(below[1], above[1], (below[0], zero), (above[0], zero))
  x, y = operands
  corners = [[(x.lower, y.lower), (x.upper, y.upper)], [(x.lower, y.upper), (x.upper, y.lower)]]

  def extreme(a, b, sign):  # the least of sign * plane over the box
    ends = [jnp.minimum(sign * b * x.lower, sign * b * x.upper), jnp.minimum(sign * a * y.lower, sign * a * y.upper)]
    return ends[0] + ends[1] - sign * a * b

  def chosen(pair, sign):
    (a, b), (c, d) = pair
    one, other = extreme(a, b, sign), extreme(c, d, sign)
    nearly = 64 * jnp.finfo(one.dtype).eps * (jnp.abs(one) + jnp.abs(other))  # ties are frequent: not by rounding
    first = one >= other - nearly
    return jnp.where(first, a, c), jnp.where(first, b, d)
  (a, b), (c, d) = materialize(tuple(_finite(p) for pair, sign in zip(corners, (1, -1)) for p in [chosen(pair, sign)]))

  def off(a, b):  # x y - b x - a y at the corners, where it has its extremes
    return [times(u, v) - times(b, u) - times(a, v) for u in (x.lower, x.upper) for v in (y.lower, y.upper)]
  range_ = Interval(functools.reduce(jnp.minimum, off(a, b)), functools.reduce(jnp.maximum, off(c, d)))
  return Slopes(range_.lower, range_.upper, (b, a), (d, c))


def _finite(corner: tuple[Any, Any]) -> tuple[Any, Any]:
  usable = jnp.isfinite(corner[0]) & jnp.isfinite(corner[1])
  a, b = (jnp.where(usable, c, 0) for c in corner)
  return a, b


def _quotient(eqn: Equation, operands: Sequence[Any], lines: Lines) -> Slopes | None:
  """x / y as the product of x and 1 / y, around the centres a of x and w of 1 / y.

  x / y = w x + a / y - a w + (x - a)(1 / y - w), the last term within the product of the radii,
  and a / y between the lines of a reciprocal.
  """
  if eqn.inputs[0].id == eqn.inputs[1].id:
    return None
  x, y = map(as_interval, operands)
  low, high = enclosing(reciprocal, lambda v: 1 / v, y, (), lines)
  away = (y.lower > 0) | (y.upper < 0)
  inverse = Interval(jnp.where(away, 1 / jnp.where(away, y.upper, 1), 1),
                     jnp.where(away, 1 / jnp.where(away, y.lower, 1), 1))
  (a, r), (w, s) = centre_radius(x), centre_radius(inverse)
  usable = materialize(away & jnp.isfinite(r) & jnp.isfinite(s))
  rising = a >= 0
  keep = functools.partial(jnp.where, usable)
  below = keep(a * jnp.where(rising, low[0], high[0]), 0)
  above = keep(a * jnp.where(rising, high[0], low[0]), 0)
  left = keep(times(a, jnp.where(rising, low[1], high[1])) - a * w - r * s, -jnp.inf)
  right = keep(times(a, jnp.where(rising, high[1], low[1])) - a * w + r * s, jnp.inf)
  if not is_set(operands[0]):
    return Slopes(left + w * operands[0], right + w * operands[0], (below,), (above,))
  w = keep(w, 0)
  return Slopes(left, right, (w, below), (w, above))


def _contraction(eqn: Equation, operands: Sequence[Any], lines: Lines) -> Maps | None:
  """A dot product or convolution of two boxes: linear around the centres, the rest within the product of the radii."""
  (a, r), (b, s) = map(centre_radius, operands)
  def linear(x, y):
    return rebind(eqn, x, b)[0] + rebind(eqn, a, y)[0]
  centre, radius = rebind(eqn, a, b)[0], rebind(eqn, r, s)[0]
  radius = jnp.where(jnp.isnan(radius), jnp.inf, radius)
  return Maps(-centre - radius, radius - centre, linear, linear, (a, b))


# ------------------------------------------------------------------------------------- maxima
def _pair(x: Interval, y: Interval, lines: Lines) -> tuple[Any, Any, Any]:
  """max(x, y) between s x + (1 - s) y and t x + (1 - t) y + c: y + relu(x - y)."""
  apart = Interval(x.lower - y.upper, x.upper - y.lower)
  _, above = enclosing(relu, jax.nn.relu, apart, (), lines)
  greater = centre_radius(apart)[0] >= 0
  s = materialize(jnp.where(apart.lower >= 0, True, jnp.where(apart.upper <= 0, False, greater)))
  return s.astype(x.dtype), *above


def _from_within(x: Interval, y: Interval, lines: Lines) -> tuple[Any, Any]:
  """max(x, y) below t x + (1 - t) y + c with t in [0, 1]: so that what lies above y may be put in its place."""
  _, t, c = _pair(x, y, lines)
  inside = jnp.clip(t, 0, 1)
  apart = Interval(x.lower - y.upper, x.upper - y.lower)
  moved = relu.range(jax.nn.relu, apart, (), inside).upper
  return inside, jnp.where(inside == t, c, moved)


def _maximum(eqn: Equation, operands: Sequence[Any], lines: Lines) -> Slopes | None:
  """max(x, y) = y + relu(x - y), min(x, y) = -max(-x, -y)."""
  if not all(map(is_set, operands)):
    return None
  x, y = operands
  if eqn.key is P.min_p:
    x, y = Interval(-x.upper, -x.lower), Interval(-y.upper, -y.lower)
  s, t, c = _pair(x, y, lines)
  zero = jnp.zeros_like(c)
  if eqn.key is P.max_p:
    return Slopes(zero, c, (s, 1 - s), (t, 1 - t))
  return Slopes(-c, zero, (t, 1 - t), (s, 1 - s))


def _greatest(eqn: Equation, operands: Sequence[Any], lines: Lines) -> Maps | None:
  """The greatest of a group: above, by taking in one element after the other; below, the one with the best lower end.

  max(m, x) lies below t x + (1 - t) m + c, m being the greatest so far; so the greatest lies below
  an average of all elements, plus a constant.
  """
  x, = operands
  sign = -1 if eqn.key in (P.reduce_min_p, P.reduce_window_min_p) else 1
  parts, join = _members(eqn, x.shape)
  box = x if sign > 0 else Interval(-x.upper, -x.lower)
  lower, upper = parts(box.lower, -jnp.inf), parts(box.upper, -jnp.inf)
  weights, constant = [jnp.ones_like(lower[0])], jnp.zeros_like(lower[0])
  reached = Interval(lower[0], upper[0])
  for low, high in zip(lower[1:], upper[1:]):
    absent = high == -jnp.inf  # padding
    own = Interval(jnp.where(absent, 0, low), jnp.where(absent, 0, high))
    empty = reached.upper == -jnp.inf
    so_far = Interval(jnp.where(empty, 0, reached.lower), jnp.where(empty, 0, reached.upper))
    t, c = _from_within(own, so_far, lines)
    t = jnp.where(absent, 0, jnp.where(empty, 1, t))  # which elements are padding does not depend on rounding
    c = jnp.where(absent | empty, 0, c)
    weights = [w * (1 - t) for w in weights] + [t]
    constant = times(1 - t, constant) + c
    reached = Interval(jnp.maximum(reached.lower, low), jnp.maximum(reached.upper, high))
  best = jnp.argmax(jnp.stack(lower), 0)
  flat = materialize([lax.stop_gradient((best == i).astype(x.dtype)) for i in range(len(lower))])
  known = jnp.where(reached.lower > -jnp.inf, 0, -jnp.inf)
  below, above = join(flat), join(weights)
  if sign > 0:
    return Maps(known, constant, below, above, (x.lower,))
  return Maps(-constant, -known, above, below, (x.lower,))


def _members(eqn: Equation, shape: tuple[int, ...]) -> tuple[Callable, Callable]:
  """How the elements that each output is the greatest of are taken out of the operand, and averaged."""
  if eqn.key in (P.reduce_max_p, P.reduce_min_p):
    axes = tuple(map(int, eqn.params['axes']))
    rest = [i for i in range(len(shape)) if i not in axes]
    out = tuple(shape[i] for i in rest)

    def parts(a, fill):
      del fill
      return list(jnp.transpose(a, (*axes, *rest)).reshape(-1, *out))
  else:
    window, strides = eqn.params['window_dimensions'], eqn.params['window_strides']
    padding, dilation = eqn.params['padding'], eqn.params['window_dilation']
    base = eqn.params['base_dilation']
    out = eqn.outputs[0].shape

    def parts(a, fill):
      a = lax.pad(a, jnp.asarray(fill, a.dtype), [(lo, hi, d - 1) for (lo, hi), d in zip(padding, base)])
      found = []
      for offset in np.ndindex(*window):
        start = [o * d for o, d in zip(offset, dilation)]
        stop = [s + (n - 1) * t + 1 for s, n, t in zip(start, out, strides)]
        found.append(lax.slice(a, start, stop, strides))
      return found

  def join(weights):
    return lambda x: sum(w * a for w, a in zip(weights, parts(x, 0.)))
  return parts, join


# -------------------------------------------------------------------------------------- the rest
def _selected(eqn: Equation, operands: Sequence[Any], lines: Lines) -> Slopes | None:
  """select_n by a perturbed predicate: the case itself where it is certain, the ends of both where not."""
  which, *cases = operands
  if len(cases) != 2 or not is_set(which) or which.dtype != jnp.bool_:
    return None
  no, yes = map(as_interval, cases)
  always, never = materialize((which.lower, ~which.upper))
  dtype = eqn.outputs[0].dtype
  slopes = [(c.astype(dtype), x) for c, x in ((never, cases[0]), (always, cases[1])) if is_set(x)]
  known = [jnp.where(c, 0 if is_set(x) else x, 0) for c, x in ((never, cases[0]), (always, cases[1]))]
  offset = known[0] + known[1]
  low = jnp.where(always | never, offset, jnp.minimum(no.lower, yes.lower))
  high = jnp.where(always | never, offset, jnp.maximum(no.upper, yes.upper))
  none = jnp.zeros(which.shape, dtype)
  own = (none, *(s for s, _ in slopes))
  return Slopes(low, high, own, own)


def _identity(eqn: Equation, operands: Sequence[Any], lines: Lines) -> Slopes:
  """The identity; only its value has no gradient, and rows pass it as they are."""
  one = jnp.ones_like(operands[0].lower)
  return Slopes(jnp.zeros_like(one), jnp.zeros_like(one), (one,), (one,))


Rule = Callable[[Equation, Sequence[Any], Lines], LinearRelaxation | None]
RULES: dict[str, Rule] = {
    PRODUCT: _product, QUOTIENT: _quotient, BILINEAR: _contraction, GREATER: _maximum, GREATEST: _greatest,
    CASES: _selected, IDENTITY: _identity}
