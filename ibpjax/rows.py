"""Rows: linear functionals of a value, pulled back through the affine part of a program.

A row is what a linear method carries: one coefficient per element of a value. Here rows are
dense arrays; a sparser form is a class with the same three operations (add, pull back,
concretise), invisible to the methods.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ibpjax import affine
from ibpjax.interval import Interval, LpBall, pytree
from ibpjax.program import Program, Value


@pytree
class Dense:
  """A linear functional with one stored coefficient for each element of its value."""
  coefficients: Any

  def __add__(self, other: Dense) -> Dense:
    return Dense(self.coefficients + other.coefficients)

  def concretise(self, x: Interval | LpBall) -> tuple[Any, Any]:
    """(centre, radius) of the functional over a set, by the dual norm (Lyu et al. 2021, 1.1)."""
    a = self.coefficients
    if isinstance(x, LpBall):
      q = np.inf if x.p == 1 else x.p / (x.p - 1)
      return jnp.vdot(a, x.centre), x.eps * _norm(a, q)
    centre, radius = affine.centre_radius(x)
    return jnp.vdot(a, centre), affine.dot(jnp.abs(a), radius)


def _norm(a: Any, q: float) -> Any:
  """The lq norm, with gradient 0 at 0 and no overflow for large q."""
  largest = jnp.max(jnp.abs(a), initial=0.)
  if q == np.inf:
    return largest
  scale = jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))
  total = jnp.sum(jnp.abs(a / scale) ** q)
  return scale * jnp.where(total > 0, jnp.where(total > 0, total, 1) ** (1 / q), 0)


@dataclasses.dataclass(frozen=True)
class Walk:
  """Pulls rows of one program back to the last values that are not affine in earlier ones.

  Attributes:
    program: the program.
    env: value id -> Interval or array, for the known values and all possible ends of a walk.
    balls: value id -> LpBall, for the inputs that are balls.
  """
  program: Program
  env: dict[int, Any]
  balls: dict[int, LpBall]

  def back(self, value: Value, row: Dense) -> tuple[dict[int, Dense], Any]:
    """`<row, value>` as rows on inputs and outputs of nonlinear equations, and an offset."""
    rows, ends = {value.id: row}, dict[int, Dense]()
    offset: Any = jnp.zeros((), row.coefficients.dtype)
    for eqn in reversed(self.program.equations):
      if not any(v.id in rows for v in eqn.outputs):
        continue
      flags = [v.id in self.program.perturbed for v in eqn.inputs]
      if not affine.is_affine(eqn, flags):
        ends |= {v.id: rows.pop(v.id) for v in eqn.outputs if v.id in rows}
        continue
      out = [rows.pop(v.id).coefficients if v.id in rows else jnp.zeros(v.shape, v.dtype) for v in eqn.outputs]
      pulled, more = affine.pull_back(eqn, [self.env[v.id] for v in eqn.inputs], flags, out)
      offset = offset + more
      for v, a in zip((v for v, p in zip(eqn.inputs, flags) if p), pulled, strict=True):
        rows[v.id] = rows[v.id] + Dense(a) if v.id in rows else Dense(a)
    return ends | rows, offset

  def bound(self, value: Value, row: Dense) -> Interval:
    """Bounds of `<row, value>`: a scalar Interval."""
    ends, centre = self.back(value, row)
    radius = jnp.zeros_like(centre)
    for i, a in ends.items():
      c, r = a.concretise(self.balls.get(i, self.env[i]))
      centre, radius = centre + c, radius + r
    return Interval(centre - radius, centre + radius)

  def bound_elements(self, value: Value) -> Interval:
    """Bounds of each element of `value`, from one row an element, built when it is needed."""
    def element(i):
      hot = jnp.arange(value.size) == i
      return self.bound(value, Dense(hot.astype(value.dtype).reshape(value.shape)))

    flat = over_rows(element, value.size, self.width())
    return Interval(flat.lower.reshape(value.shape), flat.upper.reshape(value.shape))

  def width(self) -> int:
    """The number of elements of the largest perturbed value a row can rest on."""
    return max(v.size for v in (*self.program.inputs, *(v for e in self.program.equations for v in e.outputs))
               if v.id in self.program.perturbed)


def over_rows(f: Callable[[Any], Any], n: int, width: int, budget: int = 1 << 26) -> Any:
  """`f` on each of the row numbers 0 .. n-1, as many at a time as `budget` elements allow.

  Args:
    f: row number -> any pytree.
    n: number of rows.
    width: elements that one row may occupy.
    budget: elements that all rows worked on together may occupy (2**26 floats are 256 MiB).
  """
  chunk = max(1, budget // max(width, 1))
  return jax.vmap(f)(jnp.arange(n)) if n <= chunk else jax.lax.map(f, jnp.arange(n), batch_size=chunk)
