"""Certified l2 radii from a Lipschitz bound: one pass, every radius at once."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ibpjax.core.program import digest
from ibpjax.core.sets import Interval
from ibpjax.core.specification import check_classes
from ibpjax.methods.ibp import ibp
from ibpjax.methods.lipschitz import LipschitzBound
from ibpjax.methods.lipschitz_estimates import LipschitzEstimate
from ibpjax.verification.mode import evaluated
from ibpjax.xla.compiling import RightJit


def certified_lipschitz_radii(f: Callable, params: Any, xs: Any, labels: Any,
                              bound: LipschitzBound) -> tuple[np.ndarray, np.ndarray]:
  """The l2 radius within which the prediction of each example certainly stays its label, its logits computed here.

  Of the network in exact arithmetic: logits are computed at the highest matmul precision, and what rounding may have
  done to them is bounded (`logit_errors`) and taken off. In float32 that may be much, of which `jax_enable_x64` makes
  little.

  Args:
    f: (params, x) -> (classes,) logits of one example, in evaluation mode.
    params: its first argument.
    xs: (batch, ...) floats.
    labels: (batch,) integers.
    bound: of `ibpjax.lipschitz` for f and these params, with constants of pairs.

  Returns:
    (batch,) radii in float64, 0 for those misclassified, as of `lipschitz_radii`; and (batch,) errors that have been
    allowed for, as of `logit_errors`.

  Raises:
    TypeError, ValueError: as `lipschitz_radii`; and f is in training mode.

  Source: Leino et al. 2021, section 3.
  """
  logits, lower, upper = _at_points(f, params, xs)
  errors = _errors(logits, lower, upper)
  return lipschitz_radii(logits, labels, bound, error=errors), errors


def lipschitz_radii(logits: Any, labels: Any, bound: LipschitzBound, *, error: Any = None,
                    claimed_error: float | None = None) -> np.ndarray:
  """The l2 radius within which the prediction of each example stays its label: (batch,), 0 for those misclassified.

  min over the other classes of (f_y - f_i) / K_yi, in float64, rounded down, the logits allowed to be wrong by `error`.
  A prediction certainly does not change at distances less than that; a tie has radius 0. Nothing is certain of radii
  with a claimed error that is too small: `certified_lipschitz_radii` computes both.

  Args:
    logits: (batch, classes), of the network that `bound` was computed for, in evaluation mode.
    labels: (batch,) integers.
    bound: of `ibpjax.lipschitz`, with constants of pairs.
    error: (batch,), of each logit of an example, relative to the greatest magnitude of its logits: of `logit_errors`.
    claimed_error: instead of that a number that the caller answers for, 0 for logits that are exact.

  Raises:
    TypeError: both errors or none; an estimate.
    ValueError: what certifies nothing (a lower bound, one that holds with some probability), or has no constants of
      pairs; one logit; shapes that do not fit.

  Source: Leino et al. 2021, section 3.
  """
  if (error is None) == (claimed_error is None):
    raise TypeError('give one of error=logit_errors(f, params, xs, logits) and claimed_error=, a number that you '
                    'answer for; or use certified_lipschitz_radii, which computes logits, their errors and radii')
  if claimed_error is None:
    if np.shape(error) != np.shape(labels):
      raise ValueError(f'error has shape {np.shape(error)} for labels of shape {np.shape(labels)}: it has one for each '
                       'example, those of logit_errors; a number that you answer for is claimed_error')
  elif np.ndim(claimed_error):
    raise ValueError(f'claimed_error has shape {np.shape(claimed_error)}; it is one number for all examples')
  each = _radii(logits, labels, bound, error if claimed_error is None else claimed_error)
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
  check_classes(logits.shape[1])
  error = np.asarray(error, np.float64)
  if np.any(error < 0):
    raise ValueError(f'error is {error}; it is >= 0')
  every = np.arange(len(logits))
  # Of each of the two logits, and what rounding does to this sum.
  allowed = 2 * (error * (1 + 1e-12) + (0 if signed else 4e-16)) * np.max(np.abs(logits), axis=1, initial=0)
  margins = logits[every, labels][:, None] - logits - allowed[:, None]
  constants = bound.pairs[labels]
  with np.errstate(divide='ignore', invalid='ignore'):
    radii = margins / constants  # infinite where two classes differ by a constant
  radii = radii if signed else np.where(margins > 0, radii, 0)
  radii[every, labels] = np.inf
  return radii


def verified_accuracy(radii: np.ndarray, eps: float) -> float:
  """The fraction of examples whose radius is greater than eps, strictly (VRA). Raises ValueError if there are none."""
  if not len(radii):
    raise ValueError('there are no radii, and no fraction of nothing: give at least one example')
  return float(np.mean(radii > eps))


def logit_errors(f: Callable, params: Any, xs: Any, logits: Any) -> np.ndarray:
  """How far from those of exact arithmetic logits may be: (batch,), relative to the greatest magnitude of an example.

  By interval arithmetic at the points themselves, which allows for the rounding of each operation.

  Args:
    f: (params, x) -> (classes,) logits of one example, in evaluation mode; one function object for all batches, which
      is compiled once (and again when anything that it closes over has changed).
    params: its first argument.
    xs: (batch, ...) examples.
    logits: (batch, classes), as computed for them.
  """
  return _errors(logits, *_at_points(f, params, xs)[1:])


def _errors(logits: Any, lower: Any, upper: Any) -> np.ndarray:
  logits, lower, upper = (np.asarray(x, np.float64) for x in (logits, lower, upper))
  off = np.max(np.maximum(upper - logits, logits - lower), axis=1, initial=0)
  greatest = np.max(np.abs(logits), axis=1, initial=0)
  return np.where(greatest > 0, np.maximum(off, 0) / np.where(greatest > 0, greatest, 1), np.where(off > 0, np.inf, 0))


def _at_points(f: Callable, params: Any, xs: Any) -> tuple[Any, Any, Any]:
  """Logits at examples, and their lower and upper bounds there."""
  xs = jnp.asarray(xs)
  with jax.default_matmul_precision('highest'):
    code, _ = evaluated(f, params, jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype), allow_random=False)
    return _compiled(f, params, xs, digest(code))


@functools.partial(RightJit, static_argnames=('f', 'code'))
def _compiled(f, params, xs, code):
  del code  # part of the key: compiled anew if what f closes over has changed

  def one(x):
    found = ibp(f, round_outward=True)(params, Interval(x, x))
    return f(params, x), found.lower, found.upper
  return jax.vmap(one)(xs)
