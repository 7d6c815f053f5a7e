"""Zonotopes: every value as an affine function of the inputs and of fresh symbols, one for what each operation adds."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.core.products import gamma
from ibpjax.core.program import Equation, Value
from ibpjax.core.sets import Interval, centre_radius, pytree
from ibpjax.core.subnormal import least_kept
from ibpjax.engine.boxes import Boxes
from ibpjax.engine.functional import Dense, LinearFunctional, Row
from ibpjax.engine.intervals import IntervalPass
from ibpjax.engine.prepare import named_as, precise, prepare
from ibpjax.primitives import table
from ibpjax.rules import affine
from ibpjax.rules.planes import middle
from ibpjax.rules.rounding import magnitude
from ibpjax.rules.rounding_backward import of_forms
from ibpjax.rules.slopes import parallel


def zonotope(f: Callable, *, intermediates: bool = False, intersect: bool = False,
             round_outward: bool = False) -> Callable:
  """Zonotopes: bounds of `f` by affine functions of its inputs and of symbols in [-1, 1], carried forward in one pass.

  The returned function takes and returns what that of `lbp` does, for one example: `jax.vmap` makes the batch. The
  result of a nonlinear operation lies in a band around a line, whose width times a fresh symbol cancels where values
  are subtracted later. It carries a coefficient for each pair of an element of a value and an element of an input or of
  the result of a nonlinear operation before it.

  Args:
    f: any JAX function of supported primitives, on one example. Scans are bounded by their boxes.
    intermediates: also return the bounds of the operands of nonlinear operations: (bounds, Intermediates).
    intersect, round_outward: as in `crown`.

  Raises:
    NotImplementedError, TypeError, ValueError: as `ibp`.

  Source: Singh et al., Fast and Effective Robustness Certification (DeepZ), NeurIPS 2018.
  """
  def bounded(*args, **kwargs):
    with precise(round_outward):
      prepared = prepare(f, args, kwargs)
      forms: dict[int, Zonotope] = {}
      boxes = IntervalPass(prepared.program, prepared.inputs, lines=parallel, round_outward=round_outward,
                           intersect=intersect, tighten=lambda boxes, v: bound_elements(boxes, v, forms))
      result = prepared.result([boxes.output_by(v, lambda v: bound_elements(boxes, v, forms))
                                for v in prepared.program.outputs])
    return (result, boxes.intermediates()) if intermediates else result
  return named_as(f, bounded)


@pytree
class Zonotope:
  """bias + sum_i <coefficients[i], x_i> + [-slack, slack], where x_i is an input or symbols, all in [-1, 1].

  Attributes:
    bias, slack: arrays of the shape of the value; what is not known has an infinite slack.
    coefficients: id of an input, or of the result of a nonlinear operation -> array (its size, *value shape).
  """
  bias: Any
  slack: Any
  coefficients: dict[int, Any]

  def size(self, reach: dict[int, Any]) -> Any:
    """What the absolute values of all terms sum to, for inputs of absolute values up to `reach`, in its dtype."""
    dtype = next(iter(reach.values())).dtype
    bias, slack, terms = jax.tree.map(lambda a: jnp.abs(a).astype(dtype), (self.bias, self.slack, self.coefficients))
    return bias + slack + sum(jnp.tensordot(reach[i].ravel() if i in reach else jnp.ones(len(a), dtype), a, 1)
                              for i, a in terms.items())


def bound_elements(boxes: Boxes, value: Value, forms: dict[int, Zonotope]) -> Interval:
  """Bounds of each element of a value; zonotopes of values that are missing on the way are added to `forms`, by id."""
  inputs = {v.id: v for v in boxes.program.inputs if v.id in boxes.program.perturbed}
  for v in (v for v in inputs.values() if v.id not in forms):
    one, zero = jnp.eye(v.size, dtype=v.dtype).reshape(v.size, *v.shape), jnp.zeros(v.shape, v.dtype)
    forms[v.id] = Zonotope(zero, zero, {v.id: one})
  for eqn in boxes.program.equations:
    if eqn.outputs[0].id not in forms and all(v.id in boxes.env for v in eqn.outputs) and any(
        v.id in boxes.program.perturbed for v in eqn.inputs):
      forms |= zip((v.id for v in eqn.outputs), _through(boxes, eqn, forms), strict=True)
  form = forms[value.id]

  def range_(bias, own):
    rows: dict[int, Row] = {i: Dense(a.reshape(inputs[i].shape).astype(inputs[i].dtype)) for i, a in own.items()}
    return boxes.backward.concretise(LinearFunctional(rows, bias))
  own = {i: a.reshape(len(a), -1) for i, a in form.coefficients.items() if i in inputs}
  found = jax.tree.map(lambda a: a.reshape(value.shape), jax.vmap(range_, (0, -1))(form.bias.ravel(), own))
  spread = form.slack + sum(jnp.abs(a).sum(0) for i, a in form.coefficients.items() if i not in inputs)
  if boxes.round_outward:
    info, count = jnp.finfo(value.dtype), sum(map(len, form.coefficients.values())) + 8
    spread += 2 * gamma(count, float(info.eps)) * (spread + magnitude(found)) + count * least_kept(value.dtype)
  known, box = jnp.isfinite(form.slack), boxes.env[value.id]
  return Interval(jnp.where(known, found.lower - spread, box.lower), jnp.where(known, found.upper + spread, box.upper))


def _through(boxes: Boxes, eqn: Equation, forms: dict[int, Zonotope]) -> list[Zonotope]:
  """The zonotopes of the outputs of an equation."""
  operands, flags = boxes.operands(eqn), [v.id in boxes.program.perturbed for v in eqn.inputs]
  linear = table.is_affine(eqn, flags)
  planes: Any = None if linear else boxes.once(Boxes.relaxation, eqn)
  if planes is None and not linear:
    return [_with_symbols(v, boxes.env[v.id], Zonotope(0., 0., {})) for v in eqn.outputs]
  out = eqn.outputs[0]
  zeros = [jnp.zeros(v.shape, out.dtype) for v in eqn.inputs]  # a predicate is nothing that a line is multiplied by
  own = {i: forms[v.id] if jnp.issubdtype(v.dtype, jnp.floating) else Zonotope(zeros[i], zeros[i], {})
         for i, v in enumerate(eqn.inputs) if flags[i]}
  slacks = {i: Interval(-x.slack, x.slack) for i, x in own.items()}
  if linear:
    def push(*xs):
      return affine.push_linear(eqn, operands, dict(zip(own, xs)))
    biases = affine.run(eqn, *(own[i].bias if i in own else x for i, x in enumerate(operands)))
    off = affine.push_forward(eqn, operands, slacks)
  else:
    line, rest = middle(planes, [operands[i] for i in own])
    def push(*xs):
      return [line(*xs)]
    biases, off = push(*(x.bias for x in own.values())), [planes.push([*slacks.values()])]
  def coefficients(i):  # of a zonotope that lacks them, 0
    count = next(len(x.coefficients[i]) for x in own.values() if i in x.coefficients)
    return jax.vmap(push)(*(x.coefficients.get(i, jnp.zeros((count, *x.bias.shape), x.bias.dtype))
                            for x in own.values()))
  moved = {i: coefficients(i) for i in dict.fromkeys(i for x in own.values() for i in x.coefficients)}
  found = [Zonotope(bias, jnp.where(jnp.isnan(x.upper), jnp.inf, jnp.maximum(x.upper, -x.lower)),
                    {i: a[k] for i, a in moved.items()}) for k, (bias, x) in enumerate(zip(biases, off, strict=True))]
  if boxes.round_outward and len(eqn.outputs) == 1:
    reach = boxes.reach(out.dtype)
    sizes = [own[i].size(reach).astype(own[i].bias.dtype) if i in own else magnitude(x) for i, x in enumerate(operands)]
    most: Any = sum(x.sum() for x in reach.values()) + sum(map(len, found[0].coefficients.values()))
    error = of_forms(eqn, planes, operands, sizes, flags, boxes.env[out.id], most)
    found = found if error is None else [dataclasses.replace(found[0], slack=found[0].slack + error)]
  if planes is not None:
    found = [_with_symbols(out, rest, found[0])]
  return [jax.tree.map(lambda a, v=v: a.astype(v.dtype), x) for v, x in zip(eqn.outputs, found)]


def _with_symbols(v: Value, x: Interval, form: Zonotope) -> Zonotope:
  """A zonotope and an interval, added: finite elements of the interval have a symbol each."""
  if not jnp.issubdtype(v.dtype, jnp.floating):
    return form
  centre, radius = centre_radius(x)
  kept = jnp.where(jnp.isfinite(radius), radius, 0).ravel()
  return Zonotope(form.bias + centre, form.slack + jnp.where(jnp.isfinite(radius), jnp.zeros_like(radius), jnp.inf),
                  form.coefficients | {v.id: jnp.diag(kept).reshape(v.size, *v.shape)})
