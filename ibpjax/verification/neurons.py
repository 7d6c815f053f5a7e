"""In which state neurons are: on which of its linear pieces an activation stays over a whole box."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ibpjax.core.balls import linf_ball
from ibpjax.core.sets import Interval
from ibpjax.core.specification import batched
from ibpjax.methods.ibp import ibp
from ibpjax.nn.param_ramp import LEAST_HEIGHT, LeakyReLU, ParamRamp

# Of ParamRamp; ReLU, which has no upper bend, knows the first three.
STATES = ('left dead', 'left unstable', 'alive', 'right unstable', 'right dead', 'unstable')


def states(bounds: Interval, height: Any = jnp.inf) -> dict[str, Any]:
  """Which neurons are in which state, by bounds of what goes into a ramp that bends at 0 and at its height.

  Args:
    bounds: of the operands of the activation.
    height: where it bends again, broadcast to the bounds; infinite for ReLU and LeakyReLU.

  Returns:
    state -> booleans of the shape of the bounds; each neuron is in one state.

  Source: Lyu et al. 2021, section 3.2, Figure 4.
  """
  l, u = bounds.lower, bounds.upper
  low, high = l < 0, u > height
  return {'left dead': u <= 0, 'left unstable': low & (u > 0) & ~high, 'alive': ~low & (u > 0) & ~high,
          'right unstable': ~low & (l < height) & high, 'right dead': ~low & (l >= height) & high,
          'unstable': low & high}


def neuron_states(model: Any, xs: Any, eps: Any, clip: tuple[float, float] = (0., 1.)) -> list[dict[str, Any]]:
  """How many neurons are in which state, layer by layer, by interval bounds.

  Args:
    model: an `ibpjax.nn.Sequential` whose activations are ReLUs, LeakyReLUs or ParamRamps.
    xs: (batch, ...) examples.
    eps: radius of the l-infinity balls around them, cut to `clip`.

  Returns:
    For each layer of activations state -> mean fraction of its neurons; all six states, which sum to 1.

  Raises:
    ValueError: the model has other activations.
  """
  def height(layer):
    if not isinstance(layer, ParamRamp):
      return jnp.inf
    return jnp.where(layer.bent[...], jnp.maximum(layer.r[...], LEAST_HEIGHT), jnp.inf)
  heights = [height(layer) for layer in model.flat() if isinstance(layer, LeakyReLU | ParamRamp) or
             layer in (jax.nn.relu, nnx.relu)]

  def one(model, box):
    return ibp(batched(lambda m, x: m(x)), intermediates=True)(model, box)[1]
  found = list(jax.vmap(one, (None, 0))(model, linf_ball(xs, eps, *clip)).bounds.values())
  if len(found) != len(heights):
    raise ValueError(f'the model has {len(found)} nonlinear layers, of which {len(heights)} are ReLU, LeakyReLU or '
                     'ParamRamp: only of these the states of neurons are known')

  return [{state: float(jnp.mean(where)) for state, where in states(b, jnp.broadcast_to(h, b.shape)).items()}
          for b, h in zip(found, heights)]
