"""Weight initialisers of the certified-training papers."""
from __future__ import annotations

from typing import Any

import jax
from jax.nn.initializers import variance_scaling

# U(+-1/sqrt(fan_in)): what the published models start from (Shi et al. 2021, who call it Xavier).
fan_in_uniform = variance_scaling(1 / 3, 'fan_in', 'uniform')


def bias_uniform(fan_in: int) -> Any:
  """Initialiser of a bias by U(+-1/sqrt(fan_in)), the fan-in being that of the layer's weights."""
  bound = fan_in ** -0.5

  def init(key, shape, dtype=float, **_):
    return jax.random.uniform(key, shape, dtype, -bound, bound)
  return init
