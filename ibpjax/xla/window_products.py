"""Convolutions of windows that do not overlap, whose derivatives are products of matrices.

The derivative by the image that JAX derives spreads what comes back between zeros: XLA's CPU code (jaxlib 0.10.2) takes
ten times as long for it as for the convolution, with the compiler options of training a hundred times.
"""
from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def patches(x: Any, kernel: Any, precision: Any = None) -> Any:
  """(batch, h, w, in) -> (batch, h // size, w // across, out): windows at strides of their size, no padding.

  Args:
    x: images; what is left at their ends is not seen.
    kernel: (size, across, in, out).
    precision: as in `lax.conv_general_dilated`.
  """
  return lax.conv_general_dilated(x, kernel, kernel.shape[:2], 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
                                  precision=precision)


@functools.partial(patches.defjvp, symbolic_zeros=True)
def _derivative(precision, primals, tangents):
  x, kernel = primals
  parts = [_product(*pair, precision) for pair in ((tangents[0], kernel), (x, tangents[1]))
           if not any(isinstance(a, jax.custom_derivatives.SymbolicZero) for a in pair)]
  out = patches(x, kernel, precision)
  return out, sum(parts) if parts else jnp.zeros_like(out)


def _product(x, kernel, precision):
  """The same by one product of matrices."""
  size, across, into, out = kernel.shape
  n, h, w = len(x), x.shape[1] // size, x.shape[2] // across
  blocks = x[:, :h * size, :w * across].reshape(n, h, size, w, across, into).transpose(0, 1, 3, 2, 4, 5)
  return jnp.matmul(blocks.reshape(n, h, w, -1), kernel.reshape(-1, out), precision=precision)


def as_convolution(x: Any, kernel: Any, strides: Any, padding: Any, *, lhs_dilation: Any = (1, 1),
                   rhs_dilation: Any = (1, 1), feature_group_count: int = 1, precision: Any = None, **_: Any) -> Any:
  """`patches` for an `nnx.Conv` with these strides and no padding, as its `conv_general_dilated`.

  Raises:
    ValueError: other strides, padding, dilation, groups.
  """
  if tuple(strides) != kernel.shape[:2] or any(map(any, padding)):
    raise ValueError(f'strides {strides} and padding {padding}: windows of {kernel.shape[:2]} that do not overlap have '
                     'strides of their size and no padding')
  if set((*lhs_dilation, *rhs_dilation, feature_group_count)) != {1}:
    raise ValueError(f'dilations {lhs_dilation}, {rhs_dilation} and {feature_group_count} groups: windows that do not '
                     'overlap have neither')
  return patches(x, kernel, precision)
