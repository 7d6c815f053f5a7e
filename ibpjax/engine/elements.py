"""Bounds of each element of a value, from one functional an element, built when it is needed."""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives as P

from ibpjax.core.program import Program, Value
from ibpjax.core.row import CONTRACTED
from ibpjax.core.sets import Interval
from ibpjax.engine import functional
from ibpjax.engine.backward import BackwardPass
from ibpjax.engine.functional import Dense, LinearFunctional, Row, resting_on
from ibpjax.engine.patches import Patch, Span, moving_axes
from ibpjax.primitives import table
from ibpjax.xla.batching import over_rows

# What a dense layer is made of: its weights, its bias, and moves of axes.
_LAYER = frozenset({P.dot_general_p, P.add_p, P.sub_p, P.neg_p, P.reshape_p, P.squeeze_p, P.transpose_p,
                    P.broadcast_in_dim_p, P.copy_p, P.convert_element_type_p})


def bound_elements(back: BackwardPass, value: Value, chunk: int | None = None, apart: bool = False,
                   needed: Any = None) -> Interval:
  """Bounds of each element of a value.

  Elements that see the same window of an image are bounded together; lower and upper bounds too, or `apart`: then XLA
  leaves out those that nobody uses.

  Args:
    back: a pass that is prepared for the value.
    value: the value.
    chunk: as in `over_rows`.
    apart: whether lower and upper bounds are computed apart.
    needed: booleans of the shape of the value: other elements keep the bounds that they have. None for all.
  """
  if value.id in back.ends(value):  # the pass does not get away from it
    return back.env[value.id]

  def over(bound):
    return over_elements(back, value, bound, chunk, needed=needed)
  return kept_unless(needed, back.bound_apart(over) if apart else over(back.bound), back.env[value.id])


def kept_unless(needed: Any, found: Interval, before: Interval) -> Interval:
  """The bounds `found` where they are needed (None: everywhere), elsewhere those `before`."""
  return found if needed is None else jax.tree.map(functools.partial(jnp.where, needed), found, before)


def over_elements(back: BackwardPass, value: Value, f: Callable[..., Any], chunk: int | None = None, *along: Any,
                  needed: Any = None) -> Any:
  """`f(functional, *parts)` for each single element of `value`, with its part of `along`.

  Args:
    back: a pass that is prepared for the value.
    value: the value.
    f: a function that returns any pytree; the functional is the element, or the same on values before it.
    chunk: as in `over_rows`.
    *along: pytrees of arrays (*value.shape, ...).
    needed: booleans of the shape of `value`: the results for other elements do not matter.

  Returns:
    The pytree, its arrays (*value.shape, ...).
  """
  moving = moving_axes(back.program, value)
  counts = tuple(value.shape[i] for i in moving)
  spans = tuple(Span(moving.index(i), n) if i in moving else None for i, n in enumerate(value.shape))
  shape = tuple(1 if i in moving else n for i, n in enumerate(value.shape))
  beside, rank = int(np.prod(shape)), len(value.shape)

  def element(i, j, parts):
    hot = (jnp.arange(beside) == j).astype(value.dtype).reshape(shape)
    row: Row = Patch(hot, jnp.unravel_index(i, counts), spans, value.shape) if counts else Dense(hot)
    return f(resting_on(value, row), *parts)

  if not counts:
    laid = jax.tree.map(lambda x: x.reshape(value.size, *x.shape[rank:]), along)
    starts = None if chunk is not None and chunk < value.size else _starts(back, value)

    def one(x):
      i, start, parts = x
      return element(0, i, parts) if start is None else f(start, *parts)
    flat = over_rows(one, (jnp.arange(value.size), starts, laid), width(back.program), chunk,
                     None if needed is None else needed.ravel())
    return jax.tree.map(lambda x: x.reshape(*value.shape, *x.shape[1:]), flat)

  def grouped(x):
    x = jnp.moveaxis(x, moving, range(len(moving)))
    return x.reshape(-1, beside, *x.shape[rank:])

  def group(x):
    i, parts = x
    return jax.vmap(functools.partial(element, i))(jnp.arange(beside), parts)
  flat = over_rows(group, (jnp.arange(value.size // beside), jax.tree.map(grouped, along)),
                   beside * width(back.program), chunk and max(1, chunk // beside))

  def placed(x):
    x = x.reshape(*counts, *(n for i, n in enumerate(value.shape) if i not in moving), *x.shape[2:])
    return jnp.moveaxis(x, range(len(counts)), moving)
  return jax.tree.map(placed, flat)


def _starts(back: BackwardPass, value: Value) -> LinearFunctional | None:
  """The elements of a value as functionals of the values before the dense layer that made it, all in one array.

  They are the rows of the weights: so passes need not multiply unit rows with these. None where there are other
  operations on the way, which may differ from example to example; where the array would be much larger than the
  weights; and where rounding is counted operation by operation.
  """
  if back.round_outward:
    return None
  plain = dataclasses.replace(back, steps={i: step for i, step in back.steps.items() if step.passage is None})
  ends, weights, largest = plain.ends(value), 0, 0
  if value.id in ends:
    return None
  reached = {value.id}
  for eqn in reversed(plain.program.equations):
    if any(v.id in reached for v in eqn.outputs):
      if eqn.key not in _LAYER:
        return None
      moving = [v for v in eqn.inputs if v.id in plain.program.perturbed]
      if table.of(eqn).affine == CONTRACTED:
        weights += sum(v.size for v in eqn.inputs if v.id not in plain.program.perturbed)
      largest = max(largest, sum(v.size for v in moving))
      reached |= {v.id for v in moving} - set(ends)
  if value.size * largest > 2 * weights:
    return None
  return jax.vmap(lambda i: plain.back(functional.element(value, i)).dense())(jnp.arange(value.size))


def width(program: Program) -> int:
  """The number of elements of the largest perturbed value a row can rest on."""
  return max(v.size for v in (*program.inputs, *(v for e in program.equations for v in e.outputs))
             if v.id in program.perturbed)
