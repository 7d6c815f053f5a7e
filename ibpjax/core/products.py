"""Products: of numbers and of arrays, where 0 times an infinite or undefined element is 0; the rounding of many."""
from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def gamma(n: float, u: float) -> float:
  """n u / (1 - n u), infinite where the model of rounding says nothing any more.

  Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1.
  """
  return n * u / (1 - n * u) if n * u < .5 else float('inf')


def times(a: Any, b: Any) -> Any:
  """a * b where 0 times an infinite end is 0, as it is for every finite value. Infinite products have no gradient."""
  unbounded = ~(jnp.isfinite(a) & jnp.isfinite(b))
  empty = (a == 0) | (b == 0)
  infinite = lax.stop_gradient(jnp.where(empty, 0, a) * jnp.where(empty, 0, b))
  return jnp.where(unbounded, infinite, jnp.where(unbounded, 0, a) * jnp.where(unbounded, 0, b))


def off_by(coefficients: Any, error: Any, whole: Any) -> Any:
  """How far <coefficients, x> is off where x is off by `error`, an array of the shape of the coefficients.

  Coefficients that are too small to be kept count as if they were not, each beside an element of `whole`, the error of
  all elements that there are.
  """
  info = jnp.finfo(coefficients.dtype)
  vanished = jnp.sum(jnp.where(jnp.isfinite(whole), whole, 0)) * (info.tiny / info.eps)
  return dot(jnp.abs(coefficients), error) + vanished.astype(info.dtype)


@jax.custom_jvp
def dot(row: Any, x: Any) -> Any:
  """<row, x>, where a coefficient of 0 meets an infinite or undefined element as 0; gradients see finite elements."""
  return jnp.sum(jnp.where(row == 0, 0, row * x))


@dot.defjvp
def _dot_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
  """By contractions: where many rows meet one x, XLA's CPU code is slow at sums of products (jaxlib 0.10.2)."""
  (row, x), (drow, dx) = primals, tangents
  contract = functools.partial(jnp.vdot, precision=lax.Precision.HIGHEST)
  value = dot(row, x)
  slope = contract(jnp.where(jnp.isfinite(x), x, 0), drow) + contract(row, dx)
  return value, slope.astype(value.dtype)
