"""Walks back through a program whose boxes are known: between planes, and through the steps of scans."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation
from ibpjax.engine.functional import BackwardPass, Dense, LinearFunctional, Passage, Row, add
from ibpjax.engine.intervals import IntervalPass
from ibpjax.primitives import control
from ibpjax.rules.affine import dot
from ibpjax.rules.slopes import Lines, constant


def backward_pass(intervals: IntervalPass, lines: Lines) -> BackwardPass:
  """The walk through a program whose boxes `intervals` has found so far."""
  if lines is constant:  # planes of slope 0 are the boxes themselves
    return intervals.backward

  def planes(eqn: Equation) -> Passage | None:
    if eqn.key is not P.scan_p:
      return intervals.planes(eqn, lines)
    if intervals.round_outward:
      return None
    if id(eqn) not in intervals.scanned:
      intervals.scanned[id(eqn)] = ScanRows(eqn, intervals, lines, _carries(eqn, intervals))
    return intervals.scanned[id(eqn)]
  return dataclasses.replace(intervals.backward, planes=planes)


def _carries(eqn: Equation, intervals: IntervalPass) -> list[Any]:
  """The boxes of the carry before each step."""
  return control.carries(eqn, intervals.operands(eqn), intervals.run)


@dataclasses.dataclass(frozen=True)
class ScanRows:
  """How rows on the outputs of a scan are pulled back to its operands: one compiled loop over the steps, backwards.

  Each step bounds its body anew on the boxes that it starts from, and walks back through it.

  Attributes:
    eqn: the scan.
    intervals: the run on boxes that it is part of.
    lines: the choice of slopes.
    carries: boxes of the carry before each step.
  """
  eqn: Equation
  intervals: IntervalPass
  lines: Lines
  carries: list[Any]

  def pull_rows(self, rows: Sequence[Any]) -> tuple[list[Any], Any]:
    """A lower bound of sum_i <rows[i], outputs[i]>: rows on the perturbed operands, and an offset."""
    body, = self.eqn.bodies
    first, last = self.eqn.loop.first, self.eqn.loop.last
    operands = control.lift(self.intervals.operands(self.eqn), body.inputs, body)
    dtype = next(row.dtype for row in rows if jnp.issubdtype(row.dtype, jnp.floating))
    moving = [v.id in body.perturbed and jnp.issubdtype(v.dtype, jnp.floating) for v in body.inputs]

    def zeros(values):
      return [jnp.zeros(v.shape, v.dtype) if m else None for v, m in values]
    inputs = list(zip(body.inputs, moving, strict=True))

    def step(state, xs):
      on_carry, on_consts, offset = state
      carry, slices, on_ys = xs
      inner = IntervalPass(body, [*operands[:first], *carry, *slices])
      back = backward_pass(inner, self.lines)
      start: dict[int, Row] = {}
      for v, row in zip(body.outputs, [*on_carry, *on_ys], strict=True):
        if row is None:
          continue
        if v.id not in body.perturbed:
          offset += dot(row, jnp.asarray(inner.env[v.id], row.dtype)).astype(dtype)
        else:
          start[v.id] = add(start[v.id], Dense(row)) if v.id in start else Dense(row)
      found = back.back(LinearFunctional(start, jnp.zeros((), dtype)))
      ends, more = dict(found.rows), found.offset
      own = [ends.pop(v.id).coefficients if m and v.id in ends else z
             for (v, m), z in zip(inputs, zeros(inputs), strict=True)]
      offset += back.concretise(LinearFunctional(ends, jnp.asarray(more, dtype))).lower
      on_consts = jax.tree.map(jnp.add, on_consts, own[:first])
      return (own[first:last], on_consts, offset), own[last:]

    count = last - first
    on_carry = [row.astype(v.dtype) if m else None
                for row, (v, m) in zip(rows[:count], inputs[first:last], strict=True)]
    on_ys = [row if jnp.issubdtype(row.dtype, jnp.floating) else None for row in rows[count:]]
    state = on_carry, zeros(inputs[:first]), jnp.zeros((), dtype)
    (on_carry, on_consts, offset), on_xs = lax.scan(
        step, state, (self.carries, operands[last:], on_ys), length=self.eqn.loop.length,
        reverse=not self.eqn.loop.reverse)
    pulled = []
    for v, row in zip(self.eqn.inputs, [*on_consts, *on_carry, *on_xs], strict=True):
      if v.id in self.intervals.program.perturbed:
        pulled.append(jnp.zeros(v.shape, v.dtype) if row is None else row)
      elif row is not None:  # a carry that starts known
        offset += dot(row, jnp.asarray(self.intervals.env[v.id], row.dtype)).astype(dtype)
    return pulled, offset
