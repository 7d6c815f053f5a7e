"""Layers of Lipschitz networks: maps that compose to one operator, activations that only exchange elements."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from ibpjax.operators.declared import lipschitz_at_most
from ibpjax.xla.window_products import patches

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


def _blocks(x: Any, size: int, name: str) -> Any:
  """(batch, h, w, c) -> (batch, h / size, size, w / size, size, c)."""
  n, h, w, c = x.shape
  if h % size or w % size:
    raise ValueError(f'{name} cuts images into blocks of {size} x {size}, and they are {h} x {w}')
  return x.reshape(n, h // size, size, w // size, size, c)


def space_to_depth(x: Any, size: int = 2) -> Any:
  """Invertible downsampling: (batch, h, w, c) -> (batch, h / size, w / size, size^2 c); a rearrangement."""
  blocks = _blocks(x, size, 'space_to_depth').transpose(0, 1, 3, 2, 4, 5)
  return blocks.reshape(*blocks.shape[:3], -1)


def l2_pool(x: Any, size: int = 2) -> Any:
  """Norm pooling: (batch, h, w, c) -> (batch, h / size, w / size, c), the l2 norms of blocks; it lengthens nothing.

  Unlike averages, of norm 1 / size, it keeps lengths. Norms count 1e-12 as one element more, so that derivatives at 0
  are 0. (Pooling by maxima lengthens nothing either where windows do not overlap.)

  Source: the neck of BRONet (ICML 2025).
  """
  return _norms(_blocks(x, size, 'l2_pool'))


@lipschitz_at_most(1.)
def _norms(blocks: Any) -> Any:
  return jnp.sqrt(jnp.sum(jnp.square(blocks), (2, 4)) + 1e-24)


def _applied(x: Any, kernel: Any) -> Any:
  """A dense layer (in, out), or a convolution (h, w, in, out) of stride 1 that keeps the size."""
  return x @ kernel if kernel.ndim == 2 else lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=_NUMBERS)


def _channels(v: Any, ndim: int) -> Any:
  """One number a channel, as the last of so many axes."""
  return v.reshape((1,) * (ndim - 1) + (-1,))


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
    kernel = kernel * _channels(self.scale * self.gamma[...], kernel.ndim)
    features, middle = kernel.shape[-1], tuple(n // 2 for n in kernel.shape[:-2])
    kernel = kernel.at[middle].add(jnp.eye(features, dtype=kernel.dtype))
    return _applied(x, kernel) + _channels(self.bias[...], x.ndim)


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


def _unit(x: Any) -> tuple[Any, Any]:
  """(an array over its greatest magnitude, that), so that products do not vanish or overflow; (0, 1) for tiny ones."""
  largest = lax.stop_gradient(jnp.max(jnp.abs(x)))
  usable = largest > 1e-30
  return jnp.where(usable, x / jnp.where(usable, largest, 1), 0), jnp.where(usable, largest, 1)


def orthogonalised(x: Any, share: float = 1e-3) -> Any:
  """A matrix (m, n), m <= n, of norm below 1 and nearly orthogonal rows: R^-1 X with R R^T = X X^T + eta I.

  eta is `share` of the mean of the diagonal of X X^T, a constant for gradients: the singular values sigma become
  sigma / sqrt(sigma^2 + eta).

  Source: Hu et al. 2024, the Cholesky-orthogonal layers of the released code.
  """
  x, _ = _unit(x)
  with jax.default_matmul_precision('highest'):
    gram = x @ x.T
    eta = lax.stop_gradient(share * jnp.mean(jnp.diagonal(gram)))
    factor = jnp.linalg.cholesky(gram + (eta + jnp.finfo(x.dtype).tiny) * jnp.eye(len(x), dtype=x.dtype))
    return jax.scipy.linalg.solve_triangular(factor, x, lower=True)


def _lengthening_nothing(w: Any) -> Any:
  """`orthogonalised` along the shorter side."""
  return orthogonalised(w.T).T if w.shape[0] >= w.shape[1] else orthogonalised(w)


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
    return x @ _lengthening_nothing(w) + self.bias[...][None]


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
    kernel = _lengthening_nothing(self.kernel[...]).reshape(self.size, self.size, self.channels, -1)
    return patches(x, kernel)


class ConvResidual(nnx.Module):
  """x -> x + gamma * (convolution, MinMax, convolution): a residual block with an activation inside, for comparison.

  Lipschitz bounds of its branches add: 1 + |gamma| times a product, which the block itself hardly reaches.

  Args:
    features: channels in and out, even.
    size: of the kernels.

  Source: the conventional block of Hu et al. 2023, whose scale gamma starts at 0.
  """

  def __init__(self, features: int, *, size: int = 3, rngs: nnx.Rngs):
    make = lambda: nnx.Conv(features, features, (size, size), kernel_init=jax.nn.initializers.orthogonal(), rngs=rngs)
    self.first, self.second = make(), make()
    self.gamma = nnx.Param(jnp.zeros((), jnp.float32))

  def __call__(self, x: Any) -> Any:
    """(batch, h, w, features) -> the same shape."""
    return x + self.gamma[...] * self.second(min_max(self.first(x)))


def _inverse(x: Any, there: Any) -> Any:
  """1 / x, 0 where there is none."""
  return jnp.where(there, 1 / jnp.where(there, x, 1), 0)


def _common(kernel: Any) -> Any:
  """(n, n): how much each two filters of a convolution (h, w, c, n) have in common, summed over shifts: |W W^T|."""
  with jax.default_matmul_precision('highest'):
    shifted = lax.conv_general_dilated(jnp.transpose(kernel, (3, 0, 1, 2)), kernel, (1, 1),
                                       [(k - 1, k - 1) for k in kernel.shape[:2]], dimension_numbers=_NUMBERS)
  return jnp.sum(jnp.abs(shifted), (1, 2))


class AOL(nnx.Module):
  """A convolution or dense layer almost orthogonal by rescaled inputs: it lengthens nothing.

  W diag(d) with d_i = (sum over j of |W^T W|_ij)^(-1/2), summed over shifts too for convolutions.

  Args:
    features, out: channels in and out.
    size: of the kernel, of stride 1 and padded to the same size; None for a dense layer.

  Source: Prach and Lampert 2022.
  """

  def __init__(self, features: int, out: int, *, size: int | None = 3, rngs: nnx.Rngs):
    space = () if size is None else (size, size)
    kernel = jax.nn.initializers.orthogonal()(rngs.params(), (features, out), jnp.float32)
    middle = jnp.zeros((*space, features, out), jnp.float32).at[tuple(n // 2 for n in space)].set(kernel)
    self.kernel, self.bias = nnx.Param(middle), nnx.Param(jnp.zeros(out, jnp.float32))

  def __call__(self, x: Any) -> Any:
    """(batch, ..., features) -> (batch, ..., out)."""
    kernel = self.kernel[...]
    wide, _ = _unit(kernel if kernel.ndim == 4 else kernel[None, None])
    sums = jnp.sum(_common(jnp.swapaxes(wide, 2, 3)), 1)
    wide = wide * _inverse(jnp.sqrt(jnp.where(sums > 0, sums, 1)), sums > 0).reshape(1, 1, -1, 1)
    return _applied(x, wide.reshape(kernel.shape)) + _channels(self.bias[...], x.ndim)


class SLL(nnx.Module):
  """x -> x - 2 W^T T^-1 relu(W x + b): a 1-Lipschitz residual block with its activation inside.

  T is diagonal, T_i = sum over j of |W W^T|_ij q_j / q_i, summed over shifts too for convolutions. That the block
  lengthens nothing is a theorem, of which `ibpjax.lipschitz` is told; no bound of the parts would find it.

  Args:
    features: channels in and out.
    hidden: channels inside; default as many.
    size: of the kernel, odd; None for a dense layer.

  Source: Araujo et al. 2023.
  """

  def __init__(self, features: int, hidden: int | None = None, *, size: int | None = 3, rngs: nnx.Rngs):
    if size is not None and size % 2 == 0:
      raise ValueError(f'size is {size}: the transposed convolution has the same padding for odd kernels only')
    hidden = features if hidden is None else hidden
    space = () if size is None else (size, size)
    draw = jax.nn.initializers.xavier_normal()
    self.kernel = nnx.Param(draw(rngs.params(), (*space, features, hidden), jnp.float32))
    self.bias, self.log_q = (nnx.Param(jnp.zeros(hidden, jnp.float32)) for _ in range(2))

  def __call__(self, x: Any) -> Any:
    """(batch, ..., features) -> the same shape."""
    return _sll(x, self.kernel[...], self.bias[...], self.log_q[...])


@lipschitz_at_most(1.)
def _sll(x: Any, kernel: Any, bias: Any, log_q: Any) -> Any:
  wide = kernel if kernel.ndim == 4 else kernel[None, None]
  unit, largest = _unit(wide)
  common = _common(unit)
  ratios = jnp.exp(jnp.where(common > 0, log_q[None] - log_q[:, None], 0))  # infinite ones switch a filter off
  sums = jnp.sum(jnp.where(common > 0, common * ratios, 0), 1)
  back = jnp.swapaxes(unit[::-1, ::-1] * _channels(2 / largest * _inverse(sums, sums > 0), 4), 2, 3)
  hidden = jax.nn.relu(_applied(x, kernel) + _channels(bias, x.ndim))
  return x - _applied(hidden, back if kernel.ndim == 4 else back[0, 0])
