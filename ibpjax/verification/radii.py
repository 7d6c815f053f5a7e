"""Certified l2 radii from a Lipschitz bound: one pass, every radius at once."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ibpjax.ibp import ibp
from ibpjax.interval import Interval
from ibpjax.lipschitz import LipschitzBound
from ibpjax.lipschitz_estimates import LipschitzEstimate

_ERROR = 1e-5  # of logits, relative to the greatest of an example: float32, sums of thousands of terms


def lipschitz_radii(logits: Any, labels: Any, bound: LipschitzBound, *, error: Any = _ERROR) -> np.ndarray:
  """The l2 radius within which the prediction of each example stays its label: (batch,), 0 for those misclassified.

  min over the other classes of (f_y - f_i) / K_yi, in float64, rounded down, the logits allowed to be wrong by `error`.
  A prediction certainly does not change at distances less than that; a tie has radius 0.

  Args:
    logits: (batch, classes), of the network that `bound` was computed for, in evaluation mode.
    labels: (batch,) integers.
    bound: of `ibpjax.lipschitz`, with constants of pairs.
    error: of each logit, relative to the greatest magnitude of a logit of the example; a number, or one for each
      example (`logit_errors`).

  Raises:
    TypeError, ValueError: what certifies nothing (an estimate, a lower bound, one that holds with some probability), or
      has no constants of pairs.

  Source: Leino et al. 2021, section 3.
  """
  each = _radii(logits, labels, bound, error)
  return np.nan_to_num(each.min(1), nan=0., posinf=np.inf) * (1 - 1e-12)


def rivals(logits: Any, labels: Any, bound: LipschitzBound) -> np.ndarray:
  """The class that threatens each example: (batch,), the other one that is nearest in radius; arguments as above.

  Source: Hu et al. 2023, the rotating threatening class.
  """
  each = _radii(logits, labels, bound, 0., signed=True)
  return each.argmin(1)


def _radii(logits: Any, labels: Any, bound: LipschitzBound, error: Any, signed: bool = False) -> np.ndarray:
  """(f_y - f_i) / K_yi, (batch, classes): infinite for the label, at least 0 unless `signed`."""
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
  error = np.asarray(error, np.float64)
  if error.shape not in ((), labels.shape):
    raise ValueError(f'error has shape {error.shape} for {len(labels)} examples: give one number, or one for each')
  if np.any(error < 0):
    raise ValueError(f'error is {error}; it is >= 0')
  every = np.arange(len(logits))
  allowed = 2 * error * np.max(np.abs(logits), axis=1, initial=0)
  margins = logits[every, labels][:, None] - logits - allowed[:, None]
  constants = bound.pairs[labels]
  with np.errstate(divide='ignore', invalid='ignore'):
    radii = margins / constants  # infinite where two classes differ by a constant
  radii = radii if signed else np.where(margins > 0, radii, 0)
  radii[every, labels] = np.inf
  return radii


def verified_accuracy(radii: np.ndarray, eps: float) -> float:
  """The fraction of examples whose radius is greater than eps, strictly (VRA)."""
  return float(np.mean(radii > eps))


def logit_errors(f: Callable, params: Any, xs: Any, logits: Any) -> np.ndarray:
  """How far from those of exact arithmetic logits may be: (batch,), relative to the greatest magnitude of an example.

  By interval arithmetic at the points themselves, which allows for the rounding of each operation.

  Args:
    f: (params, x) -> (classes,) logits of one example; one function object for all batches, as for `jax.jit`.
    params: its first argument.
    xs: (batch, ...) examples.
    logits: (batch, classes), as computed for them.
  """
  lower, upper = (np.asarray(x, np.float64) for x in _at_points(f, params, jnp.asarray(xs)))
  logits = np.asarray(logits, np.float64)
  off = np.max(np.maximum(upper - logits, logits - lower), axis=1, initial=0)
  greatest = np.max(np.abs(logits), axis=1, initial=0)
  return np.where(greatest > 0, np.maximum(off, 0) / np.where(greatest > 0, greatest, 1), np.where(off > 0, np.inf, 0))


@functools.partial(jax.jit, static_argnums=0)
def _at_points(f, params, xs):
  def one(x):
    found = ibp(f, round_outward=True)(params, Interval(x, x))
    return found.lower, found.upper
  return jax.vmap(one)(xs)
