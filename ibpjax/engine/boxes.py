"""Boxes: bounds of the values of a program, and what follows from them for each equation and each output."""
from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp

from ibpjax.composites.softmax import OF_EXPONENTS
from ibpjax.core.program import Equation, Program, Value, source_line
from ibpjax.core.row import MOVES
from ibpjax.core.sets import (
  InputSet,
  Intermediates,
  Interval,
  as_interval,
  intersection,
  is_set,
  is_unbounded,
  unbounded,
)
from ibpjax.engine.backward import BackwardPass
from ibpjax.engine.elements import bound_elements
from ibpjax.engine.exactness import Exact
from ibpjax.primitives import table
from ibpjax.rules import accuracy, relaxations, rounding
from ibpjax.rules.planes import LinearRelaxation
from ibpjax.rules.rounding_backward import certain
from ibpjax.rules.slopes import Lines, constant

T = TypeVar('T')


class Boxes:
  """Bounds of the values of a program, as far as it has been run on sets.

  Attributes:
    program: the program.
    env: value id -> Interval for perturbed values, array for known ones.
    backward: pulls functionals back through it; to be prepared.
    lines: the choice of slopes of its planes.
    round_outward: whether bounds allow for rounding.
    intersect: whether bounds that are found otherwise are intersected with those of interval arithmetic.
    preactivations: value id -> the nonlinear equation that first acts on the value.
    near: the values that are affine in the inputs, one of which at least is no box.
    exact: the values whose boxes are their exact ranges; none if inputs are `related`, by what is known outside.
    masked: the values in which an end that is infinite on the other side is no overflow but a known element.
  """

  def __init__(self, program: Program, inputs: Sequence[Any], lines: Lines, round_outward: bool, intersect: bool,
               related: bool):
    self.program, self.lines, self.round_outward, self.intersect = program, lines, round_outward, intersect
    boxes = [x.hull if is_set(x) else x for x in inputs]
    self.env = program.environment(rounding.normal(boxes) if round_outward else boxes)
    sets: dict[int, InputSet] = {v.id: x for v, x in zip(program.inputs, inputs)
                                 if is_set(x) and not isinstance(x, Interval)}
    self.backward = BackwardPass(program, self.env, sets, round_outward)
    self.near = set(sets)
    self.exact = Exact(program, {v.id for v in program.inputs} if related else sets)
    self.preactivations: dict[int, Equation] = {}
    self.masked: set[int] = set()
    self._found: dict[Any, Any] = {}

  def once(self, f: Callable[..., T], eqn: Equation, *options: Hashable) -> T:
    """`f(self, eqn, *options)`, computed once; the bounds of the operands of the equation do not change any more."""
    key = f, eqn.outputs[0].id, options
    if key not in self._found:
      self._found[key] = f(self, eqn, *options)
    return self._found[key]

  def run(self, program: Program, inputs: Sequence[Any]) -> list[Any]:
    """The bounds of the outputs of a program inside of this one."""
    raise NotImplementedError

  def operands(self, eqn: Equation) -> list[Any]:
    """What an equation acts on: boxes without NaN, and arrays."""
    masks = keeps_masks(eqn)
    return [nan_to_unbounded(x, masks and v.id in self.masked) if is_set(x) else x
            for v, x in ((v, self.env[v.id]) for v in eqn.inputs)]

  def reach(self, dtype: Any) -> dict[int, Any]:
    """Id of a perturbed input -> its greatest absolute values, in float32, or float64 if that is `dtype` or its own."""
    inputs = {v.id: self.env[v.id] for v in self.program.inputs if v.id in self.program.perturbed}
    wide = jnp.float64 if jnp.float64 in (dtype, *(x.dtype for x in inputs.values())) else jnp.float32
    return {i: rounding.magnitude(x).astype(wide) for i, x in inputs.items()}

  def relaxation(self, eqn: Equation, lines: Lines | None = None,
                 operands: Sequence[Any] | None = None) -> LinearRelaxation | None:
    """The planes of an equation over the boxes of its operands; None where these are its own box.

    Args:
      eqn: the equation.
      lines: the choice of slopes, if another than that of the run.
      operands: the boxes, if others.
    """
    lines = self.lines if lines is None else lines
    if lines is constant or not jnp.issubdtype(eqn.outputs[0].dtype, jnp.floating) or (
        self.round_outward and not certain(eqn)):
      return None
    operands = self.operands(eqn) if operands is None else operands
    return relaxations.planes(eqn, operands, lines, self.run, accuracy.unit(eqn) if self.round_outward else 0.)

  def by_rows(self, v: Value) -> Interval:
    """Bounds of a value from its elements, pulled back to the last nonlinear values or the inputs."""
    return self.tightened(v, bound_elements(self.backward.prepared(v), v))

  def tightened(self, v: Value, x: Interval) -> Interval:
    """Bounds found for a value, with the known infinite elements that it may have, and those that may be NaN."""
    if self.round_outward:
      x = unbounded(x, self.unknown(v))
    if v.id not in self.masked:
      return x
    x, box = nan_to_unbounded(x), self.env[v.id]
    known = jnp.isinf(box.lower) & (box.lower == box.upper)
    return Interval(jnp.where(known, box.lower, x.lower), jnp.where(known, box.upper, x.upper))

  def unknown(self, v: Value) -> Any:
    """Where interval arithmetic knows nothing of a value: it may be NaN."""
    return is_unbounded(nan_to_unbounded(self.env[v.id], v.id in self.masked))

  def output(self, v: Value, elide: bool) -> Interval:
    """The bounds of an output; what overflowed or turned into NaN is unbounded."""
    x = self.env[v.id]
    if v.id in self.program.perturbed and v.dtype != jnp.bool_ and (elide or v.id in self.near):
      x = self.by_rows(v)
    return nan_to_unbounded(as_interval(jnp.asarray(x) if not is_set(x) else x), v.id in self.masked)

  def output_by(self, v: Value, bound: Callable[[Value], Interval]) -> Interval:
    """The bounds of an output that another method finds, where it may know more than interval arithmetic."""
    if v.id not in self.program.perturbed or v.dtype == jnp.bool_ or v.id in self.exact:
      return self.output(v, elide=False)
    x = self.tightened(v, bound(v))
    return nan_to_unbounded(intersection(x, self.by_rows(v)) if self.intersect else x, v.id in self.masked)

  def intermediates(self) -> Intermediates:
    """The bounds of the operands of all nonlinear equations; masks among them stay infinite on one side."""
    bounds = {i: nan_to_unbounded(self.env[i], i in self.masked) for i in self.preactivations}
    return Intermediates(bounds, self.sources())

  def sources(self) -> tuple[tuple[int, str, str], ...]:
    """(value id, operation, line) of the operands of all nonlinear equations."""
    return tuple((i, e.name, source_line(e)) for i, e in self.preactivations.items())


def keeps_masks(eqn: Equation) -> bool:
  """Whether an equation takes known infinite elements for what they are."""
  row = table.of(eqn)
  return row.places or row.selects or row.accuracy == MOVES or isinstance(eqn.key, OF_EXPONENTS)


def nan_to_unbounded(x: Interval, masked: bool = False) -> Interval:
  """Ends that are NaN or overflowed past their own side say nothing: they become infinite. Known ones are `masked`."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  if masked:
    return Interval(jnp.where(jnp.isnan(x.lower), -jnp.inf, x.lower), jnp.where(jnp.isnan(x.upper), jnp.inf, x.upper))
  return Interval(jnp.where(x.lower < jnp.inf, x.lower, -jnp.inf), jnp.where(x.upper > -jnp.inf, x.upper, jnp.inf))
