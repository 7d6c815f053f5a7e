"""Weight initialisers of the certified-training papers, and what they do to the width of bounds."""
from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import variance_scaling

from ibpjax.nn.pad import Pad
from ibpjax.nn.sequential import Residual, Sequential, is_activation

_KINDS = nnx.Linear | nnx.Conv

# U(+-1/sqrt(fan_in)): what the published models start from (Shi et al. 2021, who call it Xavier).
fan_in_uniform = variance_scaling(1 / 3, 'fan_in', 'uniform')


def bias_uniform(fan_in: int) -> Any:
  """Initialiser of a bias by U(+-1/sqrt(fan_in)), the fan-in being that of the layer's weights."""
  bound = fan_in ** -0.5

  def init(key, shape, dtype=float, **_):
    return jax.random.uniform(key, shape, dtype, -bound, bound)
  return init


def ibp_normal(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
  """IBP initialisation: kernels from N(0, 2 pi / fan_in**2), whose difference gain is 1; a Flax initialiser.

  Args:
    key: PRNG key.
    shape: of a kernel, its outputs along the last axis, the fan-in being the product of the others.
    dtype: of the kernel.

  Source: Shi et al. 2021, section 3.1.
  """
  return jax.random.normal(key, shape, dtype) * (math.sqrt(2 * math.pi) / math.prod(shape[:-1]))


def difference_gain(kernel: Any) -> Any:
  """How much wider a layer after a ReLU makes interval bounds on average: fan_in / 2 * mean |weight|, a scalar.

  Args:
    kernel: outputs along the last axis. Of the first layer, with no ReLU before it, the gain is twice this.

  Source: Shi et al. 2021, section 3.1.
  """
  return math.prod(kernel.shape[:-1]) / 2 * jnp.mean(jnp.abs(kernel))


def reinitialize(model: Sequential, key: Any) -> None:
  """Draws the kernels of a model anew by `ibp_normal`, all but that of the last layer, which classifies.

  Biases and batch normalisation stay as they are. A kernel that follows the activation of a sum is halved: bounds of a
  sum of two chains are twice as wide as those of one.

  Args:
    model: dense and convolutional layers in their order, also in a `Residual`; changed in place.
    key: PRNG key.

  Raises:
    ValueError: a kernel is inside of a module that is a layer of the model.

  Source: Shi et al. 2021, section 3.1, and for sums the released code.
  """
  layers = list(_kernels(model, ''))
  if len(layers) < sum(isinstance(module, _KINDS) for _, module in nnx.iter_modules(model)):
    raise ValueError('some kernels are inside of modules that are layers of the model: only those of layers themselves '
                     'can be drawn anew. Make these modules Sequentials')
  for i, (layer, share) in enumerate(layers[:-1]):
    kernel = layer.kernel[...]
    layer.kernel[...] = share * ibp_normal(jax.random.fold_in(key, i), kernel.shape, kernel.dtype)


def _kernels(chain: Sequential, before: str) -> Generator[tuple[Any, float], None, str]:
  """The layers of a chain that have kernels, each with its factor.

  `before` says what the chain is applied to, and what is returned what comes out of it: 'sum', 'active sum', or ''.
  """
  for layer in chain.layers:
    if isinstance(layer, Residual):
      yield from _kernels(Sequential(layer.layers), before)
      yield from _kernels(layer.shortcut, before)
      before = 'sum'
    elif isinstance(layer, Sequential):
      before = yield from _kernels(layer, before)
    elif isinstance(layer, _KINDS):
      yield layer, .5 if before == 'active sum' else 1.
      before = ''
    elif not isinstance(layer, Pad):
      before = 'active sum' if before == 'sum' and is_activation(layer) else ''
  return before
