"""Expressive objectives: between adversarial training and interval bounds, by a number from 0 to 1.

Like all objectives they are `(f, params, logits, images, labels, eps, key) -> (loss, metrics)`. Attacks
see the parameters as constants; the loss at the points that they find has gradients.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ibpjax.interval import Interval, linf_ball
from ibpjax.training.attacks import pgd
from ibpjax.training.losses import robust_loss
from ibpjax.training.objectives import lower_margins, margins_of, radius_for, unverified
from ibpjax.training.regularizers import Regularizer


def small_box(box: Interval, points: Any, share: Any) -> Interval:
  """Boxes of a share of the width of others, inside of these and as near to points of them as that allows.

  Args:
    box: (batch, ...).
    points: (batch, ...), inside.
    share: of the width, in [0, 1].

  Source: Müller et al. 2023 (SABR), section 3.
  """
  radius = share * box.radius
  centre = jnp.clip(points, box.lower + radius, box.upper - radius)
  return Interval(jnp.maximum(centre - radius, box.lower), jnp.minimum(centre + radius, box.upper))


def sabr_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                   share: float, steps: int = 8, step: float | None = None, regularizer: Regularizer | None = None,
                   clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, dict[str, Any]]:
  """SABR: the robust loss by interval bounds on a small box around the point that an attack finds.

  No bound over the whole ball: what it verifies is not certified.

  Args:
    share: width of the small box, as a share of that of the ball (lambda in the source).
    steps: of the attack.
    step: length of one, in radii; default as in `pgd`.
    regularizer: as in `ibp_objective`.

  Metrics: small_box_error, the fraction not verified on the small box; attacked_error.
  Source: Müller et al. 2023.
  """
  radius = radius_for(eps, regularizer)
  points, worst = _attacked(f, params, images, labels, radius, key, steps, step, clip)
  box = small_box(linf_ball(images, radius, *clip), points, share)
  lower, more = lower_margins(f, params, logits, box, labels, eps, regularizer)
  return robust_loss(lower), dict(small_box_error=unverified(lower), attacked_error=jnp.mean(~(worst > 0)), **more)


def mtl_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                  alpha: float, **options: Any) -> tuple[Any, dict[str, Any]]:
  """MTL-IBP: alpha * (loss of interval bounds) + (1 - alpha) * (loss at the attacked points).

  Args:
    alpha: weight in [0, 1].
    **options: of the attack: steps = 1, step = 10 (in attack radii), scale = 1 (attack radius / eps); regularizer and
      clip as in `ibp_objective`.

  Metrics: verified_error, the fraction that interval bounds do not verify; attacked_error.
  Source: De Palma et al. 2024, section 4.
  """
  lower, attacked, metrics = _bounded_and_attacked(f, params, logits, images, labels, eps, key, **options)
  return alpha * robust_loss(lower) + (1 - alpha) * robust_loss(attacked), metrics


def cc_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                 alpha: float, **options: Any) -> tuple[Any, dict[str, Any]]:
  """CC-IBP: the loss of alpha * (lower bounds of the margins) + (1 - alpha) * (margins at the attacked points).

  Args, metrics, source: as of `mtl_objective`.
  """
  lower, attacked, metrics = _bounded_and_attacked(f, params, logits, images, labels, eps, key, **options)
  return robust_loss(alpha * lower + (1 - alpha) * attacked), metrics


def exp_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                  alpha: float, **options: Any) -> tuple[Any, dict[str, Any]]:
  """Exp-IBP: (mean loss of interval bounds)**alpha * (mean loss at the attacked points)**(1 - alpha).

  Args, metrics, source: as of `mtl_objective`.
  """
  lower, attacked, metrics = _bounded_and_attacked(f, params, logits, images, labels, eps, key, **options)
  bound, reached = (jnp.log(jnp.maximum(robust_loss(m), jnp.finfo(m.dtype).tiny)) for m in (lower, attacked))
  return jnp.exp(alpha * bound + (1 - alpha) * reached), metrics


def _bounded_and_attacked(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                          steps: int = 1, step: float | None = 10., scale: float = 1.,
                          regularizer: Regularizer | None = None,
                          clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, Any, dict[str, Any]]:
  """Lower bounds of the margins, margins at the points that an attack finds, metrics."""
  points, worst = _attacked(f, params, images, labels, scale * eps, key, steps, step, clip)
  attacked = jax.vmap(margins_of(f), (None, 0, 0))(params, points, labels)
  box = linf_ball(images, radius_for(eps, regularizer), *clip)
  lower, more = lower_margins(f, params, logits, box, labels, eps, regularizer)
  return lower, attacked, dict(verified_error=unverified(lower), attacked_error=jnp.mean(~(worst > 0)), **more)


def _attacked(f: Callable, params: Any, images: Any, labels: Any, radius: Any, key: Any, steps: int,
              step: float | None, clip: tuple[Any, Any]) -> tuple[Any, Any]:
  """The points that an attack of a radius finds, constants, and their least margins."""
  return lax.stop_gradient(pgd(f, lax.stop_gradient(params), images, labels, radius, key, steps=steps,
                               step_size=None if step is None else step * radius, clip=clip))
