"""Losses: pure functions of logits, or of bounds on margins."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ibpjax.nn.param_ramp import Height


def natural_loss(logits: Any, labels: Any) -> Any:
  """Mean cross-entropy: logits (batch, classes), integer labels (batch,) -> scalar, in nats."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def kl_divergence(logits: Any, others: Any) -> Any:
  """Mean KL(softmax(logits) || softmax(others)) over a batch: (batch, classes) twice -> scalar, in nats."""
  p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(others)
  return jnp.sum(jnp.exp(p) * (p - q), axis=-1).mean()


def l1_norm(params: Any) -> Any:
  """The sum of the magnitudes of all weights with two axes or more: kernels, not biases, scales or heights of ramps."""
  found = jax.tree.leaves(params, is_leaf=lambda w: isinstance(w, Height))
  return sum((jnp.abs(w).sum() for w in found if not isinstance(w, Height) and w.ndim > 1), start=0.)


def robust_loss(lower: Any) -> Any:
  """Mean cross-entropy of the worst logits that lower bounds of the margins allow.

  log(1 + sum_j exp(-lower_j)): the cross-entropy of logits 0 for the label and -lower_j for the
  others; an upper bound of the cross-entropy at every point of the box.

  Args:
    lower: (batch, classes - 1) or (classes - 1,), lower bounds of z_y - z_j.

  Returns:
    scalar, in nats.

  Source: Lyu et al. 2021, section 5.1 of the supplement; Gowal et al. 2018.
  """
  label = jnp.zeros((*lower.shape[:-1], 1), lower.dtype)
  return jax.nn.logsumexp(jnp.concatenate([label, -lower], axis=-1), axis=-1).mean()
