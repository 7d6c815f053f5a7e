"""Certified l2 radii from a Lipschitz bound: one pass, every radius at once."""
from __future__ import annotations

from typing import Any

import numpy as np

from ibpjax.lipschitz import LipschitzBound, LipschitzEstimate

_ERROR = 1e-5  # of logits, relative to the greatest of an example: float32, sums of thousands of terms


def lipschitz_radii(logits: Any, labels: Any, bound: LipschitzBound, *, error: float = _ERROR) -> np.ndarray:
  """The l2 radius within which the prediction of each example stays its label: (batch,), 0 for those misclassified.

  min over the other classes of (f_y - f_i) / K_yi, in float64, rounded down, the logits allowed to be wrong by `error`.
  A prediction certainly does not change at distances less than that; a tie has radius 0.

  Args:
    logits: (batch, classes), of the network that `bound` was computed for, in evaluation mode.
    labels: (batch,) integers.
    bound: of `ibpjax.lipschitz`, with constants of pairs.
    error: of each logit, relative to the greatest magnitude of a logit of the example.

  Raises:
    TypeError, ValueError: what certifies nothing (an estimate, a lower bound, one that holds with some probability), or
      has no constants of pairs.

  Source: Leino et al. 2021, section 3.
  """
  if isinstance(bound, LipschitzEstimate):
    raise TypeError('a LipschitzEstimate is a lower bound, by power iteration: certificates rest on ibpjax.lipschitz')
  if not bound.certifies:
    raise ValueError(f'the bound is {bound.kind} and not upper or exact: no certificate follows from it')
  if bound.pairs is None:
    raise ValueError('the bound has no constants of pairs: the network it is of has other outputs than (classes,)')
  logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
  if logits.ndim != 2 or logits.shape[1] != len(bound.pairs) or labels.shape != logits.shape[:1]:
    raise ValueError(f'logits have shape {logits.shape} and labels {labels.shape}; for {len(bound.pairs)} classes they '
                     'have (batch, classes) and (batch,)')
  if labels.size and (labels.min() < 0 or labels.max() >= logits.shape[1]):
    raise ValueError(f'labels lie in [{labels.min()}, {labels.max()}]; there are {logits.shape[1]} classes, from 0 on')
  if error < 0:
    raise ValueError(f'error is {error}; it is >= 0')
  every = np.arange(len(logits))
  allowed = 2 * error * np.max(np.abs(logits), axis=1, initial=0)
  margins = logits[every, labels][:, None] - logits - allowed[:, None]
  constants = bound.pairs[labels]
  with np.errstate(divide='ignore', invalid='ignore'):
    radii = np.where(margins > 0, margins / constants, 0)  # infinite where two classes differ by a constant
  radii[every, labels] = np.inf
  return np.nan_to_num(radii.min(1), nan=0., posinf=np.inf) * (1 - 1e-12)


def verified_accuracy(radii: np.ndarray, eps: float) -> float:
  """The fraction of examples whose radius is greater than eps, strictly (VRA)."""
  return float(np.mean(radii > eps))
