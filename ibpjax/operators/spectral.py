"""Spectral norms of linear maps: from below for training, from above or exactly for certificates.

What certificates take is computed in float64 on the host and rounded up by a stated allowance. Power iteration, however
many its steps, is a lower bound: it steers training and certifies nothing.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

KINDS = ('upper', 'lower', 'exact', 'probabilistic')
CERTIFYING = ('upper', 'exact')  # not what holds with some probability
WHOLE = 4e6  # entries of a matrix whose singular values are affordable
_UNIT = float(np.finfo(np.float64).eps) / 2


@dataclasses.dataclass(frozen=True)
class NormBound:
  """What is known about the l2 norm of a linear map.

  Attributes:
    value: a float, the allowance for rounding included.
    kind: 'upper' (the norm is at most `value`), 'lower' (at least), 'exact' (at most, and equal up to the allowance),
      or 'probabilistic' (at most, but for an event of probability `failure` of the random numbers drawn).
    slack: the relative allowance for rounding that `value` includes.
    failure: a probability; 0 but for `kind` 'probabilistic'.
    method: how it was found, for reports.
  """
  value: float
  kind: str
  slack: float
  failure: float = 0.
  method: str = ''

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise ValueError(f'kind is {self.kind!r}; it is one of {", ".join(KINDS)}')

  @property
  def certifies(self) -> bool:
    """Whether certificates may rest on it: not on lower bounds, and not on what holds with some probability."""
    return self.kind in CERTIFYING


def weakest(kinds: Sequence[str]) -> str:
  """What a product or sum of norms is: norms may be exact, of several only an upper bound remains."""
  found = next((k for k in ('lower', 'probabilistic', 'upper') if k in kinds), 'exact')
  return 'upper' if found == 'exact' and len(kinds) > 1 else found


def rounded_up(value: float, slack: float, kind: str, method: str, failure: float = 0.) -> NormBound:
  """A bound from above with its allowance added; NaN becomes infinite."""
  value = float(value) * (1 + slack)
  return NormBound(np.inf if np.isnan(value) else value, kind, slack, failure, method)


def power_of_2(x: float) -> float:
  """The greatest power of 2 up to x > 0: a scale that rounds nothing."""
  return float(2. ** np.floor(np.log2(x)))


def dense(matrix: Any) -> NormBound:
  """The norm of a matrix by its singular values in float64; of a stack of matrices (..., m, n) the greatest.

  The allowance is 8 max(m, n) roundings: LAPACK's singular values are those of a matrix that near, and its constants
  are moderate.
  """
  matrix = np.asarray(matrix)
  matrix = matrix.astype(np.complex128 if np.iscomplexobj(matrix) else np.float64)
  if not matrix.size:
    return NormBound(0., 'exact', 0., method='singular values')
  if not np.isfinite(matrix).all():
    return NormBound(np.inf, 'upper', 0., method='singular values')
  found = np.linalg.svd(matrix, compute_uv=False).max()
  return rounded_up(found, 16 * max(matrix.shape[-2:]) * _UNIT, 'exact', 'singular values')


def gram(matrix: Any, steps: int = 8) -> NormBound:
  """An upper bound of the norm of a matrix, of a stack (..., m, n) the greatest: ||G_t||_F^(1 / 2^t), G -> G^H G.

  Each step squares the ratios of singular values, so that the Frobenius norm has fewer of them to count; magnitudes are
  taken out and kept as logarithms. In float64.

  Source: Delattre et al. 2023, Gram iteration.
  """
  matrix = np.asarray(matrix)
  matrix = matrix.astype(np.complex128 if np.iscomplexobj(matrix) else np.float64)
  if not matrix.size:
    return NormBound(0., 'upper', 0., method='Gram iteration')
  m, n = matrix.shape[-2:]
  if n > m:
    matrix = np.swapaxes(matrix, -1, -2)
  largest = float(np.max(np.abs(matrix)))
  if not 0 < largest < np.inf:
    return NormBound(0. if largest == 0 else np.inf, 'upper', 0., method='Gram iteration')
  value = largest * float(np.exp(_log_gram(np, matrix / largest, steps).max()))
  # a step errs by (n u) ||G||_F^2, at most rank * n u of ||G||^2; step t weighs 2^-t in the result
  return rounded_up(value, 8 * max(m, n) * min(m, n) * _UNIT + 1e-12, 'upper', f'Gram iteration, {steps} steps')


def log_gram(matrix: Any, steps: int = 6) -> Any:
  """The logarithm of the bound of `gram` for matrices (..., m, n), in JAX: differentiable, without an allowance."""
  largest = lax.stop_gradient(jnp.max(jnp.abs(matrix)))  # or squares vanish, or overflow
  scale = jnp.where(largest > 0, largest, 1)
  return _log_gram(jnp, matrix / scale, steps) + jnp.log(scale)


def _log_gram(xp: Any, g: Any, steps: int) -> Any:
  """log of ||G_t||_F^(1 / 2^t), (...,); -inf for a matrix of zeros."""
  total = xp.zeros(g.shape[:-2], xp.finfo(g.dtype).dtype)
  for t in range(steps + 1):
    square = xp.sum(xp.real(g * xp.conj(g)), axis=(-2, -1))
    positive = square != 0  # NaN stays
    safe = xp.sqrt(xp.where(positive, square, 1))
    total = total + xp.where(positive, xp.log(safe), -xp.inf) / 2 ** t
    if t < steps:
      g = g / safe[..., None, None]
      g = xp.matmul(xp.swapaxes(xp.conj(g), -1, -2), g)
  return total


# ------------------------------------------------------------------------------- matrix-free
def random_start(key: Any, like: Any) -> Any:
  """A random start of `power_iteration`, of norm 1: orthogonal to no fixed direction, as ones would be.

  Args:
    key: PRNG key.
    like: a pytree of arrays, whose shapes and dtypes it has.
  """
  leaves, tree = jax.tree.flatten(like)
  keys = jax.random.split(key, len(leaves))
  v = jax.tree.unflatten(tree, [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves)])
  return _scaled(v, 1 / jnp.sqrt(_square(v)))


def _square(v: Any) -> Any:
  return sum(jnp.sum(x * x) for x in jax.tree.leaves(v))


def _scaled(v: Any, factor: Any) -> Any:
  return jax.tree.map(lambda x: x * factor.astype(x.dtype), v)


def power_iteration(apply: Callable[[Any], Any], v: Any, steps: int = 10) -> tuple[Any, Any]:
  """A lower bound of the norm of a linear map, differentiable in what the map is made of.

  Args:
    apply: a linear function of a pytree of arrays like `v`, to another; the transpose is derived.
    v: where it starts, of norm 1: that of `random_start` first, then the one returned before. Carried from step to
      step of a training it follows the weights.
    steps: of the iteration.

  Returns:
    (||A v||, v). The derivative of the norm is that of ||A v|| at fixed v, which is the one of the singular value when
    v has converged; 0 for a map that sends v to 0. v is a constant.
  """
  transpose = jax.linear_transpose(apply, v)

  def step(v, _):
    w, = transpose(apply(v))
    largest = jnp.max(jnp.asarray([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(w)]))
    usable = (largest > 0) & jnp.isfinite(largest)  # else what is there is kept
    # scaled first, or squares vanish or overflow; and no tiny number is added to the norm, which would shorten v
    w = _scaled(w, 1 / jnp.where(usable, largest, 1))
    unit = _scaled(w, 1 / jnp.sqrt(jnp.where(usable, _square(w), 1)))
    return jax.tree.map(lambda new, old: jnp.where(usable, new, old), unit, v), None
  v, _ = lax.scan(step, lax.stop_gradient(v), length=steps)
  v = lax.stop_gradient(v)
  square = _square(apply(v))
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0), v


def lanczos(gram_map: Callable[[np.ndarray], np.ndarray], size: int, rng: np.random.Generator, *, steps: int = 200,
            failure: float = 1e-9) -> NormBound:
  """An upper bound of the norm of A that holds but with a given probability, from products with A^T A alone.

  The start b is uniform on the unit sphere, drawn here and so independent of A. After k steps, with Ritz values theta_i
  and off-diagonal entries beta_i (the last one the length of the residual), the monic polynomial chi that has the Ritz
  values as roots satisfies ||chi(A^T A) b|| = prod beta_i. So the part of b along the greatest eigenvector is at most
  prod beta_i / chi(||A||^2), and that it is less than t has probability at most sqrt(2 n / pi) t. The bound is the
  square root of the lambda > theta_1 at which chi(lambda) = prod beta_i / t, with that probability equal to `failure`.

  Args:
    gram_map: v -> A^T A v, for float64 vectors (size,).
    size: columns of A.
    rng: of the start.
    steps: at most; fewer if the space is exhausted.
    failure: the probability that the bound is wrong.

  Source: Kuczynski and Wozniakowski 1992 for the question; the bound after the fact is derived. Its allowance for
  rounding, 1e-9 and residuals of at least 1e-14 of the norm, with vectors orthogonalised twice, is not proved.
  """
  if not size:
    return NormBound(0., 'exact', 0., method='Lanczos')
  steps = min(steps, size)
  basis = np.empty((steps, size))
  v = rng.normal(size=size)
  v /= np.linalg.norm(v)
  diagonal, beside = np.zeros(steps), np.zeros(steps)
  count, unit = 0, 1.
  for i in range(steps):
    basis[i] = v
    w = np.asarray(gram_map(v), np.float64) / unit
    if not np.isfinite(w).all():
      return NormBound(np.inf, 'upper', 0., method='Lanczos')
    if not i and (w != 0).any():  # squares of what is very small would vanish
      unit = power_of_2(np.abs(w).max())
      w /= unit
    diagonal[i] = v @ w
    for _ in range(2):
      w = w - basis[:i + 1].T @ (basis[:i + 1] @ w)
    count, beside[i] = i + 1, np.linalg.norm(w)
    if beside[i] <= 1e-13 * np.max(np.abs(diagonal[:count])):  # an invariant space
      break
    v = w / beside[i]
  inner = beside[:count - 1]
  ritz = np.linalg.eigvalsh(np.diag(diagonal[:count]) + np.diag(inner, 1) + np.diag(inner, -1))
  top = ritz[-1]
  if not top > 0:
    return rounded_up(0. if top == 0 else np.inf, 1e-9, 'probabilistic', f'Lanczos, {count} steps', failure)
  needed = np.sum(np.log(inner)) + np.log(max(beside[count - 1], 1e-14 * top)) + np.log(
      np.sqrt(2 * size / np.pi) / failure)
  below, above = 0., 1.  # of lambda / theta_1 - 1, where chi is too small and where it is large enough

  def reaches(excess):
    return np.sum(np.log(top - ritz + top * excess)) >= needed
  while not reaches(above):
    below, above = above, 2 * above
  for _ in range(60):
    middle = (below + above) / 2
    below, above = (below, middle) if reaches(middle) else (middle, above)
  value = np.sqrt(top * (1 + above)) * np.sqrt(unit)
  return rounded_up(value, 1e-9, 'probabilistic', f'Lanczos, {count} steps', failure)
