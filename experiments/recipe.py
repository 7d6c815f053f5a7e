"""What the flags of `experiments.train` say of a step: objective, attack, schedules, optimizer."""
import functools
from typing import Any

import numpy as np
import optax
from absl import flags

from ibpjax import training

FLAGS = flags.FLAGS
# Losses that are given attacks, and those that take regularizers.
ATTACKED = ('pgd', 'sabr', 'mtl-ibp', 'cc-ibp', 'exp-ibp', 'ibp-r', 'staps')
_EXPRESSIVE = {'mtl-ibp': training.mtl_objective, 'cc-ibp': training.cc_objective, 'exp-ibp': training.exp_objective}
REGULARIZED = ('ibp', 'sabr', 'taps', 'staps', *_EXPRESSIVE)


def objective_and_schedules(per_epoch: int, std: tuple[float, ...] = (1.,)) -> dict[str, Any]:
  """What `train_step` takes beside the model and the optimizer; `std` is what the model divides pixels by."""
  ramp = dict(start=FLAGS.warmup_epochs * per_epoch, length=FLAGS.ramp_epochs * per_epoch)
  eps = getattr(training, FLAGS.schedule)(FLAGS.eps, **ramp)
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
  objective = {
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
              statistics=FLAGS.statistics, accumulate=FLAGS.accumulate, l1=FLAGS.l1, eta=slopes(per_epoch),
              height_noise=FLAGS.height_noise, weight_noise=FLAGS.weight_noise, weight_samples=FLAGS.weight_samples)


def slopes(per_epoch: int) -> training.schedules.Schedule | None:
  """The schedule of the slope of activations; None if it does not change."""
  if FLAGS.eta_end is None:
    return None
  first, last = FLAGS.eta_epochs
  return training.linear(FLAGS.eta_end, first * per_epoch, (last - first) * per_epoch, initial=FLAGS.eta)


def optimizer(per_epoch: int) -> optax.GradientTransformation:
  """Adam or SGD with momentum and a decaying rate, clipping before it."""
  decays = {epoch * per_epoch: FLAGS.decay for epoch in FLAGS.milestones}
  rate = optax.piecewise_constant_schedule(FLAGS.learning_rate, decays)
  clip = [optax.clip_by_global_norm(FLAGS.gradient_clip)] if FLAGS.gradient_clip else []
  decay = [optax.add_decayed_weights(FLAGS.weight_decay)] if FLAGS.weight_decay else []
  return optax.chain(*clip, *decay, optax.adam(rate) if FLAGS.optimizer == 'adam' else optax.sgd(rate, momentum=.9))
