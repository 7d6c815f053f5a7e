"""Validation: what is said of a bad array, radius or argument before anything is bounded."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ibpjax.core.directed import rounded


def concrete(*xs: Any) -> bool:
  """Whether none of `xs` is being traced, so that its values can be looked at."""
  return not any(isinstance(x, jax.core.Tracer) for x in xs)


def as_floats(x: Any, name: str) -> jax.Array:
  """`x` as a float array, or an error that names it."""
  dtype = getattr(x, 'dtype', None) or np.asarray(x).dtype
  if not jnp.issubdtype(dtype, jnp.floating):
    raise TypeError(f'{name} has dtype {dtype}; bounds need floating point: convert it first, '
                    f'e.g. {name}.astype(jnp.float32) / 255 for images stored as uint8')
  return jnp.asarray(x)


def as_end(x: Any, name: str, towards: int) -> jax.Array:
  """An end of an interval as a float array; rounded outward where JAX does not hold it as it is given."""
  kept = as_floats(x, name)
  if (x.dtype if hasattr(x, 'dtype') else np.dtype(type(x))) == kept.dtype:
    return kept
  end = rounded(x, kept.dtype, towards)
  return jnp.asarray(float(end) if type(x) is float else end)   # a Python number adapts to other dtypes


def check_eps(eps: Any) -> None:
  """Raises if a radius is negative, infinite or NaN."""
  if concrete(eps) and not bool(np.all((np.asarray(eps) >= 0) & np.isfinite(np.asarray(eps)))):
    raise ValueError(f'eps is {eps}; a radius is finite and >= 0')


def numbered(given: tuple, argnum: int) -> int:
  """`argnum` as an index >= 0 of the arguments `given`, or a clear error."""
  if not -len(given) <= argnum < len(given):
    raise TypeError(f'argnum is {argnum}, and there are {len(given)} arguments (without those by name)')
  return argnum % len(given)
