"""Attacks: points near an example that a model gets wrong; what no certificate may contradict."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ibpjax.core.balls import linf_ball
from ibpjax.core.sets import Interval
from ibpjax.core.specification import check_labels, margins
from ibpjax.core.validation import check_eps
from ibpjax.xla.compiling import RightJit

# (f, params, images, labels, eps, key) -> points, constants for gradients; f and params as of an objective
Attack = Callable[..., Any]


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
  box, labels, step_size = _prepared(f, params, xs, labels, eps, steps, step_size, clip)

  def attack(x, label, lower, upper, key):
    def step(carry, _):
      x, best = carry
      return _step(f, params, x, best, label, lower, upper, step_size), None

    def restart(best, key):
      (x, best), _ = lax.scan(step, (_start(lower, upper, key), best), length=steps)
      return _counted(f, params, x, best, label), None
    best = _counted(f, params, x, (x, jnp.asarray(jnp.inf, x.dtype)), label)
    return lax.scan(restart, best, jax.random.split(key, restarts))[0]

  return jax.vmap(attack)(xs, labels, box.lower, box.upper, jax.random.split(key, len(xs)))


def attacked(f: Callable, params: Any, xs: Any, labels: Any, eps: Any, key: Any, *, steps: int = 7,
             step: float | None = None, scale: float = 1., clip: tuple[Any, Any] = (0., 1.)) -> Any:
  """The points that `pgd` finds, to train on: an `Attack`, its options set by `functools.partial`.

  Args:
    f, params, xs, labels, eps, key, steps, clip: as in `pgd`.
    step: length of a step in radii of the attack; default 2.5 / steps, at least 0.1.
    scale: its radius in eps.

  Returns:
    (batch, ...) points, constants for gradients.
  """
  radius = scale * eps
  step_size = None if step is None else step * radius
  return lax.stop_gradient(pgd(f, lax.stop_gradient(params), xs, labels, radius, key, steps=steps, step_size=step_size,
                               clip=clip)[0])


def pgd_by_steps(f: Callable, params: Any, xs: Any, labels: Any, eps: Any, keys: Any, *, steps: int = 40,
                 restarts: int = 1, step_size: Any = None, clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, Any]:
  """`pgd` driven from Python, one compiled step of the whole batch at a time; not itself for `jax.jit`.

  XLA's CPU code for the gradients of convolutions is seven times slower inside of loops (jaxlib 0.10.2).

  Args:
    f: as in `pgd`, and hashable, as for `jax.jit`.
    params, xs, labels, eps, steps, restarts, step_size, clip: as in `pgd`.
    keys: (batch,) PRNG keys, one for each example.

  Returns:
    As `pgd`.
  """
  box, labels, step_size = _prepared(f, params, xs, labels, eps, steps, step_size, clip)
  return _driven(
      f, params, xs, labels, keys, steps, restarts, lambda each: jax.vmap(_start)(box.lower, box.upper, each),
      lambda x, best: _all_step(f, params, x, best, labels, box.lower, box.upper, step_size))


def pgd_l2_by_steps(f: Callable, params: Any, xs: Any, labels: Any, eps: Any, keys: Any, *, steps: int = 40,
                    restarts: int = 1, clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, Any]:
  """Projected gradient descent inside of l2 balls and `clip`, driven from Python like `pgd_by_steps`.

  Steps go against the normalised gradient of the least margin, 2.5 eps / steps each; starts are uniform on spheres.

  Args:
    f, params, xs, labels, keys, steps, restarts, clip: as in `pgd_by_steps`.
    eps: radii of the balls, a scalar or (batch,).

  Returns:
    As `pgd`.
  """
  labels = check_labels(labels, jax.eval_shape(f, params, xs[0]).shape[-1])
  check_eps(eps)
  linf_ball(xs, 0., *clip)  # raises for what lies outside
  radii = jnp.broadcast_to(jnp.asarray(eps, xs.dtype), xs.shape[:1])

  def start(each):
    noise = jax.vmap(lambda key: jax.random.normal(key, xs.shape[1:], xs.dtype))(each)
    return jax.vmap(functools.partial(_within, clip=clip))(xs, noise, radii, 0 * radii)
  return _driven(f, params, xs, labels, keys, steps, restarts, start, lambda x, best: _all_l2_step(
      f, params, x, best, labels, xs, radii, 2.5 * radii / max(steps, 1), clip))


def _driven(f: Callable, params: Any, xs: Any, labels: Any, keys: Any, steps: int, restarts: int,
            start: Callable[[Any], Any], step: Callable[[Any, Any], tuple[Any, Any]]) -> tuple[Any, Any]:
  """The worst of all points of so many ascents, each from `start(keys)` by `step(points, worst)`; all count."""
  best = _all_counted(f, params, xs, (xs, jnp.full(len(xs), jnp.inf, xs.dtype)), labels)
  for each in jax.vmap(lambda key: jax.random.split(key, restarts), out_axes=1)(keys):
    x = start(each)
    for _ in range(steps):
      x, best = step(x, best)
    best = _all_counted(f, params, x, best, labels)
  return best


def _within(centre: Any, change: Any, radius: Any, least: Any, clip: tuple[Any, Any]) -> Any:
  """centre + change, the change scaled to a length of at most `radius`, of exactly that if it is more than `least`."""
  length = jnp.sqrt(jnp.sum(change * change))
  scale = jnp.where(length > jnp.maximum(least, 0), radius / jnp.where(length > 0, length, 1), 1)
  return jnp.clip(centre + scale * change, *clip)


def _prepared(f: Callable, params: Any, xs: Any, labels: Any, eps: Any, steps: int, step_size: Any,
              clip: tuple[Any, Any]) -> tuple[Interval, Any, Any]:
  """(ball, labels, step_size) of an attack, checked."""
  labels = check_labels(labels, jax.eval_shape(f, params, xs[0]).shape[-1])
  return linf_ball(xs, eps, *clip), labels, usual_step(eps, steps) if step_size is None else step_size


def _start(lower: Any, upper: Any, key: Any) -> Any:
  return lower + (upper - lower) * jax.random.uniform(key, lower.shape, lower.dtype)


def _step(f: Callable, params: Any, x: Any, best: tuple[Any, Any], label: Any, lower: Any, upper: Any,
          step_size: Any) -> tuple[Any, tuple[Any, Any]]:
  """The next point of an ascent, and the worst so far: this one counts."""
  def loss(x):
    z = f(params, x)
    return jax.nn.logsumexp(z) - jnp.take(z, label), z
  gradient, z = jax.grad(loss, has_aux=True)(x)
  best = _worse(x, z, best, label)
  return jnp.clip(x + step_size * jnp.sign(jnp.nan_to_num(gradient)), lower, upper), best


def _counted(f: Callable, params: Any, x: Any, best: tuple[Any, Any], label: Any) -> tuple[Any, Any]:
  return _worse(x, f(params, x), best, label)


def _worse(x: Any, z: Any, best: tuple[Any, Any], label: Any) -> tuple[Any, Any]:
  """(point, margin) of the worse of a point with logits z, and of the worst so far; of NaN nothing is right."""
  m = margins(z, label).min().astype(best[1].dtype)
  m = jnp.where(jnp.isnan(m), -jnp.inf, m)
  return jax.tree.map(lambda new, old: jnp.where(m < best[1], new, old), (x, m), best)


@functools.partial(RightJit, static_argnums=0)
def _all_step(f, params, xs, best, labels, lower, upper, step_size):
  return jax.vmap(functools.partial(_step, f), (None, 0, 0, 0, 0, 0, None))(
      params, xs, best, labels, lower, upper, step_size)


@functools.partial(RightJit, static_argnums=0)
def _all_counted(f, params, xs, best, labels):
  return jax.vmap(functools.partial(_counted, f), (None, 0, 0, 0))(params, xs, best, labels)


@functools.partial(RightJit, static_argnums=0)
def _all_l2_step(f, params, xs, best, labels, centres, radii, lengths, clip):
  def one(x, best, label, centre, radius, length):
    def loss(x):
      z = f(params, x)
      return -margins(z, label).min(), z
    gradient, z = jax.grad(loss, has_aux=True)(x)
    gradient = jnp.nan_to_num(gradient)
    unit = gradient / jnp.maximum(jnp.sqrt(jnp.sum(gradient * gradient)), jnp.finfo(x.dtype).tiny)
    return _within(centre, x + length * unit - centre, radius, radius, clip), _worse(x, z, best, label)
  return jax.vmap(one)(xs, best, labels, centres, radii, lengths)
