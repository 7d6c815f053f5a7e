"""The interval pass: one run of a program on boxes, which every method starts from."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.composites.univariate import Univariate
from ibpjax.core.directed import DOWN, UP, converted
from ibpjax.core.program import Equation, Program, Value, rebind
from ibpjax.core.sets import Intermediates, Interval, intersection, is_set
from ibpjax.engine.boxes import Boxes, keeps_masks, nan_to_unbounded
from ibpjax.primitives import control, table
from ibpjax.rules import accuracy, affine, images, rounding
from ibpjax.rules.elementwise import image as elementwise_image
from ibpjax.rules.slopes import Lines, constant
from ibpjax.xla.materialize import materialize_cotangents


class IntervalPass(Boxes):
  """One run of a program on boxes; keeps the bounds of all values.

  Args:
    program: the program.
    inputs: sets and arrays for its inputs.
    lines: the choice of slopes of its planes.
    given: bounds of operands of nonlinear operations, of some or all, in the place of those computed here.
    intersect_given: whether these are intersected with those computed here, as far as interval arithmetic goes.
    tighten: (run so far, operand of a nonlinear operation) -> its bounds by another method.
    round_outward: allow for rounding.
    related: whether the inputs are related by what is known outside, so that no box is an exact range.
    intersect: intersect bounds by other methods with those of interval arithmetic.
    returned: whether `intermediates` are the caller's: what their derivatives are multiplied by is then computed once.
  """

  def __init__(self, program: Program, inputs: Sequence[Any], *, lines: Lines = constant,
               given: Intermediates | None = None, intersect_given: bool = False,
               tighten: Callable[[Boxes, Value], Interval] | None = None, round_outward: bool = False,
               related: bool = False, intersect: bool = False, returned: bool = False):
    super().__init__(program, inputs, lines, round_outward, intersect, related)
    self.tighten, self.returned, self.intersect_given = tighten, returned, intersect_given
    self.given = {} if given is None else given.bounds
    for eqn in program.equations:
      self._advance(eqn)
    if unknown := set(self.given) - set(self.preactivations):
      raise ValueError(f'intermediate bounds name the values {sorted(unknown)}, which are not among the operands of '
                       'nonlinear operations here: they belong to another function')

  def _advance(self, eqn: Equation) -> None:
    """The bounds of the outputs of the next equation."""
    env = self.env
    perturbed = [v.id in self.program.perturbed for v in eqn.inputs]
    if not any(perturbed):
      env |= zip((v.id for v in eqn.outputs), rebind(eqn, *[env[v.id] for v in eqn.inputs]), strict=True)
      return
    if table.is_affine(eqn, perturbed):
      if any(v.id in self.near for v in eqn.inputs):
        self.near |= {v.id for v in eqn.outputs}
    else:
      for v in self.backward.moving(eqn):
        if v.id not in self.preactivations:
          self.preactivations[v.id] = eqn
          env[v.id] = self._before_it_bends(v)
    operands = [env[v.id] for v in eqn.inputs]
    row = table.of(eqn)
    masks = (row.places and not all(perturbed)) or (
        keeps_masks(eqn) and any(v.id in self.masked for v in eqn.inputs))
    careful = masks or row.many or not (table.is_affine(eqn, perturbed) or row.keeps_unknown)
    if careful:
      operands = [nan_to_unbounded(x, masks and v.id in self.masked) if is_set(x) else x
                  for v, x in zip(eqn.inputs, operands)]
    out = rounding.outward(self._step, eqn, operands) if self.round_outward else self._step(eqn, operands)
    if masks:
      self.masked |= {v.id for v in eqn.outputs}
    for v, x in zip(eqn.outputs, out, strict=True):
      x = jax.tree.map(lambda a, v=v: a.astype(v.dtype), x)
      env[v.id] = nan_to_unbounded(x, masks) if careful and is_set(x) else x

  def _before_it_bends(self, v: Value) -> Interval:
    """The bounds of the operand of a nonlinear equation: those given, else by another method, else its own."""
    box = self.env[v.id]
    if v.id in self.given:
      found = _accepted(self.given[v.id], v)
      found = rounding.normal([found])[0] if self.round_outward else found
      if self.intersect_given:
        found = _in_order(intersection(found, nan_to_unbounded(box, v.id in self.masked)))
      elif self.intersect:
        found = intersection(found, box)
    elif self.tighten is not None and v.id not in self.exact:
      found = self.tightened(v, self.tighten(self, v))
      found = intersection(found, box) if self.intersect else found
    else:
      found = self.by_rows(v) if v.id in self.near and v.id not in self.backward.sets else box
    return materialize_cotangents(found) if self.returned else found

  def _step(self, eqn: Equation, operands: list[Any]) -> list[Any]:
    """The bounds of one equation, some of whose operands are Intervals."""
    if eqn.bodies:
      return control.image(eqn, operands, self.run)
    if isinstance(eqn.key, Univariate):
      return [eqn.key.image(operands, self.run, accuracy.unit(eqn) if self.round_outward else 0.)]
    if table.is_affine(eqn, [is_set(x) for x in operands]):
      return affine.image(eqn, operands)
    out = images.image(eqn, operands)
    return [elementwise_image(eqn, operands)] if out is None else out

  def run(self, program: Program, inputs: Sequence[Any]) -> list[Any]:
    """The bounds of the outputs of a program inside of this one."""
    env = IntervalPass(program, inputs, round_outward=self.round_outward).env
    return [env[v.id] for v in program.outputs]


def _in_order(x: Interval) -> Interval:
  """Ends in order: bounds that miss each other by rounding have what lies between them in common."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  return Interval(jnp.minimum(x.lower, x.upper), jnp.maximum(x.lower, x.upper))


def _accepted(x: Interval, v: Value) -> Interval:
  """Bounds handed in for a value, checked for type and shape."""
  if not isinstance(x, Interval):
    raise TypeError(f'intermediate bounds of value {v.id} are of type {type(x).__name__}; bounds are Intervals. (An '
                    'ExpectedInterval is no bound: it holds a range in expectation over random weights only)')
  if x.shape != v.shape:
    raise ValueError(f'intermediate bounds of value {v.id} have shape {x.shape}, the value has {v.shape}: '
                     'they belong to another function or to other shapes')
  return x if x.dtype == v.dtype else Interval(converted(x.lower, v.dtype, DOWN), converted(x.upper, v.dtype, UP))
