"""One step of certified training, as a pure function of its state."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ibpjax.ibp import ibp
from ibpjax.interval import linf_ball, pytree
from ibpjax.margins import margins
from ibpjax.nn.sequential import Sequential
from ibpjax.training.losses import natural_loss, robust_loss


@pytree
class TrainState:
  """Everything that a step changes: parameters, batch-norm averages, optimizer, step number."""
  params: Any
  averages: Any
  opt_state: Any
  step: Any

  @classmethod
  def create(cls, model: Sequential, optimizer: optax.GradientTransformation) -> tuple[Any, TrainState]:
    """(graphdef, state) of a fresh model; `nnx.merge(graphdef, state.params, state.averages)` is the model."""
    refuse_stock_batch_norm(model)
    graphdef, (params, averages) = split(model)
    return graphdef, cls(params, averages, optimizer.init(params), jnp.zeros((), jnp.int32))


def split(model: nnx.Module) -> tuple[Any, tuple[Any, Any]]:
  """(graphdef, (params, averages)) of a model; `nnx.merge(graphdef, params, averages)` is the model."""
  graphdef, *states = nnx.split(model, nnx.Param, ...)
  params, averages = states
  return graphdef, (params, averages)


def refuse_stock_batch_norm(model: nnx.Module) -> None:
  """Raises if a model holds `flax.nnx.BatchNorm`, whose statistics a bound cannot share."""
  for path, module in nnx.iter_modules(model):
    if isinstance(module, nnx.BatchNorm):
      raise TypeError(f'{".".join(map(str, path))} is a flax.nnx.BatchNorm: it hides its batch statistics and stops '
                      'their gradients, so clean and bound passes cannot share them. Use ibpjax.nn.BatchNorm')


def train_step(state: TrainState, images: Any, labels: Any, *, graphdef: Any,
               optimizer: optax.GradientTransformation, eps: Callable, kappa: Callable,
               clip: tuple[Any, Any] = (0., 1.)) -> tuple[TrainState, dict[str, Any]]:
  """One optimizer step on kappa * natural + (1 - kappa) * robust loss, the robust one by IBP.

  Batch-norm statistics come from the clean batch and are shared by the bound, with gradients.

  Args:
    state: parameters, averages, optimizer state, step.
    images: (batch, ...) floats in `clip`.
    labels: (batch,) integers.
    graphdef: of an `ibpjax.nn.Sequential`.
    optimizer: optax transformation.
    eps, kappa: schedules, step -> value.
    clip: valid range of pixels.

  Returns:
    The next state, and the metrics: loss, natural, robust [nats]; error, verified_error (fractions;
    at the current eps, bounds as trained); eps, kappa, gradient_norm. All scalars.

  Source: Gowal et al. 2018; Lyu et al. 2021, section 5.1 of the supplement.
  """
  radius, weight = eps(state.step), kappa(state.step)

  def bounded_margins(model, stats, x, label):
    return margins(model(x[None], stats)[0], label)

  def loss(params):
    model = nnx.merge(graphdef, params, state.averages)
    logits, stats = model.with_statistics(images)
    box = linf_ball(images, radius, *clip)
    bound = jax.vmap(ibp(bounded_margins, elide=True), in_axes=(None, None, 0, 0))
    lower = bound(model, stats, box, labels).lower
    natural, robust = natural_loss(logits, labels), robust_loss(lower)
    metrics = dict(natural=natural, robust=robust, error=jnp.mean(logits.argmax(-1) != labels),
                   verified_error=jnp.mean(~(lower.min(-1) > 0)), eps=jnp.asarray(radius), kappa=jnp.asarray(weight))
    return weight * natural + (1 - weight) * robust, (metrics, stats)

  (value, (metrics, stats)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
  metrics |= dict(loss=value, gradient_norm=optax.tree.norm(gradients))
  model = nnx.merge(graphdef, state.params, state.averages)
  model.record(stats)
  _, (_, averages) = split(model)
  return TrainState(optax.apply_updates(state.params, updates), averages, opt_state, state.step + 1), metrics
