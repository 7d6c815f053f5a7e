"""Spectral norms of convolutions on images of a given size, from above and exactly."""
from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import lax

from ibpjax.operators.spectral import WHOLE, NormBound, dense, gram, lanczos, power_of_2, rounded_up

if TYPE_CHECKING:
  import scipy.sparse

_UNIT = float(np.finfo(np.float64).eps) / 2
_NUMBERS = ('NHWC', 'HWIO', 'NHWC')


@dataclasses.dataclass(frozen=True, eq=False)
class Convolution:
  """A convolution without bias on images of one size.

  Attributes:
    kernel: (height, width, in, out) float64.
    size: (height, width) of the images.
    strides: along both axes.
    padding: zeros (before, after) on both axes; negative ones crop and are refused.
    circular: images wrap around in the place of zeros: stride 1, any kernel not larger than the image.
  """
  kernel: np.ndarray
  size: tuple[int, int]
  strides: tuple[int, int] = (1, 1)
  padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
  circular: bool = False

  def __post_init__(self) -> None:
    object.__setattr__(self, 'kernel', np.asarray(self.kernel, np.float64))
    if self.kernel.ndim != 4:
      raise ValueError(f'the kernel has shape {self.kernel.shape}; it has (height, width, in, out)')
    if min(p for pair in self.padding for p in pair) < 0:
      raise ValueError(f'padding is {self.padding}: to crop, crop the image first')
    if self.circular and (self.strides != (1, 1) or any(k > n for k, n in zip(self.kernel.shape, self.size))):
      raise ValueError('circular convolutions have stride 1 and a kernel not larger than the image')
    if min(self.outputs) < 1:
      raise ValueError(f'a kernel of {self.kernel.shape[:2]} does not fit on images of {self.size} with padding '
                       f'{self.padding}')

  @property
  def outputs(self) -> tuple[int, int]:
    """(height, width) of the result."""
    if self.circular:
      return self.size
    high, wide = ((n + lo + hi - k) // s + 1 for n, k, s, (lo, hi) in zip(
        self.size, self.kernel.shape, self.strides, self.padding))
    return high, wide

  def __call__(self, x: Any) -> Any:
    """The result for one image (height, width, in), in JAX, in the dtype of the image."""
    if self.circular:
      (low, high), (left, right) = self.padding_around
      x, padding = jax.numpy.pad(x, ((low, high), (left, right), (0, 0)), mode='wrap'), ((0, 0), (0, 0))
    else:
      padding = self.padding
    return lax.conv_general_dilated(x[None], jax.numpy.asarray(self.kernel, x.dtype), self.strides, padding,
                                    dimension_numbers=_NUMBERS, precision=lax.Precision.HIGHEST)[0]

  @property
  def padding_around(self) -> tuple[tuple[int, int], tuple[int, int]]:
    """What circular convolutions wrap around on each side."""
    around = [(k // 2, k - 1 - k // 2) for k in self.kernel.shape[:2]]
    return around[0], around[1]

  @property
  def apart(self) -> bool:
    """Whether each pixel is in one window at most, and none leaves the image."""
    return not self.circular and all(k <= s for k, s in zip(self.kernel.shape, self.strides)) and not any(
        p for pair in self.padding for p in pair)

  def sparse(self) -> scipy.sparse.csr_matrix:
    """The matrix of the map, pixels in the order (height, width, channel)."""
    import scipy.sparse
    (n, m), (high, wide) = self.size, self.outputs
    into, out = self.kernel.shape[2:]
    padding = self.padding_around if self.circular else self.padding
    blocks, rows, columns = [], [], []
    for (i, j), (a, b) in itertools.product(np.ndindex(high, wide), np.ndindex(*self.kernel.shape[:2])):
      y, x = i * self.strides[0] - padding[0][0] + a, j * self.strides[1] - padding[1][0] + b
      if self.circular:
        y, x = y % n, x % m
      if 0 <= y < n and 0 <= x < m:
        blocks.append((a, b))
        rows.append((i * wide + j) * out)
        columns.append((y * m + x) * into)
    if not blocks:  # no window meets the image
      return scipy.sparse.csr_matrix((high * wide * out, n * m * into))
    values = np.stack([self.kernel[a, b].T for a, b in blocks])  # (blocks, out, in)
    r = np.asarray(rows)[:, None, None] + np.arange(out)[None, :, None] + np.zeros((1, 1, into), int)
    c = np.asarray(columns)[:, None, None] + np.arange(into)[None, None, :] + np.zeros((1, out, 1), int)
    return scipy.sparse.csr_matrix((values.ravel(), (r.ravel(), c.ravel())), (high * wide * out, n * m * into))


def by_matrix(convolution: Convolution) -> NormBound:
  """The exact norm, by the singular values of the whole matrix: for small images."""
  return dataclasses.replace(dense(convolution.sparse().toarray()), method='singular values of the convolution')


def by_patches(convolution: Convolution) -> NormBound:
  """The exact norm where each pixel is in one window: the kernel as a matrix (out, height * width * in).

  Raises:
    ValueError: windows overlap, or there is padding.
  """
  kernel = convolution.kernel
  if not convolution.apart:
    raise ValueError(f'windows of {kernel.shape[:2]} at strides {convolution.strides} with padding '
                     f'{convolution.padding} overlap or leave the image: this norm is exact without both only')
  return dataclasses.replace(dense(kernel.reshape(-1, kernel.shape[3])), method='the kernel as a matrix')


def by_torus(convolution: Convolution, gram_steps: int | None = None) -> NormBound:
  """An upper bound by the Fourier transform: on a torus so much larger that the zeros of the padding fit in.

  The convolution is the one on a torus of side N between an embedding and a crop, neither of which lengthens anything,
  where N >= n + the padding on each side and there are no more outputs than places; with strides s, N is a multiple of
  s, and the frequencies that fall together stand side by side, times 1 / sqrt(s_1 s_2). Circular convolutions are their
  own torus: then it is exact. (On the torus of side n itself it would be no bound of one with zero padding.)

  Args:
    gram_steps: bound each frequency by Gram iteration; default by singular values.

  Source: Sedghi et al. 2019 for circular convolutions; the embedding is derived.
  """
  kernel, strides = convolution.kernel, convolution.strides
  if not np.isfinite(kernel).all():
    return NormBound(np.inf, 'upper', 0., method='not finite')
  sides = []
  for n, out, s, (low, high) in zip(convolution.size, convolution.outputs, strides, convolution.padding):
    least = n if convolution.circular else max(n + max(low, high), out * s)
    sides.append(-(-least // s) * s)
  stacked = _frequencies(kernel, sides, strides)
  found = dense(stacked) if gram_steps is None else gram(stacked, gram_steps)
  # entries of the transform err by a few roundings of the sum of their terms
  terms = float(np.sqrt((kernel ** 2).sum((2, 3))).sum())
  error = 4 * (kernel.shape[0] * kernel.shape[1] + 8) * _UNIT * terms * np.sqrt(strides[0] * strides[1])
  value = (found.value + error) / np.sqrt(strides[0] * strides[1])
  value = np.inf if np.isnan(value) else value
  exact = convolution.circular and gram_steps is None and np.isfinite(value)
  slack = found.slack + (error / found.value if found.value > 0 else 0.)
  return NormBound(float(value * (1 + 4 * _UNIT)), 'exact' if exact else 'upper', slack,
                   method=f'a torus of {sides[0]} x {sides[1]}, {found.method}')


def _frequencies(kernel: np.ndarray, sides: list[int], strides: tuple[int, int]) -> np.ndarray:
  """(low frequencies, out, s_1 s_2 in): the matrices of a convolution on a torus, by direct sums over the taps."""
  waves = [np.exp(2j * np.pi * (np.outer(np.arange(n), np.arange(k)) % n) / n) for n, k in zip(sides, kernel.shape)]
  transformed = np.einsum('ua,vb,abio->uvoi', *waves, kernel, optimize=True)
  (n, m), (s, t) = sides, strides
  out, into = transformed.shape[2:]
  parts = transformed.reshape(s, n // s, t, m // t, out, into)
  stacked = np.moveaxis(parts, (1, 3, 4), (0, 1, 2)).reshape(n // s, m // t, out, s * t * into)
  half = stacked[:n // s // 2 + 1]  # of real kernels the other half is the conjugate one
  return half.reshape(-1, out, s * t * into)


def by_lanczos(convolution: Convolution, rng: np.random.Generator, **options: Any) -> NormBound:
  """An upper bound but for a probability, by products with the convolution; options as of `spectral.lanczos`."""
  convolution, unit = _scaled(convolution)
  matrix = convolution.sparse()
  return _scaled_back(lanczos(lambda v: matrix.T @ (matrix @ v), matrix.shape[1], rng, **options), unit)


def _scaled(convolution: Convolution) -> tuple[Convolution, float]:
  """(the convolution with weights of about 1, a power of 2 that it was divided by): squares neither vanish nor
  overflow."""
  largest = float(np.max(np.abs(convolution.kernel), initial=0))
  unit = power_of_2(largest) if np.isfinite(largest) and largest > 0 else 1.
  return dataclasses.replace(convolution, kernel=convolution.kernel / unit), unit


def _scaled_back(found: NormBound, unit: float) -> NormBound:
  """The bound for the convolution as it was; rounded up where numbers are too small for their precision."""
  value = found.value * unit
  return dataclasses.replace(found, value=float(np.nextafter(value, np.inf)) if value else 0.)


def by_cholesky(convolution: Convolution, candidate: float, margin: float = 1e-6) -> NormBound:
  """An upper bound that a factorisation proves: candidate * sqrt(1 + margin), or infinite where it fails.

  lambda I - A^T A is banded in the order of pixels. If the factorisation in float64 of this matrix minus c I ends, the
  matrix is positive: c is at least what rounding may have moved, of the factors (the matrix |R|^T |R| is banded and its
  entries at most lambda) and of A^T A.

  Args:
    candidate: what the norm is thought to be, from `power_iteration` or `lanczos`.
    margin: how far above it the bound is tried, relative to the square.

  Source: Rump, BIT 46, 2006, for factorisations as proofs; the allowance is derived.
  """
  import scipy.linalg
  convolution, unit = _scaled(convolution)
  matrix = convolution.sparse()
  product = (matrix.T @ matrix).tocoo()
  size, level = matrix.shape[1], (float(candidate) / unit) ** 2 * (1 + margin)
  method = f'Cholesky factorisation, {size} pixels and channels'
  if not np.isfinite(level) or not np.isfinite(product.data).all():
    return NormBound(np.inf, 'upper', 0., method=method)
  band = int(np.max(product.row - product.col, initial=0))
  absolute = abs(matrix)
  reach = float(absolute.sum(0).max() * absolute.sum(1).max())  # at least the norm of |A|^T |A|
  terms = int(np.diff(matrix.tocsc().indptr).max(initial=0))
  gamma = (band + 4) * _UNIT / (1 - (band + 4) * _UNIT)
  allowance = 2 * gamma * (2 * band + 1) * level + 2 * (terms + 2) * _UNIT * reach
  lower = product.row >= product.col
  banded = np.zeros((band + 1, size))
  banded[product.row[lower] - product.col[lower], product.col[lower]] = -product.data[lower]
  banded[0] += level - allowance
  try:
    scipy.linalg.cholesky_banded(banded, overwrite_ab=True, lower=True, check_finite=False)
  except np.linalg.LinAlgError:
    return NormBound(np.inf, 'upper', 0., method=f'{method} failed')
  return _scaled_back(rounded_up(np.sqrt(level), 8 * _UNIT, 'upper', method), unit)


def certified(convolution: Convolution, rng: np.random.Generator | None = None, *, band: float = 2e8) -> NormBound:
  """The tightest bound that certificates may rest on, of those that are affordable for its size.

  Exact where windows do not overlap, where images wrap around, or where the whole matrix has at most 4e6 entries; else
  the least of the torus's and what a factorisation proves of a candidate of Lanczos, where its band has at most so many
  entries.

  Args:
    rng: of the candidate; by default a fixed one, which costs tightness at worst.
    band: entries, of 8 bytes; 2e8 are 120 channels on images of 16 x 16. Where there is memory and time, 1e9 are enough
      for 256 channels.
  """
  if not np.isfinite(convolution.kernel).all():
    return NormBound(np.inf, 'upper', 0., method='not finite')
  high, wide, into, out = convolution.kernel.shape
  columns = convolution.size[0] * convolution.size[1] * into
  if convolution.apart:
    return by_patches(convolution)
  if convolution.circular:
    return by_torus(convolution)
  if columns * convolution.outputs[0] * convolution.outputs[1] * out <= WHOLE:
    return by_matrix(convolution)
  torus = by_torus(convolution)
  if columns * (high * convolution.size[1] + wide) * into > band:
    return torus
  candidate = by_lanczos(convolution, np.random.default_rng(0) if rng is None else rng, failure=1e-3)
  proved = by_cholesky(convolution, candidate.value)
  return min(torus, proved, key=lambda bound: bound.value)

