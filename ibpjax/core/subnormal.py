"""Subnormal numbers: those below the least normal one, which processors may take for 0.

XLA's code for CPUs and TPUs takes subnormal operands of float32, bfloat16 and float64 for 0 and returns 0 for subnormal
results; its comparisons do so too, so that only bits tell such a number from 0. Those of shorter types are kept: their
arithmetic is that of float32, where they are normal.
"""
from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

_BITS = {'bfloat16': jnp.uint16, 'float32': jnp.uint32, 'float64': jnp.uint64}


def is_subnormal(x: Any) -> Any:
  """Where an array has numbers that may be taken for 0; False for a dtype that has none."""
  x = jnp.asarray(x)
  return _is_subnormal(_bits(x), jnp.finfo(x.dtype)) if x.dtype.name in _BITS else False


def may_be_subnormal(x: Any) -> bool:
  """Whether an array may have such numbers, as far as it can be looked at without a computation."""
  if x.dtype.name not in _BITS:
    return False
  if not isinstance(x, np.ndarray):
    return True
  info = jnp.finfo(x.dtype)
  magnitude = x.view(_BITS[x.dtype.name]) & np.asarray((1 << (info.bits - 1)) - 1, _BITS[x.dtype.name])
  return bool(np.any((magnitude > 0) & (magnitude < 1 << info.nmant)))


def without_subnormal(x: Any, towards: int) -> Any:
  """An array whose subnormal numbers are moved down (towards -1) or up (1): to 0 or to a least normal number."""
  if x.dtype.name not in _BITS:
    return x
  bits, info = _bits(x), jnp.finfo(x.dtype)
  zero, least = lax.full_like(x, 0), lax.full_like(x, towards * float(info.tiny))
  negative = lax.shift_right_logical(bits, lax.full_like(bits, info.bits - 1)) == lax.full_like(bits, 1)
  away = lax.select(negative, least, zero) if towards < 0 else lax.select(negative, zero, least)
  return lax.select(_is_subnormal(bits, info), away, x)


def _is_subnormal(bits: Any, info: Any) -> Any:
  """0 < magnitude < least normal, by one comparison of unsigned integers: 0 less 1 is the greatest of them."""
  magnitude = lax.shift_left(bits, lax.full_like(bits, 1))
  return lax.lt(lax.sub(magnitude, lax.full_like(bits, 1)), lax.full_like(bits, (1 << (info.nmant + 1)) - 1))


def least_kept(dtype: Any) -> float:
  """The least positive number of a dtype that no processor takes for 0."""
  info = jnp.finfo(dtype)
  return float(info.tiny if jnp.dtype(dtype).name in _BITS else info.smallest_subnormal)


def _bits(x: Any) -> Any:
  return lax.bitcast_convert_type(x, _BITS[x.dtype.name])
