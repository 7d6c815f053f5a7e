"""Robust objectives: what a training step minimises beside the natural loss.

An objective is `(f, params, logits, images, labels, eps, key) -> (loss, metrics)` with
`f(params, x)` the logits of one example, `logits` those of the clean batch, eps in the units of
the images, and a scalar loss in nats. `functools.partial` sets its options.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ibpjax.ibp import ibp
from ibpjax.interval import linf_ball
from ibpjax.margins import margins
from ibpjax.training.attacks import pgd, usual_step
from ibpjax.training.losses import kl_divergence, natural_loss, robust_loss

Objective = Callable[..., tuple[Any, dict[str, Any]]]


def margin_bounds(f: Callable, params: Any, images: Any, labels: Any, eps: Any,
                  clip: tuple[Any, Any] = (0., 1.)) -> Any:
  """Lower bounds of the margins of a batch, by elided IBP without an allowance: (batch, classes - 1)."""
  def one(params, x, label):
    return margins(f(params, x), label)
  return jax.vmap(ibp(one, elide=True), (None, 0, 0))(params, linf_ball(images, eps, *clip), labels).lower


def ibp_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                  clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, dict[str, Any]]:
  """The robust loss by elided interval bounds; an upper bound of the loss at every point of the ball.

  Metrics: verified_error, the fraction that these bounds do not verify.
  Source: Gowal et al. 2018; Lyu et al. 2021, section 5.1 of the supplement.
  """
  del logits, key
  lower = margin_bounds(f, params, images, labels, eps, clip)
  return robust_loss(lower), dict(verified_error=jnp.mean(~(lower.min(-1) > 0)))


def pgd_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                  steps: int = 7, step_size: Any = None,
                  clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, dict[str, Any]]:
  """The cross-entropy at the worst points that PGD finds: adversarial training (Madry et al. 2018).

  Metrics: attacked_error, the fraction misclassified there.
  """
  del logits
  points, worst = pgd(f, lax.stop_gradient(params), images, labels, eps, key, steps=steps, step_size=step_size,
                      clip=clip)
  attacked = jax.vmap(f, (None, 0))(params, lax.stop_gradient(points))
  return natural_loss(attacked, labels), dict(attacked_error=jnp.mean(~(worst > 0)))


def trades_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                     weight: float = 6., steps: int = 10, step_size: Any = None,
                     clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, dict[str, Any]]:
  """TRADES (Zhang et al. 2019): natural loss + weight * KL(clean || attacked), the attack maximising the KL.

  Metrics: attacked_error, the fraction misclassified at the points found.
  """
  box = linf_ball(images, eps, *clip)
  step_size = usual_step(eps, steps) if step_size is None else step_size
  apply, fixed = jax.vmap(f, (None, 0)), lax.stop_gradient((params, logits))

  def ascend(x, _):
    gradient = jax.grad(lambda x: kl_divergence(fixed[1], apply(fixed[0], x)))(x)
    return jnp.clip(x + step_size * jnp.sign(gradient), box.lower, box.upper), None

  start = box.lower + box.width * jax.random.uniform(key, images.shape, images.dtype)
  points, _ = lax.scan(ascend, start, length=steps)
  attacked = apply(params, points)
  loss = natural_loss(logits, labels) + weight * kl_divergence(logits, attacked)
  return loss, dict(attacked_error=jnp.mean(attacked.argmax(-1) != labels))
