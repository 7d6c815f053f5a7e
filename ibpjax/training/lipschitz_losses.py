"""Losses that ask for margins larger than what a Lipschitz network can lose within a radius.

All take logits (batch, classes), labels (batch,), constants of pairs (classes, classes) as of a LipschitzEstimate, and
an l2 radius eps in the units of the inputs; they return a scalar, the mean in nats.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ibpjax.training.losses import natural_loss


def bottom(logits: Any, pairs: Any, eps: Any) -> Any:
  """The logit of "not robust": the greatest that another class than the predicted one may reach, (batch,).

  The prediction is robust if its logit is greater, strictly.
  Source: Leino et al. 2021, section 3.
  """
  predicted = jnp.argmax(logits, -1)
  reached = logits + eps * pairs[predicted].astype(logits.dtype)
  return jnp.max(jnp.where(jax.nn.one_hot(predicted, logits.shape[-1], dtype=bool), -jnp.inf, reached), -1)


def gloro_loss(logits: Any, labels: Any, pairs: Any, eps: Any) -> Any:
  """Cross-entropy over the classes and "not robust" (Leino et al. 2021)."""
  return natural_loss(jnp.concatenate([logits, bottom(logits, pairs, eps)[:, None]], -1), labels)


def gloro_trades_loss(logits: Any, labels: Any, pairs: Any, eps: Any, *, weight: float = 1.) -> Any:
  """Cross-entropy + weight * KL(with "not robust" at -inf || with it): softplus(bottom - logsumexp(logits)).

  Source: Leino et al. 2021; the closed form is derived.
  """
  gap = bottom(logits, pairs, eps) - jax.nn.logsumexp(logits, -1)
  return natural_loss(logits, labels) + weight * jax.nn.softplus(gap).mean()


def worst_logits(logits: Any, labels: Any, pairs: Any, eps: Any) -> Any:
  """Every class at the greatest logit that it may reach, the label's at its own: (batch, classes)."""
  return logits + eps * pairs[labels].astype(logits.dtype)


def margin_loss(logits: Any, labels: Any, pairs: Any, eps: Any) -> Any:
  """Cross-entropy of `worst_logits`: every class is pushed away, not the nearest alone (Tsuzuku et al. 2018)."""
  return natural_loss(worst_logits(logits, labels, pairs, eps), labels)


def emma_logits(logits: Any, labels: Any, pairs: Any, eps: Any, *, least: float = .01) -> Any:
  """Logits less the label's, each class at what it may reach within a radius of its own: (batch, classes).

  That radius is what the example is certified for against the class, at most eps, at least `least` of it; a constant
  for gradients.
  Source: Hu et al. 2023, section 4; the released code for the least share.
  """
  apart = logits - jnp.take_along_axis(logits, labels[:, None], -1)
  reach = eps * pairs[labels].astype(logits.dtype)
  share = lax.stop_gradient(jnp.clip(-apart / jnp.maximum(reach, 1e-8), least, 1))
  return apart + share * reach


def emma_loss(logits: Any, labels: Any, pairs: Any, eps: Any, *, least: float = .01) -> Any:
  """Efficient margin maximisation: cross-entropy of `emma_logits` (Hu et al. 2023)."""
  return natural_loss(emma_logits(logits, labels, pairs, eps, least=least), labels)


def annealed_loss(logits: Any, labels: Any, *, offset: float = 2., temperature: float = .75, power: float = 5.) -> Any:
  """Logit annealing: T (1 - p)^power * (-log p), p the label's probability with offset and temperature.

  For plain logits, `worst_logits` or `emma_logits`: examples with large margins count less.
  Source: Lai et al. 2025 (BRONet).
  """
  own = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
  log_p = jnp.sum(own * jax.nn.log_softmax((logits - offset * own) / temperature), -1)
  return jnp.mean(temperature * (-jnp.expm1(log_p)) ** power * -log_p)


def lipschitz_objective(f: Any, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *, pairs: Any,
                        loss: Callable[..., Any] = emma_loss) -> tuple[Any, dict[str, Any]]:
  """One of the losses above as an objective of steps with an estimate; eps is the radius of an l2 ball.

  Args:
    pairs: constants of pairs, by the estimate.
    loss: (logits, labels, pairs, eps) -> scalar.

  Metrics: estimated_error, the fraction that would not be certified if the estimate were a bound.
  """
  del f, params, images, key
  robust = jnp.max(logits, -1) > bottom(logits, pairs, eps)
  right = jnp.argmax(logits, -1) == labels
  return loss(logits, labels, pairs, eps), dict(estimated_error=jnp.mean(~(robust & right)))
