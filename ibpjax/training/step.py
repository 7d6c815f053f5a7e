"""One step of certified training, as a pure function of its state."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from ibpjax.core.sets import pytree
from ibpjax.core.specification import check_classes
from ibpjax.nn.param_ramp import jittered, project, set_slope
from ibpjax.nn.sequential import Sequential
from ibpjax.training.attacks import Attack
from ibpjax.training.losses import l1_norm, natural_loss
from ibpjax.training.objectives import Objective, ibp_objective


@pytree
class TrainState:
  """Everything that a step changes.

  Attributes:
    params, batch_stats: parameters and batch-norm statistics.
    opt_state: of the optimizer.
    step: number.
    carried: of an estimate of Lipschitz constants, what goes on from step to step; None without.
  """
  params: Any
  batch_stats: Any
  opt_state: Any
  step: Any
  carried: Any = None

  @classmethod
  def create(cls, model: Sequential, optimizer: optax.GradientTransformation,
             carried: Any = None) -> tuple[Any, TrainState]:
    """(graphdef, state) of a fresh model; `nnx.merge(graphdef, state.params, state.batch_stats)` is the model."""
    refuse_stock_batch_norm(model)
    graphdef, (params, batch_stats) = split(model)
    return graphdef, cls(params, batch_stats, optimizer.init(params), jnp.zeros((), jnp.int32), carried)


def split(model: nnx.Module) -> tuple[Any, tuple[Any, Any]]:
  """(graphdef, (params, batch_stats)) of a model; `nnx.merge(graphdef, params, batch_stats)` is the model."""
  graphdef, *states = nnx.split(model, nnx.Param, ...)
  params, batch_stats = states
  return graphdef, (params, batch_stats)


def refuse_stock_batch_norm(model: nnx.Module) -> None:
  """Raises if a model holds `flax.nnx.BatchNorm`, whose statistics a bound cannot share."""
  for path, module in nnx.iter_modules(model):
    if isinstance(module, nnx.BatchNorm):
      raise TypeError(f'{".".join(map(str, path))} is a flax.nnx.BatchNorm: it hides its batch statistics and stops '
                      'their gradients, so clean and bound passes cannot share them. Use ibpjax.nn.BatchNorm')


def train_step(state: TrainState, batch: tuple[Any, Any], key: Any, *, graphdef: Any,
               optimizer: optax.GradientTransformation, eps: Callable, kappa: Callable,
               objective: Objective | None = ibp_objective, attack: Attack | None = None,
               estimate: Callable | None = None, statistics: str = 'clean', accumulate: int = 1, l1: float = 0.,
               eta: Callable | None = None, height_noise: float = 0., weight_noise: float = 0.,
               weight_samples: int = 2, axis_name: str | None = None) -> tuple[TrainState, dict[str, Any]]:
  """One optimizer step on kappa * natural loss + (1 - kappa) * objective + penalty + l1 * sum of |weights|.

  Args:
    state: parameters, batch_stats, optimizer state, step.
    batch: (images, labels): (batch, ...) floats in the units of eps, and (batch,) integers.
    key: PRNG key of this step (of the attacks).
    graphdef: of an `ibpjax.nn.Sequential`.
    optimizer: optax transformation; clipping (`optax.clip_by_global_norm`) is part of it.
    eps, kappa: schedules, step -> value. Where kappa is the number 0 and no array, the natural loss is a metric
      and its gradient is not computed.
    objective: of `ibpjax.training.objectives`; None trains on the natural loss alone.
    attack: what finds the points that an objective of attacks is given (see `ibpjax.training.attacked`).
    estimate: `ibpjax.lipschitz_estimate`, its options set by `functools.partial`: the objective is given its constants
      of pairs (as `pairs`), computed once a step, and the state carries its vectors (see `carried_at_start`).
    statistics: the batch that batch-norm statistics are those of, in all passes and with gradients: 'clean', or
      'attacked', the points of the attack, which then itself runs on the stored averages.
    accumulate: equal parts of the batch that the objective is computed for one after the other, to save memory. The
      statistics are those of the whole batch, and so is the step; only what is no mean over examples becomes a mean
      over the parts: regularizers, Exp-IBP and TAPS.
    l1: weight of the L1 norm of the kernels.
    eta: schedule of the slope of all LeakyReLUs and ParamRamps; None leaves it as it is.
    weight_noise, weight_samples: the loss is the mean over so many samples of the parameters, to each array of which
      normal noise of this share of the standard deviation of its numbers is added (Gaussian loss smoothing, Balauca et
      al. 2025); none at 0. Metrics are means over the samples; the stored statistics are those of the clean batch
      without noise.
    height_noise: added to the heights of ParamRamps after the step (see `ibpjax.nn.jittered`).
    axis_name: under `jax.pmap`, of the map: each device has an equal part of the batch and the same state, which stay
      the same. Batch statistics, gradients and metrics are those of the whole batch; a regularizer needs the name too,
      and what else is no mean over examples becomes one over parts, as with `accumulate`. Attacks draw other numbers
      than on one device. Under `jax.jit` with shardings leave it out: there a step is what it is on one device.

  Returns:
    The next state, and the metrics, all scalars: loss, natural [nats], error (a fraction),
    gradient_norm; with an objective also robust [nats], its errors (fractions, at the current
    eps), eps and kappa.

  Raises:
    ValueError: an unknown `statistics`, a batch that `accumulate` does not divide, a network of one logit.

  Source: Gowal et al. 2018; Lyu et al. 2021, section 5.1 of the supplement.
  """
  images, labels = batch
  if statistics not in ('clean', 'attacked') or (statistics == 'attacked' and attack is None):
    raise ValueError(f"statistics is {statistics!r}; it is 'clean', or with an attack 'attacked'")
  batch_stats = state.batch_stats if eta is None else _with_slope(graphdef, state, eta(state.step))
  radius, weight = jnp.asarray(eps(state.step)), kappa(state.step)

  def one(params, x):
    model, stats = params
    return model(x[None], stats)[0]

  of_loss, of_weights, of_heights = jax.random.split(key, 3)
  if axis_name is not None:
    of_loss = jax.random.fold_in(of_loss, lax.axis_index(axis_name))

  def loss(params, key):
    attacking, choosing = jax.random.split(key)
    model, carried, shared = nnx.merge(graphdef, params, batch_stats), state.carried, dict[str, Any]()

    def found(stats):
      return {} if attack is None else dict(points=attack(one, (model, stats), images, labels, radius, attacking))
    if statistics == 'clean':
      logits, stats = model.with_statistics(images, axis_name)
      points = found(stats)
    else:
      points = found(None)
      _, stats = model.with_statistics(points['points'], axis_name)
      logits = model(images, stats)
    if estimate is not None:
      lengths, carried = estimate(one)(carried, (model, stats), images[0])
      shared['pairs'] = lengths.pairs
    check_classes(logits.shape[-1])
    natural = total = natural_loss(logits, labels)
    metrics = dict(natural=natural, error=jnp.mean(logits.argmax(-1) != labels))
    if objective is not None:
      def part(logits, images, labels, key, points):
        return objective(one, (model, stats), logits, images, labels, radius, key, **points, **shared)
      robust, more = _accumulated(part, accumulate, logits, images, labels, choosing, points)
      metrics |= dict(robust=robust, eps=radius, kappa=jnp.asarray(weight), **more)
      absent = isinstance(weight, int | float) and weight == 0
      total = robust if absent else weight * natural + (1 - weight) * robust
      total += more.get('penalty', 0.)
    return total + l1 * l1_norm(params) if l1 else total, (metrics, stats, carried)

  def smoothed(params):
    if not weight_noise:
      return loss(params, of_loss)
    keys = jax.random.split(of_weights, (weight_samples, 2))
    found = jax.vmap(lambda keys: loss(_perturbed(params, keys[0], weight_noise), keys[1]))(keys)
    return jax.tree.map(lambda x: x.mean(0), found)

  (value, (metrics, stats, carried)), gradients = jax.value_and_grad(smoothed, has_aux=True)(state.params)
  if axis_name is not None:
    value, metrics, gradients = lax.pmean((value, metrics, gradients), axis_name)
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
  metrics |= dict(loss=value, gradient_norm=optax.tree.norm(gradients))
  model = nnx.merge(graphdef, optax.apply_updates(state.params, updates), batch_stats)
  if weight_noise:  # what is stored is for the weights without noise
    _, stats = nnx.merge(graphdef, state.params, batch_stats).with_statistics(images, axis_name)
  model.record(stats)
  if height_noise:
    jittered(model, of_heights, height_noise)
  project(model)
  _, (params, batch_stats) = split(model)
  return TrainState(params, batch_stats, opt_state, state.step + 1, carried), metrics


def carried_at_start(model: Sequential, estimate: Callable, x: Any, key: Any) -> Any:
  """What a state carries first for an estimate: its vectors after one call, from a random start.

  Args:
    model, estimate: as of a step.
    x: one example, of which only shape and dtype matter.
    key: PRNG key.
  """
  return jax.jit(estimate(lambda model, x: model(x[None])[0]))(key, model, x)[1]


def _accumulated(f: Callable, parts: int, logits: Any, images: Any, labels: Any, key: Any, points: Any) -> Any:
  """The mean of what f returns for so many equal parts of a batch, one after the other."""
  if parts == 1:
    return f(logits, images, labels, key, points)
  if len(images) % parts:
    raise ValueError(f'accumulate is {parts}, and a batch has {len(images)} examples: it must divide them')
  cut = lambda x: x.reshape(parts, len(x) // parts, *x.shape[1:])
  logits, images, labels, points = jax.tree.map(cut, (logits, images, labels, points))
  found = lax.map(jax.checkpoint(lambda part: f(*part)), (logits, images, labels, jax.random.split(key, parts), points))
  return jax.tree.map(lambda x: x.mean(0), found)


def _perturbed(params: Any, key: Any, share: float) -> Any:
  """Parameters with normal noise, of a share of the standard deviation of the numbers of each array."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  return jax.tree.unflatten(tree, [x + share * lax.stop_gradient(x.std()) * jax.random.normal(k, x.shape, x.dtype)
                                   for x, k in zip(leaves, keys)])


def _with_slope(graphdef: Any, state: TrainState, eta: Any) -> Any:
  """The statistics and settings of a model, its activations with the slope eta."""
  model = nnx.merge(graphdef, state.params, state.batch_stats)
  set_slope(model, eta)
  return split(model)[1][1]
