"""Batch normalisation whose batch statistics are values, passed in and handed out, never hidden."""
from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax

Statistics = tuple[Any, Any]


class BatchNorm(nnx.Module):
  """Normalises each feature by given statistics: those of a clean batch, or the stored averages.

  Batch statistics mix the examples of a batch, so a bound may not compute them from a box. They
  come from the clean forward pass and enter the bound as known values, with their gradients
  (Shi et al. 2021, section 3.2). Stock `nnx.BatchNorm` stops those gradients.

  Attributes:
    scale, bias: parameters, (features,).
    mean, var: running averages of the statistics, (features,), used when none are given.
    momentum: what a running average keeps at each `record`.
    epsilon: added to the variance.
  """

  def __init__(self, features: int, *, momentum: float = 0.9, epsilon: float = 1e-5, rngs: nnx.Rngs | None = None):
    del rngs  # nothing is random; accepted because every layer takes it
    self.scale = nnx.Param(jnp.ones(features))
    self.bias = nnx.Param(jnp.zeros(features))
    self.mean = nnx.BatchStat(jnp.zeros(features))
    self.var = nnx.BatchStat(jnp.ones(features))
    self.momentum = momentum
    self.epsilon = epsilon

  def statistics(self, x: Any, axis_name: str | None = None) -> Statistics:
    """(mean, biased variance) over all axes of a clean batch but the last; both differentiable.

    Args:
      x: the batch, or under `jax.pmap` the equal part of it that a device has.
      axis_name: of the map, whose devices' parts are one batch.
    """
    axes = tuple(range(x.ndim - 1))
    over = (lambda v: v) if axis_name is None else functools.partial(lax.pmean, axis_name=axis_name)
    mean = over(x.mean(axes))
    return mean, over(jnp.square(x - _expand(mean, x.ndim)).mean(axes))

  def __call__(self, x: Any, stats: Statistics | None = None) -> Any:
    """`x` of shape (..., features), normalised by `stats` = (mean, var) or by the stored averages.

    Affine in `x`, one multiplication and one addition an element.
    """
    mean, var = (self.mean[...], self.var[...]) if stats is None else stats
    scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
    shift = self.bias[...] - mean * scale
    return x * _expand(scale, x.ndim) + _expand(shift, x.ndim)

  def record(self, stats: Statistics) -> None:
    """Moves the stored averages towards the statistics of a batch."""
    for stored, new in zip((self.mean, self.var), stats, strict=True):
      stored[...] = self.momentum * stored[...] + (1 - self.momentum) * lax.stop_gradient(new)


def _expand(v: Any, ndim: int) -> Any:
  return v.reshape((1,) * (ndim - 1) + v.shape)
