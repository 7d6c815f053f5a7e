"""The interval pass: one run of a program on boxes, which every method starts from."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.composites.softmax import OF_EXPONENTS
from ibpjax.composites.univariate import Univariate
from ibpjax.core.program import Equation, Program, Value, rebind, source_line
from ibpjax.core.row import MOVES
from ibpjax.core.sets import (
  Intermediates,
  Interval,
  LpBall,
  as_interval,
  intersection,
  is_set,
  is_unbounded,
  unbounded,
)
from ibpjax.engine.exactness import Exact
from ibpjax.engine.functional import BackwardPass
from ibpjax.primitives import control, table
from ibpjax.rules import accuracy, affine, images, relaxations, rounding
from ibpjax.rules.elementwise import image as elementwise_image
from ibpjax.rules.planes import LinearRelaxation
from ibpjax.rules.rounding_backward import Errors, certain
from ibpjax.rules.slopes import Lines
from ibpjax.xla.materialize import materialize_cotangents


class IntervalPass:
  """One run of a program on boxes; keeps the bounds of all values.

  Attributes:
    env: value id -> Interval for perturbed values, array for known ones.
    preactivations: value id -> the nonlinear equation that first acts on the value.
    returned: whether `intermediates` are the caller's: what their derivatives are multiplied by is then computed once.
    exact: the values whose boxes are their exact ranges; none if inputs are related, by what is known outside.
    masked: the values in which an end that is infinite on the other side is no overflow but a known element.
  """

  def __init__(self, program: Program, inputs: Sequence[Any], given: Intermediates | None = None,
               round_outward: bool = False, tighten: Callable[[IntervalPass, Value], Interval] | None = None,
               related: bool = False, intersect: bool = False, returned: bool = False):
    self.program = program
    self.round_outward = round_outward
    self.intersect = intersect
    self.returned = returned
    self.tighten = tighten
    balls = {v.id: x for v, x in zip(program.inputs, inputs) if isinstance(x, LpBall)}
    boxes = [x.hull if isinstance(x, LpBall) else x for x in inputs]
    self.env = program.environment(rounding.normal(boxes) if round_outward else boxes)
    errors = Errors(program, self.env, {}) if round_outward else None
    self.backward = BackwardPass(program, self.env, balls, errors=errors)
    self.near_balls = set(balls)  # values that are affine in the inputs, some ball among these
    self.exact = Exact(program, {v.id for v in program.inputs} if related else balls)
    self.relaxed: dict[int, LinearRelaxation | None] = {}  # by equation, what all rows share
    self.scanned: dict[int, Any] = {}
    self.preactivations: dict[int, Equation] = {}
    self.masked: set[int] = set()
    for eqn in program.equations:
      self._advance(eqn, {} if given is None else given.bounds)
    if given is not None and (unknown := set(given.bounds) - set(self.preactivations)):
      raise ValueError(f'intermediate bounds name the values {sorted(unknown)}, which are not among the operands of '
                       'nonlinear operations here: they belong to another function')

  def _advance(self, eqn: Equation, given: dict[int, Interval]) -> None:
    env = self.env
    perturbed = [v.id in self.program.perturbed for v in eqn.inputs]
    if not any(perturbed):
      env |= zip((v.id for v in eqn.outputs), rebind(eqn, *[env[v.id] for v in eqn.inputs]), strict=True)
      return
    if table.is_affine(eqn, perturbed):
      if any(v.id in self.near_balls for v in eqn.inputs):
        self.near_balls |= {v.id for v in eqn.outputs}
    else:
      for v in (v for v, p in zip(eqn.inputs, perturbed) if p and v.id not in self.preactivations
                and jnp.issubdtype(v.dtype, jnp.floating)):
        self.preactivations[v.id] = eqn
        if v.id in given:
          box = _accepted(given[v.id], v)
          env[v.id] = self._met(v, rounding.normal([box])[0] if self.round_outward else box)
        elif self.tighten is not None and v.id not in self.exact:
          env[v.id] = self._met(v, self.tightened(v, self.tighten(self, v)))
        elif v.id in self.near_balls and v.id not in self.backward.balls:
          env[v.id] = self._by_rows(v)
        if self.returned:
          env[v.id] = materialize_cotangents(env[v.id])
    operands = [env[v.id] for v in eqn.inputs]
    row = table.of(eqn)
    masks = (row.places and not all(perturbed)) or (
        _keeps_masks(eqn) and any(v.id in self.masked for v in eqn.inputs))
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

  def operands(self, eqn: Equation) -> list[Any]:
    """What an equation acts on: boxes without NaN, and arrays."""
    masks = _keeps_masks(eqn)
    return [nan_to_unbounded(x, masks and v.id in self.masked) if is_set(x) else x
            for v, x in ((v, self.env[v.id]) for v in eqn.inputs)]

  def planes(self, eqn: Equation, lines: Lines) -> LinearRelaxation | None:
    """The planes of an equation, computed once; all callers of one run choose the same lines."""
    if id(eqn) not in self.relaxed:
      self.relaxed[id(eqn)] = self.relaxation(eqn, lines)
    return self.relaxed[id(eqn)]

  def relaxation(self, eqn: Equation, lines: Lines, operands: Sequence[Any] | None = None) -> LinearRelaxation | None:
    """The planes of an equation over the boxes of its operands, or over others; None where these are its own box."""
    if not jnp.issubdtype(eqn.outputs[0].dtype, jnp.floating) or (self.round_outward and not certain(eqn)):
      return None
    operands = self.operands(eqn) if operands is None else operands
    return relaxations.planes(eqn, operands, lines, self.run, accuracy.unit(eqn) if self.round_outward else 0.)

  def _by_rows(self, v: Value) -> Interval:
    """Bounds of a value from its rows, pulled back to the last nonlinear values or the inputs."""
    return self.tightened(v, self.backward.bound_elements(v))

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

  def _met(self, v: Value, x: Interval) -> Interval:
    """Bounds found for a value, intersected with those of interval arithmetic if the run does that."""
    return intersection(x, self.env[v.id]) if self.intersect else x

  def output(self, v: Value, elide: bool) -> Interval:
    """The bounds of an output; what overflowed or turned into NaN is unbounded."""
    x = self.env[v.id]
    if v.id in self.program.perturbed and v.dtype != jnp.bool_ and (elide or v.id in self.near_balls):
      x = self._by_rows(v)
    return nan_to_unbounded(as_interval(jnp.asarray(x) if not is_set(x) else x), v.id in self.masked)

  def output_by(self, v: Value, bound: Callable[[Value], Interval]) -> Interval:
    """The bounds of an output that another method finds, where it may know more than interval arithmetic."""
    if v.id not in self.program.perturbed or v.dtype == jnp.bool_ or v.id in self.exact:
      return self.output(v, elide=False)
    x = self.tightened(v, bound(v))
    return nan_to_unbounded(intersection(x, self._by_rows(v)) if self.intersect else x, v.id in self.masked)

  def intermediates(self) -> Intermediates:
    """The bounds of the operands of all nonlinear equations; masks among them stay infinite on one side."""
    bounds = {i: nan_to_unbounded(self.env[i], i in self.masked) for i in self.preactivations}
    return Intermediates(bounds, self.sources())

  def sources(self) -> tuple[tuple[int, str, str], ...]:
    """(value id, operation, line) of the operands of all nonlinear equations."""
    return tuple((i, e.name, source_line(e)) for i, e in self.preactivations.items())


def _keeps_masks(eqn: Equation) -> bool:
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


def _accepted(x: Interval, v: Value) -> Interval:
  """Bounds handed in for a value, checked for type and shape."""
  if not isinstance(x, Interval):
    raise TypeError(f'intermediate bounds of value {v.id} are of type {type(x).__name__}; bounds are Intervals. (An '
                    'ExpectedInterval is no bound: it holds a range in expectation over random weights only)')
  if x.shape != v.shape:
    raise ValueError(f'intermediate bounds of value {v.id} have shape {x.shape}, the value has {v.shape}: '
                     'they belong to another function or to other shapes')
  return Interval(x.lower.astype(v.dtype), x.upper.astype(v.dtype))
