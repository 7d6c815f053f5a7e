"""Attacks: points near an example that a model gets wrong; what no certificate may contradict."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.interval import linf_ball
from ibpjax.margins import check_labels, margins


def usual_step(eps: Any, steps: int) -> Any:
  """The length of a step of an attack where none is given: 2.5 eps / steps, at least eps / 10."""
  return jnp.maximum(2.5 * eps / max(steps, 1), eps / 10)


def pgd(f: Callable, params: Any, xs: Any, labels: Any, eps: Any, key: Any, *, steps: int = 40, restarts: int = 1,
        step_size: Any = None, clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, Any]:
  """Projected gradient descent on the margins, inside the l-infinity ball (Madry et al. 2018).

  Each restart begins at a random point of the ball and takes sign-gradient steps on the
  cross-entropy. Every iterate of every restart counts, and so does the example itself.

  Args:
    f: (params, x) -> (classes,) logits of one example; any JAX function.
    params: its first argument.
    xs: (batch, ...) examples in the units of `eps`.
    labels: (batch,) integers.
    eps: radius, a scalar.
    key: PRNG key of the starting points.
    steps: gradient steps of each restart.
    restarts: random starts.
    step_size: length of a step; default `usual_step`.
    clip: valid range of pixels.

  Returns:
    (points, worst): the worst point found for each example, (batch, ...), and its smallest
    margin z_y - z_j, (batch,), -inf where the logits are NaN. A worst margin <= 0 is a successful attack.
  """
  box = linf_ball(xs, eps, *clip)
  step_size = usual_step(eps, steps) if step_size is None else step_size

  def margin(x, label):  # of a NaN nothing is right
    m = margins(f(params, x), label).min()
    return jnp.where(jnp.isnan(m), -jnp.inf, m)

  def loss(x, label):
    z = f(params, x)
    return jax.nn.logsumexp(z) - jnp.take(z, label)

  def attack(x, label, lower, upper, key):
    def better(best, x):
      m = margin(x, label)
      return jax.tree.map(lambda new, old: jnp.where(m < best[1], new, old), (x, m), best)

    def step(carry, _):
      x, best = carry
      direction = jnp.sign(jnp.nan_to_num(jax.grad(loss)(x, label)))
      x = jnp.clip(x + step_size * direction, lower, upper)
      return (x, better(best, x)), None

    def restart(best, key):
      start = lower + (upper - lower) * jax.random.uniform(key, x.shape, x.dtype)
      (_, best), _ = jax.lax.scan(step, (start, better(best, start)), length=steps)
      return best, None

    return jax.lax.scan(restart, (x, margin(x, label)), jax.random.split(key, restarts))[0]

  classes = jax.eval_shape(f, params, xs[0]).shape[-1]
  labels = check_labels(labels, classes)
  return jax.vmap(attack)(xs, labels, box.lower, box.upper, jax.random.split(key, len(xs)))
