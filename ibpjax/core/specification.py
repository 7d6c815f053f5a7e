"""Specifications: the linear functions of the logits that a certificate must show positive."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ibpjax.core.validation import concrete


def margins(logits: Any, label: Any) -> Any:
  """The margins z_y - z_j of the label against every other class.

  Args:
    logits: (classes,) floats.
    label: integer scalar y in [0, classes).

  Returns:
    (classes - 1,), in the order of j without y. All positive: y is the prediction.
    Under a trace, where a label out of range cannot raise, its margins are NaN.

  Raises:
    TypeError, ValueError: a label that is none, logits of a batch, or a single logit, which has no margins.
  """
  classes = logits.shape[-1]
  if logits.ndim != 1:
    raise ValueError(f'logits have shape {logits.shape}; margins are for one example, (classes,): use jax.vmap')
  check_classes(classes)
  label = check_labels(label, classes)
  rows = spec(label, classes).astype(logits.dtype)
  return rows @ logits


def spec(label: Any, classes: int) -> Any:
  """The rows C with C z = margins: (classes - 1, classes) floats."""
  others = jnp.arange(classes - 1)
  others = others + (others >= label).astype(others.dtype)
  valid = jnp.where((label >= 0) & (label < classes), 1., jnp.nan)
  columns = jnp.arange(classes)[None, :]
  return valid * ((columns == label).astype(valid.dtype) - (columns == others[:, None]).astype(valid.dtype))


def check_classes(classes: int) -> None:
  """Raises if there are fewer than two: of no margin at all everything is true."""
  if classes < 2:
    raise ValueError(f'{"one logit" if classes else "no logits"}: there is no other class, and of no margins all are '
                     'positive. Give rows (C, d) of what shall be > 0, or a network with a logit for each class')


def check_labels(labels: Any, classes: int) -> Any:
  """Labels as integers, or an error that names one out of range."""
  labels = jnp.asarray(labels)
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise TypeError(f'labels have dtype {labels.dtype}; they are class numbers, integers in [0, {classes})')
  if concrete(labels):
    for bad in np.extract((np.asarray(labels) < 0) | (np.asarray(labels) >= classes), np.asarray(labels)):
      raise ValueError(f'label {bad} is out of range: there are {classes} classes, numbered 0 to {classes - 1}')
  return labels


def batched(f: Callable) -> Callable:
  """A model of batches as a function of one example: x[None] goes in, [0] comes out.

  Args:
    f: (..., x) -> array with a leading batch axis, x its last argument.
  """
  def one(*args, **kwargs):
    *rest, x = args
    return f(*rest, x[None], **kwargs)[0]
  return one
