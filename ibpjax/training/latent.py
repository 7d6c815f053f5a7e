"""TAPS and STAPS: interval bounds through the first layers, attacks inside of their boxes through the rest.

Attacks find too little where bounds allow too much: the product of their losses has part of both errors. What
attacks inside of a network find bounds nothing: these objectives are estimates.
"""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ibpjax.core.balls import linf_ball
from ibpjax.core.sets import Interval
from ibpjax.core.specification import margins
from ibpjax.core.unsound import UnsoundObjective
from ibpjax.methods.ibp import ibp
from ibpjax.nn.sequential import Sequential, is_activation
from ibpjax.training.expressive import small_box
from ibpjax.training.losses import robust_loss
from ibpjax.training.objectives import lower_margins, radius_for, unverified
from ibpjax.training.regularizers import Regularizer

_REACH = .5  # share of a box, from either end, in which points pull at that end


def halves(activations: int) -> tuple[Callable, Callable]:
  """(first, rest) of a model: functions ((model, stats), x) of one example whose composition is the model.

  Args:
    activations: how many of those of the chain itself belong to the first.
  """
  def cut(model):
    seen = 0
    for i, layer in enumerate(model.layers):
      seen += is_activation(layer)
      if seen == activations:
        first, rest = (Sequential(layers) for layers in (model.layers[:i + 1], model.layers[i + 1:]))
        return first, rest, len(first.norms())
    raise ValueError(f'the model has {seen} activations and cannot be cut after {activations} of them')

  def first(params, x):
    model, stats = params
    part, _, norms = cut(model)
    return part(x[None], stats if stats is None else stats[:norms])[0]

  def rest(params, h):
    model, stats = params
    _, part, norms = cut(model)
    return part(h[None], stats if stats is None else stats[norms:])[0]
  return first, rest


@functools.partial(UnsoundObjective, reason='attacks inside of the network are no bounds')
def taps_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                   points: Any = None, share: float = 1., cut: tuple[Callable, Callable], until: float = 0.,
                   weight: float = 5., steps: int = 20, regularizer: Regularizer | None = None,
                   clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, dict[str, Any]]:
  """TAPS: (loss of margins attacked inside of the network) * (loss of interval bounds); with small boxes, STAPS.

  Interval bounds of a hidden layer make a box, in which the least value of each margin is sought, class by class. The
  points found pull the ends of the box that they are near. Neither loss is of bounds over the ball where the boxes are
  small; the first never is.

  Args:
    points: what an attack has found, for STAPS: boxes of `share` of the width of the ball, around these points.
    share: as in `sabr_objective`.
    cut: (first, rest): f = rest(params, first(params, x)), functions of one example; see `halves`.
    until: below this radius the loss is that of interval bounds; the radius of the end of a ramp, for instance.
    weight: of the gradient of the first factor, not of its value.
    steps: of the attacks.
    regularizer: as in `ibp_objective`.

  Metrics: attacked_inside_error, the fraction for which the attack inside succeeds (below `until`, as the next one);
    bounds_error, the fraction that the interval bounds do not verify (on small boxes, if there are points).

  Source: Mao et al. 2023, sections 3.1 to 3.4; the released code for the steps and the gradient.
  """
  ball = linf_ball(images, radius_for(eps, regularizer), *clip)
  box = ball if points is None else small_box(ball, points, share)
  lower, more = lower_margins(f, params, logits, box, labels, eps, regularizer)
  bound = robust_loss(lower)

  def product():
    inside = attacked_inside(*cut, params, box, labels, key, steps)
    attacked = robust_loss(inside)
    return (weight * attacked - lax.stop_gradient((weight - 1) * attacked)) * bound, unverified(inside)
  loss, error = lax.cond(eps >= until, product, lambda: (bound, unverified(lower)))
  return loss, dict(attacked_inside_error=error, bounds_error=unverified(lower), **more)


def attacked_inside(first: Callable, rest: Callable, params: Any, box: Interval, labels: Any, key: Any,
                    steps: int) -> Any:
  """The least margins that attacks find in the interval bounds of a hidden layer: (batch, classes - 1). No bounds.

  Each margin has an attack of its own: from a random point, sign-gradient steps of max(0.2, 2 / steps) of the widths of
  the box, a fifth of that after 0.7 of 10 to 50 steps; the best point counts. Gradients: `pulled`.
  """
  def one(box, label, key):
    latent = ibp(first)(params, box)
    fixed, ends = lax.stop_gradient((params, latent))

    def values(params, h):
      return margins(rest(params, h), label)
    late = (np.arange(steps) >= .7 * steps) & (10 <= steps <= 50)
    lengths = jnp.asarray(max(.2, 2 / steps) * np.where(late, .2, 1.), latent.dtype)
    count = jax.eval_shape(values, params, latent.lower).shape[0]

    def attack(j, key):
      def step(state, length):
        h, best, least = state
        value, gradient = jax.value_and_grad(lambda h: values(fixed, h)[j])(h)
        best, least = jnp.where(value < least, h, best), jnp.minimum(value, least)
        moved = h - length * ends.width * jnp.sign(jnp.nan_to_num(gradient))
        return (jnp.clip(moved, ends.lower, ends.upper), best, least), None
      start = ends.lower + ends.width * jax.random.uniform(key, ends.shape, ends.dtype)
      (h, best, least), _ = lax.scan(step, (start, start, jnp.asarray(jnp.inf, start.dtype)), lengths)
      return jnp.where(values(fixed, h)[j] < least, h, best)
    found = jax.vmap(attack)(jnp.arange(count), jax.random.split(key, count))
    at = jax.vmap(lambda p: values(params, pulled(lax.stop_gradient(p), latent.lower, latent.upper)))(found)
    return jnp.diagonal(at)
  return jax.vmap(one)(box, labels, jax.random.split(key, len(labels)))


@jax.custom_vjp
def pulled(points: Any, lower: Any, upper: Any) -> Any:
  """Points of a box, as they are; their gradients move the ends that they are near.

  The derivative by an end is 1 for a point at it, and falls to 0 in the middle of the box.

  Source: Mao et al. 2023, section 3.3.
  """
  del lower, upper
  return points


def _forward(points: Any, lower: Any, upper: Any) -> tuple[Any, Any]:
  return points, (points, lower, upper)


def _backward(saved: Any, gradient: Any) -> tuple[Any, Any, Any]:
  points, lower, upper = saved
  reach = jnp.maximum(_REACH * (upper - lower), jnp.finfo(points.dtype).tiny)
  near = lambda distance: jnp.clip(1 - distance / reach, 0, 1)
  return jnp.zeros_like(points), gradient * near(points - lower), gradient * near(upper - points)


pulled.defvjp(_forward, _backward)
