"""CROWN: linear bounds of a linear functional, by going through the program backwards between planes."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ibpjax.core.program import Value
from ibpjax.core.sets import Intermediates, Interval, unbounded
from ibpjax.engine.boxes import Boxes, nan_to_unbounded
from ibpjax.engine.elements import bound_elements, width
from ibpjax.engine.functional import Dense, resting_on
from ibpjax.engine.intervals import IntervalPass
from ibpjax.engine.prepare import named_as, precise, prepare
from ibpjax.engine.scans import backward_pass
from ibpjax.methods.registry import checked_intermediate, given
from ibpjax.primitives import table
from ibpjax.rules import relaxations
from ibpjax.rules.planes import Slopes
from ibpjax.rules.slopes import Lines, adaptive
from ibpjax.xla.batching import over_rows


def crown(f: Callable, *, intermediate: str | Intermediates | Callable = 'crown', lines: Lines = adaptive,
          rows: Any = None, chunk: int | None = None, intermediates: bool = False, intersect: bool = False,
          round_outward: bool = False) -> Callable:
  """CROWN: bounds of `f` by linear functions of its inputs, found going backwards through `f`.

  The returned function takes the arguments of `f` with input sets (Intervals, balls, polytopes) in the place
  of arrays, as for `ibp`, and returns the tree of `f`'s result with an Interval for each array. It
  is written for one example: `jax.vmap` makes the batch. It composes with jit, vmap, grad.

  Args:
    f: any JAX function of supported primitives, on one example.
    intermediate: where the bounds of the operands of nonlinear operations come from. 'crown':
      from passes of their own; elements on whose interval bounds the operation is affine, as
      ReLUs that are stable, keep these. 'ibp' is CROWN-IBP, 'lbp' is CROWN-LBP, and there is 'zonotope'; or a
      transformation that returns Intermediates (`ibpjax.ibp` itself, for instance). Or Intermediates of some values or
      of all: they are intersected with interval arithmetic, and all others are bounded as by 'crown'.
    lines: the choice of slopes: `tight`, `adaptive`, `constant`, or a function like these.
    rows: (n, *out.shape), linear functionals of the one output of `f` to bound instead of its
      elements; the result is an Interval of shape (n,).
    chunk: rows that are worked on at a time; default as many as stay in the caches of a CPU, or fill an accelerator.
    intermediates: also return the bounds of the operands of nonlinear operations: (bounds, Intermediates).
    intersect: intersect every bound with that of interval arithmetic on the bounds before it.
    round_outward: allow for rounding, so that the bounds hold for the exact and for the computed `f` (see
      `errors`). Then loops and composites (softmax, normalisation) are bounded by their boxes.

  Raises:
    NotImplementedError, TypeError, ValueError: as `ibp`; and where `rows` do not fit the output.

  Source: Zhang et al. 2018; Lyu et al. 2021, section 2.2.
  """
  checked_intermediate(intermediate)

  def bounded(*args, **kwargs):
    with precise(round_outward):
      prepared = prepare(f, args, kwargs)
      inside = given(f, intermediate, args, kwargs, lines=lines, intersect=intersect, round_outward=round_outward)
      boxes = IntervalPass(prepared.program, prepared.inputs, lines=lines, tighten=by_passes(chunk),
                           round_outward=round_outward, intersect=intersect, **inside)
      if rows is None:
        result = prepared.result([boxes.output_by(v, lambda v: bound_elements(
            backward_pass(boxes, v), v, chunk, apart=True)) for v in prepared.program.outputs])
      else:
        result = _bound_rows(boxes, rows, chunk)
    return (result, boxes.intermediates()) if intermediates else result
  return named_as(f, bounded)


def by_passes(chunk: int | None) -> Callable[[Boxes, Value], Interval]:
  """How full CROWN bounds the operand of a nonlinear operation: by passes from its elements that need it."""
  def bounds(boxes, v):
    return bound_elements(backward_pass(boxes, v), v, chunk, needed=unstable(boxes, v))
  return bounds


def unstable(boxes: Boxes, value: Value) -> Any:
  """The elements of a value whose bounds matter: a relaxation is not exact over the box that they have. None for all.

  Of functions that bend at points, as ReLU, these are the elements that may lie on both sides of one.
  """
  found = jnp.zeros(value.shape, bool)
  for eqn in boxes.program.equations:
    flags = [v.id in boxes.program.perturbed for v in eqn.inputs]
    if not any(v.id == value.id for v in eqn.inputs) or table.is_affine(eqn, flags):
      continue
    if sum(flags) > 1 or any(v.id not in boxes.env for v in eqn.inputs):
      return None
    planes = relaxations.planes(eqn, boxes.operands(eqn), boxes.lines, boxes.run, 0.)
    if not isinstance(planes, Slopes) or planes.low.shape != value.shape:
      return None
    exact = (planes.below[0] == planes.above[0]) & (planes.low == planes.high)
    found |= ~exact
  return found


def _bound_rows(boxes: Boxes, rows: Any, chunk: int | None) -> Interval:
  program = boxes.program
  if len(program.outputs) != 1 or program.outputs[0].id not in program.perturbed:
    raise ValueError(f'rows bound linear functions of one perturbed output; the function has {len(program.outputs)} '
                     'outputs, not all perturbed')
  v = program.outputs[0]
  rows = jnp.asarray(rows, v.dtype)
  if rows.shape[1:] != v.shape:
    raise ValueError(f'rows have shape {rows.shape}; for an output of shape {v.shape} they have (n, '
                     f'{", ".join(map(str, v.shape))})')
  back = backward_pass(boxes, v)

  def over(bound):
    return over_rows(lambda row: bound(resting_on(v, Dense(row))), rows, width(program), chunk)
  found = nan_to_unbounded(back.bound_apart(over))
  return unbounded(found, jnp.any(boxes.unknown(v))) if boxes.round_outward else found  # 0 times NaN is NaN
