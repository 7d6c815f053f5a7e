"""Regularizers of the warm-up of certified training: tight bounds, and a balance of active and inactive ReLUs."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from ibpjax.core.sets import Interval

# (bounds of what goes into each activation, the box of the inputs, eps) -> (penalty, metrics)
Regularizer = Callable[[Sequence[Interval], Interval, Any], tuple[Any, dict[str, Any]]]
LEAST_RADIUS = 1e-6  # bounds of a smaller box say nothing about how they grow: in float32 it is none
_TINY = 1e-12


def _mean(x: Any, axis_name: str | None) -> Any:
  """The mean over all elements, of all devices' equal parts under a map of that name."""
  return jnp.mean(x) if axis_name is None else lax.pmean(jnp.mean(x), axis_name)


def tightness(bounds: Sequence[Interval], radius: Any, tau: float = .5, axis_name: str | None = None) -> Any:
  """How far the mean radius of each layer exceeds that of the input: 0 where none is more than 1 / tau times as large.

  mean over layers of relu(tau - radius / mean radius) / tau.

  Args:
    bounds: of what goes into each activation, any shapes.
    radius: the mean radius of the input box.
    tau: the ratio of the radii that is enough, in (0, 1].
    axis_name: under `jax.pmap`, of the map, whose devices' bounds are one batch.

  Returns:
    scalar in [0, 1].

  Source: Shi et al. 2021, section 3.3.
  """
  radii = [_mean(b.radius, axis_name) for b in bounds]
  return sum(jnp.maximum(tau - radius / jnp.maximum(r, _TINY), 0) / tau for r in radii) / len(radii)


def balance(bounds: Sequence[Interval], tau: float = .5, axis_name: str | None = None) -> Any:
  """How unlike the active and the inactive ReLUs of each layer are, in the sum and in the variance of their centres.

  With the centres c of the boxes of one layer and their mean m, let a be the ratio of the sums of |c| over active
  (lower > 0) and inactive (upper < 0) neurons, and b that of the sums of (c - m)**2, each the smaller over the greater:
  mean over layers of (relu(tau - a) + relu(tau - b)) / tau. A layer that lacks one of the two kinds counts as 0.

  Args:
    bounds: of what goes into each ReLU, (batch, ...).
    tau: the ratio that is enough, in (0, 1].
    axis_name: as in `tightness`.

  Returns:
    scalar in [0, 2].

  Source: Shi et al. 2021, section 3.3.
  """
  return sum(_imbalance(b, tau, axis_name) for b in bounds) / len(bounds)


def instability(bounds: Sequence[Interval]) -> Any:
  """The sum over neurons of relu(-lower) * relu(upper): 0 where all ReLUs are stable.

  Args:
    bounds: of what goes into each ReLU, any shapes.

  Source: De Palma et al. 2022 (IBP-R), section 3; the area of the triangle relaxation, twice.
  """
  return sum(jnp.sum(jnp.maximum(-b.lower, 0) * jnp.maximum(b.upper, 0)) for b in bounds)


def _imbalance(x: Interval, tau: float, axis_name: str | None) -> Any:
  active, inactive = (lax.stop_gradient(which).astype(x.dtype) for which in (x.lower > 0, x.upper < 0))
  spread = jnp.square(x.centre - _mean(x.centre, axis_name))
  both = (_mean(active, axis_name) > 0) & (_mean(inactive, axis_name) > 0)

  def loss(values):
    one, other = (_mean(jnp.where(which > 0, values, 0), axis_name) * x.size for which in (active, inactive))
    greater = jnp.where(both, jnp.maximum(jnp.maximum(one, other), _TINY), 1)
    return jnp.where(both, jnp.maximum(tau - jnp.minimum(one, other) / greater, 0), 0) / tau
  return loss(jnp.abs(x.centre)) + loss(spread)


def warm_up_regularizer(bounds: Sequence[Interval], box: Interval, eps: Any, *, weight: Callable[[Any], Any],
                        tau: float = .5, std: Any = 1., axis_name: str | None = None) -> tuple[Any, dict[str, Any]]:
  """weight(eps) * (tightness + balance) of a batch: a `Regularizer`, with `weight` given by `functools.partial`.

  Args:
    bounds: of what goes into each activation, (batch, ...).
    box: of the inputs, (batch, ...).
    eps: the radius that `weight` follows.
    weight: eps -> weight; lambda_0 (1 - eps / eps_max) in the source, lambda_0 = 0.5.
    tau: as in `tightness` and `balance`.
    std: what the first layer divides pixels by, broadcast to the images: the radius of the input is the one after it.
    axis_name: as in `tightness`.

  Metrics: tightness, balance; active and inactive, the mean fractions of such neurons over layers.
  Source: Shi et al. 2021, section 3.3.
  """
  tight = tightness(bounds, _mean(box.radius / std, axis_name), tau, axis_name)
  balanced = balance(bounds, tau, axis_name)
  fractions = [[jnp.mean(b.lower > 0), jnp.mean(b.upper < 0)] for b in bounds]
  active, inactive = (sum(column) / len(bounds) for column in zip(*fractions))
  metrics = dict(tightness=tight, balance=balanced, active=active, inactive=inactive)
  return weight(eps) * (tight + balanced), metrics
