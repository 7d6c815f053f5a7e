"""Rounding: how far floating point may have moved a bound, and the widening that makes up for it.

Standard model of floating point (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
chapters 2 and 3): each operation is exact up to a relative u, so a sum of n products is exact up
to gamma_n = n u / (1 - n u) times the sum of their absolute values, in any order of summation.
Both the function itself and its bound are computed so; the constant 4 below covers both. What other
operations lose is stated in `accuracy`.

Below the least normal number t the model does not hold: an operand or a result may be taken for 0 (`subnormal`), known
ones too, and a division by a known c may be a product with 1 / c, which vanishes for |c| > 1 / t. Each product with a
known factor is therefore allowed to be off by t |x|, and each result by t for every term.

Known values (weights, and what is computed from known values alone, such as folded batch norm)
are taken as computed: a bound holds for the function of these values.
"""
from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core.composite import Composite
from ibpjax.core.products import gamma
from ibpjax.core.program import Equation, rebind
from ibpjax.core.row import EXACT, MOVES, PRODUCTS, SCALED, SUMS
from ibpjax.core.sets import Interval, as_interval, is_floating, is_set, unbounded
from ibpjax.core.subnormal import is_subnormal, least_kept, may_be_subnormal, without_subnormal
from ibpjax.primitives import reductions, table
from ibpjax.rules import accuracy
from ibpjax.rules.undefined import spoiled


def outward(step: Callable[[Equation, list[Any]], list[Any]], eqn: Equation, operands: list[Any]) -> list[Any]:
  """One step of IBP, widened by the rounding of the equation and of its bound; the whole line where it may be NaN.

  No end of the operands is subnormal, and none of the result is: sums with t, which end every widening, are normal or
  vanish outward.
  """
  if eqn.bodies:
    return step(eqn, operands)  # loops widen inside
  if not jnp.issubdtype(eqn.outputs[0].dtype, jnp.floating):
    return step(eqn, _sets(operands))  # comparisons are exact
  row = table.of(eqn)
  if row.accuracy == MOVES:
    return normal(step(eqn, operands)) if _known_floats(operands) else step(eqn, operands)
  widened = functools.partial(_widened, step)
  adds = row.accuracy == SUMS and (row.affine != SCALED or sum(map(is_set, operands)) == 1)
  if adds or eqn.key in (P.select_n_p, P.scatter_p):
    return widened(eqn, operands)
  return spoiled(widened, eqn, operands)


def _widened(step: Callable[[Equation, list[Any]], list[Any]], eqn: Equation, operands: list[Any]) -> list[Any]:
  """A step that computes something, widened by its rounding."""
  stated = table.of(eqn).accuracy
  if stated == EXACT:
    return _exact(step, eqn, operands)
  if isinstance(eqn.key, Composite):
    return [eqn.key.image(_sets(operands), accuracy.unit(eqn))]
  if stated == SUMS:
    return _summed(step, eqn, operands)
  out, known = _rounded(step, eqn, operands), _known_floats(operands)
  unknown = _anywhere(known, eqn.outputs[0].shape) if known else False
  if eqn.key is P.atan2_p:  # of two subnormal numbers: 0 / 0
    unknown |= functools.reduce(operator.and_, map(_beside_zero, map(as_interval, operands)))
  elif not known:
    return out
  return [unbounded(x, unknown) for x in out]


def normal_ends(x: Interval) -> Interval:
  """An interval with subnormal ends moved outward.

  It holds every value of the interval also as an operand that may have been taken for 0, and computations on its ends
  see what they are.
  """
  return Interval(without_subnormal(x.lower, -1), without_subnormal(x.upper, 1))


def normal(operands: Sequence[Any]) -> list[Any]:
  """Operands of which the perturbed ones have no subnormal ends: they hold 0 where they may be taken for it."""
  return [normal_ends(x) if isinstance(x, Interval) and is_floating(x) else x for x in operands]


def _exact(step: Callable[[Equation, list[Any]], list[Any]], eqn: Equation, operands: list[Any]) -> list[Any]:
  """What returns one of its operands: a known one that may be taken for 0 is off by that.

  What sorts takes subnormal numbers for equal, and so returns any of them in the place of another.
  """
  out = step(eqn, operands)
  if eqn.key in (P.sort_p, P.top_k_p):
    out = [_any_subnormal(x) if is_floating(x) else x for x in out]
  if known := _known_floats(operands):
    moved = jnp.where(_anywhere(known, eqn.outputs[0].shape), jnp.finfo(eqn.outputs[0].dtype).tiny, 0)
    out = [_apart(x, moved) if is_set(x) and is_floating(x) else x for x in out]
  return normal(out) if known or eqn.key in (P.convert_element_type_p, P.reduce_precision_p) else out


def _any_subnormal(x: Interval) -> Interval:
  """An interval, widened where it holds 0 or a subnormal number to hold all of these."""
  tiny = least_kept(x.dtype)
  return _apart(x, jnp.where((x.lower < tiny) & (x.upper > -tiny), tiny, 0).astype(x.dtype))


def _summed(step: Callable[[Equation, list[Any]], list[Any]], eqn: Equation, operands: list[Any]) -> list[Any]:
  """Sums and products: |W| (r + 4 (gamma_n + u) |x|) covers those of the function, the centre and the radius."""
  flags = [is_set(x) for x in operands]
  u = accuracy.unit(eqn)
  terms, _ = accuracy.roundings(eqn, flags)
  if eqn.primitive in (P.scatter_add_p, lax.scatter_sub_p):  # what is added to counts among the terms, known or not
    operands = _sets(operands)
  elif eqn.key is P.div_p:
    operands = _sets(operands) if flags[1] else [operands[0], jnp.where(is_subnormal(operands[1]), 0, operands[1])]
  sizes = [magnitude(x) for x in operands]
  lost = flushed(eqn, sizes, flags)
  spread = [_spread(x, 4 * gamma(terms + 1, u)) for x in operands]
  out = [_apart(_wider(x, 4 * u, terms + 1), lost) for x in step(eqn, spread)]
  return [unbounded(x, _overflows(eqn, sizes, terms)) for x in out] if terms > 2 else out


def _overflows(eqn: Equation, sizes: Sequence[Any], terms: int) -> Any:
  """Where sums of some of the terms may leave the range of floats, though the sum of all does not.

  Where that range is short, it is looked up for each sum of magnitudes; else for the greatest terms there are.
  """
  limit = float(jnp.finfo(eqn.outputs[0].dtype).max) / 2
  if limit < 1e30:
    return ~(jnp.abs(rebind(eqn, *sizes)[0]) < limit)
  greatest = [jnp.max(jnp.where(jnp.isfinite(a), a, 0), initial=0).astype(eqn.outputs[0].dtype)
              for a in sizes if is_floating(a)]
  joined = operator.mul if table.of(eqn).affine in table.WEIGHTED else operator.add
  return functools.reduce(joined, greatest) >= limit / terms


def _rounded(step: Callable[[Equation, list[Any]], list[Any]], eqn: Equation, operands: list[Any]) -> list[Any]:
  """Other functions, by their stated accuracy."""
  u = accuracy.unit(eqn)
  if table.of(eqn).accuracy == PRODUCTS:
    return [_wider(x, (4. * reductions.count(eqn) + 16) * u) for x in step(eqn, operands)]
  if eqn.key is P.cumlogsumexp_p:
    relative = absolute = tinies = 4. * reductions.count(eqn) + 16
  else:
    relative, absolute, tinies = accuracy.of_value(eqn, operands)
  reach = functools.reduce(jnp.maximum, [magnitude(x) for x in operands if is_set(x)])
  out = [_wider(x, relative * u, vanished(tinies, reach)) for x in step(eqn, operands)]
  if eqn.key is P.rsqrt_p:  # of -0.
    out = [Interval(jnp.where(operands[0].lower > 0, x.lower, -jnp.inf), x.upper) for x in out]
  return [_apart(x, absolute * u * (1 + reach)) for x in out] if absolute else out


def vanished(count: float, reach: Any) -> Any:
  """How many least normal numbers a function of arguments up to `reach` may lose: `count`, or x times what vanished."""
  return count * (1 + jnp.minimum(reach, 1024))


def flushed(eqn: Equation, sizes: Sequence[Any], flags: Sequence[bool]) -> Any:
  """How far the products of an equation may be off because a known factor, or 1 over it, was taken for 0.

  Args:
    eqn: an equation whose accuracy is SUMS.
    sizes: the absolute values of its operands, or what these sum to.
    flags: which operands are perturbed.

  Returns:
    An array that broadcasts to the result.
  """
  if table.of(eqn).affine not in table.WEIGHTED or sum(flags) != 1 or (eqn.key is P.div_p and flags[1]):
    return 0.
  size, factor = sizes[flags.index(True)], eqn.inputs[flags.index(False)]
  off = least_kept(factor.dtype) * size.astype(eqn.outputs[0].dtype)
  return off if table.of(eqn).affine == SCALED else jnp.sum(jnp.where(jnp.isfinite(off), off, 0))


def magnitude(x: Any) -> Any:
  """The largest absolute value of each element of an array or a set."""
  if isinstance(x, Interval):
    if not is_floating(x):
      return x.upper
    return jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper)) + jnp.finfo(x.dtype).tiny
  return jnp.abs(x) if is_floating(x) else x


def _sets(operands: Sequence[Any]) -> list[Any]:
  """Operands of which the known floats are intervals too, that hold 0 where they may be taken for it."""
  return [x if is_set(x) or not is_floating(x) else normal_ends(as_interval(jnp.asarray(x))) for x in operands]


def _known_floats(operands: Sequence[Any]) -> list[Any]:
  """The known operands that may be subnormal."""
  return [x for x in operands if not is_set(x) and may_be_subnormal(x)]


def _beside_zero(x: Interval) -> Any:
  """Where an interval has elements less than the least normal number."""
  tiny = jnp.finfo(x.dtype).tiny
  return (x.lower < tiny) & (x.upper > -tiny)


def _anywhere(known: Sequence[Any], shape: tuple[int, ...]) -> Any:
  """Where one of some known operands is subnormal; everywhere, if its elements are not those of the result."""
  found = map(is_subnormal, known)
  return functools.reduce(operator.or_, [f if jnp.shape(f) in ((), shape) else jnp.any(f) for f in found])


def _wider(x: Any, relative: float, count: Any = 1) -> Any:
  """An interval with its ends rounded outward, each by `relative` times itself and `count` results that vanished."""
  if not isinstance(x, Interval):
    return x
  tiny = count * jnp.finfo(x.dtype).tiny
  return Interval(x.lower - relative * jnp.abs(x.lower) - tiny, x.upper + relative * jnp.abs(x.upper) + tiny)


def _apart(x: Interval, slack: Any) -> Interval:
  """An interval with its ends moved outward."""
  return Interval(x.lower - slack, x.upper + slack)


def _spread(x: Any, relative: float) -> Any:
  """An interval widened on both sides by `relative` times its largest magnitude, and by what its half may lose."""
  return _apart(x, relative * magnitude(x) + 8 * least_kept(x.dtype)) if isinstance(x, Interval) else x
