"""Lipschitz bounds of any traced network: affine pieces as one operator each, 1-Lipschitz operations between them."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from ibpjax.core.validation import concrete
from ibpjax.engine.prepare import named_as
from ibpjax.operators import spectral_convolutions
from ibpjax.operators.networks import cut
from ibpjax.operators.piece_errors import matrix_error
from ibpjax.operators.piece_norms import piece_norm
from ibpjax.operators.pieces import AffineMap
from ibpjax.operators.spectral import CERTIFYING, NormBound, power_of_2, weakest
from ibpjax.operators.spectral_convolutions import Convolution

_SLACK = 1e-6  # relative, for known values (scales of batch norm, say) that the program itself computes in float32


@dataclasses.dataclass(frozen=True)
class LipschitzBound:
  """By how much at most a network lengthens, in l2 norms over all elements.

  Attributes:
    value: of all outputs stacked: ||f(x) - f(y)|| <= value ||x - y||; a float.
    pairs: for one output (classes,), an array (classes, classes): |(f_i - f_j)(x) - (f_i - f_j)(y)| <= pairs[i, j]
      ||x - y||; None for other outputs.
    kind, failure: as of a NormBound, of all norms together.
    slack: the relative allowances for rounding that `value` includes, of all norms together.
    parts: what it is made of, in order: (operation behind the affine map, line, NormBound).
  """
  value: float
  pairs: np.ndarray | None
  kind: str
  slack: float
  failure: float
  parts: tuple[tuple[str, str, NormBound], ...]

  @property
  def certifies(self) -> bool:
    """Whether certificates may rest on it."""
    return self.kind in CERTIFYING


def lipschitz(f: Callable, *, argnum: int = -1, norm: Callable[[Convolution], NormBound] | None = None) -> Callable:
  """Global l2 Lipschitz bounds of `f` in one of its arguments.

  The returned function takes the arguments of `f` (of the argument `argnum` only shapes and dtypes matter) and returns
  a LipschitzBound. `f` is cut at its nonlinear operations, which lengthen nothing by more than a known constant;
  between two of them lies a maximal affine map, of which one norm is taken: a linear residual block costs ||I + C||,
  and scales and batch norm with given statistics fold into their neighbours. Where maps from several operations meet,
  as behind a residual branch with an activation inside, their constants add. Everything is computed in float64 on the
  host and rounded up; not for use inside of `jax.jit`. The bound is of the network in exact arithmetic with the weights
  that this machine computes: those that the program itself makes of its parameters (by a factorisation, say) another
  machine may compute otherwise. The value includes a relative 1e-6 for scales that it makes in float32.

  Args:
    f: any JAX function of affine operations, maxima and minima, sorts, pooling by maxima, absolute values, tanh,
      sigmoid, sin, cos and erf, on one example.
    argnum: the number of the argument.
    norm: bounds of convolutions and dense layers (images of one pixel); default `spectral_convolutions.certified`. Of
      maps that are no convolution the whole matrix is used, or if that is too large the product of the parts.

  Raises:
    NotImplementedError: an operation without a Lipschitz constant; names it and the line.
    TypeError: traced arguments, sets, no argument of this number.

  Source: Leino et al. 2021; Hu et al. 2023 for the linear residual block as one map.
  """
  by = spectral_convolutions.certified if norm is None else norm

  @np.errstate(invalid='ignore', over='ignore', divide='ignore')  # what is no number becomes infinite
  def bounded(*given):
    if not concrete(*jax.tree.leaves(given)):
      raise TypeError('Lipschitz bounds are computed in float64 on the host: call this outside of jax.jit, grad, vmap')
    network = cut(f, given, argnum)
    norms = {id(piece): piece_norm(piece, by) for unit in network.units for piece in network.into(unit)}
    reach, total = network.reach(lambda piece: norms[id(piece)].value)
    parts = tuple((unit.name, unit.line, norms[id(piece)]) for unit in network.units for piece in network.into(unit))
    kind = weakest([found.kind for *_, found in parts])
    slack = _SLACK + float(sum(found.slack for *_, found in parts))
    failure = float(sum(found.failure for *_, found in parts))
    pairs = None
    if network.is_vector:
      terms = [_distances(p) * reach[id(p.source)] for p in network.into(network.units[-1])]
      whole = sum(terms, start=np.zeros(network.program.outputs[0].shape * 2))
      pairs = np.nan_to_num(whole, nan=np.inf, posinf=np.inf) * (1 + _SLACK)
    value = np.inf if np.isnan(total) else float(total) * (1 + _SLACK)
    return LipschitzBound(value, pairs, kind, slack, failure, parts)
  return named_as(f, bounded)


def _distances(piece: AffineMap) -> np.ndarray:
  """The distances of the rows of a piece by explicit differences: expanded squares would cancel."""
  rows, off = piece.matrix(), np.linalg.norm(matrix_error(piece), axis=1)
  allowance = 1 + (rows.shape[1] + 4) * float(np.finfo(np.float64).eps)
  largest = np.max(np.abs(rows), initial=0)
  # or squares vanish, or overflow; a power of 2, or differences of rows that are nearly equal would vanish
  scale = power_of_2(largest) if np.isfinite(largest) and largest > 0 else 1.
  found = np.stack([np.sqrt(((rows / scale - row / scale) ** 2).sum(1)) for row in rows]) * (scale * allowance)
  found += (off[:, None] + off) * allowance
  np.fill_diagonal(found, 0)
  return found
