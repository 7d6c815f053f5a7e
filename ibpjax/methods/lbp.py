"""LBP: linear bounds of every value in the inputs, carried forward through the program."""
from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp

from ibpjax.core.products import dot, gamma
from ibpjax.core.program import Value
from ibpjax.core.sets import Interval
from ibpjax.engine.elements import width
from ibpjax.engine.forms import Form, PatchForm
from ibpjax.engine.forward import ForwardBounds
from ibpjax.engine.functional import dense, element
from ibpjax.engine.intervals import IntervalPass
from ibpjax.engine.prepare import named_as, precise, prepare
from ibpjax.rules.rounding_backward import steps
from ibpjax.rules.slopes import Lines, tight
from ibpjax.xla.batching import over_rows


def lbp(f: Callable, *, lines: Lines = tight, elide: bool = True, intermediates: bool = False,
        intersect: bool = False, round_outward: bool = False) -> Callable:
  """LBP: bounds of `f` by linear functions of its inputs, carried forward through `f` in one pass.

  The returned function takes the arguments of `f` with input sets (Intervals, balls, polytopes) in the place
  of arrays, as for `ibp`, and returns the tree of `f`'s result with an Interval for each array. It
  is written for one example: `jax.vmap` makes the batch. It carries two coefficients for each
  pair of an element of the inputs and an element of a value; where convolutions have only seen
  windows of an image, for these windows alone.

  Args:
    f: any JAX function of supported primitives, on one example.
    lines: the choice of slopes: `tight`, `adaptive`, `constant`, or a function like these.
    elide: bound the outputs by pulling them back through the affine operations at the end of `f`
      before linear functions are put in, so that a margin merges with the last layer.
    intermediates: also return the bounds of the operands of nonlinear operations: (bounds, Intermediates).
    intersect, round_outward: as in `crown`.

  Raises:
    NotImplementedError, TypeError, ValueError: as `ibp`.

  Source: Lyu et al. 2021, section 3.2 (LBP is Relaxed-CROWN-1).
  """
  def bounded(*args, **kwargs):
    with precise(round_outward):
      prepared = prepare(f, args, kwargs)
      forms: dict[int, Form | PatchForm] = {}
      boxes = IntervalPass(prepared.program, prepared.inputs, lines=lines, round_outward=round_outward,
                           intersect=intersect,
                           tighten=lambda boxes, v: ForwardBounds(boxes, forms).bound_elements(v))
      last = ForwardBounds(boxes, forms)
      bound = functools.partial(_elided, last) if elide else last.bound_elements
      result = prepared.result([boxes.output_by(v, bound) for v in prepared.program.outputs])
    return (result, boxes.intermediates()) if intermediates else result
  return named_as(f, bounded)


def _elided(forward: ForwardBounds, value: Value) -> Interval:
  """Bounds of each element of a value, pulled back through affine equations before linear bounds are put in."""
  back = forward.boxes.backward.prepared(value)
  forms = {j: forward.of(v) for j, v in back.ends(value).items()}
  sizes = {j: forward.size(form) for j, form in forms.items()} if back.round_outward else {}
  roundings = steps(back.program)

  def least(i, sign):
    found = back.back(element(value, i, sign))
    bias = found.offset
    total = jnp.zeros((sum(v.size for v in forward.inputs),), value.dtype)
    for j, row in found.rows.items():
      a, form = dense(row), forms[j]
      for part, end in ((jnp.maximum(a, 0), 'lower'), (jnp.minimum(a, 0), 'upper')):
        total += jnp.tensordot(getattr(form.coefficients, end), part, part.ndim).astype(value.dtype)
        bias += dot(part, getattr(form.bias, end)).astype(bias.dtype)
      if back.round_outward:
        u = float(jnp.finfo(a.dtype).eps) / 2
        bias -= 2 * gamma(a.size + roundings, u) * dot(jnp.abs(a), sizes[j]).astype(bias.dtype)
    return forward.least(total, bias)

  flat = over_rows(lambda i: Interval(least(i, 1), -least(i, -1)), jnp.arange(value.size), width(back.program))
  return Interval(flat.lower.reshape(value.shape), flat.upper.reshape(value.shape))
