"""Directed rounding: numbers and sums rounded down or up to a dtype, exact ones kept as they are.

The error of a sum is found by Knuth's TwoSum (Muller et al., Handbook of Floating-Point Arithmetic, 2nd ed., section
4.3.2), and an end moves by one unit in the last place only where that error has the wrong sign. XLA takes numbers too
small to be normal for 0 (but those of float16 and shorter types), in comparisons too. So they are looked for among the
bits, and an end that would be one becomes the next normal number outward, or 0: what is computed from it later then
holds as well.
"""
from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ibpjax.core.subnormal import without_subnormal

DOWN, UP = -1, 1


def converted(x: Any, dtype: Any, towards: int) -> jax.Array:
  """A number or an array of numbers in `dtype`, rounded towards DOWN or UP where it has no such number.

  Its derivative is 1. Numbers that are being traced have been rounded before, by whoever made a tracer of them.
  """
  if not isinstance(x, jax.core.Tracer):
    x = rounded(x, dtype, towards)
  return _converted(jnp.asarray(x), np.dtype(dtype), towards)


def rounded(x: Any, dtype: Any, towards: int) -> np.ndarray:
  """Numbers that can be looked at in `dtype`, rounded towards DOWN or UP, in NumPy: subnormal ones stay."""
  x = np.asarray(x)
  if x.dtype == dtype:
    return x
  given = x.astype(np.longdouble)
  with np.errstate(over='ignore', under='ignore'):
    near = given.astype(dtype)
    off = towards * near.astype(np.longdouble) < towards * given
    return np.where(off, np.nextafter(near, np.asarray(towards * np.inf, dtype)), near)


def shifted(x: Any, radius: Any, towards: int) -> Any:
  """x - radius rounded down (towards DOWN), or x + radius rounded up (towards UP), in the dtype of `x`.

  Args:
    x: array of floats.
    radius: array of that dtype, >= 0, that broadcasts with `x`.
    towards: DOWN or UP.

  The derivative is 1 in x, and -1 or 1 in the radius.
  """
  return _shifted(*jnp.broadcast_arrays(x, radius), towards)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
@functools.partial(jax.jit, static_argnums=(1, 2))
def _converted(x: Any, dtype: np.dtype, towards: int) -> Any:
  wide = np.dtype(np.float64) if np.dtype(np.float64) in (x.dtype, dtype) else np.dtype(np.float32)
  unknown = jnp.zeros(x.shape, bool)
  if jnp.issubdtype(x.dtype, jnp.floating):
    x = _moved(x, unknown, towards).astype(wide)
  else:  # integers: from here on some have no float
    x = x.astype(wide)
    unknown = jnp.abs(x) >= 2. ** jnp.finfo(wide).nmant
  near = _nearest(x, dtype)
  beyond = jnp.isfinite(x) & (towards * near == -jnp.inf)  # of what overflows inward, the greatest number there is
  near = jnp.where(beyond, -towards * float(jnp.finfo(dtype).max), near)
  return _moved(near.astype(dtype), ((towards * (x - near) > 0) & ~beyond) | unknown, towards)


@_converted.defjvp
def _converted_jvp(dtype: np.dtype, towards: int, primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
  x, = primals
  change = tangents[0].astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.zeros(x.shape, dtype)
  return _converted(x, dtype, towards), change


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
@functools.partial(jax.jit, static_argnums=2)
def _shifted(x: Any, radius: Any, towards: int) -> Any:
  dtype, nowhere = np.dtype(x.dtype), jnp.zeros(x.shape, bool)
  wide = np.dtype(np.float32) if dtype.itemsize < 4 else dtype  # in which no number of a narrower dtype is too small
  a = _moved(x, nowhere, towards).astype(wide)
  b = _moved(-radius if towards == DOWN else radius, nowhere, towards).astype(wide)
  total = a + b
  of_b = total - a
  error = (a - (total - of_b)) + (b - of_b)
  near = _nearest(total, dtype)
  rest = total - near
  wrong = towards * jnp.where(rest == 0, error, rest) > 0
  # Above this size all that TwoSum computes is normal or 0; below, its error might have vanished.
  small = float(jnp.finfo(wide).tiny) * 2. ** (jnp.finfo(wide).nmant + 1)
  unknown = (a != 0) & (b != 0) & (jnp.minimum(jnp.abs(a), jnp.abs(b)) < small)
  return _moved(near.astype(dtype), wrong | unknown, towards)


@_shifted.defjvp
def _shifted_jvp(towards: int, primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
  return _shifted(*primals, towards), tangents[0] + towards * tangents[1]


def _nearest(x: Any, dtype: np.dtype) -> Any:
  """The nearest number of `dtype`, in the dtype of x; a conversion there and back may be left out by XLA."""
  if x.dtype == dtype or dtype.itemsize > x.dtype.itemsize:
    return x
  info = jnp.finfo(dtype)
  near = lax.reduce_precision(x, int(info.nexp), int(info.nmant))
  if dtype == np.float16:  # whose numbers too small to be normal are kept, but not by reduce_precision
    near = jnp.where(jnp.abs(x) < float(info.tiny), jnp.round(x * 2. ** 24) * 2. ** -24, near)
  return near


def _moved(x: Any, where: Any, towards: int) -> Any:
  """`x`, by one unit in the last place further `where` that is true; subnormal numbers outward, all by bits.

  Infinities and NaN stay.
  """
  dtype = np.dtype(x.dtype)
  if dtype.itemsize not in (2, 4, 8):
    raise TypeError(f'{dtype} cannot be rounded outward: convert to a float type of 16 bits or more first')
  bits = np.dtype(f'int{8 * dtype.itemsize}')
  sign = np.iinfo(bits).min
  infinite = int(np.asarray(np.inf, dtype).view(bits))
  raw = lax.bitcast_convert_type(x, bits)
  size = raw & np.iinfo(bits).max
  place = jnp.where(raw < 0, -size, size)  # numbers in order
  place = jnp.where(where & (size < infinite), place + towards, place)
  moved = lax.bitcast_convert_type(jnp.where(place < 0, -place | sign, place), dtype)
  return without_subnormal(moved, towards)
