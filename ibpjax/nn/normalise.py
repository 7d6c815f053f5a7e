"""Normalisation of images by fixed statistics, as a layer, so that radii stay in the units of pixels."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx


class Normalise(nnx.Module):
  """(x - mean) / std per channel, the last axis; both are constants, not parameters.

  Args:
    mean, std: one number a channel, in the units of the input.
  """

  def __init__(self, mean: Sequence[float], std: Sequence[float]):
    if len(mean) != len(std) or not all(s > 0 for s in std):
      raise ValueError(f'mean {mean} and std {std}: one of each a channel, std > 0')
    self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))

  def __call__(self, x: Any) -> Any:
    """`x` of shape (..., channels)."""
    mean, std = (jnp.asarray(v, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,)) for v in (self.mean, self.std))
    return (x - mean) / std
