"""What the flags of `ibpjax train` say of a step: objective, attack, schedules, optimizer."""
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
from absl import flags

import ibpjax
from ibpjax import training

FLAGS = flags.FLAGS
# Losses that are given attacks, and those that take regularizers.
ATTACKED = ('pgd', 'sabr', 'mtl-ibp', 'cc-ibp', 'exp-ibp', 'ibp-r', 'staps')
_EXPRESSIVE = {'mtl-ibp': training.mtl_objective, 'cc-ibp': training.cc_objective, 'exp-ibp': training.exp_objective}
# Losses of Lipschitz networks, whose eps is an l2 radius.
LIPSCHITZ = ('emma', 'annealed-emma', 'margin', 'gloro', 'gloro-trades')
REGULARIZED = ('ibp', 'sabr', 'taps', 'staps', *_EXPRESSIVE)


def objective_and_schedules(per_epoch: int, std: tuple[float, ...] = (1.,)) -> dict[str, Any]:
  """What `train_step` takes beside the model and the optimizer; `std` is what the model divides pixels by."""
  ramp = dict(start=FLAGS.warmup_epochs * per_epoch, length=FLAGS.ramp_epochs * per_epoch)
  eps = getattr(training, FLAGS.schedule)(FLAGS.eps, **ramp, initial=FLAGS.eps_start * FLAGS.eps)
  trades = functools.partial(training.trades_objective, steps=FLAGS.pgd_steps, weight=FLAGS.trades_weight)

  def falling(end):
    return lambda radius: 1 + radius / FLAGS.eps * (end - 1) if FLAGS.eps else 1.
  beta, share = falling(FLAGS.beta_end), falling(0.)
  linear = functools.partial(training.crown_objective, beta=beta)
  regularizer = functools.partial(
      training.warm_up_regularizer, std=np.reshape(std, (1, 1, 1, -1)).astype(np.float32),
      weight=lambda radius: FLAGS.regularizer_weight * share(radius))
  options: dict[str, Any] = dict(regularizer=regularizer if FLAGS.regularizer_weight else None)
  expressive = {name: functools.partial(f, alpha=FLAGS.alpha, **options) for name, f in _EXPRESSIVE.items()}
  taps = functools.partial(training.taps_objective, cut=training.halves(FLAGS.cut), weight=FLAGS.cut_weight,
                           steps=FLAGS.pgd_steps, until=FLAGS.eps * (1 - 1e-6), **options)
  lipschitz: dict[str, Callable] = dict(zip(LIPSCHITZ, (
      training.emma_loss, lambda z, y, *a: training.annealed_loss(training.emma_logits(z, y, *a), y),
      training.margin_loss, training.gloro_loss,
      functools.partial(training.gloro_trades_loss, weight=FLAGS.trades_weight)), strict=True))
  objective = {
      **{name: functools.partial(training.lipschitz_objective, loss=loss) for name, loss in lipschitz.items()},
      'ibp': functools.partial(training.ibp_objective, **options), 'natural': None, 'trades': trades,
      'pgd': training.adversarial_objective,
      'crown-ibp': linear, 'crown-lbp': functools.partial(linear, intermediate='lbp'),
      'etb': functools.partial(training.etb_objective, weight=FLAGS.etb_weight,
                               temperature=FLAGS.temperature or None),
      'companion': training.companion_objective,
      'fused': functools.partial(training.fused_objective, beta=beta), **expressive,
      'ibp-r': functools.partial(training.ibp_r_objective, weight=FLAGS.instability), 'taps': taps,
      'staps': functools.partial(taps, share=FLAGS.box_share),
      'sabr': functools.partial(training.sabr_objective, share=FLAGS.box_share, **options)}[FLAGS.loss]
  attack = functools.partial(training.attacked, steps=FLAGS.pgd_steps, step=FLAGS.pgd_step, scale=FLAGS.attack_scale)
  kappa = training.tied(eps, FLAGS.eps, FLAGS.kappa_start, FLAGS.kappa_end)
  return dict(eps=eps, kappa=kappa, objective=objective, attack=attack if FLAGS.loss in ATTACKED else None,
              estimate=estimate(), statistics=FLAGS.statistics, accumulate=FLAGS.accumulate, l1=FLAGS.l1,
              eta=slopes(per_epoch), height_noise=FLAGS.height_noise, weight_noise=FLAGS.weight_noise,
              weight_samples=FLAGS.weight_samples)


def estimate() -> Callable | None:
  """The estimate of Lipschitz constants that the loss needs, if it does."""
  return functools.partial(ibpjax.lipschitz_estimate, steps=FLAGS.power_steps) if FLAGS.loss in LIPSCHITZ else None


def slopes(per_epoch: int) -> training.schedules.Schedule | None:
  """The schedule of the slope of activations; None if it does not change."""
  if FLAGS.eta_end is None:
    return None
  first, last = FLAGS.eta_epochs
  return training.linear(FLAGS.eta_end, first * per_epoch, (last - first) * per_epoch, initial=FLAGS.eta)


def optimizer(per_epoch: int) -> optax.GradientTransformation:
  """Adam, AdamW or SGD with momentum and a rate that changes, clipping before it."""
  rate, warming = _rate(per_epoch), FLAGS.rate_warmup_epochs * per_epoch
  if warming:
    rate = optax.join_schedules([optax.linear_schedule(0., FLAGS.learning_rate, warming), rate], [warming])
  clip = [optax.clip_by_global_norm(FLAGS.gradient_clip)] if FLAGS.gradient_clip else []
  if FLAGS.optimizer == 'adamw':
    return optax.chain(*clip, optax.adamw(rate, weight_decay=FLAGS.weight_decay))
  decay = [optax.add_decayed_weights(FLAGS.weight_decay)] if FLAGS.weight_decay else []
  return optax.chain(*clip, *decay, optax.adam(rate) if FLAGS.optimizer == 'adam' else optax.sgd(rate, momentum=.9))


def _rate(per_epoch: int) -> optax.Schedule:
  """The learning rate after its warm-up: steps of it, or the cosine."""
  warming = FLAGS.rate_warmup_epochs
  if FLAGS.cosine:
    return optax.cosine_decay_schedule(FLAGS.learning_rate, (FLAGS.epochs - warming) * per_epoch, alpha=1e-5)
  decays = {(epoch - warming) * per_epoch: FLAGS.decay for epoch in FLAGS.milestones}
  return optax.piecewise_constant_schedule(FLAGS.learning_rate, decays)
