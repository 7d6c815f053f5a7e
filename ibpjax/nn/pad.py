"""A frame of zeros around images, as a layer."""
from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx


class Pad(nnx.Module):
  """A frame of zeros around images (batch, height, width, channels).

  Args:
    pixels: its width on each side.
  """

  def __init__(self, pixels: int):
    self.pixels = pixels

  def __call__(self, x: Any) -> Any:
    return jnp.pad(x, ((0, 0), (self.pixels, self.pixels), (self.pixels, self.pixels), (0, 0)))
