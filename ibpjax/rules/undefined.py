"""Undefined values: where what is computed may be NaN, of which no interval but the whole line is a bound.

All operations but comparisons and selections hand NaN on, bounded functions too: tanh(NaN) is no number between -1 and
1. A box holds no NaN; the whole line stands for it. So an element of which nothing is known may be NaN, and nothing is
known of what is computed from it. Sums do this by themselves: what is added to the whole line is the whole line, or
has ends that are NaN, which `nan_to_unbounded` makes infinite.
"""
from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import primitives as P

from ibpjax.composites.composites import Blend
from ibpjax.composites.softmax import OF_EXPONENTS
from ibpjax.core.composite import Composite
from ibpjax.core.program import Equation, rebind
from ibpjax.core.sets import Interval, is_floating, is_set, is_unbounded, unbounded
from ibpjax.primitives import table


def spoiled(step: Callable[[Equation, list[Any]], list[Any]], eqn: Equation, operands: Sequence[Any]) -> list[Any]:
  """The bounds of an equation, made the whole line where its value may be NaN.

  Args:
    step: computes the bounds of its results in the real numbers.
    eqn: an equation that neither moves elements, nor selects them, nor adds what is computed from them.
    operands: its operands, Intervals where perturbed.
  """
  marks = [_undefined(eqn, x) if is_set(x) and is_floating(x) else None for x in operands]
  found = [m for m in marks if m is not None]
  composite = isinstance(eqn.key, Composite)  # which would multiply by infinite numbers in derivatives
  given = [x if m is None or not composite else Interval(jnp.where(m, 1, x.lower), jnp.where(m, 1, x.upper))
           for x, m in zip(operands, marks, strict=True)]
  out = step(eqn, given)
  if not found:
    return out
  if eqn.key is P.top_k_p:  # which sorts NaN first or last, by its sign
    where = [jnp.any(found[0], -1, keepdims=True)] * len(out)
  elif table.of(eqn).many or (composite and not isinstance(eqn.key, Blend)):
    where = [jnp.isnan(a) for a in rebind(eqn, *(_marked(eqn, x, m) for x, m in zip(operands, marks, strict=True)))]
  else:
    where = [functools.reduce(operator.or_, found)] * len(out)
  return [unbounded(x, w) if is_set(x) and is_floating(x) else x for x, w in zip(out, where, strict=True)]


def _undefined(eqn: Equation, x: Interval) -> Any:
  """Where the elements of an operand make what is computed from them NaN, or may do so."""
  if isinstance(eqn.key, OF_EXPONENTS):
    return x.upper == jnp.inf  # exp(-inf) is 0
  if table.of(eqn).undefined_at_infinity or callable(eqn.key):
    return jnp.isinf(x.lower) | jnp.isinf(x.upper)
  return is_unbounded(x)


def _marked(eqn: Equation, x: Any, undefined: Any) -> Any:
  """An operand for a run that shows where NaN is handed on to: NaN at the elements `undefined`, else a moderate one."""
  if not is_floating(x):
    return x
  if undefined is None:
    return jnp.ones_like(x)
  moderate = jnp.where(x.lower == -jnp.inf, -jnp.inf, 1) if isinstance(eqn.key, OF_EXPONENTS) else 1
  return jnp.where(undefined, jnp.nan, moderate).astype(x.dtype)
