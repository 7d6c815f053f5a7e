"""Integers that depend on perturbed values, such as counts of comparisons: exact, unless they may wrap around."""
from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation, unsupported
from ibpjax.core.row import INCREASING, SUMS, WHOLE
from ibpjax.core.sets import Interval, as_interval
from ibpjax.primitives import table
from ibpjax.primitives.integers import real, unless
from ibpjax.primitives.reductions import count, ends

_SUMS = frozenset({P.reduce_sum_p, P.cumsum_p})


def _minus(a: Interval, b: Interval) -> Interval:
  return Interval(a.lower - b.upper, a.upper - b.lower)


def _times(a: Interval, b: Interval) -> Interval:
  corners = jnp.stack([p * q for p in (a.lower, a.upper) for q in (b.lower, b.upper)])
  return Interval(corners.min(0), corners.max(0))


_ARITHMETIC: dict[Any, Callable[..., Interval]] = {
    P.add_p: lambda a, b: Interval(a.lower + b.lower, a.upper + b.upper),
    P.sub_p: _minus,
    P.neg_p: lambda a: Interval(-a.upper, -a.lower),
    P.mul_p: _times,
}


def image(eqn: Equation, operands: Sequence[Any]) -> list[Interval]:
  """Bounds of an equation on perturbed integers with integer results."""
  row = table.of(eqn)
  # What has an accuracy of WHOLE is monotone on booleans, not on the bits of integers.
  if (row.monotone and row.accuracy != WHOLE) or (row.affine == INCREASING and row.accuracy != SUMS):
    return ends(eqn, operands)
  if eqn.key not in _ARITHMETIC and eqn.key not in _SUMS:
    raise unsupported(eqn, 'computes with integers that depend on perturbed values. Cast them to floats first')
  xs = list(map(as_interval, operands))
  dtype = eqn.outputs[0].dtype
  if jnp.issubdtype(dtype, jnp.unsignedinteger) and eqn.key in (P.sub_p, P.neg_p):
    raise unsupported(eqn, 'may leave the unsigned integers at 0 (positions of perturbed values among sorted ones, as '
                           'in jnp.interp, do). Use signed integers or floats')
  magnitudes = [jnp.maximum(jnp.abs(real(x.lower)), jnp.abs(real(x.upper))) for x in xs]
  if eqn.key in _SUMS:
    out, = ends(eqn, operands)
    reach = count(eqn) * jnp.max(magnitudes[0], initial=0)
  else:
    out = _ARITHMETIC[eqn.key](*xs)
    reach = functools.reduce(operator.mul if eqn.key is P.mul_p else operator.add, magnitudes)
  return [unless(reach > .99 * jnp.iinfo(dtype).max, out)]
