"""Expressive objectives: between adversarial training and interval bounds, by a number from 0 to 1.

Objectives of attacks: `(f, params, logits, images, labels, eps, key, points=...) -> (loss, metrics)`, the
points being what an attack has found, constants; the loss at them has gradients.
"""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.core.balls import linf_ball
from ibpjax.core.sets import Interval
from ibpjax.core.unsound import UnsoundObjective
from ibpjax.methods.ibp import ibp
from ibpjax.training.losses import robust_loss
from ibpjax.training.objectives import lower_margins, margins_of, radius_for, unverified
from ibpjax.training.regularizers import Regularizer, instability


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


@functools.partial(UnsoundObjective, reason='the bounds are over a small box and not over the ball')
def sabr_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                   points: Any, share: float, regularizer: Regularizer | None = None,
                   clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, dict[str, Any]]:
  """SABR: the robust loss by interval bounds on a small box around the point that an attack has found.

  No bound over the whole ball: what it verifies is not certified.

  Args:
    share: width of the small box, as a share of that of the ball (lambda in the source).
    regularizer: as in `ibp_objective`.

  Metrics: small_box_error, the fraction not verified on the small box.
  Source: Müller et al. 2023.
  """
  del key
  box = small_box(linf_ball(images, radius_for(eps, regularizer), *clip), points, share)
  lower, more = lower_margins(f, params, logits, box, labels, eps, regularizer)
  return robust_loss(lower), dict(small_box_error=unverified(lower), **more)


def mtl_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                  points: Any, alpha: float, **options: Any) -> tuple[Any, dict[str, Any]]:
  """MTL-IBP: alpha * (loss of interval bounds) + (1 - alpha) * (loss at the attacked points).

  Args:
    alpha: weight in [0, 1].
    **options: regularizer and clip as in `ibp_objective`.

  Metrics: verified_error, the fraction that interval bounds do not verify; attacked_error.
  Source: De Palma et al. 2024, section 4.
  """
  del key
  lower, attacked, metrics = _bounded_and_attacked(f, params, logits, images, labels, eps, points, **options)
  return alpha * robust_loss(lower) + (1 - alpha) * robust_loss(attacked), metrics


def cc_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                 points: Any, alpha: float, **options: Any) -> tuple[Any, dict[str, Any]]:
  """CC-IBP: the loss of alpha * (lower bounds of the margins) + (1 - alpha) * (margins at the attacked points).

  Args, metrics, source: as of `mtl_objective`.
  """
  del key
  lower, attacked, metrics = _bounded_and_attacked(f, params, logits, images, labels, eps, points, **options)
  return robust_loss(alpha * lower + (1 - alpha) * attacked), metrics


def exp_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                  points: Any, alpha: float, **options: Any) -> tuple[Any, dict[str, Any]]:
  """Exp-IBP: (mean loss of interval bounds)**alpha * (mean loss at the attacked points)**(1 - alpha).

  Args, metrics, source: as of `mtl_objective`.
  """
  del key
  lower, attacked, metrics = _bounded_and_attacked(f, params, logits, images, labels, eps, points, **options)
  bound, reached = (jnp.log(jnp.maximum(robust_loss(m), jnp.finfo(m.dtype).tiny)) for m in (lower, attacked))
  return jnp.exp(alpha * bound + (1 - alpha) * reached), metrics


def ibp_r_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                    points: Any, weight: float, clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, dict[str, Any]]:
  """IBP-R: the loss at the attacked points + weight / 2 * mean over examples of `instability` by interval bounds.

  Args:
    weight: lambda in the source; the attack's radius there is larger than eps (2.1 of it at 2/255).

  Metrics: attacked_error; verified_error, the fraction that interval bounds do not verify; instability, the mean.
  Source: De Palma et al. 2022 (IBP-R), section 3.
  """
  del logits, key
  over = (None, 0, 0)
  attacked = jax.vmap(margins_of(f), over)(params, points, labels)
  bounds, inside = jax.vmap(ibp(margins_of(f), elide=True, intermediates=True), over)(
      params, linf_ball(images, eps, *clip), labels)
  unstable = instability(list(inside.bounds.values())) / len(images)
  return robust_loss(attacked) + weight / 2 * unstable, dict(
      attacked_error=unverified(attacked), verified_error=unverified(bounds.lower), instability=unstable)


def _bounded_and_attacked(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, points: Any,
                          regularizer: Regularizer | None = None,
                          clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, Any, dict[str, Any]]:
  """Lower bounds of the margins, margins at the points that an attack has found, metrics."""
  attacked = jax.vmap(margins_of(f), (None, 0, 0))(params, points, labels)
  box = linf_ball(images, radius_for(eps, regularizer), *clip)
  lower, more = lower_margins(f, params, logits, box, labels, eps, regularizer)
  return lower, attacked, dict(verified_error=unverified(lower), attacked_error=unverified(attacked), **more)
