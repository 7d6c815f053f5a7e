"""LeakyReLU, and ParamRamp: a ramp that bends again at a trained height, and tightens bounds as it does."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from ibpjax.primitives.registration import elementwise
from ibpjax.rules.elementwise import Elementwise
from ibpjax.xla.compiling import RightJit

LEAST_HEIGHT = 1e-4   # Lyu et al. 2021, section 3.1


@elementwise(Elementwise(lambda k, r, eta: (jnp.zeros_like(r), r), trend=1, critical_is_trained=True, roundings=16))
def _ramp(z, r, eta):
  # At its bends the slope is that outside, as for jax.nn.relu: dead units and padded images sit exactly there.
  beyond = jnp.where((z >= r) & (r < jnp.inf), z - r, 0)
  outside = jnp.where(eta > 0, eta * jnp.where(z > 0, beyond, z), 0)  # 0 also at infinite ends
  return outside + jnp.where(z > 0, jnp.where(z >= r, r, z), 0)


def param_ramp(z: Any, r: Any, eta: Any = 0.) -> Any:
  """ParamRamp: eta z below 0, z in [0, r], eta (z - r) + r above r; element by element.

  Args:
    z: array of floats.
    r: heights, broadcast to `z`; below 1e-4 they count as 1e-4, with the gradient as if they did not. Infinite heights
      make this LeakyReLU of slope eta.
    eta: slopes outside, broadcast to `z`, cut to [0, 1]; 0 is a flat ramp.

  Source: Lyu et al. 2021, section 3.
  """
  z = jnp.asarray(z)
  r, eta = jnp.asarray(r, z.dtype), jnp.clip(jnp.asarray(eta, z.dtype), 0, 1)
  r = jnp.where(r < LEAST_HEIGHT, LEAST_HEIGHT + (r - lax.stop_gradient(r)), r)
  return _ramp(z, r, eta)


class Height(nnx.Param):
  """A trained height, which is no kernel: weight penalties leave it out."""


class Setting(nnx.Variable):
  """A number that belongs to a model and is saved with it, but is not trained."""


def _slope(eta: float) -> Setting:
  if not 0 <= eta <= 1:
    raise ValueError(f'eta is {eta}; the slope of an activation outside of its ramp lies between 0 and 1')
  return Setting(jnp.asarray(eta, jnp.float32))


class LeakyReLU(nnx.Module):
  """LeakyReLU with a slope that a schedule may change: ReLU(eta) of Lyu et al. 2021.

  Args:
    shape: of one example's neurons, as every class of activations takes it; not used.
    eta: slope below 0.

  Attributes:
    eta: the slope, a scalar.
  """
  activates = True

  def __init__(self, shape: Sequence[int] = (), eta: float = .01):
    del shape
    self.eta = _slope(eta)

  def __call__(self, z: Any) -> Any:
    """An array of any shape -> the same."""
    return param_ramp(z, jnp.inf, self.eta[...])


class ParamRamp(nnx.Module):
  """A ParamRamp for each neuron, with heights that are trained and slopes that a schedule may change.

  Before its heights are measured (`calibrate`) it is LeakyReLU of slope eta. A training loop projects them after each
  update (`project`), as `training.train_step` does.

  Args:
    shape: of one example's neurons: (features,) or (height, width, channels).
    eta: slope outside of [0, r].

  Attributes:
    r: heights, of that shape; trained.
    eta: the slope, a scalar.
    bent: whether the heights are in force.

  Source: Lyu et al. 2021, section 3 and its supplement.
  """
  activates = True

  def __init__(self, shape: Sequence[int], eta: float = 0.):
    self.r = Height(jnp.ones(tuple(shape)))
    self.eta = _slope(eta)
    self.bent = Setting(jnp.zeros((), bool))

  def __call__(self, z: Any) -> Any:
    """(batch, *shape) -> the same."""
    return param_ramp(z, jnp.where(self.bent[...], self.r[...], jnp.inf), self.eta[...])


def ramps(model: nnx.Module) -> list[ParamRamp]:
  """The ParamRamps of a model."""
  return [module for _, module in nnx.iter_modules(model) if isinstance(module, ParamRamp)]


def set_slope(model: nnx.Module, eta: Any) -> None:
  """Gives all LeakyReLUs and ParamRamps of a model the slope eta."""
  for _, module in nnx.iter_modules(model):
    if isinstance(module, LeakyReLU | ParamRamp):
      module.eta[...] = jnp.asarray(eta, module.eta[...].dtype)


def project(model: nnx.Module) -> None:
  """Lifts the heights of a model's ParamRamps that an update has taken below 1e-4, so that they can grow again.

  Source: Lyu et al. 2021, section 3.1.
  """
  for ramp in ramps(model):
    ramp.r[...] = jnp.maximum(ramp.r[...], LEAST_HEIGHT)


def jittered(model: nnx.Module, key: Any, share: float) -> None:
  """Adds to each height of a model's ParamRamps normal noise, of `share` times the mean height of its layer.

  Source: Lyu et al. 2021, section 5 of the supplement (share .01, on CIFAR-10 at 2.2/255 under IBP).
  """
  for i, ramp in enumerate(ramps(model)):
    r = ramp.r[...]
    noise = share * r.mean() * jax.random.normal(jax.random.fold_in(key, i), r.shape, r.dtype)
    ramp.r[...] = r + jnp.where(ramp.bent[...], noise, 0)


def calibrate(model: Any, batches: Iterable[Any]) -> None:
  """Puts the heights of a model's ParamRamps in force, each at the mean of its neuron's output before it bends.

  Args:
    model: an `ibpjax.nn.Sequential`.
    batches: all images of the training split, as the model takes them; not augmented.

  Raises:
    ValueError: there is no batch, or a ParamRamp is not itself a layer of the model.

  Source: Lyu et al. 2021, section 4 and its supplement; the released code.
  """
  found = [layer for layer in model.flat() if isinstance(layer, ParamRamp)]
  if len(found) < len(ramps(model)):
    raise ValueError('some ParamRamps are inside of modules that are layers of the model: only those that are layers '
                     'themselves can be measured. Make these modules Sequentials')
  straight = nnx.clone(model)
  for ramp in ramps(straight):
    ramp.bent[...] = jnp.zeros((), bool)
  graphdef, state = nnx.split(straight)

  @RightJit
  def sums(state, x):
    outputs = []

    def apply(layer, x):
      y = layer(x)
      if isinstance(layer, ParamRamp):
        outputs.append(y.sum(0))
      return y
    nnx.merge(graphdef, state).walk(x, apply)
    return outputs

  totals, count = None, 0
  for images in batches:
    new = sums(state, images)
    totals = new if totals is None else jax.tree.map(jnp.add, totals, new)
    count += len(images)
  if totals is None:
    raise ValueError('no batch was given to measure the heights of ParamRamps on')
  for ramp, total in zip(found, totals, strict=True):
    ramp.r[...] = jnp.maximum(total / count, LEAST_HEIGHT)
    ramp.bent[...] = jnp.ones((), bool)
