"""A convolution without strides whose derivatives XLA's CPU code is fast at.

It is fast (jaxlib 0.10.2) for images in the order (batch, height, width, channels) and kernels (height, width,
in, out). JAX's own derivatives have other orders: inside loops and branches the one by the image takes thirty
times as long, and the one by the kernel, a sum over all rows of all examples, anywhere. Other platforms have theirs.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching, mlir

from ibpjax.xla.batching import sum_over

plain_convolution_p = jex.Primitive('plain_convolution')
_FEW = 64  # channels


def convolve(x: Any, kernel: Any, padding: Sequence[tuple[int, int]], precision: Any = None, dtype: Any = None) -> Any:
  """The convolution of images with a kernel.

  Args:
    x: (batch, *space, in).
    kernel: (*window, in, out).
    padding: numbers of zeros before and after the image on each axis of space.
    precision, dtype: as in `lax.conv_general_dilated`.
  """
  return plain_convolution_p.bind(x, kernel, padding=tuple(padding), precision=precision, dtype=dtype)


def _run(x, kernel, *, padding, precision, dtype):
  n = len(padding)
  axes = tuple(range(1, n + 1))
  numbers = lax.ConvDimensionNumbers((0, n + 1, *axes), (n + 1, n, *range(n)), (0, n + 1, *axes))
  return lax.conv_general_dilated(x, kernel, (1,) * n, padding, dimension_numbers=numbers,
                                  precision=precision, preferred_element_type=dtype)


def _by_taps(x, kernel, *, padding, precision, dtype):
  """The same on CPUs, where zeros beside the image are many and channels few.

  The taps along the first axis of space are channels of a convolution along the others, whose parts are moved and
  added. So the products with zeros along the first axis are left out, and those that remain are wider.
  """
  n, (first, *others), (into, out) = len(padding), kernel.shape[:len(padding)], kernel.shape[len(padding):]
  (before, after), *beside = padding
  if before + after < first or min(before, after) < 0 or out > _FEW:
    return _run(x, kernel, padding=padding, precision=precision, dtype=dtype)
  taps = jnp.moveaxis(kernel, 0, n).reshape(1, *others, into, first * out)
  parts = _run(x, taps, padding=((0, 0), *beside), precision=precision, dtype=dtype)
  parts = parts.reshape(*parts.shape[:-1], first, out)
  length = x.shape[1]
  size = length + before + after - first + 1
  found = lax.pad(parts[..., 0, :], jnp.zeros((), parts.dtype),
                  [(0, 0, 0), (before, size - before - length, 0), *[(0, 0, 0)] * n])
  for i in range(1, first):  # a sum of padded parts would be computed anew for all its uses
    low, high = max(0, before - i), min(size, before - i + length)
    if low < high:
      part = lax.slice_in_dim(parts, low + i - before, high + i - before, axis=1)[..., i, :]
      found = lax.dynamic_update_slice_in_dim(found, lax.slice_in_dim(found, low, high, axis=1) + part, low, 1)
  return found


def _jvp(primals, tangents, **params):
  (x, kernel), (dx, dkernel) = primals, tangents
  terms = []
  if not isinstance(dx, ad.Zero):
    terms.append(plain_convolution_p.bind(dx, kernel, **params))
  if not isinstance(dkernel, ad.Zero):
    terms.append(plain_convolution_p.bind(x, dkernel, **params))
  return plain_convolution_p.bind(x, kernel, **params), sum(terms[1:], terms[0])


def _transpose(row, x, kernel, *, padding, **params):
  n = len(padding)
  if isinstance(row, ad.Zero):
    return None, None
  if ad.is_undefined_primal(x):
    back = jnp.swapaxes(lax.rev(kernel, tuple(range(n))), n, n + 1)
    found = plain_convolution_p.bind(row, back, padding=_around(kernel.shape, padding), **params)
    return found.astype(x.aval.dtype), None
  def fast(x, row):
    return _by_kernel(x, row, kernel.aval.shape[:n], padding, params['precision']).astype(kernel.aval.dtype)

  def plain(x, row):
    return jax.linear_transpose(lambda k: _run(x, k, padding=padding, **params), kernel.aval)(row)[0]
  return None, lax.platform_dependent(x, row, cpu=fast, default=plain)


def _around(window, padding):
  """The padding of the convolution that leads back."""
  return tuple((k - 1 - before, k - 1 - after) for k, (before, after) in zip(window, padding))


def _by_kernel(x, row, window, padding, precision):
  """The derivative by the kernel: one product of matrices, over all examples and places.

  The rows of one hold what the window sees along the axes of space but the first, those of the other the row at all
  its places along the first; or, where these are fewer, all that the window sees, and the row. As a convolution,
  examples and channels exchanged, it takes ten times as long.
  """
  n = len(window)
  around = _around(window, padding)
  if sum(map(sum, padding)) > sum(map(sum, around)) and all(min(p) >= 0 for p in around):
    # with the roles exchanged there is less padding, of which the products are 0
    other = _by_kernel(row, x, window, around, precision)
    return jnp.swapaxes(lax.rev(other, tuple(range(n))), n, n + 1)
  (first, *others), into, out = window, x.shape[-1], row.shape[-1]
  few = math.prod(window) * into <= math.prod(others) * into + first * out
  moves = 1 if few else first  # of the row, along the first axis; the window sees what is left
  taps, size = (first // moves, *others), (row.shape[1] + moves - 1, *row.shape[2:-1])
  columns, beside = math.prod(taps) * into, moves * out

  def product(arrays):
    x, row = arrays
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)])
    seen = jnp.stack([x[:, *(slice(i, i + m) for i, m in zip(at, size))] for at in np.ndindex(*taps)], -2)
    moved = jnp.stack([lax.pad(row, jnp.zeros((), row.dtype), [(0, 0, 0), (i, moves - 1 - i, 0), *[(0, 0, 0)] * n])
                       for i in range(moves)], -2)
    return lax.dot_general(seen.reshape(-1, columns), moved.reshape(-1, beside), (((0,), (0,)), ((), ())),
                           precision=precision)
  found = sum_over(product, (x, row), math.prod(size) * (columns + beside))
  return jnp.moveaxis(found.reshape(*taps, into, moves, out), -2, 0).reshape(*window, into, out)


def _batch(args, dims, **params):
  (x, kernel), (of_x, of_kernel) = args, dims
  n = len(params['padding'])
  if of_kernel is None:
    x = jnp.moveaxis(x, of_x, 0)
    out = plain_convolution_p.bind(x.reshape(-1, *x.shape[2:]), kernel, **params)
    return out.reshape(*x.shape[:2], *out.shape[1:]), 0
  if of_x is None:
    kernel = jnp.moveaxis(kernel, of_kernel, n + 1)
    out = plain_convolution_p.bind(x, kernel.reshape(*kernel.shape[:n + 1], -1), **params)
    return out.reshape(*out.shape[:-1], *kernel.shape[n + 1:]), n + 1
  return jax.vmap(lambda x, kernel: _run(x, kernel, **params), dims)(x, kernel), 0


def _shape(x, kernel, *, padding, precision, dtype):
  del precision
  space = [m + sum(p) - k + 1 for m, p, k in zip(x.shape[1:-1], padding, kernel.shape)]
  return jax.core.ShapedArray((x.shape[0], *space, kernel.shape[-1]), dtype or x.dtype)


plain_convolution_p.def_impl(jax.jit(_run, static_argnames=('padding', 'precision', 'dtype')))
plain_convolution_p.def_abstract_eval(_shape)
ad.primitive_jvps[plain_convolution_p] = _jvp
ad.primitive_transposes[plain_convolution_p] = _transpose
batching.primitive_batchers[plain_convolution_p] = _batch
mlir.register_lowering(plain_convolution_p, mlir.lower_fun(_run, multiple_results=False))
mlir.register_lowering(plain_convolution_p, mlir.lower_fun(_by_taps, multiple_results=False), platform='cpu')
