"""Rows: linear functionals of a value, pulled back through the affine part of a program.

A row is what a linear method carries: one coefficient per element of a value. Here rows are
dense arrays; a sparser form is a class with the same three operations (add, pull back,
concretise), invisible to the methods.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ibpjax import affine
from ibpjax.interval import Interval, LpBall, pytree
from ibpjax.program import Equation, Program, Value


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


class Passage(Protocol):
  """What pulls rows back through an equation that is not affine: planes, or the steps of a scan."""

  def pull_rows(self, rows: Sequence[Any]) -> tuple[list[Any], Any]:
    """A lower bound of the sum of `<rows[i], outputs[i]>`: rows on the perturbed operands, and an offset."""


@dataclasses.dataclass(frozen=True)
class Walk:
  """Pulls rows of one program back, through affine equations and between planes, as far as these go.

  Attributes:
    program: the program.
    env: value id -> Interval or array, for the known values and all possible ends of a walk.
    balls: value id -> LpBall, for the inputs that are balls.
    planes: equation -> what pulls rows back through it, or None where the walk ends; by default it ends at every
      equation that is not affine.
  """
  program: Program
  env: dict[int, Any]
  balls: dict[int, LpBall]
  planes: Callable[[Equation], Passage | None] | None = None

  def ends(self, value: Value) -> dict[int, Value]:
    """The values that walks from `value` end at. Planes are computed here, once for all rows, outside of loops."""
    found, passed = {value.id: value}, set[int]()
    for eqn in reversed(self.program.equations):
      if any(v.id in found for v in eqn.outputs):
        flags = [v.id in self.program.perturbed for v in eqn.inputs]
        if affine.is_affine(eqn, flags) or (self.planes is not None and self.planes(eqn) is not None):
          passed |= {v.id for v in eqn.outputs}
          found |= {v.id: v for v, p in zip(eqn.inputs, flags) if p and jnp.issubdtype(v.dtype, jnp.floating)}
    return {i: v for i, v in found.items() if i not in passed}

  def back(self, rows: dict[int, Dense]) -> tuple[dict[int, Dense], Any]:
    """A lower bound of the sum of `<rows[i], value i>`: rows on the values where the walk ends, and an offset.

    Exact without planes.
    """
    rows, ends = dict(rows), dict[int, Dense]()
    offset: Any = jnp.zeros((), jnp.result_type(*(r.coefficients.dtype for r in rows.values())) if rows else None)
    for eqn in reversed(self.program.equations):
      if not any(v.id in rows for v in eqn.outputs):
        continue
      flags = [v.id in self.program.perturbed for v in eqn.inputs]
      if affine.is_affine(eqn, flags):
        pulled, more = affine.pull_back(eqn, [self.env[v.id] for v in eqn.inputs], flags, self._taken(rows, eqn))
      elif self.planes is not None and (found := self.planes(eqn)) is not None:
        pulled, more = found.pull_rows(self._taken(rows, eqn))
      else:
        ends |= {v.id: rows.pop(v.id) for v in eqn.outputs if v.id in rows}
        continue
      offset = offset + more.astype(offset.dtype)
      for v, a in zip((v for v, p in zip(eqn.inputs, flags) if p), pulled, strict=True):
        if jnp.issubdtype(v.dtype, jnp.floating):  # and no predicate
          a = a.astype(v.dtype)
          rows[v.id] = rows[v.id] + Dense(a) if v.id in rows else Dense(a)
    return ends | rows, offset

  def _taken(self, rows: dict[int, Dense], eqn: Equation) -> list[Any]:
    """The rows on the outputs of an equation, which are then on these no more."""
    return [rows.pop(v.id).coefficients if v.id in rows else jnp.zeros(v.shape, v.dtype) for v in eqn.outputs]

  def bound(self, value: Value, row: Dense) -> Interval:
    """Bounds of `<row, value>`: a scalar Interval."""
    below = self.concretise(*self.back({value.id: row}))
    if self.planes is None:
      return below
    return Interval(below.lower, -self.concretise(*self.back({value.id: Dense(-row.coefficients)})).lower)

  def concretise(self, ends: dict[int, Dense], centre: Any) -> Interval:
    """The range of an affine function of the ends of a walk."""
    radius = jnp.zeros_like(centre)
    for i, a in ends.items():
      c, r = a.concretise(self.balls.get(i, self.env[i]))
      centre, radius = centre + c.astype(centre.dtype), radius + r.astype(centre.dtype)
    return Interval(centre - radius, centre + radius)

  def bound_elements(self, value: Value, chunk: int | None = None) -> Interval:
    """Bounds of each element of `value`, from one row an element, built when it is needed."""
    def element(i):
      hot = jnp.arange(value.size) == i
      return self.bound(value, Dense(hot.astype(value.dtype).reshape(value.shape)))

    if value.id in self.ends(value):  # the walk does not get away from it
      return self.env[value.id]
    flat = over_rows(element, value.size, self.width(), chunk)
    return Interval(flat.lower.reshape(value.shape), flat.upper.reshape(value.shape))

  def width(self) -> int:
    """The number of elements of the largest perturbed value a row can rest on."""
    return max(v.size for v in (*self.program.inputs, *(v for e in self.program.equations for v in e.outputs))
               if v.id in self.program.perturbed)


def over_rows(f: Callable[[Any], Any], n: int, width: int, chunk: int | None = None, budget: int = 1 << 26) -> Any:
  """`f` on each of the row numbers 0 .. n-1, so many at a time.

  Args:
    f: row number -> any pytree.
    n: number of rows.
    width: elements that one row may occupy.
    chunk: rows at a time; default as many as `budget` elements allow.
    budget: elements that all rows worked on together may occupy (2**26 floats are 256 MiB).
  """
  chunk = max(1, budget // max(width, 1)) if chunk is None else chunk
  return jax.vmap(f)(jnp.arange(n)) if n <= chunk else jax.lax.map(f, jnp.arange(n), batch_size=chunk)
