"""Layers of Lipschitz networks: maps that compose to one operator, activations that only exchange elements."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

_NUMBERS = ('NHWC', 'HWIO', 'NHWC')


def min_max(x: Any) -> Any:
  """MinMax: the greater and the lesser of the two halves of the last axis, which is even; a rearrangement.

  Source: Anil et al. 2019 (GroupSort of two), in the layout of Hu et al. 2023.
  """
  if x.shape[-1] % 2:
    raise ValueError(f'min_max pairs the two halves of the last axis, and it has {x.shape[-1]} elements: make it even')
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([jnp.maximum(a, b), jnp.minimum(a, b)], -1)


def group_sort(x: Any, size: int = 2) -> Any:
  """GroupSort: neighbours along the last axis sorted, so many at a time; a rearrangement.

  Source: Anil et al. 2019.
  """
  if x.shape[-1] % size:
    raise ValueError(f'group_sort sorts {size} neighbours at a time, and there are {x.shape[-1]} elements')
  return jnp.sort(x.reshape(*x.shape[:-1], -1, size), axis=-1).reshape(x.shape)


def space_to_depth(x: Any, size: int = 2) -> Any:
  """Invertible downsampling: (batch, h, w, c) -> (batch, h / size, w / size, size^2 c); a rearrangement."""
  n, h, w, c = x.shape
  if h % size or w % size:
    raise ValueError(f'space_to_depth cuts images into blocks of {size} x {size}, and they are {h} x {w}')
  blocks = x.reshape(n, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
  return blocks.reshape(n, h // size, w // size, size * size * c)


class LinearResidual(nnx.Module):
  """x -> (I + s * gamma * W) x + b, one convolution of stride 1 (or one dense layer): a linear residual block.

  Its norm is that of the sum, and no branch is bounded by itself. The activation comes behind it.

  Args:
    features: channels in and out.
    size: of the kernel, odd; None for a dense layer.
    scale: s, 1 / sqrt(depth) in a network of so many blocks.

  Source: Hu et al. 2023, section 3; the initialisation, of deviation 1 / (9 features) for size 3, of the released code.
  """

  def __init__(self, features: int, *, size: int | None = 3, scale: float = 1., rngs: nnx.Rngs):
    if size is not None and size % 2 == 0:
      raise ValueError(f'size is {size}: the identity has a place in the middle of odd kernels only')
    space = () if size is None else (size, size)
    count = features * (size or 1) ** 2
    self.kernel = nnx.Param(jax.random.normal(rngs.params(), (*space, features, features), jnp.float32) / count)
    self.gamma, self.bias = nnx.Param(jnp.ones(features, jnp.float32)), nnx.Param(jnp.zeros(features, jnp.float32))
    self.scale = scale

  def __call__(self, x: Any) -> Any:
    """(batch, ..., features) -> the same shape."""
    kernel = self.kernel[...]
    kernel = kernel * (self.scale * self.gamma[...]).reshape((1,) * (kernel.ndim - 1) + (-1,))
    features, middle = kernel.shape[-1], tuple(n // 2 for n in kernel.shape[:-2])
    kernel = kernel.at[middle].add(jnp.eye(features, dtype=kernel.dtype))
    y = x @ kernel if not middle else lax.conv_general_dilated(
        x, kernel, (1, 1), [(m, m) for m in middle], dimension_numbers=_NUMBERS)
    return y + self.bias[...].reshape((1,) * (y.ndim - 1) + (-1,))


class NormalisedHead(nnx.Module):
  """Logits by rows of norm 1 (last-layer normalisation): x -> x W^T + b, each w_i divided by its norm.

  No two rows are further apart than 2, and the scale of the logits is that of the features.

  Source: Singla and Feizi 2022; Hu et al. 2023.
  """

  def __init__(self, features: int, classes: int, *, rngs: nnx.Rngs):
    bound = features ** -.5
    kernel = jax.random.uniform(rngs.params(), (features, classes), jnp.float32, -bound, bound)
    self.kernel = nnx.Param(kernel)
    self.bias = nnx.Param(jnp.zeros(classes, jnp.float32))

  def __call__(self, x: Any) -> Any:
    """(batch, features) -> (batch, classes)."""
    square = jnp.sum(self.kernel[...] ** 2, 0, keepdims=True)
    kernel = self.kernel[...] / jnp.sqrt(jnp.maximum(square, jnp.finfo(square.dtype).tiny))
    return x @ kernel + self.bias[...][None]


def orthogonalised(x: Any, share: float = 1e-3) -> Any:
  """A matrix (m, n), m <= n, of norm below 1 and nearly orthogonal rows: R^-1 X with R R^T = X X^T + eta I.

  eta is `share` of the mean of the diagonal of X X^T, a constant for gradients: the singular values sigma become
  sigma / sqrt(sigma^2 + eta).

  Source: Hu et al. 2024, the Cholesky-orthogonal layers of the released code.
  """
  with jax.default_matmul_precision('highest'):
    gram = x @ x.T
    eta = lax.stop_gradient(share * jnp.mean(jnp.diagonal(gram)))
    factor = jnp.linalg.cholesky(gram + (eta + jnp.finfo(x.dtype).tiny) * jnp.eye(len(x), dtype=x.dtype))
    return jax.scipy.linalg.solve_triangular(factor, x, lower=True)


class OrthogonalDense(nnx.Module):
  """A dense layer whose matrix is `orthogonalised`: it lengthens nothing.

  Args:
    features, out: units in and out.
    residual: scale s of a linear residual layer, the matrix being that of I + s * gamma * W; None for W itself.

  Source: Hu et al. 2024.
  """

  def __init__(self, features: int, out: int, *, residual: float | None = None, rngs: nnx.Rngs):
    if residual is not None and features != out:
      raise ValueError(f'a residual layer has as many units out as in, not {features} and {out}')
    std = 1 / features if residual is not None else features ** -.5
    self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (features, out), jnp.float32))
    self.gamma, self.bias = nnx.Param(jnp.ones(out, jnp.float32)), nnx.Param(jnp.zeros(out, jnp.float32))
    self.residual = residual

  def __call__(self, x: Any) -> Any:
    """(batch, features) -> (batch, out)."""
    w = self.kernel[...]
    if self.residual is not None:
      w = jnp.eye(len(w), dtype=w.dtype) + self.residual * w * self.gamma[...][None]
    w = orthogonalised(w.T).T if w.shape[0] >= w.shape[1] else orthogonalised(w)
    return x @ w + self.bias[...][None]


class OrthogonalPatches(nnx.Module):
  """A convolution of windows that do not overlap, its kernel as a matrix `orthogonalised`: it lengthens nothing.

  Args:
    channels, out: in and out.
    size: of windows and strides.

  Source: Hu et al. 2024.
  """

  def __init__(self, channels: int, out: int, size: int, *, rngs: nnx.Rngs):
    count = channels * size ** 2
    self.kernel = nnx.Param(count ** -.5 * jax.random.normal(rngs.params(), (count, out), jnp.float32))
    self.size, self.channels = size, channels

  def __call__(self, x: Any) -> Any:
    """(batch, h, w, channels) -> (batch, h / size, w / size, out)."""
    w = self.kernel[...]
    w = orthogonalised(w.T).T if w.shape[0] >= w.shape[1] else orthogonalised(w)
    kernel = w.reshape(self.size, self.size, self.channels, -1)
    return lax.conv_general_dilated(x, kernel, (self.size, self.size), 'VALID', dimension_numbers=_NUMBERS)
