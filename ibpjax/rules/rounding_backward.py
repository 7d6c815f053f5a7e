"""Errors: how far rounding may move a row on its way back, as a bound for each element that it rests on.

A row passes an equation y = W x + b as the row times W, and the row times b is added to an offset.
Whatever is rounded there, in the row, in the offset or in y itself, moves a bound by no more than
gamma_n <|row|, |W| |x| + |b|>, where n is the number of roundings that a term goes through (Higham,
Accuracy and Stability of Numerical Algorithms, 2nd ed., chapter 3). The vector |W| |x| + |b| does not
depend on the row: it is computed once for all. Planes are equations like this one, with the error
of the function and of its intercepts on top. See `rounding` for what known values are taken for.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import primitives as P

from ibpjax.core.composite import Composite
from ibpjax.core.products import gamma, times
from ibpjax.core.program import Equation, Program, rebind
from ibpjax.core.row import CONTRACTED, SUMS
from ibpjax.core.sets import Interval, is_set
from ibpjax.core.subnormal import least_kept
from ibpjax.primitives import table
from ibpjax.rules import affine
from ibpjax.rules.accuracy import of_value, roundings, unit
from ibpjax.rules.planes import LinearRelaxation, Maps, Slopes
from ibpjax.rules.rounding import flushed, magnitude, vanished


def steps(program: Program) -> int:
  """The number of roundings of an offset, to which each equation adds at most four terms, errors among them."""
  return 4 * len(program.equations) + 8


def error(program: Program, env: dict[int, Any], eqn: Equation, planes: Any) -> Any:
  """What rows must allow for at an equation, for a coefficient 1 on each element of its one output.

  Args:
    program: the program.
    env: value id -> Interval or array, for all values that rows pass; widened by `rounding.outward`.
    eqn: the equation.
    planes: its planes; None if it is affine.

  Returns:
    An array of the shape of the output, or None where nothing is rounded.
  """
  operands = [env[v.id] for v in eqn.inputs]
  sizes, flags = [magnitude(x) for x in operands], [v.id in program.perturbed for v in eqn.inputs]
  terms = eqn.outputs[0].size + steps(program)  # of the sum that goes to the offset
  if planes is not None:
    return of_planes(eqn, planes, operands, sizes, env[eqn.outputs[0].id], terms)
  if affine.has_constant(eqn, flags):
    constant = _magnitudes(eqn, [jnp.zeros_like(x) if p else x for x, p in zip(sizes, flags)])[0]
    return of_affine(eqn, sizes, flags) + gamma(terms, unit(eqn)) * constant
  exact = table.of(eqn).accuracy != SUMS and roundings(eqn, flags)[1] == 1
  return None if exact else of_affine(eqn, sizes, flags)


def of_forms(eqn: Equation, planes: Any, operands: Sequence[Any], sizes: Sequence[Any], flags: Sequence[bool],
             out: Interval, reach: Any) -> Any:
  """How far rounding may move linear bounds pushed forward through an equation, and its output; None where it does not.

  Args:
    eqn: the equation, of one output.
    planes: its planes; None if it is affine.
    operands: its operands, Intervals where perturbed.
    sizes: what the absolute values of all terms that they are computed from sum to.
    flags: which of them are perturbed.
    out: bounds of its output.
    reach: the sum of the absolute values of all inputs.
  """
  if planes is None and table.of(eqn).accuracy != SUMS:
    return None
  found = of_affine(eqn, sizes, flags) if planes is None else of_planes(eqn, planes, operands, sizes, out, 8)
  terms = sum(roundings(eqn, flags)) if planes is None else sum(x.size for x in sizes)
  vanished = (terms + 8) * float(jnp.finfo(eqn.outputs[0].dtype).tiny) * (1 + reach)  # what is too small to be kept
  return found + vanished.astype(found.dtype)


def of_affine(eqn: Equation, sizes: Sequence[Any], flags: Sequence[bool]) -> Any:
  """The error of the one output of an affine equation, and of a row that passes it.

  Args:
    eqn: the equation.
    sizes: what the absolute values of its operands, or of all terms that these are computed from, sum to.
    flags: which operands are perturbed.
  """
  count = roundings(eqn, flags)
  relative = 2 * gamma(sum(count) + 4, unit(eqn)) * _magnitudes(eqn, sizes)[0]
  return relative + flushed(eqn, sizes, flags) + 2 * (count[0] + 1) * least_kept(eqn.outputs[0].dtype)


def of_planes(eqn: Equation, planes: LinearRelaxation, operands: Sequence[Any], sizes: Sequence[Any], out: Interval,
              count: float) -> Any:
  """The error of planes around the output of an equation.

  Args:
    eqn: the equation.
    planes: its planes.
    operands: its operands, Intervals where perturbed.
    sizes: as in `of_affine`.
    out: bounds of its output.
    count: roundings of what intercepts add to an offset.
  """
  u = unit(eqn)
  flags = [is_set(x) for x in operands]
  own, cancellation, tinies = of_value(eqn, operands)
  moving, terms = [x for x, p in zip(sizes, flags) if p], 8.
  if isinstance(planes, Maps):
    entered = sum(roundings(eqn, flags)) if table.of(eqn).affine == CONTRACTED else max(x.size for x in moving)
    terms += 4 * (entered + max(x.size for x in operands) // max(out.size, 1))
  reach = _reach(planes, moving)
  if cancellation:
    reach += cancellation * (1 + magnitude(operands[flags.index(True)]))
  # The function is rounded where it runs and where intercepts are computed, slopes where they are multiplied by.
  error = gamma(2 * own + 8, u) * magnitude(out) + gamma(terms, u) * reach
  # What may be taken for 0: values and what they are computed from, slopes that small. Those of unbounded boxes are 0.
  tiny = least_kept(out.dtype)
  for x in (magnitude(x).astype(out.dtype) for x in operands if is_set(x) and jnp.issubdtype(x.dtype, jnp.floating)):
    x = jnp.where(jnp.isfinite(x), x, 0)
    lost = tiny * (vanished(tinies, x) + x)
    error += lost if isinstance(planes, Slopes) else jnp.sum(lost)
  intercepts = jnp.maximum(*(jnp.where(jnp.isfinite(a), jnp.abs(a), 0) for a in (planes.low, planes.high)))
  return error + gamma(count + 8, u) * intercepts


def _reach(planes: LinearRelaxation, sizes: Sequence[Any]) -> Any:
  """The absolute values of the terms of planes, summed."""
  if isinstance(planes, Slopes):
    return sum(times(jnp.maximum(jnp.abs(a), jnp.abs(b)), x.astype(a.dtype))
               for a, b, x in zip(planes.below, planes.above, sizes, strict=True))
  ends = planes.push([Interval(-x, x) for x in sizes])
  return jnp.maximum(-ends.lower, ends.upper)


def _magnitudes(eqn: Equation, operands: Sequence[Any]) -> list[Any]:
  """The sum of the absolute values of all terms of an affine equation."""
  match eqn.primitive:
    case P.sub_p:
      return [operands[0] + operands[1]]
    case P.neg_p:
      return [operands[0]]
  return rebind(eqn, *operands)


def certain(eqn: Equation) -> bool:
  """Whether the planes of an equation have known errors: not those of composites, nor of what is inside a loop."""
  return not isinstance(eqn.key, Composite) and not eqn.bodies
