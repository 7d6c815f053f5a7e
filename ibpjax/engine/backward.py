"""The backward pass: linear functionals pulled back through a program, through affine equations and between planes."""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ibpjax.core.products import off_by
from ibpjax.core.program import Equation, Program, Value
from ibpjax.core.sets import InputSet, Interval
from ibpjax.engine import patches
from ibpjax.engine.functional import Dense, LinearFunctional, Row, add, dense
from ibpjax.engine.patches import Patch
from ibpjax.primitives import table
from ibpjax.rules import affine, rounding_backward
from ibpjax.rules.rounding import magnitude
from ibpjax.xla.materialize import materialize


class Passage(Protocol):
  """What pulls rows back through an equation that is not affine: planes, or the steps of a scan."""

  def pull_rows(self, rows: Sequence[Any]) -> tuple[list[Any], Any]:
    """A lower bound of the sum of `<rows[i], outputs[i]>`: rows on the perturbed operands, and an offset."""


@runtime_checkable
class Cuttable(Protocol):
  """A passage through an equation that acts element by element."""

  def at(self, cut: Callable[[Any], Any]) -> Passage:
    """The passage for some elements, which `cut` takes out of an array of the shape of the result."""


@dataclasses.dataclass(frozen=True)
class Step:
  """How functionals pass an equation: through its `passage`, or as it is affine (None), and what rounding may move."""
  passage: Passage | None
  error: Any


@dataclasses.dataclass(frozen=True)
class BackwardPass:
  """Pulls functionals of one program back; prepared for some values, whose functionals it then takes, in loops too.

  Attributes:
    program: the program.
    env: value id -> Interval or array, for the known values and all possible ends of the pass.
    sets: value id -> InputSet, for the inputs that are no boxes.
    round_outward: whether bounds allow for rounding.
    steps: id of the first output of an equation -> how it is passed; where there is none, the pass ends.
  """
  program: Program
  env: dict[int, Any]
  sets: dict[int, InputSet]
  round_outward: bool
  steps: dict[int, Step] = dataclasses.field(default_factory=dict)

  def prepared(self, *values: Value, step: Callable[[Equation], Step | None] | None = None) -> BackwardPass:
    """The pass for functionals of some values, of which all that is common to them is computed here.

    Args:
      *values: the values.
      step: equation -> how it is passed, None where the pass ends; default at all that are not affine.
    """
    step, steps, reached = step or self.step, dict[int, Step](), {v.id for v in values}
    for eqn in reversed(self.program.equations):
      if any(v.id in reached for v in eqn.outputs) and (found := step(eqn)) is not None:
        steps[eqn.outputs[0].id] = found
        reached |= {v.id for v in self.moving(eqn)}
    return dataclasses.replace(self, steps=steps)

  def step(self, eqn: Equation, passage: Callable[[Equation], Passage | None] | None = None) -> Step | None:
    """How an equation is passed: by itself if it is affine, else through its `passage`; None where there is none."""
    linear = self.is_affine(eqn)
    way = None if linear or passage is None else passage(eqn)
    if way is None and not linear:
      return None
    single = self.round_outward and len(eqn.outputs) == 1  # those with more outputs only move data
    return Step(way, rounding_backward.error(self.program, self.env, eqn, way) if single else None)

  def is_affine(self, eqn: Equation) -> bool:
    """Whether an equation is affine in what is perturbed."""
    return table.is_affine(eqn, [v.id in self.program.perturbed for v in eqn.inputs])

  def moving(self, eqn: Equation) -> list[Value]:
    """The perturbed operands of an equation, but predicates."""
    return [v for v in eqn.inputs if v.id in self.program.perturbed and jnp.issubdtype(v.dtype, jnp.floating)]

  def ends(self, value: Value) -> dict[int, Value]:
    """The values at which the functionals of a value may end."""
    found, passed = {value.id: value}, set[int]()
    for eqn in reversed(self.program.equations):
      if any(v.id in found for v in eqn.outputs) and eqn.outputs[0].id in self.steps:
        passed |= {v.id for v in eqn.outputs}
        found |= {v.id: v for v in self.moving(eqn)}
    return {i: v for i, v in found.items() if i not in passed}

  def back(self, start: LinearFunctional) -> LinearFunctional:
    """A lower bound of a functional, on the values where the pass ends.

    Exact where all that is passed is affine and rounding is not allowed for.
    """
    rows, ends = dict(start.rows), dict[int, Row]()
    dtype = jnp.result_type(*(row.coefficients.dtype for row in rows.values())) if rows else None
    offset: Any = jnp.asarray(start.offset, dtype)
    for eqn in reversed(self.program.equations):
      if not any(v.id in rows for v in eqn.outputs):
        continue
      taken = [rows.pop(v.id, None) for v in eqn.outputs]
      if eqn.outputs[0].id not in self.steps:
        ends |= {v.id: row for v, row in zip(eqn.outputs, taken) if row is not None}
        continue
      pulled, more = self._pulled(eqn, taken)
      offset = offset + more.astype(offset.dtype)
      for v, row in zip((v for v in eqn.inputs if v.id in self.program.perturbed), pulled, strict=True):
        if jnp.issubdtype(v.dtype, jnp.floating):  # and no predicate
          if isinstance(row, Patch) and row.size >= v.size:
            row = Dense(row.dense())
          row = dataclasses.replace(row, coefficients=row.coefficients.astype(v.dtype))
          if v.id in rows:
            row = add(rows[v.id], row)
            if self.round_outward:
              error = jnp.finfo(v.dtype).eps * magnitude(self.env[v.id])
              offset = offset - _rounded(row, error).astype(offset.dtype)
          rows[v.id] = row
    return LinearFunctional(ends | rows, offset)

  def _pulled(self, eqn: Equation, rows: list[Row | None]) -> tuple[list[Row], Any]:
    """Rows on the perturbed operands of an equation, and an offset."""
    operands = [self.env[v.id] for v in eqn.inputs]
    flags = [v.id in self.program.perturbed for v in eqn.inputs]
    passage, error = (step := self.steps[eqn.outputs[0].id]).passage, step.error
    row = rows[0] if len(rows) == 1 and isinstance(rows[0], Patch) else None

    def whole():
      return [jnp.zeros(v.shape, v.dtype) if r is None else dense(r) for v, r in zip(eqn.outputs, rows)]
    on_windows = row is not None and passage is None and patches.pull_back(eqn, operands, flags, row)
    if on_windows:
      pulled, offset = list[Row](on_windows[0]), on_windows[1]
    elif row is not None and isinstance(passage, Cuttable):
      arrays, offset = passage.at(row.cut).pull_rows([row.coefficients])
      pulled = [dataclasses.replace(row, coefficients=a) for a in arrays]
    else:
      arrays, offset = (affine.pull_back(eqn, operands, flags, whole()) if passage is None
                        else passage.pull_rows(whole()))
      pulled = [Dense(a) for a in arrays]
    if len(rows) == 1 and rows[0] is not None:
      offset = offset - _rounded(rows[0], error)
    return pulled, offset

  @property
  def exact(self) -> bool:
    """Whether one pass gives both bounds."""
    return not self.round_outward and all(step.passage is None for step in self.steps.values())

  def bound_apart(self, over: Callable[[Callable[[LinearFunctional], Any]], Any]) -> Interval:
    """Bounds of many functionals: `over` maps a function of one over them, lower and upper bounds apart."""
    if self.exact:
      return over(self.bound)
    lower, negative = (over(functools.partial(self.least, sign=sign)) for sign in (1, -1))
    return Interval(lower, -negative)

  def bound(self, start: LinearFunctional) -> Interval:
    """Bounds of a functional: a scalar Interval."""
    if self.exact:
      return self.concretise(self.back(start))
    dtype = next(row.coefficients.dtype for row in start.rows.values())
    lower, negative = jax.vmap(lambda sign: self.least(start, sign))(jnp.asarray([1, -1], dtype))
    return Interval(lower, -negative)

  def least(self, start: LinearFunctional, sign: Any = 1) -> Any:
    """A lower bound of `sign` times a functional."""
    return self.concretise(self.back(start.scaled(sign))).lower

  def concretise(self, at: LinearFunctional) -> Interval:
    """The range of a functional of the ends of the pass."""
    # Materialized, or XLA adds up all offsets anew wherever the gradient of a row is wanted, for each element of it.
    ends, centre = at.rows, materialize(at.offset)
    radius = jnp.zeros_like(centre)
    for i, row in ends.items():
      x, a = self.sets.get(i, self.env[i]), row.coefficients
      if isinstance(row, Patch):
        part = x.at(row.cut)
        x, a = (x, row.dense()) if part is None else (part, a)
      c, r = x.support(a, float(jnp.finfo(a.dtype).eps) / 2 if self.round_outward else 0.)
      centre, radius = centre + c.astype(centre.dtype), radius + r.astype(centre.dtype)
    if self.round_outward:
      info = jnp.finfo(centre.dtype)
      radius += (len(ends) + 2) * info.eps * (jnp.abs(centre) + radius)
      radius += rounding_backward.steps(self.program) * info.tiny
    return Interval(centre - radius, centre + radius)


def _rounded(row: Row, error: Any) -> Any:
  """How far rounding may move a bound, where the error of a coefficient 1 on each element is known."""
  if error is None:
    return jnp.zeros((), row.coefficients.dtype)
  return off_by(row.coefficients, row.cut(error, 0) if isinstance(row, Patch) else error, error)
