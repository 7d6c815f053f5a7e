"""Rows: linear functionals of a value, pulled back through the affine part of a program.

A row is what a linear method carries: one coefficient per element of a value, or per element of
the window of it that the functional rests on. Which of the two is invisible to the methods.
"""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation, Program, Value
from ibpjax.core.row import CONTRACTED
from ibpjax.core.sets import Interval, LpBall, centre_radius, pytree
from ibpjax.core.subnormal import least_kept
from ibpjax.engine import patches
from ibpjax.engine.patches import Patch, Span
from ibpjax.primitives import table
from ibpjax.rules import affine
from ibpjax.rules.rounding import gamma, magnitude
from ibpjax.rules.rounding_backward import Errors
from ibpjax.xla.batching import over_rows
from ibpjax.xla.materialize import materialize


@pytree
class Dense:
  """A linear functional with one stored coefficient for each element of its value."""
  coefficients: Any


Row = Dense | Patch


@pytree
class LinearFunctional:
  """sum_i <rows[i], value i> + offset: an affine functional of some values of a program, by their ids."""
  rows: dict[int, Row]
  offset: Any

  def scaled(self, factor: Any) -> LinearFunctional:
    """The functional times a number."""
    rows = {i: dataclasses.replace(row, coefficients=factor * row.coefficients) for i, row in self.rows.items()}
    return LinearFunctional(rows, factor * self.offset)

  def dense(self) -> LinearFunctional:
    """The functional with a coefficient for each element of each value."""
    return LinearFunctional({i: Dense(dense(row)) for i, row in self.rows.items()}, self.offset)


def dense(row: Row) -> Any:
  """The coefficients of a functional for all elements of its value."""
  return row.dense() if isinstance(row, Patch) else row.coefficients


def add(row: Row, other: Row) -> Row:
  """The sum of two functionals of the same value."""
  if isinstance(row, Patch) and isinstance(other, Patch) and (total := row.joined(other)) is not None:
    return total
  return Dense(dense(row) + dense(other))


def resting_on(value: Value, row: Row) -> LinearFunctional:
  """`<row, value>` as a functional."""
  return LinearFunctional({value.id: row}, jnp.zeros((), value.dtype))


def concretise(row: Row, x: Interval | LpBall) -> tuple[Any, Any]:
  """(centre, radius) of a functional over a set, by the dual norm (Lyu et al. 2021, 1.1)."""
  a = row.coefficients
  cut = row.cut if isinstance(row, Patch) else lambda array: array
  if isinstance(x, LpBall):
    q = np.inf if x.p == 1 else x.p / (x.p - 1)
    return jnp.vdot(a, cut(x.centre)), x.eps * _norm(a, q)
  centre, radius = map(cut, centre_radius(x))
  return jnp.vdot(a, centre), affine.dot(jnp.abs(a), radius)


def _norm(a: Any, q: float) -> Any:
  """The lq norm, with gradient 0 at 0 and no overflow for large q."""
  largest = jnp.max(jnp.abs(a), initial=0.)
  if q == np.inf:
    return largest
  scale = jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))
  total = jnp.sum(jnp.abs(a / scale) ** q)
  return scale * jnp.where(total > 0, jnp.where(total > 0, total, 1) ** (1 / q), 0)


# What a dense layer is made of: its weights, its bias, and moves of axes.
_LAYER = frozenset({P.dot_general_p, P.add_p, P.sub_p, P.neg_p, P.reshape_p, P.squeeze_p, P.transpose_p,
                    P.broadcast_in_dim_p, P.copy_p, P.convert_element_type_p})


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
class BackwardPass:
  """Pulls rows of one program back, through affine equations and between planes, as far as these go.

  Attributes:
    program: the program.
    env: value id -> Interval or array, for the known values and all possible ends of a walk.
    balls: value id -> LpBall, for the inputs that are balls.
    planes: equation -> what pulls rows back through it, or None where the walk ends; by default it ends at every
      equation that is not affine.
    errors: what rounding may move; None for bounds in exact arithmetic.
  """
  program: Program
  env: dict[int, Any]
  balls: dict[int, LpBall]
  planes: Callable[[Equation], Passage | None] | None = None
  errors: Errors | None = None

  def ends(self, value: Value) -> dict[int, Value]:
    """The values that walks from `value` end at. Planes and errors are computed here, once and outside of loops."""
    found, passed = {value.id: value}, set[int]()
    for eqn in reversed(self.program.equations):
      if any(v.id in found for v in eqn.outputs):
        linear, passage = self._way(eqn)
        if linear or passage is not None:
          if self.errors is not None and len(eqn.outputs) == 1:
            self.errors.at(eqn, passage)
          passed |= {v.id for v in eqn.outputs}
          found |= {v.id: v for v in eqn.inputs if v.id in self.program.perturbed
                    and jnp.issubdtype(v.dtype, jnp.floating)}
    return {i: v for i, v in found.items() if i not in passed}

  def _way(self, eqn: Equation) -> tuple[bool, Any]:
    """Whether an equation is affine; if not, what pulls rows back through it, or None where the walk ends."""
    linear = table.is_affine(eqn, [v.id in self.program.perturbed for v in eqn.inputs])
    return linear, None if linear or self.planes is None else self.planes(eqn)

  def back(self, start: LinearFunctional) -> LinearFunctional:
    """A lower bound of a functional, on the values where the walk ends.

    Exact without planes and errors.
    """
    rows, ends = dict(start.rows), dict[int, Row]()
    dtype = jnp.result_type(*(row.coefficients.dtype for row in rows.values())) if rows else None
    offset: Any = jnp.asarray(start.offset, dtype)
    for eqn in reversed(self.program.equations):
      if not any(v.id in rows for v in eqn.outputs):
        continue
      taken = [rows.pop(v.id, None) for v in eqn.outputs]
      if (found := self._pulled(eqn, taken)) is None:
        ends |= {v.id: row for v, row in zip(eqn.outputs, taken) if row is not None}
        continue
      pulled, more = found
      offset = offset + more.astype(offset.dtype)
      for v, row in zip((v for v in eqn.inputs if v.id in self.program.perturbed), pulled, strict=True):
        if jnp.issubdtype(v.dtype, jnp.floating):  # and no predicate
          if isinstance(row, Patch) and row.size >= v.size:
            row = Dense(row.dense())
          row = dataclasses.replace(row, coefficients=row.coefficients.astype(v.dtype))
          if v.id in rows:
            row = add(rows[v.id], row)
            offset = offset - self._rounded(row, self._merged(v)).astype(offset.dtype)
          rows[v.id] = row
    return LinearFunctional(ends | rows, offset)

  def _pulled(self, eqn: Equation, rows: list[Row | None]) -> tuple[list[Row], Any] | None:
    """Rows on the perturbed operands of an equation, and an offset; None where the walk ends."""
    operands = [self.env[v.id] for v in eqn.inputs]
    flags = [v.id in self.program.perturbed for v in eqn.inputs]
    linear, passage = self._way(eqn)
    if not linear and passage is None:
      return None
    row = rows[0] if len(rows) == 1 and isinstance(rows[0], Patch) else None

    def whole():
      return [jnp.zeros(v.shape, v.dtype) if r is None else dense(r) for v, r in zip(eqn.outputs, rows)]
    on_windows = row is not None and linear and patches.pull_back(eqn, operands, flags, row)
    if on_windows:
      pulled, offset = list[Row](on_windows[0]), on_windows[1]
    elif row is not None and isinstance(passage, Cuttable):
      arrays, offset = passage.at(row.cut).pull_rows([row.coefficients])
      pulled = [dataclasses.replace(row, coefficients=a) for a in arrays]
    else:
      arrays, offset = affine.pull_back(eqn, operands, flags, whole()) if linear else passage.pull_rows(whole())
      pulled = [Dense(a) for a in arrays]
    if self.errors is not None and len(rows) == 1 and rows[0] is not None:  # those with more outputs only move data
      offset = offset - self._rounded(rows[0], self.errors.at(eqn, passage))
    return pulled, offset

  def _rounded(self, row: Row, error: Any) -> Any:
    """How far rounding may move a bound, where the error of a coefficient 1 on each element is known."""
    if error is None:
      return jnp.zeros((), row.coefficients.dtype)
    info = jnp.finfo(row.coefficients.dtype)  # coefficients that are too small to be kept count as if they were not
    vanished = jnp.sum(jnp.where(jnp.isfinite(error), error, 0)) * (info.tiny / info.eps)
    at = row.cut(error, 0) if isinstance(row, Patch) else error
    return affine.dot(jnp.abs(row.coefficients), at) + vanished.astype(info.dtype)

  def _merged(self, value: Value) -> Any:
    """The error of the sum of two rows on a value."""
    return None if self.errors is None else jnp.finfo(value.dtype).eps * magnitude(self.env[value.id])

  def bound(self, start: LinearFunctional) -> Interval:
    """Bounds of a functional: a scalar Interval."""
    if self.exact:
      return self.concretise(self.back(start))
    dtype = next(row.coefficients.dtype for row in start.rows.values())
    lower, negative = jax.vmap(lambda sign: self.least(start, sign))(jnp.asarray([1, -1], dtype))
    return Interval(lower, -negative)

  def bound_apart(self, over: Callable[[Callable[[LinearFunctional], Any]], Any]) -> Interval:
    """Bounds of many functionals: `over` maps a function of one over them, lower and upper bounds apart."""
    if self.exact:
      return over(self.bound)
    lower, negative = (over(functools.partial(self.least, sign=sign)) for sign in (1, -1))
    return Interval(lower, -negative)

  @property
  def exact(self) -> bool:
    """Whether one walk gives both bounds."""
    return self.planes is None and self.errors is None

  def least(self, start: LinearFunctional, sign: Any = 1) -> Any:
    """A lower bound of `sign` times a functional."""
    return self.concretise(self.back(start.scaled(sign))).lower

  def concretise(self, at: LinearFunctional) -> Interval:
    """The range of a functional of the ends of a walk."""
    # Pinned, or XLA adds up all offsets anew wherever the gradient of a row is wanted, for each element of it.
    ends, centre = at.rows, materialize(at.offset)
    radius = jnp.zeros_like(centre)
    for i, a in ends.items():
      c, r = concretise(a, self.balls.get(i, self.env[i]))
      centre, radius = centre + c.astype(centre.dtype), radius + r.astype(centre.dtype)
      if self.errors is not None:
        u = float(jnp.finfo(a.coefficients.dtype).eps) / 2
        lost = 8 * least_kept(a.coefficients.dtype)  # by half of an end
        error = 2 * gamma(a.coefficients.size + 4, u) * magnitude(self.env[i]) + lost
        radius += self._rounded(a, error).astype(centre.dtype) + a.coefficients.size * lost
    if self.errors is not None:
      radius += (len(ends) + 2) * jnp.finfo(centre.dtype).eps * (jnp.abs(centre) + radius)
      radius += self.errors.steps * jnp.finfo(centre.dtype).tiny
    return Interval(centre - radius, centre + radius)

  def bound_elements(self, value: Value, chunk: int | None = None, apart: bool = False, needed: Any = None) -> Interval:
    """Bounds of each element of `value`, from one row an element, built when it is needed.

    Elements that see the same window of an image are bounded together; lower and upper bounds too, or `apart`: then
    XLA leaves out those that nobody uses. Where not `needed`, elements keep the bounds that they have.
    """
    if value.id in self.ends(value):  # the walk does not get away from it
      return self.env[value.id]

    def over(bound):
      return self.over_elements(value, bound, chunk, needed=needed)
    found = self.bound_apart(over) if apart else over(self.bound)
    return self.kept_unless(needed, value, found)

  def kept_unless(self, needed: Any, value: Value, found: Interval) -> Interval:
    """The bounds found of a value where they are needed (None: everywhere), elsewhere those that it has."""
    if needed is None:
      return found
    return jax.tree.map(functools.partial(jnp.where, needed), found, self.env[value.id])

  def over_elements(self, value: Value, f: Callable[..., Any], chunk: int | None = None, *along: Any,
                    needed: Any = None) -> Any:
    """`f(functional, *parts)` for each single element of `value`, with its part of `along`.

    Args:
      value: the value.
      f: a function that returns any pytree; the functional is the element, or the same on values before it.
      chunk: as in `over_rows`.
      *along: pytrees of arrays (*value.shape, ...).
      needed: booleans of the shape of `value`: the results for other elements do not matter.

    Returns:
      The pytree, its arrays (*value.shape, ...).
    """
    moving = patches.moving_axes(self.program, value)
    counts = tuple(value.shape[i] for i in moving)
    spans = tuple(Span(moving.index(i), n) if i in moving else None for i, n in enumerate(value.shape))
    shape = tuple(1 if i in moving else n for i, n in enumerate(value.shape))
    beside, rank = int(np.prod(shape)), len(value.shape)

    def element(i, j, parts):
      hot = (jnp.arange(beside) == j).astype(value.dtype).reshape(shape)
      row: Row = Patch(hot, jnp.unravel_index(i, counts), spans, value.shape) if counts else Dense(hot)
      return f(resting_on(value, row), *parts)

    if not counts:
      laid = jax.tree.map(lambda x: x.reshape(value.size, *x.shape[rank:]), along)
      starts = None if chunk is not None and chunk < value.size else self._starts(value)

      def one(x):
        i, start, parts = x
        return element(0, i, parts) if start is None else f(start, *parts)
      flat = over_rows(one, (jnp.arange(value.size), starts, laid), self.width(), chunk,
                       None if needed is None else needed.ravel())
      return jax.tree.map(lambda x: x.reshape(*value.shape, *x.shape[1:]), flat)

    def grouped(x):
      x = jnp.moveaxis(x, moving, range(len(moving)))
      return x.reshape(-1, beside, *x.shape[rank:])

    def group(x):
      i, parts = x
      return jax.vmap(functools.partial(element, i))(jnp.arange(beside), parts)
    flat = over_rows(group, (jnp.arange(value.size // beside), jax.tree.map(grouped, along)),
                     beside * self.width(), chunk and max(1, chunk // beside))

    def placed(x):
      x = x.reshape(*counts, *(n for i, n in enumerate(value.shape) if i not in moving), *x.shape[2:])
      return jnp.moveaxis(x, range(len(counts)), moving)
    return jax.tree.map(placed, flat)

  def _starts(self, value: Value) -> LinearFunctional | None:
    """The elements of a value as functionals of the values before the dense layer that made it, all in one array.

    They are the rows of the weights: so walks need not multiply unit rows with these. None where there are other
    operations on the way, which may differ from example to example; where the array would be much larger than the
    weights; and where rounding is counted operation by operation.
    """
    if self.errors is not None:
      return None
    plain = dataclasses.replace(self, planes=None)
    ends, weights, largest = plain.ends(value), 0, 0
    if value.id in ends:
      return None
    reached = {value.id}
    for eqn in reversed(self.program.equations):
      if any(v.id in reached for v in eqn.outputs):
        if eqn.key not in _LAYER:
          return None
        moving = [v for v in eqn.inputs if v.id in self.program.perturbed]
        if table.of(eqn).affine == CONTRACTED:
          weights += sum(v.size for v in eqn.inputs if v.id not in self.program.perturbed)
        largest = max(largest, sum(v.size for v in moving))
        reached |= {v.id for v in moving} - set(ends)
    if value.size * largest > 2 * weights:
      return None

    def start(i):
      hot = (jnp.arange(value.size) == i).astype(value.dtype).reshape(value.shape)
      return plain.back(resting_on(value, Dense(hot))).dense()
    return jax.vmap(start)(jnp.arange(value.size))

  def width(self) -> int:
    """The number of elements of the largest perturbed value a row can rest on."""
    return max(v.size for v in (*self.program.inputs, *(v for e in self.program.equations for v in e.outputs))
               if v.id in self.program.perturbed)
