"""CROWN: linear bounds of a linear functional, by walking the program backwards between planes."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.core.program import Program, Value
from ibpjax.core.sets import Intermediates, Interval, unbounded, validated
from ibpjax.engine.backward import backward_pass
from ibpjax.engine.functional import BackwardPass, Dense, resting_on
from ibpjax.engine.intervals import IntervalPass, nan_to_unbounded
from ibpjax.engine.prepare import opened, precise
from ibpjax.methods.registry import INTERMEDIATE
from ibpjax.primitives import table
from ibpjax.rules import relaxations
from ibpjax.rules.planes import Slopes
from ibpjax.rules.slopes import Lines, adaptive
from ibpjax.xla.batching import over_rows


def crown(f: Callable, *, intermediate: str | Intermediates | Callable = 'crown', lines: Lines = adaptive,
          rows: Any = None, chunk: int | None = None, intermediates: bool = False, intersect: bool = False,
          round_outward: bool = False) -> Callable:
  """CROWN: bounds of `f` by linear functions of its inputs, found walking backwards through `f`.

  The returned function takes the arguments of `f` with Intervals or LpBalls in the place of
  arrays, as for `ibp`, and returns the tree of `f`'s result with an Interval for each array. It
  is written for one example: `jax.vmap` makes the batch. It composes with jit, vmap, grad.

  Args:
    f: any JAX function of supported primitives, on one example.
    intermediate: where the bounds of the operands of nonlinear operations come from. 'crown':
      from walks of their own; elements on whose interval bounds the operation is affine, as
      ReLUs that are stable, keep these. 'ibp' is CROWN-IBP, 'lbp' is CROWN-LBP; or Intermediates, or a
      transformation that returns them (`ibpjax.ibp` itself, for instance).
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
      given, (program, inputs, out_tree) = prepared(f, intermediate, args, kwargs, lines=lines, intersect=intersect,
                                                    round_outward=round_outward)
      tighten = intermediate_bounds(lines, chunk) if given is None else None
      intervals = IntervalPass(program, inputs, given, round_outward, tighten, intersect=intersect)
      back = backward_pass(intervals, lines)
      if rows is None:
        found = [intervals.output_by(v, lambda v: back.bound_elements(v, chunk, apart=True)) for v in program.outputs]
        result = jax.tree.unflatten(out_tree, found)
      else:
        result = _bound_rows(program, back, rows, chunk)
        if round_outward:  # 0 times NaN is NaN
          result = unbounded(result, jnp.any(intervals.unknown(program.outputs[0])))
    return (result, intervals.intermediates()) if intermediates else result
  return functools.update_wrapper(bounded, f, assigned=('__name__', '__qualname__', '__doc__'), updated=())


def checked_intermediate(intermediate: Any) -> None:
  """Raises if no method has the name, or if it is neither a method nor bounds."""
  if not isinstance(intermediate, str | Intermediates) and not callable(intermediate):
    raise TypeError(f'intermediate is {type(intermediate).__name__}; it is the name of a method, Intermediates, or a '
                    'transformation that returns them')
  if isinstance(intermediate, str) and intermediate != 'crown' and intermediate not in INTERMEDIATE:
    raise ValueError(f'intermediate is {intermediate!r}; it is one of crown, {", ".join(INTERMEDIATE)}, Intermediates, '
                     'or a transformation that returns them')


def prepared(f: Callable, intermediate: Any, args: tuple, kwargs: dict,
             **options: Any) -> tuple[Intermediates | None, tuple[Program, list, Any]]:
  """The bounds of intermediate values that another method finds, None where walks of their own do; and `f`, opened.

  Args:
    f: the function.
    intermediate: as in `crown`.
    args, kwargs: the arguments of `f`.
    **options: arguments for the method, if it is given by its name and takes them.
  """
  args, kwargs = validated(args, kwargs)
  return _given(f, intermediate, args, kwargs, options), opened(f, args, kwargs)


def _given(f: Callable, intermediate: Any, args: tuple, kwargs: dict, options: dict[str, Any]) -> Intermediates | None:
  if isinstance(intermediate, Intermediates):
    return intermediate
  if intermediate == 'crown':
    return None
  if isinstance(intermediate, str):
    method, taken = INTERMEDIATE[intermediate]
    return method(f, intermediates=True, **{name: options[name] for name in taken})(*args, **kwargs)[1]
  remedy = 'a transformation called with intermediates=True returns (bounds, Intermediates), as ibpjax.ibp does'
  name = getattr(intermediate, '__name__', repr(intermediate))
  try:
    transformed = intermediate(f, intermediates=True)
  except TypeError as e:
    raise TypeError(f'intermediate={name} cannot return the bounds of intermediate values ({e}): {remedy}') from e
  found = transformed(*args, **kwargs)
  if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Intermediates)):
    raise TypeError(f'intermediate={name} returned {type(found).__name__}: {remedy}')
  return found[1]


def intermediate_bounds(lines: Lines, chunk: int | None) -> Callable[[IntervalPass, Value], Interval]:
  """How full CROWN bounds the operand of a nonlinear operation: by walks from its elements that need it."""
  def bounds(intervals, v):
    return backward_pass(intervals, lines).bound_elements(v, chunk, needed=unstable(intervals, v, lines))
  return bounds


def unstable(intervals: IntervalPass, value: Value, lines: Lines) -> Any:
  """The elements of a value whose bounds matter: a relaxation is not exact over the box that they have. None for all.

  Of functions that bend at points, as ReLU, these are the elements that may lie on both sides of one.
  """
  found = jnp.zeros(value.shape, bool)
  for eqn in intervals.program.equations:
    flags = [v.id in intervals.program.perturbed for v in eqn.inputs]
    if not any(v.id == value.id for v in eqn.inputs) or table.is_affine(eqn, flags):
      continue
    if sum(flags) > 1 or any(v.id not in intervals.env for v in eqn.inputs):
      return None
    planes = relaxations.planes(eqn, intervals.operands(eqn), lines, intervals.run, 0.)
    if not isinstance(planes, Slopes) or planes.low.shape != value.shape:
      return None
    exact = (planes.below[0] == planes.above[0]) & (planes.low == planes.high)
    found |= ~exact
  return found


def _bound_rows(program: Program, back: BackwardPass, rows: Any, chunk: int | None) -> Interval:
  if len(program.outputs) != 1 or program.outputs[0].id not in program.perturbed:
    raise ValueError(f'rows bound linear functions of one perturbed output; the function has {len(program.outputs)} '
                     'outputs, not all perturbed')
  v = program.outputs[0]
  rows = jnp.asarray(rows, v.dtype)
  if rows.shape[1:] != v.shape:
    raise ValueError(f'rows have shape {rows.shape}; for an output of shape {v.shape} they have (n, '
                     f'{", ".join(map(str, v.shape))})')
  back.ends(v)

  def over(bound):
    return over_rows(lambda row: bound(resting_on(v, Dense(row))), rows, back.width(), chunk)
  return nan_to_unbounded(back.bound_apart(over))
