"""Training with expected tight bounds, and with the sound companion of their map."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.core.balls import linf_ball
from ibpjax.core.unsound import UnsoundObjective
from ibpjax.methods.etb import etb, etb_companion
from ibpjax.training.losses import natural_loss, robust_loss
from ibpjax.training.objectives import margins_of, unverified


@functools.partial(UnsoundObjective, reason='expected tight bounds hold a range in expectation over random weights')
def etb_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                  weight: float = 1., temperature: float | None = 1.) -> tuple[Any, dict[str, Any]]:
  """natural loss + weight * cross-entropy of the worst logits that expected tight bounds allow, as the authors train.

  These logits are z_k + r_k, for the label z_k - r_k: r is the radius of ETB with the masks of interval arithmetic,
  around the logits of the network itself. Balls are not cut to the range of pixels. Divided by temperature * their
  greatest magnitude they lie in [-1 / temperature, 1 / temperature]: no radius is too large to begin with.

  **The loss can be gamed**: it makes the composed map small, and the network moves all the same. Watch
  `verification.expected.drops`, the ratio of the drop that ETB expects to the one that attacks find.

  Args:
    weight: of the second loss (lambda).
    temperature: None for logits as they are.

  Metrics: natural_part, the first loss; expected_error, the fraction that ETB does not expect to be robust.
  Source: Alsubaihi et al., arXiv 1905.12418, as released.
  """
  del key
  found = jax.vmap(etb(f, masks='ibp'), (None, 0))(params, linf_ball(images, eps))
  own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  worst = logits + jnp.where(own, -found.radius, found.radius)
  wrong = jnp.max(jnp.where(own, -jnp.inf, worst), -1) >= jnp.max(jnp.where(own, worst, -jnp.inf), -1)
  if temperature is not None:
    greatest = jnp.max(jnp.abs(worst), -1, keepdims=True)
    worst = worst / (temperature * jnp.where(greatest > 0, greatest, 1))
  natural = natural_loss(logits, labels)
  return natural + weight * natural_loss(worst, labels), dict(natural_part=natural, expected_error=jnp.mean(wrong))


def companion_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                        clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, dict[str, Any]]:
  """The robust loss by the sound companion of chords: one affine map of the network, widened by what it leaves out.

  Metrics: verified_error, the fraction that these bounds do not verify.
  Source: Weng et al. 2018 for the bounds, with intermediate ones by interval arithmetic.
  """
  del logits, key
  one = etb_companion(margins_of(f), slopes='chord')
  lower = jax.vmap(one, (None, 0, 0))(params, linf_ball(images, eps, *clip), labels).sound.lower
  return robust_loss(lower), dict(verified_error=unverified(lower))
