"""Polytopes: boxes whose elements are constrained by linear inequalities."""
from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ibpjax.core.directed import UP, converted, rounded
from ibpjax.core.products import dot, gamma
from ibpjax.core.sets import InputSet, Interval, centre_radius, pytree, rounding_of
from ibpjax.core.subnormal import least_kept
from ibpjax.core.validation import concrete


@pytree
class Polytope(InputSet):
  """All `x` in `box` with <a[i], x> <= b[i] for each i.

  Attributes:
    box: a finite Interval.
    a: array (constraints, *box.shape), of the dtype of the box.
    b: array (constraints,), of that dtype.
    steps: sweeps of the dual ascent that finds the support.
  """
  box: Interval
  a: Any
  b: Any
  steps: int = dataclasses.field(default=8, metadata=dict(static=True))

  representative = property(lambda self: self.box.lower)
  hull = property(lambda self: self.box)

  def support(self, coefficients: Any, u: float = 0.) -> tuple[Any, Any]:
    """By weak duality, which holds at any multipliers >= 0: never looser than the box.

    <c, x> >= min over the box of <c + a^T y, x> - <b, y>, for y from a few sweeps of dual coordinate ascent.
    Source: Boyd and Vandenberghe, Convex Optimization, section 5.2.2.
    """
    if not self.size or not len(self.b):
      return self.box.support(coefficients, u)
    lower, upper = self._least(coefficients, u), -self._least(-coefficients, u)
    return centre_radius(Interval(lower, upper))

  def _least(self, coefficients: Any, u: float) -> Any:
    a, c = self.a.reshape(len(self.b), -1), coefficients.ravel()
    middle, reach = (x.ravel() for x in centre_radius(self.box))
    found = _multipliers(*lax.stop_gradient((c, a, self.b, middle, reach)), steps=self.steps)

    def bound(y):
      tilted = c + y @ a
      value = jnp.vdot(tilted, middle) - dot(jnp.abs(tilted), reach) - jnp.vdot(y, self.b)
      if u:
        size = (jnp.abs(c) + y @ jnp.abs(a)).reshape(self.shape)  # what a coefficient is computed from
        lost = 4 * (len(y) + 1) * least_kept(c.dtype) * (1 + jnp.sum(y)) * (
            1 + jnp.sum(jnp.abs(self.box.lower) + jnp.abs(self.box.upper)))
        value -= 2 * rounding_of(size, self, u, len(y)) + 2 * gamma(len(y) + 4, u) * jnp.vdot(y, jnp.abs(self.b)) + lost
      return value
    return jnp.fmax(bound(found), bound(jnp.zeros_like(found)))

  def validated(self, name: str) -> Polytope:
    if not isinstance(self.box, Interval):
      raise TypeError(f'the box of {name} is {type(self.box).__name__}: a polytope is cut from an Interval')
    box = self.box.validated(f'the box of {name}')
    a, b = self.a, self.b
    if getattr(a, 'dtype', None) != box.dtype or getattr(b, 'dtype', None) != box.dtype:
      raise TypeError(f'{name} is a polytope whose box has dtype {box.dtype}, its constraints not: ibpjax.polytope '
                      'converts them so that no point is lost')
    if a.shape != (*b.shape, *box.shape) or b.ndim != 1:
      raise ValueError(f'{name} has constraints a of shape {a.shape} and b of shape {b.shape}; for a box of shape '
                       f'{box.shape} they have (n, {", ".join(map(str, box.shape))}) and (n,)')
    ok = jnp.isfinite(a).all() & jnp.isfinite(b).all()
    if not concrete(ok):
      return Polytope(Interval(jnp.where(ok, box.lower, -jnp.inf), jnp.where(ok, box.upper, jnp.inf)),
                      jnp.where(ok, a, 0), jnp.where(ok, b, 0), self.steps)
    if not bool(ok):
      raise ValueError(f'{name} has a constraint that is NaN or infinite: leave it out')
    return Polytope(box, jnp.asarray(a), jnp.asarray(b), self.steps)


def polytope(box: Interval, a: Any, b: Any, steps: int = 8) -> Polytope:
  """The points of a box that satisfy linear constraints, <a[i], x> <= b[i].

  Interval arithmetic bounds a function over the box; linear methods use the constraints in every row that they bound.
  Of no points (constraints that contradict each other) any bound holds, and none is refused.

  Args:
    box: an Interval of any shape and float dtype.
    a: (constraints, *box.shape). Where the dtype of the box does not hold it as it is given, the constraint is relaxed
      by what rounding may move it within the box.
    b: (constraints,); rounded up to the dtype of the box.
    steps: sweeps over all constraints to find how much each counts: bounds hold at any number, and are tighter at more.

  Raises:
    TypeError, ValueError: the box is no finite Interval of floats; shapes do not fit; a constraint is not finite.
  """
  if not isinstance(box, Interval):
    raise TypeError(f'box is {type(box).__name__}: give an Interval, as ibpjax.linf_ball makes')
  box = box.validated('the box')
  if not isinstance(a, jax.Array) or a.dtype != box.dtype:
    a, b = _relaxed(a, b, box)
  return Polytope(box, a, converted(b, box.dtype, UP), steps).validated('the polytope')


def _relaxed(a: Any, b: Any, box: Interval) -> tuple[jax.Array, Any]:
  """Constraints of another precision in the dtype of a box, `b` raised by what rounding `a` may move it in the box."""
  if isinstance(a, jax.core.Tracer):
    raise TypeError(f'a has dtype {a.dtype} and the box {box.dtype}: convert a before it is traced')
  given = np.asarray(a)
  near = given.astype(box.dtype)
  off = np.abs(given.astype(np.longdouble) - near.astype(np.longdouble))
  if given.shape[1:] == box.shape and off.any():  # other shapes are refused with the set
    if not concrete(box.lower, b):
      raise TypeError(f'a has numbers that {box.dtype} does not hold, and box or b are traced: make the polytope '
                      'outside of jit, or give a as a JAX array of that dtype')
    reach = np.maximum(np.abs(np.asarray(box.lower)), np.abs(np.asarray(box.upper))).astype(np.longdouble)
    slack = (off * reach).reshape(len(off), -1).sum(1) * (1 + 1e-12)
    b = rounded(np.asarray(b, np.longdouble) + slack, box.dtype, UP)
  return jnp.asarray(near), b


def _multipliers(c: Any, a: Any, b: Any, middle: Any, reach: Any, steps: int) -> Any:
  """Multipliers y >= 0 that make min over the box of <c + a^T y, x> - <b, y> great.

  Each sweep moves one multiplier after the other to its best value, and then all along what the sweep changed: at
  corners, where no single one gets further, they get further together.
  """
  count = len(b)

  def move(state, along):
    (y, r), (direction, v) = state, along
    bounds = jnp.where(direction == 0, jnp.inf, -y / jnp.where(direction == 0, 1, direction))
    least = jnp.max(jnp.where(direction > 0, bounds, -jnp.inf))
    most = jnp.min(jnp.where(direction < 0, bounds, jnp.inf))
    t = _peak(r, v, jnp.vdot(direction, b), middle, reach)
    t = jnp.clip(t, least, most)
    t = jnp.where(jnp.isfinite(t), t, 0)
    return (jnp.maximum(y + t * direction, 0), r + t * v), None

  def sweep(state, _):
    (y, r), _ = lax.scan(move, state, (jnp.eye(count, dtype=c.dtype), a))
    (y, _), _ = move((y, r), (y - state[0], r - state[1]))
    return (y, c + y @ a), None
  zero = jnp.zeros_like(b) + 0 * jnp.sum(c)  # of the type of what it becomes
  (y, _), _ = lax.scan(sweep, (zero, c + zero @ a), length=steps)
  return jnp.where(jnp.isfinite(y), y, 0)


def _peak(r: Any, v: Any, price: Any, middle: Any, reach: Any) -> Any:
  """The t at which min over the box of <r + t v, x> - price t, a concave function, is greatest; infinite if none is."""
  bend = jnp.abs(v) * reach  # the slope falls by twice this where r + t v is 0
  at, bend = lax.sort((jnp.where(bend > 0, -r / jnp.where(v == 0, 1, v), jnp.inf), bend), num_keys=1)
  slope = jnp.vdot(v, middle) - price + jnp.sum(bend)  # at the far left
  rising = jnp.sum(slope - 2 * jnp.cumsum(bend) > 0)
  return jnp.where(slope > 0, at[jnp.minimum(rising, at.size - 1)], -jnp.inf)
