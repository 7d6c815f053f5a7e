"""Zonotopes: every value as an affine function of the inputs and of fresh symbols, one for what each operation adds."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
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

  The returned function takes the arguments of `f` with input sets (Intervals, balls, polytopes) in the place of arrays,
  as for `ibp`, and returns the tree of `f`'s result with an Interval for each array. It is written for one example:
  `jax.vmap` makes the batch. A nonlinear operation lies in a band around a line; its width times a fresh symbol is
  what it adds, which cancels where values are subtracted later. It carries a coefficient for each pair of an element
  of a value and an element of an input or of the result of a nonlinear operation before it.

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
  """bias + sum_i <inputs[i], input i> + sum_j <symbols[j], e_j> + [-slack, slack], for e_j in [-1, 1].

  Attributes:
    bias, slack: arrays of the shape of the value; what is not known has an infinite slack.
    inputs: input id -> coefficients (input size, *value shape).
    symbols: id of the result of a nonlinear operation -> coefficients (its size, *value shape).
  """
  bias: Any
  slack: Any
  inputs: dict[int, Any]
  symbols: dict[int, Any]

  def size(self, reach: dict[int, Any]) -> Any:
    """What the absolute values of all terms sum to, for inputs of absolute values up to `reach`."""
    bias, slack, symbols, inputs = (jax.tree.map(lambda a: jnp.abs(a).astype(next(iter(reach.values())).dtype), x)
                                    for x in (self.bias, self.slack, self.symbols, self.inputs))
    return bias + slack + sum(a.sum(0) for a in symbols.values()) + sum(
        jnp.tensordot(reach[i], a, 1) for i, a in inputs.items())


def bound_elements(boxes: Boxes, value: Value, forms: dict[int, Zonotope]) -> Interval:
  """Bounds of each element of a value.

  Args:
    boxes: a run that has come as far as the value.
    value: the value.
    forms: value id -> its zonotope, of values before it; new ones are added.
  """
  program = boxes.program
  for v in (v for v in program.inputs if v.id in program.perturbed and v.id not in forms):
    one, zero = jnp.eye(v.size, dtype=v.dtype).reshape(v.size, *v.shape), jnp.zeros(v.shape, v.dtype)
    forms[v.id] = Zonotope(zero, zero, {v.id: one}, {})
  for eqn in program.equations:
    if eqn.outputs[0].id not in forms and all(v.id in boxes.env for v in eqn.outputs) and any(
        v.id in program.perturbed for v in eqn.inputs):
      forms |= zip((v.id for v in eqn.outputs), _through(boxes, eqn, forms), strict=True)
  form = forms[value.id]

  def range_(bias, inputs):
    rows: dict[int, Row] = {v.id: Dense(inputs[v.id].reshape(v.shape).astype(v.dtype))
                            for v in program.inputs if v.id in inputs}
    return boxes.backward.concretise(LinearFunctional(rows, bias))
  flat = jax.tree.map(lambda a: a.reshape(*a.shape[:a.ndim - len(value.shape)], -1), form)
  found = jax.tree.map(lambda a: a.reshape(value.shape), jax.vmap(range_, (0, -1))(flat.bias, flat.inputs))
  spread = form.slack + sum(jnp.abs(a).sum(0) for a in form.symbols.values())
  if boxes.round_outward:
    info, count = jnp.finfo(value.dtype), sum(map(len, form.symbols.values())) + 8
    spread += 2 * gamma(count, float(info.eps)) * (spread + magnitude(found)) + count * least_kept(value.dtype)
  known, box = jnp.isfinite(form.slack), boxes.env[value.id]
  return Interval(jnp.where(known, found.lower - spread, box.lower), jnp.where(known, found.upper + spread, box.upper))


def _through(boxes: Boxes, eqn: Equation, forms: dict[int, Zonotope]) -> list[Zonotope]:
  """The zonotopes of the outputs of an equation."""
  operands, flags = boxes.operands(eqn), [v.id in boxes.program.perturbed for v in eqn.inputs]
  slots = [i for i, p in enumerate(flags) if p]
  own = [forms[eqn.inputs[i].id] for i in slots]
  linear = table.is_affine(eqn, flags)
  planes = None if linear else boxes.once(Boxes.relaxation, eqn)
  if planes is None and not linear:
    return [_fresh(v, boxes.env[v.id], jnp.zeros((), v.dtype), 0.) for v in eqn.outputs]
  if planes is None:
    def push(*xs):
      return affine.push_linear(eqn, operands, dict(zip(slots, xs)))
    put = dict(zip(slots, own))
    biases = affine.run(eqn, *(put[i].bias if i in put else x for i, x in enumerate(operands)))
    off = affine.push_forward(eqn, operands, {i: Interval(-x.slack, x.slack) for i, x in put.items()})
  else:
    line, rest = middle(planes, [operands[i] for i in slots])
    def push(*xs):
      return [line(*xs)]
    biases = push(*(x.bias for x in own))
    off = [planes.push([Interval(-x.slack, x.slack) for x in own])]
  slacks = [jnp.where(jnp.isnan(x.upper), jnp.inf, jnp.maximum(x.upper, -x.lower)) for x in off]
  moved = [_pushed(push, own, part) for part in ('inputs', 'symbols')]
  found = [Zonotope(bias, slack, *({i: a[k] for i, a in part.items()} for part in moved))
           for k, (bias, slack) in enumerate(zip(biases, slacks, strict=True))]
  out = eqn.outputs[0]
  if boxes.round_outward and len(eqn.outputs) == 1:
    wide = jnp.float64 if out.dtype == jnp.float64 else jnp.float32
    reach = {v.id: magnitude(boxes.env[v.id]).ravel().astype(wide) for v in boxes.program.inputs
             if v.id in boxes.program.perturbed}
    sizes = [magnitude(x) for x in operands]
    for i, form in zip(slots, own):
      sizes[i] = form.size(reach).astype(form.bias.dtype)
    most: Any = sum(x.sum() for x in reach.values()) + sum(map(len, found[0].symbols.values()))
    error = of_forms(eqn, planes, operands, sizes, flags, boxes.env[out.id], most)
    found = found if error is None else [dataclasses.replace(found[0], slack=found[0].slack + error)]
  if planes is not None:
    beside = _fresh(out, rest, found[0].bias, found[0].slack)
    found = [Zonotope(beside.bias, beside.slack, found[0].inputs, found[0].symbols | beside.symbols)]
  return [jax.tree.map(lambda a, v=v: a.astype(v.dtype), x) for v, x in zip(eqn.outputs, found)]


def _pushed(push: Callable[..., list[Any]], forms: Sequence[Zonotope], part: str) -> dict[int, list[Any]]:
  """Coefficients of some zonotopes as a linear map pushes them; those that one lacks are 0."""
  keys = dict.fromkeys(i for x in forms for i in getattr(x, part))
  count = {i: next(len(getattr(x, part)[i]) for x in forms if i in getattr(x, part)) for i in keys}
  return {i: jax.vmap(push)(*(getattr(x, part).get(i, jnp.zeros((count[i], *x.bias.shape), x.bias.dtype))
                              for x in forms)) for i in keys}


def _fresh(v: Value, x: Interval, bias: Any, slack: Any) -> Zonotope:
  """bias -+ slack + x, where the finite elements of x have a symbol each."""
  if not jnp.issubdtype(v.dtype, jnp.floating):
    return Zonotope(jnp.zeros(v.shape, v.dtype), jnp.zeros(v.shape, v.dtype), {}, {})
  centre, radius = centre_radius(x)
  kept = jnp.where(jnp.isfinite(radius), radius, 0).ravel()
  symbols = jnp.diag(kept).reshape(v.size, *v.shape)
  return Zonotope(bias + centre, slack + jnp.where(jnp.isfinite(radius), 0, jnp.inf), {}, {v.id: symbols})
