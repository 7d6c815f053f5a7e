"""Backward passes through the steps of scans, and between the planes that one choice of slopes gives."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core.products import dot
from ibpjax.core.program import Equation, Value
from ibpjax.engine.backward import BackwardPass, Passage, Step
from ibpjax.engine.boxes import Boxes
from ibpjax.engine.functional import Dense, LinearFunctional, Row, add
from ibpjax.engine.intervals import IntervalPass
from ibpjax.primitives import control
from ibpjax.rules.slopes import constant


def backward_pass(boxes: Boxes, *values: Value) -> BackwardPass:
  """The pass from some values between the planes of a run, each of which is computed once for the run."""
  if boxes.lines is constant:  # planes of slope 0 are the boxes themselves
    return boxes.backward.prepared(*values)
  return boxes.backward.prepared(*values, step=lambda eqn: boxes.once(_step, eqn))


def _step(boxes: Boxes, eqn: Equation) -> Step | None:
  return boxes.backward.step(eqn, lambda eqn: passage(boxes, eqn))


def passage(boxes: Boxes, eqn: Equation) -> Passage | None:
  """What pulls rows back through an equation that is not affine, by the choice of slopes of the run; None at ends."""
  return boxes.once(_scan_passage if eqn.key is P.scan_p else Boxes.relaxation, eqn)


def _scan_passage(boxes: Boxes, eqn: Equation) -> ScanPassage | None:
  if boxes.round_outward:
    return None
  return ScanPassage(eqn, boxes, control.carries(eqn, boxes.operands(eqn), boxes.run))


@dataclasses.dataclass(frozen=True)
class ScanPassage:
  """How rows on the outputs of a scan are pulled back to its operands: one compiled loop over the steps, backwards.

  Each step bounds its body anew on the boxes that it starts from, and pulls rows back through it.

  Attributes:
    eqn: the scan.
    boxes: those of the program that it is part of.
    carries: boxes of the carry before each step.
  """
  eqn: Equation
  boxes: Boxes
  carries: list[Any]

  def pull_rows(self, rows: Sequence[Any]) -> tuple[list[Any], Any]:
    """A lower bound of sum_i <rows[i], outputs[i]>: rows on the perturbed operands, and an offset."""
    body, = self.eqn.bodies
    first, last = self.eqn.loop.first, self.eqn.loop.last
    operands = control.lift(self.boxes.operands(self.eqn), body.inputs, body)
    dtype = next(row.dtype for row in rows if jnp.issubdtype(row.dtype, jnp.floating))
    moving = [v.id in body.perturbed and jnp.issubdtype(v.dtype, jnp.floating) for v in body.inputs]

    def zeros(values):
      return [jnp.zeros(v.shape, v.dtype) if m else None for v, m in values]
    inputs = list(zip(body.inputs, moving, strict=True))

    def step(state, xs):
      on_carry, on_consts, offset = state
      carry, slices, on_ys = xs
      inner = IntervalPass(body, [*operands[:first], *carry, *slices], lines=self.boxes.lines)
      start: dict[int, Row] = {}
      for v, row in zip(body.outputs, [*on_carry, *on_ys], strict=True):
        if row is None:
          continue
        if v.id not in body.perturbed:
          offset += dot(row, jnp.asarray(inner.env[v.id], row.dtype)).astype(dtype)
        else:
          start[v.id] = add(start[v.id], Dense(row)) if v.id in start else Dense(row)
      back = backward_pass(inner, *(v for v in body.outputs if v.id in start))
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
      if v.id in self.boxes.program.perturbed:
        pulled.append(jnp.zeros(v.shape, v.dtype) if row is None else row)
      elif row is not None:  # a carry that starts known
        offset += dot(row, jnp.asarray(self.boxes.env[v.id], row.dtype)).astype(dtype)
    return pulled, offset
